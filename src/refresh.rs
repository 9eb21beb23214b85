//! The refresh coordinator: joins callers into one flight, paces attempts, and ensures that no refresh token is lost or
//! spent twice.
//!
//! Owns: [`Coordinator`], through which every read and change of a grant goes, one flight per account, and the order of
//! checks before a flight.
//!
//! Invariants:
//! 1. A flight belongs to the coordinator. A caller that disconnects, even the first one, cancels nothing. The same
//!    holds for puts and deletes.
//! 2. A presentation is durable before the refresh token is sent; the successor is durable before it is answered.
//! 3. A refresh token is presented again only after an outcome that did not spend it, or by the rule for ambiguity
//!    (`flight.rs`).
//! 4. A token that is not known to be expired is served, whatever prevented its refresh.
//!
//! Must not know: HTTP, SQL. It knows the traits `Provider`, `Store` and `Clock`.

use std::{
    error::Error as _,
    future::Future,
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hashbrown::HashMap;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    account::{Account, AccountRef},
    clock::{Clock, Timestamp},
    grant::{Grant, SanitizedToken},
    provider::{Provider, Providers},
    store::{AccountFilter, RefreshState, Store, StoreError},
    timeouts::HEALTH_CHECK_TIMEOUT,
};

mod caller;
mod changes;
pub mod condition;
mod cooldown;
mod error;
mod flight;
pub mod outcome;
mod provider_permits;
mod slot;
mod slots;
mod status;

pub use caller::CallerContext;
pub use error::RefreshError;
pub use slot::Snapshot;
pub use status::{AccountState, Status};

use condition::{IfMatch, Verdict};
use provider_permits::ProviderPermits;
use slot::Slot;
use slots::Staleness;

/// Reads and changes grants on behalf of callers. Clones share one coordinator.
#[derive(Debug, Clone)]
pub struct Coordinator(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Arc<dyn Store>,
    providers: Providers,
    provider_permits: ProviderPermits,
    clock: Arc<dyn Clock>,
    cooldown: Duration,
    /// When the configuration was loaded.
    configured_at: Timestamp,
    slots: RwLock<HashMap<Account, Arc<Slot>>>,
    tasks: TaskTracker,
    stopping: CancellationToken,
    /// The last write failed.
    unwritable: AtomicBool,
}

/// The default `min_validity`: a minute covers the longest common request; for a short-lived token, a fifth of its
/// life.
#[must_use]
pub fn default_validity(lifetime: Duration) -> Duration {
    Duration::from_mins(1).min(lifetime / 5)
}

