//! The admission layer: decides whether a request may be carried out now, and writes its audit line.
//!
//! Invariants:
//! 1. Every request has exactly one line in the audit log, whatever becomes of it: an answer, a panic, a closed
//!    connection.
//! 2. A request that is refused here has changed nothing.
//! 3. A request over the rate limit is answered late (`limits.rs`), and until then nothing more is read from its
//!    connection.
//!
//! It is the only layer around the router, and does the work of `finalize.rs` as well. It is outside the router where
//! possible: a layer inside costs every request some allocations and moves.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::response::{IntoResponse as _, Response};
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, CatchUnwind},
};
use http::{HeaderMap, HeaderValue, Request, Version, header};
use tokio::time::{Sleep, sleep};
use tower::{Layer, Service};

use super::{
    capability::has_capability,
    connection::{Connection, RequestContext},
    finalize::finalize,
    operations,
    peer::Peer,
    problem::Problem,
};
use crate::{
    audit::{Audit, Event, Origin, Subject, Unwritten, labels},
    clock::{Clock, Monotonic},
    limits::{Delay, TooFast},
    problem_code::ProblemCode,
    refresh::CallerContext,
    secret::CapabilityHash,
};

/// The admission layer of one socket.
#[derive(Debug, Clone)]
pub(super) struct AdmissionLayer(Arc<AdmissionShared>);

#[derive(Debug)]
struct AdmissionShared {
    clock: Arc<dyn Clock>,
    audit: Audit,
    /// Counts requests without a connection.
    origin: Origin,
    /// The capability that every request must present.
    capability: Option<CapabilityHash>,
}

impl AdmissionLayer {
    pub(super) fn new(clock: Arc<dyn Clock>, audit: Audit, socket: &str, capability: Option<CapabilityHash>) -> Self {
        let origin = Origin::of_peer(socket, Peer::own().uid, None);
        Self(Arc::new(AdmissionShared { clock, audit, origin, capability }))
    }

    /// Refuses a request that does not present the socket's capability.
    fn check_capability(&self, headers: &HeaderMap) -> Option<Refusal> {
        let missing = self.0.capability.is_some_and(|capability| !has_capability(capability, headers));
        missing.then(|| Refusal { answer: Problem::wrong_capability().into_response(), delay: None })
    }
}

/// Checks that refuse a request before anything else of it is examined.
fn refusal<B>(request: &Request<B>, context: &RequestContext, now: Monotonic) -> Option<Refusal> {
    let connection = context.connection()?;
    if let Err(TooFast { retry_after, delay }) = connection.ask(now) {
        let mut answer = Problem::too_fast(retry_after).into_response();
        if delay.is_none() {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let delay = delay.map(|delay| ResponseDelay { until: Box::pin(sleep(delay.length())), _place: delay });
        return Some(Refusal { answer, delay });
    }
    // RFC 9112 section 3.2. The content of `Host` does not matter on a Unix socket.
    let is_bad = request.version() == Version::HTTP_11 && request.headers().get_all(header::HOST).iter().count() != 1;
    let problem = || Problem::invalid("a request of HTTP/1.1 has exactly one Host header");
    is_bad.then(|| Refusal { answer: problem().into_response(), delay: None })
}

/// A response without an operation.
struct Refusal {
    answer: Response,
    delay: Option<ResponseDelay>,
}

/// How long a response is delayed.
struct ResponseDelay {
    until: Pin<Box<Sleep>>,
    _place: Delay,
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = AdmissionService<S>;

    fn layer(&self, inner: S) -> AdmissionService<S> {
        AdmissionService { admission: self.clone(), inner }
    }
}

/// A service behind the admission layer.
#[derive(Debug, Clone)]
pub(super) struct AdmissionService<S> {
    admission: AdmissionLayer,
    inner: S,
}

impl<S, B> Service<Request<B>> for AdmissionService<S>
where
    S: Service<Request<B>, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Unpin + Send,
    B: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = AdmissionFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let AdmissionShared { clock, audit, .. } = &*self.admission.0;
        let audited = audit.is_on();
        let context = request.extensions().get().cloned().unwrap_or_else(|| {
            let context = if audited { RequestContext::in_process() } else { RequestContext::default() };
            request.extensions_mut().insert(context.clone());
            context
        });
        // The clock is not read where nobody needs the time.
        let timed = audited || context.connection().is_some_and(Connection::is_paced);
        let started = if timed { clock.monotonic() } else { Monotonic::new(Duration::ZERO) };
        let operation = if audited { operations::of(&request) } else { labels::UNKNOWN };
        let state =
            match refusal(&request, &context, started).or_else(|| self.admission.check_capability(request.headers())) {
                Some(refusal) => AdmissionState::Refused(Some(refusal)),
                None if audit.must_admit() && !operations::is_exempt_from_audit(operation) => {
                    let (audit, mut inner) = (audit.clone(), self.inner.clone());
                    AdmissionState::Admitting(Box::pin(async move {
                        if !audit.admits().await {
                            return Problem::audit_unwritable().into_response();
                        }
                        finalize(AssertUnwindSafe(inner.call(request)).catch_unwind().await)
                    }))
                }
                None => AdmissionState::Running(AssertUnwindSafe(self.inner.call(request)).catch_unwind()),
            };
        let entry = audited.then(|| AuditEntry { admission: self.admission.clone(), operation, context, started });
        AdmissionFuture { state, entry }
    }
}

