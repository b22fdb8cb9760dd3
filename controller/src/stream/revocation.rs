//! Revocations: cutting everywhere at once, and knowing when it is done.
//!
//! ```text
//! revoke --> records change, leases end --> edges narrow --> each node concerned is noted with its last deadline
//!        --> documents carry the revocation's number --acknowledged--> done when no node is left
//! ```
//!
//! A node that is away cannot be told, but what it enforces carries its own deadlines: it counts as closed when the last
//! of them has passed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use postern_common::{
    id::DeviceId,
    time::{Monotonic, Now, WallTime},
};

use super::{
    api::{CoreError, RevocationId, RevocationNode, RevocationProgress, RevocationView},
    core::Core,
    timers::Due,
};
use crate::{
    decision::Extend,
    records::{AuditEvent, LeaseEnd, Quarantined, RevokeTarget, RevokedRule, Standing},
};

/// The most revocations of which the progress is remembered; the oldest is forgotten first.
const MAX_REMEMBERED: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Part {
    progress: RevocationProgress,
    last_deadline: Monotonic,
    closes_by: WallTime,
}

#[derive(Debug)]
struct Revocation {
    id: RevocationId,
    target: RevokeTarget,
    started: Monotonic,
    last: Monotonic,
    parts: BTreeMap<DeviceId, Part>,
    reported: bool,
}

impl Revocation {
    fn is_done(&self) -> bool {
        self.parts.values().all(|part| match part.progress {
            RevocationProgress::Told | RevocationProgress::Away { .. } => false,
            RevocationProgress::Acknowledged { .. } | RevocationProgress::Expired => true,
        })
    }

    fn flows_cut(&self) -> u64 {
        let cut = |part: &Part| match part.progress {
            RevocationProgress::Acknowledged { cut, .. } => cut,
            RevocationProgress::Told | RevocationProgress::Away { .. } | RevocationProgress::Expired => 0,
        };
        self.parts.values().map(cut).fold(0, u64::saturating_add)
    }

    fn count(&self, wanted: impl Fn(RevocationProgress) -> bool) -> usize {
        self.parts.values().filter(|part| wanted(part.progress)).count()
    }
}

fn is_acknowledged(progress: RevocationProgress) -> bool {
    matches!(progress, RevocationProgress::Acknowledged { .. })
}

/// The revocations that are remembered, and what closes while one is being made.
#[derive(Debug, Default)]
pub(crate) struct Revocations {
    remembered: VecDeque<Revocation>,
    last_id: u64,
    noting: Option<BTreeMap<DeviceId, (Monotonic, WallTime)>>,
    /// Nodes at which something closed without a revocation, since the last flush.
    unnamed: BTreeSet<DeviceId>,
}

impl Revocations {
    /// Notes that something closes at a node, which would have lasted until then.
    pub(super) fn closes(&mut self, node: DeviceId, monotonic: Monotonic, wall: WallTime) {
        if let Some(noting) = &mut self.noting {
            let last = noting.entry(node).or_insert((monotonic, wall));
            *last = (last.0.max(monotonic), last.1.max(wall));
        } else {
            self.unnamed.insert(node);
        }
    }

    pub(super) fn take_unnamed(&mut self) -> BTreeSet<DeviceId> {
        std::mem::take(&mut self.unnamed)
    }

    pub(super) fn next_id(&mut self) -> RevocationId {
        self.last_id += 1;
        RevocationId(self.last_id)
    }
}

impl Core {
    /// Cuts something everywhere. Its progress is [`Core::revocation`].
    ///
    /// # Errors
    /// [`CoreError::NotFound`] if there is no such thing.
    pub fn revoke(
        &mut self,
        target: RevokeTarget,
        reason: &str,
        by: &str,
        now: Now,
    ) -> Result<RevocationId, CoreError> {
        match target {
            // A node that is cut and stays connected is one in quarantine.
            RevokeTarget::Node(node) => return self.quarantine(Quarantined::Device(node), reason, by, now),
            RevokeTarget::Quarantine(held) => return self.quarantine(held, reason, by, now),
            RevokeTarget::Session(_) | RevokeTarget::Device(_) | RevokeTarget::Subject(_) | RevokeTarget::Rule(_) => {}
        }
        self.check_target(&target)?;
        let id = self.while_noting(target.clone(), reason, by, now, |core| core.cut(&target, reason, by, now));
        self.flush(now);
        Ok(id)
    }

