//! How the daemon comes by the store key, and how a change of it is finished.
//!
//! Invariants:
//! 1. A key is made only where there is no store.
//! 2. Where a change of the key was cut off, the staged key is tried when the old one does not open the store; it takes
//!    the old one's place once it did.

use std::path::Path;

use crate::{
    config::{Environment, KeySource},
    error_chain::error_chain,
    secret::{Passphrase, StoreKey},
    store::{
        StoreError,
        key::{
            self, KeyMaterial,
            keyring::KeyringKey,
            passphrase::{self, Ask, Derivation},
        },
        sqlite::{Sqlite, upkeep},
    },
};

/// What it takes to come by the key of one store.
#[derive(Clone, Copy)]
pub(super) struct KeyLoader<'a> {
    pub(super) source: &'a KeySource,
    /// The store's file.
    pub(super) store: &'a Path,
    /// The copy of it that is to be opened in its stead.
    pub(super) copy: Option<&'a Path>,
    pub(super) environment: &'a Environment,
    pub(super) ask: Ask<'a>,
}

impl KeyLoader<'_> {
    /// Opens the store, or makes it.
    pub(super) async fn open(&self) -> Result<Sqlite, StoreError> {
        self.with_key(async |key, place| Sqlite::open(self.store, key, place).await).await
    }

    /// Has `open` open the store with its key, and finishes a change of the key that was cut off (invariant 2).
    pub(super) async fn with_key<T>(
        &self,
        open: impl AsyncFn(KeyMaterial, &str) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let place = self.source.place();
        let first = match self.current().await {
            Ok(key) => open(key, &place).await,
            Err(error) => Err(error),
        };
        let error = match first {
            Err(StoreError::WrongKey { place, .. }) if *self.source == KeySource::Passphrase => {
                return Err(StoreError::Unfit { place, reason: "the passphrase is wrong; try again".to_owned() });
            }
            Err(error @ (StoreError::WrongKey { .. } | StoreError::Unfit { .. })) => error,
            other => return other,
        };
        // What is wrong with the key itself matters more than what is wrong with a staged one.
        let (Ok(Some(staged)), Ok(Some(again))) = (self.staged().await, self.staged().await) else { return Err(error) };
        let Ok(opened) = open(staged.into(), &place).await else { return Err(error) };
        if self.copy.is_none() {
            self.switch(again).await?;
            tracing::info!("finished a change of the store key that was close_now off");
        }
        Ok(opened)
    }

    /// The key as it is in its place; made there when there is no store yet.
    async fn current(&self) -> Result<KeyMaterial, StoreError> {
        let file = self.copy.unwrap_or(self.store);
        let exists = Sqlite::exists(file);
        let derivation = if exists { upkeep::derivation(file).await? } else { None };
        match (self.source, derivation) {
            (KeySource::Passphrase, Some(derivation)) => self.derived(derivation, passphrase::ask),
            (KeySource::Passphrase, None) if exists => Err(self.unfit(
                "the store is sealed with a key that was not made of one; set [store] key to where that key is, and \
                 see `credproxy store rekey --to passphrase`",
            )),
            (KeySource::Passphrase, None) => self.derived(Derivation::new()?, passphrase::choose),
            (KeySource::File(_) | KeySource::Keyring | KeySource::Given(_), Some(_)) => {
                Err(self.unfit("the store is sealed with a passphrase; set [store] key = \"passphrase\""))
            }
            (KeySource::File(path), None) => Ok(key::from_file(path, exists)?.into()),
            (KeySource::Keyring, None) => Ok(KeyringKey::of(self.store)?.get_or_make(exists).await?.into()),
            (KeySource::Given(given), None) => {
                let text = given.read(self.environment).await.map_err(|error| self.unfit(error_chain(&error)))?;
                Ok(key::from_text(&text, &self.source.place())?.into())
            }
        }
    }

    /// A new key for the store; where it is ours to make, staged.
    pub(super) async fn next(&self) -> Result<KeyMaterial, StoreError> {
        match self.source {
            KeySource::File(path) => Ok(key::stage(path)?.into()),
            KeySource::Keyring => Ok(KeyringKey::of(self.store)?.stage_new().await?.into()),
            KeySource::Passphrase => self.derived(Derivation::new()?, passphrase::choose),
            KeySource::Given(given) => {
                let text = given.read(self.environment).await.map_err(|error| self.unfit(error_chain(&error)))?;
                Ok(key::from_text(&text, &self.source.place())?.into())
            }
        }
    }

    /// Puts the staged key, which opens the store now, in its place.
    pub(super) async fn finish(&self) -> Result<(), StoreError> {
        match self.staged().await? {
            Some(staged) => self.switch(staged).await,
            None => Ok(()),
        }
    }

    async fn staged(&self) -> Result<Option<StoreKey>, StoreError> {
        match self.source {
            KeySource::File(path) => key::staged(path),
            // Where no store is yet, the keyring was asked just now; it is not asked twice to say that it cannot.
            KeySource::Keyring if Sqlite::exists(self.store) => KeyringKey::of(self.store)?.staged().await,
            KeySource::Keyring | KeySource::Passphrase | KeySource::Given(_) => Ok(None),
        }
    }

    async fn switch(&self, staged: StoreKey) -> Result<(), StoreError> {
        match self.source {
            KeySource::File(path) => key::switch(path, &staged),
            KeySource::Keyring => KeyringKey::of(self.store)?.switch(staged).await,
            KeySource::Passphrase | KeySource::Given(_) => Ok(()),
        }
    }

    fn derived(
        &self,
        derivation: Derivation,
        passphrase: fn(Ask<'_>) -> Result<Passphrase, StoreError>,
    ) -> Result<KeyMaterial, StoreError> {
        let secret = derivation.key(&passphrase(self.ask)?)?;
        Ok(KeyMaterial { secret, derivation: Some(derivation) })
    }

    fn unfit(&self, reason: impl Into<String>) -> StoreError {
        StoreError::Unfit { place: self.source.place(), reason: reason.into() }
    }
}
