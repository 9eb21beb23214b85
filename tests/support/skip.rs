//! Tests that cannot be run on this machine.
//!
//! libtest knows no such outcome: a test that returns early counts as passed. So each writes down why, in a file of its
//! own, and `scripts/test` prints the reasons and does not count the test as passed.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    thread,
};

/// Records that the running test looks at less than it promises, and why. To be called on the test's own thread.
pub(crate) fn skip(reason: &str) {
    let name = test_name();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("skipped");
    fs::create_dir_all(&folder).unwrap();
    let file = name.replace(|it: char| !it.is_ascii_alphanumeric(), "_");
    // One line: it is a row of a table.
    let reason = reason.split_whitespace().collect::<Vec<_>>().join(" ");
    writeln!(File::create(folder.join(file)).unwrap(), "{reason}\t{name}").unwrap();
}

/// The name that libtest gave to the thread, or, where a test has none of its own, that of the only test to run.
fn test_name() -> String {
    let current = thread::current();
    let of_thread = current.name().filter(|name| *name != "main").map(str::to_owned);
    let asked_for = || std::env::args().skip_while(|argument| argument != "--exact").nth(1);
    let name = of_thread.or_else(asked_for).expect("skip() is called on a test's own thread");
    format!("{}::{name}", env!("CARGO_CRATE_NAME"))
}
