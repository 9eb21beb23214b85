//! How many refreshes there may be: of one provider at once, and at the wish of one socket.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use credproxy::{
    account::Account,
    clock::Clock,
    limits::{Rate, RefreshQuota},
    provider::{Provider, Rules},
    refresh::{CallerContext, Coordinator, RefreshError, condition::IfMatch},
    store::{Store as _, memory::MemoryStore},
    timeouts::PROVIDER_PERMIT_TIMEOUT,
};
use tokio::task::JoinSet;

use crate::coordinator::{
    COOLDOWN, SECOND,
    fakes::{ManualClock, Scripted, lost},
};

/// Two providers that take one refresh at once, with accounts each.
struct Pair {
    clock: Arc<ManualClock>,
    store: Arc<MemoryStore>,
    slow: Arc<Scripted>,
    other: Arc<Scripted>,
    coordinator: Coordinator,
}

impl Pair {
    async fn new(cooldown: Duration) -> Self {
        let rules = Rules { concurrent_refreshes: NonZeroUsize::MIN, ..Rules::default() };
        let (slow, other) = (Scripted::new(rules.clone()), Scripted::new(rules));
        let providers = [("slow", &slow), ("other", &other)].map(|(name, provider)| {
            let provider: Arc<dyn Provider> = Arc::<Scripted>::clone(provider);
            (name.parse().unwrap(), provider)
        });
        let (store, clock) = (Arc::new(MemoryStore::new().unwrap()), ManualClock::new());
        let shared: Arc<dyn Clock> = Arc::<ManualClock>::clone(&clock);
        let providers = providers.into_iter().collect();
        let coordinator = Coordinator::new(Arc::<MemoryStore>::clone(&store), providers, shared, cooldown);
        let pair = Self { clock, store, slow, other, coordinator };
        for name in ["slow/b", "slow/a", "other/a"] {
            pair.log_in(name).await;
        }
        pair
    }

    /// Ends the provider's chain and begins a new one: the fake has one at a time.
    async fn log_in(&self, name: &str) {
        let provider = if name.starts_with("slow") { &self.slow } else { &self.other };
        self.coordinator.put(&name.parse().unwrap(), provider.login(), &IfMatch::Absent).await.unwrap();
    }

    async fn refresh(&self, name: &str, caller: &CallerContext) -> Result<(), RefreshError> {
        let account: Account = name.parse().unwrap();
        self.coordinator.refresh_with(&account, &IfMatch::Absent, caller).await.map(drop)
    }

    fn spawn(&self, name: &str, tasks: &mut JoinSet<Result<(), RefreshError>>) {
        let (coordinator, account): (_, Account) = (self.coordinator.clone(), name.parse().unwrap());
        tasks.spawn(async move { coordinator.refresh(&account, &IfMatch::Absent).await.map(drop) });
    }

    async fn presented(&self, count: usize) {
        while self.slow.presentations() < count {
            tokio::task::yield_now().await;
        }
    }

    async fn marked(&self, name: &str) -> bool {
        self.store.load(&name.parse().unwrap()).await.unwrap().unwrap().refresh_state.presented.is_some()
    }
}

