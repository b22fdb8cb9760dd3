//! WireGuard keys of nodes: a new one beside the old, and the old one's end.
//!
//! ```text
//! RotateKey{new} --> for every peer: pair (peer's newest, new), the peer first
//! peer acknowledges --> the rotating node is told --> it acknowledges --> after an overlap the older pairs go
//! a key in no pair and not the newest --> leaves the device's record; its node is told and can wipe it
//! ```
//!
//! The overlap is there because an acknowledged pair is not yet a WireGuard session: traffic stays on the old one until
//! the first handshake of the new one is confirmed.

use postern_common::{
    id::DeviceId,
    key::WireGuardPublicKey,
    time::{Monotonic, Now},
};

use super::{
    core::Core,
    leases::{Turn, Urgency},
    peering::{PeeringName, can_learn},
    timers::Due,
};
use crate::{
    decision::Extend,
    records::{AuditEvent, DeviceKind, StoreChange},
};

/// The most keys that one device may have in use. A rotation an hour, with stock clients that keep a node's old key for
/// eight hours, needs ten; a node that asks for more keeps the keys it has.
const MAX_KEYS: usize = 12;

impl Core {
    /// Tells whether a key can become a device's: nobody else's, and not the all-zero point.
    pub(super) fn key_is_free(&self, device: Option<DeviceId>, key: WireGuardPublicKey) -> bool {
        let owner = self.registry.device_by_wireguard_key(&key);
        *key.as_bytes() != [0; 32] && (owner.is_none() || owner == device)
    }

    /// Adds a key to a device, in front of those that it has. Nothing happens if the device may not take part, the key
    /// is somebody else's, or the device has too many.
    pub(super) fn add_key(&mut self, id: DeviceId, key: WireGuardPublicKey, now: Now) {
        let Some(device) = self.registry.device(id).cloned() else { return };
        if device.wireguard_keys.contains(&key) {
            return;
        }
        // A machine in quarantine goes on rotating: its keys open nothing, and are the right ones when it is released.
        let permitted = self.registry.would_take_part(&device) && self.key_is_free(Some(id), key);
        if !permitted || device.wireguard_keys.len() >= MAX_KEYS {
            self.counters.keys_refused += 1;
            return;
        }
        let denied = self.key_denies(&device, now.wall).is_some();
        self.registry.change_device(id, &mut self.out, |device| {
            device.wireguard_keys.insert(0, key);
            device.key_since = Some(now.wall);
        });
        self.out.audit(AuditEvent::KeyAdded { device: id, fingerprint: key.fingerprint() });
        for peer in self.peers(id) {
            self.pair_newest(peer, id);
        }
        self.tell_own(id);
        self.retire_unused_keys(id, now);
        if denied {
            self.decide(id, Extend::Yes, now);
        }
    }

    /// Takes in the keys that a node says it has: those that it lost are of no use any more.
    pub(super) fn reconcile_keys(&mut self, id: DeviceId, told: &[WireGuardPublicKey], now: Now) {
        if let Some(newest) = told.first() {
            self.add_key(id, *newest, now);
        }
        let Some(device) = self.registry.device(id) else { return };
        let lost: Vec<WireGuardPublicKey> =
            device.wireguard_keys.iter().filter(|key| !told.contains(key)).copied().collect();
        self.drop_keys(id, &lost, now);
    }

    /// Forgets every key of a device: nobody is signed in on it any more.
    pub(super) fn forget_keys(&mut self, id: DeviceId, now: Now) {
        let keys = self.registry.device(id).map(|device| device.wireguard_keys.clone()).unwrap_or_default();
        self.drop_keys(id, &keys, now);
    }

    fn drop_keys(&mut self, id: DeviceId, keys: &[WireGuardPublicKey], now: Now) {
        if keys.is_empty() {
            return;
        }
        self.registry
            .change_device(id, &mut self.out, |device| device.wireguard_keys.retain(|key| !keys.contains(key)));
        for key in keys {
            self.out.audit(AuditEvent::KeyRetired { device: id, fingerprint: key.fingerprint() });
        }
        for peer in self.peers(id) {
            let Some(peering) = self.peerings.get_mut(&PeeringName::of(id, peer)) else { continue };
            let gone: Vec<_> = keys.iter().flat_map(|key| peering.drop_key(*key)).collect();
            for pair in &gone {
                self.out.store(StoreChange::DeletePair(pair.name()));
            }
            if !gone.is_empty() {
                self.mark(peer, id, Urgency::Closes, Turn::First);
                self.mark(id, peer, Urgency::Closes, Turn::Second);
                self.pair_newest(peer, id);
                self.retire_unused_keys(peer, now);
            }
        }
        self.tell_own(id);
    }

    /// Lets pairs between two devices go that are older than one which both have known for the overlap.
    pub(super) fn retire_pairs(&mut self, one: DeviceId, other: DeviceId, now: Now) {
        let stock = [one, other].iter().any(|id| self.registry.device(*id).is_some_and(|d| !can_learn(d.kind)));
        let Some(peering) = self.peerings.get_mut(&PeeringName::of(one, other)).filter(|_| !stock) else { return };
        let gone = peering.retire(self.config.key_overlap, now.monotonic);
        if let Some(known) = peering.older_pairs_wait_since() {
            self.schedule_retirement(one, other, known);
        }
        if gone.is_empty() {
            return;
        }
        for pair in &gone {
            self.out.store(StoreChange::DeletePair(pair.name()));
        }
        self.mark(one, other, Urgency::Opens, Turn::First);
        self.mark(other, one, Urgency::Opens, Turn::Second);
        self.retire_unused_keys(one, now);
        self.retire_unused_keys(other, now);
    }

    /// Lets a device's keys go that are in no pair, but for the newest.
    pub(super) fn retire_unused_keys(&mut self, id: DeviceId, _now: Now) {
        let Some(device) = self.registry.device(id) else { return };
        if device.kind == DeviceKind::StockClient || device.wireguard_keys.len() < 2 {
            return;
        }
        let peers = self.peers(id);
        let used = |key: &WireGuardPublicKey| {
            peers.iter().filter_map(|peer| self.peerings.get(&PeeringName::of(id, *peer))).any(|p| p.uses(*key))
        };
        let unused: Vec<WireGuardPublicKey> =
            device.wireguard_keys.iter().skip(1).filter(|key| !used(key)).copied().collect();
        if unused.is_empty() {
            return;
        }
        self.registry
            .change_device(id, &mut self.out, |device| device.wireguard_keys.retain(|key| !unused.contains(key)));
        for key in unused {
            self.out.audit(AuditEvent::KeyRetired { device: id, fingerprint: key.fingerprint() });
        }
        self.tell_own(id);
    }

    /// Schedules the end of pairs that are older than one which both ends know since then.
    pub(super) fn schedule_retirement(&mut self, one: DeviceId, other: DeviceId, known: Monotonic) {
        let PeeringName(one, other) = PeeringName::of(one, other);
        self.timers.set_earlier(Due::Retire(one, other), known.saturating_add(self.config.key_overlap));
    }

    /// Returns the devices with which a device has a peering.
    pub(super) fn peers(&self, id: DeviceId) -> Vec<DeviceId> {
        self.peers_of.get(&id).into_iter().flatten().copied().collect()
    }

    /// Notes that a node has to be told something new of itself.
    pub(super) fn tell_own(&mut self, id: DeviceId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.own_dirty = true;
            self.flush_then.push_back(id);
        }
    }
}
