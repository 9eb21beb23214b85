//! A token endpoint's answer: the first line is status and content type (or `Retry-After`), the rest is the body.
//! Whatever it is, it is read, in one dialect and another, classified and merged, and the view of the result gives nothing
//! away.

#![no_main]

use credproxy::{
    grant::SanitizedToken,
    provider::{
        Body, Reply, Rules,
        wire::answer::{self, Received},
    },
    refresh::outcome::{Classified, classify},
    dialect::{AnswerForm, Dialect, ExpiresInUnit, MemberNames},
    secret::holds_forbidden_text,
    store::Outcome,
};
use fuzz::{check_view, grant, secret, world::START};
use libfuzzer_sys::fuzz_target;
use secrecy::ExposeSecret as _;

/// A provider of its own kind: other names, tokens that lie deeper, and every other way to read a life.
fn odd() -> Dialect {
    let names = [
        ("access_token", "accessToken"),
        ("refresh_token", "refreshToken"),
        ("expires_in", "expiresIn"),
        ("error", "code"),
    ];
    let answers = AnswerForm {
        path: ["authed_user", "x"].map(String::from).to_vec(),
        expires_in_unit: ExpiresInUnit::Milliseconds,
        default_lifetime: Some(std::time::Duration::from_secs(60)),
    };
    Dialect { names: MemberNames::new(names).expect("good names"), answers, ..Dialect::default() }
}

fuzz_target!(|input: &[u8]| {
    for dialect in [Dialect::default(), odd()] {
        check(input, &dialect);
    }
});

fn check(input: &[u8], dialect: &Dialect) {
    let (head, body) = input.split_at(input.iter().position(|byte| *byte == b'\n').unwrap_or(0));
    let head = String::from_utf8_lossy(head);
    let (status, content_type) = head.split_once(' ').unwrap_or((&head, ""));
    let status = status.parse().unwrap_or(200_u16);
    let current = grant();
    let retry_after = answer::retry_after(content_type, START);
    let received = Received { status, content_type: Some(content_type), body };
    let body = answer::read(received, dialect, current.refresh_token.as_ref(), START);
    let success = (200..300).contains(&status);
    if let Body::Issued(issued) = &body {
        assert!(success && !holds_forbidden_text(issued.access_token.expose_secret()));
    }
    let dead = matches!(&body, Body::Error(code) if code.as_str() == "invalid_grant");
    if let Body::Error(code) = &body {
        assert!(!code.shown().is_some_and(|code| holds_forbidden_text(code) || code.contains(&secret(0))));
    }
    let rules = Rules { expose: ["tenant_id", "expiry", "team"].map(String::from).to_vec(), ..Rules::default() };
    match classify(Reply::Answered { status, body, retry_after }, &rules, &current) {
        Classified::Success(issued) => {
            assert!(success && !dead);
            let next = current.refreshed(*issued, START);
            assert!(next.version == credproxy::grant::Version { generation: 2, ..grant().version });
            assert!(next.expires_at.is_none_or(|end| end > START));
            assert!(next.scope.as_ref().is_some_and(|scope| !scope.trim().is_empty()));
            let kept = next.refresh_token.as_ref().map(|token| token.expose_secret()).expect("it was lost");
            // What a view is made of could hold a short one by accident.
            let kept = (kept == secret(0)).then_some(kept);
            check_view(&SanitizedToken::of(&next, &rules.expose).json(), kept);
        }
        Classified::Failure(failure) => {
            assert!(failure.outcome != Outcome::Success && (failure.outcome == Outcome::Final) == dead);
        }
    }
}
