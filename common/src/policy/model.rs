//! The checked model: what is left of a document when every name is resolved and every text is parsed.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use super::{
    condition::When,
    limits::{AccessLimit, ResourceSet, SubjectLimit},
    place::Place,
    posture::PostureException,
    proof::Phishing,
    request::OnRequest,
    selector::Selector,
    subject::{RequestContext, Subject, Targets, Truth},
};
use crate::{
    grant::OnDeny,
    id::{MachineName, ResourceName, RuleName, ServiceName, Tag},
    limit::Limit,
    net::Service,
    posture::Requirement,
    time::WallTime,
};

/// How sensitive its owner calls a resource. It changes no decision; lists and pages show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sensitivity {
    /// Harmless.
    Low,
    /// The default.
    Medium,
    /// Worth a second look.
    High,
}

/// Which nodes a resource is on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NodeSelector {
    /// One machine by its name.
    Name(MachineName),
    /// Every machine with an approved tag.
    Tag(Tag),
}

impl std::fmt::Display for NodeSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => write!(f, "{name}"),
            Self::Tag(tag) => write!(f, "tag:{tag}"),
        }
    }
}

/// A resource of the document.
#[derive(Debug, Clone)]
pub struct Resource {
    pub(super) name: ResourceName,
    pub(super) line: usize,
    pub(super) nodes: Vec<NodeSelector>,
    pub(super) services: Vec<Service>,
    pub(super) sensitivity: Sensitivity,
    pub(super) owner: Option<String>,
    pub(super) on_deny: OnDeny,
}

impl Resource {
    /// Returns the resource's name.
    pub const fn name(&self) -> &ResourceName {
        &self.name
    }

    /// Returns the line on which the document begins to speak of it.
    pub const fn line(&self) -> usize {
        self.line
    }

    /// Returns which nodes it is on.
    pub fn nodes(&self) -> &[NodeSelector] {
        &self.nodes
    }

    /// Returns what it offers there.
    pub fn services(&self) -> &[Service] {
        &self.services
    }

    /// Returns how sensitive its owner calls it.
    pub const fn sensitivity(&self) -> Sensitivity {
        self.sensitivity
    }

    /// Returns who owns it.
    pub fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    /// Returns the nodes it is on now, as ascending indexes into the targets.
    pub(super) fn indexes(&self, targets: &Targets) -> Vec<usize> {
        let mut indexes: Vec<usize> = self
            .nodes
            .iter()
            .flat_map(|node| match node {
                NodeSelector::Name(name) => targets.indexes_named(name),
                NodeSelector::Tag(tag) => targets.indexes_tagged(tag),
            })
            .copied()
            .collect();
        indexes.sort_unstable();
        indexes.dedup();
        indexes
    }
}

/// From when to when a rule is part of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Life {
    pub(super) starts: Option<WallTime>,
    pub(super) expires: Option<WallTime>,
}

/// One `[[access]]`.
#[derive(Debug, Clone)]
pub(super) struct Access {
    pub(super) name: RuleName,
    pub(super) line: usize,
    pub(super) reason: Option<String>,
    pub(super) owner: Option<String>,
    pub(super) from: Vec<Selector>,
    pub(super) to: Vec<usize>,
    pub(super) when: Option<usize>,
    pub(super) life: Life,
    pub(super) lease: Duration,
    pub(super) monitor_until: Option<WallTime>,
    pub(super) stock_clients: bool,
    /// Set if the rule gives only what was approved.
    pub(super) request: Option<OnRequest>,
    /// How much of each resource it gives one subject.
    pub(super) limits: Vec<AccessLimit>,
}

impl Access {
    /// Tells whether the rule is only watched.
    pub(super) fn is_watched(&self, now: WallTime) -> bool {
        self.monitor_until.is_some_and(|until| until > now)
    }

    /// Returns what nodes count.
    pub(super) fn limits_at(&self, now: WallTime) -> Vec<Limit> {
        self.limits.iter().map(|limit| limit.on_nodes(self.is_watched(now))).collect()
    }
}

/// What a deny covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DenyTo {
    Everything,
    Resources(Vec<usize>),
}

/// One `[[deny]]`.
#[derive(Debug, Clone)]
pub(super) struct Deny {
    pub(super) name: RuleName,
    pub(super) line: usize,
    pub(super) reason: Option<String>,
    pub(super) owner: Option<String>,
    pub(super) from: Vec<Selector>,
    pub(super) to: DenyTo,
    pub(super) when: Option<usize>,
    pub(super) unless: Option<usize>,
    pub(super) life: Life,
    pub(super) monitor_until: Option<WallTime>,
}

/// What a `[[test]]` expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expect {
    Allow,
    Deny,
    WouldDeny,
}

