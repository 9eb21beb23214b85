//! Logging in: the authorization request (RFC 6749 section 4.1), the exchange of its code, and the requests of a device
//! (RFC 8628).
//!
//! Invariants:
//! 1. A code is exchanged with the verifier whose challenge it was requested with (RFC 7636), unless the configuration
//!    says otherwise.
//! 2. What the person sees or visits contains no device code and no verifier.
//!
//! Must not know: who logs in, how long a login may take.

use std::time::Duration;

use secrecy::ExposeSecret as _;
use serde_json::{Map, Value};
use tokio::time::timeout;
use url::Url;

use super::{Endpoints, OAuth2, log};
use crate::{
    dialect::Request,
    provider::{
        Body, DeviceAuthorization, DevicePoll, ErrorCode, Flow, Refusal, Reply,
        discovery::{Metadata, is_named},
        wire::{Exchange, answer, check_endpoint},
    },
    secret::{AuthorizationCode, CodeVerifier, DeviceCode, LoginState, holds_forbidden_text},
};

/// RFC 8628 section 3.2: the interval if the provider names none.
const DEFAULT_POLL_INTERVAL: Duration = Duration::from_secs(5);

/// RFC 8628 section 3.4.
const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";

/// User codes have about ten characters.
const MAX_USER_CODE_BYTES: usize = 64;

impl OAuth2 {
    pub(super) fn offered(&self) -> Vec<Flow> {
        let Endpoints { issuer, authorization, device_authorization, .. } = &self.settings.endpoints;
        let there = |given: &Option<Url>, of: fn(&Metadata) -> &Option<Url>| match self.metadata.get() {
            _ if given.is_some() => true,
            Some(metadata) => of(metadata).is_some(),
            None => issuer.is_some(),
        };
        let code = there(authorization, |metadata| &metadata.authorization);
        let device = there(device_authorization, |metadata| &metadata.device_authorization);
        Flow::offered(code, device, &self.settings.login.redirect_uri)
    }

