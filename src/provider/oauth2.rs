//! The OAuth 2.0 provider: refreshes (RFC 6749 section 6), revocations (RFC 7009) and, in a child module, logins.
//!
//! Owns: which requests there are and where they go. Its children own the settings, the form of a request, and how the
//! client authenticates.
//!
//! Invariants:
//! 1. A refresh asks for no scope that was not granted.
//! 2. Everything that belongs to one refresh, discovery too, ends within `request_timeout`.
//! 3. A log line holds status, class of body and latency.
//!
//! Must not know: whether a refresh is due, what a reply means for a grant, which logins are under way.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use secrecy::ExposeSecret as _;
use tokio::time::timeout;
use url::Url;

use crate::{
    clock::Clock,
    dialect::Request,
    grant::Grant,
    provider::{
        Body, DeviceAuthorization, DevicePoll, Flow, Provider, RedirectUri, Refusal, Reply, Rules,
        discovery::{Metadata, discover},
        wire::{Exchange, Http, Progress, answer},
    },
    secret::{AuthorizationCode, CodeVerifier, DeviceCode, LoginState, RefreshToken},
};

mod assertion;
mod client;
mod login;
mod request;
mod second_exchange;
mod settings;

pub use assertion::{Assertions, KeyError};
pub use client::Authentication;
pub use settings::{Endpoints, LoginSettings, Settings, SetupError};

pub use crate::provider::wire::{CaFileError, EndpointError, endpoint};

const NO_REVOCATION: &str = "the provider has no revocation endpoint";

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
        settings.check()?;
        let http = Http::new(settings.ca_file.as_deref(), settings.request_timeout);
        Ok(Self { settings, clock, http, metadata: OnceLock::new() })
    }

    /// The problem with the certificate file, if there is one: then nothing is sent.
    #[must_use]
    pub const fn ca_file_error(&self) -> Option<&CaFileError> {
        self.http.ca_file_error()
    }

    async fn token_endpoint(&self) -> Result<&Url, &'static str> {
        match &self.settings.endpoints.token {
            Some(given) => Ok(given),
            None => Ok(&self.metadata().await?.token),
        }
    }

    async fn refresh_endpoint(&self) -> Result<&Url, &'static str> {
        match &self.settings.endpoints.refresh {
            Some(given) => Ok(given),
            None => self.token_endpoint().await,
        }
    }

    async fn revocation_endpoint(&self) -> Result<&Url, &'static str> {
        match &self.settings.endpoints.revocation {
            Some(given) => Ok(given),
            None if self.settings.endpoints.issuer.is_none() => Err(NO_REVOCATION),
            None => self.metadata().await?.revocation.as_ref().ok_or(NO_REVOCATION),
        }
    }

    async fn metadata(&self) -> Result<&Metadata, &'static str> {
        if let Some(known) = self.metadata.get() {
            return Ok(known);
        }
        let issuer = self.settings.endpoints.issuer.as_ref().ok_or("no issuer is configured")?;
        let headers = self.settings.dialect.requests.additions.every_header();
        let found = discover(&self.http, issuer, headers).await?;
        Ok(self.metadata.get_or_init(|| found))
    }

    /// Parses an answer of the token endpoint, to which `presented` was sent.
    fn reply(&self, exchange: Exchange, presented: Option<&RefreshToken>) -> Reply {
        match exchange {
            Exchange::NotSent(why) => Reply::NotSent(why),
            Exchange::Lost { timed_out } => Reply::Lost { timed_out },
            Exchange::Answered { head, body } => Reply::Answered {
                status: head.status,
                body: body.map_or(Body::Unreadable, |body| {
                    answer::read(head.with(&body), &self.settings.dialect, presented, self.clock.now())
                }),
                retry_after: head.retry_after.and_then(|text| answer::retry_after(&text, self.clock.now())),
            },
        }
    }

    /// Sends one request, within the time limit, to the endpoint that `find` returns.
    async fn call(
        &self,
        request: Request,
        find: impl Future<Output = Result<&Url, &'static str>>,
        parameters: &[(&str, &str)],
    ) -> Exchange {
        let mut progress = Progress::default();
        let steps = async {
            let prepared = async { Ok((find.await?, self.post(request, parameters)?)) };
            match prepared.await {
                Ok((url, post)) => self.http.post(url, post, &mut progress).await,
                Err(why) => Exchange::NotSent(why),
            }
        };
        let outcome = timeout(self.settings.request_timeout, steps).await;
        outcome.unwrap_or_else(|_| progress.broken("the time was up before the request was sent", true))
    }
}

#[async_trait]
impl Provider for OAuth2 {
    #[expect(clippy::disallowed_methods, reason = "the refresh token goes to its own provider")]
    async fn refresh(&self, grant: &Grant) -> Reply {
        let Some(refresh_token) = &grant.refresh_token else { return Reply::NotSent("there is no refresh token") };
        if let Some(second) = &self.settings.second_exchange {
            return self.second_exchange(second, refresh_token).await;
        }
        let mut parameters = vec![("grant_type", "refresh_token"), ("refresh_token", refresh_token.expose_secret())];
        let scope = self.scope_of(grant);
        parameters.extend(scope.as_deref().map(|scope| ("scope", scope)));
        let started = self.clock.monotonic();
        let exchange = self.call(Request::Refresh, self.refresh_endpoint(), &parameters).await;
        let reply = self.reply(exchange, Some(refresh_token));
        log(&reply, self.clock.monotonic().since(started));
        reply
    }

    #[expect(clippy::disallowed_methods, reason = "the token goes to its own provider")]
    async fn revoke(&self, grant: &Grant) -> bool {
        let (token, hint) = match &grant.refresh_token {
            // The token that the second exchange presents is the one that the login brought.
            Some(token) if self.settings.second_exchange.is_some() => (token.expose_secret(), "access_token"),
            Some(token) => (token.expose_secret(), "refresh_token"),
            None => (grant.access_token.expose_secret(), "access_token"),
        };
        let parameters = [("token", token), ("token_type_hint", hint)];
        let outcome = self.call(Request::Revocation, self.revocation_endpoint(), &parameters).await;
        // RFC 7009 section 2.2: 200, also for a token that was not valid; the body does not matter.
        let (why, status) = match outcome {
            Exchange::Answered { head, .. } if (200..300).contains(&head.status) => return true,
            Exchange::Answered { head, .. } => ("the provider refused", Some(head.status)),
            Exchange::Lost { timed_out: true } => ("the provider did not answer in time", None),
            Exchange::Lost { timed_out: false } => ("the provider's answer broke off", None),
            Exchange::NotSent(why) => (why, None),
        };
        tracing::warn!(why, status, "the grant is not revoked: a copy of it may still be good");
        false
    }

    fn token_authority(&self) -> Option<&str> {
        let endpoints = &self.settings.endpoints;
        endpoints.token.as_ref().or(endpoints.issuer.as_ref()).map(Url::as_str)
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
