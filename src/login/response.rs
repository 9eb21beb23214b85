//! The authorization response (RFC 6749 section 4.1.2): whether it belongs to this login, and what it says.
//!
//! Invariants:
//! 1. A response counts only with this login's `state`. One without it changes nothing: any program on this machine can
//!    send one to a listener, and must not be able to end another's login.
//! 2. A response with the right state settles the login, whatever it says. A second one changes nothing.
//!
//! Must not know: how a response arrived.

use std::{
    borrow::Cow,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::oneshot;
use url::{Url, form_urlencoded};
use zeroize::Zeroizing;

use super::LoginError;
use crate::{
    provider::{ErrorCode, Provider, Refusal},
    secret::{AuthorizationCode, LoginState},
};

/// A code, or the error that the response contains instead.
pub(super) type ResponseResult = Result<AuthorizationCode, LoginError>;

/// The response that a login waits for.
#[derive(Debug)]
pub(super) struct PendingResponse {
    state: LoginState,
    provider: Arc<dyn Provider>,
    sender: Mutex<Option<oneshot::Sender<ResponseResult>>>,
}

/// The response belongs to another login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WrongState;

/// Longer than any code: providers that put a JWT in it need some 2 KiB.
const MAX_PASTED_BYTES: usize = 16 * 1024;

impl PendingResponse {
    pub(super) fn new(state: LoginState, provider: Arc<dyn Provider>) -> (Self, oneshot::Receiver<ResponseResult>) {
        let (sender, response) = oneshot::channel();
        (Self { state, provider, sender: Mutex::new(Some(sender)) }, response)
    }

    /// Delivers the response to the login (invariant 2).
    pub(super) fn settle(&self, response: ResponseResult) -> Result<(), LoginError> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
        sender.ok_or(LoginError::AlreadyUsed)?.send(response).map_err(|_| LoginError::AlreadyUsed)
    }

    /// Parses the query of the address that the browser was sent to.
    pub(super) fn parse_query(&self, query: &str) -> Result<ResponseResult, WrongState> {
        let (mut code, mut state, mut error, mut iss) = (None, None, None, None);
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let place = match &*name {
                "code" => &mut code,
                "state" => &mut state,
                "error" => &mut error,
                "iss" => &mut iss,
                _ => continue,
            };
            // RFC 6749 section 3.1: no parameter occurs twice. Of two states neither can be trusted.
            if place.replace(value).is_some() {
                return Err(WrongState);
            }
        }
        if !state.is_some_and(|state| self.state.is(&state)) {
            return Err(WrongState);
        }
        if !self.provider.accepts_issuer(iss.as_deref()) {
            return Ok(Err("the answer came from another issuer than the provider's".into()));
        }
        Ok(match (error, code) {
            (Some(error), _) => {
                let code = ErrorCode::new(&error, None).unless(|text| self.state.occurs_in(text));
                Err(Refusal { reason: "the person or the provider refused", code: Some(code) }.into())
            }
            (None, Some(code)) => Self::code(code),
            (None, None) => Err("the answer holds no code".into()),
        })
    }

    fn code(code: Cow<'_, str>) -> ResponseResult {
        AuthorizationCode::new(code.into_owned()).map_err(|_| "the answer holds no usable code".into())
    }

    /// Parses what a person pasted: a code, `code#state`, or the whole address. A bare code contains neither state nor
    /// issuer: only the person, and the verifier that has to match, tie it to this login.
    pub(super) fn parse_pasted(&self, text: &str) -> Result<ResponseResult, LoginError> {
        let text = Zeroizing::new(text.trim().to_owned());
        if text.is_empty() || text.len() > MAX_PASTED_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(LoginError::Malformed);
        }
        let wrong_state = || Err("what was pasted belongs to another login".into());
        if text.contains("://") {
            let url = Url::parse(&text).map_err(|_| LoginError::Malformed)?;
            return Ok(self.parse_query(url.query().unwrap_or_default()).unwrap_or_else(|WrongState| wrong_state()));
        }
        Ok(match text.rsplit_once('#') {
            Some((_, state)) if !self.state.is(state) => wrong_state(),
            Some((code, _)) => Self::code(code.into()),
            None => Self::code(text.as_str().into()),
        })
    }
}
