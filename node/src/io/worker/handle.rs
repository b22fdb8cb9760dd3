//! The agent's side of the workers: questions, and orders for which all stand still; both run on the first one's thread.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use postern_common::{
    grant::VerifiedGrants, id::DeviceId, key::WireGuardPrivateKey, net::FiveTuple, protocol::MAX_FLOW_GROUPS, time::Now,
};
use postern_dataplane::{
    Applied, Behaviour, Ceiling, Counters, DataPlane, FlowStatus, InboundFlows, LocalExplanation, PeerStatus, WhoIs,
    packet::{batch::Full, join::Joining},
};
use tokio::sync::{mpsc, oneshot};

use super::{Batches, IoCounters, shared::Shared, sys};

/// Commands that may wait for the worker. Beyond it the asker waits.
pub(super) const COMMANDS: usize = 64;

/// Runs with the plane.
type Run = dyn FnOnce(&mut DataPlane, &mut Batches, &Shared, Now) + Send;

/// What runs on the worker's thread.
pub(super) enum Command {
    /// What changes what may pass: it runs when no worker is in a round.
    Order(Box<Run>),
    /// What changes nothing that may pass. Every local user may ask, so packets go on meanwhile.
    Question(Box<Run>),
    /// The end.
    ShutDown,
}

/// Tells that the worker has ended: nothing passes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the packet worker has ended")]
pub struct WorkerGone;

/// What the worker and its plane count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerStatus {
    /// The plane's counters.
    pub plane: Counters,
    /// The shell's counters.
    pub io: IoCounters,
    /// How many threads handle packets.
    pub workers: usize,
    /// What is joined for the TUN.
    pub joining: Joining,
    /// Whether packets are sealed and opened several at once.
    pub takes_several: bool,
    /// How many peers there are.
    pub peers: usize,
    /// How many flows live.
    pub flows: usize,
}

/// Asks and orders the worker. Clones speak to the same one.
#[derive(Debug, Clone)]
pub struct WorkerHandle {
    commands: mpsc::Sender<Command>,
    wake: Arc<Waker>,
    port: u16,
    interface: Arc<str>,
}

/// Wakes the worker; once more when the last handle goes, so that it notices.
#[derive(Debug)]
struct Waker(Arc<OwnedFd>);

impl Waker {
    fn wake(&self) {
        sys::event_signal(self.0.as_fd());
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        self.wake();
    }
}

impl WorkerHandle {
    pub(super) fn new(commands: mpsc::Sender<Command>, wake: Arc<OwnedFd>, port: u16, interface: String) -> Self {
        Self { commands, wake: Arc::new(Waker(wake)), port, interface: interface.into() }
    }

    /// Returns the UDP port of the WireGuard sockets.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Returns the TUN interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Enforces a verified document; when this returns, it is enforced.
    ///
    /// # Errors
    /// [`WorkerGone`], as for every question here.
    pub async fn apply(&self, grants: VerifiedGrants) -> Result<Applied, WorkerGone> {
        self.order(|plane, batches, _shared, now| plane.apply(grants, now, &mut batches.out())).await
    }

