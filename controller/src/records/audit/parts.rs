//! Parts of audit events.

use postern_common::{
    id::{DeviceId, ResourceName, RuleName, SessionId, SubjectId},
    time::WallTime,
};
use serde::{Deserialize, Serialize};

#[cfg(doc)]
use super::AuditEvent;
use crate::records::Quarantined;

/// Whom or what a revocation cuts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "name")]
pub enum RevokeTarget {
    /// One login session. The person can sign in again.
    Session(SessionId),
    /// One device: its key is refused until the revocation is lifted.
    Device(DeviceId),
    /// A person or service: disabled everywhere until the revocation is lifted.
    Subject(SubjectId),
    /// A node: it stays connected, and nothing passes to it or from it until the revocation is lifted.
    Node(DeviceId),
    /// A rule: it gives nothing until the revocation is lifted.
    Rule(RuleName),
    /// Somebody or something came into quarantine.
    Quarantine(Quarantined),
}

/// Why a lease ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum LeaseEnd {
    /// Its time ran out: the device did not come back, or policy gives it no more time.
    Expired,
    /// The login session ended, at its time or before.
    SessionEnded {
        /// Why, for people.
        reason: String,
    },
    /// The device was removed, revoked or has another session now.
    Device {
        /// Why, for people.
        reason: String,
    },
    /// The subject was disabled.
    Disabled {
        /// Why, for people.
        reason: String,
    },
    /// The device or its subject came into quarantine.
    Quarantined {
        /// Why, for people.
        reason: String,
    },
}

/// One access within [`AuditEvent::Decided`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecidedAccess {
    /// The rule that gives it.
    pub rule: RuleName,
    /// The resource.
    pub resource: ResourceName,
    /// Until when it could hold, whatever the lease.
    pub valid_until: Option<WallTime>,
    /// Why it would be refused if the rule were not only watched.
    pub would_deny: Option<String>,
}
