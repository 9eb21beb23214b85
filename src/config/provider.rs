//! The tables `[providers.NAME]`.

use std::{num::NonZeroUsize, path::PathBuf, time::Duration};

use url::{Host, Url};

use super::{
    ConfigError, SecretSource,
    document::{Entry, Section},
};
use crate::{
    account::ProviderName,
    provider::{ClientAuth, RedirectUri, RedirectUriError, RequestFormat, Rules},
    secret::holds_forbidden_text,
};

/// One client registration at one authorization server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderConfig {
    /// Its name in the API and on the command line.
    pub name: ProviderName,
    /// The issuer, as written: metadata must repeat it byte by byte (RFC 8414 section 3.3).
    pub issuer: Option<String>,
    /// RFC 6749 section 3.2; there is one when there is no issuer.
    pub token_endpoint: Option<Url>,
    /// RFC 6749 section 3.1.
    pub authorization_endpoint: Option<Url>,
    /// RFC 8628 section 3.1.
    pub device_authorization_endpoint: Option<Url>,
    /// RFC 7009 section 2.
    pub revocation_endpoint: Option<Url>,
    /// The client's name at the provider.
    pub client_id: String,
    /// Where the client's secret is; there is one when `client_auth` is not [`ClientAuth::None`], and only then.
    pub client_secret: Option<SecretSource>,
    /// How the client authenticates.
    pub client_auth: ClientAuth,
    /// The form of its token requests.
    pub request_format: RequestFormat,
    /// What a login asks for.
    pub scopes: Vec<String>,
    /// Where a login's browser is sent back to, as it is registered.
    pub redirect_uri: RedirectUri,
    /// Whether a login's code is bound to a verifier (RFC 7636).
    pub pkce: bool,
    /// Whether a device login's code is, too.
    pub device_pkce: bool,
    /// Members of an answer, beside the standard ones, that a caller may see.
    pub expose: Vec<String>,
    /// Error codes beside `invalid_grant` that mean a dead grant.
    pub dead_grant_codes: Vec<String>,
    /// For this long the provider accepts a refresh token again after it was spent.
    pub reuse_grace: Duration,
    /// How many of its accounts may be refreshed at once.
    pub concurrent_refreshes: NonZeroUsize,
    /// Certificates to trust beside the system's own, in PEM.
    pub ca_file: Option<PathBuf>,
}

/// More at once would be more than any provider takes from one client.
const MOST_CONCURRENT: usize = 1000;

/// Known grace windows end at ten minutes; what is longer is rather a provider that does not rotate.
const LONGEST_GRACE: Duration = Duration::from_hours(1);

