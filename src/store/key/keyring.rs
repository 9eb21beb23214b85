//! The store key in the platform's keyring: on Linux the Secret Service of the desktop.
//!
//! Owns: the entries, one per store and one for a staged key, and the timeout for a keyring that does not answer.
//!
//! Invariants:
//! 1. Two daemons that start at once agree on one key: a key is created under the lock of the store's directory.
//! 2. A key counts as created once the keyring returns it.
//! 3. No call takes longer than `KEYRING_TIMEOUT`, whatever the keyring does: it runs on its own thread, which does not
//!    keep the process from ending.
//!
//! Must not know: what the key seals.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::{digits, from_text, private, random, same};
use crate::{private::FileError, secret::StoreKey, store::StoreError};

/// Long enough for a person to find the keyring's unlock dialog and enter the password.
const KEYRING_TIMEOUT: Duration = Duration::from_mins(1);

/// The key's source, in errors.
pub const PLACE: &str = "the keyring";

/// The other sources of a key, as named in the configuration.
pub(super) const OTHER_SOURCES: &str = "\"file\", \"env:NAME\", \"command:CMD\" or \"credential:NAME\"";

/// The label of our entries in a keyring's own window.
#[cfg(feature = "keyring")]
const SERVICE: &str = "credproxy";

/// The operations of a keyring, so that tests can replace it. An error is the keyring's text.
trait Vault: Send + Sync {
    fn get(&self, entry: &str) -> Result<Option<Zeroizing<String>>, String>;
    fn set(&self, entry: &str, key: &str) -> Result<(), String>;
    fn remove(&self, entry: &str) -> Result<(), String>;
}

/// The key of one store in the keyring.
#[derive(Clone)]
pub struct KeyringKey {
    vault: Arc<dyn Vault>,
    store: PathBuf,
}

impl KeyringKey {
    /// The key of the store in the file `store`. The entry is identified by that path.
    pub fn of(store: &Path) -> Result<Self, StoreError> {
        let store = std::path::absolute(store).map_err(FileError::at("find", store))?;
        Ok(Self { vault: Arc::new(Platform), store })
    }

    /// Returns the key, which is created if there is neither a key nor a store.
    ///
    /// `store_exists`: whether there is a store that was sealed with this key.
    pub async fn get_or_make(&self, store_exists: bool) -> Result<StoreKey, StoreError> {
        self.ask(move |this| match this.find(&this.entry())? {
            Some(key) => Ok(key),
            None if store_exists => Err(this.missing()),
            None => this.make(),
        })
        .await
    }

    /// The staged key of a key change.
    pub async fn staged(&self) -> Result<Option<StoreKey>, StoreError> {
        self.ask(|this| this.find(&this.stage())).await
    }

    /// Stages a random key, replacing an earlier staged key that was never used.
    pub async fn stage_new(&self) -> Result<StoreKey, StoreError> {
        self.ask(|this| this.put_random(&this.stage())).await
    }

    /// Replaces the old key with the staged one, `key`. Does nothing if another process has done it.
    pub async fn switch(&self, key: StoreKey) -> Result<(), StoreError> {
        self.ask(move |this| {
            if let Some(text) = this.vault.get(&this.stage()).map_err(refused)?
                && from_text(text.as_bytes(), PLACE).is_ok_and(|staged| same(&staged, &key))
            {
                this.vault.set(&this.entry(), &text).map_err(refused)?;
                // The staged entry may be removed only once the keyring returns the new key (invariant 2).
                if this.find(&this.entry())?.is_some_and(|now| same(&now, &key)) {
                    this.vault.remove(&this.stage()).map_err(refused)?;
                }
            }
            Ok(())
        })
        .await
    }

    fn entry(&self) -> String {
        self.store.display().to_string()
    }

    fn stage(&self) -> String {
        format!("{} (next)", self.entry())
    }

    fn find(&self, entry: &str) -> Result<Option<StoreKey>, StoreError> {
        let found = self.vault.get(entry).map_err(refused)?;
        found.map(|text| from_text(text.as_bytes(), PLACE)).transpose()
    }

