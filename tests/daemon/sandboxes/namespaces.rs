//! Sandboxes with namespaces of their own, made by bubblewrap around what `credproxy exec` gives.

use std::process::Command;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::{
    sandboxes::{World, exec::Running},
    support::skip::skip,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_credproxy");

const CONTAINERS: &str = include_str!("../../../docs/containers.md");

/// The shell's lines under a mark of the document.
fn documented(mark: &str) -> &'static str {
    let (_, rest) = CONTAINERS.split_once(&format!("<!-- {mark} -->\n```sh\n")).unwrap_or_else(|| panic!("no {mark}"));
    rest.split("```").next().unwrap()
}

/// Whether this machine lets bubblewrap make namespaces. That it is not there is a fault.
fn possible() -> bool {
    let tried = Command::new("bwrap").args(["--unshare-all", "--ro-bind", "/", "/", "true"]).output();
    let tried = tried.expect("the tests need bubblewrap: scripts/test installs it");
    if !tried.status.success() {
        skip(&String::from_utf8_lossy(&tried.stderr));
    }
    tried.status.success()
}

/// The words that run a script in a sandbox which has the system's programs, ours, and the socket's directory at
/// `/run/credproxy`.
fn wrapped(options: &str, script: &str) -> Vec<String> {
    let wrap = format!(
        "exec bwrap --unshare-all --die-with-parent --clearenv --ro-bind /usr /usr --symlink usr/bin /bin \
         --symlink usr/lib /lib --symlink usr/lib64 /lib64 --proc /proc --dev /dev --tmpfs /tmp \
         --ro-bind \"$1\" /credproxy --ro-bind \"${{CREDPROXY_SOCKET%/*}}\" /run/credproxy --setenv PATH /usr/bin \
         --setenv CREDPROXY_SOCKET /run/credproxy/credproxy.sock {options} -- sh -c \"$2\""
    );
    ["exec", "--allow", "corp", "--", "sh", "-c", &wrap, "sh", PROGRAM, script].map(str::to_owned).to_vec()
}

fn start(world: &World, options: &str, script: &str) -> Running {
    let words = wrapped(options, script);
    Running::start(world, &words.iter().map(String::as_str).collect::<Vec<_>>())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_its_account_and_nothing_else_and_outlives_the_daemon() {
    if !possible() {
        return;
    }
    let mut world = World::new().await;
    let host = world.daemon.socket();
    let script = format!(
        r#"
        /credproxy token corp
        /credproxy token other 2>/dev/null; echo "$?"
        /credproxy --socket '{host}' status 2>/dev/null; echo "$?"
        echo /run/credproxy/*; ls /run | wc -l
        tail -n +3 /proc/net/dev | wc -l
        touch /run/credproxy/x 2>/dev/null; echo "$?"
        echo ready; read line
        /credproxy token corp; /credproxy token other 2>/dev/null; echo "$?"
        read line; exit 6
        "#,
        host = host.display(),
    );
    let mut inside = start(&world, "", &script);
    assert_eq!(inside.line().await, world.host_token("corp").await);
    assert_eq!(inside.line().await, "7", "another account");
    assert_eq!(inside.line().await, "5", "the host's socket");
    assert_eq!(inside.line().await, "/run/credproxy/credproxy.sock");
    assert_eq!((inside.line().await.as_str(), inside.line().await.as_str()), ("1", "1"), "no network but loopback");
    assert_eq!(inside.line().await, "1", "it is mounted read-only");
    assert_eq!(inside.line().await, "ready");

    // Another process, another socket, in the directory that is mounted.
    world.daemon.kill9().await;
    world.launch().await;
    let mut stdin = inside.child.stdin.take().unwrap();
    stdin.write_all(b"\n").await.unwrap();
    assert_eq!(inside.line().await, world.host_token("corp").await);
    assert_eq!(inside.line().await, "7");

    assert_eq!(world.directories().len(), 1);
    stdin.write_all(b"\n").await.unwrap();
    assert_eq!(inside.exit_code().await, Some(6));
    world.all_gone().await;
}

/// The kernel tells the daemon who a peer is outside.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_may_call_its_user_what_it_likes() {
    if !possible() {
        return;
    }
    let world = World::new().await;
    let mut inside = start(&world, "--uid 4242", "id -u; /credproxy token corp");
    assert_eq!(inside.line().await, "4242");
    assert_eq!(inside.line().await, world.host_token("corp").await);
    assert_eq!(inside.exit_code().await, Some(0));
}

/// Runs lines of the document in a shell, in which `credproxy` is the program beside this daemon.
async fn run(world: &World, lines: &str) -> String {
    let lines = lines.replace("anthropic", "corp").replace("github", "other");
    let script = format!(
        "credproxy() {{ '{PROGRAM}' --socket '{}' \"$@\"; }}\nset -e\n{lines}",
        world.daemon.socket().display()
    );
    let output = tokio::process::Command::new("sh").args(["-c", &script]).kill_on_drop(true).output().await.unwrap();
    assert!(output.status.success(), "{lines}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lines_of_the_document_work_as_they_are_written() {
    let world = World::new().await;
    if possible() {
        let token: Value = serde_json::from_str(&run(&world, documented("bubblewrap")).await).unwrap();
        assert_eq!(token["access_token"].as_str().unwrap(), world.host_token("corp").await);
    }

    let capability = documented("capability").replace('\'', "'\\''");
    let token = run(&world, &format!("credproxy exec --allow corp --capability -- sh -c '{capability}'")).await;
    let token: Value = serde_json::from_str(&token).unwrap();
    assert_eq!(token["access_token"].as_str().unwrap(), world.host_token("corp").await);

    // A person reads the id off the first answer.
    let lines = documented("by the API")
        .replace("$XDG_RUNTIME_DIR/credproxy/host/credproxy.sock", world.daemon.socket().to_str().unwrap());
    let (first, rest) = lines.rsplit_once("\n\n").unwrap();
    let asks = first.split_once("\n\n").unwrap().0;
    let made: Value = serde_json::from_str(&run(&world, first).await).unwrap();
    assert_eq!(world.sandboxes().await, std::slice::from_ref(&made));
    run(&world, &format!("{asks}\nID={}\n{rest}", made["id"].as_str().unwrap())).await;
    world.all_gone().await;
}
