//! Grants: what the store keeps for an account, how a refresh changes it, and the view of it that may leave.
//!
//! Owns: [`Grant`] and its [`Version`], [`Issued`] (tokens from a provider or a person), their merge, and
//! [`SanitizedToken`].
//!
//! Invariants:
//! 1. A refresh raises the generation by one and keeps the id; a login or put makes a new random id.
//! 2. A refresh keeps everything that the answer does not replace: refresh token, scope, extra members.
//! 3. A [`SanitizedToken`] holds neither the text `refresh_token` nor the value of the grant's refresh token, nor of
//!    the one before it.
//!
//! Must not know: wire formats other than the sanitized view's, storage, providers.

use std::{fmt, str::FromStr, time::Duration};

use bytes::Bytes;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::{
    clock::Timestamp,
    secret::{AccessToken, RefreshToken, holds_forbidden_text},
};

/// A grant's random id of 128 bits, shown as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GrantId(u128);

impl GrantId {
    /// Makes an id from random bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// The 16 bytes.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl fmt::Display for GrantId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// Identifies one state of an account's grant: the grant's id, and how often it was refreshed. Shown as
/// `id:generation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version {
    /// The grant.
    pub id: GrantId,
    /// Grows by one at each refresh.
    pub generation: u64,
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.id, self.generation)
    }
}

/// The text is not a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a version of a grant")]
pub struct VersionError;

impl FromStr for Version {
    type Err = VersionError;

    fn from_str(text: &str) -> Result<Self, VersionError> {
        let (id, generation) = text.split_once(':').ok_or(VersionError)?;
        let digits = |part: &str, radix: u32| !part.is_empty() && part.chars().all(|digit| digit.is_digit(radix));
        if id.len() != 32 || !digits(id, 16) || !digits(generation, 10) {
            return Err(VersionError);
        }
        Ok(Self {
            id: GrantId(u128::from_str_radix(id, 16).map_err(|_| VersionError)?),
            generation: generation.parse().map_err(|_| VersionError)?,
        })
    }
}

/// The lifetime of a new token, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Unknown: neither "never expires" nor "expired".
    Unknown,
    /// Ends this long after the request (`expires_in`, RFC 6749 section 5.1).
    In(Duration),
    /// Ends at this time.
    At(Timestamp),
}

/// A hundred years. A longer lifetime is a mistake in the unit, and is treated as unknown.
const MAX_LIFETIME_SECS: f64 = 100.0 * 366.0 * 86_400.0;

impl Lifetime {
    /// Reads a number of seconds in any form that providers send: a number, a string, a fraction. `None` if it is not a
    /// number; zero, negative numbers, `NaN` and more than a hundred years are [`Lifetime::Unknown`].
    #[must_use]
    pub fn from_expires_in(value: &Value) -> Option<Self> {
        let seconds = seconds(value)?;
        if seconds > 0.0 && seconds <= MAX_LIFETIME_SECS {
            Some(Self::In(Duration::from_secs_f64(seconds)))
        } else {
            Some(Self::Unknown)
        }
    }

    /// Reads a time in seconds since 1970, in the same forms.
    #[must_use]
    pub fn from_expires_at(value: &Value) -> Option<Self> {
        let seconds = seconds(value)?;
        if seconds > 0.0 && seconds <= MAX_LIFETIME_SECS * 2.0 {
            Some(Self::At(Timestamp::from_millis(0).plus(Duration::from_secs_f64(seconds))))
        } else {
            Some(Self::Unknown)
        }
    }
}

fn seconds(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The provider's other members, uninterpreted. Providers nest tokens in them, so `Debug` shows only their number.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Extra(Map<String, Value>);

impl Extra {
    /// The members, secrets among them.
    #[must_use]
    pub const fn members(&self) -> &Map<String, Value> {
        &self.0
    }
}

impl From<Map<String, Value>> for Extra {
    fn from(members: Map<String, Value>) -> Self {
        Self(members)
    }
}

impl fmt::Debug for Extra {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Extra({} members)", self.0.len())
    }
}

/// Tokens that a provider has just issued, or that a person has put.
#[derive(Debug)]
pub struct Issued {
    /// The new access token.
    pub access_token: AccessToken,
    /// As sent; `None` if it was not.
    pub token_type: Option<String>,
    /// How long the access token lives.
    pub lifetime: Lifetime,
    /// As sent, in the provider's own form (RFC 6749 section 3.3: space-delimited).
    pub scope: Option<String>,
    /// The successor, when the provider rotates.
    pub refresh_token: Option<RefreshToken>,
    /// Every other member.
    pub extra: Extra,
}

