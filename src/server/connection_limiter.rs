//! Limits the connections of one socket, in total and per user, and evicts idle connections to make room.
//!
//! A server may close an idle connection at any time (RFC 9112 section 9.5). When the limit is reached, a new connection
//! takes the permit of the one that has been idle for longest. A connection with a request under way is never evicted.
//! While all of them have one, a new connection waits, or is closed if its own user is at the limit for one user.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

/// The connection limiter of one socket.
#[derive(Debug)]
pub(super) struct ConnectionLimiter {
    max_connections: usize,
    max_per_user: usize,
    state: Mutex<State>,
    /// Incremented whenever a request ends: orders connections by how long they have been idle.
    idle_sequence: AtomicU64,
    /// A connection waits for a permit. Requests signal `changed` at their end only then.
    has_waiter: AtomicBool,
    /// Signalled when a permit is released or a connection becomes idle.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    connections: HashMap<u64, Arc<ConnectionState>>,
    per_user: HashMap<u32, usize>,
}

#[derive(Debug)]
struct ConnectionState {
    limiter: Arc<ConnectionLimiter>,
    user: u32,
    /// How many requests are under way, or [`EVICTED`].
    requests: AtomicU32,
    idle_since: AtomicU64,
    evicted: Notify,
}

const EVICTED: u32 = u32::MAX;

/// The result of one try to acquire a permit.
enum Acquired {
    Granted(ConnectionPermit),
    /// The user is at the limit for one user, and none of the user's connections is idle.
    UserLimit,
    /// The socket is at its limit, and none of its connections is idle.
    AtLimit,
}

impl ConnectionLimiter {
    pub(super) fn new(max_connections: usize, max_per_user: usize) -> Arc<Self> {
        Arc::new(Self {
            max_connections,
            max_per_user,
            state: Mutex::default(),
            idle_sequence: AtomicU64::default(),
            has_waiter: AtomicBool::default(),
            changed: Notify::new(),
        })
    }

    /// Acquires a permit for a connection of `user`, waiting for one if necessary; `None` when the user is at the limit.
    /// Only one caller may wait at a time.
    pub(super) async fn acquire(self: &Arc<Self>, user: u32) -> Option<ConnectionPermit> {
        let mut announced = false;
        let permit = loop {
            match self.try_acquire(user) {
                Acquired::Granted(permit) => break Some(permit),
                Acquired::UserLimit => break None,
                Acquired::AtLimit if announced => self.changed.notified().await,
                Acquired::AtLimit => {
                    // Try once more: a request that was under way before this store may have ended without a signal.
                    self.has_waiter.store(true, Ordering::SeqCst);
                    announced = true;
                }
            }
        };
        if announced {
            self.has_waiter.store(false, Ordering::SeqCst);
        }
        permit
    }

    fn try_acquire(self: &Arc<Self>, user: u32) -> Acquired {
        let mut state = self.lock();
        // A per-user limit equal to the total is no limit: the connection waits instead of being closed.
        let share = Some(self.max_per_user).filter(|share| *share < self.max_connections);
        if share.is_some_and(|share| state.per_user.get(&user).is_some_and(|held| *held >= share)) {
            if !state.evict(|connection| connection.user == user) {
                return Acquired::UserLimit;
            }
        } else if state.connections.len() >= self.max_connections && !state.evict(|_| true) {
            return Acquired::AtLimit;
        }
        let connection = Arc::new(ConnectionState {
            limiter: Arc::clone(self),
            user,
            requests: AtomicU32::default(),
            idle_since: AtomicU64::new(self.idle_sequence.fetch_add(1, Ordering::Relaxed)),
            evicted: Notify::new(),
        });
        let number = state.next;
        state.next += 1;
        state.connections.insert(number, Arc::clone(&connection));
        *state.per_user.entry(user).or_default() += 1;
        Acquired::Granted(ConnectionPermit { number, connection })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Evicts the longest idle connection among those that match; `false` when none of them is idle.
    fn evict(&mut self, of: impl Fn(&ConnectionState) -> bool) -> bool {
        loop {
            let idle = |connection: &ConnectionState| of(connection) && connection.requests.load(Ordering::SeqCst) == 0;
            let idle = self.connections.iter().filter(|(_, connection)| idle(connection));
            let longest = idle.min_by_key(|(_, connection)| connection.idle_since.load(Ordering::Relaxed));
            let Some((number, connection)) = longest.map(|(number, connection)| (*number, Arc::clone(connection)))
            else {
                return false;
            };
            if connection.requests.compare_exchange(0, EVICTED, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                connection.evicted.notify_one();
                self.remove(number);
                return true;
            }
        }
    }

    fn remove(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number)
            && let Some(held) = self.per_user.get_mut(&connection.user)
        {
            *held -= 1;
            if *held == 0 {
                self.per_user.remove(&connection.user);
            }
        }
    }
}

