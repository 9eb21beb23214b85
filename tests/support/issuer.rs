//! A loopback authorization server: it rotates refresh tokens, remembers every presentation, and fails on request.
//!
//! It stands in for the providers that matter most here: a refresh token is good for one use, and a spent one that is
//! presented again kills its family (RFC 9700 section 4.14.2). It runs on a thread and a runtime of its own, so it
//! serves async tests, plain tests and child processes alike, and is gone with the last handle.
//!
//! ```ignore
//! let issuer = Issuer::start().await;                     // or Issuer::start_blocking()
//! let (access, refresh) = issuer.new_grant();             // "canary-at-…", "canary-rt-…"
//! issuer.script(Answer::RotateThenReset);                 // the next token request; later ones are Normal again
//! // … let the code under test present `refresh` at issuer.token_endpoint() …
//! assert_eq!(issuer.reused(), 0);
//! assert!(issuer.family_alive(&refresh));
//! ```
//!
//! Every token it makes holds the marker `canary-`: a test may search logs and answers for it. No token is a part of
//! another one.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use credproxy::clock::{Clock as _, Monotonic, SystemClock};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::DropGuard;

use serving::launch;

mod logins;
mod serving;

/// What the server does with one request to the token endpoint.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// Rotates, and answers as RFC 6749 section 5 says.
    Normal,
    /// Answers this; the refresh token is not spent.
    Raw(Raw),
    /// Spends the refresh token, then answers this: the successor is lost.
    RotateThenRaw(Raw),
    /// Spends the refresh token, then resets the connection: the successor is lost.
    RotateThenReset,
    /// Reads the request and resets the connection; the refresh token is not spent.
    ResetBefore,
    /// Waits for the gate, then does as `Normal`. The presentation is recorded when the gate opens.
    HoldBefore(Gate),
    /// Rotates, waits for the gate, then answers.
    HoldAfter(Gate),
    /// Rotates, waits this long, then answers.
    Delay(Duration),
    /// Sends the head and one byte of the body a second; the refresh token is not spent.
    Drip(Raw),
    /// Sends the head and half of the body, then closes; the refresh token is not spent.
    Cut(Raw),
    /// Answers with this many bytes of JSON; the refresh token is not spent.
    Huge {
        /// The HTTP status.
        status: u16,
        /// The length of the body.
        bytes: usize,
    },
    /// Rotates, waits up to this long, now more and now less, then answers.
    Jitter(Duration),
    /// Reads the request and keeps silent; the refresh token is not spent. (Silence after the rotation is a
    /// `HoldAfter` whose gate stays shut.)
    Silence,
}

/// A whole answer, sent as it is.
#[derive(Debug, Clone)]
pub(crate) struct Raw {
    /// The HTTP status.
    pub(crate) status: u16,
    /// The `Content-Type`; none is sent when empty.
    pub(crate) content_type: String,
    /// Further headers.
    pub(crate) headers: Vec<(String, String)>,
    /// The body, sent with its length.
    pub(crate) body: Vec<u8>,
}

impl Raw {
    /// An answer of this status, type and body.
    pub(crate) fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, content_type: content_type.to_owned(), headers: Vec::new(), body: body.into() }
    }

    /// An answer with a JSON body.
    pub(crate) fn json(status: u16, body: &Value) -> Self {
        Self::new(status, "application/json", body.to_string())
    }

    /// An error answer as in RFC 6749 section 5.2.
    pub(crate) fn error(status: u16, code: &str) -> Self {
        Self::json(status, &json!({"error": code}))
    }

    /// The same with one more header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// Holds requests back until it is opened; it stays open. Clones are the same gate.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<watch::Sender<(usize, bool)>>);

impl Gate {
    /// A shut gate.
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new((0, false))))
    }

    /// Lets through all who wait and all who come.
    pub(crate) fn open(&self) {
        self.0.send_modify(|state| state.1 = true);
    }

    /// How many requests have come to the gate so far.
    pub(crate) fn arrived(&self) -> usize {
        self.0.borrow().0
    }

    /// Waits until `count` requests have come to the gate.
    pub(crate) async fn wait_for_arrivals(&self, count: usize) {
        self.0.subscribe().wait_for(|state| state.0 >= count).await.expect("the gate is held by self");
    }

    async fn pass(&self) {
        self.0.send_modify(|state| state.0 += 1);
        self.0.subscribe().wait_for(|state| state.1).await.expect("the gate is held by self");
    }
}

