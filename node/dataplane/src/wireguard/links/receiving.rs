//! From a datagram to an opened packet.

use std::net::SocketAddr;

use postern_common::time::Monotonic;

use super::{INITIATION_INTERVAL, Links, PairSlot};
use crate::{
    counters::DropReason,
    enforce::PeerSlot,
    packet::batch::UdpBatch,
    status::PlaneEvent,
    wireguard::{
        Admission, COOKIE_REPLY, COOKIE_REPLY_LENGTH, INITIATION, INITIATION_LENGTH, OpenerOf, Opening, RESPONSE,
        RESPONSE_LENGTH, Received, TRANSPORT, TRANSPORT_OVERHEAD, Tunnel, Tunnels, read_counter, read_index,
    },
};

/// What a datagram brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing for policy.
    Nothing,
    /// A session of this peer is confirmed: packets that wait can go.
    Confirmed(PeerSlot),
    /// An inner packet stands 16 bytes into the datagram.
    Packet(Opened),
    /// It was dropped.
    Dropped(DropReason),
}

/// Proof that a session of this peer opened a packet. Only [`Links::receive`] makes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opened {
    peer: PeerSlot,
    length: usize,
    confirms: bool,
}

impl Opened {
    /// Returns the peer whose session it was.
    pub(crate) fn peer(&self) -> PeerSlot {
        self.peer
    }

    /// Returns the packet's length in bytes.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// Tells whether this also confirmed the session: packets that wait can go.
    pub(crate) fn confirms(&self) -> bool {
        self.confirms
    }
}

impl<W: Tunnels> Links<W> {
    /// Finds what opens the messages at the front of what was received together: how many are for one session, and its opener. One
    /// that is no transport data, or for no session, has none.
    pub(crate) fn opener(&self, received: &[u8], segment: usize, now: Monotonic) -> (usize, Option<OpenerOf<W>>) {
        let Some((slot, index)) = self.find(received, 4) else { return (1, None) };
        let fits = |message: &&[u8]| {
            message.len() >= TRANSPORT_OVERHEAD
                && message[..4] == [TRANSPORT, 0, 0, 0]
                && read_index(message, 4) == Some(index)
        };
        let count = received.chunks(segment).take_while(fits).count();
        let tunnel = self.pair_if_any(slot).and_then(|pair| pair.tunnel.as_ref()).filter(|_| count > 0);
        match tunnel.and_then(|tunnel| tunnel.opener(index, now)) {
            Some(opener) => (count, Some(opener)),
            None => (1, None),
        }
    }

    /// Takes a datagram. `opened` is what its session's opener made of it; without one, an inner packet is opened here: its session may
    /// have begun by the datagram before. `entitled` tells whether a peer has
    /// any live permission: without one, its handshakes get no answer.
    pub(crate) fn receive(
        &mut self,
        datagram: &mut [u8],
        opened: Option<Opening>,
        from: SocketAddr,
        now: Monotonic,
        udp: &mut UdpBatch,
        entitled: impl Fn(PeerSlot) -> bool,
    ) -> Heard {
        // Type and three reserved bytes of zero (whitepaper §5.4).
        match (&*datagram, datagram.len()) {
            ([TRANSPORT, 0, 0, 0, ..], TRANSPORT_OVERHEAD..) => {
                self.receive_transport(datagram, opened, from, now, udp)
            }
            ([INITIATION, 0, 0, 0, ..], INITIATION_LENGTH) => {
                self.receive_initiation(datagram, from, now, udp, entitled)
            }
            ([RESPONSE, 0, 0, 0, ..], RESPONSE_LENGTH) => self.receive_response(datagram, from, now, udp),
            ([COOKIE_REPLY, 0, 0, 0, ..], COOKIE_REPLY_LENGTH) => self.receive_cookie(datagram, now),
            _ => Heard::Dropped(DropReason::NotWireGuard),
        }
    }

