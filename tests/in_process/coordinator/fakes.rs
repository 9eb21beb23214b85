//! A clock that tests wind, a provider that follows a script, a store that fails on request.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use credproxy::{
    clock::{Clock, Monotonic, Timestamp},
    grant::{Extra, Grant, Issued, Lifetime},
    provider::{Body, ErrorCode, Provider, Reply, Rules},
    secret::{AccessToken, RefreshToken},
    store::StoreError,
};
use secrecy::ExposeSecret as _;
use tokio::sync::Semaphore;

use crate::support::store::{Intercepted, Interceptor, StoreCall};

/// Follows tokio's clock, so that a paused test is in charge of it; the wall can be moved besides.
#[derive(Debug)]
pub(crate) struct ManualClock {
    start: tokio::time::Instant,
    wall: AtomicI64,
}

impl ManualClock {
    #[expect(clippy::disallowed_methods, reason = "a clock of a test's own")]
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { start: tokio::time::Instant::now(), wall: AtomicI64::new(1_700_000_000_000) })
    }

    /// Moves the wall clock alone, as NTP or a person does.
    pub(crate) fn jump(&self, seconds: i64) {
        self.wall.fetch_add(seconds.saturating_mul(1000), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.wall.load(Ordering::SeqCst)).plus(self.start.elapsed())
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic::new(self.start.elapsed())
    }
}

/// What the provider does with one presentation.
#[derive(Debug)]
pub(crate) enum Step {
    /// Rotates and answers.
    Rotate,
    /// Rotates, and the answer is lost.
    RotateAndLose,
    /// Answers, or does not, without rotating.
    Fail(Reply),
    /// A fault of the provider's client.
    Panic,
}

pub(crate) fn error(status: u16, code: &str) -> Step {
    Step::Fail(Reply::Answered { status, body: Body::Error(ErrorCode::new(code, None)), retry_after: None })
}

pub(crate) fn lost() -> Step {
    Step::Fail(Reply::Lost { timed_out: false })
}

/// Rotates its one chain at every presentation; the reuse of a spent token kills it.
#[derive(Debug)]
pub(crate) struct Scripted {
    rules: Rules,
    steps: Mutex<VecDeque<Step>>,
    state: Mutex<Chain>,
    /// One permit lets one presentation go on; there are plenty unless a test takes them away.
    gate: Semaphore,
    pub(crate) revoked: Mutex<Vec<String>>,
    pub(crate) lifetime: AtomicU64,
}

#[derive(Debug, Default)]
struct Chain {
    living: Option<String>,
    spent: Vec<String>,
    issued: u64,
    presented: Vec<String>,
}

const PLENTY: usize = 100_000;

impl Scripted {
    pub(crate) fn new(rules: Rules) -> Arc<Self> {
        Arc::new(Self {
            rules,
            steps: Mutex::default(),
            state: Mutex::default(),
            gate: Semaphore::new(PLENTY),
            revoked: Mutex::default(),
            lifetime: AtomicU64::new(3600),
        })
    }

    /// The tokens of a new login, which ends the chain before it.
    pub(crate) fn login(&self) -> Issued {
        self.issue(&mut self.state.lock().unwrap())
    }

    pub(crate) fn script(&self, steps: impl IntoIterator<Item = Step>) {
        self.steps.lock().unwrap().extend(steps);
    }

    /// From now on, presentations wait for [`Scripted::open`].
    pub(crate) fn shut(&self) {
        self.gate.forget_permits(PLENTY);
    }

    pub(crate) fn open(&self) {
        self.gate.add_permits(PLENTY - self.gate.available_permits());
    }

    pub(crate) fn presentations(&self) -> usize {
        self.state.lock().unwrap().presented.len()
    }

    /// How many presentations were of a token already spent.
    pub(crate) fn reuses(&self) -> usize {
        let state = self.state.lock().unwrap();
        let mut seen = Vec::new();
        state
            .presented
            .iter()
            .filter(|token| {
                state.spent.contains(token) && seen.contains(token) || {
                    seen.push(*token);
                    false
                }
            })
            .count()
    }

    fn issue(&self, chain: &mut Chain) -> Issued {
        chain.issued += 1;
        let refresh_token = format!("canary-rt-{}-end", chain.issued);
        chain.living = Some(refresh_token.clone());
        Issued {
            access_token: AccessToken::new(format!("canary-at-{}-end", chain.issued)).unwrap(),
            token_type: Some("Bearer".into()),
            lifetime: Lifetime::In(Duration::from_secs(self.lifetime.load(Ordering::SeqCst))),
            scope: None,
            refresh_token: Some(RefreshToken::new(refresh_token).unwrap()),
            extra: Extra::default(),
        }
    }
}