/// A request in progress.
pub(super) struct AdmissionFuture<F> {
    state: AdmissionState<F>,
    entry: Option<AuditEntry>,
}

enum AdmissionState<F> {
    /// The response is taken out once its delay has passed.
    Refused(Option<Refusal>),
    /// Carried out once the audit log accepts lines.
    Admitting(BoxFuture<'static, Response>),
    Running(CatchUnwind<AssertUnwindSafe<F>>),
    /// Answered; the response waits for its audit line.
    Writing(BoxFuture<'static, Response>),
}

impl<F: Future<Output = Result<Response, Infallible>> + Unpin> Future for AdmissionFuture<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = match &mut self.state {
            AdmissionState::Running(running) => finalize(ready!(Pin::new(running).poll(context))),
            AdmissionState::Admitting(running) => ready!(running.as_mut().poll(context)),
            AdmissionState::Writing(writing) => return writing.as_mut().poll(context).map(Ok),
            AdmissionState::Refused(refusal) => {
                if let Some(delayed) = refusal.as_mut().and_then(|refusal| refusal.delay.as_mut()) {
                    ready!(delayed.until.as_mut().poll(context));
                }
                // It is not polled again.
                let Some(refusal) = refusal.take() else { return Poll::Pending };
                refusal.answer
            }
        };
        let Some(entry) = self.entry.take() else { return Poll::Ready(Ok(answer)) };
        match entry.close(answer) {
            Ok(answer) => Poll::Ready(Ok(answer)),
            Err(mut writing) => {
                let polled = writing.as_mut().poll(context).map(Ok);
                self.state = AdmissionState::Writing(writing);
                polled
            }
        }
    }
}

/// The request ended before there was a response.
impl<F> Drop for AdmissionFuture<F> {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.admission.0.audit.note(&entry.event(labels::ABANDONED, None, &Subject::default()));
        }
    }
}

/// A line that is yet to be written.
struct AuditEntry {
    admission: AdmissionLayer,
    operation: &'static str,
    context: RequestContext,
    started: Monotonic,
}

impl AuditEntry {
    /// Writes the line; returns the response, or what it has to wait for.
    fn close(self, answer: Response) -> Result<Response, BoxFuture<'static, Response>> {
        let code = answer.extensions().get::<ProblemCode>();
        let nothing = Subject::default();
        let outcome = code.map_or(labels::OK, |code| code.as_str());
        let event = self.event(outcome, Some(answer.status().as_u16()), &nothing);
        if operations::is_exempt_from_audit(self.operation) {
            self.admission.0.audit.note(&event);
            return Ok(answer);
        }
        let Some(pending) = self.admission.0.audit.write(&event) else { return Ok(answer) };
        Err(Box::pin(async move {
            match pending.wait().await {
                Ok(()) => answer,
                Err(Unwritten) => Problem::audit_unwritable().into_response(),
            }
        }))
    }

    fn event<'a>(&'a self, outcome: &'static str, status: Option<u16>, nothing: &'a Subject) -> Event<'a> {
        let connection = self.context.connection();
        let provider_called = self.context.caller().is_some_and(CallerContext::provider_called);
        Event {
            origin: connection.and_then(|connection| connection.origin.as_ref()).unwrap_or(&self.admission.0.origin),
            operation: self.operation,
            subject: self.context.subject().unwrap_or(nothing),
            outcome,
            status,
            latency: self.admission.0.clock.monotonic().since(self.started),
            provider_called,
            own_line: outcome == labels::OK && operations::is_change(self.operation, provider_called),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::Request;

    use super::*;
    use crate::{
        audit::{AuditSettings, Destination, OnFailure, Rotation},
        clock::SystemClock,
    };

    #[tokio::test]
    async fn a_request_that_is_dropped_leaves_a_line() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("log/audit.log");
        let to = Destination::File(Rotation { path: path.clone(), max_size: 1000, keep: 1 });
        let settings = AuditSettings { to, on_failure: OnFailure::Open };
        let audit = Audit::start(&settings, Arc::new(SystemClock::new())).unwrap();
        let hangs = tower::service_fn(|_: Request| std::future::pending::<Result<Response, Infallible>>());
        let admission = AdmissionLayer::new(Arc::new(SystemClock::new()), audit.clone(), "s", None);
        let mut passing = admission.layer(hangs).call(Request::default());
        assert!(futures_util::poll!(&mut passing).is_pending());
        drop(passing);
        audit.close().await;
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains("\"operation\":\"unknown\",\"outcome\":\"abandoned\",\"latency_us\""), "{text}");
    }

    #[tokio::test]
    async fn a_panic_is_answered_without_its_words() {
        let panics = tower::service_fn(|_: Request| -> BoxFuture<'static, Result<Response, Infallible>> {
            Box::pin(async { panic!("canary-in-a-panic") })
        });
        let admission = AdmissionLayer::new(Arc::new(SystemClock::new()), Audit::default(), "s", None);
        let answer = admission.layer(panics).call(Request::default()).await.unwrap();
        assert_eq!(answer.status(), 500);
        assert_eq!(answer.headers()["cache-control"], "no-store");
        let body = axum::body::to_bytes(answer.into_body(), 1024).await.unwrap();
        assert!(body.starts_with(b"{") && !String::from_utf8_lossy(&body).contains("canary"), "{body:?}");
    }
}
