//! A service that signs in with tokens of its platform, and keys that rotate before their deadline.

use postern_common::{id::SessionId, protocol::FirstUse};

use super::*;

const LIFE: Duration = Duration::from_secs(600);

fn pod(token: Option<&str>) -> (Node, Controller) {
    let name = "payroll-1".parse().expect("a name");
    let platform = Some(PlatformSettings { join: Some(target()), name, watch: true });
    let mut node = Node::with(Core::new(Settings { platform, ..settings() }, Box::new(SeededEntropy::new(4))));
    node.token = token.map(str::to_owned);
    node.core.start(None, None, node.now).expect("nothing to resume");
    node.run();
    (node, Controller::new())
}

/// Answers a join by a token that lives for [`LIFE`].
fn admit(node: &mut Node, controller: &mut Controller) -> String {
    node.hear(controller.challenge());
    let sent = node.sent();
    let Some(FromNode::Platform(asked)) = sent.first() else { panic!("no token was shown: {sent:?}") };
    let shown = asked.token.expose().to_owned();
    let until = Some(node.now.wall.saturating_add(LIFE));
    let joined = match controller.joined(device(9)) {
        ToNode::Joined { device, name, subject_name, controller, .. } => ToNode::Joined {
            device,
            name,
            session: Some(SessionId::from_bytes([1; 16])),
            subject_name,
            controller,
            session_until: until,
        },
        other => other,
    };
    node.hear(joined);
    controller.converse(node, device(9));
    shown
}

/// The tokens that were shown on the live stream since it was last asked.
fn shown(node: &mut Node) -> Vec<String> {
    let token = |message| match message {
        FromNode::PlatformToken { token } => Some(token.expose().to_owned()),
        _ => None,
    };
    node.sent().into_iter().filter_map(token).collect()
}

#[test]
fn a_pod_joins_by_itself_and_shows_only_a_token_that_it_has_not_shown() {
    let (mut node, mut controller) = pod(Some("a.b.c"));
    assert_eq!(admit(&mut node, &mut controller), "a.b.c");
    assert_eq!(node.core.phase(), Phase::Connected { current: true });
    assert!(node.seen.notices.iter().any(|notice| matches!(notice, Notice::Joined { person: false, .. })));
    node.pass(LIFE / 2 - Duration::from_secs(1));
    assert_eq!(node.reads, 1, "before half of its life nothing is read");
    node.pass(Duration::from_secs(100));
    assert!(node.reads >= 3 && shown(&mut node).is_empty(), "the same token is not shown again");
    node.token = Some("d.e.f".into());
    node.pass(Duration::from_secs(60));
    assert_eq!(shown(&mut node), ["d.e.f"]);
    let until = node.now.wall.saturating_add(LIFE);
    node.hear(ToNode::PlatformRenewed { until });
    assert!(node.core.platform_trouble().is_none());
    let reads = node.reads;
    node.pass(LIFE / 2 - Duration::from_secs(1));
    assert_eq!(node.reads, reads, "it has half of the new life");
    let saved = node.seen.identity.as_ref().and_then(|identity| identity.enrolment.clone()).expect("saved");
    assert_eq!(saved.login, Login::Platform { session: SessionId::from_bytes([1; 16]), until });
}

#[test]
fn a_pod_without_a_fresh_token_is_shut_and_comes_back_by_itself_with_the_next() {
    let (mut node, mut controller) = pod(Some("a.b.c"));
    admit(&mut node, &mut controller);
    node.pass(LIFE / 2 + Duration::from_secs(1));
    node.token = None;
    node.pass(Duration::from_secs(100));
    assert!(node.core.platform_trouble().is_some_and(|why| why.contains("there is no token")));
    let closed = node.seen.doors_closed;
    node.hear(ToNode::SessionEnded { reason: "no fresh one came".into() });
    assert!(node.seen.doors_closed > closed && node.core.book().stand().is_none());
    for _attempt in 0..20 {
        if node.connected && matches!(node.core.stream, Stream::Greeting { .. }) {
            node.hear(controller.challenge());
        }
        node.pass(Duration::from_secs(60));
    }
    assert!(!node.seen.notices.iter().any(|notice| matches!(notice, Notice::Failed { .. })), "it does not give up");
    node.sent();
    node.token = Some("d.e.f".into());
    while !matches!(node.core.stream, Stream::Greeting { .. }) {
        node.pass(Duration::from_secs(1));
    }
    assert_eq!(admit(&mut node, &mut controller), "d.e.f");
    assert_eq!(node.core.phase(), Phase::Connected { current: true });
    assert!(node.core.platform_trouble().is_none());
}

