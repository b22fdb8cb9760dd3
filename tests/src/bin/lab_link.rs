//! A cable that delays and loses, for the lab: `postern-lab-link NEAR FAR DELAY_MS LOSS_PERCENT`.
//!
//! Makes two TAP interfaces of these names and carries frames between them until it is killed.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

/// Frames that are under way in one direction; more are lost.
const MAX_UNDER_WAY: usize = 20_000;

type Queue = Arc<(Mutex<VecDeque<(Instant, Vec<u8>)>>, Condvar)>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [near, far, delay, loss] = arguments.as_slice() else {
        bail!("usage: postern-lab-link NEAR FAR DELAY_MS LOSS_PERCENT");
    };
    let delay = Duration::from_millis(delay.parse().context("DELAY_MS is a number")?);
    let loss: u32 = loss.parse().context("LOSS_PERCENT is a number")?;
    let open = |name: &str| {
        DeviceBuilder::new()
            .name(name)
            .layer(Layer::L2)
            .build_sync()
            .map(Arc::new)
            .with_context(|| format!("TAP {name}"))
    };
    let (near, far) = (open(near)?, open(far)?);
    println!("ready");
    let threads = [carry(near.clone(), far.clone(), delay, loss), carry(far, near, delay, loss)];
    for thread in threads.into_iter().flatten() {
        let _ = thread.join();
    }
    Ok(())
}

fn carry(from: Arc<SyncDevice>, to: Arc<SyncDevice>, delay: Duration, loss: u32) -> [std::thread::JoinHandle<()>; 2] {
    let queue: Queue = Arc::default();
    let filled = queue.clone();
    let reader = std::thread::spawn(move || {
        let mut dice = 0x9e37_79b9_7f4a_7c15_u64 ^ u64::from(std::process::id());
        let mut frame = vec![0; 70_000];
        while let Ok(length) = from.recv(&mut frame) {
            dice ^= dice << 13;
            dice ^= dice >> 7;
            dice ^= dice << 17; // xorshift64: chance enough for lost frames
            let mut waiting = filled.0.lock().expect("no thread panics with the lock");
            if dice % 100 >= u64::from(loss) && waiting.len() < MAX_UNDER_WAY {
                waiting.push_back((Instant::now() + delay, frame[..length].to_vec()));
                filled.1.notify_one();
            }
        }
    });
    let writer = std::thread::spawn(move || {
        loop {
            let mut waiting = queue.0.lock().expect("no thread panics with the lock");
            let Some((due, _)) = waiting.front() else {
                drop(queue.1.wait(waiting));
                continue;
            };
            let early = due.saturating_duration_since(Instant::now());
            if early.is_zero() {
                let (_, frame) = waiting.pop_front().expect("it was just looked at");
                drop(waiting);
                let _ = to.send(&frame); // the interface is not up yet: lost, as on a real cable
            } else {
                drop(waiting);
                std::thread::sleep(early);
            }
        }
    });
    [reader, writer]
}
