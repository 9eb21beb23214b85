//! A flight: one refresh of one account, from the lease to the durable save.
//!
//! Invariants:
//! 1. It presents the refresh token that it read at the revision it claimed. If another owner was faster, it sends
//!    nothing.
//! 2. Nothing is sent before the presentation is durable, and nothing is answered before the outcome is durable, except
//!    a success that the store rejects: it is kept in memory, served, and saved again until it is durable.
//! 3. It has the provider's last answer within [`FLIGHT_TIMEOUT`](crate::timeouts::FLIGHT_TIMEOUT): no attempt starts
//!    after `LAST_PROVIDER_CALL_START`, and none takes longer than `PROVIDER_CALL_TIMEOUT`.
//!
//! The rule for ambiguity: a presentation with an unknown outcome may have spent the token, and a second one may make
//! the provider revoke the rest. This daemon is the only holder of the chain, so a second try can recover a lost answer
//! if the provider has a grace window, and loses nothing once the access token has expired. One more try is made at
//! once if a caller asked for a new token, if the access token has expired, or within the provider's grace window;
//! otherwise the valid token is served, and the try is made near its expiry.

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

/// How often it checks whether the lease is free.
const LEASE_INTERVAL: Duration = Duration::from_millis(100);

/// The pauses before retries of an attempt that did not spend the token. Two: a provider that is down for longer is
/// left to the cooldown.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];

/// After this number of consecutive rejections without a known reason, the grant is treated as dead once its token has
/// expired.
const MAX_CONSECUTIVE_REFUSALS: u32 = 5;

/// Whether the provider has rejected the grant so often that only a new login will help. It is not recorded as dead: a
/// later try may succeed.
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
    /// The state that the caller who started the flight had seen.
    seen: Version,
    started: Monotonic,
}

/// A record whose lease is ours, with a durable presentation.
#[derive(Debug)]
struct Claimed {
    record: Record,
    snapshot: Arc<Snapshot>,
    revision: Revision,
    /// The presentation under way.
    marked: Presentation,
    /// An earlier presentation with an unknown outcome.
    uncertain: Option<Presentation>,
}

#[derive(Debug)]
enum ClaimOutcome {
    Claimed(Box<Claimed>),
    /// No call is needed: this is the answer.
    Answer(Arc<Snapshot>),
}

impl Inner {
    /// Spawns a flight as a task of the coordinator's. The caller has put `handle` into the slot.
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
                // A put may have detached this flight and made room for one of the new grant.
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

    /// Waits for a permit of the provider's, before anything is written.
    async fn provider_permit(&self) -> Result<OwnedSemaphorePermit, RefreshError> {
        tokio::select! {
            permit = self.inner.provider_permits.acquire(&self.account.provider) => permit.ok_or(RefreshError::ProviderBusy),
            () = self.inner.stopping.cancelled() => Err(RefreshError::ShuttingDown),
        }
    }

    /// Reads the record again, repeats every check on it, and takes the lease together with the presentation.
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
            // A put has detached this flight: only a flight of the new grant may present it.
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
            // The other copy of the store may have spent the refresh token: a valid token is not risked.
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
                            "the outcome of an earlier presentation is unknown; presenting again"
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

    /// The record's presentation, unless this process wrote it for a call that it never made: a store that failed
    /// during a claim may have committed it nevertheless.
    fn uncertain(&self, found: Option<Presentation>) -> Option<Presentation> {
        match self.slot.lock().unsent {
            Some((unsent, before)) if found == Some(unsent) => before,
            Some(_) | None => found,
        }
    }

    /// Why no attempt may start any more, if so: the store may have taken too long.
    fn too_late(&self) -> Option<RefreshError> {
        if self.inner.stopping.is_cancelled() {
            Some(RefreshError::ShuttingDown)
        } else if self.age() >= LAST_PROVIDER_CALL_START {
            Some(StoreError::unavailable("the store took too long").into())
        } else {
            None
        }
    }

    /// Withdraws a presentation that will not be made, and releases the lease.
    async fn withdraw(&self, claimed: Claimed, error: RefreshError) -> FlightResult {
        let refresh_state = &claimed.record.refresh_state;
        let settled = self.inner.store.settle(&self.account, claimed.record.grant.version, refresh_state).await;
        if let Err(error) = self.inner.noted(settled) {
            // The presentation stays in the store, and makes the next one needlessly a second try.
            tracing::warn!(account = %self.account, %error, "could not withdraw a presentation");
        }
        Err(error)
    }

    /// The rule for ambiguity, for a presentation with an unknown outcome.
    fn may_try_again(&self, mark: Presentation, snapshot: &Snapshot) -> bool {
        let now = self.inner.clock.now();
        // A presentation in the future was recorded before the clock was set back: its age is unknown.
        let in_grace = mark.at <= now && now.since(mark.at) < self.provider.rules().reuse_grace;
        in_grace || self.is_needed(snapshot)
    }

    /// Whether a new token is worth the risk of losing the grant: a caller asked for one, or the present one has
    /// expired or is about to.
    fn is_needed(&self, snapshot: &Snapshot) -> bool {
        let clock = &*self.inner.clock;
        let near_expiry = match (snapshot.left(clock), snapshot.token.lifetime()) {
            (Some(left), Some(lifetime)) => left < default_validity(lifetime),
            (None, _) | (_, None) => false,
        };
        self.handle.forced() || near_expiry || snapshot.expired(clock)
    }

    /// Presents the refresh token, with retries where they are safe, until there is an outcome.
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
                    // The monotonic clock may have stopped while the machine slept, and the wall clock may have been
                    // set: the lifetime counts from the earlier of the two.
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

    /// Saves the next generation, and only then answers with it (invariant 2). The token's lifetime counts from when
    /// the answer was made: at the earliest, from when the request was sent.
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

    /// Saves the failure, and answers with it.
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

    /// The grant was deleted or replaced meanwhile, which takes precedence. The late success is revoked after a delete,
    /// but never after a replacement: that could revoke the same person's new login.
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
            // The same grant: another owner took the lease, and is refreshing it.
            return if snapshot.token.version == before { Err(RefreshError::LeaseHeld) } else { Ok(snapshot) };
        }
        if let Some(late) = late {
            let revoked = self.inner.revoke(&self.account, late).await;
            tracing::info!(account = %self.account, revoked, "dropped a late refresh of a deleted grant");
        }
        Err(RefreshError::NotFound)
    }

    /// Records the attempt's end on the monotonic clock, before it is saved.
    fn end_attempt(&self, snapshot: &Snapshot) -> Base {
        let monotonic = self.inner.clock.monotonic();
        let base = self.slot.base(self.inner.store.epoch());
        let mut state = self.slot.lock();
        // A flight that a put has detached must not delay the new grant.
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

    /// Sleeps, unless the daemon is shutting down.
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

/// Jitter of up to a fifth, so that daemons that failed together do not retry together.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [128];
    if getrandom::fill(&mut byte).is_err() {
        tracing::debug!("no randomness for the jitter; continuing without it");
    }
    pause.mul_f64(0.8 + 0.4 * f64::from(byte[0]) / 255.0)
}
