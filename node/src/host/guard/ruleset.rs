//! The guard's rules as nft's text. Pure.
//!
//! Every chain is a base chain of its own at an early priority, and never says `accept` with more than a chain-local
//! meaning: in nftables a packet that one base chain accepts is still seen by every other, a dropped one by none. So
//! neither can another program's rule open what is closed here, nor do these rules open what another program closed.

use std::fmt::Write;

use ipnet::IpNet;
use postern_common::net::{PortRange, Protocol};

use super::{GuardCounters, GuardPlan, PlainAllow, PlainNetwork, TABLE};

/// Before connection tracking, defragmentation and everybody's raw tables.
const EARLIEST: i32 = -450;
/// After connection tracking (-200), before destination NAT (-100).
const BEFORE_DNAT: i32 = -150;

/// Writes a transaction that replaces the table, or makes it.
pub(super) fn render(plan: &GuardPlan) -> String {
    let mut text = String::with_capacity(4096);
    // `table` makes it if it is missing, so that `delete` cannot fail; all of it is one transaction.
    let _ = writeln!(text, "table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{");
    for counter in ["arrived", "leaving", "forwarded", "plain"] {
        let _ = writeln!(text, "  counter {counter} {{ }}");
    }
    let own: Vec<IpNet> = plan.own.iter().map(|address| IpNet::from(*address)).collect();
    set(&mut text, "overlay", &plan.overlay);
    set(&mut text, "own", &own);
    let tunnel = &plan.tunnel;
    for (chain, direction, counter) in [
        ("prerouting", "iifname", "arrived"),
        ("input", "iifname", "arrived"), // again, because destination NAT may have made an overlay address since
        ("output", "oifname", "leaving"),
        ("postrouting", "oifname", "leaving"), // again, because a mark may have changed the route since
    ] {
        let _ = writeln!(text, "  chain {chain} {{\n    type filter hook {chain} priority {EARLIEST}; policy accept;");
        let _ = writeln!(text, "    {direction} \"{tunnel}\" accept");
        for (family, suffix) in FAMILIES {
            for end in ["saddr", "daddr"] {
                let _ = writeln!(text, "    {direction} \"lo\" {family} {end} @own{suffix} accept");
            }
        }
        drop_overlay(&mut text, counter);
        let _ = writeln!(text, "  }}");
    }
    let _ = writeln!(text, "  chain forward {{\n    type filter hook forward priority {EARLIEST}; policy accept;");
    for direction in ["iifname", "oifname"] {
        let _ = writeln!(text, "    {direction} \"{tunnel}\" counter name forwarded drop");
    }
    drop_overlay(&mut text, "forwarded");
    let _ = writeln!(text, "  }}");
    match &plan.plain {
        PlainNetwork::Open => {}
        PlainNetwork::Closed { wireguard_port, allow } => closed(&mut text, tunnel, *wireguard_port, allow),
    }
    let _ = writeln!(text, "}}");
    text
}

const FAMILIES: [(&str, &str); 2] = [("ip", "4"), ("ip6", "6")];

fn set(text: &mut String, name: &str, prefixes: &[IpNet]) {
    for (kind, suffix, wanted) in [("ipv4_addr", "4", true), ("ipv6_addr", "6", false)] {
        let elements: Vec<String> = prefixes
            .iter()
            .filter(|prefix| matches!(prefix, IpNet::V4(_)) == wanted)
            .map(|prefix| prefix.to_string())
            .collect();
        let _ = write!(text, "  set {name}{suffix} {{ type {kind}; flags interval;");
        if !elements.is_empty() {
            let _ = write!(text, " elements = {{ {} }};", elements.join(", "));
        }
        let _ = writeln!(text, " }}");
    }
}

fn drop_overlay(text: &mut String, counter: &str) {
    for (family, suffix) in FAMILIES {
        for end in ["saddr", "daddr"] {
            let _ = writeln!(text, "    {family} {end} @overlay{suffix} counter name {counter} drop");
        }
    }
}

