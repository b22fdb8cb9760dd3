//! Claims about joining, tokens, names, addresses, probes and stock clients.

use std::{net::IpAddr, time::Duration};

use postern_common::{
    grant::Position,
    id::{BootId, Nonce},
    key::{SigningPurpose, WireGuardPublicKey},
    probe::ProbeKey,
    protocol::{FromNode, Hello, PROTOCOL_VERSION, ToNode, hello_payload},
};

use super::{
    claims::POLICY,
    node::Want,
    world::{LOCAL, World, config, person},
};
use crate::{
    identity::user_code::UserCode,
    records::{AuditEvent, DeviceKind, RevokeTarget},
    stream::{CoreError, Effect, NewToken},
    web::doors::{Acquaintance, Reach, StockRequest},
};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn local() -> IpAddr {
    LOCAL.parse().expect("an address")
}

fn waiting(world: &mut World, name: &str) -> (usize, UserCode) {
    let node = world.add_node(name, Want::Join);
    world.connect(node);
    world.run(Duration::from_millis(200));
    let code = world.nodes[node].code.clone().expect("a code");
    assert_eq!(code.len(), 9, "{code}");
    (node, code.parse().expect("a code"))
}

#[test]
fn a_code_works_once_for_the_machine_that_was_shown_and_not_for_long() {
    let mut world = World::new(1, POLICY);
    let alice = person("alice", &["staff"]);
    let (node, code) = waiting(&mut world, "Alice-Laptop");
    let shown = world.core.pending_join(code, &alice, local(), world.now).expect("it waits");
    assert_eq!((shown.machine.as_str(), shown.acquaintance), ("alice-laptop", Acquaintance::New));
    assert_eq!(shown.device_key, world.nodes[node].key.public());
    let other = postern_common::key::DevicePublicKey::from_bytes([1; 32]);
    assert_eq!(world.core.confirm_join(code, other, &alice, local(), world.now), Err(CoreError::Changed));
    let joined = world.core.confirm_join(code, shown.device_key, &alice, local(), world.now).expect("confirmed");
    assert_eq!(joined.machine.as_str(), "alice-laptop");
    assert_eq!(world.core.confirm_join(code, shown.device_key, &alice, local(), world.now), Err(CoreError::Expired));
    assert_eq!(world.core.list_devices().len(), 1);

    let (late, code) = waiting(&mut world, "late");
    world.run(seconds(601));
    assert_eq!(world.core.pending_join(code, &alice, local(), world.now), Err(CoreError::Expired));
    assert!(world.nodes[late].stream.is_none());

    let (unwanted, code) = waiting(&mut world, "unwanted");
    world.core.refuse_join(code, &alice, local(), world.now).expect("refused");
    world.pump();
    world.run(seconds(1));
    assert!(world.nodes[unwanted].refused.as_ref().is_some_and(|why| why.contains("did not confirm")));
}

#[test]
fn codes_cannot_be_guessed_from_one_address() {
    let mut world = World::new(2, POLICY);
    let mallory = person("mallory", &[]);
    let (_, code) = waiting(&mut world, "alice-laptop");
    for i in 0..60 {
        let wrong = format!("BBBB-{i:04}").parse().expect("a code");
        let answer = world.core.pending_join(wrong, &mallory, local(), world.now);
        assert!(matches!(answer, Err(CoreError::NotFound { .. })));
    }
    let answer = world.core.pending_join(code, &mallory, local(), world.now);
    assert!(matches!(answer, Err(CoreError::NotPermitted(_))), "the right one comes too late: {answer:?}");
    let elsewhere = "203.0.113.5".parse().expect("an address");
    assert!(world.core.pending_join(code, &mallory, elsewhere, world.now).is_ok());
}

