//! One worker: waits, and runs what it finds to its end.

use std::{io, mem, os::fd::AsFd, sync::Arc, thread::JoinHandle, time::Duration};

use postern_common::time::Monotonic;
use postern_dataplane::{
    DataPlane, Out, PlaneEvent, Released,
    packet::{
        batch::{Lane, TunBatch},
        offload::VirtioHeader,
    },
};
use tokio::sync::mpsc;

use super::{
    super::{
        sys::{self, Poller},
        tun::{MAX_FRAME, Tun},
        udp::{Arrival, Door, MAX_RECEIVE, UdpSockets},
    },
    Batches, CHANNELS, DELIVERIES_A_ROUND, FRAMES_A_LANE, HEARTBEAT, IoCounters, QUANTUM, RECEIVES_A_ROUND, ROOM, WAKE,
    WorkerEvent,
    channel::{Burst, Delivery},
    handle::{COMMANDS, Command},
    shared::Shared,
    turn::Turn,
};

/// One thread's part of the work.
pub(super) struct Worker {
    shared: Arc<Shared>,
    hands: Hands,
}

/// What is one worker's own.
struct Hands {
    number: usize,
    poller: Poller,
    turn: Turn,
    /// What it sends with; it receives from all workers'.
    sockets: UdpSockets,
    batches: Batches,
    /// Where frames are read.
    frame: Box<[u8]>,
    outbox: mpsc::Sender<WorkerEvent>,
    io: IoCounters,
    /// When the plane's timeout was last handled.
    beat: Monotonic,
    /// Which channels have something to receive.
    ready: Vec<usize>,
    /// Channels that this worker left while there was something to deliver.
    unfinished: Vec<usize>,
}

/// What one round may still do.
struct Budget {
    receives: usize,
    deliveries: usize,
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
    pub(super) fn new(
        number: usize,
        shared: Arc<Shared>,
        poller: Poller,
        sockets: UdpSockets,
        batches: Batches,
        outbox: mpsc::Sender<WorkerEvent>,
    ) -> Self {
        let hands = Hands {
            number,
            poller,
            turn: Turn::default(),
            sockets,
            batches,
            frame: vec![0; MAX_FRAME].into_boxed_slice(),
            outbox,
            io: IoCounters::default(),
            beat: Monotonic::default(),
            ready: Vec::with_capacity(shared.channels.len()),
            unfinished: Vec::with_capacity(shared.channels.len()),
        };
        Self { shared, hands }
    }

    /// The first worker's life: it also runs commands and timeouts, and ends after the others.
    pub(super) fn lead(self, mut inbox: mpsc::Receiver<Command>, crew: Vec<JoinHandle<()>>) {
        let Self { shared, mut hands } = self;
        let mut waiting = Source::HasMore;
        while !shared.is_stopping() {
            let timeout = match waiting {
                Source::HasMore => Duration::ZERO,
                Source::Drained => {
                    let now = shared.clock.now().monotonic;
                    let left = shared.plane().poll_timeout().since(now);
                    left.min(HEARTBEAT.saturating_sub(now.since(hands.beat)))
                }
            };
            let woken = hands.wait(&shared, timeout);
            if woken && hands.run_commands(&shared, &mut inbox) == Flow::Stop {
                break;
            }
            waiting = hands.round(&shared);
        }
        shared.stop();
        for worker in crew {
            let _ended_by_a_panic = worker.join();
        }
        hands.end(shared, inbox);
    }

    /// The others' life.
    pub(super) fn follow(self) {
        let Self { shared, mut hands } = self;
        let mut waiting = Source::HasMore;
        while !shared.is_stopping() {
            let timeout = if waiting == Source::HasMore { Duration::ZERO } else { Duration::MAX };
            if hands.wait(&shared, timeout) {
                sys::event_clear(shared.wake_of(hands.number).as_fd());
            }
            waiting = hands.round(&shared);
        }
    }
}

impl Hands {
    /// Waits for something to do, and puts the lanes that have something into their order. Tells whether it was woken.
    fn wait(&mut self, shared: &Shared, timeout: Duration) -> bool {
        let mut woken = false;
        self.turn.begin();
        self.ready.clear();
        self.ready.append(&mut self.unfinished);
        // Only a bug or memory at its end makes the wait fail: reading tells what is there.
        let Ok(found) = self.poller.wait(timeout) else {
            self.ready.extend(0..shared.channels.len());
            return true;
        };
        for token in found {
            match token {
                WAKE => woken = true,
                CHANNELS.. => {
                    let channel = (token - CHANNELS) as usize;
                    if !self.ready.contains(&channel) {
                        self.ready.push(channel);
                    }
                }
                lane => self.turn.add(Lane(lane as u8)),
            }
        }
        self.turn.order();
        woken
    }

