//! Claims about limits: sums over nodes and devices, what follows, what it outlives, and whom a node may accuse.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use postern_common::{
    id::{DeviceId, SubjectId},
    limit::{Measure, Scan, Usage},
    net::{FiveTuple, Protocol},
    policy::Place,
    protocol::{FromNode, ToNode},
};

use super::world::{World, person};
use crate::{
    identity::random::Token,
    records::{AuditEvent, Person, Quarantined, Restrained},
    signals::{alerts::AlertKind, place::Atlas},
};

pub(super) const POLICY: &str = r#"
[resource.files]
nodes = ["tag:files"]
ports = ["tcp/443"]

[resource.wiki]
node = "files-1"
ports = ["tcp/80"]

[set.basics]
resources = ["wiki"]

[[access]]
name = "staff use files"
from = ["group:staff"]
to = ["files"]
limits = [
    { download = "1000B/h", on_exceed = "challenge" },
    { upload = "1000B/h", on_exceed = "restrict", restrict_to = "basics" },
    { connections = "100/m", on_exceed = "terminate" },
]

[[access]]
name = "everybody reads the wiki"
from = ["user:*"]
to = ["wiki"]

[[limit]]
name = "machines that scan"
from = ["group:staff"]
refused = "20/m"
on_exceed = "quarantine"

[[limit]]
name = "no jumps"
from = ["user:*"]
stay_in = "country"
on_exceed = "challenge"
"#;

const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

pub(super) const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) struct Town {
    pub(super) world: World,
    pub(super) one: usize,
    pub(super) two: usize,
    pub(super) laptop: usize,
    pub(super) phone: usize,
    pub(super) bobs: usize,
}

pub(super) fn town_with(seed: u64, policy: &str) -> Town {
    let mut world = World::new(seed, policy);
    let one = world.server("files-1", Some("files"), &["files"]);
    let two = world.server("files-2", Some("files"), &["files"]);
    let laptop = world.laptop("alice-laptop", &person("alice", &["staff"]));
    let phone = world.laptop("alice-phone", &person("alice", &["staff"]));
    let bobs = world.laptop("bob-laptop", &person("bob", &["staff"]));
    world.run(seconds(1));
    Town { world, one, two, laptop, phone, bobs }
}

fn town(seed: u64) -> Town {
    town_with(seed, POLICY)
}

impl Town {
    pub(super) fn alice(&self) -> SubjectId {
        self.world.core.find_subject("alice@corp.example").expect("alice")
    }

    /// The budget that a server's document carries for a limit of a machine's permission to the files.
    pub(super) fn budget(&self, server: usize, of: usize, measure: Measure) -> u64 {
        let peer = &self.world.nodes[server].peers[&self.world.nodes[of].id()];
        let files = peer.inbound.iter().find(|permission| permission.resource.as_str() == "files");
        let limits = &files.expect("it may come in").limits;
        limits.iter().find(|limit| limit.measure == measure).expect("it is limited").budget
    }

    pub(super) fn usage(&self, measure: Measure, used: u64, budget: u64) -> Usage {
        Usage {
            subject: self.alice(),
            rule: "staff use files".parse().expect("a name"),
            resource: "files".parse().expect("a name"),
            budget,
            measure,
            within_ms: if measure == Measure::Connections { 60_000 } else { 3_600_000 },
            used,
        }
    }

    pub(super) fn tell(&mut self, node: usize, usage: Usage) {
        self.tell_by(node, 1, usage);
    }

    /// Tells what that start of a node's data plane counted.
    pub(super) fn tell_by(&mut self, node: usize, process: u64, usage: Usage) {
        self.world.send(node, FromNode::Behaviour { process, usages: vec![usage], scans: vec![] });
        self.world.run(seconds(1));
    }

    pub(super) fn tell_used(&mut self, node: usize, measure: Measure, used: u64) {
        let budget = self.budget(node, self.laptop, measure);
        let usage = self.usage(measure, used, budget);
        self.tell(node, usage);
    }

    pub(super) fn passes(&self, node: usize, service: &str) -> bool {
        self.world.passes(node, self.one, service)
    }

    pub(super) fn scan(&mut self, by: usize, device: Option<DeviceId>, budget: u64) {
        self.destinations_refused(by, device, budget, 21);
    }

