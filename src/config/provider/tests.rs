use std::time::Duration;

use super::*;
use crate::{
    config::{
        SecretSource,
        tests::{parse, refused},
    },
    dialect::{
        Additions, Algorithm, AnswerForm, ExpiresInUnit, Headers, MemberNames, Parameters, Request, RequestForm,
        RequestFormat, SecretPlace,
    },
};

const PROVIDER: &str = "[providers.corp]\nissuer = \"https://login.example.com\"\nclient_id = \"me\"\n";

const EVERY_KEY: &str = r#"
[providers.corp]
issuer = "https://login.example.com/"
token_endpoint = "https://login.example.com/token?tenant=1"
authorization_endpoint = "https://login.example.com/authorize"
device_authorization_endpoint = "http://127.0.0.1:9/device"
revocation_endpoint = "http://[::1]/revoke"
refresh_endpoint = "https://login.example.com/refresh"
client_id = "me"
client_secret = { env = "CORP_SECRET" }
client_auth = "basic_raw"
request_format = "json"
member_names = { access_token = "accessToken", grant_type = "grantType" }
answer_path = "data.user"
headers = { "User-Agent" = "corp/1", X-Key = "k" }
requests.authorization.params = { prompt = "consent", code = "true" }
requests.token.params = { audience = "api" }
requests.refresh.headers = { "User-Agent" = "corp/2" }
requests.device = { params = { startUrl = "https://corp.example" }, headers = { X-Device = "yes" } }
requests.revocation = { }
scope_separator = ","
send_scope_on_refresh = true
resource = ["https://api.example.com/", "urn:corp:api"]
default_lifetime = "1h"
expires_in_unit = "ms"
scopes = ["openid", "offline_access"]
redirect_uri = "http://localhost:1455/auth/callback"
pkce = false
device_pkce = true
expose = ["tenant_id"]
dead_grant_codes = ["bad_refresh_token"]
dead_grant_statuses = [401, 410]
reuse_grace = "30s"
concurrent_refreshes = 1
ca_file = "/etc/ca.pem"

[providers.public]
token_endpoint = "http://localhost:8080/token"
client_id = "me"
client_auth = "none"

[providers.posting]
token_endpoint = "https://example.com/token"
client_id = "me"
client_secret.command = "pass corp"

[providers.signing]
token_endpoint = "https://example.com/token"
client_id = "me"
client_auth = "private_key_jwt"
client_key = { file = "/etc/corp/key.pem" }
client_key_id = "2026"
client_key_algorithm = "PS256"
client_assertion_audience = "https://example.com/"

[providers.twofold]
token_endpoint = "https://example.com/token"
client_id = "me"
client_key = { env = "CORP_KEY" }
second_exchange = { endpoint = "https://api.example.com/token", scheme = "token" }
"#;

