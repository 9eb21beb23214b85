//! How a sandbox's socket is opened and closed.

use std::{fs, io, path::PathBuf};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Parts, chain};
use crate::{
    config::SocketConfig,
    limits::SocketLimits,
    policy::Policy,
    sandbox::{self, Sandbox},
    secret::CapabilityHash,
    server::{
        Api,
        listener::{Ending, Listener, Occupant, SANDBOXES, Terms},
        peer::Peers,
    },
};

/// Where the sandboxes of a daemon with this host's socket are: in the socket's directory, which is the daemon's own
/// wherever it is.
pub(super) fn root(host: &SocketConfig) -> PathBuf {
    host.path.with_file_name(SANDBOXES)
}

/// Serves what the daemon's other sockets serve.
#[derive(Debug)]
pub(super) struct Doors {
    pub(super) parts: Parts,
    /// Connections at once to each.
    pub(super) share: usize,
    /// The daemon's end.
    pub(super) ending: Ending,
}

/// A sandbox's socket, served by a task that ends with this value.
#[derive(Debug)]
pub(super) struct Door {
    name: String,
    serving: JoinSet<()>,
    at_once: CancellationToken,
}

impl Door {
    async fn closed(&mut self) {
        while self.serving.join_next().await.is_some() {}
    }
}

impl sandbox::Doors for Doors {
    type Door = Door;

    fn open(&self, sandbox: &Sandbox, capability: Option<CapabilityHash>) -> Result<Door, String> {
        let name = sandbox.socket_name();
        let listener = Listener::bind(&name, &sandbox.socket(), Peers::own()).map_err(|error| chain(&error))?;
        let state = self.parts.state(Policy::sandbox(sandbox.allowed.clone()), &name).guarded_by(capability);
        let terms = Terms { limits: SocketLimits::SANDBOX, share: self.share, audit: self.parts.audit.clone() };
        let api = Api::new(state);
        let at_once = self.ending.at_once.child_token();
        let ending = Ending { orderly: self.ending.orderly.clone(), at_once: at_once.clone() };
        let mut serving = JoinSet::new();
        serving.spawn(async move { listener.serve(api, terms, &ending).await });
        Ok(Door { name, serving, at_once })
    }

    async fn cut(&self, mut door: Door) {
        door.at_once.cancel();
        door.closed().await;
        self.parts.logins.abandon(&door.name);
    }

    async fn leave(&self, mut door: Door) {
        door.closed().await;
    }

    fn clear(&self, sandbox: &Sandbox) {
        let removed = match Listener::look(&sandbox.socket(), &Peers::own()) {
            Ok(Occupant::Dead) => fs::remove_file(sandbox.socket()),
            Ok(Occupant::Nobody | Occupant::Living) | Err(_) => Ok(()),
        };
        match removed.and_then(|()| fs::remove_dir(&sandbox.directory)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                // Whoever had it mounted may have put something there: it is not ours to remove.
                tracing::warn!(directory = %sandbox.directory.display(), %error, "a sandbox's directory stays behind");
            }
            Ok(()) | Err(_) => {}
        }
    }
}
