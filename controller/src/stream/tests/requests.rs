//! Claims about access for a time, on request.

use std::time::Duration;

use postern_common::protocol::{AccessRequestState, FromNode};

use super::world::{ISSUER, World, person};
use crate::{
    records::{AuditEvent, Person, Quarantined, Restrained, RevokeTarget},
    stream::{CoreError, Decider, Decision, RequestView, SignalResponse, SubjectUpdate},
};

const POLICY: &str = r#"
[resource.db]
node = "db"
ports = ["tcp/5432"]

[resource.cache]
node = "db"
ports = ["tcp/6379"]

[[access]]
name = "on call reaches the database"
from = ["group:sre"]
to = ["db", "cache"]
lease = "30s"
request = { approvers = ["group:leads"], longest = "1h" }
"#;

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

struct Place {
    world: World,
    db: usize,
    ann: usize,
    lead: Person,
}

fn place(seed: u64) -> Place {
    let mut world = World::new(seed, POLICY);
    let db = world.server("db", Some("db"), &[]);
    let ann = world.laptop("ann-laptop", &person("ann", &["sre", "leads"]));
    world.run(seconds(1));
    Place { world, db, ann, lead: person("lea", &["leads"]) }
}

impl Place {
    fn ask(&mut self, length: Duration) -> Result<RequestView, String> {
        let before = self.world.core.list_requests().len();
        let length_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let (id, reason, resource) = (1, "incident 17".to_owned(), "db".to_owned());
        let message = FromNode::RequestAccess { id, resource, length_ms, reason };
        self.world.send(self.ann, message);
        self.world.run(seconds(1));
        let listed = self.world.core.list_requests();
        if listed.len() == before {
            return Err(self.world.nodes[self.ann].refused_request.clone().unwrap_or_default());
        }
        Ok(listed[0].clone())
    }

    fn decide(&mut self, request: &RequestView, decision: Decision, who: &Person) -> Result<(), CoreError> {
        let by = Decider::Person(who);
        let decided = self.world.core.decide_request(request.record.id, decision, by, "on call", self.world.now);
        self.world.pump();
        self.world.run(seconds(1));
        decided.map(drop)
    }

    fn open(&self) -> bool {
        self.world.passes(self.ann, self.db, "tcp/5432")
    }
}

#[test]
fn what_is_approved_opens_for_its_time_alone_and_nothing_beside_it() {
    let mut place = place(90);
    assert!(!place.open(), "a rule on request gives nothing by itself");
    let why = place.world.core.explain("ann@corp.example", "db", None, place.world.now).expect("explained");
    assert!(!why.allowed && why.fix.as_ref().is_some_and(|fix| fix.starts_with("postern request db")), "{why:?}");
    let request = place.ask(seconds(600)).expect("taken");
    assert!(!place.open(), "asking opens nothing");
    let lead = place.lead.clone();
    assert_eq!(place.world.core.requests_for(&lead, place.world.now).len(), 1);
    place.decide(&request, Decision::Approve, &lead).expect("approved");
    assert!(place.open());
    assert!(!place.world.passes(place.ann, place.db, "tcp/6379"), "the rule's other resource was not asked for");
    place.world.run(seconds(590));
    assert!(place.open(), "leases of thirty seconds are renewed until then");
    place.world.run(seconds(15));
    assert!(!place.open() && !place.world.lets_in(place.ann, place.db, "tcp/5432"), "and then it ends");
    let why = place.world.core.explain("ann@corp.example", "db", None, place.world.now).expect("explained");
    assert!(why.reason.contains("after an approval; the last one ended at 2026-11-2"), "{why:?}");
    assert!(why.fix.is_some_and(|fix| fix.starts_with("postern request db")));
    let decided = |event: &&AuditEvent| matches!(event, AuditEvent::AccessDecided { by, reason, until: Some(_), .. } if by == "lea@corp.example" && reason == "on call");
    assert_eq!(place.world.audit.iter().filter(decided).count(), 1);
}

#[test]
fn an_approval_ends_on_the_nodes_without_the_controller() {
    let mut place = place(91);
    let request = place.ask(seconds(60)).expect("taken");
    let lead = place.lead.clone();
    place.decide(&request, Decision::Approve, &lead).expect("approved");
    place.world.run(seconds(45));
    let until = place.world.nodes[place.db].inbound_until(place.world.nodes[place.ann].id()).expect("let in");
    let end = place.world.nodes[place.db].local(place.world.now).monotonic.saturating_add(seconds(15));
    assert!(until <= end, "the grant's own deadline is the approval's end, whatever the lease would give");
}

