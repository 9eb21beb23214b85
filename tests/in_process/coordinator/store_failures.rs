//! A store that fails before, during or after a refresh.

use super::*;

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
