//! Behaviour: what nodes say of how much subjects use, summed over nodes and devices; and who says of whom that it scans.
//!
//! ```text
//! FromNode::Behaviour { process, usages } --hear--> for each limit of a subject: what every node has in its window, until when it counts
//!                                           '--> the sum, which the core compares with the limit
//! FromNode::Behaviour { process, scans } --hear--> the same for refused destinations: RefusalBook
//! ```
//!
//! A node says what is in its own window, not what is new: so a report that is lost, comes twice or comes after a restart of the
//! controller changes nothing, and nothing has to be durable here. What a node said counts until its window has passed since, whether
//! or not the node is still there: a node that starts again counts from nothing, and what its processes before had told is added
//! ([`Told`]). Not durable: what earlier processes of a node told, if the controller starts again as well.
//!
//! Bounds: an entry for each limit of a subject, made only for what a node may report (the core asks its leases), and in it for each node
//! the last [`MAX_STARTS`] of its processes; what is old goes with [`Book::sweep`]. [`Accusers`] remembers [`MAX_ACCUSED`] machines of a
//! node, [`MAX_ACCUSED`] subjects, [`MAX_CHALLENGED`] more whom its word asks for no more than a sign-in, and [`MAX_CHALLENGED_THERE`] of
//! whom it is asked for what that node itself gives.
//!
//! Threat: a server that was taken over accuses laptops, or says that somebody used much. It can speak of those alone who may open
//! something on it, and have no more than so many of them within [`ACCUSED_WITHIN`] taken for scanners, restricted or sent away. Who
//! said most of a sum has to answer for it: what a server says beyond that is left out of the sum, so that it cannot fill a sum up to
//! the limit and let another server pass it. Alerts say that somebody has to look at it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use postern_common::{
    id::{DeviceId, ResourceName, RuleName, SubjectId},
    limit::{Measure, Usage},
    net::FiveTuple,
    time::Monotonic,
};

use crate::records::Takes;

/// The most machines, and subjects, whom one node's word closes within [`ACCUSED_WITHIN`].
pub const MAX_ACCUSED: usize = 16;
/// The most subjects of whom one node's word asks a fresh sign-in, or raises an alert, within [`ACCUSED_WITHIN`].
pub const MAX_CHALLENGED: usize = 64;
/// The most subjects of whom one node's word asks a fresh sign-in before that node itself opens again what it has shut.
pub const MAX_CHALLENGED_THERE: usize = 4_096;
/// The most processes of one node whose words are kept apart; of more, the two oldest count as one, for as long as the longer.
const MAX_STARTS: usize = 8;
/// See [`MAX_ACCUSED`].
pub const ACCUSED_WITHIN: Duration = Duration::from_secs(3_600);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    subject: SubjectId,
    rule: RuleName,
    resource: ResourceName,
    measure: Measure,
    within_ms: u64,
}

/// What one start of a node's data plane said last.
#[derive(Debug, Clone, Copy)]
struct Start {
    process: u64,
    amount: u64,
    /// Until when it counts.
    until: Monotonic,
}

/// What one node told of one count: its present process, and those before as long as their windows last. The newest is the last.
#[derive(Debug, Default)]
struct Told {
    starts: Vec<Start>,
}

impl Told {
    fn hear(&mut self, process: u64, amount: u64, within: Duration, now: Monotonic) {
        let until = now.saturating_add(within);
        match self.starts.iter_mut().find(|start| start.process == process) {
            Some(start) => (start.amount, start.until) = (amount, until),
            None => self.starts.push(Start { process, amount, until }),
        }
        if self.starts.len() > MAX_STARTS {
            let oldest = self.starts.remove(0);
            let next = &mut self.starts[0];
            next.amount = next.amount.saturating_add(oldest.amount);
            next.until = next.until.max(oldest.until);
        }
    }

    fn sum(&self) -> u64 {
        self.starts.iter().fold(0, |sum, start| sum.saturating_add(start.amount))
    }

    /// Forgets what counts no more; tells whether anything is left.
    fn forget(&mut self, now: Monotonic) -> bool {
        self.starts.retain(|start| start.amount > 0 && now < start.until);
        !self.starts.is_empty()
    }
}

#[derive(Debug, Default)]
struct Entry {
    at_nodes: BTreeMap<DeviceId, Told>,
    alerted: Option<Monotonic>,
}

