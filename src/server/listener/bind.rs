//! Binds a socket: creates its directory and its file, and checks what is there already.
//!
//! Invariants:
//! 1. The directory is closed to others before the socket exists, and the socket belongs to this user alone unless
//!    other users were named. No other user can replace the directory.
//! 2. A live daemon's socket is never replaced; a stale one is. Anything that is not a socket is never touched.
//! 3. Nothing that a peer may open or replace is locked, waited for, or changed by its path: a peer may hold a lock for
//!    ever, or put a link there.
//!
//! Must not know: which requests are served.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::{
            ffi::OsStrExt as _,
            fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{FileType, FlockOperation, Mode, OFlags, chmod, fchmod, flock, fstat, openat},
    io::Errno,
    net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};
use tokio::net::UnixListener;

use super::super::peer::Peers;
use crate::socket_path::{AncestorError, MAX_PATH_BYTES, check_ancestors};

/// The directory of sandboxes, beside the host's socket, where it is in nobody's way.
pub const SANDBOXES_DIRECTORY: &str = "sandboxes";

/// How long to try for the lock. Daemons hold it for milliseconds; whoever holds it for longer is not a daemon.
const BIND_LOCK_TIMEOUT: Duration = Duration::from_secs(1);

/// The interval between attempts to take it.
const BIND_LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The length of the accept queue; the kernel has a limit of its own.
const BACKLOG: i32 = 1024;

/// Why a socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The path is longer than the operating system allows.
    #[error("the path {path} has {length} bytes; a socket's path has at most {MAX_PATH_BYTES}: choose a shorter one")]
    TooLong {
        /// The socket.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// The path names no file in a directory.
    #[error("the path {0} does not name a file in a directory")]
    NoDirectory(PathBuf),
    /// The directory is open to others, or owned by another user.
    #[error("the directory {directory} {reason}; give the socket a directory of its own")]
    Directory {
        /// The socket's directory.
        directory: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Another user could replace the socket's directory.
    #[error("the path of the socket {path} is not safe")]
    Ancestor {
        /// The socket.
        path: PathBuf,
        /// The unsafe directory or link.
        #[source]
        source: AncestorError,
    },
    /// A daemon is listening on it.
    #[error("another daemon is listening on {0}; stop it, or choose another path")]
    Live(PathBuf),
    /// Something other than a socket is there.
    #[error("{0} exists and is not a socket; move it away, or choose another path")]
    NotASocket(PathBuf),
    /// The operating system reported an error.
    #[error("cannot listen on {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
}

/// The state of a socket's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketState {
    /// Nothing is there.
    Absent,
    /// A socket whose daemon is gone.
    Stale,
    /// A listening daemon.
    Live,
}

/// Binds `path` for `peers`; returns the socket, and the device and inode of its file.
pub(super) fn bind(path: &Path, peers: &Peers) -> Result<(UnixListener, (u64, u64)), BindError> {
    let directory = directory(path)?;
    let failed = |source| BindError::Io { path: path.to_owned(), source };
    let opened = prepare(directory, path, directory_mode(peers))?;
    match socket_state(path)? {
        SocketState::Absent => {}
        SocketState::Stale => fs::remove_file(path).map_err(failed)?,
        SocketState::Live => return Err(BindError::Live(path.to_owned())),
    }
    let mode = Mode::from_raw_mode(if peers.allows_other_users() { 0o666 } else { 0o600 });
    let accepting = listen(path, mode).map_err(failed)?;
    let identity = set_mode(&opened, path, mode).map_err(failed)?;
    Ok((accepting, identity))
}

/// Checks whether [`bind`] would succeed, and what it would find at the path. Changes nothing.
pub(super) fn inspect(path: &Path, peers: &Peers) -> Result<SocketState, BindError> {
    let directory = directory(path)?;
    check_path(directory.parent(), path)?;
    // A directory that does not exist yet will be created private.
    if directory.exists() {
        needs_mode_change(directory, path, directory_mode(peers))?;
    }
    socket_state(path)
}

