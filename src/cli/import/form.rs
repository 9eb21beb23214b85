//! The file formats in which programs keep their users' grants, and what is taken from each.
//!
//! Invariants:
//! 1. Nothing that is shown, errors included, holds a value that may be a secret: only the format, names of members,
//!    the position of a mistake, and a `client_id`, which is not a secret (RFC 6749 section 2.2).
//! 2. The result has the form of a token answer (RFC 6749 section 5.1); the values are unchanged.
//!
//! Must not know: where the text comes from, the daemon.

use std::{fmt, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use zeroize::{Zeroize as _, Zeroizing};

use super::LIMIT;

/// A known format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A token endpoint's answer, which is also the daemon's own format.
    TokenAnswer,
    Codex,
    ClaudeCode,
    GeminiCli,
    QwenCode,
}

impl Form {
    /// The program that uses this format, if only one does.
    pub(super) const fn program(self) -> Option<&'static str> {
        match self {
            Self::TokenAnswer => None,
            Self::Codex => Some("Codex"),
            Self::ClaudeCode => Some("Claude Code"),
            Self::GeminiCli => Some("Gemini CLI"),
            Self::QwenCode => Some("Qwen Code"),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::TokenAnswer => "a token answer",
            Self::Codex => "Codex's auth.json",
            Self::ClaudeCode => "Claude Code's .credentials.json",
            Self::GeminiCli => "Gemini CLI's oauth_creds.json",
            Self::QwenCode => "Qwen Code's oauth_creds.json",
        })
    }
}

/// A recognised grant.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) form: Form,
    /// The names of the members taken, as in the source.
    pub(super) taken: Vec<String>,
    /// Whether the expiry was read from the access token itself.
    pub(super) expiry_guessed: bool,
    /// Whether there is a refresh token.
    pub(super) refreshable: bool,
    /// The grant as a token answer.
    pub(super) grant: Zeroizing<Vec<u8>>,
}

/// Why nothing can be imported.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FormError {
    #[error("is empty")]
    Empty,
    #[error("is not JSON: line {line}, column {column}")]
    NotJson { line: usize, column: usize },
    #[error("is not a JSON object")]
    NotObject,
    #[error("has an unknown format")]
    Unknown,
    #[error("looks like {form}, but its {member} is not there or not of the right kind")]
    Lacks { form: Form, member: &'static str },
    #[error("holds an API key and no grant: Codex is not logged in with an account")]
    ApiKey,
    #[error("is an application-default credential of Google's, which has no access token; a grant begins with one")]
    ApplicationDefault { client_id: String },
}

/// Recognises the format by members that no other format has, and takes the grant's members.
pub(super) fn recognise(text: &[u8]) -> Result<Found, FormError> {
    if text.trim_ascii().is_empty() {
        return Err(FormError::Empty);
    }
    // The parser's own message may quote what it found.
    let value = serde_json::from_slice(text)
        .map_err(|error| FormError::NotJson { line: error.line(), column: error.column() })?;
    let source = ZeroizingJson(value);
    let Value::Object(members) = &source.0 else { return Err(FormError::NotObject) };
    if let Some(login) = members.get("claudeAiOauth") {
        return claude_code(login);
    }
    if let Some(Value::Object(tokens)) = members.get("tokens") {
        return codex(tokens);
    }
    if members.contains_key("access_token") {
        return if members.contains_key("expiry_date") { google_library(members) } else { token_answer(members, text) };
    }
    match (text_of(members, "type"), text_of(members, "OPENAI_API_KEY")) {
        (Some("authorized_user"), _) => {
            Err(FormError::ApplicationDefault { client_id: client_id(text_of(members, "client_id")) })
        }
        (_, Some(_)) => Err(FormError::ApiKey),
        (_, None) => Err(FormError::Unknown),
    }
}

/// Takes a token answer as it is; the daemon checks its members.
fn token_answer(members: &Map<String, Value>, text: &[u8]) -> Result<Found, FormError> {
    let mut builder = GrantBuilder::default();
    for (name, value) in members {
        builder.take(name, name, value.clone());
    }
    let mut found = builder.found(Form::TokenAnswer)?;
    if !found.expiry_guessed {
        found.grant = Zeroizing::new(text.to_vec());
    }
    Ok(found)
}

