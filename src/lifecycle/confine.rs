//! Protects the process: its memory is closed to others, and it can reach no more of the machine than it needs.
//!
//! Invariants:
//! 1. Only root may read the daemon's memory or trace it, no core file is written, and files that it creates are closed
//!    to others unless a mode says otherwise. A program that traced it before keeps its access, so the daemon does not
//!    start under a tracer unless told to. Commands that hold secrets are protected as well.
//! 2. On Linux a Landlock domain confines every thread that serves. Allowed are the files of the store, the audit log,
//!    the sockets, the certificates and secrets that the configuration names, and what the C library and TLS read. No
//!    program can be run, and no TCP port opened except for logins. The domain is created before the threads, which
//!    inherit it: it binds the thread that creates it and those started later (landlock(7)).
//! 3. If the configuration names commands, one thread outside of the domain runs them, until the start is over.
//!
//! Not covered: outgoing connections, whose ports providers choose; signals to processes of the same user; modes of
//! files (chmod(2)); and code that runs in this process before the start is over.

use std::{
    fmt, fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    thread,
};

use rustix::{
    fs::Mode,
    process::{Resource, Rlimit, setrlimit, umask},
};
use tokio::runtime::Builder;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::LifecycleError;
use crate::config::{Config, Confinement, Environment};

#[cfg(target_os = "linux")]
mod landlock;

/// How far the kernel confines the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// Every rule is enforced.
    Full,
    /// The kernel is too old for some of the rules.
    Partial,
    /// The kernel enforces nothing of the kind.
    Unavailable(Unavailable),
    /// Switched off.
    Off,
}

/// Why the kernel enforces nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    /// `ENOSYS`.
    NotImplemented,
    /// `EOPNOTSUPP`.
    Disabled,
    /// `EPERM`: a filter of system calls, such as a container's.
    Forbidden,
    /// The kernel answers with another error.
    Failed,
    /// A system other than Linux.
    NotLinux,
}

impl Extent {
    /// Whether the daemon is confined less than on other machines, which a person should know.
    #[must_use]
    pub const fn is_lacking(self) -> bool {
        match self {
            Self::Partial | Self::Unavailable(_) => true,
            Self::Full | Self::Off => false,
        }
    }
}

impl fmt::Display for Extent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Full => "by Landlock",
            Self::Partial => "by Landlock in part: the kernel is too old for the rest (Linux 6.10 has all)",
            Self::Unavailable(Unavailable::NotImplemented) => {
                "not at all: the kernel has no Landlock, or a filter of system calls hides it (ENOSYS)"
            }
            Self::Unavailable(Unavailable::Disabled) => {
                "not at all: Landlock is switched off on this machine; add it to the kernel's parameter lsm= (EOPNOTSUPP)"
            }
            Self::Unavailable(Unavailable::Forbidden) => {
                "not at all: a filter of system calls forbids Landlock, as containers have one; allow \
                 landlock_create_ruleset, landlock_add_rule and landlock_restrict_self in it (EPERM)"
            }
            Self::Unavailable(Unavailable::Failed) => "not at all: the kernel refuses",
            Self::Unavailable(Unavailable::NotLinux) => "not at all: this system has no Landlock",
            Self::Off => "not at all: switched off",
        })
    }
}

/// A confined process that can still run commands.
#[derive(Debug)]
pub struct Confined {
    /// How far it is confined.
    pub extent: Extent,
    command_thread: Option<DropGuard>,
    environment: Environment,
}

impl Confined {
    /// The environment, whose commands run on the unconfined thread.
    pub(super) const fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Stops running commands.
    pub(super) fn close(&mut self) {
        self.command_thread = None;
    }
}

/// Protects the daemon's process (invariant 1). `traced` lets it start under a tracer.
pub fn harden_daemon_process(traced: bool) -> Result<(), LifecycleError> {
    umask(Mode::RWXG | Mode::RWXO);
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).map_err(refused("forbid core files"))?;
    disable_dumps()?;
    // Checked last, when nobody can attach any more.
    match tracer() {
        None => Ok(()),
        Some(pid) if traced => {
            tracing::warn!(pid, "another process traces the daemon: it can read every secret and change what is done");
            Ok(())
        }
        Some(pid) => Err(LifecycleError::Traced(pid)),
    }
}

