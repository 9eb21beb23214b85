//! Records in a SQLite database: the store of one machine, shared by any number of processes.
//!
//! Owns: [`Sqlite`]. Its children own the file and schema, the connections for reading and writing, the changes and
//! their statements, the items, the owners of leases, and the maintenance.
//!
//! Invariants:
//! 1. One connection writes, one commit at a time, to the write-ahead log with `synchronous=FULL`. The commit that holds
//!    a change is on the disk when the call returns.
//! 2. A lease is written only while this store's owner is known to be live.
//! 3. Nothing is read or written once the path names another file than the one that was opened.
//!
//! Must not know: what a refresh is.

use std::{
    fmt, fs, io, mem,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteRow};
use tokio::{
    sync::{Mutex, mpsc},
    task::coop::consume_budget,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    account::{Account, ProviderName},
    grant::{Grant, Version},
    secret::{FingerprintKey, TokenFingerprint},
    store::{
        AccountFilter, Claim, Deleted, Entry, Expect, Presentation, PutGrant, Record, RefreshState, Renamed, Revision,
        Store, StoreError, Visitor, key::KeyMaterial, seal::Sealer,
    },
};

mod changes;
mod database;
mod items;
mod owner;
mod readers;
mod rows;
pub mod upkeep;
mod writer;

use changes::{ClaimChange, DeleteChange, ProbeChange, PutChange, RenameChange, SaveChange, Sealed, SettleChange};
use database::{Prepared, StoreFiles};
use owner::Owner;
use readers::Readers;
use rows::{RefreshStateColumns, Removal, Row};
use writer::{QueuedChange, Writer};

/// How often to poll for other processes' changes. They must be seen within 250 ms; a poll takes microseconds.
const CHANGE_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// A store in one database file, and one owner of leases in it.
pub struct Sqlite {
    shared: Arc<Shared>,
    changes: mpsc::UnboundedSender<Box<dyn QueuedChange>>,
    /// The writer, and the task that polls for changes.
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Shared {
    files: StoreFiles,
    sealer: Sealer,
    fingerprints: FingerprintKey,
    /// The file was in another place when the store was last used.
    copied: bool,
    owner: Owner,
    writer: Mutex<Writer>,
    readers: Readers,
    epoch: AtomicU64,
    /// `PRAGMA data_version` of the writer when last seen.
    data_version: AtomicI64,
}

impl Sqlite {
    /// Opens the store in the file `path`, or creates it and its directory. `key_place` names the key's source in
    /// errors.
    pub async fn open(path: &Path, key: impl Into<KeyMaterial>, key_place: &str) -> Result<Self, StoreError> {
        let files = StoreFiles::new(path)?;
        let KeyMaterial { secret, derivation } = key.into();
        let sealer = Sealer::new(secret);
        // Unlocked when dropped, at the end of this function.
        let _alone = files.lock().await?;
        files.make_files()?;
        let Prepared { mut connection, fingerprints, copied } =
            files.prepare(&sealer, derivation.as_ref(), key_place).await?;
        writer::wait_briefly_for_locks(&mut connection).await?;
        let data_version = data_version(&mut connection).await?;
        owner::sweep(&files.owners);
        let shared = Arc::new(Shared {
            owner: Owner::new(&files.owners)?,
            readers: Readers::new(files.options()),
            files,
            sealer,
            fingerprints,
            copied,
            writer: Mutex::new(Writer::Open(connection)),
            epoch: AtomicU64::new(0),
            data_version: AtomicI64::new(data_version),
        });
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(watch(Arc::clone(&shared), stop.clone()));
        let (changes, queue) = mpsc::unbounded_channel();
        tasks.spawn(writer::carry_out(Arc::clone(&shared), queue, stop.clone()));
        Ok(Self { shared, changes, tasks, stop })
    }

    /// Whether the store is in another place than when it was last used: a copy, moved, or restored from a backup.
    #[must_use]
    pub fn is_copied(&self) -> bool {
        self.shared.copied
    }

