//! `credproxy audit`.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tokio::time::timeout;

use crate::{
    audit::{SOON, TOKEN, World, numbers},
    support::audit_log,
};

impl World {
    async fn audit(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = self.daemon.command(&[&["audit"], arguments].concat(), "").await;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_shows_what_was_asked_oldest_first_with_a_daemon_or_without() {
    let mut world = World::with("[audit]\nmax_size = \"16KiB\"\nkeep = 1000\n").await;
    for number in 0..150 {
        world.daemon.request("GET", &format!("{TOKEN}?bucket=n{number}"), &[], "").await;
    }
    world.lines().await;
    let (exit, table, notes) = world.audit(&[]).await;
    assert_eq!((exit, notes.as_str()), (Some(0), ""));
    let mut rows = table.lines();
    let head: Vec<&str> = rows.next().unwrap().split_whitespace().collect();
    assert_eq!(head[..5], ["TIME", "SOCKET", "WHO", "OPERATION", "ABOUT"]);
    let shown: Vec<&str> = rows.filter(|row| row.contains("corp/n")).collect();
    assert_eq!(shown.len(), 150);
    for (number, row) in shown.iter().enumerate() {
        assert!(row.contains(&format!("corp/n{number} ")) && row.contains("NOT_FOUND"), "{row}");
    }

    world.daemon.sigterm();
    assert!(world.daemon.wait().await.success());
    let (exit, json, _) = world.audit(&["--json"]).await;
    assert_eq!((exit, json), (Some(0), audit_log::text(&world.log)), "the lines as they are");
    let (exit, json, _) = world.audit(&["--json", "--account", "corp/n7"]).await;
    let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(exit == Some(0) && lines.len() == 1 && lines[0]["account"] == "corp/n7", "{lines:?}");
    let (exit, table, notes) = world.audit(&["--account", "corp/nobody"]).await;
    assert_eq!((exit, table.as_str()), (Some(0), ""));
    assert!(notes.starts_with("nothing"), "{notes}");
    assert_eq!(world.audit(&["--account", "a/b/c"]).await.0, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_follows_the_log_across_rotations() {
    let world = World::with("[audit]\nmax_size = \"16KiB\"\nkeep = 1000\n").await;
    let mut follower = world.daemon.piped_beside(&["audit", "--follow", "--json"], Stdio::piped());
    let stdout = follower.stdout.take().unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        let mut seen = Vec::new();
        for line in BufReader::new(stdout).lines() {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            seen.extend(numbers(&[line]));
            if seen.len() == 600 {
                break;
            }
        }
        seen
    });
    for round in 0..3 {
        world.put_keys(round * 200..(round + 1) * 200).await;
        world.lines().await;
    }
    let seen = timeout(SOON, reading).await;
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert!(seen.expect("it goes on").unwrap().into_iter().eq(0..600));
    assert!(audit_log::text(&world.log).len() > 64 * 1024, "there were rotations");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_has_seen_enough_ends_it() {
    let world = World::with("").await;
    world.lines().await;
    let (reader, writer) = std::io::pipe().unwrap();
    let mut follower = world.daemon.piped_beside(&["audit", "--follow"], writer.into());
    drop(reader);
    let ended = async {
        loop {
            // Each line is a try to write.
            world.daemon.request("GET", TOKEN, &[], "").await;
            if let Some(status) = follower.try_wait().unwrap() {
                break status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert_eq!(timeout(SOON, ended).await.expect("it ends").code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_says_why_there_is_nothing_to_show() {
    for (path, told) in [("off", "switched off"), ("stdout", "standard output")] {
        let world = World::with(&format!("[audit]\npath = \"{path}\"\n")).await;
        let (exit, shown, notes) = world.audit(&[]).await;
        assert_eq!((exit, shown.as_str()), (Some(2), ""));
        assert!(notes.starts_with("error: ") && notes.contains(told) && notes.contains("\nhint: "), "{notes}");
    }
    let mut world = World::with("").await;
    world.daemon.sigterm();
    assert!(world.daemon.wait().await.success());
    fs::OpenOptions::new()
        .append(true)
        .open(&world.log)
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"no JSON\n"))
        .unwrap();
    let (exit, shown, notes) = world.audit(&["--json"]).await;
    assert!(exit == Some(0) && !shown.contains("no JSON") && notes.contains("not readable"), "{notes}");
    fs::remove_file(&world.log).unwrap();
    let (exit, shown, notes) = world.audit(&[]).await;
    assert_eq!((exit, shown.as_str()), (Some(0), ""));
    assert!(notes.contains(world.log.to_str().unwrap()), "{notes}");
    fs::create_dir(&world.log).unwrap();
    let (exit, _, notes) = world.audit(&[]).await;
    assert!(exit == Some(1) && notes.starts_with("error: cannot read "), "{notes}");
}
