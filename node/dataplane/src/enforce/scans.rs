//! Who scans: how many distinct destinations were refused to one machine within a while.
//!
//! ```text
//! refused opening of an authenticated peer, or of this machine --> Refused { destinations, each with its last time }
//!   more than the limit of the grant --> Scan for the controller; at the destination everything of that peer is shut
//! ```
//!
//! What counts: TCP openings, pings, and UDP to a port below the ephemeral ones (RFC 6335 §6 lets systems choose theirs; a late answer
//! to a client's port must not look like a scan), refused because nothing names them. A repetition counts once. What is refused
//! for another reason (a step-up, a lease that ran out) is no scan. Of what this machine sends, neither answers of a service that a peer
//! may open, or might until lately, count, nor what was permitted until lately.
//!
//! What is no scan yet is told as well, so that the controller can sum it over nodes and over a subject's machines.
//!
//! A scan is told again and again until another budget begins, so none is lost. Bounds: [`MAX_TOLD`], [`MAX_LEFT`], [`MAX_FORMER`]; the
//! oldest is forgotten first.
//!
//! Threats: a peer that wants another to be taken for a scanner: it can only be counted itself, because the session that opened the
//! packet says whose it is; what has a foreign source address is not counted at all. A peer that fills memory: a source has one
//! place for each destination that its limit allows, [`MAX_REFUSED`] at most, and none once it is told of.

use std::{collections::VecDeque, net::IpAddr};

use postern_common::{
    flow_record::{FlowEnd, Originator},
    id::DeviceId,
    limit::{MAX_REFUSED, Scan, ScanLimit},
    net::{FiveTuple, Protocol, Service},
    reason::DenyReason,
    time::{Monotonic, Now},
};

use super::{Enforcer, facts::PeerSlot, rules::Rules};
use crate::{
    counters::Direction,
    packet::view::{PacketView, Transport},
};

/// The most scans that are told at once.
const MAX_TOLD: usize = 64;
/// The most machines of which it is remembered what was refused to them when they were peers.
const MAX_LEFT: usize = 256;
/// The most services that are remembered after they are permitted no more.
const MAX_FORMER: usize = 256;
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
    /// What was refused last.
    last: Option<FiveTuple>,
    /// The scan, once it is one; it is told until another budget begins.
    told: Option<Scan>,
    /// Whether the limit's budget was said by a former life of the controller.
    former: bool,
}

impl Refused {
    /// Takes the limit as the document says it now. Another budget begins anew, unless it is that of a controller that was restored from
    /// a backup: it has to hear of what was a scan.
    pub(crate) fn set(&mut self, limit: Option<&ScanLimit>) {
        let is_another = self.limit.as_ref().map(|limit| limit.budget) != limit.map(|limit| limit.budget);
        let former = limit.is_some() && std::mem::take(&mut self.former);
        if is_another && !former {
            self.seen = Vec::new();
            self.told = None;
        }
        self.limit = limit.cloned();
        // What is told has to be about the limit that there is now, or nobody believes it and the machine stays shut out.
        if let (Some(limit), Some(told)) = (limit, &mut self.told) {
            (told.rule, told.budget) = (limit.rule.clone(), limit.budget);
            told.refused = told.refused.max(limit.most.saturating_add(1));
        }
    }

    /// Tells whether the machine is shut out: it scans, and its limit is not only watched.
    pub(crate) fn shuts(&self) -> bool {
        self.told.is_some() && self.limit.as_ref().is_some_and(|limit| limit.then.shuts())
    }

    /// Tells whether refusals are counted: there is a limit, and nothing is told of yet.
    fn counts(&self) -> bool {
        self.limit.is_some() && self.told.is_none()
    }

    /// Counts a refused destination, and returns how many there are once that is too many.
    fn add(&mut self, destination: Destination, now: Monotonic) -> Option<u32> {
        let limit = self.limit.as_ref().filter(|_| self.told.is_none())?;
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
        self.seen = Vec::new();
        Some(count)
    }

    /// Says how many destinations were refused to a peer lately that are no scan yet.
    fn lately(&self, device: DeviceId, now: Monotonic) -> Option<Scan> {
        let limit = self.limit.as_ref().filter(|_| self.told.is_none())?;
        let within = std::time::Duration::from_millis(limit.within_ms);
        let count = self.seen.iter().filter(|(_, at)| now.since(*at) < within).count();
        let refused = u32::try_from(count).ok().filter(|count| *count > 0)?;
        let (rule, budget, last) = (limit.rule.clone(), limit.budget, self.last?);
        Some(Scan { device: Some(device), rule, budget, refused, last })
    }

    /// Tells whether there is anything to remember of it.
    fn is_empty(&self) -> bool {
        self.seen.is_empty() && self.told.is_none()
    }
}

/// What was permitted until lately.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Former {
    /// A peer could open it here: what still leaves from that port answers.
    Served(Service),
    /// This machine could open it there.
    Reached(IpAddr, Service),
}

/// What was refused to this machine, and to machines that are no peers now.
#[derive(Debug, Default)]
pub(crate) struct Scans {
    own: Refused,
    /// Of peers that were removed, the latest last: signing out and in again is no way to be forgotten.
    left: VecDeque<(DeviceId, Refused)>,
    /// The latest last.
    former: VecDeque<(Former, Monotonic)>,
    /// Peers whose doors here have to be shut.
    shut: Vec<PeerSlot>,
}

impl Scans {
    pub(crate) fn set_own(&mut self, limit: Option<&ScanLimit>) {
        self.own.set(limit);
    }

    /// Takes note that the controller began another life.
    fn another_life(&mut self) {
        let left = self.left.iter_mut().map(|(_, refused)| refused);
        left.chain([&mut self.own]).for_each(|refused| refused.former = refused.limit.is_some());
    }

