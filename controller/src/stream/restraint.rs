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
//! - Only the devices concerned are decided anew: a device's own, and those of its person that share what it is restrained by.
//! - What a challenge asks, an administrator cannot be asked for by it: break-glass passes restraints as it passes rules, loudly.
//! - What follows from a limit begins the count of that limit alone: a cheap challenge is no way to be forgotten by a harsher limit.
//!   What an administrator does begins the counts of everything that it takes, and a release all of them.
//! - A machine of a person does not get rid of it by leaving: removed, what it was asked to prove is asked of the person; while it is
//!   kept to a few resources it stays on record, and its person's; what joins after it shares what it is restrained by, also if that is
//!   asked again.
//!
//! Bounds: [`MAX_OF_ONE`] of one subject or device; then challenges become one of everything, and restrictions one to what all of them
//! leave. A restriction never becomes a challenge, which the person could meet.

use std::collections::BTreeSet;

use postern_common::{
    id::{DeviceId, ResourceName, SubjectId},
    limit::Consequence,
    policy::{Reach, Restraint},
    time::{Now, WallTime},
};

use super::{
    api::{CoreError, RestraintView},
    core::Core,
};
use crate::{
    decision::Extend,
    records::{
        AuditEvent, Begun, DeviceKind, DeviceRecord, Restrained, RestraintRecord, SessionRecord, SubjectRecord, Takes,
    },
};

/// The most restraints of one subject, and of one device.
pub(super) const MAX_OF_ONE: usize = 64;

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

/// What nodes count anew with a restraint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Begins {
    /// Everything that it takes.
    Everything,
    /// The limit that was passed. Its number is still to be drawn.
    Limit(Begun),
    /// Nothing: nobody has used less because of it.
    Nothing,
}

impl SignalResponse {
    const fn said(&self) -> Consequence {
        match self {
            Self::Challenge(_) => Consequence::Challenge,
            Self::Restrict(_) => Consequence::Restrict,
            Self::Terminate => Consequence::Terminate,
        }
    }

    pub(super) fn takes(&self) -> Takes {
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
        let text = format!("{}: {} ({by}): {reason}", self.restrained_name(whom), response.said());
        self.alert_restrained(whom, text, now);
        self.respond_without_telling(whom, response, Begins::Everything, reason, by, now);
        self.flush(now);
        Ok(())
    }

    /// As [`Core::respond`], of whoever is known, within a turn that tells the nodes at its end.
    pub(super) fn respond_without_telling(
        &mut self,
        whom: Restrained,
        response: SignalResponse,
        begins: Begins,
        reason: &str,
        by: &str,
        now: Now,
    ) {
        self.restrain(whom, response.takes(), reason, by, self.clock.latest(now), begins, now);
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
        self.decide_sharing(whom, now);
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
        // Whoever changes their own password has not used less by that.
        let takes = Takes::Proof { reach: Reach::Everything };
        self.restrain(whom, takes, reason, by, until.min(now.wall), Begins::Nothing, now);
        for device in self.devices_restrained(whom) {
            self.decide(device, Extend::No, now);
        }
    }

