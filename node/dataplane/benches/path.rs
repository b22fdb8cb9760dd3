//! What the steps of a packet cost, one by one and together: `cargo bench -p postern-dataplane --features simulation`.
//!
//! `flows` and `rules` are the ones to look at for flatness: a packet of a known flow among 100 to 1,000,000, and a new flow under
//! 10 to 100,000 rules. Where the cipher would hide what is measured, the tunnels are simulated ones.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/support/roomy.rs"]
mod roomy;
#[path = "../tests/support/mod.rs"]
mod support;

use divan::{Bencher, black_box, counter::BytesCount, counter::ItemsCount};
use postern_common::{grant::KeyPair, key::PresharedKey};
use postern_dataplane::{
    Out, Settings,
    packet::{
        batch::{Joining, TunBatch},
        checksum::checksum,
        split::Segmenter,
        view::PacketView,
    },
    wireguard::{Received, Tunnel, Tunnels, WireGuard, simulated::Simulated},
};
use roomy::{roomy, send, set_ports};
use support::{carry, couple, datagram, grants, now, secret, superpacket};

fn main() {
    divan::main();
}

#[divan::bench]
fn parse_a_tcp_segment(bencher: Bencher<'_, '_>) {
    let (_, packet) = superpacket((1, 40_000), (2, 443), 1_360);
    bencher.bench_local(|| black_box(PacketView::parse(black_box(&packet)).is_ok()));
}

#[divan::bench(args = [64, 1_420, 9_000])]
fn sum_a_checksum(bencher: Bencher<'_, '_>, length: usize) {
    let bytes = vec![7; length];
    bencher.counter(BytesCount::new(length)).bench_local(|| checksum(black_box(&bytes)));
}

#[divan::bench]
fn cut_a_super_packet(bencher: Bencher<'_, '_>) {
    let (header, packet) = superpacket((1, 40_000), (2, 443), 60_000);
    let mut out = vec![0; 2_000];
    bencher.counter(BytesCount::new(packet.len())).bench_local(|| {
        let mut segments = Segmenter::new(header, PacketView::parse(&packet).unwrap()).unwrap();
        while let Some(length) = segments.next_into(black_box(&mut out)) {
            black_box(length);
        }
    });
}

#[divan::bench]
fn join_segments_into_a_super_packet(bencher: Bencher<'_, '_>) {
    let (header, packet) = superpacket((1, 40_000), (2, 443), 60_000);
    let mut segments = Segmenter::new(header, PacketView::parse(&packet).unwrap()).unwrap();
    let mut out = vec![0; 2_000];
    let mut packets = Vec::new();
    while let Some(length) = segments.next_into(&mut out) {
        packets.push(out[..length].to_vec());
    }
    let mut batch = TunBatch::new(Joining::TcpAndUdp);
    bencher.counter(BytesCount::new(packet.len())).bench_local(|| {
        for packet in &packets {
            batch.push(&PacketView::parse(packet).unwrap()).unwrap();
        }
        assert_eq!(batch.frames().len(), 1);
        batch.clear();
    });
}

/// Two tunnels with a session.
fn tunnels() -> [<WireGuard as Tunnels>::Tunnel; 2] {
    let mut tunnels = [(1, 2), (2, 1)].map(|(local, remote)| {
        let mut wireguard = WireGuard::new(now(0));
        wireguard.set_local_keys(&[secret(local)], 1_000);
        let (local, remote) = (secret(local).public(), secret(remote).public());
        wireguard
            .open(&KeyPair { local, remote, preshared: PresharedKey::from_bytes([3; 32]) }, 1, now(0).monotonic)
            .unwrap()
    });
    let [a, b] = &mut tunnels;
    let (mut one, mut other) = (vec![0; 200], vec![0; 200]);
    let length = a.initiate(&mut one, now(0).monotonic).unwrap();
    let Received::Response(length) = b.receive(&one[..length], &mut other, now(0).monotonic) else { panic!("refused") };
    let Received::Established(length) = a.receive(&other[..length], &mut one, now(0).monotonic) else {
        panic!("refused")
    };
    b.open(&mut one[..length], now(0).monotonic);
    tunnels
}

