//! Parses a token endpoint's answer: tokens, an error, or nothing usable.
//!
//! Invariants:
//! 1. An error takes precedence over tokens beside it, whatever the status: some providers answer errors with 200.
//! 2. Of an error only its code is kept.
//! 3. If an answer has tokens in two places, those of one place are used, together, and the others ignored.
//! 4. A refresh token that cannot be stored makes the whole answer unreadable. Using the access token alone would look
//!    like success, while the spent refresh token stays in the store and its successor is lost.
//!
//! Must not know: HTTP clients, what a reply means for a grant.

use std::time::{Duration, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};
use url::form_urlencoded;

use crate::{
    clock::Timestamp,
    dialect::{AnswerForm, Dialect, ExpiresInUnit, MemberNames},
    grant::{Issued, Lifetime},
    provider::{Body, ErrorCode},
    secret::{AccessToken, RefreshToken},
};

/// An answer as received.
#[derive(Clone, Copy)]
pub struct Received<'a> {
    /// The HTTP status.
    pub status: u16,
    /// Only a hint: providers send JSON as `text/html` and forms as `text/plain`.
    pub content_type: Option<&'a str>,
    /// The whole body.
    pub body: &'a [u8],
}

impl Received<'_> {
    const fn success(&self) -> bool {
        self.status >= 200 && self.status < 300
    }
}

/// Parses an answer that arrived at `now`, to a request that presented `presented`.
#[must_use]
pub fn read(received: Received<'_>, dialect: &Dialect, presented: Option<&RefreshToken>, now: Timestamp) -> Body {
    let Some(members) = members(received, &dialect.names) else { return Body::Unreadable };
    let success = received.success();
    if let Some(code) = error(&members, success) {
        Body::Error(ErrorCode::new(code, presented))
    } else if success {
        let members = token_members(members, dialect);
        issued(members, &dialect.answers, now).map_or(Body::Unreadable, |issued| Body::Issued(Box::new(issued)))
    } else {
        Body::Unreadable
    }
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// An answer's members under their standard names.
pub(in crate::provider) fn members(received: Received<'_>, names: &MemberNames) -> Option<Map<String, Value>> {
    let body = received.body;
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body).trim_ascii();
    if body.starts_with(b"{") {
        return serde_json::from_slice(body).ok().map(|members| names.standard(members));
    }
    let announced = received.content_type.is_some_and(|value| value.trim_start().starts_with(FORM));
    // Markup and prose contain a space or a bracket; a form contains neither.
    let plausible = body.iter().all(|byte| byte.is_ascii_graphic() && !b"<>\"{}".contains(byte));
    if !announced && !plausible {
        return None;
    }
    let form = form_urlencoded::parse(body).map(|(name, value)| (name.into_owned(), value.into_owned().into()));
    let form = names.standard(form.collect());
    ["access_token", "device_code", "error"].iter().any(|name| form.contains_key(*name)).then_some(form)
}

pub(in crate::provider) const FORM: &str = "application/x-www-form-urlencoded";

/// The members that describe the answer's own token, where another one is nested deeper.
const TOKEN_MEMBERS: [&str; 7] =
    ["access_token", "refresh_token", "token_type", "scope", "expires_in", "expires_at", "expiry"];

/// Returns the members of the object that holds the tokens, and those around it. If there is no access token at the
/// expected path, the answer itself is used: Slack nests the tokens of a login but not those of a refresh, and a
/// successor that is not found is lost.
fn token_members(mut members: Map<String, Value>, dialect: &Dialect) -> Map<String, Value> {
    let Some(inner) = take(&mut members, &dialect.answers.path, &dialect.names) else { return members };
    // They belong to another grant, which could not be refreshed, and would be mistaken for this one's.
    for name in TOKEN_MEMBERS {
        members.remove(name);
    }
    members.extend(inner);
    members
}

