//! django-oauth-toolkit in Python: for 30 s a spent refresh token is answered with the same successor, after that it
//! kills its family.

use std::path::Path;

use credproxy::provider::Flow;
use serde_json::json;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use url::Url;

use crate::{
    server::{Refusal, Server},
    support::{
        front::Front,
        http::Connection,
        person::Person,
        server::{self, Auth, Client},
    },
};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/django");

pub(crate) struct Django {
    front: Front,
    _child: Child,
    _directory: TempDir,
}

/// Every client there may do one thing alone: get codes, or log devices in.
fn client(flow: Flow, auth: Auth) -> Client {
    let device = if flow == Flow::Device { "device-" } else { "" };
    Client {
        id: format!("{device}{}", auth.name()),
        secret: (auth != Auth::None).then_some("canary-cs-django: @%+&=/"),
        auth,
    }
}

impl Django {
    pub(crate) async fn start() -> Self {
        let front = Front::start().await;
        let directory = tempfile::tempdir().unwrap();
        let registered = [Flow::Browser, Flow::Device].into_iter().flat_map(|flow| {
            Self::AUTHS.iter().map(move |auth| {
                let Client { id, secret, .. } = client(flow, *auth);
                json!({"client_id": id, "client_secret": secret, "device": flow == Flow::Device,
                    "redirect_uri": "http://127.0.0.1/callback"})
            })
        });
        let registered: serde_json::Value = registered.collect();
        let mut command = Command::new(Path::new(DIRECTORY).join("installed/bin/python"));
        command.arg(Path::new(DIRECTORY).join("server.py")).arg(directory.path());
        command.env("ISSUER", front.origin()).env("CLIENTS", registered.to_string());
        let (child, line) = server::start(command).await;
        front.stands_before(&format!("127.0.0.1:{}", line["port"]));
        Self { front, _child: child, _directory: directory }
    }

    /// Opens a page of people who are logged in.
    async fn open(&self, url: &str) -> (Person, crate::support::person::Page) {
        // It takes the request's `Host` for its own name.
        let mut person = Person::at(self.front.origin().trim_start_matches("http://"));
        let login = person.open(url).await.unwrap();
        let answers = [("username", "someone"), ("password", "canary-pw-someone")];
        let page = person.submit(&login, &answers).await.unwrap();
        (person, page)
    }
}

impl Server for Django {
    const NAME: &'static str = "django-oauth-toolkit";
    const AUTHS: &'static [Auth] = &[Auth::None, Auth::Post, Auth::Basic];
    const SCOPE: [&'static str; 2] = ["read write", "read"];
    const NARROWED: &'static str = "read";
    const REFUSAL: Refusal = Refusal::InvalidGrant;
    const TOKEN_PATH: &'static str = "/token/";
    const GRACE: bool = true;
    const PUBLIC_REVOKES: bool = true;

    fn front(&self) -> &Front {
        &self.front
    }

    fn client(&self, flow: Flow, auth: Auth) -> Client {
        client(flow, auth)
    }

    fn keys(&self, _: &Client) -> String {
        // Its metadata, where RFC 8414 has it and OpenID Connect has nothing, does not name the device endpoint.
        let device = format!("device_authorization_endpoint = \"{}/device-authorization/\"", self.front.origin());
        format!("{device}\nreuse_grace = \"30s\"\n")
    }

    async fn agree(&self, authorization_url: &str) -> Url {
        let (mut person, page) = self.open(authorization_url).await;
        person.submit(&page, &[("allow", "Authorize")]).await.expect_err("sent back to the client")
    }

    async fn approve(&self, verification_uri: &str) {
        let (mut person, page) = self.open(verification_uri).await;
        let code = page.url.query_pairs().find(|(name, _)| name == "user_code").expect("a user code").1.into_owned();
        let confirmation = person.submit(&page, &[("user_code", &code)]).await.unwrap();
        let done = person.submit(&confirmation, &[("action", "accept")]).await.unwrap();
        assert!(done.url.path().starts_with("/device-grant-status/"), "{done:?}");
    }

    async fn pass_grace(&self, refresh_token: &str) {
        let body = json!({"token": refresh_token, "seconds": 31}).to_string();
        let mut connection = Connection::to_provider(self.front.side_door()).await;
        assert_eq!(connection.request("POST", "/test/age", &[], body).await.status, 200);
    }
}
