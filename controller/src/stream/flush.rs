//! From the newest state to documents: what each node concerned is sent, and what an acknowledgement sets going.

use std::{collections::HashSet, time::Duration};

use postern_common::{
    grant::{Change, DOCUMENT_VERSION, GrantDocument, OwnGrant, PeerGrant, Permission, Position, sign},
    id::DeviceId,
    protocol::{Refusal, ToNode},
    time::{Deadline, Lifetime, Monotonic, Now, WallTime},
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::{
    core::Core,
    leases::{Turn, Urgency},
    node::{Digest, Outstanding, SentPeer},
    peering::{PeeringName, View},
    timers::Due,
};
use crate::{
    decision::{Permissions, earliest, loses},
    records::{PairName, Standing, StoreChange},
};

fn digest(of: &impl Serialize) -> Digest {
    let text = serde_json::to_vec(of).expect("grants have no part without a JSON form");
    let full: [u8; 32] = Sha256::digest(text).into();
    let mut short = [0; 16];
    short.copy_from_slice(&full[..16]);
    short
}

fn lifetime(until: Deadline, nonce_received: Monotonic) -> Lifetime {
    // Rounded down: a permission may end a millisecond early, never late.
    let remaining = until.monotonic.since(nonce_received);
    Lifetime { remaining_ms: u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX), not_after: until.wall }
}

/// What is about to be sent of one peer.
struct Entry {
    peer: DeviceId,
    grant: Option<(PeerGrant<Deadline>, SentPeer)>,
}

impl Core {
    /// Sends every node concerned what is new for it, destinations first.
    pub(super) fn flush(&mut self, now: Now) {
        self.measure_closings(now);
        while let Some(node) = self.flush_first.pop_front().or_else(|| self.flush_then.pop_front()) {
            self.flush_from_the_end(node, now);
        }
    }

    /// Sends a node what is new for it, after the nodes on which something closes that it opens there. A node is told in
    /// one document what closes on it and what it may not open any more: where doors follow each other from node to node,
    /// the last is told first. In a circle there is no last; all of it is sent in one go.
    fn flush_from_the_end(&mut self, node: DeviceId, now: Now) {
        let mut entered = HashSet::from([node]);
        let mut path = vec![(node, self.destinations_that_close(node))];
        while let Some((node, destinations)) = path.last_mut() {
            let node = *node;
            match destinations.pop() {
                Some(next) if entered.insert(next) => path.push((next, self.destinations_that_close(next))),
                Some(_) => {}
                None => {
                    path.pop();
                    self.flush_node(node, now);
                }
            }
        }
    }

    /// Lists the nodes that have yet to be told that a service closes on them which `source` could open.
    fn destinations_that_close(&self, source: DeviceId) -> Vec<DeviceId> {
        let closes = |destination: &&DeviceId| {
            let Some(node) = self.nodes.get(destination) else { return false };
            let Some(sent) =
                node.peers.get(&source).filter(|_| node.dirty.contains(&source) && node.urgent && node.has_room())
            else {
                return false;
            };
            let peering = self.peerings.get(&PeeringName::of(source, **destination));
            // Even what has passed by the controller's clocks: the wall clock may have been set forward here alone.
            peering.map_or(!sent.inbound.is_empty(), |peering| {
                loses(&sent.inbound, &peering.edge_to(**destination).wanted)
            })
        };
        let source = self.nodes.get(&source).filter(|source| source.urgent);
        source.into_iter().flat_map(|source| &source.dirty).filter(closes).copied().collect()
    }

    fn peer_grant(&self, node: DeviceId, peer: DeviceId, now: Now) -> Option<(PeerGrant<Deadline>, View)> {
        let view = self.peerings.get(&PeeringName::of(node, peer))?.view(node, now)?;
        let device = self.registry.device(peer)?;
        let list = |permissions: &Permissions| permissions.iter().cloned().collect::<Vec<Permission<Deadline>>>();
        let grant = PeerGrant {
            device: peer,
            name: device.name.clone(),
            subject: device.owner,
            subject_name: self.registry.subject_name(device.owner),
            tags: device.tags.iter().cloned().collect(),
            addresses: device.addresses.to_vec(),
            pairs: view.pairs.clone(),
            endpoints: device.endpoints.clone(),
            inbound: list(&view.inbound),
            outbound: list(&view.outbound),
            // Of a machine that may open nothing here, nothing is to be told.
            scan: self.leases.get(&peer).filter(|_| !view.inbound.is_empty()).and_then(|lease| lease.scan.clone()),
        };
        Some((grant, view))
    }

