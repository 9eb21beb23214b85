use std::{collections::VecDeque, time::Duration};

use async_trait::async_trait;
use serde_json::Map;
use tokio::time::Instant;

use super::{response::PendingResponse, *};
use crate::{
    grant::{Grant, Lifetime},
    provider::{DevicePoll, ErrorCode, Provider, Reply, Rules},
    secret::{AccessToken, CodeVerifier, DeviceCode, LOGIN_BYTES, LoginState},
};

/// Answers devices by a script and notes when it was asked; accepts one issuer.
#[derive(Debug)]
struct Scripted {
    start: Instant,
    script: Mutex<VecDeque<DevicePoll>>,
    asked: Mutex<Vec<u64>>,
    rules: Rules,
}

impl Scripted {
    #[expect(clippy::disallowed_methods, reason = "a clock of a test's own")]
    fn new(script: impl IntoIterator<Item = DevicePoll>) -> Self {
        let script = Mutex::new(script.into_iter().collect());
        Self { start: Instant::now(), script, asked: Mutex::default(), rules: Rules::default() }
    }
}

#[async_trait]
impl Provider for Scripted {
    async fn refresh(&self, _: &Grant) -> Reply {
        Reply::NotSent("never")
    }

    async fn revoke(&self, _: &Grant) -> bool {
        false
    }

    fn rules(&self) -> &Rules {
        &self.rules
    }

    fn accepts_issuer(&self, iss: Option<&str>) -> bool {
        iss == Some("https://p.example")
    }

    async fn poll_device(&self, _: &DeviceCode, _: &CodeVerifier) -> DevicePoll {
        self.asked.lock().unwrap().push(self.start.elapsed().as_secs());
        self.script.lock().unwrap().pop_front().unwrap()
    }
}

fn tokens() -> DevicePoll {
    DevicePoll::Issued(Box::new(Issued {
        access_token: AccessToken::new("canary-at".into()).unwrap(),
        token_type: None,
        lifetime: Lifetime::Unknown,
        scope: None,
        refresh_token: None,
        extra: Map::new().into(),
    }))
}

/// When the provider was asked, in seconds since the beginning, and what came of it.
async fn paced(interval: u64, script: impl IntoIterator<Item = DevicePoll>) -> (Vec<u64>, Result<(), String>) {
    let provider = Scripted::new(script);
    let (code, verifier) = (DeviceCode::new("canary-d".into()).unwrap(), CodeVerifier::from_bytes([1; LOGIN_BYTES]));
    let outcome =
        device::poll(&provider, &code, &verifier, Duration::from_secs(interval), std::future::pending()).await;
    let asked = provider.asked.lock().unwrap().clone();
    (asked, outcome.map(drop).map_err(|error| error.to_string()))
}

const PENDING: DevicePoll = DevicePoll::Pending { interval: None };
const SLOW_DOWN: DevicePoll = DevicePoll::SlowDown { interval: None };

#[tokio::test(start_paused = true)]
async fn slow_down_adds_five_seconds_for_good_each_time() {
    let (asked, outcome) = paced(5, [PENDING, SLOW_DOWN, PENDING, SLOW_DOWN, PENDING, tokens()]).await;
    assert_eq!((asked, outcome), (vec![5, 10, 20, 30, 45, 60], Ok(())));
}

#[tokio::test(start_paused = true)]
async fn an_interval_that_the_provider_names_later_counts_if_it_is_longer() {
    let told = |seconds| Some(Duration::from_secs(seconds));
    let script = [
        DevicePoll::SlowDown { interval: told(30) },
        DevicePoll::Pending { interval: told(2) },
        DevicePoll::SlowDown { interval: told(20) },
        DevicePoll::Pending { interval: told(40) },
        tokens(),
    ];
    let (asked, outcome) = paced(5, script).await;
    assert_eq!((asked, outcome), (vec![5, 35, 65, 100, 140], Ok(())));
}

#[tokio::test(start_paused = true)]
async fn while_nobody_answers_each_wait_is_twice_the_last_and_then_all_is_as_before() {
    let gone = || DevicePoll::Unreachable;
    let (asked, outcome) = paced(5, [gone(), gone(), gone(), gone(), gone(), PENDING, tokens()]).await;
    assert_eq!((asked, outcome), (vec![5, 15, 35, 75, 135, 195, 200], Ok(())));
    let (asked, _) = paced(0, [gone(), PENDING, tokens()]).await;
    assert_eq!(asked, [1, 3, 4]);
}

