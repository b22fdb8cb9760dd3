//! Security events of other systems: what each changes, in the same transaction as the name of its token.
//!
//! ```text
//! look_at_event: seen before? whom does it name?  --shell: browsers' sign-ins--> take_event
//!     --> the token's name, what it changes, the audit log --> only then acknowledged
//! `event_streams`: when streams were heard, their silence, what is refused of them
//! ```
//!
//! Invariants:
//! - Only login sessions of people of the stream's provider are looked at, and only those that were proven at the time of the event or
//!   before: who signed in after it is not concerned.
//! - **What is named may be narrower than what is known here**, and never less ends than may be meant: a device or session of a
//!   person that nobody knows here means all of theirs.
//! - **The proof of a session never counts for more than was verified at its sign-in** ([`Proven`]): an event that raises gives back
//!   what an earlier one took.
//! - A name (e-mail address, account) only takes away: groups that are told for one become unknown, a level that rises does not.
//! - An older event does not undo a newer one of its kind.

use std::collections::BTreeSet;

use postern_common::{
    id::{DeviceId, SessionId, SubjectId},
    policy::Assurance as PolicyAssurance,
    time::{Now, WallTime},
};

use super::core::Core;
use crate::{
    decision::{Extend, policy_assurance},
    records::{Assurance, AuditEvent, Proven, Restrained, SessionRecord, SubjectKind},
    signals::events::{
        Binding, Named, SpeaksOfDevices, Whom,
        event::{Claims, Compliance, Direction, Level, NewGroups, Told},
        memory::{Look, Watched},
        set::SecurityEvent,
        subject::{Identifier, Subject},
    },
};

/// Methods of which none can be phished; what is left without them is what a lower level leaves.
const SEVERAL: &str = "mfa";

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakenEvent {
    /// It is durable with its effects, if it has any.
    Done,
    /// It was taken before.
    Replayed,
    /// It was issued before what is remembered begins.
    Forgotten,
    /// It is a verification that nobody asked for.
    NobodyAsked,
}

/// Whether a refusal of this kind was told of just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// It is the first of its kind within a minute: it stands in the audit log.
    First,
    /// It is counted, and told of later.
    Again,
}

/// For what a proof counts from now on.
#[derive(Clone, Copy)]
struct LevelTold<'a> {
    level: &'a Level,
    direction: Direction,
    /// Whether the event surely means this session.
    is_sure: bool,
    at: WallTime,
    /// Which event.
    by: &'a str,
}

/// What an event did.
pub(super) struct Effect {
    pub(super) subject: Option<SubjectId>,
    pub(super) device: Option<DeviceId>,
    pub(super) what: String,
    pub(super) sessions: usize,
}

/// What came of an event that is about somebody.
pub(super) enum Applied {
    Done(Effect),
    /// Nobody or nothing here is concerned; why, as a constant text.
    Nothing(&'static str),
}

impl Core {
    /// Takes over which streams are configured.
    pub fn watch_events(&mut self, streams: Vec<Watched>, now: Now) {
        for change in self.event_streams.configure(streams, now) {
            self.out.store(change);
        }
        self.watch_for_silence();
        self.flush(now);
    }

    /// Tells whether an event was seen before, and whom it names.
    pub fn look_at_event(&self, binding: &Binding, event: &SecurityEvent) -> (Look, Whom) {
        let look = self.event_streams.look(&binding.name, &event.hash, event.issued);
        let mut whom = Whom::default();
        let (Look::New, Some(people_of)) = (look, &binding.people_of) else { return (look, whom) };
        let Some(user) = event.subject.user() else { return (look, whom) };
        let (mut is_known, mut is_elsewhere) = (false, false);
        for one in user.each() {
            match one {
                Identifier::Person { issuer, sub } if issuer == people_of => {
                    whom.surely.insert(sub.clone());
                    is_known = true;
                }
                // What another than the provider calls somebody need not be the provider's name for them.
                Identifier::Opaque(sub) => {
                    let is_providers = binding.issuer == *people_of;
                    let named = if is_providers { &mut whom.surely } else { &mut whom.perhaps };
                    named.insert(sub.clone());
                    let kind = SubjectKind::Person { issuer: people_of.clone(), sub: sub.clone() };
                    is_known |= self.registry.subject_of(&kind).is_some();
                }
                Identifier::Name(name) => {
                    let called = self.people_called(people_of, name);
                    is_known |= !called.is_empty();
                    whom.perhaps.extend(called);
                }
                Identifier::Person { .. } => is_elsewhere = true,
                Identifier::Aliases(_) | Identifier::Elsewhere => {}
            }
        }
        whom.user = match (is_known, is_elsewhere) {
            (true, _) => Named::Known,
            (false, true) => Named::Elsewhere,
            (false, false) => Named::Unresolved,
        };
        (look, whom)
    }

