//! Items: the statements on their table, and the trait's implementation.
//!
//! Owns: how the row of an item is read and written. The invariants of the statements on records apply here too.
//!
//! Must not know: what an item contains.

use async_trait::async_trait;
use sqlx::{
    Row as _, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

use super::{Shared, Sqlite, readers, writer::Change};
use crate::{
    account::ItemName,
    item::{Item, ItemKind, ItemTag},
    store::{Expect, ItemEntry, ItemStore, Put, Removed, StoreError, seal::Sealer},
};

const LOAD: &str = "SELECT tag, sealed FROM items WHERE kind = ?1 AND name = ?2";

const LIST: &str = "SELECT tag, sealed, kind, name FROM items WHERE kind = ?1 ORDER BY name";

/// Every item of every kind. There are few: as many as a person or program created.
pub(super) const ALL: &str = "SELECT tag, sealed, kind, name FROM items ORDER BY kind, name";

/// A statement on one item, whose first two parameters are its kind and name.
fn on<'a>(kind: ItemKind, name: &'a ItemName, statement: &'static str) -> Query<'a, sqlx::Sqlite, SqliteArguments> {
    sqlx::query(statement).bind(kind.as_str()).bind(name.as_str())
}

fn read_tag(row: &SqliteRow) -> Option<ItemTag> {
    Some(ItemTag::from_bytes(row.try_get::<&[u8], _>("tag").ok()?.try_into().ok()?))
}

/// The kind and name in a row of [`ALL`] or [`LIST`]; `None` if damaged.
pub(super) fn read_names(row: &SqliteRow) -> Option<(ItemKind, ItemName)> {
    let kind: &str = row.try_get("kind").ok()?;
    let kind = ItemKind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    Some((kind, row.try_get::<&str, _>("name").ok()?.parse().ok()?))
}

/// Opens a row.
pub(super) fn open(sealer: &Sealer, kind: ItemKind, name: &ItemName, row: &SqliteRow) -> Result<Item, StoreError> {
    let damaged = || StoreError::UnreadableItem { kind, name: name.clone() };
    let tag = read_tag(row).ok_or_else(damaged)?;
    sealer.open_item(kind, name, tag, row.try_get("sealed").map_err(|_| damaged())?)
}

async fn put(
    connection: &mut SqliteConnection,
    (kind, name): (ItemKind, &ItemName),
    (tag, sealed): (ItemTag, &[u8]),
    expect: &Expect<ItemTag>,
) -> Result<Put, sqlx::Error> {
    let (met, put) = match on(kind, name, LOAD).fetch_optional(&mut *connection).await? {
        Some(row) => (expect.allows(read_tag(&row)), Put::Replaced),
        None => (expect.allows_none(), Put::Created),
    };
    if !met {
        return Ok(Put::Conflict);
    }
    let query = on(kind, name, "INSERT OR REPLACE INTO items (kind, name, tag, sealed) VALUES (?1, ?2, ?3, ?4)");
    query.bind(&tag.to_bytes()[..]).bind(sealed).execute(connection).await?;
    Ok(put)
}

async fn delete(
    connection: &mut SqliteConnection,
    (kind, name): (ItemKind, &ItemName),
    expect: &Expect<ItemTag>,
) -> Result<Removed, sqlx::Error> {
    let removed = match on(kind, name, LOAD).fetch_optional(&mut *connection).await? {
        Some(row) if expect.allows(read_tag(&row)) => Removed::Gone,
        Some(_) => Removed::Conflict,
        None => Removed::Missing,
    };
    if removed == Removed::Gone {
        on(kind, name, "DELETE FROM items WHERE kind = ?1 AND name = ?2").execute(connection).await?;
    }
    Ok(removed)
}

/// Replaces an item's sealed bytes with others of the same content.
pub(super) async fn reseal(
    connection: &mut SqliteConnection,
    (kind, name): (ItemKind, &ItemName),
    sealed: &[u8],
) -> Result<(), sqlx::Error> {
    let query = on(kind, name, "UPDATE items SET sealed = ?3 WHERE kind = ?1 AND name = ?2");
    query.bind(sealed).execute(connection).await.map(|_| ())
}

#[async_trait]
impl ItemStore for Sqlite {
    async fn item(&self, kind: ItemKind, name: &ItemName) -> Result<Option<Item>, StoreError> {
        self.shared.files.ensure_in_place()?;
        let load = async |connection: &mut SqliteConnection| on(kind, name, LOAD).fetch_optional(connection).await;
        let found = readers::in_time(self.shared.readers.read(load)).await??;
        found.map(|row| open(&self.shared.sealer, kind, name, &row)).transpose()
    }

    async fn items(&self, kind: ItemKind) -> Result<Vec<ItemEntry>, StoreError> {
        self.shared.files.ensure_in_place()?;
        let list =
            async |connection: &mut SqliteConnection| sqlx::query(LIST).bind(kind.as_str()).fetch_all(connection).await;
        let found = readers::in_time(self.shared.readers.read(list)).await??;
        let entry = |row: &SqliteRow| {
            let Some((_, name)) = read_names(row) else {
                tracing::warn!(%kind, "the store holds an item whose name is damaged; it is left alone");
                return None;
            };
            let item = open(&self.shared.sealer, kind, &name, row);
            Some(ItemEntry { name, item })
        };
        Ok(found.iter().filter_map(entry).collect())
    }

    async fn put_item(
        &self,
        kind: ItemKind,
        name: &ItemName,
        item: &Item,
        expect: &Expect<ItemTag>,
    ) -> Result<Put, StoreError> {
        let sealed = self.shared.sealer.seal_item(kind, name, item)?;
        self.write(PutItemChange { kind, name: name.clone(), tag: item.tag, sealed, expect: expect.clone() }).await
    }

    async fn delete_item(
        &self,
        kind: ItemKind,
        name: &ItemName,
        expect: &Expect<ItemTag>,
    ) -> Result<Removed, StoreError> {
        self.write(DeleteItemChange { kind, name: name.clone(), expect: expect.clone() }).await
    }
}

/// Stores a whole item.
struct PutItemChange {
    kind: ItemKind,
    name: ItemName,
    tag: ItemTag,
    sealed: Vec<u8>,
    expect: Expect<ItemTag>,
}

#[async_trait]
impl Change for PutItemChange {
    type Outcome = Put;

    const NEEDS_TRANSACTION: bool = true;

    async fn carry_out(&self, _: &Shared, connection: &mut SqliteConnection) -> Result<Put, StoreError> {
        let put = put(connection, (self.kind, &self.name), (self.tag, &self.sealed), &self.expect).await;
        put.map_err(StoreError::unavailable)
    }
}

/// Deletes an item.
struct DeleteItemChange {
    kind: ItemKind,
    name: ItemName,
    expect: Expect<ItemTag>,
}

#[async_trait]
impl Change for DeleteItemChange {
    type Outcome = Removed;

    const NEEDS_TRANSACTION: bool = true;

    async fn carry_out(&self, _: &Shared, connection: &mut SqliteConnection) -> Result<Removed, StoreError> {
        delete(connection, (self.kind, &self.name), &self.expect).await.map_err(StoreError::unavailable)
    }
}
