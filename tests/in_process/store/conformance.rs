//! What every store must do, and what the one on disk must do besides.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use credproxy::{
    account::{Account, ItemName},
    clock::Timestamp,
    grant::{Extra, Grant, GrantId, Version},
    item::{Item, ItemKind, ItemTag},
    secret::{AccessToken, Content, RefreshToken, StoreKey},
    store::{
        Attempt, Claim, DeadGrant, Deleted, Expect, ItemStore, Outcome, Presentation, Put, PutGrant, Record,
        RefreshState, Removed, Revision, Store, StoreError, key, memory::MemoryStore, random_grant_id, sqlite::Sqlite,
    },
};
use futures_util::{FutureExt as _, future::join_all};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};
use tokio::task::JoinSet;

/// One store under test. An owner that is dropped has died.
trait StoreUnderTest {
    async fn new() -> Self;
    async fn owner(&self) -> Arc<dyn ItemStore>;
}

struct InMemory(MemoryStore);

impl StoreUnderTest for InMemory {
    async fn new() -> Self {
        Self(MemoryStore::new().unwrap())
    }

    async fn owner(&self) -> Arc<dyn ItemStore> {
        Arc::new(self.0.second_owner())
    }
}

struct OnDisk(tempfile::TempDir);

impl OnDisk {
    fn directory(&self) -> PathBuf {
        self.0.path().join("deep/credproxy")
    }

    fn file(&self) -> PathBuf {
        self.directory().join("credproxy.db")
    }

    async fn open_with(&self, key: [u8; 32]) -> Result<Sqlite, StoreError> {
        Sqlite::open(&self.file(), StoreKey::new(key), "the test's key").await
    }

    async fn open(&self) -> Sqlite {
        self.open_with(KEY).await.unwrap()
    }

    /// What another program does to the database.
    async fn sql(&self, statement: &'static str) {
        let mut connection = SqliteConnectOptions::new().filename(self.file()).connect().await.unwrap();
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }
}

impl StoreUnderTest for OnDisk {
    async fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    async fn owner(&self) -> Arc<dyn ItemStore> {
        Arc::new(self.open().await)
    }
}

const KEY: [u8; 32] = [0x5a; 32];

fn account(text: &str) -> Account {
    text.parse().unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_secs(seconds)
}

fn presented(count: u32) -> Presentation {
    Presentation { at: at(1_700_000_000), count }
}

fn grant(id: u8, generation: u64) -> Grant {
    let Value::Object(extra) = json!({"account_id": "me", "authed_user": {"refresh_token": "canary-nested"}}) else {
        unreachable!()
    };
    Grant {
        version: Version { id: GrantId::from_bytes([id; 16]), generation },
        access_token: AccessToken::new(format!("canary-access-{id}-{generation}")).unwrap(),
        token_type: "Bearer".into(),
        issued_at: Timestamp::from_millis(1_700_000_000_123),
        expires_at: Some(Timestamp::from_millis(1_700_003_600_123)),
        scope: Some("read write".into()),
        refresh_token: Some(RefreshToken::new(format!("canary-refresh-{id}-{generation}")).unwrap()),
        extra: extra.into(),
    }
}

fn name(text: &str) -> ItemName {
    text.parse().unwrap()
}

/// Neither a text nor an object, so that no store makes something of it.
fn item(tag: u8) -> Item {
    let content = [&[0, 0xff, b'"', b'\n'][..], format!("canary-item-{tag}").as_bytes()].concat();
    Item { tag: ItemTag::from_bytes([tag; 16]), content: Content::new(content) }
}

#[track_caller]
#[expect(clippy::disallowed_methods, reason = "compares contents in a test")]
fn assert_item(found: Option<Item>, tag: u8) {
    let (found, expected) = (found.expect("an item"), item(tag));
    assert_eq!((found.tag, found.content.expose_secret()), (expected.tag, expected.content.expose_secret()));
}

