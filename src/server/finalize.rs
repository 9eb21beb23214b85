//! What all responses have in common.
//!
//! Invariants:
//! 1. Every response has `Cache-Control: no-store`.
//! 2. A panic in a handler is answered. Its message is not shown: it may contain anything.

use std::{any::Any, convert::Infallible};

use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, header};

use super::problem::Problem;
use crate::problem_code::ProblemCode;

/// The result of a handler.
pub(super) type Caught = Result<Result<Response, Infallible>, Box<dyn Any + Send>>;

/// Adds the common headers to a response.
pub(super) fn finalize(caught: Caught) -> Response {
    let Ok(mut response) = caught.unwrap_or_else(|_| {
        tracing::error!("a request handler panicked");
        Ok(Problem::new(ProblemCode::InternalError, "internal error").into_response())
    });
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
