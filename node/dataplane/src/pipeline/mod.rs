//! The way of a packet through packet views, enforcement and tunnels.
//!
//! ```text
//! handle_tun: view ─ own source? ─ whose destination? ─ verdict ─┬ Allow ─ session? ─┬ yes ─ cut, pad, seal ─> out.udp
//!                                                                │                   └ no ── wait, handshake
//!                                                                └ Deny ── record, RST or ICMP to the local program
//! handle_udp: open ─ Authenticated ─ verdict ─┬ Allow ─> out.tun
//!                                             └ Deny ── record, silence (or an answer, where the rule wants one)
//! apply:      verified document ─> own addresses, removals, peers; what may not go on is cut ─> RSTs in out.tun
//! ```
//!
//! Packets that waited for a handshake go the whole way again: what was revoked meanwhile is not sent.
//!
//! A super-packet of up to 64 KiB is viewed and judged once; its segments share the verdict because they share the
//! 5-tuple.
//!
//! Each way has a part that needs the plane (looking, judging, counting: well under a microsecond) and one that does not (cutting,
//! sealing, opening: most of the work). Threads that share a plane hold it for the first alone: [`DataPlane::admit`] and
//! [`Sealing::run`]; [`DataPlane::plan`], [`Intake::open`] and [`DataPlane::take`]. The whole is the parts in a row.

mod authenticated;
mod control;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod inbound;
mod intake;
mod keepalive;
mod outbound;

#[cfg(test)]
mod arrival_tests;
#[cfg(test)]
mod lane_tests;
#[cfg(test)]
mod limit_tests;
#[cfg(test)]
mod path_tests;
#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, net::SocketAddr};

use postern_common::{
    flow_record::FlowRecord,
    id::DeviceId,
    net::FiveTuple,
    time::{Monotonic, Now},
};

use self::keepalive::Keepalives;
pub use self::{
    intake::{Intake, Released},
    outbound::Sealing,
};
use crate::{
    counters::Counters,
    enforce::{Enforcer, Facts},
    packet::{
        batch::{TunBatch, UdpBatch},
        fragments::FragmentTable,
        replies::reset_flow,
    },
    settings::Settings,
    status::{Behaviour, FlowStatus, InboundFlows, LocalExplanation, PeerStatus, PlaneEvent, WhoIs},
    wireguard::{OpenerOf, Tunnels, WireGuard, links::Links},
};

/// Where the data plane puts what it gives. The caller drains both before the next burst.
#[derive(Debug)]
pub struct Out<'a> {
    /// Datagrams for the network.
    pub udp: &'a mut UdpBatch,
    /// Packets for this machine.
    pub tun: &'a mut TunBatch,
}

/// The data plane of one node: give it frames, datagrams, documents and time.
#[derive(Debug)]
pub struct DataPlane<W: Tunnels = WireGuard> {
    enforcer: Enforcer,
    links: Links<W>,
    outbound_fragments: FragmentTable<Facts>,
    inbound_fragments: FragmentTable<Facts>,
    settings: Settings,
    events: VecDeque<PlaneEvent>,
    keepalives: Keepalives,
    /// Kept for its room.
    intake: Intake<OpenerOf<W>>,
    released: Released,
    latest: Now,
}

impl DataPlane<WireGuard> {
    /// Makes a data plane that lets nothing pass and answers nobody.
    pub fn new(settings: Settings, now: Now) -> Self {
        let tunnels = WireGuard::new(now).with_cipher(settings.cipher);
        Self::with_tunnels(settings, tunnels, now)
    }
}

impl<W: Tunnels> DataPlane<W> {
    /// Lets everything between this node and its peers pass from now on, so that the benchmark can tell what judging costs. It cannot be
    /// undone, and `scripts/check` finds every other caller.
    #[doc(hidden)]
    pub fn stop_judging_to_measure(&mut self) {
        self.enforcer.stop_judging();
    }

    /// Makes a data plane over other tunnels; see [`DataPlane::new`].
    pub fn with_tunnels(settings: Settings, tunnels: W, now: Now) -> Self {
        Self {
            enforcer: Enforcer::new(&settings, now),
            links: Links::new(tunnels, &settings, now.monotonic),
            outbound_fragments: FragmentTable::new(),
            inbound_fragments: FragmentTable::new(),
            events: VecDeque::new(),
            keepalives: Keepalives::default(),
            intake: Intake::default(),
            released: Released::Nothing,
            latest: now,
            settings,
        }
    }

    /// Threads that share a plane read the clock each for itself. What one has ended must not begin again at another's earlier time, so
    /// time never goes backwards here.
    fn not_before(&mut self, now: Now) -> Now {
        if now.monotonic >= self.latest.monotonic {
            self.latest = now;
        }
        self.latest
    }

    /// Does what is due: ends what has expired, within a second and without any packet; retries and renews handshakes.
    pub fn handle_timeout(&mut self, now: Now, out: &mut Out<'_>) {
        let now = self.not_before(now);
        self.enforcer.handle_timeout(now);
        self.links.handle_timeout(now.monotonic, out.udp);
        self.keep_alive(now, out);
        self.finish(now, out);
    }

    /// Returns when [`DataPlane::handle_timeout`] has work. Ask again after every call.
    pub fn poll_timeout(&self) -> Monotonic {
        self.enforcer.poll_timeout().min(self.links.poll_timeout()).min(self.keepalives.poll_timeout())
    }

