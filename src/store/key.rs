//! The store key: 256 bits, written as 64 hexadecimal digits, from one of several sources.
//!
//! Owns: the key's text form; the key in a file, created at the first start; staging a change of it there. Its children
//! own the keyring and the passphrase.
//!
//! Invariants:
//! 1. The file is complete and on the disk before it gets its name; two daemons that start at once agree on one key.
//! 2. A key is created only if there is no store yet: a new key beside an old store would hide the loss of the old one.
//! 3. A key that others could read is refused, not repaired.
//! 4. A new key is durable beside the old one (*staged*) before anything is sealed with it, and replaces the old one
//!    only once the store opens with it. Whichever of the two opens the store is the key.
//!
//! Must not know: what the key seals.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use secrecy::ExposeSecret as _;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::{
    private::{self, FileError},
    secret::StoreKey,
    store::{StoreError, unfit},
};

pub mod keyring;
pub mod passphrase;

use passphrase::Derivation;

const KEY: usize = 32;
const DIGITS: usize = 2 * KEY;

/// The error for a source whose content is not a key.
const NO_KEY: &str = "is not a key: that is one line of 64 hexadecimal digits";

/// A store key, and how it was derived if that is recorded in the store.
#[derive(Debug)]
pub struct KeyMaterial {
    /// The key.
    pub secret: StoreKey,
    /// For a key derived from a passphrase: the parameters to derive it again.
    pub derivation: Option<Derivation>,
}

impl From<StoreKey> for KeyMaterial {
    fn from(secret: StoreKey) -> Self {
        Self { secret, derivation: None }
    }
}

/// A key that another program keeps and passed to us. `place` names its source in errors.
pub fn from_text(text: &[u8], place: &str) -> Result<StoreKey, StoreError> {
    parse(line(text)).ok_or_else(|| StoreError::Unfit { place: place.to_owned(), reason: NO_KEY.to_owned() })
}

/// Reads the key in the file at `path`; creates it, and its directory, if there is neither a key nor a store.
///
/// `store_exists`: whether there is a store that was sealed with this key.
pub fn from_file(path: &Path, store_exists: bool) -> Result<StoreKey, StoreError> {
    // A bare file name has no directory to create or sync.
    let path = &std::path::absolute(path).map_err(FileError::at("find", path))?;
    if let Some(key) = read(path)? {
        return Ok(key);
    }
    if store_exists {
        return Err(unfit(
            path,
            "the key is missing, but the store sealed with it exists; put the key back, or move the store away to \
             begin a new one",
        ));
    }
    make(path)?;
    read(path)?.ok_or_else(|| unfit(path, VANISHED))
}

/// The staged key of a key change in the file at `path`.
pub fn staged(path: &Path) -> Result<Option<StoreKey>, StoreError> {
    read(&stage_of(path)?)
}

/// Stages a random key beside `path`, replacing an earlier staged key that was never used. The caller has exclusive
/// access to the store.
pub fn stage(path: &Path) -> Result<StoreKey, StoreError> {
    let stage = stage_of(path)?;
    for left in leftovers(&stage) {
        match fs::remove_file(&left) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::at("remove", &left)(error).into());
            }
            Ok(()) | Err(_) => {}
        }
    }
    make(&stage)?;
    read(&stage)?.ok_or_else(|| unfit(&stage, VANISHED))
}

/// An earlier staged key, and drafts of such keys left by killed processes.
fn leftovers(stage: &Path) -> Vec<PathBuf> {
    let directory = stage.parent().unwrap_or(Path::new("/"));
    let drafts = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_draft = |path: &PathBuf| path.file_stem() == stage.file_name() && path.extension().is_some();
    drafts.filter(is_draft).chain([stage.to_owned()]).collect()
}