#[test]
fn machines_that_wait_are_bounded_by_address() {
    let mut world = World::new(3, POLICY);
    let streams: Vec<_> = (0..30).map(|_| world.add_node("flood", Want::Join)).collect();
    for node in &streams {
        let remote = "198.51.100.7:4000".parse().expect("an address");
        world.nodes[*node].stream = Some(world.core.connect(remote, world.now));
        world.pump();
    }
    world.run(seconds(1));
    let given = streams.iter().filter(|node| world.nodes[**node].code.is_some()).count();
    assert_eq!(given, 16);
    assert_eq!(world.core.status().pending_joins, 16);
    world.run(seconds(601));
    assert_eq!(world.core.status().pending_joins, 0, "they are forgotten with their codes");
}

#[test]
fn a_join_or_hello_signed_by_another_key_is_refused() {
    let mut world = World::new(4, POLICY);
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    world.cut_stream(bob);
    let thief = world.add_node("thief", Want::Hello);
    world.nodes[thief].device = world.nodes[bob].device;
    world.connect(thief);
    world.run(seconds(1));
    assert!(world.nodes[thief].refused.as_ref().is_some_and(|why| why.contains("signature")));
    assert_eq!(world.core.status().connected, 0);

    // A join whose signature answers another challenge: recorded and sent again.
    let (first, _) = waiting(&mut world, "replayed");
    let replay = world.add_node("replayer", Want::Hello);
    world.nodes[replay].device = None;
    let remote = "198.51.100.9:4000".parse().expect("an address");
    let stream = world.core.connect(remote, world.now);
    world.nodes[replay].stream = Some(stream);
    let recorded = world.nodes[first]
        .receive(ToNode::Challenge { nonce: postern_common::id::Nonce::from_bytes([3; 16]), protocol: 1 }, world.now);
    world.core.receive(stream, recorded.into_iter().next().expect("a join"), world.now);
    world.pump();
    assert!(world.nodes[replay].refused.as_ref().is_some_and(|why| why.contains("signature")));
}

#[test]
fn a_token_is_used_once_even_by_two_machines_at_the_same_moment() {
    let mut world = World::new(5, POLICY);
    let new = NewToken {
        service: Some("wiki".parse().expect("a name")),
        tags: ["wiki".parse().expect("a tag")].into(),
        machine: None,
        uses: 1,
        life: seconds(60),
    };
    let (token, view) = world.core.create_token(new.clone(), "root", world.now).expect("a token");
    world.pump();
    assert!(token.starts_with("pst_join_"));
    assert!(!format!("{:?}", world.store.loaded.tokens).contains(&token), "only its hash is kept");
    let nodes = [world.add_node("a", Want::Enrol(token.clone())), world.add_node("b", Want::Enrol(token.clone()))];
    for node in nodes {
        world.connect(node);
    }
    world.run(seconds(1));
    let enrolled = nodes.iter().filter(|node| world.nodes[**node].device.is_some()).count();
    assert_eq!(enrolled, 1);
    assert!(world.core.find_token(&view.short).is_err());
    let (late, _) = world.core.create_token(new, "root", world.now).expect("a token");
    world.pump();
    world.run(seconds(61));
    let late = world.add_node("late", Want::Enrol(late));
    world.connect(late);
    world.run(seconds(1));
    assert!(world.nodes[late].device.is_none() && world.nodes[late].refused.is_some());
    assert!(world.audit.iter().any(|event| matches!(event, AuditEvent::EnrolRefused { .. })));
}

#[test]
fn a_machine_that_calls_itself_like_a_server_is_not_that_server() {
    let mut world = World::new(6, POLICY);
    let mallory = world.laptop("payroll", &person("mallory", &["staff"]));
    let alice = world.laptop("alice-laptop", &person("alice", &["payroll"]));
    world.run(seconds(1));
    assert!(!world.lets_in(alice, mallory, "tcp/443"), "a name is a claim");
    assert!(world.nodes[alice].peers.is_empty());
    assert_eq!(world.core.status().awaiting_approval.len(), 1);
    let why = world.core.explain("alice@corp.example", "payroll-app", None, world.now).expect("explained");
    assert!(why.because.iter().any(|line| line.contains("approve its name")), "{why:?}");
    // The real server comes with a token made for its name: it gets the name, the other loses it.
    let real = world.server("payroll", Some("payroll"), &[]);
    world.run(seconds(1));
    assert_eq!(world.nodes[real].own.as_ref().expect("told").name.as_str(), "payroll");
    assert_eq!(world.nodes[mallory].own.as_ref().expect("told").name.as_str(), "payroll-2");
    assert!(world.passes(alice, real, "tcp/443") && !world.lets_in(alice, mallory, "tcp/443"));
    // A second one of that name is refused, and its token stays usable.
    let new = NewToken {
        service: None,
        tags: [].into(),
        machine: Some("payroll".parse().expect("a name")),
        uses: 1,
        life: seconds(60),
    };
    let (token, view) = world.core.create_token(new, "root", world.now).expect("a token");
    world.pump();
    let second = world.add_node("payroll", Want::Enrol(token));
    world.connect(second);
    world.run(seconds(1));
    assert!(world.nodes[second].refused.as_ref().is_some_and(|why| why.contains("remove that device first")));
    assert!(world.core.find_token(&view.short).is_ok());
}

