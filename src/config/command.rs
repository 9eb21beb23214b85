//! Running a shell command for the secret that it prints.

use std::{io, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
};
use zeroize::Zeroizing;

use crate::secret::MAX_LENGTH;

/// A command may ask a network vault, but start and reload wait for it.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// Why a command gave no secret.
#[derive(Debug)]
pub(super) enum CommandError {
    /// The shell cannot be started, or its output not be read.
    Io(io::Error),
    /// It took longer than [`COMMAND_LIMIT`].
    TimedOut,
    /// It said that it failed.
    Failed,
}

/// Reads one byte more than a secret with its line end may have, so that a longer one is refused and not cut.
pub(super) async fn read_limited(source: impl AsyncRead + Unpin) -> io::Result<Zeroizing<Vec<u8>>> {
    let limit = MAX_LENGTH + 3;
    let mut bytes = Zeroizing::new(Vec::with_capacity(limit));
    source.take(limit as u64).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// What `command` prints. Its standard error is thrown away: tools quote there what they were given.
pub(super) async fn output(command: &str) -> Result<Zeroizing<Vec<u8>>, CommandError> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // Its own group, so that what the shell started ends with it.
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
    match tokio::time::timeout(COMMAND_LIMIT, run).await {
        Ok(Ok((printed, status))) if status.success() => Ok(printed),
        Ok(Ok(_)) => Err(CommandError::Failed),
        Ok(Err(error)) => Err(CommandError::Io(error)),
        Err(_) => {
            if let Some(group) = group {
                // An error means that it has just ended.
                rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
            }
            Err(CommandError::TimedOut)
        }
    }
}
