//! What the integration tests share. Not `support.rs`: cargo would take that for a test of its own.
#![expect(dead_code, reason = "each test binary uses its own part of the shared code")]

pub(crate) mod audit_log;
pub(crate) mod contract;
pub(crate) mod daemon;
pub(crate) mod front;
pub(crate) mod http;
pub(crate) mod issuer;
pub(crate) mod mounts;
pub(crate) mod oidc;
pub(crate) mod person;
pub(crate) mod piped;
pub(crate) mod server;
pub(crate) mod skip;
pub(crate) mod terminal;

/// Used by nobody, so that the expectation above holds in a test binary that uses all the rest.
const UNUSED: () = ();
