//! The durable records in memory, with the indexes by which they are found. Every change is also queued for the store.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};
use postern_common::{
    id::{BreakGlassId, DeviceId, MachineName, RequestId, RuleName, ServiceName, SessionId, SubjectId},
    key::{DevicePublicKey, WireGuardPublicKey},
    time::WallTime,
};

use super::outbox::Outbox;
use crate::records::{
    Addresses, BreakGlassRecord, DeviceKind, DeviceRecord, HoldRecord, Loaded, QuarantineRecord, Quarantined,
    RequestRecord, Restrained, RestraintRecord, RevokedRule, SessionEnd, SessionRecord, Standing, StoreChange,
    SubjectKind, SubjectRecord, TokenHash, TokenRecord,
};

mod held;

/// How long a login session stays on record after its end: a month, in which somebody may still ask why a machine was cut
/// or who had been on it. After that the audit log answers.
const KEPT_AFTER_END: Duration = Duration::from_secs(30 * 86_400);
/// The most login sessions that one sweep forgets, so that no transaction gets long.
const FORGOTTEN_AT_ONCE: usize = 1_000;

/// The most subjects with whom people are remembered who joined no machine.
const MAX_VISITORS: usize = 100_000;
/// The most browsers' login sessions that are remembered of one device: as many as a person may have.
const MAX_BROWSERS: usize = 16;

/// Subjects, devices, login sessions, tokens, holds and revoked rules.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    subjects: BTreeMap<SubjectId, SubjectRecord>,
    by_kind: HashMap<SubjectKind, SubjectId>,
    devices: BTreeMap<DeviceId, DeviceRecord>,
    devices_of: HashMap<SubjectId, BTreeSet<DeviceId>>,
    by_device_key: HashMap<DevicePublicKey, DeviceId>,
    by_name: HashMap<MachineName, DeviceId>,
    by_wireguard_key: HashMap<WireGuardPublicKey, DeviceId>,
    v4_taken: HashSet<Ipv4Addr>,
    v6_taken: HashSet<Ipv6Addr>,
    sessions: BTreeMap<SessionId, SessionRecord>,
    session_of: HashMap<DeviceId, SessionId>,
    /// How the last login session of a device ended, for explanations; one for each device at most.
    ended_on: HashMap<DeviceId, SessionEnd>,
    /// The login sessions that ended and are still on record, the first that ended first; as many as people sign in within
    /// [`KEPT_AFTER_END`].
    ended: BTreeSet<(WallTime, SessionId, DeviceId)>,
    ended_of: HashMap<DeviceId, Vec<(WallTime, SessionId)>>,
    /// The browsers' login sessions in which somebody was signed in on each device, the last [`MAX_BROWSERS`]: also of sessions that
    /// have ended and are on record.
    browsers_of: HashMap<DeviceId, BTreeSet<(WallTime, SessionId)>>,
    tokens: BTreeMap<TokenHash, TokenRecord>,
    holds: Vec<HoldRecord>,
    revoked_rules: BTreeMap<RuleName, RevokedRule>,
    quarantines: BTreeMap<Quarantined, QuarantineRecord>,
    requests: BTreeMap<RequestId, RequestRecord>,
    requests_of: HashMap<SubjectId, BTreeSet<RequestId>>,
    break_glass: BTreeMap<BreakGlassId, BreakGlassRecord>,
    restraints: BTreeMap<Restrained, Vec<RestraintRecord>>,
    /// Whom their provider keeps out, and why: worked out from what is provisioned, so kept nowhere.
    withdrawn: HashMap<SubjectId, String>,
    /// How many records were looked at one after the other.
    #[cfg(test)]
    pub(crate) walked: std::cell::Cell<u64>,
}

