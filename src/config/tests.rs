use std::{io::Write as _, path::Path, time::Duration};

use super::*;
use crate::policy::Operation;
use crate::provider::{ClientAuth, RequestFormat};

const PROVIDER: &str = "[providers.corp]\nissuer = \"https://login.example.com\"\nclient_id = \"me\"\n";

fn environment() -> Environment {
    Environment::of([("HOME", "/home/me"), ("XDG_RUNTIME_DIR", "/run/user/1")])
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("/etc/x.toml"), text, &environment())
}

#[test]
fn no_file_is_a_valid_configuration() {
    let config = Config::load(None, &environment()).unwrap();
    assert_eq!(config.store.path, Path::new("/home/me/.local/share/credproxy/credproxy.db"));
    assert_eq!(config.store.key_file, Path::new("/home/me/.local/share/credproxy/store.key"));
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
    fs::create_dir_all(&directory).unwrap();
    fs::File::create(directory.join("config.toml")).unwrap().write_all(b"[refresh]\ncooldown = \"5s\"\n").unwrap();
    let env = Environment::of([("HOME", home.path())]);
    assert_eq!(Config::load(None, &env).unwrap().refresh.cooldown, Duration::from_secs(5));
}

#[test]
fn every_key_of_this_version_is_read() {
    let config = parse(
        r#"
[store]
url = "sqlite:///srv/credproxy/grants.db"
key = "file"

[refresh]
cooldown = "0s"
request_timeout = "10s"

[logins]
lifetime = "5m"

[sockets.host]
path = "/run/a.sock"
role = "host"
uids = [0, 1000]

[sockets.agents]
path = "/run/b.sock"
role = "sandbox"
allow = ["anthropic", "github/work", "corp/*"]
operations = ["read"]

[providers.corp]
issuer = "https://login.example.com/"
token_endpoint = "https://login.example.com/token?tenant=1"
authorization_endpoint = "https://login.example.com/authorize"
device_authorization_endpoint = "http://127.0.0.1:9/device"
revocation_endpoint = "http://[::1]/revoke"
client_id = "me"
client_secret = { env = "CORP_SECRET" }
client_auth = "basic_raw"
request_format = "json"
scopes = ["openid", "offline_access"]
redirect_uri = "http://localhost:1455/auth/callback"
pkce = false
device_pkce = true
expose = ["tenant_id"]
dead_grant_codes = ["bad_refresh_token"]
reuse_grace = "30s"
ca_file = "/etc/ca.pem"

[providers.public]
token_endpoint = "http://localhost:8080/token"
client_id = "me"
client_auth = "none"

[providers.posting]
token_endpoint = "https://example.com/token"
client_id = "me"
client_secret.command = "pass corp"
"#,
    )
    .unwrap();
    assert_eq!(config.store.path, Path::new("/srv/credproxy/grants.db"));
    assert_eq!(config.store.key_file, Path::new("/srv/credproxy/store.key"));
    assert_eq!(config.refresh, RefreshConfig { cooldown: Duration::ZERO, request_timeout: Duration::from_secs(10) });
    assert_eq!(config.logins.lifetime, Duration::from_mins(5));
    let allow = ["anthropic", "github/work", "corp/*"].map(|text| text.parse().unwrap()).to_vec();
    let sockets = [
        ("agents", "/run/b.sock", Policy::sandbox(allow, vec![Operation::Read]), vec![]),
        ("host", "/run/a.sock", Policy::host(), vec![0, 1000]),
    ];
    let sockets =
        sockets.map(|(name, path, policy, uids)| SocketConfig { name: name.into(), path: path.into(), policy, uids });
    assert_eq!(config.sockets, sockets);
    let [corp, posting, public] = &config.providers[..] else { panic!("{:?}", config.providers) };
    let url = |text: &str| Some(text.parse().unwrap());
    let expected = ProviderConfig {
        name: "corp".parse().unwrap(),
        issuer: Some("https://login.example.com/".into()),
        token_endpoint: url("https://login.example.com/token?tenant=1"),
        authorization_endpoint: url("https://login.example.com/authorize"),
        device_authorization_endpoint: url("http://127.0.0.1:9/device"),
        revocation_endpoint: url("http://[::1]/revoke"),
        client_id: "me".into(),
        client_secret: Some(SecretSource::Env("CORP_SECRET".into())),
        client_auth: ClientAuth::BasicRaw,
        request_format: RequestFormat::Json,
        scopes: vec!["openid".into(), "offline_access".into()],
        redirect_uri: "http://localhost:1455/auth/callback".parse().unwrap(),
        pkce: false,
        device_pkce: true,
        expose: vec!["tenant_id".into()],
        dead_grant_codes: vec!["bad_refresh_token".into()],
        reuse_grace: Duration::from_secs(30),
        ca_file: Some("/etc/ca.pem".into()),
    };
    assert_eq!(*corp, expected);
    assert_eq!((public.client_auth, &public.client_secret), (ClientAuth::None, &None));
    assert_eq!(posting.client_auth, ClientAuth::Post);
    assert_eq!(posting.client_secret, Some(SecretSource::Command("pass corp".into())));
}

