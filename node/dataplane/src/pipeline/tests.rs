//! Two data planes back to back: with real tunnels where the protocol matters, with simulated tunnels where time does.

use std::net::{IpAddr, SocketAddr};

use postern_common::{
    flow_record::{FlowEnd, FlowEvent},
    grant::OnDeny,
    reason::DenyReason,
};

use crate::{
    Direction, DropReason, PlaneEvent, Settings,
    packet::{
        build::{Tcp, icmp, ip, udp_body},
        view::{PacketView, TcpFlags, Transport},
    },
    testing::*,
    wireguard::{Tunnels, WireGuard, simulated::Simulated},
};

pub(super) const HOUR: u64 = 3_600_000;

pub(super) fn segment(
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
) -> Vec<u8> {
    Tcp { source: from, destination: to, sequence, acknowledgement, flags, options: &[], payload: b"" }.packet()
}

pub(super) fn datagram(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    ip(from.0, to.0, 17, &udp_body(from, to, payload))
}

fn flags_of(packet: &[u8]) -> Option<(u8, u32, u32)> {
    match PacketView::parse(packet).ok()?.transport() {
        Transport::Tcp(tcp) => Some((tcp.flags.0, tcp.sequence, tcp.acknowledgement)),
        _ => None,
    }
}

/// A laptop (1) that may reach tcp/443 and icmp on a server (2).
fn couple<W: Tunnels>(a: W, b: W, remaining_ms: u64) -> (Node<W>, Node<W>) {
    let settings = Settings { greetings: 0, ..Settings::default() };
    let (mut a, mut b) = (Node::new(1, settings.clone(), a, at(0)), Node::new(2, settings, b, at(0)));
    let services = ["tcp/443", "udp/53", "icmp"];
    b.snapshot(vec![peer(2, 1, vec![permission("rule", &services, remaining_ms)], vec![])], at(0));
    a.snapshot(vec![peer(1, 2, vec![], vec![permission("rule", &services, remaining_ms)])], at(0));
    (a, b)
}

pub(super) fn simulated(remaining_ms: u64) -> (Node<Simulated>, Node<Simulated>) {
    couple(Simulated::new(1), Simulated::new(2), remaining_ms)
}

/// Opens tcp/443 from 1 to 2 and returns both ends.
pub(super) fn connect<W: Tunnels>(a: &mut Node<W>, b: &mut Node<W>, family: usize, ms: u64) -> [(IpAddr, u16); 2] {
    let (client, server) = ((inner(1)[family], 40_000), (inner(2)[family], 443));
    a.local_sends(&segment(client, server, TcpFlags::SYN, 100, 0), at(ms));
    settle(&mut [a, b], at(ms));
    b.local_sends(&segment(server, client, TcpFlags::SYN | TcpFlags::ACK, 500, 101), at(ms));
    settle(&mut [a, b], at(ms));
    a.local_sends(&segment(client, server, TcpFlags::ACK, 101, 501), at(ms));
    settle(&mut [a, b], at(ms));
    assert_eq!((a.take_delivered().len(), b.take_delivered().len()), (1, 2), "family {family}");
    [client, server]
}

#[test]
fn an_allowed_flow_passes_through_real_wireguard_in_both_families() {
    let (mut a, mut b) = couple(WireGuard::new(at(0)), WireGuard::new(at(0)), HOUR);
    for family in 0..2 {
        connect(&mut a, &mut b, family, 10);
    }
    assert_eq!(b.plane.counters().packets_in, 4);
    assert_eq!(a.plane.flows().len(), 2);
    assert_eq!(a.plane.flows()[0].tcp, Some("established"));
    assert!(a.plane.poll_record().is_some_and(|record| record.event == FlowEvent::Start));
    assert!(matches!(a.plane.poll_event(), Some(PlaneEvent::EndpointMoved { .. })));
    assert!(matches!(a.plane.poll_event(), Some(PlaneEvent::PairConfirmed { .. })));
    let who = b.plane.whois(SocketAddr::new(inner(1)[0], 40_000)).unwrap();
    assert_eq!((who.peer.device, who.endpoint), (device(1), Some(outer(1))));
    assert_eq!(who.flow.unwrap().permit.rule.as_str(), "rule");
}

