//! The database file: locating, checking and creating it.
//!
//! Owns: the schema and its format number, and how connections are opened.
//!
//! Invariants:
//! 1. Nothing is written to a file unless it is empty, or a store of this or an earlier format.
//! 2. The tables and the check value of the key are committed together: there is never a store whose key cannot be
//!    checked.
//! 3. A store is prepared under an exclusive lock of the owners' directory.
//! 4. A store of an earlier format is migrated in one commit, and only with its key.
//! 5. A key derived from a passphrase is committed together with the parameters to derive it again.
//!
//! Must not know: what the records contain.

use std::{
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, UNIX_EPOCH},
};

use sqlx::{
    ConnectOptions as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteSynchronous},
};
use zeroize::Zeroizing;

use super::{
    owner,
    rows::{self, run},
};
use crate::{
    private::{self, FileError},
    secret::{FINGERPRINT_KEY_BYTES, FingerprintKey, TokenFingerprint},
    store::{StoreError, key::passphrase::Derivation, seal::Sealer, unfit},
    timeouts::STORE_CALL_TIMEOUT,
};

/// Format 1 had no items, format 2 no fingerprints of refresh tokens.
const FORMAT: i64 = 3;

/// "crpx": distinguishes our databases from those of other programs
/// (<https://www.sqlite.org/fileformat.html#application_id>).
const APPLICATION: i64 = 0x6372_7078;

/// `derivation` has the parameters of a key that is derived from a passphrase. `deleted_revision` is the highest
/// revision of a deleted record. A new record begins above it, so that no revision of an account is reused.
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

/// What format 2 adds to format 1. A program for format 1 would skip the items when the key changes, so it must not
/// open the store.
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

/// What format 3 adds to format 2: fingerprints of the present and spent refresh tokens, and the store's location, to
/// recognise a copy. A program for format 2 would not maintain them.
///
/// A refresh with a new refresh token records the previous one as spent, in the same statement. The last ones of an
/// account are kept, at least `SPENT_TOKENS` (64) and at most twice as many.
const FINGERPRINTS: &str = "
    ALTER TABLE meta ADD COLUMN fingerprint_key BLOB;
    ALTER TABLE meta ADD COLUMN place BLOB;
    ALTER TABLE records ADD COLUMN fingerprint BLOB;
    ALTER TABLE records ADD COLUMN copied TEXT;
    CREATE INDEX records_by_fingerprint ON records (fingerprint) WHERE fingerprint IS NOT NULL;
    CREATE TABLE spent_tokens (
        provider TEXT NOT NULL,
        bucket TEXT NOT NULL,
        fingerprint BLOB NOT NULL,
        spent_at INTEGER NOT NULL,
        deleted_at INTEGER,
        PRIMARY KEY (provider, bucket, fingerprint)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX spent_tokens_by_fingerprint ON spent_tokens (fingerprint);
    CREATE TRIGGER refresh_token_replaced AFTER UPDATE OF fingerprint ON records
    WHEN OLD.fingerprint IS NOT NULL AND NEW.fingerprint IS NOT OLD.fingerprint
    BEGIN
        INSERT OR REPLACE INTO spent_tokens (provider, bucket, fingerprint, spent_at)
        VALUES (OLD.provider, OLD.bucket, OLD.fingerprint, CAST(unixepoch('subsec') * 1000 AS INTEGER));
    END;
    CREATE TRIGGER spent_tokens_are_limited AFTER UPDATE OF fingerprint ON records
    WHEN NEW.generation % 64 = 0
    BEGIN
        DELETE FROM spent_tokens
        WHERE provider = NEW.provider AND bucket = NEW.bucket AND fingerprint NOT IN (
            SELECT fingerprint FROM spent_tokens
            WHERE provider = NEW.provider AND bucket = NEW.bucket ORDER BY spent_at DESC LIMIT 64
        );
    END;
    PRAGMA user_version = 3;
";

/// The spent refresh tokens of a deleted grant are forgotten after 90 days: whoever has them in a file has used it
/// since.
const SWEEP: &str = "DELETE FROM spent_tokens WHERE deleted_at < (unixepoch() - 90 * 86400) * 1000";

/// The store's path names another file now.
#[derive(Debug, thiserror::Error)]
#[error("{} was replaced while in use: put the old file back, or start the daemon again", .0.display())]
struct ReplacedError(PathBuf);

/// The last commits are in a file that has been deleted.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} was removed or replaced while in use: stop the daemon with SIGTERM, which saves what is in it, and start it again",
    .0.display()
)]
struct LogReplacedError(PathBuf);

