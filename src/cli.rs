//! The command line.
//!
//! Owns: the arguments, everything that is printed, and the exit codes.
//!
//! Invariants:
//! 1. Data goes to standard output, everything else to standard error.
//! 2. A secret is printed only by the command that is asked for it.
//! 3. Every failure ends in `error: …` with the chain of its causes, a `hint: …` where there is something to do, and
//!    the exit code that [`Exit`] documents.
//!
//! Must not know: how the daemon does what it is asked for. `serve`, `check`, `store` and `audit` are parsed here
//! and carried out by `main`.

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{
    account::{Account, Bucket, NameError, ProviderName},
    client::Client,
    config::{Config, Environment, client_socket},
    provider::Flow,
};

mod audit;
mod check;
mod exec;
mod failure;
mod import;
mod key;
mod login;
mod logout;
mod output;
mod passphrase;
mod providers;
mod refresh;
mod rename;
mod serve;
mod status;
mod store;
mod terminal;
mod token;

pub use audit::{AuditArgs, print_audit};
pub use check::{Severity, print_findings};
pub use exec::Exec;
pub use failure::{Exit, Failure};
pub use key::KeyCommand;
pub use passphrase::ask_passphrase;
pub use providers::print_presets;
pub use serve::{print_dev_session, warn_of_tracer};
pub use store::{print_backup, print_rekeyed, print_verification};

/// ssh-agent for OAuth tokens: keeps refresh tokens to itself and hands out access tokens
#[derive(Debug, Parser)]
#[command(name = "credproxy", version, after_help = failure::EXIT_CODES)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub options: Options,
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Options {
    /// The configuration file [default: `$XDG_CONFIG_HOME/credproxy/config.toml`]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The daemon's socket: where clients connect, and for `serve` where the host's socket is created [default: for
    /// clients `$CREDPROXY_SOCKET`, then the configured one]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print JSON, for programs
    #[arg(long, global = true)]
    pub json: bool,
    /// Trust a daemon that runs as this user with secrets (a grant, an API key, a login's code), besides this user and
    /// root; may be repeated
    #[arg(long, global = true, value_name = "UID")]
    pub trust_uid: Vec<u32>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon
    Serve(Serve),
    /// Check the configuration, the store, the sockets and the process
    Check,
    /// List provider presets
    Providers,
    /// Copy the store, check it, or change its key
    #[command(subcommand)]
    Store(StoreCommand),
    /// Show the audit log; needs no running daemon
    Audit(AuditArgs),
    /// Commands for a running daemon.
    #[command(flatten)]
    Client(ClientCommand),
}

/// Options of `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Try it out with a store in memory and a built-in authorization server; reads no configuration
    #[arg(long)]
    pub dev: bool,
    /// Disable the Landlock sandbox, whatever the configuration says of `confine`
    #[arg(long)]
    pub unconfined: bool,
    /// Start even if another process traces this one (a debugger, strace) and can therefore read every secret
    #[arg(long)]
    pub traced: bool,
}

/// Commands for the store as a whole.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Copy the store into a new file, sealed with the same key; a daemon may be running
    Backup {
        /// The new file; an existing file is not overwritten
        #[arg(value_name = "FILE")]
        target: PathBuf,
    },
    /// Open every record, and fail if one does not open; a daemon may be running
    Verify {
        /// A backup to check instead of the store
        #[arg(value_name = "BACKUP")]
        copy: Option<PathBuf>,
    },
    /// Seal the store with a new key; the daemon must be stopped
    ///
    /// Backups made before do not open with the new key. If the change is interrupted, the store opens with the old key
    /// or with the new one, and the next start finds out which.
    Rekey {
        /// Where the new key is or will be, as in `[store] key` [default: the same place]
        #[arg(long, value_name = "SOURCE")]
        to: Option<String>,
    },
}

