//! One peer's permissions in one direction, compiled for lookup by protocol and port.
//!
//! Ports are cut into segments in which the same permission is the best one: sorted, without overlaps, searched by
//! bisection. So a lookup costs the same few steps for ten rules and for a hundred thousand, and memory grows with the
//! number of permissions, not with their overlaps.
//!
//! Two such indices are kept. `live` leads to the best permission that has not expired: enforced before watched, then
//! the one that lives longest. It is laid out anew, lazily, when a renewal moved deadlines or when the best
//! permission somewhere has expired, so that the next best takes over. `named` ignores time; it tells *expired* from
//! *never permitted* without a search.
//!
//! A permission keeps its place in the list for as long as its content lives, whatever happens to its deadline. Flow
//! entries hold that place and the generation, and thereby follow a renewal without being touched.
//!
//! Rejected: a list of every permission that covers a segment. It is quadratic in overlapping rules.

use std::{collections::BinaryHeap, sync::Arc};

use postern_common::{
    flow_record::PermitRecord,
    grant::{Mode, OnDeny, Permission},
    limit::Limit,
    net::{Protocol, Service},
    reason::DenyReason,
    time::{Deadline, Now},
};

use super::meters::MeterIndex;
use crate::status::PermissionStatus;

/// The place of a permission in its list; it means something only together with a peer, a direction and a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PermissionIndex(u32);

/// Permissions of one direction.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    permissions: Vec<Compiled>,
    named: PortIndex,
    live: PortIndex,
    live_is_current: bool,
    /// Whether a permission is shut because a limit was passed.
    has_shut: bool,
}

#[derive(Debug)]
struct Compiled {
    permission: Permission<Deadline>,
    basis: Arc<PermitRecord>,
    meter: MeterIndex,
    shut: Option<Limit>,
}

impl Rules {
    /// Tells whether nothing is permitted.
    pub(crate) fn is_empty(&self) -> bool {
        self.permissions.is_empty()
    }

    /// Compiles `permissions`. Costs n log n in the number of their services.
    pub(crate) fn compile(permissions: Vec<Permission<Deadline>>) -> Self {
        let permissions: Vec<_> = permissions.into_iter().map(Compiled::new).collect();
        let named = PortIndex::lay_out(&permissions, |_, index| Some(Rank { preference: (0, 0), index }));
        Self { permissions, named, live: PortIndex::default(), live_is_current: false, has_shut: false }
    }

    /// Tells whether `permissions` has the content that was compiled, in the same order, whatever the deadlines.
    pub(crate) fn has_content_of(&self, permissions: &[Permission<Deadline>]) -> bool {
        self.permissions.len() == permissions.len()
            && self.permissions.iter().zip(permissions).all(|(compiled, offered)| compiled.has_content_of(offered))
    }

    /// Tells whether the deadlines are also the same.
    pub(crate) fn has_deadlines_of(&self, permissions: &[Permission<Deadline>]) -> bool {
        self.deadlines().eq(permissions.iter().map(|permission| permission.until))
    }

    /// Moves every deadline; `permissions` has the content that was compiled.
    pub(crate) fn renew(&mut self, permissions: &[Permission<Deadline>]) {
        for (compiled, permission) in self.permissions.iter_mut().zip(permissions) {
            compiled.permission.until = permission.until;
        }
        self.live_is_current = false;
    }

    /// Forgets what it knows about time: to be called when the wall clock was set back.
    pub(crate) fn distrust_clock(&mut self) {
        self.live_is_current = false;
    }

    /// Finds the best live permission for `protocol` and `port`.
    ///
    /// # Errors
    /// [`DenyReason::Expired`] if only expired permissions name them, [`DenyReason::NoRule`] if none does.
    pub(crate) fn find(&mut self, protocol: Protocol, port: u16, now: Now) -> Result<PermissionIndex, DenyReason> {
        if !self.names(protocol, port) {
            return Err(DenyReason::NoRule);
        }
        // Twice at most: an index laid out at `now` leads to nothing that has passed at `now`.
        for _ in 0..2 {
            if !self.live_is_current {
                self.lay_out_live(now);
            }
            match self.live.best(protocol, port) {
                Some(best) if self.permissions[best as usize].permission.until.has_passed(now) => {
                    self.live_is_current = false
                }
                Some(best) => return Ok(PermissionIndex(best)),
                None => break,
            }
        }
        Err(if self.shut_by(protocol, port, now).is_some() { DenyReason::Limit } else { DenyReason::Expired })
    }

