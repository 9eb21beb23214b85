//! Limits on what a peer may ask for.
//!
//! Owns: [`Rate`] and the [`Gcra`] that enforces it, the default limits, the rate of each peer's requests
//! ([`RateLimiter`]), and the number of new tokens per socket and account ([`RefreshQuota`]).
//!
//! Invariants:
//! 1. A limiter is pure: the time is a parameter, and no clock makes it panic or exceed its rate.
//! 2. State about an account is dropped once it makes no difference.
//!
//! Must not know: what is limited, and how a refusal is answered.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{account::Account, clock::Monotonic};

/// A rate with a burst allowance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    number: u32,
    whole: Duration,
    burst: u32,
}

impl Rate {
    /// `number` per second, with a burst of `burst`. Zero counts as one.
    #[must_use]
    pub const fn per_second(number: u32, burst: u32) -> Self {
        Self { number, whole: Duration::from_secs(1), burst }
    }

    /// `number` per hour, all of them at once if necessary. Zero counts as one.
    #[must_use]
    pub const fn per_hour(number: u32) -> Self {
        Self { number, whole: Duration::from_hours(1), burst: number }
    }

    /// One per `period`, with a burst of `burst`. Zero counts as one.
    #[must_use]
    pub const fn every(period: Duration, burst: u32) -> Self {
        Self { number: 1, whole: period, burst }
    }

    /// The interval between two, once the burst is used up.
    fn period(self) -> Duration {
        self.whole / self.number.max(1)
    }
}

/// The state of one rate limit by the generic cell rate algorithm (ITU-T I.371, annex A). A new one allows the whole
/// burst.
#[derive(Debug, Clone, Copy)]
pub struct Gcra {
    /// When the whole burst is available again. The algorithm needs no other state.
    full_at: Monotonic,
}

impl Default for Gcra {
    fn default() -> Self {
        Self { full_at: Monotonic::new(Duration::ZERO) }
    }
}

impl Gcra {
    /// Takes one. The error is the time until one is available.
    pub fn acquire(&mut self, rate: Rate, now: Monotonic) -> Result<(), Duration> {
        let period = rate.period();
        let missing = self.full_at.since(now);
        let room = period.saturating_mul(rate.burst.max(1) - 1);
        let wait = missing.saturating_sub(room);
        if !wait.is_zero() {
            return Err(wait);
        }
        self.full_at = now.max(self.full_at).plus(period);
        Ok(())
    }

    /// Takes one, now or in advance. Returns the time until it is due, at most `longest`: beyond that, several are due
    /// together.
    pub fn reserve(&mut self, rate: Rate, now: Monotonic, longest: Duration) -> Duration {
        let wait = self.full_at.since(now).min(longest);
        self.full_at = now.plus(wait).plus(rate.period());
        wait
    }

    /// Whether the whole burst is available, as in a new one.
    #[must_use]
    pub fn is_full(&self, now: Monotonic) -> bool {
        self.full_at <= now
    }
}

/// The limits of one socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketLimits {
    /// Connections at once; `None`: as many as the open files allow.
    pub connections: Option<usize>,
    /// Connections of one user; `None`: half of the total if several users may connect, else all.
    pub connections_per_user: Option<usize>,
    /// Requests of one user, over all connections.
    pub rate: Option<Rate>,
    /// Forced refreshes per account.
    pub forced_refreshes: Option<Rate>,
}

impl SocketLimits {
    /// For the user's own programs: only the limits of the machine.
    pub const HOST: Self = Self { connections: None, connections_per_user: None, rate: None, forced_refreshes: None };

    /// For untrusted programs. An agent in a loop has a few connections, a few requests per second, and a bad token a
    /// few times a day.
    pub const SANDBOX: Self = Self {
        connections: Some(1024),
        connections_per_user: None,
        rate: Some(Rate::per_second(60, 120)),
        forced_refreshes: Some(Rate::per_hour(20)),
    };
}

/// How many logins may wait for a person at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginLimits {
    /// In total. Each may hold a port, and polls its provider.
    pub total: usize,
    /// Of one socket.
    pub per_socket: usize,
}

/// A tenth of all logins, and at least this many, are reserved for the host.
const MIN_HOST_LOGINS: usize = 3;

impl LoginLimits {
    /// How many the sockets of role `sandbox` may have in total.
    #[must_use]
    pub fn of_sandboxes(&self) -> usize {
        self.total - (self.total / 10).max(MIN_HOST_LOGINS).min(self.total / 2)
    }
}

impl Default for LoginLimits {
    /// A person has one login under way, or a few for several agents; a socket that needs more misbehaves.
    fn default() -> Self {
        Self { total: 100, per_socket: 10 }
    }
}

