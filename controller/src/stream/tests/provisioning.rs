//! Claims about people whom their provider provisions: who is cut, who is decided anew, and who may ask for it.

use std::{net::IpAddr, time::Duration};

use postern_common::protocol::FromNode;
use serde_json::{Value, json};

use super::{
    claims::POLICY,
    joining::local,
    world::{ISSUER, URL, World, config, person},
};
use crate::{
    records::{AuditEvent, Person, ProvisionedName, RevokeTarget, ScimKey, TokenHash},
    signals::scim::{
        self, Refusal, Rendered, Request,
        settings::{Admission, GroupSource, ScimSettings},
    },
    stream::{CoreConfig, CoreError, Decider, Decision, ScimClosed},
};

mod leavers;

const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
const GROUP: &str = "urn:ietf:params:scim:schemas:core:2.0:Group";
const PATCH: &str = "urn:ietf:params:scim:api:messages:2.0:PatchOp";

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn settings(groups: GroupSource, admission: Admission) -> CoreConfig {
    let (issuer, claim) = (ISSUER.to_owned(), "sub".to_owned());
    let (key, silent_after) = (ScimKey::ExternalId, seconds(7 * 86_400));
    CoreConfig { scim: Some(ScimSettings { issuer, key, claim, groups, admission, silent_after }), ..config() }
}

/// A world with a client of the provider's.
struct Corp {
    world: World,
    token: TokenHash,
    wiki: usize,
    payroll: usize,
    alice: usize,
    bob: usize,
    /// What the last request closed.
    closed: ScimClosed,
}

/// What a sign-in told by a claim.
fn told(claim: &str, value: &str) -> Option<ProvisionedName> {
    Some(ProvisionedName { claim: claim.to_owned(), value: value.to_owned() })
}

fn from() -> IpAddr {
    "203.0.113.5".parse().expect("an address")
}

impl Corp {
    /// Alice is in payroll and staff, Bob in staff, both by the directory; both are signed in.
    fn new(seed: u64, config: CoreConfig) -> Self {
        let mut world = World::with(seed, POLICY, config);
        let (text, _) = world.core.create_scim_token(vec![], seconds(3_600), "root", world.now).expect("a token");
        assert!(text.starts_with("pst_scim_") && text.len() > 40);
        world.pump();
        let payroll = world.server("payroll", Some("payroll"), &[]);
        let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
        let token = TokenHash::of(&text);
        let mut corp = Self { world, token, wiki, payroll, alice: 0, bob: 0, closed: ScimClosed::default() };
        let (alice, bob) = (corp.user("alice"), corp.user("bob"));
        corp.group("staff", &[&alice, &bob]);
        corp.group("payroll", &[&alice]);
        // Where the claim is another one than `sub`, this is its value.
        let claim = corp.world.config.scim.as_ref().expect("settings").claim.clone();
        let named = |name: &str| Person { provisioned_as: told(&claim, name), ..person(name, &[]) };
        corp.alice = corp.world.laptop("alice-laptop", &named("alice"));
        corp.bob = corp.world.laptop("bob-laptop", &named("bob"));
        corp.world.run(seconds(1));
        corp
    }

    fn ask(&mut self, method: &str, path: &str, body: &Value) -> Result<Rendered, Refusal> {
        let world = &mut self.world;
        let client = world.core.scim_client(Some(self.token), from(), world.now)?;
        let body = body.to_string();
        let asked = Request { method, path, query: "", if_match: None, if_none_match: None, body: body.as_bytes() };
        let answer = scim::parse(&asked).and_then(|command| world.core.scim(&client, command, from(), world.now));
        world.pump();
        let (answer, closed) = answer?;
        self.closed = closed;
        Ok(answer.render("https://ctl.example/scim/v2"))
    }

    fn made(&mut self, path: &str, body: &Value) -> String {
        let made = self.ask("POST", path, body).expect("made").body.expect("a body");
        made["id"].as_str().expect("an identifier").to_owned()
    }

    fn user(&mut self, name: &str) -> String {
        self.made("/Users", &json!({"schemas": [USER], "userName": name, "externalId": format!("sub-{name}")}))
    }

    fn group(&mut self, name: &str, members: &[&String]) -> String {
        let members: Vec<Value> = members.iter().map(|id| json!({"value": id})).collect();
        self.made("/Groups", &json!({"schemas": [GROUP], "displayName": name, "members": members}))
    }

