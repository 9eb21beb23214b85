//! Requests that create and delete sandboxes.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use zeroize::Zeroizing;

use super::{Client, ClientError, id, whole_seconds};
use crate::{
    account::KeyName,
    policy::{Operation, Pattern},
    secret::Capability,
};

/// What a new sandbox is allowed.
#[derive(Debug, Clone)]
pub struct SandboxRequest<'a> {
    /// The accounts that it may use.
    pub allow: &'a [Pattern],
    /// The operations on them; the daemon's default when empty.
    pub operations: &'a [Operation],
    /// The API keys that it may use.
    pub keys: &'a [KeyName],
    /// Its lifetime; the daemon's default when `None`.
    pub ttl: Option<Duration>,
    /// Whether its peers must show a capability.
    pub capability: bool,
}

/// A sandbox that was just created.
#[derive(Debug)]
pub struct Sandbox {
    /// The id.
    pub id: String,
    /// The path of its socket.
    pub socket: PathBuf,
    /// The capability that its peers must show.
    pub capability: Option<Capability>,
}

#[derive(Serialize)]
struct CreateBody<'a> {
    allow: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    operations: Vec<&'static str>,
    keys: &'a [KeyName],
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl: Option<u64>,
    capability: bool,
    tied: bool,
}

#[derive(Deserialize)]
struct CreatedBody {
    #[serde(deserialize_with = "id")]
    id: String,
    socket: PathBuf,
    capability: Option<String>,
}

impl Client {
    /// Creates a sandbox that ends with this process (`createSandbox`).
    pub async fn create_sandbox(&self, request: &SandboxRequest<'_>) -> Result<Sandbox, ClientError> {
        let body = CreateBody {
            allow: request.allow.iter().map(ToString::to_string).collect(),
            operations: request.operations.iter().map(|operation| operation.as_str()).collect(),
            keys: request.keys,
            ttl: request.ttl.map(whole_seconds),
            capability: request.capability,
            tied: true,
        };
        let made: CreatedBody =
            self.post_json("/v1/sandboxes", Zeroizing::new(json!(body).to_string().into_bytes())).await?;
        let capability = made.capability.map(Capability::new).transpose();
        let capability = capability.map_err(|_| ClientError::Protocol("its capability is malformed"))?;
        if made.socket.is_relative() || capability.is_some() != request.capability {
            return Err(ClientError::Protocol("it is not the sandbox that was asked for"));
        }
        Ok(Sandbox { id: made.id, socket: made.socket, capability })
    }

    /// Deletes a sandbox (`deleteSandbox`).
    pub async fn delete_sandbox(&self, id: &str) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &format!("/v1/sandboxes/{id}"), Bytes::new())?;
        self.send(request).await.map(drop)
    }
}
