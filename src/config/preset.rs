//! Presets: the configuration that is the same for every client of a well-known provider.
//!
//! Owns: the presets' texts, compiled in; their variables; how a `[providers.NAME]` table is overlaid on one.
//!
//! Invariants:
//! 1. A preset has the syntax of a user's table, and each of its keys is overridden by the user's. Tables are merged
//!    key by key.
//! 2. A preset holds no client id and no secret: those belong to whoever registered the client.
//! 3. A variable's value adds no user name, query, fragment or escape to an address, and no path or port unless the
//!    preset allows it.
//!
//! Must not know: what the keys mean.

use std::collections::BTreeMap;

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{ConfigError, document::Section};
use crate::provider::{Flow, RedirectUri};

/// Names and texts of the presets, in the order of the names.
const PRESETS: &[(&str, &str)] = &[
    ("anthropic", include_str!("presets/anthropic.toml")),
    ("atlassian", include_str!("presets/atlassian.toml")),
    ("auth0", include_str!("presets/auth0.toml")),
    ("aws-sso", include_str!("presets/aws-sso.toml")),
    ("copilot", include_str!("presets/copilot.toml")),
    ("dropbox", include_str!("presets/dropbox.toml")),
    ("figma", include_str!("presets/figma.toml")),
    ("github", include_str!("presets/github.toml")),
    ("gitlab", include_str!("presets/gitlab.toml")),
    ("google", include_str!("presets/google.toml")),
    ("intuit", include_str!("presets/intuit.toml")),
    ("keycloak", include_str!("presets/keycloak.toml")),
    ("linear", include_str!("presets/linear.toml")),
    ("microsoft", include_str!("presets/microsoft.toml")),
    ("notion", include_str!("presets/notion.toml")),
    ("okta", include_str!("presets/okta.toml")),
    ("openai", include_str!("presets/openai.toml")),
    ("salesforce", include_str!("presets/salesforce.toml")),
    ("slack", include_str!("presets/slack.toml")),
    ("spotify", include_str!("presets/spotify.toml")),
    ("xai", include_str!("presets/xai.toml")),
    ("zoho", include_str!("presets/zoho.toml")),
];

/// A preset, as `credproxy providers` lists it.
#[derive(Debug)]
pub struct Preset {
    /// Its name in the configuration.
    pub name: &'static str,
    /// The ways to log in.
    pub flows: Vec<Flow>,
    /// The keys that the user's table must have.
    pub needs: Vec<String>,
    /// Its variables.
    pub variables: Vec<Variable>,
    /// The keys that it sets.
    pub keys: Vec<String>,
}

/// A part of a preset that differs from customer to customer.
#[derive(Debug)]
pub struct Variable {
    /// Its name; the preset has it in braces.
    pub name: String,
    /// What the value must be.
    pub about: String,
    /// The default value.
    pub default: Option<String>,
    /// Whether a port may follow the host name.
    port: bool,
    /// Whether a path may follow the host name.
    path: bool,
}

/// The presets of this version, in the order of their names.
pub fn presets() -> impl Iterator<Item = Preset> {
    PRESETS.iter().map(|(name, text)| {
        let (table, variables) = read(text);
        let text = |key: &str| table.get(key).and_then(|value| value.get_ref().as_str());
        let has = |key: &str| text("issuer").is_some() || text(key).is_some();
        let redirect: RedirectUri = text("redirect_uri").and_then(|text| text.parse().ok()).unwrap_or_default();
        let (code, device) = (has("authorization_endpoint"), has("device_authorization_endpoint"));
        Preset {
            name,
            flows: Flow::offered(code, device, &redirect),
            needs: needs(&table, &variables),
            variables,
            keys: table.keys().map(|key| key.get_ref().to_string()).collect(),
        }
    })
}

fn needs(table: &DeTable<'_>, variables: &[Variable]) -> Vec<String> {
    let mut needs = vec!["client_id".to_owned()];
    needs.extend(match table.get("client_auth").and_then(|value| value.get_ref().as_str()) {
        Some("post" | "basic" | "basic_raw") => Some("client_secret".to_owned()),
        Some("private_key_jwt") => Some("client_key".to_owned()),
        Some(_) | None => None,
    });
    let without_default = variables.iter().filter(|variable| variable.default.is_none());
    needs.extend(without_default.map(|variable| format!("variables.{}", variable.name)));
    needs
}

