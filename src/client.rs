//! The client of our own API, over a Unix socket.
//!
//! Owns: the requests, the parsing of the answers, and [`ClientError`].
//!
//! Invariants:
//! 1. A request is sent once: whether to try again is the caller's to decide.
//! 2. No wait and no answer is unlimited: [`REQUEST_TIMEOUT`], [`MAX_ANSWER_BYTES`].
//! 3. An access token is an [`AccessToken`] from the moment it is read, and no error holds one.
//! 4. A refresh token, an API key or a login's code is sent only to a process of this user, of root, or of a user that
//!    was named. The kernel tells whose process it is (`SO_PEERCRED`).
//! 5. Text from the daemon that a person may see has no control characters: another program may listen on the socket,
//!    and must not control the terminal.
//!
//! Must not know: the command line, what is printed.

use std::{error::Error, io, path::PathBuf, pin::pin, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{
    client::conn::http1,
    rt::{Read, Write},
};
use hyper_util::rt::TokioIo;
use hyperlocal::UnixConnector;
use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tokio::net::UnixStream;
use tower::Service as _;
use zeroize::Zeroizing;

use crate::{
    account::{Account, Bucket, ProviderName},
    clock::Timestamp,
    problem_code::ProblemCode,
    secret::{AccessToken, Capability},
    socket_path::MAX_PATH_BYTES,
};

/// A refresh ends within 30 s, and a daemon that is shutting down waits 35 s for it. The rest leaves room for a busy
/// machine.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(45);

/// Some four thousand accounts in a listing; a token's answer has a few KiB.
pub const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens on the socket, or this user may not connect.
    #[error("cannot reach the daemon at {}", socket.display())]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The process that listens there is not trusted with the secret that was to be sent.
    #[error(
        "{} is served by user {uid}, who is neither this user nor root: the secret was not sent", socket.display()
    )]
    UntrustedServer {
        /// The socket.
        socket: PathBuf,
        /// The user id of that process.
        uid: u32,
    },
    /// The daemon refused, in its own form (RFC 9457).
    #[error("{detail} ({code})")]
    Problem {
        /// The HTTP status.
        status: u16,
        /// The code as the daemon gave it; [`ClientError::code`] is what to decide by.
        code: String,
        /// The refusal in words.
        detail: String,
        /// When another try makes sense, counted from now.
        retry_after: Option<Duration>,
    },
    /// The connection broke before the answer was whole: the request may have been carried out.
    #[error("the daemon closed the connection without an answer")]
    Interrupted(#[source] Box<dyn Error + Send + Sync>),
    /// No answer within [`REQUEST_TIMEOUT`]: the request may have been carried out.
    #[error("the daemon did not answer within {} s", REQUEST_TIMEOUT.as_secs())]
    TimedOut,
    /// The answer does not conform to the contract.
    #[error("the answer is not one of credproxy's: {0}")]
    Protocol(&'static str),
}

impl ClientError {
    /// The code of a problem, if this version knows it.
    #[must_use]
    pub fn code(&self) -> Option<ProblemCode> {
        match self {
            Self::Problem { code, .. } => code.parse().ok(),
            Self::Unreachable { .. }
            | Self::UntrustedServer { .. }
            | Self::Interrupted(_)
            | Self::TimedOut
            | Self::Protocol(_) => None,
        }
    }
}

/// A sanitized token.
#[derive(Debug)]
pub struct Token {
    /// The access token.
    pub access_token: AccessToken,
    /// The answer's other members.
    pub members: Map<String, Value>,
    /// The entity tag of this state of the grant, for `If-Match`.
    pub etag: Option<HeaderValue>,
}

impl Token {
    /// When the access token expires; `None` when unknown.
    #[must_use]
    pub fn expiry(&self) -> Option<Timestamp> {
        self.members.get("expiry").and_then(Value::as_i64).map(Timestamp::from_secs)
    }
}

/// The result of storing a grant or an API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// There was none before.
    Created,
    /// The previous one was replaced.
    Replaced,
}

