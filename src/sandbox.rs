//! Sandboxes: sockets created at run time, each with its own directory, policy and end.
//!
//! Owns: [`Sandboxes`], what a sandbox is, how many there may be and how long they live. Its children own the stored
//! form, the actor that manages them, and the watch over a process that one may be tied to.
//!
//! Invariants:
//! 1. A socket never exists without its directory, which is closed to others and contains nothing else of ours: a
//!    container mounts the directory.
//! 2. A sandbox is in the store before its socket answers, and removed from it before its deletion is answered. A
//!    sandbox whose socket cannot be created is never in the store.
//! 3. A sandbox ends by request, at its expiry, or with its process, whichever comes first. Its connections are closed
//!    before anything else is done, whatever the store says and however long it takes.
//! 4. A sandbox outlives the daemon: its directory stays, and the next start opens the socket in it again.
//! 5. A request is carried out even if its caller disconnects.
//!
//! Must not know: HTTP, how a socket is opened and served ([`SocketHost`]), SQL.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use tokio::sync::{mpsc, oneshot};

use crate::{
    account::ItemName,
    clock::Timestamp,
    policy::Allowed,
    secret::{Capability, CapabilityHash},
    store::StoreError,
};

mod actor;
mod definition;
mod process;

pub use actor::SandboxActor;

/// The default limit on sandboxes: several for each of a person's agents. Each one takes a share of the open files.
pub const DEFAULT_MAX_SANDBOXES: usize = 64;

/// The default lifetime: a working day.
pub const DEFAULT_LIFETIME: Duration = Duration::from_hours(24);

/// The longest lifetime, and the default of a sandbox that is tied to a process. What must live longer belongs in the
/// configuration.
pub const MAX_LIFETIME: Duration = Duration::from_hours(30 * 24);

/// The socket's name in its directory.
const SOCKET: &str = "credproxy.sock";

/// The length of a directory's name, as a prefix of the id: the path of a socket is limited, and a directory that only
/// this user can enter needs no unguessable name.
const DIRECTORY_DIGITS: usize = 10;

/// How much longer the path of a sandbox's socket is than that of the directory of all sandboxes.
pub const PATH_ROOM: usize = 1 + DIRECTORY_DIGITS + 1 + SOCKET.len();

/// Where a daemon keeps its sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRoot {
    /// The name of this daemon among those that share the store: sandboxes with another name belong to another daemon.
    /// It does not change at a restart.
    pub name: PathBuf,
    /// The parent of new sandboxes' directories.
    pub directory: PathBuf,
}

/// `Retry-After` at the limit. A sandbox may end at any moment, or in a month.
const TOO_MANY_RETRY_AFTER: Duration = Duration::from_secs(10);

/// How many requests may wait for the actor before further senders wait.
const COMMAND_QUEUE_LENGTH: usize = 16;

/// A sandbox's id: 128 random bits as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxId(u128);

impl fmt::Display for SandboxId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// The text is not a sandbox id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a sandbox")]
pub struct SandboxIdError;

impl SandboxId {
    /// The name of its directory.
    fn directory_name(self) -> String {
        let mut digits = self.to_string();
        digits.truncate(DIRECTORY_DIGITS);
        digits
    }
}

impl FromStr for SandboxId {
    type Err = SandboxIdError;

    fn from_str(text: &str) -> Result<Self, SandboxIdError> {
        let fit = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !fit {
            return Err(SandboxIdError);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| SandboxIdError)
    }
}

impl From<SandboxId> for ItemName {
    fn from(id: SandboxId) -> Self {
        Self::of_bits(id.0)
    }
}

/// The lifetime of a sandbox: from a second to [`MAX_LIFETIME`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxLifetime(Duration);

/// The lifetime is out of range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox lives for 1 to {} seconds", MAX_LIFETIME.as_secs())]
pub struct LifetimeError;

impl SandboxLifetime {
    /// A lifetime in seconds.
    pub fn of_secs(seconds: u64) -> Result<Self, LifetimeError> {
        let lifetime = Duration::from_secs(seconds);
        if seconds > 0 && lifetime <= MAX_LIFETIME { Ok(Self(lifetime)) } else { Err(LifetimeError) }
    }
}

/// A request to create a sandbox.
#[derive(Debug)]
pub struct SandboxRequest {
    /// Its policy.
    pub allowed: Allowed,
    /// Whether its peers must present a capability.
    pub capability: bool,
    /// Its lifetime. Defaults to [`DEFAULT_LIFETIME`], or to [`MAX_LIFETIME`] if it is tied to a process.
    pub lifetime: Option<SandboxLifetime>,
    /// The process it is tied to, by its number on the daemon's machine.
    pub process: Option<i32>,
}

