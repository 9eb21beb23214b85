//! Parsing of a request: account, name, parameters, conditions, body. Strict, because a mistyped parameter must not
//! reach another account.
//!
//! Invariants:
//! 1. Anything unknown, repeated or malformed is refused with a [`Problem`] before anything is changed.
//! 2. A problem never repeats text of the request.

use std::{borrow::Cow, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequestParts, Path},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, Uri, header, request::Parts};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Deserializer, de::DeserializeOwned};

use super::{AppState, connection::RequestContext, peer::Peer, problem::Problem};
use crate::{
    account::{Account, AccountRef, KeyName},
    audit::Kind,
    item::ItemTag,
    login::{LoginError, LoginId, Owner},
    policy::Policy,
    refresh::condition::{IfMatch, Tag},
    sandbox::{SandboxError, SandboxId},
    store::Expect,
};

/// The largest grant: one with a few long JWTs has some 20 KiB.
pub(super) const MAX_GRANT_BYTES: usize = 256 * 1024;

/// The largest body of a request that needs none: enough for an empty object. Peers can make the daemon hold one of
/// these for each connection.
pub(super) const MAX_SMALL_BODY_BYTES: usize = 1024;

/// How long a body may take to arrive; a local peer needs milliseconds.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// The parameters of a query, each of them known and given at most once.
#[derive(Debug)]
pub(super) struct Query<'a>(Vec<(&'static str, Cow<'a, str>)>);

impl<'a> Query<'a> {
    pub(super) fn parse(uri: &'a Uri, known: &[&'static str]) -> Result<Self, Problem> {
        let mut found: Vec<(&'static str, Cow<'a, str>)> = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            // A plus sign is not decoded as a space (RFC 3986): names contain plus signs, and no parameter contains a
            // space.
            let decoded = |text| percent_decode_str(text).decode_utf8_lossy();
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decoded(name), decoded(value));
            let Some(name) = known.iter().find(|known| **known == name) else {
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(Problem::invalid(format!("unknown query parameter; known here: {known}")));
            };
            if found.iter().any(|(earlier, _)| earlier == name) {
                return Err(Problem::invalid(format!("the query parameter {name} is given twice")));
            }
            found.push((name, value));
        }
        Ok(Self(found))
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| &**value)
    }
}

/// The account in the path of a request, below `/v1/tokens/{provider}`.
#[derive(Debug)]
pub(super) struct AccountTarget<'a> {
    provider: Cow<'a, str>,
    pub(super) query: Query<'a>,
}

impl<'a> AccountTarget<'a> {
    pub(super) fn parse(uri: &'a Uri, known: &[&'static str]) -> Result<Self, Problem> {
        let below = uri.path().strip_prefix("/v1/tokens/").unwrap_or_default();
        let segment = below.strip_suffix("/refresh").or(below.strip_suffix("/rename")).unwrap_or(below);
        let provider = percent_decode_str(segment)
            .decode_utf8()
            .map_err(|_| Problem::invalid("the provider in the path is not UTF-8 text"))?;
        Ok(Self { provider, query: Query::parse(uri, known)? })
    }

    /// The account of the path's provider and the query's `bucket`, recorded as the request's subject.
    pub(super) fn account_ref(&self, context: &RequestContext) -> Result<AccountRef<'_>, Problem> {
        let named = AccountRef::new(&self.provider, self.query.get("bucket"));
        let named = named.map_err(|(which, error)| Problem::invalid(format!("{which}: {}", error.for_socket())))?;
        context.set_account(named);
        Ok(named)
    }

    /// The account of these names, recorded as the request's subject.
    pub(super) fn account(&self, context: &RequestContext) -> Result<Account, Problem> {
        self.account_ref(context).map(Account::from)
    }
}

/// The API key in the path.
#[derive(Debug)]
pub(super) struct KeySegment(pub(super) KeyName);

impl<S: Send + Sync> FromRequestParts<S> for KeySegment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|_| Problem::invalid("the name in the path is not UTF-8 text"))?;
        let parsed = text.parse::<KeyName>();
        let name = parsed.map_err(|error| Problem::invalid(format!("name: {}", error.for_socket())))?;
        let Ok(context) = RequestContext::from_request_parts(parts, state).await;
        context.set_subject(Kind::Key, name.as_str());
        Ok(Self(name))
    }
}

