//! What `credproxy check` found.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Exit, Failure, output};

/// How something that was looked at is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// As it should be.
    Ok,
    /// The daemon starts, and somebody should know.
    Warning,
    /// The daemon does not start, or a part of it does not work.
    Wrong,
}

/// Prints what was looked at and how it is: what was found, or what is wrong and what to do. Fails when anything is
/// wrong.
#[must_use]
pub fn print_findings(findings: &[(String, Mark, String)], as_json: bool) -> ExitCode {
    let printed = if as_json { output::json(&list(findings)) } else { print_table(findings) };
    match printed {
        Ok(()) if findings.iter().all(|(_, mark, _)| *mark != Mark::Wrong) => Exit::Success.into(),
        Ok(()) => Exit::Failure.into(),
        Err(failure) => failure.report(),
    }
}

fn list(findings: &[(String, Mark, String)]) -> Value {
    let finding = |(subject, mark, detail): &(String, Mark, String)| {
        let (ok, warning) = (*mark != Mark::Wrong, *mark == Mark::Warning);
        json!({ "subject": subject, "ok": ok, "warning": warning, "detail": detail })
    };
    json!({ "findings": findings.iter().map(finding).collect::<Vec<_>>() })
}

fn print_table(findings: &[(String, Mark, String)]) -> Result<(), Failure> {
    let row = |(subject, mark, detail): &(String, Mark, String)| {
        let mark = match mark {
            Mark::Ok => "ok",
            Mark::Warning => "warning",
            Mark::Wrong => "wrong",
        };
        [mark.into(), subject.clone(), detail.clone()]
    };
    output::data(&output::table(&findings.iter().map(row).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_told_to_programs() {
        let found = |subject: &str, mark, detail: &str| (subject.to_owned(), mark, detail.to_owned());
        let findings = [
            found("store", Mark::Ok, "/s"),
            found("process", Mark::Warning, "traced"),
            found("corp", Mark::Wrong, "no secret"),
        ];
        let expected = json!({ "findings": [
            { "subject": "store", "ok": true, "warning": false, "detail": "/s" },
            { "subject": "process", "ok": true, "warning": true, "detail": "traced" },
            { "subject": "corp", "ok": false, "warning": false, "detail": "no secret" },
        ] });
        assert_eq!(list(&findings), expected);
    }
}