    fn people_called(&self, people_of: &str, name: &str) -> Vec<String> {
        let called = self.registry.subjects().filter_map(|subject| match &subject.kind {
            SubjectKind::Person { issuer, sub } if issuer == people_of && subject.name.eq_ignore_ascii_case(name) => {
                Some(sub.clone())
            }
            SubjectKind::Person { .. } | SubjectKind::Service { .. } => None,
        });
        called.take(64).collect()
    }

    /// Takes an event. `whom` is `None` if a part of its subject that has to be understood is not.
    pub fn take_event(&mut self, binding: &Binding, event: &SecurityEvent, whom: Option<Whom>, now: Now) -> TakenEvent {
        let source = format!("events {}", binding.name);
        match self.event_streams.look(&binding.name, &event.hash, event.issued) {
            Look::New => {}
            Look::Replayed => {
                self.event_streams.replayed(&binding.name);
                self.refuse_signal(&source, "replayed", None, now);
                return TakenEvent::Replayed;
            }
            Look::Forgotten => return TakenEvent::Forgotten,
        }
        if let Told::Verification { state } = &event.told
            && !self.event_streams.answers(&binding.name, state.as_deref())
        {
            return TakenEvent::NobodyAsked;
        }
        for change in self.event_streams.take(&binding.name, event.hash, event.issued) {
            self.out.store(change);
        }
        self.stream_heard(binding, event.issued, now);
        let applied = match whom {
            Some(whom) => self.apply_event(binding, event, &whom, now),
            None => Applied::Nothing("a critical part of its subject is not understood"),
        };
        match applied {
            Applied::Done(Effect { subject, device, what, sessions }) => self.out.audit(AuditEvent::SignalTaken {
                stream: binding.name.clone(),
                kind: event.told.word().to_owned(),
                subject,
                subject_name: subject.map(|subject| self.registry.subject_name(subject)),
                device,
                effect: what,
                sessions,
                reason: event.reason.clone(),
                at: event.at,
            }),
            Applied::Nothing(why) => drop(self.refuse_signal(&source, why, None, now)),
        }
        self.flush(now);
        TakenEvent::Done
    }

    fn apply_event(&mut self, binding: &Binding, event: &SecurityEvent, whom: &Whom, now: Now) -> Applied {
        match &event.told {
            Told::Verification { .. } => {
                Applied::Done(Effect { subject: None, device: None, what: "the stream works".into(), sessions: 0 })
            }
            Told::StreamUpdated { status, reason } => self.stream_updated(binding, *status, reason.as_deref(), now),
            Told::Unknown { .. } => Applied::Nothing("an event that is not known here"),
            Told::DeviceComplianceChange(compliance) => self.device_told(binding, event, *compliance, now),
            Told::SessionRevoked
            | Told::CredentialChange { .. }
            | Told::AssuranceLevelChange { .. }
            | Told::TokenClaimsChange(_) => self.person_told(binding, event, whom, now),
        }
    }

    // --- people

