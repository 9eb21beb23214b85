//! The authorization server of the tests does what they rely on: it rotates, it notices reuse, and its log tells.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::oidc::{Client, Oidc};

fn refresh_token(answer: &Value) -> &str {
    answer["refresh_token"].as_str().unwrap_or_else(|| panic!("no refresh token in {answer}"))
}

#[tokio::test]
async fn every_client_logs_in_and_is_given_a_new_refresh_token_at_each_refresh() {
    let oidc = Oidc::start().await;
    for client in [Client::Public, Client::Basic, Client::Post] {
        let grant = oidc.code_flow_grant(client).await;
        assert_eq!(grant["expires_in"], 600, "{grant}");
        let first = oidc.present(client, refresh_token(&grant)).await;
        assert_eq!(first.status, 200, "{client:?}: {}", first.text());
        let second = oidc.present(client, refresh_token(&first.json())).await;
        assert_eq!(second.status, 200, "{client:?}: {}", second.text());
        let tokens = [&grant, &first.json(), &second.json()].map(|answer| refresh_token(answer).to_owned());
        assert!(tokens[0] != tokens[1] && tokens[1] != tokens[2]);
        assert_eq!(oidc.issued().await.refresh_tokens.as_chunks::<3>().0.last(), Some(&tokens));
    }
}

#[tokio::test]
async fn a_spent_token_kills_its_whole_family_and_the_log_shows_it() {
    let oidc = Oidc::start().await;
    let grant = oidc.code_flow_grant(Client::Public).await;
    let bystander = oidc.code_flow_grant(Client::Public).await;
    let newest = oidc.present(Client::Public, refresh_token(&grant)).await.json();

    let again = oidc.present(Client::Public, refresh_token(&grant)).await;
    assert_eq!((again.status, &again.json()["error"]), (400, &json!("invalid_grant")));
    let dead = oidc.present(Client::Public, refresh_token(&newest)).await;
    assert_eq!((dead.status, &dead.json()["error"]), (400, &json!("invalid_grant")));
    assert_eq!(oidc.present(Client::Public, refresh_token(&bystander)).await.status, 200);

    let log = oidc.refreshes().await;
    assert_eq!(log.iter().map(|entry| entry.spent_before).collect::<Vec<_>>(), [false, true, false, false]);
    assert_eq!(log.iter().map(|entry| entry.committed).collect::<Vec<_>>(), [true, false, false, true]);
    assert_eq!(
        (log[1].presented_before, log[1].status, log[1].error.as_deref()),
        (1, Some(400), Some("invalid_grant"))
    );
    assert!(log[0].fingerprint.is_some() && log[0].fingerprint == log[1].fingerprint);
    assert_ne!(log[1].fingerprint, log[2].fingerprint);
}

#[tokio::test]
async fn a_fault_strikes_before_or_after_the_provider_commits() {
    let oidc = Oidc::start().await;
    let grant = oidc.code_flow_grant(Client::Public).await;
    let token = refresh_token(&grant);

    oidc.fault(json!({"kind": "answer", "status": 429, "retry_after": 7, "error": "slow_down", "times": 1})).await;
    let limited = oidc.present(Client::Public, token).await;
    assert_eq!((limited.status, limited.retry_after()), (429, Some(Duration::from_secs(7))));
    assert_eq!(limited.json(), json!({"error": "slow_down"}));

    oidc.fault(json!({"kind": "drop", "times": 1})).await;
    assert!(oidc.try_present(Client::Public, token).await.is_err());

    // A caller that is gone before it was its turn has asked for nothing.
    oidc.fault(json!({"kind": "hold", "times": 1})).await;
    tokio::select! {
        _ = oidc.present(Client::Public, token) => panic!("nobody let it go"),
        () = oidc.refreshes_reach(3) => {}
    }
    oidc.fault(json!({"kind": "drop", "after": true, "times": 1})).await;
    assert!(oidc.try_present(Client::Public, token).await.is_err());
    oidc.heal().await;

    let log = oidc.refreshes().await;
    assert_eq!(log.iter().map(|entry| entry.presented_before).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(log.iter().map(|entry| entry.committed).collect::<Vec<_>>(), [false, false, false, true]);
    assert_eq!(log.iter().map(|entry| entry.status).collect::<Vec<_>>(), [Some(429), None, None, None]);
    let successor = oidc.issued().await.refresh_tokens.pop().unwrap();
    assert_eq!(oidc.present(Client::Public, &successor).await.status, 200);
}
