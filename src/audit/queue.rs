//! Between the requests, which are many and must not wait, and the one thread that writes.

use std::{
    io, mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

use super::{Appended, Event, OnFailure, Sink, Unwritten, line};
use crate::clock::Clock;

/// What may wait to be written: some thousands of lines, more than come in while a disk is busy.
const MOST: usize = 1024 * 1024;

/// How long the writer lets lines come together. Waking it for each one would cost as much as answering a request;
/// whoever follows the log does not notice so short a time.
const LINGER: Duration = Duration::from_millis(25);

/// So much is worth writing at once.
const HURRY: usize = 64 * 1024;

/// How long a request waits for room before its line is counted as lost.
const PATIENCE: Duration = Duration::from_millis(250);

/// The first and the longest pause between tries. A disk that has room again is to be noticed within a second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// What a request may have to wait for.
pub(super) enum Pending {
    /// So much is to be written.
    Written(u64),
    /// The line found no room.
    Room(Vec<u8>),
}

pub(super) struct Queue {
    on_failure: OnFailure,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// Rung for the writer.
    work: Condvar,
    /// Rung for requests when something was written or could not be.
    moved: Notify,
}

#[derive(Default)]
struct State {
    /// Lines that the writer has not taken yet.
    lines: Vec<u8>,
    /// Bytes of lines that were taken in, ever.
    taken: u64,
    /// Of those, bytes that are written.
    written: u64,
    /// Lines that found no room, and of which nothing is written yet.
    lost: u64,
    /// The last line found no room: the next one does not wait.
    stuck: bool,
    health: Health,
    closing: bool,
}

#[derive(Default, Clone, Copy)]
struct Health {
    /// The last write failed.
    failing: bool,
    /// There is no room for lines to come.
    full: bool,
    /// The file is too large, and could not be begun anew.
    unrotated: bool,
}

impl Health {
    const fn ailing(self) -> bool {
        self.failing || self.full
    }
}

impl State {
    fn waiting(&self) -> usize {
        usize::try_from(self.taken - self.written).unwrap_or(usize::MAX)
    }

    fn idle(&self) -> bool {
        self.lines.is_empty() && self.lost == 0 && !self.health.ailing() && !self.closing
    }
}

impl Queue {
    pub(super) fn new(on_failure: OnFailure, clock: Arc<dyn Clock>) -> Self {
        Self { on_failure, clock, state: Mutex::default(), work: Condvar::new(), moved: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn admits(&self) -> bool {
        self.on_failure == OnFailure::Open || !self.lock().health.ailing()
    }

    /// Whether it cannot be written, and whether it cannot be rotated.
    pub(super) fn ailing(&self) -> (bool, bool) {
        let state = self.lock();
        (state.health.ailing() || state.lost > 0, state.health.unrotated)
    }

    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.work.notify_one();
    }

    pub(super) fn note(&self, event: &Event<'_>) {
        if self.push(&self.line(event)).is_none() {
            self.lock().lost += 1;
        }
    }

    /// Takes a line in; gives what is left to wait for.
    pub(super) fn take_in(&self, event: &Event<'_>) -> Option<Pending> {
        let line = self.line(event);
        match (self.push(&line), self.on_failure) {
            (Some(_), OnFailure::Open) => None,
            (Some(end), OnFailure::Closed) => Some(Pending::Written(end)),
            (None, _) => Some(Pending::Room(line)),
        }
    }

    pub(super) async fn settle(&self, pending: Pending) -> Result<(), Unwritten> {
        let end = match pending {
            Pending::Written(end) => Some(end),
            Pending::Room(line) => self.push_patiently(&line).await,
        };
        match (self.on_failure, end) {
            (OnFailure::Open, _) => Ok(()),
            (OnFailure::Closed, Some(end)) => self.written(end).await,
            (OnFailure::Closed, None) => Err(Unwritten),
        }
    }

    fn line(&self, event: &Event<'_>) -> Vec<u8> {
        let mut line = Vec::with_capacity(line::USUAL);
        line::write(&mut line, self.clock.now(), event);
        line
    }

    /// Takes a line in, if there is room. Gives how much must be written for it to be.
    fn push(&self, line: &[u8]) -> Option<u64> {
        let mut state = self.lock();
        if state.closing || state.waiting() + line.len() > MOST {
            return None;
        }
        let before = state.lines.len();
        state.lines.extend_from_slice(line);
        state.taken += line.len() as u64;
        state.stuck = false;
        let (end, now) = (state.taken, state.lines.len());
        drop(state);
        if before == 0 || before < HURRY && now >= HURRY {
            self.work.notify_one();
        }
        Some(end)
    }

    /// The same with some patience, unless that was for nothing the last time.
    async fn push_patiently(&self, line: &[u8]) -> Option<u64> {
        let room = async {
            loop {
                let moved = self.moved.notified();
                if let Some(end) = self.push(line) {
                    return end;
                }
                moved.await;
            }
        };
        let hopeless = {
            let state = self.lock();
            state.stuck || state.health.failing || state.closing
        };
        let end = if hopeless { None } else { timeout(PATIENCE, room).await.ok() };
        if end.is_none() {
            let mut state = self.lock();
            state.stuck = true;
            state.lost += 1;
        }
        end
    }

    async fn written(&self, end: u64) -> Result<(), Unwritten> {
        loop {
            let moved = self.moved.notified();
            {
                let state = self.lock();
                if state.written >= end {
                    return Ok(());
                }
                if state.health.failing || state.closing && state.lines.is_empty() {
                    return Err(Unwritten);
                }
            }
            moved.await;
        }
    }

    /// Writes until it is closed: the writer's life.
    pub(super) fn drain(&self, mut sink: impl Sink) {
        let (mut batch, mut pause) = (Vec::new(), PAUSES.0);
        loop {
            let closing = self.next_batch(&mut batch);
            let appended = sink.append(&batch);
            let reserved = if self.on_failure == OnFailure::Closed { sink.reserve() } else { Ok(()) };
            batch.drain(..appended.bytes);
            if batch.is_empty() && batch.capacity() > MOST / 2 {
                batch = Vec::new();
            }
            let failed = appended.error.is_some() || reserved.is_err();
            self.tell(appended, reserved.err());
            if closing && (failed || self.lock().lines.is_empty()) {
                return self.end(&batch);
            }
            if failed {
                let state = self.lock();
                let waited = self.work.wait_timeout_while(state, pause, |state| !state.closing);
                drop(waited.unwrap_or_else(PoisonError::into_inner));
                pause = (pause * 2).min(PAUSES.1);
            } else {
                pause = PAUSES.0;
            }
        }
    }

    /// Waits for lines and takes them, unless there are some left. Gives whether these are the last.
    fn next_batch(&self, batch: &mut Vec<u8>) -> bool {
        let mut state = self.lock();
        if batch.is_empty() {
            state = self.work.wait_while(state, |state| state.idle()).unwrap_or_else(PoisonError::into_inner);
            if self.on_failure == OnFailure::Open {
                let more = |state: &mut State| !state.closing && state.lines.len() < HURRY;
                let waited = self.work.wait_timeout_while(state, LINGER, more);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            mem::swap(batch, &mut state.lines);
            let lost = mem::take(&mut state.lost);
            if lost > 0 {
                let before = batch.len();
                line::write_gap(batch, self.clock.now(), lost);
                state.taken += (batch.len() - before) as u64;
            }
        }
        state.closing
    }

    /// Tells everybody what became of a batch.
    fn tell(&self, appended: Appended, no_room: Option<io::Error>) {
        let Appended { bytes, error, unrotated } = appended;
        let now = Health { failing: error.is_some(), full: no_room.is_some(), unrotated: unrotated.is_some() };
        let before = {
            let mut state = self.lock();
            state.written += bytes as u64;
            mem::replace(&mut state.health, now)
        };
        self.moved.notify_waiters();
        match (before.ailing(), error.or(no_room)) {
            (false, Some(error)) => tracing::error!(%error, "the audit log cannot be written"),
            (true, None) => tracing::info!("the audit log can be written again"),
            (false, None) | (true, Some(_)) => {}
        }
        if let Some(error) = unrotated.filter(|_| !before.unrotated) {
            tracing::error!(%error, "the audit log is full and cannot be begun anew: it grows");
        }
    }

    fn end(&self, rest: &[u8]) {
        let mut state = self.lock();
        let lines = rest.iter().chain(&state.lines).filter(|byte| **byte == b'\n').count();
        state.lines.clear();
        drop(state);
        self.moved.notify_waiters();
        if lines > 0 {
            tracing::error!(lines, "ending without the last lines of the audit log");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::time::Instant;

    use super::*;
    use crate::{
        audit::{Origin, Subject, words},
        clock::SystemClock,
    };

    /// A place that lines go to, as a test likes.
    #[derive(Clone, Default)]
    struct Place(Arc<(Mutex<Inside>, Condvar)>);

    #[derive(Default)]
    struct Inside {
        lines: Vec<u8>,
        hangs: bool,
        /// Bytes that it still has room for; `None`: as many as come.
        room: Option<usize>,
        no_reserve: bool,
    }

    impl Place {
        fn change(&self, change: impl FnOnce(&mut Inside)) {
            change(&mut self.0.0.lock().unwrap());
            self.0.1.notify_all();
        }

        fn text(&self) -> String {
            String::from_utf8(self.0.0.lock().unwrap().lines.clone()).unwrap()
        }

        fn lines(&self) -> usize {
            self.text().lines().count()
        }

        async fn has(&self, lines: usize) {
            while self.lines() < lines {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    impl Sink for Place {
        fn append(&mut self, lines: &[u8]) -> Appended {
            let mut inside = self.0.1.wait_while(self.0.0.lock().unwrap(), |inside| inside.hangs).unwrap();
            let room = inside.room.unwrap_or(usize::MAX).min(lines.len());
            let fitting = lines[..room].iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            inside.lines.extend_from_slice(&lines[..fitting]);
            inside.room = inside.room.map(|room| room - fitting);
            let error = (fitting < lines.len()).then(|| io::ErrorKind::StorageFull.into());
            Appended { bytes: fitting, error, unrotated: None }
        }

        fn reserve(&mut self) -> io::Result<()> {
            if self.0.0.lock().unwrap().no_reserve { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }

    struct World {
        queue: Arc<Queue>,
        place: Place,
        origin: Origin,
        subject: Subject,
        writer: Option<thread::JoinHandle<()>>,
    }

    impl World {
        fn new(on_failure: OnFailure) -> Self {
            let queue = Arc::new(Queue::new(on_failure, Arc::new(SystemClock::new())));
            let (place, writing) = (Place::default(), Arc::clone(&queue));
            let sink = place.clone();
            let writer = Some(thread::spawn(move || writing.drain(sink)));
            Self { queue, place, origin: Origin::of_peer("s", 0, None), subject: Subject::default(), writer }
        }

        fn event(&self) -> Event<'_> {
            Event {
                origin: &self.origin,
                operation: "getToken",
                subject: &self.subject,
                outcome: words::OK,
                status: Some(200),
                latency: Duration::ZERO,
                provider_called: false,
            }
        }

        async fn write(&self) -> Result<(), Unwritten> {
            let Some(pending) = self.queue.take_in(&self.event()) else { return Ok(()) };
            timeout(Duration::from_secs(10), self.queue.settle(pending)).await.expect("it hangs")
        }

        async fn healthy(&self) {
            while self.queue.ailing() != (false, false) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            self.place.change(|inside| inside.hangs = false);
            self.queue.close();
            self.writer.take().map(thread::JoinHandle::join);
        }
    }

    #[tokio::test]
    async fn every_line_is_written_and_the_last_ones_at_the_end() {
        let mut world = World::new(OnFailure::Open);
        for _ in 0..1000 {
            world.write().await.unwrap();
        }
        world.place.has(1000).await;
        world.write().await.unwrap();
        world.queue.note(&world.event());
        world.queue.close();
        world.writer.take().unwrap().join().unwrap();
        assert_eq!(world.place.lines(), 1002);
    }

    #[tokio::test]
    async fn a_place_that_hangs_costs_requests_a_moment_once_and_what_is_lost_is_counted() {
        let world = World::new(OnFailure::Open);
        world.place.change(|inside| inside.hangs = true);
        let line = world.queue.line(&world.event()).len();
        let room = MOST / line;
        #[expect(clippy::disallowed_methods, reason = "how long a request waits is what is measured")]
        let start = Instant::now();
        for _ in 0..room + 10 {
            world.write().await.unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(world.queue.ailing(), (true, false));
        assert!(world.queue.admits());
        world.place.change(|inside| inside.hangs = false);
        world.place.has(room + 1).await;
        world.healthy().await;
        let text = world.place.text();
        assert_eq!(text.lines().filter(|line| line.contains("getToken")).count(), room);
        let gap = text.lines().find(|line| line.contains("lost")).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(gap).unwrap()["lost"], 10);
    }

    #[tokio::test]
    async fn what_a_full_place_does_not_take_is_written_once_it_has_room() {
        let world = World::new(OnFailure::Open);
        let line = world.queue.line(&world.event()).len();
        world.place.change(|inside| inside.room = Some(line * 3 + line / 2));
        for _ in 0..10 {
            world.write().await.unwrap();
        }
        world.place.has(3).await;
        while world.queue.ailing() == (false, false) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(world.place.lines(), 3);
        world.place.change(|inside| inside.room = None);
        world.place.has(10).await;
        world.healthy().await;
        assert_eq!(world.place.lines(), 10);
    }

    #[tokio::test]
    async fn closed_nothing_is_answered_before_its_line_is_written() {
        let world = World::new(OnFailure::Closed);
        for lines in 1..=10 {
            world.write().await.unwrap();
            assert_eq!(world.place.lines(), lines);
        }
        world.place.change(|inside| inside.room = Some(0));
        assert_eq!(world.write().await, Err(Unwritten));
        assert!(!world.queue.admits());
        assert_eq!(world.write().await, Err(Unwritten));
        world.place.change(|inside| inside.room = None);
        world.place.has(12).await;
        world.healthy().await;
        assert!(world.queue.admits());
        world.write().await.unwrap();
        assert_eq!(world.place.lines(), 13);
    }

    #[tokio::test]
    async fn closed_operations_are_refused_while_those_under_way_still_have_room() {
        let world = World::new(OnFailure::Closed);
        world.place.change(|inside| inside.no_reserve = true);
        world.write().await.unwrap();
        while world.queue.admits() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.write().await.expect("it was admitted before");
        world.place.change(|inside| inside.no_reserve = false);
        world.healthy().await;
        assert!(world.queue.admits());
    }
}
