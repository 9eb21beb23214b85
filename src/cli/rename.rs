//! `credproxy rename`.

use super::{Exit, Failure, import, output};
use crate::{account::Account, client::Client};

pub(super) async fn run(client: &Client, from: &Account, to: &Account) -> Result<Exit, Failure> {
    client.rename(from, to).await.map_err(|error| Failure::of(error, Some(from)))?;
    output::note(&format!("{from} is {to} now"));
    output::note(&format!("sandboxes and sockets whose `allow` names {from} do not reach it under the new name"));
    import::warn_if_not_configured(client, to).await;
    Ok(Exit::Success)
}
