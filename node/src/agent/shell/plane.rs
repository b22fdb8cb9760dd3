//! The packet worker as the agent keeps it: started when the node is to be up, replaced by an empty one when every door
//! must close at once, removed with its interface by `down`.

use std::sync::Arc;

use anyhow::Context;
use postern_common::key::WireGuardPrivateKey;
use postern_dataplane::{DataPlane, Settings, Ways};
use tokio::sync::mpsc;

use super::{paths::Paths, refusals::LastMinute};
use crate::{
    config::{Cipher, Mtu, NodeConfig, Offload, Workers},
    host::privileges,
    io::{
        clock::Clock,
        path::DEFAULT_INNER_MTU,
        tun::{Offloads, Tun},
        udp::{Segmentation, UdpSockets},
        worker::{self, WorkerEvent, WorkerHandle},
    },
};

/// A running worker.
#[derive(Debug)]
pub struct Plane {
    /// Asks and orders it.
    pub worker: WorkerHandle,
    /// What it tells.
    pub events: mpsc::Receiver<WorkerEvent>,
    /// What it was told of paths.
    pub paths: Paths,
    /// What it refused lately.
    pub refusals: LastMinute,
}

impl Plane {
    /// Starts a worker that lets nothing pass yet.
    ///
    /// # Errors
    /// What is missing, in words for the person at the machine: privilege, `/dev/net/tun`, a free UDP port.
    pub async fn start(
        config: &NodeConfig,
        keys: Vec<WireGuardPrivateKey>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, anyhow::Error> {
        privileges::check()?;
        let (segmentation, offloads) = match config.packets.offload {
            Offload::Auto => (Segmentation::Offloaded, Offloads::All),
            Offload::Off => (Segmentation::Off, Offloads::None),
        };
        let sockets = UdpSockets::bind(config.listen_port, segmentation)?;
        let tun = Tun::open(&config.interface, offloads)?;
        let mtu = match config.mtu {
            Mtu::Auto => DEFAULT_INNER_MTU,
            Mtu::Fixed(mtu) => mtu,
        };
        let cipher = match config.packets.cipher {
            Cipher::Auto => Ways::Fastest,
            Cipher::OneByOne => Ways::PacketByPacket,
        };
        let workers = match config.packets.workers {
            Workers::Auto => worker::default_workers(),
            Workers::Fixed(workers) => workers,
        };
        let mut process = [0; 8];
        getrandom::fill(&mut process).expect("the operating system has random bytes once it has started");
        let process = u64::from_ne_bytes(process);
        let settings = Settings { mtu, cipher, process, ..Settings::default() };
        let plane = DataPlane::new(settings, clock.now());
        let (worker, events) = worker::spawn(plane, tun, sockets, clock, workers)?;
        worker.set_ceiling(config.ceiling()).await?;
        worker.set_local_keys(keys).await?;
        Ok(Self { worker, events, paths: Paths::default(), refusals: LastMinute::default() })
    }

    /// Ends the worker; its last records are still in `events`. The interface stays.
    pub async fn stop(self) -> Vec<WorkerEvent> {
        let Self { worker, mut events, paths: _, refusals: _ } = self;
        let mut last = Vec::new();
        let stopping = async {
            let _ = worker.shut_down().await; // it has ended already: as wanted
        };
        tokio::pin!(stopping);
        loop {
            tokio::select! {
                () = &mut stopping => break,
                Some(event) = events.recv() => last.push(event),
            }
        }
        while let Ok(event) = events.try_recv() {
            last.push(event);
        }
        last
    }
}

/// Removes the tunnel's interface with its addresses and routes: `down`.
///
/// # Errors
/// If the interface is there and cannot be removed.
pub fn remove_interface(name: &str) -> Result<(), anyhow::Error> {
    // Not /sys/class/net: in a container it may show another network namespace's interfaces.
    let interfaces = std::fs::read_to_string("/proc/self/net/dev").context("cannot list the network interfaces")?;
    if !interfaces.lines().any(|line| line.trim_start().split(':').next() == Some(name)) {
        return Ok(());
    }
    Ok(Tun::open(name, Offloads::default())?.remove()?)
}
