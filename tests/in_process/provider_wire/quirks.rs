//! What known providers answer to a refresh, in the shapes that were recorded of them, and what becomes of it.

use std::time::Duration;

use credproxy::{
    dialect::{AnswerForm, Dialect, MemberNames},
    grant::{Grant, SanitizedToken},
    provider::{Provider as _, Rules, oauth2::Settings},
    refresh::outcome::{Classified, classify},
    store::Outcome,
};
use serde_json::{Value, json};

use crate::{
    provider_wire::{FORM, HTML, JSON, NOW, grant, provider, settings},
    support::issuer::{Answer, Issuer, Raw},
};

/// The grant's refresh token in all of these.
const PRESENTED: &str = "canary-rt-presented";

/// What a refresh of a provider comes to that speaks so and answers this.
async fn outcome(issuer: &Issuer, dialect: Dialect, rules: Rules, answer: &Raw) -> Result<Grant, Outcome> {
    issuer.script(Answer::Raw(answer.clone()));
    let provider = provider(Settings { dialect, rules, ..settings(&issuer.token_endpoint()) });
    let current = grant("canary-at-current", Some(PRESENTED));
    match classify(provider.refresh(&current).await, provider.rules(), &current) {
        Classified::Success(tokens) => Ok(current.refreshed(*tokens, NOW)),
        Classified::Failure(failure) => {
            assert!(!format!("{failure:?}").contains("canary"), "{failure:?}");
            Err(failure.outcome)
        }
    }
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn camel() -> Dialect {
    let names = MemberNames::new([
        ("access_token", "accessToken"),
        ("refresh_token", "refreshToken"),
        ("token_type", "tokenType"),
        ("expires_in", "expiresIn"),
        ("id_token", "idToken"),
    ]);
    Dialect { names: names.unwrap(), ..Dialect::default() }
}

fn slack() -> Dialect {
    let answers = AnswerForm { path: texts(&["authed_user"]), ..AnswerForm::default() };
    Dialect { answers, ..Dialect::default() }
}

/// A refusal: whose it is, how that provider speaks, the codes and statuses that mean a dead grant there, the answer's
/// status, content type and body, and what it comes to.
type Refusal =
    (&'static str, fn() -> Dialect, &'static [&'static str], &'static [u16], u16, &'static str, &'static str, Outcome);

const PLAIN: fn() -> Dialect = Dialect::default;
const GITHUB: &[&str] = &["bad_refresh_token"];
const OPENAI: &[&str] = &["refresh_token_expired", "refresh_token_reused", "refresh_token_invalidated"];
const AWS: &[&str] = &["InvalidGrantException", "ExpiredTokenException"];
const SLACK: &[&str] = &["invalid_refresh_token", "token_revoked"];

const REFUSALS: &[Refusal] = &[
    (
        "GitHub",
        PLAIN,
        GITHUB,
        &[],
        200,
        JSON,
        r#"{"error":"bad_refresh_token","error_uri":"https://d.example"}"#,
        Outcome::Final,
    ),
    ("GitHub", PLAIN, GITHUB, &[], 200, FORM, "error=bad_refresh_token&error_description=canary-prose", Outcome::Final),
    ("GitHub", PLAIN, &[], &[], 200, JSON, r#"{"error":"bad_refresh_token"}"#, Outcome::Refused),
    ("Slack", slack, SLACK, &[], 200, JSON, r#"{"ok":false,"error":"invalid_refresh_token"}"#, Outcome::Final),
    ("Slack", slack, SLACK, &[], 429, JSON, r#"{"ok":false,"error":"ratelimited"}"#, Outcome::NotSpent),
    ("Slack", slack, SLACK, &[], 200, JSON, r#"{"ok":false,"error":"fatal_error"}"#, Outcome::Refused),
    ("Zoho", PLAIN, &["invalid_code"], &[], 200, JSON, r#"{"error":"invalid_code"}"#, Outcome::Final),
    (
        "OpenAI",
        PLAIN,
        OPENAI,
        &[],
        401,
        JSON,
        r#"{"error":{"message":"canary-rt-presented was used","type":"invalid_request_error","code":"refresh_token_reused"}}"#,
        Outcome::Final,
    ),
    (
        "OpenAI",
        PLAIN,
        OPENAI,
        &[],
        400,
        JSON,
        r#"{"code":"refresh_token_expired","message":"canary-prose"}"#,
        Outcome::Final,
    ),
    ("OpenAI", PLAIN, OPENAI, &[401], 401, HTML, "<html>canary-prose</html>", Outcome::Final),
    ("OpenAI", PLAIN, OPENAI, &[401], 400, JSON, r#"{"error":{"code":"invalid_client"}}"#, Outcome::Configuration),
    (
        "xAI",
        PLAIN,
        &[],
        &[],
        400,
        JSON,
        r#"{"error":"invalid_grant","error_description":"Refresh token has been revoked"}"#,
        Outcome::Final,
    ),
    ("xAI", PLAIN, &[], &[], 403, JSON, r#"{"error":"The plan does not include this"}"#, Outcome::Refused),
    (
        "Atlassian",
        PLAIN,
        &[],
        &[],
        403,
        JSON,
        r#"{"error":"invalid_grant","error_description":"Unknown or invalid refresh token."}"#,
        Outcome::Final,
    ),
    (
        "Entra",
        PLAIN,
        &[],
        &[],
        400,
        JSON,
        r#"{"error":"invalid_grant","error_description":"AADSTS700082: canary-prose","error_codes":[700082]}"#,
        Outcome::Final,
    ),
    (
        "Google",
        PLAIN,
        &[],
        &[],
        400,
        JSON,
        r#"{"error":"invalid_grant","error_subtype":"invalid_rapt"}"#,
        Outcome::Final,
    ),
    (
        "Anthropic",
        PLAIN,
        &[],
        &[],
        400,
        JSON,
        r#"{"error":"invalid_grant","error_description":"Refresh token not found or invalid"}"#,
        Outcome::Final,
    ),
    ("Anthropic", PLAIN, &[], &[], 429, HTML, "<html>canary-prose</html>", Outcome::NotSpent),
    (
        "AWS",
        camel,
        AWS,
        &[],
        400,
        JSON,
        r#"{"error":"invalid_grant","error_description":"canary-prose"}"#,
        Outcome::Final,
    ),
    ("AWS", camel, AWS, &[], 400, JSON, r#"{"error":"ExpiredTokenException"}"#, Outcome::Final),
    (
        "AWS",
        camel,
        AWS,
        &[],
        400,
        JSON,
        r#"{"__type":"com.amazonaws.ssooidc#InvalidGrantException","message":"canary-prose"}"#,
        Outcome::Final,
    ),
    ("AWS", camel, &[], &[], 400, JSON, r#"{"__type":"InvalidGrantException"}"#, Outcome::Refused),
    ("AWS", camel, AWS, &[], 401, JSON, r#"{"error":"invalid_client"}"#, Outcome::Configuration),
    ("Qwen", PLAIN, &[], &[], 429, JSON, r#"{"error":"slow_down"}"#, Outcome::NotSpent),
    ("Glewlwyd", PLAIN, &[], &[], 400, "", "", Outcome::Refused),
    ("other names", camel, &[], &[], 200, JSON, r#"{"token":"canary-at"}"#, Outcome::Ambiguous),
];

#[tokio::test]
async fn refusals_are_sorted_as_their_providers_mean_them() {
    let issuer = Issuer::start().await;
    for (of, dialect, codes, statuses, status, content_type, body, expected) in REFUSALS {
        let dead_grant_codes = texts(codes);
        let rules = Rules { dead_grant_codes, dead_grant_statuses: statuses.to_vec(), ..Rules::default() };
        let answer = Raw::new(*status, content_type, *body);
        assert_eq!(outcome(&issuer, dialect(), rules, &answer).await.unwrap_err(), *expected, "{of}: {body}");
    }
}

/// A token, and what callers see of it.
fn seen(grant: &Grant, expose: &[&str]) -> Value {
    let view = SanitizedToken::of(grant, &texts(expose)).json();
    let text = str::from_utf8(&view).unwrap();
    assert!(!text.contains("canary-rt") && !text.contains("efresh"), "{text}");
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn the_tokens_of_slacks_user_are_told_from_those_of_its_bot() {
    let issuer = Issuer::start().await;
    let login = json!({"ok": true, "app_id": "A1", "access_token": "canary-at-bot", "token_type": "bot",
        "scope": "commands", "bot_user_id": "U0", "refresh_token": "canary-rt-bot", "expires_in": 1,
        "team": {"id": "T1", "name": "corp"}, "enterprise": null,
        "authed_user": {"id": "U1", "scope": "read write", "access_token": "canary-at-user", "token_type": "user",
            "refresh_token": "canary-rt-user", "expires_in": 43200}});
    let refreshed = json!({"ok": true, "app_id": "A1", "access_token": "canary-at-user", "token_type": "user",
        "scope": "read write", "refresh_token": "canary-rt-user", "expires_in": 43200, "team": {"id": "T1"}});
    let expose = ["app_id", "bot_user_id", "id", "authed_user", "team", "authed_user.id", "ok"];
    for (answer, extra) in [
        (login, json!({"app_id": "A1", "bot_user_id": "U0", "id": "U1", "ok": true})),
        (refreshed, json!({"app_id": "A1", "ok": true})),
    ] {
        let grant = outcome(&issuer, slack(), Rules::default(), &Raw::json(200, &answer)).await.unwrap();
        assert_eq!(grant.expires_at, Some(NOW.plus(Duration::from_hours(12))));
        let token = grant.refresh_token.as_ref().unwrap();
        assert!(token.occurs_in("canary-rt-user") && grant.extra.members()["team"]["id"] == "T1");
        assert!(!Value::Object(grant.extra.members().clone()).to_string().contains("canary"));
        let mut expected = json!({"access_token": "canary-at-user", "token_type": "user", "scope": "read write",
            "expiry": NOW.plus(Duration::from_hours(12)).as_secs()});
        expected.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        assert_eq!(seen(&grant, &expose), expected);
    }
}

#[tokio::test]
async fn the_tokens_of_aws_are_found_by_its_own_names() {
    let issuer = Issuer::start().await;
    let answer = json!({"accessToken": "canary-at-1", "expiresIn": 28800, "refreshToken": "canary-rt-1",
        "idToken": "canary-id", "tokenType": "Bearer", "originSessionId": "s"});
    let grant = outcome(&issuer, camel(), Rules::default(), &Raw::json(200, &answer)).await.unwrap();
    assert!(grant.refresh_token.as_ref().unwrap().occurs_in("canary-rt-1"));
    let expected = json!({"access_token": "canary-at-1", "token_type": "Bearer", "scope": "read write",
        "expiry": NOW.plus(Duration::from_hours(8)).as_secs(), "id_token": "canary-id"});
    assert_eq!(seen(&grant, &["refreshToken", "accessToken"]), expected);

    // botocore drops a refresh token that is not sent again; here it is kept.
    let answer = json!({"accessToken": "canary-at-2", "expiresIn": 28800, "refreshToken": null});
    let grant = outcome(&issuer, camel(), Rules::default(), &Raw::json(200, &answer)).await.unwrap();
    assert!(grant.refresh_token.unwrap().occurs_in(PRESENTED));
}

#[tokio::test]
async fn a_token_of_salesforce_lives_as_long_as_the_configuration_says() {
    let issuer = Issuer::start().await;
    let answer = Raw::json(
        200,
        &json!({"access_token": "canary-at", "instance_url": "https://corp.example",
        "id": "https://login.example/id/1", "token_type": "Bearer", "issued_at": "1700000000000", "signature": "x"}),
    );
    let answers = AnswerForm { default_lifetime: Some(Duration::from_hours(2)), ..AnswerForm::default() };
    let assuming = Dialect { answers, ..Dialect::default() };
    let grant = outcome(&issuer, assuming, Rules::default(), &answer).await.unwrap();
    assert_eq!(grant.expires_at, Some(NOW.plus(Duration::from_hours(2))));
    assert_eq!(seen(&grant, &["instance_url"])["instance_url"], "https://corp.example");
    let grant = outcome(&issuer, Dialect::default(), Rules::default(), &answer).await.unwrap();
    assert_eq!(grant.expires_at, None);
}
