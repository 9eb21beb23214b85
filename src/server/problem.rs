//! Problems: every refusal of the API, as `application/problem+json` (RFC 9457).
//!
//! Owns: the codes of the contract and their statuses; the only place that knows which error has which.
//!
//! Invariants:
//! 1. A problem holds no text of the caller's and none of a provider's but a filtered error code.
//! 2. `retryAfter` and `Retry-After` are made of one number: whole seconds, rounded up, at least 1.

use std::time::Duration;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::{Serialize, Serializer};

use crate::{
    account::Account,
    keys::KeyError,
    login::LoginError,
    refresh::RefreshError,
    sandbox::SandboxError,
    store::{Outcome, StoreError},
};

/// The `code` of a problem: the contract's, and what a program decides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The request is malformed; nothing was touched.
    InvalidRequest,
    /// A person must log in again.
    ReauthRequired,
    /// Outside the socket's policy.
    Unauthorized,
    /// No such grant, API key or route.
    NotFound,
    /// The grant has no refresh token.
    RefreshNotAvailable,
    /// The refresh token, or the name, is another grant's already, or the grant may not be replaced.
    GrantConflict,
    /// `If-Match` or `If-None-Match` does not hold.
    PreconditionFailed,
    /// Inside the cooldown or a backoff, or at a limit.
    RateLimited,
    /// A fault of ours.
    InternalError,
    /// A grant is stored, but its provider is not configured.
    ProviderNotConfigured,
    /// The provider failed or answered nonsense.
    RefreshFailed,
    /// The store failed before the refresh token was spent, or another owner holds the lease.
    StoreUnavailable,
    /// No such login.
    SessionNotFound,
    /// The login took too long.
    SessionExpired,
    /// The login has had its answer.
    SessionAlreadyUsed,
    /// The person or the provider refused the login, or the provider failed.
    ExchangeFailed,
}

impl Code {
    /// Every code, for the comparison with the OpenAPI document.
    pub const ALL: [Self; 16] = [
        Self::InvalidRequest,
        Self::ReauthRequired,
        Self::Unauthorized,
        Self::NotFound,
        Self::RefreshNotAvailable,
        Self::GrantConflict,
        Self::PreconditionFailed,
        Self::RateLimited,
        Self::InternalError,
        Self::ProviderNotConfigured,
        Self::RefreshFailed,
        Self::StoreUnavailable,
        Self::SessionNotFound,
        Self::SessionExpired,
        Self::SessionAlreadyUsed,
        Self::ExchangeFailed,
    ];

    /// Its name in the contract.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "INVALID_REQUEST",
            Self::ReauthRequired => "REAUTH_REQUIRED",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::NotFound => "NOT_FOUND",
            Self::RefreshNotAvailable => "REFRESH_NOT_AVAILABLE",
            Self::GrantConflict => "GRANT_CONFLICT",
            Self::PreconditionFailed => "PRECONDITION_FAILED",
            Self::RateLimited => "RATE_LIMITED",
            Self::InternalError => "INTERNAL_ERROR",
            Self::ProviderNotConfigured => "PROVIDER_NOT_CONFIGURED",
            Self::RefreshFailed => "REFRESH_FAILED",
            Self::StoreUnavailable => "STORE_UNAVAILABLE",
            Self::SessionNotFound => "SESSION_NOT_FOUND",
            Self::SessionExpired => "SESSION_EXPIRED",
            Self::SessionAlreadyUsed => "SESSION_ALREADY_USED",
            Self::ExchangeFailed => "EXCHANGE_FAILED",
        }
    }

    const fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::ReauthRequired => StatusCode::UNAUTHORIZED,
            Self::Unauthorized => StatusCode::FORBIDDEN,
            Self::NotFound | Self::SessionNotFound => StatusCode::NOT_FOUND,
            Self::RefreshNotAvailable | Self::GrantConflict | Self::SessionAlreadyUsed => StatusCode::CONFLICT,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
            Self::ProviderNotConfigured => StatusCode::NOT_IMPLEMENTED,
            Self::RefreshFailed | Self::ExchangeFailed => StatusCode::BAD_GATEWAY,
            Self::StoreUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::SessionExpired => StatusCode::GONE,
        }
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A refusal. Its answer carries the code as an extension, for the audit log.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    code: Code,
    status: StatusCode,
    detail: String,
    retry_after: Option<u64>,
    challenge: Option<HeaderValue>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    code: Code,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

