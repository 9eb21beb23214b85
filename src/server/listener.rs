//! The listening sockets: how they come to be, whom they serve, and how they go.
//!
//! Invariants:
//! 1. The directory is closed to others before the socket exists, and the socket is ours alone unless other users
//!    were named.
//! 2. A living daemon's socket is never replaced; a dead one's is. What is not a socket is never touched.
//! 3. On the way out, only the socket that this listener made is removed.
//! 4. No peer can hold more than its socket's share of the open files, nor hold a connection without asking anything or
//!    without reading the answers. One that asks nothing makes room for one that does.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io,
    os::unix::{
        ffi::OsStrExt as _,
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use axum::extract::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};
use tokio::{
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

use super::{
    Api,
    connection::{Connection, Errand},
    head_timer::HeadTimer,
    peer::{Peer, Peers},
    problem::Code,
    seats::{Held, Seat, Seats},
    stall::Stalling,
    unread::watched,
};
use crate::{
    audit::{Audit, Event, Origin, Subject, words},
    limits::{RateLimiter, SocketLimits, Spending},
};

/// The room for a path in `sockaddr_un`, less the closing zero byte.
const LONGEST_PATH: usize = 107;

/// Below the host's socket, the directory of those that are made at run time. It is in nobody's way there.
pub const SANDBOXES: &str = "sandboxes";

/// How long a connection may stay silent, before its first request and between two.
const IDLE: Duration = Duration::from_mins(1);

/// The longest head of a request, and so the most that a peer can make the daemon hold for a connection but for a body.
/// Other servers allow 8 to 16 KiB.
const LONGEST_HEAD: usize = 16 * 1024;

/// How long a peer may leave answers unread once they fill the socket's buffer.
const UNREAD: Duration = Duration::from_secs(30);

/// The pause after an error that waiting may cure, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Why a socket cannot be offered.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The operating system has no room for such a path.
    #[error("the path {path} has {length} bytes; a socket's path has at most {LONGEST_PATH}: choose a shorter one")]
    TooLong {
        /// The socket.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// The path names no file in a directory.
    #[error("the path {0} does not name a file in a directory")]
    NoDirectory(PathBuf),
    /// The directory is open to others, or not ours.
    #[error("the directory {directory} {reason}; give the socket a directory of its own")]
    Directory {
        /// The socket's directory.
        directory: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A daemon is listening there.
    #[error("another daemon is listening on {0}; stop it, or choose another path")]
    Live(PathBuf),
    /// Something else is there.
    #[error("{0} exists and is not a socket; move it away, or choose another path")]
    NotASocket(PathBuf),
    /// The operating system said no.
    #[error("cannot listen on {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// How a socket serves.
#[derive(Debug, Clone)]
pub struct Terms {
    /// How much its peers may ask for.
    pub limits: SocketLimits,
    /// Its part of the open files.
    pub share: usize,
    /// Where peers that are turned away are written down; requests are by the router.
    pub audit: Audit,
}

/// Who is at a socket's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupant {
    /// Nobody.
    Nobody,
    /// A socket whose daemon is gone.
    Dead,
    /// A listening daemon.
    Living,
}

/// How a listener is told to end.
#[derive(Debug, Clone, Default)]
pub struct Ending {
    /// It accepts nobody any more, and the requests under way are finished.
    pub orderly: CancellationToken,
    /// Every connection is cut where it is.
    pub at_once: CancellationToken,
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
        let directory = directory(path)?;
        let failed = |source| BindError::Io { path: path.to_owned(), source };
        prepare(directory, path, directory_mode(&peers))?;
        // Two daemons that start at once must not take each other's socket for a dead one's.
        let _lock = lock(directory).map_err(failed)?;
        match occupant(path)? {
            Occupant::Nobody => {}
            Occupant::Dead => fs::remove_file(path).map_err(failed)?,
            Occupant::Living => return Err(BindError::Live(path.to_owned())),
        }
        let accepting = UnixListener::bind(path).map_err(failed)?;
        let mode = if peers.beyond_own() { 0o666 } else { 0o600 };
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed)?;
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self { accepting, path: path.to_owned(), identity, name: name.to_owned(), peers })
    }

    /// Whether [`Listener::bind`] would be refused, or whom it would find. Changes nothing.
    pub fn look(path: &Path, peers: &Peers) -> Result<Occupant, BindError> {
        let directory = directory(path)?;
        // One that is not there yet will be ours.
        if directory.exists() {
            unfit(directory, path, directory_mode(peers))?;
        }
        occupant(path)
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Serves until it is to end. No connection is left when it returns.
    pub async fn serve(&self, api: Api, terms: Terms, ending: &Ending) {
        let mut builder = http1::Builder::new();
        builder.header_read_timeout(IDLE).max_buf_size(LONGEST_HEAD).half_close(true);
        // Head and body leave as one piece: they are small, and a copy costs less than a list of pieces.
        builder.writev(false);
        let mut connections = JoinSet::new();
        let graceful = GracefulShutdown::new();
        let seats = self.seats(&terms);
        let rates = terms.limits.rate.map(RateLimiter::new);
        let spending = terms.limits.forced_refreshes.map(|rate| Arc::new(Spending::new(rate)));
        // It goes on where it was when a connection ends meanwhile.
        let mut accepting = pin!(self.accept(&seats, &terms.audit));
        loop {
            let accepted = tokio::select! {
                () = ending.orderly.cancelled() => break,
                () = ending.at_once.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = &mut accepting => accepted,
            };
            accepting.set(self.accept(&seats, &terms.audit));
            let (stream, peer, seat) = match accepted {
                Ok(Some(accepted)) => accepted,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(socket = self.name, %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let origin = terms.audit.is_on().then(|| Origin::of_peer(&self.name, peer.uid, peer.pid));
            let connection =
                Connection::new(peer, origin, rates.as_ref().map(|rates| rates.of(peer.uid)), spending.clone());
            let (api, usher) = (api.clone(), seat.usher());
            let known = service_fn(move |request: Request<Incoming>| {
                let (mut request, fate) = watched(request);
                request.extensions_mut().insert(Errand::on(Arc::clone(&connection)));
                let (busy, answer) = (usher.begin(), api.clone().0.call(request));
                async move {
                    // Idle for longest, it has just made room for another: nothing is done.
                    let busy = busy.ok_or(io::ErrorKind::ConnectionAborted)?;
                    let Ok(answer) = answer.await;
                    Ok::<_, io::Error>(fate.told(answer).map(|body| Held::new(body, busy)))
                }
            });
            let stream = TokioIo::new(Stalling::new(stream, UNREAD));
            let connection = builder.clone().timer(HeadTimer::default()).serve_connection(stream, known);
            let connection = graceful.watch(connection);
            connections.spawn(async move {
                tokio::select! {
                    served = connection => {
                        if let Err(error) = served {
                            tracing::debug!(%error, "a connection broke");
                        }
                    }
                    () = seat.evicted() => tracing::debug!("an idle connection makes room"),
                }
                drop(seat);
            });
            // It has usually asked already: to be answered, it need not wait for all the others to be accepted.
            tokio::task::yield_now().await;
        }
        let finished = async {
            graceful.shutdown().await;
            while connections.join_next().await.is_some() {}
        };
        ending.at_once.run_until_cancelled(finished).await;
        connections.shutdown().await;
    }

    fn seats(&self, terms: &Terms) -> Arc<Seats> {
        let most = terms.limits.connections.unwrap_or(usize::MAX).min(terms.share);
        let half = if self.peers.are_several() { most.div_ceil(2) } else { most };
        Seats::new(most, terms.limits.connections_per_user.unwrap_or(half).min(most))
    }

    /// The next connection; `None` for one that was turned away.
    async fn accept(&self, seats: &Arc<Seats>, audit: &Audit) -> io::Result<Option<(UnixStream, Peer, Seat)>> {
        let (stream, _) = self.accepting.accept().await?;
        let peer = match self.peers.admitted(&stream, &self.name) {
            Ok(peer) => peer,
            Err(stranger) => {
                self.turned_away(stranger, Code::Unauthorized, audit, Origin::of_stranger);
                return Ok(None);
            }
        };
        let seat = seats.take(peer.uid).await;
        if seat.is_none() {
            tracing::debug!(socket = self.name, uid = peer.uid, "closed a connection of a user who has his share");
            self.turned_away(Some(peer), Code::RateLimited, audit, Origin::of_peer);
        }
        Ok(seat.map(|seat| (stream, peer, seat)))
    }

    fn turned_away(&self, peer: Option<Peer>, code: Code, audit: &Audit, origin: fn(&str, u32, Option<u32>) -> Origin) {
        if let Some(peer) = peer.filter(|_| audit.is_on()) {
            audit.note(&Event {
                origin: &origin(&self.name, peer.uid, peer.pid),
                operation: words::CONNECT,
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
        let ours = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.identity;
        let removed = self.path.parent().map_or(Ok(()), |directory| {
            let _lock = lock(directory)?;
            if fs::symlink_metadata(&self.path).is_ok_and(ours) { fs::remove_file(&self.path) } else { Ok(()) }
        });
        if let Err(error) = removed {
            tracing::warn!(socket = self.name, %error, "the socket's file stays behind");
        }
    }
}

fn directory(socket: &Path) -> Result<&Path, BindError> {
    let length = socket.as_os_str().as_bytes().len();
    if length > LONGEST_PATH {
        return Err(BindError::TooLong { path: socket.to_owned(), length });
    }
    match (socket.parent(), socket.file_name()) {
        (Some(directory), Some(_)) => Ok(directory),
        _ => Err(BindError::NoDirectory(socket.to_owned())),
    }
}

fn directory_mode(peers: &Peers) -> u32 {
    if peers.beyond_own() { 0o711 } else { 0o700 }
}

/// Makes the socket's directory, closed to others from its first moment, or sees that it is.
fn prepare(directory: &Path, socket: &Path, mode: u32) -> Result<(), BindError> {
    let failed = |source| BindError::Io { path: socket.to_owned(), source };
    let refuse = |reason| BindError::Directory { directory: directory.to_owned(), reason };
    match DirBuilder::new().recursive(true).mode(0o700).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(refuse("is not a directory")),
        Err(error) => return Err(failed(error)),
    }
    if unfit(directory, socket, mode)? {
        fs::set_permissions(directory, Permissions::from_mode(mode)).map_err(failed)?;
    }
    Ok(())
}

/// Whether the directory's mode is to be changed. An error when it is not ours to change.
fn unfit(directory: &Path, socket: &Path, mode: u32) -> Result<bool, BindError> {
    let failed = |source| BindError::Io { path: socket.to_owned(), source };
    let refuse = |reason| BindError::Directory { directory: directory.to_owned(), reason };
    let metadata = fs::metadata(directory).map_err(failed)?;
    if !metadata.is_dir() {
        return Err(refuse("is not a directory"));
    }
    let found = metadata.permissions().mode() & 0o7777;
    let own = rustix::process::geteuid().as_raw();
    // Of a link, too: its owner could lead our clients to a socket of his own.
    let link = fs::symlink_metadata(directory).map_err(failed)?;
    if metadata.uid() != own || ![own, 0].contains(&link.uid()) {
        return Err(refuse("belongs to another user"));
    }
    if found == mode {
        return Ok(false);
    }
    // A directory that others use is not ours to close: only one with nothing in it but our sockets.
    if found & 0o1022 != 0 {
        return Err(refuse("is writable by others"));
    }
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if Some(name.as_os_str()) != socket.file_name() && name != SANDBOXES {
            return Err(refuse("is open to others and holds other files"));
        }
    }
    Ok(true)
}

/// Locks the directory against other daemons that come and go in it. They hold it for a moment only.
fn lock(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Invariant 2.
fn occupant(path: &Path) -> Result<Occupant, BindError> {
    let failed = |source| BindError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nobody),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match knock(path) {
        // Its queue is full, or it answers: it lives.
        Ok(()) | Err(Errno::AGAIN) => Ok(Occupant::Living),
        Err(Errno::CONNREFUSED) => Ok(Occupant::Dead),
        Err(error) => Err(failed(error.into())),
    }
}

/// Tries to connect, without waiting: a stopped daemon would keep us for ever.
fn knock(path: &Path) -> rustix::io::Result<()> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::Semaphore,
    };

    use super::*;
    use crate::{clock::SystemClock, server::Gate};

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
        let look = |path: &Path| Listener::look(path, &Peers::own());
        let path = home.path().join("run/credproxy.sock");
        assert_eq!(look(&path).unwrap(), Occupant::Nobody);
        assert!(!path.parent().unwrap().exists());
        let listener = bind(&path).unwrap();
        assert_eq!(look(&path).unwrap(), Occupant::Living);
        drop(listener);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert_eq!(look(&path).unwrap(), Occupant::Dead);
        fs::remove_file(&path).unwrap();
        drop(File::create(&path).unwrap());
        assert!(matches!(look(&path), Err(BindError::NotASocket(_))));
        fs::set_permissions(path.parent().unwrap(), Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(look(&path), Err(BindError::Directory { .. })));
        assert_eq!(mode(path.parent().unwrap()), 0o777);
        assert!(matches!(look(&home.path().join("x".repeat(110))), Err(BindError::TooLong { .. })));
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
        fs::create_dir(ours.join(SANDBOXES)).unwrap();
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
        let ending = Ending::default();
        let gate = Gate::new(Arc::new(SystemClock::new()), Audit::default(), "");
        let terms = Terms { limits: SocketLimits::HOST, share: 10, audit: Audit::default() };
        let serving = listener.serve(Api::behind(&gate, axum::Router::new().fallback(never)), terms, &ending);
        let calling = async {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            reached.acquire().await.unwrap().forget();
            ending.at_once.cancel();
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
