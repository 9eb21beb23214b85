//! A grant that is put, deleted or refreshed elsewhere while a refresh is under way.

use super::*;

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