#[tokio::test(start_paused = true)]
async fn a_device_login_ends_with_what_the_provider_says() {
    for (answer, message) in [
        (DevicePoll::Denied, "the person refused (access_denied)"),
        (DevicePoll::Expired, "the code was not confirmed in time (expired_token)"),
        (DevicePoll::Failed(ErrorCode::new("invalid_grant", None)), "the provider ended the login (invalid_grant)"),
        (DevicePoll::Failed(ErrorCode::new("<b>", None)), "the provider ended the login"),
    ] {
        assert_eq!(paced(5, [PENDING, answer]).await, (vec![5, 10], Err(message.to_owned())));
    }
}

/// What a login with the state `ss…` makes of a response.
fn pending_response() -> PendingResponse {
    let state = LoginState::from_bytes([7; LOGIN_BYTES]);
    PendingResponse::new(state, Arc::new(Scripted::new([]))).0
}

const STATE: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc";
const ISS: &str = "iss=https%3A%2F%2Fp.example";

#[tokio::test]
async fn a_response_counts_only_with_the_state_of_the_login() {
    let pending_response = pending_response();
    for wrong_state in [
        String::new(),
        format!("code=c&{ISS}"),
        format!("code=c&state=&{ISS}"),
        format!("code=c&state={STATE}x&{ISS}"),
        format!("code=c&state={STATE}&state={STATE}&{ISS}"),
        format!("code=c&code=d&state={STATE}&{ISS}"),
        format!("error=access_denied&state=x&{ISS}"),
    ] {
        assert!(pending_response.parse_query(&wrong_state).is_err(), "{wrong_state}");
    }
    for (response, message) in [
        (format!("code=c&state={STATE}"), "the answer came from another issuer than the provider's"),
        (
            format!("code=c&state={STATE}&iss=https%3A%2F%2Fevil.example"),
            "the answer came from another issuer than the provider's",
        ),
        (format!("state={STATE}&{ISS}"), "the answer holds no code"),
        (format!("code=&state={STATE}&{ISS}"), "the answer holds no usable code"),
        (format!("code=a%0Ab&state={STATE}&{ISS}"), "the answer holds no usable code"),
        (format!("error=access_denied&state={STATE}&{ISS}"), "the person or the provider refused (access_denied)"),
        (format!("error=%3Cscript%3E&code=c&state={STATE}&{ISS}"), "the person or the provider refused"),
        (format!("error={STATE}&state={STATE}&{ISS}"), "the person or the provider refused"),
    ] {
        assert_eq!(pending_response.parse_query(&response).unwrap().unwrap_err().to_string(), message, "{response}");
    }
    assert!(
        pending_response.parse_query(&format!("x=1&code=c&state={STATE}&{ISS}&x=2")).unwrap().unwrap().occurs_in("c")
    );
}

#[tokio::test]
async fn a_person_may_bring_the_code_in_three_forms() {
    let pending_response = pending_response();
    for good in [
        "  c1/+~ \n".to_owned(),
        format!("c1/+~#{STATE}"),
        format!("http://127.0.0.1:9/callback?code=c1%2F%2B~&state={STATE}&{ISS}#_=_"),
    ] {
        assert!(pending_response.parse_pasted(&good).unwrap().unwrap().occurs_in("c1/+~"), "{good}");
    }
    for wrong_state in [
        "c#other".to_owned(),
        "c#".to_owned(),
        format!("https://p.example/?code=c&{ISS}"),
        "https://p.example/".to_owned(),
    ] {
        let message = pending_response.parse_pasted(&wrong_state).unwrap().unwrap_err().to_string();
        assert_eq!(message, "what was pasted belongs to another login", "{wrong_state}");
    }
    for malformed in ["", " ", "a b", "ä", "a\u{7}", "://", &"x".repeat(16 * 1024 + 1)] {
        assert!(matches!(pending_response.parse_pasted(malformed), Err(LoginError::Malformed)), "{malformed}");
    }
}

#[tokio::test]
async fn a_login_takes_one_answer() {
    let state = LoginState::from_bytes([7; LOGIN_BYTES]);
    let (pending_response, response) = PendingResponse::new(state, Arc::new(Scripted::new([])));
    pending_response.settle(pending_response.parse_pasted("first").unwrap()).unwrap();
    assert!(matches!(
        pending_response.settle(pending_response.parse_pasted("second").unwrap()),
        Err(LoginError::AlreadyUsed)
    ));
    assert!(response.await.unwrap().unwrap().occurs_in("first"));
}

#[tokio::test]
async fn a_reserved_port_answers_nobody_and_is_nobody_elses() {
    let socket = redirect_listener::reserve([127, 0, 0, 1].into()).unwrap();
    let place = socket.local_addr().unwrap();
    assert_eq!(tokio::net::TcpStream::connect(place).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(std::net::TcpListener::bind(place).is_err());
}
