use std::os::unix::fs::PermissionsExt as _;

use secrecy::ExposeSecret as _;

use super::*;
use crate::{
    clock::Timestamp,
    grant::{Extra, Grant, GrantId, Version},
    item::{Item, ItemTag},
    secret::{AccessToken, Content, Passphrase, RefreshToken, StoreKey},
    store::{
        Expect, ItemStore as _, Store as _,
        key::{self, passphrase::Derivation},
        sqlite::Sqlite,
    },
};

struct Bench(tempfile::TempDir);

impl Bench {
    /// A store of some accounts and two items, whose key is in a file.
    async fn new(accounts: usize) -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        let store = bench.open().await.unwrap();
        for number in 0..accounts {
            store.put(&account(number), &grant(number), &Expect::Whatever, &[]).await.unwrap();
        }
        for kind in ItemKind::ALL {
            store.put_item(kind, &name("one"), &item(kind), &Expect::Whatever).await.unwrap();
        }
        store.close().await.unwrap();
        bench
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("data/credproxy.db")
    }

    fn key_file(&self) -> PathBuf {
        self.0.path().join("data/store.key")
    }

    fn key(&self) -> KeyMaterial {
        key::from_file(&self.key_file(), Sqlite::exists(&self.file())).unwrap().into()
    }

    fn staged(&self) -> KeyMaterial {
        key::staged(&self.key_file()).unwrap().unwrap().into()
    }

    async fn open(&self) -> Result<Sqlite, StoreError> {
        Sqlite::open(&self.file(), self.key(), "store.key").await
    }

    async fn examine(&self, key: KeyMaterial) -> Result<Examination, StoreError> {
        examine(&self.file(), key, "store.key").await
    }

    async fn begin(&self) -> Result<Rekeying, StoreError> {
        Rekeying::begin(&self.file(), self.key(), "store.key").await
    }

    async fn sql(&self, statement: &'static str) {
        let mut connection =
            sqlx::ConnectOptions::connect(&StoreFiles::new(&self.file()).unwrap().options()).await.unwrap();
        run(&mut connection, statement).await.unwrap();
        connection.close().await.unwrap();
    }
}

fn account(number: usize) -> Account {
    format!("corp/{number}").parse().unwrap()
}

fn name(text: &str) -> ItemName {
    text.parse().unwrap()
}

fn item(kind: ItemKind) -> Item {
    Item { tag: ItemTag::from_bytes([5; 16]), content: Content::new(format!("canary-{kind}").into_bytes()) }
}

#[expect(clippy::disallowed_methods, reason = "compares contents in a test")]
fn assert_same(left: &Item, right: &Item) {
    assert_eq!((left.tag, left.content.expose_secret()), (right.tag, right.content.expose_secret()));
}

fn grant(number: usize) -> Grant {
    Grant {
        version: Version { id: GrantId::from_bytes([7; 16]), generation: 3 },
        access_token: AccessToken::new(format!("canary-at-{number}")).unwrap(),
        token_type: "Bearer".into(),
        issued_at: Timestamp::from_secs(1),
        expires_at: None,
        scope: None,
        refresh_token: Some(RefreshToken::new(format!("canary-rt-{number}")).unwrap()),
        extra: Extra::default(),
    }
}

#[track_caller]
fn assert_wrong_key<T: std::fmt::Debug>(result: &Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::WrongKey { .. })), "{result:?}");
}

/// More than one page of the rows that are sealed anew at a time.
const MANY: usize = 600;

