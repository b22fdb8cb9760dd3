//! Claims about streams: hellos, probes, nonsense.

use std::{
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use postern_common::{
    grant::Position,
    id::{BootId, DeviceId, Nonce},
    key::SigningPurpose,
    probe::ProbeKey,
    protocol::{FromNode, Hello, PROTOCOL_VERSION, ToNode, hello_payload},
    time::Now,
};

use super::{
    claims::POLICY,
    node::Want,
    world::{World, config, person},
};
use crate::{records::AuditEvent, stream::Effect};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_probe_moves_an_endpoint_only_with_the_right_code_and_once() {
    let mut with_probes = config();
    with_probes.probe_port = Some(3_478);
    let mut world = World::with(11, POLICY, with_probes);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    let Some(ToNode::Probe { id, key, port: 3_478 }) = world.nodes[bob].probe.clone() else { panic!("a probe") };
    let key = ProbeKey::from_base64(&key).expect("a key");
    let seen = "203.0.113.50:7777".parse().expect("an address");
    let elsewhere = "203.0.113.66:1".parse().expect("an address");
    let endpoints = |world: &World| world.nodes[wiki].peers[&world.nodes[bob].id()].endpoints.clone();
    let reported = endpoints(&world);
    world.core.observe_probe(&ProbeKey::from_bytes([0; 32]).seal(id, 1), elsewhere, world.now);
    world.core.observe_probe(&key.seal(id, 1), seen, world.now);
    world.core.observe_probe(&key.seal(id, 1), elsewhere, world.now);
    world.core.observe_probe(b"nonsense", elsewhere, world.now);
    world.pump();
    world.run(seconds(1));
    assert_eq!(endpoints(&world), [vec![seen], reported].concat(), "the one that was seen comes first");
    assert_eq!(world.core.status().counters.probes_refused, 3);
    assert_eq!(world.nodes[bob].observed, Some(seen), "the node is told, so that it knows whether it is behind a NAT");
}

#[test]
fn nonsense_on_a_stream_ends_that_stream_alone() {
    let mut world = World::new(14, POLICY);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    let stranger = world.add_node("stranger", Want::Join);
    let remote = "198.51.100.9:4000".parse().expect("an address");
    let stream = world.core.connect(remote, world.now);
    world.nodes[stranger].stream = Some(stream);
    world.core.receive(stream, FromNode::Logout, world.now);
    world.pump();
    world.run(seconds(1));
    assert!(world.nodes[stranger].refused.is_some());
    let far = postern_common::grant::Position { epoch: 1, generation: u64::MAX };
    world.send(bob, FromNode::Enforced { position: far, cut: 0 });
    world.run(seconds(1));
    assert!(world.passes(bob, wiki, "tcp/80"));
    assert_eq!(world.core.status().counters.messages_refused, 1);
    let silent = world.core.connect(remote, world.now);
    world.nodes[stranger].stream = Some(silent);
    world.nodes[stranger].refused = None;
    world.nodes[stranger].want = Want::Hello;
    while world.core.poll_effect().is_some() {}
    world.run(seconds(16));
    assert!(world.nodes[stranger].refused.is_some(), "who does not say who it is in time is dropped");
}

#[test]
fn bad_hellos_from_an_address_lock_no_neighbour_out() {
    let mut world = World::new(18, POLICY);
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    world.cut_stream(bob);
    let thief = world.add_node("thief", Want::Hello);
    world.nodes[thief].device = world.nodes[bob].device;
    for _ in 0..60 {
        // The same address as the laptop's: [`World::connect`] derives it from the number of the node.
        let remote = std::net::SocketAddr::from(([198, 51, 0, u8::try_from(bob).expect("few nodes") + 1], 41_000));
        world.nodes[thief].stream = Some(world.core.connect(remote, world.now));
        world.pump();
        world.run(Duration::from_millis(200));
    }
    world.connect(bob);
    world.run(seconds(1));
    assert_eq!(world.nodes[bob].refused, None);
    assert_eq!(world.core.status().connected, 1);
}

#[test]
fn a_hello_that_names_a_generation_from_which_none_is_left_harms_nobody() {
    let mut world = World::new(19, POLICY);
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    world.cut_stream(bob);
    let stream = world.core.connect("198.51.100.9:4000".parse().expect("an address"), world.now);
    let mut challenge = None;
    while let Some(effect) = world.core.poll_effect() {
        if let Effect::Send { message: ToNode::Challenge { nonce, .. }, .. } = effect {
            challenge = Some(nonce);
        }
    }
    let (challenge, device) = (challenge.expect("a challenge"), world.nodes[bob].id());
    let (boot, nonce) = (BootId::from_bytes([1; 16]), Nonce::from_bytes([2; 16]));
    let payload = hello_payload(challenge, device, boot, nonce);
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        device,
        signature: world.nodes[bob].key.sign(SigningPurpose::StreamHello, &payload),
        nonce,
        boot,
        enforced: Some(Position { epoch: world.core.status().epoch, generation: u64::MAX }),
        keys: world.nodes[bob].keys.clone(),
        listen_port: 51820,
        endpoints: vec![],
        version: String::new(),
        machine: Default::default(),
    };
    world.core.receive(stream, FromNode::Hello(hello), world.now);
    assert_eq!(world.core.status().connected, 1);
}

