//! A small authorization server on loopback, for `serve --dev` alone.
//!
//! It knows one grant of the token endpoint: refresh tokens are single-use, and the reuse of a spent one kills its
//! whole family (RFC 9700 section 4.14.2), as strict providers do.

use std::{
    collections::HashMap,
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use http::header;
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    grant::{Extra, Issued, Lifetime},
    secret::{AccessToken, RefreshToken, SecretError},
};

/// How long an access token lives: long enough to play with, short enough to see it expire.
const LIFETIME: Duration = Duration::from_mins(10);

/// The state of one refresh token.
#[derive(Debug, Clone, Copy)]
struct Known {
    family: u64,
    spent: bool,
}

#[derive(Debug, Default)]
struct Families {
    tokens: HashMap<String, Known>,
    next: u64,
}

/// The built-in authorization server.
#[derive(Debug)]
pub struct Issuer {
    listener: TcpListener,
    families: Arc<Mutex<Families>>,
}

impl Issuer {
    /// Listens on a free port of 127.0.0.1.
    pub async fn bind() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        Ok(Self { listener, families: Arc::default() })
    }

    /// Its token endpoint.
    pub fn token_endpoint(&self) -> io::Result<String> {
        Ok(format!("http://{}/token", self.listener.local_addr()?))
    }

    /// Tokens of a new login, as a person would get them. `known` is false for a grant that the server has forgotten.
    pub fn login(&self, known: bool) -> Result<Issued, SecretError> {
        let mut families = self.families.lock().unwrap_or_else(PoisonError::into_inner);
        let family = families.next;
        families.next += 1;
        let refresh_token = random("dev-rt");
        if known {
            families.tokens.insert(refresh_token.clone(), Known { family, spent: false });
        }
        Ok(Issued {
            access_token: AccessToken::new(random("dev-at"))?,
            token_type: Some("Bearer".to_owned()),
            lifetime: Lifetime::In(LIFETIME),
            scope: Some("dev".to_owned()),
            refresh_token: Some(RefreshToken::new(refresh_token)?),
            extra: Extra::default(),
        })
    }

    /// Answers until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        let router = Router::new().route("/token", post(token)).with_state(Arc::clone(&self.families));
        let service = TowerToHyperService::new(router);
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else { continue };
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
            connections.spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "a connection to the built-in authorization server broke");
                }
            });
        }
    }
}

/// RFC 6749 section 6, for a public client.
async fn token(State(families): State<Arc<Mutex<Families>>>, body: String) -> Response {
    let mut members: HashMap<String, String> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    if members.get("grant_type").is_none_or(|grant_type| grant_type != GRANT_TYPE) {
        return refused("unsupported_grant_type");
    }
    let presented = members.remove(GRANT_TYPE).unwrap_or_default();
    let mut families = families.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(known) = families.tokens.get_mut(&presented) else { return refused("invalid_grant") };
    let Known { family, spent } = *known;
    if spent {
        families.tokens.retain(|_, token| token.family != family);
        return refused("invalid_grant");
    }
    known.spent = true;
    let successor = random("dev-rt");
    families.tokens.insert(successor.clone(), Known { family, spent: false });
    let answer = json!({
        "access_token": random("dev-at"),
        "token_type": "Bearer",
        "expires_in": LIFETIME.as_secs(),
        GRANT_TYPE: successor,
        "scope": "dev",
    });
    ([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response()
}

/// The grant type and the member have the same name.
const GRANT_TYPE: &str = crate::secret::FORBIDDEN_TEXT;

fn refused(code: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({"error": code}))).into_response()
}

/// 128 random bits behind a prefix that tells what it is.
fn random(prefix: &str) -> String {
    let mut bytes = [0; 16];
    // Without randomness the built-in server would only repeat itself; it guards nothing.
    if getrandom::fill(&mut bytes).is_err() {
        tracing::warn!("no randomness for the built-in authorization server");
    }
    format!("{prefix}-{:032x}", u128::from_be_bytes(bytes))
}