    fn destinations_refused(&mut self, by: usize, device: Option<DeviceId>, budget: u64, refused: u32) {
        self.refused_by(by, 1, device, budget, refused);
    }

    /// Tells how many destinations that start of a node's data plane refused, the last of them port 21 and the number of the start.
    pub(super) fn refused_by(&mut self, by: usize, process: u64, device: Option<DeviceId>, budget: u64, refused: u32) {
        let address = "fd5a:1:2::99".parse().expect("an address");
        let last = FiveTuple {
            protocol: Protocol::Tcp,
            source: address,
            source_port: 1,
            destination: address,
            destination_port: 21 + process as u16,
        };
        let rule = "machines that scan".parse().expect("a name");
        let scan = Scan { device, rule, budget, refused, last };
        self.world.send(by, FromNode::Behaviour { process, usages: vec![], scans: vec![scan] });
        self.world.run(seconds(1));
    }

    pub(super) fn step_up(&mut self, node: usize) {
        self.step_up_of("alice", node);
    }

    pub(super) fn step_up_of(&mut self, name: &str, node: usize) {
        let proven = Person { auth_time: Some(self.world.now.wall), ..person(name, &["staff"]) };
        self.world.send(node, FromNode::StepUp { resource: "files".parse().expect("a name") });
        self.world.run(seconds(1));
        let token = match self.world.nodes[node].step_ups.pop() {
            Some(ToNode::StepUpPending { url, .. }) => {
                Token::presented(url.rsplit('/').next().expect("a path")).expect("a secret")
            }
            other => panic!("no page: {other:?}"),
        };
        self.world.core.confirm_step_up(&token, &proven, FROM, self.world.now).map(drop).expect("proven");
        self.world.pump();
        self.world.run(seconds(1));
    }

    pub(super) fn alerts(&self, kind: AlertKind) -> usize {
        self.world.store.alerts.iter().filter(|alert| alert.kind == kind).count()
    }

    pub(super) fn refused(&self) -> u64 {
        self.world.core.status().counters.behaviour_refused
    }
}

#[test]
fn what_two_nodes_count_is_summed_and_a_step_up_begins_another_budget() {
    let mut town = town(90);
    let (one, two, laptop, phone, bobs) = (town.one, town.two, town.laptop, town.phone, town.bobs);
    town.tell_used(one, Measure::Download, 600);
    town.tell_used(one, Measure::Download, 600);
    assert!(town.passes(laptop, "tcp/443"), "the same report twice is no more");
    let decisions = town.world.core.status().counters.decisions;
    town.tell_used(two, Measure::Download, 401);
    assert_eq!(town.world.core.status().counters.decisions, decisions + 2, "alice's two machines, and nobody else's");
    assert!(!town.passes(laptop, "tcp/443") && !town.passes(phone, "tcp/443"), "both of her machines");
    assert!(town.passes(laptop, "tcp/80") && town.passes(bobs, "tcp/443"));
    assert_eq!(town.alerts(AlertKind::Volume), 1);
    let told =
        town.world.core.explain("alice@corp.example/alice-laptop", "files", None, town.world.now).expect("known");
    assert_eq!(told.reason, "files: more than 1KB down within 1 h; rule \"staff use files\" asks for a fresh sign-in");
    assert_eq!(told.fix.as_deref(), Some("postern step-up files"));
    town.step_up(laptop);
    assert!(town.passes(laptop, "tcp/443") && !town.passes(phone, "tcp/443"));
    assert!(town.budget(one, laptop, Measure::Download) > 0, "another budget: the nodes count anew");
    town.tell_used(one, Measure::Download, 1_000);
    assert!(town.passes(laptop, "tcp/443"), "what was used before is forgotten, and this is not more");
    town.tell_used(two, Measure::Download, 1);
    assert!(!town.passes(laptop, "tcp/443"));
    assert_eq!(town.alerts(AlertKind::Volume), 2);
}

