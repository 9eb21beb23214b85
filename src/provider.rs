//! Providers: the trait through which a refresh token meets its authorization server.
//!
//! Owns: [`Provider`], its neutral [`Reply`] (what came back, not yet what it means), [`ErrorCode`], the per-provider
//! [`Rules`], what logins are made of ([`Flow`], [`RedirectUri`], [`DeviceAuthorization`], [`DevicePoll`]), and the
//! registry [`Providers`].
//!
//! Invariants:
//! 1. One call of [`Provider::refresh`] sends the refresh token at most once; so it is with [`Provider::exchange`] and
//!    the authorization code.
//! 2. A [`Reply`] holds no text of the provider's but a filtered error code: providers quote secrets in prose.
//! 3. [`Reply::NotSent`] means that no byte of the request left.
//!
//! Must not know: cooldowns, stores, HTTP (its children do).

use std::{collections::BTreeMap, fmt, net::IpAddr, num::NonZeroUsize, str::FromStr, sync::Arc, time::Duration};

use async_trait::async_trait;
use url::{Host, Url};

use crate::{
    account::ProviderName,
    grant::{Grant, Issued},
    secret::{AuthorizationCode, CodeVerifier, DeviceCode, LoginState, RefreshToken, holds_forbidden_text},
};

pub mod discovery;
pub mod oauth2;
pub mod wire;

/// The `error` member of a provider's answer (RFC 6749 section 5.2), kept as it came for sorting. Only
/// [`ErrorCode::shown`] may reach an answer or a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorCode {
    text: String,
    safe: bool,
}

/// The longest error code kept; the codes of the RFCs have at most 25 letters.
const MAX_CODE_BYTES: usize = 64;

impl ErrorCode {
    /// Keeps `text` if it has the form of a code and does not quote `secret`; otherwise an anonymous code.
    #[must_use]
    pub fn new(text: &str, secret: Option<&RefreshToken>) -> Self {
        let well_formed = !text.is_empty()
            && text.len() <= MAX_CODE_BYTES
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
            && !secret.is_some_and(|secret| secret.occurs_in(text));
        Self {
            text: if well_formed { text.to_owned() } else { String::new() },
            safe: well_formed && !holds_forbidden_text(text),
        }
    }

    /// The same, anonymous if its text is one that `quotes` a secret.
    #[must_use]
    pub fn unless(self, quotes: impl FnOnce(&str) -> bool) -> Self {
        if quotes(&self.text) { Self { text: String::new(), safe: false } } else { self }
    }

    /// The code, for comparing; empty when it had no form of one.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The code, if it may be shown.
    #[must_use]
    pub fn shown(&self) -> Option<&str> {
        self.safe.then_some(self.text.as_str())
    }
}

/// What a token endpoint's answer held.
#[derive(Debug)]
pub enum Body {
    /// Tokens, and no error beside them.
    Issued(Box<Issued>),
    /// An error code, or an error of another form (`"ok": false`, an object).
    Error(ErrorCode),
    /// Neither: empty, HTML, too large, broken off.
    Unreadable,
}

/// What came of presenting a refresh token.
#[derive(Debug)]
pub enum Reply {
    /// Nothing was sent; the text says why and holds nothing of the provider's.
    NotSent(&'static str),
    /// The request left, and no answer came back whole.
    Lost {
        /// The time was up, as against a broken connection.
        timed_out: bool,
    },
    /// The provider answered.
    Answered {
        /// The HTTP status.
        status: u16,
        /// What the body held.
        body: Body,
        /// The provider's `Retry-After` (RFC 9110 section 10.2.3), from now.
        retry_after: Option<Duration>,
    },
}

/// What differs from provider to provider in the handling of a reply.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Error codes beside `invalid_grant` that mean a dead grant.
    pub dead_grant_codes: Vec<String>,
    /// Statuses that mean a dead grant, whatever the body says.
    pub dead_grant_statuses: Vec<u16>,
    /// For this long the provider accepts a refresh token again after it was spent.
    pub reuse_grace: Duration,
    /// Members of an answer, beside the standard ones, that a caller may see.
    pub expose: Vec<String>,
    /// How many of its accounts may be refreshed at once; 1 for a provider at which sibling accounts of one registration
    /// revoke each other.
    pub concurrent_refreshes: NonZeroUsize,
}

/// More than a person has accounts at one provider, and no more than a small one's rate limit can bear at a moment.
const CONCURRENT_REFRESHES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(15);

