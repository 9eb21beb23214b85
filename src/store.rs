//! Stores: where grants are kept, and the lease that makes this daemon's flight the only one.
//!
//! Owns: the trait [`Store`], its [`Record`] with the [`RefreshState`], and its errors; and the trait [`ItemStore`],
//! for everything else that is stored.
//!
//! Invariants:
//! 1. A call that returned `Ok` is durable: it survives the loss of the process, and on disk the loss of power.
//! 2. Every change is one commit, and a compare-and-set: on the [`Revision`] before a flight sends, on the [`Version`]
//!    after. A caller that was overtaken changes nothing.
//! 3. At most one live owner holds an account's lease. Whether an owner is alive is never decided by a clock.
//! 4. One unreadable record or item does not hide the others, and only a put or a delete replaces it.
//!
//! Must not know: what a refresh is, HTTP. Only its children use SQL and encryption.

use std::{fmt, path::Path};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    account::{Account, ItemName, ProviderName},
    clock::Timestamp,
    grant::{Grant, GrantId, Version},
    item::{Item, ItemKind, ItemTag},
    private::{FileError, PrivateError},
};

pub mod key;
pub mod memory;
pub mod seal;
pub mod sqlite;

/// Identifies a store key to a person. It may be shown; six bytes are as many as a person compares, and more than
/// enough to distinguish one person's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyId(pub(crate) [u8; 6]);

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// Counts every write to one account's record, including its refresh state and lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision(pub u64);

/// A record that the refresh token is being presented: durable before the token is sent, removed when the outcome is
/// known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presentation {
    /// When the last presentation began.
    pub at: Timestamp,
    /// The attempt number of this generation's refresh token, from 1.
    pub count: u32,
}

/// The outcome of a refresh attempt, as classified by `refresh/outcome.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// New tokens were received.
    Success,
    /// The provider reported the grant dead.
    Final,
    /// The provider does not accept this client's configuration.
    Configuration,
    /// The refresh token was not spent, and a retry may help.
    NotSpent,
    /// The provider refused without a known reason.
    Refused,
    /// The refresh token was sent, and it is unknown whether it was spent.
    Ambiguous,
}

/// The last attempt on this grant, from which the cooldown and the backoffs are calculated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it ended.
    pub ended_at: Timestamp,
    /// Its outcome.
    pub outcome: Outcome,
    /// The provider's error code, if it may be shown.
    pub code: Option<String>,
    /// The number of consecutive attempts with this outcome.
    #[serde(rename = "streak")]
    pub consecutive: u32,
    /// The earliest time of the next attempt.
    pub not_before: Timestamp,
}

/// The grant is dead: no more calls until it is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadGrant {
    /// Since when.
    pub at: Timestamp,
    /// The answer to an earlier presentation was lost, perhaps with the successor in it.
    pub answer_lost: bool,
    /// The store may be a copy ([`RefreshState::copied_at`]), and the refresh token may have been presented from
    /// another one.
    #[serde(default)]
    pub copied: bool,
}

/// The refresh state of a grant, stored in clear beside it. Changing it changes neither the grant's id nor its
/// generation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefreshState {
    /// A presentation with an unknown outcome.
    pub presented: Option<Presentation>,
    /// The last attempt.
    pub attempt: Option<Attempt>,
    /// Set once the grant is known to be dead.
    pub dead: Option<DeadGrant>,
    /// The store was found in another place than before: it may be a copy, and the refresh token may have been
    /// presented from the other one.
    pub copied_at: Option<Timestamp>,
}

/// One account's grant and its refresh state.
#[derive(Debug)]
pub struct Record {
    /// The grant.
    pub grant: Grant,
    /// Its refresh state.
    pub refresh_state: RefreshState,
    /// The revision of the last write.
    pub revision: Revision,
}

/// The result of [`Store::claim`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The lease is this owner's and the presentation is durable; the record is now at this revision.
    Taken(Revision),
    /// Another live owner holds the lease.
    Held,
    /// The record is at another revision: read it again.
    Changed,
}

/// The precondition of a put or delete. For items the version is an [`ItemTag`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect<V = Version> {
    /// Anything, or nothing.
    Whatever,
    /// Nothing (`If-None-Match: *`).
    Absent,
    /// Some record, readable or not (`If-Match: *`).
    Present,
    /// A grant in one of these versions.
    OneOf(Vec<V>),
}

impl<V: PartialEq> Expect<V> {
    /// Whether an existing record satisfies it; `version` is `None` if the record is unreadable.
    pub(crate) fn allows(&self, found: Option<V>) -> bool {
        match self {
            Self::Whatever | Self::Present => true,
            Self::Absent => false,
            Self::OneOf(versions) => found.is_some_and(|version| versions.contains(&version)),
        }
    }

