//! The process that a sandbox is tied to.
//!
//! The kernel knows whether it has ended, for whatever reason: no message of its own is needed, which could be lost
//! with a connection or a daemon. After a restart of the daemon its number may belong to another process, so the time
//! of its start is stored as well.

use std::{fs, io, os::fd::OwnedFd};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::{Deserialize, Serialize};

/// Identifies one process of this machine until a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Process {
    id: i32,
    /// Its start time, in clock ticks since boot.
    started: u64,
}

/// Watches one process, even if its number is reused.
#[derive(Debug)]
pub(super) struct ProcessWatch(OwnedFd);

impl Process {
    /// The running process of that number.
    pub(super) fn running(id: i32) -> io::Result<(Self, ProcessWatch)> {
        // A negative number would panic, and belongs to no process.
        let pid = Pid::from_raw(id.max(0)).ok_or(io::ErrorKind::NotFound)?;
        let watch = ProcessWatch(pidfd_open(pid, PidfdFlags::empty())?);
        // If it ends now and its number is reused, the watch still reports its end.
        Ok((Self { id, started: started(id)? }, watch))
    }

    /// Starts to watch it; fails if it has ended.
    pub(super) fn watch(self) -> io::Result<ProcessWatch> {
        let (found, watch) = Self::running(self.id)?;
        if found == self { Ok(watch) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

impl ProcessWatch {
    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        let mut end = [PollFd::new(&self.0, PollFlags::IN)];
        // A poll that was interrupted reports nothing.
        poll(&mut end, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ended| ended > 0)
    }
}

/// The field `starttime` of `/proc/PID/stat`, the 22nd. The second is the program's name in brackets, and may contain
/// anything.
fn started(id: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let field = fields.split_ascii_whitespace().nth(22 - 3);
    field.and_then(|text| text.parse().ok()).ok_or_else(|| io::Error::other("/proc tells no start of the process"))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_end_of_a_process_is_noticed_and_its_number_alone_is_not_enough() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let (process, watch) = Process::running(child.id().cast_signed()).unwrap();
        let again = process.watch().unwrap();
        let other = Process { started: process.started + 1, ..process };
        assert!(other.watch().is_err());
        assert!(!watch.has_ended() && !again.has_ended());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(watch.has_ended() && again.has_ended());
        assert!(process.watch().is_err());
        for nobody in [0, -1, i32::MIN] {
            assert!(Process::running(nobody).is_err(), "{nobody}");
        }
    }

    #[test]
    fn a_start_is_the_same_at_every_look() {
        let own = std::process::id().cast_signed();
        assert_eq!(started(own).unwrap(), started(own).unwrap());
        assert!(started(own).unwrap() > started(1).unwrap());
    }
}
