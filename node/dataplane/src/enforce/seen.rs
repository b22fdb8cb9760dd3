//! From which outer address peers speak, for the controller: it judges conditions on the place by what it sees itself, and by this.
//!
//! An address counts once WireGuard has authenticated a packet from it. It is told of whoever may open something here, when it changes, and
//! at most once in [`AGAIN`] while packets come, because nobody keeps it over a restart of the controller; with its age, so that it is
//! not taken for news after its machine has moved. At most [`MAX_SEEN`] in one go, the rest with the next.

use std::{net::IpAddr, time::Duration};

use postern_common::{
    protocol::{MAX_SEEN, SeenPeer},
    time::{Monotonic, Now},
};

use super::{Enforcer, facts::PeerSlot};

const AGAIN: Duration = Duration::from_secs(60);

/// What was told of a peer's outer address, and when.
pub(crate) type Told = Option<(IpAddr, Monotonic)>;

impl Enforcer {
    /// Takes the outer addresses that the controller has to be told of. `received` tells when a peer was heard last.
    pub(crate) fn take_seen(&mut self, received: impl Fn(PeerSlot) -> Option<Monotonic>, now: Now) -> Vec<SeenPeer> {
        let slots = self.peers.iter_mut().zip(0..).filter_map(|(peer, slot)| Some((peer.as_mut()?, PeerSlot(slot))));
        let news = slots.filter_map(|(peer, slot)| {
            let address = peer.outer?.ip().to_canonical();
            let heard = received(slot)?;
            let is_told = peer
                .outer_told
                .is_some_and(|(told, at)| told == address && (heard <= at || now.monotonic.since(at) < AGAIN));
            if peer.inbound.is_empty() || is_told {
                return None;
            }
            peer.outer_told = Some((address, now.monotonic));
            let age_ms = u64::try_from(now.monotonic.since(heard).as_millis()).unwrap_or(u64::MAX);
            Some(SeenPeer { device: peer.identity.device, address, age_ms })
        });
        news.take(MAX_SEEN).collect()
    }
}
