//! Break-glass: access past the rules, loud and short.
//!
//! ```text
//! administrator on the controller's host, two reasons --durable, audited, alert--> an entitlement beside policy's
//!   --> the same lease, grant and data plane as any other --> ends at its deadline on the nodes
//! ```
//!
//! Invariants:
//! - It opens one resource of the policy to one subject on one device, no longer than [`LONGEST`], and needs two reasons.
//! - Every part of the way but the rules stays: who is disabled, signed out or in quarantine gets nothing, a resource in
//!   quarantine opens to nobody, and the ceiling of the destination's owner holds.
//! - It is named for what it is wherever somebody looks: as the rule of the permission on both nodes, in their records, in
//!   `status` of the controller, in the audit log, in an alert. It cannot be prolonged; another one is another alert.
//! - The lease of it is short ([`LEASE`]), so that a controller that goes away closes it within minutes.
//!
//! Threats: a machine that calls itself as another ([`Core::machine_to_open`]); an administrator who serves themselves (two reasons, an alert to others, the audit log); somebody who took the
//! controller's host over can change the policy anyway. See `docs/decisions/0013-break-glass.md` for the local form.

use std::time::Duration;

use postern_common::{
    grant::{Mode, OnDeny},
    id::{BreakGlassId, DeviceId, ResourceName, RuleName},
    policy::Entitlement,
    time::{Now, WallTime},
};

use super::{
    api::{BreakGlassView, CoreError},
    core::Core,
    requests::checked_reason,
};
use crate::{
    decision::Extend,
    records::{AuditEvent, BreakGlassRecord, Covered, DeviceRecord, NameClaim, StoreChange},
    signals::alerts::{About, AlertKind},
};

/// The longest opening.
const LONGEST: Duration = Duration::from_secs(4 * 3_600);
const LEAST: Duration = Duration::from_secs(60);
/// The lease of what is opened.
const LEASE: Duration = Duration::from_secs(120);
/// The most openings at a time.
const MAX_OPEN: usize = 64;

impl Core {
    /// Finds the machine that an administrator names to open something to it. What a machine calls itself tells nothing of who it is:
    /// it has to be named by its identifier or by a name that was approved, or with the subject to whom it belongs.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Ambiguous`]; [`CoreError::NotPermitted`] if the name is only claimed, or the machine is
    /// another subject's.
    pub fn machine_to_open(&self, machine: &str, subject: Option<&str>) -> Result<DeviceId, CoreError> {
        let id = self.find_device(machine)?;
        let missing = || CoreError::NotFound { what: "device", name: id.to_string() };
        let device = self.registry.device(id).ok_or_else(missing)?;
        let (name, owner) = (&device.name, self.registry.subject_name(device.owner));
        if let Some(subject) = subject {
            if self.find_subject(subject)? != device.owner {
                return Err(CoreError::NotPermitted(format!("{name} is a machine of {owner}")));
            }
        } else if device.name_claim == NameClaim::Claimed && machine.parse::<DeviceId>().is_err() {
            return Err(CoreError::NotPermitted(format!(
                "{name} is what a machine of {owner} calls itself, and nobody has approved that: say `--subject {owner}` if that is who you mean, or name it by its identifier, {id}"
            )));
        }
        Ok(id)
    }

    /// Opens a resource to the subject of a device, past the rules, for a time.
    ///
    /// # Errors
    /// [`CoreError::NotFound`]; [`CoreError::NotPermitted`] without two different reasons, for too long, or for a machine that may not
    /// take part at all.
    #[expect(clippy::too_many_arguments, reason = "one opening has this many parts")]
    pub fn break_glass(
        &mut self,
        device: DeviceId,
        resource: &ResourceName,
        length: Duration,
        reason: &str,
        why_past_the_rules: &str,
        by: &str,
        now: Now,
    ) -> Result<BreakGlassView, CoreError> {
        let missing = |what, name: String| CoreError::NotFound { what, name };
        let record = self.registry.device(device).cloned().ok_or_else(|| missing("device", device.to_string()))?;
        if self.policy.resource(resource).is_none() {
            return Err(missing("resource", resource.to_string()));
        }
        if !(LEAST..=LONGEST).contains(&length) {
            return Err(CoreError::NotPermitted("break-glass is open for 1m to 4h".into()));
        }
        let (reason, why) = (checked_reason(reason)?, checked_reason(why_past_the_rules)?);
        let until = self.end_after(length, now)?;
        if reason == why {
            return Err(CoreError::NotPermitted("the two reasons answer two questions: do not repeat one".into()));
        }
        if !self.registry.may_take_part(&record) {
            let message = format!("{} may not take part: nobody is signed in, or it is held", record.name);
            return Err(CoreError::NotPermitted(message));
        }
        if self.registry.break_glass().count() >= MAX_OPEN {
            return Err(CoreError::Exhausted(format!("{MAX_OPEN} are open: close some first")));
        }
        let opened = BreakGlassRecord {
            id: BreakGlassId::from_bytes(self.draw()),
            subject: record.owner,
            device,
            resource: resource.clone(),
            reason,
            why_past_the_rules: why,
            by: by.to_owned(),
            at: now.wall,
            until,
        };
        let view = self.break_glass_view(&opened);
        let text = format!(
            "BREAK-GLASS: {by} opened {resource} to {} on {} until {}: {}",
            view.subject_name, view.machine, opened.until, opened.reason
        );
        let about = About { subject: Some(opened.subject), device: Some(device), resource: Some(resource.clone()) };
        self.alert(AlertKind::BreakGlass, text, about, now);
        self.out.audit(AuditEvent::BreakGlassOpened {
            record: opened.clone(),
            subject_name: view.subject_name.clone(),
            machine: view.machine.clone(),
        });
        self.registry.put_break_glass(opened, &mut self.out);
        self.decide(device, Extend::No, now);
        self.flush(now);
        Ok(view)
    }

