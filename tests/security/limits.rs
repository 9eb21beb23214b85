//! Every limit of docs/configuration.md, reached: by the real program, and those that take a minute by a listener in a
//! paused test.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::Arc, time::Duration};

use credproxy::{
    audit::Audit,
    clock::{Clock, SystemClock},
    keys::Keys,
    limits::SocketLimits,
    policy::Policy,
    provider::Providers,
    refresh::Coordinator,
    server::{
        Api, AppState,
        listener::{Listener, ServeOptions, Shutdown},
        peer::Peers,
    },
    store::{ItemStore, memory::MemoryStore},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    task::JoinSet,
    time::timeout,
};

use crate::support::{
    audit_log,
    contract::{Contract, Exchange},
    http::{Connection, Response, Transcript, ask_as, open, raw, request},
    issuer::{Answer, Gate, Issuer},
    skip::skip,
    world::{JSON, World},
};

const TOKEN: &str = "/v1/tokens/corp";
const REFRESH: &str = "/v1/tokens/corp/refresh";

/// A living daemon answers within milliseconds; a busy machine takes its time.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Long enough to see that somebody waits.
const A_WHILE: Duration = Duration::from_millis(300);

impl World {
    /// With these keys for the sandbox's socket, and this besides.
    async fn with(socket: &str, provider: &str, more: &str) -> Self {
        let config = |issuer: &Issuer| {
            format!(
                "{more}\n\n\
                 [sockets.agents]\npath = \"{{home}}/run/agents/s\"\nrole = \"sandbox\"\nallow = [\"corp/*\"]\n\
                 operations = [\"read\", \"refresh\", \"login\"]\n{socket}\n\n{}{provider}\n",
                issuer.provider("corp"),
            )
        };
        let world = Self::start(config).await;
        world.log_in("corp").await;
        world
    }

    fn sandbox(&self) -> PathBuf {
        self.socket("agents")
    }

    async fn connect(&self) -> Connection {
        Connection::to_daemon(&self.sandbox(), Transcript::default()).await
    }

    /// One request on a connection of its own.
    async fn ask(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
        request(&self.sandbox(), method, target, headers, "").await
    }
}

/// It is a 429 as the contract has it. Gives how long to wait.
#[track_caller]
fn limited(method: &str, target: &str, answer: &Response) -> u64 {
    let headers: Vec<_> = answer
        .headers
        .iter()
        .map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap().to_owned()))
        .collect();
    let exchange = Exchange {
        method,
        target,
        request_headers: &[],
        request_body: b"",
        status: answer.status,
        response_headers: &headers,
        response_body: &answer.body,
    };
    Contract::load().check(&exchange).unwrap();
    assert_eq!((answer.status, &answer.json()["code"]), (429, &json!("RATE_LIMITED")), "{}", answer.text());
    answer.retry_after().unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "the rate goes on while this asks")]
