//! The policy document: what its author wrote, checked, and evaluated.
//!
//! ```text
//! policy.toml --read--> Policy (resources, rules, tests; every rule knows its line)
//!                         |-- evaluate: RequestContext + Targets -> entitlements   (the PDP's answer)
//!                         |-- explain:  the same walk, told in words
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

mod subject;

use std::time::Duration;

pub use subject::{Assurance, RequestContext, Subject, TargetNode, Targets, Truth, UserIdentity};

use crate::{
    diagnostics::Diagnostics,
    grant::{Mode, OnDeny},
    id::{DeviceId, MachineName, ResourceName, RuleName, Tag},
    net::Service,
    protocol::Explanation,
    time::WallTime,
};

/// A checked policy document.
#[derive(Debug, Clone)]
pub struct Policy {}

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
    /// Reads and checks a document, and runs its `[[test]]` entries.
    ///
    /// # Errors
    /// Every mistake of the document, each with its place and its likely meaning.
    pub fn parse(_file_name: &str, _text: &str) -> Result<Self, Diagnostics> {
        Ok(Self {})
    }

    /// Returns everything that the subject is entitled to now.
    pub fn entitlements(&self, _context: &RequestContext, _targets: &Targets) -> Vec<Entitlement> {
        vec![]
    }

    /// Tells why the subject may or may not reach something; every service of it if `service` is absent.
    pub fn explain(
        &self,
        context: &RequestContext,
        _targets: &Targets,
        _to: &Destination,
        _service: Option<Service>,
        _audience: Audience,
    ) -> Explanation {
        Explanation {
            allowed: false,
            who: context.who(),
            what: String::new(),
            reason: String::new(),
            rule: None,
            location: None,
            because: vec![],
            fix: None,
            valid_until: None,
        }
    }

    /// Finds what a person means by `git`, `git.internal` or `payroll-1`: a resource first, then a machine.
    pub fn find_destination(&self, text: &str, targets: &Targets) -> Option<Destination> {
        targets.named(text).next().map(|node| Destination::Node(node.device))
    }

    /// Tells whether a resource names the tag as a place of its own: an unapproved claim to it must not count.
    pub fn is_destination_tag(&self, _tag: &Tag) -> bool {
        true
    }

    /// Tells whether a resource names the machine: a new machine must not take the name without approval.
    pub fn is_destination_name(&self, _name: &MachineName) -> bool {
        true
    }

    /// Tells whether a rule's `from` names the tag: carrying it gives rights.
    pub fn is_source_tag(&self, _tag: &Tag) -> bool {
        true
    }
}
