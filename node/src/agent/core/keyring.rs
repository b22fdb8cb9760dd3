//! The node's WireGuard keys: made for a login session, rotated at an interval, wiped when no peer may use them.
//!
//! ```text
//! make -> Proposed --the controller lists it--> Listed --the controller lists it no more--> wiped
//! ```
//!
//! A proposed key is on disk before the controller hears of it, so that a crash never leaves peers with a key that
//! nobody holds. A key that was listed once and is listed no longer is wiped: nothing can be decrypted with it, and a
//! thief of a later image of the machine cannot read what was recorded before.

use std::time::Duration;

use postern_common::{
    key::{WireGuardPrivateKey, WireGuardPublicKey},
    time::{Now, WallTime},
};

/// The most keys that a node holds at a time; no new one is made beyond it.
pub const MAX_KEYS: usize = 4;

/// Where a key stands with the controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The controller has not listed it yet.
    Proposed,
    /// Peers may use it.
    Listed,
}

/// One key.
#[derive(Debug, Clone)]
pub struct HeldKey {
    /// The private key.
    pub private: WireGuardPrivateKey,
    /// The public key.
    pub public: WireGuardPublicKey,
    /// When it was made.
    pub made: WallTime,
    /// Where it stands with the controller.
    pub standing: Standing,
}

/// The node's keys, newest first; at most [`MAX_KEYS`].
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    keys: Vec<HeldKey>,
}

impl Keyring {
    /// Takes up keys from the sealed file, newest first.
    pub fn restore(mut keys: Vec<HeldKey>) -> Self {
        keys.truncate(MAX_KEYS);
        Self { keys }
    }

    /// Returns the keys, newest first.
    pub fn keys(&self) -> &[HeldKey] {
        &self.keys
    }

    /// Returns the public keys, newest first.
    pub fn public_keys(&self) -> Vec<WireGuardPublicKey> {
        self.keys.iter().map(|key| key.public).collect()
    }

    /// Returns copies of the private keys for the data plane, newest first.
    pub fn private_keys(&self) -> Vec<WireGuardPrivateKey> {
        self.keys.iter().map(|key| key.private.clone()).collect()
    }

    /// Adds a new key in front.
    pub fn propose(&mut self, private: WireGuardPrivateKey, made: WallTime) -> WireGuardPublicKey {
        let public = private.public();
        self.keys.insert(0, HeldKey { private, public, made, standing: Standing::Proposed });
        self.keys.truncate(MAX_KEYS);
        public
    }

    /// Forgets every key but the newest: a new login session begins with it.
    pub fn keep_newest(&mut self) {
        self.keys.truncate(1);
    }

    /// Forgets every key.
    pub fn wipe(&mut self) {
        self.keys.clear();
    }

    /// Takes note of the keys that the controller lists. Returns whether anything changed, which must then be kept.
    pub fn settle(&mut self, listed: &[WireGuardPublicKey]) -> bool {
        let before: Vec<_> = self.keys.iter().map(|key| (key.public, key.standing)).collect();
        for key in &mut self.keys {
            if listed.contains(&key.public) {
                key.standing = Standing::Listed;
            }
        }
        self.keys.retain(|key| key.standing == Standing::Proposed || listed.contains(&key.public));
        before != self.keys.iter().map(|key| (key.public, key.standing)).collect::<Vec<_>>()
    }

    /// Returns how long it is until the newest key should be followed by another one; `None` while one is proposed,
    /// or too many are held, or there is none. A clock that was set back restarts the count.
    pub fn rotation_due(&self, interval: Duration, now: Now) -> Option<Duration> {
        let newest = self.keys.first()?;
        if self.keys.len() >= MAX_KEYS || newest.standing == Standing::Proposed {
            return None;
        }
        let age = if newest.made > now.wall { Duration::ZERO } else { now.wall.since(newest.made) };
        Some(interval.saturating_sub(age))
    }
}

#[cfg(test)]
mod tests {
    use postern_common::time::Monotonic;

    use super::*;

    fn key(byte: u8) -> WireGuardPrivateKey {
        WireGuardPrivateKey::from_bytes([byte; 32])
    }

    fn now(seconds: i64) -> Now {
        Now { monotonic: Monotonic::from_millis(0), wall: WallTime::from_millis(seconds * 1_000) }
    }

    #[test]
    fn a_key_is_wiped_only_after_it_was_listed_and_is_listed_no_more() {
        let mut ring = Keyring::default();
        let first = ring.propose(key(1), WallTime::from_millis(0));
        assert!(!ring.settle(&[]), "a proposal that the controller has not heard of is kept");
        assert!(ring.settle(&[first]));
        let second = ring.propose(key(2), WallTime::from_millis(0));
        assert!(!ring.settle(&[first]), "nothing changes before the new one is listed");
        assert!(ring.settle(&[second, first]));
        assert_eq!(ring.public_keys(), [second, first]);
        assert!(ring.settle(&[second]));
        assert_eq!(ring.public_keys(), [second], "the old key is gone");
    }

    #[test]
    fn rotation_waits_while_a_proposal_is_open() {
        let hour = Duration::from_secs(3600);
        let mut ring = Keyring::default();
        assert_eq!(ring.rotation_due(hour, now(0)), None);
        let first = ring.propose(key(1), WallTime::from_millis(0));
        assert_eq!(ring.rotation_due(hour, now(9_999)), None);
        ring.settle(&[first]);
        assert_eq!(ring.rotation_due(hour, now(600)), Some(Duration::from_secs(3_000)));
        assert_eq!(ring.rotation_due(hour, now(9_999)), Some(Duration::ZERO));
        assert_eq!(ring.rotation_due(hour, now(-9_999)), Some(hour), "a clock set back restarts the count");
    }
}
