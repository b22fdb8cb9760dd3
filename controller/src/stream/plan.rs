//! What applying another policy would change, and which live flows it would cut.
//!
//! ```text
//! begin_plan --> Policy::plan: lines    Policy::losses: who loses what on which node
//!            --> CountFlows {peers} to each of these nodes --LiveFlows {groups}--> flows at their lines --> planned
//! ```
//!
//! A node counts the flows that lead to it, so a flow between two nodes counts once. Asking changes nothing: whoever waits for
//! the answers has a deadline of its own, and nodes that have not answered by then are named as silent.
//!
//! Bounds: [`MAX_PLANS`] plans wait for answers, the oldest is forgotten first; each node is asked about at most
//! [`MAX_COUNTED_PEERS`] peers and heard for at most [`MAX_FLOW_GROUPS`] groups, once.
//!
//! Threats: a node that lies about its flows makes a plan wrong about that node's own doors, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use postern_common::{
    id::{DeviceId, MachineName},
    net::Service,
    policy::{ChangeKind, LimitChange, Loss, PlanChange, Policy, RequestContext, Subject, Targets},
    protocol::{FlowGroup, MAX_COUNTED_PEERS, MAX_FLOW_GROUPS, ToNode},
    time::Now,
};

use super::{
    api::{PlanFlows, PlanId, PlanKind, PlanLimit, PlanLine, PolicyPlan},
    core::Core,
};
use crate::records::NameClaim;

/// The most plans that wait for answers of nodes.
const MAX_PLANS: usize = 8;

/// The plans that wait for answers.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    open: VecDeque<Open>,
    last_id: u64,
}

#[derive(Debug)]
struct Open {
    id: PlanId,
    plan: PolicyPlan,
    /// Whose machines each line of the plan is about.
    devices: Vec<BTreeSet<DeviceId>>,
    /// What is lost, by who asks and the node that is asked for.
    losses: BTreeMap<(DeviceId, DeviceId), Vec<Service>>,
    /// Nodes that have not answered.
    asked: BTreeSet<DeviceId>,
}

impl Open {
    /// Puts flows at the line of the plan that cuts them: the one of their resource, or another that names their service.
    fn take(&mut self, from: DeviceId, resource: &postern_common::id::ResourceName, flows: PlanFlows) {
        let about = |line: &PlanLine, devices: &BTreeSet<DeviceId>| {
            let covers = |service: &Service| service.intersection(&flows.service) == Some(flows.service);
            line.kind == PlanKind::Loses && devices.contains(&from) && line.services.iter().any(covers)
        };
        let lines = || self.plan.lines.iter().zip(&self.devices).enumerate();
        let exact = lines().find(|(_, (line, devices))| about(line, devices) && line.resource == *resource);
        let found = exact.or_else(|| lines().find(|(_, (line, devices))| about(line, devices)));
        if let Some(index) = found.map(|(index, _)| index) {
            self.plan.lines[index].flows.push(flows);
        } else {
            self.plan.live.unlisted = self.plan.live.unlisted.saturating_add(flows.flows);
        }
    }
}

impl Core {
    /// Tells what applying `next` would change for whoever holds a lease or is signed in now. Live flows are not counted:
    /// that is [`Core::begin_plan`].
    pub fn plan(&mut self, next: &Policy, now: Now) -> PolicyPlan {
        let (contexts, _) = self.contexts(now);
        let next_targets = Targets::new(self.target_nodes(next));
        self.plan_for(next, &contexts, &next_targets, now).0
    }

    /// Begins a plan that says which live flows would be cut: the nodes concerned are asked. See [`Core::planned`].
    pub fn begin_plan(&mut self, next: &Policy, now: Now) -> PlanId {
        let (contexts, targets) = self.contexts(now);
        let next_targets = Targets::new(self.target_nodes(next));
        let (mut plan, devices) = self.plan_for(next, &contexts, &next_targets, now);
        let mut losses = BTreeMap::new();
        let mut by_node: BTreeMap<DeviceId, Vec<DeviceId>> = BTreeMap::new();
        for Loss { subject, node, services } in self.policy.losses(next, &contexts, &targets, &next_targets) {
            if let Some(device) = contexts.get(subject).and_then(|context| context.device) {
                losses.insert((device, node), services);
                by_node.entry(node).or_default().push(device);
            }
        }
        self.plans.last_id += 1;
        let id = PlanId(self.plans.last_id);
        let mut asked = BTreeSet::new();
        for (node, mut peers) in by_node {
            let Some(connected) = self.nodes.get(&node) else {
                plan.live.away.push(self.registry.machine_name(node));
                continue;
            };
            peers.truncate(MAX_COUNTED_PEERS);
            self.out.send(connected.stream, ToNode::CountFlows { id: id.0, peers });
            asked.insert(node);
        }
        if self.plans.open.len() == MAX_PLANS {
            self.plans.open.pop_front();
        }
        self.plans.open.push_back(Open { id, plan, devices, losses, asked });
        id
    }

    /// Returns a plan as far as the nodes have answered, and whether all of them have; `None` if it was forgotten.
    pub fn planned(&self, id: PlanId) -> Option<(PolicyPlan, bool)> {
        let open = self.plans.open.iter().find(|open| open.id == id)?;
        let mut plan = open.plan.clone();
        plan.live.silent = open.asked.iter().map(|node| self.registry.machine_name(*node)).collect();
        for line in &mut plan.lines {
            line.flows.sort_by_key(|flows| std::cmp::Reverse(flows.bytes));
        }
        Some((plan, open.asked.is_empty()))
    }

