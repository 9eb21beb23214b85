//! The task that keeps the sandboxes, with clocks that a test sets.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use credproxy::{
    clock::{Clock, Monotonic, Timestamp},
    item::{Item, ItemKind, ItemTag},
    policy::Allowed,
    sandbox::{
        DEFAULT_MAX_SANDBOXES, Sandbox, SandboxActor, SandboxError, SandboxId, SandboxLifetime, SandboxRequest,
        SandboxRoot, Sandboxes, SocketHost,
    },
    secret::{CapabilityHash, Content},
    store::{Expect, ItemStore, StoreError, memory::MemoryStore},
};
use futures_util::FutureExt as _;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::support::store::{Intercepted, Interceptor, StoreCall};

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

/// What becomes of a write to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writes {
    Done,
    /// Nobody is answered until this changes.
    Stalled,
    Failed,
    /// Carried out, and the answer is an error: the connection broke, or the disk did at the last moment.
    DoneAndFailed,
}

/// Stalls the writes of items. A keeper asks for items alone.
#[derive(Debug)]
struct Stalling(watch::Sender<Writes>);

impl Stalling {
    fn set(&self, writes: Writes) {
        self.0.send_replace(writes);
    }
}

fn failed() -> Result<(), StoreError> {
    Err(StoreError::Unavailable("a test has it fail".into()))
}

#[async_trait]
impl Interceptor for Stalling {
    async fn before(&self, call: StoreCall) -> Result<(), StoreError> {
        if matches!(call, StoreCall::Item | StoreCall::Items) {
            return Ok(());
        }
        let writes = *self.0.subscribe().wait_for(|writes| *writes != Writes::Stalled).await.unwrap();
        match (call, writes) {
            (StoreCall::PutItem, Writes::Done | Writes::DoneAndFailed) | (StoreCall::DeleteItem, Writes::Done) => {
                Ok(())
            }
            (StoreCall::PutItem | StoreCall::DeleteItem, _) => failed(),
            other => unreachable!("{other:?}"),
        }
    }

    async fn after(&self, call: StoreCall) -> Result<(), StoreError> {
        if call == StoreCall::PutItem && *self.0.borrow() == Writes::DoneAndFailed { failed() } else { Ok(()) }
    }

    fn epoch(&self, _: u64) -> u64 {
        unreachable!()
    }
}

/// Notes what is done, and whether the store had the sandbox then.
#[derive(Debug, Clone)]
struct Noted {
    shelf: Arc<Intercepted<Box<MemoryStore>, Stalling>>,
    /// No socket can be made.
    broken: Arc<AtomicBool>,
    notes: Arc<Mutex<Vec<(&'static str, bool)>>>,
}

impl Noted {
    fn note(&self, what: &'static str, id: SandboxId) {
        let stored = self.shelf.inner.item(ItemKind::Sandbox, &id.into()).now_or_never().unwrap().unwrap().is_some();
        self.notes.lock().unwrap().push((what, stored));
    }

    fn take(&self) -> Vec<(&'static str, bool)> {
        std::mem::take(&mut self.notes.lock().unwrap())
    }
}

impl SocketHost for Noted {
    type Bound = SandboxId;
    type OpenSocket = SandboxId;

    async fn bind(&self, sandbox: &Sandbox) -> Result<SandboxId, String> {
        if self.broken.load(Ordering::Relaxed) {
            return Err("no directory can be made".to_owned());
        }
        self.note("bind", sandbox.id);
        Ok(sandbox.id)
    }

    fn open(&self, bound: SandboxId, sandbox: &Sandbox, _: Option<CapabilityHash>) -> SandboxId {
        self.note("open", sandbox.id);
        bound
    }

    async fn close_now(&self, door: SandboxId) {
        self.note("cut", door);
    }

    async fn drain(&self, door: SandboxId) {
        self.note("leave", door);
    }

