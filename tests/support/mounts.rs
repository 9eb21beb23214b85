//! File systems of a test's own.

use std::{
    ffi::OsString,
    fs::{DirBuilder, File},
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use rustix::process::geteuid;

use super::daemon::Home;

/// A mount namespace in which daemons run: what is mounted there is gone with it.
pub(crate) struct Mounts {
    holder: Child,
    place: PathBuf,
}

impl Mounts {
    /// A home whose programs see `script` carried out on `$PLACE`, a directory in it. `Err` when this machine does not
    /// let us.
    pub(crate) fn home(place: &str, script: &str) -> Result<(Arc<Home>, Self), String> {
        let mut made = Err("no home was made".to_owned());
        let home = Home::in_memory(|path| {
            let place = path.join(place);
            DirBuilder::new().recursive(true).mode(0o700).create(&place).unwrap();
            made = Self::hold(place, script);
            made.as_ref().map_or_else(|_| Vec::new(), Self::enter)
        });
        made.map(|mounts| (home, mounts))
    }

    fn hold(place: PathBuf, script: &str) -> Result<Self, String> {
        let mut command = Command::new("unshare");
        if !geteuid().is_root() {
            command.arg("--map-root-user");
        }
        let script = format!("{script} && echo ready && exec sleep infinity");
        command.args(["--mount", "sh", "-c", &script]).env("PLACE", &place).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut holder = command.spawn().map_err(|error| format!("unshare: {error}"))?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mounts = Self { holder, place };
        if line == "ready\n" { Ok(mounts) } else { Err("this machine lets us mount nothing".to_owned()) }
    }

    fn enter(&self) -> Vec<OsString> {
        let target = self.holder.id().to_string();
        let user: &[&str] = if geteuid().is_root() { &[] } else { &["--user", "--preserve-credentials"] };
        let words = ["nsenter", "--mount", "--target", &target];
        words.iter().chain(user).chain(&["--"]).map(OsString::from).collect()
    }

    pub(crate) fn run(&self, script: &str) {
        let mut words = self.enter().into_iter();
        let mut command = Command::new(words.next().unwrap());
        let status = command.args(words).args(["sh", "-c", script]).env("PLACE", &self.place).status().unwrap();
        assert!(status.success(), "{script}: {status}");
    }

    /// A file in the daemons' `$PLACE`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        let root = Path::new("/proc").join(self.holder.id().to_string()).join("root");
        root.join(self.place.strip_prefix("/").unwrap()).join(name)
    }

    /// Leaves no room on it, in a file that is to be removed.
    pub(crate) fn fill(&self) -> PathBuf {
        let filler = self.file("filler");
        let mut file = File::create(&filler).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        filler
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}
