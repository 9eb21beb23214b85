//! `credproxy exec`.

use std::{fs, process::Output};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};

use crate::sandboxes::{LOOK, SOON, World};

const PROGRAM: &str = env!("CARGO_BIN_EXE_credproxy");

impl World {
    /// Runs a script by `credproxy exec`; `$0` in it is the program.
    async fn exec(&self, options: &[&str], script: &str) -> Output {
        self.daemon.command(&[&["exec"], options, &["--", "sh", "-c", script, PROGRAM]].concat(), "").await
    }

    /// The access token of an account.
    pub(crate) async fn host_token(&self, account: &str) -> String {
        let token = self.host("GET", &format!("/v1/tokens/{account}"), "").await;
        token.json()["access_token"].as_str().unwrap().to_owned()
    }
}

fn shown(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A command under way, whose output is read line by line.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    pub(crate) fn start(world: &World, arguments: &[&str]) -> Self {
        let mut child = world.daemon.start_beside(arguments);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    pub(crate) async fn line(&mut self) -> String {
        let line = timeout(SOON, self.lines.next_line()).await.expect("no line is printed").unwrap();
        match line {
            Some(line) => line,
            None => panic!("it ended: {:?}", self.child.wait().await),
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap(), signal).unwrap();
    }

    pub(crate) async fn exit_code(&mut self) -> Option<i32> {
        timeout(SOON, self.child.wait()).await.expect("it does not end").unwrap().code()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_reaches_what_it_is_allowed_and_leaves_nothing_behind() {
    let world = World::new().await;
    let script = r#"
        "$0" token corp && "$0" token corp/work && "$0" refresh corp && "$0" --json status
        for other in "token other" "logout corp" "exec -- true"; do "$0" $other; echo "$?"; done
        ls -A "${CREDPROXY_SOCKET%/*}"
    "#;
    let before = world.host_token("corp").await;
    let ran = world.exec(&["--allow", "corp", "--allow=corp/*"], script).await;
    let (code, stdout, stderr) = shown(&ran);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[..2], [before, world.host_token("corp?bucket=work").await]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(lines[2]).unwrap()["tokens"].as_array().unwrap().len(), 2);
    assert_eq!(lines[3..], ["7", "7", "7", "credproxy.sock"], "{stderr}");
    assert_ne!(world.host_token("corp").await, lines[0]);
    world.all_gone().await;

    // What may be done can be less, too.
    let ran = world.exec(&["--allow", "corp", "--operation", "read"], "\"$0\" refresh corp").await;
    assert_eq!(shown(&ran).0, Some(7));
    // Nothing allowed is nothing had.
    let ran = world.exec(&[], "\"$0\" token corp").await;
    assert_eq!(shown(&ran).0, Some(7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_comes_with_its_operation() {
    let world = World::new().await;
    let put = world.host("PUT", "/v1/api-keys/openai", r#"{"api_key": "canary-key"}"#).await;
    assert_eq!(put.status, 201, "{}", put.text());
    world.host("PUT", "/v1/api-keys/other", r#"{"api_key": "canary-other"}"#).await;
    let ask =
        r#"for key in openai other; do curl -s --unix-socket "$CREDPROXY_SOCKET" "http://x/v1/api-keys/$key"; done"#;
    for options in [&["--key", "openai"][..], &["--key", "openai", "--operation", "read"]] {
        let (_, stdout, _) = shown(&world.exec(options, ask).await);
        assert!(stdout.contains("canary-key") && !stdout.contains("canary-other"), "{stdout}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_is_the_command_s() {
    let world = World::new().await;
    for (script, code) in [("exit 0", 0), ("exit 42", 42), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        assert_eq!(shown(&world.exec(&[], script).await).0, Some(code), "{script}");
    }
    for (command, code, message) in
        [("/no/such/command", 127, "cannot run /no/such/command"), ("/", 126, "cannot run /")]
    {
        let (found, _, stderr) = shown(&world.daemon.command(&["exec", "--", command], "").await);
        assert_eq!((found, stderr.contains(message)), (Some(code), true), "{stderr}");
    }
    let echoed = world.daemon.command(&["exec", "--", "cat"], "what is typed").await;
    assert_eq!(shown(&echoed).1, "what is typed");
    world.all_gone().await;
    for (arguments, code) in [
        (&["exec"][..], 2),
        (&["exec", "true"], 2),
        (&["exec", "--allow", "*", "--", "true"], 2),
        (&["exec", "--operation", "write", "--", "true"], 2),
        (&["exec", "--env", "TOKEN", "--", "true"], 2),
        (&["exec", "--env", "T=nobody", "--", "true"], 6),
        (&["--socket", "/nowhere/s", "exec", "--", "true"], 5),
    ] {
        assert_eq!(shown(&world.daemon.command(arguments, "").await).0, Some(code), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelt_provider_is_told_of() {
    let world = World::new().await;
    let (code, stdout, stderr) = shown(&world.exec(&["--allow", "crop", "--allow", "corp"], "echo runs").await);
    assert_eq!((code, stdout.as_str()), (Some(0), "runs\n"));
    assert_eq!(stderr, "warning: no provider crop is configured\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_reaches_the_command() {
    let world = World::new().await;
    for signal in [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2, Signal::WINCH] {
        let script = "n=0; trap 'n=$((n + 1)); echo $n' HUP INT QUIT TERM USR1 USR2 WINCH; echo ready; \
             while [ $n = 0 ]; do sleep 0.01; done; exit 9";
        let mut running = Running::start(&world, &["exec", "--allow", "corp", "--", "sh", "-c", script]);
        assert_eq!(running.line().await, "ready");
        running.signal(signal);
        assert_eq!((running.line().await.as_str(), running.exit_code().await), ("1", Some(9)), "{signal:?}");
    }
    world.all_gone().await;
}

/// The terminal has told the command of its own accord.
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_reaches_the_command_once() {
    let world = World::new().await;
    // Its parent stands still until the command has seen to the first, so that a second would be another one; and what
    // the parent is sent after it comes back after it.
    let script = r#"
        n=0; trap 'n=$((n + 1))' INT; trap 'echo "times: $n"; stty echo; exit 3' USR1
        kill -STOP $PPID
        stty -echo; echo "ready:"
        while [ $n = 0 ]; do sleep 0.01; done
        kill -USR1 $PPID; kill -CONT $PPID
        while :; do sleep 0.01; done
    "#;
    let arguments = ["exec", "--allow", "corp", "--", "sh", "-c", script];
    let (status, shown) = world.daemon.command_on_terminal(&arguments, &[("ready:", "\u{3}")]).await;
    assert!(shown.contains("times: 1"), "{shown}");
    assert_eq!(status.code(), Some(3), "{shown}");
    world.all_gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_ignored_stays_ignored() {
    let world = World::new().await;
    let script = r#"trap "" HUP; exec "$0" "$@""#;
    let ignored = Command::new("sh")
        .args(["-c", script, PROGRAM, "--socket", world.daemon.socket().to_str().unwrap()])
        .args(["exec", "--", "grep", "SigIgn", "/proc/self/status"])
        .output();
    let (_, stdout, stderr) = shown(&ignored.await.unwrap());
    let mask = stdout.trim().rsplit('\t').next().unwrap();
    assert_eq!(u64::from_str_radix(mask, 16).unwrap() & 0b11, 0b01, "{stdout}{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_ends_with_a_killed_exec_though_its_command_runs_on() {
    let mut world = World::new().await;
    for restart in [false, true] {
        let script = "echo \"$CREDPROXY_SOCKET\"; exec sleep 600";
        let mut running = Running::start(&world, &["exec", "--allow", "corp", "--", "sh", "-c", script]);
        let socket = running.line().await;
        let command = fs::read_to_string(format!("/proc/{0}/task/{0}/children", running.child.id().unwrap())).unwrap();
        let command = Pid::from_raw(command.trim().parse().unwrap()).unwrap();
        assert!(fs::exists(&socket).unwrap());
        running.signal(Signal::KILL);
        running.child.wait().await.unwrap();
        if restart {
            // The daemon may miss the end.
            world.restart().await;
        }
        world.all_gone().await;
        kill_process(command, Signal::KILL).expect("the command runs on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tied_sandbox_survives_the_daemon_s_death_and_not_its_own_process() {
    let mut world = World::new().await;
    let script = "echo ready; read line; \"$0\" token corp; read line; exit 5";
    let mut running = Running::start(&world, &["exec", "--allow", "corp", "--", "sh", "-c", script, PROGRAM]);
    assert_eq!(running.line().await, "ready");
    world.daemon.kill9().await;
    world.launch().await;
    let mut stdin = running.child.stdin.take().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"\n").await.unwrap();
    assert_eq!(running.line().await, world.host_token("corp").await);
    assert_eq!(world.sandboxes().await.len(), 1);
    // The daemon is away when the command ends, and finds out when it is back.
    world.daemon.kill9().await;
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"\n").await.unwrap();
    assert_eq!(running.exit_code().await, Some(5));
    world.launch().await;
    world.all_gone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_capability_comes_by_an_open_file_and_nothing_else() {
    let world = World::new().await;
    let script = r#"
        "$0" token corp && "$0" token corp || exit 1
        curl -s -o /dev/null -w '%{http_code}\n' --unix-socket "$CREDPROXY_SOCKET" http://x/v1/health
        "$0" --socket "$CREDPROXY_SOCKET" token corp 2>/dev/null; echo "$?"
        cat "/proc/self/fd/$CREDPROXY_CAPABILITY_FD"; echo
        (echo x >> "/proc/self/fd/$CREDPROXY_CAPABILITY_FD") 2>/dev/null; echo "$?"
        curl -s -o /dev/null -w '%{http_code}\n' --unix-socket "$CREDPROXY_SOCKET" http://x/v1/health \
            -H "Authorization: Bearer $(cat "/proc/self/fd/$CREDPROXY_CAPABILITY_FD")"
        tr '\0' '\n' < /proc/self/environ; tr '\0' '\n' < /proc/$PPID/environ; tr '\0' '\n' < /proc/$PPID/cmdline
    "#;
    let (code, stdout, stderr) = shown(&world.exec(&["--allow", "corp", "--capability"], script).await);
    assert_eq!(code, Some(0), "{stdout}{stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    let (token, capability) = (world.host_token("corp").await, lines[4]);
    assert_eq!(lines[..4], [&token, &token, "403", "7"]);
    assert!(capability.len() == 43 && lines[5] != "0" && lines[6] == "200", "{lines:?}");
    let environment = &lines[7..];
    assert!(environment.iter().any(|line| line.starts_with("CREDPROXY_CAPABILITY_FD=")), "{environment:?}");
    assert!(!environment.iter().any(|line| line.contains(capability)), "{environment:?}");
    world.daemon.watch_secret(capability);

    // One that is not there is an error that says so, not a refusal by the daemon.
    let lost = r#"exec 9<&-; CREDPROXY_CAPABILITY_FD=9 "$0" token corp"#;
    let (code, _, stderr) = shown(&world.exec(&["--allow", "corp", "--capability"], lost).await);
    assert_eq!((code, stderr.contains("CREDPROXY_CAPABILITY_FD")), (Some(2), true), "{stderr}");
    // Without a capability there is none to be inherited from further out.
    let nested = r#"echo "${CREDPROXY_CAPABILITY_FD-none}""#;
    let (_, stdout, _) = shown(&world.exec(&["--allow", "corp"], nested).await);
    assert_eq!(stdout, "none\n");
}

/// As any program reads a file that it has inherited: from where it stands.
#[tokio::test(flavor = "multi_thread")]
async fn the_capability_is_there_to_be_read_from_the_inherited_file() {
    let world = World::new().await;
    let ask = r#"curl -s -o /dev/null -w '%{http_code}\n' --unix-socket "$CREDPROXY_SOCKET" http://x/v1/health -H"#;
    for read in [
        // Not every `sh` takes a number of two digits there.
        r"bash -c 'cat <&$CREDPROXY_CAPABILITY_FD'",
        r"bash -c 'head -c 99 <&$CREDPROXY_CAPABILITY_FD'",
        r#"python3 -c 'import os; print(os.read(int(os.environ["CREDPROXY_CAPABILITY_FD"]), 999).decode())'"#,
    ] {
        let script = format!("{ask} \"Authorization: Bearer $({read})\"");
        let (code, stdout, stderr) = shown(&world.exec(&["--allow", "corp", "--capability"], &script).await);
        assert_eq!((code, stdout.as_str()), (Some(0), "200\n"), "{read}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_can_be_put_into_the_environment_without_the_account_on_the_socket() {
    let world = World::new().await;
    let script = r#"echo "$A_TOKEN $B_TOKEN"; "$0" --json status; "$0" token corp; echo "$?""#;
    let options = ["--env", "A_TOKEN=corp/work", "--env=B_TOKEN=other", "--allow", "other"];
    let (_, stdout, _) = shown(&world.exec(&options, script).await);
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[0], format!("{} {}", world.host_token("corp?bucket=work").await, world.host_token("other").await));
    assert_eq!(serde_json::from_str::<serde_json::Value>(lines[1]).unwrap()["tokens"].as_array().unwrap().len(), 1);
    assert_eq!(lines[2..], ["7"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_s_sandbox_can_end_before_it() {
    let world = World::new().await;
    let script = "echo \"$CREDPROXY_SOCKET\"; read line; exit 4";
    let mut running = Running::start(&world, &["exec", "--allow", "corp", "--ttl", "1", "--", "sh", "-c", script]);
    let socket = running.line().await;
    let gone = async {
        while fs::exists(&socket).unwrap() {
            sleep(LOOK).await;
        }
    };
    timeout(SOON, gone).await.expect("it outlives its time");
    assert_eq!(world.sandboxes().await, [json!(null); 0]);
    drop(running.child.stdin.take());
    assert_eq!(running.exit_code().await, Some(4));
}
