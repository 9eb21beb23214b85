//! The clock jumps by a minute, a day and a year, both ways, and the machine sleeps: before, in and after a flight. And it
//! is wrong for a while, by hours or by decades, when a token is issued or later: the judge knows from the server's own
//! clock when each token ends.

use std::time::Duration;

use credproxy::clock::{Clock as _, SystemClock};
use tokio::time::sleep;

use crate::{
    checker::Fate,
    support::issuer::{Answer, Gate},
    world::{Node, Settings, World},
};

const ACCOUNT: &str = "me";

const MINUTE: i64 = 60 * 1000;
const DAY: i64 = 24 * 60 * MINUTE;
const YEAR: i64 = 365 * DAY;

const JUMPS: [i64; 6] = [MINUTE, -MINUTE, DAY, -DAY, YEAR, -YEAR];

/// Whatever the clock did, a token is served that has not ended by the server's clock, the next refresh works within the
/// cooldown, and a restart changes nothing about it.
async fn all_is_well(world: &World, daemon: &mut Node) {
    let answer = daemon.get(ACCOUNT).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let (age, lifetime) = world.issuer.age_and_lifetime(answer.json()["access_token"].as_str().unwrap()).unwrap();
    assert!(age < lifetime, "a token of {lifetime:?} was answered when it was {age:?} old");
    assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    daemon.crash().await;
    daemon.relaunch(&[ACCOUNT]).await;
    assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    let mut tokens: Vec<_> = world.issuer.presentations().into_iter().map(|it| it.token).collect();
    let presented = tokens.len();
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), presented, "presented again because of a clock");
}

async fn world() -> World {
    World::with(Settings { cooldown: "1s", ..Settings::default() }).await
}

#[tokio::test]
async fn a_jump_after_a_flight_before_the_next() {
    let world = world().await;
    let mut daemon = world.node("a").await;
    for jump in JUMPS {
        daemon.set_clocks(0, 0);
        daemon.log_in(ACCOUNT).await;
        assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
        daemon.set_clocks(jump, 0);
        world.checker.ran();
        all_is_well(&world, &mut daemon).await;
    }
    world.checker.report("clock: jump after a flight, before the next");
}

#[tokio::test]
async fn a_jump_in_a_flight() {
    let world = world().await;
    let mut daemon = world.node("a").await;
    for jump in JUMPS {
        daemon.set_clocks(0, 0);
        daemon.log_in(ACCOUNT).await;
        let gate = Gate::new();
        world.issuer.script(Answer::HoldAfter(gate.clone()));
        let callers = daemon.callers(ACCOUNT, 2).await;
        gate.wait_for_arrivals(1).await;
        daemon.set_clocks(jump, 0);
        world.checker.ran();
        gate.open();
        assert!(callers.join_all().await.iter().all(|answer| answer.as_ref().is_some_and(|it| it.status == 200)));
        all_is_well(&world, &mut daemon).await;
    }
    world.checker.report("clock: jump in a flight");
}

#[tokio::test]
async fn a_jump_and_back_in_a_flight() {
    let world = world().await;
    let mut daemon = world.node("a").await;
    for jump in JUMPS {
        daemon.log_in(ACCOUNT).await;
        daemon.stop_at(&["after_mark", "after_answer"]);
        daemon.set_clocks(jump, 0);
        let callers = daemon.callers(ACCOUNT, 2).await;
        daemon.stopped_at("after_mark").await;
        daemon.set_clocks(0, 0);
        daemon.go_on();
        assert!(callers.join_all().await.iter().all(|answer| answer.as_ref().is_some_and(|it| it.status == 200)));
        world.checker.ran();
        all_is_well(&world, &mut daemon).await;
    }
    world.checker.report("clock: jump before a flight and back in it");
}

/// The mark of a presentation that a crash cut off lies in another time.
#[tokio::test]
async fn a_jump_after_a_crash_in_a_flight() {
    let world = world().await;
    let mut daemon = world.node("a").await;
    for jump in JUMPS {
        daemon.set_clocks(0, 0);
        daemon.log_in(ACCOUNT).await;
        daemon.stop_at(&["after_mark"]);
        let callers = daemon.callers(ACCOUNT, 2).await;
        daemon.stopped_at("after_mark").await;
        daemon.crash().await;
        drop(callers);
        daemon.set_clocks(jump, 0);
        world.checker.ran();
        daemon.relaunch(&[ACCOUNT]).await;
        all_is_well(&world, &mut daemon).await;
    }
    world.checker.report("clock: jump after a crash in a flight");
}

/// Time passes at the server and on the wall clock, the monotonic one stands still, and so does the process.
async fn sleep_through(world: &World, daemon: &mut Node, jump: i64) {
    const ASLEEP: Duration = Duration::from_millis(300);
    daemon.stop_signal();
    sleep(ASLEEP).await;
    daemon.set_clocks(jump, -300);
    world.issuer.pass_time(Duration::from_millis(jump.unsigned_abs()));
    daemon.cont_signal();
}

#[tokio::test]
async fn suspended_in_a_flight() {
    let world = world().await;
    let mut daemon = world.node("a").await;
    for jump in [MINUTE, DAY, YEAR] {
        for answer in [Answer::HoldBefore, Answer::HoldAfter] {
            daemon.set_clocks(0, 0);
            daemon.log_in(ACCOUNT).await;
            let gate = Gate::new();
            world.issuer.script(answer(gate.clone()));
            let callers = daemon.callers(ACCOUNT, 2).await;
            gate.wait_for_arrivals(1).await;
            sleep_through(&world, &mut daemon, jump).await;
            gate.open();
            world.checker.ran();
            assert!(callers.join_all().await.iter().all(|answer| answer.as_ref().is_some_and(|it| it.status == 200)));
            all_is_well(&world, &mut daemon).await;
        }
    }
    world.checker.report("clock: suspended in a flight");
}

