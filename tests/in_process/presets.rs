//! The presets at work: the provider client asks as each provider wants to be asked, and understands what it answers.
//!
//! No real provider is contacted. A loopback server stands in for all of them, with answers of the recorded shape; what
//! is recorded is told in `record.rs`, and where it was learnt in docs/providers.md.

mod record;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use credproxy::{
    clock::{SystemClock, Timestamp},
    config::{Config, Environment, ProviderConfig, presets},
    grant::{Grant, GrantId, Issued, SanitizedToken},
    lifecycle,
    provider::{Body, DevicePoll, Provider as _, Reply, oauth2::OAuth2},
    refresh::outcome::{Classified, classify},
    secret::{AuthorizationCode, CodeVerifier, DeviceCode, LOGIN_BYTES, LoginState},
};
use serde_json::{Map, Value, json};
use url::{Url, form_urlencoded};

use crate::support::{
    daemon::{Daemon, Home},
    issuer::{Answer as Script, Issuer, Raw, Seen},
};
use record::{Answer, Failure, Format, Record};

const SECRET: &str = "canary-secret";
const SECOND: &str = "/second";
const NOW: i64 = 1_700_000_000;

/// The provider of a table with the preset, the record's lines, and these.
fn configured(name: &str, record: &Record, more: &str) -> ProviderConfig {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{}", table(name, record, more)).unwrap();
    let config = Config::load(Some(file.path()), &environment()).unwrap_or_else(|error| panic!("{name}: {error}"));
    config.providers.into_iter().next().unwrap()
}

fn table(name: &str, record: &Record, more: &str) -> String {
    format!("[providers.{name}]\npreset = {:?}\n{}\n{more}\n", record.preset, record.table)
}

fn environment() -> Environment {
    Environment::of([("HOME", "/nowhere"), ("SECRET", SECRET)])
}

/// Lines that have every endpoint of the record's at the loopback server.
fn at(issuer: &Issuer, record: &Record) -> String {
    let place = |key: &str| match key {
        "issuer" => format!("issuer = {:?}", issuer.origin()),
        "token_endpoint" | "refresh_endpoint" => format!("{key} = {:?}", issuer.token_endpoint()),
        "authorization_endpoint" => format!("{key} = {:?}", issuer.authorization_endpoint()),
        "device_authorization_endpoint" => format!("{key} = {:?}", issuer.device_authorization_endpoint()),
        "revocation_endpoint" => format!("{key} = {:?}", issuer.revocation_endpoint()),
        "second_exchange" => format!("second_exchange.endpoint = \"{}{SECOND}\"", issuer.origin()),
        other => panic!("{other}"),
    };
    let lines: Vec<String> = record.endpoints.keys().map(|key| place(key)).collect();
    lines.join("\n")
}

/// The loopback server, with metadata for those who look for it.
async fn issuer() -> Issuer {
    let issuer = Issuer::start().await;
    let mut metadata = issuer.metadata(&issuer.origin());
    metadata["authorization_endpoint"] = json!(issuer.authorization_endpoint());
    metadata["device_authorization_endpoint"] = json!(issuer.device_authorization_endpoint());
    issuer.serve("/.well-known/openid-configuration", Raw::json(200, &metadata));
    issuer
}

async fn client(provider: &ProviderConfig) -> OAuth2 {
    let clock = Arc::new(SystemClock::new());
    let (client, missing) = lifecycle::client(provider, &environment(), Duration::from_secs(10), clock).await;
    assert!(missing.is_none(), "{missing:?}");
    client.unwrap()
}

fn verifier() -> CodeVerifier {
    CodeVerifier::from_bytes([1; LOGIN_BYTES])
}

/// Puts up what the next refresh is answered.
fn script(issuer: &Issuer, record: &Record, answer: Raw) {
    match record.request.format {
        Format::Get => issuer.serve(SECOND, answer),
        Format::Form | Format::Json => issuer.script(Script::Raw(answer)),
    }
}

fn raw(answer: &Answer) -> Raw {
    Raw::new(200, &answer.content_type, answer.body.as_str())
}

