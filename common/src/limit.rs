//! Limits on behaviour: how much, within how long, and how it is counted.
//!
//! ```text
//! policy: limits of a rule --> Limit in the permission  --> node: a Window for each, judged there with no round trip
//!                                                           |-- passed: the permission is shut at this node
//!                                                           '-- Usage --> controller: the sum over nodes and devices --> response
//! ```
//!
//! A [`Window`] slides in eighths: it sums the last eight whole eighths and the one that has begun. So it never lets more through
//! than the limit within any span of its length, and forgets what happened an eighth later than it could at the latest.
//!
//! Invariants: counting needs no allocation and never overflows (it saturates, which is more than any limit); time that stands
//! still or goes back counts into the present eighth; nothing here reads a clock.
//!
//! Rejected: fixed windows (twice the limit passes around each border) and a token bucket (nobody can tell from its state how much
//! was moved within the last hour, and sums over nodes mean nothing).

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    diagnostics::{ByteSize, HumanDuration},
    id::{DeviceId, ResourceName, RuleName, SubjectId},
    net::FiveTuple,
    time::Monotonic,
};

/// The shortest and the longest time within which something may be limited.
pub const WITHIN: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(7 * 86_400));
/// The most limits of one rule.
pub const MAX_LIMITS: usize = 8;
/// The most distinct refused destinations that a limit on scans may allow: so many are remembered of one source.
pub const MAX_REFUSED: u32 = 256;
/// Into how many parts a window is divided.
const PARTS: usize = 8;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Bytes of inner packets from the resource to the subject.
    Download,
    /// Bytes of inner packets from the subject to the resource.
    Upload,
    /// New flows that the subject opens.
    Connections,
}

impl Measure {
    /// Writes an amount for people: `2GiB down`, `600 connections`.
    pub fn amount(self, amount: u64) -> String {
        match self {
            Self::Download => format!("{} down", ByteSize::new(amount)),
            Self::Upload => format!("{} up", ByteSize::new(amount)),
            Self::Connections => format!("{amount} connections"),
        }
    }
}

/// What follows when a limit is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consequence {
    /// The subject has to prove its sign-in anew, and then goes on.
    Challenge,
    /// The subject reaches a named set of resources and nothing else.
    Restrict,
    /// The login session ends.
    Terminate,
    /// The machine comes into quarantine.
    Quarantine,
    /// An alert and nothing else, because the rule is only watched.
    Alert,
}

impl Consequence {
    /// Tells whether the node shuts the permission by itself.
    pub const fn shuts(self) -> bool {
        match self {
            Self::Challenge | Self::Restrict | Self::Terminate | Self::Quarantine => true,
            Self::Alert => false,
        }
    }
}

impl fmt::Display for Consequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Challenge => "a fresh sign-in is asked for",
            Self::Restrict => "only a few resources stay",
            Self::Terminate => "the session ends",
            Self::Quarantine => "the machine comes into quarantine",
            Self::Alert => "an alert is raised",
        })
    }
}

/// One limit of a rule, on what it lets one subject do with one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Limit {
    /// What is counted.
    pub measure: Measure,
    /// How much passes: bytes or flows.
    pub most: u64,
    /// Within how long, milliseconds.
    pub within_ms: u64,
    /// What follows when it is more.
    pub then: Consequence,
    /// Counting begins anew when this number is a greater one. Each limit has its own: what ends one count ends no other. 0 as
    /// policy says it.
    #[serde(default)]
    pub budget: u64,
}

impl Limit {
    /// Tells whether it is the same limit of a rule, if by another amount or with another consequence.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.measure, self.within_ms) == (other.measure, other.within_ms)
    }

    /// Returns within how long.
    pub const fn within(&self) -> Duration {
        Duration::from_millis(self.within_ms)
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} within {}", self.measure.amount(self.most), HumanDuration::new(self.within()))
    }
}

/// How many distinct destinations may be refused to a machine before it counts as one that scans.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanLimit {
    /// The rule that says so.
    pub rule: RuleName,
    /// So many are no scan yet; at most [`MAX_REFUSED`].
    pub most: u32,
    /// Within how long, milliseconds.
    pub within_ms: u64,
    /// What follows when it is more.
    pub then: Consequence,
    /// Counting begins anew when this number is another.
    pub budget: u64,
}

