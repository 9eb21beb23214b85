//! Programs of the daemon's own user that want its memory, and what the daemon itself may still do to the machine.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio::time::{sleep, timeout};

use crate::{AT_ONCE, World, support::daemon::Daemon};

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
        println!(
            "skipped: only root can run processes of another user, to whom nothing else on this machine is closed"
        );
        return;
    }
    // A copy, because the way to the built program may be closed to others.
    let home = tempfile::Builder::new().prefix("cp-").tempdir().unwrap();
    let program = home.path().join("credproxy");
    fs::copy(env!("CARGO_BIN_EXE_credproxy"), &program).unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let own = home.path().join("own");
    fs::create_dir(&own).unwrap();
    chown(&own, Some(NOBODY), None).unwrap();
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
    let left = fs::read_dir(world.home.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("core")).collect();
    assert!(left.is_empty(), "{left:?}");
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
        println!("skipped: this kernel has no Landlock");
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
    let answer = daemon.request("POST", crate::REFRESH, &[], "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}
