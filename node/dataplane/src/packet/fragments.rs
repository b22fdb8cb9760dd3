//! Which later fragments may pass: only those of a datagram whose first fragment was admitted.
//!
//! Nothing is reassembled and nothing is held back. The first fragment carries the transport header, so it is judged like
//! any packet; when it passes, [`FragmentTable::admit`] remembers its datagram for a while, and later fragments of that
//! datagram pass by [`FragmentTable::check`]. A later fragment that arrives before its first is dropped: the sender's retransmission
//! heals that, and holding it would give an attacker memory to fill.
//!
//! Threats: a later fragment that overlaps the first could rewrite the transport header that was judged (RFC 1858, RFC 5722):
//! it is refused and closes its datagram, as does a second first fragment of another length. Bounded: [`MAX_DATAGRAMS`] in
//! all and [`MAX_PER_SOURCE`] a source; the oldest is evicted and counted. Times are virtual.

use std::{collections::VecDeque, net::IpAddr, time::Duration};

use postern_common::time::Monotonic;

use super::view::{Fragment, FragmentPlace};

/// Datagrams in the table.
pub const MAX_DATAGRAMS: usize = 256;
/// Datagrams of one source.
pub const MAX_PER_SOURCE: usize = 32;
/// How long a datagram may take: far less than a host's reassembly (30 s to 60 s), since an overlay delivers at once.
pub const DATAGRAM_LIFETIME: Duration = Duration::from_secs(5);

/// Names a datagram that was cut into fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DatagramKey {
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Its identification.
    pub id: u32,
    /// Its transport protocol's number.
    pub protocol: u8,
}

/// Why a fragment is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FragmentError {
    /// No first fragment of its datagram was admitted, or too long ago.
    #[error("no first fragment was admitted")]
    NoFirst,
    /// It overlaps the first fragment, or the datagram has two first fragments or two ends.
    #[error("the fragments of the datagram overlap")]
    Overlap,
}

/// Counters of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FragmentCounters {
    /// First fragments admitted.
    pub admitted: u64,
    /// Later fragments passed.
    pub passed: u64,
    /// Later fragments without a first.
    pub no_first: u64,
    /// Overlaps.
    pub overlaps: u64,
    /// Datagrams forgotten before their time, for want of room.
    pub evicted: u64,
}

#[derive(Debug, Clone, Copy)]
struct Datagram<T> {
    key: DatagramKey,
    /// Where the first fragment's payload ends.
    first_end: u32,
    /// Where the datagram ends, once the last fragment has told.
    end: Option<u32>,
    until: Monotonic,
    tag: T,
}

/// The datagrams whose first fragment was admitted. `T` is what the caller wants to know again about a later
/// fragment: its flow.
#[derive(Debug)]
pub struct FragmentTable<T> {
    /// Oldest first.
    datagrams: VecDeque<Datagram<T>>,
    counters: FragmentCounters,
}

impl<T: Copy> FragmentTable<T> {
    /// Makes an empty table; it never allocates again.
    pub fn new() -> Self {
        Self { datagrams: VecDeque::with_capacity(MAX_DATAGRAMS), counters: FragmentCounters::default() }
    }

    /// Remembers a datagram whose first fragment was allowed.
    ///
    /// # Errors
    /// [`FragmentError::Overlap`] if the datagram has a first fragment already: drop this one.
    pub fn admit(&mut self, key: DatagramKey, first: &Fragment, tag: T, now: Monotonic) -> Result<(), FragmentError> {
        self.expire(now);
        if let Some(place) = self.datagrams.iter().position(|datagram| datagram.key == key) {
            self.datagrams.remove(place);
            self.counters.overlaps += 1;
            return Err(FragmentError::Overlap);
        }
        if self.datagrams.iter().filter(|datagram| datagram.key.source == key.source).count() >= MAX_PER_SOURCE {
            let oldest = self.datagrams.iter().position(|datagram| datagram.key.source == key.source);
            oldest.and_then(|place| self.datagrams.remove(place));
            self.counters.evicted += 1;
        } else if self.datagrams.len() == MAX_DATAGRAMS {
            self.datagrams.pop_front();
            self.counters.evicted += 1;
        }
        let until = now.saturating_add(DATAGRAM_LIFETIME);
        self.datagrams.push_back(Datagram { key, first_end: first.length, end: None, until, tag });
        self.counters.admitted += 1;
        Ok(())
    }

