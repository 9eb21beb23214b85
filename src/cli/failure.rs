//! Failures, the hints that go with them, and the exit codes.

use std::{error::Error, io, process::ExitCode};

use super::output;
use crate::{
    account::{Account, KeyName},
    client::ClientError,
    config::ConfigError,
    error_chain::error_chain,
    problem_code::ProblemCode,
};

/// The program's exit codes. Scripts may rely on them; the numbers do not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Success.
    Success = 0,
    /// Any failure without a code of its own.
    Failure = 1,
    /// The command line or the configuration is wrong.
    Usage = 2,
    /// A person must log in again.
    ReauthRequired = 3,
    /// Too early; the hint says when to try again.
    RateLimited = 4,
    /// No daemon answers on the socket.
    Unreachable = 5,
    /// No grant or API key, no grant that can be refreshed, or no such provider.
    NotFound = 6,
    /// The socket's policy forbids it.
    Unauthorized = 7,
}

/// The table of [`Exit`], for `--help`.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  any other failure; `status`: the daemon is degraded; `check`, `store verify`: something is wrong
  2  the command line or the configuration is wrong
  3  a person must log in again (REAUTH_REQUIRED)
  4  too soon, try again later (RATE_LIMITED)
  5  no daemon can be reached
  6  no grant or API key, no grant that can be refreshed, or no such provider
  7  the socket's policy does not allow it (UNAUTHORIZED)";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed, and what to do about it.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    error: Box<dyn Error + Send + Sync>,
    hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(exit: Exit, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { exit, error: error.into(), hint: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The exit code.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        self.exit
    }

    /// A failure from the daemon's answer about `account`, or about no account.
    pub(super) fn of(error: ClientError, account: Option<&Account>) -> Self {
        let hint = hint(&error, account);
        Self { exit: exit(&error), error: error.into(), hint }
    }

    /// A failure from the daemon's answer about an API key.
    pub(super) fn of_key(error: ClientError, name: &KeyName) -> Self {
        let hint = match &error {
            ClientError::Interrupted(_) | ClientError::TimedOut => {
                Some("it may have been carried out all the same; see `credproxy key list`".into())
            }
            _ if error.code() == Some(ProblemCode::NotFound) => {
                Some(format!("see `credproxy key list`, or set it: `credproxy key set {name}`"))
            }
            ClientError::Problem { .. }
            | ClientError::Unreachable { .. }
            | ClientError::UntrustedServer { .. }
            | ClientError::Protocol(_) => hint(&error, None),
        };
        Self { exit: exit(&error), error: error.into(), hint }
    }

    /// Prints it to standard error.
    #[must_use]
    pub fn report(&self) -> ExitCode {
        output::note(&format!("error: {}", error_chain(self.error.as_ref())));
        if let Some(hint) = &self.hint {
            output::note(&format!("hint: {hint}"));
        }
        self.exit.into()
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let no_default_path = matches!(error, ConfigError::NoDefaultPath { .. });
        let failure = Self::new(Exit::Usage, error);
        if no_default_path {
            failure.hint("set HOME; a client needs no more than its daemon's socket, in --socket or CREDPROXY_SOCKET")
        } else {
            failure
        }
    }
}

fn exit(error: &ClientError) -> Exit {
    match error {
        ClientError::Unreachable { .. } => Exit::Unreachable,
        ClientError::Problem { .. } => error.code().map_or(Exit::Failure, exit_of_problem),
        ClientError::UntrustedServer { .. }
        | ClientError::Interrupted(_)
        | ClientError::TimedOut
        | ClientError::Protocol(_) => Exit::Failure,
    }
}

const fn exit_of_problem(code: ProblemCode) -> Exit {
    match code {
        ProblemCode::ReauthRequired => Exit::ReauthRequired,
        ProblemCode::RateLimited => Exit::RateLimited,
        ProblemCode::NotFound | ProblemCode::ProviderNotConfigured | ProblemCode::RefreshNotAvailable => Exit::NotFound,
        ProblemCode::Unauthorized => Exit::Unauthorized,
        ProblemCode::InvalidRequest
        | ProblemCode::GrantConflict
        | ProblemCode::PreconditionFailed
        | ProblemCode::InternalError
        | ProblemCode::RefreshFailed
        | ProblemCode::StoreUnavailable
        | ProblemCode::SessionNotFound
        | ProblemCode::SessionExpired
        | ProblemCode::SessionAlreadyUsed
        | ProblemCode::ExchangeFailed => Exit::Failure,
    }
}

fn hint(error: &ClientError, account: Option<&Account>) -> Option<String> {
    match error {
        ClientError::Unreachable { source, .. } => unreachable_hint(source.kind()).map(String::from),
        ClientError::UntrustedServer { uid, .. } => {
            Some(format!("if the daemon is meant to run as that user, say so: --trust-uid {uid}"))
        }
        ClientError::Problem { retry_after, .. } => {
            let remedy = error.code().and_then(|code| remedy(code, account));
            remedy.or_else(|| retry_after.map(|wait| format!("try again in {} s", wait.as_secs())))
        }
        ClientError::Interrupted(_) | ClientError::TimedOut => {
            Some("it may have been carried out all the same; see `credproxy status`".into())
        }
        ClientError::Protocol(_) => Some("another program may be listening on that socket".into()),
    }
}