/// Text, and the error without the file's name.
const BROKEN: &[(&str, &str)] = &[
    ("[store]\nurl = \"postgres://canary@db/x\"", "2: store.url: must be sqlite:// and an absolute path"),
    ("[store]\nurl = \"sqlite://canary.db\"", "2: store.url: must be sqlite://"),
    ("[store]\nurl = \"sqlite:///a%20canary\"", "2: store.url: must be sqlite://"),
    ("[store]\nkey = \"command:canary\"", "2: store.key: must be \"file\""),
    ("[store]\n\nkay = \"canary\"", "3: store.kay: unknown key"),
    ("store = \"canary\"", "1: store: must be a table"),
    ("[renewal]\nmode = \"used\"", "1: renewal: unknown key"),
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
    ("[sockets.a]\npath = \"/s\"\nrole = \"sandbox\"\nkeys = [\"canary\"]", "4: sockets.a.keys: unknown key"),
    ("[sockets.a]\npath = \"/s\"\nrole = \"host\"\nuids = [-1]", "4: sockets.a.uids: must be a whole number"),
    ("[sockets.a]\npath = \"/s\"\nrole = \"host\"\nuids = \"canary\"", "4: sockets.a.uids: must be a list"),
    (
        "[sockets.a]\npath = \"/s\"\nrole = \"host\"\n[sockets.b]\npath = \"/s\"\nrole = \"host\"",
        "5: sockets.b.path: is the path of the socket a too",
    ),
    ("[providers.\"-x\"]", "1: providers.-x: a name starts with"),
    ("[providers.\"refresh_token\"]", "1: providers.refresh_token: a name must not hold"),
    ("[providers.a]\nclient_id = \"canary\"", "1: providers.a: needs an issuer or a token_endpoint"),
    ("[providers.a]\nissuer = \"https://a\"", "1: providers.a.client_id: is missing"),
    (
        "[providers.a]\nissuer = \"https://a\"\nclient_id = \"\"",
        "3: providers.a.client_id: must be a string that is not empty",
    ),
    ("[providers.a]\nissuer = \"https://a/?canary\"", "2: providers.a.issuer: must have no query"),
    ("[providers.a]\nissuer = \"canary\"", "2: providers.a.issuer: must be an absolute URL"),
    ("[providers.a]\ntoken_endpoint = 7", "2: providers.a.token_endpoint: must be a string"),
    (
        "[providers.a]\ntoken_endpoint = \"http://example.com/canary\"",
        "2: providers.a.token_endpoint: must be https unless the host is loopback",
    ),
    (
        "[providers.a]\ntoken_endpoint = \"http://127.0.0.1.example.com\"",
        "2: providers.a.token_endpoint: must be https",
    ),
    ("[providers.a]\ntoken_endpoint = \"ftp://127.0.0.1/canary\"", "2: providers.a.token_endpoint: must be https"),
    ("[providers.a]\ntoken_endpoint = \"https://canary@a/\"", "2: providers.a.token_endpoint: must hold no user name"),
    ("[providers.a]\ntoken_endpoint = \"https://:canary@a/\"", "2: providers.a.token_endpoint: must hold no user name"),
    ("[providers.a]\ntoken_endpoint = \"https://a/#canary\"", "2: providers.a.token_endpoint: must have no fragment"),
];

