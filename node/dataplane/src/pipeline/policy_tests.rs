//! Ceiling, watched rules, fragments, overlapping permissions, replays after a restart.

use postern_common::{grant::Mode, id::Tag, key::PresharedKey, reason::DenyReason};

use crate::{
    Ceiling, Direction, DropReason, LocalVerdict, Settings,
    packet::{
        batch::{Joining, TunBatch, UdpBatch},
        build::{Tcp, fragment, ip, udp_body},
        view::TcpFlags,
    },
    testing::*,
    wireguard::{WireGuard, simulated::Simulated},
};

const HOUR: u64 = 3_600_000;

fn couple() -> (Node<Simulated>, Node<Simulated>) {
    let settings = Settings { greetings: 0, ..Settings::default() };
    let mut a = Node::new(1, settings.clone(), Simulated::new(1), at(0));
    let mut b = Node::new(2, settings, Simulated::new(2), at(0));
    b.snapshot(vec![peer(2, 1, vec![permission("rule", &["tcp/443", "udp/53"], HOUR)], vec![])], at(0));
    a.snapshot(vec![peer(1, 2, vec![], vec![permission("all", &["tcp/*", "udp/*"], HOUR)])], at(0));
    (a, b)
}

fn syn(port: u16) -> Vec<u8> {
    let (source, destination) = ((inner(1)[0], 40_000), (inner(2)[0], port));
    Tcp { source, destination, sequence: 1, acknowledgement: 0, flags: TcpFlags::SYN, options: &[], payload: b"" }
        .packet()
}

fn ceiling(node: &mut Node<Simulated>, ceiling: Ceiling, ms: u64) -> usize {
    let (mut udp, mut tun) = (UdpBatch::new(), TunBatch::new(Joining::Nothing));
    node.plane.set_ceiling(ceiling, at(ms), &mut crate::Out { udp: &mut udp, tun: &mut tun });
    tun.frames().len()
}

#[test]
fn the_ceiling_closes_what_a_grant_opens_and_cuts_what_lives() {
    let (mut a, mut b) = couple();
    a.local_sends(&syn(443), at(5));
    settle(&mut [&mut a, &mut b], at(5));
    assert_eq!(b.take_delivered().len(), 1);
    let only_dns = Ceiling { services: Some(vec!["udp/53".parse().unwrap()]), tags: None };
    assert_eq!(ceiling(&mut b, only_dns, 6), 1, "an RST for the local socket");
    a.local_sends(&syn(443), at(7));
    settle(&mut [&mut a, &mut b], at(7));
    assert!(b.delivered.is_empty());
    assert_eq!(b.plane.counters().denied(Direction::Inbound, DenyReason::Ceiling), 1);
    let tagged: Tag = "admin".parse().unwrap();
    ceiling(&mut b, Ceiling { services: None, tags: Some(vec![tagged.clone()]) }, 8);
    a.local_sends(&syn(443), at(9));
    settle(&mut [&mut a, &mut b], at(9));
    assert!(b.delivered.is_empty());
    let mut admin = peer(2, 1, vec![permission("rule", &["tcp/443"], HOUR)], vec![]);
    admin.tags.push(tagged);
    b.upsert(admin, at(10));
    a.local_sends(&syn(443), at(11));
    settle(&mut [&mut a, &mut b], at(11));
    assert_eq!(b.take_delivered().len(), 1);
}

#[test]
fn a_watched_rule_lets_pass_and_records_why_it_would_not() {
    let (mut a, mut b) = couple();
    let mut watched = permission("watched", &["tcp/8080"], HOUR);
    watched.mode = Mode::Monitor { would_deny: "posture is stale".into() };
    b.upsert(peer(2, 1, vec![watched], vec![]), at(1));
    a.local_sends(&syn(8080), at(5));
    settle(&mut [&mut a, &mut b], at(5));
    assert_eq!(b.take_delivered().len(), 1);
    let record = b.plane.poll_record().unwrap();
    assert_eq!(record.permit.unwrap().would_deny.as_deref(), Some("posture is stale"));
    assert_eq!(b.plane.counters().would_deny, 1);
}

