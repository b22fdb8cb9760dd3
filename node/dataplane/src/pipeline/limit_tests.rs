//! Limits and scans: what is cut, for whom, and what opens it again.

use postern_common::{
    flow_record::{FlowEnd, FlowEvent},
    grant::{PeerGrant, Permission},
    limit::{Consequence, Limit, Measure, ScanLimit},
    reason::DenyReason,
    time::Lifetime,
};

use crate::{
    Direction, LocalVerdict, PlaneEvent, Settings,
    packet::{
        batch::{Joining, TunBatch, UdpBatch},
        build::{Tcp, ip, udp_body},
        view::TcpFlags,
    },
    testing::*,
    wireguard::simulated::Simulated,
};

const HOUR: u64 = 3_600_000;

fn limited(rule: &str, services: &[&str], budget: u64, each: &[Limit]) -> Permission<Lifetime> {
    let limits = each.iter().map(|limit| Limit { budget, ..*limit }).collect();
    Permission { limits, ..permission(rule, services, HOUR) }
}

fn down(most: u64, then: Consequence) -> Limit {
    Limit { measure: Measure::Download, most, within_ms: 60_000, then, budget: 0 }
}

/// Two machines of the subject of node 1, which are nodes 1 and 3, and the server 2.
fn trio(permissions: &[Permission<Lifetime>]) -> [Node<Simulated>; 3] {
    let settings = Settings { greetings: 0, ..Settings::default() };
    let [mut a, mut b, mut c] =
        [1, 2, 3].map(|number| Node::new(number, settings.clone(), Simulated::new(u64::from(number)), at(0)));
    b.snapshot(vec![comes(1, permissions), comes(3, permissions)], at(0));
    for node in [&mut a, &mut c] {
        let number = node.number;
        node.snapshot(vec![peer(number, 2, vec![], vec![permission("all", &["tcp/*", "udp/*"], HOUR)])], at(0));
    }
    [a, b, c]
}

/// What the server is told of a machine of the one subject.
fn comes(number: u8, permissions: &[Permission<Lifetime>]) -> PeerGrant<Lifetime> {
    let mut grant = peer(2, number, permissions.to_vec(), vec![]);
    grant.subject = postern_common::id::SubjectId::from_bytes([1; 16]);
    grant
}

fn syn(from: u8, source_port: u16, port: u16) -> Vec<u8> {
    let (source, destination) = ((inner(from)[0], source_port), (inner(2)[0], port));
    Tcp { source, destination, sequence: 1, acknowledgement: 0, flags: TcpFlags::SYN, options: &[], payload: b"" }
        .packet()
}

fn ask(from: u8, source_port: u16, port: u16) -> Vec<u8> {
    let (source, destination) = ((inner(from)[0], source_port), (inner(2)[0], port));
    ip(source.0, destination.0, 17, &udp_body(source, destination, b"?"))
}

fn answer(to: u8, source_port: u16, port: u16, length: usize) -> Vec<u8> {
    let (source, destination) = ((inner(2)[0], port), (inner(to)[0], source_port));
    ip(source.0, destination.0, 17, &udp_body(source, destination, &vec![7; length]))
}

/// Asks, and lets the server answer with so many bytes; tells whether the answer came.
fn fetch(nodes: &mut [Node<Simulated>; 3], from: u8, source_port: u16, length: usize, ms: u64) -> bool {
    let [a, b, c] = nodes;
    let client = if from == 1 { &mut *a } else { &mut *c };
    client.local_sends(&ask(from, source_port, 53), at(ms));
    settle(&mut [a, b, c], at(ms));
    if b.take_delivered().is_empty() {
        return false;
    }
    b.local_sends(&answer(from, source_port, 53, length), at(ms));
    settle(&mut [a, b, c], at(ms));
    let client = if from == 1 { a } else { c };
    let came = !client.take_delivered().is_empty();
    b.take_delivered();
    came
}

