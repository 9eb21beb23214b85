//! `credproxy login`.
//!
//! Invariants:
//! 1. Whatever ends the command before the login has ended also cancels the login at the daemon.
//! 2. Standard output gets the result alone, and only with `--json`.

use std::{io, pin::pin, process::Stdio, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    signal::unix::{Signal, SignalKind, signal},
    time::timeout,
};
use zeroize::Zeroizing;

use super::{Exit, Failure, output, terminal::Terminal};
use crate::{
    account::Account,
    client::{Client, ClientError, Login},
    clock::{Clock as _, SystemClock, Timestamp},
    config::Environment,
    problem_code::ProblemCode,
    provider::Flow,
};

mod prompt;
mod qr;

/// How long one request waits for the end of the login. The next one follows at once.
const LOGIN_POLL_WAIT: Duration = Duration::from_secs(25);

/// How long a cancellation may take: a person who has pressed Ctrl-C does not want to wait, and the daemon answers
/// within milliseconds.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) async fn run(
    client: &Client,
    account: &Account,
    flow: Option<Flow>,
    env: &Environment,
    json: bool,
) -> Result<Exit, Failure> {
    let flow = match flow {
        Some(flow) => flow,
        None => best(client, account, env.has_display()).await?,
    };
    // From here on an interrupt must reach the daemon, too.
    let mut interrupts = Interrupts::new().map_err(|error| Failure::new(Exit::Failure, error))?;
    let dialogue = Dialogue { client, account, terminal: Terminal::of(env), display: env.has_display() };
    let login = dialogue.begin(flow, &mut interrupts).await?;
    let ended = tokio::select! {
        ended = dialogue.complete(&login, flow) => ended?,
        () = interrupts.next() => {
            dialogue.cancel(&login, &mut interrupts).await;
            return Err(dialogue.cancelled());
        }
    };
    report(account, &ended, json)
}

/// The best flow: a browser if there is a display, else a device code, else a pasted code.
async fn best(client: &Client, account: &Account, display: bool) -> Result<Flow, Failure> {
    let fail = |error| Failure::of(error, Some(account));
    let providers = client.providers().await;
    let offered = match providers {
        Ok(providers) => providers.into_iter().find(|provider| provider.name == account.provider),
        // A socket may allow login but not read.
        Err(ClientError::Problem { .. }) => None,
        Err(error) => return Err(fail(error)),
    };
    let offers = |flow: Flow| offered.as_ref().is_none_or(|provider| provider.flows.iter().any(|it| it == flow.name()));
    let wanted: &[Flow] =
        if display { &[Flow::Browser, Flow::Device, Flow::Paste] } else { &[Flow::Device, Flow::Paste, Flow::Browser] };
    wanted.iter().copied().find(|flow| offers(*flow)).ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("the provider {} offers no login", account.provider))
            .hint(format!("store a grant from elsewhere: `credproxy import {account}`"))
    })
}

/// What the steps of one login share.
struct Dialogue<'a> {
    client: &'a Client,
    account: &'a Account,
    terminal: Terminal,
    display: bool,
}

