//! The packet workers: plain threads that share the data plane and run each batch to its end.
//!
//! ```text
//! wait (own TUN lanes, all sockets, own eventfd; the first worker at most until the plane's next timeout)
//!   commands        -> plane                                      (the first worker; all others stand still)
//!   UDP receives    -> plan, OPEN, take -> TunBatch -> TUN        (a burst; delivered in order, see channel)
//!   TUN lanes       -> admit, SEAL -> UdpBatch -> UDP             (a frame; a quantum a lane)
//!   timeouts        -> plane -> both batches                      (the first worker)
//!   records, events -> bounded channel to the agent
//! ```
//!
//! What is written small needs the plane, which is one for all and held for it alone; what is written large, and every system call,
//! does not ([`shared`]). So several peers are spread over the workers, and one busy peer uses several: outbound by its flows' lanes,
//! inbound because bursts of one socket are opened at the same time ([`channel`]). With one worker, the default on two cores, nobody
//! ever waits for a lock.
//!
//! The agent speaks by closures ([`WorkerHandle`]). An order runs when no worker is in a round: when it returns, no packet is on its way
//! that it forbids. Rounds are short, whatever arrives: a budget of receives and deliveries bounds each. What does not fit anywhere is dropped and counted, as on a wire.
//!
//! A flow has its lane ([`super::tun`]), a lane has its worker. Lanes are served in turn, [`QUANTUM`] bytes each; those that were idle come
//! first. So a bulk flow keeps an interactive one waiting for a fraction of a millisecond, whatever stands in its own lane.
//!
//! Deadlines are enforced here without any packet: the plane's timeout bounds the wait, and [`HEARTBEAT`] bounds it again, because
//! the wall clock may jump forward over a deadline while nothing else happens, or another worker may have brought the timeout forward.
//!
//! Rejected: a task of the async runtime. Each wake-up would cost a scheduler's round, and a busy agent would delay packets. A plane for
//! each worker: what one peer is entitled to, its quota and its flows would have to be counted across them.

mod channel;
mod handle;
mod round;
mod shared;
mod turn;

use std::{io, num::NonZeroUsize, os::fd::AsFd, sync::Arc, time::Duration};

use postern_common::flow_record::FlowRecord;
use postern_dataplane::{
    DataPlane, Out, PlaneEvent,
    packet::batch::{TunBatch, UdpBatch},
};
use tokio::sync::mpsc;

pub use self::handle::{WorkerGone, WorkerHandle, WorkerStatus};
use self::{
    channel::{Channel, Pool},
    handle::COMMANDS,
    round::Worker,
    shared::Shared,
};
use super::{
    clock::Clock,
    sys::{self, Poller},
    tun::{LANES, Tun},
    udp::{Family, SendCounters, UdpSockets},
};

/// Receives in a round, as long as there is room: each may hold many datagrams.
pub const RECEIVES_A_ROUND: usize = 64;
/// Bursts that a worker may deliver in a round: each is one receive or several, up to 256 KiB.
pub const DELIVERIES_A_ROUND: usize = 8;
/// Bytes that a lane may give in a round: one super-packet, or many packets. The last frame may go beyond.
pub const QUANTUM: usize = 32 << 10;
/// Frames that a lane may give in a round.
pub const FRAMES_A_LANE: usize = 128;
/// The longest wait.
pub const HEARTBEAT: Duration = Duration::from_millis(250);
/// Records and events that wait for the agent. Beyond it records stay in the plane, which bounds and counts them.
pub const EVENT_CAPACITY: usize = 1_024;

/// Room that a batch must have before it is fed again: one joined receive or one super-packet, sealed.
const ROOM: usize = 80 << 10;

/// Names of what is waited for; lanes have their numbers.
const WAKE: u64 = 1 << 32;
/// The first channel; the others follow.
const CHANNELS: u64 = WAKE + 1;

/// The most workers: more than that would wait for each other.
pub const MAX_WORKERS: usize = 32;
/// The most that [`default_workers`] gives.
const DEFAULT_MAX_WORKERS: usize = 8;
/// Bursts beside two for each worker.
const FURTHER_BURSTS: usize = 2;

/// What the worker tells the agent.
#[expect(clippy::large_enum_variant, reason = "nearly every event is a record")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerEvent {
    /// A flow record.
    Record(FlowRecord),
    /// Something happened to a peer.
    Plane(PlaneEvent),
    /// The TUN interface is gone or broken: nothing passes any more, and the worker has ended.
    TunLost {
        /// What the kernel said.
        reason: String,
    },
}

/// What the I/O shell counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoCounters {
    /// Frames read from the TUN.
    pub tun_reads: u64,
    /// Their bytes.
    pub tun_read_bytes: u64,
    /// Frames written to the TUN.
    pub tun_writes: u64,
    /// Packets in them, before they were joined.
    pub tun_packets: u64,
    /// Frames that the kernel did not take.
    pub tun_refused: u64,
    /// Receives.
    pub udp_receives: u64,
    /// Datagrams in them.
    pub udp_datagrams: u64,
    /// Their bytes.
    pub udp_bytes: u64,
    /// Receives that failed.
    pub udp_errors: u64,
    /// What was sent.
    pub sent: SendCounters,
    /// Rounds of the loop.
    pub rounds: u64,
    /// Events that had no room.
    pub events_dropped: u64,
}

