//! The HTTP client: one request, one answer, within limits.
//!
//! Owns: the only use of `reqwest`; which addresses may be used and by which route ([`endpoint`]); the limits on an
//! answer's time and size; and, in [`answer`], parsing a token endpoint's answer.
//!
//! Invariants:
//! 1. A request's body is kept in one place until it is needed. Either the connection takes it, once, or it is revoked
//!    and can never be sent: that nothing was sent is a fact, not a guess from an error.
//! 2. Nothing is sent twice: no redirects, no retries, no reused connections (a server may close one just as it is used
//!    again).
//! 3. Requests to loopback use no proxy; plain `http` is used for loopback only.
//! 4. At most [`MAX_BODY_BYTES`] bytes of an answer are kept.
//! 5. Headers and bodies are never logged, the provider's error texts included.
//!
//! Must not know: OAuth 2.0 (except for its child), accounts, grants.

use std::{
    error::Error as _,
    fmt,
    io::{self, Read as _},
    mem,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER},
};
use hyper::body::{Body, Frame, SizeHint};
use reqwest::{Certificate, Client, RequestBuilder, Response, redirect, retry};
use rustix::fs::OFlags;
use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, pem::PemObject as _},
};
use url::{Host, Url};
use zeroize::Zeroizing;

use crate::private::open_trusted;

pub mod answer;

/// The longest answer body that is read. Token answers have some 10 KiB, metadata less.
pub const MAX_BODY_BYTES: usize = 1024 * 1024;

/// The longest time for name resolution, connection and TLS handshake together, if the request's limit is at least
/// twice that: what takes longer will not succeed, and must leave time for the answer.
const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

const USER_AGENT: &str = concat!("credproxy/", env!("CARGO_PKG_VERSION"));

pub(super) const JSON: &str = "application/json";

/// Why a text is not an address to which secrets may be sent. It does not contain the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// Not an absolute URL.
    #[error("is not a URL")]
    Malformed,
    /// Neither `https` nor a loopback host (RFC 6749 section 3.2 asks for TLS).
    #[error("is not https, and its host is not loopback")]
    Insecure,
    /// Holds a user name or a password.
    #[error("holds a user name or a password")]
    UserInfo,
    /// Holds a fragment, which RFC 6749 section 3.2 forbids.
    #[error("holds a fragment")]
    Fragment,
}

/// Parses an address to which secrets may be sent: `https`, or `http` to 127.0.0.0/8, `::1` or `localhost`; neither
/// user information nor a fragment.
pub fn endpoint(text: &str) -> Result<Url, EndpointError> {
    let url = Url::parse(text).map_err(|_| EndpointError::Malformed)?;
    check_endpoint(&url)?;
    Ok(url)
}

pub(super) fn check_endpoint(url: &Url) -> Result<(), EndpointError> {
    match url.scheme() {
        "https" => {}
        "http" if is_loopback(url) => {}
        _ => return Err(EndpointError::Insecure),
    }
    if !url.username().is_empty() || url.password().is_some() {
        Err(EndpointError::UserInfo)
    } else if url.fragment().is_some() {
        Err(EndpointError::Fragment)
    } else {
        Ok(())
    }
}

pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == LOCALHOST,
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// Whether the host is this machine, by any of its addresses and reserved names, or is link-local, like the metadata
/// services of clouds. A name that the resolver maps to such an address is not recognised.
pub(super) fn is_loopback_or_link_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.strip_suffix('.').unwrap_or(name);
            name == LOCALHOST || name.strip_suffix(LOCALHOST).is_some_and(|rest| rest.ends_with('.'))
        }
        Some(Host::Ipv4(address)) => is_loopback_or_link_local_ipv4(address),
        // IPv6 forms of IPv4 addresses: `::ffff:127.0.0.1`, and the former `::127.0.0.1`, `::1` and `::`.
        Some(Host::Ipv6(address)) => {
            address.to_ipv4().is_some_and(is_loopback_or_link_local_ipv4) || address.is_unicast_link_local()
        }
        None => false,
    }
}

