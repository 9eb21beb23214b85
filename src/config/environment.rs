//! The environment variables, and the paths that they name.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    fs::{self, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;
use tokio::runtime::Handle;
use zeroize::Zeroizing;

use super::{
    ConfigError,
    command::{self, CommandError},
};
use crate::{
    private::check_trusted,
    sandbox::{self, SandboxRoot},
    secret::Capability,
    socket_path::MAX_PATH_BYTES,
};

/// The variable that names the socket for clients.
pub const SOCKET: &str = "CREDPROXY_SOCKET";

/// The variable that numbers the open file with the socket's capability.
pub const CAPABILITY_FD: &str = "CREDPROXY_CAPABILITY_FD";

/// The longest capability that is read; ours have 43 bytes.
const MAX_CAPABILITY_BYTES: usize = 1024;

/// The environment variables, and the runtime on which commands run. A test passes its own.
#[derive(Clone)]
pub struct Environment {
    variables: Variables,
    commands: Option<Handle>,
}

/// No variable is shown: one may hold a client secret.
impl fmt::Debug for Environment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Environment").finish_non_exhaustive()
    }
}

#[derive(Clone)]
enum Variables {
    Process,
    Given(BTreeMap<String, OsString>),
}

impl Environment {
    /// The process's own environment, read at each lookup.
    #[must_use]
    pub const fn process() -> Self {
        Self { variables: Variables::Process, commands: None }
    }

    /// These variables and no others.
    pub fn of<N: Into<String>, V: Into<OsString>>(variables: impl IntoIterator<Item = (N, V)>) -> Self {
        let variables = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        Self { variables: Variables::Given(variables), commands: None }
    }

    /// Runs commands on `runtime` instead of the current one.
    #[must_use]
    pub fn with_commands_on(self, runtime: Handle) -> Self {
        Self { commands: Some(runtime), ..self }
    }

    /// Runs a shell command and returns its output.
    pub(super) async fn output(&self, command: &str) -> Result<Zeroizing<Vec<u8>>, CommandError> {
        let Some(runtime) = &self.commands else { return command::output(command).await };
        let command = command.to_owned();
        let run = runtime.spawn(async move { command::output(&command).await });
        run.await.unwrap_or_else(|error| Err(CommandError::Io(io::Error::other(error))))
    }

    /// The variable's value; `None` when it is unset or empty.
    #[expect(clippy::disallowed_methods, reason = "the home of reading the environment")]
    pub(super) fn lookup(&self, name: &str) -> Option<OsString> {
        match &self.variables {
            Variables::Process => std::env::var_os(name),
            Variables::Given(variables) => variables.get(name).cloned(),
        }
        .filter(|value| !value.is_empty())
    }

    /// `$XDG_CONFIG_HOME/credproxy/config.toml`; `None` when there is no home directory.
    pub(super) fn config_file(&self) -> Option<PathBuf> {
        Some(self.base("XDG_CONFIG_HOME", ".config")?.join("credproxy/config.toml"))
    }

    /// `$XDG_DATA_HOME/credproxy/credproxy.db`.
    pub(super) fn store_path(&self) -> Result<PathBuf, ConfigError> {
        let base = self.base("XDG_DATA_HOME", ".local/share");
        Ok(base
            .ok_or(ConfigError::NoDefaultPath { what: "the store", key: "store.url" })?
            .join("credproxy/credproxy.db"))
    }

    /// `$XDG_STATE_HOME/credproxy/audit.log`.
    pub(super) fn audit_path(&self) -> Result<PathBuf, ConfigError> {
        let base = self.base("XDG_STATE_HOME", ".local/state");
        Ok(base
            .ok_or(ConfigError::NoDefaultPath { what: "the audit log", key: "audit.path" })?
            .join("credproxy/audit.log"))
    }

    /// `$XDG_RUNTIME_DIR/credproxy/host/credproxy.sock`, below `$XDG_STATE_HOME` where there is no runtime directory.
    pub(super) fn host_socket(&self) -> Result<PathBuf, ConfigError> {
        let base =
            self.sockets().ok_or(ConfigError::NoDefaultPath { what: "the host's socket", key: "sockets.host.path" })?;
        Ok(base.join("host/credproxy.sock"))
    }

    /// Like the host's socket with `dev` for `host`, so that `serve --dev` disturbs no other daemon.
    pub(super) fn dev_socket(&self) -> Result<PathBuf, ConfigError> {
        let base = self.sockets().ok_or(ConfigError::NoDefaultPath { what: "the socket", key: "--socket" })?;
        Ok(base.join("dev/credproxy.sock"))
    }

