//! The real program against three authorization servers that others wrote, in three languages, with three ways to treat
//! a spent refresh token: every flow, every way to say who the client is, from the login to the revocation.
//!
//! Each test walks one server and writes its rows of the table that `scripts/test` prints. A server is known to the
//! daemon by a front of ours, which records what passes and can lose an answer after the server has committed.

#![cfg(test)]

mod account;
mod django;
mod glewlwyd;
mod oidc_provider;
mod oidc_server;
mod server;
#[expect(dead_code, reason = "each test binary uses its own part of the shared code")]
#[path = "../support/mod.rs"]
mod support;
mod table;
mod walk;

use django::Django;
use glewlwyd::Glewlwyd;
use oidc_provider::OidcProvider;

#[tokio::test]
async fn oidc_provider() {
    walk::all(&OidcProvider::start().await).await;
}

#[tokio::test]
async fn glewlwyd() {
    walk::all(&Glewlwyd::start().await).await;
}

#[tokio::test]
async fn django_oauth_toolkit() {
    walk::all(&Django::start().await).await;
}