async fn put_item(store: &dyn ItemStore, name: &ItemName, tag: u8) {
    store.put_item(ItemKind::ApiKey, name, &item(tag), &Expect::Whatever).await.unwrap();
}

async fn load_item(store: &dyn ItemStore, name: &ItemName) -> Option<Item> {
    store.item(ItemKind::ApiKey, name).await.unwrap()
}

fn bare_grant() -> Grant {
    Grant { expires_at: None, scope: None, refresh_token: None, extra: Extra::default(), ..grant(3, u64::MAX) }
}

fn refresh_state() -> RefreshState {
    RefreshState {
        presented: Some(presented(u32::MAX)),
        attempt: Some(Attempt {
            ended_at: at(-1),
            outcome: Outcome::NotSpent,
            code: Some("slow_down".into()),
            consecutive: 3,
            not_before: Timestamp::from_millis(i64::MAX),
        }),
        dead: Some(DeadGrant { at: at(7), answer_lost: true, copied: true }),
        copied_at: Some(at(8)),
    }
}

#[expect(clippy::disallowed_methods, reason = "compares tokens in a test")]
fn assert_same(left: &Grant, right: &Grant) {
    let fields = |grant: &Grant| {
        (
            grant.version,
            grant.access_token.expose_secret().to_owned(),
            grant.token_type.clone(),
            (grant.issued_at, grant.expires_at),
            grant.scope.clone(),
            grant.refresh_token.as_ref().map(|token| token.expose_secret().to_owned()),
            grant.extra.clone(),
        )
    };
    assert_eq!(fields(left), fields(right));
}

async fn put(store: &dyn Store, account: &Account, grant: &Grant) {
    let put = store.put(account, grant, &Expect::Whatever, &[]).await.unwrap();
    assert!(matches!(put, PutGrant::Done(Put::Created | Put::Replaced)), "{put:?}");
}

async fn load(store: &dyn Store, account: &Account) -> Record {
    store.load(account).await.unwrap().expect("a record")
}

async fn claim(store: &dyn Store, account: &Account) -> Claim {
    let revision = load(store, account).await.revision;
    store.claim(account, revision, presented(1)).await.unwrap()
}

fn is_taken(claim: Claim) -> bool {
    matches!(claim, Claim::Taken(_))
}

/// Waits until `store` has seen that another owner changed something.
async fn epoch_after(store: &dyn Store, before: u64) -> u64 {
    let grown = async {
        while store.epoch() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        store.epoch()
    };
    tokio::time::timeout(Duration::from_secs(5), grown).await.expect("the change is seen")
}