impl Issued {
    /// Whether the access token contains its own refresh token, or `current`.
    #[must_use]
    pub fn reveals(&self, current: Option<&RefreshToken>) -> bool {
        self.refresh_token.as_ref().into_iter().chain(current).any(|secret| self.access_token.reveals(secret))
    }

    /// Drops members that quote the refresh token that was presented. The new grant does not hold that token, so
    /// nothing filters it later, but it may still be valid: some providers accept one again for a while, or do not
    /// rotate.
    #[must_use]
    fn without(mut self, presented: &RefreshToken) -> Self {
        self.token_type = self.token_type.filter(|text| !presented.occurs_in(text));
        self.scope = self.scope.filter(|text| !presented.occurs_in(text));
        self.extra.0.retain(|name, value| {
            let text = value.as_str().is_some_and(|text| presented.occurs_in(text));
            !text && !presented.occurs_in(name) && !presented.occurs_in(&value.to_string())
        });
        self
    }
}

/// What the store keeps for an account. Not `Clone`: it holds a refresh token that may be good for one use.
#[derive(Debug)]
pub struct Grant {
    /// Id and generation.
    pub version: Version,
    /// The current access token.
    pub access_token: AccessToken,
    /// `Bearer` unless the provider said otherwise (RFC 6749 section 7.1).
    pub token_type: String,
    /// When the access token was requested.
    pub issued_at: Timestamp,
    /// When the access token expires; `None` when unknown.
    pub expires_at: Option<Timestamp>,
    /// The scope granted, which a narrowed access token does not change (OAuth 2.1 section 4.3.2).
    pub scope: Option<String>,
    /// What the next refresh presents.
    pub refresh_token: Option<RefreshToken>,
    /// The provider's other members.
    pub extra: Extra,
}

impl Grant {
    /// A new grant of generation 1, with tokens issued at `now`.
    #[must_use]
    pub fn new(id: GrantId, issued: Issued, now: Timestamp) -> Self {
        Self {
            version: Version { id, generation: 1 },
            expires_at: expiry(issued.lifetime, now),
            access_token: issued.access_token,
            token_type: issued.token_type.unwrap_or_else(|| BEARER.to_owned()),
            issued_at: now,
            scope: stated(issued.scope),
            refresh_token: issued.refresh_token,
            extra: issued.extra,
        }
    }

    /// The next generation: the members of `issued`, and the rest unchanged (invariants 1 and 2).
    #[must_use]
    pub fn refreshed(self, issued: Issued, now: Timestamp) -> Self {
        let issued = match &self.refresh_token {
            Some(presented) => issued.without(presented),
            None => issued,
        };
        let extra = merge_extra(self.extra, issued.extra);
        Self {
            version: Version { generation: self.version.generation.saturating_add(1), ..self.version },
            access_token: issued.access_token,
            token_type: issued.token_type.unwrap_or(self.token_type),
            issued_at: now,
            // A new token that has expired already is the mistake of a clock.
            expires_at: expiry(issued.lifetime, now).filter(|end| *end > now),
            scope: merge_scope(self.scope, stated(issued.scope)),
            refresh_token: issued.refresh_token.or(self.refresh_token),
            extra,
        }
    }
}

/// New members override old ones, within [`MAX_EXTRA_BYTES`]: a provider that invents new members at each refresh must
/// not fill the disk.
fn merge_extra(mut old: Extra, new: Extra) -> Extra {
    let size = |(name, value): (&String, &Value)| name.len().saturating_add(value.to_string().len());
    let total: usize = old.0.iter().chain(&new.0).map(size).sum();
    if total > MAX_EXTRA_BYTES {
        old.0.clear();
    }
    old.0.extend(new.0.into_iter().filter(|(_, value)| !value.is_null()));
    old
}

/// In bytes of JSON. A few long JWTs have some 20 KiB.
const MAX_EXTRA_BYTES: usize = 256 * 1024;

fn expiry(lifetime: Lifetime, now: Timestamp) -> Option<Timestamp> {
    match lifetime {
        Lifetime::Unknown => None,
        Lifetime::In(duration) => Some(now.plus(duration)),
        Lifetime::At(point) => Some(point),
    }
}

