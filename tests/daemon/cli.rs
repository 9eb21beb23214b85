//! The program as a person or a script meets it, without a daemon.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Output, Stdio},
    thread,
};

use serde_json::{Value, json};

/// Runs the program in an environment that holds nothing, with `input` on its standard input.
fn credproxy(arguments: &[&str], input: &str) -> Output {
    credproxy_in(&[], arguments, input)
}

fn credproxy_in(env: &[(&str, &str)], arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_credproxy"))
        .args(arguments)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that has ended before it read everything is no failure of the test's.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> &str {
    str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    str::from_utf8(&output.stderr).unwrap()
}

fn file(directory: &Path, text: &str) -> String {
    let path = directory.join("x.toml");
    File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn help_and_version_are_data() {
    let help = credproxy(&["--help"], "");
    assert_eq!((help.status.code(), stderr(&help)), (Some(0), ""));
    for text in [
        "serve",
        "token",
        "refresh",
        "status",
        "import",
        "key",
        "login",
        "logout",
        "check",
        "providers",
        "Exit codes:",
        "REAUTH_REQUIRED",
    ] {
        assert!(stdout(&help).contains(text), "{text}");
    }
    let version = credproxy(&["--version"], "");
    assert_eq!(version.status.code(), Some(0));
    assert_eq!(stdout(&version), format!("credproxy {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["token"],
        &["token", "a/b/c"],
        &["login", "corp", "--flow", "magic"],
        &["token", "corp", "--min-validity", "soon"],
        &["--socket", "/nowhere/s", "token", "corp/work", "--bucket", "work"],
    ] {
        let output = credproxy(arguments, "");
        assert_eq!((output.status.code(), stdout(&output)), (Some(2), ""), "{arguments:?}");
        assert!(!stderr(&output).is_empty(), "{arguments:?}");
    }
}

#[test]
fn an_unreachable_daemon_has_its_own_exit_code_and_a_hint() {
    for command in [
        &["token", "corp"][..],
        &["refresh", "corp"],
        &["status"],
        &["login", "corp"],
        &["logout", "corp"],
        &["import", "corp"],
        &["key", "list"],
        &["key", "set", "openai"],
        &["key", "get", "openai"],
    ] {
        let grant = r#"{"access_token": "canary"}"#;
        let output = credproxy(&[&["--socket", "/nowhere/s"], command].concat(), grant);
        assert_eq!((output.status.code(), stdout(&output)), (Some(5), ""), "{command:?}");
        let expected = "error: cannot reach the daemon at /nowhere/s: No such file or directory (os error 2)\n\
            hint: start it with `credproxy serve`, or name its socket with --socket\n";
        assert!(stderr(&output).ends_with(expected), "{command:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("canary"), "{command:?}");
    }
}

#[test]
fn a_broken_configuration_is_named_by_file_line_and_key_and_never_quoted() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(
        directory.path(),
        "[providers.corp]\nissuer = \"https://example.com\"\nclient_id = \"me\"\nclient_secret = \"canary\"\n",
    );
    for command in [&["status"][..], &["token", "corp"], &["serve"], &["check"]] {
        let output = credproxy_in(&[("HOME", "/nowhere")], &[&["--config", &path], command].concat(), "");
        assert_eq!((output.status.code(), stdout(&output)), (Some(2), ""), "{command:?}");
        let expected = format!("error: {path}:4: providers.corp.client_secret: must be one of ");
        assert!(stderr(&output).starts_with(&expected), "{command:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("canary"), "{command:?}");
    }
}

#[test]
fn check_says_why_a_secret_cannot_be_had_and_a_socket_not_offered() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s".repeat(108));
    let path = file(
        directory.path(),
        "[providers.corp]\nissuer = \"https://example.com\"\nclient_id = \"me\"\nclient_secret = { env = \"UNSET\" }\n",
    );
    let home = directory.path().to_str().unwrap();
    let arguments = ["--config", &path, "--socket", socket.to_str().unwrap(), "check"];
    let output = credproxy_in(&[("HOME", home)], &arguments, "");
    assert_eq!((output.status.code(), stderr(&output)), (Some(1), ""));
    for expected in [
        "wrong  provider corp  the environment variable named by client_secret.env is not set\n",
        &format!("wrong  socket host    the path {} has ", socket.display()),
    ] {
        assert!(stdout(&output).contains(expected), "{}", stdout(&output));
    }
}

const PRESETS: &str = "[providers.gh]\npreset = \"github\"\nclient_id = \"me\"\n\
    [providers.work]\npreset = \"github\"\nclient_id = \"me\"\nvariables = { host = \"git.example.com\" }\n\
    [providers.corp]\nissuer = \"https://example.com\"\nclient_id = \"me\"\n";

#[test]
fn the_presets_are_listed_with_what_they_need_and_who_uses_them() {
    let directory = tempfile::tempdir().unwrap();
    let home = [("HOME", directory.path().to_str().unwrap())];
    let path = file(directory.path(), PRESETS);
    let listed = credproxy_in(&home, &["--config", &path, "providers"], "");
    assert_eq!(listed.status.code(), Some(0), "{}", stderr(&listed));
    let row = |name: &str| {
        let line = stdout(&listed).lines().find(|line| line.starts_with(&format!("{name} "))).expect(name);
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(row("PRESET"), ["PRESET", "FLOWS", "NEEDS", "USED BY"]);
    assert_eq!(row("github"), ["github", "browser, paste, device", "client_id", "gh, work"]);
    assert_eq!(row("okta"), ["okta", "browser, paste, device", "client_id, variables.domain", "-"]);

    // Without any configuration the list is the same, but for who uses them.
    let plain = credproxy_in(&home, &["providers", "--json"], "");
    let listed: Value = serde_json::from_str(stdout(&plain)).unwrap();
    let github = listed["presets"].as_array().unwrap().iter().find(|preset| preset["name"] == "github").unwrap();
    assert_eq!(
        (&github["flows"], &github["needs"], &github["used_by"]),
        (&json!(["browser", "paste", "device"]), &json!(["client_id"]), &json!([]))
    );
    let host = json!({
        "name": "host",
        "about": "github.com, or the host of a GitHub Enterprise Server",
        "default": "github.com",
    });
    assert_eq!(github["variables"], json!([host]));
}

#[test]
fn check_names_the_preset_of_a_provider() {
    let directory = tempfile::tempdir().unwrap();
    let home = [("HOME", directory.path().to_str().unwrap())];
    let notes = "[providers.notes]\npreset = \"github\"\nclient_id = \"me\"\nclient_secret = { env = \"UNSET\" }\n";
    let path = file(directory.path(), &format!("{PRESETS}{notes}"));
    let found = credproxy_in(&home, &["--config", &path, "check"], "");
    for expected in [
        "ok     provider corp   configured\n",
        "ok     provider gh     configured (preset github)\n",
        "wrong  provider notes  the environment variable named by client_secret.env is not set (preset github)\n",
    ] {
        assert!(stdout(&found).contains(expected), "{}", stdout(&found));
    }
}

#[test]
fn a_configuration_that_is_not_there_is_named() {
    let output = credproxy(&["--config", "/nowhere/x.toml", "status"], "");
    assert_eq!(output.status.code(), Some(2));
    let expected = "error: the configuration /nowhere/x.toml cannot be read: No such file or directory (os error 2)\n";
    assert_eq!(stderr(&output), expected);
}

#[test]
fn without_a_home_the_error_says_what_to_set() {
    let output = credproxy(&["status"], "");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("HOME is not set"), "{}", stderr(&output));
}

#[test]
fn what_is_no_grant_is_refused_before_anybody_is_asked_and_never_quoted() {
    let long = format!("{{\"canary\": \"{}\"}}", "x".repeat(256 * 1024));
    for input in ["", "canary", "[\"canary\"]", "{\"access_token\": canary}", "{\"token\": \"canary\"}", &long] {
        let output = credproxy(&["--socket", "/nowhere/s", "import", "corp"], input);
        assert_eq!((output.status.code(), stdout(&output)), (Some(1), ""));
        let message = stderr(&output);
        assert!(message.starts_with("error: standard input ") && message.contains("\nhint: "), "{message}");
        assert!(!message.contains("canary"), "{message}");
    }
}

#[test]
fn a_client_in_a_sandbox_needs_no_more_than_the_socket_in_its_environment() {
    let output = credproxy_in(&[("CREDPROXY_SOCKET", "/nowhere/named")], &["token", "corp"], "");
    assert_eq!(output.status.code(), Some(5));
    assert!(stderr(&output).contains("/nowhere/named"), "{}", stderr(&output));
}

/// Runs the program against a socket that gives one answer, its standard output going to `stdout`.
fn answered(body: &str, arguments: &[&str], stdout: Stdio) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    // Not waited for: a program that never connects is to fail the test, not to hang it.
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // The head of a request without a body comes in one piece.
        assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_credproxy"))
        .args(arguments)
        .env_clear()
        .env("CREDPROXY_SOCKET", &socket)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut printed = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut printed).unwrap();
    }
    Output { stdout: printed, ..child.wait_with_output().unwrap() }
}

