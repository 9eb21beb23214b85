//! A store whose calls a test counts, delays or lets fail.

use std::{fmt::Debug, ops::Deref};

use async_trait::async_trait;
use credproxy::{
    account::{Account, ItemName, ProviderName},
    grant::{Grant, Version},
    item::{Item, ItemKind, ItemTag},
    store::{
        AccountFilter, Claim, Deleted, Expect, ItemEntry, ItemStore, Presentation, Put, PutGrant, Record, RefreshState,
        Removed, Renamed, Revision, Store, StoreError, Visitor,
    },
};

/// A call of [`Store`] or [`ItemStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreCall {
    Load,
    Names,
    Visit,
    Claim,
    Settle,
    Save,
    Put,
    Rename,
    Delete,
    Probe,
    Item,
    Items,
    PutItem,
    DeleteItem,
}

/// What a test does about a store's calls.
#[async_trait]
pub(crate) trait Interceptor: Debug + Send + Sync {
    /// An error is the answer, and the call is not carried out.
    async fn before(&self, _: StoreCall) -> Result<(), StoreError> {
        Ok(())
    }

    /// The call is carried out. An error is the answer instead of its own.
    async fn after(&self, _: StoreCall) -> Result<(), StoreError> {
        Ok(())
    }

    /// Whether a failure is not settled, as if another owner had taken the lease.
    fn lease_is_lost(&self) -> bool {
        false
    }

    fn epoch(&self, epoch: u64) -> u64 {
        epoch
    }
}

/// A store with an interceptor before it; `S` points to the store.
#[derive(Debug)]
pub(crate) struct Intercepted<S, I> {
    pub(crate) inner: S,
    interceptor: I,
}

impl<S, I: Interceptor> Intercepted<S, I> {
    pub(crate) fn new(inner: S, interceptor: I) -> Self {
        Self { inner, interceptor }
    }

    async fn around<T>(
        &self,
        call: StoreCall,
        work: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        self.interceptor.before(call).await?;
        let done = work.await;
        self.interceptor.after(call).await?;
        done
    }
}

/// What a test sets is the interceptor's.
impl<S, I> Deref for Intercepted<S, I> {
    type Target = I;

    fn deref(&self) -> &I {
        &self.interceptor
    }
}

#[async_trait]
impl<S: Deref<Target: Store> + Debug + Send + Sync, I: Interceptor> Store for Intercepted<S, I> {
    async fn load(&self, account: &Account) -> Result<Option<Record>, StoreError> {
        self.around(StoreCall::Load, self.inner.load(account)).await
    }

    async fn names(&self) -> Result<Vec<Account>, StoreError> {
        self.around(StoreCall::Names, self.inner.names()).await
    }

    async fn visit(&self, wanted: &AccountFilter<'_>, each: &mut Visitor<'_>) -> Result<(), StoreError> {
        self.around(StoreCall::Visit, self.inner.visit(wanted, each)).await
    }

    async fn claim(&self, account: &Account, expected: Revision, presented: Presentation) -> Result<Claim, StoreError> {
        self.around(StoreCall::Claim, self.inner.claim(account, expected, presented)).await
    }

    async fn settle(&self, account: &Account, version: Version, state: &RefreshState) -> Result<bool, StoreError> {
        let settle =
            async { Ok(!self.interceptor.lease_is_lost() && self.inner.settle(account, version, state).await?) };
        self.around(StoreCall::Settle, settle).await
    }

    async fn save(
        &self,
        account: &Account,
        version: Version,
        next: &Grant,
        state: &RefreshState,
    ) -> Result<bool, StoreError> {
        self.around(StoreCall::Save, self.inner.save(account, version, next, state)).await
    }

    async fn put(
        &self,
        account: &Account,
        grant: &Grant,
        expect: &Expect,
        siblings: &[ProviderName],
    ) -> Result<PutGrant, StoreError> {
        self.around(StoreCall::Put, self.inner.put(account, grant, expect, siblings)).await
    }

    async fn rename(&self, from: &Account, to: &Account) -> Result<Renamed, StoreError> {
        self.around(StoreCall::Rename, self.inner.rename(from, to)).await
    }

    async fn delete(&self, account: &Account, expect: &Expect) -> Result<Deleted, StoreError> {
        self.around(StoreCall::Delete, self.inner.delete(account, expect)).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.around(StoreCall::Probe, self.inner.probe()).await
    }

    fn epoch(&self) -> u64 {
        self.interceptor.epoch(self.inner.epoch())
    }
}

#[async_trait]
impl<S: Deref<Target: ItemStore> + Debug + Send + Sync, I: Interceptor> ItemStore for Intercepted<S, I> {
    async fn item(&self, kind: ItemKind, name: &ItemName) -> Result<Option<Item>, StoreError> {
        self.around(StoreCall::Item, self.inner.item(kind, name)).await
    }

    async fn items(&self, kind: ItemKind) -> Result<Vec<ItemEntry>, StoreError> {
        self.around(StoreCall::Items, self.inner.items(kind)).await
    }

    async fn put_item(
        &self,
        kind: ItemKind,
        name: &ItemName,
        item: &Item,
        expect: &Expect<ItemTag>,
    ) -> Result<Put, StoreError> {
        self.around(StoreCall::PutItem, self.inner.put_item(kind, name, item, expect)).await
    }

    async fn delete_item(
        &self,
        kind: ItemKind,
        name: &ItemName,
        expect: &Expect<ItemTag>,
    ) -> Result<Removed, StoreError> {
        self.around(StoreCall::DeleteItem, self.inner.delete_item(kind, name, expect)).await
    }
}
