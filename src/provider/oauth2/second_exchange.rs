//! The second exchange: a login brings a long-lived token, which is exchanged for access tokens at another endpoint
//! (GitHub Copilot).
//!
//! The long-lived token takes the role of the refresh token: it is sent to its provider only. It is not spent by its
//! use.
//!
//! Invariants:
//! 1. A login that the provider agreed to is stored, unless the second endpoint reports that its token is dead.

use http::HeaderValue;
use secrecy::ExposeSecret as _;
use serde_json::Map;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::{OAuth2, log};
use crate::{
    dialect::{Request, SecondExchange},
    grant::{Issued, Lifetime},
    provider::{Body, ErrorCode, Reply, wire::Exchange},
    secret::{AccessToken, RefreshToken},
};

/// The placeholder for the access token of a grant that has none yet. It grants nothing, and has expired.
const PLACEHOLDER_TOKEN: &str = "none-yet";

impl OAuth2 {
    /// Requests an access token.
    #[expect(clippy::disallowed_methods, reason = "the long-lived token goes to its own provider")]
    pub(super) async fn second_exchange(&self, second: &SecondExchange, token: &RefreshToken) -> Reply {
        let SecondExchange { endpoint, scheme } = second;
        let credentials = Zeroizing::new(format!("{scheme} {}", token.expose_secret()));
        let Ok(mut credentials) = HeaderValue::from_str(&credentials) else {
            return Reply::NotSent("the token does not fit a header");
        };
        credentials.set_sensitive(true);
        let headers = self.settings.dialect.requests.additions.headers(Request::Refresh);
        let started = self.clock.monotonic();
        let asked = timeout(self.settings.request_timeout, self.http.get_for(endpoint, credentials, headers)).await;
        let reply = self.reply(asked.unwrap_or(Exchange::Lost { timed_out: true }), Some(token));
        log(&reply, self.clock.monotonic().since(started));
        reply
    }

    /// The result of a login: with a second exchange, the first access token from it. If that fails for now (network
    /// failure, endpoint down, invalid answer), the grant is stored with an expired placeholder: the person has agreed,
    /// the code is spent, and the next refresh tries again. Storing nothing would lose the long-lived token, of which
    /// there is no other copy. Only a token that is reported dead makes the login fail.
    pub(super) async fn complete_login(&self, login: Box<Issued>) -> Result<Box<Issued>, Reply> {
        let Some(second) = &self.settings.second_exchange else { return Ok(login) };
        let Some(token) = long_lived(&login.access_token) else { return Err(UNREADABLE) };
        let brought = match self.second_exchange(second, &token).await {
            Reply::Answered { body: Body::Issued(issued), .. } if !issued.reveals(Some(&token)) => Some(issued),
            Reply::Answered { status, body, retry_after } if self.settings.rules.is_dead(status, code(&body)) => {
                tracing::warn!(status, "the second exchange refused a login's token");
                return Err(Reply::Answered { status, body, retry_after });
            }
            Reply::NotSent(_) | Reply::Lost { .. } | Reply::Answered { .. } => {
                tracing::warn!("the second exchange gave no access token yet; the next refresh asks again");
                None
            }
        };
        let brought = match brought {
            Some(issued) => *issued,
            None => self.placeholder().ok_or(UNREADABLE)?,
        };
        let extra = login.extra.members().iter().chain(brought.extra.members());
        let extra: Map<_, _> = extra.map(|(name, value)| (name.clone(), value.clone())).collect();
        // A refresh token of the login itself would be another chain than the one that is kept.
        Ok(Box::new(Issued {
            scope: brought.scope.or(login.scope),
            refresh_token: Some(token),
            extra: extra.into(),
            ..brought
        }))
    }

    fn placeholder(&self) -> Option<Issued> {
        Some(Issued {
            access_token: AccessToken::new(PLACEHOLDER_TOKEN.to_owned()).ok()?,
            token_type: None,
            lifetime: Lifetime::At(self.clock.now()),
            scope: None,
            refresh_token: None,
            extra: Map::new().into(),
        })
    }
}

/// Both kinds of token allow the same characters.
const UNREADABLE: Reply = Reply::Answered { status: 200, body: Body::Unreadable, retry_after: None };

const fn code(body: &Body) -> Option<&ErrorCode> {
    match body {
        Body::Error(code) => Some(code),
        Body::Issued(_) | Body::Unreadable => None,
    }
}

#[expect(clippy::disallowed_methods, reason = "the token changes its part, and never leaves as a refresh token")]
fn long_lived(token: &AccessToken) -> Option<RefreshToken> {
    RefreshToken::new(token.expose_secret().to_owned()).ok()
}
