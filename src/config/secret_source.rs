//! Where a client's secret or key is read from.

use std::{fmt, io, path::PathBuf};

use zeroize::Zeroizing;

use super::{
    Environment,
    command::{COMMAND_TIMEOUT, CommandError, open_secret, read_limited},
};
use crate::secret::{ClientKey, ClientSecret, SecretError};

/// Where a secret or key is kept. The configuration itself never holds one.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// An environment variable.
    Env(String),
    /// A file.
    File(PathBuf),
    /// The output of a shell command.
    Command(String),
}

/// Shows the kind only: a secret written in the wrong place must not be printed.
impl fmt::Debug for SecretSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Env(_) => "Env(..)",
            Self::File(_) => "File(..)",
            Self::Command(_) => "Command(..)",
        })
    }
}

/// Why a client's secret or key cannot be read. Names the key of the configuration and the kind of source, but not its
/// value, except for the path of an existing file.
#[derive(Debug, thiserror::Error)]
pub enum SecretSourceError {
    /// The variable is unset or empty.
    #[error("the environment variable named by {0}.env is not set")]
    NotSet(&'static str),
    /// The file cannot be read, or others could have written it.
    #[error("the file named by {0}.file cannot be read")]
    File(&'static str, #[source] io::Error),
    /// The shell cannot be started, or its output cannot be read.
    #[error("the command of {0}.command cannot be run")]
    Command(&'static str, #[source] io::Error),
    /// The command took longer than [`COMMAND_TIMEOUT`].
    #[error("the command of {0}.command did not end within {limit} s", limit = COMMAND_TIMEOUT.as_secs())]
    TimedOut(&'static str),
    /// The command exited with an error.
    #[error("the command of {0}.command failed")]
    Failed(&'static str),
    /// What was read is not text.
    #[error("what was read for {0} is not UTF-8 text")]
    NotText(&'static str),
    /// What was read is not a valid secret.
    #[error("what was read for {0}")]
    Unfit(&'static str, #[source] SecretError),
}

impl SecretSource {
    /// Reads a client's secret.
    pub async fn client_secret(&self, env: &Environment) -> Result<ClientSecret, SecretSourceError> {
        let key = "client_secret";
        ClientSecret::new(self.read(env, key).await?).map_err(|source| SecretSourceError::Unfit(key, source))
    }

    /// Reads a client's private key.
    pub async fn client_key(&self, env: &Environment) -> Result<ClientKey, SecretSourceError> {
        let key = "client_key";
        ClientKey::new(self.read(env, key).await?).map_err(|source| SecretSourceError::Unfit(key, source))
    }

    /// Reads the text for a key of the configuration, without the last newline of a file or of a command's output.
    async fn read(&self, env: &Environment, key: &'static str) -> Result<String, SecretSourceError> {
        let bytes = match self {
            Self::Env(name) => {
                let text = env.lookup(name).ok_or(SecretSourceError::NotSet(key))?;
                return text.into_string().map_err(|_| SecretSourceError::NotText(key));
            }
            Self::File(path) => {
                let file = open_secret(path).await.map_err(|error| SecretSourceError::File(key, error))?;
                read_limited(file).await.map_err(|error| SecretSourceError::File(key, error))?
            }
            Self::Command(command) => env.output(command).await.map_err(|error| match error {
                CommandError::Io(cause) => SecretSourceError::Command(key, cause),
                CommandError::TimedOut => SecretSourceError::TimedOut(key),
                CommandError::Failed => SecretSourceError::Failed(key),
            })?,
        };
        text(bytes).ok_or(SecretSourceError::NotText(key))
    }
}

fn text(mut bytes: Zeroizing<Vec<u8>>) -> Option<String> {
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    str::from_utf8(&bytes).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use secrecy::ExposeSecret as _;

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "the test made the secret up")]
    async fn read(source: SecretSource) -> Result<String, String> {
        let env = Environment::of([("SECRET", "from-env"), ("EMPTY", "")]);
        let secret = source.client_secret(&env).await.map_err(|error| error.to_string())?;
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
