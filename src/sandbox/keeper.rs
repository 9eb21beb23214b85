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
    Command, Created, Doors, LIFETIME, LONGEST_LIFETIME, Lifetime, PAUSE, QUEUE, Sandbox, SandboxError, SandboxId,
    SandboxRoot, Sandboxes, Wanted,
    definition::Definition,
    process::{Process, Watch},
};
use crate::{
    account::ItemName,
    clock::{Clock, Monotonic},
    item::{Item, ItemKind, ItemTag},
    secret::{CAPABILITY_BYTES, Capability},
    store::{Expect, ItemEntry, Shelf, StoreError},
};

/// How often the clocks are looked at, at least: the wall clock may jump, and the machine may have slept. A deletion
/// that the store refused is tried again as often.
const LOOK: Duration = Duration::from_secs(30);

/// How often the processes are looked at that sandboxes are tied to. Soon enough for one that was killed; one that ends
/// in order deletes its sandbox.
const PROCESS_LOOK: Duration = Duration::from_secs(1);

/// How long the daemon's end waits for what the store was asked. The next start finds it done or not done.
const LAST_WORK: Duration = Duration::from_secs(2);

/// Whoever asked for something, and may have hung up.
type Asker<T> = oneshot::Sender<Result<T, SandboxError>>;

/// Keeps the sandboxes of one daemon.
#[derive(Debug)]
pub struct Keeper<D: Doors> {
    commands: mpsc::Receiver<Command>,
    shared: Arc<Shared<D>>,
    most: usize,
    kept: BTreeMap<SandboxId, Kept<D::Door>>,
    /// Counted by its clones: the sandboxes that are being made.
    making: Arc<()>,
    /// Those of an earlier daemon are known.
    restored: bool,
    work: JoinSet<Done<D::Door>>,
}

/// What the tasks of a keeper need.
#[derive(Debug)]
struct Shared<D> {
    shelf: Arc<dyn Shelf>,
    clock: Arc<dyn Clock>,
    root: SandboxRoot,
    doors: D,
}

#[derive(Debug)]
struct Kept<T> {
    sandbox: Sandbox,
    /// `None` when its socket could not be opened again, or is gone.
    door: Option<T>,
    /// The process that it is tied to.
    process: Option<Watch>,
    since: Monotonic,
    /// What was left of its life then.
    left: Duration,
    /// It has ended, and may be in the store still.
    ended: Option<Ended>,
}

/// What is left to do about a sandbox that has ended.
#[derive(Debug)]
struct Ended {
    /// The last try to remove it from the store.
    tried: Monotonic,
    /// That try is under way.
    under_way: bool,
    /// Who waits to be told that it is gone.
    asked: Vec<Asker<()>>,
}

/// What a task of the keeper's has done.
#[derive(Debug)]
enum Done<T> {
    /// The sandboxes of an earlier daemon were opened.
    Restored(Vec<Kept<T>>),
    /// A new one was made.
    Made(Kept<T>, Box<Created>, Asker<Created>),
    /// It was not, and may be in the store all the same.
    NotMade(Sandbox, SandboxError, Asker<Created>),
    /// One was ended, and the store told to forget it.
    Removed(SandboxId, Result<(), StoreError>),
    /// Nothing that the keeper has to know of.
    Nothing,
}

