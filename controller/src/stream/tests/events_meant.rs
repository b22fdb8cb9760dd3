//! Claims about security events: whom exactly they mean, which of several counts, and what they leave behind.

use std::time::Duration;

use postern_common::{id::SessionId, time::WallTime};
use serde_json::{Value, json};

use super::{
    events::{CAEP, HR, POLICY, SSF, Scene, VAULT, WIKI, bob, scene, watched},
    world::{ISSUER, person},
};
use crate::{
    records::Person,
    signals::{alerts::AlertKind, provider::Overtaking},
    stream::TakenEvent,
};

#[test]
fn a_start_long_after_a_token_forgets_neither_it_nor_what_was_not_delivered_yet() {
    let mut scene = scene();
    let taken = scene.claims(&format!("{CAEP}session-revoked"), json!({}), bob());
    assert_eq!(scene.take(&taken), TakenEvent::Done);
    let eve = json!({"format": "iss_sub", "iss": ISSUER, "sub": "sub-eve"});
    let mut undelivered = scene.claims(&format!("{CAEP}session-revoked"), json!({}), eve);
    undelivered["iat"] = (scene.seconds() - 2).into();
    scene.world.run(Duration::from_secs(200));
    scene.world.restart();
    scene.world.core.watch_events(vec![watched("corp")], scene.world.now);
    for node in [scene.wiki, scene.bob, scene.eve] {
        scene.world.connect(node);
    }
    scene.world.run(Duration::from_secs(5));
    assert_eq!(scene.take(&taken), TakenEvent::Replayed);
    assert!(scene.passes(scene.eve, WIKI));
    assert_eq!(scene.take(&undelivered), TakenEvent::Done);
    assert!(!scene.passes(scene.eve, WIKI));
}

/// A second machine of bob's, confirmed in browser 5; the first was in browser 9.
fn second_of_bob(scene: &mut Scene) -> usize {
    let who = Person { web_session: SessionId::from_bytes([5; 16]), ..person("bob", &["staff"]) };
    scene.world.laptop("bob-second", &who)
}

fn opaque(id: &str) -> Value {
    json!({"format": "opaque", "id": id})
}

#[test]
fn an_event_that_gives_gives_to_whom_it_surely_means_alone() {
    let level = |level: &str| json!({"namespace": "NIST-AAL", "current_level": level});
    let groups = |groups: Value| json!({"claims": {"groups": groups}});
    let eve = json!({"format": "iss_sub", "iss": ISSUER, "sub": "sub-eve"});
    let browsers: std::collections::BTreeSet<_> = [SessionId::from_bytes([5; 16])].into();
    let device = |scene: &Scene, node: usize| opaque(&scene.world.nodes[node].id().to_string());
    // (the subject, whether the pages found the session at the provider in browser 5, what the two machines have afterwards)
    let cases = |scene: &Scene, second: usize| {
        let complex = |name: &str, value: Value| json!({"format": "complex", "user": bob(), name: value});
        [
            (bob(), false, [true, true]),
            (complex("session", opaque("sid-1")), true, [false, true]),
            (complex("session", opaque("unknown here")), false, [false, false]),
            (complex("device", device(scene, second)), false, [false, true]),
            (complex("device", opaque("unknown here")), false, [false, false]),
            (complex("org_unit", opaque("o")), false, [false, false]),
            (json!({"format": "aliases", "identifiers": [bob(), eve]}), false, [false, false]),
        ]
    };
    for case in 0..7 {
        let mut scene = scene();
        let second = second_of_bob(&mut scene);
        let (subject, is_found, expected) = cases(&scene, second)[case].clone();
        let give = |scene: &mut Scene, kind: &str, payload: Value| {
            let claims = scene.claims(&format!("{CAEP}{kind}"), payload, subject.clone());
            let found = if is_found { browsers.clone() } else { Default::default() };
            scene.take_with(&claims, |whom| (whom.browsers, whom.exactly) = (Some(found.clone()), found));
        };
        for (direction, name) in [(Some("increase"), "increase"), (None, "unsaid")] {
            scene.tell("assurance-level-change", level("nist-aal1"), bob());
            assert!(!scene.passes(scene.bob, VAULT) && !scene.passes(second, VAULT));
            let mut up = level("nist-aal2");
            if let Some(direction) = direction {
                up["change_direction"] = direction.into();
            }
            give(&mut scene, "assurance-level-change", up);
            assert_eq!([scene.bob, second].map(|node| scene.passes(node, VAULT)), expected, "{name}: {subject}");
        }
        scene.tell("token-claims-change", groups(json!(["guests"])), bob());
        give(&mut scene, "token-claims-change", groups(json!(["staff"])));
        assert_eq!([scene.bob, second].map(|node| scene.passes(node, WIKI)), expected, "groups: {subject}");
    }
}