#[async_trait]
impl Provider for Scripted {
    #[expect(clippy::disallowed_methods, reason = "a provider sees what it is presented")]
    async fn refresh(&self, grant: &Grant) -> Reply {
        let presented = grant.refresh_token.as_ref().unwrap().expose_secret().to_owned();
        self.state.lock().unwrap().presented.push(presented.clone());
        self.gate.acquire().await.unwrap().forget();
        let act = self.steps.lock().unwrap().pop_front().unwrap_or(Step::Rotate);
        if let Step::Fail(reply) = act {
            return reply;
        }
        assert!(!matches!(act, Step::Panic), "as the script says");
        let mut chain = self.state.lock().unwrap();
        if chain.living.as_ref() != Some(&presented) {
            chain.living = None;
            return Reply::Answered {
                status: 400,
                body: Body::Error(ErrorCode::new("invalid_grant", None)),
                retry_after: None,
            };
        }
        chain.spent.push(presented);
        let issued = self.issue(&mut chain);
        match act {
            Step::RotateAndLose => Reply::Lost { timed_out: true },
            Step::Rotate | Step::Fail(_) | Step::Panic => {
                Reply::Answered { status: 200, body: Body::Issued(Box::new(issued)), retry_after: None }
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a provider sees what it is presented")]
    async fn revoke(&self, grant: &Grant) -> bool {
        let token = grant.refresh_token.as_ref().unwrap().expose_secret().to_owned();
        self.revoked.lock().unwrap().push(token);
        true
    }

    fn rules(&self) -> &Rules {
        &self.rules
    }
}

/// A store whose kinds of access fail while a test says so.
pub(crate) type FaultyStore<S> = Intercepted<Box<S>, Faults>;

#[derive(Debug)]
pub(crate) struct Faults {
    /// The next of these calls are done, and do not return before [`Faults::release`].
    held: Mutex<Vec<StoreCall>>,
    released: Semaphore,
    pub(crate) no_reads: AtomicBool,
    pub(crate) no_claims: AtomicBool,
    pub(crate) no_saves: AtomicBool,
    /// Claims are made, and answered as if they were not.
    pub(crate) denied_claims: AtomicBool,
    /// Hears nothing of what other owners change.
    pub(crate) deaf: AtomicBool,
    /// Another owner has the lease, whoever claimed it.
    pub(crate) usurped: AtomicBool,
}

/// A store that works until a test says otherwise.
pub(crate) fn faulty<S>(inner: S) -> Arc<FaultyStore<S>> {
    let off = AtomicBool::default;
    let faults = Faults {
        held: Mutex::default(),
        released: Semaphore::new(0),
        no_reads: off(),
        no_claims: off(),
        no_saves: off(),
        denied_claims: off(),
        deaf: off(),
        usurped: off(),
    };
    Arc::new(Intercepted::new(Box::new(inner), faults))
}

impl Faults {
    pub(crate) fn hold(&self, call: StoreCall) {
        self.held.lock().unwrap().push(call);
    }

    /// Whether every call to be held is.
    pub(crate) fn holds(&self) -> bool {
        self.held.lock().unwrap().is_empty()
    }

    pub(crate) fn release(&self) {
        self.released.add_permits(1);
    }
}

pub(crate) fn set(switch: &AtomicBool, on: bool) {
    switch.store(on, Ordering::SeqCst);
}

fn unless(switch: &AtomicBool) -> Result<(), StoreError> {
    if switch.load(Ordering::SeqCst) { Err(StoreError::Unavailable("disk full".into())) } else { Ok(()) }
}

#[async_trait]
impl Interceptor for Faults {
    async fn before(&self, call: StoreCall) -> Result<(), StoreError> {
        match call {
            StoreCall::Load | StoreCall::Names | StoreCall::Visit => unless(&self.no_reads),
            StoreCall::Claim => unless(&self.no_claims),
            StoreCall::Probe => unless(&self.no_claims).and_then(|()| unless(&self.no_saves)),
            StoreCall::Settle | StoreCall::Save | StoreCall::Put | StoreCall::Rename | StoreCall::Delete => {
                unless(&self.no_saves)
            }
            StoreCall::Item | StoreCall::Items | StoreCall::PutItem | StoreCall::DeleteItem => Ok(()),
        }
    }

    async fn after(&self, call: StoreCall) -> Result<(), StoreError> {
        let held = {
            let mut held = self.held.lock().unwrap();
            held.iter().position(|of| *of == call).map(|place| held.remove(place)).is_some()
        };
        if held {
            self.released.acquire().await.unwrap().forget();
        }
        if call == StoreCall::Claim { unless(&self.denied_claims) } else { Ok(()) }
    }

    fn lease_is_lost(&self) -> bool {
        self.usurped.load(Ordering::SeqCst)
    }

    fn epoch(&self, epoch: u64) -> u64 {
        if self.deaf.load(Ordering::SeqCst) { 0 } else { epoch }
    }
}
