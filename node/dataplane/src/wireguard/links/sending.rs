//! From a judged packet to a datagram.

use std::{net::SocketAddr, time::Duration};

use postern_common::time::Monotonic;

use super::{ATTEMPT_OVER, Links, NEXT_PAIR_AFTER, PairSlot, TICK, Waiting};
use crate::{
    enforce::PeerSlot,
    packet::{batch::UdpBatch, offload::VirtioHeader},
    wireguard::{
        Due, HEADER, INITIATION_LENGTH, Run, Sealer, SealerOf, TRANSPORT_OVERHEAD, Tunnel, Tunnels, padded_length,
    },
};

/// A session to send with, and where to. It is used up within the call that asked for it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    pair: PairSlot,
    to: SocketAddr,
}

impl Route {
    /// Returns where datagrams go.
    pub(crate) fn to(&self) -> SocketAddr {
        self.to
    }
}

impl<W: Tunnels> Links<W> {
    /// Finds the session with which to send to a peer: that of the newest pair which has one. A newer pair without
    /// one begins a handshake. `None`: there is no session, and a handshake is under way if there is anywhere to send
    /// it.
    pub(crate) fn route(&mut self, slot: PeerSlot, now: Monotonic, udp: &mut UdpBatch) -> Option<Route> {
        let peer = self.peers.get(slot.0 as usize)?.as_ref().filter(|peer| peer.entitled)?;
        let ready = |pair: &PairSlot| {
            // A session that we only answered for is not used before its initiator has proved that it lives
            // (whitepaper §5.1).
            let pair = self.pair_if_any(*pair).filter(|pair| pair.confirmed.is_some());
            pair.and_then(|pair| pair.tunnel.as_ref()).is_some_and(|tunnel| tunnel.is_ready(now))
        };
        let place = peer.pairs.iter().position(ready);
        let chosen = place.map(|place| peer.pairs[place]);
        let to = peer.endpoint.current();
        if place != Some(0) {
            self.begin(slot, place, now, udp);
        }
        let pair = chosen?;
        self.wake(pair, now, udp);
        if self.pair_if_any(pair)?.tunnel.as_ref()?.wants_rekey() {
            self.initiate(pair, now, udp);
        }
        if to.is_none() {
            self.counters.no_endpoint += 1;
        }
        Some(Route { pair, to: to? })
    }

    /// Returns the longest inner packet in bytes that goes to this peer whole: padding does not go beyond.
    pub(crate) fn longest(&self, slot: PeerSlot) -> usize {
        let path = self.peers.get(slot.0 as usize).and_then(Option::as_ref).and_then(|peer| peer.path_mtu);
        usize::from(path.map_or(self.settings.mtu, |mtu| mtu.min(self.settings.mtu)))
    }

    /// Returns the bytes of a message that carries a packet of `length` bytes to this peer, padded as its path allows.
    pub(crate) fn message_length(&self, slot: PeerSlot, length: usize) -> usize {
        padded_length(length, self.longest(slot)) + TRANSPORT_OVERHEAD
    }

    /// Sets the counters of `count` messages apart. `None`: the session cannot be used any more.
    pub(crate) fn sealer(&mut self, route: Route, count: usize, now: Monotonic) -> Option<SealerOf<W>> {
        let pair = self.pairs[usize::from(route.pair.0)].as_mut()?;
        let peer = self.peers.get_mut(pair.peer.0 as usize)?.as_mut()?;
        peer.last_sent = Some(now);
        pair.tunnel.as_mut()?.sealer(count as u64, now)
    }

    /// Seals the packet of `length` bytes that stands [`HEADER`] bytes into `room`, which has [`Links::message_length`], and returns the
    /// datagram's length. `None`: the session cannot be used any more.
    pub(crate) fn seal(&mut self, route: Route, room: &mut [u8], length: usize, now: Monotonic) -> Option<usize> {
        let (stride, last) = (room.len(), room.len() - TRANSPORT_OVERHEAD);
        room.get_mut(HEADER + length..HEADER + last)?.fill(0);
        self.sealer(route, 1, now)?.seal_run(room, &Run { stride, last, count: 1 })?;
        Some(stride)
    }

    /// Counts what was sent to a peer.
    pub(crate) fn count_sent(&mut self, slot: PeerSlot, bytes: u64) {
        if let Some(peer) = self.peer_mut(slot) {
            peer.bytes_out += bytes;
        }
    }

    /// Sends a keepalive to a peer to which nothing was sent for `every`; without a session, a handshake begins.
    pub(crate) fn keep_alive(&mut self, slot: PeerSlot, every: Duration, now: Monotonic, udp: &mut UdpBatch) {
        let Some(peer) = self.peer_mut(slot) else { return };
        if peer.last_sent.is_some_and(|sent| now.since(sent) < every) {
            return;
        }
        peer.last_sent = Some(now); // also when it only begins a handshake, which tries again by itself
        let Some(route) = self.route(slot, now, udp) else { return };
        let Self { counters, pairs, .. } = self;
        if let Some(room) = Self::reserve(counters, udp, TRANSPORT_OVERHEAD)
            && let Some(tunnel) = pairs[usize::from(route.pair.0)].as_mut().and_then(|pair| pair.tunnel.as_mut())
            && let Some(sealed) = tunnel.seal_keepalive(room, now)
        {
            udp.commit(route.to(), sealed);
        }
    }

