//! Explanations: policy's own words, and what the core knows beside them: revoked rules, machines that are away, names
//! that wait for approval, sessions that ended.

mod operator;

use std::net::IpAddr;

use postern_common::{
    id::{DeviceId, MachineName},
    net::Service,
    policy::{ASK_ADMINISTRATOR, Audience, Destination, NodeSelector, RequestContext, TargetNode, Targets},
    protocol::Explanation,
    time::Now,
};

use super::{api::CoreError, core::Core, peering::PeeringName};
use crate::{
    decision::{Lease, Whence, hypothetical},
    records::{Covered, DeviceRecord, Standing, SubjectKind},
};

impl Core {
    /// Explains to a node why its own subject may or may not reach something.
    pub(super) fn explain_to_node(
        &mut self,
        id: DeviceId,
        to: &str,
        service: Option<Service>,
        now: Now,
    ) -> Explanation {
        let Some(device) = self.registry.device(id).cloned() else { return nothing_there("this machine", to, service) };
        let Some(context) = self.context_of(&device, now) else { return nothing_there("this machine", to, service) };
        let targets = self.targets_but_for_quarantine();
        self.explain_context(&context, Some(&device), to, service, Audience::Subject, &targets, now)
    }

    /// Explains to an administrator why a subject, on a device if one is named, may or may not reach something.
    ///
    /// `who` is `alice@corp.example`, `service:billing`, `alice@corp.example/alice-laptop` or a machine name; `to` a
    /// resource, a machine or an overlay address.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] if there is no such subject, [`CoreError::Ambiguous`] if there are several.
    pub fn explain(
        &mut self,
        who: &str,
        to: &str,
        service: Option<Service>,
        now: Now,
    ) -> Result<Explanation, CoreError> {
        let (context, device) = self.who(who, now)?;
        // An administrator may ask about any machine, not only about those that policy names.
        let named = self.targets_but_for_quarantine();
        let mut nodes: Vec<TargetNode> = named.nodes().to_vec();
        for other in self.registry.devices().filter(|other| named.node(other.id).is_none()) {
            let name = if self.name_waits(other) { self.unclaimed(other) } else { other.name.clone() };
            nodes.push(TargetNode { device: other.id, name, tags: Default::default() });
        }
        let targets = Targets::new(nodes);
        Ok(self.explain_context(&context, device.as_ref(), to, service, Audience::Operator, &targets, now))
    }

    /// Names the machines at which flows to a resource, machine or overlay address are recorded: where they lead to.
    pub fn places_of(&self, to: &str) -> Vec<MachineName> {
        let found = self.destination(to, None, Audience::Operator, &self.targets);
        let names: Vec<MachineName> = match found {
            Some(Destination::Node(device)) => vec![self.registry.machine_name(device)],
            Some(Destination::Resource(resource)) => {
                let selectors = self.policy.resource(&resource).map(|resource| resource.nodes()).unwrap_or_default();
                let stands = |node: &&TargetNode| {
                    selectors.iter().any(|selector| match selector {
                        NodeSelector::Name(name) => node.name == *name,
                        NodeSelector::Tag(tag) => node.tags.contains(tag),
                    })
                };
                self.targets.nodes().iter().filter(stands).map(|node| node.name.clone()).collect()
            }
            None => to.parse().ok().filter(|name| self.registry.device_by_name(name).is_some()).into_iter().collect(),
        };
        names
    }

    fn unclaimed(&self, device: &DeviceRecord) -> MachineName {
        device.id.to_string().parse().expect("an identifier is a name")
    }

    fn who(&mut self, who: &str, now: Now) -> Result<(RequestContext, Option<DeviceRecord>), CoreError> {
        let device = self
            .find_session(who)
            .ok()
            .and_then(|session| self.registry.session(session))
            .map(|session| session.device)
            .or_else(|| self.find_device(who).ok());
        if let Some(device) = device.and_then(|id| self.registry.device(id)).cloned()
            && let Some(context) = self.context_of(&device, now)
        {
            return Ok((context, Some(device)));
        }
        let (subject, machine) = match self.find_subject(who) {
            Ok(subject) => (subject, None),
            Err(error) => match who.rsplit_once('/') {
                Some((subject, machine)) => (self.find_subject(subject)?, Some(machine)),
                None => return Err(error),
            },
        };
        let matches = |device: &&DeviceRecord| machine.is_none_or(|machine| device.name.as_str() == machine);
        // Of several machines the one that is connected, or was last, tells most.
        let latest = self
            .registry
            .devices_of(subject)
            .filter(matches)
            .max_by_key(|device| (self.nodes.contains_key(&device.id), device.last_seen, device.id));
        if let Some(device) = latest.cloned()
            && let Some(context) = self.context_of(&device, now)
        {
            return Ok((context, Some(device)));
        }
        if let Some(machine) = machine {
            return Err(CoreError::NotFound { what: "machine of that subject", name: machine.into() });
        }
        let owner = self.registry.subject(subject).cloned();
        let owner = owner.ok_or_else(|| CoreError::NotFound { what: "subject", name: who.into() })?;
        let restraints = self.restraints_of_subject(owner.id);
        let assurance = self.provisioned_assurance(&owner.kind, owner.provisioned_as.as_ref(), None);
        let context =
            hypothetical(&self.config.url, &owner, assurance.as_ref(), None, Whence::default(), self.clock.times(now));
        Ok((RequestContext { restraints, ..context }, None))
    }

