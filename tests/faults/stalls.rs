//! The store's write lock is held for long: by another program that has the database open, and by a second daemon that is
//! stopped at a random moment.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use credproxy::clock::{Clock as _, SystemClock};
use futures_util::future::join_all;
use serde_json::json;
use tokio::{
    net::UnixStream,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    checker::{Fate, skipped},
    support::{http::Response, issuer::Answer},
    world::{JSON, Node, SOON, Settings, World, random, refresh_path, rounds, token_path},
};

/// A process that holds the write lock of the world's store until the value is dropped.
struct LockHolder(Child);

const HOLD_LOCK: &str = "\
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute('BEGIN IMMEDIATE')
print('locked', flush=True)
time.sleep(600)
";

impl LockHolder {
    /// Returns once the lock is held. `None` where there is no Python, which the table says of this fault.
    fn new(world: &World, fault: &str) -> Option<Self> {
        if Command::new("python3").args(["-c", "import sqlite3"]).status().is_ok_and(|status| status.success()) {
            Some(Self::hold(world))
        } else {
            skipped(fault, "this takes python3 with its sqlite3");
            None
        }
    }

    fn hold(world: &World) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", HOLD_LOCK]).arg(world.home.path().join("data/credproxy.db"));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "locked");
        Self(child)
    }
}

impl Drop for LockHolder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

const MANY: usize = 64;

/// How long the slowest of `MANY` refreshes may wait for the lock.
const REFRESHES: Duration = Duration::from_secs(16);

const HEALTH: Duration = Duration::from_secs(2);

/// How long SIGTERM may take.
const END: Duration = Duration::from_secs(12);

/// Within this time a token that is good is served, although a refresh was wanted.
const GOOD_TOKENS: Duration = Duration::from_secs(7);

fn accounts(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("account-{number}")).collect()
}

/// "Not now": the status, and when to come again.
fn refused_for_now(answer: &Response) {
    assert!(
        [429, 503].contains(&answer.status) && answer.retry_after().is_some(),
        "{} {}",
        answer.status,
        answer.text()
    );
}

#[tokio::test]
async fn refreshes_of_many_accounts_wait_for_the_lock_together() {
    let fault = "store: another process holds the lock, 64 refreshes at once";
    let world = World::new().await;
    let mut daemon = world.node("a").await;
    let (accounts, clock) = (accounts(MANY), SystemClock::new());
    for account in &accounts {
        daemon.log_in(account).await;
    }
    let Some(lock) = LockHolder::new(&world, fault) else { return };
    world.checker.ran();

    let mut refreshes = JoinSet::new();
    let begun = clock.monotonic();
    for account in &accounts {
        let (mut connection, path) = (daemon.connect().await, refresh_path(account));
        refreshes.spawn(async move { connection.request("POST", &path, &[], "").await });
    }
    while !refreshes.is_empty() {
        let answer = timeout(HEALTH, daemon.health()).await.expect("health waits for the lock");
        assert!([200, 503].contains(&answer.0), "{answer:?}");
        while let Ok(Some(answer)) = timeout(Duration::from_millis(200), refreshes.join_next()).await {
            refused_for_now(&answer.unwrap());
            assert!(clock.monotonic().since(begun) < REFRESHES, "{:?}", clock.monotonic().since(begun));
        }
        assert!(clock.monotonic().since(begun) < REFRESHES, "{} are not answered after {REFRESHES:?}", refreshes.len());
    }
    assert_eq!(world.presentations(), 0, "presented without a mark in the store");

    let begun = clock.monotonic();
    daemon.sigterm();
    assert!(daemon.wait().await.success());
    assert!(clock.monotonic().since(begun) < END, "{:?}", clock.monotonic().since(begun));
    drop(lock);
    let names: Vec<&str> = accounts.iter().map(String::as_str).collect();
    daemon.relaunch(&names).await;
    for account in names {
        assert_eq!(daemon.settle(account).await, Fate::Alive);
    }
    world.checker.report(fault);
}

