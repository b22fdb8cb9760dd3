//! How fast what is closed is closed: the measured figure.
//!
//! ```text
//! a command, an event, a deadline of somebody else's --turn begins (accepted)--> edges narrow --flush--> one closing, with the
//! connected nodes that have to close something --Enforced--> the last of them: one sample
//! ```
//!
//! A node enforces before it acknowledges: when its `Enforced` has come, its data plane has compiled the change and has cut the
//! flows, and the change is on its disk. So a sample ends after the last packet has passed, on every node.
//!
//! What is not measured: what ends by its own deadline (the node ends it by itself, the controller only takes note), and the part
//! of a node that is away or leaves before it acknowledges; those are counted.
//!
//! Bounds: [`MAX_OPEN`] closings wait at a time, the oldest is forgotten first and counted; percentiles are over the last
//! [`MAX_RECENT`] samples, the buckets and the greatest over all since the start.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use postern_common::{
    id::DeviceId,
    time::{Monotonic, Now},
};
use serde::Serialize;

use super::{api::RevocationId, core::Core};

/// The most closings that wait for acknowledgements.
const MAX_OPEN: usize = 4_096;
/// The most samples from which percentiles are made.
const MAX_RECENT: usize = 4_096;
/// The upper bounds of the histogram's buckets, milliseconds.
pub const BUCKETS_MS: [u64; 12] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000, 30_000];

#[derive(Debug)]
struct Closing {
    since: Monotonic,
    waiting: BTreeSet<DeviceId>,
    last: Option<Monotonic>,
}

/// The closings under way and the samples.
#[derive(Debug, Default)]
pub(crate) struct Speed {
    open: BTreeMap<RevocationId, Closing>,
    recent: VecDeque<Duration>,
    buckets: [u64; BUCKETS_MS.len()],
    count: u64,
    sum: Duration,
    max: Duration,
    interrupted: u64,
}

/// How fast closing is: from the moment that the controller accepted a command or event until the last connected node
/// acknowledged that it enforces it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SpeedView {
    /// How many changes were measured since the controller started.
    pub count: u64,
    /// Half of the last 4,096 took no longer, microseconds.
    pub p50_us: u64,
    /// 99 of 100 of the last 4,096 took no longer, microseconds.
    pub p99_us: u64,
    /// The longest since the controller started, microseconds.
    pub max_us: u64,
    /// All of them together, microseconds.
    pub sum_us: u64,
    /// How many took no longer than each of [`BUCKETS_MS`], cumulative.
    pub buckets: Vec<u64>,
    /// Changes for which a node still owes its acknowledgement.
    pub open: usize,
    /// How often a node left before it had acknowledged: its own deadlines close it.
    pub interrupted: u64,
}

fn micros(of: Duration) -> u64 {
    u64::try_from(of.as_micros()).unwrap_or(u64::MAX)
}

impl Speed {
    /// Begins to measure a closing of these nodes.
    pub(super) fn begin(&mut self, id: RevocationId, nodes: BTreeSet<DeviceId>, now: Now) {
        if nodes.is_empty() {
            return;
        }
        if self.open.len() == MAX_OPEN {
            self.open.pop_first();
            self.interrupted += 1;
        }
        self.open.insert(id, Closing { since: now.monotonic, waiting: nodes, last: None });
    }

    /// Takes in that a node enforces a closing.
    pub(super) fn acknowledged(&mut self, id: RevocationId, node: DeviceId, now: Now) {
        let Some(closing) = self.open.get_mut(&id) else { return };
        if closing.waiting.remove(&node) {
            closing.last = Some(now.monotonic);
        }
        self.finish(id);
    }

    /// Takes in that a node is away: what it owes is not waited for.
    pub(super) fn left(&mut self, node: DeviceId) {
        let owing = |(id, closing): (&RevocationId, &Closing)| closing.waiting.contains(&node).then_some(*id);
        for id in self.open.iter().filter_map(owing).collect::<Vec<_>>() {
            self.interrupted += 1;
            if let Some(closing) = self.open.get_mut(&id) {
                closing.waiting.remove(&node);
            }
            self.finish(id);
        }
    }

    fn finish(&mut self, id: RevocationId) {
        let done = self.open.get(&id).is_some_and(|closing| closing.waiting.is_empty());
        let Some(closing) = done.then(|| self.open.remove(&id)).flatten() else { return };
        let Some(last) = closing.last else { return }; // everybody left
        let took = last.since(closing.since);
        if self.recent.len() == MAX_RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(took);
        self.count += 1;
        self.sum += took;
        self.max = self.max.max(took);
        for (bucket, bound) in self.buckets.iter_mut().zip(BUCKETS_MS) {
            *bucket += u64::from(took <= Duration::from_millis(bound));
        }
    }

    /// Shows the figures.
    pub(super) fn view(&self) -> SpeedView {
        let mut sorted: Vec<Duration> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        // The nearest rank: the smallest sample that so many of a hundred do not exceed.
        let rank = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1));
        let at = |percent| rank(percent).copied().map_or(0, micros);
        SpeedView {
            count: self.count,
            p50_us: at(50),
            p99_us: at(99),
            max_us: micros(self.max),
            sum_us: micros(self.sum),
            buckets: self.buckets.to_vec(),
            open: self.open.len(),
            interrupted: self.interrupted,
        }
    }
}

impl Core {
    /// Makes a closing of what was narrowed since the last flush and no revocation has claimed.
    pub(super) fn measure_closings(&mut self, now: Now) {
        let nodes = self.revocations.take_unnamed();
        if nodes.is_empty() {
            return;
        }
        let id = self.revocations.next_id();
        let connected: BTreeSet<DeviceId> = nodes.into_iter().filter(|node| self.nodes.contains_key(node)).collect();
        for node in &connected {
            if let Some(node) = self.nodes.get_mut(node) {
                node.revocations.push(id);
            }
        }
        self.speed.begin(id, connected, now);
    }
}

#[cfg(test)]
mod tests {
    use postern_common::time::WallTime;

    use super::*;

    #[test]
    fn a_sample_ends_with_the_last_node_and_percentiles_are_nearest_ranks() {
        let at = |ms: u64| Now { monotonic: Monotonic::from_millis(1_000 + ms), wall: WallTime::from_millis(0) };
        let node = |n: u8| DeviceId::from_bytes([n; 16]);
        let mut speed = Speed::default();
        for took in 1..=100 {
            let id = RevocationId(took);
            speed.begin(id, [node(1), node(2)].into(), at(0));
            speed.acknowledged(id, node(1), at(0));
            assert_eq!(speed.view().open, 1, "one node owes it");
            speed.acknowledged(id, node(2), at(took));
        }
        let view = speed.view();
        assert_eq!((view.count, view.p50_us, view.p99_us, view.max_us), (100, 50_000, 99_000, 100_000));
        assert_eq!(view.buckets[..4], [1, 2, 5, 10]);
        speed.begin(RevocationId(101), [node(1), node(2)].into(), at(0));
        speed.acknowledged(RevocationId(101), node(1), at(7));
        speed.left(node(2));
        assert_eq!((speed.view().count, speed.view().open, speed.view().interrupted), (101, 0, 1));
    }
}
