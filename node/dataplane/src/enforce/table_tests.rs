//! Bounds of the flow table, its wheel, and the invariants of its lists.

use std::{sync::Arc, time::Duration};

use postern_common::{
    flow_record::{Originator, PermitRecord},
    id::LeaseId,
    net::Protocol,
    time::Monotonic,
};

use super::{
    facts::{FlowKey, PeerSlot},
    flow::{Flow, Traffic},
    rules::Rules,
    table::{FlowTable, Room},
};
use crate::testing::{at, permission};

fn flow(peer: u32, port: u16, now: Monotonic) -> Flow {
    let permissions = vec![permission("r", &["udp/*"], 1_000).map_time(&|lifetime| lifetime.deadline(now))];
    let index = Rules::compile(permissions).find(Protocol::Udp, 1, at(0)).unwrap();
    Flow {
        key: FlowKey {
            peer: PeerSlot(peer),
            protocol: Protocol::Udp,
            asker: Originator::Local,
            local: "fd00::1".parse().unwrap(),
            remote: "fd00::2".parse().unwrap(),
            local_port: port,
            remote_port: 53,
        },
        originator: Originator::Peer,
        permission: index,
        basis: Arc::new(PermitRecord {
            rule: "r".parse().unwrap(),
            resource: "r".parse().unwrap(),
            lease: LeaseId::from_bytes([1; 16]),
            would_deny: None,
        }),
        generation: 1,
        meter: crate::enforce::meters::MeterIndex::NONE,
        begun: now,
        last_seen: now,
        from_originator: Traffic::default(),
        to_originator: Traffic::default(),
        tcp: None,
        lane: crate::packet::batch::Lane(0),
    }
}

fn add(table: &mut FlowTable, peer: u32, port: u16, now: Monotonic) -> Room {
    let room = table.room_for(PeerSlot(peer));
    match room {
        Room::Evict(index) => {
            table.remove(index);
        }
        Room::None => return room,
        Room::Free => {}
    }
    table.insert(flow(peer, port, now), now);
    room
}

#[test]
fn a_scan_evicts_only_the_scanners_own_flows() {
    let start = at(0).monotonic;
    let mut table = FlowTable::new(100, 40, start);
    for port in 0..20 {
        add(&mut table, 1, port, start);
    }
    for port in 0..5_000 {
        add(&mut table, 2, port, start);
    }
    assert_eq!((table.count(PeerSlot(1)), table.count(PeerSlot(2))), (20, 40), "the quota holds");
    for port in 0..5_000 {
        add(&mut table, 3, port, start);
    }
    assert_eq!(table.len(), 100, "the table is full");
    // A newcomer finds room at the expense of those who have the most, never of the modest one.
    for port in 0..15 {
        assert_ne!(add(&mut table, 4, port, start), Room::None);
    }
    assert_eq!((table.count(PeerSlot(1)), table.count(PeerSlot(4))), (20, 15));
    assert_eq!(table.len(), 100);
}

#[test]
fn the_least_recently_used_flow_gives_way() {
    let mut table = FlowTable::new(100, 3, at(0).monotonic);
    for port in 1..=3 {
        add(&mut table, 1, port, at(u64::from(port)).monotonic);
    }
    let first = table.find(&flow(1, 1, at(0).monotonic).key).unwrap();
    table.touch(first, at(5_000).monotonic);
    add(&mut table, 1, 4, at(6_000).monotonic);
    assert!(table.find(&flow(1, 1, at(0).monotonic).key).is_some());
    assert!(table.find(&flow(1, 2, at(0).monotonic).key).is_none());
}

#[test]
fn the_wheel_finds_every_silent_flow_once_and_soon() {
    let mut table = FlowTable::new(1_000, 1_000, at(0).monotonic);
    for port in 0..500 {
        add(&mut table, 1, port, at(u64::from(port) * 137).monotonic);
    }
    let mut found = 0;
    let mut ms = 0;
    while table.len() > 0 {
        ms += 500;
        let now = at(ms).monotonic;
        while let Some(index) = table.turn(now, &mut usize::MAX.clone()) {
            let last = table.flow(index).last_seen;
            assert!(now.since(last) >= Duration::from_secs(60), "not before its time");
            assert!(now.since(last) <= Duration::from_secs(63), "{:?} late", now.since(last));
            table.remove(index);
            found += 1;
        }
        assert!(ms < 1_000_000);
    }
    assert_eq!(found, 500);
    assert_eq!(table.next_turn(), Monotonic::NEVER);
}

#[test]
fn after_a_long_sleep_every_silent_flow_is_found() {
    let mut table = FlowTable::new(1_000, 1_000, at(0).monotonic);
    for port in 0..200 {
        add(&mut table, 1, port, at(u64::from(port) * 300).monotonic);
    }
    for ms in [100_000_000, 100_001_000, 100_002_000] {
        while let Some(index) = table.turn(at(ms).monotonic, &mut usize::MAX.clone()) {
            table.remove(index);
        }
    }
    assert_eq!(table.len(), 0);
}

#[test]
fn flows_that_are_due_together_are_looked_at_in_bounded_parts_and_none_is_missed() {
    let mut table = FlowTable::new(10_000, 10_000, at(0).monotonic);
    for port in 0..5_000 {
        add(&mut table, 1, port, at(u64::from(port % 2) * 40_000).monotonic);
    }
    let now = at(64_000).monotonic;
    let (mut found, mut calls) = (0, 0);
    while table.next_turn() <= now {
        let mut looks = 100;
        while let Some(index) = table.turn(now, &mut looks) {
            assert_eq!(table.flow(index).last_seen, at(0).monotonic, "the others have time until 100 s");
            table.remove(index);
            found += 1;
        }
        calls += 1;
        assert!(calls <= 100, "each call gets on");
    }
    assert_eq!((found, table.len()), (2_500, 2_500));
    assert!(calls >= 25, "a hundred at a time: {calls}");
}