#[test]
fn when_one_permission_expires_the_flow_goes_on_under_another() {
    let (mut a, mut b) = couple();
    let both = vec![permission("short", &["tcp/443"], 10_000), permission("long", &["tcp/*"], HOUR)];
    let mut both = both;
    both[1].mode = Mode::Monitor { would_deny: "why".into() };
    b.upsert(peer(2, 1, both, vec![]), at(1));
    a.local_sends(&syn(443), at(5));
    settle(&mut [&mut a, &mut b], at(5));
    assert_eq!(b.plane.flows()[0].permit.rule.as_str(), "short", "enforced comes before watched");
    pass_time(&mut [&mut a, &mut b], 5, 10_500);
    assert_eq!(b.take_delivered().len(), 1, "no RST");
    assert_eq!(b.plane.flows()[0].permit.rule.as_str(), "long");
    let flow = b.plane.flows()[0].flow;
    assert!(matches!(b.plane.explain(flow, at(10_500)).verdict, LocalVerdict::Allow { .. }));
}

#[test]
fn later_fragments_pass_only_after_an_admitted_first() {
    let (mut a, mut b) = couple();
    for family in 0..2 {
        let (from, to) = (inner(1)[family], inner(2)[family]);
        let parts = |port: u16| {
            let body = udp_body((from, 9), (to, port), &[1; 56]);
            [fragment(from, to, 17, 0, true, &body[..32]), fragment(from, to, 17, 32, false, &body[32..])]
        };
        let [first, later] = parts(53);
        let ms = 10_000 * (family as u64 + 1);
        a.local_sends(&later, at(ms));
        settle(&mut [&mut a, &mut b], at(ms));
        assert!(b.delivered.is_empty(), "before its first");
        a.local_sends(&first, at(ms + 1));
        a.local_sends(&later, at(ms + 1));
        settle(&mut [&mut a, &mut b], at(ms + 1));
        assert_eq!(b.take_delivered().len(), 2);
        let [refused, orphan] = parts(54);
        a.local_sends(&refused, at(ms + 6_000));
        a.local_sends(&orphan, at(ms + 6_000));
        settle(&mut [&mut a, &mut b], at(ms + 6_000));
        assert!(b.delivered.is_empty(), "the first was refused there");
    }
}

#[test]
fn an_initiation_replayed_after_a_restart_moves_no_endpoint() {
    let settings = Settings { greetings: 0, ..Settings::default() };
    let mut a = Node::new(1, settings.clone(), WireGuard::new(at(0)), at(0));
    a.snapshot(vec![peer(1, 2, vec![], vec![permission("rule", &["tcp/443"], HOUR)])], at(0));
    a.local_sends(&syn(443), at(5));
    let (_, initiation) = a.sent.pop_front().unwrap();
    let mut restarted = Node::new(2, settings, WireGuard::new(at(0)), at(10));
    restarted.snapshot(vec![peer(2, 1, vec![permission("rule", &["tcp/443"], HOUR)], vec![])], at(10));
    restarted.network_brings(&initiation, outer(66), at(11));
    let status = &restarted.plane.peers(at(11))[0];
    assert_eq!((status.endpoint, status.session_since), (Some(outer(1)), None), "what it told proves nothing");
}

#[test]
fn an_initiation_after_the_last_permission_has_passed_is_not_answered_even_before_any_timer() {
    let settings = Settings { greetings: 0, ..Settings::default() };
    let mut a = Node::new(1, settings.clone(), WireGuard::new(at(0)), at(0));
    a.snapshot(vec![peer(1, 2, vec![], vec![permission("rule", &["tcp/443"], HOUR)])], at(0));
    a.local_sends(&syn(443), at(5));
    let (_, initiation) = a.sent.pop_front().unwrap();
    for (ms, answers) in [(9_999, 1), (10_000, 0)] {
        let mut b = Node::new(2, settings.clone(), WireGuard::new(at(0)), at(0));
        b.snapshot(vec![peer(2, 1, vec![permission("rule", &["tcp/443"], 10_000)], vec![])], at(0));
        b.network_brings(&initiation, outer(1), at(ms));
        assert_eq!(b.sent.len(), answers, "{ms}");
    }
}

#[test]
fn initiations_of_one_key_in_quick_succession_are_answered_once() {
    let settings = Settings { greetings: 0, ..Settings::default() };
    let initiation = |ms| {
        let mut a = Node::new(1, settings.clone(), WireGuard::new(at(0)), at(0));
        a.snapshot(vec![peer(1, 2, vec![], vec![permission("rule", &["tcp/443"], HOUR)])], at(0));
        a.local_sends(&syn(443), at(ms));
        a.sent.pop_front().unwrap().1
    };
    let mut b = Node::new(2, settings.clone(), WireGuard::new(at(0)), at(0));
    b.snapshot(vec![peer(2, 1, vec![permission("rule", &["tcp/443"], HOUR)], vec![])], at(0));
    // Each is newer than the one before by its own timestamp, so only the interval speaks against it.
    let answers = [10, 20, 29, 30].map(|ms| {
        b.network_brings(&initiation(ms), outer(1), at(ms));
        b.sent.drain(..).count()
    });
    assert_eq!(answers, [1, 0, 0, 1]);
    assert_eq!(b.plane.counters().dropped(DropReason::InitiationTooSoon), 2);
}

