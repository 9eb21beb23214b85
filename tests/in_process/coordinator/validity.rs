//! Which token a reader gets, and until when.

use super::*;

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
