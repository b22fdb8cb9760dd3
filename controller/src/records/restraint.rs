//! What is kept of a restraint: whom it concerns, what it takes away, why, since when.

use std::{collections::BTreeSet, fmt};

use postern_common::{
    id::{DeviceId, ResourceName, RuleName, SubjectId},
    policy::{Reach, Restraint},
    time::WallTime,
};
use serde::{Deserialize, Serialize};

/// Whom a restraint concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "id")]
pub enum Restrained {
    /// A person or service, on every machine of theirs, also on those that join later.
    Subject(SubjectId),
    /// Whoever signs in on one machine.
    Device(DeviceId),
}

impl fmt::Display for Restrained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Subject(id) => write!(f, "subject {id}"),
            Self::Device(id) => write!(f, "device {id}"),
        }
    }
}

/// What a restraint takes away. Of the same kind, whoever is restrained has one for each reach or set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Takes {
    /// Proof of sign-in from before counts for nothing of this.
    Proof {
        /// For what.
        reach: Reach,
    },
    /// Nothing any more: it was released. Budgets count from then on.
    Nothing,
    /// Everything but these resources.
    AllBut {
        /// What stays.
        resources: BTreeSet<ResourceName>,
    },
}

/// One restraint. A challenge is met by every later sign-in and stays for those from before; both kinds stay until an
/// administrator releases them: they outlive restarts, sessions and policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestraintRecord {
    /// Whom it concerns.
    pub whom: Restrained,
    /// What it takes away.
    pub takes: Takes,
    /// Why, for people.
    pub reason: String,
    /// The operating system's user who asked for it, or the signal that did.
    pub by: String,
    /// Since when.
    pub since: WallTime,
    /// The number of the budgets that it begins, each greater than those before; 0 if it begins none. Wall time in milliseconds, unless
    /// the clock was set back.
    #[serde(default)]
    pub budget: u64,
}

impl Takes {
    /// Tells whether the budget of what a rule gives of a resource begins anew by it.
    pub fn covers(&self, rule: &RuleName, resource: &ResourceName) -> bool {
        match self {
            Self::Proof { reach } => reach.covers(rule, resource),
            Self::Nothing => true,
            Self::AllBut { resources } => !resources.contains(resource),
        }
    }

    /// Tells whether it is about more than what one rule gives.
    pub const fn is_wide(&self) -> bool {
        match self {
            Self::Proof { reach: Reach::Everything } | Self::Nothing | Self::AllBut { .. } => true,
            Self::Proof { reach: Reach::Access { .. } } => false,
        }
    }
}

impl RestraintRecord {
    /// Returns the record's name in the store.
    pub fn name(&self) -> String {
        let takes = serde_json::to_string(&self.takes).expect("a restraint has no part without a JSON form");
        format!("{} {takes}", self.whom)
    }

    /// Returns what a decision sees of it, if it takes anything.
    pub fn in_force(&self) -> Option<Restraint> {
        let reason = self.reason.clone();
        match &self.takes {
            Takes::Nothing => None,
            Takes::Proof { reach } => Some(Restraint::Challenge { reach: reach.clone(), since: self.since, reason }),
            Takes::AllBut { resources } => Some(Restraint::Only { resources: resources.clone(), reason }),
        }
    }
}
