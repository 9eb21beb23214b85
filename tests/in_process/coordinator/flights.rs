//! Callers share one refresh, which outlives them.

use super::*;

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