#[test]
fn the_controller_is_told_from_where_peers_speak_that_may_open_something_here() {
    let (mut a, mut b) = couple(WireGuard::new(at(0)), WireGuard::new(at(0)), HOUR);
    assert!(b.plane.take_behaviour(at(5)).seen.is_empty(), "an address that nobody proved is none");
    let ends = connect(&mut a, &mut b, 0, 10);
    let told = |node: &mut Node<WireGuard>, ms: u64| {
        let seen = node.plane.take_behaviour(at(ms)).seen.into_iter();
        seen.map(|seen| (seen.device, seen.address, seen.age_ms)).collect::<Vec<_>>()
    };
    assert_eq!(told(&mut b, 30), [(device(1), outer(1).ip(), 20)]);
    assert_eq!(told(&mut a, 30), [], "it may open nothing at whoever it reaches");
    assert_eq!((told(&mut b, 40), told(&mut b, 90_000)), (vec![], vec![]), "once, and not again while nothing comes");
    // The same address a minute later, with a packet; another one at once.
    a.local_sends(&segment(ends[0], ends[1], TcpFlags::ACK, 101, 501), at(90_010));
    settle(&mut [&mut a, &mut b], at(90_010));
    assert_eq!(told(&mut b, 90_020), [(device(1), outer(1).ip(), 10)]);
    a.local_sends(&segment(ends[0], ends[1], TcpFlags::ACK, 101, 501), at(90_030));
    let datagrams: Vec<_> = a.sent.drain(..).collect();
    for (_, datagram) in datagrams {
        b.network_brings(&datagram, outer(66), at(90_040));
    }
    assert_eq!(told(&mut b, 90_050), [(device(1), outer(66).ip(), 10)]);
}

#[test]
fn another_port_another_protocol_and_the_other_direction_get_nothing() {
    let (mut a, mut b) = simulated(HOUR);
    connect(&mut a, &mut b, 0, 10);
    let (client, server) = (inner(1)[0], inner(2)[0]);
    for packet in [
        segment((client, 40_001), (server, 444), TcpFlags::SYN, 1, 0),
        segment((client, 40_001), (server, 22), TcpFlags::SYN, 1, 0),
        datagram((client, 40_001), (server, 443), b"x"),
    ] {
        a.local_sends(&packet, at(20));
        assert!(a.sent.is_empty(), "nothing leaves");
        assert_eq!(a.take_delivered().len(), 1, "the program is told");
    }
    b.local_sends(&segment((server, 50_000), (client, 443), TcpFlags::SYN, 1, 0), at(20));
    assert!(b.sent.is_empty());
    assert_eq!(a.plane.counters().denied(Direction::Outbound, DenyReason::NoRule), 3);
    assert_eq!(b.plane.counters().denied(Direction::Outbound, DenyReason::NoRule), 1);
}

/// A hostile node 1: its own plane lets everything out.
fn hostile() -> (Node<Simulated>, Node<Simulated>) {
    let (mut a, b) = simulated(HOUR);
    a.upsert(
        peer(
            1,
            2,
            vec![permission("all", &["tcp/*", "udp/*", "icmp"], HOUR)],
            vec![permission("all", &["tcp/*", "udp/*", "icmp"], HOUR)],
        ),
        at(0),
    );
    (a, b)
}

#[test]
fn the_destination_refuses_what_a_hostile_source_lets_out_and_stays_silent() {
    let (mut a, mut b) = hostile();
    let (client, server) = (inner(1)[1], inner(2)[1]);
    a.local_sends(&segment((client, 1), (server, 22), TcpFlags::SYN, 1, 0), at(5));
    a.local_sends(&segment((client, 1), (server, 23), TcpFlags::ACK, 1, 0), at(5));
    a.local_sends(&datagram((client, 1), (server, 5353), b"x"), at(5));
    settle(&mut [&mut a, &mut b], at(5));
    assert!(b.delivered.is_empty() && a.delivered.is_empty());
    assert_eq!(b.plane.counters().denied(Direction::Inbound, DenyReason::NoRule), 2);
    assert_eq!(b.plane.counters().denied(Direction::Inbound, DenyReason::Settling), 1);
    let record = b.plane.poll_record().unwrap();
    assert!(matches!(record.event, FlowEvent::Deny { reason: DenyReason::NoRule, repeated: 0 }));
    assert_eq!(record.peer.unwrap().device, device(1));
}

