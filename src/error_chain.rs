//! An error and its causes as one line of text.

use std::error::Error;

/// The error's text, followed by that of each cause, separated by colons.
pub(crate) fn error_chain(error: &dyn Error) -> String {
    std::iter::successors(error.source(), |&cause: &&dyn Error| cause.source())
        .fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
