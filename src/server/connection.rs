//! One connection, and one request on it.

use std::{convert::Infallible, sync::Arc};

use axum::extract::FromRequestParts;
use http::request::Parts;

use super::peer::Peer;
use crate::{
    account::AccountRef,
    audit::{Kind, Origin, Subject},
    clock::Monotonic,
    limits::{PeerLimiter, RefreshQuota, TooFast},
    refresh::CallerContext,
};

/// The peer of a connection, and the rate limits on it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: Peer,
    /// The peer's description for the audit log.
    pub(super) origin: Option<Origin>,
    /// The request limiter of the peer's user, shared by all connections of that user on the socket.
    rate: Option<Arc<PeerLimiter>>,
    /// The socket's quota of new tokens.
    quota: Option<Arc<RefreshQuota>>,
}

impl Connection {
    pub(super) fn new(
        peer: Peer,
        origin: Option<Origin>,
        rate: Option<Arc<PeerLimiter>>,
        quota: Option<Arc<RefreshQuota>>,
    ) -> Arc<Self> {
        Arc::new(Self { peer, origin, rate, quota })
    }

    /// Whether its requests are counted.
    pub(super) const fn is_paced(&self) -> bool {
        self.rate.is_some()
    }

    /// Counts a request. The error contains the time until the next one is allowed, and when to answer this one.
    pub(super) fn ask(&self, now: Monotonic) -> Result<(), TooFast> {
        self.rate.as_ref().map_or(Ok(()), |rate| rate.acquire(now))
    }
}

/// One request: its connection, and the details collected while it is carried out. Clones share the details.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestContext {
    connection: Option<Arc<Connection>>,
    /// `None` if nobody needs the details: most requests are served from memory, and must cost no more than that.
    details: Option<Arc<RequestDetails>>,
}

#[derive(Debug, Default)]
struct RequestDetails {
    subject: Subject,
    caller: CallerContext,
}

impl RequestContext {
    /// A request on that connection; `None` for a router that is called in process.
    pub(super) fn for_connection(connection: Arc<Connection>) -> Self {
        let Connection { origin, quota, .. } = &*connection;
        let details = (origin.is_some() || quota.is_some())
            .then(|| RequestDetails { subject: Subject::default(), caller: CallerContext::with_quota(quota.clone()) });
        Self { details: details.map(Arc::new), connection: Some(connection) }
    }

    /// A request without a connection that is recorded nevertheless.
    pub(super) fn in_process() -> Self {
        Self { connection: None, details: Some(Arc::default()) }
    }

    pub(super) fn connection(&self) -> Option<&Connection> {
        self.connection.as_deref()
    }

    /// Records the account that the request is about.
    pub(super) fn set_account<'a>(&self, account: impl Into<AccountRef<'a>>) {
        if let Some(details) = &self.details {
            details.subject.account(account.into());
        }
    }

    /// Records the name of what the request is about.
    pub(super) fn set_subject(&self, kind: Kind, name: &str) {
        if let Some(details) = &self.details {
            details.subject.named(kind, name);
        }
    }

    /// Whether the provider was called for it.
    pub(super) fn note_provider_called(&self, called: bool) {
        if let Some(caller) = self.caller() {
            caller.note_provider_called(called);
        }
    }

    pub(super) fn subject(&self) -> Option<&Subject> {
        self.details.as_ref().map(|details| &details.subject)
    }

    /// The context for the coordinator.
    pub(super) fn caller(&self) -> Option<&CallerContext> {
        self.details.as_ref().map(|details| &details.caller)
    }
}

impl<S: Sync> FromRequestParts<S> for RequestContext {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let context: Option<&RequestContext> = parts.extensions.get();
        let connected = context.and_then(RequestContext::connection).map(|connection| connection.peer);
        Ok(connected.or_else(|| parts.extensions.get().copied()).unwrap_or_else(Self::own))
    }
}
