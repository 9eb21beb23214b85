//! Requests to providers of their own kind.

use std::time::Duration;

use credproxy::{
    dialect::{Additions, Dialect, Headers, MemberNames, Parameters, Request, RequestForm, RequestFormat},
    provider::{Provider as _, oauth2::Settings},
    secret::{AuthorizationCode, DeviceCode, LOGIN_BYTES, LoginState},
};
use serde_json::{Value, json};
use url::Url;

use crate::{
    provider_wire::{
        SECRET_PLACES, authenticating, class, discovering, grant,
        logins::{logging_in, verifier},
        provider, refresh, settings,
    },
    support::issuer::{Issuer, Raw, Seen},
};

const REDIRECT: &str = "http://127.0.0.1:9/callback";

/// The settings with these requests.
fn asking(requests: RequestForm, settings: Settings) -> Settings {
    Settings { dialect: Dialect { requests, ..settings.dialect }, ..settings }
}

fn headers(pairs: &[(&str, &str)]) -> Headers {
    let mut headers = Headers::default();
    for (name, value) in pairs {
        headers.add(name, value).unwrap();
    }
    headers
}

/// Everything that a provider is asked, once: the address that a browser is sent to, and the requests.
async fn ask_everything(issuer: &Issuer, settings: Settings) -> (Url, Vec<Seen>) {
    let provider = provider(settings);
    let state = LoginState::from_bytes([2; LOGIN_BYTES]);
    let address = provider.authorization_url(REDIRECT, &state, &verifier()).await.unwrap();
    provider.exchange(&AuthorizationCode::new("canary-code".into()).unwrap(), REDIRECT, &verifier()).await;
    provider.start_device(&verifier()).await.unwrap();
    provider.poll_device(&DeviceCode::new("canary-device".into()).unwrap(), &verifier()).await;
    let (access, token) = issuer.new_grant();
    assert_eq!(class(&provider.refresh(&grant(&access, Some(&token))).await), "200 issued");
    provider.revoke(&grant(&access, Some(&token))).await;
    (address, issuer.requests())
}

/// A login's settings, with a place to revoke at.
fn everything(issuer: &Issuer) -> Settings {
    let mut settings = logging_in(issuer);
    settings.endpoints.revocation = Some(Url::parse(&issuer.revocation_endpoint()).unwrap());
    settings
}

/// The parameters of a form, or of an address.
fn pairs(seen: &str) -> Vec<(String, String)> {
    url::form_urlencoded::parse(seen.as_bytes()).into_owned().collect()
}

#[track_caller]
fn assert_nothing_twice(pairs: &[(String, String)]) {
    let mut names: Vec<&str> = pairs.iter().map(|(name, _)| name.as_str()).filter(|name| *name != "resource").collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "{pairs:?}");
}

fn values<'a>(pairs: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
}

/// Figma.
#[tokio::test]
async fn refreshes_go_to_an_endpoint_of_their_own_and_logins_to_the_token_endpoint() {
    let issuer = Issuer::start().await;
    issuer.serve("/refresh", Raw::json(200, &json!({"access_token": "a", "user_id": 7})));
    let mut settings = logging_in(&issuer);
    settings.endpoints.refresh = Some(Url::parse(&format!("{}/refresh", issuer.origin())).unwrap());
    let provider = provider(settings);
    assert_eq!(class(&provider.refresh(&grant("at", Some("canary-rt"))).await), "200 issued");
    provider.exchange(&AuthorizationCode::new("canary-code".into()).unwrap(), REDIRECT, &verifier()).await;
    let targets: Vec<String> = issuer.requests().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/refresh", "/token"]);
}

