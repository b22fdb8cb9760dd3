//! The packet worker: one plain thread that owns the data plane and runs each batch to its end.
//!
//! ```text
//! wait (TUN lanes, sockets, eventfd; at most until the plane's next timeout)
//!   commands        -> plane                                  (bounded a round)
//!   UDP receives    -> plane -> TunBatch -> TUN, UdpBatch -> UDP    (a batch a round)
//!   TUN lanes       -> plane -> UdpBatch -> UDP, TunBatch -> TUN    (a batch a round, a quantum a lane)
//!   timeouts        -> plane -> both batches
//!   records, events -> bounded channel to the agent
//! ```
//!
//! Nothing here is shared and nothing locks: the agent asks by closures that run on this thread between two batches
//! ([`WorkerHandle`]). What does not fit anywhere is dropped and counted, as on a wire.
//!
//! A flow has its lane ([`super::tun`]). Lanes are served in turn, [`QUANTUM`] bytes each; those that were idle come
//! first. So a bulk flow keeps an interactive one waiting for a fraction of a millisecond, whatever stands in its own lane.
//!
//! Deadlines are enforced here without any packet: the plane's timeout bounds the wait, and [`HEARTBEAT`] bounds it again, because
//! the wall clock may jump forward over a deadline while nothing else happens.
//!
//! Rejected: a task of the async runtime. Each wake-up would cost a scheduler's round, and a busy agent would delay packets.

mod handle;
mod turn;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use postern_common::{
    flow_record::FlowRecord,
    time::{Monotonic, Now},
};
use postern_dataplane::{
    DataPlane, Out, PlaneEvent,
    packet::{
        batch::{Lane, TunBatch, UdpBatch},
        offload::VirtioHeader,
    },
};
use tokio::sync::mpsc;

pub use self::handle::{WorkerGone, WorkerHandle, WorkerStatus};
use self::{
    handle::{COMMANDS, Command},
    turn::Turn,
};
use super::{
    clock::Clock,
    path::Sources,
    sys::{self, Poller},
    tun::{LANES, MAX_FRAME, Tun},
    udp::{Arrival, Family, MAX_RECEIVE, SendCounters, UdpSockets},
};

/// Receives from one socket in a round, as long as there is room: each may hold many datagrams.
pub const RECEIVES_A_ROUND: usize = 64;
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
const IPV4: u64 = WAKE + 1;
const IPV6: u64 = WAKE + 2;

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

/// Starts the worker's thread; it ends when [`WorkerHandle::shut_down`] is called or every handle is gone.
///
/// # Errors
/// If the thread or its eventfd cannot be made.
pub fn spawn(
    plane: DataPlane,
    tun: Tun,
    sockets: UdpSockets,
    clock: Arc<dyn Clock>,
) -> io::Result<(WorkerHandle, mpsc::Receiver<WorkerEvent>)> {
    let wake = Arc::new(sys::event_fd()?);
    let (commands, inbox) = mpsc::channel(COMMANDS);
    let (outbox, events) = mpsc::channel(EVENT_CAPACITY);
    let handle = WorkerHandle::new(commands, wake.clone(), sockets.port(), tun.name().to_owned());
    let batches = Batches { udp: UdpBatch::new(), tun: TunBatch::new(tun.joining()) };
    let poller = Poller::new(LANES + 3)?;
    for (lane, queue) in tun.lanes() {
        poller.add(queue, u64::from(lane.0))?;
    }
    poller.add(wake.as_fd(), WAKE)?;
    for (family, token) in [(Family::V4, IPV4), (Family::V6, IPV6)] {
        if let Some(socket) = sockets.descriptor(family) {
            poller.add(socket, token)?;
        }
    }
    let worker = Worker {
        plane,
        poller,
        turn: Turn::default(),
        link: Link { tun, sockets, sources: Sources::default(), io: IoCounters::default() },
        clock,
        batches,
        inbox,
        outbox,
        wake,
        arrivals: Vec::with_capacity(2 * RECEIVES_A_ROUND),
        beat: Monotonic::default(),
    };
    std::thread::Builder::new().name("postern-packets".into()).spawn(move || worker.run())?;
    Ok((handle, events))
}

