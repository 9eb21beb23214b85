//! Requests of a login.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, header};
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::{Client, ClientError, Secret, id, json, optional_printable_text, printable_text};
use crate::{account::Account, provider::Flow};

/// A login as the daemon reports it. Of its token only the expiry is kept: the token itself is requested separately.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Login {
    /// The id.
    #[serde(deserialize_with = "id")]
    pub id: String,
    /// `browser`, `paste` or `device`.
    #[serde(deserialize_with = "printable_text")]
    pub flow: String,
    /// `pending`, `complete` or `error`.
    #[serde(deserialize_with = "printable_text")]
    pub status: String,
    /// When it expires, in seconds since 1970.
    pub expires_at: i64,
    /// The address for the person to open.
    #[serde(default, deserialize_with = "optional_printable_text")]
    pub authorization_url: Option<String>,
    /// The address at which the person types in the code.
    #[serde(default, deserialize_with = "optional_printable_text")]
    pub verification_uri: Option<String>,
    /// The code to type in.
    #[serde(default, deserialize_with = "optional_printable_text")]
    pub user_code: Option<String>,
    /// The address with the code in it.
    #[serde(default, deserialize_with = "optional_printable_text")]
    pub verification_uri_complete: Option<String>,
    /// The code of the problem, if it failed.
    #[serde(default, deserialize_with = "optional_printable_text")]
    pub code: Option<String>,
    /// The problem in words.
    #[serde(default, deserialize_with = "optional_printable_text")]
    pub detail: Option<String>,
    /// When the new token expires, in seconds since 1970.
    #[serde(default, rename = "token", deserialize_with = "expiry")]
    pub token_expiry: Option<i64>,
}

fn expiry<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    #[derive(Deserialize)]
    struct Token {
        expiry: Option<i64>,
    }
    Ok(Option::<Token>::deserialize(deserializer)?.and_then(|token| token.expiry))
}

impl Client {
    /// Starts a login (`startLogin`).
    pub async fn start_login(&self, account: &Account, flow: Flow) -> Result<Login, ClientError> {
        let body = json!({"provider": account.provider, "bucket": account.bucket, "flow": flow.name()});
        self.post_json("/v1/logins", Zeroizing::new(body.to_string().into_bytes())).await
    }

    /// The state of the login, once it has ended or `wait` has passed (`getLogin`).
    pub async fn login(&self, id: &str, wait: Duration) -> Result<Login, ClientError> {
        let mut request = self.request(Method::GET, &format!("/v1/logins/{id}"), Bytes::new())?;
        // A number after ASCII text is a valid header value.
        let prefer = HeaderValue::try_from(format!("wait={}", wait.as_secs()));
        request.headers_mut().extend(prefer.map(|prefer| (http::HeaderName::from_static("prefer"), prefer)));
        json(&self.send(request).await?)
    }

    /// Sends the pasted code (`finishLogin`).
    pub async fn finish_login(&self, id: &str, code: &str) -> Result<Login, ClientError> {
        let body = Zeroizing::new(json!({"code": code}).to_string().into_bytes());
        let mut request = self.request(Method::POST, &format!("/v1/logins/{id}/code"), Bytes::from_owner(body))?;
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request.extensions_mut().insert(Secret);
        json(&self.send(request).await?)
    }

    /// Cancels the login (`cancelLogin`).
    pub async fn cancel_login(&self, id: &str) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &format!("/v1/logins/{id}"), Bytes::new())?;
        self.send(request).await.map(drop)
    }
}
