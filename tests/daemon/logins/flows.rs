//! Logins by the real program at an authorization server that someone else wrote.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    time::timeout,
};

use crate::support::{
    daemon::{Daemon, Home},
    http::{Connection, Response, request},
    issuer::{Answer, Issuer, Raw},
    oidc::Oidc,
    piped::{LIMIT, Piped},
};

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// `oidc` as the provider `op`, and a sandbox that may log in to one of its accounts.
fn config(oidc: &Oidc) -> String {
    format!(
        "[refresh]\ncooldown = \"0s\"\n\n\
         [sockets.sandbox]\npath = \"{{home}}/run/sandbox/s\"\nrole = \"sandbox\"\nallow = [\"op/agent\"]\n\
         operations = [\"read\", \"login\"]\n\n\
         [providers.op]\nissuer = \"{issuer}\"\nauthorization_endpoint = \"{issuer}/auth?prompt=consent\"\n\
         client_id = \"public\"\nscopes = [\"openid\", \"offline_access\"]\n",
        issuer = oidc.issuer(),
    )
}

async fn daemon(oidc: &Oidc) -> Daemon {
    Daemon::start(&Home::new(), "a", &config(oidc), &[]).await
}

async fn begin(daemon: &Daemon, bucket: &str, flow: &str) -> Value {
    let body = json!({"provider": "op", "bucket": bucket, "flow": flow}).to_string();
    let answer = daemon.request("POST", "/v1/logins", &JSON, body).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()
}

async fn end(daemon: &Daemon, login: &Value) -> Response {
    let path = format!("/v1/logins/{}", login["id"].as_str().unwrap());
    daemon.request("GET", &path, &[("prefer", "wait=30")], "").await
}

/// A person agrees; gives the address that the browser is sent to.
async fn agree(daemon: &Daemon, oidc: &Oidc, login: &Value) -> url::Url {
    let back = oidc.agree(login["authorization_url"].as_str().unwrap()).await;
    for (name, value) in back.query_pairs().filter(|(name, _)| ["code", "state"].contains(&&**name)) {
        assert!(value.len() > 20, "{name}");
        daemon.watch_secret(&value);
    }
    back
}

async fn visit(back: &url::Url) -> Response {
    let mut connection = Connection::to_provider(&format!("127.0.0.1:{}", back.port().unwrap())).await;
    connection.request("GET", &back[url::Position::BeforePath..], &[], "").await
}

/// A daemon whose provider `op` is the scripted server. Codes and device codes of that one are marked, and the harness
/// looks for marks in all that is logged.
async fn scripted(issuer: &Issuer) -> Daemon {
    let config = format!(
        "[logins]\nlifetime = \"10s\"\n\n\
         [providers.op]\ntoken_endpoint = {:?}\nauthorization_endpoint = {:?}\ndevice_authorization_endpoint = {:?}\n\
         client_id = \"me\"\ndevice_pkce = true\n",
        issuer.token_endpoint(),
        issuer.authorization_endpoint(),
        issuer.device_authorization_endpoint(),
    );
    Daemon::start(&Home::new(), "a", &config, &[]).await
}

/// Agrees, and keeps the daemon from ever printing the state.
fn agree_scripted(daemon: &Daemon, issuer: &Issuer, login: &Value) -> (url::Url, String) {
    let back = issuer.agree(login["authorization_url"].as_str().unwrap());
    let get = |name: &str| back.query_pairs().find(|(key, _)| key == name).unwrap().1.into_owned();
    daemon.watch_secret(&get("state"));
    let code = get("code");
    (back, code)
}

async fn bring(daemon: &Daemon, login: &Value, code: &str) -> Response {
    let path = format!("/v1/logins/{}/code", login["id"].as_str().unwrap());
    daemon.request("POST", &path, &JSON, json!({"code": code}).to_string()).await
}

