//! Logins of a sandbox beside the host's, and logins whose answer is at the provider when they are to end: by the real
//! daemon at a scripted provider.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::support::{
    daemon::Daemon,
    http::{Connection, Response, code, request},
    issuer::{Answer, Gate, Raw},
    world::{JSON, World},
};

/// A living daemon answers within milliseconds; a busy machine takes its time.
const AT_ONCE: Duration = Duration::from_secs(5);

const LOOK: Duration = Duration::from_millis(10);

async fn world(more: &str) -> World {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    World::start(|issuer| {
        format!(
            "{more}\n\
             [sockets.box]\npath = \"{{home}}/run/box/s\"\nrole = \"sandbox\"\nallow = [\"op/*\", \"fixed/*\"]\n\
             operations = [\"read\", \"refresh\", \"login\"]\n\
             {}{}redirect_uri = \"http://127.0.0.1:{port}/callback\"\n",
            issuer.provider("op"),
            issuer.provider("fixed"),
        )
    })
    .await
}

async fn put(world: &World, bucket: &str, grant: &Value) {
    let target = format!("/v1/tokens/op?bucket={bucket}");
    let put = world.daemon.request("PUT", &target, &[JSON], grant.to_string()).await;
    assert!([201, 204].contains(&put.status), "{}", put.text());
}

async fn token(world: &World, bucket: &str) -> Response {
    world.daemon.request("GET", &format!("/v1/tokens/op?bucket={bucket}"), &[], "").await
}

async fn begin(socket: &Path, provider: &str, bucket: &str, flow: &str) -> Response {
    let body = json!({"provider": provider, "bucket": bucket, "flow": flow}).to_string();
    timeout(AT_ONCE, request(socket, "POST", "/v1/logins", &[JSON], body)).await.expect("it is answered")
}

fn path(login: &Value) -> String {
    format!("/v1/logins/{}", login["id"].as_str().unwrap())
}

async fn bring(socket: PathBuf, login: Value, code: String) -> Response {
    let body = json!({"code": code}).to_string();
    request(&socket, "POST", &format!("{}/code", path(&login)), &[JSON], body).await
}