#[test]
fn a_name_that_is_not_understood_leaves_the_session_or_device_to_decide_and_a_foreign_one_nobody() {
    let foreign = |sub: &str| json!({"format": "iss_sub", "iss": "https://evil.example", "sub": sub});
    let nobody = json!({"format": "email", "email": "who@corp.example"});
    let browsers: std::collections::BTreeSet<_> = [SessionId::from_bytes([5; 16])].into();
    // (the person, what else is named, whether bob's first and second machine are cut)
    for (user, name, other, cut) in [
        (nobody.clone(), "session", opaque("sid-1"), [false, true]),
        (opaque("nobody's"), "session", opaque("sid-1"), [false, true]),
        (json!({"format": "phone_number", "phone_number": "+1"}), "session", opaque("sid-1"), [false, true]),
        (nobody, "device", opaque("SN1"), [false, true]),
        (foreign("sub-bob"), "session", opaque("sid-1"), [false, false]),
        (foreign("sub-bob"), "device", opaque("SN1"), [false, false]),
        (bob(), "device", foreign("SN1"), [true, true]),
        (bob(), "device", json!({"format": "iss_sub", "iss": ISSUER, "sub": "SN1"}), [false, true]),
    ] {
        for kind in ["session-revoked", "credential-change"] {
            let mut scene = scene();
            let second = second_of_bob(&mut scene);
            let id = scene.world.nodes[second].device.expect("a device");
            scene.world.core.bind_serial(id, "SN1", "root", scene.world.now).expect("bound");
            let subject = json!({"format": "complex", "user": user, name: other});
            let payload = json!({"credential_type": "password", "change_type": "update"});
            let claims = scene.claims(&format!("{CAEP}{kind}"), payload, subject.clone());
            scene.take_with(&claims, |whom| {
                whom.browsers = (name == "session").then(|| browsers.clone());
            });
            // A credential is the person's, on whatever machine.
            let is_anybody = cut != [false, false];
            let cut = if kind == "credential-change" { [is_anybody; 2] } else { cut };
            assert_eq!([scene.bob, second].map(|node| !scene.passes(node, WIKI)), cut, "{kind}: {subject}");
        }
    }
    let mut scene = scene();
    let id = scene.world.nodes[scene.bob].device.expect("a device");
    scene.world.core.bind_serial(id, "SN1", "root", scene.world.now).expect("bound");
    let status = json!({"current_status": "compliant"});
    scene.tell("device-compliance-change", status.clone(), json!({"format": "complex", "device": foreign("SN1")}));
    assert!(!scene.passes(scene.bob, HR), "another issuer's name for a device");
    scene.tell("device-compliance-change", status, json!({"format": "complex", "device": opaque("SN1")}));
    assert!(scene.passes(scene.bob, HR));
}

#[test]
fn credentials_of_whoever_is_signed_in_on_a_device_or_in_a_session_are_asked_for_anew() {
    let payload = json!({"credential_type": "password", "change_type": "revoke"});
    let mut scene = scene();
    let device = opaque(&scene.world.nodes[scene.bob].id().to_string());
    scene.tell("credential-change", payload, json!({"format": "complex", "device": device}));
    assert!(!scene.passes(scene.bob, WIKI) && scene.passes(scene.eve, WIKI));
}

impl Scene {
    /// Whether somebody may confirm another machine with this proof.
    pub(super) fn lets_in(&mut self, who: &Person) -> bool {
        self.number += 1;
        let node = self.world.add_node(&format!("another-{}", self.number), super::node::Want::Join);
        self.world.connect(node);
        self.world.run(Duration::from_millis(200));
        let code = self.world.nodes[node].code.clone().expect("a code").parse().expect("a code");
        let shown = self.world.nodes[node].key.public();
        let from = super::world::LOCAL.parse().expect("an address");
        let confirmed = self.world.core.confirm_join(code, shown, who, from, self.world.now);
        self.world.pump();
        match confirmed {
            Ok(_) => true,
            Err(why) => {
                assert!(why.to_string().contains("sign in again"), "{why}");
                false
            }
        }
    }
}

