//! Programs of the daemon's own user that want its memory, and what the daemon itself may still do to the machine.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _},
    time::{sleep, timeout},
};

use crate::{
    files::assert_refused,
    support::{
        daemon::{Daemon, Home},
        skip::skip,
    },
    world::{AT_ONCE, World},
};

/// Someone who owns nothing on this machine.
const NOBODY: u32 = 65534;

/// The words to run a program as another user.
fn as_nobody() -> [String; 3] {
    ["setpriv".into(), format!("--reuid={NOBODY}"), "--clear-groups".into()]
}

/// Whether a process of that user can read `path`.
async fn readable(path: &Path) -> bool {
    let words = as_nobody();
    let read = tokio::process::Command::new(&words[0])
        .args(&words[1..])
        .args(["head", "-c", "1"])
        .arg(path)
        .stderr(Stdio::null())
        .output();
    read.await.unwrap().status.success()
}

/// A copy of the program, because the way to the built one may be closed to others, and a directory of that user's.
fn home_of_nobody() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let home = tempfile::Builder::new().prefix("cp-").tempdir().unwrap();
    let program = home.path().join("credproxy");
    fs::copy(env!("CARGO_BIN_EXE_credproxy"), &program).unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let own = home.path().join("own");
    fs::create_dir(&own).unwrap();
    chown(&own, Some(NOBODY), None).unwrap();
    (home, program, own)
}

/// A process that ends with this value.
struct Running(Child);

