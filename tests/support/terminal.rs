//! The program on a terminal of its own: what is typed, and what a person sees in the end.

use std::{
    io::{Read as _, Write as _},
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::termios::{Winsize, tcsetwinsize};
use tokio::{process::Child, sync::watch, time::timeout};

use super::daemon::terminal_pair;

/// A device is asked every second, and a few times at most.
const LIMIT: Duration = Duration::from_secs(40);

/// A program that runs; it is killed with this value.
pub(crate) struct Terminal {
    child: Child,
    person: std::fs::File,
    shown: watch::Receiver<Vec<u8>>,
}

impl Terminal {
    /// Starts it on a terminal of so many columns and rows, which is the one that Ctrl-C comes from.
    pub(crate) fn start(program: &Command, (columns, rows): (u16, u16)) -> Self {
        let (person, other_end) = terminal_pair();
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&person, size).unwrap();
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(program.get_program()).args(program.get_args());
        command.current_dir(program.get_current_dir().unwrap()).env_clear();
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdin(other_end.try_clone().unwrap()).stdout(Stdio::null()).stderr(other_end);
        let child = tokio::process::Command::from(command).kill_on_drop(true).spawn().unwrap();
        let (sender, shown) = watch::channel(Vec::new());
        let mut screen = person.try_clone().unwrap();
        // The end is an error: the program's end is closed.
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = screen.read(&mut buffer) {
                sender.send_modify(|shown| shown.extend_from_slice(&buffer[..read]));
            }
        });
        Self { child, person, shown }
    }

    /// Waits until the text was shown; gives all that was sent to the terminal so far.
    pub(crate) async fn shows(&mut self, text: &str) -> String {
        let there = |shown: &Vec<u8>| String::from_utf8_lossy(shown).contains(text);
        let waited = timeout(LIMIT, self.shown.wait_for(there)).await.map(|shown| shown.is_ok());
        let shown = String::from_utf8_lossy(&self.shown.borrow()).into_owned();
        assert_eq!(waited, Ok(true), "{text:?} is not shown: {shown}");
        shown
    }

    pub(crate) fn types(&mut self, text: &str) {
        self.person.write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap()
    }

    /// Waits for the end: the exit code, and the lines that are there to be read.
    pub(crate) async fn ends(mut self) -> (Option<i32>, Vec<String>) {
        let status = timeout(LIMIT, self.child.wait()).await.expect("it does not end").unwrap();
        // The last bytes were shown once the sender is gone.
        while self.shown.changed().await.is_ok() {}
        (status.code(), lines(&String::from_utf8_lossy(&self.shown.borrow())))
    }
}

/// What a terminal makes of `\r`, `\n`, `ESC [ K` and text; colours are left out.
pub(crate) fn lines(sent: &str) -> Vec<String> {
    let (mut lines, mut column, mut rest) = (vec![Vec::new()], 0, sent);
    while let Some(first) = rest.chars().next() {
        let line: &mut Vec<char> = lines.last_mut().unwrap();
        if let Some(sequence) = rest.strip_prefix("\x1b[") {
            let end = sequence.find(|letter: char| letter.is_ascii_alphabetic()).expect("an escape sequence");
            match &sequence[..=end] {
                "K" => line.truncate(column),
                colours => assert!(colours.ends_with('m'), "{colours}"),
            }
            rest = &sequence[end + 1..];
            continue;
        }
        match first {
            '\r' => column = 0,
            '\n' => lines.push(Vec::new()),
            letter => {
                line.resize(line.len().max(column + 1), ' ');
                line[column] = letter;
                column += 1;
            }
        }
        rest = &rest[first.len_utf8()..];
    }
    lines.into_iter().map(|line| line.into_iter().collect()).collect()
}
