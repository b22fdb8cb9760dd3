//! What the node is told to enforce, merged from the documents: what `status`, `resources`, names and the sealed file
//! are made from. The data plane compiles its own form; this one is for people and for a restart.

use std::{collections::BTreeMap, net::IpAddr};

use postern_common::{
    grant::{Change, Mode, OwnGrant, PeerGrant, Position, SavedGrants, VerifiedGrants},
    id::{BootId, DeviceId, MachineName, ResourceName, RuleName},
    net::Service,
    time::{Deadline, Now},
};

/// The merged documents.
#[derive(Debug, Clone, Default)]
pub struct Book {
    stand: Option<Stand>,
}

/// What a node that was told anything was told.
#[derive(Debug, Clone)]
pub struct Stand {
    /// The newest document's place in the order.
    pub position: Position,
    /// The policy's number.
    pub policy_revision: u64,
    /// What the node was told of itself.
    pub own: OwnGrant<Deadline>,
    /// The peers.
    pub peers: BTreeMap<DeviceId, PeerGrant<Deadline>>,
}

/// One resource that this node may open on one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reachable {
    /// The resource.
    pub resource: ResourceName,
    /// The machine that serves it.
    pub machine: MachineName,
    /// The machine's overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// What may be opened.
    pub services: Vec<Service>,
    /// The rule that gives it.
    pub rule: RuleName,
    /// Until when, unless it is renewed.
    pub until: Deadline,
    /// Whether it is lent while its rule is only watched.
    pub mode: Mode,
}

impl Book {
    /// Takes in a verified document.
    pub fn apply(&mut self, grants: &VerifiedGrants) {
        let (position, policy_revision) = (grants.position(), grants.policy_revision());
        match grants.change() {
            Change::Snapshot { own, peers } => {
                let peers = peers.iter().map(|peer| (peer.device, peer.clone())).collect();
                self.stand = Some(Stand { position, policy_revision, own: own.clone(), peers });
            }
            Change::Delta { previous: _, own, upsert, remove } => {
                let Some(stand) = &mut self.stand else { return }; // the verifier refuses a delta to nothing
                stand.position = position;
                stand.policy_revision = policy_revision;
                if let Some(own) = own {
                    stand.own = own.clone();
                }
                for device in remove {
                    stand.peers.remove(device);
                }
                for peer in upsert {
                    stand.peers.insert(peer.device, peer.clone());
                }
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.stand = None;
    }

    /// Returns what the node was told, if anything.
    pub const fn stand(&self) -> Option<&Stand> {
        self.stand.as_ref()
    }

    /// Writes everything down for a restart within this boot.
    pub fn save(&self, boot: BootId) -> Option<SavedGrants> {
        self.stand.as_ref().map(|stand| SavedGrants {
            boot,
            position: stand.position,
            policy_revision: stand.policy_revision,
            own: stand.own.clone(),
            peers: stand.peers.values().cloned().collect(),
        })
    }

    /// Lists what this node may open now, by resource and machine.
    pub fn reachable(&self, now: Now) -> Vec<Reachable> {
        let mut found: Vec<Reachable> = self
            .stand
            .iter()
            .flat_map(|stand| stand.peers.values())
            .flat_map(|peer| peer.outbound.iter().map(move |permission| (peer, permission)))
            .filter(|(_, permission)| !permission.until.has_passed(now))
            .map(|(peer, permission)| Reachable {
                resource: permission.resource.clone(),
                machine: peer.name.clone(),
                addresses: peer.addresses.clone(),
                services: permission.services.clone(),
                rule: permission.rule.clone(),
                until: permission.until,
                mode: permission.mode.clone(),
            })
            .collect();
        found.sort_by(|a, b| (&a.resource, &a.machine, &a.rule).cmp(&(&b.resource, &b.machine, &b.rule)));
        found
    }

    /// Finds the peer that owns an overlay address.
    pub fn owner(&self, address: IpAddr) -> Option<&PeerGrant<Deadline>> {
        self.stand.as_ref()?.peers.values().find(|peer| peer.addresses.contains(&address))
    }
}
