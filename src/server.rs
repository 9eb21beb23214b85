//! The HTTP side: routes, what they accept and what they answer.
//!
//! Owns: [`router`], its state, and the one form of every refusal. Its children own the sockets and the built-in
//! authorization server of `serve --dev`.
//!
//! Invariants:
//! 1. Every answer has `Cache-Control: no-store`; every refusal is a problem of the contract.
//! 2. Nothing leaves but sanitized views, statuses and problems.
//! 3. Policy is asked before the coordinator, so that a refusal touches nothing and tells nothing.
//! 4. Every request passes the gate first: limits, and one line in the audit log.
//!
//! Must not know: SQL, a provider's wire form, how a refresh is made. It is the only home of axum.

use std::{any::Any, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::FromRef,
    middleware,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use http::{HeaderValue, StatusCode, header};
use tower_http::{catch_panic::CatchPanicLayer, set_header::SetResponseHeaderLayer};

use crate::{audit::Audit, limits::Rate, login::Logins, policy::Policy, refresh::Coordinator};

mod connection;
pub mod dev;
mod gate;
pub mod listener;
mod operations;
pub mod peer;
pub mod problem;
mod request;
mod routes;
mod seats;
mod stall;

pub use operations::OPERATIONS;

use gate::Gate;
use problem::{Code, Problem};
use routes::{document, health, logins, providers, tokens};

/// What a router needs: the coordinator, the logins under way, this socket's name and what it may do.
#[derive(Debug, Clone)]
pub struct AppState {
    coordinator: Coordinator,
    logins: Logins,
    socket: Arc<str>,
    policy: Arc<Policy>,
    gate: Arc<Gate>,
}

/// For a router that shares its logins with no other.
const LOGIN_LIFETIME: Duration = Duration::from_mins(10);

impl AppState {
    /// The state for one socket, with logins of its own, without an audit log, and without limits.
    #[must_use]
    pub fn new(coordinator: Coordinator, policy: Policy) -> Self {
        let logins = Logins::new(coordinator.clone(), LOGIN_LIFETIME);
        let gate = Gate::new(Arc::clone(coordinator.clock()), Audit::default(), "", None);
        Self { coordinator, logins, socket: Arc::from(""), policy: Arc::new(policy), gate: Arc::new(gate) }
    }

    /// The same for the socket of that name, beside others. Whoever made the logins ends them.
    #[must_use]
    pub fn beside_others(self, logins: Logins, socket: &str) -> Self {
        Self { logins, socket: Arc::from(socket), ..self }
    }

    /// The same, every request written down in `audit`, and so many refreshes of each account at its peers' wish. To be
    /// called once the socket has its name.
    #[must_use]
    pub fn watched(self, audit: Audit, forced_refreshes: Option<Rate>) -> Self {
        let gate = Gate::new(Arc::clone(self.coordinator.clock()), audit, &self.socket, forced_refreshes);
        Self { gate: Arc::new(gate), ..self }
    }
}

impl FromRef<AppState> for Audit {
    fn from_ref(state: &AppState) -> Self {
        state.gate.audit().clone()
    }
}

impl FromRef<AppState> for Coordinator {
    fn from_ref(state: &AppState) -> Self {
        state.coordinator.clone()
    }
}

impl FromRef<AppState> for Logins {
    fn from_ref(state: &AppState) -> Self {
        state.logins.clone()
    }
}

impl FromRef<AppState> for Arc<Policy> {
    fn from_ref(state: &AppState) -> Self {
        Arc::clone(&state.policy)
    }
}

/// The paths of the API, for the comparison with the OpenAPI document.
pub const PATHS: [&str; 9] = [
    "/openapi.yaml",
    "/v1/health",
    "/v1/logins",
    "/v1/logins/{id}",
    "/v1/logins/{id}/code",
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
        .route("/v1/logins", post(logins::start))
        .route("/v1/logins/{id}", get(logins::get).delete(logins::cancel))
        .route("/v1/logins/{id}/code", post(logins::paste))
        .route("/v1/providers", get(providers::list))
        .route("/v1/tokens", get(tokens::list))
        .route("/v1/tokens/{provider}", get(tokens::get).put(tokens::put).delete(tokens::delete))
        .route("/v1/tokens/{provider}/refresh", post(tokens::refresh))
        .fallback(async || Problem::new(Code::NotFound, "no such route; see /openapi.yaml"))
        .method_not_allowed_fallback(async || {
            Problem::invalid("this route has no such method; see the Allow header")
                .with_status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .layer(SetResponseHeaderLayer::overriding(header::CACHE_CONTROL, HeaderValue::from_static("no-store")))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(Arc::clone(&state.gate), gate::pass))
        .with_state(state)
}

/// What a panic said is not shown: nobody knows what was in it.
fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    tracing::error!("a request handler panicked");
    Problem::new(Code::InternalError, "internal error").into_response()
}
