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

/// Whose a connection is, and how much may be asked on it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: Peer,
    /// As the audit log tells of it.
    pub(super) origin: Option<Origin>,
    /// Its peer's, shared by all connections of that user on the socket.
    rate: Option<Arc<PeerLimiter>>,
    /// The socket's, for the new tokens that its peers ask for.
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

    /// Counts a request. The error says when there may be another, and when this one is to be answered.
    pub(super) fn ask(&self, now: Monotonic) -> Result<(), TooFast> {
        self.rate.as_ref().map_or(Ok(()), |rate| rate.acquire(now))
    }
}

/// One request: what it came on, and what becomes details of it while it is carried out. Clones are of the same one.
#[derive(Debug, Clone, Default)]
pub(super) struct RequestContext {
    connection: Option<Arc<Connection>>,
    /// None where nobody will want to know: most requests ask for what is at hand, and are to cost no more than that.
    details: Option<Arc<RequestDetails>>,
}

#[derive(Debug, Default)]
struct RequestDetails {
    subject: Subject,
    caller: CallerContext,
}

impl RequestContext {
    /// On that connection. A router that is called in process has none.
    pub(super) fn for_connection(connection: Arc<Connection>) -> Self {
        let Connection { origin, quota, .. } = &*connection;
        let details = (origin.is_some() || quota.is_some())
            .then(|| RequestDetails { subject: Subject::default(), caller: CallerContext::with_quota(quota.clone()) });
        Self { details: details.map(Arc::new), connection: Some(connection) }
    }

    /// Without a connection, to be written down all the same.
    pub(super) fn in_process() -> Self {
        Self { connection: None, details: Some(Arc::default()) }
    }

    pub(super) fn connection(&self) -> Option<&Connection> {
        self.connection.as_deref()
    }

    /// It is about this account.
    pub(super) fn set_account<'a>(&self, account: impl Into<AccountRef<'a>>) {
        if let Some(details) = &self.details {
            details.subject.account(account.into());
        }
    }

    /// It is about this thing.
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

    /// For the coordinator.
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