    /// Hands over a flow record.
    pub fn poll_record(&mut self) -> Option<FlowRecord> {
        self.enforcer.poll_record()
    }

    /// Hands over an event.
    pub fn poll_event(&mut self) -> Option<PlaneEvent> {
        self.events.pop_front()
    }

    /// Returns the counters.
    pub fn counters(&self) -> &Counters {
        &self.enforcer.counters
    }

    /// Says how much of what is limited was used lately, and who scans. What was told is not told again until it is another.
    pub fn take_behaviour(&mut self, now: Now) -> Behaviour {
        let seen = self.enforcer.take_seen(|slot| self.links.last_received(slot), now);
        Behaviour { seen, ..self.enforcer.take_behaviour(now) }
    }

    /// Takes note that the controller knows nothing of where peers speak from: it is told anew.
    pub fn forget_told(&mut self) {
        self.enforcer.forget_told();
    }

    /// Lists the live flows.
    pub fn flows(&self) -> Vec<FlowStatus> {
        self.enforcer.flows()
    }

    /// Counts the live flows that `peers` have opened to this node, in at most `room` groups. It walks these peers' flows
    /// alone, which their quotas bound: packets wait meanwhile.
    pub fn inbound_flows(&self, peers: &[DeviceId], room: usize, now: Now) -> InboundFlows {
        self.enforcer.inbound_flows(peers, room, now)
    }

    /// Tells whether packets are sealed and opened several at once on this machine.
    pub fn takes_several(&self) -> bool {
        self.settings.cipher.take_several()
    }

    /// Returns how many flows are live.
    pub fn flow_count(&self) -> usize {
        self.enforcer.flow_count()
    }

    /// Returns how many peers there are.
    pub fn peer_count(&self) -> usize {
        self.enforcer.devices().count()
    }

    /// Lists the peers.
    pub fn peers(&self, now: Now) -> Vec<PeerStatus> {
        let mut slots: Vec<_> = self.enforcer.devices().filter_map(|device| self.enforcer.slot_of(device)).collect();
        slots.sort_unstable();
        let status = |slot| {
            let peer = self.enforcer.peer_if_any(slot)?;
            let link = self.links.status(slot, now.monotonic)?;
            Some(PeerStatus {
                peer: peer.identity.clone(),
                tags: peer.tags.clone(),
                addresses: peer.addresses.clone(),
                endpoint: link.endpoint,
                session_since: link.session_since,
                last_received: link.last_received,
                generation: peer.generation,
                flows: self.enforcer.flows_of(slot),
                inbound: peer.inbound.status(),
                outbound: peer.outbound.status(),
                bytes_out: link.bytes_out,
                bytes_in: link.bytes_in,
            })
        };
        slots.into_iter().filter_map(status).collect()
    }

    /// Tells who is behind an inner address, and which live flow stands at that port.
    pub fn whois(&self, remote: SocketAddr) -> Option<WhoIs> {
        self.enforcer.whois(remote)
    }

    /// Tells whether `flow` may be opened now, and under what: the same evaluator that judges packets. The originator
    /// is this node if the source is its own address, else the peer that owns the source.
    pub fn explain(&mut self, flow: FiveTuple, now: Now) -> LocalExplanation {
        self.enforcer.explain(flow, now)
    }

    /// Ends every flow with a record, because the node stops. Connections are not reset: they may come back.
    pub fn shut_down(&mut self, now: Now) {
        self.enforcer.shut_down(now);
    }

    /// Hands out what the others left behind: cuts, lapsed peers, events, counters.
    fn finish(&mut self, now: Now, out: &mut Out<'_>) {
        if self.enforcer.has_to_shut() {
            self.enforcer.shut(now);
            self.tell(PlaneEvent::Shut);
        }
        while let Some(slot) = self.enforcer.pop_lapsed() {
            if self.enforcer.peer_if_any(slot).is_some_and(|peer| !peer.is_entitled(now)) {
                self.links.set_entitled(slot, false);
            }
        }
        while let Some(cut) = self.enforcer.pop_cut() {
            let from_peer = FiveTuple {
                protocol: postern_common::net::Protocol::Tcp,
                source: cut.remote,
                source_port: cut.remote_port,
                destination: cut.local,
                destination_port: cut.local_port,
            };
            let [first, second] = cut.sequences;
            for sequence in [Some(first), (second != first).then_some(second)].into_iter().flatten() {
                let reset = reset_flow(&from_peer, sequence, cut.acknowledgement.unwrap_or(0));
                if out.tun.push_own(reset.as_bytes()).is_err() {
                    self.enforcer.counters.drop(crate::DropReason::TunBatchFull);
                }
            }
        }
        while self.links.has_events()
            && let Some(event) = self.links.pop_event()
        {
            if let PlaneEvent::EndpointMoved { device, endpoint } = event
                && let Some(slot) = self.enforcer.slot_of(device)
            {
                self.enforcer.peer_mut(slot).outer = Some(endpoint);
            }
            self.tell(event);
        }
        self.enforcer.sum_counters();
        self.links.drain_counters(&mut self.enforcer.counters);
    }

    fn tell(&mut self, event: PlaneEvent) {
        if self.events.len() >= self.settings.event_capacity {
            self.events.pop_front();
            self.enforcer.counters.events_dropped += 1;
        }
        self.events.push_back(event);
    }
}
