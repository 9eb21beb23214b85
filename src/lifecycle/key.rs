//! Loads the store key, and completes an interrupted change of it.
//!
//! Invariants:
//! 1. A key is made only where there is no store.
//! 2. After an interrupted change of the key, the staged key is tried if the old one does not open the store. If it
//!    does, it replaces the old one.

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

/// Loads the key of one store.
#[derive(Clone, Copy)]
pub(super) struct KeyLoader<'a> {
    pub(super) source: &'a KeySource,
    /// The store's file.
    pub(super) store: &'a Path,
    /// A copy of the store that is opened instead.
    pub(super) copy: Option<&'a Path>,
    pub(super) environment: &'a Environment,
    pub(super) ask: Ask<'a>,
}

impl KeyLoader<'_> {
    /// Opens or creates the store.
    pub(super) async fn open(&self) -> Result<Sqlite, StoreError> {
        self.with_key(async |key, place| Sqlite::open(self.store, key, place).await).await
    }

    /// Calls `open` with the store's key, and completes an interrupted change of the key (invariant 2).
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
        // An error of the key itself matters more than one of a staged key.
        let (Ok(Some(staged)), Ok(Some(again))) = (self.staged().await, self.staged().await) else { return Err(error) };
        let Ok(opened) = open(staged.into(), &place).await else { return Err(error) };
        if self.copy.is_none() {
            self.switch(again).await?;
            tracing::info!("finished an interrupted change of the store key");
        }
        Ok(opened)
    }

    /// The current key; it is created if there is no store yet.
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

    /// A new key for the store, staged if it is created here.
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

    /// Replaces the old key by the staged one, which opens the store now.
    pub(super) async fn finish(&self) -> Result<(), StoreError> {
        match self.staged().await? {
            Some(staged) => self.switch(staged).await,
            None => Ok(()),
        }
    }

    async fn staged(&self) -> Result<Option<StoreKey>, StoreError> {
        match self.source {
            KeySource::File(path) => key::staged(path),
            // If there is no store yet, the keyring has just been asked and is not asked again.
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
