//! Claims about services that sign in with tokens of their platform, and about what is new of a service.

mod keys;

use std::time::Duration;

use postern_common::protocol::{FirstUse, FromNode, MachineKind, PlatformToken, ToNode};

use super::{
    claims::POLICY,
    node::Want,
    world::{START_WALL, World, config, person},
};
use crate::{
    identity::machine::TokenRefusal,
    records::{AuditEvent, NameClaim, Reuse, RevokeTarget, TokenHash, TokenUseRecord, Workload},
    signals::alerts::AlertKind,
    stream::{CoreConfig, KeyOverdue, NewToken},
};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// What a good token says that lives so many seconds from the beginning of the world.
fn workload(token: u8, until: i64) -> Workload {
    Workload {
        issuer: "prod".into(),
        subject: "system:serviceaccount:pay:payroll".into(),
        instance: format!("pod-{token}"),
        service: "payroll".parse().expect("a name"),
        tags: [].into(),
        machine: None,
        token: TokenHash::from_bytes([token; 32]),
        reuse: Reuse::SameMachine,
        issued: postern_common::time::WallTime::from_millis(START_WALL),
        expires: postern_common::time::WallTime::from_millis(START_WALL + until * 1_000),
        forget_after: seconds(300),
    }
}

/// A database that `service:payroll` reads, and a pod of that service that has signed in until second 100.
struct Pod {
    world: World,
    db: usize,
    pod: usize,
}

fn pod_with(config: CoreConfig) -> Pod {
    let mut world = World::with(77, POLICY, config);
    let db = world.server("db", Some("db"), &[]);
    let good = |number: u8, until| (format!("t{number}"), Ok(workload(number, until)));
    world.tokens = [good(1, 100), good(2, 200), good(3, 300)].into();
    let pod = world.add_node("payroll-x", Want::Platform("t1".into()));
    sign_in(&mut world, pod, "t1");
    assert!(world.passes(pod, db, "tcp/5432"), "{:?}", world.nodes[pod].refused);
    Pod { world, db, pod }
}

fn pod() -> Pod {
    pod_with(config())
}

/// Shows a token to join, and comes back with the device key if that was good.
fn sign_in(world: &mut World, node: usize, token: &str) {
    world.cut_stream(node);
    world.nodes[node].want = Want::Platform(token.into());
    world.connect(node);
    world.run(Duration::from_millis(200));
    if world.nodes[node].want == Want::Hello {
        world.cut_stream(node);
        world.connect(node);
        world.run(Duration::from_millis(200));
    }
}

/// Starts the controller again; the others come back.
fn restart(world: &mut World, others: &[usize]) {
    world.restart();
    others.iter().for_each(|node| world.connect(*node));
    world.run(seconds(1));
}

fn show(world: &mut World, node: usize, token: &str) {
    world.send(node, FromNode::PlatformToken { token: PlatformToken::new(token) });
    world.run(Duration::from_millis(200));
}

fn run_to(world: &mut World, second: u64) {
    let passed = world.now.monotonic.since(postern_common::time::Monotonic::from_millis(5_000_000));
    world.run(seconds(second).saturating_sub(passed));
}

fn alerts(world: &World, kind: AlertKind) -> usize {
    world.store.alerts.iter().filter(|alert| alert.kind == kind).count()
}

#[test]
fn access_ends_with_the_token_unless_a_fresh_one_comes_and_begins_again_with_the_next() {
    let Pod { mut world, db, pod } = pod();
    run_to(&mut world, 60);
    show(&mut world, pod, "t2");
    assert!(matches!(world.nodes[pod].platform.last(), Some(ToNode::PlatformRenewed { .. })));
    run_to(&mut world, 150);
    assert!(world.passes(pod, db, "tcp/5432"), "renewed");
    world.run_with(seconds(51), |world| {
        let second = world.now.wall.as_millis() - START_WALL;
        assert!(second <= 200_000 || !world.lets_in(pod, db, "tcp/5432"), "open {second} ms after the start");
    });
    assert!(world.nodes[pod].session_ended.as_ref().is_some_and(|why| why.contains("no fresh one came")));
    let why = world.core.explain("service:payroll", "db", None, world.now).expect("explained");
    assert!(!why.allowed && why.reason.contains("no live token of its platform"), "{why:?}");
    sign_in(&mut world, pod, "t2");
    assert!(world.nodes[pod].refused.as_ref().is_some_and(|why| why.contains("expired")));
    world.nodes[pod].new_key();
    sign_in(&mut world, pod, "t3");
    assert!(world.passes(pod, db, "tcp/5432"), "{:?}", world.nodes[pod].refused);
    let events = |name: fn(&AuditEvent) -> bool| world.audit.iter().filter(|event| name(event)).count();
    assert_eq!(events(|event| matches!(event, AuditEvent::PlatformSignedIn { .. })), 2);
    assert_eq!(events(|event| matches!(event, AuditEvent::PlatformRenewed { .. })), 1);
    assert_eq!(events(|event| matches!(event, AuditEvent::PlatformRefused { .. })), 1);
}

