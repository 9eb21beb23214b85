//! Where a client secret is read from.

use std::{fmt, io, path::PathBuf};

use zeroize::Zeroizing;

use super::{
    Environment,
    command::{COMMAND_LIMIT, CommandError, read_limited},
};
use crate::secret::{ClientSecret, SecretError};

/// Where a client secret is kept; the configuration itself never holds one.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// An environment variable.
    Env(String),
    /// A file.
    File(PathBuf),
    /// What a shell command prints.
    Command(String),
}

/// The kind alone: a secret written in the wrong place must not be printed either.
impl fmt::Debug for SecretSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Env(_) => "Env(..)",
            Self::File(_) => "File(..)",
            Self::Command(_) => "Command(..)",
        })
    }
}

/// Why a client secret cannot be had. Names the kind of source, not what the configuration says of it.
#[derive(Debug, thiserror::Error)]
pub enum SecretSourceError {
    /// The variable is unset or empty.
    #[error("the environment variable named by client_secret.env is not set")]
    NotSet,
    /// The file cannot be read.
    #[error("the file named by client_secret.file cannot be read")]
    File(#[source] io::Error),
    /// The shell cannot be started, or its output not be read.
    #[error("the command of client_secret.command cannot be run")]
    Command(#[source] io::Error),
    /// The command took longer than [`COMMAND_LIMIT`].
    #[error("the command of client_secret.command did not end within {} s", COMMAND_LIMIT.as_secs())]
    TimedOut,
    /// The command said that it failed.
    #[error("the command of client_secret.command failed")]
    Failed,
    /// What was read is not text.
    #[error("the client secret is not UTF-8 text")]
    NotText,
    /// What was read is no secret.
    #[error("the client secret")]
    Unfit(#[source] SecretError),
}

impl From<CommandError> for SecretSourceError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Io(cause) => Self::Command(cause),
            CommandError::TimedOut => Self::TimedOut,
            CommandError::Failed => Self::Failed,
        }
    }
}

impl SecretSource {
    /// Reads the secret. One newline at the end of a file or of a command's output does not count.
    pub async fn read(&self, env: &Environment) -> Result<ClientSecret, SecretSourceError> {
        let text = match self {
            Self::Env(name) => {
                env.lookup(name).ok_or(SecretSourceError::NotSet)?.into_string().map_err(|_| SecretSourceError::NotText)
            }
            Self::File(path) => {
                let file = tokio::fs::File::open(path).await.map_err(SecretSourceError::File)?;
                text(read_limited(file).await.map_err(SecretSourceError::File)?)
            }
            Self::Command(command) => text(env.output(command).await?),
        };
        ClientSecret::new(text?).map_err(SecretSourceError::Unfit)
    }
}

fn text(mut bytes: Zeroizing<Vec<u8>>) -> Result<String, SecretSourceError> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    Ok(str::from_utf8(&bytes).map_err(|_| SecretSourceError::NotText)?.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use secrecy::ExposeSecret as _;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "the test made the secret up")]
    async fn read(source: SecretSource) -> Result<String, String> {
        let env = Environment::of([("SECRET", "from-env"), ("EMPTY", "")]);
        let secret = source.read(&env).await.map_err(|error| error.to_string())?;
        Ok(secret.expose_secret().to_owned())
    }

    #[tokio::test]
    async fn a_secret_is_read_from_each_source() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"from file\n\n").unwrap();
        assert_eq!(read(SecretSource::Env("SECRET".into())).await.unwrap(), "from-env");
        assert_eq!(read(SecretSource::File(file.path().into())).await.unwrap(), "from file\n");
        assert_eq!(read(SecretSource::Command("printf 'from %s\\r\\n' command".into())).await.unwrap(), "from command");
    }

    #[tokio::test]
    async fn an_error_says_nothing_of_the_source_but_its_kind() {
        for source in [
            SecretSource::Env("canary".into()),
            SecretSource::Env("EMPTY".into()),
            SecretSource::File("/nowhere/canary".into()),
            SecretSource::Command("echo canary; echo canary >&2; exit 3".into()),
            SecretSource::Command("true # canary".into()),
            SecretSource::Command("printf 'canary\\377'".into()),
            SecretSource::Command("head -c 70000 /dev/zero | tr '\\0' c # canary".into()),
        ] {
            let shown = format!("{source:?}");
            let error = read(source).await.unwrap_err();
            assert!(error.contains("client") && !error.contains("canary") && !shown.contains("canary"), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_hangs_is_ended() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        let command = format!("mkfifo '{0}' && cat '{0}'; true", fifo.display());
        assert!(read(SecretSource::Command(command)).await.unwrap_err().contains("within 10 s"));
    }
}
