//! What anybody would write first: joins the callers of an account, and saves each refresh durably before it answers.
//!
//! `prototype SOCKET DATABASE TOKEN_ENDPOINT`. No sealing, no mark of a presentation, no lease, no cooldown, no policy,
//! no rule for lost answers: it is the limit that credproxy is measured beside, and nothing to use.

use std::{
    collections::HashMap,
    env,
    error::Error,
    str::FromStr as _,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::{StatusCode, header},
    response::IntoResponse,
    routing::post,
};
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use serde::Deserialize;
use sqlx::{
    ConnectOptions as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use tokio::net::UnixListener;
use tokio_util::task::TaskTracker;

type Flight = Shared<BoxFuture<'static, Result<Bytes, ()>>>;

struct Prototype {
    endpoint: String,
    http: reqwest::Client,
    tasks: TaskTracker,
    flights: Mutex<HashMap<String, Flight>>,
    /// The living refresh tokens.
    chains: Mutex<HashMap<String, String>>,
    database: tokio::sync::Mutex<SqliteConnection>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [socket, database, endpoint] = arguments.as_slice() else {
        return Err("usage: prototype SOCKET DATABASE TOKEN_ENDPOINT".into());
    };
    let options = SqliteConnectOptions::from_str(&format!("sqlite://{database}"))?
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut connection = options.disable_statement_logging().connect().await?;
    sqlx::query("CREATE TABLE records (account TEXT PRIMARY KEY, answer BLOB NOT NULL) STRICT")
        .execute(&mut connection)
        .await?;
    rustls::crypto::ring::default_provider().install_default().map_err(|_| "there are two providers of TLS")?;
    let state = Arc::new(Prototype {
        endpoint: endpoint.clone(),
        http: reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?,
        tasks: TaskTracker::new(),
        flights: Mutex::default(),
        chains: Mutex::default(),
        database: tokio::sync::Mutex::new(connection),
    });
    let router = Router::new().route("/v1/tokens/{provider}/refresh", post(refresh)).with_state(state);
    Ok(axum::serve(UnixListener::bind(socket)?, router).await?)
}

async fn refresh(
    State(prototype): State<Arc<Prototype>>,
    Path(provider): Path<String>,
    Query(mut query): Query<HashMap<String, String>>,
) -> impl IntoResponse {
    let bucket = query.remove("bucket").unwrap_or_else(|| "default".to_owned());
    let account = format!("{provider}/{bucket}");
    let flight = {
        let mut flights = prototype.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.entry(account.clone()).or_insert_with(|| spawn_flight(Arc::clone(&prototype), account)).clone()
    };
    match flight.await {
        Ok(answer) => (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], answer),
        Err(()) => (StatusCode::BAD_GATEWAY, [(header::CONTENT_TYPE, "text/plain")], Bytes::new()),
    }
}

/// The flight outlives its callers.
fn spawn_flight(prototype: Arc<Prototype>, account: String) -> Flight {
    let tasks = prototype.tasks.clone();
    let flown = tasks.spawn(async move {
        let landed = prototype.fly(&account).await.map_err(|_| ());
        prototype.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&account);
        landed
    });
    async move { flown.await.unwrap_or(Err(())) }.boxed().shared()
}

#[derive(Deserialize)]
struct Issued {
    refresh_token: String,
}

impl Prototype {
    async fn fly(&self, account: &str) -> Result<Bytes, Box<dyn Error + Send + Sync>> {
        let known = self.chains.lock().unwrap_or_else(PoisonError::into_inner).get(account).cloned();
        let presented = known.unwrap_or_else(|| format!("rt.prototype-{account}.0"));
        let form = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("grant_type", "refresh_token"), ("refresh_token", &presented), ("client_id", "bench")])
            .finish();
        let request = self.http.post(&self.endpoint).header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        let answer = request.body(form).send().await?.error_for_status()?.bytes().await?;
        let issued: Issued = serde_json::from_slice(&answer)?;
        let mut database = self.database.lock().await;
        sqlx::query("INSERT OR REPLACE INTO records (account, answer) VALUES (?1, ?2)")
            .bind(account)
            .bind(&answer[..])
            .execute(&mut *database)
            .await?;
        drop(database);
        self.chains.lock().unwrap_or_else(PoisonError::into_inner).insert(account.to_owned(), issued.refresh_token);
        Ok(answer)
    }
}
