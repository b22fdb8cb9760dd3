//! Claims about restraints: what a challenge asks, what restricts, what ends, and what each of them outlives.

use std::{net::IpAddr, time::Duration};

use postern_common::{
    id::ResourceName,
    policy::Reach,
    protocol::{FromNode, ToNode},
    time::WallTime,
};

use super::{
    node::Want,
    world::{World, person},
};
use crate::{
    identity::{random::Token, user_code::UserCode},
    records::{AuditEvent, Person, Restrained, RestraintRecord},
    stream::{CoreError, SignalResponse},
};

const POLICY: &str = r#"
[resource.git]
node = "git"
ports = ["tcp/22"]

[resource.wiki]
node = "git"
ports = ["tcp/80"]

[[access]]
name = "engineers use git"
from = ["group:engineers", "service:build"]
to = ["git"]

[[access]]
name = "everybody reads the wiki"
from = ["user:*", "service:build"]
to = ["wiki"]
"#;

const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

struct Town {
    world: World,
    git: usize,
    laptop: usize,
    phone: usize,
    bobs: usize,
}

fn town(seed: u64) -> Town {
    let mut world = World::new(seed, POLICY);
    let git = world.server("git", Some("git"), &[]);
    let laptop = world.laptop("alice-laptop", &person("alice", &["engineers"]));
    let phone = world.laptop("alice-phone", &person("alice", &["engineers"]));
    let bobs = world.laptop("bob-laptop", &person("bob", &["engineers"]));
    world.run(seconds(1));
    Town { world, git, laptop, phone, bobs }
}

fn engineers_access() -> Reach {
    Reach::Access { rule: "engineers use git".parse().expect("a name"), resource: "git".parse().expect("a name") }
}

fn wiki() -> ResourceName {
    "wiki".parse().expect("a name")
}

impl Town {
    fn alice(&self) -> Restrained {
        Restrained::Subject(self.world.core.find_subject("alice@corp.example").expect("alice"))
    }

    fn respond(&mut self, whom: Restrained, response: SignalResponse) {
        self.world.core.respond(whom, response, "it behaves oddly", "a test", self.world.now).expect("known");
        self.world.pump();
        self.world.run(seconds(1));
    }

    fn release(&mut self, whom: Restrained) -> Result<(), CoreError> {
        let done = self.world.core.release_restraints(whom, "root", self.world.now);
        self.world.pump();
        self.world.run(seconds(1));
        done
    }

    fn passes(&self, node: usize, service: &str) -> bool {
        let (passes, lets_in) =
            (self.world.passes(node, self.git, service), self.world.lets_in(node, self.git, service));
        assert_eq!(passes, lets_in, "both ends agree");
        passes
    }

    /// Alice, who has just proven who she is.
    fn proven(&self) -> Person {
        Person { auth_time: Some(self.world.now.wall), ..person("alice", &["engineers"]) }
    }

    fn step_up(&mut self, node: usize, resource: &str, who: &Person) -> Result<(), CoreError> {
        self.world.send(node, FromNode::StepUp { resource: resource.parse().expect("a name") });
        self.world.run(seconds(1));
        let token = match self.world.nodes[node].step_ups.pop() {
            Some(ToNode::StepUpPending { url, .. }) => {
                Token::presented(url.rsplit('/').next().expect("a path")).expect("a secret")
            }
            other => panic!("no page: {other:?}"),
        };
        let done = self.world.core.confirm_step_up(&token, who, FROM, self.world.now).map(drop);
        self.world.pump();
        self.world.run(seconds(1));
        done
    }

    fn explain(&mut self, who: &str, to: &str) -> (bool, String, Option<String>) {
        let told = self.world.core.explain(who, to, None, self.world.now).expect("known");
        (told.allowed, told.reason, told.fix)
    }
}