    /// Invariant 1.
    fn make(&self) -> Result<StoreKey, StoreError> {
        let directory = self.store.parent().unwrap_or(Path::new("/"));
        private::private_directory(directory)?;
        let alone = File::open(directory).map_err(FileError::at("open", directory))?;
        alone.lock().map_err(FileError::at("lock", directory))?;
        match self.find(&self.entry())? {
            Some(key) => Ok(key),
            None => self.put_random(&self.entry()),
        }
    }

    fn put_random(&self, entry: &str) -> Result<StoreKey, StoreError> {
        let key = random()?;
        self.vault.set(entry, &digits(&key)).map_err(refused)?;
        let key = StoreKey::new(*key);
        match self.find(entry)? {
            Some(kept) if same(&kept, &key) => Ok(key),
            Some(_) | None => Err(refused("it did not keep the key it was given")),
        }
    }

    fn missing(&self) -> StoreError {
        unfit(format!(
            "has no key for {}, but that store exists; put the key back, set [store] key to where the key is now, or \
             move the store away to begin a new one",
            self.store.display()
        ))
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let this = self.clone();
        within(KEYRING_TIMEOUT, move || question(&this)).await
    }
}

/// Invariant 3.
async fn within<T: Send + 'static>(
    limit: Duration,
    question: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (answer, answered) = oneshot::channel();
    let ask = move || {
        // The send fails if the caller has given up.
        answer.send(question()).ok();
    };
    thread::Builder::new().name("keyring".to_owned()).spawn(ask).map_err(StoreError::unavailable)?;
    match tokio::time::timeout(limit, answered).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(_)) => Err(refused("it broke off")),
        Err(_) => Err(refused(format!("it did not answer within {} s", limit.as_secs()))),
    }
}

fn refused(reason: impl AsRef<str>) -> StoreError {
    unfit(format!(
        "cannot be used: {}; a machine without a desktop session usually has no keyring: set [store] key to {OTHER_SOURCES}, \
         or to \"passphrase\"",
        reason.as_ref()
    ))
}

fn unfit(reason: String) -> StoreError {
    StoreError::Unfit { place: PLACE.to_owned(), reason }
}

/// The keyring of the platform.
struct Platform;

#[cfg(feature = "keyring")]
impl Platform {
    fn entry(entry: &str) -> Result<keyring::v1::Entry, String> {
        // The connection to the keyring is attempted once; its error has to be fetched separately.
        if let Err(error) = keyring::v1::Entry::store_status() {
            return Err(Self::reason(error));
        }
        keyring::v1::Entry::new(SERVICE, entry).map_err(|error| Self::reason(&error))
    }

    /// Only the kind of errors that contain what was read.
    fn reason(error: &keyring::v1::Error) -> String {
        use keyring::v1::Error;
        match error {
            Error::PlatformFailure(cause) | Error::NoStorageAccess(cause) => cause.to_string(),
            Error::NoDefaultStore => "there is none".to_owned(),
            Error::Ambiguous(_) => "it holds more than one key for this store".to_owned(),
            Error::NoEntry
            | Error::BadEncoding(_)
            | Error::BadDataFormat(..)
            | Error::BadStoreFormat(_)
            | Error::TooLong(..)
            | Error::Invalid(..)
            | Error::NotSupportedByStore(_)
            | _ => "it holds something that is not a key, or does not take one".to_owned(),
        }
    }
}

#[cfg(feature = "keyring")]
impl Vault for Platform {
    fn get(&self, entry: &str) -> Result<Option<Zeroizing<String>>, String> {
        match Self::entry(entry)?.get_password() {
            Ok(text) => Ok(Some(Zeroizing::new(text))),
            Err(keyring::v1::Error::NoEntry) => Ok(None),
            Err(error) => Err(Self::reason(&error)),
        }
    }

    fn set(&self, entry: &str, key: &str) -> Result<(), String> {
        Self::entry(entry)?.set_password(key).map_err(|error| Self::reason(&error))
    }

    fn remove(&self, entry: &str) -> Result<(), String> {
        Self::entry(entry)?.delete_credential().map_err(|error| Self::reason(&error))
    }
}

