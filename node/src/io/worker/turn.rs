//! Whose turn it is: the lanes that have something to read, in the order in which they are served.
//!
//! Whoever was served longest ago comes first: a lane that was idle comes before all that are busy, and busy lanes take turns, also
//! when a round has no room for all. Nothing is allocated after the start.

use std::cmp::Reverse;

use postern_dataplane::packet::batch::Lane;

use super::LANES;

/// The lanes of one round.
#[derive(Debug)]
pub(super) struct Turn {
    /// The number of each lane's last service; 0 is never.
    served: Box<[u64; LANES]>,
    services: u64,
    /// Next comes last.
    queue: Vec<Lane>,
}

impl Default for Turn {
    fn default() -> Self {
        Self { served: Box::new([0; LANES]), services: 0, queue: Vec::with_capacity(LANES) }
    }
}

impl Turn {
    /// Begins a round.
    pub(super) fn begin(&mut self) {
        self.queue.clear();
    }

    /// Adds a lane that has something to read.
    pub(super) fn add(&mut self, lane: Lane) {
        self.queue.push(lane);
    }

    /// Orders what was added.
    pub(super) fn order(&mut self) {
        let Self { served, queue, .. } = self;
        queue.sort_unstable_by_key(|lane| Reverse(served[usize::from(lane.0)]));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Hands over the next lane, which is served now.
    pub(super) fn next(&mut self) -> Option<Lane> {
        let lane = self.queue.pop()?;
        self.services += 1;
        self.served[usize::from(lane.0)] = self.services;
        Some(lane)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(turn: &mut Turn, ready: &[u8], places: usize) -> Vec<u8> {
        turn.begin();
        ready.iter().for_each(|lane| turn.add(Lane(*lane)));
        turn.order();
        (0..places).filter_map(|_| turn.next()).map(|lane| lane.0).collect()
    }

    #[test]
    fn busy_lanes_take_turns_and_whoever_was_idle_comes_first() {
        let mut turn = Turn::default();
        let mut served = [0; 4];
        for _ in 0..30 {
            for lane in round(&mut turn, &[1, 2, 3], 2) {
                served[usize::from(lane)] += 1;
            }
        }
        assert_eq!(served, [0, 20, 20, 20]);
        assert_eq!(round(&mut turn, &[1, 9, 2, 3], 1), [9]);
        round(&mut turn, &[1, 2, 3], 3);
        assert_eq!(round(&mut turn, &[1, 9, 2, 3], 1), [9], "it was served, but longer ago");
    }

    #[test]
    fn the_last_lane_has_a_place_too() {
        assert_eq!(round(&mut Turn::default(), &[255, 0], 2).len(), 2);
    }
}