#[test]
fn an_administrator_approves_and_takes_back_names_and_tags() {
    let mut world = World::new(7, POLICY);
    let new = NewToken { service: None, tags: [].into(), machine: None, uses: 2, life: seconds(60) };
    let (token, _) = world.core.create_token(new, "root", world.now).expect("a token");
    world.pump();
    let server = world.add_node("payroll", Want::Enrol(token));
    world.connect(server);
    world.run(seconds(1));
    world.cut_stream(server);
    world.connect(server);
    let alice = world.laptop("alice-laptop", &person("alice", &["payroll", "staff"]));
    assert!(world.nodes[alice].peers.is_empty());
    let id = world.nodes[server].id();
    let owner = world.core.list_devices().into_iter().find(|view| view.record.id == id).expect("listed").owner_name;
    assert_eq!(owner, format!("service:{id}"), "an identity that no machine can choose");
    world.core.approve(id, &[].into(), true, "root", world.now).expect("approved");
    world.pump();
    world.run(seconds(1));
    assert!(world.passes(alice, server, "tcp/443") && !world.lets_in(alice, server, "tcp/80"));
    let wiki = ["wiki".parse().expect("a tag")].into();
    world.core.approve(id, &wiki, false, "root", world.now).expect("approved");
    world.pump();
    world.run(seconds(1));
    assert!(world.passes(alice, server, "tcp/80"));
    world.core.refuse(id, &wiki, true, "root", world.now).expect("refused");
    world.pump();
    world.run(seconds(1));
    assert!(world.nodes[server].peers.is_empty() && world.nodes[alice].peers.is_empty());
}

#[test]
fn somebody_elses_machine_is_taken_over_only_after_its_doors_were_closed() {
    let mut world = World::new(8, POLICY);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    let laptop = world.laptop("shared-laptop", &person("alice", &["staff"]));
    assert!(world.passes(laptop, wiki, "tcp/80"));
    let hers = ["wiki".parse().expect("a tag")].into();
    world.core.approve(world.nodes[laptop].id(), &hers, false, "root", world.now).expect("approved");
    world.pump();
    let bob = person("bob", &[]);
    world.nodes[laptop].want = Want::Join;
    world.nodes[laptop].new_key();
    world.cut_stream(laptop);
    world.connect(laptop);
    world.run(seconds(1));
    let code: UserCode = world.nodes[laptop].code.clone().expect("a code").parse().expect("a code");
    let shown = world.core.pending_join(code, &bob, local(), world.now).expect("it waits");
    assert_eq!(shown.acquaintance, Acquaintance::SomebodyElses);
    let answer = world.core.confirm_join(code, shown.device_key, &bob, local(), world.now);
    assert!(matches!(&answer, Err(CoreError::NotPermitted(why)) if why.contains("alice")), "{answer:?}");
    let session = world.core.find_session("alice@corp.example").expect("her session");
    world.core.revoke(RevokeTarget::Session(session), "handed over", "root", world.now).expect("revoked");
    world.pump();
    world.run(seconds(1));
    world.join(laptop, &bob);
    assert!(!world.lets_in(laptop, wiki, "tcp/80"), "what she could does not pass to him");
    let own = world.nodes[laptop].own.as_ref().expect("told");
    assert_eq!((own.subject_name.as_str(), own.tags.len()), ("bob@corp.example", 0));
}

