//! Sandboxes: sockets that are made at run time, each in a directory of its own, with a policy of its own and an end.
//!
//! Owns: [`Sandboxes`], what a sandbox is, how many there may be and how long they live. Its children own the form in
//! the store, the task that keeps them, and the watch over the process that one may be tied to.
//!
//! Invariants:
//! 1. A socket never exists without its directory, which is closed to others and holds nothing else of ours: the
//!    directory is what a container mounts.
//! 2. A sandbox is in the store before its socket answers, and gone from it before its deletion is answered. One whose
//!    socket cannot be made is never in the store.
//! 3. A sandbox ends by request, with its time, or with its process, whichever comes first. Its connections are cut
//!    before anything else is done, whatever the store says and however long it takes.
//! 4. The daemon's end is no sandbox's end: its directory stays, and the next start opens the socket in it again.
//! 5. What was asked for is carried out, whoever hangs up.
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

/// Sandboxes at once: some for each of a person's agents. Each holds a share of the open files.
pub const DEFAULT_MAX_SANDBOXES: usize = 64;

/// How long one lives unless told: a day's work.
pub const DEFAULT_LIFETIME: Duration = Duration::from_hours(24);

/// The longest life, and that of one which is tied to a process unless told. What is to live longer belongs in the
/// configuration.
pub const MAX_LIFETIME: Duration = Duration::from_hours(30 * 24);

/// The socket's name in its directory.
const SOCKET: &str = "credproxy.sock";

/// So many digits of its id are the name of a sandbox's directory: the path of a socket has little room, and a directory
/// that is ours alone needs no name that cannot be guessed.
const DIRECTORY_DIGITS: usize = 10;

/// How much longer a sandbox's socket's path is than that of the directory for all of them.
pub const PATH_ROOM: usize = 1 + DIRECTORY_DIGITS + 1 + SOCKET.len();

/// Where a daemon keeps its sandboxes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRoot {
    /// Which daemon of those on one store: what belongs to another name is another daemon's. It stays the same when the
    /// daemon is started again.
    pub name: PathBuf,
    /// Where the directories of new sandboxes are made.
    pub directory: PathBuf,
}

/// When there are too many. One may end at any moment, or in a month.
const TOO_MANY_RETRY_AFTER: Duration = Duration::from_secs(10);

/// How many requests wait for the task that keeps the sandboxes, before the next ones wait with their senders.
const COMMAND_QUEUE_LENGTH: usize = 16;

/// A sandbox's name: 32 hexadecimal digits, of 128 bits that nobody can guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxId(u128);

impl fmt::Display for SandboxId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// The text is the name of no sandbox.
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

/// How long a sandbox may live: from a second to [`MAX_LIFETIME`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxLifetime(Duration);

/// No sandbox lives this long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox lives for 1 to {} seconds", MAX_LIFETIME.as_secs())]
pub struct LifetimeError;

impl SandboxLifetime {
    /// So many seconds.
    pub fn of_secs(seconds: u64) -> Result<Self, LifetimeError> {
        let lifetime = Duration::from_secs(seconds);
        if seconds > 0 && lifetime <= MAX_LIFETIME { Ok(Self(lifetime)) } else { Err(LifetimeError) }
    }
}

/// What somebody wants a sandbox for.
#[derive(Debug)]
pub struct SandboxRequest {
    /// What it is allowed.
    pub allowed: Allowed,
    /// Whether its peers are to show a capability.
    pub capability: bool,
    /// How long it is to live; [`DEFAULT_LIFETIME`], or [`MAX_LIFETIME`] when it is tied, unless told.
    pub lifetime: Option<SandboxLifetime>,
    /// The process with which it ends, as the daemon's machine numbers it.
    pub process: Option<i32>,
}