/// The state of one account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountStatus {
    /// The account's provider.
    pub provider: ProviderName,
    /// The account's bucket.
    pub bucket: Bucket,
    /// `valid`, `expiring`, `expired`, `reauth_required` or `unknown`.
    #[serde(deserialize_with = "printable_text")]
    pub state: String,
    /// In seconds since 1970; `None` when unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expiry: Option<i64>,
    /// Space-delimited; `None` when unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Whether there is a refresh token.
    pub refreshable: bool,
    /// In seconds since 1970; `None` before the first refresh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refreshed_at: Option<i64>,
    /// Why the last attempt failed; `None` when it did not.
    #[serde(default, deserialize_with = "optional_printable_text", skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// A configured provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderStatus {
    /// Its name.
    pub name: ProviderName,
    /// The login flows on offer.
    pub flows: Vec<String>,
    /// The buckets that hold a grant.
    pub buckets: Vec<Bucket>,
}

/// The health of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    /// Everything works.
    Good,
    /// Something is wrong, for these reasons. The daemon may still answer.
    Degraded(Vec<String>),
}

mod keys;
mod login;
mod sandbox;

pub use keys::{Key, KeyStatus};
pub use login::Login;
pub use sandbox::{Sandbox, SandboxRequest};

/// A client of the daemon behind one socket.
///
/// ```
/// use credproxy::client::{Client, ClientError};
/// use secrecy::ExposeSecret as _;
///
/// /// The header for a request to the API behind the account `corp`.
/// async fn authorization(client: &Client) -> Result<String, String> {
///     let account = "corp".parse().map_err(|error| format!("{error}"))?;
///     match client.token(&account, None).await {
///         Ok(token) => Ok(format!("Bearer {}", token.access_token.expose_secret())),
///         Err(error @ ClientError::Unreachable { .. }) => Err(format!("{error}; is `credproxy serve` running?")),
///         Err(error) => Err(format!("{error}")),
///     }
/// }
///
/// #[tokio::main]
/// async fn main() {
///     let client = Client::new("/nowhere/credproxy.sock".into());
///     assert!(authorization(&client).await.unwrap_err().contains("credproxy serve"));
/// }
/// ```
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    /// The capability that is sent with every request, as a header.
    capability: Option<HeaderValue>,
    /// Users besides this one and root whose processes may be sent a secret.
    trusted: Vec<u32>,
}

/// Marks a request whose body is a secret (invariant 4).
#[derive(Debug, Clone, Copy)]
struct Secret;

impl Client {
    /// Connects for each request, not here.
    #[must_use]
    pub const fn new(socket: PathBuf) -> Self {
        Self { socket, capability: None, trusted: Vec::new() }
    }

    /// Also trusts daemons that run as these users.
    #[must_use]
    pub fn with_trusted_uids(self, uids: &[u32]) -> Self {
        Self { trusted: uids.to_vec(), ..self }
    }

    /// Sends `capability` with every request, for a sandbox socket that requires one.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the capability is there to be shown to its daemon")]
    pub fn with_capability(self, capability: &Capability) -> Self {
        // Printable ASCII is a valid header value.
        let mut shown = HeaderValue::try_from(format!("Bearer {}", capability.expose_secret())).ok();
        if let Some(shown) = &mut shown {
            shown.set_sensitive(true);
        }
        Self { capability: shown, ..self }
    }

    /// A new token (`refreshToken`), or with `if_match` the current one if that is newer.
    pub async fn refresh(&self, account: &Account, if_match: Option<&HeaderValue>) -> Result<Token, ClientError> {
        let mut request = self.request(Method::POST, &path(account, "/refresh", None), Bytes::new())?;
        if let Some(etag) = if_match {
            request.headers_mut().insert(header::IF_MATCH, etag.clone());
        }
        token(self.send(request).await?)
    }

    /// A token with at least `min_validity` of its life left, where that can be had (`getToken`).
    pub async fn token(&self, account: &Account, min_validity: Option<Duration>) -> Result<Token, ClientError> {
        let parameter = min_validity.map(|least| format!("min_validity={}", whole_seconds(least)));
        let request = self.request(Method::GET, &path(account, "", parameter.as_deref()), Bytes::new())?;
        token(self.send(request).await?)
    }

    /// Stores a grant in the form of a token answer (`putToken`).
    pub async fn put(&self, account: &Account, grant: Zeroizing<Vec<u8>>) -> Result<Stored, ClientError> {
        self.put_json(&path(account, "", None), grant).await
    }

