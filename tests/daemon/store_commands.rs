//! The real program and its store: where the key is, what `store backup`, `verify` and `rekey` do, and how much is
//! left when a record, a key or the file is not what it was.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::PathBuf,
    process::Output,
    sync::Arc,
    time::Duration,
};

use credproxy::clock::{Clock as _, SystemClock};
use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};

use tokio::task::JoinSet;

use crate::support::{
    daemon::{Daemon, Home},
    issuer::{Answer, Gate, Issuer},
};

const KEY: &str = "5555555555555555555555555555555555555555555555555555555555555555";
const OTHER_KEY: &str = "6666666666666666666666666666666666666666666666666666666666666666";

fn config(issuer: &Issuer, key: &str) -> String {
    format!(
        "[store]\nurl = \"sqlite://{{home}}/data/credproxy.db\"\nkey = {key:?}\n\n[refresh]\ncooldown = \"0s\"\n\n\
         [providers.corp]\ntoken_endpoint = \"{}\"\nclient_id = \"me\"\n",
        issuer.token_endpoint()
    )
}

async fn start(issuer: &Issuer, home: &Arc<Home>, key: &str, env: &[(&str, &str)]) -> Daemon {
    Daemon::start(home, "a", &config(issuer, key), env).await
}

/// Stores a grant that the issuer knows.
async fn log_in(daemon: &Daemon, issuer: &Issuer, account: &str) {
    let (access, refresh) = issuer.new_grant();
    daemon.watch_refresh_token(&refresh);
    let grant = json!({ "access_token": access, "refresh_token": refresh, "expires_in": 3600 }).to_string();
    succeeds(&daemon.command(&["import", account], &grant).await);
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, stderr(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Fails with exit code 1, and says all of this.
#[track_caller]
fn fails(output: &Output, texts: &[&str]) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(texts.iter().all(|text| said.contains(text)), "{texts:?} in {said}");
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn status_of(daemon: &Daemon, path: &str) -> u16 {
    daemon.request("GET", path, &[], "").await.status
}

async fn end(daemon: &mut Daemon) {
    daemon.sigterm();
    assert!(daemon.wait().await.success());
}

fn database(home: &Home) -> PathBuf {
    home.path().join("data/credproxy.db")
}

/// Does to the database what no daemon would.
async fn sql(home: &Home, statement: &'static str) {
    let options = SqliteConnectOptions::new().filename(database(home)).busy_timeout(Duration::from_secs(5));
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

fn private_file(path: &PathBuf, text: &str) {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.unwrap().write_all(text.as_bytes()).unwrap();
}

/// Names another place for the key in the daemon's configuration.
fn move_key(daemon: &Daemon, from: &str, to: &str) {
    let text = fs::read_to_string(daemon.config()).unwrap();
    let changed = text.replace(&format!("key = {from:?}"), &format!("key = {to:?}"));
    assert_ne!(text, changed);
    File::create(daemon.config()).unwrap().write_all(changed.as_bytes()).unwrap();
}

async fn verification(daemon: &Daemon) -> Value {
    let output = daemon.command(&["--json", "store", "verify"], "").await;
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(&output)))
}

#[tokio::test]
async fn a_store_opens_again_with_the_key_of_each_source() {
    let issuer = Issuer::start().await;
    for source in ["file", "env:STORE_KEY", "command:printf '%s\\n' $STORE_KEY", "credential:store.key"] {
        let home = Home::new();
        private_file(&home.path().join("store.key"), KEY);
        let credentials = home.path().display().to_string();
        let env = [("STORE_KEY", KEY), ("CREDENTIALS_DIRECTORY", credentials.as_str())];
        let mut daemon = start(&issuer, &home, source, &env).await;
        daemon.watch_secret(KEY);
        log_in(&daemon, &issuer, "corp").await;
        daemon.restart().await;
        assert_eq!(status_of(&daemon, "/v1/tokens/corp").await, 200, "{source}");
        succeeds(&daemon.command(&["check"], "").await);
        assert_eq!(home.path().join("data/store.key").exists(), source == "file");
    }
}

#[tokio::test]
async fn a_key_that_cannot_be_had_is_an_error_that_tells_what_to_do_and_shows_no_value() {
    let issuer = Issuer::start().await;
    let home = Home::new();
    let mut daemon = start(&issuer, &home, "file", &[("BAD", "canary-bad"), ("OTHER", OTHER_KEY)]).await;
    end(&mut daemon).await;
    let mut before = "file";
    for (source, texts) in [
        ("env:ABSENT", &["env:", "not set"][..]),
        ("env:BAD", &["env:", "64 hexadecimal digits"]),
        ("env:OTHER", &["env:", "does not open", "put back the key"]),
        ("command:echo canary-out; echo canary-err >&2; false", &["command:", "failed"]),
        ("credential:store.key", &["credential:", "LoadCredential="]),
        ("passphrase", &["not made of one", "rekey --to passphrase"]),
    ] {
        move_key(&daemon, before, source);
        fails(&daemon.command(&["serve"], "").await, texts);
        before = source;
    }
}

#[tokio::test]
async fn without_a_keyring_or_a_terminal_the_other_places_are_named_at_once() {
    let issuer = Issuer::start().await;
    for source in ["keyring", "passphrase"] {
        let home = Home::new();
        let other = start(&issuer, &Home::new(), "file", &[]).await;
        let text = config(&issuer, source).replace("{home}", &home.path().display().to_string());
        File::create(other.config()).unwrap().write_all(text.as_bytes()).unwrap();
        // A command that takes longer than 40 s fails the test; a keyring that hung would be waited for 60 s.
        let output = other.command(&["serve"], "").await;
        fails(&output, &["\"file\"", "env:NAME", "command:CMD", "credential:NAME"]);
        assert!(!database(&home).exists(), "nothing is made that no key would open");
    }
}

#[tokio::test]
async fn a_passphrase_is_asked_for_on_the_terminal_and_a_wrong_one_is_said_to_be() {
    let issuer = Issuer::start().await;
    let home = Home::new();
    let mut daemon = start(&issuer, &home, "file", &[]).await;
    log_in(&daemon, &issuer, "corp").await;
    end(&mut daemon).await;

    let rekey = ["store", "rekey", "--to", "passphrase"];
    let (status, shown) =
        daemon.command_on_terminal(&rekey, &[("new passphrase", "canary-horse"), ("again", "canary-house")]).await;
    assert!(!status.success() && shown.contains("differ"), "{shown}");
    let (status, shown) =
        daemon.command_on_terminal(&rekey, &[("new passphrase", "canary-horse"), ("again", "canary-horse")]).await;
    assert!(status.success() && shown.contains("sealed 1 record"), "{shown}");

    fails(&daemon.command(&["serve"], "").await, &["sealed with a passphrase", "key = \"passphrase\""]);
    move_key(&daemon, "file", "passphrase");
    let verify = ["store", "verify"];
    let (status, shown) = daemon.command_on_terminal(&verify, &[("passphrase of", "canary-house")]).await;
    assert!(!status.success() && shown.contains("the passphrase is wrong"), "{shown}");
    let (status, shown) = daemon.command_on_terminal(&verify, &[("passphrase of", "canary-horse")]).await;
    assert!(status.success() && shown.contains("corp/default"), "{shown}");
    fails(&daemon.command(&["serve"], "").await, &["no terminal", "env:NAME"]);
}

#[tokio::test]
async fn a_backup_of_a_store_in_use_opens_and_nothing_is_written_over() {
    let issuer = Issuer::start().await;
    let home = Home::new();
    let mut daemon = start(&issuer, &home, "file", &[]).await;
    for number in 0..3 {
        log_in(&daemon, &issuer, &format!("corp/{number}")).await;
    }
    let mut connection = daemon.connect().await;
    let refreshes = async {
        for _ in 0..30 {
            assert_eq!(connection.request("POST", "/v1/tokens/corp/refresh?bucket=0", &[], "").await.status, 200);
        }
    };
    let backups = async {
        for number in 0..3 {
            let file = home.path().join(format!("copy-{number}"));
            let said = daemon.command(&["store", "backup", file.to_str().unwrap()], "").await;
            succeeds(&said);
            assert!(stderr(&said).contains("3 records") && stderr(&said).contains("store.key"), "{}", stderr(&said));
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
            let verified = succeeds(&daemon.command(&["store", "verify", file.to_str().unwrap()], "").await);
            assert_eq!(verified.lines().count(), 3, "{verified}");
        }
    };
    tokio::join!(refreshes, backups);
    let file = home.path().join("copy-0");
    let again = daemon.command(&["store", "backup", file.to_str().unwrap()], "").await;
    fails(&again, &["nothing is written over"]);

    // Put back, it serves.
    end(&mut daemon).await;
    fs::remove_file(database(&home)).unwrap();
    fs::rename(home.path().join("copy-2"), database(&home)).unwrap();
    daemon.launch().await;
    assert_eq!(status_of(&daemon, "/v1/tokens/corp?bucket=1").await, 200);
}

#[tokio::test]
async fn a_damaged_record_stops_nobody_else_and_can_be_mended() {
    let issuer = Issuer::start().await;
    let home = Home::new();
    let mut daemon = start(&issuer, &home, "file", &[]).await;
    for name in ["corp/good", "corp/bad", "corp/newer"] {
        log_in(&daemon, &issuer, name).await;
    }
    end(&mut daemon).await;
    sql(&home, "UPDATE records SET sealed = CAST(substr(sealed, 1, 40) || x'00' || substr(sealed, 42) AS BLOB) WHERE bucket = 'bad'")
        .await;
    sql(&home, "UPDATE records SET sealed = CAST(x'09' || substr(sealed, 2) AS BLOB) WHERE bucket = 'newer'").await;
    daemon.launch().await;

    assert_eq!(status_of(&daemon, "/v1/tokens/corp?bucket=good").await, 200);
    assert_eq!(daemon.request("POST", "/v1/tokens/corp/refresh?bucket=good", &[], "").await.status, 200);
    for (bucket, remedy) in [("bad", "delete it and log in again"), ("newer", "use the version that wrote it")] {
        let answer = daemon.request("GET", &format!("/v1/tokens/corp?bucket={bucket}"), &[], "").await;
        assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("STORE_UNAVAILABLE")), "{bucket}");
        assert!(answer.retry_after().is_none(), "it will not heal by itself");
        assert!(answer.json()["detail"].as_str().unwrap().contains(remedy), "{}", answer.text());
    }
    assert_eq!(status_of(&daemon, "/v1/health").await, 200);
    let list = daemon.request("GET", "/v1/tokens", &[], "").await.json();
    let errors: Vec<_> = list["tokens"].as_array().unwrap().iter().map(|token| &token["last_error"]).collect();
    assert_eq!(errors, [&json!("record_unreadable"), &Value::Null, &json!("record_unreadable")], "{list}");

    let verify = daemon.command(&["store", "verify"], "").await;
    fails(&verify, &["2 of which do not open"]);
    let table = String::from_utf8_lossy(&verify.stdout).into_owned();
    assert!(table.contains("wrong  corp/bad ") && table.contains("ok     corp/good"), "{table}");
    fails(&daemon.command(&["check"], "").await, &[]);

    log_in(&daemon, &issuer, "corp/bad").await;
    assert_eq!(status_of(&daemon, "/v1/tokens/corp?bucket=bad").await, 200);
    succeeds(&daemon.command(&["logout", "corp/newer"], "").await);
    assert_eq!(status_of(&daemon, "/v1/tokens/corp?bucket=newer").await, 404);
    assert_eq!(verification(&daemon).await["ok"], json!(true));
}

