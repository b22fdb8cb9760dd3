//! What the workers of one node share, and who may use it when.
//!
//! | what | held |
//! | --- | --- |
//! | [`Shared::round`], shared | by each worker for a round: from the first packet that it looks at to the last that it has sent |
//! | [`Shared::still`], alone | for an order of the agent's: no judged packet is on its way then, so what is revoked is gone when it returns |
//! | [`Shared::plane`] | to look at packets and to judge them: under a microsecond for a super-packet; also for questions of the agent's; not to encrypt transport data, not for system calls |
//! | a channel's receiving side | while one burst is filled |
//! | `sources`, shared | for one look |
//!
//! They are taken in this order. Lanes and sending sockets are a worker's own.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use postern_dataplane::DataPlane;

use super::{
    super::{clock::Clock, path::Sources, sys, tun::Tun},
    IoCounters,
    channel::{Channel, Pool},
};

pub(super) struct Shared {
    plane: Mutex<DataPlane>,
    rounds: RwLock<()>,
    sources: RwLock<Sources>,
    pub(super) tun: Tun,
    pub(super) channels: Vec<Channel>,
    pub(super) pool: Pool,
    pub(super) clock: Arc<dyn Clock>,
    /// What each worker has counted up to its last round.
    counters: Vec<Mutex<IoCounters>>,
    /// Wakes each worker.
    wakes: Vec<Arc<OwnedFd>>,
    stopping: AtomicBool,
    /// Why the TUN cannot be read any more.
    lost: Mutex<Option<io::Error>>,
}

impl Shared {
    pub(super) fn new(
        plane: DataPlane,
        tun: Tun,
        (channels, pool): (Vec<Channel>, Pool),
        clock: Arc<dyn Clock>,
        wakes: Vec<Arc<OwnedFd>>,
    ) -> Self {
        Self {
            plane: Mutex::new(plane),
            rounds: RwLock::new(()),
            sources: RwLock::default(),
            tun,
            channels,
            pool,
            clock,
            counters: wakes.iter().map(|_| Mutex::default()).collect(),
            wakes,
            stopping: AtomicBool::new(false),
            lost: Mutex::default(),
        }
    }

    /// Begins a round; while it lasts, nobody changes the plane from outside.
    pub(super) fn round(&self) -> RwLockReadGuard<'_, ()> {
        self.rounds.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until every worker's round is over, and lets none begin.
    pub(super) fn still(&self) -> RwLockWriteGuard<'_, ()> {
        self.rounds.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn plane(&self) -> MutexGuard<'_, DataPlane> {
        self.plane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn workers(&self) -> usize {
        self.wakes.len()
    }

    pub(super) fn wake_of(&self, worker: usize) -> &OwnedFd {
        &self.wakes[worker]
    }

    /// Publishes what a worker has counted.
    pub(super) fn publish(&self, worker: usize, counters: IoCounters) {
        *self.counters[worker].lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }

    /// Adds up what all have counted.
    pub(super) fn counters(&self) -> IoCounters {
        let one = |counters: &Mutex<IoCounters>| *counters.lock().unwrap_or_else(PoisonError::into_inner);
        self.counters.iter().map(one).fold(IoCounters::default(), IoCounters::plus)
    }

    /// Ends all workers.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wakes.iter().for_each(|wake| sys::event_signal(wake.as_fd()));
    }

    /// Ends all workers because the TUN is lost.
    pub(super) fn lose(&self, error: io::Error) {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop();
    }

    /// Closes everything but the plane, and tells whether the TUN was lost.
    pub(super) fn close(self) -> (DataPlane, Option<io::Error>) {
        let lost = self.lost.into_inner().unwrap_or_else(PoisonError::into_inner);
        (self.plane.into_inner().unwrap_or_else(PoisonError::into_inner), lost)
    }

    /// Returns the local address that answers a peer.
    pub(super) fn source_for(&self, peer: &SocketAddr) -> Option<IpAddr> {
        self.sources.read().unwrap_or_else(PoisonError::into_inner).answer(peer)
    }

    /// Remembers at which local address a peer was heard.
    pub(super) fn learn_source(&self, peer: SocketAddr, local: IpAddr) {
        self.sources.write().unwrap_or_else(PoisonError::into_inner).learn(peer, local);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}
