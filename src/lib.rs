//! ssh-agent for OAuth tokens and API keys.
//!
//! The daemon keeps refresh tokens to itself and hands out short-lived access tokens over Unix sockets. It is the one
//! owner of every refresh chain: however many callers ask, a refresh token is presented once, and its successor is
//! never lost.
//!
//! # Trust boundary
//! Inside: this process, its store and its key, the configuration. Outside: every peer of a socket, every byte a
//! provider sends, and every file and environment variable until it was checked. Only sanitized views leave over a
//! socket ([`grant::SanitizedToken`]); a refresh token leaves only to its own provider.
//!
//! # Modules
//! `docs/architecture.md` has the map of the modules, the rules of the coordinator, and the reasons of the larger
//! decisions. A module imports what ranks lower, which a test of the repository's rules enforces.
//!
//! # Embedding the API
//! [`server::router`] is the whole API as one socket offers it: an axum router, which a test drives without a socket.
//! Here a host stores a grant, and a sandbox that may read it gets the access token:
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//!
//! use axum_test::TestServer;
//! use credproxy::{
//!     clock::{Clock, SystemClock},
//!     keys::Keys,
//!     policy::{Allowed, Operation, Policy},
//!     provider::Providers,
//!     refresh::Coordinator,
//!     server::{AppState, router},
//!     store::memory::MemoryStore,
//! };
//! use serde_json::{Value, json};
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
//!     let store = Arc::new(MemoryStore::new()?);
//!     let keys = Keys::new(store.clone(), Arc::clone(&clock));
//!     // Without a provider nothing is refreshed; see `provider::oauth2` for the client of a real one.
//!     let coordinator = Coordinator::new(store, Providers::default(), clock, Duration::from_secs(30));
//!
//!     let allowed = Allowed { allow: vec!["corp".parse()?], operations: vec![Operation::Read], ..Allowed::default() };
//!     let server = |policy| TestServer::new(router(AppState::new(coordinator.clone(), keys.clone(), policy)));
//!     let (host, sandbox) = (server(Policy::host())?, server(Policy::sandbox(allowed))?);
//!
//!     let grant = json!({"access_token": "at-1", "refresh_token": "rt-1", "expires_in": 3600});
//!     host.put("/v1/tokens/corp").json(&grant).await.assert_status(http::StatusCode::CREATED);
//!
//!     let token: Value = sandbox.get("/v1/tokens/corp").await.json();
//!     assert_eq!(token["access_token"], "at-1");
//!     assert_eq!(token.get("refresh_token"), None);
//!     assert_eq!(sandbox.get("/v1/tokens/github").await.json::<Value>()["code"], "UNAUTHORIZED");
//!     Ok(())
//! }
//! ```
//!
//! [`client::Client`] asks a daemon over its socket.
//!
//! `faults` exists only with the feature of that name, for `tests/faults`: it stops the program at given places.

pub mod account;
pub mod audit;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
pub mod dialect;
mod error_chain;
#[cfg(feature = "faults")]
mod faults;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod grant;
pub mod item;
pub mod keys;
pub mod lifecycle;
pub mod limits;
pub mod login;
pub mod policy;
mod private;
pub mod problem_code;
pub mod provider;
pub mod refresh;
pub mod sandbox;
pub mod secret;
pub mod server;
pub mod socket_path;
pub mod store;
pub mod telemetry;
pub mod timeouts;
