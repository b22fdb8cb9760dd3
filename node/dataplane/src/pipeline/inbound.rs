//! From the network to the TUN.

use std::{net::SocketAddr, ops::Range};

use postern_common::{net::FiveTuple, reason::DenyReason, time::Now};

use super::{
    DataPlane, Out,
    authenticated::{Authenticated, Suspect},
    intake::{Intake, Released},
    outbound::datagram_of,
};
use crate::{
    counters::{Direction, DropReason},
    enforce::{Attempt, Facts, PeerSlot, Permit, Verdict},
    packet::{
        batch::TunBatch,
        replies::{Reply, reject},
        view::{Layout, Transport},
    },
    wireguard::{
        HEADER, OpenerOf, Opening, Tunnels,
        links::{Heard, Opened},
    },
};

/// What is to be done with an opened packet, once it is not looked at any more.
#[expect(clippy::large_enum_variant, reason = "it lives within one call; a box would be an allocation per refusal")]
enum Outcome {
    Deliver { permit: Permit, length: usize, layout: Layout },
    Refuse { peer: PeerSlot, flow: Option<FiveTuple>, reason: DenyReason, attempt: Attempt, answer: Option<Reply> },
}

impl<W: Tunnels> DataPlane<W> {
    /// Takes one datagram of the network, as it came from `from`. It is copied; see [`DataPlane::handle_received`].
    pub fn handle_udp(&mut self, datagram: &[u8], from: SocketAddr, now: Now, out: &mut Out<'_>) {
        match out.tun.receive_room(datagram.len()) {
            Ok(room) => room.copy_from_slice(datagram),
            Err(_) => return self.enforcer.counters.drop(DropReason::TunBatchFull),
        }
        let start = out.tun.received(datagram.len());
        self.handle_received(start..start + datagram.len(), datagram.len(), from, now, out);
    }

    /// Takes what was received into the TUN batch's own room ([`TunBatch::receive_room`]): datagrams of `segment` bytes each,
    /// the last may be shorter, all from `from`. They are opened where they stand.
    ///
    /// [`TunBatch::receive_room`]: crate::packet::batch::TunBatch::receive_room
    pub fn handle_received(
        &mut self,
        received: Range<usize>,
        segment: usize,
        from: SocketAddr,
        now: Now,
        out: &mut Out<'_>,
    ) {
        let mut intake = std::mem::take(&mut self.intake);
        intake.add(received, segment, from);
        self.plan(&mut intake, now, out.tun);
        intake.open(out.tun);
        self.take(&mut intake, now, out);
        self.intake = intake;
    }

    /// Finds what opens each datagram of an intake. [`Intake::open`] and [`DataPlane::take`] follow, the former without this plane.
    pub fn plan(&self, intake: &mut Intake<OpenerOf<W>>, now: Now, tun: &mut TunBatch) {
        intake.plan(tun, |received, segment| self.links.opener(received, segment, now.monotonic));
    }

    /// Judges what an intake has opened, in the order in which it came, and empties it. Packets that may pass stand in the same batch.
    pub fn take(&mut self, intake: &mut Intake<OpenerOf<W>>, now: Now, out: &mut Out<'_>) -> Released {
        let now = self.not_before(now);
        self.enforcer.glance_at_clock(now);
        intake.drain(|datagram, opening, from| self.hear(datagram, opening, from, now, out));
        self.finish(now, out);
        std::mem::take(&mut self.released)
    }

    fn hear(&mut self, datagram: Range<usize>, opened: Option<Opening>, from: SocketAddr, now: Now, out: &mut Out<'_>) {
        let start = datagram.start;
        let enforcer = &self.enforcer;
        let entitled = |slot| enforcer.peer_if_any(slot).is_some_and(|peer| peer.is_entitled(now));
        let heard =
            self.links.receive(out.tun.received_bytes(datagram), opened, from, now.monotonic, out.udp, entitled);
        match heard {
            Heard::Nothing => {}
            Heard::Dropped(reason) => self.enforcer.counters.drop(reason),
            Heard::Confirmed(slot) => {
                self.send_waiting(slot, now, out);
                self.remind(slot, now, out);
            }
            Heard::Packet(opened) => {
                self.deliver(opened, start + HEADER, now, out);
                if opened.confirms() {
                    self.send_waiting(opened.peer(), now, out);
                    self.remind(opened.peer(), now, out);
                }
            }
        }
    }

