//! Deciding, renewing and ending leases, and what that changes between devices.

use std::{
    collections::{BTreeSet, btree_map::Entry},
    sync::Arc,
};

use postern_common::{
    grant::Mode,
    id::{DeviceId, LeaseId},
    key::PresharedKey,
    limit::ScanLimit,
    policy::{Entitlement, RequestContext, StepUp},
    time::{Monotonic, Now},
};

use super::{
    core::{Core, IDLE_LEASE},
    peering::{Peering, PeeringName, can_learn},
    timers::Due,
};
use crate::{
    decision::{Extend, Granted, Lease, Permissions, grant, held_before, latest, narrows},
    records::{
        AuditEvent, DecidedAccess, DeviceKind, DeviceRecord, LeaseEnd, LeaseRecord, PairEnd, PairRecord, Restrained,
        StoreChange,
    },
};

/// What of a grant people care to read in the audit log, without its times.
fn same_access(one: &[Granted], other: &[Granted]) -> bool {
    let key = |granted: &Granted| {
        let Entitlement { rule, resource, nodes, services, mode, .. } = granted.entitlement.clone();
        (rule, resource, nodes, services, mode)
    };
    one.len() == other.len() && one.iter().zip(other).all(|(a, b)| key(a) == key(b))
}

/// Whether a change can wait for the node's acknowledgement of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// It opens, renews or informs: it waits.
    Opens,
    /// It closes something: it does not.
    Closes,
}

/// Who is told first when one event concerns several nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Destinations.
    First,
    /// Sources.
    Second,
}

/// What policy says of one device. The context is made once for a decision.
#[derive(Debug, Default)]
pub(super) struct Evaluation {
    pub(super) entitlements: Vec<Entitlement>,
    pub(super) step_ups: Vec<StepUp>,
    pub(super) context: Option<RequestContext>,
}

impl Core {
    /// Evaluates policy for one device. What rules gives it that an administrator revoked is left out.
    pub(super) fn evaluate(&mut self, device: &DeviceRecord, now: Now) -> Evaluation {
        self.counters.decisions += 1;
        let Some(context) = self.context_of(device, now) else { return Evaluation::default() };
        let (entitlements, step_ups) = self.evaluate_in(device, &context, now);
        Evaluation { entitlements, step_ups, context: Some(context) }
    }

    fn evaluate_in(
        &self,
        device: &DeviceRecord,
        context: &RequestContext,
        now: Now,
    ) -> (Vec<Entitlement>, Vec<StepUp>) {
        let entitlements = self.policy.entitlements(context, &self.targets);
        let mut entitlements = self.as_seen(device, context, entitlements);
        let mut step_ups = match device.kind {
            DeviceKind::Agent => self.policy.step_ups(context, &self.targets),
            DeviceKind::StockClient => vec![],
        };
        let revoked = self.registry.revoked_rules();
        step_ups.retain(|step_up| !revoked.contains_key(&step_up.rule));
        entitlements.retain(|entitlement| !revoked.contains_key(&entitlement.rule));
        entitlements.extend(self.broken_glass(device, now));
        if self.key_denies(device, now.wall).is_some() {
            (entitlements, step_ups) = (vec![], vec![]);
        }
        entitlements = self.without_quarantined(&self.policy, &self.targets, entitlements);
        match device.kind {
            DeviceKind::Agent => {}
            DeviceKind::StockClient => entitlements.retain(|entitlement| entitlement.stock_clients),
        }
        let step_ups = self.offers_not_held(step_ups);
        (entitlements, step_ups)
    }

