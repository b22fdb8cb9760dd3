//! Claims about explanations: each names what stands in the way now, and what the one who reads it can do.

use std::time::Duration;

use postern_common::{
    id::SubjectId,
    protocol::{Explanation, FromNode},
};

use super::world::{World, person};
use crate::{
    records::{Person, Quarantined, Restrained, RevokeTarget},
    stream::{CoreError, SubjectUpdate},
    web::doors::GroupsKnown,
};

const POLICY: &str = r#"
[resource.payroll-app]
node = "payroll"
ports = ["tcp/443"]
owner = "finance-it"

[resource.wiki]
nodes = ["tag:wiki"]
ports = ["tcp/80"]

[resource.db]
node = "db"
ports = ["tcp/5432"]

[[access]]
name = "payroll managers use payroll"
from = ["group:payroll"]
to = ["payroll-app"]
when = { phishing_resistant = true }

[[access]]
name = "staff read the wiki"
from = ["group:staff"]
to = ["wiki", "payroll-app"]
when = { hours = "Sat-Sun 00:00-24:00 UTC" }

[[access]]
name = "payroll reads its database"
from = ["service:payroll"]
to = ["db"]
"#;

const ALICE: &str = "alice@corp.example";

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

struct Town {
    world: World,
    alice: usize,
    payroll: usize,
}

fn town(seed: u64) -> Town {
    let mut world = World::new(seed, POLICY);
    let payroll = world.server("payroll", Some("payroll"), &[]);
    let alice = world.laptop("alice-laptop", &person("alice", &["payroll"]));
    world.run(seconds(1));
    Town { world, alice, payroll }
}

impl Town {
    fn settle(&mut self) {
        self.world.pump();
        self.world.run(seconds(1));
    }

    /// What an operator is told of her and the payroll, and what her own machine is told.
    fn asked(&mut self) -> (Explanation, Explanation) {
        let operator = self.world.core.explain(ALICE, "payroll-app", None, self.world.now).expect("explained");
        self.world.send(self.alice, FromNode::Explain { id: 7, to: "payroll-app".into(), service: None });
        self.settle();
        (operator, self.world.nodes[self.alice].explained.pop().expect("an answer"))
    }

    fn subject(&self) -> SubjectId {
        self.world.core.find_subject(ALICE).expect("alice")
    }
}

fn fix(explanation: &Explanation) -> &str {
    explanation.fix.as_deref().unwrap_or("nothing")
}

#[test]
fn what_closes_everything_is_mended_first_and_each_reader_is_told_what_they_can_do() {
    let mut town = town(120);
    let (operator, own) = town.asked();
    assert_eq!((fix(&operator), fix(&own)), ("postern step-up payroll-app", "postern step-up payroll-app"));
    let device = town.world.nodes[town.alice].id();
    let subject = town.subject();

    let held = Quarantined::Device(device);
    town.world.core.quarantine(held.clone(), "it scans", "root", town.world.now).expect("held");
    town.settle();
    let (operator, own) = town.asked();
    assert!(operator.reason.starts_with("alice-laptop is in quarantine since"), "{operator:?}");
    assert_eq!(fix(&operator), "postern-controller quarantine release device alice-laptop");
    assert!(operator.because[0].contains("asks for a sign-in that cannot be phished"), "{operator:?}");
    assert_eq!(operator.because[1], "after that: postern step-up payroll-app");
    assert_eq!(fix(&own), "ask your administrator");
    town.world.core.release(&held, "root", town.world.now).expect("released");
    town.settle();

    town.world.core.revoke(RevokeTarget::Subject(subject), "left", "root", town.world.now).expect("revoked");
    town.settle();
    let (operator, own) = town.asked();
    assert!(operator.reason.contains("may not take part"), "{operator:?}");
    assert_eq!(
        (fix(&operator), fix(&own)),
        ("postern-controller user enable alice@corp.example", "ask your administrator")
    );
    town.world.core.lift(RevokeTarget::Subject(subject), "root", town.world.now).expect("lifted");
    town.settle();
    let (operator, own) = town.asked();
    assert_eq!((fix(&operator), fix(&own)), ("postern up", "postern up"), "her session was ended with it");

    town.world.core.revoke(RevokeTarget::Device(device), "stolen", "root", town.world.now).expect("revoked");
    town.settle();
    let operator = town.world.core.explain(ALICE, "payroll-app", None, town.world.now).expect("explained");
    assert_eq!(operator.reason, "alice-laptop is revoked: stolen");
    assert_eq!(fix(&operator), "postern-controller lift device alice-laptop");
}

#[test]
fn a_resource_in_quarantine_is_released_by_an_operator_and_its_owner_is_asked_by_a_person() {
    let mut town = town(121);
    let open = POLICY.replace("when = { phishing_resistant = true }\n", "");
    town.world.apply_policy(&open);
    let held = Quarantined::Resource("payroll-app".parse().expect("a name"));
    town.world.core.quarantine(held, "incident 17", "root", town.world.now).expect("held");
    town.settle();
    let (operator, own) = town.asked();
    assert_eq!(fix(&operator), "postern-controller quarantine release resource payroll-app");
    assert_eq!(fix(&own), "ask finance-it, the owner of payroll-app");
}

