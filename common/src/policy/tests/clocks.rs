//! A clock that was set: what opens has to hold at every time that it may be, what closes closes at any of them.

use super::*;
use crate::policy::{Approval, Audience, Destination};

const RULES: &str = r#"
[resource.git]
node = "git-1"
ports = ["tcp/22"]

[posture.managed]
disk_encrypted = true
"#;

/// Whether git is open to alice by a rule with `more`, where it is `now` and may be `instead`.
fn open(more: &str, now: &str, instead: Option<&str>) -> Option<WallTime> {
    let rule = "[[access]]\nname = \"git\"\nfrom = [\"user:*\"]\nto = [\"git\"]\n";
    let policy = policy(&format!("{RULES}\n{rule}{more}"));
    let mut alice = person("alice", &[], "2026-11-23T12:00:00Z");
    // A report is as old by every clock: the controller counts its age on both.
    alice.posture = Some(Report { facts: Facts::default(), observed_at: at(now) });
    (alice.now, alice.instead) = (at(now), instead.map(at));
    alice.approved = vec![Approval {
        rule: "git".parse().expect("a name"),
        resource: "git".parse().expect("a name"),
        at: at("2026-11-23T11:30:00Z"),
        until: at("2026-11-23T12:30:00Z"),
    }];
    policy.entitlements(&alice, &machines()).first().map(|entitlement| entitlement.valid_until)
}

const DENY: &str = "[[deny]]\nname = \"no\"\nfrom = [\"user:*\"]\nto = [\"git\"]\n";

#[test]
fn a_condition_on_time_opens_only_where_it_holds_by_both_clocks() {
    let deny = |more: &str| format!("{DENY}{more}");
    let exception = "when = { posture = \"managed\" }\n[[posture_exception]]\nposture = \"managed\"\nfrom = [\"user:alice\"]\nowner = \"it\"\nreason = \"x\"\nexpires = \"2026-11-23T12:30:00Z\"\n";
    // Each is open by one of the two times and not by the other, an hour away, whichever of them the clock shows.
    let (early, late) = ("2026-11-23T12:00:00Z", "2026-11-23T13:00:00Z");
    let table = [
        ("hours that have not begun", "when = { hours = \"Mon-Sun 12:30-14:00 UTC\" }".to_owned(), late),
        ("hours that are over", "when = { hours = \"Mon-Sun 11:00-12:30 UTC\" }".into(), early),
        ("a rule that has not begun", "starts = \"2026-11-23T12:30:00Z\"".into(), late),
        ("a rule that has ended", "expires = \"2026-11-23T12:30:00Z\"".into(), early),
        ("a deny that has ended", deny("expires = \"2026-11-23T12:30:00Z\""), late),
        ("a deny that has not begun", deny("starts = \"2026-11-23T12:30:00Z\""), early),
        ("a deny outside its hours", deny("when = { hours = \"Mon-Sun 11:00-12:30 UTC\" }"), late),
        (
            "a deny that is no longer watched",
            deny("mode = \"monitor\"\nmonitor_until = \"2026-11-23T12:30:00Z\""),
            early,
        ),
        ("proof that is too old", "when = { mfa_within = \"30m\" }".into(), early),
        ("an approval that is over", "request = { approvers = [\"group:leads\"], longest = \"4h\" }".into(), early),
        ("an exception that is over", exception.into(), early),
    ];
    for (what, more, opens_at) in table {
        for (now, instead) in [(early, late), (late, early)] {
            assert_eq!(open(&more, now, None).is_some(), now == opens_at, "{what}, with a clock that nobody set");
            assert_eq!(open(&more, now, Some(instead)), None, "{what}, at {now} or {instead}");
        }
    }
    assert!(open("", early, Some(late)).is_some(), "what asks nothing of the time stays open");
}

#[test]
fn what_is_open_by_both_clocks_ends_by_the_one_that_comes_first() {
    let hours = "when = { hours = \"Mon-Sun 11:00-14:00 UTC\" }";
    let (early, late) = ("2026-11-23T12:00:00Z", "2026-11-23T13:00:00Z");
    assert_eq!(open(hours, late, Some(early)), Some(at("2026-11-23T14:00:00Z")));
    // By the other clock an hour is left, so an hour is left by this one.
    assert_eq!(open(hours, early, Some(late)), Some(at("2026-11-23T13:00:00Z")));
}

#[test]
fn a_sign_in_after_the_clock_was_put_right_counts_by_both_clocks() {
    // The clock was an hour behind since the start, and was set. Whoever signs in now does so ahead of the time that went on.
    let mut alice = person("alice", &[], "2026-11-23T13:00:00Z");
    let rule = "[[access]]\nname = \"git\"\nfrom = [\"user:*\"]\nto = [\"git\"]\nwhen = { mfa_within = \"30m\" }\n";
    let policy = policy(&format!("{RULES}\n{rule}"));
    alice.instead = Some(at("2026-11-23T12:00:00Z"));
    assert_eq!(given(&policy, &alice), ["git-1 tcp/22 until 2026-11-23T13:30:00Z"]);
    assurance(&mut alice).auth_time = Some(at("2026-11-23T13:05:00Z"));
    assert_eq!(given(&policy, &alice), [""; 0], "one in the future of both counts for nothing");
}

#[test]
fn an_explanation_says_that_the_clock_was_set() {
    let rule = "[[access]]\nname = \"git\"\nfrom = [\"user:*\"]\nto = [\"git\"]\nwhen = { hours = \"Mon-Sun 12:30-14:00 UTC\" }\n";
    let policy = policy(&format!("{RULES}\n{rule}"));
    let mut alice = person("alice", &[], "2026-11-23T13:00:00Z");
    alice.instead = Some(at("2026-11-23T12:00:00Z"));
    let to = Destination::Resource("git".parse().expect("a name"));
    let told = policy.explain(&alice, &machines(), &to, None, Audience::Subject);
    assert!(!told.allowed);
    assert!(told.reason.contains("it is Mon 2026-11-23 13:00 UTC or Mon 2026-11-23 12:00 UTC"), "{told:?}");
    assert!(told.because.iter().any(|why| why.contains("clock was set")), "{told:?}");
}