/// Closes what arrives for this machine, before destination NAT: a port that a container engine publishes is then
/// still addressed to this machine, and closed as any other.
fn closed(text: &mut String, tunnel: &str, wireguard_port: u16, allow: &[PlainAllow]) {
    let _ = writeln!(text, "  chain plain {{\n    type filter hook prerouting priority {BEFORE_DNAT}; policy accept;");
    let _ = writeln!(text, "    iifname {{ \"lo\", \"{tunnel}\" }} accept");
    let _ = writeln!(text, "    fib daddr type {{ unicast, blackhole, unreachable, prohibit }} accept");
    let _ = writeln!(text, "    ct state established,related accept");
    let _ = writeln!(text, "    udp dport {wireguard_port} accept");
    let _ = writeln!(text, "    icmp type {{ destination-unreachable, time-exceeded, parameter-problem }} accept");
    let _ = writeln!(
        text,
        "    icmpv6 type {{ destination-unreachable, packet-too-big, time-exceeded, parameter-problem }} accept"
    );
    let _ = writeln!(
        text,
        "    icmpv6 type {{ nd-router-solicit, nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, \
         nd-redirect }} ip6 hoplimit 255 accept"
    );
    let _ = writeln!(text, "    icmpv6 type {{ mld-listener-query }} ip6 saddr fe80::/10 accept");
    let _ = writeln!(text, "    udp sport 67 udp dport 68 accept");
    let _ = writeln!(text, "    ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept");
    for PlainAllow { service, from } in allow {
        let source = match from {
            Some(IpNet::V4(network)) => format!("ip saddr {network} "),
            Some(IpNet::V6(network)) => format!("ip6 saddr {network} "),
            None => String::new(),
        };
        let ports = service.ports();
        let matching = match (service.protocol(), ports) {
            (Protocol::Icmp, _) => "meta l4proto { icmp, ipv6-icmp }".to_owned(),
            (protocol @ (Protocol::Tcp | Protocol::Udp), PortRange::ALL) => format!("meta l4proto {protocol}"),
            (protocol @ (Protocol::Tcp | Protocol::Udp), _) => {
                format!("{protocol} dport {}-{}", ports.first(), ports.last())
            }
        };
        let _ = writeln!(text, "    {source}{matching} accept");
    }
    let _ = writeln!(text, "    counter name plain drop\n  }}");
}

