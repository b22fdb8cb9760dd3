//! How much was refused within the last minute, from totals that the data plane counts.

use std::collections::VecDeque;

use super::TICK;

/// The totals of the last minute, the oldest first: one a tick.
#[derive(Debug, Default)]
pub(super) struct DeniedLately(VecDeque<u64>);

impl DeniedLately {
    /// Takes in the total of now, and returns how much of it is of the last minute.
    pub(super) fn note(&mut self, total: u64) -> u64 {
        if self.0.back().is_some_and(|last| *last > total) {
            self.0 = [0].into(); // another data plane, which began to count anew
        }
        self.0.push_back(total);
        while self.0.len() > 1 + 60 / TICK.as_secs() as usize {
            self.0.pop_front();
        }
        self.until(total)
    }

    /// Returns how much of a total is of the last minute.
    pub(super) fn until(&self, total: u64) -> u64 {
        total.saturating_sub(self.0.front().copied().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_a_minute_does_not_count_and_a_plane_that_begins_anew_is_no_flood() {
        let mut denied = DeniedLately::default();
        assert_eq!(denied.note(100), 0, "from before anybody looked");
        assert_eq!((denied.note(130), denied.until(135)), (30, 35));
        for _ in 0..60 / TICK.as_secs() {
            denied.note(130);
        }
        assert_eq!(denied.note(131), 1);
        assert_eq!(denied.note(7), 7, "the person signed out and in again");
        assert_eq!(denied.note(9), 9);
    }
}
