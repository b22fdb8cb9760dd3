//! How many instructions the steps of a packet take, where wall time is too noisy: `scripts/bench instructions` runs each under
//! callgrind, twice as often the second time, and the difference is the step's.
//!
//! callgrind knows no AVX-512, so the cipher is left out: the tunnels are simulated ones.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/support/roomy.rs"]
mod roomy;
#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;

use postern_dataplane::packet::{
    batch::{Joining, TunBatch},
    split::Segmenter,
    view::PacketView,
};
use roomy::{roomy, send, set_ports};
use support::{carry, datagram, now, superpacket};

const STEPS: [&str; 9] = [
    "parse",
    "cut",
    "join",
    "known-flow",
    "known-flow-of-100",
    "known-flow-of-200000",
    "new-flow-10-rules",
    "new-flow-100000-rules",
    "inbound",
];

fn main() {
    let arguments: Vec<String> = std::env::args().filter(|argument| argument != "--bench").collect();
    let [_, step, count] = arguments.as_slice() else {
        STEPS.iter().for_each(|step| println!("{step}"));
        return;
    };
    run(step, count.parse().unwrap());
}

fn run(step: &str, count: u32) {
    let (header, packet) = superpacket((1, 40_000), (2, 443), 60_000);
    match step {
        "parse" => {
            for _ in 0..count {
                black_box(PacketView::parse(black_box(&packet)).is_ok());
            }
        }
        "cut" => {
            let mut out = vec![0; 2_000];
            for _ in 0..count {
                let mut segments = Segmenter::new(header, PacketView::parse(&packet).unwrap()).unwrap();
                while let Some(length) = segments.next_into(black_box(&mut out)) {
                    black_box(length);
                }
            }
        }
        "join" => {
            let mut segments = Segmenter::new(header, PacketView::parse(&packet).unwrap()).unwrap();
            let mut out = vec![0; 2_000];
            let mut packets = Vec::new();
            while let Some(length) = segments.next_into(&mut out) {
                packets.push(out[..length].to_vec());
            }
            let mut batch = TunBatch::new(Joining::TcpAndUdp);
            for _ in 0..count {
                packets.iter().for_each(|packet| batch.push(&PacketView::parse(packet).unwrap()).unwrap());
                batch.clear();
            }
        }
        "known-flow" => outbound(10, count, |_| 7),
        // In random order, after all have begun: the difference of two counts is that of known flows alone.
        "known-flow-of-100" => among(100, count),
        "known-flow-of-200000" => among(200_000, count),
        "new-flow-10-rules" => outbound(10, count, |number| number),
        "new-flow-100000-rules" => outbound(100_000, count, |number| number),
        "inbound" => {
            let [mut a, mut b] = roomy(10);
            let (header, packet) = datagram((1, 1), (2, 2_000), 32);
            for _ in 0..count {
                send(&mut a, header, &packet);
                carry(&mut a, &mut b, now(1));
                b.tun.clear();
            }
        }
        unknown => panic!("no such step: {unknown}"),
    }
}

/// Begins `flows` flows and sends `count` packets of any of them.
fn among(flows: u32, count: u32) {
    let mut random = 1_u32;
    outbound(10, flows + count, |number| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if number < flows { number } else { ((u64::from(random) * u64::from(flows)) >> 32) as u32 }
    });
}

/// Sends `count` packets, of the flow that `flow` tells for each.
fn outbound(rules: usize, count: u32, mut flow: impl FnMut(u32) -> u32) {
    let [mut node, _] = roomy(rules);
    let (header, mut packet) = datagram((1, 1), (2, 2_000), 32);
    for number in 0..count {
        set_ports(&mut packet, flow(number));
        send(&mut node, header, &packet);
        while node.plane.poll_record().is_some() {}
        node.udp.clear();
    }
}
