//! What arrives on one socket, opened by several workers at once and delivered in the order in which it came.
//!
//! ```text
//! worker: lend ─> receive, ticket ─┐  decrypt, at the same time as others  ┌─> deliver: judged and written, in order of tickets
//!         (one at a time)          └───────────────────────────────────────┘     by whoever is there when the next one is ready
//! ```
//!
//! A worker that has opened its burst while an earlier one is still being delivered leaves it with the worker who delivers, and goes
//! on. So one busy peer, whose datagrams all arrive on one socket, uses several cores, and no packet overtakes another.
//!
//! Bounds: [`Channel::new`] says how many bursts there are at most; who finds none left waits for the one that is being delivered.
//!
//! Rejected: a lock that is held from receiving to delivering (one core per peer), and numbers that each worker waits for (the
//! slowest stops all).

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use postern_dataplane::{
    Intake,
    packet::{batch::TunBatch, join::Joining},
    wireguard::{OpenerOf, WireGuard},
};

use super::super::udp::{Arrival, Door};

/// What was received at once, and where its packets will stand.
#[derive(Debug)]
pub(super) struct Burst {
    pub(super) tun: TunBatch,
    pub(super) intake: Intake<OpenerOf<WireGuard>>,
    /// Who was heard at which local address.
    pub(super) arrivals: Vec<Arrival>,
}

impl Burst {
    fn new(joining: Joining) -> Self {
        Self { tun: TunBatch::new(joining), intake: Intake::default(), arrivals: Vec::with_capacity(64) }
    }
}

/// The number of a burst in the order of one socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

/// One socket, and the bursts that come from it.
#[derive(Debug)]
pub(super) struct Channel {
    door: Door,
    joining: Joining,
    limit: usize,
    /// The next ticket; whoever holds it receives.
    receiving: Mutex<u64>,
    order: Mutex<Order>,
    returned: Condvar,
}

#[derive(Debug)]
struct Order {
    /// Whose turn it is.
    next: u64,
    /// Whether a worker delivers: it takes all that become ready.
    delivering: bool,
    opened: Vec<(u64, Burst)>,
    spare: Vec<Burst>,
    made: usize,
}

impl Channel {
    /// Makes one for a socket with at most `limit` bursts, one a worker and some that wait for their turn.
    pub(super) fn new(door: Door, joining: Joining, limit: usize) -> Self {
        let order = Order {
            next: 0,
            delivering: false,
            opened: Vec::with_capacity(limit),
            spare: Vec::with_capacity(limit),
            made: 0,
        };
        let (receiving, order) = (Mutex::new(0), Mutex::new(order));
        Self { door, joining, limit: limit.max(1), receiving, order, returned: Condvar::new() }
    }

    pub(super) fn door(&self) -> &Door {
        &self.door
    }

    /// Lends an empty burst.
    pub(super) fn lend(&self) -> Burst {
        let mut order = lock(&self.order);
        loop {
            if let Some(burst) = order.spare.pop() {
                return burst;
            }
            if order.made < self.limit {
                order.made += 1;
                return Burst::new(self.joining);
            }
            order = self.returned.wait(order).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes an empty burst back.
    pub(super) fn give_back(&self, burst: Burst) {
        lock(&self.order).spare.push(burst);
        self.returned.notify_one();
    }

    /// Fills a burst by `receive`, which nobody else does meanwhile; its ticket, if it then holds anything.
    pub(super) fn receive<T>(
        &self,
        burst: &mut Burst,
        receive: impl FnOnce(&Door, &mut Burst) -> T,
    ) -> (T, Option<Ticket>) {
        let mut next = lock(&self.receiving);
        let result = receive(&self.door, burst);
        if burst.arrivals.is_empty() {
            return (result, None);
        }
        let ticket = Ticket(*next);
        *next += 1;
        (result, Some(ticket))
    }

    /// Takes an opened burst, and calls `deliver` for each whose turn has come, unless another worker is doing that: then it will
    /// find this one.
    pub(super) fn deliver(&self, ticket: Ticket, burst: Burst, mut deliver: impl FnMut(&mut Burst)) {
        let mut order = lock(&self.order);
        order.opened.push((ticket.0, burst));
        if std::mem::replace(&mut order.delivering, true) {
            return;
        }
        while let Some(mut burst) = order.take_next() {
            drop(order);
            deliver(&mut burst);
            order = lock(&self.order);
            order.next += 1;
            order.spare.push(burst);
            self.returned.notify_one();
        }
        order.delivering = false;
    }
}

impl Order {
    fn take_next(&mut self) -> Option<Burst> {
        let place = self.opened.iter().position(|(ticket, _)| *ticket == self.next)?;
        Some(self.opened.swap_remove(place).1)
    }
}

/// A panic of another worker ends the process in releases; in tests the next one goes on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, SocketAddr},
        sync::atomic::{AtomicU16, AtomicUsize, Ordering},
        thread,
    };

    use super::{
        super::super::udp::{Family, Segmentation, UdpSockets},
        *,
    };

    fn channel(limit: usize) -> Channel {
        let sockets = UdpSockets::bind(0, Segmentation::Off).unwrap();
        Channel::new(sockets.door(Family::V4).unwrap().clone(), Joining::Nothing, limit)
    }

    fn arrival(port: u16) -> Arrival {
        Arrival { from: SocketAddr::new(IpAddr::from([192, 0, 2, 1]), port), to: None, length: 1, segment: 1 }
    }

    #[test]
    fn what_many_workers_open_is_delivered_in_the_order_in_which_it_came() {
        const BURSTS: u16 = 2_000;
        let (channel, came, delivered) = (channel(6), AtomicU16::new(0), Mutex::new(Vec::new()));
        let most = AtomicUsize::new(0);
        thread::scope(|scope| {
            for worker in 0..4_u32 {
                let (channel, came, delivered, most) = (&channel, &came, &delivered, &most);
                scope.spawn(move || {
                    loop {
                        let mut burst = channel.lend();
                        let (number, ticket) = channel.receive(&mut burst, |_, burst| {
                            let number = came.fetch_add(1, Ordering::Relaxed);
                            burst.arrivals.extend((number < BURSTS).then(|| arrival(number)));
                            number
                        });
                        let Some(ticket) = ticket else { return channel.give_back(burst) };
                        // Some take longer than others.
                        let rounds = (u32::from(number).wrapping_mul(2_654_435_761) >> 22) * (worker + 1);
                        (0..rounds).for_each(|_| std::hint::spin_loop());
                        channel.deliver(ticket, burst, |burst| {
                            let mut delivered = delivered.try_lock().expect("one delivers at a time");
                            delivered.extend(burst.arrivals.drain(..).map(|arrival| arrival.from.port()));
                            most.fetch_max(lock(&channel.order).made, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert!(delivered.into_inner().unwrap().into_iter().eq(0..BURSTS));
        assert!(most.into_inner() <= 6, "no more bursts than were allowed");
        let order = lock(&channel.order);
        assert_eq!((order.opened.len(), order.spare.len(), order.delivering), (0, order.made, false));
    }

    #[test]
    fn an_empty_receive_takes_no_place_in_the_order() {
        let channel = channel(1);
        let mut burst = channel.lend();
        assert_eq!(channel.receive(&mut burst, |_, _| ()).1, None);
        let (_, ticket) = channel.receive(&mut burst, |_, burst| burst.arrivals.push(arrival(7)));
        let mut ports = Vec::new();
        channel.deliver(ticket.unwrap(), burst, |burst| ports.extend(burst.arrivals.drain(..).map(|a| a.from.port())));
        assert_eq!(ports, [7]);
    }
}
