//! The provider. Each case has a provider of its own, on one daemon: what it answers to a refresh, and what the caller
//! is told. Whatever it was, the token that was there before is served on unless a better one came, and no refresh
//! token comes out (the client of the tests and the end of the daemon look for it).

use std::{fmt::Write as _, net::Ipv4Addr, sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
    time::timeout,
};

use crate::{
    support::{
        daemon::{Daemon, Home},
        http::Response,
        issuer::{Answer, Issuer, Raw},
    },
    world::{CLIENT_SECRET, JSON, World, access_token, table},
};

/// What came of a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// A new token.
    Fresh,
    /// A refusal of this status.
    Refused(u16),
}

struct Case {
    name: &'static str,
    answer: Box<dyn Fn(&str) -> Answer>,
    due: Due,
}

/// `answer` is made of the refresh token that will be presented.
fn case(name: &'static str, due: Due, answer: impl Fn(&str) -> Answer + 'static) -> Case {
    Case { name, answer: Box::new(answer), due }
}

fn tokens(more: &Value) -> Answer {
    let mut body = json!({"access_token": "canary-at-new", "refresh_token": "canary-rt-new", "expires_in": 3600});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Answer::Raw(Raw::json(200, &body))
}

fn text(status: u16, body: String) -> Answer {
    Answer::Raw(Raw::new(status, "application/json", body))
}

/// Refresh tokens quoted where they do not belong.
fn quoting() -> Vec<Case> {
    use Due::{Fresh, Refused};
    vec![
        case("error", Refused(502), |rt| Answer::Raw(Raw::error(400, rt))),
        case("error-and-status", Refused(502), |rt| Answer::Raw(Raw::error(500, rt))),
        case("description", Refused(502), |rt| {
            let body = json!({"error": "invalid_request", "error_description": rt, "error_uri": rt, rt: rt});
            Answer::Raw(Raw::json(400, &body).header("x-debug", rt).header("retry-after", rt))
        }),
        case("dead-description", Refused(401), |rt| {
            Answer::Raw(Raw::json(400, &json!({"error": "invalid_grant", "error_description": rt})))
        }),
        case("object", Refused(502), |rt| {
            Answer::Raw(Raw::json(401, &json!({"error": {"code": rt, "type": "refresh_token_x", "message": rt}})))
        }),
        case("forbidden-code", Refused(502), |_| Answer::Raw(Raw::error(400, "bad_Refresh_Token"))),
        case("html", Refused(502), |rt| Answer::Raw(Raw::new(404, "text/html", format!("<p>{rt}</p>")))),
        case("type", Fresh, |rt| tokens(&json!({"token_type": rt}))),
        case("scope", Fresh, |rt| tokens(&json!({"scope": format!("a {rt} b{rt} refresh_token")}))),
        case("new-scope", Fresh, |_| tokens(&json!({"scope": ["canary-rt-new", "a"]}))),
        case("id-token", Fresh, |rt| {
            tokens(&json!({"id_token": rt, "account_id": format!("x{rt}"), "resource_url": "canary-rt-new"}))
        }),
        case("nested", Fresh, |rt| tokens(&json!({"authed_user": {"refresh_token": rt}, "account_id": [rt]}))),
        case("escaped", Fresh, |_| tokens(&json!({"account_id": "\refresh_token", "id_token": "Refresh_Token"}))),
        case("names", Fresh, |rt| tokens(&json!({rt: rt, "refresh_token_expires_in": 5}))),
        case("access-token", Refused(502), |rt| tokens(&json!({"access_token": rt}))),
        case("inside-access-token", Refused(502), |rt| tokens(&json!({"access_token": format!("a.{rt}.b")}))),
        case("new-inside-access-token", Refused(502), |_| tokens(&json!({"access_token": "a.canary-rt-new.b"}))),
        case("forbidden-access-token", Refused(502), |_| tokens(&json!({"access_token": "a.refresh_token.b"}))),
    ]
}

