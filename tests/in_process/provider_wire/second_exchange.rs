//! A login's token that only buys others, as GitHub Copilot has it.

use credproxy::{
    clock::{Clock as _, SystemClock, Timestamp},
    dialect::{Additions, Dialect, Headers, MemberNames, Parameters, Request, RequestForm, SecondExchange},
    grant::{Issued, Lifetime},
    provider::{Body, DevicePoll, Provider as _, Reply, Rules, oauth2::Settings},
    secret::{AuthorizationCode, DeviceCode, RefreshToken},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use url::Url;

use crate::{
    provider_wire::{
        HTML, IMPATIENT, class, grant,
        logins::{logging_in, verifier},
        provider,
    },
    support::issuer::{Answer, Issuer, Raw},
};

const PLACE: &str = "/copilot_internal/v2/token";
const LONG_LIVED: &str = "canary-ghu-1";

fn short_lived() -> Value {
    json!({"token": "canary-tid=1;exp=2", "expires_at": 1_900_000_000, "refresh_in": 1500,
        "endpoints": {"api": "https://api.example"}, "error_details": null})
}

fn copilot(issuer: &Issuer) -> Settings {
    let mut headers = Headers::default();
    headers.add("Editor-Version", "corp/1.0").unwrap();
    let mut additions = Additions::default();
    additions.set(Request::Refresh, Parameters::default(), headers);
    let names = MemberNames::new([("access_token", "token")]).unwrap();
    let requests = RequestForm { additions, ..RequestForm::default() };
    let endpoint = Url::parse(&format!("{}{PLACE}", issuer.origin())).unwrap();
    Settings {
        dialect: Dialect { names, requests, ..Dialect::default() },
        second_exchange: Some(SecondExchange { endpoint, scheme: "token".into() }),
        rules: Rules { dead_grant_statuses: vec![401], ..Rules::default() },
        ..logging_in(issuer)
    }
}

/// GitHub's answer to a login.
fn agreed() -> Answer {
    let answer = json!({"access_token": LONG_LIVED, "token_type": "bearer", "scope": "read:user",
        "refresh_token": "canary-of-another-chain"});
    Answer::Raw(Raw::json(200, &answer))
}

async fn exchange(issuer: &Issuer, settings: Settings) -> Reply {
    issuer.script(agreed());
    let code = AuthorizationCode::new("canary-code".into()).unwrap();
    provider(settings).exchange(&code, "https://p.example/", &verifier()).await
}

async fn poll(issuer: &Issuer, settings: Settings) -> DevicePoll {
    issuer.script(agreed());
    provider(settings).poll_device(&DeviceCode::new("canary-device".into()).unwrap(), &verifier()).await
}

fn is(token: Option<&RefreshToken>, text: &str) -> bool {
    token.is_some_and(|token| token.same_as(&RefreshToken::new(text.into()).unwrap()))
}

/// Whether these are tokens whose access token is this.
#[track_caller]
fn assert_issued(issued: &Issued, access: &str) {
    assert!(issued.access_token.reveals(&RefreshToken::new(access.into()).unwrap()), "{issued:?}");
    assert!(is(issued.refresh_token.as_ref(), LONG_LIVED) && !issued.reveals(None));
    assert_eq!(issued.scope.as_deref(), Some("read:user"));
    assert!(!Value::Object(issued.extra.members().clone()).to_string().contains("canary"));
}

#[tokio::test]
async fn a_logins_token_buys_the_first_access_token_and_every_other_one() {
    let issuer = Issuer::start().await;
    issuer.serve(PLACE, Raw::json(200, &short_lived()));
    let Reply::Answered { status: 200, body: Body::Issued(exchanged), .. } = exchange(&issuer, copilot(&issuer)).await
    else {
        panic!("no tokens");
    };
    let DevicePoll::Issued(polled) = poll(&issuer, copilot(&issuer)).await else { panic!("no tokens") };
    for issued in [&exchanged, &polled] {
        assert_issued(issued, "canary-tid=1;exp=2");
        assert_eq!(issued.lifetime, Lifetime::At(Timestamp::from_secs(1_900_000_000)));
        assert_eq!(issued.extra.members()["endpoints"]["api"], "https://api.example");
    }
    let provider = provider(copilot(&issuer));
    for _ in 0..2 {
        let reply = provider.refresh(&grant("canary-at", Some(LONG_LIVED))).await;
        let Reply::Answered { body: Body::Issued(tokens), .. } = &reply else { panic!("{reply:?}") };
        assert!(tokens.refresh_token.is_none() && tokens.scope.is_none());
    }
    let asked: Vec<_> = issuer.requests().into_iter().filter(|seen| seen.target == PLACE).collect();
    assert_eq!(asked.len(), 4);
    for seen in asked {
        assert_eq!((seen.method.as_str(), seen.body.as_str()), ("GET", ""));
        assert_eq!(seen.header("authorization"), Some("token canary-ghu-1"));
        assert_eq!(
            (seen.header("editor-version"), seen.header("accept")),
            (Some("corp/1.0"), Some("application/json"))
        );
    }
}

#[tokio::test]
async fn a_login_whose_token_buys_nothing_for_now_is_kept_with_an_access_token_that_has_expired() {
    let issuer = Issuer::start().await;
    for answer in [
        Raw::error(503, "temporarily_unavailable"),
        Raw::new(502, HTML, "<html>"),
        Raw::error(429, "slow_down"),
        Raw::json(403, &json!({"message": "not dead unless told so"})),
        Raw::json(200, &json!({"unknown": "names"})),
        Raw::json(200, &json!({"token": LONG_LIVED})),
        Raw::new(302, "", "").header("Location", "/"),
    ] {
        issuer.serve(PLACE, answer.clone());
        let reply = exchange(&issuer, copilot(&issuer)).await;
        let Reply::Answered { status: 200, body: Body::Issued(tokens), .. } = reply else { panic!("{answer:?}") };
        assert_issued(&tokens, "none-yet");
        let Lifetime::At(end) = tokens.lifetime else { panic!("{tokens:?}") };
        assert!(end <= SystemClock::new().now(), "{answer:?}");
        assert!(matches!(poll(&issuer, copilot(&issuer)).await, DevicePoll::Issued(_)), "{answer:?}");
    }
}

#[tokio::test]
async fn a_login_whose_token_is_called_dead_is_no_grant() {
    let issuer = Issuer::start().await;
    for (answer, expected) in [
        (Raw::json(401, &json!({"message": "Bad credentials"})), "401 unreadable"),
        (Raw::error(400, "invalid_grant"), "400 error invalid_grant"),
    ] {
        issuer.serve(PLACE, answer.clone());
        assert_eq!(class(&exchange(&issuer, copilot(&issuer)).await), expected);
        let DevicePoll::Failed(code) = poll(&issuer, copilot(&issuer)).await else { panic!("{answer:?}") };
        assert!(expected.ends_with(code.as_str()), "{code:?}");
        let reply = provider(copilot(&issuer)).refresh(&grant("canary-at", Some(LONG_LIVED))).await;
        assert_eq!(class(&reply), expected);
    }
}

#[tokio::test]
async fn what_came_of_asking_is_not_guessed() {
    let issuer = Issuer::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let breaking = listener.local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut server = JoinSet::new();
    server.spawn(async move {
        loop {
            // Taken, and closed before a word is read: it may have been on its way.
            drop(listener.accept().await.unwrap());
        }
    });
    for (address, expected) in [
        (refused, "not sent: no connection was made"),
        (breaking, "broke off"),
        (silent.local_addr().unwrap(), "timed out"),
    ] {
        let endpoint = Url::parse(&format!("http://{address}/")).unwrap();
        let second_exchange = Some(SecondExchange { endpoint, scheme: "Bearer".into() });
        let settings = Settings { second_exchange, request_timeout: IMPATIENT, ..copilot(&issuer) };
        assert_eq!(class(&provider(settings).refresh(&grant("canary-at", Some(LONG_LIVED))).await), expected);
    }
}

#[tokio::test]
async fn a_grant_is_revoked_by_the_logins_token() {
    let issuer = Issuer::start().await;
    let mut settings = copilot(&issuer);
    settings.endpoints.revocation = Some(Url::parse(&issuer.revocation_endpoint()).unwrap());
    assert!(provider(settings).revoke(&grant("canary-at", Some(LONG_LIVED))).await);
    let body = &issuer.requests()[0].body;
    assert_eq!(*body, format!("token={LONG_LIVED}&token_type_hint=access_token&client_id=client-1"));
}