#[test]
fn a_service_that_is_disabled_is_let_in_again_by_its_own_command() {
    let mut town = town(122);
    let service = town.world.core.find_subject("service:payroll").expect("known");
    town.world.core.revoke(RevokeTarget::Subject(service), "leaked", "root", town.world.now).expect("revoked");
    town.settle();
    let why = town.world.core.explain("payroll", "db", None, town.world.now).expect("explained");
    assert_eq!(fix(&why), "postern-controller lift subject service:payroll");
    assert!(!town.world.lets_in(town.alice, town.payroll, "tcp/443"));
}

#[test]
fn a_place_that_no_machine_has_taken_says_how_one_comes_there() {
    let mut town = town(123);
    let mut ask = |who: &str, to: &str| town.world.core.explain(who, to, None, town.world.now).expect("explained");
    let tag = ask(ALICE, "wiki");
    assert_eq!(tag.reason, "no approved machine is tag:wiki yet");
    assert!(fix(&tag).starts_with("`postern-controller token create --tag wiki`"), "{tag:?}");
    let name = ask("service:payroll", "db");
    assert_eq!(fix(&name), "postern-controller token create --machine db");
}

#[test]
fn an_operator_sees_the_groups_by_which_somebody_was_judged_and_who_said_them() {
    let mut town = town(124);
    let (operator, own) = town.asked();
    let line = "groups of this person: payroll   (from the sign-in)";
    assert!(operator.because.iter().any(|because| because == line), "{operator:?}");
    assert!(!own.because.iter().any(|because| because.contains("groups of")), "{own:?}");
    let listed = town.world.core.list_subjects();
    let alice = listed.iter().find(|view| view.record.name == ALICE).expect("listed");
    assert_eq!(alice.groups, Some(["payroll".to_owned()].into()));
}

#[test]
fn whose_groups_did_not_come_is_told_so_on_the_page_and_nothing_of_what_there_is() {
    let mut town = town(125);
    let nobody_knows = Person { groups: None, ..person("cid", &[]) };
    let portal = town.world.core.portal(&nobody_knows, town.world.now);
    assert_eq!((portal.groups, portal.resources.len()), (GroupsKnown::Missing, 0));
    let known = town.world.core.portal(&person("dora", &[]), town.world.now);
    assert_eq!((known.groups, known.resources.len()), (GroupsKnown::Enough, 0));
    town.world.apply_policy(&POLICY.replace("group:payroll", "user:*").replace("group:staff", "user:*"));
    let portal = town.world.core.portal(&nobody_knows, town.world.now);
    assert_eq!(portal.groups, GroupsKnown::Enough, "no rule asks for groups");
}

#[test]
fn a_name_that_means_two_people_lists_both_and_what_is_not_held_is_said_so() {
    let mut town = town(126);
    let subject = town.subject();
    let other = Person { issuer: "https://other.example".into(), ..person("alice", &[]) };
    town.world.laptop("other-laptop", &other);
    town.world.run(seconds(1));
    let error = town.world.core.find_subject(ALICE).expect_err("two of them").to_string();
    assert!(error.contains(&subject.to_string()) && error.contains("sub-alice of https://other.example"), "{error}");

    let now = town.world.now;
    let not_held = |done: Result<(), CoreError>| match done {
        Err(error @ CoreError::NotHeld { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let core = &mut town.world.core;
    assert_eq!(not_held(core.lift(RevokeTarget::Subject(subject), "root", now)), "alice@corp.example is not revoked");
    let restrained = core.release_restraints(Restrained::Subject(subject), "root", now);
    assert_eq!(not_held(restrained), "alice@corp.example is not restrained");
    let held = core.release(&Quarantined::Subject(subject), "root", now);
    assert_eq!(not_held(held), "alice@corp.example is not in quarantine");
    let missing = core.find_device("no-such").expect_err("missing").to_string();
    assert!(missing.contains("`postern-controller device list`"), "{missing}");
}

#[test]
fn somebody_whom_an_account_keeps_out_is_enabled_and_one_whose_account_is_gone_is_not() {
    let mut town = town(127);
    let who = person("alice", &[]);
    let change = SubjectUpdate { groups: None, disabled: Some(Some("on leave".into())) };
    town.world.core.update_subject(&who.issuer, &who.sub, change, "root", town.world.now);
    town.settle();
    assert_eq!(fix(&town.asked().0), "postern-controller user enable alice@corp.example");
    town.world.core.person_removed(&who.issuer, &who.sub, "root", town.world.now);
    town.settle();
    let why = town.world.core.explain("alice-laptop", "payroll-app", None, town.world.now).expect("explained");
    assert_eq!(why.fix, None, "{why:?}");
}