    /// Tells whether any permission, open or not, names `protocol` and `port`.
    pub(crate) fn names(&self, protocol: Protocol, port: u16) -> bool {
        self.named.best(protocol, port).is_some()
    }

    /// Returns the limit that shuts what would else be open.
    pub(crate) fn shut_by(&self, protocol: Protocol, port: u16, now: Now) -> Option<Limit> {
        if !self.has_shut {
            return None;
        }
        let covers = |p: &Permission<Deadline>| p.services.iter().any(|service| service.contains(protocol, port));
        let open = |p: &Permission<Deadline>| !p.until.has_passed(now) && covers(p);
        self.permissions.iter().filter(|compiled| open(&compiled.permission)).find_map(|compiled| compiled.shut)
    }

    /// Gives every limited permission its meter; `hold` finds it, and says whether a limit of it was passed before.
    pub(crate) fn meter(&mut self, mut hold: impl FnMut(&Permission<Deadline>) -> (MeterIndex, Option<Limit>)) {
        for compiled in &mut self.permissions {
            (compiled.meter, compiled.shut) = hold(&compiled.permission);
            self.has_shut |= compiled.shut.is_some();
        }
        self.live_is_current = false;
    }

    /// Lists the meters that are held.
    pub(crate) fn meters(&self) -> impl Iterator<Item = MeterIndex> + '_ {
        self.permissions.iter().map(|compiled| compiled.meter).filter(|meter| *meter != MeterIndex::NONE)
    }

    /// Returns a permission's meter.
    pub(crate) fn meter_of(&self, index: PermissionIndex) -> MeterIndex {
        self.permissions[index.0 as usize].meter
    }

    /// Shuts the permissions of a meter; tells whether there is one that was open.
    pub(crate) fn shut(&mut self, meter: MeterIndex, limit: Limit) -> bool {
        let mut any = false;
        for compiled in self.permissions.iter_mut().filter(|compiled| compiled.meter == meter) {
            any |= compiled.shut.replace(limit).is_none();
        }
        self.has_shut |= any;
        self.live_is_current &= !any;
        any
    }

    fn lay_out_live(&mut self, now: Now) {
        self.live = PortIndex::lay_out(&self.permissions, |Compiled { permission, shut, .. }, index| {
            if permission.until.has_passed(now) || shut.is_some() {
                return None;
            }
            let remaining = u64::try_from(permission.until.remaining(now).as_nanos()).unwrap_or(u64::MAX);
            Some(Rank { preference: (u8::from(permission.mode == Mode::Enforce), remaining), index })
        });
        self.live_is_current = true;
    }

    /// Returns the deadline of a permission.
    pub(crate) fn until(&self, index: PermissionIndex) -> Deadline {
        self.permissions[index.0 as usize].permission.until
    }

    /// Returns what the permission rests on.
    pub(crate) fn basis(&self, index: PermissionIndex) -> &Arc<PermitRecord> {
        &self.permissions[index.0 as usize].basis
    }

    /// Tells whether any live permission wants refusals to be answered.
    pub(crate) fn rejects(&self, now: Now) -> bool {
        let rejects = |p: &Permission<Deadline>| p.on_deny == OnDeny::Reject && !p.until.has_passed(now);
        self.permissions.iter().any(|compiled| rejects(&compiled.permission))
    }

    /// Lists the services of every permission, open or not.
    pub(crate) fn services(&self) -> impl DoubleEndedIterator<Item = &Service> {
        self.permissions.iter().flat_map(|compiled| &compiled.permission.services)
    }

    /// Lists the deadlines.
    pub(crate) fn deadlines(&self) -> impl Iterator<Item = Deadline> + '_ {
        self.permissions.iter().map(|compiled| compiled.permission.until)
    }

    /// Lists the permissions for people.
    pub(crate) fn status(&self) -> Vec<PermissionStatus> {
        let status = |p: &Compiled| PermissionStatus {
            permit: (*p.basis).clone(),
            services: p.permission.services.clone(),
            until: p.permission.until,
        };
        self.permissions.iter().map(status).collect()
    }
}