/// 0.0.0.0/8 is this machine (RFC 1122 section 3.2.1.3), and connections to it succeed.
fn is_loopback_or_link_local_ipv4(address: Ipv4Addr) -> bool {
    address.is_loopback() || address.octets()[0] == 0 || address.is_link_local()
}

const LOCALHOST: &str = "localhost";

/// The file of extra root certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CaFileError {
    /// It cannot be read, or others could have written it.
    #[error("the certificates in {} cannot be read", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// It holds no PEM certificate.
    #[error("{} holds no certificate in PEM form", .0.display())]
    Empty(PathBuf),
    /// One of its certificates is damaged.
    #[error("{} holds a certificate that cannot be used", .0.display())]
    Unusable(PathBuf),
}

fn read_roots(file: &Path) -> Result<Vec<Certificate>, CaFileError> {
    let read = || {
        let mut pem = Vec::new();
        open_trusted(file, OFlags::empty())?.read_to_end(&mut pem)?;
        Ok(pem)
    };
    let pem = read().map_err(|error| CaFileError::Unreadable(file.to_owned(), error))?;
    let unusable = || CaFileError::Unusable(file.to_owned());
    let mut trial = RootCertStore::empty();
    let mut roots = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|_| unusable())?;
        roots.push(Certificate::from_der(&certificate).map_err(|_| unusable())?);
        trial.add(certificate).map_err(|_| unusable())?;
    }
    if roots.is_empty() { Err(CaFileError::Empty(file.to_owned())) } else { Ok(roots) }
}

/// The route to a host (invariant 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// `http` to loopback: no proxy, and no certificates to load.
    LoopbackHttp,
    /// `https` to loopback: no proxy.
    LoopbackHttps,
    /// To any other host, through the system's proxy if there is one.
    Remote,
}

impl Route {
    fn to(url: &Url) -> Self {
        match (is_loopback(url), url.scheme()) {
            (true, "http") => Self::LoopbackHttp,
            (true, _) => Self::LoopbackHttps,
            (false, _) => Self::Remote,
        }
    }
}

/// A client for each [`Route`], made when it is first needed: loading the system's root certificates takes longer than
/// the daemon's start may.
pub(super) struct Http {
    /// Without the configured certificates nothing is sent.
    roots: Result<Vec<Certificate>, CaFileError>,
    connect_timeout: Duration,
    clients: [OnceLock<Client>; 3],
}

impl fmt::Debug for Http {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Http").field("connect_timeout", &self.connect_timeout).finish_non_exhaustive()
    }
}

/// A `POST` request. It has no `Debug`, like everything that holds a body.
pub(super) struct PostRequest {
    pub(super) content_type: &'static str,
    pub(super) authorization: Option<HeaderValue>,
    /// Extra headers, which override those of the client.
    pub(super) headers: HeaderMap,
    pub(super) body: Zeroizing<Vec<u8>>,
}

/// The result of a request.
pub(super) enum Exchange {
    /// Nothing was sent, for this reason.
    NotSent(&'static str),
    /// It was sent, but no complete answer arrived.
    Lost { timed_out: bool },
    /// The answer. It has no body if that was too long, or incomplete in an error response.
    Answered { head: Head, body: Option<Zeroizing<Vec<u8>>> },
}

/// What is kept of an answer's head.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) content_type: Option<String>,
    pub(super) retry_after: Option<String>,
}

impl Head {
    fn of(response: &Response) -> Self {
        let text = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        Self {
            status: response.status().as_u16(),
            content_type: text(CONTENT_TYPE).map(str::to_ascii_lowercase),
            retry_after: text(RETRY_AFTER).map(str::to_owned),
        }
    }

    /// Returns the answer with this head and `body`.
    pub(super) fn with<'a>(&'a self, body: &'a [u8]) -> answer::Received<'a> {
        answer::Received { status: self.status, content_type: self.content_type.as_deref(), body }
    }
}