/// The request's context, its operation, and the socket's policy.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) owner: Owner,
    pub(super) policy: Arc<Policy>,
    pub(super) context: RequestContext,
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        let (context, peer) =
            (RequestContext::from_request_parts(parts, state).await?, Peer::from_request_parts(parts, state).await?);
        let (socket, role) = (Arc::clone(&state.0.services.socket), state.0.policy.role());
        let owner = Owner { socket, role, uid: peer.uid };
        Ok(Self { owner, policy: Arc::clone(&state.0.policy), context })
    }
}

/// The login id in the path.
#[derive(Debug)]
pub(super) struct LoginSegment(pub(super) LoginId);

impl<S: Send + Sync> FromRequestParts<S> for LoginSegment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        // A malformed id is an unknown one: the difference helps nobody.
        let unknown = || Problem::login(None, &LoginError::NotFound);
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| unknown())?;
        let id: LoginId = text.parse().map_err(|_| unknown())?;
        let Ok(context) = RequestContext::from_request_parts(parts, state).await;
        context.set_subject(Kind::Login, &id.to_string());
        Ok(Self(id))
    }
}

/// The sandbox id in the path.
#[derive(Debug)]
pub(super) struct SandboxSegment(pub(super) SandboxId);

impl<S: Send + Sync> FromRequestParts<S> for SandboxSegment {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        // As with a login.
        let unknown = || Problem::sandbox(&SandboxError::NotFound);
        let Path(text) = Path::<String>::from_request_parts(parts, state).await.map_err(|_| unknown())?;
        let id: SandboxId = text.parse().map_err(|_| unknown())?;
        let Ok(context) = RequestContext::from_request_parts(parts, state).await;
        context.set_subject(Kind::Sandbox, &id.to_string());
        Ok(Self(id))
    }
}

/// The header's entity tags, each with a flag for weak ones; `None` for `*`.
fn entity_tags(headers: &HeaderMap, name: &header::HeaderName) -> Result<Option<Vec<(bool, String)>>, Problem> {
    let malformed = || Problem::invalid(format!("{name} is not a list of entity tags"));
    let mut tags = Vec::new();
    let lines: Vec<_> = headers.get_all(name).iter().collect();
    if let [only] = lines.as_slice()
        && only.as_bytes().trim_ascii() == b"*"
    {
        return Ok(None);
    }
    for line in lines {
        let mut rest = line.to_str().map_err(|_| malformed())?.trim();
        loop {
            let weak = rest.starts_with("W/");
            let opened = rest.strip_prefix("W/").unwrap_or(rest).strip_prefix('"').ok_or_else(malformed)?;
            let (tag, after) = opened.split_once('"').ok_or_else(malformed)?;
            tags.push((weak, tag.to_owned()));
            let after = after.trim_start();
            match after.strip_prefix(',') {
                Some(more) => rest = more.trim_start(),
                None if after.is_empty() => break,
                None => return Err(malformed()),
            }
        }
    }
    Ok(Some(tags))
}

/// The tags of `If-Match` (RFC 9110 section 13.1.1). The comparison is strong, so weak tags never match. `None` for
/// `*`.
fn strong_tags(headers: &HeaderMap) -> Result<Option<Vec<String>>, Problem> {
    let Some(tags) = entity_tags(headers, &header::IF_MATCH)? else { return Ok(None) };
    if tags.iter().any(|(weak, _)| *weak) {
        return Err(Problem::invalid("if-match holds a weak entity tag"));
    }
    Ok(Some(tags.into_iter().map(|(_, tag)| tag).collect()))
}

/// `If-Match` for a grant.
pub(super) fn if_match(headers: &HeaderMap) -> Result<IfMatch, Problem> {
    if !headers.contains_key(header::IF_MATCH) {
        return Ok(IfMatch::Absent);
    }
    let tags = strong_tags(headers)?;
    Ok(tags.map_or(IfMatch::Any, |tags| IfMatch::Tags(tags.iter().map(|tag| Tag::parse(tag)).collect())))
}

