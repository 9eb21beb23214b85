//! What every request passes: whether it may be carried out now, and the line that tells of it.
//!
//! Invariants:
//! 1. A request makes one line in the audit log, whatever becomes of it: an answer, a panic, a connection that ends.
//! 2. What is refused here has touched nothing.

use std::sync::Arc;

use axum::{
    extract::{FromRequestParts, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use http::{Version, header, request::Parts};

use super::{
    AppState,
    connection::Connection,
    operations,
    peer::Peer,
    problem::{Code, Problem},
};
use crate::{
    account::Account,
    audit::{Audit, Event, Kind, Origin, Subject, words},
    clock::{Clock, Monotonic},
    limits::{Rate, Spending},
    refresh::Ticket,
};

/// One socket's gate.
#[derive(Debug)]
pub(super) struct Gate {
    clock: Arc<dyn Clock>,
    audit: Audit,
    /// For requests without a connection.
    origin: Origin,
    /// Of the new tokens that the socket's peers ask for.
    spending: Option<Arc<Spending>>,
}

impl Gate {
    /// The gate of that socket; `forced_refreshes` of each account.
    pub(super) fn new(clock: Arc<dyn Clock>, audit: Audit, socket: &str, forced_refreshes: Option<Rate>) -> Self {
        let origin = Origin::of_peer(socket, Peer::own().uid, None);
        Self { clock, audit, origin, spending: forced_refreshes.map(|rate| Arc::new(Spending::new(rate))) }
    }

    pub(super) const fn audit(&self) -> &Audit {
        &self.audit
    }

    /// What a request is refused for before anything of it is looked at.
    fn refusal(&self, request: &Request, operation: &str, started: Monotonic) -> Option<Problem> {
        if let Some(connection) = request.extensions().get::<Connection>() {
            // RFC 9112 section 3.2. What it says does not matter on a Unix socket.
            if request.version() == Version::HTTP_11 && request.headers().get_all(header::HOST).iter().count() != 1 {
                return Some(Problem::invalid("a request of HTTP/1.1 has exactly one Host header"));
            }
            if let Err(wait) = connection.ask(started) {
                return Some(Problem::too_fast(wait));
            }
        }
        (!self.audit.admits() && !operations::is_harmless(operation)).then(Problem::unaudited)
    }
}

/// Lets a request through, or not, and writes it down.
pub(super) async fn pass(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let started = gate.clock.monotonic();
    let operation = operations::of(&request);
    let errand = Errand::new(gate.spending.clone());
    request.extensions_mut().insert(errand.clone());
    let refusal = gate.refusal(&request, operation, started);
    let entry = gate.audit.is_on().then(|| Entry {
        connection: request.extensions().get().cloned(),
        gate: Arc::clone(&gate),
        operation,
        errand,
        started,
        open: true,
    });
    let response = match refusal {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    };
    match entry {
        Some(entry) => entry.close(response).await,
        None => response,
    }
}

/// A line that is still to be written.
struct Entry {
    gate: Arc<Gate>,
    connection: Option<Connection>,
    operation: &'static str,
    errand: Errand,
    started: Monotonic,
    open: bool,
}

impl Entry {
    /// Writes what was answered, and gives the answer if it may go out.
    async fn close(mut self, response: Response) -> Response {
        let code = response.extensions().get::<Code>();
        let outcome = code.map_or(words::OK, |code| code.as_str());
        self.open = false;
        let written = self.gate.audit.write(&self.event(outcome, Some(response.status().as_u16()))).await;
        if written.is_ok() || operations::is_harmless(self.operation) {
            response
        } else {
            Problem::unaudited().into_response()
        }
    }

    fn event(&self, outcome: &'static str, status: Option<u16>) -> Event<'_> {
        Event {
            origin: self.connection.as_ref().and_then(Connection::origin).unwrap_or(&self.gate.origin),
            operation: self.operation,
            subject: &self.errand.0.subject,
            outcome,
            status,
            latency: self.gate.clock.monotonic().since(self.started),
            provider_called: self.errand.0.ticket.called(),
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.open {
            self.gate.audit.note(&self.event(words::ABANDONED, None));
        }
    }
}

/// What becomes known of a request while it is carried out.
#[derive(Debug, Clone)]
pub(super) struct Errand(Arc<Known>);

#[derive(Debug)]
struct Known {
    subject: Subject,
    ticket: Ticket,
}

impl Errand {
    fn new(spending: Option<Arc<Spending>>) -> Self {
        Self(Arc::new(Known { subject: Subject::default(), ticket: Ticket::paid_from(spending) }))
    }

    /// It is about this account.
    pub(super) fn about(&self, account: &Account) {
        self.0.subject.account(account);
    }

    /// It is about this thing.
    pub(super) fn about_named(&self, kind: Kind, name: &str) {
        self.0.subject.named(kind, name);
    }

    /// For the coordinator.
    pub(super) fn ticket(&self) -> &Ticket {
        &self.0.ticket
    }
}

impl FromRequestParts<AppState> for Errand {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Self::Rejection> {
        let passed = parts.extensions.get().cloned();
        Ok(passed.unwrap_or_else(|| Self::new(state.gate.spending.clone())))
    }
}
