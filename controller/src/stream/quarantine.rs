//! Quarantine: nothing in and nothing out, until somebody releases it.
//!
//! ```text
//! quarantine --durable record--> may_take_part is no (machine, subject) / what rules give loses its ports (resource)
//!            --> leases end, places vanish, edges narrow --> documents, destinations first --> acknowledged, flows counted
//! a machine in quarantine: its stream stays, and its own part of the document says why and since when
//! ```
//!
//! It is the mechanism of [`super::revocation`] with another cause: the same noting, the same documents, the same progress.
//!
//! Invariants:
//! - The decision itself asks ([`Core::evaluate`], `Registry::may_take_part`), so whatever decides later (a sign-in, a
//!   renewal, another policy, a restart) finds the quarantine there. Nothing has to remember to look.
//! - A person cannot end a quarantine: not by signing in again, not by removing the machine or handing it to somebody else.
//! - A resource is held by its nodes and ports, those of now and those of the moment at which it came into quarantine: a policy
//!   that gives the port another name opens nothing, nor does another name or tag of the machine.
//! - A stock client stays on record while it is held, also without a login session, and its person takes no other configuration.
//! - There are no exceptions: no rule, no approval and no request passes.
//!
//! Threats: a compromised machine makes a new device key and joins as another machine. For that it needs its person (put the
//! subject in quarantine) or an enrolment token (take it back); the documentation says so.

use postern_common::{
    diagnostics::shell_word,
    grant::QuarantineNotice,
    id::DeviceId,
    net::Service,
    policy::{ASK_ADMINISTRATOR, Audience, Destination, Entitlement, Policy, StepUp, TargetNode, Targets},
    protocol::Explanation,
    time::Now,
};

use super::{
    api::{CoreError, QuarantineView, RevocationId},
    core::Core,
};
use crate::{
    decision::Extend,
    records::{AuditEvent, Covered, DeviceRecord, LeaseEnd, QuarantineRecord, Quarantined, RevokeTarget, StoreChange},
};

/// The most quarantines at a time: each resource's is looked at in every decision.
const MAX_QUARANTINES: usize = 10_000;

impl Core {
    /// Puts somebody or something in quarantine. Its progress is [`Core::revocation`]. Asked for again, the reason changes and
    /// the moment since when stays.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] if there is no such thing.
    pub fn quarantine(
        &mut self,
        target: Quarantined,
        reason: &str,
        by: &str,
        now: Now,
    ) -> Result<RevocationId, CoreError> {
        let covered = match &target {
            Quarantined::Subject(id) if self.registry.subject(*id).is_some() => Covered::default(),
            Quarantined::Device(id) if self.registry.device(*id).is_some() => Covered::default(),
            Quarantined::Resource(name) => match self.policy.resource(name) {
                Some(resource) => {
                    let mut covered = Covered::of(resource.nodes(), resource.services());
                    let targets = self.targets_but_for_quarantine();
                    covered.devices =
                        targets.nodes().iter().filter(|node| covered.is_on(node)).map(|node| node.device).collect();
                    covered
                }
                None => return Err(CoreError::NotFound { what: "resource", name: name.to_string() }),
            },
            Quarantined::Subject(id) => {
                return Err(CoreError::NotFound { what: "subject", name: id.to_string() });
            }
            Quarantined::Device(id) => return Err(CoreError::NotFound { what: "device", name: id.to_string() }),
        };
        let held = self.registry.quarantine(&target).cloned();
        if held.is_none() && self.registry.quarantines().count() >= MAX_QUARANTINES {
            return Err(CoreError::Exhausted(format!(
                "{MAX_QUARANTINES} things are in quarantine: release some first"
            )));
        }
        let since = held.as_ref().map_or(now.wall, |held| held.since);
        // What a resource was before stays held: a second command must not narrow the first.
        let covered = held.map_or(covered, |held| held.covered);
        let record =
            QuarantineRecord { target: target.clone(), reason: reason.to_owned(), by: by.to_owned(), since, covered };
        let name = self.quarantined_name(&target);
        let revoked = RevokeTarget::Quarantine(target.clone());
        let id = self.while_noting(revoked, reason, by, now, |core| {
            core.alert_quarantine(&target, format!("{name} is in quarantine ({by}): {reason}"), now);
            core.out.audit(AuditEvent::Quarantined {
                target: target.clone(),
                name,
                reason: reason.to_owned(),
                by: by.to_owned(),
                since,
            });
            core.out.store(StoreChange::PutQuarantine(record.clone()));
            core.registry.hold(record);
            core.close_quarantined(&target, reason, now);
        });
        self.flush(now);
        Ok(id)
    }