/// The conditions of a change: `If-Match`, or `If-None-Match: *` to create only.
pub(super) fn change_condition(headers: &HeaderMap) -> Result<IfMatch, Problem> {
    Ok(match (only_if_absent(headers)?, if_match(headers)?) {
        (false, if_match) => if_match,
        (true, IfMatch::Absent) => IfMatch::NoneThere,
        // Both together never hold: what does not exist has no tag.
        (true, _) => IfMatch::Tags(Vec::new()),
    })
}

/// The conditions of a change of an item.
pub(super) fn change_condition_of_item(headers: &HeaderMap) -> Result<Expect<ItemTag>, Problem> {
    Ok(match (only_if_absent(headers)?, if_match_item(headers)?) {
        (false, expect) => expect,
        (true, Expect::Whatever) => Expect::Absent,
        (true, _) => Expect::OneOf(Vec::new()),
    })
}

/// Whether there is `If-None-Match: *` (RFC 9110 section 13.1.2). Tags in it are refused for a change.
fn only_if_absent(headers: &HeaderMap) -> Result<bool, Problem> {
    if !headers.contains_key(header::IF_NONE_MATCH) {
        return Ok(false);
    }
    match entity_tags(headers, &header::IF_NONE_MATCH)? {
        None => Ok(true),
        Some(_) => Err(Problem::invalid("if-none-match of a change is *")),
    }
}

/// `If-Match` for an item. A tag of another format never matches.
pub(super) fn if_match_item(headers: &HeaderMap) -> Result<Expect<ItemTag>, Problem> {
    if !headers.contains_key(header::IF_MATCH) {
        return Ok(Expect::Whatever);
    }
    let tags = strong_tags(headers)?;
    Ok(tags.map_or(Expect::Present, |tags| Expect::OneOf(tags.iter().filter_map(|tag| tag.parse().ok()).collect())))
}

/// Whether `If-None-Match` (RFC 9110 section 13.1.2, weak comparison) names the entity tag `current`.
pub(super) fn none_match(headers: &HeaderMap, current: &str) -> Result<bool, Problem> {
    if !headers.contains_key(header::IF_NONE_MATCH) {
        return Ok(false);
    }
    let tags = entity_tags(headers, &header::IF_NONE_MATCH)?;
    Ok(tags.is_none_or(|tags| tags.iter().any(|(_, tag)| tag == current)))
}

/// The seconds of `Prefer: wait=N` (RFC 7240 section 4.3); a preference that is not understood is ignored.
pub(super) fn preferred_wait(headers: &HeaderMap) -> Option<u64> {
    let lines = headers.get_all("prefer").iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split([',', ';'])).find_map(|preference| {
        let (name, value) = preference.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| value.trim().trim_matches('"').parse().ok())?
    })
}

/// Reads the whole body, of at most `largest` bytes, which must be JSON unless it is empty.
pub(super) async fn json_body(headers: &HeaderMap, body: Body, largest: usize) -> Result<Bytes, Problem> {
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, largest).collect())
        .await
        .map_err(|_| Problem::invalid("the body did not arrive in time"))?;
    let collected = collected.map_err(|error| {
        if error.downcast_ref::<LengthLimitError>().is_some() {
            Problem::invalid(format!("the body is larger than {} KiB", largest / 1024))
                .with_status(StatusCode::PAYLOAD_TOO_LARGE)
        } else {
            Problem::invalid("the body broke off")
        }
    })?;
    let bytes = collected.to_bytes();
    let media_type = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let json = media_type.is_some_and(|value| {
        value.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
    });
    if !bytes.is_empty() && !json {
        return Err(
            Problem::invalid("the body must be application/json").with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE)
        );
    }
    Ok(bytes)
}

/// Parses the members of the body. The parser's own message would quote it; `known` lists the expected members.
pub(super) async fn members<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    largest: usize,
    known: &str,
) -> Result<T, Problem> {
    let body = json_body(headers, body, largest).await?;
    let wrong = || Problem::invalid(format!("the body is a JSON object with {known}"));
    // serde would accept an array for an object, with its values in the order of the members.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(wrong());
    }
    serde_json::from_slice(&body).map_err(|_| wrong())
}

