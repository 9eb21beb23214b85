//! `[limits]`, and the limits of a socket.

use super::{ConfigError, document::Section};
use crate::{
    limits::{LoginLimits, Rate, SocketLimits},
    policy::Role,
    sandbox,
};

/// Limits on the number of logins and sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Logins that wait for a person.
    pub logins: LoginLimits,
    /// Sandboxes made at run time.
    pub sandboxes: usize,
}

/// The most open files that the kernel grants a process on common machines.
const MAX_CONNECTIONS: usize = 1_048_576;

/// A higher rate would be no limit: no connection is that fast.
const MAX_RATE_PER_SECOND: u32 = 1_000_000;

/// One each second. A higher number would be no limit, with any cooldown.
const MAX_FORCED_PER_HOUR: u32 = 3600;

/// Each waiting login may hold a port.
const MAX_LOGINS: usize = 10_000;

/// Each has a socket and a share of the open files.
const MAX_SANDBOXES: usize = 1000;

pub(super) fn read(mut section: Section<'_>) -> Result<LimitsConfig, ConfigError> {
    let mut logins = LoginLimits::default();
    if let Some(entry) = section.take("logins") {
        logins.total = entry.count(1..=MAX_LOGINS)?;
    }
    if let Some(entry) = section.take("logins_per_socket") {
        logins.per_socket = entry.count(1..=MAX_LOGINS)?;
    }
    let sandboxes =
        section.take("sandboxes").map_or(Ok(sandbox::DEFAULT_MAX_SANDBOXES), |entry| entry.count(1..=MAX_SANDBOXES))?;
    section.finish()?;
    Ok(LimitsConfig { logins, sandboxes })
}

/// Reads a socket's limits from its table.
pub(super) fn of_socket(section: &mut Section<'_>, role: Role) -> Result<SocketLimits, ConfigError> {
    let usual = match role {
        Role::Host => SocketLimits::HOST,
        Role::Sandbox => SocketLimits::SANDBOX,
    };
    let mut connections = |name: &str| section.take(name).map(|entry| entry.count(1..=MAX_CONNECTIONS)).transpose();
    let limits = SocketLimits {
        connections: connections("connections")?.or(usual.connections),
        connections_per_user: connections("connections_per_user")?.or(usual.connections_per_user),
        ..usual
    };
    let forced_refreshes = match section.take("forced_refreshes") {
        None => usual.forced_refreshes,
        Some(entry) if entry.is_off() => None,
        Some(entry) => Some(Rate::per_hour(entry.count(1..=MAX_FORCED_PER_HOUR)?)),
    };
    Ok(SocketLimits { rate: rate(section, usual.rate)?, forced_refreshes, ..limits })
}

fn rate(section: &mut Section<'_>, usual: Option<Rate>) -> Result<Option<Rate>, ConfigError> {
    let number = match section.take("rate") {
        None => None,
        Some(entry) if entry.is_off() => Some(None),
        Some(entry) => Some(Some(entry.parsed(per_second, "must be like \"60/s\", or \"off\"")?)),
    };
    let burst = section.take("burst");
    let number = match (number, &burst) {
        (None, None) => return Ok(usual),
        (Some(None), None) => return Ok(None),
        (Some(Some(number)), _) => number,
        (None | Some(None), Some(entry)) => return Err(entry.refuse("needs a rate beside it")),
    };
    let burst = match burst {
        None => number.saturating_mul(2),
        Some(entry) => entry.count(1..=MAX_RATE_PER_SECOND)?,
    };
    Ok(Some(Rate::per_second(number, burst)))
}

fn per_second(text: &str) -> Option<u32> {
    let number = text.strip_suffix("/s")?;
    let digits = number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|number| digits && (1..=MAX_RATE_PER_SECOND).contains(number))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Environment};

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(
            Path::new("x"),
            text,
            &Environment::of([("HOME", "/home/me"), ("XDG_RUNTIME_DIR", "/run/user/1")]),
        )
    }

    fn socket(role: &str, more: &str) -> Result<SocketLimits, ConfigError> {
        let name = if role == "host" { "host" } else { "agents" };
        let text = format!("[sockets.{name}]\npath = \"/s\"\nrole = \"{role}\"\n{more}");
        parse(&text).map(|config| config.sockets.iter().find(|socket| socket.name == name).unwrap().limits)
    }

    #[test]
    fn a_sandbox_is_limited_and_a_host_is_not_unless_told() {
        assert_eq!(socket("sandbox", "").unwrap(), SocketLimits::SANDBOX);
        assert_eq!(socket("host", "").unwrap(), SocketLimits::HOST);
        let usual = LimitsConfig { logins: LoginLimits::default(), sandboxes: 64 };
        assert_eq!(parse("").unwrap().limits, usual);
        assert_eq!(parse("[limits]\nsandboxes = 2").unwrap().limits, LimitsConfig { sandboxes: 2, ..usual });
        for role in ["sandbox", "host"] {
            for (more, rate) in [
                ("rate = \"10/s\"", Some(Rate::per_second(10, 20))),
                ("rate = \"10/s\"\nburst = 1", Some(Rate::per_second(10, 1))),
                ("rate = \"off\"", None),
            ] {
                assert_eq!(socket(role, more).unwrap().rate, rate, "{role} {more}");
            }
            let forced = |more| socket(role, more).unwrap().forced_refreshes;
            assert_eq!(forced("forced_refreshes = \"off\""), None, "{role}");
            assert_eq!(forced("forced_refreshes = 3"), Some(Rate::per_hour(3)), "{role}");
        }
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        for (text, expected) in [
            ("[limits]\nlogins = 0", "2: limits.logins: must be a whole number from 1 to 10000"),
            ("[limits]\nlogins_per_socket = \"canary\"", "2: limits.logins_per_socket: must be a whole number"),
            ("[limits]\nlogins = 0x10", "2: limits.logins: must be a whole number"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.starts_with(&format!("x:{expected}")), "{text}: {message}");
        }
        for (more, expected) in [
            ("rate = 60", "rate: must be a string"),
            ("rate = \"60/canary\"", "rate: must be like \"60/s\", or \"off\""),
            ("rate = \"+1/s\"", "rate: must be like"),
            ("rate = \"0/s\"", "rate: must be like"),
            ("burst = 5", "burst: needs a rate beside it"),
            ("connections = 1.5", "connections: must be a whole number from 1 to 1048576"),
            ("connections_per_user = -1", "connections_per_user: must be a whole number"),
            ("forced_refreshes = 0", "forced_refreshes: must be a whole number from 1 to 3600"),
        ] {
            let message = socket("sandbox", more).unwrap_err().to_string();
            assert!(message.starts_with(&format!("x:4: sockets.agents.{expected}")), "{more}: {message}");
            assert!(!message.contains("canary"), "{message}");
        }
    }
}
