//! Leases: who may refresh a grant, and whose result is saved.

use super::*;

pub(super) async fn a_claim_at_an_earlier_revision_changes_nothing(subject: &impl StoreUnderTest) {
    let store = subject.owner().await;
    let corp = account("corp");
    assert_eq!(store.claim(&corp, Revision(1), presented(1)).await.unwrap(), Claim::Changed, "there is no record");
    put(&*store, &corp, &grant(1, 1)).await;
    let mut seen = vec![load(&*store, &corp).await.revision];
    let mut check = async |what: &str| {
        let now = load(&*store, &corp).await;
        for earlier in &seen {
            assert_ne!(now.revision, *earlier, "{what}");
            let claim = store.claim(&corp, *earlier, presented(9)).await.unwrap();
            assert_eq!(claim, Claim::Changed, "after a {what}");
        }
        let after = load(&*store, &corp).await;
        assert_eq!((after.revision, after.refresh_state), (now.revision, now.refresh_state));
        seen.push(now.revision);
    };

    let Claim::Taken(revision) = claim(&*store, &corp).await else { panic!("not taken") };
    assert_eq!(load(&*store, &corp).await.revision, revision);
    check("claim").await;
    assert!(store.settle(&corp, grant(1, 1).version, &RefreshState::default()).await.unwrap());
    check("settle").await;
    assert!(store.save(&corp, grant(1, 1).version, &grant(1, 2), &RefreshState::default()).await.unwrap());
    check("save").await;
    put(&*store, &corp, &grant(2, 1)).await;
    check("put").await;
    store.delete(&corp, &Expect::Whatever).await.unwrap();
    put(&*store, &corp, &grant(2, 1)).await;
    check("deletion").await;
}

pub(super) async fn a_living_owner_keeps_its_lease_and_a_dead_one_loses_it(subject: &impl StoreUnderTest) {
    let (first, second, third) = (subject.owner().await, subject.owner().await, subject.owner().await);
    let corp = account("corp");
    put(&*first, &corp, &grant(1, 1)).await;
    assert!(is_taken(claim(&*first, &corp).await));
    let before = load(&*second, &corp).await;
    assert_eq!(claim(&*second, &corp).await, Claim::Held);
    let after = load(&*second, &corp).await;
    assert_eq!(after.refresh_state.presented, Some(presented(1)));
    assert_eq!(
        (before.revision, before.refresh_state),
        (after.revision, after.refresh_state),
        "a claim refused changes nothing"
    );

    drop(first);
    assert!(is_taken(claim(&*second, &corp).await));
    assert_eq!(claim(&*third, &corp).await, Claim::Held);
}

pub(super) async fn the_holder_may_claim_again(subject: &impl StoreUnderTest) {
    let (store, other) = (subject.owner().await, subject.owner().await);
    let corp = account("corp");
    put(&*store, &corp, &grant(1, 1)).await;
    let Claim::Taken(first) = claim(&*store, &corp).await else { panic!("not taken") };
    let Claim::Taken(second) = store.claim(&corp, first, presented(2)).await.unwrap() else { panic!("not taken") };
    let record = load(&*other, &corp).await;
    assert_eq!((record.revision, record.refresh_state.presented), (second, Some(presented(2))));
    assert_eq!(store.claim(&corp, first, presented(3)).await.unwrap(), Claim::Changed);
    assert_eq!(claim(&*other, &corp).await, Claim::Held);
}

pub(super) async fn a_claim_leaves_the_other_marks(subject: &impl StoreUnderTest) {
    let store = subject.owner().await;
    let corp = account("corp");
    put(&*store, &corp, &grant(1, 1)).await;
    assert!(store.settle(&corp, grant(1, 1).version, &refresh_state()).await.unwrap());
    assert!(is_taken(claim(&*store, &corp).await));
    let record = load(&*store, &corp).await;
    assert_eq!(record.refresh_state, RefreshState { presented: Some(presented(1)), ..refresh_state() });
    assert_same(&record.grant, &grant(1, 1));
}

