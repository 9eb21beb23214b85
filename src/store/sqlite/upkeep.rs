//! Maintenance of a whole store: backup, examination, change of the key.
//!
//! Owns: [`examine`], [`back_up`], [`Rekeying`], and reading how the key is derived.
//!
//! Invariants:
//! 1. A backup is complete, examined and on the disk before it gets its name, and no file is overwritten.
//! 2. A change of the key is one commit: the store opens with the old key or with the new one, never with both or
//!    neither.
//! 3. A change of the key needs exclusive access: the owners' directory is locked, and no owner is alive.
//!
//! Must not know: where keys are kept.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use sqlx::{Connection as _, SqliteConnection};

use super::{
    database::{Prepared, StoreFiles},
    items, owner,
    rows::{self, run},
};
use crate::{
    account::{Account, ItemName},
    item::ItemKind,
    private::{self, FileError},
    secret::FingerprintKey,
    store::{
        KeyId, StoreError,
        key::{KeyMaterial, passphrase::Derivation},
        seal::Sealer,
        unfit,
    },
};

/// The result of examining a store or a backup.
#[derive(Debug)]
pub struct Examination {
    /// The key that opens it.
    pub key: KeyId,
    /// SQLite's findings about the file, in its own words, which quote no record.
    pub damage: Vec<String>,
    /// Every record, with the error if it cannot be opened.
    pub records: Vec<(Account, Result<(), StoreError>)>,
    /// Every item, with the error if it cannot be opened.
    pub items: Vec<(ItemKind, ItemName, Result<(), StoreError>)>,
    /// The number of records and items with damaged names.
    pub nameless: usize,
}

impl Examination {
    /// Whether everything is sound.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.nameless == 0 && self.unreadable().next().is_none()
    }

    /// The errors of the records and items that cannot be opened.
    pub fn unreadable(&self) -> impl Iterator<Item = &StoreError> {
        let records = self.records.iter().map(|(_, opens)| opens);
        records.chain(self.items.iter().map(|(.., opens)| opens)).filter_map(|opens| opens.as_ref().err())
    }
}

/// How the key of the store in the file `path` is derived from a passphrase; `None` if it is not, or there is no store.
pub async fn derivation(path: &Path) -> Result<Option<Derivation>, StoreError> {
    let files = StoreFiles::new(path)?;
    let Some(mut connection) = files.connect_to_read().await? else { return Ok(None) };
    let text: Option<String> = sqlx::query_scalar("SELECT derivation FROM meta")
        .fetch_optional(&mut connection)
        .await
        .map_err(|error| files.unopened(error))?
        .flatten();
    close(connection).await?;
    text.as_deref().map(Derivation::from_text).transpose()
}

/// Opens every record of the store or backup in the file `path`. Changes nothing, and blocks nobody.
pub async fn examine(path: &Path, key: KeyMaterial, key_place: &str) -> Result<Examination, StoreError> {
    let files = StoreFiles::new(path)?;
    let sealer = Sealer::new(key.secret);
    let mut connection = read(&files, &sealer, key_place).await?;
    let found = examine_connection(&files, &sealer, &mut connection).await?;
    close(connection).await?;
    Ok(found)
}

/// Copies the store in the file `path`, as of one moment and while it is in use, to the new file `target`. Returns the
/// examination of the copy.
pub async fn back_up(path: &Path, key: KeyMaterial, key_place: &str, target: &Path) -> Result<Examination, StoreError> {
    let files = StoreFiles::new(path)?;
    let sealer = Sealer::new(key.secret);
    let target = std::path::absolute(target).map_err(FileError::at("find", target))?;
    if fs::symlink_metadata(&target).is_ok() {
        return Err(taken(&target));
    }
    let mut connection = read(&files, &sealer, key_place).await?;
    let draft = Draft::beside(&target)?;
    copy(&mut connection, &draft.0).await?;
    close(connection).await?;
    let copied = StoreFiles::new(&draft.0)?;
    let mut connection = read(&copied, &sealer, key_place).await?;
    let found = examine_connection(&copied, &sealer, &mut connection).await?;
    close(connection).await?;
    draft.publish(&target)?;
    Ok(found)
}

fn taken(target: &Path) -> StoreError {
    unfit(target, "there is something of this name already, and nothing is written over; choose another name")
}

/// An incomplete copy; removed when dropped.
struct Draft(PathBuf);