impl Compiled {
    fn new(permission: Permission<Deadline>) -> Self {
        let would_deny = match &permission.mode {
            Mode::Enforce => None,
            Mode::Monitor { would_deny } => Some(would_deny.clone()),
        };
        let (rule, resource, lease) = (permission.rule.clone(), permission.resource.clone(), permission.lease);
        let basis = Arc::new(PermitRecord { rule, resource, lease, would_deny });
        Self { permission, basis, meter: MeterIndex::NONE, shut: None }
    }

    fn has_content_of(&self, offered: &Permission<Deadline>) -> bool {
        let Permission { rule, resource, lease, services, until: _, on_deny, mode, limits } = &self.permission;
        *rule == offered.rule
            && *resource == offered.resource
            && *lease == offered.lease
            && *services == offered.services
            && *on_deny == offered.on_deny
            && *mode == offered.mode
            && *limits == offered.limits
    }
}

/// How good a permission is; the greater, the better. Equal ones go by their place in the list, the first being best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rank {
    preference: (u8, u64),
    index: u32,
}

impl Ord for Rank {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.preference.cmp(&other.preference).then(other.index.cmp(&self.index))
    }
}

impl PartialOrd for Rank {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Which permission is best at a port.
#[derive(Debug, Default)]
struct PortIndex {
    tcp: Vec<Segment>,
    udp: Vec<Segment>,
    icmp: Option<u32>,
}

/// From `first` to the next segment's `first`, `best` is the best permission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    first: u16,
    best: Option<u32>,
}

impl PortIndex {
    fn best(&self, protocol: Protocol, port: u16) -> Option<u32> {
        let segments = match protocol {
            Protocol::Tcp => &self.tcp,
            Protocol::Udp => &self.udp,
            Protocol::Icmp => return self.icmp,
        };
        let after = segments.partition_point(|segment| segment.first <= port);
        after.checked_sub(1).and_then(|place| segments[place].best)
    }

    fn lay_out(permissions: &[Compiled], rank: impl Fn(&Compiled, u32) -> Option<Rank>) -> Self {
        let mut tcp = Vec::new();
        let mut udp = Vec::new();
        let mut icmp: Option<Rank> = None;
        for (index, permission) in permissions.iter().enumerate() {
            let Some(rank) = u32::try_from(index).ok().and_then(|index| rank(permission, index)) else { continue };
            for service in &permission.permission.services {
                let ports = service.ports();
                match service.protocol() {
                    Protocol::Tcp => tcp.push((ports.first(), ports.last(), rank)),
                    Protocol::Udp => udp.push((ports.first(), ports.last(), rank)),
                    Protocol::Icmp => icmp = icmp.max(Some(rank)),
                }
            }
        }
        Self { tcp: sweep(tcp), udp: sweep(udp), icmp: icmp.map(|rank| rank.index) }
    }
}

