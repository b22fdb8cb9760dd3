//! From where a machine speaks, by everybody who sees it: the stream (TCP), the authenticated probe (UDP, from the WireGuard socket), and the
//! nodes that it reaches.
//!
//! ```text
//! stream, probe --------------------------------> context of every decision about the machine
//! FromNode::Seen --one address for each node-----> one more evaluation for each address that differs, for the nodes that saw it
//! ```
//!
//! A condition on the place must hold by every view: where views differ it is unknown ([`RequestContext::also`]), which opens nothing and
//! satisfies every deny. A stream that is carried home by a proxy, beside packets from abroad, is no way in.
//!
//! Invariants:
//! - A node's word counts for what is opened on that node and nowhere else. A server that lies keeps out whom it could keep out anyway.
//! - A node tells how old a packet is: what came before a machine's stream began is not news of it.
//! - A node speaks of machines that may open something there, of others nothing is kept. So there are as many views as doors.
//! - An address that is private, shared (RFC 6598) or local is no place: neighbours within a site, and pods behind their machine, see such
//!   addresses. It counts neither way and takes back what the node saw before.
//! - What peers saw is forgotten after [`LASTS`], and when the machine's stream or probe comes from another address (it moved, and they
//!   have not seen it since): once within that time. A machine that moves to and fro would else take back what they see.
//!
//! Threats: a machine with its own agent sends no probe, or sends it the way its stream goes: the nodes that it reaches see its packets in
//! any case. Whoever carries the packets themselves by a machine at home is at home for everybody; no address can tell.
//!
//! Rejected: asking for two families of addresses to be of one country each: who has IPv4 and IPv6 lists both in `network`.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use postern_common::{
    id::DeviceId,
    policy::{Entitlement, Place, RequestContext},
    protocol::{MAX_SEEN, SeenPeer},
    time::{Monotonic, Now},
};

use super::{core::Core, node::Connected};
use crate::{
    decision::Lease,
    records::DeviceRecord,
    signals::alerts::{About, AlertKind},
};

/// How long the word of a node counts that does not repeat it. Whoever was shut out by it sends that node nothing more.
const LASTS: Duration = Duration::from_secs(3_600);
/// How long after a probe the stream that follows it is no second news.
const FOLLOWS: Duration = Duration::from_secs(300);

/// What nodes saw of the machines that reach them.
#[derive(Debug, Default)]
pub(super) struct Views {
    of: HashMap<DeviceId, BTreeMap<DeviceId, (IpAddr, Monotonic)>>,
    /// When a machine that moved last had its views forgotten.
    forgotten: HashMap<DeviceId, Monotonic>,
    /// Places of which somebody was told because a probe came from there, and when: the stream that follows is no second news.
    told: HashMap<DeviceId, (Place, Monotonic)>,
}

/// Tells whether an address says nothing of where a machine is.
pub(super) const fn is_no_place(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            let is_shared = first == 100 && second & 0xc0 == 64;
            v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || is_shared
        }
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_loopback() || v6.is_unicast_link_local() || v6.is_unspecified(),
    }
}

impl Views {
    /// Forgets what nodes saw of a machine that moved, unless that was done lately.
    pub(super) fn moved(&mut self, device: DeviceId, now: Monotonic) {
        let lately = self.forgotten.get(&device).is_some_and(|at| now.since(*at) < LASTS);
        if !lately && self.of.remove(&device).is_some() {
            self.forgotten.insert(device, now);
        }
    }

    /// Tells whether it was told just now that a machine is there.
    pub(super) fn was_told(&mut self, device: DeviceId, is: &Place, now: Monotonic) -> bool {
        let told = self.told.remove(&device);
        told.is_some_and(|(told, at)| now.since(at) < FOLLOWS && !is.differs_from(&told))
    }

    /// Forgets of which place somebody was told: a login session begins, and what follows from a move is its own.
    pub(super) fn forget_told(&mut self, device: DeviceId) {
        self.told.remove(&device);
    }

    /// Forgets a machine.
    pub(super) fn forget_all(&mut self, device: DeviceId) {
        self.of.remove(&device);
        self.forgotten.remove(&device);
        self.told.remove(&device);
    }

    /// Forgets what is too old.
    pub(super) fn sweep(&mut self, now: Monotonic) {
        self.of.retain(|_, seen| {
            seen.retain(|_, (_, at)| now.since(*at) < LASTS);
            !seen.is_empty()
        });
        self.forgotten.retain(|_, at| now.since(*at) < LASTS);
        self.told.retain(|_, (_, at)| now.since(*at) < FOLLOWS);
    }
}

impl Core {
    /// Takes what a node sees of machines that reach it.
    pub(super) fn peers_seen(&mut self, node: DeviceId, peers: Vec<SeenPeer>, now: Now) {
        let permitted = self.paces.get_mut(&node).is_some_and(|pace| pace.seen.take(now.monotonic));
        if !permitted || peers.len() > MAX_SEEN {
            self.counters.messages_refused += 1;
            return;
        }
        for SeenPeer { device, address, age_ms } in peers {
            let reaches = |lease: &Lease| lease.destinations.contains(&node);
            // What came before the machine's stream began may be from where it was before.
            let age = Duration::from_millis(age_ms);
            let is_of_before = |stream: &Connected| now.monotonic.since(stream.challenged) < age;
            if !self.leases.get(&device).is_some_and(reaches) || self.nodes.get(&device).is_some_and(is_of_before) {
                continue;
            }
            let address = address.to_canonical();
            let seen = self.views.of.entry(device).or_default();
            let before = match is_no_place(address) {
                true => seen.remove(&node),
                false => seen.insert(node, (address, now.monotonic)),
            };
            let is_news = before.map(|(address, _)| address) != (!is_no_place(address)).then_some(address);
            if seen.is_empty() {
                self.views.of.remove(&device);
            }
            if is_news {
                self.let_one_wait(device, now);
            }
        }
    }

