//! The statements on the records.
//!
//! Owns: what is read from and written to a row.
//!
//! Invariants:
//! 1. A change of one row is one statement, which may be its own commit; what must read first ([`put`], [`delete`]) is
//!    called in a transaction that has taken the write lock.
//! 2. A row that damage made senseless is read as `None`, and never as one with fewer marks.
//!
//! No statement returns rows from a commit of its own (`RETURNING`): the driver takes the first row for the end, and an
//! error of the commit would go unseen.
//!
//! Must not know: keys, leases' owners.

use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    Row as _, Sqlite, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

use crate::{
    account::Account,
    grant::{GrantId, Version},
    store::{Expect, Marks, Put, Revision, StoreError},
};

pub(super) const LOAD: &str = "SELECT sealed, grant_id, generation, revision, presented, attempt, latch FROM records \
                               WHERE provider = ?1 AND bucket = ?2";

pub(super) const LIST: &str = "SELECT sealed, grant_id, generation, revision, presented, attempt, latch, provider, \
                               bucket FROM records ORDER BY provider, bucket";

/// The names alone, which the index holds.
pub(super) const NAMES: &str = "SELECT provider, bucket FROM records ORDER BY provider, bucket";

/// The next so many rows behind an account, in the order of the names.
pub(super) const NEXT: &str = "SELECT sealed, grant_id, generation, revision, presented, attempt, latch, provider, \
                               bucket FROM records WHERE (provider, bucket) > (?1, ?2) ORDER BY provider, bucket \
                               LIMIT 256";

/// A row that makes sense, still sealed.
pub(super) struct Row {
    pub(super) sealed: Vec<u8>,
    pub(super) version: Version,
    pub(super) marks: Marks,
    pub(super) revision: Revision,
}

/// Marks as they are written: each a JSON text, or `NULL`.
pub(super) struct MarkTexts {
    presented: Option<String>,
    attempt: Option<String>,
    latch: Option<String>,
}

impl MarkTexts {
    pub(super) fn of(marks: &Marks) -> Result<Self, StoreError> {
        Ok(Self {
            presented: marks.presented.as_ref().map(json).transpose()?,
            attempt: marks.attempt.as_ref().map(json).transpose()?,
            latch: marks.latch.as_ref().map(json).transpose()?,
        })
    }
}

pub(super) fn json(mark: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(mark).map_err(StoreError::unavailable)
}

/// A mark is no JSON text of its kind, which is not the same as no mark.
struct Damaged;

/// Reads a row of [`LOAD`] or [`LIST`].
pub(super) fn read(row: &SqliteRow) -> Option<Row> {
    Some(Row {
        sealed: row.try_get("sealed").ok()?,
        version: read_version(row)?,
        marks: Marks {
            presented: read_mark(row, "presented").ok()?,
            attempt: read_mark(row, "attempt").ok()?,
            latch: read_mark(row, "latch").ok()?,
        },
        revision: Revision(row.try_get::<i64, _>("revision").ok()?.cast_unsigned()),
    })
}

/// The names of a row as they are, good or not.
pub(super) fn read_names(row: &SqliteRow) -> Result<(String, String), sqlx::Error> {
    Ok((row.try_get("provider")?, row.try_get("bucket")?))
}

/// Whose row of [`LIST`] or [`NAMES`] it is.
pub(super) fn read_account(row: &SqliteRow) -> Option<Account> {
    let name = |column| row.try_get::<&str, _>(column).ok();
    Some(Account::new(name("provider")?.parse().ok()?, name("bucket")?.parse().ok()?))
}

fn read_version(row: &SqliteRow) -> Option<Version> {
    let id = row.try_get::<&[u8], _>("grant_id").ok()?.try_into().ok()?;
    let generation = row.try_get::<i64, _>("generation").ok()?.cast_unsigned();
    Some(Version { id: GrantId::from_bytes(id), generation })
}

fn read_mark<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<Option<T>, Damaged> {
    let text: Option<&str> = row.try_get(column).map_err(|_| Damaged)?;
    text.map(serde_json::from_str).transpose().map_err(|_| Damaged)
}

/// A statement on one account: the first two parameters of each are its names.
pub(super) fn on<'a>(account: &'a Account, statement: &'static str) -> Query<'a, Sqlite, SqliteArguments> {
    sqlx::query(statement).bind(account.provider.as_str()).bind(account.bucket.as_str())
}

async fn changed_one(
    query: Query<'_, Sqlite, SqliteArguments>,
    connection: &mut SqliteConnection,
) -> Result<bool, sqlx::Error> {
    Ok(query.execute(connection).await?.rows_affected() == 1)
}

/// What a claim asks for.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) account: &'a Account,
    pub(super) expected: Revision,
    pub(super) presented: &'a str,
    pub(super) owner: &'a str,
}

/// Takes a lease that is free, the owner's already, or that of `dead`.
pub(super) async fn claim(
    connection: &mut SqliteConnection,
    wanted: Wanted<'_>,
    dead: Option<&str>,
) -> Result<bool, sqlx::Error> {
    let query = on(
        wanted.account,
        "UPDATE records SET presented = ?4, lease_owner = ?5, revision = revision + 1 \
         WHERE provider = ?1 AND bucket = ?2 AND revision = ?3 AND (lease_owner IS NULL OR lease_owner IN (?5, ?6))",
    );
    let query = query.bind(wanted.expected.0.cast_signed()).bind(wanted.presented).bind(wanted.owner).bind(dead);
    changed_one(query, connection).await
}

