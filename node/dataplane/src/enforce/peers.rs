//! Who the peers are, which addresses they own, and how a change of them takes effect.

use std::net::{IpAddr, SocketAddr};

use postern_common::{
    flow_record::{FlowEnd, Originator, PeerIdentity},
    grant::{OwnGrant, PeerGrant},
    id::{DeviceId, Tag},
    time::{Deadline, Monotonic, Now},
};

use super::{Enforcer, facts::PeerSlot, rules::Rules, scans::Refused};
use crate::settings::Ceiling;

/// A peer, as far as policy is concerned.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) identity: PeerIdentity,
    pub(crate) tags: Vec<Tag>,
    pub(crate) addresses: Vec<IpAddr>,
    /// The outer address from which it last proved to speak.
    pub(crate) outer: Option<SocketAddr>,
    /// What the controller was told of that.
    pub(crate) outer_told: super::seen::Told,
    pub(crate) generation: u64,
    pub(crate) inbound: Rules,
    pub(crate) outbound: Rules,
    /// When the next of its permissions expires, as it stands in the list of expiries.
    pub(crate) expires: Monotonic,
    /// What was refused to it here.
    pub(crate) refused: Refused,
}

impl Peer {
    /// Returns the rules for flows that `originator` opens.
    pub(crate) fn rules(&mut self, originator: Originator) -> &mut Rules {
        match originator {
            Originator::Local => &mut self.outbound,
            Originator::Peer => &mut self.inbound,
        }
    }

    /// Tells whether any permission lives. A peer without one is not there: no handshake is answered (invariant 2).
    pub(crate) fn is_entitled(&self, now: Now) -> bool {
        self.inbound.deadlines().chain(self.outbound.deadlines()).any(|until| !until.has_passed(now))
    }
}

/// What a change did to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upserted {
    /// Its rules were compiled; they have a new generation.
    Compiled,
    /// Only deadlines moved.
    Renewed,
    /// Policy has nothing new.
    Unchanged,
}

impl Enforcer {
    /// Takes what this node is told of itself. Flows of addresses that it owns no longer, or of another subject, are
    /// cut.
    pub(crate) fn set_own(&mut self, own: OwnGrant<Deadline>, now: Now) {
        let subject_changed = self.own.as_ref().is_some_and(|known| known.subject != own.subject);
        let addresses = own.addresses.clone();
        self.scans.set_own(own.scan.as_ref());
        self.own = Some(own);
        for slot in self.slots() {
            self.end_flows(slot, now, |flow| {
                if subject_changed {
                    Some(FlowEnd::SubjectChanged)
                } else if addresses.contains(&flow.key.local) {
                    None
                } else {
                    Some(FlowEnd::Revoked)
                }
            });
        }
    }