#[test]
fn a_token_belongs_to_the_machine_that_showed_it_first_also_after_a_restart() {
    let Pod { mut world, db, pod } = pod();
    let thief = world.add_node("thief", Want::Platform("t1".into()));
    for _attempt in 0..2 {
        sign_in(&mut world, thief, "t1");
        assert!(world.nodes[thief].device.is_none());
        assert!(world.nodes[thief].refused.as_ref().is_some_and(|why| why.contains("another machine")));
        restart(&mut world, &[db, pod]);
    }
    assert_eq!(alerts(&world, AlertKind::TokenReplayed), 2, "once in each life of the controller");
    assert!(world.audit.iter().any(|event| matches!(event, AuditEvent::PlatformRefused { .. })));
    // The machine itself may begin again with it, and gains no time.
    sign_in(&mut world, pod, "t1");
    assert!(world.passes(pod, db, "tcp/5432"));
    run_to(&mut world, 101);
    assert!(!world.lets_in(pod, db, "tcp/5432"));
}

#[test]
fn a_token_that_the_platform_gives_once_is_taken_once() {
    let Pod { mut world, pod, .. } = pod();
    let once = Workload { reuse: Reuse::Never, ..workload(9, 150) };
    world.tokens.insert("once".into(), Ok(once));
    sign_in(&mut world, pod, "once");
    assert!(world.nodes[pod].refused.is_none());
    show(&mut world, pod, "once");
    assert!(matches!(world.nodes[pod].platform.last(), Some(ToNode::PlatformRefused { .. })));
}

#[test]
fn what_an_administrator_took_back_does_not_come_back_with_the_same_token() {
    let Pod { mut world, db, pod } = pod();
    let session = world.core.find_session("service:payroll/payroll-x").expect("a session");
    world.core.revoke(RevokeTarget::Session(session), "stolen", "root", world.now).expect("revoked");
    world.pump();
    world.run(seconds(1));
    assert!(!world.lets_in(pod, db, "tcp/5432"));
    world.nodes[pod].new_key();
    sign_in(&mut world, pod, "t1");
    assert!(world.nodes[pod].refused.as_ref().is_some_and(|why| why.contains("taken back")));
    restart(&mut world, &[db]);
    sign_in(&mut world, pod, "t1");
    assert!(!world.lets_in(pod, db, "tcp/5432"), "also after a restart");
    sign_in(&mut world, pod, "t2");
    assert!(world.passes(pod, db, "tcp/5432"), "the platform still vouches for it: {:?}", world.nodes[pod].refused);
}

#[test]
fn a_clock_that_is_set_back_revives_no_token_and_stretches_no_session() {
    for restarted in [false, true] {
        let Pod { mut world, db, pod } = pod();
        run_to(&mut world, 50);
        world.clock_set = -3_600_000;
        world.run(seconds(1));
        run_to(&mut world, 101);
        assert!(!world.lets_in(pod, db, "tcp/5432"), "a session outlives its token by the monotonic clock");
        if restarted {
            world.clock_set = 0;
            world.run(seconds(1));
            restart(&mut world, &[db]);
            world.clock_set = -3_600_000;
            world.run(seconds(1));
        }
        world.nodes[pod].new_key();
        for token in ["t1", "t2"] {
            run_to(&mut world, 210);
            sign_in(&mut world, pod, token);
            assert!(!world.lets_in(pod, db, "tcp/5432"), "{token} has ended");
        }
        let thief = world.add_node("thief", Want::Platform("t1".into()));
        sign_in(&mut world, thief, "t1");
        assert!(world.nodes[thief].device.is_none());
        world.clock_set = 0;
        world.run(seconds(1));
        sign_in(&mut world, pod, "t3");
        assert!(world.passes(pod, db, "tcp/5432"), "the clock is right again: {:?}", world.nodes[pod].refused);
    }
}