#[tokio::test]
async fn suspended_between_flights() {
    let world = world().await;
    let mut daemon = world.node("a").await;
    for jump in [MINUTE, DAY, YEAR] {
        daemon.set_clocks(0, 0);
        daemon.log_in(ACCOUNT).await;
        assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
        sleep_through(&world, &mut daemon, jump).await;
        world.checker.ran();
        all_is_well(&world, &mut daemon).await;
    }
    world.checker.report("clock: suspended between flights");
}

const HOUR: i64 = 60 * MINUTE;

/// How long after its refresh a token of one hour is asked for.
const LATER: i64 = 2 * HOUR;

/// How wrong clocks are, in milliseconds: some hours, as where the time zone is taken for another, and of 1970 and of
/// 2040, as without a battery and with a typing error.
fn wrong_clocks() -> [i64; 4] {
    const YEAR_2040: i64 = 2_208_988_800_000;
    let now = SystemClock::new().now().as_millis();
    [9 * HOUR, -9 * HOUR, MINUTE - now, YEAR_2040 - now]
}

/// How a token is asked for.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Plainly,
    WithMinValidity,
    AfterARestart,
}

/// A token is refreshed by a clock that is wrong by `then`, `LATER` passes by one that is wrong by `afterwards`, and
/// whoever asks is answered a token that is good by the server's clock, with one refresh.
async fn wrong_for_a_while(world: &World, daemon: &mut Node, then: i64, afterwards: i64) {
    for asked in [Asked::Plainly, Asked::WithMinValidity, Asked::AfterARestart] {
        daemon.set_wall_clock(then);
        daemon.log_in(ACCOUNT).await;
        assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
        let presented = world.presentations();
        daemon.set_wall_clock(afterwards);
        daemon.pass_time(LATER);
        world.checker.ran();
        match asked {
            Asked::Plainly => {
                daemon.get(ACCOUNT).await;
            }
            Asked::WithMinValidity => {
                daemon.get_good_for(ACCOUNT, 1800).await;
            }
            Asked::AfterARestart => {
                daemon.crash().await;
                daemon.relaunch(&[ACCOUNT]).await;
            }
        }
        let answer = daemon.get(ACCOUNT).await;
        assert_eq!(answer.status, 200, "{asked:?}, {then} then {afterwards}: {}", answer.text());
        let refreshes = world.presentations() - presented;
        assert_eq!(refreshes, 1, "{asked:?}, {then} then {afterwards}: one refresh is enough");
        assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    }
}

#[tokio::test]
async fn a_token_issued_by_a_wrong_clock_is_not_served_past_its_end() {
    let world = world().await;
    let mut daemon = world.node("a").await;
    for wrong in wrong_clocks() {
        wrong_for_a_while(&world, &mut daemon, wrong, 0).await;
    }
    world.checker.report("clock: wrong when a token is issued, right 2 h later");
}

#[tokio::test]
async fn a_token_is_not_served_past_its_end_by_a_clock_that_went_wrong() {
    let world = world().await;
    let mut daemon = world.node("a").await;
    for wrong in wrong_clocks() {
        wrong_for_a_while(&world, &mut daemon, 0, wrong).await;
    }
    world.checker.report("clock: right when a token is issued, wrong 2 h later");
}

#[tokio::test]
async fn a_clock_may_stay_wrong() {
    let world = world().await;
    let mut daemon = world.node("a").await;
    for wrong in wrong_clocks() {
        wrong_for_a_while(&world, &mut daemon, wrong, wrong).await;
    }
    world.checker.report("clock: as wrong when a token is issued as 2 h later");
}

/// The wall clock was ahead by less than the token's life and was set right: it shows a time at which the token could be
/// valid, and only the process that saw it issued knows better.
#[tokio::test]
async fn a_token_issued_by_a_clock_somewhat_ahead_is_not_served_past_its_end() {
    const AHEAD: i64 = 30 * MINUTE;
    const PAST_THE_END: i64 = 70 * MINUTE;
    let world = world().await;
    let mut daemon = world.node("a").await;
    for asked in [Asked::Plainly, Asked::WithMinValidity] {
        daemon.set_wall_clock(AHEAD);
        daemon.log_in(ACCOUNT).await;
        assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
        let presented = world.presentations();
        daemon.set_wall_clock(0);
        daemon.pass_time(PAST_THE_END);
        world.checker.ran();
        let answer = match asked {
            Asked::WithMinValidity => daemon.get_good_for(ACCOUNT, 60).await,
            Asked::Plainly | Asked::AfterARestart => daemon.get(ACCOUNT).await,
        };
        assert_eq!(answer.status, 200, "{asked:?}: {}", answer.text());
        let token = answer.json()["access_token"].as_str().unwrap().to_owned();
        let (age, lifetime) = world.issuer.age_and_lifetime(&token).unwrap();
        assert!(age < lifetime, "{asked:?}: a token of {lifetime:?} was answered when it was {age:?} old");
        assert_eq!(world.presentations() - presented, 1, "{asked:?}: one refresh is enough");
    }
    world.checker.report("clock: somewhat ahead when a token is issued, right 70 min later");
}
