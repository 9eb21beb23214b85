//! `credproxy exec`.
//!
//! Invariants:
//! 1. The sandbox ends with the command, and at the latest with this process, because it is tied to it.
//! 2. A signal that was sent to this process reaches the command, once.
//! 3. The capability is neither in the environment nor in a file that has a name.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Seek as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::ExitStatusExt as _,
    },
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use clap::Args;
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    process::{Pid, kill_process},
};
use secrecy::ExposeSecret as _;
use tokio::{process::Command, time::timeout};

use super::{Exit, Failure, duration, output};
use crate::{
    account::{Account, KeyName},
    client::{Client, Sandbox, SandboxRequest, Token},
    config::{CAPABILITY_FD, SOCKET},
    policy::{Operation, Pattern},
    secret::Capability,
};

mod signals;

use signals::{Received, Signals};

/// How long the deletion of the sandbox may take. The sandbox ends with this process anyway.
const DELETE_TIMEOUT: Duration = Duration::from_secs(5);

/// Exit code of shells for a command that was not found.
const EXIT_NOT_FOUND: u8 = 127;

/// Exit code of shells for a command that cannot be run.
const EXIT_NOT_EXECUTABLE: u8 = 126;

/// Options of `exec`.
#[derive(Debug, Args)]
pub struct Exec {
    /// Allow an account: PROVIDER, PROVIDER/BUCKET, or PROVIDER/* for all buckets; may be repeated
    #[arg(long, value_name = "ACCOUNT")]
    allow: Vec<Pattern>,
    /// Allow an API key; may be repeated
    #[arg(long, value_name = "NAME")]
    key: Vec<KeyName>,
    /// Allow an operation on the accounts: read, refresh, login; may be repeated [default: read and refresh]
    #[arg(long, value_name = "OPERATION")]
    operation: Vec<Operation>,
    /// End the sandbox after this time even if CMD still runs: 90s, 5m, or a number of seconds [default: 30 days]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    ttl: Option<Duration>,
    /// Require a capability on the socket; CMD reads it from the open file numbered by `CREDPROXY_CAPABILITY_FD`
    #[arg(long)]
    capability: bool,
    /// Also put an account's access token into a variable of CMD's environment, where it is not renewed; may be
    /// repeated
    #[arg(long, value_name = "VARIABLE=ACCOUNT", value_parser = variable)]
    env: Vec<(String, Account)>,
    /// The command and its arguments
    #[arg(value_name = "CMD", required = true, last = true)]
    command: Vec<OsString>,
}

fn variable(text: &str) -> Result<(String, Account), String> {
    let (name, account) = text.split_once('=').ok_or("not of the form VARIABLE=ACCOUNT")?;
    let mut letters = name.bytes();
    let fit = letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == b'_');
    if !fit {
        return Err("the name of a variable has letters, digits and _ in it, and no digit first".to_owned());
    }
    Ok((name.to_owned(), account.parse().map_err(|error| format!("{error}"))?))
}

pub(super) async fn run(client: &Client, how: &Exec) -> Result<ExitCode, Failure> {
    // From here on a signal does not end this process before the sandbox.
    let mut signals = Signals::catch().map_err(|error| Failure::new(Exit::Failure, error))?;
    let (sandbox, tokens) = tokio::select! {
        prepared = prepare(client, how) => prepared?,
        // A sandbox that the daemon creates meanwhile ends with this process.
        signal = signals.next() => return Ok(exit_of_signal(signal.number())),
    };
    let ended = match command(how, &sandbox, &tokens) {
        Ok((command, capability)) => supervise(command, capability, &mut signals).await,
        Err(error) => Err(error),
    };
    // A timeout, or a sandbox that is gone already, makes no difference now.
    timeout(DELETE_TIMEOUT, client.delete_sandbox(&sandbox.id)).await.map(drop).ok();
    Ok(match ended {
        Ok(status) => exit_of(status),
        Err(error) => {
            output::note(&format!("error: cannot run {}: {error}", how.command[0].display()));
            ExitCode::from(if error.kind() == io::ErrorKind::NotFound { EXIT_NOT_FOUND } else { EXIT_NOT_EXECUTABLE })
        }
    })
}

