//! What the document promises, asked for by a program that somebody else wrote and that knows the document alone:
//! schemathesis. It speaks TCP.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncWriteExt as _, copy, sink},
    net::{TcpListener, UnixStream},
    process::Command,
    task::JoinSet,
    time::timeout,
};

use crate::sandbox_boundary::World;

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/schemathesis");
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.yaml");

/// How many requests for each operation and each kind of test.
const EXAMPLES: &str = "50";

/// Far more than it takes.
const LIMIT: Duration = Duration::from_secs(150);

/// A port of the loopback interface that leads to the socket, for as long as the tasks are kept.
async fn forward(socket: &Path) -> (u16, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, socket) = (listener.local_addr().unwrap().port(), socket.to_owned());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut outside, _) = listener.accept().await.unwrap();
            let socket = socket.clone();
            connections.spawn(async move {
                let mut inside = UnixStream::connect(&socket).await.unwrap();
                let ((mut asked, mut answers), (mut answered, mut asks)) = (outside.split(), inside.split());
                let asking = async {
                    // A daemon that has refused the head takes no body; a reset for that would overtake its answer.
                    if copy(&mut asked, &mut asks).await.is_err() {
                        drop(copy(&mut asked, &mut sink()).await);
                    }
                    // It may be gone.
                    drop(asks.shutdown().await);
                };
                let answering = async {
                    drop(copy(&mut answered, &mut answers).await);
                    drop(answers.shutdown().await);
                };
                tokio::join!(asking, answering);
            });
        }
    });
    (port, tasks)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_knows_the_document_alone_finds_nothing_that_is_not_in_it() {
    let world = World::new().await;
    let (port, _forwarder) = forward(&world.daemon.socket()).await;
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(Path::new(DIRECTORY).join("installed/bin/schemathesis"));
    command.arg("--config-file").arg(Path::new(DIRECTORY).join("schemathesis.toml"));
    command.args(["run", DOCUMENT, "--url", &format!("http://127.0.0.1:{port}")]);
    command.args(["--max-examples", EXAMPLES, "--continue-on-failure", "--no-shrink"]);
    command
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("PYTHONPATH", DIRECTORY)
        .current_dir(&directory)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(LIMIT, command.output()).await.expect("it ends").unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{}", said.split("SUMMARY").last().unwrap_or_default());
}
