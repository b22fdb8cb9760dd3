//! Nodes with room for many flows, over tunnels without a cipher: for benchmarks of everything else.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each user takes a part

use postern_dataplane::{Out, Settings, packet::offload::VirtioHeader, wireguard::simulated::Simulated};

use super::support::{Node, carry, couple, datagram, now};

/// Nodes with room for a million flows and a session.
pub fn roomy(rules: usize) -> [Node<Simulated>; 2] {
    let settings =
        Settings { flow_capacity: 1 << 20, flows_per_peer: 1 << 20, record_capacity: 64, ..Settings::default() };
    let [mut a, mut b] = couple(rules, &settings, |n| Simulated::new(n.into()));
    let (header, packet) = datagram((1, 1), (2, 2_000), 32);
    send(&mut a, header, &packet);
    carry(&mut a, &mut b, now(1));
    carry(&mut b, &mut a, now(1));
    carry(&mut a, &mut b, now(1));
    assert!(b.plane.counters().packets_in > 0);
    b.tun.clear();
    [a, b]
}

pub fn send(node: &mut Node<Simulated>, header: VirtioHeader, packet: &[u8]) {
    node.plane.handle_tun(header, packet, now(1), &mut Out { udp: &mut node.udp, tun: &mut node.tun });
}

/// Flow `number` is a pair of ports.
pub fn set_ports(packet: &mut [u8], number: u32) {
    packet[20..22].copy_from_slice(&((number & 0x3ff) as u16 + 1).to_be_bytes());
    packet[22..24].copy_from_slice(&((number >> 10) as u16 + 2_000).to_be_bytes());
}
