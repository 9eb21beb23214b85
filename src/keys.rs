//! API keys: static secrets that a person sets, handed out as they are.
//!
//! Owns: what the store keeps of a key, and the rule that no key contains a refresh token.
//!
//! Invariants:
//! 1. Nothing is cached. Every answer comes from the store, so that it includes changes by other processes, and an
//!    unreadable key does not affect the others.
//! 2. A change is carried out even if the caller goes away.
//!
//! Must not know: HTTP, SQL, who may have which key.

use std::sync::Arc;

use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use crate::{
    account::{ItemName, KeyName},
    clock::{Clock, Timestamp},
    item::{Item, ItemError, ItemKind, ItemTag},
    secret::{ApiKey, RefreshToken},
    store::{Expect, ItemStore, Put, Removed, StoreError},
};

/// A key, as its caller gets it.
#[derive(Debug)]
pub struct Key {
    /// The key.
    pub secret: ApiKey,
    /// When it was set.
    pub created_at: Timestamp,
    /// Identifies the value.
    pub tag: ItemTag,
}

/// One entry of [`Keys::list`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyEntry {
    /// The name of the key.
    pub name: KeyName,
    /// When it was set; `None` when it cannot be read.
    pub created_at: Option<Timestamp>,
}

/// Why there is no key, or why it was not changed. Everything in it may be shown to the caller.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// None is stored under the name.
    #[error("no API key is stored under this name")]
    NotFound,
    /// `If-Match` names another value.
    #[error("the API key is not the one that If-Match names")]
    PreconditionFailed,
    /// The key contains a refresh token, which must not leave.
    #[error("the API key is or holds the refresh token of a stored grant, which never leaves")]
    RevealsRefreshToken,
    /// The store failed, or the key cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An internal fault.
    #[error("internal error")]
    Internal,
}

impl From<ItemError> for KeyError {
    fn from(_: ItemError) -> Self {
        Self::Internal
    }
}

/// The stored form of a key, for writing.
#[derive(Serialize)]
struct StoredKeyRef<'a> {
    api_key: &'a str,
    created_at: Timestamp,
}

/// The stored form of a key, for reading.
#[derive(Deserialize)]
struct StoredKey {
    api_key: String,
    created_at: Timestamp,
}

/// The keys in a store. Clones share it.
#[derive(Debug, Clone)]
pub struct Keys(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<dyn ItemStore>,
    clock: Arc<dyn Clock>,
    tasks: TaskTracker,
}

impl Keys {
    /// The keys in this store.
    #[must_use]
    pub fn new(store: Arc<dyn ItemStore>, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { store, clock, tasks: TaskTracker::new() }))
    }

    /// One key.
    pub async fn get(&self, name: &KeyName) -> Result<Key, KeyError> {
        let name = name.clone().into();
        let item = self.0.store.item(ItemKind::ApiKey, &name).await?.ok_or(KeyError::NotFound)?;
        Ok(read(&name, &item)?)
    }

    /// Every key without its value, in the order of their names.
    pub async fn list(&self) -> Result<Vec<KeyEntry>, KeyError> {
        let entries = self.0.store.items(ItemKind::ApiKey).await?.into_iter();
        let listed = entries.map(|entry| KeyEntry {
            created_at: entry.item.and_then(|item| read(&entry.name, &item)).ok().map(|key| key.created_at),
            name: entry.name.into(),
        });
        Ok(listed.collect())
    }

    /// Stores a key, replacing the one of that name. Returns the tag of the new value.
    pub async fn put(
        &self,
        name: &KeyName,
        secret: ApiKey,
        expect: Expect<ItemTag>,
    ) -> Result<(Put, ItemTag), KeyError> {
        let (inner, name) = (Arc::clone(&self.0), name.clone());
        self.detached(async move {
            let texts = Texts::of(&secret);
            let grants = inner.store.list().await?.into_iter().filter_map(|entry| Some(entry.record.ok()?.grant));
            let mut refresh_tokens = grants.filter_map(|grant| grant.refresh_token);
            if refresh_tokens.any(|refresh_token| texts.hold(&refresh_token)) {
                return Err(KeyError::RevealsRefreshToken);
            }
            let item = Item::new(&StoredKeyRef { api_key: texts.plain, created_at: inner.clock.now() })?;
            let put = inner.store.put_item(ItemKind::ApiKey, &name.clone().into(), &item, &expect).await?;
            if put == Put::Conflict {
                return Err(KeyError::PreconditionFailed);
            }
            tracing::info!(key = %name, "API key stored");
            Ok((put, item.tag))
        })
        .await
    }

    /// Deletes a key, even an unreadable one.
    pub async fn delete(&self, name: &KeyName, expect: Expect<ItemTag>) -> Result<(), KeyError> {
        let (inner, name) = (Arc::clone(&self.0), name.clone());
        self.detached(async move {
            match inner.store.delete_item(ItemKind::ApiKey, &name.clone().into(), &expect).await? {
                Removed::Gone => {
                    tracing::info!(key = %name, "API key deleted");
                    Ok(())
                }
                Removed::Missing => Err(KeyError::NotFound),
                Removed::Conflict => Err(KeyError::PreconditionFailed),
            }
        })
        .await
    }

    /// Whether the refresh token is contained in a stored key.
    pub async fn reveal(&self, refresh_token: &RefreshToken) -> Result<bool, KeyError> {
        let entries = self.0.store.items(ItemKind::ApiKey).await?.into_iter();
        let mut keys = entries.filter_map(|entry| read(&entry.name, &entry.item.ok()?).ok());
        Ok(keys.any(|key| Texts::of(&key.secret).hold(refresh_token)))
    }

    /// Waits for the changes under way.
    pub async fn shut_down(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Runs a change to its end even if the caller goes away (invariant 2).
    async fn detached<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, KeyError>> + Send + 'static,
    ) -> Result<T, KeyError> {
        self.0.tasks.spawn(change).await.unwrap_or(Err(KeyError::Internal))
    }
}

fn read(name: &ItemName, item: &Item) -> Result<Key, StoreError> {
    let key = item.read().and_then(|StoredKey { api_key, created_at }| {
        Some(Key { secret: ApiKey::new(api_key).ok()?, created_at, tag: item.tag })
    });
    key.ok_or_else(|| StoreError::UnreadableItem { kind: ItemKind::ApiKey, name: name.clone() })
}

/// A shorter refresh token is compared with whole keys only: a provider may issue a refresh token of one letter, which
/// must not keep everybody from storing keys with that letter in them. A longer one is not contained by chance, and no
/// real one is shorter.
const MIN_SEARCHED_LENGTH: usize = 12;

/// A key as it is, and as JSON spells it.
struct Texts<'a> {
    plain: &'a str,
    spelled: Zeroizing<String>,
}

impl<'a> Texts<'a> {
    #[expect(clippy::disallowed_methods, reason = "the key goes from here into the store, sealed; the rest compares")]
    fn of(secret: &'a ApiKey) -> Self {
        let plain = secret.expose_secret();
        // A string always serializes.
        Self { plain, spelled: Zeroizing::new(serde_json::to_string(plain).unwrap_or_default()) }
    }

    #[expect(clippy::disallowed_methods, reason = "only its length counts")]
    fn hold(&self, refresh_token: &RefreshToken) -> bool {
        let length = refresh_token.expose_secret().len();
        if length < MIN_SEARCHED_LENGTH {
            return length == self.plain.len() && refresh_token.occurs_in(self.plain);
        }
        refresh_token.occurs_in(self.plain) || refresh_token.occurs_in(&self.spelled)
    }
}