/// A connection's permit. Dropping it releases the permit.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    number: u64,
    connection: Arc<ConnectionState>,
}

impl ConnectionPermit {
    /// Completes when the connection has been evicted.
    pub(super) async fn evicted(&self) {
        self.connection.evicted.notified().await;
    }

    /// Tracks the requests of the connection.
    pub(super) fn request_tracker(&self) -> RequestTracker {
        RequestTracker(Arc::clone(&self.connection))
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let limiter = &self.connection.limiter;
        limiter.lock().remove(self.number);
        limiter.changed.notify_one();
    }
}

/// Registers the requests of a connection, which protect it from eviction.
#[derive(Debug)]
pub(super) struct RequestTracker(Arc<ConnectionState>);

impl RequestTracker {
    /// Registers the start of a request; `None` when the connection has just been evicted.
    pub(super) fn begin_request(&self) -> Option<ActiveRequest> {
        let one_more = |requests| (requests != EVICTED).then(|| requests + 1);
        let begun = self.0.requests.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more);
        begun.is_ok().then(|| ActiveRequest(Arc::clone(&self.0)))
    }
}

/// A request under way, until this value is dropped.
#[derive(Debug)]
pub(super) struct ActiveRequest(Arc<ConnectionState>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        let limiter = &self.0.limiter;
        self.0.idle_since.store(limiter.idle_sequence.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        self.0.requests.fetch_sub(1, Ordering::SeqCst);
        if limiter.has_waiter.load(Ordering::SeqCst) {
            limiter.changed.notify_one();
        }
    }
}

/// A response body that keeps its request registered until it has been sent.
#[derive(Debug)]
pub(super) struct TrackedBody<B> {
    body: B,
    _request: ActiveRequest,
}

impl<B> TrackedBody<B> {
    pub(super) const fn new(body: B, request: ActiveRequest) -> Self {
        Self { body, _request: request }
    }
}

impl<B: Body + Unpin> Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const ME: u32 = 1000;
    const YOU: u32 = 1001;

    fn now(limiter: &Arc<ConnectionLimiter>, user: u32) -> Result<ConnectionPermit, &'static str> {
        limiter.acquire(user).now_or_never().ok_or("waits")?.ok_or("turned away")
    }

    fn evicted(permit: &ConnectionPermit) -> bool {
        permit.evicted().now_or_never().is_some()
    }

    #[test]
    fn the_longest_idle_connection_makes_room() {
        let limiter = ConnectionLimiter::new(2, 2);
        let (first, second) = (now(&limiter, ME).unwrap(), now(&limiter, ME).unwrap());
        drop(first.request_tracker().begin_request().unwrap());
        let third = now(&limiter, ME).unwrap();
        assert!(evicted(&second) && second.request_tracker().begin_request().is_none());
        let request = first.request_tracker().begin_request().unwrap();
        let _fourth = now(&limiter, ME).unwrap();
        assert!(evicted(&third) && !evicted(&first));
        drop(request);
        drop((second, third));
        assert_eq!(limiter.lock().connections.len(), 2);
    }

    #[tokio::test]
    async fn while_all_are_busy_a_new_connection_waits_for_one_to_be_idle_or_gone() {
        let limiter = ConnectionLimiter::new(1, 1);
        let first = now(&limiter, ME).unwrap();
        let request = first.request_tracker().begin_request().unwrap();
        let waiting = limiter.acquire(YOU);
        tokio::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(request);
        let second = waiting.await.unwrap();
        assert!(evicted(&first));
        let _request = second.request_tracker().begin_request().unwrap();
        let waiting = limiter.acquire(YOU);
        tokio::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        drop((first, second));
        waiting.await.unwrap();
    }

    #[test]
    fn a_user_takes_no_more_than_the_limit_and_no_permit_of_another_user() {
        let limiter = ConnectionLimiter::new(10, 2);
        let yours = now(&limiter, YOU).unwrap();
        let mine: Vec<_> = (0..2).map(|_| now(&limiter, ME).unwrap()).collect();
        let request: Vec<_> = mine.iter().map(|permit| permit.request_tracker().begin_request().unwrap()).collect();
        assert_eq!(now(&limiter, ME).err(), Some("turned away"), "all permits of the user are in use");
        assert!(now(&limiter, YOU).is_ok());
        drop(request);
        let third = now(&limiter, ME).unwrap();
        assert!(evicted(&mine[0]) && !evicted(&yours));
        drop((mine, third, yours));
        assert!(limiter.lock().connections.is_empty() && limiter.lock().per_user.is_empty());
    }
}