    /// Gives the plane this node's private keys, newest first; those not named are wiped with their sessions.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub async fn set_local_keys(&self, keys: Vec<WireGuardPrivateKey>) -> Result<(), WorkerGone> {
        self.order(move |plane, _batches, _shared, now| plane.set_local_keys(&keys, now)).await
    }

    /// Sets the owner's upper bound on what is let in.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub async fn set_ceiling(&self, ceiling: Ceiling) -> Result<(), WorkerGone> {
        self.order(move |plane, batches, _shared, now| plane.set_ceiling(ceiling, now, &mut batches.out())).await
    }

    /// Counts the live flows that these peers have opened to this node.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub async fn inbound_flows(&self, peers: Vec<DeviceId>) -> Result<InboundFlows, WorkerGone> {
        self.ask(move |plane, _batches, _shared, now| plane.inbound_flows(&peers, MAX_FLOW_GROUPS, now)).await
    }

    /// Says how much of what is limited was used lately, and who scans; to a controller that is `new`, from where every peer speaks too.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub async fn take_behaviour(&self, new: bool) -> Result<Behaviour, WorkerGone> {
        let take = move |plane: &mut DataPlane, now| {
            if new {
                plane.forget_told();
            }
            plane.take_behaviour(now)
        };
        self.ask(move |plane, _batches, _shared, now| take(plane, now)).await
    }

    /// Returns every counter.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub async fn status(&self) -> Result<WorkerStatus, WorkerGone> {
        self.ask(|plane, _batches, shared, _now| status(plane, shared)).await
    }

    /// Lists the live flows.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub async fn flows(&self) -> Result<Vec<FlowStatus>, WorkerGone> {
        self.ask(|plane, _batches, _shared, _now| plane.flows()).await
    }

    /// Lists the peers.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub async fn peers(&self) -> Result<Vec<PeerStatus>, WorkerGone> {
        self.ask(|plane, _batches, _shared, now| plane.peers(now)).await
    }

    /// Tells who is behind an inner address and port.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub async fn whois(&self, remote: SocketAddr) -> Result<Option<WhoIs>, WorkerGone> {
        self.ask(move |plane, _batches, _shared, _now| plane.whois(remote)).await
    }

    /// Tells whether a flow may be opened now, and under what.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub async fn explain(&self, flow: FiveTuple) -> Result<LocalExplanation, WorkerGone> {
        self.ask(move |plane, _batches, _shared, now| plane.explain(flow, now)).await
    }

    /// Lists the peers with which packets were exchanged lately, and where they are.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub async fn paths_in_use(&self) -> Result<Vec<(DeviceId, SocketAddr)>, WorkerGone> {
        self.ask(|plane, _batches, _shared, now| plane.paths_in_use(now)).await
    }

    /// Tells how long an inner packet may be, in bytes, on the way to each of these peers.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub async fn set_path_mtus(&self, paths: Vec<(DeviceId, SocketAddr, u16)>) -> Result<(), WorkerGone> {
        self.ask(move |plane, _batches, _shared, _now| {
            paths.iter().for_each(|(device, endpoint, mtu)| plane.set_path_mtu(*device, *endpoint, *mtu));
        })
        .await
    }

    /// Sets how often peers that may have to reach this node are sent a keepalive; `None` ends that.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub async fn set_keepalive(&self, every: Option<Duration>) -> Result<(), WorkerGone> {
        self.ask(move |plane, _batches, _shared, _now| plane.set_keepalive(every)).await
    }

    /// Sends bytes from the WireGuard socket of the address's family: the controller learns the node's outer address by it. As
    /// with any datagram, nobody promises that it arrives.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub async fn send_probe(&self, to: SocketAddr, bytes: Vec<u8>) -> Result<(), WorkerGone> {
        self.ask(move |_plane, batches, _shared, _now| match batches.udp.push(to, &bytes) {
            Ok(()) | Err(Full) => {} // a full batch has counted it
        })
        .await
    }

    /// Ends every flow with a record, and the worker. The channel of events closes after the last record.
    ///
    /// # Errors
    /// [`WorkerGone`] if it has ended already.
    pub async fn shut_down(&self) -> Result<(), WorkerGone> {
        self.commands.send(Command::ShutDown).await.map_err(|_| WorkerGone)?;
        self.wake.wake();
        self.commands.closed().await;
        Ok(())
    }

    /// As [`WorkerHandle::apply`], for a thread outside any runtime.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn apply_blocking(&self, grants: VerifiedGrants) -> Result<Applied, WorkerGone> {
        self.order_blocking(|plane, batches, _shared, now| plane.apply(grants, now, &mut batches.out()))
    }

    /// As [`WorkerHandle::set_local_keys`], for a thread outside any runtime.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn set_local_keys_blocking(&self, keys: Vec<WireGuardPrivateKey>) -> Result<(), WorkerGone> {
        self.order_blocking(move |plane, _batches, _shared, now| plane.set_local_keys(&keys, now))
    }

    /// As [`WorkerHandle::status`], for a thread outside any runtime.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn status_blocking(&self) -> Result<WorkerStatus, WorkerGone> {
        self.ask_blocking(|plane, _batches, shared, _now| status(plane, shared))
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut DataPlane, &mut Batches, &Shared, Now) -> T + Send + 'static,
    ) -> Result<T, WorkerGone> {
        let (run, answer) = prepare(question);
        self.give(Command::Question(run), answer).await
    }

    async fn order<T: Send + 'static>(
        &self,
        order: impl FnOnce(&mut DataPlane, &mut Batches, &Shared, Now) -> T + Send + 'static,
    ) -> Result<T, WorkerGone> {
        let (run, answer) = prepare(order);
        self.give(Command::Order(run), answer).await
    }

    async fn give<T>(&self, command: Command, answer: oneshot::Receiver<T>) -> Result<T, WorkerGone> {
        self.commands.send(command).await.map_err(|_| WorkerGone)?;
        self.wake.wake();
        answer.await.map_err(|_| WorkerGone)
    }

    fn ask_blocking<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut DataPlane, &mut Batches, &Shared, Now) -> T + Send + 'static,
    ) -> Result<T, WorkerGone> {
        let (run, answer) = prepare(question);
        self.give_blocking(Command::Question(run), answer)
    }

    fn order_blocking<T: Send + 'static>(
        &self,
        order: impl FnOnce(&mut DataPlane, &mut Batches, &Shared, Now) -> T + Send + 'static,
    ) -> Result<T, WorkerGone> {
        let (run, answer) = prepare(order);
        self.give_blocking(Command::Order(run), answer)
    }

    fn give_blocking<T>(&self, command: Command, answer: oneshot::Receiver<T>) -> Result<T, WorkerGone> {
        self.commands.blocking_send(command).map_err(|_| WorkerGone)?;
        self.wake.wake();
        answer.blocking_recv().map_err(|_| WorkerGone)
    }
}

fn prepare<T: Send + 'static>(
    run: impl FnOnce(&mut DataPlane, &mut Batches, &Shared, Now) -> T + Send + 'static,
) -> (Box<Run>, oneshot::Receiver<T>) {
    let (answer, receiver) = oneshot::channel();
    let run = Box::new(move |plane: &mut DataPlane, batches: &mut Batches, shared: &Shared, now: Now| {
        let _nobody_waits_any_more = answer.send(run(plane, batches, shared, now));
    });
    (run, receiver)
}

/// Counts and copies no list: every local user may ask, and packets wait meanwhile.
fn status(plane: &DataPlane, shared: &Shared) -> WorkerStatus {
    WorkerStatus {
        plane: plane.counters().clone(),
        io: shared.counters(),
        workers: shared.workers(),
        joining: shared.tun.joining(),
        takes_several: plane.takes_several(),
        peers: plane.peer_count(),
        flows: plane.flow_count(),
    }
}