/// Removes and returns the object at the end of the path, if it holds an access token.
fn take(members: &mut Map<String, Value>, path: &[String], names: &MemberNames) -> Option<Map<String, Value>> {
    let (last, way) = path.split_last()?;
    let around = way.iter().try_fold(members, |members, name| members.get_mut(name)?.as_object_mut())?;
    let holds = |name| around.get(last)?.get(name).filter(|token| token.is_string());
    holds(names.of("access_token")).or_else(|| holds("access_token"))?;
    match around.remove(last)? {
        Value::Object(inner) => Some(names.standard(inner)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => None,
    }
}

/// Returns the number of seconds in a member, in any form that providers send; `None` unless it is above zero.
pub(in crate::provider) fn seconds(members: &Map<String, Value>, name: &str) -> Option<Duration> {
    match Lifetime::from_expires_in(members.get(name)?)? {
        Lifetime::In(duration) => Some(duration),
        Lifetime::Unknown | Lifetime::At(_) => None,
    }
}

/// Returns the answer's error code, which is empty for an error without one. `null`, `false`, `0` and empty values are
/// not errors.
pub(in crate::provider) fn error(members: &Map<String, Value>, success: bool) -> Option<&str> {
    let found = match members.get("error") {
        None | Some(Value::Null | Value::Bool(false)) => None,
        Some(Value::String(code)) => (!code.is_empty()).then_some(code.as_str()),
        // OpenAI: {"error": {"message": …, "type": …, "code": …}}.
        Some(Value::Object(error)) => {
            Some(["code", "type", "error"].iter().find_map(|name| text(error, name)).unwrap_or(""))
        }
        Some(Value::Number(number)) => (number.as_f64() != Some(0.0)).then_some(""),
        Some(Value::Array(errors)) => (!errors.is_empty()).then_some(""),
        Some(Value::Bool(true)) => Some(""),
    };
    // Slack: {"ok": false, "error": …}.
    let not_ok = || (members.get("ok") == Some(&Value::Bool(false))).then_some("");
    // In a success `code` is an ordinary member, and `__type` names the answer's type.
    let code = || if success { None } else { text(members, "code").or_else(|| text(members, "__type").map(exception)) };
    found.or_else(code).or_else(not_ok)
}

/// AWS: `com.amazonaws.ssooidc#ExpiredTokenException:http://…` has the code in the middle; it may also stand alone.
fn exception(named: &str) -> &str {
    let name = named.split_once(':').map_or(named, |(name, _)| name);
    name.rsplit_once('#').map_or(name, |(_, name)| name)
}

pub(in crate::provider) fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    members.get(name)?.as_str().filter(|text| !text.is_empty())
}

fn issued(mut members: Map<String, Value>, form: &AnswerForm, now: Timestamp) -> Option<Issued> {
    let Some(Value::String(access_token)) = members.remove("access_token") else { return None };
    let hinted = hinted_end(&access_token).filter(|end| *end > now);
    let access_token = AccessToken::new(access_token).ok()?;
    let refresh_token = match members.remove("refresh_token") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(Value::String(text)) => Some(RefreshToken::new(text).ok()?),
        Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => return None,
    };
    let expires_in = members.remove("expires_in");
    let lifetime = stated(expires_in.as_ref(), &members, form.expires_in_unit)
        .or(hinted.map(Lifetime::At))
        .or(form.default_lifetime.map(Lifetime::In))
        .unwrap_or(Lifetime::Unknown);
    Some(Issued {
        access_token,
        token_type: members.remove("token_type").and_then(token_type),
        lifetime,
        scope: members.remove("scope").and_then(scope),
        refresh_token,
        extra: members.into(),
    })
}

/// Returns the token type if it can precede a token in a header (RFC 9110 section 11.1: an authentication scheme is a
/// token).
fn token_type(value: Value) -> Option<String> {
    let Value::String(text) = value else { return None };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    ((1..=MAX_TOKEN_TYPE_BYTES).contains(&text.len()) && text.bytes().all(plain)).then_some(text)
}

/// Registered types have at most six letters.
const MAX_TOKEN_TYPE_BYTES: usize = 32;

