//! Claims about restarts and restores of the controller.

use std::time::Duration;

use postern_common::key::ControllerSigningKey;

use super::{
    claims::POLICY,
    world::{World, config, person, policy},
};
use crate::{
    records::AuditEvent,
    stream::{Core, Effect, restored},
};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn town(seed: u64) -> (World, usize, usize) {
    let mut world = World::new(seed, POLICY);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    world.run(seconds(1));
    (world, wiki, bob)
}

#[test]
fn a_restarted_controller_goes_on_with_the_same_keys_and_cuts_nothing() {
    for source_first in [true, false] {
        let (mut world, wiki, bob) = town(1);
        let his = world.nodes[bob].id();
        let before = world.nodes[wiki].peers[&his].pairs.clone();
        world.run(seconds(7));
        world.restart();
        let order = if source_first { [bob, wiki] } else { [wiki, bob] };
        for node in order {
            world.run_with(seconds(3), |world| {
                assert!(world.lets_in(bob, wiki, "tcp/80") && world.nodes[bob].may_open(world.now).len() == 2);
            });
            world.connect(node);
        }
        world
            .run_with(seconds(120), |world| assert!(world.passes(bob, wiki, "tcp/80"), "source first: {source_first}"));
        assert_eq!(world.nodes[wiki].peers[&his].pairs, before, "the pre-shared key under the session is the same");
    }
}

#[test]
fn a_destination_that_knows_the_keys_for_the_other_direction_alone_is_not_promised_after_a_restart() {
    let both = format!(
        "{POLICY}\n[resource.ledger]\nnode = \"payroll\"\nports = [\"tcp/99\"]\n[[access]]\nname = \"back\"\nfrom = [\"service:db\"]\nto = [\"ledger\"]\n"
    );
    let mut world = World::new(9, POLICY);
    let payroll = world.server("payroll", Some("payroll"), &[]);
    let db = world.server("db", Some("db"), &[]);
    world.run(seconds(1));
    assert!(world.passes(payroll, db, "tcp/5432"));
    world.cut_stream(payroll);
    world.apply_policy(&both);
    world.run(seconds(1));
    world.restart();
    world.connect(db);
    world.run(seconds(1)); // the world asserts the order of opening for whatever is told
    assert!(world.nodes[db].may_open(world.now).is_empty());
    world.connect(payroll);
    world.run(seconds(1));
    assert!(world.passes(db, payroll, "tcp/99"));
    world.restart();
    world.connect(db);
    world.run(seconds(1));
    assert!(world.passes(db, payroll, "tcp/99"), "what was acknowledged outlives a restart");
}

#[test]
fn what_a_later_policy_gave_keeps_its_own_time_over_a_restart() {
    let long = POLICY.replace("lease = \"30s\"", "lease = \"20m\"");
    let more = format!(
        "{long}\n[[access]]\nname = \"staff see the database\"\nfrom = [\"group:staff\"]\nto = [\"db\"]\nlease = \"2m\"\n"
    );
    let mut world = World::new(10, &long);
    let db = world.server("db", Some("db"), &[]);
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    world.run(seconds(300));
    world.apply_policy(&more);
    world.run(seconds(2));
    assert!(world.passes(bob, db, "tcp/5432"));
    world.cut_stream(bob);
    world.run(seconds(60));
    world.restart();
    world.connect(db);
    world.run_with(seconds(50), |world| assert!(world.lets_in(bob, db, "tcp/5432"), "nothing of it has ended"));
    world.run(seconds(10));
    assert!(!world.lets_in(bob, db, "tcp/5432"), "two minutes from its own beginning");
}

#[test]
fn with_the_controller_away_leases_run_to_their_end() {
    let (mut world, wiki, bob) = town(2);
    world.restart(); // and nobody finds it
    world.run(seconds(31));
    assert!(!world.lets_in(bob, wiki, "tcp/80"));
    assert!(world.nodes[bob].may_open(world.now).is_empty());
    assert_eq!(world.store.loaded.leases.iter().filter(|lease| lease.session.is_some()).count(), 0);
    world.connect(wiki);
    world.connect(bob);
    world.run(seconds(1));
    assert!(world.passes(bob, wiki, "tcp/80"));
}

#[test]
fn what_was_revoked_before_a_crash_stays_revoked() {
    for effects in 0..12 {
        let (mut world, wiki, bob) = town(3);
        let session = world.core.find_session("bob@corp.example").expect("his session");
        world.crash_after = Some(effects);
        world.core.revoke(crate::records::RevokeTarget::Session(session), "lost", "root", world.now).expect("revoked");
        world.pump();
        let durable = world.store.loaded.sessions.iter().any(|session| session.ended.is_some());
        world.restart();
        world.connect(wiki);
        world.connect(bob);
        world.run(seconds(2));
        assert_eq!(world.lets_in(bob, wiki, "tcp/80"), !durable, "after {effects} effects: open as before, or closed");
    }
}

#[test]
fn a_restored_controller_begins_a_new_epoch_and_every_session_is_over() {
    let (mut world, wiki, bob) = town(4);
    let backup = world.store.clone();
    world.run(seconds(60));
    let (loaded, effects) = restored(backup.loaded, world.now);
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Audit(AuditEvent::Restored { sessions_ended: 1, .. })))
    );
    assert!(loaded.meta.epoch > 1);
    world.store.loaded = loaded;
    world.restart();
    world.connect(wiki);
    world.connect(bob);
    world.run(seconds(1));
    assert!(!world.lets_in(bob, wiki, "tcp/80"));
    assert!(world.nodes[wiki].peers.is_empty() && world.nodes[bob].peers.is_empty());
    assert!(world.nodes[bob].session_ended.is_some());
    world.nodes[bob].new_key();
    world.join(bob, &person("bob", &["staff"]));
    assert!(world.passes(bob, wiki, "tcp/80"));
}

