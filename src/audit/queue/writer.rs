//! The writer thread's side of the queue: takes batches of lines, writes them, and reports the results.

use std::{
    io, mem,
    sync::{MutexGuard, PoisonError},
    time::Duration,
};

use super::{FLUSH_INTERVAL, FULL_BATCH_BYTES, Health, MAX_QUEUED_BYTES, Queue, State};
use crate::audit::{AppendResult, OnFailure, Sink, line};

/// How long the writer waits for more lines. To wake it for each line would cost as much as answering a request, and a
/// reader of the log does not notice so short a time.
const BATCH_DELAY: Duration = Duration::from_millis(25);

/// The first and the longest pause between tries. Recovery of the disk is noticed within a second.
const RETRY_DELAYS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// What the writer does next.
struct Turn {
    closing: bool,
    /// The checks that this answers.
    checks: u64,
}

impl Queue {
    /// Writes batches until the queue is closed.
    pub(in crate::audit) fn drain(&self, mut sink: impl Sink) {
        let (mut batch, mut pause) = (Vec::new(), RETRY_DELAYS.0);
        loop {
            let turn = self.next_batch(&mut batch);
            let appended = if batch.is_empty() {
                AppendResult { error: sink.check().err(), ..AppendResult::default() }
            } else {
                sink.append(&batch)
            };
            let reserved = if self.on_failure == OnFailure::Closed { sink.reserve() } else { Ok(()) };
            batch.drain(..appended.bytes);
            if batch.is_empty() && batch.capacity() > MAX_QUEUED_BYTES / 2 {
                batch = Vec::new();
            }
            let failed = appended.error.is_some() || reserved.is_err();
            self.tell(appended, reserved.err(), turn.checks);
            if turn.closing && (failed || self.lock().lines.is_empty()) {
                return self.end(&batch);
            }
            if failed {
                let state = self.lock();
                let waited = self.work.wait_timeout_while(state, pause, |state| !state.closing);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
                pause = (pause * 2).min(RETRY_DELAYS.1);
            } else {
                pause = RETRY_DELAYS.0;
            }
        }
    }

    /// Waits for lines and takes them, unless some are left from the last batch.
    fn next_batch(&self, batch: &mut Vec<u8>) -> Turn {
        let mut state = self.lock();
        if batch.is_empty() {
            let (woken, is_due) = self.await_work(state);
            state = woken;
            if self.on_failure == OnFailure::Open && !is_due {
                let more = |state: &mut State| !state.is_urgent() && state.lines.len() < FULL_BATCH_BYTES;
                let waited = self.work.wait_timeout_while(state, BATCH_DELAY, more);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            if is_due || state.closing {
                state.flush();
                let is_over = state.events.is_empty();
                state.flush_at = (!is_over).then(|| self.clock.monotonic().plus(FLUSH_INTERVAL));
            }
            mem::swap(batch, &mut state.lines);
            let lost = mem::take(&mut state.lost);
            if lost > 0 {
                let before = batch.len();
                line::write_gap(batch, self.clock.now(), lost);
                state.taken += (batch.len() - before) as u64;
            }
        }
        state.busy_since = Some(self.clock.monotonic());
        Turn { closing: state.closing, checks: state.checks.0 }
    }

    /// Waits until there is something to do. Returns whether the counts are due.
    fn await_work<'a>(&self, mut state: MutexGuard<'a, State>) -> (MutexGuard<'a, State>, bool) {
        loop {
            let left = state.flush_at.map(|at| at.since(self.clock.monotonic()));
            if left.is_some_and(|left| left.is_zero()) {
                return (state, true);
            }
            if !state.idle() {
                return (state, false);
            }
            state = match left {
                Some(left) => self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Reports the result of a batch to all waiting requests.
    fn tell(&self, appended: AppendResult, no_room: Option<io::Error>, checks: u64) {
        let AppendResult { bytes, error, unrotated } = appended;
        let now = Health { failing: error.is_some(), full: no_room.is_some(), unrotated: unrotated.is_some() };
        let before = {
            let mut state = self.lock();
            state.written += bytes as u64;
            state.checks.1 = checks;
            state.busy_since = None;
            mem::replace(&mut state.health, now)
        };
        self.progressed.notify_waiters();
        match (before.is_failing(), error.or(no_room)) {
            (false, Some(error)) => tracing::error!(%error, "the audit log cannot be written"),
            (true, None) => tracing::info!("the audit log can be written again"),
            (false, None) | (true, Some(_)) => {}
        }
        if let Some(error) = unrotated.filter(|_| !before.unrotated) {
            tracing::error!(%error, "the audit log has reached its size limit and cannot be rotated: it keeps growing");
        }
    }

    fn end(&self, rest: &[u8]) {
        let mut state = self.lock();
        let lines = rest.iter().chain(&state.lines).filter(|byte| **byte == b'\n').count();
        state.lines.clear();
        drop(state);
        self.progressed.notify_waiters();
        if lines > 0 {
            tracing::error!(lines, "stopping without the last lines of the audit log");
        }
    }
}