/// `{"tokens": {"access_token", "refresh_token", "id_token", "account_id"}, "last_refresh", …}`
fn codex(tokens: &Map<String, Value>) -> Result<Found, FormError> {
    let mut builder = GrantBuilder::default();
    for name in ["access_token", REFRESH, "id_token", "account_id"] {
        builder.take_text(tokens, name, name);
    }
    builder.found(Form::Codex)
}

/// `{"claudeAiOauth": {"accessToken", "refreshToken", "expiresAt", "scopes", "subscriptionType", …}, …}`
fn claude_code(login: &Value) -> Result<Found, FormError> {
    let Value::Object(login) = login else {
        return Err(FormError::Lacks { form: Form::ClaudeCode, member: "claudeAiOauth" });
    };
    let mut builder = GrantBuilder::default();
    builder.take_text(login, "accessToken", "access_token");
    builder.take_text(login, "refreshToken", REFRESH);
    builder.take_milliseconds(login, "expiresAt");
    if let Some(scopes) = login.get("scopes").and_then(Value::as_array) {
        let scopes: Vec<&str> = scopes.iter().filter_map(Value::as_str).collect();
        builder.take("scopes", "scope", json!(scopes.join(" ")));
    }
    builder.take_text(login, "subscriptionType", "subscriptionType");
    builder.found(Form::ClaudeCode)
}

/// A token answer with `expiry_date`, as Google's library for Node keeps it; Qwen Code's fork adds `resource_url`.
fn google_library(members: &Map<String, Value>) -> Result<Found, FormError> {
    let form = if members.contains_key("resource_url") { Form::QwenCode } else { Form::GeminiCli };
    let mut builder = GrantBuilder::default();
    for name in ["access_token", REFRESH, "token_type", "scope", "id_token", "resource_url"] {
        builder.take_text(members, name, name);
    }
    builder.take_milliseconds(members, "expiry_date");
    builder.found(form)
}

const REFRESH: &str = crate::secret::FORBIDDEN_TEXT;

/// A grant under construction.
#[derive(Default)]
struct GrantBuilder {
    taken: Vec<String>,
    grant: Map<String, Value>,
}

impl GrantBuilder {
    fn take(&mut self, name: &str, as_name: &str, value: Value) {
        self.taken.push(shown(name));
        self.grant.insert(as_name.to_owned(), value);
    }

    fn take_text(&mut self, from: &Map<String, Value>, name: &str, as_name: &str) {
        if let Some(text) = text_of(from, name) {
            self.take(name, as_name, text.into());
        }
    }

    /// Takes a time in milliseconds since 1970; an invalid one is ignored.
    fn take_milliseconds(&mut self, from: &Map<String, Value>, name: &str) {
        if let Some(seconds) = from.get(name).and_then(Value::as_f64).and_then(|millis| whole_seconds(millis / 1000.0))
        {
            self.take(name, "expiry", seconds.into());
        }
    }

    fn found(mut self, form: Form) -> Result<Found, FormError> {
        let member = if form == Form::ClaudeCode { "accessToken" } else { "access_token" };
        let access_token = text_of(&self.grant, "access_token").ok_or(FormError::Lacks { form, member })?;
        let known = ["expiry", "expires_in"].iter().any(|name| self.grant.get(*name).is_some_and(|it| !it.is_null()));
        let guess = if known { None } else { expiry_of_jwt(access_token) };
        if let Some(expiry) = guess {
            self.grant.insert("expiry".to_owned(), expiry.into());
        }
        // Capacity for everything: a buffer that grows leaves copies behind.
        let mut grant = Zeroizing::new(Vec::with_capacity(LIMIT));
        // A map with texts for keys always serializes.
        serde_json::to_writer(&mut *grant, &self.grant).ok();
        let refreshable = text_of(&self.grant, REFRESH).is_some();
        Ok(Found { form, taken: std::mem::take(&mut self.taken), expiry_guessed: guess.is_some(), refreshable, grant })
    }
}

impl Drop for GrantBuilder {
    fn drop(&mut self) {
        self.grant.values_mut().for_each(wipe);
    }
}

/// A text member that is not empty.
fn text_of<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    members.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// The `exp` of a JWT (RFC 7519 section 4.1.4), unverified: only a hint.
fn expiry_of_jwt(token: &str) -> Option<u64> {
    let [_, claims, _] = token.split('.').collect::<Vec<_>>().try_into().ok()?;
    let claims = Zeroizing::new(URL_SAFE_NO_PAD.decode(claims).ok()?);
    let claims = ZeroizingJson(serde_json::from_slice(&claims).ok()?);
    whole_seconds(claims.0.get("exp")?.as_f64()?)
}

