//! Keepalives: a datagram to each peer that must find the way back to a node behind a NAT or a stateful firewall.
//!
//! Such a box forgets a UDP mapping within 30 s in the worst case (RFC 4787 §4.3 asks for two minutes). A peer that speaks first is not
//! heard any more then: a server that may open something here, or one that answers late on an idle connection. So a
//! node that is told to keeps a session, and the mapping with it, with each peer that may open flows here or has live
//! ones; a peer without any living permission is sent nothing.
//!
//! Bound: [`MAX_KEPT`] peers, in the order of their places. What it costs is a datagram of 32 bytes in each interval and a handshake
//! every two minutes for each, on both ends. Rejected: every peer, as WireGuard's PersistentKeepalive would; a server with
//! thousands of them would spend its time on handshakes that nobody needs.

use std::time::Duration;

use postern_common::time::{Monotonic, Now};

use super::{DataPlane, Out};
use crate::wireguard::Tunnels;

/// The most peers that are sent keepalives.
const MAX_KEPT: usize = 256;
/// How often is looked who needs one: the most by which a keepalive is late.
const LOOK: Duration = Duration::from_secs(1);

/// Whether keepalives are sent, and when is looked next.
#[derive(Debug, Default)]
pub(super) struct Keepalives {
    every: Option<Duration>,
    due: Monotonic,
}

impl Keepalives {
    pub(super) fn poll_timeout(&self) -> Monotonic {
        self.every.map_or(Monotonic::NEVER, |_| self.due)
    }
}

impl<W: Tunnels> DataPlane<W> {
    /// Sends a keepalive to each peer that may have to reach this node once nothing was sent to it for so long; `None`
    /// ends that.
    pub fn set_keepalive(&mut self, every: Option<Duration>) {
        self.keepalives = Keepalives { every, due: Monotonic::default() };
    }

    pub(super) fn keep_alive(&mut self, now: Now, out: &mut Out<'_>) {
        let Some(every) = self.keepalives.every.filter(|_| self.keepalives.due <= now.monotonic) else { return };
        self.keepalives.due = now.monotonic.saturating_add(LOOK);
        let enforcer = &self.enforcer;
        let needs = |slot: &_| {
            enforcer.peer_if_any(*slot).is_some_and(|peer| {
                let called = peer.inbound.deadlines().any(|until| !until.has_passed(now));
                called || (enforcer.flows_of(*slot) > 0 && peer.is_entitled(now))
            })
        };
        let kept: Vec<_> = self.enforcer.slots().into_iter().filter(needs).take(MAX_KEPT).collect();
        for slot in kept {
            self.links.keep_alive(slot, every, now.monotonic, out.udp);
        }
    }
}