/// The request rate limits of one socket's peers: one per user, over all connections. A new connection does not reset
/// it.
///
/// A request over the rate is answered late, which slows a client that retries at once down to the rate.
#[derive(Debug)]
pub struct RateLimiter {
    rate: Rate,
    /// A socket's users are listed in the configuration, so there are few.
    peers: Mutex<HashMap<u32, Arc<PeerLimiter>>>,
}

impl RateLimiter {
    /// Limits each user to `rate`.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, peers: Mutex::default() }
    }

    /// The limiter of that user.
    #[must_use]
    pub fn of(&self, uid: u32) -> Arc<PeerLimiter> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(PeerLimiter { rate: self.rate, state: Mutex::default() });
        Arc::clone(peers.entry(uid).or_insert_with(new))
    }
}

/// The longest delay of an answer to a request over the rate: shorter than clients' timeouts.
const MAX_ANSWER_DELAY: Duration = Duration::from_secs(1);

/// How many answers of one peer may be delayed at once: the number of connections of a sandbox by default.
const MAX_DELAYED_ANSWERS: usize = 1024;

/// The requests of one user on one socket.
#[derive(Debug)]
pub struct PeerLimiter {
    rate: Rate,
    state: Mutex<PeerLimiterState>,
}

#[derive(Debug, Default)]
struct PeerLimiterState {
    requests: Gcra,
    /// Spaces the answers to requests over the rate.
    refusals: Gcra,
    delayed: usize,
}

impl PeerLimiter {
    /// Counts a request. The error says when the next one is allowed, and how long the answer is delayed.
    pub fn acquire(self: &Arc<Self>, now: Monotonic) -> Result<(), TooFast> {
        let mut state = self.lock();
        let Err(retry_after) = state.requests.acquire(self.rate, now) else { return Ok(()) };
        let delay = (state.delayed < MAX_DELAYED_ANSWERS).then(|| {
            state.delayed += 1;
            let turn = state.refusals.reserve(self.rate, now, MAX_ANSWER_DELAY);
            Delay { length: turn.max(retry_after).min(MAX_ANSWER_DELAY), peer: Arc::clone(self) }
        });
        Err(TooFast { retry_after, delay })
    }

    fn lock(&self) -> MutexGuard<'_, PeerLimiterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request over the rate.
#[derive(Debug)]
pub struct TooFast {
    /// Time until the next request is allowed.
    pub retry_after: Duration,
    /// The delay of the answer; `None` if too many are delayed already: the connection is closed instead.
    pub delay: Option<Delay>,
}

/// A delayed answer. Dropping it frees its slot.
#[derive(Debug)]
pub struct Delay {
    length: Duration,
    peer: Arc<PeerLimiter>,
}

impl Delay {
    /// The length, from the time of the request.
    #[must_use]
    pub const fn length(&self) -> Duration {
        self.length
    }
}

impl Drop for Delay {
    fn drop(&mut self) {
        self.peer.lock().delayed -= 1;
    }
}

/// Limits the new tokens that the peers of one socket may force, per account.
#[derive(Debug)]
pub struct RefreshQuota {
    rate: Rate,
    state: Mutex<QuotaState>,
}

#[derive(Debug)]
struct QuotaState {
    limiters: HashMap<Account, Gcra>,
    /// At this size, entries that make no difference are dropped.
    sweep_at: usize,
}

/// The smallest size that is worth sweeping.
const MIN_SWEEP_SIZE: usize = 64;

impl RefreshQuota {
    /// Allows `rate` for each account.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, state: Mutex::new(QuotaState { limiters: HashMap::new(), sweep_at: MIN_SWEEP_SIZE }) }
    }

