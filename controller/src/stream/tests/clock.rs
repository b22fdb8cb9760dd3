//! Claims about clocks that somebody sets by an hour: nothing opens by it, at the controller alone or everywhere at once.

use std::{collections::BTreeSet, time::Duration};

use postern_common::{
    id::BootId,
    protocol::{AccessRequestState, FromNode},
};

use super::world::{World, config, person};
use crate::{
    records::AuditEvent,
    signals::alerts::AlertKind,
    stream::{CoreConfig, Decider, Decision, NewToken},
};

const HOUR: i64 = 3_600_000;

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Whose clocks are set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    /// The controller's.
    Controller,
    /// Everybody's, as by one time source.
    Everywhere,
}

fn world(rule: &str) -> (World, usize, usize) {
    let text = format!(
        "[resource.db]\nnode = \"db\"\nports = [\"tcp/5432\"]\n[[access]]\nname = \"staff\"\nfrom = [\"group:staff\"]\nto = [\"db\"]\nlease = \"30s\"\n{rule}"
    );
    let mut world = World::with(120, &text, CoreConfig { boot: Some(BootId::from_bytes([1; 16])), ..config() });
    let db = world.server("db", Some("db"), &[]);
    let ann = world.laptop("ann-laptop", &person("ann", &["staff"]));
    world.run(seconds(1));
    (world, db, ann)
}

fn set(world: &mut World, whose: Set, by: i64) {
    world.clock_set = by;
    let apart = if whose == Set::Controller { -by } else { 0 };
    world.nodes.iter_mut().for_each(|node| node.clock_set = apart);
}

/// Runs for two minutes and tells whether the door was ever open.
fn ever_open(world: &mut World, db: usize, ann: usize) -> bool {
    let mut open = false;
    world.run_with(seconds(120), |world| open |= world.lets_in(ann, db, "tcp/5432"));
    open
}

// The world begins on a Monday at 09:00 UTC.
const DENY: &str = "[[deny]]\nname = \"no\"\nfrom = [\"group:staff\"]\nto = [\"db\"]\n";

#[test]
fn an_hour_either_way_opens_no_door_that_time_holds_shut() {
    let deny = |more: &str| format!("{DENY}{more}");
    let table = [
        ("hours that have not begun", "when = { hours = \"Mon-Sun 09:30-12:00 UTC\" }".to_owned()),
        ("hours that are over", "when = { hours = \"Mon-Sun 07:00-08:30 UTC\" }".into()),
        ("a rule that has not begun", "starts = \"2026-11-23T09:30:00Z\"".into()),
        ("a rule that has ended", "expires = \"2026-11-23T08:30:00Z\"".into()),
        ("a deny that has not ended", deny("expires = \"2026-11-23T09:30:00Z\"")),
        ("a deny that has begun", deny("starts = \"2026-11-23T08:30:00Z\"")),
        ("a deny within its hours", deny("when = { hours = \"Mon-Sun 08:30-09:30 UTC\" }")),
    ];
    for (what, rule) in table {
        for whose in [Set::Controller, Set::Everywhere] {
            for by in [HOUR, -HOUR] {
                let (mut world, db, ann) = world(&rule);
                assert!(!ever_open(&mut world, db, ann), "{what}");
                set(&mut world, whose, by);
                assert!(!ever_open(&mut world, db, ann), "{what}, {whose:?} {by}");
            }
        }
    }
}

#[test]
fn proof_that_has_grown_old_is_not_fresh_again_by_an_hour_back() {
    for whose in [Set::Controller, Set::Everywhere] {
        let (mut world, db, ann) = world("when = { mfa_within = \"10m\" }");
        assert!(ever_open(&mut world, db, ann));
        world.run(seconds(600));
        assert!(!ever_open(&mut world, db, ann), "too old");
        set(&mut world, whose, -600_000);
        assert!(!ever_open(&mut world, db, ann), "{whose:?}");
    }
}

#[test]
fn what_was_given_for_a_time_is_over_whatever_the_clock_says_and_after_every_kind_of_start() {
    for restarts in [None, Some(1), Some(2)] {
        for by_request in [true, false] {
            let rule = "request = { approvers = [\"group:leads\"], longest = \"1h\" }";
            let (mut world, db, ann) = world(rule);
            if by_request {
                let (resource, reason) = ("db".to_owned(), "incident 17".to_owned());
                world.send(ann, FromNode::RequestAccess { id: 1, resource, length_ms: 60_000, reason });
                world.run(seconds(1));
                let id = world.core.list_requests()[0].record.id;
                let lead = person("lea", &["leads"]);
                let decided = world.core.decide_request(id, Decision::Approve, Decider::Person(&lead), "y", world.now);
                decided.expect("approved");
            } else {
                let (machine, to) = (world.nodes[ann].id(), "db".parse().expect("a name"));
                let opened = world.core.break_glass(machine, &to, seconds(60), "a", "b", "root", world.now);
                opened.expect("opened");
            }
            world.pump();
            assert!(ever_open(&mut world, db, ann));
            assert!(!world.lets_in(ann, db, "tcp/5432"), "it was for a minute");
            set(&mut world, Set::Everywhere, -HOUR);
            if let Some(boot) = restarts {
                world.run(seconds(1));
                world.config.boot = Some(BootId::from_bytes([boot; 16]));
                world.restart();
                world.connect(db);
                world.connect(ann);
            }
            assert!(!ever_open(&mut world, db, ann), "restarts {restarts:?}, by request {by_request}");
        }
    }
}