fn explained(node: &mut Node<Simulated>, ms: u64) -> (LocalVerdict, Option<Limit>) {
    let flow = postern_common::net::FiveTuple {
        protocol: postern_common::net::Protocol::Udp,
        source: inner(1)[0],
        source_port: 1,
        destination: inner(2)[0],
        destination_port: 53,
    };
    let told = node.plane.explain(flow, at(ms));
    (told.verdict, told.limit)
}

fn has_shut(node: &mut Node<Simulated>) -> bool {
    std::iter::from_fn(|| node.plane.poll_event()).any(|event| event == PlaneEvent::Shut)
}

#[test]
fn more_than_the_limit_cuts_every_flow_of_the_subject_until_another_budget() {
    let limit = down(2_000, Consequence::Challenge);
    let rules = [limited("dns", &["udp/53", "tcp/53"], 0, &[limit]), permission("web", &["tcp/443"], HOUR)];
    let mut nodes = trio(&rules);
    assert!(fetch(&mut nodes, 3, 7, 10, 4), "another machine of hers, which is silent from now on");
    let [a, b, c] = &mut nodes;
    a.local_sends(&syn(1, 9, 53), at(5));
    a.local_sends(&syn(1, 9, 443), at(5));
    settle(&mut [a, b, c], at(5));
    assert_eq!(b.take_delivered().len(), 2);
    assert!(fetch(&mut nodes, 1, 8, 900, 6) && fetch(&mut nodes, 1, 8, 900, 7), "not more than the limit yet");
    assert!(!has_shut(&mut nodes[1]));
    let _the_one_that_is_more = fetch(&mut nodes, 1, 8, 900, 8);
    let b = &mut nodes[1];
    assert!(has_shut(b), "said at once");
    let flows: Vec<u16> = b.plane.flows().iter().map(|flow| flow.flow.destination_port).collect();
    assert_eq!(flows, [443], "all flows of the permission, from both machines, and no other");
    let ends = std::iter::from_fn(|| b.plane.poll_record());
    let by_limit = ends.filter(|record| matches!(record.event, FlowEvent::End { why: FlowEnd::Limit, .. })).count();
    assert_eq!(by_limit, 3);
    assert_eq!(explained(b, 9), (LocalVerdict::Deny { reason: DenyReason::Limit }, Some(limit)));
    let told = b.plane.take_behaviour(at(10));
    assert!(told.usages[0].used > 2_000 && told.usages[0].budget == 0, "{told:?}");

    assert!(!fetch(&mut nodes, 1, 8, 1, 200_000) && !fetch(&mut nodes, 3, 7, 1, 200_001), "long after the window");
    assert!(nodes[1].plane.counters().denied(Direction::Inbound, DenyReason::Limit) >= 2);
    nodes[1].upsert(comes(1, &rules[1..]), at(200_010));
    nodes[1].upsert(comes(1, &rules), at(200_020));
    assert!(!fetch(&mut nodes, 1, 8, 1, 200_030), "nor does a permission that comes again");
    let anew = [limited("dns", &["udp/53"], 1, &[limit])];
    nodes[1].upsert(comes(1, &anew), at(200_040));
    assert!(fetch(&mut nodes, 1, 8, 900, 200_050), "the controller has spoken");
}

#[test]
fn without_a_limit_or_with_one_that_is_only_watched_the_same_traffic_passes() {
    for each in [vec![], vec![down(2_000, Consequence::Alert)]] {
        let mut nodes = trio(&[limited("dns", &["udp/53"], 0, &each)]);
        for ms in 0..50 {
            assert!(fetch(&mut nodes, 1, 8, 900, 5 + ms));
        }
        let told = nodes[1].plane.take_behaviour(at(100));
        assert_eq!(told.usages.iter().any(|usage| usage.used > 2_000), !each.is_empty());
        assert!(!has_shut(&mut nodes[1]));
    }
}

