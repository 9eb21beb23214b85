//! The listener for the browser's redirect (RFC 8252 section 7.3), and the page that it shows.
//!
//! Invariants:
//! 1. It listens on a loopback address only, for one path, while its login is pending and for a moment longer.
//! 2. A page contains nothing of the request: only our own words, the account's name, and a filtered error code.
//! 3. Only a request with the login's state changes anything ([`PendingResponse`]).
//!
//! Must not know: codes, verifiers, the store.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinSet,
};

use super::{LoginError, Progress, response::PendingResponse, session::Session};
use crate::account::Account;

/// A browser opens a few connections at once.
const MAX_CONNECTIONS: usize = 32;

/// A browser sends its request as soon as it has connected.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// For a page that is loaded twice. Short, because a person who starts again must not wait long for a fixed port.
const LINGER_AFTER_END: Duration = Duration::from_secs(2);

/// The time for writing the last responses.
const LAST_RESPONSES_TIMEOUT: Duration = Duration::from_secs(1);

/// The interval between attempts to bind a port that the previous login may still hold.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

const PAGE: &str = include_str!("page.html");

/// A bound listener.
#[derive(Debug)]
pub(super) struct RedirectListener {
    listener: TcpListener,
    path: String,
    account: Account,
}

/// Binds a free port on which nothing will answer.
pub(super) fn reserve(address: IpAddr) -> Result<TcpSocket, LoginError> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let bound = socket.and_then(|socket| socket.bind((address, 0).into()).map(|()| socket));
    bound.map_err(|error| {
        tracing::warn!(%error, "cannot reserve a port on loopback");
        LoginError::Internal
    })
}

impl RedirectListener {
    /// Binds `place` for requests to `path`. While the port is in use, `taken` is called at each attempt.
    pub(super) async fn bind(
        place: SocketAddr,
        path: &str,
        account: &Account,
        taken: impl Fn(),
    ) -> Result<Self, LoginError> {
        let listening = async {
            loop {
                match TcpListener::bind(place).await {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                        taken();
                        tokio::time::sleep(RETRY_INTERVAL).await;
                    }
                    bound => return bound,
                }
            }
        };
        match tokio::time::timeout(LINGER_AFTER_END + LAST_RESPONSES_TIMEOUT, listening).await {
            Ok(Ok(listener)) => Ok(Self { listener, path: path.to_owned(), account: account.clone() }),
            Ok(Err(error)) => {
                tracing::warn!(%error, %place, "cannot listen on loopback");
                Err(LoginError::Internal)
            }
            Err(_) => Err(LoginError::PortTaken { wait: LINGER_AFTER_END + LAST_RESPONSES_TIMEOUT }),
        }
    }

    /// The bound port.
    pub(super) fn port(&self) -> Result<u16, LoginError> {
        self.listener.local_addr().map(|place| place.port()).map_err(|_| LoginError::Internal)
    }

    /// Serves until the login has ended, and a moment longer unless it was cancelled.
    pub(super) async fn serve(self, session: &Arc<Session>) {
        let Self { listener, path, account } = self;
        let handler = Arc::new(RedirectHandler { path, account, session: Arc::clone(session) });
        let mut connections = JoinSet::new();
        let over = async {
            session.ended().await;
            session.cancelled.run_until_cancelled(tokio::time::sleep(LINGER_AFTER_END)).await;
        };
        tokio::pin!(over);
        loop {
            let accepted = tokio::select! {
                () = &mut over => break,
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(RETRY_INTERVAL).await;
                continue;
            };
            let handler = Arc::clone(&handler);
            connections.spawn(async move {
                let service = service_fn(move |request| {
                    let handler = Arc::clone(&handler);
                    async move { Ok::<_, Infallible>(handler.answer(&request).await) }
                });
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection on loopback broke");
                }
            });
        }
        drop(listener);
        let last = async { while connections.join_next().await.is_some() {} };
        // A connection that has not read the page by now is dropped.
        tokio::time::timeout(LAST_RESPONSES_TIMEOUT, last).await.ok();
    }
}

/// The state shared by all connections.
struct RedirectHandler {
    path: String,
    account: Account,
    session: Arc<Session>,
}

impl RedirectHandler {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != self.path {
            return page(StatusCode::NOT_FOUND, "Nothing here", "This address is for logins alone.", "");
        }
        if request.method() != Method::GET {
            let mut refusal = page(StatusCode::METHOD_NOT_ALLOWED, "Nothing here", "A browser asks with GET.", "");
            refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            return refusal;
        }
        let query = request.uri().query().unwrap_or_default();
        let response = self.session.pending_response.as_deref().and_then(|pending_response: &PendingResponse| {
            let response = pending_response.parse_query(query).ok()?;
            // The second of two responses gets the page of the first.
            pending_response.settle(response).ok();
            Some(())
        });
        if response.is_none() {
            return page(
                StatusCode::BAD_REQUEST,
                "Not this login",
                "What the browser brought does not belong to the login that is waiting. Nothing was changed.",
                "Go back to the terminal and open the address that it shows.",
            );
        }
        match self.session.ended().await {
            Progress::Complete => page(
                StatusCode::OK,
                "Logged in",
                &format!("credproxy has a grant for <b>{}</b>.", self.account),
                "You can close this page.",
            ),
            Progress::Failed(error) => page(
                StatusCode::BAD_REQUEST,
                "Not logged in",
                &format!("There is no new grant for <b>{}</b>: {error}.", self.account),
                &format!("Begin again in the terminal: <code>credproxy login {}</code>", self.account),
            ),
            Progress::Pending => page(StatusCode::SERVICE_UNAVAILABLE, "Not logged in", "The login goes on.", ""),
        }
    }
}

/// Everything but the title is HTML: account names and error codes contain no special characters of HTML, and the rest
/// is our own.
fn page(status: StatusCode, title: &str, text: &str, advice: &str) -> Response<Full<Bytes>> {
    // A tick or a cross.
    let (icon, light, dark) = if status.is_success() {
        ("M7 12.5l3.5 3.5 6.5-7.5", "#1a7f4b", "#4cc38a")
    } else {
        ("M8.5 8.5l7 7M15.5 8.5l-7 7", "#b3372f", "#f0786f")
    };
    let html = PAGE
        .replace("{title}", title)
        .replace("{text}", text)
        .replace("{advice}", advice)
        .replace("{icon}", icon)
        .replace("{light}", light)
        .replace("{dark}", dark);
    let mut response = Response::new(Full::from(html));
    *response.status_mut() = status;
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

const HEADERS: [(HeaderName, &str); 5] = [
    (header::CONTENT_TYPE, "text/html; charset=utf-8"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
    (header::CACHE_CONTROL, "no-store"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
];
