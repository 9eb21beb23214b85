//! Items that are no grants.

use super::*;

pub(super) async fn an_item_comes_back_and_has_its_kind_for_itself(subject: &impl StoreUnderTest) {
    let (store, other) = (subject.owner().await, subject.owner().await);
    let one = name("one");
    put(&*store, &account("one"), &grant(1, 1)).await;
    store.put_item(ItemKind::ApiKey, &one, &item(1), &Expect::Whatever).await.unwrap();
    store.put_item(ItemKind::Sandbox, &one, &item(2), &Expect::Whatever).await.unwrap();
    let empty = Item { content: Content::new(Vec::new()), ..item(3) };
    store.put_item(ItemKind::ApiKey, &name("empty"), &empty, &Expect::Whatever).await.unwrap();
    for reader in [&store, &other] {
        assert_item(reader.item(ItemKind::ApiKey, &one).await.unwrap(), 1);
        assert_item(reader.item(ItemKind::Sandbox, &one).await.unwrap(), 2);
        assert!(reader.item(ItemKind::Sandbox, &name("empty")).await.unwrap().is_none());
        assert!(reader.item(ItemKind::ApiKey, &name("empty")).await.unwrap().is_some());
    }
    assert_eq!(other.delete_item(ItemKind::ApiKey, &one, &Expect::Whatever).await.unwrap(), Removed::Gone);
    assert!(load_item(&*store, &one).await.is_none());
    assert_item(store.item(ItemKind::Sandbox, &one).await.unwrap(), 2);
    assert_same(&load(&*store, &account("one")).await.grant, &grant(1, 1));
}

pub(super) async fn a_put_of_an_item_tells_what_it_found(subject: &impl StoreUnderTest) {
    let store = subject.owner().await;
    let one = name("one");
    let tag = |tag| item(tag).tag;
    let put =
        async |tag, expect: Expect<ItemTag>| store.put_item(ItemKind::ApiKey, &one, &item(tag), &expect).await.unwrap();

    assert_eq!(put(1, Expect::Present).await, Put::Conflict);
    assert_eq!(put(1, Expect::OneOf(vec![tag(1)])).await, Put::Conflict);
    assert!(load_item(&*store, &one).await.is_none());
    assert_eq!(put(1, Expect::Whatever).await, Put::Created);
    assert_eq!(put(2, Expect::Whatever).await, Put::Replaced);
    assert_eq!(put(3, Expect::Present).await, Put::Replaced);
    for others in [vec![], vec![tag(1), tag(2)]] {
        assert_eq!(put(4, Expect::OneOf(others)).await, Put::Conflict);
    }
    assert_item(load_item(&*store, &one).await, 3);
    assert_eq!(put(4, Expect::OneOf(vec![tag(9), tag(3)])).await, Put::Replaced);
    assert_item(load_item(&*store, &one).await, 4);
}

pub(super) async fn a_delete_of_an_item_tells_what_it_found(subject: &impl StoreUnderTest) {
    let store = subject.owner().await;
    let one = name("one");
    let delete = async |expect: Expect<ItemTag>| store.delete_item(ItemKind::ApiKey, &one, &expect).await.unwrap();

    for expect in [Expect::Whatever, Expect::Present, Expect::OneOf(vec![item(1).tag])] {
        assert_eq!(delete(expect.clone()).await, Removed::Missing);
        put_item(&*store, &one, 1).await;
        assert_eq!(delete(Expect::OneOf(vec![item(2).tag])).await, Removed::Conflict);
        assert_item(load_item(&*store, &one).await, 1);
        assert_eq!(delete(expect).await, Removed::Gone);
        assert!(load_item(&*store, &one).await.is_none());
    }
}

pub(super) async fn the_items_of_a_kind_are_in_the_order_of_names(subject: &impl StoreUnderTest) {
    let store = subject.owner().await;
    let mut names = ["b", "a", "B", "a.b", "a-b", "ab", "a+b", "A", "10", "9"];
    for (tag, text) in (1..).zip(names) {
        put_item(&*store, &name(text), tag).await;
    }
    store.put_item(ItemKind::Sandbox, &name("c"), &item(99), &Expect::Whatever).await.unwrap();
    let entries = store.items(ItemKind::ApiKey).await.unwrap();
    names.sort_unstable();
    assert_eq!(entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), names);
    for entry in entries {
        let loaded = load_item(&*store, &entry.name).await.unwrap();
        assert_eq!(entry.item.unwrap().tag, loaded.tag);
    }
    assert_eq!(store.items(ItemKind::Sandbox).await.unwrap().len(), 1);
}

pub(super) async fn items_outlive_their_owner_and_others_are_told_of_each_change(subject: &impl StoreUnderTest) {
    let keeper = subject.owner().await;
    let (store, other) = (subject.owner().await, subject.owner().await);
    let (own, seen) = (store.epoch(), other.epoch());
    put_item(&*store, &name("one"), 1).await;
    let seen = epoch_after(&*other, seen).await;
    put_item(&*store, &name("one"), 2).await;
    let seen = epoch_after(&*other, seen).await;
    put_item(&*store, &name("two"), 3).await;
    store.delete_item(ItemKind::ApiKey, &name("two"), &Expect::Whatever).await.unwrap();
    epoch_after(&*other, seen).await;
    assert_eq!(store.epoch(), own);
    drop((store, other, keeper));
    let store = subject.owner().await;
    assert_item(load_item(&*store, &name("one")).await, 2);
    assert!(load_item(&*store, &name("two")).await.is_none());
}