impl Entry {
    fn sum(&self) -> u64 {
        self.at_nodes.values().fold(0, |sum, told| sum.saturating_add(told.sum()))
    }
}

/// What every node has in its windows.
#[derive(Debug, Default)]
pub struct Book {
    entries: BTreeMap<Key, Entry>,
}

fn key(usage: &Usage) -> Key {
    let Usage { subject, rule, resource, budget: _, measure, within_ms, used: _ } = usage.clone();
    Key { subject, rule, resource, measure, within_ms }
}

impl Book {
    /// Takes what a process of a node has in a window, and returns what all have together.
    pub fn hear(&mut self, node: DeviceId, process: u64, usage: &Usage, now: Monotonic) -> u64 {
        let within = Duration::from_millis(usage.within_ms);
        let entry = self.entries.entry(key(usage)).or_default();
        entry.at_nodes.entry(node).or_default().hear(process, usage.used, within, now);
        entry.at_nodes.retain(|_, told| told.forget(now));
        let sum = entry.sum();
        if sum == 0 {
            self.entries.remove(&key(usage));
        }
        sum
    }

    /// Names the node that said most of a sum; nobody if nothing is said.
    pub fn says_most(&self, usage: &Usage) -> Option<DeviceId> {
        let entry = self.entries.get(&key(usage))?;
        entry.at_nodes.iter().max_by_key(|(_, told)| told.sum()).map(|(node, _)| *node)
    }

    /// Returns what one node has said by itself.
    pub fn said_by(&self, node: DeviceId, usage: &Usage) -> u64 {
        let entry = self.entries.get(&key(usage));
        entry.and_then(|entry| entry.at_nodes.get(&node)).map_or(0, Told::sum)
    }

    /// Leaves what a node said out of a sum until it says something again; returns the sum of the others.
    pub fn leave_out(&mut self, node: DeviceId, usage: &Usage) -> u64 {
        if let Some(entry) = self.entries.get_mut(&key(usage)) {
            entry.at_nodes.remove(&node);
        }
        self.sum(usage)
    }

    /// Tells whether an alert about a limit is due that is only watched: once in its window.
    pub fn may_alert(&mut self, usage: &Usage, now: Monotonic) -> bool {
        let within = Duration::from_millis(usage.within_ms);
        let Some(entry) = self.entries.get_mut(&key(usage)) else { return false };
        let due = entry.alerted.is_none_or(|at| now.since(at) >= within);
        if due {
            entry.alerted = Some(now);
        }
        due
    }

    /// Forgets what a subject used of what `taken` covers: those budgets begin anew.
    pub fn begin_anew(&mut self, subject: SubjectId, taken: &Takes) {
        self.entries.retain(|key, _| key.subject != subject || !taken.covers(&key.rule, &key.resource));
    }

    /// Forgets what a subject used under one limit: its count begins anew everywhere.
    pub fn begin_limit_anew(&mut self, usage: &Usage) {
        self.entries.remove(&key(usage));
    }

    /// Returns what all nodes have in a window, as they have said.
    pub fn sum(&self, usage: &Usage) -> u64 {
        self.entries.get(&key(usage)).map_or(0, Entry::sum)
    }

    /// Forgets what is out of every window.
    pub fn sweep(&mut self, now: Monotonic) {
        self.entries.retain(|_, entry| {
            entry.at_nodes.retain(|_, told| told.forget(now));
            !entry.at_nodes.is_empty()
        });
    }
}

/// What was refused lately: for each machine and node that refused.
type Refusals = BTreeMap<(DeviceId, DeviceId), RefusedTo>;

#[derive(Debug)]
struct RefusedTo {
    told: Told,
    last: FiveTuple,
}

/// What somebody is told of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ToldOf {
    /// It scans.
    Scan,
    /// It speaks from another place.
    Move,
}

/// Where a machine was refused destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusedAt {
    /// The machine that asked.
    pub device: DeviceId,
    /// The node that refused.
    pub node: DeviceId,
    /// What that node refused last, as it was asked for.
    pub last: FiveTuple,
}

/// How many destinations nodes refused lately to the machines of each subject.
#[derive(Debug, Default)]
pub struct RefusalBook {
    entries: BTreeMap<(SubjectId, RuleName), Refusals>,
    /// When somebody was told of a machine whose limit is only watched.
    alerted: BTreeMap<(DeviceId, ToldOf), Monotonic>,
}

