use std::{io::Write as _, path::Path, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    limits::{LoginLimits, Rate, SocketLimits},
    policy::{Allowed, Operation, Policy},
};

fn environment() -> Environment {
    Environment::of([("HOME", "/home/me"), ("XDG_RUNTIME_DIR", "/run/user/1")])
}

pub(super) fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/etc/x.toml"), text, &environment())
}

#[test]
fn no_file_is_a_valid_configuration() {
    let config = Config::load(None, &environment()).unwrap();
    assert_eq!(config.store.path, Path::new("/home/me/.local/share/credproxy/credproxy.db"));
    assert_eq!(config.store.key, KeySource::File("/home/me/.local/share/credproxy/store.key".into()));
    assert_eq!(config.refresh.cooldown, Duration::from_secs(30));
    assert_eq!(config.refresh.request_timeout, Duration::from_secs(15));
    assert_eq!(config.logins.lifetime, Duration::from_mins(10));
    assert!(config.providers.is_empty());
    let [host] = &config.sockets[..] else { panic!("{:?}", config.sockets) };
    assert_eq!((host.name.as_str(), host.policy.role()), ("host", Role::Host));
    assert_eq!(host.path, Path::new("/run/user/1/credproxy/host/credproxy.sock"));
    assert!(host.uids.is_empty());
}

#[test]
fn a_file_that_was_asked_for_must_be_there() {
    let error = Config::load(Some(Path::new("/nowhere/x.toml")), &environment()).unwrap_err();
    assert_eq!(error.to_string(), "the configuration /nowhere/x.toml cannot be read");
}

#[test]
fn the_usual_file_is_read() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join(".config/credproxy");
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::File::create(directory.join("config.toml")).unwrap().write_all(b"[refresh]\ncooldown = \"5s\"\n").unwrap();
    let env = Environment::of([("HOME", home.path())]);
    assert_eq!(Config::load(None, &env).unwrap().refresh.cooldown, Duration::from_secs(5));
}

#[test]
fn every_key_of_this_version_is_read() {
    let config = parse(
        r#"
confine = "require"

[store]
url = "sqlite:///srv/credproxy/grants.db"
key = "file"

[refresh]
cooldown = "0s"
request_timeout = "10s"

[logins]
lifetime = "5m"

[limits]
logins = 7
logins_per_socket = 3

[sockets.host]
path = "/run/a.sock"
role = "host"
uids = [0, 1000]
rate = "5/s"
burst = 7

[sockets.agents]
path = "/run/b.sock"
role = "sandbox"
allow = ["anthropic", "github/work", "corp/*"]
operations = ["read"]
keys = ["openai", "me@example.com"]
connections = 10
connections_per_user = 4
rate = "off"
forced_refreshes = 2
"#,
    )
    .unwrap();
    assert_eq!(config.confine, Confinement::Require);
    assert_eq!(config.store.path, Path::new("/srv/credproxy/grants.db"));
    assert_eq!(config.store.key, KeySource::File("/srv/credproxy/store.key".into()));
    assert_eq!(config.refresh, RefreshConfig { cooldown: Duration::ZERO, request_timeout: Duration::from_secs(10) });
    assert_eq!(config.logins.lifetime, Duration::from_mins(5));
    let allow = ["anthropic", "github/work", "corp/*"].map(|text| text.parse().unwrap()).to_vec();
    assert_eq!(config.limits.logins, LoginLimits { total: 7, per_socket: 3 });
    let agents = SocketLimits {
        connections: Some(10),
        connections_per_user: Some(4),
        rate: None,
        forced_refreshes: Some(Rate::per_hour(2)),
    };
    let host = SocketLimits { rate: Some(Rate::per_second(5, 7)), ..SocketLimits::HOST };
    let operations = vec![Operation::Read, Operation::Keys];
    let keys = ["openai", "me@example.com"].map(|text| text.parse().unwrap()).to_vec();
    let sockets = [
        ("agents", "/run/b.sock", Policy::sandbox(Allowed { allow, operations, keys }), vec![], agents),
        ("host", "/run/a.sock", Policy::host(), vec![0, 1000], host),
    ];
    let sockets = sockets.map(|(name, path, policy, uids, limits)| SocketConfig {
        name: name.into(),
        path: path.into(),
        policy,
        uids,
        limits,
    });
    assert_eq!(config.sockets, sockets);
}

