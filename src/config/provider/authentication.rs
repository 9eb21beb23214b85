//! How a client authenticates, and where its secret or key is read.

use crate::{
    config::{
        ConfigError, SecretSource,
        document::{Entry, Section},
    },
    dialect::{Algorithm, SecretPlace},
};

/// How a client authenticates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthenticationConfig {
    /// It sends only its id.
    None,
    /// By a secret that it shares with the provider.
    Secret {
        /// Where the secret goes in a request.
        place: SecretPlace,
        /// Where it is read from.
        source: SecretSource,
    },
    /// By signed assertions (RFC 7523 section 2.2).
    Key(ClientKeyConfig),
}

/// A client key and how to sign with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientKeyConfig {
    /// Where the private key is read from.
    pub source: SecretSource,
    /// The key's id at the provider.
    pub id: Option<String>,
    /// The algorithm; chosen by the key's type when `None`.
    pub algorithm: Option<Algorithm>,
    /// The audience of the assertions; derived from the endpoints when `None`.
    pub audience: Option<String>,
}

impl AuthenticationConfig {
    /// Where its secret or key is read from.
    #[must_use]
    pub const fn source(&self) -> Option<&SecretSource> {
        match self {
            Self::None => None,
            Self::Secret { source, .. } | Self::Key(ClientKeyConfig { source, .. }) => Some(source),
        }
    }
}

/// The default authentication. A secret goes into the body, since servers agree on that form; they differ in how they
/// decode a Basic header.
pub(super) fn read(section: &mut Section<'_>) -> Result<AuthenticationConfig, ConfigError> {
    let auth = section.take("client_auth");
    let secret = section.take("client_secret").map(secret_source).transpose()?;
    let key = client_key(section)?;
    let with = |place, source| Ok(AuthenticationConfig::Secret { place, source });
    let Some(auth) = auth else {
        return match (secret, key) {
            (None, None) => Ok(AuthenticationConfig::None),
            (Some(source), None) => with(SecretPlace::Body, source),
            (None, Some(key)) => Ok(AuthenticationConfig::Key(key)),
            (Some(_), Some(_)) => Err(section.refuse("has both a client_secret and a client_key")),
        };
    };
    match (auth.text()?, secret, key) {
        ("none", None, None) => Ok(AuthenticationConfig::None),
        ("post", Some(source), None) => with(SecretPlace::Body, source),
        ("basic", Some(source), None) => with(SecretPlace::Basic, source),
        ("basic_raw", Some(source), None) => with(SecretPlace::BasicRaw, source),
        ("private_key_jwt", None, Some(key)) => Ok(AuthenticationConfig::Key(key)),
        ("none", Some(_), _) => Err(auth.refuse("is \"none\", but there is a client_secret")),
        ("post" | "basic" | "basic_raw", None, _) => Err(auth.refuse("needs a client_secret")),
        ("private_key_jwt", _, None) => Err(auth.refuse("needs a client_key")),
        ("private_key_jwt", Some(_), _) => Err(auth.refuse("is \"private_key_jwt\", but there is a client_secret")),
        ("none" | "post" | "basic" | "basic_raw", _, Some(_)) => {
            Err(auth.refuse("is not \"private_key_jwt\", but there is a client_key"))
        }
        _ => Err(auth.refuse("must be \"none\", \"post\", \"basic\", \"basic_raw\" or \"private_key_jwt\"")),
    }
}

fn client_key(section: &mut Section<'_>) -> Result<Option<ClientKeyConfig>, ConfigError> {
    let source = section.take("client_key").map(secret_source).transpose()?;
    let [id, algorithm, audience] =
        ["client_key_id", "client_key_algorithm", "client_assertion_audience"].map(|key| section.take(key));
    let Some(source) = source else {
        let idle = [id, algorithm, audience].into_iter().flatten().next();
        return idle.map_or(Ok(None), |entry| Err(entry.refuse("needs a client_key")));
    };
    let text = |entry: Option<Entry<'_>>| entry.map(|entry| entry.text().map(str::to_owned)).transpose();
    let algorithm = algorithm.map(|entry| {
        let named = |text: &str| Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == text);
        entry.parsed(named, "must be \"RS256\", \"PS256\", \"ES256\", \"ES384\" or \"EdDSA\"")
    });
    Ok(Some(ClientKeyConfig { source, id: text(id)?, algorithm: algorithm.transpose()?, audience: text(audience)? }))
}

/// A key that is not one of the three is not repeated in the error: it may be the secret itself.
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

/// A variable name as POSIX has it (Base Definitions 8.1), with lower-case letters allowed.
fn variable(name: &str) -> Option<String> {
    let fit = !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    fit.then(|| name.to_owned())
}
