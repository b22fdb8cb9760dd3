//! What stronger or fresher proof of sign-in would open: the same evaluation twice, once with every demand on the proof
//! taken for granted, and the difference.
//!
//! Threat: this is told to the subject's own machine, so it must not be a map of what is there. It holds only what the
//! subject would reach after a step-up and nothing else: every other condition (posture, hours, place) is as it is now.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Policy,
    condition::Lens,
    evaluate::{Evaluation, Granted},
    model::{DenyTo, Model},
    proof::{self, Demand},
    services::{overlap, split},
    subject::{Assurance, RequestContext, Subject, Targets},
};
use crate::{
    grant::Mode,
    id::{DeviceId, ResourceName, RuleName},
    net::Service,
};

/// What stronger or fresher proof of sign-in would open on some nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepUp {
    /// The resource.
    pub resource: ResourceName,
    /// The rule that would give it.
    pub rule: RuleName,
    /// The nodes, in the order of their devices; never empty.
    pub nodes: Vec<DeviceId>,
    /// What would open there; never empty.
    pub services: Vec<Service>,
    /// What the rules ask of the proof.
    pub demand: Demand,
}

impl Policy {
    /// Returns what the subject would reach besides, if it proved its sign-in as strongly and freshly as rules ask. Of several
    /// rules for one resource the first in the document counts.
    pub fn step_ups(&self, context: &RequestContext, targets: &Targets) -> Vec<StepUp> {
        let model = &*self.model;
        let Subject::User { .. } = context.subject else { return vec![] };
        if context.restraints.is_empty() && model.whens.iter().all(|when| when.proof.is_nothing()) {
            return vec![];
        }
        let actual = Evaluation::new(model, context, targets, Lens::Actual).granted();
        let proven = Evaluation::new(model, context, targets, Lens::Proven).granted();
        let mut open: BTreeMap<usize, Vec<Service>> = BTreeMap::new();
        for granted in &actual {
            for node in &granted.nodes {
                open.entry(*node).or_default().extend(&granted.services);
            }
        }
        let mut found: Vec<StepUp> = Vec::new();
        for granted in proven.into_iter().filter(|granted| granted.mode == Mode::Enforce) {
            let resource = &model.resources[granted.resource].name;
            let asked = demand_of(model, &granted, context, targets);
            for node in granted.nodes {
                let open = open.entry(node).or_default();
                let services = split(&granted.services, open).1;
                if services.is_empty() {
                    continue;
                }
                open.extend(&services);
                let device = targets.nodes()[node].device;
                let challenged = model.access[granted.access].challenged(resource, Some(device), context);
                let demand = asked.clone().and(&challenged);
                match found.iter_mut().find(|known| known.resource == *resource && known.services == services) {
                    Some(known) => {
                        known.nodes.push(device);
                        if known.rule == model.access[granted.access].name {
                            known.demand = std::mem::take(&mut known.demand).and(&challenged);
                        }
                    }
                    None => found.push(StepUp {
                        resource: resource.clone(),
                        rule: model.access[granted.access].name.clone(),
                        nodes: vec![device],
                        services,
                        demand,
                    }),
                }
            }
        }
        for step_up in &mut found {
            let nodes: BTreeSet<DeviceId> = step_up.nodes.drain(..).collect();
            step_up.nodes = nodes.into_iter().collect();
        }
        found
    }

    /// Tells whether `new` may take the place of `old` in a login session: it must not prove less.
    pub fn at_least_as_strong(&self, new: &Assurance, old: &Assurance) -> bool {
        proof::at_least_as_strong(&self.model, new, old)
    }
}

/// Joins what the rule asks with what denies that name the subject and the same ports want before they let go.
fn demand_of(model: &Model, granted: &Granted, context: &RequestContext, targets: &Targets) -> Demand {
    let own = model.access[granted.access].when.map(|when| model.whens[when].proof.clone()).unwrap_or_default();
    let concerns = |resource: &usize| {
        let resource = &model.resources[*resource];
        overlap(&resource.services, &granted.services)
            && resource.indexes(targets).iter().any(|node| granted.nodes.contains(node))
    };
    let denies = model.deny_index.naming_or_unknown(context).into_iter().map(|(rule, _)| &model.deny[rule]);
    let unless = denies.filter(|deny| match &deny.to {
        DenyTo::Everything => true,
        DenyTo::Resources(resources) => resources.iter().any(concerns),
    });
    unless.filter_map(|deny| deny.unless).map(|unless| &model.whens[unless].proof).fold(own, Demand::and)
}