#[test]
fn somebody_is_told_and_an_administrator_believes_the_clock() {
    let (mut world, db, ann) = world("when = { hours = \"Mon-Sun 09:30-12:00 UTC\" }");
    set(&mut world, Set::Everywhere, HOUR);
    assert!(!ever_open(&mut world, db, ann));
    let told = |world: &World| world.store.alerts.iter().filter(|alert| alert.kind == AlertKind::ClockSet).count();
    assert_eq!(told(&world), 1);
    let audited = |event: &&AuditEvent| matches!(event, AuditEvent::ClockSet { .. });
    assert_eq!(world.audit.iter().filter(audited).count(), 1);
    let why = world.core.explain("ann@corp.example", "db", None, world.now).expect("explained");
    assert!(!why.allowed && why.because.iter().any(|line| line.contains("clock was set")), "{why:?}");
    assert!(world.core.clock_view(world.now).in_doubt);

    world.core.accept_clock("the host was suspended", world.now).expect("a reason");
    world.pump();
    assert!(ever_open(&mut world, db, ann), "within a minute");
    assert!(!world.core.clock_view(world.now).in_doubt);
    // And it stays believed over a start.
    world.restart();
    world.connect(db);
    world.connect(ann);
    assert!(ever_open(&mut world, db, ann));
    assert_eq!(told(&world), 1);
}

#[test]
fn a_clock_that_wanders_alarms_once_in_a_while() {
    let (mut world, _, _) = world("");
    for step in 0..40 {
        let by = if step % 2 == 0 { HOUR } else { 0 };
        set(&mut world, Set::Controller, by);
        world.run(seconds(30));
    }
    let told = world.store.alerts.iter().filter(|alert| alert.kind == AlertKind::ClockSet).count();
    assert!((1..=3).contains(&told), "{told} in twenty minutes");
}

#[test]
fn a_clock_that_is_right_again_by_itself_opens_again_by_itself() {
    let (mut world, db, ann) = world("when = { hours = \"Mon-Sun 08:30-12:00 UTC\" }");
    assert!(world.lets_in(ann, db, "tcp/5432"));
    set(&mut world, Set::Controller, -HOUR);
    world.run(seconds(120));
    assert!(!world.lets_in(ann, db, "tcp/5432"), "by one of both it is too early");
    set(&mut world, Set::Controller, 0);
    assert!(ever_open(&mut world, db, ann));
}

#[test]
fn what_is_given_while_the_clock_is_in_doubt_ends_by_the_earlier_time_or_is_not_given() {
    for (by, given) in [(2 * HOUR, true), (-2 * HOUR, true), (4 * HOUR, false), (-4 * HOUR, false)] {
        let rule = "request = { approvers = [\"group:leads\"], longest = \"3h\" }";
        let (mut world, _, ann) = world(rule);
        let (resource, reason) = ("db".to_owned(), "incident 17".to_owned());
        let length = seconds(3 * 3_600);
        world.send(ann, FromNode::RequestAccess { id: 1, resource, length_ms: 3 * 3_600_000, reason });
        world.run(seconds(1));
        let latest = world.now.wall.saturating_add(seconds(3 * 3_600 + 10)).as_millis() + by.min(0);
        set(&mut world, Set::Controller, by);
        world.run(seconds(2));
        let now = world.now;
        let machine = world.nodes[ann].id();
        let opened = world.core.break_glass(machine, &"db".parse().expect("a name"), length, "a", "b", "root", now);
        let id = world.core.list_requests()[0].record.id;
        let lead = person("lea", &["leads"]);
        let approved = world.core.decide_request(id, Decision::Approve, Decider::Person(&lead), "y", now);
        let new =
            NewToken { service: None, tags: BTreeSet::new(), machine: None, networks: vec![], uses: 1, life: length };
        let token = world.core.create_token(new, "root", now);
        if !given {
            let refused = [opened.map(drop), approved.map(drop), token.map(drop)];
            for refused in refused {
                let why = refused.expect_err("not given").to_string();
                assert!(why.contains("in doubt: postern-controller clock accept"), "{why}");
            }
            continue;
        }
        assert!(opened.expect("opened").record.until.as_millis() <= latest, "{by}");
        let AccessRequestState::Approved { until, .. } = approved.expect("approved").record.state else {
            panic!("{by}")
        };
        assert!(until.as_millis() <= latest, "{by}");
        assert!(token.expect("made").1.record.expires.as_millis() <= latest, "{by}");
        world.join(ann, &person("ann", &["staff"]));
        let session = world.core.list_sessions().into_iter().map(|session| session.record.expires).max();
        assert!(session.expect("one").as_millis() <= latest + 9 * HOUR, "{by}: twelve hours");
    }
}

#[test]
fn an_hour_forward_for_a_while_forgets_nothing_for_good() {
    let (mut world, _, _) = world("");
    let new = NewToken {
        service: None,
        tags: BTreeSet::new(),
        machine: None,
        networks: vec![],
        uses: 1,
        life: seconds(1_800),
    };
    world.core.create_token(new, "root", world.now).expect("made");
    set(&mut world, Set::Controller, HOUR);
    world.run(seconds(120));
    set(&mut world, Set::Controller, 0);
    world.run(seconds(60));
    assert_eq!(world.core.list_tokens(world.now).len(), 1);
}