impl Registry {
    /// Takes up what the store kept; of two records that contradict each other the later one counts.
    pub(crate) fn load(loaded: &mut Loaded) -> Self {
        let mut registry = Self::default();
        for subject in loaded.subjects.drain(..) {
            registry.by_kind.insert(subject.kind.clone(), subject.id);
            registry.subjects.insert(subject.id, subject);
        }
        for device in loaded.devices.drain(..) {
            registry.index_device(device);
        }
        for session in loaded.sessions.drain(..) {
            registry.note_browser(&session);
            if session.ended.is_none() && registry.devices.contains_key(&session.device) {
                registry.session_of.insert(session.device, session.id);
                registry.sessions.insert(session.id, session);
            } else {
                let at = session.ended.as_ref().map_or(session.expires, |end| end.at);
                registry.keep_ended(at, session.id, session.device);
                if let Some(end) = session.ended {
                    registry.remember_end(session.device, end);
                }
            }
        }
        registry.tokens = loaded.tokens.drain(..).map(|token| (token.hash, token)).collect();
        for hold in loaded.holds.drain(..) {
            registry.v4_taken.insert(hold.addresses.v4);
            registry.v6_taken.insert(hold.addresses.v6);
            registry.holds.push(hold);
        }
        registry.revoked_rules = loaded.revoked_rules.drain(..).map(|rule| (rule.rule.clone(), rule)).collect();
        registry.quarantines = loaded.quarantines.drain(..).map(|record| (record.target.clone(), record)).collect();
        for request in loaded.requests.drain(..) {
            registry.index_request(request);
        }
        for record in loaded.restraints.drain(..) {
            registry.restraints.entry(record.whom).or_default().push(record);
        }
        registry.break_glass = loaded.break_glass.drain(..).map(|record| (record.id, record)).collect();
        registry
    }

    /// Counts a record that is looked at among others, for tests of what a change costs.
    fn walk<T>(&self, record: T) -> T {
        #[cfg(test)]
        self.walked.set(self.walked.get() + 1);
        record
    }

    // --- subjects

    pub(crate) fn subject(&self, id: SubjectId) -> Option<&SubjectRecord> {
        self.subjects.get(&id)
    }

    pub(crate) fn subject_of(&self, kind: &SubjectKind) -> Option<&SubjectRecord> {
        self.by_kind.get(kind).and_then(|id| self.subjects.get(id))
    }

    pub(crate) fn service(&self, name: &ServiceName) -> Option<&SubjectRecord> {
        self.subject_of(&SubjectKind::Service { name: name.clone() })
    }

    pub(crate) fn subjects(&self) -> impl Iterator<Item = &SubjectRecord> {
        self.subjects.values()
    }

    pub(crate) fn put_subject(&mut self, subject: SubjectRecord, out: &mut Outbox) {
        self.by_kind.insert(subject.kind.clone(), subject.id);
        out.store(StoreChange::PutSubject(subject.clone()));
        self.subjects.insert(subject.id, subject);
    }

    /// Tells whether there is room to remember people who come to the pages alone: [`MAX_VISITORS`], where a provider lets in the world.
    pub(crate) fn has_room_for_people(&self) -> bool {
        self.subjects.len() < MAX_VISITORS
    }

    /// Says why a subject may not take part, if it may not: an administrator disabled it, or its provider keeps it out.
    pub(crate) fn barred<'a>(&'a self, subject: &'a SubjectRecord) -> Option<&'a str> {
        subject.disabled.as_deref().or_else(|| self.withdrawn.get(&subject.id).map(String::as_str))
    }

    /// Notes that a provider keeps a subject out, or does not any more.
    pub(crate) fn set_withdrawn(&mut self, id: SubjectId, reason: Option<String>) {
        match reason {
            Some(reason) => drop(self.withdrawn.insert(id, reason)),
            None => drop(self.withdrawn.remove(&id)),
        }
    }

    /// Lists whom their provider keeps out, and why.
    pub(crate) fn withdrawn_people(&self) -> Vec<(SubjectId, String)> {
        self.withdrawn
            .iter()
            .map(|(id, reason)| (*id, reason.clone()))
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .collect()
    }

    /// Returns a subject's name for people.
    pub(crate) fn subject_name(&self, id: SubjectId) -> String {
        self.subjects.get(&id).map_or_else(|| id.to_string(), |subject| subject.name.clone())
    }

    // --- devices

    pub(crate) fn device(&self, id: DeviceId) -> Option<&DeviceRecord> {
        self.devices.get(&id)
    }

    pub(crate) fn devices(&self) -> impl Iterator<Item = &DeviceRecord> {
        self.devices.values().map(|device| self.walk(device))
    }

    /// Lists the devices of one subject.
    pub(crate) fn devices_of(&self, owner: SubjectId) -> impl Iterator<Item = &DeviceRecord> {
        self.devices_of
            .get(&owner)
            .into_iter()
            .flatten()
            .filter_map(|id| self.devices.get(id))
            .map(|device| self.walk(device))
    }