    /// Fetches the issuer's metadata, if there is an issuer: for endpoints, and for what RFC 9207 expects.
    pub(super) async fn prepare(&self) -> Result<(), &'static str> {
        let Endpoints { issuer, token, authorization, device_authorization, .. } = &self.settings.endpoints;
        if issuer.is_none() {
            return Ok(());
        }
        let found = timeout(self.settings.request_timeout, self.metadata()).await;
        match found.unwrap_or(Err("discovery: the time was up")) {
            Ok(_) => Ok(()),
            // The configured endpoints may be enough.
            Err(_) if token.is_some() && (authorization.is_some() || device_authorization.is_some()) => Ok(()),
            Err(why) => Err(why),
        }
    }

    /// //Without a configured issuer there is nothing to compare with.
    pub(super) fn accepts(&self, iss: Option<&str>) -> bool {
        match (self.metadata.get(), &self.settings.endpoints.issuer, iss) {
            (Some(metadata), _, Some(iss)) => metadata.issuer == iss,
            (Some(metadata), _, None) => !metadata.sends_iss,
            (None, Some(issuer), Some(iss)) => is_named(issuer, iss),
            (None, _, _) => true,
        }
    }

    #[expect(clippy::disallowed_methods, reason = "the state travels by the browser, to come back by it")]
    pub(super) async fn authorization(
        &self,
        redirect_uri: &str,
        state: &LoginState,
        verifier: &CodeVerifier,
    ) -> Result<Url, &'static str> {
        let endpoint = self.authorization_endpoint().await?;
        let (scope, challenge) = (self.scope(), verifier.challenge());
        let mut parameters = vec![
            ("response_type", "code"),
            ("client_id", self.settings.client_id.as_str()),
            ("redirect_uri", redirect_uri),
            ("state", state.expose_secret()),
        ];
        parameters.extend(scope.as_deref().map(|scope| ("scope", scope)));
        if self.settings.login.pkce {
            parameters.extend([("code_challenge", challenge.as_str()), ("code_challenge_method", "S256")]);
        }
        Ok(self.address(endpoint, &parameters))
    }

    #[expect(clippy::disallowed_methods, reason = "code and verifier go to the provider that made the code")]
    pub(super) async fn exchange_code(
        &self,
        code: &AuthorizationCode,
        redirect_uri: &str,
        verifier: &CodeVerifier,
    ) -> Reply {
        let mut parameters =
            vec![("grant_type", "authorization_code"), ("code", code.expose_secret()), ("redirect_uri", redirect_uri)];
        if self.settings.login.pkce {
            parameters.push(("code_verifier", verifier.expose_secret()));
        }
        let started = self.clock.monotonic();
        let reply = self.reply(self.call(Request::Token, self.token_endpoint(), &parameters).await, None);
        log(&reply, self.clock.monotonic().since(started));
        match reply {
            Reply::Answered { status, body: Body::Error(error), retry_after } => {
                let error = error.unless(|text| code.occurs_in(text) || verifier.occurs_in(text));
                Reply::Answered { status, body: Body::Error(error), retry_after }
            }
            Reply::Answered { status, body: Body::Issued(issued), retry_after } => {
                let complete_login = self.complete_login(issued).await;
                complete_login.map_or_else(
                    |refusal| refusal,
                    |issued| Reply::Answered { status, body: Body::Issued(issued), retry_after },
                )
            }
            Reply::NotSent(_) | Reply::Lost { .. } | Reply::Answered { .. } => reply,
        }
    }

    pub(super) async fn device_codes(&self, verifier: &CodeVerifier) -> Result<DeviceAuthorization, Refusal> {
        let (scope, challenge) = (self.scope(), verifier.challenge());
        let mut parameters: Vec<_> = scope.as_deref().map(|scope| ("scope", scope)).into_iter().collect();
        if self.settings.login.device_pkce {
            parameters.extend([("code_challenge", challenge.as_str()), ("code_challenge_method", "S256")]);
        }
        // RFC 8628 section 3.1 makes it optional for authenticated clients, but some servers require it.
        if self.settings.authentication.is_in_a_header() {
            parameters.push(("client_id", &self.settings.client_id));
        }
        let names = &self.settings.dialect.names;
        let answer = match self.call(Request::Device, self.device_endpoint(), &parameters).await {
            Exchange::NotSent(why) => return Err(why.into()),
            Exchange::Lost { timed_out: true } => return Err("the provider did not answer in time".into()),
            Exchange::Lost { timed_out: false } => return Err("the provider's answer broke off".into()),
            Exchange::Answered { head, body } => body
                .and_then(|body| {
                    let members = answer::members(head.with(&body), names)?;
                    let success = (200..300).contains(&head.status);
                    Some(match answer::error(&members, success) {
                        Some(code) => Err(ErrorCode::new(code, None)),
                        None => Ok(authorization(&members).filter(|_| success)),
                    })
                })
                .unwrap_or(Ok(None)),
        };
        match answer {
            Ok(Some(authorization)) => Ok(authorization),
            Ok(None) => Err("the provider's answer holds no device code to use".into()),
            Err(code) => Err(Refusal { reason: "the provider refused to begin a device login", code: Some(code) }),
        }
    }

    async fn authorization_endpoint(&self) -> Result<&Url, &'static str> {
        if let Some(given) = &self.settings.endpoints.authorization {
            return Ok(given);
        }
        self.metadata().await?.authorization.as_ref().ok_or("the provider has no authorization endpoint")
    }

    async fn device_endpoint(&self) -> Result<&Url, &'static str> {
        if let Some(given) = &self.settings.endpoints.device_authorization {
            return Ok(given);
        }
        self.metadata().await?.device_authorization.as_ref().ok_or("the provider has no device authorization endpoint")
    }

    #[expect(clippy::disallowed_methods, reason = "code and verifier go to the provider that made the code")]
    pub(super) async fn device_token(&self, device_code: &DeviceCode, verifier: &CodeVerifier) -> DevicePoll {
        let mut parameters = vec![("grant_type", DEVICE_GRANT), ("device_code", device_code.expose_secret())];
        if self.settings.login.device_pkce {
            parameters.push(("code_verifier", verifier.expose_secret()));
        }
        let exchange = self.call(Request::Token, self.token_endpoint(), &parameters).await;
        let names = &self.settings.dialect.names;
        // GitHub names the new interval in an error.
        let told = match &exchange {
            Exchange::Answered { head, body: Some(body) } => {
                answer::members(head.with(body), names).and_then(|members| answer::seconds(&members, "interval"))
            }
            Exchange::NotSent(_) | Exchange::Lost { .. } | Exchange::Answered { .. } => None,
        };
        match self.reply(exchange, None) {
            Reply::NotSent(_) | Reply::Lost { .. } => DevicePoll::Unreachable,
            Reply::Answered { body: Body::Issued(issued), .. } => match self.complete_login(issued).await {
                Ok(issued) => DevicePoll::Issued(issued),
                Err(Reply::Answered { body: Body::Error(code), .. }) => DevicePoll::Failed(code),
                Err(_) => DevicePoll::Failed(ErrorCode::new("", None)),
            },
            Reply::Answered { status, body: Body::Error(error), retry_after } => match error.as_str() {
                "authorization_pending" | "AuthorizationPendingException" => DevicePoll::Pending { interval: told },
                "slow_down" | "SlowDownException" => DevicePoll::SlowDown { interval: told.max(retry_after) },
                // The second one is Microsoft's.
                "access_denied" | "authorization_declined" | "AccessDeniedException" => DevicePoll::Denied,
                "expired_token" | "ExpiredTokenException" => DevicePoll::Expired,
                _ => without_known_code(status, retry_after).unwrap_or_else(|| {
                    DevicePoll::Failed(error.unless(|text| device_code.occurs_in(text) || verifier.occurs_in(text)))
                }),
            },
            Reply::Answered { status, body: Body::Unreadable, retry_after } => {
                without_known_code(status, retry_after).unwrap_or_else(|| DevicePoll::Failed(ErrorCode::new("", None)))
            }
        }
    }
}

