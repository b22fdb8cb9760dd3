//! What one node has been told, and what it has acknowledged.
//!
//! A node has a set of peers about which something may be new (bounded by its peers), one snapshot wish, and a short
//! window of unacknowledged documents: one, and up to [`MAX_OUTSTANDING`] while something is being closed, because
//! closing waits for nobody. However slow a node is, nothing queues for it: what it is told is computed when there is
//! room, from the newest state.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;

use postern_common::{
    grant::Position,
    id::{DeviceId, Nonce},
    posture::PostureVerifier,
    probe::ProbeKey,
    protocol::ToNode,
    time::{Monotonic, Now, WallTime},
};

use super::api::{RevocationId, StreamId};
use crate::{decision::Permissions, records::PairName};

/// The most documents that a node may owe an acknowledgement for.
pub(crate) const MAX_OUTSTANDING: usize = 8;

/// A short digest of what was sent: equal digests need no new document.
pub(crate) type Digest = [u8; 16];

/// What a node was last sent of one peer.
#[derive(Debug, Clone)]
pub(crate) struct SentPeer {
    pub(crate) digest: Digest,
    pub(crate) generation: u64,
    pub(crate) inbound: Permissions,
    pub(crate) pairs: Vec<PairName>,
    /// The first deadline in it, when it has to be looked at again.
    pub(crate) earliest: Monotonic,
}

/// A document without its acknowledgement.
#[derive(Debug, Clone)]
pub(crate) struct Outstanding {
    pub(crate) generation: u64,
    pub(crate) sent_at: Monotonic,
    pub(crate) peers: Vec<DeviceId>,
    pub(crate) revocations: Vec<RevocationId>,
}

/// A connected node.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) stream: StreamId,
    pub(crate) from: SocketAddr,
    pub(crate) since: WallTime,
    pub(crate) nonce: Nonce,
    pub(crate) nonce_received: Monotonic,
    /// What the node reported, then what was seen.
    pub(crate) reported: Vec<SocketAddr>,
    pub(crate) observed: Option<SocketAddr>,
    pub(crate) probe: Option<Probe>,
    pub(crate) generation: u64,
    pub(crate) enforced: Option<Position>,
    pub(crate) own: Option<Digest>,
    pub(crate) peers: HashMap<DeviceId, SentPeer>,
    pub(crate) outstanding: VecDeque<Outstanding>,
    pub(crate) revocations: Vec<RevocationId>,
    pub(crate) dirty: BTreeSet<DeviceId>,
    pub(crate) own_dirty: bool,
    pub(crate) snapshot_wanted: bool,
    pub(crate) urgent: bool,
    pub(crate) asks: Asks,
    /// Checks the reports of this stream.
    pub(crate) posture: Option<PostureVerifier>,
    /// When the challenge was sent that its reports count from.
    pub(crate) challenged: Monotonic,
    /// When it said something of itself on this stream that was signed for it.
    pub(crate) posture_heard: Option<Monotonic>,
    /// What the node was last told of its posture.
    pub(crate) posture_told: Option<ToNode>,
    /// Whether peers still have to be told of new outer addresses.
    pub(crate) endpoints_late: bool,
}

/// What names and checks the probes of one stream.
#[derive(Debug)]
pub(crate) struct Probe {
    pub(crate) id: Nonce,
    pub(crate) key: ProbeKey,
    pub(crate) sequence: u64,
}

/// What a node may ask on one stream, each with a limit of its own: explanations are for every user of the machine, and must not use
/// up what the node itself or its person needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asks {
    pub(crate) snapshots: Questions,
    pub(crate) explanations: Questions,
    pub(crate) step_ups: Questions,
    pub(crate) access: Questions,
    /// Tokens of a platform.
    pub(crate) tokens: Questions,
    /// What peers used for the first time.
    pub(crate) uses: Questions,
}

impl Asks {
    pub(crate) const fn new(now: Monotonic) -> Self {
        let questions = Questions::new(now);
        Self {
            snapshots: questions,
            explanations: questions,
            step_ups: questions,
            access: questions,
            tokens: questions,
            uses: questions,
        }
    }
}

