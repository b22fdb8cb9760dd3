//! Claims about sign-ins that a logout or an event overtakes, and about what explains a refusal after an event.

use std::time::Duration;

use postern_common::time::WallTime;
use serde_json::{Value, json};

use super::{
    events::{HR, Scene, VAULT, WIKI, bob, scene, watched},
    world::{ISSUER, person},
};
use crate::{
    records::{AuditEvent, Person},
    signals::provider::Overtaking,
};

/// Bob, by a sign-in in a session at the provider, proven at that second.
fn by(sid: Option<&str>, proven: i64) -> Person {
    let auth_time = Some(WallTime::from_millis(proven * 1_000));
    Person { auth_time, provider_session: sid.map(str::to_owned), ..person("bob", &["staff"]) }
}

fn restart(scene: &mut Scene) {
    scene.world.restart();
    scene.world.core.watch_events(vec![watched("corp")], scene.world.now);
    scene.world.run(Duration::from_secs(5));
}

fn logout(scene: &mut Scene, sub: Option<&str>, sid: Option<&str>) -> i64 {
    let at = scene.seconds();
    let issued = WallTime::from_millis(at * 1_000);
    scene.world.core.signed_out_at_provider(ISSUER, sub, sid, issued, scene.world.now);
    scene.world.pump();
    at
}

#[test]
fn a_logout_of_one_session_shuts_out_its_sign_ins_for_good_and_nobody_elses() {
    for sub in [Some("sub-bob"), None] {
        let mut scene = scene();
        let at = logout(&mut scene, sub, Some("a"));
        let turned_away = |scene: &Scene, who: &Person| scene.world.core.overtaken(who, scene.world.now).is_some();
        for _ in 0..2 {
            assert!(!scene.lets_in(&by(Some("a"), at - 60)), "{sub:?}");
            assert!(scene.lets_in(&by(Some("a"), at + 1)), "proven after it: {sub:?}");
            assert!(!scene.lets_in(&Person { auth_time: None, ..by(Some("a"), 0) }), "{sub:?}");
            assert!(scene.lets_in(&by(Some("b"), at - 60)), "another session of his: {sub:?}");
            let eve = Person { provider_session: Some("b".into()), ..person("eve", &["staff"]) };
            assert!(!turned_away(&scene, &eve));
            restart(&mut scene);
        }
        // One that names no session may have been that one, while it was under way.
        let mut scene = super::events::scene();
        let at = logout(&mut scene, sub, Some("a"));
        assert_eq!(turned_away(&scene, &by(None, at - 60)), sub.is_some());
        assert!(!turned_away(&scene, &by(None, at + 1)));
        scene.world.run(Duration::from_secs(600));
        assert!(!turned_away(&scene, &by(None, at - 60)));
        assert!(turned_away(&scene, &by(Some("a"), at - 60)));
    }
}

#[test]
fn a_logout_of_a_person_shuts_out_what_was_proven_before_it_also_after_a_restart() {
    let mut scene = scene();
    let at = logout(&mut scene, Some("sub-bob"), None);
    for _ in 0..2 {
        for (sid, proven, comes_in) in
            [(None, at, false), (Some("a"), at - 60, false), (None, at + 1, true), (Some("a"), at + 1, true)]
        {
            assert_eq!(scene.lets_in(&by(sid, proven)), comes_in, "{sid:?} {}", proven - at);
        }
        scene.world.run(Duration::from_secs(3_600));
        restart(&mut scene);
    }
    let why = scene.world.core.overtaken(&by(None, at), scene.world.now);
    assert_eq!(why, Some(Overtaking::LoggedOut), "the reason is known too");
}

#[test]
fn a_logout_of_somebody_who_never_joined_is_remembered_too() {
    let mut scene = scene();
    let carl = |proven: i64| Person { sub: "sub-carl".into(), name: "carl@corp.example".into(), ..by(None, proven) };
    let at = logout(&mut scene, Some("sub-carl"), None);
    restart(&mut scene);
    assert!(!scene.lets_in(&carl(at)));
    assert!(scene.lets_in(&carl(at + 1)));
}

#[test]
fn a_revoked_session_at_the_provider_shuts_out_its_sign_ins_and_not_those_of_others() {
    let opaque = |id: &str| json!({"format": "opaque", "id": id});
    let both = |user: Value| json!({"format": "complex", "user": user, "session": opaque("a")});
    let nobody = json!({"format": "email", "email": "who@corp.example"});
    let foreign = json!({"format": "iss_sub", "iss": "https://evil.example", "sub": "sub-bob"});
    let eve = json!({"format": "iss_sub", "iss": ISSUER, "sub": "sub-eve"});
    // (the subject, whether bob's sign-ins from before are turned away: in session a, in session b, in one without a name)
    for (subject, expected) in [
        (both(bob()), [true, false, true]),
        (both(nobody), [true, false, false]),
        (json!({"format": "complex", "session": opaque("a")}), [true, false, false]),
        (opaque("a"), [true, false, false]),
        (bob(), [true, true, true]),
        (both(foreign), [false; 3]),
        (both(eve), [false; 3]), // whose session `a` is not his
    ] {
        let mut scene = scene();
        let at = scene.seconds();
        scene.tell("session-revoked", json!({"event_timestamp": at}), subject.clone());
        let all = [by(Some("a"), at), by(Some("b"), at), by(None, at)];
        let turned_away =
            |scene: &Scene| all.each_ref().map(|who| scene.world.core.overtaken(who, scene.world.now).is_some());
        assert_eq!(turned_away(&scene), expected, "{subject}");
        // Later, and after a restart: the session is still over, and nobody is shut out for having had no name.
        scene.world.run(Duration::from_secs(3_600));
        restart(&mut scene);
        let whole = expected[1];
        assert_eq!(turned_away(&scene), [expected[0], whole, whole], "later: {subject}");
        let after = [by(Some("a"), at + 1), by(Some("b"), at + 1), by(None, at + 1)];
        assert!(after.iter().all(|who| scene.world.core.overtaken(who, scene.world.now).is_none()), "{subject}");
    }
}

