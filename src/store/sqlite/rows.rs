//! The statements on the records.
//!
//! Owns: how a row is read and written.
//!
//! Invariants:
//! 1. A change of one row is one statement, which may be its own commit; changes that must read first ([`replace`],
//!    [`delete`]) run in a transaction that has taken the write lock.
//! 2. A damaged row is read as `None`, and never as one with less refresh state.
//!
//! No statement returns rows from its own commit (`RETURNING`): the driver stops at the first row, and an error of the
//! commit would go unnoticed.
//!
//! Must not know: keys, the owners of leases.

use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    Row as _, Sqlite, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

use crate::{
    account::{Account, ProviderName},
    grant::{GrantId, Version},
    secret::TokenFingerprint,
    store::{Expect, KnownToken, RefreshState, Revision, StoreError},
};

pub(super) const LOAD: &str = "SELECT sealed, grant_id, generation, revision, presented, attempt, latch, copied \
                               FROM records WHERE provider = ?1 AND bucket = ?2";

pub(super) const LIST: &str = "SELECT sealed, grant_id, generation, revision, presented, attempt, latch, copied, \
                               provider, bucket FROM records ORDER BY provider, bucket";

/// [`LIST`] for a store of a format before 3, which is only read.
pub(super) const LIST_BEFORE_3: &str = "SELECT sealed, grant_id, generation, revision, presented, attempt, latch, \
                                        NULL AS copied, provider, bucket FROM records ORDER BY provider, bucket";

/// The names alone, from the index.
pub(super) const NAMES: &str = "SELECT provider, bucket FROM records ORDER BY provider, bucket";

/// The next rows after an account, sorted by name.
pub(super) const NEXT: &str = "SELECT sealed, grant_id, generation, revision, presented, attempt, latch, copied, \
                               provider, bucket FROM records WHERE (provider, bucket) > (?1, ?2) \
                               ORDER BY provider, bucket LIMIT 256";

/// Marks every record whose refresh token may have been presented from a copy of the store. The value is a time in
/// milliseconds, in the format of [`json`].
pub(super) const MARK_COPIED: &str = "UPDATE records SET copied = CAST(CAST(unixepoch('subsec') * 1000 AS INTEGER) AS TEXT), \
                                      revision = revision + 1 WHERE fingerprint IS NOT NULL";

/// A valid row, still sealed.
pub(super) struct Row {
    pub(super) sealed: Vec<u8>,
    pub(super) version: Version,
    pub(super) refresh_state: RefreshState,
    pub(super) revision: Revision,
}

/// The refresh state in its stored form: each column a JSON text, or `NULL`.
pub(super) struct RefreshStateColumns {
    presented: Option<String>,
    attempt: Option<String>,
    dead: Option<String>,
    copied: Option<String>,
}

impl RefreshStateColumns {
    pub(super) fn of(refresh_state: &RefreshState) -> Result<Self, StoreError> {
        Ok(Self {
            presented: refresh_state.presented.as_ref().map(json).transpose()?,
            attempt: refresh_state.attempt.as_ref().map(json).transpose()?,
            dead: refresh_state.dead.as_ref().map(json).transpose()?,
            copied: refresh_state.copied_at.as_ref().map(json).transpose()?,
        })
    }
}

pub(super) fn json(mark: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(mark).map_err(StoreError::unavailable)
}

/// A column does not contain valid JSON of its kind, as opposed to `NULL`.
struct Damaged;

/// Reads a row of [`LOAD`] or [`LIST`].
pub(super) fn read(row: &SqliteRow) -> Option<Row> {
    Some(Row {
        sealed: row.try_get("sealed").ok()?,
        version: read_version(row)?,
        refresh_state: RefreshState {
            presented: read_json(row, "presented").ok()?,
            attempt: read_json(row, "attempt").ok()?,
            dead: read_json(row, "latch").ok()?,
            copied_at: read_json(row, "copied").ok()?,
        },
        revision: Revision(row.try_get::<i64, _>("revision").ok()?.cast_unsigned()),
    })
}

/// The names in a row, valid or not.
pub(super) fn read_names(row: &SqliteRow) -> Result<(String, String), sqlx::Error> {
    Ok((row.try_get("provider")?, row.try_get("bucket")?))
}

