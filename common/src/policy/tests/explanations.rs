//! What people are told.

use super::*;
use crate::{
    policy::{Audience, Destination},
    protocol::Explanation,
};

fn ask(policy: &Policy, context: &RequestContext, to: &str, service: Option<&str>, audience: Audience) -> Explanation {
    let machines = machines();
    let to = policy
        .find_destination(to, "internal", &machines)
        .unwrap_or_else(|| Destination::Resource(to.parse().expect("a name")));
    policy.explain(context, &machines, &to, service.map(|service| service.parse().expect("a service")), audience)
}

fn reason(text: &str, context: &RequestContext, to: &str, service: Option<&str>) -> String {
    ask(&policy(text), context, to, service, Audience::Operator).reason
}

#[test]
fn an_allowance_names_its_rule_its_line_and_its_end() {
    let explanation = ask(
        &policy(PAYROLL),
        &person("alice", &["payroll"], MONDAY),
        "payroll-app",
        Some("tcp/443"),
        Audience::Subject,
    );
    assert_eq!(
        explanation,
        Explanation {
            allowed: true,
            who: "alice on alice-laptop".into(),
            what: "payroll-app tcp/443".into(),
            reason: "rule \"payroll managers use payroll\" allows it".into(),
            rule: Some("payroll managers use payroll".into()),
            location: Some("policy.toml:25".into()),
            because: vec!["alice is named by group:payroll".into(), "reason of the rule: monthly payroll run".into()],
            fix: None,
            valid_until: Some(at("2026-11-23T09:15:00Z")),
        }
    );
}

#[test]
fn a_refusal_names_the_rule_that_came_nearest_and_what_it_asks_for() {
    let enforced = PAYROLL.replace("mode = \"monitor\"", "mode = \"enforce\"");
    let mut erin = person("erin", &["engineers"], MONDAY);
    assurance(&mut erin).auth_time = Some(at("2026-11-23T06:00:00Z"));
    let explanation = ask(&policy(&enforced), &erin, "git.internal", Some("tcp/22"), Audience::Subject);
    assert!(!explanation.allowed);
    assert_eq!(
        explanation.reason,
        "proof of sign-in is 3 h old; rule \"engineers use git\" asks for MFA within 15 min"
    );
    assert_eq!(explanation.fix.as_deref(), Some("postern step-up git"));
    assert!(explanation.location.is_some_and(|location| location.starts_with("policy.toml:")));
}

#[test]
fn each_cause_has_its_words() {
    let alice = person("alice", &["payroll"], MONDAY);
    let with = |change: &dyn Fn(&mut RequestContext)| {
        let mut context = alice.clone();
        change(&mut context);
        context
    };
    let table: [(RequestContext, &str, Option<&str>, &str); 12] = [
        (with(&|c| assurance(c).amr = Some(set(&["pwd"]))), "payroll-app", None, "the sign-in had no second factor"),
        (with(&|c| c.posture = None), "payroll-app", None, "this device has not reported its posture; rule"),
        (
            with(&|c| c.posture.as_mut().expect("a report").facts.firewall = Some(false)),
            "payroll-app",
            None,
            "the firewall is off now, and must be on; rule \"payroll managers use payroll\" asks for posture \"managed-laptop\"",
        ),
        (
            with(&|c| c.posture.as_mut().expect("a report").observed_at = at("2026-11-23T08:34:00Z")),
            "payroll-app",
            None,
            "its posture is 26 min old, and 15 min is accepted",
        ),
        (
            with(&|c| {
                c.now = at("2026-11-23T20:00:00Z");
                c.posture.as_mut().expect("a report").observed_at = c.now;
            }),
            "payroll-app",
            None,
            "it is Mon 2026-11-23 21:00 Europe/Berlin; rule \"payroll managers use payroll\" opens Mon-Fri 07:00-20:00",
        ),
        (
            alice.clone(),
            "payroll-app",
            Some("udp/443"),
            "no resource names payroll-app udp/443; named there are tcp/443",
        ),
        (alice.clone(), "payroll-1", Some("tcp/22"), "no rule opens payroll-1 tcp/22 to alice"),
        (
            person("bob", &["payroll", "contractors"], MONDAY),
            "payroll-app",
            None,
            "rule \"contractors never reach payroll\" refuses it",
        ),
        (person("bob", &["contractors"], MONDAY), "payroll-app", None, "no rule opens payroll-app to bob"),
        (with(&forget_groups), "payroll-app", None, "names groups, and the groups of this person are unknown"),
        (alice.clone(), "nothing", None, "there is no resource \"nothing\""),
        (alice.clone(), "alice-laptop", None, "a machine does not ask for itself"),
    ];
    for (context, to, service, expected) in table {
        let reason = reason(PAYROLL, &context, to, service);
        assert!(reason.contains(expected), "{reason}\nshould say\n{expected}");
    }
}

