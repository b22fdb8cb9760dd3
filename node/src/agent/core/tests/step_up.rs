//! Step-ups: who is asked, how often, and what counts as done.

use postern_common::{id::ResourceName, net::Protocol};

use super::*;
use crate::agent::core::step_up::{HAND_BURST, REFUSED_QUIET, waits::MAX_WAITS};

fn git() -> ResourceName {
    "git".parse().expect("a name")
}

fn offer(resource: &str) -> StepUpOffer {
    StepUpOffer {
        resource: resource.parse().expect("a name"),
        addresses: vec!["fd00::7".parse().expect("an address")],
        services: vec!["tcp/22".parse().expect("a service")],
        demand: "MFA within 15 min".into(),
    }
}

fn offered() -> (Node, Controller) {
    let (mut node, mut controller) = joined();
    controller.step_up = vec![offer("git")];
    let grants = controller.grants(device(9), Some(controller.generation));
    node.hear(grants);
    node.sent();
    node.seen.notices.clear();
    (node, controller)
}

fn by_hand(node: &mut Node, client: u64, resource: &str) {
    node.command(Command::StepUp { client, resource: resource.parse().expect("a name") });
}

fn told(node: &mut Node) -> Vec<(u64, Notice)> {
    std::mem::take(&mut node.seen.told)
}

fn packet(node: &mut Node, port: u16) {
    node.core.handle_step_up_wanted("fd00::7".parse().expect("an address"), Protocol::Tcp, port, node.now);
    node.run();
}

fn page(node: &mut Node, resource: &str) {
    let expires = node.now.wall.saturating_add(Duration::from_secs(600));
    let (resource, url) = (resource.parse().expect("a name"), "https://ctl/step-up/x".to_owned());
    node.hear(ToNode::StepUpPending { resource, demand: "MFA within 15 min".into(), url, expires });
}

#[test]
fn packets_ask_once_in_a_minute_and_only_for_what_is_offered() {
    let (mut node, _) = offered();
    packet(&mut node, 443);
    assert!(node.sent().is_empty(), "the port is not offered");
    for _ in 0..100 {
        packet(&mut node, 22);
    }
    assert_eq!(node.sent(), [FromNode::StepUp { resource: git() }]);
    node.pass(QUIET.saturating_sub(Duration::from_secs(1)));
    node.sent();
    packet(&mut node, 22);
    assert!(node.sent().is_empty());
    node.pass(Duration::from_secs(2));
    node.sent();
    packet(&mut node, 22);
    assert_eq!(node.sent(), [FromNode::StepUp { resource: git() }]);
}

#[test]
fn a_page_is_told_of_shown_again_on_request_and_forgotten_in_time() {
    let (mut node, _) = offered();
    page(&mut node, "payroll");
    assert!(node.seen.notices.is_empty(), "nobody offered that");
    page(&mut node, "git");
    assert!(matches!(&node.seen.notices[..], [Notice::StepUp { url, .. }] if url == "https://ctl/step-up/x"));
    by_hand(&mut node, 1, "git");
    assert!(node.sent().is_empty(), "the page that waits is shown again");
    assert!(matches!(&node.seen.told[..], [(1, Notice::StepUp { .. })]));
    assert_eq!(node.seen.notices.len(), 1, "to the one who asked");
    node.pass(Duration::from_secs(601));
    node.sent();
    assert!(node.core.pending_step_up(&git(), node.now.wall).is_none());
    by_hand(&mut node, 2, "git");
    assert_eq!(node.sent(), [FromNode::StepUp { resource: git() }]);
}

