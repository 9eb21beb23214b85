//! Limits and faults of connections, certificates, proxies, and what is logged of it all.

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use credproxy::{
    clock::SystemClock,
    dialect::{Additions, Dialect, Headers, RequestForm, RequestFormat, SecondExchange},
    provider::{
        Provider as _,
        oauth2::{Authentication, Endpoints, OAuth2, Settings, SetupError},
    },
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};
use url::Url;

use crate::{
    provider_wire::{
        HTML, IMPATIENT, SECRET_PLACES, assertion, authenticating, class, discovering, grant, provider, refresh,
        settings,
    },
    support::{
        issuer::{Answer, Gate, Issuer, Raw},
        skip::skip,
    },
};

#[tokio::test]
async fn an_answer_without_end_is_cut_off_and_unreadable() {
    let issuer = Issuer::start().await;
    for status in [200, 400, 503] {
        issuer.script(Answer::Huge { status, bytes: 8 * 1024 * 1024 });
        let reply = refresh(&issuer, settings(&issuer.token_endpoint())).await;
        assert_eq!(class(&reply), format!("{status} unreadable"));
    }
}

#[tokio::test]
async fn an_answer_of_just_under_the_limit_is_read() {
    let issuer = Issuer::start().await;
    let tokens = json!({"access_token": "a", "padding": "x".repeat(1024 * 1024 - 100)});
    issuer.script(Answer::Raw(Raw::json(200, &tokens)));
    assert_eq!(class(&refresh(&issuer, settings(&issuer.token_endpoint())).await), "200 issued");
}

#[tokio::test]
async fn a_refusal_counts_without_its_body_and_a_success_does_not() {
    let issuer = Issuer::start().await;
    for (status, dripping, cut) in [
        (200, "timed out", "broke off"),
        (302, "302 unreadable", "302 unreadable"),
        (400, "400 unreadable", "400 unreadable"),
        (401, "401 unreadable", "401 unreadable"),
        (503, "timed out", "broke off"),
    ] {
        let answer = Raw::error(status, "invalid_grant");
        issuer.script(Answer::Drip(answer.clone()));
        let impatient = Settings { request_timeout: IMPATIENT, ..settings(&issuer.token_endpoint()) };
        assert_eq!(class(&refresh(&issuer, impatient).await), dripping, "{status}");
        issuer.script(Answer::Cut(answer));
        assert_eq!(class(&refresh(&issuer, settings(&issuer.token_endpoint())).await), cut, "{status}");
    }
}