/// Text, and the error without the file's name.
const BROKEN: &[(&str, &str)] = &[
    ("[store]\nurl = \"postgres://canary@db/x\"", "2: store.url: must be sqlite:// and an absolute path"),
    ("[store]\nurl = \"sqlite://canary.db\"", "2: store.url: must be sqlite://"),
    ("[store]\nurl = \"sqlite:///a%20canary\"", "2: store.url: must be sqlite://"),
    ("[store]\nkey = \"canary\"", "2: store.key: must be \"file\", \"keyring\""),
    ("[store]\nkey = \"env:can ary\"", "2: store.key: must be \"file\", \"keyring\""),
    ("[store]\n\nkay = \"canary\"", "3: store.kay: unknown key; known here: url, key"),
    ("store = \"canary\"", "1: store: must be a table"),
    (
        "[renewal]\nmode = \"used\"",
        "1: renewal: unknown key; known here: confine, store, refresh, logins, limits, audit, sockets, providers",
    ),
    ("[[providers]]\nname = \"canary\"", "1: providers: must be a table"),
    ("[refresh]\ncooldown = 30", "2: refresh.cooldown: must be a duration in quotes, like \"30s\""),
    ("[refresh]\ncooldown = \"canary\"", "2: refresh.cooldown: must be a duration in quotes"),
    ("[refresh]\ncooldown = \"2h\"", "2: refresh.cooldown: must be from 0s to 1h"),
    ("[refresh]\nrequest_timeout = \"999ms\"", "2: refresh.request_timeout: must be from 1s to 15s"),
    ("[refresh]\nrequest_timeout = \"16s\"", "2: refresh.request_timeout: must be from 1s to 15s"),
    ("\n[sockets.a]\nrole = \"host\"", "2: sockets.a.path: is missing"),
    ("[sockets.a]\npath = \"/s\"", "1: sockets.a.role: is missing"),
    ("[sockets.a]\npath = \"s\"", "2: sockets.a.path: must be an absolute path: a daemon has no directory of its own"),
    (
        "[sockets.a]\npath = \"~/s\"",
        "2: sockets.a.path: must be an absolute path: a daemon has no directory of its own; ~ is not expanded",
    ),
    ("[sockets.a]\npath = \"/s\"\nrole = \"canary\"", "3: sockets.a.role: must be \"host\" or \"sandbox\""),
    ("[sockets.a]\npath = \"/s\"\nrole = \"host\"\nallow = []", "4: sockets.a.allow: only a socket of role"),
    ("[sockets.host]\npath = \"/s\"\nrole = \"sandbox\"", "3: sockets.host.role: the socket of this name"),
    ("[sockets.\"a canary\"]\npath = \"/s\"", "1: sockets.\"a canary\": the name of a socket has"),
    (
        "[sockets.a]\npath = \"/s\"\nrole = \"sandbox\"\nallow = [\n\"ok\",\n\"*\"]",
        "6: sockets.a.allow: must be \"provider\"",
    ),
    (
        "[sockets.a]\npath = \"/s\"\nrole = \"sandbox\"\noperations = [\"write\"]",
        "4: sockets.a.operations: must be \"read\"",
    ),
    ("[sockets.a]\npath = \"/s\"\nrole = \"sandbox\"\nkey = [\"canary\"]", "4: sockets.a.key: unknown key"),
    (
        "[sockets.a]\npath = \"/s\"\nrole = \"sandbox\"\noperations = [\"keys\"]\nkeys = [\"canary\", \"*\"]",
        "5: sockets.a.keys: must be names of API keys",
    ),
    ("[sockets.a]\npath = \"/s\"\nrole = \"host\"\nkeys = []", "4: sockets.a.keys: only a socket of role"),
    ("[sockets.a]\npath = \"/s\"\nrole = \"host\"\nuids = [-1]", "4: sockets.a.uids: must be a whole number"),
    ("[sockets.a]\npath = \"/s\"\nrole = \"host\"\nuids = \"canary\"", "4: sockets.a.uids: must be a list"),
    (
        "[sockets.a]\npath = \"/s\"\nrole = \"host\"\n[sockets.b]\npath = \"/s\"\nrole = \"host\"",
        "5: sockets.b.path: is the path of the socket a too",
    ),
];

