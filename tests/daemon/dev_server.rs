//! `serve --dev` as a newcomer tries it: logging in by every flow at the built-in server's pages, and logging out.

use std::{fs::DirBuilder, os::unix::fs::DirBuilderExt as _, process::Stdio, time::Duration};

use credproxy::server::dev::Issuer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use url::{Url, form_urlencoded};

use crate::support::http::{Connection, Response, request};

const LIMIT: Duration = Duration::from_secs(20);
const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// A daemon that is being tried out; killed with this value.
struct Dev {
    home: TempDir,
    _child: Child,
}

impl Dev {
    async fn start() -> Self {
        let home = tempfile::Builder::new().prefix("cp-").tempdir().unwrap();
        DirBuilder::new().mode(0o700).create(home.path().join("run")).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_credproxy"))
            .args(["serve", "--dev"])
            .env_clear()
            .env("XDG_RUNTIME_DIR", home.path().join("run"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // It prints once it listens.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        timeout(LIMIT, lines.next_line()).await.expect("it does not start").unwrap().expect("it ended");
        Self { home, _child: child }
    }

    async fn ask(&self, method: &str, path: &str, body: &Value) -> Response {
        let socket = self.home.path().join("run/credproxy/dev/credproxy.sock");
        let body = if body.is_null() { String::new() } else { body.to_string() };
        request(&socket, method, path, &JSON, body).await
    }

    async fn begin(&self, flow: &str) -> Value {
        let begun = self.ask("POST", "/v1/logins", &json!({"provider": "dev", "bucket": "mine", "flow": flow})).await;
        assert_eq!(begun.status, 201, "{}", begun.text());
        begun.json()
    }

    async fn end(&self, login: &Value) -> Value {
        let path = format!("/v1/logins/{}", login["id"].as_str().unwrap());
        let end = async {
            loop {
                let now = self.ask("GET", &path, &Value::Null).await.json();
                if now["status"] != "pending" {
                    break now;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LIMIT, end).await.expect("the login does not end")
    }
}

/// What a browser does with an address: shows the page, or the address that it is sent on to.
async fn browse(method: &str, url: &Url, form: &str) -> (Response, Option<Url>) {
    let mut connection = Connection::to_provider(&format!("127.0.0.1:{}", url.port().unwrap())).await;
    let headers = [("content-type", "application/x-www-form-urlencoded")];
    let page = connection.request(method, &url[url::Position::BeforePath..], &headers, form.to_owned()).await;
    let on = page.header("location").map(|location| url.join(location).unwrap());
    (page, on)
}

/// A person who opens the address and presses a button there.
async fn press(button: &str, address: &str) -> (Response, Option<Url>) {
    let url: Url = address.parse().unwrap();
    let (page, _) = browse("GET", &url, "").await;
    let text = page.text();
    assert!(page.status == 200 && text.contains(&format!("<button name=\"{button}\">")), "{text}");
    let name = text.split("name=\"name\" value=\"").nth(1).unwrap().split('"').next().unwrap();
    browse("POST", &url, &format!("name={name}&{button}=")).await
}

fn address<'a>(login: &'a Value, name: &str) -> &'a str {
    login[name].as_str().unwrap_or_else(|| panic!("no {name} in {login}"))
}

#[tokio::test]
async fn a_newcomer_logs_in_by_every_flow_and_out_again() {
    let dev = Dev::start().await;
    let flows = dev.ask("GET", "/v1/providers", &Value::Null).await.json()["providers"][0]["flows"].clone();
    assert_eq!(flows, json!(["browser", "paste", "device"]));
    for flow in ["browser", "paste", "device"] {
        let login = dev.begin(flow).await;
        if flow == "device" {
            let (page, _) = press("agree", address(&login, "verification_uri_complete")).await;
            assert!(page.text().contains("You agreed"), "{}", page.text());
        } else {
            let back = press("agree", address(&login, "authorization_url")).await.1.unwrap();
            if flow == "browser" {
                assert_eq!(browse("GET", &back, "").await.0.status, 200);
            } else {
                let path = format!("/v1/logins/{}/code", login["id"].as_str().unwrap());
                assert_eq!(dev.ask("POST", &path, &json!({"code": back})).await.status, 200);
            }
        }
        let ended = dev.end(&login).await;
        assert_eq!(ended["status"], "complete", "{flow}: {ended}");
        let refreshed = dev.ask("POST", "/v1/tokens/dev/refresh?bucket=mine", &Value::Null).await;
        assert_eq!(refreshed.status, 200, "{flow}: {}", refreshed.text());
        let gone = dev.ask("DELETE", "/v1/tokens/dev?bucket=mine&revoke=true", &Value::Null).await;
        assert_eq!(gone.json(), json!({"revoked": true}));
    }
}

#[tokio::test]
async fn a_person_may_refuse_and_may_type_the_code_in() {
    let dev = Dev::start().await;
    let login = dev.begin("browser").await;
    let (_, back) = press("refuse", address(&login, "authorization_url")).await;
    assert_eq!(browse("GET", &back.unwrap(), "").await.0.status, 400);
    assert_eq!(dev.end(&login).await["detail"], "the person or the provider refused (access_denied)");

    let login = dev.begin("device").await;
    press("refuse", address(&login, "verification_uri_complete")).await;
    assert_eq!(dev.end(&login).await["detail"], "the person refused (access_denied)");

    let login = dev.begin("device").await;
    let url: Url = address(&login, "verification_uri").parse().unwrap();
    let (asks, _) = browse("GET", &url, "").await;
    assert!(asks.text().contains("Type in the code"), "{}", asks.text());
    let (mistyped, _) = browse("POST", &url, "name=BBBB-BBBX&agree=").await;
    assert_eq!(mistyped.status, 404);
    let typed = address(&login, "user_code").to_lowercase().replace('-', " ");
    let form =
        form_urlencoded::Serializer::new(String::new()).append_pair("name", &typed).append_pair("agree", "").finish();
    assert_eq!(browse("POST", &url, &form).await.0.status, 200);
    assert_eq!(browse("POST", &url, &form).await.0.status, 404, "decided twice");
    assert_eq!(dev.end(&login).await["status"], "complete");
}

/// The built-in server is as strict as those that it stands for.
#[tokio::test]
async fn a_code_is_good_once_for_its_own_redirect_and_verifier() {
    let issuer = Issuer::bind().await.unwrap();
    let (authorize, token): (Url, Url) =
        (issuer.endpoint("authorize").parse().unwrap(), issuer.endpoint("token").parse().unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(issuer.serve(CancellationToken::new()));

    // The example of RFC 7636 appendix B.
    let (verifier, challenge) =
        ("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk", "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    let redirect = "http://127.0.0.1:9/callback";
    let ask = |redirect: &str, method: &str| {
        let mut url = authorize.clone();
        url.query_pairs_mut().extend_pairs([
            ("response_type", "code"),
            ("redirect_uri", redirect),
            ("state", "<script>"),
            ("code_challenge", challenge),
            ("code_challenge_method", method),
        ]);
        url
    };
    for (redirect, method) in [
        ("https://evil.example/", "S256"),
        ("http://evil.example/", "S256"),
        ("https://127.0.0.1/", "S256"),
        ("javascript:alert(1)", "S256"),
        ("", "S256"),
        (redirect, "plain"),
    ] {
        let (page, on) = browse("GET", &ask(redirect, method), "").await;
        assert_eq!((page.status, on), (400, None), "{redirect} {method}");
    }
    let exchange = async |code: &str, redirect: &str, verifier: &str| {
        let form = form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("grant_type", "authorization_code"), ("code", code), ("redirect_uri", redirect)])
            .append_pair("code_verifier", verifier)
            .finish();
        browse("POST", &token, &form).await.0.status
    };
    for (given_redirect, given_verifier, status) in
        [("http://127.0.0.1:8/callback", verifier, 400), (redirect, "another", 400), (redirect, verifier, 200)]
    {
        let url = ask(redirect, "S256");
        let (page, _) = browse("GET", &url, "").await;
        assert!(!page.text().contains("<script>"), "{}", page.text());
        let (_, back) = press("agree", url.as_str()).await;
        let back = back.unwrap();
        let get = |name: &str| back.query_pairs().find(|(key, _)| key == name).unwrap().1.into_owned();
        assert_eq!(get("state"), "<script>");
        assert_eq!(exchange(&get("code"), given_redirect, given_verifier).await, status);
        assert_eq!(exchange(&get("code"), redirect, verifier).await, 400, "a code is good once");
    }
}
