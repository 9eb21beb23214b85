//! The listening sockets: serving and shutting down. Creating them is the task of `listener/bind.rs`.
//!
//! Invariants:
//! 1. On shutdown, only the socket that this listener created is removed, without waiting for anything.
//! 2. No peer can hold more than its socket's share of the open files, nor hold a connection without sending requests
//!    or without reading the responses. An idle connection makes room for a new one.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::extract::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use super::{
    Api,
    body_monitor::monitor,
    connection::{Connection, RequestContext},
    connection_limiter::{ConnectionLimiter, ConnectionPermit, TrackedBody},
    head_timer::HeadTimer,
    peer::{Peer, Peers},
    shared_stream::SharedStream,
    write_timeout::WriteTimeoutStream,
};
use crate::{
    audit::{Audit, Event, Origin, Subject, labels},
    limits::{RateLimiter, RefreshQuota, SocketLimits},
    problem_code::ProblemCode,
};

mod bind;

pub use bind::{BindError, BindLock, SANDBOXES_DIRECTORY, SocketState};

/// How long a connection may stay idle, before its first request and between two.
const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// The longest head of a request, and so the most memory that a peer can make the daemon use for a connection, apart
/// from a body. Other servers allow 8 to 16 KiB.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// How long a peer may leave responses unread once they fill the socket's buffer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// The pause after an error that may be temporary, such as too many open files.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// How a socket serves.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// The rate limits of its peers.
    pub limits: SocketLimits,
    /// Its share of the open files.
    pub share: usize,
    /// The audit log for rejected peers; requests are recorded by the router.
    pub audit: Audit,
}

/// How a listener shuts down.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// It accepts no more connections, and the requests under way are finished.
    pub graceful: CancellationToken,
    /// All connections are closed at once.
    pub immediate: CancellationToken,
}

/// A bound socket.
#[derive(Debug)]
pub struct Listener {
    accepting: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
    name: String,
    peers: Peers,
}

impl Listener {
    /// Binds `path` for `peers`. `name` is the socket's name in logs.
    pub fn bind(name: &str, path: &Path, peers: Peers) -> Result<Self, BindError> {
        let (accepting, identity) = bind::bind(path, &peers)?;
        Ok(Self { accepting, path: path.to_owned(), identity, name: name.to_owned(), peers })
    }

