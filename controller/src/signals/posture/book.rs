//! What is known of every device's posture, and since when.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use postern_common::{
    id::DeviceId,
    posture::{Facts, Report, VerifiedPosture},
    time::{Monotonic, Now, WallTime},
};

use crate::records::{ComplianceRecord, PostureRecord};

/// What one decision is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Evidence {
    /// The device's own word.
    pub(crate) own: Option<Report>,
    /// The word of a device-management system.
    pub(crate) attested: Option<Report>,
}

/// Facts that age on both clocks.
#[derive(Debug, Clone)]
struct Held {
    facts: Facts,
    observed_at: WallTime,
    /// How old they were when they were taken in.
    age_then: Duration,
    taken_in: Monotonic,
}

impl Held {
    fn new(facts: Facts, age: Duration, now: Now) -> Self {
        Self { facts, observed_at: earlier(now.wall, age), age_then: age, taken_in: now.monotonic }
    }

    /// Takes up what was stored; what lies in the future counts for nothing, because nobody knows how old it is.
    fn stored(report: Report, now: Now) -> Option<Self> {
        (report.observed_at <= now.wall).then(|| Self::new(report.facts, now.wall.since(report.observed_at), now))
    }

    fn age(&self, now: Now) -> Duration {
        let by_monotonic = self.age_then.saturating_add(now.monotonic.since(self.taken_in));
        by_monotonic.max(now.wall.since(self.observed_at))
    }

    fn report(&self, now: Now) -> Report {
        Report { facts: self.facts.clone(), observed_at: earlier(now.wall, self.age(now)) }
    }

    fn record(&self) -> Report {
        Report { facts: self.facts.clone(), observed_at: self.observed_at }
    }
}

fn earlier(wall: WallTime, by: Duration) -> WallTime {
    WallTime::from_millis(wall.as_millis().saturating_sub(i64::try_from(by.as_millis()).unwrap_or(i64::MAX)))
}

/// What is known of one device.
#[derive(Debug, Default)]
struct Known {
    own: Option<Held>,
    attested: Option<Held>,
    serial: Option<String>,
    compliance: Option<Box<ComplianceRecord>>,
    /// When the record was last put into the store.
    stored: Option<Monotonic>,
}

/// What taking something in did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Facts are others than before, one line each.
    Changed(Vec<String>),
    /// They are the same, and younger.
    Younger,
    /// What was known is newer.
    Outdated,
}

/// Everything that is known: one entry a device.
#[derive(Debug, Default)]
pub(crate) struct Book {
    devices: BTreeMap<DeviceId, Known>,
    by_serial: HashMap<String, DeviceId>,
}

impl Book {
    /// Takes up what the store kept.
    pub(crate) fn load(records: impl IntoIterator<Item = PostureRecord>, now: Now) -> Self {
        let mut book = Self::default();
        for record in records {
            let known = Known {
                own: record.own.and_then(|report| Held::stored(report, now)),
                attested: record.attested.and_then(|report| Held::stored(report, now)),
                serial: record.serial.clone(),
                compliance: record.compliance,
                stored: Some(now.monotonic),
            };
            if let Some(serial) = record.serial {
                book.by_serial.insert(serial, record.device);
            }
            book.devices.insert(record.device, known);
        }
        book
    }

    /// Returns what a decision about a device is made from, with ages as of `now`.
    pub(crate) fn evidence(&self, device: DeviceId, now: Now) -> Evidence {
        let Some(known) = self.devices.get(&device) else { return Evidence::default() };
        let report = |held: &Option<Held>| held.as_ref().map(|held| held.report(now));
        Evidence { own: report(&known.own), attested: report(&known.attested) }
    }

    /// Takes a device's own report.
    pub(crate) fn hear(&mut self, device: DeviceId, posture: VerifiedPosture, now: Now) -> Taken {
        let age = posture.age();
        let known = self.devices.entry(device).or_default();
        take(&mut known.own, Held::new(posture.into_facts(), age, now), now)
    }

    /// Takes the word of a device-management system, which is as old as it says.
    pub(crate) fn attest(&mut self, device: DeviceId, facts: Facts, observed_at: WallTime, now: Now) -> Taken {
        let known = self.devices.entry(device).or_default();
        if let Some(held) = known.attested.as_mut().filter(|held| held.observed_at > observed_at) {
            // What lies in the future was taken in before the clock was set back: nobody knows which of the two is newer. What both
            // say counts.
            let both = held.facts.agreed(&facts);
            if held.observed_at <= now.wall || both.same_state(&held.facts) {
                return Taken::Outdated;
            }
            let changes = both.changes_since(&held.facts);
            held.facts = both;
            return Taken::Changed(changes);
        }
        take(&mut known.attested, Held::new(facts, now.wall.since(observed_at), now), now)
    }