#[test]
fn a_clock_that_is_set_forward_closes_and_lets_the_same_token_in_when_it_is_right_again() {
    let Pod { mut world, db, pod } = pod();
    world.clock_set = 3_600_000;
    world.run(seconds(31));
    assert!(!world.lets_in(pod, db, "tcp/5432"));
    world.clock_set = 0;
    world.run(seconds(1));
    world.nodes[pod].new_key();
    sign_in(&mut world, pod, "t1");
    assert!(world.passes(pod, db, "tcp/5432"), "{:?}", world.nodes[pod].refused);
}

#[test]
fn a_machine_is_of_one_service_and_a_token_of_another_does_not_change_that() {
    let Pod { mut world, pod, .. } = pod();
    let other = Workload { service: "db".parse().expect("a name"), ..workload(8, 500) };
    world.tokens.insert("other".into(), Ok(other));
    show(&mut world, pod, "other");
    assert!(matches!(world.nodes[pod].platform.last(), Some(ToNode::PlatformRefused { .. })));
    sign_in(&mut world, pod, "other");
    assert!(world.nodes[pod].refused.as_ref().is_some_and(|why| why.contains("remove that device first")));
    // Neither does one make a person's machine that of a service, nor an enrolled server renew by what it never had.
    let laptop = world.laptop("alice-laptop", &person("alice", &["staff"]));
    show(&mut world, laptop, "t3");
    sign_in(&mut world, laptop, "t3");
    assert!(world.nodes[laptop].refused.is_some());
    let db = world.core.find_device("db").expect("the database");
    let db = world.index_of(db).expect("there");
    show(&mut world, db, "t3");
    assert!(world.core.find_session("db").is_err());
}

#[test]
fn a_machine_that_is_away_for_long_is_forgotten_and_one_in_quarantine_is_not() {
    let Pod { mut world, pod, .. } = pod();
    world.cut_stream(pod);
    run_to(&mut world, 290);
    assert!(world.core.find_device("payroll-x").is_ok());
    run_to(&mut world, 450);
    assert!(world.core.find_device("payroll-x").is_err());
    assert!(world.audit.iter().any(|event| matches!(event, AuditEvent::PlatformMachineForgotten { .. })));
    world.tokens.insert("t4".into(), Ok(workload(4, 900)));
    world.nodes[pod].device = None;
    world.nodes[pod].verifier = None;
    sign_in(&mut world, pod, "t4");
    let id = world.core.find_device("payroll-x").expect("it is back");
    let target = crate::records::Quarantined::Device(id);
    world.core.quarantine(target, "it scans", "root", world.now).expect("held");
    world.pump();
    world.cut_stream(pod);
    run_to(&mut world, 1_500);
    assert!(world.core.find_device("payroll-x").is_ok(), "who is held does not become another machine");
}

#[test]
fn tokens_of_a_service_that_is_disabled_open_nothing_and_an_issuer_that_is_away_is_tried_again() {
    let Pod { mut world, db, pod } = pod();
    world.tokens.insert("away".into(), Err(TokenRefusal::Unavailable("no answer".into())));
    show(&mut world, pod, "away");
    assert!(world.passes(pod, db, "tcp/5432"), "a renewal that fails takes nothing before its time");
    let subject = world.core.find_subject("service:payroll").expect("a service");
    world.core.revoke(RevokeTarget::Subject(subject), "offboarded", "root", world.now).expect("revoked");
    world.pump();
    world.run(seconds(1));
    assert!(!world.lets_in(pod, db, "tcp/5432"));
    for token in ["t2", "t3"] {
        sign_in(&mut world, pod, token);
        assert!(!world.lets_in(pod, db, "tcp/5432"));
    }
}

