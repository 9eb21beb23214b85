//! Rules about the repository: the sources, the OpenAPI document and the pages of `docs` say what the program does.

#![cfg(test)]

mod architecture;
mod dependencies;
mod openapi;
mod readme;
#[expect(dead_code, reason = "each test binary uses its own part of the shared code")]
#[path = "../support/mod.rs"]
mod support;
mod threat_model;
