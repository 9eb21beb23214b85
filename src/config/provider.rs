//! The tables `[providers.NAME]`.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use url::{Host, Url};

mod authentication;
mod dialect;

pub use authentication::{AuthenticationConfig, ClientKeyConfig};

use super::{
    ConfigError,
    document::{Entry, Section},
    preset,
};
use crate::{
    account::ProviderName,
    dialect::{Dialect, SecondExchange},
    provider::{RedirectUri, RedirectUriError, Rules},
    secret::holds_forbidden_text,
};

/// One client registration at one authorization server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderConfig {
    /// Its name in the API and on the command line.
    pub name: ProviderName,
    /// The preset that its table is overlaid on.
    pub preset: Option<&'static str>,
    /// The issuer, as written: metadata must repeat it byte by byte (RFC 8414 section 3.3).
    pub issuer: Option<String>,
    /// RFC 6749 section 3.2. Present if there is no issuer.
    pub token_endpoint: Option<Url>,
    /// Where refreshes go instead of the token endpoint.
    pub refresh_endpoint: Option<Url>,
    /// RFC 6749 section 3.1.
    pub authorization_endpoint: Option<Url>,
    /// RFC 8628 section 3.1.
    pub device_authorization_endpoint: Option<Url>,
    /// RFC 7009 section 2.
    pub revocation_endpoint: Option<Url>,
    /// The client's id at the provider.
    pub client_id: String,
    /// How the client authenticates.
    pub authentication: AuthenticationConfig,
    /// How the provider's OAuth 2.0 differs from the standard.
    pub dialect: Dialect,
    /// The second endpoint that issues access tokens, if the provider has one.
    pub second_exchange: Option<SecondExchange>,
    /// The scopes that a login asks for.
    pub scopes: Vec<String>,
    /// The redirect URI of a login, as it is registered.
    pub redirect_uri: RedirectUri,
    /// Whether a login's code is bound to a verifier (RFC 7636).
    pub pkce: bool,
    /// Whether a device login's code is bound to a verifier, too.
    pub device_pkce: bool,
    /// Members of an answer, beside the standard ones, that a caller may see.
    pub expose: Vec<String>,
    /// Error codes beside `invalid_grant` that mean a dead grant.
    pub dead_grant_codes: Vec<String>,
    /// Statuses that mean a dead grant, whatever the body says.
    pub dead_grant_statuses: Vec<u16>,
    /// How long the provider accepts a refresh token again after it was spent.
    pub reuse_grace: Duration,
    /// How many of its accounts may be refreshed at once.
    pub concurrent_refreshes: NonZeroUsize,
    /// Additional root certificates, in PEM.
    pub ca_file: Option<PathBuf>,
}

/// No provider accepts more from one client.
const MAX_CONCURRENT_REFRESHES: usize = 1000;

/// Known grace windows end at ten minutes; a provider with a longer one does not really rotate.
const MAX_REUSE_GRACE: Duration = Duration::from_hours(1);

