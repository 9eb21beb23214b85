//! The store refuses: a full disk, a limit on the size of files (an I/O error), a locked database, a read-only
//! directory; before a presentation and after the provider's answer.

use std::{ffi::OsString, fs, time::Duration};

use futures_util::future::join_all;
use rustix::process::{Resource, Rlimit, prlimit};
use sqlx::{Connection as _, SqliteConnection};
use tokio::time::{sleep, timeout};

use crate::{
    checker::{Fate, skipped},
    support::{
        daemon::Home,
        issuer::{Answer, Gate},
        mounts::Mounts,
    },
    world::{Node, SOON, Settings, World},
};

const ACCOUNT: &str = "me";

/// From the moment the store heals to the successor on the disk.
const HEALED: Duration = Duration::from_secs(2);

/// What is wrong with the store.
pub(crate) enum Trouble {
    /// No room on a file system of one MiB.
    Full(Mounts),
    /// No file may grow, the log included: an I/O error to the database.
    Limit,
    /// Somebody else's transaction.
    Locked(Option<SqliteConnection>),
    /// The directory cannot be written, and the database was closed by an error before.
    ReadOnly(Mounts),
}

const READ_ONLY: &str = "mount --bind \"$PLACE\" \"$PLACE\" && mount -o remount,bind,ro \"$PLACE\"";
const WRITABLE: &str = "mount -o remount,bind,rw \"$PLACE\"";
const TMPFS: &str = "mount -t tmpfs -o size=1m,mode=700 credproxy \"$PLACE\"";

impl Trouble {
    /// A world in which it can be made; `None` when it cannot, which the table says.
    async fn world(name: &str, fault: &str) -> Option<(World, Self)> {
        let settings = Settings::default();
        let in_memory = || Home::in_memory(|_| Vec::new());
        let mounted = |script, of: fn(Mounts) -> Self| match Mounts::home("data", script) {
            Ok((home, mounts)) => Some((home, of(mounts))),
            Err(why) => {
                skipped(fault, &why);
                None
            }
        };
        let (home, trouble) = match name {
            "full disk" => mounted(TMPFS, Self::Full)?,
            "read-only directory" => mounted("true", Self::ReadOnly)?,
            "I/O error" => (in_memory(), Self::Limit),
            "locked database" => (in_memory(), Self::Locked(None)),
            other => panic!("no such trouble: {other}"),
        };
        Some((World::at(home, settings).await, trouble))
    }

    pub(crate) async fn begin(&mut self, world: &World, daemon: &Node) {
        match self {
            Self::Full(mounts) => {
                mounts.fill();
            }
            Self::Limit => limit_files(daemon, Some(0)),
            Self::Locked(holder) => {
                let mut database = world.database().await;
                sqlx::query("BEGIN EXCLUSIVE").execute(&mut database).await.unwrap();
                *holder = Some(database);
            }
            Self::ReadOnly(mounts) => {
                mounts.run(READ_ONLY);
                limit_files(daemon, Some(0));
            }
        }
    }

    /// What is read-only is still read-only, but the error that closed the database is over.
    fn go_on(&self, daemon: &Node) {
        if matches!(self, Self::ReadOnly(_)) {
            limit_files(daemon, None);
        }
    }

    pub(crate) async fn end(&mut self, daemon: &Node) {
        match self {
            Self::Full(mounts) => fs::remove_file(mounts.file("filler")).unwrap(),
            Self::Limit => limit_files(daemon, None),
            Self::Locked(holder) => holder.take().unwrap().close().await.unwrap(),
            Self::ReadOnly(mounts) => mounts.run(WRITABLE),
        }
    }
}

fn limit_files(daemon: &Node, size: Option<u64>) {
    // The hard limit stays, or it could not be raised again.
    prlimit(Some(daemon.pid()), Resource::Fsize, Rlimit { current: size, maximum: None }).unwrap();
}

/// Those who ask besides: a store that refuses one change at a time would let the last of them wait for long.
const OTHERS: [&str; 7] = ["two", "three", "four", "five", "six", "seven", "eight"];

/// How long the slowest of several refreshes may wait for a store that refuses.
const REFUSED: Duration = Duration::from_secs(16);

/// The store refuses the mark: nothing is presented, the valid token is served, and once it is over all is well.
async fn refuses_before(name: &str) {
    let fault = format!("store: {name}, before the presentation");
    let Some((world, mut trouble)) = Trouble::world(name, &fault).await else { return };
    let mut daemon = world.node("a").await;
    let accounts = [&[ACCOUNT][..], &OTHERS].concat();
    for account in &accounts {
        daemon.log_in(account).await;
        assert_eq!(daemon.settle(account).await, Fate::Alive);
    }
    let presented = world.presentations();

    trouble.begin(&world, &daemon).await;
    world.checker.ran();
    for _ in 0..2 {
        let refreshes = join_all(accounts.iter().map(|account| daemon.refresh(account)));
        for answer in timeout(REFUSED, refreshes).await.expect("they wait for each other") {
            assert_eq!((answer.status, &*answer.json()["code"].to_string()), (503, "\"STORE_UNAVAILABLE\""));
            assert!(answer.retry_after().is_some());
        }
        trouble.go_on(&daemon);
    }
    for account in &accounts {
        assert_eq!(daemon.get(account).await.status, 200);
    }
    let (status, reasons) = daemon.health().await;
    assert!(status == 503 && reasons.contains("the store cannot be written"), "{status} {reasons}");
    assert_eq!(world.presentations(), presented, "presented without a mark");

    trouble.end(&daemon).await;
    healthy_again(&daemon).await;
    for account in &accounts {
        assert_eq!(daemon.settle(account).await, Fate::Alive);
    }
    daemon.crash().await;
    daemon.relaunch(&accounts).await;
    for account in &accounts {
        assert_eq!(daemon.settle(account).await, Fate::Alive);
    }
    world.checker.report(&fault);
}

