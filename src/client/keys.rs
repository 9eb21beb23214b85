//! Requests about API keys.

use bytes::Bytes;
use http::Method;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};

use super::{Client, ClientError, Stored, json};
use crate::{
    account::KeyName,
    secret::{self, ApiKey},
};

/// An API key.
#[derive(Debug)]
pub struct Key {
    /// The key itself.
    pub secret: ApiKey,
    /// When it was set, in seconds since 1970.
    pub created_at: i64,
}

/// A key without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyStatus {
    /// The name of the key.
    pub name: KeyName,
    /// Whether the daemon can read it.
    pub readable: bool,
    /// When it was set, in seconds since 1970; `None` when it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<i64>,
}

fn path(name: &KeyName) -> String {
    // Every character of a name is safe in a path.
    format!("/v1/api-keys/{name}")
}

impl Client {
    /// The keys that the socket may have (`listApiKeys`).
    pub async fn api_keys(&self) -> Result<Vec<KeyStatus>, ClientError> {
        #[derive(Deserialize)]
        struct List {
            api_keys: Vec<KeyStatus>,
        }
        let request = self.request(Method::GET, "/v1/api-keys", Bytes::new())?;
        Ok(json::<List>(&self.send(request).await?)?.api_keys)
    }

    /// One key (`getApiKey`).
    pub async fn api_key(&self, name: &KeyName) -> Result<Key, ClientError> {
        #[derive(Deserialize)]
        struct View {
            api_key: String,
            created_at: i64,
        }
        let request = self.request(Method::GET, &path(name), Bytes::new())?;
        let View { api_key, created_at } = json(&self.send(request).await?)?;
        let secret = ApiKey::new(api_key).map_err(|_| ClientError::Protocol("its API key is malformed"))?;
        Ok(Key { secret, created_at })
    }

    /// Sets a key (`putApiKey`).
    #[expect(clippy::disallowed_methods, reason = "the key goes from here to the daemon that keeps it")]
    pub async fn set_api_key(&self, name: &KeyName, key: &ApiKey) -> Result<Stored, ClientError> {
        #[derive(Serialize)]
        struct Given<'a> {
            api_key: &'a str,
        }
        // A string always serializes; otherwise the daemon refuses the empty body.
        let body = secret::json(&Given { api_key: key.expose_secret() }).unwrap_or_default();
        self.put_json(&path(name), body).await
    }

    /// Deletes a key (`deleteApiKey`).
    pub async fn delete_api_key(&self, name: &KeyName) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &path(name), Bytes::new())?;
        self.send(request).await.map(drop)
    }
}