    /// Takes one of the account's. The error is the time until one is available.
    pub fn acquire(&self, account: &Account, now: Monotonic) -> Result<(), Duration> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(limiter) = state.limiters.get_mut(account) {
            return limiter.acquire(self.rate, now);
        }
        if state.limiters.len() >= state.sweep_at {
            state.limiters.retain(|_, limiter| !limiter.is_full(now));
            state.sweep_at = MIN_SWEEP_SIZE.max(2 * state.limiters.len());
        }
        state.limiters.entry(account.clone()).or_default().acquire(self.rate, now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Monotonic {
        Monotonic::new(Duration::from_millis(millis))
    }

    #[test]
    fn a_burst_is_given_at_once_and_then_one_by_one() {
        let (rate, mut limiter) = (Rate::per_second(10, 20), Gcra::default());
        for taken in 0..20 {
            assert_eq!(limiter.acquire(rate, at(5000)), Ok(()), "{taken}");
        }
        assert_eq!(limiter.acquire(rate, at(5000)), Err(Duration::from_millis(100)));
        assert_eq!(limiter.acquire(rate, at(5099)), Err(Duration::from_millis(1)));
        assert_eq!(limiter.acquire(rate, at(5100)), Ok(()));
        assert!(limiter.acquire(rate, at(5100)).is_err());
        assert!(!limiter.is_full(at(7099)) && limiter.is_full(at(7100)));
    }

    #[test]
    fn an_hours_rate_may_be_used_at_once() {
        let (rate, mut limiter) = (Rate::per_hour(2), Gcra::default());
        assert_eq!((limiter.acquire(rate, at(0)), limiter.acquire(rate, at(0))), (Ok(()), Ok(())));
        assert_eq!(limiter.acquire(rate, at(0)), Err(Duration::from_mins(30)));
    }

    #[test]
    fn the_ends_of_time_do_no_harm() {
        let mut limiter = Gcra::default();
        for rate in [Rate::per_second(0, 0), Rate::per_second(u32::MAX, u32::MAX), Rate::per_hour(1)] {
            for now in [Duration::MAX, Duration::ZERO] {
                limiter.acquire(rate, Monotonic::new(now)).ok();
            }
        }
    }

    #[test]
    fn each_account_has_its_own_and_what_makes_no_difference_is_forgotten() {
        let quota = RefreshQuota::new(Rate::per_hour(1));
        let account = |number: usize| format!("corp/{number}").parse().unwrap();
        for number in 0..1000 {
            assert_eq!(quota.acquire(&account(number), at(0)), Ok(()));
        }
        assert_eq!(quota.acquire(&account(7), at(0)), Err(Duration::from_hours(1)));
        let later = at(3_600_000);
        for number in 1000..3000 {
            assert_eq!(quota.acquire(&account(number), later), Ok(()));
        }
        let kept = quota.state.lock().unwrap().limiters.len();
        assert_eq!(kept, 2000, "those of an hour ago are gone");
    }

    #[test]
    fn a_peers_connections_share_its_rate_and_refusals_are_paced_by_it() {
        let limiter = RateLimiter::new(Rate::per_second(10, 20));
        for taken in 0..20 {
            assert!(limiter.of(1).acquire(at(5000)).is_ok(), "{taken}");
        }
        let mut held = Vec::new();
        for turn in 1..=30_u64 {
            let refused = limiter.of(1).acquire(at(5000)).unwrap_err();
            assert_eq!(refused.retry_after, Duration::from_millis(100));
            let delay = refused.delay.unwrap();
            let due = Duration::from_millis(100 * (turn - 1)).clamp(Duration::from_millis(100), MAX_ANSWER_DELAY);
            assert_eq!(delay.length(), due, "{turn}");
            held.push(delay);
        }
        assert!(limiter.of(2).acquire(at(5000)).is_ok(), "another user has its own");
        assert!(limiter.of(1).acquire(at(5100)).is_ok(), "refusals use none of it up");
        while held.len() < MAX_DELAYED_ANSWERS {
            held.push(limiter.of(1).acquire(at(5100)).unwrap_err().delay.unwrap());
        }
        assert!(limiter.of(1).acquire(at(5100)).unwrap_err().delay.is_none());
        held.pop();
        assert!(limiter.of(1).acquire(at(5100)).unwrap_err().delay.is_some());
    }

    proptest! {
        /// In every stretch of time there are at most the burst and what the rate gives in it; and who keeps to the rate
        /// is never refused.
        #[test]
        fn no_stretch_of_time_gives_more_than_the_rate(
            number in 1..50_u32, burst in 1..50_u32, steps in proptest::collection::vec(0..400_u64, 1..200),
        ) {
            let (rate, mut limiter) = (Rate::per_second(number, burst), Gcra::default());
            let mut now = 0;
            let mut given = Vec::new();
            for step in steps {
                now += step;
                match limiter.acquire(rate, at(now)) {
                    Ok(()) => given.push(now),
                    Err(wait) => {
                        prop_assert!(wait > Duration::ZERO && wait <= rate.period());
                        prop_assert!(limiter.acquire(rate, at(now).plus(wait)).is_ok());
                        given.push(now + u64::try_from(wait.as_millis()).unwrap());
                        now += u64::try_from(wait.as_millis()).unwrap() + 1;
                    }
                }
            }
            for (from, start) in given.iter().enumerate() {
                for (count, end) in given[from..].iter().enumerate() {
                    let allowed = u128::from(burst) + u128::from(end - start + 2) * u128::from(number) / 1000 + 1;
                    prop_assert!((count as u128) < allowed, "{count} from {start} to {end}");
                }
            }
        }

        #[test]
        fn who_keeps_to_the_rate_is_never_refused(number in 1..1000_u32, start in any::<u32>(), count in 1..500_u32) {
            let (rate, mut limiter) = (Rate::per_second(number, 1), Gcra::default());
            let mut now = at(start.into());
            for _ in 0..count {
                prop_assert!(limiter.acquire(rate, now).is_ok());
                now = now.plus(rate.period());
            }
        }
    }
}
