//! A flight: one refresh of one account, from the lease to the durable save.
//!
//! Invariants:
//! 1. It presents the refresh token that it read under the revision it claimed; whoever was overtaken sends nothing.
//! 2. Nothing is sent before the mark is durable, and nothing is answered before the outcome is, but for a success
//!    that the store would not take: that one is kept, served, and saved again until it is durable.
//! 3. It has the provider's last answer within [`FLIGHT_TIMEOUT`](crate::timeouts::FLIGHT_TIMEOUT): no attempt starts after
//!    `LAST_PROVIDER_CALL_START`, and none takes longer than `PROVIDER_CALL_TIMEOUT`.
//!
//! The rule for ambiguity: a presentation whose outcome nobody knows may have been spent, and a second one may make
//! the provider revoke the rest. This daemon is the only holder of the chain, so a second try can win a lost answer
//! back where the provider has a grace window, and loses nothing once the access token is of no use. One more try is
//! made at once when a caller asked for a new token, when the access token has expired, or within the provider's grace
//! window; otherwise the valid token is served on, and the try is made near its expiry.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Inner, RefreshError,
    cooldown::{self, AttemptResult, OwnAttemptEnd},
    default_validity,
    outcome::{Classified, Failure, classify},
    slot::{Base, FlightHandle, FlightResult, Slot, Snapshot},
};
use crate::{
    account::Account,
    clock::{Monotonic, Timestamp},
    grant::{Grant, Issued, Version},
    provider::Provider,
    store::{Claim, DeadGrant, Outcome, Presentation, Record, RefreshState, Revision, StoreError},
    timeouts::{LAST_PROVIDER_CALL_START, LEASE_WAIT_TIMEOUT},
};

mod unsaved;

use unsaved::Unsaved;

/// How often it looks whether the lease is free.
const LEASE_INTERVAL: Duration = Duration::from_millis(100);

/// Pauses before the tries after one that did not spend the token. Two: a provider that is down longer than some
/// seconds is the cooldown's business.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// So many refusals in a row without a known reason, and the grant is taken for dead once its token is.
const MAX_CONSECUTIVE_REFUSALS: u32 = 5;

/// Whether the provider has refused so often that only a new login will help. Not latched: a later try may succeed.
pub(super) fn given_up(refresh_state: &RefreshState, expired: bool) -> bool {
    expired
        && refresh_state.attempt.as_ref().is_some_and(|attempt| {
            attempt.outcome == Outcome::Refused && attempt.consecutive >= MAX_CONSECUTIVE_REFUSALS
        })
}

#[derive(Debug, Clone)]
struct Flight {
    inner: Arc<Inner>,
    account: Account,
    slot: Arc<Slot>,
    handle: Arc<FlightHandle>,
    provider: Arc<dyn Provider>,
    /// What the caller who started it had seen.
    seen: Version,
    started: Monotonic,
}

/// A record whose lease is ours and whose presentation is marked.
#[derive(Debug)]
struct Claimed {
    record: Record,
    snapshot: Arc<Snapshot>,
    revision: Revision,
    /// The mark of the presentation under way.
    marked: Presentation,
    /// The mark of an earlier one whose outcome is not known.
    uncertain: Option<Presentation>,
}

#[derive(Debug)]
enum ClaimOutcome {
    Claimed(Box<Claimed>),
    /// No call is needed: this is the answer.
    Answer(Arc<Snapshot>),
}

