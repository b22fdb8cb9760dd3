//! From the TUN to the network.

use std::net::{IpAddr, SocketAddr};

use postern_common::{reason::DenyReason, time::Now};

use super::{DataPlane, Out, Released};
use crate::{
    counters::{Direction, DropReason},
    enforce::{Attempt, Facts, PeerSlot, Permit, Reminder, Verdict},
    packet::{
        batch::{Lane, UdpBatch},
        fragments::DatagramKey,
        offload::VirtioHeader,
        replies::{Reply, keepalive_probe, reject, too_big},
        split::Segmenter,
        view::{PacketView, Transport},
    },
    settings::LocalRefusal,
    wireguard::{HEADER, Run, Sealer, SealerOf, TRANSPORT_OVERHEAD, Tunnels, links::Route, padded_length},
};

/// A frame that may go, with a session's counters for it: it is cut and sealed without the data plane, on any thread.
#[derive(Debug)]
pub struct Sealing<'p, S> {
    segments: Segmenter<'p>,
    sealer: S,
    to: SocketAddr,
    /// How many packets: the batch has room for them.
    count: usize,
    /// Padding does not go beyond this length.
    longest: usize,
}

impl<S: Sealer> Sealing<'_, S> {
    /// Cuts and seals into the batch that [`DataPlane::admit`] was given, into which nothing may have been put since.
    pub fn run(mut self, udp: &mut UdpBatch) {
        let padded = |length| padded_length(length, self.longest);
        let stride = padded(self.segments.longest()) + TRANSPORT_OVERHEAD;
        let Ok(room) = udp.reserve(self.count * stride) else { return }; // the batch counts it
        let mut run = Run { stride, last: 0, count: 0 };
        for message in room.chunks_mut(stride) {
            let Some(length) = self.segments.next_into(&mut message[HEADER..]) else { break };
            run.last = padded(length);
            message[HEADER + length..HEADER + run.last].fill(0);
            run.count += 1;
        }
        if self.sealer.seal_run(room, &run).is_some() {
            for index in 0..run.count {
                udp.commit(self.to, run.length_of(index) + TRANSPORT_OVERHEAD);
            }
        }
    }
}

impl<W: Tunnels> DataPlane<W> {
    /// Takes one frame of the TUN: a packet of up to 64 KiB, and the virtio header that stood before it.
    pub fn handle_tun(&mut self, header: VirtioHeader, packet: &[u8], now: Now, out: &mut Out<'_>) {
        self.handle_tun_lane(Lane::default(), header, packet, now, out);
    }

    /// As [`DataPlane::handle_tun`], for a TUN with several queues: the flow's answers go to the same one.
    pub fn handle_tun_lane(&mut self, lane: Lane, header: VirtioHeader, packet: &[u8], now: Now, out: &mut Out<'_>) {
        if let Some(sealing) = self.admit(lane, header, packet, now, out) {
            sealing.run(out.udp);
        }
    }

