//! The configuration file and the environment.
//!
//! Owns: the file's syntax and every check that needs only the file; the defaults, the presets included; all access to
//! environment variables.
//!
//! Invariants:
//! 1. A [`Config`] holds no invalid value, so that no user of one need check again.
//! 2. An error names file, line and key, and never repeats a value: it may be a secret in the wrong place.
//! 3. The configuration holds no secret, only where to read one ([`SecretSource`], [`KeySource`]).
//!
//! Must not know: what the values are used for.

use std::{
    borrow::Cow,
    io::{self, Read as _},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

mod audit;
mod command;
mod document;
mod environment;
mod key_source;
mod limits;
mod preset;
mod provider;
mod secret_source;
mod socket;

pub use command::COMMAND_TIMEOUT;
pub use environment::{CAPABILITY_FD, Environment, SOCKET};
pub use key_source::{GivenKey, GivenKeyError, KeySource};
pub use limits::LimitsConfig;
pub use preset::{Preset, Variable, presets};
pub use provider::{AuthenticationConfig, ClientKeyConfig, ProviderConfig};
pub use secret_source::{SecretSource, SecretSourceError};
pub use socket::SocketConfig;

use crate::{
    audit::AuditSettings, policy::Role, private::open_trusted, secret::Capability, timeouts::PROVIDER_CALL_TIMEOUT,
};
use document::{Document, Section};

/// The whole configuration with the defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `confine`.
    pub confine: Confinement,
    /// `[store]`.
    pub store: StoreConfig,
    /// `[refresh]`.
    pub refresh: RefreshConfig,
    /// `[logins]`.
    pub logins: LoginsConfig,
    /// `[limits]`.
    pub limits: LimitsConfig,
    /// `[audit]`.
    pub audit: AuditSettings,
    /// `[sockets.NAME]`, in the order of their names; at least one has the role `host`.
    pub sockets: Vec<SocketConfig>,
    /// `[providers.NAME]`, in the order of their names.
    pub providers: Vec<ProviderConfig>,
}

/// Whether the kernel must confine the daemon (Landlock).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Confinement {
    /// As far as the kernel can.
    #[default]
    Try,
    /// Completely, or the daemon does not start.
    Require,
    /// Not at all.
    Off,
}

/// Where the grants are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreConfig {
    /// The SQLite database.
    pub path: PathBuf,
    /// The source of the key that seals it.
    pub key: KeySource,
}

/// How often and for how long providers are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefreshConfig {
    /// The pause between two attempts on the same account.
    pub cooldown: Duration,
    /// The time limit of one request to a provider.
    pub request_timeout: Duration,
}

/// How people log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginsConfig {
    /// How long a login waits for the person.
    pub lifetime: Duration,
}

/// Authorization servers give their own pages and codes some ten minutes.
const DEFAULT_LOGIN_LIFETIME: Duration = Duration::from_mins(10);

/// The longest `logins.lifetime`: a longer one would only keep listeners open, since no provider's code lives that
/// long.
const MAX_LOGIN_LIFETIME: Duration = Duration::from_hours(1);

/// Long enough that a looping program does not trouble a provider, short enough for a person to wait.
const DEFAULT_COOLDOWN: Duration = Duration::from_secs(30);

/// The longest cooldown: a longer one would keep accounts without a token for the whole life of a usual token.
const MAX_COOLDOWN: Duration = Duration::from_hours(1);