/// A narrower scope belongs to the access token alone; any other is the grant's new scope.
fn merge_scope(granted: Option<String>, answered: Option<String>) -> Option<String> {
    let (Some(granted), Some(answered)) = (&granted, &answered) else { return granted.or(answered) };
    let held: Vec<&str> = scope_items(granted).collect();
    let narrowed = scope_items(answered).all(|item| held.contains(&item));
    Some(if narrowed { granted.clone() } else { answered.clone() })
}

/// The scope, unless it is empty.
fn stated(scope: Option<String>) -> Option<String> {
    scope.filter(|scope| scope_items(scope).any(|item| !item.trim().is_empty()))
}

/// Space-delimited by RFC 6749 section 3.3; some providers use commas.
fn scope_items(scope: &str) -> impl Iterator<Item = &str> {
    scope.split([' ', ',']).filter(|item| !item.is_empty())
}

const BEARER: &str = "Bearer";

/// Members of the view that are made from the grant's own fields, whatever the provider sent under these names.
const STANDARD: [&str; 4] = ["access_token", "token_type", "expiry", "scope"];

/// Further members that may leave, if they are scalars.
const EXPOSED: [&str; 3] = ["account_id", "id_token", "resource_url"];

/// The view of a grant that may leave over a socket (invariant 3).
#[derive(Debug, Clone)]
pub struct SanitizedToken {
    /// The state of the grant.
    pub version: Version,
    /// When the access token was requested.
    pub issued_at: Timestamp,
    /// When it expires; `None` when unknown.
    pub expires_at: Option<Timestamp>,
    /// The granted scope without items that must not leave.
    pub scope: Option<String>,
    /// Whether there is a refresh token.
    pub refreshable: bool,
    body: TokenBody,
}

/// The view as JSON, wiped from memory when its last holder is dropped.
#[derive(Clone)]
struct TokenBody(Bytes);

impl fmt::Debug for TokenBody {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("TokenBody([REDACTED])")
    }
}

#[derive(Serialize)]
struct Wire<'a> {
    access_token: &'a str,
    token_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiry: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<&'a str>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

impl SanitizedToken {
    /// The view of `grant`; `expose` names further members that may leave.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the access token is what a caller asks for")]
    pub fn of(grant: &Grant, expose: &[String]) -> Self {
        let keeps = |text: &str| {
            !holds_forbidden_text(text) && !grant.refresh_token.as_ref().is_some_and(|secret| secret.occurs_in(text))
        };
        // Both the text and its JSON form: a carriage return before `efresh_token` is written `\r`.
        let safe = |text: &str| keeps(text) && keeps(&Value::from(text).to_string());
        let scope = grant.scope.as_deref().and_then(|scope| {
            let items: Vec<&str> = scope.split(' ').filter(|item| !item.trim().is_empty() && safe(item)).collect();
            // Items that are safe one by one may form a refresh token when they are joined.
            Some(items.join(" ")).filter(|joined| !joined.is_empty() && safe(joined))
        });
        let extra = grant.extra.0.iter().filter(|(name, value)| {
            let listed = EXPOSED.contains(&name.as_str()) || expose.contains(name);
            listed && !STANDARD.contains(&name.as_str()) && safe(name) && is_safe_scalar(value, safe)
        });
        let wire = Wire {
            access_token: grant.access_token.expose_secret(),
            token_type: if safe(&grant.token_type) { &grant.token_type } else { BEARER },
            expiry: grant.expires_at.map(Timestamp::as_secs),
            scope: scope.as_deref(),
            extra: extra.map(|(name, value)| (name.clone(), value.clone())).collect(),
        };
        // Strings, integers and a map with string keys always serialize.
        let body = Zeroizing::new(serde_json::to_vec(&wire).unwrap_or_default());
        Self {
            version: grant.version,
            issued_at: grant.issued_at,
            expires_at: grant.expires_at,
            scope,
            refreshable: grant.refresh_token.is_some(),
            body: TokenBody(Bytes::from_owner(body)),
        }
    }

    /// The view as a JSON object, access token included.
    #[must_use]
    pub fn json(&self) -> Bytes {
        self.body.0.clone()
    }

