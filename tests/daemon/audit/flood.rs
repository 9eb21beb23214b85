//! Who asks without end, or in ever new ways: he adds some lines a second, and every event is counted.

use std::{fmt::Write as _, fs, os::unix::fs::PermissionsExt as _, path::Path, process::Stdio, time::Duration};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

use crate::{
    audit::{SANDBOX, TOKEN, World},
    support::{audit_log, http::open, skip::skip},
};

/// The most that a flood of some seconds may add.
const MOST: usize = 400 * 1024;

/// How many requests are under way on the connection.
const PIPELINED: usize = 64;

/// Asks for these targets, over and over, many at once on one connection, for so long. Gives how many were answered.
#[expect(clippy::disallowed_methods, reason = "how long a flood lasts")]
async fn flood(socket: &Path, duration: Duration, mut target: impl FnMut() -> String) -> u64 {
    let (start, mut stream, mut answered) = (Instant::now(), open(socket).await, 0);
    while start.elapsed() < duration {
        let mut requests = String::new();
        for _ in 0..PIPELINED {
            write!(requests, "GET {} HTTP/1.1\r\nHost: x\r\n\r\n", target()).unwrap();
        }
        stream.write_all(requests.as_bytes()).await.unwrap();
        let (mut text, mut buffer) = (Vec::new(), [0; 8192]);
        let mut ends = 0;
        while ends < PIPELINED {
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "the connection was closed");
            text.extend_from_slice(&buffer[..read]);
            ends = String::from_utf8_lossy(&text).matches("HTTP/1.1 ").count();
        }
        answered += PIPELINED as u64;
    }
    answered
}

fn of_the_sandbox(events: &[Value]) -> u64 {
    events.iter().filter(|line| line["socket"] == "agents").count() as u64
}