/// Logs in, by a code where there is a place to get one.
async fn log_in(issuer: &Issuer, client: &OAuth2, record: &Record) -> Grant {
    issuer.script(Script::Raw(raw(&record.answers[0])));
    if let Some(second) = &record.answers[0].second {
        issuer.serve(SECOND, Raw::new(200, "application/json", second.as_str()));
    }
    let tokens = if record.authorization.is_some() {
        let code = AuthorizationCode::new("canary-code".into()).unwrap();
        issued(client.exchange(&code, &record.redirect, &verifier()).await)
    } else {
        let code = DeviceCode::new("canary-device".into()).unwrap();
        let poll = client.poll_device(&code, &verifier()).await;
        let DevicePoll::Issued(tokens) = poll else { panic!("{poll:?}") };
        *tokens
    };
    Grant::new(GrantId::from_bytes([1; 16]), tokens, Timestamp::from_secs(NOW))
}

fn issued(reply: Reply) -> Issued {
    let Reply::Answered { body: Body::Issued(issued), .. } = reply else { panic!("{reply:?}") };
    *issued
}

#[track_caller]
fn check_grant(name: &str, grant: &Grant, client: &OAuth2, answer: &Answer) {
    let seen: Map<String, Value> =
        serde_json::from_slice(&SanitizedToken::of(grant, &client.rules().expose).json()).unwrap();
    let mut expected = answer.seen.clone();
    expected.extend(answer.lifetime.map(|lifetime| ("expiry".to_owned(), json!(NOW + lifetime))));
    assert_eq!(seen, expected, "{name}: {}", answer.body);
    // TOML has no null.
    let kept = grant.extra.members().iter().filter(|(_, value)| !value.is_null());
    assert_eq!(kept.map(|(key, value)| (key.clone(), value.clone())).collect::<Map<_, _>>(), answer.kept, "{name}");
}

/// The members of a body, each of which is there once.
fn members(seen: &Seen, format: Format) -> BTreeMap<String, String> {
    match format {
        Format::Form => {
            let pairs: Vec<_> = form_urlencoded::parse(seen.body.as_bytes()).into_owned().collect();
            let members: BTreeMap<_, _> = pairs.iter().cloned().collect();
            assert_eq!(members.len(), pairs.len(), "{}", seen.body);
            members
        }
        Format::Json => serde_json::from_str(&seen.body).unwrap(),
        Format::Get => {
            assert_eq!(seen.body, "");
            BTreeMap::new()
        }
    }
}

#[track_caller]
fn check_request(name: &str, seen: &Seen, record: &Record, token: &str) {
    let request = &record.request;
    let fill = |text: &String| text.replace("{token}", token);
    let expected: BTreeMap<_, _> = request.members.iter().map(|(key, value)| (key.clone(), fill(value))).collect();
    assert_eq!(members(seen, request.format), expected, "{name}");
    let (method, content_type) = match request.format {
        Format::Form => ("POST", Some("application/x-www-form-urlencoded")),
        Format::Json => ("POST", Some("application/json")),
        Format::Get => ("GET", None),
    };
    assert_eq!((seen.method.as_str(), seen.header("content-type")), (method, content_type), "{name}");
    let decoded = seen.header("authorization").map(|header| match header.strip_prefix("Basic ") {
        Some(pair) => String::from_utf8(STANDARD.decode(pair).unwrap()).unwrap(),
        None => header.to_owned(),
    });
    assert_eq!(decoded, request.authorization.as_ref().map(fill), "{name}");
    assert_eq!(seen.header("accept"), Some("application/json"), "{name}");
    for (header, value) in &request.headers {
        assert_eq!(seen.header(header), Some(value.as_str()), "{name}: {header}");
    }
    let usual = ["accept", "authorization", "content-length", "content-type", "host", "user-agent"];
    for (header, _) in &seen.headers {
        assert!(usual.contains(&header.as_str()) || request.headers.contains_key(header), "{name}: {header}");
    }
}

