//! Reads a token endpoint's answer: tokens, an error, or nothing of use.
//!
//! Invariants:
//! 1. An error wins over tokens beside it, whatever the status: some providers answer errors with 200.
//! 2. Of an error its code is kept and no other text.
//! 3. A refresh token that cannot be kept makes the whole answer unreadable. To take the access token and go on would
//!    look like success, while the spent refresh token stays in the store and its successor is gone.
//!
//! Must not know: HTTP clients, what a reply means for a grant.

use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value};
use url::form_urlencoded;

use crate::{
    clock::Timestamp,
    grant::{Issued, Lifetime},
    provider::{Body, ErrorCode},
    secret::{AccessToken, RefreshToken},
};

/// Reads the body of an answer to a request that presented `presented`. The content type is a hint only: providers
/// send JSON as `text/html` and forms as `text/plain`.
#[must_use]
pub fn read(status: u16, content_type: Option<&str>, body: &[u8], presented: Option<&RefreshToken>) -> Body {
    let Some(members) = members(content_type, body) else { return Body::Unreadable };
    let success = (200..300).contains(&status);
    if let Some(code) = error(&members, success) {
        Body::Error(ErrorCode::new(code, presented))
    } else if success {
        issued(members).map_or(Body::Unreadable, |issued| Body::Issued(Box::new(issued)))
    } else {
        Body::Unreadable
    }
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

fn members(content_type: Option<&str>, body: &[u8]) -> Option<Map<String, Value>> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body).trim_ascii();
    if body.starts_with(b"{") {
        return serde_json::from_slice(body).ok();
    }
    let announced = content_type.is_some_and(|value| value.trim_start().starts_with(FORM));
    // Markup and prose have a space or a bracket somewhere; a form has neither.
    let plausible = body.iter().all(|byte| byte.is_ascii_graphic() && !b"<>\"{}".contains(byte));
    if !announced && !plausible {
        return None;
    }
    let form: Map<String, Value> =
        form_urlencoded::parse(body).map(|(name, value)| (name.into_owned(), value.into_owned().into())).collect();
    (form.contains_key("access_token") || form.contains_key("error")).then_some(form)
}

pub(in crate::provider) const FORM: &str = "application/x-www-form-urlencoded";

/// The answer's error code, empty when it is an error without one. `null`, `false`, `0` and the empty forms are none.
fn error(members: &Map<String, Value>, success: bool) -> Option<&str> {
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
    // On a success `code` is a member like any other.
    let code = || if success { None } else { text(members, "code") };
    found.or_else(code).or_else(not_ok)
}

fn text<'a>(members: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    members.get(name)?.as_str().filter(|text| !text.is_empty())
}

fn issued(mut members: Map<String, Value>) -> Option<Issued> {
    let Some(Value::String(access_token)) = members.remove("access_token") else { return None };
    let access_token = AccessToken::new(access_token).ok()?;
    let refresh_token = match members.remove("refresh_token") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(Value::String(text)) => Some(RefreshToken::new(text).ok()?),
        Some(Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => return None,
    };
    let expires_in = members.remove("expires_in");
    Some(Issued {
        access_token,
        token_type: members.remove("token_type").and_then(token_type),
        lifetime: lifetime(expires_in.as_ref(), &members),
        scope: members.remove("scope").and_then(scope),
        refresh_token,
        extra: members.into(),
    })
}

/// Kept if it can stand before a token in a header (RFC 9110 section 11.1: an authentication scheme is a token).
fn token_type(value: Value) -> Option<String> {
    let Value::String(text) = value else { return None };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    ((1..=LONGEST_TOKEN_TYPE).contains(&text.len()) && text.bytes().all(plain)).then_some(text)
}

/// Those registered have at most six letters.
const LONGEST_TOKEN_TYPE: usize = 32;

fn scope(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Array(items) => Some(items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// `expires_in`, or else the point of time that some providers send beside it or instead.
fn lifetime(expires_in: Option<&Value>, members: &Map<String, Value>) -> Lifetime {
    let known = |lifetime: &Lifetime| *lifetime != Lifetime::Unknown;
    expires_in
        .and_then(Lifetime::from_expires_in)
        .filter(known)
        .or_else(|| ["expires_at", "expiry"].iter().find_map(|name| expires_at(members.get(*name)?).filter(known)))
        .unwrap_or(Lifetime::Unknown)
}

/// More than this many seconds would lie past the year 5000: the number is one of milliseconds.
const SECONDS_END: f64 = 1e11;

fn expires_at(value: &Value) -> Option<Lifetime> {
    let number = match value {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    Lifetime::from_expires_at(&if number > SECONDS_END { number / 1000.0 } else { number }.into())
}

/// Reads `Retry-After`: seconds or an HTTP date (RFC 9110 section 10.2.3). A date that is past is no wait. More than
/// 136 years are as much as those: few clocks can count further.
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

    fn read_json(status: u16, body: &Value) -> Body {
        read(status, None, body.to_string().as_bytes(), None)
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
            drop(read(status, None, &body, None));
            drop(read(status, Some(FORM), &body, None));
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
            for body in [json.clone(), format!("{json}{trailing}"), form] {
                for content_type in [None, Some(FORM)] {
                    match read(status, content_type, body.as_bytes(), Some(&token("canary-rt"))) {
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
