//! The rules of the sources that a compiler does not hold: imports run one way, some crates have one place, and no file
//! is longer than its subject.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use imports::{Module, imports, own_path, words};

mod imports;

/// The rank of a module; it may import modules of a lower rank. `provider` and `store` are traits, which the coordinator
/// knows; what implements them (`CHILDREN_RANK`) stands above it.
const RANKS: [(&str, u8); 30] = [
    ("secret", 0),
    ("clock", 0),
    ("private", 0),
    ("timeouts", 0),
    ("problem_code", 0),
    ("error_chain", 0),
    ("socket_path", 0),
    ("account", 1),
    ("faults", 1),
    ("grant", 2),
    ("limits", 2),
    ("audit", 2),
    ("item", 2),
    ("dialect", 2),
    ("provider", 3),
    ("store", 3),
    ("policy", 4),
    ("keys", 4),
    ("refresh", 4),
    ("login", 5),
    ("sandbox", 5),
    ("server", 6),
    ("client", 6),
    ("config", 6),
    ("cli", 7),
    ("telemetry", 7),
    ("lifecycle", 8),
    ("fuzzing", 8),
    ("lib", 9),
    ("main", 9),
];
const CHILDREN_RANK: [(&str, u8); 2] = [("provider", 6), ("store", 6)];

/// Lower, and still not to be imported: what is printed is not the business of what starts and stops the parts.
const FORBIDDEN_IMPORTS: [(&str, &str); 1] = [("lifecycle", "cli")];

/// Crates and macros, and where alone they may stand: under a folder, or in a file.
const ONLY_IN: [(&str, &[&str]); 12] = [
    ("axum", &["server/", "server.rs"]),
    ("reqwest", &["provider/"]),
    ("ring", &["provider/"]),
    ("sqlx", &["store/"]),
    ("chacha20poly1305", &["store/"]),
    ("argon2", &["store/"]),
    ("rpassword", &["cli/"]),
    ("qrcodegen", &["cli/"]),
    ("print!", &["cli/", "cli.rs"]),
    ("println!", &["cli/", "cli.rs"]),
    ("eprint!", &["cli/", "cli.rs"]),
    ("eprintln!", &["cli/", "cli.rs"]),
];

/// Past this many lines, its tests not counted, a file under `src/` has more than one subject.
const LONGEST_FILE: usize = 500;

/// The same for a file under `tests/`.
const LONGEST_TEST_FILE: usize = 600;

/// Sources by their path under `src/` or `tests/`.
type Sources = BTreeMap<String, String>;

#[test]
fn the_sources_keep_the_rules() {
    let sources = sources("src");
    assert!(sources.len() > 10, "{:?}", sources.keys());
    let faults = faults(&sources);
    assert!(faults.is_empty(), "\n{}", faults.into_iter().collect::<Vec<_>>().join("\n"));
}

/// What is printed by a test that passes is seen by nobody: `support/skip.rs` is how a test says that it cannot be run.
#[test]
fn no_test_says_by_itself_that_it_is_skipped() {
    let says_so = |text: &str| {
        let mut printed = text.split("print").skip(1).map(|rest| rest.split(';').next().unwrap_or_default());
        printed.any(|call| call.to_lowercase().contains("skip"))
    };
    assert!(says_so("println!(\n \"Skipped: {why}\"\n);") && !says_so("println!(\"on\"); lines.skip(1);"));
    let tests = sources("tests");
    assert!(tests.contains_key("support/skip.rs"), "{:?}", tests.keys());
    let found: Vec<_> =
        tests.iter().filter(|(file, text)| *file != "repository/architecture.rs" && says_so(text)).collect();
    assert!(found.is_empty(), "call support::skip::skip: {:?}", found.iter().map(|(file, _)| file).collect::<Vec<_>>());
}