impl Inner {
    /// Starts a flight as a task of the coordinator's. The caller has put `handle` into the slot.
    pub(super) fn spawn_flight(
        self: &Arc<Self>,
        account: &Account,
        slot: &Arc<Slot>,
        handle: &Arc<FlightHandle>,
        seen: Version,
    ) {
        let (inner, account) = (Arc::clone(self), account.clone());
        let (slot, handle) = (Arc::clone(slot), Arc::clone(handle));
        self.tasks.spawn(async move {
            let result = match inner.providers.get(&account.provider).cloned() {
                Some(provider) => {
                    let started = inner.clock.monotonic();
                    let flight = Flight {
                        inner,
                        account: account.clone(),
                        slot: Arc::clone(&slot),
                        handle: Arc::clone(&handle),
                        provider,
                        seen,
                        started,
                    };
                    AssertUnwindSafe(flight.run()).catch_unwind().await.unwrap_or(Err(RefreshError::Internal))
                }
                None => Err(RefreshError::NotConfigured),
            };
            if let Err(error) = &result {
                tracing::warn!(%account, %error, "refresh failed");
            }
            #[cfg(feature = "faults")]
            crate::faults::reach("before_answer").await;
            {
                let mut state = slot.lock();
                // A put may have made room for the flight of another grant.
                if state.is_current_flight(&handle) {
                    state.flight = None;
                }
            }
            handle.finish(result);
            slot.changed.notify_waiters();
        });
    }
}

impl Flight {
    async fn run(self) -> FlightResult {
        let _permit = self.provider_permit().await?;
        match self.claim_lease().await? {
            ClaimOutcome::Answer(snapshot) => Ok(snapshot),
            ClaimOutcome::Claimed(claimed) => match self.too_late() {
                Some(error) => self.withdraw(*claimed, error).await,
                None => self.present(*claimed).await,
            },
        }
    }

    /// Waits for one of the provider's places, before anything is marked.
    async fn provider_permit(&self) -> Result<OwnedSemaphorePermit, RefreshError> {
        tokio::select! {
            permit = self.inner.provider_permits.acquire(&self.account.provider) => permit.ok_or(RefreshError::ProviderBusy),
            () = self.inner.stopping.cancelled() => Err(RefreshError::ShuttingDown),
        }
    }

    /// Reads the record again, repeats every check on it, and takes the lease together with the mark.
    async fn claim_lease(&self) -> Result<ClaimOutcome, RefreshError> {
        let inner = &self.inner;
        let begun = inner.clock.monotonic();
        loop {
            #[cfg(feature = "faults")]
            crate::faults::reach("before_load").await;
            let grant_lock = self.slot.grant_lock.lock().await;
            let base = self.slot.base(inner.store.epoch());
            let record = inner.store.load(&self.account).await?;
            let snapshot = record.as_ref().map(|record| {
                inner.snapshot_in(&self.slot, &self.account, &record.grant, record.refresh_state.clone())
            });
            let Ok(seen) = self.slot.lock().fill(base, snapshot) else { continue };
            let (Some(record), Some(snapshot)) = (record, seen) else { return Err(RefreshError::NotFound) };
            let expired = snapshot.expired(&*inner.clock);
            // A put has made room for the flights of its grant: only they may present it.
            let detached = !self.slot.is_current_flight(&self.handle);
            if detached || snapshot.token.version != self.seen && !expired {
                return Ok(ClaimOutcome::Answer(snapshot));
            }
            inner.check_refreshable(&self.account, &snapshot.token)?;
            if let Some(dead) = record.refresh_state.dead {
                return Err(dead.into());
            }
            let own = self.slot.lock().ended;
            inner.check_cooldown(&snapshot, &record.refresh_state, own)?;
            let uncertain = self.uncertain(record.refresh_state.presented);
            if uncertain.is_some_and(|mark| !self.may_try_again(mark, &snapshot)) {
                return Ok(ClaimOutcome::Answer(snapshot));
            }
            // The other copy of the store may have spent the refresh token: nothing is risked for a token that is good.
            if record.refresh_state.copied_at.is_some() && !self.is_needed(&snapshot) {
                return Ok(ClaimOutcome::Answer(snapshot));
            }
            if inner.stopping.is_cancelled() {
                return Err(RefreshError::ShuttingDown);
            }
            let count = uncertain.map_or(1, |mark| mark.count.saturating_add(1));
            let marked = Presentation { at: inner.clock.now(), count };
            #[cfg(feature = "faults")]
            crate::faults::reach("after_load").await;
            self.slot.lock().unsent = Some((marked, uncertain));
            let claim = inner.noted(inner.store.claim(&self.account, record.revision, marked).await)?;
            self.slot.lock().unsent = None;
            drop(grant_lock);
            match claim {
                Claim::Taken(revision) => {
                    if let Some(mark) = uncertain {
                        tracing::warn!(
                            account = %self.account, presented_at = mark.at.as_secs(), times = mark.count,
                            "nobody knows what came of an earlier presentation; presenting again"
                        );
                    }
                    return Ok(ClaimOutcome::Claimed(Box::new(Claimed {
                        record,
                        snapshot,
                        revision,
                        marked,
                        uncertain,
                    })));
                }
                Claim::Held if !self.handle.forced() && !expired => return Ok(ClaimOutcome::Answer(snapshot)),
                Claim::Held | Claim::Changed if inner.clock.monotonic().since(begun) >= LEASE_WAIT_TIMEOUT => {
                    return Err(RefreshError::LeaseHeld);
                }
                Claim::Held => self.pause(LEASE_INTERVAL).await,
                Claim::Changed => {}
            }
        }
    }

