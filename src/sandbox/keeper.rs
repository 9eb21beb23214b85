//! The task that keeps the sandboxes: one after the other, it makes, ends and lists them.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{
    Command, Created, Doors, LIFETIME, LONGEST_LIFETIME, Lifetime, PAUSE, QUEUE, Sandbox, SandboxError, SandboxId,
    Sandboxes, Wanted,
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

/// Keeps the sandboxes of one directory.
#[derive(Debug)]
pub struct Keeper<D: Doors> {
    commands: mpsc::Receiver<Command>,
    shelf: Arc<dyn Shelf>,
    clock: Arc<dyn Clock>,
    root: PathBuf,
    doors: D,
    most: usize,
    kept: BTreeMap<SandboxId, Kept<D::Door>>,
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
    /// It has ended and is in the store still; the last try to change that.
    ended: Option<Monotonic>,
}

impl<T> Kept<T> {
    /// How long there is nothing to be done about it.
    fn rest(&self, clock: &dyn Clock) -> Duration {
        if let Some(tried) = self.ended {
            return LOOK.saturating_sub(clock.monotonic().since(tried));
        }
        match &self.process {
            Some(process) if process.has_ended() => Duration::ZERO,
            Some(_) => self.life(clock).min(PROCESS_LOOK),
            None => self.life(clock),
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
    /// A keeper of the sandboxes that the shelf has for the directory `root`, `most` of them at once, and the way to ask
    /// it.
    pub fn new(
        shelf: Arc<dyn Shelf>,
        clock: Arc<dyn Clock>,
        root: PathBuf,
        doors: D,
        most: usize,
    ) -> (Sandboxes, Self) {
        let (sender, commands) = mpsc::channel(QUEUE);
        let keeper = Self { commands, shelf, clock, root, doors, most, kept: BTreeMap::new() };
        (Sandboxes(sender), keeper)
    }

    /// Opens the sandboxes of an earlier daemon again. What cannot be opened is logged, and stops nobody.
    pub async fn restore(&mut self) {
        let items = match self.shelf.items(ItemKind::Sandbox).await {
            Ok(items) => items,
            Err(error) => return tracing::error!(%error, "the sandboxes of before are not known"),
        };
        for ItemEntry { name, item } in items {
            match item.map(|item| Definition::read(&name, &item.content)) {
                Ok(Some(definition)) => self.take_up(definition).await,
                Ok(None) => tracing::warn!(sandbox = %name, "a sandbox is not understood; it stays closed"),
                Err(error) => tracing::warn!(sandbox = %name, %error, "a sandbox cannot be read; it stays closed"),
            }
        }
    }

    /// Keeps them until `stop`. The daemon's end leaves their directories behind, and them in the store.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            self.sweep().await;
            let rest = self.kept.values().map(|kept| kept.rest(self.clock.as_ref())).fold(LOOK, Duration::min);
            tokio::select! {
                () = stop.cancelled() => break,
                Some(command) = self.commands.recv() => self.carry_out(command).await,
                () = sleep(rest), if !self.kept.is_empty() => {}
            }
        }
        for door in self.kept.into_values().filter_map(|kept| kept.door) {
            self.doors.leave(door).await;
        }
    }

    /// Whoever asked may have hung up.
    async fn carry_out(&mut self, command: Command) {
        match command {
            Command::Create(wanted, answer) => drop(answer.send(self.create(wanted).await)),
            Command::List(answer) => {
                let living = self.kept.values().filter(|kept| kept.ended.is_none());
                drop(answer.send(living.map(|kept| kept.sandbox.clone()).collect()));
            }
            Command::Delete(id, answer) => {
                let deleted = if self.kept.contains_key(&id) {
                    self.close(id).await;
                    self.remove(id).await.map_err(SandboxError::from)
                } else {
                    self.delete_unread(id).await
                };
                drop(answer.send(deleted));
            }
        }
    }