#[test]
fn what_changes_a_proof_turns_away_the_sign_ins_that_were_under_way_and_says_why() {
    let level = json!({"namespace": "NIST-AAL", "current_level": "nist-aal1", "change_direction": "decrease"});
    for (kind, payload, why) in [
        (
            "credential-change",
            json!({"credential_type": "password", "change_type": "update"}),
            Overtaking::CredentialChange,
        ),
        ("assurance-level-change", level, Overtaking::AssuranceLevelChange),
        ("token-claims-change", json!({"claims": {"groups": ["guests"]}}), Overtaking::TokenClaimsChange),
        ("session-revoked", json!({}), Overtaking::SessionRevoked),
    ] {
        let mut scene = scene();
        let at = scene.seconds();
        scene.tell(kind, payload, bob());
        assert_eq!(scene.world.core.overtaken(&by(None, at), scene.world.now), Some(why), "{kind}");
        assert!(!scene.lets_in(&by(None, at)), "{kind}");
        let told = scene.world.audit.iter().any(|event| match event {
            AuditEvent::JoinRefused { reason, .. } => reason.contains(why.told()),
            _other => false,
        });
        assert!(told, "the audit log does not say why: {kind}");
        assert_eq!(scene.world.core.overtaken(&by(None, at + 5), scene.world.now), None, "{kind}");
        scene.world.run(Duration::from_secs(600));
        let later = scene.world.core.overtaken(&by(None, at), scene.world.now);
        assert_eq!(later.is_some(), why == Overtaking::SessionRevoked, "{kind}");
    }
}

#[test]
fn each_event_flips_its_verdict_and_an_explanation_names_it() {
    let device = || json!({"format": "complex", "device": {"format": "opaque", "id": "SN1"}});
    let status = |status: &str| json!({"current_status": status});
    let level = json!({"namespace": "NIST-AAL", "current_level": "nist-aal1", "change_direction": "decrease"});
    let guests = json!({"claims": {"groups": ["guests"]}});
    let password = json!({"credential_type": "password", "change_type": "update"});
    let why = json!({"reason_admin": {"en": "lost laptop"}});
    // (event, payload, about whom, what closes, what of the same person stays open, what the explanation says beside the event's name)
    for (kind, payload, subject, closes, stays, words) in [
        ("session-revoked", why, bob(), ("wiki", WIKI), None, "lost laptop"),
        ("credential-change", password, bob(), ("wiki", WIKI), None, "their credentials were changed"),
        ("assurance-level-change", level, bob(), ("vault", VAULT), Some(WIKI), "counts for less"),
        ("token-claims-change", guests, bob(), ("wiki", WIKI), None, "the groups of this sign-in"),
        ("device-compliance-change", status("not-compliant"), device(), ("hr", HR), Some(WIKI), "not compliant"),
    ] {
        let mut scene = scene();
        let id = scene.world.nodes[scene.bob].device.expect("a device");
        scene.world.core.bind_serial(id, "SN1", "root", scene.world.now).expect("bound");
        scene.tell("device-compliance-change", status("compliant"), device());
        scene.world.run(Duration::from_secs(2));
        let (resource, service) = closes;
        let explain = |scene: &mut Scene| {
            let now = scene.world.now;
            let told = scene.world.core.explain("bob-laptop", resource, None, now).expect("an explanation");
            let own = scene.world.core.explain_to_node(id, resource, None, now);
            [told, own].map(|said| (said.allowed, format!("{} {}", said.reason, said.because.join("; "))))
        };
        assert!(scene.passes(scene.bob, service), "{kind}");
        for (allowed, text) in explain(&mut scene) {
            assert!(allowed && !text.contains(kind), "before: {text}");
        }
        scene.tell(kind, payload, subject);
        assert!(!scene.passes(scene.bob, service), "{kind}");
        assert!(stays.is_none_or(|service| scene.passes(scene.bob, service)), "{kind} took too much");
        assert!(scene.passes(scene.eve, WIKI), "{kind} took from somebody else");
        for (allowed, text) in explain(&mut scene) {
            assert!(!allowed && text.contains(kind) && text.contains(words), "{kind}: {text}");
        }
        // Of what there is not, the same is said: nobody learns from it which names there are.
        let nowhere = scene.world.core.explain_to_node(id, "nowhere", None, scene.world.now);
        assert_eq!((nowhere.allowed, nowhere.rule), (false, None));
    }
}

#[test]
fn a_machine_of_which_a_silent_stream_told_is_explained_so() {
    let mut scene = scene();
    let id = scene.world.nodes[scene.bob].device.expect("a device");
    scene.world.core.bind_serial(id, "SN1", "root", scene.world.now).expect("bound");
    let device = json!({"format": "complex", "device": {"format": "opaque", "id": "SN1"}});
    scene.tell("device-compliance-change", json!({"current_status": "compliant"}), device);
    assert!(scene.passes(scene.bob, HR));
    scene.world.run(Duration::from_secs(700));
    assert!(!scene.passes(scene.bob, HR));
    let said = scene.world.core.explain_to_node(id, "hr", None, scene.world.now);
    assert!(said.because.iter().any(|why| why.contains("corp") && why.contains("silent")), "{said:?}");
    let alerts: Vec<&str> = scene.world.store.alerts.iter().map(|alert| alert.text.as_str()).collect();
    assert!(alerts.contains(&"the stream of events corp has been silent for 10 min"), "{alerts:?}");
}
