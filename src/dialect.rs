//! Provider dialects: how one provider's OAuth 2.0 differs from the next, in types that the configuration and the
//! provider client share.
//!
//! Owns: how a client authenticates, and a provider's [`Dialect`]: its own names for standard members
//! ([`MemberNames`]), the form of requests and what goes into them beside what the protocol says ([`Additions`]), and
//! how to read answers.
//!
//! Invariants:
//! 1. An addition never has the name of a parameter or header that the client itself sends, neither the standard name
//!    nor the provider's.
//! 2. No mapping of names makes an access token of a member that is called a refresh token.
//!
//! Must not know: where any of it is configured, HTTP clients, what becomes of an answer.

use std::time::Duration;

use url::Url;

mod additions;
mod names;

pub use additions::{Additions, HeaderError, Headers, ParameterError, Parameters, Request};
pub use names::{MemberNames, NameError, NameProblem};

/// Where a client's secret goes (RFC 6749 section 2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretPlace {
    /// Into the body, with the id.
    Body,
    /// HTTP Basic, id and secret form-encoded first, as the RFC has it.
    Basic,
    /// HTTP Basic without that encoding, for servers that do not decode it.
    BasicRaw,
}

/// The signature algorithm of a client's assertion (RFC 7518 section 3.1, RFC 8037 section 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PSS with SHA-256.
    Ps256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// Every algorithm.
    pub const ALL: [Self; 5] = [Self::Rs256, Self::Ps256, Self::Es256, Self::Es384, Self::EdDsa];

    /// The name in a JWT's header (RFC 7515 section 4.1.1).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Ps256 => "PS256",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// How a provider's OAuth 2.0 differs from the standard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dialect {
    /// The provider's names for standard members.
    pub names: MemberNames,
    /// How to write requests.
    pub requests: RequestForm,
    /// How to read answers.
    pub answers: AnswerForm,
}

/// How requests are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestForm {
    /// The form of a body.
    pub format: RequestFormat,
    /// Additional parameters and headers.
    pub additions: Additions,
    /// The separator between scopes; a space in RFC 6749 section 3.3.
    pub scope_separator: char,
    /// Whether a refresh sends the scope, which is optional (RFC 6749 section 6).
    pub scope_on_refresh: bool,
    /// The resources that the tokens are for (RFC 8707 section 2).
    pub resources: Vec<String>,
}

impl Default for RequestForm {
    fn default() -> Self {
        Self {
            format: RequestFormat::default(),
            additions: Additions::default(),
            scope_separator: ' ',
            scope_on_refresh: false,
            resources: Vec::new(),
        }
    }
}

/// How answers with tokens are read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AnswerForm {
    /// The path to the member that holds the tokens (Slack: `authed_user`); empty if the answer itself does.
    pub path: Vec<String>,
    /// The unit of `expires_in`.
    pub expires_in_unit: ExpiresInUnit,
    /// The lifetime of an access token if the answer does not tell it; `None` is unknown.
    pub default_lifetime: Option<Duration>,
}

/// The form of a request's body.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RequestFormat {
    /// `application/x-www-form-urlencoded`, as RFC 6749 has it.
    #[default]
    Form,
    /// A JSON object with the same members, for the few providers that require it.
    Json,
}

/// The unit of `expires_in`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExpiresInUnit {
    /// Seconds, as RFC 6749 section 5.1 has it.
    #[default]
    Seconds,
    /// Milliseconds.
    Milliseconds,
}

/// A second endpoint that issues access tokens. The login returns a long-lived token, which takes the place of the
/// refresh token and is presented there (GitHub Copilot).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecondExchange {
    /// Where access tokens are requested with `GET`.
    pub endpoint: Url,
    /// The authentication scheme for the long-lived token (RFC 9110 section 11.4).
    pub scheme: String,
}