/// What came of presenting a refresh token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was spent, and a successor made (whether or not the answer arrived).
    Rotated,
    /// Rotation is off: a new access token, the refresh token stays good.
    Kept,
    /// It was spent before, within the grace window: the same successor was answered.
    Replayed,
    /// It was spent before: `invalid_grant`, and its family is dead.
    Reused,
    /// It was not spent, but its family was dead: `invalid_grant`.
    Dead,
    /// The server never made it: `invalid_grant`.
    Unknown,
    /// The script answered without looking at it.
    Untouched,
}

/// One presentation of a refresh token.
#[derive(Debug, Clone)]
pub(crate) struct Presentation {
    /// The refresh token as it came; empty when there was none.
    pub(crate) token: String,
    /// What came of it.
    pub(crate) outcome: Outcome,
    /// When the request had come in whole, since the server's start. It may be carried out much later.
    pub(crate) arrived: Duration,
    /// The `client_id` of whoever presented it.
    pub(crate) client: String,
    /// What was answered whole, and when. `None` while nothing was, and for ever if the answer broke off.
    pub(crate) told: Option<(Raw, Duration)>,
}

/// One HTTP request as it came, to any path.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The method.
    pub(crate) method: String,
    /// The target, query and all.
    pub(crate) target: String,
    /// The headers in their order, names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    /// The body.
    pub(crate) body: String,
}

impl Seen {
    /// The only value of that header; `None` when it was not sent or more than once.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str());
        values.next().filter(|_| values.next().is_none())
    }

    /// A parameter of the body, be it form or JSON.
    fn parameter(&self, name: &str) -> Option<String> {
        if self.body.starts_with('{') {
            let body: Value = serde_json::from_str(&self.body).ok()?;
            return Some(body.get(name)?.as_str()?.to_owned());
        }
        url::form_urlencoded::parse(self.body.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into())
    }
}

/// A handle on the running server; clones are the same server, which ends with the last of them.
#[derive(Debug, Clone)]
pub(crate) struct Issuer {
    address: SocketAddr,
    shared: Arc<Shared>,
    _running: Arc<DropGuard>,
}

impl Issuer {
    /// Starts a server on a free port of 127.0.0.1.
    pub(crate) async fn start() -> Self {
        let (shared, running, address) = launch();
        Self::handle(shared, running, address.await.expect("the server's thread reports its address"))
    }

    /// The same, for a test without a runtime.
    pub(crate) fn start_blocking() -> Self {
        let (shared, running, address) = launch();
        Self::handle(shared, running, address.blocking_recv().expect("the server's thread reports its address"))
    }

    fn handle(shared: Arc<Shared>, running: DropGuard, address: SocketAddr) -> Self {
        shared.lock().port = address.port();
        Self { address, shared, _running: Arc::new(running) }
    }

    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where refresh tokens are presented.
    pub(crate) fn token_endpoint(&self) -> String {
        format!("{}/token", self.origin())
    }

    /// Where tokens are revoked (RFC 7009).
    pub(crate) fn revocation_endpoint(&self) -> String {
        format!("{}/revoke", self.origin())
    }

    /// Makes a new family: an access token and the refresh token that belongs to it.
    pub(crate) fn new_grant(&self) -> (String, String) {
        let mut state = self.shared.lock();
        state.families.push(true);
        let family = state.families.len() - 1;
        let pair = state.mint(family, self.shared.now());
        (pair.access, pair.refresh)
    }

    /// Every presentation of a refresh token, in the order in which they were carried out.
    pub(crate) fn presentations(&self) -> Vec<Presentation> {
        self.shared.lock().presentations.clone()
    }

    /// How often a spent refresh token was presented and refused. The number a client must keep at zero.
    pub(crate) fn reused(&self) -> usize {
        self.shared.lock().presentations.iter().filter(|seen| seen.outcome == Outcome::Reused).count()
    }

    /// How often this refresh token was presented, whatever came of it.
    pub(crate) fn times_presented(&self, refresh: &str) -> usize {
        self.shared.lock().presentations.iter().filter(|seen| seen.token == refresh).count()
    }

    /// Whether the family of this refresh token (spent or not) can still be refreshed.
    pub(crate) fn family_alive(&self, refresh: &str) -> bool {
        let state = self.shared.lock();
        state.tokens.get(refresh).is_some_and(|token| state.families[token.family])
    }

