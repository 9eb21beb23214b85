//! What the authorization servers that others wrote have in common: how one is started, and how a client that is
//! registered there asks it by hand.

use std::{process::Stdio, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};
use url::form_urlencoded::{self, byte_serialize};

use super::http::{Connection, Response};

/// A server compiles some 100 files before it listens; a busy machine takes seconds.
pub(crate) const START: Duration = Duration::from_secs(30);

/// Starts a server of ours that says in a line of JSON where it listens, and ends when its standard input does: it does
/// not outlive a test that is killed.
pub(crate) async fn start(mut command: Command) -> (Child, Value) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let spawned = command.spawn();
    let mut child =
        spawned.unwrap_or_else(|error| panic!("{command:?}: {error}: run ./scripts/test, which installs it"));
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(START, lines.next_line()).await.expect("the authorization server does not start").unwrap();
    (child, serde_json::from_str(&line.expect("the authorization server ended")).unwrap())
}

/// How a client says who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Auth {
    None,
    Post,
    Basic,
    BasicRaw,
}

impl Auth {
    /// As `client_auth` has it in the daemon's configuration.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Post => "post",
            Self::Basic => "basic",
            Self::BasicRaw => "basic_raw",
        }
    }
}

/// A client as it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Client {
    pub(crate) id: String,
    pub(crate) secret: Option<&'static str>,
    pub(crate) auth: Auth,
}

impl Client {
    /// Posts a form to this path of the server at this host and port.
    pub(crate) async fn ask(&self, address: &str, path: &str, form: &[(&str, &str)]) -> Result<Response, hyper::Error> {
        let mut body = form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(form);
        let secret = self.secret.unwrap_or_default();
        let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
        let credentials = match self.auth {
            Auth::None => {
                body.append_pair("client_id", &self.id);
                None
            }
            Auth::Post => {
                body.append_pair("client_id", &self.id).append_pair("client_secret", secret);
                None
            }
            Auth::Basic => Some(format!("{}:{}", encoded(&self.id), encoded(secret))),
            Auth::BasicRaw => Some(format!("{}:{secret}", self.id)),
        };
        let authorization = credentials.map(|pair| format!("Basic {}", BASE64_STANDARD.encode(pair)));
        let mut headers = vec![("content-type", "application/x-www-form-urlencoded")];
        headers.extend(authorization.as_deref().map(|value| ("authorization", value)));
        Connection::to_provider(address).await.try_request("POST", path, &headers, body.finish()).await
    }

    /// Presents a refresh token.
    pub(crate) async fn present(
        &self,
        address: &str,
        path: &str,
        refresh_token: &str,
    ) -> Result<Response, hyper::Error> {
        self.ask(address, path, &[("grant_type", "refresh_token"), ("refresh_token", refresh_token)]).await
    }
}
