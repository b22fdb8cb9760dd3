//! What is kept of access that an administrator opened past the rules.

use postern_common::{
    id::{BreakGlassId, DeviceId, ResourceName, SubjectId},
    time::WallTime,
};
use serde::{Deserialize, Serialize};

/// One opening: one subject on one device to one resource, until it ends by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakGlassRecord {
    /// Names it.
    pub id: BreakGlassId,
    /// Who may pass.
    pub subject: SubjectId,
    /// On which device.
    pub device: DeviceId,
    /// To what.
    pub resource: ResourceName,
    /// Why it is needed.
    pub reason: String,
    /// Why no rule and no request would do.
    pub why_past_the_rules: String,
    /// The operating system's user who opened it.
    pub by: String,
    /// When.
    pub at: WallTime,
    /// Until when.
    pub until: WallTime,
}
