//! `If-Match`, and waiting for a change.

use super::*;

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
