//! What the provider client is told of one registration.

use std::{path::PathBuf, time::Duration};

use url::Url;

use super::client::Authentication;
use crate::{
    dialect::{Dialect, SecondExchange},
    provider::{
        RedirectUri, Rules,
        wire::{EndpointError, check_endpoint},
    },
};

/// Where the provider is. An endpoint that is given wins over the issuer's metadata.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    /// Whose metadata names the endpoints that are not given (RFC 8414).
    pub issuer: Option<Url>,
    /// Where codes are exchanged, and refresh tokens presented unless told otherwise.
    pub token: Option<Url>,
    /// Where refresh tokens are presented, if not there.
    pub refresh: Option<Url>,
    /// Where a person agrees to a login.
    pub authorization: Option<Url>,
    /// Where device logins begin.
    pub device_authorization: Option<Url>,
    /// Where tokens are revoked.
    pub revocation: Option<Url>,
}

/// One client registration, as configured.
#[derive(Debug)]
pub struct Settings {
    /// Where the provider is.
    pub endpoints: Endpoints,
    /// The client's public name.
    pub client_id: String,
    /// How the client authenticates.
    pub authentication: Authentication,
    /// How the provider speaks OAuth 2.0.
    pub dialect: Dialect,
    /// Where the access token comes from, if the token of a login only opens that place.
    pub second_exchange: Option<SecondExchange>,
    /// The time for one refresh from beginning to end.
    pub request_timeout: Duration,
    /// Root certificates in PEM form, beside the system's.
    pub ca_file: Option<PathBuf>,
    /// How to read replies.
    pub rules: Rules,
    /// How to log in.
    pub login: LoginSettings,
}

/// How to log in.
#[derive(Debug, Clone)]
pub struct LoginSettings {
    /// What to ask for; nothing means what the provider gives unasked.
    pub scopes: Vec<String>,
    /// Where the registration has the browser sent.
    pub redirect_uri: RedirectUri,
    /// Whether codes are bound to a verifier (RFC 7636); for the few servers that refuse that.
    pub pkce: bool,
    /// Whether device codes are, too: no standard, but some providers ask for it.
    pub device_pkce: bool,
}

impl Settings {
    /// Whether a provider can be made of them.
    pub(super) fn check(&self) -> Result<(), SetupError> {
        let Endpoints { issuer, token, refresh, authorization, device_authorization, revocation } = &self.endpoints;
        if issuer.is_none() && token.is_none() {
            return Err(SetupError::NoTokenEndpoint);
        }
        let second = self.second_exchange.as_ref().map(|second| &second.endpoint);
        let urls = [
            ("issuer", issuer.as_ref()),
            ("token endpoint", token.as_ref()),
            ("refresh endpoint", refresh.as_ref()),
            ("authorization endpoint", authorization.as_ref()),
            ("device authorization endpoint", device_authorization.as_ref()),
            ("revocation endpoint", revocation.as_ref()),
            ("endpoint of the second exchange", second),
        ];
        for (which, url) in urls {
            url.map_or(Ok(()), check_endpoint).map_err(|reason| SetupError::Endpoint { which, reason })?;
        }
        if issuer.as_ref().is_some_and(|issuer| issuer.query().is_some()) {
            return Err(SetupError::IssuerQuery);
        }
        Ok(())
    }
}

impl Default for LoginSettings {
    fn default() -> Self {
        Self { scopes: Vec::new(), redirect_uri: RedirectUri::default(), pkce: true, device_pkce: false }
    }
}

/// Why settings make no provider.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Nothing says where refresh tokens are presented.
    #[error("neither an issuer nor a token endpoint is given")]
    NoTokenEndpoint,
    /// A URL must not be used.
    #[error("the {which} {reason}")]
    Endpoint {
        /// Which of the URLs.
        which: &'static str,
        /// What is wrong with it.
        reason: EndpointError,
    },
    /// The issuer has a query, which RFC 8414 section 2 forbids.
    #[error("the issuer holds a query")]
    IssuerQuery,
}
