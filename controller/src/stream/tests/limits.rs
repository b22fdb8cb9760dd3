//! Claims about each limit with each response: what closes, for whom, what `explain` says of it, and what opens it again; and that
//! each limit keeps a count of its own, at nodes that come and go.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use postern_common::{limit::Measure, policy::Place};

use super::{
    behaviour::{Map, Town, crowd, seconds, town_with},
    world::person,
};
use crate::{
    records::{AuditEvent, Person, Quarantined, Restrained},
    signals::alerts::AlertKind,
    stream::SignalResponse,
};

/// A policy in which one thing is limited, and that follows.
fn policy(limits: &str, scan: &str) -> String {
    format!(
        r#"
[resource.files]
nodes = ["tag:files"]
ports = ["tcp/443"]

[resource.wiki]
node = "files-1"
ports = ["tcp/80"]

[set.basics]
resources = ["wiki"]

[[access]]
name = "staff use files"
from = ["group:staff"]
to = ["files"]
{limits}

[[access]]
name = "everybody reads the wiki"
from = ["user:*"]
to = ["wiki"]

{scan}
"#
    )
}

fn follows(then: &str) -> String {
    match then {
        "restrict" => "on_exceed = \"restrict\", restrict_to = \"basics\"".into(),
        then => format!("on_exceed = \"{then}\""),
    }
}

fn scan_limit(then: &str) -> String {
    let follows = follows(then).replace(", ", "\n");
    format!("[[limit]]\nname = \"machines that scan\"\nfrom = [\"group:staff\"]\nrefused = \"20/m\"\n{follows}\n")
}

fn explained(town: &mut Town, who: &str, to: &str) -> (bool, String) {
    let told = town.world.core.explain(who, to, None, town.world.now).expect("known");
    (told.allowed, format!("{}; {}", told.reason, told.because.join("; ")))
}

/// Signs alice in on her laptop, as somebody who proved who she is just now, or at the beginning.
fn sign_in(town: &mut Town, fresh: bool) {
    let alice = person("alice", &["staff"]);
    let auth_time = if fresh { Some(town.world.now.wall) } else { alice.auth_time };
    let laptop = town.laptop;
    town.world.nodes[laptop].new_key();
    town.world.join(laptop, &Person { auth_time, ..alice });
    town.world.run(seconds(1));
}

const LAPTOP: &str = "alice@corp.example/alice-laptop";

/// Looks at what is left after something followed for alice's laptop, then does what ends it and looks again.
fn look(town: &mut Town, what: &str, then: &str, whom: Restrained, named: &str) {
    let (laptop, bobs) = (town.laptop, town.bobs);
    let open = |town: &Town| (town.passes(laptop, "tcp/443"), town.passes(laptop, "tcp/80"));
    let is_of_machine = matches!(whom, Restrained::Device(_));
    assert!(!open(town).0, "{what}");
    let wiki = then == "restrict" || then == "challenge" && !is_of_machine;
    assert_eq!(open(town).1, wiki, "{what}: nothing beyond what is left");
    assert!(town.passes(bobs, "tcp/443"), "{what}: nobody else");
    assert_eq!(town.passes(town.phone, "tcp/443"), is_of_machine, "{what}: all of her machines, or the one that scans");
    let (allowed, said) = explained(town, LAPTOP, "files");
    assert!(!allowed && said.contains(named), "{what} is not named: {said}");
    match then {
        "challenge" => {
            town.step_up(laptop);
            assert_eq!(open(town), (true, true), "{what}: after a fresh sign-in");
        }
        "restrict" => {
            sign_in(town, true);
            assert_eq!(open(town), (false, true), "{what}: no sign-in ends it");
            town.world.core.release_restraints(whom, "root", town.world.now).expect("released");
        }
        "terminate" => {
            assert!(town.world.core.find_session(LAPTOP).is_err(), "{what}: the session has ended");
            sign_in(town, false);
            assert_eq!(open(town), (false, false), "{what}: by the sign-in from before nothing opens");
            sign_in(town, true);
        }
        "quarantine" => {
            let Restrained::Device(device) = whom else { panic!("a machine") };
            town.world.core.release(&Quarantined::Device(device), "root", town.world.now).expect("released");
        }
        other => panic!("{other} is no response"),
    }
    town.world.pump();
    town.world.run(seconds(5));
    assert_eq!(open(town), (true, true), "{what}: what it was entitled to before, and all of it");
    assert!(explained(town, LAPTOP, "files").0, "{what}");
}

