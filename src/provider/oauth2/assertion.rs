//! Signed client assertions (RFC 7523 section 2.2, OpenID Connect Core section 9).
//!
//! Invariants:
//! 1. No assertion is used twice: each has its own id.
//! 2. The key and its assertions are never printed.
//!
//! Must not know: where the key is kept, what a request is for.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
        RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaEncoding, RsaKeyPair,
    },
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{clock::Timestamp, dialect::Algorithm, secret::ClientKey};

/// How long an assertion is valid, in seconds: the duration of a request plus the difference between clocks.
const ASSERTION_LIFETIME_SECS: i64 = 60;

/// A key that signs a client's assertions.
#[derive(Debug)]
pub struct Assertions {
    key: SigningKey,
    algorithm: Algorithm,
    /// The key's name at the provider.
    id: Option<String>,
    /// The audience, if not the one that the provider client passes.
    audience: Option<String>,
}

/// Why a key cannot be used for signing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It has another format, or is damaged.
    #[error("the client key is no private key in PEM form, PKCS#8 (`openssl pkcs8 -topk8 -nocrypt` makes one)")]
    Form,
    /// Its type or size is not supported.
    #[error("the client key is neither RSA of 2048 to 4096 bits, nor P-256, P-384 or Ed25519")]
    Kind,
    /// The algorithm needs another type of key.
    #[error("the client key does not fit client_key_algorithm")]
    Algorithm,
}

impl Assertions {
    /// Parses the key. Without an algorithm the key decides: `RS256`, or the only one it supports.
    pub fn new(
        key: &ClientKey,
        algorithm: Option<Algorithm>,
        id: Option<String>,
        audience: Option<String>,
    ) -> Result<Self, KeyError> {
        let key = SigningKey::read(key)?;
        let algorithm = match (key.algorithm(), algorithm) {
            (Algorithm::Rs256, Some(wanted @ (Algorithm::Rs256 | Algorithm::Ps256))) => wanted,
            (own, None) => own,
            (own, Some(wanted)) if own == wanted => own,
            (_, Some(_)) => return Err(KeyError::Algorithm),
        };
        Ok(Self { key, algorithm, id, audience })
    }

    /// Returns a new assertion of the client's, for `audience` unless the configuration names another one.
    pub(super) fn make(
        &self,
        client_id: &str,
        audience: &str,
        now: Timestamp,
    ) -> Result<Zeroizing<String>, &'static str> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|_| NO_RANDOMNESS)?;
        let mut header = json!({"alg": self.algorithm.name(), "typ": "JWT"});
        if let Some(id) = &self.id {
            header["kid"] = Value::from(id.as_str());
        }
        let claims = json!({
            "iss": client_id,
            "sub": client_id,
            "aud": self.audience.as_deref().unwrap_or(audience),
            "jti": URL_SAFE_NO_PAD.encode(id),
            "iat": now.as_secs(),
            "exp": now.as_secs().saturating_add(ASSERTION_LIFETIME_SECS),
        });
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.key.sign(self.algorithm, signed.as_bytes())?;
        Ok(Zeroizing::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))))
    }
}

const NO_RANDOMNESS: &str = "there is no randomness for a client assertion";

/// A parsed key. Like any key inside a library it is not wiped, so it is parsed once, not for each assertion.
enum SigningKey {
    Rsa(Box<RsaKeyPair>),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SigningKey([REDACTED])")
    }
}

impl SigningKey {
    #[expect(clippy::disallowed_methods, reason = "the key is taken in to sign with")]
    fn read(key: &ClientKey) -> Result<Self, KeyError> {
        let mut der = PrivatePkcs8KeyDer::from_pem_slice(key.expose_secret().as_bytes()).map_err(|_| KeyError::Form)?;
        let found = Self::of(der.secret_pkcs8_der());
        der.zeroize();
        found.ok_or(KeyError::Kind)
    }

    /// This format does not name the key's type: all but one of these parsers refuse it.
    fn of(der: &[u8]) -> Option<Self> {
        let random = SystemRandom::new();
        let on = |curve| EcdsaKeyPair::from_pkcs8(curve, der, &random).ok();
        on(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map(Self::P256)
            .or_else(|| on(&ECDSA_P384_SHA384_FIXED_SIGNING).map(Self::P384))
            .or_else(|| Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok().map(Self::Ed25519))
            .or_else(|| RsaKeyPair::from_pkcs8(der).ok().map(|key| Self::Rsa(Box::new(key))))
    }

    /// The default algorithm.
    const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Rsa(_) => Algorithm::Rs256,
            Self::P256(_) => Algorithm::Es256,
            Self::P384(_) => Algorithm::Es384,
            Self::Ed25519(_) => Algorithm::EdDsa,
        }
    }

    fn sign(&self, algorithm: Algorithm, message: &[u8]) -> Result<Vec<u8>, &'static str> {
        let random = SystemRandom::new();
        let failed = |_| "the client assertion could not be signed";
        match self {
            Self::Rsa(key) => {
                let padding: &dyn RsaEncoding =
                    if algorithm == Algorithm::Ps256 { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(padding, &random, message, &mut signature).map_err(failed)?;
                Ok(signature)
            }
            // RFC 7518 section 3.4: both numbers concatenated, not their ASN.1 form.
            Self::P256(key) | Self::P384(key) => Ok(key.sign(&random, message).map_err(failed)?.as_ref().to_vec()),
            Self::Ed25519(key) => Ok(key.sign(message).as_ref().to_vec()),
        }
    }
}
