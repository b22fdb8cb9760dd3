//! Claims about step-up: who may prove what, for which machine, and what that changes.

use std::{net::IpAddr, time::Duration};

use postern_common::{
    protocol::{FromNode, ToNode},
    time::WallTime,
};

use super::world::{START_WALL, World, person};
use crate::{
    identity::random::Token,
    records::{AuditEvent, Person, Quarantined, RevokeTarget},
    stream::CoreError,
    web::doors::Sufficient,
};

const POLICY: &str = r#"
[resource.git]
node = "git"
ports = ["tcp/22"]

[resource.wiki]
node = "git"
ports = ["tcp/80"]

[resource.vault]
node = "vault"
ports = ["tcp/443"]

[[access]]
name = "engineers use git"
from = ["group:engineers"]
to = ["git"]
when = { mfa_within = "15m" }

[[access]]
name = "everybody reads the wiki"
from = ["user:*"]
to = ["wiki"]

[[access]]
name = "engineers open the vault"
from = ["group:engineers"]
to = ["vault"]
when = { phishing_resistant = true }
"#;

const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

struct Town {
    world: World,
    git: usize,
    laptop: usize,
    other: usize,
}

/// Alice and Bob signed in with a password alone, long enough ago.
fn town(seed: u64) -> Town {
    let mut world = World::new(seed, POLICY);
    let git = world.server("git", Some("git"), &[]);
    world.server("vault", Some("vault"), &[]);
    let weak = |name: &str| Person { amr: vec!["pwd".into()], ..person(name, &["engineers"]) };
    let laptop = world.laptop("alice-laptop", &weak("alice"));
    let other = world.laptop("bob-laptop", &weak("bob"));
    world.run(seconds(1));
    Town { world, git, laptop, other }
}

impl Town {
    /// Has a machine ask for a page and returns its secret.
    fn ask(&mut self, node: usize, resource: &str) -> Token {
        self.world.send(node, FromNode::StepUp { resource: resource.parse().expect("a name") });
        self.world.run(seconds(1));
        match self.world.nodes[node].step_ups.pop() {
            Some(ToNode::StepUpPending { url, .. }) => {
                Token::presented(url.rsplit('/').next().expect("a path")).expect("a secret")
            }
            other => panic!("no page: {other:?}"),
        }
    }

    fn proven(&self, name: &str, amr: &[&str]) -> Person {
        let amr = amr.iter().map(|method| (*method).to_owned()).collect();
        Person { amr, auth_time: Some(self.world.now.wall), ..person(name, &["engineers"]) }
    }

    fn confirm(&mut self, token: &Token, who: &Person) -> Result<(), CoreError> {
        let done = self.world.core.confirm_step_up(token, who, FROM, self.world.now).map(drop);
        self.world.pump();
        self.world.run(seconds(1));
        done
    }

    fn offered(&self, node: usize) -> Vec<String> {
        let own = self.world.nodes[node].own.as_ref().expect("told of itself");
        own.step_up.iter().map(|offer| format!("{}: {}", offer.resource, offer.demand)).collect()
    }

