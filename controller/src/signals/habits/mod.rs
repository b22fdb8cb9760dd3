//! What each service is known to do: from where it speaks, on what kind of machine, and what it uses. What is new raises an alert.
//!
//! ```text
//! a stream begins --> place, kind --.
//! a node tells of a first use ------+--> Book::observe --> Known | Learned (quiet) | New (an alert)
//!                                   '--> HabitsRecord, durable, when something was learned or is a day older
//! ```
//!
//! A service is a program: it does the same things from the same places, so what is new is worth a look. People are not; for them
//! there is the place of the machine alone.
//!
//! - **Place**: country and autonomous system where the maps know them, else the network (IPv4 /24, IPv6 /48).
//! - **Kind**: the kernel's name and line, the processor, and the way to sign in (an enrolment token, or which platform). Not the
//!   version of this program, which changes everywhere in one night.
//! - **Use**: a resource with protocol and port, as the node says to which it led, and only where a lease of the service opens it.
//!
//! The first place and the first kind of a service are learned quietly, and everything that it uses within the time of learning
//! (`learn_for`) after its first use. From then on, each new thing is told once.
//!
//! Threats: what a machine says of its kind may be a lie: this finds the careless thief, not the careful one. A node can invent
//! uses of its own services by those who may use them, and so make a real one pass quietly later: it sees their packets anyway.
//!
//! Bounds: [`MAX_PLACES`], [`MAX_KINDS`], [`MAX_USES`] a service; what was seen longest ago is forgotten, and would be new
//! again. What was seen on several days gives way to nothing that is newer: whoever shows many things does not wash the habits out.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use postern_common::{
    id::{ResourceName, SubjectId},
    net::Service,
    policy::Place,
    protocol::MachineKind,
    time::WallTime,
};
use serde::{Deserialize, Serialize};

/// The most places, kinds and uses that are remembered of a service.
pub const MAX_PLACES: usize = 64;
/// See [`MAX_PLACES`].
pub const MAX_KINDS: usize = 32;
/// See [`MAX_PLACES`].
pub const MAX_USES: usize = 512;
/// How much older than written a memory may be: that something was seen is written once a day.
const WRITTEN_EVERY: Duration = Duration::from_secs(86_400);
/// The longest part of a kind that is read, bytes.
const MAX_PART: usize = 32;

/// What is known of one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HabitsRecord {
    /// The service.
    pub subject: SubjectId,
    /// Places, each with when it was last seen.
    pub places: BTreeMap<String, WallTime>,
    /// Kinds of machines.
    pub kinds: BTreeMap<String, WallTime>,
    /// What it uses.
    pub uses: BTreeMap<String, WallTime>,
    /// When it first used something.
    pub using_since: Option<WallTime>,
    /// What of all that was seen on another day than its first.
    #[serde(default)]
    pub settled: BTreeSet<String>,
}

/// Which part of the habits something belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Habit {
    /// From where it speaks.
    Place,
    /// On what kind of machine.
    Kind,
    /// What it uses.
    Use,
}

/// What an observation is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// As usual.
    Known,
    /// New, and taken as usual from now on.
    Learned,
    /// New, after it was known what is usual.
    New {
        /// What was known before, at most five.
        before: Vec<String>,
    },
}

/// The habits of all services.
#[derive(Debug, Default)]
pub(crate) struct Book {
    records: HashMap<SubjectId, HabitsRecord>,
}

impl Book {
    pub(crate) fn load(records: Vec<HabitsRecord>) -> Self {
        Self { records: records.into_iter().map(|record| (record.subject, record)).collect() }
    }

