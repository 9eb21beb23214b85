//! The provider of OAuth 2.0: refreshes (RFC 6749 section 6), revokes (RFC 7009), and in its child logs in.
//!
//! Owns: what a request says; its child `client`, how the client authenticates.
//!
//! Invariants:
//! 1. A refresh asks for no scope: what was granted stays granted, and nothing more is asked for.
//! 2. Secrets travel in the body, or in a header marked as sensitive; never in the address.
//! 3. Everything that belongs to one refresh, discovery too, ends within `request_timeout`.
//! 4. A log line holds status, class of body and latency.
//!
//! Must not know: whether a refresh is due, what a reply means for a grant, which logins are under way.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use secrecy::ExposeSecret as _;
use tokio::time::timeout;
use url::{Url, form_urlencoded::Serializer};
use zeroize::Zeroizing;

use crate::{
    clock::Clock,
    grant::Grant,
    provider::{
        Body, DeviceAuthorization, DevicePoll, Flow, Provider, RedirectUri, Refusal, Reply, Rules,
        discovery::{Metadata, discover},
        wire::{CaFileError, Exchange, Http, JSON, Post, Progress, answer, check_endpoint},
    },
    registration::{Dialect, RequestFormat},
    secret::{AuthorizationCode, CodeVerifier, DeviceCode, LoginState, RefreshToken},
};

mod client;
mod login;

pub use client::Authentication;

pub use crate::provider::wire::{EndpointError, endpoint};

/// Where the provider is. An endpoint that is given wins over the issuer's metadata.
#[derive(Debug, Clone, Default)]
pub struct Endpoints {
    /// Whose metadata names the endpoints that are not given (RFC 8414).
    pub issuer: Option<Url>,
    /// Where refresh tokens are presented.
    pub token: Option<Url>,
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
    /// The file of root certificates is not fit for use.
    #[error(transparent)]
    CaFile(#[from] CaFileError),
}

/// One client registration at one OAuth 2.0 authorization server.
#[derive(Debug)]
pub struct OAuth2 {
    settings: Settings,
    clock: Arc<dyn Clock>,
    http: Http,
    /// Set by the first discovery that succeeds.
    metadata: OnceLock<Metadata>,
}

impl OAuth2 {
    /// Checks the settings and reads the file of certificates. Sends nothing.
    pub fn new(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, SetupError> {
        let Endpoints { issuer, token, authorization, device_authorization, revocation } = &settings.endpoints;
        if issuer.is_none() && token.is_none() {
            return Err(SetupError::NoTokenEndpoint);
        }
        let urls = [
            ("issuer", issuer),
            ("token endpoint", token),
            ("authorization endpoint", authorization),
            ("device authorization endpoint", device_authorization),
            ("revocation endpoint", revocation),
        ];
        for (which, url) in urls {
            url.as_ref().map_or(Ok(()), check_endpoint).map_err(|reason| SetupError::Endpoint { which, reason })?;
        }
        if issuer.as_ref().is_some_and(|issuer| issuer.query().is_some()) {
            return Err(SetupError::IssuerQuery);
        }
        let http = Http::new(settings.ca_file.as_deref(), settings.request_timeout)?;
        Ok(Self { settings, clock, http, metadata: OnceLock::new() })
    }

    async fn token_endpoint(&self) -> Result<&Url, &'static str> {
        match &self.settings.endpoints.token {
            Some(given) => Ok(given),
            None => Ok(&self.metadata().await?.token),
        }
    }

    async fn revocation_endpoint(&self) -> Result<&Url, &'static str> {
        match &self.settings.endpoints.revocation {
            Some(given) => Ok(given),
            None => self.metadata().await?.revocation.as_ref().ok_or("the provider has no revocation endpoint"),
        }
    }

