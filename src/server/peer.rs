//! Who is at the other end of a socket.

use tokio::net::UnixStream;

/// The peer of a connection, as every request on it knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its user id.
    pub uid: u32,
}

impl Peer {
    /// The daemon's own user, for a router that is called in process.
    #[must_use]
    pub fn own() -> Self {
        Self { uid: own_uid() }
    }
}

/// The users that may connect: by `SO_PEERCRED`, which the kernel vouches for.
#[derive(Debug, Clone)]
pub struct Peers(Vec<u32>);

impl Peers {
    /// Only the daemon's own user.
    #[must_use]
    pub fn own() -> Self {
        Self(vec![own_uid()])
    }

    /// These users; the daemon's own if there are none.
    #[must_use]
    pub fn of(uids: &[u32]) -> Self {
        if uids.is_empty() { Self::own() } else { Self(uids.to_vec()) }
    }

    /// Whether users other than the daemon's own may connect.
    #[must_use]
    pub fn beyond_own(&self) -> bool {
        self.0.iter().any(|uid| *uid != own_uid())
    }

    /// The peer, if it may go on. A stranger is logged.
    pub(super) fn admitted(&self, stream: &UnixStream, socket: &str) -> Option<Peer> {
        match stream.peer_cred() {
            Ok(peer) if self.0.contains(&peer.uid()) => Some(Peer { uid: peer.uid() }),
            Ok(peer) => {
                tracing::warn!(socket, uid = peer.uid(), pid = peer.pid(), "refused a peer");
                None
            }
            Err(error) => {
                tracing::warn!(socket, %error, "refused a peer whose user is not known");
                None
            }
        }
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}
