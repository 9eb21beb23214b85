//! Limits the number of simultaneous flights of each provider.
//!
//! A flight acquires its permit before it writes anything, so one that waits for a provider that hangs has spent
//! nothing and holds nothing. Flights of other providers are not affected.

use std::{collections::HashMap, sync::Arc};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{account::ProviderName, provider::Providers, timeouts::PROVIDER_PERMIT_TIMEOUT};

/// The permits of each provider.
#[derive(Debug)]
pub(super) struct ProviderPermits(HashMap<ProviderName, Arc<Semaphore>>);

impl ProviderPermits {
    /// As many permits as each provider's rules allow.
    pub(super) fn of(providers: &Providers) -> Self {
        let permits = |name: &ProviderName| {
            let number = providers.get(name)?.rules().concurrent_refreshes;
            Some((name.clone(), Arc::new(Semaphore::new(number.get().min(Semaphore::MAX_PERMITS)))))
        };
        Self(providers.names().filter_map(permits).collect())
    }

    /// Acquires a permit, which is released when the value is dropped. Waiters are served in order. `None` if none
    /// becomes free in time.
    pub(super) async fn acquire(&self, provider: &ProviderName) -> Option<OwnedSemaphorePermit> {
        let permits = Arc::clone(self.0.get(provider)?);
        timeout(PROVIDER_PERMIT_TIMEOUT, permits.acquire_owned()).await.ok()?.ok()
    }
}
