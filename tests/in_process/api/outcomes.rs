//! Every class of outcome by table: what a provider answers, what the caller gets, and what the store holds after.

use std::time::Duration;

use credproxy::store::Outcome;
use tokio::task::JoinSet;

use crate::{
    api::world::World,
    support::issuer::{Answer as Scripted, Raw},
};

/// What a caller and the store are left with.
struct Expected {
    status: u16,
    code: &'static str,
    /// `Retry-After` in seconds; `None` for no header.
    retry_after: Option<u64>,
    outcome: Outcome,
    /// The provider's code as the store and `status` show it.
    shown: Option<&'static str>,
    /// How often the refresh token was sent.
    presentations: usize,
}

fn dead(shown: Option<&'static str>) -> Expected {
    Expected {
        status: 401,
        code: "REAUTH_REQUIRED",
        retry_after: None,
        outcome: Outcome::Final,
        shown,
        presentations: 1,
    }
}

fn failed(outcome: Outcome, shown: Option<&'static str>, retry_after: u64, presentations: usize) -> Expected {
    Expected { status: 502, code: "REFRESH_FAILED", retry_after: Some(retry_after), outcome, shown, presentations }
}

fn configuration(shown: &'static str) -> Expected {
    failed(Outcome::Configuration, Some(shown), 300, 1)
}

/// Three times in all: the token was not spent.
fn later(shown: Option<&'static str>) -> Expected {
    failed(Outcome::NotSpent, shown, 30, 3)
}

fn refused(shown: Option<&'static str>) -> Expected {
    failed(Outcome::Refused, shown, 30, 1)
}

/// Twice: a caller asked for a new token.
fn ambiguous(shown: Option<&'static str>) -> Expected {
    failed(Outcome::Ambiguous, shown, 30, 2)
}

fn raw(status: u16, content_type: &str, body: &str) -> Scripted {
    Scripted::Raw(Raw::new(status, content_type, body))
}

fn json(status: u16, body: &str) -> Scripted {
    raw(status, "application/json", body)
}

fn html(status: u16) -> Scripted {
    raw(status, "text/html", "<html><body>401 unauthorized invalid_grant</body></html>")
}

fn error(status: u16, code: &str) -> Scripted {
    Scripted::Raw(Raw::error(status, code))
}

