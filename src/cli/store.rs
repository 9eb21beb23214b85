//! What came of `credproxy store …`.

use std::{path::Path, process::ExitCode};

use serde_json::{Value, json};

use super::{Exit, Failure, output};
use crate::{
    account::Account,
    store::{KeyId, StoreError, sqlite::upkeep::Examination},
};

/// Says what was copied and which key opens it. A copy with records that do not open is a copy all the same, and a
/// failure, so that a script notices.
pub fn print_backup(target: &Path, place: &str, found: &Examination, as_json: bool) -> Result<ExitCode, Failure> {
    if as_json {
        output::json(&json!({
            "file": target.display().to_string(),
            "key": found.key.to_string(),
            "records": found.records.len(),
            "ok": found.is_sound(),
        }))?;
    }
    output::note(&format!(
        "copied {} to {}; it opens with the key {} of {place}, which is not in it: keep a copy of that key elsewhere",
        count(found.records.len()),
        target.display(),
        found.key,
    ));
    output::note(
        "a refresh token that is used after this moment is spent: a backup put back later may hold dead grants",
    );
    Ok(exit(found))
}

/// Lists the records and how they are. Fails when anything is wrong.
pub fn print_verification(found: &Examination, as_json: bool) -> Result<ExitCode, Failure> {
    if as_json {
        output::json(&verification(found))?;
        return Ok(exit(found));
    }
    let row = |(account, opens): &(Account, Result<(), StoreError>)| match opens {
        Ok(()) => ["ok".into(), account.to_string(), String::new()],
        Err(error) => ["wrong".into(), account.to_string(), error.to_string()],
    };
    let mut rows: Vec<[String; 3]> = found.records.iter().map(row).collect();
    rows.extend(found.damage.iter().map(|line| ["wrong".into(), "the file".into(), line.clone()]));
    if found.nameless > 0 {
        rows.push(["wrong".into(), format!("{} without a name", count(found.nameless)), "left alone".into()]);
    }
    if !rows.is_empty() {
        output::data(&output::table(&rows))?;
    }
    let bad = found.records.iter().filter(|(_, opens)| opens.is_err()).count();
    output::note(&match (bad, found.is_sound()) {
        (_, true) => format!("{}, all of which open with the key {}", count(found.records.len()), found.key),
        (0, false) => "the file is damaged: put back a backup, or move the store away and log in again".into(),
        (bad, false) => {
            format!("{} with the key {}, {bad} of which do not open", count(found.records.len()), found.key)
        }
    });
    Ok(exit(found))
}

fn verification(found: &Examination) -> Value {
    let record = |(account, opens): &(Account, Result<(), StoreError>)| {
        let detail = opens.as_ref().err().map(ToString::to_string);
        json!({ "provider": account.provider.as_str(), "bucket": account.bucket.as_str(), "ok": opens.is_ok(), "detail": detail })
    };
    json!({
        "ok": found.is_sound(),
        "key": found.key.to_string(),
        "damage": found.damage,
        "nameless": found.nameless,
        "records": found.records.iter().map(record).collect::<Vec<_>>(),
    })
}

/// Says which key opens the store now, and what is left to do when it is in another place (`moved`).
pub fn print_rekeyed(
    records: usize,
    (before, now): (KeyId, KeyId),
    place: &str,
    moved: bool,
    as_json: bool,
) -> Result<ExitCode, Failure> {
    if as_json {
        output::json(&json!({ "records": records, "before": before.to_string(), "key": now.to_string() }))?;
    }
    output::note(&format!("sealed {} with the key {now} of {place}, in the place of {before}", count(records)));
    if moved {
        output::note("set [store] key in the configuration to the new place before the daemon is started");
    }
    output::note("backups made before this do not open with the new key: make a new one");
    Ok(Exit::Success.into())
}

fn exit(found: &Examination) -> ExitCode {
    if found.is_sound() { Exit::Success.into() } else { Exit::Failure.into() }
}

fn count(records: usize) -> String {
    if records == 1 { "1 record".into() } else { format!("{records} records") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_record_is_one() {
        assert_eq!([count(0), count(1), count(2)], ["0 records", "1 record", "2 records"]);
    }
}