/// Everything outside the plane that packets touch.
#[derive(Debug)]
struct Link {
    tun: Tun,
    sockets: UdpSockets,
    sources: Sources,
    io: IoCounters,
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

struct Worker {
    plane: DataPlane,
    poller: Poller,
    turn: Turn,
    link: Link,
    clock: Arc<dyn Clock>,
    batches: Batches,
    inbox: mpsc::Receiver<Command>,
    outbox: mpsc::Sender<WorkerEvent>,
    wake: Arc<OwnedFd>,
    /// Who was heard at which local address in this round.
    arrivals: Vec<Arrival>,
    /// When the plane's timeout was last handled.
    beat: Monotonic,
}

/// What a command says about the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Continue,
    Stop,
}

/// Whether a source has more than a round may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Drained,
    HasMore,
}

impl Source {
    fn or(self, other: Self) -> Self {
        if self == Self::HasMore { self } else { other }
    }
}

impl Worker {
    fn run(mut self) {
        let mut buffer = vec![0; MAX_FRAME].into_boxed_slice();
        let mut waiting = Source::HasMore;
        loop {
            let ready = self.wait(waiting);
            self.link.io.rounds += 1;
            let now = self.clock.now();
            if ready.wake && self.run_commands(now) == Flow::Stop {
                self.plane.shut_down(now);
                self.flush();
                self.report();
                return;
            }
            waiting = Source::Drained;
            for (family, readable) in [(Family::V4, ready.ipv4), (Family::V6, ready.ipv6)] {
                if readable {
                    waiting = waiting.or(self.receive(family, now));
                }
            }
            if ready.lanes {
                match self.read(&mut buffer, now) {
                    Ok(source) => waiting = waiting.or(source),
                    Err(error) => {
                        self.plane.shut_down(now);
                        self.report();
                        let _receiver_gone = self.outbox.try_send(WorkerEvent::TunLost { reason: error.to_string() });
                        return;
                    }
                }
            }
            if now.monotonic >= self.plane.poll_timeout() || now.monotonic.since(self.beat) >= HEARTBEAT {
                self.beat = now.monotonic;
                self.plane.handle_timeout(now, &mut self.batches.out());
                self.flush();
            }
            self.report();
        }
    }

    /// Waits for something to do, and puts the lanes that have something into their order.
    fn wait(&mut self, waiting: Source) -> Ready {
        let timeout = match waiting {
            Source::HasMore => Duration::ZERO,
            Source::Drained => {
                let now = self.clock.now().monotonic;
                let left = self.plane.poll_timeout().since(now);
                left.min(HEARTBEAT.saturating_sub(now.since(self.beat)))
            }
        };
        let mut ready = Ready { wake: false, lanes: false, ipv4: false, ipv6: false };
        self.turn.begin();
        // Only a bug or memory at its end makes the wait fail: reading tells what is there.
        let Ok(found) = self.poller.wait(timeout) else { return Ready { wake: true, ipv4: true, ipv6: true, ..ready } };
        for token in found {
            match token {
                WAKE => ready.wake = true,
                IPV4 => ready.ipv4 = true,
                IPV6 => ready.ipv6 = true,
                lane => self.turn.add(Lane(lane as u8)),
            }
        }
        self.turn.order();
        ready.lanes = !self.turn.is_empty();
        ready
    }

    fn run_commands(&mut self, now: Now) -> Flow {
        sys::event_clear(self.wake.as_fd());
        for _command in 0..COMMANDS {
            match self.inbox.try_recv() {
                Ok(Command::Run(run)) => {
                    run(&mut self.plane, &mut self.batches, &mut self.link, now);
                    self.flush();
                }
                Ok(Command::ShutDown) | Err(mpsc::error::TryRecvError::Disconnected) => return Flow::Stop,
                Err(mpsc::error::TryRecvError::Empty) => return Flow::Continue,
            }
        }
        sys::event_signal(self.wake.as_fd()); // there may be more
        Flow::Continue
    }

