//! The polling of a device login (RFC 8628 section 3.5).
//!
//! Invariants:
//! 1. The provider is never polled sooner than it allows: `slow_down` adds five seconds for good, and an interval in a
//!    later response counts if it is longer.
//! 2. A request to the provider is never cancelled: its response may be the only one with the tokens.
//! 3. While the provider cannot be reached, each wait is twice as long as the one before.
//!
//! Must not know: the lifetime of the login.

use std::{pin::pin, time::Duration};

use super::LoginError;
use crate::{
    grant::Issued,
    provider::{DevicePoll, Provider, Refusal},
    secret::{CodeVerifier, DeviceCode},
};

/// RFC 8628 section 3.5.
const SLOW_DOWN_STEP: Duration = Duration::from_secs(5);

/// The shortest interval between two polls, whatever the provider says.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// The longest interval after failed polls: a person who has agreed should not wait long for a provider that is back.
const MAX_BACKOFF: Duration = Duration::from_mins(1);

/// Polls until the person has decided, or until `over` ends the login.
pub(super) async fn poll(
    provider: &dyn Provider,
    code: &DeviceCode,
    verifier: &CodeVerifier,
    interval: Duration,
    over: impl Future<Output = LoginError>,
) -> Result<Box<Issued>, LoginError> {
    let mut over = pin!(over);
    let mut interval = interval.max(MIN_INTERVAL);
    let mut wait = interval;
    loop {
        tokio::select! {
            error = &mut over => return Err(error),
            () = tokio::time::sleep(wait) => {}
        }
        match provider.poll_device(code, verifier).await {
            DevicePoll::Pending { interval: told } => interval = interval.max(told.unwrap_or_default()),
            DevicePoll::SlowDown { interval: told } => {
                interval = interval.saturating_add(SLOW_DOWN_STEP).max(told.unwrap_or_default());
            }
            DevicePoll::Unreachable => {
                wait = wait.saturating_mul(2).min(MAX_BACKOFF).max(interval);
                continue;
            }
            DevicePoll::Issued(issued) => return Ok(issued),
            DevicePoll::Denied => return Err(refused("the person refused", "access_denied")),
            DevicePoll::Expired => return Err(refused("the code was not confirmed in time", "expired_token")),
            DevicePoll::Failed(code) => {
                return Err(Refusal { reason: "the provider ended the login", code: Some(code) }.into());
            }
        }
        wait = interval;
    }
}

fn refused(reason: &'static str, code: &str) -> LoginError {
    LoginError::Exchange { reason, code: Some(code.to_owned()) }
}