#[test]
fn a_flood_of_bad_tokens_is_limited_and_does_not_fill_the_audit_log() {
    let Pod { mut world, .. } = pod();
    let before = world.audit.len();
    let stranger = world.add_node("stranger", Want::Platform("forged".into()));
    for _attempt in 0..400 {
        world.cut_stream(stranger);
        world.connect(stranger);
        world.run(Duration::from_millis(50));
    }
    let refused = world.audit[before..].iter().filter(|e| matches!(e, AuditEvent::PlatformRefused { .. })).count();
    assert!((1..=60).contains(&refused), "{refused}");
    assert!(world.core.status().counters.rate_limited > 200);
}

#[test]
fn one_machine_or_one_address_does_not_use_up_what_is_there_for_all() {
    let Pod { mut world, db, pod } = pod();
    for number in 0..100_u8 {
        world.tokens.insert(format!("m{number}"), Ok(workload(100 + number, 900)));
        world.run(seconds(2));
        show(&mut world, pod, &format!("m{number}"));
    }
    let kept = world.store.loaded.token_uses.len();
    assert!((60..=64).contains(&kept), "{kept}");
    assert!(world.passes(pod, db, "tcp/5432"));
    // Joining has a pace too, by whatever key, and is recorded no faster.
    let again = Workload { reuse: Reuse::SameMachine, ..workload(99, 2_000) };
    world.tokens.insert("again".into(), Ok(again));
    let other = world.add_node("other", Want::Platform("again".into()));
    let limited = world.core.status().counters.rate_limited;
    for _attempt in 0..1_500 {
        world.cut_stream(other);
        world.nodes[other].want = Want::Platform("again".into());
        world.connect(other);
        world.run(Duration::from_millis(100));
    }
    let joins = world.audit.iter().filter(|event| matches!(event, AuditEvent::PlatformSignedIn { .. })).count();
    assert!((512..=700).contains(&joins), "{joins}");
    assert!(world.core.status().counters.rate_limited > limited + 500);
}

#[test]
fn a_service_that_uses_up_its_share_of_remembered_tokens_leaves_the_others_theirs_and_its_machines_go_on() {
    let Pod { mut world, db, pod } = pod();
    let first = world.store.loaded.token_uses[0].clone();
    let key = world.nodes[db].key.public();
    world.store.loaded.token_uses.extend((0..20_000_u64).map(|number| {
        let mut hash = [7; 32];
        hash[..8].copy_from_slice(&number.to_be_bytes());
        TokenUseRecord { token: TokenHash::from_bytes(hash), key, ..first.clone() }
    }));
    restart(&mut world, &[db, pod]);
    let other = world.add_node("other", Want::Platform("t2".into()));
    sign_in(&mut world, other, "t2");
    assert!(world.nodes[other].refused.as_ref().is_some_and(|why| why.contains("too many tokens")));
    show(&mut world, pod, "t2");
    assert!(matches!(world.nodes[pod].platform.last(), Some(ToNode::PlatformRenewed { .. })), "a renewal");
    let wiki = Workload { service: "wiki".parse().expect("a name"), ..workload(50, 300) };
    world.tokens.insert("wiki".into(), Ok(wiki));
    sign_in(&mut world, other, "wiki");
    assert!(world.nodes[other].device.is_some(), "{:?}", world.nodes[other].refused);
}

#[test]
fn tags_of_a_machine_are_those_that_its_newest_token_stands_for() {
    let Pod { mut world, pod, .. } = pod();
    let tags = |world: &World, pod: usize| world.nodes[pod].own.as_ref().expect("told").tags.len();
    assert_eq!(tags(&world, pod), 0);
    let tagged = Workload { tags: ["wiki".parse().expect("a tag")].into(), ..workload(6, 150) };
    world.tokens.insert("tagged".into(), Ok(tagged));
    show(&mut world, pod, "tagged");
    world.run(seconds(1));
    assert_eq!(tags(&world, pod), 1);
    show(&mut world, pod, "t2");
    world.run(seconds(1));
    assert_eq!(tags(&world, pod), 0);
}