    fn refusals(&self) -> Vec<String> {
        let reason = |event: &AuditEvent| match event {
            AuditEvent::StepUpRefused { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        self.world.audit.iter().filter_map(reason).collect()
    }
}

#[test]
fn the_machine_is_told_what_more_proof_would_open_and_its_destination_is_not() {
    let town = town(61);
    let vault = "vault: a sign-in that cannot be phished (a passkey or security key)";
    assert_eq!(town.offered(town.laptop), ["git: MFA within 15 min", vault]);
    assert!(town.offered(town.git).is_empty());
    assert!(!town.world.lets_in(town.laptop, town.git, "tcp/22"));
    assert!(town.world.passes(town.laptop, town.git, "tcp/80"), "the wiki is open all the while");
    let known = &town.world.nodes[town.git].peers[&town.world.nodes[town.laptop].id()];
    assert!(known.inbound.iter().all(|permission| permission.resource.as_str() == "wiki"));
}

#[test]
fn a_page_does_not_say_that_something_is_open_which_is_not_offered_any_more() {
    let gone: [fn(&mut World); 3] = [
        |world| world.apply_policy(&POLICY.replace("to = [\"git\"]", "to = [\"wiki\"]")),
        |world| {
            let git = Quarantined::Resource("git".parse().expect("a name"));
            world.core.quarantine(git, "odd", "root", world.now).map(drop).expect("held");
        },
        |world| {
            let rule = RevokeTarget::Rule("engineers use git".parse().expect("a name"));
            world.core.revoke(rule, "odd", "root", world.now).map(drop).expect("revoked");
        },
    ];
    for (seed, gone) in gone.into_iter().enumerate() {
        let mut town = town(160 + seed as u64);
        let token = town.ask(town.laptop, "git");
        gone(&mut town.world);
        town.world.pump();
        town.world.run(seconds(1));
        let proven = town.proven("alice", &["pwd", "otp"]);
        let answer = town.confirm(&token, &proven);
        assert!(matches!(&answer, Err(CoreError::NotPermitted(why)) if why.contains("explain git")), "{answer:?}");
        assert!(!town.world.lets_in(town.laptop, town.git, "tcp/22"));
    }
}

#[test]
fn a_step_up_opens_what_it_was_for_on_this_machine_alone_and_lapses_by_itself() {
    let mut town = town(62);
    let token = town.ask(town.laptop, "git");
    let weak = town.proven("alice", &["pwd"]);
    let page = town.world.core.step_up_page(&token, &weak, FROM, town.world.now).expect("her page");
    assert_eq!(
        (page.machine.as_str(), page.resource.as_str(), page.sufficient),
        ("alice-laptop", "git", Sufficient::No)
    );
    let decisions = town.world.core.status().counters.decisions;
    let strong = town.proven("alice", &["pwd", "otp"]);
    town.world.core.confirm_step_up(&token, &strong, FROM, town.world.now).expect("proven");
    assert_eq!(town.world.core.status().counters.decisions, decisions + 1, "one device is decided anew");
    town.world.pump();
    town.world.run(seconds(1));
    let (git, laptop, other) = (town.git, town.laptop, town.other);
    assert!(town.world.passes(laptop, git, "tcp/22") && !town.world.passes(other, git, "tcp/22"));
    assert!(town.offered(laptop).iter().all(|offer| !offer.starts_with("git")));
    town.world.run(seconds(14 * 60));
    assert!(town.world.passes(laptop, git, "tcp/22"), "it is renewed while the proof is fresh");
    town.world.run(seconds(60));
    assert!(!town.world.passes(laptop, git, "tcp/22") && !town.world.lets_in(laptop, git, "tcp/22"), "15 min are over");
    assert!(town.world.passes(laptop, git, "tcp/80"));
    assert!(town.offered(laptop).iter().any(|offer| offer.starts_with("git")), "and the reason is told again");
}

#[test]
fn a_page_works_once_for_its_own_person_and_in_time() {
    let mut town = town(63);
    let token = town.ask(town.laptop, "git");
    let second = town.ask(town.laptop, "git");
    let bob = town.proven("bob", &["pwd", "otp"]);
    assert!(matches!(town.confirm(&token, &bob), Err(CoreError::NotPermitted(_))));
    let namesake = Person { issuer: "https://other.example".into(), ..town.proven("alice", &["pwd", "otp"]) };
    assert!(matches!(town.confirm(&token, &namesake), Err(CoreError::NotPermitted(_))), "the same sub elsewhere");
    assert!(!town.world.passes(town.laptop, town.git, "tcp/22"));
    assert!(!town.world.passes(town.other, town.git, "tcp/22"));
    assert_eq!(town.refusals(), ["another person tried to confirm it"; 2]);
    let alice = town.proven("alice", &["pwd", "otp"]);
    town.confirm(&token, &alice).expect("her own");
    assert!(town.world.passes(town.laptop, town.git, "tcp/22"));
    assert_eq!(town.confirm(&token, &alice), Err(CoreError::Expired), "once");
    assert_eq!(town.confirm(&second, &alice), Err(CoreError::Expired), "and the other page for it is spent too");
    assert_eq!(town.confirm(&Token::draw(), &alice), Err(CoreError::Expired), "guessed");

    let token = town.ask(town.other, "git");
    town.world.run(seconds(601));
    let bob = town.proven("bob", &["pwd", "otp"]);
    assert_eq!(town.confirm(&token, &bob), Err(CoreError::Expired), "in time");
    let token = town.ask(town.other, "git");
    let session = town.world.core.find_session("bob@corp.example").expect("his session");
    let target = crate::records::RevokeTarget::Session(session);
    town.world.core.revoke(target, "lost", "root", town.world.now).expect("revoked");
    town.world.pump();
    assert_eq!(town.confirm(&token, &bob), Err(CoreError::Expired), "its session has ended");
}

#[test]
fn a_proof_that_is_weaker_or_not_enough_changes_nothing() {
    let mut town = town(64);
    let session = |town: &Town| {
        let id = town.world.core.find_session("alice@corp.example").expect("her session");
        let stored = town.world.store.loaded.sessions.iter().find(|session| session.id == id);
        stored.expect("durable").assurance.clone()
    };
    let before = session(&town);
    let token = town.ask(town.laptop, "git");
    for (who, why) in [
        (town.proven("alice", &["pwd"]), "no second factor"),
        (Person { auth_time: None, ..town.proven("alice", &["pwd", "otp"]) }, "of an unknown time"),
        (Person { amr: vec![], ..town.proven("alice", &[]) }, "by an unknown method"),
        (
            Person {
                auth_time: Some(WallTime::from_millis(START_WALL + 3_600_000)),
                ..town.proven("alice", &["pwd", "otp"])
            },
            "from the future",
        ),
    ] {
        assert!(matches!(town.confirm(&token, &who), Err(CoreError::NotPermitted(_))), "{why}");
        assert_eq!(session(&town), before, "{why}");
        assert!(!town.world.passes(town.laptop, town.git, "tcp/22"), "{why}");
    }
    // a passkey opens the vault; a code afterwards is fresher and weaker, and does not take its place
    let vault = town.ask(town.laptop, "vault");
    let key = town.proven("alice", &["hwk", "mfa"]);
    town.confirm(&vault, &key).expect("cannot be phished");
    town.world.run(seconds(16 * 60));
    let strong = session(&town);
    let token = town.ask(town.laptop, "git");
    let weaker = town.proven("alice", &["pwd", "otp"]);
    assert!(matches!(town.confirm(&token, &weaker), Err(CoreError::NotPermitted(_))));
    assert_eq!(session(&town), strong);
    let again = town.proven("alice", &["hwk", "mfa"]);
    town.confirm(&token, &again).expect("as strong, and fresh");
    assert!(town.world.passes(town.laptop, town.git, "tcp/22"));
}

#[test]
fn what_no_proof_would_open_has_no_page_and_the_questions_are_bounded() {
    let mut town = town(65);
    for resource in ["wiki", "no-such", "payroll"] {
        town.world.send(town.laptop, FromNode::StepUp { resource: resource.parse().expect("a name") });
        town.world.run(seconds(1));
        let answer = town.world.nodes[town.laptop].step_ups.pop();
        assert!(matches!(answer, Some(ToNode::StepUpRefused { .. })), "{resource}: {answer:?}");
    }
    let first = town.ask(town.laptop, "git");
    for _ in 0..100 {
        town.world.send(town.laptop, FromNode::StepUp { resource: "git".parse().expect("a name") });
    }
    town.world.run(seconds(1));
    let answers = std::mem::take(&mut town.world.nodes[town.laptop].step_ups);
    assert_eq!(answers.len(), 100, "each is answered: somebody may wait");
    let pages = answers.iter().filter(|answer| matches!(answer, ToNode::StepUpPending { .. })).count();
    assert!(pages <= 35, "{pages}");
    assert!(matches!(answers.last(), Some(ToNode::StepUpRefused { message, .. }) if message.contains("too often")));
    let alice = town.proven("alice", &["pwd", "otp"]);
    assert_eq!(town.confirm(&first, &alice), Err(CoreError::Expired), "the oldest made room");
}

#[test]
fn other_questions_of_the_machine_use_up_nothing_of_its_step_ups() {
    let mut town = town(75);
    for id in 0..100 {
        town.world.send(town.laptop, FromNode::Explain { id, to: "git".into(), service: None });
    }
    for id in 100..200 {
        let (resource, reason) = ("git".to_owned(), "a reason".to_owned());
        town.world.send(town.laptop, FromNode::RequestAccess { id, resource, length_ms: 3_600_000, reason });
    }
    town.ask(town.laptop, "git");
    town.world.send(town.laptop, FromNode::SnapshotWanted);
    let snapshots = town.world.nodes[town.laptop].snapshots;
    town.world.run(seconds(1));
    assert_eq!(town.world.nodes[town.laptop].snapshots, snapshots + 1, "nor of the snapshots that it needs itself");
}

#[test]
fn a_restart_forgets_pages_and_keeps_what_was_proven() {
    let mut town = town(66);
    let unused = town.ask(town.other, "git");
    let token = town.ask(town.laptop, "git");
    let alice = town.proven("alice", &["pwd", "otp"]);
    town.confirm(&token, &alice).expect("proven");
    town.world.restart();
    town.world.run(seconds(5));
    assert!(town.world.passes(town.laptop, town.git, "tcp/22"));
    let bob = town.proven("bob", &["pwd", "otp"]);
    assert_eq!(town.confirm(&unused, &bob), Err(CoreError::Expired));
    assert!(!town.offered(town.other).is_empty(), "he is told again what he could prove");
}

#[test]
fn what_is_in_quarantine_is_not_offered_and_no_proof_opens_it() {
    let mut town = town(67);
    let token = town.ask(town.laptop, "git");
    let what = crate::records::Quarantined::Resource("git".parse().expect("a name"));
    town.world.core.quarantine(what, "an incident", "root", town.world.now).expect("held");
    town.world.pump();
    town.world.run(seconds(1));
    assert!(town.offered(town.laptop).iter().all(|offer| !offer.starts_with("git")), "{:?}", town.offered(town.laptop));
    let alice = town.proven("alice", &["pwd", "otp"]);
    drop(town.confirm(&token, &alice));
    assert!(
        !town.world.passes(town.laptop, town.git, "tcp/22") && !town.world.lets_in(town.laptop, town.git, "tcp/22")
    );
}