impl Http {
    /// Loads the file of extra root certificates.
    pub(super) fn new(ca_file: Option<&Path>, request_timeout: Duration) -> Self {
        Self {
            roots: ca_file.map_or(Ok(Vec::new()), read_roots),
            connect_timeout: MAX_CONNECT_TIMEOUT.min(request_timeout / 2),
            clients: Default::default(),
        }
    }

    /// Why nothing can be sent: the file of extra root certificates cannot be used.
    pub(super) const fn ca_file_error(&self) -> Option<&CaFileError> {
        match &self.roots {
            Ok(_) => None,
            Err(error) => Some(error),
        }
    }

    /// Sends a `POST` that accepts JSON, and records in `progress` how far it got.
    pub(super) async fn post(&self, url: &Url, post: PostRequest, progress: &mut Progress) -> Exchange {
        let client = match self.client(url) {
            Ok(client) => client,
            Err(why) => return Exchange::NotSent(why),
        };
        let (body, stream) = RevocableBody::new(post.body);
        progress.credential = CredentialLocation::Body(body);
        let mut request = client
            .post(url.clone())
            .header(ACCEPT, JSON)
            .header(CONTENT_TYPE, post.content_type)
            .headers(post.headers)
            .body(reqwest::Body::wrap(stream));
        if let Some(credentials) = post.authorization {
            request = request.header(AUTHORIZATION, credentials);
        }
        exchange(request, progress).await
    }

    /// Fetches a public JSON document. [`Exchange::NotSent`] may also mean a broken connection.
    pub(super) async fn get(&self, url: Url, headers: HeaderMap) -> Exchange {
        self.ask(&url, headers, &mut Progress::default()).await
    }

    /// Fetches a JSON document with credentials. The request cannot be revoked, so it counts as sent once there is a
    /// connection, and when the time limit is reached.
    pub(super) async fn get_for(&self, url: &Url, credentials: HeaderValue, mut headers: HeaderMap) -> Exchange {
        headers.insert(AUTHORIZATION, credentials);
        let mut progress = Progress { credential: CredentialLocation::Head, head: None };
        self.ask(url, headers, &mut progress).await
    }

    async fn ask(&self, url: &Url, headers: HeaderMap, progress: &mut Progress) -> Exchange {
        match self.client(url) {
            Ok(client) => exchange(client.get(url.clone()).header(ACCEPT, JSON).headers(headers), progress).await,
            Err(why) => Exchange::NotSent(why),
        }
    }

    fn client(&self, url: &Url) -> Result<&Client, &'static str> {
        let route = Route::to(url);
        let place = &self.clients[route as usize];
        if let Some(client) = place.get() {
            return Ok(client);
        }
        let roots = self.roots.as_deref().map_err(|_| "the certificates of ca_file cannot be used")?;
        let client = build(route, roots, self.connect_timeout)
            .map_err(|_| "the HTTP client found no root certificates to start with")?;
        Ok(place.get_or_init(|| client))
    }
}

fn build(route: Route, roots: &[Certificate], connect_timeout: Duration) -> reqwest::Result<Client> {
    if CryptoProvider::get_default().is_none() {
        // If another task was faster, its client is used.
        drop(ring::default_provider().install_default());
    }
    let builder = Client::builder()
        .user_agent(USER_AGENT)
        .http1_only()
        .pool_max_idle_per_host(0)
        .redirect(redirect::Policy::none())
        .retry(retry::never())
        .referer(false)
        .connect_timeout(connect_timeout)
        // The name means loopback (RFC 6761 section 6.3), whatever the resolver says.
        .resolve_to_addrs(LOCALHOST, &[(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()]);
    match route {
        Route::LoopbackHttp => builder.no_proxy().tls_certs_only([]),
        Route::LoopbackHttps => builder.no_proxy().tls_certs_merge(roots.to_vec()),
        Route::Remote => builder.tls_certs_merge(roots.to_vec()),
    }
    .build()
}

async fn exchange(request: RequestBuilder, progress: &mut Progress) -> Exchange {
    let mut response = match request.send().await {
        Ok(response) => response,
        Err(error) if error.is_connect() && matches!(progress.credential, CredentialLocation::Head) => {
            return Exchange::NotSent(why(&error));
        }
        Err(error) => return mem::take(progress).broken(why(&error), false),
    };
    progress.head = Some(Head::of(&response));
    let mut body = Zeroizing::new(Vec::with_capacity(INITIAL_BODY_CAPACITY));
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len().saturating_add(chunk.len()) <= MAX_BODY_BYTES => {
                body.extend_from_slice(&chunk);
            }
            Ok(whole) => {
                let body = whole.is_none().then_some(body);
                return Exchange::Answered { head: Head::of(&response), body };
            }
            Err(_) => return mem::take(progress).broken("the connection broke", false),
        }
    }
}

