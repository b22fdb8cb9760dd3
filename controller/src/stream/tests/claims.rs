//! Claims about opening, closing and renewing.

use std::time::Duration;

use postern_common::{grant::Mode, protocol::FromNode, time::WallTime};

use super::world::{START_WALL, World, person};
use crate::{
    records::{AuditEvent, RevokeTarget},
    stream::{RevocationProgress, SubjectUpdate},
};

pub(super) const POLICY: &str = r#"
[resource.payroll-app]
node = "payroll"
ports = ["tcp/443"]

[resource.wiki]
nodes = ["tag:wiki"]
ports = ["tcp/80", "tcp/443"]

[resource.db]
node = "db"
ports = ["tcp/5432"]

[[access]]
name = "payroll managers use payroll"
from = ["group:payroll"]
to = ["payroll-app"]
lease = "30s"

[[access]]
name = "staff read the wiki"
from = ["group:staff"]
to = ["wiki"]
lease = "30s"
stock_clients = true

[[access]]
name = "payroll reads its database"
from = ["service:payroll"]
to = ["db"]
lease = "30s"
"#;

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) struct Town {
    pub(super) world: World,
    pub(super) payroll: usize,
    pub(super) wiki: usize,
    pub(super) db: usize,
    pub(super) alice: usize,
    pub(super) bob: usize,
}

pub(super) fn town(seed: u64) -> Town {
    let mut world = World::new(seed, POLICY);
    let payroll = world.server("payroll", Some("payroll"), &[]);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    let db = world.server("db", Some("db"), &[]);
    let alice = world.laptop("alice-laptop", &person("alice", &["payroll", "staff"]));
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    world.run(seconds(1));
    Town { world, payroll, wiki, db, alice, bob }
}

#[test]
fn only_what_a_rule_names_opens_and_in_its_direction_alone() {
    let Town { world, payroll, wiki, db, alice, bob } = town(1);
    assert!(world.passes(alice, payroll, "tcp/443"));
    assert!(world.passes(alice, wiki, "tcp/80") && world.passes(alice, wiki, "tcp/443"));
    assert!(world.passes(bob, wiki, "tcp/80"));
    assert!(world.passes(payroll, db, "tcp/5432"));
    let peers = |node: usize| {
        let mut peers: Vec<String> = world.nodes[node].peers.values().map(|peer| peer.name.to_string()).collect();
        peers.sort();
        peers
    };
    assert_eq!(peers(db), ["payroll"], "who is not entitled is not there at all: no key, no address");
    assert_eq!(peers(bob), ["wiki-1"]);
    assert_eq!(peers(payroll), ["alice-laptop", "db"]);
    assert!(world.nodes[payroll].may_open(world.now).iter().all(|(device, _)| *device == world.nodes[db].id()));
    assert!(world.nodes[db].may_open(world.now).is_empty(), "the database opens nothing");
    let own = world.nodes[alice].own.as_ref().expect("told of itself");
    assert_eq!(own.subject_name, "alice@corp.example");
    assert_eq!(own.addresses.len(), 2);
}

#[test]
fn leases_of_thirty_seconds_are_renewed_and_nothing_closes_in_between() {
    let Town { mut world, payroll, wiki, db, alice, bob } = town(2);
    world.run_with(seconds(300), |world| {
        assert!(world.passes(alice, payroll, "tcp/443"), "at {}", world.now.wall);
        assert!(world.passes(payroll, db, "tcp/5432"));
        assert!(world.passes(bob, wiki, "tcp/80"));
    });
    let renewed = world.audit.iter().filter(|event| matches!(event, AuditEvent::LeaseRenewed { .. })).count();
    assert!(
        (45..=55).contains(&renewed),
        "three leases open something, each renewed every 18 to 20 seconds: {renewed}"
    );
}

#[test]
fn a_revoked_session_is_cut_on_every_node_and_the_progress_says_when() {
    let Town { mut world, payroll, wiki, alice, bob, .. } = town(3);
    let session = world.core.find_session("alice@corp.example/alice-laptop").expect("her session");
    let id = world.core.revoke(RevokeTarget::Session(session), "laptop lost", "root", world.now).expect("revoked");
    world.told.clear();
    world.pump();
    assert_eq!(world.told.last(), Some(&world.nodes[alice].id()), "destinations are told before the source");
    assert_eq!(world.told.len(), 3);
    let view = world.core.revocation(id, world.now).expect("remembered");
    assert_eq!((view.nodes.len(), view.acknowledged, view.done), (3, 0, false));
    world.run(Duration::from_millis(100));
    let view = world.core.revocation(id, world.now).expect("remembered");
    assert_eq!((view.acknowledged, view.done), (3, true), "{view:?}");
    assert!((1..=42).contains(&view.elapsed_ms), "two ways of at most 20 ms: {}", view.elapsed_ms);
    for node in [payroll, wiki, alice] {
        let her = world.nodes[alice].id();
        assert!(!world.nodes[node].peers.contains_key(&her));
    }
    assert!(world.nodes[alice].peers.is_empty());
    assert!(world.nodes[alice].session_ended.is_some());
    assert!(world.passes(bob, wiki, "tcp/80"), "the others go on");
    let done = |event: &&AuditEvent| matches!(event, AuditEvent::RevocationDone { acknowledged: 3, expired: 0, .. });
    assert_eq!(world.audit.iter().filter(done).count(), 1);
}

