//! What one node is told to enforce, and how it knows that the controller said so.
//!
//! ```text
//! controller: GrantDocument --sign--> SignedDocument --wire--> node: GrantVerifier::verify --> VerifiedGrants
//! node, restart within one boot: SavedGrants (sealed file) --> GrantVerifier::resume --> VerifiedGrants
//! ```
//!
//! A document is signed whole, for one node, as `(audience, epoch, generation, previous)`. A snapshot (`previous`
//! empty) replaces everything; a delta continues exactly the generation that it names. So a replayed, reordered,
//! dropped or misdirected document is refused, whoever carries the bytes.
//!
//! Lifetimes are spans counted from a nonce that the node drew and the document echoes: delaying the stream can
//! shorten a permission, never stretch it. [`VerifiedGrants`] holds deadlines of this node's own clocks, and only
//! this module makes one: code that enforces takes that type, so that enforcing an unchecked document does not compile.
//!
//! Rejected: signing each peer's grant by itself. An attacker on the path could then withhold a single revocation
//! and let everything else pass.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    id::{BootId, DeviceId, LeaseId, MachineName, Nonce, ResourceName, RuleName, SubjectId, Tag},
    key::{ControllerPublicKey, ControllerSigningKey, PresharedKey, Signature, SigningPurpose, WireGuardPublicKey},
    limit::{Limit, ScanLimit},
    net::{Protocol, Service},
    time::{Deadline, Lifetime, Monotonic, Now, WallTime},
};

/// The version of the document format that this crate writes and the only one it reads.
pub const DOCUMENT_VERSION: u16 = 1;
/// The most bytes that a document may have: 5,000 peers with ten permissions each fit four times over.
pub const MAX_DOCUMENT_BYTES: usize = 64 << 20;
/// How many of its nonces a node remembers. An answer to an older one is refused.
pub const MAX_OUTSTANDING_NONCES: usize = 8;
/// The most offers of a step-up that one node is told.
pub const MAX_STEP_UPS: usize = 256;

/// Where a node stands in the order of documents: `epoch` grows when a controller is restored from a backup,
/// `generation` with every document for this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// Milliseconds since the Unix epoch at which the controller's present life began (`init` or `restore`).
    pub epoch: u64,
    /// The document's number within the epoch, for one node.
    pub generation: u64,
}

/// A document for one node, before it is signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantDocument {
    /// [`DOCUMENT_VERSION`].
    pub version: u16,
    /// The node for which alone this is meant.
    pub audience: DeviceId,
    /// This document's place in the order.
    pub position: Position,
    /// The node's nonce from which lifetimes are counted.
    pub nonce: Nonce,
    /// When the controller signed, by its clock.
    pub issued_at: WallTime,
    /// The policy's number, as people know it: `policy apply` adds one.
    pub policy_revision: u64,
    /// What changes.
    pub change: Change<Lifetime>,
}

/// What a document changes. `T` is [`Lifetime`] on the wire and [`Deadline`] once verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Change<T> {
    /// Everything that the node may enforce. What it does not name is gone.
    Snapshot {
        /// What the node is told of itself.
        own: OwnGrant<T>,
        /// Every peer that the node may meet.
        peers: Vec<PeerGrant<T>>,
    },
    /// The difference to generation `previous`.
    Delta {
        /// The generation that this continues.
        previous: u64,
        /// What the node is told of itself, if that changed.
        own: Option<OwnGrant<T>>,
        /// Peers that are new or changed; each replaces what was known of that device.
        upsert: Vec<PeerGrant<T>>,
        /// Devices that are peers no longer: destroy their sessions and cut their flows at once.
        remove: Vec<DeviceId>,
    },
}

/// What a node is told of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnGrant<T> {
    /// The machine's name.
    pub name: MachineName,
    /// The subject of the machine's login session or service identity.
    pub subject: SubjectId,
    /// The subject's name for people: `alice@corp.example`, `service:billing`.
    pub subject_name: String,
    /// The machine's approved tags.
    pub tags: Vec<Tag>,
    /// The node's own overlay addresses: one IPv6, one IPv4.
    pub addresses: Vec<IpAddr>,
    /// The overlay's prefixes: what the host guard drops on every other interface.
    pub overlay: Vec<IpNet>,
    /// The domain of resource names, without dots at its ends: `internal`.
    pub domain: String,
    /// The node's WireGuard public keys that peers may still use, newest first. Others can be wiped.
    pub keys: Vec<WireGuardPublicKey>,
    /// When the login session ends; absent for services and when nobody is signed in.
    pub session_until: Option<T>,
    /// Why nothing passes to this machine or from it, if it is in quarantine. It changes nothing by itself: a machine in
    /// quarantine is told of no peer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<QuarantineNotice>,
    /// What stronger or fresher proof of sign-in would open; at most [`MAX_STEP_UPS`]. It opens nothing by itself.
    #[serde(default)]
    pub step_up: Vec<StepUpOffer>,
    /// How many distinct destinations may be refused to this machine's own programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scan: Option<ScanLimit>,
}

