//! The settings of one registration, for the provider client.

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

/// Where the provider is. A configured endpoint takes precedence over the issuer's metadata.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    /// The issuer, whose metadata names the other endpoints (RFC 8414).
    pub issuer: Option<Url>,
    /// The token endpoint: for codes, and for refresh tokens unless `refresh` is set.
    pub token: Option<Url>,
    /// The endpoint for refresh tokens, if another one.
    pub refresh: Option<Url>,
    /// The authorization endpoint.
    pub authorization: Option<Url>,
    /// The device authorization endpoint.
    pub device_authorization: Option<Url>,
    /// The revocation endpoint.
    pub revocation: Option<Url>,
}

/// One client registration, as configured.
#[derive(Debug)]
pub struct Settings {
    /// Where the provider is.
    pub endpoints: Endpoints,
    /// The client id.
    pub client_id: String,
    /// How the client authenticates.
    pub authentication: Authentication,
    /// The provider's dialect of OAuth 2.0.
    pub dialect: Dialect,
    /// The endpoint for access tokens, if a login's token is only good for that one.
    pub second_exchange: Option<SecondExchange>,
    /// The time limit for one refresh, from beginning to end.
    pub request_timeout: Duration,
    /// Root certificates in PEM form, in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// How to read replies.
    pub rules: Rules,
    /// How to log in.
    pub login: LoginSettings,
}

/// How to log in.
#[derive(Debug, Clone)]
pub struct LoginSettings {
    /// The scope to request; `None` for the provider's default.
    pub scopes: Vec<String>,
    /// The registered redirect URI.
    pub redirect_uri: RedirectUri,
    /// Whether codes are bound to a verifier (RFC 7636); `false` for the few servers that refuse it.
    pub pkce: bool,
    /// Whether device codes are bound to one as well: not in any standard, but expected by some providers.
    pub device_pkce: bool,
}

impl Settings {
    /// Checks that a provider can be made from these settings.
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

/// Why settings are invalid.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// No endpoint for refresh tokens is known.
    #[error("neither an issuer nor a token endpoint is given")]
    NoTokenEndpoint,
    /// A URL must not be used.
    #[error("the {which} {reason}")]
    Endpoint {
        /// The URL's name.
        which: &'static str,
        /// What is wrong with it.
        reason: EndpointError,
    },
    /// The issuer has a query, which RFC 8414 section 2 forbids.
    #[error("the issuer holds a query")]
    IssuerQuery,
}
