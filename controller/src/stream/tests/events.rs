//! Claims about security events: whom they concern, what they change, and what they never change.

use std::time::Duration;

use postern_common::{id::SessionId, time::WallTime};
use serde_json::{Value, json};

use super::world::{ISSUER, START_WALL, World, person};
use crate::{
    records::{AuditEvent, Person},
    signals::{
        alerts::AlertKind,
        events::{
            Binding, SpeaksOfDevices, Whom,
            memory::{Look, Watched},
            set::{self, Expected},
        },
    },
    stream::TakenEvent,
};

pub(super) const POLICY: &str = r#"
[posture.content]
compliant = true

[resource.wiki]
nodes = ["tag:wiki"]
ports = ["tcp/80", "tcp/81", "tcp/82"]

[resource.vault]
nodes = ["tag:wiki"]
ports = ["tcp/443"]

[resource.hr]
nodes = ["tag:wiki"]
ports = ["tcp/90"]

[[access]]
name = "staff read the wiki"
from = ["group:staff"]
to = ["wiki"]

[[access]]
name = "staff open the vault"
from = ["group:staff"]
to = ["vault"]
when = { mfa_within = "12h" }

[[access]]
name = "staff with good machines see hr"
from = ["group:staff"]
to = ["hr"]
when = { posture = "content" }
"#;
pub(super) const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";
pub(super) const SSF: &str = "https://schemas.openid.net/secevent/ssf/event-type/";
pub(super) const WIKI: &str = "tcp/80";
pub(super) const VAULT: &str = "tcp/443";
pub(super) const HR: &str = "tcp/90";

pub(super) struct Scene {
    pub(super) world: World,
    pub(super) wiki: usize,
    pub(super) bob: usize,
    pub(super) eve: usize,
    pub(super) binding: Binding,
    pub(super) number: u64,
}

pub(super) fn watched(name: &str) -> Watched {
    let (silent_after, max_age) = (Duration::from_secs(600), Duration::from_secs(86_400));
    Watched { name: name.into(), delivery: "push", silent_after, max_age }
}

pub(super) fn scene() -> Scene {
    let mut world = World::new(47, POLICY);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    let bob = world.laptop("bob-laptop", &person("bob", &["staff"]));
    let eve = world.laptop("eve-laptop", &person("eve", &["staff"]));
    world.core.watch_events(vec![watched("corp"), watched("other")], world.now);
    world.pump();
    world.run(Duration::from_secs(2));
    let binding = Binding {
        name: "corp".into(),
        issuer: ISSUER.into(),
        people_of: Some(ISSUER.into()),
        devices: SpeaksOfDevices::Yes,
        groups_claim: "groups".into(),
    };
    Scene { world, wiki, bob, eve, binding, number: 0 }
}

pub(super) fn bob() -> Value {
    json!({"format": "iss_sub", "iss": ISSUER, "sub": "sub-bob"})
}

impl Scene {
    pub(super) fn passes(&self, node: usize, service: &str) -> bool {
        self.world.passes(node, self.wiki, service)
    }

    pub(super) fn seconds(&self) -> i64 {
        self.world.now.wall.as_millis() / 1_000
    }

    pub(super) fn claims(&mut self, kind: &str, payload: Value, subject: Value) -> Value {
        self.number += 1;
        json!({"iss": ISSUER, "aud": "us", "iat": self.seconds(), "jti": format!("j-{}", self.number), "sub_id": subject,
            "events": {kind: payload}})
    }

    /// Has the stream tell something, as a token that holds.
    pub(super) fn tell(&mut self, kind: &str, payload: Value, subject: Value) -> TakenEvent {
        let claims = self.claims(&format!("{CAEP}{kind}"), payload, subject);
        self.take(&claims)
    }

    pub(super) fn take(&mut self, claims: &Value) -> TakenEvent {
        self.take_with(claims, |_| ())
    }

    /// As [`Scene::take`], with what the pages add to whom it names.
    pub(super) fn take_with(&mut self, claims: &Value, add: impl FnOnce(&mut Whom)) -> TakenEvent {
        let expected = Expected { issuer: ISSUER, audience: "us", stream_id: None, max_age: 86_400, stream: "corp" };
        let event = set::read(claims.to_string().as_bytes(), expected, self.world.now.wall).expect("an event");
        let (_, mut whom) = self.world.core.look_at_event(&self.binding, &event);
        add(&mut whom);
        let taken = self.world.core.take_event(&self.binding, &event, Some(whom), self.world.now);
        self.world.pump();
        self.world.run(Duration::from_secs(1));
        taken
    }

