//! The HTTP API: routes, request parsing and responses.
//!
//! Owns: [`router`] and [`Api`], their state, and the single format of refusals. Its children own the sockets and the
//! built-in authorization server of `serve --dev`.
//!
//! Invariants:
//! 1. Every response has `Cache-Control: no-store` (`finalize.rs`); every refusal is a problem of the contract.
//! 2. Responses contain only sanitized views, statuses and problems.
//! 3. The policy is checked before the coordinator is called, so that a refusal changes nothing and discloses nothing.
//! 4. Every request first passes the admission layer (`admission.rs`): rate limits, and one line in the audit log.
//!
//! Must not know: SQL, a provider's wire format, how a refresh is made. Only this module uses axum.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::FromRef,
    routing::{get, post},
};
use http::StatusCode;
use tower::Layer as _;

use crate::{
    audit::Audit, keys::Keys, login::Logins, policy::Policy, problem_code::ProblemCode, refresh::Coordinator,
    sandbox::Sandboxes, secret::CapabilityHash,
};

mod admission;
mod body_monitor;
mod capability;
mod connection;
mod connection_limiter;
pub mod dev;
mod finalize;
mod head_timer;
pub mod listener;
mod operations;
pub mod peer;
pub mod problem;
mod request;
mod routes;
mod shared_stream;
mod write_timeout;

pub use operations::OPERATIONS;

use admission::{AdmissionLayer, AdmissionService};
use problem::Problem;
use routes::{document, health, keys, logins, providers, sandboxes, tokens};

/// The state of a router. It is cloned several times per request, so it is a single pointer.
#[derive(Debug, Clone)]
pub struct AppState(Arc<AppStateInner>);

/// The state of one socket: the coordinator, the API keys, the pending logins, the socket's name and policy.
#[derive(Debug, Clone)]
struct AppStateInner {
    coordinator: Coordinator,
    keys: Keys,
    logins: Logins,
    sandboxes: Option<Sandboxes>,
    socket: Arc<str>,
    policy: Arc<Policy>,
    admission: AdmissionLayer,
}

/// For a router that shares its logins with no other.
const LOGIN_LIFETIME: Duration = Duration::from_mins(10);

impl AppState {
    /// The state of one socket, with its own logins and without an audit log.
    #[must_use]
    pub fn new(coordinator: Coordinator, keys: Keys, policy: Policy) -> Self {
        let logins = Logins::new(coordinator.clone(), LOGIN_LIFETIME);
        let admission = AdmissionLayer::new(Arc::clone(coordinator.clock()), Audit::default(), "");
        let (sandboxes, socket, policy) = (None, Arc::from(""), Arc::new(policy));
        Self(Arc::new(AppStateInner { coordinator, keys, logins, sandboxes, socket, policy, admission }))
    }

    /// The state of the socket of that name, which shares `logins` with others. The owner of the logins shuts them
    /// down.
    #[must_use]
    pub fn beside_others(self, logins: Logins, socket: &str) -> Self {
        self.with(|inner| (inner.logins, inner.socket) = (logins, Arc::from(socket)))
    }

    /// Adds the sandboxes; without them the sandbox routes find none.
    #[must_use]
    pub fn with_sandboxes(self, sandboxes: Option<Sandboxes>) -> Self {
        self.with(|inner| inner.sandboxes = sandboxes)
    }

    /// Requires peers to present a capability with every request.
    #[must_use]
    pub fn guarded_by(self, capability: Option<CapabilityHash>) -> Self {
        self.with(|inner| inner.admission = inner.admission.guarded_by(capability))
    }

    /// Records every request in `audit`. The socket's name must have been set before.
    #[must_use]
    pub fn audited(self, audit: Audit) -> Self {
        self.with(|inner| {
            let admission = AdmissionLayer::new(Arc::clone(inner.coordinator.clock()), audit, &inner.socket);
            inner.admission = admission.guarded_by(inner.admission.capability());
        })
    }

    fn with(self, change: impl FnOnce(&mut AppStateInner)) -> Self {
        let mut inner = Arc::unwrap_or_clone(self.0);
        change(&mut inner);
        Self(Arc::new(inner))
    }
}

impl FromRef<AppState> for Audit {
    fn from_ref(AppState(inner): &AppState) -> Self {
        inner.admission.audit().clone()
    }
}

impl FromRef<AppState> for Coordinator {
    fn from_ref(AppState(inner): &AppState) -> Self {
        inner.coordinator.clone()
    }
}

impl FromRef<AppState> for Keys {
    fn from_ref(AppState(inner): &AppState) -> Self {
        inner.keys.clone()
    }
}

impl FromRef<AppState> for Logins {
    fn from_ref(AppState(inner): &AppState) -> Self {
        inner.logins.clone()
    }
}

impl FromRef<AppState> for Arc<Policy> {
    fn from_ref(AppState(inner): &AppState) -> Self {
        Arc::clone(&inner.policy)
    }
}

/// The paths of the API, for the comparison with the OpenAPI document.
pub const PATHS: [&str; 14] = [
    "/openapi.yaml",
    "/v1/api-keys",
    "/v1/api-keys/{name}",
    "/v1/health",
    "/v1/logins",
    "/v1/logins/{id}",
    "/v1/logins/{id}/code",
    "/v1/providers",
    "/v1/sandboxes",
    "/v1/sandboxes/{id}",
    "/v1/tokens",
    "/v1/tokens/{provider}",
    "/v1/tokens/{provider}/refresh",
    "/v1/tokens/{provider}/rename",
];

/// The whole API of one socket, for use in process.
pub fn router(state: AppState) -> Router {
    let admission = state.0.admission.clone();
    routes(state).layer(admission)
}

/// The API of one socket, for a listener.
#[derive(Debug, Clone)]
pub struct Api(AdmissionService<Router>);

impl Api {
    /// The API that a socket with this state offers.
    #[must_use]
    pub fn new(state: AppState) -> Self {
        let admission = state.0.admission.clone();
        Self::behind(&admission, routes(state))
    }

    fn behind(admission: &AdmissionLayer, routes: Router) -> Self {
        Self(admission.layer(routes))
    }
}

fn routes(state: AppState) -> Router {
    Router::new()
        .route("/openapi.yaml", get(document::openapi))
        .route("/v1/api-keys", get(keys::list))
        .route("/v1/api-keys/{name}", get(keys::get).put(keys::put).delete(keys::delete))
        .route("/v1/health", get(health::health))
        .route("/v1/logins", post(logins::start))
        .route("/v1/logins/{id}", get(logins::get).delete(logins::cancel))
        .route("/v1/logins/{id}/code", post(logins::paste))
        .route("/v1/providers", get(providers::list))
        .route("/v1/sandboxes", get(sandboxes::list).post(sandboxes::create))
        .route("/v1/sandboxes/{id}", get(sandboxes::get).delete(sandboxes::delete))
        .route("/v1/tokens", get(tokens::list))
        .route("/v1/tokens/{provider}", get(tokens::get).put(tokens::put).delete(tokens::delete))
        .route("/v1/tokens/{provider}/refresh", post(tokens::refresh))
        .route("/v1/tokens/{provider}/rename", post(tokens::rename))
        .fallback(async || Problem::new(ProblemCode::NotFound, "no such route; see /openapi.yaml"))
        .method_not_allowed_fallback(async || {
            Problem::invalid("this route has no such method; see the Allow header")
                .with_status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .with_state(state)
}
