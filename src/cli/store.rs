//! Prints the results of `credproxy store …`.

use std::{path::Path, process::ExitCode};

use serde_json::{Value, json};

use super::{Exit, Failure, output};
use crate::{
    account::{Account, ItemName},
    item::ItemKind,
    store::{
        KeyId, StoreError,
        sqlite::upkeep::{Examination, ResealCounts},
    },
};

/// Prints what was copied and which key opens it. A copy with unreadable records is still a copy, but a failure, so
/// that a script notices.
pub fn print_backup(target: &Path, place: &str, found: &Examination, as_json: bool) -> Result<ExitCode, Failure> {
    if as_json {
        output::json(&json!({
            "file": target.display().to_string(),
            "key": found.key.to_string(),
            "records": found.records.len(),
            "items": found.items.len(),
            "ok": found.is_sound(),
        }))?;
    }
    output::note(&format!(
        "copied {} to {}; it opens with the key {} of {place}, which is not in it: keep a copy of that key elsewhere",
        count(found.records.len(), found.items.len()),
        target.display(),
        found.key,
    ));
    output::note(
        "a refresh token that is used after this moment is spent: a backup put back later may hold dead grants",
    );
    Ok(exit(found))
}

/// Lists the records and whether they open. Fails if anything is wrong.
pub fn print_verification(found: &Examination, as_json: bool) -> Result<ExitCode, Failure> {
    if as_json {
        output::json(&verification(found))?;
        return Ok(exit(found));
    }
    let row = |subject: String, opens: &Result<(), StoreError>| match opens {
        Ok(()) => ["ok".into(), subject, String::new()],
        Err(error) => ["wrong".into(), subject, error.to_string()],
    };
    let records = found.records.iter().map(|(account, opens)| row(account.to_string(), opens));
    let items = found.items.iter().map(|(kind, name, opens)| row(format!("{kind} {name}"), opens));
    let mut rows: Vec<[String; 3]> = records.chain(items).collect();
    rows.extend(found.damage.iter().map(|line| ["wrong".into(), "the file".into(), line.clone()]));
    if found.nameless > 0 {
        rows.push(["wrong".into(), format!("{} without a name", found.nameless), "left alone".into()]);
    }
    if !rows.is_empty() {
        output::data(&output::table(&rows))?;
    }
    let all = count(found.records.len(), found.items.len());
    output::note(&match (found.unreadable().count(), found.is_sound()) {
        (_, true) => format!("{all}, all of which open with the key {}", found.key),
        (0, false) => "the file is damaged: put back a backup, or move the store away and log in again".into(),
        (bad, false) => format!("{all} with the key {}, {bad} of which do not open", found.key),
    });
    Ok(exit(found))
}

fn verification(found: &Examination) -> Value {
    let record = |(account, opens): &(Account, Result<(), StoreError>)| {
        let detail = opens.as_ref().err().map(ToString::to_string);
        json!({ "provider": account.provider.as_str(), "bucket": account.bucket.as_str(), "ok": opens.is_ok(), "detail": detail })
    };
    let item = |(kind, name, opens): &(ItemKind, ItemName, Result<(), StoreError>)| {
        let detail = opens.as_ref().err().map(ToString::to_string);
        json!({ "kind": kind.as_str(), "name": name.as_str(), "ok": opens.is_ok(), "detail": detail })
    };
    json!({
        "ok": found.is_sound(),
        "key": found.key.to_string(),
        "damage": found.damage,
        "nameless": found.nameless,
        "records": found.records.iter().map(record).collect::<Vec<_>>(),
        "items": found.items.iter().map(item).collect::<Vec<_>>(),
    })
}

/// Prints which key opens the store now, and what is left to do if it is in another place (`moved`).
pub fn print_rekeyed(
    sealed: ResealCounts,
    before: KeyId,
    place: &str,
    moved: bool,
    as_json: bool,
) -> Result<ExitCode, Failure> {
    let ResealCounts { records, items, key } = sealed;
    if as_json {
        output::json(&json!({
            "records": records,
            "items": items,
            "before": before.to_string(),
            "key": key.to_string(),
        }))?;
    }
    output::note(&format!("sealed {} with the key {key} of {place}, in the place of {before}", count(records, items)));
    if moved {
        output::note("set [store] key in the configuration to the new place before the daemon is started");
    }
    output::note("backups made before this do not open with the new key: make a new one");
    Ok(Exit::Success.into())
}

fn exit(found: &Examination) -> ExitCode {
    if found.is_sound() { Exit::Success.into() } else { Exit::Failure.into() }
}

/// Counts records, and items if there are any.
fn count(records: usize, items: usize) -> String {
    let some = |number: usize, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
    if items == 0 {
        some(records, "record")
    } else {
        format!("{} and {}", some(records, "record"), some(items, "item"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_record_is_one() {
        assert_eq!([count(0, 0), count(1, 0), count(2, 0)], ["0 records", "1 record", "2 records"]);
        assert_eq!([count(1, 1), count(0, 2)], ["1 record and 1 item", "0 records and 2 items"]);
    }
}
