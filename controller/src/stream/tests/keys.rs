//! Claims about WireGuard keys of nodes and their rotation.

use std::time::Duration;

use postern_common::protocol::FromNode;

use super::claims::{Town, town};
use super::world::World;
use crate::records::RevokeTarget;

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn keys_rotate_on_both_ends_and_a_shared_pair_is_always_there() {
    let Town { mut world, payroll, wiki, db, alice, bob } = town(13);
    let first: Vec<_> = [payroll, wiki, db, alice, bob].iter().map(|node| world.nodes[*node].keys[0]).collect();
    for round in 0..3 {
        for node in [payroll, wiki, alice, bob, db] {
            world.rotate(node);
            if round == 1 {
                world.rotate(if node == wiki { bob } else { wiki }); // both ends at once
            }
            world.run_with(seconds(2), |world| {
                for (source, destination) in [(alice, payroll), (alice, wiki), (bob, wiki), (payroll, db)] {
                    assert!(world.shared_pairs(source, destination) > 0, "round {round}");
                }
            });
        }
    }
    world.run(seconds(20));
    for (node, first) in [payroll, wiki, db, alice, bob].into_iter().zip(first) {
        let own = world.nodes[node].own.as_ref().expect("told of itself");
        assert_eq!(own.keys.len(), 1, "{}: old keys go when both ends have the new one", world.nodes[node].name);
        assert!(!own.keys.contains(&first));
        assert!(world.nodes[node].peers.values().all(|peer| peer.pairs.len() == 1));
    }
    assert_eq!(world.store.loaded.pairs.len(), 4, "old pre-shared keys are forgotten");
    assert!(world.passes(alice, payroll, "tcp/443"));
}

#[test]
fn a_rotation_whose_message_was_lost_is_mended_by_the_next_stream() {
    let Town { mut world, wiki, bob, .. } = town(14);
    world.rotate(bob);
    world.cut_stream(bob);
    world.connect(bob);
    world.run(seconds(20));
    assert_eq!(world.nodes[bob].own.as_ref().expect("told").keys, [world.nodes[bob].keys[0]]);
    assert!(world.passes(bob, wiki, "tcp/80"));
}

#[test]
fn a_destination_that_comes_back_with_other_keys_is_met_again() {
    let Town { mut world, wiki, bob, .. } = town(19);
    let device = RevokeTarget::Device(world.nodes[wiki].id());
    world.core.revoke(device.clone(), "test", "root", world.now).expect("revoked");
    world.pump();
    world.run(seconds(1));
    assert!(!world.lets_in(bob, wiki, "tcp/80") && world.nodes[wiki].stream.is_none());
    world.core.lift(device, "root", world.now).expect("lifted");
    world.pump();
    world.nodes[wiki].new_key();
    world.nodes[wiki].keys.truncate(1);
    world.connect(wiki);
    world.run(seconds(2));
    assert!(world.passes(bob, wiki, "tcp/80"), "neither end waits for the other to learn of the new pair first");
}

#[test]
fn a_node_cannot_take_another_machines_key_or_collect_keys() {
    let Town { mut world, wiki, bob, .. } = town(15);
    let stolen = world.nodes[wiki].keys[0];
    world.send(bob, FromNode::RotateKey { key: stolen });
    world.run(seconds(1));
    assert_eq!(world.core.status().counters.keys_refused, 1);
    world.max_delay_ms = 1;
    for _ in 0..40 {
        world.rotate(bob);
        world.run(Duration::from_millis(1));
    }
    let count = world.core.list_devices().iter().map(|device| device.record.wireguard_keys.len()).max();
    assert!(count <= Some(12), "{count:?}");
}

#[test]
fn a_node_gets_its_own_new_key_only_after_the_peer_has_it() {
    let Town { mut world, wiki, bob, .. } = town(24);
    let old = world.nodes[bob].keys[0];
    world.nodes[wiki].mute = true;
    world.rotate(bob);
    world.run(seconds(10));
    let pairs = |world: &World| world.nodes[bob].peers[&world.nodes[wiki].id()].pairs.clone();
    assert_eq!(pairs(&world).iter().map(|pair| pair.local).collect::<Vec<_>>(), [old]);
    let there = world.nodes[wiki].peers[&world.nodes[bob].id()].pairs.len();
    assert_eq!(there, 2, "the peer has both, and has not said so");
}

#[test]
fn each_pair_has_its_time_to_become_a_session_however_soon_the_next_rotation_follows() {
    let Town { mut world, wiki, bob, .. } = town(31);
    world.rotate(bob);
    world.run(seconds(4)); // of the overlap of five
    world.rotate(bob);
    world.run(seconds(3));
    let newest = world.nodes[bob].keys[0];
    let pairs = &world.nodes[wiki].peers[&world.nodes[bob].id()].pairs;
    assert_eq!(pairs[0].remote, newest);
    assert!(pairs.len() > 1, "the pair that carries the flows now stays for the overlap of the newest");
    world.run(seconds(10));
    assert_eq!(world.nodes[wiki].peers[&world.nodes[bob].id()].pairs.len(), 1);
}
