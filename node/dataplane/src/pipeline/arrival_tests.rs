//! Datagrams that arrive together.

use crate::{
    DropReason, Out, Settings,
    packet::build::{ip, udp_body},
    packet::{batch::Joining, batch::TunBatch, batch::UdpBatch},
    testing::*,
    wireguard::{Tunnels, WireGuard, simulated::Simulated},
};

const HOUR: u64 = 3_600_000;

/// What an arrival of equally long datagrams brings: so many frames for the TUN, each one packet.
fn arrive<W: Tunnels>(node: &mut Node<W>, datagrams: &[Vec<u8>], ms: u64) -> Vec<Vec<u8>> {
    let (mut udp, mut tun) = (UdpBatch::new(), TunBatch::new(Joining::Nothing));
    let bytes = datagrams.concat();
    tun.receive_room(bytes.len()).unwrap().copy_from_slice(&bytes);
    let start = tun.received(bytes.len());
    let out = &mut Out { udp: &mut udp, tun: &mut tun };
    node.plane.handle_received(start..start + bytes.len(), datagrams[0].len(), outer(1), at(ms), out);
    let frame = |frame: crate::packet::batch::Frame<'_>| {
        frame.slices().collect::<Vec<_>>().concat()[crate::packet::offload::VIRTIO_HEADER_LENGTH..].to_vec()
    };
    tun.frames().map(frame).collect()
}

fn each_counts_for_itself<W: Tunnels>(tunnels: impl Fn(u64) -> W) {
    let settings = Settings { greetings: 0, ..Settings::default() };
    let (mut a, mut b) = (Node::new(1, settings.clone(), tunnels(1), at(0)), Node::new(2, settings, tunnels(2), at(0)));
    b.snapshot(vec![peer(2, 1, vec![permission("rule", &["udp/53"], HOUR)], vec![])], at(0));
    a.snapshot(vec![peer(1, 2, vec![], vec![permission("rule", &["udp/53", "udp/54"], HOUR)])], at(0));
    let packet = |port: u16, byte: u8| {
        let (from, to) = ((inner(1)[0], 9), (inner(2)[0], port));
        ip(from.0, to.0, 17, &udp_body(from, to, &[byte; 40]))
    };
    a.local_sends(&packet(53, 0), at(10));
    settle(&mut [&mut a, &mut b], at(10));
    assert_eq!(b.take_delivered().len(), 1);
    for byte in 1..=20 {
        a.local_sends(&packet(if byte == 4 { 54 } else { 53 }, byte), at(20));
    }
    let mut datagrams: Vec<Vec<u8>> = a.sent.drain(..).map(|(_, datagram)| datagram).collect();
    let last = datagrams[2].len() - 1;
    datagrams[2][last] ^= 1; // byte 3 is forged, byte 4 no rule names at its destination
    datagrams[6] = datagrams[5].clone(); // byte 6 comes twice, and byte 7 is lost
    datagrams[9][0] = 9; // byte 10 is no transport data
    let (refused, foreign) = (b.plane.counters().denied_total(), b.plane.counters().dropped(DropReason::NotWireGuard));
    let delivered: Vec<u8> = arrive(&mut b, &datagrams, 30).iter().map(|packet| packet[packet.len() - 1]).collect();
    assert_eq!(delivered, [1, 2, 5, 6, 8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20]);
    let counters = b.plane.counters();
    assert_eq!(counters.dropped(DropReason::BadTransport), 2);
    assert_eq!(counters.dropped(DropReason::NotWireGuard), foreign + 1);
    assert_eq!(counters.denied_total(), refused + 1);
    assert_eq!(arrive(&mut b, &datagrams, 40), Vec::<Vec<u8>>::new(), "all of them again");
}

#[test]
fn each_datagram_of_an_arrival_counts_for_itself() {
    each_counts_for_itself(|_| WireGuard::new(at(0)));
    each_counts_for_itself(Simulated::new);
}
