//! Successes that a flight could not save: served from memory, and saved again until the store has them.
//!
//! Must not know: how a refresh token is presented.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{Flight, Snapshot};
use crate::{
    grant::{Grant, Version},
    store::StoreError,
    timeouts::FINAL_SAVE_TIMEOUT,
};

/// The first and the longest pause between attempts to save what the provider has already answered. It must be saved
/// within 2 s of the store's recovery.
const SAVE_PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// The success that the store rejected.
#[derive(Debug)]
pub(super) enum Unsaved {
    RefreshState,
    Grant(Box<Grant>),
}

impl Flight {
    /// Serves an unsaved success, unless the grant was replaced, and tries to save it until it is durable.
    pub(super) fn keep_unsaved(&self, before: Version, unsaved: Unsaved, snapshot: &Arc<Snapshot>) {
        self.slot.lock().keep_unsaved(&self.handle, Arc::clone(snapshot));
        let (flight, snapshot) = (self.clone(), Arc::clone(snapshot));
        self.inner.tasks.spawn(async move { flight.retry_save(before, unsaved, snapshot).await });
    }

    async fn retry_save(self, before: Version, unsaved: Unsaved, snapshot: Arc<Snapshot>) {
        let inner = &self.inner;
        let mut pause = SAVE_PAUSES.0;
        let mut stopping_since = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(SAVE_PAUSES.1),
                () = inner.stopping.cancelled(), if stopping_since.is_none() => {
                    stopping_since = Some(inner.clock.monotonic());
                    pause = SAVE_PAUSES.0;
                }
            }
            let base = self.slot.base(inner.store.epoch());
            #[cfg(feature = "faults")]
            crate::faults::reach("late_save").await;
            let saving = async {
                match &unsaved {
                    Unsaved::RefreshState => inner.store.settle(&self.account, before, &snapshot.refresh_state).await,
                    Unsaved::Grant(next) => {
                        inner.store.save(&self.account, before, next, &snapshot.refresh_state).await
                    }
                }
            };
            let result = match stopping_since.map(|since| inner.clock.monotonic().since(since)) {
                None => saving.await,
                Some(passed) => timeout(FINAL_SAVE_TIMEOUT.saturating_sub(passed), saving)
                    .await
                    .unwrap_or_else(|_| Err(StoreError::unavailable("the store took too long"))),
            };
            match inner.noted(result) {
                Ok(true) => {
                    #[cfg(feature = "faults")]
                    crate::faults::reach("late_saved").await;
                    tracing::info!(account = %self.account, "saved the refreshed grant that was kept in memory");
                    self.slot.lock().publish(base, snapshot);
                    return;
                }
                Ok(false) => {
                    self.slot.lock().discard_unsaved(&snapshot);
                    if let Unsaved::Grant(next) = &unsaved {
                        drop(self.overtaken(before, Some(next)).await);
                    }
                    return;
                }
                Err(error)
                    if stopping_since
                        .is_some_and(|since| inner.clock.monotonic().since(since) >= FINAL_SAVE_TIMEOUT) =>
                {
                    tracing::error!(account = %self.account, %error, "stopping with an unsaved refresh: log in to this account again");
                    return;
                }
                Err(error) => tracing::debug!(account = %self.account, %error, "still not saved"),
            }
        }
    }
}
