//! What a shutdown waits for, and what it starts no more.

use super::*;

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
