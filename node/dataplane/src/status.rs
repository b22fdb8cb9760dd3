//! What the data plane tells of itself: plain values for the local API and the command line.

use std::net::{IpAddr, SocketAddr};

use postern_common::{
    flow_record::{Originator, PeerIdentity, PermitRecord},
    grant::Position,
    id::{DeviceId, Tag},
    key::WireGuardPublicKey,
    limit::{Limit, Scan, Usage},
    net::{FiveTuple, Service},
    protocol::{FlowGroup, SeenPeer},
    reason::DenyReason,
    time::{Deadline, Monotonic},
};
use serde::Serialize;

/// What [`crate::DataPlane::apply`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// What is enforced now.
    pub position: Position,
    /// Devices whose rules were compiled, because something in them changed.
    pub compiled: Vec<DeviceId>,
    /// Devices that are peers no longer.
    pub removed: Vec<DeviceId>,
    /// How many peers had only their deadlines moved.
    pub renewed: usize,
    /// How many peers did not change at all.
    pub unchanged: usize,
    /// How many live flows were cut.
    pub cut: usize,
    /// Of those, how many peers had opened.
    pub cut_inbound: u64,
}

/// Something that the caller may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlaneEvent {
    /// A peer is heard from another outer address than before.
    EndpointMoved {
        /// The peer.
        device: DeviceId,
        /// Where it is now.
        endpoint: SocketAddr,
    },
    /// A session of this pair of keys is confirmed for the first time since the pair was given.
    PairConfirmed {
        /// The peer.
        device: DeviceId,
        /// This node's key.
        local: WireGuardPublicKey,
        /// The peer's key.
        remote: WireGuardPublicKey,
    },
    /// A limit was passed, or a peer scans, and doors were shut for it: [`crate::DataPlane::take_behaviour`] says which.
    Shut,
    /// Handshakes with a peer got no answer for the whole attempt time (WireGuard whitepaper §6.4).
    PeerUnreachable {
        /// The peer.
        device: DeviceId,
    },
}

/// A live flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FlowStatus {
    /// Who opened it.
    pub originator: Originator,
    /// The flow as its originator's first packet shows it.
    pub flow: FiveTuple,
    /// The peer.
    pub peer: PeerIdentity,
    /// Under what it passes.
    pub permit: PermitRecord,
    /// When it ends at the latest, unless it is renewed.
    pub until: Deadline,
    /// The number of the peer's compiled rules.
    pub generation: u64,
    /// What TCP is doing; `None` for other protocols.
    pub tcp: Option<&'static str>,
    /// When it began.
    pub begun: Monotonic,
    /// When its last packet passed.
    pub last_seen: Monotonic,
    /// Packets from the originator.
    pub packets_out: u64,
    /// Bytes of inner packets from the originator.
    pub bytes_out: u64,
    /// Packets to the originator.
    pub packets_back: u64,
    /// Bytes of inner packets to the originator.
    pub bytes_back: u64,
}

/// The live flows that some peers have opened to this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InboundFlows {
    /// By peer, resource and service; those that carried most first.
    pub groups: Vec<FlowGroup>,
    /// How many flows had no room.
    pub unlisted: u64,
}

/// What peers did lately, for the controller.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Behaviour {
    /// [`crate::Settings::process`].
    pub process: u64,
    /// How much of what is limited was used.
    pub usages: Vec<Usage>,
    /// Who was refused too many destinations.
    pub scans: Vec<Scan>,
    /// To whom destinations were refused that are not too many here.
    pub refused: Vec<Scan>,
    /// From which outer addresses peers speak, as far as the controller has to be told.
    pub seen: Vec<SeenPeer>,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerStatus {
    /// Who it is.
    pub peer: PeerIdentity,
    /// Its approved tags.
    pub tags: Vec<Tag>,
    /// The inner addresses that it owns.
    pub addresses: Vec<IpAddr>,
    /// Where it is, if that is known.
    pub endpoint: Option<SocketAddr>,
    /// When its newest session was confirmed; `None` if none lives.
    pub session_since: Option<Monotonic>,
    /// When something was last received from it.
    pub last_received: Option<Monotonic>,
    /// The number of its compiled rules.
    pub generation: u64,
    /// How many flows it has.
    pub flows: usize,
    /// What it may open here.
    pub inbound: Vec<PermissionStatus>,
    /// What this node may open there.
    pub outbound: Vec<PermissionStatus>,
    /// Inner bytes sealed for it.
    pub bytes_out: u64,
    /// Inner bytes opened from it.
    pub bytes_in: u64,
}

/// A permission as the node enforces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PermissionStatus {
    /// Rule, resource and lease.
    pub permit: PermitRecord,
    /// What may be opened.
    pub services: Vec<Service>,
    /// Until when.
    pub until: Deadline,
}

/// Who is behind a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WhoIs {
    /// The peer that owns the address.
    pub peer: PeerIdentity,
    /// Its approved tags.
    pub tags: Vec<Tag>,
    /// Where it is.
    pub endpoint: Option<SocketAddr>,
    /// The newest live flow at that address and port, if there is one.
    pub flow: Option<FlowStatus>,
}

/// Why something passes or does not pass at this node, from the evaluator that judges packets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LocalExplanation {
    /// What was asked about.
    pub flow: FiveTuple,
    /// Who would open it.
    pub originator: Originator,
    /// The peer at the other end, if there is one.
    pub peer: Option<PeerIdentity>,
    /// The verdict.
    pub verdict: LocalVerdict,
    /// What else the peer's rules for this direction open, so that a person sees what was meant.
    pub named: Vec<PermissionStatus>,
    /// The number of the peer's compiled rules; 0 without a peer.
    pub generation: u64,
    /// The limit that was passed, if that is why.
    pub limit: Option<Limit>,
}

/// A verdict, for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum LocalVerdict {
    /// It passes.
    Allow {
        /// Under what.
        permit: PermitRecord,
        /// Until when.
        until: Deadline,
    },
    /// It does not.
    Deny {
        /// Why.
        reason: DenyReason,
    },
}
