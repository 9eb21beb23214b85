//! An authorization server that someone else wrote: starts it, logs in there, and reads the log that it keeps.

use std::{path::Path, time::Duration};

use serde::Deserialize;
use serde_json::Value;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};
use url::Url;

use super::{
    front::Front,
    http::{Connection, Response},
    person::Person,
    server::{self, Auth, START},
};

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/servers/oidc_provider");
const REDIRECT: &str = "http://127.0.0.1/callback";

/// The example of RFC 7636 appendix B: a verifier and its SHA-256.
const VERIFIER: &str = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const CHALLENGE: &str = "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM";

/// The clients registered there, named after how they authenticate.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Client {
    Public,
    Basic,
    Post,
}

impl Client {
    pub(crate) const fn id(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Basic => "basic",
            Self::Post => "post",
        }
    }

    pub(crate) const fn secret(self) -> Option<&'static str> {
        match self {
            Self::Public => None,
            Self::Basic => Some("canary-cs-basic:%+&=/"),
            Self::Post => Some("canary-cs-post:%+&=/"),
        }
    }

    /// As `client_auth` has it in the daemon's configuration.
    pub(crate) const fn auth(self) -> &'static str {
        self.method().name()
    }

    const fn method(self) -> Auth {
        match self {
            Self::Public => Auth::None,
            Self::Basic => Auth::Basic,
            Self::Post => Auth::Post,
        }
    }

    /// As it is registered.
    pub(crate) fn registered(self) -> server::Client {
        server::Client { id: self.id().to_owned(), secret: self.secret(), auth: self.method() }
    }
}

/// One request to the token endpoint; `server.mjs` says what the members mean.
#[derive(Debug, Deserialize)]
pub(crate) struct Entry {
    pub(crate) time: u64,
    pub(crate) grant_type: Option<String>,
    pub(crate) fingerprint: Option<String>,
    pub(crate) presented_before: u32,
    pub(crate) spent_before: bool,
    pub(crate) committed: bool,
    pub(crate) status: Option<u16>,
    pub(crate) error: Option<String>,
}

/// Every token handed out, oldest first.
#[derive(Debug, Deserialize)]
pub(crate) struct Issued {
    pub(crate) access_tokens: Vec<String>,
    pub(crate) refresh_tokens: Vec<String>,
}

/// The running server; ends with this value.
pub(crate) struct Oidc {
    issuer: String,
    address: String,
    _child: Child,
}

impl Oidc {
    pub(crate) async fn start() -> Self {
        Self::start_with_lifetime(Duration::from_mins(10)).await
    }

    /// Starts one whose access tokens live as long as told, in whole seconds.
    pub(crate) async fn start_with_lifetime(lifetime: Duration) -> Self {
        Self::launch(lifetime, None).await
    }

    /// Starts one that the world knows as the front before it.
    pub(crate) async fn start_behind(front: &Front) -> Self {
        let oidc = Self::launch(Duration::from_mins(10), Some(front.origin())).await;
        front.stands_before(&oidc.address);
        oidc
    }

    async fn launch(lifetime: Duration, issuer: Option<&str>) -> Self {
        assert!(
            Path::new(DIRECTORY).join("node_modules").exists(),
            "the authorization server of the tests is not installed: run ./scripts/test"
        );
        // There when the system's own is too old.
        let installed = Path::new(DIRECTORY).join("node_modules/.bin/node");
        let mut command = Command::new(if installed.exists() { installed.as_path() } else { Path::new("node") });
        command.arg("server.mjs").current_dir(DIRECTORY);
        command.env("ACCESS_TOKEN_TTL", lifetime.as_secs().to_string());
        command.envs(issuer.map(|issuer| ("ISSUER", issuer)));
        let (child, line) = server::start(command).await;
        let issuer = line["issuer"].as_str().unwrap().to_owned();
        Self { issuer, address: format!("127.0.0.1:{}", line["port"]), _child: child }
    }

    pub(crate) fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(crate) fn token_endpoint(&self) -> String {
        format!("{}/token", self.issuer)
    }