#[test]
fn the_platforms_tokens_go_to_the_controller_that_the_configuration_names_and_to_no_other() {
    let up = |link: &str, token: Option<&str>| Command::Up {
        target: Some(link.parse().expect("a link")),
        token: token.map(|token| token.to_owned().into()),
        name: "payroll-1".parse().expect("a name"),
    };
    let link = format!("https://ctl.corp.example#k={}", "4f".repeat(32));
    for joined in [false, true] {
        for (link, token) in [("https://evil.example", None), ("https://evil.example", Some("pst")), (&*link, None)] {
            let (mut node, mut controller) = pod(Some("a.b.c"));
            if joined {
                admit(&mut node, &mut controller);
            }
            node.core.handle_command(up(link, token), node.now);
            node.run();
            let told = node.seen.notices.last();
            assert!(
                matches!(told, Some(Notice::Failed { message }) if message.contains("node.toml")),
                "{link}: {told:?}"
            );
        }
    }
}

#[test]
fn a_pod_whose_token_was_refused_joins_as_soon_as_the_platform_writes_another() {
    let (mut node, mut controller) = pod(Some("a.b.c"));
    node.hear(controller.challenge());
    node.sent();
    node.hear(ToNode::Refused { refusal: Refusal::BadToken, message: "it has expired".into() });
    node.pass(Duration::from_secs(20));
    assert!(!matches!(node.core.stream, Stream::Greeting { .. }), "not with the same");
    node.token = Some("d.e.f".into());
    node.pass(Duration::from_secs(6));
    assert_eq!(admit(&mut node, &mut controller), "d.e.f");
}

#[test]
fn a_token_that_was_refused_is_shown_again_later_and_not_all_the_time() {
    let (mut node, mut controller) = pod(Some("a.b.c"));
    admit(&mut node, &mut controller);
    node.token = Some("d.e.f".into());
    node.pass(LIFE / 2 + Duration::from_secs(1));
    assert_eq!(shown(&mut node), ["d.e.f"]);
    node.hear(ToNode::PlatformRefused { message: "the controller's log says why".into() });
    assert_eq!(node.core.platform_trouble(), Some("the controller's log says why"));
    node.pass(Duration::from_secs(70));
    assert_eq!(shown(&mut node).len(), 1);
}

#[test]
fn a_pod_that_the_controller_has_forgotten_joins_again() {
    let (mut node, mut controller) = pod(Some("a.b.c"));
    admit(&mut node, &mut controller);
    node.lose_stream();
    node.pass(Duration::from_secs(40));
    node.hear(controller.challenge());
    node.sent();
    node.hear(ToNode::Refused { refusal: Refusal::UnknownDevice, message: "forgotten".into() });
    assert!(node.core.book().stand().is_none());
    assert_eq!(admit(&mut node, &mut controller), "a.b.c");
}

#[test]
fn down_and_logout_hold_although_the_platform_gives_tokens() {
    for command in [Command::Down, Command::Logout] {
        let (mut node, mut controller) = pod(Some("a.b.c"));
        admit(&mut node, &mut controller);
        node.command(command);
        node.connected = false;
        node.pass(Duration::from_secs(3_600));
        assert!(!node.sent().iter().any(|message| matches!(message, FromNode::Platform(_))));
        assert!(node.core.book().stand().is_none());
    }
}

#[test]
fn a_key_is_changed_within_half_of_the_controllers_deadline() {
    let (mut node, mut controller) = joined();
    node.hear(ToNode::KeyDeadline { within_ms: 600_000 });
    node.sent();
    node.pass(Duration::from_secs(290));
    assert!(!node.sent().iter().any(|message| matches!(message, FromNode::RotateKey { .. })));
    node.pass(Duration::from_secs(20));
    assert!(node.sent().iter().any(|message| matches!(message, FromNode::RotateKey { .. })));
    controller.converse(&mut node, device(9));
}

#[test]
fn first_uses_are_told_once_a_stream_in_bounded_messages() {
    let (mut node, mut controller) = joined();
    let used = |port: u16| FirstUse {
        peer: device(3),
        resource: "db".parse().expect("a name"),
        service: format!("tcp/{port}").parse().expect("a service"),
    };
    let told = |node: &mut Node| -> Vec<usize> {
        let uses = |message| match message {
            FromNode::FirstUses { uses } => Some(uses.len()),
            _ => None,
        };
        node.sent().into_iter().filter_map(uses).collect()
    };
    (1..=100).chain(1..=100).for_each(|port| node.core.handle_use(used(port), node.now));
    node.pass(Duration::from_secs(10));
    assert_eq!(told(&mut node), [64, 36]);
    node.core.handle_use(used(7), node.now);
    node.pass(Duration::from_secs(10));
    assert!(told(&mut node).is_empty());
    node.lose_stream();
    node.pass(Duration::from_secs(40));
    controller.converse(&mut node, device(9));
    node.pass(Duration::from_secs(10));
    assert_eq!(told(&mut node).iter().sum::<usize>(), 100, "again on the next stream");
    (0..20_000).for_each(|port| node.core.handle_use(used(port % 10_000 + 1), node.now));
}
