//! `credproxy audit`: shows the audit log.

use std::{path::PathBuf, process::ExitCode, thread, time::Duration};

use clap::Args;
use serde::Deserialize;

use super::{Exit, Failure, output};
use crate::{
    account::Account,
    audit::{AuditSettings, Destination, reader::Reader},
};

/// Options of `audit`.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Keep printing new lines until interrupted
    #[arg(long)]
    pub follow: bool,
    /// Show only requests about this account
    #[arg(long, value_name = "PROVIDER[/BUCKET]")]
    pub account: Option<Account>,
}

/// How often a followed log is polled: a person takes less for immediate.
const FOLLOW_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Prints the log from the oldest line that is kept. Needs no daemon.
pub fn print_audit(settings: &AuditSettings, wanted: &AuditArgs, as_json: bool) -> Result<ExitCode, Failure> {
    let path = path(settings)?;
    let mut reader = Reader::new(path.clone());
    let filter = wanted.account.as_ref().map(ToString::to_string);
    let unreadable = |error| Failure::new(Exit::Failure, format!("cannot read {}: {error}", path.display()));
    let mut shown = as_json;
    loop {
        let line = reader.next_line().map_err(unreadable)?;
        if reader.skipped() {
            output::note("warning: lines went before they were read: the log was begun anew too often meanwhile");
        }
        let Some(line) = line else {
            if !wanted.follow {
                break;
            }
            thread::sleep(FOLLOW_POLL_INTERVAL);
            continue;
        };
        let Ok(parsed) = serde_json::from_slice::<Line>(&line) else {
            output::note("warning: a line of the log is not readable, and left out");
            continue;
        };
        if filter.is_some() && parsed.account != filter && parsed.lost.is_none() && !parsed.summary {
            continue;
        }
        if !shown && !output::data_while_read(&columns(&HEAD.map(String::from)))? {
            break;
        }
        shown = true;
        let text = if as_json { String::from_utf8_lossy(&line).into_owned() } else { columns(&parsed.row()) };
        if !output::data_while_read(&text)? {
            break;
        }
    }
    if !shown {
        output::note(&format!("nothing is written in {}", path.display()));
    }
    Ok(Exit::Success.into())
}

fn path(settings: &AuditSettings) -> Result<PathBuf, Failure> {
    match &settings.to {
        Destination::File(rotation) => Ok(rotation.path.clone()),
        Destination::Stdout => Err(Failure::new(Exit::Usage, "the audit log goes to the daemon's standard output")
            .hint("look where that goes: for a service, `journalctl`")),
        Destination::Off => {
            Err(Failure::new(Exit::Usage, "there is no audit log: it is switched off").hint("see [audit] path"))
        }
    }
}

/// One line, as far as it is shown.
#[derive(Deserialize)]
struct Line {
    time: String,
    socket: Option<String>,
    uid: Option<u32>,
    pid: Option<u32>,
    exe: Option<String>,
    comm: Option<String>,
    operation: String,
    account: Option<String>,
    key: Option<String>,
    login: Option<String>,
    sandbox: Option<String>,
    outcome: String,
    status: Option<u16>,
    latency_us: Option<u64>,
    #[serde(default)]
    provider_called: bool,
    lost: Option<u64>,
    /// How many events the line counts, if more than one.
    times: Option<u64>,
    /// The line leaves out names: it may be about any account.
    #[serde(default)]
    summary: bool,
}

const HEAD: [&str; 10] =
    ["TIME", "SOCKET", "WHO", "OPERATION", "ABOUT", "OUTCOME", "STATUS", "LATENCY", "PROVIDER", "TIMES"];

/// Minimum column widths: later lines are not known yet.
const MIN_COLUMN_WIDTHS: [usize; 10] = [24, 8, 18, 13, 18, 16, 6, 10, 8, 5];

impl Line {
    fn row(self) -> [String; 10] {
        let program = self.exe.as_deref().and_then(|exe| exe.rsplit('/').next()).or(self.comm.as_deref());
        let process = self.uid.map(|uid| self.pid.map_or_else(|| uid.to_string(), |pid| format!("{uid}/{pid}")));
        let who = process.into_iter().chain(program.map(str::to_owned)).collect::<Vec<_>>().join(" ");
        let lost = self.lost.map(|lost| format!("{lost} lines"));
        let login = self.login.filter(|_| self.account.is_none());
        let about = self.account.or(self.key).or(login).or(self.sandbox).or(lost);
        let or_none = |text: Option<String>| text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".to_owned());
        let millis = |micros: u64| format!("{}.{} ms", micros / 1000, micros % 1000 / 100);
        [
            self.time,
            or_none(self.socket),
            or_none(Some(who)),
            self.operation,
            or_none(about),
            self.outcome,
            or_none(self.status.map(|status| status.to_string())),
            or_none(self.latency_us.map(millis)),
            if self.provider_called { "called" } else { "-" }.to_owned(),
            or_none(self.times.map(|times| times.to_string())),
        ]
    }
}

fn columns(row: &[String; 10]) -> String {
    let cells = row.iter().zip(MIN_COLUMN_WIDTHS).map(|(cell, width)| format!("{cell:<width$}"));
    cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(line: &str) -> String {
        columns(&serde_json::from_str::<Line>(line).unwrap().row())
    }

    #[test]
    fn a_line_is_a_row() {
        let whole = r#"{"time":"2026-11-24T13:42:22.123Z","socket":"agents","uid":1000,"pid":4242,"exe":"/usr/bin/curl",
            "operation":"getToken","account":"corp/default","outcome":"ok","status":200,"latency_us":15349,
            "provider_called":true}"#;
        let expected = "2026-11-24T13:42:22.123Z  agents    1000/4242 curl      getToken       corp/default        \
            ok                200     15.3 ms     called    -";
        assert_eq!(row(whole), expected);
        let refused = r#"{"time":"2026-11-24T13:42:22.123Z","socket":"agents","uid":65534,"operation":"connect",
            "outcome":"UNAUTHORIZED","latency_us":0,"provider_called":false}"#;
        let expected = "2026-11-24T13:42:22.123Z  agents    65534               connect        -                   \
            UNAUTHORIZED      -       0.0 ms      -         -";
        assert_eq!(row(refused), expected);
        let gap = r#"{"time":"2026-11-24T13:42:22.123Z","operation":"audit","outcome":"lost","lost":17}"#;
        let expected = "2026-11-24T13:42:22.123Z  -         -                   audit          17 lines            \
            lost              -       -           -         -";
        assert_eq!(row(gap), expected);
        let several = r#"{"time":"2026-11-24T13:42:22.123Z","socket":"agents","uid":1000,"operation":"getToken",
            "outcome":"RATE_LIMITED","status":429,"latency_us":1000,"provider_called":false,"times":5821,
            "first_time":"2026-11-24T13:42:21.124Z","summary":true}"#;
        let expected = "2026-11-24T13:42:22.123Z  agents    1000                getToken       -                   \
            RATE_LIMITED      429     1.0 ms      -         5821";
        assert_eq!(row(several), expected);
    }
}
