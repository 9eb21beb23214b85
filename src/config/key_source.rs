//! Where the store key is kept.

use std::{
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{
    Environment,
    command::{COMMAND_TIMEOUT, CommandError, open_secret, read_limited},
};

/// Where the store key is kept. The configuration itself never holds one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file that the daemon creates.
    File(PathBuf),
    /// The platform's keyring.
    Keyring,
    /// A passphrase that a person types in.
    Passphrase,
    /// An external source that hands the key to the daemon.
    Given(GivenKey),
}

/// A key from an external source.
#[derive(Clone, PartialEq, Eq)]
pub enum GivenKey {
    /// An environment variable.
    Env(String),
    /// The output of a shell command.
    Command(String),
    /// A file of that name in `$CREDENTIALS_DIRECTORY`: one of systemd's credentials
    /// (<https://systemd.io/CREDENTIALS>).
    Credential(String),
}

/// Shows the kind only: a key written in the wrong place must not be printed.
impl fmt::Debug for GivenKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Env(_) => "Env(..)",
            Self::Command(_) => "Command(..)",
            Self::Credential(_) => "Credential(..)",
        })
    }
}

/// Why a key cannot be read. Names the kind of source, not its value in the configuration.
#[derive(Debug, thiserror::Error)]
pub enum GivenKeyError {
    /// The variable is unset or empty.
    #[error("the environment variable is not set")]
    NotSet,
    /// The shell cannot be started, or its output cannot be read.
    #[error("the command cannot be run")]
    Command(#[source] io::Error),
    /// The command took longer than [`COMMAND_TIMEOUT`].
    #[error("the command did not end within {} s", COMMAND_TIMEOUT.as_secs())]
    TimedOut,
    /// The command exited with an error.
    #[error("the command failed; run it by hand to see why")]
    Failed,
    /// `$CREDENTIALS_DIRECTORY` is not set.
    #[error(
        "CREDENTIALS_DIRECTORY is not set; systemd sets it for a service with LoadCredential= or \
         LoadCredentialEncrypted="
    )]
    NoDirectory,
    /// The credential cannot be read.
    #[error("the credential cannot be read; is it in the service's LoadCredential=?")]
    Credential(#[source] io::Error),
}

impl From<CommandError> for GivenKeyError {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Io(cause) => Self::Command(cause),
            CommandError::TimedOut => Self::TimedOut,
            CommandError::Failed => Self::Failed,
        }
    }
}

impl KeySource {
    /// The values that [`KeySource::parse`] accepts, as an error text.
    pub const FORM: &str =
        "must be \"file\", \"keyring\", \"passphrase\", \"env:NAME\", \"command:CMD\" or \"credential:NAME\"";

    /// Parses the value of `[store] key`, for the store in the file `store`; `None` if it is invalid.
    #[must_use]
    pub fn parse(text: &str, store: &Path) -> Option<Self> {
        Some(match (text, text.split_once(':')) {
            ("file", _) => Self::file(store),
            ("keyring", _) => Self::Keyring,
            ("passphrase", _) => Self::Passphrase,
            (_, Some(("env", name))) if is_variable(name) => Self::Given(GivenKey::Env(name.to_owned())),
            (_, Some(("command", command))) if !command.trim().is_empty() && !command.contains('\0') => {
                Self::Given(GivenKey::Command(command.to_owned()))
            }
            (_, Some(("credential", name))) if is_file_name(name) => Self::Given(GivenKey::Credential(name.to_owned())),
            _ => return None,
        })
    }

    /// `store.key` beside the store in the file `store`.
    pub(super) fn file(store: &Path) -> Self {
        Self::File(store.with_file_name("store.key"))
    }

    /// Its name in errors.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Keyring => "the keyring".to_owned(),
            Self::Passphrase => "the passphrase".to_owned(),
            Self::Given(GivenKey::Env(_)) => "[store] key = \"env:…\"".to_owned(),
            Self::Given(GivenKey::Command(_)) => "[store] key = \"command:…\"".to_owned(),
            Self::Given(GivenKey::Credential(_)) => "[store] key = \"credential:…\"".to_owned(),
        }
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

impl GivenKey {
    /// Reads the key, with its line ending.
    pub async fn read(&self, env: &Environment) -> Result<Zeroizing<Vec<u8>>, GivenKeyError> {
        match self {
            Self::Env(name) => {
                let value = env.lookup(name).ok_or(GivenKeyError::NotSet)?;
                Ok(Zeroizing::new(OsString::into_encoded_bytes(value)))
            }
            Self::Command(command) => Ok(env.output(command).await?),
            Self::Credential(name) => {
                let directory = env.credentials().ok_or(GivenKeyError::NoDirectory)?;
                let file = open_secret(&directory.join(name)).await.map_err(GivenKeyError::Credential)?;
                read_limited(file).await.map_err(GivenKeyError::Credential)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn parse(text: &str) -> Option<KeySource> {
        KeySource::parse(text, Path::new("/d/credproxy.db"))
    }

    #[test]
    fn every_source_is_read() {
        assert_eq!(parse("file"), Some(KeySource::File("/d/store.key".into())));
        assert_eq!(parse("keyring"), Some(KeySource::Keyring));
        assert_eq!(parse("passphrase"), Some(KeySource::Passphrase));
        let given = |given| Some(KeySource::Given(given));
        assert_eq!(parse("env:STORE_KEY"), given(GivenKey::Env("STORE_KEY".into())));
        assert_eq!(parse("command:pass a:b"), given(GivenKey::Command("pass a:b".into())));
        assert_eq!(parse("credential:store.key"), given(GivenKey::Credential("store.key".into())));
        for bad in [
            "",
            "File",
            "file:",
            "file:/x",
            "keyring:x",
            "env",
            "env:",
            "env:A=B",
            "env:A B",
            "command:",
            "command: ",
            "credential:",
            "credential:..",
            "credential:a/b",
            "passphrase:canary",
            "vault:x",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_source_shows_its_kind_alone() {
        for text in ["env:canary", "command:echo canary", "credential:canary"] {
            let source = parse(text).unwrap();
            assert!(!format!("{source:?} {}", source.place()).contains("canary"), "{source:?}");
        }
    }

    #[tokio::test]
    async fn a_given_key_is_read_and_an_error_does_not_say_from_where() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::File::create(directory.path().join("key")).unwrap().write_all(b"55\n").unwrap();
        let env =
            Environment::of([("KEY", "55".into()), ("CREDENTIALS_DIRECTORY", directory.path().as_os_str().to_owned())]);
        let read = async |given: GivenKey| given.read(&env).await.map_err(|error| error.to_string());
        assert_eq!(*read(GivenKey::Env("KEY".into())).await.unwrap(), b"55");
        assert_eq!(*read(GivenKey::Command("echo 55".into())).await.unwrap(), b"55\n");
        assert_eq!(*read(GivenKey::Credential("key".into())).await.unwrap(), b"55\n");
        for given in [
            GivenKey::Env("canary".into()),
            GivenKey::Command("echo canary; echo canary >&2; exit 3".into()),
            GivenKey::Credential("canary".into()),
        ] {
            let error = read(given).await.unwrap_err();
            assert!(!error.contains("canary"), "{error}");
        }
        let nothing = Environment::of::<&str, &str>([]);
        let error = GivenKey::Credential("key".into()).read(&nothing).await.unwrap_err().to_string();
        assert!(error.contains("LoadCredential="), "{error}");
    }
}