fn conflict() -> (u16, String) {
    (409, "GRANT_CONFLICT".to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandboxs_login_never_replaces_a_grant_that_is_of_use() {
    let world = world("").await;
    let living = world.issuer.grant();
    let access = living["access_token"].clone();
    put(&world, "kept", &living).await;
    for flow in ["paste", "device", "browser"] {
        let refused = begin(&world.socket("box"), "op", "kept", flow).await;
        assert_eq!(code(&refused), conflict(), "{}", refused.text());
    }
    assert!(world.issuer.requests().is_empty(), "no provider was asked");

    // Nor one that was stored while the person was on the way.
    let login = begin(&world.socket("box"), "op", "late", "paste").await.json();
    put(&world, "late", &json!({"access_token": "at-host", "expires_in": 3600})).await;
    let back = world.issuer.agree(login["authorization_url"].as_str().unwrap());
    let refused = bring(world.socket("box"), login.clone(), back.to_string()).await;
    assert_eq!(code(&refused), conflict(), "{}", refused.text());
    let ended = request(&world.socket("box"), "GET", &path(&login), &[], "").await.json();
    assert_eq!((&ended["status"], &ended["code"]), (&json!("error"), &json!("GRANT_CONFLICT")));
    assert_eq!(token(&world, "late").await.json()["access_token"], "at-host");
    assert_eq!(token(&world, "kept").await.json()["access_token"], access);

    // What is of no use any more it does: an access token that has expired, and a grant that the provider calls dead.
    put(&world, "over", &json!({"access_token": "at-over", "expiry": 1})).await;
    put(&world, "dead", &json!({"access_token": "at-dead", "refresh_token": "canary-rt-dead", "expires_in": 3600}))
        .await;
    world.issuer.script(Answer::Raw(Raw::error(400, "invalid_grant")));
    let refreshed = world.daemon.request("POST", "/v1/tokens/op/refresh?bucket=dead", &[], "").await;
    assert_eq!(refreshed.status, 401, "{}", refreshed.text());
    for bucket in ["over", "dead", "new"] {
        let login = begin(&world.socket("box"), "op", bucket, "paste").await;
        assert_eq!(login.status, 201, "{bucket}: {}", login.text());
        let back = world.issuer.agree(login.json()["authorization_url"].as_str().unwrap());
        let ended = bring(world.socket("box"), login.json(), back.to_string()).await;
        assert_eq!(ended.json()["status"], "complete", "{bucket}");
    }
    // The host's replaces whatever there is.
    let login = begin(&world.daemon.socket(), "op", "kept", "paste").await.json();
    let back = world.issuer.agree(login["authorization_url"].as_str().unwrap());
    assert_eq!(bring(world.daemon.socket(), login, back.to_string()).await.status, 200);
    assert_ne!(token(&world, "kept").await.json()["access_token"], access);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_begins_so_many_logins_whatever_becomes_of_them() {
    let world = world("").await;
    for _ in 0..10 {
        let begun = begin(&world.socket("box"), "op", "new", "device").await;
        assert_eq!(begun.status, 201, "{}", begun.text());
        let cancelled = request(&world.socket("box"), "DELETE", &path(&begun.json()), &[], "").await;
        assert_eq!(cancelled.status, 204);
    }
    let asked = world.issuer.requests().len();
    for flow in ["device", "paste", "browser"] {
        let refused = begin(&world.socket("box"), "op", "new", flow).await;
        assert_eq!(code(&refused), (429, "RATE_LIMITED".to_owned()), "{}", refused.text());
        let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=30).contains(&wait), "{wait}");
    }
    assert_eq!(world.issuer.requests().len(), asked, "the provider is left alone");
    for _ in 0..20 {
        let begun = begin(&world.daemon.socket(), "op", "new", "device").await;
        assert_eq!(begun.status, 201, "{}", begun.text());
        assert_eq!(request(&world.daemon.socket(), "DELETE", &path(&begun.json()), &[], "").await.status, 204);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_leave_some_logins_to_the_host() {
    let world = world("[limits]\nlogins = 4\nlogins_per_socket = 4").await;
    for _ in 0..2 {
        assert_eq!(begin(&world.socket("box"), "op", "new", "paste").await.status, 201);
    }
    assert_eq!(code(&begin(&world.socket("box"), "op", "new", "paste").await), (429, "RATE_LIMITED".to_owned()));
    for _ in 0..2 {
        assert_eq!(begin(&world.daemon.socket(), "op", "new", "paste").await.status, 201);
    }
    assert_eq!(begin(&world.daemon.socket(), "op", "new", "paste").await.status, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_of_a_registration_is_the_hosts_to_take() {
    let world = world("").await;
    let theirs = begin(&world.socket("box"), "fixed", "new", "browser").await;
    assert_eq!(theirs.status, 201, "{}", theirs.text());
    let ours = begin(&world.daemon.socket(), "fixed", "new", "browser").await;
    assert_eq!(ours.status, 201, "{}", ours.text());
    let gone = request(&world.socket("box"), "GET", &path(&theirs.json()), &[], "").await;
    assert_eq!(code(&gone), (404, "SESSION_NOT_FOUND".to_owned()));
    // And it keeps it.
    let refused = begin(&world.socket("box"), "fixed", "new", "browser").await;
    assert_eq!(refused.status, 429, "{}", refused.text());
    let ours = ours.json();
    let back = world.issuer.agree(ours["authorization_url"].as_str().unwrap());
    let mut browser = Connection::to_provider(&format!("127.0.0.1:{}", back.port().unwrap())).await;
    let page = browser.request("GET", &back[url::Position::BeforePath..], &[], "").await;
    assert!(page.status == 200 && page.text().contains("fixed/new"), "{}", page.text());
}

/// Waits until the daemon's log says it.
async fn logged(daemon: &Daemon, text: &str) {
    let logged = async {
        while !daemon.output_text().contains(text) {
            sleep(LOOK).await;
        }
    };
    timeout(AT_ONCE, logged).await.unwrap_or_else(|_| panic!("the log does not say {text:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_whose_code_is_at_the_provider_is_finished_before_the_daemons_end() {
    for flow in ["paste", "browser", "device"] {
        let mut world = world("").await;
        let gate = Gate::new();
        if flow != "device" {
            world.issuer.script(Answer::HoldAfter(gate.clone()));
        }
        let login = begin(&world.daemon.socket(), "op", "new", flow).await.json();
        let mut answered = JoinSet::new();
        match flow {
            "paste" => {
                let back = world.issuer.agree(login["authorization_url"].as_str().unwrap());
                answered.spawn(bring(world.daemon.socket(), login, back.to_string()));
            }
            "browser" => {
                let back = world.issuer.agree(login["authorization_url"].as_str().unwrap());
                answered.spawn(async move {
                    let mut browser = Connection::to_provider(&format!("127.0.0.1:{}", back.port().unwrap())).await;
                    browser.request("GET", &back[url::Position::BeforePath..], &[], "").await
                });
            }
            _ => world.issuer.script(Answer::HoldAfter(gate.clone())),
        }
        gate.wait_for_arrivals(1).await;
        world.daemon.sigterm();
        logged(&world.daemon, "signal=\"SIGTERM\"").await;
        gate.open();
        while let Some(answer) = timeout(AT_ONCE, answered.join_next()).await.expect("it is answered") {
            let answer = answer.unwrap();
            assert_eq!(answer.status, 200, "{flow}: {}", answer.text());
        }
        assert!(world.daemon.wait().await.success(), "{flow}");
        world.daemon.launch().await;
        let token = token(&world, "new").await;
        assert_eq!(token.status, 200, "{flow}: {}", token.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_cancelled_once_its_code_is_at_the_provider_is_finished() {
    let world = world("").await;
    let gate = Gate::new();
    world.issuer.script(Answer::HoldAfter(gate.clone()));
    let login = begin(&world.daemon.socket(), "op", "new", "paste").await.json();
    let back = world.issuer.agree(login["authorization_url"].as_str().unwrap());
    let mut answered = JoinSet::new();
    answered.spawn(bring(world.daemon.socket(), login.clone(), back.to_string()));
    gate.wait_for_arrivals(1).await;
    assert_eq!(request(&world.daemon.socket(), "DELETE", &path(&login), &[], "").await.status, 204);
    gate.open();
    let answer = timeout(AT_ONCE, answered.join_next()).await.expect("it is answered").unwrap();
    assert_eq!(answer.unwrap().status, 200);
    assert_eq!(token(&world, "new").await.status, 200);
}
