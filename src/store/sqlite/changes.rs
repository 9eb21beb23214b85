//! The changes to records, as carried out by the writer.
//!
//! Must not know: when a change is carried out, and together with which others.

use async_trait::async_trait;
use sqlx::SqliteConnection;

use super::{
    Shared, owner,
    rows::{self, RefreshStateColumns, Removal},
    writer::Change,
};
use crate::{
    account::{Account, ProviderName},
    grant::Version,
    secret::TokenFingerprint,
    store::{Claim, Expect, KnownToken, Put, PutGrant, Record, Renamed, Revision, StoreError},
};

/// Takes the lease and records the presentation.
pub(super) struct ClaimChange {
    pub(super) account: Account,
    pub(super) expected: Revision,
    /// The presentation in its stored form.
    pub(super) presented: String,
}

#[async_trait]
impl Change for ClaimChange {
    type Outcome = Claim;

    const NEEDS_TRANSACTION: bool = false;

    async fn carry_out(&self, shared: &Shared, connection: &mut SqliteConnection) -> Result<Claim, StoreError> {
        let Self { account, expected, presented } = self;
        shared.owner.ensure_alive()?;
        let wanted = rows::ClaimRequest { account, expected: *expected, presented, owner: shared.owner.id() };
        let taken = Claim::Taken(Revision(expected.0.saturating_add(1)));
        if rows::claim(connection, wanted, None).await.map_err(StoreError::unavailable)? {
            return Ok(taken);
        }
        let holder = rows::lease_owner(connection, account, *expected).await;
        let Some(holder) = holder.map_err(StoreError::unavailable)? else { return Ok(Claim::Changed) };
        if owner::is_alive(&shared.files.owners, &holder)? {
            return Ok(Claim::Held);
        }
        // The owner is compared again, and ids are never reused: of two owners that find it dead, only one gets the
        // lease.
        let inherited = rows::claim(connection, wanted, Some(&holder)).await.map_err(StoreError::unavailable)?;
        Ok(if inherited { taken } else { Claim::Changed })
    }
}

/// Saves the refresh state and releases the lease.
pub(super) struct SettleChange {
    pub(super) account: Account,
    pub(super) version: Version,
    pub(super) refresh_state: RefreshStateColumns,
}

#[async_trait]
impl Change for SettleChange {
    type Outcome = bool;

    const NEEDS_TRANSACTION: bool = false;

    // The result of a presentation is worth a try.
    const NEEDS_LOG_IN_PLACE: bool = false;

    async fn carry_out(&self, shared: &Shared, connection: &mut SqliteConnection) -> Result<bool, StoreError> {
        let settled =
            rows::settle(connection, &self.account, self.version, &self.refresh_state, shared.owner.id()).await;
        settled.map_err(StoreError::unavailable)
    }
}

/// Replaces a generation with the next one.
pub(super) struct SaveChange {
    pub(super) account: Account,
    pub(super) version: Version,
    pub(super) next: Sealed,
    pub(super) refresh_state: RefreshStateColumns,
}

/// A grant in its stored form.
pub(super) struct Sealed {
    pub(super) version: Version,
    pub(super) bytes: Vec<u8>,
    pub(super) fingerprint: Option<TokenFingerprint>,
}

impl Sealed {
    fn content(&self) -> rows::Content<'_> {
        rows::Content { version: self.version, sealed: &self.bytes, fingerprint: self.fingerprint }
    }
}

#[async_trait]
impl Change for SaveChange {
    type Outcome = bool;

    const NEEDS_TRANSACTION: bool = false;

    // This may be the only copy of the successor.
    const NEEDS_LOG_IN_PLACE: bool = false;

    async fn carry_out(&self, _: &Shared, connection: &mut SqliteConnection) -> Result<bool, StoreError> {
        let saved = rows::save(connection, &self.account, self.version, self.next.content(), &self.refresh_state).await;
        let saved = saved.map_err(StoreError::unavailable)?;
        if let Some(fingerprint) = self.next.fingerprint.filter(|_| saved) {
            // It is the only copy, so it is stored nevertheless.
            match rows::known(connection, &self.account, fingerprint, &[]).await {
                Ok(Some(KnownToken { account: other, spent })) => tracing::warn!(
                    account = %self.account, %other, spent,
                    "the provider has issued a refresh token that is known already: one refresh may end another's chain"
                ),
                Ok(None) => {}
                Err(error) => tracing::debug!(%error, "could not search for the refresh token under other accounts"),
            }
        }
        Ok(saved)
    }
}

