//! Claims about the age of machines' keys.

use super::*;

#[test]
fn a_key_that_is_not_changed_in_time_alarms_and_denies_where_that_is_wanted() {
    for (overdue, passes) in [(KeyOverdue::Alert, true), (KeyOverdue::Deny, false)] {
        let config = CoreConfig { key_deadline: seconds(3_600), key_overdue: overdue, ..config() };
        let mut world = World::with(78, POLICY, config);
        let db = world.server("db", Some("db"), &[]);
        let payroll = world.server("payroll", Some("payroll"), &[]);
        let rotate_others = |world: &mut World| {
            for _part in 0..4 {
                world.run(seconds(1_000));
                world.freshen(db);
                world.freshen(payroll);
                world.rotate(db);
            }
            world.run(seconds(60));
        };
        assert!(world.passes(payroll, db, "tcp/5432"));
        rotate_others(&mut world);
        assert_eq!(alerts(&world, AlertKind::KeyOverdue), 1, "{overdue:?}");
        assert_eq!(world.passes(payroll, db, "tcp/5432"), passes, "{overdue:?}");
        let why = world.core.explain("service:payroll", "db", None, world.now).expect("explained");
        assert_eq!(why.allowed, passes, "{why:?}");
        world.rotate(payroll);
        world.run(seconds(61));
        assert!(world.passes(payroll, db, "tcp/5432"), "{overdue:?}: it has changed its key");
        assert_eq!(alerts(&world, AlertKind::KeyOverdue), 1);
    }
}

fn with_deadline() -> World {
    World::with(79, POLICY, CoreConfig { key_deadline: seconds(3_600), key_overdue: KeyOverdue::Deny, ..config() })
}

#[test]
fn a_key_of_somebody_who_comes_back_is_as_old_as_it_is() {
    let mut world = with_deadline();
    let alice = person("alice", &["staff"]);
    let laptop = world.laptop("alice-laptop", &alice);
    let id = world.nodes[laptop].id();
    let session = world.store.loaded.sessions.iter().find(|session| session.device == id).expect("a session").id;
    world.core.revoke(RevokeTarget::Session(session), "over", "root", world.now).expect("ended");
    world.pump();
    world.run(seconds(4_000));
    world.nodes[laptop].new_key();
    world.cut_stream(laptop);
    world.join(laptop, &alice);
    world.run(seconds(70));
    assert_eq!(world.nodes[laptop].id(), id, "the same machine");
    assert_eq!(alerts(&world, AlertKind::KeyOverdue), 0);
}

#[test]
fn a_key_of_unknown_age_counts_from_now_on_and_is_told_once_however_often_the_machine_comes_and_goes() {
    let mut world = with_deadline();
    let payroll = world.server("payroll", Some("payroll"), &[]);
    world.store.loaded.devices.iter_mut().for_each(|device| device.key_since = None);
    restart(&mut world, &[payroll]);
    for _part in 0..4 {
        world.run(seconds(1_000));
        world.freshen(payroll);
    }
    assert_eq!(alerts(&world, AlertKind::KeyOverdue), 1);
    for _time in 0..2 {
        world.cut_stream(payroll);
        world.run(seconds(70));
        world.connect(payroll);
        world.run(seconds(70));
    }
    assert_eq!(alerts(&world, AlertKind::KeyOverdue), 1);
}