#[tokio::test]
async fn every_record_opens_with_the_new_key_alone_and_is_the_same_grant() {
    let bench = Bench::new(MANY).await;
    let old = bench.key();
    key::stage(&bench.key_file()).unwrap();
    let mut rekeying = bench.begin().await.unwrap();
    let before = rekeying.key_id().unwrap();
    let done = rekeying.reseal_all(bench.staged()).await.unwrap();
    assert_eq!((done.records, done.items), (MANY, 2));
    assert_ne!(done.key, before);
    rekeying.end().await.unwrap();

    assert_wrong_key(&bench.examine(old).await);
    let found = bench.examine(bench.staged()).await.unwrap();
    assert!(found.is_sound() && found.records.len() == MANY && found.key == done.key);
    key::switch(&bench.key_file(), &bench.staged().secret).unwrap();
    let store = bench.open().await.unwrap();
    let record = store.load(&account(42)).await.unwrap().unwrap();
    #[expect(clippy::disallowed_methods, reason = "compares tokens in a test")]
    let token = record.grant.access_token.expose_secret().to_owned();
    assert_eq!((token.as_str(), record.grant.version), ("canary-at-42", grant(42).version));
    for kind in ItemKind::ALL {
        let kept = store.item(kind, &name("one")).await.unwrap().unwrap();
        assert_same(&kept, &item(kind));
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_change_of_the_key_that_is_cut_off_changes_nothing_before_its_commit() {
    let bench = Bench::new(3).await;
    key::stage(&bench.key_file()).unwrap();
    drop(bench.begin().await.unwrap());
    assert_wrong_key(&bench.examine(bench.staged()).await);
    assert!(bench.examine(bench.key()).await.unwrap().is_sound());
    bench.open().await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn a_change_that_fails_in_the_middle_changes_nothing() {
    let bench = Bench::new(MANY).await;
    bench.sql("UPDATE records SET sealed = x'0102' WHERE bucket = '599'").await;
    key::stage(&bench.key_file()).unwrap();
    let mut rekeying = bench.begin().await.unwrap();
    let failed = rekeying.reseal_all(bench.staged()).await;
    assert!(matches!(&failed, Err(StoreError::Unreadable { account: bad }) if *bad == account(599)), "{failed:?}");
    drop(rekeying);
    let found = bench.examine(bench.key()).await.unwrap();
    assert_eq!(found.records.iter().filter(|(_, opens)| opens.is_ok()).count(), MANY - 1);
}

#[tokio::test]
async fn a_change_that_fails_at_an_item_changes_no_record_either() {
    let bench = Bench::new(3).await;
    bench.sql("UPDATE items SET tag = x'01' WHERE kind = 'sandbox'").await;
    key::stage(&bench.key_file()).unwrap();
    let mut rekeying = bench.begin().await.unwrap();
    let failed = rekeying.reseal_all(bench.staged()).await;
    assert!(matches!(&failed, Err(StoreError::UnreadableItem { kind: ItemKind::Sandbox, .. })), "{failed:?}");
    drop(rekeying);
    let found = bench.examine(bench.key()).await.unwrap();
    assert_eq!((found.records.len(), found.unreadable().count()), (3, 1));
}

#[tokio::test]
async fn the_key_is_not_changed_under_a_living_owner_and_nobody_comes_in_meanwhile() {
    let bench = Bench::new(1).await;
    let store = bench.open().await.unwrap();
    let refused = bench.begin().await;
    assert!(matches!(refused, Err(StoreError::InUse { .. })), "{refused:?}");
    store.close().await.unwrap();

    let rekeying = bench.begin().await.unwrap();
    let files = StoreFiles::new(&bench.file()).unwrap();
    tokio::time::pause();
    assert!(matches!(files.lock().await, Err(StoreError::Unavailable(_))));
    tokio::time::resume();
    rekeying.end().await.unwrap();
    bench.open().await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn a_passphrase_takes_the_place_of_a_key_and_the_other_way_round() {
    let bench = Bench::new(2).await;
    assert_eq!(derivation(&bench.file()).await.unwrap(), None);
    let passphrase = Passphrase::new("canary horse".into()).unwrap();
    let made = Derivation::new().unwrap();
    let next = KeyMaterial { secret: made.key(&passphrase).unwrap(), derivation: Some(made.clone()) };
    let mut rekeying = bench.begin().await.unwrap();
    rekeying.reseal_all(next).await.unwrap();
    rekeying.end().await.unwrap();

    let written = derivation(&bench.file()).await.unwrap().unwrap();
    assert_eq!(written, made);
    let again = written.key(&passphrase).unwrap();
    let mut rekeying = Rekeying::begin(&bench.file(), again.into(), "the passphrase").await.unwrap();
    rekeying.reseal_all(bench.key()).await.unwrap();
    rekeying.end().await.unwrap();
    assert_eq!(derivation(&bench.file()).await.unwrap(), None);
    assert!(bench.examine(bench.key()).await.unwrap().is_sound());
}

#[tokio::test]
async fn a_store_begun_with_a_passphrase_tells_how_its_key_is_made() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("data/credproxy.db");
    assert_eq!(derivation(&file).await.unwrap(), None);
    let made = Derivation::new().unwrap();
    let key = KeyMaterial { secret: StoreKey::new([3; 32]), derivation: Some(made.clone()) };
    Sqlite::open(&file, key, "the passphrase").await.unwrap().close().await.unwrap();
    assert_eq!(derivation(&file).await.unwrap(), Some(made));
}

#[tokio::test]
async fn a_backup_is_the_store_at_one_moment_private_and_new() {
    let bench = Bench::new(3).await;
    let store = bench.open().await.unwrap();
    let target = bench.0.path().join("copy.db");
    let copied = back_up(&bench.file(), bench.key(), "store.key", &target).await.unwrap();
    store.put(&account(9), &grant(9), &Expect::Whatever, &[]).await.unwrap();
    assert!(copied.is_sound() && copied.records.len() == 3 && copied.items.len() == 2);
    assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
    let found = examine(&target, bench.key(), "store.key").await.unwrap();
    assert!(found.is_sound() && found.records.len() == 3 && found.key == copied.key);

    let again = back_up(&bench.file(), bench.key(), "store.key", &target).await.unwrap_err().to_string();
    assert!(again.contains("nothing is written over"), "{again}");
    assert_wrong_key(&back_up(&bench.file(), StoreKey::new([0; 32]).into(), "k", &target.with_extension("b")).await);
    let left: Vec<_> = fs::read_dir(bench.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the data and the copy: {left:?}");
    store.close().await.unwrap();

    // It is a store like any other.
    let restored = Sqlite::open(&target, bench.key(), "store.key").await.unwrap();
    assert_eq!(restored.list().await.unwrap().len(), 3);
    let kept = restored.item(ItemKind::ApiKey, &name("one")).await.unwrap().unwrap();
    assert_same(&kept, &item(ItemKind::ApiKey));
    restored.close().await.unwrap();
}

#[tokio::test]
async fn damage_is_found_record_by_record() {
    let bench = Bench::new(3).await;
    bench.sql("UPDATE records SET sealed = x'0102' WHERE bucket = '1'").await;
    bench.sql("UPDATE records SET sealed = CAST(x'09' || substr(sealed, 2) AS BLOB) WHERE bucket = '2'").await;
    bench.sql("INSERT INTO records SELECT 'corp', 'bad name', sealed, grant_id, 1, 1, NULL, NULL, NULL, NULL, NULL, NULL FROM records LIMIT 1").await;
    bench.sql("UPDATE items SET sealed = x'0102' WHERE kind = 'api_key'").await;
    bench.sql("INSERT INTO items SELECT kind, 'bad name', tag, sealed FROM items LIMIT 1").await;
    bench.sql("INSERT INTO items SELECT 'mystery', name, tag, sealed FROM items LIMIT 1").await;
    let found = bench.examine(bench.key()).await.unwrap();
    assert!(!found.is_sound() && found.damage.is_empty() && found.nameless == 3, "{found:?}");
    let errors: Vec<_> = found.records.iter().map(|(_, opens)| opens.as_ref().err().map(ToString::to_string)).collect();
    assert_eq!(errors[0], None);
    assert!(errors[1].as_ref().unwrap().contains("corp/1 cannot be read"), "{errors:?}");
    assert!(errors[2].as_ref().unwrap().contains("format 9"), "{errors:?}");
    let [(ItemKind::ApiKey, _, Err(error)), (ItemKind::Sandbox, _, Ok(()))] = &found.items[..] else {
        panic!("{:?}", found.items)
    };
    assert!(error.to_string().starts_with("the API key one cannot be read"), "{error}");
    assert_eq!(found.unreadable().count(), 3);
}

#[tokio::test]
async fn a_store_of_an_earlier_format_is_examined_and_copied_as_it_is_and_rekeyed_as_one_of_today() {
    let bench = Bench::new(3).await;
    for newer in [
        "DROP TRIGGER refresh_token_replaced",
        "DROP TRIGGER spent_tokens_are_limited",
        "DROP TABLE spent_tokens",
        "DROP INDEX records_by_fingerprint",
        "ALTER TABLE records DROP COLUMN fingerprint",
        "ALTER TABLE records DROP COLUMN copied",
        "ALTER TABLE meta DROP COLUMN fingerprint_key",
        "ALTER TABLE meta DROP COLUMN place",
        "DROP TABLE items",
    ] {
        bench.sql(newer).await;
    }
    bench.sql("PRAGMA user_version = 1").await;
    let target = bench.0.path().join("copy.db");
    for found in [
        bench.examine(bench.key()).await.unwrap(),
        back_up(&bench.file(), bench.key(), "store.key", &target).await.unwrap(),
        examine(&target, bench.key(), "store.key").await.unwrap(),
    ] {
        assert!(found.is_sound() && found.records.len() == 3 && found.items.is_empty(), "{found:?}");
    }
    let mut connection = StoreFiles::new(&target).unwrap().connect_to_read().await.unwrap().unwrap();
    let format: i64 = sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut connection).await.unwrap();
    assert_eq!(format, 1, "who only looks changes nothing");
    connection.close().await.unwrap();

    key::stage(&bench.key_file()).unwrap();
    let mut rekeying = bench.begin().await.unwrap();
    let done = rekeying.reseal_all(bench.staged()).await.unwrap();
    assert_eq!((done.records, done.items), (3, 0));
    rekeying.end().await.unwrap();
    assert!(bench.examine(bench.staged()).await.unwrap().is_sound());
}