/// Stores a whole grant.
pub(super) struct PutChange {
    pub(super) account: Account,
    pub(super) grant: Sealed,
    /// The version in which the account was found to have the refresh token already, if so.
    pub(super) held: Option<Sealed>,
    pub(super) expect: Expect,
    pub(super) siblings: Vec<ProviderName>,
}

#[async_trait]
impl Change for PutChange {
    /// `None`: the account has the refresh token in another version than was found.
    type Outcome = Option<PutGrant>;

    const NEEDS_TRANSACTION: bool = true;

    async fn carry_out(&self, _: &Shared, connection: &mut SqliteConnection) -> Result<Option<PutGrant>, StoreError> {
        let found = rows::find(connection, &self.account).await.map_err(StoreError::unavailable)?;
        let (met, put) = match &found {
            Some(found) => (self.expect.allows(found.version), Put::Replaced),
            None => (self.expect.allows_none(), Put::Created),
        };
        if !met {
            return Ok(Some(Put::Conflict.into()));
        }
        if let Some(fingerprint) = self.grant.fingerprint {
            let own = found.filter(|found| found.fingerprint == Some(fingerprint)).and_then(|found| found.row);
            match own {
                Some(own) if own.refresh_state.dead.is_none() => {
                    let Some(held) = self.held.as_ref().filter(|held| held.version == own.version) else {
                        return Ok(None);
                    };
                    let kept = rows::reseal(connection, &self.account, &held.bytes, true).await;
                    return kept.map(|()| Some(PutGrant::Held(own.version))).map_err(StoreError::unavailable);
                }
                Some(_) => {}
                None => {
                    let known = rows::known(connection, &self.account, fingerprint, &self.siblings).await;
                    if let Some(known) = known.map_err(StoreError::unavailable)? {
                        return Ok(Some(PutGrant::Known(known)));
                    }
                }
            }
        }
        rows::replace(connection, &self.account, self.grant.content()).await.map_err(StoreError::unavailable)?;
        Ok(Some(put.into()))
    }
}

/// Renames a record.
pub(super) struct RenameChange {
    pub(super) from: Account,
    pub(super) to: Account,
}

#[async_trait]
impl Change for RenameChange {
    type Outcome = Renamed;

    const NEEDS_TRANSACTION: bool = true;

    async fn carry_out(&self, shared: &Shared, connection: &mut SqliteConnection) -> Result<Renamed, StoreError> {
        let Self { from, to } = self;
        let Some(found) = rows::find(connection, from).await.map_err(StoreError::unavailable)? else {
            return Ok(Renamed::Missing);
        };
        if rows::find(connection, to).await.map_err(StoreError::unavailable)?.is_some() {
            return Ok(Renamed::Occupied);
        }
        if let Some(holder) = found.lease_owner
            && holder != shared.owner.id()
            && owner::is_alive(&shared.files.owners, &holder)?
        {
            return Ok(Renamed::LeaseHeld);
        }
        let Record { grant, .. } = shared.open(from, found.row)?;
        let sealed = shared.sealer.seal(to, &grant)?;
        rows::rename(connection, from, to, &sealed).await.map_err(StoreError::unavailable)?;
        Ok(Renamed::Done)
    }
}

/// Deletes a record.
pub(super) struct DeleteChange {
    pub(super) account: Account,
    pub(super) expect: Expect,
}

#[async_trait]
impl Change for DeleteChange {
    type Outcome = Removal;

    const NEEDS_TRANSACTION: bool = true;

    async fn carry_out(&self, _: &Shared, connection: &mut SqliteConnection) -> Result<Removal, StoreError> {
        rows::delete(connection, &self.account, &self.expect).await.map_err(StoreError::unavailable)
    }
}

/// A durable write that changes nothing visible.
pub(super) struct ProbeChange;

#[async_trait]
impl Change for ProbeChange {
    type Outcome = ();

    const NEEDS_TRANSACTION: bool = false;

    async fn carry_out(&self, _: &Shared, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        rows::probe(connection).await.map_err(StoreError::unavailable)
    }
}