    fn receive(&mut self, family: Family, now: Now) -> Source {
        let mut source = Source::HasMore;
        for _receive in 0..RECEIVES_A_ROUND {
            if !self.batches.are_roomy() {
                self.flush();
            }
            let Ok(room) = self.batches.tun.receive_room(MAX_RECEIVE) else { break };
            let arrival = match self.link.sockets.receive(family, room) {
                Ok(Some(arrival)) => arrival,
                Ok(None) => {
                    source = Source::Drained;
                    break;
                }
                Err(_about_an_earlier_send) => {
                    self.link.io.udp_errors += 1;
                    continue;
                }
            };
            let segment = arrival.segment.max(1);
            let io = &mut self.link.io;
            io.udp_receives += 1;
            io.udp_bytes += arrival.length as u64;
            io.udp_datagrams += arrival.length.div_ceil(segment) as u64;
            let start = self.batches.tun.received(arrival.length);
            self.arrivals.push(arrival);
            let range = start..start + arrival.length;
            self.plane.handle_received(range, segment, arrival.from, now, &mut self.batches.out());
        }
        self.flush();
        source
    }

    fn read(&mut self, buffer: &mut [u8], now: Now) -> io::Result<Source> {
        let mut source = Source::Drained;
        while !self.turn.is_empty() {
            if !self.batches.are_roomy() {
                source = Source::HasMore; // who is left out comes first in the next round
                break;
            }
            let Some(lane) = self.turn.next() else { break };
            let mut taken = 0;
            for _frame in 0..FRAMES_A_LANE {
                let Some(length) = self.link.tun.read(lane, buffer)? else { break };
                self.link.io.tun_reads += 1;
                self.link.io.tun_read_bytes += length as u64;
                match VirtioHeader::split_frame(&mut buffer[..length]) {
                    Ok((header, packet)) => {
                        self.plane.handle_tun_lane(lane, header, packet, now, &mut self.batches.out());
                    }
                    Err(_) => self.link.io.tun_refused += 1,
                }
                taken += length;
                if taken >= QUANTUM || !self.batches.are_roomy() {
                    source = Source::HasMore;
                    break;
                }
            }
        }
        self.flush();
        Ok(source)
    }

    fn flush(&mut self) {
        self.learn_sources();
        let Link { tun, sockets, sources, io } = &mut self.link;
        for run in self.batches.udp.runs() {
            sockets.send(&run, sources.answer(&run.endpoint));
        }
        self.batches.udp.clear();
        for frame in self.batches.tun.frames() {
            match tun.write(&frame) {
                Ok(()) => {
                    io.tun_writes += 1;
                    io.tun_packets += frame.segments() as u64;
                }
                Err(_) => io.tun_refused += 1,
            }
        }
        self.batches.tun.clear();
    }

    /// Passes the plane's events on, and remembers at which local address a peer that moved was heard. Only the plane knows
    /// which datagrams were authentic, so nothing is learnt from the others.
    fn learn_sources(&mut self) {
        while let Some(event) = self.plane.poll_event() {
            match &event {
                PlaneEvent::EndpointMoved { endpoint, .. } => {
                    let arrival = self.arrivals.iter().rev().find(|arrival| arrival.from == *endpoint);
                    if let Some(local) = arrival.and_then(|arrival| arrival.to) {
                        self.link.sources.learn(*endpoint, local);
                    }
                }
                PlaneEvent::PairConfirmed { .. } | PlaneEvent::PeerUnreachable { .. } => {}
            }
            if self.outbox.try_send(WorkerEvent::Plane(event)).is_err() {
                self.link.io.events_dropped += 1;
            }
        }
        self.arrivals.clear();
    }

    fn report(&mut self) {
        while let Ok(permit) = self.outbox.try_reserve() {
            let Some(record) = self.plane.poll_record() else { break };
            permit.send(WorkerEvent::Record(record));
        }
    }
}

/// What the wait found.
#[derive(Debug, Clone, Copy)]
struct Ready {
    wake: bool,
    lanes: bool,
    ipv4: bool,
    ipv6: bool,
}

#[cfg(test)]
mod tests;
