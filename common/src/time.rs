//! Time as plain numbers, so that everything pure can run in virtual time.
//!
//! Two clocks are carried side by side in [`Now`]. The monotonic one counts from boot, goes on during suspend
//! (`CLOCK_BOOTTIME`) and never jumps: deadlines are enforced on it. The wall clock can be set by anybody with
//! root and jumps: it can only *shorten* what the monotonic clock allows, never stretch it.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// A point on the suspend-aware monotonic clock of one boot, in nanoseconds since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Monotonic(u64);

impl Monotonic {
    /// The farthest point: a deadline that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// Takes nanoseconds since boot.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Takes milliseconds since boot.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Returns nanoseconds since boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Returns how long after `earlier` this is; zero if it is not after.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Returns the point `duration` later; [`Monotonic::NEVER`] at most.
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A point in wall time, in milliseconds since 1970-01-01 00:00 UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallTime(i64);

impl WallTime {
    /// The farthest point: an absolute limit that never comes.
    pub const NEVER: Self = Self(i64::MAX);

    /// Takes milliseconds since the Unix epoch.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Returns milliseconds since the Unix epoch.
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// Returns how long after `earlier` this is; zero if it is not after.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Returns the point `duration` later; [`WallTime::NEVER`] at most.
    pub fn saturating_add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Returns the time as `jiff` knows it, for calendars and printing; `None` outside jiff's years.
    pub fn to_timestamp(self) -> Option<jiff::Timestamp> {
        jiff::Timestamp::from_millisecond(self.0).ok()
    }
}

impl fmt::Display for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_timestamp() {
            Some(timestamp) => write!(f, "{timestamp:.0}"),
            None => f.write_str("never"),
        }
    }
}

impl fmt::Debug for WallTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How many bytes an instant takes in a text: `2026-11-23T09:00:00Z`.
const WRITTEN: usize = 20;

/// Writes the instants in a text anew, those that stand there as [`WallTime`] prints them: texts travel with instants in UTC,
/// and people read them in their own zone.
pub fn with_instants(text: &str, write: impl Fn(WallTime) -> String) -> String {
    let mut told = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let word = rest.get(..WRITTEN).filter(|word| next.is_ascii_digit() && word.ends_with('Z'));
        match word.and_then(|word| word.parse::<jiff::Timestamp>().ok()) {
            Some(at) => {
                told.push_str(&write(WallTime::from_millis(at.as_millisecond())));
                rest = &rest[WRITTEN..];
            }
            None => {
                told.push(next);
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    told
}

/// Both clocks, read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Suspend-aware monotonic time of this boot.
    pub monotonic: Monotonic,
    /// Wall time.
    pub wall: WallTime,
}

/// A limit on both clocks: what it limits has passed as soon as either clock reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// The limit on the monotonic clock of this boot.
    pub monotonic: Monotonic,
    /// The limit on the wall clock.
    pub wall: WallTime,
}

impl Deadline {
    /// A deadline that never comes.
    pub const NEVER: Self = Self { monotonic: Monotonic::NEVER, wall: WallTime::NEVER };

    /// Tells whether the deadline has come.
    pub fn has_passed(&self, now: Now) -> bool {
        now.monotonic >= self.monotonic || now.wall >= self.wall
    }

    /// Returns the earlier limit on each clock.
    pub fn min(self, other: Self) -> Self {
        Self { monotonic: self.monotonic.min(other.monotonic), wall: self.wall.min(other.wall) }
    }

    /// Returns how long it is until the deadline comes on the clock that reaches it first.
    pub fn remaining(&self, now: Now) -> Duration {
        self.monotonic.since(now.monotonic).min(self.wall.since(now.wall))
    }
}

/// How long a permission lives, as the controller says it in a grant: a span counted from the moment at which the
/// node drew the document's nonce, and an absolute limit. The node obeys the earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifetime {
    /// Milliseconds from the moment at which the node drew the nonce that the document echoes.
    pub remaining_ms: u64,
    /// The absolute limit.
    pub not_after: WallTime,
}

impl Lifetime {
    /// Turns the lifetime into a deadline of this node; `nonce_drawn` is the node's own record of when it drew the nonce.
    pub fn deadline(&self, nonce_drawn: Monotonic) -> Deadline {
        Deadline {
            monotonic: nonce_drawn.saturating_add(Duration::from_millis(self.remaining_ms)),
            wall: self.not_after,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn now(monotonic_ms: u64, wall_ms: i64) -> Now {
        Now { monotonic: Monotonic::from_millis(monotonic_ms), wall: WallTime::from_millis(wall_ms) }
    }

    #[test]
    fn a_wall_clock_set_back_does_not_stretch_a_deadline() {
        let deadline = Lifetime { remaining_ms: 1_000, not_after: WallTime::from_millis(51_000) }
            .deadline(Monotonic::from_millis(10_000));
        assert!(!deadline.has_passed(now(10_999, 50_999)));
        assert!(deadline.has_passed(now(11_000, -3_600_000)));
        assert!(deadline.has_passed(now(10_001, 51_000)), "a wall clock set forward closes");
    }

    #[test]
    fn instants_in_a_text_are_written_anew_and_nothing_else_is() {
        let told = |text: &str| with_instants(text, |at| format!("<{}>", at.as_millis() / 1_000));
        let instant = WallTime::from_millis(1_700_000_000_000);
        assert_eq!(told(&format!("held since {instant}: it scans")), "held since <1700000000>: it scans");
        assert_eq!(told(&format!("{instant}{instant}")), "<1700000000><1700000000>");
        for text in ["", "2026-11-23", "é2023-11-14T22:13:2éZ", "2023-99-14T22:13:20Z", "1234567890123456789Z"] {
            assert_eq!(told(text), text);
        }
    }

    #[test]
    fn sums_saturate() {
        assert_eq!(Monotonic::NEVER.saturating_add(Duration::from_secs(1)), Monotonic::NEVER);
        assert_eq!(WallTime::NEVER.saturating_add(Duration::MAX), WallTime::NEVER);
    }

    proptest! {
        #[test]
        fn the_earlier_of_two_deadlines_wins_on_whichever_clock_it_comes(a: [u8; 2], b: [u8; 2], at: [u8; 2]) {
            let deadline = |[monotonic, wall]: [u8; 2]| Deadline {
                monotonic: Monotonic::from_millis(monotonic.into()),
                wall: WallTime::from_millis(wall.into()),
            };
            let (a, b, now) = (deadline(a), deadline(b), now(at[0].into(), at[1].into()));
            prop_assert_eq!(a.min(b).has_passed(now), a.has_passed(now) || b.has_passed(now));
            prop_assert_eq!(a.remaining(now).is_zero(), a.has_passed(now));
            prop_assert_eq!(a.min(b).remaining(now), a.remaining(now).min(b.remaining(now)));
        }
    }
}
