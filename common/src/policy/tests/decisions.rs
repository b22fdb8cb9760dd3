//! Tables of decisions.

use super::*;
use crate::grant::{Mode, OnDeny};

#[test]
fn every_condition_that_is_true_gives_access_until_the_first_ends() {
    let policy = policy(PAYROLL);
    let mut alice = person("alice", &["payroll"], MONDAY);
    // Posture reports count for 15 minutes, the proof for 12 hours, the window until 20:00 in Berlin.
    assert_eq!(given(&policy, &alice), ["payroll-1 tcp/443 until 2026-11-23T09:15:00Z"]);
    alice.now = at("2026-11-23T18:55:00Z");
    alice.posture.as_mut().expect("a report").observed_at = alice.now;
    assurance(&mut alice).auth_time = Some(at("2026-11-23T07:30:00Z"));
    assert_eq!(given(&policy, &alice), ["payroll-1 tcp/443 until 2026-11-23T19:00:00Z"], "the window closes");
    assurance(&mut alice).auth_time = Some(at("2026-11-23T06:57:00Z"));
    assert_eq!(given(&policy, &alice), ["payroll-1 tcp/443 until 2026-11-23T18:57:00Z"], "the proof grows old");
    alice.now = at("2026-11-23T18:57:00Z");
    assert_eq!(given(&policy, &alice), [""; 0], "at that moment it is over");
}

#[test]
fn what_is_unknown_or_false_gives_nothing() {
    let policy = policy(PAYROLL);
    type Change = fn(&mut RequestContext);
    let table: [(&str, Change); 12] = [
        ("groups unknown", forget_groups),
        ("another group", |c| *c = person("alice", &["sales"], MONDAY)),
        ("no posture", |c| c.posture = None),
        ("stale posture", |c| c.posture.as_mut().expect("a report").observed_at = at("2026-11-23T08:45:00Z")),
        ("disk not encrypted", |c| c.posture.as_mut().expect("a report").facts.disk_encrypted = Some(false)),
        ("disk not mentioned", |c| c.posture.as_mut().expect("a report").facts.disk_encrypted = None),
        ("no time of sign-in", |c| assurance(c).auth_time = None),
        ("sign-in in the future", |c| assurance(c).auth_time = Some(at("2026-11-23T09:05:00Z"))),
        ("one factor", |c| assurance(c).amr = Some(set(&["pwd"]))),
        ("methods unknown", |c| assurance(c).amr = None),
        ("two of one kind", |c| assurance(c).amr = Some(set(&["otp", "sms"]))),
        ("night", |c| *c = person("alice", &["payroll"], "2026-11-23T21:00:00Z")),
    ];
    for (what, change) in table {
        let mut alice = person("alice", &["payroll"], MONDAY);
        change(&mut alice);
        assert_eq!(given(&policy, &alice), [""; 0], "{what}");
    }
}

#[test]
fn several_factors_are_known_by_methods_or_by_class() {
    let text = PAYROLL.replace("[settings]", "[settings]\nmfa_acr = [\"urn:corp:2fa\"]");
    let policy = policy(&text);
    for (amr, acr, counts) in [
        (Some(vec!["mfa"]), None, true),
        (Some(vec!["pin", "hwk"]), None, true),
        (Some(vec!["pwd", "pin"]), None, false),
        (None, Some("https://refeds.org/profile/mfa"), true),
        (None, Some("phrh"), false), // it says how, not how many
        (None, Some("urn:corp:2fa"), true),
        (Some(vec!["pwd"]), Some("urn:corp:2fa"), true),
        (None, Some("1"), false),
    ] {
        let mut alice = person("alice", &["payroll"], MONDAY);
        assurance(&mut alice).amr = amr.as_deref().map(set);
        assurance(&mut alice).acr = acr.map(str::to_owned);
        assert_eq!(!given(&policy, &alice).is_empty(), counts, "{amr:?} {acr:?}");
    }
}

#[test]
fn a_service_never_meets_a_condition_about_a_sign_in() {
    let policy = policy(PAYROLL);
    assert_eq!(given(&policy, &service("payroll-batch")), [""; 0]);
    let without = super::policy(&PAYROLL.replace(", mfa_within = \"12h\"", "").replace(", mfa = \"1h\"", ""));
    assert_eq!(given(&without, &service("payroll-batch")).len(), 1);
    assert_eq!(given(&without, &service("payroll")), [""; 0]);
}

#[test]
fn a_deny_wins_over_every_rule_whatever_it_calls_the_port() {
    let policy = policy(PAYROLL);
    let ops = person("olga", &["ops"], MONDAY);
    assert_eq!(given(&policy, &ops).len(), 3);
    let both = person("otto", &["ops", "contractors"], MONDAY);
    assert_eq!(
        given(&policy, &both),
        [
            "git-1 tcp/* icmp until never",
            "wiki-1 tcp/* icmp until never",
            "payroll-1 tcp/1-442 tcp/444-65535 icmp until never"
        ]
    );
}

