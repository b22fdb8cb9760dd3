//! Restraints: the responses to a signal that are less than quarantine.
//!
//! ```text
//! a limit, a change of place, an event of the identity provider, an administrator --respond--> durable record, audited
//!   --context_of--> Policy: the same evaluator as ever --> edges narrow, step-up offered --> documents
//! a sign-in after it --step_up.rs, a new session--> counts again        release --> what policy gives opens again
//! ```
//!
//! Invariants:
//! - A restraint only takes away, and the decision itself asks for it ([`Core::context_of`]): a renewal, another policy, another
//!   session and a restart find it there.
//! - A challenge is of a **subject or device, not of a session**: signing out and in again by a browser's old sign-in is no answer to
//!   it, because that sign-in was proven before.
//! - Only the devices concerned are decided anew.
//! - What a challenge asks, an administrator cannot be asked for by it: break-glass passes restraints as it passes rules, loudly.
//!
//! Bounds: [`MAX_OF_ONE`] of one subject or device; one more challenge becomes a challenge of everything, which covers them.

use std::collections::BTreeSet;

use postern_common::{
    id::{DeviceId, ResourceName, SubjectId},
    policy::{Reach, Restraint},
    time::{Now, WallTime},
};

use super::{
    api::{CoreError, RestraintView},
    core::Core,
};
use crate::{
    decision::Extend,
    records::{AuditEvent, DeviceRecord, Restrained, RestraintRecord, Takes},
};

/// The most restraints of one subject, and of one device.
const MAX_OF_ONE: usize = 64;

/// What follows from a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignalResponse {
    /// The sign-in has to be proven anew before this goes on.
    Challenge(Reach),
    /// Nothing but these resources, until an administrator releases it.
    Restrict(BTreeSet<ResourceName>),
    /// The login sessions end, and none opens anything without a sign-in from after that. A service, which cannot sign in, is closed
    /// until an administrator releases it.
    Terminate,
}

impl SignalResponse {
    fn takes(&self) -> Takes {
        match self {
            Self::Challenge(reach) => Takes::Proof { reach: reach.clone() },
            Self::Restrict(resources) => Takes::AllBut { resources: resources.clone() },
            Self::Terminate => Takes::Proof { reach: Reach::Everything },
        }
    }
}

impl Core {
    /// Makes a response to a signal take effect, durably. `reason` is told to the person: `credentials were changed`. `by` is the
    /// operating system's user, or the signal: `limit of rule "payroll"`.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] if there is no such subject or device.
    pub fn respond(
        &mut self,
        whom: Restrained,
        response: SignalResponse,
        reason: &str,
        by: &str,
        now: Now,
    ) -> Result<(), CoreError> {
        let known = match whom {
            Restrained::Subject(id) => self.registry.subject(id).is_some(),
            Restrained::Device(id) => self.registry.device(id).is_some(),
        };
        if !known {
            let what = match whom {
                Restrained::Subject(_) => "subject",
                Restrained::Device(_) => "device",
            };
            return Err(CoreError::NotFound { what, name: whom.to_string() });
        }
        self.respond_without_telling(whom, response, reason, by, now);
        self.flush(now);
        Ok(())
    }

    /// As [`Core::respond`], of whoever is known, within a turn that tells the nodes at its end.
    pub(super) fn respond_without_telling(
        &mut self,
        whom: Restrained,
        response: SignalResponse,
        reason: &str,
        by: &str,
        now: Now,
    ) {
        self.restrain(whom, response.takes(), reason, by, now.wall);
        let devices = self.devices_restrained(whom);
        match response {
            SignalResponse::Challenge(_) | SignalResponse::Restrict(_) => {}
            SignalResponse::Terminate => {
                let on = |device: &DeviceId| self.registry.session_on(*device).map(|session| session.id);
                let sessions = devices.iter().filter_map(on).collect();
                self.end_sessions(sessions, &format!("ended: {reason}"), now);
            }
        }
        for device in devices {
            self.decide(device, Extend::No, now);
        }
    }

    /// Asks for a sign-in that was proven after `until`, within a turn that tells the nodes at its end: for a signal that tells when
    /// something happened. Who has proven it anew since then is not asked.
    pub(super) fn challenge_proofs_until(
        &mut self,
        whom: Restrained,
        until: WallTime,
        reason: &str,
        by: &str,
        now: Now,
    ) {
        self.restrain(whom, Takes::Proof { reach: Reach::Everything }, reason, by, until.min(now.wall));
        for device in self.devices_restrained(whom) {
            self.decide(device, Extend::No, now);
        }
    }

    /// Tells whether a response would take nothing that is not taken already, on any machine.
    pub(super) fn is_taken(&self, whom: Restrained, response: &SignalResponse) -> bool {
        let takes = response.takes();
        let held = self.registry.restraints_of(whom);
        let Some(record) = held.iter().find(|record| record.takes == takes) else { return false };
        self.devices_restrained(whom).into_iter().all(|device| match response {
            SignalResponse::Restrict(_) => true,
            SignalResponse::Challenge(_) => {
                self.registry.is_of_service(device)
                    || self.registry.session_on(device).is_none()
                    || self.binds(record, device)
            }
            SignalResponse::Terminate => {
                self.registry.is_of_service(device) || self.registry.session_on(device).is_none()
            }
        })
    }

