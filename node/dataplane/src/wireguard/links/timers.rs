//! When tunnels need attention.

use postern_common::time::Monotonic;

use super::{IDLE_TICK, IN_USE, Links, PairSlot, SPENT, TICK};
use crate::{
    packet::batch::UdpBatch,
    status::PlaneEvent,
    wireguard::{Due, INITIATION_LENGTH, Tunnel, Tunnels},
};

impl<W: Tunnels> Links<W> {
    /// Ticks the tunnels that are due, and drops packets that have waited too long.
    pub(crate) fn handle_timeout(&mut self, now: Monotonic, udp: &mut UdpBatch) {
        while let Some((due, slot)) = self.ticks.first().copied().filter(|(due, _)| *due <= now) {
            self.ticks.remove(&(due, slot));
            if let Some(pair) = self.pair_mut(slot) {
                pair.next_tick = Monotonic::NEVER;
            }
            self.tick(slot, now, udp);
        }
        let waiting: Vec<_> = self.waiting.iter().copied().collect();
        for slot in waiting {
            self.drop_overdue(slot, now);
        }
    }

    /// Returns when [`Links::handle_timeout`] has work.
    pub(crate) fn poll_timeout(&self) -> Monotonic {
        let tick = self.ticks.first().map_or(Monotonic::NEVER, |(due, _)| *due);
        let front = |slot: &crate::enforce::PeerSlot| {
            let peer = self.peers.get(slot.0 as usize)?.as_ref()?;
            peer.waiting.front().map(|packet| packet.until)
        };
        self.waiting.iter().filter_map(front).min().unwrap_or(Monotonic::NEVER).min(tick)
    }

    /// Notes that the tunnel is in use, and brings its timers up to date if it was asleep.
    pub(super) fn wake(&mut self, slot: PairSlot, now: Monotonic, udp: &mut UdpBatch) {
        let Some(pair) = self.pair_mut(slot) else { return };
        pair.last_used = now;
        if pair.next_tick <= now.saturating_add(TICK) {
            return;
        }
        if now.since(pair.last_tick) >= TICK {
            self.tick(slot, now, udp);
        } else {
            self.schedule(slot, now.saturating_add(TICK));
        }
    }

    /// Sets when the tunnel is ticked next.
    pub(super) fn schedule(&mut self, slot: PairSlot, at: Monotonic) {
        let Some(pair) = self.pair_mut(slot) else { return };
        let before = std::mem::replace(&mut pair.next_tick, at);
        if before == at {
            return;
        }
        self.ticks.remove(&(before, slot));
        if at != Monotonic::NEVER {
            self.ticks.insert((at, slot));
        }
    }

    fn tick(&mut self, slot: PairSlot, now: Monotonic, udp: &mut UdpBatch) {
        let Some(pair) = self.pair_mut(slot) else { return };
        let peer = pair.peer;
        pair.last_tick = now;
        if std::mem::take(&mut pair.greet) && !pair.tunnel.as_ref().is_some_and(|tunnel| tunnel.is_ready(now)) {
            self.initiate(slot, now, udp);
        }
        let Self { pairs, counters, peers, .. } = self;
        let Some(pair) = pairs[usize::from(slot.0)].as_mut() else { return };
        let Some(tunnel) = pair.tunnel.as_mut() else { return };
        let Some(buffer) = Self::reserve(counters, udp, INITIATION_LENGTH) else {
            self.schedule(slot, now.saturating_add(TICK));
            return;
        };
        let due = tunnel.handle_timeout(buffer, now);
        let Some(endpoint) = peers.get_mut(peer.0 as usize).and_then(Option::as_mut).map(|peer| &mut peer.endpoint)
        else {
            return;
        };
        let mut gave_up = false;
        match due {
            Due::Nothing => {}
            Due::Keepalive(length) => match endpoint.current() {
                Some(to) => udp.commit(to, length),
                None => counters.no_endpoint += 1,
            },
            Due::Initiation(length) => {
                counters.begun += 1;
                pair.initiated.get_or_insert(now);
                match endpoint.next_attempt() {
                    Some(to) => udp.commit(to, length),
                    None => counters.no_endpoint += 1,
                }
            }
            Due::GaveUp => {
                pair.initiated = None;
                gave_up = true;
            }
        }
        let active = pair.initiated.is_some() || now.since(pair.last_used) < IN_USE;
        let holds = pair.confirmed.or(pair.unconfirmed.map(|_| pair.last_used)).is_some_and(|at| now.since(at) < SPENT);
        let wait = match (active, holds) {
            (true, _) => Some(TICK),
            (false, true) => Some(IDLE_TICK),
            (false, false) => None,
        };
        if wait.is_none() {
            pair.confirmed = None;
            pair.unconfirmed = None;
        }
        self.schedule(slot, wait.map_or(Monotonic::NEVER, |wait| now.saturating_add(wait)));
        if gave_up && let Some(device) = self.peer_mut(peer).map(|peer| peer.device) {
            self.push_event(PlaneEvent::PeerUnreachable { device });
        }
    }
}