/// The owner of the lease on a record that is still at `expected`.
pub(super) async fn lease_owner(
    connection: &mut SqliteConnection,
    account: &Account,
    expected: Revision,
) -> Result<Option<String>, sqlx::Error> {
    let query = on(account, "SELECT lease_owner FROM records WHERE provider = ?1 AND bucket = ?2 AND revision = ?3");
    match query.bind(expected.0.cast_signed()).fetch_optional(connection).await? {
        Some(row) => row.try_get(0),
        None => Ok(None),
    }
}

pub(super) async fn settle(
    connection: &mut SqliteConnection,
    account: &Account,
    version: Version,
    marks: &MarkTexts,
    owner: &str,
) -> Result<bool, sqlx::Error> {
    let query = on(
        account,
        "UPDATE records SET presented = ?5, attempt = ?6, latch = ?7, lease_owner = NULL, revision = revision + 1 \
         WHERE provider = ?1 AND bucket = ?2 AND grant_id = ?3 AND generation = ?4 \
         AND (lease_owner IS NULL OR lease_owner = ?8)",
    );
    changed_one(bind_marks(bind_version(query, version), marks).bind(owner), connection).await
}

pub(super) async fn save(
    connection: &mut SqliteConnection,
    account: &Account,
    version: Version,
    next: (Version, &[u8]),
    marks: &MarkTexts,
) -> Result<bool, sqlx::Error> {
    let query = on(
        account,
        "UPDATE records SET presented = ?5, attempt = ?6, latch = ?7, lease_owner = NULL, revision = revision + 1, \
         grant_id = ?8, generation = ?9, sealed = ?10 \
         WHERE provider = ?1 AND bucket = ?2 AND grant_id = ?3 AND generation = ?4",
    );
    let query = bind_version(bind_marks(bind_version(query, version), marks), next.0).bind(next.1);
    changed_one(query, connection).await
}

pub(super) async fn put(
    connection: &mut SqliteConnection,
    account: &Account,
    (version, sealed): (Version, &[u8]),
    expect: &Expect,
) -> Result<Put, sqlx::Error> {
    let deleted: i64 = sqlx::query_scalar("SELECT deleted_revision FROM meta").fetch_one(&mut *connection).await?;
    let found = on(account, LOAD).fetch_optional(&mut *connection).await?;
    let (met, put) = match &found {
        Some(row) => (expect.allows(read_version(row)), Put::Replaced),
        None => (expect.allows_none(), Put::Created),
    };
    if !met {
        return Ok(Put::Conflict);
    }
    let last = found.and_then(|row| row.try_get::<i64, _>("revision").ok()).unwrap_or(deleted).max(deleted);
    let query = on(
        account,
        "INSERT OR REPLACE INTO records (provider, bucket, grant_id, generation, sealed, revision) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    );
    bind_version(query, version).bind(sealed).bind(last.saturating_add(1)).execute(connection).await?;
    Ok(put)
}

/// What became of a deletion.
pub(super) enum Removal {
    Gone(Option<Row>),
    Missing,
    Conflict,
}

pub(super) async fn delete(
    connection: &mut SqliteConnection,
    account: &Account,
    expect: &Expect,
) -> Result<Removal, sqlx::Error> {
    let found = on(account, LOAD).fetch_optional(&mut *connection).await?;
    let removal = match &found {
        Some(row) if expect.allows(read_version(row)) => Removal::Gone(read(row)),
        Some(_) => Removal::Conflict,
        None => Removal::Missing,
    };
    if !matches!(removal, Removal::Gone(_)) {
        return Ok(removal);
    }
    let remember = on(
        account,
        "UPDATE meta SET deleted_revision = max(deleted_revision, revision) \
         FROM (SELECT revision FROM records WHERE provider = ?1 AND bucket = ?2)",
    );
    remember.execute(&mut *connection).await?;
    on(account, "DELETE FROM records WHERE provider = ?1 AND bucket = ?2").execute(connection).await?;
    Ok(removal)
}

/// SQLite does not write what stays as it is. That the next record of a deleted account begins at a higher revision
/// than it must does no harm.
pub(super) async fn probe(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    run(connection, "UPDATE meta SET deleted_revision = deleted_revision + 1").await
}

/// Puts other sealed bytes in the place of a row's, for the same grant.
pub(super) async fn reseal(
    connection: &mut SqliteConnection,
    account: &Account,
    sealed: &[u8],
) -> Result<(), sqlx::Error> {
    let query = on(account, "UPDATE records SET sealed = ?3 WHERE provider = ?1 AND bucket = ?2");
    query.bind(sealed).execute(connection).await.map(|_| ())
}

pub(super) async fn run(connection: &mut SqliteConnection, statement: &'static str) -> Result<(), sqlx::Error> {
    sqlx::query(statement).execute(connection).await.map(|_| ())
}

fn bind_version(query: Query<'_, Sqlite, SqliteArguments>, version: Version) -> Query<'_, Sqlite, SqliteArguments> {
    query.bind(version.id.to_bytes().to_vec()).bind(version.generation.cast_signed())
}

fn bind_marks<'a>(
    query: Query<'a, Sqlite, SqliteArguments>,
    marks: &'a MarkTexts,
) -> Query<'a, Sqlite, SqliteArguments> {
    query.bind(&marks.presented).bind(&marks.attempt).bind(&marks.latch)
}
