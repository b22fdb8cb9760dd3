//! Status, whois and explain: what people ask, answered by the evaluator that judges packets.

use std::net::SocketAddr;

use postern_common::{flow_record::Originator, net::FiveTuple, reason::DenyReason, time::Now};

use super::{Enforcer, facts::PeerSlot, flow::Flow, peers::Peer};
use crate::status::{FlowStatus, LocalExplanation, LocalVerdict, WhoIs};

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
            None => LocalVerdict::Deny { reason: DenyReason::UnknownPeer },
            Some(slot) => match self.policy(slot, originator, flow.protocol, flow.destination_port, now) {
                Err(reason) => LocalVerdict::Deny { reason },
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
        LocalExplanation {
            flow,
            originator,
            peer: peer.map(|peer| peer.identity.clone()),
            verdict,
            named: peer.map(rules).unwrap_or_default(),
            generation: peer.map_or(0, |peer| peer.generation),
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
