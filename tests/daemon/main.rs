//! The real program: its daemon, its command line, and what it leaves on the disk.

#![cfg(test)]

mod api_keys;
mod audit;
mod cli;
mod dev_server;
mod dialects;
mod end_to_end;
mod import;
mod logins {
    mod browser;
    mod flows;
    mod sandboxes;
    mod terminal;
}
mod sandboxes;
mod store_commands;
#[expect(dead_code, reason = "each test binary uses its own part of the shared code")]
#[path = "../support/mod.rs"]
mod support;
