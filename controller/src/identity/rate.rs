//! Bounded token buckets, by address prefix or by any other key.
//!
//! A bucket is one number, the time at which it will be full again (the generic cell rate algorithm), so that an
//! untouched key costs nothing. The table is bounded: when it is full, buckets that are full again go first, then
//! the one nearest to it, which forgets the least. Refusals and evictions are counted.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use postern_common::time::WallTime;

/// How much is allowed: `burst` at once, then one every `interval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// How many at once.
    pub burst: u32,
    /// How long until one more.
    pub interval: Duration,
}

/// Tells that something was asked too often.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many attempts: try again in {} s", .retry_after.as_secs().max(1))]
pub struct TooMany {
    /// After how long one more is allowed.
    pub retry_after: Duration,
}

/// A table of token buckets.
#[derive(Debug)]
pub struct Buckets<K> {
    allowance: Allowance,
    capacity: usize,
    full_at: Mutex<HashMap<K, i64>>,
    refused: AtomicU64,
    evicted: AtomicU64,
}

impl<K: Eq + Hash + Clone> Buckets<K> {
    /// Makes an empty table of at most `capacity` keys.
    pub fn new(allowance: Allowance, capacity: usize) -> Self {
        Self {
            allowance,
            capacity: capacity.max(1),
            full_at: Mutex::new(HashMap::new()),
            refused: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
        }
    }

    /// Takes one token of `key`.
    ///
    /// # Errors
    /// [`TooMany`] if there is none; nothing is taken then, so that asking again does not prolong the wait.
    pub fn take(&self, key: &K, now: WallTime) -> Result<(), TooMany> {
        let now = now.as_millis();
        let interval = i64::try_from(self.allowance.interval.as_millis()).unwrap_or(i64::MAX / 4).max(1);
        let span = interval.saturating_mul(i64::from(self.allowance.burst));
        let mut table = self.full_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A wall clock that was set back must not turn a short wait into a long one: no bucket is more than empty.
        let full_at = table.get(key).copied().unwrap_or(now).clamp(now, now.saturating_add(span));
        let after = full_at.saturating_add(interval);
        let wait = after.saturating_sub(now).saturating_sub(span);
        if wait > 0 {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(TooMany { retry_after: Duration::from_millis(wait.unsigned_abs()) });
        }
        if table.len() >= self.capacity && !table.contains_key(key) {
            self.make_room(&mut table, now);
        }
        table.insert(key.clone(), after);
        Ok(())
    }

    /// Forgets what `key` used up.
    pub fn forgive(&self, key: &K) {
        self.full_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(key);
    }

    /// Returns how many requests were refused.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Returns how many buckets were forgotten before they were full again.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    fn make_room(&self, table: &mut HashMap<K, i64>, now: i64) {
        table.retain(|_, full_at| *full_at > now);
        if table.len() < self.capacity {
            return;
        }
        if let Some(key) = table.iter().min_by_key(|(_, full_at)| **full_at).map(|(key, _)| key.clone()) {
            table.remove(&key);
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The part of an address that one customer of a network holds: all of an IPv4 address, 56 bits of an IPv6 address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressPrefix(IpAddr);

impl From<IpAddr> for AddressPrefix {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.into()),
            IpAddr::V6(v6) => Self(Ipv6Addr::from_bits(v6.to_bits() & !(u128::MAX >> 56)).into()),
        }
    }
}

impl fmt::Display for AddressPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => write!(f, "{v4}/32"),
            IpAddr::V6(v6) => write!(f, "{v6}/56"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREE_A_MINUTE: Allowance = Allowance { burst: 3, interval: Duration::from_secs(20) };

    fn at(seconds: i64) -> WallTime {
        WallTime::from_millis(1_000_000 + seconds * 1_000)
    }

    #[test]
    fn a_burst_passes_then_one_each_interval() {
        let buckets = Buckets::new(THREE_A_MINUTE, 10);
        for _ in 0..3 {
            assert_eq!(buckets.take(&"a", at(0)), Ok(()));
        }
        assert_eq!(buckets.take(&"a", at(0)), Err(TooMany { retry_after: Duration::from_secs(20) }));
        assert_eq!(buckets.take(&"a", at(15)), Err(TooMany { retry_after: Duration::from_secs(5) }));
        assert_eq!(buckets.take(&"b", at(15)), Ok(()), "another key is not concerned");
        assert_eq!(buckets.take(&"a", at(20)), Ok(()));
        assert!(buckets.take(&"a", at(20)).is_err());
        assert_eq!(buckets.refused(), 3);
    }

    #[test]
    fn a_clock_set_back_does_not_lock_out() {
        let buckets = Buckets::new(THREE_A_MINUTE, 10);
        for _ in 0..3 {
            assert_eq!(buckets.take(&"a", at(1_000_000)), Ok(()));
        }
        assert_eq!(buckets.take(&"a", at(0)), Err(TooMany { retry_after: Duration::from_secs(20) }));
    }

    #[test]
    fn the_table_is_bounded_and_forgets_the_fullest_bucket_first() {
        let buckets = Buckets::new(THREE_A_MINUTE, 2);
        for _ in 0..3 {
            assert_eq!(buckets.take(&1, at(0)), Ok(()));
        }
        for key in 2..100 {
            assert_eq!(buckets.take(&key, at(0)), Ok(()));
        }
        assert!(buckets.take(&1, at(0)).is_err(), "the empty bucket was kept");
        assert_eq!(buckets.evicted(), 97);
        assert_eq!(buckets.full_at.lock().expect("not poisoned").len(), 2);
    }

    #[test]
    fn neighbours_in_one_ipv6_network_share_a_bucket() {
        let prefix = |text: &str| AddressPrefix::from(text.parse::<IpAddr>().expect("an address"));
        assert_eq!(prefix("2001:db8:1:200::1"), prefix("2001:db8:1:2ff:ffff::9"));
        assert_ne!(prefix("2001:db8:1:200::1"), prefix("2001:db8:1:300::1"));
        assert_eq!(prefix("::ffff:192.0.2.1"), prefix("192.0.2.1"));
        assert_ne!(prefix("192.0.2.2"), prefix("192.0.2.1"));
    }
}
