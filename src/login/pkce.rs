//! The random values of a login: verifier (RFC 7636), state, and the login's own id.

use super::LoginError;
use crate::secret::{CodeVerifier, LOGIN_BYTES, LoginState};

/// A new verifier.
pub(super) fn verifier() -> Result<CodeVerifier, LoginError> {
    random::<LOGIN_BYTES>().map(CodeVerifier::from_bytes)
}

/// A new state.
pub(super) fn state() -> Result<LoginState, LoginError> {
    random::<LOGIN_BYTES>().map(LoginState::from_bytes)
}

/// Random bytes from the operating system.
pub(super) fn random<const N: usize>() -> Result<[u8; N], LoginError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| LoginError::Internal)?;
    Ok(bytes)
}
