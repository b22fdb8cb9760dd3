//! Tells when somebody may have taken away what the node put on its machine: links, addresses, routes, nftables rules.
//!
//! The kernel's notices are only a reason to look: what they say is not read. A notice that was lost is made good by the look that
//! follows every few seconds anyway.

use std::os::fd::{AsFd, OwnedFd};

use tokio::io::unix::AsyncFd;

use super::net::{AddressChanges, NetError};
use crate::io::sys;

/// The multicast group of nftables on a netfilter netlink socket (`NFNLGRP_NFTABLES`).
const NFTABLES_GROUP: i32 = 7;

/// Watches the machine in the network namespace of the thread that made it.
#[derive(Debug)]
pub struct MachineChanges {
    network: AddressChanges,
    /// Absent where the kernel has no nftables: the guard itself says so.
    ruleset: Option<AsyncFd<OwnedFd>>,
}

impl MachineChanges {
    /// Begins to watch. Needs a tokio runtime.
    ///
    /// # Errors
    /// Fails when the kernel gives no netlink socket.
    pub fn watch() -> Result<Self, NetError> {
        let ruleset = sys::open_netlink(libc::NETLINK_NETFILTER, NFTABLES_GROUP);
        Ok(Self { network: AddressChanges::watch()?, ruleset: ruleset.and_then(sys::await_readable).ok() })
    }

    /// Waits for a change. Returns false when the watch has broken and must be made anew. Cancel-safe.
    pub async fn changed(&mut self) -> bool {
        tokio::select! {
            watching = self.network.changed() => watching,
            watching = ruleset_changed(self.ruleset.as_ref()) => watching,
        }
    }
}

async fn ruleset_changed(socket: Option<&AsyncFd<OwnedFd>>) -> bool {
    let Some(socket) = socket else { return std::future::pending().await };
    match socket.readable().await {
        Ok(mut ready) => {
            let drained = sys::drain_netlink(socket.get_ref().as_fd());
            ready.clear_ready();
            drained.is_ok()
        }
        Err(_) => false,
    }
}