    pub(crate) fn has_shut(&self) -> bool {
        !self.shut.is_empty()
    }

    /// Keeps what was refused to a peer that is removed.
    pub(crate) fn leave(&mut self, device: DeviceId, refused: Refused) {
        if refused.is_empty() {
            return;
        }
        if self.left.len() >= MAX_LEFT {
            self.left.pop_front();
        }
        self.left.push_back((device, refused));
    }

    /// Hands back what was refused to a machine when it was a peer before.
    pub(crate) fn come_back(&mut self, device: DeviceId) -> Refused {
        let at = self.left.iter().position(|(left, _)| *left == device);
        at.and_then(|at| self.left.remove(at)).map(|(_, refused)| refused).unwrap_or_default()
    }

    /// Remembers what was permitted before rules change: it is used for a while by those who do not know yet.
    pub(crate) fn were_permitted(&mut self, inbound: &Rules, outbound: &Rules, addresses: &[IpAddr], now: Monotonic) {
        if self.own.limit.is_none() {
            return;
        }
        let is_udp = |service: &&Service| service.protocol() == Protocol::Udp;
        let served = inbound.services().filter(is_udp).map(|service| Former::Served(*service));
        let reached =
            outbound.services().flat_map(|service| addresses.iter().map(|address| Former::Reached(*address, *service)));
        // No more than are remembered: a peer may have very many, and each is looked for among those that are.
        let mut latest: Vec<Former> = served.chain(reached).rev().take(MAX_FORMER).collect();
        latest.reverse();
        for former in latest {
            self.former.retain(|(known, _)| *known != former);
            if self.former.len() >= MAX_FORMER {
                self.former.pop_front();
            }
            self.former.push_back((former, now));
        }
    }

    /// Tells whether a flow that leaves was permitted lately, or answers what was.
    fn was_permitted(&self, flow: &FiveTuple, now: Monotonic) -> bool {
        let Some(limit) = &self.own.limit else { return false };
        let within = std::time::Duration::from_millis(limit.within_ms);
        self.former.iter().filter(|(_, at)| now.since(*at) < within).any(|(former, _)| match former {
            Former::Served(service) => service.contains(flow.protocol, flow.source_port),
            Former::Reached(address, service) => {
                *address == flow.destination && service.contains(flow.protocol, flow.destination_port)
            }
        })
    }
}

impl Enforcer {
    /// Takes note of the life of the controller that a document comes from, and tells whether it is another: numbers of budgets are
    /// compared within one life alone.
    pub(crate) fn note_life(&mut self, epoch: u64) -> bool {
        if self.life.replace(epoch).is_none_or(|life| life == epoch) {
            return false;
        }
        self.meters.another_life();
        self.scans.another_life();
        for peer in self.peers.iter_mut().flatten() {
            peer.refused.former = peer.refused.limit.is_some();
        }
        true
    }

    /// Takes note that a document is enforced: the budgets of everybody who is here are those of its life.
    pub(crate) fn life_is_told(&mut self) {
        self.meters.life_is_told();
    }

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
            DenyReason::UnknownPeer | DenyReason::NoRule => true,
            // A rule names it, and the owner of this machine does not want it: whoever asks may not know.
            DenyReason::Ceiling
            | DenyReason::StepUp
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
                if !self.scans.own.counts() {
                    return;
                }
                let overlay = self.own.as_ref().map(|own| own.overlay.as_slice()).unwrap_or_default();
                if !overlay.iter().any(|net| net.contains(&flow.destination)) {
                    return;
                }
                // A peer that asks and goes away, or asks from low ports, must not make its server's answers look like a scan.
                let peer = self.owner(flow.destination).and_then(|slot| self.peer_if_any(slot));
                let answers = flow.protocol == Protocol::Udp
                    && peer.is_some_and(|peer| peer.inbound.names(flow.protocol, flow.source_port));
                if answers || self.scans.was_permitted(flow, now.monotonic) {
                    return;
                }
                (&mut self.scans.own, None)
            }
            (Direction::Inbound, Some(slot)) => {
                let Some(peer) = self.peers.get_mut(slot.0 as usize).and_then(Option::as_mut) else { return };
                if !peer.refused.counts() {
                    return;
                }
                (&mut peer.refused, Some(peer.identity.device))
            }
            (Direction::Inbound, None) => return,
        };
        refused.last = Some(*flow);
        let Some(count) = refused.add(destination, now.monotonic) else { return };
        let Some(limit) = refused.limit.clone() else { return };
        let (rule, budget) = (limit.rule, limit.budget);
        refused.told = Some(Scan { device, rule, budget, refused: count, last: *flow });
        self.counters.scans += 1;
        if let Some(slot) = slot.filter(|_| direction == Direction::Inbound && limit.then.shuts()) {
            self.scans.shut.push(slot);
        }
    }

    /// Lists the scans to which the controller has not answered by another budget: whoever was not heard is heard later.
    pub(crate) fn scans_told(&self) -> Vec<Scan> {
        let peers = self.peers.iter().flatten().filter_map(|peer| peer.refused.told.as_ref());
        self.scans.own.told.iter().chain(peers).take(MAX_TOLD).cloned().collect()
    }

    /// Lists what was refused to peers lately that is no scan here: the most first, because of many it is those that may be one together
    /// with what other nodes refused.
    pub(crate) fn refused_lately(&self, now: Now) -> Vec<Scan> {
        let peers = self.peers.iter().flatten();
        let mut lately: Vec<Scan> =
            peers.filter_map(|peer| peer.refused.lately(peer.identity.device, now.monotonic)).collect();
        lately.sort_by_key(|scan| std::cmp::Reverse(scan.refused));
        lately.truncate(MAX_TOLD);
        lately
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
