//! Stores with any number of accounts, made through the library as the daemon would make them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use credproxy::{
    account::Account,
    clock::{Clock as _, SystemClock, Timestamp},
    grant::{Extra, Grant, Issued, Lifetime},
    secret::{AccessToken, RefreshToken},
    store::{Expect, Put, Store as _, key, random_grant_id, sqlite::Sqlite},
};
use tokio::{runtime::Runtime, task::JoinSet};

use crate::{
    Fallible,
    issuer::{access_token, refresh_token},
};

/// The account that every store has.
pub(crate) const TARGET: &str = "/v1/tokens/bench";

/// The target of the account of that number.
pub(crate) fn target(number: usize) -> String {
    if number == 0 { TARGET.to_owned() } else { format!("{TARGET}?bucket={}", bucket(number)) }
}

/// The target of that account's refresh.
pub(crate) fn refresh_target(number: usize) -> String {
    format!("{TARGET}/refresh?bucket={}", bucket(number))
}

fn bucket(number: usize) -> String {
    if number == 0 { "default".to_owned() } else { format!("b{number:07}") }
}

/// The database in a server's directory.
pub(crate) fn file(home: &Path) -> PathBuf {
    home.join("store/credproxy.db")
}

/// Puts a store of so many accounts into `home`. The first of each size is made in `kept`, the next ones are copies.
pub(crate) fn put(kept: &Path, accounts: usize, home: &Path) -> Fallible<()> {
    let made = kept.join(accounts.to_string());
    if !made.exists() {
        let draft = kept.join(format!("{accounts}.draft"));
        crate::note(&format!("making a store of {accounts} accounts"));
        Runtime::new()?.block_on(make(&file(&draft), accounts))?;
        fs::rename(&draft, &made)?;
    }
    let target = file(home);
    for name in ["credproxy.db", "store.key"] {
        crate::world::write(&target.with_file_name(name), &fs::read(file(&made).with_file_name(name))?)?;
    }
    Ok(())
}

/// How many puts are under way at once: many commits can then be one.
const TOGETHER: usize = 64;

async fn make(database: &Path, accounts: usize) -> Fallible<()> {
    let key = key::from_file(&database.with_file_name("store.key"), false)?;
    let store = Arc::new(Sqlite::open(database, key, "the bench's").await?);
    let mut making = JoinSet::new();
    for first in 0..TOGETHER.min(accounts) {
        let store = Arc::clone(&store);
        making.spawn(async move {
            for number in (first..accounts).step_by(TOGETHER) {
                let account: Account = format!("bench/{}", bucket(number)).parse().map_err(broken)?;
                let put = store.put(&account, &grant(&account)?, &Expect::Whatever, &[]).await.map_err(broken)?;
                if put != Put::Created.into() {
                    return Err("an account was there already".to_owned());
                }
            }
            Ok(())
        });
    }
    while let Some(made) = making.join_next().await {
        made??;
    }
    Ok(store.close().await?)
}

fn broken(error: impl std::error::Error) -> String {
    error.to_string()
}

/// A grant that lives until 2100 and has been refreshed never.
pub(crate) fn grant(account: &Account) -> Result<Grant, String> {
    let issued = Issued {
        access_token: AccessToken::new(access_token(0)).map_err(broken)?,
        token_type: None,
        lifetime: Lifetime::At(Timestamp::from_secs(4_102_444_800)),
        scope: Some("read write".to_owned()),
        refresh_token: Some(RefreshToken::new(refresh_token(account.bucket.as_str(), 0)).map_err(broken)?),
        extra: Extra::default(),
    };
    Ok(Grant::new(random_grant_id().map_err(broken)?, issued, SystemClock::new().now()))
}
