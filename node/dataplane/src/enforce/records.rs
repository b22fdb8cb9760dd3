//! Flow records on their way to the caller: a bounded queue, with repeated refusals gathered.
//!
//! The first refusal of a kind is recorded at once; those that follow within a while are only counted, and the count
//! is written when the while is over. One kind is: same ends, same protocol and service port, same reason; the
//! originator's own port does not count, because every attempt has another. A scan makes many kinds: beyond a rate
//! they are counted as unrecorded.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use postern_common::{
    flow_record::{FlowEvent, FlowRecord, Originator},
    net::Protocol,
    reason::DenyReason,
    time::{Monotonic, Now},
};

use crate::settings::Settings;

/// Kinds of refusals that are gathered at once. Beyond it the oldest is written out early.
const KINDS: usize = 512;

/// A kind of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    originator: Originator,
    protocol: Protocol,
    source: IpAddr,
    destination: IpAddr,
    service_port: u16,
    reason: DenyReason,
}

#[derive(Debug)]
struct Gathered {
    until: Monotonic,
    repeated: u64,
    latest: FlowRecord,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Records {
    queue: VecDeque<FlowRecord>,
    capacity: usize,
    kinds: HashMap<Kind, Gathered>,
    /// The same kinds, oldest first.
    order: VecDeque<Kind>,
    gather: Duration,
    rate: u32,
    left: u32,
    second: u64,
    /// Records without room.
    pub(crate) dropped: u64,
    /// Refusals beyond the rate.
    pub(crate) unrecorded: u64,
}

impl Records {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            queue: VecDeque::new(),
            capacity: settings.record_capacity,
            kinds: HashMap::new(),
            order: VecDeque::new(),
            gather: settings.deny_repeat,
            rate: settings.deny_records_per_second,
            left: settings.deny_records_per_second,
            second: 0,
            dropped: 0,
            unrecorded: 0,
        }
    }

    pub(crate) fn push(&mut self, record: FlowRecord) {
        if self.queue.len() >= self.capacity {
            self.dropped += 1;
        } else {
            self.queue.push_back(record);
        }
    }

    pub(crate) fn pop(&mut self) -> Option<FlowRecord> {
        self.queue.pop_front()
    }

    /// Notes a refusal; `record` is asked for only if it is needed.
    pub(crate) fn deny(
        &mut self,
        originator: Originator,
        flow: &postern_common::net::FiveTuple,
        reason: DenyReason,
        now: Now,
        record: impl FnOnce() -> FlowRecord,
    ) {
        let kind = Kind {
            originator,
            protocol: flow.protocol,
            source: flow.source,
            destination: flow.destination,
            service_port: if flow.protocol == Protocol::Icmp { 0 } else { flow.destination_port },
            reason,
        };
        if let Some(gathered) = self.kinds.get_mut(&kind) {
            gathered.repeated += 1;
            gathered.latest.at = now.wall;
            gathered.latest.flow = *flow;
            return;
        }
        if !self.take_token(now.monotonic) {
            self.unrecorded += 1;
            return;
        }
        if self.order.len() >= KINDS {
            self.close_oldest();
        }
        let latest = record();
        self.push(latest.clone());
        let until = now.monotonic.saturating_add(self.gather);
        self.kinds.insert(kind, Gathered { until, repeated: 0, latest });
        self.order.push_back(kind);
    }

    /// Writes out what was gathered long enough.
    pub(crate) fn handle_timeout(&mut self, now: Monotonic) {
        while self.poll_timeout() <= now {
            self.close_oldest();
        }
    }

    /// Returns when [`Records::handle_timeout`] has work.
    pub(crate) fn poll_timeout(&self) -> Monotonic {
        let oldest = self.order.front().and_then(|kind| self.kinds.get(kind));
        oldest.map_or(Monotonic::NEVER, |gathered| gathered.until)
    }

    fn close_oldest(&mut self) {
        let Some(kind) = self.order.pop_front() else { return };
        let Some(Gathered { repeated, mut latest, .. }) = self.kinds.remove(&kind) else { return };
        if repeated > 0 {
            latest.event = FlowEvent::Deny { reason: kind.reason, repeated: repeated - 1 };
            self.push(latest);
        }
    }

    fn take_token(&mut self, now: Monotonic) -> bool {
        let second = now.as_nanos() / 1_000_000_000;
        if second != self.second {
            self.second = second;
            self.left = self.rate;
        }
        let had = self.left > 0;
        self.left = self.left.saturating_sub(1);
        had
    }
}

#[cfg(test)]
mod tests {
    use postern_common::{net::FiveTuple, time::WallTime};

    use super::*;

    fn at(ms: u64) -> Now {
        Now { monotonic: Monotonic::from_millis(ms), wall: WallTime::from_millis(ms as i64) }
    }

    fn tuple(source_port: u16, destination_port: u16) -> FiveTuple {
        let protocol = Protocol::Tcp;
        let (source, destination) = ("fd00::2".parse().unwrap(), "fd00::1".parse().unwrap());
        FiveTuple { protocol, source, source_port, destination, destination_port }
    }

    fn deny(records: &mut Records, flow: FiveTuple, now: Now) {
        let reason = DenyReason::NoRule;
        records.deny(Originator::Peer, &flow, reason, now, || FlowRecord {
            at: now.wall,
            event: FlowEvent::Deny { reason, repeated: 0 },
            originator: Originator::Peer,
            flow,
            peer: None,
            peer_outer: None,
            permit: None,
            generation: 1,
        });
    }

    fn repeated(record: Option<FlowRecord>) -> Option<u64> {
        match record?.event {
            FlowEvent::Deny { repeated, .. } => Some(repeated),
            FlowEvent::Start | FlowEvent::End { .. } => None,
        }
    }

    #[test]
    fn attempts_from_many_ports_are_one_kind_and_none_is_lost() {
        let mut records = Records::new(&Settings::default());
        for port in 0..12 {
            deny(&mut records, tuple(40_000 + port, 443), at(port.into()));
        }
        assert_eq!(repeated(records.pop()), Some(0));
        assert_eq!(records.pop(), None);
        records.handle_timeout(Monotonic::from_millis(9_999));
        assert_eq!(records.pop(), None);
        records.handle_timeout(records.poll_timeout());
        assert_eq!(repeated(records.pop()), Some(10), "one record for itself, ten more repeated: twelve in all");
        assert_eq!(records.poll_timeout(), Monotonic::NEVER);
    }

    #[test]
    fn a_scan_fills_neither_queue_nor_memory_and_is_counted() {
        let settings = Settings { record_capacity: 60, deny_records_per_second: 50, ..Settings::default() };
        let mut records = Records::new(&settings);
        for second in 0..20 {
            for port in 0..1_000 {
                deny(&mut records, tuple(1, 1 + port + 1_000 * second as u16), at(second * 1_000 + 5));
            }
        }
        assert!(records.kinds.len() <= KINDS && records.order.len() <= KINDS);
        assert_eq!(records.queue.len(), 60);
        assert_eq!(records.unrecorded, 20 * 950);
        assert_eq!(records.dropped, 20 * 50 - 60);
    }
}
