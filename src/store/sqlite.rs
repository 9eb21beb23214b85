//! Records in a SQLite database: the store of one machine, for any number of processes.
//!
//! Owns: [`Sqlite`]; its children hold the file and schema, the statements, the items, the owners of leases, and the upkeep.
//!
//! Invariants:
//! 1. One connection writes, one change at a time; each change is one commit in the write-ahead log with
//!    `synchronous=FULL`, so that it is on the disk when the call returns.
//! 2. A write that has begun runs to its end, whether or not its caller still waits, before another begins.
//! 3. A connection that met an error is closed and never used again: no transaction is left open in it.
//! 4. A lease is written only while this store's owner is seen living.
//! 5. Nothing is read or written once the path names another file than the one opened.
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
use futures_util::{TryStreamExt as _, future::BoxFuture};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, SqlitePool};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    account::Account,
    grant::{Grant, Version},
    store::{
        Claim, Deleted, Entry, Expect, Marks, Presented, Put, Record, Revision, Store, StoreError, key::Key,
        seal::Sealer,
    },
};

mod database;
mod items;
mod owner;
mod rows;
pub mod upkeep;

use database::Place;
use owner::Owner;
use rows::{MarkTexts, Removal, Row, Wanted};

/// How often other processes' changes are looked for. They are to be seen within 250 ms; the look itself takes
/// microseconds.
const LOOK: Duration = Duration::from_millis(200);

/// A store in one database file, and one owner of leases in it.
pub struct Sqlite {
    shared: Arc<Shared>,
    /// The writes under way, and the look for changes.
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Shared {
    place: Place,
    sealer: Sealer,
    owner: Owner,
    writer: Arc<Mutex<Writer>>,
    readers: SqlitePool,
    epoch: AtomicU64,
    /// `PRAGMA data_version` of the writer when last seen.
    data_version: AtomicI64,
}

/// The connection that writes.
enum Writer {
    Open(SqliteConnection),
    /// Closed after an error, or taken by a write that is under way.
    Away,
    Closed,
}

#[derive(Debug, thiserror::Error)]
#[error("the store is closed")]
struct ClosedError;

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
        let data_version = data_version(&mut connection).await?;
        owner::sweep(&place.owners);
        let shared = Arc::new(Shared {
            owner: Owner::new(&place.owners)?,
            readers: place.readers(),
            place,
            sealer,
            writer: Arc::new(Mutex::new(Writer::Open(connection))),
            epoch: AtomicU64::new(0),
            data_version: AtomicI64::new(data_version),
        });
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        tasks.spawn(watch(Arc::clone(&shared), stop.clone()));
        Ok(Self { shared, tasks, stop })
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

