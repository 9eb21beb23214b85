//! The database file: found, judged, made.
//!
//! Owns: the schema and its format number, and how connections are made.
//!
//! Invariants:
//! 1. Nothing is written to a file before it is known to be an empty one, or a store of this format or an earlier one.
//! 2. The tables and the check value of the key come in one commit: a store whose key cannot be checked never stands.
//! 3. Whoever prepares the store is alone at it: the directory of the owners is locked meanwhile.
//! 4. A store of an earlier format is brought up to this one in one commit, and only by who has its key.
//! 5. A key that was made of a passphrase stands in the same commit with what it takes to make it again.
//!
//! Must not know: what the records hold.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteSynchronous},
};

use super::owner;
use crate::{
    private::{self, FileError},
    store::{StoreError, key::passphrase::Derivation, seal::Sealer, unfit},
};

/// Format 1 had no items.
const FORMAT: i64 = 2;

/// "crpx": tells our databases from those of other programs (<https://www.sqlite.org/fileformat.html#application_id>).
const APPLICATION: i64 = 0x6372_7078;

/// `derivation` tells how the key is made of a passphrase, if it is. `deleted_revision` is the highest revision that a
/// deleted record had. A new record begins above it, so that no revision of an account comes back.
const SCHEMA: &str = "
    CREATE TABLE meta (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        key_check BLOB NOT NULL,
        deleted_revision INTEGER NOT NULL,
        derivation TEXT
    ) STRICT;
    CREATE TABLE records (
        provider TEXT NOT NULL,
        bucket TEXT NOT NULL,
        sealed BLOB NOT NULL,
        grant_id BLOB NOT NULL,
        generation INTEGER NOT NULL,
        revision INTEGER NOT NULL,
        presented TEXT,
        attempt TEXT,
        latch TEXT,
        lease_owner TEXT,
        PRIMARY KEY (provider, bucket)
    ) STRICT;
    PRAGMA application_id = 0x63727078;
";

/// What format 2 has beyond format 1. A program that knows format 1 alone would leave the items behind when the key
/// changes, so it must not take the store for its own.
const ITEMS: &str = "
    CREATE TABLE items (
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        tag BLOB NOT NULL,
        sealed BLOB NOT NULL,
        PRIMARY KEY (kind, name)
    ) STRICT;
    PRAGMA user_version = 2;
";

/// How long a connection waits for another process's write to end. A write takes milliseconds; a flight, which ends
/// within 30 s, waits at most 5 s for its lease.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Another file is where the store was.
#[derive(Debug, thiserror::Error)]
#[error("{} was replaced while in use: put the old file back, or start the daemon again", .0.display())]
struct ReplacedError(PathBuf);

/// Where the store is.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) file: PathBuf,
    pub(super) directory: PathBuf,
    pub(super) owners: PathBuf,
    /// Device and inode of the file in use.
    identity: OnceLock<(u64, u64)>,
}

impl Place {
    /// An absolute path, which SQLite cannot take for a URI or for its `:memory:`.
    pub(super) fn new(file: &Path) -> Result<Self, StoreError> {
        let file = std::path::absolute(file).map_err(FileError::at("find", file))?;
        let Some(directory) = file.parent().map(Path::to_owned) else {
            return Err(unfit(&file, "is not a file; choose another place for the store"));
        };
        Ok(Self { owners: directory.join("owners"), directory, file, identity: OnceLock::new() })
    }

    /// Makes what is missing, privately, and refuses what is there and open to others.
    pub(super) fn make_files(&self) -> Result<(), StoreError> {
        if !self.check_file("")? {
            private::create_private_file(&self.file).map_err(FileError::at("make the store", &self.file))?;
            private::sync_directory(&self.directory)?;
        }
        // SQLite gives these the mode of the database when it makes them.
        for suffix in ["-wal", "-shm"] {
            self.check_file(suffix)?;
        }
        self.ensure_in_place()
    }

    /// Sees that the path still names the file that it named first. What is written to a file that was moved away is
    /// lost with the process, and a refresh token spent for it.
    pub(super) fn ensure_in_place(&self) -> Result<(), StoreError> {
        let found = fs::symlink_metadata(&self.file).map_err(FileError::at("look at", &self.file))?;
        let found = (found.dev(), found.ino());
        if *self.identity.get_or_init(|| found) == found {
            Ok(())
        } else {
            Err(StoreError::unavailable(ReplacedError(self.file.clone())))
        }
    }

    /// Looks at a file by name: to open and close it would drop the locks that SQLite holds on it in this process
    /// (<https://www.sqlite.org/howtocorrupt.html>, section 2.2).
    fn check_file(&self, suffix: &str) -> Result<bool, StoreError> {
        let mut path = self.file.clone().into_os_string();
        path.push(suffix);
        let path = PathBuf::from(path);
        match fs::symlink_metadata(&path) {
            Ok(found) => private::check_private_file(&path, &found).map(|()| true).map_err(StoreError::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(FileError::at("look at", &path)(error).into()),
        }
    }

    /// Waits until nobody else prepares a store in this directory.
    pub(super) async fn lock(&self) -> Result<File, StoreError> {
        private::private_directory(&self.directory)?;
        private::private_directory(&self.owners)?;
        let directory = File::open(&self.owners).map_err(FileError::at("open", &self.owners))?;
        let attempt = Duration::from_millis(10);
        let locked = tokio::time::timeout(PATIENCE, async {
            loop {
                match directory.try_lock() {
                    Ok(()) => return Ok(()),
                    Err(TryLockError::WouldBlock) => tokio::time::sleep(attempt).await,
                    Err(TryLockError::Error(error)) => return Err(owner::lock_error("lock", &self.owners, error)),
                }
            }
        });
        locked.await.map_err(StoreError::unavailable)??;
        Ok(directory)
    }

    pub(super) fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(&self.file)
            .busy_timeout(PATIENCE)
            .synchronous(SqliteSynchronous::Full)
            .disable_statement_logging()
    }

