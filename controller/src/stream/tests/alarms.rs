//! Claims about what alerts are raised for.

use std::time::Duration;

use postern_common::{protocol::FromNode, time::WallTime};

use super::{
    claims::{POLICY, Town, town},
    world::{World, config, person},
};
use crate::{records::Quarantined, signals::alerts::AlertKind, stream::CoreConfig};

#[test]
fn quarantine_bursts_of_refusals_and_what_wakes_after_long_raise_alerts_and_daily_life_none() {
    let Town { mut world, payroll, wiki, bob, .. } = town(100);
    assert!(world.store.alerts.is_empty(), "joining and working: {:?}", world.store.alerts);
    let held = Quarantined::Device(world.nodes[payroll].id());
    world.core.quarantine(held.clone(), "it scans", "root", world.now).expect("held");
    world.core.release(&held, "root", world.now).expect("released");
    world.pump();
    let kinds = |world: &super::world::World| world.store.alerts.iter().map(|alert| alert.kind).collect::<Vec<_>>();
    assert_eq!(kinds(&world), [AlertKind::Quarantine, AlertKind::Quarantine]);
    assert!(world.store.alerts[0].text.contains("payroll") && world.store.alerts[0].text.contains("it scans"));

    for refused in [7, 5_000, 5_000] {
        world.send(wiki, FromNode::Refusals { refused });
        world.run(Duration::from_secs(1));
    }
    assert_eq!(kinds(&world)[2..], [AlertKind::DenyBurst], "one in five minutes, and none for a handful");
    assert_eq!(world.store.alerts[2].device, Some(world.nodes[wiki].id()));

    let long_ago = WallTime::from_millis(world.now.wall.as_millis() - 31 * 86_400_000);
    let id = world.nodes[bob].id();
    world.cut_stream(bob);
    for device in world.store.loaded.devices.iter_mut().filter(|device| device.id == id) {
        device.last_seen = long_ago;
    }
    world.restart();
    world.connect(bob);
    world.run(Duration::from_secs(1));
    let woke = world.store.alerts.last().expect("an alert");
    assert_eq!(woke.kind, AlertKind::DormantAwake);
    assert!(woke.text.contains("bob-laptop"), "{woke:?}");
}

const DAY_MS: i64 = 86_400_000;

fn days(n: u64) -> Duration {
    Duration::from_secs(n * 86_400)
}

/// Lets days pass by the wall clock: login sessions end, and whoever is connected stays so.
fn sleep(world: &mut World, days: i64) {
    world.clock_set += days * DAY_MS;
    world.run(Duration::from_secs(61));
    world.core.accept_clock("days went by", world.now).expect("a reason");
    world.pump();
}

fn woken(world: &World) -> Vec<&str> {
    let woken = world.store.alerts.iter().filter(|alert| alert.kind == AlertKind::DormantAwake);
    woken.map(|alert| alert.text.as_str()).collect()
}

#[test]
fn who_comes_back_after_long_is_told_of_on_whatever_machine_and_on_the_pages() {
    let Town { mut world, .. } = town(102);
    sleep(&mut world, 20);
    world.core.admit_person(&person("bob", &["staff"]), world.now);
    sleep(&mut world, 20);
    world.core.admit_person(&person("bob", &["staff"]), world.now);
    world.pump();
    assert!(woken(&world).is_empty(), "twenty days are not long: {:?}", woken(&world));
    let alice = person("alice", &["payroll", "staff"]);
    world.laptop("alice-new", &alice);
    let told = |world: &World, who: &str| woken(world).iter().filter(|text| text.starts_with(who)).count();
    assert_eq!((woken(&world).len(), told(&world, "alice@corp.example is used again")), (1, 1), "an unknown machine");
    sleep(&mut world, 31);
    world.core.admit_person(&person("bob", &["staff"]), world.now);
    world.core.admit_person(&person("bob", &["staff"]), world.now);
    world.pump();
    assert_eq!((woken(&world).len(), told(&world, "bob@corp.example is used again")), (2, 1), "the pages alone, once");
}

#[test]
fn a_service_that_gets_a_machine_after_long_is_told_of_also_if_its_old_ones_are_gone() {
    let Town { mut world, .. } = town(103);
    let build = world.server("build-1", Some("build"), &[]);
    sleep(&mut world, 40);
    world.server("build-2", Some("build"), &[]);
    assert!(woken(&world).is_empty(), "its other machine is connected: {:?}", woken(&world));
    for node in [build, build + 1] {
        let machine = world.nodes[node].id();
        world.core.remove_device(machine, "root", world.now).expect("removed");
        world.pump();
    }
    sleep(&mut world, 10);
    world.server("build-3", Some("build"), &[]);
    assert!(woken(&world).is_empty(), "ten days after the last: {:?}", woken(&world));
    let machine = world.nodes.last().expect("a machine").id();
    world.core.remove_device(machine, "root", world.now).expect("removed");
    world.pump();
    sleep(&mut world, 31);
    world.server("build-4", Some("build"), &[]);
    assert_eq!(woken(&world).len(), 1);
    assert!(woken(&world)[0].starts_with("service:build is used again"), "{:?}", woken(&world));
}