    fn receive_transport(
        &mut self,
        datagram: &mut [u8],
        opened: Option<Opening>,
        from: SocketAddr,
        now: Monotonic,
        udp: &mut UdpBatch,
    ) -> Heard {
        let Some((slot, index)) = self.find(datagram, 4) else { return Heard::Dropped(DropReason::UnknownIndex) };
        let Some(pair) = self.pairs[usize::from(slot.0)].as_mut() else {
            return Heard::Dropped(DropReason::UnknownIndex);
        };
        let Some(tunnel) = pair.tunnel.as_mut() else { return Heard::Dropped(DropReason::UnknownIndex) };
        let peer = pair.peer;
        let accepted = match (opened, read_counter(datagram)) {
            (Some(opened), Some(counter)) => tunnel.accept(index, counter, opened, now),
            (None, _) => tunnel.open(datagram, now),
            (Some(_), None) => Opening::Refused,
        };
        let length = match accepted {
            Opening::Packet(length) => Some(length),
            Opening::Keepalive => None,
            Opening::Refused => return Heard::Dropped(DropReason::BadTransport),
        };
        let confirms = pair.unconfirmed.take_if(|expected| *expected == index).is_some();
        self.hear(slot, from, now);
        if confirms {
            self.confirm(slot, now);
        }
        self.wake(slot, now, udp);
        match length {
            Some(length) => {
                if let Some(peer) = self.peer_mut(peer) {
                    peer.bytes_in += length as u64;
                }
                Heard::Packet(Opened { peer, length, confirms })
            }
            None => {
                self.counters.keepalives += 1;
                if confirms { Heard::Confirmed(peer) } else { Heard::Nothing }
            }
        }
    }

    fn receive_initiation(
        &mut self,
        datagram: &[u8],
        from: SocketAddr,
        now: Monotonic,
        udp: &mut UdpBatch,
        entitled: impl Fn(PeerSlot) -> bool,
    ) -> Heard {
        let Some(room) = Self::reserve(&mut self.counters, udp, INITIATION_LENGTH) else { return Heard::Nothing };
        let (local, remote) = match self.tunnels.admit_initiation(datagram, from.ip(), room, now) {
            Admission::Admitted { local, remote } => (local, remote),
            Admission::Cookie(length) => return self.send_cookie(from, length, udp),
            Admission::Refused(reason) => return Heard::Dropped(reason),
        };
        let Some(slot) = self.by_keys.get(&(local, remote)).copied() else {
            return Heard::Dropped(DropReason::UnknownInitiator);
        };
        let Some(pair) = self.pairs[usize::from(slot.0)].as_mut() else {
            return Heard::Dropped(DropReason::UnknownInitiator);
        };
        let listed = self.peers.get(pair.peer.0 as usize).and_then(Option::as_ref).is_some_and(|peer| peer.entitled);
        if !listed || !entitled(pair.peer) {
            return Heard::Dropped(DropReason::UnknownInitiator);
        }
        if pair.last_initiation_heard.is_some_and(|last| now.since(last) < INITIATION_INTERVAL) {
            return Heard::Dropped(DropReason::InitiationTooSoon);
        }
        if pair.tunnel.is_none() {
            pair.tunnel = self.tunnels.open(&pair.keys, pair.index, now);
        }
        let Some(tunnel) = pair.tunnel.as_mut() else { return Heard::Dropped(DropReason::UnknownInitiator) };
        if now.since(pair.last_tick) >= super::TICK {
            // It slept: its timers are brought up to date, so that the new session gets its right age.
            let _ = tunnel.handle_timeout(room, now);
            pair.last_tick = now;
        }
        let Received::Response(length) = tunnel.receive(datagram, room, now) else {
            return Heard::Dropped(DropReason::BadHandshake);
        };
        pair.unconfirmed = read_index(&room[..length], 4);
        pair.last_initiation_heard = Some(now);
        pair.initiated = None; // the peer's own handshake takes the place of ours
        // The answer goes where the question came from, but the endpoint stays: an initiation may be a replay.
        udp.commit(from, length);
        self.wake(slot, now, udp);
        Heard::Nothing
    }

