//! Claims about tokens, and about names, tags and addresses that machines get.

use std::time::Duration;

use super::joining::{local, waiting};
use super::{
    claims::POLICY,
    node::Want,
    world::{World, config, person},
};
use crate::{
    records::AuditEvent,
    signals::alerts::AlertKind,
    stream::{CoreError, NewToken},
};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_token_is_used_once_even_by_two_machines_at_the_same_moment() {
    let mut world = World::new(5, POLICY);
    let new = NewToken {
        service: Some("wiki".parse().expect("a name")),
        tags: ["wiki".parse().expect("a tag")].into(),
        machine: None,
        networks: vec![],
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
        networks: vec![],
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
fn a_token_for_a_network_is_worth_nothing_elsewhere_and_its_use_there_alarms() {
    let mut world = World::new(8, POLICY);
    let create = |world: &mut World, network: &str| {
        let networks = vec![network.parse().expect("a network")];
        let new = NewToken { service: None, tags: [].into(), machine: None, networks, uses: 1, life: seconds(60) };
        let made = world.core.create_token(new, "root", world.now).expect("a token");
        world.pump();
        made
    };
    let (token, view) = create(&mut world, "192.0.2.0/24");
    let thief = world.add_node("thief", Want::Enrol(token));
    world.connect(thief);
    world.run(seconds(1));
    assert!(world.nodes[thief].refused.as_ref().is_some_and(|why| why.contains("not for machines at")));
    assert!(world.core.find_token(&view.short).is_ok(), "it is not used up");
    let alert = world.store.alerts.last().expect("an alert");
    assert!(alert.kind == AlertKind::NewPlace && alert.text.contains(&view.short), "{alert:?}");
    let alerts = |world: &World| world.store.alerts.iter().filter(|alert| alert.kind == AlertKind::NewPlace).count();
    for _ in 0..5 {
        world.cut_stream(thief);
        world.connect(thief);
        world.run(seconds(1));
    }
    assert_eq!(alerts(&world), 1, "one for a token and hour");
    let (token, _) = create(&mut world, "198.51.0.0/16");
    let server = world.add_node("server", Want::Enrol(token));
    world.connect(server);
    world.run(seconds(1));
    assert_eq!(world.nodes[server].refused, None);
}

#[test]
fn an_administrator_approves_and_takes_back_names_and_tags() {
    let mut world = World::new(7, POLICY);
    let new = NewToken { service: None, tags: [].into(), machine: None, networks: vec![], uses: 2, life: seconds(60) };
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
fn a_token_for_one_name_vouches_for_no_other_that_the_machine_claimed() {
    let mut world = World::new(15, POLICY);
    let alice = world.laptop("alice-laptop", &person("alice", &["payroll"]));
    let token = |world: &mut World, machine: Option<&str>| {
        let new = NewToken {
            service: Some("web".parse().expect("a name")),
            tags: [].into(),
            machine: machine.map(|name| name.parse().expect("a name")),
            networks: vec![],
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
fn a_stranger_cannot_find_out_which_wireguard_keys_are_known() {
    let mut world = World::new(14, POLICY);
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    let known = world.nodes[bob].keys[0];
    let stranger = world.add_node("stranger", Want::Join);
    world.nodes[stranger].keys = vec![known];
    world.connect(stranger);
    world.run(seconds(1));
    assert!(world.nodes[stranger].refused.is_none(), "{:?}", world.nodes[stranger].refused);
    let code = world.nodes[stranger].code.clone().expect("a code as for any key").parse().expect("a code");
    let shown = world.nodes[stranger].key.public();
    let answer = world.core.confirm_join(code, shown, &person("eve", &[]), local(), world.now);
    assert!(matches!(&answer, Err(CoreError::NotPermitted(why)) if why.contains("WireGuard key")), "{answer:?}");

    let guesser = world.add_node("guesser", Want::Enrol("pst_join_wrong".into()));
    world.nodes[guesser].keys = vec![known];
    world.connect(guesser);
    world.run(seconds(1));
    assert!(world.nodes[guesser].refused.as_ref().is_some_and(|why| why.contains("token")));
    let new = NewToken { service: None, tags: [].into(), machine: None, networks: vec![], uses: 1, life: seconds(60) };
    let (token, view) = world.core.create_token(new, "root", world.now).expect("a token");
    let copied = world.add_node("copied", Want::Enrol(token));
    world.nodes[copied].keys = vec![known];
    world.connect(copied);
    world.run(seconds(1));
    assert!(world.nodes[copied].refused.as_ref().is_some_and(|why| why.contains("WireGuard key")));
    assert!(world.core.find_token(&view.short).is_ok(), "its token is not used up");
}
