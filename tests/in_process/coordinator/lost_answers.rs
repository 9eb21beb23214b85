//! A presented refresh token of which nobody knows whether it was spent: its answer was lost, or its daemon died.

use super::*;

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
async fn a_mark_left_by_a_crash_keeps_no_reader_of_an_expired_token_waiting() {
    let world = World::new().await;
    world.coordinator.put(&account(), world.expired_login(), &IfMatch::Absent).await.unwrap();
    world.crash_in_mid_flight(1).await;
    assert_eq!(world.get().await.unwrap(), "canary-at-3-end");
}