    /// Lets the count of one more limit begin anew with a response that is in force, once: the sign-in that ends it answers for all that
    /// was passed before it.
    pub(super) fn begin_too(&mut self, whom: Restrained, response: &SignalResponse, begun: Begun, now: Now) {
        let (takes, budget) = (response.takes(), self.next_budget(whom, now));
        let Some(record) = self.registry.restraints_of(whom).iter().find(|record| record.takes == takes) else {
            return;
        };
        let since = u64::try_from(record.since.as_millis()).unwrap_or(0);
        if record.begun.iter().any(|known| known.budget >= since && Begun { budget: 0, ..known.clone() } == begun) {
            return;
        }
        let mut record = record.clone();
        record.begin(Begun { budget, ..begun });
        self.registry.put_restraint(record, &mut self.out);
        for device in self.devices_restrained(whom) {
            self.decide(device, Extend::No, now);
        }
        self.decide_sharing(whom, now);
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

    #[expect(clippy::too_many_arguments, reason = "a record's parts, and when")]
    fn restrain(
        &mut self,
        whom: Restrained,
        takes: Takes,
        reason: &str,
        by: &str,
        since: WallTime,
        begins: Begins,
        now: Now,
    ) {
        let held = self.registry.restraints_of(whom);
        let is_known = held.iter().any(|record| record.takes == takes);
        if held.len() >= MAX_OF_ONE && !is_known {
            self.condense(whom);
        }
        // What happened earlier and is told later asks for no less than what is known already.
        let known = self.registry.restraints_of(whom).iter().find(|record| record.takes == takes);
        let first = known.map_or(since, |known| known.first().min(since));
        let since = known.map_or(since, |known| known.since.max(since));
        let (budget, begun) = known.map(|known| (known.budget, known.begun.clone())).unwrap_or_default();
        let (reason, by) = (reason.to_owned(), by.to_owned());
        let mut record = RestraintRecord { whom, takes, reason, by, since, first: Some(first), budget, begun };
        let next = self.next_budget(whom, now);
        match begins {
            Begins::Everything => {
                (record.budget, record.begun) = (next, vec![]);
                if let Restrained::Subject(subject) = whom {
                    self.usages.begin_anew(subject, &record.takes);
                }
            }
            Begins::Limit(begun) => record.begin(Begun { budget: next, ..begun }),
            Begins::Nothing => {}
        }
        self.out.audit(AuditEvent::Restrained { name: self.restrained_name(whom), record: record.clone() });
        self.registry.put_restraint(record, &mut self.out);
    }

    /// Asks nobody for proof from a time that is still to come: what was asked while a clock was ahead that is right now. A sign-in of that
    /// time does not tell when it was.
    pub(super) fn lower_what_is_to_come(&mut self, now: Now) {
        let is_ahead = |record: &&RestraintRecord| record.since > now.wall || record.first() > now.wall;
        let ahead: Vec<RestraintRecord> = self.registry.restraints().filter(is_ahead).cloned().collect();
        let of_accounts = |subject: &&SubjectRecord| subject.proven_after.is_some_and(|after| after > now.wall);
        let accounts: Vec<SubjectRecord> = self.registry.subjects().filter(of_accounts).cloned().collect();
        if ahead.is_empty() && accounts.is_empty() {
            return;
        }
        for mut record in ahead {
            record.first = Some(record.first().min(now.wall));
            record.since = record.since.min(now.wall);
            self.registry.put_restraint(record, &mut self.out);
        }
        for account in accounts {
            self.registry.put_subject(SubjectRecord { proven_after: Some(now.wall), ..account }, &mut self.out);
        }
        let is_later = |session: &&SessionRecord| session.assurance.auth_time.is_some_and(|at| at > now.wall);
        let later: Vec<SessionRecord> = self.registry.sessions().filter(is_later).cloned().collect();
        for mut session in later {
            session.assurance.auth_time = None;
            self.registry.put_session(session, &mut self.out);
        }
    }

    /// Returns a budget that is greater than every one before, whatever the clock does.
    fn next_budget(&self, whom: Restrained, now: Now) -> u64 {
        let held = self.registry.restraints_of(whom).iter().map(RestraintRecord::last_budget).max().unwrap_or(0);
        u64::try_from(self.clock.latest(now).as_millis()).unwrap_or(0).max(held.saturating_add(1))
    }

    /// Makes room among the restraints of one: challenges of single accesses become one of everything, and sets of resources what is in
    /// all of them. It takes more than before, never less.
    fn condense(&mut self, whom: Restrained) {
        let held = self.registry.restraints_of(whom).to_vec();
        self.registry.forget_restraints(whom, &mut self.out);
        let mut one_of_each: Vec<RestraintRecord> = Vec::new();
        for mut record in held {
            let same = one_of_each.iter_mut().find(|known| match (&known.takes, &record.takes) {
                (Takes::Proof { .. }, Takes::Proof { .. }) | (Takes::AllBut { .. }, Takes::AllBut { .. }) => true,
                (Takes::Proof { .. } | Takes::AllBut { .. } | Takes::Nothing, _) => false,
            });
            let Some(known) = same else {
                if let Takes::Proof { reach } = &mut record.takes {
                    *reach = Reach::Everything;
                }
                one_of_each.push(record);
                continue;
            };
            if let (Takes::AllBut { resources }, Takes::AllBut { resources: other }) = (&mut known.takes, &record.takes)
            {
                resources.retain(|resource| other.contains(resource));
            }
            known.first = Some(known.first().min(record.first()));
            if record.since >= known.since {
                (known.since, known.reason, known.by) = (record.since, record.reason, record.by);
            }
            known.budget = known.budget.max(record.budget);
            record.begun.into_iter().for_each(|begun| known.begin(begun));
        }
        one_of_each.into_iter().for_each(|record| self.registry.put_restraint(record, &mut self.out));
    }

    /// Begins the budgets of a subject or device anew and takes nothing: it was released, or is in quarantine until it is.
    pub(super) fn begin_budgets_anew(&mut self, whom: Restrained, reason: &str, by: &str, now: Now) {
        let (takes, budget) = (Takes::Nothing, self.next_budget(whom, now));
        let (reason, by) = (reason.to_owned(), by.to_owned());
        let record = RestraintRecord { whom, takes, reason, by, since: now.wall, first: None, budget, begun: vec![] };
        self.registry.put_restraint(record, &mut self.out);
    }

    /// Releases a subject or device from every restraint: what policy gives opens again.
    ///
    /// # Errors
    /// [`CoreError::NotHeld`] if there is none.
    pub fn release_restraints(&mut self, whom: Restrained, by: &str, now: Now) -> Result<(), CoreError> {
        let name = self.restrained_name(whom);
        let in_force = self.registry.restraints_of(whom).iter().any(|record| record.takes != Takes::Nothing);
        if !in_force {
            return Err(CoreError::NotHeld { name, held: "restrained" });
        }
        // What is left is the number of the next budget: a node that shut something opens it by that.
        let budget = self.next_budget(whom, now);
        self.registry.forget_restraints(whom, &mut self.out);
        let (takes, reason, by_whom) = (Takes::Nothing, "released".to_owned(), by.to_owned());
        let released =
            RestraintRecord { whom, takes, reason, by: by_whom, since: now.wall, first: None, budget, begun: vec![] };
        self.registry.put_restraint(released, &mut self.out);
        if let Restrained::Subject(subject) = whom {
            self.usages.begin_anew(subject, &Takes::Nothing);
        }
        self.alert_restrained(whom, format!("{name}: released ({by})"), now);
        self.out.audit(AuditEvent::RestraintsReleased { whom, name, by: by.to_owned() });
        for device in self.devices_restrained(whom) {
            self.decide(device, Extend::No, now);
            self.forget_if_held_no_more(device, now);
        }
        if let Restrained::Device(device) = whom {
            self.decide_siblings(device, now);
        }
        self.flush(now);
        Ok(())
    }

    /// Tells whether a machine has to stay on record, because removing it would forget what is held against it.
    pub(super) fn is_held(&self, device: &DeviceRecord) -> bool {
        self.registry.quarantine_on(device).is_some() || self.is_restricted(device.id)
    }

    /// Forgets a stock client that nobody is signed in on and that was on record because it was held, if nothing holds it any more.
    pub(super) fn forget_if_held_no_more(&mut self, id: DeviceId, now: Now) {
        let over = |device: &DeviceRecord| {
            device.kind == DeviceKind::StockClient
                && self.registry.session_on(device.id).is_none()
                && !self.is_held(device)
        };
        if self.registry.device(id).is_some_and(over) {
            self.forget_device(id, now);
        }
    }

    /// Decides anew for the machines that share what another one of the same person is restrained by.
    fn decide_sharing(&mut self, whom: Restrained, now: Now) {
        let Restrained::Device(id) = whom else { return };
        let Some(owner) = self.registry.device(id).map(|device| device.owner) else { return };
        let first = self.registry.restraints_of(whom).iter().map(RestraintRecord::first).min();
        let shares = |device: &&DeviceRecord| device.id != id && first.is_some_and(|first| first <= device.created);
        let sharing: Vec<DeviceId> = self.registry.devices_of(owner).filter(shares).map(|device| device.id).collect();
        for device in sharing {
            self.decide(device, Extend::No, now);
        }
    }

    /// Decides anew for the other machines of a device's owner: those that joined later share what it is restrained by.
    fn decide_siblings(&mut self, device: DeviceId, now: Now) {
        let Some(owner) = self.registry.device(device).map(|device| device.owner) else { return };
        for other in self.devices_restrained(Restrained::Subject(owner)).into_iter().filter(|other| *other != device) {
            self.decide(other, Extend::No, now);
        }
    }

    fn devices_restrained(&self, whom: Restrained) -> Vec<DeviceId> {
        match whom {
            Restrained::Device(id) => vec![id],
            Restrained::Subject(id) => self.registry.devices_of(id).map(|device| device.id).collect(),
        }
    }

    fn restrained_name(&self, whom: Restrained) -> String {
        match whom {
            Restrained::Subject(id) => self.registry.subject_name(id),
            Restrained::Device(id) => self.registry.machine_name(id).to_string(),
        }
    }

    /// Lists what concerns a device: what is its subject's, its own, and what another machine of the same person had before this one
    /// joined. A new device key is no way out of what was asked on the old one.
    fn records_on<'a>(&'a self, device: &'a DeviceRecord) -> impl Iterator<Item = &'a RestraintRecord> {
        let both = [Restrained::Subject(device.owner), Restrained::Device(device.id)];
        let own = both.into_iter().flat_map(|whom| self.registry.restraints_of(whom));
        // A service has thousands of machines, and none of them shares what is another's.
        let siblings = (!self.registry.is_of_service(device.id)).then(|| self.registry.devices_of(device.owner));
        let others = siblings.into_iter().flatten().filter(|other| other.id != device.id);
        let of_others = others.flat_map(|other| self.registry.restraints_of(Restrained::Device(other.id)));
        own.chain(of_others.filter(|record| record.first() <= device.created))
    }

    /// Returns what is taken from whoever is signed in on a device.
    pub(super) fn restraints_on(&self, device: &DeviceRecord) -> Vec<Restraint> {
        self.records_on(device).filter_map(|record| self.in_force(record)).collect()
    }

    fn in_force(&self, record: &RestraintRecord) -> Option<Restraint> {
        record.in_force(|| self.restrained_name(record.whom))
    }

    /// Lists what is taken from whoever is signed in on a device, with the reason, for people.
    pub(super) fn restraints_binding(&self, device: &DeviceRecord) -> Vec<String> {
        let binding = self.records_on(device).filter(|record| self.binds(record, device.id));
        binding.filter_map(|record| Some(format!("{}: {}", record.takes.words()?, record.reason))).collect()
    }

    /// Tells whether a machine is kept to a few resources by a restraint of its own, which removing it would forget.
    pub(super) fn is_restricted(&self, device: DeviceId) -> bool {
        let held = self.registry.restraints_of(Restrained::Device(device));
        held.iter().any(|record| matches!(record.takes, Takes::AllBut { .. }))
    }

    /// Hands what a person's machine was asked to prove to the person, whose other machines are decided anew: the machine is about to be
    /// removed, and may join again as another.
    pub(super) fn keep_challenges_of(&mut self, id: DeviceId, now: Now) {
        let Some(device) = self.registry.device(id).filter(|_| !self.registry.is_of_service(id)).cloned() else {
            return;
        };
        let of_device = self.registry.restraints_of(Restrained::Device(device.id)).to_vec();
        let challenges = of_device.into_iter().filter(|record| matches!(record.takes, Takes::Proof { .. }));
        let challenges: Vec<RestraintRecord> = challenges.collect();
        if challenges.is_empty() {
            return;
        }
        for RestraintRecord { takes, reason, by, since, .. } in challenges {
            self.restrain(Restrained::Subject(device.owner), takes, &reason, &by, since, Begins::Nothing, now);
        }
        self.decide_siblings(id, now);
    }

    /// Counts what a machine is restrained by from now on for those who share it: it is about to be somebody else's, whose machines from
    /// before have nothing to do with it.
    pub(super) fn share_with_nobody_before(&mut self, id: DeviceId, now: Now) {
        for record in self.registry.restraints_of(Restrained::Device(id)).to_vec() {
            self.registry.put_restraint(RestraintRecord { first: Some(now.wall), ..record }, &mut self.out);
        }
    }

    /// Returns what is taken from a subject on every machine.
    pub(super) fn restraints_of_subject(&self, subject: SubjectId) -> Vec<Restraint> {
        let held = self.registry.restraints_of(Restrained::Subject(subject));
        held.iter().filter_map(|record| self.in_force(record)).collect()
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
        let challenges = self
            .records_on(record)
            .filter(|held| matches!(held.takes, Takes::Proof { .. }) && self.binds(held, device));
        challenges.map(|held| held.since).max()
    }
}
