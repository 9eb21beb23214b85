//! What `credproxy check` found.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Exit, Failure, output};

/// Prints what was looked at and how it is: `Ok` with what was found, `Err` with what is wrong and what to do. Fails
/// when anything is wrong.
#[must_use]
pub fn print_findings(findings: &[(String, Result<String, String>)], as_json: bool) -> ExitCode {
    let printed = if as_json { output::json(&list(findings)) } else { print_table(findings) };
    match printed {
        Ok(()) if findings.iter().all(|(_, result)| result.is_ok()) => Exit::Success.into(),
        Ok(()) => Exit::Failure.into(),
        Err(failure) => failure.report(),
    }
}

fn list(findings: &[(String, Result<String, String>)]) -> Value {
    let finding = |(subject, result): &(String, Result<String, String>)| {
        let (Ok(detail) | Err(detail)) = result;
        json!({ "subject": subject, "ok": result.is_ok(), "detail": detail })
    };
    json!({ "findings": findings.iter().map(finding).collect::<Vec<_>>() })
}

fn print_table(findings: &[(String, Result<String, String>)]) -> Result<(), Failure> {
    let row = |(subject, result): &(String, Result<String, String>)| match result {
        Ok(detail) => ["ok".into(), subject.clone(), detail.clone()],
        Err(detail) => ["wrong".into(), subject.clone(), detail.clone()],
    };
    output::data(&output::table(&findings.iter().map(row).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_told_to_programs() {
        let findings = [("store".to_owned(), Ok("/s".to_owned())), ("corp".to_owned(), Err("no secret".to_owned()))];
        let expected = json!({ "findings": [
            { "subject": "store", "ok": true, "detail": "/s" },
            { "subject": "corp", "ok": false, "detail": "no secret" },
        ] });
        assert_eq!(list(&findings), expected);
    }
}
