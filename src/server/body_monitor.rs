//! Tracks whether a request's body was read to its end.
//!
//! A request that is refused early leaves its body unread on the connection, which cannot be reused: the rest of one
//! request is not the start of the next. The response says so with `Connection: close` (RFC 9112 section 9.6);
//! otherwise the peer would lose the request that it sends next.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use axum::response::Response;
use http::{HeaderValue, Request, header};
use hyper::body::{Body, Frame, SizeHint};

/// A body that records that it was read to its end.
#[derive(Debug)]
pub(super) struct MonitoredBody<B> {
    body: B,
    /// `None` for requests without a body, which are the most common.
    whole: Option<Arc<AtomicBool>>,
}

/// The state of a request's body.
#[derive(Debug)]
pub(super) struct BodyStatus(Option<Arc<AtomicBool>>);

/// Wraps the request's body.
pub(super) fn monitor<B: Body>(request: Request<B>) -> (Request<MonitoredBody<B>>, BodyStatus) {
    let whole = (!request.body().is_end_stream()).then(Arc::default);
    let status = BodyStatus(whole.clone());
    (request.map(|body| MonitoredBody { body, whole }), status)
}

impl BodyStatus {
    /// Returns the response, with `Connection: close` if the body was not read to its end.
    pub(super) fn apply(&self, mut answer: Response) -> Response {
        if self.0.as_ref().is_some_and(|whole| !whole.load(Ordering::Acquire)) {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}

impl<B: Body + Unpin> Body for MonitoredBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(context);
        if let (Poll::Ready(None), Some(whole)) = (&polled, &this.whole) {
            whole.store(true, Ordering::Release);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
