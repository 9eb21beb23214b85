//! What a login says to the provider, and what it makes of the answers.

use std::time::Duration;

use credproxy::{
    dialect::RequestFormat,
    provider::{
        DevicePoll, Flow, Provider as _,
        oauth2::{Endpoints, LoginSettings, Settings},
    },
    secret::{AuthorizationCode, CodeVerifier, DeviceCode, LOGIN_BYTES, LoginState},
};
use serde_json::{Value, json};
use url::Url;

use crate::{
    provider_wire::{FORM, HTML, SECRET_PLACES, authenticating, class, discovering, provider, settings},
    support::issuer::{Answer, Issuer, Raw},
};

/// A login's provider: every endpoint is the issuer's.
pub(crate) fn logging_in(issuer: &Issuer) -> Settings {
    let url = |text: String| Some(Url::parse(&text).unwrap());
    let endpoints = Endpoints {
        token: url(issuer.token_endpoint()),
        authorization: url(issuer.authorization_endpoint() + "?prompt=consent"),
        device_authorization: url(issuer.device_authorization_endpoint()),
        ..Endpoints::default()
    };
    let login = LoginSettings { scopes: vec!["a".into(), "b:c".into()], ..LoginSettings::default() };
    Settings { endpoints, login, ..settings("https://unused.example/") }
}

pub(crate) fn verifier() -> CodeVerifier {
    CodeVerifier::from_bytes([1; LOGIN_BYTES])
}

#[tokio::test]
async fn a_login_asks_with_a_challenge_and_exchanges_with_its_verifier() {
    let issuer = Issuer::start().await;
    let provider = provider(logging_in(&issuer));
    assert_eq!(provider.flows(), Flow::ALL);
    let redirect = "http://127.0.0.1:9/callback";
    let state = LoginState::from_bytes([2; LOGIN_BYTES]);
    let url = provider.authorization_url(redirect, &state, &verifier()).await.unwrap();
    let query: Vec<_> = url.query_pairs().into_owned().collect();
    let get = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    assert_eq!((get("prompt"), get("scope"), get("client_id")), (Some("consent"), Some("a b:c"), Some("client-1")));
    assert_eq!((get("redirect_uri"), get("code_challenge")), (Some(redirect), Some(verifier().challenge().as_str())));
    assert!(state.is(get("state").unwrap()));

    let back = issuer.agree(url.as_str());
    let code = back.query_pairs().find(|(name, _)| name == "code").unwrap().1.into_owned();
    let code = || AuthorizationCode::new(code.clone()).unwrap();
    assert_eq!(class(&provider.exchange(&code(), redirect, &verifier()).await), "200 issued");
    assert_eq!(class(&provider.exchange(&code(), redirect, &verifier()).await), "400 error invalid_grant");
    let request = &issuer.requests()[0];
    assert!(!request.target.contains("canary") && request.body.contains("client_id=client-1"), "{request:?}");
}

#[tokio::test]
async fn pkce_is_left_out_where_the_configuration_says_so_and_put_into_device_logins_where_it_does() {
    let issuer = Issuer::start().await;
    let mut settings = logging_in(&issuer);
    settings.login.pkce = false;
    settings.login.device_pkce = true;
    let provider = provider(settings);
    let state = LoginState::from_bytes([2; LOGIN_BYTES]);
    let url = provider.authorization_url("https://p.example/", &state, &verifier()).await.unwrap();
    assert!(!url.as_str().contains("challenge"), "{url}");
    provider.exchange(&AuthorizationCode::new("x".into()).unwrap(), "https://p.example/", &verifier()).await;
    let authorization = provider.start_device(&verifier()).await.unwrap();
    provider.poll_device(&authorization.device_code, &verifier()).await;
    let bodies: Vec<_> = issuer.requests().into_iter().map(|request| request.body).collect();
    assert!(!bodies[0].contains("verifier"), "{bodies:?}");
    assert!(bodies[1].contains("code_challenge_method=S256") && !bodies[1].contains("verifier"), "{bodies:?}");
    assert!(bodies[2].contains("code_verifier="), "{bodies:?}");
}

