//! Logins at the loopback authorization server: the person is played by `GET /authorize`, who agrees at once, and by
//! [`Issuer::decide`], who says what the next device gets to hear.
//!
//! Codes, verifiers and states are checked as RFC 6749, RFC 7636 and RFC 8628 have it: a code is good for one exchange,
//! with the redirect and the verifier that it was asked for with.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use url::{Url, form_urlencoded};

use super::{Issuer, Raw, Seen, State};

#[derive(Debug, Default)]
pub(super) struct Logins {
    minted: u64,
    /// Codes that were handed out and not exchanged, with their redirect and challenge.
    codes: HashMap<String, (String, String)>,
    /// Device codes that are good.
    devices: Vec<String>,
    /// What the next questions of devices are answered; tokens after the last.
    decisions: VecDeque<Raw>,
    device_answer: Option<Raw>,
    iss: Option<String>,
}

impl Issuer {
    /// Where a person agrees.
    pub(crate) fn authorization_endpoint(&self) -> String {
        format!("{}/authorize", self.origin())
    }

    /// Where device logins begin.
    pub(crate) fn device_authorization_endpoint(&self) -> String {
        format!("{}/device", self.origin())
    }

    /// What devices get to hear at their next questions; after that, tokens.
    pub(crate) fn decide(&self, answers: impl IntoIterator<Item = Raw>) {
        self.shared.lock().logins.decisions.extend(answers);
    }

    /// Takes back what was decided and not yet heard.
    pub(crate) fn forget_decisions(&self) {
        self.shared.lock().logins.decisions.clear();
    }

    /// What the next device that begins a login gets to hear.
    pub(crate) fn answer_device(&self, answer: Raw) {
        self.shared.lock().logins.device_answer = Some(answer);
    }

    /// Sends `iss` with every authorization response (RFC 9207).
    pub(crate) fn send_iss(&self, iss: &str) {
        self.shared.lock().logins.iss = Some(iss.to_owned());
    }

    /// A person who opens this address and agrees: where the browser is sent.
    pub(crate) fn agree(&self, authorization_url: &str) -> Url {
        let url: Url = authorization_url.parse().expect("an address");
        assert!(authorization_url.starts_with(&self.authorization_endpoint()), "{url}");
        self.shared.lock().send_back(&url)
    }
}

impl State {
    pub(super) fn authorize(&mut self, request: &Seen) -> Raw {
        let url = Url::parse("http://localhost").and_then(|base| base.join(&request.target)).expect("an address");
        Raw::new(302, "", "").header("Location", self.send_back(&url).as_str())
    }

    fn send_back(&mut self, url: &Url) -> Url {
        let parameters: HashMap<_, _> = url.query_pairs().into_owned().collect();
        assert_eq!(parameters.len(), url.query_pairs().count(), "a parameter is there twice: {url}");
        assert_eq!(parameters["response_type"], "code");
        assert_eq!(parameters["code_challenge_method"], "S256");
        self.logins.minted += 1;
        let code = format!("canary-code-{}-{:08}", self.port, self.logins.minted);
        let redirect = parameters["redirect_uri"].clone();
        self.logins.codes.insert(code.clone(), (redirect.clone(), parameters["code_challenge"].clone()));
        let mut back = Url::parse(&redirect).expect("a redirect address");
        back.query_pairs_mut().append_pair("code", &code).append_pair("state", &parameters["state"]);
        if let Some(iss) = &self.logins.iss {
            back.query_pairs_mut().append_pair("iss", iss);
        }
        back
    }

    pub(super) fn device(&mut self, request: &Seen) -> Raw {
        if let Some(answer) = self.logins.device_answer.take() {
            return answer;
        }
        let parameters: HashMap<_, _> = form_urlencoded::parse(request.body.as_bytes()).into_owned().collect();
        assert!(parameters.contains_key("client_id"));
        self.logins.minted += 1;
        let code = format!("canary-device-{}-{:08}", self.port, self.logins.minted);
        self.logins.devices.push(code.clone());
        let page = format!("http://127.0.0.1:{}/activate", self.port);
        Raw::json(
            200,
            &json!({"device_code": code, "user_code": "WDJB-MJHT", "verification_uri": page,
                "verification_uri_complete": format!("{page}?user_code=WDJB-MJHT"), "expires_in": 600, "interval": 1}),
        )
    }

    /// The answer to a token request of a login's; `None` when it is of another kind.
    pub(super) fn log_in(&mut self, request: &Seen, now: Duration) -> Option<Raw> {
        let parameter = |name: &str| request.parameter(name).unwrap_or_default();
        let good = match parameter("grant_type").as_str() {
            "authorization_code" => {
                let hash = URL_SAFE_NO_PAD.encode(Sha256::digest(parameter("code_verifier")));
                let asked = self.logins.codes.remove(&parameter("code"));
                asked == Some((parameter("redirect_uri"), hash))
            }
            "urn:ietf:params:oauth:grant-type:device_code" => {
                if let Some(decision) = self.logins.decisions.pop_front() {
                    return Some(decision);
                }
                let place = self.logins.devices.iter().position(|code| *code == parameter("device_code"));
                place.map(|place| self.logins.devices.swap_remove(place)).is_some()
            }
            _ => return None,
        };
        if !good {
            return Some(Raw::error(400, "invalid_grant"));
        }
        self.families.push(true);
        let pair = self.mint(self.families.len() - 1, now);
        Some(self.answer(&pair.access, Some(&pair.refresh)))
    }
}
