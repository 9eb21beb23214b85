//! One file per tag of the OpenAPI document. A handler extracts, calls the coordinator, answers.

pub(super) mod document;
pub(super) mod health;
pub(super) mod logins;
pub(super) mod providers;
pub(super) mod tokens;

use super::problem::{Code, Problem};
use crate::{
    policy::{Operation, Policy},
    refresh::RefreshError,
};

/// A socket that may not read sees nothing at all.
fn may_list(policy: &Policy) -> Result<(), Problem> {
    if policy.may(Operation::Read) { Ok(()) } else { Err(Problem::unauthorized()) }
}

fn unlisted(_: RefreshError) -> Problem {
    Problem::new(Code::StoreUnavailable, "the store cannot be read").soon()
}
