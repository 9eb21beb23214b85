//! Opens and closes the sockets of sandboxes.

use std::{fs, io};

use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::Services;
use crate::{
    error_chain::error_chain,
    limits::SocketLimits,
    policy::Policy,
    sandbox::{self, Sandbox},
    secret::CapabilityHash,
    server::{
        Api, SocketServices,
        listener::{Listener, ServeOptions, Shutdown, SocketState},
        peer::Peers,
    },
};

/// Serves sandboxes with the daemon's shared services.
#[derive(Debug)]
pub(super) struct SandboxSockets {
    pub(super) services: Services,
    /// Connections allowed to each.
    pub(super) share: usize,
    /// The daemon's shutdown.
    pub(super) shutdown: Shutdown,
}

/// A sandbox's socket, served by a task that ends with this value.
#[derive(Debug)]
pub(super) struct OpenSocket {
    name: String,
    serving: JoinSet<()>,
    immediate: CancellationToken,
}

impl OpenSocket {
    async fn wait_closed(&mut self) {
        while self.serving.join_next().await.is_some() {}
    }
}

/// A container may have mounted a sandbox's directory, so file system calls in it are made on a blocking thread, never
/// on one that answers requests.
impl sandbox::SocketHost for SandboxSockets {
    type Bound = Listener;
    type OpenSocket = OpenSocket;

    async fn bind(&self, sandbox: &Sandbox) -> Result<Listener, String> {
        let (name, path) = (sandbox.socket_name(), sandbox.socket());
        let bound = spawn_blocking(move || Listener::bind(&name, &path, Peers::own())).await;
        bound.map_err(|error| error.to_string())?.map_err(|error| error_chain(&error))
    }

    fn open(&self, listener: Listener, sandbox: &Sandbox, capability: Option<CapabilityHash>) -> OpenSocket {
        let name = sandbox.socket_name();
        let offered = self.services.of_socket(Policy::sandbox(sandbox.allowed.clone()), &name);
        let options =
            ServeOptions { limits: SocketLimits::SANDBOX, share: self.share, audit: self.services.audit.clone() };
        let api = Api::new(SocketServices { capability, ..offered }.into());
        let immediate = self.shutdown.immediate.child_token();
        let shutdown = Shutdown { graceful: self.shutdown.graceful.clone(), immediate: immediate.clone() };
        let mut serving = JoinSet::new();
        serving.spawn(async move { listener.serve(api, options, &shutdown).await });
        OpenSocket { name, serving, immediate }
    }

    async fn close_now(&self, mut socket: OpenSocket) {
        socket.immediate.cancel();
        self.services.logins.cancel_all_of_socket(&socket.name);
        socket.wait_closed().await;
        // Again, for a login that a request started meanwhile.
        self.services.logins.cancel_all_of_socket(&socket.name);
    }

    async fn drain(&self, mut socket: OpenSocket) {
        socket.wait_closed().await;
    }

    async fn remove_files(&self, sandbox: &Sandbox) {
        let sandbox = sandbox.clone();
        // It logs by itself what it cannot remove.
        spawn_blocking(move || remove_files(&sandbox)).await.ok();
    }
}

fn remove_files(sandbox: &Sandbox) {
    let removed = match Listener::inspect(&sandbox.socket(), &Peers::own()) {
        Ok(SocketState::Stale) => fs::remove_file(sandbox.socket()),
        Ok(SocketState::Absent | SocketState::Live) | Err(_) => Ok(()),
    };
    match removed.and_then(|()| fs::remove_dir(&sandbox.directory)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            // A program that had the directory mounted may have put something there, which is not ours to remove.
            tracing::warn!(directory = %sandbox.directory.display(), %error, "could not remove a sandbox's directory");
        }
        Ok(()) | Err(_) => {}
    }
}