    /// Finds what was provisioned under a name.
    fn id(&mut self, path: &str, name: &str) -> String {
        let listed = self.ask("GET", path, &Value::Null).expect("a list").body.expect("a body");
        let all = listed["Resources"].as_array().expect("resources").clone();
        let found = all.iter().find(|one| one["userName"] == name || one["displayName"] == name);
        found.expect("it is there")["id"].as_str().expect("an identifier").to_owned()
    }

    fn change(&mut self, path: &str, name: &str, operations: &Value) {
        let id = self.id(path, name);
        self.ask("PATCH", &format!("{path}/{id}"), &json!({"schemas": [PATCH], "Operations": operations}))
            .expect("changed");
    }

    fn activate(&mut self, name: &str, active: bool) {
        self.change("/Users", name, &json!([{"op": "replace", "value": {"active": active}}]));
    }

    fn leave(&mut self, name: &str, group: &str) {
        let user = self.id("/Users", name);
        self.change("/Groups", group, &json!([{"op": "remove", "path": format!("members[value eq \"{user}\"]")}]));
    }

    fn reaches(&self, node: usize) -> (bool, bool) {
        (self.world.passes(node, self.wiki, "tcp/80"), self.world.passes(node, self.payroll, "tcp/443"))
    }

    fn decisions(&self) -> u64 {
        self.world.core.status().counters.decisions
    }

    /// Lets somebody confirm a machine that waits, and tells how that went.
    fn confirms(&mut self, name: &str, who: &Person) -> Result<(), CoreError> {
        let (node, code) = super::joining::waiting(&mut self.world, name);
        let shown = self.world.nodes[node].key.public();
        let done = self.world.core.confirm_join(code, shown, who, local(), self.world.now).map(drop);
        self.world.pump();
        done
    }
}

#[test]
fn groups_of_the_directory_decide_and_a_change_of_one_decides_its_people_alone() {
    let mut corp = Corp::new(1, settings(GroupSource::Scim, Admission::Anybody));
    assert_eq!((corp.reaches(corp.alice), corp.reaches(corp.bob)), ((true, true), (true, false)));
    let before = corp.decisions();
    corp.leave("alice", "payroll");
    assert_eq!(corp.decisions() - before, 1, "one device of one person");
    corp.world.run(seconds(1));
    assert_eq!((corp.reaches(corp.alice), corp.reaches(corp.bob)), ((true, false), (true, false)));
    // The group that rules name is another one when it is called otherwise.
    corp.change("/Groups", "staff", &json!([{"op": "Replace", "path": "displayName", "value": "people"}]));
    corp.world.run(seconds(1));
    assert_eq!((corp.reaches(corp.alice), corp.reaches(corp.bob)), ((false, false), (false, false)));
    corp.change("/Groups", "people", &json!([{"op": "Replace", "path": "displayName", "value": "staff"}]));
    corp.world.run(seconds(1));
    assert_eq!(corp.reaches(corp.bob), (true, false));
    let staff = corp.id("/Groups", "staff");
    corp.ask("DELETE", &format!("/Groups/{staff}"), &Value::Null).expect("deleted");
    corp.world.run(seconds(1));
    assert_eq!(corp.reaches(corp.bob), (false, false));
}

