//! Glewlwyd from Debian: odd. It refuses a spent refresh token, which kills its family, with 400 and an empty body;
//! reads Basic credentials without decoding them; asks for the very port that is registered; doubles slashes; sends
//! `iss` without saying so; calls a narrowed token by the whole scope; and tells devices to slow down.

use std::path::Path;

use credproxy::provider::Flow;
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::{Duration, sleep, timeout},
};
use url::Url;

use crate::{
    server::{Refusal, Server},
    support::{
        front::Front,
        person::Person,
        server::{Auth, Client, START},
    },
};

const INSTALLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/glewlwyd/installed");
const CONFIG: &str = include_str!("../servers/glewlwyd/glewlwyd.conf");
const PLUGIN: &str = include_str!("../servers/glewlwyd/oidc.json");

const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

pub(crate) struct Glewlwyd {
    front: Front,
    /// Each with the port that its redirect is registered with.
    clients: Vec<(Flow, Client, u16)>,
    _child: Child,
    _directory: TempDir,
}

/// A port that is free now.
async fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap().port()
}

impl Glewlwyd {
    pub(crate) async fn start() -> Self {
        let front = Front::start().await;
        let directory = tempfile::tempdir().unwrap();
        let port = free_port().await;
        let child = launch(directory.path(), front.origin(), port).await;
        front.stands_before(&format!("127.0.0.1:{port}"));
        let mut clients = Vec::new();
        for flow in Flow::ALL {
            for auth in Self::AUTHS {
                let secret = (*auth != Auth::None).then_some("canary-cs-glewlwyd: @%+&=/");
                let id = format!("{}-{}", flow.name(), auth.name());
                clients.push((flow, Client { id, secret, auth: *auth }, free_port().await));
            }
        }
        let server = Self { front, clients, _child: child, _directory: directory };
        server.set_up().await;
        server
    }

    /// Someone who is logged in.
    async fn person(&self, name: &str, password: &str) -> Person {
        let mut person = Person::at(self.front.side_door());
        self.call(&mut person, "POST", "/api/auth/", &json!({"username": name, "password": password})).await;
        person
    }

    async fn call(&self, person: &mut Person, method: &str, path: &str, body: &Value) {
        let url = format!("http://{}{path}", self.front.side_door()).parse().unwrap();
        let answer = person.send(method, &url, "application/json", body.to_string()).await;
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text());
    }

    async fn someone(&self) -> Person {
        self.person("someone", "canary-pw-someone").await
    }

    async fn set_up(&self) {
        let mut admin = self.person("admin", "password").await;
        let scopes: Vec<&str> = Self::SCOPE[0].split(' ').collect();
        for scope in &scopes {
            let scope = json!({"name": scope, "display_name": scope, "password_required": true, "scheme": {}});
            self.call(&mut admin, "POST", "/api/scope/", &scope).await;
        }
        let someone = json!({"username": "someone", "password": "canary-pw-someone", "scope": scopes, "enabled": true});
        self.call(&mut admin, "POST", "/api/user/", &someone).await;
        let mut parameters: Value = serde_json::from_str(PLUGIN).unwrap();
        parameters["iss"] = self.issuer().into();
        let plugin = json!({"module": "oidc", "name": "oidc", "display_name": "oidc", "enabled": true,
            "parameters": parameters});
        self.call(&mut admin, "POST", "/api/mod/plugin/", &plugin).await;
        let mut someone = self.someone().await;
        for (_, client, port) in &self.clients {
            let mut registered = json!({"client_id": client.id, "name": client.id, "enabled": true, "scope": [],
                "confidential": client.secret.is_some(), "redirect_uri": [redirect_uri(*port)],
                "authorization_type": ["code", "refresh_token", "device_authorization"]});
            if let Some(secret) = client.secret {
                let method = if client.auth == Auth::Post { "client_secret_post" } else { "client_secret_basic" };
                registered["client_secret"] = secret.into();
                registered["token_endpoint_auth_method"] = json!([method]);
            }
            self.call(&mut admin, "POST", "/api/client/", &registered).await;
            let agreed = json!({"scope": Self::SCOPE[0]});
            self.call(&mut someone, "PUT", &format!("/api/auth/grant/{}", client.id), &agreed).await;
        }
    }
}