impl Problem {
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        Self { code, status: code.status(), detail: detail.into(), retry_after: None, challenge: None }
    }

    /// The request is malformed.
    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, detail)
    }

    /// The same code where HTTP has a status of its own (405, 413, 415).
    pub(crate) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// The one answer for whatever a socket may not do, whether or not it exists.
    pub(crate) fn unauthorized() -> Self {
        Self::new(Code::Unauthorized, "this socket may not do that")
    }

    /// More requests than the peer may make.
    pub(super) fn too_fast(wait: Duration) -> Self {
        Self::new(Code::RateLimited, "more requests than this user may make on this socket").retry_after(wait)
    }

    /// The audit log cannot be written, and nothing is to be done without a line in it. It is a store that cannot be
    /// written, to a caller: nothing was done, and waiting may help; no fault of the program's (500), which waiting
    /// would not cure.
    pub(super) fn audit_unwritable() -> Self {
        Self::new(Code::StoreUnavailable, "the audit log cannot be written").retry_soon()
    }

    /// The same whether none was shown or a wrong one.
    pub(crate) fn wrong_capability() -> Self {
        Self::new(Code::Unauthorized, "wrong capability")
    }

    /// A store or lease is usually back within seconds, and asking again costs no provider anything.
    pub(crate) fn retry_soon(self) -> Self {
        self.retry_after(Duration::from_secs(1))
    }

    fn retry_after(self, wait: Duration) -> Self {
        let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
        Self { retry_after: Some(seconds.max(1)), ..self }
    }

    /// What became of a request for `account`'s token or grant.
    pub(crate) fn refresh(account: &Account, error: &RefreshError) -> Self {
        let problem = |code| Self::new(code, error.to_string());
        match error {
            RefreshError::NotFound => problem(Code::NotFound),
            RefreshError::NotRefreshable => problem(Code::RefreshNotAvailable),
            RefreshError::NotConfigured => problem(Code::ProviderNotConfigured),
            RefreshError::PreconditionFailed => problem(Code::PreconditionFailed),
            RefreshError::GrantConflict(_) | RefreshError::NameTaken(_) | RefreshError::StillUsable => {
                problem(Code::GrantConflict)
            }
            RefreshError::Reauth { .. } => {
                let challenge = format!("Credproxy realm=\"{account}\", error=\"reauth_required\"");
                Self { challenge: HeaderValue::try_from(challenge).ok(), ..problem(Code::ReauthRequired) }
            }
            RefreshError::RateLimited { wait, .. } | RefreshError::QuotaExceeded { wait } => {
                problem(Code::RateLimited).retry_after(*wait)
            }
            RefreshError::ProviderBusy => problem(Code::RateLimited).retry_soon(),
            RefreshError::Failed { failure, wait } => {
                let detail = match &failure.code {
                    Some(code) => format!("{} ({code})", failure.reason),
                    None => failure.reason.to_owned(),
                };
                let problem = Self::new(Code::RefreshFailed, detail).retry_after(*wait);
                if failure.timed_out && failure.outcome == Outcome::Ambiguous {
                    problem.with_status(StatusCode::GATEWAY_TIMEOUT)
                } else {
                    problem
                }
            }
            RefreshError::Store(source) => Self::store(source),
            RefreshError::StoreStalled
            | RefreshError::LeaseHeld
            | RefreshError::Unsaved
            | RefreshError::ShuttingDown => problem(Code::StoreUnavailable).retry_soon(),
            RefreshError::Internal => problem(Code::InternalError),
        }
    }

    /// What became of a login for `account`, or of one whose account does not matter.
    pub(crate) fn login(account: Option<&Account>, error: &LoginError) -> Self {
        let problem = |code| Self::new(code, error.to_string());
        match error {
            LoginError::NotConfigured => problem(Code::ProviderNotConfigured),
            LoginError::NotOffered | LoginError::TakesNoCode | LoginError::Malformed => problem(Code::InvalidRequest),
            LoginError::TooMany { wait } | LoginError::TooOften { wait } | LoginError::PortTaken { wait } => {
                problem(Code::RateLimited).retry_after(*wait)
            }
            LoginError::NotFound => problem(Code::SessionNotFound),
            LoginError::Expired => problem(Code::SessionExpired),
            LoginError::AlreadyUsed => problem(Code::SessionAlreadyUsed),
            LoginError::Exchange { .. } => problem(Code::ExchangeFailed),
            LoginError::GrantConflict(_) | LoginError::Store(RefreshError::StillUsable) => problem(Code::GrantConflict),
            LoginError::Store(error) => {
                account.map_or_else(|| problem(Code::StoreUnavailable), |account| Self::refresh(account, error))
            }
            LoginError::ShuttingDown => problem(Code::StoreUnavailable).retry_soon(),
            LoginError::Internal => problem(Code::InternalError),
        }
    }

    /// What became of a request for a sandbox.
    pub(crate) fn sandbox(error: &SandboxError) -> Self {
        let problem = |code| Self::new(code, error.to_string());
        match error {
            SandboxError::TooMany { wait, .. } => problem(Code::RateLimited).retry_after(*wait),
            SandboxError::NotFound => problem(Code::NotFound),
            SandboxError::NoProcess => problem(Code::InvalidRequest),
            SandboxError::Store(source) => Self::store(source),
            SandboxError::ShuttingDown => problem(Code::StoreUnavailable).retry_soon(),
            SandboxError::NoSocket(_) | SandboxError::Internal => problem(Code::InternalError),
        }
    }

    /// What became of a request for an API key.
    pub(crate) fn key(error: &KeyError) -> Self {
        let problem = |code| Self::new(code, error.to_string());
        match error {
            KeyError::NotFound => problem(Code::NotFound),
            KeyError::PreconditionFailed => problem(Code::PreconditionFailed),
            KeyError::RevealsRefreshToken => problem(Code::InvalidRequest),
            KeyError::Store(source) => Self::store(source),
            KeyError::Internal => problem(Code::InternalError),
        }
    }

    fn store(error: &StoreError) -> Self {
        let problem = Self::new(Code::StoreUnavailable, error.to_string());
        if error.is_transient() { problem.retry_soon() } else { problem }
    }

    /// Code and detail, for an answer that tells of a refusal and is none.
    pub(super) fn into_parts(self) -> (Code, String) {
        (self.code, self.detail)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let wire = Wire {
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            retry_after: self.retry_after,
        };
        // Strings and numbers always serialize.
        let mut response = Response::new(Body::from(serde_json::to_vec(&wire).unwrap_or_default()));
        *response.status_mut() = self.status;
        response.extensions_mut().insert(self.code);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if let Some(challenge) = self.challenge {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_whole_seconds_rounded_up_and_at_least_one() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (29_999, 30), (30_000, 30)] {
            let problem = Problem::new(Code::RateLimited, "x").retry_after(Duration::from_millis(millis));
            assert_eq!(problem.retry_after, Some(seconds), "{millis}");
        }
    }

    #[test]
    fn a_dead_grant_names_its_realm() {
        let account = "corp/work".parse().unwrap();
        let response =
            Problem::refresh(&account, &RefreshError::Reauth { answer_lost: false, copied: false }).into_response();
        assert_eq!(response.status(), 401);
        assert_eq!(
            response.headers()[header::WWW_AUTHENTICATE],
            "Credproxy realm=\"corp/work\", error=\"reauth_required\""
        );
    }
}
