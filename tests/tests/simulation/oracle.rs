//! Who may reach what, computed naively: every machine with every machine and every rule, from the records on the
//! controller's disk. It shares no code with the evaluator; the policies that it knows are those that it writes.

use std::collections::BTreeSet;

use postern_common::{id::DeviceId, policy::Reach};
use postern_controller::records::{
    DeviceKind, DeviceRecord, NameClaim, Quarantined, Restrained, RestraintRecord, SessionRecord, Standing,
    SubjectKind, Takes,
};

use super::{disk::Disk, rng::Rng};

/// Who a rule is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    Group(usize),
    Service(usize),
}

/// Where a resource is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Tag(usize),
    Machine(usize),
}

#[derive(Debug, Clone)]
pub(crate) struct Access {
    pub(crate) from: From,
    pub(crate) to: usize,
    pub(crate) lease_s: u64,
}

/// A policy that the simulation wrote. The resource with the number `n` is `tcp/(1000 + n)`.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) places: Vec<Place>,
    pub(crate) access: Vec<Access>,
    pub(crate) deny: Vec<(usize, usize)>,
}

/// One thing that one device may open on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Door {
    pub(crate) source: DeviceId,
    pub(crate) destination: DeviceId,
    /// The rule's number.
    pub(crate) rule: usize,
    /// The TCP port.
    pub(crate) port: u16,
}

pub(crate) const GROUPS: usize = 4;
pub(crate) const TAGS: usize = 4;
/// The longest lease that a policy of the simulation gives, seconds.
pub(crate) const LONGEST_LEASE_S: u64 = 300;

impl Spec {
    pub(crate) fn draw(rng: &mut Rng, servers: usize) -> Self {
        let places = (0..6).map(|i| if i < 4 { Place::Tag(i % TAGS) } else { Place::Machine(i % servers) }).collect();
        let mut spec = Self { places, access: vec![], deny: vec![] };
        for _ in 0..rng.between(4, 8) {
            let from = match rng.below(3) {
                0 => From::Service(rng.index(servers)),
                _ => From::Group(rng.index(GROUPS)),
            };
            let lease_s = [45, 120, LONGEST_LEASE_S][rng.index(3)];
            spec.access.push(Access { from, to: rng.index(6), lease_s });
        }
        if rng.one_in(2) {
            spec.deny.push((rng.index(GROUPS), rng.index(6)));
        }
        spec
    }

    /// Writes the policy document.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for (i, place) in self.places.iter().enumerate() {
            let at = match place {
                Place::Tag(tag) => format!("nodes = [\"tag:t{tag}\"]"),
                Place::Machine(machine) => format!("node = \"server-{machine}\""),
            };
            text += &format!("[resource.r{i}]\n{at}\nports = [\"tcp/{}\"]\n", 1000 + i);
        }
        for (i, access) in self.access.iter().enumerate() {
            let from = match access.from {
                From::Group(group) => format!("group:g{group}"),
                From::Service(service) => format!("service:svc-{service}"),
            };
            let (to, lease) = (access.to, access.lease_s);
            text += &format!(
                "[[access]]\nname = \"rule-{i}\"\nfrom = [\"{from}\"]\nto = [\"r{to}\"]\nlease = \"{lease}s\"\n"
            );
        }
        for (i, (group, to)) in self.deny.iter().enumerate() {
            text += &format!("[[deny]]\nname = \"deny-{i}\"\nfrom = [\"group:g{group}\"]\nto = [\"r{to}\"]\n");
        }
        text
    }
}

fn session<'a>(disk: &'a Disk, device: &DeviceRecord) -> Option<&'a SessionRecord> {
    disk.sessions.values().find(|session| session.device == device.id && session.ended.is_none())
}

/// Tells whether a machine may take part at all.
fn takes_part(disk: &Disk, device: &DeviceRecord) -> bool {
    let Some(owner) = disk.subjects.get(&device.owner) else { return false };
    let signed_in = match owner.kind {
        SubjectKind::Person { .. } => session(disk, device).is_some(),
        SubjectKind::Service { .. } => true,
    };
    let held = |target: Quarantined| disk.quarantines.contains_key(&target);
    let free = !held(Quarantined::Device(device.id)) && !held(Quarantined::Subject(device.owner));
    device.kind == DeviceKind::Agent
        && device.standing == Standing::Good
        && owner.disabled.is_none()
        && signed_in
        && free
}

