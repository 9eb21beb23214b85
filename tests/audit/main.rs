//! The audit log of the real program: what each request leaves in it, whatever happens to the disk.

#![cfg(test)]

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use support::{
    audit_log,
    daemon::{Daemon, Home},
    issuer::Issuer,
};

mod command;
mod disk;
mod lines;
#[path = "../support/mod.rs"]
mod support;

const TOKEN: &str = "/v1/tokens/corp";
const REFRESH: &str = "/v1/tokens/corp/refresh";
const JSON: (&str, &str) = ("content-type", "application/json");

/// For what takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(10);

/// A path that is no route: its line ends a series.
const MARKER: &str = "/marker";

const SANDBOX: &str = "[sockets.agents]\npath = \"{home}/run/agents/s\"\nrole = \"sandbox\"\n\
    allow = [\"corp\", \"corp/agent\"]\noperations = [\"read\", \"refresh\", \"login\"]\n";

/// A daemon, the provider `corp`, and one account with a good token.
struct World {
    issuer: Issuer,
    home: Arc<Home>,
    daemon: Daemon,
    log: PathBuf,
}

impl World {
    /// `more` is added to the configuration.
    async fn with(more: &str) -> Self {
        Self::at(Home::new(), more).await
    }

    async fn at(home: Arc<Home>, more: &str) -> Self {
        let issuer = Issuer::start().await;
        let config = format!(
            "[refresh]\ncooldown = \"0s\"\n\n[providers.corp]\ntoken_endpoint = \"{}\"\nrevocation_endpoint = \"{}\"\n\
             authorization_endpoint = \"{}\"\nclient_id = \"me\"\n\n{more}",
            issuer.token_endpoint(),
            issuer.revocation_endpoint(),
            issuer.authorization_endpoint(),
        );
        let daemon = Daemon::start(&home, "a", &config, &[]).await;
        let log = audit_log::place(&home);
        let world = Self { issuer, home, daemon, log };
        assert_eq!(world.put(TOKEN).await, 201);
        world
    }

    async fn put(&self, target: &str) -> u16 {
        self.daemon.request("PUT", target, &[JSON], self.grant().to_string()).await.status
    }

    fn grant(&self) -> Value {
        let (access, refresh) = self.issuer.new_grant();
        json!({"access_token": access, "refresh_token": refresh, "expires_in": 3600, "scope": "canary-scope"})
    }

    fn sandbox(&self) -> PathBuf {
        self.home.path().join("run/agents/s")
    }

    /// The lines up to one of a request that is made now.
    async fn lines(&self) -> Vec<Value> {
        let before = audit_log::lines(&self.log).iter().filter(|line| line["operation"] == "unknown").count();
        assert_eq!(self.daemon.request("GET", MARKER, &[], "").await.status, 404);
        let mut lines = Vec::new();
        let there = async {
            while lines.iter().filter(|line: &&Value| line["operation"] == "unknown").count() <= before {
                sleep(Duration::from_millis(5)).await;
                lines = audit_log::lines(&self.log);
            }
        };
        timeout(SOON, there).await.expect("the line is written");
        lines
    }

    /// The lines that `work` leaves.
    async fn lines_of(&self, work: impl Future) -> Vec<Value> {
        let before = self.lines().await.len();
        work.await;
        let mut lines = self.lines().await.split_off(before);
        assert_eq!(lines.pop().unwrap()["operation"], "unknown");
        lines
    }

    /// How the daemon is, and what is wrong with it.
    async fn health(&self) -> (u16, String) {
        let health = self.daemon.request("GET", "/v1/health", &[], "").await;
        (health.status, health.text())
    }

    async fn healthy(&self) {
        let healthy = async {
            while self.health().await.0 != 200 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let well = timeout(Duration::from_secs(2), healthy).await;
        assert!(well.is_ok(), "{:?}", self.health().await);
    }
}