#[tokio::test]
async fn an_answer_that_never_comes_is_lost_when_the_time_is_up() {
    let issuer = Issuer::start().await;
    for answer in [Answer::Silence, Answer::HoldAfter(Gate::new()), Answer::HoldBefore(Gate::new())] {
        issuer.script(answer);
        let impatient = Settings { request_timeout: IMPATIENT, ..settings(&issuer.token_endpoint()) };
        assert_eq!(class(&refresh(&issuer, impatient).await), "timed out");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_after_the_request_is_lost_and_not_tried_again() {
    let issuer = Issuer::start().await;
    for answer in [Answer::ResetBefore, Answer::RotateThenReset] {
        issuer.script(answer);
        let before = issuer.presentations().len();
        assert_eq!(class(&refresh(&issuer, settings(&issuer.token_endpoint())).await), "broke off");
        assert_eq!(issuer.presentations().len(), before + 1);
    }
    assert_eq!(issuer.reused(), 0);
}

#[tokio::test]
async fn every_refresh_has_a_connection_of_its_own() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let provider = provider(settings(&format!("http://{}/", listener.local_addr().unwrap())));
    let mut server = JoinSet::new();
    server.spawn(async move {
        for _ in 0..2 {
            // Kept open by the server, which would be glad to serve a second request on it.
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{\"access_token\":\"a\"}";
            stream.write_all(answer.as_bytes()).await.unwrap();
            assert_eq!(stream.read(&mut request).await.unwrap(), 0, "closed by the client");
        }
    });
    for _ in 0..2 {
        assert_eq!(class(&provider.refresh(&grant("at", Some("rt"))).await), "200 issued");
    }
    server.join_all().await;
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let issuer = Issuer::start().await;
    let other = Issuer::start().await;
    issuer.serve("/elsewhere", Raw::json(200, &json!({"access_token": "a"})));
    for status in [301, 302, 303, 307, 308] {
        for target in ["/elsewhere".to_owned(), other.token_endpoint()] {
            issuer.script(Answer::Raw(Raw::new(status, "", "").header("Location", &target)));
            let reply = refresh(&issuer, settings(&issuer.token_endpoint())).await;
            assert_eq!(class(&reply), format!("{status} unreadable"));
        }
    }
    assert!(issuer.requests().iter().all(|seen| seen.target == "/token"));
    assert!(other.requests().is_empty());
}

#[tokio::test]
async fn a_request_that_never_left_is_known_as_such() {
    let refused = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    // It takes connections, and never says a word of TLS.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // It answers the TLS greeting with something else.
    let mut tasks = JoinSet::new();
    let (plain, _) = refusing_proxy(&mut tasks).await;
    let issuer = Issuer::start().await;
    for (token_endpoint, why) in [
        (format!("http://{refused}/token"), "no connection was made"),
        (format!("http://localhost:{}/token", refused.port()), "no connection was made"),
        (format!("https://{}/token", silent.local_addr().unwrap()), "no connection was made in time"),
        (format!("https://{plain}/token"), "the TLS handshake failed"),
    ] {
        // Half of it is the connection's: what is left must be long on a busy machine, too.
        let settings = Settings { request_timeout: Duration::from_secs(6), ..settings(&token_endpoint) };
        assert_eq!(class(&refresh(&issuer, settings).await), format!("not sent: {why}"), "{token_endpoint}");
    }
    assert!(issuer.presentations().is_empty());
}

#[test]
fn settings_that_would_send_secrets_in_clear_make_no_provider() {
    let make = |settings| OAuth2::new(settings, Arc::new(SystemClock::new())).unwrap_err();
    let plain = Url::parse("http://login.example.com/").unwrap();
    let error = make(settings(plain.as_str()));
    assert_eq!(error.to_string(), "the token endpoint is not https, and its host is not loopback");
    let with = |set: fn(&mut Settings, Url)| {
        let mut settings = settings("https://login.example.com/token");
        set(&mut settings, plain.clone());
        settings
    };
    for settings in [
        with(|settings, plain| settings.endpoints.issuer = Some(plain)),
        with(|settings, plain| settings.endpoints.refresh = Some(plain)),
        with(|settings, plain| settings.endpoints.revocation = Some(plain)),
        with(|settings, endpoint| settings.second_exchange = Some(SecondExchange { endpoint, scheme: "token".into() })),
    ] {
        assert!(matches!(make(settings), SetupError::Endpoint { .. }));
    }
    let nowhere = Settings { endpoints: Endpoints::default(), ..settings("https://unused.example/") };
    assert!(matches!(make(nowhere), SetupError::NoTokenEndpoint));
}

/// A certificate authority in PEM form, and a server that hands what it decrypts on to the issuer.
async fn tls_front(issuer: &Issuer, tasks: &mut JoinSet<()>) -> (String, SocketAddr) {
    tls_front_at("127.0.0.1", &["localhost", "127.0.0.1"], issuer, tasks).await
}

/// The same at another address, for hosts of these names.
async fn tls_front_at(address: &str, names: &[&str], issuer: &Issuer, tasks: &mut JoinSet<()>) -> (String, SocketAddr) {
    let mut authority = CertificateParams::new([]).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = rcgen::CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &authority).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((address, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let target = issuer.origin().replace("http://", "");
    tasks.spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut inside) = acceptor.accept(stream).await else { continue };
            let mut outside = TcpStream::connect(&target).await.unwrap();
            drop(copy_bidirectional(&mut inside, &mut outside).await);
        }
    });
    (authority.pem(), address)
}

