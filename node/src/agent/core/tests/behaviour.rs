//! Reports of behaviour: what is told of, in messages that fit, and what waits for a stream.

use postern_common::{
    limit::{Measure, Scan, Usage},
    net::{FiveTuple, Protocol},
};

use super::*;

fn usage(used: u64) -> Usage {
    Usage {
        subject: SubjectId::from_bytes([1; 16]),
        rule: "rule".parse().expect("a name"),
        resource: "r".parse().expect("a name"),
        budget: 0,
        measure: Measure::Download,
        within_ms: 60_000,
        used,
    }
}

fn scan(port: u16) -> Scan {
    let address = "fd00::7".parse().expect("an address");
    let (protocol, source, destination) = (Protocol::Tcp, address, address);
    let last = FiveTuple { protocol, source, source_port: 9, destination, destination_port: port };
    Scan { device: None, rule: "scans".parse().expect("a name"), budget: 0, refused: 21, last }
}

/// What was told: how much each usage was, and how many scans.
fn told(node: &mut Node) -> (Vec<u64>, usize) {
    let (mut used, mut count) = (vec![], 0);
    for message in node.sent() {
        if let FromNode::Behaviour { process, usages, scans } = message {
            assert_eq!(process, 7);
            assert!(usages.len() <= MAX_USAGES && scans.len() <= MAX_SCANS);
            used.extend(usages.into_iter().map(|usage| usage.used));
            count += scans.len();
        }
    }
    (used, count)
}

fn behave(node: &mut Node, usages: Vec<Usage>, scans: Vec<Scan>) {
    node.core.handle_behaviour(7, usages, scans, vec![]);
    node.run();
}

#[test]
fn nothing_to_tell_is_not_told_and_much_is_told_in_messages_that_fit() {
    let (mut node, _) = joined();
    node.sent();
    behave(&mut node, vec![], vec![]);
    assert!(node.sent().is_empty());
    behave(&mut node, (0..200).map(usage).collect(), vec![scan(1)]);
    assert_eq!(told(&mut node), ((0..200).collect(), 1));
}

#[test]
fn a_scan_waits_for_a_stream_and_usage_is_said_anew_by_whoever_counts() {
    let (mut node, mut controller) = joined();
    node.lose_stream();
    behave(&mut node, vec![usage(5)], (0..100).map(scan).collect());
    assert_eq!(told(&mut node), (vec![], 0));
    node.pass(Duration::from_secs(300));
    controller.converse(&mut node, device(9));
    node.sent();
    behave(&mut node, vec![usage(7)], vec![]);
    assert_eq!(told(&mut node), (vec![7], MAX_SCANS), "no more than a few wait");
    behave(&mut node, vec![], vec![]);
    assert_eq!(told(&mut node), (vec![], 0), "and are told once");
}

#[test]
fn a_stream_is_served_once_it_brought_a_document() {
    let (mut node, mut controller) = joined();
    assert!(node.core.is_served());
    node.lose_stream();
    assert!(!node.core.is_served());
    node.pass(Duration::from_secs(60));
    node.hear(controller.challenge());
    assert!(!node.core.is_served(), "the controller may still judge whether it serves this node");
    controller.converse(&mut node, device(9));
    assert!(node.core.is_served());
}