impl RefusalBook {
    /// Takes how many destinations a process of a node has refused to a machine of the subject in its window. Destinations on two nodes
    /// are two, and so are those of two starts of a node.
    pub fn hear(
        &mut self,
        (subject, rule): (SubjectId, &RuleName),
        (RefusedAt { device, node, last }, process): (RefusedAt, u64),
        (refused, within): (u32, Duration),
        now: Monotonic,
    ) {
        let entry = self.entries.entry((subject, rule.clone())).or_default();
        let at = entry.entry((device, node)).or_insert_with(|| RefusedTo { told: Told::default(), last });
        at.told.hear(process, refused.into(), within, now);
        at.last = last;
        entry.retain(|_, refused| refused.told.forget(now));
    }

    /// Returns how much all nodes have refused to the subject's machines, as they have said.
    pub fn sum(&self, subject: SubjectId, rule: &RuleName) -> u64 {
        let entry = self.entries.get(&(subject, rule.clone())).into_iter().flat_map(BTreeMap::values);
        entry.fold(0, |sum, refused| sum.saturating_add(refused.told.sum()))
    }

    /// Names the machine to which most was refused, and the node that says most of it.
    pub fn says_most(&self, subject: SubjectId, rule: &RuleName) -> Option<RefusedAt> {
        let entry = self.entries.get(&(subject, rule.clone()))?;
        let mut of_device: BTreeMap<DeviceId, u64> = BTreeMap::new();
        for ((device, _), refused) in entry {
            let sum = of_device.entry(*device).or_default();
            *sum = sum.saturating_add(refused.told.sum());
        }
        let (device, _) = of_device.into_iter().max_by_key(|(_, sum)| *sum)?;
        let of_it = entry.iter().filter(|((of, _), _)| *of == device);
        let most = of_it.max_by_key(|(_, refused)| refused.told.sum());
        most.map(|((_, node), refused)| RefusedAt { device, node: *node, last: refused.last })
    }

    /// Leaves what a node said of a machine out of the sum until it says something again.
    pub fn leave_out(&mut self, subject: SubjectId, rule: &RuleName, of: (DeviceId, DeviceId)) {
        if let Some(entry) = self.entries.get_mut(&(subject, rule.clone())) {
            entry.remove(&of);
        }
    }

    /// Forgets what was refused to a subject's machines: something followed.
    pub fn begin_anew(&mut self, subject: SubjectId, rule: &RuleName) {
        self.entries.remove(&(subject, rule.clone()));
    }

    /// Tells whether an alert about a machine is due whose limit is only watched.
    pub fn may_alert(&mut self, of: ToldOf, device: DeviceId, now: Monotonic) -> bool {
        let due = self.alerted.get(&(device, of)).is_none_or(|at| now.since(*at) >= ACCUSED_WITHIN);
        if due {
            self.alerted.insert((device, of), now);
        }
        due
    }

    /// Forgets what is out of every window.
    pub fn sweep(&mut self, now: Monotonic) {
        self.entries.retain(|_, entry| {
            entry.retain(|_, refused| refused.told.forget(now));
            !entry.is_empty()
        });
        self.alerted.retain(|_, at| now.since(*at) < ACCUSED_WITHIN);
    }
}

/// Of whom each node said lately that something must follow.
#[derive(Debug)]
pub struct Accusers<T> {
    most: usize,
    of_node: BTreeMap<DeviceId, Accused<T>>,
}

#[derive(Debug)]
struct Accused<T> {
    lately: VecDeque<(Monotonic, T)>,
    /// When somebody was told that this node says it of too many.
    told: Option<Monotonic>,
}

/// What a node's word is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// It counts.
    Counts,
    /// It speaks of too many. That is said for the first time within [`ACCUSED_WITHIN`].
    NewlyTooMany,
    /// It speaks of too many, as it has been said.
    TooMany,
}

impl<T: PartialEq> Accusers<T> {
    /// Remembers so many of each node.
    pub const fn new(most: usize) -> Self {
        Self { most, of_node: BTreeMap::new() }
    }

    /// Tells whether a node may accuse somebody now, and notes that it does.
    pub fn accuse(&mut self, node: DeviceId, accused: T, now: Monotonic) -> Word {
        let of_node = self.of_node.entry(node).or_insert_with(|| Accused { lately: VecDeque::new(), told: None });
        of_node.lately.retain(|(at, _)| now.since(*at) < ACCUSED_WITHIN);
        if of_node.lately.iter().any(|(_, known)| *known == accused) {
            return Word::Counts;
        }
        if of_node.lately.len() < self.most {
            of_node.lately.push_back((now, accused));
            return Word::Counts;
        }
        if of_node.told.is_some_and(|told| now.since(told) < ACCUSED_WITHIN) {
            return Word::TooMany;
        }
        of_node.told = Some(now);
        Word::NewlyTooMany
    }