/// Enough for most answers, so that growing leaves no copies of their tokens behind.
const INITIAL_BODY_CAPACITY: usize = 16 * 1024;

/// Why nothing was sent. The error's own text may contain the address and text of the peer.
fn why(error: &reqwest::Error) -> &'static str {
    if error.is_dns() {
        return "the host name was not resolved";
    }
    match tls_error(error) {
        Some(rustls::Error::InvalidCertificate(_)) => "the server's certificate was not accepted",
        Some(_) => "the TLS handshake failed",
        None if error.is_timeout() => "no connection was made in time",
        None if error.is_connect() => "no connection was made",
        None => "the connection broke",
    }
}

fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut next = error.source();
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref() {
            return Some(found);
        }
        // The source of an `io::Error` is the source of its content: the content itself has to be fetched with
        // `get_ref`.
        next = match cause.downcast_ref().and_then(io::Error::get_ref) {
            Some(content) => Some(content),
            None => cause.source(),
        };
    }
    None
}

/// How far a request has got. It is kept outside the future that sends the request, to be read if that future is
/// dropped at the time limit.
#[derive(Default)]
pub(super) struct Progress {
    credential: CredentialLocation,
    head: Option<Head>,
}

/// Where a request carries credentials that must not be sent unnoticed.
#[derive(Default)]
enum CredentialLocation {
    /// Nowhere.
    #[default]
    None,
    /// In the body.
    Body(RevocableBody),
    /// In the head.
    Head,
}

impl Progress {
    /// The result of a request that is abandoned. An error status counts without its body: it says that the request was
    /// not carried out. A 2xx or 5xx says nothing while the rest is missing.
    pub(super) fn broken(self, why_not_sent: &'static str, timed_out: bool) -> Exchange {
        let unsent = match self.credential {
            CredentialLocation::None => true,
            CredentialLocation::Body(body) => body.revoke(),
            CredentialLocation::Head => false,
        };
        match self.head {
            _ if unsent => Exchange::NotSent(why_not_sent),
            Some(head) if (300..500).contains(&head.status) => Exchange::Answered { head, body: None },
            Some(_) | None => Exchange::Lost { timed_out },
        }
    }
}

/// A request body that can be revoked until it is sent (invariant 1): the connection and the sender compete to take it,
/// and the first one decides whether it is sent.
struct RevocableBody(Arc<Mutex<Option<Bytes>>>);

impl RevocableBody {
    fn new(body: Zeroizing<Vec<u8>>) -> (Self, BodyStream) {
        let left = u64::try_from(body.len()).unwrap_or(u64::MAX);
        let place = Arc::new(Mutex::new(Some(Bytes::from_owner(body))));
        (Self(Arc::clone(&place)), BodyStream { body: Self(place), left })
    }

    fn take(&self) -> Option<Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Revokes the body. Returns `true` if it had not been sent, and now never will be.
    fn revoke(&self) -> bool {
        self.take().is_some()
    }
}

/// The connection's end of a [`RevocableBody`].
struct BodyStream {
    body: RevocableBody,
    left: u64,
}

