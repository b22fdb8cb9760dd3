//! Claims about machines that join when a person confirms them.

use std::{net::IpAddr, time::Duration};

use postern_common::protocol::ToNode;

use super::{
    claims::POLICY,
    node::Want,
    world::{LOCAL, World, person},
};
use crate::{
    identity::user_code::UserCode,
    records::{Person, RevokeTarget},
    stream::CoreError,
    web::doors::Acquaintance,
};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) fn local() -> IpAddr {
    LOCAL.parse().expect("an address")
}

pub(super) fn waiting(world: &mut World, name: &str) -> (usize, UserCode) {
    let node = world.add_node(name, Want::Join);
    world.connect(node);
    world.run(Duration::from_millis(200));
    let code = world.nodes[node].code.clone().expect("a code");
    assert_eq!(code.len(), 9, "{code}");
    (node, code.parse().expect("a code"))
}

#[test]
fn streams_that_say_nothing_keep_no_node_from_coming_back() {
    let mut world = World::new(1, POLICY);
    let server = world.server("payroll-1", None, &[]);
    world.cut_stream(server);
    let (asking, _) = waiting(&mut world, "somebody");
    for stranger in 0..3_000u32 {
        let from = std::net::SocketAddr::from((std::net::Ipv4Addr::from(0xc633_6400 + stranger), 40_000));
        world.core.connect(from, world.now);
    }
    world.pump();
    world.connect(server);
    world.run(Duration::from_millis(500));
    assert_eq!(world.nodes[server].refused, None);
    assert_eq!(world.core.status().connected, 1);
    assert!(world.nodes[asking].stream.is_some(), "who waits for a person is not pushed out either");
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
    assert!(matches!(&answer, Err(CoreError::NotPermitted(why)) if why.contains("sign in again")), "{answer:?}");
    let proven = Person { auth_time: Some(world.now.wall.saturating_add(seconds(1))), ..alice };
    let answer = world.core.confirm_join(code, shown, &proven, local(), world.now);
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
fn a_code_works_for_its_time_whatever_the_clock_shows_meanwhile() {
    let mut world = World::new(19, POLICY);
    let alice = person("alice", &["staff"]);
    world.run(seconds(60));
    for set in [-3_600_000, 3_600_000] {
        world.clock_set = set;
        world.run(seconds(61));
        let (node, code) = waiting(&mut world, "alice-laptop");
        let shown = world.nodes[node].key.public();
        let joined = world.core.confirm_join(code, shown, &alice, local(), world.now);
        assert!(joined.is_ok(), "set before it asked: {joined:?}");
        let (node, code) = waiting(&mut world, "alice-phone");
        world.clock_set = -set;
        world.run(seconds(61));
        let shown = world.nodes[node].key.public();
        let joined = world.core.confirm_join(code, shown, &alice, local(), world.now);
        assert!(joined.is_ok(), "set while it waited: {joined:?}");
    }
    let (_, code) = waiting(&mut world, "late");
    world.run(seconds(601));
    assert_eq!(world.core.pending_join(code, &alice, local(), world.now), Err(CoreError::Expired));
}
