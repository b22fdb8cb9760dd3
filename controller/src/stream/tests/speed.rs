//! Claims about what a change costs: whom it decides again, how long a decision takes, and what the measured figure says.

use std::{fmt::Write as _, time::Duration};

use postern_common::{
    id::{DeviceId, RequestId},
    policy::Reach,
    protocol::AccessRequestState,
    time::WallTime,
};

use super::{
    claims::{POLICY, Town, town},
    joining::local,
    world::{ISSUER, World, person},
};
use crate::{
    decision::Extend,
    records::{DeviceKind, Quarantined, RequestRecord, Restrained, RevokeTarget},
    stream::{SignalResponse, SubjectUpdate},
};

const RULES: usize = 10_000;

/// Ten thousand rules for two hundred groups on two thousand resources, five ports each, and a hundred denies.
fn large_policy() -> String {
    let mut text = String::new();
    for i in 0..2_000 {
        let at =
            if i % 2 == 0 { format!("node = \"server-{}\"", i % 20) } else { format!("nodes = [\"tag:t{}\"]", i % 20) };
        let first = 1_000 + i * 5;
        writeln!(text, "[resource.r{i}]\n{at}\nports = [\"tcp/{first}-{}\"]", first + 4).expect("a text takes all");
    }
    for i in 0..RULES {
        let (group, to) = (i % 200, i % 2_000);
        writeln!(
            text,
            "[[access]]\nname = \"rule {i}\"\nfrom = [\"group:g{group}\"]\nto = [\"r{to}\"]\nlease = \"10m\""
        )
        .expect("a text takes all");
    }
    for i in 0..100 {
        writeln!(text, "[[deny]]\nname = \"deny {i}\"\nfrom = [\"group:d{i}\"]\nto = [\"r{i}\"]")
            .expect("a text takes all");
    }
    text
}

/// A controller with that policy, twenty servers, and ten people in four groups each.
fn large() -> World {
    let mut world = World::new(80, &large_policy());
    for i in 0..20 {
        world.server(&format!("server-{i}"), Some(&format!("s{i}")), &[&format!("t{i}")]);
    }
    for i in 0..10 {
        let groups: Vec<String> = (0..4).map(|j| format!("g{}", (i * 17 + j * 50) % 200)).collect();
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        world.laptop(&format!("laptop-{i}"), &person(&format!("p{i}"), &groups));
    }
    world.run(Duration::from_secs(1));
    world
}

#[test]
fn a_signal_about_one_subject_decides_that_subject_alone_under_ten_thousand_rules() {
    let mut world = large();
    assert!(
        world.core.list_leases().iter().filter(|lease| !lease.access.is_empty()).count() == 10,
        "they reach something"
    );
    let decided = |world: &World| world.core.status().counters.decisions;
    let change = |world: &mut World, what: &str, cost: u64, change: &dyn Fn(&mut World)| {
        let before = decided(world);
        change(world);
        world.pump();
        assert_eq!(decided(world) - before, cost, "{what}");
        world.run(Duration::from_secs(1));
    };
    change(&mut world, "new groups", 1, &|world| {
        let groups = Some(["g1".to_owned(), "g2".to_owned()].into());
        world.core.update_subject(ISSUER, "sub-p0", SubjectUpdate { groups, disabled: None }, "idp", world.now);
    });
    change(&mut world, "a revoked session", 0, &|world| {
        let session = world.core.find_session("p1@corp.example").expect("a session");
        world.core.revoke(RevokeTarget::Session(session), "lost", "root", world.now).expect("revoked");
    });
    change(&mut world, "a subject in quarantine", 0, &|world| {
        let subject = world.core.find_subject("p2@corp.example").expect("a subject");
        world.core.quarantine(Quarantined::Subject(subject), "odd", "root", world.now).expect("held");
    });
    change(&mut world, "a disabled subject", 0, &|world| {
        let disabled = Some(Some("left".to_owned()));
        world.core.update_subject(ISSUER, "sub-p3", SubjectUpdate { groups: None, disabled }, "idp", world.now);
    });
    // A place that goes decides those who reached it, and a rule those to whom it gave something.
    let leases = world.core.list_leases();
    let name = "server-1".parse().expect("a name");
    let reached = leases.iter().filter(|lease| lease.access.iter().any(|access| access.nodes.contains(&name))).count();
    assert!((1..7).contains(&reached), "{reached}");
    change(&mut world, "a node in quarantine", reached as u64, &|world| {
        let node = world.core.find_node("server-1").expect("a node");
        world.core.quarantine(Quarantined::Device(node), "odd", "root", world.now).expect("held");
    });
    let rule = leases.iter().flat_map(|lease| &lease.access).next().expect("something").rule.clone();
    let given = world.core.list_leases().iter().filter(|lease| lease.access.iter().any(|a| a.rule == rule)).count();
    change(&mut world, "a revoked rule", given as u64, &|world| {
        world.core.revoke(RevokeTarget::Rule(rule.clone()), "odd", "root", world.now).expect("revoked");
    });
}

