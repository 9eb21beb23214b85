//! The house rules that a compiler does not hold: imports run one way, and some crates have one home.
//!
//! It reads the sources as tokens. Comments, strings and characters are no code; `crate`, `self`, `super`, groups,
//! renamings and paths in the middle of an expression are all followed; code under `#[cfg(test)]` is code.
//! What a macro puts together out of pieces, or a path inside a string (`#[serde(with = "…")]`), escapes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// How high a room stands; it may import what stands lower. `provider` and `store` are traits, which the coordinator
/// knows; what implements them (`CHILDREN_RANK`) stands above it.
const RANKS: [(&str, u8); 29] = [
    ("secret", 0),
    ("clock", 0),
    ("private", 0),
    ("timeouts", 0),
    ("problem_code", 0),
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
const STRANGERS: [(&str, &str); 1] = [("lifecycle", "cli")];

/// Crates and macros, and where alone they may stand: under a folder, or in a file.
const HOMES: [(&str, &[&str]); 12] = [
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

/// Past this many lines, its tests not counted, a file has more than one subject.
const LONGEST_FILE: usize = 500;

/// The crate's own name, by which `main.rs` calls the library.
const OWN_NAME: &str = "credproxy";

/// Sources by their path under `src/` or `tests/`.
type Sources = BTreeMap<String, String>;

/// A module's path from the crate's root.
type Module = Vec<String>;

#[test]
fn the_house_is_in_order() {
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
fn the_imports_that_are_there_are_seen() {
    let sources = sources("src");
    let modules = modules(&sources);
    let rooms_of = |file: &str| -> BTreeSet<_> {
        imports(file, &sources[file], &modules).into_iter().filter_map(|(_, path)| path.into_iter().next()).collect()
    };
    assert!(["clock", "secret"].iter().all(|room| rooms_of("grant.rs").contains(*room)));
    assert!(["account", "clock", "grant"].iter().all(|room| rooms_of("store.rs").contains(*room)));
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
            let home = HOMES.iter().find(|(name, _)| *name == word);
            if let Some((name, homes)) = home
                && !homes.iter().any(|home| file == home || home.ends_with('/') && file.starts_with(home))
            {
                found.insert(format!("{file}:{line}: {name} lives in {} alone", homes.join(" and ")));
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
    let Some(room) = target.first().filter(|room| modules.contains(std::slice::from_ref(*room))) else {
        return Some(format!("crate::{} is in no room", target.join("::")));
    };
    let (Some(own_rank), Some(rank)) = (rank(own, modules), rank(target, modules)) else {
        return Some(format!(
            "{} or {room} has no rank: give it one in tests/repository/architecture.rs",
            own.join("::")
        ));
    };
    let same_room = own.first() == Some(room);
    let allowed = rank < own_rank || same_room && rank == own_rank;
    let stranger = own.first().is_some_and(|own| STRANGERS.contains(&(own, room)));
    (!allowed || stranger).then(|| format!("{} may not import {}", own.join("::"), target.join("::")))
}

fn rank(path: &[String], modules: &BTreeSet<Module>) -> Option<u8> {
    let room = path.first()?;
    let of = |ranks: &[(&str, u8)]| ranks.iter().find(|(name, _)| name == room).map(|(_, rank)| *rank);
    let child = path.len() > 1 && modules.contains(&path[..2]);
    of(&CHILDREN_RANK).filter(|_| child).or_else(|| of(&RANKS))
}

/// The modules that files make.
fn modules(sources: &Sources) -> BTreeSet<Module> {
    sources.keys().map(|file| own_path(file)).collect()
}

fn own_path(file: &str) -> Module {
    file.trim_end_matches(".rs").split('/').map(str::to_owned).collect()
}

/// Where the file's code looks from: the crate's root for `lib.rs` and `main.rs`.
fn module_of(file: &str) -> Module {
    if ["lib.rs", "main.rs"].contains(&file) { Module::new() } else { own_path(file) }
}

fn lines_without_tests(text: &str) -> usize {
    let lines: Vec<_> = text.lines().collect();
    let tests = lines.windows(2).position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests"));
    tests.unwrap_or(lines.len())
}

/// The identifiers of a file with their lines; a macro's name with its exclamation mark.
fn words(text: &str) -> Vec<(usize, String)> {
    let tokens = tokens(text);
    let next = |index: usize| tokens.get(index + 1).map_or("", |(_, token)| token.as_str());
    let word = |(index, (line, token)): (usize, &(usize, String))| {
        (*line, if next(index) == "!" { format!("{token}!") } else { token.clone() })
    };
    tokens.iter().enumerate().map(word).collect()
}

/// Every path in the file that leads into this crate, from the root, with its line.
fn imports(file: &str, text: &str, modules: &BTreeSet<Module>) -> Vec<(usize, Vec<String>)> {
    let mut reader = Reader { tokens: tokens(text), at: 0, inline: Vec::new(), used: Vec::new(), paths: Vec::new() };
    reader.read();
    let absolute = |found: &Found| {
        let module = [module_of(file), found.inline.clone()].concat();
        absolute(&found.path, &module, modules).map(|path| (found.line, path))
    };
    let mut names = BTreeMap::new();
    let mut seen = Vec::new();
    for (found, name) in &reader.used {
        if let Some((line, path)) = absolute(found) {
            names.insert(name.clone(), path.clone());
            seen.push((line, path));
        }
    }
    for found in &reader.paths {
        let renamed = names.get(&found.path[0]).map(|path| [path.clone(), found.path[1..].to_vec()].concat());
        seen.extend(renamed.map(|path| (found.line, path)).or_else(|| absolute(found)));
    }
    seen
}

/// The path from the crate's root; `None` if it leads elsewhere.
fn absolute(path: &[String], module: &[String], modules: &BTreeSet<Module>) -> Option<Vec<String>> {
    let first = path.first()?;
    let (mut base, mut rest) = match first.as_str() {
        "crate" | OWN_NAME => (Vec::new(), &path[1..]),
        "self" => (module.to_vec(), &path[1..]),
        "super" => (module.to_vec(), path),
        child if modules.contains(&[module, &[child.to_owned()]].concat()) => (module.to_vec(), path),
        _ => return None,
    };
    while let ["super", ..] = rest.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        base.pop();
        rest = &rest[1..];
    }
    base.extend_from_slice(rest);
    Some(base)
}

/// A path as it is written, and where.
struct Found {
    line: usize,
    /// The inline modules around it.
    inline: Module,
    path: Vec<String>,
}

struct Reader {
    tokens: Vec<(usize, String)>,
    at: usize,
    /// The inline modules and nameless braces that are open; a brace is an empty name.
    inline: Vec<String>,
    /// What `use` brings in, and under which name.
    used: Vec<(Found, String)>,
    /// Paths elsewhere.
    paths: Vec<Found>,
}

impl Reader {
    fn token(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |(_, token)| token)
    }

    fn read(&mut self) {
        while self.at < self.tokens.len() {
            match (self.token(0), self.token(1), self.token(2)) {
                ("mod", name, "{") => {
                    self.inline.push(name.to_owned());
                    self.at += 3;
                }
                ("{", ..) => {
                    self.inline.push(String::new());
                    self.at += 1;
                }
                ("}", ..) => {
                    self.inline.pop();
                    self.at += 1;
                }
                // A visibility (`pub(in crate::server)`) imports nothing.
                ("pub", "(", _) => {
                    while !["", ")"].contains(&self.token(0)) {
                        self.at += 1;
                    }
                }
                ("use", ..) => {
                    self.at += 1;
                    self.tree(&[]);
                }
                (_, "::", _) if self.starts_path() => self.path(),
                _ => self.at += 1,
            }
        }
    }

    fn starts_path(&self) -> bool {
        let before = self.at.checked_sub(1).map_or("", |before| self.tokens[before].1.as_str());
        is_word(self.token(0)) && !["::", "."].contains(&before)
    }

    fn found(&self, path: Vec<String>) -> Found {
        let line = self.tokens.get(self.at).or(self.tokens.last()).map_or(0, |(line, _)| *line);
        Found { line, inline: self.inline.iter().filter(|name| !name.is_empty()).cloned().collect(), path }
    }

    fn path(&mut self) {
        let mut found = self.found(vec![self.token(0).to_owned()]);
        self.at += 1;
        while self.token(0) == "::" && is_word(self.token(1)) {
            found.path.push(self.token(1).to_owned());
            self.at += 2;
        }
        self.at += usize::from(self.token(0) == "::");
        self.paths.push(found);
    }

    /// Reads one branch of a `use`, up to the comma, brace or semicolon behind it.
    fn tree(&mut self, stem: &[String]) {
        let mut path = stem.to_vec();
        loop {
            match self.token(0) {
                "{" => {
                    self.at += 1;
                    while !["}", ""].contains(&self.token(0)) {
                        self.tree(&path);
                        self.at += usize::from(self.token(0) == ",");
                    }
                    self.at += 1;
                    return;
                }
                "as" => {
                    let name = self.token(1).to_owned();
                    self.at += 2;
                    return self.brought(path, name);
                }
                "," | "}" | ";" | "" => {
                    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
                        path.pop();
                    }
                    let name = path.last().cloned().unwrap_or_default();
                    return self.brought(path, name);
                }
                "::" if path.is_empty() => {
                    // `::name` is another crate, whatever its name.
                    path.push("::".to_owned());
                    self.at += 1;
                }
                "::" => self.at += 1,
                part => {
                    path.push(part.to_owned());
                    self.at += 1;
                }
            }
        }
    }

    fn brought(&mut self, path: Vec<String>, name: String) {
        let found = self.found(path);
        self.used.push((found, name));
    }
}

fn is_word(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphanumeric() || first == '_')
}

