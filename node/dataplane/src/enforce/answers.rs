//! Status, whois and explain: what people ask, answered by the evaluator that judges packets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use postern_common::{
    flow_record::Originator,
    id::DeviceId,
    net::{FiveTuple, PortRange, Protocol, Service},
    protocol::FlowGroup,
    reason::DenyReason,
    time::Now,
};

use super::{Enforcer, facts::PeerSlot, flow::Flow, peers::Peer};
use crate::status::{FlowStatus, InboundFlows, LocalExplanation, LocalVerdict, WhoIs};

/// The most groups that are told apart while flows are counted: a peer that scans must not cost memory.
const MAX_GROUPS: usize = 4_096;

impl Enforcer {
    /// Lists the live flows.
    pub(crate) fn flows(&self) -> Vec<FlowStatus> {
        self.table.iter().filter_map(|flow| self.flow_status(flow)).collect()
    }

    /// Returns how many flows are live.
    pub(crate) fn flow_count(&self) -> usize {
        self.table.len()
    }

    /// Returns how many flows a peer has.
    pub(crate) fn flows_of(&self, slot: PeerSlot) -> usize {
        self.table.count(slot)
    }

    /// Counts the live flows that `peers` have opened, by peer, resource and service.
    pub(crate) fn inbound_flows(&self, peers: &[DeviceId], room: usize, now: Now) -> InboundFlows {
        let mut groups = BTreeMap::new();
        let mut unlisted = 0;
        let slots: BTreeSet<PeerSlot> = peers.iter().filter_map(|device| self.slot_of(*device)).collect();
        for slot in slots {
            let device = self.peer(slot).identity.device;
            let flows = std::iter::successors(self.table.first_of_peer(slot), |index| self.table.next_of_peer(*index));
            let opened = |flow: &&Flow| flow.originator == Originator::Peer && !flow.is_over();
            for flow in flows.map(|index| self.table.flow(index)).filter(opened) {
                let (protocol, port) = (flow.key.protocol, flow.key.service_port(Originator::Peer));
                let key = (device, flow.basis.resource.clone(), protocol, port);
                // Port 0 has no name that a message could carry.
                let nameless = port == 0 && protocol != Protocol::Icmp;
                if nameless || (groups.len() >= MAX_GROUPS && !groups.contains_key(&key)) {
                    unlisted += 1;
                    continue;
                }
                let service = Service::new(protocol, PortRange::single(port));
                let resource = key.1.clone();
                let none = FlowGroup { peer: device, resource, service, flows: 0, oldest_ms: 0, bytes: 0 };
                let group = groups.entry(key).or_insert(none);
                let age = u64::try_from(now.monotonic.since(flow.begun).as_millis()).unwrap_or(u64::MAX);
                group.flows += 1;
                group.oldest_ms = group.oldest_ms.max(age);
                group.bytes += flow.from_originator.bytes + flow.to_originator.bytes;
            }
        }
        let mut groups: Vec<FlowGroup> = groups.into_values().collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.bytes));
        unlisted += groups.iter().skip(room).map(|group| group.flows).sum::<u64>();
        groups.truncate(room);
        InboundFlows { groups, unlisted }
    }

    /// Tells who is behind an inner address, and which live flow stands at that port.
    pub(crate) fn whois(&self, remote: SocketAddr) -> Option<WhoIs> {
        let slot = self.owner(remote.ip())?;
        let peer = self.peer_if_any(slot)?;
        let at = |flow: &&Flow| flow.key.remote == remote.ip() && flow.key.remote_port == remote.port();
        // The peer's own flows alone, which its quota bounds: every local user may ask, and packets wait meanwhile.
        let first = self.table.first_of_peer(slot);
        let flows = std::iter::successors(first, |index| self.table.next_of_peer(*index));
        let newest = flows.map(|index| self.table.flow(index)).filter(at).max_by_key(|flow| flow.begun);
        Some(WhoIs {
            peer: peer.identity.clone(),
            tags: peer.tags.clone(),
            endpoint: peer.outer,
            flow: newest.and_then(|flow| self.flow_status(flow)),
        })
    }

    /// Tells whether `flow` may be opened now, and under what. The originator is this node if the source is its own
    /// address.
    pub(crate) fn explain(&mut self, flow: FiveTuple, now: Now) -> LocalExplanation {
        let originator = if self.is_own(flow.source) { Originator::Local } else { Originator::Peer };
        let (near, far) = match originator {
            Originator::Local => (flow.source, flow.destination),
            Originator::Peer => (flow.destination, flow.source),
        };
        let slot = self.owner(far);
        let verdict = match slot {
            _ if !self.is_own(near) => LocalVerdict::Deny { reason: DenyReason::UnknownPeer },
            None => LocalVerdict::Deny { reason: self.step_up_or(&flow, DenyReason::UnknownPeer) },
            Some(slot) => match self.policy(slot, originator, flow.protocol, flow.destination_port, now) {
                Err(reason) => match originator {
                    Originator::Local => LocalVerdict::Deny { reason: self.step_up_or(&flow, reason) },
                    Originator::Peer => LocalVerdict::Deny { reason },
                },
                Ok(found) => {
                    let rules = self.peer_mut(slot).rules(originator);
                    LocalVerdict::Allow { permit: (**rules.basis(found)).clone(), until: rules.until(found) }
                }
            },
        };
        let peer = slot.and_then(|slot| self.peer_if_any(slot));
        let rules = |peer: &Peer| match originator {
            Originator::Local => peer.outbound.status(),
            Originator::Peer => peer.inbound.status(),
        };
        let limit = |peer: &Peer| peer.inbound.shut_by(flow.protocol, flow.destination_port, now);
        LocalExplanation {
            flow,
            originator,
            peer: peer.map(|peer| peer.identity.clone()),
            verdict,
            named: peer.map(rules).unwrap_or_default(),
            generation: peer.map_or(0, |peer| peer.generation),
            limit: peer.filter(|_| originator == Originator::Peer).and_then(limit),
        }
    }

    fn flow_status(&self, flow: &Flow) -> Option<FlowStatus> {
        let peer = self.peer_if_any(flow.key.peer)?;
        let rules = match flow.originator {
            Originator::Local => &peer.outbound,
            Originator::Peer => &peer.inbound,
        };
        if flow.generation != peer.generation {
            return None; // it is judged again before its next packet passes
        }
        Some(FlowStatus {
            originator: flow.originator,
            flow: flow.key.as_opened_by(flow.originator),
            peer: peer.identity.clone(),
            permit: (*flow.basis).clone(),
            until: rules.until(flow.permission),
            generation: flow.generation,
            tcp: flow.tcp.as_ref().map(|tcp| tcp.state.label()),
            begun: flow.begun,
            last_seen: flow.last_seen,
            packets_out: flow.from_originator.packets,
            bytes_out: flow.from_originator.bytes,
            packets_back: flow.to_originator.packets,
            bytes_back: flow.to_originator.bytes,
        })
    }
}
