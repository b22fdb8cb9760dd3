//! Every tunnel of this node: which peer it belongs to, which message is meant for it, when it needs attention.
//!
//! Tunnels are made when they are first needed, so a thousand peers that are silent cost neither key agreements nor
//! timers. A tunnel is ticked four times a second while it is in use or asks for a session, once a minute while it
//! only holds one, and then no more.
//!
//! Bounds: pairs in all ([`MAX_PAIRS`], 16 bits of the index; 8 more bits are drawn, so that a stale index does not
//! meet a new tunnel), waiting packets for each peer and their bytes in all ([`Settings`]).

mod receiving;
mod sending;
mod timers;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use postern_common::{
    grant::KeyPair,
    id::DeviceId,
    key::{WireGuardPrivateKey, WireGuardPublicKey},
    time::Monotonic,
};

pub(crate) use self::{
    receiving::{Heard, Opened},
    sending::Route,
};
use super::{Tunnels, endpoint::Endpoint};
use crate::{
    counters::Counters,
    enforce::PeerSlot,
    packet::{batch::UdpBatch, offload::VirtioHeader},
    settings::Settings,
    status::PlaneEvent,
};

/// The most pairs of keys of all peers together.
const MAX_PAIRS: usize = 1 << 16;
/// The most pairs of one peer: two keys of each end while both rotate, twice over.
const MAX_PAIRS_OF_PEER: usize = 8;
/// How long a tunnel counts as in use after its last packet.
const IN_USE: Duration = Duration::from_secs(30);
/// How often a tunnel in use is ticked.
const TICK: Duration = Duration::from_millis(250);
/// How often a tunnel is ticked that only holds a session.
const IDLE_TICK: Duration = Duration::from_secs(60);
/// How long after its last session was confirmed a tunnel holds nothing any more (whitepaper §6.3: three times
/// Reject-After-Time, and a little).
const SPENT: Duration = Duration::from_secs(545);
/// The least time between two initiations of one key that are answered.
const INITIATION_INTERVAL: Duration = Duration::from_millis(20);
/// How long the newest pair may try before the next one tries beside it (whitepaper §6.4, Rekey-Timeout).
const NEXT_PAIR_AFTER: Duration = Duration::from_secs(5);
/// What every IPv4 host takes whole (RFC 791 §3.1), and what IPv6 takes at least on every link (RFC 8200 §5).
const LEAST_IPV4_MTU: u16 = 576;
const LEAST_IPV6_MTU: u16 = 1_280;
/// When an attempt is over in any case (whitepaper §6.4, Rekey-Attempt-Time, and a little).
const ATTEMPT_OVER: Duration = Duration::from_secs(95);

/// The place of a pair in [`Links`], without its drawn bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PairSlot(u16);

#[derive(Debug)]
struct Pair<T> {
    peer: PeerSlot,
    keys: KeyPair,
    index: u32,
    tunnel: Option<T>,
    /// The session index of a response that we gave: its first message confirms it.
    unconfirmed: Option<u32>,
    confirmed: Option<Monotonic>,
    was_confirmed: bool,
    initiated: Option<Monotonic>,
    last_initiation_heard: Option<Monotonic>,
    last_used: Monotonic,
    last_tick: Monotonic,
    next_tick: Monotonic,
    /// Begin a handshake at the next tick, although no packet waits.
    greet: bool,
}

#[derive(Debug)]
struct Peer {
    device: DeviceId,
    /// Newest first.
    pairs: Vec<PairSlot>,
    /// What the grant lists: also pairs whose local key this node does not have yet.
    wanted: Vec<KeyPair>,
    endpoint: Endpoint,
    waiting: VecDeque<Waiting>,
    /// Whether any permission lives. A peer without one has no tunnels and is answered nothing.
    entitled: bool,
    last_received: Option<Monotonic>,
    last_sent: Option<Monotonic>,
    /// The longest inner packet in bytes that the path to the peer takes whole, once it is known.
    path_mtu: Option<u16>,
    bytes_out: u64,
    bytes_in: u64,
}

/// A packet that waits for a handshake. It is judged again when it is sealed.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) header: VirtioHeader,
    pub(crate) packet: Box<[u8]>,
    until: Monotonic,
}

/// The state of a peer's tunnels, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LinkStatus {
    pub(crate) endpoint: Option<SocketAddr>,
    pub(crate) session_since: Option<Monotonic>,
    pub(crate) last_received: Option<Monotonic>,
    pub(crate) bytes_out: u64,
    pub(crate) bytes_in: u64,
}

