//! What is kept of a restraint: whom it concerns, what it takes away, why, since when.

use std::{collections::BTreeSet, fmt};

use postern_common::{
    diagnostics::shell_word,
    id::{DeviceId, ResourceName, RuleName, SubjectId},
    limit::{Limit, Measure},
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
    /// Only proof from after that meets it: the last time that it was asked.
    pub since: WallTime,
    /// When it was first asked; `since` if that is absent. Whatever joined after it shares it, however often it is asked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<WallTime>,
    /// The number of the budgets of everything that it takes, greater than those before; 0 if it begins none. Wall time in milliseconds,
    /// unless the clock was set back.
    #[serde(default)]
    pub budget: u64,
    /// The counts of single limits that began anew with it, or with another response of the same kind since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub begun: Vec<Begun>,
}

/// The count of one limit that began anew: what follows from passing one limit is no way to be forgotten by another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// The rule whose limit it is.
    pub rule: RuleName,
    /// Of what.
    pub resource: ResourceName,
    /// What it counts.
    pub measure: Measure,
    /// Within how long, milliseconds.
    pub within_ms: u64,
    /// The one machine on which it began anew; absent for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<DeviceId>,
    /// Its number, as [`RestraintRecord::budget`].
    pub budget: u64,
}

/// The most counts that one record remembers; beyond it, everything that it takes begins anew.
const MAX_BEGUN: usize = 64;

impl Begun {
    /// Tells whether it is the same count, if of another number.
    fn is_same(&self, other: &Self) -> bool {
        (&self.rule, &self.resource, self.measure, self.within_ms, self.node)
            == (&other.rule, &other.resource, other.measure, other.within_ms, other.node)
    }
}

/// Returns the number of the budget of a limit on one machine, by what its subject was restrained for.
pub fn budget_of(
    records: &[RestraintRecord],
    rule: &RuleName,
    resource: &ResourceName,
    limit: &Limit,
    on: DeviceId,
) -> u64 {
    let fits = |begun: &&Begun| {
        (&begun.rule, &begun.resource, begun.measure, begun.within_ms)
            == (rule, resource, limit.measure, limit.within_ms)
            && begun.node.is_none_or(|node| node == on)
    };
    let wide = records.iter().filter(|record| record.takes.covers(rule, resource)).map(|record| record.budget);
    let single = records.iter().flat_map(|record| &record.begun).filter(fits).map(|begun| begun.budget);
    wide.chain(single).max().unwrap_or(0)
}

impl Takes {
    /// Tells whether the budgets of what a rule gives of a resource begin anew by it.
    pub fn covers(&self, rule: &RuleName, resource: &ResourceName) -> bool {
        match self {
            Self::Proof { reach: Reach::AccessOn { rule: of, resource: to, .. } } => of == rule && to == resource,
            Self::Proof { reach } => reach.covers(rule, resource, None),
            Self::Nothing => true,
            Self::AllBut { resources } => !resources.contains(resource),
        }
    }

    /// Says what is taken, for people; `None` if nothing is.
    pub fn words(&self) -> Option<String> {
        match self {
            Self::Nothing => None,
            Self::Proof { reach: Reach::Everything } => Some("has to sign in anew".into()),
            Self::Proof { reach: Reach::Access { resource, .. } | Reach::AccessOn { resource, .. } } => {
                Some(format!("has to sign in anew for {resource}"))
            }
            Self::AllBut { resources } if resources.is_empty() => Some("kept to nothing".into()),
            Self::AllBut { resources } => {
                let names: Vec<&str> = resources.iter().map(ResourceName::as_str).collect();
                Some(format!("kept to {}", names.join(", ")))
            }
        }
    }

    /// Tells whether it is about more than what one rule gives.
    pub const fn is_wide(&self) -> bool {
        match self {
            Self::Proof { reach: Reach::Everything } | Self::Nothing | Self::AllBut { .. } => true,
            Self::Proof { reach: Reach::Access { .. } | Reach::AccessOn { .. } } => false,
        }
    }
}

impl RestraintRecord {
    /// Returns when it was first asked.
    pub fn first(&self) -> WallTime {
        self.first.unwrap_or(self.since)
    }

    /// Notes that the count of a limit began anew.
    pub fn begin(&mut self, begun: Begun) {
        self.begun.retain(|known| !known.is_same(&begun));
        self.begun.push(begun);
        if self.begun.len() > MAX_BEGUN {
            self.budget = self.last_budget();
            self.begun.clear();
        }
    }

    /// Returns the greatest number that began with it.
    pub fn last_budget(&self) -> u64 {
        self.begun.iter().map(|begun| begun.budget).chain([self.budget]).max().unwrap_or(0)
    }

    /// Returns the record's name in the store.
    pub fn name(&self) -> String {
        let takes = serde_json::to_string(&self.takes).expect("a restraint has no part without a JSON form");
        format!("{} {takes}", self.whom)
    }

    /// Returns what a decision sees of it, if it takes anything. `name` is the name for people of whom it concerns.
    pub fn in_force(&self, name: impl FnOnce() -> String) -> Option<Restraint> {
        let reason = self.reason.clone();
        let whom = || match self.whom {
            Restrained::Subject(_) => format!("subject {}", shell_word(&name())),
            Restrained::Device(_) => format!("device {}", shell_word(&name())),
        };
        match &self.takes {
            Takes::Nothing => None,
            Takes::Proof { reach } => {
                Some(Restraint::Challenge { reach: reach.clone(), since: self.since, reason, whom: whom() })
            }
            Takes::AllBut { resources } => Some(Restraint::Only { resources: resources.clone(), reason, whom: whom() }),
        }
    }
}
