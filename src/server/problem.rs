//! Problems: every refusal of the API, as `application/problem+json` (RFC 9457).
//!
//! Owns: the statuses of the codes, and the only mapping from errors to codes.
//!
//! Invariants:
//! 1. A problem contains no text of the caller's, and none of a provider's but a filtered error code.
//! 2. `retryAfter` and `Retry-After` have the same number: whole seconds, rounded up, at least 1.

use std::time::Duration;

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::{
    account::Account,
    keys::KeyError,
    login::LoginError,
    problem_code::ProblemCode,
    refresh::RefreshError,
    sandbox::SandboxError,
    store::{Outcome, StoreError},
};

/// Each code's status. Three kinds of malformed request have another one (RFC 9110): [`Problem::with_status`].
const fn status(code: ProblemCode) -> StatusCode {
    match code {
        ProblemCode::InvalidRequest => StatusCode::BAD_REQUEST,
        ProblemCode::ReauthRequired => StatusCode::UNAUTHORIZED,
        ProblemCode::Unauthorized => StatusCode::FORBIDDEN,
        ProblemCode::NotFound | ProblemCode::SessionNotFound => StatusCode::NOT_FOUND,
        ProblemCode::RefreshNotAvailable | ProblemCode::GrantConflict | ProblemCode::SessionAlreadyUsed => {
            StatusCode::CONFLICT
        }
        ProblemCode::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
        ProblemCode::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        ProblemCode::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
        ProblemCode::ProviderNotConfigured => StatusCode::NOT_IMPLEMENTED,
        ProblemCode::RefreshFailed | ProblemCode::ExchangeFailed => StatusCode::BAD_GATEWAY,
        ProblemCode::StoreUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        ProblemCode::SessionExpired => StatusCode::GONE,
    }
}

/// A refusal. Its response carries the code as an extension, for the audit log.
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    code: ProblemCode,
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
    code: ProblemCode,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

impl Problem {
    pub(crate) fn new(code: ProblemCode, detail: impl Into<String>) -> Self {
        Self { code, status: status(code), detail: detail.into(), retry_after: None, challenge: None }
    }

