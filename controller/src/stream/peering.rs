//! Two devices that may meet: what each may open on the other, and the pairs of keys between them.
//!
//! ```text
//! lease --wanted--> destination is told --acknowledged--> source is told what `covered` leaves
//! new pair: `first` is told --acknowledged--> `second` is told --acknowledged--> older pairs go after an overlap
//! ```
//!
//! What a node may be told of a peer is a function of this state alone ([`Peering::view`]). It never depends on what
//! was sent before, so a slow node skips intermediate states and lands on the newest one.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use postern_common::{
    grant::KeyPair,
    id::DeviceId,
    key::{PresharedKey, WireGuardPublicKey},
    time::{Monotonic, Now},
};

use crate::{
    decision::{Permissions, covered, live},
    records::{DeviceKind, PairEnd, PairName, PairRecord},
};

/// Names the peering of two devices, the smaller identifier first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PeeringName(pub(crate) DeviceId, pub(crate) DeviceId);

impl PeeringName {
    pub(crate) fn of(one: DeviceId, other: DeviceId) -> Self {
        if one <= other { Self(one, other) } else { Self(other, one) }
    }
}

/// What one of the two may open on the other.
#[derive(Debug, Clone)]
pub(crate) struct Edge {
    /// What leases give.
    pub(crate) wanted: Permissions,
    /// What the destination has acknowledged and was not told to forget since.
    pub(crate) acknowledged: Permissions,
    /// While a start takes up what was durable: the destination had let the source in.
    resuming: bool,
}

impl Default for Edge {
    fn default() -> Self {
        Self { wanted: Arc::from([]), acknowledged: Arc::from([]), resuming: false }
    }
}

/// Two devices that may meet.
#[derive(Debug, Clone)]
pub(crate) struct Peering {
    name: PeeringName,
    /// From the smaller identifier to the greater.
    up: Edge,
    /// From the greater to the smaller.
    down: Edge,
    /// Newest first.
    pub(crate) pairs: Vec<PairRecord>,
    /// Since when both ends are seen to know a pair, in this life of the core.
    known_since: BTreeMap<PairName, Monotonic>,
}

/// What a node may be told of a peer, apart from the peer's own record.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) pairs: Vec<KeyPair>,
    pub(crate) inbound: Permissions,
    pub(crate) outbound: Permissions,
}

/// What an acknowledgement changed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Acknowledged {
    /// The peer may now be told something.
    pub(crate) peer_concerned: bool,
    /// Pairs whose record changed.
    pub(crate) pairs: Vec<PairRecord>,
    /// Since when both ends know a pair that has older ones behind it: the first such moment.
    pub(crate) older_pairs_wait_since: Option<Monotonic>,
}

impl Peering {
    pub(crate) fn new(name: PeeringName) -> Self {
        Self { name, up: Edge::default(), down: Edge::default(), pairs: vec![], known_since: BTreeMap::new() }
    }

    /// Returns the edge whose destination is `destination`.
    pub(crate) fn edge_to(&self, destination: DeviceId) -> &Edge {
        if destination == self.name.1 { &self.up } else { &self.down }
    }

    pub(crate) fn edge_to_mut(&mut self, destination: DeviceId) -> &mut Edge {
        if destination == self.name.1 { &mut self.up } else { &mut self.down }
    }

    pub(crate) fn other(&self, device: DeviceId) -> DeviceId {
        if device == self.name.0 { self.name.1 } else { self.name.0 }
    }

    /// Tells whether nothing entitles the two to meet any more.
    pub(crate) fn is_over(&self) -> bool {
        self.up.wanted.is_empty() && self.down.wanted.is_empty()
    }

    /// Changes what leases give towards `destination`; returns the pairs whose record changed.
    pub(crate) fn want(&mut self, destination: DeviceId, wanted: Permissions) -> Vec<PairRecord> {
        let edge = self.edge_to_mut(destination);
        edge.acknowledged = match edge.resuming {
            // It is taken to enforce the lease, because that is what it was told of; it has its own deadlines in any case.
            true => wanted.clone(),
            // What is not wanted any more is forgotten at once: if it is wanted again, it has to be acknowledged again.
            false => covered(&edge.acknowledged, &wanted),
        };
        edge.wanted = wanted;
        self.note_who_lets_in()
    }

