//! Limits the number of pending logins, and how many logins a sandbox may start. An ended login holds no permit, but
//! its start still counts against the rate: its provider was called.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{LoginError, Owner};
use crate::{
    clock::Monotonic,
    limits::{Gcra, LoginLimits, Rate},
    policy::Role,
};

/// `Retry-After` when too many logins are pending: about as long as a person needs for one.
const TOO_MANY_RETRY_AFTER: Duration = Duration::from_secs(10);

/// How many logins a sandbox's socket may start, whatever becomes of them: more than a person starts, and fewer than a
/// provider would take for an attack.
const SANDBOX_LOGIN_RATE: Rate = Rate::every(Duration::from_secs(30), 10);

/// From this number of sockets on, limiters that are back at full quota are dropped.
const SWEEP_THRESHOLD: usize = 128;

/// The pending logins and the start rates, by socket.
#[derive(Debug)]
pub(super) struct LoginLimiter {
    limits: LoginLimits,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of pending logins, by socket.
    active: HashMap<Arc<str>, (Role, usize)>,
    /// The start rates of the sockets of role `sandbox`.
    started: HashMap<Arc<str>, Gcra>,
}

impl State {
    fn sum(&self, of: impl Fn(Role) -> bool) -> usize {
        self.active.values().filter(|(role, _)| of(*role)).map(|(_, active)| active).sum()
    }
}

impl LoginLimiter {
    pub(super) fn new(limits: LoginLimits) -> Self {
        Self { limits, state: Mutex::default() }
    }

    /// Acquires a permit, which is released when the value is dropped.
    pub(super) fn acquire(self: &Arc<Self>, owner: &Owner, now: Monotonic) -> Result<LoginPermit, LoginError> {
        let mut state = self.lock();
        let active = state.active.get(&owner.socket).map_or(0, |(_, active)| *active);
        let sandbox = owner.role == Role::Sandbox;
        let full = state.sum(|_| true) >= self.limits.total
            || (sandbox && state.sum(|role| role == Role::Sandbox) >= self.limits.of_sandboxes());
        if active >= self.limits.per_socket || full {
            return Err(LoginError::TooMany { wait: TOO_MANY_RETRY_AFTER });
        }
        if sandbox {
            if state.started.len() >= SWEEP_THRESHOLD {
                state.started.retain(|_, limiter| !limiter.is_full(now));
            }
            let limiter = state.started.entry(Arc::clone(&owner.socket)).or_default();
            limiter.acquire(SANDBOX_LOGIN_RATE, now).map_err(|wait| LoginError::TooOften { wait })?;
        }
        state.active.insert(Arc::clone(&owner.socket), (owner.role, active + 1));
        Ok(LoginPermit { limiter: Arc::clone(self), socket: Arc::clone(&owner.socket) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A permit for one pending login.
#[derive(Debug)]
pub(super) struct LoginPermit {
    limiter: Arc<LoginLimiter>,
    socket: Arc<str>,
}

impl Drop for LoginPermit {
    fn drop(&mut self) {
        let mut state = self.limiter.lock();
        if let Some((_, active)) = state.active.get_mut(&self.socket) {
            *active -= 1;
            if *active == 0 {
                state.active.remove(&self.socket);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Monotonic = Monotonic::new(Duration::from_hours(1));

    fn owner(socket: &str, role: Role) -> Owner {
        Owner { socket: socket.into(), role, uid: 1000 }
    }

    #[test]
    fn only_so_many_wait_at_once_and_a_seat_is_free_again_with_its_login() {
        let limits = LoginLimits { total: 30, per_socket: 3 };
        let limiter = Arc::new(LoginLimiter::new(limits));
        let take = |name: &str| limiter.acquire(&owner(name, Role::Host), NOW);
        let mut active = Vec::new();
        for socket in 0..10 {
            for _ in 0..limits.per_socket {
                active.push(take(&socket.to_string()).unwrap());
            }
            assert!(matches!(take(&socket.to_string()), Err(LoginError::TooMany { .. })));
        }
        assert!(take("new").is_err());
        active.pop();
        active.push(take("new").unwrap());
        active.clear();
        assert!(limiter.lock().active.is_empty());
    }

    #[test]
    fn sandboxes_leave_a_share_to_the_host() {
        for (total, of_sandboxes) in [(100, 90), (20, 17), (4, 2), (2, 1), (1, 1)] {
            let limits = LoginLimits { total, per_socket: 10 };
            assert_eq!(limits.of_sandboxes(), of_sandboxes, "{total}");
            let limiter = Arc::new(LoginLimiter::new(limits));
            let take = |name: usize, role| limiter.acquire(&owner(&format!("{role:?}{name}"), role), NOW);
            let active: Vec<_> = (0..total).map_while(|at| take(at, Role::Sandbox).ok()).collect();
            assert_eq!(active.len(), of_sandboxes, "{total}");
            let rest: Vec<_> = (0..total).map_while(|at| take(at, Role::Host).ok()).collect();
            assert_eq!(rest.len(), total - of_sandboxes, "{total}");
        }
    }

    #[test]
    fn what_a_sandbox_begins_is_counted_whatever_becomes_of_it() {
        let limiter = Arc::new(LoginLimiter::new(LoginLimits::default()));
        let take = |name: &str, role, seconds| {
            limiter.acquire(&owner(name, role), NOW.plus(Duration::from_secs(seconds))).map(drop)
        };
        for _ in 0..10 {
            take("box", Role::Sandbox, 0).unwrap();
        }
        let refused = take("box", Role::Sandbox, 0).unwrap_err();
        assert!(matches!(refused, LoginError::TooOften { wait } if wait == Duration::from_secs(30)), "{refused:?}");
        assert!(take("box", Role::Sandbox, 29).is_err());
        take("other", Role::Sandbox, 0).unwrap();
        take("box", Role::Sandbox, 30).unwrap();
        assert!(take("box", Role::Sandbox, 30).is_err());
        for _ in 0..100 {
            take("host", Role::Host, 0).unwrap();
        }
        for socket in 0..2000 {
            take(&socket.to_string(), Role::Sandbox, 3600).unwrap();
        }
        assert!(limiter.lock().started.len() <= 2000);
        take("last", Role::Sandbox, 7200).unwrap();
        assert_eq!(limiter.lock().started.len(), 1, "what makes no difference is forgotten");
    }
}