    /// The request is malformed.
    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(ProblemCode::InvalidRequest, detail)
    }

    /// A malformed request that has a status of its own in HTTP (405, 413, 415).
    pub(crate) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// The single response for everything that a socket may not do, whether or not it exists.
    pub(crate) fn unauthorized() -> Self {
        Self::new(ProblemCode::Unauthorized, "this socket may not do that")
    }

    /// The peer's request rate exceeds its limit.
    pub(super) fn too_fast(wait: Duration) -> Self {
        Self::new(ProblemCode::RateLimited, "the request rate limit of this user on this socket is exceeded")
            .retry_after(wait)
    }

    /// The audit log cannot be written, and without a line in it nothing is done. To a caller this is like a store that
    /// cannot be written: nothing was done, and retrying may help. It is not an internal error (500), which retrying
    /// would not cure.
    pub(super) fn audit_unwritable() -> Self {
        Self::new(ProblemCode::StoreUnavailable, "the audit log cannot be written").retry_soon()
    }

    /// The same response for a missing and a wrong capability.
    pub(crate) fn wrong_capability() -> Self {
        Self::new(ProblemCode::Unauthorized, "wrong capability")
    }

    /// A store or lease usually recovers within seconds, and a retry costs no provider anything.
    pub(crate) fn retry_soon(self) -> Self {
        self.retry_after(Duration::from_secs(1))
    }

    fn retry_after(self, wait: Duration) -> Self {
        let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
        Self { retry_after: Some(seconds.max(1)), ..self }
    }

    /// The problem for a failed request for `account`'s token or grant.
    pub(crate) fn refresh(account: &Account, error: &RefreshError) -> Self {
        let problem = |code| Self::new(code, error.to_string());
        match error {
            RefreshError::NotFound => problem(ProblemCode::NotFound),
            RefreshError::NotRefreshable => problem(ProblemCode::RefreshNotAvailable),
            RefreshError::NotConfigured => problem(ProblemCode::ProviderNotConfigured),
            RefreshError::PreconditionFailed => problem(ProblemCode::PreconditionFailed),
            RefreshError::GrantConflict(_) | RefreshError::NameTaken(_) | RefreshError::StillUsable => {
                problem(ProblemCode::GrantConflict)
            }
            RefreshError::Reauth { .. } => {
                let challenge = format!("Credproxy realm=\"{account}\", error=\"reauth_required\"");
                Self { challenge: HeaderValue::try_from(challenge).ok(), ..problem(ProblemCode::ReauthRequired) }
            }
            RefreshError::RateLimited { wait, .. } | RefreshError::QuotaExceeded { wait } => {
                problem(ProblemCode::RateLimited).retry_after(*wait)
            }
            RefreshError::ProviderBusy => problem(ProblemCode::RateLimited).retry_soon(),
            RefreshError::Failed { failure, wait } => {
                let detail = match &failure.code {
                    Some(code) => format!("{} ({code})", failure.reason),
                    None => failure.reason.to_owned(),
                };
                let problem = Self::new(ProblemCode::RefreshFailed, detail).retry_after(*wait);
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
            | RefreshError::ShuttingDown => problem(ProblemCode::StoreUnavailable).retry_soon(),
            RefreshError::Internal => problem(ProblemCode::InternalError),
        }
    }

    /// The problem for a failed login for `account`, or for one whose account does not matter.
    pub(crate) fn login(account: Option<&Account>, error: &LoginError) -> Self {
        let problem = |code| Self::new(code, error.to_string());
        match error {
            LoginError::NotConfigured => problem(ProblemCode::ProviderNotConfigured),
            LoginError::NotOffered | LoginError::TakesNoCode | LoginError::Malformed => {
                problem(ProblemCode::InvalidRequest)
            }
            LoginError::TooMany { wait } | LoginError::TooOften { wait } | LoginError::PortTaken { wait } => {
                problem(ProblemCode::RateLimited).retry_after(*wait)
            }
            LoginError::NotFound => problem(ProblemCode::SessionNotFound),
            LoginError::Expired => problem(ProblemCode::SessionExpired),
            LoginError::AlreadyUsed => problem(ProblemCode::SessionAlreadyUsed),
            LoginError::Exchange { .. } => problem(ProblemCode::ExchangeFailed),
            LoginError::GrantConflict(_) | LoginError::Store(RefreshError::StillUsable) => {
                problem(ProblemCode::GrantConflict)
            }
            LoginError::Store(error) => {
                account.map_or_else(|| problem(ProblemCode::StoreUnavailable), |account| Self::refresh(account, error))
            }
            LoginError::ShuttingDown => problem(ProblemCode::StoreUnavailable).retry_soon(),
            LoginError::Internal => problem(ProblemCode::InternalError),
        }
    }

    /// The problem for a failed request for a sandbox.
    pub(crate) fn sandbox(error: &SandboxError) -> Self {
        let problem = |code| Self::new(code, error.to_string());
        match error {
            SandboxError::TooMany { wait, .. } => problem(ProblemCode::RateLimited).retry_after(*wait),
            SandboxError::NotFound => problem(ProblemCode::NotFound),
            SandboxError::NoProcess => problem(ProblemCode::InvalidRequest),
            SandboxError::Store(source) => Self::store(source),
            SandboxError::ShuttingDown => problem(ProblemCode::StoreUnavailable).retry_soon(),
            SandboxError::NoSocket(_) | SandboxError::Internal => problem(ProblemCode::InternalError),
        }
    }

    /// The problem for a failed request for an API key.
    pub(crate) fn key(error: &KeyError) -> Self {
        let problem = |code| Self::new(code, error.to_string());
        match error {
            KeyError::NotFound => problem(ProblemCode::NotFound),
            KeyError::PreconditionFailed => problem(ProblemCode::PreconditionFailed),
            KeyError::RevealsRefreshToken => problem(ProblemCode::InvalidRequest),
            KeyError::Store(source) => Self::store(source),
            KeyError::Internal => problem(ProblemCode::InternalError),
        }
    }

    fn store(error: &StoreError) -> Self {
        let problem = Self::new(ProblemCode::StoreUnavailable, error.to_string());
        if error.is_transient() { problem.retry_soon() } else { problem }
    }

    /// Returns code and detail, for a response that describes a failure but is not one itself.
    pub(super) fn into_parts(self) -> (ProblemCode, String) {
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
            let problem = Problem::new(ProblemCode::RateLimited, "x").retry_after(Duration::from_millis(millis));
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
