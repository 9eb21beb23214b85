//! Logins as a caller meets them: every flow to its end, and everything that can be wrong with one.

use std::{sync::Arc, time::Duration};

use credproxy::{login::Logins, policy::Operation, server::peer::Peer};
use http::HeaderMap;
use serde_json::{Value, json};
use url::Url;

use crate::{
    api::{
        JSON,
        world::{self, Answer, Api, World},
    },
    support::{
        http::{Connection, Response},
        issuer::{Answer as Scripted, Gate, Raw},
    },
};

mod hostile;

const PATIENT: Duration = Duration::from_mins(10);

impl Api {
    async fn begin(&self, body: &Value) -> Answer {
        self.send("POST", "/v1/logins", &[JSON], body.to_string().as_bytes()).await
    }

    /// Begins a login that is there afterwards; gives its address and the answer's body.
    async fn begun(&self, body: &Value) -> (String, Value) {
        let answer = self.begin(body).await;
        assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
        let location = answer.header("location").unwrap().to_owned();
        let login = answer.json();
        assert_eq!((location.rsplit('/').next(), &login["status"]), (login["id"].as_str(), &json!("pending")));
        (location, login)
    }

    async fn bring(&self, location: &str, code: &str) -> Answer {
        let body = json!({"code": code}).to_string();
        self.send("POST", &format!("{location}/code"), &[JSON], body.as_bytes()).await
    }

    /// Waits for the end.
    async fn end(&self, location: &str) -> Answer {
        self.send("GET", location, &[("prefer", "wait=20")], b"").await
    }
}

fn browser() -> Value {
    json!({"provider": "corp", "bucket": "new", "flow": "browser"})
}

fn paste() -> Value {
    json!({"provider": "corp", "bucket": "new", "flow": "paste"})
}

fn device() -> Value {
    json!({"provider": "corp", "bucket": "new", "flow": "device"})
}

/// What a browser does when it is sent to that address.
async fn visit(method: &str, url: &Url) -> Response {
    let mut connection = Connection::to_provider(&format!("127.0.0.1:{}", url.port().unwrap())).await;
    connection.request(method, &url[url::Position::BeforePath..url::Position::AfterQuery], &[], "").await
}

fn agreed(world: &World, login: &Value) -> Url {
    world.issuer.agree(login["authorization_url"].as_str().unwrap())
}

/// No grant is there.
async fn nothing_stored(world: &World) {
    assert_eq!(world.host.get("/v1/tokens/corp?bucket=new").await.code(), "NOT_FOUND");
}

fn page_is_safe(page: &Response) {
    let csp = "default-src 'none'; style-src 'unsafe-inline'";
    assert_eq!(page.header("content-security-policy"), Some(csp));
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let text = page.text();
    for bad in ["canary", "<script", "src=", "href=", "http://", "https://", "{"] {
        let style = text.find("<style>").unwrap()..text.find("</style>").unwrap();
        let outside = format!("{}{}", &text[..style.start], &text[style.end..]);
        assert!(!outside.contains(bad), "{bad} in {outside}");
    }
}

#[tokio::test]
async fn a_browser_login_ends_with_a_page_and_a_grant() {
    let world = World::new().await;
    let (location, login) = world.host.begun(&browser()).await;
    let back = agreed(&world, &login);
    assert_eq!((back.host_str(), back.path()), (Some("127.0.0.1"), "/callback"));
    let first = visit("GET", &back).await;
    assert_eq!(first.status, 200);
    assert!(first.text().contains("Logged in") && first.text().contains("corp/new"));
    page_is_safe(&first);
    let second = visit("GET", &back).await;
    assert_eq!((second.status, second.text()), (200, first.text()));
    let ended = world.host.end(&location).await.json();
    assert_eq!((&ended["status"], ended.get("authorization_url")), (&json!("complete"), None));
    let token = world.host.get("/v1/tokens/corp?bucket=new").await;
    assert_eq!(ended["token"], token.json());
    world.host.post("/v1/tokens/corp/refresh?bucket=new").await.access_token();
    assert_eq!(world.issuer.reused(), 0);
}