#[tokio::test]
async fn a_store_that_is_not_ours_to_open_is_an_error_that_tells_what_to_do() {
    let issuer = Issuer::start().await;
    let home = Home::new();
    let mut daemon = start(&issuer, &home, "file", &[]).await;
    log_in(&daemon, &issuer, "corp").await;
    end(&mut daemon).await;
    let key = home.path().join("data/store.key");
    let good = fs::read_to_string(&key).unwrap();
    for command in [&["serve"][..], &["store", "verify"], &["store", "rekey"], &["store", "backup", "copy"]] {
        private_file(&key, OTHER_KEY);
        fails(&daemon.command(command, "").await, &["does not open", "put back the key"]);
        private_file(&key, &good);
        sql(&home, "PRAGMA user_version = 4").await;
        fails(&daemon.command(command, "").await, &["has format 4", "use the version that wrote it"]);
        sql(&home, "PRAGMA user_version = 3").await;
    }
    daemon.launch().await;
    assert_eq!(status_of(&daemon, "/v1/tokens/corp").await, 200, "and nothing was damaged further");
    end(&mut daemon).await;
    private_file(&database(&home), &"no database ".repeat(1000));
    fails(&daemon.command(&["serve"], "").await, &["not a SQLite database", "put back a copy"]);
    fails(&daemon.command(&["store", "verify"], "").await, &["not a SQLite database"]);
}

