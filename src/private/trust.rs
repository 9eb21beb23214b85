//! Files whose content is trusted: who could have written them.
//!
//! A configuration can name commands and endpoints, a certificate file decides which servers are trusted, and a
//! directory above a file decides which file a path names. Such a path is refused if another user than root and this
//! one could change what it leads to, as `sshd` does with `StrictModes`.
//!
//! Invariants:
//! 1. A path is followed from the root, one name at a time, including symbolic links. Each directory, each link and the
//!    file are owned by this user or root. Nobody else may write to a directory, unless its sticky bit keeps them from
//!    replacing other users' entries.
//! 2. A name is examined only after its directory was found safe: from then on nobody else can replace it.
//! 3. The mode is read from the open file: the file that was checked is the file that is read.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Component, Path, PathBuf},
    sync::OnceLock,
};

use rustix::fs::OFlags;

use super::{FileError, PrivateError, belongs_to_trusted_user, unfit};

const INSPECT: &str = "look at";

/// As many links as the kernel follows (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// The sticky bit: other users may add entries to the directory, but neither rename nor remove those of others.
const STICKY: u32 = 0o1000;

const GROUP_WRITES: u32 = 0o020;

const OTHERS_WRITE: u32 = 0o002;

/// Opens a file whose content is trusted. A missing file is `NotFound`, whoever owns the directories above it. A file
/// that others could have written is `PermissionDenied`, with the offending path and the command that fixes it.
///
/// A path that names an open file (`/dev/stdin`) is opened unchecked: whoever passed it on could as well have passed
/// its content.
pub(crate) fn open_trusted(path: &Path, flags: OFlags) -> io::Result<File> {
    let inherited = is_open_file(path);
    if !inherited {
        check_trusted(path)?;
    }
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if !inherited {
        check_file(path, &file.metadata()?)?;
    }
    Ok(file)
}

/// Checks a trusted file or directory that another program opens.
pub(crate) fn check_trusted(path: &Path) -> io::Result<()> {
    let checked = check_path(path);
    let found = fs::metadata(path)?;
    checked.map_err(denied)?;
    check_file(path, &found)
}

/// Follows the path to its end (invariants 1 and 2). The mode of a file at the end is not checked.
pub(super) fn check_path(path: &Path) -> Result<(), PrivateError> {
    let path = std::path::absolute(path).map_err(FileError::at(INSPECT, path))?;
    let mut at = PathBuf::from("/");
    check_entry(&at, &fs::metadata(&at).map_err(FileError::at(INSPECT, &at))?)?;
    let (mut names, mut links) = (names(&path), 0);
    while let Some(name) = names.pop() {
        if name == ".." {
            at.pop();
            continue;
        }
        let next = at.join(name);
        let found = fs::symlink_metadata(&next).map_err(FileError::at(INSPECT, &next))?;
        check_entry(&next, &found)?;
        if !found.is_symlink() {
            at = next;
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(FileError::at(INSPECT, &next)(io::Error::other("too many symbolic links")).into());
        }
        let target = fs::read_link(&next).map_err(FileError::at(INSPECT, &next))?;
        if target.is_absolute() {
            at = PathBuf::from("/");
        }
        names.extend(self::names(&target));
    }
    Ok(())
}

/// The components of a path, the first one last.
fn names(path: &Path) -> Vec<OsString> {
    let named = |component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(named).collect()
}

fn check_entry(place: &Path, found: &Metadata) -> Result<(), PrivateError> {
    if !belongs_to_trusted_user(found) {
        Err(unfit(place, foreign(place, found)))
    } else if found.is_dir() && found.mode() & STICKY == 0 && others_may_write(found) {
        Err(unfit(place, writable(place)))
    } else {
        Ok(())
    }
}

/// The content of a device is produced by the kernel, not by whoever wrote to it.
fn check_file(place: &Path, found: &Metadata) -> io::Result<()> {
    if !belongs_to_trusted_user(found) {
        Err(denied(unfit(place, foreign(place, found))))
    } else if !found.is_dir() && !found.file_type().is_char_device() && others_may_write(found) {
        Err(denied(unfit(place, writable(place))))
    } else {
        Ok(())
    }
}

/// Whether the mode allows another user to write to it. Where each user has a private group, files are created with
/// group write permission (umask 002); a group with no other member counts as this user.
pub(super) fn others_may_write(found: &Metadata) -> bool {
    found.mode() & OTHERS_WRITE != 0 || found.mode() & GROUP_WRITES != 0 && !is_private_group(found.gid())
}

/// Whether the group is this user's private group by the usual convention: it has the user's number, is the user's
/// primary group, and `/etc/group` lists no members. Root's group never is.
fn is_private_group(gid: u32) -> bool {
    static PRIVATE: OnceLock<Option<u32>> = OnceLock::new();
    let private = PRIVATE.get_or_init(|| {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let groups = fs::read_to_string("/etc/group").ok()?;
        (uid != 0 && uid == gid && has_no_members(&groups, gid)).then_some(gid)
    });
    *private == Some(gid)
}

/// Whether the group is listed without members (`group(5)`).
fn has_no_members(groups: &str, gid: u32) -> bool {
    let number = gid.to_string();
    let mut lines = groups.lines().filter(|line| line.split(':').nth(2) == Some(&number)).peekable();
    lines.peek().is_some() && lines.all(|line| line.split(':').nth(3).is_none_or(str::is_empty))
}

pub(super) fn foreign(place: &Path, found: &Metadata) -> String {
    let (uid, link) = (found.uid(), if found.is_symlink() { "-h " } else { "" });
    format!(
        "belongs to another user (uid {uid}), who could change what is found there; run `chown {link}{own} '{place}'`, \
         or choose another place",
        own = rustix::process::geteuid().as_raw(),
        place = place.display()
    )
}