#[test]
fn old_state_put_back_without_a_restore_is_not_taken_for_the_truth() {
    let (mut world, wiki, bob) = town(5);
    world.check_opening = false; // the destination has moved on to another life of the controller
    let old = world.store.clone();
    let (loaded, _) = restored(world.store.loaded.clone(), world.now);
    world.store.loaded = loaded;
    world.restart();
    world.connect(wiki);
    world.run(seconds(1));
    world.store = old;
    world.restart();
    world.connect(wiki);
    world.connect(bob);
    world.run(seconds(1));
    assert!(world.nodes[wiki].refused.as_ref().is_some_and(|why| why.contains("restore")));
    assert!(!world.lets_in(bob, wiki, "tcp/80"));
}

#[test]
fn the_wall_clock_set_forward_closes_and_set_back_stretches_nothing() {
    for jump in [13 * 3_600_000, -13 * 3_600_000] {
        let (mut world, _, _) = town(6);
        let mut now = world.now;
        let mut session_over = None;
        for step in 0..(12 * 120) {
            now.monotonic = now.monotonic.saturating_add(seconds(30));
            now.wall = now.wall.saturating_add(seconds(30));
            let jumped = postern_common::time::WallTime::from_millis(now.wall.as_millis() + jump);
            world.core.handle_timeout(postern_common::time::Now { monotonic: now.monotonic, wall: jumped });
            while world.core.poll_effect().is_some() {}
            if world.core.list_sessions().is_empty() && session_over.is_none() {
                session_over = Some(step);
            }
        }
        match jump > 0 {
            true => assert_eq!(session_over, Some(0), "forward closes"),
            false => assert!(session_over.is_some_and(|step| step <= 12 * 120), "back does not stretch"),
        }
    }
}

#[test]
fn a_login_session_that_the_wall_clock_overtook_ends_with_the_next_look_at_its_lease() {
    let (mut world, _, _) = town(8);
    let jump = Duration::from_secs(13 * 3_600);
    for _ in 0..20 {
        let monotonic = world.core.poll_timeout();
        let wall = world.now.wall.saturating_add(jump + monotonic.since(world.now.monotonic));
        world.core.handle_timeout(postern_common::time::Now { monotonic, wall }); // returns: nothing is due again at once
        while world.core.poll_effect().is_some() {}
    }
    assert!(world.core.list_sessions().is_empty());
}

#[test]
fn a_hundred_nodes_that_all_meet_are_told_once_each() {
    let text = format!(
        "{POLICY}\n[resource.mesh]\nnodes = [\"tag:mesh\"]\nports = [\"tcp/9000\"]\n[[access]]\nname = \"mesh\"\nfrom = [\"service:mesh\"]\nto = [\"mesh\"]\n"
    );
    let mut world = World::with(7, &text, config());
    world.check_opening = false;
    let nodes: Vec<usize> = (0..100).map(|i| world.server(&format!("mesh-{i}"), Some("mesh"), &["mesh"])).collect();
    world.run(seconds(2));
    let ids: Vec<_> = nodes.iter().map(|node| world.nodes[*node].peers.len()).collect();
    assert!(ids.iter().all(|peers| *peers == 99), "{ids:?}");
    let before = world.core.status().counters;
    world.run(seconds(300));
    let after = world.core.status().counters;
    assert_eq!(after.delta_peers, before.delta_peers, "leases of ten minutes: nothing to say for five");
    // A core takes up the state of a hundred nodes quickly and says nothing to anybody who is not there.
    let mut again = Core::new(
        config(),
        ControllerSigningKey::from_seed(&[5; 32]),
        policy(&text),
        std::sync::Arc::new(crate::signals::place::NoMaps),
        world.store.loaded.clone(),
        Box::new(|bytes| bytes.fill(1)),
        world.now,
    );
    while let Some(effect) = again.poll_effect() {
        assert!(!matches!(effect, Effect::Send { .. }));
    }
    assert_eq!(again.status().leases, 100);
}

#[test]
fn a_wall_clock_that_jumps_at_any_moment_ends_sessions_and_loops_nowhere() {
    for jump_after in 1..45 {
        for jump in [13 * 3_600_000, 40_000, -13 * 3_600_000] {
            let (mut world, _, _) = town(8);
            let mut now = world.now;
            now.monotonic = now.monotonic.saturating_add(seconds(jump_after));
            now.wall = postern_common::time::WallTime::from_millis(now.wall.as_millis() + jump);
            for _ in 0..2_000 {
                if world.core.poll_timeout() > now.monotonic {
                    break;
                }
                world.core.handle_timeout(now);
                while world.core.poll_effect().is_some() {}
            }
            assert!(world.core.poll_timeout() > now.monotonic, "after {jump_after} s, {jump} ms");
            now.monotonic = now.monotonic.saturating_add(seconds(30));
            world.core.handle_timeout(now);
            assert_eq!(
                world.core.list_sessions().is_empty(),
                jump == 13 * 3_600_000,
                "after {jump_after} s, {jump} ms"
            );
        }
    }
}