#[test]
fn the_map_has_every_module_in_the_order_of_the_ranks() {
    let (_, map) = include_str!("../../docs/architecture.md").split_once("\n## Modules\n").unwrap();
    let rows = map.split("\n## ").next().unwrap().lines().filter_map(|line| line.strip_prefix("| `"));
    let named: Vec<&str> = rows.map(|row| row.split('`').next().unwrap()).collect();
    assert_eq!(named, RANKS.map(|(module, _)| module));
}

#[test]
fn no_file_of_tests_is_too_long() {
    let tests = sources("tests");
    let long =
        tests.iter().map(|(file, text)| (file, text.lines().count())).filter(|(_, lines)| *lines > LONGEST_TEST_FILE);
    assert_eq!(long.collect::<Vec<_>>(), [], "more than {LONGEST_TEST_FILE} lines: split it by subject");
}

#[test]
fn the_imports_that_are_there_are_seen() {
    let sources = sources("src");
    let modules = modules(&sources);
    let imported_by = |file: &str| -> BTreeSet<_> {
        imports(file, &sources[file], &modules).into_iter().filter_map(|(_, path)| path.into_iter().next()).collect()
    };
    assert!(["clock", "secret"].iter().all(|module| imported_by("grant.rs").contains(*module)));
    assert!(["account", "clock", "grant"].iter().all(|module| imported_by("store.rs").contains(*module)));
}

fn sources(folder: &str) -> Sources {
    fn walk(folder: &Path, prefix: &str, found: &mut Sources) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
            // What is installed under `tests/servers` is not ours.
            if name == "servers" {
                continue;
            }
            if path.is_dir() {
                walk(&path, &format!("{name}/"), found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut found = Sources::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), "", &mut found);
    found
}

/// All that is wrong, as `file:line: what`.
fn faults(sources: &Sources) -> BTreeSet<String> {
    let modules = modules(sources);
    let mut found = BTreeSet::new();
    for (file, text) in sources {
        for (line, target) in imports(file, text, &modules) {
            if let Some(fault) = import_fault(&own_path(file), &target, &modules) {
                found.insert(format!("{file}:{line}: {fault}"));
            }
        }
        for (line, word) in words(text) {
            let place = ONLY_IN.iter().find(|(name, _)| *name == word);
            if let Some((name, places)) = place
                && !places.iter().any(|place| file == place || place.ends_with('/') && file.starts_with(place))
            {
                found.insert(format!("{file}:{line}: {name} belongs in {} alone", places.join(" and ")));
            }
        }
        let lines = lines_without_tests(text);
        if lines > LONGEST_FILE {
            found.insert(format!("{file}: {lines} lines without its tests, more than {LONGEST_FILE}: split it"));
        }
    }
    found
}

/// What is wrong with an import of `target` in the module `own`.
fn import_fault(own: &[String], target: &[String], modules: &BTreeSet<Module>) -> Option<String> {
    let Some(top) = target.first().filter(|top| modules.contains(std::slice::from_ref(*top))) else {
        return Some(format!("crate::{} is in no module", target.join("::")));
    };
    let (Some(own_rank), Some(rank)) = (rank(own, modules), rank(target, modules)) else {
        return Some(format!(
            "{} or {top} has no rank: give it one in tests/repository/architecture.rs",
            own.join("::")
        ));
    };
    let same_module = own.first() == Some(top);
    let allowed = rank < own_rank || same_module && rank == own_rank;
    let forbidden = own.first().is_some_and(|own| FORBIDDEN_IMPORTS.contains(&(own, top)));
    (!allowed || forbidden).then(|| format!("{} may not import {}", own.join("::"), target.join("::")))
}

fn rank(path: &[String], modules: &BTreeSet<Module>) -> Option<u8> {
    let top = path.first()?;
    let of = |ranks: &[(&str, u8)]| ranks.iter().find(|(name, _)| name == top).map(|(_, rank)| *rank);
    let child = path.len() > 1 && modules.contains(&path[..2]);
    of(&CHILDREN_RANK).filter(|_| child).or_else(|| of(&RANKS))
}

