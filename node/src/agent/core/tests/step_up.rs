//! Step-ups: who is asked, how often, and what counts as done.

use postern_common::{id::ResourceName, net::Protocol};

use super::*;

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
    node.command(Command::StepUp { resource: git() });
    assert!(node.sent().is_empty(), "the page that waits is shown again");
    assert_eq!(node.seen.notices.len(), 2);
    node.pass(Duration::from_secs(601));
    node.sent();
    assert!(node.core.pending_step_up(&git(), node.now.wall).is_none());
    node.command(Command::StepUp { resource: git() });
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
    node.command(Command::StepUp { resource: "db".parse().expect("a name") });
    assert!(node.seen.notices.iter().any(|notice| matches!(notice, Notice::SteppedUp { .. })));
    node.command(Command::StepUp { resource: "nothing".parse().expect("a name") });
    assert!(matches!(node.seen.notices.last(), Some(Notice::StepUpFailed { .. })));
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
