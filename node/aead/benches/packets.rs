//! What sealing and opening a packet costs, `ring` beside several at once: `cargo bench -p postern-aead`.
//!
//! The machine may be busy with other things, so both ways take turns within one measurement, and the lower quarter of the turns counts:
//! compare the ratio, not the times.
#![allow(missing_docs, clippy::unwrap_used)]
use std::time::Instant;

use postern_aead::{Key, Run, Sealed, TAG, Ways};

const HEADER: usize = 16;
const TURNS: usize = 200;
const LENGTHS: [usize; 4] = [64, 256, 1_424, 9_008];
const COUNTS: [usize; 9] = [1, 2, 3, 4, 6, 8, 9, 16, 45];

fn main() {
    println!(
        "{:>5} {:>6} | {:>8} {:>8} {:>6} | {:>8} {:>8} {:>6}",
        "count", "bytes", "ring", "ours", "ratio", "ring", "ours", "ratio"
    );
    println!("{:>12} | {:^24} | {:^24}", "", "seal, ns a packet", "open, ns a packet");
    for length in LENGTHS {
        for count in COUNTS {
            let keys = [Key::with(&[7; 32], Ways::PacketByPacket), Key::new(&[7; 32])];
            let stride = HEADER + length + TAG;
            let run = Run { stride, header: HEADER, length, last_length: length, count };
            let mut buffer = vec![3; stride * count];
            // Opening needs the sealed bytes again each time; the copy is not measured.
            keys[0].seal_run(5, &mut buffer, &run).unwrap();
            let sealed = buffer.clone();
            let (mut seals, mut opens) = ([vec![], vec![]], [vec![], vec![]]);
            let repeats = (20_000 / (count * (length + 200))).max(1);
            for _ in 0..TURNS {
                for (way, key) in keys.iter().enumerate() {
                    let begin = Instant::now();
                    for _ in 0..repeats {
                        key.seal_run(5, std::hint::black_box(&mut buffer), &run).unwrap();
                    }
                    seals[way].push(begin.elapsed().as_nanos() as f64 / (repeats * count) as f64);
                    let mut taken = 0;
                    for _ in 0..repeats {
                        buffer.copy_from_slice(&sealed);
                        let begin = Instant::now();
                        open(key, std::hint::black_box(&mut buffer), stride, count);
                        taken += begin.elapsed().as_nanos();
                    }
                    opens[way].push(taken as f64 / (repeats * count) as f64);
                }
            }
            let [ring_seal, seal] = seals.map(quarter);
            let [ring_open, open] = opens.map(quarter);
            println!(
                "{count:>5} {length:>6} | {ring_seal:>8.0} {seal:>8.0} {:>6.2} | {ring_open:>8.0} {open:>8.0} {:>6.2}",
                ring_seal / seal,
                ring_open / open
            );
        }
    }
}

fn open(key: &Key, buffer: &mut [u8], stride: usize, count: usize) {
    let mut at = 5;
    let mut chunks = buffer.chunks_mut(stride);
    let mut left = count;
    while left > 0 {
        let now = left.min(48);
        let mut packets: [Sealed<'_>; 48] = std::array::from_fn(|index| {
            let bytes = if index < now { &mut chunks.next().unwrap()[HEADER..] } else { &mut [] };
            at += u64::from(index < now);
            Sealed::new(at - 1, bytes)
        });
        key.open_many(&mut packets[..now]);
        assert!(packets[..now].iter().all(Sealed::is_authentic));
        left -= now;
    }
}

fn quarter(mut turns: Vec<f64>) -> f64 {
    turns.sort_by(f64::total_cmp);
    turns[turns.len() / 4]
}
