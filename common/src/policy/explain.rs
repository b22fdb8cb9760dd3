//! The decision, told in words: allowed or denied, by which rule, why, and what would change it.
//!
//! It asks the same [`Evaluation`] as the decision itself, and only then looks for the rule that came nearest: one
//! that names the subject and whose conditions are not met says more than one that names somebody else.
//!
//! Threat: an explanation to the subject itself must not be a map of what is there. To [`Audience::Subject`] a
//! resource that no rule opens to it under any condition is answered in the words for one that does not exist.

use std::collections::BTreeSet;

use super::{
    Audience, Destination, Policy,
    condition::{Lens, Unmet},
    evaluate::{Evaluation, Granted},
    model::{Access, DenyTo, Life, Model},
    posture,
    restraint::Restraint,
    services::{overlap, split},
    subject::{RequestContext, Subject, Targets, Truth},
};
use crate::{grant::Mode, id::ResourceName, net::Service, protocol::Explanation, time::WallTime};

/// The most `because` lines of an explanation.
const MAX_BECAUSE: usize = 8;

/// What helps a person whose groups are unknown.
const SIGN_IN_AGAIN_FOR_GROUPS: &str =
    "sign in again; if that does not help, ask an administrator to release the groups claim";

impl Policy {
    /// Tells why the subject may or may not reach something; every service of it if `service` is absent.
    pub fn explain(
        &self,
        context: &RequestContext,
        targets: &Targets,
        to: &Destination,
        service: Option<Service>,
        audience: Audience,
    ) -> Explanation {
        self.explain_through(Lens::Actual, context, targets, to, service, audience)
    }

    /// Finds what a person means by `git`, `git.internal` or `payroll-1`: a resource first, then a machine.
    /// `domain` is the overlay's domain without dots at its ends.
    pub fn find_destination(&self, text: &str, domain: &str, targets: &Targets) -> Option<Destination> {
        let text = text.trim_end_matches('.');
        let bare = text.strip_suffix(domain).and_then(|text| text.strip_suffix('.')).unwrap_or(text);
        [bare, text].into_iter().find_map(|name| {
            let resource =
                name.parse::<ResourceName>().ok().filter(|name| self.model.resource_by_name.contains_key(name));
            let node = || targets.named(name).next().map(|node| Destination::Node(node.device));
            resource.map(Destination::Resource).or_else(node)
        })
    }

    pub(super) fn explain_through(
        &self,
        lens: Lens,
        context: &RequestContext,
        targets: &Targets,
        to: &Destination,
        service: Option<Service>,
        audience: Audience,
    ) -> Explanation {
        let question = Question { model: &self.model, lens, context, targets, to, service, audience };
        let mut explanation = question.answer();
        if audience == Audience::Subject && !explanation.allowed && !question.ever_opened() {
            explanation = question.nothing_there();
        }
        if !explanation.allowed {
            explanation.because.extend(question.open_beside());
            explanation.because.extend(context.doubt());
        }
        explanation
    }
}

struct Question<'a> {
    model: &'a Model,
    lens: Lens,
    context: &'a RequestContext,
    targets: &'a Targets,
    to: &'a Destination,
    service: Option<Service>,
    audience: Audience,
}

