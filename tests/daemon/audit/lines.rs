//! What a line says.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt as _, time::Duration};

use serde_json::{Value, json};
use tokio::{io::AsyncWriteExt as _, task::JoinSet, time::timeout};

use crate::{
    audit::{JSON, REFRESH, SANDBOX, SOON, TOKEN, World},
    support::{
        audit_log,
        contract::Contract,
        http::{ask_as, open, request},
        issuer::{Answer, Gate, Raw},
        skip::skip,
    },
};

/// A request that an operation is, what it answers, and members that its line has.
struct Case {
    operation: &'static str,
    method: &'static str,
    target: String,
    body: String,
    status: u16,
    line: Value,
}

fn case(operation: &'static str, method: &'static str, target: &str, status: u16, line: Value) -> Case {
    Case { operation, method, target: target.to_owned(), body: String::new(), status, line }
}

/// The members that are known beforehand.
const SAID: [&str; 9] =
    ["socket", "operation", "account", "key", "login", "sandbox", "outcome", "status", "provider_called"];

impl Case {
    /// Its line, as far as it is known.
    fn due(&self) -> Value {
        let mut line = json!({
            "socket": "host", "operation": self.operation, "outcome": "ok", "status": self.status,
            "provider_called": false,
        });
        line.as_object_mut().unwrap().extend(self.line.as_object().unwrap().clone());
        line
    }
}