#[test]
fn rules_that_are_over_or_not_begun_and_machines_that_are_missing_have_their_words() {
    let alice = person("alice", &["ops"], MONDAY);
    let ops = "to = [\"everything-on-servers\"]";
    let text = PAYROLL.replace(ops, &format!("{ops}\nexpires = 2026-11-01"));
    assert!(reason(&text, &alice, "wiki-1", None).contains("ended at 2026-10-31T23:00:00Z"));
    let text = PAYROLL.replace(ops, &format!("{ops}\nstarts = 2026-12-01T00:00:00Z"));
    assert!(reason(&text, &alice, "wiki-1", None).contains("begins at 2026-12-01T00:00:00Z"));
    let text = PAYROLL.replace("tag:server", "tag:nowhere");
    assert_eq!(reason(&text, &alice, "everything-on-servers", None), "no approved machine is tag:nowhere yet");
}

#[test]
fn a_watched_pass_is_told_as_what_it_is() {
    let mut erin = person("erin", &["engineers"], MONDAY);
    assurance(&mut erin).auth_time = Some(at("2026-11-23T06:00:00Z"));
    let explanation = ask(&policy(PAYROLL), &erin, "git", None, Audience::Operator);
    assert!(explanation.allowed);
    assert!(
        explanation.reason.starts_with("it would be denied and passes only while it is watched: proof"),
        "{explanation:?}"
    );
}

#[test]
fn a_port_that_is_not_open_is_named_and_so_are_those_that_are() {
    let alice = person("alice", &["payroll"], MONDAY);
    let open = ["rules open tcp/443 there to alice"];
    for (to, audience, reason) in [
        ("payroll-app", Audience::Subject, "no rule opens payroll-app tcp/22 to alice"),
        ("payroll-1", Audience::Subject, "no rule opens payroll-1 tcp/22 to alice"),
        ("payroll-app", Audience::Operator, "no resource names payroll-app tcp/22; named there are tcp/443"),
        ("payroll-1", Audience::Operator, "no rule opens payroll-1 tcp/22 to alice"),
    ] {
        let told = ask(&policy(PAYROLL), &alice, to, Some("tcp/22"), audience);
        assert_eq!((told.allowed, told.reason.as_str()), (false, reason), "{to} {audience:?}");
        assert_eq!(told.because, open, "{to} {audience:?}");
    }
    let later = person("alice", &["payroll"], "2026-11-28T09:00:00Z"); // a Saturday: nothing is open to her
    let told = ask(&policy(PAYROLL), &later, "payroll-app", Some("tcp/22"), Audience::Subject);
    assert_eq!(told.because, [""; 0]);
}

#[test]
fn who_may_never_reach_a_resource_is_not_told_that_it_exists() {
    let policy = policy(PAYROLL);
    let sam = person("sam", &["sales"], MONDAY);
    let ask = |to: &str, service: Option<&str>| {
        let mut told = ask(&policy, &sam, to, service, Audience::Subject);
        (told.reason, told.what) = (told.reason.replace(to, "IT"), told.what.replace(to, "IT"));
        told
    };
    let missing = ask("no-such-thing", None);
    for there in ["payroll-app", "git", "payroll-1", "wiki-1"] {
        assert_eq!(ask(there, None), missing, "{there}");
    }
    assert_eq!(ask("payroll-app", Some("udp/9")), ask("no-such-thing", Some("udp/9")));
}

