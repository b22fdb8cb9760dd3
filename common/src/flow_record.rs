//! What is recorded about a flow: who did what, from where, with which device, under which rule, and how it ended.
//!
//! Records are JSON lines. A node writes a start and an end for every flow that passed, and a rate-limited, counted
//! deny (or would-deny) for what was refused.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{
    id::{DeviceId, LeaseId, MachineName, ResourceName, RuleName, SubjectId},
    net::FiveTuple,
    reason::DenyReason,
    time::WallTime,
};

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// When it happened, by the node's clock.
    pub at: WallTime,
    /// What happened.
    pub event: FlowEvent,
    /// Who opened the flow: this node, or the peer.
    pub originator: Originator,
    /// The flow as its originator's first packet shows it.
    pub flow: FiveTuple,
    /// The peer, if the address belongs to one.
    pub peer: Option<PeerIdentity>,
    /// The peer's outer address, if it is known.
    pub peer_outer: Option<SocketAddr>,
    /// The permit under which it passed or would have passed.
    pub permit: Option<PermitRecord>,
    /// The number of the peer's compiled rules at that moment.
    pub generation: u64,
}

/// Who a peer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerIdentity {
    /// The peer's device.
    pub device: DeviceId,
    /// The peer's machine name.
    pub machine: MachineName,
    /// The peer's subject.
    pub subject: SubjectId,
    /// The subject's name for people.
    pub subject_name: String,
}

impl PeerIdentity {
    /// Tells whether the peer's subject is a service. The controller names services alone so: no person's name may begin like a
    /// selector.
    pub fn is_service(&self) -> bool {
        self.subject_name.starts_with("service:")
    }
}

/// What let a flow pass.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermitRecord {
    /// The rule.
    pub rule: RuleName,
    /// The resource.
    pub resource: ResourceName,
    /// The lease.
    pub lease: LeaseId,
    /// Why a watched rule would have refused; absent where the rule is enforced.
    pub would_deny: Option<String>,
}

/// Who opened a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Originator {
    /// This node.
    Local,
    /// The peer.
    Peer,
}

/// What happened to a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum FlowEvent {
    /// It was allowed and began.
    Start,
    /// It ended.
    End {
        /// Why.
        why: FlowEnd,
        /// Milliseconds from its first to its last packet.
        duration_ms: u64,
        /// Packets from the originator.
        packets_out: u64,
        /// Bytes of inner packets from the originator.
        bytes_out: u64,
        /// Packets to the originator.
        packets_back: u64,
        /// Bytes of inner packets to the originator.
        bytes_back: u64,
    },
    /// It was refused.
    Deny {
        /// Why.
        reason: DenyReason,
        /// How many more packets of the same flow key were refused since the last record and not recorded singly.
        repeated: u64,
    },
}

/// Why a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlowEnd {
    /// TCP closed by FIN in both directions.
    Closed,
    /// TCP closed by RST.
    Reset,
    /// Nothing was heard for the protocol's idle time.
    Idle,
    /// The permission's deadline passed.
    Expired,
    /// The permission was taken back, or the peer was removed.
    Revoked,
    /// The subject used more than a limit of the rule lets it, or its machine scans.
    Limit,
    /// The device has another subject now.
    SubjectChanged,
    /// The table was full and this was the peer's least recently used flow.
    Evicted,
    /// The node stopped.
    Shutdown,
}