#[test]
fn each_limit_does_what_it_says_and_a_restart_of_the_controller_forgets_none_of_it() {
    let mut town = town(91);
    let (one, laptop, phone) = (town.one, town.laptop, town.phone);
    town.tell_used(one, Measure::Upload, 1_001);
    let restricted = |town: &Town| !town.passes(laptop, "tcp/443") && town.passes(laptop, "tcp/80");
    assert!(restricted(&town));
    town.world.restart();
    for node in 0..town.world.nodes.len() {
        town.world.connect(node);
    }
    town.world.run(seconds(2));
    assert!(restricted(&town), "after a restart");
    let alice = town.alice();
    town.world.core.release_restraints(Restrained::Subject(alice), "root", town.world.now).expect("released");
    town.world.pump();
    town.world.run(seconds(1));
    assert!(town.passes(laptop, "tcp/443"));
    town.tell_used(one, Measure::Connections, 101);
    assert!(town.world.core.find_session("alice@corp.example/alice-laptop").is_err(), "the sessions have ended");
    assert!(!town.passes(laptop, "tcp/80") && !town.passes(phone, "tcp/80"));
    assert_eq!((town.alerts(AlertKind::Volume), town.alerts(AlertKind::Rate)), (1, 1));
}

#[test]
fn a_node_is_believed_about_what_its_document_says_and_nothing_else() {
    let mut town = town(92);
    let (one, laptop, bobs) = (town.one, town.laptop, town.bobs);
    let good = town.usage(Measure::Download, 5_000, 0);
    let wrong = [
        (bobs, good.clone(), "a machine on which alice may open nothing"),
        (one, Usage { budget: 7, ..good.clone() }, "another budget"),
        (one, Usage { within_ms: 5, ..good.clone() }, "another window"),
        (one, Usage { rule: "everybody reads the wiki".parse().expect("a name"), ..good.clone() }, "another rule"),
        (one, Usage { subject: SubjectId::from_bytes([77; 16]), ..good.clone() }, "nobody"),
    ];
    for (count, (node, usage, what)) in wrong.into_iter().enumerate() {
        town.tell(node, usage);
        assert!(town.passes(laptop, "tcp/443"), "{what}");
        assert_eq!(town.refused(), count as u64 + 1, "{what}");
    }
    town.tell(one, good);
    assert!(!town.passes(laptop, "tcp/443"), "and about that it is");
}

#[test]
fn a_watched_rule_alerts_once_in_its_window_and_takes_nothing() {
    let watched = POLICY.replace(
        "name = \"staff use files\"\n",
        "name = \"staff use files\"\nmode = \"monitor\"\nmonitor_until = \"2027-01-31\"\n",
    );
    let mut town = town_with(93, &watched);
    for _ in 0..3 {
        town.tell_used(town.one, Measure::Download, 5_000);
    }
    assert!(town.passes(town.laptop, "tcp/443"));
    assert_eq!(town.alerts(AlertKind::Volume), 1);
    town.world.run(seconds(3_600));
    town.world.join(town.laptop, &person("alice", &["staff"]));
    town.world.run(seconds(1));
    town.tell_used(town.one, Measure::Download, 5_000);
    assert_eq!(town.alerts(AlertKind::Volume), 2, "in the next window again");
}

#[test]
fn a_machine_that_scans_comes_into_quarantine_by_itself() {
    let mut town = town(94);
    let (one, laptop, phone, bobs) = (town.one, town.laptop, town.phone, town.bobs);
    let id = town.world.nodes[laptop].id();
    let told = town.world.nodes[one].peers[&id].scan.clone().expect("the server is told of the limit");
    assert_eq!((told.most, told.within_ms), (20, 60_000));
    let own = town.world.nodes[laptop].own.as_ref().and_then(|own| own.scan.clone());
    assert_eq!(own.map(|limit| limit.most), Some(20), "and the machine itself");
    town.scan(one, Some(id), told.budget);
    assert!(!town.passes(laptop, "tcp/80") && town.passes(phone, "tcp/80") && town.passes(bobs, "tcp/80"));
    let held = town.world.core.list_quarantines();
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].record.target, Quarantined::Device(id));
    assert_eq!(held[0].record.by, "limit \"machines that scan\"");
    assert_eq!((town.alerts(AlertKind::Scan), town.alerts(AlertKind::Quarantine)), (1, 1));
    town.scan(one, Some(id), told.budget);
    assert_eq!(town.alerts(AlertKind::Scan), 1, "it is said once");
    town.world.core.release(&Quarantined::Device(id), "root", town.world.now).expect("released");
    town.world.pump();
    town.world.run(seconds(5));
    assert!(town.passes(laptop, "tcp/80"));
    let anew = town.world.nodes[one].peers[&id].scan.clone().expect("told");
    assert!(anew.budget > told.budget, "nodes that shut it out open by this");
    let bobs_budget = town.world.nodes[bobs].own.as_ref().and_then(|own| own.scan.clone()).expect("told").budget;
    town.scan(bobs, None, bobs_budget);
    assert!(!town.passes(bobs, "tcp/80"), "a machine tells of itself");
}