/// All tunnels.
#[derive(Debug)]
pub(crate) struct Links<W: Tunnels> {
    tunnels: W,
    peers: Vec<Option<Peer>>,
    pairs: Vec<Option<Pair<W::Tunnel>>>,
    free: Vec<PairSlot>,
    by_keys: HashMap<(WireGuardPublicKey, WireGuardPublicKey), PairSlot>,
    ticks: BTreeSet<(Monotonic, PairSlot)>,
    /// Peers for which packets wait.
    waiting: BTreeSet<PeerSlot>,
    waiting_bytes: usize,
    events: VecDeque<PlaneEvent>,
    greetings_left: usize,
    greet_until: Monotonic,
    settings: Settings,
    pub(crate) counters: LinkCounters,
}

/// What the tunnels count by themselves, to be added to [`Counters`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LinkCounters {
    pub(crate) begun: u64,
    pub(crate) done: u64,
    pub(crate) cookies: u64,
    pub(crate) keepalives: u64,
    pub(crate) events_dropped: u64,
    pub(crate) pending_dropped: u64,
    pub(crate) no_endpoint: u64,
    pub(crate) udp_full: u64,
}

impl<W: Tunnels> Links<W> {
    pub(crate) fn new(tunnels: W, settings: &Settings, now: Monotonic) -> Self {
        Self {
            tunnels,
            peers: Vec::new(),
            pairs: Vec::new(),
            free: Vec::new(),
            by_keys: HashMap::new(),
            ticks: BTreeSet::new(),
            waiting: BTreeSet::new(),
            waiting_bytes: 0,
            events: VecDeque::new(),
            greetings_left: settings.greetings,
            greet_until: now.saturating_add(settings.settle),
            settings: settings.clone(),
            counters: LinkCounters::default(),
        }
    }

    /// Takes this node's keys. Pairs of keys that are not named any more lose their sessions at once.
    pub(crate) fn set_local_keys(&mut self, keys: &[WireGuardPrivateKey], now: Monotonic) {
        self.tunnels.set_local_keys(keys, self.settings.handshakes_per_second);
        for slot in 0..self.peers.len() {
            self.sync_pairs(PeerSlot(slot as u32), now);
        }
    }

    /// Takes a peer's pairs and candidates. Pairs that stay keep their sessions; pairs that go lose them at once.
    pub(crate) fn upsert(
        &mut self,
        slot: PeerSlot,
        device: DeviceId,
        pairs: &[KeyPair],
        candidates: &[SocketAddr],
        now: Monotonic,
    ) {
        let place = slot.0 as usize;
        if self.peers.len() <= place {
            self.peers.resize_with(place + 1, || None);
        }
        let is_new = self.peers[place].is_none();
        let peer = self.peers[place].get_or_insert_with(|| Peer {
            device,
            pairs: Vec::new(),
            wanted: Vec::new(),
            endpoint: Endpoint::default(),
            waiting: VecDeque::new(),
            entitled: true,
            last_received: None,
            last_sent: None,
            path_mtu: None,
            bytes_out: 0,
            bytes_in: 0,
        });
        peer.endpoint.set_candidates(candidates);
        if is_new || peer.wanted != pairs {
            peer.wanted = pairs[..pairs.len().min(MAX_PAIRS_OF_PEER)].to_vec();
            self.sync_pairs(slot, now);
        }
        if is_new && !candidates.is_empty() && now < self.greet_until && self.greetings_left > 0 {
            self.greetings_left -= 1;
            self.greet_newest(slot, now);
        }
    }

    /// Forgets a peer: its sessions are destroyed in this call.
    pub(crate) fn remove(&mut self, slot: PeerSlot) {
        let Some(peer) = self.peers.get_mut(slot.0 as usize).and_then(Option::take) else { return };
        for pair in peer.pairs {
            self.remove_pair(pair);
        }
        self.drop_waiting(slot, peer.waiting);
    }

    /// Notes whether any permission of the peer lives. Without one its sessions are destroyed, and it is answered
    /// nothing.
    pub(crate) fn set_entitled(&mut self, slot: PeerSlot, entitled: bool) {
        let Some(peer) = self.peer_mut(slot) else { return };
        if std::mem::replace(&mut peer.entitled, entitled) == entitled || entitled {
            return;
        }
        let pairs = peer.pairs.clone();
        let waiting = std::mem::take(&mut peer.waiting);
        for pair in pairs {
            self.close_pair(pair);
        }
        self.drop_waiting(slot, waiting);
    }