    /// Sends a body that is a secret.
    async fn put_json(&self, path: &str, body: Zeroizing<Vec<u8>>) -> Result<Stored, ClientError> {
        let mut request = self.request(Method::PUT, path, Bytes::from_owner(body))?;
        request.extensions_mut().insert(Secret);
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self.send(request).await?.status {
            StatusCode::CREATED => Ok(Stored::Created),
            StatusCode::NO_CONTENT => Ok(Stored::Replaced),
            _ => Err(ClientError::Protocol("its status is none of those of what is stored")),
        }
    }

    /// Deletes the grant (`deleteToken`). With `revoke` the provider is asked to revoke it; returns whether it did.
    pub async fn delete(&self, account: &Account, revoke: bool) -> Result<bool, ClientError> {
        #[derive(Deserialize)]
        struct Revocation {
            revoked: bool,
        }
        let request =
            self.request(Method::DELETE, &path(account, "", Some(&format!("revoke={revoke}"))), Bytes::new())?;
        Ok(json::<Revocation>(&self.send(request).await?)?.revoked)
    }

    /// Renames the account (`renameToken`).
    pub async fn rename(&self, from: &Account, to: &Account) -> Result<(), ClientError> {
        let names = serde_json::json!({ "provider": to.provider, "bucket": to.bucket });
        let mut request = self.request(Method::POST, &path(from, "/rename", None), names.to_string().into())?;
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        self.send(request).await.map(drop)
    }

    /// The state of every account (`listTokens`).
    pub async fn tokens(&self) -> Result<Vec<AccountStatus>, ClientError> {
        #[derive(Deserialize)]
        struct List {
            tokens: Vec<AccountStatus>,
        }
        let request = self.request(Method::GET, "/v1/tokens", Bytes::new())?;
        Ok(json::<List>(&self.send(request).await?)?.tokens)
    }

    /// The configured providers (`listProviders`).
    pub async fn providers(&self) -> Result<Vec<ProviderStatus>, ClientError> {
        #[derive(Deserialize)]
        struct List {
            providers: Vec<ProviderStatus>,
        }
        let request = self.request(Method::GET, "/v1/providers", Bytes::new())?;
        Ok(json::<List>(&self.send(request).await?)?.providers)
    }

    /// The health of the daemon (`health`).
    pub async fn health(&self) -> Result<Health, ClientError> {
        #[derive(Deserialize)]
        struct Degraded {
            reasons: Vec<String>,
        }
        let answer = self.exchange(self.request(Method::GET, "/v1/health", Bytes::new())?).await?;
        if answer.status == StatusCode::OK {
            return Ok(Health::Good);
        }
        match serde_json::from_slice::<Degraded>(&answer.body) {
            Ok(degraded) => Ok(Health::Degraded(degraded.reasons.iter().map(|reason| printable(reason)).collect())),
            Err(_) => Err(problem(&answer)),
        }
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|_| ClientError::Protocol("a name in it is malformed"))?;
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
        request.headers_mut().extend(self.capability.clone().map(|shown| (header::AUTHORIZATION, shown)));
        Ok(request)
    }

    async fn post_json<T: DeserializeOwned>(&self, path: &str, body: Zeroizing<Vec<u8>>) -> Result<T, ClientError> {
        let mut request = self.request(Method::POST, path, Bytes::from_owner(body))?;
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        json(&self.send(request).await?)
    }

    /// Sends a request; a problem is an error.
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, ClientError> {
        let answer = self.exchange(request).await?;
        if answer.status.is_success() { Ok(answer) } else { Err(problem(&answer)) }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, ClientError> {
        let exchange = async {
            match self.address().filter(|_| request.extensions().get::<Secret>().is_none()) {
                Some(address) => {
                    let stream = UnixConnector.call(address).await.map_err(|error| self.unreachable(error))?;
                    converse(stream, request).await
                }
                None => converse(TokioIo::new(self.connect_to_trusted().await?), request).await,
            }
        };
        tokio::time::timeout(REQUEST_TIMEOUT, exchange).await.unwrap_or(Err(ClientError::TimedOut))
    }

    /// The socket's path as [`UnixConnector`] takes it. `None` for a path that is not UTF-8, which it would change, or too
    /// long, on which it panics.
    fn address(&self) -> Option<hyper::Uri> {
        let path = self.socket.to_str().filter(|path| path.len() <= MAX_PATH_BYTES)?;
        Some(hyperlocal::Uri::new(path, "/").into())
    }

    /// A connection whose other end belongs to a user that a secret may be sent to.
    async fn connect_to_trusted(&self) -> Result<UnixStream, ClientError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| self.unreachable(error))?;
        let uid = stream.peer_cred().map_err(|error| self.unreachable(error))?.uid();
        let own = rustix::process::geteuid().as_raw();
        if uid != own && uid != 0 && !self.trusted.contains(&uid) {
            return Err(ClientError::UntrustedServer { socket: self.socket.clone(), uid });
        }
        Ok(stream)
    }

    fn unreachable(&self, source: io::Error) -> ClientError {
        ClientError::Unreachable { socket: self.socket.clone(), source }
    }
}