    /// Returns where the probes of a connected machine come from, if that tells more than its stream.
    pub(super) fn probed(&self, device: DeviceId) -> Option<IpAddr> {
        let node = self.nodes.get(&device)?;
        let probed = node.observed?.ip();
        (probed != node.from.ip() && !is_no_place(probed)).then_some(probed)
    }

    /// Returns addresses that nodes saw and that the context does not have, with the nodes that saw each.
    fn other_views(&self, device: DeviceId, context: &RequestContext) -> BTreeMap<IpAddr, BTreeSet<DeviceId>> {
        let mut views: BTreeMap<IpAddr, BTreeSet<DeviceId>> = BTreeMap::new();
        for (node, (address, _)) in self.views.of.get(&device).into_iter().flatten() {
            let known = context.address == Some(*address) || context.also.iter().any(|(also, _)| also == address);
            if !known {
                views.entry(*address).or_default().insert(*node);
            }
        }
        views
    }

    /// Adds to a context what some nodes see of the machine.
    pub(super) fn as_seen_by(
        &self,
        device: DeviceId,
        nodes: &[DeviceId],
        mut context: RequestContext,
    ) -> RequestContext {
        for (address, seers) in self.other_views(device, &context) {
            if nodes.iter().any(|node| seers.contains(node)) {
                context.also.push((address, self.atlas.place_of(address)));
            }
        }
        context
    }

    /// Takes away on each node what policy does not give from where that node sees the machine; what it gives from there only for a
    /// shorter time, or only lends, is so on that node.
    pub(super) fn as_seen(
        &self,
        device: &DeviceRecord,
        context: &RequestContext,
        mut entitlements: Vec<Entitlement>,
    ) -> Vec<Entitlement> {
        for (address, seers) in self.other_views(device.id, context) {
            let mut there = context.clone();
            there.also.push((address, self.atlas.place_of(address)));
            let given = self.policy.entitlements(&there, &self.targets);
            let mut otherwise: Vec<Entitlement> = Vec::new();
            for entitlement in &mut entitlements {
                let there = |node: &DeviceId| {
                    let same = given.iter().filter(|given| {
                        (&given.rule, &given.resource) == (&entitlement.rule, &entitlement.resource)
                            && given.nodes.contains(node)
                            && entitlement.services.iter().all(|service| given.services.contains(service))
                    });
                    same.min_by_key(|given| given.valid_until)
                };
                let (mut kept, mut parts) = (Vec::new(), Vec::<Entitlement>::new());
                for node in &entitlement.nodes {
                    if !seers.contains(node) {
                        kept.push(*node);
                        continue;
                    }
                    let Some(given) = there(node) else { continue };
                    let (until, mode) = (given.valid_until.min(entitlement.valid_until), &given.mode);
                    if (until, mode) == (entitlement.valid_until, &entitlement.mode) {
                        kept.push(*node);
                    } else if let Some(part) =
                        parts.iter_mut().find(|part| (part.valid_until, &part.mode) == (until, mode))
                    {
                        part.nodes.push(*node);
                    } else {
                        let (nodes, mode) = (vec![*node], mode.clone());
                        parts.push(Entitlement { nodes, valid_until: until, mode, ..entitlement.clone() });
                    }
                }
                entitlement.nodes = kept;
                otherwise.append(&mut parts);
            }
            entitlements.append(&mut otherwise);
        }
        entitlements.retain(|entitlement| !entitlement.nodes.is_empty());
        entitlements
    }

    /// Follows where a machine's probes come from.
    pub(super) fn probe_moved(&mut self, id: DeviceId, before: Option<SocketAddr>, is: IpAddr, now: Now) {
        let before = before.map(|before| before.ip());
        if before == Some(is) {
            return;
        }
        if before.is_some() {
            self.views.moved(id, now.monotonic);
        }
        self.let_one_wait(id, now);
        let Some(before) = before else { return };
        let (was_at, is_at) = (self.atlas.place_of(before), self.atlas.place_of(is));
        // Each is a record and an alert, and its own word: no more of them than of anything else that it changes.
        let paced =
            is_at.differs_from(&was_at) && self.paces.get_mut(&id).is_some_and(|pace| pace.changes.take(now.monotonic));
        if !paced {
            return;
        }
        let subject = self.registry.device(id).map(|device| device.owner);
        let name = subject.map(|subject| self.registry.subject_name(subject)).unwrap_or_default();
        let machine = self.registry.machine_name(id);
        let text = format!("{machine} of {name} sends from {is} ({is_at}), and before from {before} ({was_at})");
        self.views.told.insert(id, (is_at, now.monotonic));
        self.alert(AlertKind::NewPlace, text, About { subject, device: Some(id), resource: None }, now);
        self.place_left(id, &was_at, &is_at, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_within_a_site_are_no_place() {
        for (address, none) in [
            ("10.1.2.3", true),
            ("172.16.0.9", true),
            ("192.168.1.1", true),
            ("100.64.0.1", true),
            ("100.127.255.255", true),
            ("100.128.0.1", false),
            ("169.254.1.1", true),
            ("fd00::1", true),
            ("fe80::1", true),
            ("::1", true),
            ("203.0.113.9", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_no_place(address.parse().expect("an address")), none, "{address}");
        }
    }
}