/// From now on neither log nor answer may hold what the provider was sent; how much that was.
fn watch_what_was_sent(daemon: &Daemon, issuer: &Issuer) -> usize {
    let mut found = 0;
    for request in issuer.requests() {
        for (name, value) in url::form_urlencoded::parse(request.body.as_bytes()) {
            if ["code", "code_verifier", "device_code"].contains(&&*name) {
                daemon.watch_refresh_token(&value);
                found += 1;
            }
        }
    }
    found
}

#[tokio::test]
async fn what_a_login_is_made_of_is_in_no_log_and_no_answer() {
    let issuer = Issuer::start().await;
    let daemon = scripted(&issuer).await;
    issuer.decide([Raw::error(400, "authorization_pending")]);
    for flow in ["browser", "paste", "device"] {
        let login = begin(&daemon, "agent", flow).await;
        if flow != "device" {
            let (back, _) = agree_scripted(&daemon, &issuer, &login);
            let status =
                if flow == "browser" { visit(&back).await } else { bring(&daemon, &login, back.as_str()).await };
            assert_eq!(status.status, 200);
        }
        assert_eq!(end(&daemon, &login).await.json()["status"], "complete", "{flow}");
    }
    // A code and its verifier each for the first two; the device asked twice.
    assert_eq!(watch_what_was_sent(&daemon, &issuer), 8);
}

/// Errors are where secrets get out: everything goes wrong that can, and the provider quotes what it was sent.
#[tokio::test]
async fn nor_is_it_when_a_login_goes_wrong() {
    let issuer = Issuer::start().await;
    let daemon = scripted(&issuer).await;
    let late = begin(&daemon, "agent", "browser").await;
    let (late_back, _) = agree_scripted(&daemon, &issuer, &late);
    let quoting = |status, secret: &str| Raw::json(status, &json!({"error": secret, "error_description": secret}));

    for (query, detail) in [
        ("error=access_denied", "the person or the provider refused (access_denied)"),
        ("error=odd&error_description=canary-x", "the person or the provider refused (odd)"),
        ("error=%3Cb%3Ecanary", "the person or the provider refused"),
        ("code=canary%0Acode", "the answer holds no usable code"),
    ] {
        let login = begin(&daemon, "agent", "browser").await;
        let (mut back, _) = agree_scripted(&daemon, &issuer, &login);
        let mut foreign = back.clone();
        back.set_query(Some(&format!("{query}&state={}", state_of(&back))));
        foreign.set_query(Some("code=canary-stray&state=canary-stray"));
        for url in [&foreign, &back] {
            let page = visit(url).await;
            assert!(page.status == 400 && !page.text().contains("canary"), "{}", page.text());
        }
        assert_eq!(end(&daemon, &login).await.json()["detail"], detail);
    }
    for how in ["quoted", "reset", "made up", "malformed", "another's", "cancelled"] {
        let login = begin(&daemon, "agent", "paste").await;
        let (back, code) = agree_scripted(&daemon, &issuer, &login);
        let (brought, status) = match how {
            "quoted" => {
                issuer.script(Answer::Raw(quoting(400, &code)));
                (back.as_str(), 502)
            }
            "reset" => {
                issuer.script(Answer::ResetBefore);
                (back.as_str(), 502)
            }
            "made up" => ("canary-made-up", 502),
            "malformed" => ("canary made up", 400),
            "another's" => (late_back.as_str(), 502),
            _ => {
                let path = format!("/v1/logins/{}", login["id"].as_str().unwrap());
                assert_eq!(daemon.request("DELETE", &path, &[], "").await.status, 204);
                (back.as_str(), 404)
            }
        };
        let answer = bring(&daemon, &login, brought).await;
        assert!(answer.status == status && !answer.text().contains("canary"), "{how}: {}", answer.text());
    }
    for (last, detail) in [
        (quoting(400, "canary-device-quoted"), "the provider ended the login"),
        (Raw::error(400, "access_denied"), "the person refused (access_denied)"),
        (Raw::error(400, "expired_token"), "the code was not confirmed in time (expired_token)"),
    ] {
        issuer.answer_device(Raw::json(
            200,
            &json!({"device_code": "canary-device-quoted", "user_code": "AB-1", "interval": 1,
                "verification_uri": "https://op.example/device"}),
        ));
        issuer.decide([quoting(500, "canary-device-quoted"), last]);
        let login = begin(&daemon, "agent", "device").await;
        let ended = end(&daemon, &login).await.json();
        assert_eq!((&ended["status"], &ended["detail"]), (&json!("error"), &json!(detail)));
    }
    let gone = end(&daemon, &late).await;
    assert_eq!((gone.status, &gone.json()["code"]), (410, &json!("SESSION_EXPIRED")));
    assert_eq!(daemon.request("GET", "/v1/tokens", &[], "").await.json(), json!({"tokens": []}));
    // Three exchanges with a code and a verifier each, and three devices that asked twice.
    assert_eq!(watch_what_was_sent(&daemon, &issuer), 18);
}

