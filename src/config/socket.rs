//! The tables `[sockets.NAME]`.

use std::path::PathBuf;

use super::{
    ConfigError,
    document::{Entry, Section},
    limits,
};
use crate::{
    limits::SocketLimits,
    policy::{Allowed, Policy, Role},
    socket_path::MAX_PATH_BYTES,
};

/// One listening Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// Its name in logs: letters, digits, `_` and `-`.
    pub name: String,
    /// Where it listens.
    pub path: PathBuf,
    /// What its peers may see and do.
    pub policy: Policy,
    /// The users that may connect; empty means the daemon's own user.
    pub uids: Vec<u32>,
    /// The limits on its peers.
    pub limits: SocketLimits,
}

impl SocketConfig {
    /// A host's socket with defaults for everything but its path.
    pub(super) fn host_at(name: &str, path: PathBuf) -> Self {
        Self { name: name.to_owned(), path, policy: Policy::host(), uids: Vec::new(), limits: SocketLimits::HOST }
    }
}

impl SocketConfig {
    /// The socket for the user's own clients: among those of role `host` the one named `host`, or else the first.
    #[must_use]
    pub fn host(sockets: &[Self]) -> Option<&Self> {
        let mut hosts = sockets.iter().filter(|socket| socket.policy.role() == Role::Host);
        let first = hosts.clone().next();
        hosts.find(|socket| socket.name == HOST).or(first)
    }
}

/// The name of the default host's socket.
pub(super) const HOST: &str = "host";

/// Reads one table; `others` are the sockets before it.
pub(super) fn read(
    name: String,
    mut section: Section<'_>,
    others: &[SocketConfig],
) -> Result<SocketConfig, ConfigError> {
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
        return Err(section.refuse("the name of a socket has letters, digits, _ and - in it"));
    }
    let path_entry = section.required("path")?;
    let path = path_entry.path()?;
    if path.as_os_str().len() > MAX_PATH_BYTES {
        return Err(path_entry.refuse(format!("the path of a socket has at most {MAX_PATH_BYTES} bytes")));
    }
    if let Some(twin) = others.iter().find(|other| other.path == path) {
        return Err(path_entry.refuse(format!("is the path of the socket {} too", twin.name)));
    }
    let role_entry = section.required("role")?;
    let role = role_entry.parsed(role, "must be \"host\" or \"sandbox\"")?;
    let policy = match role {
        Role::Host => Policy::host(),
        Role::Sandbox if name == HOST => {
            return Err(role_entry.refuse("the socket of this name has the role \"host\""));
        }
        Role::Sandbox => sandbox(&mut section)?,
    };
    let uids = match section.take("uids") {
        Some(entry) => entry.list()?.iter().map(Entry::id).collect::<Result<_, _>>()?,
        None => Vec::new(),
    };
    if role == Role::Host {
        for key in ["allow", "operations", "keys"] {
            if let Some(entry) = section.take(key) {
                return Err(entry.refuse("only a socket of role \"sandbox\" is held to this; a host sees everything"));
            }
        }
    }
    let limits = limits::of_socket(&mut section, role)?;
    section.finish()?;
    Ok(SocketConfig { name, path, policy, uids, limits })
}

fn sandbox(section: &mut Section<'_>) -> Result<Policy, ConfigError> {
    let allow = match section.take("allow") {
        Some(entry) => entry.texts(
            |text| text.parse().ok(),
            "must be \"provider\", \"provider/bucket\" or \"provider/*\"; for everything, use a host's socket",
        )?,
        None => Vec::new(),
    };
    let operations = match section.take("operations") {
        Some(entry) => {
            Some(entry.texts(|text| text.parse().ok(), "must be \"read\", \"refresh\", \"login\" or \"keys\"")?)
        }
        None => None,
    };
    let keys = match section.take("keys") {
        Some(entry) => entry.texts(
            |text| text.parse().ok(),
            "must be names of API keys, in full; for every key, use a host's socket",
        )?,
        None => Vec::new(),
    };
    Ok(Policy::sandbox(Allowed::new(allow, operations, keys)))
}

fn role(text: &str) -> Option<Role> {
    match text {
        "host" => Some(Role::Host),
        "sandbox" => Some(Role::Sandbox),
        _ => None,
    }
}
