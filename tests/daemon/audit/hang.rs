//! A log that hangs is one that fails: another process holds the file's lock, or nobody reads the pipe.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    process::Stdio,
    thread,
    time::Duration,
};

use tokio::time::timeout;

use crate::audit::{REFRESH, TOKEN, World};

/// Within so long a daemon ends, whatever hangs.
const END: Duration = Duration::from_secs(15);

/// Within twice the second that is promised: the machine may be busy.
const PROMPT: Duration = Duration::from_secs(2);

const MODES: [&str; 2] = ["fail_open", "fail_closed"];

impl World {
    /// Nothing is done without the log where it must not be, everything where it may; and health tells.
    async fn check_while_it_hangs(&self, mode: &str) {
        let presented = self.issuer.presentations().len();
        let (status, reasons) = timeout(PROMPT, self.health()).await.expect("health is answered");
        let told = ["degraded", "the audit log cannot be written"].iter().all(|due| reasons.contains(due));
        assert!(status == 503 && told, "{mode}: {reasons}");
        for (target, status) in [("/openapi.yaml", 200), ("/nowhere", 404)] {
            let answer = timeout(PROMPT, self.daemon.request("GET", target, &[], "")).await;
            assert_eq!(answer.expect("it tells nothing of any account").status, status, "{mode}: {target}");
        }
        for (method, target) in [("GET", TOKEN), ("POST", REFRESH), ("DELETE", TOKEN)] {
            if (mode, method) == ("fail_open", "DELETE") {
                continue;
            }
            let answer = self.daemon.request(method, target, &[], "");
            let answer = timeout(PROMPT, answer).await.unwrap_or_else(|_| panic!("{mode}: no answer to {method}"));
            if mode == "fail_open" {
                assert_eq!(answer.status, 200, "{}", answer.text());
            } else {
                assert_eq!((answer.status, &answer.json()["code"]), (503, &"STORE_UNAVAILABLE".into()));
                assert!(answer.header("retry-after").is_some());
            }
        }
        let calls = self.issuer.presentations().len() - presented;
        assert_eq!(calls, usize::from(mode == "fail_open"), "{mode}");
        assert_eq!(timeout(PROMPT, self.health()).await.expect("health is answered").0, 503);
    }

    async fn check_end(mut self) {
        self.daemon.sigterm();
        assert!(timeout(END, self.daemon.wait()).await.expect("it ends").success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_another_process_holds_the_files_lock() {
    for mode in MODES {
        let world = World::with(&format!("[audit]\non_failure = {mode:?}\n")).await;
        world.lines().await;
        let lock = File::open(&world.log).unwrap();
        lock.lock().unwrap();
        // The first that is asked for: nothing has failed yet.
        if mode == "fail_closed" {
            let refused = timeout(PROMPT, world.daemon.request("POST", REFRESH, &[], "")).await.expect("an answer");
            assert_eq!((refused.status, world.issuer.presentations().len()), (503, 0));
        }
        world.check_while_it_hangs(mode).await;
        lock.unlock().unwrap();
        world.healthy().await;
        assert_eq!(world.daemon.request("GET", TOKEN, &[], "").await.status, 200);
        let lines = world.lines().await;
        assert!(lines.iter().any(|line| line["operation"] == "refreshToken"), "what was asked meanwhile is told of");
        assert!(lines.iter().all(|line| line.get("lost").is_none()), "{lines:#?}");

        lock.lock().unwrap();
        assert_eq!(world.daemon.request("GET", "/v1/health", &[], "").await.status, 503);
        world.check_end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_nobody_reads_its_standard_output() {
    for mode in MODES {
        let mut world = World::with(&format!("[audit]\npath = \"stdout\"\non_failure = {mode:?}\n")).await;
        world.daemon.sigterm();
        assert!(world.daemon.wait().await.success());
        let (mut reader, writer) = std::io::pipe().unwrap();
        let mut filling = writer.try_clone().unwrap();
        let log = File::options().append(true).create(true).open(world.home.path().join("stderr")).unwrap();
        world.daemon.launch_into(&[], Stdio::from(writer), Stdio::from(log)).await;
        // As if it had been asked for that much: it ends when somebody reads.
        let filler = thread::spawn(move || drop(filling.write_all(&vec![b'\n'; 1024 * 1024])));
        world.check_until_full(mode).await;
        world.check_while_it_hangs(mode).await;
        let reading = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        world.healthy().await;
        filler.join().unwrap();
        assert_eq!(world.daemon.request("GET", TOKEN, &[], "").await.status, 200);
        world.check_end().await;
        let text = reading.join().unwrap().unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter().any(|line| line["operation"] == "refreshToken"), "{text}");
    }
}

impl World {
    async fn check_until_full(&self, mode: &str) {
        let full = async {
            while self.health().await.0 == 200 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(END, full).await.unwrap_or_else(|_| panic!("{mode}: the pipe is never full"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_whose_reader_is_stopped_ends() {
    for mode in MODES {
        let mut world = World::with(&format!("[audit]\npath = \"stdout\"\non_failure = {mode:?}\n")).await;
        world.daemon.sigterm();
        assert!(world.daemon.wait().await.success());
        let (reader, writer) = std::io::pipe().unwrap();
        let mut filling = writer.try_clone().unwrap();
        let log = File::options().append(true).create(true).open(world.home.path().join("stderr")).unwrap();
        world.daemon.launch_into(&[], Stdio::from(writer), Stdio::from(log)).await;
        let filler = thread::spawn(move || drop(filling.write_all(&vec![b'\n'; 1024 * 1024])));
        world.check_until_full(mode).await;
        world.check_end().await;
        drop(reader);
        filler.join().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_start() {
    for mode in MODES {
        let mut world = World::with(&format!("[audit]\non_failure = {mode:?}\n")).await;
        world.daemon.sigterm();
        assert!(world.daemon.wait().await.success());
        let lock = File::open(&world.log).unwrap();
        lock.lock().unwrap();
        if mode == "fail_closed" {
            let refused = timeout(END, world.daemon.command(&["serve"], "")).await.expect("it does not wait");
            let said = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert_eq!(refused.status.code(), Some(1), "{said}");
            let due = format!("another process holds the lock on {}", world.log.display());
            assert!(said.contains("cannot write the audit log") && said.contains(&due), "{said}");
            lock.unlock().unwrap();
            world.daemon.launch().await;
        } else {
            world.daemon.launch().await;
            world.check_while_it_hangs(mode).await;
            lock.unlock().unwrap();
            world.healthy().await;
        }
        assert!(world.lines().await.iter().all(|line| line.get("lost").is_none()));
        world.check_end().await;
    }
}
