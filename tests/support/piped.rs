//! `credproxy login` without a terminal: what it prints, line by line, and what it is given.

use std::{process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStderr, Command},
    time::timeout,
};

use super::daemon::Daemon;

/// A device is asked every five seconds, and twice at most.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);

/// `credproxy login` beside a daemon, its standard error read line by line.
pub(crate) struct Piped {
    pub(crate) child: Child,
    lines: tokio::io::Lines<BufReader<ChildStderr>>,
    seen: String,
}

impl Piped {
    /// `arguments` begin with the account.
    pub(crate) fn login(daemon: &Daemon, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_credproxy"))
            .arg("login")
            .args(arguments)
            .env_clear()
            .env("CREDPROXY_SOCKET", daemon.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, lines, seen: String::new() }
    }

    /// The next line that holds `text`.
    pub(crate) async fn line(&mut self, text: &str) -> String {
        let line = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                self.seen.push_str(&line);
                self.seen.push('\n');
                if line.contains(text) {
                    return line.trim().to_owned();
                }
            }
            panic!("{text:?} is not printed: {}", self.seen);
        };
        timeout(LIMIT, line).await.unwrap_or_else(|_| panic!("{text:?} does not come"))
    }

    /// Ctrl-C.
    pub(crate) fn interrupt(&self) {
        kill_process(Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap(), Signal::INT).unwrap();
    }

    /// Exit code and standard output.
    pub(crate) async fn end(mut self) -> (Option<i32>, String) {
        drop(self.child.stdin.take());
        let output = timeout(LIMIT, self.child.wait_with_output()).await.expect("it does not end").unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }
}
