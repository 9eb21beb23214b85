//! The state of one account in the coordinator: what is cached, and the flight under way.
//!
//! Owns: [`Snapshot`], its cache, and the handle through which callers join a flight.
//!
//! Invariants:
//! 1. A snapshot holds no refresh token.
//! 2. What was read before a write of ours is never cached after it: a fill or publication that another write overtook
//!    leaves the cache empty, and the next reader asks the store.
//! 3. A snapshot of an earlier epoch is not current: another owner may have changed the record.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::{
    RefreshError,
    condition::{self, EntityTag},
    cooldown::OwnAttemptEnd,
};
use crate::{
    account::Account,
    clock::{Clock, Monotonic},
    grant::{Grant, SanitizedToken, Version},
    store::{Presentation, RefreshState},
};

/// What is cached of an account outside the store.
#[derive(Debug)]
pub struct Snapshot {
    /// The token in the form that may leave the daemon.
    pub token: SanitizedToken,
    /// Its entity tag.
    pub tag: EntityTag,
    /// The record's refresh state.
    pub refresh_state: RefreshState,
    /// When the access token expires on the monotonic clock, if this process received it. The wall clock may have been
    /// set since.
    pub(super) ends: Option<Monotonic>,
}

impl Snapshot {
    pub(super) fn of(account: &Account, grant: &Grant, refresh_state: RefreshState, expose: &[String]) -> Self {
        Self {
            token: SanitizedToken::of(grant, expose),
            tag: condition::tag(account, grant.version),
            refresh_state,
            ends: None,
        }
    }

    /// The remaining lifetime by the clock that says less; `None` if unknown.
    pub(super) fn left(&self, clock: &dyn Clock) -> Option<Duration> {
        let by_wall_clock = self.token.left(clock.now())?;
        let by_monotonic = self.ends.map(|ends| ends.since(clock.monotonic()));
        Some(by_monotonic.map_or(by_wall_clock, |left| left.min(by_wall_clock)))
    }

    /// Whether the token is known to be expired or rejected.
    #[must_use]
    pub fn expired(&self, clock: &dyn Clock) -> bool {
        self.left(clock).is_some_and(|left| left.is_zero())
    }

    /// The same grant with another refresh state.
    fn with_state(&self, refresh_state: RefreshState) -> Self {
        Self { token: self.token.clone(), tag: self.tag.clone(), refresh_state, ends: self.ends }
    }
}

pub(super) type FlightResult = Result<Arc<Snapshot>, RefreshError>;

/// What a flight is waiting for, or its result.
#[derive(Debug)]
enum Progress {
    /// The provider's permit, or the store.
    Store,
    /// The provider.
    Provider,
    Finished(FlightResult),
}

/// A flight, as its callers see it.
#[derive(Debug)]
pub(super) struct FlightHandle {
    /// A caller asked for a new token, not just for one that is valid for a while.
    forced: AtomicBool,
    /// The provider was called.
    provider_called: AtomicBool,
    progress: watch::Sender<Progress>,
}

impl FlightHandle {
    pub(super) fn new(forced: bool) -> Self {
        let provider_called = AtomicBool::new(false);
        Self { forced: AtomicBool::new(forced), provider_called, progress: watch::Sender::new(Progress::Store) }
    }

    pub(super) fn forced(&self) -> bool {
        self.forced.load(Ordering::Relaxed)
    }

    pub(super) fn join(&self, forced: bool) {
        self.forced.fetch_or(forced, Ordering::Relaxed);
    }

    pub(super) fn provider_called(&self) -> bool {
        self.provider_called.load(Ordering::Relaxed)
    }

    /// The provider is being called.
    pub(super) fn note_call(&self) {
        self.provider_called.store(true, Ordering::Relaxed);
        self.progress.send_replace(Progress::Provider);
    }

    /// The provider has answered, and the store is being written.
    pub(super) fn note_answer(&self) {
        self.progress.send_replace(Progress::Store);
    }

    pub(super) fn finish(&self, result: FlightResult) {
        self.progress.send_replace(Progress::Finished(result));
    }

