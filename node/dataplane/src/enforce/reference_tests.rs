//! The compiled rules and the flow table against a slow, obvious evaluator, for any grants and any sequence of packets.
//!
//! The reference keeps a list of flows and asks every permission in turn, as DESIGN section 4 says it, sharing no
//! code with what it checks but the words of `postern_common` and the packet parser.

use std::{net::IpAddr, time::Duration};

use postern_common::{
    flow_record::Originator,
    grant::{Mode, OnDeny, OwnGrant, PeerGrant, Permission},
    id::{LeaseId, SubjectId},
    net::{FiveTuple, Protocol, Service},
    time::{Deadline, Monotonic, Now, WallTime},
};
use proptest::prelude::*;

use super::{Enforcer, Facts, Verdict};
use crate::{
    Ceiling, Direction, Settings,
    packet::{
        build::{Tcp, icmp, ip, udp_body},
        view::{PacketView, TcpFlags},
    },
    testing::{device, inner},
};

/// Three machines: 0 is the node; 1 and 2 are its peers.
fn address(machine: u8, six: bool) -> IpAddr {
    inner(machine + 1)[usize::from(!six)]
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum What {
    Tcp(u8),
    Udp,
    Ask,
    Answer,
    /// An ICMP error about a TCP (or UDP) packet that went the other way.
    Error {
        about_tcp: bool,
    },
}

#[derive(Debug, Clone)]
enum Step {
    Packet { peer: u8, six: bool, inbound: bool, what: What, local_port: u16, remote_port: u16 },
    Wait { ms: u64, tick: bool },
    SetWallClock { by_ms: i64 },
    Grant { peer: u8, subject: u8, inbound: Vec<Rule>, outbound: Vec<Rule> },
    Renew { peer: u8, remaining_ms: u64 },
    Remove { peer: u8 },
    Ceiling(Option<Vec<&'static str>>),
}

#[derive(Debug, Clone)]
struct Rule {
    name: u8,
    services: Vec<&'static str>,
    remaining_ms: u64,
    watched: bool,
}

#[derive(Debug, Clone)]
struct RefPeer {
    subject: u8,
    inbound: Vec<Permission<Deadline>>,
    outbound: Vec<Permission<Deadline>>,
}

#[derive(Debug, Clone, PartialEq)]
struct RefFlow {
    peer: u8,
    protocol: Protocol,
    local: (IpAddr, u16),
    remote: (IpAddr, u16),
    /// ICMP alone: who asks.
    asker: Option<Originator>,
    originator: Originator,
    last: Monotonic,
    answered: bool,
    opening: bool,
    reset: bool,
    fins: Vec<Originator>,
}

#[derive(Debug, Default)]
struct Reference {
    peers: [Option<RefPeer>; 3],
    ceiling: Option<Vec<Service>>,
    flows: Vec<RefFlow>,
    /// Flows that ended by silence: the wheel may come to them a little later.
    silent: Vec<(Originator, FiveTuple)>,
}

fn opposite(end: Originator) -> Originator {
    if end == Originator::Local { Originator::Peer } else { Originator::Local }
}

impl RefFlow {
    fn idle_after(&self) -> Duration {
        Duration::from_secs(match self.protocol {
            Protocol::Tcp if self.reset || self.fins.len() == 2 => 5,
            Protocol::Tcp if self.opening => 60,
            Protocol::Tcp if self.fins.len() == 1 => 600,
            Protocol::Tcp => 24 * 3_600,
            Protocol::Udp if self.answered => 300,
            Protocol::Udp => 60,
            Protocol::Icmp => 30,
        })
    }

    fn service_port(&self) -> u16 {
        if self.originator == Originator::Local { self.remote.1 } else { self.local.1 }
    }

    fn tuple(&self) -> FiveTuple {
        let (from, to) =
            if self.originator == Originator::Local { (self.local, self.remote) } else { (self.remote, self.local) };
        FiveTuple {
            protocol: self.protocol,
            source: from.0,
            source_port: from.1,
            destination: to.0,
            destination_port: to.1,
        }
    }

    fn follow(&mut self, sender: Originator, flags: u8) {
        let has = |bit: u8| flags & bit != 0;
        let (syn, ack, fin) = (has(TcpFlags::SYN), has(TcpFlags::ACK), has(TcpFlags::FIN));
        if has(TcpFlags::RST) {
            self.reset = true;
        } else if syn && !ack {
            (self.opening, self.reset) = (true, false);
            self.fins.clear();
        } else if self.reset {
            (self.opening, self.reset) = (false, false);
            self.fins = if fin { vec![sender] } else { vec![] };
        } else if self.opening && !(sender == self.originator && ack && !syn) {
            // The originator has not acknowledged yet: nothing changes.
        } else {
            self.opening = false;
            if fin && !self.fins.contains(&sender) {
                self.fins.push(sender);
            }
        }
    }
}

impl Reference {
    /// The rule under which `originator` may open this now: enforced before watched, then the longest lived, then the
    /// first.
    fn policy(&self, peer: u8, originator: Originator, protocol: Protocol, port: u16, now: Now) -> Option<String> {
        let known = self.peers[usize::from(peer)].as_ref()?;
        let inbound = originator == Originator::Peer;
        if inbound && self.ceiling.as_ref().is_some_and(|most| !most.iter().any(|s| s.contains(protocol, port))) {
            return None;
        }
        let mut best: Option<&Permission<Deadline>> = None;
        for permission in if inbound { &known.inbound } else { &known.outbound } {
            let names = permission.services.iter().any(|service| service.contains(protocol, port));
            if !names || permission.until.has_passed(now) {
                continue;
            }
            let rank = |p: &Permission<Deadline>| (p.mode == Mode::Enforce, p.until.remaining(now));
            if best.is_none_or(|best| rank(permission) > rank(best)) {
                best = Some(permission);
            }
        }
        best.map(|permission| permission.rule.to_string())
    }

    fn may_go_on(&self, flow: &RefFlow, now: Now) -> bool {
        self.policy(flow.peer, flow.originator, flow.protocol, flow.service_port(), now).is_some()
    }

    fn forget_silent(&mut self, now: Now) {
        let (gone, kept) = self.flows.drain(..).partition(|f| now.monotonic.since(f.last) >= f.idle_after());
        self.flows = kept;
        let gone: Vec<RefFlow> = gone;
        self.silent.extend(gone.iter().map(|flow| (flow.originator, flow.tuple())));
    }

    fn cut(&mut self, peer: Option<u8>, now: Now) {
        let flows = std::mem::take(&mut self.flows);
        let keep = |flow: &RefFlow| peer.is_some_and(|peer| peer != flow.peer) || self.may_go_on(flow, now);
        let kept = flows.into_iter().filter(keep).collect();
        self.flows = kept;
    }

    /// Returns the rule of a flow that the packet opens (empty for a known flow), or `None` for a refusal.
    fn packet(&mut self, step: &Step, now: Now) -> Option<Option<String>> {
        let Step::Packet { peer, six, inbound, what, local_port, remote_port } = step.clone() else { unreachable!() };
        self.forget_silent(now);
        let sender = if inbound { Originator::Peer } else { Originator::Local };
        let protocol = match what {
            What::Tcp(_) | What::Error { about_tcp: true } => Protocol::Tcp,
            What::Udp | What::Error { about_tcp: false } => Protocol::Udp,
            What::Ask | What::Answer => Protocol::Icmp,
        };
        let asker = match what {
            What::Ask => Some(sender),
            What::Answer => Some(opposite(sender)),
            What::Tcp(_) | What::Udp | What::Error { .. } => None,
        };
        let (local, remote) = ends(peer, six, what, local_port, remote_port);
        let same =
            |f: &RefFlow| (f.peer, f.protocol, f.asker, f.local, f.remote) == (peer, protocol, asker, local, remote);
        let known = self.flows.iter().position(same);
        let opens = matches!(what, What::Tcp(flags) if flags & (TcpFlags::SYN | TcpFlags::ACK | TcpFlags::RST) == TcpFlags::SYN);
        if let Some(place) = known {
            let flow = &self.flows[place];
            let over = flow.reset || flow.fins.len() == 2;
            let begins_again = flow.protocol == Protocol::Tcp && opens && (sender != flow.originator || over);
            if !begins_again {
                if !self.may_go_on(flow, now) {
                    self.flows.remove(place);
                    return None;
                }
                let flow = &mut self.flows[place];
                if let What::Tcp(flags) = what {
                    flow.follow(sender, flags);
                }
                flow.answered |= sender != flow.originator;
                if !matches!(what, What::Error { .. }) {
                    flow.last = now.monotonic;
                }
                return Some(None);
            }
        }
        let answers_opening =
            matches!(what, What::Tcp(flags) if flags & TcpFlags::SYN != 0 && flags & TcpFlags::ACK != 0);
        if answers_opening || matches!(what, What::Answer | What::Error { .. }) {
            return None;
        }
        let port = if sender == Originator::Local { remote.1 } else { local.1 };
        let rule = self.policy(peer, sender, protocol, port, now)?;
        if let Some(place) = known {
            self.flows.remove(place);
        }
        let mut flow = RefFlow {
            peer,
            protocol,
            local,
            remote,
            asker,
            originator: sender,
            last: now.monotonic,
            answered: false,
            opening: opens,
            reset: false,
            fins: vec![],
        };
        if let What::Tcp(flags) = what {
            flow.follow(sender, flags);
        }
        self.flows.push(flow);
        Some(Some(rule))
    }
}

/// Local and remote end; an echo has its identifier on both.
fn ends(peer: u8, six: bool, what: What, local_port: u16, remote_port: u16) -> ((IpAddr, u16), (IpAddr, u16)) {
    let remote_port = if matches!(what, What::Ask | What::Answer) { local_port } else { remote_port };
    ((address(0, six), local_port), (address(peer, six), remote_port))
}

fn bytes(peer: u8, six: bool, inbound: bool, what: What, local_port: u16, remote_port: u16) -> Vec<u8> {
    let (local, remote) = ends(peer, six, what, local_port, remote_port);
    let (from, to) = if inbound { (remote, local) } else { (local, remote) };
    let tcp = |source, destination, flags| {
        Tcp { source, destination, sequence: 1, acknowledgement: 1, flags, options: &[], payload: b"" }.packet()
    };
    let echo = |kind: u8| {
        let identifier = local_port.to_be_bytes();
        icmp(from.0, to.0, kind, 0, &[identifier[0], identifier[1], 0, 1])
    };
    match what {
        What::Tcp(flags) => tcp(from, to, flags),
        What::Udp => ip(from.0, to.0, 17, &udp_body(from, to, b"x")),
        What::Ask => echo(if six { 128 } else { 8 }),
        What::Answer => echo(if six { 129 } else { 0 }),
        What::Error { about_tcp } => {
            let quoted =
                if about_tcp { tcp(to, from, TcpFlags::ACK) } else { ip(to.0, from.0, 17, &udp_body(to, from, b"x")) };
            let (kind, code) = if six { (1, 4) } else { (3, 3) };
            icmp(from.0, to.0, kind, code, &[&[0; 4], &quoted[..]].concat())
        }
    }
}

fn permissions(rules: &[Rule], now: Now) -> Vec<Permission<Deadline>> {
    let permission = |rule: &Rule| Permission {
        rule: format!("rule-{}", rule.name).parse().unwrap(),
        resource: "resource".parse().unwrap(),
        lease: LeaseId::from_bytes([rule.name; 16]),
        services: rule.services.iter().map(|service| service.parse().unwrap()).collect(),
        until: deadline(now, rule.remaining_ms),
        on_deny: OnDeny::Drop,
        mode: if rule.watched { Mode::Monitor { would_deny: "why".into() } } else { Mode::Enforce },
        limits: Default::default(),
    };
    rules.iter().map(permission).collect()
}

fn deadline(now: Now, remaining_ms: u64) -> Deadline {
    let remaining = Duration::from_millis(remaining_ms);
    Deadline { monotonic: now.monotonic.saturating_add(remaining), wall: now.wall.saturating_add(remaining) }
}

fn grant(number: u8, peer: &RefPeer) -> PeerGrant<Deadline> {
    PeerGrant {
        device: device(number + 1),
        name: "peer".parse().unwrap(),
        subject: SubjectId::from_bytes([peer.subject; 16]),
        subject_name: "subject".into(),
        tags: vec![],
        addresses: inner(number + 1).to_vec(),
        pairs: vec![],
        endpoints: vec![],
        inbound: peer.inbound.clone(),
        outbound: peer.outbound.clone(),
        scan: None,
    }
}

struct Both {
    fast: Enforcer,
    slow: Reference,
    now: Now,
}

impl Both {
    fn new() -> Self {
        let now = Now { monotonic: Monotonic::from_millis(5_000), wall: WallTime::from_millis(1_000_000_000) };
        let mut fast = Enforcer::new(&Settings::default(), now);
        let own = OwnGrant {
            name: "node".parse().unwrap(),
            subject: SubjectId::from_bytes([1; 16]),
            subject_name: "me".into(),
            tags: vec![],
            addresses: inner(1).to_vec(),
            overlay: vec![],
            domain: "internal".into(),
            keys: vec![],
            session_until: None,
            quarantine: None,
            step_up: vec![],
            scan: None,
        };
        fast.set_own(own, now);
        Self { fast, slow: Reference::default(), now }
    }

    fn upsert(&mut self, number: u8, peer: RefPeer) {
        self.fast.upsert(&grant(number, &peer), self.now);
        let place = &mut self.slow.peers[usize::from(number)];
        if place.as_ref().is_some_and(|known| known.subject != peer.subject) {
            self.slow.flows.retain(|flow| flow.peer != number);
        }
        *place = Some(peer);
        self.slow.cut(Some(number), self.now);
    }

    fn tick(&mut self) {
        self.fast.handle_timeout(self.now);
        self.slow.forget_silent(self.now);
        self.slow.cut(None, self.now);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Packet { peer, six, inbound, what, local_port, remote_port } => {
                let expected = self.slow.packet(step, self.now);
                let packet = bytes(*peer, *six, *inbound, *what, *local_port, *remote_port);
                let view = PacketView::parse(&packet).expect("a right packet");
                let direction = if *inbound { Direction::Inbound } else { Direction::Outbound };
                self.fast.glance_at_clock(self.now);
                let verdict = match self.fast.owner(address(*peer, *six)) {
                    None => None,
                    Some(slot) => {
                        let facts = Facts::read(slot, &view, direction).expect("rules can name it");
                        match self.fast.judge(&facts, self.now) {
                            Verdict::Allow(permit) => {
                                self.fast.account(&permit, 1, packet.len() as u64);
                                Some(())
                            }
                            Verdict::Deny(_) => None,
                        }
                    }
                };
                assert_eq!(verdict.is_some(), expected.is_some(), "{step:?}\nreference: {:#?}", self.slow);
                if let Some(Some(rule)) = expected {
                    let newest = self.slow.flows.last().expect("it was just opened");
                    let found = self
                        .fast
                        .flows()
                        .into_iter()
                        .find(|f| f.flow == newest.tuple() && f.originator == newest.originator);
                    assert_eq!(found.expect("an entry").permit.rule.as_str(), rule);
                }
            }
            Step::Wait { ms, tick } => {
                let wait = Duration::from_millis(*ms);
                self.now = Now {
                    monotonic: self.now.monotonic.saturating_add(wait),
                    wall: self.now.wall.saturating_add(wait),
                };
                if *tick {
                    self.tick();
                }
            }
            Step::SetWallClock { by_ms } => {
                self.now.wall = WallTime::from_millis(self.now.wall.as_millis() + by_ms);
                self.tick();
            }
            Step::Grant { peer, subject, inbound, outbound } => {
                let (inbound, outbound) = (permissions(inbound, self.now), permissions(outbound, self.now));
                self.upsert(*peer, RefPeer { subject: *subject, inbound, outbound });
            }
            Step::Renew { peer, remaining_ms } => {
                let Some(mut known) = self.slow.peers[usize::from(*peer)].clone() else { return };
                for permission in known.inbound.iter_mut().chain(&mut known.outbound) {
                    permission.until = deadline(self.now, *remaining_ms);
                }
                let generation =
                    |fast: &Enforcer| fast.slot_of(device(peer + 1)).map(|slot| fast.peer(slot).generation);
                let before = generation(&self.fast);
                self.upsert(*peer, known);
                assert_eq!(before, generation(&self.fast), "a renewal makes no generation");
            }
            Step::Remove { peer } => {
                self.fast.remove(device(peer + 1), self.now);
                self.slow.peers[usize::from(*peer)] = None;
                self.slow.flows.retain(|flow| flow.peer != *peer);
            }
            Step::Ceiling(services) => {
                let parse =
                    |list: &Vec<&str>| list.iter().map(|service| service.parse().unwrap()).collect::<Vec<Service>>();
                let services = services.as_ref().map(parse);
                let changed = self.slow.ceiling != services;
                self.slow.ceiling.clone_from(&services);
                self.fast.set_ceiling(Ceiling { services, tags: None }, self.now);
                if changed {
                    self.slow.cut(None, self.now);
                }
            }
        }
    }

    /// With time brought up to date, both know the same flows: nothing lives on without a packet.
    fn compare_flows(&mut self) {
        self.tick();
        let fast: Vec<_> = self.fast.flows().into_iter().map(|flow| (flow.originator, flow.flow)).collect();
        let slow: Vec<_> = self.slow.flows.iter().map(|flow| (flow.originator, flow.tuple())).collect();
        for flow in &slow {
            assert!(fast.contains(flow), "{flow:?} was lost");
        }
        for flow in &fast {
            assert!(slow.contains(flow) || self.slow.silent.contains(flow), "{flow:?} lives on");
        }
    }
}

fn services() -> impl Strategy<Value = Vec<&'static str>> {
    let one = prop::sample::select(vec![
        "tcp/1", "tcp/2", "tcp/1-2", "tcp/2-3", "tcp/*", "udp/1", "udp/2-3", "udp/*", "icmp",
    ]);
    prop::collection::vec(one, 0..4)
}

