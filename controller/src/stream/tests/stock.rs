//! Claims about stock WireGuard clients and the page of a person.

use std::time::Duration;

use postern_common::key::WireGuardPublicKey;

use super::joining::local;
use super::{
    claims::POLICY,
    world::{World, person},
};
use crate::{
    records::{DeviceKind, Person, Quarantined, Restrained},
    stream::{CoreError, SignalResponse},
    web::doors::{Reach, StockRequest},
};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_stock_client_in_quarantine_is_not_left_behind_for_another_one() {
    let mut world = World::new(13, POLICY);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    let alice = person("alice", &["staff"]);
    let asked = |name: &str, byte| StockRequest {
        name: name.parse().expect("a name"),
        public_key: WireGuardPublicKey::from_bytes([byte; 32]),
    };
    let phone = world.core.export(&asked("phone", 0x77), &alice, local(), world.now).expect("exported").device;
    world.pump();
    world.run(seconds(1));
    let held = Quarantined::Device(phone);
    world.core.quarantine(held.clone(), "it scans", "root", world.now).expect("held");
    world.pump();
    world.run(seconds(1));
    assert_eq!(world.nodes[wiki].peers.get(&phone), None);
    world.core.web_session_ended(alice.web_session, world.now);
    world.pump();
    world.restart();
    world.connect(wiki);
    world.run(seconds(2));
    let again = world.core.export(&asked("tablet", 0x78), &alice, local(), world.now);
    assert!(matches!(&again, Err(CoreError::NotPermitted(why)) if why.contains("quarantine")), "{again:?}");
    world.core.release(&held, "root", world.now).expect("released");
    world.pump();
    assert!(world.core.list_devices().iter().all(|view| view.record.kind == DeviceKind::Agent), "its session is over");
    world.core.export(&asked("tablet", 0x78), &alice, local(), world.now).expect("exported");
}

#[test]
fn releasing_a_quarantine_leaves_a_stock_client_on_record_that_is_kept_to_a_few_resources() {
    let mut world = World::new(15, POLICY);
    world.server("wiki-1", Some("wiki"), &["wiki"]);
    let alice = person("alice", &["staff"]);
    let asked = |name: &str, byte: u8| StockRequest {
        name: name.parse().expect("a name"),
        public_key: WireGuardPublicKey::from_bytes([byte; 32]),
    };
    let phone = world.core.export(&asked("phone", 0x77), &alice, local(), world.now).expect("exported").device;
    let whom = Restrained::Device(phone);
    world.core.respond(whom, SignalResponse::Restrict([].into()), "it scans", "a test", world.now).expect("known");
    let held = Quarantined::Device(phone);
    world.core.quarantine(held.clone(), "it scans", "root", world.now).expect("held");
    world.core.web_session_ended(alice.web_session, world.now);
    world.core.release(&held, "root", world.now).expect("released");
    world.pump();
    assert!(!world.core.registry.restraints_of(whom).is_empty(), "the restriction has not been released");
    world.run(seconds(1));
    let tablet = world.core.export(&asked("tablet", 0x78), &alice, local(), world.now).expect("exported");
    assert!(tablet.peers.is_empty(), "another configuration shares it");
    world.core.release_restraints(whom, "root", world.now).expect("released");
    world.pump();
    assert!(world.core.list_devices().iter().all(|view| view.record.id != phone), "and then it is not on record");
}

#[test]
fn another_configuration_is_no_way_out_of_a_restraint() {
    let mut world = World::new(14, POLICY);
    world.server("wiki-1", Some("wiki"), &["wiki"]);
    let alice = person("alice", &["staff", "payroll"]);
    let asked = |name: &str, byte: u8| StockRequest {
        name: name.parse().expect("a name"),
        public_key: WireGuardPublicKey::from_bytes([byte; 32]),
    };
    let export = |world: &mut World, name, byte, who: &Person| {
        let made = world.core.export(&asked(name, byte), who, local(), world.now).expect("exported");
        world.pump();
        world.run(seconds(1));
        made
    };
    let phone = export(&mut world, "phone", 0x77, &alice);
    assert_eq!(phone.peers.len(), 1);
    let whom = Restrained::Device(phone.device);
    world.core.respond(whom, SignalResponse::Terminate, "it scans", "a test", world.now).expect("known");
    world.pump();
    assert!(world.core.list_devices().iter().all(|view| view.record.kind == DeviceKind::Agent));
    assert!(export(&mut world, "tablet", 0x78, &alice).peers.is_empty(), "by the same sign-in");
    let proven = Person { auth_time: Some(world.now.wall), ..alice };
    let tablet = export(&mut world, "watch", 0x79, &proven);
    assert_eq!(tablet.peers.len(), 1);
    let whom = Restrained::Device(tablet.device);
    world.core.respond(whom, SignalResponse::Restrict([].into()), "it scans", "a test", world.now).expect("known");
    world.core.web_session_ended(proven.web_session, world.now);
    world.pump();
    world.run(seconds(1));
    assert!(export(&mut world, "desk", 0x7a, &proven).peers.is_empty(), "the restricted one is still known");
    world.core.release_restraints(whom, "root", world.now).expect("released");
    world.pump();
    assert!(world.core.list_devices().iter().all(|view| view.record.id != tablet.device), "and then it is not");
    assert_eq!(export(&mut world, "door", 0x7b, &proven).peers.len(), 1);
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
fn stock_clients_end_when_the_credentials_of_their_person_are_set_anew() {
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
    world.core.credentials_set(&alice.issuer, &alice.sub, world.now);
    world.pump();
    let stock = |view: &&crate::stream::DeviceView| view.record.kind == DeviceKind::StockClient;
    let owners: Vec<_> = world.core.list_devices().iter().filter(stock).map(|view| view.owner_name.clone()).collect();
    assert_eq!(owners, ["bob@corp.example"]);
    assert_eq!(world.core.list_sessions().len(), 1, "her laptop is signed out too, and his phone stays");
}
