//! The policy document: what its author wrote, checked, and evaluated.
//!
//! ```text
//! policy.toml --read--> Policy (resources, rules, tests; every rule knows its line)
//!                         |-- evaluate: RequestContext + Targets -> entitlements   (the PDP's answer)
//!                         |-- explain:  the same walk, told in words
//!                         |-- request:  what may be asked for, and who may approve
//!                         |-- restraint: what behaviour takes away for a time
//!                         |-- plan:     two policies, the same subjects -> who gains, who loses
//!                         `-- tests:    the document's own [[test]] entries
//! ```
//!
//! One evaluator serves all of them, so that an explanation cannot differ from the decision it explains.
//!
//! What must hold: nothing is entitled but by an `[[access]]` rule whose every condition is *true*; a `[[deny]]` takes
//! away from **every** rule what it covers (node, protocol and port, whichever resource named them), also when its own
//! conditions are *unknown*; an answer says until when it holds, and no later moment makes it wrong by itself.
//!
//! Rejected: a general expression language for conditions. The person who owns a resource could not read it, and
//! neither `valid_until` nor a plan could be computed from it.

mod check;
mod closed;
mod condition;
mod evaluate;
mod explain;
mod hours;
mod limit_changes;
mod limits;
mod model;
mod place;
mod plan;
mod posture;
mod proof;
mod read;
mod request;
mod restraint;
mod selector;
mod services;
mod step_up;
mod subject;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

pub use check::{TestFailure, TestOutcome};
pub use hours::HoursError;
pub use limit_changes::LimitChange;
pub use limits::{LimitResponse, StayLimit};
pub use model::{NodeSelector, Resource, Sensitivity};
pub use place::{AutonomousSystem, AutonomousSystemError, Country, CountryError, Place};
pub use plan::{ChangeKind, Loss, PlanChange};
pub use posture::PostureDemand;
pub use proof::{Anew, Demand, Phishing};
pub use read::{DEFAULT_LEASE, LEASE_LIMITS};
pub use request::{Approval, Requestable};
pub use restraint::{ASK_ADMINISTRATOR, Reach, Restraint};
pub use selector::{Selector, SelectorError};
pub use step_up::StepUp;
pub use subject::{Assurance, RequestContext, Subject, TargetNode, Targets, Truth, UserIdentity};

use condition::Lens;
use evaluate::Evaluation;
use model::Model;

use crate::{
    diagnostics::{Diagnostic, Diagnostics},
    grant::{Mode, OnDeny},
    id::{DeviceId, MachineName, ResourceName, RuleName, ServiceName, Tag},
    limit::Limit,
    net::Service,
    time::WallTime,
};

/// A checked policy document. Cloning it is cheap.
#[derive(Debug, Clone)]
pub struct Policy {
    model: Arc<Model>,
}

/// What one rule gives one subject on some nodes, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entitlement {
    /// The rule that gives it.
    pub rule: RuleName,
    /// Where the rule stands: `policy.toml:41`.
    pub location: String,
    /// The resource that the rule names.
    pub resource: ResourceName,
    /// The nodes, in the order of their devices; never empty.
    pub nodes: Vec<DeviceId>,
    /// What may be opened there; never empty.
    pub services: Vec<Service>,
    /// Until when this holds if nothing but time changes; later than the decision's `now`.
    pub valid_until: WallTime,
    /// How long a lease of it lasts at most.
    pub lease: Duration,
    /// What a refused packet to these nodes gets.
    pub on_deny: OnDeny,
    /// Whether the permission was earned or is lent by a watched rule.
    pub mode: Mode,
    /// Whether a stock WireGuard client may use it.
    pub stock_clients: bool,
    /// How much of it, within how long.
    pub limits: Vec<Limit>,
    /// The selector of the rule's `from` that named the subject: `group:payroll`.
    pub via: String,
}

/// What somebody asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A resource by its name.
    Resource(ResourceName),
    /// Everything on one node.
    Node(DeviceId),
}

/// For whom an explanation is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// An administrator: everything is told.
    Operator,
    /// The subject itself: of a resource that no rule opens to it under any condition, it is not told that it exists.
    Subject,
}

