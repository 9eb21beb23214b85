//! One account's place in the coordinator: what is remembered, and the flight under way.
//!
//! Owns: [`Snapshot`], the cache of it, and the handle through which callers join a flight.
//!
//! Invariants:
//! 1. A snapshot holds no refresh token.
//! 2. What was read before a write of ours is never remembered after it: a fill or publication that another write
//!    overtook leaves the cache empty, and the next reader asks the store.
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

/// What may be known of an account outside the store.
#[derive(Debug)]
pub struct Snapshot {
    /// The token as it may leave.
    pub token: SanitizedToken,
    /// Its entity tag.
    pub tag: EntityTag,
    /// The record's marks.
    pub refresh_state: RefreshState,
    /// When the access token ends, if this process saw it issued. The wall clock may have been set since.
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

    /// How much of the token's life is left by the clock that says less; `None` when unknown.
    pub(super) fn left(&self, clock: &dyn Clock) -> Option<Duration> {
        let by_wall_clock = self.token.left(clock.now())?;
        let by_monotonic = self.ends.map(|ends| ends.since(clock.monotonic()));
        Some(by_monotonic.map_or(by_wall_clock, |left| left.min(by_wall_clock)))
    }

    /// Whether the token is known to be of no use.
    #[must_use]
    pub fn expired(&self, clock: &dyn Clock) -> bool {
        self.left(clock).is_some_and(|left| left.is_zero())
    }

    /// The same grant with other marks.
    fn with_state(&self, refresh_state: RefreshState) -> Self {
        Self { token: self.token.clone(), tag: self.tag.clone(), refresh_state, ends: self.ends }
    }
}

pub(super) type FlightResult = Result<Arc<Snapshot>, RefreshError>;

/// What a flight is waiting for, or what it ended with.
#[derive(Debug)]
enum Progress {
    /// A place at its provider, or the store.
    Store,
    /// The provider.
    Provider,
    Finished(FlightResult),
}

/// A flight, as its callers see it.
#[derive(Debug)]
pub(super) struct FlightHandle {
    /// Some caller asked for a new token, not just for one that is good for a while.
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

    /// The provider has answered, and the store is asked.
    pub(super) fn note_answer(&self) {
        self.progress.send_replace(Progress::Store);
    }

    pub(super) fn finish(&self, result: FlightResult) {
        self.progress.send_replace(Progress::Finished(result));
    }

    /// Waits for the flight's end; as long as `store_timeout` at a time for the store.
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
    /// Held while a put or delete changes the grant and makes room for the next one's flights, and by a flight from
    /// reading the record to claiming it: so a flight either claims before a put, and presents nothing of the new grant,
    /// or finds that it is not the slot's any more. The store's lease is no help: it is this process's own in both.
    pub(super) grant_lock: tokio::sync::Mutex<()>,
    /// Rung at every change of what a reader would see.
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
pub(super) struct State {
    cached: Option<(u64, Arc<Snapshot>)>,
    writes: u64,
    pub(super) flight: Option<Arc<FlightHandle>>,
    /// When this process's own last attempt ended.
    pub(super) ended: Option<OwnAttemptEnd>,
    /// A mark that the store may have taken although it said that it did not, and the mark before it: no presentation
    /// followed.
    pub(super) unsent: Option<(Presentation, Option<Presentation>)>,
    /// What the store would hold if it had taken our last write.
    pub(super) unsaved: Option<Arc<Snapshot>>,
}

impl Slot {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn flight(&self) -> Option<Arc<FlightHandle>> {
        self.lock().flight.clone()
    }

    /// Whether callers still join the flight of `handle`.
    pub(super) fn is_current_flight(&self, handle: &Arc<FlightHandle>) -> bool {
        self.lock().is_current_flight(handle)
    }

    /// Where a read or write begins, to be handed to [`State::fill`], [`State::publish`] or [`State::replace`] after it.
    /// `epoch` is the store's before the beginning.
    pub(super) fn base(&self, epoch: u64) -> Base {
        self.cached(epoch).0
    }

    /// What is known without asking the store, and the base for asking it.
    pub(super) fn cached(&self, epoch: u64) -> (Base, Option<Arc<Snapshot>>) {
        let state = self.lock();
        (Base { writes: state.writes, epoch }, state.current(epoch).cloned())
    }
}

/// What a read or write is founded on: whatever came in between makes its result old.
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

    /// What was known last, current or not.
    pub(super) fn last(&self) -> Option<&Arc<Snapshot>> {
        self.unsaved.as_ref().or(self.cached.as_ref().map(|(_, snapshot)| snapshot))
    }

    /// A snapshot of the grant in this version, if its view was made before: to make one takes longer than to find the
    /// record.
    pub(super) fn with_state(&self, version: Version, refresh_state: &RefreshState) -> Option<Arc<Snapshot>> {
        let (_, cached) = self.cached.as_ref().filter(|(_, cached)| cached.token.version == version)?;
        Some(Arc::new(cached.with_state(refresh_state.clone())))
    }

    /// Remembers what was read, and gives what a reader now sees: that, or what is kept for the store. An error when a
    /// write overtook the reading (invariant 2): then it is to be read again, for it may be ahead of a write that is
    /// not published yet, and a later reader would see it go back.
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

    /// Remembers what a flight wrote; nothing when another write overtook this one (invariant 2). What is kept for
    /// another grant stays: this may be the last word of a flight that a put has detached.
    pub(super) fn publish(&mut self, base: Base, snapshot: Arc<Snapshot>) {
        self.unsaved.take_if(|unsaved| unsaved.token.version.id == snapshot.token.version.id);
        self.written(base, Some(snapshot));
    }

    /// Remembers a put or a delete, and lets go of all that the old grant left. Its flight goes on, but nobody joins it
    /// any more, and its result will be dropped. The caller holds [`Slot::grant_lock`], so nothing of a newer grant is
    /// here yet.
    pub(super) fn replace(&mut self, base: Base, snapshot: Option<Arc<Snapshot>>) {
        self.unsaved = None;
        self.unsent = None;
        self.ended = None;
        self.flight = None;
        self.written(base, snapshot);
    }

    /// Another grant was stored in the same version: whoever reads next asks the store.
    pub(super) fn invalidate(&mut self, base: Base) {
        self.written(base, None);
    }

    fn written(&mut self, base: Base, snapshot: Option<Arc<Snapshot>>) {
        if self.fill(base, snapshot).is_err() {
            self.cached = None;
        }
        self.writes += 1;
    }

    /// Remembers what the flight of `handle` could not write, unless a put or delete came in between.
    pub(super) fn keep_unsaved(&mut self, handle: &Arc<FlightHandle>, snapshot: Arc<Snapshot>) {
        if self.is_current_flight(handle) {
            self.unsaved = Some(snapshot);
        }
    }

    /// Forgets what was kept, once the store has something else.
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
