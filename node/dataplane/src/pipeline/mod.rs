//! The way of a packet.
use std::net::SocketAddr;

use postern_common::{
    flow_record::FlowRecord,
    grant::VerifiedGrants,
    key::WireGuardPrivateKey,
    net::FiveTuple,
    time::{Monotonic, Now},
};

use crate::{
    Applied, Ceiling, Counters, FlowStatus, LocalExplanation, PeerStatus, PlaneEvent, Settings, WhoIs,
    enforce::Enforcer,
    packet::{
        batch::{TunBatch, UdpBatch},
        offload::VirtioHeader,
    },
    wireguard::{Tunnels, WireGuard},
};

/// Where the data plane puts what it gives.
#[derive(Debug)]
pub struct Out<'a> {
    /// Datagrams for the network.
    pub udp: &'a mut UdpBatch,
    /// Packets for this machine.
    pub tun: &'a mut TunBatch,
}

/// The data plane of one node.
#[derive(Debug)]
pub struct DataPlane<W: Tunnels = WireGuard> {
    enforcer: Enforcer,
    tunnels: W,
}

impl DataPlane<WireGuard> {
    /// Makes a data plane that lets nothing pass and answers nobody.
    pub fn new(settings: Settings, now: Now) -> Self {
        Self { enforcer: Enforcer::new(&settings, now), tunnels: WireGuard::default() }
    }
}

impl<W: Tunnels> DataPlane<W> {
    /// Takes this node's private keys, newest first. Keys that are not named any more are wiped, with their sessions.
    pub fn set_local_keys(&mut self, _keys: &[WireGuardPrivateKey], _now: Now) {}

    /// Sets the owner's upper bound on what is let in; flows beyond it are cut.
    pub fn set_ceiling(&mut self, ceiling: Ceiling, now: Now, _out: &mut Out<'_>) {
        self.enforcer.set_ceiling(ceiling, now);
    }

    /// Enforces a verified document.
    pub fn apply(&mut self, grants: VerifiedGrants, _now: Now, _out: &mut Out<'_>) -> Applied {
        Applied { position: grants.position(), compiled: vec![], removed: vec![], renewed: 0, unchanged: 0, cut: 0 }
    }

    /// Takes one frame of the TUN: a packet of up to 64 KiB behind its virtio header.
    pub fn handle_tun(&mut self, _header: VirtioHeader, _packet: &mut [u8], _now: Now, _out: &mut Out<'_>) {}

    /// Takes one datagram of the network.
    pub fn handle_udp(&mut self, _datagram: &mut [u8], _from: SocketAddr, _now: Now, _out: &mut Out<'_>) {}

    /// Does what is due.
    pub fn handle_timeout(&mut self, _now: Now, _out: &mut Out<'_>) {}

    /// Returns when [`DataPlane::handle_timeout`] has work.
    pub fn poll_timeout(&self) -> Monotonic {
        Monotonic::NEVER
    }

    /// Hands over a flow record.
    pub fn poll_record(&mut self) -> Option<FlowRecord> {
        self.enforcer.poll_record()
    }

    /// Hands over an event.
    pub fn poll_event(&mut self) -> Option<PlaneEvent> {
        None
    }

    /// Returns the counters.
    pub fn counters(&self) -> &Counters {
        &self.enforcer.counters
    }

    /// Lists the live flows.
    pub fn flows(&self) -> Vec<FlowStatus> {
        self.enforcer.flows()
    }

    /// Lists the peers.
    pub fn peers(&self) -> Vec<PeerStatus> {
        vec![]
    }

    /// Tells who is behind an inner address, and which live flow stands at that port.
    pub fn whois(&self, remote: SocketAddr) -> Option<WhoIs> {
        self.enforcer.whois(remote)
    }

    /// Tells whether `flow` may be opened now, and under what.
    pub fn explain(&mut self, flow: FiveTuple, now: Now) -> LocalExplanation {
        self.enforcer.explain(flow, now)
    }

    /// Ends every flow with a record, because the node stops.
    pub fn shut_down(&mut self, now: Now) {
        self.enforcer.shut_down(now);
    }
}
