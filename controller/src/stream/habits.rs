//! Services seen as they usually are, or otherwise ([`crate::signals::habits`]); and keys that were not changed in time.

use postern_common::{
    id::{DeviceId, SubjectId},
    net::Protocol,
    protocol::{FirstUse, MAX_FIRST_USES, MachineKind},
    time::{Monotonic, Now, WallTime},
};

use super::{api::KeyOverdue, core::Core};
use crate::{
    decision::{Extend, Lease},
    records::{AuditEvent, DeviceKind, DeviceRecord, StoreChange, SubjectKind},
    signals::{
        alerts::{About, AlertKind},
        habits::{self, Habit, Observed},
    },
};

impl Core {
    /// Tells whether a subject is a service.
    pub(super) fn is_service(&self, subject: SubjectId) -> bool {
        let kind = self.registry.subject(subject).map(|subject| &subject.kind);
        matches!(kind, Some(SubjectKind::Service { .. }))
    }

    /// A machine has begun a stream: if it is a service's, its place and kind are looked at.
    pub(super) fn service_seen(
        &mut self,
        device: &DeviceRecord,
        machine: &MachineKind,
        from: std::net::IpAddr,
        now: Now,
    ) {
        let subject = device.owner;
        if !self.is_service(subject) {
            return;
        }
        let place = habits::place(from, &self.atlas.place_of(from));
        let way = device.platform.as_ref().map_or("an enrolment token", |binding| binding.issuer.as_str());
        let kind = habits::kind(machine, way);
        let (name, of) = (device.name.clone(), self.registry.subject_name(subject));
        let about = About { subject: Some(subject), device: Some(device.id), resource: None };
        if let Observed::New { before } = self.observe(subject, Habit::Place, &place, now) {
            let text = format!("{of} speaks from {place} ({name}, {from}), so far from {}", before.join("; "));
            self.tell_new(Habit::Place, text, about.clone(), now);
        }
        if let Observed::New { before } = self.observe(subject, Habit::Kind, &kind, now) {
            let text = format!(
                "{of} runs on a kind of machine never seen of it: {kind} ({name}), so far {}",
                before.join("; ")
            );
            self.tell_new(Habit::Kind, text, about, now);
        }
    }

    fn observe(&mut self, subject: SubjectId, habit: Habit, what: &str, now: Now) -> Observed {
        let learn_for = self.config.learn_for;
        let (observed, record) = self.habits.observe(subject, habit, what, learn_for, now.wall);
        if let Some(record) = record {
            self.out.store(StoreChange::PutHabits(record));
        }
        observed
    }

    /// Raises an alert about what is new, unless one about this service was raised just now: then it is counted.
    fn tell_new(&mut self, habit: Habit, text: String, about: About, now: Now) {
        let Some(subject) = about.subject else { return };
        let told = self.news_told.entry((subject, habit)).or_insert(News { at: None, more: 0 });
        if told.at.is_some_and(|at| now.monotonic.since(at) < NEWS_EVERY) {
            told.more += 1;
            return;
        }
        let more = std::mem::take(&mut told.more);
        told.at = Some(now.monotonic);
        let text = if more == 0 { text } else { format!("{text}; and {more} more things before it") };
        self.alert(news_kind(habit), text, about, now);
    }

    /// Tells what was counted meanwhile, and forgets what needs no counting.
    pub(super) fn sweep_news(&mut self, now: Now) {
        let over = |news: &News| news.at.is_none_or(|at| now.monotonic.since(at) >= NEWS_EVERY);
        let due: Vec<(SubjectId, Habit, u64)> = self
            .news_told
            .iter()
            .filter(|(_, news)| over(news) && news.more > 0)
            .map(|((subject, habit), news)| (*subject, *habit, news.more))
            .collect();
        self.news_told.retain(|_, news| !over(news));
        for (subject, habit, more) in due {
            let of = self.registry.subject_name(subject);
            let text = format!("{more} more things are new of {of} since the last alert of this kind");
            self.news_told.insert((subject, habit), News { at: Some(now.monotonic), more: 0 });
            self.alert(news_kind(habit), text, About { subject: Some(subject), ..About::default() }, now);
        }
    }

