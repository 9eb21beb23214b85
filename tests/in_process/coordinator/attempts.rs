//! When a refresh is tried, when it is tried again, and when it is left alone.

use super::*;

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
async fn a_flight_makes_one_second_try_however_the_others_end() {
    let world = World::new().await;
    world.provider.script([lost(), Step::Fail(Reply::NotSent("no route")), lost()]);
    assert!(matches!(world.refresh().await, Err(RefreshError::Failed { .. })));
    assert_eq!(world.provider.presentations(), 3);
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
async fn a_retry_after_past_the_end_of_the_flight_is_not_waited_for() {
    let world = World::new().await;
    let retry_after = Some(SECOND * 20);
    let busy = Reply::Answered { status: 429, body: credproxy::provider::Body::Unreadable, retry_after };
    world.provider.script([Step::Fail(busy)]);
    let start = world.clock.monotonic();
    assert!(world.refresh().await.is_err());
    assert_eq!(world.clock.monotonic(), start);
}