    pub(super) fn refusals(&self) -> Vec<&str> {
        let reason = |event: &'_ AuditEvent| match event {
            AuditEvent::SignalRefused { reason, .. } => Some(reason.clone().leak() as &str),
            _other => None,
        };
        self.world.audit.iter().filter_map(reason).collect()
    }
}

#[test]
fn a_revoked_session_is_cut_and_who_signs_in_after_it_stays() {
    let mut scene = scene();
    let at = scene.seconds();
    assert!(scene.passes(scene.bob, WIKI) && scene.passes(scene.eve, WIKI));
    assert_eq!(scene.tell("session-revoked", json!({"event_timestamp": at}), bob()), TakenEvent::Done);
    assert!(!scene.passes(scene.bob, WIKI) && scene.passes(scene.eve, WIKI));
    // He signs in anew; then the transmitter tells of the same moment once more.
    let later = Person { auth_time: Some(WallTime::from_millis((at + 1) * 1_000)), ..person("bob", &["staff"]) };
    scene.world.join(scene.bob, &later);
    assert!(scene.passes(scene.bob, WIKI));
    scene.tell("session-revoked", json!({"event_timestamp": at}), bob());
    assert!(scene.passes(scene.bob, WIKI), "a sign-in after the event was ended");
}

#[test]
fn a_sign_in_from_before_opens_no_session_behind_the_event() {
    let mut scene = scene();
    scene.tell("session-revoked", json!({}), bob());
    // A page that was under way comes with the old proof.
    let node = scene.world.add_node("bob-second", super::node::Want::Join);
    scene.world.connect(node);
    scene.world.run(Duration::from_millis(200));
    let code = scene.world.nodes[node].code.clone().expect("a code").parse().expect("a code");
    let shown = scene.world.nodes[node].key.public();
    let from = super::world::LOCAL.parse().expect("an address");
    let who = person("bob", &["staff"]);
    let refused = scene.world.core.confirm_join(code, shown, &who, from, scene.world.now);
    assert!(refused.is_err_and(|error| error.to_string().contains("sign in again")));
}

#[test]
fn a_token_works_once_also_after_a_restart_and_an_older_one_than_the_memory_never() {
    let mut scene = scene();
    let claims = scene.claims(&format!("{CAEP}session-revoked"), json!({}), bob());
    assert_eq!(scene.take(&claims), TakenEvent::Done);
    let later = Person { auth_time: Some(WallTime::from_millis(START_WALL + 60_000)), ..person("bob", &["staff"]) };
    scene.world.run(Duration::from_secs(60));
    scene.world.join(scene.bob, &later);
    assert_eq!(scene.take(&claims), TakenEvent::Replayed);
    scene.world.restart();
    scene.world.core.watch_events(vec![watched("corp")], scene.world.now);
    scene.world.run(Duration::from_secs(5));
    assert_eq!(scene.take(&claims), TakenEvent::Replayed);
    assert!(scene.refusals().contains(&"replayed"));
    // A new life of the controller knows no names, and takes nothing from before it.
    scene.world.store.loaded.seen_events.clear();
    scene.world.store.loaded.event_streams.clear();
    scene.world.store.loaded.meta.epoch = scene.world.now.wall.as_millis().unsigned_abs();
    scene.world.restart();
    scene.world.core.watch_events(vec![watched("corp")], scene.world.now);
    assert_eq!(scene.take(&claims), TakenEvent::Forgotten);
}