#[tokio::test]
async fn good_tokens_are_served_while_the_lock_is_held() {
    const GOOD_FOR: u32 = 120;
    // Less than half of the life is left, so that `min_validity` asks for a refresh, and more than a busy machine needs.
    const PASSED: i64 = 75_000;
    let fault = "store: another process holds the lock, good tokens are asked for";
    let world = World::new().await;
    let mut daemon = world.node("a").await;
    let accounts = accounts(8);
    for account in &accounts {
        let (access, refresh) = world.issuer.new_grant();
        let grant = json!({"access_token": access, "refresh_token": refresh, "expires_in": GOOD_FOR});
        let put = daemon.request("PUT", &token_path(account), &JSON, grant.to_string()).await;
        assert_eq!(put.status, 201, "{}", put.text());
    }
    daemon.pass_time(PASSED);
    let Some(lock) = LockHolder::new(&world, fault) else { return };
    world.checker.ran();

    let mut gets = JoinSet::new();
    for account in &accounts {
        let (mut connection, path) = (daemon.connect().await, format!("{}&min_validity=60", token_path(account)));
        gets.spawn(async move { connection.request("GET", &path, &[], "").await });
    }
    let answers = timeout(GOOD_TOKENS, gets.join_all()).await.expect("good tokens are kept back");
    for answer in answers {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(world.presentations(), 0, "presented without a mark in the store");
    drop(lock);
    for account in &accounts {
        let refreshed = async {
            while daemon.request("POST", &refresh_path(account), &[], "").await.status != 200 {
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(SOON, refreshed).await.expect("the lock is free");
    }
    world.checker.report(fault);
}

/// Sends a request for each account, each on a connection of its own.
async fn ask_all(daemon: &Node, method: &'static str, paths: Vec<String>) -> JoinSet<Option<Response>> {
    let mut asked = JoinSet::new();
    for path in paths {
        let mut connection = daemon.connect().await;
        asked.spawn(async move { connection.try_request(method, &path, &[], "").await.ok() });
    }
    asked
}

/// All at once: refreshes, readers, a put, a second sandbox, the end of a sandbox, and the end of the daemon while others
/// wait for the lock.
#[tokio::test]
async fn nothing_else_waits_with_those_who_wait_for_the_lock() {
    const GOOD_FOR: u32 = 60;
    const LEFT: i64 = 12;
    const SANDBOX_GONE: Duration = Duration::from_secs(6);
    let fault = "store: another process holds the lock, everything is asked for and the daemon ends";
    let world = World::new().await;
    let mut daemon = world.node("a").await;
    let (many, read) = (accounts(MANY), ["one", "two", "three", "four", "five", "six", "seven", "eight"]);
    for account in &many {
        daemon.log_in(account).await;
    }
    for account in read {
        let (access, refresh) = world.issuer.new_grant();
        let grant = json!({"access_token": access, "refresh_token": refresh, "expires_in": GOOD_FOR});
        let put = daemon.request("PUT", &token_path(account), &JSON, grant.to_string()).await;
        assert_eq!(put.status, 201, "{}", put.text());
    }
    daemon.pass_time((i64::from(GOOD_FOR) - LEFT) * 1000);
    let sandbox = json!({"allow": ["op"], "ttl": 3}).to_string();
    let made = daemon.request("POST", "/v1/sandboxes", &JSON, sandbox.clone()).await;
    let begun = world.issuer.now();
    assert_eq!(made.status, 201, "{}", made.text());
    let socket = format!("{}/credproxy.sock", made.json()["directory"].as_str().unwrap());
    let Some(lock) = LockHolder::new(&world, fault) else { return };
    world.checker.ran();

    let refreshes = || many.iter().map(|account| refresh_path(account)).collect();
    let refreshing = ask_all(&daemon, "POST", refreshes()).await;
    let reading = read.iter().map(|account| format!("{}&min_validity=30", token_path(account))).collect();
    let reading = ask_all(&daemon, "GET", reading).await;
    let (access, refresh) = world.issuer.new_grant();
    let _putting = daemon.putting("another", &access, &refresh).await;
    let mut other = daemon.connect().await;
    let mut making = JoinSet::new();
    making.spawn(async move { other.try_request("POST", "/v1/sandboxes", &JSON, sandbox).await.ok() });

    let (status, reasons) = timeout(HEALTH, daemon.health()).await.expect("health waits for the lock");
    assert!([200, 503].contains(&status), "{status} {reasons}");
    for answer in timeout(GOOD_TOKENS, reading.join_all()).await.expect("good tokens are kept back") {
        let answer = answer.expect("the daemon lives");
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let gone = async {
        while UnixStream::connect(&socket).await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let left = SANDBOX_GONE.saturating_sub(world.issuer.now().saturating_sub(begun));
    timeout(left, gone).await.expect("the sandbox outlives its time");
    for answer in timeout(REFRESHES, refreshing.join_all()).await.expect("they wait one after the other") {
        refused_for_now(&answer.expect("the daemon lives"));
    }

    let _waiting = ask_all(&daemon, "POST", refreshes()).await;
    daemon.sigterm();
    assert!(timeout(END, daemon.wait()).await.expect("it waits for the lock").success());
    assert_eq!(world.presentations(), 0, "presented without a mark in the store");
    drop(lock);
    let names: Vec<&str> = many.iter().map(String::as_str).collect();
    daemon.relaunch(&names).await;
    for account in names.into_iter().chain(read) {
        assert_eq!(daemon.request("POST", &refresh_path(account), &[], "").await.status, 200, "{account}");
    }
    world.checker.report(fault);
}

/// How often the second daemon is stopped in the short run.
const STOPS: usize = 8;

/// A refresh while the other daemon stands still waits for its lease or for its lock on the database.
const BESIDE_A_STOPPED_ONE: Duration = Duration::from_secs(16);

/// Refreshes each account again and again until told to end.
async fn refreshing(daemon: &Node, accounts: &[String], end: &Arc<AtomicBool>) -> JoinSet<()> {
    let mut load = JoinSet::new();
    for account in accounts {
        let (mut connection, path) = (daemon.connect().await, refresh_path(account));
        let (checker, account, end) = (daemon.checker(), account.clone(), Arc::clone(end));
        load.spawn(async move {
            while !end.load(Ordering::Relaxed) {
                let answer = connection.request("POST", &path, &[], "").await;
                match answer.status {
                    200 => checker.answered(&account, &answer),
                    _ => refused_for_now(&answer),
                }
            }
        });
    }
    load
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon_is_stopped_at_random_moments() {
    // Longer than any stop, so that no answer of the provider is lost by it.
    let world = World::on_disk(Settings { request_timeout: "15s", ..Settings::default() }).await;
    world.issuer.always(Some(Answer::Jitter(Duration::from_millis(6))));
    let (first, second) = (world.node("a").await, world.node("b").await);
    let accounts = accounts(8);
    for account in &accounts {
        first.log_in(account).await;
    }
    for _ in 0..rounds(STOPS) {
        let end = Arc::new(AtomicBool::new(false));
        let loads = [refreshing(&first, &accounts, &end).await, refreshing(&second, &accounts, &end).await];
        sleep(Duration::from_micros(random(100_000))).await;
        second.stop_signal();
        world.checker.ran();

        let goes_on = async {
            let got = join_all(accounts.iter().map(|account| first.get(account))).await;
            assert!(got.iter().all(|answer| answer.status == 200));
            let refreshed = join_all(accounts.iter().map(|account| first.refresh(account))).await;
            refreshed.iter().filter(|answer| answer.status != 200).for_each(refused_for_now);
            let got = join_all(accounts.iter().map(|account| first.get(account))).await;
            assert!(got.iter().all(|answer| answer.status == 200));
        };
        timeout(BESIDE_A_STOPPED_ONE, goes_on).await.expect("the first waits for the one that is stopped");
        end.store(true, Ordering::Relaxed);
        second.cont_signal();
        for load in loads {
            timeout(2 * SOON, load.join_all()).await.expect("all are answered");
        }
        for account in &accounts {
            assert_eq!(second.settle(account).await, Fate::Alive);
            assert_eq!(first.settle(account).await, Fate::Alive);
        }
    }
    world.checker.report("two daemons: one stopped at any moment under load");
}
