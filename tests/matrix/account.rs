//! One account at the daemon, and the client that is registered for it.

use std::time::Duration;

use credproxy::provider::Flow;
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt as _,
    time::{sleep, timeout},
};
use url::{Position, Url};

use crate::{
    server::{Refusal, Server},
    support::{
        daemon::Daemon,
        http::{Connection, Response},
        piped::{LIMIT, Piped},
        server::{Auth, Client},
    },
};

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// After so many refusals without a reason, with the access token expired, the daemon gives a grant up.
const REFUSALS: usize = 5;

pub(crate) struct Account<'a, S> {
    pub(crate) server: &'a S,
    pub(crate) daemon: &'a Daemon,
    pub(crate) client: Client,
    flow: Flow,
    /// The name of the provider, each of which has one account.
    name: String,
}

/// The name of the provider for this flow and client.
pub(crate) fn provider(flow: Flow, auth: Auth) -> String {
    format!("{}-{}", flow.name(), auth.name())
}

impl<'a, S: Server> Account<'a, S> {
    pub(crate) fn new(server: &'a S, daemon: &'a Daemon, flow: Flow, auth: Auth) -> Self {
        Self { server, daemon, client: server.client(flow, auth), flow, name: provider(flow, auth) }
    }

    /// An account of another provider with the same client.
    pub(crate) fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// Logs in by the API.
    pub(crate) async fn log_in(&self) {
        let login = self.begin().await;
        match self.flow {
            Flow::Browser => assert_eq!(visit(&self.agree(&login).await).await.status, 200),
            Flow::Paste => assert_eq!(self.paste(&login).await.status, 200),
            Flow::Device => self.server.approve(text(&login, "verification_uri_complete")).await,
        }
        let ended = self.end(&login).await;
        assert_eq!(ended["status"], "complete", "{}: {ended}", self.name);
    }

    /// Logs in by the command line.
    pub(crate) async fn log_in_by_the_command_line(&self) {
        let mut command = Piped::login(self.daemon, &[&self.name, "--flow", self.flow.name()]);
        let address = command.line(if self.flow == Flow::Device { "code=" } else { "code_challenge=" }).await;
        match self.flow {
            Flow::Browser => {
                let page = visit(&self.server.agree(&address).await).await;
                assert!(page.status == 200 && page.text().contains("Logged in"), "{}", page.text());
            }
            Flow::Paste => {
                let back = self.server.agree(&address).await;
                let typed = command.child.stdin.as_mut().unwrap().write_all(format!("{back}\n").as_bytes()).await;
                typed.unwrap();
            }
            Flow::Device => {
                self.server.pester(&self.client, &address).await;
                self.server.approve(&address).await;
            }
        }
        command.line(&format!("logged in to {}", self.name)).await;
        assert_eq!(command.end().await.0, Some(0));
    }

    pub(crate) async fn begin(&self) -> Value {
        let body = json!({"provider": self.name, "flow": self.flow.name()}).to_string();
        let answer = self.daemon.request("POST", "/v1/logins", &JSON, body).await;
        assert_eq!(answer.status, 201, "{}: {}", self.name, answer.text());
        answer.json()
    }

    /// A person agrees, and the daemon must never print the code or the state.
    pub(crate) async fn agree(&self, login: &Value) -> Url {
        let back = self.server.agree(text(login, "authorization_url")).await;
        for (name, value) in back.query_pairs().filter(|(name, _)| ["code", "state"].contains(&&**name)) {
            assert!(value.len() > 20, "{name}");
            self.daemon.watch_secret(&value);
        }
        let issuer = back.query_pairs().find(|(name, _)| name == "iss").map(|(_, value)| value.into_owned());
        assert_eq!(issuer, Some(self.server.issuer()), "{back}");
        back
    }

    pub(crate) async fn paste(&self, login: &Value) -> Response {
        let body = json!({"code": self.agree(login).await}).to_string();
        self.daemon.request("POST", &format!("/v1/logins/{}/code", text(login, "id")), &JSON, body).await
    }

    pub(crate) async fn end(&self, login: &Value) -> Value {
        let path = format!("/v1/logins/{}", text(login, "id"));
        self.daemon.request("GET", &path, &[("prefer", "wait=30")], "").await.json()
    }

    pub(crate) async fn refresh(&self) -> Response {
        self.daemon.request("POST", &format!("/v1/tokens/{}/refresh", self.name), &[], "").await
    }

    /// Has a new access token made.
    pub(crate) async fn refreshed(&self) -> Value {
        let answer = self.refresh().await;
        assert_eq!(answer.status, 200, "{}: {}", self.name, answer.text());
        answer.json()
    }

    /// The refresh token that came with the access token which the daemon has now.
    pub(crate) async fn refresh_token(&self) -> String {
        let token = self.daemon.request("GET", &format!("/v1/tokens/{}", self.name), &[], "").await.json();
        let exchanges = self.server.front().exchanges();
        let issued = exchanges.iter().rev().find(|it| it.answer["access_token"] == token["access_token"]);
        text(&issued.expect("the server made it").answer, "refresh_token").to_owned()
    }

    async fn state(&self) -> Value {
        let list = self.daemon.request("GET", "/v1/tokens", &[], "").await.json();
        let accounts = list["tokens"].as_array().unwrap();
        accounts.iter().find(|it| it["provider"] == self.name.as_str()).expect("the account")["state"].clone()
    }

    /// The daemon finds out that its refresh token is dead, says so, and asks no more. Gives what it says.
    pub(crate) async fn is_found_dead(&self, token: &str) -> Value {
        let presented = || self.server.front().presentations(token);
        let mut answer = self.refresh().await;
        if S::REFUSAL == Refusal::Empty {
            // Nobody says that the grant is dead: it is given up when it is of no more use.
            while presented().iter().filter(|it| it.status == 400).count() < REFUSALS {
                assert_eq!(
                    (answer.status, &answer.json()["code"]),
                    (502, &json!("REFRESH_FAILED")),
                    "{}",
                    answer.text()
                );
                answer = self.refresh().await;
            }
            let expired = async {
                while self.state().await != "reauth_required" {
                    sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(LIMIT, expired).await.unwrap_or_else(|_| panic!("{} is not given up", self.name));
            answer = self.refresh().await;
        }
        assert_eq!((answer.status, &answer.json()["code"]), (401, &json!("REAUTH_REQUIRED")), "{}", answer.text());
        assert_eq!(self.state().await, "reauth_required");
        if S::REFUSAL == Refusal::InvalidGrant {
            let before = presented().len();
            assert_eq!(self.refresh().await.status, 401);
            assert_eq!(presented().len(), before, "it is not latched");
        }
        answer.json()
    }

    /// Logs out by the command line. Gives what it says.
    pub(crate) async fn log_out(&self) -> String {
        let output = self.daemon.command(&["logout", &self.name], "").await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{}: {said}", self.name);
        said
    }
}

/// What the browser does in the end.
pub(crate) async fn visit(back: &Url) -> Response {
    let mut connection = Connection::to_provider(&format!("127.0.0.1:{}", back.port().unwrap())).await;
    connection.request("GET", &back[Position::BeforePath..], &[], "").await
}

#[track_caller]
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}"))
}