/// How much of one limit a subject has used at one node, in its window as it stands now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Who.
    pub subject: SubjectId,
    /// Under which rule.
    pub rule: RuleName,
    /// Of what.
    pub resource: ResourceName,
    /// [`Limit::budget`] of the permission's limit.
    pub budget: u64,
    /// Which limit of the rule.
    pub measure: Measure,
    /// Within how long, milliseconds.
    pub within_ms: u64,
    /// How much.
    pub used: u64,
}

/// A machine that was refused distinct destinations: more than its limit, or so many that they may be more together with what other nodes
/// say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scan {
    /// The peer that asked; absent for the machine that reports.
    pub device: Option<DeviceId>,
    /// [`ScanLimit::rule`].
    pub rule: RuleName,
    /// [`ScanLimit::budget`].
    pub budget: u64,
    /// How many destinations.
    pub refused: u32,
    /// The last of them, as it was asked for.
    pub last: FiveTuple,
}

/// Sums what happened within the last while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// One part, nanoseconds; at least 1.
    part: u64,
    /// The number of the present part since the clock's zero.
    present: u64,
    /// The present part and the eight before it, each at its number modulo their count.
    parts: [u64; PARTS + 1],
}

impl Window {
    /// Makes an empty window.
    pub fn new(within: Duration) -> Self {
        let part = u64::try_from(within.as_nanos() / PARTS as u128).unwrap_or(u64::MAX).max(1);
        Self { part, present: 0, parts: [0; PARTS + 1] }
    }

    /// Counts something, and returns how much there is now.
    pub fn add(&mut self, amount: u64, now: Monotonic) -> u64 {
        self.turn(now);
        let place = &mut self.parts[(self.present % (PARTS as u64 + 1)) as usize];
        *place = place.saturating_add(amount);
        self.total()
    }

    /// Returns how much there is.
    pub fn used(&mut self, now: Monotonic) -> u64 {
        self.turn(now);
        self.total()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.parts = [0; PARTS + 1];
    }

    fn total(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(*part))
    }

    /// Empties the parts that have gone by.
    fn turn(&mut self, now: Monotonic) {
        let number = now.as_nanos() / self.part;
        if number <= self.present {
            return;
        }
        let gone = (number - self.present).min(PARTS as u64 + 1);
        for step in 0..gone {
            self.parts[((number - step) % (PARTS as u64 + 1)) as usize] = 0;
        }
        self.present = number;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Monotonic {
        Monotonic::from_millis(ms)
    }

    #[test]
    fn what_happened_a_window_and_an_eighth_ago_does_not_count_and_what_happened_within_it_does() {
        let mut window = Window::new(Duration::from_secs(80));
        assert_eq!(window.add(5, at(1_000)), 5);
        assert_eq!(window.add(7, at(79_000)), 12);
        assert_eq!(window.used(at(81_000)), 12, "80 s later it still counts");
        assert_eq!(window.used(at(91_000)), 7, "90 s later it does not");
        assert_eq!(window.used(at(159_000)), 7);
        assert_eq!(window.used(at(170_000)), 0);
    }

    #[test]
    fn counting_saturates_and_time_that_goes_back_loses_nothing() {
        let mut window = Window::new(Duration::from_secs(10));
        window.add(u64::MAX, at(5_000));
        assert_eq!(window.add(u64::MAX, at(5_000)), u64::MAX);
        assert_eq!(window.add(1, at(0)), u64::MAX, "a clock that goes back");
        assert_eq!(window.used(Monotonic::NEVER), 0, "a clock that jumps to its end");
        assert_eq!(window.add(3, at(7)), 3, "and comes back from there");
        let mut tiny = Window::new(Duration::ZERO);
        assert_eq!((tiny.add(2, at(1)), tiny.used(at(2))), (2, 0));
    }

    proptest! {
        /// The window against a list of everything that happened.
        #[test]
        fn a_window_counts_no_less_than_its_span_and_no_more_than_an_eighth_beyond(
            events in prop::collection::vec((0_u64..40_000, 0_u64..1_000), 1..80),
            within in 10_u64..100,
        ) {
            let within_ms = within * 1_000;
            let mut window = Window::new(Duration::from_millis(within_ms));
            let (mut now, mut all) = (1_000_000, Vec::new());
            for (gap, amount) in events {
                now += gap;
                all.push((now, amount));
                let counted = window.add(amount, at(now));
                let since = |span: u64| all.iter().filter(|(at, _)| *at + span > now).map(|(_, n)| n).sum::<u64>();
                prop_assert!(counted >= since(within_ms), "{} of {}", counted, since(within_ms));
                prop_assert!(counted <= since(within_ms + within_ms / 8 + 1), "{counted}");
            }
        }
    }
}
