//! `check`: whether the daemon would start, told without starting it. It makes and changes nothing.

use std::sync::Arc;

use super::{chain, client_secret, settings};
use crate::{
    clock::{Clock, SystemClock},
    config::{Config, Environment},
    provider::oauth2::OAuth2,
    server::{
        listener::{Listener, Occupant},
        peer::Peers,
    },
    store::{Store as _, key, sqlite::Sqlite},
};

/// One thing that was looked at.
#[derive(Debug)]
pub struct Finding {
    /// What.
    pub subject: String,
    /// How it stands, or what is wrong with it.
    pub result: Result<String, String>,
}

/// Looks at the store, the providers and the sockets. Asks nothing of any provider.
pub async fn check(config: &Config, environment: &Environment) -> Vec<Finding> {
    let mut findings = vec![Finding { subject: "store".to_owned(), result: store(config).await }];
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    for provider in &config.providers {
        let secret = client_secret(provider, environment).await;
        let no_secret = secret.as_ref().and_then(|secret| secret.as_ref().err()).map(|error| chain(error));
        let settings = settings(provider, secret, config.refresh.request_timeout);
        let result = match (OAuth2::new(settings, Arc::clone(&clock)), no_secret) {
            (Err(error), _) => Err(chain(&error)),
            (Ok(_), Some(reason)) => Err(reason),
            (Ok(_), None) => Ok("configured".to_owned()),
        };
        findings.push(Finding { subject: format!("provider {}", provider.name), result });
    }
    for socket in &config.sockets {
        let found = |what| format!("{}: {what}", socket.path.display());
        let result = match Listener::look(&socket.path, &Peers::of(&socket.uids)) {
            Ok(Occupant::Nobody) => Ok(found("no daemon is listening")),
            Ok(Occupant::Dead) => Ok(found("left behind by a daemon that is gone")),
            Ok(Occupant::Living) => Ok(found("a daemon is listening")),
            Err(error) => Err(chain(&error)),
        };
        findings.push(Finding { subject: format!("socket {}", socket.name), result });
    }
    findings
}

async fn store(config: &Config) -> Result<String, String> {
    let (path, key_file) = (&config.store.path, &config.store.key_file);
    if !Sqlite::exists(path) {
        return Ok(format!("{}: will be made at the first start", path.display()));
    }
    let key = key::from_file(key_file, true).map_err(|error| chain(&error))?;
    let store = Sqlite::open(path, key, &key_file.display().to_string()).await.map_err(|error| chain(&error))?;
    let entries = store.list().await.map_err(|error| chain(&error));
    let closed = store.close().await.map_err(|error| chain(&error));
    let entries = entries?;
    closed?;
    match entries.iter().find_map(|entry| entry.record.as_ref().err()) {
        Some(error) => Err(chain(error)),
        None => Ok(format!("{}: {} readable records", path.display(), entries.len())),
    }
}
