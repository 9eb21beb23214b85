//! `check`: reports whether the daemon would start, without starting it. Changes nothing.

use std::sync::Arc;

use super::{LifecycleError, client, confine, confine::Extent, key::KeyLoader, overlap};
use crate::{
    audit,
    clock::{Clock, SystemClock},
    config::{Config, Confinement, Environment},
    error_chain::error_chain,
    private::check_trusted,
    server::{
        listener::{Listener, SocketState},
        peer::Peers,
    },
    store::{
        key::passphrase::Ask,
        sqlite::{Sqlite, upkeep},
    },
};

/// The result of one check.
#[derive(Debug)]
pub struct Finding {
    /// What was checked.
    pub subject: String,
    /// Its state, or what is wrong with it.
    pub result: Result<String, String>,
    /// The daemon starts, but a person should know.
    pub is_warning: bool,
}

impl Finding {
    const fn new(subject: String, result: Result<String, String>) -> Self {
        Self { subject, result, is_warning: false }
    }
}

/// Checks the store, the providers and the sockets. Sends nothing to any provider.
pub async fn check(config: &Config, environment: &Environment, ask: Ask<'_>) -> Vec<Finding> {
    let mut findings = vec![Finding::new("store".to_owned(), store(config, environment, ask).await)];
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    for provider in &config.providers {
        let (client, missing) = client(provider, environment, config.refresh.request_timeout, Arc::clone(&clock)).await;
        let preset = provider.preset.map(|name| format!(" (preset {name})")).unwrap_or_default();
        let result = match (client, missing) {
            (Err(error), _) => Err(error_chain(&error) + &preset),
            (Ok(_), Some(error)) => Err(error_chain(error.as_ref()) + &preset),
            (Ok(_), None) => Ok(format!("configured{preset}")),
        };
        findings.push(Finding::new(format!("provider {}", provider.name), result));
    }
    let log = audit::inspect(&config.audit).map_err(|error| error_chain(&error));
    findings.push(Finding::new("audit".to_owned(), log));
    let overlaps = overlap::overlaps(config, environment);
    for socket in &config.sockets {
        let found = |what| format!("{}: {what}", socket.path.display());
        let result = match Listener::inspect(&socket.path, &Peers::of(&socket.uids)) {
            Ok(SocketState::Absent) => Ok(found("no daemon is listening")),
            Ok(SocketState::Stale) => Ok(found("left behind by a daemon that is gone")),
            Ok(SocketState::Live) => Ok(found("a daemon is listening")),
            Err(error) => Err(error_chain(&error)),
        };
        let overlap = overlaps.iter().find(|overlap| overlap.socket == socket.name);
        let result = overlap.map_or(result, |overlap| Err(overlap.to_string()));
        findings.push(Finding::new(format!("socket {}", socket.name), result));
    }
    findings.extend(process(config.confine));
    findings
}

/// Checks how far the daemon's process would be protected and confined.
fn process(wanted: Confinement) -> Vec<Finding> {
    let subject = || "process".to_owned();
    let extent = if wanted == Confinement::Off { Extent::Off } else { confine::available() };
    let confined = if wanted == Confinement::Require && extent != Extent::Full {
        Finding::new(subject(), Err(LifecycleError::NotConfined(extent).to_string()))
    } else {
        let result = Ok(format!("a daemon would be confined {extent}"));
        Finding { subject: subject(), result, is_warning: extent.is_lacking() }
    };
    let traced =
        confine::tracer().map(|tracer| Finding::new(subject(), Err(LifecycleError::Traced(tracer).to_string())));
    traced.into_iter().chain([confined]).collect()
}

async fn store(config: &Config, environment: &Environment, ask: Ask<'_>) -> Result<String, String> {
    let path = &config.store.path;
    if let Some(directory) = path.parent().filter(|directory| directory.exists()) {
        check_trusted(directory).map_err(|error| error.to_string())?;
    }
    if !Sqlite::exists(path) {
        return Ok(format!("{}: will be made at the first start", path.display()));
    }
    let loader = KeyLoader { source: &config.store.key, store: path, copy: None, environment, ask };
    let found = loader.with_key(async |key, place: &str| upkeep::examine(path, key, place).await).await;
    let found = found.map_err(|error| error_chain(&error))?;
    match (found.unreadable().next(), found.is_sound()) {
        (Some(error), _) => Err(error_chain(error)),
        (None, false) => Err(format!("{}: damaged; see `credproxy store verify`", path.display())),
        (None, true) => Ok(format!("{}: {} readable records", path.display(), found.records.len())),
    }
}
