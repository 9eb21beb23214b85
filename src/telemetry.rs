//! Logs: structured lines on standard error.
//!
//! Invariants:
//! 1. No secret, body, header or query is ever logged, at any level. The libraries below log what passes through them
//!    at low levels, so their events above `info` are suppressed.
//! 2. Nobody waits for the reader of the log: a line that a full pipe or a stopped terminal does not accept is dropped.

use std::{
    io::{self, IsTerminal as _, Write},
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    Layer as _, filter::Targets, fmt::MakeWriter, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// How long a reader may be busy before lines are dropped.
const WRITE_TIMEOUT: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

const NO_WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// Sends events to standard error. `filter` is as in `CREDPROXY_LOG`: `info`, `credproxy=trace`, and the like. A second
/// call does nothing.
pub fn start(filter: &str) {
    let ours = Targets::new().with_target(env!("CARGO_PKG_NAME"), LevelFilter::TRACE).with_default(LevelFilter::INFO);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(StderrWriter::default())
        .with_ansi(io::stderr().is_terminal())
        .with_filter(wanted(filter))
        .with_filter(ours);
    if tracing_subscriber::registry().with(lines).try_init().is_err() {
        tracing::debug!("logging is already set up");
    }
}

/// The events that a filter selects; `info` if it is invalid.
fn wanted(filter: &str) -> Targets {
    filter.parse().unwrap_or_else(|_| Targets::new().with_default(LevelFilter::INFO))
}

/// Standard error, line by line.
#[derive(Default)]
struct StderrWriter {
    /// The last line was dropped: the next one does not wait.
    stuck: AtomicBool,
}

impl<'a> MakeWriter<'a> for StderrWriter {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

impl Write for &StderrWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut stderr = io::stderr().lock();
        let patience = if self.stuck.load(Ordering::Relaxed) { NO_WAIT } else { WRITE_TIMEOUT };
        // A pipe that is writable accepts 4,096 bytes (PIPE_BUF) at once, more than any line has.
        let mut room = [PollFd::new(&stderr, PollFlags::OUT)];
        let stuck = matches!(poll(&mut room, Some(&patience)), Ok(0) | Err(Errno::INTR));
        self.stuck.store(stuck, Ordering::Relaxed);
        if !stuck {
            stderr.write_all(line)?;
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_filter_is_a_level_or_levels_of_targets_and_else_info() {
        for (filter, target, most) in [
            ("info", "credproxy", Some(Level::INFO)),
            ("trace", "credproxy", Some(Level::TRACE)),
            ("credproxy::refresh=debug", "credproxy::refresh::flight", Some(Level::DEBUG)),
            ("credproxy::refresh=debug", "credproxy::server", None),
            ("warn,credproxy=debug", "hyper", Some(Level::WARN)),
            ("off", "credproxy", None),
            ("credproxy=loud", "credproxy", Some(Level::INFO)),
        ] {
            let levels = [Level::TRACE, Level::DEBUG, Level::INFO, Level::WARN, Level::ERROR];
            let found = levels.into_iter().find(|level| wanted(filter).would_enable(target, level));
            assert_eq!(found, most, "{filter}: {target}");
        }
    }
}