fn state_of(back: &url::Url) -> String {
    back.query_pairs().find(|(name, _)| name == "state").unwrap().1.into_owned()
}

/// The host's login is not there for a sandbox, and the other way round.
#[tokio::test]
async fn a_login_is_there_for_its_own_socket_alone() {
    let oidc = Oidc::start().await;
    let daemon = daemon(&oidc).await;
    let sandbox = daemon.socket().parent().unwrap().with_file_name("sandbox").join("s");
    let login = begin(&daemon, "agent", "paste").await;
    let path = format!("/v1/logins/{}", login["id"].as_str().unwrap());
    let back = agree(&daemon, &oidc, &login).await;
    let code = json!({"code": back}).to_string();
    for (method, path, body) in
        [("GET", path.clone(), ""), ("POST", format!("{path}/code"), code.as_str()), ("DELETE", path.clone(), "")]
    {
        let headers = if body.is_empty() { &[][..] } else { &JSON };
        let refused = request(&sandbox, method, &path, headers, body.to_owned()).await;
        assert_eq!((refused.status, &refused.json()["code"]), (404, &json!("SESSION_NOT_FOUND")), "{method}");
    }
    assert_eq!(bring(&daemon, &login, back.as_str()).await.status, 200);
}

#[tokio::test]
async fn a_person_who_aborts_at_the_device_ends_the_login() {
    let oidc = Oidc::start().await;
    let daemon = daemon(&oidc).await;
    let login = begin(&daemon, "agent", "device").await;
    oidc.confirm_device(login["verification_uri_complete"].as_str().unwrap(), false).await;
    let ended = end(&daemon, &login).await.json();
    assert_eq!((&ended["status"], &ended["detail"]), (&json!("error"), &json!("the person refused (access_denied)")));
}

#[tokio::test]
async fn a_login_does_not_survive_a_restart() {
    let oidc = Oidc::start().await;
    let mut daemon = daemon(&oidc).await;
    let mut begun = Vec::new();
    for flow in ["browser", "paste", "device"] {
        begun.push(begin(&daemon, "agent", flow).await);
    }
    daemon.restart().await;
    for login in begun {
        let gone = end(&daemon, &login).await;
        assert_eq!((gone.status, &gone.json()["code"]), (404, &json!("SESSION_NOT_FOUND")));
    }
}