pub(super) fn refused(text: &str) -> String {
    let error = parse(text).expect_err(text);
    assert!(!format!("{error:?}").replace("a canary", "").contains("canary"), "{error:?}");
    error.to_string()
}

#[test]
fn a_broken_file_is_refused_by_line_and_key_without_its_value() {
    for (text, expected) in BROKEN {
        let message = refused(text);
        assert!(message.starts_with(&format!("/etc/x.toml:{expected}")), "{text}\n{message}\n{expected}");
    }
}

#[test]
fn a_file_that_is_not_toml_is_refused_by_line_without_its_text() {
    for text in [
        "\nclient_secret = \"canary",
        "\nclient_secret = canary",
        "\nclient_secret canary",
        "\nclient_secret = \"can\" \"canary\"",
        "\n[canary",
        "\nx = { canary",
        "\nx = [\"canary\" \"canary\"]",
        "\nx = \"canary\\q\"",
        "\ncanary = 1\ncanary = 2",
        "\nx = 1\nx.canary = 2",
        "\n[a]\n[a]\nx = \"canary\"",
        "\nx = 1979-canary",
        "\nx = 0xcanary",
        "\n\"canary\"",
        "\nx = '''canary",
    ] {
        let message = refused(text);
        let line = message.strip_prefix("/etc/x.toml:").and_then(|rest| rest.split_once(": not valid TOML: "));
        let (line, problem) = line.unwrap_or_else(|| panic!("{message}"));
        assert!(!problem.is_empty() && matches!(line, "2" | "3"), "{text}: {message}");
    }
}

#[test]
fn a_sandbox_may_read_and_refresh_what_is_allowed_unless_told() {
    let config = parse("[sockets.a]\npath = \"/s\"\nrole = \"sandbox\"\nallow = [\"corp\"]").unwrap();
    let policy = &config.sockets[0].policy;
    let account = "corp".parse().unwrap();
    assert!(policy.permits(Operation::Read, &account) && policy.permits(Operation::Refresh, &account));
    let config = parse("[sockets.a]\npath = \"/s\"\nrole = \"sandbox\"").unwrap();
    assert!(!config.sockets[0].policy.sees(&account));
}

#[test]
fn a_file_that_adds_a_sandbox_keeps_the_hosts_socket() {
    let config = parse("[sockets.z]\npath = \"/s\"\nrole = \"sandbox\"").unwrap();
    let names: Vec<_> = config.sockets.iter().map(|socket| socket.name.as_str()).collect();
    assert_eq!(names, ["host", "z"]);
    assert_eq!(config.host_socket().unwrap().path, Path::new("/run/user/1/credproxy/host/credproxy.sock"));
}

#[test]
fn the_hosts_socket_is_the_one_of_that_name_and_can_be_moved() {
    let text = "[sockets.admin]\npath = \"/a\"\nrole = \"host\"\n";
    assert_eq!(parse(text).unwrap().host_socket().unwrap().name, "admin");
    let mut config = parse(&format!("{text}[sockets.host]\npath = \"/h\"\nrole = \"host\"")).unwrap();
    assert_eq!(config.host_socket().unwrap().name, "host");
    config.move_host_socket(Path::new("/elsewhere")).unwrap();
    assert_eq!(config.host_socket().unwrap().path, Path::new("/elsewhere"));
    assert_eq!(config.sockets[0].path, Path::new("/a"));
}

#[test]
fn a_client_looks_for_its_socket_from_the_nearest_place_to_the_farthest() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[sockets.host]\npath = \"/configured\"\nrole = \"host\"\n").unwrap();
    let named = Environment::of([("CREDPROXY_SOCKET", "/named")]);
    let find = |explicit: Option<&str>, file: Option<&Path>, env: &Environment| {
        client_socket(explicit.map(Path::new), file, env).unwrap().0.display().to_string()
    };
    assert_eq!(find(Some("given"), None, &named), "given");
    assert_eq!(find(None, Some(file.path()), &named), "/named");
    assert_eq!(find(None, Some(file.path()), &environment()), "/configured");
    assert_eq!(find(None, None, &environment()), "/run/user/1/credproxy/host/credproxy.sock");
    let relative = Environment::of([("CREDPROXY_SOCKET", "canary")]);
    let error = client_socket(None, None, &relative).unwrap_err().to_string();
    assert_eq!(error, "the environment variable CREDPROXY_SOCKET is not an absolute path");
}