#[test]
fn who_is_deactivated_or_deleted_is_cut_at_once_and_turned_away_and_coming_back_opens_nothing() {
    for delete in [false, true] {
        let mut corp = Corp::new(2, settings(GroupSource::Scim, Admission::Anybody));
        let alice = corp.id("/Users", "alice");
        match delete {
            true => drop(corp.ask("DELETE", &format!("/Users/{alice}"), &Value::Null).expect("deleted")),
            false => corp.activate("alice", false),
        }
        let closed = corp.closed.people.clone();
        assert_eq!(closed.iter().map(|p| (p.name.as_str(), p.subjects.len())).collect::<Vec<_>>(), [("sub-alice", 1)]);
        assert_eq!(corp.world.core.list_sessions().len(), 1, "hers has ended in the same turn, Bob's has not");
        let revoked = corp.world.audit.iter().any(|event| matches!(event,
            AuditEvent::Revoked { target: RevokeTarget::Subject(_), by, nodes, .. } if by.starts_with("SCIM client") && *nodes > 0));
        assert!(revoked, "it is a revocation, with its progress");
        corp.world.run(seconds(1));
        assert_eq!((corp.reaches(corp.alice), corp.reaches(corp.bob)), ((false, false), (true, false)));
        let why = corp.world.core.explain("alice-laptop", "wiki", None, corp.world.now).expect("explained").reason;
        assert!(why.contains("may not take part") && why.contains("at the identity provider"), "{why}");
        let refused = corp.confirms("another", &person("alice", &[])).expect_err("turned away");
        assert!(refused.to_string().contains(if delete { "removed" } else { "deactivated" }), "{refused}");
        corp.world.restart();
        for node in [corp.wiki, corp.payroll, corp.alice, corp.bob] {
            corp.world.connect(node);
        }
        corp.world.run(seconds(2));
        assert_eq!(
            (corp.reaches(corp.alice), corp.reaches(corp.bob)),
            ((false, false), (true, false)),
            "after a restart"
        );
        assert!(corp.confirms("again", &person("alice", &[])).is_err());

        match delete {
            true => drop(corp.user("alice")),
            false => corp.activate("alice", true),
        }
        corp.world.run(seconds(5));
        assert_eq!(corp.reaches(corp.alice), (false, false), "nobody signed in");
        corp.world.join(corp.alice, &person("alice", &[]));
        corp.world.run(seconds(1));
        // Who was deleted is another one now, in no group.
        assert_eq!(corp.reaches(corp.alice), if delete { (false, false) } else { (true, true) });
    }
}

#[test]
fn what_was_approved_or_opened_past_the_rules_ends_with_the_person_and_stays_ended() {
    let policy = POLICY.replace(
        "to = [\"payroll-app\"]\nlease = \"30s\"",
        "to = [\"payroll-app\"]\nlease = \"30s\"\nrequest = { approvers = [\"group:leads\"], longest = \"1h\" }",
    );
    let mut corp = Corp::new(3, settings(GroupSource::Scim, Admission::Anybody));
    corp.world.apply_policy(&policy);
    let length_ms = 3_600_000;
    let (id, reason, resource) = (1, "incident".to_owned(), "payroll-app".to_owned());
    corp.world.send(corp.alice, FromNode::RequestAccess { id, resource, length_ms, reason });
    corp.world.run(seconds(1));
    let request = corp.world.core.list_requests().pop().expect("a request").record.id;
    let by = Decider::Administrator("root");
    corp.world.core.decide_request(request, Decision::Approve, by, "fine", corp.world.now).expect("approved");
    let (device, db) = (corp.world.nodes[corp.alice].id(), "wiki".parse().expect("a name"));
    corp.world
        .core
        .break_glass(device, &db, seconds(600), "incident", "nobody answers", "root", corp.world.now)
        .expect("open");
    corp.world.pump();
    corp.world.run(seconds(1));
    assert_eq!(corp.reaches(corp.alice), (true, true));
    corp.activate("alice", false);
    assert!(corp.world.core.list_requests().is_empty() && corp.world.core.list_break_glass(corp.world.now).is_empty());
    assert!(corp.world.store.loaded.requests.is_empty() && corp.world.store.loaded.break_glass.is_empty());
    corp.activate("alice", true);
    corp.leave("alice", "staff");
    corp.world.join(corp.alice, &person("alice", &[]));
    corp.world.run(seconds(1));
    assert_eq!(corp.reaches(corp.alice), (false, false), "neither the approval nor the opening is there again");
}

#[test]
fn the_setting_says_whose_word_counts_about_groups() {
    // By the token: payroll. By the directory: staff and payroll (Alice), staff (Bob).
    for (source, alice, bob) in [
        (GroupSource::Scim, (true, true), (true, false)),
        (GroupSource::Claims, (false, true), (false, true)),
        (GroupSource::Both, (true, true), (true, true)),
    ] {
        let mut corp = Corp::new(4, settings(source, Admission::Anybody));
        for (node, name) in [(corp.alice, "alice"), (corp.bob, "bob")] {
            corp.world.join(node, &person(name, &["payroll"]));
        }
        corp.world.run(seconds(1));
        assert_eq!((corp.reaches(corp.alice), corp.reaches(corp.bob)), (alice, bob), "{source:?}");
        // Whom the directory does not know is in groups that nobody knows, unless it is not asked.
        let carl = corp.world.laptop("carl-laptop", &person("carl", &["payroll", "staff"]));
        corp.world.run(seconds(1));
        let open = source == GroupSource::Claims;
        assert_eq!(corp.reaches(carl), (open, open), "{source:?}");
        // Nor does a token that says nothing open what both have to say.
        corp.world.join(corp.bob, &Person { groups: None, ..person("bob", &[]) });
        corp.world.run(seconds(1));
        assert_eq!(corp.reaches(corp.bob).0, source == GroupSource::Scim, "{source:?}");
    }
}