    /// Decides one device's lease: issues it, renews it, or takes away what does not hold any more.
    pub(super) fn decide(&mut self, id: DeviceId, extend: Extend, now: Now) {
        let Some(device) = self.registry.device(id).cloned() else { return };
        if !self.registry.may_take_part(&device) {
            let disabled =
                self.registry.subject(device.owner).and_then(|owner| self.registry.barred(owner)).map(str::to_owned);
            let reason = match (disabled, self.registry.quarantine_on(&device)) {
                (Some(reason), _) => LeaseEnd::Disabled { reason },
                (None, Some(held)) => LeaseEnd::Quarantined { reason: held.reason.clone() },
                (None, None) => LeaseEnd::Device { reason: "the machine may not take part".into() },
            };
            self.end_lease(id, reason, now);
            return;
        }
        let session = self.registry.session_on(id).map(|session| (session.id, session.expires));
        let session_until = session.map(|(_, expires)| expires);
        // A device that is away gets nothing that it did not have the time for: changes of policy, which can come as often
        // as they like, must not keep its doors open. It is decided anew when it is back.
        let away = extend == Extend::No && !self.can_renew(id);
        let of_session = |lease: &Lease| lease.record.session == session.map(|(session, _)| session);
        if away && !self.leases.get(&id).is_some_and(of_session) {
            return;
        }
        let Evaluation { entitlements, step_ups, context } = self.evaluate(&device, now);
        let confirmed = self.not_by_old_facts(&device, context.as_ref(), now);
        let held = self.leases.remove(&id);
        let (mut lease, issued) = match held {
            Some(lease) if of_session(&lease) => (lease, false),
            other => (self.new_lease(&device, other, now), true),
        };
        let extend = if issued { Extend::Yes } else { extend };
        let record = &lease.record;
        let since = |part: &Entitlement| match away {
            true => record.since(&part.rule, &part.resource).min(now.wall),
            false => now.wall,
        };
        // Facts from before this stream keep what is held for as long as it was given. They open nothing and give no more time.
        let of = |part: &Entitlement| (part.rule.clone(), part.resource.clone());
        let is_known = |known: &Entitlement, part: &Entitlement, node: &DeviceId| {
            of(known) == of(part)
                && known.nodes.contains(node)
                && part.services.iter().all(|service| known.services.contains(service))
        };
        let unconfirmed = |part: &Entitlement| {
            confirmed.as_ref().is_some_and(|confirmed| {
                part.nodes.iter().any(|node| !confirmed.iter().any(|known| is_known(known, part, node)))
            })
        };
        let before = |part: &Entitlement| held_before(&lease.granted, part).filter(|held| !held.until.has_passed(now));
        let mut parts = Vec::with_capacity(entitlements.len());
        for mut part in entitlements {
            if !unconfirmed(&part) {
                parts.push(part);
                continue;
            }
            // What it gives whatever the machine said of itself.
            let known = confirmed.iter().flatten().filter(|known| of(known) == of(&part)).map(|known| {
                let nodes = known.nodes.iter().copied().filter(|node| part.nodes.contains(node)).collect();
                Entitlement { nodes, ..known.clone() }
            });
            let known: Vec<Entitlement> = known.collect();
            if let Some(Granted { entitlement: held, .. }) = before(&part) {
                part.nodes.retain(|node| held.nodes.contains(node));
                part.services.retain(|service| held.services.contains(service));
            } else {
                part.nodes.clear();
            }
            match part.nodes.is_empty() || part.services.is_empty() {
                true => parts.extend(known),
                false => parts.push(part),
            }
        }
        parts.retain(|part| !part.nodes.is_empty());
        let entitlements = parts;
        let mut granted = grant(entitlements, &lease.granted, extend, self.terms(), session_until, since, now);
        for part in granted.iter_mut().filter(|part| unconfirmed(&part.entitlement)) {
            if let Some(before) = before(&part.entitlement) {
                (part.until, part.since) = (part.until.min(before.until), part.since.min(before.since));
            }
        }
        granted.retain(|part| !part.until.has_passed(now));
        if away {
            granted.iter_mut().for_each(|part| part.until = part.until.min(lease.deadline));
            granted.retain(|part| !part.until.has_passed(now));
        }
        let changed = issued || !same_access(&granted, &lease.granted);
        lease.granted = granted;
        lease.step_ups = step_ups;
        let draw = self.draw_u32();
        let renew_at = lease.renew_at;
        lease.schedule_renewal(IDLE_LEASE, draw, now);
        let last = lease.last_deadline(IDLE_LEASE, session_until, now);
        match extend {
            Extend::Yes => {
                lease.record.renewed = now.wall;
                lease.deadline = last;
            }
            Extend::No => {
                lease.renew_at = renew_at.min(lease.renew_at);
                if !away && !lease.granted.is_empty() && last.monotonic > lease.deadline.monotonic {
                    lease.deadline = last;
                }
            }
        }
        let until = lease.deadline.wall;
        let later = lease.later_parts();
        if extend == Extend::Yes || lease.record.until != until || lease.record.later != later {
            (lease.record.until, lease.record.later) = (until, later);
            self.out.store(StoreChange::PutLease(lease.record.clone()));
        }
        self.audit_decision(&device, &lease, issued, changed, extend);
        let scan = self.scan_limit_of(&device, context.as_ref());
        self.open(lease, scan, now);
        self.ask_for_posture(id, context, now);
    }

