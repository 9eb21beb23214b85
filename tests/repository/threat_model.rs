//! docs/threat-model.md names tests; each of them must be there.

use std::{fs, path::Path};

const DOCUMENT: &str = include_str!("../../docs/threat-model.md");

/// What stands in backticks and names a test or a place of tests.
fn named() -> Vec<&'static str> {
    let quoted = DOCUMENT.split('`').skip(1).step_by(2);
    quoted.filter(|text| text.starts_with("tests/") || text.starts_with("src/")).collect()
}

/// Whether the file has a test of that name.
fn is_there(file: &Path, test: &str) -> bool {
    let Ok(source) = fs::read_to_string(file) else { return false };
    let lines: Vec<&str> = source.lines().map(str::trim_start).collect();
    let declared = |line: &&str| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.strip_prefix("fn ").and_then(|rest| rest.strip_prefix(test)).is_some_and(|rest| rest.starts_with("()"))
    };
    lines.iter().enumerate().any(|(at, line)| {
        let attributes = lines[..at].iter().rev().take_while(|line| line.starts_with('#') || line.starts_with("//"));
        declared(line)
            && attributes.into_iter().any(|line| line.starts_with("#[test]") || line.starts_with("#[tokio::test"))
    })
}

#[test]
fn every_test_that_the_threat_model_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = named();
    assert!(named.iter().filter(|name| name.contains("::")).count() > 15, "{named:?}");
    let missing = named.iter().filter(|name| match name.split_once("::") {
        Some((file, test)) => !is_there(&root.join(file), test),
        None => !root.join(name).exists(),
    });
    assert_eq!(missing.collect::<Vec<_>>(), [&""; 0]);
}

#[test]
fn every_claim_names_a_test() {
    let claims = DOCUMENT.split("\n## Claims").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<&str> =
        claims.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| claim")).collect();
    let unproven =
        rows.iter().filter(|row| !row.starts_with("| ---") && !row.contains("`tests/") && !row.contains("`src/"));
    assert_eq!(unproven.collect::<Vec<_>>(), [&""; 0]);
    assert!(rows.len() > 10);
}

#[test]
fn a_test_that_is_not_there_is_noticed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = root.join("tests/repository/threat_model.rs");
    assert!(is_there(&file, "a_test_that_is_not_there_is_noticed"));
    // Neither a test that there is none of, nor a function that is none.
    assert!(!is_there(&file, "a_test_that_is_not_there") && !is_there(&file, "named"));
    assert!(!is_there(&root.join("tests/nowhere.rs"), "named"));
}