#[test]
fn every_limit_with_every_response_cuts_what_it_limits_and_nothing_else() {
    let counted = [(Measure::Download, 2_000), (Measure::Upload, 300), (Measure::Connections, 5)];
    let thens = [Consequence::Challenge, Consequence::Restrict, Consequence::Terminate, Consequence::Alert];
    for (measure, most) in counted {
        for then in thens {
            let limit = Limit { measure, most, within_ms: 60_000, then, budget: 0 };
            let mut nodes = trio(&[limited("dns", &["udp/53"], 0, &[limit]), permission("web", &["tcp/443"], HOUR)]);
            let [a, b, c] = &mut nodes;
            a.local_sends(&syn(1, 9, 443), at(5));
            settle(&mut [a, b, c], at(5));
            b.take_delivered();
            assert!(fetch(&mut nodes, 3, 7, 1, 6), "her other machine");
            let came = (0..20).filter(|n| fetch(&mut nodes, 1, 100 + n, 900, 7 + u64::from(*n))).count();
            let open: Vec<u16> = nodes[1].plane.flows().iter().map(|flow| flow.flow.destination_port).collect();
            if then.shuts() {
                assert!(came < 20, "{measure:?} {then:?}");
                assert_eq!(open, [443], "{measure:?} {then:?}: every flow of it, on both machines, and no other");
                assert_eq!(
                    explained(&mut nodes[1], 60),
                    (LocalVerdict::Deny { reason: DenyReason::Limit }, Some(limit))
                );
            } else {
                assert_eq!((came, open.len()), (20, 22), "{measure:?} {then:?}: it is only told");
            }
            let told = nodes[1].plane.take_behaviour(at(61));
            assert!(told.usages[0].used > most, "{measure:?} {then:?}: {told:?}");
        }
    }
}

#[test]
fn a_scan_with_every_response_shuts_the_scanner_out_and_nobody_else() {
    let thens = [
        Consequence::Challenge,
        Consequence::Restrict,
        Consequence::Terminate,
        Consequence::Quarantine,
        Consequence::Alert,
    ];
    for then in thens {
        let mut nodes = watched(0, then);
        assert!(fetch(&mut nodes, 1, 8, 1, 5));
        tries(&mut nodes, 1, 100..111, 10);
        let flows = nodes[1].plane.flow_count();
        assert_eq!(flows, usize::from(!then.shuts()), "{then:?}: what it had open is cut, or kept");
        assert_eq!(fetch(&mut nodes, 1, 8, 1, 20), !then.shuts(), "{then:?}");
        assert!(fetch(&mut nodes, 3, 8, 1, 21), "{then:?}: nobody else");
        assert_eq!(nodes[1].plane.take_behaviour(at(22)).scans.len(), 1, "{then:?}");
    }
}

#[test]
fn a_controller_that_was_restored_from_a_backup_hears_of_what_was_passed_and_opens_it_by_a_budget_of_its_own() {
    let limit = down(2_000, Consequence::Challenge);
    let mut nodes = trio(&[limited("dns", &["udp/53"], 70, &[limit])]);
    let told = |node: &mut Node<Simulated>, ms: u64| {
        let told = node.plane.take_behaviour(at(ms)).usages;
        told.iter().map(|usage| (usage.budget, usage.used > 2_000)).collect::<Vec<_>>()
    };
    for ms in 5..9 {
        fetch(&mut nodes, 1, 8, 900, ms);
    }
    assert_eq!(told(&mut nodes[1], 10), [(70, true)]);
    let both = |budget| {
        let rules = [limited("dns", &["udp/53"], budget, &[limit])];
        vec![comes(1, &rules), comes(3, &rules)]
    };
    nodes[1].authority.epoch = 2;
    nodes[1].snapshot(both(7), at(20));
    assert_eq!(told(&mut nodes[1], 21), [(7, true)], "under the number that it believes");
    assert!(!fetch(&mut nodes, 1, 8, 1, 22), "and shut until it has spoken");
    for grant in both(8) {
        nodes[1].upsert(grant, at(30));
    }
    assert!(fetch(&mut nodes, 1, 8, 1, 31) && fetch(&mut nodes, 3, 8, 1, 32));
}

