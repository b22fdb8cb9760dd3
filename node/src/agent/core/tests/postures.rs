//! Claims about reports of posture: asked for, told when they change, never younger than the look.

use postern_common::{
    key::DevicePublicKey,
    posture::{Facts, PostureVerifier, SignedPosture},
    protocol::UnmetPosture,
};

use super::*;

fn asked(within_s: u64) -> ToNode {
    ToNode::Posture { report_within_ms: Some(within_s * 1_000), unmet: vec![] }
}

fn facts(firewall: bool) -> Facts {
    Facts { firewall: Some(firewall), ..Facts::default() }
}

fn see(node: &mut Node, firewall: bool) {
    let now = node.now;
    node.core.handle_posture(facts(firewall), now.monotonic, now);
    node.run();
}

fn reports(node: &mut Node) -> Vec<SignedPosture> {
    let sent = node.sent().into_iter();
    sent.filter_map(|message| match message {
        FromNode::Posture { signed } => Some(signed),
        _ => None,
    })
    .collect()
}

fn verifier(node: &Node) -> PostureVerifier {
    let key: DevicePublicKey = node.core.identity().device_seed.key().public();
    PostureVerifier::new(device(9), key, Nonce::from_bytes([4; 16]))
}

#[test]
fn nothing_is_told_that_nobody_asked_for() {
    let (mut node, _) = joined();
    see(&mut node, true);
    node.pass(Duration::from_secs(3_600));
    assert_eq!((reports(&mut node).len(), node.looks), (0, 0));
    node.hear(asked(60));
    assert_eq!((reports(&mut node).len(), node.looks), (0, 1), "first it looks");
    see(&mut node, true);
    assert_eq!(reports(&mut node).len(), 1);
    node.hear(ToNode::Posture { report_within_ms: None, unmet: vec![] });
    see(&mut node, false);
    node.pass(Duration::from_secs(3_600));
    assert_eq!((reports(&mut node).len(), node.looks), (0, 1));
    assert!(!node.core.posture_wanted());
}

#[test]
fn a_change_is_told_at_once_and_a_flickering_one_as_it_is_a_second_later() {
    let (mut node, _) = joined();
    node.hear(asked(60));
    see(&mut node, true);
    node.pass(Duration::from_secs(5));
    let mut verifier = verifier(&node);
    let told = |node: &mut Node, verifier: &mut PostureVerifier| -> Vec<Option<bool>> {
        let since = Duration::from_secs(3_600);
        reports(node).iter().map(|r| verifier.verify(r, since).expect("good").facts().firewall).collect()
    };
    assert_eq!(told(&mut node, &mut verifier), [Some(true)]);
    see(&mut node, true);
    assert_eq!(told(&mut node, &mut verifier), [], "nothing changed");
    see(&mut node, false);
    assert_eq!(told(&mut node, &mut verifier), [Some(false)]);
    for firewall in [true, false, true, false, true] {
        see(&mut node, firewall);
    }
    assert_eq!(told(&mut node, &mut verifier), []);
    node.pass(Duration::from_secs(1));
    assert_eq!(told(&mut node, &mut verifier), [Some(true)]);
}

#[test]
fn a_report_is_repeated_before_it_is_too_old_and_only_after_another_look() {
    let (mut node, _) = joined();
    node.hear(asked(60));
    see(&mut node, true);
    assert_eq!(reports(&mut node).len(), 1);
    node.pass(Duration::from_secs(60));
    assert_eq!((reports(&mut node).len(), node.looks), (0, 2), "who does not look has nothing to tell");
    see(&mut node, true);
    assert_eq!(reports(&mut node).len(), 1);
}

#[test]
fn a_report_is_as_old_as_the_look() {
    let (mut node, _) = joined();
    node.hear(asked(60));
    let seen_at = node.now.monotonic;
    node.pass(Duration::from_secs(20));
    let now = node.now;
    node.core.handle_posture(facts(true), seen_at, now);
    node.run();
    let report = reports(&mut node).pop().expect("a report");
    let age = verifier(&node).verify(&report, Duration::from_secs(20)).expect("good").age();
    assert_eq!(age, Duration::from_secs(20));
}

#[test]
fn what_is_unmet_is_known_until_the_controller_says_otherwise() {
    let (mut node, _) = joined();
    let unmet =
        UnmetPosture { posture: "managed".into(), what: "the firewall is off".into(), fix: "turn it on".into() };
    node.hear(ToNode::Posture { report_within_ms: Some(60_000), unmet: vec![unmet; 100] });
    assert_eq!(node.core.posture_unmet().len(), postern_common::protocol::MAX_UNMET_POSTURES);
    node.hear(asked(60));
    assert!(node.core.posture_unmet().is_empty());
    assert_eq!(node.looks, 1, "the same question is no new one");
}
