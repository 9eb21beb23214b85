//! One daemon, and what its own callers and its own end do to a flight.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::{
    checker::Fate,
    store::{Trouble, answered_from_memory},
    support::issuer::{Answer, Gate},
    world::{SOON, World, rounds},
};

const ACCOUNT: &str = "me";

/// Each fault in the short run.
const ROUNDS: usize = 5;

/// The caller who began the flight hangs up, and then everyone who joined; the flight goes on.
#[tokio::test]
async fn the_callers_hang_up() {
    let world = World::new().await;
    let mut daemon = world.node("a").await;
    daemon.log_in(ACCOUNT).await;
    for round in 0..rounds(ROUNDS) {
        let (asked, gate) = (world.presentations(), Gate::new());
        world.issuer.script(Answer::HoldAfter(gate.clone()));
        let mut first = daemon.callers(ACCOUNT, 1).await;
        gate.wait_for_arrivals(1).await;
        let others = daemon.callers(ACCOUNT, if round % 2 == 1 { 5 } else { 0 }).await;
        first.shutdown().await;
        // The daemon has seen it once it has answered somebody else.
        daemon.get(ACCOUNT).await;
        sleep(Duration::from_millis(20)).await;
        gate.open();
        for answer in others.join_all().await {
            let answer = answer.expect("the daemon lives");
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        world.checker.ran();
        let successor = async {
            while daemon
                .get(ACCOUNT)
                .await
                .header("etag")
                .is_none_or(|tag| !tag.ends_with(&format!(":{}\"", 2 + 2 * round)))
            {
                sleep(Duration::from_millis(5)).await;
            }
        };
        assert!(timeout(SOON, successor).await.is_ok(), "the flight ended with its caller");
        assert_eq!(world.presentations(), asked + 1);
        daemon.crash().await;
        daemon.relaunch(&[ACCOUNT]).await;
        assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    }
    world.checker.report("in mid-flight: callers hang up");
}

/// A deletion waits for the flight, and takes what it brought.
#[tokio::test]
async fn a_grant_is_deleted() {
    let world = World::new().await;
    let daemon = world.node("a").await;
    for _ in 0..rounds(ROUNDS) {
        let refresh = daemon.log_in(ACCOUNT).await;
        let gate = Gate::new();
        world.issuer.script(Answer::HoldAfter(gate.clone()));
        let callers = daemon.callers(ACCOUNT, 3).await;
        gate.wait_for_arrivals(1).await;
        world.checker.forget(ACCOUNT);
        let deletion = daemon.deleting(ACCOUNT).await;
        world.checker.ran();
        gate.open();
        for answer in callers.join_all().await {
            assert_eq!(answer.expect("the daemon lives").status, 200);
        }
        assert_eq!(deletion.join_all().await[0].as_ref().expect("the daemon lives").status, 200);
        assert_eq!(daemon.get(ACCOUNT).await.status, 404);
        assert_eq!(world.issuer.times_presented(&refresh), 1);
    }
    world.checker.report("in mid-flight: deleted");
}

/// A put wins: callers have its token, and what comes late is dropped, but not revoked.
async fn replaced(fault: &str, answer: fn(Gate) -> Answer) {
    let world = World::new().await;
    let mut daemon = world.node("a").await;
    for _ in 0..rounds(ROUNDS) {
        let old = daemon.log_in(ACCOUNT).await;
        let gate = Gate::new();
        world.issuer.script(answer(gate.clone()));
        let callers = daemon.callers(ACCOUNT, 3).await;
        gate.wait_for_arrivals(1).await;
        let new = daemon.log_in(ACCOUNT).await;
        let put = daemon.get(ACCOUNT).await.json()["access_token"].clone();
        world.checker.ran();
        gate.open();
        for answer in callers.join_all().await {
            let answer = answer.expect("the daemon lives");
            assert_eq!((answer.status, &answer.json()["access_token"]), (200, &put), "{}", answer.text());
        }
        assert_eq!((world.issuer.times_presented(&old), world.issuer.times_presented(&new)), (1, 0));
        assert!(world.issuer.revocations().is_empty());
        daemon.crash().await;
        daemon.relaunch(&[ACCOUNT]).await;
        assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    }
    world.checker.report(fault);
}

#[tokio::test]
async fn a_grant_is_put_before_the_server_rotates() {
    replaced("in mid-flight: put, then rotated", Answer::HoldBefore).await;
}

#[tokio::test]
async fn a_grant_is_put_after_the_server_rotated() {
    replaced("in mid-flight: rotated, then put", Answer::HoldAfter).await;
}

/// A daemon that is told to end answers its callers, and the successor is on the disk.
async fn told_to_end(fault: &str, answer: fn(Gate) -> Answer) {
    let world = World::new().await;
    let mut daemon = world.node("a").await;
    daemon.log_in(ACCOUNT).await;
    for _ in 0..rounds(ROUNDS) {
        let (asked, gate) = (world.presentations(), Gate::new());
        world.issuer.script(answer(gate.clone()));
        let callers = daemon.callers(ACCOUNT, 3).await;
        gate.wait_for_arrivals(1).await;
        daemon.sigterm();
        world.checker.ran();
        sleep(Duration::from_millis(20)).await;
        gate.open();
        for answer in callers.join_all().await {
            assert_eq!(answer.expect("it answers before it ends").status, 200);
        }
        assert_eq!(daemon.wait().await.code(), Some(0));
        daemon.relaunch(&[ACCOUNT]).await;
        let token = world.issuer.presentations()[asked].token.clone();
        assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
        assert_eq!(world.issuer.times_presented(&token), 1);
    }
    world.checker.report(fault);
}

#[tokio::test]
async fn told_to_end_before_the_server_rotates() {
    told_to_end("in mid-flight: SIGTERM, then rotated", Answer::HoldBefore).await;
}

#[tokio::test]
async fn told_to_end_after_the_server_rotated() {
    told_to_end("in mid-flight: rotated, then SIGTERM", Answer::HoldAfter).await;
}

/// A daemon that is told to end with a grant in memory tries once more to save it, until the store takes it.
#[tokio::test]
async fn told_to_end_with_a_grant_in_memory() {
    let world = World::new().await;
    let mut daemon = world.node("a").await;
    daemon.log_in(ACCOUNT).await;
    for mut trouble in [Trouble::Limit, Trouble::Locked(None)] {
        let spent = answered_from_memory(&world, &daemon, &mut trouble).await;
        daemon.sigterm();
        sleep(Duration::from_millis(500)).await;
        trouble.end(&daemon).await;
        let status = daemon.wait().await;
        assert_eq!(status.code(), Some(0), "{status}");
        world.checker.store_fails(false);
        daemon.relaunch(&[ACCOUNT]).await;
        assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
        assert_eq!(world.issuer.times_presented(&spent), 1);
    }
    world.checker.report("SIGTERM with a grant in memory, the store heals");
}

/// If the store does not, the daemon says so in the end, and again after its restart.
#[tokio::test]
async fn told_to_end_with_a_grant_that_cannot_be_saved() {
    let world = World::new().await;
    let mut daemon = world.node("a").await;
    daemon.log_in(ACCOUNT).await;
    let mut trouble = Trouble::Locked(None);
    let spent = answered_from_memory(&world, &daemon, &mut trouble).await;
    daemon.sigterm();
    daemon.wait().await;
    let said = daemon.output_text();
    assert!(said.contains("stopping with an unsaved refresh") && said.contains("op/me"), "{said}");
    daemon.gave_up();
    trouble.end(&daemon).await;
    world.checker.store_fails(false);
    daemon.relaunch(&[ACCOUNT]).await;
    assert_eq!(daemon.settle(ACCOUNT).await, Fate::Lost);
    assert_eq!(world.issuer.times_presented(&spent), 2);
    world.checker.report("SIGTERM with a grant in memory, the store does not heal");
}
