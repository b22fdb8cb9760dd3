//! What sealing and opening a packet costs, `ring` beside several at once: `cargo bench -p postern-aead`, or with
//! `-- 1424 45` for that length and count alone.
//!
//! The machine may be busy with other things, so both ways take turns, and the lower quarter of the turns counts: compare the
//! ratio, not the times. (No library for benchmarks takes turns.)
#![allow(missing_docs, clippy::unwrap_used)]
use std::{hint::black_box, time::Instant};

use postern_aead::{Key, Run, Sealed, TAG, Ways};

const HEADER: usize = 16;
const TURNS: usize = 200;
const LENGTHS: [usize; 4] = [64, 256, 1_424, 9_008];
const COUNTS: [usize; 10] = [1, 2, 3, 4, 6, 8, 9, 16, 17, 45];
/// Together in one call, as datagrams of several flows come.
const MIXED: [&[usize]; 5] = [&[1_424, 80], &[1_424, 80, 80, 80], &[80, 1_424, 400], &[9_008, 64, 64, 64], &[64, 96]];

fn main() {
    let asked: Vec<usize> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    let (lengths, counts, mixed) = match asked[..] {
        [length, count] => (vec![length], vec![count], &MIXED[..0]),
        _ => (LENGTHS.to_vec(), COUNTS.to_vec(), &MIXED[..]),
    };
    println!("nanoseconds a packet: ring, ours, ratio");
    println!("{:>5} {:>20} | {:^22} | {:^22}", "count", "bytes", "seal", "open");
    for length in lengths {
        for &count in &counts {
            let (seal, open) = (sealing(length, count), opening(&[length], count));
            println!("{count:>5} {length:>20} | {} | {}", words(seal), words(open));
        }
    }
    for lengths in mixed {
        for count in [2, 3, 4, 8, 45] {
            println!("{count:>5} {:>20} | {:22} | {}", format!("{lengths:?}"), "", words(opening(lengths, count)));
        }
    }
}

fn words([ring, ours]: [f64; 2]) -> String {
    format!("{ring:>7.0} {ours:>7.0} {:>6.2}", ring / ours)
}

fn keys() -> [Key; 2] {
    [Key::with(&[7; 32], Ways::PacketByPacket), Key::new(&[7; 32])]
}

fn sealing(length: usize, count: usize) -> [f64; 2] {
    let stride = HEADER + length + TAG;
    let run = Run { stride, header: HEADER, length, last_length: length, count };
    let mut buffer = vec![3; stride * count];
    let repeats = (20_000 / (count * (length + 200))).max(1);
    in_turns(|key| {
        let begin = Instant::now();
        for _ in 0..repeats {
            key.seal_run(5, black_box(&mut buffer), &run).unwrap();
        }
        begin.elapsed().as_nanos() as f64 / (repeats * count) as f64
    })
}

fn opening(lengths: &[usize], count: usize) -> [f64; 2] {
    let lengths: Vec<_> = lengths.iter().copied().cycle().take(count).collect();
    let mut sealed: Vec<_> = lengths.iter().map(|length| vec![3; length + TAG]).collect();
    for (bytes, length) in sealed.iter_mut().zip(lengths) {
        let run = Run { stride: 0, header: 0, length, last_length: length, count: 1 };
        keys()[0].seal_run(5, bytes, &run).unwrap();
    }
    let mut given = sealed.clone();
    in_turns(|key| {
        // Opening needs the sealed bytes again each time; that copy is not measured.
        for (given, sealed) in given.iter_mut().zip(&sealed) {
            given.copy_from_slice(sealed);
        }
        let mut packets: Vec<_> = given.iter_mut().map(|bytes| Sealed::new(5, bytes)).collect();
        let begin = Instant::now();
        key.open_many(black_box(&mut packets));
        let taken = begin.elapsed().as_nanos();
        assert!(packets.iter().all(Sealed::is_authentic));
        taken as f64 / count as f64
    })
}

fn in_turns(mut turn: impl FnMut(&Key) -> f64) -> [f64; 2] {
    let keys = keys();
    let mut turns = [vec![], vec![]];
    for _ in 0..TURNS {
        for (turns, key) in turns.iter_mut().zip(&keys) {
            turn(key);
            turns.push(turn(key));
        }
    }
    turns.map(|mut turns| {
        turns.sort_by(f64::total_cmp);
        turns[turns.len() / 4]
    })
}