#[test]
fn places_that_appear_one_after_the_other_decide_everybody_in_portions_and_never_in_one_call() {
    let text = "[resource.wiki]\nnodes = [\"tag:wiki\"]\nports = [\"tcp/80\"]\n[[access]]\nname = \"staff\"\nfrom = [\"group:staff\"]\nto = [\"wiki\"]\n";
    let mut world = World::new(82, text);
    let people: Vec<usize> =
        (0..100).map(|i| world.laptop(&format!("laptop-{i}"), &person(&format!("p{i}"), &["staff"]))).collect();
    let decided = |world: &World| world.core.status().counters.decisions;
    let (mut last, mut most) = (decided(&world), 0);
    let tokens: Vec<String> = (0..20)
        .map(|i| {
            let new = crate::stream::NewToken {
                service: Some("wiki".parse().expect("a name")),
                tags: ["wiki".parse().expect("a tag")].into(),
                machine: Some(format!("wiki-{i}").parse().expect("a name")),
                networks: vec![],
                uses: 1,
                life: Duration::from_secs(3_600),
            };
            world.core.create_token(new, "root", world.now).expect("a token").0
        })
        .collect();
    world.pump();
    let servers: Vec<usize> = tokens
        .into_iter()
        .enumerate()
        .map(|(i, token)| world.add_node(&format!("wiki-{i}"), super::node::Want::Enrol(token)))
        .collect();
    for server in &servers {
        world.connect(*server);
    }
    let mut run = |world: &mut World, span: u64| {
        world.run_with(Duration::from_secs(span), |world| {
            most = most.max(decided(world) - last);
            last = decided(world);
        });
    };
    run(&mut world, 2);
    for server in &servers {
        world.cut_stream(*server);
        world.connect(*server);
    }
    run(&mut world, 2);
    // Each call decides a portion, and the one machine that it is about.
    assert!(most <= super::super::openings::AT_ONCE as u64 + 2, "{most} in one call");
    // Whoever waits, waits once, however many places appear before their turn comes.
    let before = decided(&world);
    (0..100).for_each(|_| world.core.let_wait(&std::collections::HashSet::new(), world.now));
    world.run(Duration::from_millis(5));
    let (all, leases) = (decided(&world) - before, world.core.list_leases().len() as u64);
    assert!((leases..=leases + 5).contains(&all), "{all} decisions of {leases} leases");
    for (person, server) in people.iter().zip(servers.iter().cycle()) {
        assert!(world.passes(*person, *server, "tcp/80"), "everybody gets what appeared");
    }
}

/// Two thousand people with a machine each, all of whom are restrained, and a request of each.
fn crowd(world: &mut World, size: u32) -> Vec<DeviceId> {
    (0..size)
        .map(|number| {
            let who = person(&format!("person-{number}"), &["staff"]);
            let core = &mut world.core;
            let subject = core.person(&who, world.now).expect("a subject");
            let name = format!("machine-{number}").parse().expect("a name");
            let device = core.new_device(DeviceKind::Agent, None, name, subject.id, None, world.now).expect("a device");
            core.begin_session(&device, &who, local(), WallTime::NEVER, None, world.now);
            let whom = Restrained::Device(device.id);
            core.respond(whom, SignalResponse::Restrict([].into()), "odd", "a test", world.now).expect("known");
            let request = RequestRecord {
                id: RequestId::from_bytes(core.draw()),
                subject: subject.id,
                device: device.id,
                rule: "a rule".parse().expect("a name"),
                resource: "wiki".parse().expect("a name"),
                length_ms: 60_000,
                reason: "why".into(),
                asked: world.now.wall,
                approvers: vec![],
                state: AccessRequestState::Waiting { until: WallTime::NEVER },
            };
            core.registry.put_request(request, &mut core.out);
            while core.poll_effect().is_some() {}
            device.id
        })
        .collect()
}

