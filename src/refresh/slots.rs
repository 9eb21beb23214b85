//! The accounts' slots: creation, lookup and removal.
//!
//! Invariants:
//! 1. An account has one slot at a time: two slots would allow two flights.
//! 2. Unknown account names use no memory, however their callers end.

use std::sync::{Arc, PoisonError, RwLockReadGuard};

use hashbrown::HashMap;
use tokio::time::timeout;

use super::{
    Inner, RefreshError,
    slot::{Slot, Snapshot},
};
use crate::{account::Account, timeouts::STALLED_STORE_TIMEOUT};

/// Whether a reader may be given what was known before the store failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Staleness {
    Tolerated,
    Refused,
}

impl Inner {
    pub(super) fn slots(&self) -> RwLockReadGuard<'_, HashMap<Account, Arc<Slot>>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn slot(&self, account: &Account) -> Arc<Slot> {
        if let Some(slot) = self.slots().get(account) {
            return Arc::clone(slot);
        }
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(account.clone()).or_default())
    }

    /// Drops the slot of an account without a grant, so that unknown names use no memory. The caller's reference is
    /// dropped in here, so that the last of several concurrent callers removes the slot.
    pub(super) fn forget_if_empty(&self, account: &Account, slot: Arc<Slot>) {
        remove_if_empty(&mut self.slots.write().unwrap_or_else(PoisonError::into_inner), account, slot);
    }

    /// Returns the account's snapshot, from memory or from the store.
    pub(super) async fn lookup(
        &self,
        account: &Account,
        staleness: Staleness,
    ) -> Result<(Arc<Slot>, Arc<Snapshot>), RefreshError> {
        // Declared before the slot's reference, and so dropped after it.
        let mut forget = ForgetOnDrop { inner: self, account, slot: None };
        let slot = self.slot(account);
        forget.slot = Some(Arc::clone(&slot));
        let snapshot = self.lookup_in(account, &slot, staleness).await?;
        forget.slot = None;
        Ok((slot, snapshot))
    }

    async fn lookup_in(
        &self,
        account: &Account,
        slot: &Slot,
        staleness: Staleness,
    ) -> Result<Arc<Snapshot>, RefreshError> {
        loop {
            let (base, known) = slot.cached(self.store.epoch());
            if let Some(snapshot) = known {
                return Ok(snapshot);
            }
            let last = slot.lock().last().cloned().filter(|_| staleness == Staleness::Tolerated);
            let loading = self.store.load(account);
            let loaded = match &last {
                Some(last) if !last.expired(&*self.clock) => timeout(STALLED_STORE_TIMEOUT, loading).await,
                Some(_) | None => Ok(loading.await),
            };
            let record = match loaded {
                Ok(Ok(record)) => record,
                Ok(Err(error)) => return last.ok_or(error.into()),
                Err(_) => return last.ok_or(RefreshError::StoreStalled),
            };
            let snapshot = record.map(|record| self.snapshot_in(slot, account, &record.grant, record.refresh_state));
            if let Ok(seen) = slot.lock().fill(base, snapshot) {
                return seen.ok_or(RefreshError::NotFound);
            }
        }
    }
}

/// Removes an empty slot that nobody else references: two slots for one account would allow two flights.
fn remove_if_empty(slots: &mut HashMap<Account, Arc<Slot>>, account: &Account, slot: Arc<Slot>) {
    let empty = {
        let state = slot.lock();
        state.last().is_none() && state.flight.is_none()
    };
    drop(slot);
    if empty && slots.get(account).is_some_and(|slot| Arc::strong_count(slot) == 1) {
        slots.remove(account);
    }
}

/// Removes the slot when a caller found nothing, or has gone away: unknown names must use no memory.
struct ForgetOnDrop<'a> {
    inner: &'a Inner,
    account: &'a Account,
    slot: Option<Arc<Slot>>,
}

impl Drop for ForgetOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.inner.forget_if_empty(self.account, slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_that_one_caller_still_holds_is_not_removed() {
        let account: Account = "corp".parse().unwrap();
        let mut slots = HashMap::new();
        let held = Arc::clone(slots.entry(account.clone()).or_insert_with(Arc::<Slot>::default));
        let forget = Arc::clone(&held);
        remove_if_empty(&mut slots, &account, forget);
        assert!(slots.contains_key(&account), "the next caller makes a second slot for this account");
        remove_if_empty(&mut slots, &account, held);
        assert!(slots.is_empty());
    }
}