/// Device and inode.
type FileIdentity = (u64, u64);

/// The files that SQLite keeps beside an open database: the write-ahead log and its index.
const LOG_FILES: [&str; 2] = ["-wal", "-shm"];

/// The store's files.
#[derive(Debug)]
pub(super) struct StoreFiles {
    pub(super) file: PathBuf,
    pub(super) directory: PathBuf,
    pub(super) owners: PathBuf,
    /// Of the file in use.
    identity: OnceLock<FileIdentity>,
    /// Of the write-ahead log and its index, while a writing connection is open.
    log: Mutex<Option<[FileIdentity; LOG_FILES.len()]>>,
}

/// A store that is ready for use.
pub(super) struct Prepared {
    pub(super) connection: SqliteConnection,
    pub(super) fingerprints: FingerprintKey,
    /// It is in another place than before.
    pub(super) copied: bool,
}

impl StoreFiles {
    /// An absolute path, which SQLite cannot mistake for a URI or for `:memory:`.
    pub(super) fn new(file: &Path) -> Result<Self, StoreError> {
        let file = std::path::absolute(file).map_err(FileError::at("find", file))?;
        let Some(directory) = file.parent().map(Path::to_owned) else {
            return Err(unfit(&file, "is not a file; choose another place for the store"));
        };
        let owners = directory.join("owners");
        Ok(Self { owners, directory, file, identity: OnceLock::new(), log: Mutex::default() })
    }

    /// Creates missing files with private modes, and refuses existing ones that are open to others.
    pub(super) fn make_files(&self) -> Result<(), StoreError> {
        if !self.check_file("")? {
            private::create_private_file(&self.file).map_err(FileError::at("make the store", &self.file))?;
            private::sync_directory(&self.directory)?;
        }
        // SQLite creates these with the mode of the database.
        for suffix in LOG_FILES {
            self.check_file(suffix)?;
        }
        self.ensure_in_place()
    }

    /// Checks that the path still names the file that it named first. Writes to a file that was moved away are lost
    /// with the process, and a refresh token is spent for nothing.
    pub(super) fn ensure_in_place(&self) -> Result<(), StoreError> {
        let found = identity(&self.file)?;
        if *self.identity.get_or_init(|| found) == found {
            Ok(())
        } else {
            Err(StoreError::unavailable(ReplacedError(self.file.clone())))
        }
    }

    /// Checks the write-ahead log in the same way: commits to a deleted one are lost with the process, unless that ends
    /// in order.
    pub(super) fn ensure_log_in_place(&self) -> Result<(), StoreError> {
        let Some(known) = *self.log() else { return Ok(()) };
        for (suffix, known) in LOG_FILES.into_iter().zip(known) {
            let file = self.beside(suffix);
            if identity(&file).ok() != Some(known) {
                return Err(StoreError::unavailable(LogReplacedError(file)));
            }
        }
        Ok(())
    }

    /// Records the write-ahead log of a connection that has been used before.
    pub(super) fn adopt_log(&self) -> Result<(), StoreError> {
        let [wal, index] = LOG_FILES.map(|suffix| identity(&self.beside(suffix)));
        *self.log() = Some([wal?, index?]);
        Ok(())
    }

    /// Forgets the write-ahead log after the writing connection is closed: if it was the last one, SQLite has removed
    /// the file.
    pub(super) fn forget_log(&self) {
        *self.log() = None;
    }

