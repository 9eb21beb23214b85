//! The real program as a process: a home of its own, its output in files, signals, and what must not show up in it.
//!
//! Invariants:
//! 1. No test sees the machine's home directory or environment: only `PATH` gets through.
//! 2. A test fails when a marked secret (`canary-`) or a watched one was printed, logged, audited, or answered where it
//!    does not belong. It is looked for once the process has ended, so nothing is missed.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use bytes::Bytes;
use rustix::{
    fs::OFlags,
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{LocalModes, tcgetattr},
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt as _,
    time::{sleep, timeout},
};

use super::{
    audit_log,
    http::{Connection, Response, Transcript},
    oidc::Issued,
    terminal::Terminal,
};

/// A debug build on a busy machine answers within a second.
const READY: Duration = Duration::from_secs(20);
/// More than the 35 s that a shutdown may wait for a flight.
const END: Duration = Duration::from_secs(45);
/// How often to look again at a process that starts or ends; nothing tells.
const LOOK: Duration = Duration::from_millis(5);
/// How many lines of its output a failed test shows.
const TAIL: usize = 100;
/// What a command may take: longer than a flight's 30 s.
const COMMAND: Duration = Duration::from_secs(40);

/// Where daemons live. Those that share one share the store and its key.
pub(crate) struct Home {
    directory: TempDir,
    /// What is put before the program's name to start it.
    prefix: Vec<OsString>,
    /// What must not be printed or logged.
    secrets: Mutex<Vec<String>>,
    /// What must not be answered either.
    refresh_tokens: Mutex<Vec<String>>,
}

impl Home {
    pub(crate) fn new() -> Arc<Self> {
        Self::at(&std::env::temp_dir(), |_| Vec::new())
    }

    /// A home in memory, where there is such a place: no disk that others keep busy makes its programs wait. They are
    /// started by another one, such as `nsenter`, whose command line `prefix` gives for the home's path; the process
    /// must stay the same.
    pub(crate) fn in_memory(prefix: impl FnOnce(&Path) -> Vec<OsString>) -> Arc<Self> {
        let memory = Path::new("/dev/shm");
        if memory.is_dir() { Self::at(memory, prefix) } else { Self::at(&std::env::temp_dir(), prefix) }
    }

