//! Who the client is, and how it proves that (RFC 6749 section 2.3).
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

use crate::{registration::SecretPlace, secret::ClientSecret};

/// How the client authenticates.
#[derive(Debug)]
pub enum Authentication {
    /// It only names itself: `client_id` in the body.
    None,
    /// By a secret.
    Secret {
        /// Where it goes.
        place: SecretPlace,
        /// The secret, or why it could not be read: that stops this provider's refreshes, not the daemon.
        secret: Result<ClientSecret, &'static str>,
    },
}

impl Authentication {
    /// Adds to a body what says who the client is. What says it in a header is given back.
    #[expect(clippy::disallowed_methods, reason = "the client secret is for the provider's endpoints")]
    pub(super) fn sign<'a>(
        &'a self,
        client_id: &'a str,
        members: &mut Vec<(&'a str, &'a str)>,
    ) -> Result<Option<HeaderValue>, &'static str> {
        let Self::Secret { place, secret } = self else {
            members.push(("client_id", client_id));
            return Ok(None);
        };
        let secret = secret.as_ref().map_err(|why| *why)?.expose_secret();
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
