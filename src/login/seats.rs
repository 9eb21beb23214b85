//! How many logins may wait for their person at once. One that has ended takes no seat.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::LoginError;

/// Logins that wait for their person at once: each may hold a port and calls its provider now and then.
const MOST: usize = 100;

/// A person has one login under way, or a few for several agents; a socket that wants more is at odds with itself.
const MOST_PER_SOCKET: usize = 10;

/// When there are too many: about as long as a person needs for one.
const PAUSE: Duration = Duration::from_secs(10);

/// How many seats are taken, by socket.
#[derive(Debug, Default)]
pub(super) struct Seats(Mutex<HashMap<Arc<str>, usize>>);

impl Seats {
    /// Takes a seat until the value is dropped.
    pub(super) fn take(self: &Arc<Self>, socket: &Arc<str>) -> Result<Seat, LoginError> {
        let mut seats = self.lock();
        let taken = seats.get(socket).copied().unwrap_or(0);
        if taken >= MOST_PER_SOCKET || seats.values().sum::<usize>() >= MOST {
            return Err(LoginError::TooMany { wait: PAUSE });
        }
        seats.insert(Arc::clone(socket), taken + 1);
        Ok(Seat { seats: Arc::clone(self), socket: Arc::clone(socket) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of them.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    socket: Arc<str>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = self.seats.lock();
        if let Some(taken) = seats.get_mut(&self.socket) {
            *taken -= 1;
            if *taken == 0 {
                seats.remove(&self.socket);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_wait_at_once_and_a_seat_is_free_again_with_its_login() {
        let seats = Arc::<Seats>::default();
        let take = |name: &str| seats.take(&name.into());
        let mut taken = Vec::new();
        for socket in 0..10 {
            for _ in 0..MOST_PER_SOCKET {
                taken.push(take(&socket.to_string()).unwrap());
            }
            assert!(matches!(take(&socket.to_string()), Err(LoginError::TooMany { .. })));
        }
        assert!(take("new").is_err());
        taken.pop();
        taken.push(take("new").unwrap());
        taken.clear();
        assert!(seats.lock().is_empty());
    }
}
