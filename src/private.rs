//! Files and directories that only this user may access.
//!
//! Owns: how they are created and what makes an existing one unsafe, for the key, the database, the owner files and the
//! audit log; in [`trust`], which files that others may read can be trusted.
//!
//! Invariants:
//! 1. A file or directory created here is private from its first byte: the mode is given to the call that creates it.
//! 2. An existing file or directory is checked and left as it is: whoever opened it to others had a reason, or made a
//!    mistake that has to be reported.
//!
//! Must not know: what the files contain.

use std::{
    borrow::Cow,
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

mod trust;

pub(crate) use trust::{check_trusted, open_trusted};

/// An error of the file system, with the path that the standard library leaves out.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", .place.display())]
pub(crate) struct FileError {
    action: &'static str,
    place: PathBuf,
    #[source]
    cause: io::Error,
}

impl FileError {
    /// For `map_err`: adds the operation and the path.
    pub(crate) fn at(action: &'static str, place: &Path) -> impl FnOnce(io::Error) -> Self {
        let place = place.to_owned();
        move |cause| Self { action, place, cause }
    }
}

/// Why a file or directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivateError {
    /// It is not private, or owned by another user.
    #[error("{}: {reason}", .place.display())]
    Unfit {
        /// The path.
        place: PathBuf,
        /// What is wrong and how to fix it.
        reason: Cow<'static, str>,
    },
    /// The operating system reported an error.
    #[error(transparent)]
    File(#[from] FileError),
}

fn unfit(place: &Path, reason: impl Into<Cow<'static, str>>) -> PrivateError {
    PrivateError::Unfit { place: place.to_owned(), reason: reason.into() }
}

/// Creates the directory and its missing parents with mode 0700. An existing one must be owned by this user or root,
/// and not be writable for group or others: they could replace our files. Whoever may write to a directory above it
/// could replace the directory itself.
pub(crate) fn private_directory(path: &Path) -> Result<(), PrivateError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(FileError::at("make the directory", path))?;
    trust::check_path(path)?;
    let found = fs::metadata(path).map_err(FileError::at("look at", path))?;
    if trust::others_may_write(&found) { Err(unfit(path, trust::writable(path))) } else { Ok(()) }
}

/// Refuses anything but a regular file that is owned by this user and closed to all others.
pub(crate) fn check_private_file(path: &Path, found: &Metadata) -> Result<(), PrivateError> {
    if !found.is_file() {
        Err(unfit(path, "is not a regular file; move it away"))
    } else if !is_ours(found) {
        Err(unfit(path, "belongs to another user; run as that user, or give the file to this one"))
    } else if found.mode() & 0o077 != 0 {
        Err(unfit(path, "group or others can open the file; run chmod 600 on it"))
    } else {
        Ok(())
    }
}

/// Creates a new file with mode 0600, open for writing. An existing file is an error.
pub(crate) fn create_private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Flags for opening a file that is not trusted: do not follow a link, do not wait for the other end of a pipe.
pub(crate) fn no_follow_flags() -> i32 {
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), FileError> {
    let synced = File::open(path).and_then(|directory| directory.sync_all());
    synced.map_err(FileError::at("write out the directory", path))
}

/// Root could change everything anyway.
fn belongs_to_trusted_user(found: &Metadata) -> bool {
    is_ours(found) || found.uid() == 0
}

fn is_ours(found: &Metadata) -> bool {
    found.uid() == rustix::process::geteuid().as_raw()
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_missing_directory_is_made_private_with_its_parents() {
        let home = tempfile::tempdir().unwrap();
        let wanted = home.path().join("a/b");
        private_directory(&wanted).unwrap();
        private_directory(&wanted).unwrap();
        assert_eq!((mode(&wanted), mode(wanted.parent().unwrap())), (0o700, 0o700));
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused_and_left_as_it_is() {
        let home = tempfile::tempdir().unwrap();
        for bad in [0o720, 0o702, 0o777] {
            fs::set_permissions(home.path(), Permissions::from_mode(bad)).unwrap();
            assert!(matches!(private_directory(home.path()), Err(PrivateError::Unfit { .. })), "{bad:o}");
            assert_eq!(mode(home.path()), bad);
        }
        fs::set_permissions(home.path(), Permissions::from_mode(0o755)).unwrap();
        private_directory(home.path()).unwrap();
    }

    #[test]
    fn an_error_says_what_was_tried_and_where() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        drop(create_private_file(&file).unwrap());
        let error = private_directory(&file.join("below")).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot make the directory {}", file.join("below").display()));
        assert!(std::error::Error::source(&error).is_some());
    }
}
