//! The codes of the API's problems, shared by the server, the client and the command line.
//!
//! Owns: [`ProblemCode`], and its names in `openapi.yaml`.
//!
//! Must not know: which error has which code, and which code has which status (`server::problem`).

use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Declares the enum, its list and its names from one table.
macro_rules! problem_codes {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// The `code` of a problem (RFC 9457), for programs to act on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum ProblemCode {
            $($(#[$doc])+ $variant,)+
        }

        impl ProblemCode {
            /// Every code, in the order of the contract.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The code's name in the contract.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

problem_codes! {
    /// The request is malformed; nothing was touched.
    InvalidRequest = "INVALID_REQUEST",
    /// A person must log in again.
    ReauthRequired = "REAUTH_REQUIRED",
    /// The request is outside the socket's policy.
    Unauthorized = "UNAUTHORIZED",
    /// There is no such grant, API key, sandbox or route.
    NotFound = "NOT_FOUND",
    /// The grant has no refresh token.
    RefreshNotAvailable = "REFRESH_NOT_AVAILABLE",
    /// The refresh token or the name belongs to another grant already, or the grant may not be replaced.
    GrantConflict = "GRANT_CONFLICT",
    /// `If-Match` or `If-None-Match` does not hold.
    PreconditionFailed = "PRECONDITION_FAILED",
    /// Inside the cooldown or a backoff, or at a limit.
    RateLimited = "RATE_LIMITED",
    /// The daemon has an internal error.
    InternalError = "INTERNAL_ERROR",
    /// A grant is stored, but its provider is not configured.
    ProviderNotConfigured = "PROVIDER_NOT_CONFIGURED",
    /// The provider failed or gave an invalid answer.
    RefreshFailed = "REFRESH_FAILED",
    /// The store failed before the refresh token was presented, or another owner holds the lease.
    StoreUnavailable = "STORE_UNAVAILABLE",
    /// There is no such login.
    SessionNotFound = "SESSION_NOT_FOUND",
    /// The login took too long.
    SessionExpired = "SESSION_EXPIRED",
    /// The login was completed already.
    SessionAlreadyUsed = "SESSION_ALREADY_USED",
    /// The person or the provider refused the login, or the provider failed.
    ExchangeFailed = "EXCHANGE_FAILED",
}

/// The text is not a code known to this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not one of the problem codes of this version")]
pub struct UnknownCode;

impl FromStr for ProblemCode {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        Self::ALL.iter().copied().find(|known| known.as_str() == text).ok_or(UnknownCode)
    }
}

impl Serialize for ProblemCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_is_found_by_its_name() {
        for code in ProblemCode::ALL {
            assert_eq!(code.as_str().parse(), Ok(*code));
        }
        assert_eq!("not_found".parse::<ProblemCode>(), Err(UnknownCode));
    }
}