#[test]
fn restraints_and_requests_of_others_cost_a_decision_nothing_and_a_look_at_all_of_them_no_more_than_their_number() {
    const SIZE: u32 = 2_000;
    let mut world = World::new(90, POLICY);
    let devices = crowd(&mut world, SIZE);
    let walked = |world: &World| world.core.registry.walked.replace(0);
    walked(&world);
    world.core.decide(devices[7], Extend::No, world.now);
    let of_one = walked(&world);
    assert!(of_one < 10, "{of_one} records for one decision");
    let (whom, challenge) = (Restrained::Device(devices[8]), SignalResponse::Challenge(Reach::Everything));
    world.core.respond(whom, challenge, "odd", "a test", world.now).expect("known");
    let of_response = walked(&world);
    assert!(of_response < 20, "{of_response} records for one response");
    let shown = world.core.status();
    assert_eq!(shown.restrained.len(), SIZE as usize);
    let of_status = walked(&world);
    assert!(of_status <= 8 * u64::from(SIZE), "{of_status} records for {SIZE} machines and as many restraints");
    assert_eq!(world.core.list_sessions().len(), SIZE as usize);
    let of_sessions = walked(&world);
    assert!(of_sessions <= 8 * u64::from(SIZE), "{of_sessions} records for {SIZE} login sessions");
}

/// The best of many: what the work takes, whatever else the machine does meanwhile.
#[test]
fn deciding_one_subject_under_ten_thousand_rules_takes_less_than_a_millisecond() {
    let mut world = large();
    let device = world.core.find_device("laptop-5").expect("a laptop");
    let record = world.core.registry.device(device).expect("its record").clone();
    let mut best = Duration::MAX;
    let mut found = 0;
    for _ in 0..200 {
        let begin = std::time::Instant::now();
        found = world.core.evaluate(&record, world.now).entitlements.len();
        best = best.min(begin.elapsed());
    }
    println!("{found} entitlements of {RULES} rules in {best:?}");
    assert!(found >= 100, "{found} entitlements: fifty rules for each of four groups, on places that exist");
    assert!(best < Duration::from_millis(1), "{best:?}");
}

#[test]
fn what_is_closed_by_a_command_or_an_event_is_measured_and_what_runs_out_is_not() {
    let Town { mut world, wiki, alice, bob, .. } = town(81);
    let measured = |world: &World| world.core.status().closing;
    assert_eq!(measured(&world).count, 0, "opening is not closing");
    let session = world.core.find_session("alice@corp.example").expect("her session");
    world.core.revoke(RevokeTarget::Session(session), "lost", "root", world.now).expect("revoked");
    world.pump();
    assert_eq!((measured(&world).count, measured(&world).open), (1 - 1, 1), "until everybody has acknowledged");
    world.run(Duration::from_secs(1));
    let view = measured(&world);
    assert_eq!((view.count, view.open), (1, 0));
    assert!(view.max_us > 0 && view.max_us < 1_000_000, "{view:?}");
    let update = SubjectUpdate { groups: Some(["other".to_owned()].into()), disabled: None };
    world.core.update_subject(ISSUER, "sub-bob", update, "idp", world.now);
    world.pump();
    world.run(Duration::from_secs(1));
    assert!(!world.lets_in(bob, wiki, "tcp/80"));
    assert_eq!(measured(&world).count, 2, "an event that no administrator sent counts as well");
    let _ = alice;
    let payroll = world.index_of(world.core.find_node("payroll").expect("a node")).expect("its index");
    world.cut_stream(payroll);
    world.run(Duration::from_secs(60));
    assert_eq!(measured(&world).count, 2, "a lease that runs out ends by itself");
}
