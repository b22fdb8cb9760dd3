//! The closed list of reasons for which a node refuses a packet.
//!
//! Every drop on the packet path carries one of these; counters, flow records, `explain` and tests use the same
//! words. Reasons that only a decision about a person can have (a posture, an hour) belong to
//! [`crate::policy`]; they reach a node as an absent permission and a person through `explain`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a packet was refused by policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenyReason {
    /// No peer owns the other end's address: nothing entitles this node and that device to meet.
    UnknownPeer,
    /// The peer is known, but no live permission names this protocol and port in this direction.
    NoRule,
    /// A rule opens it to this subject after stronger or fresher proof of sign-in, and not before.
    StepUp,
    /// The subject has used more than a limit of the rule lets it, or scans.
    Limit,
    /// A permission named it, and its deadline has passed.
    Expired,
    /// A permission named it when the flow began; a change at the controller has taken it away.
    Revoked,
    /// The inner source address is not one that the peer owns, or the local source is not this node's.
    SourceNotOwned,
    /// The owner of this machine keeps it closed with the ceiling in `node.toml`.
    Ceiling,
    /// The peer has as many flows as one peer may have.
    FlowQuota,
    /// A TCP segment in mid-stream without a flow, shortly after this node started: it comes back by itself.
    Settling,
    /// A reply, or an ICMP error, that belongs to no flow.
    NoFlow,
    /// The transport header is hidden, cut off or contradictory: fragments, extension headers, lengths.
    Unclassifiable,
    /// A protocol that no rule can name.
    UnsupportedProtocol,
}

impl DenyReason {
    /// Every reason, in the order of their declaration: for counters and their labels.
    pub const ALL: [Self; 13] = [
        Self::UnknownPeer,
        Self::NoRule,
        Self::StepUp,
        Self::Limit,
        Self::Expired,
        Self::Revoked,
        Self::SourceNotOwned,
        Self::Ceiling,
        Self::FlowQuota,
        Self::Settling,
        Self::NoFlow,
        Self::Unclassifiable,
        Self::UnsupportedProtocol,
    ];

    /// Returns the label for counters and JSON, in snake case.
    pub const fn label(self) -> &'static str {
        match self {
            Self::UnknownPeer => "unknown_peer",
            Self::NoRule => "no_rule",
            Self::StepUp => "step_up",
            Self::Limit => "limit",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::SourceNotOwned => "source_not_owned",
            Self::Ceiling => "ceiling",
            Self::FlowQuota => "flow_quota",
            Self::Settling => "settling",
            Self::NoFlow => "no_flow",
            Self::Unclassifiable => "unclassifiable",
            Self::UnsupportedProtocol => "unsupported_protocol",
        }
    }
}

impl fmt::Display for DenyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownPeer => "nothing entitles this machine to meet that address",
            Self::NoRule => "no rule names this protocol and port",
            Self::StepUp => "it asks for stronger or fresher proof of sign-in",
            Self::Limit => "a limit of the rule was passed",
            Self::Expired => "the lease has run out",
            Self::Revoked => "the permission was taken back",
            Self::SourceNotOwned => "the source address belongs to somebody else",
            Self::Ceiling => "the owner of the machine keeps this closed (ceiling in node.toml)",
            Self::FlowQuota => "the peer has as many flows as one peer may have",
            Self::Settling => "the node has just started and waits for the connection to speak again",
            Self::NoFlow => "it answers nothing that was asked",
            Self::Unclassifiable => "its transport header is hidden or contradictory",
            Self::UnsupportedProtocol => "no rule can name this protocol",
        })
    }
}