impl Default for Rules {
    fn default() -> Self {
        Self {
            dead_grant_codes: Vec::new(),
            dead_grant_statuses: Vec::new(),
            reuse_grace: Duration::ZERO,
            expose: Vec::new(),
            concurrent_refreshes: CONCURRENT_REFRESHES,
        }
    }
}

impl Rules {
    /// Whether an answer that brought no tokens says that the grant is dead.
    #[must_use]
    pub fn is_dead(&self, status: u16, code: Option<&ErrorCode>) -> bool {
        let code = code.map_or("", ErrorCode::as_str);
        self.dead_grant_statuses.contains(&status)
            || code == "invalid_grant"
            || (!code.is_empty() && self.dead_grant_codes.iter().any(|dead| dead == code))
    }
}

/// A way to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The authorization code comes back by the browser, to a listener on loopback (RFC 8252 section 7.3).
    Browser,
    /// The person brings the authorization code back.
    Paste,
    /// The person confirms a code on any device (RFC 8628).
    Device,
}

impl Flow {
    /// Every flow.
    pub const ALL: [Self; 3] = [Self::Browser, Self::Paste, Self::Device];

    /// Those on offer where there is an authorization endpoint (`code`) or a device authorization endpoint (`device`).
    #[must_use]
    pub fn offered(code: bool, device: bool, redirect_uri: &RedirectUri) -> Vec<Self> {
        let on_offer = |flow: &Self| match flow {
            Self::Browser => code && redirect_uri.listener().is_some(),
            Self::Paste => code,
            Self::Device => device,
        };
        Self::ALL.into_iter().filter(on_offer).collect()
    }

    /// Its name in the API and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Browser => "browser",
            Self::Paste => "paste",
            Self::Device => "device",
        }
    }
}

/// The text names no flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a flow is browser, paste or device")]
pub struct FlowError;

impl FromStr for Flow {
    type Err = FlowError;

    fn from_str(text: &str) -> Result<Self, FlowError> {
        Self::ALL.into_iter().find(|flow| flow.name() == text).ok_or(FlowError)
    }
}

/// Where the browser is sent after the person agreed (RFC 6749 section 3.1.2), letter by letter as it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedirectUri {
    text: String,
    loopback: Option<Loopback>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Loopback {
    url: Url,
    address: IpAddr,
}

/// The text is no address to be sent back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be an https, loopback http or urn address without a fragment")]
pub struct RedirectUriError;

impl Default for RedirectUri {
    /// `http://127.0.0.1/callback`, on whichever port is free.
    fn default() -> Self {
        let text = "http://127.0.0.1/callback";
        text.parse().unwrap_or(Self { text: text.to_owned(), loopback: None })
    }
}

impl FromStr for RedirectUri {
    type Err = RedirectUriError;

    fn from_str(text: &str) -> Result<Self, RedirectUriError> {
        let url = Url::parse(text).map_err(|_| RedirectUriError)?;
        let plain = text.bytes().all(|byte| byte.is_ascii_graphic())
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        let address = match url.host() {
            Some(Host::Ipv4(address)) if address.is_loopback() => Some(address.into()),
            Some(Host::Ipv6(address)) if address.is_loopback() => Some(address.into()),
            // Of the two addresses of `localhost` browsers try both; a listener needs one.
            Some(Host::Domain("localhost")) => Some(IpAddr::from([127, 0, 0, 1])),
            Some(Host::Ipv4(_) | Host::Ipv6(_) | Host::Domain(_)) | None => None,
        };
        let loopback = match (url.scheme(), address) {
            ("http", Some(address)) => Some(Loopback { url, address }),
            ("https" | "urn", _) => None,
            _ => return Err(RedirectUriError),
        };
        if plain { Ok(Self { text: text.to_owned(), loopback }) } else { Err(RedirectUriError) }
    }
}

impl RedirectUri {
    /// Where to listen for the browser, port 0 for any that is free; `None` when it is sent to a page elsewhere.
    #[must_use]
    pub fn listener(&self) -> Option<(IpAddr, u16)> {
        self.loopback.as_ref().map(|loopback| (loopback.address, loopback.url.port().unwrap_or(0)))
    }

    /// The path that the browser will ask a listener for.
    #[must_use]
    pub fn path(&self) -> &str {
        self.loopback.as_ref().map_or("/", |loopback| loopback.url.path())
    }