#[test]
fn a_rule_that_rejects_answers_the_peer_with_an_rst() {
    let (mut a, mut b) = hostile();
    let mut reject = permission("rule", &["tcp/443"], HOUR);
    reject.on_deny = OnDeny::Reject;
    b.upsert(peer(2, 1, vec![reject], vec![]), at(1));
    a.local_sends(&segment((inner(1)[0], 7), (inner(2)[0], 22), TcpFlags::SYN, 9, 0), at(5));
    settle(&mut [&mut a, &mut b], at(5));
    let answers = a.take_delivered();
    assert_eq!(flags_of(&answers[0]), Some((TcpFlags::RST | TcpFlags::ACK, 0, 10)));
    assert!(b.delivered.is_empty());
}

#[test]
fn a_peer_that_uses_an_address_of_another_gets_nothing() {
    let (mut a, mut b) = hostile();
    let spoofed = inner(3)[0];
    let mut identity = own(1);
    identity.addresses.push(spoofed);
    let lax = peer(1, 2, vec![], vec![permission("all", &["tcp/*"], HOUR)]);
    let grants = a.authority.snapshot(identity, vec![lax]);
    a.apply(grants, at(1));
    a.local_sends(&segment((spoofed, 40_000), (inner(2)[0], 443), TcpFlags::SYN, 1, 0), at(5));
    settle(&mut [&mut a, &mut b], at(5));
    assert!(b.delivered.is_empty());
    assert_eq!(b.plane.counters().denied(Direction::Inbound, DenyReason::SourceNotOwned), 1);
}

#[test]
fn a_packet_for_somebody_else_is_not_delivered() {
    let (mut a, mut b) = hostile();
    let elsewhere = inner(9)[0];
    let mut lax = peer(1, 2, vec![], vec![permission("all", &["tcp/*"], HOUR)]);
    lax.addresses.push(elsewhere);
    a.upsert(lax, at(1));
    a.local_sends(&segment((inner(1)[0], 40_000), (elsewhere, 443), TcpFlags::SYN, 1, 0), at(5));
    settle(&mut [&mut a, &mut b], at(5));
    assert!(b.delivered.is_empty());
    assert_eq!(b.plane.counters().denied_total(), 1);
}

#[test]
fn an_unknown_key_gets_no_answer_to_a_correct_initiation() {
    let (mut a, mut b) = couple(WireGuard::new(at(0)), WireGuard::new(at(0)), HOUR);
    b.remove(1, at(1));
    a.local_sends(&segment((inner(1)[0], 40_000), (inner(2)[0], 443), TcpFlags::SYN, 1, 0), at(5));
    let (_, initiation) = a.sent.pop_front().expect("an initiation");
    assert_eq!(initiation.len(), 148);
    b.network_brings(&initiation, outer(1), at(5));
    assert!(b.sent.is_empty());
    assert_eq!(b.plane.counters().dropped(DropReason::UnknownInitiator), 1);
    // The same initiation is answered by a node that knows the key.
    let (_, mut known) = couple(WireGuard::new(at(0)), WireGuard::new(at(0)), HOUR);
    known.network_brings(&initiation, outer(1), at(5));
    assert_eq!(known.sent.len(), 1);
}

#[test]
fn a_peer_whose_last_permission_expired_is_not_there() {
    let (mut a, mut b) = simulated(30_000);
    connect(&mut a, &mut b, 0, 10);
    b.tick(at(30_000));
    b.delivered.clear();
    a.upsert(peer(1, 2, vec![], vec![permission("rule", &["tcp/443"], HOUR)]), at(30_000));
    a.local_sends(&segment((inner(1)[0], 40_000), (inner(2)[0], 443), TcpFlags::ACK, 101, 501), at(30_001));
    let (_, transport) = a.sent.pop_front().unwrap();
    b.network_brings(&transport, outer(1), at(30_001));
    assert_eq!(b.plane.counters().dropped(DropReason::UnknownIndex), 1, "its sessions are destroyed");
    let mut stranger = Node::new(1, Settings::default(), Simulated::new(9), at(0));
    stranger.snapshot(vec![peer(1, 2, vec![], vec![permission("rule", &["tcp/443"], HOUR)])], at(30_002));
    stranger.local_sends(&segment((inner(1)[0], 1), (inner(2)[0], 443), TcpFlags::SYN, 1, 0), at(30_002));
    settle(&mut [&mut stranger, &mut b], at(30_002));
    assert_eq!(b.plane.counters().dropped(DropReason::UnknownInitiator), 1);
    assert!(b.delivered.is_empty());
    // A renewal lets it in again.
    b.upsert(peer(2, 1, vec![permission("rule", &["tcp/443"], HOUR)], vec![]), at(31_000));
    stranger.local_sends(&segment((inner(1)[0], 2), (inner(2)[0], 443), TcpFlags::SYN, 1, 0), at(37_000));
    stranger.tick(at(37_000));
    settle(&mut [&mut stranger, &mut b], at(37_000));
    assert_eq!(b.delivered.len(), 2, "also what waited");
}

