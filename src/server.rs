//! The HTTP side: routes, what they accept and what they answer.
//!
//! Owns: [`router`], its state, and the one form of every refusal. Its children own the sockets and the built-in
//! authorization server of `serve --dev`.
//!
//! Invariants:
//! 1. Every answer has `Cache-Control: no-store`; every refusal is a problem of the contract.
//! 2. Nothing leaves but sanitized views, statuses and problems.
//! 3. Policy is asked before the coordinator, so that a refusal touches nothing and tells nothing.
//!
//! Must not know: SQL, a provider's wire form, how a refresh is made. It is the only home of axum.

use std::{any::Any, sync::Arc};

use axum::{
    Router,
    extract::FromRef,
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{HeaderValue, StatusCode, header};
use tower_http::{catch_panic::CatchPanicLayer, set_header::SetResponseHeaderLayer};

use crate::{policy::Policy, refresh::Coordinator};

pub mod dev;
pub mod listener;
pub mod peer;
pub mod problem;
mod request;
mod routes;
mod stall;

use problem::{Code, Problem};
use routes::{document, health, providers, tokens};

/// What a router needs: the coordinator, and what this socket may do.
#[derive(Debug, Clone)]
pub struct AppState {
    coordinator: Coordinator,
    policy: Arc<Policy>,
}

impl AppState {
    /// The state for one socket.
    #[must_use]
    pub fn new(coordinator: Coordinator, policy: Policy) -> Self {
        Self { coordinator, policy: Arc::new(policy) }
    }
}

impl FromRef<AppState> for Coordinator {
    fn from_ref(state: &AppState) -> Self {
        state.coordinator.clone()
    }
}

impl FromRef<AppState> for Arc<Policy> {
    fn from_ref(state: &AppState) -> Self {
        Arc::clone(&state.policy)
    }
}

/// The paths of the API, for the comparison with the OpenAPI document.
pub const PATHS: [&str; 6] = [
    "/openapi.yaml",
    "/v1/health",
    "/v1/providers",
    "/v1/tokens",
    "/v1/tokens/{provider}",
    "/v1/tokens/{provider}/refresh",
];

/// The whole API, as one socket offers it.
pub fn router(state: AppState) -> Router {
    Router::new()
        .route("/openapi.yaml", get(document::openapi))
        .route("/v1/health", get(health::health))
        .route("/v1/providers", get(providers::list))
        .route("/v1/tokens", get(tokens::list))
        .route("/v1/tokens/{provider}", get(tokens::get).put(tokens::put).delete(tokens::delete))
        .route("/v1/tokens/{provider}/refresh", axum::routing::post(tokens::refresh))
        .fallback(async || Problem::new(Code::NotFound, "no such route; see /openapi.yaml"))
        .method_not_allowed_fallback(async || {
            Problem::invalid("this route has no such method; see the Allow header")
                .with_status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .layer(SetResponseHeaderLayer::overriding(header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .layer(CatchPanicLayer::custom(panicked))
        .with_state(state)
}

/// What a panic said is not shown: nobody knows what was in it.
fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    tracing::error!("a request handler panicked");
    Problem::new(Code::InternalError, "internal error").into_response()
}
