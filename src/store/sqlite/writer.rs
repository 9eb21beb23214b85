//! The connection that writes, and the changes that wait for it.
//!
//! A commit costs a wait for the disk, however much is in it. So the changes that were asked for during one commit go
//! into the next one together.
//!
//! Invariants:
//! 1. A change is answered after the commit that holds it, never before.
//! 2. A change that fails takes no other with it: what was to be one commit is undone as a whole, and each of its
//!    changes is carried out by itself.
//! 3. A change that has begun runs to its end, whether or not its caller still waits.
//! 4. A connection that met an error is closed and never used again: no transaction is left open in it.
//!
//! Must not know: what the changes are.

use std::{mem, panic::AssertUnwindSafe, slice, sync::Arc};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use sqlx::{Connection as _, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Shared, Sqlite, rows::run};
use crate::store::StoreError;

/// The connection that writes.
pub(super) enum Writer {
    Open(SqliteConnection),
    /// Closed after an error, or taken by a commit that is under way.
    Away,
    Closed,
}

/// The changes that wait for it, in their order.
pub(super) type Queue = mpsc::UnboundedReceiver<Box<dyn Waiting>>;

#[derive(Debug, thiserror::Error)]
#[error("the store is closed")]
struct ClosedError;

/// A change of the records. It may be undone and carried out again.
#[async_trait]
pub(super) trait Change: Send + Sync + 'static {
    /// What came of it.
    type Outcome: Send + 'static;

    /// Whether each of its statements may be a commit of its own.
    const NEEDS_TRANSACTION: bool;

    async fn carry_out(&self, shared: &Shared, connection: &mut SqliteConnection) -> Result<Self::Outcome, StoreError>;
}

/// More would let the first of them wait for long.
const LARGEST_COMMIT: usize = 64;

impl Sqlite {
    /// Has a change carried out and committed.
    pub(super) async fn write<C: Change>(&self, change: C) -> Result<C::Outcome, StoreError> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked { change, outcome: None, answer: Some(answer) };
        self.changes.send(Box::new(asked)).map_err(|_| StoreError::unavailable(ClosedError))?;
        answered.await.map_err(StoreError::unavailable)?
    }
}

/// A change whose caller waits for it, whatever its outcome is.
#[async_trait]
pub(super) trait Waiting: Send {
    fn needs_transaction(&self) -> bool;

    fn is_given_up(&self) -> bool;

    async fn carry_out(&mut self, shared: &Shared, connection: &mut SqliteConnection) -> Result<(), StoreError>;

    /// Tells the caller the outcome, now that it is durable, or why there is none.
    fn answer(&mut self, committed: Result<(), StoreError>);
}

struct Asked<C: Change> {
    change: C,
    outcome: Option<C::Outcome>,
    /// Taken by the answer.
    answer: Option<oneshot::Sender<Result<C::Outcome, StoreError>>>,
}

#[async_trait]
impl<C: Change> Waiting for Asked<C> {
    fn needs_transaction(&self) -> bool {
        C::NEEDS_TRANSACTION
    }

    fn is_given_up(&self) -> bool {
        self.answer.as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    async fn carry_out(&mut self, shared: &Shared, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        self.outcome = Some(self.change.carry_out(shared, connection).await?);
        Ok(())
    }

    fn answer(&mut self, committed: Result<(), StoreError>) {
        // Without an outcome and without an error nothing was carried out: dropping the sender says so.
        let told = committed.map(|()| self.outcome.take()).transpose();
        if let (Some(told), Some(answer)) = (told, self.answer.take())
            && answer.send(told).is_err()
        {
            tracing::debug!("nobody waits for a change of the store any more");
        }
    }
}

/// Carries changes out as they come, until the store is closed and none is left.
pub(super) async fn carry_out(shared: Arc<Shared>, mut queue: Queue, stop: CancellationToken) {
    let mut changes = Vec::new();
    loop {
        let count = tokio::select! {
            biased;
            () = stop.cancelled(), if !queue.is_closed() => {
                queue.close();
                continue;
            }
            count = queue.recv_many(&mut changes, LARGEST_COMMIT) => count,
        };
        if count == 0 {
            return;
        }
        changes.retain(|change| !change.is_given_up());
        if AssertUnwindSafe(shared.write(&mut changes)).catch_unwind().await.is_err() {
            tracing::error!("a change of the store panicked");
        }
        // Whoever has no answer by now learns that there is none.
        changes.clear();
    }
}

impl Shared {
    /// Carries out changes, in one commit if that can be, and answers them.
    async fn write(&self, changes: &mut [Box<dyn Waiting>]) {
        let mut writer = self.writer.lock().await;
        let together = changes.len() > 1 && self.commit(&mut writer, changes).await.is_ok();
        for change in changes {
            let committed = if together { Ok(()) } else { self.commit(&mut writer, slice::from_mut(change)).await };
            change.answer(committed);
        }
    }