impl Draft {
    /// An empty private file for SQLite to fill (<https://www.sqlite.org/lang_vacuum.html>, "VACUUM with an INTO
    /// clause").
    fn beside(target: &Path) -> Result<Self, StoreError> {
        let mark = getrandom::u32().map_err(StoreError::unavailable)?;
        let draft = target.with_added_extension(format!("{mark:08x}"));
        private::create_private_file(&draft).map_err(FileError::at("make", &draft))?;
        Ok(Self(draft))
    }

    /// Gives the copy its name (invariant 1). A link, unlike a rename, never replaces a file.
    fn publish(self, target: &Path) -> Result<(), StoreError> {
        File::open(&self.0).and_then(|file| file.sync_all()).map_err(FileError::at("write out", &self.0))?;
        match fs::hard_link(&self.0, target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(taken(target)),
            other => other.map_err(FileError::at("make", target))?,
        }
        drop(self);
        Ok(private::sync_directory(target.parent().unwrap_or(Path::new("/")))?)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.0) {
            tracing::warn!(%error, "could not remove an incomplete copy of the store");
        }
    }
}

/// A store whose key is being changed. No other process can open it while this value lives.
#[derive(Debug)]
pub struct Rekeying {
    files: StoreFiles,
    sealer: Sealer,
    fingerprints: FingerprintKey,
    connection: SqliteConnection,
    _alone: File,
}

impl Rekeying {
    /// Takes exclusive access to the store in the file `path` (invariant 3).
    pub async fn begin(path: &Path, key: KeyMaterial, key_place: &str) -> Result<Self, StoreError> {
        let files = StoreFiles::new(path)?;
        if files.connect_to_read().await?.is_none() {
            return Err(missing(&files));
        }
        let alone = files.lock().await?;
        if owner::any_alive(&files.owners)? {
            return Err(StoreError::InUse { place: files.file.display().to_string() });
        }
        files.make_files()?;
        let sealer = Sealer::new(key.secret);
        let Prepared { connection, fingerprints, .. } = files.prepare(&sealer, None, key_place).await?;
        Ok(Self { files, sealer, fingerprints, connection, _alone: alone })
    }

    /// The key that opens the store now.
    pub fn key_id(&self) -> Result<KeyId, StoreError> {
        self.sealer.key_id()
    }

    /// Seals every record and item with the new key, in one commit (invariant 2). If one cannot be opened, nothing is
    /// changed.
    pub async fn reseal_all(&mut self, next: KeyMaterial) -> Result<ResealCounts, StoreError> {
        let KeyMaterial { secret, derivation } = next;
        let next = Sealer::new(secret);
        let derivation = derivation.as_ref().map(Derivation::to_text).transpose()?;
        // Free pages must not keep anything that was sealed with the old key.
        run(&mut self.connection, "PRAGMA secure_delete = ON").await.map_err(|error| self.files.unopened(error))?;
        run(&mut self.connection, "BEGIN IMMEDIATE").await.map_err(|error| self.files.unopened(error))?;
        let records = self.reseal_records(&next).await?;
        let items = self.reseal_items(&next).await?;
        let fail = |error| self.files.unopened(error);
        // The fingerprints and their key stay the same: otherwise spent tokens could not be recognised.
        let meta = sqlx::query("UPDATE meta SET key_check = ?1, derivation = ?2, fingerprint_key = ?3");
        let meta = meta.bind(next.check_value()?).bind(derivation);
        let meta = meta.bind(next.seal_fingerprint_key(&self.fingerprints)?);
        meta.execute(&mut self.connection).await.map_err(fail)?;
        run(&mut self.connection, "COMMIT").await.map_err(fail)?;
        let key = next.key_id()?;
        self.sealer = next;
        Ok(ResealCounts { records, items, key })
    }

    async fn reseal_records(&mut self, next: &Sealer) -> Result<usize, StoreError> {
        let fail = |error| self.files.unopened(error);
        let (mut last, mut count) = ((String::new(), String::new()), 0);
        loop {
            let page = sqlx::query(rows::NEXT).bind(&last.0).bind(&last.1).fetch_all(&mut self.connection).await;
            let page = page.map_err(fail)?;
            let Some(end) = page.last() else { break };
            last = rows::read_names(end).map_err(fail)?;
            for row in &page {
                let account = rows::read_account(row).ok_or_else(|| nameless(&self.files))?;
                let row = rows::read(row).ok_or_else(|| StoreError::Unreadable { account: account.clone() })?;
                let grant = self.sealer.open(&account, row.version, &row.sealed)?;
                let sealed = next.seal(&account, &grant)?;
                rows::reseal(&mut self.connection, &account, &sealed, false).await.map_err(fail)?;
                count += 1;
            }
        }
        Ok(count)
    }