/// Protects the process of a command. Returns the process that traces it: a tracer from before keeps its access.
pub fn harden_command_process() -> Result<Option<u32>, LifecycleError> {
    disable_dumps()?;
    Ok(tracer())
}

fn refused(what: &'static str) -> impl Fn(rustix::io::Errno) -> LifecycleError {
    move |error| LifecycleError::Io { what, source: error.into() }
}

/// From now on only root can attach to the process or read its memory, and it leaves no core file. Programs that it
/// runs are not affected: execve(2) resets this.
#[cfg(target_os = "linux")]
fn disable_dumps() -> Result<(), LifecycleError> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(refused("close its memory to others"))
}

/// Other systems cannot close a process; at least it leaves no core file. Programs that it runs can raise the limit
/// again.
#[cfg(not(target_os = "linux"))]
fn disable_dumps() -> Result<(), LifecycleError> {
    let limit = rustix::process::getrlimit(Resource::Core);
    setrlimit(Resource::Core, Rlimit { current: Some(0), ..limit }).map_err(refused("forbid core files"))
}

/// The process that traces this one, according to the kernel (`proc_pid_status(5)`); `None` where there is no such
/// file.
#[must_use]
pub fn tracer() -> Option<u32> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?.trim().parse().ok()?;
    (tracer != 0).then_some(tracer)
}

/// Confines this thread and those that it starts (invariants 2 and 3), as far as `wanted`. Must be called before there
/// are other threads.
pub fn confine(config: &Config, environment: &Environment, wanted: Confinement) -> Result<Confined, LifecycleError> {
    if wanted == Confinement::Off {
        return Ok(Confined { extent: Extent::Off, command_thread: None, environment: environment.clone() });
    }
    let (command_thread, environment) = if config.runs_commands() {
        let (command_thread, environment) = command_thread(environment).map_err(|source| LifecycleError::Io {
            what: "begin a thread for the commands of the configuration",
            source,
        })?;
        (Some(command_thread), environment)
    } else {
        (None, environment.clone())
    };
    let extent = restrict(&AllowedAccess::of(config, &environment));
    if wanted == Confinement::Require && extent != Extent::Full {
        return Err(LifecycleError::NotConfined(extent));
    }
    Ok(Confined { extent, command_thread, environment })
}

/// Starts a thread outside of the domain, which lives as long as the guard.
fn command_thread(environment: &Environment) -> io::Result<(DropGuard, Environment)> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let environment = environment.clone().with_commands_on(runtime.handle().clone());
    let over = CancellationToken::new();
    let guard = over.clone().drop_guard();
    thread::Builder::new().name("commands".to_owned()).spawn(move || runtime.block_on(over.cancelled()))?;
    Ok((guard, environment))
}

/// The access that the daemon needs.
#[derive(Debug, Default)]
struct AllowedAccess {
    /// Directories in which files are created and changed.
    changed: Vec<PathBuf>,
    /// Files and directories that are read.
    read: Vec<PathBuf>,
    /// Loopback ports to listen on; 0 stands for those that the kernel chooses.
    ports: Vec<u16>,
}

/// What the C library reads to resolve names, and where certificates are. Directories, because their files are replaced
/// while the daemon runs.
const SYSTEM: [&str; 12] = [
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/nix/store",
    "/gnu/store",
    "/proc",
    "/sys/fs/cgroup",
    "/dev/urandom",
    "/run/systemd/resolve",
    "/run/NetworkManager",
    "/run/resolvconf",
];

impl AllowedAccess {
    fn of(config: &Config, environment: &Environment) -> Self {
        let parent = |path: &Path| path.parent().map(Path::to_owned);
        let changed = config.sockets.iter().map(|socket| &socket.path).chain([&config.store.path]);
        let changed = changed.chain(config.audit.file());
        // The sandboxes have another place if the path of the host's socket is too long for them.
        let root = config.host_socket().map(|host| environment.sandbox_root(&host.path).directory);
        let apart = |root: &PathBuf| config.host_socket().is_none_or(|host| parent(root) != parent(&host.path));
        let mut ports = vec![0];
        ports.extend(
            config.providers.iter().filter_map(|provider| provider.redirect_uri.listener()).map(|(_, port)| port),
        );
        Self {
            changed: changed.filter_map(|path| parent(path)).chain(root.filter(apart)).collect(),
            read: SYSTEM
                .iter()
                .map(PathBuf::from)
                .chain(config.files_read())
                .chain(environment.extra_files_read())
                .collect(),
            ports,
        }
    }

