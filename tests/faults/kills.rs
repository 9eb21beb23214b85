//! `kill -9`, at every step of a flight and at any moment.

use std::time::Duration;

use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    checker::Fate,
    support::{
        http::Response,
        issuer::{Answer, Gate, Raw},
    },
    world::{Node, SOON, Settings, World, random, refresh_path, rounds, token_path},
};

const ACCOUNT: &str = "me";

/// The server's grace window, where it has one: longer than any run.
const GRACE: Duration = Duration::from_mins(10);

/// Kills at one step in the short run. With the other steps and the random kills they are more than 200.
const KILLS: usize = 10;

/// Where the daemon is killed.
enum At {
    /// At a step of its own.
    Step(&'static str),
    /// The server has the request, and does with it what this says.
    Server(fn() -> Answer),
    /// The server answers this, and the daemon is at a step of its own.
    Answered(Raw, &'static str),
}

/// Kills daemons there with callers waiting, and looks how the chain stands: `presented` is how often the refresh token
/// that was under way is presented in the end.
async fn kill(fault: &str, at: At, reuse_grace: Duration, presented: usize, fate: Fate) {
    let world = World::on_disk(Settings { reuse_grace, ..Settings::default() }).await;
    let mut daemon = world.node("a").await;
    daemon.log_in(ACCOUNT).await;
    for _ in 0..rounds(KILLS) {
        let before = world.presentations();
        match &at {
            At::Step(step) => daemon.stop_at(&[step]),
            At::Server(answer) => world.issuer.script(answer()),
            At::Answered(answer, step) => {
                world.issuer.script(Answer::Raw(answer.clone()));
                daemon.stop_at(&[step]);
            }
        }
        let callers = daemon.callers(ACCOUNT, 4).await;
        match &at {
            At::Step(step) | At::Answered(_, step) => daemon.stopped_at(step).await,
            At::Server(_) => world.presented(before + 1).await,
        }
        daemon.crash().await;
        // What is published already answers a caller who comes late.
        let is_published = matches!(&at, At::Step("before_answer"));
        let is_fair = |answer: &Option<Response>| answer.as_ref().is_none_or(|it| is_published && it.status == 200);
        let answers = callers.join_all().await;
        assert!(answers.iter().all(is_fair) && answers.iter().any(Option::is_none), "answered from the grave");

        daemon.relaunch(&[ACCOUNT]).await;
        world.checker.ran();
        assert_eq!(daemon.settle(ACCOUNT).await, fate, "{fault}");
        // The one under way, and the one after it where there was a chain to go on with.
        let token = world.issuer.presentations()[before].token.clone();
        assert_eq!(world.issuer.times_presented(&token), presented, "{fault}");
        if fate == Fate::Lost {
            daemon.log_in(ACCOUNT).await;
        }
    }
    world.checker.report(fault);
}

const NONE: Duration = Duration::ZERO;

#[tokio::test]
async fn before_the_flight_has_read_the_record() {
    kill("kill -9: before the load", At::Step("before_load"), NONE, 1, Fate::Alive).await;
}

#[tokio::test]
async fn before_the_mark() {
    kill("kill -9: before the mark", At::Step("after_load"), NONE, 1, Fate::Alive).await;
}

#[tokio::test]
async fn between_the_mark_and_the_sending() {
    kill("kill -9: marked, not sent", At::Step("after_mark"), NONE, 1, Fate::Alive).await;
}

#[tokio::test]
async fn while_the_server_has_not_rotated() {
    kill("kill -9: sent, not rotated", At::Server(|| Answer::Silence), NONE, 2, Fate::Alive).await;
}

#[tokio::test]
async fn while_the_server_has_rotated_and_not_answered() {
    let held = || Answer::HoldAfter(Gate::new());
    kill("kill -9: rotated, not answered", At::Server(held), NONE, 2, Fate::Lost).await;
}

#[tokio::test]
async fn while_the_server_has_rotated_and_forgives() {
    let held = || Answer::HoldAfter(Gate::new());
    kill("kill -9: rotated, not answered, with grace", At::Server(held), GRACE, 2, Fate::Alive).await;
}

#[tokio::test]
async fn between_the_answer_and_the_save() {
    kill("kill -9: answered, not saved", At::Step("after_answer"), NONE, 2, Fate::Lost).await;
}

#[tokio::test]
async fn right_before_the_save() {
    kill("kill -9: about to be saved", At::Step("before_save"), NONE, 2, Fate::Lost).await;
}

#[tokio::test]
async fn between_the_answer_and_the_save_when_the_server_forgives() {
    kill("kill -9: answered, not saved, with grace", At::Step("after_answer"), GRACE, 2, Fate::Alive).await;
}

#[tokio::test]
async fn between_a_refusal_and_its_mark() {
    let refusal = At::Answered(Raw::error(400, "invalid_scope"), "after_answer");
    kill("kill -9: refused, not noted", refusal, NONE, 2, Fate::Alive).await;
}

#[tokio::test]
async fn between_the_save_and_the_publication() {
    kill("kill -9: saved, not published", At::Step("after_save"), NONE, 1, Fate::Alive).await;
}

#[tokio::test]
async fn between_the_publication_and_the_answers() {
    kill("kill -9: published, not answered", At::Step("before_answer"), NONE, 1, Fate::Alive).await;
}

#[tokio::test]
async fn while_a_grant_is_put() {
    let world = World::on_disk(Settings::default()).await;
    let mut daemon = world.node("a").await;
    daemon.log_in(ACCOUNT).await;
    for round in 0..rounds(KILLS) {
        let stored = round % 2 == 1;
        let step = if stored { "after_put" } else { "before_put" };
        daemon.stop_at(&[step]);
        let (access, refresh) = world.issuer.new_grant();
        let put = daemon.putting(ACCOUNT, &access, &refresh).await;
        daemon.stopped_at(step).await;
        daemon.crash().await;
        assert!(put.join_all().await[0].is_none(), "answered from the grave");

        if stored {
            world.checker.forget(ACCOUNT);
        }
        daemon.relaunch(&[ACCOUNT]).await;
        world.checker.ran();
        assert_eq!(daemon.get(ACCOUNT).await.json()["access_token"] == access, stored);
        let next = daemon.refresh(ACCOUNT).await;
        assert_eq!(next.status, 200, "{}", next.text());
        assert_eq!(world.issuer.times_presented(&refresh), usize::from(stored));
        daemon.log_in(ACCOUNT).await;
        assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    }
    world.checker.report("kill -9: in a put");
}

#[tokio::test]
async fn while_a_grant_is_deleted() {
    let world = World::on_disk(Settings::default()).await;
    let mut daemon = world.node("a").await;
    for round in 0..rounds(KILLS) {
        daemon.log_in(ACCOUNT).await;
        let gone = round % 2 == 1;
        let step = if gone { "after_delete" } else { "before_delete" };
        daemon.stop_at(&[step]);
        let deletion = daemon.deleting(ACCOUNT).await;
        daemon.stopped_at(step).await;
        daemon.crash().await;
        assert!(deletion.join_all().await[0].is_none(), "answered from the grave");

        if gone {
            world.checker.forget(ACCOUNT);
        }
        daemon.relaunch(&[ACCOUNT]).await;
        world.checker.ran();
        if gone {
            assert_eq!(daemon.get(ACCOUNT).await.status, 404);
        } else {
            assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
        }
    }
    world.checker.report("kill -9: in a delete");
}

/// Kills in a run of random kills, short.
const RANDOM_KILLS: usize = 40;
const ACCOUNTS: [&str; 6] = ["one", "two", "three", "four", "five", "six"];

/// Callers of every account who ask again and again, until the daemon dies.
async fn load(daemon: &Node) -> JoinSet<()> {
    let mut callers = JoinSet::new();
    for account in ACCOUNTS {
        for method in ["POST", "POST", "GET"] {
            let Some(mut connection) = daemon.try_connect().await else { return callers };
            let checker = daemon.checker();
            let path = if method == "POST" { refresh_path(account) } else { token_path(account) };
            callers.spawn(async move {
                while let Ok(answer) = connection.try_request(method, &path, &[], "").await {
                    if answer.status == 200 {
                        checker.answered(account, &answer);
                    }
                }
            });
        }
    }
    callers
}

async fn log_in_everywhere(daemon: &Node) {
    for account in ACCOUNTS {
        daemon.log_in(account).await;
    }
}

/// Every chain lives, or is lost and said to be; those are begun anew.
async fn settle_everywhere(daemon: &Node) -> usize {
    let mut lost = 0;
    for account in ACCOUNTS {
        if daemon.settle(account).await == Fate::Lost {
            lost += 1;
            daemon.log_in(account).await;
        }
    }
    lost
}

/// Kills one daemon at any moment, every fifth time in its start with what its last life left behind.
async fn kill_at_random(fault: &str, reuse_grace: Duration) -> usize {
    let world = World::on_disk(Settings { reuse_grace, ..Settings::default() }).await;
    world.issuer.always(Some(Answer::Jitter(Duration::from_millis(6))));
    let mut daemon = world.node("a").await;
    log_in_everywhere(&daemon).await;
    let mut lost = 0;
    for round in 0..rounds(RANDOM_KILLS) {
        let callers = load(&daemon).await;
        sleep(Duration::from_micros(random(100_000))).await;
        daemon.crash().await;
        timeout(SOON, callers.join_all()).await.expect("the dead answer nobody");
        world.checker.ran();
        if round % 5 == 0 {
            daemon.spawn();
            sleep(Duration::from_micros(random(30_000))).await;
            daemon.crash().await;
            world.checker.ran();
        }
        daemon.relaunch(&ACCOUNTS).await;
        lost += settle_everywhere(&daemon).await;
    }
    world.checker.report(fault);
    lost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_any_moment() {
    kill_at_random("kill -9: at any moment", NONE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_any_moment_when_the_server_forgives() {
    assert_eq!(kill_at_random("kill -9: at any moment, with grace", GRACE).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_any_moment_with_two_daemons_on_one_store() {
    let world = World::on_disk(Settings::default()).await;
    world.issuer.always(Some(Answer::Jitter(Duration::from_millis(6))));
    let mut daemons = [world.node("a").await, world.node("b").await];
    log_in_everywhere(&daemons[0]).await;
    for _ in 0..rounds(RANDOM_KILLS) {
        let victim = usize::from(random(2) == 1);
        let callers = [load(&daemons[0]).await, load(&daemons[1]).await];
        sleep(Duration::from_micros(random(60_000))).await;
        daemons[victim].crash().await;
        world.checker.ran();
        let [first, second] = callers;
        let (of_victim, mut of_other) = if victim == 0 { (first, second) } else { (second, first) };
        timeout(SOON, of_victim.join_all()).await.expect("the dead answer nobody");
        // The other goes on with whatever the dead one left.
        sleep(Duration::from_millis(20)).await;
        of_other.shutdown().await;
        settle_everywhere(&daemons[1 - victim]).await;
        daemons[victim].relaunch(&ACCOUNTS).await;
        settle_everywhere(&daemons[victim]).await;
    }
    world.checker.report("kill -9: at any moment, one of two daemons");
}