    /// A node tells what was used on it for the first time. Only what a lease opens there can have been used.
    pub(super) fn used_first(&mut self, id: DeviceId, uses: Vec<FirstUse>, now: Now) {
        let permitted = self.nodes.get_mut(&id).is_some_and(|node| node.asks.uses.take(now.monotonic));
        if !permitted || uses.len() > MAX_FIRST_USES {
            self.counters.messages_refused += 1;
            return;
        }
        for FirstUse { peer, resource, service } in uses {
            let opened = self.leases.get(&peer).is_some_and(|lease| opens(lease, id, &resource, service));
            let owner = self.registry.device(peer).and_then(|device| self.registry.subject(device.owner));
            // A range has as many parts as somebody likes to tell of.
            let one = service.protocol() == Protocol::Icmp || service.ports().first() == service.ports().last();
            let Some((subject, kind)) = owner.filter(|_| opened && one).map(|owner| (owner.id, owner.kind.clone()))
            else {
                self.counters.uses_refused += 1;
                continue;
            };
            if let SubjectKind::Person { .. } = kind {
                continue;
            }
            let what = habits::usage(&resource, &service);
            if let Observed::New { before } = self.observe(subject, Habit::Use, &what, now) {
                let of = self.registry.subject_name(subject);
                let (from, to) = (self.registry.machine_name(peer), self.registry.machine_name(id));
                let text =
                    format!("{of} uses {what} for the first time ({from} -> {to}); so far {}", before.join(", "));
                let about = About { subject: Some(subject), device: Some(peer), resource: Some(resource) };
                self.tell_new(Habit::Use, text, about, now);
            }
        }
    }

    // --- keys

    /// Tells since when a machine has a key that it should have changed; `None` if it has changed it in time, or has none.
    pub(super) fn key_overdue_since(&self, device: &DeviceRecord, now: WallTime) -> Option<WallTime> {
        let since =
            device.key_since.filter(|_| device.kind == DeviceKind::Agent && !device.wireguard_keys.is_empty())?;
        (now.since(since) >= self.config.key_deadline).then_some(since)
    }

    /// Tells whether a machine reaches nothing because of its key.
    pub(super) fn key_denies(&self, device: &DeviceRecord, now: WallTime) -> Option<WallTime> {
        match self.config.key_overdue {
            KeyOverdue::Alert => None,
            KeyOverdue::Deny => self.key_overdue_since(device, now),
        }
    }

    /// Counts keys from now on of which it is not known how old they are: they were added before that was kept.
    pub(super) fn date_keys(&mut self, now: Now) {
        let undated = |device: &&DeviceRecord| device.key_since.is_none() && !device.wireguard_keys.is_empty();
        let undated: Vec<DeviceId> = self.registry.devices().filter(undated).map(|device| device.id).collect();
        for id in undated {
            self.registry.change_device(id, &mut self.out, |device| device.key_since = Some(now.wall));
        }
    }

    /// Looks for keys of connected machines that were not changed in time: those that are away have no chance to.
    pub(super) fn sweep_keys(&mut self, now: Now) {
        let overdue: Vec<(DeviceId, WallTime)> = self
            .nodes
            .keys()
            .filter_map(|id| self.registry.device(*id))
            .filter_map(|device| Some((device.id, self.key_overdue_since(device, now.wall)?)))
            .filter(|(id, since)| self.keys_told.get(id) != Some(since))
            .collect();
        let mut shut = Vec::new();
        for (id, since) in overdue {
            self.keys_told.insert(id, since);
            let denied = self.config.key_overdue == KeyOverdue::Deny;
            let machine = self.registry.machine_name(id);
            let then = if denied { "; it reaches nothing until it has" } else { "" };
            let text = format!("{machine} has not changed its WireGuard key since {since}{then}: postern status there");
            let subject = self.registry.device(id).map(|device| device.owner);
            self.out.audit(AuditEvent::KeyOverdue { device: id, machine, since, denied });
            self.alert(AlertKind::KeyOverdue, text, About { subject, device: Some(id), resource: None }, now);
            if denied {
                shut.push(id);
            }
        }
        if !shut.is_empty() {
            self.targets_changed(now); // looks through all machines
        }
        for id in shut {
            self.decide(id, Extend::No, now);
        }
        // Also while a machine is away: it would be told again each time that it comes back.
        let registry = &self.registry;
        self.keys_told.retain(|id, since| registry.device(*id).is_some_and(|device| device.key_since == Some(*since)));
    }
}

/// How often something new of one service is told.
const NEWS_EVERY: std::time::Duration = std::time::Duration::from_secs(300);

/// What was told of a service lately, and how much was not.
#[derive(Debug)]
pub(super) struct News {
    at: Option<Monotonic>,
    more: u64,
}

const fn news_kind(habit: Habit) -> AlertKind {
    match habit {
        Habit::Place => AlertKind::NewPlace,
        Habit::Kind => AlertKind::NewKind,
        Habit::Use => AlertKind::FirstUse,
    }
}

/// Tells whether a lease opens a service of a resource on a node.
fn opens(
    lease: &Lease,
    node: DeviceId,
    resource: &postern_common::id::ResourceName,
    service: postern_common::net::Service,
) -> bool {
    lease.granted.iter().map(|granted| &granted.entitlement).any(|entitlement| {
        let covers = |opened: &postern_common::net::Service| opened.intersection(&service) == Some(service);
        entitlement.resource == *resource
            && entitlement.nodes.contains(&node)
            && entitlement.services.iter().any(covers)
    })
}