    /// Forgets a plan: nobody waits for it any more.
    pub fn forget_plan(&mut self, id: PlanId) {
        self.plans.open.retain(|open| open.id != id);
    }

    /// Takes in which flows live at a node.
    pub(super) fn flows_counted(&mut self, node: DeviceId, id: PlanId, groups: Vec<FlowGroup>, unlisted: u64) {
        let name = |registry: &super::registry::Registry, device| -> MachineName { registry.machine_name(device) };
        let Some(open) = self.plans.open.iter_mut().find(|open| open.id == id && open.asked.contains(&node)) else {
            self.counters.messages_refused += 1; // late, or nobody asked
            return;
        };
        open.asked.remove(&node);
        open.plan.live.answered += 1;
        open.plan.live.unlisted = open.plan.live.unlisted.saturating_add(unlisted);
        for group in groups.into_iter().take(MAX_FLOW_GROUPS) {
            let lost = open.losses.get(&(group.peer, node)).into_iter().flatten();
            if lost.into_iter().any(|lost| lost.intersection(&group.service) == Some(group.service)) {
                let FlowGroup { peer, resource, service, flows, oldest_ms, bytes } = group;
                let (from, to) = (name(&self.registry, peer), name(&self.registry, node));
                open.take(peer, &resource, PlanFlows { from, to, service, flows, oldest_ms, bytes });
            }
        }
    }

    /// Makes the lines of a plan, and says whose machines each is about.
    fn plan_for(
        &self,
        next: &Policy,
        contexts: &[RequestContext],
        next_targets: &Targets,
        now: Now,
    ) -> (PolicyPlan, Vec<BTreeSet<DeviceId>>) {
        let changes = self.policy.plan(next, contexts, &self.targets, next_targets);
        let mut lines: Vec<(PlanLine, BTreeSet<DeviceId>)> = changes.into_iter().map(|c| line(c, contexts)).collect();
        lines.sort();
        let (lines, devices) = lines.into_iter().unzip();
        let limits =
            self.policy.limit_changes(next, contexts, now.wall).into_iter().map(|change| limit(change, contexts));
        let claims = self
            .registry
            .devices()
            .filter(|device| device.name_claim == NameClaim::Claimed && next.is_destination_name(&device.name));
        let mut warnings: Vec<String> = claims
            .map(|device| {
                let (name, owner) = (&device.name, self.registry.subject_name(device.owner));
                format!(
                    "{name}, a machine of {owner}, calls itself like a place: if it is that place, postern-controller approve {name} --name"
                )
            })
            .collect();
        warnings
            .extend(next.watched_rules().map(|(rule, until)| format!("rule \"{rule}\" is only watched until {until}")));
        warnings.extend(next.posture_exceptions());
        warnings.extend(
            next.rule_names()
                .filter(|rule| self.registry.revoked_rules().contains_key(rule))
                .map(|rule| format!("rule \"{rule}\" is revoked and gives nothing until that is lifted")),
        );
        (PolicyPlan { lines, warnings, limits: limits.collect(), live: Default::default() }, devices)
    }

    /// Returns every context that the controller knows now, with the nodes that resources may name.
    pub fn contexts(&self, now: Now) -> (Vec<RequestContext>, Arc<Targets>) {
        let devices = self.registry.devices().filter(|device| self.registry.may_take_part(device));
        let contexts = devices.filter_map(|device| self.context_of(device, now)).collect();
        (contexts, self.targets.clone())
    }
}

/// Counts people, on however many machines, and machines of services.
fn counted(subjects: &[&RequestContext]) -> (usize, usize) {
    let mut people = BTreeSet::new();
    let mut machines = 0;
    for context in subjects {
        match &context.subject {
            Subject::User { identity, .. } => drop(people.insert(identity)),
            Subject::Service { .. } => machines += 1,
        }
    }
    (people.len(), machines)
}

fn limit(change: LimitChange, contexts: &[RequestContext]) -> PlanLimit {
    let LimitChange { rule, resources, before, after, subjects } = change;
    let subjects: Vec<&RequestContext> = subjects.iter().filter_map(|i| contexts.get(*i)).collect();
    let (people, machines) = counted(&subjects);
    let subjects = subjects.iter().map(|context| context.who()).collect();
    PlanLimit { rule, resources, before, after, subjects, people, machines }
}

fn line(change: PlanChange, contexts: &[RequestContext]) -> (PlanLine, BTreeSet<DeviceId>) {
    let subjects: Vec<&RequestContext> = change.subjects.iter().filter_map(|i| contexts.get(*i)).collect();
    let (people, machines) = counted(&subjects);
    let (kind, until) = match change.kind {
        ChangeKind::Gains => (PlanKind::Gains, None),
        ChangeKind::Loses => (PlanKind::Loses, None),
        ChangeKind::OnlyWatched => (PlanKind::OnlyWatched, None),
        ChangeKind::Earned => (PlanKind::Earned, None),
        ChangeKind::Until(until) => (PlanKind::Until, Some(until)),
    };
    let line = PlanLine {
        kind,
        via: change.via,
        resource: change.resource,
        services: change.services,
        people,
        machines,
        subjects: subjects.iter().map(|context| context.who()).collect(),
        flows: vec![],
        at_once: change.at_once,
        until,
    };
    (line, subjects.iter().filter_map(|context| context.device).collect())
}
