//! `/v1/providers`: the configured providers.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State};
use http::Uri;
use serde::Serialize;

use super::{
    super::{problem::Problem, request::Query},
    list_error, may_list,
};
use crate::{
    account::{Bucket, ProviderName},
    policy::Policy,
    provider::Flow,
    refresh::Coordinator,
};

#[derive(Debug, Serialize)]
pub(in crate::server) struct List {
    providers: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    name: ProviderName,
    flows: Vec<&'static str>,
    buckets: Vec<Bucket>,
}

/// `listProviders`: lists the configured providers that the socket may see, with the buckets that have a grant.
pub(in crate::server) async fn list(
    State(coordinator): State<Coordinator>,
    State(policy): State<Arc<Policy>>,
    uri: Uri,
) -> Result<Json<List>, Problem> {
    Query::parse(&uri, &[])?;
    may_list(&policy)?;
    let accounts = coordinator.accounts().await.map_err(list_error)?;
    let mut buckets: BTreeMap<ProviderName, Vec<Bucket>> = BTreeMap::new();
    for account in accounts.into_iter().filter(|account| policy.sees(account)) {
        buckets.entry(account.provider).or_default().push(account.bucket);
    }
    let names = coordinator.providers().names().filter(|name| policy.sees_provider(name));
    let flows = |name| coordinator.providers().get(name).map(|provider| provider.flows()).unwrap_or_default();
    let providers = names
        .map(|name| Line {
            name: name.clone(),
            flows: flows(name).into_iter().map(Flow::name).collect(),
            buckets: buckets.remove(name).unwrap_or_default(),
        })
        .collect();
    Ok(Json(List { providers }))
}