    /// The mark in the record, unless this process wrote it for a presentation that it never made: a store that failed in
    /// the middle of a claim may have taken it all the same.
    fn uncertain(&self, found: Option<Presentation>) -> Option<Presentation> {
        match self.slot.lock().unsent {
            Some((unsent, before)) if found == Some(unsent) => before,
            Some(_) | None => found,
        }
    }

    /// Why no attempt may start any more, if so: the store may have taken its time.
    fn too_late(&self) -> Option<RefreshError> {
        if self.inner.stopping.is_cancelled() {
            Some(RefreshError::ShuttingDown)
        } else if self.age() >= LAST_PROVIDER_CALL_START {
            Some(StoreError::unavailable("the store took too long").into())
        } else {
            None
        }
    }

    /// Takes the mark of a presentation back that will not be made, and releases the lease.
    async fn withdraw(&self, claimed: Claimed, error: RefreshError) -> FlightResult {
        let refresh_state = &claimed.record.refresh_state;
        let settled = self.inner.store.settle(&self.account, claimed.record.grant.version, refresh_state).await;
        if let Err(error) = self.inner.noted(settled) {
            // It stays, and makes the next presentation a second try, which it need not be.
            tracing::warn!(account = %self.account, %error, "could not take the mark of a presentation back");
        }
        Err(error)
    }

    /// The rule for ambiguity, for a presentation that nobody knows the outcome of.
    fn may_try_again(&self, mark: Presentation, snapshot: &Snapshot) -> bool {
        let now = self.inner.clock.now();
        // A mark in the future was made before the clock was set back: nobody knows how long ago.
        let in_grace = mark.at <= now && now.since(mark.at) < self.provider.rules().reuse_grace;
        in_grace || self.is_needed(snapshot)
    }

    /// Whether a new token is wanted more than the grant that may be lost by it: a caller asked for one, or the one that
    /// there is has ended or is about to.
    fn is_needed(&self, snapshot: &Snapshot) -> bool {
        let clock = &*self.inner.clock;
        let near_expiry = match (snapshot.left(clock), snapshot.token.lifetime()) {
            (Some(left), Some(lifetime)) => left < default_validity(lifetime),
            (None, _) | (_, None) => false,
        };
        self.handle.forced() || near_expiry || snapshot.expired(clock)
    }