fn scope(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Array(items) => Some(items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// Returns the lifetime from `expires_in`, or from the expiry time that some providers send beside it or instead.
fn stated(sent: Option<&Value>, members: &Map<String, Value>, unit: ExpiresInUnit) -> Option<Lifetime> {
    let known = |lifetime: &Lifetime| *lifetime != Lifetime::Unknown;
    let expires_in = |value: &Value| match unit {
        ExpiresInUnit::Seconds => Lifetime::from_expires_in(value),
        ExpiresInUnit::Milliseconds => Lifetime::from_expires_in(&(number(value)? / 1000.0).into()),
    };
    let at = |name: &&str| expires_at(members.get(*name)?).filter(known);
    sent.and_then(expires_in).filter(known).or_else(|| ["expires_at", "expiry"].iter().find_map(at))
}

/// A larger number of seconds would lie beyond the year 5000, so it is in milliseconds.
const SECONDS_END: f64 = 1e11;

fn expires_at(value: &Value) -> Option<Lifetime> {
    let number = number(value)?;
    Lifetime::from_expires_at(&if number > SECONDS_END { number / 1000.0 } else { number }.into())
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Returns the `exp` of a token that is a JWT (RFC 7519 section 4.1.4). Its signature is checked by the resource
/// server; here it is a hint, trusted as much as `expires_in`.
fn hinted_end(access_token: &str) -> Option<Timestamp> {
    let mut parts = access_token.split('.');
    let (Some(_), Some(claims), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    let claims: Map<String, Value> = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    match Lifetime::from_expires_at(claims.get("exp").filter(|exp| exp.is_number())?)? {
        Lifetime::At(end) => Some(end),
        Lifetime::In(_) | Lifetime::Unknown => None,
    }
}

/// Parses `Retry-After`: seconds or an HTTP date (RFC 9110 section 10.2.3). A past date is no wait. The value is capped
/// at 136 years: few clocks can count further.
#[must_use]
pub fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse::<u32>().unwrap_or(u32::MAX).into()));
    }
    let date = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp::from_millis(0).plus(date).since(now))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

    fn read_in(dialect: &Dialect, status: u16, body: &Value) -> Body {
        let body = body.to_string();
        read(Received { status, content_type: None, body: body.as_bytes() }, dialect, None, NOW)
    }

    fn read_json(status: u16, body: &Value) -> Body {
        read_in(&Dialect::default(), status, body)
    }

    fn lifetime_of(extra: &Value) -> Lifetime {
        let mut body = json!({"access_token": "at"});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let Body::Issued(issued) = read_json(200, &body) else { panic!("{extra}") };
        issued.lifetime
    }

    #[test]
    fn the_end_of_a_token_is_read_in_every_form() {
        let seconds = |number| Lifetime::In(Duration::from_secs_f64(number));
        let at = |millis| Lifetime::At(Timestamp::from_millis(millis));
        for (members, lifetime) in [
            (json!({"expires_in": 3600}), seconds(3600.0)),
            (json!({"expires_in": "3600"}), seconds(3600.0)),
            (json!({"expires_in": 3599.5}), seconds(3599.5)),
            (json!({"expires_in": 60, "expires_at": 1_900_000_000}), seconds(60.0)),
            (json!({"expires_in": 0}), Lifetime::Unknown),
            (json!({"expires_in": -1}), Lifetime::Unknown),
            (json!({"expires_in": "soon"}), Lifetime::Unknown),
            (json!({"expires_in": null}), Lifetime::Unknown),
            (json!({"expires_in": {"seconds": 1}}), Lifetime::Unknown),
            (json!({}), Lifetime::Unknown),
            (json!({"expires_at": 1_900_000_000}), at(1_900_000_000_000)),
            (json!({"expires_at": "1900000000"}), at(1_900_000_000_000)),
            (json!({"expires_at": 1_900_000_000_500_u64}), at(1_900_000_000_500)),
            (json!({"expiry": 1_900_000_000, "expires_in": "x"}), at(1_900_000_000_000)),
            (json!({"expires_at": "2030-01-01T00:00:00Z"}), Lifetime::Unknown),
            (json!({"expires_at": "inf"}), Lifetime::Unknown),
            (json!({"expires_at": 1e300}), Lifetime::Unknown),
            (json!({"expires_at": null, "expiry": 1_900_000_000}), at(1_900_000_000_000)),
        ] {
            assert_eq!(lifetime_of(&members), lifetime, "{members}");
        }
    }

    /// An access token whose claims say this.
    fn jwt(claims: &Value) -> Value {
        let part = |text: &Value| URL_SAFE_NO_PAD.encode(text.to_string());
        format!("{}.{}.c2ln", part(&json!({"alg": "none"})), part(claims)).into()
    }

    #[test]
    fn what_an_answer_does_not_say_of_the_end_is_hinted_at_or_assumed() {
        let seconds = |number| Lifetime::In(Duration::from_secs(number));
        let at = |seconds| Lifetime::At(Timestamp::from_secs(seconds));
        let (end, hint, hour) = (1_700_000_900, jwt(&json!({"exp": 1_700_000_900, "sub": "x"})), seconds(3600));
        for (answer, alone, with_default) in [
            (json!({"access_token": "opaque"}), Lifetime::Unknown, hour),
            (json!({"access_token": hint}), at(end), at(end)),
            (json!({"access_token": hint, "expires_in": 60}), seconds(60), seconds(60)),
            (json!({"access_token": hint, "expires_in": 0}), at(end), at(end)),
            (json!({"access_token": hint, "expires_at": 1_900_000_000}), at(1_900_000_000), at(1_900_000_000)),
            (json!({"access_token": jwt(&json!({"exp": 1_700_000_000}))}), Lifetime::Unknown, hour),
            (json!({"access_token": jwt(&json!({"exp": "1700000900"}))}), Lifetime::Unknown, hour),
            (json!({"access_token": jwt(&json!({"exp": 1e300}))}), Lifetime::Unknown, hour),
            (json!({"access_token": jwt(&json!([]))}), Lifetime::Unknown, hour),
            (json!({"access_token": "a.!.c"}), Lifetime::Unknown, hour),
            (json!({"access_token": "a.b.c.d"}), Lifetime::Unknown, hour),
            (json!({"access_token": "..", "expires_in": "soon"}), Lifetime::Unknown, hour),
        ] {
            let default_lifetime = Some(Duration::from_hours(1));
            let answers = AnswerForm { default_lifetime, ..AnswerForm::default() };
            let assuming = Dialect { answers, ..Dialect::default() };
            for (dialect, expected) in [(Dialect::default(), alone), (assuming, with_default)] {
                let Body::Issued(issued) = read_in(&dialect, 200, &answer) else { panic!("{answer}") };
                assert_eq!(issued.lifetime, expected, "{answer}");
            }
        }
    }

    #[test]
    fn a_life_may_be_counted_in_milliseconds() {
        let answers = AnswerForm { expires_in_unit: ExpiresInUnit::Milliseconds, ..AnswerForm::default() };
        let dialect = Dialect { answers, ..Dialect::default() };
        for (sent, lifetime) in [
            (json!(3_600_000), Lifetime::In(Duration::from_hours(1))),
            (json!("1500"), Lifetime::In(Duration::from_millis(1500))),
            (json!(0), Lifetime::Unknown),
            (json!(-1), Lifetime::Unknown),
            (json!("NaN"), Lifetime::Unknown),
            (json!(1e300), Lifetime::Unknown),
        ] {
            let answer = json!({"access_token": "at", "expires_in": sent});
            let Body::Issued(issued) = read_in(&dialect, 200, &answer) else { panic!("{answer}") };
            assert_eq!(issued.lifetime, lifetime, "{answer}");
        }
    }

    fn nesting(path: &[&str]) -> Dialect {
        let answers =
            AnswerForm { path: path.iter().map(|name| (*name).to_owned()).collect(), ..AnswerForm::default() };
        let names = MemberNames::new([("access_token", "accessToken"), ("refresh_token", "refreshToken")]).unwrap();
        Dialect { names, answers, ..Dialect::default() }
    }

    #[test]
    fn tokens_are_taken_together_from_where_they_are() {
        let outer = json!({"ok": true, "access_token": "outer", "refresh_token": "outer-rt", "scope": "s", "team": 1});
        let with = |inner: Value| {
            let mut answer = outer.clone();
            answer["user"] = inner;
            answer
        };
        let deep = json!({"data": {"user": {"accessToken": "inner"}, "other": 1}, "access_token": "outer"});
        for (path, answer, token, refreshable, extra) in [
            (
                &["user"][..],
                with(json!({"access_token": "inner", "refresh_token": "inner-rt", "id": "U", "team": 2})),
                "inner",
                true,
                json!({"ok": true, "id": "U", "team": 2}),
            ),
            (&["user"], with(json!({"accessToken": "inner"})), "inner", false, json!({"ok": true, "team": 1})),
            (&["user"], outer.clone(), "outer", true, json!({"ok": true, "team": 1})),
            (&["user"], with(json!({"id": 1})), "outer", true, json!({"ok": true, "team": 1, "user": {"id": 1}})),
            (&["user"], with(json!("text")), "outer", true, json!({"ok": true, "team": 1, "user": "text"})),
            (&["data", "user"], deep.clone(), "inner", false, json!({"data": {"other": 1}})),
            (
                &["data", "nobody"],
                deep,
                "outer",
                false,
                json!({"data": {"user": {"accessToken": "inner"}, "other": 1}}),
            ),
        ] {
            let Body::Issued(issued) = read_in(&nesting(path), 200, &answer) else { panic!("{answer}") };
            assert!(issued.access_token.reveals(&RefreshToken::new(token.into()).unwrap()), "{answer}");
            let own = RefreshToken::new(format!("{token}-rt")).unwrap();
            let refresh_token = issued.refresh_token.as_ref();
            assert_eq!(refresh_token.is_some_and(|token| token.same_as(&own)), refreshable, "{answer}");
            assert_eq!(Value::Object(issued.extra.members().clone()), extra, "{answer}");
        }
    }

    #[test]
    fn an_error_counts_wherever_the_tokens_are() {
        for answer in [
            json!({"ok": false, "error": "token_revoked", "user": {"access_token": "inner"}}),
            json!({"error": "token_revoked", "access_token": "outer"}),
        ] {
            let Body::Error(code) = read_in(&nesting(&["user"]), 200, &answer) else { panic!("{answer}") };
            assert_eq!(code.as_str(), "token_revoked");
        }
        let names = MemberNames::new([("error", "errorCode")]).unwrap();
        let dialect = Dialect { names, ..Dialect::default() };
        let Body::Error(code) = read_in(&dialect, 200, &json!({"errorCode": "gone"})) else { panic!("no error") };
        assert_eq!(code.as_str(), "gone");
    }

    #[test]
    fn the_name_of_an_exception_is_an_error_code() {
        for (answer, code) in [
            (json!({"__type": "ExpiredTokenException", "message": "m"}), "ExpiredTokenException"),
            (json!({"__type": "com.amazonaws.ssooidc#InvalidGrantException"}), "InvalidGrantException"),
            (json!({"__type": "a.b#SlowDownException:http://c.example/d#e"}), "SlowDownException"),
            (json!({"__type": "SlowDownException:http://c.example/d"}), "SlowDownException"),
            (json!({"__type": "InvalidGrantException", "error": "invalid_grant"}), "invalid_grant"),
        ] {
            let Body::Error(found) = read_json(400, &answer) else { panic!("{answer}") };
            assert_eq!(found.as_str(), code, "{answer}");
        }
        assert!(matches!(read_json(200, &json!({"access_token": "at", "__type": "Token"})), Body::Issued(_)));
    }

    #[test]
    fn members_that_are_not_standard_are_kept_as_they_came() {
        let Body::Issued(issued) = read_json(
            200,
            &json!({"access_token": "at", "token_type": "bearer", "scope": ["a", "b"], "refresh_token": "rt",
                "expires_in": 1, "error": null, "code": "x", "team": {"id": 1}, "ok": true}),
        ) else {
            panic!("not issued");
        };
        assert_eq!(
            Value::Object(issued.extra.members().clone()),
            json!({"error": null, "code": "x", "team": {"id": 1}, "ok": true})
        );
        assert_eq!((issued.token_type.as_deref(), issued.scope.as_deref()), (Some("bearer"), Some("a b")));
        assert!(issued.refresh_token.unwrap().same_as(&RefreshToken::new("rt".into()).unwrap()));
    }

    #[test]
    fn a_token_type_that_is_no_plain_word_is_dropped() {
        for (sent, kept) in [
            (json!("Bearer"), Some("Bearer")),
            (json!("DPoP"), Some("DPoP")),
            (json!(""), None),
            (json!("Bearer x"), None),
            (json!("a\r\nb"), None),
            (json!("x".repeat(33)), None),
            (json!(7), None),
        ] {
            let Body::Issued(issued) = read_json(200, &json!({"access_token": "at", "token_type": sent})) else {
                panic!("{sent}");
            };
            assert_eq!(issued.token_type.as_deref(), kept);
        }
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now = Timestamp::from_secs(784_111_777);
        let seconds = |number| Some(Duration::from_secs(number));
        for (text, wait) in [
            ("120", seconds(120)),
            (" 0 ", seconds(0)),
            ("99999999999999999999999", seconds(u32::MAX.into())),
            ("Sun, 06 Nov 1994 08:50:07 GMT", seconds(30)),
            ("Sunday, 06-Nov-94 08:50:07 GMT", seconds(30)),
            ("Sun Nov  6 08:50:07 1994", seconds(30)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", seconds(0)),
            ("-1", None),
            ("1.5", None),
            ("+5", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(retry_after(text, now), wait, "{text}");
        }
    }

    fn names() -> impl Strategy<Value = String> {
        let known = ["access_token", "refresh_token", "token_type", "scope", "expires_in", "error", "ok", "code"];
        prop_oneof![
            4 => Just("access_token".to_owned()),
            9 => proptest::sample::select(known.to_vec()).prop_map(str::to_owned),
            1 => ".{0,5}",
        ]
    }

    fn values() -> impl Strategy<Value = Value> {
        let token = "t[a-z]{0,4}(refresh_token|Refresh_Token|REFRESH_TOKEN|canary-rt| |\n|é)?[a-z]{0,4}";
        prop_oneof![
            6 => token.prop_map(Value::from),
            1 => Just(Value::Null),
            1 => any::<bool>().prop_map(Value::from),
            1 => any::<i64>().prop_map(Value::from),
            1 => Just(json!({"code": "canary-rt", "type": "x"})),
            1 => Just(json!(["canary-rt"])),
            1 => Just(json!("")),
        ]
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(status in 100_u16..600, body in proptest::collection::vec(any::<u8>(), 0..200)) {
            for content_type in [None, Some(FORM)] {
                drop(read(Received { status, content_type, body: &body }, &Dialect::default(), None, NOW));
            }
        }

        #[test]
        fn no_answer_gives_a_token_that_could_not_leave(
            status in prop_oneof![Just(200_u16), 100..600_u16],
            members in proptest::collection::vec((names(), values()), 0..7),
            trailing in ".{0,3}",
        ) {
            let members: Map<String, Value> = members.into_iter().collect();
            let form = form_urlencoded::Serializer::new(String::new())
                .extend_pairs(members.iter().filter_map(|(name, value)| Some((name, value.as_str()?))))
                .finish();
            let token = |text: &str| RefreshToken::new(text.into()).unwrap();
            let json = Value::Object(members).to_string();
            let nested = format!("{{\"refresh_token\":\"canary-rt\",\"expires_in\":1,\"user\":{json}}}");
            let dialects = [Dialect::default(), nesting(&["user"])];
            for body in [json.clone(), format!("{json}{trailing}"), form, nested] {
                for (content_type, dialect) in [(None, 0), (None, 1), (Some(FORM), 0), (Some(FORM), 1)] {
                    let dialect = &dialects[dialect];
                    let received = Received { status, content_type, body: body.as_bytes() };
                    match read(received, dialect, Some(&token("canary-rt")), NOW) {
                        Body::Issued(issued) => {
                            prop_assert!((200..300).contains(&status), "{body}");
                            for word in ["refresh_token", "Refresh_Token", "REFRESH_TOKEN"] {
                                prop_assert!(!issued.access_token.reveals(&token(word)), "{body}");
                            }
                            let known = ["access_token", "refresh_token", "token_type", "scope", "expires_in"];
                            prop_assert!(known.iter().all(|name| !issued.extra.members().contains_key(*name)), "{body}");
                            prop_assert!(!issued.extra.members().contains_key("error") || issued.extra.members()["error"] != "x", "{body}");
                        }
                        Body::Error(code) => prop_assert!(!code.as_str().contains("canary-rt"), "{body}"),
                        Body::Unreadable => {}
                    }
                }
            }
        }

        #[test]
        fn no_number_makes_the_reader_panic(number in any::<f64>(), text in "[0-9.eE+-]{0,30}") {
            lifetime_of(&json!({"expires_at": number}));
            lifetime_of(&json!({"expires_in": text.clone(), "expires_at": text}));
        }

        #[test]
        fn no_retry_after_makes_the_reader_panic(text in ".*", now in any::<i64>()) {
            prop_assert!(retry_after(&text, Timestamp::from_millis(now)) >= None);
        }
    }
}