    pub(crate) fn device_by_key(&self, key: &DevicePublicKey) -> Option<&DeviceRecord> {
        self.by_device_key.get(key).and_then(|id| self.devices.get(id))
    }

    pub(crate) fn device_by_name(&self, name: &MachineName) -> Option<&DeviceRecord> {
        self.by_name.get(name).and_then(|id| self.devices.get(id))
    }

    pub(crate) fn device_by_wireguard_key(&self, key: &WireGuardPublicKey) -> Option<DeviceId> {
        self.by_wireguard_key.get(key).copied()
    }

    /// Returns a machine's name for people.
    pub(crate) fn machine_name(&self, id: DeviceId) -> MachineName {
        match self.devices.get(&id) {
            Some(device) => device.name.clone(),
            None => id.to_string().parse().expect("an identifier is a name"),
        }
    }

    /// Tells whether a device belongs to a service, which cannot sign in.
    pub(crate) fn is_of_service(&self, device: DeviceId) -> bool {
        let owner = self.devices.get(&device).and_then(|device| self.subjects.get(&device.owner));
        owner.is_some_and(|owner| matches!(owner.kind, SubjectKind::Service { .. }))
    }

    fn index_device(&mut self, device: DeviceRecord) {
        if let Some(old) = self.devices.remove(&device.id) {
            self.unindex_device(&old);
        }
        if let Some(key) = device.key {
            self.by_device_key.insert(key, device.id);
        }
        self.by_name.insert(device.name.clone(), device.id);
        for key in &device.wireguard_keys {
            self.by_wireguard_key.insert(*key, device.id);
        }
        self.v4_taken.insert(device.addresses.v4);
        self.v6_taken.insert(device.addresses.v6);
        self.devices_of.entry(device.owner).or_default().insert(device.id);
        self.devices.insert(device.id, device);
    }

    fn unindex_device(&mut self, device: &DeviceRecord) {
        if let Some(of_owner) = self.devices_of.get_mut(&device.owner) {
            of_owner.remove(&device.id);
            if of_owner.is_empty() {
                self.devices_of.remove(&device.owner);
            }
        }
        if let Some(key) = device.key {
            self.by_device_key.remove(&key);
        }
        if self.by_name.get(&device.name) == Some(&device.id) {
            self.by_name.remove(&device.name);
        }
        for key in &device.wireguard_keys {
            self.by_wireguard_key.remove(key);
        }
    }

    pub(crate) fn put_device(&mut self, device: DeviceRecord, out: &mut Outbox) {
        out.store(StoreChange::PutDevice(device.clone()));
        self.index_device(device);
    }

    /// Changes a device in place; nothing happens if there is none.
    pub(crate) fn change_device(&mut self, id: DeviceId, out: &mut Outbox, change: impl FnOnce(&mut DeviceRecord)) {
        if let Some(mut device) = self.devices.get(&id).cloned() {
            change(&mut device);
            if Some(&device) != self.devices.get(&id) {
                self.put_device(device, out);
            }
        }
    }

    /// Forgets a device; its addresses are held back until `hold_until`.
    pub(crate) fn delete_device(&mut self, id: DeviceId, hold_until: WallTime, out: &mut Outbox) {
        if let Some(device) = self.devices.remove(&id) {
            self.unindex_device(&device);
            self.ended_on.remove(&id);
            self.browsers_of.remove(&id);
            for (at, session) in self.ended_of.remove(&id).unwrap_or_default() {
                self.ended.remove(&(at, session, id));
                out.store(StoreChange::DeleteSession(session));
            }
            self.forget_restraints(Restrained::Device(id), out);
            out.store(StoreChange::DeleteDevice(id));
            let hold = HoldRecord { addresses: device.addresses, until: hold_until };
            out.store(StoreChange::PutHold(hold.clone()));
            self.holds.push(hold);
        }
    }

    /// Finds a name that no device has: the one asked for, or with the first free number behind it.
    pub(crate) fn free_name(&self, wanted: &MachineName) -> MachineName {
        let lower = wanted.as_str().to_ascii_lowercase();
        let candidates = std::iter::once(lower.clone()).chain((2u32..).map(|n| {
            let suffix = format!("-{n}");
            let stem: String = lower.chars().take(MachineName::MAX - suffix.len()).collect();
            format!("{stem}{suffix}")
        }));
        candidates
            .filter_map(|name| name.parse::<MachineName>().ok())
            .find(|name| !self.by_name.contains_key(name))
            .expect("there are more numbers than devices")
    }

