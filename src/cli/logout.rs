//! `credproxy logout`.

use serde_json::json;

use super::{Exit, Failure, output};
use crate::{account::Account, client::Client};

pub(super) async fn run(client: &Client, account: &Account, revoke: bool, json: bool) -> Result<Exit, Failure> {
    let revoked = client.delete(account, revoke).await.map_err(|error| Failure::of(error, Some(account)))?;
    output::note(match (revoke, revoked) {
        (_, true) => "logged out",
        (true, false) => "logged out; the provider did not revoke the grant, so a copy of it may still be good",
        (false, false) => "logged out here; the provider was not told, so a copy of the grant is still good",
    });
    if json {
        output::json(&json!({ "revoked": revoked }))?;
    }
    Ok(Exit::Success)
}