/// Replaces the old key with the staged one, `key`. Does nothing if another process has done it.
pub fn switch(path: &Path, key: &StoreKey) -> Result<(), StoreError> {
    let stage = stage_of(path)?;
    if read(&stage)?.is_some_and(|staged| same(&staged, key)) {
        match fs::rename(&stage, path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(FileError::at("put the new key in the place of", path)(error).into());
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(private::sync_directory(stage.parent().unwrap_or(Path::new("/")))?)
}

fn stage_of(path: &Path) -> Result<PathBuf, StoreError> {
    Ok(std::path::absolute(path).map_err(FileError::at("find", path))?.with_added_extension("next"))
}

/// Whether two keys are the same, in constant time.
#[expect(clippy::disallowed_methods, reason = "compares two secrets; neither leaves")]
fn same(left: &StoreKey, right: &StoreKey) -> bool {
    left.expose_secret().ct_eq(right.expose_secret()).into()
}

const VANISHED: &str = "the key vanished as soon as it was made; look for what removes it";

fn read(path: &Path) -> Result<Option<StoreKey>, StoreError> {
    let file = match OpenOptions::new().read(true).custom_flags(private::no_follow_flags()).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        // The error for a link that is not followed differs between systems, so the file is examined.
        Err(error) => {
            let found = fs::symlink_metadata(path).map_err(FileError::at("look at", path))?;
            private::check_private_file(path, &found)?;
            return Err(FileError::at("open", path)(error).into());
        }
    };
    private::check_private_file(path, &file.metadata().map_err(FileError::at("look at", path))?)?;
    // One byte more than the longest valid form, so that a longer file is noticed.
    let mut text = Zeroizing::new(Vec::with_capacity(DIGITS + 2));
    file.take(DIGITS as u64 + 2).read_to_end(&mut text).map_err(FileError::at("read", path))?;
    match parse(line(&text)) {
        Some(key) => Ok(Some(key)),
        None => {
            Err(unfit(path, format!("{NO_KEY}; put the key back, or move the file and the store away to begin anew")))
        }
    }
}

fn line(text: &[u8]) -> &[u8] {
    text.strip_suffix(b"\n").unwrap_or(text)
}

fn parse(digits: &[u8]) -> Option<StoreKey> {
    let mut key = Zeroizing::new([0; KEY]);
    if digits.len() != DIGITS {
        return None;
    }
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair.iter().try_fold(0, |value, digit| Some(value << 4 | value_of(*digit)?))?;
    }
    Some(StoreKey::new(*key))
}

fn value_of(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| value.try_into().ok())
}

/// Writes a random key beside `path` and links it there (invariant 1). A link, unlike a rename, never replaces a file:
/// the first process to link has created the key.
fn make(path: &Path) -> Result<(), StoreError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    private::private_directory(directory)?;
    let key = random()?;
    let draft = path.with_added_extension(format!("{:08x}", getrandom::u32().map_err(StoreError::unavailable)?));
    let linked = write(&draft, &key).and_then(|()| match fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    let removed = fs::remove_file(&draft);
    linked.and(removed).map_err(FileError::at("make the key", path))?;
    Ok(private::sync_directory(directory)?)
}

fn random() -> Result<Zeroizing<[u8; KEY]>, StoreError> {
    let mut key = Zeroizing::new([0; KEY]);
    getrandom::fill(&mut *key).map_err(StoreError::unavailable)?;
    Ok(key)
}

fn digits(key: &[u8; KEY]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(DIGITS + 1));
    for digit in key.iter().flat_map(|byte| [byte >> 4, byte & 15]) {
        text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
    }
    text
}