/// The account of a row of [`LIST`] or [`NAMES`].
pub(super) fn read_account(row: &SqliteRow) -> Option<Account> {
    let name = |column| row.try_get::<&str, _>(column).ok();
    Some(Account::new(name("provider")?.parse().ok()?, name("bucket")?.parse().ok()?))
}

fn read_version(row: &SqliteRow) -> Option<Version> {
    let id = row.try_get::<&[u8], _>("grant_id").ok()?.try_into().ok()?;
    let generation = row.try_get::<i64, _>("generation").ok()?.cast_unsigned();
    Some(Version { id: GrantId::from_bytes(id), generation })
}

fn read_json<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<Option<T>, Damaged> {
    let text: Option<&str> = row.try_get(column).map_err(|_| Damaged)?;
    text.map(serde_json::from_str).transpose().map_err(|_| Damaged)
}

/// A statement on one account, whose first two parameters are its names.
pub(super) fn on<'a>(account: &'a Account, statement: &'static str) -> Query<'a, Sqlite, SqliteArguments> {
    sqlx::query(statement).bind(account.provider.as_str()).bind(account.bucket.as_str())
}

async fn changed_one(
    query: Query<'_, Sqlite, SqliteArguments>,
    connection: &mut SqliteConnection,
) -> Result<bool, sqlx::Error> {
    Ok(query.execute(connection).await?.rows_affected() == 1)
}

/// The parameters of a claim.
#[derive(Clone, Copy)]
pub(super) struct ClaimRequest<'a> {
    pub(super) account: &'a Account,
    pub(super) expected: Revision,
    pub(super) presented: &'a str,
    pub(super) owner: &'a str,
}

/// Takes a lease that is free, the owner's own, or held by `dead`.
pub(super) async fn claim(
    connection: &mut SqliteConnection,
    request: ClaimRequest<'_>,
    dead: Option<&str>,
) -> Result<bool, sqlx::Error> {
    let query = on(
        request.account,
        "UPDATE records SET presented = ?4, lease_owner = ?5, revision = revision + 1 \
         WHERE provider = ?1 AND bucket = ?2 AND revision = ?3 AND (lease_owner IS NULL OR lease_owner IN (?5, ?6))",
    );
    let query = query.bind(request.expected.0.cast_signed()).bind(request.presented).bind(request.owner).bind(dead);
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
    refresh_state: &RefreshStateColumns,
    owner: &str,
) -> Result<bool, sqlx::Error> {
    let query = on(
        account,
        "UPDATE records SET presented = ?5, attempt = ?6, latch = ?7, copied = ?8, lease_owner = NULL, \
         revision = revision + 1 \
         WHERE provider = ?1 AND bucket = ?2 AND grant_id = ?3 AND generation = ?4 \
         AND (lease_owner IS NULL OR lease_owner = ?9)",
    );
    changed_one(bind_refresh_state(bind_version(query, version), refresh_state).bind(owner), connection).await
}

pub(super) async fn save(
    connection: &mut SqliteConnection,
    account: &Account,
    version: Version,
    next: Content<'_>,
    refresh_state: &RefreshStateColumns,
) -> Result<bool, sqlx::Error> {
    let query = on(
        account,
        "UPDATE records SET presented = ?5, attempt = ?6, latch = ?7, copied = ?8, lease_owner = NULL, \
         revision = revision + 1, grant_id = ?9, generation = ?10, sealed = ?11, fingerprint = ?12 \
         WHERE provider = ?1 AND bucket = ?2 AND grant_id = ?3 AND generation = ?4",
    );
    let query = bind_content(bind_refresh_state(bind_version(query, version), refresh_state), next);
    changed_one(query, connection).await
}

/// The columns of a record other than its refresh state.
#[derive(Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) version: Version,
    pub(super) sealed: &'a [u8],
    /// The fingerprint of the refresh token, if there is one.
    pub(super) fingerprint: Option<TokenFingerprint>,
}

/// The existing record, as a put finds it.
pub(super) struct Found {
    /// `None` if it is damaged.
    pub(super) row: Option<Row>,
    pub(super) version: Option<Version>,
    pub(super) fingerprint: Option<TokenFingerprint>,
    pub(super) lease_owner: Option<String>,
}

