//! Machines that sign in with tokens of the platform that they run on.

use std::{collections::BTreeSet, time::Duration};

use postern_common::{
    id::{MachineName, ServiceName, Tag},
    key::DevicePublicKey,
    time::WallTime,
};
use serde::{Deserialize, Serialize};

use super::TokenHash;

/// Whether the machine that showed a token may show it again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// It may: the platform leaves the token in a file. No other machine may.
    SameMachine,
    /// Nobody may: the platform gives a new one each time.
    Never,
}

/// What the core takes from a platform's token that was checked. The shell makes it by [`crate::identity::machine`] alone; tests
/// and simulations write it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// The issuer's name in `controller.toml`.
    pub issuer: String,
    /// What the platform calls the workload, for people.
    pub subject: String,
    /// What of the workload no other has: the pod's `uid`, the run's `run_id` and attempt; `sub` where the platform tells no more.
    pub instance: String,
    /// The service identity that it stands for.
    pub service: ServiceName,
    /// The tags that it approves.
    pub tags: BTreeSet<Tag>,
    /// The machine name that it approves.
    pub machine: Option<MachineName>,
    /// Names the token.
    pub token: TokenHash,
    /// Whether it may be shown again.
    pub reuse: Reuse,
    /// When the token was issued, by the platform's clock.
    pub issued: WallTime,
    /// When the token ends.
    pub expires: WallTime,
    /// After how long without a stream the machine is forgotten.
    pub forget_after: Duration,
}

/// What a device hangs on that signs in with tokens of its platform.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformBinding {
    /// The issuer's name in `controller.toml`.
    pub issuer: String,
    /// What the platform calls the workload.
    pub subject: String,
    /// What of the workload no other has; absent before that was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The machine name that its newest token vouches for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<MachineName>,
    /// After how many milliseconds without a stream the machine is forgotten.
    pub forget_after_ms: u64,
}

/// A platform's token that a machine has shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUseRecord {
    /// Names the token.
    pub token: TokenHash,
    /// The device key that showed it first: no other may.
    pub key: DevicePublicKey,
    /// The service that it stands for; absent before that was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// When the token ends.
    pub expires: WallTime,
    /// Whether what it opened was taken back: it opens nothing again.
    pub spent: bool,
}