impl Coordinator {
    /// A coordinator of these parts. A `cooldown` of zero disables the cooldown.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, providers: Providers, clock: Arc<dyn Clock>, cooldown: Duration) -> Self {
        Self(Arc::new(Inner {
            configured_at: clock.now(),
            store,
            provider_permits: ProviderPermits::of(&providers),
            providers,
            clock,
            cooldown,
            slots: RwLock::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            unwritable: AtomicBool::new(false),
        }))
    }

    /// Returns the account's token, refreshing it first if less than `min_validity` of its life is left (half the life
    /// at most; [`default_validity`] if `None`). Fails only if the only token is expired (invariant 4).
    pub async fn token(
        &self,
        account: &Account,
        min_validity: Option<Duration>,
    ) -> Result<Arc<Snapshot>, RefreshError> {
        self.token_with(account, min_validity, &CallerContext::default()).await
    }

    /// [`Coordinator::token`] with a caller's context: its quota and audit details.
    pub async fn token_with(
        &self,
        account: &Account,
        min_validity: Option<Duration>,
        caller: &CallerContext,
    ) -> Result<Arc<Snapshot>, RefreshError> {
        let (slot, snapshot) = self.0.lookup(account, Staleness::Tolerated).await?;
        if self.0.has_enough_validity(&snapshot, min_validity) {
            return Ok(snapshot);
        }
        let error = match self.0.renew(account, &slot, &snapshot, false, caller).await {
            Ok(renewed) => return Ok(renewed),
            Err(RefreshError::StoreStalled) => return Ok(slot.lock().last().cloned().unwrap_or(snapshot)),
            Err(error) => error,
        };
        match self.0.lookup(account, Staleness::Tolerated).await {
            Ok((_, now)) if !now.expired(&*self.0.clock) => Ok(now),
            Err(RefreshError::NotFound) => Err(RefreshError::NotFound),
            Ok(_) | Err(_) => Err(error),
        }
    }

    /// The result of [`Coordinator::token`] if the token is in memory and valid for long enough, without waiting for
    /// anything.
    #[must_use]
    pub fn cached(&self, account: AccountRef<'_>, min_validity: Option<Duration>) -> Option<Arc<Snapshot>> {
        let (_, known) = self.0.slots().get(&account)?.cached(self.0.store.epoch());
        known.filter(|snapshot| self.0.has_enough_validity(snapshot, min_validity))
    }

    /// Returns the account's current token, expired or not.
    pub async fn peek(&self, account: &Account) -> Result<Arc<Snapshot>, RefreshError> {
        self.0.lookup(account, Staleness::Tolerated).await.map(|(_, snapshot)| snapshot)
    }

    /// Returns a new token, or the one that has already replaced the token that `if_match` names.
    pub async fn refresh(&self, account: &Account, if_match: &IfMatch) -> Result<Arc<Snapshot>, RefreshError> {
        self.refresh_with(account, if_match, &CallerContext::default()).await
    }

    /// [`Coordinator::refresh`] with a caller's context: its quota and audit details.
    pub async fn refresh_with(
        &self,
        account: &Account,
        if_match: &IfMatch,
        caller: &CallerContext,
    ) -> Result<Arc<Snapshot>, RefreshError> {
        let (slot, snapshot) = self.0.lookup(account, Staleness::Refused).await?;
        self.0.check_refreshable(account, &snapshot.token)?;
        match if_match.verdict(account, snapshot.token.version) {
            Verdict::Go => {}
            Verdict::Moved if snapshot.expired(&*self.0.clock) => {}
            Verdict::Moved => return Ok(snapshot),
            Verdict::Mismatch => return Err(RefreshError::PreconditionFailed),
        }
        self.0.renew(account, &slot, &snapshot, true, caller).await
    }

    /// Waits until the account's token differs from the one tagged `tag`, or `limit` has passed.
    pub async fn changed(&self, account: &Account, tag: &str, limit: Duration) {
        // Changes by other processes send no notification: the store's epoch has to be polled.
        const EPOCH_POLL_INTERVAL: Duration = Duration::from_millis(250);
        let start = self.0.clock.monotonic();
        while let Ok((slot, snapshot)) = self.0.lookup(account, Staleness::Tolerated).await {
            let left = limit.saturating_sub(self.0.clock.monotonic().since(start));
            let rung = slot.changed.notified();
            let moved = slot.lock().last().is_some_and(|last| *last.tag != *tag);
            if moved || *snapshot.tag != *tag || left.is_zero() {
                return;
            }
            tokio::select! {
                () = rung => {}
                () = tokio::time::sleep(left.min(EPOCH_POLL_INTERVAL)) => {}
                () = self.0.stopping.cancelled() => return,
            }
        }
    }

    /// Returns the accounts that have a grant, sorted by name.
    pub async fn accounts(&self) -> Result<Vec<Account>, RefreshError> {
        Ok(self.0.store.names().await?)
    }

    /// Returns the statuses of the accounts that are `wanted`, one after the other, sorted by name.
    pub async fn overview(
        &self,
        wanted: &AccountFilter<'_>,
        mut each: impl FnMut(Status) + Send,
    ) -> Result<(), RefreshError> {
        Ok(self.0.store.visit(wanted, &mut |entry| each(self.0.status(entry))).await?)
    }

    /// The configured providers.
    #[must_use]
    pub fn providers(&self) -> &Providers {
        &self.0.providers
    }

    /// The clock that grants are dated with.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    /// The problems of the daemon as a whole; empty if it is healthy.
    pub async fn health_problems(&self) -> Vec<&'static str> {
        let mut health_problems = Vec::new();
        if self.0.slots().values().any(|slot| slot.lock().unsaved.is_some()) {
            health_problems.push("a refresh is not saved yet");
        }
        let written = async { !self.0.unwritable.load(Ordering::Relaxed) || self.0.writable_again().await };
        let (written, read) = tokio::join!(written, self.0.readable());
        if !written {
            health_problems.push("the store cannot be written");
        }
        if !read {
            health_problems.push("the store cannot be read");
        }
        health_problems
    }

    /// Starts no more attempts, and waits for those under way. It may be called before callers have their answers; they
    /// will still get them.
    pub async fn shut_down(&self) {
        self.0.stopping.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Runs a change to its end even if the caller goes away (invariant 1).
    async fn detached<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T, RefreshError>> + Send + 'static,
    ) -> Result<T, RefreshError> {
        self.0.tasks.spawn(change).await.unwrap_or(Err(RefreshError::Internal))
    }
}