    /// Waits for the flight's end; while it waits for the store, for `store_timeout` at most.
    pub(super) async fn wait(&self, store_timeout: Option<Duration>) -> FlightResult {
        let mut progress = self.progress.subscribe();
        loop {
            let at_store = match &*progress.borrow_and_update() {
                Progress::Finished(result) => return result.clone(),
                Progress::Store => true,
                Progress::Provider => false,
            };
            let changed = match store_timeout.filter(|_| at_store) {
                Some(store_timeout) => {
                    timeout(store_timeout, progress.changed()).await.map_err(|_| RefreshError::StoreStalled)?
                }
                None => progress.changed().await,
            };
            changed.map_err(|_| RefreshError::Internal)?;
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Slot {
    state: Mutex<State>,
    /// Held while a put or delete changes the grant and detaches the flight of the old one, and by a flight from
    /// reading the record to claiming it. So a flight either claims before a put, and presents nothing of the new
    /// grant, or finds that it is no longer the slot's. The store's lease does not help here: both belong to this
    /// process.
    pub(super) grant_lock: tokio::sync::Mutex<()>,
    /// Notified of every change that a reader would see.
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
pub(super) struct State {
    cached: Option<(u64, Arc<Snapshot>)>,
    writes: u64,
    pub(super) flight: Option<Arc<FlightHandle>>,
    /// When this process's own last attempt ended.
    pub(super) ended: Option<OwnAttemptEnd>,
    /// A presentation that the store may have committed although it reported an error, and the one before it: no call
    /// followed.
    pub(super) unsent: Option<(Presentation, Option<Presentation>)>,
    /// The record that the store would hold if it had accepted our last write.
    pub(super) unsaved: Option<Arc<Snapshot>>,
}

impl Slot {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock is held cannot leave a change half made.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn flight(&self) -> Option<Arc<FlightHandle>> {
        self.lock().flight.clone()
    }

    /// Whether callers still join the flight of `handle`.
    pub(super) fn is_current_flight(&self, handle: &Arc<FlightHandle>) -> bool {
        self.lock().is_current_flight(handle)
    }

    /// Starts a read or write, whose result is passed to [`State::fill`], [`State::publish`] or [`State::replace`].
    /// `epoch` is the store's from before.
    pub(super) fn base(&self, epoch: u64) -> Base {
        self.cached(epoch).0
    }

    /// What is known without asking the store, and the base for asking it.
    pub(super) fn cached(&self, epoch: u64) -> (Base, Option<Arc<Snapshot>>) {
        let state = self.lock();
        (Base { writes: state.writes, epoch }, state.current(epoch).cloned())
    }
}

/// The state that a read or write is based on: any change in between makes its result stale.
#[derive(Debug, Clone, Copy)]
pub(super) struct Base {
    writes: u64,
    epoch: u64,
}

/// A write came in between.
#[derive(Debug)]
pub(super) struct Overtaken;

impl State {
    pub(super) fn is_current_flight(&self, handle: &Arc<FlightHandle>) -> bool {
        self.flight.as_ref().is_some_and(|current| Arc::ptr_eq(current, handle))
    }

    fn current(&self, epoch: u64) -> Option<&Arc<Snapshot>> {
        self.unsaved
            .as_ref()
            .or_else(|| self.cached.as_ref().filter(|(of, _)| *of == epoch).map(|(_, snapshot)| snapshot))
    }

    /// The last known snapshot, current or not.
    pub(super) fn last(&self) -> Option<&Arc<Snapshot>> {
        self.unsaved.as_ref().or(self.cached.as_ref().map(|(_, snapshot)| snapshot))
    }

    /// Returns the cached snapshot of this version if there is one: making a new one takes longer than finding the
    /// record.
    pub(super) fn with_state(&self, version: Version, refresh_state: &RefreshState) -> Option<Arc<Snapshot>> {
        let (_, cached) = self.cached.as_ref().filter(|(_, cached)| cached.token.version == version)?;
        Some(Arc::new(cached.with_state(refresh_state.clone())))
    }

    /// Caches what was read, and returns what a reader now sees: that, or an unsaved success. Fails if a write overtook
    /// the read (invariant 2), which must then be repeated: it may be ahead of a write that is not published yet, and a
    /// later reader would see an older state.
    pub(super) fn fill(
        &mut self,
        base: Base,
        snapshot: Option<Arc<Snapshot>>,
    ) -> Result<Option<Arc<Snapshot>>, Overtaken> {
        if self.writes != base.writes {
            return Err(Overtaken);
        }
        self.cached = snapshot.map(|snapshot| (base.epoch, snapshot));
        Ok(self.last().cloned())
    }

    /// Caches what a flight wrote, unless another write overtook it (invariant 2). An unsaved success of another grant
    /// stays: this may be the result of a flight that a put has detached.
    pub(super) fn publish(&mut self, base: Base, snapshot: Arc<Snapshot>) {
        self.unsaved.take_if(|unsaved| unsaved.token.version.id == snapshot.token.version.id);
        self.written(base, Some(snapshot));
    }

    /// Caches the result of a put or delete, and discards the rest of the old grant's state. Its flight continues, but
    /// cannot be joined any more, and its result will be dropped. The caller holds [`Slot::grant_lock`], so there is
    /// nothing of a newer grant here yet.
    pub(super) fn replace(&mut self, base: Base, snapshot: Option<Arc<Snapshot>>) {
        self.unsaved = None;
        self.unsent = None;
        self.ended = None;
        self.flight = None;
        self.written(base, snapshot);
    }

    /// Another grant was stored with the same version: the next reader asks the store.
    pub(super) fn invalidate(&mut self, base: Base) {
        self.written(base, None);
    }

    fn written(&mut self, base: Base, snapshot: Option<Arc<Snapshot>>) {
        if self.fill(base, snapshot).is_err() {
            self.cached = None;
        }
        self.writes += 1;
    }

    /// Keeps what the flight of `handle` could not save, unless a put or delete came in between.
    pub(super) fn keep_unsaved(&mut self, handle: &Arc<FlightHandle>, snapshot: Arc<Snapshot>) {
        if self.is_current_flight(handle) {
            self.unsaved = Some(snapshot);
        }
    }

    /// Discards the unsaved success once the store has something else.
    pub(super) fn discard_unsaved(&mut self, kept: &Arc<Snapshot>) {
        self.unsaved.take_if(|unsaved| Arc::ptr_eq(unsaved, kept));
        self.cached = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Timestamp,
        grant::{Extra, GrantId, Issued, Lifetime},
        secret::AccessToken,
    };

    fn snapshot(id: u8) -> Arc<Snapshot> {
        let issued = Issued {
            access_token: AccessToken::new("canary-at".into()).unwrap(),
            token_type: None,
            lifetime: Lifetime::Unknown,
            scope: None,
            refresh_token: None,
            extra: Extra::default(),
        };
        let grant = Grant::new(GrantId::from_bytes([id; 16]), issued, Timestamp::from_secs(0));
        Arc::new(Snapshot::of(&"corp".parse().unwrap(), &grant, RefreshState::default(), &[]))
    }

    #[test]
    fn what_was_read_before_a_write_is_not_remembered_after_it() {
        let mut state = State::default();
        let before = Base { writes: state.writes, epoch: 0 };
        state.publish(before, snapshot(2));
        assert!(state.fill(before, Some(snapshot(1))).is_err());
        assert!(Arc::ptr_eq(state.current(0).unwrap(), &state.cached.as_ref().unwrap().1));
    }

    #[test]
    fn of_two_writes_at_once_neither_is_remembered() {
        let mut state = State::default();
        let before = Base { writes: state.writes, epoch: 0 };
        state.publish(before, snapshot(1));
        state.publish(before, snapshot(2));
        assert!(state.current(0).is_none());
    }

    #[test]
    fn what_is_kept_for_a_new_grant_outlives_the_last_word_of_a_flight_of_the_old_one() {
        let (mut state, new) = (State::default(), Arc::new(FlightHandle::new(true)));
        let old_base = Base { writes: state.writes, epoch: 0 };
        state.replace(old_base, Some(snapshot(2)));
        state.flight = Some(Arc::clone(&new));
        state.publish(old_base, snapshot(1));
        state.keep_unsaved(&new, snapshot(2));
        state.publish(old_base, snapshot(1));
        assert_eq!(state.current(0).unwrap().token.version, snapshot(2).token.version);
        state.replace(old_base, None);
        state.keep_unsaved(&new, snapshot(2));
        assert!(state.last().is_none(), "a delete has detached the flight");
    }

    #[test]
    fn a_snapshot_of_an_earlier_epoch_is_not_current() {
        let mut state = State::default();
        assert!(state.fill(Base { writes: 0, epoch: 7 }, Some(snapshot(1))).is_ok());
        assert!(state.current(7).is_some() && state.current(8).is_none() && state.last().is_some());
    }
}
