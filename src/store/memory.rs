//! Records and items in the memory of this process: for tests, and for `serve --dev`.
//!
//! Owns: [`Memory`].
//!
//! Invariants:
//! 1. What is kept is sealed, with a key that nothing else knows: tests meet the same format as on disk, and a dump of
//!    memory shows no grant at rest.
//! 2. An owner lives as long as its [`Memory`].
//!
//! Must not know: files.

use std::{
    collections::BTreeMap,
    fmt, mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use zeroize::Zeroizing;

use crate::{
    account::{Account, ItemName},
    grant::{Grant, Version},
    item::{Item, ItemKind, ItemTag},
    secret::StoreKey,
    store::{
        Claim, Deleted, Entry, Expect, ItemEntry, Marks, Presented, Put, Record, Removed, Revision, Shelf, Store,
        StoreError, Visitor, Wanted, seal::Sealer,
    },
};

/// One owner of records that live in memory.
pub struct Memory {
    shared: Arc<Shared>,
    owner: Owner,
    epoch: Arc<AtomicU64>,
}

/// Numbered in the order of their making, never twice.
type Owner = u64;

struct Shared {
    sealer: Sealer,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rows: BTreeMap<Account, Row>,
    items: BTreeMap<(ItemKind, ItemName), (ItemTag, Vec<u8>)>,
    /// The living owners and their epochs.
    owners: BTreeMap<Owner, Arc<AtomicU64>>,
    last_owner: Owner,
    /// Counts the writes to all records together, so that a revision never comes back, not even after a deletion.
    writes: u64,
}

struct Row {
    sealed: Vec<u8>,
    version: Version,
    marks: Marks,
    revision: Revision,
    lease: Option<Owner>,
}

impl Memory {
    /// An empty store, and its first owner. The error is a generator of random numbers that fails.
    pub fn new() -> Result<Self, StoreError> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *key).map_err(StoreError::unavailable)?;
        let sealer = Sealer::new(StoreKey::new(*key));
        Ok(Self::own(Arc::new(Shared { sealer, state: Mutex::default() })))
    }

    /// Another owner of the same records, as another process would be.
    #[must_use]
    pub fn second_owner(&self) -> Self {
        Self::own(Arc::clone(&self.shared))
    }

    fn own(shared: Arc<Shared>) -> Self {
        let epoch = Arc::new(AtomicU64::new(0));
        let mut state = shared.lock();
        state.last_owner += 1;
        let owner = state.last_owner;
        state.owners.insert(owner, Arc::clone(&epoch));
        drop(state);
        Self { shared, owner, epoch }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.shared.lock().owners.remove(&self.owner);
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Memory").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl Shared {
    /// No change is left half-made by a panic: each is made of assignments that cannot fail.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, account: &Account, row: &Row) -> Result<Record, StoreError> {
        let grant = self.sealer.open(account, row.version, &row.sealed)?;
        Ok(Record { grant, marks: row.marks.clone(), revision: row.revision })
    }
}

impl State {
    /// The revision of a write by `owner`, of which the others are told.
    fn write(&mut self, owner: Owner) -> Revision {
        for (_, epoch) in self.owners.iter().filter(|(other, _)| **other != owner) {
            epoch.fetch_add(1, Ordering::Release);
        }
        self.writes += 1;
        Revision(self.writes)
    }
}

#[async_trait]
impl Store for Memory {
    async fn load(&self, account: &Account) -> Result<Option<Record>, StoreError> {
        self.shared.lock().rows.get(account).map(|row| self.shared.open(account, row)).transpose()
    }

    async fn names(&self) -> Result<Vec<Account>, StoreError> {
        Ok(self.shared.lock().rows.keys().cloned().collect())
    }

    async fn visit(&self, wanted: &Wanted<'_>, each: &mut Visitor<'_>) -> Result<(), StoreError> {
        let state = self.shared.lock();
        for (account, row) in state.rows.iter().filter(|(account, _)| wanted(account)) {
            each(Entry { account: account.clone(), record: self.shared.open(account, row) });
        }
        Ok(())
    }

    async fn claim(&self, account: &Account, expected: Revision, presented: Presented) -> Result<Claim, StoreError> {
        let state = &mut *self.shared.lock();
        let Some(row) = state.rows.get(account).filter(|row| row.revision == expected) else {
            return Ok(Claim::Changed);
        };
        if row.lease.is_some_and(|owner| owner != self.owner && state.owners.contains_key(&owner)) {
            return Ok(Claim::Held);
        }
        let revision = state.write(self.owner);
        if let Some(row) = state.rows.get_mut(account) {
            row.lease = Some(self.owner);
            row.marks.presented = Some(presented);
            row.revision = revision;
        }
        Ok(Claim::Taken(revision))
    }