/// The file's tokens with their lines: words, `::`, and every other character by itself. Comments are left out;
/// strings, characters and lifetimes as well.
fn tokens(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|one: char| !one.is_alphanumeric() && one != '_').unwrap_or(rest.len());
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(length) = string(rest) {
            length
        } else if first == '\'' {
            character_or_lifetime(rest)
        } else if rest.starts_with("r#") {
            2
        } else if word > 0 {
            found.push((line, rest[..word].to_owned()));
            word
        } else if rest.starts_with("::") {
            found.push((line, "::".to_owned()));
            2
        } else {
            if !first.is_whitespace() {
                found.push((line, first.to_string()));
            }
            first.len_utf8()
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    found
}

/// Block comments nest.
fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

/// The length of the string literal that `rest` begins with, if it does.
fn string(rest: &str) -> Option<usize> {
    let marked =
        ["br", "cr", "b", "c", "r", ""].into_iter().find_map(|prefix| Some((prefix, rest.strip_prefix(prefix)?)));
    let (prefix, body) = marked?;
    let hashes = if prefix.ends_with('r') { body.len() - body.trim_start_matches('#').len() } else { 0 };
    let inside = body[hashes..].strip_prefix('"')?;
    let start = rest.len() - inside.len();
    if prefix.ends_with('r') {
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(inside.find(&end).map_or(rest.len(), |at| start + at + end.len()));
    }
    let mut escaped = false;
    for (at, one) in inside.char_indices() {
        match one {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(start + at + 1),
            _ => {}
        }
    }
    Some(rest.len())
}