    /// Tells whether a device may hold a lease and be a destination: nothing is held against it or its owner, and a
    /// person is signed in if it belongs to one.
    pub(crate) fn may_take_part(&self, device: &DeviceRecord) -> bool {
        self.quarantine_on(device).is_none() && self.would_take_part(device)
    }

    /// Tells whether a device might take part if it were not in quarantine: for explanations, and for its keys, which have to be
    /// right when it is released.
    pub(crate) fn would_take_part(&self, device: &DeviceRecord) -> bool {
        let good = match device.standing {
            Standing::Good => true,
            Standing::Revoked { .. } => false,
        };
        let owner = self.subjects.get(&device.owner).filter(|owner| self.barred(owner).is_none());
        good && match owner.map(|owner| &owner.kind) {
            None => false,
            Some(SubjectKind::Service { .. }) => {
                let signed_in = device.platform.is_none() || self.session_of.contains_key(&device.id);
                device.kind == DeviceKind::Agent && signed_in
            }
            Some(SubjectKind::Person { .. }) => self.session_of.contains_key(&device.id),
        }
    }

    // --- login sessions

    pub(crate) fn session(&self, id: SessionId) -> Option<&SessionRecord> {
        self.sessions.get(&id)
    }

    pub(crate) fn sessions(&self) -> impl Iterator<Item = &SessionRecord> {
        self.sessions.values().map(|session| self.walk(session))
    }

    pub(crate) fn session_on(&self, device: DeviceId) -> Option<&SessionRecord> {
        self.session_of.get(&device).and_then(|id| self.sessions.get(id))
    }

    pub(crate) fn put_session(&mut self, session: SessionRecord, out: &mut Outbox) {
        out.store(StoreChange::PutSession(session.clone()));
        self.note_browser(&session);
        self.session_of.insert(session.device, session.id);
        self.sessions.insert(session.id, session);
    }

    fn note_browser(&mut self, session: &SessionRecord) {
        let Some(browser) = session.vouched.filter(|_| self.devices.contains_key(&session.device)) else { return };
        let of_device = self.browsers_of.entry(session.device).or_default();
        of_device.insert((session.started, browser));
        if of_device.len() > MAX_BROWSERS {
            of_device.pop_first();
        }
    }

    /// Lists the browsers' login sessions in which somebody was signed in on a device.
    pub(crate) fn browsers_of(&self, device: DeviceId) -> impl Iterator<Item = SessionId> {
        self.browsers_of.get(&device).into_iter().flatten().map(|(_, browser)| *browser)
    }

    /// Returns how the last login session on a device ended, if none is open there now.
    pub(crate) fn ended_on(&self, device: DeviceId) -> Option<&SessionEnd> {
        self.ended_on.get(&device).filter(|_| !self.session_of.contains_key(&device))
    }

    fn remember_end(&mut self, device: DeviceId, end: SessionEnd) {
        if self.devices.contains_key(&device) && self.ended_on.get(&device).is_none_or(|known| known.at <= end.at) {
            self.ended_on.insert(device, end);
        }
    }

    /// Ends an open login session and returns it.
    pub(crate) fn end_session(&mut self, id: SessionId, end: SessionEnd, out: &mut Outbox) -> Option<SessionRecord> {
        let mut session = self.sessions.remove(&id)?;
        if self.session_of.get(&session.device) == Some(&id) {
            self.session_of.remove(&session.device);
        }
        self.remember_end(session.device, end.clone());
        self.keep_ended(end.at, id, session.device);
        session.ended = Some(end);
        out.store(StoreChange::PutSession(session.clone()));
        Some(session)
    }

    fn keep_ended(&mut self, at: WallTime, session: SessionId, device: DeviceId) {
        self.ended.insert((at, session, device));
        self.ended_of.entry(device).or_default().push((at, session));
    }

    /// Forgets login sessions that ended long ago: the audit log has them for as long as it is kept.
    fn forget_ended(&mut self, now: WallTime, out: &mut Outbox) {
        for _ in 0..FORGOTTEN_AT_ONCE {
            let old = self.ended.first().filter(|(at, ..)| at.saturating_add(KEPT_AFTER_END) <= now);
            let Some((at, session, device)) = old.copied() else { return };
            self.ended.remove(&(at, session, device));
            if let Some(of_device) = self.ended_of.get_mut(&device) {
                of_device.retain(|(_, known)| *known != session);
                if of_device.is_empty() {
                    self.ended_of.remove(&device);
                }
            }
            out.store(StoreChange::DeleteSession(session));
        }
    }

