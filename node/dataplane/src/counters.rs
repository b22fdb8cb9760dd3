//! What the data plane counts. Every drop has one closed reason, and every reason a counter.

use postern_common::reason::DenyReason;

use crate::packet::view::ParseError;

/// Why a packet or datagram was dropped before or after policy could judge it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// The datagram is no WireGuard message.
    NotWireGuard,
    /// A handshake initiation whose mac1 fits none of our keys: a scan.
    WrongMac,
    /// A handshake initiation by a key that no live grant names. It gets no answer (invariant 2).
    UnknownInitiator,
    /// A handshake initiation too soon after the last one of the same key.
    InitiationTooSoon,
    /// A handshake message or cookie reply that fits no handshake of ours, or was replayed.
    BadHandshake,
    /// The receiver index names no session of ours.
    UnknownIndex,
    /// Transport data that does not open, or was replayed.
    BadTransport,
    /// A handshake message without a valid mac2, while there are more of them than we answer: it got a cookie reply.
    UnderLoad,
    /// The virtio header and the packet contradict each other.
    Offload,
    /// A packet waited too long for a handshake, or too many waited.
    Pending,
    /// There is no outer address to send to.
    NoEndpoint,
    /// The outgoing batch was full.
    UdpBatchFull,
    /// The batch for the TUN was full.
    TunBatchFull,
    /// The session ended between the verdict and the sealing, or used up its messages.
    NoSession,
    /// Multicast, broadcast and link-local traffic of this machine: there is none in the overlay.
    NotUnicast,
    /// A permitted packet of this machine is longer than its peer's path takes, and must not be fragmented: the program
    /// was told how long it may be.
    TooBig,
}

impl DropReason {
    /// Every reason in the order of declaration: for counters and their labels.
    pub const ALL: [Self; 16] = [
        Self::NotWireGuard,
        Self::WrongMac,
        Self::UnknownInitiator,
        Self::InitiationTooSoon,
        Self::BadHandshake,
        Self::UnknownIndex,
        Self::BadTransport,
        Self::UnderLoad,
        Self::Offload,
        Self::Pending,
        Self::NoEndpoint,
        Self::UdpBatchFull,
        Self::TunBatchFull,
        Self::NoSession,
        Self::NotUnicast,
        Self::TooBig,
    ];

    /// Returns the label for counters, in snake case.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotWireGuard => "not_wireguard",
            Self::WrongMac => "wrong_mac",
            Self::UnknownInitiator => "unknown_initiator",
            Self::InitiationTooSoon => "initiation_too_soon",
            Self::BadHandshake => "bad_handshake",
            Self::UnknownIndex => "unknown_index",
            Self::BadTransport => "bad_transport",
            Self::UnderLoad => "under_load",
            Self::Offload => "offload",
            Self::Pending => "pending",
            Self::NoEndpoint => "no_endpoint",
            Self::UdpBatchFull => "udp_batch_full",
            Self::TunBatchFull => "tun_batch_full",
            Self::NoSession => "no_session",
            Self::NotUnicast => "not_unicast",
            Self::TooBig => "too_big",
        }
    }
}

/// Which way a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From this machine to a peer.
    Outbound,
    /// From a peer to this machine.
    Inbound,
}

/// The counters of one data plane, since its start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// Inner packets sealed and handed out, after cutting super-packets.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
    /// Inner packets opened, allowed and handed to the TUN.
    pub packets_in: u64,
    /// Their bytes.
    pub bytes_in: u64,
    /// Machines that were refused more destinations than their limit.
    pub scans: u64,
    /// Handshake initiations sent.
    pub handshakes_begun: u64,
    /// Sessions confirmed.
    pub handshakes_done: u64,
    /// Cookie replies sent.
    pub cookies_sent: u64,
    /// Keepalives received.
    pub keepalives: u64,
    /// Packets made for the local machine or a peer as an answer to a refused one.
    pub refusals_answered: u64,
    /// Flows that began.
    pub flows_begun: u64,
    /// Flows that were cut while they were live: expired, revoked, subject changed.
    pub flows_cut: u64,
    /// Of those, flows that peers had opened.
    pub inbound_flows_cut: u64,
    /// Flows that gave way to another because a bound was reached.
    pub flows_evicted: u64,
    /// Packets that passed under a rule that is only watched.
    pub would_deny: u64,
    /// Peers whose rules were compiled.
    pub peers_compiled: u64,
    /// Peers whose deadlines alone were moved.
    pub peers_renewed: u64,
    /// Records that had no room.
    pub records_dropped: u64,
    /// Refusals that were counted but not recorded, because there were too many.
    pub denies_unrecorded: u64,
    /// Events that had no room.
    pub events_dropped: u64,
    denied: [[u64; DenyReason::ALL.len()]; 2],
    dropped: [u64; DropReason::ALL.len()],
    unclassifiable: [u64; ParseError::LABELS.len()],
}

impl Counters {
    pub(crate) fn deny(&mut self, direction: Direction, reason: DenyReason) {
        self.denied[direction as usize][reason as usize] += 1;
    }

    pub(crate) fn drop(&mut self, reason: DropReason) {
        self.drop_many(reason, 1);
    }

    pub(crate) fn drop_many(&mut self, reason: DropReason, count: u64) {
        self.dropped[reason as usize] += count;
    }

    pub(crate) fn parse_error(&mut self, error: ParseError) {
        self.unclassifiable[error.index()] += 1;
    }

    /// Returns how many packets were refused by policy for `reason`.
    pub fn denied(&self, direction: Direction, reason: DenyReason) -> u64 {
        self.denied[direction as usize][reason as usize]
    }

    /// Returns how many packets were refused by policy in both directions.
    pub fn denied_total(&self) -> u64 {
        self.denied.iter().flatten().sum()
    }

    /// Returns how many packets or datagrams were dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize]
    }

    /// Lists every way in which a packet could not be classified, with its count.
    pub fn unclassifiable(&self) -> impl Iterator<Item = (&'static str, u64)> {
        ParseError::LABELS.into_iter().zip(self.unclassifiable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_place_of_its_own() {
        for (place, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place, "{reason:?}");
        }
        for (place, reason) in DenyReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place, "{reason:?}");
        }
    }
}
