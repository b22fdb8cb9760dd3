//! How flows end: by deadline, by change, by silence, for want of room. Each ending leaves a record; a live TCP
//! connection that is cut also leaves a [`Cut`], from which an RST for the local socket is made.

use postern_common::{
    flow_record::{FlowEnd, FlowEvent, FlowRecord, Originator},
    net::{FiveTuple, Protocol},
    reason::DenyReason,
    time::{Monotonic, Now},
};

use super::{
    Cut, Enforcer,
    facts::PeerSlot,
    flow::{Flow, TcpState},
    scans::Attempt,
    table::FlowIndex,
};
use crate::counters::Direction;

/// How many flows are looked at for silence in one call: some microseconds each when they have left the processor's caches.
const LOOKS: usize = 256;

impl Enforcer {
    /// Ends what is due; of silent flows a bounded number, and the rest at the next call, which is due at once. Without flows and gathered refusals it costs nothing but two comparisons.
    pub(crate) fn handle_timeout(&mut self, now: Now) {
        self.watch_clock(now);
        while let Some((due, slot)) = self.expiries.first().copied().filter(|(due, _)| *due <= now.monotonic) {
            self.expiries.remove(&(due, slot));
            self.end_expired(slot, now);
            self.schedule_expiry(slot, now);
        }
        let mut looks = LOOKS;
        while let Some(index) = self.table.turn(now.monotonic, &mut looks) {
            let end = self.table.flow(index).end_when_idle();
            self.forget_flow(index, end, now);
        }
        self.records.handle_timeout(now.monotonic);
    }

    /// Returns when [`Enforcer::handle_timeout`] has work. While there are flows, that is within a second, so that a
    /// wall clock which somebody sets forward closes within a second.
    pub(crate) fn poll_timeout(&self) -> Monotonic {
        let expiry = self.expiries.first().map_or(Monotonic::NEVER, |(due, _)| *due);
        expiry.min(self.table.next_turn()).min(self.records.poll_timeout())
    }

    /// Judges again those flows of a peer whose permission has passed; another permission may take over.
    pub(crate) fn end_expired(&mut self, slot: PeerSlot, now: Now) {
        self.rejudge_flows(slot, now);
        if !self.peer(slot).is_entitled(now) {
            self.lapsed.push(slot);
        }
    }

    /// Judges every flow of a peer again that is of an old generation or past its deadline, and cuts what may not go
    /// on. Returns how many were cut.
    pub(crate) fn rejudge_flows(&mut self, slot: PeerSlot, now: Now) -> usize {
        let mut cut = 0;
        let mut next = self.table.first_of_peer(slot);
        while let Some(index) = next {
            next = self.table.next_of_peer(index);
            if self.check(index, now).is_err() {
                cut += 1;
            }
        }
        cut
    }

    /// Ends every flow of a peer for which `why` gives a reason.
    pub(crate) fn end_flows(&mut self, slot: PeerSlot, now: Now, why: impl Fn(&Flow) -> Option<FlowEnd>) {
        let mut next = self.table.first_of_peer(slot);
        while let Some(index) = next {
            next = self.table.next_of_peer(index);
            if let Some(why) = why(self.table.flow(index)) {
                self.end_flow(index, why, now);
            }
        }
    }

    /// Cuts a flow: the local socket is told.
    pub(crate) fn end_flow(&mut self, index: FlowIndex, why: FlowEnd, now: Now) {
        let flow = self.table.flow(index);
        if !flow.is_over() {
            self.counters.flows_cut += 1;
            self.counters.inbound_flows_cut += u64::from(flow.originator == Originator::Peer);
            self.cuts.extend(cut_of(flow));
        }
        self.forget_flow(index, why, now);
    }

    /// Removes a flow and records its end.
    pub(crate) fn forget_flow(&mut self, index: FlowIndex, why: FlowEnd, now: Now) {
        let flow = self.table.remove(index);
        let event = FlowEvent::End {
            why,
            duration_ms: u64::try_from(flow.last_seen.since(flow.begun).as_millis()).unwrap_or(u64::MAX),
            packets_out: flow.from_originator.packets,
            bytes_out: flow.from_originator.bytes,
            packets_back: flow.to_originator.packets,
            bytes_back: flow.to_originator.bytes,
        };
        self.record(&flow, event, now);
    }

    /// Ends every flow because the node stops; nobody is cut, since the connections may come back.
    pub(crate) fn shut_down(&mut self, now: Now) {
        for slot in self.slots() {
            while let Some(index) = self.table.first_of_peer(slot) {
                self.forget_flow(index, FlowEnd::Shutdown, now);
            }
        }
    }

    pub(crate) fn record_start(&mut self, flow: &Flow, now: Now) {
        self.record(flow, FlowEvent::Start, now);
    }

    fn record(&mut self, flow: &Flow, event: FlowEvent, now: Now) {
        let peer = self.peer_if_any(flow.key.peer);
        let record = FlowRecord {
            at: now.wall,
            event,
            originator: flow.originator,
            flow: flow.key.as_opened_by(flow.originator),
            peer: peer.map(|peer| peer.identity.clone()),
            peer_outer: peer.and_then(|peer| peer.outer),
            permit: Some((*flow.basis).clone()),
            generation: flow.generation,
        };
        self.records.push(record);
    }

    /// Counts and records a refusal. `flow` is absent for what has no ports: it is only counted.
    pub(crate) fn refuse(
        &mut self,
        direction: Direction,
        slot: Option<PeerSlot>,
        flow: Option<FiveTuple>,
        reason: DenyReason,
        attempt: Attempt,
        now: Now,
    ) {
        self.counters.deny(direction, reason);
        let Some(flow) = flow else { return };
        if attempt == Attempt::Opens {
            self.note_refusal(direction, slot, &flow, reason, now);
        }
        let originator = match direction {
            Direction::Outbound => Originator::Local,
            Direction::Inbound => Originator::Peer,
        };
        let peer = slot.and_then(|slot| self.peers.get(slot.0 as usize)).and_then(Option::as_ref);
        self.records.deny(originator, &flow, reason, now, || FlowRecord {
            at: now.wall,
            event: FlowEvent::Deny { reason, repeated: 0 },
            originator,
            flow,
            peer: peer.map(|peer| peer.identity.clone()),
            peer_outer: peer.and_then(|peer| peer.outer),
            permit: None,
            generation: peer.map_or(0, |peer| peer.generation),
        });
    }
}

/// Returns what the local socket must be told, if it is TCP's and something is known of it.
fn cut_of(flow: &Flow) -> Option<Cut> {
    if flow.key.protocol != Protocol::Tcp {
        return None;
    }
    let tcp = flow.tcp.as_ref().filter(|tcp| tcp.state != TcpState::Reset)?;
    // A socket that only asked expects nothing yet; it believes an RST that acknowledges its SYN (RFC 9293 §3.10.7.3).
    // What it has acknowledged and what it was sent differ while data is on its way: one of them is right.
    let sequences = match (tcp.local_expects, tcp.remote_next) {
        (Some(expects), Some(next)) => [expects, next],
        (Some(one), None) | (None, Some(one)) => [one, one],
        (None, None) if tcp.local_next.is_some() => [0, 0],
        (None, None) => return None,
    };
    Some(Cut {
        local: flow.key.local,
        local_port: flow.key.local_port,
        remote: flow.key.remote,
        remote_port: flow.key.remote_port,
        sequences,
        acknowledgement: tcp.local_next,
    })
}
