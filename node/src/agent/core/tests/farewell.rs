//! `down` and `logout` are answered when they are durable, a sign-out reaches the controller, and a new link is tried first.

use postern_common::id::SessionId;

use super::*;

/// A person's machine that enforces its first snapshot.
fn signed_in() -> (Node, Controller) {
    let (mut node, mut controller) = (Node::new(7), Controller::new());
    node.core.start(None, None, node.now).expect("starts");
    node.command(Command::Up { target: Some(target()), token: None, name: "laptop".parse().expect("a name") });
    node.hear(controller.challenge());
    node.sent();
    let ToNode::Joined { device, name, subject_name, controller: key, .. } = controller.joined(device(9)) else {
        panic!("a join")
    };
    let session = Some(SessionId::from_bytes([4; 16]));
    let session_until = Some(WallTime::from_millis(node.now.wall.as_millis() + 3_600_000));
    node.hear(ToNode::Joined { device, name, session, subject_name, controller: key, session_until });
    controller.converse(&mut node, super::device(9));
    assert_eq!(node.core.phase(), Phase::Connected { current: true });
    node.sent();
    (node, controller)
}

fn up(link: &str) -> Command {
    Command::Up { target: Some(link.parse().expect("a link")), token: None, name: "laptop".parse().expect("a name") }
}

fn restarted(node: &Node) -> Node {
    let settings = settings();
    let identity = node.seen.identity.clone().expect("an identity");
    let mut after = Node::with(Core::restore(settings, Box::new(SeededEntropy::new(3)), identity));
    after.now = node.now;
    after
}

#[test]
fn down_and_logout_are_answered_only_when_the_disk_has_them() {
    for command in [Command::Down, Command::Logout] {
        let (mut node, _) = signed_in();
        node.disk = Disk::Waits;
        node.command(command);
        assert_eq!((node.seen.host_down, node.seen.settled.as_slice()), (1, [].as_slice()), "closed, and not answered");
        node.disk = Disk::Works;
        node.core.handle_persisted(Persisted::Identity, node.now);
        node.run();
        assert_eq!(node.seen.settled, [true]);
        assert_eq!(node.core.identity().wanted, Wanted::Down);
    }
    let (mut node, _) = signed_in();
    node.disk = Disk::Full;
    node.command(Command::Down);
    assert_eq!(node.seen.settled, [false], "a full disk is said");
    node.disk = Disk::Works;
    node.pass(Duration::from_secs(10));
    assert_eq!(node.seen.identity.as_ref().expect("written").wanted, Wanted::Down, "and tried again");
}

#[test]
fn a_logout_without_the_controller_is_told_to_it_later_also_after_a_restart() {
    let (mut node, controller) = signed_in();
    node.reachable = false;
    node.lose_stream();
    node.command(Command::Logout);
    assert_eq!(node.seen.settled, [true]);
    assert!(matches!(node.core.phase(), Phase::SignedOut { .. }));
    assert!(node.seen.keys.is_empty() && node.core.book().stand().is_none());
    let mut node = restarted(&node);
    node.core.start(None, None, node.now).expect("starts");
    node.run();
    assert!(node.sent().is_empty(), "nobody is there");
    node.reachable = true;
    node.pass(Duration::from_secs(60));
    assert!(node.connected);
    node.hear(controller.challenge());
    assert!(matches!(node.sent().as_slice(), [FromNode::Hello(_), FromNode::Logout]));
    node.hear(ToNode::SessionEnded { reason: "signed out on the machine".into() });
    assert!(!node.connected && node.seen.identity.as_ref().expect("written").farewell.is_none());
    node.pass(Duration::from_secs(3_600));
    assert!(!node.connected, "it is told once");
}

#[test]
fn a_logout_that_the_controller_did_not_confirm_is_told_again_and_a_new_sign_in_forgets_it() {
    let (mut node, controller) = signed_in();
    node.command(Command::Logout);
    assert_eq!(node.sent(), [FromNode::Logout]);
    node.lose_stream();
    node.pass(Duration::from_secs(60));
    node.hear(controller.challenge());
    assert!(matches!(node.sent().as_slice(), [FromNode::Hello(_), FromNode::Logout]));
    node.command(up("https://ctl.corp.example"));
    node.hear(controller.challenge());
    node.hear(controller.joined(device(9)));
    assert!(node.core.identity().farewell.is_none(), "it would end the new session");
}

#[test]
fn a_session_that_is_over_by_itself_needs_no_farewell() {
    let (mut node, _) = signed_in();
    node.reachable = false;
    node.lose_stream();
    node.command(Command::Logout);
    node.reachable = true;
    node.now.wall = WallTime::from_millis(node.now.wall.as_millis() + 3_600_000);
    node.pass(Duration::from_secs(60));
    assert!(!node.connected && node.sent().is_empty());
    assert!(node.seen.identity.as_ref().expect("written").farewell.is_none());
}

#[test]
fn another_pin_of_the_same_controller_is_taken_over_once_it_proved_good() {
    let link = format!("https://ctl.corp.example#k={}", "4f".repeat(32));
    let (mut node, mut controller) = signed_in();
    node.command(up(&link));
    assert_eq!(node.seen.targets.last().map(ToString::to_string), Some(link.clone()));
    assert_eq!(
        node.core.identity().enrolment.as_ref().expect("kept").controller,
        target(),
        "not before it proved good"
    );
    controller.converse(&mut node, device(9));
    assert_eq!(node.core.phase(), Phase::Connected { current: true });
    let kept = node.seen.identity.as_ref().and_then(|identity| identity.enrolment.clone()).expect("kept");
    assert_eq!(kept.controller.to_string(), link);

    let (mut node, mut controller) = signed_in();
    node.reachable = false;
    node.command(up(&link));
    assert!(
        matches!(node.seen.notices.iter().rev().find(|n| matches!(n, Notice::Failed { .. })), Some(Notice::Failed { message }) if message.contains("not taken over"))
    );
    node.reachable = true;
    node.pass(Duration::from_secs(60));
    assert_eq!(node.seen.targets.last(), Some(&target()), "the former link goes on");
    controller.converse(&mut node, device(9));
    assert_eq!(node.core.phase(), Phase::Connected { current: true });
}

#[test]
fn after_a_sign_out_another_controller_may_be_joined() {
    let (mut node, _) = signed_in();
    node.command(Command::Logout);
    node.hear(ToNode::SessionEnded { reason: "signed out on the machine".into() });
    node.command(up("https://other.corp.example"));
    assert_eq!(node.seen.targets.last().map(ToString::to_string).as_deref(), Some("https://other.corp.example"));
}