    fn run_commands(&mut self, shared: &Shared, inbox: &mut mpsc::Receiver<Command>) -> Flow {
        sys::event_clear(shared.wake_of(self.number).as_fd());
        for _command in 0..COMMANDS {
            let (run, _nobody_is_in_a_round) = match inbox.try_recv() {
                Ok(Command::Order(run)) => (run, Some(shared.still())),
                Ok(Command::Question(run)) => (run, None),
                Ok(Command::ShutDown) | Err(mpsc::error::TryRecvError::Disconnected) => return Flow::Stop,
                Err(mpsc::error::TryRecvError::Empty) => return Flow::Continue,
            };
            let mut plane = shared.plane();
            run(&mut plane, &mut self.batches, shared, shared.clock.now());
            self.pass_events_on(shared, &mut plane, &[]);
            drop(plane);
            self.flush(shared);
        }
        sys::event_signal(shared.wake_of(self.number).as_fd()); // there may be more
        Flow::Continue
    }

    /// Does everything that was found, within bounds.
    fn round(&mut self, shared: &Shared) -> Source {
        let _in_a_round = shared.round();
        if shared.is_stopping() {
            return Source::Drained;
        }
        self.io.rounds += 1;
        let mut budget = Budget { receives: RECEIVES_A_ROUND, deliveries: DELIVERIES_A_ROUND };
        let mut waiting = Source::Drained;
        for place in 0..self.ready.len() {
            waiting = waiting.or(self.receive(shared, self.ready[place], &mut budget));
        }
        if !self.turn.is_empty() {
            match self.read(shared) {
                Ok(source) => waiting = waiting.or(source),
                Err(error) => {
                    shared.lose(error);
                    return Source::Drained;
                }
            }
        }
        let mut plane = shared.plane();
        let now = shared.clock.now();
        if self.number == 0 && (now.monotonic >= plane.poll_timeout() || now.monotonic.since(self.beat) >= HEARTBEAT) {
            self.beat = now.monotonic;
            plane.handle_timeout(now, &mut self.batches.out());
            self.pass_events_on(shared, &mut plane, &[]);
        }
        self.report(&mut plane);
        drop(plane);
        self.flush(shared);
        self.io.sent = *self.sockets.counters();
        shared.publish(self.number, self.io);
        waiting
    }

    /// Closes everything, then says that it has ended, then hands over what is left to tell: every record, and whether the TUN was lost.
    fn end(self, shared: Arc<Shared>, mut inbox: mpsc::Receiver<Command>) {
        let Self { outbox, sockets, poller, .. } = self;
        drop((sockets, poller));
        let clock = shared.clock.clone();
        // A worker that panicked may have kept its share.
        let closed = Arc::into_inner(shared).map(Shared::close);
        // Port and interface are free. Whoever still asks learns that it has ended: the agent must be free to take the last records.
        inbox.close();
        while inbox.try_recv().is_ok() {}
        let Some((mut plane, lost)) = closed else { return };
        plane.shut_down(clock.now());
        let records = std::iter::from_fn(|| plane.poll_record()).map(WorkerEvent::Record);
        let lost = lost.map(|error| WorkerEvent::TunLost { reason: error.to_string() });
        for event in records.chain(lost) {
            if outbox.blocking_send(event).is_err() {
                return; // nobody listens any more
            }
        }
    }

    fn receive(&mut self, shared: &Shared, index: usize, budget: &mut Budget) -> Source {
        let channel = &shared.channels[index];
        let mut source = Source::HasMore;
        while source == Source::HasMore && budget.receives > 0 {
            let Some(mut burst) = shared.pool.lend() else {
                std::thread::yield_now(); // to whoever delivers
                break;
            };
            let io = &mut self.io;
            let (left, ticket) = channel.receive(&mut burst, |door, burst| fill(door, burst, budget.receives, io));
            source = left;
            budget.receives = budget.receives.saturating_sub(burst.arrivals.len().max(1));
            let Some(ticket) = ticket else {
                burst.tun.clear();
                shared.pool.give_back(burst);
                break;
            };
            shared.plane().plan(&mut burst.intake, shared.clock.now(), &mut burst.tun);
            burst.intake.open(&mut burst.tun);
            channel.put(ticket, burst);
            if self.deliver(shared, index, budget) == Source::HasMore {
                return Source::HasMore;
            }
        }
        // What another worker had no room for.
        self.deliver(shared, index, budget).or(source)
    }

    fn deliver(&mut self, shared: &Shared, index: usize, budget: &mut Budget) -> Source {
        match shared.channels[index].deliver(&mut budget.deliveries, &shared.pool, |burst| self.take(shared, burst)) {
            Delivery::Done => Source::Drained,
            Delivery::HasMore => {
                self.unfinished.push(index);
                Source::HasMore
            }
        }
    }

    /// Judges and delivers a burst, perhaps another worker's.
    fn take(&mut self, shared: &Shared, burst: &mut Burst) {
        if !self.batches.are_roomy() {
            self.flush(shared);
        }
        let mut plane = shared.plane();
        let now = shared.clock.now();
        let released = plane.take(&mut burst.intake, now, &mut Out { udp: &mut self.batches.udp, tun: &mut burst.tun });
        self.pass_events_on(shared, &mut plane, &burst.arrivals);
        match released {
            // While the plane is held, nobody else sends of these flows.
            Released::Waiting => self.send(shared),
            Released::Nothing => {}
        }
        drop(plane);
        burst.arrivals.clear();
        write(&shared.tun, &mut burst.tun, &mut self.io);
        self.send(shared);
    }