#[test]
fn signing_in_again_on_the_same_machine_keeps_what_is_open() {
    let mut world = World::new(9, POLICY);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    let alice = person("alice", &["staff"]);
    let laptop = world.laptop("alice-laptop", &alice);
    let lease = world.nodes[wiki].peers[&world.nodes[laptop].id()].inbound[0].lease;
    // The old stream stays up while a second one joins anew.
    let again = world.add_node("alice-laptop", Want::Join);
    let key = postern_common::key::DeviceSigningKey::from_seed(world.nodes[laptop].key.expose_seed());
    world.nodes[again].key = key;
    world.connect(again);
    world.run(seconds(1));
    let code = world.nodes[again].code.clone().expect("a code").parse().expect("a code");
    let shown = world.nodes[again].key.public();
    let new_key = world.nodes[again].keys[0];
    world.nodes[laptop].keys.insert(0, new_key); // one machine
    world.core.confirm_join(code, shown, &alice, local(), world.now).expect("confirmed");
    world.pump();
    world.run_with(seconds(10), |world| {
        assert!(world.lets_in(laptop, wiki, "tcp/80"));
    });
    assert_eq!(world.core.list_sessions().len(), 1);
    assert_ne!(world.nodes[wiki].peers[&world.nodes[laptop].id()].inbound[0].lease, lease, "a login session, a lease");
}

#[test]
fn addresses_are_held_back_and_exhaustion_is_explained() {
    let mut small = config();
    small.overlay_v4 = "100.64.0.0/30".parse().expect("a network");
    small.address_hold = seconds(3_600);
    let mut world = World::with(10, POLICY, small);
    let one = world.laptop("one", &person("alice", &[]));
    let two = world.laptop("two", &person("bob", &[]));
    let addresses = |world: &World, node: usize| world.nodes[node].own.as_ref().expect("told").addresses.clone();
    assert_ne!(addresses(&world, one), addresses(&world, two));
    let (three, code) = waiting(&mut world, "three");
    let shown = world.nodes[three].key.public();
    let carol = person("carol", &[]);
    let full = world.core.confirm_join(code, shown, &carol, local(), world.now);
    assert!(matches!(&full, Err(CoreError::Exhausted(why)) if why.contains("100.64.0.0/30")), "{full:?}");
    let held = addresses(&world, one);
    world.core.remove_device(world.nodes[one].id(), "root", world.now).expect("removed");
    world.pump();
    world.run(seconds(100));
    let still = world.core.confirm_join(code, shown, &carol, local(), world.now);
    assert!(matches!(still, Err(CoreError::Exhausted(_))), "held back: {still:?}");
    world.run(seconds(3_700));
    let four = world.laptop("four", &carol);
    assert_eq!(addresses(&world, four)[1], held[1], "free again after the hold");
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
}