#[test]
fn every_limit_of_a_rule_with_every_response_closes_what_it_says_and_no_more_until_what_ends_it() {
    let measures = [
        (Measure::Download, "download = \"1000B/h\"", "files: more than 1KB down within 1 h", AlertKind::Volume),
        (Measure::Upload, "upload = \"1000B/h\"", "files: more than 1KB up within 1 h", AlertKind::Volume),
        (
            Measure::Connections,
            "connections = \"1000/m\"",
            "files: more than 1000 connections within 1 min",
            AlertKind::Rate,
        ),
    ];
    for (seed, (measure, limit, named, alert)) in (300..).zip(measures) {
        for then in ["challenge", "restrict", "terminate"] {
            let what = format!("{limit} {then}");
            let mut town = town_with(seed, &policy(&format!("limits = {{ {limit}, {} }}", follows(then)), ""));
            let (allowed, said) = explained(&mut town, LAPTOP, "files");
            assert!(allowed && said.contains("at most 1"), "{what}: the limit is named before: {said}");
            let (one, laptop) = (town.one, town.laptop);
            town.tell_used(one, measure, 1_000);
            assert!(town.passes(laptop, "tcp/443"), "{what}: as much as the limit is not more");
            town.tell_used(one, measure, 1_001);
            assert_eq!(town.alerts(alert), 1, "{what}");
            let alice = town.alice();
            look(&mut town, &what, then, Restrained::Subject(alice), named);
        }
    }
}

#[test]
fn a_scan_with_every_response_closes_what_it_says_and_no_more_until_what_ends_it() {
    for then in ["challenge", "restrict", "terminate", "quarantine"] {
        let mut town = town_with(310, &policy("", &scan_limit(then)));
        let (one, laptop) = (town.one, town.laptop);
        let id = town.world.nodes[laptop].id();
        let budget = town.world.nodes[one].peers[&id].scan.clone().expect("told").budget;
        town.scan(one, Some(id), budget);
        assert_eq!(town.alerts(AlertKind::Scan), 1, "{then}");
        let named = "more than 20 refused destinations within 1 min";
        let named = if then == "quarantine" { "quarantine" } else { named };
        look(&mut town, &format!("a scan, {then}"), then, Restrained::Device(id), named);
        let anew = town.world.nodes[one].peers[&id].scan.clone().expect("told").budget;
        assert!(anew > budget, "{then}: a node that shut it out opens by this");
    }
}

#[test]
fn each_limit_keeps_its_own_count_and_a_challenge_that_is_met_is_no_way_round_a_harsher_one() {
    for (harsher, then) in [(Measure::Upload, "restrict"), (Measure::Connections, "terminate")] {
        let key = if harsher == Measure::Upload { "upload = \"1000B/h\"" } else { "connections = \"1000/m\"" };
        let limits = format!(
            "limits = [{{ download = \"1000B/h\", on_exceed = \"challenge\" }}, {{ {key}, {} }}]",
            follows(then)
        );
        let mut town = town_with(320, &policy(&limits, ""));
        let (one, two, laptop) = (town.one, town.two, town.laptop);
        town.tell_used(one, harsher, 900);
        town.tell_used(one, Measure::Download, 1_001);
        assert!(!town.passes(laptop, "tcp/443"));
        town.step_up(laptop);
        assert!(town.passes(laptop, "tcp/443"));
        assert!(town.budget(one, laptop, Measure::Download) > 0, "what was downloaded is forgotten");
        assert_eq!(town.budget(one, laptop, harsher), 0, "and nothing else");
        town.tell_used(two, harsher, 101);
        assert!(!town.passes(laptop, "tcp/443"));
        let restrained = |word: &str| {
            let told = |event: &&AuditEvent| matches!(event, AuditEvent::Restrained { record, .. } if format!("{:?}", record.takes).contains(word));
            town.world.audit.iter().filter(told).count()
        };
        let (word, count) = if then == "restrict" { ("AllBut", 1) } else { ("Everything", 1) };
        assert_eq!(restrained(word), count, "{then}");
    }
}