#[test]
fn a_node_that_is_away_counts_as_closed_when_its_deadlines_have_passed() {
    let Town { mut world, wiki, bob, .. } = town(4);
    world.cut_stream(wiki);
    let session = world.core.find_session("bob@corp.example").expect("his session");
    let id = world.core.revoke(RevokeTarget::Session(session), "left", "root", world.now).expect("revoked");
    world.pump();
    world.run(seconds(1));
    let view = world.core.revocation(id, world.now).expect("remembered");
    assert!(!view.done && view.acknowledged == 1, "{view:?}");
    assert!(view.nodes.iter().any(|node| matches!(node.progress, RevocationProgress::Away { .. })));
    assert!(world.lets_in(bob, wiki, "tcp/80"), "it cannot know");
    world.run(seconds(30));
    assert!(!world.lets_in(bob, wiki, "tcp/80"), "its own deadline closed it");
    assert!(world.core.revocation(id, world.now).expect("remembered").done);
}

#[test]
fn rules_subjects_nodes_and_devices_are_revoked_and_lifted() {
    let Town { mut world, payroll, wiki, db, alice, bob } = town(5);
    let rule = world.core.find_rule("staff read the wiki").expect("the rule");
    let revoke = |world: &mut World, target: RevokeTarget| {
        world.core.revoke(target, "test", "root", world.now).expect("revoked");
        world.pump();
        world.run(seconds(1));
    };
    let lift = |world: &mut World, target: RevokeTarget| {
        world.core.lift(target, "root", world.now).expect("lifted");
        world.pump();
        world.run(seconds(1));
    };
    revoke(&mut world, RevokeTarget::Rule(rule.clone()));
    assert!(!world.lets_in(alice, wiki, "tcp/80") && !world.lets_in(bob, wiki, "tcp/80"));
    assert!(world.passes(alice, payroll, "tcp/443"));
    let why = world.core.explain("bob@corp.example", "wiki", None, world.now).expect("explained");
    assert!(!why.allowed && why.reason.contains("revoked"), "{why:?}");
    world.apply_policy(POLICY);
    world.run(seconds(1));
    assert!(!world.lets_in(bob, wiki, "tcp/80"), "applying a policy lifts no revocation");
    lift(&mut world, RevokeTarget::Rule(rule));
    assert!(world.passes(alice, wiki, "tcp/80") && world.passes(bob, wiki, "tcp/80"));

    let node = RevokeTarget::Node(world.nodes[payroll].id());
    revoke(&mut world, node.clone());
    assert!(world.nodes[payroll].peers.is_empty(), "a quarantined node meets nobody");
    assert!(world.nodes[payroll].stream.is_some(), "and stays connected");
    assert!(!world.lets_in(payroll, db, "tcp/5432"));
    lift(&mut world, node);
    assert!(world.passes(alice, payroll, "tcp/443") && world.passes(payroll, db, "tcp/5432"));

    let service = RevokeTarget::Subject(world.core.find_subject("service:payroll").expect("the service"));
    revoke(&mut world, service.clone());
    assert!(!world.lets_in(payroll, db, "tcp/5432") && !world.lets_in(alice, payroll, "tcp/443"));
    lift(&mut world, service);
    assert!(world.passes(payroll, db, "tcp/5432"));

    let device = RevokeTarget::Device(world.nodes[bob].id());
    revoke(&mut world, device.clone());
    assert!(!world.lets_in(bob, wiki, "tcp/80") && world.nodes[bob].peers.is_empty());
    assert!(world.nodes[bob].stream.is_none(), "its stream is closed once it has acknowledged");
    world.connect(bob);
    world.run(seconds(1));
    assert!(world.nodes[bob].stream.is_none(), "its key is refused");
    world.nodes[bob].want = super::node::Want::Join;
    world.connect(bob);
    world.run(seconds(1));
    assert!(world.nodes[bob].refused.as_ref().is_some_and(|why| why.contains("revoked")), "for joining, too");
    lift(&mut world, device);
    world.join(bob, &person("bob", &["staff"]));
    assert!(world.passes(bob, wiki, "tcp/80"));
}