#[test]
fn where_provisioning_is_required_nobody_else_gets_in_and_a_start_ends_who_is_in() {
    let mut corp = Corp::new(5, settings(GroupSource::Claims, Admission::Anybody));
    let carl = corp.world.laptop("carl-laptop", &person("carl", &["staff"]));
    corp.world.run(seconds(1));
    assert!(corp.world.passes(carl, corp.wiki, "tcp/80"));
    corp.world.config = settings(GroupSource::Claims, Admission::Provisioned);
    corp.world.restart();
    assert!(corp.world.core.list_sessions().iter().all(|view| view.subject_name != "carl@corp.example"));
    for node in [corp.wiki, corp.payroll, corp.alice, carl] {
        corp.world.connect(node);
    }
    corp.world.run(seconds(2));
    assert!(!corp.world.passes(carl, corp.wiki, "tcp/80"));
    let refused = corp.confirms("other", &person("dora", &["staff"])).expect_err("unknown");
    assert!(refused.to_string().contains("has not provisioned"), "{refused}");
    assert_eq!(corp.confirms("hers", &person("alice", &["staff"])), Ok(()));
    // A local account is nobody of the provider's.
    let local = Person { issuer: URL.into(), ..person("carl", &["staff"]) };
    assert_eq!(corp.confirms("local", &local), Ok(()));
}

#[test]
fn a_name_that_is_not_the_sub_is_taken_from_the_sign_in_and_one_without_it_is_turned_away() {
    let mut config = settings(GroupSource::Scim, Admission::Anybody);
    let scim = config.scim.as_mut().expect("settings");
    (scim.key, scim.claim) = (ScimKey::UserName, "employee".into());
    let mut corp = Corp::new(6, config);
    let named = |name: &str| Person { provisioned_as: told("employee", name), ..person("a-sub", &[]) };
    assert!(
        corp.confirms("without", &person("a-sub", &[]))
            .expect_err("nobody knows who")
            .to_string()
            .contains("`employee`")
    );
    // Two people may be told apart by it, where names have no case at the provider's directory.
    let loud = corp.confirms("loud", &named("ALICE")).expect_err("somebody else, perhaps").to_string();
    assert!(loud.contains("`ALICE`") && loud.contains("another case"), "{loud}");
    let node = corp.world.laptop("her-laptop", &named("alice"));
    corp.world.run(seconds(1));
    assert_eq!(corp.reaches(node), (true, true));
    // The name is another one there, and she has not signed in under it.
    corp.change("/Users", "alice", &json!([{"op": "replace", "path": "userName", "value": "alice.b"}]));
    corp.world.run(seconds(1));
    assert_eq!(corp.reaches(node), (false, false));
    assert!(corp.confirms("old", &named("alice")).is_err(), "a name that was given up is nobody's");
    corp.world.join(node, &named("alice.b"));
    corp.world.run(seconds(1));
    assert_eq!(corp.reaches(node), (true, true));
    corp.activate("alice.b", false);
    corp.world.run(seconds(1));
    assert_eq!(corp.reaches(node), (false, false));
    assert!(corp.confirms("out", &named("ALICE.B")).expect_err("out").to_string().contains("deactivated"));
}

#[test]
fn neither_an_administrator_nor_the_provider_lets_in_whom_the_other_keeps_out() {
    let mut corp = Corp::new(7, settings(GroupSource::Scim, Admission::Anybody));
    let subject = corp.world.core.find_subject("alice@corp.example").expect("known");
    let target = RevokeTarget::Subject(subject);
    corp.world.core.revoke(target.clone(), "left", "root", corp.world.now).expect("revoked");
    corp.activate("alice", false);
    corp.activate("alice", true);
    assert!(corp.confirms("one", &person("alice", &[])).expect_err("revoked").to_string().contains("left"));
    corp.activate("alice", false);
    corp.world.core.lift(target, "root", corp.world.now).expect("lifted");
    assert!(corp.confirms("two", &person("alice", &[])).expect_err("out").to_string().contains("deactivated"));
    corp.activate("alice", true);
    assert_eq!(corp.confirms("three", &person("alice", &[])), Ok(()));
}