    /// The address as the provider is told it. `port` is put in where the registration leaves the port open, as RFC 8252
    /// section 7.3 has it.
    #[must_use]
    pub fn at_port(&self, port: u16) -> String {
        let Some(Loopback { url, .. }) = self.loopback.as_ref().filter(|loopback| loopback.url.port().is_none()) else {
            return self.text.clone();
        };
        let mut url = url.clone();
        match url.set_port(Some(port)) {
            Ok(()) => url.into(),
            Err(()) => self.text.clone(),
        }
    }
}

/// What a provider says when a device login begins (RFC 8628 section 3.2).
#[derive(Debug)]
pub struct DeviceAuthorization {
    /// What to ask with; never shown.
    pub device_code: DeviceCode,
    /// What the person types in.
    pub user_code: String,
    /// Where.
    pub verification_uri: String,
    /// The same with the code in it.
    pub verification_uri_complete: Option<String>,
    /// How long to wait between two questions.
    pub interval: Duration,
    /// How long the codes are good for; `None` when the provider does not say.
    pub lifetime: Option<Duration>,
}

/// Why a login could not begin; nothing of it is the provider's text but the filtered code.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// In words of ours.
    pub reason: &'static str,
    /// The provider's error code, if it gave one.
    pub code: Option<ErrorCode>,
}

impl From<&'static str> for Refusal {
    fn from(reason: &'static str) -> Self {
        Self { reason, code: None }
    }
}

/// The answer to a device's question (RFC 8628 section 3.5).
#[derive(Debug)]
pub enum DevicePoll {
    /// The person has not decided yet.
    Pending {
        /// How long to wait between two questions from now on, if the provider says so.
        interval: Option<Duration>,
    },
    /// The person has not decided yet, and the questions come too fast.
    SlowDown {
        /// How long to wait between two questions from now on, if the provider says so.
        interval: Option<Duration>,
    },
    /// The person agreed.
    Issued(Box<Issued>),
    /// The person refused.
    Denied,
    /// The person took too long.
    Expired,
    /// The provider will not answer otherwise, however often it is asked.
    Failed(ErrorCode),
    /// No answer, or none that says anything.
    Unreachable,
}

/// What a provider without logins says.
const NO_LOGIN: &str = "the provider offers no login";

/// One client registration at one authorization server.
#[async_trait]
pub trait Provider: fmt::Debug + Send + Sync {
    /// Presents the grant's refresh token, once (RFC 6749 section 6). Ends within the provider's own time limit.
    async fn refresh(&self, grant: &Grant) -> Reply;

    /// Tells the provider that the grant is no longer wanted (RFC 7009). `false` when it has no way to be told, or
    /// did not agree.
    async fn revoke(&self, grant: &Grant) -> bool;

    /// Which token endpoint its refresh tokens are good at: that address, or the issuer's. Two providers of one text
    /// are two names for one registration, or two registrations at one server.
    fn token_authority(&self) -> Option<&str> {
        None
    }

    /// How to read its replies.
    fn rules(&self) -> &Rules;

    /// The flows on offer, by what is known without asking anybody: one that only the issuer's metadata can tell of is
    /// on offer until the metadata says otherwise.
    fn flows(&self) -> Vec<Flow> {
        Vec::new()
    }

    /// Finds out what a login needs to know; [`Provider::flows`] is exact afterwards.
    async fn prepare_login(&self) -> Result<(), &'static str> {
        Ok(())
    }

    /// Where its registration has the browser sent.
    fn redirect_uri(&self) -> RedirectUri {
        RedirectUri::default()
    }

    /// Whether an authorization response with this `iss` may come from here (RFC 9207 section 2.4).
    fn accepts_issuer(&self, iss: Option<&str>) -> bool {
        let _ = iss;
        true
    }

    /// The address at which a person agrees (RFC 6749 section 4.1.1).
    async fn authorization_url(
        &self,
        redirect_uri: &str,
        state: &LoginState,
        verifier: &CodeVerifier,
    ) -> Result<Url, &'static str> {
        let _ = (redirect_uri, state, verifier);
        Err(NO_LOGIN)
    }

    /// Presents the code, once (RFC 6749 section 4.1.3).
    async fn exchange(&self, code: &AuthorizationCode, redirect_uri: &str, verifier: &CodeVerifier) -> Reply {
        let _ = (code, redirect_uri, verifier);
        Reply::NotSent(NO_LOGIN)
    }

    /// Asks for the codes of a device login (RFC 8628 section 3.1).
    async fn start_device(&self, verifier: &CodeVerifier) -> Result<DeviceAuthorization, Refusal> {
        let _ = verifier;
        Err(NO_LOGIN.into())
    }

    /// Asks once whether the person has agreed (RFC 8628 section 3.4).
    async fn poll_device(&self, device_code: &DeviceCode, verifier: &CodeVerifier) -> DevicePoll {
        let _ = (device_code, verifier);
        DevicePoll::Failed(ErrorCode::new("", None))
    }
}