    /// Presents the refresh token, again where that is right, until an outcome stands.
    async fn present(&self, mut claimed: Claimed) -> FlightResult {
        let mut pauses = RETRY_PAUSES.into_iter();
        // An earlier presentation with an unknown outcome makes this one the second try.
        let mut second_try = claimed.uncertain.is_none();
        loop {
            let clock = &self.inner.clock;
            let (sent_at, sent) = (clock.now(), clock.monotonic());
            #[cfg(feature = "faults")]
            crate::faults::reach("after_mark").await;
            self.handle.note_call();
            let reply = self.provider.refresh(&claimed.record.grant).await;
            self.handle.note_answer();
            #[cfg(feature = "faults")]
            crate::faults::reach("after_answer").await;
            let failure = match classify(reply, self.provider.rules(), &claimed.record.grant) {
                Classified::Success(issued) => {
                    // The monotonic clock may have stood still while the machine slept, and the wall clock may have been
                    // set: the life counts from the earlier of what they say.
                    let asked_at = clock.now().minus(clock.monotonic().since(sent)).min(sent_at);
                    return self.save_success(claimed.record, *issued, asked_at, sent).await;
                }
                Classified::Failure(failure) => failure,
            };
            let pause = match failure.outcome {
                Outcome::NotSpent => {
                    pauses.next().map(|pause| jittered(pause).max(failure.retry_after.unwrap_or_default()))
                }
                Outcome::Ambiguous => {
                    claimed.uncertain = Some(claimed.marked);
                    let again =
                        std::mem::take(&mut second_try) && self.may_try_again(claimed.marked, &claimed.snapshot);
                    again.then_some(Duration::ZERO)
                }
                Outcome::Success | Outcome::Final | Outcome::Configuration | Outcome::Refused => None,
            };
            match pause {
                Some(pause) if self.age().saturating_add(pause) < LAST_PROVIDER_CALL_START => self.pause(pause).await,
                Some(_) | None => return self.fail(claimed, failure).await,
            }
            let marked = Presentation { at: self.inner.clock.now(), count: claimed.marked.count.saturating_add(1) };
            let claim = self.inner.store.claim(&self.account, claimed.revision, marked).await;
            match self.inner.noted(claim) {
                Ok(Claim::Taken(_)) if self.too_late().is_some() => return self.fail(claimed, failure).await,
                Ok(Claim::Taken(revision)) => (claimed.revision, claimed.marked) = (revision, marked),
                Ok(Claim::Held | Claim::Changed) => return self.overtaken(claimed.record.grant.version, None).await,
                Err(_) => return self.fail(claimed, failure).await,
            }
        }
    }

    /// Saves the next generation, and only then answers with it (invariant 2). The life of its token counts from when the
    /// answer was made: at the earliest, when it was asked for.
    async fn save_success(&self, record: Record, issued: Issued, asked_at: Timestamp, sent: Monotonic) -> FlightResult {
        let inner = &self.inner;
        let now = inner.clock.now();
        let before = record.grant.version;
        let next = record.grant.refreshed(issued, asked_at);
        let result =
            AttemptResult { outcome: Outcome::Success, code: None, retry_after: None, expires_at: next.expires_at };
        let attempt = cooldown::record_attempt(result, record.refresh_state.attempt.as_ref(), inner.cooldown, now);
        let refresh_state = RefreshState { attempt: Some(attempt), ..RefreshState::default() };
        let mut snapshot = Snapshot::of(&self.account, &next, refresh_state, &self.provider.rules().expose);
        snapshot.ends = snapshot.token.lifetime().map(|lifetime| sent.plus(lifetime));
        let snapshot = Arc::new(snapshot);
        let base = self.end_attempt(&snapshot);
        #[cfg(feature = "faults")]
        crate::faults::reach("before_save").await;
        match inner.noted(inner.store.save(&self.account, before, &next, &snapshot.refresh_state).await) {
            Ok(true) => {
                #[cfg(feature = "faults")]
                crate::faults::reach("after_save").await;
                self.slot.lock().publish(base, Arc::clone(&snapshot));
                let won_back = record.refresh_state.presented.is_some();
                tracing::info!(account = %self.account, generation = next.version.generation, won_back, "refreshed");
                Ok(snapshot)
            }
            Ok(false) => self.overtaken(before, Some(&next)).await,
            Err(error) => {
                tracing::error!(account = %self.account, %error, "the refreshed grant could not be saved; it is kept in memory");
                self.keep_unsaved(before, Unsaved::Grant(Box::new(next)), &snapshot);
                Ok(snapshot)
            }
        }
    }

