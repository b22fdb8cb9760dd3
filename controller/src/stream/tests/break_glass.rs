//! Claims about access past the rules.

use std::time::Duration;

use super::claims::{Town, town};
use crate::{
    records::{AuditEvent, Quarantined, RevokeTarget},
    signals::alerts::AlertKind,
    stream::CoreError,
};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn break_glass_opens_one_resource_to_one_machine_loudly_and_ends_by_itself() {
    let Town { mut world, payroll, wiki, db, alice, bob } = town(110);
    let (machine, resource) = (world.nodes[bob].id(), "db".parse().expect("a name"));
    let open = |world: &mut super::world::World, reason: &str, why: &str, length: u64| {
        let opened = world.core.break_glass(machine, &resource, seconds(length), reason, why, "root", world.now);
        world.pump();
        world.run(seconds(1));
        opened.map(|view| view.record.id)
    };
    for (reason, why, length) in
        [("", "x", 600), ("incident", " ", 600), ("same", "same", 600), ("a", "b", 5), ("a", "b", 20_000)]
    {
        let refused = open(&mut world, reason, why, length);
        assert!(matches!(refused, Err(CoreError::NotPermitted(_))), "{reason:?} {why:?} {length}: {refused:?}");
    }
    assert!(!world.lets_in(bob, db, "tcp/5432") && world.store.alerts.is_empty());
    open(&mut world, "incident 17", "no approver answers", 600).expect("open");
    assert!(world.passes(bob, db, "tcp/5432"));
    assert!(
        !world.lets_in(bob, payroll, "tcp/443") && !world.lets_in(alice, db, "tcp/5432"),
        "nothing and nobody else"
    );
    let rule = world.nodes[db].peers[&machine].inbound[0].rule.to_string();
    assert_eq!(rule, "BREAK-GLASS by root: incident 17", "it is named for what it is on the node");
    assert_eq!(world.store.alerts.iter().filter(|alert| alert.kind == AlertKind::BreakGlass).count(), 1);
    let audited = |event: &&AuditEvent| matches!(event, AuditEvent::BreakGlassOpened { record, .. } if record.why_past_the_rules == "no approver answers");
    assert_eq!(world.audit.iter().filter(audited).count(), 1);
    let why = world.core.explain("bob@corp.example", "db", None, world.now).expect("explained");
    assert!(why.allowed && why.reason.contains("BREAK-GLASS"), "{why:?}");
    world.run(seconds(590));
    assert!(world.passes(bob, db, "tcp/5432"), "renewed until then");
    world.run(seconds(20));
    assert!(!world.lets_in(bob, db, "tcp/5432") && !world.passes(bob, db, "tcp/5432"), "and over");
    assert!(world.passes(bob, wiki, "tcp/80"));
}

#[test]
fn a_machine_is_not_opened_to_for_what_it_calls_itself() {
    let Town { world, payroll, bob, .. } = town(112);
    let id = world.nodes[bob].id();
    let core = &world.core;
    let refused = core.machine_to_open("bob-laptop", None);
    assert!(matches!(&refused, Err(CoreError::NotPermitted(why)) if why.contains("bob@corp.example")), "{refused:?}");
    let refused = core.machine_to_open("bob-laptop", Some("alice@corp.example"));
    assert!(matches!(&refused, Err(CoreError::NotPermitted(why)) if why.contains("bob@corp.example")), "{refused:?}");
    let refused = core.machine_to_open(&id.to_string(), Some("alice@corp.example"));
    assert!(matches!(refused, Err(CoreError::NotPermitted(_))));
    assert_eq!(core.machine_to_open("bob-laptop", Some("bob@corp.example")), Ok(id));
    assert_eq!(core.machine_to_open(&id.to_string(), None), Ok(id));
    assert_eq!(core.machine_to_open("payroll", None), Ok(world.nodes[payroll].id()), "its name was approved");
}

#[test]
fn break_glass_does_not_pass_quarantine_nor_the_end_of_a_session_and_can_be_closed() {
    let Town { mut world, db, bob, .. } = town(111);
    let (machine, resource) = (world.nodes[bob].id(), "db".parse().expect("a name"));
    let opened =
        world.core.break_glass(machine, &resource, seconds(600), "incident", "nobody answers", "root", world.now);
    let id = opened.expect("open").record.id;
    assert!(id.to_string().starts_with("bg_") && world.core.find_break_glass(&id.to_string()[..8]) == Ok(id));
    world.pump();
    world.run(seconds(1));
    for held in [Quarantined::Resource(resource.clone()), Quarantined::Device(machine)] {
        world.core.quarantine(held.clone(), "odd", "root", world.now).expect("held");
        world.pump();
        world.run(seconds(1));
        assert!(!world.lets_in(bob, db, "tcp/5432"), "{held:?}");
        world.core.release(&held, "root", world.now).expect("released");
        world.pump();
        world.run(seconds(1));
        assert!(world.passes(bob, db, "tcp/5432"));
    }
    // A backup may be older than the closing.
    let (restored, _) = crate::stream::restored(world.store.loaded.clone(), world.now);
    assert!(!world.store.loaded.break_glass.is_empty() && restored.break_glass.is_empty());
    world.core.close_break_glass(id, "root", world.now).expect("closed");
    world.pump();
    world.run(seconds(1));
    assert!(!world.lets_in(bob, db, "tcp/5432"));
    let session = world.core.find_session("bob@corp.example").expect("his session");
    world.core.revoke(RevokeTarget::Session(session), "lost", "root", world.now).expect("revoked");
    let again =
        world.core.break_glass(machine, &resource, seconds(600), "incident", "nobody answers", "root", world.now);
    assert!(matches!(again, Err(CoreError::NotPermitted(_))), "nobody is signed in there: {again:?}");
}