#[test]
fn every_key_of_a_provider_is_read() {
    let config = parse(EVERY_KEY).unwrap();
    let [corp, posting, public, signing, twofold] = &config.providers[..] else { panic!("{:?}", config.providers) };
    let url = |text: &str| Some(text.parse().unwrap());
    let authentication =
        AuthenticationConfig::Secret { place: SecretPlace::BasicRaw, source: SecretSource::Env("CORP_SECRET".into()) };
    let expected = ProviderConfig {
        name: "corp".parse().unwrap(),
        preset: None,
        issuer: Some("https://login.example.com/".into()),
        token_endpoint: url("https://login.example.com/token?tenant=1"),
        refresh_endpoint: url("https://login.example.com/refresh"),
        authorization_endpoint: url("https://login.example.com/authorize"),
        device_authorization_endpoint: url("http://127.0.0.1:9/device"),
        revocation_endpoint: url("http://[::1]/revoke"),
        client_id: "me".into(),
        authentication,
        dialect: corps_dialect(),
        second_exchange: None,
        scopes: vec!["openid".into(), "offline_access".into()],
        redirect_uri: "http://localhost:1455/auth/callback".parse().unwrap(),
        pkce: false,
        device_pkce: true,
        expose: vec!["tenant_id".into()],
        dead_grant_codes: vec!["bad_refresh_token".into()],
        dead_grant_statuses: vec![401, 410],
        reuse_grace: Duration::from_secs(30),
        concurrent_refreshes: NonZeroUsize::MIN,
        ca_file: Some("/etc/ca.pem".into()),
    };
    assert_eq!(*corp, expected);
    assert_eq!((&public.authentication, &public.dialect), (&AuthenticationConfig::None, &Dialect::default()));
    let source = SecretSource::Command("pass corp".into());
    assert_eq!(posting.authentication, AuthenticationConfig::Secret { place: SecretPlace::Body, source });
    let key = ClientKeyConfig {
        source: SecretSource::File("/etc/corp/key.pem".into()),
        id: Some("2026".into()),
        algorithm: Some(Algorithm::Ps256),
        audience: Some("https://example.com/".into()),
    };
    assert_eq!(signing.authentication, AuthenticationConfig::Key(key));
    let source = SecretSource::Env("CORP_KEY".into());
    let key = ClientKeyConfig { source, id: None, algorithm: None, audience: None };
    assert_eq!(twofold.authentication, AuthenticationConfig::Key(key));
    let endpoint = "https://api.example.com/token".parse().unwrap();
    assert_eq!(twofold.second_exchange, Some(SecondExchange { endpoint, scheme: "token".into() }));
}

/// What [`EVERY_KEY`] says of the provider `corp`.
fn corps_dialect() -> Dialect {
    let names = MemberNames::new([("access_token", "accessToken"), ("grant_type", "grantType")]).unwrap();
    let headers = |pairs: &[(&str, &str)]| {
        let mut headers = Headers::default();
        for (name, value) in pairs {
            headers.add(name, value).unwrap();
        }
        headers
    };
    let parameters = |request, pairs: &[(&str, &str)]| {
        let mut parameters = Parameters::default();
        for (name, value) in pairs {
            parameters.add(request, &names, name, value).unwrap();
        }
        parameters
    };
    let mut additions = Additions::new(headers(&[("user-agent", "corp/1"), ("x-key", "k")]));
    for (request, pairs, own) in [
        (Request::Authorization, &[("code", "true"), ("prompt", "consent")][..], &[][..]),
        (Request::Token, &[("audience", "api")], &[]),
        (Request::Refresh, &[], &[("user-agent", "corp/2")]),
        (Request::Device, &[("startUrl", "https://corp.example")], &[("x-device", "yes")]),
    ] {
        additions.set(request, parameters(request, pairs), headers(own));
    }
    let requests = RequestForm {
        format: RequestFormat::Json,
        additions,
        scope_separator: ',',
        scope_on_refresh: true,
        resources: vec!["https://api.example.com/".into(), "urn:corp:api".into()],
    };
    let answers = AnswerForm {
        path: vec!["data".into(), "user".into()],
        expires_in_unit: ExpiresInUnit::Milliseconds,
        default_lifetime: Some(Duration::from_hours(1)),
    };
    Dialect { names, requests, answers }
}