    fn destination(
        &self,
        to: &str,
        asker: Option<DeviceId>,
        audience: Audience,
        targets: &Targets,
    ) -> Option<Destination> {
        if let Ok(address) = to.parse::<IpAddr>() {
            let owner = self.registry.devices().find(|device| device.addresses.to_vec().contains(&address))?.id;
            let meets = asker.is_some_and(|asker| self.peerings.contains_key(&PeeringName::of(asker, owner)));
            // An address must not be a way to learn which machines there are.
            return (audience == Audience::Operator || meets).then_some(Destination::Node(owner));
        }
        self.policy.find_destination(to, &self.config.domain, targets)
    }

    #[expect(clippy::too_many_arguments, reason = "one question has this many parts")]
    fn explain_context(
        &mut self,
        context: &RequestContext,
        device: Option<&DeviceRecord>,
        to: &str,
        service: Option<Service>,
        audience: Audience,
        targets: &Targets,
        now: Now,
    ) -> Explanation {
        let mut explanation = self.explain_destination(context, device, to, service, audience, targets, now);
        if let Some(device) = device
            && !explanation.allowed
        {
            explanation.because.extend(self.told_by_events(device));
        }
        explanation
    }

    /// Lists the nodes of a destination.
    fn nodes_of(&self, destination: &Destination, targets: &Targets) -> Vec<DeviceId> {
        match destination {
            Destination::Node(device) => vec![*device],
            Destination::Resource(name) => {
                let Some(resource) = self.policy.resource(name) else { return vec![] };
                let covered = Covered::of(resource.nodes(), resource.services());
                targets.nodes().iter().filter(|node| covered.is_on(node)).map(|node| node.device).collect()
            }
        }
    }

    /// What security events have taken from the asking machine and its sign-in. That is its person's own, and tells nothing of what there is
    /// elsewhere: it is said of every name alike.
    fn told_by_events(&self, device: &DeviceRecord) -> Vec<String> {
        let mut told = Vec::new();
        if let Some(session) = self.registry.session_on(device.id) {
            let proven = session
                .proven
                .as_ref()
                .filter(|proven| (&proven.acr, &proven.amr) != (&session.assurance.acr, &session.assurance.amr));
            told.extend(proven.map(|proven| {
                let by = proven.by.as_deref().unwrap_or("a security event");
                format!(
                    "since {} this sign-in counts for less than it proved: the identity provider told so ({by})",
                    proven.told
                )
            }));
            told.extend(session.claims_told.map(|at| match session.assurance.groups {
                Some(_) => format!("the groups of this sign-in are those that the identity provider told at {at} (token-claims-change)"),
                None => format!(
                    "the groups of this sign-in are unknown since {at}: the identity provider told of a change, and not clearly enough of \
                     whom or what (token-claims-change)"
                ),
            }));
        }
        if let Some(compliance) = self.postures.compliance(device.id) {
            let (at, stream) = (compliance.at, &compliance.stream);
            match (self.event_streams.vouches(stream), compliance.compliant) {
                (true, true) => {}
                (true, false) => told.push(format!(
                    "the stream of events {stream} says of {} since {at}: not compliant (device-compliance-change)",
                    device.name
                )),
                (false, _) => told.push(format!(
                    "nobody knows whether {} is compliant: the stream of events {stream}, which told of it, is silent or stopped",
                    device.name
                )),
            }
        }
        told
    }