pub(super) async fn settling_and_saving_release_the_lease(subject: &impl StoreUnderTest) {
    let (store, other) = (subject.owner().await, subject.owner().await);
    let corp = account("corp");
    put(&*store, &corp, &grant(1, 1)).await;
    assert!(is_taken(claim(&*store, &corp).await));
    assert!(store.settle(&corp, grant(1, 1).version, &refresh_state()).await.unwrap());
    let record = load(&*other, &corp).await;
    assert_eq!(record.refresh_state, refresh_state());
    assert_same(&record.grant, &grant(1, 1));

    assert!(is_taken(claim(&*other, &corp).await));
    let attempted = RefreshState { presented: None, ..refresh_state() };
    assert!(other.save(&corp, grant(1, 1).version, &grant(1, 2), &attempted).await.unwrap());
    let record = load(&*store, &corp).await;
    assert_eq!(record.refresh_state, attempted);
    assert_same(&record.grant, &grant(1, 2));
    assert!(is_taken(claim(&*store, &corp).await));
}

pub(super) async fn a_late_result_changes_nothing(subject: &impl StoreUnderTest) {
    let (store, other) = (subject.owner().await, subject.owner().await);
    let corp = account("corp");
    let late = async || {
        let before = store.load(&corp).await.unwrap();
        assert!(!store.settle(&corp, grant(1, 1).version, &refresh_state()).await.unwrap());
        assert!(!store.save(&corp, grant(1, 1).version, &grant(1, 2), &refresh_state()).await.unwrap());
        let after = store.load(&corp).await.unwrap();
        let seen = |record: &Option<Record>| {
            record.as_ref().map(|record| (record.grant.version, record.revision, record.refresh_state.clone()))
        };
        assert_eq!(seen(&before), seen(&after));
    };

    late().await;
    put(&*store, &corp, &grant(1, 1)).await;
    assert!(is_taken(claim(&*store, &corp).await));
    // Another grant of the same generation: a login or a put does not wait for the lease.
    put(&*other, &corp, &grant(2, 1)).await;
    assert_eq!(load(&*store, &corp).await.refresh_state, RefreshState::default());
    late().await;
    assert!(is_taken(claim(&*other, &corp).await), "a put leaves no lease");
    late().await;
    assert_eq!(claim(&*store, &corp).await, Claim::Held);

    put(&*store, &corp, &grant(1, 2)).await;
    late().await;
    assert!(is_taken(claim(&*store, &corp).await));
    assert!(matches!(other.delete(&corp, &Expect::Whatever).await.unwrap(), Deleted::Gone(Some(_))));
    late().await;
}

pub(super) async fn a_late_success_wins_over_a_settled_failure(subject: &impl StoreUnderTest) {
    let store = subject.owner().await;
    let corp = account("corp");
    put(&*store, &corp, &grant(1, 1)).await;
    assert!(is_taken(claim(&*store, &corp).await));
    assert!(store.settle(&corp, grant(1, 1).version, &refresh_state()).await.unwrap());
    assert!(store.save(&corp, grant(1, 1).version, &grant(1, 2), &RefreshState::default()).await.unwrap());
    let record = load(&*store, &corp).await;
    assert_eq!(record.refresh_state, RefreshState::default());
    assert_same(&record.grant, &grant(1, 2));
}

pub(super) async fn of_many_claims_at_once_one_is_taken(subject: &impl StoreUnderTest) {
    let owners = [subject.owner().await, subject.owner().await];
    let corp = account("corp");
    put(&*owners[0], &corp, &grant(1, 1)).await;
    let revision = load(&*owners[0], &corp).await.revision;
    let mut tasks = JoinSet::new();
    for number in 0..50 {
        let (store, corp) = (Arc::clone(&owners[number % 2]), corp.clone());
        tasks.spawn(async move { store.claim(&corp, revision, presented(1)).await.unwrap() });
    }
    let claims = tasks.join_all().await;
    assert_eq!(claims.iter().filter(|claim| is_taken(**claim)).count(), 1, "{claims:?}");
}