/// Text, and the error without the file's name.
const BROKEN: &[(&str, &str)] = &[
    ("[providers.\"-x\"]", "1: providers.-x: a name starts with"),
    ("[providers.\"refresh_token\"]", "1: providers.refresh_token: a name must not contain \"refresh_token\""),
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
    ("preset = \"canary\"", "4: providers.corp.preset: there is no such preset; there are "),
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
    ("client_auth = \"private_key_jwt\"", "4: providers.corp.client_auth: needs a client_key"),
    ("client_key = \"canary\"", "4: providers.corp.client_key: must be one of { env = \"NAME\" }"),
    ("client_key.env = \"A\"\nclient_auth = \"basic\"", "5: providers.corp.client_auth: needs a client_secret"),
    (
        "client_key.env = \"A\"\nclient_auth = \"none\"",
        "5: providers.corp.client_auth: is not \"private_key_jwt\", but there is a client_key",
    ),
    (
        "client_key.env = \"A\"\nclient_secret.env = \"B\"",
        "1: providers.corp: has both a client_secret and a client_key",
    ),
    (
        "client_key.env = \"A\"\nclient_secret.env = \"B\"\nclient_auth = \"private_key_jwt\"",
        "6: providers.corp.client_auth: is \"private_key_jwt\", but there is a client_secret",
    ),
    ("client_key_id = \"canary\"", "4: providers.corp.client_key_id: needs a client_key"),
    ("client_assertion_audience = \"canary\"", "4: providers.corp.client_assertion_audience: needs a client_key"),
    (
        "client_key.env = \"A\"\nclient_key_algorithm = \"canary\"",
        "5: providers.corp.client_key_algorithm: must be \"RS256\"",
    ),
    ("client_auth = \"canary\"", "4: providers.corp.client_auth: must be \"none\""),
    ("request_format = \"canary\"", "4: providers.corp.request_format: must be \"form\" or \"json\""),
    ("refresh_endpoint = \"http://canary.example\"", "4: providers.corp.refresh_endpoint: must be https"),
    ("member_names = [\"canary\"]", "4: providers.corp.member_names: must be a table"),
    ("member_names = { token = 7 }", "4: providers.corp.member_names.token: must be a string"),
    ("member_names.tokens = \"canary\"", "4: providers.corp.member_names.tokens: is no standard member"),
    ("member_names.access_token = \"can ary\"", "4: providers.corp.member_names.access_token: must have 1 to 64"),
    (
        "member_names.access_token = \"refresh_token\"",
        "4: providers.corp.member_names.access_token: must not be the name of the refresh token",
    ),
    ("member_names.scope = \"resource\"", "4: providers.corp.member_names.scope: is the name of another member"),
    ("answer_path = \"canary..canary\"", "4: providers.corp.answer_path: must be the names of members"),
    ("headers = \"canary\"", "4: providers.corp.headers: must be a table"),
    ("headers.Authorization = \"canary\"", "4: providers.corp.headers.Authorization: is a header that the client"),
    ("headers.X-A = \"canary\\n\"", "4: providers.corp.headers.X-A: must be visible ASCII"),
    ("headers.\"a b\" = \"canary\"", "4: providers.corp.headers.\"a b\": is not the name of a header"),
    ("headers = { X-A = \"canary\", x-a = \"canary\" }", "4: providers.corp.headers.x-a: is there twice"),
    ("requests.tokens.params.x = \"canary\"", "4: providers.corp.requests.tokens: unknown key"),
    ("requests.token.x = \"canary\"", "4: providers.corp.requests.token.x: unknown key; known here: params, headers"),
    ("requests.token.params = [\"canary\"]", "4: providers.corp.requests.token.params: must be a table"),
    (
        "requests.authorization.params.state = \"canary\"",
        "4: providers.corp.requests.authorization.params.state: is a parameter that the protocol sets",
    ),
    (
        "requests.refresh.params.refresh_token = \"canary\"",
        "4: providers.corp.requests.refresh.params.refresh_token: is a parameter that",
    ),
    (
        "member_names.client_id = \"app\"\nrequests.device.params.app = \"canary\"",
        "5: providers.corp.requests.device.params.app: is a parameter that the protocol sets",
    ),
    ("requests.authorization.headers.x = \"canary\"", "4: providers.corp.requests.authorization.headers: unknown key"),
    (
        "requests.refresh.headers.Cookie = \"canary\"",
        "4: providers.corp.requests.refresh.headers.Cookie: is a header that the client sets",
    ),
    ("scope_separator = \"canary\"", "4: providers.corp.scope_separator: must be one printable ASCII character"),
    ("scope_separator = \"a\"", "4: providers.corp.scope_separator: must be one printable ASCII character"),
    ("scope_separator = \",\"\nscopes = [\"canary,x\"]", "5: providers.corp.scopes: one scope has no space"),
    ("send_scope_on_refresh = \"canary\"", "4: providers.corp.send_scope_on_refresh: must be true or false"),
    ("resource = \"https://canary\"", "4: providers.corp.resource: must be a list"),
    ("resource = [\"/canary\"]", "4: providers.corp.resource: must be an absolute URI"),
    ("resource = [\"https://a/#canary\"]", "4: providers.corp.resource: must be an absolute URI"),
    ("default_lifetime = \"canary\"", "4: providers.corp.default_lifetime: must be a duration"),
    ("default_lifetime = \"0s\"", "4: providers.corp.default_lifetime: must be from 1s to"),
    ("expires_in_unit = \"canary\"", "4: providers.corp.expires_in_unit: must be \"s\" or \"ms\""),
    ("second_exchange = \"https://canary\"", "4: providers.corp.second_exchange: must be { endpoint"),
    ("second_exchange = { scheme = \"canary\" }", "4: providers.corp.second_exchange.endpoint: is missing"),
    (
        "second_exchange = { endpoint = \"http://canary\", scheme = \"token\" }",
        "4: providers.corp.second_exchange.endpoint: must be https",
    ),
    (
        "second_exchange = { endpoint = \"https://a\", scheme = \"can ary\" }",
        "4: providers.corp.second_exchange.scheme: must be an authentication scheme",
    ),
    (
        "second_exchange = { endpoint = \"https://a\", scheme = \"t\" }\nsend_scope_on_refresh = true",
        "4: providers.corp.second_exchange: is a GET in place of a refresh",
    ),
    ("dead_grant_statuses = [200]", "4: providers.corp.dead_grant_statuses: must be a status from 400 to 499"),
    ("dead_grant_statuses = [429]", "4: providers.corp.dead_grant_statuses: must be a status from 400 to 499"),
    ("dead_grant_statuses = [\"canary\"]", "4: providers.corp.dead_grant_statuses: must be a status from 400"),
    ("scopes = [\"canary canary\"]", "4: providers.corp.scopes: one scope has no space"),
    ("redirect_uri = \"http://canary.example\"", "4: providers.corp.redirect_uri: must be an https, loopback http"),
    ("pkce = \"canary\"", "4: providers.corp.pkce: must be true or false"),
    ("device_pkce = 1", "4: providers.corp.device_pkce: must be true or false"),
    ("expose = [\"my_Refresh_Token\"]", "4: providers.corp.expose: this member never leaves"),
    ("dead_grant_codes = [\"<canary>\"]", "4: providers.corp.dead_grant_codes: an error code has"),
    ("dead_grant_codes = [\"\"]", "4: providers.corp.dead_grant_codes: must be a string that is not empty"),
    ("concurrent_refreshes = 0", "4: providers.corp.concurrent_refreshes: must be a whole number from 1 to 1000"),
    ("reuse_grace = \"1day\"", "4: providers.corp.reuse_grace: must be from 0s to 1h"),
    ("ca_file = \"canary.pem\"", "4: providers.corp.ca_file: must be an absolute path"),
];

#[test]
fn a_broken_provider_is_refused_by_line_and_key_without_its_value() {
    let with_provider = BROKEN_PROVIDER.iter().map(|(text, expected)| (format!("{PROVIDER}{text}\n"), *expected));
    let whole = BROKEN.iter().map(|(text, expected)| ((*text).to_owned(), *expected));
    for (text, expected) in whole.chain(with_provider) {
        let message = refused(&text);
        assert!(message.starts_with(&format!("/etc/x.toml:{expected}")), "{text}\n{message}\n{expected}");
    }
}
