//! `credproxy token`.

use std::time::Duration;

use super::{Exit, Failure, output};
use crate::{account::Account, client::Client};

pub(super) async fn run(
    client: &Client,
    account: &Account,
    min_validity: Option<Duration>,
    json: bool,
) -> Result<Exit, Failure> {
    let token = client.token(account, min_validity).await.map_err(|error| Failure::of(error, Some(account)))?;
    if json {
        output::sanitized_token(&token)?;
    } else {
        output::access_token(&token)?;
    }
    Ok(Exit::Success)
}
