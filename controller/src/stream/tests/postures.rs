//! Claims about postures: a changed fact opens and closes for that device alone; age, order and signature count.

use std::time::Duration;

use postern_common::{
    key::DeviceSigningKey,
    posture::{Facts, PostureDocument, sign_posture},
    protocol::{FromNode, ToNode},
};

use super::world::{World, person};
use crate::{records::AuditEvent, stream::PostureImport};

const POLICY: &str = r#"
[posture.managed]
firewall = true
max_age = "2m"

[resource.wiki]
nodes = ["tag:wiki"]
ports = ["tcp/80"]

[[access]]
name = "staff read the wiki"
from = ["group:staff"]
to = ["wiki"]
when = { posture = "managed" }
"#;

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn firewall(on: bool) -> Option<Facts> {
    Some(Facts { firewall: Some(on), ..Facts::default() })
}

struct Scene {
    world: World,
    wiki: usize,
    bob: usize,
    eve: usize,
}

/// Bob's laptop has a firewall, Eve's does not say.
fn scene(policy: &str) -> Scene {
    let mut world = World::new(31, policy);
    let wiki = world.server("wiki-1", Some("wiki"), &["wiki"]);
    let bob = world.add_node("bob-laptop", super::node::Want::Join);
    world.nodes[bob].facts = firewall(true);
    world.join(bob, &person("bob", &["staff"]));
    let eve = world.laptop("eve-laptop", &person("eve", &["staff"]));
    world.run(seconds(1));
    Scene { world, wiki, bob, eve }
}

impl Scene {
    fn passes(&self, node: usize) -> bool {
        self.world.passes(node, self.wiki, "tcp/80")
    }

    fn report(&mut self, facts: Option<Facts>) {
        self.world.nodes[self.bob].facts = facts;
        let now = self.world.now;
        let report = self.world.nodes[self.bob].report(now).expect("facts");
        self.world.send(self.bob, report);
        self.world.run(seconds(1));
    }

    /// Lets time pass in which Bob's laptop reports as often as it was asked to.
    fn pass(&mut self, span: Duration) {
        let end = self.world.now.monotonic.saturating_add(span);
        while self.world.now.monotonic < end {
            self.world.run(seconds(29));
            self.report(self.world.nodes[self.bob].facts.clone());
        }
    }

    fn events(&self, wanted: impl Fn(&AuditEvent) -> bool) -> usize {
        self.world.audit.iter().filter(|event| wanted(event)).count()
    }
}

fn unmet(told: &Option<ToNode>) -> Vec<&str> {
    match told {
        Some(ToNode::Posture { unmet, .. }) => unmet.iter().map(|unmet| unmet.what.as_str()).collect(),
        _ => vec!["it was told nothing"],
    }
}

#[test]
fn a_changed_fact_opens_and_closes_and_decides_that_device_alone() {
    let mut scene = scene(POLICY);
    assert!(scene.passes(scene.bob) && !scene.passes(scene.eve));
    let decisions = scene.world.core.status().counters.decisions;
    scene.world.told.clear();
    scene.report(firewall(false));
    assert!(!scene.passes(scene.bob));
    assert_eq!(scene.world.core.status().counters.decisions, decisions + 1);
    let (eve, bob) = (scene.world.nodes[scene.eve].id(), scene.world.nodes[scene.bob].id());
    assert!(scene.world.told.contains(&bob) && !scene.world.told.contains(&eve));
    assert_eq!(unmet(&scene.world.nodes[scene.bob].posture), ["the firewall is off, and must be on"]);
    scene.report(firewall(true));
    assert!(scene.passes(scene.bob) && unmet(&scene.world.nodes[scene.bob].posture).is_empty());
    let changes: Vec<&Vec<String>> = scene
        .world
        .audit
        .iter()
        .filter_map(|event| match event {
            AuditEvent::PostureChanged { device, changes, .. } if *device == bob => Some(changes),
            _ => None,
        })
        .collect();
    assert_eq!(changes, [&["firewall: unknown -> on"], &["firewall: on -> off"], &["firewall: off -> on"]]);
}

#[test]
fn a_device_that_falls_silent_is_closed_when_its_facts_are_too_old_and_not_before() {
    let mut scene = scene(POLICY);
    let mut opened_for = 0;
    while scene.passes(scene.bob) {
        scene.world.run(seconds(1));
        opened_for += 1;
        assert!(opened_for < 200, "facts of two minutes ago are too old");
    }
    assert!(opened_for >= 110, "{opened_for} s");
    assert_eq!(unmet(&scene.world.nodes[scene.bob].posture), ["its posture is older than 2 min"]);
    scene.report(firewall(true));
    assert!(scene.passes(scene.bob));
}

