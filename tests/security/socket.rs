//! Peers.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Stdio, time::Duration};

use futures_util::future::join_all;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{sleep, timeout},
};

use crate::{
    support::{
        daemon::Daemon,
        http::{ask_as, open, raw, request},
        issuer::{Answer, Gate},
        skip::skip,
    },
    world::{AT_ONCE, JSON, REFRESH, TOKEN, World, access_token},
};

/// Long enough for any answer, for a connection that then stays open.
const A_WHILE: Duration = Duration::from_millis(1500);

/// How many files it has open; none that can be counted where its process is closed to us, too.
fn open_files(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid().as_raw_nonzero())).map_or_else(
        |error| {
            skip(&format!("in part: the open files are not counted: {error}"));
            0
        },
        Iterator::count,
    )
}

/// Resident memory in KiB.
fn memory(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid().as_raw_nonzero())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The statuses of the answers in these bytes.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    text.split("HTTP/1.1 ").chain(text.split("HTTP/1.0 ")).filter_map(|rest| rest.get(..3)?.parse().ok()).collect()
}

/// What is sent, its name, and the statuses due; none is a connection closed or kept open without a word.
fn lies() -> Vec<(&'static str, Vec<u8>, &'static [u16])> {
    const HEAD: &str = "HTTP/1.1\r\nHost: x\r\nConnection: close\r\n";
    let get = |target: &str, more: &str| format!("GET {target} {HEAD}{more}\r\n").into_bytes();
    let post = |more: &str| format!("POST {REFRESH} {HEAD}{more}").into_bytes();
    let with = |start: &[u8], rest: &[u8]| [start, rest].concat();
    let many = |count: usize| (0..count).map(|at| format!("x-{at}: 1\r\n")).collect::<Vec<_>>().concat();
    let tags = format!("If-Match: {}\r\n\r\n", vec!["\"a\""; 25_000].join(","));
    vec![
        ("nothing", b"".to_vec(), &[]),
        ("half a request line", b"POST /v1/tokens/co".to_vec(), &[]),
        ("half a head", format!("POST {REFRESH} HTTP/1.1\r\nHost: x\r\nContent-Le").into_bytes(), &[]),
        ("half a body", post("Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{"), &[]),
        ("garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), &[400]),
        ("another protocol", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), &[]),
        ("an unknown version", b"GET / HTTP/9.9\r\n\r\n".to_vec(), &[400]),
        ("HTTP/0.9", b"GET /v1/tokens/corp\r\n\r\n".to_vec(), &[400]),
        ("no host", format!("POST {REFRESH} HTTP/1.1\r\nConnection: close\r\n\r\n").into_bytes(), &[400]),
        ("two hosts", post("Host: y\r\n\r\n"), &[400]),
        ("twice the same host", post("Host: x\r\n\r\n"), &[400]),
        ("HTTP/1.0 without a host", b"GET /v1/health HTTP/1.0\r\n\r\n".to_vec(), &[200]),
        ("an absolute target", get("http://evil.example/v1/health", ""), &[200]),
        ("an absolute target with a user", get("http://a:b@evil.example/v1/health", ""), &[200]),
        ("an asterisk", format!("OPTIONS * {HEAD}\r\n").into_bytes(), &[404]),
        ("an authority", format!("CONNECT evil.example:443 {HEAD}\r\n").into_bytes(), &[404]),
        ("a target that climbs", get("/v1/tokens/../tokens/corp", ""), &[404]),
        ("a provider that climbs", get("/v1/tokens/..", ""), &[400]),
        ("a slash in disguise", get("/v1/tokens/corp%2Fdefault", ""), &[400]),
        ("a climb in disguise", get("/v1/tokens/%2e%2e%2fcorp", ""), &[400]),
        ("two slashes", get("//v1//tokens//corp", ""), &[404]),
        ("a NUL in the path", get("/v1/tokens/corp%00", ""), &[400]),
        ("a naked NUL in the path", get("/v1/tokens/corp\0", ""), &[400]),
        ("no UTF-8 in the path", get("/v1/tokens/%ff%fe", ""), &[400]),
        ("naked bytes in the path", with(b"GET /v1/tokens/\xff\xfe ", format!("{HEAD}\r\n").as_bytes()), &[400]),
        ("no UTF-8 in the query", get("/v1/tokens/corp?bucket=%ff", ""), &[400]),
        ("a NUL in the query", get("/v1/tokens/corp?bucket=%00", ""), &[400]),
        ("a doubled parameter", get("/v1/tokens/corp?bucket=a&bucket=b", ""), &[400]),
        ("a huge target", get(&format!("/v1/tokens/{}", "a".repeat(100_000)), ""), &[431]),
        ("a huge query", get(&format!("{TOKEN}?bucket={}", "a".repeat(100_000)), ""), &[431]),
        ("a huge header", get(TOKEN, &format!("x: {}\r\n", "a".repeat(500_000))), &[431]),
        ("101 headers", get(TOKEN, &many(101)), &[431]),
        ("a NUL in a header", get(TOKEN, "x: a\0b\r\n"), &[400]),
        ("a line alone in a header", get(TOKEN, "x: a\r\n folded\r\n"), &[400]),
        ("a header without a name", get(TOKEN, ": a\r\n"), &[400]),
        ("a space before the colon", get(TOKEN, "Host : y\r\n"), &[400]),
        ("bytes in If-Match", with(&post("If-Match: \""), b"\xff\"\r\n\r\n"), &[400]),
        ("100 KB of tags", post(&tags), &[431]),
        ("If-Match of another's tags", post("If-Match: \"a\", \"b\"\r\n\r\n"), &[400]),
        ("two lengths", post("Content-Length: 0\r\nContent-Length: 5\r\n\r\n"), &[400]),
        ("a negative length", post("Content-Length: -1\r\n\r\n"), &[400]),
        ("a signed length", post("Content-Length: +2\r\n\r\n{}"), &[400]),
        ("a length past all numbers", post("Content-Length: 99999999999999999999\r\n\r\n"), &[400]),
        ("an unknown coding", post("Transfer-Encoding: gzip\r\n\r\n"), &[400]),
        ("chunked, but not last", post("Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"), &[400]),
        ("garbage for chunks", post("Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n"), &[400]),
        ("a chunk too large", post("Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n"), &[400]),
        ("a body of 1 MiB", with(&post("Content-Length: 1048576\r\n\r\n"), &[b'x'; 1 << 20]), &[413]),
        (
            "chunks without an end",
            post(&format!(
                "Transfer-Encoding: chunked\r\n\r\n{}",
                format!("400\r\n{}\r\n", "x".repeat(1024)).repeat(9)
            )),
            &[413],
        ),
        ("no JSON", post("Content-Length: 2\r\n\r\n{}"), &[415]),
        ("Expect without a body", post("Expect: 100-continue\r\nContent-Length: 5000\r\n\r\n"), &[100]),
        ("Expect of something else", post("Expect: the-spanish-inquisition\r\nContent-Length: 2\r\n\r\n{}"), &[415]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_are_refused_and_hurt_nobody() {
    let world = World::new().await;
    let socket = world.daemon.socket();
    let sent = lies().into_iter().map(async |(name, bytes, due)| {
        let answer = raw(&socket, &bytes, A_WHILE).await;
        assert_eq!(statuses(&answer), due, "{name}: {}", String::from_utf8_lossy(&answer));
    });
    join_all(sent).await;
    world.assert_unhurt("the lies").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_not_smuggled_inside_another() {
    let world = World::new().await;
    let socket = world.daemon.socket();
    let inner = format!("DELETE {TOKEN} HTTP/1.1\r\nHost: x\r\n\r\n");
    // Both lengths: the chunks count (RFC 9112 section 6.3), and the connection ends.
    let both = format!(
        "GET /v1/health HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{inner}",
        inner.len() + 5
    );
    assert_eq!(statuses(&raw(&socket, both.as_bytes(), A_WHILE).await), [200]);
    for coding in ["xchunked", "chunked\r\nTransfer-Encoding: x", "\x0bchunked", "chunked;x=y"] {
        let disguised = format!(
            "GET /v1/health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {coding}\r\nContent-Length: 4\r\n\r\n5c\r\n{inner}"
        );
        let answer = raw(&socket, disguised.as_bytes(), A_WHILE).await;
        assert!(
            statuses(&answer).iter().all(|status| *status == 400),
            "{coding}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
    // A body that its handler does not read is not the next request.
    let unread = format!("GET /v1/health HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{inner}", inner.len());
    assert!(statuses(&raw(&socket, unread.as_bytes(), A_WHILE).await).iter().all(|status| *status == 200));
    world.assert_unhurt("smuggling").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_a_row_are_answered_in_their_order() {
    let world = World::new().await;
    let one = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
    let row = [one("/v1/health"), one("/nowhere"), one("/v1/tokens/other"), one("/v1/tokens?x=1")].concat();
    let answer = raw(&world.daemon.socket(), row.as_bytes(), A_WHILE).await;
    assert_eq!(statuses(&answer), [200, 404, 404, 400]);
    world.assert_unhurt("a row").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_says_whether_the_connection_goes_on_after_it() {
    let world = World::new().await;
    let next = "GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n";
    // What is refused before its body is read, and what is answered with it.
    for (target, body, goes_on) in [
        ("PUT /v1/api-keys/%00", r#"{"api_key": "x"}"#, false),
        ("PUT /nowhere", "{}", false),
        ("GET /v1/tokens/corp", "{}", false),
        ("POST /v1/tokens/nobody/refresh", "{}", true),
        ("POST /v1/logins", "[]", true),
    ] {
        let mut stream = open(&world.daemon.socket()).await;
        let length = body.len();
        let head = format!(
            "{target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 8192];
        if goes_on {
            stream.write_all(body.as_bytes()).await.unwrap();
        }
        let read = timeout(AT_ONCE, stream.read(&mut answer)).await.expect("an answer").unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]).to_lowercase();
        assert_eq!(answer.contains("\r\nconnection: close\r\n"), !goes_on, "{target}: {answer}");
        if goes_on {
            stream.write_all(next.as_bytes()).await.unwrap();
            let mut answer = vec![0; 8192];
            let read = timeout(AT_ONCE, stream.read(&mut answer)).await.expect("an answer").unwrap();
            assert_eq!(statuses(&answer[..read]), [200], "{target}");
        }
    }
    world.assert_unhurt("bodies that nobody reads").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_writing_still_gets_the_answer() {
    let world = World::new().await;
    let mut stream = open(&world.daemon.socket()).await;
    stream.write_all(format!("GET {TOKEN} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    timeout(AT_ONCE, stream.read_to_end(&mut answer)).await.expect("the connection ends").unwrap();
    assert!(String::from_utf8_lossy(&answer).contains(&world.access_token));
    world.assert_unhurt("a shutdown").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn monstrous_preferences_are_no_preferences() {
    let world = World::new().await;
    let tag = world.daemon.request("GET", TOKEN, &[], "").await.header("etag").unwrap().to_owned();
    let long = format!("{}, wait=0", vec!["x=y"; 2500].join(","));
    for wait in ["wait=-1", "wait=1e9", "wait=99999999999999999999999", "wait=\"\"", "wait", "wait=0", &long] {
        let headers = [("if-none-match", tag.as_str()), ("prefer", wait)];
        let answer = world.daemon.request("GET", TOKEN, &headers, "");
        let answer = timeout(AT_ONCE, answer).await.unwrap_or_else(|_| panic!("{wait} waits"));
        assert_eq!(answer.status, 304, "{wait}");
    }
    // The longest wait is a minute: long enough to leave it to the shutdown.
    let request =
        format!("GET {TOKEN} HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\nPrefer: wait=18446744073709551615\r\n\r\n");
    let mut waiting = open(&world.daemon.socket()).await;
    waiting.write_all(request.as_bytes()).await.unwrap();
    world.assert_unhurt("waiting").await;
    let mut world = world;
    world.daemon.sigterm();
    assert!(timeout(AT_ONCE, world.daemon.wait()).await.expect("the end waits for nobody").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_who_ask_nothing_keep_nobody_waiting() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let most = limit.maximum.unwrap_or(u64::MAX) / 2;
    let count = usize::try_from(most).unwrap().min(3000);

    let world = World::new().await;
    let before = (open_files(&world.daemon), memory(&world.daemon));
    let mut idle = Vec::with_capacity(count);
    for at in 0..count {
        let mut stream = open(&world.daemon.socket()).await;
        if at % 2 == 0 {
            let half = format!("POST {REFRESH} HTTP/1.1\r\nHost: x\r\nx: {}", "y".repeat(12_000));
            stream.write_all(half.as_bytes()).await.unwrap();
        }
        idle.push(stream);
    }
    world.assert_unhurt("thousands").await;
    assert!(open_files(&world.daemon) <= before.0 + count + 10);
    let grown = memory(&world.daemon).saturating_sub(before.1);
    assert!(grown < 60 * count as u64 + 16_384, "{grown} KiB for {count} connections");
    drop(idle);
    let closed = async {
        while open_files(&world.daemon) > before.0 + 10 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(AT_ONCE, closed).await.expect("the connections are closed");
    world.assert_unhurt("their end").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_takes_every_place_of_its_own_takes_none_of_the_hosts() {
    let mut world =
        World::with("[sockets.agents]\npath = \"{home}/run/agents/s\"\nrole = \"sandbox\"\nallow = [\"corp\"]\n").await;
    world.daemon.kill9().await;
    let files = ["sh", "-c", "ulimit -n 400 && exec \"$@\"", "sh"];
    world.daemon.launch_into(&files, Stdio::null(), Stdio::null()).await;
    let sandbox = world.home.path().join("run/agents/s");
    let mut taken = Vec::new();
    for _ in 0..300 {
        taken.push(UnixStream::connect(&sandbox).await.unwrap());
    }
    world.assert_unhurt("the siege").await;
    assert!(open_files(&world.daemon) < 300, "{}", open_files(&world.daemon));
    drop(taken);
    let answer = timeout(AT_ONCE, request(&sandbox, "GET", TOKEN, &[], "")).await.expect("there is room again");
    assert_eq!(access_token(&answer), world.access_token);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_cannot_make_the_daemon_hold_large_bodies() {
    let world =
        World::with("[sockets.agents]\npath = \"{home}/run/agents/s\"\nrole = \"sandbox\"\nallow = [\"corp\"]\n").await;
    let sandbox = world.home.path().join("run/agents/s");
    let large = vec![b' '; 100 * 1024];
    for (method, target, status) in [("POST", REFRESH, 413), ("PUT", TOKEN, 403)] {
        let answer = request(&sandbox, method, target, &[JSON], large.clone()).await;
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    world.assert_unhurt("large bodies").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn made_up_names_take_no_memory() {
    let world = World::new().await;
    let ask = async |names: std::ops::Range<u32>| {
        // Two ask for each name at the same time.
        let caller = async || {
            let mut connection = world.daemon.connect().await;
            for name in names.clone() {
                let target = format!("{TOKEN}?bucket={}{name}", "b".repeat(100));
                assert_eq!(connection.request("GET", &target, &[], "").await.status, 404);
            }
        };
        tokio::join!(caller(), caller());
    };
    ask(0..200).await;
    let before = memory(&world.daemon);
    ask(200..2200).await;
    let grown = memory(&world.daemon).saturating_sub(before);
    assert!(grown < 2048, "{grown} KiB for 2,000 names");
    world.assert_unhurt("names").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_that_are_killed_leave_no_trace() {
    let world = World::new().await;
    let gate = Gate::new();
    world.issuer.script(Answer::HoldAfter(gate.clone()));
    let mut callers: Vec<_> = (0..5).map(|_| world.daemon.spawn_beside(&["refresh", "corp"])).collect();
    gate.wait_for_arrivals(1).await;
    let quiet = open_files(&world.daemon);
    for caller in &mut callers {
        caller.kill().unwrap();
        caller.wait().unwrap();
    }
    gate.open();
    let fresh = async {
        while access_token(&world.daemon.request("GET", TOKEN, &[], "").await) == world.access_token {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(AT_ONCE, fresh).await.expect("the refresh is carried out all the same");
    assert_eq!((world.issuer.presentations().len(), world.issuer.reused()), (1, 0));
    assert!(open_files(&world.daemon) <= quiet + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_away_in_the_middle_of_an_answer_harms_nobody() {
    let world = World::new().await;
    let row = "GET /openapi.yaml HTTP/1.1\r\nHost: x\r\n\r\n".repeat(50);
    for _ in 0..20 {
        let mut stream = open(&world.daemon.socket()).await;
        stream.write_all(row.as_bytes()).await.unwrap();
        stream.read_exact(&mut [0; 10]).await.unwrap();
    }
    world.assert_unhurt("broken pipes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_users_are_let_in_by_name_alone() {
    if !rustix::process::geteuid().is_root() {
        skip("only root can run processes of other users");
        return;
    }
    let world = World::with(
        "[sockets.agents]\npath = \"{home}/run/agents/s\"\nrole = \"sandbox\"\nallow = [\"corp\"]\nuids = [65534]\n",
    )
    .await;
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    // The test's own directories are open, so that the socket's alone decides.
    for open in [world.home.path().to_owned(), world.home.path().join("run")] {
        fs::set_permissions(open, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let (host, agents) = (world.daemon.socket(), world.home.path().join("run/agents/s"));
    assert_eq!((mode(host.parent().unwrap()), mode(&host)), (0o700, 0o600));
    assert_eq!((mode(agents.parent().unwrap()), mode(&agents)), (0o711, 0o666));

    assert_eq!(ask_as(65534, &host).await, "refused");
    assert!(ask_as(65534, &agents).await.contains(&world.access_token));
    for _ in 0..20 {
        assert_eq!(ask_as(65533, &agents).await, "", "closed unread");
    }
    let log = world.daemon.output_text();
    assert_eq!(log.matches("refused a peer").count(), 1, "one line for each stranger");
    assert!(log.contains("65533"));
    // Root is no exception on a socket that is not root's.
    assert_eq!(ask_as(0, &agents).await, "");
    world.assert_unhurt("strangers").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_put_stores_what_could_not_be_answered() {
    let world = World::new().await;
    for grant in [
        json!({"access_token": "canary-rt-x", "refresh_token": "canary-rt-x"}),
        json!({"access_token": "xx-canary-rt-x", "refresh_token": "canary-rt-x"}),
        json!({"access_token": "a-refresh_token"}),
        json!({"access_token": "a\nb"}),
        json!({"access_token": ""}),
        json!({"access_token": "x".repeat(65_537)}),
        json!({"access_token": "a", "refresh_token": "a\0"}),
        json!({"access_token": "a", "expires_in": "NaN"}),
    ] {
        let answer = world.daemon.request("PUT", TOKEN, &[JSON], grant.to_string()).await;
        assert_eq!(answer.status, 400, "{grant}");
    }
    let body = format!("{{\"access_token\":\"a\",\"x\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(world.daemon.request("PUT", TOKEN, &[JSON], body).await.status, 400);
    world.assert_unhurt("bad grants").await;
}
