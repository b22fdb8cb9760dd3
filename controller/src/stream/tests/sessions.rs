//! Claims about what a login session and its end leave behind, and about people who go.

use std::{collections::BTreeMap, time::Duration};

use postern_common::time::Now;

use super::{
    claims::{POLICY, Town, town},
    joining::{local, waiting},
    world::{ISSUER, URL, World, person},
};
use crate::{
    records::{AuditEvent, Person, RevokeTarget},
    stream::{CoreError, PersonNow, SubjectUpdate},
};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

const DAY: u64 = 86_400;

/// Lets the sweep come after so many days of wall time.
fn sweep_after(world: &mut World, days: u64) {
    world.now = Now {
        monotonic: world.now.monotonic.saturating_add(seconds(31)),
        wall: world.now.wall.saturating_add(seconds(days * DAY)),
    };
    world.core.accept_clock("days went by", world.now).expect("a reason");
    world.core.handle_timeout(world.now);
    world.pump();
}

#[test]
fn changes_of_policy_give_a_machine_that_is_away_no_more_time() {
    let Town { mut world, wiki, bob, .. } = town(30);
    world.cut_stream(bob);
    for round in 0..12 {
        world.apply_policy(&POLICY.replace("staff read the wiki", ["even", "odd"][round % 2]));
        assert!(round < 4 || !world.lets_in(bob, wiki, "tcp/80"), "leases of thirty seconds: round {round}");
        world.run(seconds(10));
    }
    let his = world.nodes[bob].id();
    assert!(world.store.loaded.leases.iter().all(|lease| lease.device != his), "the lease has ended");
    let update = SubjectUpdate { groups: Some(["staff".to_owned(), "more".to_owned()].into()), disabled: None };
    world.core.update_subject(ISSUER, "sub-bob", update, "root", world.now);
    world.pump();
    world.run(seconds(1));
    assert!(world.store.loaded.leases.iter().all(|lease| lease.device != his), "and new groups issue none");
    assert!(!world.lets_in(bob, wiki, "tcp/80"));
    world.connect(bob);
    world.run(seconds(1));
    assert!(world.passes(bob, wiki, "tcp/80"));
}

#[test]
fn many_sessions_that_end_at_once_are_one_look_at_all_machines() {
    let mut world = World::new(32, POLICY);
    for i in 0..16 {
        world.laptop(&format!("laptop-{i}"), &person(&format!("p{}", i % 2), &["staff"]));
    }
    let listed = |world: &World| world.core.status().counters.places_listed;
    let before = listed(&world);
    let update = SubjectUpdate { groups: None, disabled: Some(Some("left".into())) };
    world.core.update_subject(ISSUER, "sub-p0", update, "root", world.now);
    world.pump();
    assert_eq!(world.core.list_sessions().len(), 8);
    assert!(listed(&world) - before <= 2, "{}", listed(&world) - before);
    let before = listed(&world);
    sweep_after(&mut world, 1);
    assert_eq!(world.core.list_sessions().len(), 0);
    assert!(listed(&world) - before <= 2, "{}", listed(&world) - before);
}

#[test]
fn sessions_that_ended_are_forgotten_after_a_month_or_with_their_machine() {
    let Town { mut world, alice, bob, .. } = town(33);
    let of = |world: &World, node: usize| {
        let device = world.nodes[node].id();
        world.store.loaded.sessions.iter().filter(|session| session.device == device).count()
    };
    let session = world.core.find_session("bob@corp.example").expect("his session");
    world.core.revoke(RevokeTarget::Session(session), "lost", "root", world.now).expect("revoked");
    world.pump();
    sweep_after(&mut world, 29);
    assert_eq!((of(&world, alice), of(&world, bob)), (1, 1), "hers ended by its time, his is of the month");
    world.restart();
    sweep_after(&mut world, 2);
    assert_eq!((of(&world, alice), of(&world, bob)), (1, 0));
    let hers = world.nodes[alice].id();
    world.core.remove_device(hers, "root", world.now).expect("removed");
    world.pump();
    assert_eq!(of(&world, alice), 0);
}