#[tokio::test]
async fn a_code_may_be_brought_in_three_forms_and_only_once() {
    let world = World::new().await;
    for form in 0..3 {
        let (location, login) = world.host.begun(&paste()).await;
        let back = agreed(&world, &login);
        let get = |name: &str| back.query_pairs().find(|(key, _)| key == name).unwrap().1.into_owned();
        let text = match form {
            0 => get("code"),
            1 => format!(" {}#{}\n", get("code"), get("state")),
            _ => back.to_string(),
        };
        let done = world.host.bring(&location, &text).await;
        assert_eq!((done.status, &done.json()["status"]), (200, &json!("complete")), "{text}");
        let again = world.host.bring(&location, &text).await;
        assert_eq!((again.status, again.code().as_str()), (409, "SESSION_ALREADY_USED"));
        assert_eq!(world.host.end(&location).await.json()["status"], "complete");
    }
    let (location, login) = world.host.begun(&browser()).await;
    let done = world.host.bring(&location, agreed(&world, &login).as_str()).await;
    assert_eq!(done.json()["status"], "complete", "a browser on another machine");
}

#[tokio::test]
async fn nobody_answers_at_the_address_of_a_pasted_login() {
    let world = World::new().await;
    let (_, login) = world.host.begun(&paste()).await;
    let back = agreed(&world, &login);
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", back.port().unwrap())).await.is_err());
}

#[tokio::test]
async fn a_device_login_waits_for_the_person() {
    let world = World::new().await;
    world.issuer.decide([Raw::error(400, "authorization_pending")]);
    let (location, login) = world.host.begun(&device()).await;
    assert_eq!((&login["user_code"], &login["interval"]), (&json!("WDJB-MJHT"), &json!(1)));
    assert!(login["verification_uri_complete"].as_str().unwrap().ends_with("?user_code=WDJB-MJHT"));
    let pending = world.host.get(&location).await.json();
    assert_eq!(pending, login);
    let code = world.host.bring(&location, "x").await;
    assert_eq!((code.status, code.code().as_str()), (400, "INVALID_REQUEST"));
    let ended = world.host.end(&location).await.json();
    assert_eq!((&ended["status"], ended.get("user_code")), (&json!("complete"), None));
}

#[tokio::test]
async fn a_device_login_that_is_refused_or_too_late_says_so() {
    let world = World::new().await;
    for (answer, detail) in [
        ("access_denied", "the person refused (access_denied)"),
        ("expired_token", "the code was not confirmed in time (expired_token)"),
        ("invalid_grant", "the provider ended the login (invalid_grant)"),
        ("refresh_token_bad", "the provider ended the login"),
    ] {
        world.issuer.decide([Raw::error(400, answer)]);
        let (location, _) = world.host.begun(&device()).await;
        let ended = world.host.end(&location).await;
        let body = ended.json();
        assert_eq!((ended.status, &body["status"], &body["code"]), (200, &json!("error"), &json!("EXCHANGE_FAILED")));
        assert_eq!(body["detail"], detail);
    }
    world.issuer.answer_device(Raw::error(400, "invalid_client"));
    let refused = world.host.begin(&device()).await;
    assert_eq!((refused.status, refused.code().as_str()), (502, "EXCHANGE_FAILED"));
    assert_eq!(refused.json()["detail"], "the provider refused to begin a device login (invalid_client)");
    nothing_stored(&world).await;
}

#[tokio::test]
async fn a_stray_request_to_the_listener_changes_nothing() {
    let world = World::new().await;
    let (location, login) = world.host.begun(&browser()).await;
    let back = agreed(&world, &login);
    let with = |edit: &dyn Fn(&mut Url)| {
        let mut url = back.clone();
        edit(&mut url);
        url
    };
    let stray = [
        ("GET", with(&|url| url.set_query(None)), 400),
        ("GET", with(&|url| url.set_query(Some("code=x"))), 400),
        ("GET", with(&|url| url.set_query(Some("code=x&state=canary-wrong"))), 400),
        ("GET", with(&|url| url.set_query(Some("error=access_denied&state=%3Cscript%3E"))), 400),
        ("GET", with(&|url| url.set_query(Some(&format!("{}&state=x", url.query().unwrap())))), 400),
        ("GET", with(&|url| url.set_path("/")), 404),
        ("GET", with(&|url| url.set_path("/favicon.ico")), 404),
        ("POST", back.clone(), 405),
    ];
    for (method, url, status) in stray {
        let page = visit(method, &url).await;
        assert_eq!(page.status, status, "{method} {url}");
        page_is_safe(&page);
        assert_eq!(world.host.get(&location).await.json()["status"], "pending");
    }
    assert_eq!(visit("GET", &back).await.status, 200);
}

