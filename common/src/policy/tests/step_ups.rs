//! Strength, class and freshness of the proof of sign-in, and what more of it would open.

use super::{super::StepUp, *};

const PROOF: &str = r#"
[resource.wiki]
node = "wiki-1"
ports = ["tcp/443"]
[resource.git]
node = "git-1"
ports = ["tcp/22"]
[resource.payroll]
node = "payroll-1"
ports = ["tcp/443"]

[[access]]
name = "wiki"
from = ["user:*"]
to = ["wiki"]

[[access]]
name = "git"
from = ["group:engineers"]
to = ["git"]
when = { mfa_within = "15m" }

[[access]]
name = "payroll"
from = ["group:payroll"]
to = ["payroll"]
when = { phishing_resistant = true, network = "192.0.2.0/24" }
"#;

/// What a step-up would open, one line each.
fn would_open(policy: &Policy, context: &RequestContext) -> Vec<String> {
    let machines = machines();
    let line = |step_up: StepUp| {
        let nodes: Vec<&str> =
            step_up.nodes.iter().map(|node| machines.node(*node).expect("a known node").name.as_str()).collect();
        let services: Vec<String> = step_up.services.iter().map(ToString::to_string).collect();
        format!("{} on {} {}: {}", step_up.resource, nodes.join(" "), services.join(" "), step_up.demand.words())
    };
    policy.step_ups(context, &machines).into_iter().map(line).collect()
}

#[test]
fn what_cannot_be_phished_is_known_by_method_or_class() {
    let policy = policy(&format!("[settings]\nphishing_resistant_acr = [\"urn:corp:key\"]\n{PROOF}"));
    for (amr, acr, counts) in [
        (Some(vec!["pwd", "otp"]), None, false),
        (Some(vec!["pwd", "mfa"]), None, false),
        (Some(vec!["hwk"]), None, true),
        (Some(vec!["sc", "pin"]), None, true),
        (Some(vec!["swk"]), None, false),
        (None, Some("phr"), true),
        (None, Some("phrh"), true),
        (None, Some("PHR"), false),
        (None, Some("urn:corp:key"), true),
        (None, Some("https://refeds.org/profile/mfa"), false),
        (None, None, false),
    ] {
        let mut alice = person("alice", &["payroll"], MONDAY);
        assurance(&mut alice).amr = amr.as_deref().map(set);
        assurance(&mut alice).acr = acr.map(str::to_owned);
        let open = given(&policy, &alice).iter().any(|line| line.starts_with("payroll-1"));
        assert_eq!(open, counts, "{amr:?} {acr:?}");
    }
}

#[test]
fn a_class_is_met_by_its_very_value_alone() {
    let policy = policy(&PROOF.replace("mfa_within = \"15m\"", "acr = [\"urn:corp:2\", \"urn:corp:3\"]"));
    for (acr, counts) in
        [(Some("urn:corp:3"), true), (Some("urn:corp:4"), false), (Some("urn:corp"), false), (None, false)]
    {
        let mut erin = person("erin", &["engineers"], MONDAY);
        assurance(&mut erin).acr = acr.map(str::to_owned);
        let open = given(&policy, &erin).iter().any(|line| line.starts_with("git-1"));
        assert_eq!(open, counts, "{acr:?}");
    }
}

#[test]
fn a_step_up_is_offered_for_what_lacks_nothing_but_proof() {
    let policy = policy(PROOF);
    let mut erin = person("erin", &["engineers", "payroll"], MONDAY);
    assert_eq!(
        would_open(&policy, &erin),
        ["payroll on payroll-1 tcp/443: a sign-in that cannot be phished (a passkey or security key)"]
    );
    assurance(&mut erin).auth_time = Some(at("2026-11-23T06:00:00Z"));
    assert_eq!(
        would_open(&policy, &erin),
        [
            "git on git-1 tcp/22: MFA within 15 min",
            "payroll on payroll-1 tcp/443: a sign-in that cannot be phished (a passkey or security key)"
        ]
    );
    // from another place a step-up would not open it, so nobody is told that it is there
    erin.address = Some("198.51.100.7".parse().expect("an address"));
    assert_eq!(would_open(&policy, &erin), ["git on git-1 tcp/22: MFA within 15 min"]);
    let mut stranger = person("sam", &[], MONDAY);
    assurance(&mut stranger).auth_time = None;
    assert_eq!(would_open(&policy, &stranger), [""; 0], "what no rule gives by any proof is not told");
    let mut unknown = person("una", &["engineers"], MONDAY);
    forget_groups(&mut unknown);
    assert_eq!(would_open(&policy, &unknown), [""; 0], "unknown groups give nothing");
    assert_eq!(would_open(&policy, &service("billing")), [""; 0], "a service has no sign-in");
}

#[test]
fn a_deny_that_proof_would_lift_is_part_of_the_demand_and_a_firm_one_offers_nothing() {
    let lifted =
        "[[deny]]\nname = \"careful\"\nfrom = [\"user:*\"]\nto = [\"wiki\"]\nunless = { phishing_resistant = true }\n";
    let erin = person("erin", &[], MONDAY);
    assert_eq!(
        would_open(&policy(&format!("{PROOF}{lifted}")), &erin),
        ["wiki on wiki-1 tcp/443: a sign-in that cannot be phished (a passkey or security key)"]
    );
    let elsewhere = lifted.replace("to = [\"wiki\"]", "to = [\"payroll\"]").replace("careful", "elsewhere");
    let mut fred = person("fred", &["engineers"], MONDAY);
    assurance(&mut fred).auth_time = Some(at("2026-11-23T06:00:00Z"));
    let opens = would_open(&policy(&format!("{PROOF}{elsewhere}")), &fred);
    let alone = would_open(&policy(PROOF), &fred);
    assert!(alone.len() == 1 && alone[0].starts_with("git on git-1"), "{alone:?}");
    assert_eq!(opens, alone, "what a deny asks for other ports is not asked here, and not told");
    let firm = lifted.replace("unless = { phishing_resistant = true }", "");
    assert_eq!(would_open(&policy(&format!("{PROOF}{firm}")), &erin), [""; 0]);
}

#[test]
fn a_step_up_never_weakens() {
    let policy = policy(PROOF);
    let proof = |time: &str, amr: &[&str]| Assurance { auth_time: Some(at(time)), acr: None, amr: Some(set(amr)) };
    let old = proof("2026-11-23T08:00:00Z", &["pwd", "otp"]);
    let fresher = proof("2026-11-23T09:00:00Z", &["pwd", "otp"]);
    assert!(policy.at_least_as_strong(&fresher, &old));
    assert!(!policy.at_least_as_strong(&old, &fresher), "older");
    assert!(!policy.at_least_as_strong(&proof("2026-11-23T09:00:00Z", &["pwd"]), &old), "a factor less");
    assert!(!policy.at_least_as_strong(&fresher, &proof("2026-11-23T08:00:00Z", &["hwk", "mfa"])), "could be phished");
    assert!(!policy.at_least_as_strong(&Assurance { auth_time: None, ..fresher }, &old), "of an unknown time");
}
