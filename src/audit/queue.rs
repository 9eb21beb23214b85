//! The queue between the requests, which are many and must not block, and the one thread that writes.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

use super::{
    Event, OnFailure, Unwritten,
    aggregate::{EventAggregator, Placement},
    line,
};
use crate::{
    clock::{Clock, Monotonic, Timestamp},
    timeouts::AUDIT_CHECK_TIMEOUT,
};

mod writer;

/// Bytes that may wait to be written: some thousands of lines, more than arrive while a disk is busy.
const MAX_QUEUED_BYTES: usize = 1024 * 1024;

/// A batch of this size is written without further delay.
const FULL_BATCH_BYTES: usize = 64 * 1024;

/// How long a request waits for room before its line is counted as lost.
const ROOM_TIMEOUT: Duration = Duration::from_millis(250);

/// How often counts are written.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// How long a write may take before it counts as failed, and how long a request waits for its line. Longer than
/// [`super::SINK_TIMEOUT`], which ends most waits with a better error.
const STALL_TIMEOUT: Duration = Duration::from_secs(1);

/// What a request has to wait for.
pub(super) enum Pending {
    /// Everything up to this position is to be written.
    Written(u64),
    /// The line found no room in the queue.
    Room(Vec<u8>),
}

pub(super) struct Queue {
    on_failure: OnFailure,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Wakes the writer.
    work: Condvar,
    /// Wakes requests when something was written or a write failed.
    progressed: Notify,
}

#[derive(Default)]
struct State {
    /// Lines that the writer has not taken yet.
    lines: Vec<u8>,
    events: EventAggregator,
    /// When the counts are to be written; set while `events` is not empty.
    flush_at: Option<Monotonic>,
    /// Bytes of all lines ever queued.
    taken: u64,
    /// How many of those bytes are written.
    written: u64,
    /// Lines that were lost for lack of room and are not reported yet.
    lost: u64,
    /// The last line found no room: the next one does not wait.
    stuck: bool,
    /// How many checks were asked for, and how many of them are answered.
    checks: (u64, u64),
    /// Since when the writer is inside the sink, if it is.
    busy_since: Option<Monotonic>,
    health: Health,
    closing: bool,
}

#[derive(Default, Clone, Copy)]
struct Health {
    /// The last write failed.
    failing: bool,
    /// There is no disk space for lines to come.
    full: bool,
    /// The file is too large and could not be rotated.
    unrotated: bool,
}

impl Health {
    const fn is_failing(self) -> bool {
        self.failing || self.full
    }
}

impl State {
    fn waiting(&self) -> usize {
        usize::try_from(self.taken - self.written).unwrap_or(usize::MAX)
    }

    fn idle(&self) -> bool {
        self.lines.is_empty() && self.lost == 0 && !self.health.is_failing() && !self.is_urgent()
    }

    /// Somebody waits for the writer.
    const fn is_urgent(&self) -> bool {
        self.closing || self.checks.0 > self.checks.1
    }

    /// Appends a line if there is room. Returns the position of its end.
    fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Option<u64> {
        let before = self.lines.len();
        write(&mut self.lines);
        let length = self.lines.len() - before;
        if self.closing || self.waiting() + length > MAX_QUEUED_BYTES {
            self.lines.truncate(before);
            return None;
        }
        self.taken += length as u64;
        self.stuck = false;
        Some(self.taken)
    }

    /// Appends the counts of the last second to the lines.
    fn flush(&mut self) {
        let Self { events, lines, taken, .. } = self;
        events.flush(|event, count| {
            let before = lines.len();
            line::write_count(lines, event, count);
            *taken += (lines.len() - before) as u64;
            *taken
        });
    }
}