    /// Takes in that a service was seen so; returns what that is, and the record if it has to be written.
    pub(crate) fn observe(
        &mut self,
        subject: SubjectId,
        habit: Habit,
        what: &str,
        learn_for: Duration,
        now: WallTime,
    ) -> (Observed, Option<HabitsRecord>) {
        let record = self.records.entry(subject).or_insert_with(|| HabitsRecord {
            subject,
            places: BTreeMap::new(),
            kinds: BTreeMap::new(),
            uses: BTreeMap::new(),
            using_since: None,
            settled: BTreeSet::new(),
        });
        let (seen, most) = match habit {
            Habit::Place => (&mut record.places, MAX_PLACES),
            Habit::Kind => (&mut record.kinds, MAX_KINDS),
            Habit::Use => (&mut record.uses, MAX_USES),
        };
        if let Some(last) = seen.get_mut(what) {
            // A clock that was set back must not keep what is seen now from being written for long.
            let old = now.since(*last) >= WRITTEN_EVERY || *last > now;
            if old {
                if *last < now {
                    record.settled.insert(what.to_owned());
                }
                *last = now;
            }
            return (Observed::Known, old.then(|| record.clone()));
        }
        let learning = match habit {
            Habit::Place | Habit::Kind => seen.is_empty(),
            Habit::Use => now.since(*record.using_since.get_or_insert(now)) < learn_for,
        };
        let before = seen.keys().take(5).cloned().collect();
        let settled = &mut record.settled;
        if seen.len() >= most
            && let Some(oldest) =
                seen.iter().min_by_key(|(what, last)| (settled.contains(*what), **last)).map(|(what, _)| what.clone())
        {
            seen.remove(&oldest);
            settled.remove(&oldest);
        }
        seen.insert(what.to_owned(), now);
        let observed = if learning { Observed::Learned } else { Observed::New { before } };
        (observed, Some(record.clone()))
    }
}

/// Says where an address is, as far as that is a habit.
pub(crate) fn place(address: IpAddr, place: &Place) -> String {
    if place.country.is_some() || place.asn.is_some() {
        return place.to_string();
    }
    match address.to_canonical() {
        IpAddr::V4(v4) => format!("{}/24", Ipv4Addr::from(u32::from(v4) & 0xffff_ff00)),
        IpAddr::V6(v6) => format!("{}/48", Ipv6Addr::from(u128::from(v6) & !(u128::MAX >> 48))),
    }
}

/// Says what kind of machine this is. What the machine wrote is cut and cleaned.
pub(crate) fn kind(machine: &MachineKind, signs_in_by: &str) -> String {
    let clean = |text: &str| -> String {
        let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        text.chars().filter(plain).take(MAX_PART).collect()
    };
    let MachineKind { system, processor, kernel } = machine;
    format!("{} {} on {}, by {signs_in_by}", clean(system), clean(kernel), clean(processor))
}

