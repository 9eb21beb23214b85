//! Between the requests, which are many and must not wait, and the one thread that writes.

use std::{
    io, mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

use super::{
    Appended, Event, OnFailure, Sink, Unwritten,
    fold::{Folds, Placed},
    line,
};
use crate::{
    clock::{Clock, Monotonic, Timestamp},
    timeouts::AUDIT_CHECK,
};

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

/// How often counts are written.
const SECOND: Duration = Duration::from_secs(1);

/// How long a write may take before it counts as one that fails, and how long a request waits for its line: more than
/// [`super::PATIENCE`], which ends most waits with an error that tells more.
const STALL: Duration = Duration::from_secs(1);

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
    /// Notified for the writer.
    work: Condvar,
    /// Notified for requests when something was written or could not be.
    moved: Notify,
}

#[derive(Default)]
struct State {
    /// Lines that the writer has not taken yet.
    lines: Vec<u8>,
    folds: Folds,
    /// When counts are to be written; set while there is anything in `folds`.
    flush_at: Option<Monotonic>,
    /// Bytes of lines that were taken in, ever.
    taken: u64,
    /// Of those, bytes that are written.
    written: u64,
    /// Lines that found no room, and of which nothing is written yet.
    lost: u64,
    /// The last line found no room: the next one does not wait.
    stuck: bool,
    /// How often it was asked whether the log can be written, and how many of those are answered.
    checks: (u64, u64),
    /// Since when the writer has been at the log, if it is.
    busy_since: Option<Monotonic>,
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

/// What the writer does next.
struct Turn {
    closing: bool,
    /// The checks that this answers.
    checks: u64,
}

impl State {
    fn waiting(&self) -> usize {
        usize::try_from(self.taken - self.written).unwrap_or(usize::MAX)
    }

    fn idle(&self) -> bool {
        self.lines.is_empty() && self.lost == 0 && !self.health.ailing() && !self.is_urgent()
    }

    /// Somebody waits.
    const fn is_urgent(&self) -> bool {
        self.closing || self.checks.0 > self.checks.1
    }

    /// Appends a line, if there is room. Gives where it ends.
    fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Option<u64> {
        let before = self.lines.len();
        write(&mut self.lines);
        let length = self.lines.len() - before;
        if self.closing || self.waiting() + length > MOST {
            self.lines.truncate(before);
            return None;
        }
        self.taken += length as u64;
        self.stuck = false;
        Some(self.taken)
    }

    /// Puts the counts of the last second among the lines.
    fn flush(&mut self) {
        let Self { folds, lines, taken, .. } = self;
        folds.flush(|event, count| {
            let before = lines.len();
            line::write_count(lines, event, count);
            *taken += (lines.len() - before) as u64;
            *taken
        });
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

    /// Whether the writer has been at the log for too long.
    fn is_stalled(&self, state: &State) -> bool {
        state.busy_since.is_some_and(|since| self.clock.monotonic().since(since) >= STALL)
    }

    fn is_ailing(&self, state: &State) -> bool {
        state.health.ailing() || self.is_stalled(state)
    }

    pub(super) const fn must_admit(&self) -> bool {
        matches!(self.on_failure, OnFailure::Closed)
    }

    pub(super) async fn admits(&self) -> bool {
        self.on_failure == OnFailure::Open || self.check().await
    }

    /// Whether it cannot be written, and whether it cannot be rotated.
    pub(super) async fn ailing(&self) -> (bool, bool) {
        let writable = self.check().await;
        let state = self.lock();
        (!writable || state.lost > 0, state.health.unrotated)
    }

    /// Whether the log can be written now, as the writer finds. Many may wait for one try.
    async fn check(&self) -> bool {
        let asked = {
            let mut state = self.lock();
            if self.is_ailing(&state) || state.closing {
                return false;
            }
            state.checks.0 += 1;
            state.checks.0
        };
        self.work.notify_one();
        let answered = async {
            loop {
                let moved = self.moved.notified();
                {
                    let state = self.lock();
                    if state.health.ailing() || state.closing {
                        return false;
                    }
                    if state.checks.1 >= asked {
                        return true;
                    }
                }
                moved.await;
            }
        };
        timeout(AUDIT_CHECK, answered).await.unwrap_or(false)
    }

    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.work.notify_one();
    }