impl<T> Kept<T> {
    /// How long there is nothing to be done about it.
    fn rest(&self, clock: &dyn Clock) -> Duration {
        match (&self.ended, &self.process) {
            (Some(ended), _) if ended.under_way => LOOK,
            (Some(ended), _) => LOOK.saturating_sub(clock.monotonic().since(ended.tried)),
            (None, Some(process)) if process.has_ended() => Duration::ZERO,
            (None, Some(_)) => self.life(clock).min(PROCESS_LOOK),
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

impl<D: Doors> Keeper<D> {
    /// A keeper of the sandboxes that the shelf has for `root`, `most` of them at once, and the way to ask it.
    pub fn new(
        shelf: Arc<dyn Shelf>,
        clock: Arc<dyn Clock>,
        root: SandboxRoot,
        doors: D,
        most: usize,
    ) -> (Sandboxes, Self) {
        let (sender, commands) = mpsc::channel(QUEUE);
        let shared = Arc::new(Shared { shelf, clock, root, doors });
        let (kept, making, work) = (BTreeMap::new(), Arc::default(), JoinSet::new());
        (Sandboxes(sender), Self { commands, shared, most, kept, making, restored: false, work })
    }

    /// Opens the sandboxes of an earlier daemon again, and keeps these and new ones until `stop`. The daemon's end leaves
    /// their directories behind, and them in the store. Until those of before are known, whoever asks waits.
    pub async fn run(mut self, stop: CancellationToken) {
        self.work.spawn(Arc::clone(&self.shared).restore());
        loop {
            self.sweep();
            let rest = self.kept.values().map(|kept| kept.rest(self.shared.clock.as_ref())).fold(LOOK, Duration::min);
            tokio::select! {
                () = stop.cancelled() => break,
                Some(done) = self.work.join_next() => self.settle(done),
                Some(command) = self.commands.recv(), if self.restored => self.carry_out(command),
                () = sleep(rest), if !self.kept.is_empty() => {}
            }
        }
        self.finish().await;
    }

    async fn finish(mut self) {
        self.commands.close();
        // What is still being made or ended may wait for the store, and gets no more than a moment.
        let last = async {
            while let Some(done) = self.work.join_next().await {
                self.settle(done);
            }
        };
        let mut leaving = JoinSet::new();
        let finished = timeout(LAST_WORK, last).await;
        for door in self.kept.into_values().filter_map(|kept| kept.door) {
            let shared = Arc::clone(&self.shared);
            leaving.spawn(async move { shared.doors.leave(door).await });
        }
        if finished.is_err() {
            tracing::warn!("the store did not answer what was asked of it about sandboxes");
        }
        while leaving.join_next().await.is_some() {}
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Create(wanted, asker) => match self.prepare(wanted) {
                Ok((definition, watch, capability)) => {
                    let (shared, making) = (Arc::clone(&self.shared), Arc::clone(&self.making));
                    let since = shared.clock.monotonic();
                    self.work.spawn(async move {
                        let done = shared.make(definition, watch, capability, since, asker).await;
                        drop(making);
                        done
                    });
                }
                Err(error) => drop(asker.send(Err(error))),
            },
            Command::List(asker) => {
                let living = self.kept.values().filter(|kept| kept.ended.is_none());
                drop(asker.send(living.map(|kept| kept.sandbox.clone()).collect()));
            }
            Command::Delete(id, asker) if self.kept.contains_key(&id) => self.end(id, Some(asker)),
            Command::Delete(id, asker) => {
                let shared = Arc::clone(&self.shared);
                self.work.spawn(async move {
                    drop(asker.send(shared.delete_unread(id).await));
                    Done::Nothing
                });
            }
        }
    }

    /// What a new sandbox is to be.
    fn prepare(&self, wanted: Wanted) -> Result<(Definition, Option<Watch>, Option<Capability>), SandboxError> {
        if self.kept.len() + Arc::strong_count(&self.making) > self.most {
            return Err(SandboxError::TooMany { most: self.most, wait: PAUSE });
        }
        let process = wanted.process.map(Process::running).transpose().map_err(|_| SandboxError::NoProcess)?;
        let (process, watch) = process.unzip();
        let usual = if process.is_some() { LONGEST_LIFETIME } else { LIFETIME };
        let lifetime = wanted.lifetime.map_or(usual, |Lifetime(lifetime)| lifetime);
        let capability = wanted.capability.then(random::<CAPABILITY_BYTES>).transpose()?.map(Capability::from_bytes);
        let (id, root) = (SandboxId(u128::from_be_bytes(random()?)), &self.shared.root);
        let definition = Definition {
            id,
            root: root.name.clone(),
            directory: root.directory.join(id.directory_name()),
            allowed: wanted.allowed,
            capability: capability.as_ref().map(Capability::hash),
            lifetime,
            expires_at: self.shared.clock.now().plus(lifetime),
            process,
        };
        Ok((definition, watch, capability))
    }

    fn settle(&mut self, done: Result<Done<D::Door>, JoinError>) {
        match done {
            Ok(Done::Restored(found)) => {
                self.kept.extend(found.into_iter().map(|kept| (kept.sandbox.id, kept)));
                self.restored = true;
            }
            Ok(Done::Made(kept, created, asker)) => {
                self.kept.insert(kept.sandbox.id, kept);
                drop(asker.send(Ok(*created)));
            }
            Ok(Done::NotMade(sandbox, error, asker)) => {
                let (id, since) = (sandbox.id, self.shared.clock.monotonic());
                let kept = Kept { sandbox, door: None, process: None, since, left: Duration::ZERO, ended: None };
                self.kept.insert(id, kept);
                self.end(id, None);
                drop(asker.send(Err(error)));
            }
            Ok(Done::Removed(id, removed)) => self.removed(id, removed),
            Ok(Done::Nothing) => {}
            Err(error) => {
                tracing::error!(%error, "a task of the sandboxes' broke off");
                self.restored = true;
            }
        }
    }

    /// Ends those whose time is up or whose process is gone, and tries again to forget those that have ended.
    fn sweep(&mut self) {
        let due = |kept: &Kept<_>| kept.rest(self.shared.clock.as_ref()).is_zero();
        let due: Vec<_> = self.kept.iter().filter(|(_, kept)| due(kept)).map(|(id, _)| *id).collect();
        for id in due {
            self.end(id, None);
        }
    }

    /// Invariant 3: whatever the store will say, it serves nobody any more.
    fn end(&mut self, id: SandboxId, asker: Option<Asker<()>>) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        let tried = self.shared.clock.monotonic();
        let ended = kept.ended.get_or_insert_with(|| Ended { tried, under_way: false, asked: Vec::new() });
        ended.asked.extend(asker);
        if ended.under_way {
            return;
        }
        (ended.tried, ended.under_way) = (tried, true);
        kept.process = None;
        let (shared, sandbox, door) = (Arc::clone(&self.shared), kept.sandbox.clone(), kept.door.take());
        self.work.spawn(async move {
            if let Some(door) = door {
                shared.doors.cut(door).await;
                tracing::info!(sandbox = %id, "sandbox ended");
            }
            shared.doors.clear(&sandbox).await;
            Done::Removed(id, shared.delete(id).await)
        });
    }

    fn removed(&mut self, id: SandboxId, removed: Result<(), StoreError>) {
        let asked = match (self.kept.get_mut(&id).and_then(|kept| kept.ended.as_mut()), &removed) {
            (Some(ended), Err(error)) => {
                tracing::warn!(sandbox = %id, %error, "a sandbox that has ended stays in the store for now");
                ended.under_way = false;
                std::mem::take(&mut ended.asked)
            }
            (Some(ended), Ok(())) => {
                let asked = std::mem::take(&mut ended.asked);
                self.kept.remove(&id);
                asked
            }
            (None, _) => return,
        };
        let removed = removed.map_err(Arc::new);
        for asker in asked {
            drop(asker.send(removed.clone().map_err(SandboxError::Store)));
        }
    }
}

impl<D: Doors> Shared<D> {
    async fn make(
        self: Arc<Self>,
        definition: Definition,
        process: Option<Watch>,
        capability: Option<Capability>,
        since: Monotonic,
        asker: Asker<Created>,
    ) -> Done<D::Door> {
        let sandbox = definition.sandbox();
        let bound = match self.doors.bind(&sandbox).await {
            Ok(bound) => bound,
            Err(reason) => {
                self.doors.clear(&sandbox).await;
                drop(asker.send(Err(SandboxError::NoSocket(reason))));
                return Done::Nothing;
            }
        };
        if let Err(error) = self.store(&definition).await {
            // What failed may have been carried out: the keeper sees to it that it is not there.
            drop(bound);
            self.doors.clear(&sandbox).await;
            return Done::NotMade(sandbox, error, asker);
        }
        let door = Some(self.doors.open(bound, &sandbox, definition.capability));
        tracing::info!(sandbox = %sandbox.id, directory = %sandbox.directory.display(), "sandbox made");
        let created = Created { sandbox: sandbox.clone(), capability };
        let kept = Kept { sandbox, door, process, since, left: definition.lifetime, ended: None };
        Done::Made(kept, Box::new(created), asker)
    }

