//! Prompts for the passphrase.

use std::io::{self, IsTerminal as _};

use crate::{secret::Passphrase, store::key::passphrase::AskError};

/// Prompts on the terminal, without showing what is typed. If standard input is not a terminal, as under a service
/// manager, it fails even if the process has a terminal elsewhere: a daemon in the background must not wait for one.
pub fn ask_passphrase(prompt: &str) -> Result<Passphrase, AskError> {
    if !io::stdin().is_terminal() {
        return Err(AskError::NoTerminal);
    }
    let typed = rpassword::prompt_password(prompt).map_err(AskError::Terminal)?;
    Passphrase::new(typed).map_err(AskError::Unfit)
}