#[test]
fn a_challenge_closes_what_it_reaches_until_a_later_sign_in_on_each_machine() {
    let mut town = town(80);
    let (laptop, phone, bobs) = (town.laptop, town.phone, town.bobs);
    assert!(town.passes(laptop, "tcp/22"));
    let alice = town.alice();
    let decisions = town.world.core.status().counters.decisions;
    town.world
        .core
        .respond(alice, SignalResponse::Challenge(engineers_access()), "it behaves oddly", "a test", town.world.now)
        .expect("known");
    assert_eq!(
        town.world.core.status().counters.decisions,
        decisions + 2,
        "her two machines are decided, and no other"
    );
    town.world.pump();
    town.world.run(seconds(1));
    assert!(!town.passes(laptop, "tcp/22") && !town.passes(phone, "tcp/22"));
    assert!(town.passes(laptop, "tcp/80") && town.passes(bobs, "tcp/22"), "nothing else, and nobody else");
    let own = town.world.nodes[laptop].own.as_ref().expect("told of itself");
    let offers: Vec<String> = own.step_up.iter().map(|offer| format!("{}: {}", offer.resource, offer.demand)).collect();
    assert_eq!(offers, ["git: a fresh sign-in (it behaves oddly)"]);
    let (allowed, reason, fix) = town.explain("alice@corp.example/alice-laptop", "git");
    assert!(!allowed);
    assert_eq!(reason, "it behaves oddly; rule \"engineers use git\" asks for a fresh sign-in");
    assert_eq!(fix.as_deref(), Some("postern step-up git"));

    let stale = person("alice", &["engineers"]);
    assert!(town.step_up(laptop, "git", &stale).is_err(), "a sign-in from before the challenge is no answer");
    assert!(!town.passes(laptop, "tcp/22"));
    let proven = town.proven();
    town.step_up(laptop, "git", &proven).expect("proven anew");
    assert!(town.passes(laptop, "tcp/22"));
    assert!(!town.passes(phone, "tcp/22"), "the phone's session was proven before");
    let shown = town.world.core.list_restraints();
    let names: Vec<&str> = shown[0].machines.iter().map(|name| name.as_str()).collect();
    assert_eq!(names, ["alice-phone"]);
}

#[test]
fn signing_out_and_in_by_an_old_sign_in_is_no_answer_to_a_challenge() {
    let mut town = town(81);
    let (laptop, alice) = (town.laptop, town.alice());
    town.respond(alice, SignalResponse::Challenge(Reach::Everything));
    assert!(!town.passes(laptop, "tcp/22") && !town.passes(laptop, "tcp/80"));
    town.world.join(laptop, &person("alice", &["engineers"]));
    town.world.run(seconds(1));
    assert!(!town.passes(laptop, "tcp/22"), "the browser's sign-in is the one from before");
    let silent = Person { auth_time: None, ..person("alice", &["engineers"]) };
    town.world.join(laptop, &silent);
    town.world.run(seconds(1));
    assert!(!town.passes(laptop, "tcp/22"), "nor is one of which nobody says when it was");
    let proven = town.proven();
    town.world.join(laptop, &proven);
    town.world.run(seconds(1));
    assert!(town.passes(laptop, "tcp/22") && town.passes(laptop, "tcp/80"));
}

#[test]
fn a_restraint_outlives_restarts_renewals_and_policies_until_it_is_released() {
    let mut town = town(82);
    let (laptop, bobs, alice) = (town.laptop, town.bobs, town.alice());
    town.respond(alice, SignalResponse::Restrict([wiki()].into()));
    let restricted = |town: &Town, when: &str| {
        assert!(!town.passes(town.laptop, "tcp/22") && town.passes(town.laptop, "tcp/80"), "{when}");
        assert!(town.passes(town.bobs, "tcp/22"), "{when}");
    };
    restricted(&town, "at once");
    let (allowed, reason, fix) = town.explain("alice@corp.example/alice-laptop", "git");
    assert!(!allowed, "{reason}");
    assert_eq!(fix.as_deref(), Some("postern-controller restraint release subject alice@corp.example"));
    assert!(
        reason.starts_with("it behaves oddly") && reason.contains("until an administrator releases it"),
        "{reason}"
    );
    town.world.run(seconds(700));
    restricted(&town, "after renewals");
    town.world.apply_policy(POLICY);
    town.world.run(seconds(1));
    restricted(&town, "after another policy");
    town.world.restart();
    for node in 0..town.world.nodes.len() {
        town.world.connect(node);
    }
    town.world.run(seconds(2));
    restricted(&town, "after a restart");
    let proven = town.proven();
    town.world.join(laptop, &proven);
    town.world.run(seconds(1));
    restricted(&town, "after a fresh sign-in: who signs in proves who they are, and that is not the question");
    town.release(alice).expect("released");
    assert!(town.passes(laptop, "tcp/22") && town.passes(bobs, "tcp/22"));
    assert!(matches!(town.release(alice), Err(CoreError::NotHeld { .. })));
    let audited = |wanted: fn(&AuditEvent) -> bool| town.world.audit.iter().filter(|event| wanted(event)).count();
    assert_eq!(audited(|event| matches!(event, AuditEvent::Restrained { .. })), 1);
    assert_eq!(audited(|event| matches!(event, AuditEvent::RestraintsReleased { .. })), 1);
}