#[test]
fn a_login_session_ends_at_its_time_and_by_signing_out() {
    let Town { mut world, wiki, alice, bob, .. } = town(6);
    world.send(bob, FromNode::Logout);
    world.run(seconds(1));
    assert!(!world.lets_in(bob, wiki, "tcp/80"));
    assert!(world.nodes[bob].session_ended.as_ref().is_some_and(|why| why.contains("signed out")));
    let own = world.nodes[bob].own.as_ref().expect("told of itself");
    assert!(own.keys.is_empty() && own.session_until.is_none());
    world.run(seconds(12 * 3_600));
    assert!(!world.lets_in(alice, wiki, "tcp/80"));
    assert!(world.nodes[alice].session_ended.is_some());
    assert_eq!(world.core.list_sessions(), []);
}

#[test]
fn a_change_of_one_person_decides_that_one_and_tells_only_the_nodes_concerned() {
    let Town { mut world, wiki, alice, .. } = town(7);
    let before = world.core.status().counters;
    world.told.clear();
    let groups = ["staff".to_owned()].into();
    let update = SubjectUpdate { groups: Some(groups), disabled: None };
    world.core.update_subject(super::world::ISSUER, "sub-alice", update, "root", world.now);
    world.pump();
    world.run(Duration::from_millis(200));
    let after = world.core.status().counters;
    assert_eq!(after.decisions - before.decisions, 1);
    assert_eq!(after.snapshots, before.snapshots);
    assert_eq!(after.delta_peers - before.delta_peers, 2, "one peer on payroll, one on her laptop");
    let (her, wiki) = (world.nodes[alice].id(), world.nodes[wiki].id());
    assert!(!world.told.contains(&wiki) && world.told.contains(&her) && world.told.len() == 2, "{:?}", world.told);
}

#[test]
fn a_new_sign_in_decides_one_lease_and_not_everybodys() {
    let Town { mut world, .. } = town(8);
    let before = world.core.status().counters.decisions;
    world.laptop("carol-laptop", &person("carol", &["staff"]));
    let decisions = world.core.status().counters.decisions - before;
    assert!(decisions <= 3, "her join, her stream, at most one full minute: {decisions}");
}