#[test]
fn an_enrolment_token_does_not_make_a_machine_of_a_platform_a_permanent_one() {
    let Pod { mut world, db, pod } = pod();
    for service in [None, Some("payroll".parse().expect("a name"))] {
        let (machine, networks, tags) = (None, vec![], ["db".parse().expect("a tag")].into());
        let new = NewToken { service, tags, machine, networks, uses: 1, life: seconds(60) };
        let (token, view) = world.core.create_token(new, "root", world.now).expect("a token");
        world.pump();
        world.cut_stream(pod);
        world.nodes[pod].want = Want::Enrol(token);
        world.connect(pod);
        world.run(seconds(1));
        assert!(world.nodes[pod].refused.as_ref().is_some_and(|why| why.contains("tokens of its platform")));
        assert!(world.core.find_token(&view.short).is_ok(), "the token is not used by that");
    }
    world.nodes[pod].want = Want::Hello;
    world.connect(pod);
    run_to(&mut world, 101);
    assert!(!world.lets_in(pod, db, "tcp/5432"), "what its token opened ends with it");
}

/// A token for a machine whose name the platform vouches for.
fn named(world: &mut World, number: u8, until: i64) -> String {
    let machine = Some("ledger".parse().expect("a name"));
    world.tokens.insert(format!("n{number}"), Ok(Workload { machine, ..workload(number, until) }));
    format!("n{number}")
}

#[test]
fn a_stolen_token_alarms_also_where_it_would_open_nothing() {
    let Pod { mut world, db, pod } = pod();
    let token = named(&mut world, 20, 900);
    sign_in(&mut world, pod, &token);
    let thief = world.add_node("thief", Want::Platform(token.clone()));
    sign_in(&mut world, thief, &token);
    assert_eq!(alerts(&world, AlertKind::TokenReplayed), 1, "the name is taken: {:?}", world.nodes[thief].refused);
    // On a live stream, of another service, the same.
    let other = Workload { service: "db".parse().expect("a name"), ..workload(21, 900) };
    world.tokens.insert("other".into(), Ok(other));
    let first = world.add_node("db-2", Want::Platform("other".into()));
    sign_in(&mut world, first, "other");
    show(&mut world, pod, "other");
    assert_eq!(alerts(&world, AlertKind::TokenReplayed), 2);
    // And a token that is refused takes nobody's name away.
    let claims = world.laptop("ledger-2", &person("alice", &["staff"]));
    let machine = Some("ledger-2".parse().expect("a name"));
    let spent = Workload { machine, reuse: Reuse::Never, ..workload(20, 900) };
    world.tokens.insert("spent".into(), Ok(spent));
    sign_in(&mut world, thief, "spent");
    assert_eq!(world.core.find_device("ledger-2").ok(), Some(world.nodes[claims].id()));
    assert!(world.passes(pod, db, "tcp/5432"));
}

#[test]
fn the_next_machine_of_a_vouched_name_takes_the_place_of_one_that_is_gone_and_of_no_other() {
    let Pod { mut world, db, pod } = pod();
    let token = named(&mut world, 20, 150);
    sign_in(&mut world, pod, &token);
    let next = named(&mut world, 21, 900);
    let successor = world.add_node("whatever", Want::Platform(next.clone()));
    sign_in(&mut world, successor, &next);
    assert!(world.nodes[successor].device.is_none(), "it is there");
    world.cut_stream(pod);
    sign_in(&mut world, successor, &next);
    assert!(world.nodes[successor].device.is_none(), "its session goes on");
    run_to(&mut world, 160);
    sign_in(&mut world, successor, &next);
    assert!(world.passes(successor, db, "tcp/5432"), "{:?}", world.nodes[successor].refused);
    let id = world.core.find_device("ledger").expect("the successor");
    assert_eq!(world.nodes[successor].id(), id);
    // One that is held keeps its name.
    world.core.quarantine(crate::records::Quarantined::Device(id), "it scans", "root", world.now).expect("held");
    world.pump();
    world.cut_stream(successor);
    run_to(&mut world, 910);
    let last = named(&mut world, 22, 1_500);
    let third = world.add_node("third", Want::Platform(last.clone()));
    sign_in(&mut world, third, &last);
    assert!(world.nodes[third].device.is_none());
}