    /// Opens the sandboxes of an earlier daemon again. What cannot be opened is logged, and stops nobody.
    async fn restore(self: Arc<Self>) -> Done<D::Door> {
        let items = match self.shelf.items(ItemKind::Sandbox).await {
            Ok(items) => items,
            Err(error) => {
                tracing::error!(%error, "the sandboxes of before are not known");
                return Done::Restored(Vec::new());
            }
        };
        let mut found = Vec::with_capacity(items.len());
        for ItemEntry { name, item } in items {
            match item.map(|item| Definition::read(&name, &item.content)) {
                Ok(Some(definition)) => found.extend(self.take_up(definition).await),
                Ok(None) => tracing::warn!(sandbox = %name, "a sandbox is not understood; it stays closed"),
                Err(error) => tracing::warn!(sandbox = %name, %error, "a sandbox cannot be read; it stays closed"),
            }
        }
        Done::Restored(found)
    }

    /// Opens a sandbox of an earlier daemon, unless it has ended meanwhile.
    async fn take_up(&self, definition: Definition) -> Option<Kept<D::Door>> {
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
                let bound = self.doors.bind(&sandbox).await;
                if let Err(error) = &bound {
                    tracing::warn!(sandbox = %sandbox.id, error, "a sandbox stays closed");
                }
                let door = bound.ok().map(|bound| self.doors.open(bound, &sandbox, definition.capability));
                Some(Kept { sandbox, door, process, since, left, ended: None })
            }
            Ok(_) | Err(_) => {
                self.doors.clear(&sandbox).await;
                self.forget(sandbox.id).await;
                None
            }
        }
    }

    /// What cannot be read has no socket, and can be got rid of all the same.
    async fn delete_unread(&self, id: SandboxId) -> Result<(), SandboxError> {
        let name = id.into();
        match self.shelf.item(ItemKind::Sandbox, &name).await {
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
        self.shelf.put_item(ItemKind::Sandbox, &name, &item, &Expect::Whatever).await?;
        Ok(())
    }

    async fn forget(&self, id: SandboxId) {
        if let Err(error) = self.delete(id).await {
            tracing::warn!(sandbox = %id, %error, "a sandbox that has ended stays in the store");
        }
    }

    async fn delete(&self, id: SandboxId) -> Result<(), StoreError> {
        self.shelf.delete_item(ItemKind::Sandbox, &id.into(), &Expect::Whatever).await.map(drop)
    }
}

/// Bytes of the operating system's randomness.
fn random<const N: usize>() -> Result<[u8; N], SandboxError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| SandboxError::Internal)?;
    Ok(bytes)
}
