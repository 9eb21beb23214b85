//! Classification: what a provider's reply means for the refresh token that was presented.
//!
//! Owns: the five classes of failure and the rule that assigns them, by code and status, never by searching prose.
//!
//! Must not know: time, stores, how an outcome is handled.

use std::time::Duration;

use crate::{
    grant::{Grant, Issued},
    provider::{Body, ErrorCode, Reply, Rules},
    store::Outcome,
};

/// An attempt without new tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Never [`Outcome::Success`].
    pub outcome: Outcome,
    /// The provider's error code, if it may be shown.
    pub code: Option<String>,
    /// The provider did not answer in time.
    pub timed_out: bool,
    /// The provider's `Retry-After`, from now.
    pub retry_after: Option<Duration>,
    /// A description in our own words.
    pub reason: &'static str,
}

/// A classified reply.
#[derive(Debug)]
pub enum Classified {
    /// New tokens.
    Success(Box<Issued>),
    /// None.
    Failure(Failure),
}

/// RFC 6749 section 5.2: the codes that blame the client, not the grant.
const CONFIGURATION_CODES: [&str; 5] =
    ["invalid_client", "unauthorized_client", "unsupported_grant_type", "invalid_scope", "invalid_request"];

/// RFC 6749 section 4.1.2.1 and RFC 8628 section 3.5: temporary errors.
const LATER_CODES: [&str; 2] = ["slow_down", "temporarily_unavailable"];

/// Classifies the reply to a presentation of `current`'s refresh token.
#[must_use]
pub fn classify(reply: Reply, rules: &Rules, current: &Grant) -> Classified {
    let failure = |outcome, reason| Failure { outcome, code: None, timed_out: false, retry_after: None, reason };
    Classified::Failure(match reply {
        Reply::NotSent(reason) => failure(Outcome::NotSpent, reason),
        Reply::Lost { timed_out: true } => {
            Failure { timed_out: true, ..failure(Outcome::Ambiguous, "the provider did not answer in time") }
        }
        Reply::Lost { timed_out: false } => failure(Outcome::Ambiguous, "the provider's answer was lost on the way"),
        Reply::Answered { body: Body::Issued(issued), status, .. } if success(status) => {
            if !issued.reveals(current.refresh_token.as_ref()) {
                return Classified::Success(issued);
            }
            failure(Outcome::Ambiguous, "the provider's access token gives its refresh token away")
        }
        Reply::Answered { status, body, retry_after } => {
            let code = match &body {
                Body::Error(code) => Some(code),
                Body::Issued(_) | Body::Unreadable => None,
            };
            let (outcome, reason) = if rules.is_dead(status, code) {
                (Outcome::Final, "the provider no longer accepts the grant")
            } else {
                by_code(code).unwrap_or_else(|| by_status(status, code.is_some()))
            };
            let code = code.and_then(ErrorCode::shown).map(str::to_owned);
            Failure { code, retry_after, ..failure(outcome, reason) }
        }
    })
}

const fn success(status: u16) -> bool {
    status >= 200 && status < 300
}

/// A known code alone decides: providers send `invalid_grant` with 200, 400, 401 and 403.
fn by_code(code: Option<&ErrorCode>) -> Option<(Outcome, &'static str)> {
    let code = code?.as_str();
    if LATER_CODES.contains(&code) {
        Some((Outcome::NotSpent, "the provider asks to come back later"))
    } else if CONFIGURATION_CODES.contains(&code) {
        Some((Outcome::Configuration, "the provider does not accept this client as it is configured"))
    } else {
        None
    }
}

