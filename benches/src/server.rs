//! The servers that are measured: started on their processor, waited for, looked at, ended.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use credproxy::clock::{Clock as _, SystemClock};

use crate::{
    Fallible,
    processors::{Processors, stay_on},
};

/// How long a server may take to listen, and to end: a cold disk is slow.
const PATIENCE: Duration = Duration::from_mins(1);

/// Nothing happened in a server if it used no more of its processor than this in [`QUIET`]: it looks for changes in
/// its store a few times a second.
const IDLE: Duration = Duration::from_millis(1);
const QUIET: Duration = Duration::from_millis(100);

/// A running server; ended when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    pub(crate) socket: PathBuf,
}

impl Server {
    /// Starts a program that will listen on `socket`, in the directory `home` and with no environment but that, and
    /// waits until it does.
    pub(crate) fn start<A: AsRef<OsStr>>(
        program: &Path,
        arguments: &[A],
        home: &Path,
        socket: PathBuf,
        processors: Processors,
    ) -> Fallible<Self> {
        let output = File::options().create(true).append(true).open(home.join("output"))?;
        let mut command = Command::new(program);
        command.args(arguments).env_clear().env("HOME", home).current_dir(home);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // What this thread begins inherits its processor.
        stay_on(processors.server)?;
        let child = command.spawn();
        stay_on(processors.load)?;
        let child = child.map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let mut server = Self { child, socket };
        server.wait_until_it_listens()?;
        Ok(server)
    }

    /// Without sleeping: the time of a start is measured by this.
    fn wait_until_it_listens(&mut self) -> Fallible<()> {
        let clock = SystemClock::new();
        let start = clock.monotonic();
        while UnixStream::connect(&self.socket).is_err() {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("a server ended at its start: {status}").into());
            }
            if clock.monotonic().since(start) > PATIENCE {
                return Err("a server does not listen".into());
            }
            thread::yield_now();
        }
        Ok(())
    }

    /// How much of its processor all its threads together have used.
    pub(crate) fn used(&self) -> io::Result<Duration> {
        let mut used = Duration::ZERO;
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            // A thread may end meanwhile.
            let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            let nanos = text.split(' ').next().and_then(|first| first.parse().ok());
            used += Duration::from_nanos(nanos.ok_or_else(|| io::Error::other("schedstat has another form"))?);
        }
        Ok(used)
    }

    /// Waits until it has nothing left to do.
    pub(crate) fn settle(&self) -> Fallible<()> {
        let clock = SystemClock::new();
        let start = clock.monotonic();
        loop {
            let before = self.used()?;
            thread::sleep(QUIET);
            if self.used()?.saturating_sub(before) <= IDLE {
                return Ok(());
            }
            if clock.monotonic().since(start) > PATIENCE {
                return Err("a server does not come to rest".into());
            }
        }
    }

    /// Its memory.
    pub(crate) fn memory(&self) -> Fallible<Memory> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let read = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        match (read("Rss:"), read("Pss:")) {
            (Some(resident), Some(proportional)) => {
                Ok(Memory { resident: resident / 1024.0, proportional: proportional / 1024.0 })
            }
            _ => Err("smaps_rollup has another form".into()),
        }
    }

    /// Ends it in order, and waits for it.
    pub(crate) fn stop(mut self) -> Fallible<()> {
        self.end()
    }

    fn end(&mut self) -> Fallible<()> {
        let clock = SystemClock::new();
        let start = clock.monotonic();
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM)?;
        while self.child.try_wait()?.is_none() {
            if clock.monotonic().since(start) > PATIENCE {
                self.child.kill()?;
                self.child.wait()?;
                return Err("a server did not end, and was killed".into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None))
            && let Err(error) = self.end()
        {
            crate::note(&error.to_string());
        }
    }
}

/// In MiB.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// All that is mapped, what is shared with other processes included.
    pub(crate) resident: f64,
    /// With its part of what is shared.
    pub(crate) proportional: f64,
}
