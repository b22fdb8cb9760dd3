//! Lists, searches and the state at a glance.

use std::collections::BTreeMap;

use postern_common::{
    grant::{Mode, Position},
    id::{BreakGlassId, DeviceId, MachineName, RequestId, ResourceName, RuleName, SessionId, SubjectId},
    time::{Now, WallTime},
};

use super::{
    api::{CoreError, CoreStatus, DeviceView, LeaseAccess, LeaseView, SessionView, StreamView, SubjectView, TokenView},
    core::Core,
    node::Connected,
};
use crate::{
    decision::{Granted, Lease},
    records::{DeviceKind, DeviceRecord, NameClaim, SessionRecord, SubjectKind, SubjectRecord, TokenHash},
};

/// How many of several matches an error names.
const MATCHES_NAMED: usize = 8;

/// Takes the only one that was found. `tell` says of one of several what tells it from the others.
fn one<T>(what: &'static str, name: &str, found: Vec<T>, tell: impl Fn(&T) -> String) -> Result<T, CoreError> {
    let count = found.len();
    let name = || name.chars().take(80).collect::<String>();
    if count > 1 {
        let more = (count > MATCHES_NAMED).then(|| format!("and {} more", count - MATCHES_NAMED));
        let matches = found.iter().take(MATCHES_NAMED).map(tell).chain(more).collect();
        return Err(CoreError::Ambiguous { what, name: name(), count, matches });
    }
    found.into_iter().next().ok_or_else(|| CoreError::NotFound { what, name: name() })
}

impl Core {
    // --- lists

    /// Lists enrolment tokens that still work, the one that expires first in front.
    pub fn list_tokens(&self, now: Now) -> Vec<TokenView> {
        let live = self.registry.tokens().filter(|token| token.expires > now.wall);
        let mut tokens: Vec<TokenView> =
            live.map(|token| TokenView { record: token.clone(), short: token.hash.short() }).collect();
        tokens.sort_by_key(|token| (token.record.expires, token.record.hash));
        tokens
    }

    /// Lists devices by name.
    pub fn list_devices(&self) -> Vec<DeviceView> {
        let mut devices: Vec<DeviceView> = self.registry.devices().map(|device| self.device_view(device)).collect();
        devices.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        devices
    }

    /// Shows one device.
    pub fn show_device(&self, id: DeviceId) -> Option<DeviceView> {
        self.registry.device(id).map(|device| self.device_view(device))
    }

    /// Tells what a subject is.
    pub fn subject_kind(&self, id: SubjectId) -> Option<&SubjectKind> {
        self.registry.subject(id).map(|subject| &subject.kind)
    }

    fn device_view(&self, device: &DeviceRecord) -> DeviceView {
        DeviceView {
            record: device.clone(),
            owner_name: self.registry.subject_name(device.owner),
            session: self.registry.session_on(device.id).cloned(),
            lease: self.leases.get(&device.id).map(|lease| lease.record.clone()),
            stream: self.nodes.get(&device.id).map(|node| self.stream_view(node)),
            name_waits_for_approval: self.name_waits(device),
            quarantine: self.registry.quarantine_on(device).map(|held| held.reason.clone()),
            restraints: self.restraints_binding(device),
        }
    }

    fn stream_view(&self, node: &Connected) -> StreamView {
        StreamView {
            from: node.from,
            since: node.since,
            enforcing: node.enforced,
            sent: node.own.map(|_| Position { epoch: self.meta.epoch, generation: node.generation }),
            current: node.is_current(),
            endpoints: node.endpoints(),
            peers: node.peers.len(),
        }
    }

    /// Tells whether policy names the machine as a place and nobody has vouched for the name.
    pub(super) fn name_waits(&self, device: &DeviceRecord) -> bool {
        device.name_claim == NameClaim::Claimed && self.policy.is_destination_name(&device.name)
    }

    /// Lists open login sessions, newest first.
    pub fn list_sessions(&self) -> Vec<SessionView> {
        let view = |session: &SessionRecord| SessionView {
            record: session.clone(),
            subject_name: self.registry.subject_name(session.subject),
            machine: self.registry.device(session.device).map(|device| device.name.clone()),
            challenged_at: self.challenged_since(session.device),
        };
        let mut sessions: Vec<SessionView> = self.registry.sessions().map(view).collect();
        sessions.sort_by_key(|session| (std::cmp::Reverse(session.record.started), session.record.id));
        sessions
    }

