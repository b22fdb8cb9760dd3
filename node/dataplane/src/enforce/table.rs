//! The flow table: one entry a flow, found by its key, bounded in all and for each peer.
//!
//! Entries stand in a slab. Three things lead to one: the map from keys, the list of its peer's flows in the order of
//! their last use (roughly: it is brought up to date once a second and flow), and the wheel of seconds in which idle
//! flows are looked at. All are links inside the entry, so that a packet of a known flow allocates nothing and moves
//! little.
//!
//! Bounds: a peer that has its quota loses its own least recently used flow. When the table is full, the peer with
//! the most flows loses one, so a scan of one peer never evicts the flows of a peer that has fewer; if the newcomer's
//! peer itself has the most and nothing to give, the flow is refused.
//!
//! The map hashes with SipHash and a random key: ports and addresses are chosen by whoever attacks. It holds places alone, 4 bytes a
//! flow; the keys are in the entries. So among a million flows it stays in the processor's cache, and a packet of a flow that
//! has rested waits for memory once.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use postern_common::time::Monotonic;

use super::{
    facts::{FlowKey, PeerSlot},
    flow::Flow,
};

const NONE: u32 = u32::MAX;
/// Slots of the wheel, one a second. A flow that may be silent longer is looked at once a minute.
const WHEEL: usize = 64;
const SECOND: u64 = 1_000_000_000;

/// The place of a flow in the table. It is not valid beyond the call that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowIndex(u32);

#[derive(Debug, Clone, Copy)]
struct Links {
    previous: u32,
    next: u32,
}

/// What a flow takes of the cache is what a packet of a rested flow waits for.
const _: () = assert!(size_of::<Place>() == 192);

const UNLINKED: Links = Links { previous: NONE, next: NONE };

/// Three lines of the processor's cache, and never a part of a fourth.
#[derive(Debug)]
#[repr(align(64))]
struct Place {
    flow: Option<Flow>,
    /// When it was brought to the front of its peer's list.
    used: Monotonic,
    of_peer: Links,
    in_wheel: Links,
    wheel_slot: usize,
    next_free: u32,
}

/// A peer's flows, most recently used first.
#[derive(Debug, Clone, Copy)]
struct PeerFlows {
    first: u32,
    last: u32,
    count: usize,
}

/// What has to give way before a flow can be inserted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Nothing.
    Free,
    /// This flow.
    Evict(FlowIndex),
    /// There is none.
    None,
}

/// The table.
#[derive(Debug)]
pub(crate) struct FlowTable {
    by_key: HashTable<u32>,
    hasher: RandomState,
    places: Vec<Place>,
    free: u32,
    peers: Vec<PeerFlows>,
    wheel: [u32; WHEEL],
    /// The second up to which the wheel has turned.
    turned: u64,
    capacity: usize,
    quota: usize,
    /// The flow that was found last: packets come in trains.
    recent: u32,
}

impl FlowTable {
    /// Makes a table with room for `capacity` flows; memory is touched only as it is used. The map is half empty at the most, so that it
    /// need not grow because of places that removed flows have left.
    pub(crate) fn new(capacity: usize, quota: usize, now: Monotonic) -> Self {
        let capacity = capacity.clamp(1, 1 << 24);
        Self {
            by_key: HashTable::with_capacity(2 * capacity),
            hasher: RandomState::new(),
            places: Vec::with_capacity(capacity),
            free: NONE,
            peers: Vec::new(),
            wheel: [NONE; WHEEL],
            turned: now.as_nanos() / SECOND,
            capacity,
            quota: quota.max(1),
            recent: NONE,
        }
    }

    /// Returns how many flows there are.
    pub(crate) fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Returns how many flows a peer has.
    pub(crate) fn count(&self, peer: PeerSlot) -> usize {
        self.peers.get(peer.0 as usize).map_or(0, |flows| flows.count)
    }

    /// Finds a flow.
    pub(crate) fn find(&mut self, key: &FlowKey) -> Option<FlowIndex> {
        if let Some(Place { flow: Some(flow), .. }) = self.places.get(self.recent as usize)
            && flow.key == *key
        {
            return Some(FlowIndex(self.recent));
        }
        let places = &self.places;
        let has_key = |index: &u32| places[*index as usize].flow.as_ref().is_some_and(|flow| flow.key == *key);
        let index = *self.by_key.find(self.hasher.hash_one(key), has_key)?;
        self.recent = index;
        Some(FlowIndex(index))
    }

