//! The operations of the contract: the one table from which the router and the audit log's names are made.

use axum::routing::{MethodFilter, MethodRouter, on};
use http::{Method, Request};

use super::{
    AppState,
    routes::{document, health, keys, logins, providers, sandboxes, tokens},
};
use crate::audit::labels;

/// One operation of `openapi.yaml`.
#[derive(Debug, Clone, Copy)]
pub struct Operation {
    /// The HTTP method, in capital letters.
    pub method: &'static str,
    /// The path; what is in braces stands for one segment.
    pub path: &'static str,
    /// The `operationId`.
    pub id: &'static str,
    handler: fn() -> MethodRouter<AppState>,
}

impl Operation {
    pub(super) fn route(&self) -> MethodRouter<AppState> {
        (self.handler)()
    }
}

/// A row is `METHOD "path" operationId => handler`.
macro_rules! operations {
    ($($method:ident $path:literal $id:ident => $handler:path,)+) => {
        /// Every operation. They are searched from the first to the last, so the most frequent ones come first.
        pub const OPERATIONS: &[Operation] = &[$(Operation {
            method: stringify!($method),
            path: $path,
            id: stringify!($id),
            handler: || on(MethodFilter::$method, $handler),
        },)+];
    };
}

operations! {
    GET "/v1/tokens/{provider}" getToken => tokens::get,
    POST "/v1/tokens/{provider}/refresh" refreshToken => tokens::refresh,
    GET "/v1/tokens" listTokens => tokens::list,
    PUT "/v1/tokens/{provider}" putToken => tokens::put,
    DELETE "/v1/tokens/{provider}" deleteToken => tokens::delete,
    POST "/v1/tokens/{provider}/rename" renameToken => tokens::rename,
    GET "/v1/api-keys" listApiKeys => keys::list,
    GET "/v1/api-keys/{name}" getApiKey => keys::get,
    PUT "/v1/api-keys/{name}" putApiKey => keys::put,
    DELETE "/v1/api-keys/{name}" deleteApiKey => keys::delete,
    POST "/v1/logins" startLogin => logins::start,
    GET "/v1/logins/{id}" getLogin => logins::get,
    POST "/v1/logins/{id}/code" finishLogin => logins::paste,
    DELETE "/v1/logins/{id}" cancelLogin => logins::cancel,
    POST "/v1/sandboxes" createSandbox => sandboxes::create,
    GET "/v1/sandboxes" listSandboxes => sandboxes::list,
    GET "/v1/sandboxes/{id}" getSandbox => sandboxes::get,
    DELETE "/v1/sandboxes/{id}" deleteSandbox => sandboxes::delete,
    GET "/v1/providers" listProviders => providers::list,
    GET "/v1/health" health => health::health,
    GET "/openapi.yaml" openapi => document::openapi,
}

const REFRESH: &str = "refreshToken";

/// Returns the `operationId`, or a placeholder for a request without an operation. `HEAD` counts as `GET` without the
/// body.
pub(super) fn of<B>(request: &Request<B>) -> &'static str {
    let method = if request.method() == Method::HEAD { "GET" } else { request.method().as_str() };
    let path = request.uri().path();
    let found = OPERATIONS.iter().find(|operation| operation.method == method && is_at(operation.path, path));
    found.map_or(labels::UNKNOWN, |operation| operation.id)
}

/// The path in the router's syntax: a parameter in braces matches one segment, which is not empty.
fn is_at(template: &str, path: &str) -> bool {
    let (mut wanted, mut given) = (template.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some(wanted), Some(given)) if wanted == given || wanted.starts_with('{') && !given.is_empty() => {}
            _ => return false,
        }
    }
}

/// Whether the operation changes what is stored. A refresh does so only if the provider was called.
pub(super) fn is_change(operation: &str, provider_called: bool) -> bool {
    let found = OPERATIONS.iter().find(|known| known.id == operation);
    found.is_some_and(|known| known.method != "GET" && (provider_called || operation != REFRESH))
}

/// Whether the response may be sent without a line in the audit log: it discloses nothing of any account, and a daemon
/// that cannot write its log must be able to report that.
pub(super) fn is_exempt_from_audit(operation: &str) -> bool {
    [labels::UNKNOWN, "health", "openapi"].contains(&operation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_get_is_a_change_and_a_refresh_is_one_if_the_provider_was_called() {
        for operation in ["getToken", "listTokens", "health", labels::UNKNOWN, labels::CONNECT] {
            assert!(!is_change(operation, true), "{operation}");
        }
        for operation in ["putToken", "deleteApiKey", "startLogin", "cancelLogin", "createSandbox"] {
            assert!(is_change(operation, false), "{operation}");
        }
        assert!(is_change("refreshToken", true) && !is_change("refreshToken", false));
    }

    #[test]
    fn an_operation_is_told_by_method_and_path() {
        for (method, target, operation) in [
            ("GET", "/v1/tokens/corp?bucket=a", "getToken"),
            ("HEAD", "/v1/tokens/%2F", "getToken"),
            ("POST", "/v1/tokens/corp/refresh", "refreshToken"),
            ("GET", "/v1/tokens", "listTokens"),
            ("DELETE", "http://credproxy/v1/sandboxes/refresh", "deleteSandbox"),
            ("GET", "/v1/tokens/corp/refresh", labels::UNKNOWN),
            ("GET", "/v1/tokens/", labels::UNKNOWN),
            ("GET", "//v1/tokens", labels::UNKNOWN),
            ("GET", "/v1/tokens/corp/", labels::UNKNOWN),
            ("POST", "/v1/tokens//refresh", labels::UNKNOWN),
            ("get", "/v1/tokens", labels::UNKNOWN),
            ("GET", "/v1/logins", labels::UNKNOWN),
            ("OPTIONS", "*", labels::UNKNOWN),
        ] {
            let request = Request::builder().method(method).uri(target).body(()).unwrap();
            assert_eq!(of(&request), operation, "{method} {target}");
        }
    }
}
