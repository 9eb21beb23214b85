//! Grants and their marks: what is put, read, listed and deleted.

use super::*;

pub(super) async fn every_field_comes_back(subject: &impl StoreUnderTest) {
    let (store, other) = (subject.owner().await, subject.owner().await);
    for (name, grant) in [("corp/full", grant(1, 7)), ("corp/bare", bare_grant())] {
        put(&*store, &account(name), &grant).await;
        for reader in [&store, &other] {
            let record = load(&**reader, &account(name)).await;
            assert_same(&record.grant, &grant);
            assert_eq!(record.refresh_state, RefreshState::default());
        }
    }
    assert!(store.load(&account("corp")).await.unwrap().is_none());
}

pub(super) async fn a_put_tells_what_it_found(subject: &impl StoreUnderTest) {
    let store = subject.owner().await;
    let corp = account("corp");
    let put =
        async |id, generation, expect: Expect| store.put(&corp, &grant(id, generation), &expect, &[]).await.unwrap();
    let version = |id, generation| grant(id, generation).version;

    assert_eq!(put(1, 1, Expect::Present).await, PutGrant::Done(Put::Conflict));
    assert_eq!(put(1, 1, Expect::OneOf(vec![version(1, 1)])).await, PutGrant::Done(Put::Conflict));
    assert!(store.load(&corp).await.unwrap().is_none());
    assert_eq!(put(1, 1, Expect::Whatever).await, PutGrant::Done(Put::Created));
    assert_eq!(put(2, 1, Expect::Whatever).await, PutGrant::Done(Put::Replaced));
    assert_eq!(put(3, 1, Expect::Present).await, PutGrant::Done(Put::Replaced));
    for others in [vec![], vec![version(2, 1)], vec![version(3, 2), version(1, 1)]] {
        assert_eq!(put(4, 1, Expect::OneOf(others)).await, PutGrant::Done(Put::Conflict));
    }
    assert_same(&load(&*store, &corp).await.grant, &grant(3, 1));
    assert_eq!(put(4, 1, Expect::OneOf(vec![version(9, 9), version(3, 1)])).await, PutGrant::Done(Put::Replaced));
    assert_same(&load(&*store, &corp).await.grant, &grant(4, 1));
}

pub(super) async fn a_delete_gives_back_what_it_took(subject: &impl StoreUnderTest) {
    let store = subject.owner().await;
    let corp = account("corp");
    let delete = async |expect: Expect| store.delete(&corp, &expect).await.unwrap();

    for expect in [Expect::Whatever, Expect::Present, Expect::OneOf(vec![grant(1, 1).version])] {
        assert!(matches!(delete(expect).await, Deleted::Missing));
    }
    put(&*store, &account("corp/other"), &grant(2, 1)).await;
    for expect in [Expect::Whatever, Expect::Present, Expect::OneOf(vec![grant(1, 1).version])] {
        put(&*store, &corp, &grant(1, 1)).await;
        assert!(matches!(delete(Expect::OneOf(vec![grant(1, 2).version])).await, Deleted::Conflict));
        let Deleted::Gone(Some(gone)) = delete(expect).await else { panic!("not deleted") };
        assert_same(&gone, &grant(1, 1));
        assert!(store.load(&corp).await.unwrap().is_none());
        assert!(store.load(&account("corp/other")).await.unwrap().is_some());
    }
}

pub(super) async fn a_probe_changes_nothing_that_a_caller_sees(subject: &impl StoreUnderTest) {
    let store = subject.owner().await;
    let corp = account("corp");
    put(&*store, &corp, &grant(1, 1)).await;
    assert!(is_taken(claim(&*store, &corp).await));
    let before = load(&*store, &corp).await;
    store.probe().await.unwrap();
    let after = load(&*store, &corp).await;
    assert_eq!((before.revision, before.refresh_state), (after.revision, after.refresh_state));
    assert_same(&before.grant, &after.grant);
    assert!(store.list().await.unwrap().len() == 1);
}

pub(super) async fn grant_and_marks_outlive_their_owner(subject: &impl StoreUnderTest) {
    let corp = account("corp");
    let keeper = subject.owner().await;
    let store = subject.owner().await;
    put(&*store, &corp, &grant(1, 1)).await;
    assert!(store.save(&corp, grant(1, 1).version, &grant(1, 2), &refresh_state()).await.unwrap());
    let before = load(&*store, &corp).await.revision;
    drop((store, keeper));
    let record = load(&*subject.owner().await, &corp).await;
    assert_same(&record.grant, &grant(1, 2));
    assert_eq!((record.refresh_state, record.revision), (refresh_state(), before));
}

