//! Providers: the trait through which a refresh token meets its authorization server.
//!
//! Owns: [`Provider`], its neutral [`Reply`] (what came back, not yet what it means), [`ErrorCode`], the per-provider
//! [`Rules`], what logins are made of ([`Flow`], [`RedirectUri`], [`DeviceAuthorization`], [`DevicePoll`]), and the
//! registry [`Providers`].
//!
//! Invariants:
//! 1. One call of [`Provider::refresh`] sends the refresh token at most once. The same holds for [`Provider::exchange`]
//!    and the authorization code.
//! 2. A [`Reply`] contains no text of the provider's except a filtered error code: providers quote secrets in prose.
//! 3. [`Reply::NotSent`] means that no byte of the request left.
//!
//! Must not know: cooldowns, stores, HTTP (except for its children).

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

/// The `error` member of a provider's answer (RFC 6749 section 5.2), unchanged for classification. Only
/// [`ErrorCode::shown`] may be put in an answer or a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorCode {
    text: String,
    safe: bool,
}

/// The longest error code kept; the codes of the RFCs have at most 25 letters.
const MAX_CODE_BYTES: usize = 64;

impl ErrorCode {
    /// Keeps `text` if it has the form of an error code and does not quote `secret`; otherwise returns an anonymous
    /// code.
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

    /// Returns an anonymous code if its text satisfies `quotes`.
    #[must_use]
    pub fn unless(self, quotes: impl FnOnce(&str) -> bool) -> Self {
        if quotes(&self.text) { Self { text: String::new(), safe: false } } else { self }
    }

    /// The code for comparisons; empty if anonymous.
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

/// The content of a token endpoint's answer.
#[derive(Debug)]
pub enum Body {
    /// Tokens, and no error beside them.
    Issued(Box<Issued>),
    /// An error code, or an error of another form (`"ok": false`, an object).
    Error(ErrorCode),
    /// Neither: empty, HTML, too large, or incomplete.
    Unreadable,
}

/// The result of presenting a refresh token.
#[derive(Debug)]
pub enum Reply {
    /// Nothing was sent. The text gives the reason, and contains nothing of the provider's.
    NotSent(&'static str),
    /// The request was sent, but no complete answer arrived.
    Lost {
        /// Whether the time limit was reached, as opposed to a broken connection.
        timed_out: bool,
    },
    /// The provider answered.
    Answered {
        /// The HTTP status.
        status: u16,
        /// What the body contained.
        body: Body,
        /// The provider's `Retry-After` (RFC 9110 section 10.2.3), from now.
        retry_after: Option<Duration>,
    },
}

/// How a provider's replies differ from the standard.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Error codes other than `invalid_grant` that mean a dead grant.
    pub dead_grant_codes: Vec<String>,
    /// Statuses that mean a dead grant, whatever the body says.
    pub dead_grant_statuses: Vec<u16>,
    /// How long the provider accepts a refresh token again after it was spent.
    pub reuse_grace: Duration,
    /// Non-standard members of an answer that a caller may see.
    pub expose: Vec<String>,
    /// How many accounts of the provider may be refreshed at once; 1 for a provider at which accounts of one
    /// registration revoke each other.
    pub concurrent_refreshes: NonZeroUsize,
}

/// More than a person has accounts at one provider, and within the rate limit of a small provider.
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
    /// Whether an answer without tokens means that the grant is dead.
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
    /// The authorization code arrives through the browser, at a loopback listener (RFC 8252 section 7.3).
    Browser,
    /// The person pastes the authorization code.
    Paste,
    /// The person confirms a code on any device (RFC 8628).
    Device,
}

impl Flow {
    /// Every flow.
    pub const ALL: [Self; 3] = [Self::Browser, Self::Paste, Self::Device];

    /// The flows that an authorization endpoint (`code`) and a device authorization endpoint (`device`) allow.
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

/// The text is not the name of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a flow is browser, paste or device")]
pub struct FlowError;

impl FromStr for Flow {
    type Err = FlowError;

    fn from_str(text: &str) -> Result<Self, FlowError> {
        Self::ALL.into_iter().find(|flow| flow.name() == text).ok_or(FlowError)
    }
}

/// The redirect URI (RFC 6749 section 3.1.2), exactly as registered.
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

/// The text is not a valid redirect URI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be an https, loopback http or urn address without a fragment")]
pub struct RedirectUriError;

impl Default for RedirectUri {
    /// `http://127.0.0.1/callback`, on any free port.
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
    /// The address to listen on, with port 0 for any free one; `None` when the browser is redirected to a page
    /// elsewhere.
    #[must_use]
    pub fn listener(&self) -> Option<(IpAddr, u16)> {
        self.loopback.as_ref().map(|loopback| (loopback.address, loopback.url.port().unwrap_or(0)))
    }

    /// The path that the browser requests from the listener.
    #[must_use]
    pub fn path(&self) -> &str {
        self.loopback.as_ref().map_or("/", |loopback| loopback.url.path())
    }

