//! What a fault is driven in: an authorization server, daemons that can be stopped at any step, and the judge.

use std::{
    fs::{self, DirBuilder, File},
    io::Write as _,
    ops::{Deref, DerefMut},
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use credproxy::clock::{Clock as _, SystemClock};
use serde_json::json;
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    checker::{Checker, Fate},
    support::{
        daemon::{Daemon, Home},
        http::Response,
        issuer::Issuer,
    },
};

/// How often to look for what a process does on its own.
pub(crate) const LOOK: Duration = Duration::from_millis(2);

/// For what takes milliseconds on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// The life of an access token.
pub(crate) const LIFETIME: i64 = 3600;

/// In the long run, that many times the rounds of the short one.
#[expect(clippy::disallowed_methods, reason = "how the long run is asked for")]
pub(crate) fn rounds(short: usize) -> usize {
    if std::env::var_os("CREDPROXY_FAULTS_LONG").is_some() { short * 10 } else { short }
}

/// A number below `most`.
pub(crate) fn random(most: u64) -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_le_bytes(bytes) % most
}

pub(crate) struct Settings {
    pub(crate) cooldown: &'static str,
    pub(crate) request_timeout: &'static str,
    /// Of the server, and in the configuration.
    pub(crate) reuse_grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { cooldown: "0s", request_timeout: "10s", reuse_grace: Duration::ZERO }
    }
}

pub(crate) struct World {
    pub(crate) issuer: Issuer,
    pub(crate) home: Arc<Home>,
    pub(crate) checker: Arc<Checker>,
    settings: Settings,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Settings::default()).await
    }

    pub(crate) async fn with(settings: Settings) -> Self {
        Self::at(Home::in_memory(|_| Vec::new()), settings).await
    }

    /// Its store is on a disk, where a commit takes its time.
    pub(crate) async fn on_disk(settings: Settings) -> Self {
        Self::at(Home::new(), settings).await
    }

    pub(crate) async fn at(home: Arc<Home>, settings: Settings) -> Self {
        let issuer = Issuer::start().await;
        issuer.set_grace(settings.reuse_grace);
        let checker = Arc::new(Checker::new(&issuer));
        Self { issuer, home, checker, settings }
    }

    /// The same server and judge, and another store.
    pub(crate) fn elsewhere(&self, home: Arc<Home>) -> Self {
        let Settings { cooldown, request_timeout, reuse_grace } = self.settings;
        Self {
            issuer: self.issuer.clone(),
            home,
            checker: Arc::clone(&self.checker),
            settings: Settings { cooldown, request_timeout, reuse_grace },
        }
    }

    /// Starts a daemon. All of them share the store.
    pub(crate) async fn node(&self, name: &str) -> Node {
        // Beside its socket: the daemon keeps itself from other places.
        let controls = self.home.path().join("run").join(name).join("faults");
        DirBuilder::new().recursive(true).mode(0o700).create(&controls).unwrap();
        let Settings { cooldown, request_timeout, reuse_grace } = &self.settings;
        let config = format!(
            "[refresh]\ncooldown = {cooldown:?}\nrequest_timeout = {request_timeout:?}\n\n[providers.op]\n\
             token_endpoint = {:?}\nrevocation_endpoint = {:?}\nclient_id = \"{name}.1\"\nreuse_grace = \"{}s\"\n",
            self.issuer.token_endpoint(),
            self.issuer.revocation_endpoint(),
            reuse_grace.as_secs(),
        );
        let env = [("CREDPROXY_FAULTS", controls.to_str().unwrap()), ("CREDPROXY_LOG", "debug")];
        let daemon = Daemon::start(&self.home, name, &config, &env).await;
        Node {
            name: name.to_owned(),
            life: 1,
            daemon,
            controls,
            issuer: self.issuer.clone(),
            checker: Arc::clone(&self.checker),
            wall: 0,
            monotonic: 0,
        }
    }

    /// A connection to the store, past every daemon.
    pub(crate) async fn database(&self) -> SqliteConnection {
        let file = self.home.path().join("data/credproxy.db");
        SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(file)).await.unwrap()
    }

    /// How often the account's record was written.
    pub(crate) async fn writes(&self, account: &str) -> i64 {
        let mut database = self.database().await;
        let query = sqlx::query_scalar("SELECT revision FROM records WHERE bucket = ?1").bind(account.to_owned());
        let writes = query.fetch_one(&mut database).await.unwrap();
        database.close().await.unwrap();
        writes
    }

    /// How often a refresh token was presented.
    pub(crate) fn presentations(&self) -> usize {
        self.checker.presentations()
    }

    /// Waits until the server has so many presentations in its record.
    pub(crate) async fn presented(&self, count: usize) {
        let reached = async {
            while self.presentations() < count {
                sleep(LOOK).await;
            }
        };
        assert!(timeout(SOON, reached).await.is_ok(), "{} instead of {count}", self.presentations());
    }
}

