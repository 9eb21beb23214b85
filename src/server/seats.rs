//! How many connections a socket has at once, and which of them goes when there is one too many.
//!
//! A connection that asks nothing can be closed at any time (RFC 9112 section 9.5): so whoever comes when all seats are
//! taken gets the one that has been idle for longest. Nobody is thrown out with a request under way; while all have one,
//! who comes waits, or is turned away if the seats are his own user's.

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

/// The seats of one socket.
#[derive(Debug)]
pub(super) struct Seats {
    most: usize,
    most_per_user: usize,
    state: Mutex<State>,
    /// Counts the ends of requests, so that it can be told who has been idle for longest.
    ends: AtomicU64,
    /// Somebody waits for a seat. Only then do requests ring at their end.
    waiting: AtomicBool,
    /// Rung when a seat is free or its holder idle.
    moved: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    taken: HashMap<u64, Arc<Holder>>,
    of_user: HashMap<u32, usize>,
}

#[derive(Debug)]
struct Holder {
    seats: Arc<Seats>,
    user: u32,
    /// How many requests are under way, or [`EVICTED`].
    requests: AtomicU32,
    idle_since: AtomicU64,
    evicted: Notify,
}

const EVICTED: u32 = u32::MAX;

/// What came of asking for a seat.
enum Asked {
    Taken(Seat),
    /// The user has all he may, and is using them.
    OverShare,
    Full,
}

impl Seats {
    pub(super) fn new(most: usize, most_per_user: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            most_per_user,
            state: Mutex::default(),
            ends: AtomicU64::default(),
            waiting: AtomicBool::default(),
            moved: Notify::new(),
        })
    }

    /// Takes a seat for a connection of that user, as soon as there is one; `None` when the user has his share. One
    /// connection waits at a time.
    pub(super) async fn take(self: &Arc<Self>, user: u32) -> Option<Seat> {
        let mut announced = false;
        let seat = loop {
            match self.ask(user) {
                Asked::Taken(seat) => break Some(seat),
                Asked::OverShare => break None,
                Asked::Full if announced => self.moved.notified().await,
                Asked::Full => {
                    // And then looks again: whoever was busy then will ring.
                    self.waiting.store(true, Ordering::SeqCst);
                    announced = true;
                }
            }
        };
        if announced {
            self.waiting.store(false, Ordering::SeqCst);
        }
        seat
    }

    fn ask(self: &Arc<Self>, user: u32) -> Asked {
        let mut state = self.lock();
        // A share that is all of them is none: whoever is alone waits like everybody.
        let share = Some(self.most_per_user).filter(|share| *share < self.most);
        if share.is_some_and(|share| state.of_user.get(&user).is_some_and(|seats| *seats >= share)) {
            if !state.evict(|holder| holder.user == user) {
                return Asked::OverShare;
            }
        } else if state.taken.len() >= self.most && !state.evict(|_| true) {
            return Asked::Full;
        }
        let holder = Arc::new(Holder {
            seats: Arc::clone(self),
            user,
            requests: AtomicU32::default(),
            idle_since: AtomicU64::new(self.ends.fetch_add(1, Ordering::Relaxed)),
            evicted: Notify::new(),
        });
        let number = state.next;
        state.next += 1;
        state.taken.insert(number, Arc::clone(&holder));
        *state.of_user.entry(user).or_default() += 1;
        Asked::Taken(Seat { number, holder })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes a seat away from the longest idle of those; `false` when none of them is idle.
    fn evict(&mut self, of: impl Fn(&Holder) -> bool) -> bool {
        loop {
            let idle = |holder: &Holder| of(holder) && holder.requests.load(Ordering::SeqCst) == 0;
            let idle = self.taken.iter().filter(|(_, holder)| idle(holder));
            let longest = idle.min_by_key(|(_, holder)| holder.idle_since.load(Ordering::Relaxed));
            let Some((number, holder)) = longest.map(|(number, holder)| (*number, Arc::clone(holder))) else {
                return false;
            };
            if holder.requests.compare_exchange(0, EVICTED, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                holder.evicted.notify_one();
                self.leave(number);
                return true;
            }
        }
    }

    fn leave(&mut self, number: u64) {
        if let Some(holder) = self.taken.remove(&number)
            && let Some(seats) = self.of_user.get_mut(&holder.user)
        {
            *seats -= 1;
            if *seats == 0 {
                self.of_user.remove(&holder.user);
            }
        }
    }
}

