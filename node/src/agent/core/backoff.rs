//! When to try again: exponential, capped, with full jitter, so that a thousand nodes that lost one controller at the
//! same moment come back spread out instead of together.

use std::time::Duration;

use super::Entropy;

/// The longest wait.
pub const CAP: Duration = Duration::from_secs(30);
const FIRST: Duration = Duration::from_secs(1);
const LEAST: Duration = Duration::from_millis(200);

/// Counts failures in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Returns how many failures there were in a row.
    pub const fn failures(self) -> u32 {
        self.failures
    }

    /// Counts a failure and draws how long to wait: between 0.2 s and 1, 2, 4, ... 30 s.
    pub fn next(&mut self, entropy: &mut dyn Entropy) -> Duration {
        let ceiling = FIRST.saturating_mul(1 << self.failures.min(8)).min(CAP);
        self.failures = self.failures.saturating_add(1);
        LEAST + (ceiling - LEAST).mul_f64(fraction(entropy))
    }

    /// Draws the longest kind of wait: for refusals that a quick retry cannot mend.
    pub fn slow(&mut self, entropy: &mut dyn Entropy) -> Duration {
        self.failures = self.failures.saturating_add(1);
        CAP + CAP.mul_f64(fraction(entropy))
    }

    /// Forgets the failures.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Draws a number in `0.0..1.0`.
pub(super) fn fraction(entropy: &mut dyn Entropy) -> f64 {
    let mut bytes = [0; 4];
    entropy.fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::core::SeededEntropy;

    #[test]
    fn waits_grow_to_the_cap_and_differ_between_nodes() {
        let waits = |seed| {
            let mut entropy = SeededEntropy::new(seed);
            let mut backoff = Backoff::default();
            (0..40).map(|_| backoff.next(&mut entropy)).collect::<Vec<_>>()
        };
        for seed in 0..50 {
            for (failures, wait) in waits(seed).iter().enumerate() {
                let ceiling = FIRST * (1 << failures.min(5)) as u32;
                assert!(*wait >= LEAST && *wait <= ceiling.min(CAP), "{failures}: {wait:?}");
            }
        }
        let first: std::collections::BTreeSet<_> = (0..1000).map(|seed| waits(seed)[4].as_millis() / 1000).collect();
        assert!(first.len() >= 15, "the fifth attempts of 1,000 nodes fall into many seconds: {first:?}");
    }
}
