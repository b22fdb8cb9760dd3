//! The policy enforcement point: who may open what, which flows live, and until when.
//!
//! ```text
//! VerifiedGrants --upsert--> Peer { generation, inbound Rules, outbound Rules }
//! packet -> Facts --judge--> FlowTable (known flow: generation and deadline) | Rules (new flow) --> Verdict
//! deadline passed, change, removal, silence --> flow ended: FlowRecord, and a Cut for the local socket
//! ```
//!
//! Nothing here seals, opens or sends: verdicts are kept apart from the tunnels, so that both can be spread over cores
//! in their own ways.
//!
//! Invariants:
//! - Only this module makes a [`Permit`], and only from a live permission that names protocol and port in the
//!   direction of the flow's originator. Empty, unknown, expired: deny, with one closed reason.
//! - An entry of the flow table is valid as of a generation of its peer's rules. A change makes a new generation, and
//!   a packet of an older one is judged again as its originator's flow; only then is the deadline tested. One
//!   mechanism serves revocation, expiry, posture and policy changes.
//! - A renewal moves deadlines where the entry looks them up; it touches neither entry nor generation.
//! - Whatever answers (replies, ICMP errors) passes only through an entry; a new opening never does, even if it looks
//!   like an answer.
//!
//! Threats: a peer that spoofs, scans, reuses the ports of a live flow for an opening in the other direction, floods
//! the table, or goes on after its lease; a wall clock that somebody sets.
//!
//! Rejected: connection tracking that accepts what is established before it asks the rules, as packet filters do:
//! revocation then never reaches a live flow.
//!
//! | module | holds |
//! | --- | --- |
//! | [`facts`] | what a packet is, seen from this node |
//! | [`rules`] | one peer's permissions in one direction, compiled |
//! | [`flow`], [`table`] | one flow; all flows |
//! | [`peers`] | who the peers are, cryptokey routing, changes |
//! | [`judge`] | the verdict |
//! | [`ending`] | how flows end: deadlines, silence, cuts |
//! | [`records`] | flow records, refusals gathered |
//! | [`reminders`] | what a restarted peer is told of silent connections |
//! | [`meters`] | how much of a limited permission was used |
//! | [`scans`] | who is refused many destinations |
//! | [`answers`] | status, whois, explain |

mod answers;
mod ending;
pub(crate) mod facts;
mod flow;
mod judge;
mod meters;
mod peers;
mod records;
mod reminders;
mod rules;
mod scans;
mod seen;
mod table;

#[cfg(test)]
mod reference_tests;
#[cfg(test)]
mod table_tests;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

use postern_common::{
    flow_record::FlowRecord,
    grant::OwnGrant,
    id::DeviceId,
    time::{Deadline, Monotonic, Now},
};

pub(crate) use self::{
    facts::{Facts, PeerSlot},
    judge::{Permit, Verdict},
    peers::Upserted,
    reminders::Reminder,
    scans::Attempt,
};
use self::{meters::Meters, peers::Peer, records::Records, scans::Scans, table::FlowTable};
use crate::{
    counters::Counters,
    settings::{Ceiling, Settings},
    status::Behaviour,
};

/// A live flow that was ended, for which the local socket has to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    pub(crate) local: IpAddr,
    pub(crate) local_port: u16,
    pub(crate) remote: IpAddr,
    pub(crate) remote_port: u16,
    /// What the local socket expects next from the peer, as far as that is known: an RST with any of these is believed.
    pub(crate) sequences: [u32; 2],
    /// What the local socket has sent, if it was seen.
    pub(crate) acknowledgement: Option<u32>,
}

/// Everything that is enforced.
#[derive(Debug)]
pub(crate) struct Enforcer {
    own: Option<OwnGrant<Deadline>>,
    peers: Vec<Option<Peer>>,
    /// Places in `peers` that hold nobody.
    free_slots: Vec<PeerSlot>,
    devices: HashMap<DeviceId, PeerSlot>,
    /// Cryptokey routing (WireGuard whitepaper §2): who owns an inner address.
    owners: HashMap<IpAddr, PeerSlot>,
    /// When a permission of a peer expires next.
    expiries: BTreeSet<(Monotonic, PeerSlot)>,
    table: FlowTable,
    meters: Meters,
    scans: Scans,
    ceiling: Ceiling,
    records: Records,
    cuts: Vec<Cut>,
    /// Peers that lost their last live permission, for the tunnels.
    lapsed: Vec<PeerSlot>,
    settle_until: Monotonic,
    next_generation: u64,
    is_judging: bool,
    /// The clocks as they were read last, to notice that somebody set one.
    clock: Now,
    /// The epoch of the newest document: the controller's life.
    life: Option<u64>,
    /// Names this start of the data plane, in what it tells of behaviour.
    process: u64,
    pub(crate) counters: Counters,
}