    /// Binds a serial number to a device; whoever had it before has it no more.
    pub(crate) fn bind(&mut self, device: DeviceId, serial: &str) -> Option<DeviceId> {
        let former = self.by_serial.insert(serial.to_owned(), device).filter(|former| *former != device);
        if let Some(former) = former.and_then(|former| self.devices.get_mut(&former)) {
            former.serial = None;
            // They were said of the machine with this serial.
            (former.attested, former.compliance) = (None, None);
        }
        let known = self.devices.entry(device).or_default();
        if let Some(old) = known.serial.replace(serial.to_owned()).filter(|old| old != serial) {
            self.by_serial.remove(&old);
            (known.attested, known.compliance) = (None, None);
        }
        former
    }

    /// Finds the device to which a serial number is bound.
    pub(crate) fn by_serial(&self, serial: &str) -> Option<DeviceId> {
        self.by_serial.get(serial).copied()
    }

    /// Returns the serial number that is bound to a device.
    pub(crate) fn serial(&self, device: DeviceId) -> Option<&str> {
        self.devices.get(&device)?.serial.as_deref()
    }

    /// Returns the record of a device for the store, and remembers that it was put there.
    pub(crate) fn record(&mut self, device: DeviceId, now: Now) -> Option<PostureRecord> {
        let known = self.devices.get_mut(&device)?;
        known.stored = Some(now.monotonic);
        Some(PostureRecord {
            device,
            own: known.own.as_ref().map(Held::record),
            attested: known.attested.as_ref().map(Held::record),
            serial: known.serial.clone(),
            compliance: known.compliance.clone(),
        })
    }

    /// Takes what a stream of events says of a device; returns what changed, one line each, unless something newer is known.
    pub(crate) fn comply(&mut self, device: DeviceId, told: ComplianceRecord) -> Option<Vec<String>> {
        let known = self.devices.entry(device).or_default();
        let is_newer = |known: &ComplianceRecord| {
            // Of two that happened at one time nobody knows which was the last: the one that takes away counts.
            known.at > told.at || (known.at == told.at && !known.compliant && told.compliant)
        };
        if known.compliance.as_deref().is_some_and(is_newer) {
            return None;
        }
        let facts = |told: &ComplianceRecord| Facts { compliant: Some(told.compliant), ..Facts::default() };
        let before = known.compliance.as_deref().map(facts).unwrap_or_default();
        let changes = facts(&told).changes_since(&before);
        known.compliance = Some(Box::new(told));
        Some(changes)
    }

    /// Returns whether an import called a device compliant, and when that was observed.
    pub(crate) fn compliance_imported(&self, device: DeviceId) -> Option<(bool, WallTime)> {
        let held = self.devices.get(&device)?.attested.as_ref()?;
        Some((held.facts.compliant?, held.observed_at))
    }

    /// Returns what a stream of events last said of a device.
    pub(crate) fn compliance(&self, device: DeviceId) -> Option<&ComplianceRecord> {
        self.devices.get(&device)?.compliance.as_deref()
    }

    /// Lists the devices of which a stream said something.
    pub(crate) fn vouched_by(&self, stream: &str) -> Vec<DeviceId> {
        let said = |known: &Known| known.compliance.as_ref().is_some_and(|told| told.stream == stream);
        self.devices.iter().filter(|(_, known)| said(known)).map(|(device, _)| *device).collect()
    }

    /// Tells whether the record in the store is older than `every`.
    pub(crate) fn is_stored_long_ago(&self, device: DeviceId, every: Duration, now: Now) -> bool {
        let stored = self.devices.get(&device).and_then(|known| known.stored);
        stored.is_none_or(|stored| now.monotonic.since(stored) >= every)
    }

    /// Forgets a device; tells whether anything was known of it.
    pub(crate) fn forget(&mut self, device: DeviceId) -> bool {
        let known = self.devices.remove(&device);
        if let Some(serial) = known.as_ref().and_then(|known| known.serial.as_ref()) {
            self.by_serial.remove(serial);
        }
        known.is_some()
    }
}

