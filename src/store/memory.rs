//! Records and items in the memory of this process: for tests, and for `serve --dev`.
//!
//! Owns: [`MemoryStore`].
//!
//! Invariants:
//! 1. Everything is sealed, with a key that nothing else knows: tests use the same format as on disk, and a memory dump
//!    shows no grant at rest.
//! 2. An owner lives as long as its [`MemoryStore`].
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
    account::{Account, ItemName, ProviderName},
    grant::{Grant, Version},
    item::{Item, ItemKind, ItemTag},
    secret::{FingerprintKey, StoreKey, TokenFingerprint},
    store::{
        AccountFilter, Claim, Deleted, Entry, Expect, ItemEntry, ItemStore, KnownToken, Presentation, Put, PutGrant,
        Record, RefreshState, Removed, Renamed, Revision, SPENT_TOKENS, Store, StoreError, Visitor, seal::Sealer,
    },
};

/// One owner of records in memory.
pub struct MemoryStore {
    shared: Arc<Shared>,
    owner: Owner,
    epoch: Arc<AtomicU64>,
}

/// Numbered in the order of creation, never reused.
type Owner = u64;

struct Shared {
    sealer: Sealer,
    fingerprints: FingerprintKey,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rows: BTreeMap<Account, Row>,
    /// The last spent refresh tokens of each account, in order.
    spent: Vec<(Account, TokenFingerprint)>,
    items: BTreeMap<(ItemKind, ItemName), (ItemTag, Vec<u8>)>,
    /// The live owners and their epochs.
    owners: BTreeMap<Owner, Arc<AtomicU64>>,
    last_owner: Owner,
    /// Counts the writes to all records together, so that a revision is never reused, not even after a deletion.
    writes: u64,
}

struct Row {
    sealed: Vec<u8>,
    version: Version,
    refresh_state: RefreshState,
    revision: Revision,
    lease: Option<Owner>,
    /// The fingerprint of the refresh token.
    fingerprint: Option<TokenFingerprint>,
}

impl MemoryStore {
    /// An empty store and its first owner. Fails only if the random generator does.
    pub fn new() -> Result<Self, StoreError> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *key).map_err(StoreError::unavailable)?;
        let sealer = Sealer::new(StoreKey::new(*key));
        getrandom::fill(&mut *key).map_err(StoreError::unavailable)?;
        let fingerprints = FingerprintKey::from_bytes(*key);
        Ok(Self::own(Arc::new(Shared { sealer, fingerprints, state: Mutex::default() })))
    }

    /// Another owner of the same records, like another process.
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

impl Drop for MemoryStore {
    fn drop(&mut self) {
        self.shared.lock().owners.remove(&self.owner);
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("MemoryStore").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl Shared {
    /// A panic leaves no change half made: each one consists of assignments that cannot fail.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, account: &Account, row: &Row) -> Result<Record, StoreError> {
        let grant = self.sealer.open(account, row.version, &row.sealed)?;
        Ok(Record { grant, refresh_state: row.refresh_state.clone(), revision: row.revision })
    }

    fn fingerprint(&self, grant: &Grant) -> Option<TokenFingerprint> {
        grant.refresh_token.as_ref().map(|token| token.fingerprint(&self.fingerprints))
    }
}

impl State {
    /// The revision of a write by `owner`. The other owners' epochs are advanced.
    fn write(&mut self, owner: Owner) -> Revision {
        for (_, epoch) in self.owners.iter().filter(|(other, _)| **other != owner) {
            epoch.fetch_add(1, Ordering::Release);
        }
        self.writes += 1;
        Revision(self.writes)
    }

    /// Remembers a refresh token that was presented and is being replaced.
    fn spend(&mut self, account: &Account, fingerprint: TokenFingerprint) {
        self.spent.retain(|(of, spent)| of != account || *spent != fingerprint);
        if self.spent.iter().filter(|(of, _)| of == account).count() >= SPENT_TOKENS
            && let Some(oldest) = self.spent.iter().position(|(of, _)| of == account)
        {
            self.spent.remove(oldest);
        }
        self.spent.push((account.clone(), fingerprint));
    }

    /// Remembers the refresh token of a record that is removed, if it was presented.
    fn spend_if_presented(&mut self, account: &Account) {
        let row = self.rows.get(account).filter(|row| row.refresh_state.presented.is_some());
        if let Some(fingerprint) = row.and_then(|row| row.fingerprint) {
            self.spend(account, fingerprint);
        }
    }

    /// Finds another account of the `siblings` that has or had the token, or the account itself if it had it.
    fn known(&self, account: &Account, fingerprint: TokenFingerprint, siblings: &[ProviderName]) -> Option<KnownToken> {
        let sibling = |of: &Account| of.provider == account.provider || siblings.contains(&of.provider);
        let held =
            self.rows.iter().find(|(of, row)| *of != account && row.fingerprint == Some(fingerprint) && sibling(of));
        let held = held.map(|(of, _)| KnownToken { account: of.clone(), spent: false });
        held.or_else(|| {
            let spent = self.spent.iter().find(|(of, spent)| *spent == fingerprint && sibling(of));
            spent.map(|(of, _)| KnownToken { account: of.clone(), spent: true })
        })
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn load(&self, account: &Account) -> Result<Option<Record>, StoreError> {
        self.shared.lock().rows.get(account).map(|row| self.shared.open(account, row)).transpose()
    }

    async fn names(&self) -> Result<Vec<Account>, StoreError> {
        Ok(self.shared.lock().rows.keys().cloned().collect())
    }

    async fn visit(&self, wanted: &AccountFilter<'_>, each: &mut Visitor<'_>) -> Result<(), StoreError> {
        let state = self.shared.lock();
        for (account, row) in state.rows.iter().filter(|(account, _)| wanted(account)) {
            each(Entry { account: account.clone(), record: self.shared.open(account, row) });
        }
        Ok(())
    }

    async fn claim(&self, account: &Account, expected: Revision, presented: Presentation) -> Result<Claim, StoreError> {
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
            row.refresh_state.presented = Some(presented);
            row.revision = revision;
        }
        Ok(Claim::Taken(revision))
    }

