//! One login: its owner, the instructions for the person, and its status.
//!
//! Invariants:
//! 1. It ends once. The first end counts.
//! 2. Its id has 128 random bits.

use std::{fmt, net::SocketAddr, pin::Pin, str::FromStr, sync::Arc};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Login, LoginError, Owner, Progress, Prompt, pkce, response::PendingResponse};
use crate::{account::Account, clock::Timestamp, grant::Issued, provider::Flow};

/// The work of a login until it has tokens.
pub(super) type Work = Pin<Box<dyn Future<Output = Result<Box<Issued>, LoginError>> + Send>>;

/// A login's id in the API: 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LoginId(u128);

impl fmt::Display for LoginId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

/// The text is not a login id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the id of a login")]
pub struct LoginIdError;

impl FromStr for LoginId {
    type Err = LoginIdError;

    fn from_str(text: &str) -> Result<Self, LoginIdError> {
        let fit = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !fit {
            return Err(LoginIdError);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| LoginIdError)
    }
}

/// What a new session waits for, and for how long.
#[derive(Debug)]
pub(super) struct SessionSetup {
    pub(super) expires_at: Timestamp,
    pub(super) pending_response: Option<Arc<PendingResponse>>,
    pub(super) cancelled: CancellationToken,
    pub(super) port: Option<SocketAddr>,
}

#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: LoginId,
    pub(super) owner: Owner,
    pub(super) account: Account,
    pub(super) expires_at: Timestamp,
    /// The response that a browser or paste login waits for.
    pub(super) pending_response: Option<Arc<PendingResponse>>,
    /// Set when the login is cancelled or the daemon stops. A response that has arrived is processed to the end.
    pub(super) cancelled: CancellationToken,
    /// The address it listens on, if the registration names the port.
    pub(super) port: Option<SocketAddr>,
    flow: Flow,
    prompt: Prompt,
    progress: watch::Sender<Progress>,
}

impl Session {
    pub(super) fn new(
        owner: Owner,
        account: Account,
        flow: Flow,
        prompt: Prompt,
        setup: SessionSetup,
    ) -> Result<Self, LoginError> {
        let SessionSetup { expires_at, pending_response, cancelled, port } = setup;
        Ok(Self {
            id: LoginId(u128::from_be_bytes(pkce::random()?)),
            owner,
            account,
            expires_at,
            pending_response,
            cancelled,
            port,
            flow,
            prompt,
            progress: watch::Sender::new(Progress::Pending),
        })
    }

    /// Ends the session (invariant 1).
    pub(super) fn end(&self, outcome: Result<(), LoginError>) {
        let account = &self.account;
        self.progress.send_if_modified(|progress| {
            if !matches!(progress, Progress::Pending) {
                return false;
            }
            *progress = match outcome {
                Ok(()) => {
                    tracing::info!(%account, "login complete");
                    Progress::Complete
                }
                Err(error) => {
                    tracing::info!(%account, %error, "login ended without a grant");
                    Progress::Failed(error)
                }
            };
            true
        });
    }

    pub(super) fn has_ended(&self) -> bool {
        !matches!(*self.progress.borrow(), Progress::Pending)
    }

    /// Waits for the end and returns it.
    pub(super) async fn ended(&self) -> Progress {
        let mut progress = self.progress.subscribe();
        match progress.wait_for(|progress| !matches!(progress, Progress::Pending)).await {
            Ok(ended) => ended.clone(),
            Err(_) => Progress::Failed(LoginError::Internal),
        }
    }

    /// The view for its owner.
    pub(super) fn login(&self) -> Login {
        Login {
            id: self.id,
            account: self.account.clone(),
            flow: self.flow,
            prompt: self.prompt.clone(),
            expires_at: self.expires_at,
            progress: self.progress.borrow().clone(),
        }
    }

    /// The status, or the error that ended the login.
    pub(super) fn current_status(&self) -> Result<Login, LoginError> {
        match self.login() {
            Login {
                progress:
                    Progress::Failed(error @ (LoginError::Expired | LoginError::NotFound | LoginError::ShuttingDown)),
                ..
            } => Err(error),
            login => Ok(login),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_and_nothing_else_does() {
        let id = LoginId(0xab);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "ab", &"A".repeat(32), &"g".repeat(32), &"a".repeat(33), &format!("+{}", "a".repeat(31))] {
            assert_eq!(bad.parse::<LoginId>(), Err(LoginIdError), "{bad}");
        }
    }
}
