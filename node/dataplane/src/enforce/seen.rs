//! From which outer address peers speak, for the controller: it judges conditions on the place by what it sees itself, and by this.
//!
//! An address counts once WireGuard has authenticated a packet from it. It is told of whoever may open something here, when it changes, and
//! at most once in [`AGAIN`] while packets come, because nobody keeps it over a restart of the controller; with its age, so that it is
//! not taken for news after its machine has moved. At most [`MAX_SEEN`] in one go, the rest with the next: addresses that changed first,
//! then what the controller does not know, then whoever was told of longest ago, so that nobody is left out however many peers there are.
//!
//! The controller forgets when it starts again, and hears nothing of a machine that has no permission here: everything is told anew to each
//! of its streams, and of a peer whose rules are other ones.

use std::{net::IpAddr, time::Duration};

use postern_common::{
    protocol::{MAX_SEEN, SeenPeer},
    time::{Monotonic, Now},
};

use super::{Enforcer, facts::PeerSlot};

const AGAIN: Duration = Duration::from_secs(60);

/// What was told of a peer's outer address, and when.
pub(crate) type Told = Option<(IpAddr, Monotonic)>;

/// Why a peer's address is told; what comes first is told first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    /// It is another one than what was told then.
    Changed(Monotonic),
    /// Nothing was told.
    Untold,
    /// It was told so long ago.
    Again(Monotonic),
}

impl News {
    /// Tells whether there is any about `address`, heard last at `heard`.
    fn of(told: Told, address: IpAddr, heard: Monotonic, now: Monotonic) -> Option<Self> {
        match told {
            None => Some(Self::Untold),
            Some((told, at)) if told != address => Some(Self::Changed(at)),
            Some((_, at)) => (heard > at && now.since(at) >= AGAIN).then_some(Self::Again(at)),
        }
    }
}

impl Enforcer {
    /// Takes the outer addresses that the controller has to be told of. `received` tells when a peer was heard last.
    pub(crate) fn take_seen(&mut self, received: impl Fn(PeerSlot) -> Option<Monotonic>, now: Now) -> Vec<SeenPeer> {
        let slots = self.peers.iter_mut().zip(0..).filter_map(|(peer, slot)| Some((peer.as_mut()?, PeerSlot(slot))));
        let news = slots.filter(|(peer, _)| !peer.inbound.is_empty()).filter_map(|(peer, slot)| {
            let address = peer.outer?.ip().to_canonical();
            let heard = received(slot)?;
            Some((News::of(peer.outer_told, address, heard, now.monotonic)?, address, heard, peer))
        });
        let mut news: Vec<_> = news.collect();
        news.sort_by_key(|(why, ..)| *why);
        let told = news.into_iter().take(MAX_SEEN).map(|(_, address, heard, peer)| {
            peer.outer_told = Some((address, now.monotonic));
            let age_ms = u64::try_from(now.monotonic.since(heard).as_millis()).unwrap_or(u64::MAX);
            SeenPeer { device: peer.identity.device, address, age_ms }
        });
        told.collect()
    }

    /// Tells everything anew: whoever was told has forgotten it.
    pub(crate) fn forget_told(&mut self) {
        self.peers.iter_mut().flatten().for_each(|peer| peer.outer_told = None);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use postern_common::{grant::PeerGrant, id::DeviceId};

    use super::*;
    use crate::{
        Settings,
        testing::{at, peer, permission},
    };

    const HOUR: u64 = 3_600_000;
    const PEERS: u16 = 1_000;

    fn numbered(number: u16) -> DeviceId {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&number.to_be_bytes());
        DeviceId::from_bytes(bytes)
    }

    fn grant(number: u16, services: &[&str]) -> PeerGrant<postern_common::time::Deadline> {
        let grant = peer(1, 2, vec![permission("rule", services, HOUR)], vec![])
            .map_time(&|left| left.deadline(at(0).monotonic));
        PeerGrant { device: numbered(number), addresses: vec![], ..grant }
    }

    /// A node with many peers, each heard from an address of its own.
    fn crowd() -> Enforcer {
        let mut enforcer = Enforcer::new(&Settings::default(), at(0));
        for number in 0..PEERS {
            let (slot, _) = enforcer.upsert(&grant(number, &["tcp/443"]), at(0));
            enforcer.peer_mut(slot).outer = Some(([10, 0, (number >> 8) as u8, number as u8], 51_820).into());
        }
        enforcer
    }

    fn told(enforcer: &mut Enforcer, ms: u64) -> BTreeSet<DeviceId> {
        let seen = enforcer.take_seen(|_| Some(at(ms).monotonic), at(ms));
        assert!(seen.len() <= MAX_SEEN);
        seen.into_iter().map(|seen| seen.device).collect()
    }

    /// Tells of everybody once, a portion every five seconds.
    fn round(enforcer: &mut Enforcer, from_ms: u64) -> (BTreeSet<DeviceId>, u64) {
        let portions = u64::from(PEERS).div_ceil(MAX_SEEN as u64);
        let times = (0..portions).map(|portion| from_ms + portion * 5_000);
        let all = times.flat_map(|ms| told(enforcer, ms)).collect();
        (all, from_ms + portions * 5_000)
    }

    #[test]
    fn of_a_thousand_peers_nobody_is_left_out_and_who_moves_is_told_first() {
        let mut enforcer = crowd();
        let mut ms = 1_000;
        for _ in 0..3 {
            let all;
            (all, ms) = round(&mut enforcer, ms);
            assert_eq!(all.len(), usize::from(PEERS));
        }
        let last = enforcer.slot_of(numbered(PEERS - 1)).unwrap();
        enforcer.peer_mut(last).outer = Some(([192, 0, 2, 1], 51_820).into());
        assert!(told(&mut enforcer, ms).contains(&numbered(PEERS - 1)), "hundreds are due before it");
    }

    #[test]
    fn what_the_controller_forgot_or_could_not_take_is_told_anew() {
        let mut enforcer = crowd();
        let (_, ms) = round(&mut enforcer, 1_000);
        enforcer.forget_told();
        assert_eq!(round(&mut enforcer, ms).0.len(), usize::from(PEERS));

        let mut enforcer = Enforcer::new(&Settings::default(), at(0));
        let (slot, _) = enforcer.upsert(&grant(7, &["tcp/443"]), at(0));
        enforcer.peer_mut(slot).outer = Some(([192, 0, 2, 1], 51_820).into());
        assert_eq!((told(&mut enforcer, 10).len(), told(&mut enforcer, 20).len()), (1, 0));
        enforcer.upsert(&grant(7, &["tcp/443"]), at(30));
        assert_eq!(told(&mut enforcer, 40).len(), 0, "a renewal changes nothing");
        enforcer.upsert(&grant(7, &["tcp/443", "tcp/80"]), at(50));
        assert_eq!(told(&mut enforcer, 60).len(), 1);
    }
}
