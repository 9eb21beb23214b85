//! Locks that a program holds on a directory which it was given: the daemon takes no notice of any.

use std::{path::Path, process::Stdio, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    sandboxes::{LOOK, SOON, World, ask},
    support::{
        daemon::{Daemon, Home},
        http::open,
    },
};

const TOKEN: &str = "/v1/tokens/corp";

/// No flight is under way: the process ends, and what it is asked is answered, in this time whatever anybody holds.
const PROMISED: Duration = Duration::from_secs(5);

/// A program that holds a lock on `directory` until it is killed with this value. To open it is all that it needs, as
/// in a container that has it mounted read-only.
async fn hold(directory: &Path, kind: &str) -> Child {
    let mut command = Command::new("flock");
    command.args(["--no-fork", kind]).arg(directory).args(["sh", "-c", "echo held; exec sleep 600"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut line = String::new();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    timeout(SOON, said.read_line(&mut line)).await.expect("the lock is had").unwrap();
    assert_eq!(line, "held\n");
    child
}

async fn assert_answers(world: &World, after: &str) {
    let health = timeout(PROMISED, world.host("GET", "/v1/health", "")).await;
    assert_eq!(health.unwrap_or_else(|_| panic!("no health after {after}")).status, 200, "{after}");
    let token = timeout(PROMISED, world.host("GET", TOKEN, "")).await;
    assert_eq!(token.unwrap_or_else(|_| panic!("no token after {after}")).status, 200, "{after}");
}

async fn promised<T>(what: impl Future<Output = T>, name: &str) -> T {
    timeout(PROMISED, what).await.unwrap_or_else(|_| panic!("{name} takes too long"))
}

async fn gone(socket: &Path) {
    while socket.exists() {
        sleep(LOOK).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_a_sandboxs_directory_holds_up_nothing() {
    for kind in ["--exclusive", "--shared"] {
        let mut world = World::new().await;

        // A deletion, and who else is made and ended meanwhile.
        let sandbox = world.sandbox(&json!({"allow": ["corp"]})).await;
        let held = hold(sandbox.directory(), kind).await;
        let deleted = promised(world.host("DELETE", &sandbox.path(), ""), "a deletion").await;
        assert_eq!(deleted.status, 204, "{kind}");
        assert!(!sandbox.socket().exists());
        assert_answers(&world, "a deletion").await;
        let other = promised(world.sandbox(&json!({"allow": ["corp"]})), "another sandbox").await;
        assert_eq!(other.status("GET", TOKEN).await, 200);
        drop(held);

        // The end of a time, with somebody connected.
        let short = world.sandbox(&json!({"allow": ["corp"], "ttl": 2})).await;
        let held = hold(short.directory(), kind).await;
        let mut connected = open(&short.socket()).await;
        let cut = promised(connected.read(&mut [0]), "the end of its time").await;
        assert_eq!(cut.unwrap_or(0), 0);
        promised(gone(&short.socket()), "the end of its socket").await;
        assert_answers(&world, "the end of its time").await;
        drop(held);

        // The end of a process: what runs on holds the lock.
        let script = "setsid flock --no-fork \"$0\" \"${CREDPROXY_SOCKET%/*}\" sleep 600 >/dev/null 2>&1 & echo $!";
        let arguments = ["exec", "--allow", "corp", "--", "sh", "-c", script, kind];
        let ran = promised(world.daemon.command(&arguments, ""), "exec").await;
        assert_eq!(ran.status.code(), Some(0), "{ran:?}");
        let left: i32 = String::from_utf8(ran.stdout).unwrap().trim().parse().unwrap();
        assert_answers(&world, "the end of a process").await;
        let left = rustix::process::Pid::from_raw(left).unwrap();
        rustix::process::kill_process(left, rustix::process::Signal::KILL).ok();

        // The daemon's death, its start, its end and its start.
        let kept = world.sandbox(&json!({"allow": ["corp"]})).await;
        let held = hold(kept.directory(), kind).await;
        world.daemon.kill9().await;
        promised(world.launch(), "a start").await;
        assert_answers(&world, "a start").await;
        assert_eq!(kept.status("GET", TOKEN).await, 200, "it is open again");
        world.daemon.sigterm();
        assert!(promised(world.daemon.wait(), "the end").await.success());
        promised(world.launch(), "the next start").await;
        assert_eq!(kept.status("GET", TOKEN).await, 200);
        drop(held);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_a_configured_sockets_directory_holds_up_nothing() {
    for kind in ["--exclusive", "--shared"] {
        let home = Home::new();
        let config = "[sockets.box]\npath = \"{home}/run/box/s\"\nrole = \"sandbox\"\nallow = [\"corp\"]\n";
        let mut daemon = Daemon::start(&home, "a", config, &[]).await;
        let socket = home.path().join("run/box/s");
        let health = async || ask(&socket, "GET", "/v1/health", None, "").await.status;
        let _held = hold(socket.parent().unwrap(), kind).await;
        assert_eq!(promised(health(), "health").await, 200);
        daemon.sigterm();
        assert!(promised(daemon.wait(), "the end").await.success());
        assert!(!socket.exists());
        promised(daemon.launch(), "the start").await;
        assert_eq!(promised(health(), "health").await, 200);
        daemon.kill9().await;
        promised(daemon.launch(), "the start after a death").await;
        assert_eq!(promised(health(), "health").await, 200);
    }
}

/// Only this user can open it, and a start is not to depend on it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_on_the_hosts_directory_does_not_keep_a_daemon_from_starting() {
    let mut world = World::new().await;
    world.daemon.kill9().await;
    let _held = hold(world.daemon.socket().parent().unwrap(), "--exclusive").await;
    promised(world.launch(), "a start").await;
    world.daemon.sigterm();
    assert!(promised(world.daemon.wait(), "the end").await.success());
}
