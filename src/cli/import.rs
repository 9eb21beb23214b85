//! `credproxy import`.

use std::io::{self, IsTerminal as _, Read};

use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use super::{Exit, Failure, output};
use crate::{
    account::Account,
    client::{Client, Stored},
};

/// The longest grant, in bytes: two secrets of 64 KiB, and as much again for the provider's own members.
const LIMIT: usize = 256 * 1024;

pub(super) async fn run(client: &Client, account: &Account) -> Result<Exit, Failure> {
    let input = io::stdin();
    if input.is_terminal() {
        output::note("type or paste the grant as JSON, then Enter and Ctrl-D");
    }
    let grant = read(input.lock())?;
    let stored = client.put(account, grant).await.map_err(|error| Failure::of(error, Some(account)))?;
    output::note(&match stored {
        Stored::Created => format!("stored a grant for {account}"),
        Stored::Replaced => format!("replaced the grant of {account}"),
    });
    // A misspelt name is found out here rather than when the token expires. Whether it can be told does not matter.
    if client.providers().await.is_ok_and(|known| known.iter().all(|known| known.name != account.provider)) {
        output::note(&format!(
            "warning: no provider {0} is configured, so this token will not be refreshed; \
             add [providers.{0}] to the daemon's configuration, or `credproxy logout {account}`",
            account.provider
        ));
    }
    Ok(Exit::Success)
}

/// Reads one JSON object, whose members are the daemon's to judge. No error quotes it.
fn read(input: impl Read) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let refuse = |problem: String| {
        Failure::new(Exit::Failure, problem)
            .hint(r#"a grant looks like {"access_token": "…", "refresh_token": "…", "expires_in": 3600}"#)
    };
    // Room for all of it: a buffer that grows leaves copies behind.
    let mut grant = Zeroizing::new(Vec::with_capacity(LIMIT + 1));
    input
        .take(LIMIT as u64 + 1)
        .read_to_end(&mut grant)
        .map_err(|error| Failure::new(Exit::Failure, format!("cannot read standard input: {error}")))?;
    if grant.len() > LIMIT {
        return Err(refuse("standard input is longer than 256 KiB".into()));
    }
    if grant.trim_ascii().is_empty() {
        return Err(refuse("standard input is empty".into()));
    }
    if let Err(error) = serde_json::from_slice::<IgnoredAny>(&grant) {
        return Err(refuse(format!("standard input is not JSON: line {}, column {}", error.line(), error.column())));
    }
    if grant.trim_ascii_start().first() != Some(&b'{') {
        return Err(refuse("standard input is not a JSON object".into()));
    }
    Ok(grant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_as_it_is() {
        let text = br#" {"access_token": "at", "nested": {"a": [1]}} "#;
        assert_eq!(*read(&text[..]).unwrap(), text);
    }

    #[test]
    fn what_is_no_object_is_refused_without_being_quoted() {
        let long = format!("{{\"canary\": \"{}\"}}", "x".repeat(LIMIT));
        for text in ["", "canary", "\"canary\"", "[\"canary\"]", "{\"a\": canary}", "{\"a\": 1} canary", &long] {
            let failure = read(text.as_bytes()).unwrap_err();
            assert_eq!(failure.exit(), Exit::Failure);
            assert!(!format!("{failure:?}").contains("canary"), "{failure:?}");
        }
    }
}