/// The lines of docs/logins.md, run by a shell.
#[tokio::test]
async fn a_sandbox_logs_in_with_curl_alone() {
    let oidc = Oidc::start().await;
    let daemon = daemon(&oidc).await;
    let page = include_str!("../../../docs/logins.md");
    let lines = page.split("<!-- device login -->\n```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let script =
        lines.replace("anthropic", "op").replace("\"provider\":\"op\"", "\"provider\":\"op\",\"bucket\":\"agent\"");
    let socket = daemon.socket().parent().unwrap().with_file_name("sandbox").join("s");
    let mut shell = Command::new("sh")
        .args(["-ec", &script])
        .env("CREDPROXY_SOCKET", socket)
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut output = BufReader::new(shell.stdout.take().unwrap());
    let mut first = Vec::new();
    let read = output.read_until(b'}', &mut first);
    timeout(LIMIT, read).await.expect("no answer to curl").unwrap();
    let first = String::from_utf8(first).unwrap();
    let login: Value =
        serde_json::from_str(first.split_once("\r\n\r\n").map_or(first.as_str(), |(_, body)| body)).unwrap();
    oidc.confirm_device(login["verification_uri_complete"].as_str().unwrap(), true).await;
    let mut rest = String::new();
    timeout(LIMIT, output.read_to_string(&mut rest)).await.expect("the login does not end").unwrap();
    assert!(shell.wait().await.unwrap().success());
    let ended: Value = serde_json::from_str(rest.trim()).unwrap_or_else(|error| panic!("{error}: {rest}"));
    assert_eq!(ended["status"], "complete");
    assert!(ended["token"]["access_token"].is_string(), "{ended}");
}

#[tokio::test]
async fn the_command_line_logs_in_by_device_and_by_pasted_code() {
    let oidc = Oidc::start().await;
    let daemon = daemon(&oidc).await;

    // Without a display, a code to type in elsewhere.
    let mut terminal = Piped::login(&daemon, &["op", "--bucket", "cli", "--json"]);
    let address = terminal.line("user_code=").await;
    oidc.confirm_device(&address, true).await;
    terminal.line("logged in to op/cli; the token lasts 9 min").await;
    let (code, output) = terminal.end().await;
    let shown: Value = serde_json::from_str(&output).unwrap();
    assert_eq!((code, &shown["bucket"], &shown["flow"]), (Some(0), &json!("cli"), &json!("device")));

    let mut terminal = Piped::login(&daemon, &["op", "--flow", "paste"]);
    let address = terminal.line("/auth?").await;
    let back = oidc.agree(&address).await;
    terminal.line("paste the code").await;
    let mut stdin = terminal.child.stdin.take().unwrap();
    stdin.write_all(format!("no code\n{back}\n").as_bytes()).await.unwrap();
    terminal.line("not a valid authorization code").await;
    terminal.line("logged in to op/default").await;
    assert_eq!(terminal.end().await, (Some(0), String::new()));
    drop(stdin);

    let listed = daemon.request("GET", "/v1/tokens", &[], "").await.json();
    assert_eq!(listed["tokens"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn the_command_line_says_why_there_is_no_login_and_cancels_one_that_is_interrupted() {
    let oidc = Oidc::start().await;
    let daemon = daemon(&oidc).await;

    let mut terminal = Piped::login(&daemon, &["op", "--flow", "paste"]);
    terminal.line("paste the code").await;
    let mut stdin = terminal.child.stdin.take().unwrap();
    stdin.write_all(b"made-up\n").await.unwrap();
    terminal.line("error: the provider did not accept the code (invalid_grant) (EXCHANGE_FAILED)").await;
    assert_eq!(terminal.end().await.0, Some(1));

    // Nor does the terminal, which is still being read from, keep it.
    let mut terminal = Piped::login(&daemon, &["op", "--flow", "paste"]);
    let waiting = terminal.child.stdin.take();
    terminal.line("paste the code").await;
    terminal.interrupt();
    terminal.line("error: cancelled").await;
    assert_eq!(terminal.end().await.0, Some(1));
    drop(waiting);

    // An interrupt frees the listener on the daemon's side.
    let mut terminal = Piped::login(&daemon, &["op", "--flow", "browser"]);
    let address: url::Url = terminal.line("/auth?").await.parse().unwrap();
    let redirect = address.query_pairs().find(|(name, _)| name == "redirect_uri").unwrap().1.into_owned();
    let redirect: url::Url = redirect.parse().unwrap();
    assert_eq!(visit(&redirect).await.status, 400);
    terminal.line("Ctrl-C cancels").await;
    terminal.interrupt();
    terminal.line("error: cancelled").await;
    assert_eq!(terminal.end().await.0, Some(1));
    let closed = async {
        while tokio::net::TcpStream::connect(("127.0.0.1", redirect.port().unwrap())).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, closed).await.expect("the listener stays");
}
