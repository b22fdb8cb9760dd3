//! Who scans: how many distinct destinations were refused to one machine within a while.
//!
//! ```text
//! refused opening of an authenticated peer, or of this machine --> Refused { destinations, each with its last time }
//!   more than the limit of the grant --> Scan for the controller; at the destination everything of that peer is shut
//! ```
//!
//! What counts: TCP openings, pings, and UDP to a port below the ephemeral ones (RFC 6335 §6 lets systems choose theirs; a late answer
//! to a client's port must not look like a scan), refused because nothing names them. A repetition counts once. What is refused
//! for another reason (a step-up, a lease that ran out) is no scan.
//!
//! Threats: a peer that wants another to be taken for a scanner: it can only be counted itself, because the session that opened the
//! packet says whose it is; what has a foreign source address is not counted at all. A peer that fills memory: a source has one
//! place for each destination that its limit allows, [`MAX_REFUSED`] at most, and none once it is told of.

use std::net::IpAddr;

use postern_common::{
    flow_record::{FlowEnd, Originator},
    limit::{MAX_REFUSED, Scan, ScanLimit},
    net::{FiveTuple, Protocol},
    reason::DenyReason,
    time::{Monotonic, Now},
};

use super::{Enforcer, facts::PeerSlot};
use crate::{
    counters::Direction,
    packet::view::{PacketView, Transport},
};

/// The most scans that wait to be told of; more are counted.
const MAX_TOLD: usize = 64;
/// From here on systems choose ports for their clients.
const FIRST_EPHEMERAL: u16 = 32_768;

/// Whether a refused packet would have begun a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attempt {
    /// It would.
    Opens,
    /// It is part of one, or nobody can tell.
    Other,
}

impl Attempt {
    pub(crate) fn of(view: &PacketView<'_>) -> Self {
        let opens = match view.transport() {
            Transport::Tcp(segment) => segment.flags.opens(),
            Transport::Udp(_) => view.five_tuple().is_some_and(|flow| flow.destination_port < FIRST_EPHEMERAL),
            Transport::IcmpEcho { .. } => true,
            Transport::IcmpError(_)
            | Transport::OtherIcmp { .. }
            | Transport::LaterFragment(_)
            | Transport::Unsupported(_) => false,
        };
        if opens { Self::Opens } else { Self::Other }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Destination {
    address: IpAddr,
    protocol: Protocol,
    port: u16,
}

/// What was refused to one machine.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    limit: Option<ScanLimit>,
    seen: Vec<(Destination, Monotonic)>,
    is_told: bool,
}

impl Refused {
    /// Takes the limit as the document says it now. Another budget begins anew.
    pub(crate) fn set(&mut self, limit: Option<&ScanLimit>) {
        if self.limit.as_ref().map(|limit| limit.budget) != limit.map(|limit| limit.budget) {
            self.seen = Vec::new();
            self.is_told = false;
        }
        self.limit = limit.cloned();
    }

    /// Tells whether the machine is shut out: it scans, and its limit is not only watched.
    pub(crate) fn shuts(&self) -> bool {
        self.is_told && self.limit.as_ref().is_some_and(|limit| limit.then.shuts())
    }

    /// Counts a refused destination, and returns how many there are once that is too many.
    fn add(&mut self, destination: Destination, now: Monotonic) -> Option<u32> {
        let limit = self.limit.as_ref().filter(|_| !self.is_told)?;
        let within = std::time::Duration::from_millis(limit.within_ms);
        if let Some(known) = self.seen.iter_mut().find(|(known, _)| *known == destination) {
            known.1 = now;
            return None;
        }
        self.seen.retain(|(_, at)| now.since(*at) < within);
        self.seen.push((destination, now));
        let count = u32::try_from(self.seen.len()).unwrap_or(u32::MAX);
        if count <= limit.most.min(MAX_REFUSED) {
            return None;
        }
        self.is_told = true;
        self.seen = Vec::new();
        Some(count)
    }
}

/// Scans that wait to be told of.
#[derive(Debug, Default)]
pub(crate) struct Scans {
    own: Refused,
    told: Vec<Scan>,
    /// Peers whose doors here have to be shut.
    shut: Vec<PeerSlot>,
}

impl Scans {
    pub(crate) fn set_own(&mut self, limit: Option<&ScanLimit>) {
        self.own.set(limit);
    }

    /// Hands over the scans that were noticed.
    pub(crate) fn take(&mut self) -> Vec<Scan> {
        std::mem::take(&mut self.told)
    }

    pub(crate) fn has_shut(&self) -> bool {
        !self.shut.is_empty()
    }
}

impl Enforcer {
    /// Counts a refusal if it may be part of a scan.
    pub(crate) fn note_refusal(
        &mut self,
        direction: Direction,
        slot: Option<PeerSlot>,
        flow: &FiveTuple,
        reason: DenyReason,
        now: Now,
    ) {
        let counts = match reason {
            DenyReason::UnknownPeer | DenyReason::NoRule | DenyReason::Ceiling => true,
            DenyReason::StepUp
            | DenyReason::Limit
            | DenyReason::Expired
            | DenyReason::Revoked
            | DenyReason::SourceNotOwned
            | DenyReason::FlowQuota
            | DenyReason::Settling
            | DenyReason::NoFlow
            | DenyReason::Unclassifiable
            | DenyReason::UnsupportedProtocol => false,
        };
        if !counts {
            return;
        }
        let port = if flow.protocol == Protocol::Icmp { 0 } else { flow.destination_port };
        let destination = Destination { address: flow.destination, protocol: flow.protocol, port };
        let (refused, device) = match (direction, slot) {
            (Direction::Outbound, _) => {
                let overlay = self.own.as_ref().map(|own| own.overlay.as_slice()).unwrap_or_default();
                if !overlay.iter().any(|net| net.contains(&flow.destination)) {
                    return;
                }
                (&mut self.scans.own, None)
            }
            (Direction::Inbound, Some(slot)) => {
                let Some(peer) = self.peers.get_mut(slot.0 as usize).and_then(Option::as_mut) else { return };
                (&mut peer.refused, Some(peer.identity.device))
            }
            (Direction::Inbound, None) => return,
        };
        let Some(count) = refused.add(destination, now.monotonic) else { return };
        let Some(limit) = refused.limit.clone() else { return };
        self.counters.scans += 1;
        if let Some(slot) = slot.filter(|_| direction == Direction::Inbound && limit.then.shuts()) {
            self.scans.shut.push(slot);
        }
        if self.scans.told.len() < MAX_TOLD {
            let (rule, budget) = (limit.rule, limit.budget);
            self.scans.told.push(Scan { device, rule, budget, refused: count, last: *flow });
        }
    }

    /// Shuts out peers that scan: everything that they have opened here is cut.
    pub(crate) fn shut_out_scanners(&mut self, now: Now) {
        for slot in std::mem::take(&mut self.scans.shut) {
            if self.peer_if_any(slot).is_none_or(|peer| !peer.refused.shuts()) {
                continue;
            }
            self.end_flows(slot, now, |flow| (flow.originator == Originator::Peer).then_some(FlowEnd::Limit));
        }
    }
}
