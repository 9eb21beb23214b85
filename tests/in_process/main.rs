//! The library in the process of the test: the router, the coordinator, the provider client and the stores, each
//! through its public interface.

#![cfg(test)]

mod api;
mod coordinator;
mod presets;
mod provider_wire;
mod sandboxes;
mod store {
    mod conformance;
    mod model;
}
#[expect(dead_code, reason = "each test binary uses its own part of the shared code")]
#[path = "../support/mod.rs"]
mod support;