#[cfg(not(feature = "keyring"))]
impl Vault for Platform {
    fn get(&self, _: &str) -> Result<Option<Zeroizing<String>>, String> {
        Err("this program was built without it".to_owned())
    }

    fn set(&self, entry: &str, _: &str) -> Result<(), String> {
        self.get(entry).map(drop)
    }

    fn remove(&self, entry: &str) -> Result<(), String> {
        self.get(entry).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        sync::{Mutex, mpsc},
    };

    use super::*;

    #[derive(Default)]
    struct ItemStore(Mutex<HashMap<String, String>>);

    impl Vault for ItemStore {
        fn get(&self, entry: &str) -> Result<Option<Zeroizing<String>>, String> {
            Ok(self.0.lock().unwrap().get(entry).cloned().map(Zeroizing::new))
        }

        fn set(&self, entry: &str, key: &str) -> Result<(), String> {
            self.0.lock().unwrap().insert(entry.to_owned(), key.to_owned());
            Ok(())
        }

        fn remove(&self, entry: &str) -> Result<(), String> {
            self.0.lock().unwrap().remove(entry);
            Ok(())
        }
    }

    /// Takes everything, and keeps nothing.
    struct Forgetful;

    impl Vault for Forgetful {
        fn get(&self, _: &str) -> Result<Option<Zeroizing<String>>, String> {
            Ok(None)
        }

        fn set(&self, _: &str, _: &str) -> Result<(), String> {
            Ok(())
        }

        fn remove(&self, _: &str) -> Result<(), String> {
            Ok(())
        }
    }

    fn key(vault: Arc<dyn Vault>) -> (tempfile::TempDir, KeyringKey) {
        let home = tempfile::tempdir().unwrap();
        let store = home.path().join("data/credproxy.db");
        (home, KeyringKey { vault, store })
    }

    #[tokio::test]
    async fn the_key_made_first_is_found_later_and_by_all() {
        let shelf = Arc::new(ItemStore::default());
        let (_home, key) = key(shelf);
        let starts: Vec<_> = (0..8).map(|_| key.get_or_make(false)).collect();
        let keys = futures_util::future::join_all(starts).await;
        let first = keys[0].as_ref().unwrap();
        assert!(keys.iter().all(|key| same(key.as_ref().unwrap(), first)));
        assert!(same(&key.get_or_make(true).await.unwrap(), first));
    }

    #[tokio::test]
    async fn no_new_key_is_made_for_an_old_store() {
        let (_home, key) = key(Arc::new(ItemStore::default()));
        let error = key.get_or_make(true).await.unwrap_err().to_string();
        assert!(error.contains("has no key for") && error.contains("credproxy.db"), "{error}");
    }

    #[tokio::test]
    async fn a_staged_key_takes_the_old_ones_place() {
        let shelf = Arc::new(ItemStore::default());
        let (_home, key) = key(Arc::<ItemStore>::clone(&shelf));
        let old = key.get_or_make(false).await.unwrap();
        let next = key.stage_new().await.unwrap();
        assert!(same(&key.get_or_make(true).await.unwrap(), &old));
        assert!(same(&key.staged().await.unwrap().unwrap(), &next));
        key.switch(old).await.unwrap();
        assert!(key.staged().await.unwrap().is_some(), "another key than the one staged is not put in place");
        key.switch(key.staged().await.unwrap().unwrap()).await.unwrap();
        assert!(same(&key.get_or_make(true).await.unwrap(), &next));
        assert!(key.staged().await.unwrap().is_none());
        assert_eq!(shelf.0.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_keyring_that_keeps_nothing_is_refused_at_once() {
        let (_home, key) = key(Arc::new(Forgetful));
        let error = key.get_or_make(false).await.unwrap_err().to_string();
        for text in ["did not keep", "\"file\"", "env:NAME", "command:CMD", "credential:NAME", "passphrase"] {
            assert!(error.contains(text), "{text}: {error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_keyring_that_never_answers_is_not_waited_for() {
        let (_hold, never) = mpsc::channel::<()>();
        let error = within(KEYRING_TIMEOUT, move || {
            never.recv().ok();
            Ok(())
        });
        assert!(error.await.unwrap_err().to_string().contains("within 60 s"));
    }
}