#[test]
fn unknown_groups_satisfy_every_deny() {
    let text = PAYROLL.replace("from = [\"group:ops\"]", "from = [\"user:*\"]");
    let policy = policy(&text);
    let mut olga = person("olga", &[], MONDAY);
    assert!(given(&policy, &olga).contains(&"payroll-1 tcp/* icmp until never".into()));
    forget_groups(&mut olga);
    assert!(given(&policy, &olga).contains(&"payroll-1 tcp/1-442 tcp/444-65535 icmp until never".into()));
}

const BASE: &str = r#"
[posture.managed]
disk_encrypted = true
max_age = "20m"
[resource.wiki]
node = "wiki-1"
ports = ["tcp/443", "tcp/80"]
[resource.wiki-admin]
node = "wiki-1"
ports = ["tcp/80"]
[[access]]
name = "everybody reads the wiki"
from = ["user:*", "service:*"]
to = ["wiki"]
"#;

#[test]
fn a_deny_that_begins_later_bounds_the_answer() {
    let deny =
        |more: &str| format!("{BASE}[[deny]]\nname = \"no\"\nfrom = [\"user:*\"]\nto = [\"wiki-admin\"]\n{more}\n");
    let alice = person("alice", &[], MONDAY);
    for (more, expected) in [
        (
            "when = { hours = \"Mon-Fri 12:00-13:00 UTC\" }",
            vec!["wiki-1 tcp/80 until 2026-11-23T12:00:00Z", "wiki-1 tcp/443 until never"],
        ),
        ("when = { hours = \"Mon-Fri 08:00-13:00 UTC\" }", vec!["wiki-1 tcp/443 until never"]),
        (
            "starts = 2026-11-24T00:00:00Z",
            vec!["wiki-1 tcp/80 until 2026-11-24T00:00:00Z", "wiki-1 tcp/443 until never"],
        ),
        ("expires = 2026-11-23T09:00:00Z", vec!["wiki-1 tcp/443 tcp/80 until never"]),
        ("expires = 2026-11-23T09:00:01Z", vec!["wiki-1 tcp/443 until never"]),
        (
            "unless = { posture = \"managed\" }",
            vec!["wiki-1 tcp/80 until 2026-11-23T09:20:00Z", "wiki-1 tcp/443 until never"],
        ),
        ("unless = { network = \"192.0.2.0/24\" }", vec!["wiki-1 tcp/443 tcp/80 until never"]),
        ("unless = { network = \"198.51.100.0/24\" }", vec!["wiki-1 tcp/443 until never"]),
        // It needs both: it cannot begin before the later of the two.
        (
            "starts = 2026-11-24T10:00:00Z\nwhen = { hours = \"Mon-Fri 12:00-13:00 UTC\" }",
            vec!["wiki-1 tcp/80 until 2026-11-24T10:00:00Z", "wiki-1 tcp/443 until never"],
        ),
        (
            "mode = \"monitor\"\nmonitor_until = 2026-12-01",
            vec!["wiki-1 tcp/80 until 2026-12-01T00:00:00Z watched", "wiki-1 tcp/443 until never"],
        ),
        ("mode = \"monitor\"\nmonitor_until = 2026-11-23T09:00:00Z", vec!["wiki-1 tcp/443 until never"]),
        ("mode = \"enforce\"\nmonitor_until = 2026-12-01", vec!["wiki-1 tcp/443 until never"]),
    ] {
        assert_eq!(given(&policy(&deny(more)), &alice), expected, "{more}");
    }
    let mut nowhere = alice.clone();
    nowhere.address = None;
    let by_place = policy(&deny("when = { network = \"198.51.100.0/24\" }"));
    assert_eq!(given(&by_place, &alice), ["wiki-1 tcp/443 tcp/80 until never"]);
    assert_eq!(given(&by_place, &nowhere), ["wiki-1 tcp/443 until never"], "an unknown place satisfies a deny");
}

#[test]
fn a_deny_of_everything_leaves_nothing() {
    let policy = policy(&format!("{BASE}[[deny]]\nname = \"no\"\nfrom = [\"group:banned\"]\nto = [\"*\"]\n"));
    assert_eq!(given(&policy, &person("eve", &["banned"], MONDAY)), [""; 0]);
    assert_eq!(given(&policy, &person("eve", &[], MONDAY)).len(), 1);
    let mut unknown = person("eve", &[], MONDAY);
    forget_groups(&mut unknown);
    assert_eq!(given(&policy, &unknown), [""; 0]);
    assert_eq!(given(&policy, &service("x")).len(), 1, "a service is in no group");
}