    fn restrain(&mut self, whom: Restrained, takes: Takes, reason: &str, by: &str, since: WallTime) {
        let held = self.registry.restraints_of(whom);
        let is_known = held.iter().any(|record| record.takes == takes);
        let takes =
            if held.len() >= MAX_OF_ONE && !is_known { Takes::Proof { reach: Reach::Everything } } else { takes };
        // What happened earlier and is told later asks for no less than what is known already.
        let known = self.registry.restraints_of(whom).iter().filter(|record| record.takes == takes);
        let since = known.map(|record| record.since).max().map_or(since, |known| known.max(since));
        let record = RestraintRecord { whom, takes, reason: reason.to_owned(), by: by.to_owned(), since };
        self.out.audit(AuditEvent::Restrained { name: self.restrained_name(whom), record: record.clone() });
        self.registry.put_restraint(record, &mut self.out);
    }

    /// Releases a subject or device from every restraint: what policy gives opens again.
    ///
    /// # Errors
    /// [`CoreError::NotFound`] if there is none.
    pub fn release_restraints(&mut self, whom: Restrained, by: &str, now: Now) -> Result<(), CoreError> {
        let name = self.restrained_name(whom);
        let in_force = self.registry.restraints_of(whom).iter().any(|record| record.in_force().is_some());
        if !in_force {
            return Err(CoreError::NotFound { what: "restraint of", name });
        }
        self.registry.forget_restraints(whom, &mut self.out);
        // What is left says since when budgets count anew: a node that shut something opens it by that.
        let (reason, by_whom) = ("released".to_owned(), by.to_owned());
        let released = RestraintRecord { whom, takes: Takes::Nothing, reason, by: by_whom, since: now.wall };
        self.registry.put_restraint(released, &mut self.out);
        if let Restrained::Subject(subject) = whom {
            self.usages.begin_anew(subject);
        }
        self.out.audit(AuditEvent::RestraintsReleased { whom, name, by: by.to_owned() });
        for device in self.devices_restrained(whom) {
            self.decide(device, Extend::No, now);
        }
        self.flush(now);
        Ok(())
    }

    fn devices_restrained(&self, whom: Restrained) -> Vec<DeviceId> {
        match whom {
            Restrained::Device(id) => vec![id],
            Restrained::Subject(id) => {
                self.registry.devices().filter(|device| device.owner == id).map(|device| device.id).collect()
            }
        }
    }

    fn restrained_name(&self, whom: Restrained) -> String {
        match whom {
            Restrained::Subject(id) => self.registry.subject_name(id),
            Restrained::Device(id) => self.registry.machine_name(id).to_string(),
        }
    }

    /// Returns what is taken from whoever is signed in on a device.
    pub(super) fn restraints_on(&self, device: &DeviceRecord) -> Vec<Restraint> {
        let both = [Restrained::Subject(device.owner), Restrained::Device(device.id)];
        both.into_iter()
            .flat_map(|whom| self.registry.restraints_of(whom))
            .filter_map(RestraintRecord::in_force)
            .collect()
    }

    /// Returns what is taken from a subject on every machine.
    pub(super) fn restraints_of_subject(&self, subject: SubjectId) -> Vec<Restraint> {
        let held = self.registry.restraints_of(Restrained::Subject(subject));
        held.iter().filter_map(RestraintRecord::in_force).collect()
    }

    /// Lists the restraints that take something from somebody now, the oldest first. A challenge that every open login session
    /// has met is not among them.
    pub fn list_restraints(&self) -> Vec<RestraintView> {
        let view = |record: &RestraintRecord| {
            let machines = self.devices_restrained(record.whom).into_iter().filter(|id| self.binds(record, *id));
            RestraintView {
                name: self.restrained_name(record.whom),
                machines: machines.map(|id| self.registry.machine_name(id)).collect(),
                record: record.clone(),
            }
        };
        let mut views: Vec<RestraintView> = self.registry.restraints().map(view).collect();
        views.retain(|view| !view.machines.is_empty());
        views.sort_by_key(|view| view.record.since);
        views
    }

    /// Names, once each, from whom something is taken now.
    pub(super) fn restrained_names(&self) -> Vec<String> {
        let names: BTreeSet<String> = self.list_restraints().into_iter().map(|view| view.name).collect();
        names.into_iter().collect()
    }

    /// Tells whether a restraint takes something from whoever is signed in on a device.
    fn binds(&self, record: &RestraintRecord, device: DeviceId) -> bool {
        let session = self.registry.session_on(device);
        match (&record.takes, session) {
            (Takes::Nothing, _) => false,
            (Takes::AllBut { .. }, _) => true,
            (Takes::Proof { .. }, Some(session)) => session.assurance.auth_time.is_none_or(|at| at <= record.since),
            (Takes::Proof { .. }, None) => self.registry.is_of_service(device),
        }
    }

    /// Tells since when a login session has to be proven anew, if it has to be.
    pub(super) fn challenged_since(&self, device: DeviceId) -> Option<WallTime> {
        let record = self.registry.device(device)?;
        let both = [Restrained::Subject(record.owner), Restrained::Device(device)];
        let held = both.into_iter().flat_map(|whom| self.registry.restraints_of(whom));
        let challenges = held.filter(|held| matches!(held.takes, Takes::Proof { .. }) && self.binds(held, device));
        challenges.map(|held| held.since).max()
    }
}