    /// Runs `cut` and makes a revocation of every node at which it closes something.
    pub(super) fn while_noting(
        &mut self,
        target: RevokeTarget,
        reason: &str,
        by: &str,
        now: Now,
        cut: impl FnOnce(&mut Self),
    ) -> RevocationId {
        self.revocations.noting = Some(BTreeMap::new());
        cut(self);
        let noted = self.revocations.noting.take().unwrap_or_default();
        let id = self.revocations.next_id();
        let mut parts = BTreeMap::new();
        let mut latest = now.monotonic;
        let mut told = BTreeSet::new();
        for (node, (last_deadline, closes_by)) in noted {
            let agent = self.registry.device(node).is_some_and(|device| device.key.is_some());
            if !agent {
                continue; // a stock client enforces nothing
            }
            let progress = match self.nodes.get_mut(&node) {
                Some(connected) => {
                    connected.revocations.push(id);
                    connected.urgent = true;
                    told.insert(node);
                    RevocationProgress::Told
                }
                None => RevocationProgress::Away { closes_by },
            };
            latest = latest.max(last_deadline);
            parts.insert(node, Part { progress, last_deadline, closes_by });
        }
        self.speed.begin(id, told, now);
        let event = AuditEvent::Revoked {
            revocation: id.0,
            target: target.clone(),
            by: by.to_owned(),
            reason: reason.to_owned(),
            nodes: parts.len(),
        };
        self.out.audit(event);
        if self.revocations.remembered.len() == MAX_REMEMBERED {
            self.revocations.remembered.pop_front();
        }
        let (started, last) = (now.monotonic, now.monotonic);
        self.revocations.remembered.push_back(Revocation { id, target, started, last, parts, reported: false });
        self.timers.set(Due::Revocation(id), latest);
        self.report_if_done(id);
        id
    }

    fn check_target(&self, target: &RevokeTarget) -> Result<(), CoreError> {
        let (found, what, name) = match target {
            RevokeTarget::Session(id) => (self.registry.session(*id).is_some(), "open login session", id.to_string()),
            RevokeTarget::Device(id) | RevokeTarget::Node(id) => {
                (self.registry.device(*id).is_some(), "device", id.to_string())
            }
            RevokeTarget::Subject(id) => (self.registry.subject(*id).is_some(), "subject", id.to_string()),
            // Any name can be revoked: the rule may be one of a policy that somebody is about to apply.
            RevokeTarget::Rule(_) => (true, "rule", String::new()),
            RevokeTarget::Quarantine(_) => (true, "quarantine", String::new()),
        };
        if found { Ok(()) } else { Err(CoreError::NotFound { what, name }) }
    }

    fn cut(&mut self, target: &RevokeTarget, reason: &str, by: &str, now: Now) {
        let told = format!("revoked by an administrator: {reason}");
        match target {
            RevokeTarget::Session(id) => self.end_session(*id, &told, now),
            RevokeTarget::Device(id) => {
                let standing = Standing::Revoked { since: now.wall, reason: reason.to_owned() };
                self.registry.change_device(*id, &mut self.out, |device| device.standing = standing);
                match self.registry.session_on(*id).map(|session| session.id) {
                    Some(session) => self.end_session(session, &told, now),
                    None => self.end_lease(*id, LeaseEnd::Device { reason: told }, now),
                }
                self.targets_changed(now);
                self.tell_own(*id);
            }
            RevokeTarget::Node(_) | RevokeTarget::Quarantine(_) => {} // [`Core::quarantine`]
            RevokeTarget::Subject(id) => self.disable_subject(*id, &told, by, now),
            RevokeTarget::Rule(rule) => {
                let revoked =
                    RevokedRule { rule: rule.clone(), by: by.to_owned(), reason: reason.to_owned(), at: now.wall };
                self.registry.revoke_rule(revoked, &mut self.out);
                self.decide_where(now, |entitlement| entitlement.rule == *rule);
            }
        }
    }