    /// Logs a person in: the authorization code flow with PKCE. Gives the token endpoint's answer.
    pub(crate) async fn code_flow_grant(&self, client: Client) -> Value {
        let mut url = Url::parse(&format!("{}/auth", self.issuer)).unwrap();
        url.query_pairs_mut().extend_pairs([
            ("client_id", client.id()),
            ("redirect_uri", REDIRECT),
            ("response_type", "code"),
            ("scope", "openid offline_access"),
            // Without it no refresh token is given (OpenID Connect Core section 11).
            ("prompt", "consent"),
            ("code_challenge", CHALLENGE),
            ("code_challenge_method", "S256"),
        ]);
        let back = self.agree(url.as_str()).await;
        let code = back.query_pairs().find(|(name, _)| name == "code").unwrap_or_else(|| panic!("no code: {back}")).1;
        let form = [
            ("grant_type", "authorization_code"),
            ("code", &code),
            ("redirect_uri", REDIRECT),
            ("code_verifier", VERIFIER),
        ];
        let answer = self.ask_token_endpoint(client, &form).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    /// A person who opens an authorization address and agrees: where the browser is sent back to.
    pub(crate) async fn agree(&self, authorization_url: &str) -> Url {
        Person::at(&self.address).open(authorization_url).await.expect_err("sent back to the client")
    }

    /// A person who opens a device's address with the code in it, and confirms, or aborts.
    pub(crate) async fn confirm_device(&self, address: &str, agree: bool) {
        let mut person = Person::at(&self.address);
        let mut page = person.open(address).await.unwrap();
        // The first form hands the code over, the second confirms it.
        for confirming in [false, true] {
            let answers: &[_] = if confirming && !agree { &[("abort", "yes")] } else { &[] };
            page.url.set_path("/device");
            page = person.submit(&page, answers).await.unwrap();
        }
        let expected = if agree { "Sign-in Success" } else { "interrupted" };
        assert!(page.text.contains(expected), "{}", page.text);
    }

    /// Presents a refresh token by hand.
    pub(crate) async fn present(&self, client: Client, refresh_token: &str) -> Response {
        self.try_present(client, refresh_token).await.expect("the authorization server answers")
    }

    /// The same, where a fault may close the connection.
    pub(crate) async fn try_present(&self, client: Client, refresh_token: &str) -> Result<Response, hyper::Error> {
        client.registered().present(&self.address, "/token", refresh_token).await
    }

    async fn ask_token_endpoint(&self, client: Client, form: &[(&str, &str)]) -> Result<Response, hyper::Error> {
        client.registered().ask(&self.address, "/token", form).await
    }

    /// Everything the token endpoint was asked, logins included, oldest first.
    pub(crate) async fn log(&self) -> Vec<Entry> {
        let answer = self.request("GET", "/test/log", &[], String::new()).await;
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// The refreshes among them.
    pub(crate) async fn refreshes(&self) -> Vec<Entry> {
        let mut log = self.log().await;
        log.retain(|entry| entry.grant_type.as_deref() == Some("refresh_token"));
        log
    }

    /// Waits until that many refreshes have arrived, answered or not.
    pub(crate) async fn refreshes_reach(&self, count: usize) {
        let arrived = async {
            while self.refreshes().await.len() < count {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(START, arrived).await.unwrap_or_else(|_| panic!("refresh number {count} does not arrive"));
    }

    pub(crate) async fn issued(&self) -> Issued {
        let answer = self.request("GET", "/test/issued", &[], String::new()).await;
        serde_json::from_slice(&answer.body).unwrap()
    }

    /// Puts a fault before the token endpoint, in the words of `server.mjs`.
    pub(crate) async fn fault(&self, fault: Value) {
        assert_eq!(self.request("PUT", "/test/fault", &[], fault.to_string()).await.status, 200);
    }

    /// Takes the fault away, and lets go what it holds.
    pub(crate) async fn heal(&self) {
        assert_eq!(self.request("DELETE", "/test/fault", &[], String::new()).await.status, 200);
    }

    async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: String) -> Response {
        self.connect().await.request(method, path, headers, body).await
    }

    async fn connect(&self) -> Connection {
        Connection::to_provider(&self.address).await
    }
}