    /// Kills the family of this refresh token, as a person does who logs out at the provider.
    pub(crate) fn kill_family(&self, refresh: &str) {
        self.shared.lock().kill(refresh);
    }

    /// The refresh token of this one's family that is not spent yet.
    pub(crate) fn living_successor(&self, refresh: &str) -> Option<String> {
        let state = self.shared.lock();
        let family = state.tokens.get(refresh)?.family;
        let unspent = |token: &Token| token.family == family && token.successor.is_none();
        state.tokens.iter().find(|(_, token)| unspent(token)).map(|(text, _)| text.clone())
    }

    /// The time since the server's start, as in [`Presentation::arrived`].
    pub(crate) fn now(&self) -> Duration {
        self.shared.now()
    }

    /// Lets so much time pass at the server, of which the machine's clocks know nothing.
    pub(crate) fn pass_time(&self, by: Duration) {
        self.shared.lock().passed += by;
    }

    /// How long ago the server made this access token, and for how long it is good in all. `None` when the server did
    /// not make it, or did not say how long it is good.
    pub(crate) fn age_and_lifetime(&self, access: &str) -> Option<(Duration, Duration)> {
        let state = self.shared.lock();
        let (made, lifetime) = state.access_tokens.get(access)?;
        Some(((self.shared.now() + state.passed).saturating_sub(*made), (*lifetime)?))
    }

    /// Whether the next request is answered as by a server that is well.
    pub(crate) fn is_well(&self) -> bool {
        let state = self.shared.lock();
        *self.shared.listening.borrow() && state.script.is_empty() && matches!(state.always, Answer::Normal)
    }

    /// Whether this refresh token and that one are of one family.
    pub(crate) fn related(&self, one: &str, other: &str) -> bool {
        let state = self.shared.lock();
        let family = |refresh| state.tokens.get(refresh).map(|token| token.family);
        family(one).is_some() && family(one) == family(other)
    }

    /// From the next moment on, connections are refused (`false`: accepted again).
    pub(crate) async fn refuse(&self, refused: bool) {
        self.shared.wanted.send_replace(!refused);
        self.shared.listening.subscribe().wait_for(|now| *now != refused).await.expect("the server runs");
    }

    /// Every request to any path, in order of arrival.
    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.shared.lock().requests.clone()
    }

    /// The tokens that were sent to the revocation endpoint, in order.
    pub(crate) fn revocations(&self) -> Vec<String> {
        self.shared.lock().revocations.clone()
    }

    /// Queues a behaviour for one coming request to the token endpoint.
    pub(crate) fn script(&self, answer: Answer) {
        self.shared.lock().script.push_back(answer);
    }

    /// Sets the behaviour when the queue is empty; `None` is `Normal`.
    pub(crate) fn always(&self, answer: Option<Answer>) {
        self.shared.lock().always = answer.unwrap_or(Answer::Normal);
    }

    /// Sets `expires_in`; `None` leaves the member out. An hour unless told.
    pub(crate) fn set_lifetime(&self, lifetime: Option<Duration>) {
        self.shared.lock().lifetime = lifetime;
    }

    /// Switches rotation off or on. While off, a refresh token stays good and answers hold none.
    pub(crate) fn set_rotation(&self, rotation: bool) {
        self.shared.lock().rotation = rotation;
    }

    /// For this long a spent refresh token is accepted again and gives the same successor. Zero unless told.
    pub(crate) fn set_grace(&self, grace: Duration) {
        self.shared.lock().grace = grace;
    }

    /// Serves an answer at a path such as `/.well-known/openid-configuration`; other paths answer 404.
    pub(crate) fn serve(&self, path: &str, answer: Raw) {
        self.shared.lock().pages.insert(path.to_owned(), answer);
    }

    /// This server's metadata (RFC 8414), for the issuer named.
    pub(crate) fn metadata(&self, issuer: &str) -> Value {
        json!({
            "issuer": issuer,
            "token_endpoint": self.token_endpoint(),
            "revocation_endpoint": self.revocation_endpoint(),
            "response_types_supported": ["code"],
        })
    }
}

#[derive(Debug)]
struct Shared {
    clock: SystemClock,
    start: Monotonic,
    state: Mutex<State>,
    /// Whether the server is to listen, and whether it does.
    wanted: watch::Sender<bool>,
    listening: watch::Sender<bool>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    fn now(&self) -> Duration {
        self.clock.monotonic().since(self.start)
    }

