//! Claims about quarantine: nothing in, nothing out, and nothing that somebody does afterwards opens it.

use std::time::Duration;

use super::{
    claims::{POLICY, Town, town},
    joining::local,
    node::Want,
    world::{World, person},
};
use crate::{
    identity::user_code::UserCode,
    records::{AuditEvent, Quarantined},
    stream::CoreError,
};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn hold(world: &mut World, target: Quarantined) {
    world.core.quarantine(target, "it scans", "root", world.now).expect("in quarantine");
    world.pump();
    world.run(seconds(1));
}

fn release(world: &mut World, target: &Quarantined) {
    world.core.release(target, "root", world.now).expect("released");
    world.pump();
    world.run(seconds(1));
}

/// Ends the controller and starts it again; every machine comes back.
fn restart(world: &mut World) {
    world.restart();
    for node in 0..world.nodes.len() {
        world.connect(node);
    }
    world.run(seconds(2));
}

#[test]
fn a_machine_in_quarantine_reaches_nothing_and_is_reached_by_nobody_and_is_told_why() {
    let Town { mut world, payroll, wiki, db, alice, bob } = town(70);
    let target = Quarantined::Device(world.nodes[payroll].id());
    let since = world.now.wall;
    let id = world.core.quarantine(target.clone(), "it scans", "root", world.now).expect("in quarantine");
    world.pump();
    world.run(seconds(1));
    assert!(!world.lets_in(alice, payroll, "tcp/443") && !world.passes(alice, payroll, "tcp/443"), "nothing in");
    assert!(!world.lets_in(payroll, db, "tcp/5432") && !world.passes(payroll, db, "tcp/5432"), "nothing out");
    assert!(world.nodes[payroll].peers.is_empty(), "it meets nobody");
    assert!(world.nodes[payroll].stream.is_some(), "and stays connected");
    let notice = world.nodes[payroll].own.as_ref().and_then(|own| own.quarantine.clone()).expect("told why");
    assert_eq!((notice.what.as_str(), notice.reason.as_str(), notice.since), ("payroll", "it scans", since));
    assert!(world.passes(bob, wiki, "tcp/80"), "nobody else is touched");
    let view = world.core.revocation(id, world.now).expect("its progress");
    assert!(view.done && view.acknowledged == 3, "alice-laptop, payroll and db: {view:?}");
    let held = |event: &&AuditEvent| matches!(event, AuditEvent::Quarantined { reason, .. } if reason == "it scans");
    assert_eq!(world.audit.iter().filter(held).count(), 1);
    release(&mut world, &target);
    assert!(world.passes(alice, payroll, "tcp/443") && world.passes(payroll, db, "tcp/5432"));
    assert!(world.nodes[payroll].own.as_ref().is_some_and(|own| own.quarantine.is_none()));
}

#[test]
fn a_quarantine_outlives_restarts_sign_ins_renewals_policies_and_new_streams() {
    let Town { mut world, payroll, wiki, db, alice, bob } = town(71);
    let alices = world.core.find_subject("alice@corp.example").expect("alice");
    let targets = [Quarantined::Device(world.nodes[payroll].id()), Quarantined::Subject(alices)];
    for target in targets.clone() {
        hold(&mut world, target);
    }
    let closed = |world: &World, when: &str| {
        assert!(!world.lets_in(alice, payroll, "tcp/443") && !world.lets_in(payroll, db, "tcp/5432"), "{when}");
        assert!(!world.lets_in(alice, wiki, "tcp/80") && world.nodes[alice].peers.is_empty(), "{when}");
        assert!(world.passes(bob, wiki, "tcp/80"), "{when}");
    };
    closed(&world, "at once");
    world.run(seconds(120));
    closed(&world, "after renewals");
    restart(&mut world);
    closed(&world, "after a restart");
    world.apply_policy(&POLICY.replace("staff read the wiki", "everybody reads the wiki"));
    world.run(seconds(2));
    closed(&world, "after another policy");
    world.join(alice, &person("alice", &["payroll", "staff"]));
    world.run(seconds(2));
    closed(&world, "after a sign-in");
    let laptop = world.laptop("alice-other", &person("alice", &["payroll", "staff"]));
    world.run(seconds(2));
    assert!(!world.lets_in(laptop, wiki, "tcp/80"), "another machine of hers opens nothing either");
    for node in [payroll, alice] {
        world.cut_stream(node);
        world.connect(node);
    }
    world.run(seconds(2));
    closed(&world, "after new streams");
    for target in &targets {
        release(&mut world, target);
    }
    assert!(world.passes(alice, payroll, "tcp/443"));
    assert!(world.passes(laptop, wiki, "tcp/80"));
}

