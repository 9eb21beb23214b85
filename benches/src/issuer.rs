//! The provider on loopback: rotates refresh tokens, counts its calls, and holds its answers back on request.

use std::{
    collections::HashMap,
    net::TcpListener,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use axum::{Router, extract::State, response::IntoResponse, routing::post};
use credproxy::clock::{Clock as _, Monotonic, SystemClock};
use http::{StatusCode, header};
use tokio::{runtime::Builder, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::Fallible;

/// A running provider; ended when dropped.
#[derive(Debug)]
pub(crate) struct Issuer {
    pub(crate) endpoint: String,
    books: Arc<Books>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Books {
    clock: SystemClock,
    /// The number of each chain's living refresh token. One that is not known yet is at whatever is presented.
    chains: Mutex<HashMap<String, u64>>,
    calls: AtomicU64,
    refused: AtomicU64,
    open: watch::Sender<bool>,
    answered: Mutex<Option<Monotonic>>,
}

impl Issuer {
    /// Starts it on the processor of this thread.
    pub(crate) fn start() -> Fallible<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let endpoint = format!("http://{}/token", listener.local_addr()?);
        let books = Arc::new(Books {
            clock: SystemClock::new(),
            chains: Mutex::default(),
            calls: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            open: watch::Sender::new(true),
            answered: Mutex::default(),
        });
        let router = Router::new().route("/token", post(token)).with_state(Arc::clone(&books));
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let served = runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener)?;
                stopped.run_until_cancelled(async { axum::serve(listener, router).await }).await.unwrap_or(Ok(()))
            });
            if let Err(error) = served {
                crate::note(&format!("the provider ended: {error}"));
            }
        });
        Ok(Self { endpoint, books, stop, thread: Some(thread) })
    }

    /// Takes each account's next refresh token for the living one: the servers begin anew.
    pub(crate) fn forget(&self) {
        lock(&self.books.chains).clear();
    }

    /// From now on answers are held back, until [`Issuer::open`].
    pub(crate) fn shut(&self) {
        self.books.open.send_replace(false);
    }

    pub(crate) fn open(&self) {
        self.books.open.send_replace(true);
    }

    /// How often it was called since it was asked last; an error if a refresh token was presented that is not the
    /// living one of its chain.
    pub(crate) fn calls(&self) -> Fallible<u64> {
        match self.books.refused.swap(0, Ordering::SeqCst) {
            0 => Ok(self.books.calls.swap(0, Ordering::SeqCst)),
            refused => Err(format!("{refused} refresh tokens were presented that were not to be").into()),
        }
    }

    /// How long ago it gave its last answer, in milliseconds.
    pub(crate) fn since_answer(&self) -> Fallible<f64> {
        let answered = lock(&self.books.answered).take().ok_or("the provider has answered nothing")?;
        Ok(self.books.clock.monotonic().since(answered).as_secs_f64() * 1e3)
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.stop.cancel();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            crate::note("the provider has panicked");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The refresh token of a chain: its account, and how often it was refreshed.
pub(crate) fn refresh_token(account: &str, number: u64) -> String {
    format!("rt.{account}.{number}")
}

async fn token(State(books): State<Arc<Books>>, body: String) -> impl IntoResponse {
    books.calls.fetch_add(1, Ordering::SeqCst);
    // The channel lives as long as the books.
    drop(books.open.subscribe().wait_for(|open| *open).await);
    let presented = url::form_urlencoded::parse(body.as_bytes()).find(|(name, _)| name == "refresh_token");
    let next = presented.and_then(|(_, text)| {
        let (account, number) = text.strip_prefix("rt.")?.rsplit_once('.')?;
        let number: u64 = number.parse().ok()?;
        let mut chains = lock(&books.chains);
        let living = chains.entry(account.to_owned()).or_insert(number);
        (*living == number).then(|| {
            *living += 1;
            answer(account, *living)
        })
    });
    *lock(&books.answered) = Some(books.clock.monotonic());
    let json = [(header::CONTENT_TYPE, "application/json")];
    if let Some(answer) = next {
        (StatusCode::OK, json, answer)
    } else {
        books.refused.fetch_add(1, Ordering::SeqCst);
        (StatusCode::BAD_REQUEST, json, r#"{"error":"invalid_grant"}"#.to_owned())
    }
}

fn answer(account: &str, number: u64) -> String {
    serde_json::json!({
        "access_token": access_token(number),
        "token_type": "Bearer",
        "expires_in": 3600,
        "scope": "read write",
        "refresh_token": refresh_token(account, number),
    })
    .to_string()
}

/// With one of this length, a whole answer of credproxy's has 221 bytes.
pub(crate) fn access_token(number: u64) -> String {
    format!("at-{number:0>136}")
}