    /// Takes a packet that was opened, and stands at `start` in the TUN batch.
    fn deliver(&mut self, opened: Opened, start: usize, now: Now, out: &mut Out<'_>) {
        if !out.tun.has_piece() {
            return self.enforcer.counters.drop(DropReason::TunBatchFull);
        }
        let plaintext = &*out.tun.received_bytes(start..start + opened.length());
        let outcome = match Authenticated::check(opened, plaintext, &self.enforcer) {
            Ok(packet) => self.judge_inbound(&packet, now),
            Err(Suspect::Unparsable(error)) => {
                self.enforcer.counters.parse_error(error);
                let (peer, reason) = (opened.peer(), error.deny_reason());
                Outcome::Refuse { peer, flow: None, reason, attempt: Attempt::Other, answer: None }
            }
            Err(Suspect::Misaddressed(flow, reason)) => {
                Outcome::Refuse { peer: opened.peer(), flow, reason, attempt: Attempt::Other, answer: None }
            }
        };
        match outcome {
            Outcome::Deliver { permit, length, layout } => {
                out.tun.commit_in_place(start, length, &layout, self.enforcer.lane(&permit));
                self.enforcer.account(&permit, 1, length as u64);
                self.enforcer.counters.packets_in += 1;
                self.enforcer.counters.bytes_in += length as u64;
            }
            Outcome::Refuse { peer, flow, reason, attempt, answer } => {
                self.enforcer.refuse(Direction::Inbound, Some(peer), flow, reason, attempt, now);
                if let Some(answer) = answer {
                    self.answer_peer(peer, answer.as_bytes(), now, out);
                }
            }
        }
    }

    fn judge_inbound(&mut self, packet: &Authenticated<'_>, now: Now) -> Outcome {
        let view = packet.view();
        match self.verdict_inbound(packet, now) {
            Verdict::Allow(permit) => Outcome::Deliver { permit, length: view.bytes().len(), layout: *view.layout() },
            Verdict::Deny(reason) => {
                let answers = reason != DenyReason::Settling && self.enforcer.answers_refusals(packet.peer(), now);
                let answer = if answers { reject(view) } else { None };
                let (flow, attempt) = (view.five_tuple(), Attempt::of(view));
                Outcome::Refuse { peer: packet.peer(), flow, reason, attempt, answer }
            }
        }
    }

    fn verdict_inbound(&mut self, packet: &Authenticated<'_>, now: Now) -> Verdict {
        let view = packet.view();
        if let Transport::LaterFragment(fragment) = view.transport() {
            return match self.inbound_fragments.check(datagram_of(view, fragment.id), fragment, now.monotonic) {
                Ok(first) => self.enforcer.judge_fragment(&first, now),
                Err(_) => Verdict::Deny(DenyReason::Unclassifiable),
            };
        }
        let facts = match Facts::read(packet.peer(), view, Direction::Inbound) {
            Ok(facts) => facts,
            Err(reason) => return Verdict::Deny(reason),
        };
        let verdict = self.enforcer.judge(&facts, now);
        match (verdict, view.first_fragment()) {
            (Verdict::Allow(_), Some(fragment)) => {
                match self.inbound_fragments.admit(datagram_of(view, fragment.id), fragment, facts, now.monotonic) {
                    Ok(()) => verdict,
                    Err(_) => Verdict::Deny(DenyReason::Unclassifiable),
                }
            }
            (Verdict::Allow(_) | Verdict::Deny(_), _) => verdict,
        }
    }
}
