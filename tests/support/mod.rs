//! What the integration tests share. Not `support.rs`: cargo would take that for a test of its own.

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
pub(crate) mod store;
pub(crate) mod terminal;
pub(crate) mod world;
