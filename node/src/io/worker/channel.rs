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
//! Bounds: bursts come from one [`Pool`]. Who delivers stops after as many as its round may hold, whatever the others go on opening, so
//! that rounds stay short; what is left is delivered by the next who comes by, at the latest by the same worker in its next round. What
//! waits then is opened and not judged: an order of the agent's counts for it.
//!
//! Rejected: a lock that is held from receiving to delivering (one core per peer), and numbers that each worker waits for (the
//! slowest stops all).

use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// The bursts of a node: made when they are first needed, and never more than the limit.
#[derive(Debug)]
pub(super) struct Pool {
    joining: Joining,
    limit: usize,
    bursts: Mutex<Bursts>,
}

#[derive(Debug)]
struct Bursts {
    spare: Vec<Burst>,
    made: usize,
}

impl Pool {
    pub(super) fn new(joining: Joining, limit: usize) -> Self {
        let bursts = Bursts { spare: Vec::with_capacity(limit), made: 0 };
        Self { joining, limit: limit.max(1), bursts: Mutex::new(bursts) }
    }

    /// Lends an empty burst; `None` while all are in use.
    pub(super) fn lend(&self) -> Option<Burst> {
        let mut bursts = lock(&self.bursts);
        if let Some(burst) = bursts.spare.pop() {
            return Some(burst);
        }
        (bursts.made < self.limit).then(|| {
            bursts.made += 1;
            Burst::new(self.joining)
        })
    }

    /// Takes an empty burst back.
    pub(super) fn give_back(&self, burst: Burst) {
        lock(&self.bursts).spare.push(burst);
    }
}

/// One socket, and the bursts that come from it.
#[derive(Debug)]
pub(super) struct Channel {
    door: Door,
    /// The next ticket; whoever holds it receives.
    receiving: Mutex<u64>,
    order: Mutex<Order>,
}

#[derive(Debug)]
struct Order {
    /// Whose turn it is.
    next: u64,
    /// Whether a worker delivers: it takes what becomes ready, as far as its round goes.
    delivering: bool,
    opened: Vec<(u64, Burst)>,
}

/// What became of the bursts whose turn had come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// Nobody waits, or another worker delivers, or the next burst is not opened yet.
    Done,
    /// The round is over, and there are more.
    HasMore,
}

impl Channel {
    /// Makes one for a socket.
    pub(super) fn new(door: Door) -> Self {
        let order = Order { next: 0, delivering: false, opened: Vec::with_capacity(8) };
        Self { door, receiving: Mutex::new(0), order: Mutex::new(order) }
    }