/// How far wall time may run away from monotonic time between two looks before every deadline is tested again.
const CLOCK_SLACK_MS: i64 = 250;

impl Enforcer {
    /// Makes an enforcer that denies everything.
    pub(crate) fn new(settings: &Settings, now: Now) -> Self {
        Self {
            own: None,
            peers: Vec::new(),
            free_slots: Vec::new(),
            devices: HashMap::new(),
            owners: HashMap::new(),
            expiries: BTreeSet::new(),
            table: FlowTable::new(settings.flow_capacity, settings.flows_per_peer, now.monotonic),
            meters: Meters::default(),
            scans: Scans::default(),
            ceiling: Ceiling::default(),
            records: Records::new(settings),
            cuts: Vec::with_capacity(64),
            lapsed: Vec::new(),
            settle_until: now.monotonic.saturating_add(settings.settle),
            next_generation: 1,
            is_judging: true,
            clock: now,
            life: None,
            process: settings.process,
            counters: Counters::default(),
        }
    }

    /// Takes the clocks' reading. If the wall clock was set, every deadline is tested anew; a clock that was set back
    /// gives nothing back that was cut.
    pub(crate) fn watch_clock(&mut self, now: Now) {
        let expected = self.clock.wall.as_millis().saturating_add(elapsed_ms(self.clock.monotonic, now.monotonic));
        let drift = now.wall.as_millis().saturating_sub(expected);
        self.clock = now;
        if drift.abs() <= CLOCK_SLACK_MS {
            return;
        }
        tracing::info!(drift_ms = drift, "the wall clock was set: every deadline is tested again");
        for slot in self.slots() {
            let peer = self.peer_mut(slot);
            peer.inbound.distrust_clock();
            peer.outbound.distrust_clock();
            self.end_expired(slot, now);
            self.schedule_expiry(slot, now);
        }
    }

    /// Watches the clock if there is a reason to: a second has gone by, or wall time runs backwards.
    pub(crate) fn glance_at_clock(&mut self, now: Now) {
        if now.wall < self.clock.wall || now.monotonic.since(self.clock.monotonic) >= Duration::from_secs(1) {
            self.watch_clock(now);
        }
    }

    /// Tells whether [`Enforcer::shut`] has anything to do.
    pub(crate) fn has_to_shut(&self) -> bool {
        self.meters.has_passed() || self.scans.has_shut()
    }

    /// Shuts the permissions whose limits were passed, and out whoever scans; their flows are cut.
    pub(crate) fn shut(&mut self, now: Now) {
        for meter in self.meters.take_passed() {
            let Some((subject, limit)) = self.meters.shut_for(meter) else { continue };
            for slot in self.slots() {
                let peer = self.peer_mut(slot);
                if peer.identity.subject == subject && peer.inbound.shut(meter, limit) {
                    self.peer_mut(slot).generation = self.next_generation;
                    self.next_generation += 1;
                    self.rejudge_flows(slot, now);
                }
            }
        }
        self.shut_out_scanners(now);
    }

    /// Says how much of what is limited was used lately, and who scans.
    pub(crate) fn take_behaviour(&mut self, now: Now) -> Behaviour {
        Behaviour {
            process: self.process,
            usages: self.meters.usages(now.monotonic),
            scans: self.scans_told(),
            refused: self.refused_lately(now),
            seen: Vec::new(),
        }
    }

    /// Hands over a record.
    pub(crate) fn poll_record(&mut self) -> Option<FlowRecord> {
        self.records.pop()
    }

    /// Hands over the flows that were cut since the last call.
    pub(crate) fn pop_cut(&mut self) -> Option<Cut> {
        self.cuts.pop()
    }

    /// Hands over a peer that has lost its last live permission.
    pub(crate) fn pop_lapsed(&mut self) -> Option<PeerSlot> {
        self.lapsed.pop()
    }

    /// Returns the counters that stand here, with those of the records.
    pub(crate) fn sum_counters(&mut self) {
        self.counters.records_dropped = self.records.dropped;
        self.counters.denies_unrecorded = self.records.unrecorded;
    }

    fn is_settling(&self, now: Now) -> bool {
        now.monotonic < self.settle_until
    }

    pub(crate) fn slots(&self) -> Vec<PeerSlot> {
        let held = |(slot, peer): (usize, &Option<Peer>)| peer.is_some().then_some(PeerSlot(slot as u32));
        self.peers.iter().enumerate().filter_map(held).collect()
    }
}

fn elapsed_ms(from: Monotonic, to: Monotonic) -> i64 {
    i64::try_from(to.since(from).as_millis()).unwrap_or(i64::MAX)
}
