//! One type per secret, with the only ways to read it.
//!
//! Owns: the newtypes over [`secrecy::SecretString`], and the queries that do not disclose the text (whether it occurs
//! in an answer, whether it equals another one).
//!
//! Invariants:
//! 1. No secret implements `Display`, `Serialize`, `Deref` or `PartialEq`; `Debug` prints a placeholder. Any struct
//!    that contains one may therefore derive `Debug`.
//! 2. The text is wiped from memory when the value is dropped.
//! 3. Single-use secrets ([`RefreshToken`], and those of a login) are not `Clone`: a copy is a second chance to spend
//!    it.
//! 4. `expose_secret` is a disallowed method; each use has `#[expect]` with a reason.
//!
//! Must not know: what the secrets are for on the wire or on disk.

use std::{fmt, io};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretBox, SecretSlice, SecretString, zeroize::Zeroize};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

mod fingerprint;

pub use fingerprint::{FINGERPRINT_KEY_BYTES, FingerprintKey, TokenFingerprint};

/// The text that never leaves over a socket, in upper or lower case.
pub const FORBIDDEN_TEXT: &str = "refresh_token";

/// Whether `text` contains [`FORBIDDEN_TEXT`], in upper or lower case.
#[must_use]
pub fn holds_forbidden_text(text: &str) -> bool {
    text.as_bytes().windows(FORBIDDEN_TEXT.len()).any(|window| window.eq_ignore_ascii_case(FORBIDDEN_TEXT.as_bytes()))
}

/// Why a text is not accepted as a secret. It never contains the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The text is empty.
    #[error("is empty")]
    Empty,
    /// RFC 6749 appendix A.12 allows printable ASCII only; anything else could not be sent in an HTTP header.
    #[error("holds a character outside printable ASCII")]
    NotPrintable,
    /// An API key is one line, or several as in PEM (RFC 7468). Other control characters are a mistake.
    #[error("holds a control character other than a newline or a tab")]
    ControlCharacter,
    /// The text is longer than [`MAX_LENGTH`].
    #[error("is longer than 64 KiB")]
    TooLong,
    /// An access token or API key that contains the text `refresh_token` cannot be returned.
    #[error("contains \"refresh_token\", which never leaves over a socket")]
    Forbidden,
}

impl SecretError {
    /// The text for an answer over a socket, which must not contain `refresh_token` itself.
    pub(crate) fn for_socket(self) -> String {
        match self {
            Self::Forbidden => "contains a reserved word; see docs/configuration.md".into(),
            Self::Empty | Self::NotPrintable | Self::ControlCharacter | Self::TooLong => self.to_string(),
        }
    }
}

/// The longest secret accepted, in bytes. JWT access tokens with many claims reach some 10 KiB; a header of 64 KiB is
/// refused by every common server.
pub const MAX_LENGTH: usize = 64 * 1024;

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name(SecretString);

        impl ExposeSecret<str> for $name {
            #[expect(clippy::disallowed_methods, reason = "passes the question on to the inner secret")]
            fn expose_secret(&self) -> &str {
                self.0.expose_secret()
            }
        }
    };
}

secret! {
    /// A bearer token for a resource, valid for a short time (RFC 6749 section 1.4). It may leave over a socket.
    AccessToken
}
secret! {
    /// The credential for new access tokens (RFC 6749 section 1.5). It is sent to its provider only, and may be
    /// single-use.
    RefreshToken
}
secret! {
    /// The client's secret at the token endpoint (RFC 6749 section 2.3.1).
    ClientSecret
}
secret! {
    /// The private key that a client signs its assertions with (RFC 7523 section 2.2), in PEM form.
    ClientKey
}
secret! {
    /// A static credential for a resource, valid until its owner changes it. It may leave over a socket, unchanged.
    ApiKey
}
secret! {
    /// The passphrase that a person enters to open the store.
    Passphrase
}
secret! {
    /// The authorization code (RFC 6749 section 1.3.1), good for one exchange.
    AuthorizationCode
}
secret! {
    /// Proves that a code is exchanged by the client that requested it (RFC 7636 section 4.1).
    CodeVerifier
}
secret! {
    /// The code with which a device polls (RFC 8628 section 3.2).
    DeviceCode
}
secret! {
    /// Distinguishes the response to this login from any other (RFC 6749 section 10.12).
    LoginState
}

secret! {
    /// The bearer token of a program behind a sandbox's socket, which shows that the socket was made for it (RFC 6750).
    Capability
}

/// The number of random bytes of a [`CodeVerifier`] and a [`LoginState`]. RFC 7636 section 7.1 recommends 256 bits.
pub const LOGIN_BYTES: usize = 32;

/// The number of random bytes of a [`Capability`]: 256 bits cannot be guessed.
pub const CAPABILITY_BYTES: usize = 32;

