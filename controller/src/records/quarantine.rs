//! What is kept of a quarantine: whom or what it holds, why, since when.

use std::{fmt, str::FromStr};

use postern_common::{
    id::{DeviceId, ResourceName, SubjectId, Tag},
    net::Service,
    policy::{NodeSelector, TargetNode},
    time::WallTime,
};
use serde::{Deserialize, Serialize};

/// Whom or what a quarantine holds. Each has at most one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "name")]
pub enum Quarantined {
    /// A person or service: nothing passes to or from any machine of theirs.
    Subject(SubjectId),
    /// A machine, server or laptop: nothing passes to it or from it, whoever signs in there.
    Device(DeviceId),
    /// A resource: nobody may open it, by whatever name.
    Resource(ResourceName),
}

impl fmt::Display for Quarantined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subject(id) => write!(f, "subject {id}"),
            Self::Device(id) => write!(f, "device {id}"),
            Self::Resource(name) => write!(f, "resource {name}"),
        }
    }
}

/// What a resource was when it came into quarantine: a policy that calls it something else opens nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Covered {
    /// Its nodes, as policies name them: `payroll-1`, `tag:payroll`.
    pub nodes: Vec<String>,
    /// Its protocols and ports.
    pub services: Vec<Service>,
    /// The machines that carried it, whatever they are called later.
    #[serde(default)]
    pub devices: Vec<DeviceId>,
}

impl Covered {
    /// Takes down what a resource is now.
    pub fn of(nodes: &[NodeSelector], services: &[Service]) -> Self {
        Self { nodes: nodes.iter().map(ToString::to_string).collect(), services: services.to_vec(), devices: vec![] }
    }

    /// Tells whether a node carries it.
    pub fn is_on(&self, node: &TargetNode) -> bool {
        self.devices.contains(&node.device)
            || self.nodes.iter().any(|named| match named.strip_prefix("tag:") {
                Some(tag) => Tag::from_str(tag).is_ok_and(|tag| node.tags.contains(&tag)),
                None => node.name.as_str() == named,
            })
    }
}

/// One quarantine. It stays until somebody releases it: it outlives restarts, sign-ins, renewals and policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineRecord {
    /// Whom or what it holds.
    pub target: Quarantined,
    /// Why, for people.
    pub reason: String,
    /// The operating system's user who asked for it, or the signal that did.
    pub by: String,
    /// Since when.
    pub since: WallTime,
    /// What a resource was at that moment; empty for the others.
    #[serde(default)]
    pub covered: Covered,
}
