//! Owners of leases: their identity, and whether they are alive.
//!
//! Owns: the owner files, `owners/<id>` beside the database.
//!
//! Invariants:
//! 1. An owner is alive as long as it holds the operating system's lock on the file named by its id. The lock ends with
//!    the process, for whatever reason, and is kept by one that is stopped or slow.
//! 2. A lock counts only on the file that the path names now: a lock on a file that was removed meanwhile is worthless.
//!    So the file is compared with its path after every locking, on both sides.
//! 3. An id is random and never reused.
//!
//! The locks are `flock` locks: they belong to the open file, so two owners in one process are distinct.
//!
//! Must not know: SQL.

use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rustix::io::Errno;

use crate::{
    private::{self, FileError},
    store::{StoreError, unfit},
};

/// This store's owner.
#[derive(Debug)]
pub(super) struct Owner {
    id: String,
    directory: PathBuf,
    /// Locked; `None` once given up.
    file: Mutex<Option<File>>,
}

#[derive(Debug, thiserror::Error)]
enum OwnerError {
    #[error("the store is closed")]
    GivenUp,
    #[error("another process is using the owner file {}", .0.display())]
    Taken(PathBuf),
}

/// 128 bits, in hexadecimal digits.
const ID_DIGITS: usize = 32;

impl Owner {
    /// A new live owner in the directory `directory`, which is created.
    pub(super) fn new(directory: &Path) -> Result<Self, StoreError> {
        let mut bytes = [0; ID_DIGITS / 2];
        getrandom::fill(&mut bytes).map_err(StoreError::unavailable)?;
        let id = bytes.iter().fold(String::with_capacity(ID_DIGITS), |mut id, byte| {
            // Writing to a string cannot fail.
            write!(id, "{byte:02x}").unwrap_or_default();
            id
        });
        let file = lock_file(&directory.join(&id))?;
        Ok(Self { id, directory: directory.to_owned(), file: Mutex::new(Some(file)) })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Ensures that others see this owner alive. A file that was removed or replaced is created and locked again:
    /// leases that nobody took in between are safe from then on. Fails if that is impossible, or if the owner was given
    /// up: then no lease may be taken.
    pub(super) fn ensure_alive(&self) -> Result<(), StoreError> {
        let mut held = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(file) = &*held else { return Err(StoreError::unavailable(OwnerError::GivenUp)) };
        let path = self.directory.join(&self.id);
        if !is_at(file, &path).map_err(FileError::at("look at the owner file", &path))? {
            *held = Some(lock_file(&path)?);
        }
        Ok(())
    }

    /// Gives up all leases at once by releasing the lock. The file stays, as after a crash.
    pub(super) fn give_up(&self) -> Option<File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Gives up all leases and removes the file.
    pub(super) fn retire(&self) {
        let path = self.directory.join(&self.id);
        // Locked until the file is removed.
        if let Some(file) = self.give_up()
            && is_at(&file, &path).unwrap_or(false)
        {
            remove(&path);
        }
    }
}

/// A leftover file means nothing without its lock, and the next start removes it.
fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::debug!(%error, "could not remove an owner file");
    }
}

/// Whether the owner `id` is alive. A dead owner's file is removed. Text that is not an id is damage, and belongs to no
/// live owner.
pub(super) fn is_alive(directory: &Path, id: &str) -> Result<bool, StoreError> {
    if id.len() != ID_DIGITS || !id.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Ok(false);
    }
    let path = directory.join(id);
    probe(&path).map_err(|error| lock_error("look at the owner file", &path, error))
}

/// Whether any owner is alive: a process has the store open.
pub(super) fn any_alive(directory: &Path) -> Result<bool, StoreError> {
    for entry in fs::read_dir(directory).map_err(FileError::at("look into", directory))? {
        let entry = entry.map_err(FileError::at("look into", directory))?;
        if let Some(id) = entry.file_name().to_str()
            && is_alive(directory, id)?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes the files of dead owners. One that cannot be removed does no harm.
pub(super) fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if let Some(Err(error)) = entry.file_name().to_str().map(|id| is_alive(directory, id)) {
            tracing::debug!(%error, "could not examine an owner file");
        }
    }
}

fn probe(path: &Path) -> io::Result<bool> {
    let file = match OpenOptions::new().read(true).custom_flags(private::no_follow_flags()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    probe_opened(&file, path)
}

/// `file` was opened at `path`, which may name another file by now.
fn probe_opened(file: &File, path: &Path) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) if is_at(file, path)? => {
            remove(path);
            Ok(false)
        }
        // The path was replaced at this very moment: the next check will tell.
        Ok(()) | Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Creates the file if necessary, and locks it.
fn lock_file(path: &Path) -> Result<File, StoreError> {
    if let Some(directory) = path.parent() {
        private::private_directory(directory)?;
    }
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(private::no_follow_flags())
        .open(path)
        .map_err(FileError::at("make the owner file", path))?;
    lock_opened(file, path)
}

/// `file` was opened at `path`, which may name another file by now, or none.
fn lock_opened(file: File, path: &Path) -> Result<File, StoreError> {
    match file.try_lock() {
        Ok(()) if is_at(&file, path).map_err(FileError::at("look at the owner file", path))? => Ok(file),
        Ok(()) | Err(TryLockError::WouldBlock) => Err(StoreError::unavailable(OwnerError::Taken(path.to_owned()))),
        Err(TryLockError::Error(error)) => Err(lock_error("lock the owner file", path, error)),
    }
}