    fn person_told(&mut self, binding: &Binding, event: &SecurityEvent, whom: &Whom, now: Now) -> Applied {
        let Some(people_of) = binding.people_of.as_deref() else {
            return Applied::Nothing("the stream may not speak of people");
        };
        let subject_of = |sub: &String| {
            let kind = SubjectKind::Person { issuer: people_of.to_owned(), sub: sub.clone() };
            self.registry.subject_of(&kind).map(|subject| subject.id)
        };
        let surely: BTreeSet<SubjectId> = whom.surely.iter().filter_map(subject_of).collect();
        let people: BTreeSet<SubjectId> = whom.everybody().filter_map(subject_of).collect();
        let concerned = self.sessions_concerned(binding, people_of, event, whom, &people);
        let sure = self.surely_meant(binding, event, whom, &surely, &people, &concerned);
        self.sign_ins_overtaken(people_of, event, whom, now);
        let subject = concerned.first().map(|session| session.subject).or(people.first().copied());
        if subject.is_none() && whom.browsers_ended == 0 {
            return Applied::Nothing("nobody here is meant");
        }
        let sessions = concerned.len();
        let what = match &event.told {
            Told::SessionRevoked => {
                let ids = concerned.iter().map(|session| session.id).collect();
                let why = event.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
                self.end_sessions(ids, &format!("ended by the identity provider (session-revoked){why}"), now);
                "login sessions ended".to_owned()
            }
            Told::CredentialChange { credential, .. } => {
                let what: String = credential.chars().take(40).collect();
                let reason = format!("their credentials were changed (credential-change: {what})");
                let by = format!("events {}", binding.name);
                // Who is named by a session or device alone is whoever is signed in there.
                for person in people
                    .iter()
                    .copied()
                    .chain(concerned.iter().map(|session| session.subject))
                    .collect::<BTreeSet<_>>()
                {
                    self.challenge_proofs_until(Restrained::Subject(person), event.at, &reason, &by, now);
                }
                format!("a fresh sign-in is asked for: {credential}")
            }
            Told::AssuranceLevelChange { level, direction } => {
                let mut changed = 0;
                for session in concerned {
                    let is_sure = sure.contains(&session.id);
                    let told = LevelTold { level, direction: *direction, is_sure, at: event.at, by: event.told.word() };
                    changed += usize::from(self.level_changed(session, told, now));
                }
                format!("what the proof of sign-in counts for changed in {changed} login sessions")
            }
            Told::TokenClaimsChange(claims) => {
                let groups = claims.groups(&binding.groups_claim);
                for session in concerned {
                    let is_sure = sure.contains(&session.id);
                    self.claims_changed(session, &groups, claims, is_sure, event.at, now);
                }
                match groups {
                    NewGroups::Unsaid => "no group is told of".to_owned(),
                    NewGroups::Now(_) => "groups decided anew".to_owned(),
                }
            }
            Told::DeviceComplianceChange(_)
            | Told::Verification { .. }
            | Told::StreamUpdated { .. }
            | Told::Unknown { .. } => return Applied::Nothing("not about people"),
        };
        Applied::Done(Effect { subject, device: None, what, sessions })
    }

    /// Lists the open login sessions that an event is about.
    fn sessions_concerned(
        &self,
        binding: &Binding,
        people_of: &str,
        event: &SecurityEvent,
        whom: &Whom,
        people: &BTreeSet<SubjectId>,
    ) -> Vec<SessionRecord> {
        let of_provider = |session: &&SessionRecord| match self.registry.subject(session.subject).map(|s| &s.kind) {
            Some(SubjectKind::Person { issuer, .. }) => issuer == people_of,
            Some(SubjectKind::Service { .. }) | None => false,
        };
        let devices = event.subject.device().map(|device| self.devices_named(binding, device));
        let by_browser = |session: &SessionRecord| match (&whom.browsers, session.vouched) {
            (Some(browsers), Some(vouched)) => browsers.contains(&vouched),
            (Some(_), None) | (None, _) => false,
        };
        let is_meant = |session: &&SessionRecord| match &event.subject {
            Subject::Simple(_) => people.contains(&session.subject) || by_browser(session),
            Subject::Complex(members) => {
                let has_user = whom.user == Named::Known;
                let is_narrow = |known_here: bool| known_here || !has_user;
                let user = !has_user || people.contains(&session.subject);
                let browser = match (&members.session, &whom.browsers) {
                    (None, _) => true,
                    (Some(_), Some(browsers)) if is_narrow(!browsers.is_empty()) => by_browser(session),
                    (Some(_), None) if !has_user => false,
                    (Some(_), _) => true,
                };
                let device = match &devices {
                    Some(devices) if is_narrow(!devices.is_empty()) => devices.contains(&session.device),
                    Some(_) | None => true,
                };
                let names_somebody = has_user || members.session.is_some() || members.device.is_some();
                names_somebody && whom.user != Named::Elsewhere && user && browser && device
            }
        };
        let is_before = |session: &&SessionRecord| match session.assurance.auth_time {
            Some(proven) => proven <= event.at,
            None => session.vouched.is_none_or(|browser| !whom.kept.contains(&browser)),
        };
        let meant = self.registry.sessions().filter(of_provider).filter(is_meant).filter(is_before);
        meant.cloned().collect()
    }

