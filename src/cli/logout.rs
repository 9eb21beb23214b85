//! `credproxy logout`.

use serde_json::json;

use super::{Exit, Failure, output};
use crate::{account::Account, client::Client};

pub(super) async fn run(client: &Client, account: &Account, json: bool) -> Result<Exit, Failure> {
    let revoked = client.delete(account, true).await.map_err(|error| Failure::of(error, Some(account)))?;
    output::note(if revoked {
        "logged out"
    } else {
        "logged out; the provider did not revoke the grant, so a copy of it may still be good"
    });
    if json {
        output::json(&json!({ "revoked": revoked }))?;
    }
    Ok(Exit::Success)
}
