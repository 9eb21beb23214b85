//! The provider fails, before and after it has rotated, and comes back to health.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    checker::Fate,
    support::issuer::{Answer, Gate, Raw},
    world::{Settings, World},
};

const ACCOUNT: &str = "me";

/// What the first caller is answered while the provider is ill, how often it then has been asked, and how the chain
/// stands afterwards.
struct Expected {
    status: u16,
    asked: usize,
    fate: Fate,
}

const ALIVE: fn(u16, usize) -> Expected = |status, asked| Expected { status, asked, fate: Fate::Alive };
const LOST: fn(u16, usize) -> Expected = |status, asked| Expected { status, asked, fate: Fate::Lost };

/// How an ill provider is made.
enum Ill {
    /// It does this to every request.
    Always(fn() -> Answer),
    /// To the first, and is well afterwards.
    Once(fn() -> Answer),
    /// It does not listen.
    Refused,
}

/// Asks an ill provider for a token, then a healthy one.
async fn drive(fault: &str, ill: Ill, reuse_grace: Duration, expected: Expected) {
    let world = World::with(Settings { request_timeout: "2s", reuse_grace, ..Settings::default() }).await;
    let mut daemon = world.node("a").await;
    daemon.log_in(ACCOUNT).await;
    match &ill {
        Ill::Always(answer) => world.issuer.always(Some(answer())),
        Ill::Once(answer) => world.issuer.script(answer()),
        Ill::Refused => world.issuer.refuse(true).await,
    }
    world.checker.ran();
    let answer = daemon.refresh(ACCOUNT).await;
    assert_eq!((answer.status, world.presentations()), (expected.status, expected.asked), "{}", answer.text());
    // The token from before is not worse for it.
    assert_eq!(daemon.get(ACCOUNT).await.status, 200);
    let line = daemon.line(ACCOUNT).await;
    if answer.status == 401 {
        assert_eq!(line["state"], "reauth_required", "{line}");
    } else if answer.status != 200 {
        assert!(line["last_error"].is_string(), "{line}");
    }

    world.issuer.always(None);
    if matches!(ill, Ill::Refused) {
        world.issuer.refuse(false).await;
    }
    // What a failed attempt leaves behind is in the record.
    daemon.crash().await;
    daemon.relaunch(&[ACCOUNT]).await;
    assert_eq!(daemon.settle(ACCOUNT).await, expected.fate);
    if expected.fate == Fate::Lost {
        let asked = world.presentations();
        assert_eq!(daemon.refresh(ACCOUNT).await.status, 401);
        assert_eq!(world.presentations(), asked, "a dead grant was presented");
        daemon.log_in(ACCOUNT).await;
        assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    }
    world.checker.report(fault);
}

const NONE: Duration = Duration::ZERO;
const GRACE: Duration = Duration::from_mins(10);

fn silence() -> Answer {
    Answer::Silence
}

fn rotated_and_silent() -> Answer {
    Answer::HoldAfter(Gate::new())
}

fn garbage() -> Raw {
    Raw::new(200, "text/html", "<html>please log in to the hotel's network</html>")
}

#[tokio::test]
async fn connection_refused() {
    drive("provider: connection refused", Ill::Refused, NONE, ALIVE(502, 0)).await;
}

#[tokio::test]
async fn reset_before_it_rotated() {
    drive("provider: reset, once", Ill::Once(|| Answer::ResetBefore), NONE, ALIVE(200, 2)).await;
    drive("provider: reset, always", Ill::Always(|| Answer::ResetBefore), NONE, ALIVE(502, 2)).await;
}

#[tokio::test]
async fn reset_after_it_rotated() {
    let ill = || Ill::Once(|| Answer::RotateThenReset);
    drive("provider: rotated, then reset", ill(), NONE, LOST(401, 2)).await;
    drive("provider: rotated, then reset, with grace", ill(), GRACE, ALIVE(200, 2)).await;
}

#[tokio::test]
async fn timeout_before_it_rotated() {
    drive("provider: timeout, once", Ill::Once(silence), NONE, ALIVE(200, 2)).await;
    drive("provider: timeout, always", Ill::Always(silence), NONE, ALIVE(504, 2)).await;
}

