//! `/v1/tokens`: grants and their access tokens.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    super::{
        AppState,
        connection::RequestContext,
        problem::Problem,
        request::{
            AccountTarget, MAX_GRANT_BYTES, MAX_SMALL_BODY_BYTES, Query, change_condition, if_match, json_body,
            members, none_match, preferred_wait,
        },
    },
    list_error, may_list,
};
use crate::{
    account::{Account, AccountRef, Bucket, ProviderName},
    clock::Timestamp,
    grant::{Issued, Lifetime},
    policy::{Operation, Policy},
    problem_code::ProblemCode,
    refresh::{AccountState, CallerContext, Coordinator, Snapshot, Status, condition::EntityTag},
    secret::{AccessToken, RefreshToken, SecretError},
    store::Put,
};

const JSON: &str = "application/json";

/// The longest long poll. Proxies and clients commonly give up after a minute without a byte.
pub(super) const MAX_LONG_POLL: Duration = Duration::from_mins(1);

/// `refreshToken`: returns a new token.
pub(in crate::server) async fn refresh(
    State(coordinator): State<Coordinator>,
    State(policy): State<Arc<Policy>>,
    context: RequestContext,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let account = AccountTarget::parse(&uri, &["bucket"])?.account(&context)?;
    let if_match = if_match(&headers)?;
    if if_match.is_foreign() {
        return Err(Problem::invalid("if-match holds no entity tag of this daemon's"));
    }
    let body = json_body(&headers, body, MAX_SMALL_BODY_BYTES).await?;
    if !body.is_empty() && !serde_json::from_slice::<Map<_, Value>>(&body).is_ok_and(|members| members.is_empty()) {
        return Err(Problem::invalid("a refresh takes no body but an empty JSON object"));
    }
    permitted(&policy, Operation::Refresh, &account)?;
    let caller = context.caller();
    match coordinator.refresh_with(&account, &if_match, caller.unwrap_or(&CallerContext::default())).await {
        Ok(snapshot) => Ok(token(&snapshot)),
        Err(error) => Err(Problem::refresh(&account, &error)),
    }
}

/// `getToken`: returns a token that is valid for a while. `HEAD` returns the headers of the current one and refreshes
/// nothing.
pub(in crate::server) async fn get(
    State(AppState(state)): State<AppState>,
    context: RequestContext,
    request: Request,
) -> Result<Response, Problem> {
    let target = AccountTarget::parse(request.uri(), &["bucket", "min_validity"])?;
    let account = target.account_ref(&context)?;
    let min_validity = target.query.get("min_validity").map(seconds).transpose()?;
    let headers = request.headers();
    none_match(headers, "")?;
    permitted(&state.policy, Operation::Read, account)?;
    if request.method() == Method::HEAD {
        let (account, coordinator) = (account.into(), &state.services.coordinator);
        let peeked = Box::pin(coordinator.peek(&account)).await;
        return peeked.map(|snapshot| token(&snapshot)).map_err(|error| Problem::refresh(&account, &error));
    }
    if !headers.contains_key(header::IF_NONE_MATCH)
        && let Some(snapshot) = state.services.coordinator.cached(account, min_validity)
    {
        return Ok(token(&snapshot));
    }
    // Boxed, so that the rare case does not enlarge the future of every request.
    let caller = context.caller();
    Box::pin(get_waiting(&state.services.coordinator, account.into(), min_validity, headers, caller)).await
}

/// `getToken` with `Prefer: wait`, or as `HEAD`.
async fn get_waiting(
    coordinator: &Coordinator,
    account: Account,
    min_validity: Option<Duration>,
    headers: &HeaderMap,
    caller: Option<&CallerContext>,
) -> Result<Response, Problem> {
    let problem = |error| Problem::refresh(&account, &error);
    let own = CallerContext::default();
    let caller = caller.unwrap_or(&own);
    let mut snapshot = coordinator.token_with(&account, min_validity, caller).await.map_err(problem)?;
    if none_match(headers, &snapshot.tag)?
        && let Some(wait) = preferred_wait(headers)
    {
        coordinator.changed(&account, &snapshot.tag, MAX_LONG_POLL.min(Duration::from_secs(wait))).await;
        snapshot = coordinator.token_with(&account, min_validity, caller).await.map_err(problem)?;
    }
    if none_match(headers, &snapshot.tag)? {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag_header(&snapshot.tag))]).into_response());
    }
    Ok(token(&snapshot))
}

