//! A caller's way to a new token: the checks before a flight, and joining one or starting it.
//!
//! Owns: [`Ticket`], what a caller brings along and takes home.
//!
//! Must not know: what a flight does.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{
    Inner, RefreshError,
    cooldown::{self, Ended},
    slot::{Handle, Slot, Snapshot},
    status::last_error,
};
use crate::{account::Account, clock::Monotonic, limits::Spending, store::Marks, timeouts::STORE_STALL};

/// What a caller brings along, and what it learns on the way: for one request each.
#[derive(Debug, Default)]
pub struct Ticket {
    spending: Option<Arc<Spending>>,
    paid: AtomicBool,
    called: AtomicBool,
}

impl Ticket {
    /// For a caller whose new tokens are counted: one that starts a flight by asking for a new token pays for it there.
    /// Who joins a flight, or finds what he wants done, pays nothing.
    #[must_use]
    pub const fn paid_from(spending: Option<Arc<Spending>>) -> Self {
        Self { spending, paid: AtomicBool::new(false), called: AtomicBool::new(false) }
    }

    /// Whether the caller waited for a call to the provider: one made at his wish, or by a flight that he joined.
    #[must_use]
    pub fn called(&self) -> bool {
        self.called.load(Ordering::Relaxed)
    }

    /// Notes what the caller waited for.
    pub fn saw(&self, called: bool) {
        self.called.fetch_or(called, Ordering::Relaxed);
    }

    /// Pays for a flight, once: a caller may need a second one, after another's.
    fn pay(&self, account: &Account, now: Monotonic) -> Result<(), RefreshError> {
        if let Some(spending) = &self.spending
            && !self.paid.load(Ordering::Relaxed)
        {
            spending.spend(account, now).map_err(|wait| RefreshError::Spent { wait })?;
            self.paid.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Inner {
    /// A token other than the caller's, unless his will do (`forced`: it will not).
    pub(super) async fn renew(
        self: &Arc<Self>,
        account: &Account,
        slot: &Arc<Slot>,
        snapshot: &Arc<Snapshot>,
        forced: bool,
        ticket: &Ticket,
    ) -> Result<Arc<Snapshot>, RefreshError> {
        let mut seen = Arc::clone(snapshot);
        loop {
            let landed = self.fly_along(account, slot, &seen, forced, ticket).await?;
            let expired = landed.expired(&*self.clock);
            let (now, before) = (landed.token.version, seen.token.version);
            // A flight that others began, for a token or a grant before this one, may end with what the caller has, or
            // with a replacement that nobody refreshed yet.
            let again = if now == before { forced || expired } else { now.id != before.id && expired };
            if !again {
                return Ok(landed);
            }
            seen = landed;
        }
    }

    /// Joins the flight under way, or starts one if its time has come.
    async fn fly_along(
        self: &Arc<Self>,
        account: &Account,
        slot: &Arc<Slot>,
        snapshot: &Snapshot,
        forced: bool,
        ticket: &Ticket,
    ) -> Result<Arc<Snapshot>, RefreshError> {
        self.fit(account, &snapshot.token)?;
        if let Some(latch) = snapshot.marks.latch {
            return Err(latch.into());
        }
        let flight = {
            let mut state = slot.lock();
            if let Some(flight) = &state.flight {
                flight.join(forced);
                Arc::clone(flight)
            } else {
                let marks = state.unsaved.as_ref().map_or(&snapshot.marks, |unsaved| &unsaved.marks);
                self.paced(snapshot, marks, state.ended)?;
                if state.unsaved.is_some() {
                    return Err(RefreshError::Unsaved);
                }
                if forced {
                    ticket.pay(account, self.clock.monotonic())?;
                }
                let flight = Arc::new(Handle::new(forced));
                state.flight = Some(Arc::clone(&flight));
                self.take_off(account, slot, &flight, snapshot.token.version);
                flight
            }
        };
        #[cfg(feature = "faults")]
        crate::faults::joined();
        // A caller who has a good token need not wait for a store that does not answer.
        let patience = (!forced && !snapshot.expired(&*self.clock)).then_some(STORE_STALL);
        let landed = flight.landed(patience).await;
        ticket.saw(flight.called());
        landed
    }

    /// Whether the cooldown and every backoff are over.
    pub(super) fn paced(&self, snapshot: &Snapshot, marks: &Marks, own: Option<Ended>) -> Result<(), RefreshError> {
        let now = cooldown::Now {
            wall: self.clock.now(),
            monotonic: self.clock.monotonic(),
            configured_at: self.configured_at,
            cooldown: self.cooldown,
            expired: snapshot.expired(&*self.clock),
        };
        match cooldown::wait(marks, own, now) {
            Some(wait) => Err(RefreshError::RateLimited { wait, last: last_error(marks) }),
            None => Ok(()),
        }
    }
}
