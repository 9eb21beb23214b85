//! Checks that the directories of sockets are disjoint: a directory that a container mounts to reach one socket must
//! hold nothing else of ours.
//!
//! Invariants:
//! 1. Sockets of different roles or policies never share a directory, and neither directory contains the other.
//! 2. Neither the store, its key, the audit log, a secret's file nor the directory of the sandboxes lies in or below
//!    the directory of a socket of role `sandbox`.
//!
//! Directories are compared by their resolved paths, and by device and inode.

use std::{
    ffi::OsString,
    fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{
    config::{Config, Environment, KeySource, SocketConfig},
    policy::Role,
};

/// Two paths that must be disjoint and are not. `Display` names both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    /// The socket whose directory overlaps.
    pub socket: String,
    directory: PathBuf,
    /// What the other path is.
    other: String,
    place: PathBuf,
    /// The other path contains the directory.
    above: bool,
}

impl fmt::Display for Overlap {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { socket, directory, other, place, above } = self;
        let (directory, place) = (directory.display(), place.display());
        let relation = if *above { "lies in the place of" } else { "holds" };
        write!(
            formatter,
            "the directory {directory} of the socket {socket} {relation} {other} ({place}): who is given the one \
             would have the other; give the socket {socket} a directory of its own, beside all others"
        )
    }
}

impl std::error::Error for Overlap {}

/// The first overlap of each socket of role `sandbox`.
#[must_use]
pub fn overlaps(config: &Config, environment: &Environment) -> Vec<Overlap> {
    let boxes = config.sockets.iter().filter(|socket| socket.policy.role() == Role::Sandbox);
    boxes.filter_map(|socket| overlap(socket, config, environment)).collect()
}

fn overlap(socket: &SocketConfig, config: &Config, environment: &Environment) -> Option<Overlap> {
    let directory = Location::of(socket.path.parent()?);
    let found = |other: String, place: Location, above| Overlap {
        socket: socket.name.clone(),
        directory: directory.path.clone(),
        other,
        place: place.path,
        above,
    };
    for other in config.sockets.iter().filter(|other| other.policy != socket.policy) {
        let place = Location::of(other.path.parent()?);
        let role = if other.policy.role() == Role::Host { "host" } else { "sandbox" };
        let name = format!("the socket {} of role {role}", other.name);
        if directory.holds(&place) {
            return Some(found(name, place, false));
        } else if place.holds(&directory) {
            return Some(found(name, place, true));
        }
    }
    let mut protected_paths = vec![("the store".to_owned(), config.store.path.clone())];
    if let KeySource::File(path) = &config.store.key {
        protected_paths.push(("the store's key".to_owned(), path.clone()));
    }
    protected_paths.extend(config.audit.file().map(|path| ("the audit log".to_owned(), path.to_owned())));
    protected_paths
        .extend(config.files_read().into_iter().map(|path| ("a file that a provider's table names".to_owned(), path)));
    let root = config.host_socket().map(|host| environment.sandbox_root(&host.path));
    protected_paths.extend(root.map(|root| ("the place of the sandboxes made at run time".to_owned(), root.directory)));
    let protected = protected_paths.into_iter().map(|(name, path)| (name, Location::of(&path)));
    protected.into_iter().find(|(_, place)| directory.holds(place)).map(|(name, place)| found(name, place, false))
}

/// A resolved path, which need not exist.
struct Location {
    /// The path with links resolved as far as it exists.
    path: PathBuf,
    /// Device and inode, if it exists.
    identity: Option<(u64, u64)>,
    /// Device and inode of the path and of each directory above it that exists.
    above: Vec<(u64, u64)>,
}

impl Location {
    fn of(path: &Path) -> Self {
        let path = resolved(path);
        let identity = |path: &Path| fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        let above = path.ancestors().filter_map(identity).collect();
        Self { identity: identity(&path), above, path }
    }

