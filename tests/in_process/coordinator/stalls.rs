//! A store that does not answer, and clocks that were wrong.

use std::time::Duration;

use credproxy::{
    clock::Clock as _,
    refresh::RefreshError,
    store::Store as _,
    timeouts::{HEALTH_CHECK_TIMEOUT, STALLED_STORE_TIMEOUT},
};
use tokio::task::JoinSet;

use crate::{
    coordinator::{
        SECOND, World, access, account, all,
        fakes::{lost, set},
    },
    support::store::StoreCall,
};

/// Good for so long that a reader wants it refreshed, and can use it.
const NEAR_THE_END: Duration = Duration::from_secs(3590);

#[tokio::test(start_paused = true)]
async fn a_good_token_is_served_while_the_store_does_not_answer() {
    for step in [StoreCall::Claim, StoreCall::Save] {
        let world = World::new().await;
        tokio::time::advance(NEAR_THE_END).await;
        world.store.hold(step);
        let start = world.clock.monotonic();
        assert_eq!(world.get().await.unwrap(), "canary-at-1-end", "{step:?}");
        let waited = world.clock.monotonic().since(start);
        assert!(waited <= 2 * STALLED_STORE_TIMEOUT, "{step:?}: {waited:?}");
        world.store.release();
        while world.coordinator.peek(&account()).await.is_ok_and(|now| access(&now) == "canary-at-1-end") {
            tokio::time::sleep(STALLED_STORE_TIMEOUT).await;
        }
        assert_eq!((world.get().await.unwrap().as_str(), world.provider.presentations()), ("canary-at-2-end", 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_is_waited_for_longer_than_a_store() {
    let world = World::new().await;
    tokio::time::advance(NEAR_THE_END).await;
    world.provider.shut();
    let coordinator = world.coordinator.clone();
    let mut asking = JoinSet::new();
    asking.spawn(async move { coordinator.token(&account(), None).await.map(|snapshot| access(&snapshot)) });
    world.presented(1).await;
    tokio::time::advance(4 * STALLED_STORE_TIMEOUT).await;
    world.provider.open();
    assert_eq!(all(asking).await[0].as_deref().unwrap(), "canary-at-2-end");
}

#[tokio::test(start_paused = true)]
async fn what_is_remembered_is_served_while_the_store_cannot_be_read() {
    let world = World::new().await;
    let (other, _) = world.second();
    let refresh_state = world.refresh_state().await;
    let version = world.coordinator.peek(&account()).await.unwrap().token.version;
    // Another daemon's change: what is remembered is to be read again.
    assert!(other.inner.settle(&account(), version, &refresh_state).await.unwrap());
    world.store.hold(StoreCall::Load);
    assert_eq!(world.get().await.unwrap(), "canary-at-1-end");
    world.store.hold(StoreCall::Load);
    assert!(!world.coordinator.health_problems().await.is_empty());
    let start = world.clock.monotonic();
    world.store.hold(StoreCall::Load);
    world.coordinator.health_problems().await;
    assert!(world.clock.monotonic().since(start) <= HEALTH_CHECK_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_token_issued_while_the_clock_was_ahead_does_not_last_until_then() {
    let world = World::new().await;
    world.clock.jump(365 * 24 * 3600);
    assert_eq!(world.refresh().await.unwrap(), "canary-at-2-end");
    world.clock.jump(-365 * 24 * 3600);
    tokio::time::advance(SECOND * 7200).await;
    assert_eq!(world.get().await.unwrap(), "canary-at-3-end");
    assert_eq!(world.get().await.unwrap(), "canary-at-3-end");
    assert_eq!(world.provider.presentations(), 2, "one refresh, not one for each reader");
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_made_and_denied_leaves_no_doubt() {
    let world = World::new().await;
    set(&world.store.denied_claims, true);
    assert!(matches!(world.refresh().await, Err(RefreshError::Store(_))));
    set(&world.store.denied_claims, false);
    assert_eq!(world.refresh_state().await.presented.map(|mark| mark.count), Some(1), "the store has the mark");
    // With a doubt, one lost answer would be the second.
    world.provider.script([lost()]);
    assert_eq!(world.refresh().await.unwrap(), "canary-at-2-end");
    assert_eq!(world.provider.presentations(), 2);
}