#[test]
fn a_stream_speaks_of_its_providers_people_alone() {
    let mut scene = scene();
    let kind = format!("{CAEP}session-revoked");
    scene.tell("session-revoked", json!({}), json!({"format": "iss_sub", "iss": "https://evil", "sub": "sub-bob"}));
    scene.tell("session-revoked", json!({}), json!({"format": "phone_number", "phone_number": "+12065550100"}));
    scene.tell("session-revoked", json!({}), json!({"format": "opaque", "id": "nobody"}));
    scene.tell("session-revoked", json!({}), json!({"format": "complex", "tenant": {"format": "opaque", "id": "t"}}));
    scene.binding = Binding { people_of: Some("https://another".into()), name: "other".into(), ..scene.binding };
    scene.tell("session-revoked", json!({}), json!({"format": "opaque", "id": "sub-bob"}));
    scene.tell("session-revoked", json!({}), json!({"format": "email", "email": "bob@corp.example"}));
    scene.binding.people_of = None;
    let claims = scene.claims(&kind, json!({}), bob());
    assert_eq!(scene.take(&claims), TakenEvent::Done, "it is acknowledged");
    assert!(scene.passes(scene.bob, WIKI) && scene.passes(scene.eve, WIKI));
    let refusals = scene.refusals();
    for why in ["nobody here is meant", "the stream may not speak of people"] {
        assert!(refusals.contains(&why), "{refusals:?}");
    }
}

#[test]
fn a_person_is_found_by_every_name_and_a_device_narrows() {
    for subject in [
        json!({"format": "opaque", "id": "sub-bob"}),
        json!({"format": "email", "email": "BOB@corp.example"}),
        json!({"format": "account", "uri": "acct:bob@corp.example"}),
        json!({"format": "aliases", "identifiers": [{"format": "phone_number", "phone_number": "+1"}, bob()]}),
        json!({"format": "complex", "user": bob(), "tenant": {"format": "opaque", "id": "t"}}),
        json!({"format": "complex", "user": bob(), "device": {"format": "opaque", "id": "unknown here"}}),
    ] {
        let mut scene = scene();
        scene.tell("session-revoked", json!({}), subject.clone());
        assert!(!scene.passes(scene.bob, WIKI) && scene.passes(scene.eve, WIKI), "{subject}");
    }
    let mut scene = scene();
    let second = scene.world.laptop("bob-second", &person("bob", &["staff"]));
    let device = scene.world.nodes[second].id().to_string();
    let device = json!({"format": "opaque", "id": device});
    scene.tell("session-revoked", json!({}), json!({"format": "complex", "user": bob(), "device": device}));
    assert!(scene.passes(scene.bob, WIKI) && !scene.passes(second, WIKI));
}

#[test]
fn a_session_at_the_provider_means_what_was_confirmed_in_its_browsers_alone() {
    let browser = |number: u8| SessionId::from_bytes([number; 16]);
    let in_browser = |number: u8| Person { web_session: browser(number), ..person("bob", &["staff"]) };
    let subject = |session: Value| json!({"format": "complex", "user": bob(), "session": session});
    let session = json!({"format": "opaque", "id": "sid-1"});
    // (the subject, the browsers that the pages found, whether what was confirmed in browser 9 and in browser 5 ends)
    for (subject, found, ends) in [
        (subject(session.clone()), Some(vec![browser(5)]), [false, true]),
        (json!({"format": "complex", "session": session.clone()}), Some(vec![browser(5)]), [false, true]),
        (json!({"format": "complex", "session": session.clone()}), Some(vec![]), [false, false]),
        (json!({"format": "complex", "session": session.clone()}), None, [false, false]),
        (session.clone(), Some(vec![browser(5)]), [false, true]),
        // Nobody knows which session that is: all of the person's.
        (subject(session), Some(vec![]), [true, true]),
    ] {
        let mut scene = scene();
        let second = scene.world.laptop("bob-second", &in_browser(5));
        let claims = scene.claims(&format!("{CAEP}session-revoked"), json!({}), subject.clone());
        let expected = Expected { issuer: ISSUER, audience: "us", stream_id: None, max_age: 86_400, stream: "corp" };
        let event = set::read(claims.to_string().as_bytes(), expected, scene.world.now.wall).expect("an event");
        let (_, mut whom) = scene.world.core.look_at_event(&scene.binding, &event);
        whom.browsers = found.map(|found| found.into_iter().collect());
        scene.world.core.take_event(&scene.binding, &event, Some(whom), scene.world.now);
        scene.world.pump();
        scene.world.run(Duration::from_secs(1));
        let ended = [scene.bob, second].map(|node| !scene.passes(node, WIKI));
        assert_eq!(ended, ends, "{subject}");
    }
}