/// `putToken`: stores a whole grant, including its refresh token. Host only.
pub(in crate::server) async fn put(
    State(AppState(state)): State<AppState>,
    context: RequestContext,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let account = AccountTarget::parse(&uri, &["bucket"])?.account(&context)?;
    let if_match = change_condition(&headers)?;
    if !state.policy.may_write() {
        return Err(Problem::unauthorized());
    }
    let issued = grant(&json_body(&headers, body, MAX_GRANT_BYTES).await?)?;
    if let Some(secret) = &issued.refresh_token
        && state.services.keys.reveal(secret).await.map_err(|error| Problem::key(&error))?
    {
        return Err(Problem::invalid("the refresh token is or is part of a stored API key: delete that key first"));
    }
    let (put, tag) = state
        .services
        .coordinator
        .put(&account, issued, &if_match)
        .await
        .map_err(|error| Problem::refresh(&account, &error))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = if put == Put::Created { StatusCode::CREATED } else { StatusCode::NO_CONTENT };
    response.headers_mut().insert(header::ETAG, tag_header(&tag));
    if put == Put::Created
        && let Ok(location) = HeaderValue::try_from(location(&account))
    {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// The new name of a grant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewName {
    provider: ProviderName,
    #[serde(default)]
    bucket: Bucket,
}

/// `renameToken`: renames a grant. Host only.
pub(in crate::server) async fn rename(
    State(coordinator): State<Coordinator>,
    State(policy): State<Arc<Policy>>,
    context: RequestContext,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Problem> {
    let from = AccountTarget::parse(&uri, &["bucket"])?.account(&context)?;
    if !policy.may_write() {
        return Err(Problem::unauthorized());
    }
    let NewName { provider, bucket } = members(&headers, body, MAX_SMALL_BODY_BYTES, "provider").await?;
    let to = Account::new(provider, bucket);
    coordinator.rename(&from, &to).await.map_err(|error| Problem::refresh(&from, &error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// `deleteToken`: deletes a grant, and with `revoke=true` tells the provider. Host only.
pub(in crate::server) async fn delete(
    State(coordinator): State<Coordinator>,
    State(policy): State<Arc<Policy>>,
    context: RequestContext,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<Value>, Problem> {
    let target = AccountTarget::parse(&uri, &["bucket", "revoke"])?;
    let account = target.account(&context)?;
    let revoke = match target.query.get("revoke") {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(Problem::invalid("revoke is true or false")),
    };
    let if_match = if_match(&headers)?;
    if !policy.may_write() {
        return Err(Problem::unauthorized());
    }
    let caller = context.caller();
    match coordinator.delete_with(&account, &if_match, revoke, caller.unwrap_or(&CallerContext::default())).await {
        Ok(revoked) => Ok(Json(json!({"revoked": revoked}))),
        Err(error) => Err(Problem::refresh(&account, &error)),
    }
}

#[derive(Debug, Serialize)]
struct Line {
    provider: ProviderName,
    bucket: Bucket,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiry: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    refreshable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    refreshed_at: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
}

impl From<Status> for Line {
    fn from(status: Status) -> Self {
        Self {
            state: match status.state {
                AccountState::Valid => "valid",
                AccountState::Expiring => "expiring",
                AccountState::Expired => "expired",
                AccountState::ReauthRequired => "reauth_required",
                AccountState::Unknown => "unknown",
            },
            provider: status.account.provider,
            bucket: status.account.bucket,
            expiry: status.expires_at.map(Timestamp::as_secs),
            scope: status.scope,
            refreshable: status.refreshable,
            refreshed_at: status.refreshed_at.map(Timestamp::as_secs),
            last_error: status.last_error,
        }
    }
}

/// `listTokens`: lists the status of every account that the socket may see.
pub(in crate::server) async fn list(
    State(coordinator): State<Coordinator>,
    State(policy): State<Arc<Policy>>,
    uri: Uri,
) -> Result<Response, Problem> {
    Query::parse(&uri, &[])?;
    may_list(&policy)?;
    // Written line by line: for a hundred thousand accounts the lines take less memory than the values they are made
    // from.
    let mut json = b"{\"tokens\":[".to_vec();
    let write = |status| {
        if !json.ends_with(b"[") {
            json.push(b',');
        }
        // Strings, numbers and booleans always serialize.
        serde_json::to_writer(&mut json, &Line::from(status)).unwrap_or_default();
    };
    coordinator.overview(&|account| policy.sees(account), write).await.map_err(list_error)?;
    json.extend_from_slice(b"]}");
    Ok(([(header::CONTENT_TYPE, JSON)], json).into_response())
}

fn permitted<'a>(policy: &Policy, operation: Operation, account: impl Into<AccountRef<'a>>) -> Result<(), Problem> {
    if policy.permits(operation, account) { Ok(()) } else { Err(Problem::unauthorized()) }
}

/// Digits only: a sign, a fraction or a unit is a mistake.
fn seconds(text: &str) -> Result<Duration, Problem> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(seconds) if digits => Ok(Duration::from_secs(seconds)),
        Ok(_) | Err(_) => Err(Problem::invalid("min_validity is a whole number of seconds")),
    }
}

fn token(snapshot: &Snapshot) -> Response {
    let mut response = Response::new(Body::from(snapshot.token.json()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response.headers_mut().insert(header::ETAG, tag_header(&snapshot.tag));
    response
}

fn tag_header(tag: &EntityTag) -> HeaderValue {
    HeaderValue::from_maybe_shared(tag.quoted()).unwrap_or(HeaderValue::from_static("\"\""))
}

/// Every character of a name may stand in a path; in a query a plus sign is read as a space by many.
fn location(account: &Account) -> String {
    let path = format!("/v1/tokens/{}", account.provider);
    if account.bucket == Bucket::default() {
        path
    } else {
        format!("{path}?bucket={}", account.bucket.as_str().replace('+', "%2B"))
    }
}

/// Parses a grant in the format of a token answer (RFC 6749 section 5.1), strictly: a person wrote it, and can fix it.
fn grant(body: &[u8]) -> Result<Issued, Problem> {
    let mut members: Map<String, Value> =
        serde_json::from_slice(body).map_err(|_| Problem::invalid("the body is not a JSON object"))?;
    let access_token = text(&mut members, "access_token")?
        .ok_or_else(|| Problem::invalid("access_token is missing"))
        .and_then(|text| AccessToken::new(text).map_err(|error| secret("access_token", error)))?;
    // An empty string counts as absent, as in the answers of many providers.
    let successor = text(&mut members, REFRESH_MEMBER)?.filter(|text| !text.is_empty()).map(RefreshToken::new);
    let issued = Issued {
        access_token,
        refresh_token: successor.transpose().map_err(|error| secret("the refresh token", error))?,
        token_type: text(&mut members, "token_type")?,
        scope: text(&mut members, "scope")?,
        lifetime: lifetime(&mut members)?,
        extra: members.into(),
    };
    if issued.reveals(None) {
        return Err(Problem::invalid("the access token is or holds the refresh token, which never leaves"));
    }
    Ok(issued)
}

const REFRESH_MEMBER: &str = crate::secret::FORBIDDEN_TEXT;

fn secret(member: &str, error: SecretError) -> Problem {
    Problem::new(ProblemCode::InvalidRequest, format!("{member} {}", error.for_socket()))
}

fn text(members: &mut Map<String, Value>, name: &str) -> Result<Option<String>, Problem> {
    let shown = if name == REFRESH_MEMBER { "the refresh token" } else { name };
    match members.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Problem::invalid(format!("{shown} is not a string"))),
    }
}

fn lifetime(members: &mut Map<String, Value>) -> Result<Lifetime, Problem> {
    let mut read = |name: &str, of: fn(&Value) -> Option<Lifetime>| match members.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match of(&value) {
            Some(Lifetime::Unknown) | None => {
                Err(Problem::invalid(format!("{name} is not a number of seconds above zero")))
            }
            known => Ok(known),
        },
    };
    let at = read("expiry", Lifetime::from_expires_at)?;
    let within = read("expires_in", Lifetime::from_expires_in)?;
    if at.is_some() && within.is_some() {
        return Err(Problem::invalid("give expiry or expires_in, not both"));
    }
    Ok(at.or(within).unwrap_or(Lifetime::Unknown))
}
