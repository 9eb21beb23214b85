//! A configuration: as a whole file, and as a value in each place of a valid one. Errors are one line, and never hold
//! a value.

#![no_main]

use credproxy::fuzzing::configuration;
use libfuzzer_sys::fuzz_target;

const MARK: &str = "canary";

/// Places for a value.
const PLACES: &[&str] = &[
    "[store]\nurl = ",
    "[store]\nkey = ",
    "store = ",
    "[refresh]\ncooldown = ",
    "[refresh]\nrequest_timeout = ",
    "[sockets.a]\nrole = \"host\"\npath = ",
    "[sockets.a]\npath = \"/s\"\nrole = ",
    "[sockets.a]\npath = \"/s\"\nrole = \"host\"\nuids = ",
    "[sockets.a]\npath = \"/s\"\nrole = \"sandbox\"\nallow = ",
    "[sockets.a]\npath = \"/s\"\nrole = \"sandbox\"\noperations = ",
    "[providers.corp]\nclient_id = \"me\"\nissuer = ",
    "[providers.corp]\nclient_id = \"me\"\ntoken_endpoint = ",
    "[providers.corp]\nclient_id = \"me\"\nissuer = \"https://a\"\nrevocation_endpoint = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nclient_secret = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nclient_secret.env = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nclient_secret.file = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nclient_secret.command = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nclient_auth = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nrequest_format = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nscopes = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nexpose = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\ndead_grant_codes = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nreuse_grace = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nca_file = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nrefresh_endpoint = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nmember_names.scope = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nanswer_path = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nheaders.X-A = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nrequests.token.params.x = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nrequests.refresh.headers.X-A = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nscope_separator = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nsend_scope_on_refresh = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nresource = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\ndefault_lifetime = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nexpires_in_unit = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nsecond_exchange = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\ndead_grant_statuses = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nclient_key = ",
    "[providers.corp]\nissuer = \"https://a\"\nclient_id = \"me\"\nclient_key.env = \"A\"\nclient_key_algorithm = ",
    "[providers.corp]\nclient_id = \"me\"\npreset = ",
    "[providers.corp]\nclient_id = \"me\"\npreset = \"keycloak\"\nvariables = ",
    "[providers.corp]\nclient_id = \"me\"\npreset = \"keycloak\"\nvariables.realm = ",
    "[providers.corp]\nclient_id = \"me\"\npreset = \"aws-sso\"\nclient_secret.env = \"X\"\nrequests = ",
];

/// Whether a key holds the mark: keys are named in errors.
fn key_holds_mark(value: &toml::Value) -> bool {
    match value {
        toml::Value::Table(table) => table.iter().any(|(key, value)| key.contains(MARK) || key_holds_mark(value)),
        toml::Value::Array(values) => values.iter().any(key_holds_mark),
        _ => false,
    }
}

fn check(text: &str) {
    let Err(error) = configuration(text) else { return };
    let message = error.to_string();
    assert!(!message.contains(char::is_control), "{message:?}");
    let key = text.parse().is_ok_and(|table| key_holds_mark(&toml::Value::Table(table)));
    assert!(key || !message.contains(MARK) && !format!("{error:?}").contains(MARK), "{message}");
}

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    check(text);
    let Some((place, value)) = input.split_first() else { return };
    let Some(place) = PLACES.get(usize::from(*place)) else { return };
    let Ok(value) = std::str::from_utf8(value) else { return };
    let quoted = toml::Value::String(format!("{value}{MARK}")).to_string();
    check(&format!("{place}{quoted}\n"));
    check(&format!("{place}[{quoted}]\n"));
    check(&format!("{place}[\"ok\", [{quoted}]]\n"));
    check(&format!("{place}{value}\n"));
});