    /// Records the failure, and answers with it.
    async fn fail(&self, claimed: Claimed, failure: Failure) -> FlightResult {
        let inner = &self.inner;
        let now = inner.clock.now();
        let (grant, refresh_state) = (&claimed.record.grant, &claimed.record.refresh_state);
        let result = AttemptResult {
            outcome: failure.outcome,
            code: failure.code.clone(),
            retry_after: failure.retry_after,
            expires_at: None,
        };
        let attempt = cooldown::record_attempt(result, refresh_state.attempt.as_ref(), inner.cooldown, now);
        let wait = attempt.not_before.since(now);
        let dead = failure.outcome == Outcome::Final;
        if let Some(lost) = claimed.uncertain.filter(|_| dead) {
            tracing::error!(
                account = %self.account,
                generation = grant.version.generation,
                lost_at = lost.at.as_secs(),
                "the grant is dead, and the answer to an earlier presentation was lost, perhaps with the successor"
            );
        }
        let (answer_lost, copied) = (claimed.uncertain.is_some(), refresh_state.copied_at.is_some());
        let refresh_state = RefreshState {
            presented: claimed.uncertain.filter(|_| !dead),
            attempt: Some(attempt),
            dead: dead.then_some(DeadGrant { at: now, answer_lost, copied }),
            copied_at: refresh_state.copied_at,
        };
        let snapshot = inner.snapshot_in(&self.slot, &self.account, grant, refresh_state);
        let base = self.end_attempt(&snapshot);
        match inner.noted(inner.store.settle(&self.account, grant.version, &snapshot.refresh_state).await) {
            Ok(true) => self.slot.lock().publish(base, Arc::clone(&snapshot)),
            Ok(false) => return self.overtaken(grant.version, None).await,
            Err(error) => {
                tracing::error!(account = %self.account, %error, "the outcome of a refresh could not be saved; it is kept in memory");
                self.keep_unsaved(grant.version, Unsaved::RefreshState, &snapshot);
            }
        }
        if dead || given_up(&snapshot.refresh_state, snapshot.expired(&*inner.clock)) {
            return Err(RefreshError::Reauth { answer_lost, copied });
        }
        Err(RefreshError::Failed { failure, wait })
    }

    /// The grant was deleted or replaced meanwhile, and that wins. What came late is revoked after a delete; after a
    /// replacement never, since that could kill the new login of the same person.
    async fn overtaken(&self, before: Version, late: Option<&Grant>) -> FlightResult {
        let snapshot = loop {
            let base = self.slot.base(self.inner.store.epoch());
            let record = self.inner.store.load(&self.account).await?;
            let snapshot = record.map(|record| self.inner.snapshot(&self.account, &record.grant, record.refresh_state));
            if let Ok(seen) = self.slot.lock().fill(base, snapshot) {
                break seen;
            }
        };
        if let Some(snapshot) = snapshot {
            // The same grant: another owner took the lease, and refreshes it.
            return if snapshot.token.version == before { Err(RefreshError::LeaseHeld) } else { Ok(snapshot) };
        }
        if let Some(late) = late {
            let revoked = self.inner.revoke(&self.account, late).await;
            tracing::info!(account = %self.account, revoked, "dropped a late refresh of a deleted grant");
        }
        Err(RefreshError::NotFound)
    }

    /// Notes the attempt's end on the monotonic clock, before it is written down.
    fn end_attempt(&self, snapshot: &Snapshot) -> Base {
        let monotonic = self.inner.clock.monotonic();
        let base = self.slot.base(self.inner.store.epoch());
        let mut state = self.slot.lock();
        // A flight that a put has detached must not slow the new grant down.
        if state.is_current_flight(&self.handle) {
            state.ended = snapshot
                .refresh_state
                .attempt
                .as_ref()
                .map(|attempt| OwnAttemptEnd { at: attempt.ended_at, monotonic });
        }
        drop(state);
        base
    }

    /// Sleeps; a shutdown cuts it short.
    async fn pause(&self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.inner.stopping.cancelled() => {}
        }
    }

    fn age(&self) -> Duration {
        self.inner.clock.monotonic().since(self.started)
    }
}

/// Up to a fifth more or less, so that daemons which failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [128];
    if getrandom::fill(&mut byte).is_err() {
        tracing::debug!("no randomness for the jitter, which does no harm");
    }
    pause.mul_f64(0.8 + 0.4 * f64::from(byte[0]) / 255.0)
}