/// A person with a local account.
fn local_person(sub: &str, login: &str, groups: &[&str]) -> Person {
    Person { issuer: URL.into(), sub: sub.into(), name: login.into(), ..person(login, groups) }
}

fn local_town(seed: u64) -> (World, usize) {
    let text = POLICY.replace("from = [\"group:staff\"]", "from = [\"user:bob\", \"group:staff\"]");
    let mut world = World::new(seed, &text);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    (world, wiki)
}

#[test]
fn an_account_made_again_under_a_removed_login_is_another_person() {
    let (mut world, wiki) = local_town(34);
    let (before, after) = (local_person("acc_1", "bob", &[]), local_person("acc_2", "bob", &[]));
    let old = world.laptop("old-laptop", &before);
    assert!(world.passes(old, wiki, "tcp/80"));
    let predecessor = world.core.find_subject("bob").expect("one bob");
    world.core.person_removed(URL, "acc_1", "root", world.now);
    world.pump();
    world.run(seconds(1));
    assert!(!world.lets_in(old, wiki, "tcp/80") && world.core.list_sessions().is_empty());
    assert_eq!(world.core.former_holders("bob"), [predecessor]);
    let told = |what: &str| what.contains("user:bob means whoever gets that login next");
    assert!(world.audit.iter().any(|event| matches!(event, AuditEvent::SubjectChanged { what, .. } if told(what))));

    let new = world.laptop("new-laptop", &after);
    assert!(world.passes(new, wiki, "tcp/80"));
    let successor = world.core.find_subject("bob").expect("one bob: an administrator who says bob means this one");
    assert_ne!(successor, predecessor);
    world.core.lift(RevokeTarget::Subject(predecessor), "root", world.now).expect("lifted by mistake");
    world.pump();
    world.run(seconds(1));
    assert!(!world.lets_in(old, wiki, "tcp/80"), "what was theirs stays closed");
}

#[test]
fn a_browsers_sign_in_from_before_the_removal_confirms_nothing() {
    let (mut world, _) = local_town(35);
    let (machine, code) = waiting(&mut world, "late-laptop");
    let shown = world.nodes[machine].key.public();
    world.core.person_removed(URL, "acc_9", "root", world.now); // nobody whom the core has ever seen
    let answer = world.core.confirm_join(code, shown, &local_person("acc_9", "bob", &[]), local(), world.now);
    assert!(matches!(&answer, Err(CoreError::NotPermitted(why)) if why.contains("removed")), "{answer:?}");
}

#[test]
fn a_confirmation_under_way_while_groups_are_taken_away_opens_nothing_of_theirs() {
    let (mut world, wiki) = local_town(37);
    let before = local_person("acc_7", "carol", &["staff"]); // as the page read it from the browser's login session
    let (machine, code) = waiting(&mut world, "carols-laptop");
    let shown = world.nodes[machine].key.public();
    let update = SubjectUpdate { groups: Some([].into()), disabled: None };
    world.core.update_subject(URL, "acc_7", update, "root", world.now); // nobody whom the core has ever seen
    world.core.confirm_join(code, shown, &before, local(), world.now).expect("she may join");
    world.pump();
    world.run(seconds(1));
    assert!(!world.lets_in(machine, wiki, "tcp/80"));
    assert_eq!(world.store.loaded.sessions.last().expect("a session").assurance.groups, Some([].into()));

    world.run(seconds(1));
    world.cut_stream(machine);
    world.connect(machine);
    let again = SubjectUpdate { groups: Some(["staff".to_owned()].into()), disabled: None };
    world.core.update_subject(URL, "acc_7", again, "root", world.now);
    world.pump();
    world.run(seconds(1));
    assert!(world.passes(machine, wiki, "tcp/80"), "what is given back counts at once");
}

