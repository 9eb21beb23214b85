//! The writing connection and its queue of changes.
//!
//! A commit costs a wait for the disk, however much is in it. So the changes that arrive during one commit go into the
//! next one together.
//!
//! While another process holds the database's write lock, no change can be carried out. The changes wait for it
//! together: each attempt to take the lock is for all of them, and each caller has its own timeout.
//!
//! Invariants:
//! 1. A change is answered after the commit that contains it, never before.
//! 2. A change that fails affects no other: the common commit is rolled back, and each of its changes is carried out
//!    individually.
//! 3. A change that has begun runs to its end, whether or not its caller still waits. One that its caller has withdrawn
//!    does not begin.
//! 4. A connection that met an error is closed and never reused: no transaction is left open in it. A locked database
//!    is not such an error: nothing has begun.
//!
//! Must not know: what the changes are.

use std::{
    mem,
    panic::AssertUnwindSafe,
    slice,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::FutureExt as _;
use sqlx::{Connection as _, SqliteConnection};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Shared, Sqlite, rows::run};
use crate::{
    store::StoreError,
    timeouts::{BEGUN_CHANGE_TIMEOUT, STORE_CALL_TIMEOUT},
};

/// The writing connection.
pub(super) enum Writer {
    Open(SqliteConnection),
    /// Closed after an error, or lent to a commit under way.
    Disconnected,
    Closed,
}

/// The waiting changes, in order.
pub(super) type Queue = mpsc::UnboundedReceiver<Box<dyn QueuedChange>>;

#[derive(Debug, thiserror::Error)]
#[error("the store is closed")]
struct ClosedError;

/// The change was not carried out, and will not be.
#[derive(Debug, thiserror::Error)]
#[error("another process holds the store's write lock, or the disk does not answer; nothing was changed")]
struct BusyError;

/// The change has begun, and it is unknown whether it is carried out.
#[derive(Debug, thiserror::Error)]
#[error("the disk does not answer; the change may be carried out later")]
struct UnknownOutcomeError;

/// A change of the records. It may be rolled back and carried out again.
#[async_trait]
pub(super) trait Change: Send + Sync + 'static {
    /// The result of the change.
    type Outcome: Send + 'static;

    /// Whether each of its statements may be a commit of its own.
    const NEEDS_TRANSACTION: bool;

    /// Whether it is refused if the write-ahead log has been deleted.
    const NEEDS_LOG_IN_PLACE: bool = true;

    async fn carry_out(&self, shared: &Shared, connection: &mut SqliteConnection) -> Result<Self::Outcome, StoreError>;
}

/// With more changes in a commit the first of them would wait for long.
const MAX_CHANGES_PER_COMMIT: usize = 64;

/// How long one attempt waits inside SQLite for the write lock. In between others may use the connection, and callers
/// whose time is up get their answer.
pub(super) const LOCK_ATTEMPT: Duration = Duration::from_millis(100);

/// The pause between two attempts: SQLite does not always wait before it says that the database is locked.
const LOCK_RETRY_DELAY: Duration = Duration::from_millis(10);

/// How often a caller tries to withdraw its change.
const WITHDRAWAL_INTERVAL: Duration = Duration::from_millis(100);

/// The progress of a change, on which its caller and the writer agree.
#[derive(Debug, Default)]
struct Phase(AtomicU8);

impl Phase {
    const QUEUED: u8 = 0;
    const BEGUN: u8 = 1;
    const WITHDRAWN: u8 = 2;