#[tokio::test]
async fn an_answer_that_is_the_logins_and_no_code_ends_it() {
    let world = World::new().await;
    world.issuer.send_iss("https://evil.example");
    let cases: [(&str, Option<Scripted>, &str); 6] = [
        ("error=access_denied", None, "the person or the provider refused (access_denied)"),
        ("error=%3Cscript%3E", None, "the person or the provider refused"),
        ("", None, "the answer holds no code"),
        ("code=made-up", None, "the provider did not accept the code (invalid_grant)"),
        ("code=c", Some(Scripted::Raw(Raw::new(200, "text/html", "<html>"))), "the provider's answer is not readable"),
        ("code=c", Some(Scripted::ResetBefore), "the provider's answer broke off"),
    ];
    for (query, script, detail) in cases {
        let (location, login) = world.host.begun(&browser()).await;
        let mut back = agreed(&world, &login);
        let state = back.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned();
        back.set_query(Some(&format!("{query}&state={state}")));
        if let Some(answer) = script {
            world.issuer.script(answer);
        }
        let page = visit("GET", &back).await;
        assert_eq!(page.status, 400, "{query}");
        assert!(page.text().contains(detail) && page.text().contains("credproxy login corp/new"), "{}", page.text());
        page_is_safe(&page);
        let ended = world.host.end(&location).await.json();
        assert_eq!((&ended["code"], &ended["detail"]), (&json!("EXCHANGE_FAILED"), &json!(detail)));
    }
    nothing_stored(&world).await;
}

#[tokio::test]
async fn a_foreign_issuer_ends_a_login() {
    let world = World::discovering().await;
    world.issuer.send_iss("https://evil.example");
    let (location, login) = world.host.begun(&paste()).await;
    let foreign = agreed(&world, &login);
    let refused = world.host.bring(&location, foreign.as_str()).await;
    assert_eq!((refused.status, refused.code().as_str()), (502, "EXCHANGE_FAILED"));
    assert_eq!(refused.json()["detail"], "the answer came from another issuer than the provider's");
    assert_eq!(world.host.bring(&location, foreign.as_str()).await.code(), "SESSION_ALREADY_USED");
    world.issuer.send_iss(&world.issuer.origin());
    let (location, login) = world.host.begun(&paste()).await;
    assert_eq!(world.host.bring(&location, agreed(&world, &login).as_str()).await.status, 200);
}

#[tokio::test]
async fn what_was_brought_from_another_login_ends_this_one() {
    let world = World::new().await;
    let (first, one) = world.host.begun(&paste()).await;
    let (second, other) = world.host.begun(&paste()).await;
    for (location, foreign) in [(&first, agreed(&world, &other)), (&second, agreed(&world, &one))] {
        let refused = world.host.bring(location, foreign.as_str()).await;
        assert_eq!((refused.status, refused.code().as_str()), (502, "EXCHANGE_FAILED"));
        assert_eq!(refused.json()["detail"], "what was pasted belongs to another login");
    }
    let (location, login) = world.host.begun(&paste()).await;
    for malformed in ["a b", "\u{1}", " "] {
        let refused = world.host.bring(&location, malformed).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "INVALID_REQUEST"));
    }
    assert_eq!(world.host.bring(&location, agreed(&world, &login).as_str()).await.status, 200);
}

#[tokio::test]
async fn two_logins_at_once_are_independent() {
    let world = World::new().await;
    let buckets = ["one", "two"].map(|bucket| json!({"provider": "corp", "bucket": bucket, "flow": "browser"}));
    let (first, one) = world.host.begun(&buckets[0]).await;
    let (second, two) = world.host.begun(&buckets[1]).await;
    assert_eq!(visit("GET", &agreed(&world, &two)).await.status, 200);
    assert_eq!(world.host.end(&second).await.json()["bucket"], "two");
    assert_eq!(world.host.get(&first).await.json()["status"], "pending");
    assert_eq!(visit("GET", &agreed(&world, &one)).await.status, 200);
    let tokens =
        [world.host.get("/v1/tokens/corp?bucket=one").await, world.host.get("/v1/tokens/corp?bucket=two").await];
    assert_ne!(tokens[0].access_token(), tokens[1].access_token());
}