pub(super) fn read(name: &str, mut section: Section<'_>) -> Result<ProviderConfig, ConfigError> {
    let name: ProviderName = name.parse().map_err(|error| section.refuse(format!("{error}")))?;
    let preset = preset::apply(&mut section)?;
    let issuer = section.take("issuer").map(|entry| issuer(&entry)).transpose()?;
    let mut url = |key: &str| section.take(key).map(|entry| endpoint(&entry)).transpose();
    let token_endpoint = url("token_endpoint")?;
    let refresh_endpoint = url("refresh_endpoint")?;
    let authorization_endpoint = url("authorization_endpoint")?;
    let device_authorization_endpoint = url("device_authorization_endpoint")?;
    let revocation_endpoint = url("revocation_endpoint")?;
    if issuer.is_none() && token_endpoint.is_none() {
        return Err(section.refuse("needs an issuer or a token_endpoint"));
    }
    let client_id = section.required("client_id")?.text()?.to_owned();
    let authentication = authentication::read(&mut section)?;
    let dialect = dialect::read(&mut section)?;
    let second_exchange = dialect::second_exchange(&mut section, &dialect.requests, refresh_endpoint.is_some())?;
    let mut texts = |key: &str, fit: fn(&str) -> bool, problem: &'static str| match section.take(key) {
        None => Ok(Vec::new()),
        Some(entry) => entry.texts(|text| fit(text).then(|| text.to_owned()), problem),
    };
    let expose = texts("expose", |name| !holds_forbidden_text(name), "this member never leaves over a socket")?;
    let dead_grant_codes =
        texts("dead_grant_codes", is_code, "an error code has at most 64 letters, digits and ._- in it")?;
    let dead_grant_statuses = match section.take("dead_grant_statuses") {
        None => Vec::new(),
        Some(entry) => entry.list()?.iter().map(dead_grant_status).collect::<Result<_, _>>()?,
    };
    let scopes = match section.take("scopes") {
        None => Vec::new(),
        Some(entry) => {
            let fit = |text: &str| is_scope(text) && !text.contains(dialect.requests.scope_separator);
            let problem = "one scope has no space, quote, backslash or scope_separator in it";
            entry.texts(|text| fit(text).then(|| text.to_owned()), problem)?
        }
    };
    let redirect_uri = match section.take("redirect_uri") {
        None => RedirectUri::default(),
        Some(entry) => entry.text()?.parse().map_err(|error: RedirectUriError| entry.refuse(error.to_string()))?,
    };
    let pkce = section.take("pkce").map_or(Ok(true), |entry| entry.boolean())?;
    let device_pkce = section.take("device_pkce").map_or(Ok(false), |entry| entry.boolean())?;
    let reuse_grace = match section.take("reuse_grace") {
        None => Duration::ZERO,
        Some(entry) => entry.duration(Duration::ZERO..=MAX_REUSE_GRACE)?,
    };
    let concurrent_refreshes = match section.take("concurrent_refreshes") {
        None => Rules::default().concurrent_refreshes,
        Some(entry) => NonZeroUsize::new(entry.count(1..=MAX_CONCURRENT_REFRESHES)?).unwrap_or(NonZeroUsize::MIN),
    };
    let ca_file = section.take("ca_file").map(|entry| entry.path()).transpose()?;
    section.finish()?;
    Ok(ProviderConfig {
        name,
        preset,
        issuer,
        token_endpoint,
        refresh_endpoint,
        authorization_endpoint,
        device_authorization_endpoint,
        revocation_endpoint,
        client_id,
        authentication,
        dialect,
        second_exchange,
        scopes,
        redirect_uri,
        pkce,
        device_pkce,
        expose,
        dead_grant_codes,
        dead_grant_statuses,
        reuse_grace,
        concurrent_refreshes,
        ca_file,
    })
}

/// A status that means a dead grant. 408 and 429 mean "later", and only 400 to 499 are refusals.
fn dead_grant_status(entry: &Entry<'_>) -> Result<u16, ConfigError> {
    let status = entry.id().ok().and_then(|number| u16::try_from(number).ok());
    let fit = status.filter(|status| (400..500).contains(status) && ![408, 429].contains(status));
    fit.ok_or_else(|| entry.refuse("must be a status from 400 to 499, other than 408 and 429"))
}

fn issuer(entry: &Entry<'_>) -> Result<String, ConfigError> {
    if endpoint(entry)?.query().is_some() {
        return Err(entry.refuse("must have no query"));
    }
    Ok(entry.text()?.to_owned())
}

/// RFC 6749 sections 3.1 and 3.2: TLS, no fragment. A name and password in a URL end up in logs.
fn endpoint(entry: &Entry<'_>) -> Result<Url, ConfigError> {
    let url = entry.parsed(|text| Url::parse(text).ok(), "must be an absolute URL")?;
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    if url.scheme() != "https" && !(url.scheme() == "http" && loopback) {
        Err(entry.refuse("must be https unless the host is loopback"))
    } else if !url.username().is_empty() || url.password().is_some() {
        Err(entry.refuse("must hold no user name or password"))
    } else if url.fragment().is_some() {
        Err(entry.refuse("must have no fragment"))
    } else {
        Ok(url)
    }
}

/// RFC 6749 section 3.3: `%x21 / %x23-5B / %x5D-7E`.
fn is_scope(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"' && byte != b'\\')
}

/// Whether the text has the form of an error code.
fn is_code(text: &str) -> bool {
    text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests;
