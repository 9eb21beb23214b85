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

use fakes::{FaultyStore, ManualClock, Scripted, Step, StoreCall, error, lost, set};

mod fakes;
mod limits;
mod stalls;
mod storm;

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
        let store = FaultyStore::new(MemoryStore::new().unwrap());
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
        let store = FaultyStore::new(self.store.inner.second_owner());
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

#[tokio::test(start_paused = true)]
async fn a_thousand_callers_make_one_call() {
    let world = World::new().await;
    world.provider.shut();
    let mut tasks = JoinSet::new();
    for _ in 0..1000 {
        spawn_refresh(&world.coordinator, &mut tasks);
    }
    world.presented(1).await;
    world.provider.open();
    let results = all(tasks).await;
    assert_eq!(results.len(), 1000);
    assert!(
        results.iter().all(|result| result.as_deref().is_ok_and(|token| token == "canary-at-2-end")),
        "{results:?}"
    );
    assert_eq!(world.provider.presentations(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_first_caller_who_hangs_up_cancels_nothing() {
    let world = World::new().await;
    world.provider.shut();
    let mut tasks = JoinSet::new();
    let first = spawn_refresh(&world.coordinator, &mut tasks);
    world.presented(1).await;
    spawn_refresh(&world.coordinator, &mut tasks);
    first.abort();
    tokio::task::yield_now().await;
    world.provider.open();
    assert_eq!(all(tasks).await.len(), 1);
    assert_eq!(world.get().await.unwrap(), "canary-at-2-end");
    assert_eq!(world.store.inner.load(&account()).await.unwrap().unwrap().grant.version.generation, 2);
}

#[tokio::test(start_paused = true)]
async fn even_a_flight_that_nobody_waits_for_any_more_is_saved() {
    let world = World::new().await;
    world.provider.shut();
    let mut tasks = JoinSet::new();
    spawn_refresh(&world.coordinator, &mut tasks).abort();
    let mut tasks = JoinSet::new();
    let only = spawn_refresh(&world.coordinator, &mut tasks);
    world.presented(1).await;
    only.abort();
    world.provider.open();
    world.coordinator.shut_down().await;
    assert_eq!(world.store.inner.load(&account()).await.unwrap().unwrap().grant.version.generation, 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_looked_before_a_rotation_elsewhere_gets_the_new_token_without_a_call() {
    let world = World::new().await;
    let (store, late) = world.second();
    // The second daemon does not learn of the change before it takes off itself.
    set(&store.deaf, true);
    assert_eq!(access(&late.token(&account(), None).await.unwrap()), "canary-at-1-end");
    world.refresh().await.unwrap();
    assert_eq!(refresh(&late).await.unwrap(), "canary-at-2-end");
    assert_eq!(world.provider.presentations(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_cooldown_counts_from_the_last_success_and_survives_a_restart() {
    let world = World::new().await;
    world.refresh().await.unwrap();
    assert_eq!(rate_limited(&world.refresh().await), 30);
    tokio::time::advance(SECOND * 10).await;
    assert_eq!(rate_limited(&world.refresh().await), 20);
    let (_store, restarted) = world.second();
    assert_eq!(rate_limited(&refresh(&restarted).await), 20);
    tokio::time::advance(SECOND * 20).await;
    assert_eq!(refresh(&restarted).await.unwrap(), "canary-at-3-end");
    assert_eq!((world.provider.presentations(), world.provider.reuses()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_always_fails_is_called_once_per_cooldown() {
    let world = World::new().await;
    world.provider.script((0..100).map(|_| error(400, "odd")));
    let mut calls = 0;
    for _ in 0..600 {
        let before = world.provider.presentations();
        drop(world.refresh().await);
        calls += world.provider.presentations() - before;
        tokio::time::advance(SECOND).await;
    }
    // 0, 30, 90, 210, 450 s: the cooldown, doubled each time.
    assert_eq!(calls, 5);
}

#[tokio::test(start_paused = true)]
async fn without_a_cooldown_every_request_is_a_new_token() {
    let world = World::with(Rules::default(), Duration::ZERO).await;
    for generation in 2..6 {
        assert_eq!(world.refresh().await.unwrap(), format!("canary-at-{generation}-end"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_grant_is_latched_until_it_is_replaced() {
    let world = World::new().await;
    world.provider.script([error(400, "invalid_grant")]);
    assert!(matches!(world.refresh().await, Err(RefreshError::Reauth { answer_lost: false, .. })));
    tokio::time::advance(SECOND * 3600 * 24).await;
    assert!(matches!(world.refresh().await, Err(RefreshError::Reauth { .. })));
    assert!(matches!(refresh(&world.second().1).await, Err(RefreshError::Reauth { .. })));
    assert_eq!((world.provider.presentations(), world.state().await), (1, AccountState::ReauthRequired));
    world.log_in().await;
    assert_eq!(world.refresh().await.unwrap(), "canary-at-3-end");
}

#[tokio::test(start_paused = true)]
async fn a_valid_token_outlives_every_kind_of_failure_to_its_last_second() {
    let failures: [fn() -> Step; 6] = [
        || error(400, "invalid_grant"),
        || error(400, "invalid_client"),
        || error(400, "odd"),
        || error(503, "temporarily_unavailable"),
        lost,
        || Step::Fail(Reply::NotSent("no route")),
    ];
    for failure in failures {
        let world = World::new().await;
        world.provider.script((0..1000).map(|_| failure()));
        tokio::time::advance(SECOND * 3590).await;
        while world.clock_left() > 1 {
            assert_eq!(world.get().await.unwrap(), "canary-at-1-end");
            assert!(world.refresh().await.is_err());
            tokio::time::advance(Duration::from_millis(500)).await;
        }
        tokio::time::advance(SECOND * 2).await;
        assert!(world.get().await.is_err());
    }
}

impl World {
    /// Seconds until the first token expires.
    fn clock_left(&self) -> i64 {
        1_700_003_600 - self.clock.now().as_secs()
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_near_its_end_is_refreshed_by_whoever_reads_it() {
    let world = World::new().await;
    tokio::time::advance(SECOND * 3539).await;
    assert_eq!(world.get().await.unwrap(), "canary-at-1-end");
    tokio::time::advance(SECOND * 2).await;
    assert_eq!(world.get().await.unwrap(), "canary-at-2-end");
}

#[tokio::test(start_paused = true)]
async fn no_min_validity_can_force_a_refresh_of_a_young_token() {
    let world = World::new().await;
    tokio::time::advance(SECOND * 1799).await;
    let token = world.coordinator.token(&account(), Some(Duration::MAX)).await.unwrap();
    assert_eq!((access(&token).as_str(), world.provider.presentations()), ("canary-at-1-end", 0));
    tokio::time::advance(SECOND * 2).await;
    world.coordinator.token(&account(), Some(Duration::MAX)).await.unwrap();
    assert_eq!(world.provider.presentations(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_spent_is_tried_twice_more_and_then_left_to_the_cooldown() {
    let world = World::new().await;
    world.provider.script((0..3).map(|_| Step::Fail(Reply::NotSent("no route"))));
    let result = world.refresh().await;
    assert!(matches!(result, Err(RefreshError::Failed { failure: Failure { outcome: Outcome::NotSpent, .. }, .. })));
    assert_eq!(world.provider.presentations(), 3);
    assert_eq!(world.refresh_state().await.presented, None);
    assert_eq!(rate_limited(&world.refresh().await), 30);
    tokio::time::advance(COOLDOWN).await;
    assert!(world.refresh().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn retry_after_lengthens_the_cooldown() {
    let world = World::new().await;
    let busy = || {
        Step::Fail(Reply::Answered {
            status: 429,
            body: credproxy::provider::Body::Unreadable,
            retry_after: Some(SECOND * 120),
        })
    };
    world.provider.script([busy()]);
    assert!(matches!(world.refresh().await, Err(RefreshError::Failed { wait, .. }) if wait == SECOND * 120));
    assert_eq!((rate_limited(&world.refresh().await), world.provider.presentations()), (120, 1));
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_tried_once_more_when_a_new_token_was_asked_for() {
    let world = World::new().await;
    world.provider.script([lost()]);
    assert_eq!(world.refresh().await.unwrap(), "canary-at-2-end");
    assert_eq!((world.provider.presentations(), world.refresh_state().await.presented), (2, None));
}

#[tokio::test(start_paused = true)]
async fn further_lost_answers_never_latch_and_double_the_pause() {
    let world = World::new().await;
    world.provider.script((0..5).map(|_| lost()));
    let mut waits = Vec::new();
    for _ in 0..4 {
        match world.refresh().await {
            Err(RefreshError::Failed { wait, .. }) => waits.push(wait.as_secs()),
            other => panic!("{other:?}"),
        }
        tokio::time::advance(*[SECOND * 30, SECOND * 60, SECOND * 120, SECOND * 240].get(waits.len() - 1).unwrap())
            .await;
    }
    assert_eq!((waits, world.provider.presentations()), (vec![30, 60, 120, 240], 5));
    assert_eq!(world.refresh().await.unwrap(), "canary-at-2-end");
}

#[tokio::test(start_paused = true)]
async fn a_dead_grant_after_a_lost_answer_says_that_one_was_lost() {
    let world = World::new().await;
    world.provider.script([Step::RotateAndLose]);
    assert!(matches!(world.refresh().await, Err(RefreshError::Reauth { answer_lost: true, .. })));
    assert_eq!(world.refresh_state().await.dead.map(|dead| dead.answer_lost), Some(true));
}

#[tokio::test(start_paused = true)]
async fn ahead_of_time_a_lost_answer_is_not_tried_again_before_the_token_nears_its_end() {
    let world = World::with(Rules::default(), Duration::ZERO).await;
    world.provider.script([lost()]);
    tokio::time::advance(SECOND * 2000).await;
    let early = Some(SECOND * 1800);
    let get = async || access(&world.coordinator.token(&account(), early).await.unwrap());
    for _ in 0..10 {
        assert_eq!(get().await, "canary-at-1-end");
        tokio::time::advance(SECOND * 100).await;
    }
    assert_eq!(world.provider.presentations(), 1);
    tokio::time::advance(SECOND * 550).await;
    assert_eq!((get().await.as_str(), world.provider.presentations()), ("canary-at-2-end", 2));
}

#[tokio::test(start_paused = true)]
async fn within_the_providers_grace_a_lost_answer_is_won_back_at_once() {
    let world = World::with(Rules { reuse_grace: SECOND * 30, ..Rules::default() }, COOLDOWN).await;
    world.provider.script([lost()]);
    tokio::time::advance(SECOND * 2000).await;
    let token = world.coordinator.token(&account(), Some(SECOND * 1800)).await.unwrap();
    assert_eq!((access(&token).as_str(), world.provider.presentations()), ("canary-at-2-end", 2));
}

#[tokio::test(start_paused = true)]
async fn a_mark_left_by_a_crash_follows_the_rule_for_ambiguity() {
    let world = World::new().await;
    let record = world.store.inner.load(&account()).await.unwrap().unwrap();
    {
        let crashed = world.store.inner.second_owner();
        let mark = Presentation { at: Timestamp::from_secs(1_700_000_000), count: 1 };
        crashed.claim(&account(), record.revision, mark).await.unwrap();
    }
    let (_store, restarted) = world.second();
    tokio::time::advance(SECOND * 2000).await;
    let early = restarted.token(&account(), Some(SECOND * 1800)).await.unwrap();
    assert_eq!((access(&early).as_str(), world.provider.presentations()), ("canary-at-1-end", 0));
    world.provider.script([error(400, "invalid_grant")]);
    assert!(matches!(refresh(&restarted).await, Err(RefreshError::Reauth { answer_lost: true, .. })));
}

#[tokio::test(start_paused = true)]
async fn the_store_is_found_broken_before_the_token_is_spent() {
    let world = World::new().await;
    set(&world.store.no_claims, true);
    assert!(matches!(world.refresh().await, Err(RefreshError::Store(_))));
    assert_eq!((world.provider.presentations(), world.coordinator.health_problems().await.len()), (0, 1));
    set(&world.store.no_claims, false);
    assert!(world.refresh().await.is_ok());
    assert!(world.coordinator.health_problems().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_successor_that_cannot_be_saved_is_served_and_saved_when_the_store_heals() {
    let world = World::new().await;
    set(&world.store.no_saves, true);
    assert_eq!(world.refresh().await.unwrap(), "canary-at-2-end");
    tokio::time::sleep(SECOND * 60).await;
    assert_eq!(world.get().await.unwrap(), "canary-at-2-end");
    assert!(matches!(world.refresh().await, Err(RefreshError::Unsaved)));
    assert!(!world.coordinator.health_problems().await.is_empty());
    let (_store, second) = world.second();
    assert!(matches!(refresh(&second).await, Err(RefreshError::LeaseHeld)), "the lease is held all the while");
    set(&world.store.no_saves, false);
    tokio::time::sleep(SECOND * 2).await;
    assert!(world.coordinator.health_problems().await.is_empty());
    assert_eq!(world.store.inner.load(&account()).await.unwrap().unwrap().grant.version.generation, 2);
    assert_eq!(world.refresh().await.unwrap(), "canary-at-3-end");
    assert_eq!((world.provider.presentations(), world.provider.reuses()), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_does_not_end_before_one_more_try_to_save() {
    let world = World::new().await;
    set(&world.store.no_saves, true);
    world.refresh().await.unwrap();
    tokio::time::sleep(SECOND * 5).await;
    set(&world.store.no_saves, false);
    world.coordinator.shut_down().await;
    assert_eq!(world.store.inner.load(&account()).await.unwrap().unwrap().grant.version.generation, 2);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_with_a_store_that_stays_broken_ends_nevertheless() {
    let world = World::new().await;
    set(&world.store.no_saves, true);
    world.refresh().await.unwrap();
    tokio::time::timeout(SECOND * 15, world.coordinator.shut_down()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_waits_for_the_flight_and_starts_none() {
    let world = World::new().await;
    world.provider.shut();
    let mut tasks = JoinSet::new();
    spawn_refresh(&world.coordinator, &mut tasks);
    world.presented(1).await;
    let coordinator = world.coordinator.clone();
    let mut ending = JoinSet::new();
    ending.spawn(async move { coordinator.shut_down().await });
    tokio::task::yield_now().await;
    assert!(ending.try_join_next().is_none());
    world.provider.open();
    assert_eq!(all(tasks).await[0].as_deref().unwrap(), "canary-at-2-end");
    ending.join_next().await.unwrap().unwrap();
    tokio::time::advance(COOLDOWN).await;
    assert!(matches!(world.refresh().await, Err(RefreshError::ShuttingDown)));
}

#[tokio::test(start_paused = true)]
async fn a_grant_put_in_mid_flight_wins_and_the_late_result_is_dropped() {
    let world = World::new().await;
    world.provider.shut();
    let mut tasks = JoinSet::new();
    spawn_refresh(&world.coordinator, &mut tasks);
    world.presented(1).await;
    let other_chain = Scripted::new(Rules::default());
    let [_, _, replacement] = [other_chain.login(), other_chain.login(), other_chain.login()];
    world.coordinator.put(&account(), replacement, &IfMatch::Absent).await.unwrap();
    world.provider.open();
    assert_eq!(all(tasks).await[0].as_deref().unwrap(), "canary-at-3-end");
    let record = world.store.inner.load(&account()).await.unwrap().unwrap();
    assert_eq!(record.grant.version.generation, 1);
    assert!(world.provider.revoked.lock().unwrap().is_empty(), "revoking could kill the new login");
}

#[tokio::test(start_paused = true)]
async fn a_delete_waits_for_the_flight() {
    let world = World::new().await;
    world.provider.shut();
    let mut tasks = JoinSet::new();
    spawn_refresh(&world.coordinator, &mut tasks);
    world.presented(1).await;
    let coordinator = world.coordinator.clone();
    let mut deleting = JoinSet::new();
    deleting.spawn(async move { coordinator.delete(&account(), &IfMatch::Absent, true).await });
    tokio::task::yield_now().await;
    assert!(deleting.try_join_next().is_none());
    world.provider.open();
    assert!(deleting.join_next().await.unwrap().unwrap().unwrap());
    assert_eq!(*world.provider.revoked.lock().unwrap(), ["canary-rt-2-end"]);
    assert!(matches!(world.get().await, Err(RefreshError::NotFound)));
}

#[tokio::test(start_paused = true)]
async fn what_comes_late_after_a_delete_elsewhere_is_revoked() {
    let world = World::new().await;
    world.provider.shut();
    let mut tasks = JoinSet::new();
    spawn_refresh(&world.coordinator, &mut tasks);
    world.presented(1).await;
    world.second().1.delete(&account(), &IfMatch::Absent, false).await.unwrap();
    world.provider.open();
    assert!(matches!(all(tasks).await[0], Err(RefreshError::NotFound)));
    assert_eq!(*world.provider.revoked.lock().unwrap(), ["canary-rt-2-end"]);
}

#[tokio::test(start_paused = true)]
async fn while_another_daemon_refreshes_the_valid_token_is_served() {
    let world = World::new().await;
    let (_store, second) = world.second();
    world.provider.shut();
    let mut tasks = JoinSet::new();
    spawn_refresh(&second, &mut tasks);
    world.presented(1).await;
    tokio::time::advance(SECOND * 2000).await;
    let read = world.coordinator.token(&account(), Some(SECOND * 1800)).await.unwrap();
    assert_eq!(access(&read), "canary-at-1-end");
    assert!(matches!(world.refresh().await, Err(RefreshError::LeaseHeld)));
    let mut waiting = JoinSet::new();
    spawn_refresh(&world.coordinator, &mut waiting);
    tokio::time::sleep(SECOND).await;
    world.provider.open();
    assert_eq!(all(waiting).await[0].as_deref().unwrap(), "canary-at-2-end");
    assert_eq!(world.provider.presentations(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_dies_in_mid_flight_leaves_the_lease_free() {
    let world = World::new().await;
    let record = world.store.inner.load(&account()).await.unwrap().unwrap();
    let dying = world.store.inner.second_owner();
    let mark = Presentation { at: Timestamp::from_secs(1_700_000_000), count: 1 };
    dying.claim(&account(), record.revision, mark).await.unwrap();
    assert!(matches!(world.refresh().await, Err(RefreshError::LeaseHeld)));
    drop(dying);
    assert_eq!(world.refresh().await.unwrap(), "canary-at-2-end");
}

#[tokio::test(start_paused = true)]
async fn the_wall_clock_may_jump_by_years_both_ways() {
    const YEAR: i64 = 365 * 86_400;
    for jump in [YEAR, -YEAR, i64::MAX / 4000, -1_700_000_000 - YEAR] {
        let world = World::new().await;
        world.provider.shut();
        let mut tasks = JoinSet::new();
        spawn_refresh(&world.coordinator, &mut tasks);
        world.presented(1).await;
        world.clock.jump(jump);
        world.provider.open();
        assert!(all(tasks).await[0].is_ok(), "{jump}");
        world.clock.jump(-jump);
        // By one of the clocks the token had ended when it came: nobody is kept waiting for another.
        assert!(world.refresh().await.is_ok(), "{jump}");
        assert_eq!(world.provider.reuses(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn five_refusals_with_an_expired_token_ask_for_a_login_but_do_not_latch() {
    let world = World::with(Rules::default(), Duration::ZERO).await;
    world.provider.script((0..5).map(|_| error(400, "odd")));
    tokio::time::advance(SECOND * 3600).await;
    for _ in 0..4 {
        assert!(matches!(world.refresh().await, Err(RefreshError::Failed { .. })));
    }
    assert!(matches!(world.refresh().await, Err(RefreshError::Reauth { .. })));
    assert_eq!(world.state().await, AccountState::ReauthRequired);
    assert!(world.refresh().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_configuration_error_rests_until_the_configuration_is_read_again() {
    let world = World::new().await;
    world.provider.script([error(401, "invalid_client")]);
    assert!(matches!(world.refresh().await, Err(RefreshError::Failed { wait, .. }) if wait == SECOND * 300));
    tokio::time::advance(SECOND * 60).await;
    assert_eq!(rate_limited(&world.refresh().await), 240);
    assert_eq!(refresh(&world.second().1).await.unwrap(), "canary-at-2-end");
}

#[tokio::test(start_paused = true)]
async fn if_match_refreshes_only_the_token_that_was_found_bad() {
    let world = World::with(Rules::default(), Duration::ZERO).await;
    let first = world.coordinator.token(&account(), None).await.unwrap().tag.clone();
    let matching = |tag: &str| IfMatch::Tags(vec![Tag::parse(tag)]);
    let ask =
        async |if_match: IfMatch| world.coordinator.refresh(&account(), &if_match).await.map(|token| access(&token));
    assert_eq!(ask(matching(&first)).await.unwrap(), "canary-at-2-end");
    assert_eq!(ask(matching(&first)).await.unwrap(), "canary-at-2-end", "it was replaced already");
    assert_eq!(ask(IfMatch::Any).await.unwrap(), "canary-at-3-end");
    let other = first.replacen("corp/default", "corp/other", 1);
    assert!(matches!(ask(matching(&other)).await, Err(RefreshError::PreconditionFailed)));
    assert!(matches!(ask(matching("garbage")).await, Err(RefreshError::PreconditionFailed)));
    assert_eq!(world.provider.presentations(), 2);
    tokio::time::advance(SECOND * 3600).await;
    assert_eq!(ask(matching(&first)).await.unwrap(), "canary-at-4-end", "the current token has expired");
}

#[tokio::test(start_paused = true)]
async fn an_earlier_tag_is_answered_even_by_a_latched_grant() {
    let world = World::with(Rules::default(), Duration::ZERO).await;
    let first = world.coordinator.token(&account(), None).await.unwrap().tag.clone();
    world.refresh().await.unwrap();
    world.provider.script([error(400, "invalid_grant")]);
    assert!(world.refresh().await.is_err());
    let if_match = IfMatch::Tags(vec![Tag::parse(&first)]);
    assert_eq!(access(&world.coordinator.refresh(&account(), &if_match).await.unwrap()), "canary-at-2-end");
}

#[tokio::test(start_paused = true)]
async fn put_and_delete_honour_if_match() {
    let world = World::new().await;
    let stale = IfMatch::Tags(vec![Tag::parse(&world.coordinator.token(&account(), None).await.unwrap().tag)]);
    world.refresh().await.unwrap();
    let put = world.coordinator.put(&account(), world.provider.login(), &stale).await;
    assert!(matches!(put, Err(RefreshError::PreconditionFailed)));
    let deleted = world.coordinator.delete(&account(), &stale, false).await;
    assert!(matches!(deleted, Err(RefreshError::PreconditionFailed)));
    assert!(world.coordinator.delete(&account(), &IfMatch::Any, false).await.is_ok());
    let put = world.coordinator.put(&account(), world.provider.login(), &IfMatch::Any).await;
    assert!(matches!(put, Err(RefreshError::PreconditionFailed)), "there is nothing to match");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_be_read_hides_no_token_that_was_seen() {
    let world = World::new().await;
    assert!(world.get().await.is_ok());
    set(&world.store.no_reads, true);
    // Another owner's write makes what is remembered old.
    world.second().1.put(&"corp/other".parse().unwrap(), world.provider.login(), &IfMatch::Absent).await.unwrap();
    assert_eq!(world.get().await.unwrap(), "canary-at-1-end");
    assert!(matches!(world.refresh().await, Err(RefreshError::Store(_))));
    assert_eq!(world.provider.presentations(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_ends_with_the_change_or_with_its_time() {
    let world = World::new().await;
    let tag = world.coordinator.token(&account(), None).await.unwrap().tag.clone();
    let start = world.coordinator.clone();
    tokio::time::timeout(SECOND * 11, start.changed(&account(), &tag, SECOND * 10)).await.unwrap();
    let mut polling = JoinSet::new();
    let (coordinator, seen) = (world.coordinator.clone(), tag.clone());
    polling.spawn(async move { coordinator.changed(&account(), &seen, SECOND * 3600).await });
    tokio::task::yield_now().await;
    assert!(polling.try_join_next().is_none());
    world.refresh().await.unwrap();
    tokio::time::timeout(SECOND, polling.join_next()).await.unwrap();
}

/// Lets every task go as far as it can without time passing.
async fn settle_down() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_wants_another_token_is_not_given_his_own_by_a_flight_that_others_began() {
    let world = World::with(Rules::default(), Duration::ZERO).await;
    let (store, late) = world.second();
    set(&store.deaf, true);
    let seen = late.token(&account(), None).await.unwrap();
    world.refresh().await.unwrap();
    // A flight for the first token finds the second one, and is about to answer with it.
    store.hold(StoreCall::Load);
    let mut tasks = JoinSet::new();
    spawn_refresh(&late, &mut tasks);
    while !store.holds() {
        tokio::task::yield_now().await;
    }
    set(&store.deaf, false);
    tokio::time::advance(COOLDOWN).await;
    let second = late.peek(&account()).await.unwrap();
    assert_ne!(second.tag, seen.tag);
    let found_bad = IfMatch::Tags(vec![Tag::parse(&second.tag)]);
    let mut asking = JoinSet::new();
    asking.spawn(async move { late.refresh(&account(), &found_bad).await.map(|token| access(&token)) });
    settle_down().await;
    store.release();
    assert_eq!(all(tasks).await[0].as_deref().unwrap(), "canary-at-2-end");
    assert_eq!(all(asking).await[0].as_deref().unwrap(), "canary-at-3-end");
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_lost_its_lease_does_not_pass_the_old_token_off_as_a_new_one() {
    let world = World::new().await;
    world.provider.script([error(400, "odd")]);
    set(&world.store.usurped, true);
    assert!(matches!(world.refresh().await, Err(RefreshError::LeaseHeld)));
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_a_flight_found_replaced_is_served_no_more() {
    let world = World::new().await;
    let (store, late) = world.second();
    set(&store.deaf, true);
    late.token(&account(), None).await.unwrap();
    world.provider.shut();
    let mut tasks = JoinSet::new();
    spawn_refresh(&late, &mut tasks);
    world.presented(1).await;
    let replacement = Scripted::new(Rules::default());
    drop(replacement.login());
    world.coordinator.put(&account(), replacement.login(), &IfMatch::Absent).await.unwrap();
    world.provider.open();
    assert_eq!(all(tasks).await[0].as_deref().unwrap(), "canary-at-2-end");
    assert_eq!(access(&late.peek(&account()).await.unwrap()), "canary-at-2-end");
    let version = late.peek(&account()).await.unwrap().token.version;
    assert_eq!(version, world.store.inner.load(&account()).await.unwrap().unwrap().grant.version);
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_a_put_overtook_presents_nothing_of_the_new_grant() {
    let world = World::new().await;
    let record = world.store.inner.load(&account()).await.unwrap().unwrap();
    let elsewhere = world.store.inner.second_owner();
    let mark = Presentation { at: Timestamp::from_secs(1_700_000_000), count: 1 };
    elsewhere.claim(&account(), record.revision, mark).await.unwrap();
    let mut tasks = JoinSet::new();
    spawn_refresh(&world.coordinator, &mut tasks);
    settle_down().await;
    world.coordinator.put(&account(), world.expired_login(), &IfMatch::Absent).await.unwrap();
    world.provider.shut();
    spawn_refresh(&world.coordinator, &mut tasks);
    world.presented(1).await;
    tokio::time::sleep(SECOND).await;
    assert_eq!(world.provider.presentations(), 1);
    world.provider.open();
    for result in all(tasks).await {
        assert_eq!(result.unwrap(), "canary-at-3-end");
    }
    assert_eq!(world.provider.presentations(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_put_that_returns_late_hides_no_flight_of_a_later_grant() {
    let world = World::new().await;
    world.provider.shut();
    let mut puts = JoinSet::new();
    let put = |puts: &mut JoinSet<()>, issued| {
        let coordinator = world.coordinator.clone();
        puts.spawn(async move { drop(coordinator.put(&account(), issued, &IfMatch::Absent).await.unwrap()) });
    };
    world.store.hold(StoreCall::Put);
    put(&mut puts, world.provider.login());
    world.held().await;
    put(&mut puts, world.provider.login());
    settle_down().await;
    let mut tasks = JoinSet::new();
    spawn_refresh(&world.coordinator, &mut tasks);
    settle_down().await;
    world.store.release();
    while puts.join_next().await.is_some() {}
    spawn_refresh(&world.coordinator, &mut tasks);
    world.presented(1).await;
    settle_down().await;
    assert_eq!(world.provider.presentations(), 1);
    world.provider.open();
    let mut tokens: Vec<_> = all(tasks).await.into_iter().map(Result::unwrap).collect();
    tokens.sort();
    assert_eq!(tokens, ["canary-at-3-end", "canary-at-4-end"], "the replacing grant's, and a new one");
    assert_eq!(world.provider.presentations(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_a_flight_found_deleted_is_served_no_more() {
    let world = World::new().await;
    let (store, late) = world.second();
    set(&store.deaf, true);
    late.token(&account(), None).await.unwrap();
    world.coordinator.delete(&account(), &IfMatch::Absent, false).await.unwrap();
    tokio::time::advance(SECOND * 2000).await;
    let read = late.token(&account(), Some(SECOND * 1800)).await;
    assert!(matches!(read, Err(RefreshError::NotFound)), "{read:?}");
}

#[tokio::test(start_paused = true)]
async fn a_mark_that_lies_in_the_future_is_in_no_grace() {
    let world = World::with(Rules { reuse_grace: SECOND * 30, ..Rules::default() }, COOLDOWN).await;
    let record = world.store.inner.load(&account()).await.unwrap().unwrap();
    let mark = Presentation { at: Timestamp::from_secs(1_800_000_000), count: 1 };
    world.store.inner.second_owner().claim(&account(), record.revision, mark).await.unwrap();
    tokio::time::advance(SECOND * 2000).await;
    world.coordinator.token(&account(), Some(SECOND * 1800)).await.unwrap();
    assert_eq!(world.provider.presentations(), 0);
}

#[tokio::test(start_paused = true)]
async fn no_attempt_starts_once_shutdown_has_begun() {
    let world = World::new().await;
    world.store.hold(StoreCall::Claim);
    let mut tasks = JoinSet::new();
    spawn_refresh(&world.coordinator, &mut tasks);
    world.held().await;
    let coordinator = world.coordinator.clone();
    let mut ending = JoinSet::new();
    ending.spawn(async move { coordinator.shut_down().await });
    settle_down().await;
    world.store.release();
    assert!(matches!(all(tasks).await[0], Err(RefreshError::ShuttingDown)));
    assert_eq!((world.provider.presentations(), world.refresh_state().await.presented), (0, None));
    assert_eq!(refresh(&world.second().1).await.unwrap(), "canary-at-2-end", "the lease is free");
}

#[tokio::test(start_paused = true)]
async fn no_attempt_starts_after_the_first_15_seconds() {
    let world = World::new().await;
    world.store.hold(StoreCall::Claim);
    let mut tasks = JoinSet::new();
    spawn_refresh(&world.coordinator, &mut tasks);
    world.held().await;
    tokio::time::advance(SECOND * 15).await;
    world.store.release();
    assert!(matches!(all(tasks).await[0], Err(RefreshError::Store(_))));
    assert_eq!((world.provider.presentations(), world.refresh_state().await.presented), (0, None));
    assert_eq!(refresh(&world.second().1).await.unwrap(), "canary-at-2-end", "the lease is free");
}

#[tokio::test(start_paused = true)]
async fn a_retry_whose_claim_took_too_long_is_not_sent() {
    let world = World::new().await;
    world.provider.script([error(503, "odd")]);
    world.provider.shut();
    let mut tasks = JoinSet::new();
    spawn_refresh(&world.coordinator, &mut tasks);
    world.presented(1).await;
    world.store.hold(StoreCall::Claim);
    world.provider.open();
    while !world.store.holds() {
        tokio::time::sleep(SECOND).await;
    }
    tokio::time::advance(SECOND * 15).await;
    world.store.release();
    assert!(matches!(all(tasks).await[0], Err(RefreshError::Failed { .. })));
    assert_eq!((world.provider.presentations(), world.refresh_state().await.presented), (1, None));
}

#[tokio::test(start_paused = true)]
async fn made_up_names_take_no_memory() {
    let world = World::new().await;
    let made_up = |number: u32| -> Account { format!("corp/made-up-{number}").parse().unwrap() };
    let remembered = || format!("{:?}", world.coordinator).matches("made-up").count();
    for number in 0..10 {
        assert!(matches!(world.coordinator.peek(&made_up(number)).await, Err(RefreshError::NotFound)));
    }
    assert_eq!(remembered(), 0, "of one caller");
    let mut asking = JoinSet::new();
    for step in 0..10 {
        world.store.hold(StoreCall::Load);
        let coordinator = world.coordinator.clone();
        asking.spawn(async move { drop(coordinator.peek(&made_up(step)).await) });
    }
    world.held().await;
    asking.shutdown().await;
    assert_eq!(remembered(), 0, "of callers that hung up");
    set(&world.store.no_reads, true);
    assert!(world.coordinator.peek(&made_up(0)).await.is_err());
    assert_eq!(remembered(), 0, "while the store cannot be read");
    set(&world.store.no_reads, false);
    assert!(world.coordinator.put(&made_up(0), world.provider.login(), &IfMatch::Any).await.is_err());
    assert_eq!(remembered(), 0, "of a put that was refused");
    assert!(world.coordinator.delete(&made_up(0), &IfMatch::Absent, false).await.is_err());
    assert_eq!(remembered(), 0, "of a delete");
}

impl World {
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

#[tokio::test(start_paused = true)]
async fn a_mark_goes_with_the_success_and_counts_until_then() {
    let world = World::with(Rules::default(), Duration::ZERO).await;
    world.crash_in_mid_flight(1).await;
    world.provider.script([lost()]);
    assert!(world.refresh().await.is_err());
    assert_eq!(world.refresh_state().await.presented.map(|mark| mark.count), Some(2), "the crash's and one more");
    assert_eq!(world.refresh().await.unwrap(), "canary-at-2-end");
    assert_eq!(world.refresh_state().await.presented, None);
    world.provider.script([lost(), lost()]);
    assert!(world.refresh().await.is_err());
    assert_eq!(world.refresh_state().await.presented.map(|mark| mark.count), Some(2), "two tries in one flight");
}

#[tokio::test(start_paused = true)]
async fn a_dead_grant_has_no_presentation_in_doubt() {
    let world = World::new().await;
    world.provider.script([lost(), error(400, "invalid_grant")]);
    assert!(matches!(world.refresh().await, Err(RefreshError::Reauth { answer_lost: true, .. })));
    assert_eq!(world.refresh_state().await.presented, None);
}

#[tokio::test(start_paused = true)]
async fn what_was_not_spent_after_a_lost_answer_leaves_the_doubt() {
    let world = World::new().await;
    let unsent = || Step::Fail(Reply::NotSent("no route"));
    world.provider.script([lost(), unsent(), unsent(), error(400, "odd")]);
    assert!(matches!(world.refresh().await, Err(RefreshError::Failed { .. })));
    assert!(world.refresh_state().await.presented.is_some());
    tokio::time::advance(COOLDOWN).await;
    world.provider.script([error(400, "invalid_grant")]);
    assert!(matches!(world.refresh().await, Err(RefreshError::Reauth { answer_lost: true, .. })));
}

#[tokio::test(start_paused = true)]
async fn a_flight_makes_one_second_try_however_the_others_end() {
    let world = World::new().await;
    world.provider.script([lost(), Step::Fail(Reply::NotSent("no route")), lost()]);
    assert!(matches!(world.refresh().await, Err(RefreshError::Failed { .. })));
    assert_eq!(world.provider.presentations(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_flight_heeds_what_another_daemon_marked_meanwhile() {
    for (act, is_right) in [
        (error(400, "odd"), (|error| matches!(error, RefreshError::RateLimited { .. })) as fn(&RefreshError) -> bool),
        (error(400, "invalid_grant"), |error| matches!(error, RefreshError::Reauth { .. })),
    ] {
        let world = World::new().await;
        let (store, late) = world.second();
        set(&store.deaf, true);
        late.token(&account(), None).await.unwrap();
        world.provider.script([act]);
        assert!(world.refresh().await.is_err());
        let error = refresh(&late).await.unwrap_err();
        assert!(is_right(&error), "{error:?}");
        assert_eq!(world.provider.presentations(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flight_finds_that_the_grant_can_no_longer_be_refreshed() {
    let world = World::new().await;
    let (store, late) = world.second();
    set(&store.deaf, true);
    late.token(&account(), None).await.unwrap();
    let bare = Issued { refresh_token: None, ..world.expired_login() };
    world.coordinator.put(&account(), bare, &IfMatch::Absent).await.unwrap();
    assert!(matches!(refresh(&late).await, Err(RefreshError::NotRefreshable)));
}

#[tokio::test(start_paused = true)]
async fn a_dead_or_resting_grant_costs_no_look_into_the_store() {
    for (act, dead) in [(error(400, "invalid_grant"), true), (error(400, "odd"), false)] {
        let world = World::new().await;
        world.provider.script([act]);
        assert!(world.refresh().await.is_err());
        set(&world.store.no_reads, true);
        let error = world.refresh().await.unwrap_err();
        assert_eq!(matches!(error, RefreshError::Reauth { .. }), dead, "{error:?}");
        assert_eq!(matches!(error, RefreshError::RateLimited { .. }), !dead, "{error:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_grant_lacks_is_said_before_if_match_is_looked_at() {
    let world = World::new().await;
    let garbage = IfMatch::Tags(vec![Tag::parse("garbage")]);
    let bare = Issued { refresh_token: None, ..world.provider.login() };
    world.coordinator.put(&account(), bare, &IfMatch::Absent).await.unwrap();
    assert!(matches!(world.coordinator.refresh(&account(), &garbage).await, Err(RefreshError::NotRefreshable)));
    let stranger: Account = "stranger".parse().unwrap();
    assert!(matches!(world.coordinator.refresh(&stranger, &garbage).await, Err(RefreshError::NotFound)));
    world.coordinator.put(&stranger, world.provider.login(), &IfMatch::Absent).await.unwrap();
    assert!(matches!(world.coordinator.refresh(&stranger, &garbage).await, Err(RefreshError::NotConfigured)));
}

#[tokio::test(start_paused = true)]
async fn who_wants_a_new_token_makes_a_flight_under_way_want_one() {
    let world = World::new().await;
    world.provider.script([lost()]);
    world.provider.shut();
    tokio::time::advance(SECOND * 2000).await;
    let mut tasks = JoinSet::new();
    let coordinator = world.coordinator.clone();
    tasks.spawn(async move { coordinator.token(&account(), Some(SECOND * 1800)).await.map(|token| access(&token)) });
    world.presented(1).await;
    spawn_refresh(&world.coordinator, &mut tasks);
    settle_down().await;
    world.provider.open();
    for result in all(tasks).await {
        assert_eq!(result.unwrap(), "canary-at-2-end");
    }
    assert_eq!(world.provider.presentations(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_reader_does_not_wait_for_another_daemons_lease() {
    let world = World::new().await;
    let record = world.store.inner.load(&account()).await.unwrap().unwrap();
    let elsewhere = world.store.inner.second_owner();
    elsewhere.claim(&account(), record.revision, Presentation { at: world.clock.now(), count: 1 }).await.unwrap();
    tokio::time::advance(SECOND * 3550).await;
    let start = world.clock.monotonic();
    assert_eq!(world.get().await.unwrap(), "canary-at-1-end");
    assert_eq!(world.clock.monotonic(), start);
    let refused = world.refresh().await;
    assert!(matches!(refused, Err(RefreshError::LeaseHeld)));
    assert!(world.clock.monotonic().since(start) < SECOND * 6, "and nobody waits for long");
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_cannot_be_saved_is_heeded_and_saved_when_the_store_heals() {
    let world = World::new().await;
    set(&world.store.no_saves, true);
    world.provider.script([error(400, "invalid_grant")]);
    for _ in 0..3 {
        assert!(matches!(world.refresh().await, Err(RefreshError::Reauth { .. })));
        tokio::time::sleep(COOLDOWN).await;
    }
    assert_eq!((world.get().await.unwrap().as_str(), world.provider.presentations()), ("canary-at-1-end", 1));
    set(&world.store.no_saves, false);
    tokio::time::sleep(SECOND * 2).await;
    assert!(world.refresh_state().await.dead.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_tokens_life_counts_from_when_it_was_asked_for() {
    let world = World::new().await;
    world.provider.shut();
    let mut tasks = JoinSet::new();
    let asked_at = world.clock.now();
    spawn_refresh(&world.coordinator, &mut tasks);
    world.presented(1).await;
    tokio::time::advance(SECOND * 10).await;
    world.provider.open();
    assert!(all(tasks).await[0].is_ok());
    let token = &world.coordinator.peek(&account()).await.unwrap().token;
    assert_eq!((token.issued_at, token.expires_at), (asked_at, Some(asked_at.plus(SECOND * 3600))));
}

#[tokio::test(start_paused = true)]
async fn a_tokens_life_counts_from_when_it_was_asked_for_though_the_machine_slept() {
    const ASLEEP: i64 = 7200;
    for wrong_before in [0, ASLEEP] {
        let world = World::new().await;
        world.provider.shut();
        let mut tasks = JoinSet::new();
        world.clock.jump(wrong_before);
        let asked_at = world.clock.now();
        spawn_refresh(&world.coordinator, &mut tasks);
        world.presented(1).await;
        // The wall clock moves alone: ahead while the machine sleeps, back when it was wrong.
        world.clock.jump(ASLEEP - 2 * wrong_before);
        world.provider.open();
        assert!(all(tasks).await[0].is_ok());
        let token = world.coordinator.peek(&account()).await.unwrap().token.clone();
        assert_eq!(token.issued_at, asked_at.min(world.clock.now()), "{wrong_before}");
        let fresh = if wrong_before == 0 { "canary-at-3-end" } else { "canary-at-2-end" };
        assert_eq!(world.get().await.unwrap(), fresh, "{wrong_before}");
    }
}

/// A reader who waits for a change, and others who find nothing, are in one slot.
#[tokio::test(start_paused = true)]
async fn who_waits_for_a_change_hears_of_it_though_others_found_nothing() {
    let world = World::new().await;
    let tag = world.coordinator.peek(&account()).await.unwrap().tag.to_string();
    let (coordinator, mut waiting) = (world.coordinator.clone(), JoinSet::new());
    waiting.spawn(async move { coordinator.changed(&account(), &tag, SECOND * 3600).await });
    settle_down().await;
    world.second().1.delete(&account(), &IfMatch::Absent, false).await.unwrap();
    assert!(matches!(world.get().await, Err(RefreshError::NotFound)));
    let start = world.clock.monotonic();
    world.coordinator.put(&account(), world.provider.login(), &IfMatch::Absent).await.unwrap();
    waiting.join_all().await;
    assert_eq!(world.clock.monotonic().since(start), Duration::ZERO, "it was not told, and looked again");
}

#[tokio::test(start_paused = true)]
async fn a_grant_replaced_between_two_tries_is_not_tried() {
    let world = World::new().await;
    world.provider.script([error(503, "odd")]);
    let mut tasks = JoinSet::new();
    spawn_refresh(&world.coordinator, &mut tasks);
    world.presented(1).await;
    settle_down().await;
    world.second().1.put(&account(), world.provider.login(), &IfMatch::Absent).await.unwrap();
    assert_eq!(all(tasks).await[0].as_deref().unwrap(), "canary-at-2-end");
    assert_eq!(world.provider.presentations(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_breaks_between_two_tries_ends_the_tries() {
    let world = World::new().await;
    world.provider.script([error(503, "odd")]);
    let mut tasks = JoinSet::new();
    spawn_refresh(&world.coordinator, &mut tasks);
    world.presented(1).await;
    settle_down().await;
    set(&world.store.no_claims, true);
    assert!(matches!(all(tasks).await[0], Err(RefreshError::Failed { .. })));
    assert_eq!(world.provider.presentations(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_past_the_end_of_the_flight_is_not_waited_for() {
    let world = World::new().await;
    let retry_after = Some(SECOND * 20);
    let busy = Reply::Answered { status: 429, body: credproxy::provider::Body::Unreadable, retry_after };
    world.provider.script([Step::Fail(busy)]);
    let start = world.clock.monotonic();
    assert!(world.refresh().await.is_err());
    assert_eq!(world.clock.monotonic(), start);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_shuts_down_takes_no_lease() {
    let world = World::new().await;
    world.coordinator.shut_down().await;
    let before = world.revision().await;
    assert!(matches!(world.refresh().await, Err(RefreshError::ShuttingDown)));
    assert_eq!((world.revision().await, world.get().await.unwrap().as_str()), (before, "canary-at-1-end"));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_cuts_the_pause_between_two_tries_short() {
    let world = World::new().await;
    world.provider.script([error(503, "odd")]);
    let mut tasks = JoinSet::new();
    spawn_refresh(&world.coordinator, &mut tasks);
    world.presented(1).await;
    settle_down().await;
    let start = world.clock.monotonic();
    world.coordinator.shut_down().await;
    assert!(matches!(all(tasks).await[0], Err(RefreshError::Failed { .. })));
    assert_eq!((world.clock.monotonic(), world.provider.presentations()), (start, 1));
}

#[tokio::test(start_paused = true)]
async fn a_put_is_carried_out_when_its_caller_hangs_up() {
    let world = World::new().await;
    world.store.hold(StoreCall::Put);
    let (coordinator, login) = (world.coordinator.clone(), world.provider.login());
    let mut putting = JoinSet::new();
    putting.spawn(async move { drop(coordinator.put(&account(), login, &IfMatch::Absent).await) });
    world.held().await;
    putting.shutdown().await;
    world.store.release();
    settle_down().await;
    assert_eq!(access(&world.coordinator.peek(&account()).await.unwrap()), "canary-at-2-end");
}

#[tokio::test(start_paused = true)]
async fn a_mark_left_by_a_crash_keeps_no_reader_of_an_expired_token_waiting() {
    let world = World::new().await;
    world.coordinator.put(&account(), world.expired_login(), &IfMatch::Absent).await.unwrap();
    world.crash_in_mid_flight(1).await;
    assert_eq!(world.get().await.unwrap(), "canary-at-3-end");
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_panics_lands() {
    let world = World::new().await;
    world.provider.script([Step::Panic]);
    assert!(matches!(world.refresh().await, Err(RefreshError::Internal)));
    assert_eq!(world.refresh().await.unwrap(), "canary-at-2-end");
}

#[tokio::test(start_paused = true)]
async fn what_was_read_before_a_change_is_not_served_after_it() {
    let world = World::new().await;
    for change in ["put", "refresh"] {
        world.log_in_elsewhere().await;
        world.store.hold(StoreCall::Load);
        let coordinator = world.coordinator.clone();
        let mut reading = JoinSet::new();
        reading.spawn(async move { coordinator.peek(&account()).await.map(|token| token.token.version) });
        world.held().await;
        if change == "put" {
            world.log_in().await;
        } else {
            world.refresh().await.unwrap();
        }
        world.store.release();
        let version = world.store.inner.load(&account()).await.unwrap().unwrap().grant.version;
        assert_eq!(reading.join_next().await.unwrap().unwrap().unwrap(), version, "{change}");
        assert_eq!(world.coordinator.peek(&account()).await.unwrap().token.version, version, "{change}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_successor_that_was_not_saved_before_the_grant_was_deleted_is_revoked() {
    let world = World::new().await;
    set(&world.store.no_saves, true);
    world.refresh().await.unwrap();
    world.second().1.delete(&account(), &IfMatch::Absent, false).await.unwrap();
    set(&world.store.no_saves, false);
    tokio::time::sleep(SECOND * 2).await;
    assert_eq!(*world.provider.revoked.lock().unwrap(), ["canary-rt-2-end"]);
    assert!(matches!(world.get().await, Err(RefreshError::NotFound)));
}

#[tokio::test(start_paused = true)]
async fn a_grant_put_before_the_successor_was_saved_wins() {
    for here in [true, false] {
        let world = World::new().await;
        set(&world.store.no_saves, true);
        world.refresh().await.unwrap();
        if here {
            set(&world.store.no_saves, false);
            world.log_in().await;
        } else {
            world.log_in_elsewhere().await;
            set(&world.store.no_saves, false);
        }
        tokio::time::sleep(SECOND * 2).await;
        assert_eq!(world.get().await.unwrap(), "canary-at-3-end");
        assert_eq!(world.refresh().await.unwrap(), "canary-at-4-end");
        assert!(world.provider.revoked.lock().unwrap().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_of_another_daemons_is_refreshed_too() {
    let world = World::new().await;
    let (store, late) = world.second();
    set(&store.deaf, true);
    late.token(&account(), None).await.unwrap();
    world.provider.lifetime.store(1, std::sync::atomic::Ordering::SeqCst);
    world.refresh().await.unwrap();
    tokio::time::advance(COOLDOWN).await;
    assert_eq!(refresh(&late).await.unwrap(), "canary-at-3-end");
}
