//! When something is due, on the monotonic clock.

use std::collections::{BTreeSet, HashMap};

use postern_common::{
    id::{DeviceId, SessionId},
    time::Monotonic,
};

use super::api::{RevocationId, StreamId};

/// What is due. Each has at most one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Due {
    /// A device's lease is decided again, renewed, or ends.
    Lease(DeviceId),
    /// A login session ends.
    Session(SessionId),
    /// A stream has not said who it is, or its join code expires.
    Greeting(StreamId),
    /// A node has not acknowledged a document in time.
    Acknowledge(DeviceId),
    /// A permission that a node was told of has expired: its peers are looked through.
    Expiry(DeviceId),
    /// The old keys between two devices can go.
    Retire(DeviceId, DeviceId),
    /// The last deadline of nodes that were away at a revocation passes.
    Revocation(RevocationId),
    /// A stream of security events falls silent.
    Silence,
    /// People whom provisioning concerns are decided anew.
    Provisioning,
    /// Those are decided anew who may gain something by a place that appeared.
    Openings,
    /// What hangs on the wall clock is looked through, in case that clock was set.
    Sweep,
}

/// The times, ordered.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    order: BTreeSet<(Monotonic, Due)>,
    at: HashMap<Due, Monotonic>,
}

impl Timers {
    /// Sets the time of `due`, in place of any other.
    pub(crate) fn set(&mut self, due: Due, at: Monotonic) {
        if let Some(old) = self.at.insert(due, at) {
            self.order.remove(&(old, due));
        }
        self.order.insert((at, due));
    }

    /// Sets the time of `due` unless it is due earlier already.
    pub(crate) fn set_earlier(&mut self, due: Due, at: Monotonic) {
        if self.at.get(&due).is_none_or(|old| at < *old) {
            self.set(due, at);
        }
    }

    pub(crate) fn cancel(&mut self, due: Due) {
        if let Some(old) = self.at.remove(&due) {
            self.order.remove(&(old, due));
        }
    }

    pub(crate) fn next(&self) -> Monotonic {
        self.order.first().map_or(Monotonic::NEVER, |(at, _)| *at)
    }

    /// Takes one thing whose time has come.
    pub(crate) fn pop(&mut self, now: Monotonic) -> Option<Due> {
        let (at, due) = *self.order.first()?;
        if at > now {
            return None;
        }
        self.cancel(due);
        Some(due)
    }
}
