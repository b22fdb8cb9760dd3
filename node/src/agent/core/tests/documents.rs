//! Documents: order, durability, freshness, resuming.

use super::*;

#[test]
fn nothing_is_acknowledged_before_it_is_durable() {
    let (mut node, mut controller) = joined();
    node.sent();
    node.disk = Disk::Waits;
    let grants = controller.grants(device(9), Some(1));
    node.hear(grants);
    assert_eq!(node.seen.applied.len(), 2, "enforced at once");
    assert!(node.sent().is_empty(), "and not acknowledged");
    let position = Position { epoch: 1, generation: 2 };
    node.core.handle_persisted(Persisted::Grants(position), node.now);
    node.run();
    assert_eq!(node.sent(), [FromNode::Enforced { position, cut: 0 }]);
}

#[test]
fn nothing_is_acknowledged_before_the_data_plane_enforces_it() {
    let (mut node, mut controller) = joined();
    node.sent();
    node.plane_answers = false;
    let grants = controller.grants(device(9), Some(1));
    node.hear(grants);
    assert_eq!(node.seen.saved.as_ref().map(|saved| saved.position.generation), Some(2), "it is durable");
    assert!(node.sent().is_empty(), "and not acknowledged");
    let position = Position { epoch: 1, generation: 2 };
    node.core.handle_compiled(position, 3);
    node.run();
    assert_eq!(node.sent(), [FromNode::Enforced { position, cut: 3 }]);
}

#[test]
fn deltas_that_come_during_a_write_are_written_once_more_and_acknowledged_together() {
    let (mut node, mut controller) = joined();
    node.sent();
    node.disk = Disk::Waits;
    for previous in 1..=3 {
        let grants = controller.grants(device(9), Some(previous));
        node.hear(grants);
    }
    node.disk = Disk::Works;
    node.core.handle_persisted(Persisted::Grants(Position { epoch: 1, generation: 2 }), node.now);
    node.run();
    let enforced = |generation| FromNode::Enforced { position: Position { epoch: 1, generation }, cut: 0 };
    assert_eq!(node.sent(), [enforced(2), enforced(4)]);
    assert_eq!(node.seen.saved.as_ref().map(|saved| saved.position.generation), Some(4));
}

#[test]
fn a_gap_forces_one_request_for_a_snapshot_which_mends_it() {
    let (mut node, mut controller) = joined();
    node.sent();
    controller.generation = 5;
    for _storm in 0..10 {
        let grants = controller.grants(device(9), Some(controller.generation));
        node.hear(grants);
    }
    assert_eq!(node.sent(), [FromNode::SnapshotWanted], "one request, whatever the storm");
    assert_eq!(node.seen.applied.len(), 1, "nothing of it is enforced");
    let grants = controller.grants(device(9), None);
    node.hear(grants);
    assert_eq!(node.core.enforced().map(|position| position.generation), Some(controller.generation));
}

#[test]
fn a_document_that_the_controller_did_not_sign_is_not_enforced_and_ends_the_stream() {
    let (mut node, controller) = joined();
    let forged = controller.document(device(9), 7, None, &ControllerSigningKey::from_seed(&[6; 32]));
    node.hear(ToNode::Grants { signed: forged });
    assert_eq!(node.seen.applied.len(), 1);
    assert!(!node.connected);
    let misdirected = {
        let mut other = Controller::new();
        other.nonces.insert(device(8), Nonce::from_bytes([0; 16]));
        other.document(device(8), 9, None, &other.key)
    };
    node.hear(ToNode::Grants { signed: misdirected });
    assert_eq!(node.seen.applied.len(), 1);
}

#[test]
fn the_nonce_is_freshened_so_that_a_delayed_document_is_never_too_old() {
    let (mut node, mut controller) = joined();
    node.sent();
    let mut freshened = 0;
    for _minute in 0..60 {
        node.pass(Duration::from_secs(60));
        freshened += node.seen.sent.iter().filter(|message| matches!(message, FromNode::Freshen { .. })).count();
        controller.converse(&mut node, device(9));
    }
    assert_eq!(freshened, 30);
    let grants = controller.grants(device(9), Some(controller.generation));
    node.hear(grants);
    assert_eq!(node.core.phase(), Phase::Connected { current: true });
}

