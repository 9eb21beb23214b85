//! The errors of the coordinator.

use std::{sync::Arc, time::Duration};

use super::outcome::Failure;
use crate::{
    account::Account,
    store::{DeadGrant, KnownToken, StoreError},
};

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
    #[error("the grant is not in the state that If-Match or If-None-Match asks for")]
    PreconditionFailed,
    /// The account has a grant that is still usable, and this caller may not replace it.
    #[error(
        "the account has a grant that is of use still, which a sandbox's login does not replace: log in on the host"
    )]
    StillUsable,
    /// The grant is dead; a person must log in again.
    #[error("{}", reauth(*answer_lost, *copied))]
    Reauth {
        /// An earlier answer of the provider's was lost, perhaps with the successor in it.
        answer_lost: bool,
        /// The store may be a copy, and the refresh token may have been presented from another one.
        copied: bool,
    },
    /// The refresh token to be stored was spent, or belongs to another account. Nothing changed.
    #[error("{}", known(.0))]
    GrantConflict(KnownToken),
    /// The new name has a grant already. Nothing changed.
    #[error("a grant is stored for {0} already: delete it first, or choose another name")]
    NameTaken(Account),
    /// Inside the cooldown or a backoff.
    #[error("too soon after the last attempt{}", last.as_ref().map(|last| format!(" ({last})")).unwrap_or_default())]
    RateLimited {
        /// How long until the next attempt.
        wait: Duration,
        /// The error of the last attempt, if it failed.
        last: Option<String>,
    },
    /// The caller's socket has used up its quota of new tokens for this account.
    #[error("this socket's quota of new tokens for this account is used up")]
    QuotaExceeded {
        /// How long until it may request another one.
        wait: Duration,
    },
    /// The provider's limit of simultaneous refreshes is reached.
    #[error("the provider's limit of simultaneous refreshes is reached")]
    ProviderBusy,
    /// The provider failed.
    #[error("{}", .failure.reason)]
    Failed {
        /// The kind of failure.
        failure: Failure,
        /// How long until the next attempt.
        wait: Duration,
    },
    /// The store failed before the refresh token was spent.
    #[error("{0}")]
    Store(Arc<StoreError>),
    /// The store did not answer within the time that a caller with a valid token waits.
    #[error("the store does not answer")]
    StoreStalled,
    /// Another daemon is refreshing this account.
    #[error("another daemon is refreshing this account")]
    LeaseHeld,
    /// A refreshed grant of this account has not been saved yet; it is served, but not refreshed again.
    #[error("the last refresh of this account is not saved yet")]
    Unsaved,
    /// The daemon is stopping.
    #[error("the daemon is shutting down")]
    ShuttingDown,
    /// An internal error.
    #[error("internal error")]
    Internal,
}

const ANSWER_LOST: &str = "the provider no longer accepts the grant; an answer of its was lost before, perhaps with the successor: log in again";

const COPIED: &str = "the provider no longer accepts the grant; this store was copied, moved or restored, and the refresh token has probably been presented from the other copy: log in again, and never use two copies";

fn reauth(answer_lost: bool, copied: bool) -> &'static str {
    match (answer_lost, copied) {
        (_, true) => COPIED,
        (true, false) => ANSWER_LOST,
        (false, false) => "the provider no longer accepts the grant: log in again",
    }
}

fn known(KnownToken { account, spent }: &KnownToken) -> String {
    if *spent {
        format!(
            "this refresh token of {account} has been used, and another has taken its place: what is stored is newer \
             and was left as it is"
        )
    } else {
        format!("this refresh token is stored for {account} already; rename that account if it is to have another name")
    }
}

impl From<DeadGrant> for RefreshError {
    fn from(dead: DeadGrant) -> Self {
        Self::Reauth { answer_lost: dead.answer_lost, copied: dead.copied }
    }
}

impl From<StoreError> for RefreshError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}