fn table() -> Vec<(&'static str, Scripted, Expected)> {
    let form = "application/x-www-form-urlencoded";
    vec![
        ("RFC 6749", error(400, "invalid_grant"), dead(Some("invalid_grant"))),
        ("401 with invalid_grant", error(401, "invalid_grant"), dead(Some("invalid_grant"))),
        ("Atlassian: 403 with invalid_grant", error(403, "invalid_grant"), dead(Some("invalid_grant"))),
        ("200 with invalid_grant", error(200, "invalid_grant"), dead(Some("invalid_grant"))),
        ("500 with invalid_grant", error(500, "invalid_grant"), dead(Some("invalid_grant"))),
        ("the provider's own code", json(200, r#"{"ok":false,"error":"token_revoked"}"#), dead(Some("token_revoked"))),
        ("form-encoded", raw(400, form, "error=invalid_grant&error_description=x"), dead(Some("invalid_grant"))),
        ("an object for an error", json(400, r#"{"error":{"code":"invalid_grant"}}"#), dead(Some("invalid_grant"))),
        ("invalid_client", error(401, "invalid_client"), configuration("invalid_client")),
        ("unauthorized_client", error(400, "unauthorized_client"), configuration("unauthorized_client")),
        ("unsupported_grant_type", error(400, "unsupported_grant_type"), configuration("unsupported_grant_type")),
        ("invalid_scope", error(400, "invalid_scope"), configuration("invalid_scope")),
        ("invalid_request", error(400, "invalid_request"), configuration("invalid_request")),
        ("invalid_client with 200", error(200, "invalid_client"), configuration("invalid_client")),
        ("429 empty", raw(429, "", ""), later(None)),
        ("408", raw(408, "", ""), later(None)),
        ("slow_down", error(400, "slow_down"), later(Some("slow_down"))),
        ("temporarily_unavailable", error(400, "temporarily_unavailable"), later(Some("temporarily_unavailable"))),
        ("503 with an error", error(503, "server_error"), later(Some("server_error"))),
        (
            "503 with Retry-After",
            Scripted::Raw(Raw::error(503, "busy").header("retry-after", "90")),
            failed(Outcome::NotSpent, Some("busy"), 90, 1),
        ),
        (
            "429 for a day",
            Scripted::Raw(Raw::new(429, "", "").header("retry-after", "86400")),
            failed(Outcome::NotSpent, None, 3600, 1),
        ),
        ("Glewlwyd: 400 empty", raw(400, "", ""), refused(None)),
        ("400 of HTML", html(400), refused(None)),
        ("401 of HTML", html(401), refused(None)),
        ("403 with an unknown code", error(403, "access_denied"), refused(Some("access_denied"))),
        ("404", html(404), refused(None)),
        (
            "a redirect",
            Scripted::Raw(Raw::new(302, "", "").header("location", "http://127.0.0.1:9/token")),
            refused(None),
        ),
        ("307", Scripted::Raw(Raw::new(307, "", "").header("location", "/token")), refused(None)),
        (
            "GitHub: 200 with an unknown error",
            error(200, "incorrect_client_credentials"),
            refused(Some("incorrect_client_credentials")),
        ),
        ("a code that names what never leaves", error(400, "bad_refresh_token"), refused(None)),
        ("prose for a code", json(400, r#"{"error":"401 unauthorized: invalid_grant"}"#), refused(None)),
        ("tokens beside an error", json(200, r#"{"access_token":"canary-at-x","error":"odd"}"#), refused(Some("odd"))),
        ("500", error(500, "server_error"), ambiguous(Some("server_error"))),
        ("502 of HTML", html(502), ambiguous(None)),
        ("503 of HTML", html(503), ambiguous(None)),
        ("504 empty", raw(504, "", ""), ambiguous(None)),
        ("200 of HTML", html(200), ambiguous(None)),
        ("200 empty", raw(200, "", ""), ambiguous(None)),
        ("204", raw(204, "", ""), ambiguous(None)),
        ("200 without a token", json(200, "{}"), ambiguous(None)),
        ("200 with an empty token", json(200, r#"{"access_token":""}"#), ambiguous(None)),
        ("200 of broken JSON", json(200, r#"{"access_token":"canary-at-x""#), ambiguous(None)),
        ("50 MB", Scripted::Huge { status: 200, bytes: 50_000_000 }, ambiguous(None)),
        ("a reset", Scripted::ResetBefore, ambiguous(None)),
    ]
}

#[tokio::test]
async fn every_answer_of_a_provider_has_its_class() {
    let mut cases = JoinSet::new();
    let table = table();
    assert!(table.len() >= 30);
    for (name, answer, expected) in table {
        cases.spawn(async move {
            let world = World::new().await;
            let before = world.host.get("/v1/tokens/corp").await;
            world.issuer.always(Some(answer));
            let got = world.refresh().await;
            assert_eq!((got.status, got.code().as_str()), (expected.status, expected.code), "{name}");
            let retry_after = got.header("retry-after").map(|seconds| seconds.parse::<u64>().unwrap());
            assert_eq!(retry_after, expected.retry_after, "{name}");
            assert_eq!(world.issuer.presentations().len(), expected.presentations, "{name}");
            let (refresh_state, generation) = world.kept().await;
            let attempt = refresh_state.attempt.unwrap();
            assert_eq!((attempt.outcome, attempt.code.as_deref()), (expected.outcome, expected.shown), "{name}");
            assert_eq!(refresh_state.dead.is_some(), expected.outcome == Outcome::Final, "{name}");
            assert_eq!(refresh_state.presented.is_some(), expected.outcome == Outcome::Ambiguous, "{name}");
            assert_eq!(generation, 1, "{name}");
            let after = world.host.get("/v1/tokens/corp").await;
            assert_eq!((after.access_token(), after.etag()), (before.access_token(), before.etag()), "{name}");
            let again = world.refresh().await;
            let code = if expected.outcome == Outcome::Final { "REAUTH_REQUIRED" } else { "RATE_LIMITED" };
            assert_eq!(
                (again.code().as_str(), world.issuer.presentations().len()),
                (code, expected.presentations),
                "{name}"
            );
        });
    }
    while let Some(case) = cases.join_next().await {
        case.unwrap();
    }
}

#[tokio::test]
async fn a_provider_that_keeps_silent_or_drips_is_a_gateway_timeout() {
    for answer in
        [Scripted::Silence, Scripted::Drip(Raw::new(200, "application/json", "{\"access_token\":\"canary-at-x\"}"))]
    {
        let world = World::with(Duration::from_secs(30), Duration::from_secs(1)).await;
        world.issuer.always(Some(answer));
        let got = world.refresh().await;
        assert_eq!((got.status, got.code().as_str()), (504, "REFRESH_FAILED"));
        assert_eq!(world.issuer.presentations().len(), 2);
        assert!(world.kept().await.0.presented.is_some());
        world.host.get("/v1/tokens/corp").await.access_token();
    }
}

#[tokio::test]
async fn a_lost_answer_after_the_rotation_is_told_as_such() {
    let world = World::new().await;
    world.issuer.script(Scripted::RotateThenReset);
    let got = world.refresh().await;
    assert_eq!((got.status, got.code().as_str()), (401, "REAUTH_REQUIRED"));
    assert!(got.json()["detail"].as_str().unwrap().contains("lost"));
    world.host.get("/v1/tokens/corp").await.access_token();
}

#[tokio::test]
async fn within_a_grace_window_a_lost_answer_is_won_back() {
    let world = World::new().await;
    world.issuer.set_grace(Duration::from_mins(1));
    world.issuer.script(Scripted::RotateThenReset);
    let first = world.refresh().await.access_token();
    assert_eq!(world.host.get("/v1/tokens/corp").await.access_token(), first);
    assert_eq!(world.kept().await.1, 2);
}

#[tokio::test]
async fn every_form_of_success_is_understood() {
    let form = "application/x-www-form-urlencoded";
    for (name, answer, lives) in [
        ("a number", json(200, r#"{"access_token":"canary-at-x","expires_in":3600}"#), true),
        ("a string", json(200, r#"{"access_token":"canary-at-x","expires_in":"3600"}"#), true),
        ("a fraction", json(200, r#"{"access_token":"canary-at-x","expires_in":3599.5}"#), true),
        ("nothing", json(200, r#"{"access_token":"canary-at-x"}"#), false),
        ("zero", json(200, r#"{"access_token":"canary-at-x","expires_in":0}"#), false),
        ("a negative", json(200, r#"{"access_token":"canary-at-x","expires_in":-5}"#), false),
        ("null", json(200, r#"{"access_token":"canary-at-x","expires_in":null,"refresh_token":null}"#), false),
        ("an empty successor", json(200, r#"{"access_token":"canary-at-x","refresh_token":""}"#), false),
        ("201", json(201, r#"{"access_token":"canary-at-x","token_type":"bearer"}"#), false),
        ("a form", raw(200, form, "access_token=canary-at-x&expires_in=3600&token_type=bearer"), true),
        ("no error", json(200, r#"{"access_token":"canary-at-x","error":null,"ok":true}"#), false),
        ("nested", json(200, r#"{"access_token":"canary-at-x","authed_user":{"refresh_token":"canary-rt-x"}}"#), false),
    ] {
        let world = World::with(Duration::ZERO, Duration::from_secs(15)).await;
        world.issuer.script(answer);
        let got = world.refresh().await;
        assert_eq!(got.access_token(), "canary-at-x", "{name}");
        assert_eq!(got.json().get("expiry").is_some(), lives, "{name}");
        // The refresh token was not replaced, and is still good for one more.
        world.refresh().await.access_token();
        assert_eq!((world.issuer.reused(), world.kept().await.1), (0, 3), "{name}");
    }
}
