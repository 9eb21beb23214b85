//! The process with which a sandbox ends.
//!
//! The kernel knows whether it has, however it did: no message of its own is needed, and none can be lost with a
//! connection or a daemon. A number alone may be another process's by the time the daemon is started again, so the
//! moment of its start goes with it.

use std::{fs, io, os::fd::OwnedFd};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde::{Deserialize, Serialize};

/// One process of this machine, and no other one ever again until a reboot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Process {
    id: i32,
    /// In the kernel's ticks since its own start.
    started: u64,
}

/// An eye on one process, whoever gets its number after it.
#[derive(Debug)]
pub(super) struct ProcessWatch(OwnedFd);

impl Process {
    /// The process of that number, which must be running.
    pub(super) fn running(id: i32) -> io::Result<(Self, ProcessWatch)> {
        // A number below zero would be a panic, and is nobody's.
        let pid = Pid::from_raw(id.max(0)).ok_or(io::ErrorKind::NotFound)?;
        let watch = ProcessWatch(pidfd_open(pid, PidfdFlags::empty())?);
        // Should it end now, and its number go to another one, the watch tells of the end all the same.
        Ok((Self { id, started: started(id)? }, watch))
    }

    /// Watches it again; an error when it is not there any more.
    pub(super) fn watch(self) -> io::Result<ProcessWatch> {
        let (found, watch) = Self::running(self.id)?;
        if found == self { Ok(watch) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

impl ProcessWatch {
    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        let mut end = [PollFd::new(&self.0, PollFlags::IN)];
        // A look that was interrupted has seen nothing.
        poll(&mut end, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ended| ended > 0)
    }
}

/// The field `starttime` of `/proc/PID/stat`: the 22nd. The second is the program's name in brackets, and may hold
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