fn by_status(status: u16, error_readable: bool) -> (Outcome, &'static str) {
    match status {
        408 | 429 => (Outcome::NotSpent, "the provider asks to come back later"),
        503 if error_readable => (Outcome::NotSpent, "the provider asks to come back later"),
        300..500 => (Outcome::Refused, "the provider refused without a reason that is known"),
        200..300 if error_readable => (Outcome::Refused, "the provider refused without a reason that is known"),
        200..300 => (Outcome::Ambiguous, "the provider's answer holds neither a token nor an error"),
        _ => (Outcome::Ambiguous, "the provider failed after it had the request"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        clock::Timestamp,
        grant::{Extra, GrantId, Lifetime},
        secret::{AccessToken, RefreshToken},
    };

    fn issued(access_token: &str) -> Issued {
        Issued {
            access_token: AccessToken::new(access_token.into()).unwrap(),
            token_type: None,
            lifetime: Lifetime::Unknown,
            scope: None,
            refresh_token: Some(RefreshToken::new("canary-rt-1".into()).unwrap()),
            extra: Extra::default(),
        }
    }

    fn sorted(reply: Reply) -> Result<(), (Outcome, Option<String>)> {
        let rules = Rules { dead_grant_codes: vec!["refresh_token_reused".into()], ..Rules::default() };
        let grant = Grant::new(GrantId::from_bytes([1; 16]), issued("canary-at-1"), Timestamp::from_secs(0));
        match classify(reply, &rules, &grant) {
            Classified::Success(_) => Ok(()),
            Classified::Failure(failure) => Err((failure.outcome, failure.code)),
        }
    }

    fn error(status: u16, code: &str) -> Reply {
        Reply::Answered { status, body: Body::Error(ErrorCode::new(code, None)), retry_after: None }
    }

    fn unreadable(status: u16) -> Reply {
        Reply::Answered { status, body: Body::Unreadable, retry_after: None }
    }

    #[test]
    fn a_known_code_decides_at_any_status() {
        for status in [200, 400, 401, 403, 500, 503] {
            assert_eq!(sorted(error(status, "invalid_grant")), Err((Outcome::Final, Some("invalid_grant".into()))));
            assert_eq!(sorted(error(status, "refresh_token_reused")), Err((Outcome::Final, None)));
            for code in CONFIGURATION_CODES {
                assert_eq!(sorted(error(status, code)), Err((Outcome::Configuration, Some(code.into()))));
            }
            for code in LATER_CODES {
                assert_eq!(sorted(error(status, code)), Err((Outcome::NotSpent, Some(code.into()))));
            }
        }
    }

    #[test]
    fn without_a_known_code_the_status_decides() {
        use Outcome::{Ambiguous, NotSpent, Refused};
        for (status, with_code, without) in [
            (200, Refused, Ambiguous),
            (204, Refused, Ambiguous),
            (302, Refused, Refused),
            (400, Refused, Refused),
            (401, Refused, Refused),
            (403, Refused, Refused),
            (404, Refused, Refused),
            (408, NotSpent, NotSpent),
            (429, NotSpent, NotSpent),
            (500, Ambiguous, Ambiguous),
            (502, Ambiguous, Ambiguous),
            (503, NotSpent, Ambiguous),
            (504, Ambiguous, Ambiguous),
            (999, Ambiguous, Ambiguous),
        ] {
            assert_eq!(sorted(error(status, "odd")), Err((with_code, Some("odd".into()))), "{status}");
            assert_eq!(sorted(unreadable(status)), Err((without, None)), "{status}");
        }
    }

    #[test]
    fn a_status_that_means_a_dead_grant_does_so_whatever_the_body_says() {
        let rules = Rules { dead_grant_statuses: vec![401], ..Rules::default() };
        let grant = Grant::new(GrantId::from_bytes([1; 16]), issued("canary-at-1"), Timestamp::from_secs(0));
        let mut said = vec![unreadable(401), error(401, "odd"), error(401, "")];
        said.extend(CONFIGURATION_CODES.iter().chain(&LATER_CODES).map(|code| error(401, code)));
        for reply in said {
            let Classified::Failure(failure) = classify(reply, &rules, &grant) else { panic!("a success") };
            assert_eq!(failure.outcome, Outcome::Final, "{failure:?}");
        }
        for (reply, outcome) in [
            (unreadable(403), Outcome::Refused),
            (error(403, "odd"), Outcome::Refused),
            (error(400, "invalid_client"), Outcome::Configuration),
        ] {
            let Classified::Failure(failure) = classify(reply, &rules, &grant) else { panic!("a success") };
            assert_eq!(failure.outcome, outcome, "{failure:?}");
        }
    }

    #[test]
    fn prose_about_401_means_nothing() {
        assert_eq!(sorted(error(400, "401 unauthorized, invalid_grant?")), Err((Outcome::Refused, None)));
    }

    #[test]
    fn tokens_count_only_with_success_and_without_giving_the_refresh_token_away() {
        let answered = |status, token: &str| Reply::Answered {
            status,
            body: Body::Issued(Box::new(issued(token))),
            retry_after: None,
        };
        assert_eq!(sorted(answered(200, "canary-at-2")), Ok(()));
        assert_eq!(sorted(answered(200, "xcanary-rt-1x")), Err((Outcome::Ambiguous, None)));
        assert_eq!(sorted(answered(400, "canary-at-2")), Err((Outcome::Refused, None)));
    }

    #[test]
    fn what_never_left_was_not_spent_and_what_was_lost_is_ambiguous() {
        assert_eq!(sorted(Reply::NotSent("no route")), Err((Outcome::NotSpent, None)));
        assert_eq!(sorted(Reply::Lost { timed_out: false }), Err((Outcome::Ambiguous, None)));
        assert_eq!(sorted(Reply::Lost { timed_out: true }), Err((Outcome::Ambiguous, None)));
    }

    fn codes() -> impl Strategy<Value = String> {
        let known: Vec<_> = ["invalid_grant", "refresh_token_reused"]
            .into_iter()
            .chain(CONFIGURATION_CODES)
            .chain(LATER_CODES)
            .map(str::to_owned)
            .collect();
        prop_oneof![proptest::sample::select(known), ".{0,12}", "[a-z_]{0,70}"]
    }

    #[derive(Debug, Clone)]
    enum Sent {
        Issued(String),
        Error(String),
        Unreadable,
    }

    fn bodies() -> impl Strategy<Value = Sent> {
        let token = prop_oneof!["[a-z]{1,9}", Just("x-canary-rt-1".to_owned())];
        prop_oneof![token.prop_map(Sent::Issued), codes().prop_map(Sent::Error), Just(Sent::Unreadable)]
    }

    proptest! {
        #[test]
        fn every_answer_has_one_class(
            status in any::<u16>(), sent in bodies(), retry_after in proptest::option::of(any::<Duration>()),
        ) {
            let body = match &sent {
                Sent::Issued(token) => Body::Issued(Box::new(issued(token))),
                Sent::Error(code) => Body::Error(ErrorCode::new(code, None)),
                Sent::Unreadable => Body::Unreadable,
            };
            let rules = Rules { dead_grant_codes: vec!["refresh_token_reused".into()], ..Rules::default() };
            let grant = Grant::new(GrantId::from_bytes([1; 16]), issued("canary-at-1"), Timestamp::from_secs(0));
            let clean = matches!(&sent, Sent::Issued(token) if !token.contains("canary-rt"));
            match classify(Reply::Answered { status, body, retry_after }, &rules, &grant) {
                Classified::Success(_) => prop_assert!((200..300).contains(&status) && clean),
                Classified::Failure(failure) => {
                    prop_assert!(!((200..300).contains(&status) && clean), "{failure:?}");
                    prop_assert_ne!(failure.outcome, Outcome::Success);
                    let dead = matches!(&sent, Sent::Error(code) if code == "invalid_grant" || code == "refresh_token_reused");
                    prop_assert_eq!(failure.outcome == Outcome::Final, dead);
                    let configuration = matches!(&sent, Sent::Error(code) if CONFIGURATION_CODES.contains(&&**code));
                    prop_assert_eq!(failure.outcome == Outcome::Configuration, configuration);
                    prop_assert!(!failure.timed_out && failure.reason.is_ascii());
                    prop_assert!(failure.retry_after.is_none_or(|wait| Some(wait) == retry_after));
                    prop_assert!(!failure.code.is_some_and(|code| crate::secret::holds_forbidden_text(&code)));
                }
            }
        }

        #[test]
        fn what_was_not_sent_is_never_anything_but_not_spent(codes in proptest::collection::vec(codes(), 0..4)) {
            let rules = Rules { dead_grant_codes: codes, ..Rules::default() };
            let grant = Grant::new(GrantId::from_bytes([1; 16]), issued("canary-at-1"), Timestamp::from_secs(0));
            let Classified::Failure(failure) = classify(Reply::NotSent("no route"), &rules, &grant) else {
                panic!("a success");
            };
            prop_assert_eq!(failure.outcome, Outcome::NotSpent);
        }
    }
}