/// The configured providers, by name.
#[derive(Debug, Clone, Default)]
pub struct Providers(Arc<BTreeMap<ProviderName, Arc<dyn Provider>>>);

impl Providers {
    /// The provider of that name, if one is configured.
    #[must_use]
    pub fn get(&self, name: &ProviderName) -> Option<&Arc<dyn Provider>> {
        self.0.get(name)
    }

    /// The configured providers whose refresh tokens are good at the same endpoint as those of `name`.
    #[must_use]
    pub fn siblings(&self, name: &ProviderName) -> Vec<ProviderName> {
        let Some(authority) = self.get(name).and_then(|provider| provider.token_authority()) else { return Vec::new() };
        let same = |(_, provider): &(_, &Arc<dyn Provider>)| provider.token_authority() == Some(authority);
        self.0.iter().filter(same).map(|(name, _)| name.clone()).collect()
    }

    /// The configured names, in order.
    pub fn names(&self) -> impl Iterator<Item = &ProviderName> {
        self.0.keys()
    }
}

impl FromIterator<(ProviderName, Arc<dyn Provider>)> for Providers {
    fn from_iter<I: IntoIterator<Item = (ProviderName, Arc<dyn Provider>)>>(providers: I) -> Self {
        Self(Arc::new(providers.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_error_code_that_quotes_a_secret_or_is_prose_is_not_kept() {
        let secret = RefreshToken::new("canary1".into()).unwrap();
        for (text, kept, shown) in [
            ("invalid_grant", "invalid_grant", Some("invalid_grant")),
            ("refresh_token_expired", "refresh_token_expired", None),
            ("bad_canary1", "", None),
            ("<html>no</html>", "", None),
            ("", "", None),
        ] {
            let code = ErrorCode::new(text, Some(&secret));
            assert_eq!((code.as_str(), code.shown()), (kept, shown), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_code_quotes_a_secret_or_shows_the_forbidden_text(
            pieces in proptest::collection::vec("[a-zA-Z_.-]{0,9}|.{0,3}|canary1|refresh_token|Refresh_Token", 0..8),
        ) {
            let text = pieces.concat();
            let secret = RefreshToken::new("canary1".into()).unwrap();
            let code = ErrorCode::new(&text, Some(&secret));
            prop_assert!(code.as_str().is_empty() || code.as_str() == text);
            prop_assert!(!code.as_str().contains("canary1") && code.as_str().len() <= MAX_CODE_BYTES);
            if let Some(shown) = code.shown() {
                prop_assert!(!shown.is_empty() && !holds_forbidden_text(shown) && shown.is_ascii());
                prop_assert!(!shown.contains(|one: char| one.is_whitespace() || one.is_control()));
            }
        }
    }

    #[test]
    fn a_redirect_is_kept_letter_by_letter_and_an_open_port_filled_in() {
        for (text, listener, at_9) in [
            ("http://127.0.0.1/callback", Some("127.0.0.1:0"), "http://127.0.0.1:9/callback"),
            ("http://127.0.0.1:56121/cb", Some("127.0.0.1:56121"), "http://127.0.0.1:56121/cb"),
            ("http://localhost:1455/auth/callback", Some("127.0.0.1:1455"), "http://localhost:1455/auth/callback"),
            ("http://localhost", Some("127.0.0.1:0"), "http://localhost:9/"),
            ("http://[::1]/", Some("[::1]:0"), "http://[::1]:9/"),
            ("https://p.example", None, "https://p.example"),
            ("https://p.example/code?x=1", None, "https://p.example/code?x=1"),
            ("urn:ietf:wg:oauth:2.0:oob", None, "urn:ietf:wg:oauth:2.0:oob"),
        ] {
            let redirect: RedirectUri = text.parse().unwrap();
            let socket = redirect.listener().map(|place| std::net::SocketAddr::from(place).to_string());
            assert_eq!((socket.as_deref(), redirect.at_port(9).as_str()), (listener, at_9), "{text}");
        }
        for bad in
            ["", "/cb", "http://h.example/", "javascript:x", "https://h.example/#x", "https://a@h.example", "my app:/"]
        {
            assert!(bad.parse::<RedirectUri>().is_err(), "{bad}");
        }
        assert_eq!(RedirectUri::default().path(), "/callback");
    }
}