/// Sends one request over a new connection, and reads the whole answer.
async fn converse(stream: impl Read + Write + Unpin, request: Request<Full<Bytes>>) -> Result<Answer, ClientError> {
    let broken = |error: hyper::Error| ClientError::Interrupted(error.into());
    let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
    let answer = async {
        let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
        let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                ClientError::Protocol("it is longer than 1 MiB")
            } else {
                ClientError::Interrupted(error)
            }
        })?;
        let etag = head.headers.get(header::ETAG).cloned();
        Ok(Answer { status: head.status, etag, body: body.to_bytes() })
    };
    let mut answer = pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        // What arrived before the end can still be read, and an error shows in the answer.
        _ = connection => answer.await,
    }
}

struct Answer {
    status: StatusCode,
    etag: Option<HeaderValue>,
    body: Bytes,
}

/// Rounded up, so that a short duration does not become zero.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_add(u64::from(duration.subsec_nanos() > 0))
}

/// Names are safe in a URL except for `+`, which some read as a space in a query.
fn path(account: &Account, below: &str, parameter: Option<&str>) -> String {
    let bucket = account.bucket.as_str().replace('+', "%2B");
    let separator = if parameter.is_some() { "&" } else { "" };
    format!("/v1/tokens/{}{below}?bucket={bucket}{separator}{}", account.provider, parameter.unwrap_or_default())
}

fn json<T: DeserializeOwned>(answer: &Answer) -> Result<T, ClientError> {
    // The parser's own message may quote the answer.
    serde_json::from_slice(&answer.body).map_err(|_| ClientError::Protocol("it is not the JSON of that request"))
}

fn token(answer: Answer) -> Result<Token, ClientError> {
    let mut members: Map<String, Value> = json(&answer)?;
    let Some(Value::String(text)) = members.remove("access_token") else {
        return Err(ClientError::Protocol("it has no access token"));
    };
    let access_token = AccessToken::new(text).map_err(|_| ClientError::Protocol("its access token is malformed"))?;
    Ok(Token { access_token, members, etag: answer.etag })
}

fn problem(answer: &Answer) -> ClientError {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Problem {
        code: String,
        detail: String,
        retry_after: Option<u64>,
    }
    match serde_json::from_slice::<Problem>(&answer.body) {
        Ok(Problem { code, detail, retry_after }) => ClientError::Problem {
            status: answer.status.as_u16(),
            code: printable(&code),
            detail: printable(&detail),
            retry_after: retry_after.map(Duration::from_secs),
        },
        Err(_) => ClientError::Protocol("it refuses without a code"),
    }
}

/// Removes control characters (invariant 5).
fn printable(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).collect()
}

/// Accepts only ids that are safe in a path.
fn id<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let id = String::deserialize(deserializer)?;
    let fit = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if fit { Ok(id) } else { Err(serde::de::Error::custom("not an id")) }
}

fn printable_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| printable(&text))
}