    fn sockets(&self) -> Option<PathBuf> {
        let base = self.absolute("XDG_RUNTIME_DIR").or_else(|| self.base("XDG_STATE_HOME", ".local/state"));
        Some(base?.join("credproxy"))
    }

    /// The directory of the sandboxes of the daemon with this host's socket: `sandboxes` beside the socket. If the path
    /// of a sandbox's socket would be too long there, the first of these that is short enough: `credproxy/sandboxes` in
    /// `$XDG_RUNTIME_DIR` or `/run/user/UID`, or `credproxy-UID` in `$TMPDIR` or `/tmp`.
    #[must_use]
    pub fn sandbox_root(&self, host: &Path) -> SandboxRoot {
        let beside = host.with_file_name("sandboxes");
        let own = rustix::process::geteuid().as_raw();
        let mine = |place: &PathBuf| fs::metadata(place).is_ok_and(|found| found.is_dir() && found.uid() == own);
        let runtime = [self.absolute("XDG_RUNTIME_DIR"), Some(format!("/run/user/{own}").into())];
        let runtime = runtime.into_iter().flatten().filter(mine).map(|place| place.join("credproxy/sandboxes"));
        let temporary = [self.absolute("TMPDIR"), Some("/tmp".into())].into_iter().flatten();
        let temporary = temporary.map(|place| place.join(format!("credproxy-{own}")));
        let mut places = [beside.clone()].into_iter().chain(runtime).chain(temporary);
        let fits = |place: &PathBuf| place.as_os_str().len() + sandbox::PATH_ROOM <= MAX_PATH_BYTES;
        let directory = places.find(fits).unwrap_or_else(|| beside.clone());
        SandboxRoot { name: beside, directory }
    }

