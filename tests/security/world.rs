//! The real daemon under attack: by its peers, its provider, its files, its environment and its signals. After each
//! attempt it must answer as before, and nobody may have been asked for anything.

use std::{fmt::Write as _, fs, sync::Arc, time::Duration};

use serde_json::json;
use tokio::time::timeout;

use crate::support::{
    daemon::{Daemon, Home},
    http::Response,
    issuer::Issuer,
};

pub(crate) use crate::support::world::JSON;

pub(crate) const TOKEN: &str = "/v1/tokens/corp";
pub(crate) const REFRESH: &str = "/v1/tokens/corp/refresh";

/// A living daemon answers within milliseconds; a busy machine takes its time.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(5);

pub(crate) const CLIENT_SECRET: &str = "canary-client-secret";

/// A provider's table.
pub(crate) fn table(name: &str, issuer: &Issuer) -> String {
    format!(
        "[providers.{name}]\ntoken_endpoint = \"{}\"\nrevocation_endpoint = \"{}\"\nclient_id = \"me\"\n\
         client_secret = {{ env = \"SECRET\" }}\n",
        issuer.token_endpoint(),
        issuer.revocation_endpoint()
    )
}

/// A daemon, the provider `corp`, and one account with a good token.
pub(crate) struct World {
    pub(crate) issuer: Issuer,
    pub(crate) home: Arc<Home>,
    pub(crate) daemon: Daemon,
    pub(crate) access_token: String,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with("").await
    }

    /// `more` is added to the configuration.
    pub(crate) async fn with(more: &str) -> Self {
        let (issuer, home) = (Issuer::start().await, Home::new());
        let config = format!("{}\n{more}", table("corp", &issuer));
        let daemon = Daemon::start(&home, "a", &config, &[("SECRET", CLIENT_SECRET)]).await;
        let access_token = log_in(&daemon, &issuer, TOKEN).await;
        Self { issuer, home, daemon, access_token }
    }

    /// It serves what it served before, at once, and has asked the provider for nothing.
    pub(crate) async fn assert_unhurt(&self, after: &str) {
        let answer = timeout(AT_ONCE, self.daemon.request("GET", TOKEN, &[], "")).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer after {after}"));
        assert_eq!((answer.status, access_token(&answer)), (200, self.access_token.clone()), "{after}");
        assert_eq!(self.issuer.requests().len(), 0, "the provider was asked after {after}");
    }
}

/// Stores a grant with every kind of secret, and gives its access token.
pub(crate) async fn log_in(daemon: &Daemon, issuer: &Issuer, target: &str) -> String {
    let (access, refresh) = issuer.new_grant();
    let body = json!({
        "access_token": access, "refresh_token": refresh, "expires_in": 3600, "scope": "read write",
        "id_token": "canary-id-token", "authed_user": {"refresh_token": "canary-rt-nested"},
    });
    let answer = daemon.request("PUT", target, &[JSON], body.to_string()).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    access
}

pub(crate) fn access_token(answer: &Response) -> String {
    answer.json()["access_token"].as_str().unwrap_or_default().to_owned()
}

/// The digits of the store's key, in both ways to write them.
pub(crate) fn store_key(home: &Home) -> [String; 2] {
    let digits = fs::read_to_string(home.path().join("data/store.key")).unwrap().trim().to_owned();
    let bytes = (0..digits.len()).step_by(2).fold(String::new(), |mut list, at| {
        write!(list, "{}, ", u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).unwrap();
        list
    });
    [digits, bytes]
}