async fn healthy_again(daemon: &Node) {
    let healthy = async {
        while daemon.health().await.0 != 200 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let healed = timeout(HEALED, healthy).await.is_ok();
    assert!(healed, "not healthy {HEALED:?} after the store is: {:?}", daemon.health().await);
}

/// Has a refresh answered that the store refuses. Gives the refresh token that was spent.
pub(crate) async fn answered_from_memory(world: &World, daemon: &Node, trouble: &mut Trouble) -> String {
    let gate = Gate::new();
    world.issuer.script(Answer::HoldAfter(gate.clone()));
    let callers = daemon.callers(ACCOUNT, 3).await;
    gate.wait_for_arrivals(1).await;
    trouble.begin(world, daemon).await;
    world.checker.store_fails(true);
    world.checker.ran();
    gate.open();
    for answer in callers.join_all().await {
        let answer = answer.expect("the daemon lives");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    trouble.go_on(daemon);
    let (status, reasons) = daemon.health().await;
    assert!(status == 503 && reasons.contains("a refresh is not saved yet"), "{status} {reasons}");
    world.issuer.presentations().last().unwrap().token.clone()
}

/// The store refuses the successor: callers have their token, nothing is presented meanwhile, and the successor is on
/// the disk as soon as that takes it.
async fn refuses_after(name: &str) {
    let fault = format!("store: {name}, after the answer");
    let Some((world, mut trouble)) = Trouble::world(name, &fault).await else { return };
    let mut daemon = world.node("a").await;
    daemon.log_in(ACCOUNT).await;
    let before = daemon.get(ACCOUNT).await.json()["access_token"].clone();
    let spent = answered_from_memory(&world, &daemon, &mut trouble).await;
    let presented = world.presentations();
    assert_ne!(daemon.get(ACCOUNT).await.json()["access_token"], before);
    let answer = daemon.refresh(ACCOUNT).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.text().contains("not saved yet"), "{}", answer.text());
    // Some tries to save fail.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(world.presentations(), presented);

    trouble.end(&daemon).await;
    healthy_again(&daemon).await;
    world.checker.store_fails(false);
    daemon.crash().await;
    daemon.relaunch(&[ACCOUNT]).await;
    assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    assert_eq!(world.issuer.times_presented(&spent), 1);
    world.checker.report(&fault);
}

#[tokio::test]
async fn a_full_disk_before() {
    refuses_before("full disk").await;
}

#[tokio::test]
async fn a_full_disk_after() {
    refuses_after("full disk").await;
}

#[tokio::test]
async fn an_io_error_before() {
    refuses_before("I/O error").await;
}

#[tokio::test]
async fn an_io_error_after() {
    refuses_after("I/O error").await;
}

#[tokio::test]
async fn a_locked_database_before() {
    refuses_before("locked database").await;
}

#[tokio::test]
async fn a_locked_database_after() {
    refuses_after("locked database").await;
}

#[tokio::test]
async fn a_read_only_directory_before() {
    refuses_before("read-only directory").await;
}

#[tokio::test]
async fn a_read_only_directory_after() {
    refuses_after("read-only directory").await;
}

#[tokio::test]
async fn killed_while_a_grant_is_in_memory_alone() {
    let world = World::new().await;
    let mut daemon = world.node("a").await;
    daemon.log_in(ACCOUNT).await;
    let spent = answered_from_memory(&world, &daemon, &mut Trouble::Limit).await;
    daemon.crash().await;
    world.checker.store_fails(false);
    daemon.relaunch(&[ACCOUNT]).await;
    assert_eq!(daemon.settle(ACCOUNT).await, Fate::Lost);
    assert_eq!(world.issuer.times_presented(&spent), 2);
    world.checker.report("store: I/O error, killed with a grant in memory");
}

/// A daemon that cannot start says why, and has touched nothing.
#[tokio::test]
async fn a_read_only_directory_at_the_start() {
    let fault = "store: read-only directory, at the start";
    let Some((world, trouble)) = Trouble::world("read-only directory", fault).await else { return };
    let Trouble::ReadOnly(mounts) = trouble else { return };
    let mut daemon = world.node("a").await;
    daemon.log_in(ACCOUNT).await;
    for in_order in [true, false] {
        if in_order {
            daemon.sigterm();
            daemon.wait().await;
        } else {
            daemon.crash().await;
        }
        mounts.run(READ_ONLY);
        world.checker.ran();
        daemon.spawn();
        let ended = timeout(SOON, daemon.wait()).await.expect("it neither starts nor ends");
        assert_eq!(ended.code(), Some(1));
        mounts.run(WRITABLE);
        daemon.relaunch(&[ACCOUNT]).await;
        assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    }
    assert!(daemon.output_text().contains("cannot open the store"), "{}", daemon.output_text());
    world.checker.report(fault);
}

/// Nor does it matter to a refresh whether its log can be written.
#[tokio::test]
async fn a_log_that_cannot_be_written() {
    let home = Home::in_memory(|_| ["sh", "-c", "exec \"$@\" 2>/dev/full", "sh"].map(OsString::from).to_vec());
    let world = World::at(home, Settings::default()).await;
    let mut daemon = world.node("a").await;
    daemon.log_in(ACCOUNT).await;
    let mut trouble = Trouble::Limit;
    answered_from_memory(&world, &daemon, &mut trouble).await;
    trouble.end(&daemon).await;
    healthy_again(&daemon).await;
    world.checker.store_fails(false);
    daemon.crash().await;
    daemon.relaunch(&[ACCOUNT]).await;
    assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    world.checker.report("store: I/O error, after the answer, and no room for the log");
}
