//! The HTTP side: routes, what they accept and what they answer.
//!
//! Owns: [`router`] and [`Api`], their state, and the one form of every refusal. Its children own the sockets and the
//! built-in authorization server of `serve --dev`.
//!
//! Invariants:
//! 1. Every answer has `Cache-Control: no-store` (`envelope.rs`); every refusal is a problem of the contract.
//! 2. Nothing leaves but sanitized views, statuses and problems.
//! 3. Policy is asked before the coordinator, so that a refusal touches nothing and tells nothing.
//! 4. Every request passes the admission first (`admission.rs`): limits, and one line in the audit log.
//!
//! Must not know: SQL, a provider's wire form, how a refresh is made. It is the only home of axum.

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
mod capability;
mod connection;
mod connection_limiter;
pub mod dev;
mod envelope;
mod hang_up;
mod head_timer;
pub mod listener;
mod operations;
pub mod peer;
pub mod problem;
mod request;
mod routes;
mod stall;
mod unread;

pub use operations::OPERATIONS;

use admission::{AdmissionLayer, AdmissionService};
use problem::Problem;
use routes::{document, health, keys, logins, providers, sandboxes, tokens};

/// What a router needs. It is cloned several times per request, so it is one pointer.
#[derive(Debug, Clone)]
pub struct AppState(Arc<Parts>);

/// The coordinator, the API keys, the logins under way, this socket's name and what it may do.
#[derive(Debug, Clone)]
struct Parts {
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
    /// The state for one socket, with logins of its own and without an audit log.
    #[must_use]
    pub fn new(coordinator: Coordinator, keys: Keys, policy: Policy) -> Self {
        let logins = Logins::new(coordinator.clone(), LOGIN_LIFETIME);
        let admission = AdmissionLayer::new(Arc::clone(coordinator.clock()), Audit::default(), "");
        let (sandboxes, socket, policy) = (None, Arc::from(""), Arc::new(policy));
        Self(Arc::new(Parts { coordinator, keys, logins, sandboxes, socket, policy, admission }))
    }

    /// The same for the socket of that name, beside others. Whoever made the logins ends them.
    #[must_use]
    pub fn beside_others(self, logins: Logins, socket: &str) -> Self {
        self.with(|parts| (parts.logins, parts.socket) = (logins, Arc::from(socket)))
    }

    /// The same with the sandboxes that a keeper keeps; without them there are none to ask for.
    #[must_use]
    pub fn with_sandboxes(self, sandboxes: Option<Sandboxes>) -> Self {
        self.with(|parts| parts.sandboxes = sandboxes)
    }

    /// The same for peers that show a capability with every request.
    #[must_use]
    pub fn guarded_by(self, capability: Option<CapabilityHash>) -> Self {
        self.with(|parts| parts.admission = parts.admission.guarded_by(capability))
    }

    /// The same with a line in `audit` for every request. The socket has its name before.
    #[must_use]
    pub fn audited(self, audit: Audit) -> Self {
        self.with(|parts| {
            let admission = AdmissionLayer::new(Arc::clone(parts.coordinator.clock()), audit, &parts.socket);
            parts.admission = admission.guarded_by(parts.admission.capability());
        })
    }

    fn with(self, change: impl FnOnce(&mut Parts)) -> Self {
        let mut parts = Arc::unwrap_or_clone(self.0);
        change(&mut parts);
        Self(Arc::new(parts))
    }
}

impl FromRef<AppState> for Audit {
    fn from_ref(AppState(parts): &AppState) -> Self {
        parts.admission.audit().clone()
    }
}

impl FromRef<AppState> for Coordinator {
    fn from_ref(AppState(parts): &AppState) -> Self {
        parts.coordinator.clone()
    }
}

impl FromRef<AppState> for Keys {
    fn from_ref(AppState(parts): &AppState) -> Self {
        parts.keys.clone()
    }
}

impl FromRef<AppState> for Logins {
    fn from_ref(AppState(parts): &AppState) -> Self {
        parts.logins.clone()
    }
}

impl FromRef<AppState> for Arc<Policy> {
    fn from_ref(AppState(parts): &AppState) -> Self {
        Arc::clone(&parts.policy)
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

/// The whole API, as one socket offers it, to be driven in process.
pub fn router(state: AppState) -> Router {
    let admission = state.0.admission.clone();
    routes(state).layer(admission)
}

/// The same for a listener.
#[derive(Debug, Clone)]
pub struct Api(AdmissionService<Router>);

impl Api {
    /// What a socket in that state offers.
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