macro_rules! searchable {
    ($($name:ident)*) => {$(
        impl $name {
            /// Whether the value occurs anywhere in `text`.
            #[must_use]
            #[expect(clippy::disallowed_methods, reason = "searches for the secret in order to keep it in")]
            pub fn occurs_in(&self, text: &str) -> bool {
                text.contains(self.expose_secret())
            }
        }
    )*};
}

searchable! { RefreshToken AuthorizationCode CodeVerifier DeviceCode LoginState }

impl AuthorizationCode {
    /// Accepts 1*VSCHAR (RFC 6749 appendix A.11).
    pub fn new(mut text: String) -> Result<Self, SecretError> {
        match printable(&text) {
            Ok(()) => Ok(Self(SecretString::from(text))),
            Err(reason) => {
                text.zeroize();
                Err(reason)
            }
        }
    }
}

impl DeviceCode {
    /// Accepts what can be sent in a form and may appear in a provider's log: printable ASCII.
    pub fn new(mut text: String) -> Result<Self, SecretError> {
        match printable(&text) {
            Ok(()) => Ok(Self(SecretString::from(text))),
            Err(reason) => {
                text.zeroize();
                Err(reason)
            }
        }
    }
}

impl CodeVerifier {
    /// Returns a verifier of 43 letters, digits, `-` and `_`, from random bytes.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; LOGIN_BYTES]) -> Self {
        let verifier = Self(SecretString::from(URL_SAFE_NO_PAD.encode(bytes)));
        bytes.zeroize();
        verifier
    }

    /// The code challenge: `S256` of RFC 7636 section 4.2.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "hashes the secret; the hash is made to be shown")]
    pub fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(self.expose_secret()))
    }
}

impl LoginState {
    /// Returns a state of 43 letters, digits, `-` and `_`, from random bytes.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; LOGIN_BYTES]) -> Self {
        let state = Self(SecretString::from(URL_SAFE_NO_PAD.encode(bytes)));
        bytes.zeroize();
        state
    }

    /// Whether `text` is this state, in constant time.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "compares; the state does not leave")]
    pub fn is(&self, text: &str) -> bool {
        self.expose_secret().as_bytes().ct_eq(text.as_bytes()).into()
    }
}

impl Capability {
    /// Returns a capability of 43 letters, digits, `-` and `_`, from random bytes.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; CAPABILITY_BYTES]) -> Self {
        let capability = Self(SecretString::from(URL_SAFE_NO_PAD.encode(bytes)));
        bytes.zeroize();
        capability
    }

    /// Accepts what can be sent in a header: printable ASCII.
    pub fn new(mut text: String) -> Result<Self, SecretError> {
        match printable(&text) {
            Ok(()) => Ok(Self(SecretString::from(text))),
            Err(reason) => {
                text.zeroize();
                Err(reason)
            }
        }
    }

    /// The hash that the daemon keeps.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "hashes the secret; nobody gets from the hash to it")]
    pub fn hash(&self) -> CapabilityHash {
        CapabilityHash(Sha256::digest(self.expose_secret()).into())
    }
}

/// The SHA-256 of a [`Capability`], to verify it. A slow hash would add nothing: a capability cannot be guessed.
#[derive(Debug, Clone, Copy)]
pub struct CapabilityHash([u8; CAPABILITY_BYTES]);

impl CapabilityHash {
    /// A stored hash.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; CAPABILITY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes to store.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; CAPABILITY_BYTES] {
        self.0
    }

    /// Whether `text` is the capability, in constant time.
    #[must_use]
    pub fn admits(&self, text: &str) -> bool {
        self.0.ct_eq(&Sha256::digest(text)).into()
    }
}

impl AccessToken {
    /// Accepts 1*VSCHAR (RFC 6749 appendix A.12).
    pub fn new(mut text: String) -> Result<Self, SecretError> {
        match printable(&text).and(if holds_forbidden_text(&text) { Err(SecretError::Forbidden) } else { Ok(()) }) {
            Ok(()) => Ok(Self(SecretString::from(text))),
            Err(reason) => {
                text.zeroize();
                Err(reason)
            }
        }
    }

    /// Whether two access tokens are the same, in constant time.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "compares two secrets; neither leaves")]
    pub fn same_as(&self, other: &Self) -> bool {
        self.expose_secret().as_bytes().ct_eq(other.expose_secret().as_bytes()).into()
    }

    /// Whether the refresh token's value is this token, or a part of it.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "compares two secrets; neither leaves")]
    pub fn reveals(&self, refresh_token: &RefreshToken) -> bool {
        refresh_token.occurs_in(self.expose_secret())
    }
}