#[test]
fn one_sign_in_answers_for_all_that_was_passed_before_it() {
    let limits = "limits = [{ download = \"1000B/h\", upload = \"1000B/h\", on_exceed = \"challenge\" }]";
    let mut town = town_with(321, &policy(limits, ""));
    let (one, two, laptop) = (town.one, town.two, town.laptop);
    town.tell_used(one, Measure::Upload, 600);
    let usages = vec![town.usage(Measure::Download, 1_001, 0), town.usage(Measure::Upload, 1_001, 0)];
    town.world.send(two, postern_common::protocol::FromNode::Behaviour { process: 1, usages, scans: vec![] });
    town.world.run(seconds(1));
    assert_eq!(town.alerts(AlertKind::Volume), 1);
    town.step_up(laptop);
    assert!(town.passes(laptop, "tcp/443"));
    for measure in [Measure::Download, Measure::Upload] {
        assert!(town.budget(two, laptop, measure) > 0, "{measure:?}: the node opens what it has shut");
    }
}

#[test]
fn a_node_that_starts_again_has_not_let_less_through() {
    let limits = "limits = { download = \"1000B/h\", on_exceed = \"challenge\" }";
    let mut town = town_with(322, &policy(limits, &scan_limit("quarantine")));
    let (one, laptop) = (town.one, town.laptop);
    for (process, used, open) in [(1, 600, true), (2, 100, true), (3, 250, true), (3, 300, true), (3, 301, false)] {
        let usage = town.usage(Measure::Download, used, 0);
        town.tell_by(one, process, usage);
        assert_eq!(town.passes(laptop, "tcp/443"), open, "{used} by start {process}");
    }
    town.step_up(laptop);
    let id = town.world.nodes[laptop].id();
    let budget = town.world.nodes[one].peers[&id].scan.clone().expect("told").budget;
    town.refused_by(one, 3, Some(id), budget, 12);
    town.refused_by(one, 4, Some(id), budget, 8);
    assert!(town.passes(laptop, "tcp/443"));
    town.refused_by(one, 4, Some(id), budget, 9);
    assert!(!town.passes(laptop, "tcp/443"), "nor refused less");
}

#[test]
fn beyond_many_whom_a_node_would_have_challenged_each_opens_there_again_by_a_sign_in_and_nowhere_else_anything_closed()
{
    let limits = "limits = { download = \"1000B/h\", on_exceed = \"challenge\" }";
    let (mut town, laptops) = crowd(323, 67, &policy(limits, ""));
    let (one, two) = (town.one, town.two);
    let passes = |town: &Town, laptop: usize, server: usize| town.world.passes(laptop, server, "tcp/443");
    for laptop in &laptops {
        let subject = town.world.nodes[one].peers[&town.world.nodes[*laptop].id()].subject;
        let usage = postern_common::limit::Usage { subject, ..town.usage(Measure::Download, 1_001, 0) };
        town.tell(one, usage);
    }
    let count = |town: &Town, server: usize| laptops.iter().filter(|laptop| passes(town, **laptop, server)).count();
    assert_eq!(
        (count(&town, one), count(&town, two)),
        (0, 3),
        "the other server's doors are not closed by this one's word"
    );
    let last = laptops[66];
    let name = "person66@corp.example/person66-laptop";
    let (allowed, said) = explained(&mut town, name, "files");
    assert!(allowed && said.contains("not on files-1: files: more than 1KB down within 1 h"), "{said}");
    let https = Some("tcp/443".parse().expect("a service"));
    let told = town.world.core.explain(name, "files-1", https, town.world.now).expect("known");
    assert!(!told.allowed && told.reason.starts_with("files: more than 1KB down within 1 h"), "{told:?}");
    assert_eq!(told.fix.as_deref(), Some("postern step-up files"));
    let subject = town.world.nodes[two].peers[&town.world.nodes[last].id()].subject;
    let half = postern_common::limit::Usage { subject, ..town.usage(Measure::Download, 999, 0) };
    town.tell(two, half.clone());
    town.step_up_of("person66", last);
    assert!(passes(&town, last, one), "as soon as they prove who they are");
    assert!(town.budget(one, last, Measure::Download) > 0, "the node opens by this");
    assert_eq!(town.budget(two, last, Measure::Download), 0, "and what was used elsewhere is not forgotten");
    assert!(!passes(&town, laptops[65], one), "nobody else");
    let told =
        town.world.store.alerts.iter().filter(|alert| alert.text.starts_with("files-1 says of more than 64")).count();
    assert_eq!(told, 1, "somebody is told to look at it");
    town.tell(two, postern_common::limit::Usage { used: 1_001, ..half });
    assert!(!passes(&town, last, two), "the other server's own word");
}