    /// The redirect URI as sent to the provider. `port` is filled in where the registration leaves the port open (RFC
    /// 8252 section 7.3).
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

/// The answer to a device authorization request (RFC 8628 section 3.2).
#[derive(Debug)]
pub struct DeviceAuthorization {
    /// The device code; never shown.
    pub device_code: DeviceCode,
    /// The code that the person enters.
    pub user_code: String,
    /// The address to open.
    pub verification_uri: String,
    /// The address with the code in it.
    pub verification_uri_complete: Option<String>,
    /// The interval between two polls.
    pub interval: Duration,
    /// How long the codes are valid; `None` when the provider does not say.
    pub lifetime: Option<Duration>,
}

/// Why a login could not start. It contains no text of the provider's except the filtered code.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// A description in our own words.
    pub reason: &'static str,
    /// The provider's error code, if it gave one.
    pub code: Option<ErrorCode>,
}

impl From<&'static str> for Refusal {
    fn from(reason: &'static str) -> Self {
        Self { reason, code: None }
    }
}

/// The answer to a device poll (RFC 8628 section 3.5).
#[derive(Debug)]
pub enum DevicePoll {
    /// The person has not decided yet.
    Pending {
        /// The new polling interval, if the provider names one.
        interval: Option<Duration>,
    },
    /// The person has not decided yet, and the polls come too fast.
    SlowDown {
        /// The new polling interval, if the provider names one.
        interval: Option<Duration>,
    },
    /// The person agreed.
    Issued(Box<Issued>),
    /// The person refused.
    Denied,
    /// The device code expired.
    Expired,
    /// Polling cannot succeed any more.
    Failed(ErrorCode),
    /// No answer, or one that cannot be understood.
    Unreachable,
}

/// The error of a provider without logins.
const NO_LOGIN: &str = "the provider offers no login";

/// One client registration at one authorization server.
#[async_trait]
pub trait Provider: fmt::Debug + Send + Sync {
    /// Presents the grant's refresh token, once (RFC 6749 section 6). Returns within the provider's own time limit.
    async fn refresh(&self, grant: &Grant) -> Reply;

    /// Revokes the grant (RFC 7009). Returns `false` if the provider has no revocation endpoint, or did not agree.
    async fn revoke(&self, grant: &Grant) -> bool;

    /// Identifies the token endpoint at which its refresh tokens are valid: its address, or the issuer's. Two providers
    /// with the same text are two names for one registration, or two registrations at one server.
    fn token_authority(&self) -> Option<&str> {
        None
    }

    /// How to read its replies.
    fn rules(&self) -> &Rules;

    /// The flows on offer, as far as known without a request: a flow that depends on the issuer's metadata is on offer
    /// until the metadata says otherwise.
    fn flows(&self) -> Vec<Flow> {
        Vec::new()
    }

    /// Fetches what a login needs to know; [`Provider::flows`] is exact afterwards.
    async fn prepare_login(&self) -> Result<(), &'static str> {
        Ok(())
    }

    /// The registered redirect URI.
    fn redirect_uri(&self) -> RedirectUri {
        RedirectUri::default()
    }

    /// Whether an authorization response with this `iss` may come from this provider (RFC 9207 section 2.4).
    fn accepts_issuer(&self, iss: Option<&str>) -> bool {
        let _ = iss;
        true
    }

    /// The address at which the person agrees (RFC 6749 section 4.1.1).
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

    /// Requests the codes of a device login (RFC 8628 section 3.1).
    async fn start_device(&self, verifier: &CodeVerifier) -> Result<DeviceAuthorization, Refusal> {
        let _ = verifier;
        Err(NO_LOGIN.into())
    }

    /// Polls once whether the person has agreed (RFC 8628 section 3.4).
    async fn poll_device(&self, device_code: &DeviceCode, verifier: &CodeVerifier) -> DevicePoll {
        let _ = (device_code, verifier);
        DevicePoll::Failed(ErrorCode::new("", None))
    }
}

/// The configured providers, by name.
#[derive(Debug, Clone, Default)]
pub struct Providers(Arc<BTreeMap<ProviderName, Arc<dyn Provider>>>);

impl Providers {
    /// Returns the provider of that name, if configured.
    #[must_use]
    pub fn get(&self, name: &ProviderName) -> Option<&Arc<dyn Provider>> {
        self.0.get(name)
    }

    /// Returns the configured providers whose refresh tokens are valid at the same endpoint as those of `name`.
    #[must_use]
    pub fn siblings(&self, name: &ProviderName) -> Vec<ProviderName> {
        let Some(authority) = self.get(name).and_then(|provider| provider.token_authority()) else { return Vec::new() };
        let same = |(_, provider): &(_, &Arc<dyn Provider>)| provider.token_authority() == Some(authority);
        self.0.iter().filter(same).map(|(name, _)| name.clone()).collect()
    }

    /// The configured names, sorted.
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