async fn a_peer_of_a_sandbox_has_a_rate_and_so_has_every_operation() {
    let world = World::with("rate = \"1/s\"\nburst = 30", "", "").await;
    let operations = Contract::load().operations();
    let mut targets: Vec<_> = operations
        .iter()
        .map(|(method, path, _)| {
            let path = path.replace("{provider}", "corp").replace("{name}", "openai");
            (method.clone(), path.replace("{id}", &"0".repeat(32)))
        })
        .collect();
    targets.push(("GET".to_owned(), "/nowhere".to_owned()));
    let (mut connection, start) = (world.connect().await, tokio::time::Instant::now());
    for _ in 0..30 {
        assert_eq!(connection.request("GET", TOKEN, &[], "").await.status, 200);
    }
    // A new connection renews nothing. They ask at once: one after the other, each would find the next second's request.
    let (mut asking, count) = (JoinSet::new(), targets.len());
    for (method, target) in targets {
        let socket = world.sandbox();
        asking.spawn(async move {
            let answer = request(&socket, &method, &target, &[], "").await;
            (method, target, answer)
        });
    }
    for (method, target, answer) in asking.join_all().await {
        if answer.status == 429 {
            assert_eq!(limited(&method, &target, &answer), 1);
        }
    }
    let passed = usize::try_from(start.elapsed().as_secs()).unwrap() + 1;
    let limited: BTreeSet<_> = audit_lines(&world, count + 31).await;
    assert!(limited.len() + passed > operations.len(), "{limited:?}");
    // The host has none.
    let mut host = world.daemon.connect().await;
    for _ in 0..200 {
        assert_eq!(host.request("GET", TOKEN, &[], "").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "the rate goes on while this asks")]
async fn who_connects_anew_for_each_request_gets_no_more_and_is_refused_no_faster() {
    const CALLERS: usize = 16;
    let world = World::with("", "", "").await;
    let (start, mut asking) = (tokio::time::Instant::now(), JoinSet::new());
    for _ in 0..CALLERS {
        let socket = world.sandbox();
        asking.spawn(async move {
            let mut answers = [0, 0];
            while start.elapsed() < Duration::from_secs(3) {
                let status = request(&socket, "GET", TOKEN, &[], "").await.status;
                assert!([200, 429].contains(&status), "{status}");
                answers[usize::from(status == 429)] += 1;
            }
            answers
        });
    }
    let answers = asking.join_all().await;
    let [granted, refused] = [0, 1].map(|kind| answers.iter().map(|answers| answers[kind]).sum::<usize>());
    // 60 a second, and twice that at once; refusals are as slow.
    let due = 60 * (usize::try_from(start.elapsed().as_secs()).unwrap() + 1);
    assert!(granted >= 120 && granted <= due + 120, "{granted} granted, {refused} refused");
    assert!(refused > 0 && refused <= due + CALLERS, "{granted} granted, {refused} refused");
}

/// The operations of the sandbox's that were refused for being too fast, once so many lines are there.
async fn audit_lines(world: &World, count: usize) -> BTreeSet<String> {
    let log = audit_log::place(&world.home);
    let there = async {
        loop {
            let lines = audit_log::events(audit_log::lines(&log));
            if lines.len() >= count {
                break lines;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let lines = timeout(AT_ONCE, there).await.expect("the lines are written");
    let refused = lines.into_iter().filter(|line| line["socket"] == "agents" && line["outcome"] == "RATE_LIMITED");
    refused.map(|line| line["operation"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn unless_configured_a_sandbox_has_sixty_a_second_and_twice_that_at_once() {
    let world = World::with("", "", "").await;
    // What is written at once is not spread over time by the asking.
    let one = "GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n";
    let answers = async |socket: PathBuf, count: usize| {
        let row = format!("{}GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", one.repeat(count - 1));
        let answer = raw(&socket, row.as_bytes(), AT_ONCE * 4).await;
        let text = String::from_utf8(answer).unwrap();
        (text.matches("HTTP/1.1 200").count(), text.matches("HTTP/1.1 429").count())
    };
    let (granted, refused) = answers(world.sandbox(), 600).await;
    assert_eq!(granted + refused, 600);
    assert!(granted >= 120 && refused > 0, "{granted} and {refused}");
    let off = World::with("rate = \"off\"", "", "").await;
    assert_eq!(answers(off.sandbox(), 600).await, (600, 0));
    assert_eq!(answers(off.daemon.socket(), 600).await, (600, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_has_so_many_new_tokens_of_an_account_in_an_hour() {
    let world = World::with("forced_refreshes = 2", "", "").await;
    world.log_in("corp?bucket=other").await;
    let first = world.ask("GET", TOKEN, &[]).await.header("etag").unwrap().to_owned();
    for _ in 0..2 {
        assert_eq!(world.ask("POST", REFRESH, &[]).await.status, 200);
    }
    let refused = world.ask("POST", REFRESH, &[]).await;
    assert!((1790..=1800).contains(&limited("POST", REFRESH, &refused)), "{}", refused.text());
    assert_eq!(world.issuer.presentations().len(), 2);

    let moved = world.ask("POST", REFRESH, &[("if-match", &first)]).await;
    assert_eq!(moved.status, 200, "the change asked for is made: {}", moved.text());
    assert_eq!(world.ask("GET", TOKEN, &[]).await.status, 200);
    assert_eq!(world.ask("POST", &format!("{REFRESH}?bucket=other"), &[]).await.status, 200, "another account");
    assert_eq!(world.daemon.request("POST", REFRESH, &[], "").await.status, 200, "the host");
    assert_eq!(world.issuer.presentations().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn unless_configured_twenty_new_tokens_are_what_a_sandbox_gets() {
    let world = World::with("", "", "").await;
    for _ in 0..20 {
        assert_eq!(world.ask("POST", REFRESH, &[]).await.status, 200);
    }
    assert!((170..=180).contains(&limited("POST", REFRESH, &world.ask("POST", REFRESH, &[]).await)));
    let off = World::with("forced_refreshes = \"off\"", "", "").await;
    for _ in 0..25 {
        assert_eq!(off.ask("POST", REFRESH, &[]).await.status, 200);
    }
}

/// Whether the daemon has closed it.
async fn closed(stream: &mut UnixStream) -> bool {
    matches!(timeout(A_WHILE, stream.read(&mut [0; 1])).await, Ok(Ok(0) | Err(_)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_over_the_limit_takes_the_place_of_the_one_that_is_idle_for_longest() {
    let world = World::with("connections = 3", "", "").await;
    let mut idle = Vec::new();
    for _ in 0..3 {
        let mut stream = open(&world.sandbox()).await;
        // Half a head is not a request yet.
        stream.write_all(b"GET /v1/tokens/corp HTTP/1.1\r\nHo").await.unwrap();
        idle.push(stream);
    }
    let answer = timeout(AT_ONCE, world.ask("GET", TOKEN, &[])).await.expect("idle ones keep nobody waiting");
    assert_eq!(answer.status, 200);
    let mut states = Vec::new();
    for stream in &mut idle {
        states.push(closed(stream).await);
    }
    assert_eq!(states, [true, false, false]);
}

/// Two connections of the sandbox's, each of which waits for the provider until the gate is opened.
async fn two_busy(world: &World) -> (Gate, Vec<UnixStream>) {
    let gate = Gate::new();
    let mut busy = Vec::new();
    for bucket in ["one", "two"] {
        world.log_in(&format!("corp?bucket={bucket}")).await;
        world.issuer.script(Answer::HoldAfter(gate.clone()));
        let mut stream = open(&world.sandbox()).await;
        let request = format!("POST {REFRESH}?bucket={bucket} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        busy.push(stream);
        gate.wait_for_arrivals(busy.len()).await;
    }
    (gate, busy)
}

#[tokio::test(flavor = "multi_thread")]
async fn while_every_connection_is_busy_the_next_one_waits() {
    let world = World::with("connections = 2", "", "").await;
    let (gate, busy) = two_busy(&world).await;
    let mut third = JoinSet::new();
    let socket = world.sandbox();
    third.spawn(async move { request(&socket, "GET", TOKEN, &[], "").await.status });
    assert!(timeout(A_WHILE, third.join_next()).await.is_err(), "it waits");
    // The host's socket has its own places.
    assert_eq!(world.daemon.request("GET", TOKEN, &[], "").await.status, 200);
    gate.open();
    assert_eq!(timeout(AT_ONCE, third.join_next()).await.expect("there is a place").unwrap().unwrap(), 200);
    for mut stream in busy {
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200 OK", "nobody is thrown out with a request under way");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_user_cannot_take_every_place() {
    if !rustix::process::geteuid().is_root() {
        skip("only root can run processes of other users");
        return;
    }
    let world = World::with("uids = [0, 65534]\nconnections = 4", "", "").await;
    for open in [world.home.path().to_owned(), world.home.path().join("run")] {
        fs::set_permissions(open, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    // Two of four are root's, and in use.
    let (gate, _busy) = two_busy(&world).await;
    assert!(closed(&mut open(&world.sandbox()).await).await);
    let answer = timeout(AT_ONCE, ask_as(65534, &world.sandbox())).await.expect("the other user has places");
    assert!(answer.contains("200 OK"), "{answer}");
    gate.open();
    let refused = |line: &Value| {
        (&line["operation"], &line["outcome"], &line["uid"]) == (&json!("connect"), &json!("RATE_LIMITED"), &json!(0))
    };
    let told = async {
        while !audit_log::lines(&audit_log::place(&world.home)).iter().any(refused) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(AT_ONCE, told).await.expect("the audit log tells of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_has_so_many_refreshes_at_once() {
    let world = World::with("", "concurrent_refreshes = 1", "").await;
    world.log_in("corp?bucket=other").await;
    let gate = Gate::new();
    world.issuer.script(Answer::HoldAfter(gate.clone()));
    let mut callers = JoinSet::new();
    for bucket in ["default", "other"] {
        let mut connection = world.daemon.connect().await;
        callers.spawn(async move {
            connection.request("POST", &format!("{REFRESH}?bucket={bucket}"), &[], "").await.status
        });
        gate.wait_for_arrivals(1).await;
    }
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(world.issuer.presentations().len(), 1);
    assert_eq!(world.daemon.request("GET", &format!("{TOKEN}?bucket=other"), &[], "").await.status, 200);
    gate.open();
    assert_eq!(callers.join_all().await, [200, 200]);
    assert_eq!(world.issuer.presentations().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_hung_up_keeps_no_place_while_it_would_have_waited() {
    let world = World::with("connections = 8\nrate = \"off\"", "", "").await;
    let tag = request(&world.sandbox(), "GET", TOKEN, &[], "").await.header("etag").unwrap().to_owned();
    let wait = format!("GET {TOKEN} HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}\r\nPrefer: wait=60\r\n\r\n");
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut stream = open(&world.sandbox()).await;
        stream.write_all(wait.as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    // All places are taken by those who wait, one of whom has only ended its own half.
    let mut half = waiting.pop().unwrap();
    half.shutdown().await.unwrap();
    assert!(timeout(A_WHILE, request(&world.sandbox(), "GET", TOKEN, &[], "")).await.is_err(), "there is no place");
    drop(waiting);
    for _ in 0..7 {
        let answer = timeout(AT_ONCE, request(&world.sandbox(), "GET", TOKEN, &[], "")).await;
        assert_eq!(answer.expect("there is a place").status, 200);
    }
    // It is answered all the same, once there is something to tell.
    let refreshed = world.daemon.request("POST", REFRESH, &[], "").await;
    assert_eq!(refreshed.status, 200);
    let mut answer = Vec::new();
    timeout(AT_ONCE, half.read_to_end(&mut answer)).await.expect("it is answered").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_logins_wait_at_once() {
    let world = World::with("", "", "[limits]\nlogins = 3\nlogins_per_socket = 2").await;
    // A grant that is of use is not replaced by a sandbox's login.
    let body = json!({"provider": "corp", "bucket": "new", "flow": "paste"}).to_string();
    let begin = async |socket: PathBuf| request(&socket, "POST", "/v1/logins", &[JSON], body.clone()).await;
    for _ in 0..2 {
        assert_eq!(begin(world.sandbox()).await.status, 201);
    }
    assert_eq!(limited("POST", "/v1/logins", &begin(world.sandbox()).await), 10);
    assert_eq!(begin(world.daemon.socket()).await.status, 201);
    assert_eq!(limited("POST", "/v1/logins", &begin(world.daemon.socket()).await), 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_sandboxes_are_there_at_once_and_each_has_a_sandboxs_limits() {
    let world = World::with("", "", "[limits]\nsandboxes = 2").await;
    let body = json!({"allow": ["corp"]}).to_string();
    let create = async || world.daemon.request("POST", "/v1/sandboxes", &[JSON], body.clone()).await;
    let made = create().await;
    assert_eq!(made.status, 201, "{}", made.text());
    assert_eq!(create().await.status, 201);
    assert_eq!(limited("POST", "/v1/sandboxes", &create().await), 10);
    let socket = PathBuf::from(made.json()["socket"].as_str().unwrap());
    for _ in 0..20 {
        assert_eq!(request(&socket, "POST", REFRESH, &[], "").await.status, 200);
    }
    assert!((170..=180).contains(&limited("POST", REFRESH, &request(&socket, "POST", REFRESH, &[], "").await)));
}

/// A listener in this process, whose time can be paused.
struct Served {
    socket: PathBuf,
    shutdown: Shutdown,
    serving: JoinSet<()>,
    _home: tempfile::TempDir,
}

impl Served {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let socket = home.path().join("run/s");
        let (store, clock): (Arc<dyn ItemStore>, Arc<dyn Clock>) =
            (Arc::new(MemoryStore::new().unwrap()), Arc::new(SystemClock::new()));
        let keys = Keys::new(Arc::clone(&store), Arc::clone(&clock));
        let coordinator = Coordinator::new(store, Providers::default(), clock, Duration::ZERO);
        let api = Api::new(AppState::new(coordinator, keys, Policy::host()));
        let listener = Listener::bind("s", &socket, Peers::own()).unwrap();
        let options = ServeOptions { limits: SocketLimits::HOST, share: 100, audit: Audit::default() };
        let (shutdown, mut serving) = (Shutdown::default(), JoinSet::new());
        let ends = shutdown.clone();
        serving.spawn(async move { listener.serve(api, options, &ends).await });
        Self { socket, shutdown, serving, _home: home }
    }

    /// Sends this and nothing more. What is answered, and after how many seconds the connection is closed.
    #[expect(clippy::disallowed_methods, reason = "the paused time is what is measured")]
    async fn send(&self, text: &str) -> (String, u64) {
        let start = tokio::time::Instant::now();
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // An error is a closed connection, too.
        stream.read_to_end(&mut answer).await.ok();
        (String::from_utf8(answer).unwrap(), start.elapsed().as_secs())
    }

    async fn end(mut self) {
        self.shutdown.graceful.cancel();
        while self.serving.join_next().await.is_some() {}
    }
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_or_half_of_it_is_closed_after_a_minute() {
    let served = Served::new();
    for silent in ["", "GET /v1/hea", "GET /v1/health HTTP/1.1\r\nHost: x\r\nx: "] {
        let (answer, seconds) = served.send(silent).await;
        assert!((60..62).contains(&seconds), "{silent}: {seconds} s {answer}");
        assert!(!answer.contains(" 200 "), "{silent}: {answer}");
    }
    let (answer, seconds) = served.send("GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && (60..62).contains(&seconds), "{seconds} s {answer}");
    served.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_has_half_a_minute() {
    let served = Served::new();
    for (method, target) in [("POST", REFRESH), ("PUT", TOKEN), ("POST", "/v1/logins")] {
        let head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n");
        let (answer, seconds) = served.send(&format!("{head}Content-Length: 2\r\n\r\n{{")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{method} {target}: {answer}");
        assert!(answer.contains("did not arrive in time"), "{method} {target}: {answer}");
        assert!(seconds >= 30, "{method} {target}: {seconds} s");
    }
    // However slowly it comes: the time is for the whole.
    #[expect(clippy::disallowed_methods, reason = "the paused time is what is measured")]
    let start = tokio::time::Instant::now();
    let mut stream = UnixStream::connect(&served.socket).await.unwrap();
    let head =
        format!("PUT {TOKEN} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reading, mut writing) = stream.split();
    let mut answer = [0; 12];
    let dripping = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            // It may be closed by now.
            writing.write_all(b" ").await.ok();
        }
    };
    tokio::select! {
        read = reading.read_exact(&mut answer) => assert_eq!(read.unwrap(), 12),
        () = dripping => {}
    }
    assert_eq!((&answer, start.elapsed().as_secs()), (b"HTTP/1.1 400", 30));
    served.end().await;
}

#[tokio::test(start_paused = true)]
async fn bodies_and_heads_have_a_size() {
    let served = Served::new();
    let send = async |method: &str, target: &str, head: usize, body: usize| {
        let head = format!("{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx: {}\r\n", "x".repeat(head));
        let length = format!("Content-Type: application/json\r\nContent-Length: {body}\r\n\r\n");
        let (answer, _) = served.send(&format!("{head}{length}{}", " ".repeat(body))).await;
        answer.get(9..12).unwrap_or_default().to_owned()
    };
    for (method, target, largest) in
        [("POST", REFRESH, 1024), ("POST", "/v1/logins", 16 * 1024), ("PUT", TOKEN, 256 * 1024)]
    {
        assert_eq!(send(method, target, 0, largest).await, "400", "{method} {target}: blank, but not too large");
        assert_eq!(send(method, target, 0, largest + 1).await, "413", "{method} {target}");
    }
    assert_eq!(send("GET", "/v1/health", 15_000, 0).await, "200");
    assert_eq!(send("GET", "/v1/health", 17_000, 0).await, "431");
    served.end().await;
}
