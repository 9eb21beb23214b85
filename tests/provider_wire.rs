//! The provider client against real sockets: what it sends, and what it makes of every answer.
#![cfg(test)]

mod support;

use std::{
    io::{self, Write},
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use credproxy::{
    clock::SystemClock,
    grant::{Extra, Grant, GrantId, Issued, Lifetime},
    provider::{
        Body, DevicePoll, Flow, Provider as _, Reply, Rules,
        oauth2::{Authentication, Endpoints, LoginSettings, OAuth2, Settings, SetupError, endpoint},
    },
    registration::{Dialect, RequestForm, RequestFormat, SecretPlace},
    secret::{
        AccessToken, AuthorizationCode, ClientSecret, CodeVerifier, DeviceCode, LOGIN_BYTES, LoginState, RefreshToken,
    },
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::{Value, json};
use support::issuer::{Answer, Gate, Issuer, Outcome, Raw, Seen};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};
use url::Url;

/// Long enough to never end a test that does not ask for it.
const PATIENT: Duration = Duration::from_secs(20);
/// For the tests in which the time is up.
const IMPATIENT: Duration = Duration::from_millis(300);

fn settings(token_endpoint: &str) -> Settings {
    Settings {
        endpoints: Endpoints { token: Some(Url::parse(token_endpoint).unwrap()), ..Endpoints::default() },
        client_id: "client-1".into(),
        authentication: Authentication::None,
        dialect: Dialect::default(),
        request_timeout: PATIENT,
        ca_file: None,
        rules: Rules::default(),
        login: LoginSettings::default(),
    }
}

fn provider(settings: Settings) -> OAuth2 {
    OAuth2::new(settings, Arc::new(SystemClock::new())).unwrap()
}

fn grant(access: &str, refresh: Option<&str>) -> Grant {
    let issued = Issued {
        access_token: AccessToken::new(access.into()).unwrap(),
        token_type: None,
        lifetime: Lifetime::Unknown,
        scope: Some("read write".into()),
        refresh_token: refresh.map(|text| RefreshToken::new(text.into()).unwrap()),
        extra: Extra::default(),
    };
    Grant::new(GrantId::from_bytes([1; 16]), issued, credproxy::clock::Timestamp::from_secs(1_700_000_000))
}

/// A refresh with a token that the server knows.
async fn refresh(issuer: &Issuer, settings: Settings) -> Reply {
    let (access, token) = issuer.new_grant();
    provider(settings).refresh(&grant(&access, Some(&token))).await
}

/// A reply in a few words.
fn class(reply: &Reply) -> String {
    match reply {
        Reply::NotSent(why) => format!("not sent: {why}"),
        Reply::Lost { timed_out: true } => "timed out".into(),
        Reply::Lost { timed_out: false } => "broke off".into(),
        Reply::Answered { status, body: Body::Issued(_), .. } => format!("{status} issued"),
        Reply::Answered { status, body: Body::Error(code), .. } => format!("{status} error {}", code.as_str()),
        Reply::Answered { status, body: Body::Unreadable, .. } => format!("{status} unreadable"),
    }
}

const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

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

// What is sent.

const SECRET_PLACES: [SecretPlace; 3] = [SecretPlace::Body, SecretPlace::Basic, SecretPlace::BasicRaw];

const AWKWARD_ID: &str = "id:@+%/& 1";
const AWKWARD_SECRET: &str = "s:@+%/& 2~";

/// Settings of a client that proves itself by a secret, unless it has no place for one.
fn authenticating(place: Option<SecretPlace>, secret: &str, format: RequestFormat, settings: Settings) -> Settings {
    let secret = || Ok(ClientSecret::new(secret.into()).unwrap());
    let authentication = place.map_or(Authentication::None, |place| Authentication::Secret { place, secret: secret() });
    let requests = RequestForm { format, ..RequestForm::default() };
    Settings { authentication, dialect: Dialect { requests, ..Dialect::default() }, ..settings }
}

async fn sent(place: Option<SecretPlace>, format: RequestFormat) -> (Seen, String) {
    let issuer = Issuer::start().await;
    let (access, token) = issuer.new_grant();
    let settings = Settings { client_id: AWKWARD_ID.into(), ..settings(&issuer.token_endpoint()) };
    let settings = authenticating(place, AWKWARD_SECRET, format, settings);
    let reply = provider(settings).refresh(&grant(&access, Some(&token))).await;
    assert_eq!(class(&reply), "200 issued");
    let [seen] = <[Seen; 1]>::try_from(issuer.requests()).unwrap();
    (seen, token)
}

#[tokio::test]
async fn a_form_says_who_the_client_is_in_each_of_the_four_ways() {
    const ID: &str = "&client_id=id%3A%40%2B%25%2F%26+1";
    const SECRET: &str = "&client_secret=s%3A%40%2B%25%2F%26+2%7E";
    for (place, members, credentials) in [
        (None, ID.to_owned(), None),
        (Some(SecretPlace::Body), format!("{ID}{SECRET}"), None),
        (Some(SecretPlace::Basic), String::new(), Some("id%3A%40%2B%25%2F%26+1:s%3A%40%2B%25%2F%26+2%7E")),
        (Some(SecretPlace::BasicRaw), String::new(), Some("id:@+%/& 1:s:@+%/& 2~")),
    ] {
        let (seen, token) = sent(place, RequestFormat::Form).await;
        assert_eq!(seen.body, format!("grant_type=refresh_token&refresh_token={token}{members}"), "{place:?}");
        assert_eq!(seen.header("content-type"), Some("application/x-www-form-urlencoded"));
        assert_eq!(seen.header("authorization").map(decode_basic).as_deref(), credentials, "{place:?}");
    }
}

#[tokio::test]
async fn a_json_request_has_the_same_members() {
    for (place, members, credentials) in [
        (None, json!({"client_id": AWKWARD_ID}), false),
        (Some(SecretPlace::Body), json!({"client_id": AWKWARD_ID, "client_secret": AWKWARD_SECRET}), false),
        (Some(SecretPlace::Basic), json!({}), true),
        (Some(SecretPlace::BasicRaw), json!({}), true),
    ] {
        let (seen, token) = sent(place, RequestFormat::Json).await;
        let mut expected = json!({"grant_type": "refresh_token", "refresh_token": token});
        expected.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        assert_eq!(serde_json::from_str::<Value>(&seen.body).unwrap(), expected, "{place:?}");
        assert_eq!(seen.header("content-type"), Some(JSON));
        assert_eq!(seen.header("authorization").is_some(), credentials, "{place:?}");
    }
}

fn decode_basic(header: &str) -> String {
    String::from_utf8(STANDARD.decode(header.strip_prefix("Basic ").unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn the_head_of_a_request_says_what_is_needed_and_no_more() {
    let (seen, _) = sent(Some(SecretPlace::Basic), RequestFormat::Form).await;
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/token"));
    assert_eq!(seen.header("accept"), Some(JSON));
    assert_eq!(seen.header("user-agent"), Some(concat!("credproxy/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(seen.header("content-length"), Some(seen.body.len().to_string().as_str()));
    let mut names: Vec<&str> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "authorization", "content-length", "content-type", "host", "user-agent"]);
}

#[tokio::test]
async fn without_a_refresh_token_or_a_readable_secret_nothing_is_sent() {
    let issuer = Issuer::start().await;
    let reply = provider(settings(&issuer.token_endpoint())).refresh(&grant("at", None)).await;
    assert_eq!(class(&reply), "not sent: there is no refresh token");
    for place in SECRET_PLACES {
        let secret = Err("the client secret could not be read");
        let authentication = Authentication::Secret { place, secret };
        let settings = Settings { authentication, ..settings(&issuer.token_endpoint()) };
        assert_eq!(class(&refresh(&issuer, settings).await), "not sent: the client secret could not be read");
    }
    assert!(issuer.requests().is_empty());
}

#[tokio::test]
async fn a_grant_is_revoked_by_its_refresh_token_or_else_its_access_token() {
    let issuer = Issuer::start().await;
    let mut settings = settings(&issuer.token_endpoint());
    assert!(!provider_of(&settings).revoke(&grant("at", Some("rt"))).await, "no endpoint to tell");
    settings.endpoints.revocation = Some(Url::parse(&issuer.revocation_endpoint()).unwrap());
    let provider = provider(settings);
    let (access, token) = issuer.new_grant();
    assert!(provider.revoke(&grant(&access, Some(&token))).await);
    assert!(!issuer.family_alive(&token));
    assert!(provider.revoke(&grant(&access, None)).await);
    assert_eq!(issuer.revocations(), [token.clone(), access.clone()]);
    let bodies: Vec<String> = issuer.requests().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies[0], format!("token={token}&token_type_hint=refresh_token&client_id=client-1"));
    assert_eq!(bodies[1], format!("token={access}&token_type_hint=access_token&client_id=client-1"));
}

fn provider_of(settings: &Settings) -> OAuth2 {
    provider(Settings { endpoints: settings.endpoints.clone(), ..self::settings("https://unused.example/") })
}

#[tokio::test]
async fn a_revocation_that_was_refused_is_not_claimed() {
    let issuer = Issuer::start().await;
    issuer.serve("/no", Raw::error(503, "temporarily_unavailable"));
    let mut settings = settings(&issuer.token_endpoint());
    settings.endpoints.revocation = Some(Url::parse(&format!("{}/no", issuer.origin())).unwrap());
    assert!(!provider(settings).revoke(&grant("at", Some("rt"))).await);
}

// Limits and faults of the wire.

#[tokio::test]
async fn an_answer_without_end_is_cut_off_and_unreadable() {
    let issuer = Issuer::start().await;
    for status in [200, 400, 503] {
        issuer.script(Answer::Huge { status, bytes: 8 * 1024 * 1024 });
        let reply = refresh(&issuer, settings(&issuer.token_endpoint())).await;
        assert_eq!(class(&reply), format!("{status} unreadable"));
    }
}

#[tokio::test]
async fn an_answer_of_just_under_the_limit_is_read() {
    let issuer = Issuer::start().await;
    let tokens = json!({"access_token": "a", "padding": "x".repeat(1024 * 1024 - 100)});
    issuer.script(Answer::Raw(Raw::json(200, &tokens)));
    assert_eq!(class(&refresh(&issuer, settings(&issuer.token_endpoint())).await), "200 issued");
}

#[tokio::test]
async fn a_refusal_counts_without_its_body_and_a_success_does_not() {
    let issuer = Issuer::start().await;
    for (status, dripping, cut) in [
        (200, "timed out", "broke off"),
        (302, "302 unreadable", "302 unreadable"),
        (400, "400 unreadable", "400 unreadable"),
        (401, "401 unreadable", "401 unreadable"),
        (503, "timed out", "broke off"),
    ] {
        let answer = Raw::error(status, "invalid_grant");
        issuer.script(Answer::Drip(answer.clone()));
        let impatient = Settings { request_timeout: IMPATIENT, ..settings(&issuer.token_endpoint()) };
        assert_eq!(class(&refresh(&issuer, impatient).await), dripping, "{status}");
        issuer.script(Answer::Cut(answer));
        assert_eq!(class(&refresh(&issuer, settings(&issuer.token_endpoint())).await), cut, "{status}");
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_is_lost_when_the_time_is_up() {
    let issuer = Issuer::start().await;
    for answer in [Answer::Silence, Answer::HoldAfter(Gate::new()), Answer::HoldBefore(Gate::new())] {
        issuer.script(answer);
        let impatient = Settings { request_timeout: IMPATIENT, ..settings(&issuer.token_endpoint()) };
        assert_eq!(class(&refresh(&issuer, impatient).await), "timed out");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_after_the_request_is_lost_and_not_tried_again() {
    let issuer = Issuer::start().await;
    for answer in [Answer::ResetBefore, Answer::RotateThenReset] {
        issuer.script(answer);
        let before = issuer.presentations().len();
        assert_eq!(class(&refresh(&issuer, settings(&issuer.token_endpoint())).await), "broke off");
        assert_eq!(issuer.presentations().len(), before + 1);
    }
    assert_eq!(issuer.reused(), 0);
}

#[tokio::test]
async fn every_refresh_has_a_connection_of_its_own() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let provider = provider(settings(&format!("http://{}/", listener.local_addr().unwrap())));
    let mut server = JoinSet::new();
    server.spawn(async move {
        for _ in 0..2 {
            // Kept open by the server, which would be glad to serve a second request on it.
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{\"access_token\":\"a\"}";
            stream.write_all(answer.as_bytes()).await.unwrap();
            assert_eq!(stream.read(&mut request).await.unwrap(), 0, "closed by the client");
        }
    });
    for _ in 0..2 {
        assert_eq!(class(&provider.refresh(&grant("at", Some("rt"))).await), "200 issued");
    }
    server.join_all().await;
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let issuer = Issuer::start().await;
    let other = Issuer::start().await;
    issuer.serve("/elsewhere", Raw::json(200, &json!({"access_token": "a"})));
    for status in [301, 302, 303, 307, 308] {
        for target in ["/elsewhere".to_owned(), other.token_endpoint()] {
            issuer.script(Answer::Raw(Raw::new(status, "", "").header("Location", &target)));
            let reply = refresh(&issuer, settings(&issuer.token_endpoint())).await;
            assert_eq!(class(&reply), format!("{status} unreadable"));
        }
    }
    assert!(issuer.requests().iter().all(|seen| seen.target == "/token"));
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_request_that_never_left_is_known_as_such() {
    let refused = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    // It takes connections, and never says a word of TLS.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // It answers the TLS greeting with something else.
    let mut tasks = JoinSet::new();
    let (plain, _) = refusing_proxy(&mut tasks).await;
    let issuer = Issuer::start().await;
    for (token_endpoint, why) in [
        (format!("http://{refused}/token"), "no connection was made"),
        (format!("http://localhost:{}/token", refused.port()), "no connection was made"),
        (format!("https://{}/token", silent.local_addr().unwrap()), "no connection was made in time"),
        (format!("https://{plain}/token"), "the TLS handshake failed"),
    ] {
        let settings = Settings { request_timeout: IMPATIENT * 5, ..settings(&token_endpoint) };
        assert_eq!(class(&refresh(&issuer, settings).await), format!("not sent: {why}"), "{token_endpoint}");
    }
    assert!(issuer.presentations().is_empty());
}

#[test]
fn settings_that_would_send_secrets_in_clear_make_no_provider() {
    let make = |settings| OAuth2::new(settings, Arc::new(SystemClock::new())).unwrap_err();
    let plain = Url::parse("http://login.example.com/").unwrap();
    let error = make(settings(plain.as_str()));
    assert_eq!(error.to_string(), "the token endpoint is not https, and its host is not loopback");
    for (issuer, revocation) in [(Some(plain.clone()), None), (None, Some(plain))] {
        let mut settings = settings("https://login.example.com/token");
        settings.endpoints.issuer = issuer;
        settings.endpoints.revocation = revocation;
        assert!(matches!(make(settings), SetupError::Endpoint { .. }));
    }
    let nowhere = Settings { endpoints: Endpoints::default(), ..settings("https://unused.example/") };
    assert!(matches!(make(nowhere), SetupError::NoTokenEndpoint));
}

// Discovery.

const OIDC: &str = "/.well-known/openid-configuration";
const OAUTH: &str = "/.well-known/oauth-authorization-server";

fn discovering(issuer: &str) -> Settings {
    let endpoints = Endpoints { issuer: Some(endpoint(issuer).unwrap()), ..Endpoints::default() };
    Settings { endpoints, ..settings("https://unused.example/") }
}

#[tokio::test]
async fn the_endpoints_are_found_once_from_the_issuer() {
    let issuer = Issuer::start().await;
    issuer.serve(OIDC, Raw::json(200, &issuer.metadata(&issuer.origin())));
    let provider = provider(discovering(&issuer.origin()));
    for _ in 0..2 {
        let (access, token) = issuer.new_grant();
        assert_eq!(class(&provider.refresh(&grant(&access, Some(&token))).await), "200 issued");
    }
    assert!(provider.revoke(&grant("at", Some("rt"))).await);
    let targets: Vec<String> = issuer.requests().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, [OIDC, "/token", "/token", "/revoke"]);
}

#[tokio::test]
async fn a_given_endpoint_wins_over_discovery() {
    let issuer = Issuer::start().await;
    let mut settings = discovering(&issuer.origin());
    settings.endpoints.token = Some(Url::parse(&issuer.token_endpoint()).unwrap());
    assert_eq!(class(&refresh(&issuer, settings).await), "200 issued");
    assert_eq!(issuer.requests().len(), 1);
}

#[tokio::test]
async fn an_issuer_may_have_a_path_and_only_the_metadata_of_oauth() {
    let issuer = Issuer::start().await;
    for (path, place) in [
        ("", OAUTH.to_owned()),
        ("/tenant", format!("{OAUTH}/tenant")),
        ("/a/b", format!("/a/b{OIDC}")),
        ("/slash/", format!("/slash{OIDC}")),
    ] {
        let name = format!("{}{path}", issuer.origin());
        issuer.serve(&place, Raw::json(200, &issuer.metadata(&name)));
        assert_eq!(class(&refresh(&issuer, discovering(&name)).await), "200 issued", "{path}");
    }
}

#[tokio::test]
async fn metadata_that_cannot_be_trusted_is_refused_before_anything_is_sent() {
    let issuer = Issuer::start().await;
    let origin = issuer.origin();
    let with = |member: &str, value: Value| {
        let mut metadata = issuer.metadata(&origin);
        metadata[member] = value;
        Raw::json(200, &metadata)
    };
    let other = "discovery: the issuer in the metadata is another";
    let endpoint = "discovery: the token_endpoint is not one to send secrets to";
    let none = "discovery: the issuer has no metadata";
    for (metadata, why) in [
        (with("issuer", json!("https://login.example.com")), other),
        (with("issuer", json!(format!("{origin}/x"))), other),
        (with("issuer", Value::Null), other),
        (with("token_endpoint", json!("http://login.example.com/token")), endpoint),
        (with("token_endpoint", json!("/token")), endpoint),
        (with("token_endpoint", Value::Null), "discovery: the metadata has no token_endpoint"),
        (Raw::new(200, HTML, "<html>welcome</html>"), none),
        (Raw::new(200, JSON, "[]"), none),
        (Raw::new(302, "", "").header("Location", OAUTH), none),
        (Raw::new(500, JSON, issuer.metadata(&origin).to_string()), none),
    ] {
        issuer.serve(OIDC, metadata);
        assert_eq!(class(&refresh(&issuer, discovering(&origin)).await), format!("not sent: {why}"));
    }
    assert!(issuer.presentations().is_empty());
}

#[tokio::test]
async fn a_failed_discovery_is_tried_again_by_the_next_refresh() {
    let issuer = Issuer::start().await;
    let provider = provider(discovering(&issuer.origin()));
    let (access, token) = issuer.new_grant();
    let grant = grant(&access, Some(&token));
    assert_eq!(class(&provider.refresh(&grant).await), "not sent: discovery: the issuer has no metadata");
    issuer.serve(OAUTH, Raw::json(200, &issuer.metadata(&format!("{}/", issuer.origin()))));
    assert_eq!(class(&provider.refresh(&grant).await), "200 issued");
}

#[tokio::test]
async fn discovery_uses_up_the_time_of_its_refresh() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", silent.local_addr().unwrap());
    let settings = Settings { request_timeout: IMPATIENT, ..discovering(&issuer) };
    let reply = provider(settings).refresh(&grant("at", Some("rt"))).await;
    assert_eq!(class(&reply), "not sent: the time was up before the request was sent");
}

// TLS.

/// A certificate authority in PEM form, and a server that hands what it decrypts on to the issuer.
async fn tls_front(issuer: &Issuer, tasks: &mut JoinSet<()>) -> (String, SocketAddr) {
    let mut authority = CertificateParams::new([]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = rcgen::CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let target = issuer.origin().replace("http://", "");
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut inside) = acceptor.accept(stream).await else { continue };
            let mut outside = TcpStream::connect(&target).await.unwrap();
            drop(copy_bidirectional(&mut inside, &mut outside).await);
        }
    });
    (authority.pem(), address)
}

#[tokio::test]
async fn the_certificates_of_the_file_are_trusted_beside_the_systems_own() {
    let issuer = Issuer::start().await;
    let mut tasks = JoinSet::new();
    let (pem, address) = tls_front(&issuer, &mut tasks).await;
    let (unrelated, _) = tls_front(&issuer, &mut tasks).await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{unrelated}\n# the one that counts\n{pem}").unwrap();
    for host in ["localhost", "127.0.0.1"] {
        let url = format!("https://{host}:{}/token", address.port());
        let reply = refresh(&issuer, settings(&url)).await;
        assert_eq!(class(&reply), "not sent: the server's certificate was not accepted");
        assert!(issuer.presentations().len() < 2);
        let trusting = Settings { ca_file: Some(file.path().into()), ..settings(&url) };
        assert_eq!(class(&refresh(&issuer, trusting).await), "200 issued");
    }
    assert_eq!(issuer.presentations().len(), 2);
}

#[test]
fn a_file_of_certificates_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        Write::write_all(&mut std::fs::File::create(&path).unwrap(), text.as_bytes()).unwrap();
        path
    };
    let begin = "-----BEGIN CERTIFICATE-----";
    let end = "-----END CERTIFICATE-----";
    for path in [
        directory.path().join("missing.pem"),
        directory.path().to_owned(),
        write("empty.pem", ""),
        write("prose.pem", "no certificate in here\n"),
        write("cut.pem", &format!("{begin}\nAAAA\n")),
        write("junk.pem", &format!("{begin}\nAAAA\n{end}\n")),
    ] {
        let settings = Settings { ca_file: Some(path.clone()), ..settings("https://login.example.com/token") };
        let error = OAuth2::new(settings, Arc::new(SystemClock::new())).unwrap_err();
        assert!(matches!(error, SetupError::CaFile(_)), "{error:?}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

// Proxies: the system's are read from the environment, so a child process does the refreshes.

/// Remembers what it was asked, and refuses it.
async fn refusing_proxy(tasks: &mut JoinSet<()>) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 4096];
            let count = stream.read(&mut bytes).await.unwrap();
            log.lock().unwrap().extend_from_slice(&bytes[..count]);
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
    });
    (address, asked)
}

#[tokio::test]
async fn a_proxy_sees_no_token_whatever_it_does() {
    let issuer = Issuer::start().await;
    let (_, token) = issuer.new_grant();
    let mut tasks = JoinSet::new();
    let (proxy, asked) = refusing_proxy(&mut tasks).await;
    let output = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_behind_a_proxy", "--ignored", "--nocapture"])
        .env("HTTPS_PROXY", format!("http://{proxy}"))
        .env("HTTP_PROXY", format!("http://{proxy}"))
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .env_remove("https_proxy")
        .env_remove("http_proxy")
        .env("TEST_TOKEN_ENDPOINT", issuer.token_endpoint())
        .env("TEST_REFRESH_TOKEN", &token)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("outward: not sent: no connection was made\n"), "{said}");
    assert!(said.contains("loopback: 200 issued\n"), "{said}");
    let asked = String::from_utf8(asked.lock().unwrap().clone()).unwrap();
    assert!(asked.starts_with("CONNECT login.example.invalid:443 HTTP/1.1\r\n"), "{asked}");
    assert_eq!(asked.matches("HTTP/1.1").count(), 1, "{asked}");
    assert!(!asked.contains("canary"), "{asked}");
    assert_eq!(issuer.times_presented(&token), 1);
}

