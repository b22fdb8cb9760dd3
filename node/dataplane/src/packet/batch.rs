//! Bounded, reused buffers between the pipeline, which fills them, and the I/O shell, which drains them.
//!
//! Both work alike: [`UdpBatch::reserve`] lends room at the end of one arena, the pipeline seals or opens straight into
//! it, and `commit` keeps what was written; room that is never committed is simply lent again. Nothing is allocated after `new`.
//!
//! [`UdpBatch`] gathers datagrams of one size to one endpoint into runs, for one `UDP_SEGMENT` send each. [`TunBatch`] joins
//! consecutive segments of a flow into super-packets, for one TUN write each, without copying: a super-packet is a list of
//! pieces of the arena. It never reorders within a flow: a segment only joins the newest frame of its flow, and whatever
//! cannot join closes that frame. It joins only what has a right checksum and equal headers (all but length, sequence number,
//! identification and checksum), so that cutting the super-packet again gives the same packets.
//!
//! Full batches refuse ([`Full`]) and count; the shell drains before it feeds, so that this is the exception.

use std::net::SocketAddr;

pub use super::join::{Frame, Joining, Lane, Slices, TunBatch};

/// Bytes of one [`UdpBatch`]: three super-packets.
pub const UDP_BATCH_BYTES: usize = 256 << 10;
/// Runs in one [`UdpBatch`].
pub const MAX_RUNS: usize = 256;
/// Datagrams in one run: `UDP_MAX_SEGMENTS` of older kernels.
pub const MAX_RUN_DATAGRAMS: usize = 64;
/// Bytes in one run: what one UDP send may carry, with room for IPv6 extension headers.
pub const MAX_RUN_BYTES: usize = 65_000;

/// Tells that a batch has no room: drain it, or drop and count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the batch is full")]
pub struct Full;

/// Datagrams to be sent, gathered into runs.
#[derive(Debug)]
pub struct UdpBatch {
    arena: Box<[u8]>,
    used: usize,
    runs: Vec<Run>,
    refused: u64,
}

#[derive(Debug, Clone, Copy)]
struct Run {
    endpoint: SocketAddr,
    start: usize,
    length: usize,
    segment: usize,
    datagrams: usize,
    /// A shorter datagram has ended it.
    closed: bool,
}

/// Datagrams to one endpoint, one behind the other: each has `segment` bytes, the last may be shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpRun<'a> {
    /// Where to.
    pub endpoint: SocketAddr,
    /// Bytes of each datagram but the last.
    pub segment: usize,
    /// How many datagrams.
    pub datagrams: usize,
    /// All of them.
    pub bytes: &'a [u8],
}

impl UdpBatch {
    /// Makes an empty batch of [`UDP_BATCH_BYTES`].
    pub fn new() -> Self {
        let arena = vec![0; UDP_BATCH_BYTES].into_boxed_slice();
        Self { arena, used: 0, runs: Vec::with_capacity(2 * MAX_RUNS), refused: 0 }
    }

    /// Lends `length` bytes to write one datagram into; follow with [`UdpBatch::commit`].
    ///
    /// # Errors
    /// [`Full`], counted.
    pub fn reserve(&mut self, length: usize) -> Result<&mut [u8], Full> {
        if self.arena.len() - self.used < length || self.runs.len() >= MAX_RUNS {
            self.refused += 1;
            return Err(Full);
        }
        Ok(&mut self.arena[self.used..self.used + length])
    }

    /// Keeps the first `length` bytes of what was lent last, as one datagram to `endpoint`.
    pub fn commit(&mut self, endpoint: SocketAddr, length: usize) {
        let length = length.min(self.arena.len() - self.used);
        if length == 0 {
            return;
        }
        let start = self.used;
        self.used += length;
        if let Some(run) = self.runs.last_mut().filter(|run| run.accepts(endpoint, length)) {
            run.length += length;
            run.datagrams += 1;
            run.closed = length < run.segment;
            return;
        }
        self.runs.push(Run { endpoint, start, length, segment: length, datagrams: 1, closed: false });
    }

    /// Copies one datagram in.
    ///
    /// # Errors
    /// [`Full`], counted.
    pub fn push(&mut self, endpoint: SocketAddr, datagram: &[u8]) -> Result<(), Full> {
        self.reserve(datagram.len())?.copy_from_slice(datagram);
        self.commit(endpoint, datagram.len());
        Ok(())
    }

    /// Lists the runs in the order of sending.
    pub fn runs(&self) -> impl ExactSizeIterator<Item = UdpRun<'_>> {
        self.runs.iter().map(|run| UdpRun {
            endpoint: run.endpoint,
            segment: run.segment,
            datagrams: run.datagrams,
            bytes: &self.arena[run.start..run.start + run.length],
        })
    }

    /// Tells whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Returns how many bytes still fit; zero when there are no more runs.
    pub fn room(&self) -> usize {
        if self.runs.len() >= MAX_RUNS { 0 } else { self.arena.len() - self.used }
    }

    /// Returns how many datagrams had no room since the beginning.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// Forgets everything; the buffer stays.
    pub fn clear(&mut self) {
        self.runs.clear();
        self.used = 0;
    }
}

impl Default for UdpBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl Run {
    fn accepts(&self, endpoint: SocketAddr, length: usize) -> bool {
        self.endpoint == endpoint
            && !self.closed
            && length <= self.segment
            && self.datagrams < MAX_RUN_DATAGRAMS
            && self.length + length <= MAX_RUN_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    #[test]
    fn equal_datagrams_to_one_endpoint_make_one_run_that_a_shorter_one_ends() {
        let mut batch = UdpBatch::new();
        for length in [100, 100, 60, 100, 120] {
            batch.push(endpoint(1), &vec![7; length]).unwrap();
        }
        batch.push(endpoint(2), &[7; 120]).unwrap();
        let runs: Vec<_> = batch.runs().map(|run| (run.segment, run.datagrams, run.bytes.len())).collect();
        assert_eq!(runs, [(100, 3, 260), (100, 1, 100), (120, 1, 120), (120, 1, 120)]);
    }

    #[test]
    fn a_full_batch_refuses_and_counts() {
        let mut batch = UdpBatch::new();
        let mut pushed = 0;
        while batch.push(endpoint(1), &[0; 1_400]).is_ok() {
            pushed += 1;
        }
        assert_eq!(pushed, UDP_BATCH_BYTES / 1_400);
        assert_eq!(batch.refused(), 1);
        assert!(batch.runs().all(|run| run.bytes.len() <= MAX_RUN_BYTES && run.datagrams <= MAX_RUN_DATAGRAMS));
        batch.clear();
        assert!(batch.is_empty() && batch.room() == UDP_BATCH_BYTES);
    }
}