/// Gets the tokens first: if one fails, there is nothing to undo.
async fn prepare<'a>(client: &Client, how: &'a Exec) -> Result<(Sandbox, Vec<(&'a str, Token)>), Failure> {
    let mut tokens = Vec::with_capacity(how.env.len());
    for (name, account) in &how.env {
        let token = client.token(account, None).await.map_err(|error| Failure::of(error, Some(account)))?;
        tokens.push((name.as_str(), token));
    }
    let request = SandboxRequest {
        allow: &how.allow,
        operations: &how.operation,
        keys: &how.key,
        ttl: how.ttl,
        capability: how.capability,
    };
    let sandbox = client.create_sandbox(&request).await.map_err(|error| Failure::of(error, None))?;
    // Warn of a misspelt name here rather than in the command. Whether the providers can be listed does not matter.
    if let Ok(known) = client.providers().await {
        let names = how.allow.iter().map(Pattern::provider);
        for name in names.filter(|name| known.iter().all(|known| known.name != **name)) {
            output::note(&format!("warning: no provider {name} is configured"));
        }
    }
    Ok((sandbox, tokens))
}

/// The command to run, and the file that it inherits.
#[expect(clippy::disallowed_methods, reason = "the person asked for the access token to be in the environment")]
fn command(how: &Exec, sandbox: &Sandbox, tokens: &[(&str, Token)]) -> io::Result<(Command, Option<OwnedFd>)> {
    let mut command = Command::new(&how.command[0]);
    command.args(&how.command[1..]).env(SOCKET, &sandbox.socket).env_remove(CAPABILITY_FD);
    command.envs(tokens.iter().map(|(name, token)| (name, token.access_token.expose_secret())));
    let capability = sandbox.capability.as_ref().map(inheritable).transpose()?;
    if let Some(file) = &capability {
        command.env(CAPABILITY_FD, file.as_raw_fd().to_string());
    }
    Ok((command, capability))
}

/// A file in memory that every program started from now on inherits, and that nobody can change. Unlike a pipe, it can
/// be read more than once.
#[expect(clippy::disallowed_methods, reason = "hands the capability to the command that it is for")]
fn inheritable(capability: &Capability) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create("credproxy-capability", MemfdFlags::ALLOW_SEALING)?);
    file.write_all(capability.expose_secret().as_bytes())?;
    // CMD shares the file position with this process.
    file.rewind()?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Runs the command to its end, in this process's group and on its terminal.
async fn supervise(mut command: Command, inherited: Option<OwnedFd>, signals: &mut Signals) -> io::Result<ExitStatus> {
    let mut child = command.spawn()?;
    drop(inherited);
    loop {
        let signal = tokio::select! {
            status = child.wait() => return status,
            signal = signals.next() => signal,
        };
        let running = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let (Received::Sent(signal), Some(pid)) = (signal, running) {
            // The command may have ended just now.
            kill_process(pid, signal).ok();
        }
    }
}

fn exit_of(status: ExitStatus) -> ExitCode {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, Some(signal)) => exit_of_signal(signal),
        (None, None) => Exit::Failure.into(),
    }
}

/// The exit code of shells for a command that a signal ended.
fn exit_of_signal(number: i32) -> ExitCode {
    ExitCode::from(u8::try_from(number.saturating_add(128)).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_has_a_name_and_an_account() {
        let account = |text: &str| text.parse::<Account>().unwrap();
        assert_eq!(variable("TOKEN=corp").unwrap(), ("TOKEN".to_owned(), account("corp")));
        assert_eq!(variable("_t1=corp/work").unwrap(), ("_t1".to_owned(), account("corp/work")));
        for bad in ["", "TOKEN", "=corp", "1T=corp", "T-X=corp", "T=", "T=corp/", "T=corp/*", "T=a=b"] {
            assert!(variable(bad).is_err(), "{bad}");
        }
    }
}