    fn at(place: &Path, prefix: impl FnOnce(&Path) -> Vec<OsString>) -> Arc<Self> {
        // A short name: the path of a socket has at most 107 bytes.
        let directory = tempfile::Builder::new().prefix("cp-").tempdir_in(place).unwrap();
        // The runtime directory belongs to the system; what is below it is the daemon's to make.
        DirBuilder::new().mode(0o700).create(directory.path().join("run")).unwrap();
        Arc::new(Self {
            prefix: prefix(directory.path()),
            directory,
            secrets: Mutex::default(),
            refresh_tokens: Mutex::default(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    fn command(&self, config: &Path, env: &[(&str, &str)], arguments: &[&str]) -> Command {
        let mut words = self.prefix.iter().cloned().chain([env!("CARGO_BIN_EXE_credproxy").into()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg("--config").arg(config).args(arguments).current_dir(self.path()).env_clear();
        command.envs(search_path().map(|path| ("PATH", path))).env("HOME", self.path());
        for (name, place) in [
            ("XDG_CONFIG_HOME", "config"),
            ("XDG_DATA_HOME", "data"),
            ("XDG_STATE_HOME", "state"),
            ("XDG_CACHE_HOME", "cache"),
            ("XDG_RUNTIME_DIR", "run"),
        ] {
            command.env(name, self.path().join(place));
        }
        // The loudest log there is: what is not in it is in no other.
        command.env("CREDPROXY_LOG", "trace").env("RUST_BACKTRACE", "1").envs(env.iter().copied());
        command
    }

    /// Lines of `text` that hold a secret.
    fn leaks(&self, text: &str) -> Vec<String> {
        let refresh_tokens = self.refresh_tokens.lock().unwrap();
        let secrets = self.secrets.lock().unwrap();
        let forbidden = || secrets.iter().chain(refresh_tokens.iter()).map(String::as_str).chain(["canary-"]);
        let leaks = |line: &&str| forbidden().any(|secret| line.contains(secret));
        text.lines().filter(leaks).map(str::to_owned).collect()
    }
}

#[expect(clippy::disallowed_methods, reason = "the one variable of the caller's that a daemon under test may see")]
fn search_path() -> Option<OsString> {
    std::env::var_os("PATH")
}

/// One daemon, killed with this value.
pub(crate) struct Daemon {
    home: Arc<Home>,
    name: String,
    env: Vec<(String, String)>,
    child: Option<Child>,
    transcript: Transcript,
}

impl Daemon {
    /// Starts a daemon of that name and waits until it answers. `config` is the text of its configuration, to which
    /// its own host socket and the home's store are added unless it names such itself; `{home}` in it stands for the
    /// home's path. `env` is added to its environment.
    pub(crate) async fn start(home: &Arc<Home>, name: &str, config: &str, env: &[(&str, &str)]) -> Self {
        let mut daemon = Self::prepare(home, name, config, env);
        daemon.launch().await;
        daemon
    }

    /// The same without the start.
    pub(crate) fn prepare(home: &Arc<Home>, name: &str, config: &str, env: &[(&str, &str)]) -> Self {
        let daemon = Self {
            home: Arc::clone(home),
            name: name.to_owned(),
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            child: None,
            transcript: Transcript::default(),
        };
        let mut text = config.replace("{home}", &home.path().display().to_string());
        if !text.contains("[sockets.host]") {
            write!(text, "\n[sockets.host]\npath = {:?}\nrole = \"host\"\n", daemon.socket()).unwrap();
        }
        if !text.contains("[store]") {
            let store = home.path().join("data/credproxy.db");
            write!(text, "\n[store]\nurl = \"sqlite://{}\"\n", store.display()).unwrap();
        }
        File::create(daemon.config()).unwrap().write_all(text.as_bytes()).unwrap();
        daemon
    }

    /// Starts the process, again after it was ended, and waits until it answers.
    pub(crate) async fn launch(&mut self) {
        self.spawn();
        self.ready().await;
    }

    /// Starts the process, and does not wait.
    pub(crate) fn spawn(&mut self) {
        let output = |kind| OpenOptions::new().create(true).append(true).open(self.output(kind)).unwrap();
        let (stdout, stderr) = (output("stdout"), output("stderr"));
        self.spawn_into(&[], stdout.into(), stderr.into());
    }

    /// Starts it with these for its output, by the program `before`, if any, that is told to run it.
    pub(crate) async fn launch_into(&mut self, before: &[&str], stdout: Stdio, stderr: Stdio) {
        self.spawn_into(before, stdout, stderr);
        self.ready().await;
    }

    fn spawn_into(&mut self, before: &[&str], stdout: Stdio, stderr: Stdio) {
        assert!(self.child.is_none(), "it still runs");
        let mut command = self.home.command(&self.config(), &self.env(), &["serve"]);
        if let [program, arguments @ ..] = before {
            let mut wrapped = Command::new(program);
            wrapped.args(arguments).arg(command.get_program()).args(command.get_args());
            wrapped.env_clear().current_dir(self.home.path());
            wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
            command = wrapped;
        }
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        self.child = Some(command.spawn().unwrap());
    }

    /// Waits until it answers.
    pub(crate) async fn ready(&mut self) {
        let ready = async {
            while !self.answers().await {
                let ended = self.child.as_mut().unwrap().try_wait().unwrap();
                assert!(ended.is_none(), "it ended instead of answering: {ended:?}");
                sleep(LOOK).await;
            }
        };
        let ready = timeout(READY, ready).await;
        assert!(ready.is_ok(), "it does not answer");
    }

    async fn answers(&self) -> bool {
        if tokio::net::UnixStream::connect(self.socket()).await.is_err() {
            return false;
        }
        // A socket that a killed daemon left behind may be replaced between the two.
        let mut connection = Connection::to_daemon(&self.socket(), Arc::clone(&self.transcript)).await;
        connection
            .try_request("GET", "/v1/health", &[], "")
            .await
            .is_ok_and(|health| [200, 503].contains(&health.status))
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.home.path().join("run").join(&self.name).join("credproxy.sock")
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("it does not run"))
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.home.path().join(format!("{}.toml", self.name))
    }

    fn output(&self, kind: &str) -> PathBuf {
        self.home.path().join(format!("{}.{kind}", self.name))
    }

    /// All that it has written so far.
    pub(crate) fn output_text(&self) -> String {
        let read = |kind| String::from_utf8_lossy(&fs::read(self.output(kind)).unwrap_or_default()).into_owned();
        format!("--- stdout of {0}\n{1}\n--- stderr of {0}\n{2}", self.name, read("stdout"), read("stderr"))
    }

    /// The end of it: a log at trace level is long.
    fn output_tail(&self) -> String {
        let text = self.output_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    fn env(&self) -> Vec<(&str, &str)> {
        self.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    /// A connection to its host socket, if it is there.
    pub(crate) async fn try_connect(&self) -> Option<Connection> {
        let stream = tokio::net::UnixStream::connect(self.socket()).await.ok()?;
        Some(Connection::over_daemon(stream, Arc::clone(&self.transcript)).await)
    }

    /// A connection to its host socket.
    pub(crate) async fn connect(&self) -> Connection {
        Connection::to_daemon(&self.socket(), Arc::clone(&self.transcript)).await
    }

    /// One request, on a connection of its own.
    pub(crate) async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response {
        self.connect().await.request(method, path, headers, body).await
    }

    /// Runs the program beside the daemon, with its configuration and environment, to its end.
    pub(crate) async fn command(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.home.command(&self.config(), &self.env(), arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let run = async {
            // A command that does not want its input may have ended already.
            drop(stdin.write_all(input.as_bytes()).await);
            drop(stdin);
            child.wait_with_output().await.unwrap()
        };
        let output = timeout(COMMAND, run).await.unwrap_or_else(|_| panic!("{arguments:?} does not end"));
        let leaks = self.home.leaks(&String::from_utf8_lossy(&output.stderr));
        assert!(leaks.is_empty(), "{arguments:?} prints a secret: {leaks:#?}");
        output
    }

    /// Starts the program beside the daemon with this for its standard output, to be killed.
    pub(crate) fn piped_beside(&self, arguments: &[&str], stdout: Stdio) -> Child {
        let mut command = self.home.command(&self.config(), &self.env(), arguments);
        command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Starts the program beside the daemon, its input and output in the caller's hands. It is killed with the value.
    pub(crate) fn start_beside(&self, arguments: &[&str]) -> tokio::process::Child {
        let mut command = self.home.command(&self.config(), &self.env(), arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap()
    }

    /// Starts the program beside the daemon, to be killed.
    pub(crate) fn spawn_beside(&self, arguments: &[&str]) -> Child {
        let mut command = self.home.command(&self.config(), &self.env(), arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Runs the program beside the daemon, and kills it after so long unless it has ended.
    pub(crate) async fn command_killed_after(&self, arguments: &[&str], delay: Duration) {
        let mut command = self.home.command(&self.config(), &self.env(), arguments);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(delay).await;
        // It may have ended by itself.
        drop(child.kill());
        child.wait().unwrap();
    }

    /// Runs the program on a terminal of its own, and types each line once its prompt is there and nothing that is
    /// typed is shown. Gives what the terminal showed. The secrets among the lines must not be in it.
    pub(crate) async fn command_on_terminal(&self, arguments: &[&str], typed: &[(&str, &str)]) -> (ExitStatus, String) {
        let (terminal, other_end) = terminal_pair();
        let plain = self.home.command(&self.config(), &self.env(), arguments);
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(plain.get_program()).args(plain.get_args());
        command.current_dir(self.home.path()).env_clear();
        command.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdin(other_end.try_clone().unwrap()).stdout(other_end.try_clone().unwrap()).stderr(other_end);
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();
        let lines: Vec<_> = typed.iter().map(|(prompt, line)| ((*prompt).to_owned(), (*line).to_owned())).collect();
        let run = async {
            let shown = tokio::task::spawn_blocking(move || converse(terminal, lines)).await.unwrap();
            (child.wait().await.unwrap(), shown)
        };
        let done = timeout(COMMAND, run).await;
        let (status, shown) = done.unwrap_or_else(|_| panic!("{arguments:?} does not end on a terminal"));
        assert!(self.home.leaks(&shown).is_empty(), "{arguments:?} shows a secret: {shown}");
        (status, shown)
    }

    /// Starts the program beside the daemon on a terminal of so many columns and rows.
    pub(crate) fn on_terminal(&self, arguments: &[&str], env: &[(&str, &str)], size: (u16, u16)) -> Terminal {
        Terminal::start(&self.home.command(&self.config(), env, arguments), size)
    }

    /// From now on the value must not be in the daemon's output, not even in what was written before.
    pub(crate) fn watch_secret(&self, value: &str) {
        self.home.secrets.lock().unwrap().push(value.to_owned());
    }

    /// The same, and it must not be in an answer either.
    pub(crate) fn watch_refresh_token(&self, value: &str) {
        self.home.refresh_tokens.lock().unwrap().push(value.to_owned());
    }

    /// Watches the tokens of one answer of a token endpoint.
    pub(crate) fn watch_grant(&self, grant: &Value) {
        self.watch_secret(grant["access_token"].as_str().unwrap());
        self.watch_refresh_token(grant["refresh_token"].as_str().unwrap());
    }

    /// Watches every token that a provider handed out.
    pub(crate) fn watch_issued(&self, issued: &Issued) {
        issued.access_tokens.iter().for_each(|token| self.watch_secret(token));
        issued.refresh_tokens.iter().for_each(|token| self.watch_refresh_token(token));
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it does not run");
        kill_process(Pid::from_child(child), signal).unwrap();
    }

    /// Ends it as a crash or the kernel would, and waits until it is gone.
    pub(crate) async fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.wait().await;
    }

    /// Asks it to end; `wait` tells how it did.
    pub(crate) fn sigterm(&self) {
        self.signal(Signal::TERM);
    }

    /// Lets it stand still.
    pub(crate) fn stop_signal(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn cont_signal(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits until the process has ended.
    pub(crate) async fn wait(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("it does not run");
        let ended = async {
            loop {
                match child.try_wait().unwrap() {
                    Some(status) => break status,
                    None => sleep(LOOK).await,
                }
            }
        };
        let Ok(status) = timeout(END, ended).await else { panic!("it does not end") };
        self.child = None;
        status
    }

    /// Ends it in order and starts it again.
    pub(crate) async fn restart(&mut self) {
        self.sigterm();
        let status = self.wait().await;
        assert!(status.success(), "{status}");
        self.launch().await;
    }

    /// What must not be in its output or its answers, and is.
    fn leaks(&self) -> Vec<String> {
        let mut leaks = self.home.leaks(&self.output_text());
        leaks.extend(self.home.leaks(&audit_log::text(&audit_log::place(&self.home))));
        let answers = String::from_utf8_lossy(&self.transcript.lock().unwrap()).into_owned();
        let refresh_tokens = self.home.refresh_tokens.lock().unwrap();
        leaks.extend(refresh_tokens.iter().filter(|token| answers.contains(*token)).map(|it| format!("answered {it}")));
        leaks
    }
}

/// The two ends of a new terminal: a person's, and the program's.
pub(crate) fn terminal_pair() -> (File, File) {
    let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&person).unwrap();
    unlockpt(&person).unwrap();
    let name = ptsname(&person, Vec::new()).unwrap().into_string().unwrap();
    let program =
        OpenOptions::new().read(true).write(true).custom_flags(OFlags::NOCTTY.bits().cast_signed()).open(name);
    (File::from(person), program.unwrap())
}

/// Reads what the terminal shows to its end, and types each line at its prompt.
fn converse(mut terminal: File, lines: Vec<(String, String)>) -> String {
    let (mut shown, mut seen, mut lines) = (String::new(), 0, lines.into_iter());
    let mut next = lines.next();
    let mut buffer = [0; 1024];
    // The end is an error: the program's end is closed.
    while let Ok(read @ 1..) = terminal.read(&mut buffer) {
        shown.push_str(&String::from_utf8_lossy(&buffer[..read]));
        while let Some((prompt, line)) = next.take_if(|(prompt, _)| shown[seen..].contains(prompt.as_str())) {
            seen += shown[seen..].find(&prompt).unwrap() + prompt.len();
            while tcgetattr(&terminal).unwrap().local_modes.contains(LocalModes::ECHO) {
                thread::sleep(LOOK);
            }
            terminal.write_all(format!("{line}\n").as_bytes()).unwrap();
            next = lines.next();
        }
    }
    assert!(next.is_none(), "not asked for everything: {shown}");
    shown
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
        if thread::panicking() {
            eprintln!("{}", self.output_tail());
            return;
        }
        let leaks = self.leaks();
        assert!(leaks.is_empty(), "secrets came out of {}: {leaks:#?}", self.name);
    }
}