    /// Makes the pair of the two newest keys, if it is not there yet; `first` is the device that learns first.
    pub(crate) fn add_pair(&mut self, first: PairEnd, second: PairEnd, preshared: PresharedKey) -> Option<&PairRecord> {
        let name = PairName::of(first.key, second.key);
        if self.pairs.iter().any(|pair| pair.name() == name) {
            return None;
        }
        let (first_lets_in, second_lets_in) = (self.lets_in(first.device), self.lets_in(second.device));
        let (first_knows, second_knows) = (false, false);
        let pair = PairRecord { first, second, preshared, first_knows, second_knows, first_lets_in, second_lets_in };
        self.pairs.insert(0, pair);
        self.pairs.first()
    }

    /// Tells whether a device has acknowledged that the other may open something on it.
    fn lets_in(&self, destination: DeviceId) -> bool {
        let edge = self.edge_to(destination);
        edge.resuming || !edge.acknowledged.is_empty()
    }

    /// Notes in every pair which of the two lets the other in; returns the pairs whose record changed.
    fn note_who_lets_in(&mut self) -> Vec<PairRecord> {
        let (up, down) = (self.lets_in(self.name.1), self.lets_in(self.name.0));
        let mut changed = Vec::new();
        for pair in &mut self.pairs {
            let (first, second) = if pair.first.device == self.name.1 { (up, down) } else { (down, up) };
            if (pair.first_lets_in, pair.second_lets_in) != (first, second) {
                (pair.first_lets_in, pair.second_lets_in) = (first, second);
                changed.push(pair.clone());
            }
        }
        changed
    }

    /// Computes what `node` may be told of the other device; `None` if it must not know of it at all.
    pub(crate) fn view(&self, node: DeviceId, now: Now) -> Option<View> {
        let peer = self.other(node);
        let (inbound, outbound) = self.permissions(node, now);
        // A peer that may be told of no permission is told of no pair either. Were it first to learn of one, the two would
        // wait for each other: so the node learns first, and what it acknowledges lets the peer be told.
        let (peer_inbound, peer_outbound) = self.permissions(peer, now);
        let peer_is_told = !(peer_inbound.is_empty() && peer_outbound.is_empty());
        let visible = |pair: &&PairRecord| pair.first.device == node || pair.first_knows || !peer_is_told;
        let pairs: Vec<KeyPair> = self.pairs.iter().filter(visible).map(|pair| key_pair(pair, node)).collect();
        let strangers = pairs.is_empty() || (inbound.is_empty() && outbound.is_empty());
        (!strangers).then_some(View { pairs, inbound, outbound })
    }

    /// Computes what `node` may be told that the other device may open on it, and it on the other.
    fn permissions(&self, node: DeviceId, now: Now) -> (Permissions, Permissions) {
        let outbound = self.edge_to(self.other(node));
        (live(&self.edge_to(node).wanted, now), live(&covered(&outbound.wanted, &outbound.acknowledged), now))
    }

    /// Takes in that `node` enforces `inbound` from the other device and knows `pairs`.
    pub(crate) fn acknowledge(
        &mut self,
        node: DeviceId,
        inbound: &Permissions,
        pairs: &[PairName],
        now: Monotonic,
    ) -> Acknowledged {
        let mut done = Acknowledged::default();
        let edge = self.edge_to_mut(node);
        let acknowledged = covered(inbound, &edge.wanted);
        if acknowledged != edge.acknowledged {
            edge.acknowledged = acknowledged;
            done.peer_concerned = true;
        }
        let mut learned = Vec::new();
        for pair in &mut self.pairs {
            if !pairs.contains(&pair.name()) {
                continue;
            }
            let knows = if pair.first.device == node { &mut pair.first_knows } else { &mut pair.second_knows };
            if !*knows {
                *knows = true;
                done.peer_concerned |= pair.first.device == node;
                learned.push(pair.name());
            }
        }
        let noted: Vec<PairName> = self.note_who_lets_in().iter().map(PairRecord::name).collect();
        let changed = |pair: &&PairRecord| learned.contains(&pair.name()) || noted.contains(&pair.name());
        done.pairs = self.pairs.iter().filter(changed).cloned().collect();
        for pair in self.pairs.iter().filter(|pair| pair.first_knows && pair.second_knows) {
            self.known_since.entry(pair.name()).or_insert(now);
        }
        done.older_pairs_wait_since = self.older_pairs_wait_since();
        done
    }