fn take(place: &mut Option<Held>, new: Held, now: Now) -> Taken {
    // A check that was too long ago to be part of a report is missing in the next one: that is a change.
    let nothing = Facts::default();
    let before = place.as_ref().map_or(&nothing, |held| &held.facts);
    let first = place.is_none();
    let same = !first && before.same_state(&new.facts);
    if same && place.as_ref().is_some_and(|held| held.age(now) < new.age(now)) {
        return Taken::Outdated; // a slow look that was overtaken; the order of a stream makes it rare
    }
    let changes = new.facts.changes_since(before);
    *place = Some(new);
    if same { Taken::Younger } else { Taken::Changed(changes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: DeviceId = DeviceId::from_bytes([1; 16]);
    const OTHER: DeviceId = DeviceId::from_bytes([2; 16]);

    fn at(monotonic_s: u64, wall_s: i64) -> Now {
        Now { monotonic: Monotonic::from_millis(monotonic_s * 1_000), wall: WallTime::from_millis(wall_s * 1_000) }
    }

    fn facts(firewall: bool) -> Facts {
        Facts { firewall: Some(firewall), ..Facts::default() }
    }

    #[test]
    fn after_a_clock_that_was_set_back_a_newer_word_takes_away_and_gives_nothing() {
        let mut book = Book::default();
        let tell = |book: &mut Book, firewall, at_s: i64, now| {
            book.attest(DEVICE, facts(firewall), WallTime::from_millis(at_s * 1_000), now)
        };
        tell(&mut book, true, 9_000, at(100, 9_000));
        let held = |book: &Book, now| book.evidence(DEVICE, now).attested.and_then(|report| report.facts.firewall);
        // The clock is set back by two hours.
        let changes = tell(&mut book, false, 1_900, at(200, 2_000));
        assert!(matches!(changes, Taken::Changed(_)), "{changes:?}");
        assert_eq!(held(&book, at(201, 2_001)), Some(false));
        assert_eq!(tell(&mut book, true, 2_100, at(300, 2_100)), Taken::Outdated);
        assert_eq!(held(&book, at(301, 2_101)), Some(false), "better is only what is known to be newer");
        assert!(matches!(tell(&mut book, true, 9_100, at(7_500, 9_300)), Taken::Changed(_)));
        assert_eq!(held(&book, at(7_501, 9_301)), Some(true));
    }

    fn age(book: &Book, now: Now) -> Option<Duration> {
        book.evidence(DEVICE, now).attested.map(|report| now.wall.since(report.observed_at))
    }

    #[test]
    fn facts_age_by_the_clock_on_which_more_time_has_passed() {
        let mut book = Book::default();
        book.attest(DEVICE, facts(true), WallTime::from_millis(990_000), at(100, 1_000));
        assert_eq!(age(&book, at(160, 1_060)), Some(Duration::from_secs(70)));
        assert_eq!(age(&book, at(160, -2_600)), Some(Duration::from_secs(70)), "the clock was set back by an hour");
        assert_eq!(age(&book, at(160, 4_660)), Some(Duration::from_secs(3_670)), "it was set forward by one");
    }

    #[test]
    fn what_the_store_kept_ages_on_and_counts_for_nothing_from_the_future() {
        let mut book = Book::default();
        book.attest(DEVICE, facts(true), WallTime::from_millis(1_000_000), at(100, 1_000));
        let record = book.record(DEVICE, at(100, 1_000)).expect("a record");
        let restarted = Book::load([record.clone()], at(5, 1_300));
        assert_eq!(age(&restarted, at(15, 1_310)), Some(Duration::from_secs(310)));
        let before = Book::load([record], at(5, 900));
        assert_eq!(age(&before, at(15, 1_310)), None, "the clock was set back while nobody looked");
    }

    #[test]
    fn an_older_word_takes_nothing_back() {
        let mut book = Book::default();
        let said = |book: &mut Book, firewall, second: i64| {
            book.attest(DEVICE, facts(firewall), WallTime::from_millis(second * 1_000), at(200, 2_000))
        };
        assert_eq!(said(&mut book, false, 1_900), Taken::Changed(vec!["firewall: unknown -> off".into()]));
        assert_eq!(said(&mut book, true, 1_800), Taken::Outdated);
        assert_eq!(said(&mut book, false, 1_950), Taken::Younger);
        assert_eq!(said(&mut book, true, 1_990), Taken::Changed(vec!["firewall: off -> on".into()]));
    }

    #[test]
    fn a_serial_is_of_one_device_and_takes_its_attestation_along() {
        let mut book = Book::default();
        assert_eq!(book.bind(DEVICE, "SN1"), None);
        book.attest(DEVICE, facts(true), WallTime::from_millis(0), at(0, 0));
        assert_eq!(book.bind(OTHER, "SN1"), Some(DEVICE));
        assert_eq!((book.by_serial("SN1"), book.serial(DEVICE)), (Some(OTHER), None));
        assert_eq!(book.evidence(DEVICE, at(0, 0)), Evidence::default());
        assert!(book.forget(OTHER) && book.by_serial("SN1").is_none());
    }
}
