//! One type per secret, and the only ways to look inside.
//!
//! Owns: the newtypes over [`secrecy::SecretString`], and the questions that can be answered without handing the
//! text out (does it occur in this answer, is it equal to that one).
//!
//! Invariants:
//! 1. No secret implements `Display`, `Serialize`, `Deref` or `PartialEq`; `Debug` prints a placeholder. Any struct
//!    that holds one may therefore derive `Debug`.
//! 2. The text is wiped from memory when the value is dropped.
//! 3. What may be spent only once ([`RefreshToken`], and all that one login is made of) is not `Clone`: a copy is a
//!    second chance to spend it.
//! 4. `expose_secret` is a disallowed method; each use carries `#[expect]` and a reason.
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

/// The text that never leaves over a socket, in any case of letters.
pub const FORBIDDEN_TEXT: &str = "refresh_token";

/// Whether `text` holds [`FORBIDDEN_TEXT`], whatever the case of its letters.
#[must_use]
pub fn holds_forbidden_text(text: &str) -> bool {
    text.as_bytes().windows(FORBIDDEN_TEXT.len()).any(|window| window.eq_ignore_ascii_case(FORBIDDEN_TEXT.as_bytes()))
}

/// Why a text is not accepted as a secret. It never holds the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The text is empty.
    #[error("is empty")]
    Empty,
    /// RFC 6749 appendix A.12 allows printable ASCII only; anything else could not travel in an HTTP header.
    #[error("holds a character outside printable ASCII")]
    NotPrintable,
    /// An API key is a line, or some lines as in PEM (RFC 7468); anything else in it is an accident.
    #[error("holds a control character other than a newline or a tab")]
    ControlCharacter,
    /// The text is longer than [`MAX_LENGTH`].
    #[error("is longer than 64 KiB")]
    TooLong,
    /// An access token or API key with the text `refresh_token` in it cannot be handed out.
    #[error("holds a text that never leaves over a socket")]
    Forbidden,
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
    /// A bearer token that opens a resource for a short while (RFC 6749 section 1.4). It may leave over a socket.
    AccessToken
}
secret! {
    /// The credential that buys new access tokens (RFC 6749 section 1.5). It never leaves the daemon but to its
    /// provider, and may be good for one use only.
    RefreshToken
}
secret! {
    /// What the client authenticates with at the token endpoint (RFC 6749 section 2.3.1).
    ClientSecret
}
secret! {
    /// The private key that a client signs its assertions with (RFC 7523 section 2.2), in PEM form.
    ClientKey
}
secret! {
    /// What opens a resource until its owner changes it. It may leave over a socket, as it is.
    ApiKey
}
secret! {
    /// What a person types to open the store.
    Passphrase
}
secret! {
    /// What a person's consent is handed over in (RFC 6749 section 1.3.1), good for one exchange.
    AuthorizationCode
}
secret! {
    /// What proves that a code is exchanged by the one who had it issued (RFC 7636 section 4.1).
    CodeVerifier
}
secret! {
    /// What a device asks with whether the person has agreed (RFC 8628 section 3.2).
    DeviceCode
}
secret! {
    /// What tells the answer to this login from any other (RFC 6749 section 10.12).
    LoginState
}

secret! {
    /// What a program behind a sandbox's socket shows that it is the one the socket was made for (RFC 6750).
    Capability
}

/// How many random bytes a [`CodeVerifier`] and a [`LoginState`] are made of. RFC 7636 section 7.1 recommends 256 bits.
pub const LOGIN_BYTES: usize = 32;

/// How many random bytes a [`Capability`] is made of: nobody guesses 256 bits.
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
    /// Accepts what could stand in a form and in a log of the provider's: printable ASCII.
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
    /// A verifier of 43 letters, digits, `-` and `_`, from bytes that nobody can guess.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; LOGIN_BYTES]) -> Self {
        let verifier = Self(SecretString::from(URL_SAFE_NO_PAD.encode(bytes)));
        bytes.zeroize();
        verifier
    }

    /// What the provider may see of it beforehand: `S256` of RFC 7636 section 4.2.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "hashes the secret; the hash is made to be shown")]
    pub fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(self.expose_secret()))
    }
}

impl LoginState {
    /// A state of 43 letters, digits, `-` and `_`, from bytes that nobody can guess.
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
    /// A capability of 43 letters, digits, `-` and `_`, from bytes that nobody can guess.
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; CAPABILITY_BYTES]) -> Self {
        let capability = Self(SecretString::from(URL_SAFE_NO_PAD.encode(bytes)));
        bytes.zeroize();
        capability
    }

    /// Accepts what can travel in a header: printable ASCII.
    pub fn new(mut text: String) -> Result<Self, SecretError> {
        match printable(&text) {
            Ok(()) => Ok(Self(SecretString::from(text))),
            Err(reason) => {
                text.zeroize();
                Err(reason)
            }
        }
    }

    /// What the daemon keeps of it.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "hashes the secret; nobody gets from the hash to it")]
    pub fn hash(&self) -> CapabilityHash {
        CapabilityHash(Sha256::digest(self.expose_secret()).into())
    }
}

/// What a [`Capability`] is known again by: its SHA-256. A slow hash would guard it no better, for it is not guessed.
#[derive(Debug, Clone, Copy)]
pub struct CapabilityHash([u8; CAPABILITY_BYTES]);

impl CapabilityHash {
    /// Takes a hash that was kept.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; CAPABILITY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes to keep.
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
    /// Accepts any text that is not empty; whether it is a key is for whom it signs to find out.
    pub fn new(text: String) -> Result<Self, SecretError> {
        any_text(text).map(Self)
    }
}

impl ApiKey {
    /// Accepts text of at most 64 KiB without control characters but newline and tab, for keys of several lines. A
    /// carriage return is refused: it comes from an editor, and breaks the header that the key is meant for.
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

    /// How many characters it has.
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

/// Counts what is written, so that the buffer for a secret is made in one piece: one that grows leaves copies behind.
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

/// The value as JSON, for what holds a secret.
pub(crate) fn json(value: &impl Serialize) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    let mut length = Length::default();
    serde_json::to_writer(&mut length, value)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.0));
    serde_json::to_writer(&mut *bytes, value)?;
    Ok(bytes)
}

/// What an item of the store holds, in a form that only the item's owner reads: a secret, or what has one in it.
#[derive(Debug)]
pub struct Content(SecretSlice<u8>);

impl Content {
    /// Takes the bytes over. A vector with room to spare is copied once more, and its old place not wiped.
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
    /// Takes the key over; the caller's copy should be wiped.
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
