//! The path to a peer: how long a packet may be on it, and how it is kept open.

use std::time::Duration;

use crate::{
    DropReason, Settings,
    packet::{
        build::{Tcp, ip, udp_body},
        offload::{Gso, PartialChecksum, VirtioHeader},
        view::{IcmpErrorKind, PacketView, TcpFlags, Transport},
    },
    testing::*,
    wireguard::{Tunnels, WireGuard, simulated::Simulated},
};

const HOUR: u64 = 3_600_000;
/// Places in `inner`.
const V6: usize = 0;
const V4: usize = 1;

fn couple() -> (Node<WireGuard>, Node<WireGuard>) {
    let settings = Settings { greetings: 0, ..Settings::default() };
    let mut a = Node::new(1, settings.clone(), WireGuard::new(at(0)), at(0));
    let mut b = Node::new(2, settings, WireGuard::new(at(0)), at(0));
    let services = ["tcp/443", "udp/53"];
    b.snapshot(vec![peer(2, 1, vec![permission("rule", &services, HOUR)], vec![])], at(0));
    a.snapshot(vec![peer(1, 2, vec![], vec![permission("rule", &services, HOUR)])], at(0));
    (a, b)
}

fn datagram(family: usize, length: usize) -> Vec<u8> {
    let (from, to) = ((inner(1)[family], 9), (inner(2)[family], 53));
    let header = if family == V4 { 28 } else { 48 };
    ip(from.0, to.0, 17, &udp_body(from, to, &vec![7; length - header]))
}

/// Sets or clears DF, and mends the header's checksum.
fn with_df(mut packet: Vec<u8>, df: bool) -> Vec<u8> {
    packet[6] = if df { 0x40 } else { 0 };
    packet[10..12].fill(0);
    let sum = crate::packet::checksum::checksum(&packet[..20]);
    packet[10..12].copy_from_slice(&sum);
    packet
}

#[test]
fn a_packet_longer_than_its_path_is_answered_with_the_length_that_passes() {
    let (mut a, mut b) = couple();
    a.local_sends(&datagram(V4, 100), at(1));
    settle(&mut [&mut a, &mut b], at(1));
    b.take_delivered();
    assert_eq!(a.plane.paths_in_use(at(2)), vec![(device(2), outer(2))]);
    a.plane.set_path_mtu(device(2), outer(2), 1_337);
    a.plane.set_path_mtu(device(2), outer(7), 600); // an old place of the peer
    for family in [V4, V6] {
        let packet = |length| if family == V4 { with_df(datagram(V4, length), true) } else { datagram(V6, length) };
        a.local_sends(&packet(1_338), at(3));
        let answer = a.take_delivered().remove(0);
        let view = PacketView::parse(&answer).expect("a packet");
        assert_eq!(view.destination(), inner(1)[family]);
        let Transport::IcmpError(error) = view.transport() else { panic!("{view:?}") };
        assert_eq!(error.kind, IcmpErrorKind::PacketTooBig(1_337));
        a.local_sends(&packet(1_337), at(4));
        let sealed = a.sent.back().map(|(_, datagram)| datagram.len());
        assert_eq!(sealed, Some(1_337 + 32), "padding does not go beyond the path");
        settle(&mut [&mut a, &mut b], at(4));
        assert_eq!(b.take_delivered().len(), 1, "what fits passes, family {family}");
    }
    assert_eq!(a.plane.counters().dropped(DropReason::TooBig), 2);
    a.local_sends(&with_df(datagram(V4, 1_400), false), at(5));
    settle(&mut [&mut a, &mut b], at(5));
    assert_eq!(b.take_delivered().len(), 1, "what may be fragmented goes, in fragments of the outer datagram");
}

#[test]
fn ipv6_is_never_told_less_than_its_least_and_passes_with_it() {
    let (mut a, mut b) = couple();
    a.local_sends(&datagram(V6, 100), at(1));
    settle(&mut [&mut a, &mut b], at(1));
    b.take_delivered();
    a.plane.set_path_mtu(device(2), outer(2), 1_200);
    a.local_sends(&datagram(V6, 1_280), at(2));
    settle(&mut [&mut a, &mut b], at(2));
    assert_eq!(b.take_delivered().len(), 1);
    a.local_sends(&with_df(datagram(V4, 1_201), true), at(3));
    settle(&mut [&mut a, &mut b], at(3));
    assert!(b.take_delivered().is_empty() && a.take_delivered().len() == 1);
}

#[test]
fn a_super_packet_counts_by_its_segments() {
    let (mut a, mut b) = couple();
    a.local_sends(&datagram(V4, 100), at(1));
    settle(&mut [&mut a, &mut b], at(1));
    b.take_delivered();
    a.plane.set_path_mtu(device(2), outer(2), 1_300);
    let (from, to) = ((inner(1)[V4], 40_000), (inner(2)[V4], 443));
    let payload = vec![1; 10_000];
    let tcp = Tcp {
        source: from,
        destination: to,
        sequence: 1,
        acknowledgement: 1,
        flags: 0x10,
        options: &[],
        payload: &payload,
    };
    let packet = with_df(tcp.packet(), true);
    let checksum = Some(PartialChecksum { start: 20, offset: 16 });
    let header = |size| VirtioHeader { gso: Gso::TcpV4 { size }, header_length: 40, checksum };
    a.tun_gives(header(1_260), &packet, at(2));
    settle(&mut [&mut a, &mut b], at(2));
    assert_eq!(b.take_delivered().len(), 8);
    a.tun_gives(header(1_261), &packet, at(3));
    settle(&mut [&mut a, &mut b], at(3));
    assert!(b.take_delivered().is_empty() && a.take_delivered().len() == 1);
}