/// What the status alone means: polling too fast (Qwen), or temporarily unavailable.
fn without_known_code(status: u16, retry_after: Option<Duration>) -> Option<DevicePoll> {
    match status {
        429 => Some(DevicePoll::SlowDown { interval: retry_after }),
        408 | 500.. => Some(DevicePoll::Unreachable),
        _ => None,
    }
}

/// Parses RFC 8628 section 3.2, and Google's older `verification_url`.
fn authorization(members: &Map<String, Value>) -> Option<DeviceAuthorization> {
    let device_code = DeviceCode::new(answer::text(members, "device_code")?.to_owned()).ok()?;
    let safe = |text: &str| !device_code.occurs_in(text) && !holds_forbidden_text(text);
    let address = |name: &str| {
        let url = Url::parse(answer::text(members, name)?).ok()?;
        // An address for people may have a fragment.
        let mut page = url.clone();
        page.set_fragment(None);
        check_endpoint(&page).ok()?;
        Some(String::from(url)).filter(|text| safe(text))
    };
    let user_code = answer::text(members, "user_code").filter(|text| {
        text.len() <= MAX_USER_CODE_BYTES && text.bytes().all(|byte| (0x20..=0x7e).contains(&byte)) && safe(text)
    })?;
    Some(DeviceAuthorization {
        user_code: user_code.to_owned(),
        verification_uri: address("verification_uri").or_else(|| address("verification_url"))?,
        verification_uri_complete: address("verification_uri_complete"),
        interval: answer::seconds(members, "interval").unwrap_or(DEFAULT_POLL_INTERVAL),
        lifetime: answer::seconds(members, "expires_in"),
        device_code,
    })
}
