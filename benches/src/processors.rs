//! Which processor does what: the servers have one, the load has the other.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The two processors of a measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Processors {
    pub(crate) server: usize,
    pub(crate) load: usize,
}

impl Processors {
    /// The first two that this process may use.
    pub(crate) fn find() -> io::Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let mut found = (0..CpuSet::MAX_CPU).filter(|number| allowed.is_set(*number));
        match (found.next(), found.next()) {
            (Some(server), Some(load)) => Ok(Self { server, load }),
            _ => Err(io::Error::other("a measurement needs two processors, one for the server and one for the load")),
        }
    }
}

/// Keeps this thread, and the threads and processes that it begins from now on, on one processor.
pub(crate) fn stay_on(processor: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    Ok(sched_setaffinity(None, &set)?)
}
