//! The task that keeps the sandboxes: it makes, ends and lists them.
//!
//! It waits for nothing but its timer, what is asked of it, and the end of what it has begun: everything that the store
//! or the file system may take its time for is done by tasks of its own. So none that hangs keeps a sandbox alive.

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

/// How often the clocks are looked at, at least: the wall clock may jump, and the machine may have slept. A deletion
/// that the store refused is tried again as often.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// How often the processes are looked at that sandboxes are tied to. Soon enough for one that was killed; one that ends
/// in order deletes its sandbox.
const PROCESS_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How long the daemon's end waits for what the store was asked. The next start finds it done or not done.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Whoever asked for something, and may have hung up.
type ReplySender<T> = oneshot::Sender<Result<T, SandboxError>>;

/// Keeps the sandboxes of one daemon.
#[derive(Debug)]
pub struct SandboxActor<D: SocketHost> {
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared<D>>,
    max: usize,
    entries: BTreeMap<SandboxId, Entry<D::OpenSocket>>,
    /// Counted by its clones: the sandboxes that are being made.
    making: Arc<()>,
    /// Those of an earlier daemon are known.
    restored: bool,
    work: JoinSet<TaskResult<D::OpenSocket>>,
}

/// What the tasks of a keeper need.
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
    /// `None` when its socket could not be opened again, or is gone.
    socket: Option<T>,
    /// The process that it is tied to.
    process: Option<ProcessWatch>,
    since: Monotonic,
    /// What was left of its life then.
    left: Duration,
    /// It has ended, and may be in the store still.
    ended: Option<PendingRemoval>,
}

/// What is left to do about a sandbox that has ended.
#[derive(Debug)]
struct PendingRemoval {
    /// The last try to remove it from the store.
    tried: Monotonic,
    /// That try is under way.
    under_way: bool,
    /// Who waits to be told that it is gone.
    asked: Vec<ReplySender<()>>,
}

/// What a task of the keeper's has done.
#[derive(Debug)]
enum TaskResult<T> {
    /// The sandboxes of an earlier daemon were opened.
    Restored(Vec<Entry<T>>),
    /// A new one was made.
    Made(Entry<T>, Box<Created>, ReplySender<Created>),
    /// It was not, and may be in the store all the same.
    NotMade(Sandbox, SandboxError, ReplySender<Created>),
    /// One was ended, and the store told to forget it.
    Removed(SandboxId, Result<(), StoreError>),
    /// Nothing that the keeper has to know of.
    Nothing,
}

impl<T> Entry<T> {
    /// How long there is nothing to be done about it.
    fn time_until_due(&self, clock: &dyn Clock) -> Duration {
        match (&self.ended, &self.process) {
            (Some(ended), _) if ended.under_way => CLOCK_CHECK_INTERVAL,
            (Some(ended), _) => CLOCK_CHECK_INTERVAL.saturating_sub(clock.monotonic().since(ended.tried)),
            (None, Some(process)) if process.has_ended() => Duration::ZERO,
            (None, Some(_)) => self.life(clock).min(PROCESS_CHECK_INTERVAL),
            (None, None) => self.life(clock),
        }
    }

    /// What is left of its life, by the clock that is ahead: neither a wall clock that was set back nor the sleep of the
    /// machine makes it longer.
    fn life(&self, clock: &dyn Clock) -> Duration {
        let by_wall = self.sandbox.expires_at.since(clock.now());
        by_wall.min(self.left.saturating_sub(clock.monotonic().since(self.since)))
    }
}

impl<D: SocketHost> SandboxActor<D> {
    /// A keeper of the sandboxes that the store has for `root`, `max` of them at once, and the way to ask it.
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

    /// Opens the sandboxes of an earlier daemon again, and keeps these and new ones until `stop`. The daemon's end leaves
    /// their directories behind, and them in the store. Until those of before are known, whoever asks waits.
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
        // What is still being made or ended may wait for the store, and gets no more than a moment.
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
            tracing::warn!("the store did not answer what was asked of it about sandboxes");
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

    /// What a new sandbox is to be.
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
                tracing::error!(%error, "a task of the sandboxes' broke off");
                self.restored = true;
            }
        }
    }

    /// Ends those whose time is up or whose process is gone, and tries again to forget those that have ended.
    fn sweep(&mut self) {
        let due = |entry: &Entry<_>| entry.time_until_due(self.shared.clock.as_ref()).is_zero();
        let due: Vec<_> = self.entries.iter().filter(|(_, entry)| due(entry)).map(|(id, _)| *id).collect();
        for id in due {
            self.end(id, None);
        }
    }

    /// Invariant 3: whatever the store will say, it serves nobody any more.
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
                tracing::warn!(sandbox = %id, %error, "a sandbox that has ended stays in the store for now");
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
            // What failed may have been carried out: the keeper sees to it that it is not there.
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

    /// Opens the sandboxes of an earlier daemon again. What cannot be opened is logged, and stops nobody.
    async fn restore(self: Arc<Self>) -> TaskResult<D::OpenSocket> {
        let items = match self.store.items(ItemKind::Sandbox).await {
            Ok(items) => items,
            Err(error) => {
                tracing::error!(%error, "the sandboxes of before are not known");
                return TaskResult::Restored(Vec::new());
            }
        };
        let mut found = Vec::with_capacity(items.len());
        for ItemEntry { name, item } in items {
            match item.map(|item| Definition::read(&name, &item.content)) {
                Ok(Some(definition)) => found.extend(self.reopen(definition).await),
                Ok(None) => tracing::warn!(sandbox = %name, "a sandbox is not understood; it stays closed"),
                Err(error) => tracing::warn!(sandbox = %name, %error, "a sandbox cannot be read; it stays closed"),
            }
        }
        TaskResult::Restored(found)
    }

    /// Opens a sandbox of an earlier daemon, unless it has ended meanwhile.
    async fn reopen(&self, definition: Definition) -> Option<Entry<D::OpenSocket>> {
        let (sandbox, since) = (definition.sandbox(), self.clock.monotonic());
        // A wall clock that was set back does not make it live longer than it was to.
        let left = sandbox.expires_at.since(self.clock.now()).min(definition.lifetime);
        if definition.root != self.root.name {
            // Another daemon's on the same store, and for that one to open. It may be gone for good.
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

    /// What cannot be read has no socket, and can be got rid of all the same.
    async fn delete_unread(&self, id: SandboxId) -> Result<(), SandboxError> {
        let name = id.into();
        match self.store.item(ItemKind::Sandbox, &name).await {
            Ok(None) => Err(SandboxError::NotFound),
            // Another daemon's on the same store.
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
            tracing::warn!(sandbox = %id, %error, "a sandbox that has ended stays in the store");
        }
    }

    async fn delete(&self, id: SandboxId) -> Result<(), StoreError> {
        self.store.delete_item(ItemKind::Sandbox, &id.into(), &Expect::Whatever).await.map(drop)
    }
}

/// Bytes of the operating system's randomness.
fn random<const N: usize>() -> Result<[u8; N], SandboxError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| SandboxError::Internal)?;
    Ok(bytes)
}