/// One `[[test]]`.
#[derive(Debug, Clone)]
pub(super) struct TestCase {
    pub(super) name: Option<String>,
    pub(super) line: usize,
    /// The place of `expect`, in bytes.
    pub(super) span: std::ops::Range<usize>,
    pub(super) subject: Subject,
    /// How long ago several factors were proven.
    pub(super) mfa_age: Option<Duration>,
    pub(super) phishing: Phishing,
    pub(super) acr: Option<String>,
    pub(super) tags: BTreeSet<Tag>,
    pub(super) posture: Vec<usize>,
    pub(super) address: Option<IpAddr>,
    pub(super) place: Place,
    /// Why the sign-in does not count any more.
    pub(super) challenged: Option<String>,
    /// The set of resources that is left, as an index into the model's sets.
    pub(super) restricted_to: Option<usize>,
    pub(super) at: Option<WallTime>,
    pub(super) to: usize,
    pub(super) service: Option<Service>,
    pub(super) expect: Expect,
}

/// Finds the rules whose `from` may name a subject without a walk over all of them.
#[derive(Debug, Clone, Default)]
pub(super) struct RuleIndex {
    by_selector: HashMap<Selector, Vec<usize>>,
    /// Rules whose `from` names some group: they concern people whose groups are unknown.
    with_group: Vec<usize>,
}

impl RuleIndex {
    pub(super) fn new<'a>(rules: impl Iterator<Item = &'a [Selector]>) -> Self {
        let mut index = Self::default();
        for (rule, from) in rules.enumerate() {
            for selector in from {
                index.by_selector.entry(selector.clone()).or_default().push(rule);
            }
            if from.iter().any(|selector| matches!(selector, Selector::Group(_))) {
                index.with_group.push(rule);
            }
        }
        index
    }

    /// Returns the rules that name the subject for certain, ascending, each with the selector that does.
    pub(super) fn naming(&self, context: &RequestContext) -> Vec<(usize, Selector)> {
        let mut found: Vec<(usize, Selector)> = Vec::new();
        for selector in Selector::naming(context) {
            let rules = self.by_selector.get(&selector).map_or(&[][..], Vec::as_slice);
            found.extend(rules.iter().map(|rule| (*rule, selector.clone())));
        }
        found.sort();
        found.dedup_by_key(|(rule, _)| *rule);
        found
    }

    /// Returns the rules that name the subject, or might: ascending.
    pub(super) fn naming_or_unknown(&self, context: &RequestContext) -> Vec<(usize, Truth)> {
        let mut found: Vec<(usize, Truth)> =
            self.naming(context).into_iter().map(|(rule, _)| (rule, Truth::True)).collect();
        if matches!(&context.subject, Subject::User { groups: None, .. }) {
            let certain: BTreeSet<usize> = found.iter().map(|(rule, _)| *rule).collect();
            let possible = self.with_group.iter().filter(|rule| !certain.contains(rule));
            found.extend(possible.map(|rule| (*rule, Truth::Unknown)));
            found.sort_by_key(|(rule, _)| *rule);
        }
        found
    }
}

/// The whole document, checked.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) file: String,
    pub(super) postures: Vec<(String, Requirement)>,
    pub(super) posture_exceptions: Vec<PostureException>,
    pub(super) whens: Vec<When>,
    pub(super) resources: Vec<Resource>,
    pub(super) resource_by_name: HashMap<ResourceName, usize>,
    pub(super) access: Vec<Access>,
    pub(super) deny: Vec<Deny>,
    pub(super) sets: Vec<ResourceSet>,
    pub(super) limits: Vec<SubjectLimit>,
    pub(super) tests: Vec<TestCase>,
    pub(super) access_by_name: HashMap<RuleName, usize>,
    pub(super) access_index: RuleIndex,
    pub(super) deny_index: RuleIndex,
    /// Values of `acr` that the provider uses for several factors.
    pub(super) mfa_acr: Vec<String>,
    /// Values of `acr` that the provider uses for what cannot be phished.
    pub(super) phishing_resistant_acr: Vec<String>,
    pub(super) destination_tags: BTreeSet<Tag>,
    pub(super) destination_names: BTreeSet<MachineName>,
    pub(super) source_tags: BTreeSet<Tag>,
    pub(super) service_names: BTreeSet<ServiceName>,
}

impl Model {
    pub(super) fn location(&self, line: usize) -> String {
        format!("{}:{line}", self.file)
    }

    /// Builds every index from what was read.
    pub(super) fn index(&mut self) {
        let names = self.access.iter().map(|rule| rule.name.clone());
        self.access_by_name = names.zip(0..).collect();
        self.access_index = RuleIndex::new(self.access.iter().map(|rule| rule.from.as_slice()));
        self.deny_index = RuleIndex::new(self.deny.iter().map(|rule| rule.from.as_slice()));
        for resource in &self.resources {
            for node in &resource.nodes {
                match node {
                    NodeSelector::Name(name) => drop(self.destination_names.insert(name.clone())),
                    NodeSelector::Tag(tag) => drop(self.destination_tags.insert(tag.clone())),
                }
            }
        }
        let from = self.access.iter().map(|rule| &rule.from).chain(self.deny.iter().map(|rule| &rule.from));
        for selector in from.flatten() {
            match selector {
                Selector::Tag(tag) => drop(self.source_tags.insert(tag.clone())),
                Selector::Service(name) => drop(self.service_names.insert(name.clone())),
                Selector::LocalUser(_)
                | Selector::OidcUser(_)
                | Selector::AnyUser
                | Selector::Group(_)
                | Selector::AnyService => {}
            }
        }
    }
}