impl Body for BodyStream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let body = self.body.take();
        self.left = 0;
        // An error, not the end of the stream: a head that announces a length must not be sent with an empty body.
        Poll::Ready(Some(body.map(Frame::data).ok_or_else(|| io::Error::other("taken back"))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_go_to_https_or_loopback_only() {
        for good in [
            "https://login.example.com/token?x=1",
            "http://127.0.0.1:8080/token",
            "http://127.9.9.9/",
            "http://[::1]:1/",
            "http://LOCALHOST:1/token",
            "https://h.example//token",
        ] {
            assert!(endpoint(good).is_ok(), "{good}");
        }
        for (bad, reason) in [
            ("", EndpointError::Malformed),
            ("/token", EndpointError::Malformed),
            ("https://", EndpointError::Malformed),
            ("http://example.com/", EndpointError::Insecure),
            ("http://localhost.example.com/", EndpointError::Insecure),
            ("http://127.0.0.1.example.com/", EndpointError::Insecure),
            ("http://[::ffff:127.0.0.1]/", EndpointError::Insecure),
            ("http://0.0.0.0/", EndpointError::Insecure),
            ("http://10.0.0.1/", EndpointError::Insecure),
            ("ftp://127.0.0.1/", EndpointError::Insecure),
            ("file:///etc/passwd", EndpointError::Insecure),
            ("https://user@example.com/", EndpointError::UserInfo),
            ("https://:secret@example.com/", EndpointError::UserInfo),
            ("http://127.0.0.1@example.com/", EndpointError::Insecure),
            ("https://example.com/#x", EndpointError::Fragment),
        ] {
            assert_eq!(endpoint(bad), Err(reason), "{bad}");
        }
        assert_eq!(endpoint("http://127.1:9/").unwrap().host_str(), Some("127.0.0.1"));
    }

    #[test]
    fn this_machine_and_its_link_are_known_in_all_their_spellings() {
        for near in [
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "a.b.localhost.",
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "0.0.0.0",
            "0",
            "0.1.2.3",
            "169.254.169.254",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[::ffff:0.0.0.0]",
            "[::ffff:169.254.169.254]",
            "[fe80::1]",
            "[febf::1]",
        ] {
            assert!(is_loopback_or_link_local(&endpoint(&format!("https://{near}/")).unwrap()), "{near}");
        }
        for far in [
            "example.com",
            "notlocalhost",
            "localhost.example.com",
            "10.0.0.1",
            "169.253.0.1",
            "[2001:db8::1]",
            "[::ffff:192.0.2.1]",
            "[fec0::1]",
        ] {
            assert!(!is_loopback_or_link_local(&endpoint(&format!("https://{far}/")).unwrap()), "{far}");
        }
    }

    #[test]
    fn what_goes_to_loopback_passes_no_proxy() {
        for (url, route) in [
            ("http://127.0.0.1:1/", Route::LoopbackHttp),
            ("http://localhost/", Route::LoopbackHttp),
            ("https://[::1]/", Route::LoopbackHttps),
            ("https://localhost:8443/", Route::LoopbackHttps),
            ("https://127.0.0.2/", Route::LoopbackHttps),
            ("https://example.com/", Route::Remote),
            ("https://10.0.0.1/", Route::Remote),
        ] {
            assert_eq!(Route::to(&endpoint(url).unwrap()), route, "{url}");
        }
    }

    #[test]
    fn a_letter_taken_back_is_never_sent_and_one_that_was_sent_cannot_be_taken_back() {
        let mut context = Context::from_waker(std::task::Waker::noop());
        let (body, mut stream) = RevocableBody::new(Zeroizing::new(b"body".to_vec()));
        assert_eq!(stream.size_hint().exact(), Some(4));
        assert!(body.revoke());
        assert!(matches!(Pin::new(&mut stream).poll_frame(&mut context), Poll::Ready(Some(Err(_)))));

        let (body, mut stream) = RevocableBody::new(Zeroizing::new(b"body".to_vec()));
        let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut stream).poll_frame(&mut context) else { panic!("no frame") };
        assert_eq!(frame.into_data().unwrap(), "body");
        assert!(matches!(Pin::new(&mut stream).poll_frame(&mut context), Poll::Ready(None)));
        assert!(!body.revoke());
    }
}