/// A daemon and the files that control it.
pub(crate) struct Node {
    name: String,
    life: usize,
    daemon: Daemon,
    controls: PathBuf,
    issuer: Issuer,
    checker: Arc<Checker>,
    /// How far its wall clock is ahead, in milliseconds.
    wall: i64,
    /// The same of its monotonic clock.
    monotonic: i64,
}

impl Deref for Node {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Daemon {
        &mut self.daemon
    }
}

pub(crate) fn token_path(account: &str) -> String {
    format!("/v1/tokens/op?bucket={account}")
}

pub(crate) fn refresh_path(account: &str) -> String {
    format!("/v1/tokens/op/refresh?bucket={account}")
}

pub(crate) const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

impl Node {
    pub(crate) fn checker(&self) -> Arc<Checker> {
        Arc::clone(&self.checker)
    }

    /// Its wall clock, in seconds since 1970.
    pub(crate) fn now(&self) -> i64 {
        (SystemClock::new().now().as_millis() + self.wall).div_euclid(1000)
    }

    /// Puts a new grant. Gives its refresh token.
    pub(crate) async fn log_in(&self, account: &str) -> String {
        let (access, refresh) = self.issuer.new_grant();
        let put = self.putting(account, &access, &refresh).await.join_all().await.remove(0).expect("an answer");
        assert!([201, 204].contains(&put.status), "{}", put.text());
        self.checker.logged_in(account, (&access, &refresh), self.now() + LIFETIME, &put);
        refresh
    }

    /// Begins to put a grant, behind the judge's back.
    pub(crate) async fn putting(&self, account: &str, access: &str, refresh: &str) -> JoinSet<Option<Response>> {
        let grant = json!({"access_token": access, "refresh_token": refresh, "expires_in": LIFETIME});
        self.ask("PUT", token_path(account), grant.to_string()).await
    }

    /// Begins to delete a grant, behind the judge's back.
    pub(crate) async fn deleting(&self, account: &str) -> JoinSet<Option<Response>> {
        self.ask("DELETE", token_path(account), String::new()).await
    }

    /// Sends a request from a task of its own, which gives `None` if the daemon dies meanwhile.
    async fn ask(&self, method: &'static str, path: String, body: String) -> JoinSet<Option<Response>> {
        let mut connection = self.daemon.connect().await;
        let mut asked = JoinSet::new();
        asked.spawn(async move {
            let headers: &[_] = if body.is_empty() { &[] } else { &JSON };
            connection.try_request(method, &path, headers, body).await.ok()
        });
        asked
    }

    pub(crate) async fn delete(&self, account: &str) -> Response {
        let answer = self.request("DELETE", &token_path(account), &[], "").await;
        if answer.status == 200 {
            self.checker.forget(account);
        }
        answer
    }

    /// A token, new or not.
    pub(crate) async fn get(&self, account: &str) -> Response {
        self.get_at(account, &token_path(account)).await
    }

    /// A token that is to be good for so many seconds more.
    pub(crate) async fn get_good_for(&self, account: &str, seconds: u32) -> Response {
        self.get_at(account, &format!("{}&min_validity={seconds}", token_path(account))).await
    }

    async fn get_at(&self, account: &str, path: &str) -> Response {
        let answer = self.request("GET", path, &[], "").await;
        if answer.status == 200 {
            self.checker.answered(account, &answer);
            self.checker.in_time(account, &answer, self.now());
        } else {
            self.checker.refused(account, &answer, self.now());
        }
        answer
    }

    /// A new token.
    pub(crate) async fn refresh(&self, account: &str) -> Response {
        let answer = self.request("POST", &refresh_path(account), &[], "").await;
        if answer.status == 200 {
            self.checker.answered(account, &answer);
        }
        answer
    }

    /// Callers who want another token than the one that is there now, and get `None` if the daemon dies under them. They
    /// cause one flight, which something must hold up, and all have joined it or, where it has published its token
    /// already, have their answer: none of them is on the way when the fault comes.
    pub(crate) async fn callers(&self, account: &str, count: usize) -> JoinSet<Option<Response>> {
        let mut callers = JoinSet::new();
        let joined = || fs::metadata(self.controls.join("joined")).map_or(0, |file| file.len());
        let due = joined() + count as u64;
        let answered = Arc::new(AtomicU64::new(0));
        let found = self.request("HEAD", &token_path(account), &[], "").await;
        let tag = found.header("etag").expect("a token has a tag").to_owned();
        for _ in 0..count {
            let tag = tag.clone();
            let mut connection = self.daemon.connect().await;
            let (checker, account, answered) = (Arc::clone(&self.checker), account.to_owned(), Arc::clone(&answered));
            callers.spawn(async move {
                let headers = [("if-match", &*tag)];
                let answer = connection.try_request("POST", &refresh_path(&account), &headers, "").await.ok()?;
                answered.fetch_add(1, Ordering::Relaxed);
                if answer.status == 200 {
                    checker.answered(&account, &answer);
                }
                Some(answer)
            });
        }
        let all_have_joined = async {
            while joined() + answered.load(Ordering::Relaxed) < due {
                sleep(LOOK).await;
            }
        };
        assert!(timeout(SOON, all_have_joined).await.is_ok(), "{} of {due} callers have joined a flight", joined());
        callers
    }