    /// Returns what policy gives a machine whatever it said of itself before its stream began, while it has said nothing since; nothing
    /// if it has, or if nobody asks.
    fn not_by_old_facts(
        &self,
        device: &DeviceRecord,
        context: Option<&RequestContext>,
        now: Now,
    ) -> Option<Vec<Entitlement>> {
        self.report_within()?;
        self.nodes.get(&device.id).filter(|node| node.posture_heard.is_none())?;
        let context = RequestContext { posture: None, ..context?.clone() };
        Some(self.evaluate_in(device, &context, now).0)
    }

    fn new_lease(&mut self, device: &DeviceRecord, before: Option<Lease>, now: Now) -> Lease {
        let mut destinations = Vec::new();
        if let Some(before) = before {
            // Another login session took over on this device: its lease goes, the doors that both open stay.
            self.out.store(StoreChange::DeleteLease(before.record.id));
            let why = LeaseEnd::SessionEnded { reason: "replaced by a newer sign-in".into() };
            let LeaseRecord { id: lease, subject, device, .. } = before.record;
            self.out.audit(AuditEvent::LeaseEnded { lease, subject, device, why });
            destinations = before.destinations;
        }
        let record = LeaseRecord {
            id: LeaseId::from_bytes(self.draw()),
            device: device.id,
            subject: device.owner,
            session: self.registry.session_on(device.id).map(|session| session.id),
            issued: now.wall,
            renewed: now.wall,
            until: now.wall,
            later: vec![],
        };
        let deadline = crate::decision::deadline(now.wall, now);
        Lease {
            record,
            deadline,
            renew_at: Monotonic::NEVER,
            granted: vec![],
            step_ups: vec![],
            offered: vec![],
            destinations,
            scan: None,
        }
    }

    fn audit_decision(&mut self, device: &DeviceRecord, lease: &Lease, issued: bool, changed: bool, extend: Extend) {
        let LeaseRecord { id, subject, session, until, .. } = lease.record;
        let subject_name = self.registry.subject_name(subject);
        if issued {
            let subject_name = subject_name.clone();
            let event = AuditEvent::LeaseIssued { lease: id, subject, subject_name, device: device.id, session, until };
            self.out.audit(event);
        } else if extend == Extend::Yes {
            self.out.audit(AuditEvent::LeaseRenewed { lease: id, device: device.id, until });
        }
        if changed {
            let allowed = lease.granted.iter().map(|Granted { entitlement, .. }| DecidedAccess {
                rule: entitlement.rule.clone(),
                resource: entitlement.resource.clone(),
                valid_until: Some(entitlement.valid_until)
                    .filter(|until| *until < postern_common::time::WallTime::NEVER),
                would_deny: match &entitlement.mode {
                    Mode::Enforce => None,
                    Mode::Monitor { would_deny } => Some(would_deny.clone()),
                },
            });
            self.out.audit(AuditEvent::Decided {
                subject,
                subject_name,
                device: device.id,
                machine: device.name.clone(),
                lease: id,
                policy_revision: self.meta.policy_revision,
                allowed: allowed.collect(),
            });
        }
    }