    async fn remove_files(&self, sandbox: &Sandbox) {
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
    fn start(times: &Arc<Times>, doors: &Noted, root: &str) -> Self {
        let shelf: Arc<dyn ItemStore> = Arc::<Intercepted<Box<MemoryStore>, Stalling>>::clone(&doors.shelf);
        let clock: Arc<dyn Clock> = Arc::<Times>::clone(times);
        let root = SandboxRoot { name: root.into(), directory: root.into() };
        let (sandboxes, keeper) = SandboxActor::new(shelf, clock, root, doors.clone(), DEFAULT_MAX_SANDBOXES);
        let (stop, mut running) = (CancellationToken::new(), JoinSet::new());
        running.spawn(keeper.run(stop.clone()));
        Self { sandboxes, stop, running }
    }

    async fn make(&self, seconds: u64) -> Sandbox {
        let lifetime = Some(SandboxLifetime::of_secs(seconds).unwrap());
        let wanted = SandboxRequest { allowed: Allowed::default(), capability: false, lifetime, process: None };
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
    let shelf = Intercepted::new(Box::new(MemoryStore::new().unwrap()), Stalling(watch::Sender::new(Writes::Done)));
    Noted { shelf: Arc::new(shelf), broken: Arc::default(), notes: Arc::default() }
}

/// Long enough for a keeper to look at its clocks.
async fn a_look() {
    tokio::time::sleep(Duration::from_secs(31)).await;
}

const HOUR: Duration = Duration::from_hours(1);

#[tokio::test(start_paused = true)]
async fn the_store_has_a_sandbox_before_its_socket_and_until_after_it() {
    let (times, doors) = (Times::new(), doors());
    let daemon = Daemon::start(&times, &doors, "/run/a");
    let sandbox = daemon.make(60).await;
    assert_eq!(doors.take(), [("bind", false), ("open", true)]);
    daemon.sandboxes.delete(sandbox.id).await.unwrap();
    assert_eq!(doors.take(), [("cut", true), ("clear", true)]);
    assert!(doors.shelf.items(ItemKind::Sandbox).await.unwrap().is_empty());
    assert!(matches!(daemon.sandboxes.delete(sandbox.id).await, Err(SandboxError::NotFound)));
    daemon.make(60).await;
    daemon.end().await;
    assert_eq!(doors.take(), [("bind", false), ("open", true), ("leave", true)]);
}

#[tokio::test(start_paused = true)]
async fn the_clock_that_is_ahead_ends_a_sandbox() {
    let (times, doors) = (Times::new(), doors());
    let daemon = Daemon::start(&times, &doors, "/run/a");
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
    let daemon = Daemon::start(&times, &doors, "/run/a");
    daemon.make(3600).await;
    daemon.end().await;
    times.set(|wall, _| *wall = wall.minus(HOUR * 9999));
    let daemon = Daemon::start(&times, &doors, "/run/a");
    assert_eq!(daemon.count().await, 1);
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
    let theirs = Daemon::start(&times, &doors, "/run/theirs");
    let sandbox = theirs.make(3600).await;
    doors.take();
    let ours = Daemon::start(&times, &doors, "/run/ours");
    assert_eq!(ours.count().await, 0);
    assert!(matches!(ours.sandboxes.delete(sandbox.id).await, Err(SandboxError::NotFound)));
    ours.end().await;
    theirs.end().await;
    times.set(|wall, _| *wall = wall.plus(HOUR));
    let ours = Daemon::start(&times, &doors, "/run/ours");
    assert_eq!(ours.count().await, 0);
    assert_eq!(doors.take(), [("leave", true)]);
    assert!(doors.shelf.items(ItemKind::Sandbox).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_not_understood_stays_closed_and_can_be_deleted() {
    let (times, doors) = (Times::new(), doors());
    let daemon = Daemon::start(&times, &doors, "/run/a");
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
    let daemon = Daemon::start(&times, &doors, "/run/a");
    assert_eq!((daemon.count().await, doors.take()), (0, vec![]));
    daemon.sandboxes.delete(sandbox.id).await.unwrap();
    assert!(doors.shelf.items(ItemKind::Sandbox).await.unwrap().is_empty());
}

/// Until something is done that a test waits for. The clock of the runtime runs on while nothing else is to be done.
async fn until(doors: &Noted, what: &str) {
    while !doors.notes.lock().unwrap().iter().any(|(noted, _)| *noted == what) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_keeps_no_sandbox_alive() {
    let (times, doors) = (Times::new(), doors());
    let daemon = Daemon::start(&times, &doors, "/run/a");
    let (short, deleted) = (daemon.make(3).await, daemon.make(3600).await);
    doors.take();
    doors.shelf.set(Writes::Stalled);
    // One that is being made waits for the store, and keeps nobody else waiting.
    let sandboxes = daemon.sandboxes.clone();
    let mut asking = JoinSet::new();
    asking.spawn(async move {
        let wanted = SandboxRequest { allowed: Allowed::default(), capability: false, lifetime: None, process: None };
        sandboxes.create(wanted).await.map(drop)
    });
    until(&doors, "bind").await;
    times.set(|wall, monotonic| {
        (*wall, *monotonic) = (wall.plus(Duration::from_secs(3)), *monotonic + Duration::from_secs(3));
    });
    tokio::time::timeout(Duration::from_secs(31), until(&doors, "clear")).await.expect("a look at the clocks ends it");
    let listed: Vec<_> = daemon.sandboxes.list().await.unwrap().into_iter().map(|sandbox| sandbox.id).collect();
    assert_eq!(listed, [deleted.id], "{} has ended", short.id);

    // A deletion cuts first, and is answered once the store has answered.
    doors.take();
    let sandboxes = daemon.sandboxes.clone();
    asking.spawn(async move { sandboxes.delete(deleted.id).await });
    until(&doors, "clear").await;
    assert_eq!(daemon.count().await, 0);
    assert!(asking.try_join_next().is_none(), "nobody was told that the store has done it");
    doors.shelf.set(Writes::Done);
    while let Some(answered) = asking.join_next().await {
        answered.unwrap().unwrap();
    }
    assert_eq!(daemon.count().await, 1);
    daemon.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_daemon_ends_though_the_store_does_not_answer() {
    let (times, doors) = (Times::new(), doors());
    let daemon = Daemon::start(&times, &doors, "/run/a");
    let sandbox = daemon.make(3600).await;
    doors.shelf.set(Writes::Stalled);
    let (sandboxes, mut asking) = (daemon.sandboxes.clone(), JoinSet::new());
    asking.spawn(async move { sandboxes.delete(sandbox.id).await });
    until(&doors, "clear").await;
    daemon.end().await;
    assert!(matches!(asking.join_next().await.unwrap().unwrap(), Err(SandboxError::ShuttingDown)));
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_made_is_not_there_after_the_next_start() {
    for (broken, writes) in [(true, Writes::Failed), (false, Writes::Failed), (false, Writes::DoneAndFailed)] {
        let (times, doors) = (Times::new(), doors());
        let daemon = Daemon::start(&times, &doors, "/run/a");
        assert_eq!(daemon.count().await, 0);
        doors.broken.store(broken, Ordering::Relaxed);
        doors.shelf.set(writes);
        let wanted = SandboxRequest { allowed: Allowed::default(), capability: false, lifetime: None, process: None };
        let refused = daemon.sandboxes.create(wanted).await.unwrap_err();
        assert_eq!(matches!(refused, SandboxError::NoSocket(_)), broken, "{writes:?}: {refused}");
        assert_eq!(daemon.count().await, 0);
        // The store works again before the daemon ends.
        doors.shelf.set(Writes::Done);
        doors.broken.store(false, Ordering::Relaxed);
        times.set(|_, monotonic| *monotonic += Duration::from_secs(30));
        a_look().await;
        daemon.end().await;
        doors.take();
        let daemon = Daemon::start(&times, &doors, "/run/a");
        assert_eq!((daemon.count().await, doors.take()), (0, vec![]), "{writes:?}");
        daemon.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_the_store_refuses_is_tried_again() {
    let (times, doors) = (Times::new(), doors());
    let daemon = Daemon::start(&times, &doors, "/run/a");
    let sandbox = daemon.make(3600).await;
    doors.shelf.set(Writes::Failed);
    assert!(matches!(daemon.sandboxes.delete(sandbox.id).await, Err(SandboxError::Store(_))));
    assert_eq!(daemon.count().await, 0);
    doors.shelf.set(Writes::Done);
    times.set(|_, monotonic| *monotonic += Duration::from_secs(30));
    a_look().await;
    assert!(doors.shelf.items(ItemKind::Sandbox).await.unwrap().is_empty());
    assert!(matches!(daemon.sandboxes.delete(sandbox.id).await, Err(SandboxError::NotFound)));
    daemon.end().await;
}
