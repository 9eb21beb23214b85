//! The audit log. Every request and every rejected peer has a line of its own or is counted in one (`aggregate.rs`).
//!
//! Owns: what a line says ([`Event`]), where lines go and what happens when they cannot ([`AuditSettings`]), and the reading
//! of what was written ([`reader`]).
//!
//! Invariants:
//! 1. A line holds names, codes and numbers. It holds no query, header or body, and no name that is malformed by our
//!    rules.
//! 2. A line is written whole or not at all, across rotation, a full disk and other daemons that write to the same file.
//! 3. What cannot be written is counted, and the count is written as soon as it can be.
//! 4. With [`OnFailure::Open`] no request waits for a disk for longer than a moment, and none holds a lock across a
//!    write.
//! 5. With [`OnFailure::Closed`] nothing is begun unless the log takes lines at that moment, and nothing is answered
//!    before its line is written: a change that was made before its own, a read or a refusal before the first of its
//!    equals. The counts of those are written within a second.
//! 6. A log that hangs counts as failed. Every wait for it has a limit: of a request, of the start, of the end.
//!
//! A line is written when the kernel has it: it outlives the process, not a loss of power.
//!
//! Must not know: HTTP, what an operation does.

use std::{
    fmt, io,
    path::PathBuf,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    account::{AccountRef, MAX_NAME},
    clock::{Clock, Timestamp},
    private::PrivateError,
    timeouts::FINAL_AUDIT_TIMEOUT,
};

mod aggregate;
mod file;
mod line;
mod queue;
pub mod reader;

pub use line::Origin;

use file::{RotatingFile, Stdout};
use queue::{Pending, Queue};

/// Destination and failure policy of the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSettings {
    /// Where lines go.
    pub to: Destination,
    /// What to do when a line cannot be written.
    pub on_failure: OnFailure,
}

impl AuditSettings {
    /// The path of the log; `None` when the destination is not a file.
    #[must_use]
    pub const fn file(&self) -> Option<&PathBuf> {
        match &self.to {
            Destination::File(rotation) => Some(&rotation.path),
            Destination::Off | Destination::Stdout => None,
        }
    }
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Nowhere. No lines are made.
    Off,
    /// To standard output, for the program that started the daemon.
    Stdout,
    /// To a file.
    File(Rotation),
}

/// A file that is rotated when it is full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// The file that is written to. Rotated files have this name with `.1`, `.2` and so on; the highest number is the
    /// oldest.
    pub path: PathBuf,
    /// The largest size of a file, in bytes.
    pub max_size: u64,
    /// How many rotated files are kept beside the current one.
    pub keep: u32,
}

/// What happens to operations while no line can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// They are carried out.
    Open,
    /// They are refused before they are carried out.
    Closed,
}

/// One event, as a line describes it.
#[derive(Debug)]
pub struct Event<'a> {
    /// The peer and the socket.
    pub origin: &'a Origin,
    /// The `operationId` in the contract, or one of [`labels`].
    pub operation: &'static str,
    /// The account and the thing that the operation is about.
    pub subject: &'a Subject,
    /// `ok`, a code of the contract, or one of [`labels`].
    pub outcome: &'static str,
    /// The HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// Time from the request's head to the answer's.
    pub latency: Duration,
    /// Whether the provider was called for it.
    pub provider_called: bool,
    /// Whether it has a line of its own even where equal events are counted: true for a change that was made.
    pub own_line: bool,
}

/// The labels for operations and outcomes that the contract does not name.
pub mod labels {
    /// Operation: a peer was rejected before it could make a request.
    pub const CONNECT: &str = "connect";
    /// Operation: no such route, or no such method on the route.
    pub const UNKNOWN: &str = "unknown";
    /// Outcome: success.
    pub const OK: &str = "ok";
    /// Outcome: the connection ended before there was an answer. What was begun may have been carried out.
    pub const ABANDONED: &str = "abandoned";
    /// Operation and outcome of the last summary, which counts events of different kinds.
    pub const VARIOUS: &str = "various";
}

/// What a request is about, as far as it is known. Each member is set once.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Subject {
    account: OnceLock<String>,
    named: OnceLock<(Kind, String)>,
}

