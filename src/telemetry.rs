//! Logs: structured lines on standard error.
//!
//! Invariant: no secret, body, header or query is ever logged, at any level. The libraries below log what passes
//! through them once asked to, so their events are cut off above `info`.

use std::io::IsTerminal as _;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// Sends events to standard error; `filter` as in `CREDPROXY_LOG`: `info`, `credproxy=trace`, and the like. A second
/// call does nothing.
pub fn start(filter: &str) {
    let ours = Targets::new().with_target(env!("CARGO_PKG_NAME"), LevelFilter::TRACE).with_default(LevelFilter::INFO);
    let wanted = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).parse_lossy(filter);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter(wanted)
        .with_filter(ours);
    if tracing_subscriber::registry().with(lines).try_init().is_err() {
        tracing::debug!("logs are on their way already");
    }
}