#[test]
fn a_name_that_the_newest_token_does_not_vouch_for_is_a_claim_again() {
    let Pod { mut world, pod, .. } = pod();
    let token = named(&mut world, 20, 150);
    sign_in(&mut world, pod, &token);
    let approved = |world: &World| {
        let device = world.store.loaded.devices.iter().find(|device| device.name.as_str() == "ledger");
        device.expect("there").name_claim == NameClaim::Approved
    };
    assert!(approved(&world));
    show(&mut world, pod, "t2");
    assert!(!approved(&world));
}

#[test]
fn a_workload_that_an_administrator_stopped_does_not_come_back_under_a_new_device_key() {
    for held in [false, true] {
        let Pod { mut world, pod, .. } = pod();
        let id = world.nodes[pod].id();
        match held {
            true => drop(world.core.quarantine(crate::records::Quarantined::Device(id), "it scans", "root", world.now)),
            false => drop(world.core.revoke(RevokeTarget::Device(id), "stolen", "root", world.now)),
        }
        world.pump();
        let same = Workload { instance: "pod-1".into(), ..workload(30, 900) };
        world.tokens.insert("same".into(), Ok(same));
        let again = world.add_node("again", Want::Platform("same".into()));
        sign_in(&mut world, again, "same");
        assert!(world.nodes[again].refused.as_ref().is_some_and(|why| why.contains("stopped this workload")), "{held}");
        let another = world.add_node("another", Want::Platform("t2".into()));
        sign_in(&mut world, another, "t2");
        assert!(world.nodes[another].device.is_some(), "another pod: {:?}", world.nodes[another].refused);
    }
}

#[test]
fn a_controller_that_starts_again_does_not_forget_machines_that_were_connected_when_it_ended() {
    let Pod { mut world, pod, .. } = pod();
    world.tokens.insert("long".into(), Ok(workload(30, 600)));
    show(&mut world, pod, "long");
    run_to(&mut world, 590);
    world.restart();
    run_to(&mut world, 800);
    assert!(world.core.find_device("payroll-x").is_ok(), "connected until 590");
    run_to(&mut world, 950);
    assert!(world.core.find_device("payroll-x").is_err());
}

#[test]
fn a_restored_backup_revives_no_token_that_was_shown_or_taken_back_since() {
    let Pod { mut world, db, pod } = pod();
    world.run(seconds(5));
    let (loaded, _) = crate::stream::restored(world.store.loaded.clone(), world.now);
    world.store.loaded = loaded;
    restart(&mut world, &[db]);
    world.nodes[pod].new_key();
    for token in ["t1", "t2"] {
        sign_in(&mut world, pod, token);
        assert!(world.nodes[pod].refused.as_ref().is_some_and(|why| why.contains("restored")), "{token}");
    }
    world.tokens.insert("fresh".into(), Ok(Workload { issued: world.now.wall, ..workload(40, 300) }));
    sign_in(&mut world, pod, "fresh");
    assert!(world.passes(pod, db, "tcp/5432"), "{:?}", world.nodes[pod].refused);
}

// --- what is new of a service

#[test]
fn a_service_from_another_place_or_of_another_kind_alarms_once_and_its_first_is_quiet() {
    let Pod { mut world, pod, .. } = pod();
    assert_eq!((alerts(&world, AlertKind::NewPlace), alerts(&world, AlertKind::NewKind)), (0, 0));
    let come_back = |world: &mut World| {
        world.cut_stream(pod);
        world.connect(pod);
        world.run(seconds(1));
    };
    world.nodes[pod].moved_to = Some("203.0.113.9:4000".parse().expect("an address"));
    come_back(&mut world);
    come_back(&mut world);
    assert_eq!((alerts(&world, AlertKind::NewPlace), alerts(&world, AlertKind::NewKind)), (1, 0));
    world.nodes[pod].machine =
        MachineKind { system: "Linux".into(), processor: "aarch64".into(), kernel: "5.10".into() };
    come_back(&mut world);
    restart(&mut world, &[pod]);
    assert_eq!((alerts(&world, AlertKind::NewPlace), alerts(&world, AlertKind::NewKind)), (1, 1));
}

