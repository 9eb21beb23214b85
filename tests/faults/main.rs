//! Nothing is lost, proved by faults: real daemons against a server whose refresh tokens are good for one use, killed,
//! stopped, starved of disk and time at every step of a refresh.
//!
//! Each test drives one kind of fault and ends with a line of the table that `scripts/test` prints. The judge is in
//! `checker.rs`; `scripts/mutants` shows that it can say no. `CREDPROXY_FAULTS_LONG` makes ten times the rounds.

#![cfg(test)]

mod checker;
mod clock;
mod kills;
mod known_tokens;
mod midflight;
mod pair;
mod provider;
mod stalls;
mod store;
#[expect(dead_code, reason = "each test binary uses its own part of the shared code")]
#[path = "../support/mod.rs"]
mod support;
mod world;