#[test]
fn an_idle_flow_gets_its_rst_within_a_second_of_its_deadline_without_a_packet() {
    let (mut a, mut b) = simulated(30_000);
    let [client, server] = connect(&mut a, &mut b, 1, 10);
    pass_time(&mut [&mut a, &mut b], 10, 29_999);
    assert!(a.delivered.is_empty() && b.delivered.is_empty());
    pass_time(&mut [&mut a, &mut b], 29_999, 31_000);
    let (at_a, at_b) = (a.take_delivered(), b.take_delivered());
    assert_eq!((at_a.len(), at_b.len()), (1, 1), "both ends tell their own socket");
    assert_eq!(flags_of(&at_a[0]), Some((TcpFlags::RST | TcpFlags::ACK, 501, 101)));
    assert_eq!(flags_of(&at_b[0]), Some((TcpFlags::RST | TcpFlags::ACK, 101, 501)));
    assert_eq!(a.plane.flow_count(), 0);
    b.local_sends(&segment(server, client, TcpFlags::ACK, 501, 101), at(31_001));
    assert!(b.sent.is_empty(), "the reply direction is closed too");
    let ends: Vec<_> = std::iter::from_fn(|| b.plane.poll_record()).map(|record| record.event).collect();
    assert!(ends.iter().any(|event| matches!(event, FlowEvent::End { why: FlowEnd::Expired, packets_out: 2, .. })));
}

#[test]
fn a_wall_clock_set_forward_closes_within_a_second() {
    let (mut a, mut b) = simulated(HOUR);
    connect(&mut a, &mut b, 0, 10);
    let mut now = at(900);
    now.wall = now.wall.saturating_add(std::time::Duration::from_secs(7_200));
    assert!(b.plane.poll_timeout() <= at(1_010).monotonic);
    b.tick(now);
    assert_eq!(b.take_delivered().len(), 1);
    assert_eq!(b.plane.flow_count(), 0);
}

#[test]
fn revocation_cuts_established_flows_at_once_and_leaves_no_session() {
    let (mut a, mut b) = couple(WireGuard::new(at(0)), WireGuard::new(at(0)), HOUR);
    let [client, server] = connect(&mut a, &mut b, 0, 10);
    let applied = b.remove(1, at(20));
    assert_eq!((applied.cut, applied.removed), (1, vec![device(1)]));
    assert_eq!(flags_of(&b.take_delivered()[0]), Some((TcpFlags::RST | TcpFlags::ACK, 101, 501)));
    a.local_sends(&segment(client, server, TcpFlags::ACK, 101, 501), at(21));
    settle(&mut [&mut a, &mut b], at(21));
    assert!(b.delivered.is_empty());
    assert_eq!(b.plane.counters().dropped(DropReason::UnknownIndex), 1);
    b.local_sends(&segment(server, client, TcpFlags::ACK, 501, 101), at(22));
    assert!(b.sent.is_empty());
}

#[test]
fn a_rule_taken_away_cuts_its_flows_and_no_others() {
    let (mut a, mut b) = simulated(HOUR);
    connect(&mut a, &mut b, 0, 10);
    a.local_sends(&datagram((inner(1)[0], 9), (inner(2)[0], 53), b"q"), at(11));
    settle(&mut [&mut a, &mut b], at(11));
    b.delivered.clear();
    let applied = b.upsert(peer(2, 1, vec![permission("rule", &["udp/53"], HOUR)], vec![]), at(20));
    assert_eq!((applied.cut, applied.compiled), (1, vec![device(1)]));
    assert_eq!(b.plane.flows().len(), 1);
    a.local_sends(&datagram((inner(1)[0], 9), (inner(2)[0], 53), b"q"), at(21));
    settle(&mut [&mut a, &mut b], at(21));
    assert_eq!(b.take_delivered().len(), 2, "the RST, and the datagram that still passes");
}