impl Inner {
    fn snapshot(&self, account: &Account, grant: &Grant, refresh_state: RefreshState) -> Arc<Snapshot> {
        let expose = self.providers.get(&account.provider).map_or(&[][..], |provider| &provider.rules().expose);
        Arc::new(Snapshot::of(account, grant, refresh_state, expose))
    }

    /// Returns the snapshot of a grant that was read, from the slot's cache if only the refresh state differs.
    fn snapshot_in(&self, slot: &Slot, account: &Account, grant: &Grant, refresh_state: RefreshState) -> Arc<Snapshot> {
        let known = slot.lock().with_state(grant.version, &refresh_state);
        known.unwrap_or_else(|| self.snapshot(account, grant, refresh_state))
    }

    /// Whether the token is valid for long enough that no refresh is needed.
    fn has_enough_validity(&self, snapshot: &Snapshot, min_validity: Option<Duration>) -> bool {
        let (Some(left), Some(lifetime)) = (snapshot.left(&*self.clock), snapshot.token.lifetime()) else {
            return true;
        };
        let wanted = min_validity.map_or_else(|| default_validity(lifetime), |asked| asked.min(lifetime / 2));
        // More than its whole life is left: it was issued while the clock was ahead, and its end is unknown.
        !left.is_zero() && left >= wanted && left <= lifetime
    }

    /// Whether the grant can be refreshed at all.
    fn check_refreshable(&self, account: &Account, token: &SanitizedToken) -> Result<&Arc<dyn Provider>, RefreshError> {
        if !token.refreshable {
            return Err(RefreshError::NotRefreshable);
        }
        self.providers.get(&account.provider).ok_or(RefreshError::NotConfigured)
    }

    /// Records whether the store accepts writes, and logs a change.
    fn noted<T>(&self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        match &result {
            Ok(_) => {
                if self.unwritable.swap(false, Ordering::Relaxed) {
                    tracing::info!("the store can be written again");
                }
            }
            Err(error) if error.is_transient() => {
                if !self.unwritable.swap(true, Ordering::Relaxed) {
                    tracing::error!(cause = error.source().map(tracing::field::display), "the store cannot be written");
                }
            }
            Err(_) => {}
        }
        result
    }

    /// After a failed write, tests whether the store accepts one now: there may be no other write for hours.
    async fn writable_again(&self) -> bool {
        let probed = tokio::time::timeout(HEALTH_CHECK_TIMEOUT, self.store.probe()).await;
        probed.is_ok_and(|probed| self.noted(probed).is_ok())
    }

    /// Whether the store answers. This name has no grant unless a person stored one; only the fact of an answer
    /// matters.
    async fn readable(&self) -> bool {
        let Ok(probe) = "health-probe".parse::<Account>() else { return true };
        let loaded = tokio::time::timeout(HEALTH_CHECK_TIMEOUT, self.store.load(&probe)).await;
        loaded.is_ok_and(|loaded| loaded.map_or_else(|error| !error.is_transient(), |_| true))
    }

    async fn revoke(&self, account: &Account, grant: &Grant) -> bool {
        match self.providers.get(&account.provider) {
            Some(provider) => provider.revoke(grant).await,
            None => false,
        }
    }
}
