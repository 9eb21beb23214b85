//! What is made of every answer.

use std::time::Duration;

use credproxy::{
    grant::Lifetime,
    provider::{Body, Provider as _, Reply},
};

use crate::{
    provider_wire::{FORM, HTML, JSON, class, grant, provider, refresh, settings},
    support::issuer::{Answer, Issuer, Outcome, Raw},
};

/// Status, content type, body, and what is to be made of it.
const ANSWERS: &[(u16, &str, &str, &str)] = &[
    // Tokens.
    (200, JSON, r#"{"access_token":"a","token_type":"bearer","expires_in":3600}"#, "200 issued"),
    (201, JSON, r#"{"access_token":"a","refresh_token":"r"}"#, "201 issued"),
    (200, JSON, r#"{"access_token":"a","refresh_token":""}"#, "200 issued"),
    (200, JSON, r#"{"access_token":"a","refresh_token":null}"#, "200 issued"),
    (200, "", r#"{"access_token":"a"}"#, "200 issued"),
    (200, HTML, "\u{feff} \r\n{\"access_token\":\"a\"}\n", "200 issued"),
    (200, JSON, r#"{"access_token":"a","error":null}"#, "200 issued"),
    (200, JSON, r#"{"access_token":"a","error":"","ok":true}"#, "200 issued"),
    (200, JSON, r#"{"access_token":"a","error":false,"code":"0"}"#, "200 issued"),
    (200, JSON, r#"{"access_token":"x","access_token":"a"}"#, "200 issued"),
    (200, FORM, "access_token=a&expires_in=28800&refresh_token=r&scope=&token_type=bearer", "200 issued"),
    (200, "text/plain", "access_token=a&scope=repo%2Cgist", "200 issued"),
    // Errors with the statuses of the standard.
    (
        400,
        JSON,
        r#"{"error":"invalid_grant","error_description":"Token has been expired or revoked."}"#,
        "400 error invalid_grant",
    ),
    (401, JSON, r#"{"error":"invalid_client"}"#, "401 error invalid_client"),
    (
        403,
        JSON,
        r#"{"error":"invalid_grant","error_description":"Unknown or invalid refresh token."}"#,
        "403 error invalid_grant",
    ),
    (429, JSON, r#"{"error":"slow_down"}"#, "429 error slow_down"),
    (503, JSON, r#"{"error":"temporarily_unavailable"}"#, "503 error temporarily_unavailable"),
    (400, FORM, "error=invalid_grant&error_description=no+way", "400 error invalid_grant"),
    // Errors with status 200: GitHub in both forms, Slack, Zoho; and an error beside a token.
    (200, JSON, r#"{"error":"bad_refresh_token","error_uri":"https://docs.example"}"#, "200 error bad_refresh_token"),
    (
        200,
        FORM,
        "error=bad_refresh_token&error_description=The+refresh+token+is+invalid",
        "200 error bad_refresh_token",
    ),
    (200, JSON, r#"{"ok":false,"error":"invalid_refresh_token"}"#, "200 error invalid_refresh_token"),
    (200, JSON, r#"{"ok":false}"#, "200 error "),
    (200, JSON, r#"{"access_token":"a","error":"invalid_grant"}"#, "200 error invalid_grant"),
    (200, JSON, r#"{"access_token":"a","ok":false}"#, "200 error "),
    // Errors of other forms.
    (
        401,
        JSON,
        r#"{"error":{"message":"used","type":"invalid_request_error","param":null,"code":"refresh_token_reused"}}"#,
        "401 error refresh_token_reused",
    ),
    (401, JSON, r#"{"error":{"message":"m","type":"invalid_grant","code":null}}"#, "401 error invalid_grant"),
    (400, JSON, r#"{"error":{"error":"invalid_grant"}}"#, "400 error invalid_grant"),
    (400, JSON, r#"{"error":{"code":400,"status":"INVALID_ARGUMENT"}}"#, "400 error "),
    (401, JSON, r#"{"code":"refresh_token_expired","message":"m"}"#, "401 error refresh_token_expired"),
    (500, JSON, r#"{"error":true}"#, "500 error "),
    (400, JSON, r#"{"error":["invalid_grant"]}"#, "400 error "),
    (400, JSON, r#"{"error":"Your token canary is no good <b>"}"#, "400 error "),
    // Neither.
    (400, "", "", "400 unreadable"),
    (400, JSON, "{}", "400 unreadable"),
    (400, JSON, r#"{"access_token":"a"}"#, "400 unreadable"),
    (502, HTML, "<html><a href=\"/?x&error=invalid_grant\">bad gateway</a></html>", "502 unreadable"),
    (200, HTML, "<html>log in</html>", "200 unreadable"),
    (200, HTML, "/page?x&error=invalid_grant is what you get", "200 unreadable"),
    (200, "", "", "200 unreadable"),
    (204, "", "", "204 unreadable"),
    (200, JSON, "{}", "200 unreadable"),
    (200, JSON, "null", "200 unreadable"),
    (200, JSON, r#"[{"access_token":"a"}]"#, "200 unreadable"),
    (200, JSON, r#""access_token""#, "200 unreadable"),
    (200, JSON, r#"{"access_token":"a"#, "200 unreadable"),
    (200, JSON, r#"{"access_token":""}"#, "200 unreadable"),
    (200, JSON, r#"{"access_token":null}"#, "200 unreadable"),
    (200, JSON, r#"{"access_token":7}"#, "200 unreadable"),
    (200, JSON, r#"{"access_token":"a\nb"}"#, "200 unreadable"),
    (200, JSON, r#"{"access_token":"é"}"#, "200 unreadable"),
    (200, JSON, r#"{"access_token":"my_refresh_token"}"#, "200 unreadable"),
    (200, JSON, r#"{"access_token":"a","refresh_token":"r\u0000"}"#, "200 unreadable"),
    (200, JSON, r#"{"access_token":"a","refresh_token":7}"#, "200 unreadable"),
    (200, JSON, r#"{"accessToken":"a"}"#, "200 unreadable"),
];

#[tokio::test]
async fn every_known_form_of_an_answer_is_told_apart() {
    let issuer = Issuer::start().await;
    for (status, content_type, body, expected) in ANSWERS {
        issuer.script(Answer::Raw(Raw::new(*status, content_type, *body)));
        let reply = refresh(&issuer, settings(&issuer.token_endpoint())).await;
        assert_eq!(class(&reply), *expected, "{status} {content_type} {body}");
    }
}

#[tokio::test]
async fn an_answer_that_is_nested_without_end_is_unreadable() {
    let issuer = Issuer::start().await;
    let body = format!("{{\"access_token\":\"a\",\"x\":{}", "[".repeat(500_000));
    issuer.script(Answer::Raw(Raw::new(200, JSON, body)));
    assert_eq!(class(&refresh(&issuer, settings(&issuer.token_endpoint())).await), "200 unreadable");
}

#[tokio::test]
async fn a_rotating_server_is_refreshed_along_its_chain() {
    let issuer = Issuer::start().await;
    let provider = provider(settings(&issuer.token_endpoint()));
    let (access, first) = issuer.new_grant();
    let mut current = grant(&access, Some(&first));
    for generation in 2..5 {
        let Reply::Answered { status: 200, body: Body::Issued(tokens), retry_after: None } =
            provider.refresh(&current).await
        else {
            panic!("no tokens");
        };
        assert_eq!(tokens.lifetime, Lifetime::In(Duration::from_hours(1)));
        assert!(tokens.refresh_token.is_some());
        current = current.refreshed(*tokens, credproxy::clock::Timestamp::from_secs(1_700_000_000));
        assert_eq!(current.version.generation, generation);
    }
    assert!(issuer.presentations().iter().all(|seen| seen.outcome == Outcome::Rotated));
    assert_eq!((issuer.presentations().len(), issuer.reused()), (3, 0));
}

#[tokio::test]
async fn the_error_code_of_an_answer_that_quotes_the_refresh_token_is_dropped() {
    let issuer = Issuer::start().await;
    let (access, token) = issuer.new_grant();
    issuer.script(Answer::Raw(Raw::error(400, &format!("bad_{token}"))));
    let reply = provider(settings(&issuer.token_endpoint())).refresh(&grant(&access, Some(&token))).await;
    assert_eq!(class(&reply), "400 error ");
    assert!(!format!("{reply:?}").contains("canary"), "{reply:?}");
}

#[tokio::test]
async fn retry_after_is_handed_on() {
    let issuer = Issuer::start().await;
    for (text, expected) in
        [("7", Some(Duration::from_secs(7))), ("Thu, 01 Jan 1970 00:00:00 GMT", Some(Duration::ZERO)), ("later", None)]
    {
        issuer.script(Answer::Raw(Raw::error(429, "slow_down").header("Retry-After", text)));
        let reply = refresh(&issuer, settings(&issuer.token_endpoint())).await;
        let Reply::Answered { retry_after, .. } = reply else { panic!("{reply:?}") };
        assert_eq!(retry_after, expected, "{text}");
    }
}