    fn move_on(&self, from: u8, to: u8) -> bool {
        self.0.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Called by the caller: `true` means that the change is not carried out, now or later.
    fn withdraw(&self) -> bool {
        self.move_on(Self::QUEUED, Self::WITHDRAWN)
    }
}

impl Sqlite {
    /// Queues a change and waits for its commit. The error says whether it may still happen later.
    pub(super) async fn write<C: Change>(&self, change: C) -> Result<C::Outcome, StoreError> {
        let (answer, mut answered) = oneshot::channel();
        let phase = Arc::new(Phase::default());
        let queued = Queued { change, outcome: None, answer: Some(answer), phase: Arc::clone(&phase) };
        self.changes.send(Box::new(queued)).map_err(|_| StoreError::unavailable(ClosedError))?;
        let mut wait = STORE_CALL_TIMEOUT;
        let last = STORE_CALL_TIMEOUT + BEGUN_CHANGE_TIMEOUT;
        let mut waited = Duration::ZERO;
        while waited < last {
            match timeout(wait, &mut answered).await {
                Ok(answer) => return answer.map_err(StoreError::unavailable)?,
                Err(_) if phase.withdraw() => return Err(StoreError::unavailable(BusyError)),
                Err(_) => (waited, wait) = (waited + wait, WITHDRAWAL_INTERVAL),
            }
        }
        Err(StoreError::unavailable(UnknownOutcomeError))
    }
}

/// A change whose caller waits for its outcome.
#[async_trait]
pub(super) trait QueuedChange: Send {
    fn needs_transaction(&self) -> bool;

    /// Begins, unless the caller has withdrawn the change or no longer waits.
    fn begin(&self) -> bool;

    /// Returns to the queue: nothing was carried out.
    fn requeue(&self);

    async fn carry_out(&mut self, shared: &Shared, connection: &mut SqliteConnection) -> Result<(), StoreError>;

    /// Sends the caller the outcome, now that it is durable, or the error.
    fn answer(&mut self, committed: Result<(), StoreError>);
}

struct Queued<C: Change> {
    change: C,
    outcome: Option<C::Outcome>,
    /// Taken when the answer is sent.
    answer: Option<oneshot::Sender<Result<C::Outcome, StoreError>>>,
    phase: Arc<Phase>,
}

#[async_trait]
impl<C: Change> QueuedChange for Queued<C> {
    fn needs_transaction(&self) -> bool {
        C::NEEDS_TRANSACTION
    }

    fn begin(&self) -> bool {
        self.answer.as_ref().is_some_and(|answer| !answer.is_closed())
            && self.phase.move_on(Phase::QUEUED, Phase::BEGUN)
    }

    fn requeue(&self) {
        self.phase.move_on(Phase::BEGUN, Phase::QUEUED);
    }

    async fn carry_out(&mut self, shared: &Shared, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        if C::NEEDS_LOG_IN_PLACE {
            shared.files.ensure_log_in_place()?;
        }
        self.outcome = Some(self.change.carry_out(shared, connection).await?);
        Ok(())
    }