#[test]
fn it_is_done_when_the_resource_is_open_and_not_before() {
    let (mut node, mut controller) = offered();
    page(&mut node, "git");
    node.seen.notices.clear();
    controller.step_up.clear(); // the offer is gone, and what it was for is not there yet
    let grants = controller.grants(device(9), Some(controller.generation));
    node.hear(grants);
    assert!(!node.seen.notices.iter().any(|notice| matches!(notice, Notice::SteppedUp { .. })));

    // `db` is open all the while: asking for it by hand is done at once
    by_hand(&mut node, 1, "db");
    assert!(matches!(&told(&mut node)[..], [(1, Notice::SteppedUp { .. })]));
    by_hand(&mut node, 2, "nothing");
    assert!(matches!(&told(&mut node)[..], [(2, Notice::StepUpFailed { .. })]));
}

#[test]
fn who_waits_is_told_when_the_resource_is_open() {
    let (mut node, mut controller) = offered();
    by_hand(&mut node, 1, "git");
    page(&mut node, "git");
    by_hand(&mut node, 2, "git");
    assert_eq!(told(&mut node).len(), 2, "both see the page");
    controller.step_up.clear(); // the document that withdraws the offer may come before the one that opens
    let grants = controller.grants(device(9), Some(controller.generation));
    node.hear(grants);
    assert!(told(&mut node).is_empty());
    controller.resource = "git".parse().expect("a name");
    let grants = controller.grants(device(9), None);
    node.hear(grants);
    let open = |client| (client, Notice::SteppedUp { resource: git() });
    assert_eq!(told(&mut node), [open(1), open(2)]);
    node.pass(Duration::from_secs(4_000));
    assert!(told(&mut node).is_empty(), "nobody waits any more");
}

#[test]
fn every_wait_has_an_end() {
    let why = |node: &mut Node| match &told(node)[..] {
        [(1, Notice::StepUpFailed { message, .. })] => message.clone(),
        other => panic!("{other:?}"),
    };
    // the controller says nothing
    let (mut node, _) = offered();
    by_hand(&mut node, 1, "git");
    node.pass(Duration::from_secs(9));
    assert!(told(&mut node).is_empty());
    node.pass(Duration::from_secs(2));
    assert!(why(&mut node).contains("did not answer"));
    // nobody uses the page
    let (mut node, _) = offered();
    by_hand(&mut node, 1, "git");
    page(&mut node, "git");
    told(&mut node);
    node.pass(Duration::from_secs(599));
    assert!(told(&mut node).is_empty());
    node.pass(Duration::from_secs(2));
    assert!(why(&mut node).contains("in time"));
    // the stream closes
    let (mut node, _) = offered();
    by_hand(&mut node, 1, "git");
    node.lose_stream();
    assert!(why(&mut node).contains("stream"));
    // the offer is withdrawn
    let (mut node, mut controller) = offered();
    by_hand(&mut node, 1, "git");
    page(&mut node, "git");
    told(&mut node);
    controller.step_up.clear();
    let grants = controller.grants(device(9), Some(controller.generation));
    node.hear(grants);
    node.pass(Duration::from_secs(11));
    assert!(why(&mut node).contains("any more"));
    // the controller has no page to give
    let (mut node, _) = offered();
    by_hand(&mut node, 1, "git");
    node.hear(ToNode::StepUpRefused { resource: git(), message: "too often".into() });
    assert_eq!(why(&mut node), "too often");
    node.pass(Duration::from_secs(4_000));
    assert!(told(&mut node).is_empty(), "said once");
}

#[test]
fn a_withdrawn_offer_that_comes_back_is_waited_for_again() {
    let (mut node, mut controller) = offered();
    by_hand(&mut node, 1, "git");
    page(&mut node, "git");
    told(&mut node);
    for step_up in [vec![], vec![offer("git")]] {
        controller.step_up = step_up;
        let grants = controller.grants(device(9), Some(controller.generation));
        node.hear(grants);
    }
    node.pass(Duration::from_secs(60));
    assert!(told(&mut node).is_empty());
}

