//! Many callers on several threads, with a store and a provider that hold each of them up for a random while: whatever
//! the interleaving, no refresh token is presented twice, and no successor is lost.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use credproxy::{
    account::Account,
    clock::{SystemClock, Timestamp},
    grant::{Grant, Issued, Lifetime},
    provider::{Body, Provider, Providers, Reply, Rules},
    refresh::{Coordinator, RefreshError, Snapshot, condition::IfMatch},
    secret::{AccessToken, RefreshToken, StoreKey},
    store::{Store, StoreError, memory::MemoryStore, sqlite::Sqlite},
};
use secrecy::ExposeSecret as _;
use tokio::task::JoinSet;

use crate::support::store::{Intercepted, Interceptor, StoreCall};

/// Numbers that differ from run to run as the threads do; which ones does not matter.
#[derive(Debug, Default)]
struct Dice(AtomicU64);

impl Dice {
    fn below(&self, end: u64) -> u64 {
        // The finalizer of SplitMix64.
        let mut mixed = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }

    async fn hold_up(&self) {
        match self.below(8) {
            0 => tokio::time::sleep(Duration::from_millis(self.below(4))).await,
            1..4 => tokio::task::yield_now().await,
            _ => {}
        }
    }
}

/// Rotates at every presentation, or does not get the request; knows every token it ever saw.
#[derive(Debug, Default)]
struct Strict {
    rules: Rules,
    dice: Dice,
    issued: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    in_hand: HashSet<String>,
    spent: HashSet<String>,
    presented_twice: Vec<String>,
}

impl Strict {
    fn issue(&self, lifetime: Lifetime) -> Issued {
        let number = self.issued.fetch_add(1, Ordering::SeqCst);
        Issued {
            access_token: AccessToken::new(format!("canary-at-{number}-end")).unwrap(),
            token_type: None,
            lifetime,
            scope: None,
            refresh_token: Some(RefreshToken::new(format!("canary-rt-{number}-end")).unwrap()),
            extra: credproxy::grant::Extra::default(),
        }
    }

    /// Of a login, or of a grant imported with an access token of no use.
    fn login(&self) -> Issued {
        let past = Lifetime::At(Timestamp::from_secs(1_600_000_000));
        self.issue(if self.dice.below(2) == 0 { past } else { Lifetime::In(Duration::from_hours(1)) })
    }
}

#[async_trait]
impl Provider for Strict {
    #[expect(clippy::disallowed_methods, reason = "a provider sees what it is presented")]
    async fn refresh(&self, grant: &Grant) -> Reply {
        let token = grant.refresh_token.as_ref().unwrap().expose_secret().to_owned();
        {
            let mut seen = self.seen.lock().unwrap();
            if seen.spent.contains(&token) || !seen.in_hand.insert(token.clone()) {
                seen.presented_twice.push(token.clone());
            }
        }
        self.dice.hold_up().await;
        let mut seen = self.seen.lock().unwrap();
        seen.in_hand.remove(&token);
        if self.dice.below(200) == 0 {
            return Reply::NotSent("no route");
        }
        seen.spent.insert(token);
        drop(seen);
        let issued = self.issue(Lifetime::In(Duration::from_hours(1)));
        Reply::Answered { status: 200, body: Body::Issued(Box::new(issued)), retry_after: None }
    }

    async fn revoke(&self, _: &Grant) -> bool {
        true
    }

    fn rules(&self) -> &Rules {
        &self.rules
    }
}

/// Takes its time before and after, and fails to save now and then.
#[derive(Debug)]
struct Slow(Dice);

impl Slow {
    async fn hold_up(&self, call: StoreCall) {
        if !matches!(call, StoreCall::Names | StoreCall::Visit | StoreCall::Probe) {
            self.0.hold_up().await;
        }
    }
}

#[async_trait]
impl Interceptor for Slow {
    async fn before(&self, call: StoreCall) -> Result<(), StoreError> {
        if call == StoreCall::Save && self.0.below(60) == 0 {
            return Err(StoreError::Unavailable("disk full".into()));
        }
        self.hold_up(call).await;
        Ok(())
    }

