//! What the walk needs to know of a server, and how a person acts there.

use credproxy::provider::Flow;
use url::Url;

use crate::support::{
    front::Front,
    http::Response,
    server::{Auth, Client},
};

/// How a server refuses a refresh token that was spent or revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// As RFC 6749 section 5.2 has it.
    InvalidGrant,
    /// 400 and no word more.
    Empty,
}

pub(crate) trait Server {
    /// What the table calls it.
    const NAME: &'static str;
    /// The ways that it lets a client say who it is.
    const AUTHS: &'static [Auth];
    /// The scope that is asked for, and a part of it.
    const SCOPE: [&'static str; 2];
    /// What it answers to who asks for that part at a refresh.
    const NARROWED: &'static str;
    const REFUSAL: Refusal;
    /// Whether it takes a spent refresh token again for a while, and answers the same successor.
    const GRACE: bool;
    /// The path of the token endpoint.
    const TOKEN_PATH: &'static str;
    /// Whether a client without a secret may revoke.
    const PUBLIC_REVOKES: bool;

    fn front(&self) -> &Front;

    fn issuer(&self) -> String {
        self.front().origin().to_owned()
    }

    /// The client that is registered for this.
    fn client(&self, flow: Flow, auth: Auth) -> Client;

    /// What the daemon's configuration of the provider needs beside issuer, client and scope.
    fn keys(&self, client: &Client) -> String;

    /// A person opens an authorization address, logs in and agrees: where the browser is sent back to.
    async fn agree(&self, authorization_url: &str) -> Url;

    /// A person opens a device's address with the code in it, logs in and agrees.
    async fn approve(&self, verification_uri: &str);

    /// Before that, once: whatever makes a device's login hard there.
    async fn pester(&self, client: &Client, verification_uri: &str) {
        let _ = (client, verification_uri);
    }

    /// The time is over during which this refresh token, which is spent, is taken again.
    async fn pass_grace(&self, refresh_token: &str) {
        let _ = refresh_token;
    }

    /// Presents a refresh token by hand.
    async fn present(&self, client: &Client, refresh_token: &str) -> Response {
        client.present(self.front().side_door(), Self::TOKEN_PATH, refresh_token).await.unwrap()
    }

    /// The answer refuses the refresh token.
    fn refused(answer: &Response) -> bool {
        answer.status == 400
            && match Self::REFUSAL {
                Refusal::InvalidGrant => answer.json()["error"] == "invalid_grant",
                Refusal::Empty => answer.body.is_empty(),
            }
    }
}
