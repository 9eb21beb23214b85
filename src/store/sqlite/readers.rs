//! The reading connections.
//!
//! The driver's pool is not used: it pings a connection whenever it is returned, and each exchange with a connection's
//! thread costs more than finding a record.
//!
//! Invariants:
//! 1. A connection that met an error, or whose reader was cancelled, is not reused.
//! 2. All are closed when [`Readers::close`] returns: only the last connection to close can checkpoint the write-ahead
//!    log.
//!
//! Must not know: what is read.

use std::{
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{TryStream, TryStreamExt as _};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{sync::Semaphore, time::timeout};

use crate::{store::StoreError, timeouts::STORE_CALL_TIMEOUT};

/// Reads are for what the coordinator has not cached: a handful at once is many.
const MAX_CONNECTIONS: u32 = 4;

/// How long an unused connection is kept: it costs a thread and a page cache.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct Readers {
    options: SqliteConnectOptions,
    /// Held by every read.
    permits: Semaphore,
    /// The most recently used connection is reused first.
    idle: Mutex<Vec<IdleConnection>>,
}

struct IdleConnection {
    connection: SqliteConnection,
    /// How long it has been unused.
    unused: Duration,
}

impl Readers {
    /// Connects when necessary.
    pub(super) fn new(options: SqliteConnectOptions) -> Self {
        Self {
            options: options.read_only(true),
            permits: Semaphore::new(MAX_CONNECTIONS as usize),
            idle: Mutex::default(),
        }
    }

    /// Lends a connection.
    pub(super) async fn read<T>(
        &self,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, sqlx::Error>,
    ) -> Result<T, StoreError> {
        let permit = in_time(self.permits.acquire()).await?;
        let _permit = permit.map_err(StoreError::unavailable)?;
        let known = self.idle().pop();
        let mut connection = match known {
            Some(IdleConnection { connection, .. }) => connection,
            None => in_time(self.options.connect()).await?.map_err(StoreError::unavailable)?,
        };
        let found = work(&mut connection).await;
        if found.is_ok() {
            self.idle().push(IdleConnection { connection, unused: Duration::ZERO });
        } else {
            close(connection).await;
        }
        found.map_err(StoreError::unavailable)
    }

    /// Closes connections that have been unused for a while. `passed`: the time since the last call.
    pub(super) async fn close_idle(&self, passed: Duration) {
        let mut expired = Vec::new();
        {
            let mut idle = self.idle();
            for mut one in mem::take(&mut *idle) {
                one.unused += passed;
                if one.unused < IDLE_TIMEOUT { idle.push(one) } else { expired.push(one.connection) }
            }
        }
        for connection in expired {
            close(connection).await;
        }
    }

    /// Waits for the reads under way. Every later read fails.
    pub(super) async fn close(&self) {
        let _all = self.permits.acquire_many(MAX_CONNECTIONS).await;
        self.permits.close();
        let idle = mem::take(&mut *self.idle());
        for IdleConnection { connection, .. } in idle {
            close(connection).await;
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<IdleConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for one step of a read, with the timeout of a store call.
pub(super) async fn in_time<T>(step: impl Future<Output = T>) -> Result<T, StoreError> {
    timeout(STORE_CALL_TIMEOUT, step).await.map_err(|_| StoreError::unavailable("the disk does not answer"))
}

/// Returns the next row of a scan, with that timeout for each.
pub(super) async fn next_in_time<R>(
    rows: &mut (impl TryStream<Ok = R, Error = sqlx::Error> + Unpin),
) -> Result<Option<R>, sqlx::Error> {
    timeout(STORE_CALL_TIMEOUT, rows.try_next()).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
}

async fn close(connection: SqliteConnection) {
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "could not close a connection that reads the store");
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn only_a_connection_in_order_that_is_still_needed_is_used_again() {
        let home = tempfile::tempdir().unwrap();
        let options = SqliteConnectOptions::new().filename(home.path().join("db")).create_if_missing(true);
        let mut writer = options.connect().await.unwrap();
        sqlx::query("CREATE TABLE t (x)").execute(&mut writer).await.unwrap();
        let readers = Readers::new(options);
        let works = async |connection: &mut SqliteConnection| {
            sqlx::query("SELECT x FROM t").execute(connection).await.map(drop)
        };
        let fails = async |connection: &mut SqliteConnection| {
            sqlx::query("SELECT y FROM t").execute(connection).await.map(drop)
        };
        let never_ends = async |_: &mut SqliteConnection| pending::<Result<(), sqlx::Error>>().await;
        for _ in 0..2 {
            readers.read(works).await.unwrap();
            assert_eq!(readers.idle().len(), 1);
        }
        assert!(readers.read(fails).await.is_err());
        assert_eq!(readers.idle().len(), 0, "an error");
        readers.read(works).await.unwrap();
        assert!(readers.read(never_ends).now_or_never().is_none());
        assert_eq!(readers.idle().len(), 0, "its reader went away");
        readers.read(works).await.unwrap();
        readers.close_idle(IDLE_TIMEOUT / 2).await;
        assert_eq!(readers.idle().len(), 1);
        readers.close_idle(IDLE_TIMEOUT / 2).await;
        assert_eq!(readers.idle().len(), 0, "nobody needed it");
        readers.read(works).await.unwrap();
        readers.close().await;
        assert_eq!(readers.idle().len(), 0, "closed");
        assert!(readers.read(works).await.is_err());
    }
}
