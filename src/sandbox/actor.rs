//! The actor that creates, ends and lists sandboxes.
//!
//! It waits only for its timer, its requests, and its own tasks: every operation on the store or the file system runs
//! in a separate task, so that one that hangs keeps no sandbox alive.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    COMMAND_QUEUE_LENGTH, Command, Created, DEFAULT_LIFETIME, MAX_LIFETIME, Sandbox, SandboxError, SandboxId,
    SandboxLifetime, SandboxRequest, SandboxRoot, Sandboxes, SocketHost, TOO_MANY_RETRY_AFTER,
    definition::Definition,
    process::{Process, ProcessWatch},
};
use crate::{
    account::ItemName,
    clock::{Clock, Monotonic},
    item::{Item, ItemKind, ItemTag},
    secret::{CAPABILITY_BYTES, Capability},
    store::{Expect, ItemEntry, ItemStore, StoreError},
};

/// The longest interval between checks of the clocks: the wall clock may jump, and the machine may have slept. Failed
/// deletions are retried at the same interval.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// The interval between checks of tied processes. It only matters for a process that was killed; one that ends in order
/// deletes its sandbox.
const PROCESS_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long shutdown waits for operations on the store. The next start finds them done or not done.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// The reply channel of a request, whose caller may have gone away.
type ReplySender<T> = oneshot::Sender<Result<T, SandboxError>>;

/// Manages the sandboxes of one daemon.
#[derive(Debug)]
pub struct SandboxActor<D: SocketHost> {
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared<D>>,
    max: usize,
    entries: BTreeMap<SandboxId, Entry<D::OpenSocket>>,
    /// Its clones count the sandboxes that are being created.
    making: Arc<()>,
    /// The sandboxes of an earlier run are known.
    restored: bool,
    work: JoinSet<TaskResult<D::OpenSocket>>,
}

/// The parts that the actor's tasks need.
#[derive(Debug)]
struct Shared<D> {
    store: Arc<dyn ItemStore>,
    clock: Arc<dyn Clock>,
    root: SandboxRoot,
    socket_host: D,
}

#[derive(Debug)]
struct Entry<T> {
    sandbox: Sandbox,
    /// `None` if its socket could not be opened again, or is closed.
    socket: Option<T>,
    /// The process it is tied to.
    process: Option<ProcessWatch>,
    since: Monotonic,
    /// The remaining lifetime at that moment.
    left: Duration,
    /// It has ended, but may still be in the store.
    ended: Option<PendingRemoval>,
}

/// The pending removal of an ended sandbox.
#[derive(Debug)]
struct PendingRemoval {
    /// The last attempt to remove it from the store.
    tried: Monotonic,
    /// That attempt is under way.
    under_way: bool,
    /// The callers to notify once it is removed.
    asked: Vec<ReplySender<()>>,
}

/// The result of one of the actor's tasks.
#[derive(Debug)]
enum TaskResult<T> {
    /// The sandboxes of an earlier run were opened.
    Restored(Vec<Entry<T>>),
    /// A sandbox was created.
    Made(Entry<T>, Box<Created>, ReplySender<Created>),
    /// Creation failed, but the sandbox may be in the store.
    NotMade(Sandbox, SandboxError, ReplySender<Created>),
    /// A sandbox was ended, and its removal from the store attempted.
    Removed(SandboxId, Result<(), StoreError>),
    /// Nothing that the actor needs to know.
    Nothing,
}

impl<T> Entry<T> {
    /// How long until the entry needs attention.
    fn time_until_due(&self, clock: &dyn Clock) -> Duration {
        match (&self.ended, &self.process) {
            (Some(ended), _) if ended.under_way => CLOCK_CHECK_INTERVAL,
            (Some(ended), _) => CLOCK_CHECK_INTERVAL.saturating_sub(clock.monotonic().since(ended.tried)),
            (None, Some(process)) if process.has_ended() => Duration::ZERO,
            (None, Some(_)) => self.life(clock).min(PROCESS_CHECK_INTERVAL),
            (None, None) => self.life(clock),
        }
    }

    /// The remaining lifetime, by the clock that is ahead: neither a wall clock that was set back nor a sleeping
    /// machine prolongs it.
    fn life(&self, clock: &dyn Clock) -> Duration {
        let by_wall = self.sandbox.expires_at.since(clock.now());
        by_wall.min(self.left.saturating_sub(clock.monotonic().since(self.since)))
    }
}