#[test]
fn recorded_initiations_that_are_sent_again_displace_no_living_session() {
    let settings = Settings { greetings: 0, ..Settings::default() };
    let both = || vec![permission("rule", &["tcp/443", "udp/53"], HOUR)];
    let laptop = || {
        let mut a = Node::new(1, settings.clone(), WireGuard::new(at(0)), at(0));
        a.snapshot(vec![peer(1, 2, both(), both())], at(0));
        a
    };
    let recorded = (1..=12).map(|ms| {
        let mut a = laptop();
        a.local_sends(&syn(443), at(ms));
        a.sent.pop_front().unwrap().1
    });
    let recorded: Vec<_> = recorded.collect();
    // The server has been restarted, knows no timestamp of the laptop's, and begins a session by itself.
    let mut a = laptop();
    let mut b = Node::new(2, settings.clone(), WireGuard::new(at(0)), at(10));
    b.snapshot(vec![peer(2, 1, both(), both())], at(10));
    let (from, to) = ((inner(2)[0], 9), (inner(1)[0], 53));
    let question = ip(from.0, to.0, 17, &udp_body(from, to, b"?"));
    b.local_sends(&question, at(20));
    settle(&mut [&mut a, &mut b], at(20));
    assert_eq!(a.take_delivered().len(), 1);
    for (index, initiation) in recorded.iter().enumerate() {
        let now = at(100 + 30 * index as u64);
        b.network_brings(initiation, outer(66), now);
        b.sent.clear();
    }
    b.local_sends(&question, at(1_000));
    a.local_sends(&syn(443), at(1_000));
    settle(&mut [&mut a, &mut b], at(1_000));
    assert_eq!((a.take_delivered().len(), b.take_delivered().len()), (1, 1));
}

#[test]
fn a_session_that_its_initiator_has_not_confirmed_carries_nothing() {
    let settings = Settings { greetings: 0, ..Settings::default() };
    let mut a = Node::new(1, settings.clone(), WireGuard::new(at(0)), at(0));
    a.snapshot(vec![peer(1, 2, vec![], vec![permission("rule", &["tcp/443"], HOUR)])], at(0));
    a.local_sends(&syn(443), at(5));
    let (_, initiation) = a.sent.pop_front().unwrap();
    let mut b = Node::new(2, settings, WireGuard::new(at(0)), at(0));
    b.snapshot(vec![peer(2, 1, vec![], vec![permission("rule", &["udp/53"], HOUR)])], at(0));
    b.network_brings(&initiation, outer(66), at(10)); // recorded before a restart, perhaps, and sent again
    assert_eq!(b.sent.drain(..).map(|(_, answer)| answer[0]).collect::<Vec<_>>(), [2]);
    let (from, to) = ((inner(2)[0], 9), (inner(1)[0], 53));
    b.local_sends(&ip(from.0, to.0, 17, &udp_body(from, to, b"for the living")), at(20));
    let sent: Vec<_> = b.sent.drain(..).map(|(to, datagram)| (to, datagram[0])).collect();
    assert_eq!(sent, [(outer(1), 1)], "a handshake of our own, to where the peer is known to be");
}

#[test]
fn a_flow_of_an_address_that_its_peer_owns_no_longer_is_cut_although_its_rule_stays() {
    let (mut a, mut b) = couple();
    a.local_sends(&syn(443), at(5));
    settle(&mut [&mut a, &mut b], at(5));
    assert_eq!(b.take_delivered().len(), 1);
    let mut moved = peer(2, 1, vec![permission("rule", &["tcp/443", "udp/53"], HOUR)], vec![]);
    moved.addresses = vec![inner(1)[1]];
    b.upsert(moved, at(6));
    assert_eq!(b.plane.flow_count(), 0);
    assert_eq!(b.take_delivered().len(), 1, "the local socket is told");
}