    fn answer(&mut self, committed: Result<(), StoreError>) {
        // Without an outcome and an error nothing was carried out: dropping the sender says so.
        let told = committed.map(|()| self.outcome.take()).transpose();
        if let (Some(told), Some(answer)) = (told, self.answer.take())
            && answer.send(told).is_err()
        {
            tracing::debug!("the caller of a store change has gone away");
        }
    }
}

/// Carries out changes as they arrive, until the store is closed and none is left.
pub(super) async fn carry_out(shared: Arc<Shared>, mut queue: Queue, stop: CancellationToken) {
    let mut changes = Vec::new();
    loop {
        if changes.is_empty() {
            let count = tokio::select! {
                biased;
                () = stop.cancelled(), if !queue.is_closed() => {
                    queue.close();
                    continue;
                }
                count = queue.recv_many(&mut changes, MAX_CHANGES_PER_COMMIT) => count,
            };
            if count == 0 {
                return;
            }
        } else {
            sleep(LOCK_RETRY_DELAY).await;
            while changes.len() < MAX_CHANGES_PER_COMMIT
                && let Ok(change) = queue.try_recv()
            {
                changes.push(change);
            }
        }
        if AssertUnwindSafe(shared.write(&mut changes)).catch_unwind().await.is_err() {
            tracing::error!("a change of the store panicked");
            // Callers without an answer learn that there is none.
            changes.clear();
        }
    }
}

/// Why changes were not committed.
enum CommitError {
    /// Another process holds the write lock: nothing has begun.
    Locked,
    Failed(StoreError),
}

impl From<StoreError> for CommitError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

/// `SQLITE_BUSY` (<https://www.sqlite.org/rescode.html#busy>); the primary result code is the low byte.
fn is_locked(error: &StoreError) -> bool {
    let StoreError::Unavailable(source) = error else { return false };
    let code = source.downcast_ref::<sqlx::Error>().and_then(|error| error.as_database_error()?.code());
    code.and_then(|code| code.parse::<i32>().ok()).is_some_and(|code| code & 0xff == 5)
}

impl Shared {
    /// Carries out changes, in one commit if possible, and answers them. Returns those for which the write lock could
    /// not be taken.
    async fn write(&self, changes: &mut Vec<Box<dyn QueuedChange>>) {
        let mut writer = self.writer.lock().await;
        changes.retain(|change| change.begin());
        let together = changes.len() > 1;
        if together {
            match self.commit(&mut writer, changes).await {
                Ok(()) => return changes.drain(..).for_each(|mut change| change.answer(Ok(()))),
                Err(CommitError::Locked) => return changes.iter().for_each(|change| change.requeue()),
                Err(CommitError::Failed(error)) => tracing::debug!(%error, "changes of the store are tried one by one"),
            }
        }
        while let Some(change) = changes.first_mut() {
            let committed = match self.commit(&mut writer, slice::from_mut(change)).await {
                Ok(()) => Ok(()),
                Err(CommitError::Locked) => return changes.iter().for_each(|change| change.requeue()),
                Err(CommitError::Failed(error)) => Err(error),
            };
            changes.remove(0).answer(committed);
        }
    }

    /// Carries out changes in one commit, or none of them.
    async fn commit(&self, writer: &mut Writer, changes: &mut [Box<dyn QueuedChange>]) -> Result<(), CommitError> {
        self.files.ensure_in_place()?;
        let mut connection = self.take_connection(writer).await?;
        let transaction = changes.len() > 1 || changes.iter().any(|change| change.needs_transaction());
        let committed = commit_on(self, &mut connection, changes, transaction).await;
        match committed {
            Ok(()) | Err(CommitError::Locked) => *writer = Writer::Open(connection),
            Err(CommitError::Failed(_)) => self.give_up(connection).await,
        }
        committed
    }