#[test]
fn leaving_the_country_while_the_controller_is_away_is_noticed_when_it_is_back_whatever_lies_between() {
    let jump =
        "[[limit]]\nname = \"no jumps\"\nfrom = [\"user:*\"]\nstay_in = \"country\"\non_exceed = \"challenge\"\n";
    let mut town = town_with(324, &policy("", jump));
    let laptop = town.laptop;
    let home = town.world.remote(laptop);
    let away = SocketAddr::from(([203, 0, 113, 9], 40_000));
    let unmapped = SocketAddr::from(([198, 51, 100, 9], 40_000));
    let place = |country: &str| Place { country: Some(country.parse().expect("a country")), asn: None };
    let map = || Arc::new(Map(HashMap::from([(home.ip(), place("DE")), (away.ip(), place("FR"))])));
    let go = |town: &mut Town, to: SocketAddr| {
        town.world.cut_stream(laptop);
        town.world.nodes[laptop].moved_to = Some(to);
        town.world.connect(laptop);
        town.world.run(seconds(1));
    };
    let restart = |town: &mut Town| {
        town.world.restart();
        town.world.core.set_atlas(map(), town.world.now);
        town.world.pump();
        for node in 0..town.world.nodes.len() {
            if node != laptop {
                town.world.connect(node);
            }
        }
        town.world.run(seconds(2));
    };
    town.world.core.set_atlas(map(), town.world.now);
    town.world.pump();
    town.world.run(seconds(5));
    go(&mut town, home);
    go(&mut town, unmapped);
    assert!(town.passes(laptop, "tcp/443"));
    restart(&mut town);
    go(&mut town, unmapped);
    assert!(town.passes(laptop, "tcp/443"), "a place that nobody knows is no other place");
    restart(&mut town);
    go(&mut town, away);
    assert!(!town.passes(laptop, "tcp/443"), "it spoke from DE before all that");
    let (_, said) = explained(&mut town, LAPTOP, "files");
    assert!(said.contains("speaks from FR, and spoke from DE before"), "{said}");
    town.step_up(laptop);
    assert!(town.passes(laptop, "tcp/443"));
    restart(&mut town);
    go(&mut town, away);
    assert!(town.passes(laptop, "tcp/443"), "and it stays there");
}

#[test]
fn travelling_is_no_way_to_be_forgotten_by_whoever_counts_scans() {
    let jump =
        "[[limit]]\nname = \"no jumps\"\nfrom = [\"user:*\"]\nstay_in = \"country\"\non_exceed = \"challenge\"\n";
    let mut town = town_with(325, &policy("", &format!("{}{jump}", scan_limit("quarantine"))));
    let (one, laptop) = (town.one, town.laptop);
    let id = town.world.nodes[laptop].id();
    let budget = |town: &Town| town.world.nodes[one].peers[&id].scan.clone().expect("told").budget;
    let before = budget(&town);
    let place = |country: &str| Place { country: Some(country.parse().expect("a country")), asn: None };
    let (home, away) = (town.world.remote(laptop), SocketAddr::from(([203, 0, 113, 9], 40_000)));
    let map = Map(HashMap::from([(home.ip(), place("DE")), (away.ip(), place("FR"))]));
    town.world.core.set_atlas(Arc::new(map), town.world.now);
    town.world.pump();
    town.world.run(seconds(5));
    town.world.cut_stream(laptop);
    town.world.nodes[laptop].moved_to = Some(away);
    town.world.connect(laptop);
    town.world.run(seconds(1));
    assert!(!town.passes(laptop, "tcp/443"));
    town.step_up(laptop);
    assert!(town.passes(laptop, "tcp/443"));
    assert_eq!(budget(&town), before);
}