/// AWS.
#[tokio::test]
async fn requests_name_their_members_as_the_provider_does() {
    let issuer = Issuer::start().await;
    let names = MemberNames::new([
        ("grant_type", "grantType"),
        ("client_id", "clientId"),
        ("client_secret", "clientSecret"),
        ("refresh_token", "refreshToken"),
        ("device_code", "deviceCode"),
        ("user_code", "userCode"),
        ("verification_uri", "verificationUri"),
        ("expires_in", "expiresIn"),
        ("access_token", "accessToken"),
    ])
    .unwrap();
    let mut parameters = Parameters::default();
    parameters.add(Request::Device, &names, "startUrl", "https://corp.example/start").unwrap();
    let mut additions = Additions::default();
    additions.set(Request::Device, parameters, Headers::default());
    let secret = authenticating(Some(SECRET_PLACES[0]), "canary-secret", RequestFormat::Json, logging_in(&issuer));
    let requests = RequestForm { additions, ..secret.dialect.requests.clone() };
    let provider = provider(Settings { dialect: Dialect { names, requests, ..Dialect::default() }, ..secret });

    let codes = json!({"deviceCode": "canary-device", "userCode": "AB-1", "verificationUri": "https://d.example/",
        "expiresIn": 600, "interval": 1});
    issuer.answer_device(Raw::json(200, &codes));
    let begun = provider.start_device(&verifier()).await.unwrap();
    assert_eq!((begun.user_code.as_str(), begun.verification_uri.as_str()), ("AB-1", "https://d.example/"));
    assert_eq!(begun.lifetime, Some(Duration::from_mins(10)));
    provider.poll_device(&begun.device_code, &verifier()).await;
    provider.refresh(&grant("at", Some("canary-rt"))).await;
    let bodies: Vec<Value> = issuer.requests().iter().map(|seen| serde_json::from_str(&seen.body).unwrap()).collect();
    let client = |mut body: Value| {
        body["clientId"] = json!("client-1");
        body["clientSecret"] = json!("canary-secret");
        body
    };
    let expected = [
        client(json!({"scope": "a b:c", "startUrl": "https://corp.example/start"})),
        client(json!({"grantType": "urn:ietf:params:oauth:grant-type:device_code", "deviceCode": "canary-device"})),
        client(json!({"grantType": "refresh_token", "refreshToken": "canary-rt"})),
    ];
    assert_eq!(bodies, expected);
}

#[tokio::test]
async fn each_request_has_the_parameters_and_headers_that_were_added_to_it() {
    let issuer = Issuer::start().await;
    let mut additions = Additions::new(headers(&[("User-Agent", "corp/1"), ("X-All", "yes")]));
    for request in Request::ALL {
        let mut parameters = Parameters::default();
        parameters.add(request, &MemberNames::default(), "for", request.name()).unwrap();
        let own = if request == Request::Refresh { "corp/2" } else { "corp/1" };
        additions.set(request, parameters, headers(&[("X-For", request.name()), ("User-Agent", own)]));
    }
    let requests = RequestForm { additions, ..RequestForm::default() };
    let (address, seen) = ask_everything(&issuer, asking(requests, everything(&issuer))).await;
    let query = pairs(address.query().unwrap());
    assert_eq!(values(&query, "for"), ["authorization"]);
    assert_nothing_twice(&query);
    for (seen, name) in seen.iter().zip(["token", "device", "token", "refresh", "revocation"]) {
        let body = pairs(&seen.body);
        assert_eq!(values(&body, "for"), [name]);
        assert_nothing_twice(&body);
        assert_eq!((seen.header("x-for"), seen.header("x-all")), (Some(name), Some("yes")), "{seen:?}");
        let agent = if name == "refresh" { "corp/2" } else { "corp/1" };
        assert_eq!(seen.header("user-agent"), Some(agent), "{seen:?}");
        assert_eq!(seen.header("content-type"), Some("application/x-www-form-urlencoded"), "{seen:?}");
    }
    assert_eq!(seen.len(), 5);
}

#[tokio::test]
async fn discovery_has_the_headers_of_every_request_too() {
    let issuer = Issuer::start().await;
    let place = "/.well-known/openid-configuration";
    issuer.serve(place, Raw::json(200, &issuer.metadata(&issuer.origin())));
    let additions = Additions::new(headers(&[("User-Agent", "corp/1"), ("Accept", "application/vnd.corp+json")]));
    let requests = RequestForm { additions, ..RequestForm::default() };
    let reply = refresh(&issuer, asking(requests, discovering(&issuer.origin()))).await;
    assert_eq!(class(&reply), "200 issued");
    for seen in issuer.requests() {
        let told = (seen.header("user-agent"), seen.header("accept"));
        assert_eq!(told, (Some("corp/1"), Some("application/vnd.corp+json")), "{seen:?}");
    }
}

