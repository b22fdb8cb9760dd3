//! What the network saw: every document that the controller sent and every acknowledgement that reached it. Here stand
//! the claims about order and bounds: a source learns after its destination, closes after it, and nothing piles up.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use postern_common::{
    grant::{Change, GrantDocument, PeerGrant, Position},
    id::{DeviceId, Nonce},
    time::Lifetime,
};

use super::oracle::Door;

/// The most documents that may be on their way to one node.
const MAX_UNACKNOWLEDGED: usize = 8;

/// What a node was told of one peer.
#[derive(Debug, Clone, Default)]
struct Told {
    /// Port and the true time at which it ends.
    inbound: BTreeMap<String, u64>,
    outbound: BTreeSet<String>,
}

type Book = BTreeMap<DeviceId, Told>;

#[derive(Debug, Default)]
struct Reader {
    told: Book,
    unacknowledged: VecDeque<(Position, Book)>,
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    readers: HashMap<DeviceId, Reader>,
    acknowledged: HashMap<DeviceId, (u64, Book)>,
    ever: HashSet<(DeviceId, DeviceId)>,
    nonces: HashMap<Nonce, u64>,
    /// Counts the lives of the controller's process.
    life: u64,
    /// What sources were told to be closed since the controller was last called: source, destination, port.
    closings: Vec<(DeviceId, DeviceId, String)>,
    /// Sources that were told before their destination in that time.
    before_destination: BTreeSet<(DeviceId, DeviceId)>,
    /// What destinations were told to close in that time: source and destination.
    removed: BTreeSet<(DeviceId, DeviceId)>,
    /// Documents sent since somebody reset it: to whom, and about which peers.
    pub(crate) documents: Vec<(DeviceId, Vec<DeviceId>)>,
    pub(crate) most_unacknowledged: usize,
}

fn told(peer: &PeerGrant<Lifetime>, nonce_received: u64) -> Told {
    let mut told = Told::default();
    for permission in &peer.inbound {
        for service in &permission.services {
            let until = nonce_received + permission.until.remaining_ms;
            let known = told.inbound.entry(service.to_string()).or_default();
            *known = until.max(*known);
        }
    }
    for permission in &peer.outbound {
        told.outbound.extend(permission.services.iter().map(ToString::to_string));
    }
    told
}

impl Ledger {
    pub(crate) fn nonce_received(&mut self, nonce: Nonce, now: u64) {
        self.nonces.insert(nonce, now);
    }

    pub(crate) fn stream_began(&mut self, node: DeviceId) {
        self.readers.insert(node, Reader::default());
    }

    pub(crate) fn stream_ended(&mut self, node: DeviceId) {
        self.readers.remove(&node);
    }

    pub(crate) fn snapshot_wanted(&mut self, node: DeviceId) {
        if let Some(reader) = self.readers.get_mut(&node) {
            *reader = Reader::default();
        }
    }

    pub(crate) fn controller_restarted(&mut self) {
        self.life += 1;
        self.readers.clear();
        self.closings.clear();
        self.before_destination.clear();
        self.removed.clear();
    }

    pub(crate) fn controller_restored(&mut self) {
        self.acknowledged.clear();
        self.ever.clear();
    }

    pub(crate) fn enforced(&mut self, node: DeviceId, position: Position) {
        let Some(reader) = self.readers.get_mut(&node) else { return };
        while reader.unacknowledged.front().is_some_and(|(sent, _)| *sent <= position) {
            let Some((_, told)) = reader.unacknowledged.pop_front() else { return };
            let sources = told.iter().filter(|(_, told)| !told.inbound.is_empty());
            self.ever.extend(sources.map(|(source, _)| (node, *source)));
            self.acknowledged.insert(node, (self.life, told));
        }
    }

