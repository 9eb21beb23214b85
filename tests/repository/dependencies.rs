//! What the program is built from: licences, sources, duplicate versions, and the oldest compiler that will do.
//!
//! `.deny.toml` holds the lists, for `cargo deny` as well. This test needs neither that program nor a network, so that
//! the lists are held everywhere; what it cannot know is which versions have known faults (`cargo deny check advisories`).

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use serde_json::Value;

const LISTS: &str = include_str!("../../.deny.toml");

/// The system that `.deny.toml` speaks of. Others bring other crates, for which other exceptions may be needed.
const LISTED_SYSTEM: bool = cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu"));

/// The crates that the program is built from, those of the tests left out.
fn crates() -> Vec<Value> {
    let cargo = |arguments: &[&str]| {
        let output =
            Command::new(env!("CARGO")).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let version = cargo(&["version", "--verbose"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let metadata = cargo(&["metadata", "--format-version=1", "--locked", "--offline", "--filter-platform", host]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();

    let nodes = metadata["resolve"]["nodes"].as_array().unwrap();
    let nodes: BTreeMap<_, _> = nodes.iter().map(|node| (node["id"].as_str().unwrap(), node)).collect();
    let mut open: Vec<&str> =
        metadata["workspace_members"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let mut reached = BTreeSet::new();
    while let Some(id) = open.pop() {
        if reached.insert(id) {
            let dependencies = nodes[id]["deps"].as_array().unwrap().iter();
            let built = |dependency: &&Value| {
                dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"] != "dev")
            };
            open.extend(dependencies.filter(built).map(|dependency| dependency["pkg"].as_str().unwrap()));
        }
    }
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.filter(|package| reached.contains(package["id"].as_str().unwrap())).cloned().collect()
}

fn lists() -> toml::Table {
    LISTS.parse().unwrap()
}

fn texts(list: &toml::Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn name(package: &Value) -> String {
    format!("{}@{}", package["name"].as_str().unwrap(), package["version"].as_str().unwrap())
}

/// Whether an SPDX expression can be met with these licences. Cargo's older form has `/` for `OR`.
fn is_met(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let met = any(&mut rest, allowed);
    assert!(rest.is_empty(), "not an expression of licences: {expression}");
    met
}

/// `OR` binds weaker than `AND`.
fn any(words: &mut &[&str], allowed: &[&str]) -> bool {
    let mut met = all(words, allowed);
    while let ["OR", rest @ ..] = *words {
        *words = rest;
        met |= all(words, allowed);
    }
    met
}

fn all(words: &mut &[&str], allowed: &[&str]) -> bool {
    let mut met = one(words, allowed);
    while let ["AND", rest @ ..] = *words {
        *words = rest;
        met &= one(words, allowed);
    }
    met
}

fn one(words: &mut &[&str], allowed: &[&str]) -> bool {
    let (first, mut rest) = words.split_first().expect("an expression ends too early");
    if *first == "(" {
        let met = any(&mut rest, allowed);
        *words = rest.strip_prefix(&[")"]).expect("a parenthesis is not closed");
        return met;
    }
    // An exception only gives more rights, but which one it is has to be looked at: it is a licence of its own.
    let exception = matches!(rest, ["WITH", ..]);
    *words = if exception { &rest[2..] } else { rest };
    !exception && allowed.contains(first)
}

#[test]
fn every_crate_has_a_licence_that_is_allowed() {
    let lists = lists();
    let allowed = texts(&lists["licenses"]["allow"]);
    let crates = crates();
    assert!(crates.len() > 100, "{}", crates.len());
    let refused = crates.iter().filter(|package| !is_met(package["license"].as_str().unwrap_or("none"), &allowed));
    let refused: Vec<_> = refused.map(|package| (name(package), &package["license"])).collect();
    assert!(refused.is_empty(), "not allowed by .deny.toml: {refused:?}");
}

#[test]
fn every_crate_comes_from_a_source_that_is_allowed() {
    let lists = lists();
    let allowed = texts(&lists["sources"]["allow-registry"]);
    let foreign = crates().into_iter().filter(|package| match package["source"].as_str() {
        // A package of the workspace.
        None => false,
        Some(source) => !source.strip_prefix("registry+").is_some_and(|registry| allowed.contains(&registry)),
    });
    let foreign: Vec<_> = foreign.map(|package| name(&package)).collect();
    assert!(foreign.is_empty(), "not from a registry that .deny.toml names: {foreign:?}");
}

#[test]
fn no_crate_is_there_in_two_versions_without_a_reason() {
    let lists = lists();
    let skipped = lists["bans"]["skip"].as_array().unwrap();
    let excused = |package: &str| {
        skipped.iter().position(|entry| {
            let rest = package.strip_prefix(entry["crate"].as_str().unwrap());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    };
    let mut versions = BTreeMap::<_, BTreeSet<_>>::new();
    for package in crates() {
        versions.entry(package["name"].as_str().unwrap().to_owned()).or_default().insert(name(&package));
    }
    let (mut needed, mut unexcused) = (BTreeSet::new(), Vec::new());
    for duplicates in versions.values().filter(|versions| versions.len() > 1) {
        needed.extend(duplicates.iter().filter_map(|package| excused(package)));
        let others: Vec<_> = duplicates.iter().filter(|package| excused(package).is_none()).collect();
        if others.len() > 1 {
            unexcused.push(others.into_iter().cloned().collect::<Vec<_>>());
        }
    }
    assert!(unexcused.is_empty(), "drop one, or name it in .deny.toml with the reason: {unexcused:?}");
    if LISTED_SYSTEM {
        let left: Vec<_> = skipped.iter().enumerate().filter(|(at, _)| !needed.contains(at)).collect();
        assert!(left.is_empty(), "no duplicates any more, to be taken out of .deny.toml: {left:?}");
    }
}

/// Clippy's `incompatible_msrv` sees to our own code.
#[test]
fn no_crate_needs_a_newer_compiler_than_ours_says() {
    let number = |version: &str| {
        let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap());
        (parts.next().unwrap(), parts.next().unwrap_or_default())
    };
    let ours = number(env!("CARGO_PKG_RUST_VERSION"));
    let newer =
        crates().into_iter().filter(|package| package["rust_version"].as_str().is_some_and(|own| number(own) > ours));
    let newer: Vec<_> = newer.map(|package| name(&package)).collect();
    assert!(newer.is_empty(), "rust-version in Cargo.toml is too low for {newer:?}");
}

#[test]
fn an_expression_of_licences_is_met_as_spdx_has_it() {
    let allowed = ["MIT", "ISC"];
    for met in ["MIT", "MIT OR GPL-3.0", "GPL-3.0/MIT", "MIT AND ISC", "(MIT OR X) AND ISC", "X AND Y OR ISC"] {
        assert!(is_met(met, &allowed), "{met}");
    }
    for unmet in ["GPL-3.0", "MIT AND X", "(X OR Y) AND MIT", "X OR MIT AND Y", "MIT WITH X-exception", "none"] {
        assert!(!is_met(unmet, &allowed), "{unmet}");
    }
}
