//! How many packets policy refused within the last minute, by one plane's count.
//!
//! The count is the plane's own and begins at nothing with each plane, so this belongs to the plane as well
//! ([`Plane::refusals`](super::plane::Plane)): a new plane, after a sign-out or a lost interface, is never measured against
//! the count of the one before.
//!
//! Bounds: one number for each [`TICK`] of a minute.

use std::{collections::VecDeque, time::Duration};

/// How often [`LastMinute::tick`] is called.
pub const TICK: Duration = Duration::from_secs(5);
const KEPT: usize = 1 + 60 / TICK.as_secs() as usize;

/// The plane's count at each tick of the last minute, the oldest first; never empty.
#[derive(Debug)]
pub struct LastMinute {
    totals: VecDeque<u64>,
}

impl Default for LastMinute {
    fn default() -> Self {
        Self { totals: VecDeque::from([0]) } // a plane has refused nothing when it begins
    }
}

impl LastMinute {
    /// Takes note of the count, and returns how much of it is of the last minute.
    pub fn tick(&mut self, total: u64) -> u64 {
        self.totals.push_back(total);
        while self.totals.len() > KEPT {
            self.totals.pop_front();
        }
        self.until(total)
    }

    /// Returns how much of the count is of the last minute.
    pub fn until(&self, total: u64) -> u64 {
        total.saturating_sub(self.totals.front().copied().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_counted_from_the_planes_beginning_on() {
        let mut minute = LastMinute::default();
        assert_eq!(minute.tick(3), 3, "refused before the first tick");
        for _ in 0..KEPT - 2 {
            assert_eq!(minute.tick(10), 10);
        }
        assert_eq!(minute.tick(10), 7, "the first tick is a minute ago");
        assert_eq!(minute.tick(10), 0);
        assert_eq!(minute.until(12), 2);
    }

    #[test]
    fn a_count_that_begins_anew_is_no_burst() {
        let mut minute = LastMinute::default();
        assert_eq!(minute.tick(1_000), 1_000);
        assert_eq!(minute.tick(4), 4, "from the beginning on");
        for _ in 0..KEPT {
            assert!(minute.tick(5) <= 5, "never more than there is");
        }
    }
}