#[test]
fn a_change_of_subject_on_the_device_cuts() {
    let (mut a, mut b) = simulated(HOUR);
    connect(&mut a, &mut b, 0, 10);
    let mut other = peer(2, 1, vec![permission("rule", &["tcp/443", "udp/53", "icmp"], HOUR)], vec![]);
    other.subject = postern_common::id::SubjectId::from_bytes([77; 16]);
    assert_eq!(b.upsert(other, at(20)).cut, 1);
    let ends: Vec<_> = std::iter::from_fn(|| b.plane.poll_record()).collect();
    let end = ends.iter().find(|r| matches!(r.event, FlowEvent::End { why: FlowEnd::SubjectChanged, .. })).unwrap();
    assert_eq!(end.peer.as_ref().unwrap().subject_name, "subject-1", "the record names who it was");
}

#[test]
fn a_one_lease_change_compiles_only_the_peers_it_touches() {
    let mut node = Node::new(1, Settings::default(), Simulated::new(1), at(0));
    let all: Vec<_> = (2..=200).map(|n| peer(1, n, vec![permission("rule", &["tcp/443"], 600_000)], vec![])).collect();
    assert_eq!(node.snapshot(all.clone(), at(0)).compiled.len(), 199);
    assert_eq!(node.plane.counters().peers_compiled, 199);
    let generations = |node: &Node<Simulated>| node.plane.peers(at(1)).iter().map(|p| p.generation).collect::<Vec<_>>();
    let before = generations(&node);
    let changed = peer(1, 77, vec![permission("rule", &["tcp/443", "tcp/80"], 600_000)], vec![]);
    let applied = node.upsert(changed.clone(), at(1));
    assert_eq!(applied.compiled, [device(77)]);
    assert_eq!(node.plane.counters().peers_compiled, 200);
    let after = generations(&node);
    assert_eq!(before.iter().zip(&after).filter(|(a, b)| a != b).count(), 1);
    // A renewal of everything, as a delta or a snapshot, compiles nothing.
    let renewed: Vec<_> = (2..=200)
        .map(|n| {
            if n == 77 { changed.clone() } else { peer(1, n, vec![permission("rule", &["tcp/443"], 900_000)], vec![]) }
        })
        .collect();
    let applied = node.snapshot(renewed, at(2));
    assert_eq!((applied.compiled.len(), applied.renewed, applied.unchanged), (0, 198, 1));
    assert_eq!(generations(&node), after);
    assert_eq!(node.plane.counters().peers_compiled, 200);
}

#[test]
fn a_renewal_carries_live_flows_past_their_first_deadline() {
    let (mut a, mut b) = simulated(30_000);
    let [client, server] = connect(&mut a, &mut b, 0, 10);
    for round in 1..=10_u64 {
        let ms = round * 20_000;
        pass_time(&mut [&mut a, &mut b], ms - 20_000 + 10, ms);
        let services = ["tcp/443", "udp/53", "icmp"];
        b.upsert(peer(2, 1, vec![permission("rule", &services, ms + 30_000)], vec![]), at(ms));
        a.upsert(peer(1, 2, vec![], vec![permission("rule", &services, ms + 30_000)]), at(ms));
    }
    assert!(a.delivered.is_empty() && b.delivered.is_empty(), "no RST");
    a.local_sends(&segment(client, server, TcpFlags::ACK, 101, 501), at(200_100));
    settle(&mut [&mut a, &mut b], at(200_100));
    assert_eq!(b.take_delivered().len(), 1);
    assert_eq!(b.plane.counters().flows_begun, 1, "it is the same flow");
}

#[test]
fn what_waited_for_a_handshake_is_judged_again() {
    let (mut a, mut b) = simulated(HOUR);
    a.local_sends(&segment((inner(1)[0], 1), (inner(2)[0], 443), TcpFlags::SYN, 1, 0), at(5));
    a.local_sends(&datagram((inner(1)[0], 1), (inner(2)[0], 53), b"q"), at(5));
    a.upsert(peer(1, 2, vec![], vec![permission("rule", &["udp/53"], HOUR)]), at(6));
    settle(&mut [&mut a, &mut b], at(7));
    let got = b.take_delivered();
    assert_eq!(got.len(), 1);
    assert!(matches!(PacketView::parse(&got[0]).unwrap().transport(), Transport::Udp(_)));
}

#[test]
fn waiting_packets_are_bounded_and_do_not_wait_for_ever() {
    let (mut a, _) = simulated(HOUR);
    for port in 0..100 {
        a.local_sends(&datagram((inner(1)[0], 1 + port), (inner(2)[0], 53), b"q"), at(5));
    }
    assert_eq!(a.plane.counters().dropped(DropReason::Pending), 100 - 32);
    a.tick(at(10_005));
    assert_eq!(a.plane.counters().dropped(DropReason::Pending), 100);
}