/// A connection's seat, free again when the value is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    number: u64,
    holder: Arc<Holder>,
}

impl Seat {
    /// Ends when the seat is taken away.
    pub(super) async fn evicted(&self) {
        self.holder.evicted.notified().await;
    }

    /// For the requests of the connection.
    pub(super) fn usher(&self) -> Usher {
        Usher(Arc::clone(&self.holder))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let seats = &self.holder.seats;
        seats.lock().leave(self.number);
        seats.moved.notify_one();
    }
}

/// Keeps the seat of a connection for as long as one of its requests is under way.
#[derive(Debug)]
pub(super) struct Usher(Arc<Holder>);

impl Usher {
    /// A request begins; `None` when the seat has just been taken away.
    pub(super) fn begin(&self) -> Option<Busy> {
        let one_more = |requests| (requests != EVICTED).then(|| requests + 1);
        let begun = self.0.requests.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more);
        begun.is_ok().then(|| Busy(Arc::clone(&self.0)))
    }
}

/// A request is under way until this value is dropped.
#[derive(Debug)]
pub(super) struct Busy(Arc<Holder>);

impl Drop for Busy {
    fn drop(&mut self) {
        let seats = &self.0.seats;
        self.0.idle_since.store(seats.ends.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        self.0.requests.fetch_sub(1, Ordering::SeqCst);
        if seats.waiting.load(Ordering::SeqCst) {
            seats.moved.notify_one();
        }
    }
}

/// A body that is a part of its request until it is sent.
#[derive(Debug)]
pub(super) struct Held<B> {
    body: B,
    _busy: Busy,
}

impl<B> Held<B> {
    pub(super) const fn new(body: B, busy: Busy) -> Self {
        Self { body, _busy: busy }
    }
}

impl<B: Body + Unpin> Body for Held<B> {
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

    fn now(seats: &Arc<Seats>, user: u32) -> Result<Seat, &'static str> {
        seats.take(user).now_or_never().ok_or("waits")?.ok_or("turned away")
    }

    fn evicted(seat: &Seat) -> bool {
        seat.evicted().now_or_never().is_some()
    }

    #[test]
    fn who_has_been_idle_for_longest_makes_room() {
        let seats = Seats::new(2, 2);
        let (first, second) = (now(&seats, ME).unwrap(), now(&seats, ME).unwrap());
        drop(first.usher().begin().unwrap());
        let third = now(&seats, ME).unwrap();
        assert!(evicted(&second) && second.usher().begin().is_none());
        let busy = first.usher().begin().unwrap();
        let _fourth = now(&seats, ME).unwrap();
        assert!(evicted(&third) && !evicted(&first));
        drop(busy);
        drop((second, third));
        assert_eq!(seats.lock().taken.len(), 2);
    }

    #[tokio::test]
    async fn while_all_are_busy_who_comes_waits_for_one_to_be_idle_or_gone() {
        let seats = Seats::new(1, 1);
        let first = now(&seats, ME).unwrap();
        let busy = first.usher().begin().unwrap();
        let waiting = seats.take(YOU);
        tokio::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(busy);
        let second = waiting.await.unwrap();
        assert!(evicted(&first));
        let _busy = second.usher().begin().unwrap();
        let waiting = seats.take(YOU);
        tokio::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        drop((first, second));
        waiting.await.unwrap();
    }

    #[test]
    fn one_user_takes_no_more_than_his_share_and_nobody_elses_seat() {
        let seats = Seats::new(10, 2);
        let yours = now(&seats, YOU).unwrap();
        let mine: Vec<_> = (0..2).map(|_| now(&seats, ME).unwrap()).collect();
        let busy: Vec<_> = mine.iter().map(|seat| seat.usher().begin().unwrap()).collect();
        assert_eq!(now(&seats, ME).err(), Some("turned away"), "his share is in use");
        assert!(now(&seats, YOU).is_ok());
        drop(busy);
        let third = now(&seats, ME).unwrap();
        assert!(evicted(&mine[0]) && !evicted(&yours));
        drop((mine, third, yours));
        assert!(seats.lock().taken.is_empty() && seats.lock().of_user.is_empty());
    }
}