/// Lines that follow [`PROVIDER`], and the error without the file's name.
const BROKEN_PROVIDER: &[(&str, &str)] = &[
    ("preset = \"canary\"", "4: providers.corp.preset: unknown key"),
    ("client_secret = \"canary\"", "4: providers.corp.client_secret: must be one of { env = \"NAME\" }"),
    ("client_secret = { canary = \"x\" }", "4: providers.corp.client_secret: must be one of"),
    ("client_secret = { env = \"A\", canary = \"x\" }", "4: providers.corp.client_secret: must be one of"),
    ("client_secret = { env = \"A\", file = \"/canary\" }", "4: providers.corp.client_secret: must be one of"),
    (
        "client_secret = { env = \"s3cret-canary\" }",
        "4: providers.corp.client_secret.env: must be the name of a variable",
    ),
    ("client_secret = { file = \"canary\" }", "4: providers.corp.client_secret.file: must be an absolute path"),
    ("client_secret = { command = [\"canary\"] }", "4: providers.corp.client_secret.command: must be a string"),
    (
        "client_secret = { env = \"A\" }\nclient_auth = \"none\"",
        "5: providers.corp.client_auth: is \"none\", but there is",
    ),
    ("client_auth = \"post\"", "4: providers.corp.client_auth: needs a client_secret"),
    ("client_auth = \"private_key_jwt\"", "4: providers.corp.client_auth: private_key_jwt is not in this version"),
    ("client_auth = \"canary\"", "4: providers.corp.client_auth: must be \"none\""),
    ("request_format = \"canary\"", "4: providers.corp.request_format: must be \"form\" or \"json\""),
    ("scopes = [\"canary canary\"]", "4: providers.corp.scopes: one scope has no space"),
    ("redirect_uri = \"http://canary.example\"", "4: providers.corp.redirect_uri: must be an https, loopback http"),
    ("pkce = \"canary\"", "4: providers.corp.pkce: must be true or false"),
    ("device_pkce = 1", "4: providers.corp.device_pkce: must be true or false"),
    ("expose = [\"my_Refresh_Token\"]", "4: providers.corp.expose: this member never leaves"),
    ("dead_grant_codes = [\"<canary>\"]", "4: providers.corp.dead_grant_codes: an error code has"),
    ("dead_grant_codes = [\"\"]", "4: providers.corp.dead_grant_codes: must be a string that is not empty"),
    ("reuse_grace = \"1day\"", "4: providers.corp.reuse_grace: must be from 0s to 1h"),
    ("ca_file = \"canary.pem\"", "4: providers.corp.ca_file: must be an absolute path"),
];

fn refused(text: &str) -> String {
    let error = parse(text).expect_err(text);
    assert!(!format!("{error:?}").replace("a canary", "").contains("canary"), "{error:?}");
    error.to_string()
}

#[test]
fn a_broken_file_is_refused_by_line_and_key_without_its_value() {
    let provider = BROKEN_PROVIDER.iter().map(|(text, expected)| (format!("{PROVIDER}{text}\n"), *expected));
    for (text, expected) in BROKEN.iter().map(|(text, expected)| ((*text).to_owned(), *expected)).chain(provider) {
        let message = refused(&text);
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
        client_socket(explicit.map(Path::new), file, env).unwrap().display().to_string()
    };
    assert_eq!(find(Some("given"), None, &named), "given");
    assert_eq!(find(None, Some(file.path()), &named), "/named");
    assert_eq!(find(None, Some(file.path()), &environment()), "/configured");
    assert_eq!(find(None, None, &environment()), "/run/user/1/credproxy/host/credproxy.sock");
    let relative = Environment::of([("CREDPROXY_SOCKET", "canary")]);
    let error = client_socket(None, None, &relative).unwrap_err().to_string();
    assert_eq!(error, "the environment variable CREDPROXY_SOCKET is not an absolute path");
}
