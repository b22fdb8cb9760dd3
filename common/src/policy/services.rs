//! What is left of a set of services when a deny takes some away.

use crate::net::{PortRange, Protocol, Service};

/// Splits `services` by what `other` covers: first what both name, then what `services` alone name.
///
/// A port range from which the middle is taken becomes two. Port 0, which nobody can name, is dropped when a range is split.
pub(super) fn split(services: &[Service], other: &[Service]) -> (Vec<Service>, Vec<Service>) {
    let mut inside = Vec::new();
    let mut outside: Vec<Service> = services.to_vec();
    for cut in other {
        let mut rest = Vec::with_capacity(outside.len());
        for service in outside {
            match service.intersection(cut) {
                None => rest.push(service),
                Some(both) => {
                    rest.extend(around(service, both));
                    inside.push(both);
                }
            }
        }
        outside = rest;
    }
    (inside, outside)
}

/// Returns what of `service` lies below and above `middle`, which is a part of it.
fn around(service: Service, middle: Service) -> impl Iterator<Item = Service> {
    let (all, cut) = (service.ports(), middle.ports());
    let (below, above) = match service.protocol() {
        Protocol::Icmp => (None, None),
        Protocol::Tcp | Protocol::Udp => (
            cut.first().checked_sub(1).and_then(|last| PortRange::new(all.first().max(1), last)),
            cut.last().checked_add(1).and_then(|first| PortRange::new(first, all.last())),
        ),
    };
    below.into_iter().chain(above).map(move |ports| Service::new(service.protocol(), ports))
}

/// Tells whether the two sets share a protocol and port.
pub(super) fn overlap(a: &[Service], b: &[Service]) -> bool {
    a.iter().any(|a| b.iter().any(|b| a.intersection(b).is_some()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn services(texts: &[&str]) -> Vec<Service> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    }

    #[test]
    fn a_hole_in_a_range_leaves_two_ranges_that_still_have_a_name() {
        let (inside, outside) = split(&services(&["tcp/*", "icmp"]), &services(&["tcp/443", "udp/1-9", "icmp"]));
        assert_eq!(inside, services(&["tcp/443", "icmp"]));
        assert_eq!(outside, services(&["tcp/1-442", "tcp/444-65535"]));
        let (_, outside) = split(&services(&["tcp/*"]), &services(&["tcp/1-65535"]));
        assert_eq!(outside, []);
    }

    fn any_service() -> impl Strategy<Value = Service> {
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Icmp)];
        (protocol, 1u16..40, 0u16..20).prop_map(|(protocol, first, length)| {
            Service::new(protocol, PortRange::new(first, first + length).expect("a range"))
        })
    }

    proptest! {
        #[test]
        fn splitting_loses_no_port_and_invents_none(
            a in proptest::collection::vec(any_service(), 0..5),
            b in proptest::collection::vec(any_service(), 0..5),
        ) {
            let (inside, outside) = split(&a, &b);
            let has = |set: &[Service], protocol, port| set.iter().any(|s| s.contains(protocol, port));
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
                for port in 1..70 {
                    let (in_a, in_b) = (has(&a, protocol, port), has(&b, protocol, port));
                    prop_assert_eq!(has(&inside, protocol, port), in_a && in_b);
                    prop_assert_eq!(has(&outside, protocol, port), in_a && !in_b);
                }
            }
            prop_assert!(outside.iter().all(|s| s.to_string().parse() == Ok(*s)), "what is left can be written");
        }
    }
}
