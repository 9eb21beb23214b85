//! What the targets share: grants to begin with, the text that must not leave, and a whole API in process.

pub mod world;

use credproxy::{
    account::Account,
    grant::{Extra, Grant, GrantId, Version},
    secret::{AccessToken, FORBIDDEN_TEXT, RefreshToken},
};
use serde_json::{Map, Value};

/// Marks what may not leave. No word of ours, so that finding it means a leak.
pub const MARK: &str = "canary-rt-";

/// A refresh token that may not leave; of one length, so that none is a part of another.
#[must_use]
pub fn secret(number: u32) -> String {
    format!("{MARK}{number:08}")
}

/// Whether the text that never leaves is in `bytes`, in any case of letters.
#[must_use]
pub fn holds_forbidden_text(bytes: &[u8]) -> bool {
    bytes.windows(FORBIDDEN_TEXT.len()).any(|window| window.eq_ignore_ascii_case(FORBIDDEN_TEXT.as_bytes()))
}

/// Whether `text` is in `bytes`.
#[must_use]
pub fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The account that the targets begin with.
#[must_use]
pub fn corp() -> Account {
    "corp".parse().unwrap()
}

/// Its grant, issued at the beginning of 2025 for an hour.
#[must_use]
pub fn grant() -> Grant {
    Grant {
        version: Version { id: GrantId::from_bytes([7; 16]), generation: 1 },
        access_token: AccessToken::new("at-0".into()).unwrap(),
        token_type: "Bearer".into(),
        issued_at: world::START,
        expires_at: Some(world::START.plus(std::time::Duration::from_secs(3600))),
        scope: Some("read write".into()),
        refresh_token: Some(RefreshToken::new(secret(0)).unwrap()),
        extra: Extra::default(),
    }
}

/// What a caller gets to see is one flat JSON object, without the forbidden text and without `secret`.
pub fn check_view(json: &[u8], secret: Option<&str>) {
    assert!(!holds_forbidden_text(json), "the view holds the forbidden text");
    assert!(!secret.is_some_and(|secret| holds(json, secret)), "the view holds the refresh token");
    let view: Map<String, Value> = serde_json::from_slice(json).expect("the view is no JSON object");
    assert!(view.values().all(|value| !value.is_null() && !value.is_array() && !value.is_object()), "{view:?}");
    for name in ["access_token", "token_type", "expiry", "scope"] {
        let member = format!("\"{name}\":");
        let count = json.windows(member.len()).filter(|window| *window == member.as_bytes()).count();
        // A quotation mark in a value is escaped.
        assert!(count <= 1, "{name} stands in the view twice");
    }
}