fn optional_printable_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Option::<String>::deserialize(deserializer).map(|text| text.as_deref().map(printable))
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{UnixListener, UnixStream},
    };

    use super::*;
    use crate::secret::ApiKey;

    /// Runs one call against a socket that gives `answer`; returns the request's bytes beside the call's result.
    async fn against<T>(
        answer: &str,
        call: impl AsyncFnOnce(&Client) -> Result<T, ClientError>,
    ) -> (String, Result<T, ClientError>) {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let client = Client::new(socket);
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = read_request(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
            request
        };
        tokio::join!(serve, call(&client))
    }

    async fn read_request(stream: &mut UnixStream) -> String {
        let mut text = String::new();
        loop {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).await.unwrap();
            text.push_str(str::from_utf8(&buffer[..count]).unwrap());
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                    return text;
                }
            }
            assert!(count > 0, "{text}");
        }
    }

    fn answer(status: &str, body: &str) -> String {
        format!("HTTP/1.1 {status}\r\nETag: \"e1\"\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    fn account(text: &str) -> Account {
        text.parse().unwrap()
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "the test made the token up")]
    async fn a_token_is_read_with_its_members() {
        let good = answer("200 OK", r#"{"access_token":"at-1","token_type":"Bearer","expiry":1700000000}"#);
        let (request, token) = against(&good, async |client| {
            client.token(&account("corp/a+b"), Some(Duration::from_millis(89_001))).await
        })
        .await;
        assert!(request.starts_with("GET /v1/tokens/corp?bucket=a%2Bb&min_validity=90 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("host: localhost\r\n"), "{request}");
        let token = token.unwrap();
        assert_eq!(token.access_token.expose_secret(), "at-1");
        assert_eq!(token.expiry(), Some(Timestamp::from_secs(1_700_000_000)));
        assert!(!format!("{token:?}").contains("at-1"));

        let etag = token.etag.unwrap();
        let (request, _) = against(&good, async |client| client.refresh(&account("corp"), Some(&etag)).await).await;
        assert!(request.starts_with("POST /v1/tokens/corp/refresh?bucket=default HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("if-match: \"e1\"\r\n"), "{request}");
    }

    #[tokio::test]
    async fn a_grant_is_stored_and_deleted() {
        let put = async |client: &Client| client.put(&account("corp"), Zeroizing::new(b"{}".to_vec())).await;
        let (request, stored) = against("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", put).await;
        assert!(request.starts_with("PUT /v1/tokens/corp?bucket=default HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("content-type: application/json\r\n") && request.ends_with("\r\n\r\n{}"), "{request}");
        assert_eq!(stored.unwrap(), Stored::Created);
        let (_, stored) = against("HTTP/1.1 204 No Content\r\n\r\n", put).await;
        assert_eq!(stored.unwrap(), Stored::Replaced);

        let delete = async |client: &Client| client.delete(&account("corp/work"), true).await;
        let (request, revoked) = against(&answer("200 OK", r#"{"revoked":true}"#), delete).await;
        assert!(request.starts_with("DELETE /v1/tokens/corp?bucket=work&revoke=true HTTP/1.1\r\n"), "{request}");
        assert!(revoked.unwrap());
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "the test made the key up")]
    async fn a_key_is_read_and_one_that_could_steer_the_terminal_is_refused() {
        let name = "a+b".parse().unwrap();
        let get = async |client: &Client| client.api_key(&name).await;
        let good = answer("200 OK", r#"{"name":"a+b","api_key":"sk\n1","created_at":7}"#);
        let (request, key) = against(&good, get).await;
        assert!(request.starts_with("GET /v1/api-keys/a+b HTTP/1.1\r\n"), "{request}");
        let key = key.unwrap();
        assert_eq!((key.secret.expose_secret(), key.created_at), ("sk\n1", 7));
        let bad = answer("200 OK", r#"{"name":"a+b","api_key":"canary\u001b[2J","created_at":7}"#);
        let (_, refused) = against(&bad, get).await;
        let refused = refused.unwrap_err();
        assert!(
            matches!(refused, ClientError::Protocol(_)) && !format!("{refused:?}").contains("canary"),
            "{refused:?}"
        );

        let secret = ApiKey::new("sk \"1\"".into()).unwrap();
        let set = async |client: &Client| client.set_api_key(&name, &secret).await;
        let (request, stored) = against("HTTP/1.1 204 No Content\r\n\r\n", set).await;
        assert!(request.ends_with("\r\n\r\n{\"api_key\":\"sk \\\"1\\\"\"}"), "{request}");
        assert_eq!(stored.unwrap(), Stored::Replaced);
    }

    #[tokio::test]
    async fn the_lists_and_the_health_are_read() {
        let body = r#"{"tokens":[{"provider":"corp","bucket":"work","state":"reauth_required","expiry":1,
            "refreshable":true,"last_error":"invalid_grant"}]}"#;
        let (_, tokens) = against(&answer("200 OK", body), async |client| client.tokens().await).await;
        let tokens = tokens.unwrap();
        assert_eq!(
            (tokens[0].state.as_str(), tokens[0].last_error.as_deref()),
            ("reauth_required", Some("invalid_grant"))
        );

        let body = r#"{"providers":[{"name":"corp","flows":[],"buckets":["default"]}]}"#;
        let (_, providers) = against(&answer("200 OK", body), async |client| client.providers().await).await;
        assert_eq!(providers.unwrap()[0].buckets, [Bucket::default()]);

        let health = async |client: &Client| client.health().await;
        let (_, good) = against(&answer("200 OK", r#"{"status":"ok"}"#), health).await;
        assert_eq!(good.unwrap(), Health::Good);
        let body = r#"{"status":"degraded","reasons":["the store\u001b[2J is full"]}"#;
        let (_, degraded) = against(&answer("503 Service Unavailable", body), health).await;
        assert_eq!(degraded.unwrap(), Health::Degraded(vec!["the store[2J is full".into()]));
    }

    #[tokio::test]
    async fn a_refusal_is_read_with_its_code() {
        let body = r#"{"type":"about:blank","title":"x","status":429,"detail":"too\nsoon","code":"RATE_LIMITED","retryAfter":7}"#;
        let (_, result) = against(&answer("429 Too Many Requests", body), async |client| {
            client.refresh(&account("corp"), None).await
        })
        .await;
        let Err(ClientError::Problem { status, code, detail, retry_after }) = result else { panic!("{result:?}") };
        assert_eq!((status, code.as_str(), detail.as_str()), (429, "RATE_LIMITED", "toosoon"));
        assert_eq!(retry_after, Some(Duration::from_secs(7)));
    }

    #[tokio::test]
    async fn an_answer_that_is_none_of_ours_is_refused_without_being_quoted() {
        let long = answer("200 OK", &"canary".repeat(MAX_ANSWER_BYTES / 6 + 1));
        let chatty = answer("418 I'm a teapot", "canary");
        for text in [
            answer("200 OK", "canary"),
            answer("200 OK", r#"{"token":"canary"}"#),
            answer("200 OK", r#"{"access_token":["canary"]}"#),
            answer("200 OK", "{\"access_token\":\"canary\\u0007\"}"),
            answer("200 OK", "\"canary\""),
            chatty,
            long,
        ] {
            let (_, result) = against(&text, async |client| client.token(&account("corp"), None).await).await;
            let error = result.unwrap_err();
            assert!(matches!(error, ClientError::Protocol(_)), "{error:?}");
            assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_daemon_that_hangs_up_is_not_asked_twice() {
        let (_, result) = against("", async |client| client.refresh(&account("corp"), None).await).await;
        assert!(matches!(result, Err(ClientError::Interrupted(_))), "{result:?}");
        let half = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{";
        let (_, result) = against(half, async |client| client.token(&account("corp"), None).await).await;
        assert!(matches!(result, Err(ClientError::Interrupted(_))), "{result:?}");
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_unreachable() {
        for path in ["/nowhere/s", "", &"x".repeat(108), "/dev/null"] {
            let result = Client::new(path.into()).health().await;
            assert!(matches!(result, Err(ClientError::Unreachable { .. })), "{path:?}: {result:?}");
        }
        let Err(ClientError::Unreachable { source, .. }) = Client::new("/nowhere/s".into()).health().await else {
            panic!()
        };
        assert_eq!(source.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_says_nothing_is_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let _listener = UnixListener::bind(&socket).unwrap();
        let result = Client::new(socket).health().await;
        assert!(matches!(result, Err(ClientError::TimedOut)), "{result:?}");
    }
}
