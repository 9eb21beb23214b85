//! What is sent.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use credproxy::{
    dialect::{RequestFormat, SecretPlace},
    provider::{
        Provider as _,
        oauth2::{Authentication, OAuth2, Settings},
    },
};
use serde_json::{Value, json};
use url::Url;

use crate::{
    provider_wire::{JSON, SECRET_PLACES, authenticating, class, grant, provider, refresh, settings},
    support::issuer::{Issuer, Raw, Seen},
};

const AWKWARD_ID: &str = "id:@+%/& 1";
const AWKWARD_SECRET: &str = "s:@+%/& 2~";

async fn sent(place: Option<SecretPlace>, format: RequestFormat) -> (Seen, String) {
    let issuer = Issuer::start().await;
    let (access, token) = issuer.new_grant();
    let settings = Settings { client_id: AWKWARD_ID.into(), ..settings(&issuer.token_endpoint()) };
    let settings = authenticating(place, AWKWARD_SECRET, format, settings);
    let reply = provider(settings).refresh(&grant(&access, Some(&token))).await;
    assert_eq!(class(&reply), "200 issued");
    let [seen] = <[Seen; 1]>::try_from(issuer.requests()).unwrap();
    (seen, token)
}

#[tokio::test]
async fn a_form_says_who_the_client_is_in_each_of_the_four_ways() {
    const ID: &str = "&client_id=id%3A%40%2B%25%2F%26+1";
    const SECRET: &str = "&client_secret=s%3A%40%2B%25%2F%26+2%7E";
    for (place, members, credentials) in [
        (None, ID.to_owned(), None),
        (Some(SecretPlace::Body), format!("{ID}{SECRET}"), None),
        (Some(SecretPlace::Basic), String::new(), Some("id%3A%40%2B%25%2F%26+1:s%3A%40%2B%25%2F%26+2%7E")),
        (Some(SecretPlace::BasicRaw), String::new(), Some("id:@+%/& 1:s:@+%/& 2~")),
    ] {
        let (seen, token) = sent(place, RequestFormat::Form).await;
        assert_eq!(seen.body, format!("grant_type=refresh_token&refresh_token={token}{members}"), "{place:?}");
        assert_eq!(seen.header("content-type"), Some("application/x-www-form-urlencoded"));
        assert_eq!(seen.header("authorization").map(decode_basic).as_deref(), credentials, "{place:?}");
    }
}

#[tokio::test]
async fn a_json_request_has_the_same_members() {
    for (place, members, credentials) in [
        (None, json!({"client_id": AWKWARD_ID}), false),
        (Some(SecretPlace::Body), json!({"client_id": AWKWARD_ID, "client_secret": AWKWARD_SECRET}), false),
        (Some(SecretPlace::Basic), json!({}), true),
        (Some(SecretPlace::BasicRaw), json!({}), true),
    ] {
        let (seen, token) = sent(place, RequestFormat::Json).await;
        let mut expected = json!({"grant_type": "refresh_token", "refresh_token": token});
        expected.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        assert_eq!(serde_json::from_str::<Value>(&seen.body).unwrap(), expected, "{place:?}");
        assert_eq!(seen.header("content-type"), Some(JSON));
        assert_eq!(seen.header("authorization").is_some(), credentials, "{place:?}");
    }
}

fn decode_basic(header: &str) -> String {
    String::from_utf8(STANDARD.decode(header.strip_prefix("Basic ").unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn the_head_of_a_request_says_what_is_needed_and_no_more() {
    let (seen, _) = sent(Some(SecretPlace::Basic), RequestFormat::Form).await;
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/token"));
    assert_eq!(seen.header("accept"), Some(JSON));
    assert_eq!(seen.header("user-agent"), Some(concat!("credproxy/", env!("CARGO_PKG_VERSION"))));
    assert_eq!(seen.header("content-length"), Some(seen.body.len().to_string().as_str()));
    let mut names: Vec<&str> = seen.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["accept", "authorization", "content-length", "content-type", "host", "user-agent"]);
}

#[tokio::test]
async fn without_a_refresh_token_or_a_readable_secret_nothing_is_sent() {
    let issuer = Issuer::start().await;
    let reply = provider(settings(&issuer.token_endpoint())).refresh(&grant("at", None)).await;
    assert_eq!(class(&reply), "not sent: there is no refresh token");
    for place in SECRET_PLACES {
        let secret = Err("the client secret could not be read");
        let authentication = Authentication::Secret { place, secret };
        let settings = Settings { authentication, ..settings(&issuer.token_endpoint()) };
        assert_eq!(class(&refresh(&issuer, settings).await), "not sent: the client secret could not be read");
    }
    assert!(issuer.requests().is_empty());
}

#[tokio::test]
async fn a_grant_is_revoked_by_its_refresh_token_or_else_its_access_token() {
    let issuer = Issuer::start().await;
    let mut settings = settings(&issuer.token_endpoint());
    assert!(!provider_of(&settings).revoke(&grant("at", Some("rt"))).await, "no endpoint to tell");
    settings.endpoints.revocation = Some(Url::parse(&issuer.revocation_endpoint()).unwrap());
    let provider = provider(settings);
    let (access, token) = issuer.new_grant();
    assert!(provider.revoke(&grant(&access, Some(&token))).await);
    assert!(!issuer.family_alive(&token));
    assert!(provider.revoke(&grant(&access, None)).await);
    assert_eq!(issuer.revocations(), [token.clone(), access.clone()]);
    let bodies: Vec<String> = issuer.requests().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies[0], format!("token={token}&token_type_hint=refresh_token&client_id=client-1"));
    assert_eq!(bodies[1], format!("token={access}&token_type_hint=access_token&client_id=client-1"));
}

fn provider_of(settings: &Settings) -> OAuth2 {
    provider(Settings { endpoints: settings.endpoints.clone(), ..self::settings("https://unused.example/") })
}

#[tokio::test]
async fn a_revocation_that_was_refused_is_not_claimed() {
    let issuer = Issuer::start().await;
    issuer.serve("/no", Raw::error(503, "temporarily_unavailable"));
    let mut settings = settings(&issuer.token_endpoint());
    settings.endpoints.revocation = Some(Url::parse(&format!("{}/no", issuer.origin())).unwrap());
    assert!(!provider(settings).revoke(&grant("at", Some("rt"))).await);
}