/// Overlays the table on its preset, if it names one. Returns the preset's name.
pub(super) fn apply(section: &mut Section<'_>) -> Result<Option<&'static str>, ConfigError> {
    let Some(entry) = section.take("preset") else {
        let orphans = section.take("variables");
        return orphans.map_or(Ok(None), |entry| Err(entry.refuse("there are variables only with a preset")));
    };
    let name = entry.text()?;
    let Some((name, text)) = PRESETS.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
        return Err(entry.refuse(format!("there is no such preset; there are {}", names.join(", "))));
    };
    let given = section.section("variables")?;
    let (mut table, variables) = read(text);
    if variables.is_empty() && !given.is_empty() {
        return Err(given.refuse(format!("the preset {name} has no variables")));
    }
    drop_replaced(&mut table, section.remaining());
    fill(&mut table, &variables, given)?;
    section.overlay(name, table, &entry);
    Ok(Some(name))
}

/// Substitutes the variables' values in the rest of the preset.
fn fill(table: &mut DeTable<'_>, variables: &[Variable], mut given: Section<'_>) -> Result<(), ConfigError> {
    let mut values = Values::new();
    for variable in variables {
        let value = match given.take(&variable.name) {
            None => variable.default.clone(),
            Some(entry) => match entry.text()? {
                value if variable.fits(value) => Some(value.to_owned()),
                _ => return Err(entry.refuse(format!("{}: {}", variable.form(), variable.about))),
            },
        };
        values.insert(&variable.name, value);
    }
    let missing = fill_table(table, &values).err().map(|name| {
        let about = variables.iter().find(|variable| variable.name == name).map_or("", |variable| &variable.about);
        given.missing(name, format!("is missing: {about}"))
    });
    // Report a mistyped name before the name that is missing because of it.
    given.finish()?;
    missing.map_or(Ok(()), Err)
}

/// Parses a preset's text into keys and variables. A test checks that the texts are valid.
fn read(text: &'static str) -> (DeTable<'static>, Vec<Variable>) {
    let mut table = DeTable::parse_recoverable(text).0.into_inner();
    let declared = table.remove("variables").map(Spanned::into_inner);
    let declared = declared.as_ref().and_then(DeValue::as_table).into_iter().flatten();
    let variable = |(name, of): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
        let text = |key: &str| Some(of.get_ref().get(key)?.get_ref().as_str()?.to_owned());
        let truth = |key: &str| of.get_ref().get(key).and_then(|value| value.get_ref().as_bool()).unwrap_or_default();
        Variable {
            name: name.get_ref().to_string(),
            about: text("about").unwrap_or_default(),
            default: text("default"),
            port: truth("port"),
            path: truth("path"),
        }
    };
    let variables = declared.map(variable).collect();
    (table, variables)
}

/// Removes from the preset what the user's table replaces, so that its variables need no value.
fn drop_replaced(preset: &mut DeTable<'_>, replacing: &DeTable<'_>) {
    for (key, value) in replacing {
        let name = key.get_ref().as_ref();
        match (preset.get_mut(name).map(Spanned::get_mut), value.get_ref()) {
            (Some(DeValue::Table(inner)), DeValue::Table(replacing)) => drop_replaced(inner, replacing),
            (Some(_), _) => drop(preset.remove(name)),
            (None, _) => {}
        }
    }
}

type Values<'v> = BTreeMap<&'v str, Option<String>>;

/// Substitutes the values. The error is the name of a variable without a value.
fn fill_table<'v>(table: &mut DeTable<'_>, values: &Values<'v>) -> Result<(), &'v str> {
    table.iter_mut().try_for_each(|(_, value)| fill_value(value.get_mut(), values))
}

