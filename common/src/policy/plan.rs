//! What a change of policy does, before it is applied: who gains, who loses, who keeps only until when.
//!
//! A plan made at night must show that a day's rule is gone. So two views are compared for every subject: what it may
//! reach *now*, and what it could ever reach by who it is (no condition counting). Either may change.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Policy,
    condition::Lens,
    evaluate::Evaluation,
    services::split,
    subject::{RequestContext, Targets},
};
use crate::{
    grant::Mode,
    id::{DeviceId, ResourceName},
    net::Service,
    time::WallTime,
};

/// What changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeKind {
    /// It may reach what it could not.
    Gains,
    /// It may no longer reach what it could.
    Loses,
    /// It may reach it by a rule that is only watched, and did by right.
    OnlyWatched,
    /// It may reach it by right, and did by a rule that was only watched.
    Earned,
    /// It keeps it, but less long: until this moment.
    Until(WallTime),
}

/// One line of a plan: the same change for subjects whom the same selector names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanChange {
    /// What changes.
    pub kind: ChangeKind,
    /// The selector by which the rule names them: `group:contractors`.
    pub via: String,
    /// The resource.
    pub resource: ResourceName,
    /// What of it.
    pub services: Vec<Service>,
    /// Who, as indexes into the contexts that were given.
    pub subjects: Vec<usize>,
    /// Whether it takes effect at once for somebody, rather than when conditions are met later.
    pub at_once: bool,
}

/// What one subject can no longer open on one node, by whichever resource, from the moment of the change on: its live flows
/// there are cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// Who, as an index into the contexts that were given.
    pub subject: usize,
    /// The node.
    pub node: DeviceId,
    /// What of it.
    pub services: Vec<Service>,
}

/// Everything that one subject has of one resource, on one node.
#[derive(Debug, Default, Clone)]
struct Holding {
    via: String,
    earned: Vec<Service>,
    lent: Vec<Service>,
    until: Option<WallTime>,
}

type Holdings = BTreeMap<(ResourceName, DeviceId), Holding>;

fn holdings(policy: &Policy, context: &RequestContext, targets: &Targets, lens: Lens) -> Holdings {
    let mut holdings = Holdings::new();
    for granted in Evaluation::new(&policy.model, context, targets, lens).granted() {
        for node in granted.nodes {
            let key = (policy.model.resources[granted.resource].name.clone(), targets.nodes()[node].device);
            let holding = holdings.entry(key).or_default();
            if holding.via.is_empty() {
                holding.via = granted.via.to_string();
            }
            match granted.mode {
                Mode::Enforce => {
                    holding.earned.extend(&granted.services);
                    holding.until = Some(holding.until.map_or(granted.until, |until| until.max(granted.until)));
                }
                Mode::Monitor { .. } => holding.lent.extend(&granted.services),
            }
        }
    }
    holdings
}

impl Policy {
    /// Compares this policy with `next` for every context.
    ///
    /// `targets` are the nodes that this policy can name at this moment, `next_targets` those that `next` can; a resource on no
    /// machine shows no change.
    pub fn plan(
        &self,
        next: &Self,
        contexts: &[RequestContext],
        targets: &Targets,
        next_targets: &Targets,
    ) -> Vec<PlanChange> {
        type Key = (ChangeKind, String, ResourceName, Vec<Service>);
        let mut lines: BTreeMap<Key, (BTreeSet<usize>, bool)> = BTreeMap::new();
        for (subject, context) in contexts.iter().enumerate() {
            for lens in [Lens::Actual, Lens::Anyhow] {
                let old = holdings(self, context, targets, lens);
                let new = holdings(next, context, next_targets, lens);
                let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
                for key in keys {
                    let nothing = Holding::default();
                    let (before, after) = (old.get(key).unwrap_or(&nothing), new.get(key).unwrap_or(&nothing));
                    for (kind, services) in differences(before, after) {
                        let via = if after.via.is_empty() { &before.via } else { &after.via };
                        let via = if kind == ChangeKind::Loses { &before.via } else { via };
                        let line = lines.entry((kind, via.clone(), key.0.clone(), services)).or_default();
                        line.0.insert(subject);
                        line.1 |= lens == Lens::Actual;
                    }
                }
            }
        }
        let lines = lines.into_iter().map(|((kind, via, resource, services), (subjects, at_once))| PlanChange {
            kind,
            via,
            resource,
            services,
            subjects: subjects.into_iter().collect(),
            at_once,
        });
        lines.collect()
    }

    /// Lists what every context could open until now and cannot open under `next`, node by node. Unlike the lines of
    /// [`Policy::plan`] it counts what one node opens as one, whichever resources name it: what moves from one resource to
    /// another is not lost.
    pub fn losses(
        &self,
        next: &Self,
        contexts: &[RequestContext],
        targets: &Targets,
        next_targets: &Targets,
    ) -> Vec<Loss> {
        let opened = |policy: &Self, context: &RequestContext, targets: &Targets| {
            let mut nodes: BTreeMap<DeviceId, Vec<Service>> = BTreeMap::new();
            for ((_, node), holding) in holdings(policy, context, targets, Lens::Actual) {
                nodes.entry(node).or_default().extend(holding.earned.iter().chain(&holding.lent));
            }
            nodes
        };
        let mut losses = Vec::new();
        for (subject, context) in contexts.iter().enumerate() {
            let kept = opened(next, context, next_targets);
            for (node, services) in opened(self, context, targets) {
                let services = tidy(split(&services, kept.get(&node).map_or(&[], Vec::as_slice)).1);
                if !services.is_empty() {
                    losses.push(Loss { subject, node, services });
                }
            }
        }
        losses
    }
}

fn differences(before: &Holding, after: &Holding) -> Vec<(ChangeKind, Vec<Service>)> {
    let all = |holding: &Holding| [&holding.earned[..], &holding.lent[..]].concat();
    let without = |a: &[Service], b: &[Service]| tidy(split(a, b).1);
    let both = |a: &[Service], b: &[Service]| tidy(split(a, b).0);
    let only_lent = |holding: &Holding| without(&holding.lent, &holding.earned);
    let mut found = vec![
        (ChangeKind::Gains, without(&all(after), &all(before))),
        (ChangeKind::Loses, without(&all(before), &all(after))),
        (ChangeKind::OnlyWatched, both(&before.earned, &only_lent(after))),
        (ChangeKind::Earned, both(&only_lent(before), &after.earned)),
    ];
    if let (Some(old), Some(new)) = (before.until, after.until)
        && new < old
    {
        found.push((ChangeKind::Until(new), both(&before.earned, &after.earned)));
    }
    found.retain(|(_, services)| !services.is_empty());
    found
}

fn tidy(mut services: Vec<Service>) -> Vec<Service> {
    services.sort_unstable();
    services.dedup();
    services
}
