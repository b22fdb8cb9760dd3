//! The decision: which nodes, protocols and ports a subject may reach now, by which rule, and until when.
//!
//! ```text
//! rules that name the subject (index)  --conditions-->  true: earned   unknown/false: lent while watched, else nothing
//! denies that name it, or might        --conditions-->  in force: take away    watched: mark    later: bound `until`
//! earned or lent, node by node, minus what denies cover -> Granted
//! ```
//!
//! A deny takes away protocols and ports on nodes, not names of resources: naming the same port by a second resource
//! is no way around it.

use std::collections::HashMap;

use super::{
    Audience,
    condition::{Lens, State},
    model::{Access, Deny, DenyTo, Life, Model},
    restraint::Restraint,
    selector::Selector,
    services::{overlap, split},
    subject::{RequestContext, Targets, Truth},
};
use crate::{grant::Mode, net::Service, time::WallTime};

/// What one rule gives on some nodes. Indexes point into the model and the targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Granted {
    pub(super) access: usize,
    pub(super) resource: usize,
    pub(super) nodes: Vec<usize>,
    pub(super) services: Vec<Service>,
    pub(super) until: WallTime,
    pub(super) mode: Mode,
    pub(super) via: Selector,
}

/// What a deny does to what it covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// It takes it away.
    Refuse,
    /// It would take it away, and is only watched until then.
    Watch(WallTime),
    /// It does nothing yet, and may begin at that moment.
    Later(WallTime),
}

/// One subject's questions at one moment. Conditions are evaluated once each.
pub(super) struct Evaluation<'a> {
    model: &'a Model,
    context: &'a RequestContext,
    targets: &'a Targets,
    lens: Lens,
    denies: Vec<(usize, Effect)>,
    /// Effects that cover everything, as indexes into `denies`.
    denies_everywhere: Vec<usize>,
    /// For each node that denies name: the resource that they name there, and the effect.
    denies_on_node: HashMap<usize, Vec<(usize, usize)>>,
}

impl Life {
    /// Tells whether the rule is part of the policy, and until when that stays so.
    fn state(self, now: WallTime, lens: Lens, assumed: Truth) -> State {
        if lens.grants_time() && (self.starts.is_some() || self.expires.is_some()) {
            return State { truth: assumed, until: WallTime::NEVER };
        }
        match (self.starts, self.expires) {
            (_, Some(expires)) if expires <= now => State { truth: Truth::False, until: WallTime::NEVER },
            (Some(starts), _) if starts > now => State { truth: Truth::False, until: starts },
            (_, expires) => State { truth: Truth::True, until: expires.unwrap_or(WallTime::NEVER) },
        }
    }
}

/// Tells until when a rule is only watched; without a moment (`Lens`) it is watched as long as it says so.
fn watched_until(monitor_until: Option<WallTime>, context: &RequestContext, lens: Lens) -> Option<WallTime> {
    let until = monitor_until?;
    if lens.grants_time() {
        return Some(until);
    }
    let state = context.at_every_time(|now| State { truth: Truth::known(until > now), until });
    (state.truth == Truth::True).then_some(state.until)
}

impl<'a> Evaluation<'a> {
    pub(super) fn new(model: &'a Model, context: &'a RequestContext, targets: &'a Targets, lens: Lens) -> Self {
        let mut evaluation = Self {
            model,
            context,
            targets,
            lens,
            denies: Vec::new(),
            denies_everywhere: Vec::new(),
            denies_on_node: HashMap::new(),
        };
        for (rule, named) in model.deny_index.naming_or_unknown(context) {
            if let Some(effect) = evaluation.effect(&model.deny[rule], named) {
                evaluation.add_deny(rule, effect);
            }
        }
        evaluation
    }

    fn add_deny(&mut self, rule: usize, effect: Effect) {
        let index = self.denies.len();
        self.denies.push((rule, effect));
        match &self.model.deny[rule].to {
            DenyTo::Everything => self.denies_everywhere.push(index),
            DenyTo::Resources(resources) => {
                for resource in resources {
                    for node in self.model.resources[*resource].indexes(self.targets) {
                        self.denies_on_node.entry(node).or_default().push((*resource, index));
                    }
                }
            }
        }
    }

