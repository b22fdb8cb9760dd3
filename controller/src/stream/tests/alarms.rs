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