#[test]
fn reports_that_change_nothing_keep_a_door_open_that_their_age_would_close() {
    let mut scene = scene(POLICY);
    let Some(ToNode::Posture { report_within_ms, .. }) = scene.world.nodes[scene.bob].posture else { panic!("asked") };
    assert_eq!(report_within_ms, Some(40_000));
    let changed = scene.events(|event| matches!(event, AuditEvent::PostureChanged { .. } | AuditEvent::Decided { .. }));
    let upserts = scene.world.nodes[scene.eve].upserts;
    for _ in 0..20 {
        scene.pass(seconds(30));
        assert!(scene.passes(scene.bob));
    }
    let after = scene.events(|event| matches!(event, AuditEvent::PostureChanged { .. } | AuditEvent::Decided { .. }));
    assert_eq!(after, changed, "nothing changed");
    assert_eq!(scene.world.nodes[scene.eve].upserts, upserts, "nobody else hears of it");
}

#[test]
fn a_report_that_is_held_back_or_shown_again_or_forged_opens_nothing() {
    let mut scene = scene(POLICY);
    let now = scene.world.now;
    let bob = scene.bob;
    let held_back = scene.world.nodes[bob].report(now).expect("facts");
    let shown = scene.world.nodes[bob].report(now).expect("facts");
    scene.world.send(bob, shown.clone());
    scene.world.run(seconds(1));
    scene.report(firewall(false));
    let refused = |scene: &Scene| scene.world.core.status().counters.postures_refused;
    let before = refused(&scene);
    for message in [held_back.clone(), shown] {
        scene.world.send(bob, message);
        scene.world.run(seconds(1));
        assert!(!scene.passes(bob), "an earlier report than the last one");
    }
    let (challenge, _, number) = scene.world.nodes[bob].challenge;
    let facts = firewall(true).expect("facts");
    let document =
        PostureDocument { device: scene.world.nodes[bob].id(), challenge, number: number + 9, taken_ms: 0, facts };
    let forged = sign_posture(&document, &DeviceSigningKey::from_seed(&[99; 32]));
    scene.world.send(bob, FromNode::Posture { signed: forged });
    scene.world.run(seconds(1));
    assert!(!scene.passes(bob), "signed by somebody else");
    assert_eq!(refused(&scene) - before, 3);
    assert_eq!(scene.events(|event| matches!(event, AuditEvent::PostureRefused { .. })), 3);
    // On another stream of the same device it was made for another challenge.
    scene.world.nodes[bob].facts = None;
    scene.world.cut_stream(bob);
    scene.world.connect(bob);
    scene.world.run(seconds(1));
    scene.world.send(bob, held_back);
    scene.world.run(seconds(1));
    assert!(!scene.passes(bob));
    // Held back on a stream of its own until it is too old, it is too old.
    scene.world.nodes[bob].facts = firewall(true);
    let now = scene.world.now;
    let late = scene.world.nodes[bob].report(now).expect("facts");
    scene.world.run(seconds(121));
    scene.world.send(bob, late);
    scene.world.run(seconds(1));
    assert!(!scene.passes(bob), "two minutes on the way");
}

#[test]
fn what_was_known_ages_on_over_a_restart_of_the_controller() {
    let mut scene = scene(POLICY);
    scene.world.restart();
    for node in [scene.wiki, scene.eve] {
        scene.world.connect(node);
    }
    scene.world.nodes[scene.bob].facts = None;
    scene.world.connect(scene.bob);
    scene.world.run(seconds(5));
    assert!(scene.passes(scene.bob), "what was known is known");
    scene.world.run(seconds(120));
    assert!(!scene.passes(scene.bob), "and too old at its time");
}

#[test]
fn nobody_is_asked_where_no_rule_asks_and_everybody_when_one_begins_to() {
    let without = POLICY
        .replace("when = { posture = \"managed\" }", "")
        .replace("[posture.managed]\nfirewall = true\nmax_age = \"2m\"\n", "");
    let mut scene = scene(&without);
    assert_eq!(scene.world.nodes[scene.bob].posture, None);
    assert!(scene.passes(scene.eve));
    scene.world.apply_policy(POLICY);
    scene.world.run(seconds(1));
    assert!(scene.passes(scene.bob) && !scene.passes(scene.eve), "whoever answers is let in again");
    scene.world.apply_policy(&without);
    scene.world.run(seconds(1));
    let nothing = ToNode::Posture { report_within_ms: None, unmet: vec![] };
    assert_eq!(scene.world.nodes[scene.bob].posture, Some(nothing));
}