impl Running {
    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_of_the_same_user_cannot_look_into_the_daemon() {
    if !geteuid().is_root() {
        skip("only root can run processes of another user, to whom nothing else on this machine is closed");
        return;
    }
    let (_home, program, own) = home_of_nobody();
    let words = as_nobody();
    let start = |arguments: &[&str]| {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).args(arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("HOME", &own).current_dir(&own).stdout(Stdio::null()).stderr(Stdio::null());
        Running(command.spawn().unwrap())
    };
    let socket = own.join("run/credproxy.sock");
    let daemon = start(&[program.to_str().unwrap(), "serve", "--socket", socket.to_str().unwrap()]);
    let other = start(&["sleep", "60"]);
    let place = |process: &Running, file: &str| Path::new("/proc").join(process.pid().to_string()).join(file);
    let up = async {
        while !socket.exists() || !readable(&place(&other, "environ")).await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(AT_ONCE, up).await.expect("both run");
    // These wait for their input with a secret in their hands.
    let mut commands = vec![];
    for arguments in [&["key", "set", "openai"][..], &["import", "corp"]] {
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(&program).arg("--socket").arg(&socket).args(arguments).env_clear();
        command.env("PATH", "/usr/bin:/bin").env("HOME", &own).current_dir(&own);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        commands.push(Running(command.spawn().unwrap()));
    }
    for command in &commands {
        let closed = async {
            // Until it has become the program, it is `setpriv`, which root started.
            while fs::read_to_string(place(command, "comm")).unwrap().trim() != "credproxy"
                || readable(&place(command, "environ")).await
            {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(AT_ONCE, closed).await.expect("a command that holds a secret is closed");
        assert!(!readable(&place(command, "mem")).await);
    }
    for file in ["environ", "maps", "auxv"] {
        assert!(readable(&place(&other, file)).await, "{file} of another process is open, or this test shows nothing");
        assert!(!readable(&place(&daemon, file)).await, "{file} is open");
    }
    assert!(!readable(&place(&daemon, "mem")).await);
}

/// The value of a line of a file in `/proc`.
fn line(text: &str, name: &str) -> String {
    let found = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("no {name} in {text}"));
    found.split_whitespace().next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_leaves_no_core_file() {
    let mut world = World::new().await;
    world.daemon.sigterm();
    world.daemon.wait().await;
    // As far as whoever starts it is concerned, it may leave one.
    let before = ["sh", "-c", "ulimit -S -c unlimited 2>/dev/null; exec \"$@\"", "sh"];
    world.daemon.launch_into(&before, Stdio::null(), Stdio::null()).await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", world.daemon.pid().as_raw_nonzero())).unwrap();
    assert_eq!(line(&limits, "Max core file size"), "0");
    kill_process(world.daemon.pid(), Signal::ABORT).unwrap();
    world.daemon.wait().await;
    assert_eq!(core_files(world.home.path()), [""; 0]);
}

fn core_files(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("core")).collect()
}

/// As far as whoever starts them is concerned, commands may leave core files, and what `exec` runs still may.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_crashes_leaves_no_core_file_and_what_it_runs_is_as_ever() {
    let before = ["sh", "-c", "ulimit -S -c unlimited 2>/dev/null; exec \"$@\"", "sh"];
    let home = Home::in_memory(|_| before.map(Into::into).to_vec());
    let issuer = crate::support::issuer::Issuer::start().await;
    let daemon =
        Daemon::start(&home, "a", &crate::world::table("corp", &issuer), &[("SECRET", crate::world::CLIENT_SECRET)])
            .await;
    let script = "ulimit -S -c; kill -ABRT $$";
    let output = daemon.command(&["exec", "--allow", "corp", "--", "sh", "-c", script], "").await;
    let said = String::from_utf8(output.stdout).unwrap();
    let own = Command::new("sh").args(["-c", &before[2].replace("exec \"$@\"", "ulimit -S -c")]).output().unwrap();
    assert_eq!(said.lines().next(), Some(String::from_utf8(own.stdout).unwrap().trim()), "{said}");
    // A program that may leave one does so here, or the rest of this test shows nothing.
    let shows = !core_files(home.path()).is_empty();
    for left in core_files(home.path()) {
        fs::remove_file(home.path().join(left)).unwrap();
    }
    let mut command = daemon.start_beside(&["key", "set", "openai"]);
    let pid = Pid::from_raw(command.id().unwrap().cast_signed()).unwrap();
    let mut input = command.stdin.take().unwrap();
    input.write_all(b"canary-half-a-key").await.unwrap();
    let reads = async {
        while rustix::io::ioctl_fionread(&input).unwrap() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(AT_ONCE, reads).await.expect("it reads the key");
    kill_process(pid, Signal::ABORT).unwrap();
    command.wait().await.unwrap();
    assert_eq!(core_files(home.path()), [""; 0]);
    if !shows {
        skip("in part: this machine writes no core files where a program crashes");
    }
}

/// Its threads, each with whether it is held: who is in a Landlock domain can gain no privileges, and says so.
fn threads(pid: Pid) -> Vec<(String, bool)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
    // A thread may end while it is looked at.
    let status = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
    status.map(|status| (line(&status, "Name:"), line(&status, "NoNewPrivs:") == "1")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_thread_is_confined_once_the_daemon_serves_unless_told_otherwise() {
    let mut world = World::with("").await;
    let check = world.daemon.command(&["check"], "").await;
    let check = String::from_utf8(check.stdout).unwrap();
    if !check.contains("confined by Landlock") {
        assert!(check.contains("a daemon would be confined not at all"), "{check}");
        skip("this kernel has no Landlock");
        return;
    }
    let free: Vec<_> = threads(world.daemon.pid()).into_iter().filter(|(_, held)| !held).collect();
    assert!(free.is_empty(), "{free:?}");

    // Its client secret comes from a command now, which needs a thread outside until the start is over.
    let config = fs::read_to_string(world.daemon.config()).unwrap();
    let command = config.replace("{ env = \"SECRET\" }", "{ command = \"printf canary-client-secret\" }");
    assert_ne!(config, command);
    fs::File::create(world.daemon.config())
        .and_then(|mut file| std::io::Write::write_all(&mut file, command.as_bytes()))
        .unwrap();
    world.daemon.restart().await;
    assert!(world.daemon.output_text().contains("confined=by Landlock"));
    let over = async {
        while threads(world.daemon.pid()).iter().any(|(_, held)| !held) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(AT_ONCE, over).await.expect("the thread for commands ends");
    refreshes(&world.daemon).await;
}

/// The provider is reached, and what came of it is stored.
async fn refreshes(daemon: &Daemon) {
    let answer = daemon.request("POST", crate::world::REFRESH, &[], "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// `landlock_create_ruleset`, on all machines.
const CREATE_RULESET: &str = "444";

/// Has the kernel answer the system call of a number with an error, as the filter of a container does, and becomes the
/// program that follows.
pub(crate) const FILTER: &str = "
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, ERROR = 0x7fff0000, 0x00050000
code = [(LOAD, 0, 0, 0), (JUMP_IF_EQUAL, 0, 1, int(sys.argv[1])), (RETURN, 0, 0, ERROR | int(sys.argv[2])), (RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in code))
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.c_void_p)]
program = Program(4, ctypes.cast(code, ctypes.c_void_p))
PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38
if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)):
    sys.exit('no filter: ' + os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[3], sys.argv[3:])
";

/// Has a child trace this process, and becomes the program that follows.
const TRACER: &str = "
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
PTRACE_CONT, PTRACE_SEIZE, WALL, PR_SET_PTRACER = 7, 0x4206, 0x40000000, 0x59616d61
me = os.getpid()
ready, tell = os.pipe()
tracer = os.fork()
if tracer == 0:
    os.close(ready)
    for file in (0, 1, 2):
        os.close(file)
    os.write(tell, b'x' if libc.ptrace(PTRACE_SEIZE, me, None, None) == 0 else b'-')
    os.close(tell)
    while True:
        _, status = os.waitpid(me, WALL)
        if not os.WIFSTOPPED(status):
            os._exit(0)
        libc.ptrace(PTRACE_CONT, me, None, None if status >> 16 else os.WSTOPSIG(status))
os.close(tell)
libc.prctl(PR_SET_PTRACER, tracer, 0, 0, 0)
if os.read(ready, 1) != b'x':
    sys.exit('not traced')
os.execvp(sys.argv[1], sys.argv[1:])
";

/// Whether the Python script works here, in front of a program that does nothing.
pub(crate) fn runs(script: &str, arguments: &[&str]) -> bool {
    let tried = Command::new("python3").args(["-c", script]).args(arguments).arg("true").output();
    let runs = tried.is_ok_and(|tried| tried.status.success());
    if !runs {
        skip("this takes python3, and that a process may filter its system calls and be traced");
    }
    runs
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_the_kernel_does_not_confine_says_why_and_can_be_forbidden_to_start() {
    // ENOSYS, EOPNOTSUPP, EPERM, and what nobody expects.
    for (errno, why) in [("38", "(ENOSYS)"), ("95", "(EOPNOTSUPP)"), ("1", "(EPERM)"), ("5", "the kernel refuses")] {
        if !runs(FILTER, &[CREATE_RULESET, errno]) {
            return;
        }
        let home = Home::in_memory(|_| ["python3", "-c", FILTER, CREATE_RULESET, errno].map(Into::into).to_vec());
        let mut daemon = Daemon::start(&home, "a", "", &[]).await;
        let log = daemon.output_text();
        let warned = log.lines().any(|line| line.contains("WARN") && line.contains("not at all") && line.contains(why));
        assert!(warned, "{why}: {log}");
        let check = daemon.command(&["check"], "").await;
        let said = String::from_utf8(check.stdout).unwrap();
        let marked = said.lines().any(|line| line.starts_with("warning") && line.contains(why));
        assert!(check.status.success() && marked, "{why}: {said}");
        daemon.kill9().await;

        let required = Daemon::prepare(&home, "a", "confine = \"require\"\n", &[]);
        assert_refused(&required, "no Landlock", &["confine = \"require\"", why]).await;
        let check = required.command(&["check"], "").await;
        let said = String::from_utf8(check.stdout).unwrap();
        let wrong = said.lines().any(|line| line.starts_with("wrong") && line.contains(why));
        assert!(!check.status.success() && wrong, "{why}: {said}");
        Daemon::start(&home, "b", "confine = \"off\"\n", &[]).await.kill9().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_traced_does_not_start_unless_it_is_told_to() {
    if !runs(TRACER, &[]) {
        return;
    }
    let home = Home::in_memory(|_| ["python3", "-c", TRACER].map(Into::into).to_vec());
    let daemon = Daemon::prepare(&home, "a", "", &[]);
    assert_refused(&daemon, "a tracer", &["traces this one", "--traced"]).await;
    let check = daemon.command(&["check"], "").await;
    assert!(!check.status.success() && String::from_utf8_lossy(&check.stdout).contains("traces this one"));
    let list = daemon.command(&["key", "list"], "").await;
    assert!(String::from_utf8_lossy(&list.stderr).contains("warning: process"), "{list:?}");

    let mut traced = daemon.start_beside(&["serve", "--traced"]);
    let mut log = tokio::io::BufReader::new(traced.stderr.take().unwrap()).lines();
    let warned = async {
        while let Some(line) = log.next_line().await.unwrap() {
            if line.contains("WARN") && line.contains("traces the daemon") {
                return;
            }
        }
        panic!("it ended without a word");
    };
    timeout(AT_ONCE, warned).await.expect("it says that it is traced");
    let up = async {
        while daemon.try_connect().await.is_none() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(AT_ONCE, up).await.expect("it serves");
}
