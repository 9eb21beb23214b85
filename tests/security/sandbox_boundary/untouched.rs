//! What a refusal costs tells nothing: it is given before the store is asked for anything, whether or not there is what
//! was meant, and without the store the coordinator knows of no name that is new to it. Shown by a store that counts; the
//! times of the real daemon are printed, and prove nothing by themselves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use axum_test::TestServer;
use credproxy::{
    clock::{Clock, SystemClock},
    keys::Keys,
    policy::{Allowed, Operation, Policy},
    refresh::Coordinator,
    server::{AppState, router},
    store::{StoreError, memory::MemoryStore},
};
use http::Method;
use serde_json::json;

use crate::{
    sandbox_boundary::World,
    support::{
        http::{Connection, Transcript},
        store::{Intercepted, Interceptor, StoreCall},
    },
};

/// How often each account is asked for.
const ROUNDS: usize = 500;

/// Counts what a store is asked for.
#[derive(Debug, Default)]
struct Counting(AtomicUsize);

#[async_trait]
impl Interceptor for Counting {
    async fn before(&self, _: StoreCall) -> Result<(), StoreError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn epoch(&self, epoch: u64) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst);
        epoch
    }
}

#[tokio::test]
async fn a_refusal_asks_the_store_for_nothing() {
    let store = Arc::new(Intercepted::new(Box::new(MemoryStore::new().unwrap()), Counting::default()));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let keys = Keys::new(Arc::<Intercepted<_, _>>::clone(&store), Arc::clone(&clock));
    let coordinator =
        Coordinator::new(Arc::<Intercepted<_, _>>::clone(&store), [].into_iter().collect(), clock, Duration::ZERO);
    let api = |policy| TestServer::new(router(AppState::new(coordinator.clone(), keys.clone(), policy))).unwrap();
    let host = api(Policy::host());
    let sandbox = api(Policy::sandbox(Allowed {
        allow: vec!["corp".parse().unwrap()],
        operations: Operation::ALL.to_vec(),
        keys: vec!["openai".parse().unwrap()],
    }));
    for there in ["corp", "other"] {
        let put =
            host.put(&format!("/v1/tokens/{there}")).json(&json!({"access_token": "at", "expires_in": 3600})).await;
        assert_eq!(put.status_code(), 201);
        assert_eq!(host.get(&format!("/v1/tokens/{there}")).await.status_code(), 200, "it is in the daemon's memory");
    }
    assert_eq!(host.put("/v1/api-keys/deploy").json(&json!({"api_key": "k"})).await.status_code(), 201);

    let before = store.0.load(Ordering::SeqCst);
    for name in ["other", "nowhere"] {
        for (method, target) in [
            ("GET", format!("/v1/tokens/{name}")),
            ("HEAD", format!("/v1/tokens/{name}")),
            ("PUT", format!("/v1/tokens/{name}")),
            ("DELETE", format!("/v1/tokens/{name}")),
            ("POST", format!("/v1/tokens/{name}/refresh")),
            ("GET", format!("/v1/tokens/corp?bucket={name}")),
        ] {
            let refused = sandbox.method(Method::from_bytes(method.as_bytes()).unwrap(), &target).await;
            assert_eq!(refused.status_code(), 403, "{method} {target}");
        }
        let refused = sandbox.post("/v1/logins").json(&json!({"provider": name})).await;
        assert_eq!(refused.status_code(), 403, "{name}");
    }
    for name in ["deploy", "nowhere"] {
        for method in [Method::GET, Method::HEAD, Method::PUT, Method::DELETE] {
            let refused = sandbox.method(method, &format!("/v1/api-keys/{name}")).await;
            assert_eq!(refused.status_code(), 403, "{name}");
        }
    }
    assert_eq!(store.0.load(Ordering::SeqCst), before);
    // What is allowed asks it.
    assert_eq!(sandbox.get("/v1/api-keys/openai").await.status_code(), 404);
    assert!(store.0.load(Ordering::SeqCst) > before);
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "what is measured is the time that passes here")]
async fn the_times_of_refusals_are_there_to_see() {
    let world = World::new().await;
    let targets = ["/v1/tokens/other", "/v1/tokens/nowhere", "/v1/tokens/former", "/v1/tokens/corp?bucket=none"];
    let mut times = [const { Vec::new() }; 4];
    let mut connection = Connection::to_daemon(&world.socket("all"), Transcript::default()).await;
    // In turns, so that what disturbs one disturbs all.
    for _ in 0..ROUNDS {
        for (target, times) in targets.iter().zip(&mut times) {
            let start = std::time::Instant::now();
            assert_eq!(connection.request("GET", target, &[], "").await.status, 403, "{target}");
            times.push(start.elapsed());
        }
    }
    for (target, times) in targets.iter().zip(&mut times) {
        times.sort_unstable();
        println!("median of {ROUNDS} refusals of {target}: {:?}", times[ROUNDS / 2]);
    }
}
