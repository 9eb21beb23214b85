//! A refresh token is stored once: one that was used before, or that another account holds, is refused, and the chain
//! that lives is not harmed by it. And a store that is not what it was: a copy, or one whose log was removed.

use std::{fs, process::Command, sync::Arc};

use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::{
    checker::Fate,
    support::{
        daemon::Home,
        http::Response,
        issuer::{Answer, Gate},
    },
    world::{LIFETIME, LOOK, Node, SOON, World},
};

const ACCOUNT: &str = "me";

async fn put(daemon: &Node, account: &str, access: &str, refresh: &str) -> Response {
    daemon.putting(account, access, refresh).await.join_all().await.remove(0).expect("the daemon lives")
}

async fn refused(daemon: &Node, account: &str, refresh: &str, says: &str) {
    let answer = put(daemon, account, "canary-at-of-an-old-file", refresh).await;
    assert_eq!((answer.status, answer.json()["code"].as_str()), (409, Some("GRANT_CONFLICT")), "{}", answer.text());
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains(says) && detail.contains(&format!("op/{ACCOUNT}")), "{detail}");
}

#[tokio::test]
async fn an_old_file_is_imported_again() {
    let world = World::new().await;
    let mut daemon = world.node("a").await;
    let first = daemon.log_in(ACCOUNT).await;
    assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    world.checker.ran();
    refused(&daemon, ACCOUNT, &first, "has been used").await;
    refused(&daemon, "other", &first, "has been used").await;
    assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    daemon.crash().await;
    daemon.relaunch(&[ACCOUNT]).await;
    refused(&daemon, ACCOUNT, &first, "has been used").await;
    assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    assert_eq!(world.issuer.times_presented(&first), 1);
    world.checker.report("known token: an old file is imported again, and after a restart");
}

#[tokio::test]
async fn one_token_gets_two_names() {
    let world = World::new().await;
    let daemon = world.node("a").await;
    let token = daemon.log_in(ACCOUNT).await;
    world.checker.ran();
    refused(&daemon, "other", &token, "is stored for").await;
    let renamed = daemon
        .request(
            "POST",
            &format!("/v1/tokens/op/rename?bucket={ACCOUNT}"),
            &[("content-type", "application/json")],
            json!({"provider": "op", "bucket": "other"}).to_string(),
        )
        .await;
    assert_eq!(renamed.status, 204, "{}", renamed.text());
    assert_eq!(daemon.request("GET", "/v1/tokens/op?bucket=me", &[], "").await.status, 404);
    let answer = daemon.request("POST", "/v1/tokens/op/refresh?bucket=other", &[], "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = put(&daemon, ACCOUNT, "canary-at", &token).await;
    assert!(
        answer.text().contains("op/other has been used"),
        "what is known of the token has moved: {}",
        answer.text()
    );
    assert_eq!(world.issuer.times_presented(&token), 1);
    world.checker.forget(ACCOUNT);
    world.checker.report("known token: one token under two names, and renamed instead");
}

#[tokio::test]
async fn the_own_token_is_put_in_mid_flight() {
    let world = World::new().await;
    let daemon = world.node("a").await;
    let token = daemon.log_in(ACCOUNT).await;
    world.checker.ran();
    let gate = Gate::new();
    world.issuer.script(Answer::HoldAfter(gate.clone()));
    let callers = daemon.callers(ACCOUNT, 3).await;
    gate.wait_for_arrivals(1).await;
    assert_eq!(put(&daemon, ACCOUNT, "canary-at-again", &token).await.status, 204);
    gate.open();
    for answer in callers.join_all().await {
        assert_eq!(answer.expect("the daemon lives").status, 200);
    }
    assert_eq!(world.issuer.times_presented(&token), 1);
    assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    world.checker.report("known token: the own one is put in mid-flight");
}

/// Another home with a copy of the data, as a new machine or a restored backup has it.
fn copied(world: &World) -> Arc<Home> {
    let home = Home::in_memory(|_| Vec::new());
    let status = Command::new("cp").arg("-a").arg(world.home.path().join("data")).arg(home.path()).status().unwrap();
    assert!(status.success());
    home
}

#[tokio::test]
async fn a_copy_of_the_store_says_that_it_is_one() {
    let world = World::new().await;
    let mut original = world.node("a").await;
    let token = original.log_in(ACCOUNT).await;
    original.sigterm();
    assert!(original.wait().await.success());
    let elsewhere = world.elsewhere(copied(&world));
    original.relaunch(&[ACCOUNT]).await;
    assert!(!original.output_text().contains("was copied, moved or restored"));
    world.checker.ran();

    let copy = elsewhere.node("b").await;
    assert!(copy.output_text().contains("was copied, moved or restored"), "{}", copy.output_text());
    let line = copy.line(ACCOUNT).await;
    assert_eq!((&line["state"], &line["last_error"]), (&json!("valid"), &json!("store_copied")));
    assert_eq!(original.settle(ACCOUNT).await, Fate::Alive);
    // As valid as it was, and nothing is risked for half of its life.
    let got = copy.request("GET", &format!("/v1/tokens/op?bucket={ACCOUNT}&min_validity={LIFETIME}"), &[], "").await;
    assert_eq!((got.status, world.issuer.times_presented(&token)), (200, 1));
    let answer = copy.request("POST", &format!("/v1/tokens/op/refresh?bucket={ACCOUNT}"), &[], "").await;
    assert_eq!(answer.status, 401);
    assert!(answer.text().contains("this store was copied, moved or restored"), "{}", answer.text());
}

#[tokio::test]
async fn a_store_that_was_moved_goes_on_after_its_next_refresh() {
    let world = World::new().await;
    let mut daemon = world.node("a").await;
    daemon.log_in(ACCOUNT).await;
    daemon.sigterm();
    assert!(daemon.wait().await.success());
    let elsewhere = world.elsewhere(copied(&world));
    let mut moved = elsewhere.node("b").await;
    assert_eq!(moved.settle(ACCOUNT).await, Fate::Alive);
    assert_eq!(moved.line(ACCOUNT).await["last_error"], json!(null));
    moved.sigterm();
    assert!(moved.wait().await.success());
    moved.relaunch(&[ACCOUNT]).await;
    assert_eq!(moved.output_text().matches("was copied, moved or restored").count(), 1, "it is said once");
}

#[tokio::test]
async fn the_write_ahead_log_is_removed_under_a_living_daemon() {
    let world = World::new().await;
    let mut daemon = world.node("a").await;
    daemon.log_in(ACCOUNT).await;
    assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    for suffix in ["-wal", "-shm"] {
        fs::remove_file(world.home.path().join(format!("data/credproxy.db{suffix}"))).unwrap();
    }
    world.checker.ran();
    let presented = world.presentations();
    let answer = daemon.refresh(ACCOUNT).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(world.presentations(), presented);
    let noticed = async {
        while daemon.health().await.0 != 503 || !daemon.output_text().contains("was removed or replaced while in use") {
            sleep(LOOK).await;
        }
    };
    timeout(SOON, noticed).await.expect("health and the log say so");
    let answer = daemon.request("GET", "/v1/tokens/op?bucket=none", &[], "").await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    daemon.sigterm();
    assert!(daemon.wait().await.success());
    daemon.relaunch(&[ACCOUNT]).await;
    assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    world.checker.report("store: the write-ahead log is removed, and the daemon ends in order");
}