    /// Landlock rules need existing directories. An error here shows again, and is reported, where the directory is
    /// used.
    fn make_directories(&self) {
        for directory in &self.changed {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).ok();
        }
    }
}

#[cfg(target_os = "linux")]
fn restrict(access: &AllowedAccess) -> Extent {
    access.make_directories();
    landlock::restrict(access)
}

#[cfg(not(target_os = "linux"))]
fn restrict(_: &AllowedAccess) -> Extent {
    Extent::Unavailable(Unavailable::NotLinux)
}

/// How far this kernel would confine the daemon.
#[must_use]
pub fn available() -> Extent {
    // A domain cannot be left, so it is tried on a thread that ends with it.
    thread::spawn(|| restrict(&AllowedAccess::default())).join().unwrap_or(Extent::Unavailable(Unavailable::Failed))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::ErrorKind, net::TcpListener, process::Command};

    use super::*;

    fn denied<T>(result: io::Result<T>) -> bool {
        result.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn a_confined_thread_and_those_it_begins_reach_what_they_need_and_nothing_else() {
        if available() != Extent::Full {
            // An older kernel; `tests/security` says so aloud.
            return;
        }
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        File::create(theirs.path().join("secret")).unwrap();
        let (named, other) = (free_port(), free_port());
        let access = AllowedAccess {
            changed: vec![ours.path().join("new/store")],
            read: SYSTEM.iter().map(PathBuf::from).collect(),
            ports: vec![0, named],
        };
        let (ours, theirs) = (ours.path().to_owned(), theirs.path().to_owned());
        let confined = thread::spawn(move || {
            assert_eq!(restrict(&access), Extent::Full);
            thread::spawn(move || {
                let inside = ours.join("new/store/file");
                assert!(
                    File::create(&inside).is_ok() && File::open(&inside).is_ok() && fs::remove_file(&inside).is_ok()
                );
                assert!(File::open("/etc/passwd").is_ok());
                assert!(denied(File::open(theirs.join("secret"))) && denied(fs::read_dir(&theirs)));
                assert!(denied(File::create(ours.join("file"))) && denied(File::create("/etc/credproxy-canary")));
                assert!(denied(fs::remove_file(theirs.join("secret"))));
                assert!(denied(Command::new("/bin/true").spawn()));
                assert!(TcpListener::bind("127.0.0.1:0").is_ok() && TcpListener::bind(("127.0.0.1", named)).is_ok());
                assert!(denied(TcpListener::bind(("127.0.0.1", other))));
            })
            .join()
        });
        confined.join().unwrap().unwrap();
    }

    #[test]
    fn a_command_of_the_configuration_runs_outside() {
        let home = tempfile::tempdir().unwrap();
        let secret = home.path().join("secret");
        fs::copy("/etc/hostname", &secret).unwrap();
        let text = format!(
            "[audit]\npath = \"off\"\n[store]\nkey = \"command:cat '{}'\"\nurl = \"sqlite://{}/s.db\"\n\
             [sockets.host]\npath = \"{1}/run/s\"\nrole = \"host\"\n",
            secret.display(),
            home.path().join("store").display()
        );
        let config = Config::parse(Path::new("test"), &text, &Environment::of::<&str, &str>([])).unwrap();
        assert!(config.runs_commands());
        let read = thread::spawn(move || {
            let mut confined = confine(&config, &Environment::of::<&str, &str>([]), Confinement::Try).unwrap();
            let crate::config::KeySource::Given(key) = &config.store.key else { panic!("{:?}", config.store.key) };
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            let printed = runtime.block_on(key.read(confined.environment()));
            assert!(confined.extent != Extent::Full || denied(File::open(&secret)));
            confined.close();
            assert!(runtime.block_on(key.read(confined.environment())).is_err());
            printed.unwrap()
        });
        assert_eq!(*read.join().unwrap(), fs::read("/etc/hostname").unwrap());
    }
}
