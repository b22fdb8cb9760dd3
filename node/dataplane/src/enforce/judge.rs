//! The verdict on a packet.
//!
//! ```text
//! known flow ── opens anew? ──yes──> policy, in the packet's own direction
//!     │no
//!     ├─ same generation, deadline ahead ──────────────> Allow
//!     └─ else policy again, as the originator's flow ──> Allow (and note the new permission) | cut
//! unknown flow ── an answer? ──yes──> NoFlow (SYN with ACK shortly after the start: Settling)
//!     └─ policy, in the packet's own direction ──> Allow (and an entry) | Deny
//! ```

use std::net::IpAddr;

use postern_common::{
    flow_record::{FlowEnd, Originator},
    grant::StepUpOffer,
    limit::Measure,
    net::{FiveTuple, Protocol},
    reason::DenyReason,
    time::Now,
};

use crate::packet::{
    batch::Lane,
    view::{PacketView, Transport},
};

use super::{
    Enforcer,
    facts::{Act, Facts, PeerSlot},
    flow::{Flow, TcpState, TcpTrack, Traffic},
    meters::MeterIndex,
    rules::PermissionIndex,
    table::{FlowIndex, Room},
};

/// Policy's word on one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It may pass.
    Allow(Permit),
    /// It may not.
    Deny(DenyReason),
}

/// Leave for one packet to pass as part of a flow. Sealing and delivering ask for it, and only [`Enforcer::judge`]
/// makes one. It is used up at once, in the same call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Permit {
    /// `None` only when nothing is judged: see [`Enforcer::stop_judging`].
    flow: Option<FlowIndex>,
    peer: PeerSlot,
    sender: Originator,
}

impl Permit {
    /// Returns the peer to or from which the packet goes.
    pub(crate) fn peer(&self) -> PeerSlot {
        self.peer
    }
}

impl Enforcer {
    /// Lets everything between this node and its peers pass from now on, without verdict, entry or record: what the benchmark
    /// compares with, and nothing else may call.
    pub(crate) fn stop_judging(&mut self) {
        self.is_judging = false;
    }

    /// Judges a packet. On `Allow` the flow has an entry; [`Enforcer::account`] counts what passed.
    pub(crate) fn judge(&mut self, facts: &Facts, now: Now) -> Verdict {
        if !self.is_judging {
            return Verdict::Allow(Permit { flow: None, peer: facts.key.peer, sender: facts.sender() });
        }
        let Some(index) = self.find_live(facts, now) else {
            return self.judge_new(facts, now);
        };
        if self.opens_anew(index, facts) {
            return self.reopen(index, facts, now);
        }
        if let Err(reason) = self.check(index, now) {
            return Verdict::Deny(reason);
        }
        let flow = self.table.flow_mut(index);
        if let (Act::Segment(segment), Some(tcp)) = (&facts.act, &mut flow.tcp) {
            let before = tcp.state;
            tcp.follow(flow.originator, facts.sender(), segment);
            if tcp.state != before && matches!(tcp.state, TcpState::HalfClosed(_) | TcpState::Closed | TcpState::Reset)
            {
                flow.last_seen = now.monotonic;
                self.table.reschedule(index);
            }
        }
        self.allow(index, facts, now)
    }

    /// Names the reason why a packet to an address that no peer owns is refused. Shortly after this node started, the
    /// controller may not have spoken yet: a connection in mid-stream is not reset for that.
    pub(crate) fn no_peer(&self, view: &PacketView<'_>, now: Now) -> DenyReason {
        match view.transport() {
            Transport::Tcp(segment) if !segment.flags.opens() && self.is_settling(now) => DenyReason::Settling,
            Transport::Tcp(_)
            | Transport::Udp(_)
            | Transport::IcmpEcho { .. }
            | Transport::IcmpError(_)
            | Transport::OtherIcmp { .. }
            | Transport::LaterFragment(_)
            | Transport::Unsupported(_) => DenyReason::UnknownPeer,
        }
    }

    /// Names the reason for this machine's own programs: a packet that begins a conversation with what would open after a
    /// step-up is refused for that. The peer is told nothing.
    pub(crate) fn reason_for_local(&self, view: &PacketView<'_>, reason: DenyReason) -> DenyReason {
        let begins = match view.transport() {
            Transport::Tcp(segment) => segment.flags.opens(),
            Transport::Udp(_) | Transport::IcmpEcho { .. } => true,
            Transport::IcmpError(_)
            | Transport::OtherIcmp { .. }
            | Transport::LaterFragment(_)
            | Transport::Unsupported(_) => false,
        };
        match view.five_tuple().filter(|_| begins) {
            Some(flow) => self.step_up_or(&flow, reason),
            None => reason,
        }
    }