#[test]
fn a_policy_sends_only_differences_and_a_renamed_rule_cuts_nothing() {
    let Town { mut world, payroll, wiki, alice, bob, .. } = town(9);
    world.told.clear();
    world.apply_policy(POLICY);
    world.run(Duration::from_millis(300));
    assert_eq!(world.told, [], "the same policy again tells nobody anything");
    let text = POLICY.replace("staff read the wiki", "everybody in staff reads the wiki");
    world.apply_policy(&text);
    world.run_with(seconds(1), |world| assert!(world.passes(bob, wiki, "tcp/80")));
    let text = text.replace(r#"["tcp/80", "tcp/443"]"#, r#"["tcp/443"]"#);
    world.apply_policy(&text);
    world.run_with(seconds(1), |world| assert!(world.passes(bob, wiki, "tcp/443"), "what stays is not cut"));
    assert!(!world.lets_in(alice, wiki, "tcp/80"));
    assert!(world.passes(alice, payroll, "tcp/443"));
}

#[test]
fn a_destination_that_is_away_is_not_promised_to_anybody() {
    let mut world = World::new(10, POLICY);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    world.cut_stream(wiki);
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    world.run(seconds(5));
    assert!(world.nodes[bob].peers.is_empty());
    let why = world.core.explain("bob@corp.example", "wiki", None, world.now).expect("explained");
    assert!(why.because.iter().any(|line| line.contains("wiki-1 has no stream")), "{why:?}");
    world.connect(wiki);
    world.run(seconds(1));
    assert!(world.passes(bob, wiki, "tcp/80"));
}

#[test]
fn a_machine_that_stays_away_is_forgotten_by_the_nodes_and_comes_back() {
    let Town { mut world, wiki, bob, .. } = town(11);
    world.cut_stream(bob);
    world.run(seconds(5));
    assert!(world.passes(bob, wiki, "tcp/80"), "a lost stream closes nothing at once");
    world.run(seconds(31));
    assert!(
        world.nodes[wiki].peers.values().all(|peer| peer.name.as_str() != "bob-laptop"),
        "an unentitled peer is not there"
    );
    world.connect(bob);
    world.run(seconds(1));
    assert!(world.passes(bob, wiki, "tcp/80"));
}

#[test]
fn a_destination_restarts_and_flows_go_on() {
    let Town { mut world, wiki, bob, .. } = town(12);
    world.cut_stream(wiki);
    world.run(seconds(3));
    world.connect(wiki);
    world.run_with(seconds(60), |world| {
        assert!(world.nodes[bob].may_open(world.now).len() == 2, "the source was never told to forget it");
    });
    assert!(world.passes(bob, wiki, "tcp/80"));
}

#[test]
fn a_rule_that_is_only_watched_says_so_on_every_permission() {
    let text = POLICY.replace(
        "from = [\"group:staff\"]\nto = [\"wiki\"]",
        "from = [\"group:staff\"]\nto = [\"wiki\"]\nwhen = { mfa_within = \"1m\" }\nmode = \"monitor\"\nmonitor_until = \"2026-12-24\"",
    );
    let mut world = World::new(19, &text);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    world.run(seconds(120));
    assert!(world.passes(bob, wiki, "tcp/80"));
    let his = world.nodes[bob].id();
    let mode = &world.nodes[wiki].peers[&his].inbound[0].mode;
    assert!(matches!(mode, Mode::Monitor { would_deny } if !would_deny.is_empty()), "{mode:?}");
    assert!(world.core.list_leases().iter().any(|lease| lease.access.iter().any(|access| access.would_deny.is_some())));
}

#[test]
fn hours_open_at_their_minute_and_close_at_theirs() {
    let text = POLICY.replace(
        "from = [\"group:staff\"]\nto = [\"wiki\"]",
        "from = [\"group:staff\"]\nto = [\"wiki\"]\nwhen = { hours = \"Mon-Fri 09:10-09:15 UTC\" }",
    );
    let mut world = World::new(20, &text);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    let (opens, closes) = (START_WALL + 600_000, START_WALL + 900_000);
    world.run_with(seconds(1_000), |world| {
        let minute = world.now.wall;
        if minute < WallTime::from_millis(opens) || minute >= WallTime::from_millis(closes) {
            assert!(!world.lets_in(bob, wiki, "tcp/80"), "at {minute}");
        }
        if minute > WallTime::from_millis(opens + 1_000) && minute < WallTime::from_millis(closes) {
            assert!(world.passes(bob, wiki, "tcp/80"), "at {minute}");
        }
    });
}

#[test]
fn an_explanation_tells_a_subject_nothing_of_what_it_cannot_have() {
    let Town { mut world, db, bob, .. } = town(22);
    let ask = |world: &mut World, to: &str| {
        world.send(bob, FromNode::Explain { id: 7, to: to.into(), service: None });
        world.run(Duration::from_millis(100));
        world.nodes[bob].explained.pop().expect("an answer")
    };
    let mut there = ask(&mut world, "db");
    let not_there = ask(&mut world, "xy");
    there.what = there.what.replace("db", "xy");
    there.reason = there.reason.replace("db", "xy");
    assert_eq!(there, not_there, "a resource of others reads like one that does not exist");
    let address = world.nodes[db].own.as_ref().expect("told").addresses[0].to_string();
    let by_address = ask(&mut world, &address);
    assert!(!format!("{by_address:?}").contains("db"), "{by_address:?}");
    assert!(ask(&mut world, "wiki.internal").allowed);
}

#[test]
fn a_token_of_an_old_backup_does_not_work_again() {
    let mut world = World::new(25, POLICY);
    let new = crate::stream::NewToken {
        service: None,
        tags: [].into(),
        machine: None,
        networks: vec![],
        uses: 1,
        life: seconds(3_600),
    };
    world.core.create_token(new, "root", world.now).expect("a token");
    world.pump();
    let (loaded, effects) = crate::stream::restored(world.store.loaded.clone(), world.now);
    assert!(loaded.tokens.is_empty());
    assert_eq!(effects.iter().filter(|effect| format!("{effect:?}").contains("DeleteToken")).count(), 1);
}

#[test]
fn whoever_was_cut_is_told_why() {
    let Town { mut world, bob, .. } = town(23);
    let device = world.nodes[bob].device.expect("joined");
    let session = world.core.find_session(&format!("bob@corp.example/{}", world.nodes[bob].name)).expect("a session");
    world.core.revoke(RevokeTarget::Session(session), "laptop lost", "root", world.now).expect("revoked");
    world.pump();
    world.run(seconds(1));
    world.send(bob, FromNode::Explain { id: 7, to: "wiki".into(), service: None });
    world.run(Duration::from_millis(100));
    let why = world.nodes[bob].explained.pop().unwrap_or_else(|| panic!("{device} got no answer"));
    assert!(!why.allowed && why.reason.contains("laptop lost"), "{why:?}");
    assert_eq!(why.fix.as_deref(), Some("postern up"));
}
