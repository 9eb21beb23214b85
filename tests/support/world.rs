//! What most tests of the real program begin with: a scripted authorization server, and a daemon that knows it.

use std::{path::PathBuf, sync::Arc};

use serde_json::{Value, json};

use super::{
    daemon::{Daemon, Home},
    issuer::Issuer,
};

/// The header of a body in JSON.
pub(crate) const JSON: (&str, &str) = ("content-type", "application/json");

/// Each test file adds what its own tests do with it.
pub(crate) struct World {
    pub(crate) issuer: Issuer,
    pub(crate) home: Arc<Home>,
    pub(crate) daemon: Daemon,
}

impl World {
    /// A daemon without a cooldown, and with this configuration besides.
    pub(crate) async fn start(config: impl FnOnce(&Issuer) -> String) -> Self {
        let (issuer, home) = (Issuer::start().await, Home::new());
        let config = format!("[refresh]\ncooldown = \"0s\"\n{}", config(&issuer));
        let daemon = Daemon::start(&home, "a", &config, &[]).await;
        Self { issuer, home, daemon }
    }

    /// Stores a new grant for the account, as `corp` or `corp?bucket=work`. Gives its access token.
    pub(crate) async fn log_in(&self, account: &str) -> String {
        let grant = self.issuer.grant();
        let put = self.daemon.request("PUT", &format!("/v1/tokens/{account}"), &[JSON], grant.to_string()).await;
        assert_eq!(put.status, 201, "{}", put.text());
        grant["access_token"].as_str().unwrap().to_owned()
    }

    /// The socket that the configuration has at `{home}/run/NAME/s`.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        self.home.path().join("run").join(name).join("s")
    }
}

impl Issuer {
    /// The configuration's table of a provider that is this server. Further keys may follow.
    pub(crate) fn provider(&self, name: &str) -> String {
        format!(
            "[providers.{name}]\ntoken_endpoint = {:?}\nauthorization_endpoint = {:?}\n\
             device_authorization_endpoint = {:?}\nclient_id = \"me\"\n",
            self.token_endpoint(),
            self.authorization_endpoint(),
            self.device_authorization_endpoint(),
        )
    }

    /// A new grant, in the form in which one is put.
    pub(crate) fn grant(&self) -> Value {
        let (access, refresh) = self.new_grant();
        json!({"access_token": access, "refresh_token": refresh, "expires_in": 3600})
    }
}