/// What the person at a machine in quarantine is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineNotice {
    /// What is in quarantine: this machine, or its subject everywhere.
    pub what: String,
    /// Why, as the administrator wrote it.
    pub reason: String,
    /// Since when.
    pub since: WallTime,
}

/// A resource that the subject may reach after stronger or fresher proof of sign-in, and not before. Told to the subject's own
/// node alone, so that it can say why it refuses a packet and what mends that; nobody else hears of it, and no key goes with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepUpOffer {
    /// The resource.
    pub resource: ResourceName,
    /// The overlay addresses of the nodes that carry it.
    pub addresses: Vec<IpAddr>,
    /// What would open there.
    pub services: Vec<Service>,
    /// What is asked of the proof, for people: `MFA within 15 min`.
    pub demand: String,
}

impl StepUpOffer {
    /// Tells whether it speaks of this destination; `port` is ignored for ICMP.
    pub fn covers(&self, destination: IpAddr, protocol: Protocol, port: u16) -> bool {
        self.addresses.contains(&destination) && self.services.iter().any(|service| service.contains(protocol, port))
    }
}

/// One device that the node may meet, and everything it may do with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerGrant<T> {
    /// The peer's device.
    pub device: DeviceId,
    /// The peer's machine name.
    pub name: MachineName,
    /// The subject of the peer's login session or service identity. A change of it cuts every flow.
    pub subject: SubjectId,
    /// The subject's name for people.
    pub subject_name: String,
    /// The peer's approved tags.
    pub tags: Vec<Tag>,
    /// The inner addresses that the peer owns: the only sources that it may use.
    pub addresses: Vec<IpAddr>,
    /// Pairs of WireGuard keys that may make sessions, newest first. Sending prefers the first that is confirmed.
    pub pairs: Vec<KeyPair>,
    /// Outer addresses at which the peer may be found, best first; may be empty (it will call).
    pub endpoints: Vec<SocketAddr>,
    /// What the peer may open on this node.
    pub inbound: Vec<Permission<T>>,
    /// What this node may open on the peer.
    pub outbound: Vec<Permission<T>>,
    /// How many distinct destinations may be refused to the peer here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scan: Option<ScanLimit>,
}

/// Two WireGuard keys that may make sessions with each other, and the pre-shared key of the pair.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPair {
    /// The key of the node that reads this.
    pub local: WireGuardPublicKey,
    /// The peer's key.
    pub remote: WireGuardPublicKey,
    /// The pair's pre-shared key.
    pub preshared: PresharedKey,
}

/// One rule's permission for flows in one direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permission<T> {
    /// The rule that gives it.
    pub rule: RuleName,
    /// The resource that the rule names.
    pub resource: ResourceName,
    /// The lease that it is part of.
    pub lease: LeaseId,
    /// What may be opened.
    pub services: Vec<Service>,
    /// How long it holds.
    pub until: T,
    /// What a refused packet to the same node gets.
    pub on_deny: OnDeny,
    /// Whether the rule is enforced or only watched.
    pub mode: Mode,
    /// How much of it, at most [`crate::limit::MAX_LIMITS`]; the destination counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limits: Vec<Limit>,
}

/// What a refused packet gets from the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDeny {
    /// Silence.
    #[default]
    Drop,
    /// TCP RST, or ICMP 'administratively prohibited'.
    Reject,
}

/// Whether a permission was earned, or is lent while its rule is only watched.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Every condition holds.
    Enforce,
    /// The rule would refuse this; it passes, and every flow is recorded as would-deny.
    Monitor {
        /// Why it would be refused, for people.
        would_deny: String,
    },
}

/// A document as bytes with the controller's signature over exactly these bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedDocument {
    /// The JSON text of a [`GrantDocument`].
    pub document: String,
    /// The signature, for [`SigningPurpose::Grant`].
    pub signature: Signature,
}

impl std::fmt::Debug for SignedDocument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SignedDocument({} bytes)", self.document.len()) // it holds pre-shared keys
    }
}