fn write(draft: &Path, key: &[u8; KEY]) -> io::Result<()> {
    let mut line = digits(key);
    line.push('\n');
    let mut file = private::create_private_file(draft)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::Permissions,
        os::unix::fs::{PermissionsExt as _, symlink},
        sync::Barrier,
        thread,
    };

    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("deep/store.key");
        (home, path)
    }

    fn written(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let (home, path) = place();
        private::private_directory(path.parent().unwrap()).unwrap();
        private::create_private_file(&path).unwrap().write_all(content).unwrap();
        (home, path)
    }

    fn reason(result: Result<StoreKey, StoreError>) -> String {
        match result {
            Err(StoreError::Unfit { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_key_made_first_is_read_later() {
        let (_home, path) = place();
        let made = from_file(&path, false).unwrap();
        assert!(same(&made, &from_file(&path, false).unwrap()));
        assert!(same(&made, &from_file(&path, true).unwrap()));
        let found = fs::metadata(&path).unwrap();
        assert_eq!((found.permissions().mode() & 0o777, found.len()), (0o600, 65));
        let names: Vec<_> = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(names, [path], "nothing is left of the making");
    }

    #[test]
    fn daemons_that_start_at_once_agree_on_one_key() {
        let (_home, path) = place();
        let start = Barrier::new(8);
        let keys: Vec<StoreKey> = thread::scope(|scope| {
            let begin = || {
                start.wait();
                from_file(&path, false).unwrap()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(begin)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| same(key, &keys[0])));
    }

    #[test]
    fn no_new_key_is_made_beside_an_old_store() {
        let (_home, path) = place();
        assert!(reason(from_file(&path, true)).contains("put the key back"));
        assert!(!path.exists());
    }

    #[test]
    fn a_key_that_others_can_open_is_refused() {
        let (_home, path) = place();
        from_file(&path, false).unwrap();
        for bad in [0o640, 0o620, 0o604, 0o602, 0o610] {
            fs::set_permissions(&path, Permissions::from_mode(bad)).unwrap();
            assert!(reason(from_file(&path, false)).contains("chmod 600"), "{bad:o}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_and_kept() {
        let good = [b'5'; 64];
        for bad in [&b""[..], b"\n", &good[1..], &[b'g'; 64], &[b'5'; 65], &[&good[..], b"\n\n"].concat(), &[0xff; 64]]
        {
            let (_home, path) = written(bad);
            assert!(reason(from_file(&path, false)).contains("not a key"), "{bad:?}");
            assert_eq!(fs::read(&path).unwrap(), bad);
        }
        let (_home, path) = written(&good);
        assert!(same(&from_file(&path, true).unwrap(), &StoreKey::new([0x55; 32])), "the line's end may be missing");
    }

    #[test]
    fn a_staged_key_takes_the_old_ones_place_and_a_forgotten_one_is_replaced() {
        let (_home, path) = place();
        let old = from_file(&path, false).unwrap();
        assert!(staged(&path).unwrap().is_none());
        let forgotten = stage(&path).unwrap();
        let next = stage(&path).unwrap();
        assert!(!same(&forgotten, &next) && !same(&old, &next));
        assert!(same(&from_file(&path, true).unwrap(), &old), "what is staged changes nothing yet");
        switch(&path, &forgotten).unwrap();
        assert!(same(&from_file(&path, true).unwrap(), &old), "another key than the one staged is not put in place");
        switch(&path, &next).unwrap();
        assert!(same(&from_file(&path, true).unwrap(), &next));
        assert!(staged(&path).unwrap().is_none());
        switch(&path, &next).unwrap();
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_in_text_may_end_in_a_newline_and_is_never_quoted() {
        for good in [&[b'5'; 64][..], &[&[b'5'; 64][..], b"\n"].concat()] {
            assert!(same(&from_text(good, "there").unwrap(), &StoreKey::new([0x55; 32])));
        }
        let error = from_text(b"canary", "there").unwrap_err().to_string();
        assert_eq!(error, "there: is not a key: that is one line of 64 hexadecimal digits");
    }

    #[test]
    fn a_link_or_a_directory_or_a_pipe_is_no_key() {
        let (_home, path) = written(&[b'5'; 64]);
        let link = path.with_file_name("link");
        symlink(&path, &link).unwrap();
        let directory = path.with_file_name("directory");
        private::private_directory(&directory).unwrap();
        let pipe = path.with_file_name("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for bad in [link, directory, pipe] {
            assert!(reason(from_file(&bad, false)).contains("not a regular file"), "{}", bad.display());
        }
    }
}