    async fn reseal_items(&mut self, next: &Sealer) -> Result<usize, StoreError> {
        let fail = |error| self.files.unopened(error);
        let found = sqlx::query(items::ALL).fetch_all(&mut self.connection).await.map_err(fail)?;
        for row in &found {
            let (kind, name) = items::read_names(row).ok_or_else(|| nameless(&self.files))?;
            let item = items::open(&self.sealer, kind, &name, row)?;
            let sealed = next.seal_item(kind, &name, &item)?;
            items::reseal(&mut self.connection, (kind, &name), &sealed).await.map_err(fail)?;
        }
        Ok(found.len())
    }

    /// Ends the exclusive access.
    pub async fn end(self) -> Result<(), StoreError> {
        close(self.connection).await
    }
}

/// The result of a change of the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResealCounts {
    /// The number of records sealed again.
    pub records: usize,
    /// The number of items sealed again.
    pub items: usize,
    /// The key that opens them now.
    pub key: KeyId,
}

fn missing(files: &StoreFiles) -> StoreError {
    unfit(&files.file, "there is no store; `credproxy serve` makes one")
}

fn nameless(files: &StoreFiles) -> StoreError {
    unfit(
        &files.file,
        "holds a record or item whose name is damaged; put back a backup, or move the store away to begin anew",
    )
}

/// Connects to an existing store with this key, for reading at one moment.
async fn read(files: &StoreFiles, sealer: &Sealer, key_place: &str) -> Result<SqliteConnection, StoreError> {
    let mut connection = files.connect_to_read().await?.ok_or_else(|| missing(files))?;
    files.check_key(&mut connection, sealer, key_place).await?;
    Ok(connection)
}

async fn examine_connection(
    files: &StoreFiles,
    sealer: &Sealer,
    connection: &mut SqliteConnection,
) -> Result<Examination, StoreError> {
    let fail = |error| files.unopened(error);
    let mut damage: Vec<String> =
        sqlx::query_scalar("PRAGMA integrity_check").fetch_all(&mut *connection).await.map_err(fail)?;
    damage.retain(|line| line != "ok");
    let (mut records, mut items, mut nameless) = (Vec::new(), Vec::new(), 0);
    // One transaction sees the store at one moment. It ends with the connection.
    run(connection, "BEGIN").await.map_err(fail)?;
    let list = if files.has_fingerprints(connection).await? { rows::LIST } else { rows::LIST_BEFORE_3 };
    for row in sqlx::query(list).fetch_all(&mut *connection).await.map_err(fail)? {
        let Some(account) = rows::read_account(&row) else {
            nameless += 1;
            continue;
        };
        let opened = match rows::read(&row) {
            Some(row) => sealer.open(&account, row.version, &row.sealed).map(drop),
            None => Err(StoreError::Unreadable { account: account.clone() }),
        };
        records.push((account, opened));
    }
    if files.has_items(connection).await? {
        for row in sqlx::query(items::ALL).fetch_all(&mut *connection).await.map_err(fail)? {
            let Some((kind, name)) = items::read_names(&row) else {
                nameless += 1;
                continue;
            };
            let opened = items::open(sealer, kind, &name, &row).map(drop);
            items.push((kind, name, opened));
        }
    }
    Ok(Examination { key: sealer.key_id()?, damage, records, items, nameless })
}

async fn copy(connection: &mut SqliteConnection, draft: &Path) -> Result<(), StoreError> {
    let name = draft.to_str().ok_or_else(|| unfit(draft, "the name is not UTF-8 text; choose another"))?;
    let copied = sqlx::query("VACUUM INTO ?1").bind(name).execute(connection).await;
    copied.map(|_| ()).map_err(StoreError::unavailable)
}

async fn close(connection: SqliteConnection) -> Result<(), StoreError> {
    connection.close().await.map_err(StoreError::unavailable)
}

#[cfg(test)]
mod tests;
