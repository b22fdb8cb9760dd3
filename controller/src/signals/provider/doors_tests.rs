//! Claims about doors.

use std::collections::BTreeMap;

use super::*;

const IDP: &str = "https://idp.example";
const WHY: Overtaking = Overtaking::LoggedOut;

fn at(seconds: u64) -> Now {
    let wall = WallTime::from_millis(i64::try_from(seconds).expect("small") * 1_000);
    Now { monotonic: Monotonic::from_millis(seconds * 1_000), wall }
}

fn wall(seconds: u64) -> WallTime {
    at(seconds).wall
}

fn sign_in(sub: &'static str, sid: Option<&'static str>, proven: Option<u64>) -> SignIn<'static> {
    SignIn { issuer: IDP, sub, sid, auth_time: proven.map(wall) }
}

fn doors() -> Doors {
    Doors::load(vec![])
}

fn stored(changes: Vec<StoreChange>, before: Vec<ShutDoor>) -> Vec<ShutDoor> {
    let mut all: BTreeMap<String, ShutDoor> = before.into_iter().map(|door| (door.name.clone(), door)).collect();
    for change in changes {
        match change {
            StoreChange::PutShutDoor(door) => drop(all.insert(door.name.clone(), door)),
            StoreChange::DeleteShutDoor(name) => drop(all.remove(&name)),
            other => panic!("{other:?}"),
        }
    }
    all.into_values().collect()
}

#[test]
fn each_door_is_shut_to_its_own_sign_ins_alone() {
    let asked = [
        sign_in("alice", Some("a"), Some(50)),
        sign_in("alice", Some("b"), Some(50)),
        sign_in("alice", None, Some(50)),
        sign_in("bob", Some("a"), Some(50)), // of another person, by whatever mistake
        sign_in("bob", None, Some(50)),
        SignIn { issuer: "https://other.example", ..sign_in("alice", Some("a"), Some(50)) },
    ];
    for (door, expected) in [
        (Door::Person { sub: "alice" }, [true, true, true, false, false, false]),
        (Door::Unnamed { sub: "alice" }, [false, false, true, false, false, false]),
        (Door::Session { sid: "a" }, [true, false, false, true, false, false]),
        (Door::SessionOf { sid: "a", sub: "alice" }, [true, false, false, false, false, false]),
        (Door::Session { sid: "alice" }, [false; 6]), // a name is of one kind
    ] {
        let mut for_good = doors();
        for_good.shut(IDP, door, wall(100), WHY, wall(100));
        assert_eq!(asked.map(|asked| for_good.before(asked, at(10_000)).is_some()), expected, "{door:?} for good");
        let mut passing = doors();
        passing.shut_in_passing(IDP, door, wall(100), WHY, at(100));
        assert_eq!(asked.map(|asked| passing.before(asked, at(699)).is_some()), expected, "{door:?} in passing");
        assert_eq!(asked.map(|asked| passing.before(asked, at(700)).is_some()), [false; 6], "{door:?} later");
    }
}

#[test]
fn who_signed_in_after_it_comes_in_and_what_is_told_late_opens_nothing() {
    let person = Door::Person { sub: "alice" };
    let mut doors = doors();
    doors.shut(IDP, person, wall(100), Overtaking::SessionRevoked, wall(101));
    assert_eq!(doors.shut(IDP, person, wall(90), WHY, wall(102)), [], "an older one");
    doors.shut_in_passing(IDP, person, wall(100), Overtaking::CredentialChange, at(101));
    doors.shut_in_passing(IDP, person, wall(90), WHY, at(102));
    for (proven, expected) in [(90, true), (100, true), (101, false)] {
        let why = doors.before(sign_in("alice", None, Some(proven)), at(110));
        assert_eq!(why, expected.then_some(Overtaking::SessionRevoked), "{proven}");
    }
}

#[test]
fn a_proof_of_which_nobody_knows_the_time_is_kept_out_while_pages_are_under_way_and_of_a_session_always() {
    let unknown = |sid| sign_in("alice", sid, None);
    let mut doors = doors();
    doors.shut(IDP, Door::Person { sub: "alice" }, wall(100), WHY, wall(100));
    assert_eq!(doors.before(unknown(None), at(100)), None, "for ever would be too long");
    doors.shut_in_passing(IDP, Door::Person { sub: "alice" }, wall(100), WHY, at(100));
    assert_eq!(doors.before(unknown(None), at(189)), Some(WHY));
    assert_eq!(doors.before(unknown(None), at(190)), None);
    doors.shut(IDP, Door::SessionOf { sub: "alice", sid: "a" }, WallTime::NEVER, WHY, wall(100));
    assert_eq!(doors.before(unknown(Some("a")), at(1_000_000)), Some(WHY));
    assert_eq!(doors.before(unknown(Some("b")), at(1_000_000)), None);
}

#[test]
fn what_is_shut_for_good_outlives_a_restart_and_is_forgotten_when_no_session_is_that_old() {
    let mut first = doors();
    let door = Door::Session { sid: "a" };
    let kept = stored(first.shut(IDP, door, wall(100), WHY, wall(100)), vec![]);
    first.shut_in_passing(IDP, Door::Unnamed { sub: "alice" }, wall(100), WHY, at(100));
    let mut again = Doors::load(kept.clone());
    let asked = sign_in("alice", Some("a"), Some(50));
    assert_eq!(again.before(asked, at(0)), Some(WHY));
    let month = KEPT.as_secs();
    assert_eq!(again.sweep(wall(100 + month), 10), []);
    let kept = stored(again.sweep(wall(101 + month), 10), kept);
    assert_eq!((kept.len(), again.before(asked, at(0)), again.forgotten()), (0, None, 0));
}

#[test]
fn there_is_room_for_so_many_and_the_oldest_makes_it() {
    let mut doors = doors();
    let names: Vec<String> = (0..=MAX_SHUT).map(|number| format!("s{number}")).collect();
    let mut kept = Vec::new();
    for sid in &names {
        let changes = doors.shut(IDP, Door::Session { sid }, WallTime::NEVER, WHY, wall(100));
        if changes.len() > 1 || kept.is_empty() {
            kept = stored(changes, kept);
        }
    }
    assert_eq!((doors.shut.all.len(), doors.forgotten()), (MAX_SHUT, 1));
    let of = |sid| SignIn { sid: Some(sid), ..sign_in("alice", None, Some(50)) };
    assert_eq!(doors.before(of(names[0].as_str()), at(100)), None);
    assert_eq!(doors.before(of(names[1].as_str()), at(100)), Some(WHY));
    assert_eq!(doors.before(of(names[MAX_SHUT].as_str()), at(100)), Some(WHY));
    assert_eq!(kept.len(), 1, "what made room is not stored any more");
    for sub in names.iter().take(MAX_PASSING + 1) {
        doors.shut_in_passing(IDP, Door::Person { sub }, wall(100), WHY, at(100));
    }
    let of = |sub| SignIn { sub, ..sign_in("alice", None, Some(50)) };
    assert_eq!(doors.before(of(names[0].as_str()), at(101)), None);
    assert_eq!(doors.before(of(names[MAX_PASSING].as_str()), at(101)), Some(WHY));
    assert_eq!((doors.passing.all.len(), doors.forgotten()), (MAX_PASSING, 2));
}