#[test]
fn changed_credentials_ask_for_a_fresh_sign_in_and_one_from_after_it_is_enough() {
    let mut scene = scene();
    let change = |at: i64| json!({"credential_type": "password", "change_type": "update", "event_timestamp": at});
    let at = scene.seconds();
    scene.tell("credential-change", change(at), bob());
    assert!(!scene.passes(scene.bob, WIKI) && scene.passes(scene.eve, WIKI));
    let again = Person { auth_time: Some(WallTime::from_millis((at + 5) * 1_000)), ..person("bob", &["staff"]) };
    scene.world.run(Duration::from_secs(10));
    scene.world.join(scene.bob, &again);
    assert!(scene.passes(scene.bob, WIKI));
    scene.tell("credential-change", change(at + 2), bob());
    assert!(scene.passes(scene.bob, WIKI), "it was before the sign-in");
    // What is told late of an earlier time asks for no less than what is known.
    let late = scene.seconds();
    scene.tell("credential-change", change(late), json!({"format": "email", "email": "bob@corp.example"}));
    scene.tell("credential-change", change(at), bob());
    assert!(!scene.passes(scene.bob, WIKI));
}

#[test]
fn a_level_falls_and_rises_and_never_above_what_was_verified() {
    let mut scene = scene();
    let level = |level: &str, direction: &str| json!({"namespace": "NIST-AAL", "current_level": level, "change_direction": direction});
    assert!(scene.passes(scene.bob, VAULT));
    scene.tell("assurance-level-change", level("nist-aal1", "decrease"), bob());
    assert!(!scene.passes(scene.bob, VAULT) && scene.passes(scene.bob, WIKI) && scene.passes(scene.eve, VAULT));
    // A name takes away and does not give back.
    let email = json!({"format": "email", "email": "bob@corp.example"});
    scene.tell("assurance-level-change", level("nist-aal2", "increase"), email);
    assert!(!scene.passes(scene.bob, VAULT));
    scene.tell("assurance-level-change", level("nist-aal2", "increase"), bob());
    assert!(scene.passes(scene.bob, VAULT), "what was verified counts again");
    // An older one undoes nothing.
    let old = scene.seconds() - 100;
    let mut older = level("nist-aal1", "decrease");
    older["event_timestamp"] = old.into();
    scene.tell("assurance-level-change", older, bob());
    assert!(scene.passes(scene.bob, VAULT));

    // Who proved one factor has one, whatever is told.
    let weak = Person { amr: vec!["pwd".into()], ..person("carl", &["staff"]) };
    let carl = scene.world.laptop("carl-laptop", &weak);
    let carl_id = json!({"format": "iss_sub", "iss": ISSUER, "sub": "sub-carl"});
    for up in ["nist-aal2", "nist-aal3"] {
        scene.tell("assurance-level-change", level(up, "increase"), carl_id.clone());
        assert!(!scene.passes(carl, VAULT) && scene.passes(carl, WIKI), "{up}");
    }
}

#[test]
fn new_groups_are_decided_at_once_and_a_name_alone_makes_them_unknown() {
    let mut scene = scene();
    let groups = |groups: Value| json!({"claims": {"groups": groups}});
    scene.tell("token-claims-change", groups(json!(["guests"])), bob());
    assert!(!scene.passes(scene.bob, WIKI) && scene.passes(scene.eve, WIKI));
    scene.tell("token-claims-change", groups(json!(["staff"])), bob());
    assert!(scene.passes(scene.bob, WIKI));
    let mut older = groups(json!(["guests"]));
    older["event_timestamp"] = (scene.seconds() - 50).into();
    scene.tell("token-claims-change", older, bob());
    assert!(scene.passes(scene.bob, WIKI), "an older event undid a newer one");
    scene.tell("token-claims-change", json!({"claims": {"shoe_size": 44}}), bob());
    assert!(scene.passes(scene.bob, WIKI));
    let email = json!({"format": "email", "email": "bob@corp.example"});
    scene.tell("token-claims-change", groups(json!(["staff"])), email);
    assert!(!scene.passes(scene.bob, WIKI), "an address gave groups");
}

