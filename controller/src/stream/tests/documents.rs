//! Claims about documents: their order, their acknowledgements, what they count from.

use std::time::Duration;

use postern_common::{protocol::FromNode, time::Monotonic};

use super::claims::{POLICY, Town, town};
use super::world::{World, person};
use crate::{
    records::{AuditEvent, RevokeTarget},
    stream::SubjectUpdate,
};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_lost_delta_forces_a_snapshot() {
    let Town { mut world, wiki, bob, .. } = town(16);
    // The node's file was put back: it continues from an older generation.
    let (device, controller) = (world.nodes[wiki].id(), world.core.public_key());
    world.nodes[wiki].verifier = Some(postern_common::grant::GrantVerifier::new(device, controller));
    world.freshen(wiki);
    world.run(seconds(1));
    let snapshots = world.nodes[wiki].snapshots;
    world.run(seconds(30));
    assert_eq!(world.nodes[wiki].gaps, 1);
    assert_eq!(world.nodes[wiki].snapshots, snapshots + 1);
    assert!(world.passes(bob, wiki, "tcp/80"));
}

#[test]
fn a_mute_node_gets_a_bounded_number_of_documents_and_then_loses_its_stream() {
    let Town { mut world, wiki, bob, alice, .. } = town(17);
    world.nodes[wiki].mute = true;
    let before = world.nodes[wiki].documents;
    for round in 0..20 {
        let groups = if round % 2 == 0 { vec![] } else { vec!["staff".to_owned()] };
        let update = SubjectUpdate { groups: Some(groups.into_iter().collect()), disabled: None };
        world.core.update_subject(super::world::ISSUER, "sub-bob", update, "root", world.now);
        world.pump();
        world.run(Duration::from_millis(500));
    }
    let sent = world.nodes[wiki].documents - before;
    assert!(sent <= 9, "what is newest is computed when there is room: {sent}");
    world.run(seconds(31));
    assert!(world.nodes[wiki].stream.is_none());
    world.nodes[wiki].mute = false;
    world.connect(wiki);
    world.run(seconds(1));
    assert!(world.passes(bob, wiki, "tcp/80") && world.passes(alice, wiki, "tcp/80"));
}

#[test]
fn endpoints_reach_peers_without_touching_permissions_and_useless_ones_do_not() {
    let Town { mut world, wiki, bob, .. } = town(18);
    let his = world.nodes[bob].id();
    let before = world.nodes[wiki].peers[&his].clone();
    let endpoints = [
        "203.0.113.9:51820",
        "127.0.0.1:9",
        "0.0.0.0:5",
        "[fd5a:1:2::9]:51820",
        "100.64.0.9:1",
        "[::ffff:203.0.113.8]:7",
    ];
    let endpoints = endpoints.iter().map(|text| text.parse().expect("an address")).collect();
    world.send(bob, FromNode::Endpoints { endpoints });
    world.run(seconds(1));
    let after = world.nodes[wiki].peers[&his].clone();
    let expected: Vec<std::net::SocketAddr> =
        ["203.0.113.9:51820", "203.0.113.8:7"].iter().map(|text| text.parse().expect("an address")).collect();
    assert_eq!(after.endpoints, expected);
    assert_eq!(after.inbound, before.inbound);
}

#[test]
fn a_deadline_counts_from_the_nonce_whatever_the_network_does() {
    let Town { mut world, wiki, bob, .. } = town(21);
    let his = world.nodes[bob].id();
    world.run_with(seconds(120), |world| {
        if let Some(until) = world.nodes[wiki].inbound_until(his) {
            let bound = world.now.monotonic.saturating_add(seconds(30));
            assert!(until <= bound, "a lease of 30 seconds is never longer");
        }
    });
    world.max_delay_ms = 5_000;
    world.run_with(seconds(120), |world| {
        if let Some(until) = world.nodes[wiki].inbound_until(his) {
            assert!(until <= world.now.monotonic.saturating_add(seconds(30)), "nor is it when messages take seconds");
            assert!(until > Monotonic::from_nanos(0));
        }
        if world.dice.below(20) == 0 {
            world.freshen(wiki);
        }
    });
}

#[test]
fn closing_waits_for_no_acknowledgement() {
    let Town { mut world, wiki, bob, .. } = town(23);
    world.nodes[wiki].mute = true;
    world.rotate(bob);
    world.run(seconds(1));
    let session = world.core.find_session("bob@corp.example").expect("his session");
    world.core.revoke(RevokeTarget::Session(session), "lost", "root", world.now).expect("revoked");
    world.pump();
    world.run(Duration::from_millis(100));
    assert!(!world.lets_in(bob, wiki, "tcp/80"), "although it owes an acknowledgement");
}

#[test]
fn an_old_acknowledgement_does_not_stand_for_a_newer_document() {
    for seed in 0..30 {
        let Town { mut world, wiki, bob, .. } = town(100 + seed);
        world.slow = Some((wiki, 3_000));
        let both = r#"["tcp/80", "tcp/443"]"#;
        world.apply_policy(&POLICY.replace(both, r#"["tcp/443"]"#));
        world.run(Duration::from_millis(100));
        world.apply_policy(&POLICY.replace(both, r#"["tcp/80"]"#));
        world.run(seconds(15)); // the world itself asserts the order of opening
        assert!(world.passes(bob, wiki, "tcp/80"));
    }
}

#[test]
fn a_node_that_changes_all_the_time_costs_little_and_is_found_in_the_end() {
    let Town { mut world, wiki, bob, .. } = town(26);
    let lone = world.laptop("lone-laptop", &person("carol", &[]));
    world.max_delay_ms = 1;
    let added = |world: &World| world.audit.iter().filter(|e| matches!(e, AuditEvent::KeyAdded { .. })).count();
    let before = added(&world);
    for i in 0..200 {
        let endpoints = vec![std::net::SocketAddr::from(([203, 0, 113, 9], 1_000 + i))];
        world.send(bob, FromNode::Endpoints { endpoints });
        world.rotate(lone);
        world.run(Duration::from_millis(2));
    }
    let counters = world.core.status().counters;
    assert!(counters.messages_refused >= 150 && counters.keys_refused >= 150, "{counters:?}");
    assert!(added(&world) - before <= 35, "each of them is a record that is kept");
    world.run(seconds(60));
    let known = &world.nodes[wiki].peers[&world.nodes[bob].id()].endpoints;
    assert_eq!(known[..], ["203.0.113.9:1199".parse().expect("an address")]);
}

#[test]
fn doors_that_follow_each_other_close_from_the_last_destination_on() {
    const CHAIN: &str = r#"
[resource.second]
node = "b"
ports = ["tcp/1"]

[resource.third]
node = "c"
ports = ["tcp/2"]

[[access]]
name = "a opens b"
from = ["service:a"]
to = ["second"]

[[access]]
name = "b opens c"
from = ["service:b"]
to = ["third"]
"#;
    for seed in 0..6 {
        let mut world = World::new(seed, CHAIN);
        let [a, b, c] = ["a", "b", "c"].map(|name| world.server(name, Some(name), &[]));
        world.run(seconds(1));
        assert!(world.passes(a, b, "tcp/1") && world.passes(b, c, "tcp/2"));
        world.told.clear();
        world.apply_policy("");
        assert_eq!(world.told, [c, b, a].map(|node| world.nodes[node].id()), "seed {seed}");
    }
}