#[tokio::test]
async fn the_certificates_of_the_file_are_trusted_beside_the_systems_own() {
    let issuer = Issuer::start().await;
    let mut tasks = JoinSet::new();
    let (pem, address) = tls_front(&issuer, &mut tasks).await;
    let (unrelated, _) = tls_front(&issuer, &mut tasks).await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{unrelated}\n# the one that counts\n{pem}").unwrap();
    for host in ["localhost", "127.0.0.1"] {
        let url = format!("https://{host}:{}/token", address.port());
        let reply = refresh(&issuer, settings(&url)).await;
        assert_eq!(class(&reply), "not sent: the server's certificate was not accepted");
        assert!(issuer.presentations().len() < 2);
        let trusting = Settings { ca_file: Some(file.path().into()), ..settings(&url) };
        assert_eq!(class(&refresh(&issuer, trusting).await), "200 issued");
    }
    assert_eq!(issuer.presentations().len(), 2);
}

/// An address of this machine that is not loopback, if there is one.
fn outer_address() -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // Nothing is sent: connecting chooses the address.
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().unwrap().ip()).filter(|address| !address.is_loopback() && !address.is_unspecified())
}

/// A service on this machine that is there for its own programs, and whose certificate is trusted.
#[tokio::test]
async fn an_issuer_elsewhere_sends_no_token_to_this_machine() {
    let Some(outer) = outer_address() else {
        skip("this machine has no address but loopback's");
        return;
    };
    let (outer, issuer, mut tasks) = (outer.to_string(), Issuer::start().await, JoinSet::new());
    let names = [outer.as_str(), "0.0.0.0", "127.0.0.1", "::ffff:127.0.0.1", "a.localhost"];
    let (pem, address) = tls_front_at("0.0.0.0", &names, &issuer, &mut tasks).await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{pem}").unwrap();
    let origin = format!("https://{outer}:{}", address.port());
    for (host, class_due) in [
        ("0.0.0.0", "not sent: discovery: the token_endpoint is not one to send secrets to"),
        ("0", "not sent: discovery: the token_endpoint is not one to send secrets to"),
        ("[::ffff:127.0.0.1]", "not sent: discovery: the token_endpoint is not one to send secrets to"),
        ("a.localhost", "not sent: discovery: the token_endpoint is not one to send secrets to"),
        (&outer, "200 issued"),
    ] {
        let mut metadata = issuer.metadata(&origin);
        metadata["token_endpoint"] = format!("https://{host}:{}/token", address.port()).into();
        issuer.serve("/.well-known/openid-configuration", Raw::json(200, &metadata));
        let settings = Settings { ca_file: Some(file.path().into()), ..discovering(&origin) };
        assert_eq!(class(&refresh(&issuer, settings).await), class_due, "{host}");
    }
    assert_eq!(issuer.presentations().len(), 1);
}

#[test]
fn a_file_of_certificates_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        Write::write_all(&mut std::fs::File::create(&path).unwrap(), text.as_bytes()).unwrap();
        path
    };
    let begin = "-----BEGIN CERTIFICATE-----";
    let end = "-----END CERTIFICATE-----";
    for path in [
        directory.path().join("missing.pem"),
        directory.path().to_owned(),
        write("empty.pem", ""),
        write("prose.pem", "no certificate in here\n"),
        write("cut.pem", &format!("{begin}\nAAAA\n")),
        write("junk.pem", &format!("{begin}\nAAAA\n{end}\n")),
    ] {
        let settings = Settings { ca_file: Some(path.clone()), ..settings("https://login.example.com/token") };
        let provider = OAuth2::new(settings, Arc::new(SystemClock::new())).unwrap();
        let error = provider.ca_file_error().unwrap();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

// Proxies: the system's are read from the environment, so a child process does the refreshes.

/// Remembers what it was asked, and refuses it.
async fn refusing_proxy(tasks: &mut JoinSet<()>) -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 4096];
            let count = stream.read(&mut bytes).await.unwrap();
            log.lock().unwrap().extend_from_slice(&bytes[..count]);
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        }
    });
    (address, asked)
}

