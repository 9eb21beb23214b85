//! `credproxy key`.

use std::io::{self, IsTerminal as _, Read};

use clap::Subcommand;
use serde_json::json;
use zeroize::Zeroizing;

use super::{Exit, Failure, output};
use crate::{
    account::KeyName,
    client::{Client, KeyStatus, Stored},
    clock::{Clock as _, SystemClock, Timestamp},
    secret::{ApiKey, MAX_LENGTH, SecretError},
};

/// Commands for API keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Set an API key, read from standard input or typed in
    ///
    /// A newline at the end is not part of the key. On a terminal the key is prompted for and not shown.
    Set {
        /// The name of the key.
        name: KeyName,
    },
    /// List the API keys without their values
    List,
    /// Print an API key, and nothing else
    Get {
        /// The name of the key.
        name: KeyName,
    },
    /// Delete an API key; its issuer is not told
    Remove {
        /// The name of the key.
        name: KeyName,
    },
}

pub(super) async fn run(client: &Client, command: &KeyCommand, json: bool) -> Result<Exit, Failure> {
    match command {
        KeyCommand::Set { name } => set(client, name).await?,
        KeyCommand::List => list(client, json).await?,
        KeyCommand::Get { name } => {
            let key = client.api_key(name).await.map_err(|error| Failure::of_key(error, name))?;
            if json { output::key_members(name, &key)? } else { output::api_key(&key)? }
        }
        KeyCommand::Remove { name } => {
            client.delete_api_key(name).await.map_err(|error| Failure::of_key(error, name))?;
            output::note(&format!("removed the API key {name}; whoever issued it was not told, so it is still good"));
        }
    }
    Ok(Exit::Success)
}

async fn set(client: &Client, name: &KeyName) -> Result<(), Failure> {
    let input = io::stdin();
    let text = if input.is_terminal() {
        let typed = rpassword::prompt_password(format!("the API key {name}: "));
        typed.map_err(|error| Failure::new(Exit::Failure, format!("the API key could not be read: {error}")))?
    } else {
        read(input.lock())?
    };
    let key = ApiKey::new(text).map_err(|reason| refused(name, reason))?;
    let stored = client.set_api_key(name, &key).await.map_err(|error| Failure::of_key(error, name))?;
    output::note(&match stored {
        Stored::Created => format!("stored the API key {name}"),
        Stored::Replaced => format!("replaced the API key {name}"),
    });
    Ok(())
}

fn refused(name: &KeyName, reason: SecretError) -> Failure {
    let failure = Failure::new(Exit::Failure, format!("the API key {reason}"));
    match reason {
        SecretError::Empty => failure.hint(format!("give it on standard input: `credproxy key set {name} < FILE`")),
        SecretError::ControlCharacter => failure.hint("take carriage returns out with `tr -d '\\r'`"),
        SecretError::NotPrintable | SecretError::TooLong | SecretError::Forbidden => failure,
    }
}

/// The longest key with its line ending.
const LIMIT: usize = MAX_LENGTH + 2;

/// Reads a key without its last line ending. No error quotes it.
fn read(input: impl Read) -> Result<String, Failure> {
    // Capacity for everything: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LIMIT + 1));
    input
        .take(LIMIT as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::new(Exit::Failure, format!("cannot read standard input: {error}")))?;
    let text =
        str::from_utf8(&bytes).map_err(|_| Failure::new(Exit::Failure, "standard input is not text in UTF-8"))?;
    let line = text.strip_suffix('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    Ok(line.unwrap_or(text).to_owned())
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let keys = client.api_keys().await.map_err(|error| Failure::of(error, None))?;
    if json {
        output::json(&json!({ "api_keys": keys }))
    } else if keys.is_empty() {
        output::note("no API keys; set one with `credproxy key set NAME`");
        Ok(())
    } else {
        output::data(&table(keys, SystemClock::new().now()))
    }
}

fn table(keys: Vec<KeyStatus>, now: Timestamp) -> String {
    let head = ["NAME", "SET"].map(String::from);
    let rows = keys.into_iter().map(|key| {
        let set = match key.created_at.map(Timestamp::from_secs) {
            _ if !key.readable => "cannot be read".into(),
            Some(at) => format!("{} ago", output::in_words(now.since(at))),
            None => "unknown".into(),
        };
        [key.name.to_string(), set]
    });
    output::table(&[head].into_iter().chain(rows).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_end_of_line_is_no_part_of_a_key() {
        for (given, key) in [
            ("sk", "sk"),
            ("sk\n", "sk"),
            ("sk\r\n", "sk"),
            ("a\nb\n", "a\nb"),
            ("a\n\n", "a\n"),
            ("a\r", "a\r"),
            ("\n", ""),
            ("", ""),
            (" a ", " a "),
        ] {
            assert_eq!(read(given.as_bytes()).unwrap(), key, "{given:?}");
        }
        assert_eq!(read("x".repeat(LIMIT * 2).as_bytes()).unwrap().len(), LIMIT + 1);
        let failure = read(&b"canary-\xff"[..]).unwrap_err();
        assert!(!format!("{failure:?}").contains("canary"), "{failure:?}");
    }

    #[test]
    fn a_line_says_how_old_a_key_is() {
        let key = |name: &str, readable, created_at| KeyStatus { name: name.parse().unwrap(), readable, created_at };
        let keys =
            vec![key("anthropic", true, Some(400)), key("openai", false, None), key("to-come", true, Some(9_999))];
        let expected = "\
NAME       SET
anthropic  10 min ago
openai     cannot be read
to-come    0 s ago";
        assert_eq!(table(keys, Timestamp::from_secs(1_000)), expected);
    }
}