#[tokio::test]
async fn a_login_ends_cooldown_and_latch() {
    let world = World::new().await;
    world.refresh().await.access_token();
    assert_eq!(world.refresh().await.status, 429);
    let log_in = async || {
        let (location, login) = world.host.begun(&json!({"provider": "corp", "flow": "paste"})).await;
        assert_eq!(world.host.bring(&location, agreed(&world, &login).as_str()).await.status, 200);
    };
    log_in().await;
    world.issuer.script(Scripted::Raw(Raw::error(400, "invalid_grant")));
    assert_eq!(world.refresh().await.status, 401);
    log_in().await;
    world.refresh().await.access_token();
}

#[tokio::test]
async fn an_exchange_survives_the_caller_who_hangs_up() {
    let world = World::new().await;
    let (location, login) = world.host.begun(&paste()).await;
    let back = agreed(&world, &login);
    let gate = Gate::new();
    world.issuer.script(Scripted::HoldBefore(gate.clone()));
    tokio::select! {
        _ = world.host.bring(&location, back.as_str()) => panic!("nobody let it go"),
        () = gate.wait_for_arrivals(1) => {}
    }
    gate.open();
    assert_eq!(world.host.end(&location).await.json()["status"], "complete");
}

#[tokio::test]
async fn a_cancelled_login_is_gone_at_once() {
    let world = World::new().await;
    world.issuer.decide((0..9).map(|_| Raw::error(400, "authorization_pending")));
    for body in [browser(), paste(), device()] {
        let (location, login) = world.host.begun(&body).await;
        let (waiting, cancelled) = tokio::join!(world.host.end(&location), async {
            tokio::task::yield_now().await;
            world.host.delete(&location).await
        });
        assert_eq!((cancelled.status, waiting.status), (204, 404), "{body}");
        for answer in [world.host.get(&location).await, world.host.delete(&location).await] {
            assert_eq!((answer.status, answer.code().as_str()), (404, "SESSION_NOT_FOUND"));
        }
        assert_eq!(world.host.bring(&location, "x").await.code(), "SESSION_NOT_FOUND");
        if body == browser() {
            let port = agreed(&world, &login).port().unwrap();
            while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                tokio::task::yield_now().await;
            }
        }
    }
    nothing_stored(&world).await;
}

