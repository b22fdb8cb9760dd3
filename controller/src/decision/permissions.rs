//! Lists of permissions: what of them is live, what covers what, what a change takes away.

use std::sync::Arc;

use postern_common::{
    grant::Permission,
    net::Service,
    time::{Deadline, Monotonic, Now, WallTime},
};

/// What one device may open on another, with deadlines of the controller's clocks. Shared between what is wanted, what
/// was sent and what was acknowledged.
pub(crate) type Permissions = Arc<[Permission<Deadline>]>;

fn covers(wide: &Service, narrow: &Service) -> bool {
    wide.intersection(narrow) == Some(*narrow)
}

/// Returns the permissions whose deadline has not come.
pub(crate) fn live(permissions: &Permissions, now: Now) -> Permissions {
    if permissions.iter().all(|permission| !permission.until.has_passed(now)) {
        return permissions.clone();
    }
    permissions.iter().filter(|permission| !permission.until.has_passed(now)).cloned().collect()
}

/// Returns what of `wanted` the destination surely lets in: services that `acknowledged` covers, no longer than those.
///
/// It goes by what can pass and not by which rule says so: a rule that gets another name must not cut a flow at its
/// source while the destination is being told.
pub(crate) fn covered(wanted: &Permissions, acknowledged: &Permissions) -> Permissions {
    if Arc::ptr_eq(wanted, acknowledged) {
        return wanted.clone();
    }
    let mut told = Vec::new();
    for permission in wanted.iter() {
        let cover = |service: &Service| {
            let by = acknowledged.iter().filter(|known| known.services.iter().any(|wide| covers(wide, service)));
            by.map(|known| known.until).reduce(|a, b| if b.monotonic > a.monotonic { b } else { a })
        };
        let covers: Vec<(Service, Deadline)> =
            permission.services.iter().filter_map(|service| Some((*service, cover(service)?))).collect();
        if let Some(until) = covers.iter().map(|(_, until)| *until).reduce(Deadline::min) {
            let services = covers.into_iter().map(|(service, _)| service).collect();
            told.push(Permission { services, until: permission.until.min(until), ..permission.clone() });
        }
    }
    told.into()
}

/// Tells whether going from `old` to `new` closes anything: such a change waits for nothing.
pub(crate) fn narrows(old: &Permissions, new: &Permissions) -> bool {
    old.iter().any(|before| {
        before.services.iter().any(|service| {
            !new.iter().any(|after| {
                after.until.monotonic >= before.until.monotonic
                    && after.services.iter().any(|wide| covers(wide, service))
            })
        })
    })
}

/// Tells whether going from `old` to `new` takes a service away, whatever becomes of its time.
pub(crate) fn loses(old: &Permissions, new: &Permissions) -> bool {
    let kept = |service: &Service| new.iter().any(|after| after.services.iter().any(|wide| covers(wide, service)));
    old.iter().any(|before| before.services.iter().any(|service| !kept(service)))
}

/// Returns the first deadline on the monotonic clock; [`Monotonic::NEVER`] if there is none.
pub(crate) fn earliest(permissions: &Permissions) -> Monotonic {
    permissions.iter().map(|permission| permission.until.monotonic).min().unwrap_or(Monotonic::NEVER)
}

/// Returns the last deadline on each clock, if there is any permission.
pub(crate) fn latest(permissions: &Permissions) -> Option<(Monotonic, WallTime)> {
    let last = permissions.iter().map(|permission| permission.until);
    last.map(|until| (until.monotonic, until.wall)).reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)))
}

#[cfg(test)]
mod tests {
    use postern_common::{
        grant::{Mode, OnDeny},
        id::LeaseId,
    };

    use super::*;

    fn permissions(of: &[(&str, &[&str], u64)]) -> Permissions {
        of.iter()
            .map(|(rule, services, until)| Permission {
                rule: rule.parse().expect("a name"),
                resource: "r".parse().expect("a name"),
                lease: LeaseId::from_bytes([1; 16]),
                services: services.iter().map(|s| s.parse().expect("a service")).collect(),
                until: Deadline {
                    monotonic: Monotonic::from_millis(*until),
                    wall: WallTime::from_millis(*until as i64),
                },
                on_deny: OnDeny::Drop,
                mode: Mode::Enforce,
                limits: Default::default(),
            })
            .collect()
    }

    #[test]
    fn the_source_is_told_no_more_and_no_longer_than_the_destination_acknowledged() {
        let wanted = permissions(&[("a", &["tcp/443", "tcp/80"], 100), ("b", &["udp/53"], 50)]);
        let none = permissions(&[]);
        assert_eq!(covered(&wanted, &none), none);
        let acknowledged = permissions(&[("old name", &["tcp/400-500"], 70), ("c", &["udp/53"], 90)]);
        assert_eq!(
            covered(&wanted, &acknowledged),
            permissions(&[("a", &["tcp/443"], 70), ("b", &["udp/53"], 50)]),
            "covered services alone, each with the earlier deadline, whatever the rule is called"
        );
    }

    #[test]
    fn less_service_or_less_time_is_narrower() {
        let before = permissions(&[("a", &["tcp/443", "tcp/80"], 100)]);
        assert!(!narrows(&before, &permissions(&[("b", &["tcp/*"], 100)])));
        assert!(narrows(&before, &permissions(&[("a", &["tcp/443"], 100)])));
        assert!(narrows(&before, &permissions(&[("a", &["tcp/443", "tcp/80"], 99)])));
        assert!(!narrows(&permissions(&[]), &before));
        assert!(loses(&before, &permissions(&[("a", &["tcp/443"], 100)])));
        assert!(!loses(&before, &permissions(&[("b", &["tcp/*"], 1)])));
    }
}