    /// Whether the token has expired at `now`, as far as is known.
    #[must_use]
    pub fn expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }

    /// The remaining life of the token at `now`; `None` when unknown.
    #[must_use]
    pub fn left(&self, now: Timestamp) -> Option<Duration> {
        self.expires_at.map(|end| end.since(now))
    }

    /// The token's whole life; `None` when unknown.
    #[must_use]
    pub fn lifetime(&self) -> Option<Duration> {
        self.expires_at.map(|end| end.since(self.issued_at))
    }
}

fn is_safe_scalar(value: &Value, safe: impl Fn(&str) -> bool) -> bool {
    match value {
        Value::Bool(_) => true,
        Value::Number(number) => safe(&number.to_string()),
        Value::String(text) => safe(text),
        Value::Null | Value::Array(_) | Value::Object(_) => false,
    }
}

#[cfg(test)]
pub(crate) mod properties;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn issued(extra: Value) -> Issued {
        let Value::Object(extra) = extra else { panic!("not an object") };
        Issued {
            access_token: AccessToken::new("at-2".into()).unwrap(),
            token_type: None,
            lifetime: Lifetime::In(Duration::from_hours(1)),
            scope: None,
            refresh_token: None,
            extra: extra.into(),
        }
    }

    fn grant(extra: Value) -> Grant {
        let first = Issued {
            scope: Some("a b c".into()),
            refresh_token: Some(RefreshToken::new("rt-canary".into()).unwrap()),
            ..issued(extra)
        };
        Grant::new(GrantId::from_bytes([7; 16]), first, NOW)
    }

    fn body(token: &SanitizedToken) -> Value {
        serde_json::from_slice(&token.json()).unwrap()
    }

    #[test]
    fn a_refresh_keeps_what_it_was_not_given_anew() {
        let after = grant(json!({"account_id": "me", "old": 1})).refreshed(issued(json!({"old": null, "new": 2})), NOW);
        assert_eq!(after.version.generation, 2);
        assert!(after.refresh_token.unwrap().same_as(&RefreshToken::new("rt-canary".into()).unwrap()));
        assert_eq!(after.scope.as_deref(), Some("a b c"));
        assert_eq!(Value::Object(after.extra.0), json!({"account_id": "me", "old": 1, "new": 2}));
    }

    #[test]
    fn what_quotes_the_refresh_token_that_was_presented_is_dropped() {
        let quoting = Issued {
            token_type: Some("rt-canary".into()),
            scope: Some("a rt-canary".into()),
            refresh_token: Some(RefreshToken::new("rt-next".into()).unwrap()),
            ..issued(
                json!({"account_id": "x rt-canary", "id_token": ["rt-canary"], "rt-canary": 1, "resource_url": "u"}),
            )
        };
        let after = grant(json!({"account_id": "me"})).refreshed(quoting, NOW);
        assert_eq!((after.token_type.as_str(), after.scope.as_deref()), ("Bearer", Some("a b c")));
        assert_eq!(Value::Object(after.extra.0), json!({"account_id": "me", "resource_url": "u"}));
    }

    #[test]
    fn members_do_not_pile_up_without_end() {
        let mut grant = grant(json!({}));
        for round in 0..20 {
            grant = grant.refreshed(issued(json!({format!("x{round}"): "x".repeat(MAX_EXTRA_BYTES / 4)})), NOW);
            assert!(Value::from(grant.extra.0.clone()).to_string().len() <= MAX_EXTRA_BYTES);
        }
        assert!(grant.extra.0.contains_key("x19"));
    }

    #[test]
    fn a_narrowed_scope_never_overwrites_the_granted_one() {
        for (answered, kept) in [("b", "a b c"), ("c a", "a b c"), ("a b c d", "a b c d"), ("x", "x"), ("b,c", "a b c")]
        {
            let after = grant(json!({})).refreshed(Issued { scope: Some(answered.into()), ..issued(json!({})) }, NOW);
            assert_eq!(after.scope.as_deref(), Some(kept), "{answered}");
        }
    }

    #[test]
    fn every_form_of_a_lifetime_is_read() {
        let read = |value: Value| Lifetime::from_expires_in(&value);
        let seconds = |number| Some(Lifetime::In(Duration::from_secs_f64(number)));
        assert_eq!(read(json!(3600)), seconds(3600.0));
        assert_eq!(read(json!("3600")), seconds(3600.0));
        assert_eq!(read(json!(3599.5)), seconds(3599.5));
        assert_eq!(read(json!(" 60 ")), seconds(60.0));
        for unknown in [json!(0), json!(-1), json!("NaN"), json!("inf"), json!(1e300), json!("-0.0")] {
            assert_eq!(read(unknown.clone()), Some(Lifetime::Unknown), "{unknown}");
        }
        for nothing in [json!(null), json!("soon"), json!([1]), json!({}), json!(true)] {
            assert_eq!(read(nothing.clone()), None, "{nothing}");
        }
    }

    #[test]
    fn only_scalars_on_the_list_leave() {
        let grant = grant(json!({
            "account_id": "me", "id_token": {"nested": "rt-canary"}, "resource_url": "https://x/?t=rt-canary",
            "tenant_id": 7, "authed_user": {"refresh_token": "x"}, "refresh_token_expires_in": 5, "secret": "s",
        }));
        let expose = ["tenant_id", "authed_user", "refresh_token_expires_in"].map(String::from);
        assert_eq!(
            body(&SanitizedToken::of(&grant, &expose)),
            json!({"access_token": "at-2", "token_type": "Bearer", "expiry": 1_700_003_600, "scope": "a b c",
                "account_id": "me", "tenant_id": 7}),
        );
    }

    #[test]
    fn a_scope_or_type_that_must_not_leave_is_left_out() {
        let mut grant = grant(json!({}));
        grant.scope = Some("a refresh_token rt-canary b".into());
        grant.token_type = "rt-canary".into();
        grant.expires_at = None;
        let expected = json!({"access_token": "at-2", "token_type": "Bearer", "scope": "a b"});
        assert_eq!(body(&SanitizedToken::of(&grant, &[])), expected);
    }

    #[test]
    fn a_refresh_token_with_a_space_does_not_come_together_in_the_scope() {
        let mut grant = grant(json!({}));
        grant.refresh_token = Some(RefreshToken::new("rt canary".into()).unwrap());
        grant.scope = Some("a rt canary".into());
        assert_eq!(SanitizedToken::of(&grant, &[]).scope, None);
    }

    #[test]
    fn debug_shows_of_the_other_members_only_how_many_there_are() {
        let shown = format!("{:?}", grant(json!({"authed_user": {"refresh_token": "canary"}, "id_token": "canary"})));
        assert!(shown.contains("Extra(2 members)") && !shown.contains("canary"), "{shown}");
    }

    #[test]
    fn what_only_the_json_would_spell_is_left_out() {
        let mut grant = grant(json!({"account_id": "\refresh_token", "id_token": "\rt-canary", "\refresh_token": 1}));
        grant.scope = Some("a \refresh_token \rt-canary".into());
        let json = SanitizedToken::of(&grant, &["\refresh_token".into()]).json();
        let expected = json!({"access_token": "at-2", "token_type": "Bearer", "expiry": 1_700_003_600, "scope": "a"});
        assert_eq!(serde_json::from_slice::<Value>(&json).unwrap(), expected);
    }

    #[test]
    fn no_member_of_the_providers_stands_for_one_of_ours() {
        let grant = grant(json!({"expiry": "never", "scope": 1, "token_type": "x", "access_token": "y"}));
        let expose = STANDARD.map(String::from);
        let expected =
            json!({"access_token": "at-2", "token_type": "Bearer", "expiry": 1_700_003_600, "scope": "a b c"});
        let json = SanitizedToken::of(&grant, &expose).json();
        assert_eq!(serde_json::from_slice::<Value>(&json).unwrap(), expected);
        assert_eq!(json.len(), expected.to_string().len());
    }

    #[test]
    fn an_answer_with_an_empty_scope_states_none() {
        let mut before = grant(json!({}));
        before.scope = None;
        let after = before.refreshed(Issued { scope: Some(" ".into()), ..issued(json!({})) }, NOW);
        assert_eq!(after.scope, None);
    }

    #[test]
    fn a_version_reads_back_and_nothing_else_does() {
        let version = Version { id: GrantId::from_bytes([0xab; 16]), generation: 12 };
        assert_eq!(version.to_string().parse(), Ok(version));
        for bad in [
            "",
            ":",
            "ab:1",
            &format!("{}:", "a".repeat(32)),
            &format!("{}:+1", "a".repeat(32)),
            &format!("+{}:1", "a".repeat(31)),
        ] {
            assert_eq!(bad.parse::<Version>(), Err(VersionError), "{bad}");
        }
    }
}
