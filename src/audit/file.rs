//! The destinations of lines: a rotated file, and standard output.
//!
//! Several daemons may write to one file. Each holds the file's lock during a write or a rotation, and first checks
//! that its open file is still the one at the path; so a file that another program moves away is noticed, too. Every
//! wait has a limit: a lock that another process holds, or a pipe that nobody reads, is an error after
//! [`SINK_TIMEOUT`].

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{AppendResult, Rotation, SINK_TIMEOUT, Sink};
use crate::private::{FileError, PrivateError, check_private_file, no_follow_flags, private_directory};

/// Disk space that is reserved, in bytes: enough for the lines of a thousand requests under way.
const RESERVED_BYTES: u64 = 256 * 1024;

/// The pause between two tries for the lock. A writer holds it for less.
const LOCK_RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// Standard output.
pub(super) struct Stdout(File);

/// `PIPE_BUF`: this much is written to a pipe in one piece, and without blocking if there is room at all (POSIX,
/// `write`).
const ATOMIC_WRITE_BYTES: usize = if cfg!(target_os = "linux") { 4096 } else { 512 };

impl Stdout {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }

    #[cfg(test)]
    fn of(file: File) -> Self {
        Self(file)
    }

    /// Waits until the output is writable, for at most `timeout`.
    fn wait_writable(&self, timeout: Duration) -> io::Result<()> {
        let limit = Timespec::try_from(timeout).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], Some(&limit)) {
            Ok(0) => Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "nobody reads the standard output: its pipe is full; end what holds it, or log to a file",
            )),
            // An error of the reader shows in the write.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Sink for Stdout {
    fn append(&mut self, lines: &[u8]) -> AppendResult {
        let mut appended = AppendResult::default();
        while appended.error.is_none() && appended.bytes < lines.len() {
            let rest = &lines[appended.bytes..];
            let piece = &rest[..rest.len().min(ATOMIC_WRITE_BYTES)];
            let piece = if complete_length(piece) > 0 { &piece[..complete_length(piece)] } else { piece };
            let (bytes, error) = match self.wait_writable(SINK_TIMEOUT) {
                Ok(()) => write(&mut self.0, piece),
                Err(error) => (0, Some(error)),
            };
            appended.bytes += bytes;
            appended.error = error;
        }
        appended
    }

    fn check(&mut self) -> io::Result<()> {
        self.wait_writable(SINK_TIMEOUT)
    }

    fn reserve(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes as much as possible.
fn write(file: &mut File, bytes: &[u8]) -> (usize, Option<io::Error>) {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return (written, Some(io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

/// A file that is rotated when it is full.
pub(super) struct RotatingFile {
    rotation: Rotation,
    file: File,
    /// Space up to this offset is reserved for this file.
    reserved: u64,
    /// A line that a crash may have left unfinished was completed.
    line_end_checked: bool,
}

impl RotatingFile {
    /// Opens or creates the file. It is an error if the file or its directory is not private.
    pub(super) fn open(rotation: &Rotation) -> Result<Self, PrivateError> {
        if let Some(directory) = rotation.path.parent() {
            private_directory(directory)?;
        }
        let file = open(&rotation.path)?;
        Ok(Self { rotation: rotation.clone(), file, reserved: 0, line_end_checked: false })
    }

    /// Locks the file at the path. The first time, it completes a line that a crash left unfinished, so that the next
    /// line is not lost with it.
    fn lock_current(&mut self) -> io::Result<()> {
        self.lock()?;
        let ready = self.prepare();
        if ready.is_err() {
            self.file.unlock().ok();
        }
        ready
    }

    /// Makes sure that the locked file is the one at the path, and that it ends with a newline.
    fn prepare(&mut self) -> io::Result<()> {
        while !is_at(&self.file, &self.rotation.path)? {
            self.file = open(&self.rotation.path).map_err(io::Error::other)?;
            self.reserved = 0;
            self.lock()?;
        }
        if self.line_end_checked {
            return Ok(());
        }
        let size = self.file.metadata()?.len();
        let mut last = [b'\n'];
        if size > 0 {
            File::open(&self.rotation.path)?.read_exact_at(&mut last, size - 1)?;
        }
        if last != *b"\n" {
            self.file.write_all(b"\n")?;
        }
        self.line_end_checked = true;
        Ok(())
    }

    fn lock(&self) -> io::Result<()> {
        let mut waited = Duration::ZERO;
        loop {
            match self.file.try_lock() {
                Ok(()) => return Ok(()),
                Err(TryLockError::WouldBlock) if waited < SINK_TIMEOUT => {
                    thread::sleep(LOCK_RETRY_INTERVAL);
                    waited += LOCK_RETRY_INTERVAL;
                }
                Err(TryLockError::WouldBlock) => {
                    let path = self.rotation.path.display();
                    let told = format!("another process holds the lock on {path}: `fuser` or `lslocks` tells which");
                    return Err(io::Error::new(io::ErrorKind::WouldBlock, told));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Appends as many whole lines as the file has room for. The caller holds the lock.
    fn append_fitting(&mut self, lines: &[u8], appended: &mut AppendResult) -> io::Result<()> {
        let size = self.file.metadata()?.len();
        let room = usize::try_from(self.rotation.max_size.saturating_sub(size)).unwrap_or(usize::MAX);
        let mut fitting = complete_length(&lines[..room.min(lines.len())]);
        if fitting == 0 {
            if size > 0 {
                match self.rotate() {
                    Ok(()) => return Ok(()),
                    // A file that is too large is better than lines that are lost.
                    Err(error) => appended.unrotated = Some(error),
                }
            }
            fitting = lines.len();
        }
        let (written, error) = write(&mut self.file, &lines[..fitting]);
        let Some(error) = error else {
            appended.bytes += written;
            return Ok(());
        };
        // Remove the unfinished line.
        let kept = complete_length(&lines[..written]);
        if kept < written {
            self.file.set_len(size + kept as u64)?;
        }
        appended.bytes += kept;
        Err(error)
    }

    /// Rotates: renames the file and starts a new one. A file of this name exists at every moment, so another daemon
    /// that starts meanwhile cannot create its own. The caller holds the lock, of the new file as well afterwards.
    fn rotate(&mut self) -> io::Result<()> {
        let path = &self.rotation.path;
        let draft = path.with_added_extension("new");
        let first = rotated_path(path, 1);
        // Left behind by a daemon that was killed during a rotation.
        for left in [Some(&draft), is_at(&self.file, &first).unwrap_or(false).then_some(&first)].into_iter().flatten() {
            remove_if_there(left)?;
        }
        let new = options().create_new(true).open(&draft)?;
        // Nobody has it open yet.
        new.try_lock()?;
        let moved = self.shift().and_then(|()| fs::hard_link(path, &first)).and_then(|()| fs::rename(&draft, path));
        if let Err(error) = moved {
            remove_if_there(&draft)?;
            return Err(error);
        }
        if self.reserved > 0 {
            // Release the reserved space beyond the end. It does no harm if this fails.
            self.file.metadata().and_then(|found| self.file.set_len(found.len())).ok();
        }
        self.file = new;
        self.reserved = 0;
        Ok(())
    }

    /// Gives every rotated file the next number, up to the first free one; otherwise the oldest is removed.
    fn shift(&self) -> io::Result<()> {
        let of = |number| rotated_path(&self.rotation.path, number);
        let free = (1..self.rotation.keep).find(|number| fs::symlink_metadata(of(*number)).is_err());
        let last = free.unwrap_or(self.rotation.keep);
        (1..last).rev().try_for_each(|number| fs::rename(of(number), of(number + 1)))?;
        remove_if_there(&of(1))
    }
}

impl Sink for RotatingFile {
    fn append(&mut self, lines: &[u8]) -> AppendResult {
        let mut appended = AppendResult::default();
        let mut done = Ok(());
        while done.is_ok() && appended.bytes < lines.len() {
            done = self.lock_current();
            if done.is_ok() {
                let rest = &lines[appended.bytes..];
                done = self.append_fitting(rest, &mut appended);
                done = done.and(self.file.unlock());
            }
        }
        appended.error = done.err();
        appended
    }

    fn check(&mut self) -> io::Result<()> {
        self.lock_current()?;
        self.file.unlock()
    }

    /// On Linux, where the file system can do so.
    #[cfg(target_os = "linux")]
    fn reserve(&mut self) -> io::Result<()> {
        use rustix::fs::FallocateFlags;
        let size = self.file.metadata()?.len();
        if size + RESERVED_BYTES / 2 <= self.reserved {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, size, RESERVED_BYTES) {
            Ok(()) => self.reserved = size + RESERVED_BYTES,
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    fn reserve(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The path of the rotated file `number`; 1 is the newest.
pub(super) fn rotated_path(path: &Path, number: u32) -> PathBuf {
    path.with_added_extension(number.to_string())
}

/// The length of the complete lines in `lines`.
fn complete_length(lines: &[u8]) -> usize {
    lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1)
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o600).custom_flags(no_follow_flags());
    options
}

fn open(path: &Path) -> Result<File, PrivateError> {
    let opened = options().create(true).open(path);
    let file = opened.or_else(|error| {
        // A file that is not ours is better described by its properties than by the error of opening it.
        if let Ok(found) = fs::symlink_metadata(path) {
            check_private_file(path, &found)?;
        }
        Err(PrivateError::from(FileError::at("open", path)(error)))
    })?;
    check_private_file(path, &file.metadata().map_err(FileError::at("examine", path))?)?;
    Ok(file)
}

/// The size of the file, or the error that [`RotatingFile::open`] would return. Changes nothing.
pub(super) fn inspect(path: &Path) -> Result<Option<u64>, PrivateError> {
    if let Some(directory) = path.parent().filter(|directory| directory.exists()) {
        private_directory(directory)?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) => check_private_file(path, &found).map(|()| Some(found.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::at("examine", path)(error).into()),
    }
}

/// Whether the file is the one at the path.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, thread};

    use proptest::prelude::*;

    use super::*;
    use crate::audit::reader::Reader;

    fn rotation(directory: &Path, max_size: u64, keep: u32) -> Rotation {
        Rotation { path: directory.join("log/audit.log"), max_size, keep }
    }

    fn append(sink: &mut RotatingFile, lines: &str) {
        let appended = sink.append(lines.as_bytes());
        assert!(appended.error.is_none() && appended.bytes == lines.len(), "{appended:?}");
    }

    fn read(path: &Path) -> Vec<String> {
        let mut reader = Reader::new(path.to_owned());
        let lines = std::iter::from_fn(|| reader.next_line().unwrap());
        lines.map(|line| String::from_utf8(line).unwrap()).collect()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_full_file_gets_a_number_and_the_last_one_goes() {
        let home = tempfile::tempdir().unwrap();
        let rotation = rotation(home.path(), 10, 2);
        let mut sink = RotatingFile::open(&rotation).unwrap();
        for line in ["one\n", "two\n", "three\n", "four\nfive\nsix\n", "more than ten bytes\n"] {
            append(&mut sink, line);
        }
        let kept = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(kept(&rotation.path), "more than ten bytes\n");
        assert_eq!(kept(&rotated_path(&rotation.path, 1)), "six\n");
        assert_eq!(kept(&rotated_path(&rotation.path, 2)), "four\nfive\n");
        assert!(!rotated_path(&rotation.path, 3).exists() && !rotation.path.with_added_extension("new").exists());
        assert_eq!((mode(&rotation.path), mode(rotation.path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(mode(&rotated_path(&rotation.path, 1)), 0o600);
    }

    #[test]
    fn what_is_open_to_others_or_no_file_is_refused_and_left_as_it_is() {
        let home = tempfile::tempdir().unwrap();
        let rotation = rotation(home.path(), 1000, 2);
        drop(RotatingFile::open(&rotation).unwrap());
        let refused = |what: &str| {
            let error = RotatingFile::open(&rotation).err().unwrap_or_else(|| panic!("{what}")).to_string();
            assert!(error.starts_with(rotation.path.to_str().unwrap()), "{what}: {error}");
            assert!(inspect(&rotation.path).is_err(), "{what}");
        };
        fs::set_permissions(&rotation.path, Permissions::from_mode(0o640)).unwrap();
        refused("group-readable");
        assert_eq!(mode(&rotation.path), 0o640);
        let other = home.path().join("other");
        fs::rename(&rotation.path, &other).unwrap();
        fs::set_permissions(&other, Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&other, &rotation.path).unwrap();
        refused("a link");
        fs::remove_file(&rotation.path).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &rotation.path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        refused("a pipe");
        fs::remove_file(&rotation.path).unwrap();
        fs::set_permissions(rotation.path.parent().unwrap(), Permissions::from_mode(0o777)).unwrap();
        assert!(RotatingFile::open(&rotation).is_err(), "a directory that others can write to");
    }

    #[test]
    fn half_a_line_of_a_crash_takes_no_other_with_it() {
        let home = tempfile::tempdir().unwrap();
        let rotation = rotation(home.path(), 1000, 2);
        append(&mut RotatingFile::open(&rotation).unwrap(), "whole\n");
        File::options().append(true).open(&rotation.path).unwrap().write_all(b"hal").unwrap();
        append(&mut RotatingFile::open(&rotation).unwrap(), "next\n");
        assert_eq!(read(&rotation.path), ["whole", "hal", "next"]);
    }

    #[test]
    fn a_file_that_is_moved_away_or_replaced_is_begun_anew() {
        let home = tempfile::tempdir().unwrap();
        let rotation = rotation(home.path(), 1000, 2);
        let mut sink = RotatingFile::open(&rotation).unwrap();
        append(&mut sink, "one\n");
        fs::rename(&rotation.path, home.path().join("kept")).unwrap();
        append(&mut sink, "two\n");
        assert_eq!(fs::read_to_string(&rotation.path).unwrap(), "two\n");
        assert_eq!(fs::read_to_string(home.path().join("kept")).unwrap(), "one\n");
        fs::remove_file(&rotation.path).unwrap();
        std::os::unix::fs::symlink(home.path().join("kept"), &rotation.path).unwrap();
        let appended = sink.append(b"three\n");
        assert!(appended.error.is_some() && appended.bytes == 0);
        assert_eq!(fs::read_to_string(home.path().join("kept")).unwrap(), "one\n");
    }

    #[test]
    fn lines_go_on_in_a_file_that_cannot_be_begun_anew() {
        let home = tempfile::tempdir().unwrap();
        let rotation = rotation(home.path(), 10, 1);
        let mut sink = RotatingFile::open(&rotation).unwrap();
        let obstacle = rotated_path(&rotation.path, 1);
        fs::create_dir(&obstacle).unwrap();
        for _ in 0..3 {
            append(&mut sink, "12345678\n");
        }
        assert!(sink.append(b"last\n").unrotated.is_some());
        fs::remove_dir(&obstacle).unwrap();
        append(&mut sink, "again\n");
        assert_eq!(read(&rotation.path), ["12345678", "12345678", "12345678", "last", "again"]);
        assert_eq!(fs::read_to_string(&rotation.path).unwrap(), "again\n");
    }

    #[test]
    fn a_rotation_that_was_killed_is_made_up_for() {
        let home = tempfile::tempdir().unwrap();
        let rotation = rotation(home.path(), 10, 3);
        let mut sink = RotatingFile::open(&rotation).unwrap();
        append(&mut sink, "one\n");
        // Up to the last step but one.
        drop(File::create(rotation.path.with_added_extension("new")).unwrap());
        fs::hard_link(&rotation.path, rotated_path(&rotation.path, 1)).unwrap();
        assert_eq!(read(&rotation.path), ["one"]);
        append(&mut sink, "two\n");
        append(&mut sink, "three\n");
        append(&mut sink, "four\n");
        assert_eq!(read(&rotation.path), ["one", "two", "three", "four"]);
    }

    #[test]
    fn several_daemons_write_to_one_file_and_lose_nothing() {
        const DAEMONS: usize = 4;
        const LINES: usize = 500;
        let home = tempfile::tempdir().unwrap();
        let rotation = rotation(home.path(), 1000, 1000);
        let writers: Vec<_> = (0..DAEMONS)
            .map(|daemon| {
                let mut sink = RotatingFile::open(&rotation).unwrap();
                thread::spawn(move || {
                    for line in 0..LINES {
                        append(&mut sink, &format!("{daemon} {line}\n{daemon} {line}b\n"));
                    }
                })
            })
            .collect();
        let mut reader = Reader::new(rotation.path.clone());
        let mut seen = vec![Vec::new(); DAEMONS];
        let mut count = 0;
        while count < DAEMONS * LINES * 2 {
            let Some(line) = reader.next_line().unwrap() else {
                thread::yield_now();
                continue;
            };
            let line = String::from_utf8(line).unwrap();
            let (daemon, rest) = line.split_once(' ').unwrap();
            seen[daemon.parse::<usize>().unwrap()].push(rest.to_owned());
            count += 1;
        }
        for writer in writers {
            writer.join().unwrap();
        }
        let expected: Vec<_> = (0..LINES).flat_map(|line| [format!("{line}"), format!("{line}b")]).collect();
        assert!(seen.iter().all(|lines| *lines == expected));
        assert!(!reader.skipped() && reader.next_line().unwrap().is_none());
        assert_eq!(read(&rotation.path).len(), DAEMONS * LINES * 2);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_reserved_shows_in_no_size_and_is_given_back() {
        let home = tempfile::tempdir().unwrap();
        let rotation = rotation(home.path(), 100, 2);
        let mut sink = RotatingFile::open(&rotation).unwrap();
        sink.reserve().unwrap();
        append(&mut sink, "one\n");
        let found = fs::metadata(&rotation.path).unwrap();
        assert!(found.len() == 4 && found.blocks() * 512 >= RESERVED_BYTES, "{found:?}");
        append(&mut sink, &format!("{}\n", "x".repeat(98)));
        let full = fs::metadata(rotated_path(&rotation.path, 1)).unwrap();
        assert!(full.blocks() * 512 < RESERVED_BYTES, "{full:?}");
    }

    /// However lines come, they are in the files, in their order, and no file is larger than it may be.
    fn assert_nothing_is_lost_or_split(batches: &[Vec<String>], max_size: u64) {
        let home = tempfile::tempdir().unwrap();
        let rotation = rotation(home.path(), max_size, 1000);
        let mut sink = RotatingFile::open(&rotation).unwrap();
        for batch in batches {
            append(&mut sink, &batch.iter().fold(String::new(), |text, line| text + line + "\n"));
        }
        assert_eq!(read(&rotation.path), batches.concat());
        for entry in fs::read_dir(rotation.path.parent().unwrap()).unwrap() {
            assert!(entry.unwrap().metadata().unwrap().len() <= max_size);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

        #[test]
        fn rotation_loses_no_line_and_splits_none(
            batches in proptest::collection::vec(proptest::collection::vec("[a-z]{0,30}", 0..12), 1..12),
            max_size in 32..200_u64,
        ) {
            assert_nothing_is_lost_or_split(&batches, max_size);
        }
    }

    #[test]
    fn rotation_bears_a_batch_of_no_lines() {
        assert_nothing_is_lost_or_split(&[Vec::new()], 32);
    }

    #[test]
    fn a_lock_that_another_process_holds_is_an_error_in_time_and_no_longer_than_it_is_held() {
        let directory = tempfile::tempdir().unwrap();
        let rotation = rotation(directory.path(), 10_000, 1);
        let mut sink = RotatingFile::open(&rotation).unwrap();
        append(&mut sink, "one\n");
        let other = File::open(&rotation.path).unwrap();
        other.lock().unwrap();
        for error in [sink.check().unwrap_err(), sink.append(b"two\n").error.unwrap()] {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert!(error.to_string().contains(rotation.path.to_str().unwrap()), "{error}");
        }
        // Nor does a start wait.
        let mut starting = RotatingFile::open(&rotation).unwrap();
        assert_eq!(starting.check().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(other);
        append(&mut sink, "two\n");
        append(&mut starting, "three\n");
        assert_eq!(read(&rotation.path), ["one", "two", "three"]);
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_an_error_and_nothing_of_a_line_is_lost() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut sink = Stdout::of(File::from(std::os::fd::OwnedFd::from(writer)));
        assert!(sink.check().is_ok());
        let lines = "a line\n".repeat(100_000);
        let stuck = sink.append(lines.as_bytes());
        assert_eq!(stuck.error.map(|error| error.kind()), Some(io::ErrorKind::WouldBlock));
        assert!(stuck.bytes > 0 && stuck.bytes < lines.len(), "{}", stuck.bytes);
        assert_eq!(sink.check().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let reading = thread::spawn(move || {
            let mut text = String::new();
            io::Read::read_to_string(&mut reader, &mut text).map(|_| text)
        });
        let rest = sink.append(&lines.as_bytes()[stuck.bytes..]);
        assert!(rest.error.is_none(), "{rest:?}");
        drop(sink);
        assert!(reading.join().unwrap().unwrap() == lines);
    }

    #[test]
    fn one_file_with_two_names_is_read_once() {
        let directory = tempfile::tempdir().unwrap();
        let rotation = rotation(directory.path(), 10, 2);
        let mut sink = RotatingFile::open(&rotation).unwrap();
        append(&mut sink, "one\ntwo\nthree\n");
        // Killed between the two steps of a rotation.
        sink.shift().unwrap();
        fs::hard_link(&rotation.path, rotated_path(&rotation.path, 1)).unwrap();
        assert_eq!(read(&rotation.path), ["one", "two", "three"]);
        let mut reader = Reader::new(rotation.path.clone());
        assert_eq!(reader.next_line().unwrap().unwrap(), b"one");
        let mut sink = RotatingFile::open(&rotation).unwrap();
        append(&mut sink, "four\nfive\n");
        let lines: Vec<_> = std::iter::from_fn(|| reader.next_line().unwrap()).collect();
        assert_eq!(lines, [&b"two"[..], b"three", b"four", b"five"]);
        assert!(!reader.skipped());
    }
}