    /// Puts a lease in force: changes what its device may open on each node, and says when to look again.
    fn open(&mut self, mut lease: Lease, scan: Option<ScanLimit>, now: Now) {
        let id = lease.record.device;
        let restraints = self.registry.restraints_of(Restrained::Subject(lease.record.subject));
        let wanted = lease.by_destination(restraints, now);
        let before = std::mem::replace(&mut lease.destinations, wanted.keys().copied().collect());
        let concerned: BTreeSet<DeviceId> = before.into_iter().chain(wanted.keys().copied()).collect();
        for destination in concerned {
            let permissions = wanted.get(&destination).cloned().unwrap_or_else(|| Arc::from([]));
            self.set_edge(id, destination, permissions, now);
        }
        if lease.scan != scan {
            lease.scan = scan;
            for destination in &lease.destinations {
                self.mark(*destination, id, Urgency::Opens, Turn::First);
            }
            if let Some(node) = self.nodes.get_mut(&id) {
                node.own_dirty = true;
                self.flush_then.push_back(id);
            }
        }
        if lease.step_ups != lease.offered {
            lease.offered.clone_from(&lease.step_ups);
            if let Some(node) = self.nodes.get_mut(&id) {
                node.own_dirty = true;
                self.flush_then.push_back(id);
            }
        }
        let draw = self.draw_u32();
        let at = lease.next_look(self.can_renew(id), draw, now);
        self.timers.set(Due::Lease(id), at);
        self.leases_of.entry(lease.record.subject).or_default().insert(id);
        self.leases.insert(id, lease);
    }

    /// Tells whether a lease can be given more time: its device has a stream, or never has one.
    fn can_renew(&self, device: DeviceId) -> bool {
        self.nodes.contains_key(&device)
            || self.registry.device(device).is_some_and(|device| device.kind == DeviceKind::StockClient)
    }

    /// Looks at a lease when it is due.
    pub(super) fn look_at_lease(&mut self, id: DeviceId, now: Now) {
        // A wall clock that was set forward ends login sessions here: until the sweep comes, a lease of one would end as
        // soon as it is renewed, and be due again in the same moment, without an end.
        if self.registry.session_on(id).is_some_and(|session| session.expires <= now.wall) {
            return self.end_overtaken_sessions(now);
        }
        let Some(lease) = self.leases.get(&id) else { return };
        if self.can_renew(id) {
            let extend =
                if lease.wants_renewal(now) || lease.deadline.has_passed(now) { Extend::Yes } else { Extend::No };
            self.decide(id, extend, now);
        } else if lease.deadline.has_passed(now) {
            self.end_lease(id, LeaseEnd::Expired, now);
        } else if let Some(mut lease) = self.leases.remove(&id) {
            lease.granted.retain(|granted| !granted.until.has_passed(now));
            let scan = lease.scan.clone();
            self.open(lease, scan, now);
        }
    }

    /// Ends a lease: everything that it opened closes.
    pub(super) fn end_lease(&mut self, device: DeviceId, why: LeaseEnd, now: Now) {
        let Some(lease) = self.leases.remove(&device) else { return };
        self.timers.cancel(Due::Lease(device));
        self.out.store(StoreChange::DeleteLease(lease.record.id));
        let LeaseRecord { id: lease_id, subject, .. } = lease.record;
        if let Some(devices) = self.leases_of.get_mut(&subject) {
            devices.remove(&device);
            if devices.is_empty() {
                self.leases_of.remove(&subject);
            }
        }
        self.out.audit(AuditEvent::LeaseEnded { lease: lease_id, subject, device, why });
        for destination in lease.destinations {
            self.set_edge(device, destination, Arc::from([]), now);
        }
    }

