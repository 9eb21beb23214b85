//! Providers: the trait through which a refresh token meets its authorization server.
//!
//! Owns: [`Provider`], its neutral [`Reply`] (what came back, not yet what it means), [`ErrorCode`], the per-provider
//! [`Rules`], and the registry [`Providers`].
//!
//! Invariants:
//! 1. One call of [`Provider::refresh`] sends the refresh token at most once.
//! 2. A [`Reply`] holds no text of the provider's but a filtered error code: providers quote secrets in prose.
//! 3. [`Reply::NotSent`] means that no byte of the request left.
//!
//! Must not know: cooldowns, stores, HTTP (its children do).

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;

use crate::{
    account::ProviderName,
    grant::{Grant, Issued},
    secret::{RefreshToken, holds_forbidden_text},
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
const LONGEST_CODE: usize = 64;

impl ErrorCode {
    /// Keeps `text` if it has the form of a code and does not quote `secret`; otherwise an anonymous code.
    #[must_use]
    pub fn new(text: &str, secret: Option<&RefreshToken>) -> Self {
        let well_formed = !text.is_empty()
            && text.len() <= LONGEST_CODE
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
            && !secret.is_some_and(|secret| secret.occurs_in(text));
        Self {
            text: if well_formed { text.to_owned() } else { String::new() },
            safe: well_formed && !holds_forbidden_text(text),
        }
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
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Error codes beside `invalid_grant` that mean a dead grant.
    pub dead_grant_codes: Vec<String>,
    /// For this long the provider accepts a refresh token again after it was spent.
    pub reuse_grace: Duration,
    /// Members of an answer, beside the standard ones, that a caller may see.
    pub expose: Vec<String>,
}

/// How the client authenticates at the token endpoint (RFC 6749 section 2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// It only names itself: `client_id` in the body.
    None,
    /// Id and secret in the body.
    Post,
    /// HTTP Basic, id and secret form-encoded first, as the RFC has it.
    Basic,
    /// HTTP Basic without that encoding, for servers that do not decode it.
    BasicRaw,
}

/// The form of a token request's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestFormat {
    /// `application/x-www-form-urlencoded`, as RFC 6749 has it.
    Form,
    /// A JSON object with the same members, for the few providers that want it.
    Json,
}

/// One client registration at one authorization server.
#[async_trait]
pub trait Provider: fmt::Debug + Send + Sync {
    /// Presents the grant's refresh token, once (RFC 6749 section 6). Ends within the provider's own time limit.
    async fn refresh(&self, grant: &Grant) -> Reply;

    /// Tells the provider that the grant is no longer wanted (RFC 7009). `false` when it has no way to be told, or
    /// did not agree.
    async fn revoke(&self, grant: &Grant) -> bool;

    /// How to read its replies.
    fn rules(&self) -> &Rules;
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
            prop_assert!(!code.as_str().contains("canary1") && code.as_str().len() <= LONGEST_CODE);
            if let Some(shown) = code.shown() {
                prop_assert!(!shown.is_empty() && !holds_forbidden_text(shown) && shown.is_ascii());
                prop_assert!(!shown.contains(|one: char| one.is_whitespace() || one.is_control()));
            }
        }
    }
}
