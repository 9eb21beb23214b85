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
    account::{Account, ProviderName},
    clock::{Clock, Monotonic, Timestamp},
    grant::{Extra, Grant, Issued, Lifetime, Version},
    provider::{Body, ErrorCode, Provider, Reply, Rules},
    secret::{AccessToken, RefreshToken},
    store::{
        AccountFilter, Claim, Deleted, Expect, Presentation, PutGrant, Record, RefreshState, Renamed, Revision, Store,
        StoreError, Visitor,
    },
};
use secrecy::ExposeSecret as _;
use tokio::sync::Semaphore;

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

/// Something that a store does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreCall {
    Load,
    Claim,
    Save,
    Put,
}

/// A store whose kinds of access fail while a test says so.
#[derive(Debug)]
pub(crate) struct FaultyStore<S> {
    pub(crate) inner: S,
    /// The next of these calls are done, and do not return before [`FaultyStore::release`].
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

impl<S> FaultyStore<S> {
    pub(crate) fn new(inner: S) -> Arc<Self> {
        let off = AtomicBool::default;
        Arc::new(Self {
            inner,
            held: Mutex::default(),
            released: Semaphore::new(0),
            no_reads: off(),
            no_claims: off(),
            no_saves: off(),
            denied_claims: off(),
            deaf: off(),
            usurped: off(),
        })
    }

    pub(crate) fn hold(&self, step: StoreCall) {
        self.held.lock().unwrap().push(step);
    }

    /// Whether every step to be held is.
    pub(crate) fn holds(&self) -> bool {
        self.held.lock().unwrap().is_empty()
    }

    pub(crate) fn release(&self) {
        self.released.add_permits(1);
    }

    async fn after(&self, step: StoreCall) {
        let held = {
            let mut held = self.held.lock().unwrap();
            held.iter().position(|of| *of == step).map(|place| held.remove(place)).is_some()
        };
        if held {
            self.released.acquire().await.unwrap().forget();
        }
    }
}

pub(crate) fn set(switch: &AtomicBool, on: bool) {
    switch.store(on, Ordering::SeqCst);
}

fn unless(switch: &AtomicBool) -> Result<(), StoreError> {
    if switch.load(Ordering::SeqCst) { Err(StoreError::Unavailable("disk full".into())) } else { Ok(()) }
}

#[async_trait]
impl<S: Store> Store for FaultyStore<S> {
    async fn load(&self, account: &Account) -> Result<Option<Record>, StoreError> {
        unless(&self.no_reads)?;
        let loaded = self.inner.load(account).await;
        self.after(StoreCall::Load).await;
        loaded
    }

    async fn names(&self) -> Result<Vec<Account>, StoreError> {
        unless(&self.no_reads)?;
        self.inner.names().await
    }

    async fn visit(&self, wanted: &AccountFilter<'_>, each: &mut Visitor<'_>) -> Result<(), StoreError> {
        unless(&self.no_reads)?;
        self.inner.visit(wanted, each).await
    }

    async fn claim(&self, account: &Account, expected: Revision, presented: Presentation) -> Result<Claim, StoreError> {
        unless(&self.no_claims)?;
        let claimed = self.inner.claim(account, expected, presented).await;
        self.after(StoreCall::Claim).await;
        unless(&self.denied_claims)?;
        claimed
    }

    async fn settle(
        &self,
        account: &Account,
        version: Version,
        refresh_state: &RefreshState,
    ) -> Result<bool, StoreError> {
        unless(&self.no_saves)?;
        if self.usurped.load(Ordering::SeqCst) {
            return Ok(false);
        }
        self.inner.settle(account, version, refresh_state).await
    }

    async fn save(
        &self,
        account: &Account,
        version: Version,
        next: &Grant,
        refresh_state: &RefreshState,
    ) -> Result<bool, StoreError> {
        unless(&self.no_saves)?;
        let saved = self.inner.save(account, version, next, refresh_state).await;
        self.after(StoreCall::Save).await;
        saved
    }

    async fn put(
        &self,
        account: &Account,
        grant: &Grant,
        expect: &Expect,
        siblings: &[ProviderName],
    ) -> Result<PutGrant, StoreError> {
        unless(&self.no_saves)?;
        let put = self.inner.put(account, grant, expect, siblings).await;
        self.after(StoreCall::Put).await;
        put
    }

    async fn rename(&self, from: &Account, to: &Account) -> Result<Renamed, StoreError> {
        unless(&self.no_saves)?;
        self.inner.rename(from, to).await
    }

    async fn delete(&self, account: &Account, expect: &Expect) -> Result<Deleted, StoreError> {
        unless(&self.no_saves)?;
        self.inner.delete(account, expect).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        unless(&self.no_claims)?;
        unless(&self.no_saves)?;
        self.inner.probe().await
    }

    fn epoch(&self) -> u64 {
        if self.deaf.load(Ordering::SeqCst) { 0 } else { self.inner.epoch() }
    }
}
