//! Keyed hashes by which a store recognises tokens that it must not take twice, without keeping them.

use std::fmt;

use hmac::{Hmac, Mac as _};
use secrecy::{ExposeSecret, SecretBox, zeroize::Zeroize as _};
use sha2::Sha256;

use super::RefreshToken;

/// The key of the [`TokenFingerprint`]s of one store.
pub struct FingerprintKey(SecretBox<[u8; FINGERPRINT_KEY_BYTES]>);

/// How many random bytes a [`FingerprintKey`] is made of.
pub const FINGERPRINT_KEY_BYTES: usize = 32;

impl FingerprintKey {
    /// The key of these bytes.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; FINGERPRINT_KEY_BYTES]) -> Self {
        let key = Self(SecretBox::new(Box::new(bytes)));
        bytes.zeroize();
        key
    }

    /// What the store recognises `text` by: the first 128 bits of its HMAC-SHA256 (RFC 2104).
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

/// By which a store recognises a token without keeping it: a keyed hash. Nobody gets from it to the token, and without
/// the store's key nobody can tell whether it is a given token's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenFingerprint([u8; 16]);

impl TokenFingerprint {
    /// The bytes to keep.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Takes bytes that were kept.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

impl RefreshToken {
    /// What a store recognises this token by.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "hashes the token with a key; nobody gets from the hash to it")]
    pub fn fingerprint(&self, key: &FingerprintKey) -> TokenFingerprint {
        key.fingerprint(self.expose_secret().as_bytes())
    }
}