#[test]
fn a_machine_that_is_switched_on_with_nobody_signed_in_is_used_by_nobody() {
    let Town { mut world, alice, .. } = town(104);
    world.core.admit_person(&person("lea", &[]), world.now);
    world.pump();
    let new = |uses| crate::stream::NewToken {
        service: Some("build".parse().expect("a name")),
        tags: Default::default(),
        machine: None,
        networks: vec![],
        uses,
        life: days(400),
    };
    let (used, _) = world.core.create_token(new(5), "root", world.now).expect("a token");
    world.core.create_token(new(6), "root", world.now).expect("a token that nobody uses");
    world.pump();
    sleep(&mut world, 95);
    assert!(world.nodes[alice].stream.is_some(), "her machine is switched on");
    world.core.admit_person(&person("lea", &[]), world.now);
    let node = world.add_node("build-9", super::node::Want::Enrol(used));
    world.connect(node);
    world.run(Duration::from_secs(1));
    let cutoff = WallTime::from_millis(world.now.wall.as_millis() - 90 * 86_400_000);
    let stale = world.core.list_stale(cutoff, world.now);
    let names: Vec<String> = stale.iter().map(|view| format!("{:?} {}", view.kind, view.name)).collect();
    let has = |name: &str| names.iter().any(|known| known == name);
    assert!(has("Device alice-laptop") && has("Person alice@corp.example"), "{names:?}");
    assert!(!has("Person lea@corp.example"), "she was on the pages: {names:?}");
    let tokens: Vec<&String> = names.iter().filter(|name| name.starts_with("Token")).collect();
    assert_eq!(tokens.len(), 1, "the one that a machine came with is used: {names:?}");
    let before = names.clone();
    world.restart();
    let stale = world.core.list_stale(cutoff, world.now);
    let after: Vec<String> = stale.iter().map(|view| format!("{:?} {}", view.kind, view.name)).collect();
    assert!(before.iter().all(|name| after.contains(name)), "also after a restart: {after:?}");
}

#[test]
fn the_same_life_raises_the_same_alerts_in_the_same_order() {
    let life = || {
        let learned = CoreConfig { learn_for: Duration::ZERO, ..config() };
        let mut world = World::with(105, POLICY, learned);
        let nodes: Vec<usize> =
            (0..6).map(|n| world.server(&format!("s-{n}"), Some(&format!("service-{n}")), &[])).collect();
        for place in 1..4 {
            for node in &nodes {
                world.nodes[*node].moved_to = Some(format!("203.0.{place}.9:4000").parse().expect("an address"));
                world.cut_stream(*node);
                world.connect(*node);
                world.run(Duration::from_secs(1));
            }
        }
        world.run(Duration::from_secs(400));
        world.store.alerts.into_iter().map(|alert| alert.text).collect::<Vec<_>>()
    };
    let first = life();
    assert_eq!(first.iter().filter(|text| text.contains("more things are new")).count(), 6, "{first:?}");
    assert_eq!(first, life());
}

#[test]
fn what_nobody_uses_is_listed_and_what_is_connected_is_not() {
    let Town { mut world, bob, wiki, .. } = town(101);
    let since =
        |world: &super::world::World, days: i64| WallTime::from_millis(world.now.wall.as_millis() - days * 86_400_000);
    assert!(world.core.list_stale(since(&world, 90), world.now).is_empty());
    let new = crate::stream::NewToken {
        service: None,
        tags: Default::default(),
        machine: None,
        networks: vec![],
        uses: 3,
        life: Duration::from_secs(400 * 86_400),
    };
    world.core.create_token(new, "root", world.now).expect("a token");
    world.pump();
    world.cut_stream(bob);
    world.cut_stream(wiki);
    let later = postern_common::time::Now {
        monotonic: world.now.monotonic,
        wall: world.now.wall.saturating_add(Duration::from_secs(100 * 86_400)),
    };
    let cutoff = WallTime::from_millis(later.wall.as_millis() - 90 * 86_400_000);
    let stale = world.core.list_stale(cutoff, later);
    let mut names: Vec<String> = stale.iter().map(|view| format!("{:?} {}", view.kind, view.name)).collect();
    names.sort();
    let token = stale.iter().find(|view| view.kind == crate::stream::StaleKind::Token).expect("the token").name.clone();
    assert_eq!(
        names,
        [
            "Device bob-laptop".to_owned(),
            "Device wiki-1".into(),
            "Person bob@corp.example".into(),
            "Service service:wiki".into(),
            format!("Token {token}"),
        ],
        "alice's laptop and the other servers are connected"
    );
}