#[test]
fn a_peer_cannot_call_back_over_the_ports_of_a_live_flow() {
    let (mut a, mut b) = hostile();
    // Node 2 is the honest one that dials out; node 1 answers and is hostile.
    b.upsert(peer(2, 1, vec![], vec![permission("out", &["tcp/80"], HOUR)]), at(1));
    let (me, it) = ((inner(2)[0], 33_000), (inner(1)[0], 80));
    b.local_sends(&segment(me, it, TcpFlags::SYN, 1, 0), at(5));
    settle(&mut [&mut a, &mut b], at(5));
    a.local_sends(&segment(it, me, TcpFlags::SYN | TcpFlags::ACK, 9, 2), at(6));
    settle(&mut [&mut a, &mut b], at(6));
    assert_eq!(b.take_delivered().len(), 1, "an answer passes");
    a.local_sends(&segment(it, me, TcpFlags::SYN, 90, 0), at(7));
    settle(&mut [&mut a, &mut b], at(7));
    assert!(b.delivered.is_empty(), "an opening does not, although its ports are those of a live flow");
    assert_eq!(b.plane.flow_count(), 1, "and it does not harm the flow");
}

#[test]
fn an_echo_request_does_not_pass_as_an_answer() {
    let (mut a, mut b) = hostile();
    b.upsert(peer(2, 1, vec![], vec![permission("out", &["icmp"], HOUR)]), at(1));
    let (me, it) = (inner(2)[0], inner(1)[0]);
    b.local_sends(&icmp(me, it, 128, 0, &[0, 7, 0, 1]), at(5));
    settle(&mut [&mut a, &mut b], at(5));
    assert_eq!(a.take_delivered().len(), 1);
    a.local_sends(&icmp(it, me, 129, 0, &[0, 7, 0, 1]), at(6));
    a.local_sends(&icmp(it, me, 128, 0, &[0, 7, 0, 2]), at(6));
    settle(&mut [&mut a, &mut b], at(6));
    let got = b.take_delivered();
    assert_eq!(got.len(), 1);
    assert_eq!(got[0][40], 129);
}

#[test]
fn an_icmp_error_passes_only_about_a_packet_of_a_flow() {
    let (mut a, mut b) = simulated(HOUR);
    let (me, it) = ((inner(1)[0], 9), (inner(2)[0], 53));
    let asked = datagram(me, it, b"q");
    a.local_sends(&asked, at(5));
    settle(&mut [&mut a, &mut b], at(5));
    let quote = |packet: &[u8]| [&[0, 0, 0, 0], packet].concat();
    b.local_sends(&icmp(it.0, me.0, 1, 4, &quote(&asked)), at(6));
    b.local_sends(&icmp(it.0, me.0, 1, 4, &quote(&datagram((me.0, 10), it, b"q"))), at(6));
    settle(&mut [&mut a, &mut b], at(6));
    assert_eq!(a.take_delivered().len(), 1);
    assert_eq!(b.plane.counters().denied(Direction::Outbound, DenyReason::NoFlow), 1);
}

#[test]
fn after_a_restart_denied_segments_get_no_rst_until_it_has_settled() {
    let (_, mut b) = simulated(HOUR);
    let reply = segment((inner(2)[0], 443), (inner(1)[0], 40_000), TcpFlags::ACK, 501, 101);
    b.local_sends(&reply, at(60_000));
    assert!(b.delivered.is_empty() && b.sent.is_empty());
    assert_eq!(b.plane.counters().denied(Direction::Outbound, DenyReason::Settling), 1);
    b.local_sends(&reply, at(120_000));
    assert_eq!(b.take_delivered().len(), 1, "later the program is told");
}

#[test]
fn the_answer_to_an_opening_never_makes_its_sender_the_originator() {
    let (mut a, mut b) = hostile(); // `a` lets everything out ...
    let all = || vec![permission("all", &["tcp/*"], HOUR)];
    b.upsert(peer(2, 1, all(), all()), at(0)); // ... and here either end may open anything
    let (client, server) = ((inner(1)[0], 40_000), (inner(2)[0], 443));
    let answer = TcpFlags::SYN | TcpFlags::ACK;
    b.local_sends(&segment(server, client, answer, 500, 101), at(5));
    assert_eq!(b.plane.counters().denied(Direction::Outbound, DenyReason::Settling), 1);
    assert!(b.delivered.is_empty(), "no RST: the connection comes back when its originator speaks");
    b.local_sends(&segment(server, client, answer, 500, 101), at(120_000));
    assert_eq!(b.plane.counters().denied(Direction::Outbound, DenyReason::NoFlow), 1);
    a.local_sends(&segment(client, server, answer, 500, 101), at(120_000));
    settle(&mut [&mut a, &mut b], at(120_000));
    assert!(a.plane.flows().is_empty() && b.plane.flows().is_empty());
}