    /// Whether the absence of a record satisfies it.
    pub(crate) fn allows_none(&self) -> bool {
        matches!(self, Self::Whatever | Self::Absent)
    }
}

/// The result of [`ItemStore::put_item`], and a part of that of [`Store::put`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// There was no record.
    Created,
    /// There was one, which has been replaced.
    Replaced,
    /// The precondition failed; nothing changed.
    Conflict,
}

/// The result of [`Store::put`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutGrant {
    /// Stored, or the precondition failed.
    Done(Put),
    /// The account has this refresh token already. The rest of the grant was updated; version, refresh state and lease
    /// are kept.
    Held(Version),
    /// The refresh token was spent, or belongs to another account. Nothing changed.
    Known(KnownToken),
}

impl From<Put> for PutGrant {
    fn from(put: Put) -> Self {
        Self::Done(put)
    }
}

/// The minimum number of an account's spent refresh tokens that are remembered.
pub(crate) const SPENT_TOKENS: usize = 64;

/// A refresh token that the store recognises.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownToken {
    /// The account that has or had it.
    pub account: Account,
    /// Whether it is spent; otherwise the account still has it.
    pub spent: bool,
}

/// The result of [`Store::rename`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renamed {
    /// The record was renamed; nothing else changed.
    Done,
    /// There is no such record.
    Missing,
    /// The new name has a record already.
    Occupied,
    /// Another live owner holds the lease.
    LeaseHeld,
}

/// The result of [`Store::delete`].
#[derive(Debug)]
pub enum Deleted {
    /// The record was deleted. It held this grant, unless it was unreadable.
    Gone(Option<Box<Grant>>),
    /// There was no record, whatever the precondition.
    Missing,
    /// The precondition failed; nothing changed.
    Conflict,
}

/// An entry passed to the visitor of [`Store::visit`].
#[derive(Debug)]
pub struct Entry {
    /// The account.
    pub account: Account,
    /// The record, or why it cannot be read.
    pub record: Result<Record, StoreError>,
}

/// The result of [`ItemStore::delete_item`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// The item was deleted.
    Gone,
    /// There was no item, whatever the precondition.
    Missing,
    /// The precondition failed; nothing changed.
    Conflict,
}

/// An entry of [`ItemStore::items`].
#[derive(Debug)]
pub struct ItemEntry {
    /// Its name.
    pub name: ItemName,
    /// The item, or why it cannot be read.
    pub item: Result<Item, StoreError>,
}

/// The errors of a store. No variant contains a secret.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be read or written now; it may recover.
    #[error("the store is not available")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// This one record cannot be opened: it is damaged, or was moved here from another account.
    #[error(
        "the record of {account} cannot be read: it is damaged, or was sealed with another key; delete it and log in again"
    )]
    Unreadable {
        /// The account.
        account: Account,
    },
    /// This one record was written by a later version of the program.
    #[error(
        "the record of {account} has format {format}, which this version does not know; use the version that wrote it"
    )]
    NewerRecord {
        /// The account.
        account: Account,
        /// The format found.
        format: u32,
    },
    /// This one item cannot be opened: it is damaged, or was moved here from another name.
    #[error(
        "the {kind} {name} cannot be read: it is damaged, or was sealed with another key; remove it and make it again"
    )]
    UnreadableItem {
        /// Its kind.
        kind: ItemKind,
        /// Its name.
        name: ItemName,
    },
    /// This one item was written by a later version of the program.
    #[error("the {kind} {name} has format {format}, which this version does not know; use the version that wrote it")]
    NewerItem {
        /// Its kind.
        kind: ItemKind,
        /// Its name.
        name: ItemName,
        /// The format found.
        format: u32,
    },
    /// The store was written by a later version of the program.
    #[error("{place} has format {format}, which this version does not know; use the version that wrote it")]
    NewerStore {
        /// The store's path.
        place: String,
        /// The format found.
        format: u32,
    },
    /// The key does not open this store.
    #[error(
        "the key in {key} does not open {place}; put back the key that belongs to it, or move the store away to begin a new one"
    )]
    WrongKey {
        /// Where the key is.
        key: String,
        /// The store's path.
        place: String,
    },
    /// Another process has the store open, and the operation needs exclusive access.
    #[error("{place} is in use: stop the daemon that uses it first")]
    InUse {
        /// The store's path.
        place: String,
    },
    /// The key, its file or the store's directory cannot be used.
    #[error("{place}: {reason}")]
    Unfit {
        /// The file or directory.
        place: String,
        /// What is wrong and how to fix it.
        reason: String,
    },
}

impl StoreError {
    /// Whether a retry may help, as opposed to an error that stays.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// For `map_err`.
    pub(crate) fn unavailable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(cause.into())
    }
}