#[test]
fn a_stock_client_gets_what_its_rules_permit_until_its_web_session_ends() {
    let mut world = World::new(12, POLICY);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    let payroll = world.server("payroll", Some("payroll"), &[]);
    let alice = person("alice", &["staff", "payroll"]);
    let asked = StockRequest {
        name: "alice-phone".parse().expect("a name"),
        public_key: WireGuardPublicKey::from_bytes([0x77; 32]),
    };
    let nobody = person("carol", &[]);
    assert!(matches!(world.core.export(&asked, &nobody, local(), world.now), Err(CoreError::NotPermitted(_))));
    let no_stock = person("dora", &["payroll"]);
    assert!(matches!(world.core.export(&asked, &no_stock, local(), world.now), Err(CoreError::NotPermitted(_))));
    let configuration = world.core.export(&asked, &alice, local(), world.now).expect("exported");
    world.pump();
    assert!(
        matches!(world.core.export(&asked, &alice, local(), world.now), Err(CoreError::NotPermitted(_))),
        "one key"
    );
    assert_eq!(configuration.peers.len(), 1, "payroll's rule does not permit stock clients");
    let peer = &configuration.peers[0];
    assert_eq!((peer.machine.as_str(), peer.endpoint.is_some()), ("wiki-1", true));
    assert_eq!(peer.public_key, world.nodes[wiki].keys[0]);
    world.run(seconds(1));
    let grant = |world: &World| world.nodes[wiki].peers.get(&configuration.device).cloned();
    assert_eq!(grant(&world).expect("a peer").pairs[0].preshared, peer.preshared_key);
    assert!(world.nodes[payroll].peers.is_empty());
    // The lease is renewed without a stream, and the node's old key stays for this client alone.
    for _ in 0..3 {
        world.rotate(wiki);
        world.run(seconds(60));
    }
    let now = grant(&world).expect("still a peer");
    assert_eq!((now.pairs.len(), now.pairs[0].local), (1, peer.public_key));
    assert!(world.nodes[wiki].keys.contains(&peer.public_key));
    assert!(world.nodes[wiki].lets_in(world.now).iter().any(|(device, _)| *device == configuration.device));
    assert!(world.core.portal(&alice, world.now).resources.iter().any(|r| matches!(r.reach, Reach::Open(_))));
    world.core.web_session_ended(alice.web_session, world.now);
    world.pump();
    world.run(seconds(20));
    assert_eq!(grant(&world), None);
    assert_eq!(world.nodes[wiki].own.as_ref().expect("told").keys.len(), 1, "nobody needs the old key any more");
    assert!(world.core.list_devices().iter().all(|view| view.record.kind == DeviceKind::Agent));

    let third = StockRequest { public_key: WireGuardPublicKey::from_bytes([0x79; 32]), ..asked.clone() };
    let configuration = world.core.export(&third, &alice, local(), world.now).expect("exported");
    world.pump();
    let in_use = world.core.web_sessions_in_use();
    assert_eq!(in_use, [alice.web_session].into());
    world.core.web_sessions_over(&[].into(), world.now);
    assert_eq!(world.core.web_sessions_in_use(), in_use);
    world.core.web_sessions_over(&in_use, world.now);
    world.pump();
    world.run(seconds(20));
    assert!(!world.nodes[wiki].peers.contains_key(&configuration.device), "unused browsers end it too");
    assert!(world.core.web_sessions_in_use().is_empty());

    let limited = StockRequest { public_key: WireGuardPublicKey::from_bytes([0x78; 32]), ..asked };
    let configuration = world.core.export(&limited, &alice, local(), world.now).expect("exported");
    world.pump();
    world.run(seconds(8 * 3_600 + 1));
    assert!(!world.nodes[wiki].peers.contains_key(&configuration.device), "eight hours at most");
}