/// Sweeps over the ports from below: at each border, intervals begin (and enter the heap) or have ended (and leave it
/// once they come to the top), and the top of the heap is the best.
fn sweep(mut intervals: Vec<(u16, u16, Rank)>) -> Vec<Segment> {
    intervals.sort_unstable_by_key(|(first, ..)| *first);
    let mut borders: Vec<u16> =
        intervals.iter().flat_map(|(first, last, _)| [Some(*first), last.checked_add(1)]).flatten().collect();
    borders.sort_unstable();
    borders.dedup();
    let mut segments: Vec<Segment> = Vec::with_capacity(borders.len());
    let mut open: BinaryHeap<(Rank, u16)> = BinaryHeap::new();
    let mut coming = intervals.into_iter().peekable();
    for border in borders {
        while let Some((_, last, rank)) = coming.next_if(|(first, ..)| *first == border) {
            open.push((rank, last));
        }
        while open.peek().is_some_and(|(_, last)| *last < border) {
            open.pop();
        }
        let best = open.peek().map(|(rank, _)| rank.index);
        if segments.last().map(|segment| segment.best) != Some(best) {
            segments.push(Segment { first: border, best });
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use postern_common::{
        id::LeaseId,
        time::{Monotonic, WallTime},
    };

    use super::*;

    fn now(seconds: u64) -> Now {
        Now { monotonic: Monotonic::from_millis(seconds * 1_000), wall: WallTime::from_millis(0) }
    }

    fn permission(name: &str, services: &[&str], seconds: u64, mode: Mode) -> Permission<Deadline> {
        Permission {
            rule: name.parse().unwrap(),
            resource: "r".parse().unwrap(),
            lease: LeaseId::from_bytes([1; 16]),
            services: services.iter().map(|s| s.parse().unwrap()).collect(),
            until: Deadline { monotonic: Monotonic::from_millis(seconds * 1_000), wall: WallTime::NEVER },
            on_deny: OnDeny::Drop,
            mode,
            limits: Default::default(),
        }
    }

    fn watch() -> Mode {
        Mode::Monitor { would_deny: "posture".into() }
    }

    fn rule(rules: &mut Rules, protocol: Protocol, port: u16, at: u64) -> Result<String, DenyReason> {
        rules.find(protocol, port, now(at)).map(|index| rules.basis(index).rule.to_string())
    }

    #[test]
    fn the_empty_list_permits_nothing() {
        let mut rules = Rules::compile(vec![]);
        for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
            assert_eq!(rule(&mut rules, protocol, 443, 0), Err(DenyReason::NoRule));
        }
    }

    #[test]
    fn borders_of_ranges_are_exact() {
        let mut rules = Rules::compile(vec![permission("a", &["tcp/10-20", "udp/65535"], 10, Mode::Enforce)]);
        for (port, inside) in [(9, false), (10, true), (20, true), (21, false), (65_535, false)] {
            assert_eq!(rule(&mut rules, Protocol::Tcp, port, 0).is_ok(), inside, "{port}");
        }
        assert_eq!(rule(&mut rules, Protocol::Udp, 65_535, 0).as_deref(), Ok("a"));
        assert_eq!(rule(&mut rules, Protocol::Udp, 65_534, 0), Err(DenyReason::NoRule));
        assert_eq!(rule(&mut rules, Protocol::Icmp, 10, 0), Err(DenyReason::NoRule));
    }

    #[test]
    fn enforced_comes_before_watched_and_then_the_longest_lived() {
        let mut rules = Rules::compile(vec![
            permission("watched", &["tcp/*"], 100, watch()),
            permission("short", &["tcp/80-90"], 10, Mode::Enforce),
            permission("long", &["tcp/85-95"], 20, Mode::Enforce),
        ]);
        for (port, at, expected) in [
            (80, 0, Ok("short")),
            (85, 0, Ok("long")),
            (95, 0, Ok("long")),
            (96, 0, Ok("watched")),
            (84, 10, Ok("watched")),
            (85, 19, Ok("long")),
            (85, 20, Ok("watched")),
            (85, 100, Err(DenyReason::Expired)),
        ] {
            assert_eq!(rule(&mut rules, Protocol::Tcp, port, at).as_deref(), expected.as_deref(), "{port} at {at}");
        }
    }

    #[test]
    fn a_renewal_moves_deadlines_without_moving_places() {
        let before = [permission("a", &["tcp/1"], 10, Mode::Enforce), permission("b", &["tcp/1"], 20, Mode::Enforce)];
        let mut rules = Rules::compile(before.to_vec());
        let place = rules.find(Protocol::Tcp, 1, now(0)).unwrap();
        let after = [permission("a", &["tcp/1"], 90, Mode::Enforce), permission("b", &["tcp/1"], 80, Mode::Enforce)];
        rules.renew(&after);
        assert_eq!(rules.until(place), after[1].until, "the entry that holds the place follows");
        assert_eq!(rule(&mut rules, Protocol::Tcp, 1, 0).as_deref(), Ok("a"));
    }

    #[test]
    fn a_lookup_among_100_000_rules_costs_about_as_much_as_among_ten() {
        let cost = |count: u32| {
            let permissions: Vec<_> = (0..count)
                .map(|i| permission("r", &[&format!("tcp/{}", 1 + i % 65_000), "udp/*"], 1_000, Mode::Enforce))
                .collect();
            let mut rules = Rules::compile(permissions);
            assert!(rules.find(Protocol::Tcp, 5, now(0)).is_ok());
            let mut best = Duration::MAX;
            for _ in 0..20 {
                let begun = Instant::now();
                for port in 0..5_000_u16 {
                    std::hint::black_box(rules.find(Protocol::Tcp, port, now(1)).is_ok());
                }
                best = best.min(begun.elapsed());
            }
            best
        };
        let (few, many) = (cost(10), cost(100_000));
        assert!(many < few * 20 + Duration::from_millis(1), "10: {few:?}, 100,000: {many:?}");
    }
}
