//! Rotation, and disks that are full.

use std::{collections::BTreeSet, fs, time::Duration};

use rustix::process::{Resource, Rlimit, prlimit};
use serde_json::json;
use tokio::{task::JoinSet, time::timeout};

use crate::{
    audit::{REFRESH, SOON, TOKEN, World, numbers, put_key},
    support::{audit_log, http::code, mounts::Mounts, skip::skip},
};

/// The log's disk: there is room on it for all that may wait in memory.
const TMPFS: &str = "mount -t tmpfs -o size=4m,mode=700 credproxy \"$PLACE\"";

/// A world whose log has a disk of its own; `None` where that cannot be.
async fn on_a_disk(more: &str) -> Option<(World, Mounts)> {
    match Mounts::home("state/credproxy", TMPFS) {
        Ok((home, mounts)) => {
            let world = World::at(home, more).await;
            Some((World { log: mounts.file("audit.log"), ..world }, mounts))
        }
        Err(why) => {
            skip(&why);
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotation_under_load_loses_nothing() {
    const CALLERS: usize = 8;
    const EACH: usize = 400;
    for on_failure in ["fail_open", "fail_closed"] {
        let more = format!("[audit]\nmax_size = \"16KiB\"\nkeep = 1000\non_failure = {on_failure:?}\n");
        let mut world = World::with(&more).await;
        let asked = (0..CALLERS).map(|caller| world.put_keys(caller * EACH..(caller + 1) * EACH));
        futures_util::future::join_all(asked).await;
        world.daemon.sigterm();
        assert!(world.daemon.wait().await.success());
        let lines = audit_log::lines(&world.log);
        let mut seen = numbers(&lines);
        assert_eq!(seen.len(), CALLERS * EACH, "{on_failure}");
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..CALLERS * EACH), "{on_failure}");
        let files: Vec<_> = fs::read_dir(world.log.parent().unwrap()).unwrap().map(Result::unwrap).collect();
        let logs = files.iter().filter(|file| file.file_name().to_str().unwrap().starts_with("audit.log"));
        let sizes: Vec<_> = logs.map(|file| file.metadata().unwrap().len()).collect();
        assert!(sizes.len() > 10 && sizes.iter().all(|size| *size <= 16 * 1024), "{sizes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_kept_across_restarts_and_two_daemons_write_to_one_log() {
    let mut world = World::with("[audit]\nmax_size = \"16KiB\"\nkeep = 1000\n").await;
    let config = fs::read_to_string(world.daemon.config()).unwrap();
    let config = config.replace("/run/a/", "/run/b/");
    let other = crate::support::daemon::Daemon::start(&world.home, "b", &config, &[]).await;
    let mut callers = JoinSet::new();
    for (at, daemon) in [&world.daemon, &other].into_iter().enumerate() {
        let mut connection = daemon.connect().await;
        callers.spawn(async move {
            for number in at * 500..(at + 1) * 500 {
                assert_eq!(put_key(&mut connection, &format!("n{number}")).await.status, 201);
            }
        });
    }
    callers.join_all().await;
    world.daemon.restart().await;
    world.put_keys(1000..1100).await;
    for daemon in [&mut world.daemon, &mut { other }] {
        daemon.sigterm();
        assert!(daemon.wait().await.success());
    }
    let mut seen = numbers(&audit_log::lines(&world.log));
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..1100));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_full_disk_answers_go_on_health_tells_and_no_line_is_lost_or_split() {
    let Some((world, mounts)) = on_a_disk("[audit]\nmax_size = \"16KiB\"\nkeep = 1000\n").await else { return };
    world.put_keys(0..100).await;
    world.lines().await;
    let filler = mounts.fill();
    world.put_keys(100..400).await;
    assert_eq!(world.daemon.request("POST", REFRESH, &[], "").await.status, 200, "answers go on");
    let told = async {
        while !world.health().await.1.contains("the audit log cannot be written") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, told).await.expect("health tells of it");
    let meanwhile = audit_log::lines(&world.log);
    assert!(numbers(&meanwhile).len() < 400, "the disk was not full");
    fs::remove_file(filler).unwrap();
    world.healthy().await;
    assert!(numbers(&world.lines().await).into_iter().eq(0..400), "all of them, in their order");
    assert!(audit_log::text(&world.log).lines().all(|line| !line.contains("\"lost\"")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_while_the_disk_is_full_is_counted() {
    const CALLERS: usize = 8;
    const EACH: usize = 750;
    let Some((world, mounts)) = on_a_disk("").await else { return };
    let filler = mounts.fill();
    let long = "x".repeat(120);
    let lost = async {
        // One MiB waits; the rest is lost.
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (mut connection, long) = (world.daemon.connect().await, long.clone());
            callers.spawn(async move {
                for _ in 0..EACH {
                    assert!([201, 204].contains(&put_key(&mut connection, &long).await.status));
                }
            });
        }
        callers.join_all().await;
        (CALLERS * EACH) as u64
    };
    let asked = timeout(Duration::from_mins(1), lost).await.expect("a full disk holds nobody up");
    fs::remove_file(&filler).unwrap();
    world.healthy().await;
    let lines = world.lines().await;
    let written = lines.iter().filter(|line| line["key"] == json!(long)).count();
    let lost: u64 = lines.iter().filter_map(|line| line["lost"].as_u64()).sum();
    // Of the requests, or of those for health and the marker.
    assert!(lost > 0 && (asked..asked + 200).contains(&(written as u64 + lost)), "{written} + {lost}");
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_a_full_disk_has_operations_refused_before_they_are_carried_out() {
    let Some((world, mounts)) = on_a_disk("[audit]\non_failure = \"fail_closed\"\n").await else { return };
    let filler = mounts.fill();
    let refused = async {
        // Room for some more is reserved.
        let mut asked = 0;
        let mut connection = world.daemon.connect().await;
        loop {
            let answer = put_key(&mut connection, &format!("n{asked}")).await;
            if answer.status != 201 {
                break (asked, code(&answer));
            }
            asked += 1;
        }
    };
    let (asked, refusal) = timeout(Duration::from_mins(1), refused).await.expect("it refuses at last");
    assert_eq!(refusal, (503, "STORE_UNAVAILABLE".to_owned()));

    let presented = world.issuer.presentations().len();
    let refresh = world.daemon.request("POST", REFRESH, &[], "").await;
    assert_eq!((code(&refresh), refresh.header("retry-after")), ((503, "STORE_UNAVAILABLE".to_owned()), Some("1")));
    assert_eq!(world.put("/v1/tokens/corp?bucket=new").await, 503);
    assert_eq!(world.daemon.request("DELETE", TOKEN, &[], "").await.status, 503);
    assert_eq!(world.daemon.request("GET", TOKEN, &[], "").await.status, 503);
    assert_eq!(world.issuer.presentations().len(), presented);
    let (status, reasons) = world.health().await;
    assert!(status == 503 && reasons.contains("the audit log cannot be written"), "{reasons}");
    assert_eq!(world.daemon.request("GET", "/openapi.yaml", &[], "").await.status, 200);
    assert_eq!(world.daemon.request("GET", "/nowhere", &[], "").await.status, 404);

    fs::remove_file(filler).unwrap();
    world.healthy().await;
    assert_eq!(world.daemon.request("GET", "/v1/tokens/corp?bucket=new", &[], "").await.status, 404, "not carried out");
    assert_eq!(world.daemon.request("POST", REFRESH, &[], "").await.status, 200);
    let lines = world.lines().await;
    let answered: BTreeSet<_> = numbers(&lines).into_iter().collect();
    assert!((0..asked).all(|number| answered.contains(&number)), "every answer has its line");
    let refused = lines.iter().rfind(|line| line["operation"] == "putToken").unwrap();
    assert_eq!((&refused["outcome"], &refused["status"]), (&json!("STORE_UNAVAILABLE"), &json!(503)));
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_an_answer_whose_line_cannot_be_written_is_withheld() {
    let world = World::with("[audit]\non_failure = \"fail_closed\"\n").await;
    let limit = |size| {
        prlimit(Some(world.daemon.pid()), Resource::Fsize, Rlimit { current: size, maximum: None }).unwrap();
    };
    limit(Some(0));
    for _ in 0..2 {
        let answer = world.daemon.request("GET", TOKEN, &[], "").await;
        assert_eq!(code(&answer), (503, "STORE_UNAVAILABLE".to_owned()));
        assert!(!answer.text().contains("canary"));
    }
    limit(None);
    world.healthy().await;
    assert_eq!(world.daemon.request("GET", TOKEN, &[], "").await.status, 200);
    let told = world.lines().await;
    let asked = told.iter().filter(|line| line["operation"] == "getToken" && line["account"] != "marker/default");
    assert_eq!(asked.count(), 3, "{told:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_cannot_be_opened_stops_the_start() {
    let mut world = World::with("").await;
    world.daemon.sigterm();
    assert!(world.daemon.wait().await.success());
    let kept = world.log.with_extension("kept");
    fs::rename(&world.log, &kept).unwrap();
    std::os::unix::fs::symlink(&kept, &world.log).unwrap();
    let output = world.daemon.command(&["serve"], "").await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let due = format!("error: cannot open the audit log: {}: is not a regular file", world.log.display());
    assert!(said.contains(&due), "{said}");
    let check = world.daemon.command(&["check"], "").await;
    assert!(String::from_utf8_lossy(&check.stdout).contains("wrong  audit"), "{check:?}");
    assert_eq!(check.status.code(), Some(1));
}
