//! The terminal that a person looks at: what it can show, and the line that moves while something is waited for.
//!
//! Invariants:
//! 1. What is not a terminal, or not one that is able to, gets no escape sequence; with `NO_COLOR` nothing is coloured.
//! 2. The line that moves is gone when the waiting ends, however it ends, and the cursor is where it was.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _, Write as _},
    pin::pin,
    time::Duration,
};

use rustix::termios::tcgetwinsize;
use tokio::time::timeout;

use crate::config::Environment;

/// How often the line moves: smooth to the eye, nothing to the processor.
const SPINNER_INTERVAL: Duration = Duration::from_millis(100);

/// What a terminal has that does not say.
const DEFAULT_SIZE: (u16, u16) = (80, 24);

/// To the line's beginning, and the rest of it wiped.
const CLEAR_LINE: &str = "\r\x1b[K";

/// Standard error, and what it can show.
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
    /// What standard error goes to.
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

    /// Whether a person looks at it.
    pub(super) fn is_interactive(&self) -> bool {
        self.0.is_some()
    }

    /// Columns and rows for a picture of coloured blocks; `None` where it cannot be drawn.
    pub(super) fn canvas(&self) -> Option<(usize, usize)> {
        let screen = self.0.as_ref().filter(|screen| screen.coloured && screen.utf8)?;
        Some((screen.columns, screen.rows))
    }

    /// The text, made to stand out where that can be done.
    pub(super) fn bold<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match &self.0 {
            Some(Screen { coloured: true, .. }) => Cow::Owned(format!("\x1b[1m{text}\x1b[0m")),
            Some(_) | None => Cow::Borrowed(text),
        }
    }

    /// Wipes the line that the cursor is in: what the terminal shows of a Ctrl-C, or of an answer that was begun.
    pub(super) fn clear_line(&self) {
        if self.0.is_some() {
            show(CLEAR_LINE);
        }
    }

    /// Waits, and shows that and `what` for as long as it takes.
    pub(super) async fn wait<T>(&self, what: impl Fn() -> String, work: impl Future<Output = T>) -> T {
        let Some(screen) = &self.0 else { return work.await };
        let mut work = pin!(work);
        let _moving = ClearLineOnDrop;
        loop {
            for picture in if screen.utf8 { &SPINNER } else { &PLAIN_SPINNER } {
                // A line that is too long would break, and only a part of it be wiped.
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

/// Invariant 2: also when the waiting is dropped.
struct ClearLineOnDrop;

impl Drop for ClearLineOnDrop {
    fn drop(&mut self) {
        show(CLEAR_LINE);
    }
}

fn show(text: &str) {
    // Nobody is left to be shown anything when this fails.
    io::stderr().write_all(text.as_bytes()).ok();
}
