//! The terminal: what it can show, and the progress line.
//!
//! Invariants:
//! 1. Output that is not a terminal, or a terminal without ANSI support, gets no escape sequence; with `NO_COLOR`
//!    nothing is coloured.
//! 2. The progress line is cleared when the wait ends, however it ends.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _, Write as _},
    pin::pin,
    time::Duration,
};

use rustix::termios::tcgetwinsize;
use tokio::time::timeout;

use crate::config::Environment;

/// How often the spinner moves: smooth to the eye, and negligible work.
const SPINNER_INTERVAL: Duration = Duration::from_millis(100);

/// The size of a terminal that does not report one.
const DEFAULT_SIZE: (u16, u16) = (80, 24);

/// Moves to the beginning of the line and clears it.
const CLEAR_LINE: &str = "\r\x1b[K";

/// Standard error, if it is a terminal that supports ANSI sequences.
#[derive(Debug)]
pub(super) struct Terminal(Option<Screen>);

#[derive(Debug)]
struct Screen {
    columns: usize,
    rows: usize,
    coloured: bool,
    utf8: bool,
}

impl Terminal {
    /// Examines standard error.
    pub(super) fn of(env: &Environment) -> Self {
        let stderr = io::stderr();
        if !stderr.is_terminal() || !env.terminal_supports_ansi() {
            return Self(None);
        }
        let size = tcgetwinsize(&stderr).map(|size| (size.ws_col, size.ws_row));
        let (columns, rows) = size.ok().filter(|(columns, rows)| *columns > 0 && *rows > 0).unwrap_or(DEFAULT_SIZE);
        Self(Some(Screen {
            columns: columns.into(),
            rows: rows.into(),
            coloured: !env.no_color(),
            utf8: env.locale_is_utf8(),
        }))
    }

    /// Whether a person can see progress on it.
    pub(super) fn is_interactive(&self) -> bool {
        self.0.is_some()
    }

    /// Columns and rows for a QR code; `None` if it cannot be drawn.
    pub(super) fn canvas(&self) -> Option<(usize, usize)> {
        let screen = self.0.as_ref().filter(|screen| screen.coloured && screen.utf8)?;
        Some((screen.columns, screen.rows))
    }

    /// The text in bold, if the terminal can.
    pub(super) fn bold<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match &self.0 {
            Some(Screen { coloured: true, .. }) => Cow::Owned(format!("\x1b[1m{text}\x1b[0m")),
            Some(_) | None => Cow::Borrowed(text),
        }
    }

    /// Clears the current line: the echo of a Ctrl-C, or of a half-typed answer.
    pub(super) fn clear_line(&self) {
        if self.0.is_some() {
            show(CLEAR_LINE);
        }
    }

    /// Waits for `work`, and shows `what` with a spinner meanwhile.
    pub(super) async fn wait<T>(&self, what: impl Fn() -> String, work: impl Future<Output = T>) -> T {
        let Some(screen) = &self.0 else { return work.await };
        let mut work = pin!(work);
        let _moving = ClearLineOnDrop;
        loop {
            for picture in if screen.utf8 { &SPINNER } else { &PLAIN_SPINNER } {
                // A line that is too long would wrap, and only a part of it be cleared.
                let line: String = format!("{picture} {}", what()).chars().take(screen.columns - 1).collect();
                show(&format!("{CLEAR_LINE}{line}"));
                if let Ok(done) = timeout(SPINNER_INTERVAL, &mut work).await {
                    return done;
                }
            }
        }
    }
}

const SPINNER: [char; 8] = ['⣷', '⣯', '⣟', '⡿', '⢿', '⣻', '⣽', '⣾'];
const PLAIN_SPINNER: [char; 8] = ['|', '/', '-', '\\', '|', '/', '-', '\\'];

/// Clears the progress line when it is dropped (invariant 2).
struct ClearLineOnDrop;

impl Drop for ClearLineOnDrop {
    fn drop(&mut self) {
        show(CLEAR_LINE);
    }
}

fn show(text: &str) {
    // If this fails, nobody is left to be shown anything.
    io::stderr().write_all(text.as_bytes()).ok();
}