impl World {
    /// Carries the requests out and holds their lines against them.
    async fn check(&self, cases: &[Case]) {
        let lines = self
            .lines_of(async {
                for case in cases {
                    let headers = if case.body.is_empty() { &[][..] } else { &[JSON] };
                    let answer = self.daemon.request(case.method, &case.target, headers, case.body.clone()).await;
                    assert_eq!(answer.status, case.status, "{} {}", case.operation, answer.text());
                }
            })
            .await;
        assert_eq!(lines.len(), cases.len(), "{lines:#?}");
        // Those that are counted are written later than those after them.
        let told = |line: &Value| SAID.map(|name| line[name].clone());
        let mut left: Vec<_> = lines.iter().map(told).collect();
        for case in cases {
            let due = told(&case.due());
            let found = left.iter().position(|line| *line == due);
            left.swap_remove(found.unwrap_or_else(|| panic!("no line {due:?} in {left:#?}")));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_is_told_of_exactly_once() {
    let world = World::with("").await;
    let begun = async |bucket: &str| {
        let body = json!({"provider": "corp", "bucket": bucket, "flow": "paste"}).to_string();
        world.daemon.request("POST", "/v1/logins", &[JSON], body).await.json()
    };
    let sandbox_body = json!({"allow": ["corp"]}).to_string();
    let made = async || world.daemon.request("POST", "/v1/sandboxes", &[JSON], sandbox_body.clone()).await.json();
    let (login, cancelled, sandbox) = (begun("agent").await, begun("agent").await, made().await);
    let sandbox_path = format!("/v1/sandboxes/{}", sandbox["id"].as_str().unwrap());
    let that_sandbox = json!({"sandbox": sandbox["id"]});
    let id = |login: &Value| login["id"].as_str().unwrap().to_owned();
    let path = |login: &Value| format!("/v1/logins/{}", id(login));
    let code = json!({"code": world.issuer.agree(login["authorization_url"].as_str().unwrap())}).to_string();
    let account = json!({"account": "corp/default"});
    let called = json!({"account": "corp/default", "provider_called": true});
    let agent = json!({"account": "corp/agent", "login": id(&login)});
    let finished = json!({"account": "corp/agent", "login": id(&login), "provider_called": true});
    let renamed = json!({"provider": "corp", "bucket": "renamed"}).to_string();
    let (back, other_name) = (json!({"provider": "corp"}).to_string(), json!({"account": "corp/renamed"}));
    let key = json!({"key": "openai"});
    let secret = json!({"api_key": "canary-api-key"}).to_string();
    let cases = vec![
        case("listTokens", "GET", "/v1/tokens", 200, json!({})),
        case("getToken", "GET", TOKEN, 200, account.clone()),
        case("getToken", "HEAD", TOKEN, 200, account.clone()),
        case("refreshToken", "POST", REFRESH, 200, called.clone()),
        Case { body: world.grant().to_string(), ..case("putToken", "PUT", TOKEN, 204, account.clone()) },
        Case { body: renamed, ..case("renameToken", "POST", "/v1/tokens/corp/rename", 204, account) },
        Case { body: back, ..case("renameToken", "POST", "/v1/tokens/corp/rename?bucket=renamed", 204, other_name) },
        case("deleteToken", "DELETE", "/v1/tokens/corp?revoke=true", 200, called),
        Case { body: secret, ..case("putApiKey", "PUT", "/v1/api-keys/openai", 201, key.clone()) },
        case("listApiKeys", "GET", "/v1/api-keys", 200, json!({})),
        case("getApiKey", "GET", "/v1/api-keys/openai", 200, key.clone()),
        case("deleteApiKey", "DELETE", "/v1/api-keys/openai", 204, key),
        case("getLogin", "GET", &path(&login), 200, agent),
        Case { body: code, ..case("finishLogin", "POST", &format!("{}/code", path(&login)), 200, finished) },
        case("cancelLogin", "DELETE", &path(&cancelled), 204, json!({"login": id(&cancelled)})),
        case("listSandboxes", "GET", "/v1/sandboxes", 200, json!({})),
        case("getSandbox", "GET", &sandbox_path, 200, that_sandbox.clone()),
        case("deleteSandbox", "DELETE", &sandbox_path, 204, that_sandbox),
        case("listProviders", "GET", "/v1/providers", 200, json!({})),
        case("health", "GET", "/v1/health", 200, json!({})),
        case("openapi", "GET", "/openapi.yaml", 200, json!({})),
    ];
    world.check(&cases).await;

    // The id of what begins is not known before.
    let mut begun_login = Value::Null;
    let lines = world.lines_of(async { begun_login = begun("other").await }).await;
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    assert_eq!((&line["operation"], &line["account"]), (&json!("startLogin"), &json!("corp/other")));
    assert_eq!(line["login"], begun_login["id"], "{line}");
    let mut made_sandbox = Value::Null;
    let lines = world.lines_of(async { made_sandbox = made().await }).await;
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    assert_eq!((&line["operation"], &line["sandbox"]), (&json!("createSandbox"), &made_sandbox["id"]));
    let seen = cases.iter().map(|case| case.operation).chain(["startLogin", "createSandbox"]);
    let seen: BTreeSet<_> = seen.map(str::to_owned).collect();
    assert_eq!(seen, Contract::load().operations().into_iter().map(|(.., id)| id).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_has_its_code_and_no_text_of_the_request() {
    let world = World::with("").await;
    let refused = |outcome: &str| json!({"outcome": outcome});
    let of = |account: &str, outcome: &str| json!({"account": account, "outcome": outcome});
    world
        .check(&[
            case("unknown", "GET", "/canary-path?canary=1", 404, refused("NOT_FOUND")),
            case("unknown", "PATCH", TOKEN, 405, refused("INVALID_REQUEST")),
            case("getToken", "GET", "/v1/tokens/corp?bucket=canary%0abucket", 400, refused("INVALID_REQUEST")),
            case("getToken", "GET", "/v1/tokens/corp?bukcet=canary", 400, refused("INVALID_REQUEST")),
            case("getToken", "GET", "/v1/tokens/%22canary%22", 400, refused("INVALID_REQUEST")),
            case("getToken", "GET", "/v1/tokens/corp?bucket=none", 404, of("corp/none", "NOT_FOUND")),
            case("refreshToken", "POST", "/v1/tokens/corp/refresh?bucket=none", 404, of("corp/none", "NOT_FOUND")),
            case("getApiKey", "GET", "/v1/api-keys/canary%20key", 400, refused("INVALID_REQUEST")),
            case("getApiKey", "GET", "/v1/api-keys/none", 404, json!({"key": "none", "outcome": "NOT_FOUND"})),
            case("getLogin", "GET", "/v1/logins/canary", 404, refused("SESSION_NOT_FOUND")),
            Case {
                body: "{\"access_token\": \"canary\"".to_owned(),
                ..case("putToken", "PUT", TOKEN, 400, of("corp/default", "INVALID_REQUEST"))
            },
        ])
        .await;
    let mut headers = vec![("authorization", "Bearer canary-header"), ("prefer", "canary-p"), ("if-match", "canary")];
    let lines = world.lines_of(world.daemon.request("POST", REFRESH, &headers, "")).await;
    assert_eq!(lines[0]["outcome"], "INVALID_REQUEST");
    headers.pop();
    let lines = world.lines_of(world.daemon.request("GET", TOKEN, &headers, "")).await;
    assert_eq!(lines[0]["outcome"], "ok");
    // The whole log is looked through for canaries when the daemon is dropped.
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_says_who_asked_and_when() {
    let world = World::with(SANDBOX).await;
    let lines = world.lines_of(request(&world.sandbox(), "GET", TOKEN, &[], "")).await;
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    assert_eq!((&line["socket"], &line["outcome"]), (&json!("agents"), &json!("ok")));
    assert_eq!(line["uid"], rustix::process::geteuid().as_raw());
    assert_eq!(line["pid"], std::process::id());
    // A confined daemon is shown the name alone.
    let own = std::env::current_exe().unwrap();
    let comm = fs::read_to_string("/proc/self/comm").unwrap();
    let named = line["exe"] == json!(own.to_str()) || line["comm"] == json!(comm.trim_end());
    assert!(named, "{line}");
    let time = line["time"].as_str().unwrap();
    assert!(time.len() == "2026-11-24T13:42:22.123Z".len() && time.ends_with('Z'), "{line}");
    assert!(humantime::parse_rfc3339(time).is_ok(), "{line}");
    assert!(line["latency_us"].as_u64().is_some_and(|micros| micros < 10_000_000), "{line}");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&world.log), mode(world.log.parent().unwrap())), (0o600, 0o700));

    let lines = world.lines_of(request(&world.sandbox(), "PUT", TOKEN, &[JSON], "{}")).await;
    assert_eq!((&lines[0]["account"], &lines[0]["outcome"]), (&json!("corp/default"), &json!("UNAUTHORIZED")));
    let two_hosts = "GET /v1/health HTTP/1.1\r\nHost: x\r\nHost: y\r\nConnection: close\r\n\r\n";
    let lines = world.lines_of(crate::support::http::raw(&world.sandbox(), two_hosts.as_bytes(), SOON)).await;
    assert_eq!((&lines[0]["operation"], &lines[0]["status"]), (&json!("health"), &json!(400)));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_waited_for_one_call_are_told_of_it() {
    let world = World::with("").await;
    let gate = Gate::new();
    world.issuer.script(Answer::HoldAfter(gate.clone()));
    let lines = world
        .lines_of(async {
            let mut callers = JoinSet::new();
            for _ in 0..5 {
                let mut connection = world.daemon.connect().await;
                callers.spawn(async move { connection.request("POST", REFRESH, &[], "").await.status });
            }
            gate.wait_for_arrivals(1).await;
            // A reader of the valid token waits for nothing.
            assert_eq!(world.daemon.request("GET", TOKEN, &[], "").await.status, 200);
            gate.open();
            assert_eq!(callers.join_all().await, [200; 5]);
        })
        .await;
    let called = |operation: &str| -> Vec<bool> {
        let of = lines.iter().filter(|line| line["operation"] == operation);
        of.map(|line| line["provider_called"].as_bool().unwrap()).collect()
    };
    assert_eq!((called("refreshToken"), called("getToken")), (vec![true; 5], vec![false]));
    assert_eq!(world.issuer.presentations().len(), 1);

    world.issuer.script(Answer::Raw(Raw::error(400, "invalid_grant")));
    let lines = world.lines_of(async { drop(world.daemon.request("POST", REFRESH, &[], "").await) }).await;
    assert_eq!((&lines[0]["outcome"], &lines[0]["provider_called"]), (&json!("REAUTH_REQUIRED"), &json!(true)));
    let lines = world.lines_of(async { drop(world.daemon.request("POST", REFRESH, &[], "").await) }).await;
    assert_eq!((&lines[0]["outcome"], &lines[0]["provider_called"]), (&json!("REAUTH_REQUIRED"), &json!(false)));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_leaves_a_line_all_the_same() {
    let world = World::with("").await;
    let gate = Gate::new();
    world.issuer.script(Answer::HoldAfter(gate.clone()));
    let lines = world
        .lines_of(async {
            let mut stream = open(&world.daemon.socket()).await;
            stream.write_all(format!("POST {REFRESH} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
            gate.wait_for_arrivals(1).await;
            drop(stream);
            gate.open();
            let done = async {
                while !audit_log::text(&world.log).contains("refreshToken") {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(SOON, done).await.expect("the refresh is carried out and written down");
        })
        .await;
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert_eq!((&lines[0]["operation"], &lines[0]["account"]), (&json!("refreshToken"), &json!("corp/default")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_is_turned_away_leaves_a_line() {
    if !rustix::process::geteuid().is_root() {
        skip("only root can run processes of other users");
        return;
    }
    let world = World::with(&format!("{SANDBOX}uids = [65534]\n")).await;
    for open in [world.home.path().to_owned(), world.home.path().join("run")] {
        fs::set_permissions(open, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let lines = world
        .lines_of(async {
            for _ in 0..3 {
                assert_eq!(ask_as(65533, &world.sandbox()).await, "", "closed unread");
            }
            assert!(ask_as(65534, &world.sandbox()).await.contains("200 OK"));
        })
        .await;
    let [refused @ .., admitted] = &lines[..] else { panic!("{lines:#?}") };
    assert_eq!(refused.len(), 3, "{lines:#?}");
    for line in refused {
        assert_eq!((&line["operation"], &line["outcome"]), (&json!("connect"), &json!("UNAUTHORIZED")));
        assert_eq!((&line["socket"], &line["uid"], &line["status"]), (&json!("agents"), &json!(65533), &Value::Null));
    }
    assert_eq!((&admitted["operation"], &admitted["uid"]), (&json!("getToken"), &json!(65534)));
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_output_is_a_place_too_and_off_is_none() {
    let mut world = World::with("[audit]\npath = \"stdout\"\n").await;
    assert_eq!(world.daemon.request("GET", TOKEN, &[], "").await.status, 200);
    world.daemon.sigterm();
    assert!(world.daemon.wait().await.success());
    let output = world.daemon.output_text();
    let lines: Vec<Value> = output.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(lines.iter().filter(|line| line["operation"] == "getToken").count(), 1, "{lines:#?}");
    assert!(!world.log.exists());

    let mut world = World::with("[audit]\npath = \"off\"\n").await;
    world.daemon.sigterm();
    assert!(world.daemon.wait().await.success());
    assert!(!world.log.exists() && !world.daemon.output_text().contains("getToken"));
}
