//! Tokens of platforms that were shown ([`super::platform`]): each belongs to the device key that showed it first, until it has ended.
//!
//! [`Core::check_shown`] changes nothing (but alarms a token that two have), so that it comes before every other check;
//! [`Core::record_shown`] follows when all of them are good. Records are durable: a restart makes no token new.
//!
//! Bounds: so many tokens in all, of a service and of a device key, with a reserve for machines that are signed in.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Duration,
};

use postern_common::{
    id::{DeviceId, ServiceName},
    key::DevicePublicKey,
    protocol::Refusal,
    time::{Monotonic, Now, WallTime},
};

use super::{core::Core, platform::Refused};
use crate::{
    records::{Reuse, StoreChange, TokenHash, TokenUseRecord, Workload},
    signals::alerts::{About, AlertKind},
};

/// The most tokens that are remembered. A thousand machines with a fresh one each hour need two thousand.
const MAX_SEEN: usize = 50_000;
/// The most of those of one service.
const MAX_SEEN_OF_SERVICE: usize = 25_000;
/// How many of either only machines may use that are signed in already.
pub(super) const SEEN_FOR_RENEWALS: usize = 5_000;
/// The most tokens that are remembered of one device key: one that lives for ten minutes is renewed 26 times while they are.
const MAX_SEEN_OF_KEY: usize = 64;
/// How long a token is remembered after its end: a clock that is set back by less must not make it new.
const KEPT_AFTER_END: Duration = Duration::from_secs(2 * 3_600);

/// A token that was shown.
#[derive(Debug)]
pub(super) struct Seen {
    record: TokenUseRecord,
    /// When it ends, on the clock that nobody sets.
    over: Monotonic,
    /// Whether its use by another machine was alarmed.
    alarmed: bool,
}

impl Seen {
    fn load(record: TokenUseRecord, now: Now) -> Self {
        let over = now.monotonic.saturating_add(record.expires.since(now.wall));
        Self { record, over, alarmed: false }
    }
}

/// The tokens that were shown, and how many of them each device key and service has: nobody's next one goes through all of them.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// In the order of their hashes: what is stored of many is stored in one order.
    seen: BTreeMap<TokenHash, Seen>,
    of_key: HashMap<DevicePublicKey, usize>,
    of_service: HashMap<ServiceName, usize>,
}

impl Shown {
    pub(super) fn load(records: Vec<TokenUseRecord>, now: Now) -> Self {
        let mut shown = Self::default();
        records.into_iter().for_each(|record| shown.insert(Seen::load(record, now)));
        shown
    }

    fn insert(&mut self, seen: Seen) {
        let (key, service) = (seen.record.key, seen.record.service.clone());
        if self.seen.insert(seen.record.token, seen).is_some() {
            return; // of the same key and service as before
        }
        *self.of_key.entry(key).or_default() += 1;
        if let Some(service) = service {
            *self.of_service.entry(service).or_default() += 1;
        }
    }

    fn remove(&mut self, token: TokenHash) {
        let Some(Seen { record, .. }) = self.seen.remove(&token) else { return };
        one_less(&mut self.of_key, &record.key);
        if let Some(service) = &record.service {
            one_less(&mut self.of_service, service);
        }
    }
}

fn one_less<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, of: &K) {
    if let Some(count) = counts.get_mut(of) {
        *count -= 1;
        if *count == 0 {
            counts.remove(of);
        }
    }
}