impl Clone for AccessToken {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl RefreshToken {
    /// Accepts 1*VSCHAR (RFC 6749 appendix A.17).
    pub fn new(mut text: String) -> Result<Self, SecretError> {
        match printable(&text) {
            Ok(()) => Ok(Self(SecretString::from(text))),
            Err(reason) => {
                text.zeroize();
                Err(reason)
            }
        }
    }

    /// Whether two refresh tokens are the same, in constant time.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "compares two secrets; neither leaves")]
    pub fn same_as(&self, other: &Self) -> bool {
        self.expose_secret().as_bytes().ct_eq(other.expose_secret().as_bytes()).into()
    }
}

fn any_text(mut text: String) -> Result<SecretString, SecretError> {
    if text.is_empty() || text.len() > MAX_LENGTH {
        let reason = if text.is_empty() { SecretError::Empty } else { SecretError::TooLong };
        text.zeroize();
        return Err(reason);
    }
    Ok(SecretString::from(text))
}

impl ClientSecret {
    /// Accepts any text that is not empty: providers choose these freely.
    pub fn new(text: String) -> Result<Self, SecretError> {
        any_text(text).map(Self)
    }
}

impl ClientKey {
    /// Accepts any text that is not empty; whether it is a key is checked when it is parsed.
    pub fn new(text: String) -> Result<Self, SecretError> {
        any_text(text).map(Self)
    }
}

impl ApiKey {
    /// Accepts text of at most 64 KiB without control characters except newline and tab, for keys of several lines. A
    /// carriage return is refused: it comes from an editor, and breaks the header that the key is sent in.
    pub fn new(mut text: String) -> Result<Self, SecretError> {
        let reason = if text.is_empty() {
            SecretError::Empty
        } else if text.len() > MAX_LENGTH {
            SecretError::TooLong
        } else if text.contains(|letter: char| letter.is_control() && !matches!(letter, '\n' | '\t')) {
            SecretError::ControlCharacter
        } else if holds_forbidden_text(&text) {
            SecretError::Forbidden
        } else {
            return Ok(Self(SecretString::from(text)));
        };
        text.zeroize();
        Err(reason)
    }
}

impl Passphrase {
    /// Accepts any text that is not empty.
    pub fn new(mut text: String) -> Result<Self, SecretError> {
        if text.is_empty() || text.len() > MAX_LENGTH {
            let reason = if text.is_empty() { SecretError::Empty } else { SecretError::TooLong };
            text.zeroize();
            return Err(reason);
        }
        Ok(Self(SecretString::from(text)))
    }

    /// Whether two passphrases are the same, in constant time.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "compares two secrets; neither leaves")]
    pub fn same_as(&self, other: &Self) -> bool {
        self.expose_secret().as_bytes().ct_eq(other.expose_secret().as_bytes()).into()
    }

    /// Its length in characters.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "counts the characters")]
    pub fn characters(&self) -> usize {
        self.expose_secret().chars().count()
    }
}

fn printable(text: &str) -> Result<(), SecretError> {
    if text.is_empty() {
        Err(SecretError::Empty)
    } else if text.len() > MAX_LENGTH {
        Err(SecretError::TooLong)
    } else if text.bytes().all(|byte| (0x20..=0x7e).contains(&byte)) {
        Ok(())
    } else {
        Err(SecretError::NotPrintable)
    }
}

/// Counts the bytes written, so that the buffer for a secret is allocated at its final size: growing would leave copies
/// behind.
#[derive(Debug, Default)]
pub(crate) struct Length(pub(crate) usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Serializes a value that contains a secret as JSON.
pub(crate) fn json(value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    let mut length = Length::default();
    serde_json::to_writer(&mut length, value)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *bytes, value)?;
    Ok(bytes)
}

/// The content of a store item, in a format of the item's owner: a secret, or something that contains one.
#[derive(Debug)]
pub struct Content(SecretSlice<u8>);

impl Content {
    /// Takes the bytes. A vector with spare capacity is copied once more, and the old allocation is not wiped.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(SecretSlice::from(bytes))
    }
}

impl ExposeSecret<[u8]> for Content {
    #[expect(clippy::disallowed_methods, reason = "passes the question on to the inner secret")]
    fn expose_secret(&self) -> &[u8] {
        self.0.expose_secret()
    }
}

/// The 256-bit key that seals the store.
pub struct StoreKey(SecretBox<[u8; 32]>);

impl StoreKey {
    /// Takes the key; the caller should wipe its copy.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(SecretBox::new(Box::new(bytes)))
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("StoreKey([REDACTED])")
    }
}