    // --- tokens

    pub(crate) fn token(&self, hash: TokenHash) -> Option<&TokenRecord> {
        self.tokens.get(&hash)
    }

    pub(crate) fn tokens(&self) -> impl Iterator<Item = &TokenRecord> {
        self.tokens.values()
    }

    pub(crate) fn put_token(&mut self, token: TokenRecord, out: &mut Outbox) {
        out.store(StoreChange::PutToken(token.clone()));
        self.tokens.insert(token.hash, token);
    }

    pub(crate) fn delete_token(&mut self, hash: TokenHash, out: &mut Outbox) -> Option<TokenRecord> {
        let token = self.tokens.remove(&hash)?;
        out.store(StoreChange::DeleteToken(hash));
        Some(token)
    }

    /// Takes one use of a token away: all in memory, by the one actor that owns the core, so that no two machines can
    /// use the last one; durable before the machine is told.
    pub(crate) fn use_token(&mut self, hash: TokenHash, now: WallTime, out: &mut Outbox) {
        if let Some(token) = self.tokens.get_mut(&hash) {
            token.last_used = Some(now);
            token.uses_left = token.uses_left.saturating_sub(1);
            if token.uses_left == 0 {
                self.delete_token(hash, out);
            } else {
                out.store(StoreChange::PutToken(token.clone()));
            }
        }
    }

    // --- revoked rules

    pub(crate) fn revoked_rules(&self) -> &BTreeMap<RuleName, RevokedRule> {
        &self.revoked_rules
    }

    pub(crate) fn revoke_rule(&mut self, rule: RevokedRule, out: &mut Outbox) {
        out.store(StoreChange::PutRevokedRule(rule.clone()));
        self.revoked_rules.insert(rule.rule.clone(), rule);
    }

    pub(crate) fn restore_rule(&mut self, rule: &RuleName, out: &mut Outbox) -> bool {
        let revoked = self.revoked_rules.remove(rule).is_some();
        if revoked {
            out.store(StoreChange::DeleteRevokedRule(rule.clone()));
        }
        revoked
    }

    // --- addresses

    /// Forgets what has expired by the wall clock: holds, tokens and login sessions that ended long ago.
    pub(crate) fn sweep(&mut self, now: WallTime, out: &mut Outbox) {
        self.forget_ended(now, out);
        let (over, holds) = std::mem::take(&mut self.holds).into_iter().partition(|hold| hold.until <= now);
        self.holds = holds;
        for hold in over {
            self.v4_taken.remove(&hold.addresses.v4);
            self.v6_taken.remove(&hold.addresses.v6);
            out.store(StoreChange::DeleteHold(hold.addresses));
        }
        let expired: Vec<TokenHash> = self.tokens.values().filter(|t| t.expires <= now).map(|t| t.hash).collect();
        for hash in expired {
            self.delete_token(hash, out);
        }
    }

    /// Finds addresses that no device has and that are not on hold: from a random place on, so that the order of
    /// addresses tells nothing. `None` if the IPv4 pool has none left.
    pub(crate) fn free_addresses(&self, v6: Ipv6Net, v4: Ipv4Net, random: &mut [u8; 16]) -> Option<Addresses> {
        let start = u64::from_be_bytes(random[..8].try_into().expect("eight bytes"));
        let size = 1u64 << (32 - v4.prefix_len());
        // The first and the last address of a network have meanings of their own (RFC 1122 §3.2.1.3).
        let (first, count) = if size > 2 { (1, size - 2) } else { (0, size) };
        let base = u32::from(v4.network());
        let v4 = (0..count)
            .map(|i| first + (start % count + i) % count)
            .map(|offset| Ipv4Addr::from(base + u32::try_from(offset).expect("an offset within the network")))
            .find(|address| !self.v4_taken.contains(address))?;
        let mut host = u64::from_be_bytes(random[8..].try_into().expect("eight bytes"));
        let base = u128::from(v6.network());
        loop {
            let address = Ipv6Addr::from(base | u128::from(host));
            if host > 0xff && !self.v6_taken.contains(&address) {
                return Some(Addresses { v6: address, v4 });
            }
            host = host.wrapping_add(0x9e37_79b9_7f4a_7c15);
        }
    }
}