#[test]
fn without_authority_nothing_changes_and_a_flood_of_tries_is_a_few_records() {
    let mut corp = Corp::new(8, settings(GroupSource::Scim, Admission::Anybody));
    let networks = vec!["198.51.100.0/24".parse().expect("a network")];
    let (bound, _) = corp.world.core.create_scim_token(networks, seconds(60), "root", corp.world.now).expect("a token");
    corp.world.pump();
    let before = corp.world.store.loaded.clone();
    let good = corp.token;
    let tries = [None, Some(TokenHash::of("pst_scim_guess")), Some(TokenHash::of(&bound))];
    for _ in 0..500 {
        for token in tries {
            let refused = corp.world.core.scim_client(token, from(), corp.world.now);
            assert_eq!(refused, Err(Refusal::unauthorized()), "the same words for every reason");
        }
    }
    corp.world.pump();
    let recorded = |world: &World| {
        let of = |event: &AuditEvent| match event {
            AuditEvent::SignalRefused { reason, times, .. } => Some((reason.clone(), *times)),
            _ => None,
        };
        world.audit.iter().filter_map(of).collect::<Vec<_>>()
    };
    assert_eq!(recorded(&corp.world).len(), 3, "{:?}", recorded(&corp.world));
    corp.world.run(seconds(120));
    let total: u64 = recorded(&corp.world).iter().map(|(_, times)| times).sum();
    assert_eq!((recorded(&corp.world).len(), total), (6, 1_500), "{:?}", recorded(&corp.world));

    // From its network, the bound one was good for a minute.
    let there = "198.51.100.9".parse().expect("an address");
    let late = corp.world.core.scim_client(Some(TokenHash::of(&bound)), there, corp.world.now);
    assert_eq!(late, Err(Refusal::unauthorized()));
    corp.world.pump();
    // Of another provider: the configuration names another one now.
    corp.world.config.scim.as_mut().expect("settings").issuer = "https://other.example".into();
    corp.world.restart();
    assert_eq!(corp.world.core.scim_client(Some(good), from(), corp.world.now), Err(Refusal::unauthorized()));
    corp.world.pump();
    for reason in ["without a token", "nobody knows", "not for", "has expired", "another provider"] {
        assert!(recorded(&corp.world).iter().any(|(said, _)| said.contains(reason)), "{reason}");
    }
    assert_eq!(corp.world.store.loaded.scim_users, before.scim_users);
    assert_eq!(corp.world.store.loaded.scim_groups, before.scim_groups);
    // And one that was taken back between its check and the command.
    corp.world.config.scim.as_mut().expect("settings").issuer = ISSUER.into();
    corp.world.restart();
    let client = corp.world.core.scim_client(Some(good), from(), corp.world.now).expect("good");
    corp.world.core.delete_scim_token(&good.short(), "root").expect("taken back");
    let asked = Request { method: "GET", path: "/Users", query: "", if_match: None, if_none_match: None, body: b"" };
    let command = scim::parse(&asked).expect("a command");
    assert_eq!(corp.world.core.scim(&client, command, from(), corp.world.now).map(drop), Err(Refusal::unauthorized()));
}

#[test]
fn what_a_restart_finds_is_what_was_answered() {
    let mut corp = Corp::new(9, settings(GroupSource::Scim, Admission::Anybody));
    corp.leave("alice", "payroll");
    corp.activate("bob", false);
    let listed = |corp: &mut Corp| {
        let all = ["/Users", "/Groups"].map(|path| corp.ask("GET", path, &Value::Null).expect("a list").body);
        (all, corp.world.core.scim_people(false), corp.world.core.scim_groups())
    };
    let before = listed(&mut corp);
    corp.world.restart();
    assert_eq!(listed(&mut corp), before);
    let alice = corp.id("/Users", "alice");
    corp.ask("DELETE", &format!("/Users/{alice}"), &Value::Null).expect("deleted");
    corp.world.restart();
    assert!(corp.confirms("x", &person("alice", &[])).expect_err("gone").to_string().contains("removed"));
}

