//! How a client authenticates, and where its secret is.

use crate::{
    config::{
        ConfigError, SecretSource,
        document::{Entry, Section},
    },
    provider::ClientAuth,
};

/// With a secret and no word on its use it goes into the body: the form on which servers agree (the two ways to
/// encode a Basic header shut each other out).
pub(super) fn read(section: &mut Section<'_>) -> Result<(ClientAuth, Option<SecretSource>), ConfigError> {
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