    /// Connects to the file, which may be empty, and leaves a store of this format and key there.
    pub(super) async fn prepare(
        &self,
        sealer: &Sealer,
        derivation: Option<&Derivation>,
        key_place: &str,
    ) -> Result<SqliteConnection, StoreError> {
        let mut connection = self.options().connect().await.map_err(|error| self.unopened(error))?;
        let format = self.format(&mut connection).await?;
        use_wal(&mut connection, &self.file).await?;
        if format.is_none() {
            let derivation = derivation.map(Derivation::to_text).transpose()?;
            let created = create(&mut connection, &sealer.check_value()?, derivation.as_deref()).await;
            created.map_err(StoreError::unavailable)?;
        }
        self.check_key(&mut connection, sealer, key_place).await?;
        if format.is_some_and(|format| format < FORMAT) {
            add_items(&mut connection).await.map_err(StoreError::unavailable)?;
        }
        Ok(connection)
    }

    /// Connects to a store that is there, to read it and change nothing. `None` when none was made yet.
    pub(super) async fn connect_to_read(&self) -> Result<Option<SqliteConnection>, StoreError> {
        if !self.check_file("")? {
            return Ok(None);
        }
        let mut connection = self.options().read_only(true).connect().await.map_err(|error| self.unopened(error))?;
        Ok(self.format(&mut connection).await?.is_some().then_some(connection))
    }

    /// Whether the store was sealed with this key.
    pub(super) async fn check_key(
        &self,
        connection: &mut SqliteConnection,
        sealer: &Sealer,
        key_place: &str,
    ) -> Result<(), StoreError> {
        let check: Option<Vec<u8>> = sqlx::query_scalar("SELECT key_check FROM meta")
            .fetch_optional(connection)
            .await
            .map_err(|error| self.unopened(error))?;
        if check.is_some_and(|check| sealer.accepts(&check)) {
            Ok(())
        } else {
            Err(StoreError::WrongKey { key: key_place.to_owned(), place: self.file.display().to_string() })
        }
    }

    /// Whether there are items in a store that was opened to be read.
    pub(super) async fn has_items(&self, connection: &mut SqliteConnection) -> Result<bool, StoreError> {
        Ok(self.format(connection).await?.is_some_and(|format| format >= FORMAT))
    }

    /// The format of the store, `None` when it is yet to be made; an error if what is there is not a store that this
    /// version can read.
    async fn format(&self, connection: &mut SqliteConnection) -> Result<Option<i64>, StoreError> {
        let mut ask = async |query: &'static str| -> Result<i64, StoreError> {
            sqlx::query_scalar(query).fetch_one(&mut *connection).await.map_err(|error| self.unopened(error))
        };
        let tables = ask("SELECT count(*) FROM sqlite_schema").await?;
        match (ask("PRAGMA application_id").await?, ask("PRAGMA user_version").await?) {
            (APPLICATION, format @ 1..=FORMAT) => Ok(Some(format)),
            (0, 0) if tables == 0 => Ok(None),
            (APPLICATION, format) if format > FORMAT => Err(StoreError::NewerStore {
                place: self.file.display().to_string(),
                format: format.try_into().unwrap_or(u32::MAX),
            }),
            _ => Err(unfit(&self.file, "is the database of another program; choose another place for the store")),
        }
    }

    /// Sorts an error met while the file is not known to be sound.
    pub(super) fn unopened(&self, error: sqlx::Error) -> StoreError {
        // The primary result code is the low byte (<https://www.sqlite.org/rescode.html>).
        let code =
            error.as_database_error().and_then(|error| error.code()?.parse::<i32>().ok()).map(|code| code & 0xff);
        match code {
            Some(CORRUPT | NOT_A_DATABASE) => unfit(
                &self.file,
                "is not a SQLite database, or is damaged; put back a copy of the store, or move the file away to \
                 begin a new one",
            ),
            _ => StoreError::unavailable(error),
        }
    }
}

const CORRUPT: i32 = 11;
const NOT_A_DATABASE: i32 = 26;

/// The mode stays with the file; there is nothing to do but the first time.
async fn use_wal(connection: &mut SqliteConnection, file: &Path) -> Result<(), StoreError> {
    let mode: String =
        sqlx::query_scalar("PRAGMA journal_mode = WAL").fetch_one(connection).await.map_err(StoreError::unavailable)?;
    if mode == "wal" {
        Ok(())
    } else {
        Err(unfit(file, "the file system lacks what SQLite needs for its write-ahead log; choose a local one"))
    }
}

async fn create(connection: &mut SqliteConnection, check: &[u8], derivation: Option<&str>) -> Result<(), sqlx::Error> {
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    sqlx::raw_sql(SCHEMA).execute(&mut *connection).await?;
    sqlx::raw_sql(ITEMS).execute(&mut *connection).await?;
    let meta = sqlx::query("INSERT INTO meta (only, key_check, deleted_revision, derivation) VALUES (1, ?1, 0, ?2)");
    meta.bind(check).bind(derivation).execute(&mut *connection).await?;
    sqlx::query("COMMIT").execute(connection).await?;
    Ok(())
}

async fn add_items(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    sqlx::raw_sql(ITEMS).execute(&mut *connection).await?;
    sqlx::query("COMMIT").execute(connection).await?;
    Ok(())
}
