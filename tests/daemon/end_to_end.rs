//! The real program against an authorization server that someone else wrote: no refresh token is presented after it
//! was spent, and no successor is lost, whatever happens to callers, daemons and connections.

use std::{sync::Arc, time::Duration};

use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::{
    io::AsyncWriteExt as _,
    sync::Barrier,
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::support::{
    daemon::{Daemon, Home},
    http::{Response, open, raw, request},
    oidc::{Client, Entry, Oidc},
};

const TOKEN: &str = "/v1/tokens/op";
const REFRESH: &str = "/v1/tokens/op/refresh";

/// A provider this slow leaves time for something to happen in the middle of a refresh.
const SLOW: Duration = Duration::from_secs(2);

/// A configuration with `oidc` as the provider `op`.
fn config(oidc: &Oidc, client: Client, cooldown: &str) -> String {
    let secret = client.secret().map_or("", |_| "client_secret = { env = \"OP_SECRET\" }");
    format!(
        "[refresh]\ncooldown = \"{cooldown}\"\n\n[providers.op]\nissuer = \"{}\"\nclient_id = \"{}\"\nclient_auth = \"{}\"\n{secret}\n",
        oidc.issuer(),
        client.id(),
        client.auth(),
    )
}

fn env(client: Client) -> Vec<(&'static str, &'static str)> {
    client.secret().map(|secret| ("OP_SECRET", secret)).into_iter().collect()
}

/// A person logs in, and the grant goes in by the command line. Gives the first access token.
async fn log_in(daemon: &Daemon, oidc: &Oidc, client: Client) -> String {
    let grant = oidc.code_flow_grant(client).await;
    daemon.watch_grant(&grant);
    let output = daemon.command(&["import", "op"], &grant.to_string()).await;
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    grant["access_token"].as_str().unwrap().to_owned()
}

/// A daemon with one account logged in.
async fn logged_in(oidc: &Oidc, home: &Arc<Home>, cooldown: &str) -> Daemon {
    let daemon = Daemon::start(home, "a", &config(oidc, Client::Public, cooldown), &[]).await;
    log_in(&daemon, oidc, Client::Public).await;
    daemon
}

#[track_caller]
fn access_token(answer: &Response) -> String {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["access_token"].as_str().unwrap().to_owned()
}

/// Asks for a new token, for as long as it is told to ask later.
async fn refresh_after_cooldown(daemon: &Daemon) -> Response {
    for _ in 0..10 {
        let answer = daemon.request("POST", REFRESH, &[], "").await;
        if answer.status != 429 {
            return answer;
        }
        sleep(answer.retry_after().expect("a 429 says when to come back")).await;
    }
    panic!("the cooldown does not end");
}

/// That many callers, each on a connection of its own, at the same moment. The connections are made before.
async fn herd(daemon: &Daemon, size: usize, headers: Vec<(&'static str, String)>) -> JoinSet<Response> {
    let start = Arc::new(Barrier::new(size + 1));
    let mut callers = JoinSet::new();
    for _ in 0..size {
        let (mut connection, start, headers) = (daemon.connect().await, Arc::clone(&start), headers.clone());
        callers.spawn(async move {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            start.wait().await;
            connection.request("POST", REFRESH, &headers, "").await
        });
    }
    start.wait().await;
    callers
}

/// No refresh token was presented after it was spent.
#[track_caller]
fn assert_no_reuse(refreshes: &[Entry]) {
    let reuses: Vec<_> = refreshes.iter().filter(|entry| entry.spent_before).collect();
    assert!(reuses.is_empty(), "spent refresh tokens were presented: {reuses:#?}");
}

/// No refresh token was presented twice, for whatever reason.
#[track_caller]
fn assert_all_presented_once(refreshes: &[Entry]) {
    let again: Vec<_> = refreshes.iter().filter(|entry| entry.presented_before > 0).collect();
    assert!(again.is_empty(), "refresh tokens were presented again: {again:#?}");
}

/// Looks for every token that was handed out in all that the daemon wrote and answered, once it ends.
async fn watch_all(daemon: &Daemon, oidc: &Oidc) {
    daemon.watch_issued(&oidc.issued().await);
}

async fn three_refreshes_with_a_cooldown_between(client: Client) {
    let oidc = Oidc::start().await;
    let home = Home::new();
    let daemon = Daemon::start(&home, "a", &config(&oidc, client, "1s"), &env(client)).await;
    let mut newest = log_in(&daemon, &oidc, client).await;
    assert_eq!(access_token(&daemon.request("GET", TOKEN, &[], "").await), newest);
    for _ in 0..3 {
        let answer = access_token(&refresh_after_cooldown(&daemon).await);
        assert_ne!(answer, newest);
        newest = answer;
        assert_eq!(access_token(&daemon.request("GET", TOKEN, &[], "").await), newest);
    }

    let refreshes = oidc.refreshes().await;
    assert_all_presented_once(&refreshes);
    assert!(refreshes.len() == 3 && refreshes.iter().all(|entry| entry.status == Some(200)), "{refreshes:#?}");
    for pair in refreshes.windows(2) {
        assert!(pair[1].time - pair[0].time >= 1000, "the cooldown was cut short: {pair:#?}");
    }

    // Had a spent token been presented, this test would have noticed.
    let issued = oidc.issued().await;
    let reuse = oidc.present(client, &issued.refresh_tokens[0]).await;
    assert_eq!((reuse.status, &reuse.json()["error"]), (400, &json!("invalid_grant")));
    let log = oidc.refreshes().await;
    assert!(log[3].spent_before && log[3].error.as_deref() == Some("invalid_grant"), "{log:#?}");

    // It killed the family. The daemon finds out once, says so, and hands out what is still good.
    for _ in 0..2 {
        let dead = refresh_after_cooldown(&daemon).await;
        assert_eq!((dead.status, &dead.json()["code"]), (401, &json!("REAUTH_REQUIRED")), "{}", dead.text());
    }
    assert_eq!(oidc.refreshes().await.len(), 5);
    assert_eq!(access_token(&daemon.request("GET", TOKEN, &[], "").await), newest);
    watch_all(&daemon, &oidc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_of_a_public_client_lives() {
    three_refreshes_with_a_cooldown_between(Client::Public).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_of_a_client_with_basic_authentication_lives() {
    three_refreshes_with_a_cooldown_between(Client::Basic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_chain_of_a_client_with_its_secret_in_the_body_lives() {
    three_refreshes_with_a_cooldown_between(Client::Post).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_has_expired_is_refreshed_by_the_next_get() {
    let lifetime = Duration::from_secs(2);
    let oidc = Oidc::start_with_lifetime(lifetime).await;
    let home = Home::new();
    // The endpoint by name, without discovery.
    let config = config(&oidc, Client::Public, "1s")
        .replace(&format!("issuer = {:?}", oidc.issuer()), &format!("token_endpoint = {:?}", oidc.token_endpoint()));
    let daemon = Daemon::start(&home, "a", &config, &[]).await;
    let first = log_in(&daemon, &oidc, Client::Public).await;
    sleep(lifetime).await;
    assert_ne!(access_token(&daemon.request("GET", TOKEN, &[], "").await), first);
    assert_all_presented_once(&oidc.refreshes().await);
    watch_all(&daemon, &oidc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_callers_are_one_call_to_the_provider() {
    // Both ends of 1,000 connections; some machines give a process 1,024 files unless it asks.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();

    let oidc = Oidc::start().await;
    let home = Home::new();
    let daemon = logged_in(&oidc, &home, "30s").await;
    oidc.fault(json!({"kind": "delay", "ms": 5000})).await;
    let answers = herd(&daemon, 1000, Vec::new()).await.join_all().await;

    let mut tokens: Vec<String> = answers.iter().map(access_token).collect();
    tokens.dedup();
    assert_eq!((answers.len(), tokens.len()), (1000, 1));
    assert_eq!(oidc.refreshes().await.len(), 1);
    watch_all(&daemon, &oidc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_caller_hangs_up_and_nothing_is_lost() {
    let oidc = Oidc::start().await;
    let home = Home::new();
    let mut daemon = logged_in(&oidc, &home, "0s").await;
    let half_way = json!({"kind": "delay", "ms": SLOW.as_millis(), "times": 1});
    let request = format!("POST {REFRESH} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n");

    // Others wait for the same refresh.
    oidc.fault(half_way.clone()).await;
    let mut first = open(&daemon.socket()).await;
    first.write_all(request.as_bytes()).await.unwrap();
    oidc.refreshes_reach(1).await;
    let others = herd(&daemon, 20, Vec::new()).await;
    drop(first);
    let mut tokens: Vec<String> = others.join_all().await.iter().map(access_token).collect();
    tokens.dedup();
    assert_eq!(tokens.len(), 1);
    assert_eq!(oidc.refreshes().await.len(), 1);

    // Nobody does, and the daemon is told to end.
    oidc.fault(half_way).await;
    let mut only = open(&daemon.socket()).await;
    only.write_all(request.as_bytes()).await.unwrap();
    oidc.refreshes_reach(2).await;
    drop(only);
    daemon.restart().await;
    let issued = oidc.issued().await;
    let kept = access_token(&daemon.request("GET", TOKEN, &[], "").await);
    assert_eq!(Some(&kept), issued.access_tokens.last());

    assert_ne!(access_token(&refresh_after_cooldown(&daemon).await), kept);
    assert_all_presented_once(&oidc.refreshes().await);
    watch_all(&daemon, &oidc).await;
}

/// Two daemons on one store, one account logged in.
async fn pair(oidc: &Oidc, home: &Arc<Home>, cooldown: &str) -> (Daemon, Daemon) {
    let first = logged_in(oidc, home, cooldown).await;
    let second = Daemon::start(home, "b", &config(oidc, Client::Public, cooldown), &[]).await;
    (first, second)
}

/// Waits until both serve the same token: each sees within 250 ms what the other changed.
async fn agree(first: &Daemon, second: &Daemon) {
    let served = async |daemon: &Daemon| access_token(&daemon.request("GET", TOKEN, &[], "").await);
    let agreed = async {
        while served(first).await != served(second).await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SLOW, agreed).await.expect("the daemons do not agree");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_on_one_store_present_each_refresh_token_once() {
    let oidc = Oidc::start().await;
    let home = Home::new();
    let (first, second) = pair(&oidc, &home, "0s").await;
    for _ in 0..5 {
        let (one, other) = tokio::join!(herd(&first, 200, Vec::new()), herd(&second, 200, Vec::new()));
        let (one, other) = tokio::join!(one.join_all(), other.join_all());
        one.iter().chain(&other).for_each(|answer| drop(access_token(answer)));
    }
    let refreshes = oidc.refreshes().await;
    assert!(refreshes.iter().all(|entry| entry.status == Some(200)), "{refreshes:#?}");
    assert_all_presented_once(&refreshes);
    watch_all(&first, &oidc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_of_two_daemons_who_found_the_same_token_bad_cause_one_refresh() {
    let oidc = Oidc::start().await;
    let home = Home::new();
    let (first, second) = pair(&oidc, &home, "0s").await;
    for round in 1..=5 {
        agree(&first, &second).await;
        let mut herds = Vec::new();
        for daemon in [&first, &second] {
            let current = daemon.request("GET", TOKEN, &[], "").await;
            let tag = current.header("etag").expect("a token has a tag").to_owned();
            herds.push(async move { herd(daemon, 200, vec![("if-match", tag)]).await.join_all().await });
        }
        let answers = futures_util::future::join_all(herds).await;
        let mut tokens: Vec<String> = answers.iter().flatten().map(access_token).collect();
        tokens.dedup();
        assert_eq!(tokens.len(), 1, "round {round}");
        assert_eq!(oidc.refreshes().await.len(), round);
    }
    assert_all_presented_once(&oidc.refreshes().await);
    watch_all(&first, &oidc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_daemon_is_killed_in_the_middle_of_a_refresh_the_other_goes_on_at_once() {
    let oidc = Oidc::start().await;
    let home = Home::new();
    let (mut first, second) = pair(&oidc, &home, "1s").await;
    oidc.fault(json!({"kind": "hold", "times": 1})).await;
    let mut caller = first.connect().await;
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { caller.try_request("POST", REFRESH, &[], "").await.is_err() });
    oidc.refreshes_reach(1).await;
    first.kill9().await;
    assert_eq!(waiting.join_all().await, [true]);

    // The lease of the dead is free, and the token that it presented was not spent: the second try has the successor.
    let at_once = Duration::from_secs(2);
    let answer = timeout(at_once, second.request("POST", REFRESH, &[], "")).await.expect("the other daemon waits");
    access_token(&answer);
    let refreshes = oidc.refreshes().await;
    assert_eq!(refreshes.iter().map(|entry| entry.committed).collect::<Vec<_>>(), [false, true]);
    assert_eq!(refreshes[0].fingerprint, refreshes[1].fingerprint);

    first.launch().await;
    access_token(&refresh_after_cooldown(&first).await);
    access_token(&refresh_after_cooldown(&second).await);
    assert_no_reuse(&oidc.refreshes().await);
    watch_all(&first, &oidc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_daemon_stands_still_in_the_middle_of_a_refresh_the_other_keeps_its_hands_off() {
    let oidc = Oidc::start().await;
    let home = Home::new();
    let (first, second) = pair(&oidc, &home, "0s").await;
    let current = access_token(&second.request("GET", TOKEN, &[], "").await);
    oidc.fault(json!({"kind": "hold", "times": 1})).await;
    let caller = herd(&first, 1, Vec::new()).await;
    oidc.refreshes_reach(1).await;
    first.stop_signal();

    let refused = second.request("POST", REFRESH, &[], "").await;
    assert_eq!((refused.status, &refused.json()["code"]), (503, &json!("STORE_UNAVAILABLE")), "{}", refused.text());
    assert!(refused.retry_after().is_some());
    assert_eq!(access_token(&second.request("GET", TOKEN, &[], "").await), current);

    first.cont_signal();
    oidc.heal().await;
    assert_ne!(access_token(&caller.join_all().await[0]), current);
    agree(&first, &second).await;
    assert_ne!(access_token(&second.request("GET", TOKEN, &[], "").await), current);
    assert_all_presented_once(&oidc.refreshes().await);
    watch_all(&first, &oidc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_told_to_end_answers_its_callers_first() {
    let oidc = Oidc::start().await;
    let home = Home::new();
    let mut daemon = logged_in(&oidc, &home, "30s").await;
    oidc.fault(json!({"kind": "delay", "ms": SLOW.as_millis()})).await;
    let caller = herd(&daemon, 1, Vec::new()).await;
    oidc.refreshes_reach(1).await;
    daemon.sigterm();
    let (status, answers) = tokio::join!(daemon.wait(), caller.join_all());
    assert_eq!(status.code(), Some(0));
    assert_eq!(oidc.issued().await.access_tokens.last(), Some(&access_token(&answers[0])));
    assert!(!daemon.socket().exists());
    watch_all(&daemon, &oidc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_left_behind_is_replaced_and_a_living_one_is_not() {
    let oidc = Oidc::start().await;
    let home = Home::new();
    let mut daemon = logged_in(&oidc, &home, "0s").await;
    daemon.kill9().await;
    assert!(daemon.socket().exists());
    daemon.launch().await;
    let current = access_token(&daemon.request("GET", TOKEN, &[], "").await);

    let mut connection = daemon.connect().await;
    let second = daemon.command(&["serve"], "").await;
    // The last it says, after the log.
    let output = String::from_utf8_lossy(&second.stderr);
    let error = output.lines().rev().take(4).collect::<Vec<_>>().join("\n");
    assert!(!second.status.success() && second.status.code().is_some(), "{}: {error}", second.status);
    assert!(error.contains(daemon.socket().to_str().unwrap()), "which socket? {error}");
    assert_eq!(access_token(&connection.request("GET", TOKEN, &[], "").await), current);
    assert_ne!(access_token(&daemon.request("POST", REFRESH, &[], "").await), current);
    watch_all(&daemon, &oidc).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_request_keeps_nobody_waiting() {
    let oidc = Oidc::start().await;
    let home = Home::new();
    let daemon = logged_in(&oidc, &home, "30s").await;
    let socket = daemon.socket();
    let half = raw(&socket, b"POST /v1/tokens/op/refresh HTTP/1.1\r\nHost: loc", SLOW);
    let (_, answer) = tokio::join!(half, daemon.request("GET", TOKEN, &[], ""));
    access_token(&answer);
    assert!(oidc.refreshes().await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_gets_the_token_and_cannot_replace_it() {
    let oidc = Oidc::start().await;
    let home = Home::new();
    let sandbox = home.path().join("run/agents/credproxy.sock");
    let config = config(&oidc, Client::Public, "30s")
        + "\n[sockets.agents]\npath = \"{home}/run/agents/credproxy.sock\"\nrole = \"sandbox\"\nallow = [\"op\"]\noperations = [\"read\"]\n";
    let daemon = Daemon::start(&home, "a", &config, &[]).await;
    let current = log_in(&daemon, &oidc, Client::Public).await;
    assert_eq!(access_token(&request(&sandbox, "GET", TOKEN, &[], "").await), current);
    let grant = json!({"access_token": "canary-at-1", "refresh_token": "canary-rt-1"}).to_string();
    for (method, path, body) in [("PUT", TOKEN, grant), ("POST", REFRESH, String::new())] {
        let refused = request(&sandbox, method, path, &[("content-type", "application/json")], body).await;
        assert_eq!((refused.status, &refused.json()["code"]), (403, &json!("UNAUTHORIZED")), "{}", refused.text());
    }
    assert_eq!(access_token(&daemon.request("GET", TOKEN, &[], "").await), current);
    assert!(oidc.refreshes().await.is_empty());
}