#[test]
fn an_answer_to_a_forgotten_nonce_is_refused_and_asked_anew() {
    let (mut node, mut controller) = joined();
    let old = controller.nonces[&device(9)];
    for _minute in 0..40 {
        node.pass(Duration::from_secs(60));
    }
    controller.converse(&mut node, device(9));
    controller.nonces.insert(device(9), old);
    let grants = controller.grants(device(9), Some(controller.generation));
    node.hear(grants);
    let sent = node.sent();
    assert!(matches!(&sent[..], [FromNode::Freshen { .. }, FromNode::SnapshotWanted]), "{sent:?}");
}

#[test]
fn the_end_of_a_session_closes_the_doors_even_if_no_document_follows() {
    let (mut node, _) = joined();
    node.hear(ToNode::SessionEnded { reason: "laptop lost".into() });
    node.pass(Duration::from_secs(3));
    assert_eq!(node.seen.doors_closed, 2, "once when it joined, once now");
    assert!(node.core.book().stand().is_none());
    assert!(matches!(node.core.phase(), Phase::SignedOut { reason } if reason == "laptop lost"));
    node.lose_stream();
    let before = node.seen.connects.len();
    node.pass(Duration::from_secs(3_600));
    assert_eq!(node.seen.connects.len(), before, "it waits for a person");
}

#[test]
fn after_the_doors_were_shut_a_delta_opens_nothing() {
    let (mut node, mut controller) = joined();
    node.hear(ToNode::SessionEnded { reason: "x".into() });
    node.pass(Duration::from_secs(3));
    node.sent();
    let applied = node.seen.applied.len();
    let grants = controller.grants(device(9), Some(controller.generation));
    node.hear(grants);
    assert_eq!(node.seen.applied.len(), applied);
    assert_eq!(node.sent(), [FromNode::SnapshotWanted]);
}

#[test]
fn a_restart_within_the_boot_resumes_and_any_other_state_begins_closed() {
    let (node, _) = joined();
    let (identity, saved) = (node.seen.identity.expect("written"), node.seen.saved.expect("written"));
    let restart = |boot, mark: Position| {
        let settings = Settings { boot, ..settings() };
        let mut node = Node::with(Core::restore(settings, Box::new(SeededEntropy::new(2)), identity.clone()));
        let resumed = node.core.start(Some(saved.clone()), Some(mark), node.now).is_ok();
        node.run();
        (resumed, node.seen.applied.len(), node.seen.doors_closed)
    };
    assert_eq!(restart(BOOT, saved.position), (true, 1, 0));
    assert_eq!(restart(BootId::from_bytes([2; 16]), saved.position), (false, 0, 1), "a new boot");
    let newer = Position { epoch: 1, generation: saved.position.generation + 1 };
    assert_eq!(restart(BOOT, newer), (false, 0, 1), "an old copy of the grants");
}

#[test]
fn a_new_stream_names_what_was_seen_even_if_it_is_not_enforced_yet() {
    let (mut node, mut controller) = joined();
    node.disk = Disk::Waits;
    let grants = controller.grants(device(9), Some(1));
    node.hear(grants);
    node.sent();
    node.lose_stream();
    node.pass(Duration::from_secs(60));
    node.hear(controller.challenge());
    let named = node.sent().into_iter().find_map(|message| match message {
        FromNode::Hello(hello) => hello.enforced,
        _ => None,
    });
    assert_eq!(named, Some(Position { epoch: 1, generation: 2 }), "a controller must not number from below it");
}

#[test]
fn what_was_saved_opens_nothing_for_a_machine_that_is_down_or_signed_out() {
    let (node, _) = joined();
    let (identity, saved) = (node.seen.identity.expect("written"), node.seen.saved.expect("written"));
    let restart = |change: fn(&mut Identity)| {
        let mut identity = identity.clone();
        change(&mut identity);
        let mut node = Node::with(Core::restore(settings(), Box::new(SeededEntropy::new(2)), identity));
        node.reachable = false;
        node.core.start(Some(saved.clone()), Some(saved.position), node.now).expect("starts");
        node.run();
        (node.seen.applied.len(), node.seen.doors_closed)
    };
    assert_eq!(restart(|_| {}), (1, 0));
    assert_eq!(restart(|identity| identity.wanted = Wanted::Down), (0, 1));
    let ended = |identity: &mut Identity| {
        identity.enrolment.as_mut().expect("joined").login = Login::Ended { reason: "signed out".into() };
    };
    assert_eq!(restart(ended), (0, 1));
}

#[test]
fn a_lost_data_plane_is_told_everything_again() {
    let (mut node, mut controller) = joined();
    node.core.handle_plane_lost(node.now);
    node.run();
    assert!(node.core.enforced().is_none());
    controller.converse(&mut node, device(9));
    assert_eq!(node.seen.applied.len(), 2);
    assert_eq!(node.core.phase(), Phase::Connected { current: true });
}

