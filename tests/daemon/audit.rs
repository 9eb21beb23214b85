//! The audit log of the real program: what each request leaves in it, whatever happens to the disk.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::support::{
    audit_log,
    daemon::{Daemon, Home},
    http::{Connection, Response},
    issuer::Issuer,
    world::JSON,
};

mod command;
mod disk;
mod flood;
mod hang;
mod lines;

const TOKEN: &str = "/v1/tokens/corp";
const REFRESH: &str = "/v1/tokens/corp/refresh";

/// For what takes milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(10);

/// An account that no test asks for: what is told of it ends a series.
const MARKER: &str = "/v1/tokens/marker";

const SANDBOX: &str = "[sockets.agents]\npath = \"{home}/run/agents/s\"\nrole = \"sandbox\"\n\
    allow = [\"corp\", \"corp/agent\"]\noperations = [\"read\", \"refresh\", \"login\"]\n";

fn is_mark(line: &Value) -> bool {
    line["account"] == "marker/default"
}

async fn put_key(connection: &mut Connection, name: &str) -> Response {
    connection.request("PUT", &format!("/v1/api-keys/{name}"), &[JSON], "{\"api_key\": \"canary-api-key\"}").await
}

/// The numbers that such lines are about.
fn numbers(lines: &[Value]) -> Vec<usize> {
    let keys = lines.iter().filter_map(|line| line["key"].as_str()?.strip_prefix('n'));
    keys.filter_map(|number| number.parse().ok()).collect()
}

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
            "[refresh]\ncooldown = \"0s\"\n\n{}revocation_endpoint = {:?}\n\n{more}",
            issuer.provider("corp"),
            issuer.revocation_endpoint(),
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

    /// Puts keys of these numbers: changes, each of which has a line of its own.
    async fn put_keys(&self, numbers: std::ops::Range<usize>) {
        let mut connection = self.daemon.connect().await;
        for number in numbers {
            let answer = put_key(&mut connection, &format!("n{number}")).await;
            assert_eq!(answer.status, 201, "{}", answer.text());
        }
    }

    fn grant(&self) -> Value {
        let mut grant = self.issuer.grant();
        grant["scope"] = json!("canary-scope");
        grant
    }

    fn sandbox(&self) -> PathBuf {
        self.home.path().join("run/agents/s")
    }

    /// What is told of up to a request that is made now: a line that counts several events is there as often.
    async fn lines(&self) -> Vec<Value> {
        let marks = |lines: &[Value]| lines.iter().filter(|line| is_mark(line)).count();
        let before = marks(&self.events());
        // The first may have a line of its own. The last is counted, and written after all that was counted before it.
        for _ in 0..2 {
            assert_eq!(self.daemon.request("GET", MARKER, &[], "").await.status, 404);
        }
        let mut lines = Vec::new();
        let there = async {
            while marks(&lines) < before + 2 {
                sleep(Duration::from_millis(5)).await;
                lines = self.events();
            }
        };
        timeout(SOON, there).await.expect("the line is written");
        lines
    }

    fn events(&self) -> Vec<Value> {
        audit_log::events(audit_log::lines(&self.log))
    }

    /// What is told of `work`.
    async fn lines_of(&self, work: impl Future) -> Vec<Value> {
        let before = self.lines().await.len();
        work.await;
        let mut lines = self.lines().await.split_off(before);
        lines.retain(|line| !is_mark(line));
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
