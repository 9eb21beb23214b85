//! One file per tag of the OpenAPI document. A handler parses the request, calls the coordinator, and responds.

pub(super) mod document;
pub(super) mod health;
pub(super) mod keys;
pub(super) mod logins;
pub(super) mod providers;
pub(super) mod sandboxes;
pub(super) mod tokens;

use http::HeaderValue;

use super::problem::Problem;
use crate::{
    policy::{Operation, Policy},
    problem_code::ProblemCode,
    refresh::RefreshError,
};

fn entity_tag(tag: &str) -> HeaderValue {
    // Names and hexadecimal digits are visible ASCII.
    HeaderValue::try_from(format!("\"{tag}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

/// A socket without permission to read sees nothing at all.
fn may_list(policy: &Policy) -> Result<(), Problem> {
    if policy.may(Operation::Read) { Ok(()) } else { Err(Problem::unauthorized()) }
}

fn list_error(_: RefreshError) -> Problem {
    Problem::new(ProblemCode::StoreUnavailable, "the store cannot be read").retry_soon()
}
