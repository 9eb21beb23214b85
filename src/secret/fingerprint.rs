//! Keyed hashes by which a store recognises tokens that it must not accept twice, without storing them.

use std::fmt;

use hmac::{Hmac, Mac as _};
use secrecy::{ExposeSecret, SecretBox, zeroize::Zeroize as _};
use sha2::Sha256;

use super::RefreshToken;

/// The key of the [`TokenFingerprint`]s of one store.
pub struct FingerprintKey(SecretBox<[u8; FINGERPRINT_KEY_BYTES]>);

/// The number of random bytes of a [`FingerprintKey`].
pub const FINGERPRINT_KEY_BYTES: usize = 32;

impl FingerprintKey {
    /// The key with these bytes.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; FINGERPRINT_KEY_BYTES]) -> Self {
        let key = Self(SecretBox::new(Box::new(bytes)));
        bytes.zeroize();
        key
    }

    /// The fingerprint of `text`: the first 128 bits of its HMAC-SHA256 (RFC 2104).
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "keys a hash, which tells nothing of the key")]
    pub fn fingerprint(&self, text: &[u8]) -> TokenFingerprint {
        // A key of any length is accepted.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.0.expose_secret()) else {
            return TokenFingerprint([0; 16]);
        };
        mac.update(text);
        let whole = mac.finalize().into_bytes();
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&whole[..16]);
        TokenFingerprint(fingerprint)
    }
}

impl fmt::Debug for FingerprintKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("FingerprintKey([REDACTED])")
    }
}

impl ExposeSecret<[u8; FINGERPRINT_KEY_BYTES]> for FingerprintKey {
    #[expect(clippy::disallowed_methods, reason = "passes the question on to the inner secret")]
    fn expose_secret(&self) -> &[u8; FINGERPRINT_KEY_BYTES] {
        self.0.expose_secret()
    }
}

/// Recognises a token without storing it: a keyed hash. It does not reveal the token, and without the store's key it
/// cannot be checked against a given token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenFingerprint([u8; 16]);

impl TokenFingerprint {
    /// The bytes to store.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// A stored fingerprint.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl RefreshToken {
    /// The fingerprint of this token.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "hashes the token with a key; nobody gets from the hash to it")]
    pub fn fingerprint(&self, key: &FingerprintKey) -> TokenFingerprint {
        key.fingerprint(self.expose_secret().as_bytes())
    }
}