/// A valid file, in which every value holds the mark that can, and no key does.
const MARKED: &str = r#"
[store]
url = "sqlite:///canary/grants.db"
key = "file"

[refresh]
cooldown = "1s"
request_timeout = '2s'

[sockets.agents]
path = "/run/canary.sock"
role = "sandbox"
uids = [1000]
allow = ["canary", "canary/*"]
operations = ["read", "keys"]
keys = ["canary"]

[providers.corp]
preset = "keycloak"
variables = { realm = "canary.example.com/realms/canary" }
issuer = "https://canary.example.com/"
token_endpoint = "https://canary.example.com/token"
client_id = """
canary
canary"""
client_secret = { command = 'canary "canary"' }
client_auth = "basic"
request_format = "json"
member_names = { scope = "canary" }
answer_path = "canary.canary"
headers = { X-A = "canary" }
requests.token = { params = { x = "canary" }, headers = { X-B = 'canary' } }
scope_separator = ","
resource = ["https://canary.example.com/"]
default_lifetime = "1s"
scopes = ["canary", 'canary']
expose = ["canary"]
dead_grant_codes = ["canary"]
reuse_grace = "1s"
ca_file = "/canary.pem"
"#;

/// Whether the mark has become a part of a key, and keys are named in errors. A text that is no TOML has no keys.
fn marks_a_key(text: &str) -> bool {
    fn within(value: &toml::Value) -> bool {
        let mut members = value.as_table().into_iter().flatten();
        let mut items = value.as_array().into_iter().flatten();
        members.any(|(key, value)| key.contains("canary") || within(value)) || items.any(within)
    }
    text.parse().is_ok_and(|table| within(&toml::Value::Table(table)))
}

fn check(text: &str) -> Result<(), TestCaseError> {
    let Err(error) = parse(text) else { return Ok(()) };
    let message = error.to_string();
    prop_assert!(!message.contains(char::is_control), "{message:?}");
    prop_assert!(message.starts_with("/etc/x.toml:"), "{message}");
    prop_assert!(
        marks_a_key(text) || ![&message, &format!("{error:?}")].iter().any(|shown| shown.contains("canary")),
        "{message}"
    );
    Ok(())
}

const OTHER_KINDS: &[&str] = &[
    "\"canary\"",
    "[\"canary\"]",
    "[[\"canary\"]]",
    "{ a = \"canary\" }",
    "canary",
    "\"canary",
    "1979-canary",
    "0xcanary",
    "\"canary\\q\"",
    "[{ env = \"canary\" }]",
    "'''canary",
    "-canary",
    "truecanary",
    "\"canary\" canary",
];

#[test]
fn the_marked_file_is_valid() {
    parse(MARKED).unwrap();
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,60}|([a-z.\\[\\]={}\"',\n #0-9]|canary){0,60}") {
        check(&text)?;
    }

    #[test]
    fn no_slip_of_the_pen_shows_a_value(
        slips in proptest::collection::vec(
            (any::<proptest::sample::Index>(), 0..3_u8, "[ -~\n]|[\\[\\]={}\"'.,#\n]"), 1..4,
        ),
    ) {
        let mut text = MARKED.to_owned();
        for (at, kind, character) in slips {
            let at = at.index(text.len());
            match kind {
                0 => text.insert_str(at, &character),
                1 => drop(text.remove(at)),
                _ => text.replace_range(at..=at, &character),
            }
        }
        check(&text)?;
    }

    #[test]
    fn no_line_out_of_place_shows_a_value(
        lines in Just(MARKED.lines().collect::<Vec<_>>()).prop_shuffle(), count in 0..25_usize,
    ) {
        check(&lines[..count.min(lines.len())].join("\n"))?;
    }

    #[test]
    fn no_value_of_another_kind_is_shown(
        key in 0..MARKED.lines().count(), value in proptest::sample::select(OTHER_KINDS),
    ) {
        let line = |(number, line): (usize, &str)| match line.split_once(" = ") {
            Some((name, _)) if number == key => format!("{name} = {value}\n"),
            _ => format!("{line}\n"),
        };
        check(&MARKED.lines().enumerate().map(line).collect::<String>())?;
    }
}
