//! `/v1/api-keys`: static keys.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};

use super::{
    super::{
        problem::Problem,
        request::{KeySegment, MAX_GRANT_BYTES, Query, change_condition_of_item, if_match_item, members, none_match},
    },
    entity_tag,
};
use crate::{
    account::KeyName,
    clock::Timestamp,
    keys::{Key, KeyEntry, Keys},
    policy::{Operation, Policy},
    secret::{self, ApiKey},
    store::Put,
};

#[derive(Serialize)]
pub(in crate::server) struct List {
    api_keys: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: KeyName,
    readable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_at: Option<i64>,
}

impl From<KeyEntry> for Line {
    fn from(listed: KeyEntry) -> Self {
        Self {
            name: listed.name,
            readable: listed.created_at.is_some(),
            created_at: listed.created_at.map(Timestamp::as_secs),
        }
    }
}

#[derive(Serialize)]
struct View<'a> {
    name: &'a KeyName,
    api_key: &'a str,
    created_at: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    api_key: String,
}

/// `listApiKeys`: lists the keys that the socket may read, without their values.
pub(in crate::server) async fn list(
    State(keys): State<Keys>,
    State(policy): State<Arc<Policy>>,
    uri: Uri,
) -> Result<Json<List>, Problem> {
    Query::parse(&uri, &[])?;
    if !policy.may(Operation::Keys) {
        return Err(Problem::unauthorized());
    }
    let listed = keys.list().await.map_err(|error| Problem::key(&error))?;
    let api_keys = listed.into_iter().filter(|key| policy.permits_key(&key.name)).map(Line::from).collect();
    Ok(Json(List { api_keys }))
}

/// `getApiKey`: returns a key.
pub(in crate::server) async fn get(
    State(keys): State<Keys>,
    State(policy): State<Arc<Policy>>,
    KeySegment(name): KeySegment,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    Query::parse(&uri, &[])?;
    none_match(&headers, "")?;
    if !policy.permits_key(&name) {
        return Err(Problem::unauthorized());
    }
    let key = keys.get(&name).await.map_err(|error| Problem::key(&error))?;
    let tag = key.tag.to_string();
    if none_match(&headers, &tag)? {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, entity_tag(&tag))]).into_response());
    }
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json), (header::ETAG, entity_tag(&tag))], view(&name, &key)).into_response())
}

/// `putApiKey`: stores a key, replacing one of that name. Host only.
pub(in crate::server) async fn put(
    State(keys): State<Keys>,
    State(policy): State<Arc<Policy>>,
    KeySegment(name): KeySegment,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Query::parse(&uri, &[])?;
    let expect = change_condition_of_item(&headers)?;
    if !policy.may_write() {
        return Err(Problem::unauthorized());
    }
    let given: Given = members(&headers, body, MAX_GRANT_BYTES, "api_key").await?;
    let secret =
        ApiKey::new(given.api_key).map_err(|error| Problem::invalid(format!("api_key {}", error.for_socket())))?;
    let (put, tag) = keys.put(&name, secret, expect).await.map_err(|error| Problem::key(&error))?;
    let etag = [(header::ETAG, entity_tag(&tag.to_string()))];
    Ok(if put == Put::Created {
        (StatusCode::CREATED, etag, [(header::LOCATION, format!("/v1/api-keys/{name}"))]).into_response()
    } else {
        (StatusCode::NO_CONTENT, etag).into_response()
    })
}

/// `deleteApiKey`: deletes a key. Host only.
pub(in crate::server) async fn delete(
    State(keys): State<Keys>,
    State(policy): State<Arc<Policy>>,
    KeySegment(name): KeySegment,
    uri: Uri,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    Query::parse(&uri, &[])?;
    let expect = if_match_item(&headers)?;
    if !policy.may_write() {
        return Err(Problem::unauthorized());
    }
    keys.delete(&name, expect).await.map_err(|error| Problem::key(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

#[expect(clippy::disallowed_methods, reason = "the caller asked for the key, and may have it")]
fn view(name: &KeyName, key: &Key) -> Bytes {
    let view = View { name, api_key: key.secret.expose_secret(), created_at: key.created_at.as_secs() };
    // Strings and integers always serialize.
    Bytes::from_owner(secret::json(&view).unwrap_or_default())
}