/// The shortest request timeout: below it, a slow network would make outcomes unknown for no reason.
const MIN_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file exists, or was named, and cannot be read.
    #[error("the configuration {} cannot be read", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{}:{line}: not valid TOML: {problem}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The parser's message, which quotes no value.
        problem: String,
    },
    /// A key or its value is not accepted.
    #[error("{}:{line}: {key}: {problem}", file.display())]
    Refused {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key with the tables around it, joined by dots.
        key: String,
        /// What is wrong. Never holds the value.
        problem: Cow<'static, str>,
    },
    /// A default path is below the home directory, and HOME is not set.
    #[error("no default path for {what}: HOME is not set to an absolute path, and {key} is not given")]
    NoDefaultPath {
        /// What the path is for.
        what: &'static str,
        /// The key to set instead.
        key: &'static str,
    },
    /// An environment variable must be an absolute path and is not.
    #[error("the environment variable {name} is not an absolute path")]
    RelativeVariable {
        /// The variable.
        name: &'static str,
    },
    /// Others could have written what an environment variable names.
    #[error("the path in the environment variable {name} is not safe")]
    UntrustedVariable {
        /// The variable.
        name: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The environment names an open file for the capability, and it cannot be read.
    #[error("the capability cannot be read from the open file that {CAPABILITY_FD} names")]
    NoCapability(#[source] io::Error),
}

impl Config {
    /// Reads the file `explicit`, or else the one in its default place, which may be missing.
    pub fn load(explicit: Option<&Path>, env: &Environment) -> Result<Self, ConfigError> {
        let usual = env.config_file();
        let Some(file) = explicit.or(usual.as_deref()) else { return Self::parse(Path::new(""), "", env) };
        match read(file) {
            Ok(text) => Self::parse(file, &text, env),
            Err(error) if error.kind() == io::ErrorKind::NotFound && explicit.is_none() => Self::parse(file, "", env),
            Err(source) => Err(ConfigError::Unreadable { file: file.to_owned(), source }),
        }
    }

    pub(crate) fn parse(file: &Path, text: &str, env: &Environment) -> Result<Self, ConfigError> {
        let mut root = Document::parse(file, text)?;
        let config = Self {
            confine: root.take("confine").map_or(Ok(Confinement::default()), |entry| {
                entry.parsed(confinement, "must be \"try\", \"require\" or \"off\"")
            })?,
            store: store(root.section("store")?, env)?,
            refresh: refresh(root.section("refresh")?)?,
            logins: logins(root.section("logins")?)?,
            limits: limits::read(root.section("limits")?)?,
            audit: audit::read(root.section("audit")?, env)?,
            sockets: sockets(root.sections("sockets")?, env)?,
            providers: {
                let sections = root.sections("providers")?.into_iter();
                sections.map(|(name, section)| provider::read(&name, section)).collect::<Result<_, _>>()?
            },
        };
        root.finish()?;
        Ok(config)
    }

    /// The socket that the user's own clients use.
    #[must_use]
    pub fn host_socket(&self) -> Option<&SocketConfig> {
        SocketConfig::host(&self.sockets)
    }

    /// Whether the daemon runs commands when it starts.
    #[must_use]
    pub fn runs_commands(&self) -> bool {
        let mut secrets = self.providers.iter().filter_map(|provider| provider.authentication.source());
        matches!(self.store.key, KeySource::Given(GivenKey::Command(_)))
            || secrets.any(|source| matches!(source, SecretSource::Command(_)))
    }

    /// The files that the daemon reads at the start, besides the store and its key.
    #[must_use]
    pub fn files_read(&self) -> Vec<PathBuf> {
        let files = self.providers.iter().flat_map(|provider| {
            let secret = match provider.authentication.source() {
                Some(SecretSource::File(path)) => Some(path.clone()),
                Some(SecretSource::Env(_) | SecretSource::Command(_)) | None => None,
            };
            [provider.ca_file.clone(), secret]
        });
        files.flatten().collect()
    }

    /// Moves [`Config::host_socket`] to `path`, made absolute here.
    pub fn move_host_socket(&mut self, path: &Path) -> io::Result<()> {
        let path = std::path::absolute(path)?;
        let name = self.host_socket().map(|socket| socket.name.clone());
        if let Some(socket) = self.sockets.iter_mut().find(|socket| Some(&socket.name) == name.as_ref()) {
            socket.path = path;
        }
        Ok(())
    }
}

/// The socket that a client connects to: the one named on the command line, `$CREDPROXY_SOCKET`, or the configured or
/// default host's socket. The configuration is read only for the last one, since a sandbox has none. An inherited
/// capability belongs to the socket of the environment, and is shown to no other.
pub fn client_socket(
    explicit: Option<&Path>,
    config_file: Option<&Path>,
    env: &Environment,
) -> Result<(PathBuf, Option<Capability>), ConfigError> {
    if let Some(path) = explicit {
        return Ok((path.to_owned(), None));
    }
    if let Some(path) = env.client_socket()? {
        return Ok((path, env.capability()?));
    }
    let config = Config::load(config_file, env)?;
    let path = config.host_socket().map_or_else(|| env.host_socket(), |socket| Ok(socket.path.clone()))?;
    Ok((path, None))
}

/// The socket of `serve --dev`: the one named on the command line, or one beside the host's.
pub fn dev_socket(explicit: Option<&Path>, env: &Environment) -> Result<SocketConfig, ConfigError> {
    let path = match explicit {
        Some(path) => {
            std::path::absolute(path).map_err(|source| ConfigError::Unreadable { file: path.to_owned(), source })?
        }
        None => env.dev_socket()?,
    };
    Ok(SocketConfig::host_at("dev", path))
}

/// A thousand providers need some 200 KiB; a longer file is not a configuration.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Reads the file without blocking, up to the size limit. It names commands, and endpoints for refresh tokens, so
/// others must not be able to write it.
fn read(file: &Path) -> io::Result<String> {
    let opened = open_trusted(file, rustix::fs::OFlags::NONBLOCK)?;
    if opened.metadata()?.file_type().is_fifo() {
        return Err(io::Error::other("it is a pipe; name a file"));
    }
    let mut text = String::new();
    opened.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    Ok(text)
}

fn confinement(text: &str) -> Option<Confinement> {
    match text {
        "try" => Some(Confinement::Try),
        "require" => Some(Confinement::Require),
        "off" => Some(Confinement::Off),
        _ => None,
    }
}

fn store(mut section: Section<'_>, env: &Environment) -> Result<StoreConfig, ConfigError> {
    let path = match section.take("url") {
        Some(entry) => entry.parsed(
            database_path,
            "must be sqlite:// and an absolute path, without ?, # and % (this version has no other store)",
        )?,
        None => env.store_path()?,
    };
    let key = match section.take("key") {
        Some(entry) => entry.parsed(|text| KeySource::parse(text, &path), KeySource::FORM)?,
        None => KeySource::file(&path),
    };
    section.finish()?;
    Ok(StoreConfig { path, key })
}

/// There must be no query, fragment or escape: they mean one thing in a URL and another in a path.
fn database_path(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("sqlite://")?;
    (path.starts_with('/') && !path.ends_with('/') && !path.contains(['?', '#', '%'])).then(|| path.into())
}

fn refresh(mut section: Section<'_>) -> Result<RefreshConfig, ConfigError> {
    let cooldown = match section.take("cooldown") {
        Some(entry) => entry.duration(Duration::ZERO..=MAX_COOLDOWN)?,
        None => DEFAULT_COOLDOWN,
    };
    let request_timeout = match section.take("request_timeout") {
        Some(entry) => entry.duration(MIN_REQUEST_TIMEOUT..=PROVIDER_CALL_TIMEOUT)?,
        None => PROVIDER_CALL_TIMEOUT,
    };
    section.finish()?;
    Ok(RefreshConfig { cooldown, request_timeout })
}

fn logins(mut section: Section<'_>) -> Result<LoginsConfig, ConfigError> {
    let lifetime = match section.take("lifetime") {
        Some(entry) => entry.duration(Duration::from_secs(1)..=MAX_LOGIN_LIFETIME)?,
        None => DEFAULT_LOGIN_LIFETIME,
    };
    section.finish()?;
    Ok(LoginsConfig { lifetime })
}

/// A file that configures only sandbox sockets keeps the default host's socket: without it nobody could log in.
fn sockets(sections: Vec<(String, Section<'_>)>, env: &Environment) -> Result<Vec<SocketConfig>, ConfigError> {
    let mut sockets: Vec<SocketConfig> = Vec::new();
    for (name, section) in sections {
        sockets.push(socket::read(name, section, &sockets)?);
    }
    if !sockets.iter().any(|socket| socket.policy.role() == Role::Host) {
        sockets.push(SocketConfig::host_at(socket::HOST, env.host_socket()?));
        sockets.sort_by(|one, other| one.name.cmp(&other.name));
    }
    Ok(sockets)
}

#[cfg(test)]
mod tests;
