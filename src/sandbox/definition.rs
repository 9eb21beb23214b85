//! The stored form of a sandbox.

use std::{path::PathBuf, time::Duration};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};

use super::{Sandbox, SandboxId, process::Process};
use crate::{
    account::{ItemName, KeyName},
    clock::Timestamp,
    policy::Allowed,
    secret::{CapabilityHash, Content},
};

/// A sandbox as it is stored.
#[derive(Debug)]
pub(super) struct Definition {
    pub(super) id: SandboxId,
    /// The daemon it belongs to, of those on one store ([`SandboxRoot::name`](super::SandboxRoot)).
    pub(super) root: PathBuf,
    /// Its own directory.
    pub(super) directory: PathBuf,
    pub(super) allowed: Allowed,
    pub(super) capability: Option<CapabilityHash>,
    pub(super) lifetime: Duration,
    pub(super) expires_at: Timestamp,
    pub(super) process: Option<Process>,
}

/// The stored form. An unknown member may be a restriction, so an item with one is not read.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredSandbox {
    root: PathBuf,
    /// In sandboxes of an earlier version: the whole id, in the root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    directory: Option<PathBuf>,
    allow: Vec<String>,
    operations: Vec<String>,
    keys: Vec<KeyName>,
    capability: Option<String>,
    /// In milliseconds.
    lifetime: u64,
    expires_at: Timestamp,
    process: Option<Process>,
}

impl Definition {
    /// `None` if it cannot be stored: the root is not UTF-8.
    pub(super) fn content(&self) -> Option<Content> {
        let texts = |list: &[_]| list.iter().map(ToString::to_string).collect();
        let stored = StoredSandbox {
            root: self.root.clone(),
            directory: Some(self.directory.clone()),
            allow: texts(&self.allowed.allow),
            operations: self.allowed.operations.iter().map(|operation| operation.as_str().to_owned()).collect(),
            keys: self.allowed.keys.clone(),
            capability: self.capability.map(|hash| URL_SAFE_NO_PAD.encode(hash.to_bytes())),
            lifetime: u64::try_from(self.lifetime.as_millis()).ok()?,
            expires_at: self.expires_at,
            process: self.process,
        };
        serde_json::to_vec(&stored).ok().map(Content::new)
    }

    /// `None` if it is not understood in full.
    #[expect(clippy::disallowed_methods, reason = "reads a definition, which holds no secret but a hash")]
    pub(super) fn read(name: &ItemName, content: &Content) -> Option<Self> {
        let stored: StoredSandbox = serde_json::from_slice(content.expose_secret()).ok()?;
        let hash = |text: String| <[u8; _]>::try_from(URL_SAFE_NO_PAD.decode(text).ok()?).ok();
        let capability = match stored.capability {
            Some(text) => Some(CapabilityHash::from_bytes(hash(text)?)),
            None => None,
        };
        let id: SandboxId = name.as_str().parse().ok()?;
        Some(Self {
            id,
            directory: stored.directory.unwrap_or_else(|| stored.root.join(id.to_string())),
            root: stored.root,
            allowed: Allowed {
                allow: stored.allow.iter().map(|text| text.parse().ok()).collect::<Option<_>>()?,
                operations: stored.operations.iter().map(|text| text.parse().ok()).collect::<Option<_>>()?,
                keys: stored.keys,
            },
            capability,
            lifetime: Duration::from_millis(stored.lifetime),
            expires_at: stored.expires_at,
            process: stored.process,
        })
    }

    pub(super) fn sandbox(&self) -> Sandbox {
        Sandbox {
            id: self.id,
            directory: self.directory.clone(),
            allowed: self.allowed.clone(),
            expires_at: self.expires_at,
            tied: self.process.is_some(),
        }
    }
}