    /// Tells whether `address` is this node's.
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        self.own.as_ref().is_some_and(|own| own.addresses.contains(&address))
    }

    /// Sets the owner's ceiling and judges every flow again.
    pub(crate) fn set_ceiling(&mut self, ceiling: Ceiling, now: Now) {
        if self.ceiling == ceiling {
            return;
        }
        self.ceiling = ceiling;
        for slot in self.slots() {
            self.peer_mut(slot).generation = self.next_generation;
            self.next_generation += 1;
            self.rejudge_flows(slot, now);
        }
    }

    /// Takes a peer that is new or changed. Only what differs is compiled; live flows are judged again if anything did.
    pub(crate) fn upsert(&mut self, grant: &PeerGrant<Deadline>, now: Now) -> (PeerSlot, Upserted) {
        let identity = PeerIdentity {
            device: grant.device,
            machine: grant.name.clone(),
            subject: grant.subject,
            subject_name: grant.subject_name.clone(),
        };
        let Some(slot) = self.devices.get(&grant.device).copied() else {
            return (self.insert_peer(identity, grant, now), Upserted::Compiled);
        };
        let peer = self.peer_mut(slot);
        peer.refused.set(grant.scan.as_ref());
        let changed = peer.identity.subject != identity.subject
            || peer.addresses != grant.addresses
            || peer.tags != grant.tags
            || !peer.inbound.has_content_of(&grant.inbound)
            || !peer.outbound.has_content_of(&grant.outbound);
        let moved = !peer.inbound.has_deadlines_of(&grant.inbound) || !peer.outbound.has_deadlines_of(&grant.outbound);
        let done = if changed {
            if peer.identity.subject != identity.subject {
                self.end_flows(slot, now, |_| Some(FlowEnd::SubjectChanged));
            }
            self.recompile(slot, identity, grant);
            self.peer_mut(slot).outer_told = None; // under what it had before, the controller may not have taken it
            self.rejudge_flows(slot, now);
            Upserted::Compiled
        } else {
            peer.identity = identity;
            if moved {
                peer.inbound.renew(&grant.inbound);
                peer.outbound.renew(&grant.outbound);
                // A 'renewal' may also shorten: what has passed already ends here.
                self.end_expired(slot, now);
                self.counters.peers_renewed += 1;
                Upserted::Renewed
            } else {
                return (slot, Upserted::Unchanged);
            }
        };
        self.schedule_expiry(slot, now);
        (slot, done)
    }

    /// Removes a peer and cuts its flows.
    pub(crate) fn remove(&mut self, device: DeviceId, now: Now) -> Option<PeerSlot> {
        let slot = self.devices.remove(&device)?;
        self.end_flows(slot, now, |_| Some(FlowEnd::Revoked));
        let peer = self.peers[slot.0 as usize].take()?;
        self.expiries.remove(&(peer.expires, slot));
        peer.inbound.meters().for_each(|meter| self.meters.let_go(meter, now.monotonic));
        self.scans.were_permitted(&peer.inbound, &peer.outbound, &peer.addresses, now.monotonic);
        self.scans.leave(device, peer.refused);
        for address in &peer.addresses {
            self.disown(*address, slot);
        }
        self.free_slots.push(slot);
        Some(slot)
    }

    /// Returns the peer that owns `address`.
    pub(crate) fn owner(&self, address: IpAddr) -> Option<PeerSlot> {
        self.owners.get(&address).copied()
    }

    /// Returns the slot of a device.
    pub(crate) fn slot_of(&self, device: DeviceId) -> Option<PeerSlot> {
        self.devices.get(&device).copied()
    }

    /// Lists the devices that are peers.
    pub(crate) fn devices(&self) -> impl Iterator<Item = DeviceId> + '_ {
        self.devices.keys().copied()
    }

    /// Lends a peer.
    ///
    /// # Panics
    /// If `slot` has outlived its peer, which is a bug: the caller removes every trace of a peer with the peer.
    pub(crate) fn peer(&self, slot: PeerSlot) -> &Peer {
        self.peers[slot.0 as usize].as_ref().expect("a slot is not kept beyond its peer")
    }

    pub(crate) fn peer_mut(&mut self, slot: PeerSlot) -> &mut Peer {
        self.peers[slot.0 as usize].as_mut().expect("a slot is not kept beyond its peer")
    }

    /// Lends a peer if the slot holds one.
    pub(crate) fn peer_if_any(&self, slot: PeerSlot) -> Option<&Peer> {
        self.peers.get(slot.0 as usize)?.as_ref()
    }

    fn insert_peer(&mut self, identity: PeerIdentity, grant: &PeerGrant<Deadline>, now: Now) -> PeerSlot {
        let slot = self.free_slots.pop().unwrap_or_else(|| {
            self.peers.push(None);
            PeerSlot((self.peers.len() - 1) as u32)
        });
        self.devices.insert(grant.device, slot);
        self.peers[slot.0 as usize] = Some(Peer {
            identity: identity.clone(),
            tags: Vec::new(),
            addresses: Vec::new(),
            outer: None,
            outer_told: None,
            generation: 0,
            inbound: Rules::default(),
            outbound: Rules::default(),
            expires: Monotonic::NEVER,
            refused: self.scans.come_back(grant.device),
        });
        self.peer_mut(slot).refused.set(grant.scan.as_ref());
        self.recompile(slot, identity, grant);
        self.schedule_expiry(slot, now);
        slot
    }

    fn recompile(&mut self, slot: PeerSlot, identity: PeerIdentity, grant: &PeerGrant<Deadline>) {
        // What a peer owns always stands in its own list: no walk over everybody's addresses, or a first snapshot would
        // cost the square of its peers, on the thread that packets wait for.
        let former = std::mem::take(&mut self.peer_mut(slot).addresses);
        for address in former.into_iter().filter(|address| !grant.addresses.contains(address)) {
            self.disown(address, slot);
        }
        for address in grant.addresses.iter().filter(|address| !self.is_own(**address)).copied().collect::<Vec<_>>() {
            // The latest statement wins; whoever owned the address before can use it no longer.
            if let Some(before) = self.owners.insert(address, slot).filter(|before| *before != slot) {
                self.peer_mut(before).addresses.retain(|owned| *owned != address);
                self.end_flows(before, self.clock, |flow| (flow.key.remote == address).then_some(FlowEnd::Revoked));
            }
        }
        let generation = self.next_generation;
        self.next_generation += 1;
        self.counters.peers_compiled += 1;
        let peer = self.peer_mut(slot);
        peer.identity = identity;
        peer.tags.clone_from(&grant.tags);
        peer.addresses.clone_from(&grant.addresses);
        peer.generation = generation;
        let before = std::mem::replace(&mut peer.inbound, Rules::compile(grant.inbound.clone()));
        let reached = std::mem::replace(&mut peer.outbound, Rules::compile(grant.outbound.clone()));
        self.scans.were_permitted(&before, &reached, &grant.addresses, self.clock.monotonic);
        self.hold_meters(slot, &before);
    }

    /// Gives the peer's permissions their meters, and then takes back those of the permissions before: what stays keeps its counts.
    fn hold_meters(&mut self, slot: PeerSlot, before: &Rules) {
        let now = self.clock.monotonic;
        let Some(peer) = self.peers[slot.0 as usize].as_mut() else { return };
        let subject = peer.identity.subject;
        let meters = &mut self.meters;
        peer.inbound.meter(|permission| {
            let meter = meters.hold(subject, permission, now);
            (meter, meters.shut_by(meter))
        });
        before.meters().for_each(|meter| meters.let_go(meter, now));
    }

    /// Takes an address from a peer, unless another peer owns it by now.
    fn disown(&mut self, address: IpAddr, slot: PeerSlot) {
        if self.owners.get(&address) == Some(&slot) {
            self.owners.remove(&address);
        }
    }

    /// Notes when the next permission of the peer expires. What has passed already is not noted: the caller has judged
    /// the peer's flows again at `now`.
    pub(crate) fn schedule_expiry(&mut self, slot: PeerSlot, now: Now) {
        let peer = self.peer(slot);
        let coming = |until: Deadline| now.monotonic.saturating_add(until.remaining(now));
        let deadlines = peer.inbound.deadlines().chain(peer.outbound.deadlines());
        let next = deadlines.filter(|until| !until.has_passed(now)).map(coming).min().unwrap_or(Monotonic::NEVER);
        let before = std::mem::replace(&mut self.peer_mut(slot).expires, next);
        self.expiries.remove(&(before, slot));
        if next != Monotonic::NEVER {
            self.expiries.insert((next, slot));
        }
    }
}