#[tokio::test]
async fn a_device_names_its_client_in_the_form_once_whichever_way_it_authenticates() {
    for place in [None].into_iter().chain(SECRET_PLACES.map(Some)) {
        let issuer = Issuer::start().await;
        let settings = authenticating(place, "canary-cs", RequestFormat::Form, logging_in(&issuer));
        provider(settings).start_device(&verifier()).await.unwrap();
        let seen = issuer.requests().remove(0);
        assert_eq!(seen.body.matches("client_id=client-1").count(), 1, "{place:?}: {}", seen.body);
    }
}

#[tokio::test]
async fn an_error_code_that_quotes_a_code_or_verifier_is_not_kept() {
    let issuer = Issuer::start().await;
    let provider = provider(logging_in(&issuer));
    for quoted in ["bad_canary-code-1", "bad_AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"] {
        issuer.script(Answer::Raw(Raw::error(400, quoted)));
        let code = AuthorizationCode::new("canary-code-1".into()).unwrap();
        assert_eq!(class(&provider.exchange(&code, "https://p.example/", &verifier()).await), "400 error ");
    }
    issuer.script(Answer::Raw(Raw::error(400, "bad_canary-device-1")));
    let poll = provider.poll_device(&DeviceCode::new("canary-device-1".into()).unwrap(), &verifier()).await;
    let DevicePoll::Failed(code) = poll else { panic!("{poll:?}") };
    assert_eq!(code.as_str(), "");
}

#[tokio::test]
async fn a_device_is_told_what_to_show_in_every_form_and_nothing_that_must_not_be_shown() {
    let issuer = Issuer::start().await;
    let provider = provider(logging_in(&issuer));
    let good = json!({"device_code": "canary-device", "user_code": "AB-1", "verification_uri": "https://p.example/d",
        "verification_uri_complete": "https://p.example/d?c=AB-1", "interval": "7", "expires_in": 900});
    let answered = async |answer: Raw| {
        issuer.answer_device(answer);
        provider.start_device(&verifier()).await
    };
    let begun = answered(Raw::json(200, &good)).await.unwrap();
    assert_eq!((begun.user_code.as_str(), begun.verification_uri.as_str()), ("AB-1", "https://p.example/d"));
    assert_eq!(begun.verification_uri_complete.as_deref(), Some("https://p.example/d?c=AB-1"));
    assert_eq!((begun.interval, begun.lifetime), (Duration::from_secs(7), Some(Duration::from_mins(15))));

    let form = "device_code=d-1&user_code=AB+1&verification_uri=https%3A%2F%2Fp.example%2F%23x";
    let begun = answered(Raw::new(200, FORM, form)).await.unwrap();
    assert_eq!((begun.user_code.as_str(), begun.verification_uri.as_str()), ("AB 1", "https://p.example/#x"));
    assert_eq!((begun.interval, begun.lifetime), (Duration::from_secs(5), None));

    let with = |name: &str, value: Value| {
        let mut answer = good.clone();
        answer[name] = value;
        answer
    };
    let leaking = with("verification_uri_complete", json!("https://p.example/d?c=canary-device"));
    assert_eq!(answered(Raw::json(200, &leaking)).await.unwrap().verification_uri_complete, None);
    for bad in [
        with("device_code", json!("")),
        with("device_code", json!("a\nb")),
        with("user_code", json!("x".repeat(65))),
        with("user_code", json!("\u{1b}[2J")),
        with("user_code", json!("canary-device")),
        with("verification_uri", json!("javascript:alert(1)")),
        with("verification_uri", json!("http://p.example/")),
        with("verification_uri", json!("https://p.example/canary-device")),
        with("verification_uri", json!(5)),
        json!([]),
    ] {
        assert_eq!(answered(Raw::json(200, &bad)).await.unwrap_err().code, None, "{bad}");
    }
    for (answer, code) in [
        (Raw::error(400, "invalid_client"), "invalid_client"),
        (Raw::json(200, &json!({"error": "unauthorized_client"})), "unauthorized_client"),
    ] {
        assert_eq!(answered(answer).await.unwrap_err().code.unwrap().as_str(), code);
    }
    assert!(answered(Raw::new(200, HTML, "<html>no</html>")).await.is_err());
    assert!(answered(Raw::json(500, &good)).await.is_err());
}

