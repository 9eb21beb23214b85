//! The instructions that a person is shown.

use super::{super::terminal::Terminal, qr};
use crate::{account::Account, client::Login, provider::Flow};

/// Rows below the QR code: the code to type and the progress line must be visible without scrolling.
const ROWS_BELOW: usize = 6;

/// The instructions, with each address alone on its line, so that a wrapped address is selected and copied as one.
pub(super) fn text(login: &Login, account: &Account, terminal: &Terminal) -> String {
    let mut parts = vec![format!("log in to {}", terminal.bold(&account.to_string()))];
    if let Some(url) = &login.authorization_url {
        let on_this_machine = if login.flow == Flow::Browser.name() { " on this machine" } else { "" };
        parts.extend([format!("open this address in a browser{on_this_machine}:"), url.clone()]);
    }
    if let (Some(url), Some(code)) = (&login.verification_uri, &login.user_code) {
        parts.extend(device(url, code, login.verification_uri_complete.as_deref(), terminal));
    }
    parts.join("\n\n") + "\n"
}

fn device(url: &str, code: &str, complete: Option<&str>, terminal: &Terminal) -> Vec<String> {
    let picture = terminal
        .canvas()
        .and_then(|(columns, rows)| qr::draw(complete.unwrap_or(url), columns, rows.saturating_sub(ROWS_BELOW)));
    let mut parts = vec!["open this address on any device:".to_owned(), url.to_owned()];
    if let Some(complete) = complete {
        parts.extend(["or this one, which brings the code along:".to_owned(), complete.to_owned()]);
    }
    if let Some(picture) = picture {
        parts.extend(["or scan it:".to_owned(), picture]);
    }
    let what = if complete.is_some() { "the code, to type in or to compare:" } else { "type in this code:" };
    parts.extend([what.to_owned(), format!("    {}", terminal.bold(code))]);
    parts
}
