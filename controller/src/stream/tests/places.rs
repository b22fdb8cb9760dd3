//! Claims about places: where a device speaks from opens and closes, and what is not known opens nothing.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use postern_common::policy::Place;

use super::world::{World, person};
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