    /// Forgets what was long ago.
    pub fn sweep(&mut self, now: Monotonic) {
        self.of_node.retain(|_, of_node| {
            of_node.lately.retain(|(at, _)| now.since(*at) < ACCUSED_WITHIN);
            !of_node.lately.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_millis(seconds * 1_000)
    }

    fn device(number: u8) -> DeviceId {
        DeviceId::from_bytes([number; 16])
    }

    fn usage(used: u64) -> Usage {
        Usage {
            subject: SubjectId::from_bytes([1; 16]),
            rule: "rule".parse().expect("a name"),
            resource: "r".parse().expect("a name"),
            budget: 0,
            measure: Measure::Download,
            within_ms: 60_000,
            used,
        }
    }

    #[test]
    fn the_sum_is_over_nodes_and_a_report_that_comes_twice_changes_nothing() {
        let mut book = Book::default();
        assert_eq!(book.hear(device(1), 0, &usage(100), at(0)), 100);
        assert_eq!(book.hear(device(2), 0, &usage(50), at(1)), 150);
        assert_eq!(book.hear(device(2), 0, &usage(50), at(2)), 150);
        assert_eq!(book.hear(device(1), 0, &usage(30), at(3)), 80, "a node's window has moved on");
        assert_eq!(book.hear(device(2), 0, &usage(50), at(70)), 50, "the other node said nothing for a window");
        assert_eq!(book.hear(device(3), 0, &usage(u64::MAX), at(71)), u64::MAX, "it saturates");
        book.begin_anew(usage(0).subject, &Takes::Nothing);
        assert_eq!(book.hear(device(1), 0, &usage(0), at(72)), 0);
        assert!(book.entries.is_empty());
    }

    #[test]
    fn a_node_that_starts_again_has_not_used_less_and_starts_without_end_take_no_room() {
        let mut book = Book::default();
        assert_eq!(book.hear(device(1), 7, &usage(600), at(0)), 600);
        assert_eq!(book.hear(device(1), 8, &usage(100), at(10)), 700, "it began at nothing");
        assert_eq!(book.hear(device(1), 8, &usage(150), at(20)), 750);
        assert_eq!(book.says_most(&usage(0)), Some(device(1)));
        assert_eq!(book.hear(device(1), 8, &usage(150), at(60)), 150, "a window after the first start spoke last");
        for process in 100..1_100 {
            book.hear(device(1), process, &usage(1), at(61));
        }
        assert_eq!(book.sum(&usage(0)), 1_150, "nothing of it is lost");
        assert!(book.entries[&key(&usage(0))].at_nodes[&device(1)].starts.len() <= MAX_STARTS);
        assert_eq!(book.leave_out(device(1), &usage(0)), 0, "and whoever says it answers for all of it");
    }

    #[test]
    fn what_is_old_goes() {
        let mut book = Book::default();
        book.hear(device(1), 0, &usage(100), at(0));
        book.sweep(at(59));
        assert_eq!(book.entries.len(), 1);
        book.sweep(at(60));
        assert!(book.entries.is_empty());
    }

    #[test]
    fn a_node_accuses_a_few_machines_in_an_hour_and_no_more() {
        let mut accusers = Accusers::new(MAX_ACCUSED);
        let accused = |accusers: &mut Accusers<DeviceId>, from: u8, to: u8, seconds| {
            let counts = |number: &u8| accusers.accuse(device(200), device(*number), at(seconds)) == Word::Counts;
            (from..to).filter(counts).count()
        };
        assert_eq!(accused(&mut accusers, 0, 100, 0), MAX_ACCUSED);
        assert_eq!(accused(&mut accusers, 0, 1, 1), 1, "the same machine again");
        assert_eq!(accusers.accuse(device(201), device(99), at(1)), Word::Counts, "another node");
        assert_eq!(accusers.accuse(device(200), device(99), at(2)), Word::TooMany, "somebody was told");
        assert_eq!(accused(&mut accusers, 50, 52, 3_601), 2, "an hour later");
    }
}