fn fill_value<'v>(value: &mut DeValue<'_>, values: &Values<'v>) -> Result<(), &'v str> {
    match value {
        DeValue::String(text) => {
            for (name, value) in values {
                let place = format!("{{{name}}}");
                if text.contains(&place) {
                    *text = text.replace(&place, value.as_ref().ok_or(*name)?).into();
                }
            }
            Ok(())
        }
        DeValue::Array(items) => items.iter_mut().try_for_each(|item| fill_value(item.get_mut(), values)),
        DeValue::Table(table) => fill_table(table, values),
        DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Datetime(_) => Ok(()),
    }
}

impl Variable {
    /// The form of a value, in words.
    fn form(&self) -> &'static str {
        match (self.port, self.path) {
            (false, false) => "must be a host name or a part of one (letters, digits, - and .)",
            (true, false) => "must be a host name (letters, digits, - and .), a port may follow",
            (false, true) => "must be a host name (letters, digits, - and .), a path may follow",
            (true, true) => "must be a host name (letters, digits, - and .), a port and a path may follow",
        }
    }

    fn fits(&self, value: &str) -> bool {
        let (authority, path) = value.split_once('/').map_or((value, None), |(before, after)| (before, Some(after)));
        let (host, port) = authority.split_once(':').map_or((authority, None), |(before, after)| (before, Some(after)));
        is_host(host)
            && port.is_none_or(|port| self.port && is_port(port))
            && path.is_none_or(|path| self.path && path.split('/').all(is_segment))
    }
}

/// RFC 1123 section 2.1 and RFC 1035 section 2.3.4.
fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

