use super::super::{build::*, offload::VirtioHeader, split::Segmenter};
use super::*;
use proptest::prelude::*;
use std::{collections::HashMap, net::IpAddr};

/// Writes frames out and cuts them again, as the kernel would.
fn through(batch: &mut TunBatch) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for frame in batch.frames() {
        let bytes: Vec<u8> = frame.slices().flatten().copied().collect();
        assert_eq!(bytes.len(), frame.length());
        let (header, packet) = VirtioHeader::parse(&bytes).unwrap();
        let mut segmenter = Segmenter::new(header, PacketView::parse(packet).unwrap()).unwrap();
        let mut out = vec![0; segmenter.longest()];
        while let Some(length) = segmenter.next_into(&mut out) {
            packets.push(out[..length].to_vec());
        }
    }
    packets
}

fn push_all(batch: &mut TunBatch, packets: &[Vec<u8>]) {
    for packet in packets {
        batch.push(&PacketView::parse(packet).unwrap()).unwrap();
    }
}

fn stream(a: IpAddr, b: IpAddr, sizes: &[usize]) -> Vec<Vec<u8>> {
    let mut sequence = u32::MAX - 500;
    let payload = [0x5a; 2_000];
    let cut = |size: &usize| {
        let packet = Tcp { sequence, ..tcp(a, b, TcpFlags::ACK, &payload[..*size]) }.packet();
        sequence = sequence.wrapping_add(*size as u32);
        packet
    };
    sizes.iter().map(cut).collect()
}

#[test]
fn consecutive_segments_become_one_frame_and_cut_again_are_themselves() {
    for (a, b) in [(A4, B4), (A6, B6)] {
        let packets = stream(a, b, &[1_000, 1_000, 1_000, 300, 1_000]);
        let mut batch = TunBatch::new(Joining::TcpAndUdp);
        push_all(&mut batch, &packets);
        let segments: Vec<_> = batch.frames().map(|frame| frame.segments()).collect();
        assert_eq!(segments, [4, 1]);
        // The identification of the pieces is chosen anew when cut, which DF allows.
        let blank = |mut packet: Vec<u8>| {
            if packet[0] >> 4 == 4 {
                packet[4..6].fill(0);
                write_ipv4_checksum(&mut packet);
            }
            packet
        };
        assert_eq!(through(&mut batch).into_iter().map(blank).collect::<Vec<_>>(), packets);
    }
}

#[test]
fn only_equal_headers_with_right_checksums_are_joined() {
    let base = stream(A4, B4, &[1_000, 1_000]);
    let change = |edit: &dyn Fn(&mut Vec<u8>), fix: bool| {
        let mut second = base[1].clone();
        edit(&mut second);
        if fix {
            write_ipv4_checksum(&mut second);
            second[36..38].fill(0);
            let sum = Sum::ZERO.add_pseudo_header(A4, B4, 6, second.len() - 20).add_bytes(&second[20..]).finish();
            second[36..38].copy_from_slice(&sum);
        }
        let mut batch = TunBatch::new(Joining::TcpAndUdp);
        push_all(&mut batch, &[base[0].clone(), second]);
        batch.frames().len()
    };
    assert_eq!(change(&|_| {}, true), 1, "the control");
    assert_eq!(change(&|p| p[100] ^= 1, false), 2, "a wrong checksum");
    assert_eq!(change(&|p| p[1] = 0x03, true), 2, "ECN");
    assert_eq!(change(&|p| p[1] = 0xb8, true), 2, "DSCP");
    assert_eq!(change(&|p| p[8] = 63, true), 2, "TTL");
    assert_eq!(change(&|p| p[27] ^= 1, true), 2, "the sequence number");
    assert_eq!(change(&|p| p[31] ^= 1, true), 2, "the acknowledgement");
    assert_eq!(change(&|p| p[35] ^= 1, true), 2, "the window");
    for flag in [TcpFlags::FIN, TcpFlags::RST, TcpFlags::SYN, TcpFlags::URG, TcpFlags::CWR, TcpFlags::ECE] {
        assert_eq!(change(&|p| p[33] |= flag, true), 2, "flag {flag:#x}");
    }
    assert_eq!(change(&|p| p[6] = 0, true), 2, "without DF, an identification out of order");
    assert_eq!(change(&|p| p[33] |= TcpFlags::PSH, true), 1, "PSH ends a frame");
}