fn character_or_lifetime(rest: &str) -> usize {
    let mut inside = rest[1..].char_indices();
    match (inside.next(), inside.next()) {
        (Some((_, '\\')), Some((escaped, one))) => {
            let from = 1 + escaped + one.len_utf8();
            rest[from..].find('\'').map_or(rest.len(), |end| from + end + 1)
        }
        (Some(_), Some((at, '\''))) => at + 2,
        _ => rest[1..].find(|one: char| !one.is_alphanumeric() && one != '_').map_or(rest.len(), |end| 1 + end),
    }
}

/// A small house with `text` in one of its files, and what is wrong with it.
fn faults_of(file: &str, text: &str) -> Vec<String> {
    let rooms = "secret clock account grant provider provider/wire provider/oauth2 store store/sqlite policy refresh \
                 refresh/flight server server/problem server/routes/tokens client config cli cli/status lifecycle lib main";
    let mut sources: Sources = rooms.split(' ').map(|room| (format!("{room}.rs"), String::new())).collect();
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
fn a_lower_room_may_be_imported_and_a_higher_one_may_not() {
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
fn a_room_may_import_its_own_children_and_they_one_another() {
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
fn a_room_without_a_rank_and_a_thing_without_a_room_are_refused() {
    refused(
        "attic.rs",
        "use crate::grant::Grant;",
        1,
        "attic or grant has no rank: give it one in tests/repository/architecture.rs",
    );
    refused("grant.rs", "use crate::Thing;", 1, "crate::Thing is in no room");
    refused("grant.rs", "use super::*;", 1, "crate::* is in no room");
}

#[test]
fn a_crate_or_macro_away_from_its_home_is_refused() {
    fine("server.rs", "use axum::Router;");
    fine("server/routes/tokens.rs", "use axum::{Json, body::Body};");
    fine("provider/wire.rs", "use reqwest::Client;");
    fine("store/sqlite.rs", "use sqlx::SqlitePool; use chacha20poly1305::Key;");
    fine("cli/status.rs", "fn f() { println!(\"axum\"); eprintln!(\"\"); }");
    fine("grant.rs", "/// axum::Router, println!\nfn print() { writer.print(); }");
    refused("lifecycle.rs", "use tokio::net;\nuse axum::Router;", 2, "axum lives in server/ and server.rs alone");
    refused("lifecycle.rs", "fn f() -> ::axum::Router {}", 1, "axum lives in server/ and server.rs alone");
    refused("provider.rs", "use reqwest as r;", 1, "reqwest lives in provider/ alone");
    refused("store.rs", "use {sqlx::X};", 1, "sqlx lives in store/ alone");
    refused("secret.rs", "use chacha20poly1305::Key;", 1, "chacha20poly1305 lives in store/ alone");
    refused("main.rs", "fn main() { eprintln!(\"\") }", 1, "eprintln! lives in cli/ and cli.rs alone");
}

#[test]
fn a_long_file_is_refused_and_its_tests_do_not_count() {
    let text = |before: usize| format!("{}#[cfg(test)]\nmod tests {{\n{}}}\n", "\n".repeat(before), "\n".repeat(900));
    fine("grant.rs", &text(LONGEST_FILE));
    let fault = "grant.rs: 501 lines without its tests, more than 500: split it";
    assert_eq!(faults_of("grant.rs", &text(LONGEST_FILE + 1)), [fault]);
}
