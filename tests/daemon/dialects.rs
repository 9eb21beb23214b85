//! Providers of their own kind, by the real program: a client that signs, at an authorization server that others wrote,
//! and a login's token that only buys others.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use serde_json::{Value, json};

use crate::support::{
    daemon::{Daemon, Home},
    http::{Connection, Response},
    issuer::{Issuer, Raw},
    oidc::Oidc,
};

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

/// What the tokens are for.
const RESOURCE: &str = "https://api.example.com/";

async fn begin(daemon: &Daemon, provider: &str, flow: &str) -> Value {
    let body = json!({"provider": provider, "flow": flow}).to_string();
    let answer = daemon.request("POST", "/v1/logins", &JSON, body).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()
}

/// Brings the address that the browser was sent to, or waits for the device's confirmation; how the login ended.
async fn end(daemon: &Daemon, login: &Value, back: Option<&str>) -> Value {
    let path = format!("/v1/logins/{}", login["id"].as_str().unwrap());
    if let Some(back) = back {
        let body = json!({"code": back}).to_string();
        daemon.request("POST", &format!("{path}/code"), &JSON, body).await;
    }
    daemon.request("GET", &path, &[("prefer", "wait=30")], "").await.json()
}

async fn refresh(daemon: &Daemon, provider: &str) -> Response {
    daemon.request("POST", &format!("/v1/tokens/{provider}/refresh"), &[], "").await
}