#[test]
fn an_approval_can_be_withdrawn_by_itself() {
    let mut place = place(95);
    let request = place.ask(seconds(600)).expect("taken");
    let lead = place.lead.clone();
    let early = place.decide(&request, Decision::Withdraw, &lead);
    assert!(matches!(early, Err(CoreError::NotPermitted(_))), "it was not given: {early:?}");
    place.decide(&request, Decision::Approve, &lead).expect("approved");
    assert!(place.open());
    let own = person("ann", &["sre", "leads"]);
    assert!(place.decide(&request, Decision::Withdraw, &own).is_err(), "it is hers");
    assert!(
        place.decide(&request, Decision::Refuse, &lead).is_err(),
        "somebody who is late takes nothing away by mistake"
    );
    assert!(place.open());
    assert_eq!(place.world.core.requests_for(&lead, place.world.now).len(), 1, "the page offers it");
    place.decide(&request, Decision::Withdraw, &lead).expect("withdrawn");
    assert!(!place.open() && !place.world.lets_in(place.ann, place.db, "tcp/5432"), "closed within a second");
    let told = &place.world.core.list_requests()[0].record.state;
    assert!(matches!(told, AccessRequestState::Refused { reason, .. } if reason == "withdrawn: on call"), "{told:?}");
    assert!(place.world.core.requests_for(&lead, place.world.now).is_empty());
    place.world.run(seconds(60));
    assert!(!place.open(), "and no renewal brings it back");
}

#[test]
fn nobody_decides_about_their_own_request_nor_without_being_named() {
    let mut place = place(92);
    let request = place.ask(seconds(600)).expect("taken");
    for (who, why) in [
        (person("ann", &["sre", "leads"]), "her own, although she leads"),
        (person("bob", &["sre"]), "not an approver"),
        (Person { groups: None, ..person("cid", &[]) }, "unknown groups approve nothing"),
    ] {
        let decided = place.decide(&request, Decision::Approve, &who);
        assert!(matches!(decided, Err(CoreError::NotFound { .. })), "{why}: {decided:?}");
        assert!(place.world.core.requests_for(&who, place.world.now).is_empty(), "{why}");
    }
    let lead = place.lead.clone();
    place.world.laptop("lea-laptop", &lead);
    let leas = place.world.core.find_subject("lea@corp.example").expect("lea");
    let held = Quarantined::Subject(leas);
    place.world.core.quarantine(held.clone(), "odd", "root", place.world.now).expect("held");
    assert!(place.decide(&request, Decision::Approve, &lead).is_err(), "who is in quarantine decides nothing");
    place.world.core.release(&held, "root", place.world.now).expect("released");
    assert!(!place.open());
    place.decide(&request, Decision::Refuse, &lead).expect("refused");
    let again = place.decide(&request, Decision::Approve, &lead);
    assert!(matches!(again, Err(CoreError::NotPermitted(_))), "once: {again:?}");
    assert!(!place.open());
}

#[test]
fn an_approval_holds_for_that_machine_while_the_rule_gives_it_and_no_longer_than_it_says_today() {
    let mut place = place(93);
    let request = place.ask(seconds(3_600)).expect("taken");
    let lead = place.lead.clone();
    place.decide(&request, Decision::Approve, &lead).expect("approved");
    let other = place.world.laptop("ann-other", &person("ann", &["sre"]));
    place.world.run(seconds(1));
    assert!(!place.world.lets_in(other, place.db, "tcp/5432"), "on no other machine of hers");
    place.world.restart();
    for node in 0..place.world.nodes.len() {
        place.world.connect(node);
    }
    place.world.run(seconds(2));
    assert!(place.open(), "it outlives a restart");
    place.world.apply_policy(&POLICY.replace("longest = \"1h\"", "longest = \"2m\""));
    place.world.run(seconds(60));
    assert!(place.open());
    place.world.run(seconds(70));
    assert!(!place.open(), "the policy of today says two minutes");
    place.world.apply_policy(&POLICY.replace("group:sre\"", "group:nobody\""));
    place.world.run(seconds(1));
    assert!(!place.open());
}

#[test]
fn what_cannot_be_given_is_not_taken_and_what_nobody_decides_is_forgotten() {
    let mut place = place(94);
    assert!(place.ask(seconds(7_200)).is_err(), "longer than the rule's longest");
    assert!(place.ask(seconds(1)).is_err(), "shorter than a minute");
    place.ask(seconds(600)).expect("taken");
    assert!(place.ask(seconds(600)).is_err(), "one at a time");
    let bob = place.world.laptop("bob-laptop", &person("bob", &["staff"]));
    let (id, reason, resource) = (1, "please".to_owned(), "db".to_owned());
    place.world.send(bob, FromNode::RequestAccess { id, resource, length_ms: 600_000, reason });
    place.world.run(seconds(1));
    assert_eq!(place.world.core.list_requests().len(), 1, "who is not named may not ask");
    let told = place.world.nodes[place.ann].requests.clone();
    assert!(matches!(told[0].state, AccessRequestState::Waiting { .. }), "{told:?}");
    place.world.now = postern_common::time::Now {
        monotonic: place.world.now.monotonic.saturating_add(seconds(31)),
        wall: place.world.now.wall.saturating_add(seconds(25 * 3_600)),
    };
    place.world.core.handle_timeout(place.world.now);
    assert!(place.world.core.list_requests().is_empty());
}

