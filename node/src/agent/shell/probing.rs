//! Probes from the WireGuard socket: the controller sees this machine's outer address by them, and a NAT keeps its mapping.

use std::{net::SocketAddr, time::Duration};

use tokio::time::Instant;

use super::Agent;
use crate::agent::core::ProbeOrder;

/// Probes follow each other this quickly at first, in case one is lost, ...
const PROBE_BURST: Duration = Duration::from_secs(1);
/// ... and then this slowly: a NAT's mapping lives 30 s at least nearly everywhere.
const PROBE_INTERVAL: Duration = Duration::from_secs(25);
const PROBES_IN_BURST: u64 = 3;

/// The probes of the present stream.
pub(super) struct Probing {
    pub(super) order: ProbeOrder,
    pub(super) sequence: u64,
    pub(super) next: Instant,
}

impl Agent {
    pub(super) async fn send_probe(&mut self) {
        let (Some(probe), Some(plane), Some((controller, _))) = (&mut self.probe, &self.plane, self.path) else {
            self.probe = None;
            return;
        };
        probe.sequence += 1;
        let wait = if probe.sequence < PROBES_IN_BURST { PROBE_BURST } else { PROBE_INTERVAL };
        probe.next = Instant::now() + wait;
        let datagram = probe.order.key.seal(probe.order.stream, probe.sequence);
        let to = SocketAddr::new(controller.ip(), probe.order.port);
        let _ = plane.worker.send_probe(to, datagram.to_vec()).await; // a worker that has ended is told by its events
    }
}
