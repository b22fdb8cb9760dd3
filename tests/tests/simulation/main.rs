//! The whole house in virtual time: real agent cores, real data planes over deterministic tunnels, and the real core of
//! the controller, with a network, disks and clocks that misbehave, from a seed. No sleeping, no I/O, no threads.
//!
//! ```text
//! Machine: agent::core::Core, DataPlane<Simulated>, two directories --messages, delayed, lost--> World --> stream::Core
//! Disk: what the controller stored --oracle--> who may reach what --compared with--> what the data planes let pass
//! ```
//!
//! A failure prints its seed. `POSTERN_SIMULATION_SEED=7` runs that one alone; `POSTERN_SIMULATION_TRACE=1` prints the last
//! events before the failure; `POSTERN_SIMULATION_SEEDS=1000` runs more of them.
//!
//! | module | holds |
//! | --- | --- |
//! | `world` | events in the order of true time, and clocks |
//! | `world/controller`, `world/machines` | the hosts, and the network between them |
//! | `world/troubles` | what goes wrong |
//! | `world/claims` | what must hold |
//! | `machine` | one node: clocks, directories, shell |
//! | `oracle` | who may reach what, naively |
//! | `ledger` | the order of documents and acknowledgements |

mod disk;
mod ledger;
mod machine;
mod oracle;
mod rng;
mod world;

use std::collections::BTreeSet;

use postern_common::id::DeviceId;
use postern_controller::records::RevokeTarget;
use world::{Plan, Trouble, World};

const MINUTE: u64 = 60_000;

fn seeds(count: u64) -> Vec<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    match number("POSTERN_SIMULATION_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("POSTERN_SIMULATION_SEEDS").unwrap_or(count)).collect(),
    }
}

fn plan() -> Plan {
    Plan {
        servers: 10,
        laptops: 14,
        troubles: vec![],
        spacing_ms: 15_000,
        rotation_s: 3_600,
        session_s: 5_400,
        keys_checked: false,
    }
}

/// Runs a world with troubles for a while, then without, and waits for the truth.
fn run(seed: u64, plan: Plan, troubled_ms: u64) -> World {
    let mut world = World::new(seed, plan);
    world.run_until(troubled_ms);
    world.calm_down();
    world.run_for(2 * MINUTE);
    world.settle(10 * MINUTE);
    world.check_all();
    world
}

/// Runs many worlds; at least half of them must have doors in the end, or nothing was shown. One alone may have none.
fn run_all(count: u64, plan: &Plan, troubled_ms: u64) {
    let seeds = seeds(count);
    let open = seeds.iter().filter(|seed| !run(**seed, plan.clone(), troubled_ms).current.is_empty()).count();
    assert!(seeds.len() == 1 || open * 2 >= seeds.len(), "only {open} of {} worlds have an open door", seeds.len());
}

#[test]
fn every_node_enforces_what_policy_and_sessions_say_and_nothing_longer_than_a_lease() {
    let troubles = vec![
        (Trouble::Drop, 6),
        (Trouble::Partition, 1),
        (Trouble::Suspend, 2),
        (Trouble::JumpMachine, 3),
        (Trouble::JumpController, 2),
        (Trouble::Revoke, 4),
        (Trouble::Lift, 3),
        (Trouble::Policy, 4),
        (Trouble::Logout, 1),
    ];
    run_all(12, &Plan { troubles, ..plan() }, 15 * MINUTE);
}

#[test]
fn keys_of_both_ends_rotate_and_connected_machines_always_share_a_pair() {
    let troubles = vec![
        (Trouble::Drop, 6),
        (Trouble::Partition, 1),
        (Trouble::Suspend, 1),
        (Trouble::JumpMachine, 2),
        (Trouble::Kill, 3),
        (Trouble::CrashController, 1),
        (Trouble::Policy, 1),
    ];
    let plan = Plan { troubles, rotation_s: 45, session_s: 43_200, keys_checked: true, ..plan() };
    run_all(12, &Plan { servers: 6, laptops: 8, ..plan }, 10 * MINUTE);
}

#[test]
fn a_controller_killed_at_any_effect_goes_on_soundly() {
    let troubles = vec![
        (Trouble::CrashController, 8),
        (Trouble::Drop, 3),
        (Trouble::Revoke, 5),
        (Trouble::Lift, 3),
        (Trouble::Policy, 4),
        (Trouble::Logout, 1),
        (Trouble::JumpController, 1),
    ];
    run_all(25, &Plan { troubles, spacing_ms: 12_000, rotation_s: 300, ..plan() }, 12 * MINUTE);
}