    /// Whether there is a display for a browser.
    #[must_use]
    pub fn has_display(&self) -> bool {
        cfg!(target_os = "macos") || ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| self.lookup(name).is_some())
    }

    /// Whether colours are disabled: `$NO_COLOR` is set.
    #[must_use]
    pub fn no_color(&self) -> bool {
        self.lookup("NO_COLOR").is_some()
    }

    /// Whether the terminal supports ANSI sequences, according to `$TERM`.
    #[must_use]
    pub fn terminal_supports_ansi(&self) -> bool {
        self.lookup("TERM").is_some_and(|name| name != "dumb")
    }

    /// Whether the locale is UTF-8, according to the first of `$LC_ALL`, `$LC_CTYPE` and `$LANG` that is set.
    #[must_use]
    pub fn locale_is_utf8(&self) -> bool {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| self.lookup(name));
        let locale = locale.unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    }

    /// The log filter of `$CREDPROXY_LOG`, in the form of `tracing`'s filters; `info` by default.
    #[must_use]
    pub fn log_filter(&self) -> String {
        self.lookup("CREDPROXY_LOG").and_then(|filter| filter.into_string().ok()).unwrap_or_else(|| "info".to_owned())
    }

    /// `$CREDPROXY_SOCKET`, for clients.
    pub(super) fn client_socket(&self) -> Result<Option<PathBuf>, ConfigError> {
        match self.lookup(SOCKET).map(PathBuf::from) {
            Some(path) if path.is_relative() => Err(ConfigError::RelativeVariable { name: SOCKET }),
            path => Ok(path),
        }
    }

    /// The capability in the open file that `$CREDPROXY_CAPABILITY_FD` numbers.
    pub(super) fn capability(&self) -> Result<Option<Capability>, ConfigError> {
        let Some(number) = self.lookup(CAPABILITY_FD) else { return Ok(None) };
        let number = number.to_str().and_then(|text| text.parse::<u32>().ok());
        let read = || {
            let number = number.ok_or_else(|| io::Error::other("it is not a number"))?;
            // Opened again, so that the next program also reads it from the beginning.
            let file = OpenOptions::new()
                .read(true)
                .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
                .open(format!("/proc/self/fd/{number}"))?;
            let mut text = String::with_capacity(MAX_CAPABILITY_BYTES);
            file.take(MAX_CAPABILITY_BYTES as u64).read_to_string(&mut text)?;
            text.truncate(text.trim_end().len());
            Capability::new(text).map_err(|error| io::Error::other(format!("it {error}")))
        };
        read().map(Some).map_err(ConfigError::NoCapability)
    }

    /// `$CREDENTIALS_DIRECTORY`, which systemd sets for services with credentials.
    pub(super) fn credentials(&self) -> Option<PathBuf> {
        self.absolute("CREDENTIALS_DIRECTORY")
    }

    /// Files and directories besides the configured ones that a daemon may have to read: credentials, and certificates
    /// in an unusual place (`SSL_CERT_FILE` and `SSL_CERT_DIR` of OpenSSL).
    #[must_use]
    pub fn extra_files_read(&self) -> Vec<PathBuf> {
        self.credentials().into_iter().chain(self.certificates().map(|(_, place)| place)).collect()
    }

    /// Refuses certificates that others could have written: with their own certificate they could pose as any provider.
    pub fn check_certificates(&self) -> Result<(), ConfigError> {
        self.certificates().try_for_each(|(name, place)| match check_trusted(&place) {
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => {
                Err(ConfigError::UntrustedVariable { name, source })
            }
            // A missing file is not read.
            Ok(()) | Err(_) => Ok(()),
        })
    }

    /// Where the TLS library looks for certificates instead of the default place; `SSL_CERT_DIR` may list several.
    fn certificates(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let file = self.lookup("SSL_CERT_FILE").map(|file| ("SSL_CERT_FILE", file.into()));
        let places = self.lookup("SSL_CERT_DIR").unwrap_or_default();
        let places: Vec<_> = std::env::split_paths(&places).map(|place| ("SSL_CERT_DIR", place)).collect();
        let named = file.into_iter().chain(places).filter(|(_, place): &(_, PathBuf)| !place.as_os_str().is_empty());
        named.filter_map(|(name, place)| Some((name, std::path::absolute(place).ok()?)))
    }

    fn base(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        self.absolute(variable).or_else(|| Some(self.absolute("HOME")?.join(below_home)))
    }

    /// A relative path is ignored, as the XDG base directory specification demands.
    fn absolute(&self, variable: &str) -> Option<PathBuf> {
        self.lookup(variable).map(PathBuf::from).filter(|path| Path::is_absolute(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_base_directories_come_before_the_home() {
        let home = Environment::of([("HOME", "/h")]);
        assert_eq!(home.config_file().unwrap(), Path::new("/h/.config/credproxy/config.toml"));
        assert_eq!(home.store_path().unwrap(), Path::new("/h/.local/share/credproxy/credproxy.db"));
        assert_eq!(home.host_socket().unwrap(), Path::new("/h/.local/state/credproxy/host/credproxy.sock"));
        let all = Environment::of([
            ("HOME", "/h"),
            ("XDG_CONFIG_HOME", "/c"),
            ("XDG_DATA_HOME", "/d"),
            ("XDG_STATE_HOME", "/s"),
            ("XDG_RUNTIME_DIR", "/r"),
        ]);
        assert_eq!(all.config_file().unwrap(), Path::new("/c/credproxy/config.toml"));
        assert_eq!(all.store_path().unwrap(), Path::new("/d/credproxy/credproxy.db"));
        assert_eq!(all.host_socket().unwrap(), Path::new("/r/credproxy/host/credproxy.sock"));
        let without_runtime = Environment::of([("XDG_STATE_HOME", "/s")]);
        assert_eq!(without_runtime.host_socket().unwrap(), Path::new("/s/credproxy/host/credproxy.sock"));
    }

    #[test]
    fn an_empty_or_relative_base_directory_counts_as_unset() {
        let odd = Environment::of([("HOME", "/h"), ("XDG_DATA_HOME", ""), ("XDG_RUNTIME_DIR", "run")]);
        assert_eq!(odd.store_path().unwrap(), Path::new("/h/.local/share/credproxy/credproxy.db"));
        assert_eq!(odd.host_socket().unwrap(), Path::new("/h/.local/state/credproxy/host/credproxy.sock"));
    }

    #[test]
    fn the_first_locale_that_is_set_says_whether_text_is_utf_8() {
        for (variables, expected) in [
            (&[("LANG", "en_US.UTF-8")][..], true),
            (&[("LANG", "en_US.UTF-8"), ("LC_CTYPE", "C.utf8")], true),
            (&[("LANG", "en_US.UTF-8"), ("LC_ALL", ""), ("LC_CTYPE", "C")], false),
            (&[("LANG", "en_US.UTF-8"), ("LC_ALL", "POSIX")], false),
            (&[], false),
        ] {
            assert_eq!(Environment::of(variables.iter().copied()).locale_is_utf8(), expected, "{variables:?}");
        }
    }

    #[test]
    fn without_a_home_the_error_names_the_key_to_set() {
        let nothing = Environment::of::<&str, &str>([]);
        assert!(nothing.config_file().is_none());
        assert!(nothing.store_path().unwrap_err().to_string().contains("store.url"));
        assert!(nothing.host_socket().unwrap_err().to_string().contains("sockets.host.path"));
    }
}