    #[expect(clippy::too_many_arguments, reason = "one question has this many parts")]
    fn explain_destination(
        &mut self,
        context: &RequestContext,
        device: Option<&DeviceRecord>,
        to: &str,
        service: Option<Service>,
        audience: Audience,
        targets: &Targets,
        now: Now,
    ) -> Explanation {
        let asker = device.map(|device| device.id);
        let bare = to.trim_end_matches('.');
        let bare = bare.strip_suffix(&self.config.domain).and_then(|text| text.strip_suffix('.')).unwrap_or(bare);
        let Some(destination) = self.destination(to, asker, audience, targets) else {
            let mut nothing = nothing_there(&context.who(), bare, service);
            nothing.reason = format!("no rule opens {} to {}", nothing.what, context.subject);
            if audience == Audience::Operator {
                nothing.because.push(format!("there is no resource, machine or address `{bare}`"));
                self.claims(bare, targets, &mut nothing);
                nothing.because.extend(self.groups_of(context, device));
            }
            return nothing;
        };
        let there = self.nodes_of(&destination, targets);
        let seen = asker.map(|asker| self.as_seen_by(asker, &there, context.clone()));
        let mut explanation =
            self.policy.explain(seen.as_ref().unwrap_or(context), targets, &destination, service, audience);
        if let (Destination::Resource(resource), Some(device), false) = (&destination, device, explanation.allowed)
            && let Some(opened) = self.break_glass_on(device, resource, now)
        {
            explanation.because.insert(0, std::mem::take(&mut explanation.reason));
            explanation.allowed = true;
            explanation.reason = format!("BREAK-GLASS by {} since {}: {}", opened.by, opened.at, opened.reason);
            explanation.valid_until = Some(opened.until);
            explanation.fix = None;
        }
        // What policy says when it may not say more; nothing must be added to it then.
        let hidden = audience == Audience::Subject && !explanation.allowed && explanation.rule.is_none();
        if hidden {
            // what stands in the asker's own way may be said, and says nothing of what exists elsewhere
            if let Some(device) = device {
                self.own_block(device, &mut explanation, audience, now);
            }
            return explanation;
        }
        if let Some(device) = device {
            self.own_state(device, &mut explanation, audience, now);
        }
        if let Some(rule) = explanation.rule.as_ref().and_then(|rule| rule.parse().ok())
            && let Some(revoked) = self.registry.revoked_rules().get(&rule)
            && explanation.allowed
            && !self.leases.get(&asker.unwrap_or(NOBODY)).is_some_and(|lease| opens(lease, &destination, service))
        {
            explanation.allowed = false;
            explanation.valid_until = None;
            explanation.reason = format!("rule \"{rule}\" was revoked on {}: {}", revoked.at, revoked.reason);
            explanation.fix = match audience {
                Audience::Operator => Some(format!("postern-controller lift rule \"{rule}\"")),
                Audience::Subject => Some(ASK_ADMINISTRATOR.to_owned()),
            };
        }
        self.explain_quarantine(&destination, service, targets, audience, &mut explanation);
        self.destination_state(&destination, asker, audience, &mut explanation, now);
        if audience == Audience::Operator {
            self.claims(bare, targets, &mut explanation);
            if !explanation.allowed {
                explanation.because.extend(self.groups_of(context, device));
            }
        }
        explanation
    }

    /// What of the asking machine stands in the way, and whether it is heard of.
    fn own_state(&self, device: &DeviceRecord, explanation: &mut Explanation, audience: Audience, now: Now) {
        let blocked = self.own_block(device, explanation, audience, now);
        if blocked || self.nodes.contains_key(&device.id) || device.key.is_none() {
            return;
        }
        let seen = device.last_seen;
        let place = device.last_address.map(|ip| format!("; last address {ip}")).unwrap_or_default();
        explanation.because.push(format!("{} has no stream to the controller since {seen}{place}", device.name));
    }

