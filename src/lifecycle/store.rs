//! `store backup`, `store verify` and `store rekey`: the store as a whole, without a daemon or beside one.

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

/// What came of a change of the key.
#[derive(Debug)]
pub struct Rekeyed {
    /// What is sealed anew, and with which key.
    pub sealed: ResealCounts,
    /// The key before.
    pub before: KeyId,
    /// Where the key is now, as errors name it.
    pub place: String,
}

/// Copies the store, which a daemon may be using, into the new file `target`. Gives what was found in the copy.
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

/// Opens every record of the store, which a daemon may be using, or of `copy`.
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

/// Seals the store with a new key, in the place that is configured or in another one.
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

/// Otherwise a key would be made for it.
fn must_exist(store: &Path) -> Result<(), LifecycleError> {
    if Sqlite::exists(store) { Ok(()) } else { Err(LifecycleError::NoStore(store.to_owned())) }
}
