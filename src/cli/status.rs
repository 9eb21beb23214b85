//! `credproxy status`.

use serde_json::json;

use super::{Exit, Failure, output};
use crate::{
    account::Account,
    client::{AccountStatus, Client, Health},
    clock::{Clock as _, SystemClock, Timestamp},
};

/// A degraded daemon is a failure, so that a script or monitor notices. An account that needs a person is not a
/// failure: it is in the list.
pub(super) async fn run(client: &Client, json: bool) -> Result<Exit, Failure> {
    let fail = |error| Failure::of(error, None);
    let accounts = client.tokens().await.map_err(fail)?;
    let health = client.health().await.map_err(fail)?;
    if json {
        output::json(&json!({ "tokens": accounts }))?;
    } else if accounts.is_empty() {
        output::note("no accounts; log in with `credproxy login PROVIDER`");
    } else {
        output::data(&table(accounts, SystemClock::new().now()))?;
    }
    match health {
        Health::Good => Ok(Exit::Success),
        Health::Degraded(reasons) => {
            for reason in reasons {
                output::note(&format!("warning: degraded: {reason}"));
            }
            Ok(Exit::Failure)
        }
    }
}

fn table(accounts: Vec<AccountStatus>, now: Timestamp) -> String {
    let head = ["ACCOUNT", "STATE", "EXPIRES IN", "REFRESHABLE", "LAST ERROR"].map(String::from);
    let rows = accounts.into_iter().map(|account| {
        let expires_in = match account.expiry.map(Timestamp::from_secs) {
            None => "unknown".into(),
            Some(expiry) if expiry <= now => "expired".into(),
            Some(expiry) => output::in_words(expiry.since(now)),
        };
        [
            Account::new(account.provider, account.bucket).to_string(),
            account.state,
            expires_in,
            if account.refreshable { "yes" } else { "no" }.into(),
            account.last_error.unwrap_or_else(|| "-".into()),
        ]
    });
    output::table(&[head].into_iter().chain(rows).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_an_account_stands() {
        let account = |bucket: &str, state: &str, expiry, last_error: Option<&str>| AccountStatus {
            provider: "corp".parse().unwrap(),
            bucket: bucket.parse().unwrap(),
            state: state.into(),
            expiry,
            scope: None,
            refreshable: last_error.is_none(),
            refreshed_at: None,
            last_error: last_error.map(String::from),
        };
        let accounts = vec![
            account("default", "valid", Some(4_540), None),
            account("work", "reauth_required", Some(1_000), Some("invalid_grant")),
            account("odd", "unknown", None, None),
        ];
        let expected = "\
ACCOUNT       STATE            EXPIRES IN  REFRESHABLE  LAST ERROR
corp/default  valid            59 min      yes          -
corp/work     reauth_required  expired     no           invalid_grant
corp/odd      unknown          unknown     yes          -";
        assert_eq!(table(accounts, Timestamp::from_secs(1_000)), expected);
    }
}