/// Commands for a running daemon.
#[derive(Debug, Subcommand)]
pub enum ClientCommand {
    /// Print an access token, and nothing else
    Token {
        /// The account.
        #[command(flatten)]
        account: AccountArgs,
        /// Refresh it first if it is valid for less than this: 90s, 5m, or a number of seconds
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        min_validity: Option<Duration>,
    },
    /// Have the provider issue a new access token; prints no token without --json
    Refresh(AccountArgs),
    /// Show the state of every account; fails if the daemon is degraded
    Status,
    /// Import a grant of another program
    ///
    /// Accepts a token answer (`access_token`, `refresh_token`, `token_type`, `scope`, and `expiry` in seconds since
    /// 1970 or `expires_in`; other members are kept), the `auth.json` of Codex, the `.credentials.json` of Claude Code,
    /// and the `oauth_creds.json` of Gemini CLI and Qwen Code. The source file is not changed. Stop using its copy of
    /// the grant.
    Import {
        /// The account that gets the grant.
        #[command(flatten)]
        account: AccountArgs,
        /// The file to read, `-` for standard input [default: standard input]
        #[arg(long, value_name = "FILE")]
        from: Option<PathBuf>,
    },
    /// Rename an account; its grant is unchanged
    ///
    /// Nothing is refreshed or revoked. Importing the grant a second time under the other name is refused, because its
    /// refresh token may be used only once.
    Rename {
        /// The account.
        #[arg(value_name = "PROVIDER[/BUCKET]", value_parser = named)]
        from: (ProviderName, Option<Bucket>),
        /// Its new name, under the same provider or another one with the same registration.
        #[arg(value_name = "NEW_PROVIDER[/BUCKET]", value_parser = named)]
        to: (ProviderName, Option<Bucket>),
    },
    /// Set, show or delete static API keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Log in: by a browser, a code to type in elsewhere, or a code to paste here
    Login {
        /// The account.
        #[command(flatten)]
        account: AccountArgs,
        /// browser, device or paste [default: browser with a display, else device, else paste]
        #[arg(long)]
        flow: Option<Flow>,
    },
    /// Run a command with a sandbox socket that exists while the command runs
    ///
    /// CMD finds the socket in `CREDPROXY_SOCKET`, and can use only what is allowed here. To give it to a container,
    /// mount the socket's directory. The exit code is CMD's, 128 plus the signal number if a signal ended it, 127 if
    /// the command was not found, and 126 if it cannot be run.
    Exec(Exec),
    /// Revoke a grant at the provider, if possible, and delete it
    Logout {
        /// The account.
        #[command(flatten)]
        account: AccountArgs,
        /// Delete it here without revoking it at the provider
        #[arg(long)]
        local_only: bool,
    },
}

/// An account on the command line.
#[derive(Debug, Args)]
pub struct AccountArgs {
    /// The provider, and the bucket if it is not `default`
    #[arg(value_name = "PROVIDER[/BUCKET]", value_parser = named)]
    named: (ProviderName, Option<Bucket>),
    /// The bucket, as an alternative to /BUCKET
    #[arg(long)]
    bucket: Option<Bucket>,
}

impl AccountArgs {
    fn account(&self) -> Result<Account, Failure> {
        let (provider, bucket) = &self.named;
        if bucket.is_some() && self.bucket.is_some() {
            return Err(Failure::new(Exit::Usage, "the bucket is named twice").hint("use PROVIDER/BUCKET or --bucket"));
        }
        let bucket = bucket.as_ref().or(self.bucket.as_ref()).cloned();
        Ok(Account::new(provider.clone(), bucket.unwrap_or_default()))
    }
}

fn named(text: &str) -> Result<(ProviderName, Option<Bucket>), NameError> {
    Ok(match text.split_once('/') {
        Some((provider, bucket)) => (provider.parse()?, Some(bucket.parse()?)),
        None => (text.parse()?, None),
    })
}

fn duration(text: &str) -> Result<Duration, &'static str> {
    let seconds = text.parse().map(Duration::from_secs);
    seconds.or_else(|_| humantime::parse_duration(text)).map_err(|_| "not a duration like 90s, 5m or 300")
}

/// Reads the command line. The error is the exit code after help, the version or a usage error was printed.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, ExitCode> {
    Cli::try_parse_from(arguments).map_err(|message| {
        // If this fails, nobody is left to be told.
        message.print().ok();
        if message.use_stderr() { Exit::Usage.into() } else { Exit::Success.into() }
    })
}