    /// The first part of [`DataPlane::handle_tun_lane`], for threads that share this plane: looks at the frame and judges it.
    /// [`Sealing::run`] is the rest; what is revoked in between is still sent, so a change of the plane waits for all.
    pub fn admit<'p>(
        &mut self,
        lane: Lane,
        header: VirtioHeader,
        packet: &'p [u8],
        now: Now,
        out: &mut Out<'_>,
    ) -> Option<Sealing<'p, SealerOf<W>>> {
        let now = self.not_before(now);
        self.enforcer.glance_at_clock(now);
        let sealing = self.send(Some(lane), header, packet, now, out);
        self.finish(now, out);
        sealing
    }

    /// `lane` is absent for what has waited: its flow is where it is by now.
    pub(super) fn send<'p>(
        &mut self,
        lane: Option<Lane>,
        header: VirtioHeader,
        packet: &'p [u8],
        now: Now,
        out: &mut Out<'_>,
    ) -> Option<Sealing<'p, SealerOf<W>>> {
        let view = match PacketView::parse(packet) {
            Ok(view) => view,
            Err(error) => {
                self.enforcer.counters.parse_error(error);
                let reason = error.deny_reason();
                self.enforcer.refuse(Direction::Outbound, None, None, reason, Attempt::Other, now);
                return None;
            }
        };
        if is_noise(view.source()) || is_noise(view.destination()) {
            self.enforcer.counters.drop(DropReason::NotUnicast);
            return None;
        }
        let slot = self.enforcer.owner(view.destination());
        match self.judge_outbound(slot, &view, now) {
            Verdict::Allow(permit) => {
                if let Some(lane) = lane {
                    self.enforcer.note_lane(&permit, lane);
                }
                self.send_permitted(permit, header, view, now, out)
            }
            Verdict::Deny(reason) => {
                let reason = self.enforcer.reason_for_local(&view, reason);
                let attempt = Attempt::of(&view);
                self.enforcer.refuse(Direction::Outbound, slot, view.five_tuple(), reason, attempt, now);
                self.answer_local(&view, reason, out);
                None
            }
        }
    }

    fn judge_outbound(&mut self, slot: Option<PeerSlot>, view: &PacketView<'_>, now: Now) -> Verdict {
        if !self.enforcer.is_own(view.source()) {
            return Verdict::Deny(DenyReason::SourceNotOwned);
        }
        let Some(slot) = slot else { return Verdict::Deny(self.enforcer.no_peer(view, now)) };
        if let Transport::LaterFragment(fragment) = view.transport() {
            return match self.outbound_fragments.check(datagram_of(view, fragment.id), fragment, now.monotonic) {
                Ok(first) => self.enforcer.judge_fragment(&first, now),
                Err(_) => Verdict::Deny(DenyReason::Unclassifiable),
            };
        }
        let facts = match Facts::read(slot, view, Direction::Outbound) {
            Ok(facts) => facts,
            Err(reason) => return Verdict::Deny(reason),
        };
        let verdict = self.enforcer.judge(&facts, now);
        match (verdict, view.first_fragment()) {
            (Verdict::Allow(_), Some(fragment)) => {
                let key = datagram_of(view, fragment.id);
                match self.outbound_fragments.admit(key, fragment, facts, now.monotonic) {
                    Ok(()) => verdict,
                    Err(_) => Verdict::Deny(DenyReason::Unclassifiable),
                }
            }
            (Verdict::Allow(_) | Verdict::Deny(_), _) => verdict,
        }
    }

    fn send_permitted<'p>(
        &mut self,
        permit: Permit,
        header: VirtioHeader,
        view: PacketView<'p>,
        now: Now,
        out: &mut Out<'_>,
    ) -> Option<Sealing<'p, SealerOf<W>>> {
        let Ok(segments) = Segmenter::new(header, view) else {
            self.enforcer.counters.drop(DropReason::Offload);
            return None;
        };
        let peer = permit.peer();
        if let Some(mtu) = self.links.path_mtu(peer, view.destination().is_ipv4())
            && segments.longest() > usize::from(mtu)
            && !view.may_be_fragmented()
        {
            self.enforcer.counters.drop(DropReason::TooBig);
            self.tell_local(too_big(&view, mtu), out);
            return None;
        }
        let Some(route) = self.links.route(peer, now.monotonic, out.udp) else {
            self.links.wait(peer, header, view.bytes(), now.monotonic);
            return None;
        };
        let longest = self.links.longest(peer);
        let wanted = segments.remaining();
        let count = wanted.min(out.udp.room() / (padded_length(segments.longest(), longest) + TRANSPORT_OVERHEAD));
        if count < wanted {
            self.enforcer.counters.drop_many(DropReason::UdpBatchFull, (wanted - count) as u64);
        }
        if count == 0 {
            return None;
        }
        let Some(sealer) = self.links.sealer(route, count, now.monotonic) else {
            self.enforcer.counters.drop_many(DropReason::NoSession, count as u64);
            return None;
        };
        let (packets, bytes) = (count as u64, segments.bytes_of(count) as u64);
        self.links.count_sent(peer, bytes);
        self.enforcer.account(&permit, packets, bytes);
        self.enforcer.counters.packets_out += packets;
        self.enforcer.counters.bytes_out += bytes;
        Some(Sealing { segments, sealer, to: route.to(), count, longest })
    }

    /// Tells a local program that its packet was refused.
    fn answer_local(&mut self, view: &PacketView<'_>, reason: DenyReason, out: &mut Out<'_>) {
        let answered = match (self.settings.refuse_local, reason) {
            // What waits for a step-up is not reset: the kernel sends the SYN again, and the same attempt gets through.
            (LocalRefusal::Drop, _)
            | (LocalRefusal::Reject, DenyReason::Settling | DenyReason::SourceNotOwned | DenyReason::StepUp) => {
                return;
            }
            (
                LocalRefusal::Reject,
                DenyReason::UnknownPeer
                | DenyReason::NoRule
                | DenyReason::Limit
                | DenyReason::Expired
                | DenyReason::Revoked
                | DenyReason::Ceiling
                | DenyReason::FlowQuota
                | DenyReason::NoFlow
                | DenyReason::Unclassifiable
                | DenyReason::UnsupportedProtocol,
            ) => reject(view),
        };
        self.tell_local(answered, out);
    }

    fn tell_local(&mut self, answer: Option<Reply>, out: &mut Out<'_>) {
        let Some(reply) = answer else { return };
        match out.tun.push_own(reply.as_bytes()) {
            Ok(()) => self.enforcer.counters.refusals_answered += 1,
            Err(_) => self.enforcer.counters.drop(DropReason::TunBatchFull),
        }
    }

    /// Tells a peer that its packet was refused. This needs no permit: it is our own word, of the size of a header,
    /// to a peer that a grant names.
    pub(super) fn answer_peer(&mut self, slot: PeerSlot, reply: &[u8], now: Now, out: &mut Out<'_>) {
        if self.send_own(slot, reply, now, out) {
            self.enforcer.counters.refusals_answered += 1;
        }
    }

    /// Seals a packet that this node made itself. Tells whether it could.
    fn send_own(&mut self, slot: PeerSlot, packet: &[u8], now: Now, out: &mut Out<'_>) -> bool {
        let Some(route): Option<Route> = self.links.route(slot, now.monotonic, out.udp) else { return false };
        let Ok(room) = out.udp.reserve(self.links.message_length(slot, packet.len())) else {
            self.enforcer.counters.drop(DropReason::UdpBatchFull);
            return false;
        };
        room[HEADER..HEADER + packet.len()].copy_from_slice(packet);
        let Some(sealed) = self.links.seal(route, room, packet.len(), now.monotonic) else { return false };
        out.udp.commit(route.to(), sealed);
        self.links.count_sent(slot, packet.len() as u64);
        true
    }

    /// Speaks for silent programs to a peer with which a session began: if it was restarted, it has forgotten their
    /// connections. (If it was not, an empty segment for each, every two minutes, is what that costs.) As with an answer, this needs no permit; that the connections may go on was just checked.
    pub(super) fn remind(&mut self, slot: PeerSlot, now: Now, out: &mut Out<'_>) {
        for Reminder { flow, sequence, acknowledgement } in self.enforcer.reminders(slot, now) {
            let probe = keepalive_probe(&flow, sequence, acknowledgement);
            if !self.send_own(slot, probe.as_bytes(), now, out) {
                return;
            }
        }
    }

    /// Sends what waited for a session of this peer. Everything is judged again.
    pub(super) fn send_waiting(&mut self, slot: PeerSlot, now: Now, out: &mut Out<'_>) {
        for _ in 0..self.links.waiting_for(slot) {
            let Some(waiting) = self.links.next_waiting(slot) else { return };
            // Its first fragment was admitted when it came, and is admitted again: that is no overlap.
            if let Ok(view) = PacketView::parse(&waiting.packet)
                && let Some(fragment) = view.first_fragment()
            {
                let datagram = datagram_of(&view, fragment.id);
                self.outbound_fragments.retain(|key, _| *key != datagram);
            }
            if let Some(sealing) = self.send(None, waiting.header, &waiting.packet, now, out) {
                sealing.run(out.udp);
                self.released = Released::Waiting;
            }
        }
    }
}

/// Names the datagram of a fragment.
pub(super) fn datagram_of(view: &PacketView<'_>, id: u32) -> DatagramKey {
    DatagramKey { source: view.source(), destination: view.destination(), id, protocol: view.protocol() }
}

/// Tells whether an address belongs to traffic that a host's kernel sends into any interface by itself.
fn is_noise(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast() || address.is_broadcast() || address.is_link_local(),
        IpAddr::V6(address) => address.is_multicast() || address.is_unicast_link_local(),
    }
}
