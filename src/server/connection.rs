//! One connection, and one request on it.

use std::{convert::Infallible, sync::Arc};

use axum::extract::FromRequestParts;
use http::request::Parts;

use super::peer::Peer;
use crate::{
    account::AccountRef,
    audit::{Kind, Origin, Subject},
    clock::Monotonic,
    limits::{PeerRate, Spending, TooFast},
    refresh::Ticket,
};

/// Whose a connection is, and how much may be asked on it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: Peer,
    /// As the audit log tells of it.
    pub(super) origin: Option<Origin>,
    /// Its peer's, shared by all connections of that user on the socket.
    rate: Option<Arc<PeerRate>>,
    /// The socket's, for the new tokens that its peers ask for.
    spending: Option<Arc<Spending>>,
}

impl Connection {
    pub(super) fn new(
        peer: Peer,
        origin: Option<Origin>,
        rate: Option<Arc<PeerRate>>,
        spending: Option<Arc<Spending>>,
    ) -> Arc<Self> {
        Arc::new(Self { peer, origin, rate, spending })
    }

    /// Whether its requests are counted.
    pub(super) const fn is_paced(&self) -> bool {
        self.rate.is_some()
    }

    /// Counts a request. The error says when there may be another, and when this one is to be answered.
    pub(super) fn ask(&self, now: Monotonic) -> Result<(), TooFast> {
        self.rate.as_ref().map_or(Ok(()), |rate| rate.take(now))
    }
}

/// One request: what it came on, and what becomes known of it while it is carried out. Clones are of the same one.
#[derive(Debug, Clone, Default)]
pub(super) struct Errand {
    connection: Option<Arc<Connection>>,
    /// None where nobody will want to know: most requests ask for what is at hand, and are to cost no more than that.
    known: Option<Arc<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    subject: Subject,
    ticket: Ticket,
}

impl Errand {
    /// On that connection. A router that is called in process has none.
    pub(super) fn on(connection: Arc<Connection>) -> Self {
        let Connection { origin, spending, .. } = &*connection;
        let known = (origin.is_some() || spending.is_some())
            .then(|| Known { subject: Subject::default(), ticket: Ticket::paid_from(spending.clone()) });
        Self { known: known.map(Arc::new), connection: Some(connection) }
    }

    /// Without a connection, to be written down all the same.
    pub(super) fn in_process() -> Self {
        Self { connection: None, known: Some(Arc::default()) }
    }

    pub(super) fn connection(&self) -> Option<&Connection> {
        self.connection.as_deref()
    }

    /// It is about this account.
    pub(super) fn about<'a>(&self, account: impl Into<AccountRef<'a>>) {
        if let Some(known) = &self.known {
            known.subject.account(account.into());
        }
    }

    /// It is about this thing.
    pub(super) fn about_named(&self, kind: Kind, name: &str) {
        if let Some(known) = &self.known {
            known.subject.named(kind, name);
        }
    }

    /// Whether the provider was called for it.
    pub(super) fn saw(&self, called: bool) {
        if let Some(ticket) = self.ticket() {
            ticket.saw(called);
        }
    }

    pub(super) fn subject(&self) -> Option<&Subject> {
        self.known.as_ref().map(|known| &known.subject)
    }

    /// For the coordinator.
    pub(super) fn ticket(&self) -> Option<&Ticket> {
        self.known.as_ref().map(|known| &known.ticket)
    }
}

impl<S: Sync> FromRequestParts<S> for Errand {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
    }
}

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let errand: Option<&Errand> = parts.extensions.get();
        let connected = errand.and_then(Errand::connection).map(|connection| connection.peer);
        Ok(connected.or_else(|| parts.extensions.get().copied()).unwrap_or_else(Self::own))
    }
}
