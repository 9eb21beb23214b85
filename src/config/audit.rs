//! `[audit]`.

use std::ops::RangeInclusive;

use super::{ConfigError, Environment, document::Section};
use crate::audit::{AuditSettings, Destination, OnFailure, Rotation};

/// The default size of a file: a week of a busy agent.
const DEFAULT_MAX_SIZE: u64 = 10 * MIB;

const MIB: u64 = 1024 * 1024;

/// From room for some dozens of lines to more than any machine needs in one file.
const SIZES: RangeInclusive<u64> = MIB / 64..=MIB * 1024 * 1024;

const DEFAULT_KEEP: u32 = 5;

/// Each rotation renames all files.
const MAX_KEEP: u32 = 1000;

pub(super) fn read(mut section: Section<'_>, env: &Environment) -> Result<AuditSettings, ConfigError> {
    let path = section.take("path");
    let max_size = section.take("max_size").map_or(Ok(DEFAULT_MAX_SIZE), |entry| entry.size(SIZES))?;
    let keep = section.take("keep").map_or(Ok(DEFAULT_KEEP), |entry| entry.count(1..=MAX_KEEP))?;
    let file = |path| Destination::File(Rotation { path, max_size, keep });
    let to = match &path {
        None => file(env.audit_path()?),
        Some(entry) => match entry.text()? {
            "off" => Destination::Off,
            "stdout" => Destination::Stdout,
            _ => file(entry.path()?),
        },
    };
    let on_failure = match section.take("on_failure") {
        None => OnFailure::Open,
        Some(entry) => entry.parsed(on_failure, "must be \"fail_open\" or \"fail_closed\"")?,
    };
    section.finish()?;
    Ok(AuditSettings { to, on_failure })
}

fn on_failure(text: &str) -> Option<OnFailure> {
    match text {
        "fail_open" => Some(OnFailure::Open),
        "fail_closed" => Some(OnFailure::Closed),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn parse(text: &str) -> Result<AuditSettings, ConfigError> {
        let env = Environment::of([("HOME", "/home/me"), ("XDG_RUNTIME_DIR", "/run/user/1")]);
        Config::parse(Path::new("x"), &format!("[audit]\n{text}"), &env).map(|config| config.audit)
    }

    #[test]
    fn it_is_on_and_opens_unless_told() {
        let file = |path: &str, max_size, keep| Destination::File(Rotation { path: path.into(), max_size, keep });
        let usual = file("/home/me/.local/state/credproxy/audit.log", 10 * MIB, 5);
        assert_eq!(parse("").unwrap(), AuditSettings { to: usual, on_failure: OnFailure::Open });
        let all = "path = \"/var/log/a\"\nmax_size = \"64KiB\"\nkeep = 1\non_failure = \"fail_closed\"";
        let expected = AuditSettings { to: file("/var/log/a", MIB / 16, 1), on_failure: OnFailure::Closed };
        assert_eq!(parse(all).unwrap(), expected);
        for (path, to) in [("off", Destination::Off), ("stdout", Destination::Stdout)] {
            assert_eq!(parse(&format!("path = \"{path}\"")).unwrap().to, to);
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (text, expected) in [
            ("path = \"canary.log\"", "path: must be an absolute path"),
            ("max_size = 10", "max_size: must be a size in quotes, like \"10MiB\""),
            ("max_size = \"10canary\"", "max_size: must be a size in quotes"),
            ("max_size = \"-1MiB\"", "max_size: must be a size in quotes"),
            ("max_size = \"99999999999999999999GiB\"", "max_size: must be a size in quotes"),
            ("max_size = \"18014398509481985KiB\"", "max_size: must be from 16KiB to 1024GiB"),
            ("max_size = \"15KiB\"", "max_size: must be from 16KiB to 1024GiB"),
            ("keep = 0", "keep: must be a whole number from 1 to 1000"),
            ("on_failure = \"canary\"", "on_failure: must be \"fail_open\" or \"fail_closed\""),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.starts_with(&format!("x:2: audit.{expected}")), "{text}: {message}");
        }
    }
}