#[test]
fn a_watched_rule_lends_what_its_conditions_refuse_and_never_what_its_from_refuses() {
    let policy = policy(PAYROLL);
    let mut erin = person("erin", &["engineers"], MONDAY);
    assert_eq!(given(&policy, &erin), ["git-1 tcp/22 until 2026-11-23T09:15:00Z"]);
    assurance(&mut erin).auth_time = Some(at("2026-11-23T06:00:00Z"));
    let lent = policy.entitlements(&erin, &machines());
    assert_eq!(lent.len(), 1);
    assert_eq!(lent[0].valid_until, at("2026-11-30T23:00:00Z"), "midnight in Berlin");
    assert_eq!((lent[0].on_deny, lent[0].stock_clients), (OnDeny::Reject, true));
    let expected = "proof of sign-in is 3 h old; rule \"engineers use git\" asks for MFA within 15 min";
    assert_eq!(lent[0].mode, Mode::Monitor { would_deny: expected.into() });
    erin.now = at("2026-11-30T23:00:00Z");
    assert_eq!(given(&policy, &erin), [""; 0], "its end has come");
    assert_eq!(given(&policy, &person("sam", &["sales"], MONDAY)), [""; 0]);
    let mut unknown = person("uma", &["engineers"], MONDAY);
    forget_groups(&mut unknown);
    assert_eq!(given(&policy, &unknown), [""; 0], "who it is, is not lent");
}

#[test]
fn people_are_named_by_issuer_and_sub_and_never_by_their_mail() {
    let text = BASE.replace("\"user:*\", \"service:*\"", "\"user:bob@corp.example\", \"user:oidc/00u1\"");
    let policy = policy(&text);
    let oidc = |sub: &str| {
        let mut context = person("bob@corp.example", &[], MONDAY);
        if let Subject::User { identity, .. } = &mut context.subject {
            *identity = UserIdentity::Oidc { issuer: "https://idp.example".into(), sub: sub.into() };
        }
        context
    };
    assert_eq!(given(&policy, &person("bob@corp.example", &[], MONDAY)).len(), 1);
    assert_eq!(given(&policy, &oidc("00u1")).len(), 1);
    assert_eq!(given(&policy, &oidc("bob@corp.example")), [""; 0], "a sub that looks like a login name");
    assert_eq!(given(&policy, &oidc("00u2")), [""; 0], "the same display name");
}

#[test]
fn tags_of_the_device_name_a_subject_and_a_device_is_not_its_own_target() {
    let policy = policy(&PAYROLL.replace("when = { mfa_within = \"15m\" }\n", ""));
    let mut build = service("builder");
    build.tags.insert("build".parse().expect("a tag"));
    assert_eq!(given(&policy, &build).len(), 1);
    build.device = Some(device(2));
    assert_eq!(given(&policy, &build), [""; 0]);
}

#[test]
fn what_names_places_and_subjects_is_known() {
    let policy = policy(PAYROLL);
    let tag = |text: &str| text.parse().expect("a tag");
    assert!(policy.is_destination_tag(&tag("server")) && !policy.is_destination_tag(&tag("build")));
    assert!(policy.is_source_tag(&tag("build")) && !policy.is_source_tag(&tag("server")));
    assert!(policy.is_destination_name(&"git-1".parse().expect("a name")));
    assert!(!policy.is_destination_name(&"alice-laptop".parse().expect("a name")));
    assert_eq!(policy.watched_rules().count(), 1);
}

#[test]
fn ten_thousand_rules_are_decided_within_a_millisecond() {
    use std::fmt::Write;
    let mut text = String::new();
    for i in 0..500 {
        let _ = writeln!(text, "[resource.r{i}]\nnode = \"n{i}\"\nports = [\"tcp/{}\"]", i + 1);
    }
    for i in 0..10_000 {
        let (group, resource) = (i % 700, i % 500);
        let _ = writeln!(text, "[[access]]\nname = \"a{i}\"\nfrom = [\"group:g{group}\"]\nto = [\"r{resource}\"]");
        let _ = writeln!(
            text,
            "when = {{ mfa_within = \"{}h\", hours = \"Mon-Fri 07:00-20:00 Europe/Berlin\" }}",
            i % 12 + 1
        );
    }
    for i in 0..500 {
        let _ = writeln!(text, "[[deny]]\nname = \"d{i}\"\nfrom = [\"group:b{i}\"]\nto = [\"r{i}\"]");
    }
    let policy = policy(&text);
    let targets = Targets::new((0..500u16).map(|i| {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&i.to_be_bytes());
        let name = format!("n{i}").parse().expect("a name");
        TargetNode { device: DeviceId::from_bytes(bytes), name, tags: BTreeSet::new() }
    }));
    let alice = person("alice", &["g1", "g2", "g3", "b8", "b9"], MONDAY);
    let mut fastest = std::time::Duration::MAX;
    let mut count = 0;
    for _ in 0..20 {
        let begin = std::time::Instant::now();
        count = policy.entitlements(&alice, &targets).len();
        fastest = fastest.min(begin.elapsed());
    }
    assert!(count > 40, "{count}");
    assert!(fastest < std::time::Duration::from_millis(1), "{fastest:?}");
}