#[tokio::test(start_paused = true)]
async fn siblings_of_a_provider_that_takes_one_at_a_time_go_one_after_the_other() {
    let pair = Pair::new(COOLDOWN).await;
    let mut tasks = JoinSet::new();
    pair.slow.shut();
    pair.spawn("slow/a", &mut tasks);
    pair.presented(1).await;
    pair.spawn("slow/b", &mut tasks);
    tokio::time::sleep(SECOND * 5).await;
    assert_eq!(pair.slow.presentations(), 1, "the second waits");
    assert!(!pair.marked("slow/b").await, "and has marked nothing");
    pair.slow.open();
    tasks.join_next().await.unwrap().unwrap().unwrap();
    drop(tasks.join_next().await.unwrap().unwrap());
    assert_eq!(pair.slow.presentations(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_hangs_keeps_its_own_accounts_waiting_and_no_other() {
    let pair = Pair::new(COOLDOWN).await;
    let mut tasks = JoinSet::new();
    pair.slow.shut();
    pair.spawn("slow/a", &mut tasks);
    pair.presented(1).await;
    let start = pair.clock.monotonic();
    let elapsed = || pair.clock.monotonic().since(start);
    pair.refresh("other/a", &CallerContext::default()).await.unwrap();
    assert_eq!(elapsed(), Duration::ZERO, "the other provider's account does not wait");

    let refused = pair.refresh("slow/b", &CallerContext::default()).await;
    assert!(matches!(refused, Err(RefreshError::ProviderBusy)), "{refused:?}");
    assert_eq!(elapsed(), PROVIDER_PERMIT_TIMEOUT);
    assert!(!pair.marked("slow/b").await);
    pair.coordinator.token(&"slow/b".parse().unwrap(), None).await.expect("the valid token is served");

    pair.slow.open();
    tasks.join_next().await.unwrap().unwrap().unwrap();
    pair.log_in("slow/b").await;
    pair.refresh("slow/b", &CallerContext::default())
        .await
        .expect("there is room, and no cooldown of an attempt never made");
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_place_does_not_hold_up_the_end() {
    let pair = Pair::new(COOLDOWN).await;
    let mut tasks = JoinSet::new();
    pair.slow.shut();
    pair.spawn("slow/a", &mut tasks);
    pair.presented(1).await;
    pair.spawn("slow/b", &mut tasks);
    tokio::task::yield_now().await;
    let start = pair.clock.monotonic();
    let ended = async {
        pair.coordinator.shut_down().await;
    };
    let waiting = async {
        let first = tasks.join_next().await.unwrap().unwrap();
        assert!(matches!(first, Err(RefreshError::ShuttingDown)), "{first:?}");
        assert_eq!(pair.clock.monotonic().since(start), Duration::ZERO);
        pair.slow.open();
    };
    tokio::join!(ended, waiting);
}

#[tokio::test(start_paused = true)]
async fn a_socket_has_so_many_new_tokens_of_each_account_and_pays_for_nothing_else() {
    let pair = Pair::new(Duration::ZERO).await;
    pair.log_in("slow/b").await;
    let quota = Arc::new(RefreshQuota::new(Rate::per_hour(2)));
    let caller = || CallerContext::with_quota(Some(Arc::clone(&quota)));
    let account: Account = "slow/b".parse().unwrap();
    let first = pair.coordinator.peek(&account).await.unwrap().tag.clone();
    for _ in 0..2 {
        pair.refresh("slow/b", &caller()).await.unwrap();
    }
    let calls = pair.slow.presentations();
    match pair.refresh("slow/b", &caller()).await {
        Err(RefreshError::QuotaExceeded { wait }) => assert_eq!(wait, SECOND * 1800),
        other => panic!("{other:?}"),
    }
    assert_eq!(pair.slow.presentations(), calls);

    // What is done already costs nothing, nor does a token that is read; another account has its own.
    let moved = IfMatch::Tags(vec![credproxy::refresh::condition::Tag::parse(&first)]);
    pair.coordinator.refresh_with(&account, &moved, &caller()).await.unwrap();
    pair.coordinator.token_with(&account, None, &caller()).await.unwrap();
    pair.refresh("other/a", &caller()).await.unwrap();
    // Nor is anybody else held to it.
    pair.refresh("slow/b", &CallerContext::default()).await.unwrap();

    tokio::time::sleep(SECOND * 1800).await;
    pair.refresh("slow/b", &caller()).await.unwrap();
    assert!(matches!(pair.refresh("slow/b", &caller()).await, Err(RefreshError::QuotaExceeded { .. })));
}

#[tokio::test(start_paused = true)]
async fn joining_a_flight_costs_no_quota_and_waits_for_its_call() {
    let pair = Pair::new(Duration::ZERO).await;
    pair.log_in("slow/b").await;
    let quota = Arc::new(RefreshQuota::new(Rate::per_hour(1)));
    let callers: Vec<_> = (0..10).map(|_| CallerContext::with_quota(Some(Arc::clone(&quota)))).collect();
    pair.slow.shut();
    let requests = callers.iter().map(|caller| pair.refresh("slow/b", caller));
    let opened = async {
        pair.presented(1).await;
        pair.slow.open();
    };
    let (results, ()) = tokio::join!(futures_util::future::join_all(requests), opened);
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!(pair.slow.presentations(), 1);
    assert!(callers.iter().all(CallerContext::provider_called));
}

#[tokio::test(start_paused = true)]
async fn a_caller_context_tells_whether_the_provider_was_called() {
    let pair = Pair::new(COOLDOWN).await;
    pair.log_in("slow/b").await;
    let account: Account = "slow/b".parse().unwrap();
    let read = CallerContext::default();
    pair.coordinator.token_with(&account, None, &read).await.unwrap();
    assert!(!read.provider_called());

    pair.slow.script([lost(), lost()]);
    let failed = CallerContext::default();
    pair.refresh("slow/b", &failed).await.unwrap_err();
    assert!(failed.provider_called(), "a call that failed is one");
    let limited = CallerContext::default();
    assert!(matches!(pair.refresh("slow/b", &limited).await, Err(RefreshError::RateLimited { .. })));
    assert!(!limited.provider_called());

    let (kept, revoked) = (CallerContext::default(), CallerContext::default());
    assert!(!pair.coordinator.delete_with(&"slow/a".parse().unwrap(), &IfMatch::Absent, false, &kept).await.unwrap());
    assert!(pair.coordinator.delete_with(&account, &IfMatch::Absent, true, &revoked).await.unwrap());
    assert_eq!((kept.provider_called(), revoked.provider_called()), (false, true));

    pair.log_in("slow/a").await;
    let calls = pair.slow.presentations();
    let account: Account = "slow/a".parse().unwrap();
    let (refresh, delete) = (CallerContext::default(), CallerContext::default());
    pair.slow.shut();
    let deleted = async {
        pair.presented(calls + 1).await;
        let deletion = pair.coordinator.delete_with(&account, &IfMatch::Absent, false, &delete);
        let opened = async {
            tokio::task::yield_now().await;
            pair.slow.open();
        };
        tokio::join!(deletion, opened).0
    };
    let (refreshed, deleted) = tokio::join!(pair.refresh("slow/a", &refresh), deleted);
    assert!(refreshed.is_ok() && deleted.is_ok(), "{refreshed:?} {deleted:?}");
    assert!(delete.provider_called(), "it waited for the flight");
}