async fn every_field_comes_back(subject: &impl StoreUnderTest) {
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

async fn a_put_tells_what_it_found(subject: &impl StoreUnderTest) {
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

async fn a_delete_gives_back_what_it_took(subject: &impl StoreUnderTest) {
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

async fn a_claim_at_an_earlier_revision_changes_nothing(subject: &impl StoreUnderTest) {
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

async fn a_living_owner_keeps_its_lease_and_a_dead_one_loses_it(subject: &impl StoreUnderTest) {
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

async fn the_holder_may_claim_again(subject: &impl StoreUnderTest) {
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

async fn a_claim_leaves_the_other_marks(subject: &impl StoreUnderTest) {
    let store = subject.owner().await;
    let corp = account("corp");
    put(&*store, &corp, &grant(1, 1)).await;
    assert!(store.settle(&corp, grant(1, 1).version, &refresh_state()).await.unwrap());
    assert!(is_taken(claim(&*store, &corp).await));
    let record = load(&*store, &corp).await;
    assert_eq!(record.refresh_state, RefreshState { presented: Some(presented(1)), ..refresh_state() });
    assert_same(&record.grant, &grant(1, 1));
}

async fn settling_and_saving_release_the_lease(subject: &impl StoreUnderTest) {
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

async fn a_late_result_changes_nothing(subject: &impl StoreUnderTest) {
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

async fn a_late_success_wins_over_a_settled_failure(subject: &impl StoreUnderTest) {
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

async fn a_probe_changes_nothing_that_a_caller_sees(subject: &impl StoreUnderTest) {
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

async fn grant_and_marks_outlive_their_owner(subject: &impl StoreUnderTest) {
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

async fn the_epoch_tells_of_others_changes_only(subject: &impl StoreUnderTest) {
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

async fn of_many_claims_at_once_one_is_taken(subject: &impl StoreUnderTest) {
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

async fn the_list_is_in_the_order_of_accounts(subject: &impl StoreUnderTest) {
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

async fn the_names_are_those_of_the_list_and_only_what_is_wanted_is_read(subject: &impl StoreUnderTest) {
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

async fn names_that_differ_in_the_place_of_the_slash_stay_apart(subject: &impl StoreUnderTest) {
    let store = subject.owner().await;
    put(&*store, &account("a/bc"), &grant(1, 1)).await;
    put(&*store, &account("ab/c"), &grant(2, 1)).await;
    assert!(matches!(store.delete(&account("a/bc"), &Expect::Whatever).await.unwrap(), Deleted::Gone(Some(_))));
    assert_same(&load(&*store, &account("ab/c")).await.grant, &grant(2, 1));
    assert_eq!(store.list().await.unwrap().len(), 1);
}

async fn a_caller_that_hangs_up_leaves_no_change_half_made(subject: &impl StoreUnderTest) {
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

async fn an_item_comes_back_and_has_its_kind_for_itself(subject: &impl StoreUnderTest) {
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

async fn a_put_of_an_item_tells_what_it_found(subject: &impl StoreUnderTest) {
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

async fn a_delete_of_an_item_tells_what_it_found(subject: &impl StoreUnderTest) {
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

async fn the_items_of_a_kind_are_in_the_order_of_names(subject: &impl StoreUnderTest) {
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

async fn items_outlive_their_owner_and_others_are_told_of_each_change(subject: &impl StoreUnderTest) {
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

macro_rules! conformance {
    ($($case:ident)*) => {
        mod in_memory {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$case(&InMemory::new().await).await;
                }
            )*
        }

        mod on_disk {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$case(&OnDisk::new().await).await;
                }
            )*
        }
    };
}

conformance! {
    every_field_comes_back
    a_put_tells_what_it_found
    a_delete_gives_back_what_it_took
    a_claim_at_an_earlier_revision_changes_nothing
    a_living_owner_keeps_its_lease_and_a_dead_one_loses_it
    the_holder_may_claim_again
    a_claim_leaves_the_other_marks
    settling_and_saving_release_the_lease
    a_late_result_changes_nothing
    a_late_success_wins_over_a_settled_failure
    a_probe_changes_nothing_that_a_caller_sees
    grant_and_marks_outlive_their_owner
    the_epoch_tells_of_others_changes_only
    of_many_claims_at_once_one_is_taken
    the_list_is_in_the_order_of_accounts
    the_names_are_those_of_the_list_and_only_what_is_wanted_is_read
    names_that_differ_in_the_place_of_the_slash_stay_apart
    a_caller_that_hangs_up_leaves_no_change_half_made
    an_item_comes_back_and_has_its_kind_for_itself
    a_put_of_an_item_tells_what_it_found
    a_delete_of_an_item_tells_what_it_found
    the_items_of_a_kind_are_in_the_order_of_names
    items_outlive_their_owner_and_others_are_told_of_each_change
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

fn beside(file: &Path, suffix: &str) -> PathBuf {
    file.with_file_name(format!("{}{suffix}", file.file_name().unwrap().display()))
}

fn write_private(path: &Path, content: &[u8]) {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap().write_all(content).unwrap();
}

fn reason<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unfit { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn files_are_private() {
    let subject = OnDisk::new().await;
    let store = subject.open().await;
    put(&store, &account("corp"), &grant(1, 1)).await;
    let files = files_below(&subject.directory());
    for name in ["credproxy.db", "credproxy.db-wal", "credproxy.db-shm"] {
        assert!(files.contains(&subject.directory().join(name)), "{name} in {files:?}");
    }
    assert_eq!(files.len(), 4, "and the owner file: {files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
    for directory in [subject.directory(), subject.directory().join("owners"), subject.0.path().join("deep")] {
        assert_eq!(mode(&directory), 0o700, "{}", directory.display());
    }
    store.close().await.unwrap();
    assert_eq!(files_below(&subject.directory()), [subject.file()], "nothing else stays");
}

#[tokio::test]
async fn what_others_can_open_is_refused() {
    let subject = OnDisk::new().await;
    subject.open().await.close().await.unwrap();
    for bad in [0o640, 0o604, 0o620] {
        fs::set_permissions(subject.file(), Permissions::from_mode(bad)).unwrap();
        assert!(reason(subject.open_with(KEY).await).contains("chmod 600"), "{bad:o}");
    }
    fs::set_permissions(subject.file(), Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(subject.directory(), Permissions::from_mode(0o770)).unwrap();
    assert!(reason(subject.open_with(KEY).await).contains("chmod go-w"));
    fs::set_permissions(subject.directory(), Permissions::from_mode(0o700)).unwrap();
    subject.open().await;
}

#[tokio::test]
async fn no_secret_reaches_the_disk_in_clear() {
    let subject = OnDisk::new().await;
    let store = subject.open().await;
    let corp = account("corp");
    put(&store, &corp, &grant(1, 1)).await;
    assert!(is_taken(claim(&store, &corp).await));
    assert!(store.save(&corp, grant(1, 1).version, &grant(1, 2), &refresh_state()).await.unwrap());
    put_item(&store, &name("one"), 1).await;
    let clean = |path: &Path| {
        let content = fs::read(path).unwrap();
        assert!(!content.windows(6).any(|window| window == b"canary"), "{}", path.display());
        content.len()
    };
    // Of the open files only the log may be read in this process: SQLite's locks on the others would be lost.
    assert!(clean(&beside(&subject.file(), "-wal")) > 0);
    store.close().await.unwrap();
    for file in files_below(&subject.directory()) {
        clean(&file);
    }
}

#[tokio::test]
async fn a_wrong_key_is_told_and_does_no_harm() {
    let subject = OnDisk::new().await;
    let store = subject.open().await;
    put(&store, &account("corp"), &grant(1, 1)).await;
    store.close().await.unwrap();
    for bad in [[0; 32], [0x5b; 32]] {
        let Err(StoreError::WrongKey { key, place }) = subject.open_with(bad).await else { panic!("opened") };
        assert_eq!((key.as_str(), place), ("the test's key", subject.file().display().to_string()));
    }
    assert_same(&load(&subject.open().await, &account("corp")).await.grant, &grant(1, 1));
}

#[tokio::test]
async fn a_later_format_of_the_store_is_told() {
    let subject = OnDisk::new().await;
    subject.open().await.close().await.unwrap();
    subject.sql("PRAGMA user_version = 4").await;
    assert!(matches!(subject.open_with(KEY).await, Err(StoreError::NewerStore { format: 4, .. })));
    subject.sql("PRAGMA user_version = 3").await;
    subject.open().await;
}

/// Makes a store of format 2 of one of today.
const TO_FORMAT_2: &str = "DROP TRIGGER refresh_token_replaced; DROP TRIGGER spent_tokens_are_limited; DROP TABLE spent_tokens; \
         DROP INDEX records_by_fingerprint; ALTER TABLE records DROP COLUMN fingerprint; \
         ALTER TABLE records DROP COLUMN copied; ALTER TABLE meta DROP COLUMN fingerprint_key; \
         ALTER TABLE meta DROP COLUMN place; PRAGMA user_version = 2";

#[tokio::test]
async fn a_store_of_an_earlier_format_is_brought_up_to_date_by_who_has_its_key() {
    for (format, older) in [(1, "DROP TABLE items; PRAGMA user_version = 1"), (2, "")] {
        brought_up_to_date(format, older).await;
    }
}

async fn brought_up_to_date(format: u32, older: &'static str) {
    let subject = OnDisk::new().await;
    let corp = account("corp");
    let store = subject.open().await;
    put(&store, &corp, &grant(1, 1)).await;
    assert!(store.settle(&corp, grant(1, 1).version, &refresh_state()).await.unwrap());
    let revision = load(&store, &corp).await.revision;
    store.close().await.unwrap();
    // As the version before made it.
    subject.sql(TO_FORMAT_2).await;
    subject.sql(older).await;
    let before = fs::read(subject.file()).unwrap();
    assert!(matches!(subject.open_with([0; 32]).await, Err(StoreError::WrongKey { .. })));
    assert_eq!(fs::read(subject.file()).unwrap(), before);

    let stores = join_all((0..4).map(|_| subject.open())).await;
    for store in &stores {
        let record = load(store, &corp).await;
        assert_same(&record.grant, &grant(1, 1));
        assert_eq!(
            (record.revision, record.refresh_state),
            (revision, RefreshState { copied_at: None, ..refresh_state() }),
            "{format}"
        );
        let again = store.put(&account("corp/again"), &grant(1, 1), &Expect::Whatever, &[]).await.unwrap();
        assert!(matches!(again, PutGrant::Known(known) if known.account == corp && !known.spent), "{format}");
        assert!(store.items(ItemKind::ApiKey).await.unwrap().is_empty());
    }
    put_item(&stores[0], &name("one"), 1).await;
    assert_item(load_item(&stores[3], &name("one")).await, 1);
}

#[tokio::test]
async fn what_is_no_store_is_refused_and_left_alone() {
    for content in [&b"my diary\n"[..], &[0x55; 10_000], b"SQLite format 3\0 and then nothing"] {
        let subject = OnDisk::new().await;
        subject.open().await.close().await.unwrap();
        fs::remove_file(subject.file()).unwrap();
        write_private(&subject.file(), content);
        assert!(reason(subject.open_with(KEY).await).contains("not a SQLite database"), "{content:?}");
        assert_eq!(fs::read(subject.file()).unwrap(), content);
    }

    let subject = OnDisk::new().await;
    subject.open().await.close().await.unwrap();
    fs::remove_file(subject.file()).unwrap();
    write_private(&subject.file(), b"");
    subject.sql("CREATE TABLE diary (entry TEXT)").await;
    let before = fs::read(subject.file()).unwrap();
    assert!(reason(subject.open_with(KEY).await).contains("another program"));
    assert_eq!(fs::read(subject.file()).unwrap(), before);
}

#[tokio::test]
async fn an_empty_file_becomes_a_store() {
    let subject = OnDisk::new().await;
    assert!(!Sqlite::exists(&subject.file()));
    subject.open().await.close().await.unwrap();
    fs::remove_file(subject.file()).unwrap();
    write_private(&subject.file(), b"");
    assert!(!Sqlite::exists(&subject.file()));
    subject.open().await.close().await.unwrap();
    assert!(Sqlite::exists(&subject.file()));
}

#[tokio::test]
async fn daemons_that_start_at_once_make_one_store() {
    let subject = OnDisk::new().await;
    let stores = join_all((0..6).map(|_| subject.open())).await;
    put(&stores[0], &account("corp"), &grant(1, 1)).await;
    for store in &stores {
        assert_same(&load(store, &account("corp")).await.grant, &grant(1, 1));
    }
}

#[tokio::test]
async fn a_damaged_record_leaves_the_others_usable() {
    let corp = account("corp/damaged");
    for damage in [
        "UPDATE records SET sealed = zeroblob(length(sealed)) WHERE bucket = 'damaged'",
        "UPDATE records SET sealed = x'' WHERE bucket = 'damaged'",
        "UPDATE records SET sealed = (SELECT sealed FROM records WHERE bucket = 'good') WHERE bucket = 'damaged'",
        "UPDATE records SET grant_id = x'00' WHERE bucket = 'damaged'",
        "UPDATE records SET generation = generation - 1 WHERE bucket = 'damaged'",
        "UPDATE records SET presented = '{}' WHERE bucket = 'damaged'",
        "UPDATE records SET attempt = 'x' WHERE bucket = 'damaged'",
        "UPDATE records SET latch = '' WHERE bucket = 'damaged'",
    ] {
        let subject = OnDisk::new().await;
        let store = subject.open().await;
        put(&store, &corp, &grant(1, 2)).await;
        put(&store, &account("corp/good"), &grant(3, 2)).await;
        subject.sql(damage).await;

        assert!(matches!(store.load(&corp).await, Err(StoreError::Unreadable { account }) if account == corp));
        let entries = store.list().await.unwrap();
        assert_eq!(entries.iter().map(|entry| entry.record.is_ok()).collect::<Vec<_>>(), [false, true], "{damage}");
        assert!(is_taken(claim(&store, &account("corp/good")).await));

        assert!(matches!(store.delete(&corp, &Expect::Present).await.unwrap(), Deleted::Gone(None)), "{damage}");
        assert!(store.load(&corp).await.unwrap().is_none());
        put(&store, &corp, &grant(4, 2)).await;
        subject.sql(damage).await;
        assert_eq!(store.put(&corp, &grant(2, 1), &Expect::Present, &[]).await.unwrap(), PutGrant::Done(Put::Replaced));
        assert_same(&load(&store, &corp).await.grant, &grant(2, 1));
    }
}

#[tokio::test]
async fn a_damaged_item_leaves_the_others_and_the_records_usable() {
    let (bad, good) = (name("bad"), name("good"));
    for damage in [
        "UPDATE items SET sealed = zeroblob(length(sealed)) WHERE name = 'bad'",
        "UPDATE items SET sealed = x'' WHERE name = 'bad'",
        "UPDATE items SET sealed = (SELECT sealed FROM items WHERE name = 'good') WHERE name = 'bad'",
        "UPDATE items SET tag = x'00' WHERE name = 'bad'",
        "UPDATE items SET tag = zeroblob(16) WHERE name = 'bad'",
        "DELETE FROM items WHERE name = 'bad'; UPDATE items SET name = 'bad' WHERE name = 'other'",
        "UPDATE OR REPLACE items SET kind = 'api_key' WHERE kind = 'sandbox'",
    ] {
        let subject = OnDisk::new().await;
        let store = subject.open().await;
        for (tag, name) in (1..).zip([&bad, &good, &name("other")]) {
            put_item(&store, name, tag).await;
        }
        store.put_item(ItemKind::Sandbox, &bad, &item(1), &Expect::Whatever).await.unwrap();
        put(&store, &account("corp"), &grant(1, 1)).await;
        subject.sql(damage).await;

        let found = store.item(ItemKind::ApiKey, &bad).await;
        let Err(StoreError::UnreadableItem { kind: ItemKind::ApiKey, name }) = found else { panic!("{damage}") };
        assert_eq!(name, bad);
        let entries = store.items(ItemKind::ApiKey).await.unwrap();
        let opens: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), entry.item.is_ok())).collect();
        assert_eq!(opens[..2], [("bad", false), ("good", true)], "{damage}");
        assert_item(load_item(&store, &good).await, 2);
        assert_same(&load(&store, &account("corp")).await.grant, &grant(1, 1));

        let delete = store.delete_item(ItemKind::ApiKey, &bad, &Expect::Present).await;
        assert_eq!(delete.unwrap(), Removed::Gone, "{damage}");
        put_item(&store, &bad, 9).await;
        assert_item(load_item(&store, &bad).await, 9);
    }
}

#[tokio::test]
async fn an_item_of_a_later_format_or_with_a_damaged_name_is_left_alone() {
    let subject = OnDisk::new().await;
    let store = subject.open().await;
    for (tag, text) in (1..).zip(["good", "newer", "renamed"]) {
        put_item(&store, &name(text), tag).await;
    }
    subject.sql("UPDATE items SET sealed = x'0700' WHERE name = 'newer'").await;
    subject.sql("UPDATE items SET name = '../x' WHERE name = 'renamed'").await;
    let entries = store.items(ItemKind::ApiKey).await.unwrap();
    assert_eq!(entries.len(), 2);
    assert!(entries[0].item.is_ok());
    assert!(matches!(entries[1].item, Err(StoreError::NewerItem { format: 7, .. })), "{:?}", entries[1]);
}

#[tokio::test]
async fn a_record_of_a_later_format_or_with_a_damaged_name_is_left_alone() {
    let subject = OnDisk::new().await;
    let store = subject.open().await;
    for (id, name) in (1..).zip(["corp/newer", "corp/renamed", "corp/good"]) {
        put(&store, &account(name), &grant(id, 1)).await;
    }
    subject.sql("UPDATE records SET sealed = x'0700' WHERE bucket = 'newer'").await;
    subject.sql("UPDATE records SET bucket = '../x' WHERE bucket = 'renamed'").await;
    let entries = store.list().await.unwrap();
    assert_eq!(entries.len(), 2);
    assert!(entries[0].record.is_ok());
    assert!(matches!(entries[1].record, Err(StoreError::NewerRecord { format: 7, .. })), "{:?}", entries[1]);
}

#[tokio::test]
async fn a_write_that_failed_changes_nothing_and_the_next_one_works() {
    let subject = OnDisk::new().await;
    let (store, other) = (subject.open().await, subject.open().await);
    let corp = account("corp");
    put(&store, &corp, &grant(1, 1)).await;
    subject.sql("CREATE TRIGGER no_put BEFORE INSERT ON records BEGIN SELECT RAISE(FAIL, 'no'); END").await;
    subject.sql("CREATE TRIGGER no_save BEFORE UPDATE ON records BEGIN SELECT RAISE(FAIL, 'no'); END").await;
    subject.sql("CREATE TRIGGER no_delete BEFORE DELETE ON records BEGIN SELECT RAISE(FAIL, 'no'); END").await;
    let one = name("one");
    put_item(&store, &one, 1).await;
    subject.sql("CREATE TRIGGER no_item BEFORE INSERT ON items BEGIN SELECT RAISE(FAIL, 'no'); END").await;
    subject.sql("CREATE TRIGGER no_removal BEFORE DELETE ON items BEGIN SELECT RAISE(FAIL, 'no'); END").await;
    for _ in 0..2 {
        let failures = [
            store.put(&corp, &grant(2, 1), &Expect::Whatever, &[]).await.unwrap_err(),
            store.delete(&corp, &Expect::Whatever).await.unwrap_err(),
            store.save(&corp, grant(1, 1).version, &grant(1, 2), &refresh_state()).await.unwrap_err(),
            store.settle(&corp, grant(1, 1).version, &refresh_state()).await.unwrap_err(),
            store.put_item(ItemKind::ApiKey, &one, &item(2), &Expect::Whatever).await.unwrap_err(),
            store.delete_item(ItemKind::ApiKey, &one, &Expect::Whatever).await.unwrap_err(),
        ];
        assert!(failures.iter().all(StoreError::is_transient), "{failures:?}");
    }
    assert_same(&load(&store, &corp).await.grant, &grant(1, 1));
    assert_item(load_item(&store, &one).await, 1);
    subject.sql("DROP TRIGGER no_put; DROP TRIGGER no_save; DROP TRIGGER no_delete").await;
    put(&other, &corp, &grant(1, 2)).await;
    assert!(store.save(&corp, grant(1, 2).version, &grant(1, 3), &refresh_state()).await.unwrap());
    assert_same(&load(&other, &corp).await.grant, &grant(1, 3));
}

#[tokio::test]
async fn a_lease_outlives_the_loss_of_the_owner_files_while_nobody_takes_it() {
    let subject = OnDisk::new().await;
    let (store, other) = (subject.open().await, subject.open().await);
    for name in ["corp/kept", "corp/lost"] {
        put(&store, &account(name), &grant(if name == "corp/lost" { 1 } else { 2 }, 1)).await;
        assert!(is_taken(claim(&store, &account(name)).await));
    }
    // The store looks after its file now and then, and may have made it again in this very moment.
    while !is_taken(claim(&other, &account("corp/lost")).await) {
        fs::remove_dir_all(subject.directory().join("owners")).ok();
    }
    let settled = store.settle(&account("corp/lost"), grant(1, 1).version, &RefreshState::default()).await.unwrap();
    assert!(!settled, "the mark of who took the lease stands");
    assert_eq!(load(&store, &account("corp/lost")).await.refresh_state.presented, Some(presented(1)));
    assert_eq!(claim(&store, &account("corp/lost")).await, Claim::Held);
    assert_eq!(claim(&other, &account("corp/kept")).await, Claim::Held, "it came back to life with its next claim");
}

#[tokio::test]
async fn a_closed_store_answers_nothing_and_frees_its_leases() {
    let subject = OnDisk::new().await;
    let (store, other) = (subject.open().await, subject.open().await);
    let corp = account("corp");
    put(&store, &corp, &grant(1, 1)).await;
    assert!(is_taken(claim(&store, &corp).await));
    store.close().await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(store.load(&corp).await, Err(StoreError::Unavailable(_))));
    assert!(matches!(store.delete(&corp, &Expect::Whatever).await, Err(StoreError::Unavailable(_))));
    assert!(is_taken(claim(&other, &corp).await));
}

#[tokio::test]
async fn the_files_of_dead_owners_are_swept_at_the_next_start() {
    let subject = OnDisk::new().await;
    let owners = || fs::read_dir(subject.directory().join("owners")).unwrap().count();
    let living = subject.open().await;
    drop(subject.open().await);
    assert_eq!(owners(), 2);
    drop(subject.open().await);
    assert_eq!(owners(), 2);
    drop(living);
}

#[tokio::test]
async fn a_key_that_is_lost_or_open_to_others_is_refused() {
    let subject = OnDisk::new().await;
    let path = subject.directory().join("store.key");
    let made = key::from_file(&path, Sqlite::exists(&subject.file())).unwrap();
    Sqlite::open(&subject.file(), made, "store.key").await.unwrap().close().await.unwrap();
    let read = key::from_file(&path, Sqlite::exists(&subject.file())).unwrap();
    Sqlite::open(&subject.file(), read, "store.key").await.unwrap().close().await.unwrap();

    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    assert!(reason(key::from_file(&path, true)).contains("chmod 600"));
    fs::remove_file(&path).unwrap();
    assert!(reason(key::from_file(&path, Sqlite::exists(&subject.file()))).contains("put the key back"));
    assert!(!path.exists());
}

#[test]
fn grant_ids_are_random() {
    assert_ne!(random_grant_id().unwrap(), random_grant_id().unwrap());
}

#[tokio::test]
async fn a_store_whose_only_connection_was_closed_after_an_error_is_still_read() {
    let subject = OnDisk::new().await;
    let store = subject.open().await;
    let corp = account("corp");
    put(&store, &corp, &grant(1, 1)).await;
    subject.sql("CREATE TRIGGER no_put BEFORE INSERT ON records BEGIN SELECT RAISE(FAIL, 'no'); END").await;
    assert!(store.put(&corp, &grant(2, 1), &Expect::Whatever, &[]).await.is_err());
    assert_same(&load(&store, &corp).await.grant, &grant(1, 1));
}
