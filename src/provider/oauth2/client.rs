//! Client identification and authentication (RFC 6749 section 2.3).
//!
//! Invariants:
//! 1. Secrets travel in the body, or in a header marked as sensitive; never in the address.
//!
//! Must not know: what the request is for.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;
use secrecy::ExposeSecret as _;
use url::form_urlencoded::byte_serialize;
use zeroize::Zeroizing;

use super::assertion::Assertions;
use crate::{clock::Timestamp, dialect::SecretPlace, secret::ClientSecret};

/// How the client authenticates.
#[derive(Debug)]
pub enum Authentication {
    /// A public client: `client_id` in the body.
    None,
    /// With a secret.
    Secret {
        /// Where the secret is sent.
        place: SecretPlace,
        /// The secret, or why it could not be read: that stops this provider's refreshes, not the daemon.
        secret: Result<ClientSecret, &'static str>,
    },
    /// With signed assertions, or why there is no key for them.
    Key(Result<Box<Assertions>, &'static str>),
}

/// RFC 7523 section 2.2.
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

impl Authentication {
    /// Whether the client is identified by a header instead of the body.
    pub(super) const fn is_in_a_header(&self) -> bool {
        matches!(self, Self::Secret { place: SecretPlace::Basic | SecretPlace::BasicRaw, .. })
    }

    /// A new assertion, if the client uses them: for `audience`, unless the configuration names another one.
    pub(super) fn assertion(
        &self,
        client_id: &str,
        audience: &str,
        now: Timestamp,
    ) -> Result<Option<Zeroizing<String>>, &'static str> {
        match self {
            Self::None | Self::Secret { .. } => Ok(None),
            Self::Key(assertions) => assertions.as_ref().map_err(|why| *why)?.make(client_id, audience, now).map(Some),
        }
    }

    /// Adds the client's identification, including an assertion, to a body. If it belongs in a header, the header is
    /// returned.
    #[expect(clippy::disallowed_methods, reason = "the client secret is for the provider's endpoints")]
    pub(super) fn sign<'a>(
        &'a self,
        client_id: &'a str,
        assertion: Option<&'a str>,
        members: &mut Vec<(&'a str, &'a str)>,
    ) -> Result<Option<HeaderValue>, &'static str> {
        let (place, secret) = match self {
            Self::Secret { place, secret } => (place, secret.as_ref().map_err(|why| *why)?.expose_secret()),
            Self::None | Self::Key(_) => {
                members.push(("client_id", client_id));
                let assertion =
                    assertion.map(|text| [("client_assertion_type", ASSERTION_TYPE), ("client_assertion", text)]);
                members.extend(assertion.into_iter().flatten());
                return Ok(None);
            }
        };
        match place {
            SecretPlace::Body => {
                members.extend([("client_id", client_id), ("client_secret", secret)]);
                Ok(None)
            }
            SecretPlace::Basic => {
                let encode = |text: &str| Zeroizing::new(byte_serialize(text.as_bytes()).collect::<String>());
                basic(&encode(client_id), &encode(secret)).map(Some)
            }
            SecretPlace::BasicRaw => basic(client_id, secret).map(Some),
        }
    }
}

/// RFC 7617 section 2.
fn basic(id: &str, secret: &str) -> Result<HeaderValue, &'static str> {
    let pair = Zeroizing::new(format!("{id}:{secret}"));
    let header = Zeroizing::new(format!("Basic {}", *Zeroizing::new(STANDARD.encode(pair.as_bytes()))));
    let mut header = HeaderValue::from_str(&header).map_err(|_| "the client's credentials do not fit a header")?;
    header.set_sensitive(true);
    Ok(header)
}
