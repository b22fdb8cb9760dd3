//! Claims about places: where a device speaks from opens and closes, and what is not known opens nothing.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use postern_common::{
    grant::Mode,
    policy::Place,
    probe::ProbeKey,
    protocol::{FromNode, SeenPeer, ToNode},
};

use super::world::{World, config, person};
use crate::signals::{alerts::AlertKind, place::Atlas};

const POLICY: &str = r#"
[resource.wiki]
nodes = ["tag:wiki"]
ports = ["tcp/80"]

[[access]]
name = "staff read the wiki from home"
from = ["group:staff"]
to = ["wiki"]
when = { country = "DE", mfa_within = "12h" }
"#;

struct Map(HashMap<IpAddr, Place>);

impl Atlas for Map {
    fn place_of(&self, address: IpAddr) -> Place {
        self.0.get(&address).copied().unwrap_or_default()
    }
}

fn place(country: &str) -> Place {
    Place { country: Some(country.parse().expect("a country")), asn: None }
}

#[test]
fn a_map_that_changes_and_a_device_that_moves_open_and_close() {
    let mut world = World::new(41, POLICY);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    world.run(Duration::from_secs(1));
    let passes = |world: &World| world.passes(bob, wiki, "tcp/80");
    assert!(!passes(&world), "without a map no place is known");
    let (home, away) = (world.remote(bob), SocketAddr::from(([203, 0, 113, 9], 40_000)));
    let map = |world: &mut World, at_home: &str| {
        let now = world.now;
        let places = HashMap::from([(home.ip(), place(at_home)), (away.ip(), place("FR"))]);
        world.core.set_atlas(Arc::new(Map(places)), now);
        world.pump();
        world.run(Duration::from_secs(1));
        passes(world)
    };
    assert!(map(&mut world, "DE"));
    assert!(!map(&mut world, "FR"));
    assert!(map(&mut world, "DE"));
    for (remote, expected) in [(away, false), (home, true)] {
        world.cut_stream(bob);
        world.nodes[bob].moved_to = Some(remote);
        world.connect(bob);
        world.run(Duration::from_secs(1));
        assert_eq!(passes(&world), expected, "{remote}");
    }
    let alerts: Vec<_> = world.store.alerts.iter().map(|alert| (alert.kind, alert.text.as_str())).collect();
    assert_eq!(alerts.len(), 2, "there and back: {alerts:?}");
    assert_eq!(alerts[0].0, AlertKind::NewPlace);
    assert!(alerts[0].1.contains("bob-laptop") && alerts[0].1.contains("(FR)") && alerts[0].1.contains("(DE)"));
}

#[test]
fn a_device_that_moved_while_the_controller_was_down_is_not_overlooked() {
    let mut world = World::new(42, POLICY);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    let (home, away) = (world.remote(bob), SocketAddr::from(([203, 0, 113, 9], 40_000)));
    let map = || Arc::new(Map(HashMap::from([(home.ip(), place("DE")), (away.ip(), place("FR"))])));
    world.core.set_atlas(map(), world.now);
    world.pump();
    world.run(Duration::from_secs(1));
    assert!(world.passes(bob, wiki, "tcp/80") && world.store.alerts.is_empty());
    world.atlas = map();
    world.restart();
    world.nodes[bob].moved_to = Some(away);
    world.connect(wiki);
    world.connect(bob);
    world.run(Duration::from_secs(1));
    assert!(!world.lets_in(bob, wiki, "tcp/80"));
    assert!(world.store.alerts.iter().any(|alert| alert.kind == AlertKind::NewPlace), "{:?}", world.store.alerts);
}

/// Bob at home in DE, with two wikis, and an address in FR.
struct Scene {
    world: World,
    wikis: [usize; 2],
    bob: usize,
    home: SocketAddr,
    away: SocketAddr,
    sequence: u64,
}

fn scene(seed: u64) -> Scene {
    let mut with_probes = config();
    with_probes.probe_port = Some(3_478);
    let mut world = World::with(seed, POLICY, with_probes);
    let wikis = ["wiki-1", "wiki-2"].map(|name| world.server(name, Some("wiki"), &["wiki"]));
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    let (home, away) = (world.remote(bob), SocketAddr::from(([203, 0, 113, 9], 40_000)));
    let places = HashMap::from([(home.ip(), place("DE")), (away.ip(), place("FR"))]);
    world.core.set_atlas(Arc::new(Map(places)), world.now);
    world.pump();
    world.run(Duration::from_secs(1));
    let scene = Scene { world, wikis, bob, home, away, sequence: 0 };
    assert_eq!(scene.open(), [true, true]);
    scene
}

impl Scene {
    fn open(&self) -> [bool; 2] {
        self.wikis.map(|wiki| self.world.lets_in(self.bob, wiki, "tcp/80"))
    }

    fn probe(&mut self, from: SocketAddr) -> [bool; 2] {
        let Some(ToNode::Probe { id, key, .. }) = self.world.nodes[self.bob].probe.clone() else { panic!("a probe") };
        let key = ProbeKey::from_base64(&key).expect("a key");
        self.sequence += 1;
        self.world.core.observe_probe(&key.seal(id, self.sequence), from, self.world.now);
        self.world.pump();
        self.world.run(Duration::from_secs(1));
        self.open()
    }