#[tokio::test]
async fn timeout_after_it_rotated() {
    drive("provider: rotated, then timeout", Ill::Once(rotated_and_silent), NONE, LOST(401, 2)).await;
    let fault = "provider: rotated, then timeout, with grace";
    drive(fault, Ill::Once(rotated_and_silent), GRACE, ALIVE(200, 2)).await;
}

#[tokio::test]
async fn too_many_requests() {
    let later = || Answer::Raw(Raw::error(429, "slow_down"));
    drive("provider: 429", Ill::Always(later), NONE, ALIVE(502, 3)).await;
    drive("provider: 429, once", Ill::Once(later), NONE, ALIVE(200, 2)).await;
}

#[tokio::test]
async fn unavailable() {
    let unavailable = || Answer::Raw(Raw::error(503, "temporarily_unavailable"));
    drive("provider: 503", Ill::Always(unavailable), NONE, ALIVE(502, 3)).await;
    let gateway = || Answer::Raw(Raw::new(503, "text/html", "<h1>503</h1>"));
    drive("provider: 503 of a gateway", Ill::Once(gateway), NONE, ALIVE(200, 2)).await;
}

/// Nobody asks before the time that the provider named, across a restart.
async fn retry_after(fault: &str, status: u16, code: &str) {
    let world = World::new().await;
    let mut daemon = world.node("a").await;
    daemon.log_in(ACCOUNT).await;
    let later = Raw::error(status, code).header("Retry-After", "20");
    world.issuer.script(Answer::Raw(later));
    world.checker.ran();
    let answer = daemon.refresh(ACCOUNT).await;
    assert_eq!((answer.status, world.presentations()), (502, 1), "{}", answer.text());
    assert!(answer.retry_after().is_some_and(|wait| wait > Duration::from_secs(15)), "{answer:?}");
    daemon.crash().await;
    daemon.relaunch(&[ACCOUNT]).await;
    let answer = daemon.refresh(ACCOUNT).await;
    assert_eq!((answer.status, world.presentations()), (429, 1), "{}", answer.text());
    // Twenty seconds of the wall clock later.
    daemon.crash().await;
    daemon.set_clocks(20_000, 0);
    daemon.relaunch(&[ACCOUNT]).await;
    assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    world.checker.report(fault);
}

#[tokio::test]
async fn too_many_requests_with_a_date_to_come_back() {
    retry_after("provider: 429 with Retry-After", 429, "slow_down").await;
}

#[tokio::test]
async fn unavailable_with_a_date_to_come_back() {
    retry_after("provider: 503 with Retry-After", 503, "temporarily_unavailable").await;
}

#[tokio::test]
async fn garbage_before_and_after_it_rotated() {
    drive("provider: garbage", Ill::Always(|| Answer::Raw(garbage())), NONE, ALIVE(502, 2)).await;
    drive("provider: half an answer", Ill::Always(|| Answer::Cut(garbage())), NONE, ALIVE(502, 2)).await;
    let ill = || Ill::Once(|| Answer::RotateThenRaw(garbage()));
    drive("provider: rotated, then garbage", ill(), NONE, LOST(401, 2)).await;
    drive("provider: rotated, then garbage, with grace", ill(), GRACE, ALIVE(200, 2)).await;
}

/// Down for the whole rest of a token's life: it is served to the last second, and the chain lives on.
#[tokio::test]
async fn down_for_the_rest_of_a_tokens_life() {
    let world = World::new().await;
    let mut daemon = world.node("a").await;
    daemon.log_in(ACCOUNT).await;
    world.issuer.refuse(true).await;
    world.checker.ran();
    for left in [3000, 600, 60, 20] {
        daemon.set_clocks((3600 - left) * 1000, 0);
        assert_eq!(daemon.get(ACCOUNT).await.status, 200, "{left} s before its end");
    }
    daemon.set_clocks(3600 * 1000, 0);
    sleep(Duration::from_millis(10)).await;
    assert_eq!(daemon.get(ACCOUNT).await.status, 502);
    world.issuer.refuse(false).await;
    assert_eq!(daemon.get(ACCOUNT).await.status, 200);
    assert_eq!(daemon.settle(ACCOUNT).await, Fate::Alive);
    world.checker.report("provider: down for the rest of a token's life");
}