/// An optional member that must not be `null`: for `#[serde(default, deserialize_with = "given")]`.
pub(super) fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::account::Bucket;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_query_is_read_strictly() {
        let uri = |text: &str| text.parse::<Uri>().unwrap();
        let known = ["bucket", "min_validity"];
        let account = |text: &str| {
            AccountTarget::parse(&uri(text), &known)
                .unwrap()
                .account(&RequestContext::default())
                .map(|it| it.to_string())
        };
        assert_eq!(account("/v1/tokens/corp?bucket=a%2Bb").unwrap(), "corp/a+b");
        assert_eq!(account("/v1/tokens/corp?bucket=a+b").unwrap(), "corp/a+b");
        assert_eq!(account("/v1/tokens/corp?").unwrap(), "corp/default");
        assert_eq!(account("/v1/tokens/c%6frp/refresh").unwrap(), "corp/default");
        assert!(AccountTarget::parse(&uri("/v1/tokens/%ff"), &known).is_err());
        for bad in ["/v1/tokens/", "/v1/tokens/a%2Fb", "/v1/tokens/a%00"] {
            assert!(account(bad).is_err(), "{bad}");
        }
        for bad in ["/x?bukcet=a", "/x?bucket=a&bucket=a", "/x?Bucket=a", "/x?a", "/x?bucket%00=a"] {
            assert!(Query::parse(&uri(bad), &known).is_err(), "{bad}");
        }
        for bad in ["bucket=", "bucket=a%2Fb", "bucket=%00", "bucket=%ff", "bucket"] {
            assert!(account(&format!("/v1/tokens/corp?{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn if_match_takes_strong_tags_only() {
        assert_eq!(if_match(&headers(&[])).unwrap(), IfMatch::Absent);
        assert_eq!(if_match(&headers(&[("if-match", " * ")])).unwrap(), IfMatch::Any);
        let two = IfMatch::Tags(vec![Tag::Foreign, Tag::Foreign]);
        assert_eq!(if_match(&headers(&[("if-match", "\"a\" , \"b\"")])).unwrap(), two);
        assert_eq!(if_match(&headers(&[("if-match", "\"a\""), ("if-match", "\"b\"")])).unwrap(), two);
        for bad in ["", "a", "\"a", "W/\"a\"", "\"a\" \"b\"", "\"a\",", "\"a\",*"] {
            assert!(if_match(&headers(&[("if-match", bad)])).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_change_is_conditional_on_a_tag_or_on_nothing_being_there() {
        assert_eq!(change_condition(&headers(&[])).unwrap(), IfMatch::Absent);
        assert_eq!(change_condition(&headers(&[("if-none-match", "*")])).unwrap(), IfMatch::NoneThere);
        assert_eq!(change_condition(&headers(&[("if-match", "*")])).unwrap(), IfMatch::Any);
        assert_eq!(change_condition_of_item(&headers(&[("if-none-match", "*")])).unwrap(), Expect::Absent);
        let both = headers(&[("if-none-match", "*"), ("if-match", "*")]);
        assert_eq!(change_condition(&both).unwrap(), IfMatch::Tags(vec![]));
        assert_eq!(change_condition_of_item(&both).unwrap(), Expect::OneOf(vec![]));
        for bad in
            [&[("if-none-match", "\"a\"")][..], &[("if-none-match", "x")], &[("if-none-match", "*"), ("if-match", "x")]]
        {
            assert!(
                change_condition(&headers(bad)).is_err() && change_condition_of_item(&headers(bad)).is_err(),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn if_match_of_an_item_takes_what_could_be_its_tag() {
        assert_eq!(if_match_item(&headers(&[])).unwrap(), Expect::Whatever);
        assert_eq!(if_match_item(&headers(&[("if-match", "*")])).unwrap(), Expect::Present);
        let tag = ItemTag::from_bytes([7; 16]);
        let sent = format!("\"corp/default:00:1\", \"{tag}\"");
        assert_eq!(if_match_item(&headers(&[("if-match", &sent)])).unwrap(), Expect::OneOf(vec![tag]));
        assert_eq!(if_match_item(&headers(&[("if-match", "\"x\"")])).unwrap(), Expect::OneOf(vec![]));
        assert!(if_match_item(&headers(&[("if-match", "W/\"x\"")])).is_err());
    }

    #[test]
    fn if_none_match_compares_weakly() {
        for (sent, matches) in
            [("*", true), ("\"t\"", true), ("W/\"t\"", true), ("\"u\"", false), ("\"u\", \"t\"", true)]
        {
            assert_eq!(none_match(&headers(&[("if-none-match", sent)]), "t").unwrap(), matches, "{sent}");
        }
        assert!(none_match(&headers(&[("if-none-match", "t")]), "t").is_err());
        assert!(!none_match(&headers(&[]), "t").unwrap());
    }

    #[test]
    fn a_preference_that_is_not_understood_is_none() {
        for (sent, wait) in [
            ("wait=10", Some(10)),
            ("respond-async, WAIT = 5", Some(5)),
            ("wait=x", None),
            ("wait", None),
            ("wait=-1", None),
        ] {
            assert_eq!(preferred_wait(&headers(&[("prefer", sent)])), wait, "{sent}");
        }
    }

    proptest! {
        #[test]
        fn no_query_reaches_another_account(
            pairs in proptest::collection::vec(
                ("bucket|min_validity|Bucket|bukcet|.{0,3}", ".{0,8}|[A-Za-z0-9+.]{1,9}"), 0..4,
            ),
        ) {
            let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(&pairs).finish();
            let known = ["bucket", "min_validity"];
            let names: Vec<_> = pairs.iter().map(|(name, _)| name.as_str()).collect();
            let twice = (1..names.len()).any(|at| names[..at].contains(&names[at]));
            let strict = !twice && names.iter().all(|name| known.contains(name));
            let uri = format!("/v1/tokens/corp?{query}").parse().unwrap();
            let parsed = AccountTarget::parse(&uri, &known);
            prop_assert_eq!(parsed.is_ok(), strict, "{}", query);
            if let Ok(parsed) = parsed {
                let given = pairs.iter().find(|(name, _)| name == "bucket").map(|(_, value)| value);
                match parsed.account(&RequestContext::default()) {
                    // What wrote the query wrote a space as a plus sign.
                    Ok(account) => prop_assert_eq!(
                        account.bucket.as_str(), given.map_or("default".to_owned(), |given| given.replace(' ', "+")),
                    ),
                    Err(_) => {
                        prop_assert!(given.is_some_and(|given| given.replace(' ', "+").parse::<Bucket>().is_err()));
                    }
                }
            }
        }

        #[test]
        fn no_raw_query_panics_or_is_repeated(query in "[!-~]{0,40}|(bucket|canary)?[=&%+a-f0-9]{0,20}canary") {
            let Ok(uri) = format!("/v1/tokens/corp?{query}").parse::<Uri>() else { return Ok(()) };
            match AccountTarget::parse(&uri, &["bucket"]).and_then(|target| target.account(&RequestContext::default())) {
                Ok(account) => prop_assert!(account.provider.as_str() == "corp"),
                Err(problem) => {
                    let shown = format!("{problem:?}");
                    prop_assert!(!shown.contains("canary"), "{shown}");
                }
            }
        }

        #[test]
        fn a_list_of_tags_reads_back(
            tags in proptest::collection::vec(("[!#-~]{0,9}", any::<bool>()), 1..5),
            space in " {0,2}",
            lines in any::<bool>(),
        ) {
            let written: Vec<_> =
                tags.iter().map(|(tag, weak)| format!("{}\"{tag}\"", if *weak { "W/" } else { "" })).collect();
            let written = if lines { written } else { vec![written.join(&format!("{space},{space}"))] };
            let headers: HeaderMap =
                written.iter().map(|line| (header::IF_NONE_MATCH, line.parse().unwrap())).collect();
            let read = entity_tags(&headers, &header::IF_NONE_MATCH).unwrap().unwrap();
            let expected: Vec<_> = tags.iter().map(|(tag, weak)| (*weak, tag.clone())).collect();
            prop_assert_eq!(read, expected);
            prop_assert!(tags.iter().all(|(tag, _)| none_match(&headers, tag).unwrap()));
        }

        #[test]
        fn no_header_makes_the_reader_panic(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(value) = http::HeaderValue::from_bytes(&value) {
                let names = [header::IF_MATCH, header::IF_NONE_MATCH, "prefer".parse().unwrap()];
                let headers: HeaderMap = names.map(|name| (name, value.clone())).into_iter().collect();
                drop((if_match(&headers), none_match(&headers, "t"), preferred_wait(&headers)));
            }
        }
    }
}
