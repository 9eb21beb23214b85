//! oidc-provider from npm: strict. A spent refresh token kills its family.

use credproxy::provider::Flow;
use url::Url;

use crate::{
    server::{Refusal, Server},
    support::{
        front::Front,
        oidc::{self, Oidc},
        server::{Auth, Client},
    },
};

pub(crate) struct OidcProvider {
    front: Front,
    oidc: Oidc,
}

impl OidcProvider {
    pub(crate) async fn start() -> Self {
        let front = Front::start().await;
        let oidc = Oidc::start_behind(&front).await;
        Self { front, oidc }
    }
}

impl Server for OidcProvider {
    const NAME: &'static str = "oidc-provider";
    const AUTHS: &'static [Auth] = &[Auth::None, Auth::Post, Auth::Basic];
    const SCOPE: [&'static str; 2] = ["openid offline_access", "openid"];
    const NARROWED: &'static str = "openid";
    const REFUSAL: Refusal = Refusal::InvalidGrant;
    const TOKEN_PATH: &'static str = "/token";
    const GRACE: bool = false;
    const PUBLIC_REVOKES: bool = true;

    fn front(&self) -> &Front {
        &self.front
    }

    fn client(&self, _: Flow, auth: Auth) -> Client {
        let all = [oidc::Client::Public, oidc::Client::Post, oidc::Client::Basic].map(oidc::Client::registered);
        all.into_iter().find(|client| client.auth == auth).expect("a client of this kind")
    }

    fn keys(&self, _: &Client) -> String {
        // Without the prompt no refresh token is given (OpenID Connect Core section 11).
        format!("authorization_endpoint = \"{}/auth?prompt=consent\"\n", self.front.origin())
    }

    async fn agree(&self, authorization_url: &str) -> Url {
        self.oidc.agree(authorization_url).await
    }

    async fn approve(&self, verification_uri: &str) {
        self.oidc.confirm_device(verification_uri, true).await;
    }
}
