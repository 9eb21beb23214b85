//! Finds an issuer's endpoints in its metadata (OpenID Connect Discovery 1.0, RFC 8414).
//!
//! Invariants:
//! 1. Metadata counts only when its `issuer` is the one asked for (RFC 8414 section 3.3).
//! 2. An endpoint found is held to the same rules as a configured one, and used as it is written.
//! 3. Metadata from elsewhere cannot name an endpoint on this machine or on its link, by address or by a reserved name.
//!
//! Must not know: tokens, grants.

use http::HeaderMap;
use serde_json::{Map, Value};
use url::Url;

use crate::provider::wire::{Exchange, Http, endpoint, is_loopback_or_link_local};

/// What is taken from the metadata.
#[derive(Debug)]
pub(super) struct Metadata {
    /// The issuer as the metadata spells it, which is how `iss` has to spell it (RFC 9207 section 2.4).
    pub(super) issuer: String,
    pub(super) token: Url,
    pub(super) authorization: Option<Url>,
    pub(super) device_authorization: Option<Url>,
    pub(super) revocation: Option<Url>,
    /// Whether authorization responses always hold `iss` (RFC 9207 section 3).
    pub(super) sends_iss: bool,
}

/// Fetches the issuer's metadata, with these headers. The error describes the problem in our own words.
pub(super) async fn discover(http: &Http, issuer: &Url, headers: &HeaderMap) -> Result<Metadata, &'static str> {
    for place in places(issuer) {
        match http.get(place, headers.clone()).await {
            Exchange::NotSent(why) => return Err(why),
            Exchange::Lost { .. } => return Err("discovery: the answer broke off"),
            Exchange::Answered { head, body } => {
                if let Some(document) = body.filter(|_| head.status == 200).and_then(|body| document(&body)) {
                    return read(&document, issuer);
                }
            }
        }
    }
    Err("discovery: the issuer has no metadata")
}

/// The possible addresses of the metadata. OpenID Connect comes first: most issuers support it, and the others answer
/// 404 or a page for people. An invalid document is not replaced by one from the next address.
fn places(issuer: &Url) -> [Url; 2] {
    let path = issuer.path().trim_end_matches('/');
    [format!("{path}/.well-known/openid-configuration"), format!("/.well-known/oauth-authorization-server{path}")].map(
        |path| {
            let mut place = issuer.clone();
            place.set_path(&path);
            place
        },
    )
}

fn document(body: &[u8]) -> Option<Map<String, Value>> {
    serde_json::from_slice(body).ok()
}

fn read(document: &Map<String, Value>, issuer: &Url) -> Result<Metadata, &'static str> {
    let text = |name: &str| document.get(name).and_then(Value::as_str);
    let Some(named) = text("issuer").filter(|named| is_named(issuer, named)) else {
        return Err("discovery: the issuer in the metadata is another");
    };
    let usable = |url: &Url| is_loopback_or_link_local(issuer) || !is_loopback_or_link_local(url);
    let token = text("token_endpoint").ok_or("discovery: the metadata has no token_endpoint")?;
    let token =
        endpoint(token).ok().filter(usable).ok_or("discovery: the token_endpoint is not one to send secrets to")?;
    // Refreshes work without these; a revocation or login then reports that it is not supported.
    let optional = |name| text(name).and_then(|text| endpoint(text).ok()).filter(usable);
    Ok(Metadata {
        issuer: named.to_owned(),
        token,
        authorization: optional("authorization_endpoint"),
        device_authorization: optional("device_authorization_endpoint"),
        revocation: optional("revocation_endpoint"),
        sends_iss: document.get("authorization_response_iss_parameter_supported") == Some(&Value::Bool(true)),
    })
}

/// Compared as text; `Url` adds the slash that an issuer without a path may omit.
pub(super) fn is_named(issuer: &Url, named: &str) -> bool {
    let text = issuer.as_str();
    named == text || (issuer.path() == "/" && text.strip_suffix('/') == Some(named))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_as(issuer: &str, document: &Value) -> Result<Metadata, &'static str> {
        read(document.as_object().unwrap(), &endpoint(issuer).unwrap())
    }

    #[test]
    fn metadata_lies_where_the_two_standards_say() {
        for (issuer, oidc, oauth) in [
            (
                "https://h.example",
                "https://h.example/.well-known/openid-configuration",
                "https://h.example/.well-known/oauth-authorization-server",
            ),
            (
                "https://h.example/a/b/",
                "https://h.example/a/b/.well-known/openid-configuration",
                "https://h.example/.well-known/oauth-authorization-server/a/b",
            ),
        ] {
            assert_eq!(places(&endpoint(issuer).unwrap()).map(String::from), [oidc, oauth]);
        }
    }

    #[test]
    fn only_the_issuer_asked_for_counts() {
        for (issuer, named, accepted) in [
            ("https://h.example", "https://h.example", true),
            ("https://h.example", "https://h.example/", true),
            ("https://h.example/a", "https://h.example/a", true),
            ("https://h.example/a", "https://h.example/a/", false),
            ("https://h.example/a/", "https://h.example/a", false),
            ("https://h.example", "https://H.example", false),
            ("https://h.example", "https://evil.example", false),
            ("https://h.example", "", false),
        ] {
            let document = json!({"issuer": named, "token_endpoint": "https://h.example/token"});
            assert_eq!(read_as(issuer, &document).is_ok(), accepted, "{issuer} {named}");
        }
        assert!(read_as("https://h.example", &json!({"token_endpoint": "https://h.example/token"})).is_err());
    }

    #[test]
    fn an_endpoint_is_used_as_written_or_not_at_all() {
        let issuer = "https://h.example";
        let with = |token: &str, revocation: &str| {
            let document = json!({"issuer": issuer, "token_endpoint": token, "revocation_endpoint": revocation});
            read_as(issuer, &document)
        };
        let found = with("https://other.example//token", "https://h.example//revoke").unwrap();
        assert_eq!(found.token.as_str(), "https://other.example//token");
        assert_eq!(found.revocation.unwrap().as_str(), "https://h.example//revoke");
        assert!(with("https://h.example/token", "http://h.example/revoke").unwrap().revocation.is_none());
        for bad in [
            "http://h.example/token",
            "http://127.0.0.1/token",
            "https://localhost/token",
            "https://a.localhost./token",
            "https://0/token",
            "https://[::ffff:127.0.0.1]/token",
            "https://169.254.169.254/token",
            "/token",
            "",
        ] {
            assert!(with(bad, "").is_err(), "{bad}");
            let document = json!({"issuer": issuer, "token_endpoint": "https://h.example/token",
                "authorization_endpoint": bad, "device_authorization_endpoint": bad});
            let found = read_as(issuer, &document).unwrap();
            assert!(found.authorization.is_none() && found.device_authorization.is_none(), "{bad}");
        }
    }
}