    fn close_quarantined(&mut self, target: &Quarantined, reason: &str, now: Now) {
        let devices = self.devices_held_by(target);
        for device in &devices {
            self.end_lease(*device, LeaseEnd::Quarantined { reason: reason.to_owned() }, now);
        }
        match target {
            Quarantined::Subject(_) | Quarantined::Device(_) => self.targets_changed(now),
            Quarantined::Resource(_) => {
                let held: Vec<Covered> = self.held_resources(&self.policy).into_iter().map(|(c, _)| c).collect();
                let targets = self.targets.clone();
                let on = |node: &DeviceId| targets.node(*node).is_some_and(|node| held.iter().any(|c| c.is_on(node)));
                self.decide_where(now, |entitlement| entitlement.nodes.iter().any(on));
            }
        }
        for device in devices {
            self.tell_own(device);
        }
    }

    fn devices_held_by(&self, target: &Quarantined) -> Vec<DeviceId> {
        match target {
            Quarantined::Device(id) => vec![*id],
            Quarantined::Subject(id) => self.registry.devices_of(*id).map(|device| device.id).collect(),
            Quarantined::Resource(_) => vec![],
        }
    }

    /// Releases somebody or something from quarantine: what policy gives opens again.
    ///
    /// # Errors
    /// [`CoreError::NotHeld`] if it is not in quarantine.
    pub fn release(&mut self, target: &Quarantined, by: &str, now: Now) -> Result<(), CoreError> {
        let name = self.quarantined_name(target);
        if self.registry.release(target).is_none() {
            return Err(CoreError::NotHeld { name, held: "in quarantine" });
        }
        self.out.store(StoreChange::DeleteQuarantine(target.clone()));
        self.alert_quarantine(target, format!("{name} is released from quarantine ({by})"), now);
        self.out.audit(AuditEvent::QuarantineReleased { target: target.clone(), name, by: by.to_owned() });
        for device in self.devices_held_by(target) {
            self.tell_own(device);
            self.decide(device, Extend::No, now);
            self.forget_if_held_no_more(device, now);
        }
        self.rebuild_targets();
        self.decide_all(now);
        self.flush(now);
        Ok(())
    }

    /// Lists what is in quarantine, the oldest first.
    pub fn list_quarantines(&self) -> Vec<QuarantineView> {
        let view = |record: &QuarantineRecord| QuarantineView {
            name: self.quarantined_name(&record.target),
            machines: self
                .devices_held_by(&record.target)
                .into_iter()
                .map(|id| self.registry.machine_name(id))
                .collect(),
            record: record.clone(),
        };
        let mut views: Vec<QuarantineView> = self.registry.quarantines().map(view).collect();
        views.sort_by_key(|view| view.record.since);
        views
    }

    /// Returns the name for people of whom or what a quarantine holds.
    pub(super) fn quarantined_name(&self, target: &Quarantined) -> String {
        match target {
            Quarantined::Subject(id) => self.registry.subject_name(*id),
            Quarantined::Device(id) => self.registry.machine_name(*id).to_string(),
            Quarantined::Resource(name) => name.to_string(),
        }
    }

    /// Returns what a machine in quarantine is told of that.
    pub(super) fn quarantine_notice(&self, device: &DeviceRecord) -> Option<QuarantineNotice> {
        let record = self.registry.quarantine_on(device)?;
        let what = self.quarantined_name(&record.target);
        Some(QuarantineNotice { what, reason: record.reason.clone(), since: record.since })
    }

    /// Takes away what resources in quarantine name, whichever rule and name gave it.
    pub(super) fn without_quarantined(
        &self,
        policy: &Policy,
        targets: &Targets,
        given: Vec<Entitlement>,
    ) -> Vec<Entitlement> {
        let held = self.held_resources(policy);
        if held.is_empty() {
            return given;
        }
        Entitlement::without(given, |node| {
            let Some(node) = targets.node(node) else { return vec![] };
            held.iter().filter(|(covered, _)| covered.is_on(node)).flat_map(|(c, _)| c.services.clone()).collect()
        })
    }