impl Policy {
    /// Tells whether any access goes by groups.
    pub fn names_groups(&self) -> bool {
        let mut named = self.model.access.iter().flat_map(|access| &access.from);
        named.any(|selector| matches!(selector, Selector::Group(_)))
    }

    /// The policy of a controller that was never given one: nobody may reach anything.
    pub fn empty() -> Self {
        Self { model: Arc::default() }
    }

    /// Reads and checks a document, and runs its `[[test]]` entries. `file_name` is what places are shown with.
    ///
    /// # Errors
    /// Every mistake of the document, each with its place and its likely meaning; if there is none, every test that fails.
    pub fn parse(file_name: &str, text: &str) -> Result<Self, Diagnostics> {
        let policy = Self { model: Arc::new(read::read(file_name, text)?) };
        let mut diagnostics = Diagnostics::new(file_name, text);
        for outcome in policy.run_tests() {
            if let Some(TestFailure { message, why, span }) = outcome.failure {
                diagnostics.push(Diagnostic::at(span, message).help(why));
            }
        }
        diagnostics.into_result(policy)
    }

    /// Returns everything that the subject is entitled to now, in the order of the document.
    pub fn entitlements(&self, context: &RequestContext, targets: &Targets) -> Vec<Entitlement> {
        let granted = Evaluation::new(&self.model, context, targets, Lens::Actual).granted();
        let entitlement = |granted: evaluate::Granted| {
            let access = &self.model.access[granted.access];
            let resource = &self.model.resources[granted.resource];
            Entitlement {
                rule: access.name.clone(),
                location: self.model.location(access.line),
                resource: resource.name.clone(),
                nodes: granted.nodes.iter().map(|node| targets.nodes()[*node].device).collect(),
                services: granted.services,
                valid_until: granted.until,
                lease: access.lease,
                on_deny: resource.on_deny,
                mode: granted.mode,
                stock_clients: access.stock_clients,
                limits: access.limits_at(context.latest()), // watched no longer than at every time that it may be
                via: granted.via.to_string(),
            }
        };
        granted.into_iter().map(entitlement).collect()
    }

    /// Returns the resources, in the order of the document.
    pub fn resources(&self) -> &[Resource] {
        &self.model.resources
    }

    /// Finds a resource by its name.
    pub fn resource(&self, name: &ResourceName) -> Option<&Resource> {
        self.model.resource_by_name.get(name).map(|index| &self.model.resources[*index])
    }

    /// Returns the names of all rules, accesses first: for revoking by rule and for completion.
    pub fn rule_names(&self) -> impl Iterator<Item = &RuleName> {
        let access = self.model.access.iter().map(|rule| &rule.name);
        access.chain(self.model.deny.iter().map(|rule| &rule.name))
    }

    /// Tells whether a resource names the tag as a place of its own: an unapproved claim to it must not count.
    pub fn is_destination_tag(&self, tag: &Tag) -> bool {
        self.model.destination_tags.contains(tag)
    }

    /// Tells whether a resource names the machine: a new machine must not take the name without approval.
    pub fn is_destination_name(&self, name: &MachineName) -> bool {
        self.model.destination_names.contains(name)
    }

    /// Tells whether a rule's `from` names the tag: carrying it changes what a machine may do.
    pub fn is_source_tag(&self, tag: &Tag) -> bool {
        self.model.source_tags.contains(tag)
    }

    /// Returns every service identity that rules name.
    pub fn service_names(&self) -> &BTreeSet<ServiceName> {
        &self.model.service_names
    }

    /// Returns the rules that are only watched, with the moment at which that ends: what must be said loudly.
    pub fn watched_rules(&self) -> impl Iterator<Item = (&RuleName, WallTime)> {
        let access = self.model.access.iter().map(|rule| (&rule.name, rule.monitor_until));
        let deny = self.model.deny.iter().map(|rule| (&rule.name, rule.monitor_until));
        let limits = self.model.limits.iter().map(|rule| (&rule.name, rule.monitor_until));
        access.chain(deny).chain(limits).filter_map(|(name, until)| until.map(|until| (name, until)))
    }
}