    /// Checks whether [`Listener::bind`] would succeed, and what it would find at the path. Changes nothing.
    pub fn inspect(path: &Path, peers: &Peers) -> Result<SocketState, BindError> {
        bind::inspect(path, peers)
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves until it is shut down. All connections are closed when it returns.
    pub async fn serve(&self, api: Api, options: ServeOptions, shutdown: &Shutdown) {
        let mut builder = http1::Builder::new();
        builder.header_read_timeout(IDLE_TIMEOUT).max_buf_size(MAX_HEAD_BYTES).half_close(true);
        // Head and body are sent in one buffer: they are small, and a copy costs less than a vectored write.
        builder.writev(false);
        let mut connections = JoinSet::new();
        let graceful = GracefulShutdown::new();
        let limiter = self.connection_limiter(&options);
        let rates = options.limits.rate.map(RateLimiter::new);
        let quota = options.limits.forced_refreshes.map(|rate| Arc::new(RefreshQuota::new(rate)));
        // The accept continues where it was when a connection ends meanwhile.
        let mut accepting = pin!(self.accept(&limiter, &options.audit));
        loop {
            let accepted = tokio::select! {
                () = shutdown.graceful.cancelled() => break,
                () = shutdown.immediate.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = &mut accepting => accepted,
            };
            accepting.set(self.accept(&limiter, &options.audit));
            let (stream, peer, permit) = match accepted {
                Ok(Some(accepted)) => accepted,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(socket = self.name, %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                    continue;
                }
            };
            let origin = options.audit.is_on().then(|| Origin::of_peer(&self.name, peer.uid, peer.pid));
            let connection =
                Connection::new(peer, origin, rates.as_ref().map(|rates| rates.of(peer.uid)), quota.clone());
            let (api, tracker, shared_stream) = (api.clone(), permit.request_tracker(), SharedStream::new(stream));
            let watched_stream = shared_stream.clone();
            let known = service_fn(move |request: Request<Incoming>| {
                let (mut request, body_status) = monitor(request);
                request.extensions_mut().insert(RequestContext::for_connection(Arc::clone(&connection)));
                let waiting = request.headers().contains_key("prefer").then(|| watched_stream.clone());
                let (active, answer) = (tracker.begin_request(), api.clone().0.call(request));
                async move {
                    // It was idle for the longest time and has been evicted for another connection: nothing is done.
                    let active = active.ok_or(io::ErrorKind::ConnectionAborted)?;
                    let Ok(answer) = match waiting {
                        None => answer.await,
                        Some(shared_stream) => tokio::select! {
                            answer = answer => answer,
                            // Nobody waits for this result any more.
                            () = shared_stream.closed() => return Err(io::ErrorKind::ConnectionAborted.into()),
                        },
                    };
                    Ok::<_, io::Error>(body_status.apply(answer).map(|body| TrackedBody::new(body, active)))
                }
            });
            let stream = TokioIo::new(WriteTimeoutStream::new(shared_stream, WRITE_TIMEOUT));
            let connection = builder.clone().timer(HeadTimer::default()).serve_connection(stream, known);
            let connection = graceful.watch(connection);
            connections.spawn(async move {
                tokio::select! {
                    served = connection => {
                        if let Err(error) = served {
                            tracing::debug!(%error, "a connection broke");
                        }
                    }
                    () = permit.evicted() => tracing::debug!("an idle connection makes room"),
                }
                drop(permit);
            });
            // It has usually sent its request already, and need not wait until all others are accepted.
            tokio::task::yield_now().await;
        }
        let finished = async {
            graceful.shutdown().await;
            while connections.join_next().await.is_some() {}
        };
        shutdown.immediate.run_until_cancelled(finished).await;
        connections.shutdown().await;
    }

    fn connection_limiter(&self, options: &ServeOptions) -> Arc<ConnectionLimiter> {
        let most = options.limits.connections.unwrap_or(usize::MAX).min(options.share);
        let half = if self.peers.allows_several_users() { most.div_ceil(2) } else { most };
        ConnectionLimiter::new(most, options.limits.connections_per_user.unwrap_or(half).min(most))
    }

    /// Returns the next connection; `None` for one that was rejected.
    async fn accept(
        &self,
        limiter: &Arc<ConnectionLimiter>,
        audit: &Audit,
    ) -> io::Result<Option<(UnixStream, Peer, ConnectionPermit)>> {
        let (stream, _) = self.accepting.accept().await?;
        let peer = match self.peers.authenticate(&stream, &self.name) {
            Ok(peer) => peer,
            Err(stranger) => {
                self.log_rejected(stranger, ProblemCode::Unauthorized, audit, Origin::of_rejected);
                return Ok(None);
            }
        };
        let permit = limiter.acquire(peer.uid).await;
        if permit.is_none() {
            tracing::debug!(
                socket = self.name,
                uid = peer.uid,
                "closed a connection: its user is at the connection limit"
            );
            self.log_rejected(Some(peer), ProblemCode::RateLimited, audit, Origin::of_peer);
        }
        Ok(permit.map(|permit| (stream, peer, permit)))
    }

    fn log_rejected(
        &self,
        peer: Option<Peer>,
        code: ProblemCode,
        audit: &Audit,
        origin: fn(&str, u32, Option<u32>) -> Origin,
    ) {
        if let Some(peer) = peer.filter(|_| audit.is_on()) {
            audit.note(&Event {
                origin: &origin(&self.name, peer.uid, peer.pid),
                operation: labels::CONNECT,
                subject: &Subject::default(),
                outcome: code.as_str(),
                status: None,
                latency: Duration::ZERO,
                provider_called: false,
                own_line: false,
            });
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Until the socket is closed it counts as live, and no other daemon replaces it.
        let ours = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.identity;
        let found = fs::symlink_metadata(&self.path).is_ok_and(ours);
        let removed = if found { fs::remove_file(&self.path) } else { Ok(()) };
        if let Err(error) = removed {
            tracing::warn!(socket = self.name, %error, "could not remove the socket's file");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{File, Permissions},
        os::unix::fs::PermissionsExt as _,
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::Semaphore,
    };

    use super::*;
    use crate::{clock::SystemClock, server::AdmissionLayer};

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn bind(path: &Path) -> Result<Listener, BindError> {
        Listener::bind("test", path, Peers::own())
    }

    #[tokio::test]
    async fn the_directory_is_0700_the_socket_0600_and_both_go_as_they_came() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b/credproxy.sock");
        let listener = bind(&path).unwrap();
        assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn other_users_open_directory_and_socket() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("run/credproxy.sock");
        let _listener = Listener::bind("test", &path, Peers::of(&[4_000_000])).unwrap();
        assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o711, 0o666));
    }

