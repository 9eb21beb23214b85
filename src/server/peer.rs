//! Who is at the other end of a socket.

use tokio::net::UnixStream;

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

    /// Whether the peer may go on. A stranger is logged.
    pub(super) fn admits(&self, stream: &UnixStream, socket: &str) -> bool {
        match stream.peer_cred() {
            Ok(peer) if self.0.contains(&peer.uid()) => true,
            Ok(peer) => {
                tracing::warn!(socket, uid = peer.uid(), pid = peer.pid(), "refused a peer");
                false
            }
            Err(error) => {
                tracing::warn!(socket, %error, "refused a peer whose user is not known");
                false
            }
        }
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}