    /// Carries out changes in one commit, or none of them.
    async fn commit(&self, writer: &mut Writer, changes: &mut [Box<dyn Waiting>]) -> Result<(), StoreError> {
        self.place.ensure_in_place()?;
        self.with_connection(writer, async |connection| {
            let transaction = changes.len() > 1 || changes.iter().any(|change| change.needs_transaction());
            if transaction {
                run(connection, "BEGIN IMMEDIATE").await.map_err(StoreError::unavailable)?;
            }
            for change in changes {
                change.carry_out(self, connection).await?;
            }
            if transaction {
                run(connection, "COMMIT").await.map_err(StoreError::unavailable)?;
            }
            Ok(())
        })
        .await
    }

    /// Lends the connection (invariant 4).
    pub(super) async fn with_connection<T>(
        &self,
        writer: &mut Writer,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut connection = match mem::replace(writer, Writer::Away) {
            Writer::Open(connection) => connection,
            Writer::Away => self.reconnect().await?,
            Writer::Closed => {
                *writer = Writer::Closed;
                return Err(StoreError::unavailable(ClosedError));
            }
        };
        let result = work(&mut connection).await;
        if result.is_ok() {
            *writer = Writer::Open(connection);
        } else if let Err(error) = connection.close().await {
            tracing::debug!(%error, "could not close the connection to the store");
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use std::{
        marker::PhantomData,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use futures_util::future::join_all;
    use sqlx::{Decode, Type};

    use super::*;
    use crate::{
        account::Account,
        clock::Timestamp,
        grant::{Extra, Grant, Issued, Lifetime},
        secret::{AccessToken, StoreKey},
        store::{Expect, Put, Store as _, random_grant_id},
    };

    /// Asks for one value.
    struct Ask<T>(&'static str, PhantomData<fn() -> T>);

    #[async_trait]
    impl<T> Change for Ask<T>
    where
        T: for<'r> Decode<'r, sqlx::Sqlite> + Type<sqlx::Sqlite> + Send + Unpin + 'static,
    {
        type Outcome = T;

        const NEEDS_TRANSACTION: bool = false;

        async fn carry_out(&self, _: &Shared, connection: &mut SqliteConnection) -> Result<T, StoreError> {
            sqlx::query_scalar(self.0).fetch_one(connection).await.map_err(StoreError::unavailable)
        }
    }

    async fn ask<T>(store: &Sqlite, question: &'static str) -> T
    where
        Ask<T>: Change<Outcome = T>,
    {
        store.write(Ask(question, PhantomData)).await.unwrap()
    }

    /// Fails in the middle, always.
    struct Fails(bool);

    #[async_trait]
    impl Change for Fails {
        type Outcome = ();

        const NEEDS_TRANSACTION: bool = true;

        async fn carry_out(&self, _: &Shared, connection: &mut SqliteConnection) -> Result<(), StoreError> {
            if self.0 {
                run(connection, "UPDATE records SET grant_id = zeroblob(16)").await.map_err(StoreError::unavailable)?;
            }
            Err(StoreError::unavailable("fails in the middle"))
        }
    }

    /// Counts how often it was carried out, and tells how often by the time it was answered.
    struct Counts(Arc<AtomicUsize>);

    #[async_trait]
    impl Change for Counts {
        type Outcome = ();

        const NEEDS_TRANSACTION: bool = true;

        async fn carry_out(&self, _: &Shared, _: &mut SqliteConnection) -> Result<(), StoreError> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    fn grant() -> Grant {
        let issued = Issued {
            access_token: AccessToken::new("canary-at".into()).unwrap(),
            token_type: None,
            lifetime: Lifetime::Unknown,
            scope: None,
            refresh_token: None,
            extra: Extra::default(),
        };
        Grant::new(random_grant_id().unwrap(), issued, Timestamp::from_secs(0))
    }

    async fn open(home: &tempfile::TempDir) -> Sqlite {
        Sqlite::open(&home.path().join("db"), StoreKey::new([1; 32]), "key").await.unwrap()
    }

    #[tokio::test]
    async fn every_commit_waits_for_the_disk_with_a_new_connection_too() {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home).await;
        for _ in 0..2 {
            assert_eq!(ask::<i64>(&store, "PRAGMA synchronous").await, 2, "FULL");
            assert_eq!(ask::<String>(&store, "PRAGMA journal_mode").await, "wal");
            let epoch = store.epoch();
            assert!(store.write(Fails(false)).await.is_err());
            ask::<i64>(&store, "PRAGMA data_version").await;
            assert!(store.epoch() > epoch, "what others did while there was no connection is not known");
        }
    }

    #[tokio::test]
    async fn what_waited_together_is_answered_after_one_commit() {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home).await;
        let busy = store.shared.writer.lock().await;
        let carried = Arc::new(AtomicUsize::new(0));
        let asked = (0..=LARGEST_COMMIT).map(|_| {
            let (store, carried) = (&store, Arc::clone(&carried));
            async move {
                store.write(Counts(Arc::clone(&carried))).await.unwrap();
                carried.load(Ordering::SeqCst)
            }
        });
        let mut asked = Box::pin(join_all(asked));
        assert!(asked.as_mut().now_or_never().is_none());
        drop(busy);
        let carried = asked.await;
        assert!(carried[..LARGEST_COMMIT].iter().all(|carried| *carried >= LARGEST_COMMIT), "{carried:?}");
    }

    #[tokio::test]
    async fn callers_who_keep_asking_share_commits() {
        const CALLERS: u64 = 8;
        const TIMES: u64 = 20;
        // Each commit adds a frame for the one page that is changed (<https://www.sqlite.org/fileformat2.html#walformat>).
        const FRAME: u64 = 24 + 4096;
        let home = tempfile::tempdir().unwrap();
        let store = open(&home).await;
        let log = || std::fs::metadata(home.path().join("db-wal")).unwrap().len();
        let before = log();
        let ask = async || {
            for _ in 0..TIMES {
                store.probe().await.unwrap();
            }
        };
        join_all((0..CALLERS).map(|_| ask())).await;
        let commits = (log() - before) / FRAME;
        assert!((TIMES..=CALLERS * TIMES / 4).contains(&commits), "{commits}");
    }

    #[tokio::test]
    async fn a_change_that_fails_takes_no_other_with_it() {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home).await;
        let busy = store.shared.writer.lock().await;
        let accounts: Vec<Account> = ["a", "b", "c"].map(|text| text.parse().unwrap()).to_vec();
        let grants: Vec<Grant> = accounts.iter().map(|_| grant()).collect();
        let puts = accounts.iter().zip(&grants).map(|(account, grant)| store.put(account, grant, &Expect::Whatever));
        let mut asked = Box::pin(async {
            let mut puts: Vec<_> = puts.collect();
            let last = puts.split_off(1);
            tokio::join!(join_all(puts), store.write(Fails(true)), join_all(last))
        });
        assert!(asked.as_mut().now_or_never().is_none());
        drop(busy);
        let (first, failed, last) = asked.await;
        assert!(failed.is_err());
        assert!(first.into_iter().chain(last).all(|put| matches!(put, Ok(Put::Created))));
        store.close().await.unwrap();
        let store = open(&home).await;
        for (account, grant) in accounts.iter().zip(&grants) {
            assert_eq!(store.load(account).await.unwrap().unwrap().grant.version, grant.version, "{account}");
        }
    }

    #[tokio::test]
    async fn what_its_caller_gave_up_before_it_began_is_not_carried_out() {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home).await;
        let busy = store.shared.writer.lock().await;
        let carried = Arc::new(AtomicUsize::new(0));
        assert!(store.write(Counts(Arc::clone(&carried))).now_or_never().is_none());
        drop(busy);
        store.write(Counts(Arc::clone(&carried))).await.unwrap();
        assert_eq!(carried.load(Ordering::SeqCst), 1);
    }
}