    fn entry(&self, node: DeviceId, peer: DeviceId, generation: u64, now: Now) -> Entry {
        let grant = self.peer_grant(node, peer, now).map(|(grant, view)| {
            let sent = SentPeer {
                digest: digest(&grant),
                generation,
                earliest: earliest(&view.inbound).min(earliest(&view.outbound)),
                pairs: view.pairs.iter().map(|pair| PairName::of(pair.local, pair.remote)).collect(),
                inbound: view.inbound,
            };
            (grant, sent)
        });
        Entry { peer, grant }
    }

    fn flush_node(&mut self, id: DeviceId, now: Now) {
        let Some(node) = self.nodes.get(&id) else { return };
        if !node.has_room() || !node.wants_more() {
            return;
        }
        let Some(device) = self.registry.device(id) else { return };
        let own = self.own_grant(device);
        let own_digest = digest(&own);
        let snapshot = node.snapshot_wanted;
        let enforced = node.enforced.map_or(0, |position| position.generation);
        let (generation, own_news) = (node.generation + 1, node.own != Some(own_digest));
        let peers = if snapshot { self.peers(id) } else { node.dirty.iter().copied().collect() };
        let entries: Vec<Entry> = peers.into_iter().map(|peer| self.entry(id, peer, generation, now)).collect();

        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.dirty.clear();
        node.own_dirty = false;
        node.snapshot_wanted = false;
        node.urgent = false;
        if snapshot {
            node.peers.clear();
        }
        let (mut upsert, mut remove, mut told, mut settled) = (vec![], vec![], vec![], vec![]);
        for Entry { peer, grant } in entries {
            match (grant, node.peers.get(&peer)) {
                (Some((_, new)), Some(old)) if new.digest == old.digest => {
                    if old.generation <= enforced {
                        settled.push((peer, old.inbound.clone(), old.pairs.clone()));
                    }
                }
                (Some((grant, new)), _) => {
                    node.peers.insert(peer, new);
                    told.push(peer);
                    upsert.push(grant);
                }
                (None, Some(_)) => {
                    node.peers.remove(&peer);
                    remove.push(peer);
                }
                (None, None) => {}
            }
        }
        let revocations = std::mem::take(&mut node.revocations);
        if !snapshot && !own_news && upsert.is_empty() && remove.is_empty() {
            // There was nothing new after all. What a revocation wanted is enforced, or is in a document on its way.
            match node.outstanding.back_mut() {
                Some(document) => document.revocations.extend(revocations),
                None => self.revocations_acknowledged(id, &revocations, 0, now),
            }
        } else {
            let previous = node.generation;
            node.generation = generation;
            node.own = Some(own_digest);
            let sent_at = now.monotonic;
            node.outstanding.push_back(Outstanding { generation, sent_at, peers: told, revocations });
            let received = node.nonce_received;
            let wire_peer = |grant: PeerGrant<Deadline>| grant.map_time(&|until| lifetime(until, received));
            let upsert: Vec<PeerGrant<Lifetime>> = upsert.into_iter().map(wire_peer).collect();
            let wire_own = |own: OwnGrant<WallTime>| {
                own.map_time(&|wall| lifetime(crate::decision::deadline(wall, now), received))
            };
            self.counters.snapshots += u64::from(snapshot);
            self.counters.deltas += u64::from(!snapshot);
            let change = if snapshot {
                Change::Snapshot { own: wire_own(own), peers: upsert }
            } else {
                self.counters.delta_peers += (upsert.len() + remove.len()) as u64;
                Change::Delta { previous, own: own_news.then(|| wire_own(own)), upsert, remove }
            };
            self.send_document(id, generation, change, now);
        }
        for (peer, inbound, pairs) in settled {
            self.settle(id, peer, &inbound, &pairs, now);
        }
    }