#[test]
fn an_attested_fact_opens_by_serial_key_or_name_and_an_older_word_takes_nothing_back() {
    let policy = POLICY.replace("max_age = \"2m\"", "attested = true\nattested_max_age = \"1h\"");
    let mut scene = scene(&policy);
    assert!(!scene.passes(scene.bob), "its own word does not count");
    let key = scene.world.nodes[scene.bob].key.public();
    let import = |scene: &mut Scene, lines: &str| -> PostureImport {
        let import = scene.world.core.import_posture(lines, "root", scene.world.now);
        scene.world.pump();
        scene.world.run(seconds(1));
        import
    };
    let line = |of: &str, on: bool, at: &str| {
        format!("{{{of}, \"observed\": \"2026-11-23T{at}Z\", \"facts\": {{\"firewall\": {on}}}}}\n")
    };
    let unknown = import(&mut scene, &line("\"serial\": \"SN1\"", true, "09:00:00"));
    assert_eq!((unknown.taken, unknown.refused_count), (0, 1));
    assert!(unknown.refused[0].1.contains("posture bind DEVICE --serial SN1"), "{unknown:?}");
    let bob = scene.world.nodes[scene.bob].id();
    scene.world.core.bind_serial(bob, "SN1", "root", scene.world.now).expect("bound");
    scene.world.pump();
    let told = import(&mut scene, &line("\"serial\": \"SN1\"", true, "09:00:00"));
    assert_eq!((told.taken, told.changed.len()), (1, 1));
    assert!(scene.passes(scene.bob));
    import(&mut scene, &line(&format!("\"device_key\": \"{key}\""), false, "09:00:01"));
    assert!(!scene.passes(scene.bob));
    // Any machine may call itself so, until somebody has approved it.
    let claimed = import(&mut scene, &line("\"device\": \"Bob-Laptop\"", true, "09:00:02"));
    assert!(!scene.passes(scene.bob) && claimed.refused[0].1.contains("own word"), "{claimed:?}");
    scene.world.core.approve(bob, &[].into(), true, "root", scene.world.now).expect("approved");
    scene.world.pump();
    let older = import(&mut scene, &line("\"device\": \"bob-laptop\"", true, "09:00:00"));
    assert!(!scene.passes(scene.bob) && older.refused[0].1.contains("is newer"), "{older:?}");
    let mixed = format!("nonsense\n\n{}", line("\"device\": \"bob-laptop\"", true, "09:00:02"));
    let mixed = import(&mut scene, &mixed);
    assert!(scene.passes(scene.bob) && mixed.refused[0].0 == 1, "{mixed:?}");
    scene.world.run(seconds(3_600));
    assert!(!scene.passes(scene.bob), "the word is too old");
    // Another machine takes the serial over: what was said of the machine with this serial says nothing of the former.
    import(&mut scene, &line("\"device\": \"bob-laptop\"", true, "09:59:00"));
    assert!(scene.passes(scene.bob));
    let eve = scene.world.nodes[scene.eve].id();
    scene.world.core.bind_serial(eve, "SN1", "root", scene.world.now).expect("bound");
    scene.world.pump();
    scene.world.run(seconds(1));
    assert!(!scene.passes(scene.bob) && !scene.passes(scene.eve));
}

#[test]
fn a_restored_backup_vouches_for_nothing_and_keeps_serials_bound() {
    let mut scene = scene(POLICY);
    let bob = scene.world.nodes[scene.bob].id();
    scene.world.core.bind_serial(bob, "SN1", "root", scene.world.now).expect("bound");
    scene.world.core.import_posture("{\"serial\":\"SN1\",\"facts\":{\"firewall\":true}}", "root", scene.world.now);
    scene.world.pump();
    let kept = |postures: &[crate::records::PostureRecord]| {
        let of_bob = postures.iter().find(|posture| posture.device == bob).expect("a record").clone();
        (of_bob.own.is_some(), of_bob.attested.is_some(), of_bob.serial)
    };
    assert_eq!(kept(&scene.world.store.loaded.postures), (true, true, Some("SN1".into())));
    let (loaded, effects) = crate::stream::restored(scene.world.store.loaded.clone(), scene.world.now);
    assert!(loaded.postures.is_empty(), "they are loaded again with what the effects made of them");
    let stored: Vec<_> = effects
        .into_iter()
        .filter_map(|effect| match effect {
            crate::stream::Effect::Store(crate::records::StoreChange::PutPosture(posture)) => Some(posture),
            _ => None,
        })
        .collect();
    assert_eq!(kept(&stored), (false, false, Some("SN1".into())));
}