#[test]
fn a_termination_ends_the_sessions_and_takes_no_sign_in_from_before() {
    let mut town = town(83);
    let (laptop, bobs, alice) = (town.laptop, town.bobs, town.alice());
    town.respond(alice, SignalResponse::Terminate);
    assert!(town.world.core.find_session("alice@corp.example/alice-laptop").is_err());
    assert!(!town.passes(laptop, "tcp/80") && town.passes(bobs, "tcp/80"));
    town.world.join(laptop, &person("alice", &["engineers"]));
    town.world.run(seconds(1));
    assert!(!town.passes(laptop, "tcp/80"), "an old sign-in opens nothing");
    let proven = town.proven();
    town.world.join(laptop, &proven);
    town.world.run(seconds(1));
    assert!(town.passes(laptop, "tcp/80"));
}

#[test]
fn a_service_that_is_challenged_is_closed_until_it_is_released() {
    let mut town = town(84);
    let build = town.world.server("build-1", Some("build"), &[]);
    town.world.run(seconds(1));
    assert!(town.passes(build, "tcp/22"));
    let service = Restrained::Subject(town.world.core.find_subject("service:build").expect("the service"));
    town.respond(service, SignalResponse::Terminate);
    assert!(!town.passes(build, "tcp/22") && !town.passes(build, "tcp/80"));
    assert!(town.world.nodes[build].own.as_ref().expect("told of itself").step_up.is_empty(), "nobody could step up");
    let (_, reason, fix) = town.explain("service:build", "git");
    assert!(reason.contains("until an administrator releases it"), "{reason}");
    assert_eq!(fix.as_deref(), Some("postern-controller restraint release subject service:build"));
    town.world.run(seconds(700));
    assert!(!town.passes(build, "tcp/22"));
    town.release(service).expect("released");
    assert!(town.passes(build, "tcp/22"));
}

#[test]
fn too_many_restraints_of_one_subject_become_fewer_that_take_more() {
    let mut town = town(85);
    let (laptop, alice) = (town.laptop, town.alice());
    town.respond(alice, SignalResponse::Restrict(["wiki".parse().expect("a name")].into()));
    for number in 0..70 {
        let rule = format!("rule {number}").parse().expect("a name");
        let reach = Reach::Access { rule, resource: "git".parse().expect("a name") };
        town.respond(alice, SignalResponse::Challenge(reach));
    }
    assert!(!town.passes(laptop, "tcp/80"), "what does not fit is not lost");
    assert!(town.world.store.loaded.restraints.len() <= 65);
    for number in 0..70 {
        let set = ["wiki".parse().expect("a name"), format!("r{number}").parse().expect("a name")].into();
        town.respond(alice, SignalResponse::Restrict(set));
    }
    assert!(town.world.store.loaded.restraints.len() <= 65);
    let proven = town.proven();
    town.world.join(laptop, &proven);
    town.world.run(seconds(1));
    assert!(town.passes(laptop, "tcp/80"), "the challenges are met");
    assert!(!town.passes(laptop, "tcp/22"), "a restriction is nothing that a sign-in meets");
}

#[test]
fn another_machine_is_no_way_out_of_what_was_asked_on_one() {
    let mut town = town(86);
    let (laptop, phone) = (town.laptop, town.phone);
    let device = town.world.nodes[laptop].id();
    town.respond(Restrained::Device(device), SignalResponse::Challenge(Reach::Everything));
    assert!(!town.passes(laptop, "tcp/22") && town.passes(phone, "tcp/22"));
    let old = person("alice", &["engineers"]);
    let new = town.world.laptop("alice-new", &old);
    town.world.run(seconds(1));
    assert!(!town.passes(new, "tcp/22"), "joined after that, by a sign-in from before");
    town.world.core.remove_own_device(device, &old, town.world.now).expect("removed");
    town.world.pump();
    let newer = town.world.laptop("alice-newer", &old);
    town.world.run(seconds(1));
    assert!(!town.passes(new, "tcp/22") && !town.passes(newer, "tcp/22"), "nor is removing it a way");
    let proven = town.proven();
    town.world.join(newer, &proven);
    town.world.run(seconds(1));
    assert!(town.passes(newer, "tcp/22"));
}