pub(super) async fn find(connection: &mut SqliteConnection, account: &Account) -> Result<Option<Found>, sqlx::Error> {
    let query = on(
        account,
        "SELECT sealed, grant_id, generation, revision, presented, attempt, latch, copied, fingerprint, lease_owner \
         FROM records WHERE provider = ?1 AND bucket = ?2",
    );
    Ok(query.fetch_optional(connection).await?.map(|row| Found {
        version: read_version(&row),
        fingerprint: read_fingerprint(&row),
        lease_owner: row.try_get("lease_owner").unwrap_or_default(),
        row: read(&row),
    }))
}

/// Stores a whole grant, replacing what is there.
pub(super) async fn replace(
    connection: &mut SqliteConnection,
    account: &Account,
    content: Content<'_>,
) -> Result<(), sqlx::Error> {
    spend_if_presented(connection, account, content.fingerprint).await?;
    let query = on(
        account,
        "INSERT OR REPLACE INTO records (provider, bucket, grant_id, generation, sealed, fingerprint, revision) \
         SELECT ?1, ?2, ?3, ?4, ?5, ?6, 1 + max(deleted_revision, \
         coalesce((SELECT revision FROM records WHERE provider = ?1 AND bucket = ?2), 0)) FROM meta",
    );
    bind_content(query, content).execute(connection).await.map(|_| ())
}

/// The version in which the account has this refresh token, if it does.
pub(super) async fn held_version(
    connection: &mut SqliteConnection,
    account: &Account,
    fingerprint: TokenFingerprint,
) -> Result<Option<Version>, sqlx::Error> {
    let query = on(
        account,
        "SELECT grant_id, generation FROM records WHERE provider = ?1 AND bucket = ?2 AND fingerprint = ?3",
    );
    let found = query.bind(&fingerprint.to_bytes()[..]).fetch_optional(connection).await?;
    Ok(found.as_ref().and_then(read_version))
}

/// Finds another account that has or had this refresh token, or this one if it had it.
pub(super) async fn known(
    connection: &mut SqliteConnection,
    account: &Account,
    fingerprint: TokenFingerprint,
    siblings: &[ProviderName],
) -> Result<Option<KnownToken>, sqlx::Error> {
    let sibling = |of: &Account| of.provider == account.provider || siblings.contains(&of.provider);
    let held = "SELECT provider, bucket FROM records WHERE fingerprint = ?1";
    let spent = "SELECT provider, bucket FROM spent_tokens WHERE fingerprint = ?1";
    for (query, spent) in [(held, false), (spent, true)] {
        let rows = sqlx::query(query).bind(&fingerprint.to_bytes()[..]).fetch_all(&mut *connection).await?;
        let mut accounts = rows.iter().filter_map(read_account);
        if let Some(of) = accounts.find(|of| sibling(of) && (spent || of != account)) {
            return Ok(Some(KnownToken { account: of, spent }));
        }
    }
    Ok(None)
}

/// Remembers the refresh token of a record that is removed, if it was presented and is not kept as `held`.
async fn spend_if_presented(
    connection: &mut SqliteConnection,
    account: &Account,
    held: Option<TokenFingerprint>,
) -> Result<(), sqlx::Error> {
    let query = on(
        account,
        "INSERT OR REPLACE INTO spent_tokens (provider, bucket, fingerprint, spent_at) \
         SELECT provider, bucket, fingerprint, CAST(unixepoch('subsec') * 1000 AS INTEGER) FROM records \
         WHERE provider = ?1 AND bucket = ?2 AND presented IS NOT NULL AND fingerprint IS NOT NULL \
         AND fingerprint IS NOT ?3",
    );
    query.bind(held.map(|held| held.to_bytes().to_vec())).execute(connection).await.map(|_| ())
}

/// Ensures that a new record of this name begins above all earlier revisions.
async fn remember_revision(connection: &mut SqliteConnection, account: &Account) -> Result<(), sqlx::Error> {
    let query = on(
        account,
        "UPDATE meta SET deleted_revision = max(deleted_revision, revision) \
         FROM (SELECT revision FROM records WHERE provider = ?1 AND bucket = ?2)",
    );
    query.execute(connection).await.map(|_| ())
}

