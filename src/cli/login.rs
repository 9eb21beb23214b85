//! `credproxy login`.

use std::{io, process::Stdio, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    signal::unix::{SignalKind, signal},
};
use zeroize::Zeroizing;

use super::{Exit, Failure, output};
use crate::{
    account::Account,
    client::{Client, ClientError, Login},
    clock::{Clock as _, SystemClock, Timestamp},
    config::Environment,
    provider::Flow,
};

/// How long one question waits for the end. The next follows at once.
const PATIENCE: Duration = Duration::from_secs(25);

pub(super) async fn run(
    client: &Client,
    account: &Account,
    flow: Option<Flow>,
    env: &Environment,
    json: bool,
) -> Result<Exit, Failure> {
    let fail = |error| Failure::of(error, Some(account));
    let flow = match flow {
        Some(flow) => flow,
        None => best(client, account, env.has_display()).await?,
    };
    // From here on an interrupt must reach the daemon, too.
    let mut interrupts = signal(SignalKind::interrupt()).map_err(|error| Failure::new(Exit::Failure, error))?;
    let login = client.start_login(account, flow).await.map_err(fail)?;
    let seen_through = async {
        show(&login, account, env.has_display());
        match flow {
            Flow::Paste => paste(client, &login).await,
            Flow::Browser | Flow::Device => wait(client, &login).await.map_err(fail),
        }
    };
    let ended = tokio::select! {
        ended = seen_through => ended?,
        _ = interrupts.recv() => {
            // The daemon may be gone, or the login over: nothing is left to cancel then.
            client.cancel_login(&login.id).await.ok();
            return Err(Failure::new(Exit::Failure, "cancelled"));
        }
    };
    report(account, &ended, json)
}

/// A browser where there is a display, or else a code to type in, or else one to bring.
async fn best(client: &Client, account: &Account, display: bool) -> Result<Flow, Failure> {
    let fail = |error| Failure::of(error, Some(account));
    let providers = client.providers().await;
    let offered = match providers {
        Ok(providers) => providers.into_iter().find(|provider| provider.name == account.provider),
        // A socket may be allowed to log in and not to read.
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

/// Tells the person what to do, and opens the browser where that may help.
fn show(login: &Login, account: &Account, display: bool) {
    output::note(&format!("log in to {account}"));
    if let Some(url) = &login.authorization_url {
        output::note(&format!("\nopen this address in a browser:\n\n  {url}\n"));
        if login.flow == Flow::Browser.name() && display {
            open(url);
        }
    }
    if let (Some(url), Some(code)) = (&login.verification_uri, &login.user_code) {
        output::note(&format!("\nopen this address on any device:\n\n  {url}\n\nand type in this code:\n\n  {code}\n"));
        if let Some(complete) = &login.verification_uri_complete {
            output::note(&format!("or open both at once:\n\n  {complete}\n"));
            if display {
                open(complete);
            }
        }
    }
    let left = Timestamp::from_secs(login.expires_at).since(SystemClock::new().now());
    output::note(&format!("waiting, for {} at most; Ctrl-C cancels", output::in_words(left)));
}

/// Best effort: the address is on the screen as well.
fn open(url: &str) {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let silent = || Stdio::null();
    // Not waited for: some browsers stay in the foreground for as long as they live.
    Command::new(program).arg(url).stdin(silent()).stdout(silent()).stderr(silent()).spawn().map(drop).ok();
}

async fn wait(client: &Client, login: &Login) -> Result<Login, ClientError> {
    loop {
        let now = client.login(&login.id, PATIENCE).await?;
        if now.status != "pending" {
            return Ok(now);
        }
    }
}

async fn paste(client: &Client, login: &Login) -> Result<Login, Failure> {
    let fail = |error| Failure::of(error, None);
    output::note("paste the code, or the whole address that the browser ended at, and press Enter:");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line.map_err(|error| unreadable(&error))?,
            // It may expire, or be finished from elsewhere.
            ended = wait(client, login) => return ended.map_err(fail),
        };
        let Some(line) = line.map(Zeroizing::new) else {
            client.cancel_login(&login.id).await.ok();
            return Err(Failure::new(Exit::Failure, "no code was given: standard input is at its end"));
        };
        match client.finish_login(&login.id, line.trim()).await {
            Err(ClientError::Problem { code, detail, .. }) if code == "INVALID_REQUEST" => output::note(&detail),
            ended => return ended.map_err(fail),
        }
    }
}

fn unreadable(error: &io::Error) -> Failure {
    Failure::new(Exit::Failure, format!("cannot read standard input: {error}"))
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