    /// Changes what `source` may open on `destination`, and marks both for whatever they have to be told.
    fn set_edge(&mut self, source: DeviceId, destination: DeviceId, wanted: Permissions, now: Now) {
        let name = PeeringName::of(source, destination);
        let peering = match self.peerings.entry(name) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if wanted.is_empty() => return,
            Entry::Vacant(new) => {
                self.peers_of.entry(source).or_default().insert(destination);
                self.peers_of.entry(destination).or_default().insert(source);
                new.insert(Peering::new(name))
            }
        };
        let before = &peering.edge_to(destination).wanted;
        if *before == wanted {
            return;
        }
        let closes = narrows(before, &wanted).then(|| latest(before)).flatten();
        let pairs = peering.want(destination, wanted);
        let over = peering.is_over();
        if !over {
            pairs.into_iter().for_each(|pair| self.out.store(StoreChange::PutPair(pair)));
        }
        let urgency = if closes.is_some() { Urgency::Closes } else { Urgency::Opens };
        self.mark(destination, source, urgency, Turn::First);
        self.mark(source, destination, urgency, Turn::Second);
        // What had run out closes nothing: both ends have ended it by themselves.
        if let Some((monotonic, wall)) = closes.filter(|(monotonic, _)| *monotonic > now.monotonic) {
            self.revocations.closes(destination, monotonic, wall);
            self.revocations.closes(source, monotonic, wall);
        }
        if over {
            self.end_peering(name, now);
        } else {
            self.pair_newest(destination, source);
        }
    }

    /// Makes the pair of the two newest keys if there is none; `first` learns first.
    pub(super) fn pair_newest(&mut self, first: DeviceId, second: DeviceId) {
        let newest = |id: DeviceId| {
            let key = *self.registry.device(id)?.wireguard_keys.first()?;
            Some(PairEnd { device: id, key })
        };
        let (Some(first_end), Some(second_end)) = (newest(first), newest(second)) else { return };
        let stock =
            [first, second].iter().any(|id| self.registry.device(*id).is_some_and(|device| !can_learn(device.kind)));
        let Some(peering) = self.peerings.get(&PeeringName::of(first, second)) else { return };
        if stock && !peering.pairs.is_empty() {
            return; // its configuration names one key of the node, and that one stays
        }
        let preshared = PresharedKey::from_bytes(self.draw());
        let Some(peering) = self.peerings.get_mut(&PeeringName::of(first, second)) else { return };
        if let Some(pair) = peering.add_pair(first_end, second_end, preshared) {
            self.out.store(StoreChange::PutPair(pair.clone()));
            self.mark(first, second, Urgency::Opens, Turn::First);
            self.mark(second, first, Urgency::Opens, Turn::Second);
        }
    }

    fn end_peering(&mut self, name: PeeringName, now: Now) {
        let Some(peering) = self.peerings.remove(&name) else { return };
        self.timers.cancel(Due::Retire(name.0, name.1));
        for pair in &peering.pairs {
            self.out.store(StoreChange::DeletePair(pair.name()));
        }
        for (device, other) in [(name.0, name.1), (name.1, name.0)] {
            if let Some(peers) = self.peers_of.get_mut(&device) {
                peers.remove(&other);
                if peers.is_empty() {
                    self.peers_of.remove(&device);
                }
            }
            self.retire_unused_keys(device, now);
        }
    }

    /// Notes that `node` may have to be told something new about `peer`. Destinations take the first turn, so that
    /// they close first.
    pub(super) fn mark(&mut self, node: DeviceId, peer: DeviceId, urgency: Urgency, turn: Turn) {
        if let Some(connected) = self.nodes.get_mut(&node) {
            connected.dirty.insert(peer);
            connected.urgent |= urgency == Urgency::Closes;
            let queue = match turn {
                Turn::First => &mut self.flush_first,
                Turn::Second => &mut self.flush_then,
            };
            if queue.back() != Some(&node) {
                queue.push_back(node);
            }
        }
    }

    /// Takes up leases and pairs after a restart, as they were, without giving them any more time.
    pub(super) fn resume(&mut self, leases: Vec<LeaseRecord>, pairs: Vec<PairRecord>, now: Now) {
        let mut devices = BTreeSet::new();
        for record in leases {
            let device = self.registry.device(record.device).cloned();
            let current = self.registry.session_on(record.device).map(|session| session.id) == record.session;
            // Time that was left when the controller stopped is not given again by a clock that was set back meanwhile.
            let latest = Now { wall: self.clock.latest(now), ..now };
            let deadline = crate::decision::deadline(record.until, latest);
            match device {
                Some(device) if current && !deadline.has_passed(now) && self.registry.may_take_part(&device) => {
                    devices.insert(device.id);
                    let renew_at = now.monotonic;
                    let lease = Lease {
                        record,
                        deadline,
                        renew_at,
                        granted: vec![],
                        step_ups: vec![],
                        offered: vec![],
                        destinations: vec![],
                        scan: None,
                    };
                    self.leases.insert(device.id, lease);
                }
                _ => {
                    self.out.store(StoreChange::DeleteLease(record.id));
                    let LeaseRecord { id: lease, subject, device, .. } = record;
                    self.out.audit(AuditEvent::LeaseEnded { lease, subject, device, why: LeaseEnd::Expired });
                }
            }
        }
        for pair in self.usable_pairs(pairs) {
            let name = PeeringName::of(pair.first.device, pair.second.device);
            self.peerings.entry(name).or_insert_with(|| Peering::new(name)).take_up(pair);
            self.peers_of.entry(name.0).or_default().insert(name.1);
            self.peers_of.entry(name.1).or_default().insert(name.0);
        }
        for id in devices {
            let Some(device) = self.registry.device(id).cloned() else { continue };
            let Evaluation { entitlements, step_ups, context } = self.evaluate(&device, now);
            let session_until = self.registry.session_on(id).map(|session| session.expires);
            let Some(mut lease) = self.leases.remove(&id) else { continue };
            // Each part ends when it would have ended: the rule's lease, counted from its beginning or the last renewal.
            let record = &lease.record;
            let since = |part: &Entitlement| record.since(&part.rule, &part.resource).min(now.wall);
            let mut granted = grant(entitlements, &[], Extend::Yes, self.terms(), session_until, since, now);
            granted.iter_mut().for_each(|part| part.until = part.until.min(lease.deadline));
            granted.retain(|part| !part.until.has_passed(now));
            lease.granted = granted;
            lease.step_ups = step_ups;
            let scan = self.scan_limit_of(&device, context.as_ref());
            self.open(lease, scan, now);
        }
        let over: Vec<PeeringName> =
            self.peerings.iter().filter(|(_, peering)| peering.is_over()).map(|(name, _)| *name).collect();
        for name in over {
            self.end_peering(name, now);
        }
        for pair in self.peerings.values_mut().flat_map(Peering::taken_up) {
            self.out.store(StoreChange::PutPair(pair));
        }
    }

    /// Keeps the pairs whose ends still exist with these keys, newest first; the others are forgotten.
    fn usable_pairs(&mut self, pairs: Vec<PairRecord>) -> Vec<PairRecord> {
        let age = |core: &Self, end: PairEnd| {
            core.registry.device(end.device)?.wireguard_keys.iter().position(|key| *key == end.key)
        };
        let mut usable = Vec::new();
        for pair in pairs {
            match (age(self, pair.first), age(self, pair.second)) {
                (Some(first), Some(second)) => usable.push((first + second, pair)),
                (None, _) | (_, None) => self.out.store(StoreChange::DeletePair(pair.name())),
            }
        }
        usable.sort_by_key(|(age, _)| *age);
        usable.into_iter().map(|(_, pair)| pair).collect()
    }
}
