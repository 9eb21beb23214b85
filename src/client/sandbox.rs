//! The requests that a sandbox is made and ended with.

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

/// What a sandbox is request for.
#[derive(Debug, Clone)]
pub struct SandboxRequest<'a> {
    /// The accounts that it may have.
    pub allow: &'a [Pattern],
    /// What it may do with them; the usual when empty.
    pub operations: &'a [Operation],
    /// The API keys that it may have.
    pub keys: &'a [KeyName],
    /// For how long.
    pub ttl: Option<Duration>,
    /// Whether its peers are to show a capability.
    pub capability: bool,
}

/// A sandbox that was just made.
#[derive(Debug)]
pub struct Sandbox {
    /// Its name.
    pub id: String,
    /// Where it listens.
    pub socket: PathBuf,
    /// What its peers are to show.
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
    /// Makes a sandbox that ends with this process (`createSandbox`).
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
            return Err(ClientError::Protocol("it is not the sandbox that was body for"));
        }
        Ok(Sandbox { id: made.id, socket: made.socket, capability })
    }

    /// Ends it (`deleteSandbox`).
    pub async fn delete_sandbox(&self, id: &str) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &format!("/v1/sandboxes/{id}"), Bytes::new())?;
        self.send(request).await.map(drop)
    }
}