fn directory(socket: &Path) -> Result<&Path, BindError> {
    let length = socket.as_os_str().as_bytes().len();
    if length > MAX_PATH_BYTES {
        return Err(BindError::TooLong { path: socket.to_owned(), length });
    }
    match (socket.parent(), socket.file_name()) {
        (Some(directory), Some(_)) => Ok(directory),
        _ => Err(BindError::NoDirectory(socket.to_owned())),
    }
}

fn directory_mode(peers: &Peers) -> u32 {
    if peers.allows_other_users() { 0o711 } else { 0o700 }
}

/// Creates the socket's directory, closed to others from the start, or checks an existing one.
fn prepare(directory: &Path, socket: &Path, mode: u32) -> Result<OwnedFd, BindError> {
    let failed = |source| BindError::Io { path: socket.to_owned(), source };
    let refuse = |reason| BindError::Directory { directory: directory.to_owned(), reason };
    check_path(directory.parent(), socket)?;
    match DirBuilder::new().recursive(true).mode(0o700).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(refuse("is not a directory")),
        Err(error) => return Err(failed(error)),
    }
    let change = needs_mode_change(directory, socket, mode)?;
    let opened = OwnedFd::from(File::open(directory).map_err(failed)?);
    if change {
        fchmod(&opened, Mode::from_raw_mode(mode)).map_err(|error| failed(error.into()))?;
    }
    Ok(opened)
}

fn check_path(directory: Option<&Path>, socket: &Path) -> Result<(), BindError> {
    let checked = directory.map_or(Ok(()), check_ancestors);
    checked.map_err(|source| BindError::Ancestor { path: socket.to_owned(), source })
}

/// Whether the directory's mode has to be changed. Fails if it is not ours to change.
fn needs_mode_change(directory: &Path, socket: &Path, mode: u32) -> Result<bool, BindError> {
    let failed = |source| BindError::Io { path: socket.to_owned(), source };
    let refuse = |reason| BindError::Directory { directory: directory.to_owned(), reason };
    let metadata = fs::metadata(directory).map_err(failed)?;
    if !metadata.is_dir() {
        return Err(refuse("is not a directory"));
    }
    let found = metadata.permissions().mode() & 0o7777;
    let own = rustix::process::geteuid().as_raw();
    // Links are checked too: a link's owner could redirect our clients to another socket.
    let link = fs::symlink_metadata(directory).map_err(failed)?;
    if metadata.uid() != own || ![own, 0].contains(&link.uid()) {
        return Err(refuse("belongs to another user"));
    }
    if link.is_symlink() {
        let place = fs::canonicalize(directory).map_err(failed)?;
        check_path(place.parent(), socket)?;
    }
    if found == mode {
        return Ok(false);
    }
    // The mode of a directory that is used for other things is left alone: only one that contains nothing but our
    // sockets is closed.
    if found & 0o1022 != 0 {
        return Err(refuse("is writable by others"));
    }
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        if Some(name.as_os_str()) != socket.file_name() && name != SANDBOXES_DIRECTORY {
            return Err(refuse("is open to others and holds other files"));
        }
    }
    Ok(true)
}

/// Listens at `path`, where there is nothing yet.
fn listen(path: &Path, mode: Mode) -> io::Result<UnixListener> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // On Linux the file gets the socket's own mode, less the process's umask. Elsewhere `fchmod` fails, and `set_mode`
    // does it all.
    fchmod(&socket, mode).ok();
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    net::listen(&socket, BACKLOG)?;
    UnixListener::from_std(socket.into())
}

/// Sets the mode of the new socket where it differs, and returns its device and inode. The file is held open meanwhile:
/// whoever may write to the directory can put a link to another file there at any moment (invariant 3).
fn set_mode(directory: &OwnedFd, path: &Path, mode: Mode) -> io::Result<(u64, u64)> {
    let name = path.file_name().unwrap_or_default();
    let file = openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let found = fstat(&file)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
        return Err(io::Error::other("something else was put in the socket's place"));
    }
    if Mode::from_raw_mode(found.st_mode) != mode {
        chmod(format!("/proc/self/fd/{}", file.as_raw_fd()), mode)?;
    }
    Ok((found.st_dev, found.st_ino))
}