#[test]
fn explanation_and_decision_agree() {
    let policy = policy(PAYROLL);
    let groups = ["payroll", "ops", "engineers", "contractors"];
    for chosen in 0..16u8 {
        let mine: Vec<&str> = (0..4).filter(|bit| chosen >> bit & 1 == 1).map(|bit| groups[bit]).collect();
        let context = person("alice", &mine, MONDAY);
        let machines = machines();
        let entitled = policy.entitlements(&context, &machines);
        for node in machines.nodes() {
            for text in ["tcp/22", "tcp/80", "tcp/443", "icmp", "udp/53"] {
                let service: crate::net::Service = text.parse().expect("a service");
                let names = |e: &crate::policy::Entitlement| {
                    e.nodes.contains(&node.device) && e.services.iter().any(|s| s.intersection(&service).is_some())
                };
                let has = entitled.iter().any(names);
                let to = Destination::Node(node.device);
                let told = policy.explain(&context, &machines, &to, Some(service), Audience::Subject).allowed;
                assert_eq!(has, told, "{mine:?} {} {service}", node.name);
            }
        }
    }
}

/// The document without its own tests, to be changed in ways that they would not let through.
fn without_tests() -> &'static str {
    PAYROLL.split("[[test]]").next().expect("the rules")
}

#[test]
fn a_refusal_says_what_its_author_wrote_and_whom_to_ask_when_nothing_else_helps() {
    let alice = person("alice", &["payroll"], MONDAY);
    let over =
        without_tests().replace("lease = \"5m\"", "lease = \"5m\"\nexpires = 2026-11-01\nowner = \"eve@corp.example\"");
    let told = ask(&policy(&over), &alice, "payroll-app", None, Audience::Subject);
    assert!(told.reason.contains("ended at"), "{told:?}");
    assert_eq!(told.because, ["reason of the rule: monthly payroll run", "owner of the rule: eve@corp.example"]);
    assert_eq!(told.fix.as_deref(), Some("ask finance-it, the owner of payroll-app"));
    let bob = person("bob", &["payroll", "contractors"], MONDAY);
    let told = ask(&policy(PAYROLL), &bob, "payroll-app", None, Audience::Operator);
    assert_eq!(told.reason, "rule \"contractors never reach payroll\" refuses it");
    assert_eq!(told.fix.as_deref(), Some("ask finance-it, the owner of payroll-app"));
}

#[test]
fn a_deny_that_gives_way_says_what_it_gives_way_to() {
    let gives_way = |unless: &str| {
        let name = "name = \"contractors never reach payroll\"";
        without_tests().replace(name, &format!("{name}\nunless = {{ {unless} }}"))
    };
    let mut bob = person("bob", &["payroll", "contractors"], MONDAY);
    assurance(&mut bob).auth_time = Some(at("2026-11-23T08:00:00Z"));
    let told = |unless: &str, bob: &RequestContext| {
        let told = ask(&policy(&gives_way(unless)), bob, "payroll-app", None, Audience::Subject);
        assert_eq!(told.reason, "rule \"contractors never reach payroll\" refuses it");
        told.fix.unwrap_or_default()
    };
    assert_eq!(told("mfa_within = \"10m\"", &bob), "postern step-up payroll-app");
    assert!(told("hours = \"Sat-Sun 00:00-24:00 UTC\"", &bob).starts_with("try again from Sat 2026-11-28"));
    bob.address = Some("198.51.100.1".parse().expect("an address"));
    assert_eq!(told("network = [\"192.0.2.0/24\"]", &bob), "ask finance-it, the owner of payroll-app");
}
