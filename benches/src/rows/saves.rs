//! How long each store takes to save, through the library.

use std::{sync::Arc, time::Duration};

use credproxy::{
    account::Account,
    clock::{Clock as _, SystemClock},
    secret::StoreKey,
    store::{Expect, RefreshState, Store, memory::MemoryStore, sqlite::Sqlite},
};
use sqlx::{
    ConnectOptions as _,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::{runtime::Builder, task::JoinSet};

use crate::{
    Fallible,
    stores::grant,
    table::{Pairs, Row},
    world::World,
};

/// So many, one after the other, are one measurement. The write-ahead log has its full length after the first ones.
const SAVES: u32 = 1000;
const TOGETHER: u32 = 8;
const TIMES: usize = 3;

/// What a sealed grant of this kind takes.
const SEALED: usize = 400;

pub(crate) fn saves(world: &World) -> Fallible<Vec<Row>> {
    let home = world.home()?;
    // As the daemon's, which has a processor to itself.
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let sqlite = runtime.block_on(Sqlite::open(&home.join("db"), StoreKey::new([7; 32]), "the bench's"))?;
    let sqlite: Arc<dyn Store> = Arc::new(sqlite);
    let memory: Arc<dyn Store> = Arc::new(MemoryStore::new()?);
    let file = home.join("bare.db");
    let bare = || runtime.block_on(bare_updates(&file));
    let beside_bare = |save: &dyn Fn() -> Fallible<f64>| -> Fallible<[Pairs; 1]> {
        Pairs::measure(TIMES, [save, &bare], |save| Ok([save()?]))
    };
    let [alone] = beside_bare(&|| runtime.block_on(several(&sqlite, 1)))?;
    let [together] = beside_bare(&|| runtime.block_on(several(&sqlite, TOGETHER)))?;
    let [in_memory] = beside_bare(&|| runtime.block_on(several(&memory, 1)))?;
    Ok(vec![
        Row::ratio("save in SQLite, one after the other, against a bare UPDATE", "µs", &alone),
        Row::ratio("save in SQLite, 8 accounts at once, against a bare UPDATE", "µs", &together),
        Row::ratio("save in memory, against a bare UPDATE on disk", "µs", &in_memory),
    ])
}

/// Microseconds for a save, of so many accounts at once.
async fn several(store: &Arc<dyn Store>, accounts: u32) -> Fallible<f64> {
    let clock = SystemClock::new();
    let mut saving = JoinSet::new();
    let start = clock.monotonic();
    for account in 0..accounts {
        let store = Arc::clone(store);
        saving.spawn(async move {
            let account: Account = format!("bench/b{account}").parse().map_err(|_| "no name")?;
            let first = grant(&account)?;
            store.put(&account, &first, &Expect::Whatever, &[]).await.map_err(|error| error.to_string())?;
            let mut version = first.version;
            for _ in 0..SAVES / accounts {
                let mut next = grant(&account)?;
                next.version = version;
                next.version.generation += 1;
                let saved = store.save(&account, version, &next, &RefreshState::default()).await;
                if !saved.map_err(|error| error.to_string())? {
                    return Err("a save was overtaken".to_owned());
                }
                version = next.version;
            }
            Ok(())
        });
    }
    while let Some(saved) = saving.join_next().await {
        saved??;
    }
    Ok(each(clock.monotonic().since(start)))
}

fn each(all: Duration) -> f64 {
    all.as_secs_f64() * 1e6 / f64::from(SAVES)
}

/// Microseconds for an `UPDATE` of one row of the same size, as durable.
async fn bare_updates(file: &std::path::Path) -> Fallible<f64> {
    let options = SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut connection = options.disable_statement_logging().connect().await?;
    sqlx::query("CREATE TABLE IF NOT EXISTS records (account TEXT PRIMARY KEY, sealed BLOB NOT NULL) STRICT")
        .execute(&mut connection)
        .await?;
    sqlx::query("INSERT OR IGNORE INTO records VALUES ('bench', x'')").execute(&mut connection).await?;
    let clock = SystemClock::new();
    let start = clock.monotonic();
    for number in 0..SAVES {
        let mut sealed = vec![0_u8; SEALED];
        sealed[..4].copy_from_slice(&number.to_be_bytes());
        sqlx::query("UPDATE records SET sealed = ?1 WHERE account = 'bench'")
            .bind(sealed)
            .execute(&mut connection)
            .await?;
    }
    Ok(each(clock.monotonic().since(start)))
}
