//! A front before an authorization server: passes everything on, keeps a record of the forms that were sent and what
//! was answered, and makes faults. It is what the daemon takes for the server, whoever wrote that.
//!
//! It lets one request through at a time: not every server that keeps its records in a file bears two.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::Bytes;
use http::{HeaderName, Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinSet};
use url::form_urlencoded;

use super::{http::Connection, oidc::Issued};

/// What is between two neighbours alone (RFC 9110 section 7.6.1), or made anew.
const NOT_PASSED_ON: [HeaderName; 4] =
    [header::CONNECTION, header::CONTENT_LENGTH, header::DATE, header::TRANSFER_ENCODING];

/// A form that was posted, and the answer to it.
#[derive(Debug, Clone)]
pub(crate) struct Exchange {
    form: Vec<(String, String)>,
    /// As the server gave it, whether or not it was passed on.
    pub(crate) status: u16,
    /// `Null` when it is not JSON.
    pub(crate) answer: Value,
}

impl Exchange {
    pub(crate) fn member(&self, name: &str) -> Option<&str> {
        self.form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What befalls the next presentation of one refresh token.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The answer to it is dropped, and the connection closed.
    Lose,
    /// It asks for this scope.
    Narrow(&'static str),
}

#[derive(Default)]
struct Shared {
    /// Host and port of the server.
    upstream: OnceLock<String>,
    turn: tokio::sync::Mutex<()>,
    exchanges: Mutex<Vec<Exchange>>,
    faults: Mutex<Vec<(String, Fault)>>,
}

/// Ends with this value.
pub(crate) struct Front {
    origin: String,
    side_door: String,
    shared: Arc<Shared>,
    _running: JoinSet<()>,
}

impl Front {
    /// Listens on two free ports of 127.0.0.1. Nobody may come before [`Self::stands_before`] was called.
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let mut running = JoinSet::new();
        let mut addresses = Vec::new();
        for recorded in [true, false] {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            running.spawn(listen(listener, Arc::clone(&shared), recorded));
        }
        let [front, side] = addresses[..] else { unreachable!("two doors") };
        Self { origin: format!("http://{front}"), side_door: side.to_string(), shared, _running: running }
    }

    /// `http://127.0.0.1:PORT`, without a slash at the end.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// Host and port for those whose requests are not recorded, and suffer no faults.
    pub(crate) fn side_door(&self) -> &str {
        &self.side_door
    }

    /// From now on requests go to this host and port.
    pub(crate) fn stands_before(&self, upstream: &str) {
        self.shared.upstream.set(upstream.to_owned()).expect("it stands before one server");
    }

    /// Every form that was posted, oldest first.
    pub(crate) fn exchanges(&self) -> Vec<Exchange> {
        self.shared.exchanges().clone()
    }

    /// The presentations of this refresh token.
    pub(crate) fn presentations(&self, refresh_token: &str) -> Vec<Exchange> {
        let presents = |exchange: &Exchange| {
            exchange.member("grant_type") == Some("refresh_token")
                && exchange.member("refresh_token") == Some(refresh_token)
        };
        self.shared.exchanges().iter().filter(|exchange| presents(exchange)).cloned().collect()
    }

    /// Every token that was handed out.
    pub(crate) fn issued(&self) -> Issued {
        let exchanges = self.exchanges();
        let tokens = |name| {
            let named = exchanges.iter().filter_map(|exchange| exchange.answer[name].as_str().map(str::to_owned));
            named.collect()
        };
        Issued { access_tokens: tokens("access_token"), refresh_tokens: tokens("refresh_token") }
    }

    /// The next presentation of this refresh token has that fault.
    pub(crate) fn fault(&self, refresh_token: &str, fault: Fault) {
        self.shared.faults.lock().unwrap().push((refresh_token.to_owned(), fault));
    }
}

impl Shared {
    fn exchanges(&self) -> MutexGuard<'_, Vec<Exchange>> {
        self.exchanges.lock().unwrap()
    }

    /// Takes the fault that is meant for this form.
    fn fault(&self, form: &[(String, String)]) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let meant = |token: &String| form.iter().any(|(name, value)| name == "refresh_token" && value == token);
        let place = faults.iter().position(|(token, _)| meant(token))?;
        Some(faults.remove(place).1)
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>, recorded: bool) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(|request| pass_on(&shared, recorded, request));
            // An error is what the other side makes of it, or a fault.
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
        while connections.try_join_next().is_some() {}
    }
}

/// The answer is lost on purpose.
#[derive(Debug, thiserror::Error)]
#[error("the answer is lost")]
struct Lost;

async fn pass_on(
    shared: &Shared,
    recorded: bool,
    request: Request<Incoming>,
) -> Result<http::Response<Full<Bytes>>, Lost> {
    let (head, body) = request.into_parts();
    let Ok(mut body) = body.collect().await.map(http_body_util::Collected::to_bytes) else { return Err(Lost) };
    let is_form =
        head.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/x-www-form-urlencoded");
    let form: Option<Vec<(String, String)>> =
        (recorded && is_form).then(|| form_urlencoded::parse(&body).into_owned().collect());
    let fault = form.as_ref().and_then(|form| shared.fault(form));
    if let Some(Fault::Narrow(scope)) = fault {
        body = format!("{}&scope={scope}", String::from_utf8_lossy(&body)).into();
    }
    let headers = head.headers.iter().filter(|(name, _)| !NOT_PASSED_ON.contains(name));
    let headers: Vec<_> = headers.map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    let upstream = shared.upstream.get().expect("a server behind the front");
    let target = head.uri.path_and_query().unwrap().as_str();
    let turn = shared.turn.lock().await;
    let answer = Connection::to_provider(upstream).await.request(head.method.as_str(), target, &headers, body).await;
    if let Some(form) = form {
        shared.exchanges().push(Exchange {
            form,
            status: answer.status,
            answer: serde_json::from_slice(&answer.body).unwrap_or_default(),
        });
    }
    drop(turn);
    if matches!(fault, Some(Fault::Lose)) {
        return Err(Lost);
    }
    let mut response = http::Response::new(Full::from(answer.body));
    *response.status_mut() = answer.status.try_into().unwrap();
    for (name, value) in answer.headers.iter().filter(|(name, _)| !NOT_PASSED_ON.contains(name)) {
        response.headers_mut().append(name, value.clone());
    }
    Ok(response)
}
