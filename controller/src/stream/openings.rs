//! Who may gain something by a place that appeared, decided in portions.
//!
//! Invariants:
//! - What an administrator or another system takes away never waits here: whoever holds something on a place that went or changed is
//!   decided at once ([`Core::targets_changed`]). On a place that is new nobody holds anything.
//! - Each lease waits once, however many places appear meanwhile, in the order in which it came. Bounded by the number of leases.
//! - A call decides [`AT_ONCE`] at most, and others have their turn between two portions.
//!
//! Threat: a machine that joins and leaves again and again, or a hundred pods that start at once: each would decide everybody in one
//! uninterrupted turn, in which a revocation waits.

use std::collections::{HashSet, VecDeque};

use postern_common::{id::DeviceId, time::Now};

use super::{core::Core, timers::Due};
use crate::decision::Extend;

/// How many are decided in one call.
pub(super) const AT_ONCE: usize = 32;

/// Devices whose leases may open more.
#[derive(Debug, Default)]
pub(super) struct Openings {
    waiting: VecDeque<DeviceId>,
    queued: HashSet<DeviceId>,
}

impl Core {
    /// Lets everybody but `decided` wait for a decision that can only open.
    pub(super) fn let_wait(&mut self, decided: &HashSet<DeviceId>, now: Now) {
        for device in self.leases.keys().filter(|device| !decided.contains(device)) {
            if self.openings.queued.insert(*device) {
                self.openings.waiting.push_back(*device);
            }
        }
        if !self.openings.waiting.is_empty() {
            self.timers.set(Due::Openings, now.monotonic);
        }
    }

    /// Lets one machine wait that was seen somewhere else: seconds matter there, and thousands of them at once must not.
    pub(super) fn let_one_wait(&mut self, device: DeviceId, now: Now) {
        if self.leases.contains_key(&device) && self.openings.queued.insert(device) {
            self.openings.waiting.push_back(device);
        }
        if !self.openings.waiting.is_empty() {
            self.timers.set(Due::Openings, now.monotonic);
        }
    }

    /// Decides a portion of those who wait; returns how many.
    pub(super) fn decide_openings(&mut self, now: Now) -> usize {
        let count = self.openings.waiting.len().min(AT_ONCE);
        for device in self.openings.waiting.drain(..count).collect::<Vec<_>>() {
            self.openings.queued.remove(&device);
            if self.leases.contains_key(&device) {
                self.decide(device, Extend::No, now);
            }
        }
        if !self.openings.waiting.is_empty() {
            self.timers.set(Due::Openings, now.monotonic);
        }
        count
    }
}