const WATCHED: &str = "mode = \"monitor\"\nmonitor_until = \"2027-01-31\"\n";

fn restrained(town: &Town) -> usize {
    town.world.audit.iter().filter(|event| matches!(event, AuditEvent::Restrained { .. })).count()
}

#[test]
fn of_a_service_that_speaks_from_another_country_somebody_is_told_what_follows_and_once() {
    for (seed, mode, said, records) in [(326, "", "the session ends", 1), (327, WATCHED, "an alert is raised", 0)] {
        let jump = "[[limit]]\nname = \"no jumps\"\nfrom = [\"service:files\"]\nstay_in = \"country\"\non_exceed = \"terminate\"\n";
        let mut town = town_with(seed, &policy("", &format!("{jump}{mode}")));
        let one = town.one;
        let home = town.world.remote(one);
        let away = SocketAddr::from(([203, 0, 113, 9], 40_000));
        let place = |country: &str| Place { country: Some(country.parse().expect("a country")), asn: None };
        let map = Map(HashMap::from([(home.ip(), place("DE")), (away.ip(), place("FR"))]));
        town.world.core.set_atlas(Arc::new(map), town.world.now);
        town.world.pump();
        for to in [home, away, home, away] {
            town.world.run(seconds(5));
            town.world.cut_stream(one);
            town.world.nodes[one].moved_to = Some(to);
            town.world.connect(one);
            town.world.run(seconds(1));
        }
        let rule = format!("speaks from FR, and spoke from DE before (rule \"no jumps\"): {said}");
        let told: Vec<&str> = town.world.store.alerts.iter().map(|alert| alert.text.as_str()).collect();
        assert_eq!(told.iter().filter(|text| text.ends_with(&rule)).count(), 1, "{told:?}");
        assert_eq!(told.iter().filter(|text| text.contains("no jumps")).count(), 1, "and once: {told:?}");
        assert_eq!(restrained(&town), records, "{mode}");
    }
}

#[test]
fn a_scan_that_is_only_watched_is_told_of_and_counted_anew_and_takes_nothing() {
    let mut town = town_with(328, &policy("", &format!("{}{WATCHED}", scan_limit("quarantine"))));
    let (one, laptop) = (town.one, town.laptop);
    let id = town.world.nodes[laptop].id();
    let limit = |town: &Town| town.world.nodes[one].peers[&id].scan.clone().expect("told");
    let before = limit(&town);
    assert!(!before.then.shuts(), "the node shuts nobody out");
    town.scan(one, Some(id), before.budget);
    assert_eq!(town.alerts(AlertKind::Scan), 1);
    let anew = limit(&town);
    assert!(anew.budget > before.budget, "what was a scan while it was watched is none when the watch is over");
    town.scan(one, Some(id), anew.budget);
    assert_eq!(town.alerts(AlertKind::Scan), 1, "once an hour");
    assert!(town.passes(laptop, "tcp/443") && town.world.core.list_quarantines().is_empty());
    assert_eq!(restrained(&town), 0);
    town.world.run(seconds(3_600));
    town.world.join(laptop, &person("alice", &["staff"]));
    town.world.run(seconds(1));
    let budget = limit(&town).budget;
    town.scan(one, Some(id), budget);
    assert_eq!(town.alerts(AlertKind::Scan), 2);
}

#[test]
fn what_an_administrator_restrains_and_releases_by_hand_is_told_as_well() {
    let mut town = town_with(329, &policy("", ""));
    let alice = Restrained::Subject(town.alice());
    let now = town.world.now;
    let set = ["wiki".parse().expect("a name")].into();
    town.world.core.respond(alice, SignalResponse::Restrict(set), "incident-17", "root", now).expect("known");
    town.world.core.release_restraints(alice, "root", now).expect("released");
    town.world.pump();
    let told = town.world.store.alerts.iter().filter(|alert| alert.kind == AlertKind::Restrained);
    let told: Vec<&str> = told.map(|alert| alert.text.as_str()).collect();
    assert_eq!(
        told,
        ["alice@corp.example: only a few resources stay (root): incident-17", "alice@corp.example: released (root)"]
    );
}