    /// Disables a subject: its login sessions end, its machines hold no lease and are no destination, and what it was given beside the
    /// rules is taken back: enabled again, it begins without.
    pub(super) fn disable_subject(&mut self, id: postern_common::id::SubjectId, reason: &str, by: &str, now: Now) {
        let Some(mut subject) = self.registry.subject(id).cloned() else { return };
        subject.disabled = Some(reason.to_owned());
        self.registry.put_subject(subject, &mut self.out);
        self.take_back_given(id, by);
        self.shut(id, reason, now);
    }

    /// Ends what is open to a subject who may not take part: login sessions and leases, and its machines are no destination.
    pub(super) fn shut(&mut self, id: postern_common::id::SubjectId, reason: &str, now: Now) {
        let sessions: Vec<_> = self.registry.sessions().filter(|s| s.subject == id).map(|s| s.id).collect();
        self.end_sessions(sessions, reason, now);
        let devices: Vec<DeviceId> = self.registry.devices_of(id).map(|device| device.id).collect();
        for device in devices {
            self.end_lease(device, LeaseEnd::Disabled { reason: reason.to_owned() }, now);
        }
        self.targets_changed(now);
    }

    /// Lifts a revocation of a device, subject, node or rule.
    ///
    /// # Errors
    /// [`CoreError::NotHeld`] if it is not revoked; [`CoreError::NotPermitted`] for a login session, which stays ended.
    pub fn lift(&mut self, target: RevokeTarget, by: &str, now: Now) -> Result<(), CoreError> {
        match &target {
            RevokeTarget::Node(node) => return self.release(&Quarantined::Device(*node), by, now),
            RevokeTarget::Quarantine(held) => return self.release(held, by, now),
            RevokeTarget::Session(_) | RevokeTarget::Device(_) | RevokeTarget::Subject(_) | RevokeTarget::Rule(_) => {}
        }
        let lifted = match &target {
            RevokeTarget::Session(_) | RevokeTarget::Node(_) | RevokeTarget::Quarantine(_) => false,
            RevokeTarget::Device(id) => {
                let held = self.registry.device(*id).is_some_and(|device| device.standing != Standing::Good);
                self.registry.change_device(*id, &mut self.out, |device| device.standing = Standing::Good);
                held
            }
            RevokeTarget::Subject(id) => match self.registry.subject(*id).cloned() {
                Some(mut subject) if subject.disabled.is_some() => {
                    subject.disabled = None;
                    self.registry.put_subject(subject, &mut self.out);
                    true
                }
                Some(_) | None => false,
            },
            RevokeTarget::Rule(rule) => self.registry.restore_rule(rule, &mut self.out),
        };
        if !lifted {
            let name = match &target {
                RevokeTarget::Session(_) => {
                    let ended = "a login session that was revoked stays ended: its person signs in again";
                    return Err(CoreError::NotPermitted(ended.into()));
                }
                RevokeTarget::Device(id) | RevokeTarget::Node(id) => self.registry.machine_name(*id).to_string(),
                RevokeTarget::Subject(id) => self.registry.subject_name(*id),
                RevokeTarget::Rule(rule) => rule.to_string(),
                RevokeTarget::Quarantine(held) => held.to_string(),
            };
            return Err(CoreError::NotHeld { name, held: "revoked" });
        }
        self.out.audit(AuditEvent::RevocationLifted { target, by: by.to_owned() });
        self.rebuild_targets();
        // Machines that are connected and lost their lease get one again.
        let connected: Vec<DeviceId> = self.nodes.keys().copied().collect();
        for device in connected {
            self.decide(device, Extend::No, now);
        }
        self.decide_all(now);
        self.flush(now);
        Ok(())
    }

