//! Claims about browsers: a machine that is stopped takes with it the sign-in that let it in.

use std::time::Duration;

use postern_common::id::SessionId;

use super::{
    claims::POLICY,
    joining::{local, waiting},
    world::{World, person},
};
use crate::{
    records::{Person, Quarantined, RevokeTarget},
    stream::{CoreError, SubjectUpdate},
    web::doors::TurnedAway,
};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Alice, in a browser of that number.
fn alice_in(browser: u8) -> Person {
    Person { web_session: SessionId::from_bytes([browser; 16]), ..person("alice", &["staff"]) }
}

/// A new machine asks to join, and somebody confirms it.
fn confirm(world: &mut World, name: &str, who: &Person) -> Result<(), CoreError> {
    let (node, code) = waiting(world, name);
    let shown = world.nodes[node].key.public();
    let done = world.core.confirm_join(code, shown, who, local(), world.now).map(drop);
    world.pump();
    world.run(seconds(1));
    done
}

fn is_cut_off(done: &Result<(), CoreError>) -> bool {
    matches!(done, Err(CoreError::NotPermitted(why)) if why.contains("sign in again"))
}

#[test]
fn who_has_a_stolen_laptop_lets_no_other_machine_in_with_its_browser() {
    let stops: [fn(&mut World, RevokeTarget); 3] = [
        |world, target| world.core.revoke(target, "stolen", "root", world.now).map(drop).expect("revoked"),
        |world, target| {
            let RevokeTarget::Device(device) = target else { panic!("a device") };
            world.core.revoke(RevokeTarget::Node(device), "stolen", "root", world.now).map(drop).expect("held");
        },
        // As a limit does it, which no command asked for.
        |world, target| {
            let RevokeTarget::Device(device) = target else { panic!("a device") };
            let held = Quarantined::Device(device);
            world.core.quarantine(held, "it scans", "limit \"scan\"", world.now).map(drop).expect("held");
        },
    ];
    for (seed, stop) in stops.into_iter().enumerate() {
        let mut world = World::new(140 + seed as u64, POLICY);
        let (on_laptop, on_phone) = (alice_in(1), alice_in(2));
        let laptop = world.laptop("alice-laptop", &on_laptop);
        world.laptop("alice-phone", &on_phone);
        world.run(seconds(60));
        let device = RevokeTarget::Device(world.nodes[laptop].id());
        assert_eq!(world.core.browsers_behind(&device), [on_laptop.web_session].into(), "the shell ends its cookie");
        stop(&mut world, device.clone());
        world.pump();
        assert!(is_cut_off(&confirm(&mut world, "alice-laptop-2", &on_laptop)), "{seed}: a request under way");
        assert!(world.core.admit_person(&on_laptop, world.now).is_some(), "{seed}: nor does it get to the pages");
        world.run(seconds(3_600));
        world.restart();
        assert!(is_cut_off(&confirm(&mut world, "alice-laptop-3", &on_laptop)), "{seed}: later, after a restart");
        confirm(&mut world, "alice-tablet", &on_phone).expect("another browser of hers is another sign-in");
        let proven = Person { auth_time: Some(world.now.wall), ..on_laptop.clone() };
        confirm(&mut world, "alice-new", &proven).expect("proven after that");
        drop(world.core.lift(RevokeTarget::Device(world.nodes[laptop].id()), "root", world.now));
        drop(world.core.release(&Quarantined::Device(world.nodes[laptop].id()), "root", world.now));
        confirm(&mut world, "alice-old", &on_laptop).expect("lifted");
    }
}

#[test]
fn a_session_that_ended_on_a_stolen_laptop_takes_its_browser_too() {
    let mut world = World::new(144, POLICY);
    let on_laptop = alice_in(1);
    let laptop = world.laptop("alice-laptop", &on_laptop);
    let session = world.core.find_session("alice@corp.example/alice-laptop").expect("her session");
    world.core.end_own_session(session, &on_laptop, world.now).expect("she signs out");
    world.pump();
    world.restart();
    let device = RevokeTarget::Device(world.nodes[laptop].id());
    assert_eq!(world.core.browsers_behind(&device), [on_laptop.web_session].into());
    world.core.revoke(device, "stolen", "root", world.now).expect("revoked");
    world.pump();
    assert!(is_cut_off(&confirm(&mut world, "alice-laptop-2", &on_laptop)));
}

#[test]
fn a_revoked_session_takes_its_browser_and_the_pages_under_way_there() {
    let mut world = World::new(145, POLICY);
    let (one, other) = (alice_in(1), alice_in(2));
    world.laptop("alice-laptop", &one);
    let session = world.core.find_session("alice@corp.example/alice-laptop").expect("her session");
    let target = RevokeTarget::Session(session);
    let browsers = world.core.browsers_behind(&target);
    assert_eq!(browsers, [one.web_session].into());
    world.core.revoke(target, "stolen", "root", world.now).expect("revoked");
    world.core.cut_browsers(&browsers, world.now);
    world.pump();
    assert!(is_cut_off(&confirm(&mut world, "alice-laptop-2", &one)));
    confirm(&mut world, "alice-phone", &other).expect("another browser");
}

#[test]
fn somebody_who_is_disabled_gets_no_further_than_the_door_of_the_pages() {
    let mut world = World::new(147, POLICY);
    let alice = alice_in(1);
    assert_eq!(world.core.admit_person(&alice, world.now), None);
    let update = |disabled| SubjectUpdate { groups: None, disabled: Some(disabled) };
    world.core.update_subject(&alice.issuer, &alice.sub, update(Some("on leave".into())), "root", world.now);
    let proven = Person { auth_time: Some(world.now.wall), ..alice.clone() };
    for who in [&alice, &proven] {
        assert_eq!(world.core.admit_person(who, world.now), Some(TurnedAway::Stopped("on leave".into())));
    }
    world.core.update_subject(&alice.issuer, &alice.sub, update(None), "root", world.now);
    assert_eq!(world.core.admit_person(&proven, world.now), None, "enabled again");
}