#[tokio::test]
#[ignore = "run by a_proxy_sees_no_token_whatever_it_does, in an environment of its own"]
#[expect(clippy::disallowed_methods, reason = "the parent test speaks through the environment")]
async fn child_behind_a_proxy() {
    let token = std::env::var("TEST_REFRESH_TOKEN").unwrap();
    let loopback = std::env::var("TEST_TOKEN_ENDPOINT").unwrap();
    let grant = grant("at", Some(&token));
    for (name, url) in [("outward", "https://login.example.invalid/token"), ("loopback", &loopback)] {
        println!("{name}: {}", class(&provider(settings(url)).refresh(&grant).await));
    }
}

// Logs.

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The HTTP client's own events are in it too, and those of every test that runs meanwhile.
#[tokio::test]
async fn no_secret_is_logged_at_any_level() {
    use tracing_subscriber::util::SubscriberInitExt as _;

    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
    subscriber.with_writer(move || writer.clone()).finish().init();

    let issuer = Issuer::start().await;
    let mut tasks = JoinSet::new();
    let (pem, address) = tls_front(&issuer, &mut tasks).await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{pem}").unwrap();
    for url in [issuer.token_endpoint(), format!("https://{address}/token")] {
        for format in [RequestFormat::Form, RequestFormat::Json] {
            for place in SECRET_PLACES {
                for answer in [
                    Answer::Normal,
                    Answer::Raw(Raw::new(400, HTML, "canary-prose").header("X-Canary", "canary-header")),
                    Answer::Cut(Raw::error(200, "canary-code")),
                    Answer::RotateThenReset,
                ] {
                    issuer.script(answer);
                    let settings = Settings { ca_file: Some(file.path().into()), ..settings(&url) };
                    let settings = authenticating(Some(place), "canary-secret", format, settings);
                    refresh(&issuer, settings).await;
                }
            }
        }
    }
    let text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    for source in ["hyper", "reqwest", "credproxy::provider::oauth2: token endpoint"] {
        assert!(text.contains(source), "{source} was not listened to");
    }
    for secret in ["canary", &STANDARD.encode("client-1:canary-secret")] {
        let line = text.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}

// The test server itself, on which the other tests rely.

#[test]
fn the_test_server_kills_the_family_of_a_token_that_is_presented_twice() {
    let issuer = Issuer::start_blocking();
    let (_, first) = issuer.new_grant();
    let provider = provider(settings(&issuer.token_endpoint()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let present = |token: &str| class(&runtime.block_on(provider.refresh(&grant("at", Some(token)))));
    assert_eq!(present(&first), "200 issued");
    let second = issuer.living_successor(&first).unwrap();
    assert!(issuer.family_alive(&first));
    assert_eq!(present(&first), "400 error invalid_grant");
    assert_eq!(present(&second), "400 error invalid_grant");
    assert!(!issuer.family_alive(&second));
    let outcomes: Vec<Outcome> = issuer.presentations().iter().map(|seen| seen.outcome).collect();
    assert_eq!(outcomes, [Outcome::Rotated, Outcome::Reused, Outcome::Dead]);
    assert_eq!((issuer.reused(), issuer.times_presented(&first)), (1, 2));
}

#[tokio::test]
async fn the_test_server_has_a_grace_window_and_can_go_without_rotation() {
    let issuer = Issuer::start().await;
    let provider = provider(settings(&issuer.token_endpoint()));
    let tokens = async |token: &str| {
        let reply = provider.refresh(&grant("at", Some(token))).await;
        let Reply::Answered { body: Body::Issued(tokens), .. } = reply else { panic!("{reply:?}") };
        tokens
    };
    issuer.set_grace(PATIENT);
    let (_, token) = issuer.new_grant();
    let successor = tokens(&token).await.refresh_token.unwrap();
    assert!(tokens(&token).await.refresh_token.unwrap().same_as(&successor));
    assert_eq!((issuer.reused(), issuer.family_alive(&token)), (0, true));

    issuer.set_rotation(false);
    issuer.set_lifetime(None);
    let (_, token) = issuer.new_grant();
    for _ in 0..2 {
        let fresh = tokens(&token).await;
        assert!(fresh.refresh_token.is_none() && fresh.lifetime == Lifetime::Unknown);
    }
}

#[tokio::test]
async fn the_test_server_serves_a_herd() {
    let issuer = Issuer::start().await;
    let gate = Gate::new();
    issuer.always(Some(Answer::HoldBefore(gate.clone())));
    let provider = Arc::new(provider(settings(&issuer.token_endpoint())));
    let mut callers = JoinSet::new();
    for _ in 0..500 {
        let (access, token) = issuer.new_grant();
        let provider = Arc::clone(&provider);
        callers.spawn(async move { class(&provider.refresh(&grant(&access, Some(&token))).await) });
    }
    gate.wait_for_arrivals(500).await;
    assert!(issuer.presentations().is_empty());
    gate.open();
    assert!(callers.join_all().await.iter().all(|reply| reply == "200 issued"));
    assert_eq!(issuer.presentations().len(), 500);
}

/// A login's provider: every endpoint is the issuer's.
fn logging_in(issuer: &Issuer) -> Settings {
    let url = |text: String| Some(Url::parse(&text).unwrap());
    let endpoints = Endpoints {
        token: url(issuer.token_endpoint()),
        authorization: url(issuer.authorization_endpoint() + "?prompt=consent"),
        device_authorization: url(issuer.device_authorization_endpoint()),
        ..Endpoints::default()
    };
    let login = LoginSettings { scopes: vec!["a".into(), "b:c".into()], ..LoginSettings::default() };
    Settings { endpoints, login, ..settings("https://unused.example/") }
}

fn verifier() -> CodeVerifier {
    CodeVerifier::from_bytes([1; LOGIN_BYTES])
}

#[tokio::test]
async fn a_login_asks_with_a_challenge_and_exchanges_with_its_verifier() {
    let issuer = Issuer::start().await;
    let provider = provider(logging_in(&issuer));
    assert_eq!(provider.flows(), Flow::ALL);
    let redirect = "http://127.0.0.1:9/callback";
    let state = LoginState::from_bytes([2; LOGIN_BYTES]);
    let url = provider.authorization_url(redirect, &state, &verifier()).await.unwrap();
    let query: Vec<_> = url.query_pairs().into_owned().collect();
    let get = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    assert_eq!((get("prompt"), get("scope"), get("client_id")), (Some("consent"), Some("a b:c"), Some("client-1")));
    assert_eq!((get("redirect_uri"), get("code_challenge")), (Some(redirect), Some(verifier().challenge().as_str())));
    assert!(state.is(get("state").unwrap()));

    let back = issuer.agree(url.as_str());
    let code = back.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned();
    let code = || AuthorizationCode::new(code.clone()).unwrap();
    assert_eq!(class(&provider.exchange(&code(), redirect, &verifier()).await), "200 issued");
    assert_eq!(class(&provider.exchange(&code(), redirect, &verifier()).await), "400 error invalid_grant");
    let request = &issuer.requests()[0];
    assert!(!request.target.contains("canary") && request.body.contains("client_id=client-1"), "{request:?}");
}

#[tokio::test]
async fn pkce_is_left_out_where_the_configuration_says_so_and_put_into_device_logins_where_it_does() {
    let issuer = Issuer::start().await;
    let mut settings = logging_in(&issuer);
    settings.login.pkce = false;
    settings.login.device_pkce = true;
    let provider = provider(settings);
    let state = LoginState::from_bytes([2; LOGIN_BYTES]);
    let url = provider.authorization_url("https://p.example/", &state, &verifier()).await.unwrap();
    assert!(!url.as_str().contains("challenge"), "{url}");
    provider.exchange(&AuthorizationCode::new("x".into()).unwrap(), "https://p.example/", &verifier()).await;
    let authorization = provider.start_device(&verifier()).await.unwrap();
    provider.poll_device(&authorization.device_code, &verifier()).await;
    let bodies: Vec<_> = issuer.requests().into_iter().map(|request| request.body).collect();
    assert!(!bodies[0].contains("verifier"), "{bodies:?}");
    assert!(bodies[1].contains("code_challenge_method=S256") && !bodies[1].contains("verifier"), "{bodies:?}");
    assert!(bodies[2].contains("code_verifier="), "{bodies:?}");
}

#[tokio::test]
async fn an_error_code_that_quotes_a_code_or_verifier_is_not_kept() {
    let issuer = Issuer::start().await;
    let provider = provider(logging_in(&issuer));
    for quoted in ["bad_canary-code-1", "bad_AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"] {
        issuer.script(Answer::Raw(Raw::error(400, quoted)));
        let code = AuthorizationCode::new("canary-code-1".into()).unwrap();
        assert_eq!(class(&provider.exchange(&code, "https://p.example/", &verifier()).await), "400 error ");
    }
    issuer.script(Answer::Raw(Raw::error(400, "bad_canary-device-1")));
    let poll = provider.poll_device(&DeviceCode::new("canary-device-1".into()).unwrap(), &verifier()).await;
    let DevicePoll::Failed(code) = poll else { panic!("{poll:?}") };
    assert_eq!(code.as_str(), "");
}

#[tokio::test]
async fn a_device_is_told_what_to_show_in_every_form_and_nothing_that_must_not_be_shown() {
    let issuer = Issuer::start().await;
    let provider = provider(logging_in(&issuer));
    let good = json!({"device_code": "canary-device", "user_code": "AB-1", "verification_uri": "https://p.example/d",
        "verification_uri_complete": "https://p.example/d?c=AB-1", "interval": "7", "expires_in": 900});
    let answered = async |answer: Raw| {
        issuer.answer_device(answer);
        provider.start_device(&verifier()).await
    };
    let begun = answered(Raw::json(200, &good)).await.unwrap();
    assert_eq!((begun.user_code.as_str(), begun.verification_uri.as_str()), ("AB-1", "https://p.example/d"));
    assert_eq!(begun.verification_uri_complete.as_deref(), Some("https://p.example/d?c=AB-1"));
    assert_eq!((begun.interval, begun.lifetime), (Duration::from_secs(7), Some(Duration::from_mins(15))));

    let form = "device_code=d-1&user_code=AB+1&verification_uri=https%3A%2F%2Fp.example%2F%23x";
    let begun = answered(Raw::new(200, FORM, form)).await.unwrap();
    assert_eq!((begun.user_code.as_str(), begun.verification_uri.as_str()), ("AB 1", "https://p.example/#x"));
    assert_eq!((begun.interval, begun.lifetime), (Duration::from_secs(5), None));

    let with = |name: &str, value: Value| {
        let mut answer = good.clone();
        answer[name] = value;
        answer
    };
    let leaking = with("verification_uri_complete", json!("https://p.example/d?c=canary-device"));
    assert_eq!(answered(Raw::json(200, &leaking)).await.unwrap().verification_uri_complete, None);
    for bad in [
        with("device_code", json!("")),
        with("device_code", json!("a\nb")),
        with("user_code", json!("x".repeat(65))),
        with("user_code", json!("\u{1b}[2J")),
        with("user_code", json!("canary-device")),
        with("verification_uri", json!("javascript:alert(1)")),
        with("verification_uri", json!("http://p.example/")),
        with("verification_uri", json!("https://p.example/canary-device")),
        with("verification_uri", json!(5)),
        json!([]),
    ] {
        assert_eq!(answered(Raw::json(200, &bad)).await.unwrap_err().code, None, "{bad}");
    }
    for (answer, code) in [
        (Raw::error(400, "invalid_client"), "invalid_client"),
        (Raw::json(200, &json!({"error": "unauthorized_client"})), "unauthorized_client"),
    ] {
        assert_eq!(answered(answer).await.unwrap_err().code.unwrap().as_str(), code);
    }
    assert!(answered(Raw::new(200, HTML, "<html>no</html>")).await.is_err());
    assert!(answered(Raw::json(500, &good)).await.is_err());
}

#[tokio::test]
async fn every_answer_to_a_device_is_understood() {
    let issuer = Issuer::start().await;
    let provider = provider(logging_in(&issuer));
    let code = DeviceCode::new("canary-device".into()).unwrap();
    let error = Raw::error;
    for (answer, expected) in [
        (error(400, "authorization_pending"), "Pending { interval: None }"),
        // GitHub.
        (Raw::json(200, &json!({"error": "authorization_pending"})), "Pending { interval: None }"),
        (Raw::new(200, FORM, "error=slow_down&interval=10"), "SlowDown { interval: Some(10s) }"),
        (Raw::json(200, &json!({"error": "slow_down", "interval": 15})), "SlowDown { interval: Some(15s) }"),
        // Qwen.
        (error(429, "slow_down"), "SlowDown { interval: None }"),
        (Raw::new(429, HTML, "<html>"), "SlowDown { interval: None }"),
        (error(429, "odd").header("Retry-After", "20"), "SlowDown { interval: Some(20s) }"),
        (error(400, "slow_down"), "SlowDown { interval: None }"),
        (error(400, "AuthorizationPendingException"), "Pending { interval: None }"),
        (error(400, "access_denied"), "Denied"),
        (error(200, "authorization_declined"), "Denied"),
        (error(400, "expired_token"), "Expired"),
        (error(400, "invalid_grant"), "Failed(ErrorCode { text: \"invalid_grant\", safe: true })"),
        (Raw::new(400, "", ""), "Failed(ErrorCode { text: \"\", safe: false })"),
        (Raw::new(200, HTML, "<html>"), "Failed(ErrorCode { text: \"\", safe: false })"),
        (error(503, "temporarily_unavailable"), "Unreachable"),
        (Raw::new(502, HTML, "<html>"), "Unreachable"),
    ] {
        issuer.decide([answer.clone()]);
        let poll = provider.poll_device(&code, &verifier()).await;
        assert_eq!(format!("{poll:?}"), expected, "{answer:?}");
    }
    issuer.script(Answer::ResetBefore);
    assert!(matches!(provider.poll_device(&code, &verifier()).await, DevicePoll::Unreachable));
    issuer.script(Answer::Raw(Raw::json(200, &json!({"access_token": "a"}))));
    assert!(matches!(provider.poll_device(&code, &verifier()).await, DevicePoll::Issued(_)));
}

#[tokio::test]
async fn an_issuer_offers_every_login_until_its_metadata_says_otherwise() {
    let issuer = Issuer::start().await;
    let provider = provider(discovering(&issuer.origin()));
    assert_eq!(provider.flows(), Flow::ALL);
    assert!(issuer.requests().is_empty());
    let mut metadata = issuer.metadata(&issuer.origin());
    metadata["device_authorization_endpoint"] = json!(issuer.device_authorization_endpoint());
    metadata["authorization_response_iss_parameter_supported"] = json!(true);
    issuer.serve("/.well-known/openid-configuration", Raw::json(200, &metadata));
    provider.prepare_login().await.unwrap();
    assert_eq!(provider.flows(), [Flow::Device]);
    assert!(provider.accepts_issuer(Some(&issuer.origin())));
    for iss in [None, Some(""), Some("https://evil.example"), Some(&*format!("{}/", issuer.origin()))] {
        assert!(!provider.accepts_issuer(iss), "{iss:?}");
    }
    let state = LoginState::from_bytes([2; LOGIN_BYTES]);
    assert!(provider.authorization_url("https://p.example/", &state, &verifier()).await.is_err());
}

#[tokio::test]
async fn metadata_that_lies_begins_no_login() {
    let issuer = Issuer::start().await;
    let liar = |answer: Raw| issuer.serve("/.well-known/openid-configuration", answer);
    let honest = issuer.metadata(&issuer.origin());
    let with = |name: &str, value: &str| {
        let mut metadata = honest.clone();
        metadata[name] = json!(value);
        Raw::json(200, &metadata)
    };
    let huge = json!({"issuer": issuer.origin(), "padding": "x".repeat(10_000_000)});
    for lie in
        [with("issuer", "https://evil.example"), with("token_endpoint", "http://h.example/"), Raw::json(200, &huge)]
    {
        liar(lie);
        assert!(provider(discovering(&issuer.origin())).prepare_login().await.is_err());
    }
    liar(with("authorization_endpoint", "http://h.example/authorize"));
    let found = provider(discovering(&issuer.origin()));
    found.prepare_login().await.unwrap();
    assert_eq!(found.flows(), []);
}