pub(super) fn read(name: &str, mut section: Section<'_>) -> Result<ProviderConfig, ConfigError> {
    let name: ProviderName = name.parse().map_err(|error| section.refuse(format!("{error}")))?;
    let issuer = section.take("issuer").map(|entry| issuer(&entry)).transpose()?;
    let mut url = |key: &str| section.take(key).map(|entry| endpoint(&entry)).transpose();
    let token_endpoint = url("token_endpoint")?;
    let authorization_endpoint = url("authorization_endpoint")?;
    let device_authorization_endpoint = url("device_authorization_endpoint")?;
    let revocation_endpoint = url("revocation_endpoint")?;
    if issuer.is_none() && token_endpoint.is_none() {
        return Err(section.refuse("needs an issuer or a token_endpoint"));
    }
    let client_id = section.required("client_id")?.text()?.to_owned();
    let (client_auth, client_secret) = authentication(&mut section)?;
    let request_format = match section.take("request_format") {
        None => RequestFormat::Form,
        Some(entry) => entry.parsed(
            |text| match text {
                "form" => Some(RequestFormat::Form),
                "json" => Some(RequestFormat::Json),
                _ => None,
            },
            "must be \"form\" or \"json\"",
        )?,
    };
    let mut texts = |key: &str, fit: fn(&str) -> bool, problem: &'static str| match section.take(key) {
        None => Ok(Vec::new()),
        Some(entry) => entry.texts(|text| fit(text).then(|| text.to_owned()), problem),
    };
    let scopes = texts("scopes", is_scope, "one scope has no space, quote or backslash in it")?;
    let expose = texts("expose", |name| !holds_forbidden_text(name), "this member never leaves over a socket")?;
    let dead_grant_codes =
        texts("dead_grant_codes", is_code, "an error code has at most 64 letters, digits and ._- in it")?;
    let redirect_uri = match section.take("redirect_uri") {
        None => RedirectUri::default(),
        Some(entry) => entry.text()?.parse().map_err(|error: RedirectUriError| entry.refuse(error.to_string()))?,
    };
    let pkce = section.take("pkce").map_or(Ok(true), |entry| entry.truth())?;
    let device_pkce = section.take("device_pkce").map_or(Ok(false), |entry| entry.truth())?;
    let reuse_grace = match section.take("reuse_grace") {
        None => Duration::ZERO,
        Some(entry) => entry.duration(Duration::ZERO..=LONGEST_GRACE)?,
    };
    let concurrent_refreshes = match section.take("concurrent_refreshes") {
        None => Rules::default().concurrent_refreshes,
        Some(entry) => NonZeroUsize::new(entry.count(1..=MOST_CONCURRENT)?).unwrap_or(NonZeroUsize::MIN),
    };
    let ca_file = section.take("ca_file").map(|entry| entry.path()).transpose()?;
    section.finish()?;
    Ok(ProviderConfig {
        name,
        issuer,
        token_endpoint,
        authorization_endpoint,
        device_authorization_endpoint,
        revocation_endpoint,
        client_id,
        client_secret,
        client_auth,
        request_format,
        scopes,
        redirect_uri,
        pkce,
        device_pkce,
        expose,
        dead_grant_codes,
        reuse_grace,
        concurrent_refreshes,
        ca_file,
    })
}

/// With a secret and no word on its use it goes into the body: the form on which servers agree (the two ways to
/// encode a Basic header shut each other out).
fn authentication(section: &mut Section<'_>) -> Result<(ClientAuth, Option<SecretSource>), ConfigError> {
    let auth = section.take("client_auth");
    let secret = section.take("client_secret").map(secret_source).transpose()?;
    let Some(auth) = auth else {
        return Ok((if secret.is_some() { ClientAuth::Post } else { ClientAuth::None }, secret));
    };
    let method = match auth.text()? {
        "none" => ClientAuth::None,
        "post" => ClientAuth::Post,
        "basic" => ClientAuth::Basic,
        "basic_raw" => ClientAuth::BasicRaw,
        "private_key_jwt" => return Err(auth.refuse("private_key_jwt is not in this version")),
        _ => return Err(auth.refuse("must be \"none\", \"post\", \"basic\" or \"basic_raw\"")),
    };
    match (method, &secret) {
        (ClientAuth::None, Some(_)) => Err(auth.refuse("is \"none\", but there is a client_secret")),
        (ClientAuth::Post | ClientAuth::Basic | ClientAuth::BasicRaw, None) => {
            Err(auth.refuse("needs a client_secret"))
        }
        (ClientAuth::None, None) | (ClientAuth::Post | ClientAuth::Basic | ClientAuth::BasicRaw, Some(_)) => {
            Ok((method, secret))
        }
    }
}

/// A key that is not one of the three is not repeated: it may be the secret itself.
fn secret_source(entry: Entry<'_>) -> Result<SecretSource, ConfigError> {
    const FORM: &str = "must be one of { env = \"NAME\" }, { file = \"/path\" } and { command = \"…\" }";
    let mut section = entry.section(FORM)?;
    let source = match (section.take("env"), section.take("file"), section.take("command")) {
        (Some(name), None, None) => SecretSource::Env(name.parsed(variable, "must be the name of a variable")?),
        (None, Some(path), None) => SecretSource::File(path.path()?),
        (None, None, Some(command)) => SecretSource::Command(command.text()?.to_owned()),
        _ => return Err(section.refuse(FORM)),
    };
    if section.is_empty() { Ok(source) } else { Err(section.refuse(FORM)) }
}

/// The form of POSIX (Base Definitions 8.1), small letters too.
fn variable(name: &str) -> Option<String> {
    let fit = !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    fit.then(|| name.to_owned())
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

/// What an answer's code must look like to be kept and compared.
fn is_code(text: &str) -> bool {
    text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}