    pub(super) fn door(&self) -> &Door {
        &self.door
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

    /// Takes an opened burst. [`Channel::deliver`] follows.
    pub(super) fn put(&self, ticket: Ticket, burst: Burst) {
        lock(&self.order).opened.push((ticket.0, burst));
    }

    /// Calls `deliver` for each burst whose turn has come, unless another worker is doing that: then it will find them. Stops when
    /// `room`, which counts down, is used up.
    pub(super) fn deliver(&self, room: &mut usize, pool: &Pool, mut deliver: impl FnMut(&mut Burst)) -> Delivery {
        let mut order = lock(&self.order);
        if std::mem::replace(&mut order.delivering, true) {
            return Delivery::Done;
        }
        while let Some(place) = order.place_of_next() {
            if *room == 0 {
                order.delivering = false;
                return Delivery::HasMore;
            }
            *room -= 1;
            let (_, mut burst) = order.opened.swap_remove(place);
            drop(order);
            deliver(&mut burst);
            pool.give_back(burst);
            order = lock(&self.order);
            order.next += 1;
        }
        order.delivering = false;
        Delivery::Done
    }
}

impl Order {
    fn place_of_next(&self) -> Option<usize> {
        self.opened.iter().position(|(ticket, _)| *ticket == self.next)
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

    fn channel() -> Channel {
        let sockets = UdpSockets::bind(0, Segmentation::Off).unwrap();
        Channel::new(sockets.door(Family::V4).unwrap().clone())
    }

    fn arrival(port: u16) -> Arrival {
        Arrival { from: SocketAddr::new(IpAddr::from([192, 0, 2, 1]), port), to: None, length: 1, segment: 1 }
    }

    fn spin(rounds: u32) {
        (0..rounds).for_each(|_| std::hint::spin_loop());
    }

    /// Lets `workers` carry `bursts` through a channel, each doing at most `room` deliveries a round; returns what was delivered, in
    /// order, and the most deliveries of one round.
    fn carry(workers: u32, bursts: u16, room: usize, opening: u32, delivering: u32) -> (Vec<u16>, usize) {
        let (channel, pool) = (channel(), Pool::new(Joining::Nothing, 6));
        let (came, delivered, most) = (AtomicU16::new(0), Mutex::new(Vec::new()), AtomicUsize::new(0));
        thread::scope(|scope| {
            for worker in 0..workers {
                let (channel, pool, came, delivered, most) = (&channel, &pool, &came, &delivered, &most);
                scope.spawn(move || {
                    let mut ended = false;
                    loop {
                        let mut left = room;
                        let mut take = |burst: &mut Burst| {
                            let mut delivered = delivered.try_lock().expect("one delivers at a time");
                            delivered.extend(burst.arrivals.drain(..).map(|arrival| arrival.from.port()));
                            drop(delivered);
                            spin(delivering);
                        };
                        if let Some(mut burst) = pool.lend() {
                            let (number, ticket) = channel.receive(&mut burst, |_, burst| {
                                let number = came.fetch_add(1, Ordering::Relaxed);
                                burst.arrivals.extend((number < bursts).then(|| arrival(number)));
                                number
                            });
                            match ticket {
                                Some(ticket) => {
                                    // Some take longer than others.
                                    spin(
                                        (u32::from(number).wrapping_mul(2_654_435_761) >> 22) * opening * (worker + 1),
                                    );
                                    channel.put(ticket, burst);
                                }
                                None => {
                                    pool.give_back(burst);
                                    ended = true;
                                }
                            }
                        }
                        let delivery = channel.deliver(&mut left, pool, &mut take);
                        most.fetch_max(room - left, Ordering::Relaxed);
                        if ended && delivery == Delivery::Done {
                            return;
                        }
                    }
                });
            }
        });
        assert!(lock(&pool.bursts).made <= 6, "no more bursts than were allowed");
        let (order, spare) = (lock(&channel.order), lock(&pool.bursts).spare.len());
        assert_eq!((order.opened.len(), spare, order.delivering), (0, lock(&pool.bursts).made, false));
        (delivered.into_inner().unwrap(), most.into_inner())
    }

    #[test]
    fn what_many_workers_open_is_delivered_in_the_order_in_which_it_came() {
        let (delivered, _) = carry(4, 2_000, 100, 1, 0);
        assert!(delivered.into_iter().eq(0..2_000));
    }

    /// Delivering is slower than opening, so there is always a next burst.
    #[test]
    fn who_delivers_is_let_go_however_much_the_others_open() {
        let (delivered, most) = carry(3, 600, 4, 0, 20_000);
        assert!(delivered.into_iter().eq(0..600));
        assert_eq!(most, 4, "the room was used and kept to");
    }

    #[test]
    fn an_empty_receive_takes_no_place_in_the_order() {
        let (channel, pool) = (channel(), Pool::new(Joining::Nothing, 1));
        let mut burst = pool.lend().unwrap();
        assert!(pool.lend().is_none());
        assert_eq!(channel.receive(&mut burst, |_, _| ()).1, None);
        let (_, ticket) = channel.receive(&mut burst, |_, burst| burst.arrivals.push(arrival(7)));
        channel.put(ticket.unwrap(), burst);
        let mut ports = Vec::new();
        let deliver = |burst: &mut Burst| ports.extend(burst.arrivals.drain(..).map(|a| a.from.port()));
        assert_eq!(channel.deliver(&mut 1, &pool, deliver), Delivery::Done);
        assert_eq!(ports, [7]);
    }
}
