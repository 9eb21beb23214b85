//! What is done to a store as a whole: copied, examined, sealed anew.
//!
//! Owns: [`examine`], [`back_up`], [`Rekeying`], and the look at how the key is made.
//!
//! Invariants:
//! 1. A copy is complete, examined and on the disk before its name exists, and no file is written over.
//! 2. A change of the key is one commit: the store opens with the old key or with the new one, never with both or none.
//! 3. Who changes the key is alone: the directory of the owners is locked, and no owner lives.
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

/// What was found in a store or a copy of one.
#[derive(Debug)]
pub struct Examination {
    /// Which key opens it.
    pub key: KeyId,
    /// What SQLite finds wrong with the file, in its words, which quote no record.
    pub damage: Vec<String>,
    /// Every record, and why it does not open.
    pub records: Vec<(Account, Result<(), StoreError>)>,
    /// Every item, and why it does not open.
    pub items: Vec<(ItemKind, ItemName, Result<(), StoreError>)>,
    /// Records and items whose names are damaged.
    pub nameless: usize,
}

impl Examination {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.damage.is_empty() && self.nameless == 0 && self.unreadable().next().is_none()
    }

    /// Why records and items do not open, one error for each that does not.
    pub fn unreadable(&self) -> impl Iterator<Item = &StoreError> {
        let records = self.records.iter().map(|(_, opens)| opens);
        records.chain(self.items.iter().map(|(.., opens)| opens)).filter_map(|opens| opens.as_ref().err())
    }
}

/// How the key of the store in the file `path` is made of a passphrase; `None` when it is not, or there is no store.
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

/// Opens every record of the store, or the copy of one, in the file `path`. Changes nothing, and stops nobody.
pub async fn examine(path: &Path, key: KeyMaterial, key_place: &str) -> Result<Examination, StoreError> {
    let files = StoreFiles::new(path)?;
    let sealer = Sealer::new(key.secret);
    let mut connection = read(&files, &sealer, key_place).await?;
    let found = examine_connection(&files, &sealer, &mut connection).await?;
    close(connection).await?;
    Ok(found)
}

/// Copies the store in the file `path` as it is at one moment, whoever uses it meanwhile, into the new file `target`.
/// Gives what was found in the copy.
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

/// A copy that is not complete yet; removed when dropped.
struct Draft(PathBuf);

impl Draft {
    /// An empty private file, which SQLite fills (<https://www.sqlite.org/lang_vacuum.html>, "VACUUM with an INTO
    /// clause").
    fn beside(target: &Path) -> Result<Self, StoreError> {
        let mark = getrandom::u32().map_err(StoreError::unavailable)?;
        let draft = target.with_added_extension(format!("{mark:08x}"));
        private::create_private_file(&draft).map_err(FileError::at("make", &draft))?;
        Ok(Self(draft))
    }

    /// Gives the copy its name (invariant 1). A link, unlike a renaming, never replaces.
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
            tracing::warn!(%error, "a half-made copy of the store stays behind");
        }
    }
}

/// A store whose key is about to change. Nobody else can open it while this lives.
#[derive(Debug)]
pub struct Rekeying {
    files: StoreFiles,
    sealer: Sealer,
    fingerprints: FingerprintKey,
    connection: SqliteConnection,
    _alone: File,
}

impl Rekeying {
    /// Takes the store in the file `path` for itself (invariant 3).
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

    /// Which key opens the store now.
    pub fn key_id(&self) -> Result<KeyId, StoreError> {
        self.sealer.key_id()
    }

    /// Seals every record and item with the new key, in one commit (invariant 2). One that does not open is an error,
    /// and nothing is changed.
    pub async fn reseal_all(&mut self, next: KeyMaterial) -> Result<ResealCounts, StoreError> {
        let KeyMaterial { secret, derivation } = next;
        let next = Sealer::new(secret);
        let derivation = derivation.as_ref().map(Derivation::to_text).transpose()?;
        // What was sealed with the old key is not to stay behind in pages that are free.
        run(&mut self.connection, "PRAGMA secure_delete = ON").await.map_err(|error| self.files.unopened(error))?;
        run(&mut self.connection, "BEGIN IMMEDIATE").await.map_err(|error| self.files.unopened(error))?;
        let records = self.reseal_records(&next).await?;
        let items = self.reseal_items(&next).await?;
        let fail = |error| self.files.unopened(error);
        // The fingerprints stay as they are, and so does their key: spent tokens could not be known again otherwise.
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

    /// Lets others in again.
    pub async fn end(self) -> Result<(), StoreError> {
        close(self.connection).await
    }
}

/// What a change of the key came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResealCounts {
    /// How many records are sealed anew.
    pub records: usize,
    /// How many items.
    pub items: usize,
    /// Which key opens them now.
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

/// Connects to a store that is there and opens with this key, for reading at one moment.
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