#[tokio::test]
async fn what_the_tokens_are_for_is_said_in_every_request_for_them() {
    let issuer = Issuer::start().await;
    let resources = ["https://a.example/", "urn:b"].map(str::to_owned).to_vec();
    let requests = RequestForm { resources, ..RequestForm::default() };
    let (address, seen) = ask_everything(&issuer, asking(requests.clone(), everything(&issuer))).await;
    let both = ["https://a.example/", "urn:b"];
    assert_eq!(values(&pairs(address.query().unwrap()), "resource"), both);
    for seen in &seen[..4] {
        assert_eq!(values(&pairs(&seen.body), "resource"), both, "{seen:?}");
    }
    assert!(!seen[4].body.contains("resource"), "{:?}", seen[4]);

    for (count, expected) in [(2, json!(both)), (1, json!(both[0]))] {
        let resources = both[..count].iter().map(|text| (*text).to_owned()).collect();
        let requests = RequestForm { resources, format: RequestFormat::Json, ..requests.clone() };
        refresh(&issuer, asking(requests, settings(&issuer.token_endpoint()))).await;
        let body: Value = serde_json::from_str(&issuer.requests().last().unwrap().body).unwrap();
        assert_eq!(body["resource"], expected);
    }
}

#[tokio::test]
async fn scopes_are_joined_and_said_again_as_the_provider_wants_it() {
    let issuer = Issuer::start().await;
    let requests = RequestForm { scope_separator: ',', scope_on_refresh: true, ..RequestForm::default() };
    let (address, seen) = ask_everything(&issuer, asking(requests.clone(), everything(&issuer))).await;
    assert_eq!(values(&pairs(address.query().unwrap()), "scope"), ["a,b:c"]);
    let bodies: Vec<_> = seen.iter().map(|seen| pairs(&seen.body)).collect();
    let scopes: Vec<_> = bodies.iter().map(|body| values(body, "scope")).collect();
    // The exchange, the device's beginning and question, a refresh of a grant of "read write", a revocation.
    assert_eq!(scopes, [vec![], vec!["a,b:c"], vec![], vec!["read write"], vec![]]);

    let mut unknown = grant("at", Some("canary-rt"));
    unknown.scope = None;
    provider(asking(requests.clone(), everything(&issuer))).refresh(&unknown).await;
    assert_eq!(values(&pairs(&issuer.requests().last().unwrap().body), "scope"), ["a,b:c"]);
    provider(asking(requests, settings(&issuer.token_endpoint()))).refresh(&unknown).await;
    assert!(!issuer.requests().last().unwrap().body.contains("scope"));
}

#[tokio::test]
async fn what_an_endpoints_own_query_says_stays_unless_the_request_says_it() {
    let issuer = Issuer::start().await;
    let mut parameters = Parameters::default();
    for (name, value) in [("prompt", "login"), ("code", "true")] {
        parameters.add(Request::Authorization, &MemberNames::default(), name, value).unwrap();
    }
    let mut additions = Additions::default();
    additions.set(Request::Authorization, parameters, Headers::default());
    let requests = RequestForm { additions, ..RequestForm::default() };
    for (query, kept) in
        [("?prompt=consent&plan=x&client_id=evil&plain", 2), ("?prompt=consent", 0), ("", 0), ("?a=%20", 1)]
    {
        let mut settings = asking(requests.clone(), logging_in(&issuer));
        let endpoint = format!("{}{query}", issuer.authorization_endpoint());
        settings.endpoints.authorization = Some(Url::parse(&endpoint).unwrap());
        let provider = provider(settings);
        let state = LoginState::from_bytes([2; LOGIN_BYTES]);
        let address = provider.authorization_url(REDIRECT, &state, &verifier()).await.unwrap();
        let said = pairs(address.query().unwrap());
        assert_nothing_twice(&said);
        assert_eq!((values(&said, "prompt"), values(&said, "code")), (vec!["login"], vec!["true"]), "{address}");
        assert_eq!(values(&said, "client_id"), ["client-1"], "{address}");
        // Seven of the protocol's and two that were added.
        assert_eq!(said.len(), 9 + kept, "{address}");
        assert!(!address.query().unwrap().starts_with('&'), "{address}");
    }
}