#[test]
fn refused_destinations_are_summed_over_nodes_and_machines_of_a_subject() {
    let mut town = town(96);
    let (one, two, laptop, phone, bobs) = (town.one, town.two, town.laptop, town.phone, town.bobs);
    let [id, phones, bobs_id] = [laptop, phone, bobs].map(|node| town.world.nodes[node].id());
    let budget = town.world.nodes[one].peers[&id].scan.clone().expect("told").budget;
    town.destinations_refused(one, Some(id), budget, 12);
    town.destinations_refused(one, Some(id), budget, 12);
    town.destinations_refused(two, Some(phones), budget, 8);
    town.destinations_refused(two, Some(bobs_id), budget, 20);
    town.destinations_refused(laptop, None, budget, 20);
    assert_eq!(
        town.alerts(AlertKind::Scan),
        0,
        "twenty of alice's, twenty of bob's, and her own word is no part of it"
    );
    town.world.run(seconds(61));
    town.destinations_refused(two, Some(phones), budget, 9);
    assert_eq!(town.alerts(AlertKind::Scan), 0, "what was said a window ago counts no more");
    town.destinations_refused(one, Some(id), budget, 12);
    assert!(!town.passes(laptop, "tcp/80"), "twenty-one, and most of them the laptop's");
    assert!(town.passes(phone, "tcp/80") && town.passes(bobs, "tcp/80"));
    assert_eq!((town.alerts(AlertKind::Scan), town.alerts(AlertKind::Quarantine)), (1, 1));
}

#[test]
fn a_node_accuses_nobody_whom_it_does_not_meet_and_not_everybody() {
    let mut world = World::new(95, POLICY);
    let server = world.server("files-1", Some("files"), &["files"]);
    let names: Vec<String> = (0..20).map(|number| format!("person{number}")).collect();
    let laptops: Vec<usize> =
        names.iter().map(|name| world.laptop(&format!("{name}-laptop"), &person(name, &["staff"]))).collect();
    let outsider = world.laptop("eve-laptop", &person("eve", &["staff"]));
    world.run(seconds(1));
    let mut town = Town { world, one: server, two: server, laptop: laptops[0], phone: laptops[1], bobs: laptops[2] };
    let first = town.world.nodes[laptops[0]].id();
    town.scan(outsider, Some(first), 0);
    assert!(town.world.core.list_quarantines().is_empty(), "laptops do not meet");
    for laptop in laptops {
        let id = town.world.nodes[laptop].id();
        town.scan(server, Some(id), 0);
    }
    assert_eq!(town.world.core.list_quarantines().len(), 16, "then a person has to look at the server");
    assert!(town.refused() >= 4);
}

#[test]
fn a_laptop_accuses_no_server_that_it_may_open() {
    let policy =
        POLICY.replace("from = [\"group:staff\"]\nrefused", "from = [\"group:staff\", \"service:files\"]\nrefused");
    let mut town = town_with(97, &policy);
    let (one, laptop) = (town.one, town.laptop);
    let server = town.world.nodes[one].id();
    let own = town.world.nodes[one].own.as_ref().and_then(|own| own.scan.clone()).expect("servers have the limit too");
    assert!(town.world.nodes[laptop].peers[&server].scan.is_none(), "what may open nothing is not to be watched");
    town.scan(laptop, Some(server), own.budget);
    assert!(town.world.core.list_quarantines().is_empty() && town.alerts(AlertKind::Scan) == 0);
    assert_eq!(town.refused(), 1);
    assert!(town.passes(laptop, "tcp/443"));
}

/// A server, and people who may open it, each on a laptop.
pub(super) fn crowd(seed: u64, people: usize, policy: &str) -> (Town, Vec<usize>) {
    let mut world = World::new(seed, policy);
    let one = world.server("files-1", Some("files"), &["files"]);
    let two = world.server("files-2", Some("files"), &["files"]);
    let alice = world.laptop("alice-laptop", &person("alice", &["staff"]));
    let others = (1..people).map(|number| {
        let name = format!("person{number}");
        world.laptop(&format!("{name}-laptop"), &person(&name, &["staff"]))
    });
    let laptops: Vec<usize> = [alice].into_iter().chain(others).collect();
    world.run(seconds(1));
    (Town { world, one, two, laptop: laptops[0], phone: laptops[1], bobs: laptops[2] }, laptops)
}