    /// Returns [`DenyReason::StepUp`] in place of a reason that a step-up would mend for this destination.
    pub(super) fn step_up_or(&self, flow: &FiveTuple, reason: DenyReason) -> DenyReason {
        let mends = match reason {
            DenyReason::UnknownPeer | DenyReason::NoRule | DenyReason::Expired => true,
            DenyReason::StepUp
            | DenyReason::Limit
            | DenyReason::Revoked
            | DenyReason::SourceNotOwned
            | DenyReason::Ceiling
            | DenyReason::FlowQuota
            | DenyReason::Settling
            | DenyReason::NoFlow
            | DenyReason::Unclassifiable
            | DenyReason::UnsupportedProtocol => false,
        };
        let mut offers = self.own.iter().flat_map(|own| &own.step_up);
        let offered = |offer: &StepUpOffer| offer.covers(flow.destination, flow.protocol, flow.destination_port);
        if mends && offers.any(offered) { DenyReason::StepUp } else { reason }
    }

    /// Judges a later fragment of a packet that passed as part of the flow with this key.
    pub(crate) fn judge_fragment(&mut self, facts: &Facts, now: Now) -> Verdict {
        let Some(index) = self.find_live(facts, now) else {
            return Verdict::Deny(DenyReason::NoFlow);
        };
        match self.check(index, now) {
            Ok(()) => self.allow(index, facts, now),
            Err(reason) => Verdict::Deny(reason),
        }
    }

    /// Finds the flow; one that has been silent too long is over, whether or not the wheel has come to it.
    fn find_live(&mut self, facts: &Facts, now: Now) -> Option<FlowIndex> {
        let index = self.table.find(&facts.key)?;
        let flow = self.table.flow(index);
        if !flow.is_idle(now.monotonic) {
            return Some(index);
        }
        let end = flow.end_when_idle();
        self.forget_flow(index, end, now);
        None
    }

    /// Counts what passed under a permit.
    pub(crate) fn account(&mut self, permit: &Permit, packets: u64, bytes: u64) {
        let Some(flow) = permit.flow.map(|index| self.table.flow_mut(index)) else { return };
        let traffic =
            if permit.sender == flow.originator { &mut flow.from_originator } else { &mut flow.to_originator };
        traffic.packets += packets;
        traffic.bytes += bytes;
        if flow.meter != MeterIndex::NONE {
            let measure = if permit.sender == flow.originator { Measure::Upload } else { Measure::Download };
            self.meters.count(flow.meter, measure, bytes, self.clock.monotonic);
        }
        if flow.basis.would_deny.is_some() {
            self.counters.would_deny += packets;
        }
    }

    /// Notes on which lane the kernel handed over a packet of a flow.
    pub(crate) fn note_lane(&mut self, permit: &Permit, lane: Lane) {
        if let Some(index) = permit.flow {
            self.table.flow_mut(index).lane = lane;
        }
    }

    /// Returns the lane of a flow.
    pub(crate) fn lane(&self, permit: &Permit) -> Lane {
        permit.flow.map_or(Lane::default(), |index| self.table.flow(index).lane)
    }

    /// Asks policy whether `originator` may open `protocol` and `port` with this peer.
    pub(crate) fn policy(
        &mut self,
        slot: PeerSlot,
        originator: Originator,
        protocol: Protocol,
        port: u16,
        now: Now,
    ) -> Result<PermissionIndex, DenyReason> {
        let Some(peer) = self.peers.get_mut(slot.0 as usize).and_then(Option::as_mut) else {
            return Err(DenyReason::UnknownPeer);
        };
        if originator == Originator::Peer && peer.refused.shuts() {
            return Err(DenyReason::Limit);
        }
        let found = peer.rules(originator).find(protocol, port, now)?;
        match originator {
            Originator::Local => Ok(found),
            Originator::Peer if self.ceiling.admits(&peer.tags, protocol, port) => Ok(found),
            Originator::Peer => Err(DenyReason::Ceiling),
        }
    }

    /// Checks that a known flow may go on; if not, it is cut.
    pub(crate) fn check(&mut self, index: FlowIndex, now: Now) -> Result<(), DenyReason> {
        let flow = self.table.flow(index);
        let (slot, originator, key) = (flow.key.peer, flow.originator, flow.key);
        let (generation, permission) = (flow.generation, flow.permission);
        let peer = self.peer_mut(slot);
        let present = peer.generation;
        if generation == present && !peer.rules(originator).until(permission).has_passed(now) {
            return Ok(());
        }
        match self.policy(slot, originator, key.protocol, key.service_port(originator), now) {
            Ok(found) if self.still_owned(&key.local, &key.remote, slot) => {
                let rules = self.peer_mut(slot).rules(originator);
                let (basis, meter) = (rules.basis(found).clone(), rules.meter_of(found));
                let flow = self.table.flow_mut(index);
                flow.permission = found;
                flow.basis = basis;
                flow.meter = meter;
                flow.generation = present;
                Ok(())
            }
            Ok(_) => {
                self.end_flow(index, FlowEnd::Revoked, now);
                Err(DenyReason::Revoked)
            }
            Err(DenyReason::Limit) => {
                self.end_flow(index, FlowEnd::Limit, now);
                Err(DenyReason::Limit)
            }
            Err(DenyReason::Expired) => {
                self.end_flow(index, FlowEnd::Expired, now);
                Err(DenyReason::Expired)
            }
            Err(
                DenyReason::UnknownPeer
                | DenyReason::NoRule
                | DenyReason::StepUp
                | DenyReason::Revoked
                | DenyReason::SourceNotOwned
                | DenyReason::Ceiling
                | DenyReason::FlowQuota
                | DenyReason::Settling
                | DenyReason::NoFlow
                | DenyReason::Unclassifiable
                | DenyReason::UnsupportedProtocol,
            ) => {
                self.end_flow(index, FlowEnd::Revoked, now);
                Err(DenyReason::Revoked)
            }
        }
    }