impl Dialogue<'_> {
    async fn begin(&self, flow: Flow, interrupts: &mut Interrupts) -> Result<Login, Failure> {
        let mut begun = pin!(self.client.start_login(self.account, flow));
        let asked = || format!("asking {}", self.account.provider);
        tokio::select! {
            begun = self.terminal.wait(asked, &mut begun) => begun.map_err(|error| Failure::of(error, Some(self.account))),
            () = interrupts.next() => {
                tokio::select! {
                    // A login that was started can be cancelled only by its id.
                    begun = timeout(CANCEL_TIMEOUT, begun) => if let Ok(Ok(login)) = begun {
                        self.cancel(&login, interrupts).await;
                    },
                    () = interrupts.next() => {}
                }
                Err(self.cancelled())
            }
        }
    }

    async fn complete(&self, login: &Login, flow: Flow) -> Result<Login, Failure> {
        output::note(&prompt::text(login, self.account, &self.terminal));
        self.open_browser(login);
        let ended = match flow {
            Flow::Paste => self.paste(login).await?,
            Flow::Browser | Flow::Device => {
                let expires_at = Timestamp::from_secs(login.expires_at);
                let left = || output::in_words(expires_at.since(SystemClock::new().now()));
                if !self.terminal.is_interactive() {
                    output::note(&format!("waiting, for {} at most; Ctrl-C cancels", left()));
                }
                let waiting = || format!("waiting, for {} more at most; Ctrl-C cancels", left());
                self.terminal.wait(waiting, self.end_of(login)).await
            }
        };
        ended.map_err(|error| self.broken(error))
    }

    /// Opens the browser if possible; the address is on the screen as well.
    fn open_browser(&self, login: &Login) {
        let authorization_url = login.authorization_url.as_ref().filter(|_| login.flow == Flow::Browser.name());
        let Some(url) = authorization_url.or(login.verification_uri_complete.as_ref()).filter(|_| self.display) else {
            return;
        };
        let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
        let mut command = Command::new(program);
        command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // The browser is not waited for: some stay in the foreground until they end. A Ctrl-C does not reach it.
        command.process_group(0).spawn().map(drop).ok();
    }

    async fn end_of(&self, login: &Login) -> Result<Login, ClientError> {
        loop {
            let now = self.client.login(&login.id, LOGIN_POLL_WAIT).await?;
            if now.status != "pending" {
                return Ok(now);
            }
        }
    }

    async fn paste(&self, login: &Login) -> Result<Result<Login, ClientError>, Failure> {
        output::note("paste the code, or the whole address that the browser ended at, and press Enter:");
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        loop {
            let line = tokio::select! {
                line = lines.next_line() => line.map_err(|error| unreadable(&error)),
                // The login may expire, or be finished from elsewhere.
                ended = self.end_of(login) => return Ok(ended),
            };
            let line = match line {
                Ok(Some(line)) => Zeroizing::new(line),
                Ok(None) => {
                    self.client.cancel_login(&login.id).await.ok();
                    return Err(Failure::new(Exit::Failure, "no code was given: standard input is at its end"));
                }
                Err(failure) => {
                    self.client.cancel_login(&login.id).await.ok();
                    return Err(failure);
                }
            };
            let exchanging = || format!("waiting for {}", self.account.provider);
            match self.terminal.wait(exchanging, self.client.finish_login(&login.id, line.trim())).await {
                Err(ClientError::Problem { detail, code, .. }) if code.parse() == Ok(ProblemCode::InvalidRequest) => {
                    output::note(&detail);
                }
                ended => return Ok(ended),
            }
        }
    }

    /// Cancels the login. A second interrupt, or a daemon that does not answer, ends the wait.
    async fn cancel(&self, login: &Login, interrupts: &mut Interrupts) {
        tokio::select! {
            // If the daemon is gone or the login over, there is nothing to cancel.
            _ = timeout(CANCEL_TIMEOUT, self.client.cancel_login(&login.id)) => {}
            () = interrupts.next() => {}
        }
    }

    fn cancelled(&self) -> Failure {
        self.terminal.clear_line();
        Failure::new(Exit::Failure, "cancelled")
    }

    /// The failure for a login whose end is not known.
    fn broken(&self, error: ClientError) -> Failure {
        let again = format!("begin again: `credproxy login {}`", self.account);
        match error {
            ClientError::Unreachable { .. } | ClientError::Interrupted(_) => {
                Failure::new(Exit::Unreachable, "the daemon went away, and the login with it")
                    .hint(format!("start it with `credproxy serve`, and {again}"))
            }
            _ if error.code() == Some(ProblemCode::SessionNotFound) => {
                let why =
                    "the daemon knows nothing of this login any more: it was started again, or the login cancelled";
                Failure::new(Exit::Failure, why).hint(again)
            }
            // Its own hint says what to do.
            ClientError::UntrustedServer { .. } => Failure::of(error, Some(self.account)),
            ClientError::Problem { .. } | ClientError::TimedOut | ClientError::Protocol(_) => {
                Failure::of(error, Some(self.account)).hint(again)
            }
        }
    }
}

fn unreadable(error: &io::Error) -> Failure {
    Failure::new(Exit::Failure, format!("cannot read standard input: {error}"))
}

/// The signals that interrupt the command: Ctrl-C, a service manager, a closed terminal.
struct Interrupts([Signal; 3]);

impl Interrupts {
    fn new() -> io::Result<Self> {
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hang_up] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    }
}

fn report(account: &Account, ended: &Login, json: bool) -> Result<Exit, Failure> {
    if let Some(detail) = &ended.detail {
        let code = ended.code.as_deref().unwrap_or("EXCHANGE_FAILED");
        return Err(Failure::new(Exit::Failure, format!("{detail} ({code})"))
            .hint(format!("begin again: `credproxy login {account}`")));
    }
    let left = ended.token_expiry.map(|expiry| Timestamp::from_secs(expiry).since(SystemClock::new().now()));
    output::note(&match left {
        Some(left) => format!("logged in to {account}; the token lasts {}", output::in_words(left)),
        None => format!("logged in to {account}"),
    });
    if json {
        output::json(&json!({
            "provider": account.provider, "bucket": account.bucket, "flow": ended.flow, "expiry": ended.token_expiry,
        }))?;
    }
    Ok(Exit::Success)
}