const TOKEN: &str = r#"{"access_token":"at-1","token_type":"Bearer","expiry":4000000000,"account_id":"me"}"#;

#[test]
fn an_access_token_is_printed_alone_and_only_when_it_is_asked_for() {
    let token = answered(TOKEN, &["token", "corp"], Stdio::piped());
    assert_eq!((token.status.code(), stdout(&token), stderr(&token)), (Some(0), "at-1\n", ""));

    let refresh = answered(TOKEN, &["refresh", "corp"], Stdio::piped());
    assert_eq!((refresh.status.code(), stdout(&refresh)), (Some(0), ""));
    assert!(stderr(&refresh).starts_with("refreshed; expires in ") && !stderr(&refresh).contains("at-1"));

    for command in ["token", "refresh"] {
        let json = answered(TOKEN, &[command, "corp", "--json"], Stdio::piped());
        let shown: Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(shown, serde_json::from_str::<Value>(TOKEN).unwrap(), "{command}");
    }

    let logout = answered(r#"{"revoked":true}"#, &["logout", "corp"], Stdio::piped());
    let told = "logged out of corp/default; the provider has revoked the grant\n";
    assert_eq!((logout.status.code(), stdout(&logout), stderr(&logout)), (Some(0), "", told));
}

#[test]
fn a_reader_that_hangs_up_is_no_failure_and_a_full_disk_is_one() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = answered(TOKEN, &["token", "corp"], writer.into());
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""));

    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = answered(TOKEN, &["token", "corp"], full.into());
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output), "error: cannot write to standard output: No space left on device (os error 28)\n");

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let help = Command::new(env!("CARGO_BIN_EXE_credproxy")).arg("--help").env_clear().stdout(writer).output().unwrap();
    assert_eq!((help.status.code(), stderr(&help)), (Some(0), ""));
}