fn rules() -> impl Strategy<Value = Vec<Rule>> {
    let remaining = prop::sample::select(vec![0, 400, 3_000, 30_000, 30_000, 400_000, 400_000]);
    let rule = (0..5_u8, services(), remaining, prop::bool::weighted(0.25))
        .prop_map(|(name, services, remaining_ms, watched)| Rule { name, services, remaining_ms, watched });
    prop::collection::vec(rule, 0..4)
}

fn what() -> impl Strategy<Value = What> {
    const S: u8 = TcpFlags::SYN;
    const A: u8 = TcpFlags::ACK;
    let flags = prop::sample::select(vec![
        S,
        S,
        S | A,
        A,
        A,
        A | TcpFlags::FIN,
        A | TcpFlags::FIN,
        TcpFlags::RST,
        TcpFlags::RST | A,
    ]);
    prop_oneof![
        6 => flags.prop_map(What::Tcp),
        3 => Just(What::Udp),
        1 => Just(What::Ask),
        1 => Just(What::Answer),
        1 => any::<bool>().prop_map(|about_tcp| What::Error { about_tcp }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let wait = prop::sample::select(vec![1, 400, 1_000, 3_000, 6_000, 29_000, 61_000, 301_000]);
    let packet = (1..3_u8, any::<bool>(), any::<bool>(), what(), 1..4_u16, 1..4_u16).prop_map(
        |(peer, six, inbound, what, local_port, remote_port)| Step::Packet {
            peer,
            six,
            inbound,
            what,
            local_port,
            remote_port,
        },
    );
    prop_oneof![
        24 => packet,
        4 => (wait, any::<bool>()).prop_map(|(ms, tick)| Step::Wait { ms, tick }),
        1 => prop::sample::select(vec![-500_000, -2_000, 2_000, 50_000, 500_000]).prop_map(|by_ms| Step::SetWallClock { by_ms }),
        4 => (1..3_u8, prop::sample::select(vec![1, 1, 1, 2_u8]), rules(), rules())
            .prop_map(|(peer, subject, inbound, outbound)| Step::Grant { peer, subject, inbound, outbound }),
        3 => (1..3_u8, prop::sample::select(vec![400, 30_000, 400_000]))
            .prop_map(|(peer, remaining_ms)| Step::Renew { peer, remaining_ms }),
        1 => (1..3_u8).prop_map(|peer| Step::Remove { peer }),
        1 => prop::option::of(services()).prop_map(Step::Ceiling),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn compiled_rules_and_flow_table_agree_with_the_reference(
        first in (rules(), rules(), rules(), rules()),
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut both = Both::new();
        let (a, b, c, d) = first;
        both.step(&Step::Grant { peer: 1, subject: 1, inbound: a, outbound: b });
        both.step(&Step::Grant { peer: 2, subject: 1, inbound: c, outbound: d });
        for step in &steps {
            both.step(step);
        }
        both.compare_flows();
    }
}
