//! What is kept of a request for access for a time.

use std::time::Duration;

use postern_common::{
    id::{DeviceId, RequestId, ResourceName, RuleName, SubjectId},
    policy::Approval,
    protocol::AccessRequestState,
    time::WallTime,
};
use serde::{Deserialize, Serialize};

/// A request of one subject on one device for one resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRecord {
    /// The request.
    pub id: RequestId,
    /// Who asks.
    pub subject: SubjectId,
    /// On which device: an approval opens nothing on another.
    pub device: DeviceId,
    /// The rule under which it was asked.
    pub rule: RuleName,
    /// What was asked for.
    pub resource: ResourceName,
    /// For how long, milliseconds, from the approval on.
    pub length_ms: u64,
    /// Why.
    pub reason: String,
    /// When.
    pub asked: WallTime,
    /// Who may decide, as the policy named them then.
    pub approvers: Vec<String>,
    /// What became of it.
    pub state: AccessRequestState,
}

impl RequestRecord {
    /// Returns for how long was asked.
    pub const fn length(&self) -> Duration {
        Duration::from_millis(self.length_ms)
    }

    /// Returns the approval that this is for a subject on a device, if it is one.
    pub fn approval(&self, subject: SubjectId, device: DeviceId) -> Option<Approval> {
        if self.subject != subject || self.device != device {
            return None;
        }
        match self.state {
            AccessRequestState::Approved { at, until, .. } => {
                Some(Approval { rule: self.rule.clone(), resource: self.resource.clone(), at, until })
            }
            AccessRequestState::Waiting { .. } | AccessRequestState::Refused { .. } => None,
        }
    }

    /// Returns when it is of no interest any more but to the audit log.
    pub fn over(&self) -> WallTime {
        match self.state {
            AccessRequestState::Waiting { until } | AccessRequestState::Approved { until, .. } => until,
            AccessRequestState::Refused { at, .. } => at,
        }
    }
}