    /// Lists live leases by machine name.
    pub fn list_leases(&self) -> Vec<LeaseView> {
        let mut leases: Vec<LeaseView> = self.leases.values().map(|lease| self.lease_view(lease)).collect();
        leases.sort_by(|a, b| a.machine.cmp(&b.machine));
        leases
    }

    pub(super) fn lease_view(&self, lease: &Lease) -> LeaseView {
        let access = |Granted { entitlement, until, .. }: &Granted| LeaseAccess {
            rule: entitlement.rule.clone(),
            resource: entitlement.resource.clone(),
            services: entitlement.services.clone(),
            nodes: entitlement.nodes.iter().map(|node| self.registry.machine_name(*node)).collect(),
            until: until.wall,
            would_deny: match &entitlement.mode {
                Mode::Enforce => None,
                Mode::Monitor { would_deny } => Some(would_deny.clone()),
            },
        };
        LeaseView {
            record: lease.record.clone(),
            subject_name: self.registry.subject_name(lease.record.subject),
            machine: self.registry.machine_name(lease.record.device),
            access: lease.granted.iter().map(access).collect(),
        }
    }

    /// Lists subjects by name.
    pub fn list_subjects(&self) -> Vec<SubjectView> {
        let mut devices: BTreeMap<SubjectId, usize> = BTreeMap::new();
        for device in self.registry.devices() {
            *devices.entry(device.owner).or_default() += 1;
        }
        let mut sessions: BTreeMap<SubjectId, usize> = BTreeMap::new();
        for session in self.registry.sessions() {
            *sessions.entry(session.subject).or_default() += 1;
        }
        let mut proofs: BTreeMap<SubjectId, &SessionRecord> = BTreeMap::new();
        for session in self.registry.sessions() {
            let latest = proofs.entry(session.subject).or_insert(session);
            if session.started > latest.started {
                *latest = session;
            }
        }
        let groups = |subject: &SubjectRecord| {
            let proof = proofs.get(&subject.id).map(|session| &session.assurance);
            self.provisioned_assurance(&subject.kind, subject.provisioned_as.as_ref(), proof)?.groups
        };
        let view = |subject: &SubjectRecord| SubjectView {
            provisioned: self.scim_note(subject),
            groups: groups(subject),
            record: subject.clone(),
            devices: devices.get(&subject.id).copied().unwrap_or(0),
            sessions: sessions.get(&subject.id).copied().unwrap_or(0),
        };
        let mut subjects: Vec<SubjectView> = self.registry.subjects().map(view).collect();
        subjects.sort_by(|a, b| a.record.name.cmp(&b.record.name).then(a.record.id.cmp(&b.record.id)));
        subjects
    }

    // --- searches