    /// Takes note of a document, in the order in which the controller sends them.
    ///
    /// # Errors
    /// What should not have been sent.
    pub(crate) fn sent(&mut self, document: &GrantDocument, doors: &BTreeSet<Door>, now: u64) -> Result<(), String> {
        let node = document.audience;
        let received = *self.nonces.get(&document.nonce).ok_or("a document answers a nonce that nobody sent")?;
        let reader = self.readers.entry(node).or_default();
        let before = reader.told.clone();
        let mut after = before.clone();
        let (upserts, named): (_, Vec<DeviceId>) = match &document.change {
            Change::Snapshot { peers, .. } => {
                after.clear();
                (peers, peers.iter().map(|peer| peer.device).collect())
            }
            Change::Delta { upsert, remove, .. } => {
                for gone in remove {
                    after.remove(gone);
                }
                (upsert, upsert.iter().map(|peer| peer.device).chain(remove.iter().copied()).collect())
            }
        };
        for peer in upserts {
            after.insert(peer.device, told(peer, received));
        }
        reader.told = after.clone();
        reader.unacknowledged.push_back((document.position, after.clone()));
        let waiting = reader.unacknowledged.len();
        self.most_unacknowledged = self.most_unacknowledged.max(waiting);
        if waiting > MAX_UNACKNOWLEDGED {
            return Err(format!("{waiting} documents wait for an acknowledgement of {node}"));
        }
        for gone in before.keys().filter(|peer| !after.contains_key(peer)) {
            if !doors.iter().any(|door| door.source == *gone && door.destination == node) {
                self.ever.remove(&(node, *gone)); // closed: it has to be acknowledged anew
            }
        }
        for (peer, told) in &after {
            self.check_opening(node, *peer, told)?;
        }
        for (peer, told) in &before {
            let now_in = after.get(peer).map(|told| &told.inbound);
            if told.inbound.keys().any(|port| now_in.is_none_or(|open| !open.contains_key(port))) {
                self.removed.insert((*peer, node));
            }
            for port in &told.outbound {
                let kept = after.get(peer).is_some_and(|told| told.outbound.contains(port));
                if !kept && !is_wanted(doors, node, *peer, port) {
                    self.closings.push((node, *peer, port.clone()));
                    if self.is_open(node, *peer, port, now) {
                        self.before_destination.insert((node, *peer));
                    }
                }
            }
        }
        self.documents.push((node, named));
        Ok(())
    }

    /// Tells whether a destination was last told to let a source in, and there is room to tell it otherwise.
    fn is_open(&self, source: DeviceId, destination: DeviceId, port: &str, now: u64) -> bool {
        let reader = self.readers.get(&destination).filter(|reader| reader.unacknowledged.len() < MAX_UNACKNOWLEDGED);
        let told = reader.and_then(|reader| reader.told.get(&source)).and_then(|told| told.inbound.get(port));
        told.is_some_and(|open_until| *open_until > now + 1)
    }

    /// Checks, at the end of each call of the controller, that the destinations of what sources were told to be closed are
    /// told as well, and were told first. One document tells a machine what closes on it and what it may not open any
    /// more, so where closing goes around in a circle somebody has to be the first: there alone it is enough that all are
    /// told in one go.
    ///
    /// # Errors
    /// Which one is not.
    pub(crate) fn destinations_are_closed(&mut self, now: u64) -> Result<(), String> {
        let closings = std::mem::take(&mut self.closings);
        let removed = std::mem::take(&mut self.removed);
        for (source, destination, port) in &closings {
            if self.is_open(*source, *destination, port, now) {
                return Err(format!(
                    "{source} is told that {port} at {destination} is closed, and {destination} is not"
                ));
            }
        }
        for (source, destination) in std::mem::take(&mut self.before_destination) {
            let mut reached = BTreeSet::from([destination]);
            loop {
                let next = removed.iter().filter(|(from, to)| reached.contains(from) && !reached.contains(to));
                let next: Vec<DeviceId> = next.map(|(_, to)| *to).collect();
                if next.is_empty() {
                    break;
                }
                reached.extend(next);
            }
            if !reached.contains(&source) {
                return Err(format!("{source} is told that {destination} is closed before {destination} is"));
            }
        }
        Ok(())
    }

    fn check_opening(&self, source: DeviceId, destination: DeviceId, told: &Told) -> Result<(), String> {
        if told.outbound.is_empty() {
            return Ok(());
        }
        if !self.ever.contains(&(destination, source)) {
            return Err(format!("{source} is told of {destination}, which never acknowledged {source}"));
        }
        // A controller that has just begun takes what it had stored for acknowledged.
        let Some((life, known)) = self.acknowledged.get(&destination).filter(|(life, _)| *life == self.life) else {
            return Ok(());
        };
        // A destination that lost its keys learns of the pair after the source did: it had acknowledged the source before.
        let Some(inbound) = known.get(&source).map(|told| &told.inbound) else { return Ok(()) };
        match told.outbound.iter().find(|port| !inbound.contains_key(*port)) {
            None => Ok(()),
            Some(port) => Err(format!(
                "in life {life} {source} is told of {port} at {destination}, which has not acknowledged that"
            )),
        }
    }
}

fn is_wanted(doors: &BTreeSet<Door>, source: DeviceId, destination: DeviceId, port: &str) -> bool {
    doors
        .iter()
        .any(|door| door.source == source && door.destination == destination && format!("tcp/{}", door.port) == port)
}
