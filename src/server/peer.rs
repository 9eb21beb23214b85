//! Who is at the other end of a socket.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use tokio::net::UnixStream;

/// The peer of a connection, as every request on it knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user id.
    pub uid: u32,
    /// The process that connected, where the kernel tells and this process may know of it.
    pub pid: Option<u32>,
}

impl Peer {
    /// The daemon's own user, for a router that is called in process.
    #[must_use]
    pub fn own() -> Self {
        Self { uid: own_uid(), pid: None }
    }
}

/// For so many refused users there is a warning in the daemon's log. A stranger may be thousands (subordinate user ids);
/// the audit log tells of all.
const MAX_LOGGED_USERS: usize = 32;

/// The users that may connect: by `SO_PEERCRED`, which the kernel vouches for.
#[derive(Debug)]
pub struct Peers {
    admitted: Vec<u32>,
    /// Who was refused: a stranger could fill the disk with warnings, so there is one for each.
    refused: Mutex<BTreeSet<u32>>,
}

impl Peers {
    /// Only the daemon's own user.
    #[must_use]
    pub fn own() -> Self {
        Self::of(&[])
    }

    /// These users; the daemon's own if there are none.
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

    /// The peer, if it may go on; else it is logged, and given back as far as it is known.
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

    /// Whether more users than one may connect.
    pub(super) const fn allows_several_users(&self) -> bool {
        self.admitted.len() > 1
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}