#[test]
fn an_acknowledgement_tells_what_its_documents_cut_and_nothing_of_later_ones() {
    let (mut node, mut controller) = joined();
    node.sent();
    node.disk = Disk::Waits;
    for (previous, cuts) in [(1, 2), (2, 0), (3, 5)] {
        node.cuts = cuts;
        let grants = controller.grants(device(9), Some(previous));
        node.hear(grants);
    }
    node.disk = Disk::Works;
    node.core.handle_persisted(Persisted::Grants(Position { epoch: 1, generation: 2 }), node.now);
    node.run();
    let enforced = |generation, cut| FromNode::Enforced { position: Position { epoch: 1, generation }, cut };
    assert_eq!(node.sent(), [enforced(2, 2), enforced(4, 5)]);
}

#[test]
fn a_question_about_flows_is_bounded_and_answered_on_a_live_stream_alone() {
    let (mut node, _controller) = joined();
    node.sent();
    node.hear(ToNode::CountFlows { id: 7, peers: vec![device(3); 2 * postern_common::protocol::MAX_COUNTED_PEERS] });
    assert_eq!(node.counted, [postern_common::protocol::MAX_COUNTED_PEERS]);
    assert_eq!(node.sent(), [FromNode::LiveFlows { id: 7, groups: vec![], unlisted: 0 }]);
    node.lose_stream();
    node.core.handle_flows(8, vec![], 0);
    node.run();
    assert!(node.sent().is_empty(), "nobody is there to be answered");
}

/// What a controller says that calls `overlay` the overlay, in which a peer has `address`.
fn placed(controller: &mut Controller, overlay: &str, address: &str, previous: Option<u64>) -> ToNode {
    controller.overlay = overlay.parse().expect("a prefix");
    controller.peer_address = address.parse().expect("an address");
    controller.grants(device(9), previous)
}

#[test]
fn public_addresses_are_no_overlay_unless_the_owner_of_the_machine_says_so() {
    let told = |bound: Option<&str>, overlay: &str, address: &str| {
        let (mut node, mut controller) = joined();
        if let Some(bound) = bound {
            node.core.set_overlay_within(vec![bound.parse().expect("a prefix")]);
        }
        let before = node.core.book().stand().map(|stand| stand.position);
        let grants = placed(&mut controller, overlay, address, None);
        node.hear(grants);
        let taken = node.core.book().stand().map(|stand| stand.position) != before;
        assert_eq!((taken, taken), (node.connected, node.seen.applied.len() == 2), "{overlay} {address}");
        let error = node.core.last_error.clone().unwrap_or_default();
        assert!(taken || error.contains("nothing of it is enforced"), "{error}");
        taken
    };
    for overlay in ["2000::/4", "2001:db8::/32", "8.8.8.0/24", "::/4", "128.0.0.0/4", "192.160.0.0/12", "100.0.0.0/8"] {
        let inside: ipnet::IpNet = overlay.parse().expect("a prefix");
        assert!(!told(None, overlay, &inside.addr().to_string()), "{overlay}");
        assert!(told(Some(overlay), overlay, &inside.addr().to_string()), "{overlay} where it is allowed");
    }
    for (overlay, address) in
        [("fd00::/48", "fd00::3"), ("100.96.0.0/16", "100.96.0.3"), ("198.18.0.0/15", "198.19.0.3")]
    {
        assert!(told(None, overlay, address), "{overlay}");
        assert!(!told(Some("10.0.0.0/8"), overlay, address), "{overlay} where it is not allowed");
    }
    assert!(!told(None, "fd00::/48", "2001:db8::3"), "a peer beside the overlay");
}

#[test]
fn a_saved_overlay_that_the_owner_has_forbidden_since_opens_nothing() {
    for (bound, opens) in [("fd00::/8", true), ("10.0.0.0/8", false)] {
        let (node, _) = joined();
        let settings = Settings { overlay_within: vec![bound.parse().expect("a prefix")], ..settings() };
        let identity = node.seen.identity.clone().expect("an identity");
        let mut again = Node::with(Core::restore(settings, Box::new(SeededEntropy::new(2)), identity));
        again.reachable = false;
        let saved = node.seen.saved.clone();
        let mark = saved.as_ref().map(|saved| saved.position);
        again.core.start(saved, mark, again.now).expect("starts");
        again.run();
        assert_eq!((again.seen.applied.len(), again.seen.doors_closed), if opens { (1, 0) } else { (0, 1) }, "{bound}");
    }
}