/// Renames a record, which was sealed again for the new name, and what is known of its refresh tokens.
pub(super) async fn rename(
    connection: &mut SqliteConnection,
    from: &Account,
    to: &Account,
    sealed: &[u8],
) -> Result<(), sqlx::Error> {
    remember_revision(connection, from).await?;
    let tokens = "UPDATE OR REPLACE spent_tokens SET provider = ?3, bucket = ?4 WHERE provider = ?1 AND bucket = ?2";
    on(from, tokens).bind(to.provider.as_str()).bind(to.bucket.as_str()).execute(&mut *connection).await?;
    let query = on(
        from,
        "UPDATE records SET provider = ?3, bucket = ?4, sealed = ?5, lease_owner = NULL, \
         revision = 1 + (SELECT deleted_revision FROM meta) WHERE provider = ?1 AND bucket = ?2",
    );
    query.bind(to.provider.as_str()).bind(to.bucket.as_str()).bind(sealed).execute(connection).await.map(|_| ())
}

/// Adds the fingerprint of the refresh token to a record of an earlier format.
pub(super) async fn set_fingerprint(
    connection: &mut SqliteConnection,
    account: &Account,
    fingerprint: TokenFingerprint,
) -> Result<(), sqlx::Error> {
    let query = on(account, "UPDATE records SET fingerprint = ?3 WHERE provider = ?1 AND bucket = ?2");
    query.bind(&fingerprint.to_bytes()[..]).execute(connection).await.map(|_| ())
}

fn read_fingerprint(row: &SqliteRow) -> Option<TokenFingerprint> {
    Some(TokenFingerprint::from_bytes(row.try_get::<&[u8], _>("fingerprint").ok()?.try_into().ok()?))
}

/// The result of a deletion.
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
    remember_revision(connection, account).await?;
    spend_if_presented(connection, account, None).await?;
    let forget_later = on(
        account,
        "UPDATE spent_tokens SET deleted_at = CAST(unixepoch('subsec') * 1000 AS INTEGER) \
         WHERE provider = ?1 AND bucket = ?2",
    );
    forget_later.execute(&mut *connection).await?;
    on(account, "DELETE FROM records WHERE provider = ?1 AND bucket = ?2").execute(connection).await?;
    Ok(removal)
}

/// SQLite skips a write of equal values. The revision of a deleted account's next record then begins higher than
/// necessary, which does no harm.
pub(super) async fn probe(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    run(connection, "UPDATE meta SET deleted_revision = deleted_revision + 1").await
}

/// Replaces a row's sealed bytes for the same grant; `changed` if their content differs.
pub(super) async fn reseal(
    connection: &mut SqliteConnection,
    account: &Account,
    sealed: &[u8],
    changed: bool,
) -> Result<(), sqlx::Error> {
    let query =
        on(account, "UPDATE records SET sealed = ?3, revision = revision + ?4 WHERE provider = ?1 AND bucket = ?2");
    query.bind(sealed).bind(i64::from(changed)).execute(connection).await.map(|_| ())
}

pub(super) async fn run(connection: &mut SqliteConnection, statement: &'static str) -> Result<(), sqlx::Error> {
    sqlx::query(statement).execute(connection).await.map(|_| ())
}

fn bind_version(query: Query<'_, Sqlite, SqliteArguments>, version: Version) -> Query<'_, Sqlite, SqliteArguments> {
    query.bind(version.id.to_bytes().to_vec()).bind(version.generation.cast_signed())
}

fn bind_refresh_state<'a>(
    query: Query<'a, Sqlite, SqliteArguments>,
    refresh_state: &'a RefreshStateColumns,
) -> Query<'a, Sqlite, SqliteArguments> {
    query
        .bind(&refresh_state.presented)
        .bind(&refresh_state.attempt)
        .bind(&refresh_state.dead)
        .bind(&refresh_state.copied)
}

fn bind_content<'a>(
    query: Query<'a, Sqlite, SqliteArguments>,
    content: Content<'a>,
) -> Query<'a, Sqlite, SqliteArguments> {
    let fingerprint = content.fingerprint.map(|fingerprint| fingerprint.to_bytes().to_vec());
    bind_version(query, content.version).bind(content.sealed).bind(fingerprint)
}