    #[tokio::test]
    async fn a_living_socket_is_left_alone_and_a_dead_one_replaced() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("credproxy.sock");
        let first = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(BindError::Live(_))));
        let dead = home.path().join("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        assert!(dead.exists() && bind(&dead).is_ok());
        drop(first);
    }

    #[tokio::test]
    async fn a_look_finds_what_binding_would_and_changes_nothing() {
        let home = tempfile::tempdir().unwrap();
        let inspect = |path: &Path| Listener::inspect(path, &Peers::own());
        let path = home.path().join("run/credproxy.sock");
        assert_eq!(inspect(&path).unwrap(), SocketState::Absent);
        assert!(!path.parent().unwrap().exists());
        let listener = bind(&path).unwrap();
        assert_eq!(inspect(&path).unwrap(), SocketState::Live);
        drop(listener);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert_eq!(inspect(&path).unwrap(), SocketState::Stale);
        fs::remove_file(&path).unwrap();
        drop(File::create(&path).unwrap());
        assert!(matches!(inspect(&path), Err(BindError::NotASocket(_))));
        fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(inspect(&path), Err(BindError::Directory { .. })));
        assert_eq!(mode(path.parent().unwrap()), 0o777);
        assert!(matches!(inspect(&home.path().join("x".repeat(110))), Err(BindError::TooLong { .. })));
    }

    #[tokio::test]
    async fn a_listener_removes_no_socket_but_its_own() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("credproxy.sock");
        let first = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_not_touched() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("notes.txt");
        drop(File::create(&path).unwrap());
        assert!(matches!(bind(&path), Err(BindError::NotASocket(_))));
        assert!(path.exists());
    }

    #[tokio::test]
    async fn a_directory_that_others_use_is_refused_and_left_as_it_is() {
        let home = tempfile::tempdir().unwrap();
        for (name, permissions, other_file) in
            [("sticky", 0o1777, false), ("shared", 0o775, false), ("full", 0o755, true)]
        {
            let directory = home.path().join(name);
            fs::create_dir(&directory).unwrap();
            fs::set_permissions(&directory, Permissions::from_mode(permissions)).unwrap();
            if other_file {
                drop(File::create(directory.join("other")).unwrap());
            }
            assert!(matches!(bind(&directory.join("s")), Err(BindError::Directory { .. })), "{name}");
            assert_eq!(mode(&directory), permissions & 0o777, "{name}");
        }
        let ours = home.path().join("ours");
        fs::create_dir(&ours).unwrap();
        fs::set_permissions(&ours, Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(ours.join(SANDBOXES_DIRECTORY)).unwrap();
        assert!(bind(&ours.join("s")).is_ok());
        assert_eq!(mode(&ours), 0o700);
    }

    #[tokio::test]
    async fn who_is_to_end_at_once_waits_for_nobody() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("credproxy.sock");
        let listener = bind(&path).unwrap();
        let reached = Arc::new(Semaphore::new(0));
        let handler = Arc::clone(&reached);
        let never = move || {
            handler.add_permits(1);
            std::future::pending::<()>()
        };
        let shutdown = Shutdown::default();
        let admission = AdmissionLayer::new(Arc::new(SystemClock::new()), Audit::default(), "", None);
        let options = ServeOptions { limits: SocketLimits::HOST, share: 10, audit: Audit::default() };
        let serving = listener.serve(Api::behind(&admission, axum::Router::new().fallback(never)), options, &shutdown);
        let calling = async {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            reached.acquire().await.unwrap().forget();
            shutdown.immediate.cancel();
            stream.read_to_end(&mut Vec::new()).await.unwrap()
        };
        assert_eq!(tokio::join!(serving, calling), ((), 0));
    }

    #[tokio::test]
    async fn a_path_that_does_not_fit_is_refused() {
        let path = Path::new("/tmp").join("x".repeat(110));
        let message = bind(&path).unwrap_err().to_string();
        assert!(message.contains("115 bytes") && message.contains("107"), "{message}");
    }
}