    /// Lends a flow.
    ///
    /// # Panics
    /// If `index` has outlived its flow, which is a bug.
    pub(crate) fn flow(&self, index: FlowIndex) -> &Flow {
        self.places[index.0 as usize].flow.as_ref().expect("an index is not kept beyond its flow")
    }

    /// Lends a flow to change it; see [`FlowTable::flow`].
    pub(crate) fn flow_mut(&mut self, index: FlowIndex) -> &mut Flow {
        self.places[index.0 as usize].flow.as_mut().expect("an index is not kept beyond its flow")
    }

    /// Notes that a packet of the flow passed.
    pub(crate) fn touch(&mut self, index: FlowIndex, now: Monotonic) {
        let place = &mut self.places[index.0 as usize];
        if let Some(flow) = &mut place.flow {
            flow.last_seen = now;
        }
        if now.as_nanos().saturating_sub(place.used.as_nanos()) >= SECOND {
            place.used = now;
            let peer = self.flow(index).key.peer;
            self.unlink_of_peer(index.0, peer);
            self.link_of_peer(index.0, peer);
        }
    }

    /// Tells what has to give way before a flow of `peer` can be inserted.
    pub(crate) fn room_for(&self, peer: PeerSlot) -> Room {
        let own = self.peers.get(peer.0 as usize).copied();
        let own_count = own.map_or(0, |flows| flows.count);
        let last = |flows: &PeerFlows| if flows.last == NONE { Room::None } else { Room::Evict(FlowIndex(flows.last)) };
        if own_count >= self.quota {
            return own.as_ref().map_or(Room::None, last);
        }
        if self.by_key.len() < self.capacity {
            return Room::Free;
        }
        let heaviest = self.peers.iter().max_by_key(|flows| flows.count).filter(|flows| flows.count > own_count + 1);
        heaviest.or(own.as_ref()).map_or(Room::None, last)
    }

    /// Inserts a flow; there must be room, and no flow with its key.
    pub(crate) fn insert(&mut self, flow: Flow, now: Monotonic) -> FlowIndex {
        let (key, peer) = (flow.key, flow.key.peer);
        let deadline = flow.last_seen.saturating_add(flow.idle_time());
        let place = Place {
            flow: Some(flow),
            used: now,
            of_peer: UNLINKED,
            in_wheel: UNLINKED,
            wheel_slot: 0,
            next_free: NONE,
        };
        let index = if self.free == NONE {
            self.places.push(place);
            (self.places.len() - 1) as u32
        } else {
            let index = self.free;
            self.free = self.places[index as usize].next_free;
            self.places[index as usize] = place;
            index
        };
        let Self { by_key, hasher, places, .. } = self;
        let hash_of = |index: &u32| places[*index as usize].flow.as_ref().map_or(0, |flow| hasher.hash_one(flow.key));
        by_key.insert_unique(hasher.hash_one(key), index, hash_of);
        self.link_of_peer(index, peer);
        self.schedule(index, deadline);
        FlowIndex(index)
    }

    /// Removes a flow and returns it.
    pub(crate) fn remove(&mut self, index: FlowIndex) -> Flow {
        let flow = self.places[index.0 as usize].flow.take().expect("an index is not kept beyond its flow");
        if let Ok(entry) = self.by_key.find_entry(self.hasher.hash_one(flow.key), |place| *place == index.0) {
            entry.remove();
        }
        self.unlink_of_peer(index.0, flow.key.peer);
        self.unlink_in_wheel(index.0);
        self.places[index.0 as usize].next_free = self.free;
        self.free = index.0;
        flow
    }

    /// Returns the peer's flow that was used last, to begin a walk with [`FlowTable::next_of_peer`].
    pub(crate) fn first_of_peer(&self, peer: PeerSlot) -> Option<FlowIndex> {
        let first = self.peers.get(peer.0 as usize)?.first;
        (first != NONE).then_some(FlowIndex(first))
    }

    /// Returns the flow after `index` in its peer's list. Take it before removing `index`.
    pub(crate) fn next_of_peer(&self, index: FlowIndex) -> Option<FlowIndex> {
        let next = self.places[index.0 as usize].of_peer.next;
        (next != NONE).then_some(FlowIndex(next))
    }