/// The claims of a JWT.
fn claims(token: &str) -> Value {
    let part = token.split('.').nth(1).unwrap_or_else(|| panic!("no JWT: {token}"));
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[tokio::test]
async fn a_client_that_signs_logs_in_refreshes_and_logs_out_by_every_algorithm() {
    let oidc = Oidc::start().await;
    let made = |kind| KeyPair::generate_for(kind).unwrap();
    let rsa = || KeyPair::from_pem(include_str!("../support/rsa.pem")).unwrap();
    let keys = [
        ("RS256", rsa()),
        ("PS256", rsa()),
        ("ES256", made(&PKCS_ECDSA_P256_SHA256)),
        ("ES384", made(&PKCS_ECDSA_P384_SHA384)),
        ("EdDSA", made(&PKCS_ED25519)),
    ];
    let mut config = "[refresh]\ncooldown = \"0s\"\n".to_owned();
    for (algorithm, key) in &keys {
        let client = json!({"client_id": algorithm, "algorithm": algorithm, "key": key.public_key_pem()}).to_string();
        let mut control = Connection::to_provider(oidc.issuer().strip_prefix("http://").unwrap()).await;
        assert_eq!(control.request("PUT", "/test/client", &[], client).await.status, 200);
        write!(
            config,
            "[providers.{algorithm}]\nissuer = {:?}\nclient_id = \"{algorithm}\"\nclient_auth = \"private_key_jwt\"\n\
             client_key = {{ env = \"KEY_{algorithm}\" }}\nclient_key_id = \"{algorithm}\"\n\
             client_key_algorithm = \"{algorithm}\"\nresource = [\"{RESOURCE}\"]\n\
             scopes = [\"openid\", \"offline_access\", \"read\"]\nrequests.authorization.params.prompt = \"consent\"\n",
            oidc.issuer(),
        )
        .unwrap();
    }
    let keys = keys.map(|(algorithm, key)| (algorithm, format!("KEY_{algorithm}"), key.serialize_pem()));
    let env: Vec<_> = keys.iter().map(|(_, name, key)| (name.as_str(), key.as_str())).collect();
    let daemon = Daemon::start(&Home::new(), "a", &config, &env).await;
    for (algorithm, _, key) in &keys {
        daemon.watch_secret(key.lines().rev().nth(1).unwrap());
        let flow = if *algorithm == "ES256" { "device" } else { "paste" };
        let login = begin(&daemon, algorithm, flow).await;
        let back = if let Some(url) = login["authorization_url"].as_str() {
            Some(oidc.agree(url).await)
        } else {
            oidc.confirm_device(login["verification_uri_complete"].as_str().unwrap(), true).await;
            None
        };
        let ended = end(&daemon, &login, back.as_ref().map(url::Url::as_str)).await;
        assert_eq!(ended["status"], "complete", "{algorithm}: {ended}");
        for _ in 0..3 {
            let refreshed = refresh(&daemon, algorithm).await;
            assert_eq!(refreshed.status, 200, "{algorithm}: {}", refreshed.text());
            assert_eq!(claims(refreshed.json()["access_token"].as_str().unwrap())["aud"], RESOURCE, "{algorithm}");
        }
        let gone = daemon.request("DELETE", &format!("/v1/tokens/{algorithm}?revoke=true"), &[], "").await;
        assert_eq!(gone.json(), json!({"revoked": true}), "{algorithm}");
    }
    daemon.watch_issued(&oidc.issued().await);
    let refreshes = oidc.refreshes().await;
    assert!(refreshes.len() == 15 && refreshes.iter().all(|entry| !entry.spent_before && entry.status == Some(200)));
}

/// A grant of the server's, as it is imported.
fn import(issuer: &Issuer) -> (String, String) {
    let (access, token) = issuer.new_grant();
    (json!({"access_token": access, "refresh_token": token}).to_string(), token)
}

#[tokio::test]
async fn a_key_that_cannot_be_read_stops_its_provider_and_no_other() {
    let issuer = Issuer::start().await;
    let good = KeyPair::generate().unwrap().serialize_pem();
    let damaged = format!("{}canary-key", &good[..40]);
    let provider = |name: &str| {
        format!(
            "[providers.{name}]\nissuer = {:?}\ntoken_endpoint = {:?}\nclient_id = \"me\"\nclient_key.env = \"{name}\"\n",
            issuer.origin(),
            issuer.token_endpoint(),
        )
    };
    let config = ["good", "damaged", "missing"].map(provider).concat();
    let env = [("good", good.as_str()), ("damaged", damaged.as_str())];
    let daemon = Daemon::start(&Home::new(), "a", &config, &env).await;
    for (name, status) in [("good", 200), ("damaged", 502), ("missing", 502)] {
        let (grant, token) = import(&issuer);
        daemon.watch_refresh_token(&token);
        assert!(daemon.command(&["import", name], &grant).await.status.success());
        let answer = refresh(&daemon, name).await;
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        assert_eq!(issuer.times_presented(&token), usize::from(status == 200), "{name}");
        if status != 200 {
            assert!(answer.text().contains("the client key could not be read"), "{}", answer.text());
        }
    }
    // An issuer that was not asked how it spells itself is named as the configuration does.
    let [request] = &issuer.requests()[..] else { panic!("{:?}", issuer.requests()) };
    let mut form = url::form_urlencoded::parse(request.body.as_bytes());
    let assertion = form.find(|(name, _)| name == "client_assertion").unwrap().1;
    assert_eq!(claims(&assertion)["aud"], issuer.origin());
    let said = String::from_utf8(daemon.command(&["check"], "").await.stdout).unwrap();
    assert!(said.contains("provider damaged  the client key is no private key in PEM form"), "{said}");
    assert!(said.contains("provider missing  the environment variable named by client_key.env is not set"), "{said}");
}

#[tokio::test]
async fn a_login_outlives_an_outage_of_the_place_where_its_token_buys_others() {
    let issuer = Issuer::start().await;
    let config = format!(
        "[refresh]\ncooldown = \"0s\"\n[providers.copilot]\ntoken_endpoint = {:?}\nauthorization_endpoint = {:?}\n\
         client_id = \"me\"\nmember_names.access_token = \"token\"\ndead_grant_statuses = [401]\n\
         second_exchange = {{ endpoint = \"{}/second\", scheme = \"token\" }}\nheaders.Editor-Version = \"corp/1\"\n",
        issuer.token_endpoint(),
        issuer.authorization_endpoint(),
        issuer.origin(),
    );
    let mut daemon = Daemon::start(&Home::new(), "a", &config, &[]).await;
    issuer.serve("/second", Raw::error(503, "temporarily_unavailable"));
    let login = begin(&daemon, "copilot", "paste").await;
    let back = issuer.agree(login["authorization_url"].as_str().unwrap());
    let ended = end(&daemon, &login, Some(back.as_str())).await;
    assert_eq!((&ended["status"], ended.get("token")), (&json!("complete"), None), "{ended}");
    let asked = || issuer.requests().into_iter().filter(|seen| seen.target == "/second").collect::<Vec<_>>();
    let first = asked().remove(0);
    let long_lived = first.header("authorization").unwrap().strip_prefix("token ").unwrap().to_owned();
    daemon.watch_refresh_token(&long_lived);
    assert_eq!(first.header("editor-version"), Some("corp/1"));

    // Nothing that has expired is handed out, and nothing is forgotten.
    let out = daemon.request("GET", "/v1/tokens/copilot", &[], "").await;
    assert_eq!((out.status, &out.json()["code"]), (502, &json!("REFRESH_FAILED")), "{}", out.text());
    daemon.restart().await;
    issuer.serve("/second", Raw::json(200, &json!({"token": "canary-short", "expires_at": 1_900_000_000})));
    let got = daemon.request("GET", "/v1/tokens/copilot", &[], "").await;
    assert_eq!(got.status, 200, "{}", got.text());
    let expected = json!({"access_token": "canary-short", "token_type": "Bearer", "expiry": 1_900_000_000,
        "scope": "read write"});
    assert_eq!(got.json(), expected);
    assert_eq!(refresh(&daemon, "copilot").await.status, 200);
    assert!(asked().iter().all(|seen| seen.header("authorization") == first.header("authorization")));

    issuer.serve("/second", Raw::json(401, &json!({"message": "Bad credentials"})));
    assert_eq!(refresh(&daemon, "copilot").await.status, 401);
    let count = asked().len();
    assert_eq!(refresh(&daemon, "copilot").await.status, 401);
    assert_eq!(asked().len(), count, "a dead grant is asked about no more");
}
