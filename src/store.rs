//! Stores: where grants live, and the lease that makes this daemon's flight the only one.
//!
//! Owns: the trait [`Store`], the [`Record`] it keeps, its [`RefreshState`], and its errors; and the trait [`ItemStore`], for what
//! is kept beside the grants.
//!
//! Invariants:
//! 1. A call that returned `Ok` is durable: it survives the loss of the process, and on disk the loss of power.
//! 2. Every change is one commit, and a compare-and-set: on the [`Revision`] before a flight sends, on the [`Version`]
//!    after. A caller that was overtaken changes nothing.
//! 3. At most one living owner holds an account's lease. No clock decides whether an owner is alive.
//! 4. One unreadable record or item does not hide the others, and is never written over but by a put and a delete.
//!
//! Must not know: what a refresh is, HTTP. Its children are the only home of SQL and of encryption.

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

/// By which a person knows a store key again. It may be shown; six bytes are as many as a person compares, and more
/// than enough to tell the keys of one person apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyId(pub(crate) [u8; 6]);

impl fmt::Display for KeyId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// Counts every write to one account's record, marks and lease included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revision(pub u64);

/// "The refresh token was presented": written durably before it is sent, gone when the outcome is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Presentation {
    /// When the last presentation began.
    pub at: Timestamp,
    /// For the how manyth time this generation's refresh token is presented; the first is 1.
    pub count: u32,
}

/// How an attempt to refresh ended. `refresh/outcome.rs` sorts into these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// New tokens came.
    Success,
    /// The provider called the grant dead.
    Final,
    /// The provider does not accept this client as it is configured.
    Configuration,
    /// The refresh token was not spent, and another try may help.
    NotSpent,
    /// The provider said no without saying why.
    Refused,
    /// The refresh token was sent, and nobody knows whether it was spent.
    Ambiguous,
}

/// The last attempt on this grant: what the cooldown and the backoffs are reckoned from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it ended.
    pub ended_at: Timestamp,
    /// How.
    pub outcome: Outcome,
    /// The provider's error code, if it may be shown.
    pub code: Option<String>,
    /// How many attempts in a row ended like this one.
    #[serde(rename = "streak")]
    pub consecutive: u32,
    /// No further attempt before this point.
    pub not_before: Timestamp,
}

/// The grant is dead: no further call until it is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadGrant {
    /// Since when.
    pub at: Timestamp,
    /// An answer to an earlier presentation was lost, and with it, it may be, the successor.
    pub answer_lost: bool,
    /// The store may be a copy ([`RefreshState::copied_at`]), and the refresh token have been presented from another one.
    #[serde(default)]
    pub copied: bool,
}

/// What is written beside a grant, in clear. A change of it changes neither the grant's id nor its generation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RefreshState {
    /// A presentation whose outcome is not known.
    pub presented: Option<Presentation>,
    /// The last attempt.
    pub attempt: Option<Attempt>,
    /// Set once the grant is known to be dead.
    pub dead: Option<DeadGrant>,
    /// The store was found in another place than it was left in: it may be a copy, and the refresh token may have been
    /// presented from the original, or the other way round.
    pub copied_at: Option<Timestamp>,
}

/// One account's grant, with what is written beside it.
#[derive(Debug)]
pub struct Record {
    /// The grant.
    pub grant: Grant,
    /// Its marks.
    pub refresh_state: RefreshState,
    /// Which write this is.
    pub revision: Revision,
}

/// The answer to [`Store::claim`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The lease is this owner's and the mark is durable; the record is now at this revision.
    Taken(Revision),
    /// Another living owner holds the lease.
    Held,
    /// The record is not at the revision asked for: read it again.
    Changed,
}

/// What must be there for a `put` or `delete` to be carried out. Items have an [`ItemTag`] for a version.
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
    /// Whether a record that is there will do; its version is `None` when damage made it unreadable.
    pub(crate) fn allows(&self, found: Option<V>) -> bool {
        match self {
            Self::Whatever | Self::Present => true,
            Self::Absent => false,
            Self::OneOf(versions) => found.is_some_and(|version| versions.contains(&version)),
        }
    }

    /// Whether it will do that there is none.
    pub(crate) fn allows_none(&self) -> bool {
        matches!(self, Self::Whatever | Self::Absent)
    }
}