#[test]
fn nobody_ends_a_quarantine_by_removing_the_machine_or_handing_it_on() {
    let Town { mut world, wiki, alice, .. } = town(72);
    let machine = world.nodes[alice].id();
    hold(&mut world, Quarantined::Device(machine));
    let refused = world.core.remove_own_device(machine, &person("alice", &[]), world.now);
    assert!(matches!(refused, Err(CoreError::NotPermitted(_))), "{refused:?}");
    // The same while it is she who is held: her machine would be free for somebody else's sign-in.
    let alices = world.core.find_subject("alice@corp.example").expect("alice");
    release(&mut world, &Quarantined::Device(machine));
    hold(&mut world, Quarantined::Subject(alices));
    let refused = world.core.remove_own_device(machine, &person("alice", &[]), world.now);
    assert!(matches!(&refused, Err(CoreError::NotPermitted(why)) if why.contains("subject alice")), "{refused:?}");
    release(&mut world, &Quarantined::Subject(alices));
    hold(&mut world, Quarantined::Device(machine));
    let session = world.core.find_session("alice@corp.example/alice-laptop").expect("her session");
    world.core.end_own_session(session, &person("alice", &[]), world.now).expect("she signs out");
    world.pump();
    world.run(seconds(1));
    world.nodes[alice].want = Want::Join;
    world.nodes[alice].code = None;
    world.cut_stream(alice);
    world.connect(alice);
    world.run(seconds(1));
    let code: UserCode = world.nodes[alice].code.clone().expect("a code").parse().expect("a code");
    let shown = world.nodes[alice].key.public();
    let answer = world.core.confirm_join(code, shown, &person("bob", &["staff"]), local(), world.now);
    assert!(matches!(&answer, Err(CoreError::NotPermitted(why)) if why.contains("stopped")), "{answer:?}");
    world.pump();
    world.run(seconds(2));
    assert!(!world.lets_in(alice, wiki, "tcp/80"), "nor as somebody else's");
}

#[test]
fn a_resource_in_quarantine_lets_nobody_in_under_any_name() {
    let Town { mut world, payroll, wiki, alice, bob, .. } = town(73);
    let target = Quarantined::Resource("wiki".parse().expect("a name"));
    hold(&mut world, target.clone());
    assert!(!world.lets_in(alice, wiki, "tcp/80") && !world.lets_in(bob, wiki, "tcp/443"));
    assert!(world.passes(alice, payroll, "tcp/443"));
    let why = world.core.explain("bob@corp.example", "wiki", None, world.now).expect("explained");
    assert!(!why.allowed && why.reason.contains("in quarantine since") && why.reason.contains("it scans"), "{why:?}");
    // Its author calls the ports something else, and another resource names a wider range on the same nodes.
    let renamed =
        POLICY.replace("[resource.wiki]", "[resource.wiki2]").replace("to = [\"wiki\"]", "to = [\"wiki2\", \"wide\"]")
            + "\n[resource.wide]\nnodes = [\"tag:wiki\"]\nports = [\"tcp/1-500\"]\n";
    world.apply_policy(&renamed);
    world.run(seconds(2));
    assert!(!world.lets_in(bob, wiki, "tcp/80") && !world.lets_in(bob, wiki, "tcp/443"), "by no other name");
    assert!(world.passes(bob, wiki, "tcp/1-79"), "what is beside it is not held");
    restart(&mut world);
    assert!(!world.lets_in(bob, wiki, "tcp/80"), "after a restart");
    release(&mut world, &target);
    assert!(world.passes(bob, wiki, "tcp/80"));
}

#[test]
fn a_resource_in_quarantine_stays_shut_when_its_machine_gets_another_name() {
    let Town { mut world, payroll, alice, .. } = town(75);
    let target = Quarantined::Resource("payroll-app".parse().expect("a name"));
    hold(&mut world, target.clone());
    let (machine, name) = (world.nodes[payroll].id(), "wages".parse().expect("a name"));
    world.core.rename_device(machine, name, "root", world.now).expect("renamed");
    let renamed = POLICY.replace("payroll-app", "wages-app").replace("node = \"payroll\"", "node = \"wages\"");
    world.apply_policy(&renamed);
    world.run(seconds(2));
    assert!(!world.lets_in(alice, payroll, "tcp/443"), "the machine is the same");
    restart(&mut world);
    assert!(!world.lets_in(alice, payroll, "tcp/443"), "after a restart");
    release(&mut world, &target);
    assert!(world.passes(alice, payroll, "tcp/443"), "which shows that the policy would give it");
}

#[test]
fn explanations_name_the_quarantine_of_who_asks_and_of_what_is_asked_for() {
    let Town { mut world, payroll, alice, .. } = town(74);
    let held = Quarantined::Device(world.nodes[payroll].id());
    hold(&mut world, held.clone());
    let why = |world: &mut World, who: &str, to: &str| world.core.explain(who, to, None, world.now).expect("explained");
    for (who, to) in
        [("alice@corp.example", "payroll-app"), ("service:payroll", "db"), ("alice@corp.example", "payroll")]
    {
        let why = why(&mut world, who, to);
        assert!(!why.allowed && why.reason.starts_with("payroll is in quarantine since"), "{who} -> {to}: {why:?}");
    }
    release(&mut world, &held);
    let alices = world.core.find_subject("alice@corp.example").expect("alice");
    hold(&mut world, Quarantined::Subject(alices));
    let why = why(&mut world, "alice@corp.example", "wiki");
    assert!(why.reason.starts_with("alice@corp.example is in quarantine since"), "{why:?}");
    let notice = world.nodes[alice].own.as_ref().and_then(|own| own.quarantine.clone()).expect("told why");
    assert_eq!(notice.what, "alice@corp.example");
}
