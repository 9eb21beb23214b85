//! How much a peer may ask for.
//!
//! Owns: [`Rate`] and the [`Gcra`] that measures it out, what the limits are unless configured, how many requests each
//! peer of a socket has made ([`RateLimiter`]), and how many new tokens a socket has had of each account ([`RefreshQuota`]).
//!
//! Invariants:
//! 1. A limiter is pure: it is told the time, and no clock makes it panic or give more than its rate.
//! 2. What is remembered of an account is forgotten once it makes no difference.
//!
//! Must not know: what is limited, and how it is refused.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{account::Account, clock::Monotonic};

/// So many at once, and so many in a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    number: u32,
    whole: Duration,
    burst: u32,
}

impl Rate {
    /// `number` each second, `burst` at once. Zero counts as one.
    #[must_use]
    pub const fn per_second(number: u32, burst: u32) -> Self {
        Self { number, whole: Duration::from_secs(1), burst }
    }

    /// `number` each hour, all of them at once if need be. Zero counts as one.
    #[must_use]
    pub const fn per_hour(number: u32) -> Self {
        Self { number, whole: Duration::from_hours(1), burst: number }
    }

    /// One in each `period`, `burst` at once. Zero counts as one.
    #[must_use]
    pub const fn every(period: Duration, burst: u32) -> Self {
        Self { number: 1, whole: period, burst }
    }

    /// From one to the next, once the burst is used up.
    fn period(self) -> Duration {
        self.whole / self.number.max(1)
    }
}

/// What is left of a rate. A new one is full.
#[derive(Debug, Clone, Copy)]
pub struct Gcra {
    /// When it is full again: the generic cell rate algorithm (ITU-T I.371, annex A) needs no more than this.
    full_at: Monotonic,
}

impl Default for Gcra {
    fn default() -> Self {
        Self { full_at: Monotonic::new(Duration::ZERO) }
    }
}

impl Gcra {
    /// Takes one out. The error says when there will be one.
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

    /// Takes one out that there may be none of yet. Gives when there is, at most `longest` from now: those who come while
    /// that many wait are let through together.
    pub fn reserve(&mut self, rate: Rate, now: Monotonic, longest: Duration) -> Duration {
        let wait = self.full_at.since(now).min(longest);
        self.full_at = now.plus(wait).plus(rate.period());
        wait
    }

    /// Whether it is as good as new.
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
    /// Of one user; `None`: half of them where there are several users, else all.
    pub connections_per_user: Option<usize>,
    /// Requests of one user, on however many connections.
    pub rate: Option<Rate>,
    /// Refreshes that its peers may force, of each account.
    pub forced_refreshes: Option<Rate>,
}

impl SocketLimits {
    /// For the person's own programs: none but those of the machine.
    pub const HOST: Self = Self { connections: None, connections_per_user: None, rate: None, forced_refreshes: None };

    /// For programs that are not trusted: an agent in a loop has a few connections and asks a few times a second; it has
    /// a bad token a few times a day.
    pub const SANDBOX: Self = Self {
        connections: Some(1024),
        connections_per_user: None,
        rate: Some(Rate::per_second(60, 120)),
        forced_refreshes: Some(Rate::per_hour(20)),
    };
}

/// How many logins may wait for their person at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginLimits {
    /// Altogether: each may hold a port, and asks its provider now and then.
    pub total: usize,
    /// Of one socket.
    pub per_socket: usize,
}

/// A tenth of all logins is the host's alone, and these at least: a person who has them begins another and cancels one.
const MIN_HOST_LOGINS: usize = 3;

impl LoginLimits {
    /// How many the sockets of role `sandbox` may have altogether.
    #[must_use]
    pub fn of_sandboxes(&self) -> usize {
        self.total - (self.total / 10).max(MIN_HOST_LOGINS).min(self.total / 2)
    }
}

impl Default for LoginLimits {
    /// A person has one login under way, or a few for several agents; a socket that wants more is at odds with itself.
    fn default() -> Self {
        Self { total: 100, per_socket: 10 }
    }
}

/// The request rate of one socket's peers: each user has one, for all connections. A new connection renews nothing.
///
/// A request over the rate is answered late: a client that asks again at once is slowed down to the rate, and costs no
/// more than one that keeps to it.
#[derive(Debug)]
pub struct RateLimiter {
    rate: Rate,
    /// A socket's users are listed, so there are few.
    peers: Mutex<HashMap<u32, Arc<PeerLimiter>>>,
}

impl RateLimiter {
    /// So many requests of each user.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, peers: Mutex::default() }
    }

    /// What that user has left.
    #[must_use]
    pub fn of(&self, uid: u32) -> Arc<PeerLimiter> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(PeerLimiter { rate: self.rate, state: Mutex::default() });
        Arc::clone(peers.entry(uid).or_insert_with(new))
    }
}

/// The longest that an answer to a request over the rate is held back: shorter than a client's patience.
const MAX_ANSWER_DELAY: Duration = Duration::from_secs(1);

/// How many such answers of one peer are held back at once: as many as a sandbox has connections unless told.
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
    /// Paces the answers to requests over the rate.
    refusals: Gcra,
    delayed: usize,
}

impl PeerLimiter {
    /// Counts a request. The error says when there may be another, and when this one is to be answered.
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
    /// When there may be another.
    pub retry_after: Duration,
    /// How long its answer is held back; `None` where too many are already: its connection is closed instead.
    pub delay: Option<Delay>,
}

/// An answer that is held back, and its place among those.
#[derive(Debug)]
pub struct Delay {
    length: Duration,
    peer: Arc<PeerLimiter>,
}

impl Delay {
    /// From when it was asked for.
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

/// How much the peers of one socket have had of each account.
#[derive(Debug)]
pub struct RefreshQuota {
    rate: Rate,
    state: Mutex<QuotaState>,
}

#[derive(Debug)]
struct QuotaState {
    limiters: HashMap<Account, Gcra>,
    /// At so many, those that make no difference are looked for.
    sweep_at: usize,
}

/// Fewer are not worth looking through.
const MIN_SWEEP_SIZE: usize = 64;

impl RefreshQuota {
    /// So much of each account.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        Self { rate, state: Mutex::new(QuotaState { limiters: HashMap::new(), sweep_at: MIN_SWEEP_SIZE }) }
    }

    /// Takes one of the account's. The error says when there will be one.
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