/// 1 is behind a NAT; 2 may open flows there, 3 may be reached from there, 4 is a peer without a living permission.
#[test]
fn keepalives_go_to_who_may_call_and_to_nobody_else() {
    keepalives_go_to_who_may_call(Simulated::new);
    keepalives_go_to_who_may_call(|_| WireGuard::new(at(0)));
}

fn keepalives_go_to_who_may_call<W: Tunnels>(tunnels: impl Fn(u64) -> W) {
    let mut node = Node::new(1, Settings { greetings: 0, ..Settings::default() }, tunnels(1), at(0));
    let mut server = Node::new(2, Settings { greetings: 0, ..Settings::default() }, tunnels(2), at(0));
    let rule = |ms| vec![permission("rule", &["tcp/443"], ms)];
    node.snapshot(
        vec![peer(1, 2, rule(HOUR), vec![]), peer(1, 3, vec![], rule(HOUR)), peer(1, 4, rule(10), vec![])],
        at(0),
    );
    server.snapshot(vec![peer(2, 1, vec![], rule(HOUR))], at(0));
    pass_time(&mut [&mut node, &mut server], 1_000, 5_000);
    assert!(node.plane.peers(at(5_000)).iter().all(|peer| peer.bytes_out == 0 && peer.session_since.is_none()));
    node.plane.set_keepalive(Some(Duration::from_secs(25)));
    pass_time(&mut [&mut node, &mut server], 5_000, 7_000);
    let with_session = |node: &Node<W>, ms| {
        let peers = node.plane.peers(at(ms));
        peers.iter().filter(|peer| peer.session_since.is_some()).map(|peer| peer.peer.device).collect::<Vec<_>>()
    };
    assert_eq!(with_session(&node, 7_000), vec![device(2)]);
    assert_eq!(node.plane.counters().handshakes_begun, 1, "nobody else was asked");
    let heard = |server: &Node<W>| server.plane.counters().keepalives;
    let before = heard(&server);
    for second in 7..407 {
        pass_time(&mut [&mut node, &mut server], second * 1_000, (second + 1) * 1_000);
        assert_eq!(with_session(&node, (second + 1) * 1_000), vec![device(2)], "there is always a session");
        assert_eq!(with_session(&server, (second + 1) * 1_000), vec![device(1)], "at both ends");
    }
    assert!(
        (16..=20).contains(&(heard(&server) - before)),
        "one each 25 s, and one for each new session: {}",
        heard(&server) - before
    );
    node.plane.set_keepalive(None);
    let before = heard(&server);
    pass_time(&mut [&mut node, &mut server], 407_000, 507_000);
    assert!(heard(&server) <= before + 1, "but for a session that was just being renewed");
}

#[test]
fn a_server_that_speaks_first_after_its_nodes_restart_is_heard() {
    let (mut a, mut b) = couple();
    let (client, server) = ((inner(1)[V4], 40_000), (inner(2)[V4], 443));
    let segment = |from, to, flags, sequence, acknowledgement| {
        Tcp { source: from, destination: to, sequence, acknowledgement, flags, options: &[], payload: b"" }.packet()
    };
    let (syn, ack) = (TcpFlags::SYN, TcpFlags::ACK);
    a.local_sends(&segment(client, server, syn, 100, 0), at(1));
    settle(&mut [&mut a, &mut b], at(1));
    b.local_sends(&segment(server, client, syn | ack, 500, 101), at(1));
    settle(&mut [&mut a, &mut b], at(1));
    a.local_sends(&segment(client, server, ack, 101, 501), at(1));
    settle(&mut [&mut a, &mut b], at(1));
    assert_eq!((a.take_delivered().len(), b.take_delivered().len()), (1, 2));
    // The server's node restarts and greets; the client's program stays silent.
    let rule = || vec![permission("rule", &["tcp/443", "udp/53"], HOUR)];
    let mut b = Node::new(2, Settings::default(), WireGuard::new(at(20_000)), at(20_000));
    b.snapshot(vec![peer(2, 1, rule(), vec![])], at(20_000));
    pass_time(&mut [&mut a, &mut b], 20_000, 24_000);
    let probe = b.take_delivered();
    let probe: Vec<_> = probe.iter().map(|packet| *PacketView::parse(packet).expect("a packet").transport()).collect();
    let [Transport::Tcp(probe)] = probe.as_slice() else { panic!("one probe: {probe:?}") };
    assert_eq!((probe.flags.0, probe.sequence, probe.acknowledgement), (ack, 100, 501));
    b.local_sends(&segment(server, client, ack, 501, 101), at(24_001));
    settle(&mut [&mut a, &mut b], at(24_001));
    assert_eq!(a.take_delivered().len(), 1, "the server's words pass by the entry that the probe made");
    // A node that restarts without the rule is told the same and makes nothing of it.
    let mut b = Node::new(2, Settings::default(), WireGuard::new(at(40_000)), at(40_000));
    b.snapshot(vec![peer(2, 1, vec![permission("other", &["udp/53"], HOUR)], vec![])], at(40_000));
    pass_time(&mut [&mut a, &mut b], 40_000, 44_000);
    b.local_sends(&segment(server, client, ack, 501, 101), at(44_001));
    settle(&mut [&mut a, &mut b], at(44_001));
    assert!(b.take_delivered().is_empty() && a.take_delivered().is_empty() && b.plane.flows().is_empty());
}
