//! The provider client against real sockets: what it sends, and what it makes of every answer.
use std::{sync::Arc, time::Duration};

use credproxy::{
    clock::{SystemClock, Timestamp},
    dialect::{Dialect, RequestForm, RequestFormat, SecretPlace},
    grant::{Extra, Grant, GrantId, Issued, Lifetime},
    provider::{
        Body, Provider as _, Reply, Rules,
        oauth2::{Authentication, Endpoints, LoginSettings, OAuth2, Settings, endpoint},
    },
    secret::{AccessToken, ClientSecret, RefreshToken},
};
use url::Url;

use crate::support::issuer::Issuer;

mod answers;
mod assertion;
mod connections;
mod dialect;
mod discovery;
mod issuer;
mod logins;
mod quirks;
mod requests;
mod second_exchange;

/// Long enough to never end a test that does not ask for it.
const PATIENT: Duration = Duration::from_secs(20);
/// When grants were issued.
const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);
/// For the tests in which the time is up.
const IMPATIENT: Duration = Duration::from_millis(300);

fn settings(token_endpoint: &str) -> Settings {
    Settings {
        endpoints: Endpoints { token: Some(Url::parse(token_endpoint).unwrap()), ..Endpoints::default() },
        client_id: "client-1".into(),
        authentication: Authentication::None,
        dialect: Dialect::default(),
        second_exchange: None,
        request_timeout: PATIENT,
        ca_file: None,
        rules: Rules::default(),
        login: LoginSettings::default(),
    }
}

fn provider(settings: Settings) -> OAuth2 {
    OAuth2::new(settings, Arc::new(SystemClock::new())).unwrap()
}

fn grant(access: &str, refresh: Option<&str>) -> Grant {
    let issued = Issued {
        access_token: AccessToken::new(access.into()).unwrap(),
        token_type: None,
        lifetime: Lifetime::Unknown,
        scope: Some("read write".into()),
        refresh_token: refresh.map(|text| RefreshToken::new(text.into()).unwrap()),
        extra: Extra::default(),
    };
    Grant::new(GrantId::from_bytes([1; 16]), issued, NOW)
}

/// A refresh with a token that the server knows.
async fn refresh(issuer: &Issuer, settings: Settings) -> Reply {
    let (access, token) = issuer.new_grant();
    provider(settings).refresh(&grant(&access, Some(&token))).await
}

/// A reply in a few words.
fn class(reply: &Reply) -> String {
    match reply {
        Reply::NotSent(why) => format!("not sent: {why}"),
        Reply::Lost { timed_out: true } => "timed out".into(),
        Reply::Lost { timed_out: false } => "broke off".into(),
        Reply::Answered { status, body: Body::Issued(_), .. } => format!("{status} issued"),
        Reply::Answered { status, body: Body::Error(code), .. } => format!("{status} error {}", code.as_str()),
        Reply::Answered { status, body: Body::Unreadable, .. } => format!("{status} unreadable"),
    }
}

const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
const FORM: &str = "application/x-www-form-urlencoded; charset=utf-8";

const SECRET_PLACES: [SecretPlace; 3] = [SecretPlace::Body, SecretPlace::Basic, SecretPlace::BasicRaw];

/// Settings of a client that proves itself by a secret, unless it has no place for one.
fn authenticating(place: Option<SecretPlace>, secret: &str, format: RequestFormat, settings: Settings) -> Settings {
    let secret = || Ok(ClientSecret::new(secret.into()).unwrap());
    let authentication = place.map_or(Authentication::None, |place| Authentication::Secret { place, secret: secret() });
    let requests = RequestForm { format, ..RequestForm::default() };
    Settings { authentication, dialect: Dialect { requests, ..Dialect::default() }, ..settings }
}

/// Settings that name an issuer and no endpoint.
fn discovering(issuer: &str) -> Settings {
    let endpoints = Endpoints { issuer: Some(endpoint(issuer).unwrap()), ..Endpoints::default() };
    Settings { endpoints, ..settings("https://unused.example/") }
}
