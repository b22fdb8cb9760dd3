//! `firewall`: whether new connections from the network are dropped unless something lets them in.
//!
//! ```text
//! nft list chains --> every chain at the hook `input` of type `filter`, but our own guard's --nft list chain--> its rules
//!                     --> for IPv4 and for IPv6: one of them ends in drop, and lets not everything pass before
//! ```
//!
//! ufw and firewalld show there too. Where rules are kept in the kernel's old tables, which nftables does not list, it counts when
//! those are loaded and ufw or firewalld says that it is on.
//!
//! It is a look at the shape of the rules, not a proof of good ones: a chain that jumps to another one which accepts everything is
//! taken for a firewall.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::root::Root;
use crate::host::guard;

/// Where a tree that is not the machine has the answer of `nft --json list ruleset`: the chains and their rules.
pub const RULESET_FILE: &str = "/run/nftables.json";

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

fn families(word: &str) -> &'static [Family] {
    match word {
        "inet" => &[Family::V4, Family::V6],
        "ip" => &[Family::V4],
        "ip6" => &[Family::V6],
        _ => &[],
    }
}

/// What becomes of every packet that comes to the end of a chain's rules so far.
fn unconditional(rule: &Value) -> Option<&'static str> {
    let mut end = None;
    for statement in rule["expr"].as_array()? {
        let (word, _) = statement.as_object()?.iter().next()?;
        match word.as_str() {
            "counter" | "log" => {}
            "accept" => end = Some("accept"),
            "drop" | "reject" => end = Some("drop"),
            _ => return None, // a condition, or something that is not looked at
        }
    }
    end
}

/// Tells for which families the ruleset drops what no rule lets in.
fn closed_by(ruleset: &Value) -> BTreeSet<Family> {
    let key = |of: &Value, chain: &str| {
        Some((of["family"].as_str()?.to_owned(), of["table"].as_str()?.to_owned(), of[chain].as_str()?.to_owned()))
    };
    // For each base chain at the input: whether what comes to its end is dropped.
    let mut chains: BTreeMap<_, bool> = BTreeMap::new();
    let mut decided = BTreeSet::new();
    for object in ruleset["nftables"].as_array().into_iter().flatten() {
        let chain = &object["chain"];
        if chain["hook"] == "input"
            && chain["type"] == "filter"
            && chain["table"] != guard::TABLE
            && let Some(key) = key(chain, "name")
        {
            chains.insert(key, chain["policy"] == "drop");
        }
    }
    for object in ruleset["nftables"].as_array().into_iter().flatten() {
        let rule = &object["rule"];
        if let Some(key) = key(rule, "chain")
            && let Some(drops) = chains.get_mut(&key)
            && !decided.contains(&key)
            && let Some(end) = unconditional(rule)
        {
            *drops = end == "drop";
            decided.insert(key); // no packet comes to a later rule
        }
    }
    let closed = chains.iter().filter(|(_, drops)| **drops);
    closed.flat_map(|((family, _, _), _)| families(family)).copied().collect()
}

/// Tells whether the machine has an IPv6 address that is not the loopback's.
fn has_ipv6(root: &Root) -> bool {
    root.text("/proc/net/if_inet6").unwrap_or_default().lines().any(|line| !line.trim_end().ends_with(" lo"))
}

fn legacy(root: &Root) -> Option<bool> {
    let loaded = |file: &str| root.text(file).unwrap_or_default().lines().any(|table| table == "filter");
    if !loaded("/proc/net/ip_tables_names") || (has_ipv6(root) && !loaded("/proc/net/ip6_tables_names")) {
        return None;
    }
    let ufw = root.text("/etc/ufw/ufw.conf").unwrap_or_default();
    let ufw = ufw.lines().any(|line| line.trim().eq_ignore_ascii_case("ENABLED=yes"));
    let firewalld = super::agents::unit_runs(root, "firewalld.service");
    (ufw || firewalld).then_some(true)
}