#[test]
fn an_established_connection_comes_back_after_each_end_was_restarted() {
    let (mut a, mut b) = couple(Simulated::new(1), Simulated::new(2), HOUR);
    let [client, server] = connect(&mut a, &mut b, 0, 10);
    // The server's node restarts and greets its peers.
    let mut b = Node::new(2, Settings::default(), Simulated::new(3), at(20_000));
    let services = ["tcp/443", "udp/53", "icmp"];
    b.snapshot(vec![peer(2, 1, vec![permission("rule", &services, HOUR)], vec![])], at(20_000));
    pass_time(&mut [&mut a, &mut b], 20_000, 24_000);
    b.take_delivered();
    a.local_sends(&segment(client, server, TcpFlags::ACK, 101, 501), at(24_000));
    settle(&mut [&mut a, &mut b], at(24_000));
    assert_eq!(b.take_delivered().len(), 1, "no wait for a timeout: the greeting brought a session");
    b.local_sends(&segment(server, client, TcpFlags::ACK, 501, 101), at(24_001));
    settle(&mut [&mut a, &mut b], at(24_001));
    assert_eq!(a.take_delivered().len(), 1);
    // The laptop's node restarts.
    let mut a = Node::new(1, Settings::default(), Simulated::new(4), at(30_000));
    a.snapshot(vec![peer(1, 2, vec![], vec![permission("rule", &services, HOUR)])], at(30_000));
    pass_time(&mut [&mut a, &mut b], 30_000, 34_000);
    b.local_sends(&segment(server, client, TcpFlags::ACK, 501, 101), at(34_000));
    settle(&mut [&mut a, &mut b], at(34_000));
    assert!(a.delivered.is_empty() && b.delivered.is_empty(), "dropped, but nobody is reset");
    a.local_sends(&segment(client, server, TcpFlags::ACK, 101, 501), at(35_000));
    settle(&mut [&mut a, &mut b], at(35_000));
    assert_eq!(b.take_delivered().len(), 1);
}

#[test]
fn captured_datagrams_are_worth_nothing_when_they_are_sent_again() {
    let (mut a, mut b) = couple(WireGuard::new(at(0)), WireGuard::new(at(0)), HOUR);
    let mut captured = Vec::new();
    a.local_sends(&segment((inner(1)[0], 1), (inner(2)[0], 443), TcpFlags::SYN, 1, 0), at(5));
    for _ in 0..4 {
        captured.extend(a.sent.iter().map(|(_, datagram)| datagram.clone()));
        while let Some((_, datagram)) = a.sent.pop_front() {
            b.network_brings(&datagram, outer(1), at(5));
        }
        while let Some((_, datagram)) = b.sent.pop_front() {
            a.network_brings(&datagram, outer(2), at(5));
        }
    }
    assert_eq!(b.take_delivered().len(), 1);
    assert!(captured.len() >= 3);
    for datagram in &captured {
        b.network_brings(datagram, outer(66), at(1_000));
    }
    assert!(b.delivered.is_empty() && b.sent.is_empty());
    let status = &b.plane.peers(at(1_000))[0];
    assert_eq!(status.endpoint, Some(outer(1)), "and they move no endpoint");
}

