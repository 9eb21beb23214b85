//! One router on a real provider client, a loopback authorization server and a store in memory. Every exchange is held
//! against the OpenAPI document.

use std::{sync::Arc, time::Duration};

use axum::Extension;
use axum_test::TestServer;
use credproxy::{
    account::Account,
    audit::Audit,
    clock::{Clock, SystemClock},
    dialect::Dialect,
    keys::Keys,
    login::Logins,
    policy::{Allowed, Operation, Policy},
    provider::{
        Provider, Rules,
        oauth2::{Authentication, Endpoints, LoginSettings, OAuth2, Settings, endpoint},
    },
    refresh::Coordinator,
    server::{AppState, SocketServices, peer::Peer, router},
    store::{RefreshState, Store as _, memory::MemoryStore},
};
use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};

use crate::support::{
    contract::{Contract, Exchange},
    issuer::{Issuer, Raw},
};

const COOLDOWN: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(15);

pub(crate) struct World {
    pub(crate) issuer: Issuer,
    pub(crate) store: Arc<MemoryStore>,
    pub(crate) coordinator: Coordinator,
    keys: Keys,
    pub(crate) host: Api,
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn code(&self) -> String {
        self.json()["code"].as_str().unwrap().to_owned()
    }

    pub(crate) fn access_token(&self) -> String {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()["access_token"].as_str().unwrap().to_owned()
    }

    pub(crate) fn etag(&self) -> String {
        self.header("etag").unwrap().to_owned()
    }
}

/// A policy of these operations on these accounts.
pub(crate) fn sandbox(allow: &[&str], operations: &[Operation]) -> Policy {
    let allow = allow.iter().map(|text| text.parse().unwrap()).collect();
    Policy::sandbox(Allowed { allow, operations: operations.to_vec(), ..Allowed::default() })
}

/// One socket's router.
pub(crate) struct Api(TestServer);

impl Api {
    pub(crate) fn new(world: &World, policy: Policy) -> Self {
        Self::of(AppState::new(world.coordinator.clone(), world.keys.clone(), policy))
    }

    fn of(state: AppState) -> Self {
        Self(TestServer::new(router(state)).unwrap())
    }

    /// A host's socket of that name, which shares its logins with others.
    pub(crate) fn beside(world: &World, logins: &Logins, socket: &str) -> Self {
        Self::as_peer(world, logins, socket, Peer::own())
    }

    /// The same, as another user meets it.
    pub(crate) fn as_peer(world: &World, logins: &Logins, socket: &str, peer: Peer) -> Self {
        let state = AppState::from(SocketServices {
            coordinator: world.coordinator.clone(),
            keys: world.keys.clone(),
            logins: logins.clone(),
            sandboxes: None,
            audit: Audit::default(),
            socket: socket.into(),
            policy: Policy::host(),
            capability: None,
        });
        Self(TestServer::new(router(state).layer(Extension(peer))).unwrap())
    }

    pub(crate) async fn send(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = self.0.method(Method::from_bytes(method.as_bytes()).unwrap(), target);
        for (name, value) in headers {
            request = request.add_header(name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap());
        }
        if !body.is_empty() {
            let media_type = headers.iter().find(|(name, _)| *name == "content-type").map(|(_, value)| *value);
            request = request.bytes(body.to_vec().into());
            if let Some(media_type) = media_type {
                request = request.content_type(media_type);
            }
        }
        let response = request.await;
        let answer = Answer {
            status: response.status_code().as_u16(),
            headers: response.headers().clone(),
            body: response.as_bytes().to_vec(),
        };
        let owned = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let request_headers: Vec<_> = headers.iter().map(|(name, value)| owned(name, value)).collect();
        let response_headers: Vec<_> =
            answer.headers.iter().map(|(name, value)| owned(name.as_str(), value.to_str().unwrap())).collect();
        let exchange = Exchange {
            method,
            target,
            request_headers: &request_headers,
            request_body: body,
            status: answer.status,
            response_headers: &response_headers,
            response_body: &answer.body,
        };
        if let Err(complaint) = Contract::load().check(&exchange) {
            panic!("{method} {target} against openapi.yaml: {complaint}\n{}", String::from_utf8_lossy(&answer.body));
        }
        answer
    }

    pub(crate) async fn get(&self, target: &str) -> Answer {
        self.send("GET", target, &[], b"").await
    }

    pub(crate) async fn post(&self, target: &str) -> Answer {
        self.send("POST", target, &[], b"").await
    }