    fn still_owned(&self, local: &IpAddr, remote: &IpAddr, slot: PeerSlot) -> bool {
        self.is_own(*local) && self.owner(*remote) == Some(slot)
    }

    /// Tells whether a packet opens a connection of its own, although its ports are those of a known flow: the other
    /// end calls back (and must not pass as an answer), or the originator begins again after the end.
    fn opens_anew(&self, index: FlowIndex, facts: &Facts) -> bool {
        let Act::Segment(segment) = &facts.act else { return false };
        let flow = self.table.flow(index);
        segment.flags.opens() && (facts.sender() != flow.originator || flow.is_over())
    }

    fn reopen(&mut self, index: FlowIndex, facts: &Facts, now: Now) -> Verdict {
        let sender = facts.sender();
        let port = facts.key.service_port(sender);
        match self.policy(facts.key.peer, sender, facts.key.protocol, port, now) {
            Ok(found) => {
                let end = if self.table.flow(index).is_over() {
                    self.table.flow(index).end_when_idle()
                } else {
                    FlowEnd::Reset
                };
                self.forget_flow(index, end, now);
                self.open(found, facts, now)
            }
            Err(reason) => Verdict::Deny(reason),
        }
    }

    fn judge_new(&mut self, facts: &Facts, now: Now) -> Verdict {
        match facts.act {
            Act::Answer | Act::Error => return Verdict::Deny(DenyReason::NoFlow),
            // Only who was asked says SYN and ACK: it must not become the originator, whatever it may open itself.
            Act::Segment(segment) if segment.flags.answers_opening() => {
                let settling = self.is_settling(now);
                return Verdict::Deny(if settling { DenyReason::Settling } else { DenyReason::NoFlow });
            }
            Act::Segment(_) | Act::Message => {}
        }
        let sender = facts.sender();
        let port = facts.key.service_port(sender);
        match self.policy(facts.key.peer, sender, facts.key.protocol, port, now) {
            Ok(found) => self.open(found, facts, now),
            Err(reason) => match &facts.act {
                // An established connection of an entitled originator: it comes back when the originator speaks.
                Act::Segment(segment) if !segment.flags.opens() && self.is_settling(now) => {
                    Verdict::Deny(DenyReason::Settling)
                }
                Act::Segment(_) | Act::Message | Act::Answer | Act::Error => Verdict::Deny(reason),
            },
        }
    }

    fn open(&mut self, permission: PermissionIndex, facts: &Facts, now: Now) -> Verdict {
        let slot = facts.key.peer;
        match self.table.room_for(slot) {
            Room::Free => {}
            Room::Evict(index) => {
                self.counters.flows_evicted += 1;
                self.forget_flow(index, FlowEnd::Evicted, now);
            }
            Room::None => return Verdict::Deny(DenyReason::FlowQuota),
        }
        let originator = facts.sender();
        let peer = self.peer_mut(slot);
        let generation = peer.generation;
        let rules = peer.rules(originator);
        let (basis, meter) = (rules.basis(permission).clone(), rules.meter_of(permission));
        let tcp = match &facts.act {
            Act::Segment(segment) => Some(TcpTrack::new(originator, segment)),
            Act::Message | Act::Answer | Act::Error => None,
        };
        let flow = Flow {
            key: facts.key,
            originator,
            permission,
            basis,
            generation,
            meter,
            begun: now.monotonic,
            last_seen: now.monotonic,
            from_originator: Traffic::default(),
            to_originator: Traffic::default(),
            tcp,
            // Neighbours in time get different lanes; the first packet of this machine's tells the kernel's choice.
            lane: Lane(self.counters.flows_begun as u8),
        };
        self.counters.flows_begun += 1;
        if meter != MeterIndex::NONE {
            self.meters.count(meter, Measure::Connections, 1, now.monotonic);
        }
        self.record_start(&flow, now);
        let index = self.table.insert(flow, now.monotonic);
        self.allow(index, facts, now)
    }

    fn allow(&mut self, index: FlowIndex, facts: &Facts, now: Now) -> Verdict {
        // What the peer sends in vain must not keep a flow alive that its originator has left: errors do not count.
        if facts.act != Act::Error {
            self.table.touch(index, now.monotonic);
        }
        Verdict::Allow(Permit { flow: Some(index), peer: facts.key.peer, sender: facts.sender() })
    }

    /// Tells whether a refused packet of the peer gets an answer: only where a rule for this node says so.
    pub(crate) fn answers_refusals(&self, slot: PeerSlot, now: Now) -> bool {
        self.peer_if_any(slot).is_some_and(|peer| peer.inbound.rejects(now))
    }
}