/// Says what was used.
pub(crate) fn usage(resource: &ResourceName, service: &Service) -> String {
    format!("{resource} {service}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEARN: Duration = Duration::from_secs(86_400);

    fn at(hours: i64) -> WallTime {
        WallTime::from_millis(1_795_424_400_000 + hours * 3_600_000)
    }

    fn billing() -> SubjectId {
        SubjectId::from_bytes([3; 16])
    }

    #[test]
    fn the_first_place_and_kind_are_quiet_and_each_other_is_told_once() {
        let mut book = Book::default();
        let mut see = |habit, what: &str, hour| book.observe(billing(), habit, what, LEARN, at(hour));
        assert_eq!(see(Habit::Place, "DE, AS3320", 0).0, Observed::Learned);
        assert_eq!(see(Habit::Place, "DE, AS3320", 1), (Observed::Known, None));
        let (observed, record) = see(Habit::Place, "BR, AS28573", 1);
        assert_eq!(observed, Observed::New { before: vec!["DE, AS3320".into()] });
        assert_eq!(record.expect("it is written").places.len(), 2);
        assert_eq!(see(Habit::Place, "BR, AS28573", 2).0, Observed::Known);
        assert_eq!(see(Habit::Kind, "Linux 6.12 on x86_64, by prod", 2).0, Observed::Learned);
        assert!(matches!(see(Habit::Kind, "Linux 5.10 on aarch64, by prod", 2).0, Observed::New { .. }));
        assert!(see(Habit::Place, "DE, AS3320", 26).1.is_some(), "that it is still so is written once a day");
    }

    #[test]
    fn what_is_used_is_learned_for_a_time_and_told_after_it() {
        let mut book = Book::default();
        let mut use_ = |what: &str, hour| book.observe(billing(), Habit::Use, what, LEARN, at(hour)).0;
        assert_eq!(use_("db tcp/5432", 0), Observed::Learned);
        assert_eq!(use_("cache tcp/6379", 23), Observed::Learned);
        assert_eq!(use_("db tcp/5432", 30), Observed::Known);
        assert!(matches!(use_("vault tcp/8200", 24), Observed::New { .. }));
        assert_eq!(use_("vault tcp/8200", 25), Observed::Known);
    }

    #[test]
    fn a_book_that_was_written_and_read_again_knows_the_same() {
        let mut book = Book::default();
        let (_, record) = book.observe(billing(), Habit::Place, "DE", LEARN, at(0));
        let text = serde_json::to_string(&record.expect("written")).expect("JSON");
        let mut book = Book::load(vec![serde_json::from_str(&text).expect("read")]);
        assert_eq!(book.observe(billing(), Habit::Place, "DE", LEARN, at(1)).0, Observed::Known);
        assert!(matches!(book.observe(billing(), Habit::Place, "FR", LEARN, at(1)).0, Observed::New { .. }));
    }

    #[test]
    fn memory_is_bounded_and_forgets_what_was_seen_longest_ago() {
        let mut book = Book::default();
        for hour in 0..200 {
            book.observe(billing(), Habit::Kind, &format!("kind {hour}"), LEARN, at(hour));
        }
        assert_eq!(book.records[&billing()].kinds.len(), MAX_KINDS);
        assert_eq!(book.observe(billing(), Habit::Kind, "kind 199", LEARN, at(200)).0, Observed::Known);
        assert!(matches!(book.observe(billing(), Habit::Kind, "kind 0", LEARN, at(200)).0, Observed::New { .. }));
    }

    #[test]
    fn a_flood_of_new_things_does_not_wash_out_what_was_seen_on_several_days() {
        let mut book = Book::default();
        for hour in [0, 25] {
            book.observe(billing(), Habit::Kind, "the usual", LEARN, at(hour));
        }
        for number in 0..1_000 {
            book.observe(billing(), Habit::Kind, &format!("kind {number}"), LEARN, at(30));
        }
        assert_eq!(book.observe(billing(), Habit::Kind, "the usual", LEARN, at(31)).0, Observed::Known);
        let record = &book.records[&billing()];
        assert_eq!((record.kinds.len(), record.settled.len()), (MAX_KINDS, 1));
    }

    #[test]
    fn a_machine_cannot_write_what_it_likes_into_an_alert() {
        let machine = MachineKind {
            system: "Linux\u{1b}[2J\n".repeat(20),
            processor: "x86_64, by nobody".into(),
            kernel: "6.12".into(),
        };
        let said = kind(&machine, "prod-cluster");
        assert!(said.ends_with(" 6.12 on x86_64bynobody, by prod-cluster") && said.len() < 120, "{said}");
    }

    #[test]
    fn a_place_is_the_network_where_no_map_knows_better() {
        let unknown = Place::default();
        assert_eq!(place("192.0.2.77".parse().expect("an address"), &unknown), "192.0.2.0/24");
        assert_eq!(place("2001:db8:7:8::9".parse().expect("an address"), &unknown), "2001:db8:7::/48");
        assert_eq!(place("::ffff:192.0.2.77".parse().expect("an address"), &unknown), "192.0.2.0/24");
        let known = Place { country: Some("DE".parse().expect("a country")), asn: None };
        assert_eq!(place("192.0.2.77".parse().expect("an address"), &known), "DE");
    }
}