#[test]
fn a_machine_that_comes_back_all_the_time_is_told_to_wait() {
    let mut world = World::new(21, POLICY);
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    let opened = |world: &World| world.audit.iter().filter(|e| matches!(e, AuditEvent::StreamOpened { .. })).count();
    let before = opened(&world);
    world.max_delay_ms = 1;
    for _ in 0..100 {
        world.cut_stream(bob);
        world.connect(bob);
        world.run(Duration::from_millis(10));
    }
    assert!(opened(&world) - before <= 35, "each of them is a record that is kept");
    assert!(world.core.status().counters.rate_limited >= 60);
    world.run(seconds(5));
    world.connect(bob);
    world.run(seconds(1));
    assert_eq!((world.core.status().connected, &world.nodes[bob].refused), (1, &None));
}

#[test]
fn a_flood_of_refused_hellos_from_ten_thousand_networks_is_counted_and_hides_no_other_refusal() {
    let mut world = World::new(20, POLICY);
    while world.core.poll_effect().is_some() {}
    let (boot, nonce, device) =
        (BootId::from_bytes([1; 16]), Nonce::from_bytes([2; 16]), DeviceId::from_bytes([7; 16]));
    let key = postern_common::key::DeviceSigningKey::from_seed(&[3; 32]);
    let (before, begun) = (world.core.status().counters.streams_refused, world.now.monotonic);
    let mut lines = Vec::new();
    for network in 0..10_000u32 {
        let remote =
            SocketAddr::new(Ipv6Addr::from((0x2001_0db8 << 96) | (u128::from(network) << 64) | 1).into(), 4_000);
        let now = Now { monotonic: begun.saturating_add(Duration::from_millis(u64::from(network / 10))), ..world.now };
        world.now = now;
        let stream = world.core.connect(remote, now);
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            device,
            signature: key.sign(SigningPurpose::StreamHello, b"nothing that was asked"),
            nonce,
            boot,
            enforced: None,
            keys: vec![],
            listen_port: 51820,
            endpoints: vec![],
            version: String::new(),
            machine: Default::default(),
        };
        world.core.receive(stream, FromNode::Hello(hello), now);
        while let Some(effect) = world.core.poll_effect() {
            lines.extend(match effect {
                Effect::Audit(event) => Some(event),
                Effect::Store(_) | Effect::Send { .. } | Effect::VerifyToken { .. } | Effect::Close { .. } => None,
            });
        }
    }
    assert!(lines.len() <= 300, "{} lines for the flood", lines.len());
    assert_eq!(world.core.status().counters.streams_refused - before, 10_000);
    // Another kind of refusal is not hidden by it.
    let thief = world.add_node("thief", Want::Enrol("pst_join_wrong".into()));
    world.connect(thief);
    world.run(seconds(100)); // the window, and the next sweep
    assert!(world.audit.iter().any(|event| matches!(event, AuditEvent::EnrolRefused { .. })));
    let counted = |event: &AuditEvent| match event {
        AuditEvent::SignalRefused { source, times, .. } if source == "streams" => *times,
        _ => 0,
    };
    let one_by_one = lines.iter().filter(|event| matches!(event, AuditEvent::StreamRefused { .. })).count() as u64;
    let told: u64 = lines.iter().chain(&world.audit).map(counted).sum();
    assert_eq!(one_by_one + told, 10_001, "none is lost; one is the thief's");
}