/// Tells whether a host firewall is on.
pub fn on(root: &Root, problems: &mut Vec<String>) -> Option<bool> {
    let ruleset = match root.is_machine() {
        true => guard::list_input_chains()
            .map_err(|error| problems.push(format!("nobody can tell whether a firewall is on: {error}")))
            .ok(),
        false => root.text(RULESET_FILE).and_then(|text| serde_json::from_str(&text).ok()),
    };
    let Some(ruleset) = ruleset else { return legacy(root) };
    let closed = closed_by(&ruleset);
    let all = closed.contains(&Family::V4) && (closed.contains(&Family::V6) || !has_ipv6(root));
    if all { Some(true) } else { legacy(root).or(Some(false)) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::root::testing::Tree, *};

    const V6: (&str, &str) = ("/proc/net/if_inet6", "fe80000000000000 02 40 20 80     eth0\n");

    fn chain(family: &str, table: &str, policy: &str) -> Value {
        json!({"chain": {"family": family, "table": table, "name": "INPUT", "type": "filter", "hook": "input", "prio": 0, "policy": policy}})
    }

    fn rule(family: &str, table: &str, expr: Value) -> Value {
        json!({"rule": {"family": family, "table": table, "chain": "INPUT", "handle": 4, "expr": expr}})
    }

    fn judged(objects: &[Value], files: &[(&str, &str)]) -> Option<bool> {
        let tree = Tree::new(files);
        tree.write(RULESET_FILE, json!({ "nftables": objects }).to_string());
        on(&tree.root(), &mut vec![])
    }

    #[test]
    fn a_chain_that_drops_at_its_end_is_a_firewall() {
        let established = json!([{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "established"}}, {"accept": null}]);
        let table: [(&[Value], bool); 8] = [
            (&[], false),
            (&[chain("inet", "filter", "accept")], false),
            (&[chain("inet", "filter", "drop")], true),
            (&[chain("inet", "filter", "drop"), rule("inet", "filter", established.clone())], true),
            (
                &[
                    chain("inet", "filter", "drop"),
                    rule("inet", "filter", json!([{"counter": null}, {"accept": null}])),
                ],
                false,
            ),
            (
                &[
                    chain("inet", "filter", "accept"),
                    rule("inet", "filter", established),
                    rule("inet", "filter", json!([{"reject": {"type": "icmpx"}}])),
                ],
                true,
            ),
            (&[chain("inet", guard::TABLE, "drop")], false),
            (&[chain("bridge", "filter", "drop")], false),
        ];
        for (objects, expected) in table {
            assert_eq!(judged(objects, &[V6]), Some(expected), "{objects:?}");
        }
    }

    #[test]
    fn both_families_have_to_be_closed_where_both_are_spoken() {
        let v4 = [chain("ip", "filter", "drop")];
        let both = [chain("ip", "filter", "drop"), chain("ip6", "filter", "drop")];
        let loopback = ("/proc/net/if_inet6", "00000000000000000000000000000001 01 80 10 80       lo\n");
        assert_eq!(judged(&v4, &[V6]), Some(false));
        assert_eq!(judged(&v4, &[loopback]), Some(true));
        assert_eq!(judged(&both, &[V6]), Some(true));
    }

    #[test]
    fn old_tables_count_where_ufw_or_firewalld_says_that_it_is_on() {
        let tables = [V6, ("/proc/net/ip_tables_names", "filter\n"), ("/proc/net/ip6_tables_names", "filter\n")];
        let with = |more: &[(&str, &str)]| {
            let tree = Tree::new(&[&tables, more].concat());
            on(&tree.root(), &mut vec![])
        };
        assert_eq!(with(&[]), None, "nobody can tell what is in them");
        assert_eq!(with(&[("/etc/ufw/ufw.conf", "# on or off\nENABLED=no\n")]), None);
        assert_eq!(with(&[("/etc/ufw/ufw.conf", "ENABLED=yes\n")]), Some(true));
        let unit = "/sys/fs/cgroup/system.slice/firewalld.service/cgroup.procs";
        assert_eq!(with(&[(unit, "412\n")]), Some(true));
        let tree = Tree::new(&[("/etc/ufw/ufw.conf", "ENABLED=yes\n")]);
        assert_eq!(on(&tree.root(), &mut vec![]), None, "told to be on, and no table is loaded");
    }

    #[test]
    fn what_cannot_be_listed_is_unknown() {
        let tree = Tree::new(&[(RULESET_FILE, "{")]);
        assert_eq!(on(&tree.root(), &mut vec![]), None);
    }

    /// Set in the process that runs in a network namespace of its own.
    const INSIDE: &str = "POSTERN_TEST_FIREWALL";

    #[test]
    fn thousands_of_rules_beside_the_input_do_not_hide_it() {
        if std::env::var_os(INSIDE).is_none() {
            let name = std::thread::current().name().expect("the test's own").to_owned();
            let own = std::env::current_exe().expect("this program");
            let mut inside = std::process::Command::new("unshare");
            let inside = inside.arg("--net").arg(own).args(["--exact", &name, "--nocapture"]).env(INSIDE, "1").output();
            let inside = inside.expect("unshare");
            return assert!(
                inside.status.success(),
                "{}",
                String::from_utf8_lossy(&[inside.stdout, inside.stderr].concat())
            );
        }
        let rules: String = (0..20_000u32)
            .map(|n| format!("ip saddr 10.{}.{}.{} tcp dport 443 counter accept\n", n >> 16, (n >> 8) & 255, n & 255))
            .collect();
        let ruleset = format!(
            "table inet t {{\nchain many {{\n{rules}}}\nchain in {{\ntype filter hook input priority 0; policy drop;\nct state established accept\n}}\n}}\n"
        );
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), ruleset).expect("written");
        let loaded = std::process::Command::new("nft").arg("-f").arg(file.path()).status().expect("nft");
        assert!(loaded.success());
        let mut problems = vec![];
        assert_eq!(on(&Root::at("/"), &mut problems), Some(true), "{problems:?}");
        let open = "add rule inet t in accept";
        assert!(std::process::Command::new("nft").arg(open).status().expect("nft").success());
        assert_eq!(on(&Root::at("/"), &mut problems), Some(false), "its own rules are seen");
        assert_eq!(problems, Vec::<String>::new());
    }
}