    async fn metadata(&self) -> Result<&Metadata, &'static str> {
        if let Some(known) = self.metadata.get() {
            return Ok(known);
        }
        let issuer = self.settings.endpoints.issuer.as_ref().ok_or("no issuer is configured")?;
        let found = discover(&self.http, issuer).await?;
        Ok(self.metadata.get_or_init(|| found))
    }

    /// What an answer of the token endpoint's says, `presented` having been sent there.
    fn reply(&self, exchange: Exchange, presented: Option<&RefreshToken>) -> Reply {
        match exchange {
            Exchange::NotSent(why) => Reply::NotSent(why),
            Exchange::Lost { timed_out } => Reply::Lost { timed_out },
            Exchange::Answered { head, body } => Reply::Answered {
                status: head.status,
                body: body.map_or(Body::Unreadable, |body| {
                    answer::read(head.status, head.content_type.as_deref(), &body, presented)
                }),
                retry_after: head.retry_after.and_then(|text| answer::retry_after(&text, self.clock.now())),
            },
        }
    }

    /// Sends one request, within the time limit, to the endpoint that `find` finds.
    async fn call(
        &self,
        find: impl Future<Output = Result<&Url, &'static str>>,
        parameters: &[(&str, &str)],
    ) -> Exchange {
        let post = match self.post(parameters) {
            Ok(post) => post,
            Err(why) => return Exchange::NotSent(why),
        };
        let mut progress = Progress::default();
        let steps = async {
            match find.await {
                Ok(url) => self.http.post(url, post, &mut progress).await,
                Err(why) => Exchange::NotSent(why),
            }
        };
        let outcome = timeout(self.settings.request_timeout, steps).await;
        outcome.unwrap_or_else(|_| progress.broken("the time was up before the request was sent", true))
    }

    /// The request that says `parameters`, and who the client is.
    fn post(&self, parameters: &[(&str, &str)]) -> Result<Post, &'static str> {
        let Settings { client_id, authentication, dialect, .. } = &self.settings;
        let mut members = parameters.to_vec();
        let authorization = authentication.sign(client_id, &mut members)?;
        let (content_type, body) = match dialect.requests.format {
            RequestFormat::Form => (answer::FORM, form(&members)),
            // A map of texts always serializes.
            RequestFormat::Json => {
                (JSON, serde_json::to_vec(&members.into_iter().collect::<BTreeMap<_, _>>()).unwrap_or_default())
            }
        };
        Ok(Post { content_type, authorization, body: Zeroizing::new(body) })
    }
}

fn form(members: &[(&str, &str)]) -> Vec<u8> {
    // Every byte may need three, so there is room from the start and no copy is left behind by growing.
    let room = members.iter().map(|(name, value)| name.len() + 3 * value.len() + 2).sum();
    Serializer::new(String::with_capacity(room)).extend_pairs(members).finish().into_bytes()
}

#[async_trait]
impl Provider for OAuth2 {
    #[expect(clippy::disallowed_methods, reason = "the refresh token goes to its own provider")]
    async fn refresh(&self, grant: &Grant) -> Reply {
        let Some(refresh_token) = &grant.refresh_token else { return Reply::NotSent("there is no refresh token") };
        let parameters = [("grant_type", "refresh_token"), ("refresh_token", refresh_token.expose_secret())];
        let started = self.clock.monotonic();
        let reply = self.reply(self.call(self.token_endpoint(), &parameters).await, Some(refresh_token));
        log(&reply, self.clock.monotonic().since(started));
        reply
    }

    #[expect(clippy::disallowed_methods, reason = "the token goes to its own provider")]
    async fn revoke(&self, grant: &Grant) -> bool {
        let (token, hint) = match &grant.refresh_token {
            Some(token) => (token.expose_secret(), "refresh_token"),
            None => (grant.access_token.expose_secret(), "access_token"),
        };
        let outcome = self.call(self.revocation_endpoint(), &[("token", token), ("token_type_hint", hint)]).await;
        // RFC 7009 section 2.2: 200, also for a token that was not valid; the body does not matter.
        matches!(outcome, Exchange::Answered { head, .. } if (200..300).contains(&head.status))
    }

    fn rules(&self) -> &Rules {
        &self.settings.rules
    }

    fn flows(&self) -> Vec<Flow> {
        self.offered()
    }

    async fn prepare_login(&self) -> Result<(), &'static str> {
        self.prepare().await
    }

    fn redirect_uri(&self) -> RedirectUri {
        self.settings.login.redirect_uri.clone()
    }

    fn accepts_issuer(&self, iss: Option<&str>) -> bool {
        self.accepts(iss)
    }

    async fn authorization_url(
        &self,
        redirect_uri: &str,
        state: &LoginState,
        verifier: &CodeVerifier,
    ) -> Result<Url, &'static str> {
        self.authorization(redirect_uri, state, verifier).await
    }

    async fn exchange(&self, code: &AuthorizationCode, redirect_uri: &str, verifier: &CodeVerifier) -> Reply {
        self.exchange_code(code, redirect_uri, verifier).await
    }

    async fn start_device(&self, verifier: &CodeVerifier) -> Result<DeviceAuthorization, Refusal> {
        self.device_codes(verifier).await
    }

    async fn poll_device(&self, device_code: &DeviceCode, verifier: &CodeVerifier) -> DevicePoll {
        self.device_token(device_code, verifier).await
    }
}

fn log(reply: &Reply, latency: Duration) {
    let (class, status) = match reply {
        Reply::NotSent(_) => ("not sent", None),
        Reply::Lost { timed_out: true } => ("timed out", None),
        Reply::Lost { timed_out: false } => ("broke off", None),
        Reply::Answered { status, body: Body::Issued(_), .. } => ("tokens", Some(status)),
        Reply::Answered { status, body: Body::Error(_), .. } => ("error", Some(status)),
        Reply::Answered { status, body: Body::Unreadable, .. } => ("unreadable", Some(status)),
    };
    tracing::debug!(class, status, ?latency, "token endpoint");
}