    /// Whether `other` is this path or below it.
    fn holds(&self, other: &Self) -> bool {
        other.path.starts_with(&self.path) || self.identity.is_some_and(|own| other.above.contains(&own))
    }
}

/// Resolves links in the path; its last components need not exist.
fn resolved(path: &Path) -> PathBuf {
    let mut missing: Vec<OsString> = Vec::new();
    for ancestor in path.ancestors() {
        if let Ok(found) = fs::canonicalize(ancestor) {
            return missing.iter().rev().fold(found, |path, name| path.join(name));
        }
        missing.extend(ancestor.file_name().map(ToOwned::to_owned));
    }
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// What is wrong with these sockets, as their name and what is named beside it.
    fn found(home: &Path, sockets: &str) -> Vec<(String, String)> {
        let environment = Environment::of([("HOME", home), ("XDG_RUNTIME_DIR", &home.join("run"))]);
        let text = sockets.replace("{home}", home.to_str().unwrap());
        let config = Config::load(Some(&written(home, &text)), &environment).unwrap();
        overlaps(&config, &environment).into_iter().map(|overlap| (overlap.socket.clone(), overlap.other)).collect()
    }

    fn written(home: &Path, text: &str) -> PathBuf {
        let path = home.join("config.toml");
        std::io::Write::write_all(&mut fs::File::create(&path).unwrap(), text.as_bytes()).unwrap();
        path
    }

    fn agents(path: &str) -> String {
        format!("[sockets.agents]\npath = \"{path}\"\nrole = \"sandbox\"\n")
    }

    #[test]
    fn a_sandboxs_directory_holds_nothing_else_of_ours_and_lies_in_none() {
        let temporary = tempfile::tempdir().unwrap();
        let home = temporary.path();
        let host = "the socket host of role host";
        for (path, other) in [
            ("{home}/run/credproxy/agents/s", None),
            ("{home}/agents/s", None),
            ("{home}/run/credproxy/host/agents.sock", Some(host)),
            ("{home}/run/credproxy/agents.sock", Some(host)),
            ("{home}/run/credproxy/host/agents/s", Some(host)),
            ("{home}/run/credproxy/host/../host/s", Some(host)),
            ("{home}/s", Some(host)),
            ("{home}/.local/share/credproxy/s", Some("the store")),
            ("{home}/.local/state/s", Some("the audit log")),
        ] {
            let due: Vec<_> = other.map(|other| ("agents".to_owned(), other.to_owned())).into_iter().collect();
            assert_eq!(found(home, &agents(path)), due, "{path}");
        }
    }

    #[test]
    fn a_link_makes_no_other_directory_of_it() {
        let temporary = tempfile::tempdir().unwrap();
        let home = temporary.path();
        fs::create_dir_all(home.join("run/credproxy/host")).unwrap();
        symlink(home.join("run/credproxy/host"), home.join("link")).unwrap();
        symlink(home.join("run"), home.join("up")).unwrap();
        for path in ["{home}/link/s", "{home}/link/below/s", "{home}/up/s", "{home}/up/credproxy/host/s"] {
            assert_eq!(found(home, &agents(path)).len(), 1, "{path}");
        }
        assert!(found(home, &agents("{home}/up/agents/s")).is_empty());
    }

    #[test]
    fn sandboxes_share_a_directory_only_with_their_like() {
        let temporary = tempfile::tempdir().unwrap();
        let home = temporary.path();
        let two = |allow: &str, path: &str| {
            agents("{home}/a/s") + &agents(path).replace("agents", "others") + &format!("allow = [{allow}]\n")
        };
        assert_eq!(found(home, &two("", "{home}/a/t")), []);
        assert_eq!(found(home, &two("\"corp\"", "{home}/a/t")).len(), 2);
        assert_eq!(found(home, &two("\"corp\"", "{home}/a/b/t")).len(), 2);
        assert_eq!(found(home, &two("\"corp\"", "{home}/b/t")), []);
    }
}