/// The controller's clock is left alone: when somebody proved who they are, and since when that is asked, are times on it.
#[test]
fn a_restraint_takes_what_it_says_and_nothing_more_until_it_is_met_or_released() {
    let troubles = vec![
        (Trouble::Restrain, 8),
        (Trouble::Release, 4),
        (Trouble::Logout, 4),
        (Trouble::Drop, 3),
        (Trouble::Kill, 1),
        (Trouble::CrashController, 2),
        (Trouble::Revoke, 2),
        (Trouble::Lift, 2),
        (Trouble::Policy, 2),
        (Trouble::JumpMachine, 1),
    ];
    run_all(12, &Plan { troubles, spacing_ms: 10_000, ..plan() }, 12 * MINUTE);
}

#[test]
fn a_controller_restored_from_an_old_copy_starts_over_and_closes_what_it_does_not_know() {
    let troubles = vec![
        (Trouble::CopyDirectories, 3),
        (Trouble::RestoreController, 2),
        (Trouble::CrashController, 1),
        (Trouble::Drop, 3),
        (Trouble::Policy, 2),
        (Trouble::Revoke, 2),
        (Trouble::Lift, 1),
        (Trouble::Restrain, 2),
        (Trouble::Release, 1),
    ];
    run_all(12, &Plan { troubles, ..plan() }, 12 * MINUTE);
}

#[test]
fn a_machine_resumes_within_a_boot_and_is_closed_after_a_reboot_or_with_an_old_copy() {
    let troubles = vec![
        (Trouble::Kill, 6),
        (Trouble::Reboot, 4),
        (Trouble::CopyDirectories, 5),
        (Trouble::Rollback, 5),
        (Trouble::Drop, 3),
        (Trouble::Revoke, 3),
        (Trouble::Lift, 2),
        (Trouble::Policy, 2),
        (Trouble::Logout, 1),
        (Trouble::JumpMachine, 1),
    ];
    run_all(12, &Plan { troubles, spacing_ms: 8_000, rotation_s: 300, ..plan() }, 12 * MINUTE);
}

#[test]
fn one_lease_touches_only_the_nodes_and_peers_that_it_concerns() {
    for seed in seeds(10) {
        let mut world = run(seed, plan(), 3 * MINUTE);
        let Some((session, device)) = world.a_session_with_doors() else { continue };
        let concerned: BTreeSet<DeviceId> = world
            .current
            .iter()
            .filter(|door| door.source == device)
            .map(|door| door.destination)
            .chain([device])
            .collect();
        world.ledger.documents.clear();
        for machine in &mut world.machines {
            machine.compiled.clear();
        }
        world.nobody_signs_in();
        world.revoke(RevokeTarget::Session(session));
        world.run_for(1_500);
        // Other leases are renewed meanwhile: that moves deadlines at others, and compiles nothing.
        let at_once: Vec<_> = world.ledger.documents.iter().filter(|(_, about)| about.contains(&device)).collect();
        let told: BTreeSet<DeviceId> = at_once.iter().map(|(node, _)| *node).collect();
        let destinations: BTreeSet<DeviceId> = concerned.iter().copied().filter(|node| *node != device).collect();
        assert!(told.is_subset(&concerned), "seed {seed}: only those concerned are told: {told:?} {concerned:?}");
        assert!(told.is_superset(&destinations), "seed {seed}: all who are concerned are told");
        assert!(at_once.len() <= concerned.len() + 2, "seed {seed}: each once: {at_once:?}");
        for machine in &world.machines {
            let own = machine.device().expect("it has joined");
            let expected: Vec<DeviceId> = if destinations.contains(&own) { vec![device] } else { vec![] };
            if own != device {
                assert_eq!(machine.compiled, expected, "seed {seed}: {own} compiles the one peer, or nothing");
            }
        }
    }
}

#[test]
fn a_node_that_never_acknowledges_costs_the_controller_no_more_than_the_latest_state() {
    for seed in seeds(6) {
        let mut world = run(seed, plan(), 3 * MINUTE);
        world.deaf.insert(0);
        world.ledger.most_unacknowledged = 0;
        for _ in 0..120 {
            let spec = world.another_spec();
            world.apply_policy(spec);
            world.run_for(300); // the ledger fails the run if documents pile up
        }
        assert!(world.ledger.most_unacknowledged > 1, "seed {seed}: closing documents do not wait for each other");
        world.deaf.clear();
        world.run_for(MINUTE);
        world.settle(5 * MINUTE);
    }
}