impl Queue {
    pub(super) fn new(on_failure: OnFailure, clock: Arc<dyn Clock>) -> Self {
        Self { on_failure, clock, state: Mutex::default(), work: Condvar::new(), progressed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the writer has been inside the sink for too long.
    fn is_stalled(&self, state: &State) -> bool {
        state.busy_since.is_some_and(|since| self.clock.monotonic().since(since) >= STALL_TIMEOUT)
    }

    fn is_unhealthy(&self, state: &State) -> bool {
        state.health.is_failing() || self.is_stalled(state)
    }

    pub(super) const fn must_admit(&self) -> bool {
        matches!(self.on_failure, OnFailure::Closed)
    }

    pub(super) async fn admits(&self) -> bool {
        self.on_failure == OnFailure::Open || self.check().await
    }

    /// Whether the log cannot be written, and whether it cannot be rotated.
    pub(super) async fn problems(&self) -> (bool, bool) {
        let writable = self.check().await;
        let state = self.lock();
        (!writable || state.lost > 0, state.health.unrotated)
    }

    /// Has the writer check whether the log can be written now. Several callers may share one check.
    async fn check(&self) -> bool {
        let asked = {
            let mut state = self.lock();
            if self.is_unhealthy(&state) || state.closing {
                return false;
            }
            state.checks.0 += 1;
            state.checks.0
        };
        self.work.notify_one();
        let answered = async {
            loop {
                let progressed = self.progressed.notified();
                {
                    let state = self.lock();
                    if state.health.is_failing() || state.closing {
                        return false;
                    }
                    if state.checks.1 >= asked {
                        return true;
                    }
                }
                progressed.await;
            }
        };
        timeout(AUDIT_CHECK_TIMEOUT, answered).await.unwrap_or(false)
    }

    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.work.notify_one();
    }

    pub(super) fn note(&self, event: &Event<'_>) {
        if let Some(Pending::Room(_)) = self.enqueue(event) {
            self.lock().lost += 1;
        }
    }

    /// Queues an event. Returns what is left to wait for.
    pub(super) fn enqueue(&self, event: &Event<'_>) -> Option<Pending> {
        let now = self.clock.now();
        if event.own_line {
            let line = Self::line(now, event);
            let end = self.push(&line);
            return end.map_or(Some(Pending::Room(line)), |end| self.until_written(end, false));
        }
        let mut state = self.lock();
        let key = match state.events.record(event, now) {
            Placement::Counted(end) => {
                let is_written = state.written >= end;
                drop(state);
                return self.until_written(end, is_written);
            }
            Placement::First(key) => key,
        };
        if state.flush_at.is_none() {
            state.flush_at = Some(self.clock.monotonic().plus(FLUSH_INTERVAL));
        }
        let before = state.lines.len();
        let Some(end) = state.push(|lines| line::write(lines, now, event)) else {
            // It is written with the counts as soon as there is room again.
            state.events.count_unwritten(key, event, now);
            drop(state);
            return self.until_written(u64::MAX, false);
        };
        state.events.set_line_end(key, end);
        self.wake(state, before);
        self.until_written(end, false)
    }

    const fn until_written(&self, end: u64, is_written: bool) -> Option<Pending> {
        match self.on_failure {
            OnFailure::Closed if !is_written => Some(Pending::Written(end)),
            OnFailure::Closed | OnFailure::Open => None,
        }
    }

    pub(super) async fn wait_written(&self, pending: Pending) -> Result<(), Unwritten> {
        let end = match pending {
            Pending::Written(end) => Some(end),
            Pending::Room(line) => self.push_waiting(&line).await,
        };
        match (self.on_failure, end) {
            (OnFailure::Open, _) => Ok(()),
            (OnFailure::Closed, Some(end)) => timeout(STALL_TIMEOUT, self.written(end)).await.unwrap_or(Err(Unwritten)),
            (OnFailure::Closed, None) => Err(Unwritten),
        }
    }

    fn line(now: Timestamp, event: &Event<'_>) -> Vec<u8> {
        let mut line = Vec::with_capacity(line::INITIAL_LINE_CAPACITY);
        line::write(&mut line, now, event);
        line
    }

    /// Queues a line if there is room. Returns the position up to which the log must be written.
    fn push(&self, line: &[u8]) -> Option<u64> {
        let mut state = self.lock();
        let before = state.lines.len();
        let end = state.push(|lines| lines.extend_from_slice(line))?;
        self.wake(state, before);
        Some(end)
    }

    /// Wakes the writer if that is worth it. `before` is the number of queued bytes before the last line.
    fn wake(&self, state: MutexGuard<'_, State>, before: usize) {
        let now = state.lines.len();
        drop(state);
        if before == 0 || before < FULL_BATCH_BYTES && now >= FULL_BATCH_BYTES {
            self.work.notify_one();
        }
    }

    /// Queues a line, waiting for room for a while unless the last line waited in vain.
    async fn push_waiting(&self, line: &[u8]) -> Option<u64> {
        let room = async {
            loop {
                let progressed = self.progressed.notified();
                if let Some(end) = self.push(line) {
                    return end;
                }
                progressed.await;
            }
        };
        let hopeless = {
            let state = self.lock();
            state.stuck || state.closing || self.is_unhealthy(&state)
        };
        let end = if hopeless { None } else { timeout(ROOM_TIMEOUT, room).await.ok() };
        if end.is_none() {
            let mut state = self.lock();
            state.stuck = true;
            state.lost += 1;
        }
        end
    }

    async fn written(&self, end: u64) -> Result<(), Unwritten> {
        loop {
            let progressed = self.progressed.notified();
            {
                let state = self.lock();
                if state.written >= end {
                    return Ok(());
                }
                if state.health.failing || self.is_stalled(&state) || state.closing && state.lines.is_empty() {
                    return Err(Unwritten);
                }
            }
            progressed.await;
        }
    }
}

#[cfg(test)]
mod tests;