    /// Puts what closes everything to the asking machine in front of the explanation, and tells whether anything does.
    /// What mends the block is the fix then, whatever the rule asks for besides.
    fn own_block(&self, device: &DeviceRecord, explanation: &mut Explanation, audience: Audience, now: Now) -> bool {
        let told = |command: String| match audience {
            Audience::Operator => Some(command),
            Audience::Subject => Some(ASK_ADMINISTRATOR.to_owned()),
        };
        let there = || Some(format!("run `postern status` on {}: it says why", device.name));
        let owner = self.registry.subject(device.owner);
        let blocked = match (&device.standing, owner) {
            (_, Some(_)) if self.registry.quarantine_on(device).is_some() => self
                .registry
                .quarantine_on(device)
                .map(|held| (self.quarantine_reason(held), told(self.release_command(&held.target)))),
            (Standing::Revoked { reason, .. }, _) => {
                let lift = format!("postern-controller lift device {}", device.name);
                Some((format!("{} is revoked: {reason}", device.name), told(lift)))
            }
            (Standing::Good, Some(owner)) if self.registry.barred(owner).is_some() => {
                let reason = self.registry.barred(owner).unwrap_or_default();
                let fix = match audience {
                    Audience::Operator => self.let_in_again(owner),
                    Audience::Subject => Some(ASK_ADMINISTRATOR.to_owned()),
                };
                Some((format!("{} may not take part: {reason}", owner.name), fix))
            }
            (Standing::Good, Some(owner)) => match owner.kind {
                SubjectKind::Person { .. } if self.registry.session_on(device.id).is_none() => {
                    let ended = self.registry.ended_on(device.id);
                    let ended = ended.map(|end| format!(": the last session ended {} ({})", end.at, end.reason));
                    let reason = format!("nobody is signed in on {}{}", device.name, ended.unwrap_or_default());
                    Some((reason, Some("postern up".to_owned())))
                }
                SubjectKind::Service { .. } if !self.registry.would_take_part(device) => {
                    let ended = self.registry.ended_on(device.id);
                    let ended = ended.map(|end| format!(": the last session ended {} ({})", end.at, end.reason));
                    let reason =
                        format!("{} has shown no live token of its platform{}", device.name, ended.unwrap_or_default());
                    Some((reason, there()))
                }
                SubjectKind::Person { .. } | SubjectKind::Service { .. } => {
                    self.key_denies(device, now.wall).map(|since| {
                        let reason = format!("{} has not changed its WireGuard key since {since}", device.name);
                        (reason, there())
                    })
                }
            },
            (Standing::Good, None) => {
                let remove = format!("postern-controller device remove {}", device.name);
                Some((format!("{} belongs to nobody", device.name), told(remove)))
            }
        };
        let Some((reason, fix)) = blocked else { return false };
        let besides = std::mem::replace(&mut explanation.fix, fix);
        if !explanation.allowed {
            let after = besides.map(|besides| format!("after that: {besides}"));
            let behind = std::iter::once(std::mem::take(&mut explanation.reason)).chain(after);
            explanation.because.splice(0..0, behind);
        }
        explanation.allowed = false;
        explanation.valid_until = None;
        explanation.reason = reason;
        true
    }

    /// What of the machines behind the destination stands in the way.
    fn destination_state(
        &self,
        destination: &Destination,
        asker: Option<DeviceId>,
        audience: Audience,
        explanation: &mut Explanation,
        now: Now,
    ) {
        let nodes: Vec<DeviceId> = match destination {
            Destination::Node(device) => vec![*device],
            Destination::Resource(resource) => {
                let granted = asker.and_then(|asker| self.leases.get(&asker)).map(|lease| lease.granted.iter());
                let granted = granted.into_iter().flatten().filter(|granted| granted.entitlement.resource == *resource);
                granted.flat_map(|granted| granted.entitlement.nodes.iter().copied()).collect()
            }
        };
        if !explanation.allowed && audience == Audience::Subject {
            return;
        }
        for node in nodes.into_iter().filter(|node| Some(*node) != asker).take(8) {
            let Some(device) = self.registry.device(node) else { continue };
            let name = &device.name;
            match self.connected_since(node) {
                None => {
                    let seen = device.last_seen;
                    explanation.because.push(format!("{name} has no stream to the controller since {seen}"));
                }
                Some(_) => {
                    let peering = asker.and_then(|asker| self.peerings.get(&PeeringName::of(asker, node)));
                    let told = asker.zip(peering).is_some_and(|(asker, peering)| {
                        peering.view(asker, now).is_some_and(|view| !view.outbound.is_empty())
                    });
                    if explanation.allowed && asker.is_some() && !told {
                        explanation.because.push(format!("{name} has not acknowledged it yet: it opens then"));
                    }
                }
            }
        }
    }
}

/// Names no device.
const NOBODY: DeviceId = DeviceId::from_bytes([0; 16]);

/// Tells whether a lease opens what is asked about, by whichever rule.
fn opens(lease: &Lease, destination: &Destination, service: Option<Service>) -> bool {
    lease.granted.iter().map(|granted| &granted.entitlement).any(|entitlement| {
        let there = match destination {
            Destination::Resource(resource) => entitlement.resource == *resource,
            Destination::Node(node) => entitlement.nodes.contains(node),
        };
        let covers = |service: Service| entitlement.services.iter().any(|s| s.intersection(&service) == Some(service));
        there && service.is_none_or(covers)
    })
}

fn nothing_there(who: &str, to: &str, service: Option<Service>) -> Explanation {
    let what = service.map_or_else(|| to.to_owned(), |service| format!("{to} {service}"));
    Explanation {
        allowed: false,
        who: who.to_owned(),
        reason: format!("no rule opens {what} to {who}"),
        what,
        rule: None,
        location: None,
        because: vec![],
        fix: None,
        valid_until: None,
    }
}
