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
    account::{Account, ItemName, ProviderName},
    clock::{Clock, SystemClock},
    grant::{Grant, Version},
    item::{Item, ItemKind, ItemTag},
    keys::Keys,
    policy::{Allowed, Operation, Policy},
    refresh::Coordinator,
    server::{AppState, router},
    store::{
        AccountFilter, Claim, Deleted, Expect, ItemEntry, ItemStore, Presentation, Put, PutGrant, Record, RefreshState,
        Removed, Renamed, Revision, Store, StoreError, Visitor, memory::MemoryStore,
    },
};
use http::Method;
use serde_json::json;

use crate::{
    sandbox_boundary::World,
    support::http::{Connection, Transcript},
};

/// How often each account is asked for.
const ROUNDS: usize = 500;

/// Counts what a store is asked for.
#[derive(Debug)]
struct Counting {
    store: MemoryStore,
    asked: AtomicUsize,
}

impl Counting {
    fn asked(&self) -> &MemoryStore {
        self.asked.fetch_add(1, Ordering::SeqCst);
        &self.store
    }
}

#[async_trait]
impl Store for Counting {
    async fn load(&self, account: &Account) -> Result<Option<Record>, StoreError> {
        self.asked().load(account).await
    }

    async fn names(&self) -> Result<Vec<Account>, StoreError> {
        self.asked().names().await
    }

    async fn visit(&self, wanted: &AccountFilter<'_>, each: &mut Visitor<'_>) -> Result<(), StoreError> {
        self.asked().visit(wanted, each).await
    }

    async fn claim(&self, account: &Account, expected: Revision, presented: Presentation) -> Result<Claim, StoreError> {
        self.asked().claim(account, expected, presented).await
    }

    async fn settle(
        &self,
        account: &Account,
        version: Version,
        refresh_state: &RefreshState,
    ) -> Result<bool, StoreError> {
        self.asked().settle(account, version, refresh_state).await
    }

    async fn save(
        &self,
        account: &Account,
        version: Version,
        next: &Grant,
        refresh_state: &RefreshState,
    ) -> Result<bool, StoreError> {
        self.asked().save(account, version, next, refresh_state).await
    }

    async fn put(
        &self,
        account: &Account,
        grant: &Grant,
        expect: &Expect,
        siblings: &[ProviderName],
    ) -> Result<PutGrant, StoreError> {
        self.asked().put(account, grant, expect, siblings).await
    }

    async fn rename(&self, from: &Account, to: &Account) -> Result<Renamed, StoreError> {
        self.asked().rename(from, to).await
    }

    async fn delete(&self, account: &Account, expect: &Expect) -> Result<Deleted, StoreError> {
        self.asked().delete(account, expect).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.asked().probe().await
    }

    fn epoch(&self) -> u64 {
        self.asked().epoch()
    }
}

#[async_trait]
impl ItemStore for Counting {
    async fn item(&self, kind: ItemKind, name: &ItemName) -> Result<Option<Item>, StoreError> {
        self.asked().item(kind, name).await
    }

    async fn items(&self, kind: ItemKind) -> Result<Vec<ItemEntry>, StoreError> {
        self.asked().items(kind).await
    }

    async fn put_item(
        &self,
        kind: ItemKind,
        name: &ItemName,
        item: &Item,
        expect: &Expect<ItemTag>,
    ) -> Result<Put, StoreError> {
        self.asked().put_item(kind, name, item, expect).await
    }

    async fn delete_item(
        &self,
        kind: ItemKind,
        name: &ItemName,
        expect: &Expect<ItemTag>,
    ) -> Result<Removed, StoreError> {
        self.asked().delete_item(kind, name, expect).await
    }
}

#[tokio::test]
async fn a_refusal_asks_the_store_for_nothing() {
    let store = Arc::new(Counting { store: MemoryStore::new().unwrap(), asked: AtomicUsize::new(0) });
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let keys = Keys::new(Arc::<Counting>::clone(&store), Arc::clone(&clock));
    let coordinator = Coordinator::new(Arc::<Counting>::clone(&store), [].into_iter().collect(), clock, Duration::ZERO);
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

    let before = store.asked.load(Ordering::SeqCst);
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
    assert_eq!(store.asked.load(Ordering::SeqCst), before);
    // What is allowed asks it.
    assert_eq!(sandbox.get("/v1/api-keys/openai").await.status_code(), 404);
    assert!(store.asked.load(Ordering::SeqCst) > before);
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
