//! The coordinator, driven through its own interface with a clock that stands still. The rules that it is held to are in
//! docs/architecture.md, "The coordinator's rules".

use std::{sync::Arc, time::Duration};

use credproxy::{
    account::Account,
    clock::{Clock as _, Timestamp},
    grant::{Issued, Lifetime},
    provider::{Provider, Providers, Reply, Rules},
    refresh::{
        AccountState, Coordinator, RefreshError, Snapshot,
        condition::{IfMatch, Tag},
        outcome::Failure,
    },
    store::{Outcome, Presentation, Revision, Store as _, memory::MemoryStore},
};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::store::StoreCall;
use fakes::{FaultyStore, ManualClock, Scripted, Step, error, faulty, lost, set};

mod attempts;
mod conditions;
mod fakes;
mod flights;
mod limits;
mod lost_answers;
mod replacements;
mod shutdown;
mod stalls;
mod store_failures;
mod storm;
mod validity;

const COOLDOWN: Duration = Duration::from_secs(30);

const SECOND: Duration = Duration::from_secs(1);

/// One account, its provider and its store, and a coordinator on them.
struct World {
    clock: Arc<ManualClock>,
    provider: Arc<Scripted>,
    store: Arc<FaultyStore<MemoryStore>>,
    coordinator: Coordinator,
}

impl World {
    async fn new() -> Self {
        Self::with(Rules::default(), COOLDOWN).await
    }

    async fn with(rules: Rules, cooldown: Duration) -> Self {
        let (clock, provider) = (ManualClock::new(), Scripted::new(rules));
        let store = faulty(MemoryStore::new().unwrap());
        let coordinator = coordinator(&store, &provider, &clock, cooldown);
        let world = Self { clock, provider, store, coordinator };
        world.log_in().await;
        world
    }

    async fn log_in(&self) {
        self.coordinator.put(&account(), self.provider.login(), &IfMatch::Absent).await.unwrap();
    }

    /// Another daemon on the same store.
    fn second(&self) -> (Arc<FaultyStore<MemoryStore>>, Coordinator) {
        let store = faulty(self.store.inner.second_owner());
        let coordinator = coordinator(&store, &self.provider, &self.clock, COOLDOWN);
        (store, coordinator)
    }

    async fn refresh(&self) -> Result<String, RefreshError> {
        refresh(&self.coordinator).await
    }

    async fn get(&self) -> Result<String, RefreshError> {
        self.coordinator.token(&account(), None).await.map(|snapshot| access(&snapshot))
    }

    async fn refresh_state(&self) -> credproxy::store::RefreshState {
        self.store.inner.load(&account()).await.unwrap().unwrap().refresh_state
    }

    async fn state(&self) -> AccountState {
        let mut states = Vec::new();
        self.coordinator.overview(&|_| true, |status| states.push(status.state)).await.unwrap();
        states[0]
    }

    /// A login whose access token is of no use any more, as an imported one's may be.
    fn expired_login(&self) -> Issued {
        let past = Timestamp::from_secs(1_600_000_000);
        Issued { lifetime: Lifetime::At(past), ..self.provider.login() }
    }

    /// Waits until the store holds a caller up.
    async fn held(&self) {
        while !self.store.holds() {
            tokio::task::yield_now().await;
        }
    }

    /// Waits until the provider has a presentation in its hands.
    async fn presented(&self, count: usize) {
        while self.provider.presentations() < count {
            tokio::task::yield_now().await;
        }
    }

    /// Seconds until the first token expires.
    fn clock_left(&self) -> i64 {
        1_700_003_600 - self.clock.now().as_secs()
    }

    /// As a daemon leaves it that was killed after the mark and before the end.
    async fn crash_in_mid_flight(&self, count: u32) {
        let record = self.store.inner.load(&account()).await.unwrap().unwrap();
        let mark = Presentation { at: self.clock.now(), count };
        self.store.inner.second_owner().claim(&account(), record.revision, mark).await.unwrap();
    }

    /// By another daemon.
    async fn log_in_elsewhere(&self) {
        self.second().1.put(&account(), self.provider.login(), &IfMatch::Absent).await.unwrap();
    }

    async fn revision(&self) -> Revision {
        self.store.inner.load(&account()).await.unwrap().unwrap().revision
    }
}

fn coordinator(
    store: &Arc<FaultyStore<MemoryStore>>,
    provider: &Arc<Scripted>,
    clock: &Arc<ManualClock>,
    cooldown: Duration,
) -> Coordinator {
    let provider: Arc<dyn Provider> = Arc::<Scripted>::clone(provider);
    let providers: Providers = [("corp".parse().unwrap(), provider)].into_iter().collect();
    Coordinator::new(
        Arc::<FaultyStore<MemoryStore>>::clone(store),
        providers,
        Arc::<ManualClock>::clone(clock),
        cooldown,
    )
}

fn account() -> Account {
    "corp".parse().unwrap()
}

fn access(snapshot: &Snapshot) -> String {
    let body: Value = serde_json::from_slice(&snapshot.token.json()).unwrap();
    body["access_token"].as_str().unwrap().to_owned()
}

async fn refresh(coordinator: &Coordinator) -> Result<String, RefreshError> {
    coordinator.refresh(&account(), &IfMatch::Absent).await.map(|snapshot| access(&snapshot))
}

fn spawn_refresh(
    coordinator: &Coordinator,
    tasks: &mut JoinSet<Result<String, RefreshError>>,
) -> tokio::task::AbortHandle {
    let coordinator = coordinator.clone();
    tasks.spawn(async move { refresh(&coordinator).await })
}

async fn all(mut tasks: JoinSet<Result<String, RefreshError>>) -> Vec<Result<String, RefreshError>> {
    let mut results = Vec::new();
    while let Some(result) = tasks.join_next().await {
        if let Ok(result) = result {
            results.push(result);
        }
    }
    results
}

fn rate_limited(result: &Result<String, RefreshError>) -> u64 {
    match result {
        Err(RefreshError::RateLimited { wait, .. }) => wait.as_secs(),
        other => panic!("not rate limited: {other:?}"),
    }
}

/// Lets every task go as far as it can without time passing.
async fn settle_down() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