#[test]
fn what_a_service_uses_for_the_first_time_after_it_was_learned_alarms_and_what_it_cannot_use_does_not_count() {
    let Pod { mut world, db, pod } = pod_with(CoreConfig { learn_for: seconds(40), ..config() });
    let used = |world: &mut World, node: usize, resource: &str, service: &str| {
        let used = FirstUse {
            peer: world.nodes[pod].id(),
            resource: resource.parse().expect("a name"),
            service: service.parse().expect("a service"),
        };
        world.send(node, FromNode::FirstUses { uses: vec![used] });
        world.run(seconds(1));
    };
    used(&mut world, db, "db", "tcp/5432");
    assert_eq!(alerts(&world, AlertKind::FirstUse), 0, "it is learned");
    run_to(&mut world, 50);
    used(&mut world, db, "db", "tcp/5432");
    used(&mut world, db, "db", "tcp/22");
    used(&mut world, db, "wiki", "tcp/443");
    assert_eq!(alerts(&world, AlertKind::FirstUse), 0, "known, or not open to it");
    assert_eq!(world.core.status().counters.uses_refused, 2);
    let more = POLICY.replace("ports = [\"tcp/5432\"]", "ports = [\"tcp/5432\", \"tcp/9000\"]");
    world.apply_policy(&more);
    world.run(seconds(1));
    used(&mut world, db, "db", "tcp/9000");
    used(&mut world, db, "db", "tcp/9000");
    assert_eq!(alerts(&world, AlertKind::FirstUse), 1);
}

#[test]
fn a_service_that_does_many_new_things_is_told_of_once_in_five_minutes_with_how_many() {
    let Pod { mut world, pod, .. } = pod();
    for number in 0..20 {
        world.nodes[pod].moved_to = Some(format!("203.0.{number}.9:4000").parse().expect("an address"));
        world.cut_stream(pod);
        world.connect(pod);
        world.run(seconds(4));
    }
    assert_eq!(alerts(&world, AlertKind::NewPlace), 1);
    world.run(seconds(400));
    let places: Vec<_> = world.store.alerts.iter().filter(|alert| alert.kind == AlertKind::NewPlace).collect();
    assert_eq!(places.len(), 2);
    assert!(places[1].text.contains("more things are new"), "{}", places[1].text);
}

#[test]
fn a_use_of_a_range_of_ports_is_not_taken() {
    let Pod { mut world, db, pod } = pod();
    let more = POLICY.replace("ports = [\"tcp/5432\"]", "ports = [\"tcp/5000-6000\"]");
    world.apply_policy(&more);
    world.run(seconds(1));
    let used = |service: &str| FirstUse {
        peer: world.nodes[pod].id(),
        resource: "db".parse().expect("a name"),
        service: service.parse().expect("a service"),
    };
    let uses = vec![used("tcp/5432"), used("tcp/5001-5002"), used("tcp/5000-6000")];
    world.send(db, FromNode::FirstUses { uses });
    world.run(seconds(1));
    assert_eq!(world.core.status().counters.uses_refused, 2);
}

// --- keys

#[test]
fn a_join_that_is_refused_at_last_has_taken_nothing_from_anybody() {
    let mut small = config();
    small.overlay_v4 = "100.64.0.0/30".parse().expect("a network"); // two addresses: the database's and the first machine's
    small.address_hold = seconds(60);
    let Pod { mut world, pod, .. } = pod_with(small);
    let token = named(&mut world, 20, 150);
    sign_in(&mut world, pod, &token);
    world.cut_stream(pod);
    run_to(&mut world, 160);
    let (before, records) =
        (world.core.find_device("ledger").expect("it is away"), world.store.loaded.token_uses.len());
    let machine = Some("ledger".parse().expect("a name"));
    world.tokens.insert("last".into(), Ok(Workload { machine, reuse: Reuse::Never, ..workload(21, 900) }));
    let successor = world.add_node("whatever", Want::Platform("last".into()));
    sign_in(&mut world, successor, "last");
    assert!(world.nodes[successor].refused.as_ref().is_some_and(|why| why.contains("no address is left")));
    assert_eq!(world.core.find_device("ledger").ok(), Some(before), "its predecessor is still there");
    assert_eq!(world.store.loaded.token_uses.len(), records, "and the token is not used up");
    world.core.remove_device(before, "root", world.now).expect("removed");
    world.pump();
    run_to(&mut world, 300);
    sign_in(&mut world, successor, "last");
    assert!(world.nodes[successor].device.is_some(), "{:?}", world.nodes[successor].refused);
}
