//! What the controller's effects stored: a plain map from names to records, committed in whole transactions.

use std::collections::BTreeMap;

use postern_common::{
    id::{DeviceId, LeaseId, RuleName, SessionId, SubjectId},
    key::WireGuardPublicKey,
};
use postern_controller::records::{
    Addresses, ClockRecord, DeviceRecord, HoldRecord, LeaseRecord, Loaded, Meta, PairRecord, PostureRecord,
    QuarantineRecord, Quarantined, RestraintRecord, RevokedRule, SessionRecord, StoreChange, SubjectRecord, TokenHash,
    TokenRecord,
};

/// The durable records.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) meta: Meta,
    clock: Option<ClockRecord>,
    pub(crate) subjects: BTreeMap<SubjectId, SubjectRecord>,
    pub(crate) devices: BTreeMap<DeviceId, DeviceRecord>,
    pub(crate) sessions: BTreeMap<SessionId, SessionRecord>,
    leases: BTreeMap<LeaseId, LeaseRecord>,
    tokens: BTreeMap<TokenHash, TokenRecord>,
    pairs: BTreeMap<(WireGuardPublicKey, WireGuardPublicKey), PairRecord>,
    holds: BTreeMap<Addresses, HoldRecord>,
    pub(crate) revoked_rules: BTreeMap<RuleName, RevokedRule>,
    pub(crate) quarantines: BTreeMap<Quarantined, QuarantineRecord>,
    postures: BTreeMap<DeviceId, PostureRecord>,
    /// By what they restrain, as the store names them.
    pub(crate) restraints: BTreeMap<String, RestraintRecord>,
}

/// Whether a change can alter who may reach what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Matters {
    Yes,
    No,
}

impl Disk {
    /// Makes one change durable.
    pub(crate) fn apply(&mut self, change: StoreChange) -> Matters {
        let ends = |pair: &PairRecord| (pair.first.key.min(pair.second.key), pair.first.key.max(pair.second.key));
        match change {
            StoreChange::PutMeta(meta) => self.meta = meta,
            StoreChange::PutSubject(subject) => drop(self.subjects.insert(subject.id, subject)),
            StoreChange::PutDevice(device) => drop(self.devices.insert(device.id, device)),
            StoreChange::DeleteDevice(id) => drop(self.devices.remove(&id)),
            StoreChange::PutSession(session) => drop(self.sessions.insert(session.id, session)),
            StoreChange::DeleteSession(id) => drop(self.sessions.remove(&id)),
            StoreChange::PutRevokedRule(rule) => drop(self.revoked_rules.insert(rule.rule.clone(), rule)),
            StoreChange::DeleteRevokedRule(rule) => drop(self.revoked_rules.remove(&rule)),
            StoreChange::PutQuarantine(held) => drop(self.quarantines.insert(held.target.clone(), held)),
            StoreChange::DeleteQuarantine(target) => drop(self.quarantines.remove(&target)),
            StoreChange::PutPosture(posture) => drop(self.postures.insert(posture.device, posture)),
            StoreChange::DeletePosture(device) => drop(self.postures.remove(&device)),
            StoreChange::PutRestraint(record) => drop(self.restraints.insert(record.name(), record)),
            StoreChange::DeleteRestraint(record) => drop(self.restraints.remove(&record.name())),
            StoreChange::PutLease(lease) => {
                self.leases.insert(lease.id, lease);
                return Matters::No;
            }
            StoreChange::DeleteLease(id) => {
                self.leases.remove(&id);
                return Matters::No;
            }
            StoreChange::PutToken(token) => {
                self.tokens.insert(token.hash, token);
                return Matters::No;
            }
            StoreChange::DeleteToken(hash) => {
                self.tokens.remove(&hash);
                return Matters::No;
            }
            StoreChange::PutPair(pair) => {
                self.pairs.insert(ends(&pair), pair);
                return Matters::No;
            }
            StoreChange::DeletePair(name) => {
                self.pairs.retain(|_, pair| pair.name() != name);
                return Matters::No;
            }
            StoreChange::PutClock(clock) => {
                self.clock = Some(clock);
                return Matters::No;
            }
            StoreChange::PutBreakGlass(_)
            | StoreChange::DeleteBreakGlass(_)
            | StoreChange::PutAlert(_)
            | StoreChange::PutEventStream(_)
            | StoreChange::PutSeenEvent(_)
            | StoreChange::DeleteSeenEvent(_)
            | StoreChange::PutShutDoor(_)
            | StoreChange::DeleteShutDoor(_)
            | StoreChange::PutScimToken(_)
            | StoreChange::DeleteScimToken(_)
            | StoreChange::PutScimUser(_)
            | StoreChange::DeleteScimUser(_)
            | StoreChange::PutScimGroup(_)
            | StoreChange::DeleteScimGroup(_)
            | StoreChange::ScimMembers { .. }
            | StoreChange::PutScimGone(_)
            | StoreChange::DeleteScimGone(_)
            | StoreChange::PutTokenUse(_)
            | StoreChange::DeleteTokenUse(_)
            | StoreChange::PutHabits(_)
            | StoreChange::PutRequest(_)
            | StoreChange::DeleteRequest(_) => {
                return Matters::No;
            } // nobody asks in here
            StoreChange::PutHold(hold) => {
                self.holds.insert(hold.addresses, hold);
                return Matters::No;
            }
            StoreChange::DeleteHold(addresses) => {
                self.holds.remove(&addresses);
                return Matters::No;
            }
        }
        Matters::Yes
    }

    /// Reads everything, as the store does at a start.
    pub(crate) fn load(&self) -> Loaded {
        Loaded {
            meta: self.meta.clone(),
            clock: self.clock,
            subjects: self.subjects.values().cloned().collect(),
            devices: self.devices.values().cloned().collect(),
            sessions: self.sessions.values().cloned().collect(),
            leases: self.leases.values().cloned().collect(),
            tokens: self.tokens.values().cloned().collect(),
            pairs: self.pairs.values().cloned().collect(),
            holds: self.holds.values().cloned().collect(),
            revoked_rules: self.revoked_rules.values().cloned().collect(),
            postures: self.postures.values().cloned().collect(),
            quarantines: self.quarantines.values().cloned().collect(),
            requests: vec![],
            break_glass: vec![],
            restraints: self.restraints.values().cloned().collect(),
            token_uses: vec![],
            habits: vec![],
            event_streams: vec![],
            seen_events: vec![],
            shut_doors: vec![],
            // nobody provisions in here
            scim_tokens: vec![],
            scim_users: vec![],
            scim_groups: vec![],
            scim_members: vec![],
            scim_gone: vec![],
        }
    }
}
