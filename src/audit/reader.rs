//! Reads the log from the oldest line that is kept, and follows it across rotations.
//!
//! A file is identified by device and inode, since rotation changes its name.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
    mem,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::file::rotated_path;

/// How often the files are listed until two lists agree. Each rotation meanwhile costs one try.
const MAX_LIST_ATTEMPTS: usize = 100;

/// Reads lines one by one.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    at: Option<OpenLog>,
    skipped: bool,
}

/// The file that is read, and the position in it.
#[derive(Debug)]
struct OpenLog {
    identity: Identity,
    file: BufReader<File>,
    /// The beginning of a line that is not complete yet.
    part: Vec<u8>,
}

type Identity = (u64, u64);

impl Reader {
    /// Reads the log at this path.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path, at: None, skipped: false }
    }

    /// The next complete line without its newline; `None` when there is none yet.
    pub fn next_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let Some(at) = &mut self.at else {
                match self.files()?.first().cloned() {
                    Some((path, identity)) => self.open(&path, identity)?,
                    None => return Ok(None),
                }
                continue;
            };
            if at.read()? {
                return Ok(Some(mem::take(&mut at.part)));
            }
            let Some((path, identity)) = self.next_file()? else { return Ok(None) };
            // Nothing more is written to this file, but something may have been after its end was reached.
            if let Some(at) = &mut self.at
                && at.read()?
            {
                return Ok(Some(mem::take(&mut at.part)));
            }
            self.open(&path, identity)?;
        }
    }

    /// Whether files were removed before they were read, since the last call.
    pub fn skipped(&mut self) -> bool {
        mem::take(&mut self.skipped)
    }

    /// Opens a file unless its name now belongs to another one: the next listing finds it under its new name.
    fn open(&mut self, path: &Path, identity: Identity) -> io::Result<()> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let found = file.metadata()?;
        if (found.dev(), found.ino()) == identity {
            self.at = Some(OpenLog { identity, file: BufReader::new(file), part: Vec::new() });
        }
        Ok(())
    }

    /// The file after the one that is read.
    fn next_file(&mut self) -> io::Result<Option<(PathBuf, Identity)>> {
        let Some(OpenLog { identity, .. }) = &self.at else { return Ok(None) };
        if identity_of(&self.path)?.is_none_or(|current| current == *identity) {
            return Ok(None);
        }
        let files = self.files()?;
        let own = files.iter().rposition(|(_, of)| of == identity);
        // The file was removed, and perhaps others that were not read.
        self.skipped |= own.is_none();
        Ok(files.get(own.map_or(0, |own| own + 1)).cloned())
    }

    /// All files of the log, from the oldest to the current one.
    fn files(&self) -> io::Result<Vec<(PathBuf, Identity)>> {
        let mut before = self.list()?;
        for _ in 0..MAX_LIST_ATTEMPTS {
            let now = self.list()?;
            if now == before {
                return Ok(now);
            }
            before = now;
        }
        Err(io::Error::other("the files change too fast to be listed"))
    }

    fn list(&self) -> io::Result<Vec<(PathBuf, Identity)>> {
        let (Some(directory), Some(name)) = (self.path.parent(), self.path.file_name()) else { return Ok(Vec::new()) };
        let mut numbers = Vec::new();
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?.file_name();
            let number = entry.to_str().zip(name.to_str()).and_then(|(entry, name)| entry.strip_prefix(name));
            numbers.extend(number.and_then(|number| number.strip_prefix('.')?.parse::<u32>().ok()));
        }
        numbers.sort_unstable_by(|one, other| other.cmp(one));
        let paths = numbers.into_iter().map(|number| rotated_path(&self.path, number)).chain([self.path.clone()]);
        let mut found = Vec::new();
        for path in paths {
            found.extend(identity_of(&path)?.map(|identity| (path, identity)));
        }
        Ok(found)
    }
}

impl OpenLog {
    /// Reads on. Returns whether `part` is a complete line.
    fn read(&mut self) -> io::Result<bool> {
        self.file.read_until(b'\n', &mut self.part)?;
        let whole = self.part.last() == Some(&b'\n');
        if whole {
            self.part.pop();
        }
        Ok(whole)
    }
}

fn identity_of(path: &Path) -> io::Result<Option<Identity>> {
    match fs::symlink_metadata(path) {
        Ok(found) => Ok(Some((found.dev(), found.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
