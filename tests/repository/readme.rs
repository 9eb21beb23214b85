//! README.md and the pages of `docs` say what is so: the lines that `serve --dev` prints and the configuration of the
//! README; the commands and exit codes of docs/cli.md; the operations and codes of docs/api.md; every key in
//! docs/configuration.md, and every preset in docs/providers.md. What they link to exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{DirBuilder, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use credproxy::config::presets;
use serde_json::Value;

use crate::support::skip::skip;

const README: &str = include_str!("../../README.md");
const API: &str = include_str!("../../docs/api.md");
const CLI: &str = include_str!("../../docs/cli.md");
const CONFIGURATION: &str = include_str!("../../docs/configuration.md");
const PROVIDERS: &str = include_str!("../../docs/providers.md");
const PROGRAM: &str = env!("CARGO_BIN_EXE_credproxy");

/// The section of a page under a heading, up to the next.
fn section(page: &'static str, heading: &str) -> &'static str {
    let (_, text) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    text.split("\n## ").next().unwrap()
}

/// The cells of a section's tables, their heads left out.
fn rows(page: &'static str, heading: &str) -> Vec<Vec<&'static str>> {
    let lines = section(page, heading).lines().filter(|line| line.starts_with("| `") || line.starts_with("| 0"));
    lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

fn run(arguments: &[&str], input: &str, env: &[(&str, &Path)]) -> Output {
    let mut child = Command::new(PROGRAM)
        .args(arguments)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that does not want its input may have ended already.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    child.wait_with_output().unwrap()
}

fn help(arguments: &[&str]) -> String {
    let output = run(&[arguments, &["--help"]].concat(), "", &[]);
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_commands_and_their_options_are_those_of_the_program() {
    let all = help(&[]);
    let commands: Vec<&str> = rows(CLI, "Commands")
        .iter()
        .map(|row| row[0].trim_matches('`'))
        .filter(|usage| usage.starts_with(|letter: char| letter.is_ascii_lowercase()))
        .collect();
    for usage in &commands {
        let is_command = |word: &&str| word.bytes().all(|letter| letter.is_ascii_lowercase());
        let help = help(&usage.split(' ').take_while(is_command).collect::<Vec<_>>());
        let options = usage.split(['[', ' ', ']']).filter(|word| word.starts_with("--"));
        for option in options.chain(["--config", "--socket", "--json"]) {
            assert!(help.contains(&format!("{option} ")) || help.contains(&format!("{option}\n")), "{usage}: {option}");
        }
    }
    let offered = all.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let offered: Vec<&str> = offered.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    for command in offered.into_iter().filter(|command| *command != "help") {
        assert!(
            commands.iter().any(|usage| usage.split(' ').next() == Some(command)),
            "{command} is not in docs/cli.md"
        );
    }
}

#[test]
fn the_exit_codes_are_those_of_the_help() {
    let lines = |text: &'static str, prefix: &'static str| {
        text.lines().filter_map(move |line| line.strip_prefix(prefix)?.chars().next()).filter(char::is_ascii_digit)
    };
    let page: Vec<char> = lines(section(CLI, "Exit codes"), "| ").collect();
    let help: &'static str = help(&[]).leak();
    assert_eq!(page, lines(help.split("Exit codes:").nth(1).unwrap(), "  ").collect::<Vec<_>>());
}

#[test]
fn the_configuration_is_accepted_and_names_every_key() {
    let written = |text: &'static str| text.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let (toml, short) = (written(CONFIGURATION), written(section(README, "With a real provider")));
    let home = tempfile::tempdir().unwrap();
    // As written it speaks of a home, certificates and a secret that are not here.
    let certificates = home.path().join("ca.pem");
    let ca = rcgen::generate_simple_self_signed(["login.example.com".to_owned()]).unwrap();
    File::create(&certificates).unwrap().write_all(ca.cert.pem().as_bytes()).unwrap();
    let here = toml
        .replace("/etc/corp/ca.pem", certificates.to_str().unwrap())
        .replace("/home/me", home.path().to_str().unwrap())
        .replace("/run/user/1000", home.path().to_str().unwrap());
    assert_ne!(here, toml);
    let file = home.path().join("config.toml");
    File::create(&file).unwrap().write_all(here.as_bytes()).unwrap();
    let file = file.to_str().unwrap();
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let secrets = [("CORP_SECRET", Path::new("secret")), ("CORP_KEY", Path::new(&key))];
    let check = run(&["--config", file, "check"], "", &secrets);
    assert!(check.status.success(), "{check:?}");

    File::create(file)
        .unwrap()
        .write_all(short.replace("/run/user/1000", home.path().to_str().unwrap()).as_bytes())
        .unwrap();
    let check = run(&["--config", file, "check"], "", &[("HOME", home.path())]);
    assert!(check.status.success(), "{check:?}");

    let read: toml::Table = toml.parse().unwrap();
    let tables: [&[&str]; 7] = [
        &["store"],
        &["refresh"],
        &["logins"],
        &["audit"],
        &["limits"],
        &["sockets", "agents"],
        &["providers", "corp"],
    ];
    for table in tables {
        // What one provider cannot have all at once is named at another.
        let group = read[table[0]].as_table().unwrap();
        let named = |key: &str| match table.len() {
            1 => group.contains_key(key),
            _ => group.values().any(|table| table.as_table().unwrap().contains_key(key)),
        };
        let broken = format!("{here}\n[{}.canary]\n", table.join("."));
        File::create(file).unwrap().write_all(broken.as_bytes()).unwrap();
        let refused = run(&["--config", file, "check"], "", &[]);
        let message = String::from_utf8(refused.stderr).unwrap();
        let (_, known) = message.trim_end().split_once("known here: ").unwrap_or_else(|| panic!("{message}"));
        let missing: Vec<&str> = known.split(", ").filter(|key| !named(key)).collect();
        assert!(missing.is_empty(), "not in docs/configuration.md: {missing:?}");
    }
}

#[test]
fn the_page_on_providers_has_every_preset_as_it_is() {
    let rows: Vec<Vec<&str>> = PROVIDERS
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    let quoted = |cell: &'static str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let names: Vec<&str> = presets().map(|preset| preset.name).collect();
    // Lines are broken anywhere.
    let prose = PROVIDERS.replace('\n', " ");
    let (first, second) = rows.split_at(names.len());
    for (preset, row) in presets().zip(first) {
        assert_eq!(quoted(row[0]), [preset.name]);
        assert_eq!(quoted(row[1]), preset.needs, "{}", preset.name);
        let flows: Vec<&str> = preset.flows.iter().map(|flow| flow.name()).collect();
        assert_eq!(row[2], flows.join(", "), "{}", preset.name);
        assert_eq!(quoted(row[3]), preset.keys, "{}", preset.name);
        for variable in preset.variables.iter().filter(|variable| variable.default.is_some()) {
            assert!(prose.contains(&format!("`{}` of `{}`", variable.name, preset.name)), "{variable:?}");
        }
    }
    assert_eq!(second.iter().flat_map(|row| quoted(row[0])).collect::<Vec<_>>(), names);
    let cells = |row: &Vec<&str>| row.len() == 4 && row.iter().all(|cell| !cell.is_empty());
    assert!(second.iter().all(cells), "an empty cell");
}

#[test]
fn the_table_of_the_api_is_that_of_the_contract() {
    let contract: Value = serde_norway::from_str(include_str!("../../openapi.yaml")).unwrap();
    let mut told: Vec<(String, String, String)> = rows(API, "Operations")
        .iter()
        .map(|row| {
            let (method, path) = row[0].trim_matches('`').split_once(' ').unwrap();
            (path.to_owned(), method.to_lowercase(), row[1].trim_matches('`').to_owned())
        })
        .collect();
    let mut contained = Vec::new();
    for (path, item) in contract["paths"].as_object().unwrap() {
        let operations = item.as_object().unwrap().iter().filter(|(_, value)| value["operationId"].is_string());
        contained.extend(operations.map(|(method, operation)| {
            (path.clone(), method.clone(), operation["operationId"].as_str().unwrap().to_owned())
        }));
    }
    told.sort();
    contained.sort();
    assert_eq!(told, contained);
}

#[test]
fn the_codes_and_their_statuses_are_those_of_the_contract() {
    let contract: Value = serde_norway::from_str(include_str!("../../openapi.yaml")).unwrap();
    let mut answered = BTreeMap::<String, BTreeSet<u64>>::new();
    for answer in contract["components"]["responses"].as_object().unwrap().values() {
        let content = &answer["content"]["application/problem+json"];
        let several = content["examples"].as_object().into_iter().flatten().map(|(_, example)| &example["value"]);
        for problem in several.chain(content.get("example")) {
            let (code, status) = (problem["code"].as_str().unwrap(), problem["status"].as_u64().unwrap());
            answered.entry(code.to_owned()).or_default().insert(status);
        }
    }
    let mut told = BTreeMap::<String, BTreeSet<u64>>::new();
    for row in rows(API, "Refusals") {
        let codes: Vec<&str> = row[0].split(", ").map(|code| code.trim_matches('`')).collect();
        let statuses: Vec<u64> = row[1].split(", ").map(|status| status.parse().unwrap()).collect();
        for (at, code) in codes.iter().enumerate() {
            // Several codes in one row have a status each.
            let own = if codes.len() == 1 { &statuses[..] } else { &statuses[at..=at] };
            assert!(told.insert((*code).to_owned(), own.iter().copied().collect()).is_none(), "{code} is there twice");
        }
    }
    assert_eq!(told, answered);
}

#[test]
fn what_the_pages_link_to_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec![root.join("README.md")];
    pages.extend(std::fs::read_dir(root.join("docs")).unwrap().map(|page| page.unwrap().path()));
    let (mut missing, mut links) = (Vec::new(), 0);
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
        for target in targets.filter(|target| !target.contains("://")) {
            links += 1;
            let (file, heading) = target.split_once('#').unwrap_or((target, ""));
            let linked = if file.is_empty() { page.clone() } else { page.parent().unwrap().join(file) };
            let found = std::fs::read_to_string(linked).is_ok_and(|text| {
                heading.is_empty() || text.lines().any(|line| line.starts_with('#') && anchor(line) == heading)
            });
            if !found {
                missing.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(missing.is_empty() && links > 20, "{links} links, missing: {missing:?}");
}

/// `NAME`, `TAG` and `COMMAND` stand for what a recipe makes.
#[test]
fn the_files_that_the_guides_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guides = [include_str!("../../docs/architecture.md"), include_str!("../../docs/contributing.md")];
    let quoted = guides.iter().flat_map(|guide| guide.split('`').skip(1).step_by(2));
    let top = |text: &&str| ["src/", "tests/", "docs/", "fuzz/"].iter().any(|folder| text.starts_with(folder));
    let made = |text: &&str| ["NAME", "TAG", "COMMAND"].iter().any(|made| text.contains(made));
    let named: Vec<&str> = quoted.filter(top).filter(|text| !made(text)).collect();
    let missing: Vec<_> = named.iter().filter(|path| !root.join(path).exists()).collect();
    assert!(missing.is_empty() && named.len() > 30, "{} named, missing: {missing:?}", named.len());
}

/// What a heading is linked to by.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
    text.chars().filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).collect()
}

/// `serve --dev`; killed with this value.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// What one `curl -i` shows.
struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Answer {
    fn of(line: &str) -> Self {
        let output = Command::new("sh").args(["-c", line]).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{line}: {text}"));
        assert!(body.ends_with("}\n"), "{body}");
        Self {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head: head.to_owned(),
            body: serde_json::from_str(body).unwrap(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// The names of its headers and members, in their order.
    fn form(&self) -> (u16, Vec<String>, Vec<String>) {
        let headers = self.head.lines().skip(1).map(|line| line.split(':').next().unwrap().to_owned());
        let mut members: Vec<String> = self.body.as_object().unwrap().keys().cloned().collect();
        members.sort();
        (self.status, headers.filter(|name| name != "date" && name != "content-length").collect(), members)
    }
}

/// The answers in the README, by their requests.
fn shown() -> Vec<(&'static str, Answer)> {
    let console = section(README, "Sixty seconds").split("```console\n").nth(1).unwrap().split("\n```").next().unwrap();
    let exchanges = console.split("\n\n$ ").filter(|exchange| exchange.contains("HTTP/1.1 "));
    let answer = |exchange: &'static str| {
        let (line, answer) = exchange.split_once('\n').unwrap();
        let (head, body) = answer.split_once("\n\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (
            line.trim_start_matches("$ "),
            Answer { status, head: head.to_owned(), body: serde_json::from_str(body).unwrap() },
        )
    };
    exchanges.map(answer).collect()
}

#[test]
fn the_lines_of_serve_dev_work_as_printed_and_as_the_readme_shows() {
    let home = tempfile::Builder::new().prefix("cp-").tempdir().unwrap();
    DirBuilder::new().mode(0o700).create(home.path().join("run")).unwrap();
    let mut child = Command::new(PROGRAM)
        .args(["serve", "--dev"])
        .env_clear()
        .env("XDG_RUNTIME_DIR", home.path().join("run"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let _dev = Dev(child);
    // The status line is the last; the program prints it once it listens.
    let mut lines = Vec::new();
    for line in BufReader::new(stdout).lines() {
        lines.push(line.unwrap());
        if lines.last().is_some_and(|line| line.ends_with(" status")) {
            break;
        }
    }
    let socket = home.path().join("run/credproxy/dev/credproxy.sock");
    let status = Command::new("sh").args(["-c", lines.last().unwrap()]).output().unwrap();
    assert!(status.status.success() && status.stdout.starts_with(b"ACCOUNT "), "{status:?}");

    // A misspelt provider is told of when it is stored.
    let named = [("CREDPROXY_SOCKET", socket.as_path())];
    let import = run(&["import", "typo"], r#"{"access_token": "at"}"#, &named);
    let note = String::from_utf8(import.stderr).unwrap();
    assert!(import.status.success() && note.contains("warning: no provider typo is configured"), "{note}");
    let import = run(&["import", "dev/second"], r#"{"access_token": "at"}"#, &named);
    let note = String::from_utf8(import.stderr).unwrap();
    assert!(note.contains("\nstored a grant for dev/second\n") && !note.contains("warning: "), "{note}");

    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        skip("in part: the lines with curl need curl");
        return;
    }
    let curls: Vec<&str> = lines.iter().map(String::as_str).filter(|line| line.starts_with("curl ")).collect();
    let answers: Vec<Answer> = curls.iter().map(|line| Answer::of(line)).collect();
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 429, 401, 200]);
    assert_ne!(answers[0].body["access_token"], answers[1].body["access_token"]);
    assert_eq!(answers[2].header("retry-after").unwrap(), answers[2].body["retryAfter"].to_string());
    assert_eq!(answers[3].body["code"], "REAUTH_REQUIRED");
    assert_eq!(answers[4].body["tokens"].as_array().unwrap().len(), 4);

    let shown = shown();
    assert_eq!(shown.len(), 4);
    for ((line, shown), (printed, answer)) in shown.iter().zip(curls.iter().zip(&answers)) {
        let here = printed.replace(socket.to_str().unwrap(), "/run/user/1000/credproxy/dev/credproxy.sock");
        assert_eq!(*line, here);
        assert_eq!(shown.form(), answer.form(), "{line}");
    }
}
