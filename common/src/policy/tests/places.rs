//! Conditions on the place.

use super::*;
use crate::policy::{Destination, Place};

const POLICY: &str = r#"
[network.office]
prefixes = ["192.0.2.0/24", "2001:db8::/32"]

[resource.wiki]
node = "wiki-1"
ports = ["tcp/443"]

[[access]]
name = "wiki"
from = ["user:*"]
to = ["wiki"]
"#;

fn with(when: &str) -> Policy {
    policy(&format!("{POLICY}when = {{ {when}, mfa_within = \"1h\" }}\n"))
}

fn in_place(country: Option<&str>, asn: Option<&str>) -> RequestContext {
    let place = Place {
        country: country.map(|country| country.parse().expect("a country")),
        asn: asn.map(|asn| asn.parse().expect("a system")),
    };
    RequestContext { place, ..person("alice", &[], MONDAY) }
}

#[test]
fn each_condition_on_the_place_flips_the_verdict_and_the_unknown_opens_nothing() {
    let opens = |when: &str, context: &RequestContext| !given(&with(when), context).is_empty();
    let here = in_place(Some("DE"), Some("AS64500"));
    for (when, other) in [
        ("country = \"DE\"", in_place(Some("FR"), Some("AS64500"))),
        ("country = [\"AT\", \"DE\"]", in_place(None, Some("AS64500"))),
        ("asn = \"AS64500\"", in_place(Some("DE"), Some("AS64501"))),
        ("asn = [\"64500\"]", in_place(Some("DE"), None)),
        ("country = \"DE\", asn = \"AS64500\"", in_place(Some("DE"), Some("AS1"))),
        ("network = \"office\"", RequestContext { address: None, ..here.clone() }),
        ("network = [\"198.51.100.0/24\", \"office\"]", {
            let elsewhere = Some("203.0.113.1".parse().expect("an address"));
            RequestContext { address: elsewhere, ..here.clone() }
        }),
    ] {
        assert!(opens(when, &here), "{when}");
        assert!(!opens(when, &other), "{when}");
    }
}

#[test]
fn an_unknown_place_satisfies_a_deny() {
    let deny =
        "[[deny]]\nname = \"not from there\"\nfrom = [\"user:*\"]\nto = [\"wiki\"]\nwhen = { country = \"FR\" }\n";
    let policy = policy(&format!("{POLICY}{deny}"));
    assert!(!given(&policy, &in_place(Some("DE"), None)).is_empty());
    assert!(given(&policy, &in_place(Some("FR"), None)).is_empty());
    assert!(given(&policy, &in_place(None, None)).is_empty());
}

#[test]
fn an_explanation_names_the_place() {
    let explain = |context: &RequestContext| {
        let to = Destination::Resource("wiki".parse().expect("a name"));
        with("country = \"DE\"").explain(context, &machines(), &to, None, crate::policy::Audience::Operator).reason
    };
    let abroad = explain(&in_place(Some("FR"), None));
    assert!(abroad.contains("192.0.2.7, in FR") && abroad.contains("asks for an address in DE"), "{abroad}");
    assert!(explain(&in_place(None, None)).contains("a country that is not known"));
}

#[test]
fn places_differ_only_where_both_are_known() {
    let place = |country, asn| in_place(country, asn).place;
    assert!(place(Some("DE"), None).differs_from(&place(Some("FR"), None)));
    assert!(place(Some("DE"), Some("1")).differs_from(&place(Some("DE"), Some("2"))));
    assert!(!place(Some("DE"), Some("1")).differs_from(&place(None, None)));
    assert!(!place(Some("DE"), None).differs_from(&place(Some("DE"), Some("2"))));
}

#[test]
fn a_place_counts_only_if_every_view_of_the_device_says_so() {
    let mut here = in_place(Some("DE"), Some("AS64500"));
    let other = in_place(Some("FR"), Some("AS64501"));
    let elsewhere = "203.0.113.1".parse().expect("an address");
    let deny =
        "[[deny]]\nname = \"not from there\"\nfrom = [\"user:*\"]\nto = [\"wiki\"]\nwhen = { country = \"FR\" }\n";
    let unless =
        "[[deny]]\nname = \"only here\"\nfrom = [\"user:*\"]\nto = [\"wiki\"]\nunless = { network = \"office\" }\n";
    let policies = [
        with("country = \"DE\""),
        with("asn = \"AS64500\""),
        with("network = \"office\""),
        policy(&format!("{POLICY}{deny}")),
        policy(&format!("{POLICY}{unless}")),
    ];
    for policy in &policies {
        here.also = vec![("192.0.2.200".parse().expect("an address"), here.place)];
        assert!(!given(policy, &here).is_empty());
        here.also.push((elsewhere, other.place));
        assert!(given(policy, &here).is_empty());
    }
    let to = Destination::Resource("wiki".parse().expect("a name"));
    let told = policies[0].explain(&here, &machines(), &to, None, crate::policy::Audience::Operator);
    assert!(told.reason.starts_with("packets of the device come from 203.0.113.1, in FR"), "{}", told.reason);
}
