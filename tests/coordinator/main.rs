//! The coordinator, driven through its own interface with a clock that stands still: section 3 of the design.

#![cfg(test)]

use std::{sync::Arc, time::Duration};

use credproxy::{
    account::Account,
    provider::{Provider, Providers, Reply, Rules},
    refresh::{
        AccountState, Coordinator, RefreshError, Snapshot,
        condition::{IfMatch, Tag},
        outcome::Failure,
    },
    store::{Outcome, Presented, Store as _, memory::Memory},
};
use serde_json::Value;
use tokio::task::JoinSet;

use fakes::{Act, Frail, Scripted, WoundClock, error, lost, set};

mod fakes;

const COOLDOWN: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);

/// One account, its provider and its store, and a coordinator on them.
struct World {
    clock: Arc<WoundClock>,
    provider: Arc<Scripted>,
    store: Arc<Frail<Memory>>,
    coordinator: Coordinator,
}

impl World {
    async fn new() -> Self {
        Self::with(Rules::default(), COOLDOWN).await
    }

    async fn with(rules: Rules, cooldown: Duration) -> Self {
        let (clock, provider) = (WoundClock::new(), Scripted::new(rules));
        let store = Frail::new(Memory::new().unwrap());
        let coordinator = coordinator(&store, &provider, &clock, cooldown);
        let world = Self { clock, provider, store, coordinator };
        world.log_in().await;
        world
    }

    async fn log_in(&self) {
        self.coordinator.put(&account(), self.provider.login(), &IfMatch::Absent).await.unwrap();
    }

    /// Another daemon on the same store.
    fn second(&self) -> (Arc<Frail<Memory>>, Coordinator) {
        let store = Frail::new(self.store.inner.second_owner());
        let coordinator = coordinator(&store, &self.provider, &self.clock, COOLDOWN);
        (store, coordinator)
    }

    async fn refresh(&self) -> Result<String, RefreshError> {
        refresh(&self.coordinator).await
    }

    async fn get(&self) -> Result<String, RefreshError> {
        self.coordinator.token(&account(), None).await.map(|snapshot| access(&snapshot))
    }

    async fn marks(&self) -> credproxy::store::Marks {
        self.store.inner.load(&account()).await.unwrap().unwrap().marks
    }

    async fn state(&self) -> AccountState {
        self.coordinator.list().await.unwrap()[0].state
    }

    /// Waits until the provider has a presentation in its hands.
    async fn presented(&self, count: usize) {
        while self.provider.presentations() < count {
            tokio::task::yield_now().await;
        }
    }
}

fn coordinator(
    store: &Arc<Frail<Memory>>,
    provider: &Arc<Scripted>,
    clock: &Arc<WoundClock>,
    cooldown: Duration,
) -> Coordinator {
    let provider: Arc<dyn Provider> = Arc::<Scripted>::clone(provider);
    let providers: Providers = [("corp".parse().unwrap(), provider)].into_iter().collect();
    Coordinator::new(Arc::<Frail<Memory>>::clone(store), providers, Arc::<WoundClock>::clone(clock), cooldown)
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
    assert!(matches!(world.refresh().await, Err(RefreshError::Reauth { answer_lost: false })));
    tokio::time::advance(SECOND * 3600 * 24).await;
    assert!(matches!(world.refresh().await, Err(RefreshError::Reauth { .. })));
    assert!(matches!(refresh(&world.second().1).await, Err(RefreshError::Reauth { .. })));
    assert_eq!((world.provider.presentations(), world.state().await), (1, AccountState::ReauthRequired));
    world.log_in().await;
    assert_eq!(world.refresh().await.unwrap(), "canary-at-3-end");
}