    /// Says what a deny does, given whether its `from` names the subject. Unknown counts as true.
    fn effect(&self, deny: &Deny, named: Truth) -> Option<Effect> {
        let condition = |when: Option<usize>, assumed| {
            when.map_or(State::ALWAYS, |when| {
                self.model.whens[when].state(self.model, self.context, self.lens, assumed)
            })
        };
        let unless = match deny.unless {
            Some(unless) => condition(Some(unless), Truth::True).negated(),
            None => State::ALWAYS,
        };
        let life = self.context.at_every_time(|now| deny.life.state(now, self.lens, Truth::False));
        let state = State { truth: named, until: WallTime::NEVER }
            .and(life)
            .and(condition(deny.when, Truth::False))
            .and(unless);
        match state.truth {
            Truth::True | Truth::Unknown => Some(match watched_until(deny.monitor_until, self.context, self.lens) {
                Some(until) => Effect::Watch(until),
                None => Effect::Refuse,
            }),
            Truth::False if state.until == WallTime::NEVER => None,
            Truth::False => Some(Effect::Later(state.until)),
        }
    }

    /// Says what an access gives: until when, and whether it was earned.
    pub(super) fn access_state(&self, access: &Access) -> Option<(WallTime, Mode)> {
        let life = self.context.at_every_time(|now| access.life.state(now, self.lens, Truth::True));
        if life.truth != Truth::True {
            return None;
        }
        let when = access.when.map(|when| &self.model.whens[when]);
        let state = when.map_or(State::ALWAYS, |when| when.state(self.model, self.context, self.lens, Truth::True));
        match state.truth {
            Truth::True => Some((life.until.min(state.until), Mode::Enforce)),
            Truth::False | Truth::Unknown => {
                let until = watched_until(access.monitor_until, self.context, self.lens)?;
                let unmet = when.map(|when| when.unmet(self.model, self.context, self.lens)).unwrap_or_default();
                let unmet: Vec<String> = unmet
                    .into_iter()
                    .map(|unmet| format!("{}; rule \"{}\" {}", unmet.fact, access.name, unmet.demand))
                    .collect();
                Some((life.until.min(until), Mode::Monitor { would_deny: unmet.join("; ") }))
            }
        }
    }

    /// Tells until when something was approved, if its rule gives only what was.
    fn approved(&self, access: &Access, resource: usize) -> Option<WallTime> {
        match self.lens {
            Lens::Actual | Lens::AnyTime | Lens::Proven => {
                access.approved(&self.model.resources[resource].name, self.context)
            }
            Lens::Anyhow => Some(WallTime::NEVER),
        }
    }

    /// Returns everything that the subject may reach.
    pub(super) fn granted(&self) -> Vec<Granted> {
        self.granted_where(|_, _| true)
    }

    /// Returns what the subject may reach of the pairs of rule and resource that `wanted` selects.
    pub(super) fn granted_where(&self, wanted: impl Fn(usize, usize) -> bool) -> Vec<Granted> {
        let mut granted = Vec::new();
        let mut nodes_of: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut states: HashMap<usize, Option<(WallTime, Mode)>> = HashMap::new();
        let own = self.context.device.and_then(|device| self.targets.index_of(device));
        for (index, via) in self.model.access_index.naming(self.context) {
            let access = &self.model.access[index];
            // Rules with equal conditions, dates and no watch share one evaluation.
            let plain = access.life == (Life { starts: None, expires: None }) && access.monitor_until.is_none();
            let state = match access.when {
                Some(when) if plain => states.entry(when).or_insert_with(|| self.access_state(access)).clone(),
                Some(_) | None => self.access_state(access),
            };
            let Some((until, mode)) = state else { continue };
            for resource in access.to.iter().filter(|resource| wanted(index, **resource)) {
                let name = &self.model.resources[*resource].name;
                if access.restrained(self.model, name, None, self.context, self.lens, Audience::Operator).is_some() {
                    continue;
                }
                let Some(approved) = self.approved(access, *resource) else { continue };
                let nodes = nodes_of.entry(*resource).or_insert_with(|| {
                    let mut nodes = self.model.resources[*resource].indexes(self.targets);
                    nodes.retain(|node| Some(*node) != own);
                    nodes
                });
                let whole = Granted {
                    access: index,
                    resource: *resource,
                    nodes: Vec::new(),
                    services: self.model.resources[*resource].services.clone(),
                    until: until.min(approved),
                    mode: mode.clone(),
                    via: via.clone(),
                };
                if !self.context.restraints.iter().any(Restraint::is_of_one_machine) {
                    self.minus_denies(&whole, nodes, &mut granted);
                    continue;
                }
                let mut nodes = nodes.clone();
                nodes.retain(|node| {
                    let on = Some(self.targets.nodes()[*node].device);
                    access.restrained(self.model, name, on, self.context, self.lens, Audience::Operator).is_none()
                });
                self.minus_denies(&whole, &nodes, &mut granted);
            }
        }
        granted.retain(|granted| granted.until > self.context.now);
        granted
    }