#[test]
fn rotation_of_a_key_moves_to_the_new_pair_and_drops_no_packet() {
    let (mut a, mut b) = couple(WireGuard::new(at(0)), WireGuard::new(at(0)), HOUR);
    let [client, server] = connect(&mut a, &mut b, 0, 10);
    let services = ["tcp/443", "udp/53", "icmp"];
    let grant = |reader: u8, other: u8, pairs: Vec<_>| {
        let rules = vec![permission("rule", &services, HOUR)];
        let (inbound, outbound) = if reader == 2 { (rules, vec![]) } else { (vec![], rules) };
        let mut grant = peer(reader, other, inbound, outbound);
        grant.pairs = pairs;
        grant
    };
    let mut sent = 0;
    let mut arrived = 0;
    // The laptop rotates from key 1 to key 11.
    a.plane.set_local_keys(&[secret(11), secret(1)], at(20));
    b.upsert(grant(2, 1, vec![pair(2, 11), pair(2, 1)]), at(20));
    a.upsert(grant(1, 2, vec![pair(11, 2), pair(1, 2)]), at(20));
    for step in 0..20_u64 {
        let ms = 300 + step * 300;
        if step == 15 {
            a.upsert(grant(1, 2, vec![pair(11, 2)]), at(ms));
            b.upsert(grant(2, 1, vec![pair(2, 11)]), at(ms));
            a.plane.set_local_keys(&[secret(11)], at(ms));
        }
        a.local_sends(&segment(client, server, TcpFlags::ACK, 101, 501), at(ms));
        a.tick(at(ms));
        b.tick(at(ms));
        settle(&mut [&mut a, &mut b], at(ms));
        sent += 1;
        arrived += b.take_delivered().len();
    }
    assert_eq!(sent, arrived);
    let confirmed: Vec<_> = std::iter::from_fn(|| b.plane.poll_event())
        .filter_map(|event| match event {
            PlaneEvent::PairConfirmed { remote, .. } => Some(remote),
            PlaneEvent::EndpointMoved { .. } | PlaneEvent::PeerUnreachable { .. } | PlaneEvent::Shut => None,
        })
        .collect();
    assert_eq!(confirmed, [public(1), public(11)]);
    assert_eq!(b.plane.counters().flows_begun, 1, "it is the same flow");
}

#[test]
fn a_roaming_peer_is_followed() {
    let (mut a, mut b) = simulated(HOUR);
    let [client, server] = connect(&mut a, &mut b, 0, 10);
    a.local_sends(&segment(client, server, TcpFlags::ACK, 101, 501), at(20));
    let (_, datagram) = a.sent.pop_front().unwrap();
    b.network_brings(&datagram, outer(201), at(20));
    b.local_sends(&segment(server, client, TcpFlags::ACK, 501, 101), at(21));
    assert_eq!(b.sent.pop_front().unwrap().0, outer(201));
}

#[test]
fn a_flood_of_initiations_is_asked_for_cookies() {
    let settings = Settings { handshakes_per_second: 5, ..Settings::default() };
    let mut b = Node::new(2, settings, WireGuard::new(at(0)), at(0));
    b.snapshot(vec![peer(2, 1, vec![permission("rule", &["tcp/443"], HOUR)], vec![])], at(0));
    let mut lengths = Vec::new();
    for round in 0..10_u64 {
        let (mut a, _) = couple(WireGuard::new(at(0)), WireGuard::new(at(0)), HOUR);
        a.local_sends(&segment((inner(1)[0], 1), (inner(2)[0], 443), TcpFlags::SYN, 1, 0), at(90 * round));
        let (_, initiation) = a.sent.pop_front().unwrap();
        b.network_brings(&initiation, outer(1), at(90 * round));
        lengths.extend(b.sent.drain(..).map(|(_, answer)| answer.len()));
    }
    assert_eq!(&lengths[..5], [92; 5]);
    assert_eq!(&lengths[5..], [64; 5], "cookie replies");
    assert_eq!(b.plane.counters().cookies_sent, 5);
}

#[test]
fn a_thousand_idle_peers_ask_for_no_timer() {
    let mut node = Node::new(1, Settings { greetings: 0, ..Settings::default() }, Simulated::new(1), at(0));
    let never = |mut p: postern_common::grant::PeerGrant<postern_common::time::Lifetime>| {
        p.inbound[0].until.remaining_ms = 600_000;
        p
    };
    let all = (2..=250).map(|n| never(peer(1, n, vec![permission("rule", &["tcp/443"], 600_000)], vec![]))).collect();
    node.snapshot(all, at(0));
    assert!(node.plane.poll_timeout() >= at(600_000).monotonic, "nothing but the deadline of their leases");
}

#[test]
fn sealed_plaintext_is_padded_to_sixteen_bytes() {
    let (mut a, mut b) = couple(WireGuard::new(at(0)), WireGuard::new(at(0)), HOUR);
    connect(&mut a, &mut b, 0, 10);
    for size in 0..40 {
        a.local_sends(&datagram((inner(1)[0], 9), (inner(2)[0], 53), &vec![1; size]), at(20));
        let (_, sealed) = a.sent.pop_back().unwrap();
        assert_eq!(sealed.len() % 16, 0, "{size}");
        b.network_brings(&sealed, outer(1), at(20));
        assert_eq!(b.take_delivered()[0].len(), 48 + size, "and the padding is cut off again");
    }
}
