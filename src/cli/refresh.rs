//! `credproxy refresh`.

use super::{Exit, Failure, output};
use crate::{
    account::Account,
    client::Client,
    clock::{Clock as _, SystemClock},
};

pub(super) async fn run(client: &Client, account: &Account, json: bool) -> Result<Exit, Failure> {
    let token = client.refresh(account, None).await.map_err(|error| Failure::of(error, Some(account)))?;
    let left = token.expiry().map(|expiry| expiry.since(SystemClock::new().now()));
    output::note(&match left {
        Some(left) => format!("refreshed; expires in {}", output::in_words(left)),
        None => "refreshed".into(),
    });
    if json {
        output::sanitized_token(&token)?;
    }
    Ok(Exit::Success)
}