#[test]
fn a_machine_that_is_kept_to_a_few_resources_is_not_removed_and_shares_that_with_later_ones() {
    let mut town = town(87);
    let (laptop, phone) = (town.laptop, town.phone);
    let device = town.world.nodes[laptop].id();
    town.respond(Restrained::Device(device), SignalResponse::Restrict(["wiki".parse().expect("a name")].into()));
    let alice = town.proven();
    let refused = town.world.core.remove_own_device(device, &alice, town.world.now);
    assert!(matches!(&refused, Err(CoreError::NotPermitted(why)) if why.contains("release")), "{refused:?}");
    let new = town.world.laptop("alice-new", &alice);
    town.world.run(seconds(1));
    assert!(!town.passes(new, "tcp/22") && town.passes(new, "tcp/80") && town.passes(phone, "tcp/22"));
    town.release(Restrained::Device(device)).expect("released");
    assert!(town.passes(new, "tcp/22") && town.passes(laptop, "tcp/22"));
}

#[test]
fn budgets_grow_though_the_clock_is_set_back() {
    let mut town = town(88);
    let alice = town.alice();
    let Restrained::Subject(subject) = alice else { panic!("a subject") };
    let greatest = |town: &Town| {
        let held =
            town.world.store.loaded.restraints.iter().filter(|record| record.whom == Restrained::Subject(subject));
        held.map(RestraintRecord::last_budget).max()
    };
    town.respond(alice, SignalResponse::Challenge(engineers_access()));
    let before = greatest(&town);
    assert!(before.is_some());
    town.world.now.wall = WallTime::from_millis(town.world.now.wall.as_millis() - 3_600_000);
    town.release(alice).expect("released");
    assert!(greatest(&town) > before, "a node opens by this alone what it has shut");
}

#[test]
fn asking_again_frees_no_machine_that_shared_what_was_asked_first() {
    for response in [SignalResponse::Challenge(Reach::Everything), SignalResponse::Restrict([wiki()].into())] {
        let mut town = town(89);
        let device = Restrained::Device(town.world.nodes[town.laptop].id());
        town.respond(device, response.clone());
        let new = town.world.laptop("alice-new", &person("alice", &["engineers"]));
        town.world.run(seconds(10));
        assert!(!town.passes(new, "tcp/22"), "{response:?}: it shares what her laptop is restrained by");
        let asked_again = |town: &mut Town, when: &str| {
            town.respond(device, response.clone());
            assert!(!town.passes(new, "tcp/22") && town.passes(town.phone, "tcp/22"), "{response:?} {when}");
        };
        asked_again(&mut town, "the second time");
        // The same when there are so many that they become fewer.
        for number in 0..70 {
            let name = format!("r{number}").parse().expect("a name");
            let other = match &response {
                SignalResponse::Restrict(_) => SignalResponse::Restrict([wiki(), name].into()),
                SignalResponse::Challenge(_) | SignalResponse::Terminate => {
                    let rule = format!("rule {number}").parse().expect("a name");
                    SignalResponse::Challenge(Reach::Access { rule, resource: name })
                }
            };
            town.respond(device, other);
        }
        assert!(!town.passes(new, "tcp/22"), "{response:?} among many");
        town.world.restart();
        for node in 0..town.world.nodes.len() {
            town.world.connect(node);
        }
        town.world.run(seconds(2));
        asked_again(&mut town, "after a restart");
    }
}

#[test]
fn asking_again_asks_also_the_machines_that_share_it() {
    let mut town = town(90);
    let device = Restrained::Device(town.world.nodes[town.laptop].id());
    town.respond(device, SignalResponse::Challenge(Reach::Everything));
    let proven = town.proven();
    let new = town.world.laptop("alice-new", &proven);
    town.world.run(seconds(10));
    assert!(town.passes(new, "tcp/22"), "proven after it was asked");
    town.respond(device, SignalResponse::Challenge(Reach::Everything));
    assert!(!town.passes(new, "tcp/22") && town.passes(town.phone, "tcp/22"), "at once, not with its next renewal");
}

/// Signs alice out on a machine and has somebody else confirm it.
fn hand_on(town: &mut Town, node: usize, who: &Person) -> Result<(), CoreError> {
    let session = town.world.core.find_session(town.world.nodes[node].name.clone().as_str()).expect("her session");
    town.world.core.end_own_session(session, &person("alice", &[]), town.world.now).expect("she signs out");
    town.world.pump();
    town.world.run(seconds(1));
    town.world.nodes[node].want = Want::Join;
    town.world.nodes[node].code = None;
    town.world.cut_stream(node);
    town.world.connect(node);
    town.world.run(seconds(1));
    let code: UserCode = town.world.nodes[node].code.clone().expect("a code").parse().expect("a code");
    let shown = town.world.nodes[node].key.public();
    let answer = town.world.core.confirm_join(code, shown, who, FROM, town.world.now).map(drop);
    town.world.pump();
    town.world.run(seconds(1));
    town.world.cut_stream(node);
    town.world.connect(node);
    town.world.run(seconds(1));
    answer
}