#[tokio::test]
async fn a_proxy_sees_no_token_whatever_it_does() {
    let issuer = Issuer::start().await;
    let (_, token) = issuer.new_grant();
    let mut tasks = JoinSet::new();
    let (proxy, asked) = refusing_proxy(&mut tasks).await;
    let output = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "provider_wire::connections::child_behind_a_proxy", "--ignored", "--nocapture"])
        .env("HTTPS_PROXY", format!("http://{proxy}"))
        .env("HTTP_PROXY", format!("http://{proxy}"))
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .env_remove("https_proxy")
        .env_remove("http_proxy")
        .env("TEST_TOKEN_ENDPOINT", issuer.token_endpoint())
        .env("TEST_REFRESH_TOKEN", &token)
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("outward: not sent: no connection was made\n"), "{said}");
    assert!(said.contains("loopback: 200 issued\n"), "{said}");
    let asked = String::from_utf8(asked.lock().unwrap().clone()).unwrap();
    assert!(asked.starts_with("CONNECT login.example.invalid:443 HTTP/1.1\r\n"), "{asked}");
    assert_eq!(asked.matches("HTTP/1.1").count(), 1, "{asked}");
    assert!(!asked.contains("canary"), "{asked}");
    assert_eq!(issuer.times_presented(&token), 1);
}

#[tokio::test]
#[ignore = "run by a_proxy_sees_no_token_whatever_it_does, in an environment of its own"]
#[expect(clippy::disallowed_methods, reason = "the parent test speaks through the environment")]
async fn child_behind_a_proxy() {
    let token = std::env::var("TEST_REFRESH_TOKEN").unwrap();
    let loopback = std::env::var("TEST_TOKEN_ENDPOINT").unwrap();
    let grant = grant("at", Some(&token));
    for (name, url) in [("outward", "https://login.example.invalid/token"), ("loopback", &loopback)] {
        println!("{name}: {}", class(&provider(settings(url)).refresh(&grant).await));
    }
}

// Logs.

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The HTTP client's own events are in it too, and those of every test that runs meanwhile.
#[tokio::test]
async fn no_secret_is_logged_at_any_level() {
    use tracing_subscriber::util::SubscriberInitExt as _;

    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
    subscriber.with_writer(move || writer.clone()).finish().init();

    let issuer = Issuer::start().await;
    let mut tasks = JoinSet::new();
    let (pem, address) = tls_front(&issuer, &mut tasks).await;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{pem}").unwrap();
    for url in [issuer.token_endpoint(), format!("https://{address}/token")] {
        for format in [RequestFormat::Form, RequestFormat::Json] {
            for place in SECRET_PLACES {
                for answer in [
                    Answer::Normal,
                    Answer::Raw(Raw::new(400, HTML, "canary-prose").header("X-Canary", "canary-header")),
                    Answer::Cut(Raw::error(200, "canary-code")),
                    Answer::RotateThenReset,
                ] {
                    issuer.script(answer);
                    let settings = Settings { ca_file: Some(file.path().into()), ..settings(&url) };
                    let settings = authenticating(Some(place), "canary-secret", format, settings);
                    refresh(&issuer, settings).await;
                }
            }
        }
        let mut headers = Headers::default();
        headers.add("X-Key", "canary-key").unwrap();
        let requests = RequestForm { additions: Additions::new(headers), ..RequestForm::default() };
        let authentication = Authentication::Key(Ok(Box::new(assertion::assertions())));
        let dialect = Dialect { requests, ..Dialect::default() };
        let settings = Settings { authentication, dialect, ca_file: Some(file.path().into()), ..settings(&url) };
        refresh(&issuer, settings).await;
        assert_eq!(issuer.requests().last().unwrap().header("x-key"), Some("canary-key"));
    }
    let text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    for source in ["hyper", "reqwest", "credproxy::provider::oauth2: token endpoint"] {
        assert!(text.contains(source), "{source} was not listened to");
    }
    // The last is how every JWT begins.
    for secret in ["canary", &STANDARD.encode("client-1:canary-secret"), "eyJ"] {
        let line = text.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}
