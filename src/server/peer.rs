//! Who is at the other end of a socket.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use tokio::net::UnixStream;

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
    pub fn beyond_own(&self) -> bool {
        self.admitted.iter().any(|uid| *uid != own_uid())
    }

    /// Whether the peer may go on. A stranger is logged.
    pub(super) fn admits(&self, stream: &UnixStream, socket: &str) -> bool {
        match stream.peer_cred() {
            Ok(peer) if self.admitted.contains(&peer.uid()) => true,
            Ok(peer) => {
                let (uid, pid) = (peer.uid(), peer.pid());
                if self.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(uid) {
                    tracing::warn!(socket, uid, pid, "refused a peer; the next ones of this user are not logged");
                }
                false
            }
            Err(error) => {
                tracing::debug!(socket, %error, "refused a peer whose user is not known");
                false
            }
        }
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}