    /// Lends the connection (invariant 4).
    pub(super) async fn with_connection<T>(
        &self,
        writer: &mut Writer,
        work: impl AsyncFnOnce(&mut SqliteConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut connection = self.take_connection(writer).await?;
        let result = work(&mut connection).await;
        if result.is_ok() {
            *writer = Writer::Open(connection);
        } else {
            self.give_up(connection).await;
        }
        result
    }

    /// Closes the connection after an error.
    async fn give_up(&self, connection: SqliteConnection) {
        self.files.forget_log();
        if let Err(error) = connection.close().await {
            tracing::debug!(%error, "could not close the connection to the store");
        }
    }

    async fn take_connection(&self, writer: &mut Writer) -> Result<SqliteConnection, StoreError> {
        match mem::replace(writer, Writer::Disconnected) {
            Writer::Open(connection) => Ok(connection),
            Writer::Disconnected => self.reconnect().await,
            Writer::Closed => {
                *writer = Writer::Closed;
                Err(StoreError::unavailable(ClosedError))
            }
        }
    }
}

async fn commit_on(
    shared: &Shared,
    connection: &mut SqliteConnection,
    changes: &mut [Box<dyn QueuedChange>],
    transaction: bool,
) -> Result<(), CommitError> {
    let unless_locked = |error| if is_locked(&error) { CommitError::Locked } else { CommitError::Failed(error) };
    if transaction {
        run(connection, "BEGIN IMMEDIATE").await.map_err(StoreError::unavailable).map_err(unless_locked)?;
    }
    for change in changes {
        let done = change.carry_out(shared, connection).await;
        if transaction { done? } else { done.map_err(unless_locked)? }
    }
    if transaction {
        run(connection, "COMMIT").await.map_err(StoreError::unavailable)?;
    }
    Ok(())
}

/// Reduces the lock wait of a connection, opened with a longer one, to that of the writer.
pub(super) async fn wait_briefly_for_locks(connection: &mut SqliteConnection) -> Result<(), StoreError> {
    let statement = format!("PRAGMA busy_timeout = {}", LOCK_ATTEMPT.as_millis());
    sqlx::query(sqlx::AssertSqlSafe(statement)).execute(connection).await.map_err(StoreError::unavailable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        marker::PhantomData,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use futures_util::future::join_all;
    use sqlx::{ConnectOptions as _, Decode, Type, sqlite::SqliteConnectOptions};

    use super::*;
    use crate::{
        account::Account,
        clock::Timestamp,
        grant::{Extra, Grant, Issued, Lifetime},
        secret::{AccessToken, StoreKey},
        store::{Expect, Put, PutGrant, Store as _, random_grant_id},
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
        let asked = (0..=MAX_CHANGES_PER_COMMIT).map(|_| {
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
        assert!(
            carried[..MAX_CHANGES_PER_COMMIT].iter().all(|carried| *carried >= MAX_CHANGES_PER_COMMIT),
            "{carried:?}"
        );
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
        let puts =
            accounts.iter().zip(&grants).map(|(account, grant)| store.put(account, grant, &Expect::Whatever, &[]));
        let mut asked = Box::pin(async {
            let mut puts: Vec<_> = puts.collect();
            let last = puts.split_off(1);
            tokio::join!(join_all(puts), store.write(Fails(true)), join_all(last))
        });
        assert!(asked.as_mut().now_or_never().is_none());
        drop(busy);
        let (first, failed, last) = asked.await;
        assert!(failed.is_err());
        assert!(first.into_iter().chain(last).all(|put| matches!(put, Ok(PutGrant::Done(Put::Created)))));
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

    /// The write lock, held by another connection as by another process.
    async fn lock(home: &tempfile::TempDir) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(home.path().join("db"));
        let mut other = options.connect().await.unwrap();
        run(&mut other, "BEGIN IMMEDIATE").await.unwrap();
        other
    }

    #[tokio::test]
    async fn while_the_database_is_locked_all_changes_wait_once_and_none_is_carried_out_later() {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home).await;
        let epoch = store.epoch();
        let mut other = lock(&home).await;
        let carried = Arc::new(AtomicUsize::new(0));
        #[expect(clippy::disallowed_methods, reason = "how long callers wait is what is measured")]
        let start = tokio::time::Instant::now();
        let asked = (0..2 * MAX_CHANGES_PER_COMMIT).map(|_| store.write(Counts(Arc::clone(&carried))));
        assert!(join_all(asked).await.iter().all(Result::is_err));
        assert!(start.elapsed() < 2 * STORE_CALL_TIMEOUT, "{:?}", start.elapsed());
        run(&mut other, "ROLLBACK").await.unwrap();
        store.probe().await.unwrap();
        assert_eq!(carried.load(Ordering::SeqCst), 0);
        assert_eq!(store.epoch(), epoch, "what is remembered of the store stays good");
    }

    #[tokio::test]
    async fn changes_that_waited_for_the_lock_are_carried_out_once_it_is_free() {
        let home = tempfile::tempdir().unwrap();
        let store = open(&home).await;
        let mut other = lock(&home).await;
        let carried = Arc::new(AtomicUsize::new(0));
        let mut asked = Box::pin(join_all((0..8).map(|_| store.write(Counts(Arc::clone(&carried))))));
        // Several attempts have met the lock by then.
        assert!(timeout(3 * LOCK_ATTEMPT, &mut asked).await.is_err());
        run(&mut other, "ROLLBACK").await.unwrap();
        assert!(asked.await.iter().all(Result::is_ok));
        assert_eq!(carried.load(Ordering::SeqCst), 8);
    }
}
