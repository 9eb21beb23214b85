//! A caller's request for a token: the checks before a flight, and joining or starting one.
//!
//! Owns: [`CallerContext`], the input and output of one caller's request.
//!
//! Must not know: what a flight does.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{
    Inner, RefreshError,
    cooldown::{self, OwnAttemptEnd},
    slot::{FlightHandle, Slot, Snapshot},
    status::last_error,
};
use crate::{
    account::Account, clock::Monotonic, limits::RefreshQuota, store::RefreshState, timeouts::STALLED_STORE_TIMEOUT,
};

/// The context of one request: the caller's quota, and what the request did.
#[derive(Debug, Default)]
pub struct CallerContext {
    quota: Option<Arc<RefreshQuota>>,
    quota_acquired: AtomicBool,
    provider_called: AtomicBool,
}

impl CallerContext {
    /// The context of a caller with a quota. A caller that starts a flight by asking for a new token is charged for it;
    /// one that joins a flight, or gets a token that was already replaced, is not.
    #[must_use]
    pub const fn with_quota(quota: Option<Arc<RefreshQuota>>) -> Self {
        Self { quota, quota_acquired: AtomicBool::new(false), provider_called: AtomicBool::new(false) }
    }

    /// Whether the caller waited for a call to the provider, made for this caller or by a flight that it joined.
    #[must_use]
    pub fn provider_called(&self) -> bool {
        self.provider_called.load(Ordering::Relaxed)
    }

    /// Records that the caller waited for a provider call.
    pub fn note_provider_called(&self, provider_called: bool) {
        self.provider_called.fetch_or(provider_called, Ordering::Relaxed);
    }

    /// Charges the quota for a flight, once per caller: a second flight may be needed after another caller's.
    fn acquire_quota(&self, account: &Account, now: Monotonic) -> Result<(), RefreshError> {
        if let Some(quota) = &self.quota
            && !self.quota_acquired.load(Ordering::Relaxed)
        {
            quota.acquire(account, now).map_err(|wait| RefreshError::QuotaExceeded { wait })?;
            self.quota_acquired.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Inner {
    /// Returns a token other than the caller's, unless that one will do (`forced`: it will not).
    pub(super) async fn renew(
        self: &Arc<Self>,
        account: &Account,
        slot: &Arc<Slot>,
        snapshot: &Arc<Snapshot>,
        forced: bool,
        caller: &CallerContext,
    ) -> Result<Arc<Snapshot>, RefreshError> {
        let mut seen = Arc::clone(snapshot);
        loop {
            let result = self.join_or_start(account, slot, &seen, forced, caller).await?;
            let expired = result.expired(&*self.clock);
            let (now, before) = (result.token.version, seen.token.version);
            // A flight that began for an earlier token or grant may end with the caller's own token, or with a
            // replacement that has not been refreshed yet.
            let again = if now == before { forced || expired } else { now.id != before.id && expired };
            if !again {
                return Ok(result);
            }
            seen = result;
        }
    }

    /// Joins the flight under way, or starts one if no cooldown or backoff forbids it.
    async fn join_or_start(
        self: &Arc<Self>,
        account: &Account,
        slot: &Arc<Slot>,
        snapshot: &Snapshot,
        forced: bool,
        caller: &CallerContext,
    ) -> Result<Arc<Snapshot>, RefreshError> {
        self.check_refreshable(account, &snapshot.token)?;
        if let Some(dead) = snapshot.refresh_state.dead {
            return Err(dead.into());
        }
        let flight = {
            let mut state = slot.lock();
            if let Some(flight) = &state.flight {
                flight.join(forced);
                Arc::clone(flight)
            } else {
                let refresh_state =
                    state.unsaved.as_ref().map_or(&snapshot.refresh_state, |unsaved| &unsaved.refresh_state);
                self.check_cooldown(snapshot, refresh_state, state.ended)?;
                if state.unsaved.is_some() {
                    return Err(RefreshError::Unsaved);
                }
                if forced {
                    caller.acquire_quota(account, self.clock.monotonic())?;
                }
                let flight = Arc::new(FlightHandle::new(forced));
                state.flight = Some(Arc::clone(&flight));
                self.spawn_flight(account, slot, &flight, snapshot.token.version);
                flight
            }
        };
        #[cfg(feature = "faults")]
        crate::faults::joined();
        // A caller with a valid token need not wait for a store that does not answer.
        let store_timeout = (!forced && !snapshot.expired(&*self.clock)).then_some(STALLED_STORE_TIMEOUT);
        let result = flight.wait(store_timeout).await;
        caller.note_provider_called(flight.provider_called());
        result
    }

    /// Whether the cooldown and every backoff are over.
    pub(super) fn check_cooldown(
        &self,
        snapshot: &Snapshot,
        refresh_state: &RefreshState,
        own: Option<OwnAttemptEnd>,
    ) -> Result<(), RefreshError> {
        let now = cooldown::Now {
            wall: self.clock.now(),
            monotonic: self.clock.monotonic(),
            configured_at: self.configured_at,
            cooldown: self.cooldown,
            expired: snapshot.expired(&*self.clock),
        };
        match cooldown::wait(refresh_state, own, now) {
            Some(wait) => Err(RefreshError::RateLimited { wait, last: last_error(refresh_state) }),
            None => Ok(()),
        }
    }
}