#[test]
fn every_preset_has_a_record_and_every_record_a_preset() {
    let recorded = record::all();
    let names: BTreeSet<&str> = presets().map(|preset| preset.name).collect();
    assert_eq!(recorded.values().map(|record| record.preset.as_str()).collect::<BTreeSet<_>>(), names);
    for (name, record) in recorded {
        assert!(record.answers.len() > 2, "{name}: a login and two refreshes at least");
        assert!(!record.failures.is_empty(), "{name}");
        let marked = |text: &str| text.contains("canary");
        assert!(record.answers.iter().all(|answer| marked(&answer.body) && marked(&answer.good)), "{name}");
        let provider = configured(&name, &record, "");
        let dead = |code: &String| {
            let holds = |failure: &Failure| failure.outcome == "final" && failure.body.contains(&format!("\"{code}\""));
            record.failures.iter().any(holds)
        };
        let own = record.preset == name;
        assert!(!own || provider.dead_grant_codes.iter().all(dead), "{name}: a code of dead grants is not recorded");
    }
}

#[test]
fn a_preset_with_its_variables_has_the_recorded_addresses() {
    for (name, record) in record::all() {
        let provider = configured(&name, &record, "");
        let url = |url: Option<&Url>| url.map(Url::to_string);
        let found = [
            ("issuer", provider.issuer.clone()),
            ("token_endpoint", url(provider.token_endpoint.as_ref())),
            ("refresh_endpoint", url(provider.refresh_endpoint.as_ref())),
            ("authorization_endpoint", url(provider.authorization_endpoint.as_ref())),
            ("device_authorization_endpoint", url(provider.device_authorization_endpoint.as_ref())),
            ("revocation_endpoint", url(provider.revocation_endpoint.as_ref())),
            ("second_exchange", url(provider.second_exchange.as_ref().map(|second| &second.endpoint))),
        ];
        let found = found.into_iter().filter_map(|(key, address)| Some((key.to_owned(), address?)));
        assert_eq!(found.collect::<BTreeMap<_, _>>(), record.endpoints, "{name}");
    }
}

#[tokio::test]
async fn logins_begin_as_each_provider_wants_it() {
    let issuer = issuer().await;
    for (name, record) in record::all() {
        let client = client(&configured(&name, &record, &at(&issuer, &record))).await;
        client.prepare_login().await.unwrap();
        if let Some(expected) = &record.authorization {
            let state = LoginState::from_bytes([2; LOGIN_BYTES]);
            let url = client.authorization_url(&record.redirect, &state, &verifier()).await.unwrap();
            let pairs: Vec<_> = url.query_pairs().into_owned().collect();
            let mut query: BTreeMap<_, _> = pairs.iter().cloned().collect();
            assert_eq!(query.len(), pairs.len(), "{name}: {url}");
            for standard in ["response_type", "client_id", "redirect_uri", "state"] {
                assert!(query.remove(standard).is_some(), "{name}: {standard}");
            }
            let challenge = query.remove("code_challenge_method").zip(query.remove("code_challenge"));
            assert_eq!(challenge, record.pkce.then(|| ("S256".to_owned(), verifier().challenge())), "{name}");
            assert_eq!(query, *expected, "{name}");
            assert_eq!(client.redirect_uri().at_port(9), record.redirect, "{name}");
        }
        if let Some(device) = &record.device {
            let usual = r#"{"device_code": "canary-device", "user_code": "WDJB-MJHT", "expires_in": 600, "interval": 1,
                "verification_uri": "https://device.example/"}"#;
            issuer.answer_device(Raw::new(200, "application/json", device.answer.as_deref().unwrap_or(usual)));
            let begun = client.start_device(&verifier()).await.unwrap();
            assert_eq!((begun.user_code.as_str(), begun.interval), ("WDJB-MJHT", Duration::from_secs(1)), "{name}");
            let seen = issuer.requests().pop().unwrap();
            let format = if seen.body.starts_with('{') { Format::Json } else { Format::Form };
            assert_eq!(members(&seen, format), device.members, "{name}");
        }
    }
}

