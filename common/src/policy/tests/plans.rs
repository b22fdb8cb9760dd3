//! What a plan shows.

use super::*;
use crate::policy::{ChangeKind, PlanChange};

fn lines(old: &str, new: &str, contexts: &[RequestContext]) -> Vec<String> {
    let line = |change: PlanChange| {
        let services: Vec<String> = change.services.iter().map(ToString::to_string).collect();
        let kind = match change.kind {
            ChangeKind::Gains => "gains".into(),
            ChangeKind::Loses => "loses".into(),
            ChangeKind::OnlyWatched => "only watched".into(),
            ChangeKind::Earned => "earned".into(),
            ChangeKind::Until(until) => format!("until {until}"),
        };
        let when = if change.at_once { "now" } else { "later" };
        format!("{} {kind} {} {} {:?} {when}", change.via, change.resource, services.join(" "), change.subjects)
    };
    policy(old).plan(&policy(new), contexts, &machines(), &machines()).into_iter().map(line).collect()
}

fn people(now: &str) -> [RequestContext; 3] {
    [person("alice", &["payroll"], now), person("olga", &["ops"], now), person("otto", &["ops"], now)]
}

#[test]
fn a_plan_says_who_gains_and_who_loses() {
    let new = PAYROLL.replace("[\"group:ops\"]", "[\"group:payroll\"]").replace("\"tcp/*\", \"icmp\"", "\"tcp/22\"");
    assert_eq!(
        lines(PAYROLL, &new, &people(MONDAY)),
        [
            "group:payroll gains everything-on-servers tcp/22 [0] now",
            "group:ops loses everything-on-servers tcp/* icmp [1, 2] now"
        ]
    );
    assert_eq!(lines(PAYROLL, PAYROLL, &people(MONDAY)), [""; 0]);
}

#[test]
fn a_plan_made_at_night_shows_what_the_day_loses() {
    let night = "2026-11-23T22:00:00Z";
    let new = PAYROLL.replace("[\"group:payroll\", ", "[").replace("expect = \"allow\"", "expect = \"deny\"");
    assert_eq!(lines(PAYROLL, &new, &people(night)), ["group:payroll loses payroll-app tcp/443 [0] later"]);
}

#[test]
fn a_plan_says_until_when_something_is_kept_and_what_is_only_watched() {
    let ops = "to = [\"everything-on-servers\"]";
    let new = PAYROLL.replace(ops, &format!("{ops}\nexpires = 2026-12-01"));
    assert_eq!(
        lines(PAYROLL, &new, &people(MONDAY)[1..2]),
        ["group:ops until 2026-11-30T23:00:00Z everything-on-servers tcp/* icmp [0] now"]
    );
    let watched = "when = { network = \"198.51.100.0/24\", mfa_within = \"99d\" }\nmode = \"monitor\"\nmonitor_until = 2026-12-01";
    let new = PAYROLL.replace(ops, &format!("{ops}\n{watched}"));
    assert_eq!(
        lines(PAYROLL, &new, &people(MONDAY)[1..2]),
        ["group:ops only watched everything-on-servers tcp/* icmp [0] now"]
    );
}

#[test]
fn a_loss_is_what_no_resource_opens_on_that_node_any_more() {
    let losses = |new: &str| -> Vec<String> {
        let lost = policy(PAYROLL).losses(&policy(new), &people(MONDAY), &machines(), &machines());
        let line = |loss: crate::policy::Loss| {
            let services: Vec<String> = loss.services.iter().map(ToString::to_string).collect();
            let machines = machines();
            let node = machines.node(loss.node).expect("a node").name.clone();
            format!("{} {node} {}", loss.subject, services.join(" "))
        };
        lost.into_iter().map(line).collect()
    };
    assert_eq!(losses(PAYROLL), [""; 0]);
    let renamed = PAYROLL.replace("everything-on-servers", "all-of-the-servers");
    assert_eq!(losses(&renamed), [""; 0], "what moves from one resource to another is not lost");
    let narrower = PAYROLL.replace("\"tcp/*\", \"icmp\"", "\"tcp/1-1000\", \"icmp\"");
    let lost = losses(&narrower);
    assert!(!lost.is_empty() && lost.iter().all(|line| line.ends_with(" tcp/1001-65535")), "{lost:?}");
}