pub(super) async fn the_epoch_tells_of_others_changes_only(subject: &impl StoreUnderTest) {
    let (store, other) = (subject.owner().await, subject.owner().await);
    let corp = account("corp");
    let (own, mut seen) = (store.epoch(), other.epoch());
    // Three changes, each seen by the other before the next: the store has looked at least once in between.
    for generation in 1..=3 {
        put(&*store, &corp, &grant(1, generation)).await;
        seen = epoch_after(&*other, seen).await;
    }
    assert_eq!(store.epoch(), own);
    assert!(is_taken(claim(&*other, &corp).await));
    let after_claim = epoch_after(&*store, own).await;
    assert!(other.settle(&corp, grant(1, 3).version, &refresh_state()).await.unwrap());
    let after_settle = epoch_after(&*store, after_claim).await;
    other.delete(&corp, &Expect::Whatever).await.unwrap();
    epoch_after(&*store, after_settle).await;
}

pub(super) async fn the_list_is_in_the_order_of_accounts(subject: &impl StoreUnderTest) {
    let store = subject.owner().await;
    let mut names = ["b/a", "a/b", "a/B", "a/a+b", "a.b/c", "a/b.c", "a-b/c", "ab/c", "a/bc", "A/z", "a/10", "a/9"];
    for (id, name) in (1..).zip(names) {
        put(&*store, &account(name), &grant(id, 1)).await;
    }
    let entries = store.list().await.unwrap();
    names.sort_by_key(|name| account(name));
    assert_eq!(entries.iter().map(|entry| entry.account.to_string()).collect::<Vec<_>>(), names);
    for entry in entries {
        let listed = entry.record.unwrap();
        let loaded = load(&*store, &entry.account).await;
        assert_same(&listed.grant, &loaded.grant);
        assert_eq!(listed.revision, loaded.revision);
    }
}

pub(super) async fn the_names_are_those_of_the_list_and_only_what_is_wanted_is_read(subject: &impl StoreUnderTest) {
    let store = subject.owner().await;
    for (id, name) in (1..).zip(["b/a", "a/b", "a/a"]) {
        put(&*store, &account(name), &grant(id, 1)).await;
    }
    let names = |accounts: Vec<Account>| accounts.iter().map(Account::to_string).collect::<Vec<_>>();
    assert_eq!(names(store.names().await.unwrap()), ["a/a", "a/b", "b/a"]);
    let mut found = Vec::new();
    let wanted = |one: &Account| one.provider.as_str() == "a";
    store.visit(&wanted, &mut |entry| found.push(entry.account)).await.unwrap();
    assert_eq!(names(found), ["a/a", "a/b"]);
}

pub(super) async fn names_that_differ_in_the_place_of_the_slash_stay_apart(subject: &impl StoreUnderTest) {
    let store = subject.owner().await;
    put(&*store, &account("a/bc"), &grant(1, 1)).await;
    put(&*store, &account("ab/c"), &grant(2, 1)).await;
    assert!(matches!(store.delete(&account("a/bc"), &Expect::Whatever).await.unwrap(), Deleted::Gone(Some(_))));
    assert_same(&load(&*store, &account("ab/c")).await.grant, &grant(2, 1));
    assert_eq!(store.list().await.unwrap().len(), 1);
}

pub(super) async fn a_caller_that_hangs_up_leaves_no_change_half_made(subject: &impl StoreUnderTest) {
    let store = subject.owner().await;
    let corp = account("corp");
    put(&*store, &corp, &grant(1, 1)).await;
    for polls in 0..40 {
        let new = grant(2, polls);
        let mut call = store.put(&corp, &new, &Expect::Whatever, &[]);
        for _ in 0..polls % 8 {
            if (&mut call).now_or_never().is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(call);
        let found = load(&*store, &corp).await;
        let (id, generation) = (found.grant.version.id, found.grant.version.generation);
        assert!(id == grant(1, 1).version.id || generation <= polls, "{}", found.grant.version);
    }
    put(&*store, &corp, &grant(3, 1)).await;
    assert_same(&load(&*store, &corp).await.grant, &grant(3, 1));
    assert_same(&load(&*subject.owner().await, &corp).await.grant, &grant(3, 1));
}