#[tokio::test]
async fn the_key_is_changed_while_no_daemon_runs() {
    let issuer = Issuer::start().await;
    let home = Home::new();
    let mut daemon = start(&issuer, &home, "file", &[("NEXT_KEY", OTHER_KEY)]).await;
    log_in(&daemon, &issuer, "corp").await;
    fails(&daemon.command(&["store", "rekey"], "").await, &["in use", "stop the daemon"]);
    end(&mut daemon).await;
    let file = home.path().join("data/store.key");
    let old = fs::read_to_string(&file).unwrap();
    let said: Value =
        serde_json::from_str(&succeeds(&daemon.command(&["--json", "store", "rekey"], "").await)).unwrap();
    assert!(said["records"] == 1 && said["before"] != said["key"], "{said}");
    assert_eq!(verification(&daemon).await["key"], said["key"]);
    assert_ne!(fs::read_to_string(&file).unwrap(), old);
    daemon.launch().await;
    assert_eq!(status_of(&daemon, "/v1/tokens/corp").await, 200);
    end(&mut daemon).await;

    let moved = daemon.command(&["store", "rekey", "--to", "env:NEXT_KEY"], "").await;
    succeeds(&moved);
    assert!(stderr(&moved).contains("set [store] key"), "{}", stderr(&moved));
    fails(&daemon.command(&["serve"], "").await, &["does not open"]);
    move_key(&daemon, "file", "env:NEXT_KEY");
    fails(&daemon.command(&["store", "rekey"], "").await, &["--to"]);
    daemon.launch().await;
    assert_eq!(status_of(&daemon, "/v1/tokens/corp").await, 200);
    let bad = daemon.command(&["store", "rekey", "--to", "vault"], "").await;
    assert_eq!(bad.status.code(), Some(2), "{}", stderr(&bad));
}

