//! The real daemon under attack: by its peers, its sandboxes, its provider, its files, its environment and its signals;
//! and its limits, reached.

#![cfg(test)]

mod confinement;
mod files;
mod limits;
mod process;
mod provider;
mod sandbox_boundary;
mod socket;
#[expect(dead_code, reason = "each test binary uses its own part of the shared code")]
#[path = "../support/mod.rs"]
mod support;
mod trust;
mod world;
