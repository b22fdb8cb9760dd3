//! Restraints: what is taken from a subject for a time because of how it behaves, or of what its identity provider says.
//!
//! ```text
//! a limit was passed, the place changed, credentials changed --> Restraint in the context of the decision
//!   Challenge: proof of sign-in from before it does not count    --step_ups--> offered to the person as any other step-up,
//!              for everything, for what one rule gives, or for that on one machine
//!   Only:      nothing but the named resources
//! ```
//!
//! Invariants: a restraint gives nothing, it only takes away; it holds whatever the mode of a rule is (a watched rule lends no way
//! round it); a service has no sign-in, so a challenge of a service stays until an administrator releases it. A sign-in without a
//! time, or with one that lies in the future, is no answer to a challenge.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    Audience,
    condition::{Lens, Unmet},
    model::{Access, Model},
    proof::{Anew, Demand},
    subject::{RequestContext, Subject, Truth},
};
use crate::{
    id::{DeviceId, ResourceName, RuleName},
    time::WallTime,
};

/// The fix for a person who can do nothing about it by themselves.
pub const ASK_ADMINISTRATOR: &str = "ask your administrator";

/// What of a subject's access a challenge concerns.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Reach {
    /// Everything.
    Everything,
    /// What one rule gives of one resource.
    Access {
        /// The rule.
        rule: RuleName,
        /// The resource.
        resource: ResourceName,
    },
    /// What one rule gives of one resource on one machine: what that machine's own word closes.
    AccessOn {
        /// The rule.
        rule: RuleName,
        /// The resource.
        resource: ResourceName,
        /// The machine.
        node: DeviceId,
    },
}

impl Reach {
    /// Tells whether what a rule gives of a resource is concerned: on every machine, or with `on`, on that one.
    pub fn covers(&self, rule: &RuleName, resource: &ResourceName, on: Option<DeviceId>) -> bool {
        match self {
            Self::Everything => true,
            Self::Access { rule: of, resource: to } => of == rule && to == resource,
            Self::AccessOn { rule: of, resource: to, node } => of == rule && to == resource && on == Some(*node),
        }
    }
}

/// What is taken from a subject, as a decision sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restraint {
    /// A sign-in that was proven before `since`, or then, does not count.
    Challenge {
        /// For what.
        reach: Reach,
        /// Since when.
        since: WallTime,
        /// Why, for people: `payroll-app: more than 2 GiB within 1 h`.
        reason: String,
        /// On whom it lies, as the command that releases it names them: `subject bob@corp.example`.
        whom: String,
    },
    /// Nothing but these resources.
    Only {
        /// What stays; empty for nothing at all.
        resources: BTreeSet<ResourceName>,
        /// Why, for people.
        reason: String,
        /// On whom it lies, as the command that releases it names them.
        whom: String,
    },
}

impl Restraint {
    /// Tells whether it is of one machine alone.
    pub(super) const fn is_of_one_machine(&self) -> bool {
        match self {
            Self::Challenge { reach: Reach::AccessOn { .. }, .. } => true,
            Self::Challenge { reach: Reach::Everything | Reach::Access { .. }, .. } | Self::Only { .. } => false,
        }
    }
}

impl Access {
    /// Joins what challenges ask of the proof of sign-in before this rule gives a resource, on any machine or on that one; nothing if
    /// none does.
    pub(super) fn challenged(&self, resource: &ResourceName, on: Option<DeviceId>, context: &RequestContext) -> Demand {
        let anew = context.restraints.iter().filter_map(|restraint| match restraint {
            Restraint::Challenge { reach, since, reason, whom: _ } if reach.covers(&self.name, resource, on) => {
                Some(Anew { after: *since, reason: reason.clone() })
            }
            Restraint::Challenge { .. } | Restraint::Only { .. } => None,
        });
        Demand { anew: anew.max(), ..Demand::default() }
    }

    /// Tells why a restraint keeps this rule from giving a resource, on any machine or on that one, and who can mend that; nothing if
    /// none does. Time passing frees nobody.
    pub(super) fn restrained(
        &self,
        model: &Model,
        resource: &ResourceName,
        on: Option<DeviceId>,
        context: &RequestContext,
        lens: Lens,
        audience: Audience,
    ) -> Option<Unmet> {
        if context.restraints.is_empty() || lens == Lens::Anyhow {
            return None;
        }
        let only = context.restraints.iter().find_map(|restraint| match restraint {
            Restraint::Only { resources, reason, whom } if !resources.contains(resource) => Some((reason, whom)),
            Restraint::Only { .. } | Restraint::Challenge { .. } => None,
        });
        if let Some((reason, whom)) = only {
            let demand = "gives nothing until an administrator releases it".into();
            let fix = Some(release(whom, audience));
            return Some(Unmet { fact: reason.clone(), demand, fix, mended_by_step_up: false });
        }
        let demand = self.challenged(resource, on, context);
        let anew = demand.anew.as_ref()?;
        match context.subject {
            Subject::User { .. } if lens.grants_proof() || demand.state(model, context).truth == Truth::True => None,
            Subject::User { .. } => Some(Unmet {
                fact: anew.reason.clone(),
                demand: "asks for a fresh sign-in".into(),
                fix: None,
                mended_by_step_up: true,
            }),
            Subject::Service { .. } => Some(Unmet {
                fact: anew.reason.clone(),
                demand: "gives nothing to a service until an administrator releases it".into(),
                fix: self.challenger(resource, on, context).map(|whom| release(whom, audience)),
                mended_by_step_up: false,
            }),
        }
    }

    /// Returns on whom the last challenge lies that concerns what this rule gives of a resource.
    fn challenger<'a>(
        &self,
        resource: &ResourceName,
        on: Option<DeviceId>,
        context: &'a RequestContext,
    ) -> Option<&'a str> {
        let challenges = context.restraints.iter().filter_map(|restraint| match restraint {
            Restraint::Challenge { reach, since, whom, .. } if reach.covers(&self.name, resource, on) => {
                Some((since, whom.as_str()))
            }
            Restraint::Challenge { .. } | Restraint::Only { .. } => None,
        });
        challenges.max().map(|(_, whom)| whom)
    }
}

/// Says how a restraint ends that no sign-in ends.
fn release(whom: &str, audience: Audience) -> String {
    match audience {
        Audience::Operator => format!("postern-controller restraint release {whom}"),
        Audience::Subject => ASK_ADMINISTRATOR.into(),
    }
}
