//! Maps a request to its operation in the contract.

use http::{Method, Request};

use crate::audit::labels;

/// Method, path and `operationId` of every operation.
pub const OPERATIONS: &[(&str, &str, &str)] = &[
    ("GET", "/v1/tokens/{provider}", "getToken"),
    ("POST", "/v1/tokens/{provider}/refresh", REFRESH),
    ("GET", "/v1/tokens", "listTokens"),
    ("PUT", "/v1/tokens/{provider}", "putToken"),
    ("DELETE", "/v1/tokens/{provider}", "deleteToken"),
    ("POST", "/v1/tokens/{provider}/rename", "renameToken"),
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

const REFRESH: &str = "refreshToken";
const HEALTH: &str = "/v1/health";
const DOCUMENT: &str = "/openapi.yaml";

/// Returns the `operationId`, or a placeholder for a request without an operation. `HEAD` counts as `GET` without the
/// body.
pub(super) fn of<B>(request: &Request<B>) -> &'static str {
    let method = if request.method() == Method::HEAD { "GET" } else { request.method().as_str() };
    let path = request.uri().path();
    let found = OPERATIONS.iter().find(|(of, template, _)| *of == method && is_at(template, path));
    found.map_or(labels::UNKNOWN, |(.., operation)| operation)
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
    let found = OPERATIONS.iter().find(|(.., of)| *of == operation);
    found.is_some_and(|(method, ..)| *method != "GET" && (provider_called || operation != REFRESH))
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