    /// The status of `GET /v1/health`, and the reasons.
    pub(crate) async fn health(&self) -> (u16, String) {
        let answer = self.request("GET", "/v1/health", &[], "").await;
        (answer.status, answer.json()["reasons"].to_string())
    }

    /// The account's line in the daemon's list.
    pub(crate) async fn line(&self, account: &str) -> serde_json::Value {
        let list = self.request("GET", "/v1/tokens", &[], "").await.json();
        let lines = list["tokens"].as_array().expect("a list");
        lines.iter().find(|line| line["bucket"] == account).cloned().unwrap_or_default()
    }

    /// From now on whoever comes to one of these steps stops there.
    pub(crate) fn stop_at(&self, steps: &[&str]) {
        for entry in fs::read_dir(&self.controls).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some() {
                fs::remove_file(path).unwrap();
            }
        }
        self.write("stop", &steps.join("\n"));
    }

    /// Waits until someone has come to the step.
    pub(crate) async fn stopped_at(&self, step: &str) {
        let path = self.controls.join(format!("{step}.at"));
        let come = async {
            while !path.exists() {
                sleep(LOOK).await;
            }
        };
        assert!(timeout(SOON, come).await.is_ok(), "nobody comes to {step}");
    }

    /// Nobody is stopped any more, and who was goes on.
    pub(crate) fn go_on(&self) {
        let steps = fs::read_to_string(self.controls.join("stop")).unwrap();
        self.write("stop", "");
        steps.lines().for_each(|step| self.write(&format!("{step}.go"), ""));
    }

    /// Lets so many milliseconds pass, at the server and here. Its wall clock goes on from wherever it was set.
    pub(crate) fn pass_time(&mut self, by: i64) {
        self.issuer.pass_time(Duration::from_millis(by.unsigned_abs()));
        self.set_clocks(self.wall + by, self.monotonic + by);
    }

    /// Sets its wall clock so many milliseconds ahead of the machine's. The monotonic one cannot be set back.
    pub(crate) fn set_wall_clock(&mut self, wall: i64) {
        self.set_clocks(wall, self.monotonic);
    }

    /// Sets its wall clock and its monotonic clock so many milliseconds ahead of the machine's.
    pub(crate) fn set_clocks(&mut self, wall: i64, monotonic: i64) {
        (self.wall, self.monotonic) = (wall, monotonic);
        self.write("clock", &format!("{wall} {monotonic}"));
    }

    fn write(&self, name: &str, text: &str) {
        let new = self.controls.join("new");
        File::create(&new).unwrap().write_all(text.as_bytes()).unwrap();
        fs::rename(new, self.controls.join(name)).unwrap();
    }

    /// Kills it. Whatever it presented last may have been cut off.
    pub(crate) async fn crash(&mut self) {
        self.daemon.kill9().await;
        self.checker.crashed(&format!("{}.{}", self.name, self.life));
    }

    /// It ended by itself with work that was not saved, as it says.
    pub(crate) fn gave_up(&self) {
        self.checker.crashed(&format!("{}.{}", self.name, self.life));
    }

    /// Starts it again under the name of its next life, and does not wait.
    pub(crate) fn spawn(&mut self) {
        self.stop_at(&[]);
        let config = fs::read_to_string(self.daemon.config()).unwrap();
        let name = |life| format!("client_id = \"{}.{life}\"", self.name);
        let (old, new) = (name(self.life), name(self.life + 1));
        assert!(config.contains(&old), "{config}");
        File::create(self.daemon.config()).unwrap().write_all(config.replace(&old, &new).as_bytes()).unwrap();
        self.life += 1;
        self.daemon.spawn();
    }

    /// Starts it again, and looks whether what was answered is still there.
    pub(crate) async fn relaunch(&mut self, accounts: &[&str]) {
        self.spawn();
        self.daemon.ready().await;
        for account in accounts {
            let answer = self.get(account).await;
            self.checker.survived(account, &answer, self.now());
        }
    }

    /// Asks for a new token until there is a clear answer, and has it judged.
    pub(crate) async fn settle(&self, account: &str) -> Fate {
        self.get(account).await;
        let clear = async {
            loop {
                let answer = self.refresh(account).await;
                if ![429, 502, 503, 504].contains(&answer.status) {
                    break answer;
                }
                sleep(answer.retry_after().unwrap_or_default().min(Duration::from_secs(1))).await;
            }
        };
        let answer = timeout(4 * SOON, clear).await.unwrap_or_else(|_| panic!("{account} has no clear answer"));
        let line = self.line(account).await;
        if answer.status == 401 && !self.daemon.output_text().contains("the answer to an earlier presentation was lost")
        {
            self.checker.violation(format!("{account}: the log does not say what was lost"));
        }
        let fate = self.checker.settled(account, &answer, line["state"].as_str().unwrap_or_default());
        self.get(account).await;
        fate
    }
}
