//! A long life: rotation, questions, reports, the herd.

use super::*;

#[test]
fn keys_rotate_three_times_on_disk_first_and_old_ones_are_wiped() {
    let (mut node, mut controller) = joined();
    let mut seen = std::collections::BTreeSet::from([node.seen.keys[0]]);
    for rotation in 1..=3 {
        node.seen.order.clear();
        for _minute in 0..61 {
            node.pass(Duration::from_secs(60));
            controller.converse(&mut node, device(9));
        }
        let write = node.seen.order.iter().position(|what| *what == "identity");
        let offer = node.seen.order.iter().position(|what| *what == "rotate");
        assert!(write.is_some() && write < offer, "rotation {rotation}: {:?}", node.seen.order);
        assert_eq!(node.seen.keys.len(), 2, "both keys serve while peers change over");
        // Every peer has changed over: the controller lists the newest alone.
        controller.keys.get_mut(&device(9)).expect("its keys").truncate(1);
        let grants = controller.grants(device(9), Some(controller.generation));
        node.hear(grants);
        controller.converse(&mut node, device(9));
        assert_eq!(node.seen.keys.len(), 1, "the old key is wiped from the data plane");
        let kept = node.seen.identity.as_ref().expect("written").keyring.public_keys();
        assert_eq!(kept, node.seen.keys, "and from the disk");
        assert!(seen.insert(node.seen.keys[0]), "and the new one is new");
    }
}

#[test]
fn questions_are_answered_or_end_in_time_and_are_bounded() {
    let (mut node, _) = joined();
    node.sent();
    for question in 0..100 {
        node.command(Command::Explain { question, to: "db".into(), service: None });
    }
    assert_eq!(node.sent().len(), MAX_OPEN_EXPLANATIONS);
    assert_eq!(node.seen.explained.len(), 100 - MAX_OPEN_EXPLANATIONS);
    let ask = |question| Command::RequestAccess { question, resource: "db".into(), length_ms: 1, reason: "r".into() };
    node.command(ask(150));
    assert_eq!(node.sent().len(), 1, "a request for access has room beside everybody's explanations");
    node.pass(EXPLAIN_PATIENCE);
    assert_eq!(node.seen.explained.len(), 101);
    assert!(node.seen.explained.iter().all(|(_, answer)| answer.is_err()));
    node.lose_stream();
    node.command(Command::Explain { question: 200, to: "db".into(), service: None });
    assert_eq!(node.seen.explained.last().expect("answered").1, Err("the controller is not connected".into()));
}

#[test]
fn endpoint_changes_are_reported_spaced_and_wake_a_waiting_node() {
    let (mut node, mut controller) = joined();
    node.sent();
    let at = |port: u16| vec![SocketAddr::from(([10, 0, 0, 1], port))];
    for port in 1..=50 {
        node.core.handle_endpoints(at(port), node.now);
        node.pass(Duration::from_millis(10));
    }
    node.pass(Duration::from_secs(2));
    let sent = node.sent();
    assert!(sent.len() <= 2, "{sent:?}");
    assert_eq!(sent.last(), Some(&FromNode::Endpoints { endpoints: at(50) }));
    node.reachable = false;
    node.lose_stream();
    node.pass(Duration::from_secs(300));
    node.reachable = true;
    node.core.handle_endpoints(at(99), node.now);
    node.pass(Duration::ZERO);
    controller.converse(&mut node, device(9));
    assert_eq!(node.core.phase(), Phase::Connected { current: true }, "at once, not after the back-off");
}

#[test]
fn five_hundred_nodes_come_back_spread_out_after_the_controller_was_away() {
    let mut controller = Controller::new();
    let mut nodes: Vec<Node> = (0..500).map(|seed| Node::new(1_000 + seed)).collect();
    for node in &mut nodes {
        node.up();
        controller.converse(node, device(9));
        controller.generation = 0;
        node.pass(Duration::from_secs(60));
        node.reachable = false;
        node.lose_stream();
        node.seen.connects.clear();
        node.pass(Duration::from_secs(600));
    }
    let mut per_second: BTreeMap<u64, usize> = BTreeMap::new();
    for at in nodes.iter().flat_map(|node| &node.seen.connects) {
        *per_second.entry(at.as_nanos() / 1_000_000_000).or_default() += 1;
    }
    let busiest = per_second.iter().filter(|(second, _)| **second > 61 + 60).map(|(_, count)| *count).max();
    assert!(busiest.is_some_and(|count| count < 100), "{busiest:?}");
    let attempts: usize = nodes.iter().map(|node| node.seen.connects.len()).sum();
    assert!(attempts / nodes.len() >= 20, "and they do try: {attempts}");
    for node in &mut nodes {
        node.reachable = true;
        for _second in 0..backoff::CAP.as_secs() {
            node.pass(Duration::from_secs(u64::from(!node.connected)));
        }
        controller.generation = 1_000;
        controller.converse(node, device(9));
        assert_eq!(node.core.phase(), Phase::Connected { current: true });
    }
}

#[test]
fn the_overlay_that_must_stay_shut_outlives_a_reboot_and_a_later_join() {
    let (mut node, mut controller) = joined();
    let kept = |node: &Node| node.seen.identity.clone().and_then(|i| i.enrolment).expect("an enrolment").overlay;
    let told: Vec<ipnet::IpNet> = vec!["fd00::/48".parse().expect("a prefix")];
    assert_eq!(kept(&node), told, "it is on disk once the first document has come");
    let settings = Settings { boot: BootId::from_bytes([2; 16]), ..settings() };
    let identity = node.seen.identity.clone().expect("an identity");
    node = Node::with(Core::restore(settings, Box::new(SeededEntropy::new(2)), identity));
    node.reachable = false;
    node.core.start(None, None, node.now).expect("starts");
    node.run();
    assert!(node.core.book().stand().is_none(), "nothing is told after a reboot");
    assert_eq!(node.core.identity().enrolment.as_ref().expect("an enrolment").overlay, told);
    node.hear(ToNode::SessionEnded { reason: "test".into() });
    node.reachable = true;
    node.up();
    controller.converse(&mut node, device(9));
    assert_eq!(node.core.identity().enrolment.as_ref().expect("an enrolment").overlay, told);
}