#[divan::bench(args = [64, 256, 1_424, 9_008])]
fn seal(bencher: Bencher<'_, '_>, length: usize) {
    let [mut a, _] = tunnels();
    let mut message = vec![7; length + 32];
    bencher.counter(BytesCount::new(length)).bench_local(|| a.seal(black_box(&mut message), length, now(1).monotonic));
}

#[divan::bench(args = [64, 256, 1_424, 9_008])]
fn open(bencher: Bencher<'_, '_>, length: usize) {
    let [mut a, mut b] = tunnels();
    bencher
        .counter(BytesCount::new(length))
        .with_inputs(|| {
            let mut message = vec![0x45; length + 32];
            a.seal(&mut message, length, now(1).monotonic).unwrap();
            message
        })
        .bench_local_values(|mut message| b.open(black_box(&mut message), now(1).monotonic));
}

#[divan::bench(args = [10, 1_000, 10_000], sample_count = 20)]
fn compile_and_enforce_a_snapshot(bencher: Bencher<'_, '_>, rules: usize) {
    bencher.counter(ItemsCount::new(rules)).with_inputs(|| grants(1, 2, rules)).bench_local_values(|grants| {
        let [mut node, _] = couple(1, &Settings::default(), |n| Simulated::new(n.into()));
        node.plane.apply(grants, now(1), &mut Out { udp: &mut node.udp, tun: &mut node.tun })
    });
}

#[divan::bench(args = [100, 10_000, 1_000_000], sample_count = 50)]
fn flows_a_packet_of_a_known_flow(bencher: Bencher<'_, '_>, flows: u32) {
    let [mut node, _] = roomy(10);
    let (header, mut packet) = datagram((1, 1), (2, 2_000), 32);
    for number in 0..flows {
        set_ports(&mut packet, number);
        send(&mut node, header, &packet);
        node.udp.clear();
        while node.plane.poll_record().is_some() {}
    }
    let mut number = 0_u32;
    bencher.counter(ItemsCount::new(64_usize)).bench_local(|| {
        for _ in 0..64 {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            set_ports(&mut packet, ((u64::from(number) * u64::from(flows)) >> 32) as u32);
            send(&mut node, header, &packet);
        }
        node.udp.clear();
    });
}

#[divan::bench(args = [10, 1_000, 100_000], sample_count = 50, sample_size = 1)]
fn rules_a_new_flow_with_its_verdict_and_record(bencher: Bencher<'_, '_>, rules: usize) {
    let [mut node, _] = roomy(rules);
    let (header, mut packet) = datagram((1, 1), (2, 2_000), 32);
    let mut number = 0;
    bencher.counter(ItemsCount::new(1_000_usize)).bench_local(|| {
        for _ in 0..1_000 {
            number += 1;
            set_ports(&mut packet, number);
            send(&mut node, header, &packet);
            while node.plane.poll_record().is_some() {}
            node.udp.clear();
        }
    });
}

/// A super-packet of one node's, cut, sealed, carried, opened, judged twice and joined.
#[divan::bench]
fn everything_for_a_super_packet(bencher: Bencher<'_, '_>) {
    let [mut a, mut b] = couple(100, &Settings::default(), |_| WireGuard::new(now(0)));
    let (header, packet) = superpacket((1, 40_000), (2, 443), 60_000);
    for _ in 0..3 {
        a.plane.handle_tun(header, &packet, now(1), &mut Out { udp: &mut a.udp, tun: &mut a.tun });
        carry(&mut a, &mut b, now(1));
        carry(&mut b, &mut a, now(1));
        carry(&mut a, &mut b, now(1));
        b.tun.clear();
    }
    bencher.counter(BytesCount::new(packet.len())).bench_local(|| {
        a.plane.handle_tun(header, &packet, now(1), &mut Out { udp: &mut a.udp, tun: &mut a.tun });
        assert_eq!(carry(&mut a, &mut b, now(1)), 45);
        assert_eq!(b.tun.frames().len(), 1);
        b.tun.clear();
    });
}