    /// Lists every flow, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.places.iter().filter_map(|place| place.flow.as_ref())
    }

    /// Looks again at the flow's idle time, because it has become shorter.
    pub(crate) fn reschedule(&mut self, index: FlowIndex) {
        let flow = self.flow(index);
        let deadline = flow.last_seen.saturating_add(flow.idle_time());
        self.unlink_in_wheel(index.0);
        self.schedule(index.0, deadline);
    }

    /// Returns when [`FlowTable::turn`] should be called next: at once, while it has more to look at than one call was allowed.
    pub(crate) fn next_turn(&self) -> Monotonic {
        if self.by_key.is_empty() { Monotonic::NEVER } else { Monotonic::from_nanos((self.turned + 1) * SECOND) }
    }

    /// Turns the wheel towards `now` and hands over one flow that has been silent for its idle time; call it until it
    /// returns `None`. It looks at no more than `looks` flows, which it counts down: packets wait meanwhile, and flows that began
    /// together are due together.
    pub(crate) fn turn(&mut self, now: Monotonic, looks: &mut usize) -> Option<FlowIndex> {
        let present = now.as_nanos() / SECOND;
        // After a long sleep almost a whole turn is made up for at once, and the rest with the next seconds.
        self.turned = self.turned.max(present.saturating_sub(WHEEL as u64 - 2));
        while self.turned < present {
            let second = self.turned + 1;
            let mut index = self.wheel[second as usize % WHEEL];
            while index != NONE {
                *looks = looks.checked_sub(1)?;
                let next = self.places[index as usize].in_wheel.next;
                let flow = self.flow(FlowIndex(index));
                let deadline = flow.last_seen.saturating_add(flow.idle_time());
                if deadline <= now {
                    return Some(FlowIndex(index)); // the caller removes it, and with it the link
                }
                self.unlink_in_wheel(index);
                self.link_in_wheel(index, deadline, present + 1, second + WHEEL as u64 - 1);
                index = next;
            }
            self.turned = second;
        }
        None
    }

    fn schedule(&mut self, index: u32, deadline: Monotonic) {
        self.link_in_wheel(index, deadline, self.turned + 1, self.turned + WHEEL as u64 - 1);
    }

    fn link_in_wheel(&mut self, index: u32, deadline: Monotonic, earliest: u64, latest: u64) {
        // Rounded up, so that a flow is never looked at just before its time.
        let second = (deadline.as_nanos() / SECOND).saturating_add(1).clamp(earliest, latest);
        let slot = second as usize % WHEEL;
        let head = self.wheel[slot];
        if head != NONE {
            self.places[head as usize].in_wheel.previous = index;
        }
        let place = &mut self.places[index as usize];
        place.in_wheel = Links { previous: NONE, next: head };
        place.wheel_slot = slot;
        self.wheel[slot] = index;
    }

    fn unlink_in_wheel(&mut self, index: u32) {
        let place = &mut self.places[index as usize];
        let Links { previous, next } = std::mem::replace(&mut place.in_wheel, UNLINKED);
        let slot = place.wheel_slot;
        if previous == NONE {
            self.wheel[slot] = next;
        } else {
            self.places[previous as usize].in_wheel.next = next;
        }
        if next != NONE {
            self.places[next as usize].in_wheel.previous = previous;
        }
    }

    fn link_of_peer(&mut self, index: u32, peer: PeerSlot) {
        let slot = peer.0 as usize;
        if self.peers.len() <= slot {
            self.peers.resize(slot + 1, PeerFlows { first: NONE, last: NONE, count: 0 });
        }
        let flows = &mut self.peers[slot];
        let head = std::mem::replace(&mut flows.first, index);
        flows.count += 1;
        if head == NONE {
            flows.last = index;
        } else {
            self.places[head as usize].of_peer.previous = index;
        }
        self.places[index as usize].of_peer = Links { previous: NONE, next: head };
    }

    fn unlink_of_peer(&mut self, index: u32, peer: PeerSlot) {
        let Links { previous, next } = std::mem::replace(&mut self.places[index as usize].of_peer, UNLINKED);
        let flows = &mut self.peers[peer.0 as usize];
        flows.count -= 1;
        if previous == NONE {
            flows.first = next;
        } else {
            self.places[previous as usize].of_peer.next = next;
        }
        if next == NONE {
            self.peers[peer.0 as usize].last = previous;
        } else {
            self.places[next as usize].of_peer.previous = previous;
        }
    }
}
