//! The provider client against a real socket: what it sends, and what it makes of every answer.

#![cfg(test)]

mod support;

use support::issuer::Issuer;

#[tokio::test]
async fn a_new_server_has_seen_nothing() {
    assert!(Issuer::start().await.requests().is_empty());
}
