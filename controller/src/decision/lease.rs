//! Leases: what one login session or service on one device holds, each part with its own deadline.

use std::{collections::BTreeMap, time::Duration};

use postern_common::{
    grant::Permission,
    id::DeviceId,
    limit::{Limit, ScanLimit},
    policy::{Entitlement, StepUp},
    time::{Deadline, Monotonic, Now, WallTime},
};

use super::permissions::Permissions;
use crate::records::{LaterPart, LeaseRecord, RestraintRecord, budget_of};

/// How often a lease of a connected device is checked against policy and the clock, in wall time: at every full minute,
/// because that is how fine `hours` in a policy are.
const CHECK_EVERY: i64 = 60_000;
/// A renewal comes after two thirds of a lease's life, or up to this part of it earlier.
const RENEWAL_JITTER: u32 = 10;

/// The least time from one look at a lease to the next.
const MIN_WAIT: Duration = Duration::from_millis(10);

/// The bounds on leases.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// The shortest.
    pub(crate) min: Duration,
    /// The longest.
    pub(crate) max: Duration,
}

/// An entitlement with the deadline that was given to it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Granted {
    pub(crate) entitlement: Entitlement,
    pub(crate) until: Deadline,
    /// When its time began.
    pub(crate) since: WallTime,
    /// Whether a renewal can move the deadline: it was the lease's length that set it, and nothing else.
    pub(crate) renewable: bool,
}

/// Whether deadlines may move later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extend {
    /// What is held already keeps its deadline, or gets an earlier one.
    No,
    /// Everything gets its full time from now.
    Yes,
}

/// A live lease.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) record: LeaseRecord,
    /// When the record's `until` comes.
    pub(crate) deadline: Deadline,
    /// When it should be renewed, if its device is there.
    pub(crate) renew_at: Monotonic,
    pub(crate) granted: Vec<Granted>,
    /// What stronger or fresher proof of sign-in would open besides.
    pub(crate) step_ups: Vec<StepUp>,
    /// What of that the device's own document was last made from.
    pub(crate) offered: Vec<StepUp>,
    /// The nodes on which it has permissions now, in order.
    pub(crate) destinations: Vec<DeviceId>,
    /// From how many refused destinations on its device counts as one that scans.
    pub(crate) scan: Option<ScanLimit>,
}

/// Turns a wall time into a deadline on both clocks.
pub(crate) fn deadline(wall: WallTime, now: Now) -> Deadline {
    Deadline { monotonic: now.monotonic.saturating_add(wall.since(now.wall)), wall }
}

/// Returns what was held of what an entitlement gives: of several parts of one rule and resource, the one on the same nodes.
pub(crate) fn held_before<'a>(held: &'a [Granted], part: &Entitlement) -> Option<&'a Granted> {
    let same = |held: &&Granted| (&held.entitlement.rule, &held.entitlement.resource) == (&part.rule, &part.resource);
    let shared = |held: &&Granted| held.entitlement.nodes.iter().any(|node| part.nodes.contains(node));
    held.iter().filter(same).find(shared).or_else(|| held.iter().find(same))
}

/// Gives each entitlement a deadline: the rule's lease, bounded by `terms`, counted from what `since` says of it; never after the
/// entitlement's own `valid_until`, never after `session_until`. Without [`Extend::Yes`] what was held keeps the earlier
/// deadline.
pub(crate) fn grant(
    entitlements: Vec<Entitlement>,
    held: &[Granted],
    extend: Extend,
    terms: Terms,
    session_until: Option<WallTime>,
    since: impl Fn(&Entitlement) -> WallTime,
    now: Now,
) -> Vec<Granted> {
    let granted = entitlements.into_iter().map(|entitlement| {
        let mut since = since(&entitlement);
        let length = entitlement.lease.clamp(terms.min, terms.max);
        let end = since.saturating_add(length);
        let cap = entitlement.valid_until.min(session_until.unwrap_or(WallTime::NEVER));
        let mut until = deadline(end.min(cap), now);
        let mut renewable = end < cap;
        let before = held_before(held, &entitlement);
        if let (Some(before), Extend::No) = (before, extend)
            && !before.until.has_passed(now)
            && before.until.monotonic <= until.monotonic
        {
            until = before.until.min(until);
            since = before.since.min(since);
            renewable = before.until.wall < cap;
        }
        Granted { entitlement, until, since, renewable }
    });
    granted.filter(|granted| !granted.until.has_passed(now)).collect()
}