    /// Closes an opening before its time.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn close_break_glass(&mut self, id: BreakGlassId, by: &str, now: Now) -> Result<(), CoreError> {
        let closed = self.registry.forget_break_glass(id);
        let record = closed.ok_or_else(|| CoreError::NotFound { what: "break-glass", name: id.to_string() })?;
        self.out.store(StoreChange::DeleteBreakGlass(id));
        self.out.audit(AuditEvent::BreakGlassClosed { id, by: by.to_owned() });
        self.decide(record.device, Extend::No, now);
        self.flush(now);
        Ok(())
    }

    /// Lists what is open past the rules, the first to end in front.
    pub fn list_break_glass(&self, now: Now) -> Vec<BreakGlassView> {
        let live = self.registry.break_glass().filter(|record| record.until > self.clock.latest(now));
        let mut views: Vec<BreakGlassView> = live.map(|record| self.break_glass_view(record)).collect();
        views.sort_by_key(|view| view.record.until);
        views
    }

    fn break_glass_view(&self, record: &BreakGlassRecord) -> BreakGlassView {
        let (subject_name, machine) =
            (self.registry.subject_name(record.subject), self.registry.machine_name(record.device));
        BreakGlassView { record: record.clone(), subject_name, machine }
    }

    /// Returns the live opening of a resource to a device and its owner.
    pub(super) fn break_glass_on(
        &self,
        device: &DeviceRecord,
        to: &ResourceName,
        now: Now,
    ) -> Option<&BreakGlassRecord> {
        let now = self.clock.latest(now);
        self.registry.break_glass().find(|record| {
            (record.subject, record.device) == (device.owner, device.id) && record.resource == *to && record.until > now
        })
    }

    /// Returns what a device is given past the rules.
    pub(super) fn broken_glass(&self, device: &DeviceRecord, now: Now) -> Vec<Entitlement> {
        let own = self.registry.break_glass().filter(|record| {
            (record.subject, record.device) == (device.owner, device.id) && record.until > self.clock.latest(now)
        });
        own.filter_map(|record| {
            let resource = self.policy.resource(&record.resource)?;
            let covered = Covered::of(resource.nodes(), resource.services());
            let nodes: Vec<DeviceId> =
                self.targets.nodes().iter().filter(|node| covered.is_on(node)).map(|node| node.device).collect();
            (!nodes.is_empty()).then(|| Entitlement {
                rule: rule_name(record),
                location: "break-glass".into(),
                resource: record.resource.clone(),
                nodes,
                services: resource.services().to_vec(),
                valid_until: record.until,
                lease: LEASE,
                on_deny: OnDeny::default(),
                mode: Mode::Enforce,
                stock_clients: false,
                limits: vec![],
                via: "break-glass".into(),
            })
        })
        .collect()
    }

    /// Forgets openings that are over.
    pub(super) fn sweep_break_glass(&mut self, now: WallTime) {
        let over: Vec<BreakGlassId> = self.registry.break_glass().filter(|r| r.until <= now).map(|r| r.id).collect();
        for id in over {
            self.registry.forget_break_glass(id);
            self.out.store(StoreChange::DeleteBreakGlass(id));
        }
    }
}

/// Names the permission for what it is, on every node and in every record.
fn rule_name(record: &BreakGlassRecord) -> RuleName {
    let text: String = format!("BREAK-GLASS by {}: {}", record.by, record.reason).chars().take(120).collect();
    text.parse().unwrap_or_else(|_| "BREAK-GLASS".parse().expect("a name"))
}