#[tokio::test]
async fn grants_are_refreshed_again_and_again_and_lose_nothing() {
    let issuer = issuer().await;
    for (name, record) in record::all() {
        let client = client(&configured(&name, &record, &at(&issuer, &record))).await;
        let mut grant = log_in(&issuer, &client, &record).await;
        let mut good = &record.answers[0].good;
        check_grant(&name, &grant, &client, &record.answers[0]);
        for answer in &record.answers[1..] {
            script(&issuer, &record, raw(answer));
            let reply = client.refresh(&grant).await;
            check_request(&name, &issuer.requests().pop().unwrap(), &record, good);
            let classified = classify(reply, client.rules(), &grant);
            let Classified::Success(tokens) = classified else { panic!("{name}: {classified:?}") };
            grant = grant.refreshed(*tokens, Timestamp::from_secs(NOW));
            check_grant(&name, &grant, &client, answer);
            good = &answer.good;
        }
        // What is presented next is the newest.
        script(&issuer, &record, Raw::error(400, "invalid_grant"));
        client.refresh(&grant).await;
        check_request(&name, &issuer.requests().pop().unwrap(), &record, good);

        let before = issuer.revocations().len();
        let expected = record.endpoints.contains_key("revocation_endpoint") || record.endpoints.contains_key("issuer");
        assert_eq!(client.revoke(&grant).await, expected, "{name}");
        assert_eq!(issuer.revocations()[before..], vec![good.clone(); expected.into()], "{name}");
    }
}

#[tokio::test]
async fn answers_without_tokens_are_sorted_into_their_classes() {
    let issuer = issuer().await;
    for (name, record) in record::all() {
        let client = client(&configured(&name, &record, &at(&issuer, &record))).await;
        let grant = log_in(&issuer, &client, &record).await;
        for failure in &record.failures {
            script(&issuer, &record, Raw::new(failure.status, &failure.content_type, failure.body.as_str()));
            let classified = classify(client.refresh(&grant).await, client.rules(), &grant);
            let Classified::Failure(found) = classified else { panic!("{name}: {}", failure.body) };
            let class = format!("{:?}", found.outcome).to_lowercase();
            assert_eq!(class, failure.outcome.replace('_', ""), "{name}: {} {}", failure.status, failure.body);
        }
    }
}

/// A daemon that knows them all, one after the other. What it prints and answers is searched for marked secrets.
#[tokio::test]
async fn a_daemon_refreshes_at_every_provider_and_latches_what_is_dead() {
    let (issuer, records) = (issuer().await, record::all());
    let tables = records.iter().map(|(name, record)| table(name, record, &at(&issuer, record)));
    let config = format!("[refresh]\ncooldown = \"0s\"\n{}", tables.collect::<String>());
    let daemon = Daemon::start(&Home::new(), "a", &config, &[("SECRET", SECRET)]).await;
    let check = daemon.command(&["check"], "").await;
    let check = String::from_utf8(check.stdout).unwrap();
    for (name, record) in &records {
        assert!(check.contains(&format!("configured (preset {})", record.preset)), "{name}: {check}");
        // All of them are at one server here, and each refresh token is stored once.
        let good = format!("{}-{name}", record.answers[0].good);
        let grant = json!({"access_token": "canary-at-0", "refresh_token": good}).to_string();
        let (token, refresh) = (format!("/v1/tokens/{name}"), format!("/v1/tokens/{name}/refresh"));
        let put = daemon.request("PUT", &token, &[("content-type", "application/json")], grant).await;
        assert_eq!(put.status, 201, "{name}");
        for answer in &record.answers[1..] {
            script(&issuer, record, raw(answer));
            let refreshed = daemon.request("POST", &refresh, &[], "").await;
            assert_eq!(refreshed.status, 200, "{name}: {}", refreshed.text());
            assert_eq!(refreshed.json()["access_token"], answer.seen["access_token"], "{name}");
        }
        if let Some(dead) = record.failures.iter().find(|failure| failure.outcome == "final") {
            script(&issuer, record, Raw::new(dead.status, &dead.content_type, dead.body.as_str()));
            let (before, refused) = (issuer.requests().len(), daemon.request("POST", &refresh, &[], "").await);
            assert_eq!((refused.status, &refused.json()["code"]), (401, &json!("REAUTH_REQUIRED")), "{name}");
            assert_eq!(daemon.request("POST", &refresh, &[], "").await.status, 401, "{name}");
            assert_eq!(issuer.requests().len(), before + 1, "{name}: a dead grant costs no further call");
        }
    }
}