    fn log(&self) -> MutexGuard<'_, Option<[FileIdentity; LOG_FILES.len()]>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.file.clone().into_os_string();
        path.push(suffix);
        path.into()
    }

    /// Examines a file by name: opening and closing it would drop the locks that SQLite holds on it in this process
    /// (<https://www.sqlite.org/howtocorrupt.html>, section 2.2).
    fn check_file(&self, suffix: &str) -> Result<bool, StoreError> {
        let path = self.beside(suffix);
        match fs::symlink_metadata(&path) {
            Ok(found) => private::check_private_file(&path, &found).map(|()| true).map_err(StoreError::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(FileError::at("look at", &path)(error).into()),
        }
    }

    /// Waits until no other process prepares a store in this directory.
    pub(super) async fn lock(&self) -> Result<File, StoreError> {
        private::private_directory(&self.directory)?;
        private::private_directory(&self.owners)?;
        let directory = File::open(&self.owners).map_err(FileError::at("open", &self.owners))?;
        let attempt = Duration::from_millis(10);
        let locked = tokio::time::timeout(STORE_CALL_TIMEOUT, async {
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
            .busy_timeout(STORE_CALL_TIMEOUT)
            .synchronous(SqliteSynchronous::Full)
            .disable_statement_logging()
    }

    /// Connects to the file, which may be empty, and creates or migrates the store.
    pub(super) async fn prepare(
        &self,
        sealer: &Sealer,
        derivation: Option<&Derivation>,
        key_place: &str,
    ) -> Result<Prepared, StoreError> {
        let mut connection = self.options().connect().await.map_err(|error| self.unopened(error))?;
        let format = self.format(&mut connection).await?;
        use_wal(&mut connection, &self.file).await?;
        if format.is_none() {
            let derivation = derivation.map(Derivation::to_text).transpose()?;
            create(&mut connection, sealer, derivation.as_deref()).await?;
        }
        self.check_key(&mut connection, sealer, key_place).await?;
        if let Some(format) = format.filter(|format| *format < FORMAT) {
            migrate(&mut connection, sealer, format).await?;
        }
        let fingerprints = self.fingerprint_key(&mut connection, sealer).await?;
        let place = self.fingerprint(&fingerprints)?;
        let copied = record_location(&mut connection, place).await.map_err(StoreError::unavailable)?;
        run(&mut connection, SWEEP).await.map_err(StoreError::unavailable)?;
        self.adopt_log()?;
        Ok(Prepared { connection, fingerprints, copied })
    }

    async fn fingerprint_key(
        &self,
        connection: &mut SqliteConnection,
        sealer: &Sealer,
    ) -> Result<FingerprintKey, StoreError> {
        let found: Option<Vec<u8>> = sqlx::query_scalar("SELECT fingerprint_key FROM meta")
            .fetch_one(connection)
            .await
            .map_err(|error| self.unopened(error))?;
        let opened = found.and_then(|sealed| sealer.open_fingerprint_key(&sealed).ok());
        opened.ok_or_else(|| unfit(&self.file, "is damaged; put back a copy of the store"))
    }

    /// The location by which the store recognises that it was copied or moved: the machine, and the file on it. A copy
    /// is another file, however it is made; the creation time distinguishes files with the same number in two file
    /// systems. A device number is of no use: it may change when the machine is restarted.
    fn fingerprint(&self, key: &FingerprintKey) -> Result<TokenFingerprint, StoreError> {
        let found = fs::symlink_metadata(&self.file).map_err(FileError::at("look at", &self.file))?;
        let made = found.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        // Not available everywhere: then the file alone decides.
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        Ok(key.fingerprint(format!("{} {} {}", machine.trim(), found.ino(), made.as_nanos()).as_bytes()))
    }

    /// Connects to an existing store for reading only. `None` if none was created yet.
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

    /// Whether a store that was opened for reading has items.
    pub(super) async fn has_items(&self, connection: &mut SqliteConnection) -> Result<bool, StoreError> {
        Ok(self.format(connection).await?.is_some_and(|format| format >= 2))
    }

    /// Whether a store that was opened for reading has what format 3 adds.
    pub(super) async fn has_fingerprints(&self, connection: &mut SqliteConnection) -> Result<bool, StoreError> {
        Ok(self.format(connection).await?.is_some_and(|format| format >= 3))
    }

    /// The format of the store, `None` if it has not been created yet; an error if this version cannot read it.
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

    /// Maps an error that occurs while the file may be unsound.
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

/// The journal mode is stored in the file; this changes it only the first time.
async fn use_wal(connection: &mut SqliteConnection, file: &Path) -> Result<(), StoreError> {
    let mode: String =
        sqlx::query_scalar("PRAGMA journal_mode = WAL").fetch_one(connection).await.map_err(StoreError::unavailable)?;
    if mode == "wal" {
        Ok(())
    } else {
        Err(unfit(file, "the file system lacks what SQLite needs for its write-ahead log; choose a local one"))
    }
}

async fn create(
    connection: &mut SqliteConnection,
    sealer: &Sealer,
    derivation: Option<&str>,
) -> Result<(), StoreError> {
    let check = sealer.check_value()?;
    let fail = StoreError::unavailable;
    run(connection, "BEGIN IMMEDIATE").await.map_err(fail)?;
    sqlx::raw_sql(SCHEMA).execute(&mut *connection).await.map_err(fail)?;
    let meta = sqlx::query("INSERT INTO meta (only, key_check, deleted_revision, derivation) VALUES (1, ?1, 0, ?2)");
    meta.bind(check).bind(derivation).execute(&mut *connection).await.map_err(fail)?;
    add_items(connection).await.map_err(fail)?;
    add_fingerprints(connection, sealer).await?;
    run(connection, "COMMIT").await.map_err(fail)
}

/// Migrates a store of an earlier format (invariant 4).
async fn migrate(connection: &mut SqliteConnection, sealer: &Sealer, format: i64) -> Result<(), StoreError> {
    run(connection, "BEGIN IMMEDIATE").await.map_err(StoreError::unavailable)?;
    if format < 2 {
        add_items(connection).await.map_err(StoreError::unavailable)?;
    }
    if format < 3 {
        add_fingerprints(connection, sealer).await?;
    }
    run(connection, "COMMIT").await.map_err(StoreError::unavailable)
}

async fn add_items(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(ITEMS).execute(connection).await.map(drop)
}

async fn add_fingerprints(connection: &mut SqliteConnection, sealer: &Sealer) -> Result<(), StoreError> {
    let fail = StoreError::unavailable;
    sqlx::raw_sql(FINGERPRINTS).execute(&mut *connection).await.map_err(fail)?;
    let mut bytes = Zeroizing::new([0; FINGERPRINT_KEY_BYTES]);
    getrandom::fill(&mut *bytes).map_err(StoreError::unavailable)?;
    let key = FingerprintKey::from_bytes(*bytes);
    let meta = sqlx::query("UPDATE meta SET fingerprint_key = ?1");
    meta.bind(sealer.seal_fingerprint_key(&key)?).execute(&mut *connection).await.map_err(fail)?;
    let mut last = (String::new(), String::new());
    loop {
        let page =
            sqlx::query(rows::NEXT).bind(&last.0).bind(&last.1).fetch_all(&mut *connection).await.map_err(fail)?;
        let Some(end) = page.last() else { return Ok(()) };
        last = rows::read_names(end).map_err(fail)?;
        for row in &page {
            // A record that cannot be opened has no refresh token that could be presented.
            if let (Some(account), Some(found)) = (rows::read_account(row), rows::read(row))
                && let Ok(grant) = sealer.open(&account, found.version, &found.sealed)
                && let Some(token) = &grant.refresh_token
            {
                rows::set_fingerprint(connection, &account, token.fingerprint(&key)).await.map_err(fail)?;
            }
        }
    }
}

/// Records the store's location. Returns `true` if another one was recorded: then every refresh token in the store is
/// marked as possibly copied.
async fn record_location(connection: &mut SqliteConnection, place: TokenFingerprint) -> Result<bool, sqlx::Error> {
    let place = place.to_bytes();
    let noted: Option<Vec<u8>> = sqlx::query_scalar("SELECT place FROM meta").fetch_one(&mut *connection).await?;
    if noted.as_deref() == Some(&place[..]) {
        return Ok(false);
    }
    run(connection, "BEGIN IMMEDIATE").await?;
    if noted.is_some() {
        run(connection, rows::MARK_COPIED).await?;
    }
    sqlx::query("UPDATE meta SET place = ?1").bind(&place[..]).execute(&mut *connection).await?;
    run(connection, "COMMIT").await?;
    Ok(noted.is_some())
}

fn identity(file: &Path) -> Result<FileIdentity, FileError> {
    let found = fs::symlink_metadata(file).map_err(FileError::at("look at", file))?;
    Ok((found.dev(), found.ino()))
}