    async fn settle(&self, account: &Account, version: Version, marks: &Marks) -> Result<bool, StoreError> {
        let state = &mut *self.shared.lock();
        let overtaken = |row: &Row| row.version != version || row.lease.is_some_and(|owner| owner != self.owner);
        if state.rows.get(account).is_none_or(overtaken) {
            return Ok(false);
        }
        let revision = state.write(self.owner);
        if let Some(row) = state.rows.get_mut(account) {
            *row = Row { sealed: mem::take(&mut row.sealed), version, marks: marks.clone(), revision, lease: None };
        }
        Ok(true)
    }

    async fn save(&self, account: &Account, version: Version, next: &Grant, marks: &Marks) -> Result<bool, StoreError> {
        let sealed = self.shared.sealer.seal(account, next)?;
        let state = &mut *self.shared.lock();
        if state.rows.get(account).is_none_or(|row| row.version != version) {
            return Ok(false);
        }
        let row =
            Row { sealed, version: next.version, marks: marks.clone(), revision: state.write(self.owner), lease: None };
        state.rows.insert(account.clone(), row);
        Ok(true)
    }

    async fn put(&self, account: &Account, grant: &Grant, expect: &Expect) -> Result<Put, StoreError> {
        let sealed = self.shared.sealer.seal(account, grant)?;
        let state = &mut *self.shared.lock();
        let (met, put) = match state.rows.get(account) {
            Some(row) => (expect.allows(Some(row.version)), Put::Replaced),
            None => (expect.allows_none(), Put::Created),
        };
        if !met {
            return Ok(Put::Conflict);
        }
        let revision = state.write(self.owner);
        let row = Row { sealed, version: grant.version, marks: Marks::default(), revision, lease: None };
        state.rows.insert(account.clone(), row);
        Ok(put)
    }

    async fn delete(&self, account: &Account, expect: &Expect) -> Result<Deleted, StoreError> {
        let state = &mut *self.shared.lock();
        let Some(row) = state.rows.get(account) else { return Ok(Deleted::Missing) };
        if !expect.allows(Some(row.version)) {
            return Ok(Deleted::Conflict);
        }
        let grant = self.shared.open(account, row).ok().map(|record| Box::new(record.grant));
        state.write(self.owner);
        state.rows.remove(account);
        Ok(Deleted::Gone(grant))
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }
}

#[async_trait]
impl Shelf for Memory {
    async fn item(&self, kind: ItemKind, name: &ItemName) -> Result<Option<Item>, StoreError> {
        let found = self.shared.lock().items.get(&(kind, name.clone())).cloned();
        found.map(|(tag, sealed)| self.shared.sealer.open_item(kind, name, tag, &sealed)).transpose()
    }

    async fn items(&self, kind: ItemKind) -> Result<Vec<ItemEntry>, StoreError> {
        let state = self.shared.lock();
        let of_kind = state.items.iter().filter(|((of, _), _)| *of == kind);
        let entry = |((_, name), (tag, sealed)): (&(ItemKind, ItemName), &(ItemTag, Vec<u8>))| ItemEntry {
            name: name.clone(),
            item: self.shared.sealer.open_item(kind, name, *tag, sealed),
        };
        Ok(of_kind.map(entry).collect())
    }

    async fn put_item(
        &self,
        kind: ItemKind,
        name: &ItemName,
        item: &Item,
        expect: &Expect<ItemTag>,
    ) -> Result<Put, StoreError> {
        let sealed = self.shared.sealer.seal_item(kind, name, item)?;
        let state = &mut *self.shared.lock();
        let at = (kind, name.clone());
        let (met, put) = match state.items.get(&at) {
            Some((tag, _)) => (expect.allows(Some(*tag)), Put::Replaced),
            None => (expect.allows_none(), Put::Created),
        };
        if !met {
            return Ok(Put::Conflict);
        }
        state.write(self.owner);
        state.items.insert(at, (item.tag, sealed));
        Ok(put)
    }

    async fn delete_item(
        &self,
        kind: ItemKind,
        name: &ItemName,
        expect: &Expect<ItemTag>,
    ) -> Result<Removed, StoreError> {
        let state = &mut *self.shared.lock();
        let at = (kind, name.clone());
        let Some((tag, _)) = state.items.get(&at) else { return Ok(Removed::Missing) };
        if !expect.allows(Some(*tag)) {
            return Ok(Removed::Conflict);
        }
        state.write(self.owner);
        state.items.remove(&at);
        Ok(Removed::Gone)
    }
}