    /// Lists the peers with which packets were exchanged lately, and where they are: the paths in use.
    pub(crate) fn paths_in_use(&self, now: Monotonic) -> impl Iterator<Item = (DeviceId, SocketAddr)> + '_ {
        let used = move |slot: &PairSlot| {
            self.pair_if_any(*slot).is_some_and(|pair| pair.confirmed.is_some() && now.since(pair.last_used) < IN_USE)
        };
        let in_use = move |peer: &&Peer| peer.pairs.iter().any(used);
        let path = |peer: &Peer| Some((peer.device, peer.endpoint.current()?));
        self.peers.iter().flatten().filter(in_use).filter_map(path)
    }

    /// Notes how long an inner packet may be on the way to a peer, if the peer is still at `endpoint`.
    pub(crate) fn set_path_mtu(&mut self, slot: PeerSlot, endpoint: SocketAddr, mtu: u16) {
        if let Some(peer) = self.peer_mut(slot).filter(|peer| peer.endpoint.current() == Some(endpoint)) {
            peer.path_mtu = Some(mtu);
        }
    }

    /// Returns how long an inner packet of a family may be on the way to a peer, as far as is known. Never less than the
    /// family must take: a longer outer datagram is then fragmented.
    pub(crate) fn path_mtu(&self, slot: PeerSlot, is_ipv4: bool) -> Option<u16> {
        let least = if is_ipv4 { LEAST_IPV4_MTU } else { LEAST_IPV6_MTU };
        self.peers.get(slot.0 as usize)?.as_ref()?.path_mtu.map(|mtu| mtu.max(least))
    }

    /// Tells whether an event waits.
    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Hands over an event.
    pub(crate) fn pop_event(&mut self) -> Option<PlaneEvent> {
        self.events.pop_front()
    }

    /// Tells when something was last received from a peer.
    pub(crate) fn last_received(&self, slot: PeerSlot) -> Option<Monotonic> {
        self.peers.get(slot.0 as usize)?.as_ref()?.last_received
    }

    /// Returns the state of a peer's tunnels.
    pub(crate) fn status(&self, slot: PeerSlot, now: Monotonic) -> Option<LinkStatus> {
        let peer = self.peers.get(slot.0 as usize)?.as_ref()?;
        let live = |slot: &PairSlot| {
            let pair = self.pairs[usize::from(slot.0)].as_ref()?;
            pair.tunnel.as_ref().filter(|tunnel| super::Tunnel::is_ready(*tunnel, now)).and(pair.confirmed)
        };
        Some(LinkStatus {
            endpoint: peer.endpoint.current(),
            session_since: peer.pairs.iter().filter_map(live).max(),
            last_received: peer.last_received,
            bytes_out: peer.bytes_out,
            bytes_in: peer.bytes_in,
        })
    }

    /// Adds what was counted here.
    pub(crate) fn drain_counters(&mut self, counters: &mut Counters) {
        let LinkCounters { begun, done, cookies, keepalives, events_dropped, pending_dropped, no_endpoint, udp_full } =
            std::mem::take(&mut self.counters);
        counters.handshakes_begun += begun;
        counters.handshakes_done += done;
        counters.cookies_sent += cookies;
        counters.keepalives += keepalives;
        counters.events_dropped += events_dropped;
        counters.drop_many(crate::DropReason::Pending, pending_dropped);
        counters.drop_many(crate::DropReason::NoEndpoint, no_endpoint);
        counters.drop_many(crate::DropReason::UdpBatchFull, udp_full);
    }

    fn sync_pairs(&mut self, slot: PeerSlot, now: Monotonic) {
        let Some(peer) = self.peers.get_mut(slot.0 as usize).and_then(Option::as_mut) else { return };
        let wanted: Vec<KeyPair> = peer.wanted.clone();
        let present = std::mem::take(&mut peer.pairs);
        let had_session = present.iter().any(|pair| self.pair_if_any(*pair).is_some_and(|p| p.confirmed.is_some()));
        let is_wanted = |pair: &PairSlot| self.pair_if_any(*pair).is_some_and(|known| wanted.contains(&known.keys));
        let (present, gone): (Vec<PairSlot>, Vec<PairSlot>) = present.into_iter().partition(is_wanted);
        // What goes makes room first: between the same two keys a new pre-shared key takes the place of the old one.
        for gone in gone {
            self.remove_pair(gone);
        }
        let mut kept = Vec::with_capacity(wanted.len());
        for keys in &wanted {
            if !self.tunnels.has_local_key(&keys.local) {
                continue; // it comes with `set_local_keys`
            }
            let same = |pair: &&PairSlot| self.pair_if_any(**pair).is_some_and(|known| known.keys == *keys);
            match present.iter().find(same).copied() {
                Some(pair) => kept.push(pair),
                None => kept.extend(self.add_pair(slot, keys.clone(), now)),
            }
        }
        for gone in present.iter().filter(|pair| !kept.contains(pair)) {
            self.remove_pair(*gone);
        }
        let newest_is_new = kept.first().is_some_and(|newest| !present.contains(newest));
        if let Some(peer) = self.peer_mut(slot) {
            peer.pairs = kept;
        }
        if had_session && newest_is_new {
            self.greet_newest(slot, now);
        }
    }

    fn add_pair(&mut self, peer: PeerSlot, keys: KeyPair, now: Monotonic) -> Option<PairSlot> {
        // Another peer's key cannot be this peer's too: who would be the sender? The first keeps it.
        if self.by_keys.contains_key(&(keys.local, keys.remote)) {
            tracing::warn!(peer = %keys.remote, "two peers claim one key; the second is ignored");
            return None;
        }
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.pairs.len() < MAX_PAIRS => {
                self.pairs.push(None);
                PairSlot((self.pairs.len() - 1) as u16)
            }
            None => {
                tracing::warn!("no room for another pair of keys");
                return None;
            }
        };
        let index = (self.tunnels.draw() as u32 & 0xff) << 16 | u32::from(slot.0);
        self.by_keys.insert((keys.local, keys.remote), slot);
        self.pairs[usize::from(slot.0)] = Some(Pair {
            peer,
            keys,
            index,
            tunnel: None,
            unconfirmed: None,
            confirmed: None,
            was_confirmed: false,
            initiated: None,
            last_initiation_heard: None,
            last_used: now,
            last_tick: now,
            next_tick: Monotonic::NEVER,
            greet: false,
        });
        Some(slot)
    }

    fn remove_pair(&mut self, slot: PairSlot) {
        let Some(pair) = self.pairs[usize::from(slot.0)].take() else { return };
        self.by_keys.remove(&(pair.keys.local, pair.keys.remote));
        self.ticks.remove(&(pair.next_tick, slot));
        self.free.push(slot);
    }

    fn close_pair(&mut self, slot: PairSlot) {
        self.schedule(slot, Monotonic::NEVER);
        let Some(pair) = self.pair_mut(slot) else { return };
        pair.tunnel = None;
        pair.unconfirmed = None;
        pair.confirmed = None;
        pair.initiated = None;
        pair.greet = false;
    }

    fn greet_newest(&mut self, slot: PeerSlot, now: Monotonic) {
        let spread = self.settings.greeting_spread.as_nanos() as u64;
        let wait = self.tunnels.draw().checked_rem(spread).unwrap_or(0);
        let Some(newest) = self.peer_mut(slot).and_then(|peer| peer.pairs.first().copied()) else { return };
        if let Some(pair) = self.pair_mut(newest) {
            pair.greet = true;
        }
        self.schedule(newest, now.saturating_add(Duration::from_nanos(wait)));
    }

    fn drop_waiting(&mut self, slot: PeerSlot, waiting: VecDeque<Waiting>) {
        self.counters.pending_dropped += waiting.len() as u64;
        self.waiting_bytes -= waiting.iter().map(|packet| packet.packet.len()).sum::<usize>();
        self.waiting.remove(&slot);
    }

    fn push_event(&mut self, event: PlaneEvent) {
        if self.events.len() >= self.settings.event_capacity {
            self.events.pop_front();
            self.counters.events_dropped += 1;
        }
        self.events.push_back(event);
    }

    fn peer_mut(&mut self, slot: PeerSlot) -> Option<&mut Peer> {
        self.peers.get_mut(slot.0 as usize)?.as_mut()
    }

    fn pair_if_any(&self, slot: PairSlot) -> Option<&Pair<W::Tunnel>> {
        self.pairs.get(usize::from(slot.0))?.as_ref()
    }

    fn pair_mut(&mut self, slot: PairSlot) -> Option<&mut Pair<W::Tunnel>> {
        self.pairs.get_mut(usize::from(slot.0))?.as_mut()
    }

    /// Lends room for one datagram; counts if there is none.
    fn reserve<'a>(counters: &mut LinkCounters, udp: &'a mut UdpBatch, length: usize) -> Option<&'a mut [u8]> {
        let room = udp.reserve(length).ok();
        counters.udp_full += u64::from(room.is_none());
        room
    }
}