/// The unreserved characters of RFC 3986 section 2.3, without `.` and `..`, which would leave the preset's path.
fn is_segment(text: &str) -> bool {
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    !text.is_empty() && text.bytes().all(unreserved) && text != "." && text != ".."
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, path::Path};

    use proptest::prelude::*;
    use url::Url;

    use super::*;
    use crate::{
        config::{AuthenticationConfig, Config, Environment, ProviderConfig},
        dialect::Request,
    };

    /// The provider of a table with these lines in it.
    fn provider(lines: &str) -> Result<ProviderConfig, String> {
        let text = format!("[providers.corp]\n{lines}\n");
        let env = Environment::of([("HOME", "/home/me")]);
        let config = Config::parse(Path::new("/etc/x.toml"), &text, &env).map_err(|error| error.to_string())?;
        Ok(config.providers.into_iter().next().unwrap())
    }

    /// A table that gives the preset all that it needs.
    fn sufficient(preset: &Preset) -> String {
        let mut lines = format!("preset = \"{}\"\n", preset.name);
        for key in &preset.needs {
            match key.as_str() {
                "client_secret" => writeln!(lines, "client_secret = {{ env = \"X\" }}"),
                key => writeln!(lines, "{key} = \"x.example.com\""),
            }
            .unwrap();
        }
        lines
    }

    #[test]
    fn every_preset_is_valid_with_what_it_needs_and_not_with_less() {
        assert!(PRESETS.is_sorted_by_key(|(name, _)| name));
        for preset in presets() {
            let lines = sufficient(&preset);
            let read = provider(&lines).unwrap();
            assert_eq!(read.preset, Some(preset.name));
            assert!(!preset.flows.is_empty(), "{}", preset.name);
            for left_out in lines.lines().skip(1) {
                let refused = provider(&lines.replace(left_out, "")).unwrap_err();
                assert!(refused.starts_with("/etc/x.toml:"), "{left_out}: {refused}");
            }
        }
    }

    #[test]
    fn a_preset_holds_no_client_and_no_address_in_clear_and_uses_the_variables_that_it_declares() {
        for (name, text) in PRESETS {
            DeTable::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
            let (table, variables) = read(text);
            for key in ["client_id", "client_secret", "client_key", "ca_file", "preset"] {
                assert!(!table.contains_key(key), "{name}: {key}");
            }
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            let body: String = lines.take_while(|line| !line.starts_with("[variables")).collect::<Vec<_>>().join("\n");
            let mut clear = body.lines().filter(|line| line.contains("http://"));
            assert!(clear.all(|line| line.starts_with("redirect_uri = \"http://localhost")), "{name}");
            let mut used: Vec<&str> =
                body.split('{').skip(1).filter_map(|rest| rest.split_once('}')).map(|part| part.0).collect();
            used.retain(|inside| inside.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
            used.sort_unstable();
            used.dedup();
            let declared: Vec<&str> = variables.iter().map(|variable| variable.name.as_str()).collect();
            assert_eq!(used, declared, "{name}");
            for variable in &variables {
                assert!(!variable.about.is_empty(), "{name}");
                assert!(variable.default.as_deref().is_none_or(|text| variable.fits(text)), "{name}");
            }
        }
    }

    #[test]
    fn a_key_of_the_users_replaces_the_presets() {
        let plain = provider("preset = \"github\"\nclient_id = \"me\"").unwrap();
        assert_eq!(plain.token_endpoint.unwrap().as_str(), "https://github.com/login/oauth/access_token");
        assert_eq!(
            (plain.authentication, plain.dead_grant_codes),
            (AuthenticationConfig::None, vec!["bad_refresh_token".into()])
        );
        let own = provider(
            "preset = \"github\"\nclient_id = \"me\"\nclient_secret = { env = \"X\" }\ndead_grant_codes = []\n\
             token_endpoint = \"http://127.0.0.1:9/token\"\nvariables = { host = \"git.example.com\" }",
        )
        .unwrap();
        assert_eq!(own.token_endpoint.unwrap().as_str(), "http://127.0.0.1:9/token");
        assert_eq!(own.authorization_endpoint.unwrap().as_str(), "https://git.example.com/login/oauth/authorize");
        assert!(matches!(own.authentication, AuthenticationConfig::Secret { .. }) && own.dead_grant_codes.is_empty());
    }

    #[test]
    fn inner_tables_are_merged_key_by_key() {
        let own = provider(
            "preset = \"notion\"\nclient_id = \"me\"\nclient_secret = { env = \"X\" }\nheaders = { X-Own = \"a\" }\n\
             requests.authorization.params = { login_hint = \"me\", owner = \"workspace\" }\n\
             requests.token.params.own = \"b\"",
        );
        let additions = own.unwrap().dialect.requests.additions;
        let parameters = |request| additions.parameters(request).collect::<Vec<_>>();
        assert_eq!(parameters(Request::Authorization), [("login_hint", "me"), ("owner", "workspace")]);
        assert_eq!(parameters(Request::Token), [("own", "b")]);
        let headers = additions.headers(Request::Refresh);
        assert!(headers.len() == 2 && headers["notion-version"] == "2025-09-03" && headers["x-own"] == "a");
    }

    #[test]
    fn a_variable_of_which_nothing_is_left_needs_no_value() {
        let lines = "preset = \"keycloak\"\nclient_id = \"me\"";
        let missing = provider(lines).unwrap_err();
        let expected =
            "/etc/x.toml:1: providers.corp.variables.realm: is missing: the realm's address without https://";
        assert!(missing.starts_with(expected), "{missing}");
        let own = provider(&format!("{lines}\nissuer = \"http://localhost:8080/realms/a\"")).unwrap();
        assert_eq!(own.issuer.unwrap(), "http://localhost:8080/realms/a");
    }

    #[test]
    fn what_is_wrong_with_a_preset_is_told_at_a_line_of_the_users() {
        for (lines, expected) in [
            ("preset = \"canary\"", "2: providers.corp.preset: there is no such preset; there are "),
            ("preset = 7", "2: providers.corp.preset: must be a string"),
            (
                "variables = { host = \"canary\" }",
                "2: providers.corp.variables: there are variables only with a preset",
            ),
            ("preset = \"github\"", "1: providers.corp.client_id: is missing"),
            (
                "client_id = \"a\"\npreset = \"notion\"",
                "3: providers.corp.client_auth: as the preset notion has it: needs a client_secret",
            ),
            (
                "client_id = \"a\"\npreset = \"spotify\"\nclient_secret = { env = \"X\" }",
                "3: providers.corp.client_auth: as the preset spotify has it: is \"none\", but there is a client_secret",
            ),
            (
                "client_id = \"a\"\nclient_secret = { env = \"X\" }\npreset = \"notion\"\nheaders = { Cookie = \"canary\" }",
                "5: providers.corp.headers.Cookie: ",
            ),
            (
                "client_id = \"a\"\nclient_secret = { env = \"X\" }\npreset = \"notion\"\nheaders = \"canary\"",
                "5: providers.corp.headers: must be a table",
            ),
            (
                "preset = \"github\"\nclient_id = \"a\"\nvariables = { hots = \"canary\" }",
                "4: providers.corp.variables.hots: unknown key; known here: host",
            ),
            (
                "preset = \"github\"\nclient_id = \"a\"\nvariables = \"canary\"",
                "4: providers.corp.variables: must be a table",
            ),
            (
                "preset = \"github\"\nclient_id = \"a\"\nvariables.host = \"canary/evil\"",
                "4: providers.corp.variables.host: must be a host name or a part of one (letters, digits, - and .): github.com, or",
            ),
        ] {
            let message = provider(lines).unwrap_err();
            assert!(message.starts_with(&format!("/etc/x.toml:{expected}")), "{message}");
            assert!(!message.contains("canary"), "{message}");
        }
    }

    fn variable(port: bool, path: bool) -> Variable {
        Variable { name: "at".into(), about: "x".into(), default: None, port, path }
    }

    #[test]
    fn a_value_is_a_host_name_and_a_port_or_path_only_where_the_preset_says_so() {
        for (value, port, path) in [
            ("acme.okta.com", false, false),
            ("localhost", false, false),
            ("eu-central-1", false, false),
            ("com.au", false, false),
            ("5c1f8a0e-0000-4000-8000-000000000000", false, false),
            ("acme.example:8443", true, false),
            ("acme.example/realms/a_b~c", false, true),
            ("acme.example:8443/realms/x", true, true),
        ] {
            for (may_port, may_path) in [(false, false), (true, false), (false, true), (true, true)] {
                let fits = (may_port || !port) && (may_path || !path);
                assert_eq!(variable(may_port, may_path).fits(value), fits, "{value} {may_port} {may_path}");
            }
        }
        let (labels, label) = ("a.".repeat(127), "a".repeat(64));
        for bad in [
            "",
            ".",
            "a..b",
            ".a",
            "a.",
            "-a",
            "a-",
            "a.-b",
            "a b",
            "a@b",
            "a#b",
            "a?b",
            "a%2fb",
            "a\\b",
            "ä.example",
            "a_b",
            "https://a",
            "a\n",
            "[::1]",
            "a:",
            "a:0",
            "a:65536",
            "a:+1",
            "a:1:2",
            ":1",
            "/x",
            "a/",
            "a//b",
            "a/.",
            "a/../b",
            "a/b?c",
            "a/b#c",
            "a/%2e",
            "a/b c",
            "a/@b",
            "user:1@a",
            &labels,
            &label,
        ] {
            assert!(!variable(true, true).fits(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_value_changes_host_port_and_path_alone(
            value in "([a-zA-Z0-9.:/@#?% \\\\-]|\\.\\.|https://|é){0,12}", port in any::<bool>(), path in any::<bool>(),
        ) {
            if variable(port, path).fits(&value) {
                // Not every host name is one in a URL: what ends in a number must be an address.
                let Ok(url) = Url::parse(&format!("https://{value}/token")) else { return Ok(()) };
                prop_assert!(url.username().is_empty() && url.password().is_none(), "{value}");
                prop_assert!(url.query().is_none() && url.fragment().is_none(), "{value}");
                prop_assert!(port || url.port().is_none(), "{value}");
                prop_assert!(path || url.path() == "/token", "{value}");
                prop_assert!(url.path().ends_with("/token") && !url.path().contains('%'), "{value}");
                let inner = Url::parse(&format!("https://login.{value}.example.com/token"));
                prop_assert!(port || path || inner.unwrap().host_str().unwrap().ends_with(".example.com"), "{value}");
            }
        }
    }
}
