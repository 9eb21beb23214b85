//! How many logins may wait for their person at once. One that has ended takes no seat.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::LoginError;
use crate::limits::LoginLimits;

/// When there are too many: about as long as a person needs for one.
const PAUSE: Duration = Duration::from_secs(10);

/// How many seats are taken, by socket.
#[derive(Debug)]
pub(super) struct Seats {
    limits: LoginLimits,
    taken: Mutex<HashMap<Arc<str>, usize>>,
}

impl Seats {
    pub(super) fn new(limits: LoginLimits) -> Self {
        Self { limits, taken: Mutex::default() }
    }

    /// Takes a seat until the value is dropped.
    pub(super) fn take(self: &Arc<Self>, socket: &Arc<str>) -> Result<Seat, LoginError> {
        let mut seats = self.lock();
        let taken = seats.get(socket).copied().unwrap_or(0);
        if taken >= self.limits.per_socket || seats.values().sum::<usize>() >= self.limits.total {
            return Err(LoginError::TooMany { wait: PAUSE });
        }
        seats.insert(Arc::clone(socket), taken + 1);
        Ok(Seat { seats: Arc::clone(self), socket: Arc::clone(socket) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
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
        let limits = LoginLimits { total: 30, per_socket: 3 };
        let seats = Arc::new(Seats::new(limits));
        let take = |name: &str| seats.take(&name.into());
        let mut taken = Vec::new();
        for socket in 0..10 {
            for _ in 0..limits.per_socket {
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