/// The error for a lock that the system refuses for another reason than that it is held. Network file systems turn a
/// `flock` into one that needs a file open for writing (flock(2), NOTES), or do not support it.
pub(super) fn lock_error(action: &'static str, path: &Path, error: io::Error) -> StoreError {
    match Errno::from_io_error(&error) {
        Some(Errno::BADF | Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
            unfit(path, format!("the file system lacks what the store needs (locks: {error}); choose a local one"))
        }
        Some(_) | None => FileError::at(action, path)(error).into(),
    }
}

fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((held.dev(), held.ino()) == (found.dev(), found.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners() -> (tempfile::TempDir, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("owners");
        (home, directory)
    }

    #[test]
    fn an_owner_lives_until_it_gives_up() {
        let (_home, directory) = owners();
        let owner = Owner::new(&directory).unwrap();
        assert!(is_alive(&directory, owner.id()).unwrap());
        drop(owner.give_up());
        assert!(directory.join(owner.id()).exists(), "as a killed process leaves it");
        assert!(!is_alive(&directory, owner.id()).unwrap());
        assert!(!directory.join(owner.id()).exists(), "who finds it dead buries it");
        assert!(owner.ensure_alive().is_err(), "and it does not come back");
    }

    #[test]
    fn a_retired_owner_leaves_nothing() {
        let (_home, directory) = owners();
        let owner = Owner::new(&directory).unwrap();
        owner.retire();
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        assert!(!is_alive(&directory, owner.id()).unwrap());
    }

    #[test]
    fn a_sweep_takes_the_dead_only() {
        let (_home, directory) = owners();
        let living = Owner::new(&directory).unwrap();
        let dead = Owner::new(&directory).unwrap();
        drop(dead.give_up());
        assert!(any_alive(&directory).unwrap());
        sweep(&directory);
        let left: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [living.id()]);
        living.retire();
        assert!(!any_alive(&directory).unwrap());
    }

    #[test]
    fn an_owner_whose_file_was_removed_or_replaced_comes_back_to_life() {
        let (_home, directory) = owners();
        let owner = Owner::new(&directory).unwrap();
        let path = directory.join(owner.id());

        fs::remove_dir_all(&directory).unwrap();
        assert!(!is_alive(&directory, owner.id()).unwrap());
        owner.ensure_alive().unwrap();
        assert!(is_alive(&directory, owner.id()).unwrap());

        let other = directory.join("other");
        drop(private::create_private_file(&other).unwrap());
        fs::rename(&other, &path).unwrap();
        owner.ensure_alive().unwrap();
        assert!(is_alive(&directory, owner.id()).unwrap());
    }

    #[test]
    fn an_owner_whose_file_another_holds_takes_no_leases() {
        let (_home, directory) = owners();
        let owner = Owner::new(&directory).unwrap();
        let path = directory.join(owner.id());
        fs::remove_file(&path).unwrap();
        let usurper = lock_file(&path).unwrap();
        assert!(matches!(owner.ensure_alive(), Err(StoreError::Unavailable(_))));
        drop(usurper);
        owner.ensure_alive().unwrap();
    }

    /// Opened, and not locked yet.
    fn opened(path: &Path) -> File {
        OpenOptions::new().read(true).append(true).create(true).open(path).unwrap()
    }

    #[test]
    fn a_file_that_is_replaced_before_it_is_locked_says_nothing_about_the_owner() {
        let (_home, directory) = owners();
        let owner = Owner::new(&directory).unwrap();
        let path = directory.join(owner.id());
        drop(owner.give_up());
        let before = opened(&path);
        fs::remove_file(&path).unwrap();
        let living = lock_file(&path).unwrap();
        assert!(probe_opened(&before, &path).unwrap(), "its lock is free, and it is not the owner's");
        assert!(is_at(&living, &path).unwrap(), "the file of a living owner is removed");
    }

    #[test]
    fn a_file_that_is_removed_or_replaced_before_it_is_locked_makes_no_owner() {
        let (_home, directory) = owners();
        private::private_directory(&directory).unwrap();
        let path = directory.join("0".repeat(ID_DIGITS));
        let removed = opened(&path);
        fs::remove_file(&path).unwrap();
        assert!(matches!(lock_opened(removed, &path), Err(StoreError::Unavailable(_))));
        let replaced = opened(&path);
        fs::remove_file(&path).unwrap();
        drop(opened(&path));
        assert!(matches!(lock_opened(replaced, &path), Err(StoreError::Unavailable(_))));
        lock_opened(opened(&path), &path).unwrap();
    }

    #[test]
    fn a_retired_owner_leaves_the_file_that_replaced_its_own() {
        let (_home, directory) = owners();
        let owner = Owner::new(&directory).unwrap();
        let path = directory.join(owner.id());
        fs::remove_file(&path).unwrap();
        let living = lock_file(&path).unwrap();
        owner.retire();
        assert!(is_at(&living, &path).unwrap());
    }

    #[test]
    fn damaged_ids_are_nobody_and_no_paths() {
        let (home, directory) = owners();
        private::private_directory(&directory).unwrap();
        let outside = home.path().join("outside");
        drop(private::create_private_file(&outside).unwrap());
        for id in ["", "../outside", "/etc/passwd", &"g".repeat(ID_DIGITS), &"0".repeat(ID_DIGITS + 1)] {
            assert!(!is_alive(&directory, id).unwrap(), "{id}");
        }
        assert!(outside.exists());
    }
}
