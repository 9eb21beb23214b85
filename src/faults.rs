//! Fault injection: places where a test stops the program, and a clock that a test sets. Only builds with the feature
//! `faults` contain this module, and such a build is for tests alone.
//!
//! A test names a directory in `CREDPROXY_FAULTS` and writes files there:
//! - `stop`: names of steps, one per line. A task that reaches one of them adds a byte to the file `NAME.at`, and waits
//!   until the file `NAME.go` exists;
//! - `joined` is written by the program: a byte for each caller that has joined a flight;
//! - `clock`: two whole numbers, the offsets of the wall clock and of the monotonic clock in milliseconds. The file
//!   must be replaced, not overwritten.
//!
//! Must not know: what is done at a step.

use std::{
    env,
    fs::{self, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use crate::clock::{Clock, Monotonic, SystemClock, Timestamp};

/// How often a stopped step checks whether it may go on.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

#[expect(clippy::disallowed_methods, reason = "a test's variable is no configuration")]
static DIRECTORY: LazyLock<Option<PathBuf>> = LazyLock::new(|| env::var_os("CREDPROXY_FAULTS").map(PathBuf::from));

/// Returns at once, unless a test asked for a stop at `step`.
pub(crate) async fn reach(step: &str) {
    let Some(directory) = &*DIRECTORY else { return };
    let Ok(steps) = fs::read_to_string(directory.join("stop")) else { return };
    if steps.lines().any(|line| line == step) {
        if let Err(error) = announce(&directory.join(format!("{step}.at"))) {
            tracing::error!(step, %error, "the test's failure point is broken");
        }
        let go = directory.join(format!("{step}.go"));
        while !go.exists() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

/// Tells the test that a caller has joined a flight.
pub(crate) fn joined() {
    if let Some(directory) = &*DIRECTORY
        && let Err(error) = announce(&directory.join("joined"))
    {
        tracing::error!(%error, "the test's failure point is broken");
    }
}

fn announce(path: &Path) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).open(path)?.write_all(b".")
}

/// The machine's clocks with offsets that a test sets.
#[derive(Debug)]
pub(crate) struct OffsetClock {
    machine: SystemClock,
    /// The latest time told, so that the monotonic clock never goes back.
    latest: Mutex<Duration>,
}

impl OffsetClock {
    pub(crate) fn new() -> Self {
        Self { machine: SystemClock::new(), latest: Mutex::default() }
    }
}

/// The offsets of the wall clock and of the monotonic clock, in milliseconds.
fn ahead() -> (i64, i64) {
    let read = || {
        let text = fs::read_to_string(DIRECTORY.as_ref()?.join("clock")).ok()?;
        let (wall, monotonic) = text.trim().split_once(' ')?;
        Some((wall.parse().ok()?, monotonic.parse().ok()?))
    };
    read().unwrap_or_default()
}

impl Clock for OffsetClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.machine.now().as_millis().saturating_add(ahead().0))
    }

    fn monotonic(&self) -> Monotonic {
        let machine = self.machine.monotonic().since(Monotonic::new(Duration::ZERO));
        let by = ahead().1;
        let moved = Duration::from_millis(by.unsigned_abs());
        let moved = if by < 0 { machine.saturating_sub(moved) } else { machine.saturating_add(moved) };
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = moved.max(*latest);
        Monotonic::new(*latest)
    }
}
