//! Claims about live flows: how many a revocation cut, and which ones a change of policy would cut.

use std::time::Duration;

use postern_common::protocol::{FlowGroup, FromNode};

use super::{
    claims::{POLICY, Town, town},
    world::{World, policy},
};
use crate::{
    records::{AuditEvent, RevokeTarget},
    stream::{PlanFlows, PolicyPlan},
};

fn flows(world: &World, peer: usize, resource: &str, service: &str, flows: u64, bytes: u64) -> FlowGroup {
    FlowGroup {
        peer: world.nodes[peer].id(),
        resource: resource.parse().expect("a name"),
        service: service.parse().expect("a service"),
        flows,
        oldest_ms: 60_000,
        bytes,
    }
}

fn cut(plan: &PolicyPlan) -> Vec<String> {
    let of = |flows: &PlanFlows| format!("{} -> {} {} {}", flows.from, flows.to, flows.service, flows.flows);
    let line = |line: &crate::stream::PlanLine| {
        let flows: Vec<String> = line.flows.iter().map(of).collect();
        format!("{} loses {}: {}", line.via, line.resource, flows.join(", "))
    };
    plan.lines.iter().filter(|line| !line.flows.is_empty()).map(line).collect()
}

#[test]
fn a_revocation_counts_the_flows_that_the_destinations_cut() {
    let Town { mut world, payroll, wiki, alice, db, .. } = town(71);
    (world.nodes[payroll].cuts, world.nodes[wiki].cuts, world.nodes[db].cuts) = (1, 2, 64);
    let session = world.core.find_session("alice@corp.example/alice-laptop").expect("her session");
    let id = world.core.revoke(RevokeTarget::Session(session), "laptop lost", "root", world.now).expect("revoked");
    world.pump();
    assert_eq!(world.core.revocation(id, world.now).expect("remembered").flows_cut, 0);
    world.run(Duration::from_millis(100));
    let view = world.core.revocation(id, world.now).expect("remembered");
    assert_eq!((view.acknowledged, view.flows_cut), (3, 3), "the database had no part in it: {view:?}");
    let done = |event: &AuditEvent| matches!(event, AuditEvent::RevocationDone { flows_cut: 3, .. });
    assert!(world.audit.iter().any(done));
    let _ = alice;
}

#[test]
fn a_plan_names_the_live_flows_that_it_would_cut_and_no_others() {
    let Town { mut world, payroll, wiki, alice, bob, db } = town(72);
    world.nodes[wiki].flows =
        vec![flows(&world, alice, "wiki", "tcp/443", 2, 10), flows(&world, bob, "wiki", "tcp/80", 1, 1 << 30)];
    world.nodes[payroll].flows = vec![flows(&world, alice, "payroll-app", "tcp/443", 5, 10)];
    world.nodes[db].mute = true;

    let next = policy(&POLICY.replace("ports = [\"tcp/80\", \"tcp/443\"]", "ports = [\"tcp/443\"]"));
    let id = world.core.begin_plan(&next, world.now);
    world.pump();
    assert!(!world.core.planned(id).expect("remembered").1, "the wiki has not answered yet");
    world.run(Duration::from_millis(100));
    let (plan, done) = world.core.planned(id).expect("remembered");
    assert!(done, "{plan:?}");
    assert_eq!(cut(&plan), ["group:staff loses wiki: bob-laptop -> wiki-1 tcp/80 1"]);
    assert_eq!((plan.live.answered, plan.live.unlisted), (1, 0), "who loses nothing is not asked");
    assert!(world.passes(bob, wiki, "tcp/80"), "a plan changes nothing");
    world.core.forget_plan(id);
    assert!(world.core.planned(id).is_none());
}

#[test]
fn a_plan_says_which_nodes_did_not_answer_and_which_are_away() {
    let Town { mut world, payroll, wiki, alice, db, .. } = town(73);
    world.nodes[wiki].mute = true;
    world.nodes[db].flows = vec![flows(&world, payroll, "db", "tcp/5432", 1, 1)];
    world.cut_stream(payroll);
    let next = policy(&format!(
        "{}[[test]]\nas = {{ user = \"x\", groups = [] }}\nto = \"wiki\"\nport = \"tcp/80\"\nexpect = \"deny\"\n",
        POLICY.split("[[access]]").next().expect("the resources")
    ));
    let id = world.core.begin_plan(&next, world.now);
    world.pump();
    world.run(Duration::from_millis(100));
    let (plan, done) = world.core.planned(id).expect("remembered");
    assert!(!done);
    let names = |list: &[postern_common::id::MachineName]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!((names(&plan.live.silent), names(&plan.live.away)), (vec!["wiki-1".into()], vec!["payroll".into()]));
    assert_eq!(cut(&plan), ["service:payroll loses db: payroll -> db tcp/5432 1"]);
    let _ = alice;
}

#[test]
fn a_node_that_was_not_asked_or_answers_twice_changes_no_plan() {
    let Town { mut world, wiki, bob, db, .. } = town(74);
    let next = policy(&POLICY.replace("ports = [\"tcp/80\", \"tcp/443\"]", "ports = [\"tcp/443\"]"));
    let id = world.core.begin_plan(&next, world.now);
    world.pump();
    let before = world.core.status().counters.messages_refused;
    let answer =
        FromNode::LiveFlows { id: id.0, groups: vec![flows(&world, bob, "wiki", "tcp/80", 9, 9)], unlisted: 9 };
    world.send(db, answer.clone());
    world.run(Duration::from_millis(100));
    world.send(wiki, answer);
    world.run(Duration::from_millis(100));
    let (plan, done) = world.core.planned(id).expect("remembered");
    assert!(done && cut(&plan).is_empty() && plan.live.unlisted == 0, "{plan:?}");
    assert_eq!(world.core.status().counters.messages_refused - before, 2);
}

#[test]
fn plans_that_nobody_takes_are_forgotten() {
    let Town { mut world, .. } = town(75);
    let next = policy(POLICY);
    let ids: Vec<_> = (0..20).map(|_| world.core.begin_plan(&next, world.now)).collect();
    assert_eq!(ids.iter().filter(|id| world.core.planned(**id).is_some()).count(), 8);
}

#[test]
fn a_plan_sees_places_that_only_the_next_policy_names() {
    let mut world = World::new(76, "");
    world.server("wiki-1", Some("wiki"), &["wiki"]);
    world.laptop("alice-laptop", &super::world::person("alice", &["staff"]));
    let plan = world.core.plan(&policy(POLICY), world.now);
    assert!(plan.lines.iter().any(|line| line.via == "group:staff" && line.people == 1), "{plan:?}");
}
