//! Keeps the worker told about the paths to its peers: how long a packet may be on each, and whether they need keepalives.
//!
//! Once a second the worker lists the paths in use; the kernel is asked what it knows of each, and the worker is told
//! what changed. The kernel learns a narrow path from the first long packet that a router refused, so a path
//! is wrong for a second at most, and what is sent meanwhile goes in fragments of the outer datagram.
//!
//! Rejected: reading the sockets' error queues in the packet worker. It would know at once instead of within a second, and pay for it
//! with a queue that anybody can fill by forged ICMP, on the thread that carries packets.

use std::{collections::HashMap, net::SocketAddr, time::Duration};

use postern_common::id::DeviceId;

use super::Agent;
use crate::{agent::core::identity::Login, config::Keepalive, io::path};

/// How often keepalives are sent where they are needed: nearly no NAT forgets within 30 s.
const KEEPALIVE: Duration = Duration::from_secs(25);

/// What a worker was told.
#[derive(Debug, Default)]
pub struct Paths {
    known: HashMap<DeviceId, (SocketAddr, u16)>,
    keepalive: Option<Duration>,
}

impl Paths {
    /// Takes the paths in use and returns what is news. `read` asks the kernel; what it does not know stays as it was.
    fn follow(
        &mut self,
        in_use: Vec<(DeviceId, SocketAddr)>,
        read: impl Fn(SocketAddr) -> Option<u16>,
    ) -> Vec<(DeviceId, SocketAddr, u16)> {
        let mut asked: HashMap<SocketAddr, Option<u16>> = HashMap::new();
        let mut news = Vec::new();
        let before = std::mem::take(&mut self.known);
        for (device, endpoint) in in_use {
            let known = before.get(&device).copied();
            let Some(mtu) = *asked.entry(endpoint).or_insert_with(|| read(endpoint)) else { continue };
            if known != Some((endpoint, mtu)) {
                news.push((device, endpoint, mtu));
            }
            self.known.insert(device, (endpoint, mtu));
        }
        news
    }
}

impl Agent {
    /// Brings the worker up to date. Call it every second.
    pub(super) async fn follow_paths(&mut self) {
        let keepalive = self.wanted_keepalive();
        let Some(plane) = &mut self.plane else { return };
        if plane.paths.keepalive != keepalive && plane.worker.set_keepalive(keepalive).await.is_ok() {
            plane.paths.keepalive = keepalive;
        }
        let Ok(in_use) = plane.worker.paths_in_use().await else { return }; // its end is told by its events
        let news = plane.paths.follow(in_use, |peer| path::path_mtu(peer).ok());
        if !news.is_empty() {
            tracing::debug!(?news, "paths take packets of another length");
            let _ = plane.worker.set_path_mtus(news).await;
        }
    }

    /// A person's machine is somewhere behind a NAT or a firewall that keeps state, more often than not, and meets few
    /// peers. A server is reached by many: only if it was seen at an address that it does not have.
    fn wanted_keepalive(&self) -> Option<Duration> {
        match self.config.keepalive {
            Keepalive::Off => None,
            Keepalive::Every(every) => Some(every),
            Keepalive::Auto => {
                let login = self.core.identity().enrolment.as_ref().map(|enrolment| &enrolment.login);
                let person = matches!(login, Some(Login::Session { .. }));
                let translated = self.core.observed().is_some_and(|seen| !self.addresses.contains(&seen.ip()));
                (person || translated).then_some(KEEPALIVE)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_told_and_a_path_that_was_not_used_is_told_again() {
        let device = |n: u8| DeviceId::from_bytes([n; 16]);
        let at = |port: u16| SocketAddr::from(([192, 0, 2, 1], port));
        let mut paths = Paths::default();
        let wide = |_| Some(1_440);
        let narrow = |peer: SocketAddr| Some(if peer == at(2) { 1_240 } else { 1_440 });
        let both = vec![(device(1), at(1)), (device(2), at(2))];
        assert_eq!(paths.follow(both.clone(), wide).len(), 2);
        assert!(paths.follow(both.clone(), wide).is_empty());
        assert_eq!(paths.follow(both.clone(), narrow), vec![(device(2), at(2), 1_240)]);
        assert_eq!(paths.follow(vec![(device(1), at(3))], wide), vec![(device(1), at(3), 1_440)]);
        assert_eq!(paths.follow(both, narrow).len(), 2);
        assert!(paths.follow(vec![(device(1), at(1))], |_| None).is_empty());
    }
}
