//! The server itself: its thread, its connections, and what an [`Answer`] does to one.

use std::{
    collections::{HashMap, VecDeque},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use credproxy::clock::{Clock as _, SystemClock};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{oneshot, watch},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use super::{Answer, Outcome, Raw, Seen, Shared, State, logins};

/// Starts the server on a thread of its own; the receiver hears its address.
pub(super) fn launch() -> (Arc<Shared>, DropGuard, oneshot::Receiver<SocketAddr>) {
    let clock = SystemClock::new();
    let state = State {
        port: 0,
        minted: 0,
        access_tokens: HashMap::new(),
        passed: Duration::ZERO,
        families: Vec::new(),
        tokens: HashMap::new(),
        presentations: Vec::new(),
        requests: Vec::new(),
        revocations: Vec::new(),
        script: VecDeque::new(),
        always: Answer::Normal,
        pages: HashMap::new(),
        logins: logins::Logins::default(),
        lifetime: Some(Duration::from_hours(1)),
        rotation: true,
        grace: Duration::ZERO,
    };
    let shared = Arc::new(Shared {
        start: clock.monotonic(),
        clock,
        state: Mutex::new(state),
        wanted: watch::Sender::new(true),
        listening: watch::Sender::new(true),
    });
    let stop = CancellationToken::new();
    let (tell, address) = oneshot::channel();
    let (server, stopped) = (Arc::clone(&shared), stop.clone());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(stopped.run_until_cancelled(async move {
            let listener = listen(0);
            tell.send(listener.local_addr().expect("an address")).expect("the starter waits");
            accept(listener, server).await;
        }));
    });
    (shared, stop.drop_guard(), address)
}

/// On this port; on a free one if it is 0.
fn listen(port: u16) -> TcpListener {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("a new socket");
    socket.bind((Ipv4Addr::LOCALHOST, port).into()).expect("a free port");
    // A herd of clients connects at once; past the backlog a connect would wait a second for its second try.
    socket.listen(4096).expect("a listener")
}

async fn accept(mut listener: TcpListener, shared: Arc<Shared>) {
    let connections = TaskTracker::new();
    let port = listener.local_addr().expect("an address").port();
    let mut wanted = shared.wanted.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = async { drop(wanted.wait_for(|wanted| !wanted).await) } => {
                drop(listener);
                shared.listening.send_replace(false);
                drop(shared.wanted.subscribe().wait_for(|wanted| *wanted).await);
                listener = listen(port);
                shared.listening.send_replace(true);
                continue;
            }
        };
        // Out of file descriptors is the one failure to expect; it passes when connections close.
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        connections.spawn(connection(Arc::clone(&shared), stream));
    }
}

/// One request, one answer, close. A client that goes away in between is its own affair.
async fn connection(shared: Arc<Shared>, mut stream: TcpStream) {
    let Some(request) = read_request(&mut stream).await else { return };
    let arrived = shared.now();
    shared.lock().requests.push(request.clone());
    let path = request.target.split('?').next().unwrap_or_default();
    match path {
        "/token" => token(&shared, stream, &request, arrived).await,
        "/authorize" => {
            let answer = shared.lock().authorize(&request);
            write(stream, &answer).await;
        }
        "/device" => {
            let answer = shared.lock().device(&request);
            write(stream, &answer).await;
        }
        "/revoke" => {
            let revoked = request.parameter("token").unwrap_or_default();
            {
                let mut state = shared.lock();
                state.kill(&revoked);
                state.revocations.push(revoked);
            }
            write(stream, &Raw::new(200, "", "")).await;
        }
        other => {
            let page = shared.lock().pages.get(other).cloned();
            write(stream, &page.unwrap_or_else(|| Raw::new(404, "text/plain", "nothing here"))).await;
        }
    }
}

