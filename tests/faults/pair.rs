//! Two daemons on one store: one stops in the middle of a flight, or has its account deleted and replaced under it.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::{
    checker::Fate,
    support::issuer::{Answer, Gate},
    world::{Node, SOON, Settings, World, rounds},
};

const ACCOUNT: &str = "me";

/// Each fault in the short run.
const ROUNDS: usize = 2;

const NONE: Duration = Duration::ZERO;
const GRACE: Duration = Duration::from_mins(10);

async fn pair(reuse_grace: Duration) -> (World, Node, Node) {
    let world = World::with(Settings { reuse_grace, ..Settings::default() }).await;
    let first = world.node("a").await;
    let second = world.node("b").await;
    (world, first, second)
}

/// Waits until the daemon serves this token: it sees within 250 ms what another has changed.
async fn sees(daemon: &Node, access: &serde_json::Value) {
    let seen = async {
        while daemon.get(ACCOUNT).await.json()["access_token"] != *access {
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(SOON, seen).await.is_ok(), "it does not see what the other changed");
}

async fn logged_in(daemon: &Node, other: &Node) -> String {
    let refresh = daemon.log_in(ACCOUNT).await;
    let access = daemon.get(ACCOUNT).await.json()["access_token"].clone();
    sees(other, &access).await;
    refresh
}

/// The first daemon is stopped before its mark: the other refreshes as if it were alone, and the first, once it goes
/// on, writes and sends nothing, and its callers have the new token.
async fn stopped_before_its_mark(step: &str) {
    let (world, first, second) = pair(NONE).await;
    for _ in 0..rounds(ROUNDS) {
        let refresh = logged_in(&first, &second).await;
        let asked = world.presentations();
        first.stop_at(&[step]);
        let callers = first.callers(ACCOUNT, 3).await;
        first.stopped_at(step).await;
        first.stop_signal();
        world.checker.ran();

        let answer = timeout(SOON, second.refresh(ACCOUNT)).await.expect("it waits for a stopped daemon");
        assert_eq!((answer.status, world.presentations()), (200, asked + 1), "{}", answer.text());
        let (new, writes) = (answer.json()["access_token"].clone(), world.writes(ACCOUNT).await);
        first.cont_signal();
        first.go_on();
        for answer in callers.join_all().await {
            let answer = answer.expect("the daemon lives");
            assert_eq!((answer.status, &answer.json()["access_token"]), (200, &new), "{}", answer.text());
        }
        assert_eq!(world.presentations(), asked + 1, "the overtaken flight presented");
        assert_eq!(world.writes(ACCOUNT).await, writes, "the overtaken flight wrote");
        assert_eq!(world.issuer.times_presented(&refresh), 1);
        assert_eq!(first.settle(ACCOUNT).await, Fate::Alive);
        assert_eq!(second.settle(ACCOUNT).await, Fate::Alive);
    }
    world.checker.report(&format!("two daemons: one stopped at {step}"));
}

#[tokio::test]
async fn one_is_stopped_before_the_load() {
    stopped_before_its_mark("before_load").await;
}

#[tokio::test]
async fn one_is_stopped_between_the_load_and_the_mark() {
    stopped_before_its_mark("after_load").await;
}

/// Where the first daemon is stopped once it has marked a presentation.
#[derive(Clone, Copy)]
enum Marked {
    Step(&'static str),
    /// The server has the request, and has rotated or not.
    Server(fn(Gate) -> Answer),
}

/// The first daemon is stopped while it holds the lease: the other serves the valid token, and 503 to who wants a new
/// one, and presents nothing. Then the first is killed, and the other takes over at once.
async fn stopped_after_its_mark(fault: &str, at: Marked, reuse_grace: Duration, fate: Fate) {
    let (world, mut first, second) = pair(reuse_grace).await;
    for _ in 0..rounds(ROUNDS) {
        let refresh = logged_in(&first, &second).await;
        let (asked, gate) = (world.presentations(), Gate::new());
        let callers = stop(&world, &first, at, &gate).await;
        let seen = world.presentations() - asked;
        world.checker.ran();

        keeps_its_hands_off(&second).await;
        assert_eq!(world.presentations() - asked, seen, "presented beside a living owner");
        first.crash().await;
        drop(callers);
        gate.open();
        let answer = timeout(Duration::from_secs(2), second.refresh(ACCOUNT)).await.expect("it does not take over");
        assert_eq!(answer.status, if fate == Fate::Alive { 200 } else { 401 }, "{}", answer.text());
        assert_eq!(second.settle(ACCOUNT).await, fate);
        assert!(world.issuer.times_presented(&refresh) <= 2);
        first.relaunch(&[ACCOUNT]).await;
        if fate == Fate::Alive {
            assert_eq!(first.settle(ACCOUNT).await, Fate::Alive);
        }
    }
    world.checker.report(fault);
}

/// Stops the daemon there, with callers waiting.
async fn stop(
    world: &World,
    daemon: &Node,
    at: Marked,
    gate: &Gate,
) -> tokio::task::JoinSet<Option<crate::support::http::Response>> {
    match at {
        Marked::Step(step) => daemon.stop_at(&[step]),
        Marked::Server(answer) => world.issuer.script(answer(gate.clone())),
    }
    let callers = daemon.callers(ACCOUNT, 3).await;
    match at {
        Marked::Step(step) => daemon.stopped_at(step).await,
        Marked::Server(_) => gate.wait_for_arrivals(1).await,
    }
    daemon.stop_signal();
    callers
}

async fn keeps_its_hands_off(daemon: &Node) {
    assert_eq!(daemon.get(ACCOUNT).await.status, 200);
    let answer = daemon.refresh(ACCOUNT).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert!(answer.retry_after().is_some());
    assert_eq!(daemon.get(ACCOUNT).await.status, 200);
}

#[tokio::test]
async fn one_is_stopped_marked_and_killed() {
    let fault = "two daemons: one stopped at after_mark, killed";
    stopped_after_its_mark(fault, Marked::Step("after_mark"), NONE, Fate::Alive).await;
}

#[tokio::test]
async fn one_is_stopped_while_the_server_has_not_rotated_and_killed() {
    // The server rotates once the gate opens, after the kill: the other's presentation may be the second.
    let fault = "two daemons: one stopped with the request at the server, killed, with grace";
    stopped_after_its_mark(fault, Marked::Server(Answer::HoldBefore), GRACE, Fate::Alive).await;
}

#[tokio::test]
async fn one_is_stopped_while_the_server_has_rotated_and_killed() {
    let fault = "two daemons: one stopped, the server has rotated, killed";
    stopped_after_its_mark(fault, Marked::Server(Answer::HoldAfter), NONE, Fate::Lost).await;
}

#[tokio::test]
async fn one_is_stopped_while_the_server_has_rotated_and_killed_with_grace() {
    let fault = "two daemons: one stopped, the server has rotated, killed, with grace";
    stopped_after_its_mark(fault, Marked::Server(Answer::HoldAfter), GRACE, Fate::Alive).await;
}

#[tokio::test]
async fn one_is_stopped_with_the_answer_and_killed() {
    let fault = "two daemons: one stopped at after_answer, killed";
    stopped_after_its_mark(fault, Marked::Step("after_answer"), NONE, Fate::Lost).await;
}

/// The first daemon is stopped while it holds the lease, and goes on: it ends its flight as if nothing had been.
async fn stopped_and_continued(fault: &str, at: Marked) {
    let (world, first, second) = pair(NONE).await;
    for _ in 0..rounds(ROUNDS) {
        let refresh = logged_in(&first, &second).await;
        let gate = Gate::new();
        let callers = stop(&world, &first, at, &gate).await;
        world.checker.ran();
        keeps_its_hands_off(&second).await;
        first.cont_signal();
        gate.open();
        if matches!(at, Marked::Step(_)) {
            first.go_on();
        }
        for answer in callers.join_all().await {
            assert_eq!(answer.expect("the daemon lives").status, 200);
        }
        assert_eq!(world.issuer.times_presented(&refresh), 1);
        let newest = first.get(ACCOUNT).await.json()["access_token"].clone();
        sees(&second, &newest).await;
        assert_eq!(second.settle(ACCOUNT).await, Fate::Alive);
    }
    world.checker.report(fault);
}

/// The server carries the dead daemon's request out after the other's, although it came before.
#[tokio::test]
async fn the_request_of_a_dead_daemon_is_carried_out_after_the_others() {
    let (world, mut first, second) = pair(GRACE).await;
    for _ in 0..rounds(ROUNDS) {
        let refresh = logged_in(&first, &second).await;
        let (asked, gate) = (world.presentations(), Gate::new());
        let callers = stop(&world, &first, Marked::Server(Answer::HoldBefore), &gate).await;
        world.checker.ran();
        first.crash().await;
        drop(callers);
        assert_eq!(second.refresh(ACCOUNT).await.status, 200);
        assert_eq!(world.presentations() - asked, 1);
        gate.open();
        world.presented(asked + 2).await;
        assert_eq!(world.issuer.times_presented(&refresh), 2);
        assert_eq!(second.settle(ACCOUNT).await, Fate::Alive);
        first.relaunch(&[ACCOUNT]).await;
        assert_eq!(first.settle(ACCOUNT).await, Fate::Alive);
    }
    world.checker.report("two daemons: the request of the killed one is carried out late, with grace");
}

#[tokio::test]
async fn one_is_stopped_marked_and_goes_on() {
    stopped_and_continued("two daemons: one stopped at after_mark, continued", Marked::Step("after_mark")).await;
}

#[tokio::test]
async fn one_is_stopped_while_the_server_has_rotated_and_goes_on() {
    let fault = "two daemons: one stopped, the server has rotated, continued";
    stopped_and_continued(fault, Marked::Server(Answer::HoldAfter)).await;
}

#[tokio::test]
async fn one_is_stopped_with_the_answer_and_goes_on() {
    stopped_and_continued("two daemons: one stopped at after_answer, continued", Marked::Step("after_answer")).await;
}

/// Once it has saved it holds no lease: the other goes on with the successor.
async fn stopped_after_its_save(step: &str) {
    let (world, first, second) = pair(NONE).await;
    for _ in 0..rounds(ROUNDS) {
        let refresh = logged_in(&first, &second).await;
        first.stop_at(&[step]);
        let callers = first.callers(ACCOUNT, 3).await;
        first.stopped_at(step).await;
        first.stop_signal();
        world.checker.ran();
        let successor = world.issuer.living_successor(&refresh).expect("it was rotated");
        let answer = timeout(SOON, second.refresh(ACCOUNT)).await.expect("it waits for a stopped daemon");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let newest = second.refresh(ACCOUNT).await.json()["access_token"].clone();
        assert!(world.issuer.times_presented(&refresh) == 1 && world.issuer.times_presented(&successor) == 1);
        first.cont_signal();
        first.go_on();
        for answer in callers.join_all().await {
            assert_eq!(answer.expect("the daemon lives").status, 200);
        }
        sees(&first, &newest).await;
        assert_eq!(first.settle(ACCOUNT).await, Fate::Alive);
    }
    world.checker.report(&format!("two daemons: one stopped at {step}"));
}

#[tokio::test]
async fn one_is_stopped_between_its_save_and_the_publication() {
    stopped_after_its_save("after_save").await;
}

#[tokio::test]
async fn one_is_stopped_before_it_answers() {
    stopped_after_its_save("before_answer").await;
}

/// While the first daemon has a flight under way, the second deletes the grant and puts another person's: the same
/// generation number of the same account again. The first must neither present it nor write over it, nor revoke it.
async fn replaced(step: &str) {
    let (world, first, second) = pair(NONE).await;
    for _ in 0..rounds(ROUNDS) {
        let old = logged_in(&first, &second).await;
        first.stop_at(&[step]);
        let callers = first.callers(ACCOUNT, 3).await;
        first.stopped_at(step).await;
        assert_eq!(second.delete(ACCOUNT).await.status, 200);
        let new = second.log_in(ACCOUNT).await;
        let (put, writes) = (second.get(ACCOUNT).await.json()["access_token"].clone(), world.writes(ACCOUNT).await);
        world.checker.ran();
        first.go_on();
        for answer in callers.join_all().await {
            let answer = answer.expect("the daemon lives");
            // A flight that was done may answer what it has; one that was overtaken has the grant that is there now.
            let of_old = ["after_save", "before_answer"].contains(&step);
            assert!(answer.status == 200 && (of_old || answer.json()["access_token"] == put), "{}", answer.text());
        }
        assert_eq!(world.writes(ACCOUNT).await, writes, "the overtaken flight wrote");
        assert_eq!(world.issuer.times_presented(&new), 0, "the overtaken flight presented another person's token");
        assert!(world.issuer.times_presented(&old) <= 1 && world.issuer.revocations().is_empty());
        sees(&first, &put).await;
        assert_eq!(first.settle(ACCOUNT).await, Fate::Alive);
        assert_eq!(second.settle(ACCOUNT).await, Fate::Alive);
    }
    world.checker.report(&format!("two daemons: deleted and put by the other at {step}"));
}

#[tokio::test]
async fn a_grant_is_replaced_before_the_load() {
    // Here the flight has not looked yet: it may refresh the new grant, or answer with it.
    replaced("before_load").await;
}

#[tokio::test]
async fn a_grant_is_replaced_between_the_load_and_the_mark() {
    replaced("after_load").await;
}

#[tokio::test]
async fn a_grant_is_replaced_between_the_mark_and_the_sending() {
    replaced("after_mark").await;
}

#[tokio::test]
async fn a_grant_is_replaced_between_the_answer_and_the_save() {
    replaced("after_answer").await;
}

#[tokio::test]
async fn a_grant_is_replaced_between_the_save_and_the_publication() {
    replaced("after_save").await;
}

/// The second daemon deletes the grant under the first one's flight: what comes late is not kept, and the provider is
/// told that nobody wants it.
#[tokio::test]
async fn a_grant_is_deleted_by_the_other() {
    let (world, first, second) = pair(NONE).await;
    for round in 0..rounds(ROUNDS) {
        let refresh = logged_in(&first, &second).await;
        first.stop_at(&["after_answer"]);
        let callers = first.callers(ACCOUNT, 3).await;
        first.stopped_at("after_answer").await;
        assert_eq!(second.delete(ACCOUNT).await.status, 200);
        world.checker.ran();
        first.go_on();
        for answer in callers.join_all().await {
            assert_eq!(answer.expect("the daemon lives").status, 404);
        }
        let gone = async {
            while first.get(ACCOUNT).await.status != 404 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(SOON, gone).await.is_ok(), "it does not see what the other changed");
        assert_eq!((world.issuer.revocations().len(), world.issuer.family_alive(&refresh)), (round + 1, false));
    }
    world.checker.report("two daemons: deleted by the other at after_answer");
}
