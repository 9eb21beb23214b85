//! Signals, standard streams, the environment, and what the log holds.

use std::{
    io::Read as _,
    process::Stdio,
    sync::{Arc, Mutex},
};

use rustix::process::Signal;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
    time::timeout,
};

use crate::{
    support::{
        daemon::{Daemon, Home},
        http::{code, open},
        issuer::{Answer, Gate, Issuer, Raw},
        mounts::Mounts,
        skip::skip,
    },
    world::{AT_ONCE, CLIENT_SECRET, JSON, REFRESH, TOKEN, World, access_token, log_in, store_key, table},
};

#[tokio::test(flavor = "multi_thread")]
async fn every_signal_that_ends_it_ends_it_in_order_whoever_holds_a_connection() {
    for signals in [&[Signal::TERM][..], &[Signal::INT, Signal::INT], &[Signal::HUP], &[Signal::TERM, Signal::HUP]] {
        let mut world = World::new().await;
        let half = |rest: &str| format!("POST {REFRESH} HTTP/1.1\r\nHost: x\r\n{rest}");
        let mut held = Vec::new();
        for bytes in [String::new(), half("Conte"), half("Content-Length: 5\r\n\r\n{")] {
            let mut stream = open(&world.daemon.socket()).await;
            stream.write_all(bytes.as_bytes()).await.unwrap();
            held.push(stream);
        }
        world.assert_unhurt("half requests").await;
        for signal in signals {
            // The first may have ended it.
            rustix::process::kill_process(world.daemon.pid(), *signal).ok();
        }
        let status = timeout(AT_ONCE, world.daemon.wait()).await.expect("it waits for peers that say nothing");
        assert_eq!(status.code(), Some(0), "{signals:?}");
        assert!(!world.daemon.socket().exists(), "{signals:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_though_the_look_up_of_a_name_never_does() {
    // Who reads the file waits for its writer, which there is none of.
    let hosts = "mkfifo \"$PLACE/hosts\" && mount --bind \"$PLACE/hosts\" /etc/hosts";
    let (home, _mounts) = match Mounts::home("etc", hosts) {
        Ok(mounted) => mounted,
        Err(why) => {
            skip(&why);
            return;
        }
    };
    let config = "[providers.corp]\ntoken_endpoint = \"https://nowhere.example/token\"\nclient_id = \"me\"\n";
    let mut daemon = Daemon::start(&home, "a", config, &[]).await;
    let grant = json!({"access_token": "canary-at", "refresh_token": "canary-rt-1", "expires_in": 3600}).to_string();
    assert_eq!(daemon.request("PUT", TOKEN, &[JSON], grant).await.status, 201);
    let failed = daemon.request("POST", REFRESH, &[], "").await;
    assert!([502, 504].contains(&failed.status), "{}", failed.text());
    daemon.sigterm();
    assert!(timeout(AT_ONCE, daemon.wait()).await.expect("it waits for the look-up").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_that_mean_nothing_change_nothing() {
    let world = World::new().await;
    for signal in [Signal::PIPE, Signal::CONT, Signal::WINCH, Signal::CHILD] {
        world.daemon.signal(signal);
    }
    world.assert_unhurt("signals").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_interrupt_does_not_lose_the_refresh_under_way() {
    let mut world = World::new().await;
    let gate = Gate::new();
    world.issuer.script(Answer::HoldAfter(gate.clone()));
    let mut connection = world.daemon.connect().await;
    let mut caller = JoinSet::new();
    caller.spawn(async move { connection.request("POST", REFRESH, &[], "").await });
    gate.wait_for_arrivals(1).await;
    world.daemon.signal(Signal::INT);
    world.daemon.signal(Signal::INT);
    gate.open();
    assert_eq!(world.daemon.wait().await.code(), Some(0));
    let fresh = access_token(&caller.join_all().await[0]);
    assert_ne!(fresh, world.access_token);
    world.daemon.launch().await;
    assert_eq!(access_token(&world.daemon.request("GET", TOKEN, &[], "").await), fresh);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_reads_stops_nothing() {
    let mut world = World::new().await;
    world.daemon.kill9().await;
    for reader_stays in [true, false] {
        let (mut reader, writer) = std::io::pipe().unwrap();
        world.daemon.launch_into(&[], Stdio::null(), writer.into()).await;
        if !reader_stays {
            drop(reader);
            reader = std::io::pipe().unwrap().0;
        }
        // Each connection that breaks is a line; a pipe has room for 64 KiB.
        let noise = async {
            for _ in 0..1500 {
                let mut stream = open(&world.daemon.socket()).await;
                stream.write_all(b"GET / HTTP/1.1\r\nHo").await.unwrap();
            }
        };
        timeout(AT_ONCE * 2, noise).await.expect("the daemon waits for its log's reader");
        world.assert_unhurt("a full pipe").await;
        world.daemon.sigterm();
        assert_eq!(timeout(AT_ONCE, world.daemon.wait()).await.expect("it ends").code(), Some(0));
        if reader_stays {
            let mut log = String::new();
            reader.read_to_string(&mut log).unwrap();
            assert!(log.len() > 60_000, "the pipe was not full: {}", log.len());
            assert!(!log.contains("canary-"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_standard_streams_end_up_in_no_file_of_the_daemons() {
    let mut world = World::new().await;
    world.daemon.kill9().await;
    world.daemon.launch_into(&["sh", "-c", "exec \"$@\" <&- >&- 2>&-", "sh"], Stdio::null(), Stdio::null()).await;
    assert_eq!(world.daemon.request("GET", "/nowhere", &[], "").await.status, 404);
    drop(open(&world.daemon.socket()).await.write_all(b"x").await);
    world.assert_unhurt("closed streams").await;
    world.daemon.restart().await;
    world.assert_unhurt("its restart").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_of_any_kind_is_in_the_loudest_log() {
    let mut world = World::with("[refresh]\ncooldown = \"0s\"\n").await;
    let key = store_key(&world.home);
    for digits in &key {
        world.daemon.watch_secret(digits);
    }
    let refresh = || world.daemon.request("POST", REFRESH, &[], "");
    assert_eq!(refresh().await.status, 200);
    let id_token = json!({"access_token": "canary-at-x", "refresh_token": "canary-rt-y", "id_token": "canary-id",
        "authed_user": {"refresh_token": "canary-rt-z"}, "token_type": "canary-type", "scope": "canary-scope"});
    world.issuer.script(Answer::Raw(Raw::json(200, &id_token).header("x-canary", "canary-header")));
    assert_eq!(refresh().await.status, 200);
    for answer in
        [Raw::error(400, "canary-code"), Raw::new(500, "text/html", "canary-prose"), Raw::error(401, "invalid_grant")]
    {
        world.issuer.script(Answer::Raw(answer));
        drop(refresh().await);
        log_in_again(&world.daemon, &world.issuer).await;
    }
    for body in
        ["{\"api_key\": \"canary-key\"}", "{\"api_key\": \"canary\\r\"}", "{\"api_key\": \"canary-key\", \"canary-x\""]
    {
        drop(world.daemon.request("PUT", "/v1/api-keys/openai", &[JSON], body).await);
    }
    for (method, target) in [
        ("GET", TOKEN),
        ("HEAD", TOKEN),
        ("GET", "/v1/api-keys"),
        ("GET", "/v1/api-keys/openai"),
        ("GET", "/v1/api-keys/openai?x=canary-query"),
        ("GET", "/v1/api-keys/canary%20name"),
        ("GET", "/v1/tokens"),
        ("GET", "/v1/providers"),
        ("GET", "/v1/health"),
        ("GET", "/v1/tokens/corp?bucket=canary-bucket&x=canary-query"),
        ("GET", "/canary-path"),
        ("POST", "/v1/tokens/corp/refresh?canary=1"),
    ] {
        drop(
            world
                .daemon
                .request(method, target, &[("authorization", "Bearer canary-header"), ("prefer", "canary-p")], "")
                .await,
        );
    }
    drop(world.daemon.request("PUT", TOKEN, &[JSON], "{\"access_token\": \"canary-at-1\", \"canary-x\"}").await);
    for arguments in [
        &["token", "corp"][..],
        &["key", "get", "openai"],
        &["status"],
        &["refresh", "corp"],
        &["check"],
        &["logout", "corp"],
    ] {
        drop(world.daemon.command(arguments, "").await);
    }
    world.daemon.restart().await;
    log_in(&world.daemon, &world.issuer, TOKEN).await;
    assert!(world.daemon.output_text().contains("DEBUG"), "the log is loud");
    // What the output holds is looked at when the daemon is dropped.
}

async fn log_in_again(daemon: &Daemon, issuer: &Issuer) {
    assert_eq!(daemon.request("DELETE", TOKEN, &[], "").await.status, 200);
    log_in(daemon, issuer, TOKEN).await;
}

/// Remembers the first line of whatever it is asked, and closes.
async fn proxy(tasks: &mut JoinSet<()>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 4096];
            let count = stream.read(&mut bytes).await.unwrap();
            log.lock()
                .unwrap()
                .push(String::from_utf8_lossy(&bytes[..count]).lines().next().unwrap_or_default().to_owned());
        }
    });
    (address, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_of_the_environments_gets_tunnels_to_far_providers_alone() {
    let mut tasks = JoinSet::new();
    let (address, asked) = proxy(&mut tasks).await;
    let (issuer, home) = (Issuer::start().await, Home::new());
    let far = |name: &str| {
        format!("[providers.{name}]\ntoken_endpoint = \"https://{name}.invalid/token\"\nclient_id = \"me\"\n")
    };
    let config =
        [table("corp", &issuer), far("far"), far("near"), "[refresh]\nrequest_timeout = \"2s\"\n".into()].concat();
    let env = [
        ("SECRET", CLIENT_SECRET),
        ("HTTP_PROXY", &address),
        ("HTTPS_PROXY", &address),
        ("ALL_PROXY", &address),
        ("NO_PROXY", "near.invalid"),
    ];
    let daemon = Daemon::start(&home, "a", &config, &env).await;
    for name in ["corp", "far", "near"] {
        log_in(&daemon, &issuer, &format!("/v1/tokens/{name}")).await;
    }
    let refresh = async |name: &str| {
        let answer = daemon.request("POST", &format!("/v1/tokens/{name}/refresh"), &[], "").await;
        if answer.status == 200 { (200, String::new()) } else { code(&answer) }
    };
    assert_eq!(refresh("corp").await.0, 200);
    assert!(asked.lock().unwrap().is_empty(), "what is on loopback passes no proxy");
    let (near, far) = tokio::join!(refresh("near"), refresh("far"));
    assert_eq!((near, far), ((502, "REFRESH_FAILED".to_owned()), (502, "REFRESH_FAILED".to_owned())));
    let asked = asked.lock().unwrap().clone();
    assert!(!asked.is_empty() && asked.iter().all(|line| line == "CONNECT far.invalid:443 HTTP/1.1"), "{asked:?}");
}
