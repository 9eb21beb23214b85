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

/// What format 3 has beyond format 2: by what refresh tokens are recognised that are held or were spent, and where the
/// store is, to notice that it is a copy. A program that knows format 2 alone would not keep this true.
///
/// A refresh that brings a new refresh token spends the one before, in the same statement. The last ones of an account
/// are kept, at least `SPENT_TOKENS` (64) and at most twice as many.
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

/// The spent refresh tokens of a deleted grant are forgotten after 90 days: whoever has them in a file has used it since.
const SWEEP: &str = "DELETE FROM spent_tokens WHERE deleted_at < (unixepoch() - 90 * 86400) * 1000";

/// Another file is where the store was.
#[derive(Debug, thiserror::Error)]
#[error("{} was replaced while in use: put the old file back, or start the daemon again", .0.display())]
struct ReplacedError(PathBuf);

/// What was committed last is in a file that has no name any more.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} was removed or replaced while in use: stop the daemon with SIGTERM, which saves what is in it, and start it again",
    .0.display()
)]
struct LogReplacedError(PathBuf);

/// Device and inode.
type FileIdentity = (u64, u64);

/// The files that SQLite keeps beside the database for as long as it is open: the write-ahead log and its index.
const LOG_FILES: [&str; 2] = ["-wal", "-shm"];

/// Where the store is.
#[derive(Debug)]
pub(super) struct StoreFiles {
    pub(super) file: PathBuf,
    pub(super) directory: PathBuf,
    pub(super) owners: PathBuf,
    /// Of the file in use.
    identity: OnceLock<FileIdentity>,
    /// Of the write-ahead log and its index, while a connection that writes is open.
    log: Mutex<Option<[FileIdentity; LOG_FILES.len()]>>,
}

/// A store that is ready for use.
pub(super) struct Prepared {
    pub(super) connection: SqliteConnection,
    pub(super) fingerprints: FingerprintKey,
    /// It is in another place than it was left in.
    pub(super) copied: bool,
}

impl StoreFiles {
    /// An absolute path, which SQLite cannot take for a URI or for its `:memory:`.
    pub(super) fn new(file: &Path) -> Result<Self, StoreError> {
        let file = std::path::absolute(file).map_err(FileError::at("find", file))?;
        let Some(directory) = file.parent().map(Path::to_owned) else {
            return Err(unfit(&file, "is not a file; choose another place for the store"));
        };
        let owners = directory.join("owners");
        Ok(Self { owners, directory, file, identity: OnceLock::new(), log: Mutex::default() })
    }

    /// Makes what is missing, privately, and refuses what is there and open to others.
    pub(super) fn make_files(&self) -> Result<(), StoreError> {
        if !self.check_file("")? {
            private::create_private_file(&self.file).map_err(FileError::at("make the store", &self.file))?;
            private::sync_directory(&self.directory)?;
        }
        // SQLite gives these the mode of the database when it makes them.
        for suffix in LOG_FILES {
            self.check_file(suffix)?;
        }
        self.ensure_in_place()
    }

    /// Sees that the path still names the file that it named first. What is written to a file that was moved away is
    /// lost with the process, and a refresh token spent for it.
    pub(super) fn ensure_in_place(&self) -> Result<(), StoreError> {
        let found = identity(&self.file)?;
        if *self.identity.get_or_init(|| found) == found {
            Ok(())
        } else {
            Err(StoreError::unavailable(ReplacedError(self.file.clone())))
        }
    }

    /// The same for the write-ahead log: what is committed to one without a name is gone with the process, unless that
    /// ends in order.
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

    /// Remembers the write-ahead log that a connection has open which was used before.
    pub(super) fn adopt_log(&self) -> Result<(), StoreError> {
        let [wal, index] = LOG_FILES.map(|suffix| identity(&self.beside(suffix)));
        *self.log() = Some([wal?, index?]);
        Ok(())
    }

    /// The connection that writes is closed: if it was the last one, SQLite has removed the write-ahead log.
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

    /// Looks at a file by name: to open and close it would drop the locks that SQLite holds on it in this process
    /// (<https://www.sqlite.org/howtocorrupt.html>, section 2.2).
    fn check_file(&self, suffix: &str) -> Result<bool, StoreError> {
        let path = self.beside(suffix);
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

    /// Connects to the file, which may be empty, and leaves a store of this format and key there.
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

    /// By what the store recognises its place: the machine, and the file on it. A copy is another file, however it is
    /// made; the time of the making tells two files apart that have the same number in two file systems. A device's
    /// number is of no use: it may be another one after the next start of the machine.
    fn fingerprint(&self, key: &FingerprintKey) -> Result<TokenFingerprint, StoreError> {
        let found = fs::symlink_metadata(&self.file).map_err(FileError::at("look at", &self.file))?;
        let made = found.created().ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        // Not there, or not everywhere: then the file alone decides.
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        Ok(key.fingerprint(format!("{} {} {}", machine.trim(), found.ino(), made.as_nanos()).as_bytes()))
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
        Ok(self.format(connection).await?.is_some_and(|format| format >= 2))
    }

    /// Whether a store that was opened to be read has what format 3 has.
    pub(super) async fn has_fingerprints(&self, connection: &mut SqliteConnection) -> Result<bool, StoreError> {
        Ok(self.format(connection).await?.is_some_and(|format| format >= 3))
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

/// Brings a store of an earlier format up to this one (invariant 4).
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
            // One that does not open has no refresh token that could be presented.
            if let (Some(account), Some(found)) = (rows::read_account(row), rows::read(row))
                && let Ok(grant) = sealer.open(&account, found.version, &found.sealed)
                && let Some(token) = &grant.refresh_token
            {
                rows::set_fingerprint(connection, &account, token.fingerprint(&key)).await.map_err(fail)?;
            }
        }
    }
}

/// Notes where the store is. `true` when it was noted to be elsewhere: then every refresh token in it is marked.
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
