//! The paths of Unix sockets: their maximum length, and whether another user can change where they lead.
//!
//! Owns: the limit of the platform, and the check of the directories above a socket: whoever owns one of them, or may
//! write to it, can replace our directory.
//!
//! Must not know: which socket it is.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

/// The size of the path in `sockaddr_un`, less the terminating zero byte: 108 bytes on Linux (`unix(7)`), 104 on macOS
/// and the BSDs.
pub const MAX_PATH_BYTES: usize = if cfg!(any(target_os = "linux", target_os = "android")) { 107 } else { 103 };

/// As many as the kernel follows in one path (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// The user that represents those without a number in this user namespace (`user_namespaces(7)`).
const UNMAPPED: u32 = 65_534;

/// Why a path is not safe.
#[derive(Debug, thiserror::Error)]
pub enum AncestorError {
    /// Its owner is neither this user nor root.
    #[error("{} belongs to user {uid}; a directory on the way must belong to this user or to root", .place.display())]
    Foreign {
        /// The directory or link.
        place: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Other users may rename its entries.
    #[error("{} is writable by group or others; run chmod go-w on it, or choose another path", .place.display())]
    Writable {
        /// The directory.
        place: PathBuf,
    },
    /// The operating system reported an error.
    #[error("cannot examine {}", .place.display())]
    Io {
        /// The directory or link.
        place: PathBuf,
        /// The error.
        #[source]
        source: io::Error,
    },
}

/// Checks every directory and every symbolic link on the way to `path`, itself included, as `sshd` does
/// (`StrictModes`): each is owned by this user or root, and group and others may not write to it unless it is sticky.
/// Components that do not exist yet are skipped.
pub(crate) fn check_ancestors(path: &Path) -> Result<(), AncestorError> {
    check(path, MAX_LINKS)
}

fn check(path: &Path, links: usize) -> Result<(), AncestorError> {
    let mut place = PathBuf::new();
    for component in path.components() {
        place.push(component);
        if component == Component::ParentDir {
            continue;
        }
        let at = || place.clone();
        let found = match fs::symlink_metadata(&place) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(AncestorError::Io { place: at(), source }),
        };
        if !is_trusted(found.uid()) {
            return Err(AncestorError::Foreign { place: at(), uid: found.uid() });
        }
        if found.is_symlink() {
            let target = fs::read_link(&place).map_err(|source| AncestorError::Io { place: at(), source })?;
            let left = links.checked_sub(1).ok_or_else(|| {
                let source = rustix::io::Errno::LOOP.into();
                AncestorError::Io { place: at(), source }
            })?;
            check(&place.parent().unwrap_or(Path::new("/")).join(target), left)?;
        } else if found.mode() & 0o022 != 0 && found.mode() & 0o1000 == 0 {
            return Err(AncestorError::Writable { place: at() });
        }
    }
    Ok(())
}

fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw() || (uid == UNMAPPED && is_partial_namespace())
}

/// Whether some users have no number here, as in an unprivileged container: the machine's root is one of them.
fn is_partial_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let fields: Vec<&str> = map.split_ascii_whitespace().collect();
    !fields.is_empty() && fields != ["0", "0", "4294967295"]
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_found_wherever_it_is_on_the_way() {
        let home = tempfile::tempdir().unwrap();
        let (above, ours) = (home.path().join("above"), home.path().join("above/ours"));
        fs::create_dir_all(&ours).unwrap();
        for (mode, fit) in [(0o755, true), (0o1777, true), (0o777, false), (0o775, false), (0o700, true)] {
            set_mode(&above, mode);
            for path in [&ours, &above, &ours.join("not/there/yet")] {
                let found = check_ancestors(path);
                assert_eq!(found.is_ok(), fit, "{mode:o} {}: {found:?}", path.display());
                let named = found.err().is_none_or(|error| error.to_string().starts_with(above.to_str().unwrap()));
                assert!(named, "{mode:o}");
            }
        }
        assert!(check_ancestors(Path::new("/usr/bin")).is_ok());
    }

    #[test]
    fn a_link_is_followed_and_what_it_leads_through_is_checked() {
        let home = tempfile::tempdir().unwrap();
        let (open, target) = (home.path().join("open"), home.path().join("open/target"));
        fs::create_dir_all(&target).unwrap();
        symlink("open/target", home.path().join("link")).unwrap();
        symlink("link", home.path().join("second")).unwrap();
        symlink("loop", home.path().join("loop")).unwrap();
        let through = home.path().join("second/run");
        assert!(check_ancestors(&through).is_ok());
        set_mode(&open, 0o777);
        assert!(matches!(check_ancestors(&through), Err(AncestorError::Writable { place }) if place.ends_with("open")));
        assert!(matches!(check_ancestors(&home.path().join("loop/run")), Err(AncestorError::Io { .. })));
    }

    #[test]
    fn another_users_directory_is_refused() {
        if !rustix::process::geteuid().is_root() {
            // Only root can give files away; `tests/security` says so aloud.
            return;
        }
        let home = tempfile::tempdir().unwrap();
        let theirs = home.path().join("theirs");
        fs::create_dir_all(theirs.join("ours")).unwrap();
        std::os::unix::fs::chown(&theirs, Some(4242), None).unwrap();
        let found = check_ancestors(&theirs.join("ours"));
        assert!(matches!(found, Err(AncestorError::Foreign { uid: 4242, .. })), "{found:?}");
    }
}