    /// Tells since when both ends know a pair that has older ones behind it: the first such moment.
    pub(crate) fn older_pairs_wait_since(&self) -> Option<Monotonic> {
        let last = self.pairs.len().saturating_sub(1);
        self.pairs[..last].iter().filter_map(|pair| self.known_since.get(&pair.name())).min().copied()
    }

    /// Drops every pair that is older than one which both ends have known for the overlap: each pair gets that time to
    /// become a session, however soon a newer one follows.
    pub(crate) fn retire(&mut self, overlap: Duration, now: Monotonic) -> Vec<PairRecord> {
        let settled = |pair: &PairRecord| {
            self.known_since.get(&pair.name()).is_some_and(|since| since.saturating_add(overlap) <= now)
        };
        let gone = match self.pairs.iter().position(settled) {
            Some(newest) => self.pairs.split_off(newest + 1),
            None => vec![],
        };
        self.forget_when_known(&gone);
        gone
    }

    /// Drops the pairs of a key that its device does not have any more.
    pub(crate) fn drop_key(&mut self, key: WireGuardPublicKey) -> Vec<PairRecord> {
        let (gone, kept): (Vec<PairRecord>, _) = std::mem::take(&mut self.pairs)
            .into_iter()
            .partition(|pair| pair.first.key == key || pair.second.key == key);
        self.pairs = kept;
        self.forget_when_known(&gone);
        gone
    }

    fn forget_when_known(&mut self, gone: &[PairRecord]) {
        for pair in gone {
            self.known_since.remove(&pair.name());
        }
    }

    pub(crate) fn uses(&self, key: WireGuardPublicKey) -> bool {
        self.pairs.iter().any(|pair| pair.first.key == key || pair.second.key == key)
    }

    /// Takes up a pair after a restart, the newest first, and who of the two had let the other in. One that knows a pair
    /// for the other direction alone has let nobody in.
    pub(crate) fn take_up(&mut self, pair: PairRecord) {
        self.edge_to_mut(pair.first.device).resuming |= pair.first_lets_in;
        self.edge_to_mut(pair.second.device).resuming |= pair.second_lets_in;
        self.pairs.push(pair);
    }

    /// Ends a restart, when leases have said what they give; returns the pairs whose record changed.
    pub(crate) fn taken_up(&mut self) -> Vec<PairRecord> {
        self.up.resuming = false;
        self.down.resuming = false;
        self.note_who_lets_in()
    }

    /// Marks the newest pair as known to a stock client, which has it in its configuration.
    pub(crate) fn exported(&mut self, client: DeviceId) -> Option<&PairRecord> {
        let pair = self.pairs.first_mut()?;
        if pair.second.device == client {
            pair.second_knows = true;
        }
        Some(pair)
    }
}

fn key_pair(pair: &PairRecord, node: DeviceId) -> KeyPair {
    let (local, remote) = if pair.first.device == node { (pair.first, pair.second) } else { (pair.second, pair.first) };
    KeyPair { local: local.key, remote: remote.key, preshared: pair.preshared.clone() }
}

/// Returns which of two kinds of device can be told of a new key: stock clients have the configuration that they have.
pub(crate) const fn can_learn(kind: DeviceKind) -> bool {
    match kind {
        DeviceKind::Agent => true,
        DeviceKind::StockClient => false,
    }
}
