//! Limits on attempts, by the address from which they come, and on what is recorded of strangers.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};

use postern_common::time::Monotonic;

/// The most addresses that one limit remembers. When more come, those that have recovered are forgotten; if none has,
/// new addresses share one bucket, so that a flood of addresses cannot wash an attacker's own out.
const MAX_ADDRESSES: usize = 4_096;

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: u32,
    filled: Monotonic,
}

/// Returns the address by which attempts are counted: an IPv6 customer has a whole /64, so that is what counts.
pub(crate) fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))),
    }
}

/// A bounded table of token buckets, by [`site`].
#[derive(Debug)]
pub(crate) struct Limit {
    burst: u32,
    refill: Duration,
    buckets: HashMap<IpAddr, Bucket>,
}

impl Limit {
    /// Permits `burst` attempts at once and one more every `refill`.
    pub(crate) fn new(burst: u32, refill: Duration) -> Self {
        Self { burst, refill, buckets: HashMap::new() }
    }

    fn level(&self, bucket: Bucket, now: Monotonic) -> u32 {
        let gained = now.since(bucket.filled).as_nanos() / self.refill.as_nanos().max(1);
        self.burst.min(bucket.left.saturating_add(u32::try_from(gained).unwrap_or(u32::MAX)))
    }

    fn key(&mut self, address: IpAddr, now: Monotonic) -> IpAddr {
        let key = site(address);
        if self.buckets.len() >= MAX_ADDRESSES && !self.buckets.contains_key(&key) {
            let (burst, refill) = (self.burst, self.refill);
            let recovered = |b: &Bucket| now.since(b.filled) >= refill.saturating_mul(burst - b.left);
            self.buckets.retain(|_, bucket| !recovered(bucket));
            if self.buckets.len() >= MAX_ADDRESSES {
                return IpAddr::V6(Ipv6Addr::UNSPECIFIED);
            }
        }
        key
    }

    /// Tells whether an attempt would be permitted, without counting one.
    pub(crate) fn permits(&mut self, address: IpAddr, now: Monotonic) -> bool {
        let key = self.key(address, now);
        self.buckets.get(&key).is_none_or(|bucket| self.level(*bucket, now) > 0)
    }

    /// Counts an attempt; `false` if it is one too many.
    pub(crate) fn take(&mut self, address: IpAddr, now: Monotonic) -> bool {
        let key = self.key(address, now);
        let bucket = self.buckets.get(&key).copied().unwrap_or(Bucket { left: self.burst, filled: now });
        let level = self.level(bucket, now);
        if level == 0 {
            return false;
        }
        // Keep the fraction of a refill that has been earned, unless the bucket was full.
        let earned = level - bucket.left.min(level);
        let filled =
            if level == self.burst { now } else { bucket.filled.saturating_add(self.refill.saturating_mul(earned)) };
        self.buckets.insert(key, Bucket { left: level - 1, filled });
        true
    }
}

/// Whoever is refused without having proven who they are, by what they tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stranger {
    /// A stream that did not become a node's.
    Stream,
    /// A machine that wanted a person to confirm it.
    Join,
    /// A machine with an enrolment token.
    Enrol,
    /// A machine with a token of its platform.
    Platform,
    /// A browser.
    Page,
}

/// What the audit log records of strangers one by one; the rest is counted.
///
/// An address has its limit. It is not enough: a network of somebody's has 65,536 of them, so each kind has one limit for
/// all addresses too. A kind has its own, so that a flood of one does not hide the others.
#[derive(Debug)]
pub(crate) struct Recorded {
    by_address: Limit,
    of_kind: [Limit; 5],
}

/// How many refusals of a kind are recorded at once, and how often one more is.
const OF_KIND: (u32, Duration) = (100, Duration::from_secs(2));

impl Default for Recorded {
    fn default() -> Self {
        let by_address = Limit::new(60, Duration::from_secs(1));
        Self { by_address, of_kind: std::array::from_fn(|_| Limit::new(OF_KIND.0, OF_KIND.1)) }
    }
}

impl Recorded {
    /// Tells whether a refusal is recorded by itself.
    pub(crate) fn take(&mut self, kind: Stranger, from: IpAddr, now: Monotonic) -> bool {
        let everybody = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let of_kind = &mut self.of_kind[kind as usize];
        of_kind.permits(everybody, now) && self.by_address.take(from, now) && of_kind.take(everybody, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_millis(seconds * 1_000)
    }

    #[test]
    fn a_burst_passes_and_then_one_at_a_time() {
        let mut limit = Limit::new(3, Duration::from_secs(10));
        let address = "192.0.2.1".parse().expect("an address");
        assert_eq!([0, 0, 0, 0].map(|s| limit.take(address, at(s))), [true, true, true, false]);
        assert_eq!([9, 10, 10, 19, 20].map(|s| limit.take(address, at(s))), [false, true, false, false, true]);
        assert!(limit.take("192.0.2.2".parse().expect("an address"), at(0)));
    }

    #[test]
    fn one_ipv6_network_counts_as_one_address_and_the_table_is_bounded() {
        let mut limit = Limit::new(1, Duration::from_secs(10));
        assert!(limit.take("2001:db8::1".parse().expect("an address"), at(0)));
        assert!(!limit.take("2001:db8::2".parse().expect("an address"), at(0)));
        for i in 0..10_000u32 {
            limit.take(IpAddr::V4((0x0a00_0000 + i).into()), at(0));
        }
        assert!(limit.buckets.len() <= MAX_ADDRESSES + 1);
        assert!(!limit.permits("2001:db8::3".parse().expect("an address"), at(1)), "a flood washes nothing out");
    }
}
