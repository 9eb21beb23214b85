use std::{io, thread};

use tokio::time::Instant;

use super::*;
use crate::{
    audit::{AppendResult, Origin, Sink, Subject, labels},
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
    fn append(&mut self, lines: &[u8]) -> AppendResult {
        let mut inside = self.0.1.wait_while(self.0.0.lock().unwrap(), |inside| inside.hangs).unwrap();
        if inside.held {
            return AppendResult { error: Some(io::ErrorKind::WouldBlock.into()), ..AppendResult::default() };
        }
        let room = inside.room.unwrap_or(usize::MAX).min(lines.len());
        let fitting = lines[..room].iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        inside.lines.extend_from_slice(&lines[..fitting]);
        inside.room = inside.room.map(|room| room - fitting);
        let error = (fitting < lines.len()).then(|| io::ErrorKind::StorageFull.into());
        AppendResult { bytes: fitting, error, unrotated: None }
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
            outcome: labels::OK,
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
        let Some(pending) = self.queue.enqueue(event) else { return Ok(()) };
        timeout(Duration::from_secs(10), self.queue.wait_written(pending)).await.expect("it hangs")
    }

    async fn healthy(&self) {
        while self.queue.problems().await != (false, false) {
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
    let room = MAX_QUEUED_BYTES / line;
    #[expect(clippy::disallowed_methods, reason = "how long a request waits is what is measured")]
    let start = Instant::now();
    for _ in 0..room + 10 {
        world.write().await.unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(world.queue.problems().await, (true, false));
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
    while world.queue.problems().await == (false, false) {
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
    assert_eq!(world.queue.problems().await, (true, false));
    let subject = Subject::default();
    subject.account(crate::account::AccountRef::new("corp", None).unwrap());
    world.queue.lock().taken += MAX_QUEUED_BYTES as u64;
    world.write_event(&Event { subject: &subject, ..world.read() }).await.unwrap();
    world.queue.lock().taken -= MAX_QUEUED_BYTES as u64;
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
    assert_eq!(world.queue.problems().await, (true, false));
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
        assert_eq!(world.queue.problems().await, (true, false));
        world.place.change(|inside| inside.held = false);
        world.healthy().await;
        assert!(world.queue.admits().await);
        assert_eq!(world.place.lines(), 1);
    }
}
