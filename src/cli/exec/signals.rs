//! Forwards signals to the command.
//!
//! A terminal sends its signals to the whole foreground group, the command included. Such a signal must not reach the
//! command a second time (many programs take a second Ctrl-C for "at once"). The sender of a signal tells the two cases
//! apart.

use std::{fs, io, thread};

use rustix::process::Signal;
use signal_hook::iterator::{SignalsInfo, exfiltrator::WithRawSiginfo};
use tokio::sync::mpsc;

/// The signals that are forwarded. The others stop a program or report its own fault.
const FORWARDED_SIGNALS: [Signal; 7] =
    [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2, Signal::WINCH];

/// A signal that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// Sent by a process to this process.
    Sent(Signal),
    /// Sent by the kernel on behalf of the terminal, to its whole foreground group.
    Terminal(Signal),
}

impl Received {
    pub(super) const fn number(self) -> i32 {
        match self {
            Self::Sent(signal) | Self::Terminal(signal) => signal.as_raw(),
        }
    }
}

/// The caught signals.
#[derive(Debug)]
pub(super) struct Signals(mpsc::UnboundedReceiver<Received>);

impl Signals {
    /// Catches the signals for as long as this process lives. A signal that was ignored at the start stays ignored, as
    /// nohup(1) and shells expect for background programs.
    pub(super) fn catch() -> io::Result<Self> {
        let ignored = ignored();
        let passed = FORWARDED_SIGNALS.iter().filter(|signal| ignored & 1 << (signal.as_raw() - 1) == 0);
        let mut caught = SignalsInfo::<WithRawSiginfo>::new(passed.map(|signal| signal.as_raw()))?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let pass = move || {
            for info in caught.forever() {
                let Some(signal) = Signal::from_named_raw(info.si_signo) else { continue };
                // Codes above zero are the kernel's (sigaction(2)).
                let told = if info.si_code > 0 { Received::Terminal(signal) } else { Received::Sent(signal) };
                if sender.send(told).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("signals".to_owned()).spawn(pass)?;
        Ok(Self(receiver))
    }

    /// The next signal.
    pub(super) async fn next(&mut self) -> Received {
        match self.0.recv().await {
            Some(received) => received,
            // The thread is gone, and no more signals come.
            None => std::future::pending().await,
        }
    }
}

/// A bit for each signal that this process ignores; 0 if the kernel does not say.
fn ignored() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