    /// Leaves out offers of a step-up for what is in quarantine: no proof would open it.
    pub(super) fn offers_not_held(&self, mut offers: Vec<StepUp>) -> Vec<StepUp> {
        let held = self.held_resources(&self.policy);
        let shut = |offer: &StepUp| {
            let nodes = || offer.nodes.iter().filter_map(|node| self.targets.node(*node));
            let meets = |services: &[Service]| {
                services.iter().any(|one| offer.services.iter().any(|other| one.intersection(other).is_some()))
            };
            held.iter().any(|(covered, _)| meets(&covered.services) && nodes().any(|node| covered.is_on(node)))
        };
        offers.retain(|offer| !shut(offer));
        offers
    }

    /// Lists what resources in quarantine are: as they were then, and as this policy knows them.
    fn held_resources(&self, policy: &Policy) -> Vec<(Covered, &QuarantineRecord)> {
        let mut held = Vec::new();
        for record in self.registry.quarantined_resources() {
            held.push((record.covered.clone(), record));
            if let Quarantined::Resource(name) = &record.target
                && let Some(resource) = policy.resource(name)
            {
                held.push((Covered::of(resource.nodes(), resource.services()), record));
            }
        }
        held
    }

    /// Turns an explanation that allows into a refusal if what is asked for is in quarantine: a resource, or every machine
    /// behind it.
    pub(super) fn explain_quarantine(
        &self,
        destination: &Destination,
        service: Option<Service>,
        targets: &Targets,
        audience: Audience,
        explanation: &mut Explanation,
    ) {
        if !explanation.allowed || self.registry.quarantines().next().is_none() {
            return;
        }
        let (asked, services): (Covered, Option<Vec<Service>>) = match destination {
            Destination::Resource(name) => {
                let known = self.policy.resource(name).map(|known| Covered::of(known.nodes(), known.services()));
                let known = known.unwrap_or_default();
                let services = known.services.clone();
                (known, Some(service.map_or(services, |service| vec![service])))
            }
            Destination::Node(_) => (Covered::default(), service.map(|service| vec![service])),
        };
        let meant = |node: &&TargetNode| match destination {
            Destination::Resource(_) => asked.is_on(node),
            Destination::Node(device) => node.device == *device,
        };
        let nodes: Vec<&TargetNode> = targets.nodes().iter().filter(meant).collect();
        let machine = |node: &&TargetNode| {
            self.registry.device(node.device).and_then(|device| self.registry.quarantine_on(device))
        };
        // One machine that is not held still answers.
        let of_machines = nodes.iter().map(machine).collect::<Option<Vec<_>>>();
        let shares = |covered: &Covered| {
            let overlaps = |asked: &Service| covered.services.iter().any(|held| held.intersection(asked).is_some());
            services.as_ref().is_none_or(|services| services.iter().any(overlaps))
        };
        let of_resource = self
            .held_resources(&self.policy)
            .into_iter()
            .find(|(covered, _)| shares(covered) && nodes.iter().any(|node| covered.is_on(node)))
            .map(|(_, record)| record);
        let record = of_resource.or_else(|| of_machines.and_then(|records| records.into_iter().next()));
        if let Some(record) = record {
            explanation.because.insert(0, std::mem::take(&mut explanation.reason));
            explanation.allowed = false;
            explanation.valid_until = None;
            explanation.reason = self.quarantine_reason(record);
            let owner = match &record.target {
                Quarantined::Resource(name) => self.policy.resource(name).and_then(|known| known.owner()),
                Quarantined::Subject(_) | Quarantined::Device(_) => None,
            };
            explanation.fix = Some(match (audience, owner) {
                (Audience::Operator, _) => self.release_command(&record.target),
                (Audience::Subject, Some(owner)) => {
                    format!("ask {owner}, the owner of {}", self.quarantined_name(&record.target))
                }
                (Audience::Subject, None) => ASK_ADMINISTRATOR.to_owned(),
            });
        }
    }

    /// Returns the command that ends a quarantine.
    pub(super) fn release_command(&self, target: &Quarantined) -> String {
        let what = match target {
            Quarantined::Subject(_) => "subject",
            Quarantined::Device(_) => "device",
            Quarantined::Resource(_) => "resource",
        };
        format!("postern-controller quarantine release {what} {}", shell_word(&self.quarantined_name(target)))
    }

    /// Says in words that something is in quarantine.
    pub(super) fn quarantine_reason(&self, record: &QuarantineRecord) -> String {
        let name = self.quarantined_name(&record.target);
        format!("{name} is in quarantine since {}: {}", record.since, record.reason)
    }
}
