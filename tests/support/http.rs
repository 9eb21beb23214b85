//! A small HTTP/1.1 client, and the check that every answer of the daemon goes through.
//!
//! Invariant: no answer that a test sees holds the text `refresh_token` (but for `/openapi.yaml`) or a marked refresh
//! token; a test that gets one fails.

use std::{
    io::ErrorKind,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::{sleep, timeout},
};

/// More than the 35 s that a shutdown waits for a flight, so that the daemon's own limits are seen to work.
const LIMIT: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Response {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("a header is text"))
    }

    /// `Retry-After`, in seconds as the daemon sends it.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.header("retry-after").map(|value| Duration::from_secs(value.parse().expect("Retry-After is a number")))
    }
}

/// The status of a refusal, and its code.
pub(crate) fn code(answer: &Response) -> (u16, String) {
    (answer.status, answer.json()["code"].as_str().unwrap_or_default().to_owned())
}

/// All that was answered, headers and bodies, one after the other: for secrets that become known later.
pub(crate) type Transcript = Arc<Mutex<Vec<u8>>>;

/// One connection, good for any number of requests.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    transcript: Option<Transcript>,
    _driver: JoinSet<()>,
}

impl Connection {
    /// To the daemon: every answer is checked, and kept in `transcript`.
    pub(crate) async fn to_daemon(socket: &Path, transcript: Transcript) -> Self {
        Self::over_daemon(open(socket).await, transcript).await
    }

    /// The same over a stream that was opened already.
    pub(crate) async fn over_daemon(stream: UnixStream, transcript: Transcript) -> Self {
        Self::over(stream, Some(transcript)).await
    }

    /// To anything else: answers are not checked.
    pub(crate) async fn to_provider(address: &str) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), None).await
    }

    async fn over<S>(stream: S, transcript: Option<Transcript>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        let mut driver = JoinSet::new();
        // Its error is the request's, too.
        driver.spawn(async { drop(connection.await) });
        Self { sender, transcript, _driver: driver }
    }

    /// An error when the connection ends before the answer does.
    pub(crate) async fn try_request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Response, hyper::Error> {
        let mut request = http::Request::builder().method(method).uri(path);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "localhost");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        let exchange = async {
            self.sender.ready().await?;
            let (head, body) = self.sender.send_request(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>(Response { status: head.status.as_u16(), headers: head.headers, body })
        };
        let response = timeout(LIMIT, exchange).await.unwrap_or_else(|_| panic!("no answer to {method} {path}"))?;
        if let Some(transcript) = &self.transcript {
            let mut answer = format!("{:?}\n", response.headers).into_bytes();
            answer.extend_from_slice(&response.body);
            if path != "/openapi.yaml" {
                check(&answer);
            }
            transcript.lock().unwrap().append(&mut answer);
        }
        Ok(response)
    }

    pub(crate) async fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response {
        let answer = self.try_request(method, path, headers, body).await;
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error:?}"))
    }
}

/// One request to the daemon, on a connection of its own.
pub(crate) async fn request(
    socket: &Path,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Response {
    Connection::to_daemon(socket, Transcript::default()).await.request(method, path, headers, body).await
}

/// Sends these bytes to the daemon and reads until it closes the connection, or for as long as `limit`.
pub(crate) async fn raw(socket: &Path, bytes: &[u8], limit: Duration) -> Vec<u8> {
    let mut stream = open(socket).await;
    let mut answer = Vec::new();
    let exchange = async {
        // The daemon may refuse, answer and close before all is written.
        drop(stream.write_all(bytes).await);
        drop(stream.read_to_end(&mut answer).await);
    };
    drop(timeout(limit, exchange).await);
    check(&answer);
    answer
}

/// What a process of the user `uid` gets on the socket: `refused` to connect, or the answer.
pub(crate) async fn ask_as(uid: u32, socket: &Path) -> String {
    const ASK: &str = "use IO::Socket::UNIX; $SIG{PIPE} = 'IGNORE'; \
        my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or do { print 'refused'; exit }; \
        print $s \"GET /v1/tokens/corp HTTP/1.0\\r\\n\\r\\n\"; $s->flush; local $/; my $a = <$s>; print defined $a ? $a : '';";
    let output = tokio::process::Command::new("setpriv")
        .args([&format!("--reuid={uid}"), "--clear-groups", "perl", "-e", ASK])
        .arg(socket)
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Connects. A full backlog is an error on a Unix socket, not a wait, so it is tried again.
pub(crate) async fn open(socket: &Path) -> UnixStream {
    let connecting = async {
        loop {
            match UnixStream::connect(socket).await {
                Err(error) if error.kind() == ErrorKind::WouldBlock => sleep(Duration::from_millis(1)).await,
                other => break other,
            }
        }
    };
    let connected = timeout(LIMIT, connecting).await.expect("the daemon accepts no connection");
    connected.unwrap_or_else(|error| panic!("{}: {error}", socket.display()))
}

#[track_caller]
fn check(answer: &[u8]) {
    let answer = String::from_utf8_lossy(answer);
    assert!(!answer.to_ascii_lowercase().contains("refresh_token"), "an answer speaks of a refresh token: {answer}");
    assert!(!answer.contains("canary-rt-"), "a refresh token in an answer: {answer}");
}