#[test]
fn asking_by_hand_neither_floods_the_controller_nor_starves_packets() {
    let (mut node, mut controller) = joined();
    let names: Vec<String> = (0..40).map(|number| format!("git-{number}")).collect();
    controller.step_up = names.iter().map(|name| offer(name)).chain([offer("git")]).collect();
    let grants = controller.grants(device(9), Some(controller.generation));
    node.hear(grants);
    node.sent();
    for client in 0..100 {
        by_hand(&mut node, client, "git-0");
        node.command(Command::AbandonStepUp { client });
    }
    assert_eq!(node.sent().len(), 1, "one question is on its way already");
    for (client, name) in (100..).zip(&names) {
        by_hand(&mut node, client, name);
        node.command(Command::AbandonStepUp { client });
    }
    assert_eq!(node.sent().len(), HAND_BURST as usize - 1);
    assert!(told(&mut node).iter().all(|(_, notice)| matches!(notice, Notice::StepUpFailed { .. })));
    node.core.handle_flow_cut(&git(), node.now);
    node.run();
    assert_eq!(node.sent(), [FromNode::StepUp { resource: git() }], "packets have their own share");
}

#[test]
fn a_refusal_keeps_packets_quiet_for_a_short_while_only() {
    let (mut node, _) = offered();
    packet(&mut node, 22);
    node.sent();
    node.hear(ToNode::StepUpRefused { resource: git(), message: "too often".into() });
    packet(&mut node, 22);
    assert!(node.sent().is_empty());
    node.pass(REFUSED_QUIET);
    node.sent();
    packet(&mut node, 22);
    assert_eq!(node.sent(), [FromNode::StepUp { resource: git() }]);
}

#[test]
fn as_many_wait_as_there_is_room_for() {
    let (mut node, _) = offered();
    page(&mut node, "git");
    for client in 0..=MAX_WAITS as u64 {
        by_hand(&mut node, client, "git");
    }
    let last = told(&mut node).pop().expect("each is told something");
    assert!(matches!(last, (_, Notice::StepUpFailed { .. })), "{last:?}");
}

#[test]
fn a_flow_that_is_cut_before_its_reason_comes_is_told_of_when_it_does() {
    let (mut node, mut controller) = joined();
    node.sent();
    node.core.handle_flow_cut(&git(), node.now);
    node.run();
    assert!(node.sent().is_empty(), "nothing says yet that proof would mend it");
    controller.step_up = vec![offer("git")];
    let grants = controller.grants(device(9), Some(controller.generation));
    node.hear(grants);
    assert!(node.sent().contains(&FromNode::StepUp { resource: git() }));

    let (mut late, mut controller) = joined();
    late.core.handle_flow_cut(&git(), late.now);
    late.pass(Duration::from_secs(11));
    controller.step_up = vec![offer("git")];
    late.sent();
    let grants = controller.grants(device(9), Some(controller.generation));
    late.hear(grants);
    assert!(!late.sent().contains(&FromNode::StepUp { resource: git() }), "that was another cut");
}

#[test]
fn an_offer_beside_the_overlay_is_refused_with_its_document() {
    let (mut node, mut controller) = joined();
    let mut wrong = offer("git");
    wrong.addresses = vec!["192.0.2.1".parse().expect("an address")];
    controller.step_up = vec![wrong];
    let grants = controller.grants(device(9), Some(controller.generation));
    node.hear(grants);
    assert_eq!(node.core.refused_documents(), 1);
    assert_eq!(node.core.offers().count(), 0);
}

#[test]
fn a_page_of_a_controller_that_was_away_is_asked_for_again() {
    let (mut node, mut controller) = offered();
    packet(&mut node, 22);
    page(&mut node, "git");
    node.lose_stream();
    node.pass(Duration::from_secs(30));
    controller.converse(&mut node, device(9));
    assert!(node.core.pending_step_up(&git(), node.now.wall).is_none(), "it may have started anew, and know no page");
    packet(&mut node, 22);
    assert_eq!(node.sent(), [FromNode::StepUp { resource: git() }], "within the minute");
}