    /// Any part of it; the last digits of the clock are random enough.
    fn jitter(&self, most: Duration) -> Duration {
        most / 1000 * (self.now().subsec_nanos() / 64 % 1000)
    }
}

#[derive(Debug)]
struct State {
    port: u16,
    minted: u64,
    /// When each access token was made, and for how long it is good.
    access_tokens: HashMap<String, (Duration, Option<Duration>)>,
    /// What `pass_time` has added to the server's clock.
    passed: Duration,
    /// Whether each family is alive.
    families: Vec<bool>,
    tokens: HashMap<String, Token>,
    presentations: Vec<Presentation>,
    requests: Vec<Seen>,
    revocations: Vec<String>,
    script: VecDeque<Answer>,
    always: Answer,
    pages: HashMap<String, Raw>,
    logins: logins::Logins,
    lifetime: Option<Duration>,
    rotation: bool,
    grace: Duration,
}

#[derive(Debug)]
struct Token {
    family: usize,
    /// Set once the token is spent.
    successor: Option<(Pair, Duration)>,
}

#[derive(Debug, Clone)]
struct Pair {
    access: String,
    refresh: String,
}

impl State {
    fn mint_access(&mut self, now: Duration) -> String {
        self.minted += 1;
        let access = format!("canary-at-{}-{:08}", self.port, self.minted);
        self.access_tokens.insert(access.clone(), (now + self.passed, self.lifetime));
        access
    }

    fn mint(&mut self, family: usize, now: Duration) -> Pair {
        let access = self.mint_access(now);
        let refresh = format!("canary-rt-{}-{:08}", self.port, self.minted);
        self.tokens.insert(refresh.clone(), Token { family, successor: None });
        Pair { access, refresh }
    }

    fn kill(&mut self, refresh: &str) {
        if let Some(token) = self.tokens.get(refresh) {
            self.families[token.family] = false;
        }
    }

    /// Gives the index of what it recorded.
    fn record(&mut self, request: &Seen, outcome: Outcome, arrived: Duration) -> usize {
        let parameter = |name| request.parameter(name).unwrap_or_default();
        let (token, client) = (parameter("refresh_token"), parameter("client_id"));
        self.presentations.push(Presentation { token, outcome, arrived, client, told: None });
        self.presentations.len() - 1
    }

    /// Decides on a presented refresh token, records it, and makes the answer.
    fn present(&mut self, request: &Seen, arrived: Duration, now: Duration) -> (Option<usize>, Raw) {
        if let Some(answer) = self.log_in(request, now) {
            return (None, answer);
        }
        if request.parameter("grant_type").as_deref() != Some("refresh_token") {
            return (
                Some(self.record(request, Outcome::Untouched, arrived)),
                Raw::error(400, "unsupported_grant_type"),
            );
        }
        let (outcome, pair) = self.decide(&request.parameter("refresh_token").unwrap_or_default(), now);
        let answer = match pair {
            Some((access, refresh)) => self.answer(&access, refresh.as_deref()),
            None => Raw::error(400, "invalid_grant"),
        };
        (Some(self.record(request, outcome, arrived)), answer)
    }

    fn answer(&self, access: &str, refresh: Option<&str>) -> Raw {
        let mut body = json!({"access_token": access, "token_type": "Bearer", "scope": "read write"});
        if let Some(lifetime) = self.lifetime {
            body["expires_in"] = json!(lifetime.as_secs());
        }
        if let Some(refresh) = refresh {
            body["refresh_token"] = json!(refresh);
        }
        Raw::json(200, &body)
    }

    fn decide(&mut self, presented: &str, now: Duration) -> (Outcome, Option<(String, Option<String>)>) {
        let Some(token) = self.tokens.get(presented) else { return (Outcome::Unknown, None) };
        let family = token.family;
        let alive = self.families[family];
        match &token.successor {
            Some((pair, spent_at)) if alive && now.saturating_sub(*spent_at) < self.grace => {
                (Outcome::Replayed, Some((pair.access.clone(), Some(pair.refresh.clone()))))
            }
            Some(_) => {
                self.families[family] = false;
                (Outcome::Reused, None)
            }
            None if !alive => (Outcome::Dead, None),
            None if !self.rotation => (Outcome::Kept, Some((self.mint_access(now), None))),
            None => {
                let pair = self.mint(family, now);
                self.tokens.insert(presented.to_owned(), Token { family, successor: Some((pair.clone(), now)) });
                (Outcome::Rotated, Some((pair.access, Some(pair.refresh))))
            }
        }
    }
}
