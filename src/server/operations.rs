//! Which operation of the contract a request asks for.

use axum::extract::{MatchedPath, Request};
use http::Method;

use crate::audit::words;

/// Method, path and `operationId` of every operation.
pub const OPERATIONS: &[(&str, &str, &str)] = &[
    ("GET", "/v1/tokens/{provider}", "getToken"),
    ("POST", "/v1/tokens/{provider}/refresh", "refreshToken"),
    ("GET", "/v1/tokens", "listTokens"),
    ("PUT", "/v1/tokens/{provider}", "putToken"),
    ("DELETE", "/v1/tokens/{provider}", "deleteToken"),
    ("GET", "/v1/api-keys", "listApiKeys"),
    ("GET", "/v1/api-keys/{name}", "getApiKey"),
    ("PUT", "/v1/api-keys/{name}", "putApiKey"),
    ("DELETE", "/v1/api-keys/{name}", "deleteApiKey"),
    ("POST", "/v1/logins", "startLogin"),
    ("GET", "/v1/logins/{id}", "getLogin"),
    ("POST", "/v1/logins/{id}/code", "finishLogin"),
    ("DELETE", "/v1/logins/{id}", "cancelLogin"),
    ("POST", "/v1/sandboxes", "createSandbox"),
    ("GET", "/v1/sandboxes", "listSandboxes"),
    ("GET", "/v1/sandboxes/{id}", "getSandbox"),
    ("DELETE", "/v1/sandboxes/{id}", "deleteSandbox"),
    ("GET", "/v1/providers", "listProviders"),
    ("GET", HEALTH, "health"),
    ("GET", DOCUMENT, "openapi"),
];

const HEALTH: &str = "/v1/health";
const DOCUMENT: &str = "/openapi.yaml";

/// The `operationId`, or the word for what is no operation. `HEAD` is `GET` without the body.
pub(super) fn of(request: &Request) -> &'static str {
    let Some(path) = request.extensions().get::<MatchedPath>() else { return words::UNKNOWN };
    let method = if request.method() == Method::HEAD { "GET" } else { request.method().as_str() };
    let found = OPERATIONS.iter().find(|(of, at, _)| *at == path.as_str() && *of == method);
    found.map_or(words::UNKNOWN, |(.., operation)| operation)
}

/// Whether the answer may be given without a line in the audit log: it tells nothing of any account, and a daemon that
/// cannot write its log must be able to say so.
pub(super) fn is_harmless(operation: &str) -> bool {
    [words::UNKNOWN, "health", "openapi"].contains(&operation)
}
