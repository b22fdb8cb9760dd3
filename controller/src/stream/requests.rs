//! Access for a time, on request.
//!
//! ```text
//! node: RequestAccess --policy: may ask?--> durable record, waits --> page or command: approve, refuse
//!   --> the record is part of the context of every decision --> entitlement with `valid_until` --> grant with a deadline
//! ```
//!
//! Invariants:
//! - An approval gives nothing by itself: the rule must still be there, still name the subject, and its other conditions must
//!   hold. It is of one subject on one device for one resource, and never longer than the rule says today.
//! - It ends by itself: the end is in the entitlement, so it is in the lease and in the grant, and the nodes close at it without
//!   the controller.
//! - It can be withdrawn by itself, by an approver or an administrator: everything else of the subject stays open.
//! - Nobody decides about their own request, and who is disabled or in quarantine decides nothing.
//!
//! Threats: a person asks in the name of their own second account (the accounts are two subjects: choose approvers who cannot
//! have one); a compromised machine asks all the time (limits for each node and subject, and an approver reads the reason); an
//! approver's browser session is stolen (it ends like any other, every decision is audited with its name and address).
//!
//! Bounds: [`MAX_WAITING_OF_SUBJECT`] wait for one subject, [`MAX_REQUESTS`] are on record; what nobody decides is forgotten after
//! [`WAITS`], what is over after [`KEPT_AFTER_END`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use postern_common::{
    id::{DeviceId, RequestId, ResourceName, SubjectId},
    policy::{Reach, RequestContext, Restraint},
    protocol::{AccessRequest, AccessRequestState, MAX_OWN_REQUESTS, ToNode},
    time::{Now, WallTime},
};

use super::{
    api::{CoreError, RequestView},
    core::Core,
};
use crate::{
    decision::{Extend, Whence, hypothetical},
    identity::oidc::is_misleading,
    records::{AuditEvent, Person, Quarantined, RequestRecord, StoreChange},
};

const MAX_WAITING_OF_SUBJECT: usize = 8;
const MAX_REQUESTS: usize = 10_000;
const WAITS: Duration = Duration::from_secs(24 * 3_600);
const KEPT_AFTER_END: Duration = Duration::from_secs(24 * 3_600);
const LEAST: Duration = Duration::from_secs(60);
const MAX_REASON: usize = 500;

/// What somebody decides about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It is given.
    Approve,
    /// It is not.
    Refuse,
    /// It was given, and ends now.
    Withdraw,
}

