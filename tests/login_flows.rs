//! Logins by the real program at an authorization server that someone else wrote.

#![cfg(test)]

mod support;

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::Command,
    time::timeout,
};

use support::{
    daemon::{Daemon, Home},
    http::{Connection, Response},
    issuer::{Issuer, Raw},
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

async fn visit(back: &url::Url) -> Response {
    let mut connection = Connection::to_provider(&format!("127.0.0.1:{}", back.port().unwrap())).await;
    connection.request("GET", &back[url::Position::BeforePath..], &[], "").await
}

/// Codes and device codes of this server are marked, and the harness looks for marks in all that is logged.
#[tokio::test]
async fn what_a_login_is_made_of_is_in_no_log_and_no_answer() {
    let issuer = Issuer::start().await;
    let config = format!(
        "[providers.op]\ntoken_endpoint = {:?}\nauthorization_endpoint = {:?}\ndevice_authorization_endpoint = {:?}\n\
         client_id = \"me\"\ndevice_pkce = true\n",
        issuer.token_endpoint(),
        issuer.authorization_endpoint(),
        issuer.device_authorization_endpoint(),
    );
    let daemon = Daemon::start(&Home::new(), "a", &config, &[]).await;
    issuer.decide([Raw::error(400, "authorization_pending")]);
    for (flow, status) in [("browser", "complete"), ("paste", "complete"), ("device", "complete"), ("paste", "error")] {
        let login = begin(&daemon, "agent", flow).await;
        if let Some(url) = login["authorization_url"].as_str() {
            let back = issuer.agree(url);
            daemon.watch_secret(&back.query_pairs().find(|(name, _)| name == "state").unwrap().1);
            if flow == "browser" {
                assert_eq!(visit(&back).await.status, 200);
            } else {
                let code = if status == "error" { "canary-code-made-up".to_owned() } else { back.to_string() };
                let path = format!("/v1/logins/{}/code", login["id"].as_str().unwrap());
                daemon.request("POST", &path, &JSON, json!({"code": code}).to_string()).await;
            }
        }
        assert_eq!(end(&daemon, &login).await.json()["status"], status, "{flow}");
    }
    let mut found = 0;
    for request in issuer.requests() {
        for (name, value) in url::form_urlencoded::parse(request.body.as_bytes()) {
            if ["code", "code_verifier", "device_code"].contains(&&*name) {
                daemon.watch_refresh_token(&value);
                found += 1;
            }
        }
    }
    assert_eq!(found, 10);
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

/// The lines of the README, run by a shell.
#[tokio::test]
async fn a_sandbox_logs_in_with_curl_alone() {
    let oidc = Oidc::start().await;
    let daemon = daemon(&oidc).await;
    let readme = include_str!("../README.md");
    let lines = readme.split("<!-- device login -->\n```sh\n").nth(1).unwrap().split("```").next().unwrap();
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
    terminal.line("this is no authorization code").await;
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
