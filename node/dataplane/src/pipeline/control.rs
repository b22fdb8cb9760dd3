//! Documents, keys and the ceiling.

use std::net::SocketAddr;

use postern_common::{
    grant::{Change, PeerGrant, VerifiedGrants},
    id::DeviceId,
    key::WireGuardPrivateKey,
    time::{Deadline, Now},
};

use super::{DataPlane, Out};
use crate::{enforce::Upserted, settings::Ceiling, status::Applied, wireguard::Tunnels};

impl<W: Tunnels> DataPlane<W> {
    /// Takes this node's private keys, newest first. Keys that are not named any more are wiped, and their sessions
    /// with them.
    pub fn set_local_keys(&mut self, keys: &[WireGuardPrivateKey], now: Now) {
        self.links.set_local_keys(keys, now.monotonic);
    }

    /// Sets the owner's upper bound on what is let in; live flows beyond it are cut.
    pub fn set_ceiling(&mut self, ceiling: Ceiling, now: Now, out: &mut Out<'_>) {
        self.enforcer.set_ceiling(ceiling, now);
        self.finish(now, out);
    }

    /// Lists the peers with which packets were exchanged lately, and where they are.
    pub fn paths_in_use(&self, now: Now) -> Vec<(DeviceId, SocketAddr)> {
        self.links.paths_in_use(now.monotonic).collect()
    }

    /// Notes how long an inner packet may be, in bytes, on the way to a peer that is at `endpoint`. A longer one that must
    /// not be fragmented is answered with ICMP 'packet too big' (RFC 1191, RFC 8201).
    pub fn set_path_mtu(&mut self, device: DeviceId, endpoint: SocketAddr, mtu: u16) {
        if let Some(slot) = self.enforcer.slot_of(device) {
            self.links.set_path_mtu(slot, endpoint, mtu);
        }
    }

    /// Enforces a verified document. When it returns, what is gone is gone: sessions destroyed, flows cut, and the
    /// RSTs for local sockets stand in `out.tun`.
    pub fn apply(&mut self, grants: VerifiedGrants, now: Now, out: &mut Out<'_>) -> Applied {
        let mut applied = Applied {
            position: grants.position(),
            compiled: Vec::new(),
            removed: Vec::new(),
            renewed: 0,
            unchanged: 0,
            cut: 0,
            cut_inbound: 0,
        };
        let now = self.not_before(now);
        self.enforcer.watch_clock(now);
        let is_another_life = self.enforcer.note_life(applied.position.epoch);
        let counters = &self.enforcer.counters;
        let (cut_before, inbound_before) = (counters.flows_cut, counters.inbound_flows_cut);
        let (own, peers, removed) = match grants.into_change() {
            Change::Snapshot { own, peers } => {
                let listed: std::collections::HashSet<DeviceId> = peers.iter().map(|peer| peer.device).collect();
                let gone: Vec<_> = self.enforcer.devices().filter(|device| !listed.contains(device)).collect();
                (Some(own), peers, gone)
            }
            Change::Delta { previous: _, own, upsert, remove } => (own, upsert, remove),
        };
        // Closing comes before opening: an address may go from one peer to another in one document.
        for device in removed {
            self.remove_peer(device, &mut applied, now);
        }
        if let Some(own) = own {
            self.enforcer.set_own(own, now);
        }
        for peer in &peers {
            self.upsert_peer(peer, &mut applied, now);
        }
        if is_another_life {
            self.enforcer.life_is_told();
        }
        applied.cut = (self.enforcer.counters.flows_cut - cut_before) as usize;
        applied.cut_inbound = self.enforcer.counters.inbound_flows_cut - inbound_before;
        self.finish(now, out);
        applied
    }

    fn remove_peer(&mut self, device: DeviceId, applied: &mut Applied, now: Now) {
        let Some(slot) = self.enforcer.remove(device, now) else { return };
        self.links.remove(slot);
        self.outbound_fragments.retain(|_, facts| facts.key.peer != slot);
        self.inbound_fragments.retain(|_, facts| facts.key.peer != slot);
        applied.removed.push(device);
    }

    fn upsert_peer(&mut self, grant: &PeerGrant<Deadline>, applied: &mut Applied, now: Now) {
        let (slot, done) = self.enforcer.upsert(grant, now);
        match done {
            Upserted::Compiled => applied.compiled.push(grant.device),
            Upserted::Renewed => applied.renewed += 1,
            Upserted::Unchanged => applied.unchanged += 1,
        }
        self.links.upsert(slot, grant.device, &grant.pairs, &grant.endpoints, now.monotonic);
        self.links.set_entitled(slot, self.enforcer.peer(slot).is_entitled(now));
    }
}