/// Who decides.
#[derive(Debug, Clone, Copy)]
pub enum Decider<'a> {
    /// An administrator on the controller's host, by the operating system's name.
    Administrator(&'a str),
    /// Somebody who signed in on the pages, and has to be an approver.
    Person(&'a Person),
}

/// Checks a text that people will read.
pub(super) fn checked_reason(reason: &str) -> Result<String, CoreError> {
    let reason = reason.trim();
    if reason.is_empty() || reason.chars().count() > MAX_REASON || reason.chars().any(is_misleading) {
        let message = format!("a reason is one line of 1 to {MAX_REASON} characters, all of them to be seen");
        return Err(CoreError::NotPermitted(message));
    }
    Ok(reason.to_owned())
}

impl Core {
    /// Takes a request of the subject of a device. It waits until an approver decides.
    ///
    /// # Errors
    /// [`CoreError::NotPermitted`] says why it cannot be asked.
    pub(super) fn request_access(
        &mut self,
        device: DeviceId,
        resource: &str,
        length: Duration,
        reason: &str,
        now: Now,
    ) -> Result<AccessRequest, CoreError> {
        let refused = |message: String| Err(CoreError::NotPermitted(message));
        let Some(record) = self.registry.device(device).cloned() else { return refused("nobody asks".into()) };
        if !self.registry.may_take_part(&record) {
            return refused("this machine may not take part now: postern status".into());
        }
        let bare = resource.strip_suffix(&format!(".{}", self.config.domain)).unwrap_or(resource);
        let nothing = || format!("nothing named `{bare}` can be asked for: postern explain {bare}");
        let Ok(resource) = bare.parse::<ResourceName>() else { return refused(nothing()) };
        let Some(context) = self.context_of(&record, now) else { return refused(nothing()) };
        let Some(may) = self.policy.requestable(&context, &resource) else { return refused(nothing()) };
        if length < LEAST || length > may.longest {
            let longest = postern_common::diagnostics::HumanDuration::rounded(may.longest);
            return refused(format!("rule \"{}\" gives it for 1m to {longest}", may.rule));
        }
        let reason = checked_reason(reason)?;
        let waits = |known: &&RequestRecord| matches!(known.state, AccessRequestState::Waiting { .. });
        let waiting: Vec<&RequestRecord> = self.registry.requests_of(record.owner).filter(waits).collect();
        if waiting.iter().any(|known| known.device == device && known.resource == resource) {
            return refused(format!("a request for {resource} waits already: postern request"));
        }
        if waiting.len() >= MAX_WAITING_OF_SUBJECT || self.registry.requests().count() >= MAX_REQUESTS {
            return refused("too many requests wait: let somebody decide about those first".into());
        }
        let request = RequestRecord {
            id: RequestId::from_bytes(self.draw()),
            subject: record.owner,
            device,
            rule: may.rule,
            resource,
            length_ms: u64::try_from(length.as_millis()).unwrap_or(u64::MAX),
            reason,
            asked: now.wall,
            approvers: may.approvers,
            state: AccessRequestState::Waiting { until: now.wall.saturating_add(WAITS) },
        };
        self.out.audit(AuditEvent::AccessRequested {
            request: request.id,
            subject: request.subject,
            subject_name: self.registry.subject_name(request.subject),
            device,
            machine: record.name,
            resource: request.resource.clone(),
            rule: request.rule.clone(),
            length_s: length.as_secs(),
            reason: request.reason.clone(),
        });
        let told = told(&request);
        self.registry.put_request(request, &mut self.out);
        self.tell_requests(device);
        Ok(told)
    }

    /// Decides about a request. An approval opens what its rule gives, until its end; withdrawn, that is closed and cut at once.
    ///
    /// # Errors
    /// [`CoreError::NotFound`]; [`CoreError::NotPermitted`] if it is one's own, was decided already (or not, to be withdrawn), or
    /// somebody else has to decide; [`CoreError::Expired`].
    pub fn decide_request(
        &mut self,
        id: RequestId,
        decision: Decision,
        by: Decider<'_>,
        reason: &str,
        now: Now,
    ) -> Result<RequestView, CoreError> {
        let missing = || CoreError::NotFound { what: "request", name: id.to_string() };
        let mut record = self.registry.request(id).cloned().ok_or_else(missing)?;
        if let Decider::Person(who) = by
            && !self.is_approver(who, &record, now)
        {
            // In the words for one that does not exist: whose requests there are is not everybody's to know.
            return Err(missing());
        }
        if let Decider::Person(who) = by {
            let overtaken = self.overtaken(who, now).map(|why| format!("{}: sign in again", why.told()));
            if let Some(why) = overtaken.or_else(|| self.is_cut_off(who, now)) {
                return Err(CoreError::NotPermitted(why));
            }
        }
        let until = match (&record.state, decision) {
            (AccessRequestState::Waiting { until }, Decision::Approve | Decision::Refuse)
            | (AccessRequestState::Approved { until, .. }, Decision::Withdraw) => *until,
            (AccessRequestState::Waiting { .. } | AccessRequestState::Refused { .. }, Decision::Withdraw) => {
                return Err(CoreError::NotPermitted("it was not given: there is nothing to withdraw".into()));
            }
            (AccessRequestState::Approved { .. } | AccessRequestState::Refused { .. }, _) => {
                return Err(CoreError::NotPermitted("somebody has decided about it already".into()));
            }
        };
        if until <= self.clock.latest(now) {
            return Err(CoreError::Expired);
        }
        let reason = checked_reason(reason)?;
        let name = match by {
            Decider::Administrator(name) => format!("{name} (administrator)"),
            Decider::Person(who) => who.name.clone(),
        };
        let (by, at) = (name, now.wall);
        record.state = match decision {
            Decision::Approve => {
                let until = self.end_after(record.length(), now)?;
                AccessRequestState::Approved { by: by.clone(), reason: reason.clone(), at, until }
            }
            Decision::Refuse => AccessRequestState::Refused { by: by.clone(), reason: reason.clone(), at },
            Decision::Withdraw => {
                AccessRequestState::Refused { by: by.clone(), reason: format!("withdrawn: {reason}"), at }
            }
        };
        let until = match record.state {
            AccessRequestState::Approved { until, .. } => Some(until),
            AccessRequestState::Waiting { .. } | AccessRequestState::Refused { .. } => None,
        };
        self.out.audit(AuditEvent::AccessDecided {
            request: id,
            subject: record.subject,
            subject_name: self.registry.subject_name(record.subject),
            device: record.device,
            resource: record.resource.clone(),
            rule: record.rule.clone(),
            until,
            by,
            reason,
        });
        let device = record.device;
        self.registry.put_request(record.clone(), &mut self.out);
        self.tell_requests(device);
        match decision {
            Decision::Approve | Decision::Withdraw => self.decide(device, Extend::No, now),
            Decision::Refuse => {}
        }
        self.flush(now);
        Ok(self.request_view(&record))
    }

    /// Tells whether a person may decide about a request: an approver of its rule who is not who asks.
    fn is_approver(&self, who: &Person, request: &RequestRecord, now: Now) -> bool {
        let owner = self.record_of(who, now);
        let held = self.registry.quarantine(&Quarantined::Subject(owner.id)).is_some();
        if owner.id == request.subject
            || self.registry.barred(&owner).is_some()
            || held
            || self.may_not_decide(owner.id, who)
            || self.turned_away(who).is_some()
        {
            return false;
        }
        self.policy.may_approve(&request.rule, &self.approver(who, now))
    }

    /// Tells whether a restraint keeps a person from deciding for others: a restriction, or a challenge of everything that this sign-in
    /// does not meet.
    fn may_not_decide(&self, subject: SubjectId, who: &Person) -> bool {
        self.restraints_of_subject(subject).into_iter().any(|restraint| match restraint {
            Restraint::Only { .. } => true,
            Restraint::Challenge { reach: Reach::Everything, since, .. } => who.auth_time.is_none_or(|at| at <= since),
            Restraint::Challenge { reach: Reach::Access { .. } | Reach::AccessOn { .. }, .. } => false,
        })
    }

    fn approver(&self, who: &Person, now: Now) -> RequestContext {
        let (owner, assurance) = (self.record_of(who, now), self.present_assurance(who));
        hypothetical(&self.config.url, &owner, Some(&assurance), None, Whence::default(), self.clock.times(now))
    }

    /// Takes back what a subject was given beside the rules: what was approved and asked for, and openings past the rules.
    pub(super) fn take_back_given(&mut self, subject: SubjectId, by: &str) {
        let of_break_glass = self.registry.break_glass().filter(|record| record.subject == subject);
        for opening in of_break_glass.map(|record| record.id).collect::<Vec<_>>() {
            self.registry.forget_break_glass(opening);
            self.out.store(StoreChange::DeleteBreakGlass(opening));
            self.out.audit(AuditEvent::BreakGlassClosed { id: opening, by: by.to_owned() });
        }
        let requests: Vec<(RequestId, DeviceId)> =
            self.registry.requests_of(subject).map(|request| (request.id, request.device)).collect();
        for (request, device) in requests {
            self.registry.forget_request(request);
            self.out.store(StoreChange::DeleteRequest(request));
            self.tell_requests(device);
        }
    }

    /// Lists the requests about which a person may decide, and those given that they may withdraw, the oldest first.
    pub fn requests_for(&self, who: &Person, now: Now) -> Vec<RequestView> {
        let stands = |request: &&RequestRecord| {
            let until = match request.state {
                AccessRequestState::Waiting { until } | AccessRequestState::Approved { until, .. } => until,
                AccessRequestState::Refused { .. } => return false,
            };
            until > self.clock.latest(now) && self.is_approver(who, request, now)
        };
        let mut views: Vec<RequestView> =
            self.registry.requests().filter(stands).map(|request| self.request_view(request)).collect();
        views.sort_by_key(|view| view.record.asked);
        views
    }

    /// Lists requests, the newest first.
    pub fn list_requests(&self) -> Vec<RequestView> {
        let mut views: Vec<RequestView> = self.registry.requests().map(|request| self.request_view(request)).collect();
        views.sort_by_key(|view| std::cmp::Reverse(view.record.asked));
        views
    }

    fn request_view(&self, request: &RequestRecord) -> RequestView {
        RequestView {
            record: request.clone(),
            subject_name: self.registry.subject_name(request.subject),
            machine: self.registry.machine_name(request.device),
        }
    }

    /// Tells a node what its subject has asked for there.
    pub(super) fn tell_requests(&mut self, device: DeviceId) {
        let Some(stream) = self.nodes.get(&device).map(|node| node.stream) else { return };
        let Some(owner) = self.registry.device(device).map(|device| device.owner) else { return };
        let mut own: Vec<&RequestRecord> =
            self.registry.requests_of(owner).filter(|known| known.device == device).collect();
        own.sort_by_key(|known| std::cmp::Reverse(known.asked));
        let requests = own.into_iter().take(MAX_OWN_REQUESTS).map(told).collect();
        self.out.send(stream, ToNode::Requests { requests });
    }

    /// Forgets requests that nobody decided and those that are over.
    pub(super) fn sweep_requests(&mut self, now: WallTime) {
        let over = |request: &&RequestRecord| {
            let kept = match request.state {
                AccessRequestState::Waiting { .. } => Duration::ZERO,
                AccessRequestState::Approved { .. } | AccessRequestState::Refused { .. } => KEPT_AFTER_END,
            };
            request.over().saturating_add(kept) <= now
        };
        let over: Vec<(RequestId, DeviceId)> =
            self.registry.requests().filter(over).map(|r| (r.id, r.device)).collect();
        for (id, device) in over {
            self.registry.forget_request(id);
            self.out.store(StoreChange::DeleteRequest(id));
            self.tell_requests(device);
        }
    }
}

fn told(request: &RequestRecord) -> AccessRequest {
    AccessRequest {
        id: request.id,
        resource: request.resource.clone(),
        length_ms: request.length_ms,
        reason: request.reason.clone(),
        asked: request.asked,
        approvers: request.approvers.clone(),
        state: request.state.clone(),
    }
}