/// A sandbox as the host may see it.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// The directory for a container to mount: it contains the socket and nothing else of the daemon's.
    pub directory: PathBuf,
    /// Its policy.
    pub allowed: Allowed,
    /// When it expires.
    pub expires_at: Timestamp,
    /// Whether it is tied to a process.
    pub tied: bool,
}

impl Sandbox {
    /// The path of its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join(SOCKET)
    }

    /// Its socket's name in logs. Configured sockets have no colon in their names.
    #[must_use]
    pub fn socket_name(&self) -> String {
        format!("sandbox:{}", self.id)
    }
}

/// A sandbox that was just created.
#[derive(Debug)]
pub struct Created {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// The capability that its peers must present. It is returned only here.
    pub capability: Option<Capability>,
}

/// Why a sandbox request failed. Everything in it may be shown to the host.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The limit is reached.
    #[error("the limit of {max} sandboxes is reached: delete one")]
    TooMany {
        /// The limit.
        max: usize,
        /// When to try again.
        wait: Duration,
    },
    /// Unknown, deleted, or expired.
    #[error("there is no such sandbox: it was deleted, or its time or its process has ended")]
    NotFound,
    /// The process cannot be watched.
    #[error("a sandbox cannot be tied to this process: it has ended, or the daemon cannot see it")]
    NoProcess,
    /// The store cannot be written.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// Its socket cannot be created.
    #[error("the socket cannot be made: {0}")]
    NoSocket(String),
    /// The daemon is stopping.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// An internal error.
    #[error("internal error")]
    Internal,
}

impl From<StoreError> for SandboxError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// Opens and closes sockets: all that sandboxes need of the rest of the daemon.
pub trait SocketHost: Send + Sync + 'static {
    /// A socket that does not serve yet.
    type Bound: Send + 'static;
    /// A socket that serves.
    type OpenSocket: Send + 'static;

    /// Creates the sandbox's directory, unless it exists, and a socket in it. The error is for a person.
    fn bind(&self, sandbox: &Sandbox) -> impl Future<Output = Result<Self::Bound, String>> + Send;

    /// Starts serving.
    fn open(&self, bound: Self::Bound, sandbox: &Sandbox, capability: Option<CapabilityHash>) -> Self::OpenSocket;

    /// Closes its connections, cancels the logins begun on them and removes the socket, but not the directory.
    fn close_now(&self, socket: Self::OpenSocket) -> impl Future<Output = ()> + Send;

    /// Lets the requests under way finish when the daemon stops: a graceful [`SocketHost::close_now`].
    fn drain(&self, socket: Self::OpenSocket) -> impl Future<Output = ()> + Send;

    /// Removes a sandbox's directory, if it exists, with the socket that a killed daemon left in it.
    fn remove_files(&self, sandbox: &Sandbox) -> impl Future<Output = ()> + Send;
}

/// The handle through which routes manage the sandboxes of this daemon. Clones share them.
#[derive(Debug, Clone)]
pub struct Sandboxes(mpsc::Sender<Command>);

#[derive(Debug)]
enum Command {
    Create(SandboxRequest, oneshot::Sender<Result<Created, SandboxError>>),
    List(oneshot::Sender<Vec<Sandbox>>),
    Delete(SandboxId, oneshot::Sender<Result<(), SandboxError>>),
}

impl Sandboxes {
    /// Creates one.
    pub async fn create(&self, request: SandboxRequest) -> Result<Created, SandboxError> {
        self.ask(|answer| Command::Create(request, answer)).await?
    }

    /// Returns all of them, sorted by id.
    pub async fn list(&self) -> Result<Vec<Sandbox>, SandboxError> {
        self.ask(Command::List).await
    }

    /// Returns one of them.
    pub async fn get(&self, id: SandboxId) -> Result<Sandbox, SandboxError> {
        self.list().await?.into_iter().find(|sandbox| sandbox.id == id).ok_or(SandboxError::NotFound)
    }

    /// Deletes one.
    pub async fn delete(&self, id: SandboxId) -> Result<(), SandboxError> {
        self.ask(|answer| Command::Delete(id, answer)).await?
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, SandboxError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(command(answer)).await.map_err(|_| SandboxError::ShuttingDown)?;
        answered.await.map_err(|_| SandboxError::ShuttingDown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_and_nothing_else_does() {
        let id = SandboxId(0xab);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(ItemName::from(id).as_str(), id.to_string());
        for bad in ["", "ab", &"A".repeat(32), &"g".repeat(32), &"a".repeat(33), &format!("+{}", "a".repeat(31))] {
            assert_eq!(bad.parse::<SandboxId>(), Err(SandboxIdError), "{bad}");
        }
    }
}