#[test]
fn an_explanation_names_the_fact_its_age_and_the_fix() {
    let mut scene = scene(POLICY);
    scene.report(firewall(false));
    scene.world.run(seconds(30));
    let told = scene.world.core.explain("bob@corp.example", "wiki", None, scene.world.now).expect("told");
    let reason =
        "the firewall is off as of 31 s ago, and must be on; rule \"staff read the wiki\" asks for posture \"managed\"";
    assert_eq!((told.allowed, told.reason.as_str()), (false, reason));
    assert!(told.fix.expect("a fix").contains("ufw enable"));
    let view = scene.world.core.posture_of(scene.world.nodes[scene.bob].id(), scene.world.now);
    assert_eq!(view.own.map(|report| report.facts), firewall(false));
    assert_eq!(view.unmet.len(), 1);
}

#[test]
fn a_flood_of_reports_costs_nobody_but_its_sender() {
    let mut scene = scene(POLICY);
    let changed = |scene: &Scene| scene.events(|event| matches!(event, AuditEvent::PostureChanged { .. }));
    let before = changed(&scene);
    for step in 0..200 {
        scene.world.nodes[scene.bob].facts = firewall(step % 2 == 0);
        let now = scene.world.now;
        let report = scene.world.nodes[scene.bob].report(now).expect("facts");
        scene.world.send(scene.bob, report);
    }
    scene.world.run(seconds(1));
    assert!(changed(&scene) - before <= 31, "each is a record that is kept");
    assert!(scene.world.core.status().counters.postures_refused >= 160);
}

#[test]
fn facts_from_before_a_stream_open_nothing_and_give_no_more_time() {
    let with_open_rule = format!(
        "{POLICY}lease = \"30s\"\n[resource.help]\nnodes = [\"tag:wiki\"]\nports = [\"tcp/81\"]\n[[access]]\nname = \"help\"\nfrom = [\"group:staff\"]\nto = [\"help\"]\n"
    );
    // It comes back when its lease wants to be renewed, and when that is over; the report that it made before counts for two minutes.
    for (away, held) in [(23, true), (45, false)] {
        let mut scene = scene(&with_open_rule);
        assert!(scene.passes(scene.bob));
        scene.world.cut_stream(scene.bob);
        scene.world.run(seconds(away));
        scene.world.nodes[scene.bob].facts = None;
        scene.world.connect(scene.bob);
        scene.world.run(seconds(1));
        assert_eq!(
            scene.passes(scene.bob),
            held,
            "after {away} s: what is held is kept for its time, nothing is opened"
        );
        assert!(scene.world.passes(scene.bob, scene.wiki, "tcp/81"), "what asks nothing of the device is open");
        scene.world.run(seconds(10));
        assert!(!scene.passes(scene.bob), "after {away} s: and it gets no more time");
        scene.report(firewall(true));
        assert!(scene.passes(scene.bob), "after {away} s: what it says now counts");
        scene.pass(seconds(60));
        assert!(scene.passes(scene.bob));
    }
}

#[test]
fn of_what_one_rule_gives_only_what_asks_nothing_of_a_device_opens_by_facts_from_before_its_stream() {
    let policy = r#"
[posture.managed]
firewall = true
max_age = "2m"

[resource.wiki]
nodes = ["tag:wiki"]
ports = ["tcp/80", "tcp/81"]

[resource.editor]
nodes = ["tag:wiki"]
ports = ["tcp/80"]

[[access]]
name = "staff use the wiki"
from = ["group:staff"]
to = ["wiki"]
lease = "30s"

[[deny]]
name = "unmanaged machines edit nothing"
from = ["user:*"]
to = ["editor"]
unless = { posture = "managed" }
"#;
    for (away, held) in [(23, true), (45, false)] {
        let mut scene = scene(policy);
        let both = |scene: &Scene| ["tcp/80", "tcp/81"].map(|port| scene.world.passes(scene.bob, scene.wiki, port));
        assert_eq!(both(&scene), [true, true]);
        scene.world.cut_stream(scene.bob);
        scene.world.run(seconds(away));
        scene.world.nodes[scene.bob].facts = None;
        scene.world.connect(scene.bob);
        scene.world.run(seconds(1));
        assert_eq!(both(&scene), [held, true], "after {away} s");
        scene.world.run(seconds(10));
        assert_eq!(both(&scene), [false, true], "after {away} s: and it gets no more time");
        scene.report(firewall(true));
        assert_eq!(both(&scene), [true, true], "after {away} s");
    }
}