#[test]
fn uploads_and_connections_have_limits_of_their_own() {
    let then = Consequence::Terminate;
    let limit = |measure, most| Limit { measure, most, within_ms: 60_000, then, budget: 0 };
    for (each, passes) in [(limit(Measure::Upload, 100_000), true), (limit(Measure::Upload, 200), false)] {
        let mut nodes = trio(&[limited("dns", &["udp/53"], 0, &[each])]);
        let came: Vec<bool> = (0..10).map(|ms| fetch(&mut nodes, 1, 8, 900, 5 + ms)).collect();
        assert_eq!(came.last(), Some(&passes), "{each:?}");
    }
    let mut nodes = trio(&[limited("dns", &["udp/53"], 0, &[limit(Measure::Connections, 5)])]);
    let passed = (0..10).filter(|port| fetch(&mut nodes, 1, 100 + port, 1, 5 + u64::from(*port))).count();
    assert_eq!(passed, 5);
    for ms in 0..10 {
        assert!(!fetch(&mut nodes, 1, 8, 1, 50 + ms), "and then none");
    }
}

fn scan_limit(most: u32, budget: u64, then: Consequence) -> ScanLimit {
    ScanLimit { rule: "scans".parse().unwrap(), most, within_ms: 60_000, then, budget }
}

/// The server lets machines 1 and 3 in, and counts what is refused to them.
fn watched(budget: u64, then: Consequence) -> [Node<Simulated>; 3] {
    let mut nodes = trio(&[permission("dns", &["udp/53"], HOUR)]);
    for number in [1, 3] {
        let mut grant = comes(number, &[permission("dns", &["udp/53"], HOUR)]);
        grant.scan = Some(scan_limit(10, budget, then));
        nodes[1].upsert(grant, at(1));
    }
    nodes
}

fn tries(nodes: &mut [Node<Simulated>; 3], from: u8, ports: std::ops::Range<u16>, ms: u64) {
    let [a, b, c] = nodes;
    for port in ports {
        let client = if from == 1 { &mut *a } else { &mut *c };
        client.local_sends(&syn(from, 9, port), at(ms));
        settle(&mut [a, b, c], at(ms));
    }
    b.take_delivered();
}

#[test]
fn many_refused_destinations_are_a_scan_and_the_scanner_is_shut_out_alone() {
    let mut nodes = watched(0, Consequence::Quarantine);
    assert!(fetch(&mut nodes, 1, 8, 1, 5) && fetch(&mut nodes, 3, 8, 1, 5));
    for _ in 0..20 {
        tries(&mut nodes, 1, 100..110, 10);
    }
    let behaviour = nodes[1].plane.take_behaviour(at(11));
    assert!(behaviour.scans.is_empty(), "ten ports, however often");
    let told: Vec<_> = behaviour.refused.iter().map(|scan| (scan.device, scan.refused)).collect();
    assert_eq!(told.len(), 1, "the controller sums them with what others refused: {told:?}");
    assert!(told[0].0.is_some() && told[0].1 == 10, "{told:?}");
    tries(&mut nodes, 1, 100..110, 40_000);
    tries(&mut nodes, 1, 200..201, 90_000);
    let told = nodes[1].plane.take_behaviour(at(90_001)).scans;
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].device, told[0].refused, told[0].last.destination_port), (Some(device(1)), 11, 200));
    assert_eq!(nodes[1].plane.take_behaviour(at(90_002)).scans, told, "until somebody has answered");
    assert!(!fetch(&mut nodes, 1, 8, 1, 90_002), "it is shut out, and what it had open is cut");
    assert!(fetch(&mut nodes, 3, 8, 1, 90_003), "nobody else is");
    let mut released = comes(1, &[permission("dns", &["udp/53"], HOUR)]);
    released.scan = Some(scan_limit(10, 1, Consequence::Quarantine));
    nodes[1].upsert(released, at(90_004));
    assert!(fetch(&mut nodes, 1, 8, 1, 90_005), "another budget");
    assert!(nodes[1].plane.take_behaviour(at(90_006)).scans.is_empty());
}