    pub(super) fn note(&self, event: &Event<'_>) {
        if let Some(Pending::Room(_)) = self.take_in(event) {
            self.lock().lost += 1;
        }
    }

    /// Takes an event in; gives what is left to wait for.
    pub(super) fn take_in(&self, event: &Event<'_>) -> Option<Pending> {
        let now = self.clock.now();
        if event.own_line {
            let line = Self::line(now, event);
            let end = self.push(&line);
            return end.map_or(Some(Pending::Room(line)), |end| self.until_written(end, false));
        }
        let mut state = self.lock();
        let key = match state.folds.place(event, now) {
            Placed::Counted(end) => {
                let is_written = state.written >= end;
                drop(state);
                return self.until_written(end, is_written);
            }
            Placed::First(key) => key,
        };
        if state.flush_at.is_none() {
            state.flush_at = Some(self.clock.monotonic().plus(SECOND));
        }
        let before = state.lines.len();
        let Some(end) = state.push(|lines| line::write(lines, now, event)) else {
            // It is written with the counts, as soon as there is room again.
            state.folds.not_taken_in(key, event, now);
            drop(state);
            return self.until_written(u64::MAX, false);
        };
        state.folds.taken_in(key, end);
        self.wake(state, before);
        self.until_written(end, false)
    }

    const fn until_written(&self, end: u64, is_written: bool) -> Option<Pending> {
        match self.on_failure {
            OnFailure::Closed if !is_written => Some(Pending::Written(end)),
            OnFailure::Closed | OnFailure::Open => None,
        }
    }

    pub(super) async fn settle(&self, pending: Pending) -> Result<(), Unwritten> {
        let end = match pending {
            Pending::Written(end) => Some(end),
            Pending::Room(line) => self.push_patiently(&line).await,
        };
        match (self.on_failure, end) {
            (OnFailure::Open, _) => Ok(()),
            (OnFailure::Closed, Some(end)) => timeout(STALL, self.written(end)).await.unwrap_or(Err(Unwritten)),
            (OnFailure::Closed, None) => Err(Unwritten),
        }
    }

    fn line(now: Timestamp, event: &Event<'_>) -> Vec<u8> {
        let mut line = Vec::with_capacity(line::USUAL);
        line::write(&mut line, now, event);
        line
    }

    /// Takes a line in, if there is room. Gives how much must be written for it to be.
    fn push(&self, line: &[u8]) -> Option<u64> {
        let mut state = self.lock();
        let before = state.lines.len();
        let end = state.push(|lines| lines.extend_from_slice(line))?;
        self.wake(state, before);
        Some(end)
    }

    /// Tells the writer, if it is worth it, that there are more lines than before.
    fn wake(&self, state: MutexGuard<'_, State>, before: usize) {
        let now = state.lines.len();
        drop(state);
        if before == 0 || before < HURRY && now >= HURRY {
            self.work.notify_one();
        }
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
            state.stuck || state.closing || self.is_ailing(&state)
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
                if state.health.failing || self.is_stalled(&state) || state.closing && state.lines.is_empty() {
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
            let turn = self.next_batch(&mut batch);
            let appended = if batch.is_empty() {
                Appended { error: sink.check().err(), ..Appended::default() }
            } else {
                sink.append(&batch)
            };
            let reserved = if self.on_failure == OnFailure::Closed { sink.reserve() } else { Ok(()) };
            batch.drain(..appended.bytes);
            if batch.is_empty() && batch.capacity() > MOST / 2 {
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
                pause = (pause * 2).min(PAUSES.1);
            } else {
                pause = PAUSES.0;
            }
        }
    }