#[test]
fn who_is_challenged_or_restricted_decides_for_nobody() {
    let mut place = place(99);
    let lead = place.lead.clone();
    place.world.laptop("lea-laptop", &lead);
    place.world.run(seconds(1));
    let request = place.ask(seconds(600)).expect("taken");
    let id = place.world.core.find_subject("lea@corp.example").expect("lea");
    let respond = |place: &mut Place, response| {
        place.world.core.respond(Restrained::Subject(id), response, "odd", "a test", place.world.now).expect("known");
        place.world.pump();
        place.world.run(seconds(1));
    };
    respond(&mut place, SignalResponse::Terminate);
    assert!(place.world.core.requests_for(&lead, place.world.now).is_empty());
    assert!(place.decide(&request, Decision::Approve, &lead).is_err(), "the browser's sign-in is from before");
    let proven = Person { auth_time: Some(place.world.now.wall), ..lead };
    assert_eq!(place.world.core.requests_for(&proven, place.world.now).len(), 1);
    respond(&mut place, SignalResponse::Restrict(["db".parse().expect("a name")].into()));
    let proven = Person { auth_time: Some(place.world.now.wall), ..proven };
    assert!(place.decide(&request, Decision::Approve, &proven).is_err(), "what is left is for oneself");
    assert!(!place.open());
}

#[test]
fn an_approver_who_never_joined_a_machine_can_be_stopped_by_name() {
    let stops: [fn(&mut World, crate::records::Quarantined); 3] = [
        |world, target| world.core.quarantine(target, "odd", "root", world.now).map(drop).expect("held"),
        |world, target| {
            let Quarantined::Subject(id) = target else { panic!("a subject") };
            let restrict = SignalResponse::Restrict([].into());
            world.core.respond(Restrained::Subject(id), restrict, "odd", "root", world.now).expect("known");
        },
        |world, target| {
            let Quarantined::Subject(id) = target else { panic!("a subject") };
            world.core.revoke(RevokeTarget::Subject(id), "left", "root", world.now).map(drop).expect("revoked");
        },
    ];
    for (seed, stop) in stops.into_iter().enumerate() {
        let mut place = place(190 + seed as u64);
        let lead = place.lead.clone();
        assert_eq!(place.world.core.admit_person(&lead, place.world.now), None, "signs in on the pages");
        place.world.pump();
        let request = place.ask(seconds(600)).expect("taken");
        place.world.restart();
        place.world.connect(place.ann);
        let id = place.world.core.find_subject("lea@corp.example").expect("known by that alone");
        stop(&mut place.world, Quarantined::Subject(id));
        place.world.pump();
        assert!(place.decide(&request, Decision::Approve, &lead).is_err(), "{seed}");
        assert!(place.world.core.requests_for(&lead, place.world.now).is_empty(), "{seed}");
    }
}

#[test]
fn who_is_disabled_gets_nothing_back_of_what_was_given_beside_the_rules() {
    let mut place = place(193);
    let request = place.ask(seconds(3_600)).expect("taken");
    let lead = place.lead.clone();
    place.decide(&request, Decision::Approve, &lead).expect("approved");
    let (machine, cache) = (place.world.nodes[place.ann].id(), "cache".parse().expect("a name"));
    let now = place.world.now;
    place.world.core.break_glass(machine, &cache, seconds(3_600), "incident", "at night", "root", now).expect("open");
    place.world.pump();
    place.world.run(seconds(1));
    assert!(place.open() && place.world.passes(place.ann, place.db, "tcp/6379"));
    let disable = |reason: Option<&str>| SubjectUpdate { groups: None, disabled: Some(reason.map(str::to_owned)) };
    place.world.core.update_subject(ISSUER, "sub-ann", disable(Some("left")), "root", place.world.now);
    place.world.pump();
    assert!(place.world.store.loaded.requests.is_empty() && place.world.store.loaded.break_glass.is_empty());
    place.world.core.update_subject(ISSUER, "sub-ann", disable(None), "root", place.world.now);
    place.world.join(place.ann, &person("ann", &["sre", "leads"]));
    place.world.run(seconds(1));
    assert!(!place.open() && !place.world.passes(place.ann, place.db, "tcp/6379"), "enabled again, she begins without");
}

#[test]
fn a_reason_has_nothing_in_it_that_cannot_be_seen() {
    let mut place = place(194);
    let request = place.ask(seconds(600)).expect("taken");
    let lead = place.lead.clone();
    for reason in ["on\u{202e}llac", "fine\u{200b}", "a\u{2066}b", "line\nline", "\u{feff}x"] {
        let by = Decider::Person(&lead);
        let (id, now) = (request.record.id, place.world.now);
        let decided = place.world.core.decide_request(id, Decision::Approve, by, reason, now);
        assert!(matches!(decided, Err(CoreError::NotPermitted(_))), "{reason:?}");
    }
    let by = Decider::Person(&lead);
    let (id, now) = (request.record.id, place.world.now);
    place.world.core.decide_request(id, Decision::Approve, by, "Störung in Zürich – 緊急", now).expect("approved");
}
