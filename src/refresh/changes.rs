//! Changes of grants by people: put, delete, rename.
//!
//! Must not know: how a refresh is made. It waits for the flight under way where it must.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use super::{
    CallerContext, Coordinator, RefreshError,
    condition::{self, EntityTag, IfMatch},
};
use crate::{
    account::Account,
    grant::{Grant, Issued},
    store::{Deleted, Expect, Put, PutGrant, RefreshState, Renamed, random_grant_id},
};

impl Coordinator {
    /// Stores a new grant and returns its entity tag. The refresh state of the old grant (cooldown, backoffs, dead) is
    /// discarded.
    pub async fn put(
        &self,
        account: &Account,
        issued: Issued,
        if_match: &IfMatch,
    ) -> Result<(Put, EntityTag), RefreshError> {
        self.put_over(account, issued, expectation(account, if_match), false).await
    }

    /// Stores a new grant unless the account has one that is still usable.
    pub async fn put_unless_usable(&self, account: &Account, issued: Issued) -> Result<(Put, EntityTag), RefreshError> {
        self.put_over(account, issued, Expect::Whatever, true).await
    }

    /// Fails with [`RefreshError::StillUsable`] if the account has a grant that is still usable: it can be refreshed or
    /// its access token has not expired, and it is not known to be dead.
    pub async fn refuse_if_usable(&self, account: &Account) -> Result<(), RefreshError> {
        let record = self.0.store.load(account).await?;
        let usable = record.is_some_and(|record| self.0.is_usable(account, &record));
        if usable { Err(RefreshError::StillUsable) } else { Ok(()) }
    }

    async fn put_over(
        &self,
        account: &Account,
        issued: Issued,
        expect: Expect,
        keep_usable: bool,
    ) -> Result<(Put, EntityTag), RefreshError> {
        let (this, inner, account) = (self.clone(), Arc::clone(&self.0), account.clone());
        self.detached(async move {
            let id = random_grant_id().map_err(|_| RefreshError::Internal)?;
            let grant = Grant::new(id, issued, inner.clock.now());
            let slot = inner.slot(&account);
            let grant_lock = slot.grant_lock.lock().await;
            if keep_usable && let Err(error) = this.refuse_if_usable(&account).await {
                drop(grant_lock);
                inner.forget_if_empty(&account, slot);
                return Err(error);
            }
            let base = slot.base(inner.store.epoch());
            #[cfg(feature = "faults")]
            crate::faults::reach("before_put").await;
            let siblings = inner.providers.siblings(&account.provider);
            let put = inner.noted(inner.store.put(&account, &grant, &expect, &siblings).await);
            #[cfg(feature = "faults")]
            crate::faults::reach("after_put").await;
            let put = match put {
                Ok(PutGrant::Done(put @ (Put::Created | Put::Replaced))) => put,
                Ok(PutGrant::Held(version)) => {
                    // A flight or an unknown outcome stays as it is. Only the store's refresh state is authoritative.
                    slot.lock().invalidate(base);
                    slot.changed.notify_waiters();
                    tracing::info!(%account, "grant stored; the refresh token is the one that was there");
                    return Ok((Put::Replaced, condition::tag(&account, version)));
                }
                other => {
                    drop(grant_lock);
                    inner.forget_if_empty(&account, slot);
                    return Err(match other {
                        Ok(PutGrant::Known(known)) => RefreshError::GrantConflict(known),
                        Ok(PutGrant::Done(_) | PutGrant::Held(_)) => RefreshError::PreconditionFailed,
                        Err(error) => error.into(),
                    });
                }
            };
            let snapshot = inner.snapshot(&account, &grant, RefreshState::default());
            let tag = snapshot.tag.clone();
            slot.lock().replace(base, Some(snapshot));
            drop(grant_lock);
            slot.changed.notify_waiters();
            tracing::info!(%account, "grant stored");
            Ok((put, tag))
        })
        .await
    }

    /// Deletes the account's grant, after the flight under way. With `revoke` the provider is told as well (RFC 7009).
    /// Returns whether the provider agreed.
    pub async fn delete(&self, account: &Account, if_match: &IfMatch, revoke: bool) -> Result<bool, RefreshError> {
        self.delete_with(account, if_match, revoke, &CallerContext::default()).await
    }