    /// Whether a store was ever created in the file `path`; if in doubt, `true`.
    #[must_use]
    pub fn exists(path: &Path) -> bool {
        match fs::metadata(path) {
            Ok(found) => found.len() > 0,
            Err(error) => error.kind() != io::ErrorKind::NotFound,
        }
    }

    /// Waits for the writes under way, gives up all leases and closes the file. Every later call fails.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.shared.readers.close().await;
        // The writer is closed last: it checkpoints and removes the write-ahead log, which a reader may not do.
        let writer = mem::replace(&mut *self.shared.writer.lock().await, Writer::Closed);
        self.shared.owner.retire();
        match writer {
            Writer::Open(connection) => connection.close().await.map_err(StoreError::unavailable),
            Writer::Disconnected | Writer::Closed => Ok(()),
        }
    }
}

impl Sqlite {
    /// Returns the version in which the account already has its refresh token, if it does.
    async fn sealed_as_held(
        &self,
        account: &Account,
        grant: &Grant,
        fingerprint: TokenFingerprint,
    ) -> Result<Option<Sealed>, StoreError> {
        let find = async |connection: &mut SqliteConnection| rows::held_version(connection, account, fingerprint).await;
        let Some(version) = readers::in_time(self.shared.readers.read(find)).await?? else { return Ok(None) };
        let bytes = self.shared.sealer.seal_as(account, version, grant)?;
        Ok(Some(Sealed { version, bytes, fingerprint: Some(fingerprint) }))
    }

    /// Calls `each` for every row with a valid name.
    async fn scan(&self, query: &'static str, mut each: impl FnMut(Account, &SqliteRow)) -> Result<(), StoreError> {
        self.shared.files.ensure_in_place()?;
        let scan = async |connection: &mut SqliteConnection| {
            let mut found = sqlx::query(query).fetch(connection);
            while let Some(row) = readers::next_in_time(&mut found).await? {
                if let Some(account) = rows::read_account(&row) {
                    each(account, &row);
                } else {
                    tracing::warn!("the store holds a record whose name is damaged; it is left alone");
                }
                // The rows may arrive faster than they are processed, and other tasks need the processor.
                consume_budget().await;
            }
            Ok(())
        };
        self.shared.readers.read(scan).await
    }
}

/// Simulates a crash: leases are free at once, and the owner file stays. Writes under way are finished.
impl Drop for Sqlite {
    fn drop(&mut self) {
        self.stop.cancel();
        drop(self.shared.owner.give_up());
    }
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sqlite").field("files", &self.shared.files).finish_non_exhaustive()
    }
}

impl Shared {
    /// A new connection counts the others' changes from its own opening: earlier ones are assumed.
    async fn reconnect(&self) -> Result<SqliteConnection, StoreError> {
        let options = self.files.options().busy_timeout(writer::LOCK_ATTEMPT);
        let mut connection = options.connect().await.map_err(StoreError::unavailable)?;
        self.data_version.store(data_version(&mut connection).await?, Ordering::Release);
        self.files.adopt_log()?;
        self.epoch.fetch_add(1, Ordering::Release);
        Ok(connection)
    }