    fn read(&mut self, shared: &Shared) -> io::Result<Source> {
        let mut frame = mem::take(&mut self.frame);
        let mut source = Source::Drained;
        let result = loop {
            if !self.batches.are_roomy() {
                break Ok(Source::HasMore); // who is left out comes first in the next round
            }
            let Some(lane) = self.turn.next() else { break Ok(source) };
            let now = shared.clock.now();
            let mut taken = 0;
            let lane_result = (0..FRAMES_A_LANE).try_for_each(|_frame| {
                let Some(length) = shared.tun.read(lane, &mut frame).map_err(Stop::Lost)? else {
                    return Err(Stop::Drained);
                };
                self.io.tun_reads += 1;
                self.io.tun_read_bytes += length as u64;
                match VirtioHeader::split_frame(&mut frame[..length]) {
                    Ok((header, packet)) => {
                        let sealing = shared.plane().admit(lane, header, packet, now, &mut self.batches.out());
                        if let Some(sealing) = sealing {
                            sealing.run(&mut self.batches.udp);
                        }
                    }
                    Err(_) => self.io.tun_refused += 1,
                }
                taken += length;
                if taken >= QUANTUM || !self.batches.are_roomy() { Err(Stop::Quantum) } else { Ok(()) }
            });
            match lane_result {
                Err(Stop::Drained) => {}
                Ok(()) | Err(Stop::Quantum) => source = Source::HasMore,
                Err(Stop::Lost(error)) => break Err(error),
            }
        };
        self.frame = frame;
        self.flush(shared);
        result
    }

    fn flush(&mut self, shared: &Shared) {
        self.send(shared);
        write(&shared.tun, &mut self.batches.tun, &mut self.io);
    }

    fn send(&mut self, shared: &Shared) {
        for run in self.batches.udp.runs() {
            self.sockets.send(&run, shared.source_for(&run.endpoint));
        }
        self.batches.udp.clear();
    }

    /// Passes the plane's events on, and remembers at which local address a peer that moved was heard. Only the plane knows
    /// which datagrams were authentic, so nothing is learnt from the others.
    fn pass_events_on(&mut self, shared: &Shared, plane: &mut DataPlane, arrivals: &[Arrival]) {
        while let Some(event) = plane.poll_event() {
            match &event {
                PlaneEvent::EndpointMoved { endpoint, .. } => {
                    let arrival = arrivals.iter().rev().find(|arrival| arrival.from == *endpoint);
                    if let Some(local) = arrival.and_then(|arrival| arrival.to) {
                        shared.learn_source(*endpoint, local);
                    }
                }
                PlaneEvent::PairConfirmed { .. } | PlaneEvent::PeerUnreachable { .. } | PlaneEvent::Shut => {}
            }
            if self.outbox.try_send(WorkerEvent::Plane(event)).is_err() {
                self.io.events_dropped += 1;
            }
        }
    }

    fn report(&mut self, plane: &mut DataPlane) {
        while let Ok(permit) = self.outbox.try_reserve() {
            let Some(record) = plane.poll_record() else { break };
            permit.send(WorkerEvent::Record(record));
        }
    }
}

/// Why a lane is left.
enum Stop {
    Drained,
    Quantum,
    Lost(io::Error),
}

/// Receives as much as the burst has room for.
fn fill(door: &Door, burst: &mut Burst, receives: usize, io: &mut IoCounters) -> Source {
    for _receive in 0..receives {
        if burst.tun.room() < ROOM {
            return Source::HasMore;
        }
        let Ok(room) = burst.tun.receive_room(MAX_RECEIVE) else { return Source::HasMore };
        let arrival = match door.receive(room) {
            Ok(Some(arrival)) => arrival,
            Ok(None) => return Source::Drained,
            Err(_about_an_earlier_send) => {
                io.udp_errors += 1;
                continue;
            }
        };
        let segment = arrival.segment.max(1);
        io.udp_receives += 1;
        io.udp_bytes += arrival.length as u64;
        io.udp_datagrams += arrival.length.div_ceil(segment) as u64;
        let start = burst.tun.received(arrival.length);
        burst.intake.add(start..start + arrival.length, segment, arrival.from);
        burst.arrivals.push(arrival);
    }
    Source::HasMore
}

/// Writes all frames of a batch to the TUN, each on its flow's lane.
fn write(tun: &Tun, batch: &mut TunBatch, io: &mut IoCounters) {
    for frame in batch.frames() {
        match tun.write(&frame) {
            Ok(()) => {
                io.tun_writes += 1;
                io.tun_packets += frame.segments() as u64;
            }
            Err(_) => io.tun_refused += 1,
        }
    }
    batch.clear();
}
