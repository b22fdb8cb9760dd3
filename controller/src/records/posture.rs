//! What is kept of devices' posture.

use postern_common::{id::DeviceId, posture::Report, time::WallTime};
use serde::{Deserialize, Serialize};

/// What is known of a device's posture. It ages while nobody looks: the times are the controller's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostureRecord {
    /// The device.
    pub device: DeviceId,
    /// What it last said of itself, and when that was so.
    pub own: Option<Report>,
    /// What a device-management system last said of it, and when that was so.
    pub attested: Option<Report>,
    /// The serial number that an administrator bound to it.
    pub serial: Option<String>,
    /// Whether it is compliant, as a stream of events last said.
    #[serde(default)]
    pub compliance: Option<Box<ComplianceRecord>>,
}

/// What a stream of events last said of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComplianceRecord {
    /// Whether its management finds it as it wants it.
    pub compliant: bool,
    /// Since when.
    pub at: WallTime,
    /// Which stream said so: it holds while that one speaks.
    pub stream: String,
}