    /// Carries out a write (invariant 2): it begins when it has the connection, and then belongs to a task of its own.
    async fn write<T, W>(&self, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: for<'a> FnOnce(&'a Shared, &'a mut SqliteConnection) -> BoxFuture<'a, Result<T, StoreError>>,
        W: Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let writer = Arc::clone(&shared.writer).lock_owned().await;
        shared.place.ensure_in_place()?;
        self.tasks.spawn(async move { shared.write(writer, work).await }).await.map_err(StoreError::unavailable)?
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
    async fn write<T, W>(&self, mut writer: OwnedMutexGuard<Writer>, work: W) -> Result<T, StoreError>
    where
        W: for<'a> FnOnce(&'a Self, &'a mut SqliteConnection) -> BoxFuture<'a, Result<T, StoreError>>,
    {
        let mut connection = match std::mem::replace(&mut *writer, Writer::Away) {
            Writer::Open(connection) => connection,
            Writer::Away => self.reconnect().await?,
            Writer::Closed => {
                *writer = Writer::Closed;
                return Err(StoreError::unavailable(ClosedError));
            }
        };
        let result = work(self, &mut connection).await;
        if result.is_ok() {
            *writer = Writer::Open(connection);
        } else if let Err(error) = connection.close().await {
            tracing::debug!(%error, "could not close the connection to the store");
        }
        result
    }

    /// A new connection counts the others' changes from its own beginning: what came before is taken for changed.
    async fn reconnect(&self) -> Result<SqliteConnection, StoreError> {
        let mut connection = self.place.options().connect().await.map_err(StoreError::unavailable)?;
        self.data_version.store(data_version(&mut connection).await?, Ordering::Release);
        self.epoch.fetch_add(1, Ordering::Release);
        Ok(connection)
    }

    /// Looks for changes by other processes, and that our own owner file is still there.
    async fn look(&self) -> Result<(), StoreError> {
        self.owner.ensure_alive()?;
        self.place.ensure_in_place()?;
        let writer = Arc::clone(&self.writer).lock_owned().await;
        let now = self.write(writer, |_, connection| Box::pin(data_version(connection))).await?;
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

    async fn claim(&self, connection: &mut SqliteConnection, wanted: Wanted<'_>) -> Result<Claim, StoreError> {
        self.owner.ensure_alive()?;
        let taken = Claim::Taken(Revision(wanted.expected.0.saturating_add(1)));
        if rows::claim(connection, wanted, None).await.map_err(StoreError::unavailable)? {
            return Ok(taken);
        }
        let holder = rows::lease_owner(connection, wanted.account, wanted.expected).await;
        let Some(holder) = holder.map_err(StoreError::unavailable)? else { return Ok(Claim::Changed) };
        if owner::is_alive(&self.place.owners, &holder)? {
            return Ok(Claim::Held);
        }
        // Compares the owner again, and ids are never used twice: of two that find it dead, one gets the lease.
        let inherited = rows::claim(connection, wanted, Some(&holder)).await.map_err(StoreError::unavailable)?;
        Ok(if inherited { taken } else { Claim::Changed })
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
    }
}

#[async_trait]
impl Store for Sqlite {
    async fn load(&self, account: &Account) -> Result<Option<Record>, StoreError> {
        self.shared.place.ensure_in_place()?;
        let found = rows::on(account, rows::LOAD).fetch_optional(&self.shared.readers).await;
        let found = found.map_err(StoreError::unavailable)?;
        found.map(|row| self.shared.open(account, rows::read(&row))).transpose()
    }

    async fn list(&self) -> Result<Vec<Entry>, StoreError> {
        self.shared.place.ensure_in_place()?;
        let mut entries = Vec::new();
        let mut found = sqlx::query(rows::LIST).fetch(&self.shared.readers);
        while let Some(row) = found.try_next().await.map_err(StoreError::unavailable)? {
            if let Some(account) = rows::read_account(&row) {
                let record = self.shared.open(&account, rows::read(&row));
                entries.push(Entry { account, record });
            } else {
                tracing::warn!("the store holds a record whose name is damaged; it is left alone");
            }
        }
        Ok(entries)
    }

    async fn claim(&self, account: &Account, expected: Revision, presented: Presented) -> Result<Claim, StoreError> {
        let (account, presented) = (account.clone(), rows::json(&presented)?);
        self.write(move |shared, connection| {
            Box::pin(async move {
                let owner = shared.owner.id();
                shared.claim(connection, Wanted { account: &account, expected, presented: &presented, owner }).await
            })
        })
        .await
    }

    async fn settle(&self, account: &Account, version: Version, marks: &Marks) -> Result<bool, StoreError> {
        let (account, marks) = (account.clone(), MarkTexts::of(marks)?);
        self.write(move |shared, connection| {
            Box::pin(async move {
                let settled = rows::settle(connection, &account, version, &marks, shared.owner.id()).await;
                settled.map_err(StoreError::unavailable)
            })
        })
        .await
    }

    async fn save(&self, account: &Account, version: Version, next: &Grant, marks: &Marks) -> Result<bool, StoreError> {
        let sealed = self.shared.sealer.seal(account, next)?;
        let (account, next, marks) = (account.clone(), next.version, MarkTexts::of(marks)?);
        self.write(move |_, connection| {
            Box::pin(async move {
                let saved = rows::save(connection, &account, version, (next, &sealed), &marks).await;
                saved.map_err(StoreError::unavailable)
            })
        })
        .await
    }

    async fn put(&self, account: &Account, grant: &Grant, expect: &Expect) -> Result<Put, StoreError> {
        let sealed = self.shared.sealer.seal(account, grant)?;
        let (account, version, expect) = (account.clone(), grant.version, expect.clone());
        self.write(move |_, connection| {
            Box::pin(async move {
                let put = rows::put(connection, &account, (version, &sealed), &expect).await;
                put.map_err(StoreError::unavailable)
            })
        })
        .await
    }

    async fn delete(&self, account: &Account, expect: &Expect) -> Result<Deleted, StoreError> {
        let (owned, expect) = (account.clone(), expect.clone());
        let removal = self.write(move |_, connection| {
            Box::pin(async move { rows::delete(connection, &owned, &expect).await.map_err(StoreError::unavailable) })
        });
        Ok(match removal.await? {
            Removal::Gone(row) => {
                Deleted::Gone(self.shared.open(account, row).ok().map(|record| Box::new(record.grant)))
            }
            Removal::Missing => Deleted::Missing,
            Removal::Conflict => Deleted::Conflict,
        })
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.write(|_, connection| {
            Box::pin(async move { rows::probe(connection).await.map_err(StoreError::unavailable) })
        })
        .await
    }

    fn epoch(&self) -> u64 {
        self.shared.epoch.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::StoreKey;

    async fn ask<T>(store: &Sqlite, question: &'static str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite> + Send + Unpin + 'static,
    {
        let answer = store.write(move |_, connection| {
            Box::pin(async move {
                sqlx::query_scalar(question).fetch_one(connection).await.map_err(StoreError::unavailable)
            })
        });
        answer.await.unwrap()
    }

    #[tokio::test]
    async fn every_commit_waits_for_the_disk_with_a_new_connection_too() {
        let home = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&home.path().join("db"), StoreKey::new([1; 32]), "key").await.unwrap();
        for _ in 0..2 {
            assert_eq!(ask::<i64>(&store, "PRAGMA synchronous").await, 2, "FULL");
            assert_eq!(ask::<String>(&store, "PRAGMA journal_mode").await, "wal");
            let epoch = store.epoch();
            let failed: Result<(), _> = store
                .write(|_, connection| {
                    Box::pin(async move {
                        sqlx::query("BEGIN IMMEDIATE").execute(connection).await.map_err(StoreError::unavailable)?;
                        Err(StoreError::unavailable("fails in the middle"))
                    })
                })
                .await;
            assert!(failed.is_err());
            ask::<i64>(&store, "PRAGMA data_version").await;
            assert!(store.epoch() > epoch, "what others did while there was no connection is not known");
        }
    }
}