    /// Keeps a packet until there is a session. The peer's oldest gives way; when all packets together are too many,
    /// this one does.
    pub(crate) fn wait(&mut self, slot: PeerSlot, header: VirtioHeader, packet: &[u8], now: Monotonic) {
        self.drop_overdue(slot, now);
        let (per_peer, bytes) = (self.settings.pending_per_peer, self.settings.pending_bytes);
        let until = now.saturating_add(self.settings.pending_lifetime);
        let Self { peers, counters, waiting_bytes, waiting, .. } = self;
        let Some(peer) = peers.get_mut(slot.0 as usize).and_then(Option::as_mut) else { return };
        while !peer.waiting.is_empty() && peer.waiting.len() >= per_peer {
            *waiting_bytes -= peer.waiting.pop_front().map_or(0, |packet| packet.packet.len());
            counters.pending_dropped += 1;
        }
        if per_peer == 0 || *waiting_bytes + packet.len() > bytes {
            counters.pending_dropped += 1;
            return;
        }
        *waiting_bytes += packet.len();
        peer.waiting.push_back(Waiting { header, packet: packet.into(), until });
        waiting.insert(slot);
    }

    /// Hands over the oldest packet that waits for this peer.
    pub(crate) fn next_waiting(&mut self, slot: PeerSlot) -> Option<Waiting> {
        let peer = self.peers.get_mut(slot.0 as usize)?.as_mut()?;
        let packet = peer.waiting.pop_front();
        if peer.waiting.is_empty() {
            self.waiting.remove(&slot);
        }
        self.waiting_bytes -= packet.as_ref().map_or(0, |packet| packet.packet.len());
        packet
    }

    /// Returns how many packets wait for this peer.
    pub(crate) fn waiting_for(&self, slot: PeerSlot) -> usize {
        self.peers.get(slot.0 as usize).and_then(Option::as_ref).map_or(0, |peer| peer.waiting.len())
    }

    pub(super) fn drop_overdue(&mut self, slot: PeerSlot, now: Monotonic) {
        let Self { peers, counters, waiting_bytes, waiting, .. } = self;
        let Some(peer) = peers.get_mut(slot.0 as usize).and_then(Option::as_mut) else { return };
        while let Some(packet) = peer.waiting.pop_front_if(|packet| packet.until <= now) {
            *waiting_bytes -= packet.packet.len();
            counters.pending_dropped += 1;
        }
        if peer.waiting.is_empty() {
            waiting.remove(&slot);
        }
    }

    /// Begins handshakes for the pairs before `ready`: the newest at once, the next if that got no answer for a while.
    fn begin(&mut self, slot: PeerSlot, ready: Option<usize>, now: Monotonic, udp: &mut UdpBatch) {
        for place in 0.. {
            let Some(pair) = self.peer_mut(slot).and_then(|peer| peer.pairs.get(place).copied()) else { return };
            if ready.is_some_and(|ready| place >= ready) {
                return;
            }
            match self.pair_if_any(pair).and_then(|pair| pair.initiated) {
                None => return self.initiate(pair, now, udp),
                Some(since) if now.since(since) < NEXT_PAIR_AFTER => return,
                Some(since) if now.since(since) > ATTEMPT_OVER => return self.initiate(pair, now, udp),
                Some(_) => {}
            }
        }
    }

    /// Sends an initiation, if none is under way and there is anywhere to send it.
    pub(super) fn initiate(&mut self, slot: PairSlot, now: Monotonic, udp: &mut UdpBatch) {
        let Self { tunnels, pairs, peers, counters, .. } = self;
        let Some(pair) = pairs[usize::from(slot.0)].as_mut() else { return };
        let Some(peer) = peers.get_mut(pair.peer.0 as usize).and_then(Option::as_mut).filter(|peer| peer.entitled)
        else {
            return;
        };
        if peer.endpoint.current().is_none() {
            counters.no_endpoint += 1;
            return;
        }
        if pair.tunnel.is_none() {
            pair.tunnel = tunnels.open(&pair.keys, pair.index, now);
        }
        let Some(tunnel) = pair.tunnel.as_mut() else { return };
        let Some(room) = Self::reserve(counters, udp, INITIATION_LENGTH) else { return };
        let mut begun = None;
        if now.since(pair.last_tick) >= TICK {
            // It slept: its timers are brought up to date first, and may already ask for what we want.
            begun = match tunnel.handle_timeout(room, now) {
                Due::Initiation(length) => Some(length),
                Due::Nothing | Due::Keepalive(_) | Due::GaveUp => None,
            };
            pair.last_tick = now;
        }
        if let Some(length) = begun.or_else(|| tunnel.initiate(room, now))
            && let Some(to) = peer.endpoint.next_attempt()
        {
            udp.commit(to, length);
            counters.begun += 1;
            pair.initiated = Some(now);
        }
        pair.last_used = now;
        self.schedule(slot, now.saturating_add(TICK));
    }
}
