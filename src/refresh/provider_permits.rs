//! How many flights of one provider may be under way at once.
//!
//! A flight takes its place before it marks anything, so one that waits for a provider that hangs has spent nothing and
//! holds nothing; those of other providers do not notice.

use std::{collections::HashMap, sync::Arc};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{account::ProviderName, provider::Providers, timeouts::PROVIDER_PERMIT_TIMEOUT};

/// The places of each provider.
#[derive(Debug)]
pub(super) struct ProviderPermits(HashMap<ProviderName, Arc<Semaphore>>);

impl ProviderPermits {
    /// As many as each provider's rules say.
    pub(super) fn of(providers: &Providers) -> Self {
        let permits = |name: &ProviderName| {
            let number = providers.get(name)?.rules().concurrent_refreshes;
            Some((name.clone(), Arc::new(Semaphore::new(number.get().min(Semaphore::MAX_PERMITS)))))
        };
        Self(providers.names().filter_map(permits).collect())
    }

    /// Takes a place, until the value is dropped; those who wait are served in their order. `None` when none is free in
    /// time.
    pub(super) async fn acquire(&self, provider: &ProviderName) -> Option<OwnedSemaphorePermit> {
        let permits = Arc::clone(self.0.get(provider)?);
        timeout(PROVIDER_PERMIT_TIMEOUT, permits.acquire_owned()).await.ok()?.ok()
    }
}