/// The modules that files make.
fn modules(sources: &Sources) -> BTreeSet<Module> {
    sources.keys().map(|file| own_path(file)).collect()
}

fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<_> = text.lines().collect();
    let tests = lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests"));
    tests.unwrap_or(lines.len())
}

/// A small crate with `text` in one of its files, and what is wrong with it.
fn faults_of(file: &str, text: &str) -> Vec<String> {
    let modules = "secret clock account grant provider provider/wire provider/oauth2 store store/sqlite policy refresh \
                 refresh/flight server server/problem server/routes/tokens client config cli cli/status lifecycle lib main";
    let mut sources: Sources = modules.split(' ').map(|name| (format!("{name}.rs"), String::new())).collect();
    sources.insert(file.to_owned(), text.to_owned());
    faults(&sources).into_iter().collect()
}

#[track_caller]
fn refused(file: &str, text: &str, line: usize, fault: &str) {
    assert_eq!(faults_of(file, text), [format!("{file}:{line}: {fault}")], "{text}");
}

#[track_caller]
fn fine(file: &str, text: &str) {
    assert_eq!(faults_of(file, text), Vec::<String>::new(), "{text}");
}

#[test]
fn a_module_of_a_lower_rank_may_be_imported_and_one_of_a_higher_may_not() {
    fine("grant.rs", "use crate::{clock::Timestamp, secret::AccessToken};");
    fine("refresh/flight.rs", "use crate::{provider::Provider, store::{self, Store}};");
    fine("server/routes/tokens.rs", "use crate::{policy::Policy, refresh::Coordinator};");
    fine("provider/oauth2.rs", "use crate::{provider::Provider, refresh::X};");
    fine("main.rs", "use credproxy::{cli, lifecycle};");
    refused("grant.rs", "use crate::store::Store;", 1, "grant may not import store::Store");
    refused("store.rs", "use crate::provider::Provider;", 1, "store may not import provider::Provider");
    refused("policy.rs", "use crate::refresh::X;", 1, "policy may not import refresh::X");
    refused("refresh.rs", "use crate::provider::wire::Wire;", 1, "refresh may not import provider::wire::Wire");
    refused("provider.rs", "use crate::provider::wire;", 1, "provider may not import provider::wire");
    refused("server.rs", "use crate::config::Config;", 1, "server may not import config::Config");
    refused("cli.rs", "use crate::lifecycle::run;", 1, "cli may not import lifecycle::run");
    refused("lifecycle.rs", "use crate::cli::status;", 1, "lifecycle may not import cli::status");
    refused("store/sqlite.rs", "use crate::provider::wire;", 1, "store::sqlite may not import provider::wire");
}

#[test]
fn a_module_may_import_its_own_children_and_they_one_another() {
    fine("server.rs", "pub mod problem; use problem::Problem; use self::routes::tokens;");
    fine("server/routes/tokens.rs", "use super::super::{problem::Problem};");
    fine("provider/oauth2.rs", "use super::{wire::Wire, Provider}; use crate::provider::wire::X;");
    fine("provider.rs", "pub mod wire;\npub mod oauth2;");
    refused("provider.rs", "pub mod wire;\npub use wire::Wire;", 2, "provider may not import provider::wire::Wire");
}