    fn receive_response(&mut self, datagram: &[u8], from: SocketAddr, now: Monotonic, udp: &mut UdpBatch) -> Heard {
        let Some((slot, _)) = self.find(datagram, 8) else { return Heard::Dropped(DropReason::UnknownIndex) };
        let Self { tunnels, pairs, counters, .. } = self;
        let Some(room) = Self::reserve(counters, udp, INITIATION_LENGTH) else { return Heard::Nothing };
        let Some(pair) = pairs[usize::from(slot.0)].as_mut() else {
            return Heard::Dropped(DropReason::UnknownIndex);
        };
        match tunnels.admit_response(datagram, (pair.keys.local, pair.keys.remote), from.ip(), room, now) {
            Admission::Admitted { .. } => {}
            Admission::Cookie(length) => return self.send_cookie(from, length, udp),
            Admission::Refused(reason) => return Heard::Dropped(reason),
        }
        let peer = pair.peer;
        let Some(Received::Established(length)) =
            pair.tunnel.as_mut().map(|tunnel| tunnel.receive(datagram, room, now))
        else {
            return Heard::Dropped(DropReason::BadHandshake);
        };
        udp.commit(from, length);
        self.hear(slot, from, now);
        self.confirm(slot, now);
        self.wake(slot, now, udp);
        Heard::Confirmed(peer)
    }

    fn receive_cookie(&mut self, datagram: &[u8], now: Monotonic) -> Heard {
        let Some((slot, _)) = self.find(datagram, 4) else { return Heard::Dropped(DropReason::UnknownIndex) };
        let mut buffer = [0; INITIATION_LENGTH];
        let tunnel = self.pair_mut(slot).and_then(|pair| pair.tunnel.as_mut());
        match tunnel.map(|tunnel| tunnel.receive(datagram, &mut buffer, now)) {
            Some(Received::Cookie) => Heard::Nothing,
            Some(Received::Response(_) | Received::Established(_) | Received::Refused) | None => {
                Heard::Dropped(DropReason::BadHandshake)
            }
        }
    }

    fn send_cookie(&mut self, to: SocketAddr, length: usize, udp: &mut UdpBatch) -> Heard {
        udp.commit(to, length);
        self.counters.cookies += 1;
        Heard::Dropped(DropReason::UnderLoad)
    }

    /// Finds the pair whose session index stands at `at`.
    fn find(&self, message: &[u8], at: usize) -> Option<(PairSlot, u32)> {
        let index = read_index(message, at)?;
        let slot = PairSlot((index >> 8) as u16);
        let pair = self.pair_if_any(slot)?;
        (pair.index == index >> 8).then_some((slot, index))
    }

    /// The peer proved that it is at `from`.
    fn hear(&mut self, slot: PairSlot, from: SocketAddr, now: Monotonic) {
        let Some(peer) = self.pair_if_any(slot).map(|pair| pair.peer) else { return };
        let Some(peer) = self.peer_mut(peer) else { return };
        peer.last_received = Some(now);
        if peer.endpoint.hear(from) {
            let event = PlaneEvent::EndpointMoved { device: peer.device, endpoint: from };
            self.push_event(event);
        }
    }

    fn confirm(&mut self, slot: PairSlot, now: Monotonic) {
        self.counters.done += 1;
        let Some(pair) = self.pair_mut(slot) else { return };
        pair.confirmed = Some(now);
        pair.initiated = None;
        let first = !std::mem::replace(&mut pair.was_confirmed, true);
        let (peer, local, remote) = (pair.peer, pair.keys.local, pair.keys.remote);
        if first && let Some(device) = self.peer_mut(peer).map(|peer| peer.device) {
            self.push_event(PlaneEvent::PairConfirmed { device, local, remote });
        }
    }
}
