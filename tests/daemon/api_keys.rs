//! The real program and its API keys: by the command line, over two sockets, through kills, a change of the store's key
//! and damage; and no key in a log, a list or an error.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _, sqlite::SqliteConnectOptions};

use crate::support::{
    daemon::{Daemon, Home},
    http::request,
};

const SANDBOX: &str = "[sockets.agents]\npath = \"{home}/run/agents/s\"\nrole = \"sandbox\"\n\
                       operations = [\"keys\"]\nkeys = [\"openai\"]\n";

async fn start(home: &Arc<Home>) -> Daemon {
    Daemon::start(home, "a", SANDBOX, &[]).await
}

async fn end(daemon: &mut Daemon) {
    daemon.sigterm();
    assert!(daemon.wait().await.success());
}

fn stderr(output: &Output) -> &str {
    str::from_utf8(&output.stderr).unwrap()
}

#[track_caller]
fn succeeds(output: &Output) -> &str {
    assert!(output.status.success(), "{}: {}", output.status, stderr(output));
    str::from_utf8(&output.stdout).unwrap()
}

/// Ends with this exit code, prints no data, and says all of this.
#[track_caller]
fn fails(output: &Output, code: i32, texts: &[&str]) {
    let said = stderr(output);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(code), &b""[..]), "{said}");
    assert!(texts.iter().all(|text| said.contains(text)), "{texts:?} in {said}");
}

async fn set(daemon: &Daemon, name: &str, key: &str) {
    succeeds(&daemon.command(&["key", "set", name], key).await);
}

async fn get(daemon: &Daemon, name: &str) -> String {
    succeeds(&daemon.command(&["key", "get", name], "").await).to_owned()
}