#[test]
fn one_server_closes_a_few_people_by_its_word_and_cannot_have_another_server_say_it() {
    let (mut town, laptops) = crowd(98, 20, POLICY);
    let (one, two) = (town.one, town.two);
    let of = |town: &Town, laptop: usize, used: u64| {
        let subject = town.world.nodes[one].peers[&town.world.nodes[laptop].id()].subject;
        Usage { subject, ..town.usage(Measure::Upload, used, 0) }
    };
    // All but one byte, of everybody: nothing follows, and the other server's byte would be the one too many.
    for laptop in &laptops {
        let (most, byte) = (of(&town, *laptop, 1_000), of(&town, *laptop, 1));
        town.tell(one, most);
        town.tell(two, byte);
    }
    let closed = |town: &Town| laptops.iter().filter(|laptop| !town.passes(**laptop, "tcp/443")).count();
    assert_eq!(closed(&town), 16, "then a person has to look at the server");
    for laptop in &laptops {
        let much = of(&town, *laptop, 5_000);
        town.tell(one, much);
    }
    assert_eq!(closed(&town), 16);
    let told: Vec<&str> = town.world.store.alerts.iter().map(|alert| alert.text.as_str()).collect();
    let of_server = told.iter().filter(|text| text.starts_with("files-1 says of more than 16 subjects")).count();
    assert_eq!((of_server, told.len()), (1, 17), "{told:?}");
    let last = of(&town, laptops[19], 1_001);
    town.tell(two, last);
    assert_eq!(closed(&town), 17, "another server's own word counts");
}

#[test]
fn what_is_taken_already_is_not_taken_and_told_again_at_every_word() {
    let policy = POLICY
        .replace("refused = \"20/m\"\non_exceed = \"quarantine\"", "refused = \"20/m\"\non_exceed = \"challenge\"");
    let mut town = town_with(99, &policy);
    let (one, laptop) = (town.one, town.laptop);
    let taken = |town: &Town| {
        let told = |event: &&AuditEvent| matches!(event, AuditEvent::Restrained { .. });
        (town.world.audit.iter().filter(told).count(), town.alerts(AlertKind::Scan), town.alerts(AlertKind::Volume))
    };
    let scans = |town: &mut Town| {
        for _ in 0..50 {
            let own = town.world.nodes[laptop].own.as_ref().and_then(|own| own.scan.clone()).expect("told");
            town.scan(laptop, None, own.budget);
        }
    };
    scans(&mut town);
    assert!(!town.passes(laptop, "tcp/443"));
    assert_eq!(taken(&town), (1, 1, 0), "it tells of itself as often as it likes");
    town.step_up(laptop);
    assert!(town.passes(laptop, "tcp/443"));
    scans(&mut town);
    assert_eq!(taken(&town), (2, 2, 0), "and is asked again once it has answered");
    for _ in 0..20 {
        let Some(peer) = town.world.nodes[one].peers.get(&town.world.nodes[town.phone].id()) else { break };
        let files = peer.inbound.iter().find(|permission| permission.resource.as_str() == "files");
        let upload = files.and_then(|files| files.limits.iter().find(|limit| limit.measure == Measure::Upload));
        let budget = upload.map_or(0, |limit| limit.budget);
        let usage = town.usage(Measure::Upload, 5_000, budget);
        town.tell(one, usage);
    }
    assert_eq!(taken(&town), (3, 2, 1), "so does a server");
}

#[test]
fn what_a_server_tells_of_itself_is_told_on_and_takes_nothing() {
    let policy =
        POLICY.replace("from = [\"group:staff\"]\nrefused", "from = [\"group:staff\", \"service:files\"]\nrefused");
    let mut town = town_with(100, &policy);
    let one = town.one;
    for _ in 0..5 {
        let own = town.world.nodes[one].own.as_ref().and_then(|own| own.scan.clone()).expect("told");
        town.scan(one, None, own.budget);
    }
    assert!(town.world.core.list_quarantines().is_empty(), "whom it serves can make its programs ask for anything");
    assert_eq!(town.alerts(AlertKind::Scan), 1);
    assert!(town.passes(town.laptop, "tcp/443"));
}