/// What a person can do about a problem; `None` where the detail says it all, or where only waiting helps.
fn remedy(code: ProblemCode, account: Option<&Account>) -> Option<String> {
    if code == ProblemCode::Unauthorized {
        let remedy = "see the socket's `allow`, `keys` and `operations` in the daemon's configuration; a host's socket may \
                      do all";
        return Some(remedy.into());
    }
    let account = account?;
    match code {
        ProblemCode::ReauthRequired => Some(format!("log in again: `credproxy login {account}`")),
        ProblemCode::NotFound => {
            Some(format!("log in: `credproxy login {account}`, or store a grant: `credproxy import {account}`"))
        }
        ProblemCode::GrantConflict => Some(
            "see `credproxy status`; `credproxy rename OLD NEW` gives an account another name, and `credproxy login` \
             begins a chain of its own"
                .into(),
        ),
        ProblemCode::SessionExpired | ProblemCode::SessionAlreadyUsed | ProblemCode::ExchangeFailed => {
            Some(format!("begin again: `credproxy login {account}`"))
        }
        ProblemCode::RefreshNotAvailable => {
            Some(format!("store a grant that has a refresh token: `credproxy import {account}`"))
        }
        ProblemCode::ProviderNotConfigured => {
            Some(format!("add [providers.{}] to the daemon's configuration", account.provider))
        }
        ProblemCode::InvalidRequest
        | ProblemCode::Unauthorized
        | ProblemCode::PreconditionFailed
        | ProblemCode::RateLimited
        | ProblemCode::InternalError
        | ProblemCode::RefreshFailed
        | ProblemCode::StoreUnavailable
        | ProblemCode::SessionNotFound => None,
    }
}

fn unreachable_hint(kind: io::ErrorKind) -> Option<&'static str> {
    if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
        Some("start it with `credproxy serve`, or name its socket with --socket")
    } else if kind == io::ErrorKind::PermissionDenied {
        Some("this user may not connect; see the socket's `uids` in the configuration")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn failure(code: &str, retry_after: Option<u64>) -> Failure {
        let error = ClientError::Problem {
            status: 400,
            code: code.into(),
            detail: "no".into(),
            retry_after: retry_after.map(Duration::from_secs),
        };
        Failure::of(error, Some(&"corp/work".parse().unwrap()))
    }

    #[test]
    fn each_code_has_its_exit_code_and_hint() {
        for (code, retry_after, exit, hint) in [
            ("REAUTH_REQUIRED", None, 3, Some("log in again: `credproxy login corp/work`")),
            ("EXCHANGE_FAILED", None, 1, Some("begin again: `credproxy login corp/work`")),
            ("RATE_LIMITED", Some(7), 4, Some("try again in 7 s")),
            (
                "NOT_FOUND",
                None,
                6,
                Some("log in: `credproxy login corp/work`, or store a grant: `credproxy import corp/work`"),
            ),
            ("PROVIDER_NOT_CONFIGURED", None, 6, Some("add [providers.corp] to the daemon's configuration")),
            (
                "REFRESH_NOT_AVAILABLE",
                None,
                6,
                Some("store a grant that has a refresh token: `credproxy import corp/work`"),
            ),
            (
                "UNAUTHORIZED",
                None,
                7,
                Some(
                    "see the socket's `allow`, `keys` and `operations` in the daemon's configuration; a host's socket \
                     may do all",
                ),
            ),
            ("REFRESH_FAILED", Some(30), 1, Some("try again in 30 s")),
            ("REFRESH_FAILED", None, 1, None),
            ("STORE_UNAVAILABLE", Some(1), 1, Some("try again in 1 s")),
            ("INVALID_REQUEST", None, 1, None),
        ] {
            let failure = failure(code, retry_after);
            assert_eq!((failure.exit as u8, failure.hint.as_deref()), (exit, hint), "{code}");
            assert_eq!(error_chain(failure.error.as_ref()), format!("no ({code})"));
        }
    }

    #[test]
    fn a_key_that_is_not_there_has_a_hint_of_its_own() {
        let name = "openai".parse().unwrap();
        let of = |code: &str| {
            let error = ClientError::Problem { status: 404, code: code.into(), detail: "no".into(), retry_after: None };
            Failure::of_key(error, &name)
        };
        let missing = of("NOT_FOUND");
        assert_eq!((missing.exit, missing.hint.unwrap().contains("key set openai")), (Exit::NotFound, true));
        let forbidden = of("UNAUTHORIZED");
        assert_eq!((forbidden.exit, forbidden.hint.unwrap().contains("`keys`")), (Exit::Unauthorized, true));
        let lost = Failure::of_key(ClientError::TimedOut, &name);
        assert!(lost.hint.unwrap().contains("key list"));
    }

    #[test]
    fn an_unreachable_daemon_is_told_from_one_that_forbids() {
        for (kind, expected) in [
            (io::ErrorKind::NotFound, Some("credproxy serve")),
            (io::ErrorKind::ConnectionRefused, Some("credproxy serve")),
            (io::ErrorKind::PermissionDenied, Some("uids")),
            (io::ErrorKind::InvalidInput, None),
        ] {
            let error = ClientError::Unreachable { socket: "/s".into(), source: kind.into() };
            let failure = Failure::of(error, None);
            assert_eq!(failure.exit, Exit::Unreachable);
            assert_eq!(failure.hint.is_some(), expected.is_some());
            assert!(failure.hint.is_none_or(|hint| hint.contains(expected.unwrap())), "{kind}");
        }
    }

    #[test]
    fn the_help_lists_every_exit_code() {
        for code in 0..=7 {
            assert!(EXIT_CODES.contains(&format!("\n  {code}  ")), "{code}");
        }
    }
}
