//! How a sandbox comes, what it is good for, and how it goes.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    process::Stdio,
};

use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    time::{sleep, timeout},
};

use crate::{
    sandboxes::{LOOK, SOON, Sandbox, World, ask, code, text},
    support::http::{open, raw},
};

const TOKEN: &str = "/v1/tokens/corp";

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_reaches_what_it_is_allowed_until_it_is_deleted() {
    let world = World::new().await;
    let sandbox = world.sandbox(&json!({"allow": ["corp"]})).await;
    let told = &sandbox.told;
    assert_eq!((&told["allow"], &told["operations"]), (&json!(["corp/default"]), &json!(["read", "refresh"])));
    assert_eq!((&told["keys"], &told["tied"], told.get("capability")), (&json!([]), &json!(false), None));

    // A directory of its own, with exactly one socket in it.
    let directory = fs::symlink_metadata(sandbox.directory()).unwrap();
    assert!(directory.is_dir() && directory.permissions().mode() & 0o7777 == 0o700);
    let found: Vec<_> = fs::read_dir(sandbox.directory()).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].path(), sandbox.socket());
    assert_eq!(text(&told["socket"]), sandbox.socket().to_str().unwrap());
    let socket = found[0].metadata().unwrap();
    assert!(socket.file_type().is_socket() && socket.permissions().mode() & 0o7777 == 0o600);

    // Its account, and no other, by no way.
    assert_eq!(sandbox.status("GET", TOKEN).await, 200);
    assert_eq!(sandbox.status("POST", "/v1/tokens/corp/refresh").await, 200);
    let seen = sandbox.ask("GET", "/v1/tokens", "").await.json();
    assert_eq!(seen["tokens"].as_array().unwrap().len(), 1, "{seen}");
    let seen = sandbox.ask("GET", "/v1/providers", "").await.json();
    assert_eq!(seen["providers"].as_array().unwrap().len(), 1, "{seen}");
    for (method, target, body) in [
        ("GET", "/v1/tokens/corp?bucket=work", ""),
        ("GET", "/v1/tokens/other", ""),
        ("GET", "/v1/tokens/nobody", ""),
        ("POST", "/v1/tokens/other/refresh", ""),
        ("PUT", TOKEN, r#"{"access_token": "at"}"#),
        ("DELETE", TOKEN, ""),
        ("POST", "/v1/logins", r#"{"provider": "corp"}"#),
        ("POST", "/v1/sandboxes", "{}"),
        ("GET", "/v1/sandboxes", ""),
        ("GET", &sandbox.path(), ""),
        ("DELETE", &sandbox.path(), ""),
    ] {
        let refused = sandbox.ask(method, target, body).await;
        assert_eq!(code(&refused), (403, "UNAUTHORIZED".into()), "{method} {target}");
    }

    // The host sees it, and ends it.
    assert_eq!(world.sandboxes().await, std::slice::from_ref(told));
    assert_eq!(world.host("GET", &sandbox.path(), "").await.json(), *told);
    assert_eq!(world.host("DELETE", &sandbox.path(), "").await.status, 204);
    assert!(!sandbox.directory().exists());
    world.all_gone().await;
    for method in ["GET", "DELETE"] {
        assert_eq!(code(&world.host(method, &sandbox.path(), "").await), (404, "NOT_FOUND".into()), "{method}");
    }
    assert_eq!(world.host("GET", TOKEN, "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deletion_cuts_those_who_are_connected() {
    let world = World::new().await;
    let sandbox = world.sandbox(&json!({"allow": ["corp/*"]})).await;
    let tag = sandbox.ask("GET", TOKEN, "").await.header("etag").unwrap().to_owned();
    let mut idle = open(&sandbox.socket()).await;
    let mut waiting = open(&sandbox.socket()).await;
    let request = format!("GET {TOKEN} HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\nPrefer: wait=60\r\n\r\n");
    waiting.write_all(request.as_bytes()).await.unwrap();
    let deleted = timeout(SOON, world.host("DELETE", &sandbox.path(), "")).await.expect("nobody is waited for");
    assert_eq!(deleted.status, 204);
    for (stream, name) in [(&mut idle, "idle"), (&mut waiting, "waiting")] {
        let mut answer = Vec::new();
        // A reset is as good an end.
        drop(timeout(SOON, stream.read_to_end(&mut answer)).await.expect("the connection is closed"));
        assert!(answer.is_empty(), "{name}: {}", String::from_utf8_lossy(&answer));
    }
}

/// What is there after the daemon was started again.
async fn assert_kept(world: &World, sandbox: &Sandbox, inode: u64) {
    assert_eq!(fs::metadata(sandbox.directory()).unwrap().ino(), inode, "a container has the old directory mounted");
    assert_eq!(sandbox.status("GET", TOKEN).await, 200);
    assert_eq!(sandbox.status("GET", "/v1/tokens/other").await, 403);
    assert_eq!(ask(&sandbox.socket(), "GET", TOKEN, None, "").await.status, 403, "without the capability");
    let mut told = sandbox.told.clone();
    told.as_object_mut().unwrap().remove("capability");
    assert_eq!(world.sandboxes().await, [told]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_survives_the_daemon_s_restart_and_its_death() {
    let mut world = World::new().await;
    let wanted = json!({"allow": ["corp", "nowhere/*"], "operations": ["read", "keys"], "keys": ["openai"],
        "capability": true, "ttl": 600});
    let sandbox = world.sandbox(&wanted).await;
    let inode = fs::metadata(sandbox.directory()).unwrap().ino();
    world.restart().await;
    assert_kept(&world, &sandbox, inode).await;
    world.daemon.kill9().await;
    assert!(sandbox.socket().exists());
    world.launch().await;
    assert_kept(&world, &sandbox, inode).await;

    // What was deleted does not come back.
    assert_eq!(world.host("DELETE", &sandbox.path(), "").await.status, 204);
    world.daemon.kill9().await;
    world.launch().await;
    assert_eq!(world.sandboxes().await, Vec::<Value>::new());
    assert!(!sandbox.directory().exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_ends_with_its_time_whether_or_not_the_daemon_runs() {
    let mut world = World::new().await;
    let short = world.sandbox(&json!({"allow": ["corp"], "ttl": 1})).await;
    let mut idle = open(&short.socket()).await;
    world.all_gone().await;
    assert_eq!(idle.read(&mut [0]).await.unwrap_or(0), 0, "who is connected is cut");

    let short = world.sandbox(&json!({"allow": ["corp"], "ttl": 1})).await;
    world.daemon.kill9().await;
    let expires_at = short.told["expires_at"].as_i64().unwrap();
    while credproxy::clock::Clock::now(&credproxy::clock::SystemClock::new()).as_secs() <= expires_at {
        sleep(LOOK).await;
    }
    assert!(short.socket().exists());
    world.launch().await;
    world.all_gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_the_capability_is_told_nothing() {
    let world = World::new().await;
    let sandbox = world.sandbox(&json!({"allow": ["corp"], "capability": true})).await;
    let other = world.sandbox(&json!({"allow": ["corp"], "capability": true})).await;
    let open = world.sandbox(&json!({"allow": ["corp"]})).await;
    assert_eq!(sandbox.status("GET", TOKEN).await, 200);
    // Where none is demanded, one that is shown does no harm.
    assert_eq!(ask(&open.socket(), "GET", TOKEN, Some("anything"), "").await.status, 200);

    let right = sandbox.capability.clone().unwrap();
    let mut refusals = Vec::new();
    let longer = format!("{right}A");
    for wrong in [None, other.capability.as_deref(), Some(""), Some("x"), Some(&right[1..]), Some(&longer)] {
        for target in [TOKEN, "/v1/tokens/other", "/v1/health", "/openapi.yaml", "/nowhere", "/v1/tokens?bukcet=a"] {
            let refused = ask(&sandbox.socket(), "GET", target, wrong, "").await;
            assert_eq!(code(&refused), (403, "UNAUTHORIZED".into()), "{target}");
            refusals.push(refused.text());
        }
    }
    refusals.dedup();
    // Nor does a method: every head is the same but for what the body adds.
    let mut heads = Vec::new();
    for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PATCH", "PUT", "POST", "DELETE", "BREW"] {
        for target in [TOKEN, "/v1/tokens", "/v1/sandboxes", "/v1/logins", "/v1/health", "/nope", "/"] {
            let request = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let answer = raw(&sandbox.socket(), request.as_bytes(), SOON).await;
            let answer = String::from_utf8(answer).unwrap().to_ascii_lowercase();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("http/1.1 403") && !head.contains("allow"), "{method} {target}: {head}");
            assert_eq!(body.is_empty(), method == "HEAD", "{method} {target}");
            let lines = head.lines().filter(|line| !line.starts_with("date:"));
            heads.push(lines.map(str::to_owned).collect::<Vec<_>>());
        }
    }
    heads.dedup();
    assert_eq!(heads.len(), 1, "{heads:?}");
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert!(refusals[0].contains("wrong capability"), "{refusals:?}");
    assert_eq!(sandbox.status("GET", TOKEN).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_so_many_sandboxes_and_no_more() {
    let world = World::new().await;
    let mut made = Vec::new();
    for _ in 0..64 {
        made.push(world.sandbox(&json!({})).await);
    }
    let refused = world.wanted(&json!({})).await;
    assert_eq!(code(&refused), (429, "RATE_LIMITED".into()));
    assert_eq!((world.sandboxes().await.len(), world.directories().len()), (64, 64));
    let last = made.pop().unwrap();
    assert_eq!(world.host("DELETE", &last.path(), "").await.status, 204);
    world.sandbox(&json!({})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_not_understood_makes_nothing() {
    let world = World::new().await;
    for bad in [
        json!([]),
        json!("corp"),
        json!({"allow": "corp"}),
        json!({"allow": [""]}),
        json!({"allow": ["*"]}),
        json!({"allow": ["corp/"]}),
        json!({"allow": ["corp/home/x"]}),
        json!({"allow": ["refresh_token"]}),
        json!({"allow": [7]}),
        json!({"allow": null}),
        json!({"operations": null}),
        json!({"ttl": null}),
        json!({"operations": ["write"]}),
        json!({"operations": "read"}),
        json!({"keys": ["../x"]}),
        json!({"ttl": 0}),
        json!({"ttl": -1}),
        json!({"ttl": 1.5}),
        json!({"ttl": "1h"}),
        json!({"ttl": 2_592_001}),
        json!({"ttl": u64::MAX}),
        json!({"capability": "yes"}),
        json!({"tied": 1}),
        json!({"alow": ["corp"]}),
        json!({"directory": "/tmp/x"}),
    ] {
        assert_eq!(code(&world.wanted(&bad).await), (400, "INVALID_REQUEST".into()), "{bad}");
    }
    for (target, body) in [("/v1/sandboxes", ""), ("/v1/sandboxes", "{"), ("/v1/sandboxes?x=1", "{}")] {
        assert_eq!(code(&world.host("POST", target, body).await), (400, "INVALID_REQUEST".into()), "{body}");
    }
    let large = json!({"allow": vec!["corp"; 10_000]});
    assert_eq!(code(&world.wanted(&large).await), (413, "INVALID_REQUEST".into()));
    for id in ["x", "..", "%2e%2e", &"A".repeat(32), &"a".repeat(31), &"0".repeat(32)] {
        let unknown = world.host("DELETE", &format!("/v1/sandboxes/{id}"), "").await;
        assert_eq!(code(&unknown), (404, "NOT_FOUND".into()), "{id}");
    }
    assert_eq!((world.sandboxes().await.len(), world.directories().len()), (0, 0));
    let longest = world.sandbox(&json!({"ttl": 2_592_000})).await;
    assert_eq!(longest.status("GET", "/v1/health").await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tied_sandbox_ends_with_the_process_that_made_it() {
    let world = World::new().await;
    // This process lives on.
    let ours = world.sandbox(&json!({"allow": ["corp"], "tied": true})).await;
    assert_eq!(ours.told["tied"], json!(true));
    let curl = Command::new("curl")
        .args(["-s", "--unix-socket"])
        .arg(world.daemon.socket())
        .args(["-H", "Content-Type: application/json", "-d", r#"{"tied": true}"#, "http://x/v1/sandboxes"])
        .stdin(Stdio::null())
        .output();
    let theirs: Value = serde_json::from_slice(&curl.await.unwrap().stdout).unwrap();
    let gone = async {
        while world.sandboxes().await.len() > 1 {
            sleep(LOOK).await;
        }
    };
    timeout(SOON, gone).await.expect("it outlives its process");
    assert!(!std::path::Path::new(text(&theirs["directory"])).exists());
    assert_eq!(ours.status("GET", TOKEN).await, 200);
}

/// Holds the database against all writers until it is closed.
async fn locked(world: &World) -> SqliteConnection {
    let file = world.home.path().join("data/credproxy.db");
    let mut database = SqliteConnectOptions::new().filename(file).connect().await.unwrap();
    sqlx::query("BEGIN EXCLUSIVE").execute(&mut database).await.unwrap();
    database
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_written_keeps_no_sandbox_alive_and_makes_none() {
    let mut world = World::new().await;
    let sandbox = world.sandbox(&json!({"allow": ["corp"]})).await;
    let holder = locked(&world).await;
    let refused = world.wanted(&json!({"allow": ["corp"]})).await;
    assert_eq!(code(&refused), (503, "STORE_UNAVAILABLE".into()));
    assert_eq!(world.directories().len(), 1);
    let refused = world.host("DELETE", &sandbox.path(), "").await;
    assert_eq!(code(&refused), (503, "STORE_UNAVAILABLE".into()));
    assert!(!sandbox.directory().exists());
    assert_eq!(world.sandboxes().await, Vec::<Value>::new());
    holder.close().await.unwrap();
    assert_eq!(world.host("DELETE", &sandbox.path(), "").await.status, 204);
    world.daemon.kill9().await;
    world.launch().await;
    assert_eq!(world.sandboxes().await, Vec::<Value>::new());
    assert!(!sandbox.directory().exists());
}
