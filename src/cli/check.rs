//! Prints what `credproxy check` found.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::{Exit, Failure, output};

/// The severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Everything is right.
    Ok,
    /// The daemon starts, but a person should know.
    Warning,
    /// The daemon does not start, or a part of it does not work.
    Wrong,
}

/// Prints the findings. Fails if anything is wrong.
#[must_use]
pub fn print_findings(findings: &[(String, Severity, String)], as_json: bool) -> ExitCode {
    let printed = if as_json { output::json(&list(findings)) } else { print_table(findings) };
    match printed {
        Ok(()) if findings.iter().all(|(_, severity, _)| *severity != Severity::Wrong) => Exit::Success.into(),
        Ok(()) => Exit::Failure.into(),
        Err(failure) => failure.report(),
    }
}

fn list(findings: &[(String, Severity, String)]) -> Value {
    let finding = |(subject, severity, detail): &(String, Severity, String)| {
        let (ok, warning) = (*severity != Severity::Wrong, *severity == Severity::Warning);
        json!({ "subject": subject, "ok": ok, "warning": warning, "detail": detail })
    };
    json!({ "findings": findings.iter().map(finding).collect::<Vec<_>>() })
}

fn print_table(findings: &[(String, Severity, String)]) -> Result<(), Failure> {
    let row = |(subject, severity, detail): &(String, Severity, String)| {
        let severity = match severity {
            Severity::Ok => "ok",
            Severity::Warning => "warning",
            Severity::Wrong => "wrong",
        };
        [severity.into(), subject.clone(), detail.clone()]
    };
    output::data(&output::table(&findings.iter().map(row).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_told_to_programs() {
        let found = |subject: &str, severity, detail: &str| (subject.to_owned(), severity, detail.to_owned());
        let findings = [
            found("store", Severity::Ok, "/s"),
            found("process", Severity::Warning, "traced"),
            found("corp", Severity::Wrong, "no secret"),
        ];
        let expected = json!({ "findings": [
            { "subject": "store", "ok": true, "warning": false, "detail": "/s" },
            { "subject": "process", "ok": true, "warning": true, "detail": "traced" },
            { "subject": "corp", "ok": false, "warning": false, "detail": "no secret" },
        ] });
        assert_eq!(list(&findings), expected);
    }
}
