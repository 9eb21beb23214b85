//! A sandbox's socket is a boundary: the real daemon is asked from inside for everything that is outside. What is on a
//! socket's lists is had; all the rest is refused in one way, by which nothing can be told from anything else.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};

use crate::support::{
    audit_log,
    contract::Contract,
    daemon::{Daemon, Home},
    http::{Connection, Response, Transcript},
    issuer::Issuer,
    world::JSON,
};

mod crowd;
mod document;
mod names;
mod operations;
mod replay;
mod tricks;
mod untouched;

/// What the sandbox sockets are allowed, one as the other; they differ in their operations.
const ALLOW: [&str; 2] = ["corp", "pool/*"];
const KEYS: [&str; 2] = ["openai", "absent"];

/// Each sandbox socket's name and operations.
const SOCKETS: [(&str, &[&str]); 7] = [
    ("none", &[]),
    ("read", &["read"]),
    ("refresh", &["refresh"]),
    ("both", &["read", "refresh"]),
    ("login", &["login"]),
    ("keys", &["keys"]),
    ("all", &["read", "refresh", "login", "keys"]),
];

/// An account or an API key that somebody might ask for.
struct Subject {
    provider: &'static str,
    bucket: &'static str,
    allowed: bool,
    exists: bool,
}

const fn subject(provider: &'static str, bucket: &'static str, allowed: bool, exists: bool) -> Subject {
    Subject { provider, bucket, allowed, exists }
}

/// Accounts: on the lists or not, by name or by pattern, there or not, of a provider that is configured or not.
const ACCOUNTS: [Subject; 9] = [
    subject("corp", "default", true, true),
    subject("pool", "a", true, true),
    subject("pool", "none", true, false),
    subject("corp", "work", false, true),
    subject("corp", "none", false, false),
    subject("other", "default", false, true),
    subject("other", "none", false, false),
    subject("former", "default", false, true),
    subject("nowhere", "default", false, false),
];

/// API keys, by their name alone.
const API_KEYS: [Subject; 4] = [
    subject("openai", "", true, true),
    subject("absent", "", true, false),
    subject("deploy", "", false, true),
    subject("nowhere", "", false, false),
];

/// What can be changed, and how many requests came to the provider.
type State = (Vec<(Option<String>, Value)>, usize);

/// A daemon with all of these; `former` is the account of a provider that is no longer configured.
struct World {
    issuer: Issuer,
    home: Arc<Home>,
    daemon: Daemon,
    /// The access tokens of accounts that are on no list.
    forbidden: Vec<String>,
    /// How many requests were made.
    asked: AtomicUsize,
}

impl World {
    async fn new() -> Self {
        let (issuer, home) = (Issuer::start().await, Home::new());
        let socket = |(name, operations): &(&str, &[&str])| {
            let keys = if operations.contains(&"keys") { format!("keys = {KEYS:?}\n") } else { String::new() };
            format!(
                "[sockets.{name}]\npath = \"{{home}}/run/{name}/s\"\nrole = \"sandbox\"\nallow = {ALLOW:?}\n\
                 operations = {operations:?}\n{keys}connections = 20000\nrate = \"off\"\n"
            )
        };
        let config: String = ["corp", "pool", "other"].map(|name| issuer.provider(name)).concat();
        let config = config + &SOCKETS.iter().map(socket).collect::<String>();
        let daemon = Daemon::start(&home, "a", &format!("[refresh]\ncooldown = \"0s\"\n{config}"), &[]).await;
        let mut world = Self { issuer, home, daemon, forbidden: Vec::new(), asked: AtomicUsize::new(0) };
        for account in ACCOUNTS.iter().filter(|account| account.exists) {
            let grant = world.issuer.grant();
            assert_eq!(world.host("PUT", &token(account), &grant).await.status, 201);
            let access = grant["access_token"].as_str().unwrap().to_owned();
            world.forbidden.extend((!account.allowed).then_some(access));
        }
        for key in API_KEYS.iter().filter(|key| key.exists) {
            let value = json!({"api_key": format!("canary-key-{}", key.provider)});
            assert_eq!(world.host("PUT", &format!("/v1/api-keys/{}", key.provider), &value).await.status, 201);
        }
        world
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.home.path().join(format!("run/{name}/s"))
    }

    /// A request to the host's socket.
    async fn host(&self, method: &str, target: &str, body: &Value) -> Response {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.ask(&self.daemon.socket(), method, target, &[JSON], &body).await
    }

    /// One request, on a connection of its own, held against the contract.
    async fn ask(&self, socket: &Path, method: &str, target: &str, headers: &[(&str, &str)], body: &str) -> Response {
        loop {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let mut connection = Connection::to_daemon(socket, Transcript::default()).await;
            let answer = connection.request(method, target, headers, body.to_owned()).await;
            Contract::hold(method, target, headers, body.as_bytes(), &answer);
            // A sandbox that is made at run time has a rate. The answer is late: it may be asked again at once.
            let is_over_the_rate = method == "HEAD" || answer.text().contains("the request rate limit");
            if answer.status != 429 || !is_over_the_rate {
                break answer;
            }
        }
    }

    /// The same without a body, to a sandbox's socket.
    async fn get(&self, socket: &str, target: &str, headers: &[(&str, &str)]) -> Response {
        self.ask(&self.socket(socket), "GET", target, headers, "").await
    }

    /// What the audit log tells of, event by event. It has no secret in it, and of names only those that are good ones.
    fn log(&self) -> Vec<Value> {
        let path = audit_log::place(&self.home);
        let text = audit_log::text(&path);
        assert!(!text.contains("canary-") && !text.contains('\\'), "{text}");
        assert!(text.chars().all(|it| it == '\n' || (' '..='~').contains(&it)), "{text}");
        audit_log::events(audit_log::lines(&path))
    }

    /// Nothing was changed and nobody was asked since, and no account's token is in what was answered that is on no list.
    async fn assert_untouched(&self, before: &State, answers: &[u8]) {
        assert_eq!(self.state().await, *before);
        assert!(self.log().len() > 20);
        let answers = String::from_utf8_lossy(answers);
        assert!(self.forbidden.iter().all(|token| !answers.contains(token)), "{answers}");
    }

    async fn seen(&self, target: &str) -> (Option<String>, Value) {
        let answer = self.host("GET", target, &Value::Null).await;
        assert_eq!(answer.status, 200, "{target}: {}", answer.text());
        (answer.header("etag").map(str::to_owned), answer.json())
    }

    /// Every state that a request could change, as the host sees it; the entity tags tell of every write. And how often
    /// the provider was asked.
    async fn state(&self) -> State {
        let mut state = Vec::new();
        for target in ["/v1/tokens", "/v1/providers", "/v1/api-keys", "/v1/sandboxes"] {
            state.push(self.seen(target).await);
        }
        for account in ACCOUNTS.iter().filter(|account| account.exists) {
            state.push(self.seen(&token(account)).await);
        }
        for key in API_KEYS.iter().filter(|key| key.exists) {
            state.push(self.seen(&format!("/v1/api-keys/{}", key.provider)).await);
        }
        (state, self.issuer.requests().len())
    }
}

fn token(account: &Subject) -> String {
    format!("/v1/tokens/{}?bucket={}", account.provider, account.bucket)
}

/// All of an answer but the time of day: what one can be told from another by.
fn told(answer: &Response) -> (u16, String, String) {
    let mut headers = answer.headers.clone();
    headers.remove("date");
    (answer.status, format!("{headers:?}"), answer.text())
}