    /// Tells how far a revocation has come; `None` if it is unknown or forgotten.
    pub fn revocation(&self, id: RevocationId, now: Now) -> Option<RevocationView> {
        let revocation = self.revocations.remembered.iter().find(|revocation| revocation.id == id)?;
        let done = revocation.is_done();
        let end = if done { revocation.last } else { now.monotonic };
        Some(RevocationView {
            id,
            target: revocation.target.clone(),
            nodes: revocation
                .parts
                .iter()
                .map(|(node, part)| RevocationNode {
                    node: *node,
                    name: self.registry.machine_name(*node),
                    progress: part.progress,
                })
                .collect(),
            acknowledged: revocation.count(is_acknowledged),
            elapsed_ms: u64::try_from(end.since(revocation.started).as_millis()).unwrap_or(u64::MAX),
            elapsed_us: u64::try_from(end.since(revocation.started).as_micros()).unwrap_or(u64::MAX),
            flows_cut: revocation.flows_cut(),
            done,
        })
    }

    /// Returns the revocations that a node, which comes back, still has to be told of.
    pub(super) fn revocations_for(&mut self, node: DeviceId) -> Vec<RevocationId> {
        let mut open = Vec::new();
        for revocation in &mut self.revocations.remembered {
            if let Some(part) = revocation.parts.get_mut(&node)
                && matches!(part.progress, RevocationProgress::Away { .. } | RevocationProgress::Told)
            {
                part.progress = RevocationProgress::Told;
                open.push(revocation.id);
            }
        }
        open
    }

    /// Notes that a node which was told of revocations is away.
    pub(super) fn revocations_interrupted(&mut self, node: DeviceId) {
        self.speed.left(node);
        for revocation in &mut self.revocations.remembered {
            if let Some(part) = revocation.parts.get_mut(&node)
                && part.progress == RevocationProgress::Told
            {
                part.progress = RevocationProgress::Away { closes_by: part.closes_by };
            }
        }
    }

    /// Takes in that a node has cut what these revocations revoked, and how many live flows that were.
    pub(super) fn revocations_acknowledged(&mut self, node: DeviceId, ids: &[RevocationId], cut: u64, now: Now) {
        for id in ids {
            self.speed.acknowledged(*id, node, now);
            let Some(revocation) = self.revocations.remembered.iter_mut().find(|r| r.id == *id) else { continue };
            let after_ms = u64::try_from(now.monotonic.since(revocation.started).as_millis()).unwrap_or(u64::MAX);
            if let Some(part) = revocation.parts.get_mut(&node)
                && !is_acknowledged(part.progress)
            {
                part.progress = RevocationProgress::Acknowledged { after_ms, cut };
                revocation.last = now.monotonic;
            }
            self.report_if_done(*id);
        }
    }

    /// The deadlines of nodes that were away have passed.
    pub(super) fn revocation_due(&mut self, id: RevocationId, now: Now) {
        if let Some(revocation) = self.revocations.remembered.iter_mut().find(|r| r.id == id) {
            for part in revocation.parts.values_mut() {
                if part.last_deadline <= now.monotonic && !is_acknowledged(part.progress) {
                    part.progress = RevocationProgress::Expired;
                    revocation.last = now.monotonic;
                }
            }
        }
        self.report_if_done(id);
    }

    fn report_if_done(&mut self, id: RevocationId) {
        let Some(revocation) = self.revocations.remembered.iter_mut().find(|r| r.id == id) else { return };
        if revocation.reported || !revocation.is_done() {
            return;
        }
        revocation.reported = true;
        let elapsed = revocation.last.since(revocation.started).as_millis();
        let event = AuditEvent::RevocationDone {
            revocation: id.0,
            acknowledged: revocation.count(is_acknowledged),
            expired: revocation.count(|progress| progress == RevocationProgress::Expired),
            elapsed_ms: u64::try_from(elapsed).unwrap_or(u64::MAX),
            flows_cut: revocation.flows_cut(),
        };
        self.timers.cancel(Due::Revocation(id));
        self.out.audit(event);
    }
}