#[test]
fn a_large_group_is_decided_in_portions() {
    let mut corp = Corp::new(10, settings(GroupSource::Scim, Admission::Anybody));
    let mut ids = Vec::new();
    let mut nodes = Vec::new();
    for n in 0..80 {
        let name = format!("p{n}");
        ids.push(corp.user(&name));
        nodes.push(corp.world.laptop(&name, &person(&name, &[])));
    }
    let members: Vec<&String> = ids.iter().collect();
    let before = corp.decisions();
    corp.group("crowd", &members);
    assert_eq!(corp.decisions() - before, 32, "a portion in the turn of the request");
    assert_eq!(corp.world.core.scim_view(corp.world.now).waiting, 48);
    let staff = corp.id("/Groups", "staff");
    let all: Vec<Value> = ids.iter().map(|id| json!({"value": id})).collect();
    let body = json!({"schemas": [PATCH], "Operations": [{"op": "add", "path": "members", "value": all}]});
    corp.ask("PATCH", &format!("/Groups/{staff}"), &body).expect("added");
    corp.world.run(seconds(1));
    assert_eq!(corp.world.core.scim_view(corp.world.now).waiting, 0);
    assert!(nodes.iter().all(|node| corp.world.passes(*node, corp.wiki, "tcp/80")), "everybody in the end");
}

#[test]
fn a_small_group_is_not_taken_for_a_person_who_goes() {
    let mut corp = Corp::new(31, settings(GroupSource::Scim, Admission::Anybody));
    corp.activate("alice", false);
    assert_eq!(corp.closed.people.len(), 1);
    let alice = corp.id("/Users", "alice");
    let few = corp.group("few", &[&alice]);
    assert_eq!(corp.closed.people, [], "of a group with one member who is out already, nobody goes");
    corp.ask("DELETE", &format!("/Groups/{few}"), &Value::Null).expect("deleted");
    assert_eq!(corp.closed.people, []);
    // Two members, of whom nobody signs in here: that is no leaver whom nobody knows.
    let (carol, dave) = (corp.user("carol"), corp.user("dave"));
    corp.activate("dave", false);
    let before = corp.world.audit.len();
    corp.group("fewer", &[&carol, &dave]);
    let said = |event: &AuditEvent| matches!(event, AuditEvent::Provisioned { what, .. } if what.contains("nobody who signed in"));
    assert!(!corp.world.audit[before..].iter().any(said), "{:?}", &corp.world.audit[before..]);
}

#[test]
fn a_name_that_somebody_had_before_is_not_theirs_any_more() {
    let mut config = settings(GroupSource::Scim, Admission::Anybody);
    let scim = config.scim.as_mut().expect("settings");
    (scim.key, scim.claim) = (ScimKey::UserName, "employee".into());
    let mut corp = Corp::new(32, config);
    // The provider gives Alice another name, and hers to somebody else.
    corp.change("/Users", "alice", &json!([{"op": "replace", "path": "userName", "value": "alice.b"}]));
    let renamed = Person { provisioned_as: told("employee", "alice.b"), ..person("alice", &[]) };
    corp.world.join(corp.alice, &renamed);
    corp.world.run(seconds(1));
    assert_eq!(corp.reaches(corp.alice), (true, true));
    let body = json!({"schemas": [USER], "userName": "alice", "externalId": "sub-newcomer"});
    corp.made("/Users", &body);
    corp.activate("alice", false);
    let closed = corp.closed.people.clone();
    assert_eq!(closed.iter().map(|p| (p.name.as_str(), p.subjects.len())).collect::<Vec<_>>(), [("alice", 0)]);
    corp.world.run(seconds(1));
    assert_eq!(corp.reaches(corp.alice), (true, true), "who has the name now goes, and she stays");
    let people = corp.world.core.scim_people(false);
    let known = |name: &str| people.iter().find(|p| p.user_name == name).map(|p| p.subjects.len());
    assert_eq!((known("alice"), known("alice.b")), (Some(0), Some(1)));
}

#[test]
fn what_could_not_be_read_or_taken_up_is_told_once() {
    let mut corp = Corp::new(33, settings(GroupSource::Scim, Admission::Anybody));
    let client = corp.world.core.scim_client(Some(corp.token), from(), corp.world.now).expect("good");
    for refusal in [Refusal::too_large("a body has at most 262144 bytes"), Refusal::full("no room")] {
        for _ in 0..3 {
            let before = corp.world.store.alerts.len();
            corp.world.core.scim_refused(&client, from(), &refusal, None, corp.world.now);
            corp.world.pump();
            let raised = &corp.world.store.alerts[before..];
            assert!(raised.iter().all(|alert| alert.text.contains(&refusal.detail)));
        }
    }
    let told = corp.world.store.alerts.iter().filter(|a| a.kind == crate::signals::alerts::AlertKind::Provisioning);
    assert_eq!(told.count(), 2);
}