pub(super) fn writable(place: &Path) -> String {
    format!("group or others can write to it; run `chmod go-w '{}'`, or choose another place", place.display())
}

fn denied(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, error)
}

/// Whether the path is one of the system's names for files that this process inherited.
fn is_open_file(path: &Path) -> bool {
    let is_number = |name: &OsStr| name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
    let numbered = || path.parent().is_some_and(|parent| parent == "/dev/fd" || parent == "/proc/self/fd");
    path == "/dev/stdin" || numbered() && path.file_name().is_some_and(is_number)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        io::Read as _,
        os::unix::fs::{PermissionsExt as _, chown, lchown, symlink},
    };

    use super::*;

    /// Somebody who is neither root nor the one who runs the tests.
    const STRANGER: u32 = 65534;

    fn home() -> (tempfile::TempDir, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("a");
        fs::create_dir(&directory).unwrap();
        set_mode(&directory, 0o755);
        let file = directory.join("file");
        drop(super::super::create_private_file(&file).unwrap());
        (home, file)
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn refusal(path: &Path) -> String {
        let error = open_trusted(path, OFlags::empty()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}");
        error.to_string()
    }

    #[test]
    fn a_group_is_private_when_it_is_listed_without_members() {
        let groups = "root:x:0:\nalice:x:1000:\nteam:x:1001:bob,carol\nbob:x:1002:\nalias:x:1002:carol\n";
        assert!(has_no_members(groups, 1000));
        for shared in [1001, 1002, 1003] {
            assert!(!has_no_members(groups, shared), "{shared}");
        }
    }

    #[test]
    fn a_file_that_others_may_only_read_is_trusted() {
        let (_home, file) = home();
        for mode in [0o600, 0o644, 0o444, 0o400] {
            set_mode(&file, mode);
            open_trusted(&file, OFlags::empty()).unwrap();
        }
        let link = file.with_file_name("link");
        symlink("../a/./file", &link).unwrap();
        open_trusted(&link, OFlags::empty()).unwrap();
        open_trusted(&file.parent().unwrap().join("../a/link"), OFlags::empty()).unwrap();
        open_trusted(Path::new("/dev/null"), OFlags::empty()).unwrap();
        open_trusted(Path::new("/etc/passwd"), OFlags::empty()).unwrap();
    }

    #[test]
    fn a_file_that_others_may_write_is_refused_with_the_command_that_mends_it() {
        let (_home, file) = home();
        for mode in [0o620, 0o602, 0o666, 0o664] {
            set_mode(&file, mode);
            let said = refusal(&file);
            assert!(said.contains(&format!("chmod go-w '{}'", file.display())), "{said}");
        }
    }

    #[test]
    fn a_directory_above_it_that_others_may_write_to_is_refused_unless_it_is_sticky() {
        let (_home, file) = home();
        let directory = file.parent().unwrap();
        let below = directory.join("b");
        fs::create_dir(&below).unwrap();
        let link = below.join("link");
        symlink(&file, &link).unwrap();
        for mode in [0o775, 0o757, 0o777] {
            set_mode(directory, mode);
            for path in [&file, &link] {
                let said = refusal(path);
                assert!(said.contains(&format!("chmod go-w '{}'", directory.display())), "{said}");
            }
        }
        set_mode(directory, 0o1777);
        open_trusted(&file, OFlags::empty()).unwrap();
    }

    #[test]
    fn a_link_leads_through_the_directories_of_its_target() {
        let (home, file) = home();
        let elsewhere = home.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        let link = elsewhere.join("link");
        symlink("../a/file", &link).unwrap();
        open_trusted(&link, OFlags::empty()).unwrap();
        set_mode(file.parent().unwrap(), 0o777);
        assert!(refusal(&link).contains("/a'"));
        let (one, other) = (home.path().join("one"), home.path().join("other"));
        symlink(&one, &other).unwrap();
        symlink(&other, &one).unwrap();
        assert!(open_trusted(&one, OFlags::empty()).is_err());
    }

    #[test]
    fn what_belongs_to_a_stranger_is_refused() {
        if !rustix::process::geteuid().is_root() {
            // Only root can give files away; `tests/security` says so aloud.
            return;
        }
        let (_home, file) = home();
        let directory = file.parent().unwrap();
        let link = directory.join("link");
        symlink(&file, &link).unwrap();
        lchown(&link, Some(STRANGER), None).unwrap();
        assert!(refusal(&link).contains(&format!("chown -h 0 '{}'", link.display())));
        chown(&file, Some(STRANGER), None).unwrap();
        assert!(refusal(&file).contains(&format!("uid {STRANGER}")));
        chown(&file, Some(0), None).unwrap();
        for mode in [0o755, 0o1755] {
            set_mode(directory, mode);
            chown(directory, Some(STRANGER), None).unwrap();
            assert!(refusal(&file).contains(&format!("chown 0 '{}'", directory.display())));
        }
    }

    #[test]
    fn what_is_missing_is_missing_whoever_owns_the_directories() {
        let (_home, file) = home();
        set_mode(file.parent().unwrap(), 0o777);
        let error = open_trusted(&file.with_file_name("nothing"), OFlags::empty()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_open_file_is_read_whatever_it_is() {
        let (_home, file) = home();
        set_mode(&file, 0o666);
        let open = File::open(&file).unwrap();
        let path = PathBuf::from(format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open)));
        open_trusted(&path, OFlags::empty()).unwrap().read_to_string(&mut String::new()).unwrap();
        for path in ["/dev/fd/../fd/0", "/dev/fd", "/dev/fd/x", "/dev/shm/0", "/proc/self/fd/0/x"] {
            assert!(!is_open_file(Path::new(path)), "{path}");
        }
    }
}