/// The kinds of named things other than accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An API key.
    Key,
    /// A login under way, by its id.
    Login,
    /// A sandbox, by its id.
    Sandbox,
}

impl Kind {
    const fn member(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Login => "login",
            Self::Sandbox => "sandbox",
        }
    }
}

impl Subject {
    /// Sets the account.
    pub fn account(&self, account: AccountRef<'_>) {
        self.account.get_or_init(|| account.into());
    }

    /// Sets the named thing. A malformed name is not kept (invariant 1).
    pub fn named(&self, kind: Kind, name: &str) {
        let fit = (1..=MAX_NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._@+-".contains(&byte));
        if fit {
            self.named.get_or_init(|| (kind, name.to_owned()));
        }
    }
}

/// Why the audit log cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file or its directory cannot be used.
    #[error("cannot open the audit log")]
    File(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A line cannot be written.
    #[error("cannot write the audit log")]
    Unfit(#[source] io::Error),
    /// There is no disk space, and the policy is [`OnFailure::Closed`].
    #[error("no disk space for the audit log")]
    NoRoom(#[source] io::Error),
    /// The operating system said no.
    #[error("cannot start the audit writer")]
    Io(#[from] io::Error),
}

impl From<PrivateError> for AuditError {
    fn from(error: PrivateError) -> Self {
        Self::File(Box::new(error))
    }
}

/// The line could not be written, and its operation must not be answered as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unwritten;

/// A line that is queued and not written yet.
pub struct PendingWrite {
    log: Arc<Log>,
    pending: Pending,
}

impl PendingWrite {
    /// Waits until the line is written, within the limits of the queue.
    pub async fn wait(self) -> Result<(), Unwritten> {
        self.log.queue.wait_written(self.pending).await
    }
}

/// Reasons in the health report.
const UNWRITABLE: &str = "the audit log cannot be written";
const UNROTATABLE: &str = "the audit log cannot be rotated";

/// The log. Clones share one writer; the default one is off.
#[derive(Clone, Default)]
pub struct Audit(Option<Arc<Log>>);

struct Log {
    queue: Arc<Queue>,
    /// Cancelled when the writer has ended. The thread is never joined: one that hangs is left behind.
    ended: CancellationToken,
}

impl fmt::Debug for Audit {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Audit").field(&self.is_on()).finish()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.queue.close();
    }
}

impl Audit {
    /// Opens the configured destination and starts the writer.
    pub fn start(settings: &AuditSettings, clock: Arc<dyn Clock>) -> Result<Self, AuditError> {
        match &settings.to {
            Destination::Off => Ok(Self::default()),
            Destination::Stdout => Self::to(Stdout::new()?, settings.on_failure, clock),
            Destination::File(rotation) => Self::to(RotatingFile::open(rotation)?, settings.on_failure, clock),
        }
    }

    fn to(mut sink: impl Sink + 'static, on_failure: OnFailure, clock: Arc<dyn Clock>) -> Result<Self, AuditError> {
        match (sink.check(), on_failure) {
            // The writer keeps trying, and the health report says so.
            (Err(error), OnFailure::Open) if error.kind() == io::ErrorKind::WouldBlock => {
                tracing::error!(%error, "the audit log cannot be written");
            }
            (Err(error), _) => return Err(AuditError::Unfit(error)),
            (Ok(()), OnFailure::Open) => {}
            (Ok(()), OnFailure::Closed) => sink.reserve().map_err(AuditError::NoRoom)?,
        }
        let queue = Arc::new(Queue::new(on_failure, clock));
        let ended = CancellationToken::new();
        let (writing, ends) = (Arc::clone(&queue), ended.clone().drop_guard());
        thread::Builder::new().name("audit".to_owned()).spawn(move || {
            let _ends = ends;
            writing.drain(sink);
        })?;
        Ok(Self(Some(Arc::new(Log { queue, ended }))))
    }

    /// Whether lines are made at all.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether [`Audit::admits`] must be asked before an operation is carried out.
    #[must_use]
    pub fn must_admit(&self) -> bool {
        self.0.as_ref().is_some_and(|log| log.queue.must_admit())
    }

    /// Whether an operation may be carried out now. With [`OnFailure::Closed`] the writer checks that the log can be
    /// written at this moment (invariant 5).
    pub async fn admits(&self) -> bool {
        match &self.0 {
            Some(log) => log.queue.admits().await,
            None => true,
        }
    }

    /// Queues a line. Returns what the answer has to wait for, if anything (invariants 4 and 5).
    #[must_use]
    pub fn write(&self, event: &Event<'_>) -> Option<PendingWrite> {
        let log = self.0.as_ref()?;
        log.queue.enqueue(event).map(|pending| PendingWrite { log: Arc::clone(log), pending })
    }

    /// Queues a line that nobody waits for.
    pub fn note(&self, event: &Event<'_>) {
        if let Some(log) = &self.0 {
            log.queue.note(event);
        }
    }

    /// The reasons why the log is unhealthy; empty if it is not. The writer checks whether it can write now, for at
    /// most [`AUDIT_CHECK_TIMEOUT`](crate::timeouts::AUDIT_CHECK_TIMEOUT).
    pub async fn health_problems(&self) -> Vec<&'static str> {
        let Some(log) = &self.0 else { return Vec::new() };
        let (unwritable, unrotatable) = log.queue.problems().await;
        [(unwritable, UNWRITABLE), (unrotatable, UNROTATABLE)]
            .into_iter()
            .filter(|(is, _)| *is)
            .map(|(_, it)| it)
            .collect()
    }

    /// Writes the queued lines and ends. Later lines are lost.
    pub async fn close(&self) {
        let Some(log) = &self.0 else { return };
        log.queue.close();
        if timeout(FINAL_AUDIT_TIMEOUT, log.ended.cancelled()).await.is_err() {
            tracing::error!("the last lines of the audit log are not written: it does not answer");
        }
    }
}

/// Describes the destination, or returns the error that [`Audit::start`] would. Changes nothing.
pub fn inspect(settings: &AuditSettings) -> Result<String, AuditError> {
    match &settings.to {
        Destination::Off => Ok("off".to_owned()),
        Destination::Stdout => Ok("to standard output".to_owned()),
        Destination::File(Rotation { path, .. }) => Ok(match file::inspect(path)? {
            Some(size) => format!("{}: {} KiB", path.display(), size.div_ceil(1024)),
            None => format!("{}: will be made at the first start", path.display()),
        }),
    }
}

/// A destination of lines. Where the operating system allows it, a call gives up after [`SINK_TIMEOUT`] with
/// [`io::ErrorKind::WouldBlock`].
trait Sink: Send {
    /// Appends lines. A file never keeps a part of a line.
    fn append(&mut self, lines: &[u8]) -> AppendResult;

    /// Checks whether lines can be appended now.
    fn check(&mut self) -> io::Result<()>;

    /// Reserves disk space for lines to come, where the file system can.
    fn reserve(&mut self) -> io::Result<()>;
}

/// How long a sink waits for another process. One that holds the file's lock to write needs milliseconds; a busy reader
/// of a pipe needs less than this.
const SINK_TIMEOUT: Duration = Duration::from_millis(400);

/// The result of an append.
#[derive(Debug, Default)]
struct AppendResult {
    /// How many bytes were written: all of them unless there is an error.
    bytes: usize,
    error: Option<io::Error>,
    /// Why a full file could not be rotated.
    unrotated: Option<io::Error>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    /// Takes nothing, for ever.
    struct Hanging;

    impl Sink for Hanging {
        fn append(&mut self, _: &[u8]) -> AppendResult {
            loop {
                thread::park();
            }
        }

        fn check(&mut self) -> io::Result<()> {
            Ok(())
        }

        fn reserve(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn the_end_leaves_a_writer_behind_that_hangs() {
        for on_failure in [OnFailure::Open, OnFailure::Closed] {
            let audit = Audit::to(Hanging, on_failure, Arc::new(SystemClock::new())).unwrap();
            let (origin, subject) = (Origin::of_peer("s", 0, None), Subject::default());
            audit.note(&Event {
                origin: &origin,
                operation: labels::UNKNOWN,
                subject: &subject,
                outcome: labels::OK,
                status: None,
                latency: Duration::ZERO,
                provider_called: false,
                own_line: true,
            });
            timeout(FINAL_AUDIT_TIMEOUT * 5, audit.close()).await.expect("it does not end");
        }
    }
}
