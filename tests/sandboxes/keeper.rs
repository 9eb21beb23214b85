//! The task that keeps the sandboxes, with clocks that a test sets.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use credproxy::{
    clock::{Clock, Monotonic, Timestamp},
    item::{Item, ItemKind, ItemTag},
    policy::Allowed,
    sandbox::{Doors, Keeper, Lifetime, MOST, Sandbox, SandboxError, SandboxId, Sandboxes, Wanted},
    secret::{CapabilityHash, Content},
    store::{Expect, Shelf, memory::Memory},
};
use futures_util::FutureExt as _;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Both clocks, as a test sets them.
#[derive(Debug)]
struct Times(Mutex<(Timestamp, Duration)>);

impl Times {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new((Timestamp::from_secs(1_795_000_000), Duration::ZERO))))
    }

    fn set(&self, change: impl FnOnce(&mut Timestamp, &mut Duration)) {
        let (wall, monotonic) = &mut *self.0.lock().unwrap();
        change(wall, monotonic);
    }
}

impl Clock for Times {
    fn now(&self) -> Timestamp {
        self.0.lock().unwrap().0
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic::new(self.0.lock().unwrap().1)
    }
}

/// Notes what is done, and whether the store had the sandbox then.
#[derive(Debug, Clone)]
struct Noted {
    shelf: Arc<Memory>,
    notes: Arc<Mutex<Vec<(&'static str, bool)>>>,
}

impl Noted {
    fn note(&self, what: &'static str, id: SandboxId) {
        let stored = self.shelf.item(ItemKind::Sandbox, &id.into()).now_or_never().unwrap().unwrap().is_some();
        self.notes.lock().unwrap().push((what, stored));
    }

    fn take(&self) -> Vec<(&'static str, bool)> {
        std::mem::take(&mut self.notes.lock().unwrap())
    }
}

impl Doors for Noted {
    type Door = SandboxId;

    fn open(&self, sandbox: &Sandbox, _: Option<CapabilityHash>) -> Result<SandboxId, String> {
        self.note("open", sandbox.id);
        Ok(sandbox.id)
    }

    async fn cut(&self, door: SandboxId) {
        self.note("cut", door);
    }

    async fn leave(&self, door: SandboxId) {
        self.note("leave", door);
    }

    fn clear(&self, sandbox: &Sandbox) {
        self.note("clear", sandbox.id);
    }
}

/// A keeper, as a daemon would have it.
struct Daemon {
    sandboxes: Sandboxes,
    stop: CancellationToken,
    running: JoinSet<()>,
}

impl Daemon {
    async fn start(times: &Arc<Times>, doors: &Noted, root: &str) -> Self {
        let shelf: Arc<dyn Shelf> = Arc::<Memory>::clone(&doors.shelf);
        let clock: Arc<dyn Clock> = Arc::<Times>::clone(times);
        let (sandboxes, mut keeper) = Keeper::new(shelf, clock, root.into(), doors.clone(), MOST);
        keeper.restore().await;
        let (stop, mut running) = (CancellationToken::new(), JoinSet::new());
        running.spawn(keeper.run(stop.clone()));
        Self { sandboxes, stop, running }
    }

    async fn make(&self, seconds: u64) -> Sandbox {
        let lifetime = Some(Lifetime::of_secs(seconds).unwrap());
        let wanted = Wanted { allowed: Allowed::default(), capability: false, lifetime, process: None };
        self.sandboxes.create(wanted).await.unwrap().sandbox
    }

    async fn count(&self) -> usize {
        self.sandboxes.list().await.unwrap().len()
    }

