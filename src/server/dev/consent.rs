//! The pages on which a person approves or denies a login.
//!
//! Invariants:
//! 1. A page contains nothing of a request: our own words, and codes known to the server.
//! 2. The browser is redirected to loopback addresses only (RFC 8252 section 7.3).
//! 3. A code is good for one exchange, with the redirect URI and the verifier it was requested with.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Json,
    extract::{RawQuery, State},
    response::{Html, IntoResponse, Redirect, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{StatusCode, header};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use url::{Host, Url};

use super::{IssuerState, members, random, random_bytes};

/// More logins than a person starts; the oldest ones are dropped as abandoned.
const MAX_PENDING: usize = 100;

/// Letters that form no words and are not mistaken for one another (RFC 8628 section 6.1).
const LETTERS: &[u8; 20] = b"BCDFGHJKLMNPQRSTVWXZ";

/// The polling interval in seconds: short, for someone who is trying things out.
const POLL_INTERVAL_SECS: u64 = 1;

const PAGE: &str = include_str!("page.html");

/// The pending logins.
#[derive(Debug, Default)]
pub(super) struct Consents {
    /// The requests of browsers, by page id.
    requests: HashMap<String, Request>,
    /// By authorization code.
    codes: HashMap<String, Request>,
    /// By device code.
    devices: HashMap<String, Device>,
}

#[derive(Debug)]
struct Request {
    redirect_uri: Url,
    state: String,
    challenge: String,
}

#[derive(Debug)]
struct Device {
    user_code: String,
    agreed: Option<bool>,
}

/// The answers to a token request.
pub(super) enum Verdict {
    Agreed,
    Pending,
    Refused,
    Unknown,
}

impl Consents {
    /// Invariant 3: a code is removed once it was presented, whatever the result.
    pub(super) fn exchange(&mut self, code: &str, redirect_uri: &str, verifier: &str) -> Verdict {
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier));
        match self.codes.remove(code) {
            Some(asked) if asked.redirect_uri.as_str() == redirect_uri && asked.challenge == challenge => {
                Verdict::Agreed
            }
            Some(_) | None => Verdict::Unknown,
        }
    }

    /// A decision is returned once.
    pub(super) fn ask(&mut self, device_code: &str) -> Verdict {
        let Some(device) = self.devices.get(device_code) else { return Verdict::Unknown };
        let Some(agreed) = device.agreed else { return Verdict::Pending };
        self.devices.remove(device_code);
        if agreed { Verdict::Agreed } else { Verdict::Refused }
    }

    fn waiting(&mut self, typed: &str) -> Option<&mut Device> {
        let letters = |text: &str| text.to_ascii_uppercase().replace(['-', ' '], "");
        let typed = letters(typed);
        self.devices.values_mut().find(|device| device.agreed.is_none() && letters(&device.user_code) == typed)
    }
}

fn keep<T>(place: &mut HashMap<String, T>, name: &str, value: T) {
    if place.len() >= MAX_PENDING {
        place.clear();
    }
    place.insert(name.to_owned(), value);
}

/// RFC 6749 section 4.1.1, with PKCE (RFC 7636).
pub(super) async fn authorize(State(state): State<Arc<IssuerState>>, RawQuery(query): RawQuery) -> Response {
    let mut asked = members(&query.unwrap_or_default());
    let mut take = |name: &str| asked.remove(name).unwrap_or_default();
    let redirect_uri = Url::parse(&take("redirect_uri")).ok().filter(is_loopback);
    let well_formed = take("response_type") == "code" && take("code_challenge_method") == "S256";
    let (Some(redirect_uri), true) = (redirect_uri, well_formed) else {
        return page(StatusCode::BAD_REQUEST, "Nothing to agree to", "This is no request of credproxy's.", "");
    };
    let name = random("request");
    let request = Request { redirect_uri, state: take("state"), challenge: take("code_challenge") };
    keep(&mut state.consents().requests, &name, request);
    page(StatusCode::OK, "Log in to the built-in server", "credproxy asks for access to your account.", &hidden(&name))
}

