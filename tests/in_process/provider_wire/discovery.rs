//! Endpoints that the issuer's metadata names.

use credproxy::provider::{Provider as _, oauth2::Settings};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use url::Url;

use crate::{
    provider_wire::{HTML, IMPATIENT, JSON, class, discovering, grant, provider, refresh},
    support::issuer::{Issuer, Raw},
};

const OIDC: &str = "/.well-known/openid-configuration";
const OAUTH: &str = "/.well-known/oauth-authorization-server";

#[tokio::test]
async fn the_endpoints_are_found_once_from_the_issuer() {
    let issuer = Issuer::start().await;
    issuer.serve(OIDC, Raw::json(200, &issuer.metadata(&issuer.origin())));
    let provider = provider(discovering(&issuer.origin()));
    for _ in 0..2 {
        let (access, token) = issuer.new_grant();
        assert_eq!(class(&provider.refresh(&grant(&access, Some(&token))).await), "200 issued");
    }
    assert!(provider.revoke(&grant("at", Some("rt"))).await);
    let targets: Vec<String> = issuer.requests().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, [OIDC, "/token", "/token", "/revoke"]);
}

#[tokio::test]
async fn a_given_endpoint_wins_over_discovery() {
    let issuer = Issuer::start().await;
    let mut settings = discovering(&issuer.origin());
    settings.endpoints.token = Some(Url::parse(&issuer.token_endpoint()).unwrap());
    assert_eq!(class(&refresh(&issuer, settings).await), "200 issued");
    assert_eq!(issuer.requests().len(), 1);
}

#[tokio::test]
async fn an_issuer_may_have_a_path_and_only_the_metadata_of_oauth() {
    let issuer = Issuer::start().await;
    for (path, place) in [
        ("", OAUTH.to_owned()),
        ("/tenant", format!("{OAUTH}/tenant")),
        ("/a/b", format!("/a/b{OIDC}")),
        ("/slash/", format!("/slash{OIDC}")),
    ] {
        let name = format!("{}{path}", issuer.origin());
        issuer.serve(&place, Raw::json(200, &issuer.metadata(&name)));
        assert_eq!(class(&refresh(&issuer, discovering(&name)).await), "200 issued", "{path}");
    }
}

#[tokio::test]
async fn metadata_that_cannot_be_trusted_is_refused_before_anything_is_sent() {
    let issuer = Issuer::start().await;
    let origin = issuer.origin();
    let with = |member: &str, value: Value| {
        let mut metadata = issuer.metadata(&origin);
        metadata[member] = value;
        Raw::json(200, &metadata)
    };
    let other = "discovery: the issuer in the metadata is another";
    let endpoint = "discovery: the token_endpoint is not one to send secrets to";
    let none = "discovery: the issuer has no metadata";
    for (metadata, why) in [
        (with("issuer", json!("https://login.example.com")), other),
        (with("issuer", json!(format!("{origin}/x"))), other),
        (with("issuer", Value::Null), other),
        (with("token_endpoint", json!("http://login.example.com/token")), endpoint),
        (with("token_endpoint", json!("/token")), endpoint),
        (with("token_endpoint", Value::Null), "discovery: the metadata has no token_endpoint"),
        (Raw::new(200, HTML, "<html>welcome</html>"), none),
        (Raw::new(200, JSON, "[]"), none),
        (Raw::new(302, "", "").header("Location", OAUTH), none),
        (Raw::new(500, JSON, issuer.metadata(&origin).to_string()), none),
    ] {
        issuer.serve(OIDC, metadata);
        assert_eq!(class(&refresh(&issuer, discovering(&origin)).await), format!("not sent: {why}"));
    }
    assert!(issuer.presentations().is_empty());
}

#[tokio::test]
async fn a_failed_discovery_is_tried_again_by_the_next_refresh() {
    let issuer = Issuer::start().await;
    let provider = provider(discovering(&issuer.origin()));
    let (access, token) = issuer.new_grant();
    let grant = grant(&access, Some(&token));
    assert_eq!(class(&provider.refresh(&grant).await), "not sent: discovery: the issuer has no metadata");
    issuer.serve(OAUTH, Raw::json(200, &issuer.metadata(&format!("{}/", issuer.origin()))));
    assert_eq!(class(&provider.refresh(&grant).await), "200 issued");
}

#[tokio::test]
async fn discovery_uses_up_the_time_of_its_refresh() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", silent.local_addr().unwrap());
    let settings = Settings { request_timeout: IMPATIENT, ..discovering(&issuer) };
    let reply = provider(settings).refresh(&grant("at", Some("rt"))).await;
    assert_eq!(class(&reply), "not sent: the time was up before the request was sent");
}
