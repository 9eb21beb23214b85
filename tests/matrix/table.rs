//! The rows of the table.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

/// What is tried, in the order of the table.
pub(crate) const COLUMNS: [&str; 5] = ["login", "refresh", "reuse", "revoke", "lost answer"];

/// One flow at one server. Written down when it ends, whichever way: what was not reached by then has failed.
pub(crate) struct Row {
    server: &'static str,
    flow: &'static str,
    clients: String,
    cells: [Option<String>; COLUMNS.len()],
}

impl Row {
    pub(crate) fn new(server: &'static str, flow: &'static str, clients: String) -> Self {
        Self { server, flow, clients, cells: Default::default() }
    }

    /// It is as it should be; the remark, if any, says how.
    pub(crate) fn ok(&mut self, column: &str, remark: &str) {
        let place = COLUMNS.iter().position(|it| *it == column).expect("a column");
        self.cells[place] = Some(if remark.is_empty() { "ok".to_owned() } else { format!("ok: {remark}") });
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        // A file for each row: every test runs in a process of its own. `scripts/test` puts them together.
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("matrix");
        fs::create_dir_all(&folder).unwrap();
        let cells = self.cells.iter().map(|cell| cell.as_deref().unwrap_or("FAILS"));
        let row = [self.server, self.flow, &self.clients].into_iter().chain(cells).collect::<Vec<_>>().join("\t");
        writeln!(File::create(folder.join(format!("{}-{}", self.server, self.flow))).unwrap(), "{row}").unwrap();
    }
}