/// The person's decision: redirects the browser back (RFC 6749 section 4.1.2).
pub(super) async fn decide(State(state): State<Arc<IssuerState>>, body: String) -> Response {
    let members = members(&body);
    let mut consents = state.consents();
    let Some(request) = members.get("name").and_then(|name| consents.requests.remove(name)) else {
        return page(StatusCode::NOT_FOUND, "Too late", "This was decided before, or never asked.", "");
    };
    let mut back = request.redirect_uri.clone();
    back.query_pairs_mut().append_pair("state", &request.state);
    if members.contains_key("agree") {
        let code = random("dev-code");
        back.query_pairs_mut().append_pair("code", &code);
        keep(&mut consents.codes, &code, request);
    } else {
        back.query_pairs_mut().append_pair("error", "access_denied");
    }
    Redirect::to(back.as_str()).into_response()
}

/// RFC 8628 section 3.1.
pub(super) async fn device_authorization(State(state): State<Arc<IssuerState>>) -> Response {
    let letters: Vec<u8> = random_bytes::<8>().iter().map(|byte| LETTERS[usize::from(*byte) % LETTERS.len()]).collect();
    let user_code = String::from_utf8_lossy(&[&letters[..4], b"-", &letters[4..]].concat()).into_owned();
    let device_code = random("dev-device");
    let page = format!("http://{}/device", state.address);
    let answer = json!({
        "device_code": device_code,
        "user_code": user_code,
        "verification_uri": page,
        "verification_uri_complete": format!("{page}?user_code={user_code}"),
        "expires_in": 600,
        "interval": POLL_INTERVAL_SECS,
    });
    keep(&mut state.consents().devices, &device_code, Device { user_code, agreed: None });
    Json(answer).into_response()
}

/// The page for a device's user code, which may be in its address.
pub(super) async fn device(State(state): State<Arc<IssuerState>>, RawQuery(query): RawQuery) -> Response {
    let typed = members(&query.unwrap_or_default()).remove("user_code").unwrap_or_default();
    match state.consents().waiting(&typed) {
        Some(Device { user_code, .. }) => {
            let text = format!("A device shows the code {user_code} and asks for access to your account.");
            page(StatusCode::OK, "Log in a device", &text, &hidden(user_code))
        }
        None => page(StatusCode::OK, "Log in a device", "Type in the code that it shows.", TYPED),
    }
}

/// The person's decision about a device.
pub(super) async fn decide_device(State(state): State<Arc<IssuerState>>, body: String) -> Response {
    let members = members(&body);
    let mut consents = state.consents();
    let Some(device) = members.get("name").and_then(|typed| consents.waiting(typed)) else {
        return page(StatusCode::NOT_FOUND, "No such code", "It was decided before, or mistyped.", "");
    };
    let agreed = members.contains_key("agree");
    device.agreed = Some(agreed);
    let title = if agreed { "You agreed" } else { "You refused" };
    page(StatusCode::OK, title, "You can close this page. The terminal knows in a moment.", "")
}

fn is_loopback(url: &Url) -> bool {
    let loopback = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(_)) | None => false,
    };
    loopback && url.scheme() == "http"
}

const TYPED: &str = r#"<input name="name" autofocus autocomplete="off" aria-label="Code">"#;

fn hidden(name: &str) -> String {
    format!(r#"<input type="hidden" name="name" value="{name}">"#)
}

/// A page; with a field, it asks for a decision.
fn page(status: StatusCode, title: &str, text: &str, field: &str) -> Response {
    const BUTTONS: &str = r#"<button name="agree">Agree</button> <button name="refuse">Refuse</button>"#;
    let form = if field.is_empty() { String::new() } else { format!("<form method=\"post\">{field}{BUTTONS}</form>") };
    let html = PAGE.replace("{title}", title).replace("{text}", text).replace("{form}", &form);
    let headers = [
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (status, headers, Html(html)).into_response()
}
