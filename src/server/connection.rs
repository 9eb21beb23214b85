//! One connection, and one request on it.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::extract::FromRequestParts;
use http::request::Parts;

use super::peer::Peer;
use crate::{
    account::AccountRef,
    audit::{Kind, Origin, Subject},
    clock::Monotonic,
    limits::{Bucket, Rate, Spending},
    refresh::Ticket,
};

/// Whose a connection is, and how much may be asked on it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: Peer,
    /// As the audit log tells of it.
    pub(super) origin: Option<Origin>,
    pace: Option<(Rate, Mutex<Bucket>)>,
    /// The socket's, for the new tokens that its peers ask for.
    spending: Option<Arc<Spending>>,
}

impl Connection {
    pub(super) fn new(
        peer: Peer,
        origin: Option<Origin>,
        rate: Option<Rate>,
        spending: Option<Arc<Spending>>,
    ) -> Arc<Self> {
        let pace = rate.map(|rate| (rate, Mutex::default()));
        Arc::new(Self { peer, origin, pace, spending })
    }

    /// Counts a request. The error says when there may be another.
    pub(super) fn ask(&self, now: Monotonic) -> Result<(), Duration> {
        match &self.pace {
            Some((rate, bucket)) => bucket.lock().unwrap_or_else(PoisonError::into_inner).take(*rate, now),
            None => Ok(()),
        }
    }
}

/// One request: what it came on, and what becomes known of it while it is carried out. Clones are of the same one.
#[derive(Debug, Clone, Default)]
pub(super) struct Errand(Arc<Known>);

#[derive(Debug, Default)]
struct Known {
    connection: Option<Arc<Connection>>,
    subject: Subject,
    ticket: Ticket,
}

impl Errand {
    /// On that connection. A router that is called in process has none.
    pub(super) fn on(connection: Arc<Connection>) -> Self {
        let ticket = Ticket::paid_from(connection.spending.clone());
        Self(Arc::new(Known { connection: Some(connection), subject: Subject::default(), ticket }))
    }

    pub(super) fn connection(&self) -> Option<&Connection> {
        self.0.connection.as_deref()
    }

    /// It is about this account.
    pub(super) fn about<'a>(&self, account: impl Into<AccountRef<'a>>) {
        if self.is_written_down() {
            self.0.subject.account(account.into());
        }
    }

    /// It is about this thing.
    pub(super) fn about_named(&self, kind: Kind, name: &str) {
        if self.is_written_down() {
            self.0.subject.named(kind, name);
        }
    }

    /// Whether anybody will want to know. Of a request without a connection it is not known here.
    fn is_written_down(&self) -> bool {
        self.connection().is_none_or(|connection| connection.origin.is_some())
    }

    pub(super) fn subject(&self) -> &Subject {
        &self.0.subject
    }

    /// For the coordinator.
    pub(super) fn ticket(&self) -> &Ticket {
        &self.0.ticket
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
