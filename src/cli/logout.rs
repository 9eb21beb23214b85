//! `credproxy logout`.

use serde_json::json;

use super::{Exit, Failure, output};
use crate::{account::Account, client::Client};

/// A grant that was deleted but not revoked is not a failure: deleting it is all that can be guaranteed.
pub(super) async fn run(client: &Client, account: &Account, revoke: bool, json: bool) -> Result<Exit, Failure> {
    let revoked = client.delete(account, revoke).await.map_err(|error| Failure::of(error, Some(account)))?;
    if revoked {
        output::note(&format!("logged out of {account}; the provider has revoked the grant"));
    } else {
        output::note(&format!("logged out of {account}: the grant is deleted here"));
        let why = if revoke { not_revoked(client, account).await } else { "the provider was not told" };
        output::note(&format!("warning: {why}; a copy of the grant may still be good"));
    }
    if json {
        output::json(&json!({ "revoked": revoked }))?;
    }
    Ok(Exit::Success)
}

/// The reason is not in the answer, so it is guessed.
async fn not_revoked(client: &Client, account: &Account) -> &'static str {
    match client.providers().await {
        Ok(known) if known.iter().all(|known| known.name != account.provider) => {
            "no provider of this name is configured, so nobody was told"
        }
        Ok(_) | Err(_) => {
            "the provider did not revoke it: it has no way to, refused, or could not be reached (the daemon's log says \
             which)"
        }
    }
}