fn is_from(disk: &Disk, device: &DeviceRecord, from: &From) -> bool {
    let kind = disk.subjects.get(&device.owner).map(|owner| &owner.kind);
    match (from, kind) {
        (From::Service(n), Some(SubjectKind::Service { name })) => name.as_str() == format!("svc-{n}"),
        (From::Group(n), Some(SubjectKind::Person { .. })) => session(disk, device)
            .and_then(|session| session.assurance.groups.as_ref())
            .is_some_and(|groups| groups.contains(&format!("g{n}"))),
        (From::Service(_) | From::Group(_), _) => false,
    }
}

fn is_at(device: &DeviceRecord, place: &Place) -> bool {
    match place {
        Place::Tag(n) => device.tags.iter().any(|tag| tag.as_str() == format!("t{n}")),
        Place::Machine(n) => device.name_claim == NameClaim::Approved && device.name.as_str() == format!("server-{n}"),
    }
}

/// Tells whether a restraint keeps something from whoever is on a device.
fn is_restrained(disk: &Disk, device: &DeviceRecord, rule: &str, to: usize, on: DeviceId) -> bool {
    let is_person =
        disk.subjects.get(&device.owner).is_some_and(|owner| matches!(owner.kind, SubjectKind::Person { .. }));
    let resource = format!("r{to}");
    let concerns = |record: &&RestraintRecord| match record.whom {
        Restrained::Subject(id) => id == device.owner,
        // What is asked on one machine of a person is asked on those that join later.
        Restrained::Device(id) => {
            let older = |other: &DeviceRecord| is_person && other.owner == device.owner;
            id == device.id || record.first() <= device.created && disk.devices.get(&id).is_some_and(older)
        }
    };
    let proven = session(disk, device).and_then(|session| session.assurance.auth_time);
    disk.restraints.values().filter(concerns).any(|record| match &record.takes {
        Takes::Nothing => false,
        Takes::AllBut { resources } => !resources.iter().any(|stays| stays.as_str() == resource),
        Takes::Proof { reach } => {
            let taken = match reach {
                Reach::Everything => true,
                Reach::Access { rule: of, resource: at } => of.as_str() == rule && at.as_str() == resource,
                Reach::AccessOn { rule: of, resource: at, node } => {
                    of.as_str() == rule && at.as_str() == resource && *node == on
                }
            };
            taken && proven.is_none_or(|at| at <= record.since)
        }
    })
}

/// Lists every door that policy opens to whoever is signed in.
pub(crate) fn doors(disk: &Disk, spec: &Spec) -> BTreeSet<Door> {
    let devices: Vec<&DeviceRecord> = disk.devices.values().filter(|device| takes_part(disk, device)).collect();
    let mut doors = BTreeSet::new();
    for source in &devices {
        for (rule, access) in spec.access.iter().enumerate() {
            let revoked = disk.revoked_rules.keys().any(|name| name.as_str() == format!("rule-{rule}"));
            let denied =
                spec.deny.iter().any(|(group, to)| *to == access.to && is_from(disk, source, &From::Group(*group)));
            let resource = format!("r{}", access.to).parse().expect("a name");
            let held = disk.quarantines.contains_key(&Quarantined::Resource(resource));
            if revoked || denied || held || !is_from(disk, source, &access.from) {
                continue;
            }
            for destination in devices.iter().filter(|destination| is_at(destination, &spec.places[access.to])) {
                let name = format!("rule-{rule}");
                if destination.id != source.id && !is_restrained(disk, source, &name, access.to, destination.id) {
                    let port = 1000 + u16::try_from(access.to).expect("few resources");
                    doors.insert(Door { source: source.id, destination: destination.id, rule, port });
                }
            }
        }
    }
    doors
}
