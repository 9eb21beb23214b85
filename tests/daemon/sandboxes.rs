//! Sandboxes of the real daemon: sockets made at run time, what becomes of them, and `credproxy exec`. Every exchange is
//! held against the OpenAPI document.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::support::{
    contract::Contract,
    http::{Connection, Response, Transcript, code},
    world::{JSON, World},
};

mod exec;
mod life;
mod locks;
mod namespaces;
mod paths;
mod tricks;

/// A living daemon does it within milliseconds; a busy machine takes its time.
const SOON: Duration = Duration::from_secs(20);

/// How often to look again at what nothing tells of.
const LOOK: Duration = Duration::from_millis(10);

/// A daemon, the providers `corp` and `other`, and a good token for an account of each.
impl World {
    async fn new() -> Self {
        let world = Self::start(|issuer| issuer.provider("corp") + &issuer.provider("other")).await;
        for account in ["corp", "corp?bucket=work", "other"] {
            world.log_in(account).await;
        }
        world
    }

    /// A request to the host's socket.
    async fn host(&self, method: &str, target: &str, body: &str) -> Response {
        ask(&self.daemon.socket(), method, target, None, body).await
    }

    /// Starts the daemon, and waits for the sandboxes of before: its sockets answer without them.
    async fn launch(&mut self) {
        self.daemon.launch().await;
        self.sandboxes().await;
    }

    /// Ends it in order and starts it again.
    async fn restart(&mut self) {
        self.daemon.restart().await;
        self.sandboxes().await;
    }

    /// Asks for a sandbox.
    async fn wanted(&self, wanted: &Value) -> Response {
        self.host("POST", "/v1/sandboxes", &wanted.to_string()).await
    }

    /// Makes a sandbox.
    async fn sandbox(&self, wanted: &Value) -> Sandbox {
        let made = self.wanted(wanted).await;
        assert_eq!(made.status, 201, "{}", made.text());
        let told = made.json();
        assert_eq!(made.header("location").unwrap(), format!("/v1/sandboxes/{}", text(&told["id"])));
        let capability = told["capability"].as_str().map(str::to_owned);
        if let Some(capability) = &capability {
            self.daemon.watch_secret(capability);
        }
        Sandbox { told, capability }
    }

    /// All that the host is told of.
    async fn sandboxes(&self) -> Vec<Value> {
        self.host("GET", "/v1/sandboxes", "").await.json()["sandboxes"].as_array().unwrap().clone()
    }

    /// Waits until there is no sandbox any more, and nothing of one.
    async fn all_gone(&self) {
        let gone = async {
            while !self.sandboxes().await.is_empty() {
                sleep(LOOK).await;
            }
        };
        timeout(SOON, gone).await.expect("the sandboxes stay");
        assert_eq!(self.directories(), Vec::<PathBuf>::new());
    }

    /// The directories of the sandboxes that are there.
    fn directories(&self) -> Vec<PathBuf> {
        let root = self.daemon.socket().with_file_name("sandboxes");
        std::fs::read_dir(root)
            .map_or_else(|_| Vec::new(), |entries| entries.map(|entry| entry.unwrap().path()).collect())
    }
}

/// A sandbox as its maker knows it.
struct Sandbox {
    told: Value,
    capability: Option<String>,
}

impl Sandbox {
    fn id(&self) -> &str {
        text(&self.told["id"])
    }

    fn path(&self) -> String {
        format!("/v1/sandboxes/{}", self.id())
    }

    fn directory(&self) -> &Path {
        Path::new(text(&self.told["directory"]))
    }

    fn socket(&self) -> PathBuf {
        self.directory().join("credproxy.sock")
    }

    /// A request to its socket, with its capability if it has one.
    async fn ask(&self, method: &str, target: &str, body: &str) -> Response {
        ask(&self.socket(), method, target, self.capability.as_deref(), body).await
    }

    async fn status(&self, method: &str, target: &str) -> u16 {
        self.ask(method, target, "").await.status
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// One request, on a connection of its own, held against the contract.
async fn ask(socket: &Path, method: &str, target: &str, capability: Option<&str>, body: &str) -> Response {
    let authorization = capability.map(|capability| format!("Bearer {capability}"));
    let mut headers: Vec<_> = (!body.is_empty()).then_some(JSON).into_iter().collect();
    headers.extend(authorization.as_deref().map(|value| ("authorization", value)));
    let mut connection = Connection::to_daemon(socket, Transcript::default()).await;
    let answer = connection.request(method, target, &headers, body.to_owned()).await;
    Contract::hold(method, target, &headers, body.as_bytes(), &answer);
    answer
}