    /// Adds what denies leave of `whole` on `nodes`; nodes with the same rest stay together.
    fn minus_denies(&self, whole: &Granted, nodes: &[usize], into: &mut Vec<Granted>) {
        let begin = into.len();
        let undisputed = |node: &usize| self.denies_everywhere.is_empty() && !self.denies_on_node.contains_key(node);
        let (plain, disputed): (Vec<usize>, Vec<usize>) = nodes.iter().copied().partition(undisputed);
        if !plain.is_empty() {
            into.push(Granted { nodes: plain, ..whole.clone() });
        }
        for node in &disputed {
            for part in self.parts_on_node(whole, *node) {
                let same = into[begin..].iter_mut().find(|known| {
                    known.until == part.until && known.services == part.services && known.mode == part.mode
                });
                match same {
                    Some(known) => known.nodes.push(*node),
                    None => into.push(Granted { nodes: vec![*node], ..part }),
                }
            }
        }
    }

    fn parts_on_node(&self, whole: &Granted, node: usize) -> Vec<Granted> {
        let mut parts = vec![whole.clone()];
        for deny in &self.denies_everywhere {
            parts = parts.into_iter().flat_map(|part| self.minus(part, *deny, None)).collect();
        }
        for (resource, deny) in self.denies_on_node.get(&node).into_iter().flatten() {
            let covered = &self.model.resources[*resource].services;
            if parts.iter().any(|part| overlap(&part.services, covered)) {
                parts = parts.into_iter().flat_map(|part| self.minus(part, *deny, Some(covered))).collect();
            }
        }
        parts
    }

    /// Applies one deny to one part; `covered` is what it names, or everything.
    fn minus(&self, part: Granted, deny: usize, covered: Option<&[Service]>) -> Vec<Granted> {
        let (inside, outside) = match covered {
            Some(covered) => split(&part.services, covered),
            None => (part.services.clone(), Vec::new()),
        };
        let (rule, effect) = &self.denies[deny];
        let inside = match effect {
            Effect::Refuse => None,
            Effect::Later(at) => Some(Granted { services: inside, until: part.until.min(*at), ..part.clone() }),
            Effect::Watch(until) => {
                let refusal = format!("rule \"{}\" refuses it", self.model.deny[*rule].name);
                let would_deny = match &part.mode {
                    Mode::Enforce => refusal,
                    Mode::Monitor { would_deny } => format!("{would_deny}; {refusal}"),
                };
                let mode = Mode::Monitor { would_deny };
                Some(Granted { services: inside, until: part.until.min(*until), mode, ..part.clone() })
            }
        };
        let outside = Granted { services: outside, ..part };
        inside.into_iter().chain([outside]).filter(|part| !part.services.is_empty()).collect()
    }

    /// Returns the first deny in force that covers some of `services` on one of the nodes.
    pub(super) fn refusing(&self, nodes: &[usize], services: &[Service]) -> Option<usize> {
        let in_force = |deny: usize| (self.denies[deny].1 == Effect::Refuse).then(|| self.denies[deny].0);
        let everywhere = self.denies_everywhere.iter().find_map(|deny| in_force(*deny));
        everywhere.or_else(|| {
            let on_nodes = nodes.iter().filter_map(|node| self.denies_on_node.get(node)).flatten();
            on_nodes
                .filter(|(resource, _)| overlap(&self.model.resources[*resource].services, services))
                .find_map(|(_, deny)| in_force(*deny))
        })
    }

    /// Tells how much of `services` may be reached on the nodes of one resource, by whatever name.
    pub(super) fn coverage(&self, resource: usize, services: &[Service]) -> Coverage {
        let granted = self.granted();
        let nodes = self.model.resources[resource].indexes(self.targets);
        let left = |node: usize, counts: &dyn Fn(&Mode) -> bool| {
            let given = granted.iter().filter(|granted| granted.nodes.contains(&node) && counts(&granted.mode));
            given.fold(services.to_vec(), |left, granted| split(&left, &granted.services).1)
        };
        let earned = |mode: &Mode| *mode == Mode::Enforce;
        let any = |_: &Mode| true;
        if nodes.is_empty() || nodes.iter().all(|node| left(*node, &any) == services) {
            Coverage::Nothing
        } else if nodes.iter().all(|node| left(*node, &earned).is_empty()) {
            Coverage::Earned
        } else if nodes.iter().all(|node| left(*node, &any).is_empty()) {
            Coverage::Lent
        } else {
            Coverage::Partly
        }
    }
}

/// How much of what is asked for may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coverage {
    /// All of it; every condition holds.
    Earned,
    /// All of it, but some only because a rule is watched and not enforced.
    Lent,
    /// Some of it.
    Partly,
    /// None of it.
    Nothing,
}
