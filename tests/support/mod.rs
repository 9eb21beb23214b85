//! What the black-box tests share. Not `support.rs`: cargo would take that for a test of its own.

pub(crate) mod daemon;
pub(crate) mod http;
pub(crate) mod oidc;