/// Signs a document.
///
/// # Panics
/// Never: every part of a document has a JSON form.
pub fn sign(document: &GrantDocument, key: &ControllerSigningKey) -> SignedDocument {
    let document = serde_json::to_string(document).expect("a document has no part without a JSON form");
    let signature = key.sign(SigningPurpose::Grant, document.as_bytes());
    SignedDocument { document, signature }
}

/// Why a node refuses a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The signature is not the controller's over these bytes.
    #[error("the document is not signed by this node's controller")]
    Signature,
    /// The text is not a document of this version.
    #[error("the document cannot be read: {0}")]
    Malformed(String),
    /// It is meant for another node.
    #[error("the document is for {0}, not for this node")]
    Audience(DeviceId),
    /// It echoes no nonce that this node drew lately.
    #[error("the document answers no recent question of this node")]
    Nonce,
    /// It is not newer than what the node enforces.
    #[error("the document {offered:?} is not newer than {enforced:?}")]
    Stale {
        /// The document's position.
        offered: Position,
        /// What the node enforces.
        enforced: Position,
    },
    /// A delta that does not continue what the node enforces: ask for a snapshot.
    #[error("the delta continues generation {previous}, and this node is at {enforced:?}")]
    Gap {
        /// The generation that the delta continues.
        previous: u64,
        /// What the node enforces, if anything.
        enforced: Option<Position>,
    },
    /// Saved state of another boot, or older than the mark kept beside it.
    #[error("the saved state is not of this boot or not the newest: closed until the controller has spoken")]
    NotResumable,
}

/// What a node may enforce: checked for signature, audience, order and freshness. Only [`GrantVerifier`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedGrants {
    position: Position,
    policy_revision: u64,
    change: Change<Deadline>,
}

impl VerifiedGrants {
    /// Returns the place in the order of documents.
    pub const fn position(&self) -> Position {
        self.position
    }

    /// Returns the policy's number, as people know it.
    pub const fn policy_revision(&self) -> u64 {
        self.policy_revision
    }

    /// Returns what changes.
    pub const fn change(&self) -> &Change<Deadline> {
        &self.change
    }

    /// Gives up the wrapper for what changes.
    pub fn into_change(self) -> Change<Deadline> {
        self.change
    }
}

/// Everything that a node enforces, for its sealed file in memory-backed storage. It counts only within one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedGrants {
    /// The boot to which the deadlines belong.
    pub boot: BootId,
    /// The place in the order of documents.
    pub position: Position,
    /// The policy's number.
    pub policy_revision: u64,
    /// What the node is told of itself.
    pub own: OwnGrant<Deadline>,
    /// Every peer.
    pub peers: Vec<PeerGrant<Deadline>>,
}

/// Checks documents for one node, in order. Sans-IO: the caller draws nonces and reads clocks.
#[derive(Debug)]
pub struct GrantVerifier {
    audience: DeviceId,
    controller: ControllerPublicKey,
    position: Option<Position>,
    nonces: VecDeque<(Nonce, Monotonic)>,
}

impl GrantVerifier {
    /// Makes a verifier that has seen nothing.
    pub fn new(audience: DeviceId, controller: ControllerPublicKey) -> Self {
        Self { audience, controller, position: None, nonces: VecDeque::new() }
    }

    /// Returns the newest position that was verified or resumed.
    pub const fn position(&self) -> Option<Position> {
        self.position
    }

    /// Remembers that the node drew `nonce` at `now` and sends it to the controller after this call.
    pub fn remember_nonce(&mut self, nonce: Nonce, now: Monotonic) {
        if self.nonces.len() == MAX_OUTSTANDING_NONCES {
            self.nonces.pop_front();
        }
        self.nonces.push_back((nonce, now));
    }