fn redirect_uri(port: u16) -> String {
    format!("http://127.0.0.1:{port}/callback")
}

/// Starts the process with a database of its own, and waits until it listens.
async fn launch(directory: &Path, origin: &str, port: u16) -> Child {
    let database = directory.join("glewlwyd.db");
    let options = SqliteConnectOptions::new().filename(&database).create_if_missing(true);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    let tables =
        std::fs::read_to_string(format!("{INSTALLED}/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3"));
    let tables = tables.unwrap_or_else(|error| panic!("glewlwyd: {error}: run ./scripts/test, which installs it"));
    sqlx::raw_sql(sqlx::AssertSqlSafe(tables)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();

    let config = directory.join("glewlwyd.conf");
    let text = CONFIG
        .replace("{port}", &port.to_string())
        .replace("{origin}", origin)
        .replace("{installed}", INSTALLED)
        .replace("{database}", database.to_str().unwrap());
    std::io::Write::write_all(&mut std::fs::File::create(&config).unwrap(), text.as_bytes()).unwrap();
    // It must not outlive a test that is killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(format!("{INSTALLED}/usr/bin/glewlwyd"));
    let mut child = command.arg(format!("--config-file={}", config.display())).kill_on_drop(true).spawn().unwrap();
    let listens = async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(child.try_wait().unwrap().is_none(), "glewlwyd ended");
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(START, listens).await.expect("glewlwyd does not start");
    child
}

impl Server for Glewlwyd {
    const NAME: &'static str = "glewlwyd";
    const AUTHS: &'static [Auth] = &[Auth::None, Auth::Post, Auth::BasicRaw];
    const SCOPE: [&'static str; 2] = ["read write", "read"];
    const NARROWED: &'static str = "read write";
    const REFUSAL: Refusal = Refusal::Empty;
    const TOKEN_PATH: &'static str = "/api/oidc/token";
    const GRACE: bool = false;
    const PUBLIC_REVOKES: bool = false;

    fn front(&self) -> &Front {
        &self.front
    }

    fn issuer(&self) -> String {
        format!("{}/api/oidc", self.front.origin())
    }

    fn client(&self, flow: Flow, auth: Auth) -> Client {
        let found = self.clients.iter().find(|(of, client, _)| *of == flow && client.auth == auth);
        found.expect("a client of this kind").1.clone()
    }

    fn keys(&self, client: &Client) -> String {
        let port = self.clients.iter().find(|(_, it, _)| it.id == client.id).expect("a client of this name").2;
        format!("redirect_uri = {:?}\n", redirect_uri(port))
    }

    async fn agree(&self, authorization_url: &str) -> Url {
        assert!(authorization_url.contains("//api/oidc/auth?"), "no doubled slash: {authorization_url}");
        // The page that would ask is a script; this is what it does when the person has agreed.
        let url = format!("{authorization_url}&g_continue");
        self.someone().await.open(&url).await.expect_err("sent back to the client")
    }

    async fn approve(&self, verification_uri: &str) {
        let url: Url = format!("{verification_uri}&g_continue").parse().unwrap();
        let answer = self.someone().await.send("GET", &url, "", String::new()).await;
        let done = answer.header("location").is_some_and(|location| location.contains("prompt=deviceComplete"));
        assert!(done, "{answer:?}");
    }

    /// Asks in between, so that the daemon is told to slow down.
    async fn pester(&self, client: &Client, verification_uri: &str) {
        let exchanges = self.front.exchanges();
        let begun = exchanges.iter().find(|it| it.answer["verification_uri_complete"] == verification_uri);
        let code = begun.expect("the login has begun").answer["device_code"].as_str().unwrap().to_owned();
        let form = [("grant_type", DEVICE_GRANT), ("device_code", &*code)];
        let slowed = || {
            let exchanges = self.front.exchanges();
            exchanges.iter().any(|it| it.member("device_code") == Some(&code) && it.answer["error"] == "slow_down")
        };
        let asking = async {
            while !slowed() {
                client.ask(self.front.side_door(), Self::TOKEN_PATH, &form).await.unwrap();
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(START, asking).await.expect("the daemon is not told to slow down");
    }
}
