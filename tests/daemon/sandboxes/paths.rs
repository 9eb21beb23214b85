//! Sandboxes of a daemon whose host's socket has as long a path as there can be.

use std::{
    fs::{self, DirBuilder},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
};

use serde_json::{Value, json};

use credproxy::socket_path::MAX_PATH_BYTES;

use crate::{
    sandboxes::{SOON, ask, text},
    support::daemon::{Daemon, Home},
};

/// A daemon whose host's socket's path has so many bytes, in the runtime directory that `runtime` names.
async fn start(home: &std::sync::Arc<Home>, length: usize, runtime: &Path) -> (Daemon, std::path::PathBuf) {
    let name = "credproxy.sock";
    let above = home.path().join("run");
    let filler = length - above.as_os_str().len() - 1 - 1 - name.len();
    let socket = above.join("x".repeat(filler)).join(name);
    assert_eq!(socket.as_os_str().len(), length);
    let config = format!("[sockets.host]\npath = {socket:?}\nrole = \"host\"\n");
    let mut daemon = Daemon::prepare(home, "a", &config, &[("XDG_RUNTIME_DIR", runtime.to_str().unwrap())]);
    daemon.spawn();
    let answers = async {
        while !socket.exists() || ask_health(&socket).await != Some(200) {
            tokio::time::sleep(crate::sandboxes::LOOK).await;
        }
    };
    tokio::time::timeout(SOON, answers).await.expect("it answers");
    (daemon, socket)
}

async fn ask_health(socket: &Path) -> Option<u16> {
    tokio::net::UnixStream::connect(socket).await.ok()?;
    Some(ask(socket, "GET", "/v1/health", None, "").await.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_fits_wherever_the_hosts_socket_does() {
    for length in [60, 75, 86, 87, 90, 100, MAX_PATH_BYTES] {
        let home = Home::new();
        let runtime = home.path().join("r");
        DirBuilder::new().mode(0o700).create(&runtime).unwrap();
        let (mut daemon, host) = start(&home, length, &runtime).await;
        let made = ask(&host, "POST", "/v1/sandboxes", None, &json!({"ttl": 600}).to_string()).await;
        assert_eq!(made.status, 201, "{length}: {}", made.text());
        let told: Value = made.json();
        let socket = Path::new(text(&told["socket"])).to_owned();
        assert!(socket.as_os_str().len() <= MAX_PATH_BYTES, "{length}: {}", socket.display());
        let beside = socket.starts_with(host.with_file_name("sandboxes"));
        assert!(beside || socket.starts_with(runtime.join("credproxy")), "{length}: {}", socket.display());
        assert_eq!(beside, length <= 86, "{length}");
        assert_eq!(ask_health(&socket).await, Some(200), "{length}");
        let directory = socket.parent().unwrap();
        assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o777, 0o700);

        // It is there again after a death, and gone when it is deleted.
        daemon.kill9().await;
        daemon.spawn();
        let answers = async {
            while ask_health(&host).await != Some(200) {
                tokio::time::sleep(crate::sandboxes::LOOK).await;
            }
        };
        tokio::time::timeout(SOON, answers).await.expect("it answers again");
        let listed = ask(&host, "GET", "/v1/sandboxes", None, "").await.json();
        assert_eq!(listed["sandboxes"], json!([told]), "{length}");
        assert_eq!(ask_health(&socket).await, Some(200), "{length}");
        let path = format!("/v1/sandboxes/{}", text(&told["id"]));
        assert_eq!(ask(&host, "DELETE", &path, None, "").await.status, 204);
        assert!(!directory.exists(), "{length}");

        let arguments = ["--socket", host.to_str().unwrap(), "exec", "--", "sh", "-c", "test -S \"$CREDPROXY_SOCKET\""];
        let ran = daemon.command(&arguments, "").await;
        assert_eq!(ran.status.code(), Some(0), "{length}: {ran:?}");
    }
}

/// As in the report: no runtime directory, and a home whose path is longer than some.
#[tokio::test(flavor = "multi_thread")]
async fn exec_works_without_a_runtime_directory() {
    let home = Home::new();
    let long = home.path().join("h".repeat(30));
    DirBuilder::new().mode(0o700).create(&long).unwrap();
    let (long, temporary) = (long.to_str().unwrap(), home.path().to_str().unwrap());
    let env = [("XDG_RUNTIME_DIR", ""), ("XDG_STATE_HOME", ""), ("HOME", long), ("TMPDIR", temporary)];
    let socket = Path::new(long).join(".local/state/credproxy/host/credproxy.sock");
    let config = format!("[sockets.host]\npath = {socket:?}\nrole = \"host\"\n");
    let mut daemon = Daemon::prepare(&home, "a", &config, &env);
    daemon.spawn();
    let answers = async {
        while ask_health(&socket).await != Some(200) {
            tokio::time::sleep(crate::sandboxes::LOOK).await;
        }
    };
    tokio::time::timeout(SOON, answers).await.expect("it answers");
    let arguments = ["--socket", socket.to_str().unwrap(), "exec", "--", "sh", "-c", "test -S \"$CREDPROXY_SOCKET\""];
    let ran = daemon.command(&arguments, "").await;
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
}