#[test]
fn a_device_is_compliant_while_the_stream_that_says_so_speaks() {
    let mut scene = scene();
    let id = scene.world.nodes[scene.bob].device.expect("a device");
    scene.world.core.bind_serial(id, "SN1", "root", scene.world.now).expect("bound");
    let device = json!({"format": "complex", "device": {"format": "opaque", "id": "SN1"}});
    let status = |status: &str| json!({"previous_status": "compliant", "current_status": status});
    assert!(!scene.passes(scene.bob, HR));
    scene.tell("device-compliance-change", status("compliant"), device.clone());
    assert!(scene.passes(scene.bob, HR) && !scene.passes(scene.eve, HR));
    scene.tell("device-compliance-change", status("not-compliant"), device.clone());
    assert!(!scene.passes(scene.bob, HR) && scene.passes(scene.bob, WIKI));
    scene.tell("device-compliance-change", status("compliant"), device.clone());
    // Silent: nobody knows whether it still is.
    scene.world.run(Duration::from_secs(590));
    assert!(scene.passes(scene.bob, HR));
    scene.world.run(Duration::from_secs(30));
    assert!(!scene.passes(scene.bob, HR));
    let silent = scene.world.store.alerts.iter().filter(|alert| alert.kind == AlertKind::StreamSilent).count();
    assert_eq!(silent, 2, "one for each stream, once");
    scene.world.run(Duration::from_secs(3_600));
    let claims = scene.claims(&format!("{SSF}verification"), json!({}), json!({"format": "opaque", "id": "s"}));
    assert_eq!(scene.take(&claims), TakenEvent::Done);
    assert!(scene.passes(scene.bob, HR), "it speaks again");
    assert_eq!(scene.world.store.alerts.len(), 3);
    assert!(scene.world.store.alerts[2].text.contains("speaks again"), "{}", scene.world.store.alerts[2].text);
    // A stream that may not speak of devices changes nothing.
    scene.binding.devices = SpeaksOfDevices::No;
    scene.tell("device-compliance-change", status("not-compliant"), device);
    assert!(scene.passes(scene.bob, HR));
}

#[test]
fn a_verification_that_nobody_asked_for_is_refused_and_a_stream_that_stops_is_told() {
    let mut scene = scene();
    let stream = || json!({"format": "opaque", "id": "s"});
    let state = scene.world.core.expect_verification("corp");
    let kind = format!("{SSF}verification");
    let wrong = scene.claims(&kind, json!({"state": "another"}), stream());
    assert_eq!(scene.take(&wrong), TakenEvent::NobodyAsked);
    let right = scene.claims(&kind, json!({"state": state}), stream());
    assert_eq!(scene.take(&right), TakenEvent::Done);
    let updated = json!({"status": "paused", "reason": "maintenance"});
    let paused = scene.claims(&format!("{SSF}stream-updated"), updated, stream());
    scene.take(&paused);
    let view = scene.world.core.list_event_streams();
    assert_eq!((view[0].status.word(), view[0].why.as_deref()), ("paused", Some("maintenance")));
    assert_eq!(scene.world.store.alerts.len(), 1);
}

#[test]
fn a_flood_of_refusals_is_a_line_a_minute() {
    let mut scene = scene();
    let before = scene.world.audit.len();
    for _ in 0..1_000 {
        scene.world.core.refuse_signal("events corp", "not signed by the transmitter", None, scene.world.now);
    }
    scene.world.run(Duration::from_secs(120));
    let lines: Vec<u64> = scene.world.audit[before..]
        .iter()
        .filter_map(|event| match event {
            AuditEvent::SignalRefused { times, .. } => Some(*times),
            _other => None,
        })
        .collect();
    assert_eq!(lines, [1, 999]);
}

#[test]
fn an_event_decides_its_subject_alone() {
    let mut scene = scene();
    for number in 0..20 {
        scene.world.laptop(&format!("laptop-{number}"), &person(&format!("p{number}"), &["staff"]));
    }
    let before = scene.world.core.status().counters.decisions;
    let claims = json!({"claims": {"groups": ["guests"]}});
    let event = scene.claims(&format!("{CAEP}token-claims-change"), claims, bob());
    let expected = Expected { issuer: ISSUER, audience: "us", stream_id: None, max_age: 86_400, stream: "corp" };
    let event = set::read(event.to_string().as_bytes(), expected, scene.world.now.wall).expect("an event");
    let (look, whom) = scene.world.core.look_at_event(&scene.binding, &event);
    assert_eq!(look, Look::New);
    scene.world.core.take_event(&scene.binding, &event, Some(whom), scene.world.now);
    assert_eq!(scene.world.core.status().counters.decisions - before, 1);
}