    /// Tells whether a later fragment may pass, and returns what was remembered with its first.
    ///
    /// # Errors
    /// [`FragmentError`]: drop it.
    pub fn check(&mut self, key: DatagramKey, later: &Fragment, now: Monotonic) -> Result<T, FragmentError> {
        self.expire(now);
        let Some(place) = self.datagrams.iter().position(|datagram| datagram.key == key) else {
            self.counters.no_first += 1;
            return Err(FragmentError::NoFirst);
        };
        let datagram = &mut self.datagrams[place];
        let end = later.offset + later.length;
        let beyond =
            datagram.end.is_some_and(|known| end > known || (later.place == FragmentPlace::Last && end != known));
        if later.offset < datagram.first_end || beyond {
            self.datagrams.remove(place);
            self.counters.overlaps += 1;
            return Err(FragmentError::Overlap);
        }
        if later.place == FragmentPlace::Last {
            datagram.end = Some(end);
        }
        self.counters.passed += 1;
        Ok(datagram.tag)
    }

    /// Forgets every datagram for which `keep` says no: those of a flow that was cut.
    pub fn retain(&mut self, mut keep: impl FnMut(&DatagramKey, &T) -> bool) {
        self.datagrams.retain(|datagram| keep(&datagram.key, &datagram.tag));
    }

    /// Returns the counters.
    pub const fn counters(&self) -> &FragmentCounters {
        &self.counters
    }

    fn expire(&mut self, now: Monotonic) {
        while self.datagrams.front().is_some_and(|datagram| datagram.until <= now) {
            self.datagrams.pop_front();
        }
    }
}

impl<T: Copy> Default for FragmentTable<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Monotonic = Monotonic::from_millis(1_000);

    fn key(id: u32) -> DatagramKey {
        let [source, destination] = [[10, 0, 0, 1], [10, 0, 0, 2]].map(IpAddr::from);
        DatagramKey { source, destination, id, protocol: 17 }
    }

    fn fragment(offset: u32, length: u32, place: FragmentPlace) -> Fragment {
        Fragment { id: 1, offset, length, place }
    }

    fn first() -> Fragment {
        fragment(0, 1_000, FragmentPlace::More)
    }

    #[test]
    fn a_later_fragment_passes_only_after_its_own_first() {
        let mut table = FragmentTable::new();
        let later = fragment(1_000, 200, FragmentPlace::Last);
        assert_eq!(table.check(key(1), &later, NOW), Err(FragmentError::NoFirst));
        table.admit(key(1), &first(), 'a', NOW).unwrap();
        assert_eq!(table.check(key(1), &later, NOW), Ok('a'));
        assert_eq!(table.check(key(2), &later, NOW), Err(FragmentError::NoFirst));
        let other_protocol = DatagramKey { protocol: 6, ..key(1) };
        assert_eq!(table.check(other_protocol, &later, NOW), Err(FragmentError::NoFirst));
    }

    #[test]
    fn an_overlap_with_the_first_closes_the_datagram() {
        let mut table = FragmentTable::new();
        table.admit(key(1), &first(), (), NOW).unwrap();
        assert_eq!(table.check(key(1), &fragment(992, 200, FragmentPlace::Last), NOW), Err(FragmentError::Overlap));
        let honest = fragment(1_000, 200, FragmentPlace::Last);
        assert_eq!(table.check(key(1), &honest, NOW), Err(FragmentError::NoFirst));
        table.admit(key(2), &first(), (), NOW).unwrap();
        assert_eq!(table.admit(key(2), &first(), (), NOW), Err(FragmentError::Overlap));
    }

    #[test]
    fn a_fragment_beyond_the_end_is_refused() {
        let mut table = FragmentTable::new();
        table.admit(key(1), &first(), (), NOW).unwrap();
        table.check(key(1), &fragment(1_200, 200, FragmentPlace::Last), NOW).unwrap();
        table.check(key(1), &fragment(1_000, 200, FragmentPlace::More), NOW).unwrap();
        assert_eq!(table.check(key(1), &fragment(1_400, 8, FragmentPlace::More), NOW), Err(FragmentError::Overlap));
    }

    #[test]
    fn a_datagram_is_forgotten_after_its_lifetime() {
        let mut table = FragmentTable::new();
        table.admit(key(1), &first(), (), NOW).unwrap();
        let later = NOW.saturating_add(DATAGRAM_LIFETIME);
        assert_eq!(table.check(key(1), &fragment(1_000, 8, FragmentPlace::Last), later), Err(FragmentError::NoFirst));
    }

    #[test]
    fn one_source_cannot_evict_the_datagrams_of_another() {
        let mut table = FragmentTable::new();
        let honest = DatagramKey { source: [10, 0, 0, 9].into(), ..key(7) };
        table.admit(honest, &first(), (), NOW).unwrap();
        for id in 0..1_000 {
            table.admit(key(id), &first(), (), NOW).unwrap();
        }
        assert_eq!(table.check(honest, &fragment(1_000, 8, FragmentPlace::Last), NOW), Ok(()));
        assert_eq!(table.counters().evicted, 1_000 - MAX_PER_SOURCE as u64);
    }
}
