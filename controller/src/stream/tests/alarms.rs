//! Claims about what alerts are raised for.

use std::time::Duration;

use postern_common::{protocol::FromNode, time::WallTime};

use super::claims::{Town, town};
use crate::{records::Quarantined, signals::alerts::AlertKind};

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