#[tokio::test]
async fn every_answer_to_a_device_is_understood() {
    let issuer = Issuer::start().await;
    let provider = provider(logging_in(&issuer));
    let code = DeviceCode::new("canary-device".into()).unwrap();
    let error = Raw::error;
    for (answer, expected) in [
        (error(400, "authorization_pending"), "Pending { interval: None }"),
        // GitHub.
        (Raw::json(200, &json!({"error": "authorization_pending"})), "Pending { interval: None }"),
        (Raw::new(200, FORM, "error=slow_down&interval=10"), "SlowDown { interval: Some(10s) }"),
        (Raw::json(200, &json!({"error": "slow_down", "interval": 15})), "SlowDown { interval: Some(15s) }"),
        // Qwen.
        (error(429, "slow_down"), "SlowDown { interval: None }"),
        (Raw::new(429, HTML, "<html>"), "SlowDown { interval: None }"),
        (error(429, "odd").header("Retry-After", "20"), "SlowDown { interval: Some(20s) }"),
        (error(400, "slow_down"), "SlowDown { interval: None }"),
        (error(400, "AuthorizationPendingException"), "Pending { interval: None }"),
        (error(400, "access_denied"), "Denied"),
        (error(200, "authorization_declined"), "Denied"),
        (error(400, "expired_token"), "Expired"),
        (error(400, "invalid_grant"), "Failed(ErrorCode { text: \"invalid_grant\", safe: true })"),
        (Raw::new(400, "", ""), "Failed(ErrorCode { text: \"\", safe: false })"),
        (Raw::new(200, HTML, "<html>"), "Failed(ErrorCode { text: \"\", safe: false })"),
        (error(503, "temporarily_unavailable"), "Unreachable"),
        (Raw::new(502, HTML, "<html>"), "Unreachable"),
    ] {
        issuer.decide([answer.clone()]);
        let poll = provider.poll_device(&code, &verifier()).await;
        assert_eq!(format!("{poll:?}"), expected, "{answer:?}");
    }
    issuer.script(Answer::ResetBefore);
    assert!(matches!(provider.poll_device(&code, &verifier()).await, DevicePoll::Unreachable));
    issuer.script(Answer::Raw(Raw::json(200, &json!({"access_token": "a"}))));
    assert!(matches!(provider.poll_device(&code, &verifier()).await, DevicePoll::Issued(_)));
}

#[tokio::test]
async fn an_issuer_offers_every_login_until_its_metadata_says_otherwise() {
    let issuer = Issuer::start().await;
    let provider = provider(discovering(&issuer.origin()));
    assert_eq!(provider.flows(), Flow::ALL);
    assert!(issuer.requests().is_empty());
    let mut metadata = issuer.metadata(&issuer.origin());
    metadata["device_authorization_endpoint"] = json!(issuer.device_authorization_endpoint());
    metadata["authorization_response_iss_parameter_supported"] = json!(true);
    issuer.serve("/.well-known/openid-configuration", Raw::json(200, &metadata));
    provider.prepare_login().await.unwrap();
    assert_eq!(provider.flows(), [Flow::Device]);
    assert!(provider.accepts_issuer(Some(&issuer.origin())));
    for iss in [None, Some(""), Some("https://evil.example"), Some(&*format!("{}/", issuer.origin()))] {
        assert!(!provider.accepts_issuer(iss), "{iss:?}");
    }
    let state = LoginState::from_bytes([2; LOGIN_BYTES]);
    assert!(provider.authorization_url("https://p.example/", &state, &verifier()).await.is_err());
}

#[tokio::test]
async fn metadata_that_lies_begins_no_login() {
    let issuer = Issuer::start().await;
    let liar = |answer: Raw| issuer.serve("/.well-known/openid-configuration", answer);
    let honest = issuer.metadata(&issuer.origin());
    let with = |name: &str, value: &str| {
        let mut metadata = honest.clone();
        metadata[name] = json!(value);
        Raw::json(200, &metadata)
    };
    let huge = json!({"issuer": issuer.origin(), "padding": "x".repeat(10_000_000)});
    for lie in
        [with("issuer", "https://evil.example"), with("token_endpoint", "http://h.example/"), Raw::json(200, &huge)]
    {
        liar(lie);
        assert!(provider(discovering(&issuer.origin())).prepare_login().await.is_err());
    }
    liar(with("authorization_endpoint", "http://h.example/authorize"));
    let found = provider(discovering(&issuer.origin()));
    found.prepare_login().await.unwrap();
    assert_eq!(found.flows(), []);
}
