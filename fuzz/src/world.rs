//! A whole API in process: routers for two sockets, a store in memory, a provider that answers as it is told, and a
//! clock that jumps. Time is tokio's paused time: waiting costs none.

use std::{
    collections::{HashSet, VecDeque},
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum::{Router, body::Body, response::Response};
use credproxy::{
    account::Account,
    clock::{Clock, Monotonic, Timestamp},
    grant::Grant,
    keys::Keys,
    policy::{Allowed, Operation, Policy},
    provider::{
        Body as ProviderBody, Provider, Reply, Rules,
        wire::answer::{self, Received},
    },
    refresh::Coordinator,
    dialect::Dialect,
    server::{AppState, router},
    store::{Expect, ItemStore, Store, memory::MemoryStore},
};
use http::{HeaderMap, Method, Request, Uri, header};
use http_body_util::BodyExt as _;
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tower::ServiceExt as _;

use crate::{MARK, check_view, corp, grant, holds, holds_forbidden_text, secret};

/// The beginning of 2025.
pub const START: Timestamp = Timestamp::from_secs(1_735_689_600);

const COOLDOWN: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Clocks {
    begin: tokio::time::Instant,
    /// By how many milliseconds the wall clock has jumped.
    jump: AtomicI64,
}

impl Clock for Clocks {
    fn now(&self) -> Timestamp {
        let wall = START.plus(self.begin.elapsed()).as_millis();
        Timestamp::from_millis(wall.saturating_add(self.jump.load(Ordering::Relaxed)))
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic::new(self.begin.elapsed())
    }
}

/// Replaces each `from` by `to`.
fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut rest = bytes;
    let mut whole = Vec::new();
    while let Some(at) = rest.windows(from.len()).position(|window| window == from) {
        whole.extend_from_slice(&rest[..at]);
        whole.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    whole.extend_from_slice(rest);
    whole
}

#[derive(Debug, Default)]
struct Scripted {
    rules: Rules,
    answers: Mutex<VecDeque<Vec<u8>>>,
    last_secret: AtomicU32,
    /// Refresh tokens of which the successor was handed over.
    spent: Mutex<HashSet<String>>,
    violation: Mutex<Option<&'static str>>,
}

impl Scripted {
    /// A body with a new secret for `%N`, the same in all places.
    fn body(&self, template: &[u8]) -> Vec<u8> {
        let number = self.last_secret.fetch_add(1, Ordering::Relaxed) + 1;
        replaced(template, b"%N", secret(number).as_bytes())
    }
}

#[async_trait]
impl Provider for Scripted {
    /// `lost`, `timeout`, `unsent`, or a status and a body, in which `%P` is what was presented.
    async fn refresh(&self, grant: &Grant) -> Reply {
        let Some(presented) = &grant.refresh_token else {
            *self.violation.lock().unwrap() = Some("a grant without a refresh token was presented");
            return Reply::NotSent("nothing to send");
        };
        let value = presented.expose_secret();
        if self.spent.lock().unwrap().contains(value) {
            *self.violation.lock().unwrap() = Some("a spent refresh token was presented");
        }
        let Some(script) = self.answers.lock().unwrap().pop_front() else { return Reply::NotSent("no route") };
        match script.trim_ascii() {
            b"lost" => return Reply::Lost { timed_out: false },
            b"timeout" => return Reply::Lost { timed_out: true },
            b"unsent" => return Reply::NotSent("no route"),
            _ => {}
        }
        let (digits, template) = script.split_at(script.len().min(3));
        let status = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or(200);
        let body = self.body(&replaced(template, b"%P", value.as_bytes()));
        let received = Received { status, content_type: None, body: &body };
        let body = answer::read(received, &Dialect::default(), Some(presented), START);
        if let ProviderBody::Issued(issued) = &body
            && (200..300).contains(&status)
            && !issued.reveals(Some(presented))
            && issued.refresh_token.as_ref().is_some_and(|successor| !successor.same_as(presented))
        {
            self.spent.lock().unwrap().insert(value.to_owned());
        }
        Reply::Answered { status, body, retry_after: answer::retry_after(&String::from_utf8_lossy(template), START) }
    }

    async fn revoke(&self, _: &Grant) -> bool {
        true
    }

    fn rules(&self) -> &Rules {
        &self.rules
    }
}

/// Which socket a request comes in by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Socket {
    /// May do everything.
    Host,
    /// May read `corp/*` and `github`, and have the key `openai`.
    Sandbox,
}

/// One request, not yet looked at.
#[derive(Debug)]
pub struct Ask {
    /// Where it comes in.
    pub socket: Socket,
    /// Its method.
    pub method: Method,
    /// Its target.
    pub target: Uri,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, `%N` for a new refresh token.
    pub body: Vec<u8>,
}

/// An answer that was found in order.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The entity tag with its quotes.
    pub etag: Option<String>,
}

/// The API and what it stands on.
#[derive(Debug)]
pub struct World {
    clocks: Arc<Clocks>,
    provider: Arc<Scripted>,
    store: Arc<MemoryStore>,
    coordinator: Coordinator,
    host: Router,
    sandbox: Router,
}

/// Runs `work` in paused time.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(work)
}