#[tokio::test(start_paused = true)]
async fn a_valid_token_outlives_every_kind_of_failure_to_its_last_second() {
    let failures: [fn() -> Act; 6] = [
        || error(400, "invalid_grant"),
        || error(400, "invalid_client"),
        || error(400, "odd"),
        || error(503, "temporarily_unavailable"),
        lost,
        || Act::Fail(Reply::NotSent("no route")),
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
        use credproxy::clock::Clock as _;
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
    world.provider.script((0..3).map(|_| Act::Fail(Reply::NotSent("no route"))));
    let result = world.refresh().await;
    assert!(matches!(result, Err(RefreshError::Failed { failure: Failure { outcome: Outcome::NotSpent, .. }, .. })));
    assert_eq!(world.provider.presentations(), 3);
    assert_eq!(world.marks().await.presented, None);
    assert_eq!(rate_limited(&world.refresh().await), 30);
    tokio::time::advance(COOLDOWN).await;
    assert!(world.refresh().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn retry_after_lengthens_the_cooldown() {
    let world = World::new().await;
    let busy = || {
        Act::Fail(Reply::Answered {
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
    assert_eq!((world.provider.presentations(), world.marks().await.presented), (2, None));
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
    world.provider.script([Act::RotateAndLose]);
    assert!(matches!(world.refresh().await, Err(RefreshError::Reauth { answer_lost: true })));
    assert_eq!(world.marks().await.latch.map(|latch| latch.answer_lost), Some(true));
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
        let mark = Presented { at: credproxy::clock::Timestamp::from_secs(1_700_000_000), count: 1 };
        crashed.claim(&account(), record.revision, mark).await.unwrap();
    }
    let (_store, restarted) = world.second();
    tokio::time::advance(SECOND * 2000).await;
    let early = restarted.token(&account(), Some(SECOND * 1800)).await.unwrap();
    assert_eq!((access(&early).as_str(), world.provider.presentations()), ("canary-at-1-end", 0));
    world.provider.script([error(400, "invalid_grant")]);
    assert!(matches!(refresh(&restarted).await, Err(RefreshError::Reauth { answer_lost: true })));
}

#[tokio::test(start_paused = true)]
async fn the_store_is_found_broken_before_the_token_is_spent() {
    let world = World::new().await;
    set(&world.store.no_claims, true);
    assert!(matches!(world.refresh().await, Err(RefreshError::Store(_))));
    assert_eq!((world.provider.presentations(), world.coordinator.ailments().await.len()), (0, 1));
    set(&world.store.no_claims, false);
    assert!(world.refresh().await.is_ok());
    assert!(world.coordinator.ailments().await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_successor_that_cannot_be_saved_is_served_and_saved_when_the_store_heals() {
    let world = World::new().await;
    set(&world.store.no_saves, true);
    assert_eq!(world.refresh().await.unwrap(), "canary-at-2-end");
    tokio::time::sleep(SECOND * 60).await;
    assert_eq!(world.get().await.unwrap(), "canary-at-2-end");
    assert!(matches!(world.refresh().await, Err(RefreshError::Unsaved)));
    assert!(!world.coordinator.ailments().await.is_empty());
    let (_store, second) = world.second();
    assert!(matches!(refresh(&second).await, Err(RefreshError::LeaseHeld)), "the lease is held all the while");
    set(&world.store.no_saves, false);
    tokio::time::sleep(SECOND * 2).await;
    assert!(world.coordinator.ailments().await.is_empty());
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
    let replacement = Scripted::new(Rules::default()).login();
    world.coordinator.put(&account(), replacement, &IfMatch::Absent).await.unwrap();
    world.provider.open();
    // The login of the other chain has the same text as the first token of this one.
    assert_eq!(all(tasks).await[0].as_deref().unwrap(), "canary-at-1-end");
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
    let mark = Presented { at: credproxy::clock::Timestamp::from_secs(1_700_000_000), count: 1 };
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
        // Of a token that came while the clock was behind, the end has passed: nobody is kept waiting for another.
        if jump > 0 {
            assert_eq!(rate_limited(&world.refresh().await), 30, "{jump}");
            tokio::time::advance(COOLDOWN).await;
        }
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
    assert!(matches!(ask(matching("garbage")).await, Err(RefreshError::UnknownTag)));
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
