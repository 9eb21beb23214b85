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

use axum::{Router, extract::FromRef};
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

pub use operations::{OPERATIONS, Operation};

use admission::{AdmissionLayer, AdmissionService};
use problem::Problem;

/// The services that one socket offers, and what its peers may do.
#[derive(Debug, Clone)]
pub struct SocketServices {
    /// The grants.
    pub coordinator: Coordinator,
    /// The API keys.
    pub keys: Keys,
    /// The logins under way. Sockets may share them; whoever made them shuts them down.
    pub logins: Logins,
    /// The sandboxes; `None` if none can be created.
    pub sandboxes: Option<Sandboxes>,
    /// The audit log, in which every request has a line.
    pub audit: Audit,
    /// The socket's name, for the audit log and as the owner of logins.
    pub socket: Arc<str>,
    /// What its peers may see and do.
    pub policy: Policy,
    /// The capability that its peers must present with every request, if any.
    pub capability: Option<CapabilityHash>,
}

/// The state of a router. It is cloned several times per request, so it is a single pointer.
#[derive(Debug, Clone)]
pub struct AppState(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    services: SocketServices,
    policy: Arc<Policy>,
    admission: AdmissionLayer,
}

/// For a router that shares its logins with no other.
const LOGIN_LIFETIME: Duration = Duration::from_mins(10);

impl AppState {
    /// The state for a router of its own: without an audit log, sandboxes or a capability.
    #[must_use]
    pub fn new(coordinator: Coordinator, keys: Keys, policy: Policy) -> Self {
        let logins = Logins::new(coordinator.clone(), LOGIN_LIFETIME);
        Self::from(SocketServices {
            coordinator,
            keys,
            logins,
            sandboxes: None,
            audit: Audit::default(),
            socket: Arc::from(""),
            policy,
            capability: None,
        })
    }
}

impl From<SocketServices> for AppState {
    fn from(services: SocketServices) -> Self {
        let clock = Arc::clone(services.coordinator.clock());
        let admission = AdmissionLayer::new(clock, services.audit.clone(), &services.socket, services.capability);
        let policy = Arc::new(services.policy.clone());
        Self(Arc::new(Shared { services, policy, admission }))
    }
}

impl FromRef<AppState> for Audit {
    fn from_ref(AppState(state): &AppState) -> Self {
        state.services.audit.clone()
    }
}

impl FromRef<AppState> for Coordinator {
    fn from_ref(AppState(state): &AppState) -> Self {
        state.services.coordinator.clone()
    }
}

impl FromRef<AppState> for Keys {
    fn from_ref(AppState(state): &AppState) -> Self {
        state.services.keys.clone()
    }
}

impl FromRef<AppState> for Logins {
    fn from_ref(AppState(state): &AppState) -> Self {
        state.services.logins.clone()
    }
}

impl FromRef<AppState> for Arc<Policy> {
    fn from_ref(AppState(state): &AppState) -> Self {
        Arc::clone(&state.policy)
    }
}

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
    OPERATIONS
        .iter()
        .fold(Router::new(), |router, operation| router.route(operation.path, operation.route()))
        .fallback(async || Problem::new(ProblemCode::NotFound, "no such route; see /openapi.yaml"))
        .method_not_allowed_fallback(async || {
            Problem::invalid("this route has no such method; see the Allow header")
                .with_status(StatusCode::METHOD_NOT_ALLOWED)
        })
        .with_state(state)
}