#[tokio::test]
async fn a_login_that_nobody_finishes_expires_and_is_swept() {
    let world = World::new().await;
    world.issuer.decide((0..9).map(|_| Raw::error(400, "authorization_pending")));
    let host = Api::beside(&world, &Logins::new(world.coordinator.clone(), Duration::from_millis(700)), "host");
    for body in [browser(), paste(), device()] {
        let (location, login) = host.begun(&body).await;
        let ended = host.end(&location).await;
        assert_eq!((ended.status, ended.code().as_str()), (410, "SESSION_EXPIRED"), "{body}");
        assert_eq!(host.bring(&location, "x").await.code(), "SESSION_EXPIRED");
        if body == browser() {
            let page = visit("GET", &agreed(&world, &login)).await;
            assert!(page.status == 400 && page.text().contains("took too long"), "{}", page.text());
        }
        while host.get(&location).await.code() != "SESSION_NOT_FOUND" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    nothing_stored(&world).await;
}

#[tokio::test]
async fn a_login_is_nobody_elses() {
    let world = World::new().await;
    let logins = Logins::new(world.coordinator.clone(), PATIENT);
    let host = Api::beside(&world, &logins, "host");
    let (location, login) = host.begun(&paste()).await;
    let back = agreed(&world, &login);
    let stranger = Api::as_peer(&world, &logins, "host", Peer { uid: 4_000_000, pid: None });
    let elsewhere = Api::beside(&world, &logins, "other");
    for api in [&stranger, &elsewhere] {
        for answer in [
            api.get(&location).await,
            api.end(&location).await,
            api.bring(&location, back.as_str()).await,
            api.delete(&location).await,
        ] {
            assert_eq!((answer.status, answer.code().as_str()), (404, "SESSION_NOT_FOUND"));
        }
    }
    for id in ["", "x", &"0".repeat(32), &"A".repeat(32), "%ff"] {
        assert_eq!(host.get(&format!("/v1/logins/{id}")).await.status, 404, "{id}");
    }
    assert_eq!(host.bring(&location, back.as_str()).await.status, 200);
    let unread = Api::beside(&world, &Logins::new(world.coordinator.clone(), PATIENT), "host");
    assert_eq!(unread.get(&location).await.code(), "SESSION_NOT_FOUND", "a restart");
}

#[tokio::test]
async fn a_sandbox_logs_in_with_the_operation_and_to_its_own_accounts_alone() {
    let world = World::new().await;
    let sandbox = |operations: &[Operation]| Api::new(&world, world::sandbox(&["corp/new", "corp/second"], operations));
    let able = sandbox(&[Operation::Login]);
    for body in
        [json!({"provider": "corp"}), json!({"provider": "nowhere"}), json!({"provider": "corp", "bucket": "x"})]
    {
        let refused = able.begin(&body).await;
        assert_eq!((refused.status, refused.code().as_str()), (403, "UNAUTHORIZED"), "{body}");
    }
    let (location, _) = able.begun(&device()).await;
    let ended = able.end(&location).await.json();
    assert_eq!((&ended["status"], ended.get("token")), (&json!("complete"), None), "it may not read");
    let reader = sandbox(&[Operation::Login, Operation::Read]);
    // The first has a grant now, and a sandbox's login replaces none.
    let again = reader.begin(&device()).await;
    assert_eq!((again.status, again.code().as_str()), (409, "GRANT_CONFLICT"));
    let second = json!({"provider": "corp", "bucket": "second", "flow": "device"});
    let (location, _) = reader.begun(&second).await;
    assert!(reader.end(&location).await.json()["token"]["access_token"].is_string());
    let unable = sandbox(&[Operation::Read, Operation::Refresh]);
    for answer in [
        unable.begin(&device()).await,
        unable.get(&location).await,
        unable.bring(&location, "x").await,
        unable.delete(&location).await,
    ] {
        assert_eq!((answer.status, answer.code().as_str()), (403, "UNAUTHORIZED"));
    }
}

#[tokio::test]
async fn too_many_logins_are_asked_to_wait() {
    let world = World::new().await;
    let mut begun = Vec::new();
    for _ in 0..10 {
        begun.push(world.host.begun(&paste()).await.0);
    }
    let refused = world.host.begin(&paste()).await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "RATE_LIMITED"));
    assert_eq!(world.host.delete(&begun[0]).await.status, 204);
    while world.host.begin(&paste()).await.status != 201 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_malformed_login_is_refused() {
    let world = World::new().await;
    for body in [
        "",
        "{}",
        "[]",
        "[\"corp\",\"new\",\"paste\"]",
        "null",
        "{\"provider\":\"corp\"",
        "{\"provider\":5}",
        "{\"provider\":\"a/b\"}",
        "{\"provider\":\"my_refresh_token\"}",
        "{\"provider\":\"corp\",\"bucket\":\"\"}",
        "{\"provider\":\"corp\",\"bukcet\":\"x\"}",
        "{\"provider\":\"corp\",\"flow\":\"magic\"}",
        "{\"provider\":\"corp\",\"flow\":null}",
        "{\"provider\":\"corp\",\"flow\":\"Browser\"}",
    ] {
        let refused = world.host.send("POST", "/v1/logins", &[JSON], body.as_bytes()).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "INVALID_REQUEST"), "{body}");
    }
    let (location, _) = world.host.begun(&paste()).await;
    for body in ["", "{}", "[\"a\"]", "{\"code\":5}", "{\"code\":\"a\",\"state\":\"b\"}", "\"code\""] {
        let refused = world.host.send("POST", &format!("{location}/code"), &[JSON], body.as_bytes()).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "INVALID_REQUEST"), "{body}");
    }
    let unknown = world.host.begin(&json!({"provider": "nowhere"})).await;
    assert_eq!((unknown.status, unknown.code().as_str()), (501, "PROVIDER_NOT_CONFIGURED"));
    for target in ["/v1/logins?provider=corp".to_owned(), format!("{location}/code?x=1")] {
        assert_eq!(world.host.send("POST", &target, &[JSON], b"{}").await.code(), "INVALID_REQUEST");
    }
    assert!(world.issuer.requests().is_empty());
}