#[test]
fn a_cheap_challenge_begins_no_other_budget_and_cancels_nothing_worse() {
    let policy = POLICY.replace(
        "to = [\"wiki\"]\n",
        "to = [\"wiki\"]\nlimits = { download = \"1000B/h\", on_exceed = \"challenge\" }\n",
    );
    let mut town = town_with(101, &policy);
    let (one, two, laptop) = (town.one, town.two, town.laptop);
    town.tell_used(one, Measure::Download, 600);
    let wiki = Usage {
        rule: "everybody reads the wiki".parse().expect("a name"),
        resource: "wiki".parse().expect("a name"),
        ..town.usage(Measure::Download, 5_000, 0)
    };
    town.tell(one, wiki);
    assert!(!town.passes(laptop, "tcp/80") && town.passes(laptop, "tcp/443"));
    assert_eq!(town.budget(one, laptop, Measure::Download), 0, "the files' budget is the one it was");
    town.tell_used(two, Measure::Download, 401);
    assert!(!town.passes(laptop, "tcp/443"), "and what was used of it is not forgotten");

    let mut town = self::town(102);
    let usages = vec![town.usage(Measure::Download, 1_001, 0), town.usage(Measure::Connections, 101, 0)];
    town.world.send(one, FromNode::Behaviour { process: 1, usages, scans: vec![] });
    town.world.run(seconds(1));
    assert!(town.world.core.find_session("alice@corp.example/alice-laptop").is_err(), "the worst of a message is done");
}

pub(super) struct Map(pub(super) HashMap<IpAddr, Place>);

impl Atlas for Map {
    fn place_of(&self, address: IpAddr) -> Place {
        self.0.get(&address).copied().unwrap_or_default()
    }
}

#[test]
fn leaving_the_country_in_a_session_asks_for_a_fresh_sign_in_and_signing_in_there_does_not() {
    let mut town = town(96);
    let laptop = town.laptop;
    let (home, away) = (town.world.remote(laptop), SocketAddr::from(([203, 0, 113, 9], 40_000)));
    let place = |country: &str| Place { country: Some(country.parse().expect("a country")), asn: None };
    let map = Map(HashMap::from([(home.ip(), place("DE")), (away.ip(), place("FR"))]));
    town.world.core.set_atlas(Arc::new(map), town.world.now);
    town.world.pump();
    town.world.run(seconds(5));
    let go = |town: &mut Town, to: SocketAddr| {
        town.world.cut_stream(laptop);
        town.world.nodes[laptop].moved_to = Some(to);
        town.world.connect(laptop);
        town.world.run(seconds(1));
    };
    go(&mut town, home);
    assert!(town.passes(laptop, "tcp/443"));
    go(&mut town, away);
    assert!(!town.passes(laptop, "tcp/443") && !town.passes(laptop, "tcp/80"));
    assert!(town.passes(town.phone, "tcp/443"), "her other machine stayed");
    let told =
        town.world.core.explain("alice@corp.example/alice-laptop", "files", None, town.world.now).expect("known");
    assert!(told.reason.starts_with("alice-laptop speaks from FR, and spoke from DE before"), "{}", told.reason);
    town.step_up(laptop);
    assert!(town.passes(laptop, "tcp/443"), "it is she");
    town.world.run(seconds(5));
    go(&mut town, away);
    assert!(town.passes(laptop, "tcp/443"), "and she stays there");
    let unmapped = SocketAddr::from(([198, 51, 100, 9], 40_000));
    go(&mut town, unmapped);
    assert!(town.passes(laptop, "tcp/443"), "a place that nobody knows is no other place");
    go(&mut town, home);
    assert!(!town.passes(laptop, "tcp/443"), "and no way round: it spoke from FR before that");
    let back = Person { auth_time: Some(town.world.now.wall), ..person("alice", &["staff"]) };
    town.world.run(seconds(5));
    town.world.cut_stream(laptop);
    town.world.nodes[laptop].moved_to = Some(home);
    town.world.join(laptop, &back);
    town.world.run(seconds(1));
    assert!(town.passes(laptop, "tcp/443"), "who signs in there has just proven who they are");
}