    async fn settle(
        &self,
        account: &Account,
        version: Version,
        refresh_state: &RefreshState,
    ) -> Result<bool, StoreError> {
        let state = &mut *self.shared.lock();
        let overtaken = |row: &Row| row.version != version || row.lease.is_some_and(|owner| owner != self.owner);
        if state.rows.get(account).is_none_or(overtaken) {
            return Ok(false);
        }
        let revision = state.write(self.owner);
        if let Some(row) = state.rows.get_mut(account) {
            *row = Row {
                sealed: mem::take(&mut row.sealed),
                version,
                refresh_state: refresh_state.clone(),
                revision,
                lease: None,
                fingerprint: row.fingerprint,
            };
        }
        Ok(true)
    }

    async fn save(
        &self,
        account: &Account,
        version: Version,
        next: &Grant,
        refresh_state: &RefreshState,
    ) -> Result<bool, StoreError> {
        let sealed = self.shared.sealer.seal(account, next)?;
        let fingerprint = self.shared.fingerprint(next);
        let state = &mut *self.shared.lock();
        let Some(before) = state.rows.get(account).filter(|row| row.version == version) else { return Ok(false) };
        if let Some(spent) = before.fingerprint.filter(|before| Some(*before) != fingerprint) {
            state.spend(account, spent);
        }
        let row = Row {
            sealed,
            version: next.version,
            refresh_state: refresh_state.clone(),
            revision: state.write(self.owner),
            lease: None,
            fingerprint,
        };
        state.rows.insert(account.clone(), row);
        Ok(true)
    }

    async fn put(
        &self,
        account: &Account,
        grant: &Grant,
        expect: &Expect,
        siblings: &[ProviderName],
    ) -> Result<PutGrant, StoreError> {
        let sealed = self.shared.sealer.seal(account, grant)?;
        let fingerprint = self.shared.fingerprint(grant);
        let state = &mut *self.shared.lock();
        let found = state.rows.get(account);
        let (met, put) = match found {
            Some(row) => (expect.allows(Some(row.version)), Put::Replaced),
            None => (expect.allows_none(), Put::Created),
        };
        if !met {
            return Ok(Put::Conflict.into());
        }
        match (fingerprint, found) {
            (Some(fingerprint), Some(row)) if row.fingerprint == Some(fingerprint) => {
                if row.refresh_state.dead.is_none() {
                    let version = row.version;
                    let sealed = self.shared.sealer.seal_as(account, version, grant)?;
                    let revision = state.write(self.owner);
                    if let Some(row) = state.rows.get_mut(account) {
                        (row.sealed, row.revision) = (sealed, revision);
                    }
                    return Ok(PutGrant::Held(version));
                }
            }
            (Some(fingerprint), _) => {
                if let Some(known) = state.known(account, fingerprint, siblings) {
                    return Ok(PutGrant::Known(known));
                }
                state.spend_if_presented(account);
            }
            (None, _) => state.spend_if_presented(account),
        }
        let revision = state.write(self.owner);
        let row = Row {
            sealed,
            version: grant.version,
            refresh_state: RefreshState::default(),
            revision,
            lease: None,
            fingerprint,
        };
        state.rows.insert(account.clone(), row);
        Ok(put.into())
    }

    async fn rename(&self, from: &Account, to: &Account) -> Result<Renamed, StoreError> {
        let state = &mut *self.shared.lock();
        let Some(row) = state.rows.get(from) else { return Ok(Renamed::Missing) };
        if state.rows.contains_key(to) {
            return Ok(Renamed::Occupied);
        }
        if row.lease.is_some_and(|owner| owner != self.owner && state.owners.contains_key(&owner)) {
            return Ok(Renamed::LeaseHeld);
        }
        let Record { grant, refresh_state, .. } = self.shared.open(from, row)?;
        let sealed = self.shared.sealer.seal(to, &grant)?;
        let (version, fingerprint) = (row.version, row.fingerprint);
        let row = Row { sealed, version, refresh_state, revision: state.write(self.owner), lease: None, fingerprint };
        state.rows.remove(from);
        state.rows.insert(to.clone(), row);
        state.spent.iter_mut().filter(|(of, _)| of == from).for_each(|(of, _)| *of = to.clone());
        Ok(Renamed::Done)
    }

    async fn delete(&self, account: &Account, expect: &Expect) -> Result<Deleted, StoreError> {
        let state = &mut *self.shared.lock();
        let Some(row) = state.rows.get(account) else { return Ok(Deleted::Missing) };
        if !expect.allows(Some(row.version)) {
            return Ok(Deleted::Conflict);
        }
        let grant = self.shared.open(account, row).ok().map(|record| Box::new(record.grant));
        state.spend_if_presented(account);
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
impl ItemStore for MemoryStore {
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