    /// Lists those of the sessions concerned that an event surely means, with every part of its subject: it may give to these alone.
    fn surely_meant(
        &self,
        binding: &Binding,
        event: &SecurityEvent,
        whom: &Whom,
        surely: &BTreeSet<SubjectId>,
        people: &BTreeSet<SubjectId>,
        concerned: &[SessionRecord],
    ) -> BTreeSet<SessionId> {
        if surely.len() != 1 || people != surely {
            return BTreeSet::new();
        }
        let is_meant = |session: &&SessionRecord| match &event.subject {
            Subject::Simple(_) => surely.contains(&session.subject),
            Subject::Complex(members) => {
                let in_browser = session.vouched.is_some_and(|browser| whom.exactly.contains(&browser));
                let on_device = members.device.as_ref().is_none_or(|device| {
                    let devices = self.devices_named(binding, device);
                    devices.len() == 1 && devices.contains(&session.device)
                });
                let all_understood = members.others.is_empty();
                surely.contains(&session.subject)
                    && (members.session.is_none() || in_browser)
                    && on_device
                    && all_understood
            }
        };
        concerned.iter().filter(is_meant).map(|session| session.id).collect()
    }

    /// Makes a session's proof count for a level; tells whether that changed anything.
    fn level_changed(&mut self, mut session: SessionRecord, told: LevelTold<'_>, now: Now) -> bool {
        let LevelTold { level, direction, is_sure, at, by } = told;
        if session.proven.as_ref().is_some_and(|proven| at < proven.told) {
            return false;
        }
        let verified = session.proven.as_ref().map_or_else(
            || session.assurance.clone(),
            |proven| Assurance { acr: proven.acr.clone(), amr: proven.amr.clone(), ..session.assurance.clone() },
        );
        let Some(counts) = self.counts_for(&verified, level) else { return false };
        let other_class = counts.acr.is_some() && counts.acr != session.assurance.acr;
        let raises = direction == Direction::Up || other_class || !self.is_at_most(&counts, &session.assurance);
        // Of two that happened at one time nobody knows which was the last: the one that takes away counts.
        let is_tie = session.proven.as_ref().is_some_and(|proven| at == proven.told);
        if raises && (!is_sure || is_tie) {
            return false;
        }
        if counts == session.assurance && session.proven.is_none() {
            return false;
        }
        session.proven =
            Some(Box::new(Proven { acr: verified.acr, amr: verified.amr, told: at, by: Some(by.to_owned()) }));
        session.assurance = counts;
        let device = session.device;
        self.registry.put_session(session, &mut self.out);
        self.decide(device, Extend::No, now);
        true
    }

    fn is_at_most(&self, one: &Assurance, other: &Assurance) -> bool {
        self.policy.at_least_as_strong(&policy_assurance(Some(other)), &policy_assurance(Some(one)))
    }

