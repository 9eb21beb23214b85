//! Records in a SQLite database: the store of one machine, for any number of processes.
//!
//! Owns: [`Sqlite`]; its children hold the file and schema, the connections that read and the one that writes, the
//! changes and their statements, the items, the owners of leases, and the upkeep.
//!
//! Invariants:
//! 1. One connection writes, one commit at a time, to the write-ahead log with `synchronous=FULL`. The commit that holds
//!    a change is on the disk when the call returns.
//! 2. A lease is written only while this store's owner is seen living.
//! 3. Nothing is read or written once the path names another file than the one opened.
//!
//! Must not know: what a refresh is.

use std::{
    fmt, fs, io,
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
    account::Account,
    grant::{Grant, Version},
    store::{
        Claim, Deleted, Entry, Expect, Marks, Presented, Put, Record, Revision, Store, StoreError, Visitor, Wanted,
        key::Key, seal::Sealer,
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

use changes::{Claiming, Deleting, Probing, Putting, Saving, Settling};
use database::Place;
use owner::Owner;
use readers::Readers;
use rows::{MarkTexts, Removal, Row};
use writer::{QueuedChange, Writer};

/// How often other processes' changes are looked for. They are to be seen within 250 ms; the look itself takes
/// microseconds.
const LOOK: Duration = Duration::from_millis(200);

/// A store in one database file, and one owner of leases in it.
pub struct Sqlite {
    shared: Arc<Shared>,
    changes: mpsc::UnboundedSender<Box<dyn QueuedChange>>,
    /// The writing, and the look for changes.
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Shared {
    place: Place,
    sealer: Sealer,
    owner: Owner,
    writer: Mutex<Writer>,
    readers: Readers,
    epoch: AtomicU64,
    /// `PRAGMA data_version` of the writer when last seen.
    data_version: AtomicI64,
}

impl Sqlite {
    /// Opens the store in the file `path`, or makes it, with its directory. `key_place` says in errors where the key
    /// comes from.
    pub async fn open(path: &Path, key: impl Into<Key>, key_place: &str) -> Result<Self, StoreError> {
        let place = Place::new(path)?;
        let Key { secret, derivation } = key.into();
        let sealer = Sealer::new(secret);
        // Unlocked when dropped, at the end of this function.
        let _alone = place.lock().await?;
        place.make_files()?;
        let mut connection = place.prepare(&sealer, derivation.as_ref(), key_place).await?;
        writer::wait_briefly_for_locks(&mut connection).await?;
        let data_version = data_version(&mut connection).await?;
        owner::sweep(&place.owners);
        let shared = Arc::new(Shared {
            owner: Owner::new(&place.owners)?,
            readers: Readers::new(place.options()),
            place,
            sealer,
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

    /// Whether a store was ever made in the file `path`; in doubt it was.
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
        // The last to close: it brings the write-ahead log home and removes it, which a reader may not.
        let writer = std::mem::replace(&mut *self.shared.writer.lock().await, Writer::Closed);
        self.shared.owner.retire();
        match writer {
            Writer::Open(connection) => connection.close().await.map_err(StoreError::unavailable),
            Writer::Away | Writer::Closed => Ok(()),
        }
    }
}

impl Sqlite {
    /// Has `each` look at every row whose name is sound.
    async fn scan(&self, query: &'static str, mut each: impl FnMut(Account, &SqliteRow)) -> Result<(), StoreError> {
        self.shared.place.ensure_in_place()?;
        let scan = async |connection: &mut SqliteConnection| {
            let mut found = sqlx::query(query).fetch(connection);
            while let Some(row) = readers::next_in_time(&mut found).await? {
                if let Some(account) = rows::read_account(&row) {
                    each(account, &row);
                } else {
                    tracing::warn!("the store holds a record whose name is damaged; it is left alone");
                }
                // The rows may come faster than they are looked at, and others want the processor, too.
                consume_budget().await;
            }
            Ok(())
        };
        self.shared.readers.read(scan).await
    }
}

/// As in a crash: leases are free at once, and the owner file stays. Writes under way still end.
impl Drop for Sqlite {
    fn drop(&mut self) {
        self.stop.cancel();
        drop(self.shared.owner.give_up());
    }
}

impl fmt::Debug for Sqlite {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sqlite").field("place", &self.shared.place).finish_non_exhaustive()
    }
}

impl Shared {
    /// A new connection counts the others' changes from its own beginning: what came before is taken for changed.
    async fn reconnect(&self) -> Result<SqliteConnection, StoreError> {
        let options = self.place.options().busy_timeout(writer::LOCK_ATTEMPT);
        let mut connection = options.connect().await.map_err(StoreError::unavailable)?;
        self.data_version.store(data_version(&mut connection).await?, Ordering::Release);
        self.epoch.fetch_add(1, Ordering::Release);
        Ok(connection)
    }

    /// Looks for changes by other processes, and that our own owner file is still there.
    async fn look(&self) -> Result<(), StoreError> {
        self.owner.ensure_alive()?;
        self.place.ensure_in_place()?;
        let now = self.with_connection(&mut *self.writer.lock().await, data_version).await?;
        if self.data_version.swap(now, Ordering::AcqRel) != now {
            self.epoch.fetch_add(1, Ordering::Release);
        }
        Ok(())
    }

    fn open(&self, account: &Account, row: Option<Row>) -> Result<Record, StoreError> {
        let row = row.ok_or_else(|| StoreError::Unreadable { account: account.clone() })?;
        let grant = self.sealer.open(account, row.version, &row.sealed)?;
        Ok(Record { grant, marks: row.marks, revision: row.revision })
    }
}

async fn data_version(connection: &mut SqliteConnection) -> Result<i64, StoreError> {
    sqlx::query_scalar("PRAGMA data_version").fetch_one(connection).await.map_err(StoreError::unavailable)
}

async fn watch(shared: Arc<Shared>, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(LOOK)).await.is_some() {
        // A store that cannot be read is reported to whoever uses it, and the change is still there at the next look.
        if let Err(error) = shared.look().await {
            tracing::debug!(%error, "could not look for changes in the store");
        }
        shared.readers.tire(LOOK).await;
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn load(&self, account: &Account) -> Result<Option<Record>, StoreError> {
        self.shared.place.ensure_in_place()?;
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

    async fn visit(&self, wanted: &Wanted<'_>, each: &mut Visitor<'_>) -> Result<(), StoreError> {
        self.scan(rows::LIST, |account, row| {
            if wanted(&account) {
                let record = self.shared.open(&account, rows::read(row));
                each(Entry { account, record });
            }
        })
        .await
    }

    async fn claim(&self, account: &Account, expected: Revision, presented: Presented) -> Result<Claim, StoreError> {
        self.write(Claiming { account: account.clone(), expected, presented: rows::json(&presented)? }).await
    }

    async fn settle(&self, account: &Account, version: Version, marks: &Marks) -> Result<bool, StoreError> {
        self.write(Settling { account: account.clone(), version, marks: MarkTexts::of(marks)? }).await
    }

    async fn save(&self, account: &Account, version: Version, next: &Grant, marks: &Marks) -> Result<bool, StoreError> {
        let (sealed, marks) = (self.shared.sealer.seal(account, next)?, MarkTexts::of(marks)?);
        self.write(Saving { account: account.clone(), version, next: next.version, sealed, marks }).await
    }

    async fn put(&self, account: &Account, grant: &Grant, expect: &Expect) -> Result<Put, StoreError> {
        let sealed = self.shared.sealer.seal(account, grant)?;
        self.write(Putting { account: account.clone(), version: grant.version, sealed, expect: expect.clone() }).await
    }

    async fn delete(&self, account: &Account, expect: &Expect) -> Result<Deleted, StoreError> {
        Ok(match self.write(Deleting { account: account.clone(), expect: expect.clone() }).await? {
            Removal::Gone(row) => {
                Deleted::Gone(self.shared.open(account, row).ok().map(|record| Box::new(record.grant)))
            }
            Removal::Missing => Deleted::Missing,
            Removal::Conflict => Deleted::Conflict,
        })
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.write(Probing).await
    }

    fn epoch(&self) -> u64 {
        self.shared.epoch.load(Ordering::Acquire)
    }
}