    fn seen(&mut self, by: usize, address: &str, age_ms: u64) -> [bool; 2] {
        let device = self.world.nodes[self.bob].id();
        let address = address.parse().expect("an address");
        self.world.send(by, FromNode::Seen { peers: vec![SeenPeer { device, address, age_ms }] });
        self.world.run(Duration::from_secs(1));
        self.open()
    }

    fn moves_to(&mut self, remote: SocketAddr) -> [bool; 2] {
        self.world.cut_stream(self.bob);
        self.world.nodes[self.bob].moved_to = Some(remote);
        self.world.connect(self.bob);
        self.world.run(Duration::from_secs(1));
        self.open()
    }

    fn why(&mut self) -> String {
        let why = self.world.core.explain("bob@corp.example", "wiki", None, self.world.now).expect("explained");
        format!("{} {}", why.allowed, why.reason)
    }
}

#[test]
fn packets_from_abroad_beside_a_stream_from_home_close_and_packets_within_a_site_are_no_place() {
    let mut scene = scene(43);
    let (home, away) = (scene.home, scene.away);
    assert_eq!(scene.probe(home), [true, true]);
    assert_eq!(scene.probe(away), [false, false]);
    let why = scene.why();
    assert!(why.contains("false packets of the device come from 203.0.113.9"), "{why}");
    let alerts = scene.world.store.alerts.iter().filter(|alert| alert.kind == AlertKind::NewPlace);
    assert!(alerts.clone().any(|alert| alert.text.contains("sends from 203.0.113.9 (FR), and before from")));
    assert_eq!(scene.probe("10.1.2.3:9".parse().expect("an address")), [true, true]);
    assert_eq!(scene.probe(home), [true, true]);
}

#[test]
fn what_a_node_sees_counts_for_that_node_alone_and_only_of_who_reaches_it() {
    let mut scene = scene(44);
    let [one, two] = scene.wikis;
    assert_eq!(scene.seen(one, "203.0.113.9", 0), [false, true]);
    let why = scene.why();
    assert!(why.contains("packets of the device come from 203.0.113.9"), "{why}");
    scene.world.run(Duration::from_secs(600));
    assert_eq!(scene.open(), [false, true], "it stays so without another word: nothing comes from there any more");
    // Who is shut out of a node is none of its business any more.
    assert_eq!(scene.seen(one, "10.0.0.9", 0), [false, true]);
    assert_eq!(scene.seen(two, "10.0.0.9", 0), [false, true], "an address within a site is no place");
    // The machine moves, and what was seen before is of no use.
    let elsewhere = SocketAddr::from(([198, 51, 100, 77], 1));
    scene.moves_to(elsewhere);
    assert_eq!(scene.moves_to(scene.home), [true, true]);
    assert_eq!(scene.seen(one, "203.0.113.9", 60_000), [true, true], "a packet from before the stream is not news");
    // Whoever moves to and fro takes back nothing that nodes see.
    assert_eq!(scene.seen(one, "203.0.113.9", 0), [false, true]);
    scene.moves_to(elsewhere);
    assert_eq!(scene.moves_to(scene.home), [false, true]);
    for from in [scene.home, elsewhere, scene.home] {
        scene.probe(from);
    }
    assert_eq!(scene.open(), [false, true]);
    scene.world.run(Duration::from_secs(3_700));
    assert_eq!(scene.seen(two, "203.0.113.9", 10), [true, false]);
    scene.world.run(Duration::from_secs(3_700));
    assert_eq!(scene.open(), [true, true], "an hour later it is forgotten, and the node may see again");
}

#[test]
fn what_is_only_lent_from_where_a_node_sees_a_machine_is_lent_on_that_node_alone() {
    let mut scene = scene(45);
    let watched = "mode = \"monitor\"\nmonitor_until = \"2026-11-24\"\n";
    scene.world.apply_policy(&format!("{POLICY}{watched}"));
    scene.world.run(Duration::from_secs(1));
    let [one, _] = scene.wikis;
    assert_eq!(scene.seen(one, "203.0.113.9", 0), [true, true]);
    let bob = scene.world.nodes[scene.bob].id();
    let lent = scene.wikis.map(|wiki| {
        let given = &scene.world.nodes[wiki].peers[&bob].inbound;
        given.iter().map(|permission| permission.mode != Mode::Enforce).collect::<Vec<_>>()
    });
    assert_eq!(lent, [[true], [false]]);
}

#[test]
fn a_stream_that_follows_its_probe_is_no_second_news_and_long_after_it_is() {
    for (later, alerts) in [(60, 1), (700, 2)] {
        let mut scene = scene(46);
        let (home, away) = (scene.home, scene.away);
        scene.probe(home);
        scene.probe(away);
        scene.world.run(Duration::from_secs(later));
        scene.moves_to(away);
        let told = scene.world.store.alerts.iter().filter(|alert| alert.kind == AlertKind::NewPlace).count();
        assert_eq!(told, alerts, "after {later} s");
    }
}