impl<D: SocketHost> SandboxActor<D> {
    /// Returns the actor for the sandboxes that the store has for `root`, at most `max` at a time, and a handle to it.
    pub fn new(
        store: Arc<dyn ItemStore>,
        clock: Arc<dyn Clock>,
        root: SandboxRoot,
        socket_host: D,
        max: usize,
    ) -> (Sandboxes, Self) {
        let (sender, commands) = mpsc::channel(COMMAND_QUEUE_LENGTH);
        let shared = Arc::new(Shared { store, clock, root, socket_host });
        let (entries, making, work) = (BTreeMap::new(), Arc::default(), JoinSet::new());
        (Sandboxes(sender), Self { commands, shared, max, entries, making, restored: false, work })
    }

    /// Reopens the sandboxes of an earlier run, and manages them and new ones until `stop`. Shutdown leaves their
    /// directories and their entries in the store. Requests wait until the earlier sandboxes are known.
    pub async fn run(mut self, stop: CancellationToken) {
        self.work.spawn(Arc::clone(&self.shared).restore());
        loop {
            self.sweep();
            let time_until_due = self
                .entries
                .values()
                .map(|entry| entry.time_until_due(self.shared.clock.as_ref()))
                .fold(CLOCK_CHECK_INTERVAL, Duration::min);
            tokio::select! {
                () = stop.cancelled() => break,
                Some(done) = self.work.join_next() => self.task_finished(done),
                Some(command) = self.commands.recv(), if self.restored => self.handle(command),
                () = sleep(time_until_due), if !self.entries.is_empty() => {}
            }
        }
        self.finish().await;
    }

