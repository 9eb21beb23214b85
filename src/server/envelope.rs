//! What every answer has in common, whatever made it.
//!
//! Invariants:
//! 1. Every answer has `Cache-Control: no-store`.
//! 2. A handler that panics is answered for. What the panic said is not shown: nobody knows what was in it.
//!
//! One layer for both: a layer costs a request some allocations and moves, whatever it does.

use std::{
    any::Any,
    convert::Infallible,
    panic::AssertUnwindSafe,
    task::{Context, Poll},
};

use axum::{
    extract::Request,
    response::{IntoResponse as _, Response},
};
use futures_util::{
    FutureExt as _,
    future::{CatchUnwind, Map},
};
use http::{HeaderValue, header};
use tower::{Layer, Service};

use super::problem::{Code, Problem};

/// Puts every answer of a router into an envelope.
#[derive(Debug, Clone, Copy)]
pub(super) struct Envelope;

/// A service whose answers are in one.
#[derive(Debug, Clone)]
pub(super) struct Enveloped<S>(S);

impl<S> Layer<S> for Envelope {
    type Service = Enveloped<S>;

    fn layer(&self, inner: S) -> Enveloped<S> {
        Enveloped(inner)
    }
}

type Answered = Result<Response, Infallible>;
type Caught = Result<Answered, Box<dyn Any + Send>>;

impl<S: Service<Request, Response = Response, Error = Infallible>> Service<Request> for Enveloped<S> {
    type Response = Response;
    type Error = Infallible;
    type Future = Map<CatchUnwind<AssertUnwindSafe<S::Future>>, fn(Caught) -> Answered>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        AssertUnwindSafe(self.0.call(request)).catch_unwind().map(|caught| Ok(enclose(caught)))
    }
}

fn enclose(caught: Caught) -> Response {
    let Ok(mut response) = caught.unwrap_or_else(|_| {
        tracing::error!("a request handler panicked");
        Ok(Problem::new(Code::InternalError, "internal error").into_response())
    });
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_without_its_words() {
        let panics = tower::service_fn(async |_: Request| -> Answered { panic!("canary-in-a-panic") });
        let answer = Envelope.layer(panics).call(Request::default()).await.unwrap();
        assert_eq!(answer.status(), 500);
        assert_eq!(answer.headers()["cache-control"], "no-store");
        let body = axum::body::to_bytes(answer.into_body(), 1024).await.unwrap();
        assert!(body.starts_with(b"{") && !String::from_utf8_lossy(&body).contains("canary"), "{body:?}");
    }
}