/// The answer to [`ItemStore::put_item`], and the part of that to [`Store::put`] that is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// There was no record.
    Created,
    /// There was one, and it is gone.
    Replaced,
    /// The expectation was not met; nothing changed.
    Conflict,
}

/// The answer to [`Store::put`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutGrant {
    /// As asked for, or not because of the expectation.
    Done(Put),
    /// The account holds this refresh token already. It has the rest of the grant now; version, marks and lease are kept.
    Held(Version),
    /// The refresh token was spent, or another account holds it. Nothing changed.
    Known(KnownToken),
}

impl From<Put> for PutGrant {
    fn from(put: Put) -> Self {
        Self::Done(put)
    }
}

/// How many spent refresh tokens of an account are remembered at least.
pub(crate) const SPENT_TOKENS: usize = 64;

/// A refresh token that the store knows already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownToken {
    /// Whose it is or was.
    pub account: Account,
    /// Whether it has been presented and replaced; else the account holds it.
    pub spent: bool,
}

/// The answer to [`Store::rename`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renamed {
    /// The record has the other name, and nothing else of it is changed.
    Done,
    /// There is no such record.
    Missing,
    /// There is a record of the other name already.
    Occupied,
    /// Another living owner holds the lease.
    LeaseHeld,
}

/// The answer to [`Store::delete`].
#[derive(Debug)]
pub enum Deleted {
    /// The record is gone. It held this grant, unless it was unreadable.
    Gone(Option<Box<Grant>>),
    /// There was none, whatever was expected.
    Missing,
    /// The expectation was not met; nothing changed.
    Conflict,
}

/// What [`Store::visit`] finds.
#[derive(Debug)]
pub struct Entry {
    /// Whose.
    pub account: Account,
    /// The record, or why it cannot be read.
    pub record: Result<Record, StoreError>,
}

/// The answer to [`ItemStore::delete_item`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// The item is gone.
    Gone,
    /// There was none, whatever was expected.
    Missing,
    /// The expectation was not met; nothing changed.
    Conflict,
}

/// One line of [`ItemStore::items`].
#[derive(Debug)]
pub struct ItemEntry {
    /// What it is called.
    pub name: ItemName,
    /// The item, or why it cannot be read.
    pub item: Result<Item, StoreError>,
}

/// What goes wrong with a store. No variant holds a secret.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be read or written now; it may heal.
    #[error("the store is not available")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// This one record does not open: damaged, or moved here from elsewhere.
    #[error(
        "the record of {account} cannot be read: it is damaged, or was sealed with another key; delete it and log in again"
    )]
    Unreadable {
        /// Whose record.
        account: Account,
    },
    /// This one record was written by a later version of the program.
    #[error(
        "the record of {account} has format {format}, which this version does not know; use the version that wrote it"
    )]
    NewerRecord {
        /// Whose record.
        account: Account,
        /// The format found.
        format: u32,
    },
    /// This one item does not open: damaged, or moved here from elsewhere.
    #[error(
        "the {kind} {name} cannot be read: it is damaged, or was sealed with another key; remove it and make it again"
    )]
    UnreadableItem {
        /// What it is.
        kind: ItemKind,
        /// What it is called.
        name: ItemName,
    },
    /// This one item was written by a later version of the program.
    #[error("the {kind} {name} has format {format}, which this version does not know; use the version that wrote it")]
    NewerItem {
        /// What it is.
        kind: ItemKind,
        /// What it is called.
        name: ItemName,
        /// The format found.
        format: u32,
    },
    /// The store was written by a later version of the program.
    #[error("{place} has format {format}, which this version does not know; use the version that wrote it")]
    NewerStore {
        /// Where the store is.
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
        /// Where the store is.
        place: String,
    },
    /// Somebody has the store open, and what was asked for needs it alone.
    #[error("{place} is in use: stop the daemon that uses it first")]
    InUse {
        /// Where the store is.
        place: String,
    },
    /// The key, its file or the store's directory is not fit for use.
    #[error("{place}: {reason}")]
    Unfit {
        /// The file or directory.
        place: String,
        /// What is wrong and what to do.
        reason: String,
    },
}