    fn send_document(&mut self, id: DeviceId, generation: u64, change: Change<Lifetime>, now: Now) {
        let Some(node) = self.nodes.get(&id) else { return };
        let document = GrantDocument {
            version: DOCUMENT_VERSION,
            audience: id,
            position: Position { epoch: self.meta.epoch, generation },
            nonce: node.nonce,
            issued_at: now.wall,
            policy_revision: self.meta.policy_revision,
            change,
        };
        let signed = sign(&document, &self.signing);
        self.out.send(node.stream, ToNode::Grants { signed });
        self.generations.insert(id, generation);
        let (first, expiry) = (node.outstanding.front().map(|document| document.sent_at), node.next_expiry());
        if let Some(sent_at) = first {
            self.timers.set(Due::Acknowledge(id), sent_at.saturating_add(self.config.acknowledge_within));
        }
        if expiry < Monotonic::NEVER {
            self.timers.set(Due::Expiry(id), expiry);
        }
    }

    /// Takes in that a node enforces everything up to `position`, and how many live flows it cut by that.
    pub(super) fn enforced(&mut self, id: DeviceId, position: Position, cut: u64, now: Now) {
        let epoch = self.meta.epoch;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if position.epoch != epoch || position.generation > node.generation {
            self.counters.messages_refused += 1;
            return;
        }
        let done = node.acknowledged(position.generation);
        if done.is_empty() {
            return;
        }
        node.enforced = Some(position);
        match node.outstanding.front() {
            Some(next) => {
                let at = next.sent_at.saturating_add(self.config.acknowledge_within);
                self.timers.set(Due::Acknowledge(id), at);
            }
            None => self.timers.cancel(Due::Acknowledge(id)),
        }
        for document in done {
            for peer in document.peers {
                // Only what the node was told last of this peer counts: an older document may have opened what a
                // newer one, still on its way, has closed.
                let Some(sent) = self.nodes.get(&id).and_then(|node| node.peers.get(&peer)) else { continue };
                if sent.generation == document.generation {
                    let (inbound, pairs) = (sent.inbound.clone(), sent.pairs.clone());
                    self.settle(id, peer, &inbound, &pairs, now);
                }
            }
            self.revocations_acknowledged(id, &document.revocations, cut, now);
        }
        self.flush_then.push_back(id);
        let revoked = self.registry.device(id).is_some_and(|d| matches!(d.standing, Standing::Revoked { .. }));
        if revoked && self.nodes.get(&id).is_some_and(|node| node.is_current()) {
            self.close_node(id, Refusal::UnknownDevice, "an administrator has revoked this machine", now);
        }
    }

    /// Lets the peer know what it may know, now that `node` enforces its side.
    fn settle(&mut self, node: DeviceId, peer: DeviceId, inbound: &Permissions, pairs: &[PairName], now: Now) {
        let Some(peering) = self.peerings.get_mut(&PeeringName::of(node, peer)) else { return };
        let done = peering.acknowledge(node, inbound, pairs, now.monotonic);
        for pair in done.pairs {
            self.out.store(StoreChange::PutPair(pair));
        }
        if done.peer_concerned {
            self.mark(peer, node, Urgency::Opens, Turn::Second);
        }
        if let Some(known) = done.older_pairs_wait_since {
            self.schedule_retirement(node, peer, known);
        }
    }

    /// A node owes an acknowledgement for too long: it cannot be told anything, so its stream is worth nothing.
    pub(super) fn acknowledgement_due(&mut self, id: DeviceId, now: Now) {
        let Some(node) = self.nodes.get(&id) else { return };
        if let Some(oldest) = node.outstanding.front() {
            let at = oldest.sent_at.saturating_add(self.config.acknowledge_within);
            if at > now.monotonic {
                self.timers.set(Due::Acknowledge(id), at);
            } else {
                let message = "the machine did not acknowledge what it was told in time: it may come back at once";
                self.close_node(id, Refusal::Closing, message, now);
            }
        }
    }

    /// Something that a node was told has expired: it forgets the peer if nothing is left of it.
    pub(super) fn expiry_due(&mut self, id: DeviceId, now: Now) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.mark_expired(now);
        let next = node.next_expiry();
        // Unsent news keeps the old time; then look again soon, when the node may have room.
        let next = next.max(now.monotonic.saturating_add(Duration::from_millis(250)));
        if next < Monotonic::NEVER {
            self.timers.set(Due::Expiry(id), next);
        }
        self.flush_then.push_back(id);
    }
}