/// Keeps two daemons that start at once from taking each other's socket for a stale one.
///
/// It is a lock on the directory of the host's socket, which peers cannot open. The wait is short: a daemon holds it
/// for milliseconds, and the start must not depend on any other program that may hold it.
#[derive(Debug)]
pub struct BindLock(#[cfg_attr(not(test), expect(dead_code, reason = "it is the lock"))] Option<OwnedFd>);

impl BindLock {
    /// The lock for the daemon whose host's socket is at `host`.
    pub async fn take(host: &Path, peers: &Peers) -> Result<Self, BindError> {
        let directory = directory(host)?;
        let opened = prepare(directory, host, directory_mode(peers))?;
        let trying = async {
            loop {
                match flock(opened.as_fd(), FlockOperation::NonBlockingLockExclusive) {
                    Err(Errno::AGAIN | Errno::INTR) => tokio::time::sleep(BIND_LOCK_RETRY_INTERVAL).await,
                    done => break done,
                }
            }
        };
        match tokio::time::timeout(BIND_LOCK_TIMEOUT, trying).await {
            Ok(Ok(())) => return Ok(Self(Some(opened))),
            Ok(Err(error)) => tracing::debug!(%error, "the directory of the host's socket cannot be locked"),
            Err(_) => {
                tracing::warn!(directory = %directory.display(), "another program holds a lock on the directory of the host's socket");
            }
        }
        Ok(Self(None))
    }
}

/// Invariant 2.
fn socket_state(path: &Path) -> Result<SocketState, BindError> {
    let failed = |source| BindError::Io { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(SocketState::Absent),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match try_connect(path) {
        // Its queue is full, or it accepts: it is live.
        Ok(()) | Err(Errno::AGAIN) => Ok(SocketState::Live),
        Err(Errno::CONNREFUSED) => Ok(SocketState::Stale),
        Err(error) => Err(failed(error.into())),
    }
}

/// Tries to connect, without waiting: a stopped daemon would block this one for ever.
fn try_connect(path: &Path) -> rustix::io::Result<()> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[tokio::test]
    async fn no_mode_is_changed_but_the_sockets_own_whatever_is_put_in_its_place() {
        let home = tempfile::tempdir().unwrap();
        let (victim, path) = (home.path().join("victim"), home.path().join("s"));
        let directory = OwnedFd::from(File::open(home.path()).unwrap());
        fs::create_dir(&victim).unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o755)).unwrap();
        for mode in [0o600, 0o666].map(Mode::from_raw_mode) {
            let _listening = listen(&path, mode).unwrap();
            // Who may write to the directory does this at the right moment.
            fs::remove_file(&path).unwrap();
            symlink(&victim, &path).unwrap();
            assert!(set_mode(&directory, &path, mode).is_err());
            assert_eq!(fs::metadata(&victim).unwrap().permissions().mode() & 0o777, 0o755);
            fs::remove_file(&path).unwrap();
            let _again = listen(&path, mode).unwrap();
            set_mode(&directory, &path, mode).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode.as_raw_mode());
            fs::remove_file(&path).unwrap();
        }
    }

    #[tokio::test]
    async fn a_lock_that_somebody_holds_is_not_waited_for() {
        let home = tempfile::tempdir().unwrap();
        let host = home.path().join("run/s");
        let first = BindLock::take(&host, &Peers::own()).await.unwrap();
        assert!(first.0.is_some());
        let second = BindLock::take(&host, &Peers::own()).await.unwrap();
        assert!(second.0.is_none(), "it was held all the while");
        drop(first);
        assert!(BindLock::take(&host, &Peers::own()).await.unwrap().0.is_some());
    }
}
