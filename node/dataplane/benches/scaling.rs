//! How threads that share a data plane scale: `cargo bench -p postern-dataplane --bench scaling`.
//!
//! Each thread has a flow of its own between two nodes and carries super-packets: admitted, cut and sealed on one node's plane, planned,
//! opened, judged and joined on the other's. All flows are of one peer, so this is also what one busy peer can use. There is no kernel in
//! it: system calls, most of the rest of a worker's time, are made outside the planes in any case.
//!
//! What cannot be measured with few cores is calculated: the share of a super-packet's time in which a plane is held is the part
//! that threads cannot do at the same time.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    sync::{Mutex, MutexGuard},
    thread,
    time::{Duration, Instant},
};

use postern_dataplane::{
    DataPlane, Intake, Out, Settings,
    packet::batch::{Joining, Lane, TunBatch, UdpBatch},
    wireguard::WireGuard,
};
use support::{carry, couple, now, outer, superpacket};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(700);
/// Bytes of a super-packet's payload: 45 segments.
const PAYLOAD: usize = 60_000;

/// What one thread has done in a round.
#[derive(Default, Clone, Copy)]
struct Done {
    packets: u64,
    lost: u64,
    /// Time for which it held either plane.
    held: Duration,
    /// Time in all.
    took: Duration,
}

fn main() {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let [mut a, mut b] = couple(10, &Settings::default(), |_| WireGuard::new(now(0)));
    for port in 0..cores as u16 {
        let (header, packet) = superpacket((1, 40_000 + port), (2, 443), PAYLOAD);
        for _handshake in 0..2 {
            a.plane.handle_tun(header, &packet, now(1), &mut Out { udp: &mut a.udp, tun: &mut a.tun });
            carry(&mut a, &mut b, now(1));
            carry(&mut b, &mut a, now(1));
            b.tun.clear();
            a.tun.clear();
        }
        carry(&mut a, &mut b, now(1));
        b.tun.clear();
    }
    let (a, b) = (Mutex::new(a.plane), Mutex::new(b.plane));
    let counts: Vec<usize> =
        std::iter::successors(Some(1), |count| (count * 2 <= cores).then_some(count * 2)).collect();
    let mut rates = vec![Vec::new(); counts.len()];
    let (mut held, mut lost, mut carried) = (Vec::new(), 0, 0);
    for _round in 0..ROUNDS {
        for (place, threads) in counts.iter().enumerate() {
            let done: Vec<Done> = thread::scope(|scope| {
                let work = |port| {
                    scope.spawn({
                        let (a, b) = (&a, &b);
                        move || carry_on(a, b, port, *threads == 1)
                    })
                };
                let workers: Vec<_> = (0..*threads as u16).map(work).collect();
                workers.into_iter().map(|worker| worker.join().unwrap()).collect()
            });
            rates[place].push(done.iter().map(|done| done.packets as f64 / done.took.as_secs_f64()).sum::<f64>());
            lost += done.iter().map(|done| done.lost).sum::<u64>();
            carried += done.iter().map(|done| done.packets).sum::<u64>();
            if *threads == 1 {
                held.push(done[0].held.as_secs_f64() / done[0].took.as_secs_f64());
            }
        }
    }
    for (threads, rates) in counts.iter().zip(&mut rates) {
        rates.sort_by(f64::total_cmp);
        let gigabits = |rate: f64| rate * PAYLOAD as f64 * 8.0 / 1e9;
        println!(
            "{threads} threads: {:.1} Gbit/s of payload ({:.1} to {:.1})",
            gigabits(rates[ROUNDS / 2]),
            gigabits(rates[0]),
            gigabits(rates[ROUNDS - 1])
        );
    }
    println!("{lost} super-packets of {} came too late for the replay window", lost + carried);
    let base = rates[0][ROUNDS / 2];
    for (threads, rates) in counts.iter().zip(&rates).skip(1) {
        println!("{threads} threads carry {:.2} times what one carries", rates[ROUNDS / 2] / base);
    }
    held.sort_by(f64::total_cmp);
    let share = held[ROUNDS / 2] / 2.0; // two planes, of which a worker holds one
    println!("a plane is held for {:.1} % of the time of one thread", 100.0 * share);
    for threads in [4.0, 8.0, 16.0, 32.0_f64] {
        println!("calculated: {threads} threads carry {:.1} times as much", threads.min(1.0 / share));
    }
}

fn carry_on(a: &Mutex<DataPlane>, b: &Mutex<DataPlane>, port: u16, timed: bool) -> Done {
    let (header, packet) = superpacket((1, 40_000 + port), (2, 443), PAYLOAD);
    let (mut udp, mut tun) = (UdpBatch::new(), TunBatch::new(Joining::TcpAndUdp));
    let (mut replies, mut room, mut intake) = (UdpBatch::new(), TunBatch::new(Joining::TcpAndUdp), Intake::default());
    let mut done = Done::default();
    let start = Instant::now();
    while start.elapsed() < ROUND {
        for _ in 0..50 {
            let sealing = with(a, timed, &mut done, |mut plane| {
                plane.admit(Lane(port as u8), header, &packet, now(2), &mut Out { udp: &mut udp, tun: &mut tun })
            });
            sealing.unwrap().run(&mut udp);
            for run in udp.runs() {
                room.receive_room(run.bytes.len()).unwrap().copy_from_slice(run.bytes);
                let start = room.received(run.bytes.len());
                intake.add(start..start + run.bytes.len(), run.segment, outer(1));
            }
            udp.clear();
            with(b, timed, &mut done, |plane| plane.plan(&mut intake, now(2), &mut room));
            intake.open(&mut room);
            with(b, timed, &mut done, |mut plane| {
                plane.take(&mut intake, now(2), &mut Out { udp: &mut replies, tun: &mut room })
            });
            // A thread that sleeps while others seal comes too late for the replay window; nobody counts that as carried.
            done.packets += u64::from(room.frames().map(|frame| frame.segments()).sum::<usize>() == 45);
            done.lost += u64::from(room.frames().len() == 0);
            room.clear();
        }
    }
    done.took = start.elapsed();
    done
}

/// Runs something with a plane held, and adds how long it was held.
fn with<T>(
    plane: &Mutex<DataPlane>,
    timed: bool,
    done: &mut Done,
    run: impl FnOnce(MutexGuard<'_, DataPlane>) -> T,
) -> T {
    let held = plane.lock().unwrap();
    if !timed {
        return run(held);
    }
    let start = Instant::now();
    let result = run(held);
    done.held += start.elapsed();
    result
}