impl Question<'_> {
    /// Returns the resources that are asked about.
    fn resources(&self) -> Vec<usize> {
        match self.to {
            Destination::Resource(name) => self.model.resource_by_name.get(name).copied().into_iter().collect(),
            Destination::Node(device) => {
                let Some(node) = self.targets.index_of(*device) else { return Vec::new() };
                let resources = self.model.resources.iter().enumerate();
                let on_node = resources.filter(|(_, resource)| resource.indexes(self.targets).contains(&node));
                on_node.map(|(index, _)| index).collect()
            }
        }
    }

    /// Returns the nodes that are asked about.
    fn nodes(&self) -> Vec<usize> {
        match self.to {
            Destination::Resource(_) => {
                let resources = self.resources().into_iter();
                resources.flat_map(|resource| self.model.resources[resource].indexes(self.targets)).collect()
            }
            Destination::Node(device) => self.targets.index_of(*device).into_iter().collect(),
        }
    }

    fn destination(&self) -> String {
        match self.to {
            Destination::Resource(name) => name.to_string(),
            Destination::Node(device) => match self.targets.node(*device) {
                Some(node) => node.name.to_string(),
                None => "this address".into(),
            },
        }
    }

    fn what(&self, services: &[Service]) -> String {
        let services = match self.service {
            Some(service) => service.to_string(),
            None => services.iter().map(Service::to_string).collect::<Vec<_>>().join(", "),
        };
        format!("{} {services}", self.destination()).trim_end().to_owned()
    }

    fn denied(&self, reason: impl Into<String>) -> Explanation {
        Explanation {
            allowed: false,
            who: self.context.who(),
            what: self.what(&[]),
            reason: reason.into(),
            rule: None,
            location: None,
            because: Vec::new(),
            fix: None,
            valid_until: None,
        }
    }

    fn nothing_there(&self) -> Explanation {
        self.denied(format!("no rule opens {} to {}", self.what(&[]), self.context.subject))
    }

    /// Says which protocols and ports are open there, if what is asked for is one that is not.
    fn open_beside(&self) -> Option<String> {
        self.service?;
        let whole = Question { service: None, ..*self };
        let granted = whole.granted(&Evaluation::new(self.model, self.context, self.targets, self.lens));
        let open: BTreeSet<Service> = granted.into_iter().flat_map(|granted| granted.services).collect();
        let open: Vec<String> = open.iter().map(Service::to_string).collect();
        (!open.is_empty()).then(|| format!("rules open {} there to {}", open.join(", "), self.context.subject))
    }

    /// Returns what is asked for as protocols and ports; `None` is every one.
    fn services(&self) -> Option<Vec<Service>> {
        match (self.service, self.to) {
            (Some(service), _) => Some(vec![service]),
            (None, Destination::Resource(_)) => {
                let resources = self.resources().into_iter();
                Some(resources.flat_map(|resource| self.model.resources[resource].services.clone()).collect())
            }
            (None, Destination::Node(_)) => None,
        }
    }

    /// Returns every resource that is, in part, what is asked for: a port may have several names.
    fn related(&self) -> Vec<usize> {
        let (nodes, services) = (self.nodes(), self.services());
        let resources = self.model.resources.iter().enumerate().filter(|(_, resource)| {
            let there = resource.indexes(self.targets).iter().any(|node| nodes.contains(node));
            there && services.as_ref().is_none_or(|services| overlap(&resource.services, services))
        });
        resources.map(|(index, _)| index).collect()
    }

    /// Tells whether some rule would open some of it to the subject if its conditions held.
    fn ever_opened(&self) -> bool {
        !self.granted(&Evaluation::new(self.model, self.context, self.targets, Lens::Anyhow)).is_empty()
    }

    /// Returns what is granted of what is asked for, by whatever name.
    fn granted(&self, evaluation: &Evaluation<'_>) -> Vec<Granted> {
        let (nodes, services, related) = (self.nodes(), self.services(), self.related());
        let mut granted = evaluation.granted_where(|_, resource| related.contains(&resource));
        granted.retain(|granted| {
            let there = granted.nodes.iter().any(|node| nodes.contains(node));
            there && services.as_ref().is_none_or(|services| overlap(&granted.services, services))
        });
        granted
    }

    fn answer(&self) -> Explanation {
        let evaluation = Evaluation::new(self.model, self.context, self.targets, self.lens);
        let granted = self.granted(&evaluation);
        let whole =
            |granted: &Granted| self.service.is_none_or(|service| split(&[service], &granted.services).1.is_empty());
        let best = granted.iter().max_by_key(|granted| (whole(granted), granted.mode == Mode::Enforce, granted.until));
        match best {
            Some(best) => self.allowed(best, &granted),
            None => self.refused(&evaluation),
        }
    }

    fn allowed(&self, best: &Granted, all: &[Granted]) -> Explanation {
        let access = &self.model.access[best.access];
        let mut services: Vec<Service> = all.iter().flat_map(|granted| granted.services.iter().copied()).collect();
        services.sort_unstable();
        services.dedup();
        let reason = match &best.mode {
            Mode::Enforce => format!("rule \"{}\" allows it", access.name),
            Mode::Monitor { would_deny } => {
                format!("it would be denied and passes only while it is watched: {would_deny}")
            }
        };
        let mut because = vec![format!("{} is named by {}", self.context.subject, best.via)];
        because.extend(about(access.reason.as_deref(), access.owner.as_deref()));
        let limits = access.limits_at(self.context.latest()).into_iter();
        because.extend(limits.map(|limit| format!("at most {limit}; beyond that {}", limit.then)));
        because.extend(self.shut_beside(best));
        let postures = access.when.map(|when| &self.model.whens[when].posture);
        because.extend(
            postures.into_iter().flatten().filter_map(|index| posture::excepted(self.model, *index, self.context)),
        );
        Explanation {
            allowed: true,
            what: self.what(&services),
            rule: Some(access.name.to_string()),
            location: Some(self.model.location(access.line)),
            because,
            valid_until: (best.until != WallTime::NEVER).then_some(best.until),
            ..self.denied(reason)
        }
    }

    /// Says on which of the machines that are asked about a restraint keeps a rule from giving what it gives on others.
    fn shut_beside(&self, granted: &Granted) -> Vec<String> {
        if !self.context.restraints.iter().any(Restraint::is_of_one_machine) {
            return Vec::new();
        }
        let (access, name) = (&self.model.access[granted.access], &self.model.resources[granted.resource].name);
        let shut = self.nodes().into_iter().filter_map(|node| {
            let node = &self.targets.nodes()[node];
            let unmet =
                access.restrained(self.model, name, Some(node.device), self.context, self.lens, self.audience)?;
            Some(format!("not on {}: {}; it {}", node.name, unmet.fact, unmet.demand))
        });
        shut.take(MAX_BECAUSE).collect()
    }

    /// Says why nothing is granted, by the rule that came nearest.
    fn refused(&self, evaluation: &Evaluation<'_>) -> Explanation {
        let resources = self.resources();
        if matches!(self.to, Destination::Node(device) if self.context.device == Some(*device)) {
            return self.denied("a machine does not ask for itself");
        }
        if resources.is_empty() {
            return match self.to {
                Destination::Resource(name) => self.denied(format!("there is no resource \"{name}\"")),
                Destination::Node(_) => self.denied(format!("no resource names {}", self.destination())),
            };
        }
        let offering: Vec<usize> = resources
            .iter()
            .copied()
            .filter(|index| self.service.is_none_or(|s| overlap(&self.model.resources[*index].services, &[s])))
            .collect();
        if offering.is_empty() {
            let open: Vec<String> = resources
                .iter()
                .flat_map(|index| &self.model.resources[*index].services)
                .map(Service::to_string)
                .collect();
            return self.denied(format!("no resource names {}; named there are {}", self.what(&[]), open.join(", ")));
        }
        if self.nodes().is_empty() {
            let places: Vec<String> = offering
                .iter()
                .flat_map(|index| &self.model.resources[*index].nodes)
                .map(ToString::to_string)
                .collect();
            return self.denied(format!("no approved machine is {} yet", places.join(" or ")));
        }
        let related = self.related();
        let refusal = self.refusing_deny(&related, evaluation).or_else(|| self.nearest_access(&related));
        refusal.unwrap_or_else(|| {
            let mut explanation = self.nothing_there();
            if let Subject::User { groups: None, .. } = self.context.subject {
                explanation
                    .because
                    .push("the groups of this person are unknown: the sign-in did not carry them".into());
            }
            explanation.fix = self.ask_owner(&offering);
            explanation
        })
    }

    /// Names whom to ask for one of these resources: the first of them that has an owner.
    fn ask_owner(&self, resources: &[usize]) -> Option<String> {
        resources.iter().find_map(|index| {
            let resource = &self.model.resources[*index];
            resource.owner.as_ref().map(|owner| format!("ask {owner}, the owner of {}", resource.name))
        })
    }

    /// Returns what is asked for of the resources that a rule names (`None`: all), what is meant by name in front.
    fn asked_of(&self, to: Option<&[usize]>) -> Vec<usize> {
        let (meant, related) = (self.resources(), self.related());
        let beside = related.iter().filter(|resource| !meant.contains(resource));
        let asked = meant.iter().filter(|resource| related.contains(resource)).chain(beside).copied();
        asked.filter(|resource| to.is_none_or(|to| to.contains(resource))).collect()
    }

    /// Explains by a deny, if some access would hold without it.
    fn refusing_deny(&self, resources: &[usize], evaluation: &Evaluation<'_>) -> Option<Explanation> {
        let would_hold = self.model.access_index.naming(self.context).into_iter().any(|(index, _)| {
            let access = &self.model.access[index];
            access.to.iter().any(|resource| resources.contains(resource)) && evaluation.access_state(access).is_some()
        });
        if !would_hold {
            return None;
        }
        let services = self.services().unwrap_or_else(|| {
            resources.iter().flat_map(|resource| self.model.resources[*resource].services.clone()).collect()
        });
        let deny = evaluation.refusing(&self.nodes(), &services)?;
        let rule = &self.model.deny[deny];
        let named = rule.from.iter().map(|selector| selector.matches(self.context)).fold(Truth::False, Truth::or);
        let mut because = Vec::new();
        let asked = match &rule.to {
            DenyTo::Everything => self.asked_of(None),
            DenyTo::Resources(to) => self.asked_of(Some(to)),
        };
        let mut fix = None;
        if named == Truth::Unknown {
            because.push("the groups of this person are unknown, and what is unknown satisfies a deny".into());
            fix = Some(SIGN_IN_AGAIN_FOR_GROUPS.to_owned());
        }
        if let Some(unless) = rule.unless {
            let unmet = self.model.whens[unless].unmet(self.model, self.context, self.lens);
            // Whoever meets it is not refused, whatever the rule makes of their groups.
            fix = unmet.first().and_then(|first| self.fix_of(first, &asked)).or(fix);
            because.extend(unmet.into_iter().map(|unmet| format!("{}; it {}", unmet.fact, unmet.demand)));
        }
        because.extend(about(rule.reason.as_deref(), rule.owner.as_deref()));
        Some(Explanation {
            rule: Some(rule.name.to_string()),
            location: Some(self.model.location(rule.line)),
            because,
            fix: fix.or_else(|| self.ask_owner(&asked)),
            ..self.denied(format!("rule \"{}\" refuses it", rule.name))
        })
    }

    /// Explains by the access that names the subject and has the fewest unmet conditions.
    fn nearest_access(&self, resources: &[usize]) -> Option<Explanation> {
        let named =
            self.model.access_index.naming(self.context).into_iter().map(|(index, _)| &self.model.access[index]);
        let mut misses: Vec<(usize, Explanation)> = named
            .filter(|access| access.to.iter().any(|resource| resources.contains(resource)))
            .map(|access| self.miss(access))
            .collect();
        if misses.is_empty() {
            return self.unknown_membership(resources);
        }
        misses.sort_by_key(|(count, _)| *count);
        let others = misses.split_off(1);
        let (_, mut nearest) = misses.pop()?;
        nearest.because.extend(others.into_iter().map(|(_, other)| other.reason).take(MAX_BECAUSE));
        Some(nearest)
    }

    fn miss(&self, access: &Access) -> (usize, Explanation) {
        let asked = self.asked_of(Some(&access.to));
        let mut explanation = Explanation {
            rule: Some(access.name.to_string()),
            location: Some(self.model.location(access.line)),
            because: about(access.reason.as_deref(), access.owner.as_deref()).collect(),
            fix: self.ask_owner(&asked),
            ..self.denied("")
        };
        match access.life {
            Life { expires: Some(expires), .. } if expires <= self.context.latest() => {
                explanation.reason = format!("rule \"{}\" ended at {expires}", access.name);
                return (100, explanation);
            }
            Life { starts: Some(starts), .. } if starts > self.context.earliest() => {
                explanation.reason = format!("rule \"{}\" begins at {starts}", access.name);
                explanation.fix = Some(format!("try again from {starts}"));
                return (50, explanation);
            }
            Life { .. } => {}
        }
        let when = access.when.map(|when| &self.model.whens[when]);
        let unmet = when.map(|when| when.unmet(self.model, self.context, self.lens)).unwrap_or_default();
        let meant = self.resources().into_iter().filter(|resource| access.to.contains(resource));
        let names: Vec<&ResourceName> = meant.map(|resource| &self.model.resources[resource].name).collect();
        let unapproved = names.iter().all(|name| access.approved(name, self.context).is_none());
        let missing = names.first().filter(|_| unapproved && self.lens != Lens::Anyhow);
        // What was taken away comes first: that it was is news, and the conditions are known.
        let everywhere =
            |name: &&ResourceName| access.restrained(self.model, name, None, self.context, self.lens, self.audience);
        let held = names.iter().find_map(everywhere).or_else(|| {
            let nodes = self.nodes().into_iter().map(|node| self.targets.nodes()[node].device);
            let mut on = nodes.flat_map(|node| names.iter().map(move |name| (*name, node)));
            on.find_map(|(name, node)| {
                access.restrained(self.model, name, Some(node), self.context, self.lens, self.audience)
            })
        });
        let count = unmet.len() + usize::from(missing.is_some()) + usize::from(held.is_some());
        let mut told = held.into_iter().chain(unmet);
        if let Some(first) = told.next() {
            explanation.reason = format!("{}; rule \"{}\" {}", first.fact, access.name, first.demand);
            explanation.fix = self.fix_of(&first, &asked).or(explanation.fix);
        } else if let Some(name) = missing {
            let ended = access.last_approval(name, self.context).filter(|until| *until <= self.context.latest());
            let ended = ended.map(|until| format!("; the last one ended at {until}")).unwrap_or_default();
            explanation.reason =
                format!("rule \"{}\" gives it for a limited time, after an approval{ended}", access.name);
            explanation.fix = Some(format!("postern request {name} --for 1h --reason \"...\""));
        } else {
            // Its conditions hold, so the port that is asked for is not among those it gives.
            explanation.reason = format!("rule \"{}\" does not give this", access.name);
        }
        let beside = told.map(|unmet| format!("{}; it also {}", unmet.fact, unmet.demand)).collect();
        let about = std::mem::replace(&mut explanation.because, beside);
        explanation.because.extend(about);
        (count, explanation)
    }

    /// Says what mends a condition: where stronger or fresher proof does, the command that asks for it.
    fn fix_of(&self, unmet: &Unmet, asked: &[usize]) -> Option<String> {
        let step_up = || {
            let resource = asked.first()?;
            Some(format!("postern step-up {}", self.model.resources[*resource].name))
        };
        let step_up = if unmet.mended_by_step_up { step_up() } else { None };
        step_up.or_else(|| unmet.fix.clone())
    }

    /// Explains by an access that might name the subject if its groups were known.
    fn unknown_membership(&self, resources: &[usize]) -> Option<Explanation> {
        let access = self.model.access.iter().find(|access| {
            let named = access.from.iter().map(|selector| selector.matches(self.context)).fold(Truth::False, Truth::or);
            named == Truth::Unknown && access.to.iter().any(|resource| resources.contains(resource))
        })?;
        Some(Explanation {
            rule: Some(access.name.to_string()),
            location: Some(self.model.location(access.line)),
            because: vec!["the sign-in did not carry the person's groups".into()],
            fix: Some(SIGN_IN_AGAIN_FOR_GROUPS.into()),
            ..self.denied(format!("rule \"{}\" names groups, and the groups of this person are unknown", access.name))
        })
    }
}

/// Says what the author of a rule wrote about it.
fn about(reason: Option<&str>, owner: Option<&str>) -> impl Iterator<Item = String> {
    let reason = reason.map(|reason| format!("reason of the rule: {reason}"));
    let owner = owner.map(|owner| format!("owner of the rule: {owner}"));
    reason.into_iter().chain(owner)
}