    /// Waits for lines and takes them, unless there are some left.
    fn next_batch(&self, batch: &mut Vec<u8>) -> Turn {
        let mut state = self.lock();
        if batch.is_empty() {
            let (woken, is_due) = self.await_work(state);
            state = woken;
            if self.on_failure == OnFailure::Open && !is_due {
                let more = |state: &mut State| !state.is_urgent() && state.lines.len() < HURRY;
                let waited = self.work.wait_timeout_while(state, LINGER, more);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            if is_due || state.closing {
                state.flush();
                let is_over = state.folds.is_empty();
                state.flush_at = (!is_over).then(|| self.clock.monotonic().plus(SECOND));
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

    /// Waits until there is something to do. Whether that is to write the counts.
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

    /// Tells everybody what became of a batch.
    fn tell(&self, appended: Appended, no_room: Option<io::Error>, checks: u64) {
        let Appended { bytes, error, unrotated } = appended;
        let now = Health { failing: error.is_some(), full: no_room.is_some(), unrotated: unrotated.is_some() };
        let before = {
            let mut state = self.lock();
            state.written += bytes as u64;
            state.checks.1 = checks;
            state.busy_since = None;
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
        /// Another process holds the lock.
        held: bool,
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

        /// How many events the lines tell of.
        fn events(&self) -> u64 {
            let times = |line: &str| -> u64 {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                line.get("times").map_or(1, |times| times.as_u64().unwrap())
            };
            self.text().lines().map(times).sum()
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
            if inside.held {
                return Appended { error: Some(io::ErrorKind::WouldBlock.into()), ..Appended::default() };
            }
            let room = inside.room.unwrap_or(usize::MAX).min(lines.len());
            let fitting = lines[..room].iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
            inside.lines.extend_from_slice(&lines[..fitting]);
            inside.room = inside.room.map(|room| room - fitting);
            let error = (fitting < lines.len()).then(|| io::ErrorKind::StorageFull.into());
            Appended { bytes: fitting, error, unrotated: None }
        }

        fn check(&mut self) -> io::Result<()> {
            let inside = self.0.1.wait_while(self.0.0.lock().unwrap(), |inside| inside.hangs).unwrap();
            if inside.held { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
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
                own_line: true,
            }
        }

        /// One that is counted with its equals.
        fn read(&self) -> Event<'_> {
            Event { own_line: false, ..self.event() }
        }

        async fn write(&self) -> Result<(), Unwritten> {
            self.write_event(&self.event()).await
        }

        async fn write_event(&self, event: &Event<'_>) -> Result<(), Unwritten> {
            let Some(pending) = self.queue.take_in(event) else { return Ok(()) };
            timeout(Duration::from_secs(10), self.queue.settle(pending)).await.expect("it hangs")
        }

        async fn healthy(&self) {
            while self.queue.ailing().await != (false, false) {
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
        let line = Queue::line(Timestamp::from_millis(0), &world.event()).len();
        let room = MOST / line;
        #[expect(clippy::disallowed_methods, reason = "how long a request waits is what is measured")]
        let start = Instant::now();
        for _ in 0..room + 10 {
            world.write().await.unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        assert_eq!(world.queue.ailing().await, (true, false));
        assert!(world.queue.admits().await);
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
        let line = Queue::line(Timestamp::from_millis(0), &world.event()).len();
        world.place.change(|inside| inside.room = Some(line * 3 + line / 2));
        for _ in 0..10 {
            world.write().await.unwrap();
        }
        world.place.has(3).await;
        while world.queue.ailing().await == (false, false) {
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
        assert!(!world.queue.admits().await);
        assert_eq!(world.write().await, Err(Unwritten));
        world.place.change(|inside| inside.room = None);
        world.place.has(12).await;
        world.healthy().await;
        assert!(world.queue.admits().await);
        world.write().await.unwrap();
        assert_eq!(world.place.lines(), 13);
    }

    #[tokio::test]
    async fn closed_operations_are_refused_while_those_under_way_still_have_room() {
        let world = World::new(OnFailure::Closed);
        world.place.change(|inside| inside.no_reserve = true);
        world.write().await.unwrap();
        while world.queue.admits().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        world.write().await.expect("it was admitted before");
        world.place.change(|inside| inside.no_reserve = false);
        world.healthy().await;
        assert!(world.queue.admits().await);
    }

    #[tokio::test]
    async fn equal_events_are_counted_and_all_of_them_are_written() {
        let mut world = World::new(OnFailure::Open);
        for _ in 0..10_000 {
            world.write_event(&world.read()).await.unwrap();
        }
        world.write().await.unwrap();
        world.place.has(3).await;
        world.write_event(&world.read()).await.unwrap();
        world.queue.close();
        world.writer.take().unwrap().join().unwrap();
        assert_eq!((world.place.lines(), world.place.events()), (4, 10_002));
        let text = world.place.text();
        assert!(!text.lines().next().unwrap().contains("times"), "the first is written at once: {text}");
        assert!(text.lines().nth(2).unwrap().contains("\"times\":9999,\"first_time\":"), "{text}");
        assert!(!text.lines().nth(3).unwrap().contains("times"), "{text}");
    }

    #[tokio::test]
    async fn counts_of_a_log_that_hangs_are_written_when_it_goes_on() {
        let world = World::new(OnFailure::Open);
        world.place.change(|inside| inside.hangs = true);
        while !world.queue.is_stalled(&world.queue.lock()) {
            world.write_event(&world.read()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(world.queue.ailing().await, (true, false));
        let subject = Subject::default();
        subject.account(crate::account::AccountRef::new("corp", None).unwrap());
        world.queue.lock().taken += MOST as u64;
        world.write_event(&Event { subject: &subject, ..world.read() }).await.unwrap();
        world.queue.lock().taken -= MOST as u64;
        world.place.change(|inside| inside.hangs = false);
        while !world.place.text().contains("corp") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(!world.place.text().contains("lost"), "what found no room was counted");
        world.healthy().await;
    }

    #[tokio::test]
    async fn closed_equals_wait_for_the_first_and_not_for_their_count() {
        let world = World::new(OnFailure::Closed);
        for _ in 0..100 {
            world.write_event(&world.read()).await.unwrap();
            assert_eq!(world.place.events(), 1);
        }
        world.place.has(2).await;
        assert_eq!(world.place.events(), 100);
    }

    #[tokio::test]
    async fn closed_a_log_that_hangs_is_one_that_fails() {
        let world = World::new(OnFailure::Closed);
        assert!(world.queue.admits().await);
        world.place.change(|inside| inside.hangs = true);
        let limit = Duration::from_secs(10);
        assert!(!timeout(limit, world.queue.admits()).await.expect("it waits without a limit"));
        assert_eq!(timeout(limit, world.write()).await.expect("it waits without a limit"), Err(Unwritten));
        assert!(!world.queue.admits().await, "it is known by now");
        assert_eq!(world.queue.ailing().await, (true, false));
        world.place.change(|inside| inside.hangs = false);
        world.healthy().await;
        assert!(world.queue.admits().await);
        world.write().await.unwrap();
        assert_eq!(world.place.events(), 2, "the line that was given up is written");
    }

    #[tokio::test]
    async fn a_lock_that_is_held_is_noticed_before_a_line_is_and_when_it_is_gone() {
        for on_failure in [OnFailure::Open, OnFailure::Closed] {
            let world = World::new(on_failure);
            world.write().await.unwrap();
            world.place.has(1).await;
            world.place.change(|inside| inside.held = true);
            assert_eq!(world.queue.admits().await, on_failure == OnFailure::Open);
            assert_eq!(world.queue.ailing().await, (true, false));
            world.place.change(|inside| inside.held = false);
            world.healthy().await;
            assert!(world.queue.admits().await);
            assert_eq!(world.place.lines(), 1);
        }
    }
}