impl Options {
    /// The daemon's configuration: the file and the environment, with the host's socket at `--socket` if that is given.
    pub fn configuration(&self, env: &Environment) -> Result<Config, Failure> {
        let mut config = Config::load(self.config.as_deref(), env)?;
        if let Some(path) = &self.socket {
            config.move_host_socket(path).map_err(|error| Failure::new(Exit::Usage, error))?;
        }
        Ok(config)
    }
}

/// Carries out a command for a running daemon.
pub async fn run(options: &Options, command: &ClientCommand, env: &Environment) -> ExitCode {
    match ask(options, command, env).await {
        Ok(exit) => exit,
        Err(failure) => failure.report(),
    }
}

async fn ask(options: &Options, command: &ClientCommand, env: &Environment) -> Result<ExitCode, Failure> {
    let client = || -> Result<Client, Failure> {
        let (socket, capability) = client_socket(options.socket.as_deref(), options.config.as_deref(), env)?;
        let client = Client::new(socket).with_trusted_uids(&options.trust_uid);
        Ok(match &capability {
            Some(capability) => client.with_capability(capability),
            None => client,
        })
    };
    let json = options.json;
    let done = match command {
        ClientCommand::Token { account, min_validity } => {
            token::run(&client()?, &account.account()?, *min_validity, json).await
        }
        ClientCommand::Refresh(account) => refresh::run(&client()?, &account.account()?, json).await,
        ClientCommand::Status => status::run(&client()?, json).await,
        ClientCommand::Import { account, from } => import::run(&client()?, &account.account()?, from.as_deref()).await,
        ClientCommand::Rename { from, to } => {
            let account = |(provider, bucket): &(ProviderName, Option<Bucket>)| {
                Account::new(provider.clone(), bucket.clone().unwrap_or_default())
            };
            rename::run(&client()?, &account(from), &account(to)).await
        }
        ClientCommand::Key(command) => key::run(&client()?, command, json).await,
        ClientCommand::Login { account, flow } => login::run(&client()?, &account.account()?, *flow, env, json).await,
        ClientCommand::Logout { account, local_only } => {
            logout::run(&client()?, &account.account()?, !local_only, json).await
        }
        ClientCommand::Exec(how) => return exec::run(&client()?, how).await,
    };
    done.map(ExitCode::from)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn account(arguments: &[&str]) -> Result<Account, Exit> {
        let arguments = ["credproxy", "logout"].iter().chain(arguments);
        let cli = Cli::try_parse_from(arguments).map_err(|_| Exit::Usage)?;
        let Command::Client(ClientCommand::Logout { account, .. }) = cli.command else { panic!("{cli:?}") };
        account.account().map_err(|failure| failure.exit())
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_bucket_is_named_in_either_way_but_not_in_both() {
        for (arguments, expected) in [
            (&["corp"][..], "corp/default"),
            (&["corp/work"], "corp/work"),
            (&["corp", "--bucket", "a+b@c"], "corp/a+b@c"),
        ] {
            assert_eq!(account(arguments).unwrap().to_string(), expected);
        }
        for bad in [&["corp/work", "--bucket", "work"][..], &["corp/"], &["/work"], &["a/b/c"], &["refresh_token"], &[]]
        {
            assert_eq!(account(bad).unwrap_err(), Exit::Usage, "{bad:?}");
        }
    }

    #[test]
    fn a_duration_has_a_unit_or_is_in_seconds() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("5m", 300), ("1h 30m", 5400), ("0", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for bad in ["", "-1", "1.5", "5 apples", "m", "99999999999999999999"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_options_may_stand_before_or_after_the_command() {
        for arguments in [["--json", "--socket", "s", "status"], ["status", "--socket", "s", "--json"]] {
            let cli = Cli::try_parse_from(["credproxy"].iter().chain(&arguments)).unwrap();
            assert!(cli.options.json && cli.options.socket == Some("s".into()));
        }
    }
}