#[test]
fn a_place_and_an_address_that_change_hands_carry_nothing_over() {
    let (mut a, mut b) = couple();
    a.local_sends(&syn(443), at(5));
    settle(&mut [&mut a, &mut b], at(5));
    assert_eq!(b.take_delivered().len(), 1);
    // Device 3 is told to own device 1's addresses; then device 1 goes and a fourth takes its place in the tables.
    let mut heir = peer(2, 3, vec![permission("rule", &["tcp/443"], HOUR)], vec![]);
    heir.addresses = inner(1).to_vec();
    b.upsert(heir, at(6));
    assert_eq!(b.plane.flow_count(), 0, "the former owner's flow is cut");
    assert_eq!(b.take_delivered().len(), 1, "and the local socket is told");
    b.remove(1, at(7));
    b.upsert(peer(2, 4, vec![permission("rule", &["tcp/443"], HOUR)], vec![]), at(8));
    assert_eq!(b.plane.peer_count(), 2);
    let owner =
        |node: &Node<Simulated>, number: u8| node.plane.whois((inner(number)[0], 1).into()).map(|who| who.peer.device);
    assert_eq!(owner(&b, 1), Some(device(3)), "removing the former owner takes nothing from the present one");
    assert_eq!(owner(&b, 4), Some(device(4)));
    b.upsert(peer(2, 3, vec![permission("rule", &["tcp/443"], HOUR)], vec![]), at(9));
    assert_eq!((owner(&b, 1), owner(&b, 3)), (None, Some(device(3))), "what is not listed any more is nobody's");
    a.local_sends(&syn(443), at(10));
    settle(&mut [&mut a, &mut b], at(10));
    assert!(b.delivered.is_empty());
}

/// A controller that came back may have drawn another pre-shared key for two WireGuard keys that both ends still use, and a
/// destination that was away meanwhile hears of it in one document.
#[test]
fn another_preshared_key_between_the_same_keys_takes_the_place_of_the_old_one() {
    let (mut a, mut b) = couple();
    for (ms, preshared) in [(1_000, 7), (2_000, 8)] {
        let mut inbound = peer(2, 1, vec![permission("rule", &["udp/53"], HOUR)], vec![]);
        let mut outbound = peer(1, 2, vec![], vec![permission("rule", &["udp/53"], HOUR)]);
        for grant in [&mut inbound, &mut outbound] {
            grant.pairs[0].preshared = PresharedKey::from_bytes([preshared; 32]);
        }
        b.upsert(inbound, at(ms));
        a.upsert(outbound, at(ms));
        let (from, to) = ((inner(1)[0], 40_000), (inner(2)[0], 53));
        a.local_sends(&ip(from.0, to.0, 17, &udp_body(from, to, b"who")), at(ms + 10));
        settle(&mut [&mut a, &mut b], at(ms + 10));
        assert_eq!(b.take_delivered().len(), 1, "after {ms} ms");
    }
}

#[test]
fn what_a_step_up_would_open_is_refused_for_that_without_a_reset_and_opens_for_the_same_attempt() {
    let settings = Settings { greetings: 0, ..Settings::default() };
    let mut a = Node::new(1, settings.clone(), Simulated::new(1), at(0));
    let mut b = Node::new(2, settings, Simulated::new(2), at(0));
    b.snapshot(vec![], at(0));
    let mut own = own(1);
    own.step_up = vec![postern_common::grant::StepUpOffer {
        resource: "git".parse().unwrap(),
        addresses: inner(2).to_vec(),
        services: vec!["tcp/22".parse().unwrap()],
        demand: "MFA within 15 min".into(),
    }];
    let grants = a.authority.snapshot(own, vec![]);
    a.apply(grants, at(0));
    let denied = |a: &Node<Simulated>, reason| a.plane.counters().denied(Direction::Outbound, reason);

    a.local_sends(&syn(22), at(5));
    assert_eq!(denied(&a, DenyReason::StepUp), 1);
    assert!(a.take_delivered().is_empty(), "no RST: the attempt waits");
    assert!(a.sent.is_empty(), "and nobody else hears of it");
    a.local_sends(&syn(443), at(6));
    assert_eq!(denied(&a, DenyReason::UnknownPeer), 1, "what the offer does not name is not there");
    assert_eq!(a.take_delivered().len(), 1, "an RST");

    b.upsert(peer(2, 1, vec![permission("git", &["tcp/22"], HOUR)], vec![]), at(7));
    a.upsert(peer(1, 2, vec![], vec![permission("git", &["tcp/22"], HOUR)]), at(7));
    a.local_sends(&syn(22), at(8)); // the kernel sends the same SYN again
    settle(&mut [&mut a, &mut b], at(8));
    assert_eq!(b.take_delivered().len(), 1);
}