/// Answers that are no answers.
fn nonsense() -> Vec<Case> {
    use Due::{Fresh, Refused};
    let raw = |body: &'static str| move |_: &str| text(200, body.to_owned());
    vec![
        case("same", Fresh, |rt| tokens(&json!({"refresh_token": rt}))),
        case(
            "duplicate",
            Fresh,
            raw(
                r#"{"access_token":"canary-1","refresh_token":"canary-rt-1","access_token":"canary-2","refresh_token":"canary-rt-2"}"#,
            ),
        ),
        case("infinite", Refused(502), raw(r#"{"access_token":"canary-1","expires_in":1e999}"#)),
        case("negative", Fresh, |_| tokens(&json!({"expires_in": -1e300}))),
        case("forever", Fresh, |_| tokens(&json!({"expires_in": u64::MAX, "expires_at": "Infinity"}))),
        case("newline", Refused(502), |_| tokens(&json!({"access_token": "a\r\nset-cookie: x"}))),
        case("empty-token", Refused(502), |_| tokens(&json!({"access_token": ""}))),
        case("long-token", Refused(502), |_| tokens(&json!({"access_token": "x".repeat(70_000)}))),
        case("odd-successor", Refused(502), |_| tokens(&json!({"refresh_token": ["a"]}))),
        case("bad-successor", Refused(502), |_| tokens(&json!({"refresh_token": "a\nb"}))),
        case("deep", Refused(502), |_| {
            text(200, format!("{{\"access_token\":\"a\",\"x\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000)))
        }),
        case("deep-error", Refused(502), |_| text(400, format!("{{\"error\":{}", "{\"error\":".repeat(100_000)))),
        case("list", Refused(502), raw(r#"[{"access_token":"canary-1"}]"#)),
        case("nothing", Refused(502), raw("")),
        case("both", Refused(401), |_| tokens(&json!({"error": "invalid_grant"}))),
        case("wide", Fresh, |_| {
            let members: serde_json::Map<_, _> = (0..20_000).map(|at| (format!("x{at}"), json!(at))).collect();
            tokens(&members.into())
        }),
        case("huge", Refused(502), |_| Answer::Huge { status: 200, bytes: 50 << 20 }),
        case("huge-error", Refused(502), |_| Answer::Huge { status: 400, bytes: 50 << 20 }),
        case("drip", Refused(504), |_| Answer::Drip(Raw::new(200, "application/json", "x".repeat(1000)))),
        case("silence", Refused(504), |_| Answer::Silence),
        case("head", Refused(502), |_| Answer::Raw(Raw::new(200, "text/plain", "").header("x", &"y".repeat(1 << 20)))),
        case("heads", Refused(502), |_| {
            Answer::Raw((0..5000).fold(Raw::new(200, "text/plain", ""), |raw, at| raw.header(&format!("x-{at}"), "y")))
        }),
        case("continue", Refused(502), |_| Answer::Raw(Raw::new(100, "", ""))),
        case("switching", Refused(502), |_| Answer::Raw(Raw::new(101, "", "").header("upgrade", "x"))),
        case("later", Refused(502), |_| {
            Answer::Raw(Raw::error(429, "slow_down").header("retry-after", "99999999999999999999999999"))
        }),
        case("much-later", Refused(502), |_| {
            Answer::Raw(Raw::error(503, "x").header("retry-after", "Fri, 31 Dec 9999 23:59:59 GMT"))
        }),
        case("odd-later", Refused(502), |_| Answer::Raw(Raw::error(429, "x").header("retry-after", "-1, 1e9\t"))),
    ]
}

async fn log_in(daemon: &Daemon, name: &str, issuer: &Issuer) -> (String, String) {
    let (access, refresh) = issuer.new_grant();
    let grant = json!({"access_token": access, "refresh_token": refresh, "expires_in": 3600, "scope": "a"});
    let answer = daemon.request("PUT", &format!("/v1/tokens/{name}"), &[JSON], grant.to_string()).await;
    assert_eq!(answer.status, 201, "{name}: {}", answer.text());
    (access, refresh)
}

fn outcome(answer: &Response) -> Due {
    if answer.status == 200 { Due::Fresh } else { Due::Refused(answer.status) }
}

async fn attack(daemon: &Daemon, case: &Case, issuer: &Issuer) -> Option<String> {
    let (before, refresh) = log_in(daemon, case.name, issuer).await;
    daemon.watch_refresh_token(&refresh);
    issuer.always(Some((case.answer)(&refresh)));
    let target = format!("/v1/tokens/{}", case.name);
    let answer = daemon.request("POST", &format!("{target}/refresh"), &[], "").await;
    if outcome(&answer) != case.due {
        return Some(format!("{}: {} {}", case.name, answer.status, answer.text()));
    }
    if let Some(wait) = answer.retry_after() {
        assert!(wait <= Duration::from_hours(1), "{}: {wait:?}", case.name);
    }
    let served = daemon.request("GET", &target, &[], "").await;
    assert_eq!(served.status, 200, "{}: {}", case.name, served.text());
    assert_eq!(access_token(&served) == before, case.due != Due::Fresh, "{}", case.name);
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_provider_answers_its_secrets_stay_in_and_the_old_token_stays_good() {
    let cases: Vec<Case> = quoting().into_iter().chain(nonsense()).collect();
    let home = Home::new();
    let mut issuers = Vec::new();
    let mut config = "[refresh]\nrequest_timeout = \"2s\"\n".to_owned();
    for case in &cases {
        let issuer = Issuer::start().await;
        config += &table(case.name, &issuer);
        config += "expose = [\"authed_user\", \"team\"]\n";
        issuers.push(issuer);
    }
    let mut daemon = Daemon::start(&home, "a", &config, &[("SECRET", CLIENT_SECRET)]).await;
    let attacks = cases.iter().zip(&issuers).map(|(case, issuer)| attack(&daemon, case, issuer));
    let failed: Vec<_> = join_all(attacks).await.into_iter().flatten().collect();
    assert!(failed.is_empty(), "{failed:#?}");

    daemon.restart().await;
    let list = daemon.request("GET", "/v1/tokens", &[], "").await;
    assert_eq!(list.json()["tokens"].as_array().unwrap().len(), cases.len());
    for case in &cases {
        let served = daemon.request("GET", &format!("/v1/tokens/{}", case.name), &[], "").await;
        assert_eq!(served.status, 200, "{} after a restart", case.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_takes_no_token_along() {
    let world = World::new().await;
    let elsewhere = Issuer::start().await;
    for status in [301, 302, 303, 307, 308] {
        let target = format!("/v1/tokens/corp?bucket=b{status}");
        crate::world::log_in(&world.daemon, &world.issuer, &target).await;
        world.issuer.script(Answer::Raw(Raw::new(status, "", "").header("location", &elsewhere.token_endpoint())));
        let refused = world.daemon.request("POST", &format!("/v1/tokens/corp/refresh?bucket=b{status}"), &[], "").await;
        assert_eq!(refused.status, 502, "{}", refused.text());
    }
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_lies_gets_no_token() {
    let issuer = Issuer::start().await;
    let evil = Issuer::start().await;
    let origin = issuer.origin();
    let lies = [
        ("another", json!({"issuer": evil.origin(), "token_endpoint": evil.token_endpoint()})),
        ("nobody", json!({"token_endpoint": evil.token_endpoint()})),
        ("plain", json!({"issuer": format!("{origin}/plain"), "token_endpoint": "http://evil.example/token"})),
        ("file", json!({"issuer": format!("{origin}/file"), "token_endpoint": "file:///etc/passwd"})),
        ("user", json!({"issuer": format!("{origin}/user"), "token_endpoint": "https://a:b@evil.example/token"})),
        ("number", json!({"issuer": format!("{origin}/number"), "token_endpoint": 7})),
        ("nothing", json!([])),
    ];
    let mut config = String::new();
    for (name, metadata) in &lies {
        issuer.serve(&format!("/{name}/.well-known/openid-configuration"), Raw::json(200, metadata));
        writeln!(config, "[providers.{name}]\nissuer = \"{origin}/{name}\"\nclient_id = \"me\"").unwrap();
    }
    let home = Home::new();
    let daemon = Daemon::start(&home, "a", &config, &[]).await;
    let attacks = lies.iter().map(async |(name, _)| {
        log_in(&daemon, name, &issuer).await;
        let refused = daemon.request("POST", &format!("/v1/tokens/{name}/refresh"), &[], "").await;
        assert_eq!(refused.status, 502, "{name}: {}", refused.text());
        assert_eq!(daemon.request("GET", &format!("/v1/tokens/{name}"), &[], "").await.status, 200);
    });
    join_all(attacks).await;
    assert!(evil.requests().is_empty() && issuer.presentations().is_empty());
}

/// Endless heads and 1xx answers, which no scripted server sends.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_without_an_end_is_given_up_in_time() {
    let mut tasks = JoinSet::new();
    let mut config = "[refresh]\nrequest_timeout = \"2s\"\n".to_owned();
    let endless: [(&str, &[u8], &[u8]); 4] = [
        ("headers", b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        ("continues", b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ("chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"4\r\nxxxx\r\n"),
        ("trailers", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"x: y\r\n"),
    ];
    for (name, start, rest) in endless {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        writeln!(config, "[providers.{name}]\ntoken_endpoint = \"http://{address}/token\"\nclient_id = \"me\"")
            .unwrap();
        tasks.spawn(async move {
            let rest = Arc::new(rest.repeat(1000));
            let mut served = JoinSet::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let rest = Arc::clone(&rest);
                served.spawn(async move {
                    let asked = stream.read(&mut [0; 4096]).await.unwrap();
                    let mut alive = asked > 0 && stream.write_all(start).await.is_ok();
                    while alive {
                        alive = stream.write_all(&rest).await.is_ok();
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                });
            }
        });
    }
    let (home, issuer) = (Home::new(), Issuer::start().await);
    let daemon = Daemon::start(&home, "a", &config, &[]).await;
    let attacks = endless.iter().map(async |(name, ..)| {
        log_in(&daemon, name, &issuer).await;
        let target = format!("/v1/tokens/{name}/refresh");
        let answer = timeout(Duration::from_secs(20), daemon.request("POST", &target, &[], "")).await;
        let answer = answer.unwrap_or_else(|_| panic!("{name} has no end"));
        assert!([502, 504].contains(&answer.status), "{name}: {}", answer.text());
    });
    join_all(attacks).await;
}