#[test]
fn signing_out_and_in_again_is_no_way_to_be_forgotten() {
    let mut nodes = watched(0, Consequence::Quarantine);
    tries(&mut nodes, 1, 100..110, 10);
    let mut other = comes(3, &[permission("dns", &["udp/53"], HOUR)]);
    other.scan = Some(scan_limit(10, 0, Consequence::Quarantine));
    nodes[1].snapshot(vec![other], at(20));
    let mut again = comes(1, &[permission("dns", &["udp/53"], HOUR)]);
    again.scan = Some(scan_limit(10, 0, Consequence::Quarantine));
    nodes[1].upsert(again, at(30));
    nodes[0].remove(2, at(30));
    nodes[0].upsert(peer(1, 2, vec![], vec![permission("all", &["tcp/*", "udp/*"], HOUR)]), at(30));
    assert!(nodes[1].plane.take_behaviour(at(31)).scans.is_empty());
    tries(&mut nodes, 1, 110..111, 40);
    assert_eq!(nodes[1].plane.take_behaviour(at(41)).scans.len(), 1);
}

#[test]
fn answers_and_what_was_permitted_until_lately_make_no_server_a_scanner() {
    let settings = Settings { greetings: 0, ..Settings::default() };
    let mut server = Node::new(2, settings, Simulated::new(2), at(0));
    let mut told = |peers: Vec<PeerGrant<Lifetime>>, ms: u64, packets: Vec<Vec<u8>>| {
        let mut grant = own(2);
        grant.scan = Some(scan_limit(10, 0, Consequence::Quarantine));
        grant.overlay = vec!["fd00::/16".parse().unwrap(), "100.64.0.0/10".parse().unwrap()];
        let grants = server.authority.snapshot(grant, peers);
        server.apply(grants, at(ms));
        packets.iter().for_each(|packet| server.local_sends(packet, at(ms)));
        server.plane.take_behaviour(at(ms)).scans.len()
    };
    let answers = || (100..200).map(|port| answer(1, port, 53, 9)).collect::<Vec<_>>();
    let asks = peer(2, 1, vec![permission("dns", &["udp/53"], HOUR)], vec![]);
    assert_eq!(told(vec![asks], 5, answers()), 0, "late answers to a peer that asks from low ports");
    assert_eq!(told(vec![], 10, answers()), 0, "and that has gone away");
    let openings = || {
        let open = |port: u16| {
            let (source, destination) = ((inner(2)[0], 9), (inner(3)[0], port));
            let flags = TcpFlags::SYN;
            Tcp { source, destination, sequence: 1, acknowledgement: 0, flags, options: &[], payload: b"" }.packet()
        };
        (100..200).map(open).collect::<Vec<_>>()
    };
    let open = peer(2, 3, vec![], vec![permission("all", &["tcp/*"], HOUR)]);
    assert_eq!(told(vec![open], 15, vec![]), 0);
    assert_eq!(told(vec![], 20, openings()), 0, "its rule has just ended");
    assert_eq!(told(vec![], 61_000, openings()), 1, "a window later it scans");
}

#[test]
fn refusals_that_are_old_or_of_another_kind_are_no_scan() {
    let mut nodes = watched(0, Consequence::Quarantine);
    tries(&mut nodes, 1, 100..110, 10);
    tries(&mut nodes, 1, 110..120, 70_010);
    let [a, b, c] = &mut nodes;
    for port in 0..100 {
        // Late answers to a client's ports, and segments in mid-stream.
        a.local_sends(&ask(1, 53, 40_000 + port), at(70_020));
        let (source, destination) = ((inner(1)[0], 443), (inner(2)[0], 1_000 + port));
        let flags = TcpFlags::ACK;
        let segment = Tcp { source, destination, sequence: 1, acknowledgement: 1, flags, options: &[], payload: b"x" };
        a.local_sends(&segment.packet(), at(70_020));
    }
    settle(&mut [a, b, c], at(70_020));
    assert!(nodes[1].plane.take_behaviour(at(70_021)).scans.is_empty());
}

