//! Asking for a passphrase.

use std::io::{self, IsTerminal as _};

use crate::{secret::Passphrase, store::key::passphrase::AskError};

/// Asks on the terminal, without showing what is typed. Where standard input is not one, as under a service manager,
/// nobody is asked, even if the process has a terminal elsewhere: a daemon in the background must not wait for it.
pub fn ask_passphrase(prompt: &str) -> Result<Passphrase, AskError> {
    if !io::stdin().is_terminal() {
        return Err(AskError::NoTerminal);
    }
    let typed = rpassword::prompt_password(prompt).map_err(AskError::Terminal)?;
    Passphrase::new(typed).map_err(AskError::Unfit)
}