#[test]
fn handing_a_machine_on_is_no_way_out_of_what_it_is_kept_to() {
    let mut town = town(91);
    let laptop = town.laptop;
    let device = Restrained::Device(town.world.nodes[laptop].id());
    town.respond(device, SignalResponse::Restrict([wiki()].into()));
    let bob = person("bob", &["engineers"]);
    let answer = hand_on(&mut town, laptop, &bob);
    assert!(matches!(&answer, Err(CoreError::NotPermitted(why)) if why.contains("release")), "{answer:?}");
    assert!(!town.passes(laptop, "tcp/22"));
    assert!(!town.world.core.registry.restraints_of(device).is_empty(), "it is still on record");
}

#[test]
fn handing_a_machine_on_leaves_what_it_was_asked_with_its_person() {
    let mut town = town(92);
    let (laptop, bobs) = (town.laptop, town.bobs);
    let device = Restrained::Device(town.world.nodes[laptop].id());
    town.respond(device, SignalResponse::Challenge(Reach::Everything));
    town.world.run(seconds(10));
    let other = town.world.laptop("bob-tablet", &person("bob", &["engineers"]));
    let bob = Person { auth_time: Some(town.world.now.wall), ..person("bob", &["engineers"]) };
    hand_on(&mut town, laptop, &bob).expect("his now");
    assert!(town.passes(laptop, "tcp/22"), "he has proven who he is after it was asked");
    assert!(town.passes(bobs, "tcp/22") && town.passes(other, "tcp/22"), "his other machines have no part in it");
    let new = town.world.laptop("alice-new", &person("alice", &["engineers"]));
    town.world.run(seconds(1));
    assert!(!town.passes(new, "tcp/22") && !town.passes(town.phone, "tcp/22"), "she is still asked");
}

#[test]
fn a_list_of_machines_says_what_is_held_and_what_is_taken() {
    let Town { mut world, laptop, phone, .. } = town(99);
    let held = crate::records::Quarantined::Device(world.nodes[phone].id());
    world.core.quarantine(held, "it scans", "root", world.now).expect("held");
    let on = Restrained::Device(world.nodes[laptop].id());
    let only = SignalResponse::Restrict(["wiki".parse().expect("a name")].into());
    world.core.respond(on, only, "too much", "root", world.now).expect("kept to the wiki");
    world.pump();
    let said: Vec<String> = crate::admin::cli::standings(&world.core.list_devices());
    let says = |text: &str| said.iter().filter(|line| line.contains(text)).count();
    assert_eq!(
        (says("in quarantine: it scans"), says("connected"), says("kept to wiki: too much")),
        (1, 3, 1),
        "{said:?}"
    );
    let shown = world.core.show_device(world.nodes[laptop].id()).expect("there");
    assert_eq!((shown.quarantine, shown.restraints), (None, vec!["kept to wiki: too much".to_owned()]));
}

#[test]
fn a_challenge_of_a_clock_that_was_ahead_is_met_when_it_is_right_and_by_no_sign_in_from_before() {
    for from_then in [false, true] {
        let mut town = town(97);
        let set = |town: &mut Town, by: i64| {
            town.world.clock_set = by;
            town.world.nodes.iter_mut().for_each(|node| node.clock_set = -by);
            town.world.run(seconds(61));
        };
        set(&mut town, 3 * 3_600_000);
        let then = town.proven();
        if from_then {
            town.world.join(town.laptop, &then);
        }
        town.respond(town.alice(), SignalResponse::Challenge(engineers_access()));
        set(&mut town, 0);
        let accepted = town.world.core.accept_clock("the time server was wrong", town.world.now);
        accepted.expect("accepted");
        // Until the sign-in that seemed to lie ahead is over by its own time.
        town.world.run(seconds(4 * 3_600));
        assert!(!town.passes(town.laptop, "tcp/22"), "{from_then}");
    }
    let mut town = town(98);
    town.world.clock_set = 3 * 3_600_000;
    town.world.run(seconds(61));
    town.respond(town.alice(), SignalResponse::Challenge(engineers_access()));
    town.world.clock_set = 0;
    town.world.run(seconds(61));
    assert!(!town.passes(town.laptop, "tcp/22"));
    let proven = town.proven();
    town.step_up(town.laptop, "git", &proven).expect("proven");
    town.world.run(seconds(61));
    assert!(town.passes(town.laptop, "tcp/22"));
}