/// Reads packet numbers out of `nft --json list counters`.
pub(super) fn parse_counters(json: &str) -> GuardCounters {
    let mut counters = GuardCounters::default();
    let value: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    for item in value["nftables"].as_array().into_iter().flatten() {
        let counter = &item["counter"];
        let packets = counter["packets"].as_u64().unwrap_or(0);
        match counter["name"].as_str() {
            Some("arrived") => counters.arrived = packets,
            Some("leaving") => counters.leaving = packets,
            Some("forwarded") => counters.forwarded = packets,
            Some("plain") => counters.plain = packets,
            Some(_) | None => {}
        }
    }
    counters
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn plan(plain: PlainNetwork) -> GuardPlan {
        let overlay = ["fd5a::/48", "100.64.0.0/16"].map(|net| net.parse().expect("a prefix")).to_vec();
        let own = ["fd5a::9", "100.64.0.9"].map(|address| address.parse().expect("an address")).to_vec();
        GuardPlan::new("postern0", overlay, own, plain).expect("a plan")
    }

    /// Returns each chain's rules, in order.
    fn chains(text: &str) -> BTreeMap<&str, Vec<&str>> {
        let mut chains: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut open = None;
        for line in text.lines().map(str::trim) {
            match (line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")), open) {
                (Some(name), _) => open = Some(name),
                (None, Some(_)) if line == "}" => open = None,
                (None, Some(name)) => chains.entry(name).or_default().push(line),
                (None, None) => {}
            }
        }
        chains
    }

    #[test]
    fn every_way_around_the_tunnel_ends_in_a_drop_for_both_families_and_both_ends() {
        let plan = plan(PlainNetwork::Open);
        let text = render(&plan);
        assert!(
            text.starts_with("table inet postern\ndelete table inet postern\ntable inet postern {"),
            "one transaction"
        );
        for element in ["fd5a::/48", "100.64.0.0/16"] {
            assert!(text.lines().any(|line| line.contains("set overlay") && line.contains(element)), "{element}");
        }
        let chains = chains(&text);
        for (chain, side) in
            [("prerouting", "iifname"), ("input", "iifname"), ("output", "oifname"), ("postrouting", "oifname")]
        {
            let rules = &chains[chain];
            // Before connection tracking and whatever else there is, so that nothing has made an exception yet.
            assert_eq!(rules[0], format!("type filter hook {chain} priority -450; policy accept;"));
            let (accepts, drops): (Vec<&str>, Vec<&str>) =
                rules[1..].iter().copied().partition(|rule| rule.ends_with(" accept"));
            let first_drop = rules.iter().position(|rule| rule.ends_with(" drop")).expect("a drop");
            assert!(rules[first_drop..].iter().all(|rule| rule.ends_with(" drop")), "nothing is accepted after a drop");
            for family in ["ip", "ip6"] {
                let set = if family == "ip" { "@overlay4" } else { "@overlay6" };
                for end in ["saddr", "daddr"] {
                    let wanted = format!("{family} {end} {set} counter name ");
                    assert!(drops.iter().any(|rule| rule.starts_with(&wanted)), "{chain}: {wanted}");
                }
            }
            // Only the tunnel, and this machine's own addresses on the loopback, come before.
            let tunnel = format!("{side} \"postern0\" accept");
            let own = |rule: &&&str| rule.starts_with(&format!("{side} \"lo\" ip")) && rule.contains(" @own");
            assert_eq!(accepts.iter().filter(|rule| own(rule)).count() + 1, accepts.len(), "{chain}: {accepts:?}");
            assert!(accepts.contains(&tunnel.as_str()));
        }
        let forward = &chains["forward"];
        for side in ["iifname", "oifname"] {
            assert!(forward.contains(&format!("{side} \"postern0\" counter name forwarded drop").as_str()));
        }
        assert!(forward.iter().all(|rule| !rule.ends_with(" accept")), "nothing is forwarded");
        assert_eq!(forward.iter().filter(|rule| rule.contains("@overlay")).count(), 4);
        assert!(!chains.contains_key("plain"));
    }

    #[test]
    fn a_closed_plain_network_ends_in_a_drop_and_opens_only_what_the_list_names() {
        let allow =
            vec!["tcp/22 from 10.0.0.0/8".parse().expect("an entry"), "udp/6000-6010".parse().expect("an entry")];
        let text = render(&plan(PlainNetwork::Closed { wireguard_port: 51_820, allow }));
        let chains = chains(&text);
        let rules = &chains["plain"];
        assert_eq!(rules[0], "type filter hook prerouting priority -150; policy accept;", "before destination NAT");
        assert_eq!(rules.last(), Some(&"counter name plain drop"));
        let opened: Vec<_> = rules.iter().filter(|rule| rule.contains("dport")).collect();
        assert_eq!(
            opened,
            [
                &"udp dport 51820 accept",
                &"udp sport 67 udp dport 68 accept",
                &"ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept",
                &"ip saddr 10.0.0.0/8 tcp dport 22-22 accept",
                &"udp dport 6000-6010 accept",
            ]
        );
        let neighbours = rules.iter().find(|rule| rule.contains("nd-neighbor-solicit")).expect("IPv6 needs them");
        assert!(neighbours.ends_with(" ip6 hoplimit 255 accept"), "nobody behind a router sends them: {neighbours}");
        assert!(rules.iter().any(|rule| rule.contains("mld-listener-query") && rule.contains("ip6 saddr fe80::/10")));
    }
}
