//! A small authorization server on loopback, only for `serve --dev`.
//!
//! A person approves or denies a login by browser, pasted code or device on its pages. Refresh tokens are single-use,
//! and the reuse of a spent one revokes its whole family (RFC 9700 section 4.14.2), as strict providers do. It is for
//! trying things out: anyone who can open its pages can approve.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
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

mod consent;

use consent::{Consents, Verdict};

/// The lifetime of an access token: long enough to try it, short enough to see it expire.
const ACCESS_TOKEN_LIFETIME: Duration = Duration::from_mins(10);

/// The state of one refresh token.
#[derive(Debug, Clone, Copy)]
struct IssuedRefreshToken {
    family: u64,
    spent: bool,
}

#[derive(Debug, Default)]
struct Families {
    tokens: HashMap<String, IssuedRefreshToken>,
    next: u64,
}

impl Families {
    /// The first refresh token of a new login.
    fn begin(&mut self) -> String {
        self.next += 1;
        let token = random("dev-rt");
        self.tokens.insert(token.clone(), IssuedRefreshToken { family: self.next, spent: false });
        token
    }

    /// Spends the token and returns its successor.
    fn rotate(&mut self, presented: &str) -> Option<String> {
        let issued = self.tokens.get_mut(presented)?;
        let IssuedRefreshToken { family, spent } = *issued;
        if spent {
            self.end(family);
            return None;
        }
        issued.spent = true;
        let successor = random("dev-rt");
        self.tokens.insert(successor.clone(), IssuedRefreshToken { family, spent: false });
        Some(successor)
    }

    fn end(&mut self, family: u64) {
        self.tokens.retain(|_, token| token.family != family);
    }
}

/// The server's state.
#[derive(Debug)]
struct IssuerState {
    address: SocketAddr,
    families: Mutex<Families>,
    consents: Mutex<Consents>,
}

impl IssuerState {
    fn families(&self) -> MutexGuard<'_, Families> {
        self.families.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn consents(&self) -> MutexGuard<'_, Consents> {
        self.consents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The built-in authorization server.
#[derive(Debug)]
pub struct Issuer {
    listener: TcpListener,
    state: Arc<IssuerState>,
}

impl Issuer {
    /// Listens on a free port of 127.0.0.1.
    pub async fn bind() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let (address, families, consents) = (listener.local_addr()?, Mutex::default(), Mutex::default());
        Ok(Self { listener, state: Arc::new(IssuerState { address, families, consents }) })
    }

    /// The address of one of its endpoints: `token`, `authorize`, `device_authorization` or `revoke`.
    #[must_use]
    pub fn endpoint(&self, name: &str) -> String {
        format!("http://{}/{name}", self.state.address)
    }

    /// Issues the tokens of a new login. With `known` false the grant is one that the server has forgotten.
    pub fn login(&self, known: bool) -> Result<Issued, SecretError> {
        let refresh_token = if known { self.state.families().begin() } else { random("dev-rt") };
        Ok(Issued {
            access_token: AccessToken::new(random("dev-at"))?,
            token_type: Some("Bearer".to_owned()),
            lifetime: Lifetime::In(ACCESS_TOKEN_LIFETIME),
            scope: Some("dev".to_owned()),
            refresh_token: Some(RefreshToken::new(refresh_token)?),
            extra: Extra::default(),
        })
    }

    /// Serves until `stop`.
    pub async fn serve(self, stop: CancellationToken) {
        let router = Router::new()
            .route("/token", post(token))
            .route("/revoke", post(revoke))
            .route("/authorize", get(consent::authorize).post(consent::decide))
            .route("/device_authorization", post(consent::device_authorization))
            .route("/device", get(consent::device).post(consent::decide_device))
            .with_state(Arc::clone(&self.state));
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

/// The members of a form or a query.
fn members(text: &str) -> HashMap<String, String> {
    url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

/// RFC 6749 sections 4.1.3 and 6, and RFC 8628 section 3.4, for a public client.
async fn token(State(state): State<Arc<IssuerState>>, body: String) -> Response {
    let members = members(&body);
    let given = |name: &str| members.get(name).map_or("", String::as_str);
    let verdict = match given("grant_type") {
        REFRESH => {
            return match state.families().rotate(given(REFRESH)) {
                Some(successor) => tokens(&successor),
                None => refused("invalid_grant"),
            };
        }
        "authorization_code" => state.consents().exchange(given("code"), given("redirect_uri"), given("code_verifier")),
        "urn:ietf:params:oauth:grant-type:device_code" => state.consents().ask(given("device_code")),
        _ => return refused("unsupported_grant_type"),
    };
    match verdict {
        Verdict::Agreed => tokens(&state.families().begin()),
        Verdict::Pending => refused("authorization_pending"),
        Verdict::Refused => refused("access_denied"),
        Verdict::Unknown => refused("invalid_grant"),
    }
}

/// RFC 7009: an unknown token counts as revoked.
async fn revoke(State(state): State<Arc<IssuerState>>, body: String) -> StatusCode {
    let mut families = state.families();
    let token = members(&body).remove("token").unwrap_or_default();
    if let Some(issued) = families.tokens.get(&token).copied() {
        families.end(issued.family);
    }
    StatusCode::OK
}

fn tokens(refresh_token: &str) -> Response {
    let answer = json!({
        "access_token": random("dev-at"),
        "token_type": "Bearer",
        "expires_in": ACCESS_TOKEN_LIFETIME.as_secs(),
        REFRESH: refresh_token,
        "scope": "dev",
    });
    ([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response()
}

/// The grant type and the member have the same name.
const REFRESH: &str = crate::secret::FORBIDDEN_TEXT;

fn refused(code: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({"error": code}))).into_response()
}

/// 128 random bits with a prefix for the kind of token.
fn random(prefix: &str) -> String {
    format!("{prefix}-{:032x}", u128::from_be_bytes(random_bytes()))
}

fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Without randomness the built-in server would repeat itself; it protects nothing.
    if getrandom::fill(&mut bytes).is_err() {
        tracing::warn!("no randomness for the built-in authorization server");
    }
    bytes
}