/// Spread over the time that a whole change takes.
const KILLS: u32 = 24;

#[tokio::test]
async fn a_change_of_the_key_that_is_killed_leaves_a_store_that_opens() {
    let issuer = Issuer::start().await;
    let home = Home::new();
    let mut daemon = start(&issuer, &home, "file", &[]).await;
    for number in 0..40 {
        let (access, refresh) = issuer.new_grant();
        let grant = json!({ "access_token": access, "refresh_token": refresh, "expires_in": 3600 }).to_string();
        let path = format!("/v1/tokens/corp?bucket={number}");
        let headers = [("content-type", "application/json")];
        assert_eq!(daemon.request("PUT", &path, &headers, grant).await.status, 201);
    }
    end(&mut daemon).await;
    let clock = SystemClock::new();
    let began = clock.monotonic();
    succeeds(&daemon.command(&["store", "rekey"], "").await);
    let whole = clock.monotonic().since(began);
    let mut key = verification(&daemon).await["key"].clone();
    let mut changed = 0;
    for kill in 0..KILLS {
        daemon.command_killed_after(&["store", "rekey"], whole * kill / KILLS).await;
        let found = verification(&daemon).await;
        assert!(found["ok"] == true && found["records"].as_array().unwrap().len() == 40, "{found}");
        changed += u32::from(found["key"] != key);
        key = found["key"].clone();
    }
    eprintln!("{changed} of {KILLS} changes were made before they were killed");
    daemon.launch().await;
    assert_eq!(status_of(&daemon, "/v1/tokens/corp?bucket=7").await, 200);
    end(&mut daemon).await;
    succeeds(&daemon.command(&["store", "rekey"], "").await);
    let left: Vec<_> =
        fs::read_dir(home.path().join("data")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("next")), "{left:?}");
}

#[tokio::test]
async fn a_refresh_that_a_kill_cut_off_is_reported_and_won_back_by_the_next() {
    let issuer = Issuer::start().await;
    issuer.set_grace(Duration::from_hours(1));
    let home = Home::new();
    let mut daemon = start(&issuer, &home, "file", &[]).await;
    log_in(&daemon, &issuer, "corp").await;
    let gate = Gate::new();
    issuer.script(Answer::HoldAfter(gate.clone()));
    let mut connection = daemon.connect().await;
    let mut callers = JoinSet::new();
    callers.spawn(async move { drop(connection.try_request("POST", "/v1/tokens/corp/refresh", &[], "").await) });
    gate.wait_for_arrivals(1).await;
    let last_error = async |daemon: &Daemon| {
        daemon.request("GET", "/v1/tokens", &[], "").await.json()["tokens"][0]["last_error"].clone()
    };
    assert_eq!(last_error(&daemon).await, Value::Null, "what is under way is no error");
    daemon.kill9().await;
    gate.open();
    callers.join_all().await;

    daemon.launch().await;
    assert_eq!(last_error(&daemon).await, json!("interrupted"));
    let shown = succeeds(&daemon.command(&["status"], "").await);
    assert!(shown.contains("interrupted"), "{shown}");
    assert_eq!(status_of(&daemon, "/v1/tokens/corp").await, 200);
    assert_eq!(daemon.request("POST", "/v1/tokens/corp/refresh", &[], "").await.status, 200);
    assert_eq!(last_error(&daemon).await, Value::Null);
}