    /// Finds a device by identifier or machine name.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn find_device(&self, name: &str) -> Result<DeviceId, CoreError> {
        let by_id = name.parse::<DeviceId>().ok().filter(|id| self.registry.device(*id).is_some());
        let by_name = || {
            let name: MachineName = name.to_ascii_lowercase().parse().ok()?;
            self.registry.device_by_name(&name).map(|device| device.id)
        };
        one("device", name, by_id.or_else(by_name).into_iter().collect(), DeviceId::to_string)
    }

    /// Finds a device that runs our agent.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn find_node(&self, name: &str) -> Result<DeviceId, CoreError> {
        let device = self.find_device(name).ok().and_then(|id| self.registry.device(id));
        one(
            "node",
            name,
            device.filter(|device| device.kind == DeviceKind::Agent).map(|device| device.id).into_iter().collect(),
            DeviceId::to_string,
        )
    }

    /// Finds a subject by identifier, by name, or by `service:NAME`.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Ambiguous`].
    pub fn find_subject(&self, name: &str) -> Result<SubjectId, CoreError> {
        if let Some(id) = name.parse::<SubjectId>().ok().filter(|id| self.registry.subject(*id).is_some()) {
            return Ok(id);
        }
        let plain = name.strip_prefix("user:").unwrap_or(name);
        let named = self.registry.subjects().filter(|subject| subject.name == plain);
        let tell = |id: &SubjectId| match self.registry.subject(*id).map(|subject| &subject.kind) {
            Some(SubjectKind::Person { issuer, sub }) => format!("{id} ({sub} of {issuer})"),
            Some(SubjectKind::Service { .. }) => format!("{id} (a service)"),
            None => id.to_string(),
        };
        one("subject", name, named.map(|subject| subject.id).collect(), tell)
    }

    /// Finds an open login session by identifier, as `alice@corp.example/alice-laptop`, or by the machine alone.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Ambiguous`].
    pub fn find_session(&self, name: &str) -> Result<SessionId, CoreError> {
        if let Some(id) = name.parse::<SessionId>().ok().filter(|id| self.registry.session(*id).is_some()) {
            return Ok(id);
        }
        let (subject, machine) = match name.rsplit_once('/') {
            Some((subject, machine)) => (Some(subject), Some(machine)),
            None => (None, None),
        };
        let matches = |session: &&SessionRecord| {
            let subject_name = self.registry.subject_name(session.subject);
            let machine_name = self.registry.machine_name(session.device);
            match (subject, machine) {
                (Some(subject), Some(machine)) => subject_name == subject && machine_name.as_str() == machine,
                (None, _) | (_, None) => subject_name == name || machine_name.as_str() == name,
            }
        };
        let found = self.registry.sessions().filter(matches).map(|session| session.id).collect();
        let tell = |id: &SessionId| match self.registry.session(*id) {
            Some(session) => {
                let (subject, device) = (session.subject, session.device);
                format!("{id} ({}/{})", self.registry.subject_name(subject), self.registry.machine_name(device))
            }
            None => id.to_string(),
        };
        one("open login session", name, found, tell)
    }

    /// Finds a request by the beginning of its identifier.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Ambiguous`].
    pub fn find_request(&self, name: &str) -> Result<RequestId, CoreError> {
        let named = |id: &RequestId| name.len() > "req_".len() && id.to_string().starts_with(name);
        let found = self.registry.requests().map(|request| request.id).filter(named).collect();
        one("request", name, found, RequestId::to_string)
    }

    /// Finds what is open past the rules by the beginning of its identifier.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Ambiguous`].
    pub fn find_break_glass(&self, name: &str) -> Result<BreakGlassId, CoreError> {
        let named = |id: &BreakGlassId| name.len() > "bg_".len() && id.to_string().starts_with(name);
        let found = self.registry.break_glass().map(|record| record.id).filter(named).collect();
        one("break-glass", name, found, BreakGlassId::to_string)
    }

    /// Finds a token by its short name or hash.
    ///
    /// # Errors
    /// [`CoreError::NotFound`], [`CoreError::Ambiguous`].
    pub fn find_token(&self, name: &str) -> Result<TokenHash, CoreError> {
        let matches = |hash: &TokenHash| hash.short() == name || hash.to_string() == name;
        let found = self.registry.tokens().map(|token| token.hash).filter(matches).collect();
        one("token", name, found, TokenHash::to_string)
    }

    /// Finds a rule of the policy in force, or one that is revoked, by its name.
    ///
    /// # Errors
    /// [`CoreError::NotFound`].
    pub fn find_rule(&self, name: &str) -> Result<RuleName, CoreError> {
        let revoked = self.registry.revoked_rules().keys();
        one(
            "rule",
            name,
            self.policy.rule_names().chain(revoked).find(|rule| rule.as_str() == name).cloned().into_iter().collect(),
            RuleName::to_string,
        )
    }

    /// Names every resource, for completion.
    pub fn resource_names(&self) -> Vec<ResourceName> {
        self.policy.resources().iter().map(|resource| resource.name().clone()).collect()
    }

    // --- at a glance

    /// Shows the controller at a glance.
    pub fn status(&self) -> CoreStatus {
        let waits = |device: &&DeviceRecord| !device.tags_pending.is_empty() || self.name_waits(device);
        CoreStatus {
            epoch: self.meta.epoch,
            policy_revision: self.meta.policy_revision,
            connected: self.nodes.len(),
            current: self.nodes.values().filter(|node| node.is_current()).count(),
            devices: self.registry.devices().count(),
            awaiting_approval: self.registry.devices().filter(waits).map(|device| device.name.clone()).collect(),
            sessions: self.registry.sessions().count(),
            leases: self.leases.len(),
            pending_joins: self.joins.len(),
            revoked_rules: self.registry.revoked_rules().keys().cloned().collect(),
            quarantines: self.registry.quarantines().map(|held| self.quarantined_name(&held.target)).collect(),
            restrained: self.restrained_names(),
            closing: self.speed.view(),
            counters: self.counters,
        }
    }

    /// Returns when a node's stream began, if it has one.
    pub(super) fn connected_since(&self, device: DeviceId) -> Option<WallTime> {
        self.nodes.get(&device).map(|node| node.since)
    }
}