impl ExposeSecret<[u8; 32]> for StoreKey {
    #[expect(clippy::disallowed_methods, reason = "passes the question on to the inner secret")]
    fn expose_secret(&self) -> &[u8; 32] {
        self.0.expose_secret()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_never_prints_a_secret() {
        let shown = format!(
            "{:?} {:?} {:?} {:?} {:?} {:?}",
            Passphrase::new("canary-p".into()).unwrap(),
            AccessToken::new("canary-a".into()).unwrap(),
            RefreshToken::new("canary-r".into()).unwrap(),
            ClientSecret::new("canary-c".into()).unwrap(),
            ClientKey::new("canary-k".into()).unwrap(),
            StoreKey::new([0x41; 32]),
        );
        let shown = format!(
            "{shown} {:?} {:?} {:?} {:?} {:?} {:?}",
            ApiKey::new("canary-k".into()).unwrap(),
            Content::new(b"canary-i".to_vec()),
            AuthorizationCode::new("canary-c".into()).unwrap(),
            DeviceCode::new("canary-d".into()).unwrap(),
            CodeVerifier::from_bytes([0; LOGIN_BYTES]),
            LoginState::from_bytes([0; LOGIN_BYTES]),
        );
        let shown = format!("{shown} {:?}", Capability::from_bytes([0; CAPABILITY_BYTES]));
        assert!(
            !shown.contains("canary") && !shown.contains("AAAA") && !shown.contains("65") && !shown.contains("97"),
            "{shown}"
        );
    }

    #[test]
    fn an_access_token_that_could_not_leave_is_refused() {
        for (text, reason) in [
            ("", SecretError::Empty),
            ("a\nb", SecretError::NotPrintable),
            ("é", SecretError::NotPrintable),
            ("my_Refresh_Token_1", SecretError::Forbidden),
        ] {
            assert_eq!(AccessToken::new(text.into()).unwrap_err(), reason, "{text:?}");
        }
        assert_eq!(AccessToken::new("x".repeat(MAX_LENGTH + 1)).unwrap_err(), SecretError::TooLong);
    }

    #[test]
    fn an_api_key_that_could_not_leave_or_be_used_is_refused() {
        for (text, reason) in [
            ("", SecretError::Empty),
            ("key\r\n", SecretError::ControlCharacter),
            ("\rrefresh_token", SecretError::ControlCharacter),
            ("a\0b", SecretError::ControlCharacter),
            ("a\u{9b}b", SecretError::ControlCharacter),
            ("x-Refresh_Token", SecretError::Forbidden),
        ] {
            assert_eq!(ApiKey::new(text.into()).unwrap_err(), reason, "{text:?}");
        }
        assert_eq!(ApiKey::new("x".repeat(MAX_LENGTH + 1)).unwrap_err(), SecretError::TooLong);
        let longest = "x".repeat(MAX_LENGTH);
        for text in [" ", "sk-1", "-----BEGIN KEY-----\n\tAA==\n", "Schlüssel ✓", &longest] {
            assert!(ApiKey::new(text.into()).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn an_access_token_that_holds_the_refresh_token_is_noticed() {
        let refresh_token = RefreshToken::new("rt-1".into()).unwrap();
        assert!(AccessToken::new("rt-1".into()).unwrap().reveals(&refresh_token));
        assert!(AccessToken::new("xx-rt-1-yy".into()).unwrap().reveals(&refresh_token));
        assert!(!AccessToken::new("at-1".into()).unwrap().reveals(&refresh_token));
    }

    #[test]
    fn the_challenge_is_the_one_of_the_standard() {
        // RFC 7636 appendix B.
        let verifier = CodeVerifier::from_bytes([
            116, 24, 223, 180, 151, 153, 224, 37, 79, 250, 96, 125, 216, 173, 187, 186, 22, 212, 37, 77, 105, 214, 191,
            240, 91, 88, 5, 88, 83, 132, 141, 121,
        ]);
        assert!(verifier.occurs_in("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"));
        assert_eq!(verifier.challenge(), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn a_state_is_itself_and_nothing_else() {
        let state = LoginState::from_bytes([7; LOGIN_BYTES]);
        let text = URL_SAFE_NO_PAD.encode([7; LOGIN_BYTES]);
        assert!(state.is(&text));
        for other in ["", &text[1..], &format!("{text} "), &text.to_uppercase()] {
            assert!(!state.is(other), "{other}");
        }
    }
    #[test]
    fn a_capability_is_known_again_by_its_hash_and_nothing_else_is() {
        let text = URL_SAFE_NO_PAD.encode([7; CAPABILITY_BYTES]);
        let hash = Capability::from_bytes([7; CAPABILITY_BYTES]).hash();
        assert!(hash.admits(&text) && Capability::new(text.clone()).unwrap().hash().admits(&text));
        assert!(CapabilityHash::from_bytes(hash.to_bytes()).admits(&text));
        for other in ["", &text[1..], &format!("{text} "), &text.to_uppercase()] {
            assert!(!hash.admits(other), "{other}");
        }
        assert!(Capability::new("a\nb".into()).is_err() && Capability::new(String::new()).is_err());
    }
}