    pub(crate) async fn put(&self, target: &str, grant: &Value) -> Answer {
        self.send("PUT", target, &[("content-type", "application/json")], grant.to_string().as_bytes()).await
    }

    pub(crate) async fn delete(&self, target: &str) -> Answer {
        self.send("DELETE", target, &[], b"").await
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(COOLDOWN, TIMEOUT).await
    }

    /// A world with a grant for `corp`.
    pub(crate) async fn with(cooldown: Duration, request_timeout: Duration) -> Self {
        Self::of(cooldown, request_timeout, |_, _| ()).await
    }

    /// A world whose provider has the redirect that its registration names.
    pub(crate) async fn with_redirect(redirect_uri: &str) -> Self {
        let redirect = redirect_uri.parse().unwrap();
        Self::of(COOLDOWN, TIMEOUT, |_, settings| settings.login.redirect_uri = redirect).await
    }

    /// A world whose provider offers no login.
    pub(crate) async fn without_logins() -> Self {
        let none = |_: &Issuer, settings: &mut Settings| {
            settings.endpoints.authorization = None;
            settings.endpoints.device_authorization = None;
        };
        Self::of(COOLDOWN, TIMEOUT, none).await
    }

    /// A world whose provider's endpoints are found by its metadata, which promises `iss` (RFC 9207).
    pub(crate) async fn discovering() -> Self {
        let discovered = |issuer: &Issuer, settings: &mut Settings| {
            let mut metadata = issuer.metadata(&issuer.origin());
            metadata["authorization_endpoint"] = json!(issuer.authorization_endpoint());
            metadata["authorization_response_iss_parameter_supported"] = json!(true);
            issuer.serve("/.well-known/openid-configuration", Raw::json(200, &metadata));
            let origin = Some(endpoint(&issuer.origin()).unwrap());
            settings.endpoints = Endpoints { issuer: origin, ..Endpoints::default() };
        };
        Self::of(COOLDOWN, TIMEOUT, discovered).await
    }

    async fn of(cooldown: Duration, request_timeout: Duration, configure: impl FnOnce(&Issuer, &mut Settings)) -> Self {
        let issuer = Issuer::start().await;
        let url = |text: String| Some(endpoint(&text).unwrap());
        let mut settings = Settings {
            endpoints: Endpoints {
                issuer: None,
                token: url(issuer.token_endpoint()),
                refresh: None,
                authorization: url(issuer.authorization_endpoint()),
                device_authorization: url(issuer.device_authorization_endpoint()),
                revocation: url(issuer.revocation_endpoint()),
            },
            client_id: "client".into(),
            authentication: Authentication::None,
            dialect: Dialect::default(),
            second_exchange: None,
            request_timeout,
            ca_file: None,
            rules: Rules { dead_grant_codes: vec!["token_revoked".into()], ..Rules::default() },
            login: LoginSettings::default(),
        };
        configure(&issuer, &mut settings);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let provider: Arc<dyn Provider> = Arc::new(OAuth2::new(settings, Arc::clone(&clock)).unwrap());
        let providers = [("corp".parse().unwrap(), provider)].into_iter().collect();
        let store = Arc::new(MemoryStore::new().unwrap());
        let keys = Keys::new(Arc::<MemoryStore>::clone(&store), Arc::clone(&clock));
        let coordinator = Coordinator::new(Arc::<MemoryStore>::clone(&store), providers, clock, cooldown);
        let host = Api::of(AppState::new(coordinator.clone(), keys.clone(), Policy::host()));
        let world = Self { issuer, store, coordinator, keys, host };
        assert_eq!(world.log_in("corp").await.status, 201);
        world
    }

    /// Puts a new grant of the authorization server's.
    pub(crate) async fn log_in(&self, path: &str) -> Answer {
        self.host.put(&format!("/v1/tokens/{path}"), &self.grant()).await
    }

    pub(crate) fn grant(&self) -> Value {
        let (access, refresh) = self.issuer.new_grant();
        json!({"access_token": access, "refresh_token": refresh, "token_type": "Bearer", "expires_in": 3600})
    }

    pub(crate) async fn refresh(&self) -> Answer {
        self.host.post("/v1/tokens/corp/refresh").await
    }

    /// What stands beside the grant, and its generation.
    pub(crate) async fn kept(&self) -> (RefreshState, u64) {
        let account: Account = "corp".parse().unwrap();
        let record = self.store.load(&account).await.unwrap().unwrap();
        (record.refresh_state, record.grant.version.generation)
    }
}