#[test]
fn a_sign_in_from_before_a_revocation_opens_nothing_ever_after() {
    let proven = |ms: i64| Person { auth_time: Some(WallTime::from_millis(ms)), ..person("bob", &["staff"]) };
    let mut scene = scene();
    let at = scene.seconds();
    scene.tell("session-revoked", json!({"event_timestamp": at}), bob());
    // What is told late of an earlier time opens nothing again.
    scene.tell("session-revoked", json!({"event_timestamp": at - 3}), bob());
    assert!(!scene.lets_in(&proven(at * 1_000)), "within the time in which pages are under way");
    scene.world.run(Duration::from_secs(3_600));
    assert!(!scene.lets_in(&proven(at * 1_000)), "later");
    scene.world.restart();
    scene.world.core.watch_events(vec![watched("corp")], scene.world.now);
    scene.world.run(Duration::from_secs(5));
    assert!(!scene.lets_in(&proven(at * 1_000)), "after a restart");
    let kind = proven(0);
    let why = scene.world.core.overtaken(&kind, scene.world.now);
    assert_eq!(why, Some(Overtaking::SessionRevoked), "nor does a browser's sign-in");
    assert!(scene.lets_in(&proven(at * 1_000 + 1)));
}

#[test]
fn what_another_than_the_provider_calls_somebody_takes_away_alone() {
    let mut scene = scene();
    scene.binding.issuer = "https://other.example".into();
    let level = |level: &str| json!({"namespace": "NIST-AAL", "current_level": level});
    scene.tell("assurance-level-change", level("nist-aal1"), opaque("sub-bob"));
    assert!(!scene.passes(scene.bob, VAULT), "it takes away");
    scene.tell("assurance-level-change", level("nist-aal2"), opaque("sub-bob"));
    assert!(!scene.passes(scene.bob, VAULT), "it gave");
    scene.tell("assurance-level-change", level("nist-aal2"), bob());
    assert!(scene.passes(scene.bob, VAULT));
}

#[test]
fn of_a_stream_and_an_import_the_newer_word_counts() {
    let mut scene = scene();
    let id = scene.world.nodes[scene.bob].device.expect("a device");
    scene.world.core.bind_serial(id, "SN1", "root", scene.world.now).expect("bound");
    let import = |scene: &mut Scene, compliant: bool| {
        let line = json!({"serial": "SN1", "facts": {"compliant": compliant}}).to_string();
        scene.world.core.import_posture(&line, "root", scene.world.now);
        scene.world.pump();
        scene.world.run(Duration::from_secs(1));
    };
    let tell = |scene: &mut Scene, status: &str, at: i64| {
        let payload = json!({"current_status": status, "event_timestamp": at});
        scene.tell("device-compliance-change", payload, json!({"format": "complex", "device": opaque("SN1")}));
        scene.passes(scene.bob, HR)
    };
    let before = scene.seconds() - 10;
    import(&mut scene, false);
    assert!(!tell(&mut scene, "compliant", before), "an older word of a stream opened");
    let later = scene.seconds();
    assert!(tell(&mut scene, "compliant", later));
    assert!(tell(&mut scene, "compliant", later));
    import(&mut scene, false);
    assert!(!scene.passes(scene.bob, HR));
    import(&mut scene, true);
    assert!(scene.passes(scene.bob, HR));
    assert!(tell(&mut scene, "not-compliant", later), "an older word of a stream closed");
}

#[test]
fn a_class_that_the_provider_says_anew_counts_and_proves_nothing_that_the_sign_in_did_not() {
    let mut scene = scene();
    scene.world.apply_policy(&POLICY.replace("mfa_within = \"12h\"", "acr = \"urn:corp:high\""));
    let high = Person { acr: Some("urn:corp:high".into()), ..person("carol", &["staff"]) };
    let carol = scene.world.laptop("carol-laptop", &high);
    let named = |name: &str| json!({"format": "iss_sub", "iss": ISSUER, "sub": format!("sub-{name}")});
    for (class, passes) in [("urn:corp:high", true), ("urn:corp:low", false), ("urn:corp:high", true)] {
        for name in ["carol", "bob"] {
            scene.world.run(Duration::from_secs(2));
            let told = scene.tell("token-claims-change", json!({"claims": {"acr": class}}), named(name));
            assert_eq!(told, TakenEvent::Done);
        }
        assert_eq!(scene.passes(carol, VAULT), passes, "{class}");
        assert!(!scene.passes(scene.bob, VAULT), "an event proved what bob did not");
        assert!(scene.passes(carol, WIKI) && scene.passes(scene.bob, WIKI));
    }
}