    async fn finish(mut self) {
        self.commands.close();
        // A creation or removal that is still waiting for the store gets only a moment.
        let last = async {
            while let Some(done) = self.work.join_next().await {
                self.task_finished(done);
            }
        };
        let mut leaving = JoinSet::new();
        let finished = timeout(SHUTDOWN_TIMEOUT, last).await;
        for socket in self.entries.into_values().filter_map(|entry| entry.socket) {
            let shared = Arc::clone(&self.shared);
            leaving.spawn(async move { shared.socket_host.drain(socket).await });
        }
        if finished.is_err() {
            tracing::warn!("the store did not answer the requests for sandboxes in time");
        }
        while leaving.join_next().await.is_some() {}
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Create(request, reply) => match self.prepare(request) {
                Ok((definition, watch, capability)) => {
                    let (shared, making) = (Arc::clone(&self.shared), Arc::clone(&self.making));
                    let since = shared.clock.monotonic();
                    self.work.spawn(async move {
                        let done = shared.make(definition, watch, capability, since, reply).await;
                        drop(making);
                        done
                    });
                }
                Err(error) => drop(reply.send(Err(error))),
            },
            Command::List(reply) => {
                let living = self.entries.values().filter(|entry| entry.ended.is_none());
                drop(reply.send(living.map(|entry| entry.sandbox.clone()).collect()));
            }
            Command::Delete(id, reply) if self.entries.contains_key(&id) => self.end(id, Some(reply)),
            Command::Delete(id, reply) => {
                let shared = Arc::clone(&self.shared);
                self.work.spawn(async move {
                    drop(reply.send(shared.delete_unread(id).await));
                    TaskResult::Nothing
                });
            }
        }
    }

    /// The resolved parameters of a new sandbox.
    fn prepare(
        &self,
        request: SandboxRequest,
    ) -> Result<(Definition, Option<ProcessWatch>, Option<Capability>), SandboxError> {
        if self.entries.len() + Arc::strong_count(&self.making) > self.max {
            return Err(SandboxError::TooMany { max: self.max, wait: TOO_MANY_RETRY_AFTER });
        }
        let process = request.process.map(Process::running).transpose().map_err(|_| SandboxError::NoProcess)?;
        let (process, watch) = process.unzip();
        let usual = if process.is_some() { MAX_LIFETIME } else { DEFAULT_LIFETIME };
        let lifetime = request.lifetime.map_or(usual, |SandboxLifetime(lifetime)| lifetime);
        let capability = request.capability.then(random::<CAPABILITY_BYTES>).transpose()?.map(Capability::from_bytes);
        let (id, root) = (SandboxId(u128::from_be_bytes(random()?)), &self.shared.root);
        let definition = Definition {
            id,
            root: root.name.clone(),
            directory: root.directory.join(id.directory_name()),
            allowed: request.allowed,
            capability: capability.as_ref().map(Capability::hash),
            lifetime,
            expires_at: self.shared.clock.now().plus(lifetime),
            process,
        };
        Ok((definition, watch, capability))
    }

    fn task_finished(&mut self, done: Result<TaskResult<D::OpenSocket>, JoinError>) {
        match done {
            Ok(TaskResult::Restored(found)) => {
                self.entries.extend(found.into_iter().map(|entry| (entry.sandbox.id, entry)));
                self.restored = true;
            }
            Ok(TaskResult::Made(entry, created, reply)) => {
                self.entries.insert(entry.sandbox.id, entry);
                drop(reply.send(Ok(*created)));
            }
            Ok(TaskResult::NotMade(sandbox, error, reply)) => {
                let (id, since) = (sandbox.id, self.shared.clock.monotonic());
                let entry = Entry { sandbox, socket: None, process: None, since, left: Duration::ZERO, ended: None };
                self.entries.insert(id, entry);
                self.end(id, None);
                drop(reply.send(Err(error)));
            }
            Ok(TaskResult::Removed(id, removed)) => self.removed(id, removed),
            Ok(TaskResult::Nothing) => {}
            Err(error) => {
                tracing::error!(%error, "a sandbox task failed");
                self.restored = true;
            }
        }
    }

    /// Ends sandboxes that have expired or whose process is gone, and retries pending removals.
    fn sweep(&mut self) {
        let due = |entry: &Entry<_>| entry.time_until_due(self.shared.clock.as_ref()).is_zero();
        let due: Vec<_> = self.entries.iter().filter(|(_, entry)| due(entry)).map(|(id, _)| *id).collect();
        for id in due {
            self.end(id, None);
        }
    }

    /// Invariant 3: it serves nobody from now on, whatever the store says.
    fn end(&mut self, id: SandboxId, reply: Option<ReplySender<()>>) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        let tried = self.shared.clock.monotonic();
        let ended = entry.ended.get_or_insert_with(|| PendingRemoval { tried, under_way: false, asked: Vec::new() });
        ended.asked.extend(reply);
        if ended.under_way {
            return;
        }
        (ended.tried, ended.under_way) = (tried, true);
        entry.process = None;
        let (shared, sandbox, socket) = (Arc::clone(&self.shared), entry.sandbox.clone(), entry.socket.take());
        self.work.spawn(async move {
            if let Some(socket) = socket {
                shared.socket_host.close_now(socket).await;
                tracing::info!(sandbox = %id, "sandbox ended");
            }
            shared.socket_host.remove_files(&sandbox).await;
            TaskResult::Removed(id, shared.delete(id).await)
        });
    }

    fn removed(&mut self, id: SandboxId, removed: Result<(), StoreError>) {
        let asked = match (self.entries.get_mut(&id).and_then(|entry| entry.ended.as_mut()), &removed) {
            (Some(ended), Err(error)) => {
                tracing::warn!(sandbox = %id, %error, "cannot remove an ended sandbox from the store yet");
                ended.under_way = false;
                std::mem::take(&mut ended.asked)
            }
            (Some(ended), Ok(())) => {
                let asked = std::mem::take(&mut ended.asked);
                self.entries.remove(&id);
                asked
            }
            (None, _) => return,
        };
        let removed = removed.map_err(Arc::new);
        for reply in asked {
            drop(reply.send(removed.clone().map_err(SandboxError::Store)));
        }
    }
}

impl<D: SocketHost> Shared<D> {
    async fn make(
        self: Arc<Self>,
        definition: Definition,
        process: Option<ProcessWatch>,
        capability: Option<Capability>,
        since: Monotonic,
        reply: ReplySender<Created>,
    ) -> TaskResult<D::OpenSocket> {
        let sandbox = definition.sandbox();
        let bound = match self.socket_host.bind(&sandbox).await {
            Ok(bound) => bound,
            Err(reason) => {
                self.socket_host.remove_files(&sandbox).await;
                drop(reply.send(Err(SandboxError::NoSocket(reason))));
                return TaskResult::Nothing;
            }
        };
        if let Err(error) = self.store(&definition).await {
            // A failed creation may have been committed: the actor removes it.
            drop(bound);
            self.socket_host.remove_files(&sandbox).await;
            return TaskResult::NotMade(sandbox, error, reply);
        }
        let socket = Some(self.socket_host.open(bound, &sandbox, definition.capability));
        tracing::info!(sandbox = %sandbox.id, directory = %sandbox.directory.display(), "sandbox made");
        let created = Created { sandbox: sandbox.clone(), capability };
        let entry = Entry { sandbox, socket, process, since, left: definition.lifetime, ended: None };
        TaskResult::Made(entry, Box::new(created), reply)
    }