#[tokio::test]
async fn a_provider_that_cannot_log_in_says_so() {
    let world = World::without_logins().await;
    assert_eq!(world.host.get("/v1/providers").await.json()["providers"][0]["flows"], json!([]));
    for body in [json!({"provider": "corp"}), browser(), paste(), device()] {
        let refused = world.host.begin(&body).await;
        assert_eq!((refused.status, refused.code().as_str()), (400, "INVALID_REQUEST"), "{body}");
    }
}

#[tokio::test]
async fn an_access_token_that_is_the_refresh_token_is_not_stored() {
    let world = World::new().await;
    let (location, login) = world.host.begun(&paste()).await;
    let back = agreed(&world, &login);
    let same = json!({"access_token": "canary-rt-same", "refresh_token": "canary-rt-same"});
    world.issuer.script(Scripted::Raw(Raw::json(200, &same)));
    assert_eq!(world.host.bring(&location, back.as_str()).await.code(), "EXCHANGE_FAILED");
    nothing_stored(&world).await;
}

#[tokio::test]
async fn a_port_that_is_set_is_listened_on_and_one_that_is_taken_waited_for() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let redirect = format!("http://localhost:{port}/auth/callback");
    let world = World::with_redirect(&redirect).await;
    let refused = world.host.begin(&browser()).await;
    assert_eq!((refused.status, refused.code().as_str()), (429, "RATE_LIMITED"));
    drop(taken);
    for _ in 0..2 {
        let (_, login) = world.host.begun(&browser()).await;
        let back = agreed(&world, &login);
        assert!(back.as_str().starts_with(&format!("{redirect}?code=")), "{back}");
        assert_eq!(visit("GET", &back).await.status, 200);
    }
}

#[tokio::test]
async fn the_secrets_of_a_login_are_in_no_answer() {
    let world = World::new().await;
    let mut answers: Vec<Answer> = Vec::new();
    for body in [paste(), browser(), device()] {
        let begun = world.host.begin(&body).await;
        let location = begun.header("location").unwrap().to_owned();
        let login = begun.json();
        answers.push(begun);
        answers.push(world.host.get(&location).await);
        if body == paste() {
            answers.push(world.host.bring(&location, agreed(&world, &login).as_str()).await);
        } else if body == browser() {
            visit("GET", &agreed(&world, &login)).await;
        }
        answers.push(world.host.end(&location).await);
        assert_eq!(answers.last().unwrap().json()["status"], "complete");
    }
    let sent = world.issuer.requests();
    let secret = |name: &str| -> Vec<String> {
        let pairs = sent.iter().flat_map(|request| url::form_urlencoded::parse(request.body.as_bytes()));
        pairs.filter(|(key, _)| key == name).map(|(_, value)| value.into_owned()).collect()
    };
    let secrets = ["code", "code_verifier", "device_code"].map(secret);
    assert_eq!(secrets.clone().map(|values| values.len()), [2, 2, 1]);
    let shown = |headers: &HeaderMap| format!("{headers:?}");
    for answer in &answers {
        let text = format!("{}{}", shown(&answer.headers), String::from_utf8_lossy(&answer.body));
        for secret in secrets.iter().flatten() {
            assert!(!text.contains(secret.as_str()), "{text}");
        }
    }
}

#[tokio::test]
async fn a_daemon_that_ends_waits_for_no_login() {
    let world = World::new().await;
    let logins = Logins::new(world.coordinator.clone(), PATIENT);
    let host = Arc::new(Api::beside(&world, &logins, "host"));
    world.issuer.decide((0..9).map(|_| Raw::error(400, "authorization_pending")));
    let mut begun = Vec::new();
    for body in [browser(), paste(), device()] {
        begun.push(host.begun(&body).await.0);
    }
    let (waiting, ()) = tokio::join!(host.end(&begun[0]), async {
        tokio::task::yield_now().await;
        logins.shut_down().await;
    });
    assert_eq!((waiting.status, waiting.code().as_str()), (503, "STORE_UNAVAILABLE"));
    assert_eq!(host.begin(&paste()).await.status, 503);
}