#[test]
fn what_the_accounts_say_at_a_start_closes_what_the_core_was_not_told() {
    let (mut world, wiki) = local_town(36);
    let people = ["gone", "disabled", "changed", "same"];
    let laptops = people.map(|name| world.laptop(&format!("{name}-laptop"), &local_person(name, name, &["staff"])));
    let by_provider = world.laptop("provider-laptop", &person("same", &["staff"]));
    assert!(laptops.iter().all(|laptop| world.passes(*laptop, wiki, "tcp/80")));
    let now = |disabled, groups: &[&str]| {
        let groups = groups.iter().map(ToString::to_string).collect();
        PersonNow { groups, disabled, secured: None }
    };
    let accounts: BTreeMap<String, PersonNow> = [
        ("disabled".to_owned(), now(true, &["staff"])),
        ("changed".to_owned(), now(false, &[])),
        ("same".to_owned(), now(false, &["staff"])),
    ]
    .into();
    world.core.reconcile_people(URL, &accounts, "start", world.now);
    world.pump();
    world.run(seconds(1));
    let open = laptops.map(|laptop| world.lets_in(laptop, wiki, "tcp/80"));
    assert_eq!(open, [false, false, false, true], "{people:?}");
    assert!(world.passes(by_provider, wiki, "tcp/80"), "people of a provider are not looked at");
}

#[test]
fn credentials_that_are_set_anew_sign_every_machine_out_and_turn_old_sign_ins_away() {
    let (mut world, wiki) = local_town(38);
    let (hers, others) = (local_person("acc_1", "bob", &[]), local_person("acc_2", "carol", &["staff"]));
    let (laptop, strangers) = (world.laptop("bobs-laptop", &hers), world.laptop("strangers-laptop", &hers));
    let carols = world.laptop("carols-laptop", &others);
    assert!([laptop, strangers, carols].iter().all(|machine| world.passes(*machine, wiki, "tcp/80")));
    let (machine, code) = waiting(&mut world, "third-laptop");
    let shown = world.nodes[machine].key.public();
    world.run(seconds(60));
    assert_eq!(world.core.credentials_set(URL, "acc_1", world.now), 2);
    world.pump();
    world.run(seconds(1));
    let open = [laptop, strangers, carols].map(|machine| world.lets_in(machine, wiki, "tcp/80"));
    assert_eq!(open, [false, false, true], "nobody else is concerned");
    let late = world.core.confirm_join(code, shown, &hers, local(), world.now);
    assert!(matches!(&late, Err(CoreError::NotPermitted(why)) if why.contains("set anew")), "{late:?}");
    world.restart();
    assert!(world.core.overtaken(&hers, world.now).is_some(), "for ever");
    let again = Person { auth_time: Some(world.now.wall.saturating_add(seconds(1))), ..hers };
    assert!(world.core.overtaken(&again, world.now).is_none(), "whoever signs in with the new ones is let in");
}

#[test]
fn a_start_ends_what_was_proven_before_the_credentials_were_set_anew() {
    let (mut world, wiki) = local_town(39);
    let before = local_person("acc_1", "bob", &[]);
    let old = world.laptop("old-laptop", &before);
    world.run(seconds(60));
    let secured = Some(world.now.wall);
    world.run(seconds(60));
    let after = Person { auth_time: Some(world.now.wall), ..before };
    let new = world.laptop("new-laptop", &after);
    let accounts = [("acc_1".to_owned(), PersonNow { groups: [].into(), disabled: false, secured })].into();
    for _ in 0..2 {
        world.core.reconcile_people(URL, &accounts, "start", world.now);
        world.pump();
        world.run(seconds(1));
        assert_eq!([old, new].map(|laptop| world.lets_in(laptop, wiki, "tcp/80")), [false, true]);
    }
}
