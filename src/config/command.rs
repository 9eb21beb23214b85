//! Reads a secret from a file, or from the output of a shell command.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
};
use zeroize::Zeroizing;

use crate::{
    private::{check_trusted, open_trusted},
    secret::MAX_LENGTH,
};

/// How long a command may take. It may ask a network vault, but the daemon's start waits for it.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a command returned no secret.
#[derive(Debug)]
pub(super) enum CommandError {
    /// The shell cannot be started, or its output cannot be read.
    Io(io::Error),
    /// It took longer than [`COMMAND_TIMEOUT`].
    TimedOut,
    /// It exited with an error.
    Failed,
}

/// Opens a file that holds a secret and that others could not have written. It may be a pipe.
pub(super) async fn open_secret(path: &Path) -> io::Result<tokio::fs::File> {
    let path = path.to_owned();
    let opened = tokio::task::spawn_blocking(move || open_trusted(&path, rustix::fs::OFlags::empty()));
    Ok(tokio::fs::File::from_std(opened.await.map_err(io::Error::other)??))
}

/// Reads one byte more than the longest secret with its line ending, so that a longer one is refused instead of
/// truncated.
pub(super) async fn read_limited(source: impl AsyncRead + Unpin) -> io::Result<Zeroizing<Vec<u8>>> {
    let limit = MAX_LENGTH + 3;
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit));
    source.take(limit as u64).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// Runs `command` and returns its output. Its standard error is discarded: tools quote their input there.
pub(super) async fn output(command: &str) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    check_program(command).map_err(CommandError::Io)?;
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // A process group of its own, so that everything the shell started ends with it.
        .process_group(0)
        .spawn()
        .map_err(CommandError::Io)?;
    let group = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
    let stdout = child.stdout.take();
    let run = async {
        let printed = match stdout {
            Some(stdout) => read_limited(stdout).await?,
            None => Zeroizing::default(),
        };
        Ok((printed, child.wait().await?))
    };
    match tokio::time::timeout(COMMAND_TIMEOUT, run).await {
        Ok(Ok((printed, status))) if status.success() => Ok(printed),
        Ok(Ok(_)) => Err(CommandError::Failed),
        Ok(Err(error)) => Err(CommandError::Io(error)),
        Err(_) => {
            if let Some(group) = group {
                // An error means that the group has just ended.
                rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
            }
            Err(CommandError::TimedOut)
        }
    }
}

/// Refuses a command whose program is named by an absolute path and could have been written by others. A program that
/// the shell finds in `PATH` is not checked; a missing one is reported by the shell.
fn check_program(command: &str) -> io::Result<()> {
    let Some(program) = absolute_program(command) else { return Ok(()) };
    match check_trusted(&program) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The first word of the command, if it is an absolute path without shell syntax.
fn absolute_program(command: &str) -> Option<PathBuf> {
    let word = command.split_whitespace().next()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+@:,%".contains(&byte);
    (word.starts_with('/') && word.bytes().all(plain)).then(|| word.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_program_of_a_command_is_its_first_word_if_that_is_an_absolute_path() {
        for (command, program) in [
            ("/usr/bin/pass show corp", Some("/usr/bin/pass")),
            ("  /bin/cat\n/etc/x", Some("/bin/cat")),
            ("pass show /corp", None),
            ("A=b /bin/x", None),
            ("/bin/$X", None),
            ("'/bin/x y'", None),
            ("", None),
        ] {
            assert_eq!(absolute_program(command).as_deref(), program.map(Path::new), "{command:?}");
        }
    }

    #[tokio::test]
    async fn a_program_that_others_may_write_is_not_run() {
        let home = tempfile::tempdir().unwrap();
        let program = home.path().join("secret");
        std::fs::copy("/bin/echo", &program).unwrap();
        let command = format!("{} printed", program.display());
        for (mode, runs) in [(0o755, true), (0o775, false), (0o757, false)] {
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode)).unwrap();
            match output(&command).await {
                Ok(printed) => assert!(runs && *printed == b"printed\n", "{mode:o}"),
                Err(CommandError::Io(error)) => assert!(!runs && error.to_string().contains("chmod go-w"), "{error}"),
                Err(error) => panic!("{error:?}"),
            }
        }
    }
}
