//! The changes of the records, each as the writer carries it out.
//!
//! Must not know: when, and with which others.

use async_trait::async_trait;
use sqlx::SqliteConnection;

use super::{
    Shared, owner,
    rows::{self, MarkTexts, Removal},
    writer::Change,
};
use crate::{
    account::Account,
    grant::Version,
    store::{Claim, Expect, Put, Revision, StoreError},
};

/// Takes the lease and marks the presentation.
pub(super) struct Claiming {
    pub(super) account: Account,
    pub(super) expected: Revision,
    /// The mark, as it is written.
    pub(super) presented: String,
}

#[async_trait]
impl Change for Claiming {
    type Outcome = Claim;

    const NEEDS_TRANSACTION: bool = false;

    async fn carry_out(&self, shared: &Shared, connection: &mut SqliteConnection) -> Result<Claim, StoreError> {
        let Self { account, expected, presented } = self;
        shared.owner.ensure_alive()?;
        let wanted = rows::Wanted { account, expected: *expected, presented, owner: shared.owner.id() };
        let taken = Claim::Taken(Revision(expected.0.saturating_add(1)));
        if rows::claim(connection, wanted, None).await.map_err(StoreError::unavailable)? {
            return Ok(taken);
        }
        let holder = rows::lease_owner(connection, account, *expected).await;
        let Some(holder) = holder.map_err(StoreError::unavailable)? else { return Ok(Claim::Changed) };
        if owner::is_alive(&shared.place.owners, &holder)? {
            return Ok(Claim::Held);
        }
        // Compares the owner again, and ids are never used twice: of two that find it dead, one gets the lease.
        let inherited = rows::claim(connection, wanted, Some(&holder)).await.map_err(StoreError::unavailable)?;
        Ok(if inherited { taken } else { Claim::Changed })
    }
}

/// Writes the marks and releases the lease.
pub(super) struct Settling {
    pub(super) account: Account,
    pub(super) version: Version,
    pub(super) marks: MarkTexts,
}

#[async_trait]
impl Change for Settling {
    type Outcome = bool;

    const NEEDS_TRANSACTION: bool = false;

    async fn carry_out(&self, shared: &Shared, connection: &mut SqliteConnection) -> Result<bool, StoreError> {
        let settled = rows::settle(connection, &self.account, self.version, &self.marks, shared.owner.id()).await;
        settled.map_err(StoreError::unavailable)
    }
}

/// Puts the next generation in the place of the one before.
pub(super) struct Saving {
    pub(super) account: Account,
    pub(super) version: Version,
    pub(super) next: Version,
    pub(super) sealed: Vec<u8>,
    pub(super) marks: MarkTexts,
}

#[async_trait]
impl Change for Saving {
    type Outcome = bool;

    const NEEDS_TRANSACTION: bool = false;

    async fn carry_out(&self, _: &Shared, connection: &mut SqliteConnection) -> Result<bool, StoreError> {
        let next = (self.next, &*self.sealed);
        let saved = rows::save(connection, &self.account, self.version, next, &self.marks).await;
        saved.map_err(StoreError::unavailable)
    }
}

/// Stores a whole grant.
pub(super) struct Putting {
    pub(super) account: Account,
    pub(super) version: Version,
    pub(super) sealed: Vec<u8>,
    pub(super) expect: Expect,
}

#[async_trait]
impl Change for Putting {
    type Outcome = Put;

    const NEEDS_TRANSACTION: bool = true;

    async fn carry_out(&self, _: &Shared, connection: &mut SqliteConnection) -> Result<Put, StoreError> {
        let put = rows::put(connection, &self.account, (self.version, &self.sealed), &self.expect).await;
        put.map_err(StoreError::unavailable)
    }
}

/// Deletes a record.
pub(super) struct Deleting {
    pub(super) account: Account,
    pub(super) expect: Expect,
}

#[async_trait]
impl Change for Deleting {
    type Outcome = Removal;

    const NEEDS_TRANSACTION: bool = true;

    async fn carry_out(&self, _: &Shared, connection: &mut SqliteConnection) -> Result<Removal, StoreError> {
        rows::delete(connection, &self.account, &self.expect).await.map_err(StoreError::unavailable)
    }
}

/// Changes nothing that anybody sees, durably.
pub(super) struct Probing;

#[async_trait]
impl Change for Probing {
    type Outcome = ();

    const NEEDS_TRANSACTION: bool = false;

    async fn carry_out(&self, _: &Shared, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        rows::probe(connection).await.map_err(StoreError::unavailable)
    }
}