/// A sandbox as the host may see it.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// Its name.
    pub id: SandboxId,
    /// What a container mounts: the socket is in it, and nothing else of the daemon's.
    pub directory: PathBuf,
    /// What it is allowed.
    pub allowed: Allowed,
    /// When its time is up.
    pub expires_at: Timestamp,
    /// Whether it ends with a process.
    pub tied: bool,
}

impl Sandbox {
    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join(SOCKET)
    }

    /// Its socket's name in logs. No socket of the configuration has a colon in its name.
    #[must_use]
    pub fn socket_name(&self) -> String {
        format!("sandbox:{}", self.id)
    }
}

/// A sandbox that was just made.
#[derive(Debug)]
pub struct Created {
    /// The sandbox.
    pub sandbox: Sandbox,
    /// What its peers are to show. It is told this once.
    pub capability: Option<Capability>,
}

/// Why there is no sandbox. Everything in it may be shown to the host.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// As many are there as may be.
    #[error("{max} sandboxes are there, as many as may be: delete one")]
    TooMany {
        /// How many.
        max: usize,
        /// When to try again.
        wait: Duration,
    },
    /// Never made, deleted, or ended.
    #[error("there is no such sandbox: it was deleted, or its time or its process has ended")]
    NotFound,
    /// The process that it is to be tied to cannot be watched.
    #[error("a sandbox cannot be tied to this process: it has ended, or the daemon cannot see it")]
    NoProcess,
    /// The store cannot be written.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// Its socket cannot be made.
    #[error("the socket cannot be made: {0}")]
    NoSocket(String),
    /// The daemon is about to end.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// A fault of ours.
    #[error("internal error")]
    Internal,
}

impl From<StoreError> for SandboxError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// Opens and closes the sockets: all that a sandbox needs of the rest of the daemon.
pub trait SocketHost: Send + Sync + 'static {
    /// A socket that does not answer yet.
    type Bound: Send + 'static;
    /// A socket that answers.
    type OpenSocket: Send + 'static;

    /// Makes the sandbox's directory, unless it is there, and a socket in it. The error is for a person.
    fn bind(&self, sandbox: &Sandbox) -> impl Future<Output = Result<Self::Bound, String>> + Send;

    /// Answers on it from now on.
    fn open(&self, bound: Self::Bound, sandbox: &Sandbox, capability: Option<CapabilityHash>) -> Self::OpenSocket;

    /// Cuts its connections, and ends what was begun on them; the socket is gone afterwards, and the directory is not.
    fn close_now(&self, socket: Self::OpenSocket) -> impl Future<Output = ()> + Send;

    /// Lets the requests under way finish, as the daemon ends: [`SocketHost::close_now`] without haste.
    fn drain(&self, socket: Self::OpenSocket) -> impl Future<Output = ()> + Send;

    /// Removes a sandbox's directory, if it is there, with the socket that a killed daemon left in it.
    fn remove_files(&self, sandbox: &Sandbox) -> impl Future<Output = ()> + Send;
}

/// The sandboxes of this daemon, as its routes ask for them. Clones share them.
#[derive(Debug, Clone)]
pub struct Sandboxes(mpsc::Sender<Command>);

#[derive(Debug)]
enum Command {
    Create(SandboxRequest, oneshot::Sender<Result<Created, SandboxError>>),
    List(oneshot::Sender<Vec<Sandbox>>),
    Delete(SandboxId, oneshot::Sender<Result<(), SandboxError>>),
}

impl Sandboxes {
    /// Makes one.
    pub async fn create(&self, request: SandboxRequest) -> Result<Created, SandboxError> {
        self.ask(|answer| Command::Create(request, answer)).await?
    }

    /// All of them, in the order of their ids.
    pub async fn list(&self) -> Result<Vec<Sandbox>, SandboxError> {
        self.ask(Command::List).await
    }

    /// One of them.
    pub async fn get(&self, id: SandboxId) -> Result<Sandbox, SandboxError> {
        self.list().await?.into_iter().find(|sandbox| sandbox.id == id).ok_or(SandboxError::NotFound)
    }

    /// Ends one.
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