impl IoCounters {
    /// Adds what another worker has counted.
    #[must_use]
    fn plus(self, other: Self) -> Self {
        let SendCounters { sent, bytes, calls, full, failed, split } = other.sent;
        Self {
            tun_reads: self.tun_reads + other.tun_reads,
            tun_read_bytes: self.tun_read_bytes + other.tun_read_bytes,
            tun_writes: self.tun_writes + other.tun_writes,
            tun_packets: self.tun_packets + other.tun_packets,
            tun_refused: self.tun_refused + other.tun_refused,
            udp_receives: self.udp_receives + other.udp_receives,
            udp_datagrams: self.udp_datagrams + other.udp_datagrams,
            udp_bytes: self.udp_bytes + other.udp_bytes,
            udp_errors: self.udp_errors + other.udp_errors,
            sent: SendCounters {
                sent: self.sent.sent + sent,
                bytes: self.sent.bytes + bytes,
                calls: self.sent.calls + calls,
                full: self.sent.full + full,
                failed: self.sent.failed + failed,
                split: self.sent.split + split,
            },
            rounds: self.rounds + other.rounds,
            events_dropped: self.events_dropped + other.events_dropped,
        }
    }
}

/// Returns how many workers this machine should have: one for each two cores, because the kernel's share of the work and the programs
/// that talk need the others; at most eight.
pub fn default_workers() -> NonZeroUsize {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new((cores / 2).min(DEFAULT_MAX_WORKERS)).unwrap_or(NonZeroUsize::MIN)
}

/// Starts the workers' threads, at most [`MAX_WORKERS`]; they end when [`WorkerHandle::shut_down`] is called or every handle is gone.
///
/// # Errors
/// If a thread, a socket or an eventfd cannot be made.
pub fn spawn(
    plane: DataPlane,
    tun: Tun,
    sockets: UdpSockets,
    clock: Arc<dyn Clock>,
    workers: NonZeroUsize,
) -> io::Result<(WorkerHandle, mpsc::Receiver<WorkerEvent>)> {
    let workers = workers.get().min(MAX_WORKERS);
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (outbox, events) = mpsc::channel(EVENT_CAPACITY);
    let wakes = (0..workers).map(|_| sys::event_fd().map(Arc::new)).collect::<io::Result<Vec<_>>>()?;
    let handle = WorkerHandle::new(commands, wakes[0].clone(), sockets.port(), tun.name().to_owned());
    let siblings = if workers > 1 { sockets.siblings(workers - 1)? } else { Vec::new() };
    let sockets: Vec<_> = std::iter::once(sockets).chain(siblings).collect();
    let joining = tun.joining();
    let doors = sockets.iter().flat_map(|sockets| [Family::V4, Family::V6].map(|family| sockets.door(family)));
    let channels: Vec<_> = doors.flatten().map(|door| Channel::new(door.clone())).collect();
    let pool = Pool::new(joining, 2 * workers + FURTHER_BURSTS);
    let pollers = pollers(&tun, &channels, &wakes)?;
    let shared = Arc::new(Shared::new(plane, tun, (channels, pool), clock, wakes));
    let mut crew = Vec::new();
    let mut first = None;
    for (number, (sockets, poller)) in sockets.into_iter().zip(pollers).enumerate() {
        let batches = Batches { udp: UdpBatch::new(), tun: TunBatch::new(joining) };
        let worker = Worker::new(number, shared.clone(), poller, sockets, batches, outbox.clone());
        match number {
            0 => first = Some(worker),
            _ => crew.push(start(&shared, number, move || worker.follow())?),
        }
    }
    if let Some(first) = first {
        start(&shared, 0, move || first.lead(inbox, crew))?;
    }
    Ok((handle, events))
}

/// Starts a thread; if it cannot, those that run end.
fn start(
    shared: &Shared,
    number: usize,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<std::thread::JoinHandle<()>> {
    let started = std::thread::Builder::new().name(format!("postern-pkt-{number}")).spawn(run);
    started.inspect_err(|_| shared.stop())
}

/// Gives each worker its lanes, its eventfd, and every channel: first the one of its own sockets, so that an idle node wakes always the
/// same worker for a peer.
fn pollers(tun: &Tun, channels: &[Channel], wakes: &[Arc<std::os::fd::OwnedFd>]) -> io::Result<Vec<Poller>> {
    let workers = wakes.len();
    let pollers = wakes.iter().map(|_| Poller::new(LANES + 1 + channels.len())).collect::<io::Result<Vec<_>>>()?;
    for (poller, wake) in pollers.iter().zip(wakes) {
        poller.add(wake.as_fd(), WAKE)?;
    }
    for (lane, queue) in tun.lanes() {
        pollers[usize::from(lane.0) % workers].add(queue, u64::from(lane.0))?;
    }
    let families = channels.len() / workers;
    for (index, channel) in channels.iter().enumerate() {
        let token = CHANNELS + index as u64;
        let door = channel.door().descriptor();
        if workers == 1 {
            pollers[0].add(door, token)?;
            continue;
        }
        let owner = index / families;
        for worker in (owner..workers).chain(0..owner) {
            pollers[worker].add_shared(door, token)?;
        }
    }
    Ok(pollers)
}

#[derive(Debug)]
struct Batches {
    udp: UdpBatch,
    tun: TunBatch,
}

impl Batches {
    fn out(&mut self) -> Out<'_> {
        Out { udp: &mut self.udp, tun: &mut self.tun }
    }

    fn are_roomy(&self) -> bool {
        self.udp.room() >= ROOM && self.tun.room() >= ROOM
    }
}

#[cfg(test)]
mod tests;