/// Limits what costs the controller an evaluation, a record or much reading.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Questions {
    most: u32,
    each_second: u32,
    left: u32,
    filled: Monotonic,
}

impl Questions {
    /// Permits 30 at once, and one more every second.
    pub(crate) const fn new(now: Monotonic) -> Self {
        Self::of(30, 1, now)
    }

    /// Permits `most` at once, and `each_second` more every second.
    pub(crate) const fn of(most: u32, each_second: u32, now: Monotonic) -> Self {
        Self { most, each_second, left: most, filled: now }
    }

    pub(crate) fn take(&mut self, now: Monotonic) -> bool {
        let gained = now.since(self.filled).as_secs();
        if gained > 0 {
            let gained = u32::try_from(gained).unwrap_or(u32::MAX).saturating_mul(self.each_second);
            self.left = gained.saturating_add(self.left).min(self.most);
            self.filled = now;
        }
        let permitted = self.left > 0;
        self.left -= u32::from(permitted);
        permitted
    }
}

/// How often one device may do what leaves records behind. It outlives streams, so that a new stream is no new allowance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// Limits streams.
    pub(crate) hellos: Questions,
    /// Limits new keys and new outer addresses.
    pub(crate) changes: Questions,
    /// Limits reports of posture.
    pub(crate) postures: Questions,
    /// Limits reports of scans.
    pub(crate) scans: Questions,
    /// Limits what it says of where peers are.
    pub(crate) seen: Questions,
    /// Limits reports of usage. A node that has as many limits as there can be tells of them in 64 messages every five seconds; what is
    /// not heard is told again.
    pub(crate) usages: Questions,
    /// When an alert about a burst of refusals was raised; it outlives the stream, which a node may open anew at will.
    pub(crate) burst_told: Option<Monotonic>,
    /// When an alert was raised about a scan of which a server tells itself.
    pub(crate) scan_told: Option<Monotonic>,
}

impl Pace {
    pub(crate) const fn new(now: Monotonic) -> Self {
        let questions = Questions::new(now);
        Self {
            hellos: questions,
            changes: questions,
            postures: questions,
            scans: questions,
            seen: questions,
            usages: Questions::of(64, 16, now),
            burst_told: None,
            scan_told: None,
        }
    }
}

impl Connected {
    /// Returns outer addresses, best first: the one that was seen is proven, the others are claims.
    pub(crate) fn endpoints(&self) -> Vec<SocketAddr> {
        let mut endpoints: Vec<SocketAddr> = self.observed.into_iter().collect();
        for endpoint in &self.reported {
            if !endpoints.contains(endpoint) {
                endpoints.push(*endpoint);
            }
        }
        endpoints.truncate(postern_common::protocol::MAX_ENDPOINTS);
        endpoints
    }

    /// Tells whether a document may be sent now.
    pub(crate) fn has_room(&self) -> bool {
        self.outstanding.len() < if self.urgent { MAX_OUTSTANDING } else { 1 }
    }

    /// Tells whether there may be something to send.
    pub(crate) fn wants_more(&self) -> bool {
        self.snapshot_wanted || self.own_dirty || !self.dirty.is_empty() || !self.revocations.is_empty()
    }

    /// Tells whether the node enforces everything that it was and should be told.
    pub(crate) fn is_current(&self) -> bool {
        self.enforced.is_some() && self.outstanding.is_empty() && !self.wants_more()
    }

    /// Takes the documents that an acknowledgement of `generation` covers.
    pub(crate) fn acknowledged(&mut self, generation: u64) -> Vec<Outstanding> {
        let count = self.outstanding.iter().take_while(|document| document.generation <= generation).count();
        self.outstanding.drain(..count).collect()
    }

    /// Marks peers of which something has expired.
    pub(crate) fn mark_expired(&mut self, now: Now) {
        let expired = self.peers.iter().filter(|(_, sent)| sent.earliest <= now.monotonic).map(|(peer, _)| *peer);
        self.dirty.extend(expired.collect::<Vec<_>>());
    }

    /// Returns when something that the node was told expires next.
    pub(crate) fn next_expiry(&self) -> Monotonic {
        self.peers.values().map(|sent| sent.earliest).min().unwrap_or(Monotonic::NEVER)
    }
}