#[test]
fn a_tun_without_offloads_gets_plain_packets() {
    let mut batch = TunBatch::new(Joining::Nothing);
    let packets = stream(A4, B4, &[1_000; 3]);
    push_all(&mut batch, &packets);
    assert_eq!(through(&mut batch), packets);
    let mut batch = TunBatch::new(Joining::Tcp);
    push_all(&mut batch, &[udp(A4, B4, &[1; 500]), udp(A4, B4, &[1; 500])]);
    assert_eq!(batch.frames().len(), 2);
}

#[test]
fn a_fragment_closes_every_frame() {
    let mut batch = TunBatch::new(Joining::TcpAndUdp);
    let packets = stream(A4, B4, &[1_000; 2]);
    push_all(&mut batch, &[packets[0].clone(), fragment(A4, B4, 6, 800, false, &[0; 8]), packets[1].clone()]);
    assert_eq!(batch.frames().len(), 3);
}

#[test]
fn a_full_batch_refuses_and_counts() {
    let mut batch = TunBatch::new(Joining::TcpAndUdp);
    let packet = udp(A4, B4, &[1; 1_200]);
    let view = PacketView::parse(&packet).unwrap();
    while batch.push(&view).is_ok() {}
    assert_eq!(batch.refused(), 1);
    assert!(
        batch
            .frames()
            .all(|frame| frame.length() <= MAX_PACKET + VIRTIO_HEADER_LENGTH && frame.segments() <= MAX_JOINED)
    );
    batch.clear();
    assert!(batch.is_empty() && batch.room() == TUN_BATCH_BYTES);
}

#[derive(Debug, Clone)]
struct Step {
    flow: u16,
    size: usize,
    flags: u8,
    gap: bool,
    six: bool,
    udp: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let flags = prop_oneof![
        8 => Just(TcpFlags::ACK),
        2 => Just(TcpFlags::ACK | TcpFlags::PSH),
        1 => Just(TcpFlags::ACK | TcpFlags::FIN),
        1 => Just(TcpFlags::ACK | TcpFlags::CWR),
        1 => Just(TcpFlags::SYN),
    ];
    let size = prop_oneof![6 => Just(700usize), 2 => 0usize..900];
    (0u16..20, size, flags, proptest::bool::weighted(0.05), any::<bool>(), proptest::bool::weighted(0.3))
        .prop_map(|(flow, size, flags, gap, six, udp)| Step { flow: flow / 5, size, flags, gap, six, udp })
}

proptest! {
    /// The slow reference is no joining at all: per flow, the same packets in the same order.
    #[test]
    fn joining_and_cutting_is_the_identity_on_every_flow(steps in proptest::collection::vec(step(), 1..150)) {
        let mut sequences: HashMap<(u16, bool), u32> = HashMap::new();
        let mut packets = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let (a, b) = if step.six { (A6, B6) } else { (A4, B4) };
            let payload = vec![index as u8; step.size];
            if step.udp {
                packets.push(ip(a, b, 17, &udp_body((a, 6_000 + step.flow), (b, 53), &payload)));
                continue;
            }
            let sequence = sequences.entry((step.flow, step.six)).or_insert(u32::MAX - 2_000);
            if step.gap {
                *sequence = sequence.wrapping_add(1);
            }
            let mut segment = Tcp { sequence: *sequence, ..tcp(a, b, step.flags, &payload) };
            segment.source.1 = 40_000 + step.flow;
            *sequence = sequence.wrapping_add(step.size as u32);
            packets.push(segment.packet());
        }
        let mut batch = TunBatch::new(Joining::TcpAndUdp);
        push_all(&mut batch, &packets);
        let got = through(&mut batch);
        let by_flow = |packets: &[Vec<u8>]| {
            let mut flows: HashMap<_, Vec<Vec<u8>>> = HashMap::new();
            for packet in packets {
                let flow = PacketView::parse(packet).unwrap().five_tuple();
                let mut packet = packet.clone();
                if packet[0] >> 4 == 4 {
                    packet[4..6].fill(0); // chosen anew when cut; DF is set
                    write_ipv4_checksum(&mut packet);
                }
                flows.entry(flow).or_default().push(packet);
            }
            flows
        };
        prop_assert_eq!(by_flow(&got), by_flow(&packets));
    }
}