impl World {
    /// A world in which `corp` has a grant.
    pub async fn new() -> Self {
        let clocks = Arc::new(Clocks { begin: tokio::time::Instant::now(), jump: AtomicI64::new(0) });
        let provider = Arc::new(Scripted {
            rules: Rules {
                dead_grant_codes: vec!["token_revoked".into()],
                dead_grant_statuses: vec![410],
                reuse_grace: Duration::from_secs(10),
                expose: ["tenant_id", "expiry", "scope", "team"].map(String::from).to_vec(),
                ..Rules::default()
            },
            ..Scripted::default()
        });
        let providers = [("corp".parse().unwrap(), Arc::clone(&provider) as Arc<dyn Provider>)].into_iter().collect();
        let store = Arc::new(MemoryStore::new().unwrap());
        store.put(&corp(), &grant(), &Expect::Whatever, &[]).await.unwrap();
        let coordinator = Coordinator::new(
            Arc::clone(&store) as Arc<dyn Store>,
            providers,
            Arc::clone(&clocks) as Arc<dyn Clock>,
            COOLDOWN,
        );
        let allow = ["corp/*", "github"].map(|text| text.parse().unwrap()).to_vec();
        let operations = vec![Operation::Read, Operation::Refresh, Operation::Keys];
        let keys = vec!["openai".parse().unwrap()];
        let sandbox = Policy::sandbox(Allowed { allow, operations, keys });
        let keys = Keys::new(Arc::clone(&store) as Arc<dyn ItemStore>, Arc::clone(&clocks) as Arc<dyn Clock>);
        let of = |policy| router(AppState::new(coordinator.clone(), keys.clone(), policy));
        Self { host: of(Policy::host()), sandbox: of(sandbox), clocks, provider, store, coordinator }
    }

    /// The wall clock jumps.
    pub fn jump(&self, millis: i64) {
        let jump = self.clocks.jump.load(Ordering::Relaxed).saturating_add(millis);
        self.clocks.jump.store(jump, Ordering::Relaxed);
    }

    /// What the provider will answer after what it was told before.
    pub fn script(&self, answer: &[u8]) {
        self.provider.answers.lock().unwrap().push_back(answer.to_vec());
    }

    /// Sends a request, and panics at an answer that is not in order.
    pub async fn ask(&self, ask: Ask) -> Answer {
        let (method, path) = (ask.method.clone(), ask.target.path().to_owned());
        let mut request = Request::new(Body::from(self.provider.body(&ask.body)));
        (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (ask.method, ask.target, ask.headers);
        let api = if ask.socket == Socket::Host { &self.host } else { &self.sandbox };
        let response: Result<Response, Infallible> = api.clone().oneshot(request).await;
        let (head, body) = response.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let answer = Answer {
            status: head.status.as_u16(),
            etag: head.headers.get(header::ETAG).map(|tag| tag.to_str().unwrap().to_owned()),
        };
        if path != "/openapi.yaml" {
            self.check_secrets(&head.headers, &body).await;
        }
        check_form(&method, &path, &answer, &head.headers, &body);
        answer
    }

    /// Nothing leaves of what is stored.
    async fn check_secrets(&self, headers: &HeaderMap, body: &[u8]) {
        let mut all: Vec<u8> = body.to_vec();
        for (name, value) in headers {
            all.extend_from_slice(name.as_str().as_bytes());
            all.extend_from_slice(value.as_bytes());
        }
        assert!(!holds_forbidden_text(&all), "the answer holds the forbidden text");
        if holds(&all, MARK) {
            for entry in self.store.list().await.unwrap() {
                let stored = entry.record.unwrap().grant.refresh_token;
                let stored = stored.as_ref().map(|token| token.expose_secret()).filter(|text| text.starts_with(MARK));
                assert!(!stored.is_some_and(|stored| holds(&all, stored)), "the answer holds a refresh token");
            }
        }
    }

    /// Waits for what is under way, and says what went wrong behind the answers.
    pub async fn end(self) {
        self.coordinator.shut_down().await;
        assert_eq!(*self.provider.violation.lock().unwrap(), None);
    }

    /// The current entity tag of `account`, without quotes.
    pub async fn tag(&self, account: &Account) -> Option<String> {
        self.coordinator.peek(account).await.ok().map(|snapshot| snapshot.tag.to_string())
    }
}

/// Every answer is a success of the contract, or a problem that agrees with itself.
fn check_form(method: &Method, path: &str, answer: &Answer, headers: &HeaderMap, body: &[u8]) {
    assert_eq!(headers[header::CACHE_CONTROL], "no-store");
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap());
    let health = path == "/v1/health" && answer.status == 503;
    if (200..300).contains(&answer.status) || health {
        let token = path.starts_with("/v1/tokens/");
        if token && answer.status == 200 && answer.etag.is_some() && method != Method::HEAD {
            check_view(body, None);
        }
        return;
    }
    if answer.status == 304 {
        assert!(body.is_empty() && answer.etag.is_some());
        return;
    }
    assert_eq!(text(header::CONTENT_TYPE), Some("application/problem+json"), "{}", answer.status);
    if method == Method::HEAD {
        return;
    }
    let problem: Value = serde_json::from_slice(body).expect("a problem is JSON");
    assert_eq!(problem["status"], answer.status);
    assert_ne!(problem["code"], "INTERNAL_ERROR", "{problem}");
    assert!(problem["code"].is_string() && problem["detail"].is_string());
    assert_eq!(problem["retryAfter"].as_u64(), text(header::RETRY_AFTER).map(|seconds| seconds.parse().unwrap()));
    assert!(problem["retryAfter"].as_u64() != Some(0) && problem["retryAfter"].as_u64() <= Some(7200), "{problem}");
}
