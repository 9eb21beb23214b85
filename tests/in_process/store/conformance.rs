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

mod grants;
mod items;
mod leases;
mod sqlite;

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

macro_rules! conformance {
    ($($module:ident { $($case:ident)* })*) => {
        mod in_memory {
            use super::*;
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$module::$case(&InMemory::new().await).await;
                }
            )*)*
        }

        mod on_disk {
            use super::*;
            $($(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$module::$case(&OnDisk::new().await).await;
                }
            )*)*
        }
    };
}

conformance! {
    grants {
        every_field_comes_back
        a_put_tells_what_it_found
        a_delete_gives_back_what_it_took
        a_probe_changes_nothing_that_a_caller_sees
        grant_and_marks_outlive_their_owner
        the_epoch_tells_of_others_changes_only
        the_list_is_in_the_order_of_accounts
        the_names_are_those_of_the_list_and_only_what_is_wanted_is_read
        names_that_differ_in_the_place_of_the_slash_stay_apart
        a_caller_that_hangs_up_leaves_no_change_half_made
    }
    leases {
        a_claim_at_an_earlier_revision_changes_nothing
        a_living_owner_keeps_its_lease_and_a_dead_one_loses_it
        the_holder_may_claim_again
        a_claim_leaves_the_other_marks
        settling_and_saving_release_the_lease
        a_late_result_changes_nothing
        a_late_success_wins_over_a_settled_failure
        of_many_claims_at_once_one_is_taken
    }
    items {
        an_item_comes_back_and_has_its_kind_for_itself
        a_put_of_an_item_tells_what_it_found
        a_delete_of_an_item_tells_what_it_found
        the_items_of_a_kind_are_in_the_order_of_names
        items_outlive_their_owner_and_others_are_told_of_each_change
    }
}