    /// Reopens the sandboxes of an earlier run. One that cannot be opened is logged and skipped.
    async fn restore(self: Arc<Self>) -> TaskResult<D::OpenSocket> {
        let items = match self.store.items(ItemKind::Sandbox).await {
            Ok(items) => items,
            Err(error) => {
                tracing::error!(%error, "cannot read the sandboxes of the last run");
                return TaskResult::Restored(Vec::new());
            }
        };
        let mut found = Vec::with_capacity(items.len());
        for ItemEntry { name, item } in items {
            match item.map(|item| Definition::read(&name, &item.content)) {
                Ok(Some(definition)) => found.extend(self.reopen(definition).await),
                Ok(None) => tracing::warn!(sandbox = %name, "a sandbox has an unknown format; it stays closed"),
                Err(error) => tracing::warn!(sandbox = %name, %error, "a sandbox cannot be read; it stays closed"),
            }
        }
        TaskResult::Restored(found)
    }

    /// Reopens a sandbox of an earlier run, unless it has ended meanwhile.
    async fn reopen(&self, definition: Definition) -> Option<Entry<D::OpenSocket>> {
        let (sandbox, since) = (definition.sandbox(), self.clock.monotonic());
        // A wall clock that was set back does not prolong its life.
        let left = sandbox.expires_at.since(self.clock.now()).min(definition.lifetime);
        if definition.root != self.root.name {
            // It belongs to another daemon on the same store, which may be gone for good. Only that one may open it.
            if left.is_zero() {
                self.forget(sandbox.id).await;
            }
            return None;
        }
        match definition.process.map(Process::watch).transpose() {
            Ok(process) if !left.is_zero() => {
                let bound = self.socket_host.bind(&sandbox).await;
                if let Err(error) = &bound {
                    tracing::warn!(sandbox = %sandbox.id, error, "a sandbox stays closed");
                }
                let socket = bound.ok().map(|bound| self.socket_host.open(bound, &sandbox, definition.capability));
                Some(Entry { sandbox, socket, process, since, left, ended: None })
            }
            Ok(_) | Err(_) => {
                self.socket_host.remove_files(&sandbox).await;
                self.forget(sandbox.id).await;
                None
            }
        }
    }

    /// An unreadable item has no socket, but can be deleted.
    async fn delete_unread(&self, id: SandboxId) -> Result<(), SandboxError> {
        let name = id.into();
        match self.store.item(ItemKind::Sandbox, &name).await {
            Ok(None) => Err(SandboxError::NotFound),
            // It belongs to another daemon on the same store.
            Ok(Some(item)) if Definition::read(&name, &item.content).is_some() => Err(SandboxError::NotFound),
            Err(error) if error.is_transient() => Err(error.into()),
            Ok(Some(_)) | Err(_) => Ok(self.delete(id).await?),
        }
    }

    async fn store(&self, definition: &Definition) -> Result<(), SandboxError> {
        let content = definition.content().ok_or(SandboxError::Internal)?;
        let tag = ItemTag::random().map_err(|_| SandboxError::Internal)?;
        let (name, item): (ItemName, _) = (definition.id.into(), Item { tag, content });
        self.store.put_item(ItemKind::Sandbox, &name, &item, &Expect::Whatever).await?;
        Ok(())
    }

    async fn forget(&self, id: SandboxId) {
        if let Err(error) = self.delete(id).await {
            tracing::warn!(sandbox = %id, %error, "cannot remove an ended sandbox from the store");
        }
    }

    async fn delete(&self, id: SandboxId) -> Result<(), StoreError> {
        self.store.delete_item(ItemKind::Sandbox, &id.into(), &Expect::Whatever).await.map(drop)
    }
}

/// Random bytes from the operating system.
fn random<const N: usize>() -> Result<[u8; N], SandboxError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| SandboxError::Internal)?;
    Ok(bytes)
}