    /// Checks a document and turns its lifetimes into deadlines. On success the position advances.
    ///
    /// # Errors
    /// Each check has its own [`GrantError`]; after [`GrantError::Gap`] or [`GrantError::Stale`] the node asks for a snapshot.
    pub fn verify(&mut self, signed: &SignedDocument) -> Result<VerifiedGrants, GrantError> {
        self.controller
            .verify(SigningPurpose::Grant, signed.document.as_bytes(), &signed.signature)
            .map_err(|_| GrantError::Signature)?;
        if signed.document.len() > MAX_DOCUMENT_BYTES {
            return Err(GrantError::Malformed("too long".into()));
        }
        let document: GrantDocument =
            serde_json::from_str(&signed.document).map_err(|error| GrantError::Malformed(error.to_string()))?;
        if document.version != DOCUMENT_VERSION {
            return Err(GrantError::Malformed(format!("version {} is not {DOCUMENT_VERSION}", document.version)));
        }
        if document.audience != self.audience {
            return Err(GrantError::Audience(document.audience));
        }
        let drawn = self.nonces.iter().find(|(nonce, _)| *nonce == document.nonce).ok_or(GrantError::Nonce)?.1;
        if let Some(enforced) = self.position.filter(|enforced| document.position <= *enforced) {
            return Err(GrantError::Stale { offered: document.position, enforced });
        }
        if let Change::Delta { previous, .. } = &document.change {
            let continues = Position { epoch: document.position.epoch, generation: *previous };
            if self.position != Some(continues) {
                return Err(GrantError::Gap { previous: *previous, enforced: self.position });
            }
        }
        self.position = Some(document.position);
        Ok(VerifiedGrants {
            position: document.position,
            policy_revision: document.policy_revision,
            change: document.change.map_time(&|lifetime| lifetime.deadline(drawn)),
        })
    }

    /// Takes up what the node enforced before it was restarted within the same boot.
    ///
    /// `saved` comes out of a file that the node sealed with a key of its own; `mark` is the position that the node
    /// last recorded in the *other* place (state directory against runtime directory), so that an old copy of either
    /// is noticed. What expired meanwhile closes by its deadline.
    ///
    /// # Errors
    /// [`GrantError::NotResumable`] if the boot or the mark differ.
    pub fn resume(
        &mut self,
        saved: SavedGrants,
        boot: BootId,
        mark: Position,
        now: Now,
    ) -> Result<VerifiedGrants, GrantError> {
        if saved.boot != boot || saved.position != mark || self.position.is_some() {
            return Err(GrantError::NotResumable);
        }
        self.position = Some(saved.position);
        let mut peers = saved.peers;
        for peer in &mut peers {
            peer.inbound.retain(|permission| !permission.until.has_passed(now));
            peer.outbound.retain(|permission| !permission.until.has_passed(now));
        }
        peers.retain(|peer| !(peer.inbound.is_empty() && peer.outbound.is_empty()));
        Ok(VerifiedGrants {
            position: saved.position,
            policy_revision: saved.policy_revision,
            change: Change::Snapshot { own: saved.own, peers },
        })
    }
}

impl<T> Change<T> {
    /// Turns every time in the change into another kind of time.
    pub fn map_time<U>(self, map: &impl Fn(T) -> U) -> Change<U> {
        let all = |peers: Vec<PeerGrant<T>>| peers.into_iter().map(|peer| peer.map_time(map)).collect();
        match self {
            Self::Snapshot { own, peers } => Change::Snapshot { own: own.map_time(map), peers: all(peers) },
            Self::Delta { previous, own, upsert, remove } => {
                Change::Delta { previous, own: own.map(|own| own.map_time(map)), upsert: all(upsert), remove }
            }
        }
    }
}

impl<T> OwnGrant<T> {
    /// Turns every time into another kind of time.
    pub fn map_time<U>(self, map: &impl Fn(T) -> U) -> OwnGrant<U> {
        let Self {
            name,
            subject,
            subject_name,
            tags,
            addresses,
            overlay,
            domain,
            keys,
            session_until,
            quarantine,
            step_up,
            scan,
        } = self;
        OwnGrant {
            name,
            subject,
            subject_name,
            tags,
            addresses,
            overlay,
            domain,
            keys,
            session_until: session_until.map(map),
            quarantine,
            step_up,
            scan,
        }
    }
}

impl<T> PeerGrant<T> {
    /// Turns every time into another kind of time.
    pub fn map_time<U>(self, map: &impl Fn(T) -> U) -> PeerGrant<U> {
        let all = |permissions: Vec<Permission<T>>| permissions.into_iter().map(|p| p.map_time(map)).collect();
        PeerGrant {
            device: self.device,
            name: self.name,
            subject: self.subject,
            subject_name: self.subject_name,
            tags: self.tags,
            addresses: self.addresses,
            pairs: self.pairs,
            endpoints: self.endpoints,
            inbound: all(self.inbound),
            outbound: all(self.outbound),
            scan: self.scan,
        }
    }
}

impl<T> Permission<T> {
    /// Turns every time into another kind of time.
    pub fn map_time<U>(self, map: &impl Fn(T) -> U) -> Permission<U> {
        let Self { rule, resource, lease, services, until, on_deny, mode, limits } = self;
        Permission { rule, resource, lease, services, until: map(until), on_deny, mode, limits }
    }
}

#[cfg(test)]
mod tests;