impl Core {
    /// Tells whether a token may be shown by this device key, and alarms if it is another's. Changes nothing else.
    pub(super) fn check_shown(
        &mut self,
        workload: &Workload,
        key: DevicePublicKey,
        reserve: usize,
        from: IpAddr,
        now: Now,
    ) -> Result<(), Refused> {
        let later = now.wall.max(self.steady(now));
        if workload.expires <= later {
            let hint = if now.wall < later {
                ": the controller's clock went back; if it is right now: postern-controller clock accept"
            } else {
                ""
            };
            return Err((Refusal::BadToken, format!("the platform's token has expired{hint}")));
        }
        if self.meta.restored.is_some_and(|restored| workload.issued < restored) {
            let message = "the controller was restored from a backup after this token was issued: the platform's next one is taken";
            return Err((Refusal::BadToken, message.into()));
        }
        if let Some(seen) = self.platform.shown.seen.get_mut(&workload.token) {
            if seen.record.key != key {
                let was_alarmed = std::mem::replace(&mut seen.alarmed, true);
                if !was_alarmed {
                    let text = format!(
                        "a token of {} ({}) was shown by a second machine, from {from}: one of the two has stolen it",
                        workload.subject, workload.issuer
                    );
                    let subject = self.registry.service(&workload.service).map(|service| service.id);
                    self.alert(AlertKind::TokenReplayed, text, About { subject, ..About::default() }, now);
                }
                let message = "another machine has shown this token before: each needs its own. A machine that has lost its state waits for the platform's next token";
                return Err((Refusal::BadToken, message.into()));
            }
            if seen.record.spent {
                let message = "what this token opened was taken back: the platform's next one is taken, unless an administrator revoked the machine";
                return Err((Refusal::BadToken, message.into()));
            }
            if seen.over <= now.monotonic || workload.reuse == Reuse::Never {
                return Err((Refusal::BadToken, "this token was shown before: the platform gives a new one".into()));
            }
            return Ok(());
        }
        let shown = &self.platform.shown;
        let of_key = shown.of_key.get(&key).copied().unwrap_or(0);
        let of_service = shown.of_service.get(&workload.service).copied().unwrap_or(0);
        let full = shown.seen.len() + reserve >= MAX_SEEN || of_service + reserve >= MAX_SEEN_OF_SERVICE;
        if full || of_key >= MAX_SEEN_OF_KEY {
            self.counters.rate_limited += 1;
            return Err((Refusal::Busy, "the controller remembers too many tokens: try again in an hour".into()));
        }
        Ok(())
    }

    /// Takes a token as shown by this device key.
    pub(super) fn record_shown(&mut self, workload: &Workload, key: DevicePublicKey, now: Now) {
        if self.platform.shown.seen.contains_key(&workload.token) {
            return;
        }
        let later = now.wall.max(self.steady(now));
        let record = TokenUseRecord {
            token: workload.token,
            key,
            service: Some(workload.service.clone()),
            expires: workload.expires,
            spent: false,
        };
        self.out.store(StoreChange::PutTokenUse(record.clone()));
        let over = now.monotonic.saturating_add(workload.expires.since(later));
        self.platform.shown.insert(Seen { record, over, alarmed: false });
    }

    /// Returns the wall time that it would be if nobody had set the clock.
    pub(super) fn steady(&self, now: Now) -> WallTime {
        self.clock.steady(now)
    }

    /// Spends the tokens of a device whose session was ended before its time: none of them opens anything again.
    pub(super) fn spend_tokens(&mut self, device: DeviceId) {
        let key = self.registry.device(device).filter(|device| device.platform.is_some()).and_then(|d| d.key);
        for seen in
            self.platform.shown.seen.values_mut().filter(|seen| Some(seen.record.key) == key && !seen.record.spent)
        {
            seen.record.spent = true;
            self.out.store(StoreChange::PutTokenUse(seen.record.clone()));
        }
    }

    /// Forgets tokens that ended long before this time, the earlier one of two clocks.
    pub(super) fn sweep_shown(&mut self, earlier: WallTime) {
        let old: Vec<TokenHash> = self
            .platform
            .shown
            .seen
            .values()
            .filter(|seen| seen.record.expires.saturating_add(KEPT_AFTER_END) <= earlier)
            .map(|seen| seen.record.token)
            .collect();
        for token in old {
            self.platform.shown.remove(token);
            self.out.store(StoreChange::DeleteTokenUse(token));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_counted_by_key_and_service_as_they_come_and_go() {
        let now = Now { monotonic: Monotonic::from_millis(0), wall: WallTime::from_millis(0) };
        let key = |n: u8| postern_common::key::DeviceSigningKey::from_seed(&[n; 32]).public();
        let record = |n: u8| TokenUseRecord {
            token: TokenHash::from_bytes([n; 32]),
            key: key(n % 3),
            service: n.is_multiple_of(2).then(|| "payroll".parse().expect("a name")),
            expires: WallTime::from_millis(1_000),
            spent: false,
        };
        let mut shown = Shown::load((0..12).map(record).collect(), now);
        shown.insert(Seen::load(record(11), now)); // again
        let counts = |shown: &Shown| {
            let of_key = [0, 1, 2].map(|n| shown.of_key.get(&key(n)).copied());
            (of_key, shown.of_service.values().copied().collect::<Vec<_>>())
        };
        assert_eq!(counts(&shown), ([Some(4); 3], vec![6]));
        (0..11).for_each(|n| shown.remove(TokenHash::from_bytes([n; 32])));
        shown.remove(TokenHash::from_bytes([0; 32])); // it is gone
        assert_eq!(counts(&shown), ([None, None, Some(1)], vec![]));
        shown.remove(TokenHash::from_bytes([11; 32]));
        assert!(shown.seen.is_empty() && shown.of_key.is_empty());
    }
}