impl World {
    /// The log has grown by some lines alone, and what was written before is still there.
    fn assert_small(&self, before: &str) {
        let text = audit_log::text(&self.log);
        assert!(text.starts_with(before), "history was turned over");
        let added = text.len() - before.len();
        println!("{added} bytes, {} lines", text[before.len()..].lines().count());
        assert!(added < MOST, "{added} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_equal_requests_is_counted() {
    for rate in ["", "rate = \"off\"\n"] {
        let world = World::with(&format!("{SANDBOX}{rate}")).await;
        world.lines().await;
        let before = audit_log::text(&world.log);
        let answered = flood(&world.sandbox(), Duration::from_secs(4), || "/v1/tokens/nope".to_owned()).await;
        println!("{answered} answers");
        let events = world.lines().await;
        assert_eq!(of_the_sandbox(&events), answered);
        world.assert_small(&before);
        let refused = events.iter().filter(|line| line["outcome"] == "RATE_LIMITED").count();
        assert_eq!(refused > 0, rate.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_ever_new_names_is_counted_in_summaries() {
    let world = World::with(&format!("{SANDBOX}rate = \"off\"\n")).await;
    world.lines().await;
    let before = audit_log::text(&world.log);
    let mut number = 0;
    let names = || {
        number += 1;
        format!("/v1/tokens/a{number}")
    };
    let answered = flood(&world.sandbox(), Duration::from_secs(4), names).await;
    let events = world.lines().await;
    assert_eq!(of_the_sandbox(&events), answered);
    world.assert_small(&before);
    let lines = audit_log::lines(&world.log);
    assert!(lines.iter().any(|line| line["account"] == "a1/default"), "the first have lines of their own");
    let summary = lines.iter().find(|line| line["summary"] == true).expect("the rest is counted");
    assert_eq!((&summary["operation"], &summary["outcome"]), (&"getToken".into(), &"UNAUTHORIZED".into()));
    assert_eq!((&summary["socket"], &summary["status"]), (&"agents".into(), &403.into()));
    assert!(["pid", "exe", "comm", "account"].iter().all(|member| summary.get(member).is_none()), "{summary}");
    assert!(summary["times"].as_u64() > Some(1) && summary["first_time"].as_str() <= summary["time"].as_str());
    // Nobody else's lines are fewer for it.
    let lines = world.lines_of(world.daemon.request("GET", TOKEN, &[], "")).await;
    assert_eq!((lines.len(), &lines[0]["account"]), (1, &"corp/default".into()), "{lines:#?}");
}

/// Closed and opened again by one process.
const CONNECTS: &str = "use IO::Socket::UNIX; \
    for (1..2000) { IO::Socket::UNIX->new(Peer => $ARGV[0]) or redo; }";

/// The same by ever new ones of several users.
const FORKS: &str = "use IO::Socket::UNIX; \
    for my $n (1..500) { if (!fork) { $> = 20000 + $n % 50; \
    until (IO::Socket::UNIX->new(Peer => $ARGV[0])) {} exit } wait; }";

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_peers_that_are_turned_away_is_counted() {
    if !rustix::process::geteuid().is_root() {
        skip("only root can run processes of other users");
        return;
    }
    let world = World::with(&format!("{SANDBOX}uids = [65534]\n")).await;
    for open in [world.home.path().to_owned(), world.home.path().join("run")] {
        fs::set_permissions(open, fs::Permissions::from_mode(0o755)).unwrap();
    }
    world.lines().await;
    let before = audit_log::text(&world.log);
    for (user, script) in [("--reuid=65533", CONNECTS), ("--reuid=0", FORKS)] {
        let mut command = tokio::process::Command::new("setpriv");
        command.args([user, "--clear-groups", "perl", "-e", script]).arg(world.sandbox()).stdin(Stdio::null());
        assert!(command.status().await.unwrap().success());
    }
    let events = world.lines().await;
    let refused: Vec<_> = events.iter().filter(|line| line["operation"] == "connect").collect();
    assert!(refused.iter().all(|line| line["outcome"] == "UNAUTHORIZED"));
    assert_eq!(refused.len(), 2000 + 500);
    let mine = refused.iter().filter(|line| line["uid"] == 65533).count();
    assert!(mine > 0, "the first is told of by its user");
    world.assert_small(&before);
    let lines = audit_log::lines(&world.log);
    assert!(lines.iter().filter(|line| line["operation"] == "connect").count() < 400, "{}", lines.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_reader_costs_a_line_a_second_and_the_command_shows_how_often_it_asked() {
    for on_failure in ["fail_open", "fail_closed"] {
        let mut world = World::with(&format!("[audit]\non_failure = {on_failure:?}\n")).await;
        let mut connection = world.daemon.connect().await;
        let lines = world
            .lines_of(async {
                for _ in 0..500 {
                    assert_eq!(connection.request("GET", TOKEN, &[], "").await.status, 200);
                }
            })
            .await;
        assert_eq!(lines.len(), 500);
        let written = audit_log::lines(&world.log).into_iter().filter(|line| line["account"] == "corp/default");
        assert!(written.filter(|line| line["operation"] == "getToken").count() < 50, "{on_failure}");
        // A change has its own line, each time, and what is counted is written at the end.
        for _ in 0..3 {
            assert_eq!(world.put(TOKEN).await, 204);
            assert_eq!(connection.request("GET", TOKEN, &[], "").await.status, 200);
        }
        world.daemon.sigterm();
        assert!(world.daemon.wait().await.success());
        let lines = audit_log::lines(&world.log);
        let puts = lines.iter().filter(|line| line["operation"] == "putToken");
        assert!(puts.clone().count() == 4 && puts.clone().all(|line| line.get("times").is_none()), "{lines:#?}");
        let reads = audit_log::events(lines).into_iter().filter(|line| line["operation"] == "getToken");
        assert_eq!(reads.filter(|line| line["account"] == "corp/default").count(), 503);
        let shown = world.daemon.command(&["audit"], "").await;
        let shown = String::from_utf8(shown.stdout).unwrap();
        let head = shown.lines().next().unwrap();
        let column = head.find("TIMES").unwrap();
        let times = |line: &str| line.get(column..).and_then(|times| times.trim().parse::<u64>().ok());
        assert!(shown.lines().filter_map(times).sum::<u64>() > 400, "{shown}");
    }
}