impl From<FileError> for StoreError {
    fn from(error: FileError) -> Self {
        Self::Unavailable(Box::new(error))
    }
}

impl From<PrivateError> for StoreError {
    fn from(error: PrivateError) -> Self {
        match error {
            PrivateError::Unfit { place, reason } => unfit(&place, reason),
            PrivateError::File(error) => error.into(),
        }
    }
}

/// The key, the store or their directory cannot be used as they are.
pub(crate) fn unfit(place: &Path, reason: impl Into<String>) -> StoreError {
    StoreError::Unfit { place: place.display().to_string(), reason: reason.into() }
}
/// Selects accounts.
pub type AccountFilter<'a> = dyn Fn(&Account) -> bool + Sync + 'a;

/// The visitor of records.
pub type Visitor<'a> = dyn FnMut(Entry) + Send + 'a;

/// A store of records. One value is one owner of leases.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync {
    /// Reads one account's record.
    async fn load(&self, account: &Account) -> Result<Option<Record>, StoreError>;

    /// Returns the accounts that have a record, sorted, without opening any.
    async fn names(&self) -> Result<Vec<Account>, StoreError>;

    /// Reads the records of the accounts that are `wanted`, sorted, and passes them to the visitor one by one: together
    /// they may be too large for memory.
    async fn visit(&self, wanted: &AccountFilter<'_>, each: &mut Visitor<'_>) -> Result<(), StoreError>;

    /// Reads all records, sorted by account.
    async fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let mut all = Vec::new();
        self.visit(&|_| true, &mut |entry| all.push(entry)).await?;
        Ok(all)
    }

    /// Takes the lease and records the presentation, in one commit, if the record is still at `expected`. An owner that
    /// holds the lease may claim again, to record the next presentation.
    async fn claim(&self, account: &Account, expected: Revision, presented: Presentation) -> Result<Claim, StoreError>;

    /// Saves the refresh state and releases the lease, in one commit, if the grant is still at `version`. Returns
    /// `false` if it is not, or if another owner has taken the lease, whose presentation must be kept.
    async fn settle(
        &self,
        account: &Account,
        version: Version,
        refresh_state: &RefreshState,
    ) -> Result<bool, StoreError>;

    /// Replaces the grant at `version` by its next generation, saves the refresh state and releases the lease, whoever
    /// has it, in one commit: `next` contains the only copy of the successor. Returns `false` if the grant is no longer
    /// at `version`.
    async fn save(
        &self,
        account: &Account,
        version: Version,
        next: &Grant,
        refresh_state: &RefreshState,
    ) -> Result<bool, StoreError>;

    /// Stores a whole grant, with an empty refresh state and no lease. A refresh token is in the store only once: one
    /// that an account of the providers `siblings` (those with the same token endpoint) has or had is refused. If the
    /// account itself has it, the refresh state is kept, so that it is not presented again, unless the grant is dead:
    /// then there is nothing to lose, and whoever stores it again wants another try.
    async fn put(
        &self,
        account: &Account,
        grant: &Grant,
        expect: &Expect,
        siblings: &[ProviderName],
    ) -> Result<PutGrant, StoreError>;

    /// Renames a record. Version and refresh state are kept, and so is what is known of its refresh tokens.
    async fn rename(&self, from: &Account, to: &Account) -> Result<Renamed, StoreError>;

    /// Deletes the record, even if it is unreadable.
    async fn delete(&self, account: &Account, expect: &Expect) -> Result<Deleted, StoreError>;

    /// Tests whether a write would be durable now, with one that changes nothing visible.
    async fn probe(&self) -> Result<(), StoreError>;

    /// Grows whenever another owner may have changed anything; what was read before must then be read again.
    fn epoch(&self) -> u64;
}

/// A store for everything but grants. Each item is sealed individually, with its kind, name and tag.
#[async_trait]
pub trait ItemStore: Store {
    /// Reads one item.
    async fn item(&self, kind: ItemKind, name: &ItemName) -> Result<Option<Item>, StoreError>;

    /// Reads all items of a kind, sorted by name.
    async fn items(&self, kind: ItemKind) -> Result<Vec<ItemEntry>, StoreError>;

    /// Stores a whole item, replacing the one of that name.
    async fn put_item(
        &self,
        kind: ItemKind,
        name: &ItemName,
        item: &Item,
        expect: &Expect<ItemTag>,
    ) -> Result<Put, StoreError>;

    /// Deletes an item, even if it is unreadable.
    async fn delete_item(
        &self,
        kind: ItemKind,
        name: &ItemName,
        expect: &Expect<ItemTag>,
    ) -> Result<Removed, StoreError>;
}

/// A grant id from the operating system's random generator.
pub fn random_grant_id() -> Result<GrantId, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(GrantId::from_bytes(bytes))
}