    async fn after(&self, call: StoreCall) -> Result<(), StoreError> {
        self.hold_up(call).await;
        Ok(())
    }
}

fn account() -> Account {
    "corp".parse().unwrap()
}

fn daemon(inner: Arc<dyn Store>, provider: &Arc<Strict>, seed: u64) -> Coordinator {
    let store = Arc::new(Intercepted::new(inner, Slow(Dice(AtomicU64::new(seed)))));
    let provider: Arc<dyn Provider> = Arc::<Strict>::clone(provider);
    let providers: Providers = [("corp".parse().unwrap(), provider)].into_iter().collect();
    Coordinator::new(store, providers, Arc::new(SystemClock::new()), Duration::ZERO)
}

/// One caller's life. What one daemon showed it, it never takes back.
async fn call(coordinator: Coordinator, provider: Arc<Strict>, dice: Dice, alone: bool) {
    let mut newest: HashMap<_, u64> = HashMap::new();
    for _ in 0..60 {
        dice.hold_up().await;
        let shown: Result<Arc<Snapshot>, RefreshError> = match dice.below(40) {
            0 => {
                match coordinator.put(&account(), provider.login(), &IfMatch::Absent).await {
                    // On a loaded machine the other owner's writes may keep the disk busy.
                    Ok(_) | Err(RefreshError::Store(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                continue;
            }
            1 => {
                drop(coordinator.delete(&account(), &IfMatch::Absent, false).await);
                continue;
            }
            2..15 => coordinator.refresh(&account(), &IfMatch::Absent).await,
            15..30 => coordinator.token(&account(), None).await,
            _ => coordinator.peek(&account()).await,
        };
        let Ok(shown) = shown else { continue };
        let version = shown.token.version;
        let before = newest.insert(version.id, version.generation).unwrap_or_default();
        assert!(!alone || before <= version.generation, "{before} before {version}");
    }
}

#[expect(clippy::disallowed_methods, reason = "a test sees what is stored")]
async fn storm(stores: &[Arc<dyn Store>], seed: u64) {
    // A store that was used before knows the tokens of then.
    let provider = Arc::new(Strict { issued: AtomicU64::new(seed * 1_000_000), ..Strict::default() });
    let daemons: Vec<_> =
        stores.iter().zip(seed..).map(|(store, seed)| daemon(Arc::clone(store), &provider, seed)).collect();
    daemons[0].put(&account(), provider.login(), &IfMatch::Absent).await.unwrap();
    let mut callers = JoinSet::new();
    for number in 0..24 {
        let daemon = daemons[usize::try_from(number).unwrap() % daemons.len()].clone();
        let dice = Dice(AtomicU64::new(seed * 1000 + number));
        callers.spawn(call(daemon, Arc::clone(&provider), dice, daemons.len() == 1));
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert_eq!(provider.seen.lock().unwrap().presented_twice, Vec::<String>::new());
    for daemon in &daemons {
        daemon.shut_down().await;
    }
    // No successor was lost: what is stored in the end was never presented.
    if let Some(record) = stores[0].load(&account()).await.unwrap() {
        let token = record.grant.refresh_token.unwrap().expose_secret().to_owned();
        assert!(!provider.seen.lock().unwrap().spent.contains(&token));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn in_a_storm_of_callers_nothing_is_spent_twice_or_lost() {
    for seed in 0..3 {
        let first = MemoryStore::new().unwrap();
        let second = first.second_owner();
        storm(&[Arc::new(MemoryStore::new().unwrap())], seed).await;
        storm(&[Arc::new(first), Arc::new(second)], seed).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nor_is_it_in_one_on_the_disk() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("store").join("db");
    let open = async || Sqlite::open(&file, StoreKey::new([7; 32]), "key").await.unwrap();
    let stores: [Arc<dyn Store>; 2] = [Arc::new(open().await), Arc::new(open().await)];
    storm(&stores[..1], 0).await;
    storm(&stores, 1).await;
}