    /// [`Coordinator::delete`] with a caller's context: its audit details.
    pub async fn delete_with(
        &self,
        account: &Account,
        if_match: &IfMatch,
        revoke: bool,
        caller: &CallerContext,
    ) -> Result<bool, RefreshError> {
        let provider_called = Arc::new(AtomicBool::new(false));
        let deleted = self.delete_noting(account, if_match, revoke, Arc::clone(&provider_called)).await;
        caller.note_provider_called(provider_called.load(Ordering::Relaxed));
        deleted
    }

    async fn delete_noting(
        &self,
        account: &Account,
        if_match: &IfMatch,
        revoke: bool,
        provider_called: Arc<AtomicBool>,
    ) -> Result<bool, RefreshError> {
        let expect = expectation(account, if_match);
        let (inner, account) = (Arc::clone(&self.0), account.clone());
        self.detached(async move {
            let slot = inner.slot(&account);
            if let Some(flight) = slot.flight() {
                // Whatever the flight's result: a late success is deleted as well.
                drop(flight.wait(None).await);
                provider_called.store(flight.provider_called(), Ordering::Relaxed);
            }
            let grant_lock = slot.grant_lock.lock().await;
            let base = slot.base(inner.store.epoch());
            #[cfg(feature = "faults")]
            crate::faults::reach("before_delete").await;
            let deleted = inner.noted(inner.store.delete(&account, &expect).await);
            #[cfg(feature = "faults")]
            crate::faults::reach("after_delete").await;
            if let Ok(Deleted::Gone(_)) = &deleted {
                slot.lock().replace(base, None);
                slot.changed.notify_waiters();
                tracing::info!(%account, "grant deleted");
            }
            drop(grant_lock);
            inner.forget_if_empty(&account, slot);
            match deleted? {
                Deleted::Gone(Some(grant)) if revoke => {
                    provider_called.store(true, Ordering::Relaxed);
                    Ok(inner.revoke(&account, &grant).await)
                }
                Deleted::Gone(_) => Ok(false),
                Deleted::Missing => Err(RefreshError::NotFound),
                Deleted::Conflict => Err(RefreshError::PreconditionFailed),
            }
        })
        .await
    }

    /// Renames the account's grant, after the flight under way. Version, refresh state and tokens are kept.
    pub async fn rename(&self, from: &Account, to: &Account) -> Result<(), RefreshError> {
        if from == to {
            return Err(RefreshError::NameTaken(to.clone()));
        }
        let (inner, from, to) = (Arc::clone(&self.0), from.clone(), to.clone());
        self.detached(async move {
            let (old, new) = (inner.slot(&from), inner.slot(&to));
            if let Some(flight) = old.flight() {
                drop(flight.wait(None).await);
            }
            // Locked in the order of the names, so that two renames cannot deadlock.
            let (first, second) = if from < to { (&old, &new) } else { (&new, &old) };
            let grant_lock = (first.grant_lock.lock().await, second.grant_lock.lock().await);
            let bases = (old.base(inner.store.epoch()), new.base(inner.store.epoch()));
            let renamed = if old.lock().unsaved.is_some() {
                Err(RefreshError::Unsaved)
            } else {
                match inner.noted(inner.store.rename(&from, &to).await) {
                    Ok(Renamed::Done) => Ok(()),
                    Ok(Renamed::Missing) => Err(RefreshError::NotFound),
                    Ok(Renamed::Occupied) => Err(RefreshError::NameTaken(to.clone())),
                    Ok(Renamed::LeaseHeld) => Err(RefreshError::LeaseHeld),
                    Err(error) => Err(error.into()),
                }
            };
            if renamed.is_ok() {
                old.lock().replace(bases.0, None);
                new.lock().replace(bases.1, None);
                old.changed.notify_waiters();
                new.changed.notify_waiters();
                tracing::info!(%from, %to, "account renamed");
            }
            drop(grant_lock);
            inner.forget_if_empty(&from, old);
            inner.forget_if_empty(&to, new);
            renamed
        })
        .await
    }
}

fn expectation(account: &Account, if_match: &IfMatch) -> Expect {
    match (if_match, if_match.versions(account)) {
        (_, Some(versions)) => Expect::OneOf(versions),
        (IfMatch::Any, None) => Expect::Present,
        (IfMatch::NoneThere, None) => Expect::Absent,
        (IfMatch::Absent | IfMatch::Tags(_), None) => Expect::Whatever,
    }
}
