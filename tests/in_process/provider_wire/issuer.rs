//! The test server itself, on which the other tests rely.

use std::sync::Arc;

use credproxy::{
    grant::Lifetime,
    provider::{Body, Provider as _, Reply},
};
use tokio::task::JoinSet;

use crate::{
    provider_wire::{PATIENT, class, grant, provider, settings},
    support::issuer::{Answer, Gate, Issuer, Outcome},
};

#[test]
fn the_test_server_kills_the_family_of_a_token_that_is_presented_twice() {
    let issuer = Issuer::start_blocking();
    let (_, first) = issuer.new_grant();
    let provider = provider(settings(&issuer.token_endpoint()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let present = |token: &str| class(&runtime.block_on(provider.refresh(&grant("at", Some(token)))));
    assert_eq!(present(&first), "200 issued");
    let second = issuer.living_successor(&first).unwrap();
    assert!(issuer.family_alive(&first));
    assert_eq!(present(&first), "400 error invalid_grant");
    assert_eq!(present(&second), "400 error invalid_grant");
    assert!(!issuer.family_alive(&second));
    let outcomes: Vec<Outcome> = issuer.presentations().iter().map(|seen| seen.outcome).collect();
    assert_eq!(outcomes, [Outcome::Rotated, Outcome::Reused, Outcome::Dead]);
    assert_eq!((issuer.reused(), issuer.times_presented(&first)), (1, 2));
}

#[tokio::test]
async fn the_test_server_has_a_grace_window_and_can_go_without_rotation() {
    let issuer = Issuer::start().await;
    let provider = provider(settings(&issuer.token_endpoint()));
    let tokens = async |token: &str| {
        let reply = provider.refresh(&grant("at", Some(token))).await;
        let Reply::Answered { body: Body::Issued(tokens), .. } = reply else { panic!("{reply:?}") };
        tokens
    };
    issuer.set_grace(PATIENT);
    let (_, token) = issuer.new_grant();
    let successor = tokens(&token).await.refresh_token.unwrap();
    assert!(tokens(&token).await.refresh_token.unwrap().same_as(&successor));
    assert_eq!((issuer.reused(), issuer.family_alive(&token)), (0, true));

    issuer.set_rotation(false);
    issuer.set_lifetime(None);
    let (_, token) = issuer.new_grant();
    for _ in 0..2 {
        let fresh = tokens(&token).await;
        assert!(fresh.refresh_token.is_none() && fresh.lifetime == Lifetime::Unknown);
    }
}

#[tokio::test]
async fn the_test_server_serves_a_herd() {
    let issuer = Issuer::start().await;
    let gate = Gate::new();
    issuer.always(Some(Answer::HoldBefore(gate.clone())));
    let provider = Arc::new(provider(settings(&issuer.token_endpoint())));
    let mut callers = JoinSet::new();
    for _ in 0..500 {
        let (access, token) = issuer.new_grant();
        let provider = Arc::clone(&provider);
        callers.spawn(async move { class(&provider.refresh(&grant(&access, Some(&token))).await) });
    }
    gate.wait_for_arrivals(500).await;
    assert!(issuer.presentations().is_empty());
    gate.open();
    assert!(callers.join_all().await.iter().all(|reply| reply == "200 issued"));
    assert_eq!(issuer.presentations().len(), 500);
}
