//! Random lives of many nodes, compared with a naive recomputation.
//!
//! The oracle reads the durable records and the policy's text, and computes who may reach what from nothing else: no
//! leases, no indexes, no increments; what restraints take it takes away by itself. Against it stand the simulated nodes' own tables and clocks.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use postern_common::{
    id::{DeviceId, ResourceName, RuleName, SessionId},
    net::Service,
    policy::{Assurance, Policy, Reach, RequestContext, Subject, TargetNode, Targets, UserIdentity},
    time::Monotonic,
};

use super::{
    claims::POLICY,
    world::{ISSUER, World, person, policy},
};
use crate::{
    records::{
        DeviceRecord, NameClaim, Person, Quarantined, Restrained, RestraintRecord, RevokeTarget, Standing, SubjectKind,
        Takes,
    },
    stream::{SignalResponse, SubjectUpdate},
};

/// Every rule in these policies has leases of 30 seconds.
const LEASE: Duration = Duration::from_secs(30);
/// Within this time a connected node has been told and has acknowledged.
const SETTLED: Duration = Duration::from_millis(1_500);
const PEOPLE: [&str; 6] = ["ann", "ben", "cid", "dee", "eva", "fay"];

type Door = (DeviceId, DeviceId, Service);

fn policies() -> Vec<String> {
    let denied = format!(
        "{POLICY}\n[[deny]]\nname = \"not for contractors\"\nfrom = [\"group:contractors\"]\nto = [\"wiki\"]\n"
    );
    let renamed = POLICY.replace("staff read the wiki", "the wiki is for staff");
    let narrow = POLICY.replace(r#"["tcp/80", "tcp/443"]"#, r#"["tcp/443"]"#);
    let mesh = format!(
        "{POLICY}\n[[access]]\nname = \"wikis meet\"\nfrom = [\"service:wiki\"]\nto = [\"wiki\", \"payroll-app\"]\nlease = \"30s\"\n"
    );
    vec![POLICY.to_owned(), denied, renamed, narrow, mesh]
}

/// Computes from durable records alone who may reach what.
fn naive(world: &World, policy: &Policy) -> BTreeSet<Door> {
    let all = &world.store.loaded;
    let owner = |id| all.subjects.iter().find(|subject| subject.id == id).expect("an owner");
    let held = |target: Quarantined| all.quarantines.iter().any(|record| record.target == target);
    let session = |device| all.sessions.iter().find(|s| s.device == device && s.ended.is_none());
    let takes_part: Vec<_> = all
        .devices
        .iter()
        .filter(|device| device.standing == Standing::Good && owner(device.owner).disabled.is_none())
        .filter(|device| !held(Quarantined::Device(device.id)) && !held(Quarantined::Subject(device.owner)))
        .filter(|device| match owner(device.owner).kind {
            SubjectKind::Person { .. } => session(device.id).is_some(),
            SubjectKind::Service { .. } => true,
        })
        .collect();
    let targets = Targets::new(
        takes_part
            .iter()
            .filter(|device| !device.tags.is_empty() || device.name_claim == NameClaim::Approved)
            .map(|device| TargetNode { device: device.id, name: device.name.clone(), tags: device.tags.clone() }),
    );
    let mut doors = BTreeSet::new();
    for device in takes_part {
        let owner = owner(device.owner);
        let subject = match &owner.kind {
            SubjectKind::Service { name } => Subject::Service { name: name.clone() },
            SubjectKind::Person { issuer, sub } => Subject::User {
                identity: UserIdentity::Oidc { issuer: issuer.clone(), sub: sub.clone() },
                display_name: owner.name.clone(),
                groups: session(device.id).and_then(|session| session.assurance.groups.clone()),
                assurance: Assurance::default(),
            },
        };
        let context = RequestContext {
            subject,
            device: Some(device.id),
            machine: None,
            tags: device.tags.clone(),
            posture: None,
            attested: None,
            machine_approved: true,
            approved: vec![],
            restraints: vec![],
            address: None,
            place: Default::default(),
            also: vec![],
            now: world.now.wall,
            instead: None,
        };
        for entitlement in policy.entitlements(&context, &targets) {
            let of_resource = Quarantined::Resource(entitlement.resource.clone());
            if all.revoked_rules.iter().any(|revoked| revoked.rule == entitlement.rule) || held(of_resource) {
                continue;
            }
            let free = |node: &&DeviceId| {
                **node != device.id && !is_restrained(world, device, &entitlement.rule, &entitlement.resource, **node)
            };
            for node in entitlement.nodes.iter().filter(free) {
                doors.extend(entitlement.services.iter().map(|service| (device.id, *node, *service)));
            }
        }
    }
    doors
}

/// Tells from the records alone whether a restraint keeps what a rule gives of a resource on a node from whoever is on a device.
fn is_restrained(
    world: &World,
    device: &DeviceRecord,
    rule: &RuleName,
    resource: &ResourceName,
    node: DeviceId,
) -> bool {
    let all = &world.store.loaded;
    let session = all.sessions.iter().find(|session| session.device == device.id && session.ended.is_none());
    let proven = session.and_then(|session| session.assurance.auth_time);
    let of = |record: &&RestraintRecord| match record.whom {
        Restrained::Subject(id) => id == device.owner,
        Restrained::Device(id) => id == device.id,
    };
    all.restraints.iter().filter(of).any(|record| match &record.takes {
        Takes::Nothing => false,
        Takes::AllBut { resources } => !resources.contains(resource),
        Takes::Proof { reach } => {
            let concerned = match reach {
                Reach::Everything => true,
                Reach::Access { rule: of, resource: to } => (of, to) == (rule, resource),
                Reach::AccessOn { rule: of, resource: to, node: on } => (of, to, *on) == (rule, resource, node),
            };
            concerned && proven.is_none_or(|at| at <= record.since)
        }
    })
}

/// What every node lets in now, by its own table and clock.
fn enforced(world: &World) -> BTreeSet<Door> {
    let nodes = world.nodes.iter().filter(|node| node.device.is_some());
    nodes.flat_map(|node| node.lets_in(world.now).into_iter().map(|(peer, s)| (peer, node.id(), s))).collect()
}

/// What every node may open now.
fn opened(world: &World) -> BTreeSet<Door> {
    let nodes = world.nodes.iter().filter(|node| node.device.is_some());
    nodes.flat_map(|node| node.may_open(world.now).into_iter().map(|(peer, s)| (node.id(), peer, s))).collect()
}

struct Life {
    world: World,
    policy: usize,
    policies: Vec<String>,
    allowed: BTreeSet<Door>,
    ended: BTreeMap<Door, Monotonic>,
    up_since: BTreeMap<DeviceId, Monotonic>,
}

impl Life {
    fn new(seed: u64) -> Self {
        let policies = policies();
        let mut world = World::new(seed, &policies[0]);
        world.server("payroll", Some("payroll"), &[]);
        world.server("db", Some("db"), &[]);
        for i in 1..=3 {
            world.server(&format!("wiki-{i}"), Some("wiki"), &["wiki"]);
        }
        for name in PEOPLE {
            let groups: &[&str] = if world.dice.below(2) == 0 { &["staff"] } else { &["staff", "payroll"] };
            world.laptop(&format!("{name}-laptop"), &person(name, groups));
        }
        let mut life = Self {
            world,
            policy: 0,
            policies,
            allowed: BTreeSet::new(),
            ended: BTreeMap::new(),
            up_since: BTreeMap::new(),
        };
        life.recompute();
        life
    }

    /// Asks the oracle after something changed.
    fn recompute(&mut self) {
        let allowed = naive(&self.world, &policy(&self.policies[self.policy]));
        for door in self.allowed.difference(&allowed) {
            self.ended.insert(*door, self.world.now.monotonic);
        }
        self.allowed = allowed;
    }

    /// Holds the nodes against the oracle.
    fn look(&mut self) {
        let now = self.world.now.monotonic;
        for node in &self.world.nodes {
            let Some(id) = node.device else { continue };
            if node.stream.is_some() {
                self.up_since.entry(id).or_insert(now);
            } else {
                self.up_since.remove(&id);
            }
        }
        let settled = |id: &DeviceId| self.up_since.get(id).is_some_and(|since| now.since(*since) > SETTLED);
        for (kind, doors) in [("lets in", enforced(&self.world)), ("opens", opened(&self.world))] {
            for door in doors.difference(&self.allowed) {
                let since = self.ended.get(door).map(|ended| now.since(*ended));
                let since = since.unwrap_or_else(|| panic!("{kind} what was never allowed: {door:?}"));
                assert!(since <= LEASE, "{kind} {door:?}, which ended {since:?} ago");
                let here = if kind == "lets in" { door.1 } else { door.0 };
                assert!(
                    since <= SETTLED || !settled(&here),
                    "{kind} {door:?}, ended {since:?} ago, and it is connected"
                );
            }
        }
    }

    fn live(&mut self, restarts: bool) {
        let who = self.world.dice.below(PEOPLE.len() as u64) as usize;
        let node = self.world.dice.below(self.world.nodes.len() as u64) as usize;
        let name = PEOPLE[who];
        match self.world.dice.below(if restarts { 21 } else { 19 }) {
            0 | 1 => {
                let all = ["staff", "payroll", "contractors"];
                let bits = self.world.dice.below(8);
                let groups = all.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, g)| (*g).to_owned());
                let update = SubjectUpdate { groups: Some(groups.collect()), disabled: None };
                self.world.core.update_subject(ISSUER, &format!("sub-{name}"), update, "root", self.world.now);
            }
            2 => {
                let disabled = Some((self.world.dice.below(2) == 0).then(|| "left".to_owned()));
                let update = SubjectUpdate { groups: None, disabled };
                self.world.core.update_subject(ISSUER, &format!("sub-{name}"), update, "root", self.world.now);
            }
            3 => {
                if let Ok(session) = self.world.core.find_session(&format!("{name}@corp.example")) {
                    let target = RevokeTarget::Session(session);
                    self.world.core.revoke(target, "test", "root", self.world.now).expect("revoked");
                }
            }
            4 | 5 => {
                self.policy = self.world.dice.below(self.policies.len() as u64) as usize;
                let text = self.policies[self.policy].clone();
                self.world.apply_policy(&text);
            }
            6 | 7 => {
                if self.world.nodes[node].stream.is_some() {
                    self.world.rotate(node);
                }
            }
            8 | 9 => {
                self.world.cut_stream(node);
                let away = Duration::from_millis(self.world.dice.below(45_000));
                self.world.reconnect_in(node, away);
            }
            10 => self.world.freshen(node),
            11 => {
                let subject = self.world.core.find_subject(&format!("{name}@corp.example"));
                let target = match (self.world.dice.below(3), subject) {
                    (0, _) => RevokeTarget::Quarantine(Quarantined::Resource("wiki".parse().expect("a name"))),
                    (1, Ok(subject)) => RevokeTarget::Quarantine(Quarantined::Subject(subject)),
                    (_, _) => RevokeTarget::Node(self.world.nodes[node].id()),
                };
                match self.world.core.lift(target.clone(), "root", self.world.now) {
                    Ok(()) => {}
                    Err(_) => {
                        self.world.core.revoke(target, "test", "root", self.world.now).expect("revoked");
                    }
                }
            }
            12 => self.sign_in(who),
            13 => {
                let target = RevokeTarget::Rule("staff read the wiki".parse().expect("a name"));
                match self.world.core.lift(target.clone(), "root", self.world.now) {
                    Ok(()) => {}
                    Err(_) => {
                        self.world.core.revoke(target, "test", "root", self.world.now).expect("revoked");
                    }
                }
            }
            14 | 15 => self.restrain(name, node),
            16 | 17 => self.release(),
            18 => self.prove(who),
            _ => {
                if self.world.dice.below(2) == 0 {
                    // In the middle of something.
                    let effects = self.world.dice.below(10) as usize;
                    self.world.crash_after = Some(effects);
                    let groups = ["staff".to_owned()].into();
                    let update = SubjectUpdate { groups: Some(groups), disabled: None };
                    self.world.core.update_subject(ISSUER, &format!("sub-{name}"), update, "root", self.world.now);
                    self.world.pump();
                }
                self.world.restart();
                for node in 0..self.world.nodes.len() {
                    let away = Duration::from_millis(self.world.dice.below(8_000));
                    self.world.reconnect_in(node, away);
                }
            }
        }
        self.world.pump();
        self.recompute();
        self.look();
    }

    /// Takes something from somebody. It opens nothing, to nobody.
    fn restrain(&mut self, name: &str, node: usize) {
        let subject = self.world.core.find_subject(&format!("{name}@corp.example"));
        let whom = match (self.world.dice.below(3), subject) {
            (0, Ok(subject)) | (1, Ok(subject)) => Restrained::Subject(subject),
            (_, _) => Restrained::Device(self.world.nodes[node].id()),
        };
        let (rule, resource): (RuleName, ResourceName) =
            ("staff read the wiki".parse().expect("a name"), "wiki".parse().expect("a name"));
        let response = match self.world.dice.below(6) {
            0 => SignalResponse::Challenge(Reach::Everything),
            1 => SignalResponse::Challenge(Reach::Access { rule, resource }),
            2 => {
                let on = self.world.nodes[2 + self.world.dice.below(3) as usize].id();
                SignalResponse::Challenge(Reach::AccessOn { rule, resource, node: on })
            }
            3 => SignalResponse::Restrict([resource].into()),
            4 => SignalResponse::Restrict([].into()),
            _ => SignalResponse::Terminate,
        };
        let before = self.allowed.clone();
        self.world.core.respond(whom, response.clone(), "odd", "a test", self.world.now).expect("known");
        self.world.pump();
        self.recompute();
        assert!(self.allowed.is_subset(&before), "{response:?} opened something");
    }

    /// Releases somebody. It closes nothing.
    fn release(&mut self) {
        let held = &self.world.store.loaded.restraints;
        if held.is_empty() {
            return;
        }
        let whom = held[self.world.dice.below(held.len() as u64) as usize].whom;
        let before = self.allowed.clone();
        let _nothing_in_force = self.world.core.release_restraints(whom, "root", self.world.now);
        self.world.pump();
        self.recompute();
        assert!(self.allowed.is_superset(&before), "a release closed something");
    }

    /// Names a browser that nobody has signed in with: one that let in what was revoked since lets in nothing more.
    fn browser(&self) -> SessionId {
        let mut name = [0; 16];
        name[..8].copy_from_slice(&self.world.now.wall.as_millis().to_be_bytes());
        SessionId::from_bytes(name)
    }

    /// Proves a person's sign-in anew on their machine.
    fn prove(&mut self, who: usize) {
        let name = PEOPLE[who];
        let disabled =
            self.world.store.loaded.subjects.iter().any(|s| s.disabled.is_some() && s.name.starts_with(name));
        if !disabled {
            self.world.nodes[5 + who].new_key();
            let web_session = self.browser();
            let proven = Person { auth_time: Some(self.world.now.wall), web_session, ..person(name, &["staff"]) };
            self.world.join(5 + who, &proven);
        }
    }

    /// Signs a person in again on their machine, if nobody is.
    fn sign_in(&mut self, who: usize) {
        let name = PEOPLE[who];
        let node = 5 + who;
        let disabled =
            self.world.store.loaded.subjects.iter().any(|s| s.disabled.is_some() && s.name.starts_with(name));
        let signed_in = self.world.core.find_session(&format!("{name}@corp.example")).is_ok();
        if !disabled && !signed_in {
            self.world.nodes[node].new_key();
            let web_session = self.browser();
            self.world.join(node, &Person { web_session, ..person(name, &["staff"]) });
        }
    }

    fn settle(&mut self) {
        for node in 0..self.world.nodes.len() {
            if self.world.nodes[node].stream.is_none() {
                self.world.connect(node);
            }
        }
        self.world.run(Duration::from_secs(45));
        for node in 0..self.world.nodes.len() {
            if self.world.nodes[node].stream.is_none() {
                self.world.connect(node);
            }
        }
        self.world.run(Duration::from_secs(20));
        self.recompute();
        assert_eq!(enforced(&self.world), self.allowed, "every node lets in exactly what the recomputation says");
        assert_eq!(opened(&self.world), self.allowed, "and every node may open exactly that");
        for (source, destination, _) in &self.allowed {
            let (source, destination) = (self.world.index_of(*source), self.world.index_of(*destination));
            let (source, destination) = source.zip(destination).expect("nodes of the simulation");
            assert!(self.world.shared_pairs(source, destination) > 0, "a pair of keys is there");
        }
        for node in &self.world.nodes {
            let own = node.own.as_ref().expect("told of itself");
            assert!(own.keys.len() <= 1, "{}: rotations have come to their end", node.name);
        }
        // A renewal may be on its way to a node in this very moment.
        let mut status = self.world.core.status();
        for _moment in 0..20 {
            if status.current < status.connected {
                self.world.run(Duration::from_millis(50));
                status = self.world.core.status();
            }
        }
        assert_eq!((status.connected, status.current), (self.world.nodes.len(), self.world.nodes.len()));
    }
}

fn run(seed: u64, restarts: bool) {
    let mut life = Life::new(seed);
    life.world.check_opening = !restarts;
    for step in 0..120 {
        life.live(restarts);
        let pause = Duration::from_millis(life.world.dice.below(4_000));
        life.world.run(pause / 2);
        life.look();
        life.world.run(pause / 2);
        life.look();
        if step % 40 == 39 {
            life.settle();
        }
    }
}

#[test]
fn random_lives_of_many_nodes_end_where_a_naive_recomputation_says() {
    for seed in 0..12 {
        run(seed, false);
    }
}

#[test]
fn random_lives_with_crashes_of_the_controller_do_as_well() {
    for seed in 100..112 {
        run(seed, true);
    }
}