    /// Polls for changes by other processes, and checks that our own owner file still exists.
    async fn poll_changes(&self) -> Result<(), StoreError> {
        self.owner.ensure_alive()?;
        self.files.ensure_in_place()?;
        self.files.ensure_log_in_place()?;
        let now = self.with_connection(&mut *self.writer.lock().await, data_version).await?;
        if self.data_version.swap(now, Ordering::AcqRel) != now {
            self.epoch.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    fn open(&self, account: &Account, row: Option<Row>) -> Result<Record, StoreError> {
        let row = row.ok_or_else(|| StoreError::Unreadable { account: account.clone() })?;
        let grant = self.sealer.open(account, row.version, &row.sealed)?;
        Ok(Record { grant, refresh_state: row.refresh_state, revision: row.revision })
    }

    fn seal(&self, account: &Account, grant: &Grant) -> Result<Sealed, StoreError> {
        let fingerprint = grant.refresh_token.as_ref().map(|token| token.fingerprint(&self.fingerprints));
        Ok(Sealed { version: grant.version, bytes: self.sealer.seal(account, grant)?, fingerprint })
    }
}

async fn data_version(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    sqlx::query_scalar("PRAGMA data_version").fetch_one(connection).await.map_err(StoreError::unavailable)
}

async fn watch(shared: Arc<Shared>, stop: CancellationToken) {
    let mut well = true;
    while stop.run_until_cancelled(tokio::time::sleep(CHANGE_POLL_INTERVAL)).await.is_some() {
        // The next poll sees the change again.
        match shared.poll_changes().await {
            Ok(()) => well = true,
            Err(error) if mem::take(&mut well) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(cause, "the store cannot be polled");
            }
            Err(error) => tracing::debug!(%error, "the store still cannot be polled"),
        }
        shared.readers.close_idle(CHANGE_POLL_INTERVAL).await;
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn load(&self, account: &Account) -> Result<Option<Record>, StoreError> {
        self.shared.files.ensure_in_place()?;
        self.shared.files.ensure_log_in_place()?;
        let load =
            async |connection: &mut SqliteConnection| rows::on(account, rows::LOAD).fetch_optional(connection).await;
        let found = readers::in_time(self.shared.readers.read(load)).await??;
        found.map(|row| self.shared.open(account, rows::read(&row))).transpose()
    }

    async fn names(&self) -> Result<Vec<Account>, StoreError> {
        let mut names = Vec::new();
        self.scan(rows::NAMES, |account, _| names.push(account)).await?;
        Ok(names)
    }

    async fn visit(&self, wanted: &AccountFilter<'_>, each: &mut Visitor<'_>) -> Result<(), StoreError> {
        self.scan(rows::LIST, |account, row| {
            if wanted(&account) {
                let record = self.shared.open(&account, rows::read(row));
                each(Entry { account, record });
            }
        })
        .await
    }

    async fn claim(&self, account: &Account, expected: Revision, presented: Presentation) -> Result<Claim, StoreError> {
        self.write(ClaimChange { account: account.clone(), expected, presented: rows::json(&presented)? }).await
    }

    async fn settle(
        &self,
        account: &Account,
        version: Version,
        refresh_state: &RefreshState,
    ) -> Result<bool, StoreError> {
        self.write(SettleChange {
            account: account.clone(),
            version,
            refresh_state: RefreshStateColumns::of(refresh_state)?,
        })
        .await
    }

    async fn save(
        &self,
        account: &Account,
        version: Version,
        next: &Grant,
        refresh_state: &RefreshState,
    ) -> Result<bool, StoreError> {
        let (next, refresh_state) = (self.shared.seal(account, next)?, RefreshStateColumns::of(refresh_state)?);
        self.write(SaveChange { account: account.clone(), version, next, refresh_state }).await
    }

    async fn put(
        &self,
        account: &Account,
        grant: &Grant,
        expect: &Expect,
        siblings: &[ProviderName],
    ) -> Result<PutGrant, StoreError> {
        loop {
            let sealed = self.shared.seal(account, grant)?;
            let held = match sealed.fingerprint {
                Some(fingerprint) => self.sealed_as_held(account, grant, fingerprint).await?,
                None => None,
            };
            let (account, expect, siblings) = (account.clone(), expect.clone(), siblings.to_vec());
            if let Some(put) = self.write(PutChange { account, grant: sealed, held, expect, siblings }).await? {
                return Ok(put);
            }
        }
    }

    async fn rename(&self, from: &Account, to: &Account) -> Result<Renamed, StoreError> {
        self.write(RenameChange { from: from.clone(), to: to.clone() }).await
    }

    async fn delete(&self, account: &Account, expect: &Expect) -> Result<Deleted, StoreError> {
        Ok(match self.write(DeleteChange { account: account.clone(), expect: expect.clone() }).await? {
            Removal::Gone(row) => {
                Deleted::Gone(self.shared.open(account, row).ok().map(|record| Box::new(record.grant)))
            }
            Removal::Missing => Deleted::Missing,
            Removal::Conflict => Deleted::Conflict,
        })
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.write(ProbeChange).await
    }

    fn epoch(&self) -> u64 {
        self.shared.epoch.load(Ordering::Acquire)
    }
}
