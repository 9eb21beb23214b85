//! One connection: whose it is, and how fast it may ask.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::peer::Peer;
use crate::{
    audit::Origin,
    clock::Monotonic,
    limits::{Bucket, Rate},
};

/// What every request on a connection knows of it. A router that is called in process has none.
#[derive(Debug, Clone)]
pub(super) struct Connection(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    peer: Peer,
    origin: Option<Origin>,
    pace: Option<(Rate, Mutex<Bucket>)>,
}

impl Connection {
    /// `origin` as the audit log tells of it.
    pub(super) fn new(peer: Peer, origin: Option<Origin>, rate: Option<Rate>) -> Self {
        let pace = rate.map(|rate| (rate, Mutex::default()));
        Self(Arc::new(Inner { peer, origin, pace }))
    }

    pub(super) fn peer(&self) -> Peer {
        self.0.peer
    }

    pub(super) fn origin(&self) -> Option<&Origin> {
        self.0.origin.as_ref()
    }

    /// Counts a request. The error says when there may be another.
    pub(super) fn ask(&self, now: Monotonic) -> Result<(), Duration> {
        match &self.0.pace {
            Some((rate, bucket)) => bucket.lock().unwrap_or_else(PoisonError::into_inner).take(*rate, now),
            None => Ok(()),
        }
    }
}
