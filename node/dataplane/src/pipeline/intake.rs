//! What was received together, on its way through the ciphers.
//!
//! ```text
//! add (what was received, and from whom) ─> plan (with the plane: which session) ─> open (without it) ─> drain (with it)
//! ```
//!
//! Threads that share a data plane hold it for the second and the last step alone. Everything keeps the order in which it came.

use std::{net::SocketAddr, ops::Range};

use crate::{
    packet::batch::TunBatch,
    wireguard::{Opener, Opening},
};

/// Datagrams that stand in a [`TunBatch`], what opens them, and what came of it. Its room is used again and again.
#[derive(Debug)]
pub struct Intake<O> {
    received: Vec<Received>,
    pieces: Vec<Piece<O>>,
    openings: Vec<Opening>,
}

/// One receive: datagrams of one size from one sender.
#[derive(Debug)]
struct Received {
    range: Range<usize>,
    segment: usize,
    from: SocketAddr,
}

/// Datagrams behind each other that one session opens, or one that none does.
#[derive(Debug)]
struct Piece<O> {
    range: Range<usize>,
    segment: usize,
    from: SocketAddr,
    opener: Option<O>,
}

impl<O> Default for Intake<O> {
    fn default() -> Self {
        Self { received: Vec::new(), pieces: Vec::new(), openings: Vec::new() }
    }
}

impl<O: Opener> Intake<O> {
    /// Adds what was received into the batch's room: datagrams of `segment` bytes each, the last may be shorter.
    pub fn add(&mut self, range: Range<usize>, segment: usize, from: SocketAddr) {
        self.received.push(Received { range, segment: segment.max(1), from });
    }

    /// Tells whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.received.is_empty() && self.pieces.is_empty()
    }

    pub(super) fn plan(&mut self, tun: &mut TunBatch, opener: impl Fn(&[u8], usize) -> (usize, Option<O>)) {
        for Received { range, segment, from } in self.received.drain(..) {
            let mut start = range.start;
            while start < range.end {
                let (count, opener) = opener(tun.received_bytes(start..range.end), segment);
                let stop = range.end.min(start + count.max(1) * segment);
                self.pieces.push(Piece { range: start..stop, segment, from, opener });
                start = stop;
            }
        }
    }

    /// Opens every datagram whose session is known, where it stands.
    pub fn open(&mut self, tun: &mut TunBatch) {
        for Piece { range, segment, opener, .. } in &self.pieces {
            let first = self.openings.len();
            self.openings.resize(first + range.len().div_ceil(*segment), Opening::Refused);
            if let Some(opener) = opener {
                opener.open_run(tun.received_bytes(range.clone()), *segment, &mut self.openings[first..]);
            }
        }
    }

    /// Hands each datagram over: its place, what its opener made of it if it had one, and who sent it.
    pub(super) fn drain(&mut self, mut hear: impl FnMut(Range<usize>, Option<Opening>, SocketAddr)) {
        let mut openings = self.openings.drain(..);
        for Piece { range, segment, from, opener } in self.pieces.drain(..) {
            for start in range.clone().step_by(segment) {
                let opening = openings.next().filter(|_| opener.is_some());
                hear(start..range.end.min(start + segment), opening, from);
            }
        }
    }
}

/// Whether packets that had waited for a session stand among the datagrams: threads that share a plane send them before another one
/// uses it, so that nothing of their flows overtakes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Released {
    /// None.
    #[default]
    Nothing,
    /// Some.
    Waiting,
}
