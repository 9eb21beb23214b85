//! `store backup`, `store verify` and `store rekey`, which work without a daemon or beside one.

use std::path::Path;

use super::{LifecycleError, key::KeyLoader};
use crate::{
    config::{Config, Environment, KeySource},
    store::{
        KeyId,
        key::passphrase::Ask,
        sqlite::{
            Sqlite,
            upkeep::{self, Examination, Rekeying, ResealCounts},
        },
    },
};

/// The result of a change of the key.
#[derive(Debug)]
pub struct Rekeyed {
    /// What was resealed, and with which key.
    pub sealed: ResealCounts,
    /// The previous key.
    pub before: KeyId,
    /// Where the key is now, as named in errors.
    pub place: String,
}

/// Copies the store into the new file `target`, even while a daemon uses it. Returns the examination of the copy.
pub async fn backup(
    config: &Config,
    environment: &Environment,
    ask: Ask<'_>,
    target: &Path,
) -> Result<Examination, LifecycleError> {
    must_exist(&config.store.path)?;
    let loader = loader(config, environment, ask);
    let copy = async |key, place: &str| upkeep::back_up(loader.store, key, place, target).await;
    Ok(loader.with_key(copy).await?)
}

/// Opens every record of the store, even while a daemon uses it, or of `copy`.
pub async fn verify(
    config: &Config,
    environment: &Environment,
    ask: Ask<'_>,
    copy: Option<&Path>,
) -> Result<Examination, LifecycleError> {
    let file = copy.unwrap_or(&config.store.path);
    must_exist(file)?;
    let loader = KeyLoader { copy, ..loader(config, environment, ask) };
    Ok(loader.with_key(async |key, place: &str| upkeep::examine(file, key, place).await).await?)
}

/// Reseals the store with a new key, from the configured source or another one.
pub async fn rekey(
    config: &Config,
    environment: &Environment,
    ask: Ask<'_>,
    to: Option<&KeySource>,
) -> Result<Rekeyed, LifecycleError> {
    must_exist(&config.store.path)?;
    let loader = loader(config, environment, ask);
    let next = KeyLoader { source: to.unwrap_or(loader.source), ..loader };
    if let (KeySource::Given(_), true) = (next.source, next.source == loader.source) {
        return Err(LifecycleError::ForeignKey);
    }
    let mut rekeying =
        loader.with_key(async |key, place: &str| Rekeying::begin(loader.store, key, place).await).await?;
    let before = rekeying.key_id()?;
    let sealed = rekeying.reseal_all(next.next().await?).await?;
    next.finish().await?;
    rekeying.end().await?;
    Ok(Rekeyed { sealed, before, place: next.source.place() })
}

fn loader<'a>(config: &'a Config, environment: &'a Environment, ask: Ask<'a>) -> KeyLoader<'a> {
    KeyLoader { source: &config.store.key, store: &config.store.path, copy: None, environment, ask }
}

/// Without this check a key would be created.
fn must_exist(store: &Path) -> Result<(), LifecycleError> {
    if Sqlite::exists(store) { Ok(()) } else { Err(LifecycleError::NoStore(store.to_owned())) }
}