    async fn create(&mut self, wanted: Wanted) -> Result<Created, SandboxError> {
        if self.kept.len() >= self.most {
            return Err(SandboxError::TooMany { most: self.most, wait: PAUSE });
        }
        let process = wanted.process.map(Process::running).transpose().map_err(|_| SandboxError::NoProcess)?;
        let (process, watch) = process.unzip();
        let usual = if process.is_some() { LONGEST_LIFETIME } else { LIFETIME };
        let lifetime = wanted.lifetime.map_or(usual, |Lifetime(lifetime)| lifetime);
        let capability = wanted.capability.then(random::<CAPABILITY_BYTES>).transpose()?.map(Capability::from_bytes);
        let definition = Definition {
            id: SandboxId(u128::from_be_bytes(random()?)),
            root: self.root.clone(),
            allowed: wanted.allowed,
            capability: capability.as_ref().map(Capability::hash),
            lifetime,
            expires_at: self.clock.now().plus(lifetime),
            process,
        };
        self.store(&definition).await?;
        let sandbox = definition.sandbox();
        match self.doors.open(&sandbox, definition.capability) {
            Ok(door) => self.keep(sandbox.clone(), Some(door), lifetime, watch),
            Err(reason) => {
                self.doors.clear(&sandbox);
                self.delete(sandbox.id).await?;
                return Err(SandboxError::NoSocket(reason));
            }
        }
        tracing::info!(sandbox = %sandbox.id, directory = %sandbox.directory.display(), "sandbox made");
        Ok(Created { sandbox, capability })
    }

    /// Opens a sandbox of an earlier daemon, unless it has ended meanwhile.
    async fn take_up(&mut self, definition: Definition) {
        let sandbox = definition.sandbox();
        // A wall clock that was set back does not make it live longer than it was to.
        let left = sandbox.expires_at.since(self.clock.now()).min(definition.lifetime);
        if definition.root != self.root {
            // Another daemon's on the same store, and for that one to open. It may be gone for good.
            if left.is_zero() {
                self.forget(sandbox.id).await;
            }
            return;
        }
        match definition.process.map(Process::watch).transpose() {
            Ok(watch) if !left.is_zero() => {
                let door = self.doors.open(&sandbox, definition.capability);
                if let Err(error) = &door {
                    tracing::warn!(sandbox = %sandbox.id, error, "a sandbox stays closed");
                }
                self.keep(sandbox, door.ok(), left, watch);
            }
            Ok(_) | Err(_) => {
                self.doors.clear(&sandbox);
                self.forget(sandbox.id).await;
            }
        }
    }

    fn keep(&mut self, sandbox: Sandbox, door: Option<D::Door>, left: Duration, process: Option<Watch>) {
        self.kept.insert(sandbox.id, Kept { sandbox, door, process, since: self.clock.monotonic(), left, ended: None });
    }

    /// Ends those whose time is up or whose process is gone, and tries again to forget those that have ended.
    async fn sweep(&mut self) {
        let due = |kept: &Kept<_>| kept.rest(self.clock.as_ref()).is_zero();
        let due: Vec<_> = self.kept.iter().filter(|(_, kept)| due(kept)).map(|(id, _)| *id).collect();
        // None of them waits for the store to forget another.
        for id in &due {
            self.close(*id).await;
        }
        for id in due {
            if let Err(error) = self.remove(id).await {
                tracing::warn!(sandbox = %id, %error, "a sandbox that has ended stays in the store for now");
            }
        }
    }

    /// Invariant 3: whatever the store will say, it serves nobody any more.
    async fn close(&mut self, id: SandboxId) {
        let Some(kept) = self.kept.get_mut(&id) else { return };
        kept.ended = Some(self.clock.monotonic());
        kept.process = None;
        if let Some(door) = kept.door.take() {
            self.doors.cut(door).await;
            tracing::info!(sandbox = %id, "sandbox ended");
        }
        self.doors.clear(&kept.sandbox);
    }

    async fn remove(&mut self, id: SandboxId) -> Result<(), StoreError> {
        self.delete(id).await?;
        self.kept.remove(&id);
        Ok(())
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