#[test]
fn an_import_is_seen_however_it_is_written() {
    let fault = "grant may not import server::problem";
    for text in [
        "use crate::{\n    clock::{self, Timestamp},\n    server::problem,\n};",
        "use crate::{clock,\n\n server::{problem as p}};",
        "fn f() {\n\n crate::server::problem(); }",
        "fn f(x: &'static str)\n -> Vec<\ncrate::server::problem> {}",
        "use crate as own;\nmod x {}\nfn f(x: impl Fn() -> credproxy::server::problem) {}",
        "\n\nuse super::server::problem;",
        "\n\nstruct S { x: super::server::problem }",
        "#[cfg(test)]\nmod tests {\n use super::super::server::problem; }",
        "mod a { mod b { fn f() { } }\n use super::x;\n use super::super::server::problem; }",
        "macro_rules! m { () => {\n\n $crate::server::problem } }",
        "\n\npub(crate) use crate::server::problem;",
        "/* /* */ \" */ const Q: char = '\"'; const B: u8 = b'\\'';\n\nuse crate::server::problem;",
        "const S: &str = \"\\\"\";\nconst R: &[u8] = br#\"\"//\"#;\nuse r#crate::server::problem;",
    ] {
        let faults = faults_of("grant.rs", text);
        assert!(faults.contains(&format!("grant.rs:3: {fault}")), "{text}: {faults:?}");
    }
    let renamed = "use crate::store as kept;\nfn f() { kept::sqlite::open() }";
    refused("refresh.rs", renamed, 2, "refresh may not import store::sqlite::open");
}

#[test]
fn what_is_no_import_is_not_taken_for_one() {
    for text in [
        "//! See [`crate::server`].\n/// crate::server::x\n/* use crate::server; /* */ crate::server::y */",
        "const S: &str = \"use crate::server::x;\"; const R: &str = r#\"crate::server::\"x\"#;",
        "pub(in crate::server) struct X;",
        "use http::server::X; use ::server::Y; fn f() { http::crate_::server(); x.server::<u8>(); }",
        "mod tests { use super::*; }",
        "use std::{fmt, str::FromStr}; fn f<'a>(x: &'a str) -> char { 'a' }",
    ] {
        fine("grant.rs", text);
    }
}

#[test]
fn a_module_without_a_rank_and_an_import_of_no_module_are_refused() {
    refused(
        "attic.rs",
        "use crate::grant::Grant;",
        1,
        "attic or grant has no rank: give it one in tests/repository/architecture.rs",
    );
    refused("grant.rs", "use crate::Thing;", 1, "crate::Thing is in no module");
    refused("grant.rs", "use super::*;", 1, "crate::* is in no module");
}

#[test]
fn a_crate_or_macro_outside_its_place_is_refused() {
    fine("server.rs", "use axum::Router;");
    fine("server/routes/tokens.rs", "use axum::{Json, body::Body};");
    fine("provider/wire.rs", "use reqwest::Client;");
    fine("store/sqlite.rs", "use sqlx::SqlitePool; use chacha20poly1305::Key;");
    fine("cli/status.rs", "fn f() { println!(\"axum\"); eprintln!(\"\"); }");
    fine("grant.rs", "/// axum::Router, println!\nfn print() { writer.print(); }");
    refused("lifecycle.rs", "use tokio::net;\nuse axum::Router;", 2, "axum belongs in server/ and server.rs alone");
    refused("lifecycle.rs", "fn f() -> ::axum::Router {}", 1, "axum belongs in server/ and server.rs alone");
    refused("provider.rs", "use reqwest as r;", 1, "reqwest belongs in provider/ alone");
    refused("store.rs", "use {sqlx::X};", 1, "sqlx belongs in store/ alone");
    refused("secret.rs", "use chacha20poly1305::Key;", 1, "chacha20poly1305 belongs in store/ alone");
    refused("main.rs", "fn main() { eprintln!(\"\") }", 1, "eprintln! belongs in cli/ and cli.rs alone");
}

#[test]
fn a_long_file_is_refused_and_its_tests_do_not_count() {
    let text = |before: usize| format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(before), "\n".repeat(900));
    fine("grant.rs", &text(LONGEST_FILE));
    let fault = "grant.rs: 501 lines without its tests, more than 500: split it";
    assert_eq!(faults_of("grant.rs", &text(LONGEST_FILE + 1)), [fault]);
}
