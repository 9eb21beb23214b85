//! The users on the other end of a socket.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use tokio::net::UnixStream;

/// The peer of a connection, as known to every request on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user id.
    pub uid: u32,
    /// The process that connected, if the kernel discloses it to this process.
    pub pid: Option<u32>,
}

impl Peer {
    /// The daemon's own user, for a router that is called in process.
    #[must_use]
    pub fn own() -> Self {
        Self { uid: own_uid(), pid: None }
    }
}

/// How many rejected users are warned of in the daemon's log. There may be thousands (subordinate user ids); the audit
/// log contains all of them.
const MAX_LOGGED_USERS: usize = 32;

/// The users that may connect, identified by the kernel (`SO_PEERCRED`).
#[derive(Debug)]
pub struct Peers {
    admitted: Vec<u32>,
    /// The users that a warning was logged for: one each, so that no user can fill the disk with warnings.
    refused: Mutex<BTreeSet<u32>>,
}

impl Peers {
    /// Allows only the daemon's own user.
    #[must_use]
    pub fn own() -> Self {
        Self::of(&[])
    }

    /// Allows these users; the daemon's own if the list is empty.
    #[must_use]
    pub fn of(uids: &[u32]) -> Self {
        let admitted = if uids.is_empty() { vec![own_uid()] } else { uids.to_vec() };
        Self { admitted, refused: Mutex::default() }
    }

    /// Whether users other than the daemon's own may connect.
    #[must_use]
    pub fn allows_other_users(&self) -> bool {
        self.admitted.iter().any(|uid| *uid != own_uid())
    }

    /// Returns the peer if it may connect. Otherwise logs it and returns what is known of it.
    pub(super) fn authenticate(&self, stream: &UnixStream, socket: &str) -> Result<Peer, Option<Peer>> {
        let found = stream.peer_cred().map_err(|error| {
            tracing::debug!(socket, %error, "refused a peer whose user is not known");
            None
        })?;
        let pid = found.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0);
        let peer = Peer { uid: found.uid(), pid };
        if self.admitted.contains(&peer.uid) {
            return Ok(peer);
        }
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() < MAX_LOGGED_USERS && refused.insert(peer.uid) {
            tracing::warn!(socket, uid = peer.uid, pid, "refused a peer; the next ones of this user are not logged");
        }
        Err(Some(peer))
    }

    /// Whether more than one user may connect.
    pub(super) const fn allows_several_users(&self) -> bool {
        self.admitted.len() > 1
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}
