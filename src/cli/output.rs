//! Printing.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use secrecy::ExposeSecret as _;
use serde::Serialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::{Exit, Failure};
use crate::{
    account::KeyName,
    client::{Key, Token},
};

/// Prints a line of data. A reader that has seen enough (`| head`) is no failure.
pub(super) fn data(text: &str) -> Result<(), Failure> {
    data_while_read(text).map(drop)
}

/// Prints a line of data. Returns whether the reader still reads.
pub(super) fn data_while_read(text: &str) -> Result<bool, Failure> {
    let mut output = io::stdout().lock();
    let written = output.write_all(text.as_bytes()).and_then(|()| output.write_all(b"\n"));
    match written.and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(Exit::Failure, format!("cannot write to standard output: {error}")))
        }
        written => Ok(written.is_ok()),
    }
}

/// Prints a value as one line of JSON.
pub(super) fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value).map_err(|error| Failure::new(Exit::Failure, error))?;
    data(&Zeroizing::new(text))
}

/// Prints only the access token, for `$(…)`.
#[expect(clippy::disallowed_methods, reason = "the person asked to see the access token")]
pub(super) fn access_token(token: &Token) -> Result<(), Failure> {
    data(token.access_token.expose_secret())
}

/// Prints the token as the daemon answered it.
#[expect(clippy::disallowed_methods, reason = "the person asked to see the access token")]
pub(super) fn sanitized_token(token: &Token) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Shown<'a> {
        access_token: &'a str,
        #[serde(flatten)]
        members: &'a Map<String, Value>,
    }
    json(&Shown { access_token: token.access_token.expose_secret(), members: &token.members })
}

/// Prints only the API key, for `$(…)`.
#[expect(clippy::disallowed_methods, reason = "the person asked to see the API key")]
pub(super) fn api_key(key: &Key) -> Result<(), Failure> {
    data(key.secret.expose_secret())
}

/// Prints the API key as the daemon answered it.
#[expect(clippy::disallowed_methods, reason = "the person asked to see the API key")]
pub(super) fn key_members(name: &KeyName, key: &Key) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Shown<'a> {
        name: &'a KeyName,
        api_key: &'a str,
        created_at: i64,
    }
    json(&Shown { name, api_key: key.secret.expose_secret(), created_at: key.created_at })
}

/// Prints a line that is not data, in one write: others may write to the same terminal.
pub(super) fn note(text: &str) {
    // If this fails, nobody is left to be told.
    io::stderr().write_all(format!("{text}\n").as_bytes()).ok();
}

/// Aligns the columns, two spaces apart.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let line = |row: &[String; N]| {
        let cells = row.iter().enumerate().map(|(column, cell)| format!("{cell:<width$}", width = width(column)));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The two largest units of a duration, rounded down.
pub(super) fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_shown_in_its_largest_units() {
        for (seconds, expected) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min"),
            (3599, "59 min"),
            (3600, "1 h 0 min"),
            (28_740, "7 h 59 min"),
            (86_400, "1 d 0 h"),
            (277_200, "3 d 5 h"),
        ] {
            assert_eq!(in_words(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn a_table_lines_up() {
        let rows = [["A", "B"], ["long", ""], ["x", "y"]].map(|row| row.map(String::from));
        assert_eq!(table(&rows), "A     B\nlong\nx     y");
    }
}
