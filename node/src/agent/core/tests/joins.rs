//! Joining, leaving, and what is refused.

use super::*;

#[test]
fn a_token_enrols_and_the_node_enforces_its_first_snapshot() {
    let (node, _) = joined();
    assert_eq!(node.seen.applied.len(), 1);
    assert!(node.seen.notices.iter().any(|notice| matches!(notice, Notice::Joined { .. })));
    assert!(matches!(node.seen.notices.last(), Some(Notice::Enforcing { generation: 1 })));
    assert_eq!(node.core.book().reachable(node.now).len(), 1);
    let enforced = node.seen.order.iter().position(|what| *what == "enforced").expect("acknowledged");
    let first_write = node.seen.order.iter().position(|what| *what == "identity").expect("written");
    let join = node.seen.order.iter().position(|what| *what == "join").expect("joined");
    assert!(first_write < join && join < enforced, "{:?}", node.seen.order);
}

#[test]
fn a_full_disk_spends_no_token() {
    let mut node = Node::new(1);
    node.disk = Disk::Full;
    node.up();
    node.pass(Duration::from_secs(60));
    assert!(node.seen.connects.is_empty());
    assert!(matches!(node.seen.notices.last(), Some(Notice::Failed { message }) if message.contains("full")));
}

#[test]
fn a_device_that_the_controller_does_not_know_is_closed_and_says_so() {
    let (mut node, _) = joined();
    let message = "this machine was removed: join again".to_owned();
    node.hear(ToNode::Refused { refusal: Refusal::UnknownDevice, message: message.clone() });
    assert!(node.core.book().stand().is_none());
    assert!(matches!(node.core.phase(), Phase::SignedOut { reason } if reason == message));
}

#[test]
fn a_refused_token_fails_at_once_and_is_not_tried_again() {
    let (mut node, controller) = (Node::new(1), Controller::new());
    node.up();
    node.hear(controller.challenge());
    node.hear(ToNode::Refused { refusal: Refusal::BadToken, message: "the token was used already".into() });
    assert_eq!(node.seen.notices.last(), Some(&Notice::Failed { message: "the token was used already".into() }));
    let before = node.seen.connects.len();
    node.pass(Duration::from_secs(600));
    assert_eq!(node.seen.connects.len(), before);
    assert_eq!(node.core.phase(), Phase::NotEnrolled);
}

#[test]
fn an_unreachable_controller_fails_a_join_after_three_attempts_with_its_reason() {
    let mut node = Node::new(1);
    node.reachable = false;
    node.up();
    node.pass(Duration::from_secs(60));
    assert_eq!(node.seen.connects.len(), 3);
    assert_eq!(node.seen.notices.last(), Some(&Notice::Failed { message: "connection refused".into() }));
}

#[test]
fn a_code_that_nobody_confirms_ends_the_join() {
    let (mut node, controller) = (Node::new(1), Controller::new());
    node.command(Command::Up { target: Some(target()), token: None, name: "laptop".parse().expect("a name") });
    node.hear(controller.challenge());
    let expires = node.now.wall.saturating_add(Duration::from_secs(600));
    node.hear(ToNode::JoinPending { code: "KTRM-4821".into(), url: "u".into(), url_with_code: "uc".into(), expires });
    assert!(matches!(node.core.phase(), Phase::Joining { code: Some(code), .. } if code == "KTRM-4821"));
    node.pass(Duration::from_secs(590));
    assert!(node.connected, "the person still has time");
    node.pass(Duration::from_secs(60));
    assert!(matches!(node.seen.notices.last(), Some(Notice::Failed { message }) if message.contains("expired")));
    assert!(!node.connected);
}

#[test]
fn a_join_is_given_up_when_its_client_goes_away() {
    let (mut node, controller) = (Node::new(1), Controller::new());
    node.up();
    node.hear(controller.challenge());
    node.command(Command::AbandonJoin);
    assert!(!node.connected);
    assert_eq!(node.core.phase(), Phase::NotEnrolled);
}

#[test]
fn another_controller_is_refused_before_logout() {
    let (mut node, _) = joined();
    let other = Some("https://evil.example".parse().expect("a target"));
    node.command(Command::Up { target: other, token: None, name: "x".parse().expect("a name") });
    assert!(matches!(node.seen.notices.last(), Some(Notice::Failed { message }) if message.contains("logout")));
    assert_eq!(node.core.phase(), Phase::Connected { current: true });
}

#[test]
fn down_closes_everything_and_up_begins_with_a_snapshot() {
    let (mut node, mut controller) = joined();
    node.sent();
    node.command(Command::Down);
    assert_eq!((node.core.phase(), node.seen.host_down, node.connected), (Phase::Down, 1, false));
    assert!(node.core.book().stand().is_none() && node.seen.saved.is_none());
    node.pass(Duration::from_secs(3_600));
    assert!(node.sent().is_empty());
    node.command(Command::Up { target: None, token: None, name: "x".parse().expect("a name") });
    controller.converse(&mut node, device(9));
    assert_eq!(node.core.phase(), Phase::Connected { current: true });
}

#[test]
fn logout_of_a_service_forgets_its_enrolment_and_wipes_its_keys() {
    let (mut node, _) = joined();
    node.sent();
    node.command(Command::Logout);
    assert_eq!(node.sent(), [FromNode::Logout]);
    assert!(node.seen.keys.is_empty());
    let kept = node.seen.identity.as_ref().expect("written");
    assert!(kept.enrolment.is_none() && kept.keyring.keys().is_empty());
    assert_eq!(node.core.phase(), Phase::NotEnrolled);
}

#[test]
fn down_and_logout_are_not_undone_by_a_connection_that_waited_for_the_disk() {
    for command in [Command::Down, Command::Logout] {
        let mut node = Node::new(7);
        node.disk = Disk::Waits;
        node.up();
        node.command(command);
        node.disk = Disk::Works;
        node.core.handle_persisted(Persisted::Identity, node.now);
        node.pass(Duration::from_secs(60));
        assert_eq!(node.seen.identity.as_ref().expect("written").wanted, Wanted::Down);
        assert!(node.seen.connects.is_empty(), "it stays down");
    }
}