#[test]
fn a_paused_stream_vouches_for_nothing() {
    let mut scene = scene();
    let id = scene.world.nodes[scene.bob].device.expect("a device");
    scene.world.core.bind_serial(id, "SN1", "root", scene.world.now).expect("bound");
    let compliant = json!({"current_status": "compliant"});
    scene.tell("device-compliance-change", compliant, json!({"format": "complex", "device": opaque("SN1")}));
    assert!(scene.passes(scene.bob, HR));
    for (status, passes) in [("paused", false), ("enabled", true), ("disabled", false), ("enabled", true)] {
        let claims = scene.claims(&format!("{SSF}stream-updated"), json!({"status": status}), opaque("s"));
        assert_eq!(scene.take(&claims), TakenEvent::Done);
        assert_eq!(scene.passes(scene.bob, HR), passes, "{status}");
    }
}

#[test]
fn of_two_events_of_one_moment_the_one_that_takes_away_counts_in_whatever_order() {
    let level = |level: &str, at: f64| json!({"namespace": "NIST-AAL", "current_level": level, "event_timestamp": at});
    let status = |status: &str, at: f64| json!({"current_status": status, "event_timestamp": at});
    let groups = |group: &str, at: f64| json!({"claims": {"groups": [group]}, "event_timestamp": at});
    let device = || json!({"format": "complex", "device": opaque("SN1")});
    let ready = || {
        let mut scene = scene();
        let id = scene.world.nodes[scene.bob].device.expect("a device");
        scene.world.core.bind_serial(id, "SN1", "root", scene.world.now).expect("bound");
        scene.world.run(Duration::from_secs(5));
        let at = scene.seconds() as f64 - 1.0;
        (scene, at)
    };
    // (how much later the one that gives happened, whether it comes first, whether it counts)
    for (after, is_first, counts) in
        [(0.0, false, false), (0.0, true, false), (0.25, false, true), (0.25, true, true), (-0.25, false, false)]
    {
        let what = format!("{after} s later, {}", if is_first { "first" } else { "last" });
        for (kind, service) in
            [("device-compliance-change", HR), ("token-claims-change", WIKI), ("assurance-level-change", VAULT)]
        {
            let (mut scene, at) = ready();
            let mut both = [(false, at), (true, at + after)];
            if is_first {
                both.reverse();
            }
            for (gives, at) in both {
                let (aal, word, group) =
                    if gives { ("nist-aal2", "compliant", "staff") } else { ("nist-aal1", "not-compliant", "guests") };
                let (payload, subject) = match kind {
                    "device-compliance-change" => (status(word, at), device()),
                    "token-claims-change" => (groups(group, at), bob()),
                    _level => (level(aal, at), bob()),
                };
                scene.tell(kind, payload, subject);
            }
            assert_eq!(scene.passes(scene.bob, service), counts, "{kind}, {what}");
        }
    }
}

#[test]
fn an_event_from_the_future_is_told_once_and_changes_nothing() {
    let mut scene = scene();
    for _ in 0..5 {
        scene.world.core.event_not_yet("corp", scene.world.now);
    }
    scene.world.pump();
    assert_eq!(scene.world.store.alerts.len(), 1);
    assert!(scene.world.store.alerts[0].text.contains("set the clock"), "{}", scene.world.store.alerts[0].text);
    assert!(scene.refusals().contains(&"issued in the future"));
}

#[test]
fn logouts_that_are_not_of_now_raise_one_alert_and_are_counted() {
    let mut scene = scene();
    let from = std::net::IpAddr::from([192, 0, 2, 7]);
    for _ in 0..100 {
        scene.world.core.logout_not_of_now(from, scene.world.now);
    }
    scene.world.pump();
    let alerts: Vec<_> = scene.world.store.alerts.iter().map(|alert| (alert.kind, alert.text.as_str())).collect();
    assert!(
        matches!(alerts[..], [(AlertKind::StreamSilent, text)] if text.contains("set the clock")),
        "one, and it says what to do: {alerts:?}"
    );
}