#[test]
fn what_a_rule_opens_and_the_machines_owner_does_not_want_is_no_scan() {
    let mut nodes = trio(&[permission("dns", &["udp/53"], HOUR)]);
    let mut entitled = comes(1, &[permission("all", &["tcp/*", "udp/53"], HOUR)]);
    entitled.scan = Some(scan_limit(10, 0, Consequence::Quarantine));
    nodes[1].upsert(entitled, at(1));
    let only_dns = crate::Ceiling { services: Some(vec!["udp/53".parse().unwrap()]), tags: None };
    let (mut udp, mut tun) = (UdpBatch::new(), TunBatch::new(Joining::Nothing));
    nodes[1].plane.set_ceiling(only_dns, at(2), &mut crate::Out { udp: &mut udp, tun: &mut tun });
    tries(&mut nodes, 1, 100..150, 10);
    assert_eq!(nodes[1].plane.counters().denied(Direction::Inbound, DenyReason::Ceiling), 50);
    let told = nodes[1].plane.take_behaviour(at(11));
    assert!(told.scans.is_empty() && told.refused.is_empty(), "policy names all of it: {told:?}");
    assert!(fetch(&mut nodes, 1, 8, 1, 12));
}

#[test]
fn a_foreign_source_address_makes_nobody_a_scanner() {
    let mut nodes = watched(0, Consequence::Quarantine);
    let [a, b, c] = &mut nodes;
    // A machine that edits its own rules: it owns the address of machine 3, as far as it knows.
    let mut lies = own(1);
    lies.addresses.extend(inner(3));
    let grants = a.authority.snapshot(lies, vec![peer(1, 2, vec![], vec![permission("all", &["tcp/*"], HOUR)])]);
    a.apply(grants, at(2));
    for port in 100..200 {
        let (source, destination) = ((inner(3)[0], 9), (inner(2)[0], port));
        let flags = TcpFlags::SYN;
        let segment = Tcp { source, destination, sequence: 1, acknowledgement: 0, flags, options: &[], payload: b"" };
        a.local_sends(&segment.packet(), at(10));
        settle(&mut [&mut *a, &mut *b, &mut *c], at(10));
    }
    assert!(b.plane.counters().denied(Direction::Inbound, DenyReason::SourceNotOwned) >= 100, "they came");
    assert!(b.plane.take_behaviour(at(11)).scans.is_empty());
    assert!(fetch(&mut nodes, 3, 8, 1, 12));
}

#[test]
fn a_machine_notices_that_its_own_programs_scan_the_overlay_and_nothing_else() {
    let settings = Settings { greetings: 0, ..Settings::default() };
    let mut node = Node::new(1, settings, Simulated::new(1), at(0));
    let mut grant = own(1);
    grant.scan = Some(scan_limit(10, 0, Consequence::Challenge));
    grant.overlay = vec!["fd00::/16".parse().unwrap(), "100.64.0.0/10".parse().unwrap()];
    let grants = node.authority.snapshot(grant, vec![]);
    node.apply(grants, at(0));
    let tries = |node: &mut Node<Simulated>, to: std::net::IpAddr, ports: std::ops::Range<u16>| {
        for port in ports {
            let (source, destination) = ((inner(1)[0], 9), (to, port));
            let body = udp_body(source, destination, b"?");
            node.local_sends(&ip(source.0, destination.0, 17, &body), at(5));
        }
        node.plane.take_behaviour(at(6)).scans.len()
    };
    let elsewhere = if inner(1)[0].is_ipv6() { "2001:db8::1" } else { "192.0.2.1" };
    assert_eq!(tries(&mut node, elsewhere.parse().unwrap(), 1..100), 0, "what is not of the overlay");
    assert_eq!(tries(&mut node, inner(77)[0], 1..11), 0);
    assert_eq!(tries(&mut node, inner(77)[0], 11..100), 1);
}
