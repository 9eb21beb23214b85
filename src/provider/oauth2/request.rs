//! The content of a request: the protocol's parameters in the provider's dialect, the client's identification, and the
//! configured extra parameters.
//!
//! Invariants:
//! 1. No parameter is sent twice (RFC 6749 sections 3.1 and 3.2), except `resource` (RFC 8707 section 2).
//!
//! Must not know: where the request is sent, what the answer is.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Serialize;
use url::{Url, form_urlencoded::Serializer};
use zeroize::Zeroizing;

use super::{OAuth2, Settings};
use crate::{
    dialect::{Request, RequestFormat},
    grant::Grant,
    provider::wire::{JSON, PostRequest, answer},
};

impl OAuth2 {
    /// Returns a request with `parameters` and the client's identification.
    pub(super) fn post(&self, request: Request, parameters: &[(&str, &str)]) -> Result<PostRequest, &'static str> {
        let Settings { client_id, authentication, dialect, .. } = &self.settings;
        let assertion = authentication.assertion(client_id, self.audience(), self.clock.now())?;
        let mut members = parameters.to_vec();
        if request != Request::Revocation {
            members.extend(self.resources());
        }
        let authorization =
            authentication.sign(client_id, assertion.as_ref().map(|text| text.as_str()), &mut members)?;
        for (name, _) in &mut members {
            *name = dialect.names.of(name);
        }
        let additions = &dialect.requests.additions;
        members.extend(additions.parameters(request));
        let (content_type, body) = match dialect.requests.format {
            RequestFormat::Form => (answer::FORM, form(&members)),
            RequestFormat::Json => (JSON, json(&members)),
        };
        let headers = additions.headers(request);
        Ok(PostRequest { content_type, authorization, headers, body: Zeroizing::new(body) })
    }

    /// Returns the address to open in a browser. The endpoint's own query is kept (RFC 6749 section 3.1), except for
    /// parameters that are set here.
    pub(super) fn address(&self, endpoint: &Url, parameters: &[(&str, &str)]) -> Url {
        let mut members = parameters.to_vec();
        members.extend(self.resources());
        members.extend(self.settings.dialect.requests.additions.parameters(Request::Authorization));
        let said = |name: &str| members.iter().any(|(said, _)| *said == name);
        let mut url = endpoint.clone();
        if url.query_pairs().any(|(name, _)| said(&name)) {
            let kept: Vec<_> = url.query_pairs().into_owned().filter(|(name, _)| !said(name)).collect();
            url.query_pairs_mut().clear().extend_pairs(kept);
        }
        url.query_pairs_mut().extend_pairs(members);
        url
    }

    /// The audience of a client's assertions: the issuer, as it spells itself, or else the token endpoint (RFC 7523
    /// section 3). If neither is configured, the metadata has been read to find the endpoint of this request.
    fn audience(&self) -> &str {
        let issuer = self.metadata.get().map(|metadata| metadata.issuer.as_str());
        issuer.or_else(|| self.settings.endpoints.token.as_ref().map(Url::as_str)).unwrap_or_default()
    }

    fn resources(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings.dialect.requests.resources.iter().map(|resource| ("resource", resource.as_str()))
    }

    /// The scope that a login requests; `None` for the provider's default.
    pub(super) fn scope(&self) -> Option<String> {
        let scopes = &self.settings.login.scopes;
        let mut separator = [0; 4];
        let separator = self.settings.dialect.requests.scope_separator.encode_utf8(&mut separator);
        (!scopes.is_empty()).then(|| scopes.join(separator))
    }

    /// The scope of a refresh request, if any: what was granted, in the provider's own words, or else what was
    /// requested. More would be refused (RFC 6749 section 6).
    pub(super) fn scope_of<'a>(&self, grant: &'a Grant) -> Option<Cow<'a, str>> {
        if !self.settings.dialect.requests.scope_on_refresh {
            return None;
        }
        grant.scope.as_deref().map(Cow::Borrowed).or_else(|| self.scope().map(Cow::Owned))
    }
}

fn form(members: &[(&str, &str)]) -> Vec<u8> {
    // Every byte may need three, so the buffer is allocated at full size and never leaves a copy behind by growing.
    let room = members.iter().map(|(name, value)| name.len() + 3 * value.len() + 2).sum();
    Serializer::new(String::with_capacity(room)).extend_pairs(members).finish().into_bytes()
}

#[derive(Serialize)]
#[serde(untagged)]
enum Values<'a> {
    One(&'a str),
    Several(Vec<&'a str>),
}

fn json(members: &[(&str, &str)]) -> Vec<u8> {
    let mut object = BTreeMap::<&str, Values<'_>>::new();
    for (name, value) in members {
        let value = match object.remove(name) {
            None => Values::One(value),
            Some(Values::One(first)) => Values::Several(vec![first, value]),
            Some(Values::Several(mut values)) => {
                values.push(value);
                Values::Several(values)
            }
        };
        object.insert(name, value);
    }
    // A byte may become an escape of six.
    let room = members.iter().map(|(name, value)| 6 * (name.len() + value.len()) + 8).sum();
    let mut body = Vec::with_capacity(room);
    // A map of texts always serializes, and writing to a vector cannot fail.
    serde_json::to_writer(&mut body, &object).ok();
    body
}