    /// Returns what a verified proof counts for at a level, which is never more than it is; `None` if nothing changes.
    fn counts_for(&self, verified: &Assurance, level: &Level) -> Option<Assurance> {
        let bare = |amr: Vec<String>| Assurance { acr: None, amr, ..verified.clone() };
        let proves = |assurance: &Assurance, amr: &str| {
            let wanted = PolicyAssurance { auth_time: None, acr: None, amr: Some([amr.to_owned()].into()) };
            self.policy.at_least_as_strong(&policy_assurance(Some(assurance)), &wanted)
        };
        match level {
            Level::Elsewhere | Level::Higher => None,
            Level::Nothing | Level::OneFactor => Some(bare(vec![])),
            Level::SeveralFactors if proves(verified, SEVERAL) => Some(bare(vec![SEVERAL.to_owned()])),
            Level::SeveralFactors => Some(bare(vec![])),
            Level::PhishingResistant => Some(verified.clone()),
            Level::Method(method) => {
                Some(bare(verified.amr.iter().filter(|known| *known == method).cloned().collect()))
            }
            Level::Class(class) if verified.acr.as_ref() == Some(class) => Some(verified.clone()),
            Level::Class(class) => {
                let claimed = Assurance { acr: Some(class.clone()), amr: vec![], ..verified.clone() };
                let both = proves(verified, SEVERAL) && proves(&claimed, SEVERAL);
                Some(bare(if both { vec![SEVERAL.to_owned()] } else { vec![] }))
            }
        }
    }

    fn claims_changed(
        &mut self,
        mut session: SessionRecord,
        groups: &NewGroups,
        claims: &Claims,
        is_sure: bool,
        at: WallTime,
        now: Now,
    ) {
        if let NewGroups::Now(groups) = groups
            && session.claims_told.is_none_or(|told| told <= at)
        {
            // Of two that happened at one time nobody knows which was the last.
            let is_clear = session.claims_told != Some(at) || session.assurance.groups == *groups;
            session.assurance.groups = groups.clone().filter(|_| is_sure && is_clear);
            session.claims_told = Some(at);
            let device = session.device;
            self.registry.put_session(session.clone(), &mut self.out);
            self.decide(device, Extend::No, now);
        }
        if let Some(level) = claims.class() {
            let by = "token-claims-change";
            let told = LevelTold { level: &level, direction: Direction::Unsaid, is_sure, at, by };
            self.level_changed(session, told, now);
        }
    }

    // --- devices

    fn devices_named(&self, binding: &Binding, device: &Identifier) -> BTreeSet<DeviceId> {
        let by_handle = |handle: &str| {
            let by_id = handle.parse::<DeviceId>().ok().filter(|id| self.registry.device(*id).is_some());
            by_id.or_else(|| self.postures.by_serial(handle))
        };
        let issuers: Vec<&str> = binding.people_of.iter().chain([&binding.issuer]).map(String::as_str).collect();
        device.handles(&issuers).filter_map(by_handle).collect()
    }

    fn device_told(&mut self, binding: &Binding, event: &SecurityEvent, compliance: Compliance, now: Now) -> Applied {
        match binding.devices {
            SpeaksOfDevices::Yes => {}
            SpeaksOfDevices::No => return Applied::Nothing("the stream may not speak of devices"),
        }
        let named = match &event.subject {
            Subject::Simple(one) => Some(one),
            Subject::Complex(members) => members.device.as_ref(),
        };
        let devices = named.map(|one| self.devices_named(binding, one)).unwrap_or_default();
        let Some(first) = devices.first().copied() else { return Applied::Nothing("no device here is meant") };
        if devices.len() > 1 && compliance == Compliance::Compliant {
            return Applied::Nothing("its aliases name several devices");
        }
        for device in devices {
            self.compliance_told(device, compliance == Compliance::Compliant, event.at, &binding.name, now);
        }
        let what = match compliance {
            Compliance::Compliant => "the device is compliant",
            Compliance::NotCompliant => "the device is not compliant",
        };
        Applied::Done(Effect { subject: None, device: Some(first), what: what.into(), sessions: 0 })
    }
}
