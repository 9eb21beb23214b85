//! Why there is no token.

use std::{sync::Arc, time::Duration};

use super::outcome::Failure;
use crate::store::StoreError;

/// Why there is no token. Everything in it may be shown to the caller.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RefreshError {
    /// No grant is stored for the account.
    #[error("no grant is stored for this account")]
    NotFound,
    /// The grant has no refresh token.
    #[error("the grant has no refresh token")]
    NotRefreshable,
    /// A grant is stored, but its provider is not in the configuration.
    #[error("a grant is stored, but no provider of this name is configured")]
    NotConfigured,
    /// `If-Match` names another state, or another account.
    #[error("the grant is not in the state that If-Match names")]
    PreconditionFailed,
    /// The account has a grant that is of use still, and who asks may not replace it.
    #[error(
        "the account has a grant that is of use still, which a sandbox's login does not replace: log in on the host"
    )]
    Living,
    /// The grant is dead; a person must log in again.
    #[error("{}", if *answer_lost { ANSWER_LOST } else { "the provider no longer accepts the grant: log in again" })]
    Reauth {
        /// An answer of the provider's was lost before, and perhaps the successor with it.
        answer_lost: bool,
    },
    /// Inside the cooldown or a backoff.
    #[error("too soon after the last attempt{}", last.as_ref().map(|last| format!(" ({last})")).unwrap_or_default())]
    RateLimited {
        /// How long until the next attempt.
        wait: Duration,
        /// What the last attempt failed of, if it did.
        last: Option<String>,
    },
    /// The caller's socket has had as many new tokens of this account as it may.
    #[error("this socket has asked for a new token of this account too often")]
    Spent {
        /// How long until it may have another.
        wait: Duration,
    },
    /// As many accounts of the provider are being refreshed as may at once.
    #[error("too many accounts of this provider are being refreshed at once")]
    Crowded,
    /// The provider failed.
    #[error("{}", .failure.reason)]
    Failed {
        /// How.
        failure: Failure,
        /// How long until the next attempt.
        wait: Duration,
    },
    /// The store failed before the refresh token was spent.
    #[error("{0}")]
    Store(Arc<StoreError>),
    /// Another daemon refreshes this account right now.
    #[error("another daemon is refreshing this account")]
    LeaseHeld,
    /// A refreshed grant of this account has not reached the store yet; it is served, but not refreshed again.
    #[error("the last refresh of this account is not saved yet")]
    Unsaved,
    /// The daemon is about to end.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// A fault of ours.
    #[error("internal error")]
    Internal,
}

const ANSWER_LOST: &str = "the provider no longer accepts the grant; an answer of its was lost before, perhaps with the successor: log in again";

impl From<StoreError> for RefreshError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}