async fn sql(home: &Home, statement: &'static str) {
    let file = home.path().join("data/credproxy.db");
    let options = SqliteConnectOptions::new().filename(file).busy_timeout(Duration::from_secs(5));
    let mut connection = options.connect().await.unwrap();
    sqlx::raw_sql(statement).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_key_goes_in_by_the_command_line_and_comes_out_as_it_was() {
    let home = Home::new();
    let mut daemon = start(&home).await;
    let first = daemon.command(&["key", "set", "openai"], "canary-sk-1\n").await;
    assert_eq!((succeeds(&first), stderr(&first)), ("", "stored the API key openai\n"));
    assert_eq!(get(&daemon, "openai").await, "canary-sk-1\n");
    let again = daemon.command(&["key", "set", "openai"], "canary-sk-2").await;
    assert_eq!((succeeds(&again), stderr(&again)), ("", "replaced the API key openai\n"));

    let pem = "-----BEGIN KEY-----\ncanary+/=\n-----END KEY-----\n";
    set(&daemon, "deploy@host", pem).await;
    assert_eq!(get(&daemon, "deploy@host").await, pem);
    let json: Value =
        serde_json::from_str(succeeds(&daemon.command(&["--json", "key", "get", "openai"], "").await)).unwrap();
    assert_eq!((&json["name"], &json["api_key"]), (&json!("openai"), &json!("canary-sk-2")));

    let list = daemon.command(&["key", "list"], "").await;
    let names: Vec<_> = succeeds(&list).lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(names, ["NAME", "deploy@host", "openai"]);
    let list = daemon.command(&["key", "list", "--json"], "").await;
    let list: Value = serde_json::from_str(succeeds(&list)).unwrap();
    assert_eq!(list["api_keys"][1], json!({"name": "openai", "readable": true, "created_at": json["created_at"]}));
    assert!(!list.to_string().contains("canary"), "{list}");

    let removed = daemon.command(&["key", "remove", "openai"], "").await;
    assert!(succeeds(&removed).is_empty() && stderr(&removed).contains("still good"), "{}", stderr(&removed));
    for command in ["get", "remove"] {
        let gone = daemon.command(&["key", command, "openai"], "").await;
        fails(&gone, 6, &["error: no API key is stored under this name (NOT_FOUND)", "hint:", "key set openai"]);
    }
    succeeds(&daemon.command(&["key", "remove", "deploy@host"], "").await);
    let none = daemon.command(&["key", "list"], "").await;
    assert_eq!((succeeds(&none), stderr(&none)), ("", "no API keys; set one with `credproxy key set NAME`\n"));
    end(&mut daemon).await;
}

#[tokio::test]
async fn on_a_terminal_a_key_is_asked_for_and_not_shown() {
    let home = Home::new();
    let daemon = start(&home).await;
    let typed = [("the API key openai:", "canary-typed")];
    let (status, shown) = daemon.command_on_terminal(&["key", "set", "openai"], &typed).await;
    assert!(status.success() && shown.contains("stored the API key openai"), "{shown}");
    assert_eq!(get(&daemon, "openai").await, "canary-typed\n");
    let (status, shown) = daemon.command_on_terminal(&["key", "set", "openai"], &[("the API key openai:", "")]).await;
    assert!(status.code() == Some(1) && shown.contains("error: the API key is empty"), "{shown}");
}

#[tokio::test]
async fn what_is_no_key_is_refused_before_anybody_is_asked_and_never_quoted() {
    let home = Home::new();
    // Nobody listens.
    let daemon = Daemon::prepare(&home, "a", "", &[]);
    let long = "canary-".repeat(10_000);
    for (input, reason) in [
        ("", "the API key is empty"),
        ("\n", "the API key is empty"),
        ("canary-\r\ncanary-\r\n", "tr -d '\\r'"),
        ("canary-\u{1b}[2J", "control character"),
        ("canary-refresh_token", "contains \"refresh_token\""),
        (&long, "longer than 64 KiB"),
    ] {
        fails(&daemon.command(&["key", "set", "openai"], input).await, 1, &[reason]);
    }
    fails(&daemon.command(&["key", "set", "openai"], "canary-sk").await, 5, &["credproxy serve"]);
    for usage in [&["key"][..], &["key", "set"], &["key", "set", "a/b"], &["key", "set", "openai", "value"]] {
        assert_eq!(daemon.command(usage, "").await.status.code(), Some(2), "{usage:?}");
    }
}

#[tokio::test]
async fn a_sandbox_has_the_keys_on_its_list_alone() {
    let home = Home::new();
    let daemon = start(&home).await;
    set(&daemon, "openai", "canary-mine").await;
    set(&daemon, "hidden", "canary-hidden").await;
    let socket = home.path().join("run/agents/s");
    let answer = request(&socket, "GET", "/v1/api-keys/openai", &[], "").await;
    assert_eq!((answer.status, &answer.json()["api_key"]), (200, &json!("canary-mine")));

    let socket = socket.to_str().unwrap();
    let sandbox = async |arguments: &[&str]| daemon.command(&[&["--socket", socket], arguments].concat(), "x").await;
    assert_eq!(succeeds(&sandbox(&["key", "get", "openai"]).await), "canary-mine\n");
    assert!(!succeeds(&sandbox(&["key", "list"]).await).contains("hidden"));
    let mut said = Vec::new();
    for arguments in
        [["key", "get", "hidden"], ["key", "get", "nowhere"], ["key", "set", "openai"], ["key", "remove", "hidden"]]
    {
        let refused = sandbox(&arguments).await;
        fails(&refused, 7, &["UNAUTHORIZED", "`keys`"]);
        said.push(stderr(&refused).to_owned());
    }
    said.dedup();
    assert_eq!(said.len(), 1, "{said:?}");
}

#[tokio::test]
async fn a_key_that_was_set_outlives_a_kill_and_other_daemons_see_it() {
    let home = Home::new();
    let mut daemon = start(&home).await;
    let other = Daemon::start(&home, "b", "", &[]).await;
    let body = |number: u32| json!({ "api_key": format!("canary-{number}") }).to_string();
    let json = [("content-type", "application/json")];
    for number in 0..20 {
        let path = format!("/v1/api-keys/key-{number}");
        assert_eq!(daemon.request("PUT", &path, &json, body(number)).await.status, 201);
        daemon.kill9().await;
        let seen = other.request("GET", &path, &[], "").await.json();
        assert_eq!(seen["api_key"], format!("canary-{number}"));
        daemon.launch().await;
        assert_eq!(daemon.request("GET", &path, &[], "").await.json(), seen);
        assert_eq!(other.request("PUT", &path, &json, body(100)).await.status, 204);
        assert_eq!(daemon.request("GET", &path, &[], "").await.json()["api_key"], "canary-100");
        assert_eq!(other.request("DELETE", &path, &[], "").await.status, 204);
        assert_eq!(daemon.request("GET", &path, &[], "").await.status, 404);
    }
}

#[tokio::test]
async fn keys_are_backed_up_verified_and_sealed_anew_and_never_lie_open() {
    let home = Home::new();
    let mut daemon = start(&home).await;
    set(&daemon, "openai", "canary-sk-1").await;
    let copy = home.path().join("copy");
    let backup = daemon.command(&["store", "backup", copy.to_str().unwrap()], "").await;
    succeeds(&backup);
    assert!(stderr(&backup).contains("0 records and 1 item"), "{}", stderr(&backup));
    set(&daemon, "openai", "canary-sk-2").await;
    end(&mut daemon).await;

    let rekeyed = daemon.command(&["--json", "store", "rekey"], "").await;
    let rekeyed: Value = serde_json::from_str(succeeds(&rekeyed)).unwrap();
    assert_eq!((&rekeyed["records"], &rekeyed["items"]), (&json!(0), &json!(1)));
    let verified = daemon.command(&["store", "verify"], "").await;
    assert!(succeeds(&verified).contains("ok  API key openai"), "{verified:?}");
    daemon.launch().await;
    assert_eq!(get(&daemon, "openai").await, "canary-sk-2\n");
    end(&mut daemon).await;
    for file in files_below(&home.path().join("data")).iter().chain([&copy]) {
        let content = fs::read(file).unwrap();
        assert!(!content.windows(6).any(|window| window == b"canary"), "{}", file.display());
    }
}

#[tokio::test]
async fn a_damaged_key_stops_no_other_and_can_be_mended() {
    let home = Home::new();
    let daemon = start(&home).await;
    for name in ["bad", "good", "newer"] {
        set(&daemon, name, &format!("canary-{name}")).await;
    }
    sql(&home, "UPDATE items SET sealed = CAST(substr(sealed, 1, 40) || x'00' || substr(sealed, 42) AS BLOB) WHERE name = 'bad'").await;
    sql(&home, "UPDATE items SET sealed = CAST(x'09' || substr(sealed, 2) AS BLOB) WHERE name = 'newer'").await;
    assert_eq!(get(&daemon, "good").await, "canary-good\n");
    for (name, remedy) in [("bad", "remove it and make it again"), ("newer", "use the version that wrote it")] {
        let answer = daemon.request("GET", &format!("/v1/api-keys/{name}"), &[], "").await;
        assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("STORE_UNAVAILABLE")), "{name}");
        assert!(answer.retry_after().is_none(), "it will not heal by itself");
        assert!(answer.json()["detail"].as_str().unwrap().contains(remedy), "{}", answer.text());
    }
    let list = daemon.command(&["key", "list"], "").await;
    let unreadable: Vec<_> = succeeds(&list).lines().filter(|line| line.ends_with("cannot be read")).collect();
    assert_eq!(unreadable.len(), 2, "{list:?}");
    let verify = daemon.command(&["store", "verify"], "").await;
    assert_eq!(verify.status.code(), Some(1));
    assert!(stderr(&verify).contains("3 items") && stderr(&verify).contains("2 of which do not open"), "{verify:?}");

    set(&daemon, "bad", "canary-mended").await;
    assert_eq!(get(&daemon, "bad").await, "canary-mended\n");
    succeeds(&daemon.command(&["key", "remove", "newer"], "").await);
    succeeds(&daemon.command(&["store", "verify"], "").await);
}