fn whole_seconds(seconds: f64) -> Option<u64> {
    Duration::try_from_secs_f64(seconds).ok().map(|since_1970| since_1970.as_secs()).filter(|seconds| *seconds > 0)
}

/// A member's name that may be printed.
fn shown(name: &str) -> String {
    let fit = (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    if fit { name.to_owned() } else { "…".to_owned() }
}

/// A client id that may be printed inside quotation marks.
fn client_id(text: Option<&str>) -> String {
    let fit = |text: &&str| {
        text.len() <= 200 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    text.filter(fit).unwrap_or("CLIENT_ID").to_owned()
}

/// JSON whose texts are wiped from memory when it is dropped.
struct ZeroizingJson(Value);

impl Drop for ZeroizingJson {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(values) => values.iter_mut().for_each(wipe),
        Value::Object(members) => members.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(claims: &Value) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    fn found(source: &Value) -> (Found, Value) {
        let found = recognise(source.to_string().as_bytes()).unwrap();
        let grant = serde_json::from_slice(&found.grant).unwrap();
        (found, grant)
    }

    #[test]
    fn each_form_becomes_a_token_answer() {
        let access_token = jwt(&json!({"exp": 1_800_000_000, "sub": "me"}));
        for (form, source, taken, grant) in [
            (
                Form::TokenAnswer,
                json!({"access_token": "at", "refresh_token": "rt", "expires_in": "60", "x": {"y": [1]}}),
                "access_token expires_in refresh_token x",
                json!({"access_token": "at", "refresh_token": "rt", "expires_in": "60", "x": {"y": [1]}}),
            ),
            (
                Form::Codex,
                json!({"auth_mode": "chatgpt", "OPENAI_API_KEY": null, "last_refresh": "2026-01-02T03:04:05Z",
                    "tokens": {"access_token": access_token, "refresh_token": "rt", "id_token": "it", "account_id": "me"}}),
                "access_token refresh_token id_token account_id",
                json!({"access_token": access_token, "refresh_token": "rt", "id_token": "it", "account_id": "me",
                    "expiry": 1_800_000_000}),
            ),
            (
                Form::ClaudeCode,
                json!({"mcpOAuth": {}, "claudeAiOauth": {"accessToken": "at", "refreshToken": "rt", "rateLimitTier": "t",
                    "expiresAt": 1_800_000_000_999_u64, "scopes": ["user:profile", "user:inference"],
                    "subscriptionType": "max"}}),
                "accessToken refreshToken expiresAt scopes subscriptionType",
                json!({"access_token": "at", "refresh_token": "rt", "expiry": 1_800_000_000,
                    "scope": "user:profile user:inference", "subscriptionType": "max"}),
            ),
            (
                Form::GeminiCli,
                json!({"access_token": "at", "refresh_token": "rt", "scope": "openid x", "token_type": "Bearer",
                    "id_token": "it", "expiry_date": 1_800_000_000_362.779}),
                "access_token refresh_token token_type scope id_token expiry_date",
                json!({"access_token": "at", "refresh_token": "rt", "scope": "openid x", "token_type": "Bearer",
                    "id_token": "it", "expiry": 1_800_000_000}),
            ),
            (
                Form::QwenCode,
                json!({"access_token": "at", "refresh_token": "rt", "token_type": "Bearer",
                    "resource_url": "portal.example", "expiry_date": 1_800_000_000_000_u64}),
                "access_token refresh_token token_type resource_url expiry_date",
                json!({"access_token": "at", "refresh_token": "rt", "token_type": "Bearer",
                    "resource_url": "portal.example", "expiry": 1_800_000_000}),
            ),
        ] {
            let (it, made) = found(&source);
            assert_eq!((it.form, it.taken.join(" ").as_str(), made), (form, taken, grant));
            assert_eq!((it.refreshable, it.expiry_guessed), (true, form == Form::Codex));
        }
    }

    #[test]
    fn a_token_answer_is_passed_on_byte_by_byte() {
        let text = br#" {"access_token": "at", "n": 1.50, "expiry": 12} "#;
        assert_eq!(*recognise(text).unwrap().grant, text);
    }

    #[test]
    fn what_a_token_says_of_its_own_end_counts_where_nobody_else_says_anything() {
        let with = |claims: &Value, more: &Value| {
            let mut source = json!({"access_token": jwt(claims)});
            source.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            found(&source).1.get("expiry").cloned()
        };
        let exp = json!({"exp": 1_800_000_000.5});
        assert_eq!(with(&exp, &json!({})), Some(json!(1_800_000_000)));
        assert_eq!(with(&exp, &json!({"expiry": null})), Some(json!(1_800_000_000)));
        assert_eq!(with(&exp, &json!({"expiry": 5})), Some(json!(5)));
        assert_eq!(with(&exp, &json!({"expires_in": 5})), None);
        for bad in
            [json!({}), json!({"exp": "x"}), json!({"exp": -1}), json!({"exp": 0}), json!({"exp": 1e300}), json!([])]
        {
            assert_eq!(with(&bad, &json!({})), None, "{bad}");
        }
        for odd in ["a.b", "a.!.c", "a.b.c.d", "..", "a.e30.c"] {
            assert!(!found(&json!({"access_token": odd})).0.expiry_guessed, "{odd}");
        }
    }

    #[test]
    fn an_expiry_that_is_none_says_nothing() {
        for bad in [json!(0), json!(-5), json!("soon"), json!(null), json!([1]), json!(999)] {
            let (_, grant) = found(&json!({"claudeAiOauth": {"accessToken": "at", "expiresAt": bad}}));
            assert_eq!(grant, json!({"access_token": "at"}), "{bad}");
        }
    }

    #[test]
    fn what_is_no_grant_is_refused_without_being_quoted() {
        let lacks = |form, member| FormError::Lacks { form, member };
        for (text, error) in [
            ("", FormError::Empty),
            (" \n", FormError::Empty),
            ("canary", FormError::NotJson { line: 1, column: 1 }),
            ("{\"a\":\n canary}", FormError::NotJson { line: 2, column: 2 }),
            ("{\"a\": 1} canary", FormError::NotJson { line: 1, column: 10 }),
            ("\"canary\"", FormError::NotObject),
            ("[\"canary\"]", FormError::NotObject),
            ("{\"canary\": \"canary\"}", FormError::Unknown),
            ("{\"token\": \"canary\", \"tokens\": [\"canary\"]}", FormError::Unknown),
            ("{\"access_token\": [\"canary\"]}", lacks(Form::TokenAnswer, "access_token")),
            ("{\"access_token\": \"\", \"expiry_date\": 1}", lacks(Form::GeminiCli, "access_token")),
            ("{\"tokens\": {\"refresh_token\": \"canary\"}}", lacks(Form::Codex, "access_token")),
            ("{\"claudeAiOauth\": {\"refreshToken\": \"canary\"}}", lacks(Form::ClaudeCode, "accessToken")),
            ("{\"claudeAiOauth\": \"canary\"}", lacks(Form::ClaudeCode, "claudeAiOauth")),
            ("{\"tokens\": null, \"OPENAI_API_KEY\": \"canary\"}", FormError::ApiKey),
        ] {
            let refused = recognise(text.as_bytes()).unwrap_err();
            assert!(!format!("{refused} {refused:?}").contains("canary"), "{refused:?}");
            assert_eq!(refused, error, "{text}");
        }
    }

    #[test]
    fn googles_own_credential_names_its_client() {
        let refused = |client: Value| {
            let source = json!({"type": "authorized_user", "client_id": client, "client_secret": "canary",
                "refresh_token": "canary"});
            recognise(source.to_string().as_bytes()).unwrap_err()
        };
        let named = |client_id: &str| FormError::ApplicationDefault { client_id: client_id.to_owned() };
        assert_eq!(refused(json!("1-a.apps.example.com")), named("1-a.apps.example.com"));
        for odd in [json!("\"\n[sockets.x]"), json!(5), json!(""), json!("x".repeat(201))] {
            assert_eq!(refused(odd), named("CLIENT_ID"));
        }
    }

    #[test]
    fn a_name_that_would_steer_the_terminal_is_not_shown() {
        let (found, _) = found(&json!({"access_token": "at", "\u{1b}[2J": 1, "ä": 2, "x".repeat(65): 3}));
        assert_eq!(found.taken, ["…", "access_token", "…", "…"]);
    }
}