async fn token(shared: &Shared, stream: TcpStream, request: &Seen, arrived: Duration) {
    let present = || shared.lock().present(request, arrived, shared.now());
    let untouched = || Some(shared.lock().record(request, Outcome::Untouched, arrived));
    let tell = async |stream, (index, answer): (Option<usize>, Raw)| {
        if let Some(index) = index {
            shared.lock().presentations[index].told = Some((answer.clone(), shared.now()));
        }
        write(stream, &answer).await;
    };
    let answer = {
        let mut state = shared.lock();
        state.script.pop_front().unwrap_or_else(|| state.always.clone())
    };
    match answer {
        Answer::Normal => tell(stream, present()).await,
        Answer::Raw(raw) => tell(stream, (untouched(), raw)).await,
        Answer::RotateThenRaw(raw) => tell(stream, (present().0, raw)).await,
        Answer::RotateThenReset => {
            present();
            reset(&stream);
        }
        Answer::ResetBefore => {
            untouched();
            reset(&stream);
        }
        Answer::HoldBefore(gate) => {
            gate.pass().await;
            tell(stream, present()).await;
        }
        Answer::HoldAfter(gate) => {
            let answer = present();
            gate.pass().await;
            tell(stream, answer).await;
        }
        Answer::Delay(delay) => {
            let answer = present();
            tokio::time::sleep(delay).await;
            tell(stream, answer).await;
        }
        Answer::Jitter(most) => {
            let answer = present();
            tokio::time::sleep(shared.jitter(most)).await;
            tell(stream, answer).await;
        }
        Answer::Drip(raw) => {
            untouched();
            drip(stream, &raw).await;
        }
        Answer::Cut(raw) => {
            untouched();
            let body = &raw.body[..raw.body.len() / 2];
            write_bytes(stream, &[head(&raw).as_bytes(), body].concat()).await;
        }
        Answer::Huge { status, bytes } => {
            untouched();
            let body = format!("{{\"padding\":\"{}\"}}", "x".repeat(bytes.saturating_sub(14)));
            write(stream, &Raw::new(status, "application/json", body)).await;
        }
        Answer::Silence => {
            untouched();
            wait_for_close(stream).await;
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).ok()?;
    let mut body = bytes.split_off(end + 4);
    let mut lines = head.split("\r\n");
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut seen = Seen { method, target, headers, body: String::new() };
    let length = seen.header("content-length").map_or(Some(0), |length| length.parse().ok())?;
    while body.len() < length {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    seen.body = String::from_utf8(body).ok()?;
    Some(seen)
}

fn head(answer: &Raw) -> String {
    let mut headers = answer.headers.clone();
    if !answer.content_type.is_empty() {
        headers.push(("Content-Type".into(), answer.content_type.clone()));
    }
    headers.push(("Cache-Control".into(), "no-store".into()));
    headers.push(("Content-Length".into(), answer.body.len().to_string()));
    headers.push(("Connection".into(), "close".into()));
    let lines: Vec<String> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("HTTP/1.1 {} Scripted\r\n{}\r\n", answer.status, lines.concat())
}

async fn write(stream: TcpStream, answer: &Raw) {
    write_bytes(stream, &[head(answer).as_bytes(), &answer.body].concat()).await;
}

async fn write_bytes(mut stream: TcpStream, bytes: &[u8]) {
    if stream.write_all(bytes).await.is_ok() && stream.shutdown().await.is_ok() {
        wait_for_close(stream).await;
    }
}

async fn drip(mut stream: TcpStream, answer: &Raw) {
    if stream.write_all(head(answer).as_bytes()).await.is_err() {
        return;
    }
    for byte in &answer.body {
        if stream.write_all(&[*byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Closing with unread bytes would reset the connection under the answer.
async fn wait_for_close(mut stream: TcpStream) {
    let mut scrap = [0; 256];
    while matches!(stream.read(&mut scrap).await, Ok(count) if count > 0) {}
}

fn reset(stream: &TcpStream) {
    stream.set_zero_linger().expect("a living socket");
}