    async fn end(mut self) {
        self.stop.cancel();
        while self.running.join_next().await.is_some() {}
        assert!(matches!(self.sandboxes.list().await, Err(SandboxError::ShuttingDown)));
    }
}

fn doors() -> Noted {
    Noted { shelf: Arc::new(Memory::new().unwrap()), notes: Arc::default() }
}

/// Long enough for a keeper to look at its clocks.
async fn a_look() {
    tokio::time::sleep(Duration::from_secs(31)).await;
}

const HOUR: Duration = Duration::from_hours(1);

#[tokio::test(start_paused = true)]
async fn the_store_has_a_sandbox_before_its_socket_and_until_after_it() {
    let (times, doors) = (Times::new(), doors());
    let daemon = Daemon::start(&times, &doors, "/run/a").await;
    let sandbox = daemon.make(60).await;
    assert_eq!(doors.take(), [("open", true)]);
    daemon.sandboxes.delete(sandbox.id).await.unwrap();
    assert_eq!(doors.take(), [("cut", true), ("clear", true)]);
    assert!(doors.shelf.items(ItemKind::Sandbox).await.unwrap().is_empty());
    assert!(matches!(daemon.sandboxes.delete(sandbox.id).await, Err(SandboxError::NotFound)));
    daemon.make(60).await;
    daemon.end().await;
    assert_eq!(doors.take(), [("open", true), ("leave", true)]);
}

#[tokio::test(start_paused = true)]
async fn the_clock_that_is_ahead_ends_a_sandbox() {
    let (times, doors) = (Times::new(), doors());
    let daemon = Daemon::start(&times, &doors, "/run/a").await;
    daemon.make(3600).await;
    a_look().await;
    assert_eq!(daemon.count().await, 1);
    // The machine slept.
    times.set(|wall, _| *wall = wall.plus(HOUR));
    a_look().await;
    assert_eq!(daemon.count().await, 0);
    // The time was set back, and an hour passes.
    daemon.make(3600).await;
    times.set(|wall, monotonic| (*wall, *monotonic) = (wall.minus(HOUR * 9999), *monotonic + HOUR));
    a_look().await;
    assert_eq!(daemon.count().await, 0);
    daemon.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_back_between_two_daemons_gives_no_more_than_the_whole_life() {
    let (times, doors) = (Times::new(), doors());
    let daemon = Daemon::start(&times, &doors, "/run/a").await;
    daemon.make(3600).await;
    daemon.end().await;
    times.set(|wall, _| *wall = wall.minus(HOUR * 9999));
    let daemon = Daemon::start(&times, &doors, "/run/a").await;
    times.set(|_, monotonic| *monotonic += HOUR.saturating_sub(Duration::from_millis(1)));
    a_look().await;
    assert_eq!(daemon.count().await, 1);
    times.set(|_, monotonic| *monotonic += Duration::from_millis(1));
    a_look().await;
    assert_eq!(daemon.count().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_sandbox_of_another_daemon_is_left_to_it_until_its_time_is_up() {
    let (times, doors) = (Times::new(), doors());
    let theirs = Daemon::start(&times, &doors, "/run/theirs").await;
    let sandbox = theirs.make(3600).await;
    doors.take();
    let ours = Daemon::start(&times, &doors, "/run/ours").await;
    assert_eq!(ours.count().await, 0);
    assert!(matches!(ours.sandboxes.delete(sandbox.id).await, Err(SandboxError::NotFound)));
    ours.end().await;
    theirs.end().await;
    times.set(|wall, _| *wall = wall.plus(HOUR));
    drop(Daemon::start(&times, &doors, "/run/ours").await);
    assert_eq!(doors.take(), [("leave", true)]);
    assert!(doors.shelf.items(ItemKind::Sandbox).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_understood_stays_closed_and_can_be_deleted() {
    let (times, doors) = (Times::new(), doors());
    let daemon = Daemon::start(&times, &doors, "/run/a").await;
    let sandbox = daemon.make(3600).await;
    daemon.end().await;
    let name = sandbox.id.into();
    let item = doors.shelf.item(ItemKind::Sandbox, &name).await.unwrap().unwrap();
    #[expect(clippy::disallowed_methods, reason = "a test writes another definition")]
    let text = String::from_utf8(secrecy::ExposeSecret::expose_secret(&item.content).to_vec()).unwrap();
    // A later version might forbid something more.
    let later = text.replace("\"allow\":[]", "\"allow\":[],\"forbid\":[\"corp\"]");
    assert_ne!(text, later);
    let item = Item { tag: ItemTag::random().unwrap(), content: Content::new(later.into_bytes()) };
    doors.shelf.put_item(ItemKind::Sandbox, &name, &item, &Expect::Present).await.unwrap();
    doors.take();
    let daemon = Daemon::start(&times, &doors, "/run/a").await;
    assert_eq!((daemon.count().await, doors.take()), (0, vec![]));
    daemon.sandboxes.delete(sandbox.id).await.unwrap();
    assert!(doors.shelf.items(ItemKind::Sandbox).await.unwrap().is_empty());
}