impl Lease {
    /// Lists what the lease opens on each node. Permissions are in the order of policy; what the subject was restrained for says which
    /// budgets of their limits nodes count in.
    pub(crate) fn by_destination(&self, restraints: &[RestraintRecord], now: Now) -> BTreeMap<DeviceId, Permissions> {
        let mut lists: BTreeMap<DeviceId, Vec<Permission<Deadline>>> = BTreeMap::new();
        for Granted { entitlement, until, .. } in self.granted.iter().filter(|granted| !granted.until.has_passed(now)) {
            for node in entitlement.nodes.iter().filter(|node| **node != self.record.device) {
                let (rule, resource) = (&entitlement.rule, &entitlement.resource);
                let budget = |limit: &Limit| budget_of(restraints, rule, resource, limit, *node);
                lists.entry(*node).or_default().push(Permission {
                    rule: entitlement.rule.clone(),
                    resource: entitlement.resource.clone(),
                    lease: self.record.id,
                    services: entitlement.services.clone(),
                    until: *until,
                    on_deny: entitlement.on_deny,
                    mode: entitlement.mode.clone(),
                    limits: entitlement.limits.iter().map(|limit| Limit { budget: budget(limit), ..*limit }).collect(),
                });
            }
        }
        lists.into_iter().map(|(node, list)| (node, list.into())).collect()
    }

    /// Lists the parts that began after the last renewal, as they are kept on record.
    pub(crate) fn later_parts(&self) -> Vec<LaterPart> {
        let later = self.granted.iter().filter(|granted| granted.since > self.record.renewed);
        let part = |Granted { entitlement, since, .. }: &Granted| LaterPart {
            rule: entitlement.rule.clone(),
            resource: entitlement.resource.clone(),
            since: *since,
        };
        later.map(part).collect()
    }

    /// Tells whether two thirds of the lease's life are over.
    pub(crate) fn wants_renewal(&self, now: Now) -> bool {
        now.monotonic >= self.renew_at
    }

    /// Works out when to renew: two thirds of the shortest renewable part, less up to a tenth of it; `draw` is random.
    pub(crate) fn schedule_renewal(&mut self, idle_life: Duration, draw: u32, now: Now) {
        let shortest =
            self.granted.iter().filter(|granted| granted.renewable).map(|granted| granted.until.remaining(now));
        let life = shortest.min().unwrap_or(idle_life);
        let jitter = life / RENEWAL_JITTER * (draw % 1_000) / 1_000;
        self.renew_at = now.monotonic.saturating_add(life * 2 / 3 - jitter);
    }

    /// Returns when the lease has to be looked at again; `check` if its device is there to be given more.
    pub(crate) fn next_look(&self, check: bool, draw: u32, now: Now) -> Monotonic {
        let ends = self.granted.iter().map(|granted| granted.until.monotonic);
        let end = ends.chain([self.deadline.monotonic]).min().unwrap_or(Monotonic::NEVER);
        // Never at once again: whatever the clocks do, looking must not become a loop.
        let end = end.max(now.monotonic.saturating_add(MIN_WAIT));
        if !check {
            return end;
        }
        let into = now.wall.as_millis().rem_euclid(CHECK_EVERY);
        let minute = u64::try_from(CHECK_EVERY - into).unwrap_or(60_000) + u64::from(draw % 500);
        let check = now.monotonic.saturating_add(Duration::from_millis(minute));
        end.min(check).min(self.renew_at.max(now.monotonic.saturating_add(MIN_WAIT)))
    }

    /// Returns until when the lease as a whole lasts: the last of its parts, or `idle_life` if it has none.
    pub(crate) fn last_deadline(&self, idle_life: Duration, session_until: Option<WallTime>, now: Now) -> Deadline {
        let last = self.granted.iter().map(|granted| granted.until).reduce(|a, b| if b.wall > a.wall { b } else { a });
        last.unwrap_or_else(|| {
            let end = now.wall.saturating_add(idle_life);
            deadline(end.min(session_until.unwrap_or(WallTime::NEVER)), now)
        })
    }
}