#[test]
fn the_portal_tells_what_is_open_and_what_is_missing() {
    let mut world = World::new(13, POLICY);
    world.server("wiki-1", Some("wiki"), &["wiki"]);
    let alice = person("alice", &["staff"]);
    let before = world.core.portal(&alice, world.now);
    assert!(matches!(&before.resources[..], [wiki] if matches!(wiki.reach, Reach::Closed { .. })), "{before:?}");
    let laptop = world.laptop("alice-laptop", &alice);
    let after = world.core.portal(&alice, world.now);
    assert!(matches!(&after.resources[..], [wiki] if matches!(wiki.reach, Reach::Open(_))), "{after:?}");
    assert_eq!(after.devices.len(), 1);
    let session = after.devices[0].session.expect("signed in").session;
    let bob = person("bob", &[]);
    assert!(world.core.end_own_session(session, &bob, world.now).is_err(), "not his");
    assert!(world.core.remove_own_device(world.nodes[laptop].id(), &bob, world.now).is_err());
    world.core.end_own_session(session, &alice, world.now).expect("hers");
    world.pump();
    world.run(seconds(1));
    assert!(world.nodes[laptop].peers.is_empty());
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
fn a_token_for_one_name_vouches_for_no_other_that_the_machine_claimed() {
    let mut world = World::new(15, POLICY);
    let alice = world.laptop("alice-laptop", &person("alice", &["payroll"]));
    let token = |world: &mut World, machine: Option<&str>| {
        let new = NewToken {
            service: Some("web".parse().expect("a name")),
            tags: [].into(),
            machine: machine.map(|name| name.parse().expect("a name")),
            uses: 1,
            life: seconds(3_600),
        };
        let (token, _) = world.core.create_token(new, "root", world.now).expect("a token");
        world.pump();
        token
    };
    let first = token(&mut world, None);
    let mallory = world.add_node("payroll", Want::Enrol(first));
    world.connect(mallory);
    world.run(seconds(1));
    let second = token(&mut world, Some("web-1"));
    world.nodes[mallory].name = "web-1".parse().expect("a name");
    world.nodes[mallory].want = Want::Enrol(second);
    world.cut_stream(mallory);
    world.connect(mallory);
    world.run(seconds(1));
    let id = world.nodes[mallory].id();
    let device = world.core.list_devices().into_iter().find(|view| view.record.id == id).expect("listed");
    assert_eq!(device.record.name.as_str(), "web-1");
    world.cut_stream(mallory);
    world.nodes[mallory].want = Want::Hello;
    world.connect(mallory);
    world.run(seconds(1));
    assert!(!world.lets_in(alice, mallory, "tcp/443") && world.nodes[alice].peers.is_empty());
}

#[test]
fn a_machine_that_is_revoked_while_it_waits_is_not_let_in() {
    let mut world = World::new(16, POLICY);
    let alice = person("alice", &["staff"]);
    let laptop = world.laptop("alice-laptop", &alice);
    world.nodes[laptop].want = Want::Join;
    world.cut_stream(laptop);
    world.connect(laptop);
    world.run(seconds(1));
    let code: UserCode = world.nodes[laptop].code.clone().expect("a code").parse().expect("a code");
    let device = world.nodes[laptop].id();
    world.core.revoke(RevokeTarget::Device(device), "stolen", "root", world.now).expect("revoked");
    world.pump();
    let shown = world.nodes[laptop].key.public();
    let answer = world.core.confirm_join(code, shown, &alice, local(), world.now);
    assert!(matches!(&answer, Err(CoreError::NotPermitted(why)) if why.contains("revoked")), "{answer:?}");
    assert!(world.core.list_sessions().is_empty());
}

#[test]
fn machines_that_wait_are_bounded_by_ipv6_network() {
    let mut world = World::new(17, POLICY);
    for host in 1..=30 {
        let node = world.add_node("flood", Want::Join);
        let remote = format!("[2001:db8::{host}]:4000").parse().expect("an address");
        world.nodes[node].stream = Some(world.core.connect(remote, world.now));
        world.pump();
    }
    world.run(seconds(1));
    assert_eq!(world.core.status().pending_joins, 16);
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
    };
    world.core.receive(stream, FromNode::Hello(hello), world.now);
    assert_eq!(world.core.status().connected, 1);
}

#[test]
fn stock_clients_end_when_every_browser_of_their_person_is_signed_out() {
    let mut world = World::new(20, POLICY);
    world.server("wiki-1", Some("wiki"), &["wiki"]);
    let (alice, bob) = (person("alice", &["staff"]), person("bob", &["staff"]));
    world.laptop("alice-laptop", &alice);
    for (who, key) in [(&alice, 0x77), (&bob, 0x78)] {
        let asked = StockRequest {
            name: "phone".parse().expect("a name"),
            public_key: WireGuardPublicKey::from_bytes([key; 32]),
        };
        world.core.export(&asked, who, local(), world.now).expect("exported");
        world.pump();
    }
    world.core.browsers_ended(&alice.issuer, &alice.sub, world.now);
    world.pump();
    let stock = |view: &&crate::stream::DeviceView| view.record.kind == DeviceKind::StockClient;
    let owners: Vec<_> = world.core.list_devices().iter().filter(stock).map(|view| view.owner_name.clone()).collect();
    assert_eq!(owners, ["bob@corp.example"]);
    assert_eq!(world.core.list_sessions().len(), 2, "her laptop stays signed in, and so does his phone");
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
