//! What the store on disk must do besides: its files, its key, its formats, and damage.

use super::*;

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
