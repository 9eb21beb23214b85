//! The audit log as anybody finds it: read without the program.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::daemon::Home;

/// Where a home's daemons write it unless told.
pub(crate) fn place(home: &Home) -> PathBuf {
    home.path().join("state/credproxy/audit.log")
}

/// All that is written, the oldest file first: read until it does not change under the reader.
pub(crate) fn text(path: &Path) -> String {
    let mut before = read(path);
    loop {
        let now = read(path);
        if now == before {
            return now;
        }
        before = now;
    }
}

fn read(path: &Path) -> String {
    let numbered = |number: &u32| fs::read_to_string(path.with_added_extension(number.to_string())).ok();
    let full: Vec<_> = (1..).map_while(|number| numbered(&number)).collect();
    full.into_iter().rev().chain(fs::read_to_string(path).ok()).collect()
}

/// The lines, each of which must be whole.
pub(crate) fn lines(path: &Path) -> Vec<Value> {
    let text = text(path);
    assert!(text.is_empty() || text.ends_with('\n'), "half a line: {:?}", text.lines().last());
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

/// How many events a line tells of.
pub(crate) fn times(line: &Value) -> u64 {
    line.get("times").map_or(1, |times| times.as_u64().expect("a count"))
}

/// The lines as if none stood for several events: each as often as it counts.
pub(crate) fn events(lines: Vec<Value>) -> Vec<Value> {
    let each = |line: Value| {
        let times = usize::try_from(times(&line)).unwrap();
        std::iter::repeat_n(line, times)
    };
    lines.into_iter().flat_map(each).collect()
}