impl StoreError {
    /// Whether another try may help, as against a record or store that stays as it is.
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
/// Whose records are asked for.
pub type AccountFilter<'a> = dyn Fn(&Account) -> bool + Sync + 'a;

/// What is done with each.
pub type Visitor<'a> = dyn FnMut(Entry) + Send + 'a;

/// A keeper of records. One value is one owner of leases.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync {
    /// Reads one account's record.
    async fn load(&self, account: &Account) -> Result<Option<Record>, StoreError>;

    /// Whose records there are, in order. Opens none of them.
    async fn names(&self) -> Result<Vec<Account>, StoreError>;

    /// Reads the records of the accounts that are `wanted`, in order, and hands over one after the other: together they
    /// may be more than the memory that is there for them.
    async fn visit(&self, wanted: &AccountFilter<'_>, each: &mut Visitor<'_>) -> Result<(), StoreError>;

    /// Reads all records, in the order of their accounts.
    async fn list(&self) -> Result<Vec<Entry>, StoreError> {
        let mut all = Vec::new();
        self.visit(&|_| true, &mut |entry| all.push(entry)).await?;
        Ok(all)
    }

    /// Takes the lease and marks the presentation, in one commit, if the record is still at `expected`. An owner that
    /// holds the lease may claim again, to mark the next presentation.
    async fn claim(&self, account: &Account, expected: Revision, presented: Presentation) -> Result<Claim, StoreError>;

    /// Writes the marks and releases the lease, in one commit, if the grant is still at `version`. `false` when not, or
    /// when another owner has taken the lease: its mark must stand.
    async fn settle(
        &self,
        account: &Account,
        version: Version,
        refresh_state: &RefreshState,
    ) -> Result<bool, StoreError>;

    /// Replaces the grant at `version` by its next generation, writes the marks and releases the lease, whoever has it,
    /// in one commit: `next` holds the only living successor. `false` when the grant is not at `version` any more.
    async fn save(
        &self,
        account: &Account,
        version: Version,
        next: &Grant,
        refresh_state: &RefreshState,
    ) -> Result<bool, StoreError>;

    /// Stores a whole grant: no marks, no lease. A refresh token is in the store once: one that an account of the
    /// providers `siblings` (those with the same token endpoint) holds or has spent is not stored again. One that the
    /// account itself holds keeps its marks, lest it be presented again, unless it is latched: a dead grant has nothing
    /// to lose, and whoever brings it again wants another try.
    async fn put(
        &self,
        account: &Account,
        grant: &Grant,
        expect: &Expect,
        siblings: &[ProviderName],
    ) -> Result<PutGrant, StoreError>;

    /// Gives a record another name. Version and marks stay, and so does what is known of its refresh tokens.
    async fn rename(&self, from: &Account, to: &Account) -> Result<Renamed, StoreError>;

    /// Deletes the record, an unreadable one too.
    async fn delete(&self, account: &Account, expect: &Expect) -> Result<Deleted, StoreError>;

    /// Whether a write would be durable now. Makes one, which changes nothing that a caller sees.
    async fn probe(&self) -> Result<(), StoreError>;

    /// Grows whenever another owner may have changed anything; what was read before is then to be read again.
    fn epoch(&self) -> u64;
}

/// A store that keeps other things beside the grants, each sealed for itself: its kind, name and tag.
#[async_trait]
pub trait ItemStore: Store {
    /// Reads one item.
    async fn item(&self, kind: ItemKind, name: &ItemName) -> Result<Option<Item>, StoreError>;

    /// Reads all items of a kind, in the order of their names.
    async fn items(&self, kind: ItemKind) -> Result<Vec<ItemEntry>, StoreError>;

    /// Stores a whole item, in the place of the one of that name.
    async fn put_item(
        &self,
        kind: ItemKind,
        name: &ItemName,
        item: &Item,
        expect: &Expect<ItemTag>,
    ) -> Result<Put, StoreError>;

    /// Deletes an item, an unreadable one too.
    async fn delete_item(
        &self,
        kind: ItemKind,
        name: &ItemName,
        expect: &Expect<ItemTag>,
    ) -> Result<Removed, StoreError>;
}

/// A grant id from the operating system's generator.
pub fn random_grant_id() -> Result<GrantId, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(GrantId::from_bytes(bytes))
}
