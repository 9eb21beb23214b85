//! One file per tag of the OpenAPI document. A handler extracts, calls the coordinator, answers.

pub(super) mod document;
pub(super) mod health;
pub(super) mod keys;
pub(super) mod logins;
pub(super) mod providers;
pub(super) mod tokens;

use http::HeaderValue;

use super::problem::{Code, Problem};
use crate::{
    policy::{Operation, Policy},
    refresh::{Coordinator, Status},
};

fn entity_tag(tag: &str) -> HeaderValue {
    // Names and hexadecimal digits are visible ASCII.
    HeaderValue::try_from(format!("\"{tag}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// The accounts that a socket may see; a socket that may not read sees nothing at all.
async fn visible<'a>(
    coordinator: &Coordinator,
    policy: &'a Policy,
) -> Result<impl Iterator<Item = Status> + use<'a>, Problem> {
    if !policy.may(Operation::Read) {
        return Err(Problem::unauthorized());
    }
    let list = coordinator.list().await;
    let list = list.map_err(|_| Problem::new(Code::StoreUnavailable, "the store cannot be read").soon())?;
    Ok(list.into_iter().filter(|status| policy.sees(&status.account)))
}
