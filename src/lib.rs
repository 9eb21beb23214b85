//! ssh-agent for OAuth tokens and API keys.
//!
//! The daemon keeps refresh tokens to itself and hands out short-lived access tokens over Unix sockets. It is the one
//! owner of every refresh chain: however many callers ask, a refresh token is presented once, and its successor is
//! never lost.
//!
//! # Trust boundary
//! Inside: this process, its store and its key, the configuration. Outside: every peer of a socket, every byte a
//! provider sends, every file and environment variable until it was checked. Over a socket leave only sanitized views
//! ([`grant::SanitizedToken`]); a refresh token leaves towards its own provider alone.
//!
//! # Rooms
//! Imports run from the right to the left, never back; `tests/house.rs` holds the sources against that.
//! `secret, clock, timeouts, private, problem_code, socket_path <- account <- grant, item, registration, limits, audit <-
//! provider, store (the traits) <-
//! refresh, policy, keys <- login, sandbox <- provider::*, store::*, server, client, config, cli <- lifecycle <- main`
//!
//! `faults` is there only with the feature of that name, for `tests/faults`: places to stop the program at.

pub mod account;
pub mod audit;
pub mod cli;
pub mod client;
pub mod clock;
pub mod config;
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
pub mod registration;
pub mod sandbox;
pub mod secret;
pub mod server;
pub mod socket_path;
pub mod store;
pub mod telemetry;
pub mod timeouts;
