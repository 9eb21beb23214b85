//! What every answer has in common, whatever made it.
//!
//! Invariants:
//! 1. Every answer has `Cache-Control: no-store`.
//! 2. A handler that panics is answered for. What the panic said is not shown: nobody knows what was in it.

use std::{any::Any, convert::Infallible};

use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, header};

use super::problem::Problem;
use crate::problem_code::ProblemCode;

/// What came of a handler.
pub(super) type Caught = Result<Result<Response, Infallible>, Box<dyn Any + Send>>;

/// Puts an answer into its envelope.
pub(super) fn finalize(caught: Caught) -> Response {
    let Ok(mut response) = caught.unwrap_or_else(|_| {
        tracing::error!("a request handler panicked");
        Ok(Problem::new(ProblemCode::InternalError, "internal error").into_response())
    });
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
