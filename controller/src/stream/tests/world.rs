//! The clock, the network and the store around the core.
//!
//! The network keeps the order within a stream and delays each message at random; a lost stream loses what was under
//! way. The store takes changes in order, so that a core can be started again from exactly what was durable.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use postern_common::{
    id::{DeviceId, SessionId},
    key::ControllerSigningKey,
    net::Service,
    policy::Policy,
    protocol::{FromNode, ToNode},
    time::{Monotonic, Now, WallTime},
};

use super::node::{SimNode, Want};
use crate::{
    identity::machine::TokenRefusal,
    records::{AuditEvent, Loaded, Person, StoreChange, Workload},
    signals::place::{Atlas, NoMaps},
    stream::{Core, CoreConfig, Effect, NewToken, StreamId},
};

pub(super) const URL: &str = "https://ctl.example";
pub(super) const ISSUER: &str = "https://idp.example";
pub(super) const LOCAL: &str = "192.0.2.77";

/// A small generator (splitmix64): the same seed, the same run.
#[derive(Debug, Clone)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[derive(Debug)]
enum Event {
    ToNode(usize, StreamId, ToNode),
    FromNode(StreamId, FromNode),
    Closed(usize, StreamId),
    Reconnect(usize),
}

/// What is durable, by the name of each record.
#[derive(Debug, Default, Clone)]
pub(super) struct Store {
    pub(super) loaded: Loaded,
    pub(super) alerts: Vec<crate::signals::alerts::Alert>,
}

fn put<T>(records: &mut Vec<T>, same: impl Fn(&T) -> bool, record: T) {
    records.retain(|old| !same(old));
    records.push(record);
}

impl Store {
    fn apply(&mut self, change: StoreChange) {
        let all = &mut self.loaded;
        match change {
            StoreChange::PutMeta(meta) => all.meta = meta,
            StoreChange::PutClock(clock) => all.clock = Some(clock),
            StoreChange::PutSubject(new) => put(&mut all.subjects, |old| old.id == new.id, new.clone()),
            StoreChange::PutDevice(new) => put(&mut all.devices, |old| old.id == new.id, new.clone()),
            StoreChange::DeleteDevice(id) => all.devices.retain(|old| old.id != id),
            StoreChange::PutSession(new) => put(&mut all.sessions, |old| old.id == new.id, new.clone()),
            StoreChange::DeleteSession(id) => all.sessions.retain(|old| old.id != id),
            StoreChange::PutLease(new) => put(&mut all.leases, |old| old.id == new.id, new.clone()),
            StoreChange::DeleteLease(id) => all.leases.retain(|old| old.id != id),
            StoreChange::PutToken(new) => put(&mut all.tokens, |old| old.hash == new.hash, new.clone()),
            StoreChange::DeleteToken(hash) => all.tokens.retain(|old| old.hash != hash),
            StoreChange::PutPair(new) => put(&mut all.pairs, |old| old.name() == new.name(), new.clone()),
            StoreChange::DeletePair(name) => all.pairs.retain(|old| old.name() != name),
            StoreChange::PutHold(new) => put(&mut all.holds, |old| old.addresses == new.addresses, new.clone()),
            StoreChange::DeleteHold(addresses) => all.holds.retain(|old| old.addresses != addresses),
            StoreChange::PutRevokedRule(new) => put(&mut all.revoked_rules, |old| old.rule == new.rule, new.clone()),
            StoreChange::DeleteRevokedRule(rule) => all.revoked_rules.retain(|old| old.rule != rule),
            StoreChange::PutQuarantine(new) => put(&mut all.quarantines, |old| old.target == new.target, new.clone()),
            StoreChange::PutBreakGlass(new) => put(&mut all.break_glass, |old| old.id == new.id, new.clone()),
            StoreChange::DeleteBreakGlass(id) => all.break_glass.retain(|old| old.id != id),
            StoreChange::PutTokenUse(new) => put(&mut all.token_uses, |old| old.token == new.token, new.clone()),
            StoreChange::DeleteTokenUse(token) => all.token_uses.retain(|old| old.token != token),
            StoreChange::PutHabits(new) => put(&mut all.habits, |old| old.subject == new.subject, new.clone()),
            StoreChange::PutAlert(alert) => self.alerts.push(alert),
            StoreChange::PutEventStream(new) => put(&mut all.event_streams, |old| old.name == new.name, new.clone()),
            StoreChange::PutSeenEvent(new) => put(&mut all.seen_events, |old| old.token == new.token, new.clone()),
            StoreChange::DeleteSeenEvent(token) => all.seen_events.retain(|old| old.token != token),
            StoreChange::PutShutDoor(new) => put(&mut all.shut_doors, |old| old.name == new.name, new.clone()),
            StoreChange::DeleteShutDoor(name) => all.shut_doors.retain(|old| old.name != name),
            StoreChange::PutRestraint(new) => put(&mut all.restraints, |old| old.name() == new.name(), new.clone()),
            StoreChange::DeleteRestraint(gone) => all.restraints.retain(|old| old.name() != gone.name()),
            StoreChange::PutRequest(new) => put(&mut all.requests, |old| old.id == new.id, new.clone()),
            StoreChange::DeleteRequest(id) => all.requests.retain(|old| old.id != id),
            StoreChange::DeleteQuarantine(target) => all.quarantines.retain(|old| old.target != target),
            StoreChange::PutPosture(new) => put(&mut all.postures, |old| old.device == new.device, new.clone()),
            StoreChange::DeletePosture(device) => all.postures.retain(|old| old.device != device),
            StoreChange::PutScimToken(new) => put(&mut all.scim_tokens, |old| old.hash == new.hash, new.clone()),
            StoreChange::DeleteScimToken(hash) => all.scim_tokens.retain(|old| old.hash != hash),
            StoreChange::PutScimUser(new) => put(&mut all.scim_users, |old| old.id == new.id, new.clone()),
            StoreChange::DeleteScimUser(id) => {
                all.scim_users.retain(|old| old.id != id);
                all.scim_members.retain(|(_, user)| *user != id);
            }
            StoreChange::PutScimGroup(new) => put(&mut all.scim_groups, |old| old.id == new.id, new.clone()),
            StoreChange::DeleteScimGroup(id) => {
                all.scim_groups.retain(|old| old.id != id);
                all.scim_members.retain(|(group, _)| *group != id);
            }
            StoreChange::ScimMembers { group, added, removed } => {
                all.scim_members.retain(|(of, user)| *of != group || !removed.contains(user));
                all.scim_members.extend(added.into_iter().map(|user| (group, user)));
            }
            StoreChange::PutScimGone(new) => put(&mut all.scim_gone, |old| *old == new, new.clone()),
            StoreChange::DeleteScimGone(gone) => all.scim_gone.retain(|old| *old != gone),
        }
    }
}

pub(super) struct World {
    pub(super) now: Now,
    pub(super) core: Core,
    pub(super) store: Store,
    pub(super) nodes: Vec<SimNode>,
    pub(super) dice: Dice,
    pub(super) audit: Vec<AuditEvent>,
    /// Streams to which documents were sent since it was last emptied.
    pub(super) told: Vec<DeviceId>,
    pub(super) max_delay_ms: u64,
    /// A node whose messages, both ways, take up to so many milliseconds.
    pub(super) slow: Option<(usize, u64)>,
    pub(super) check_opening: bool,
    /// What becomes of platforms' tokens that are checked.
    pub(super) tokens: BTreeMap<String, Result<Workload, TokenRefusal>>,
    /// How far the wall clock is moved, milliseconds.
    pub(super) clock_set: i64,
    /// Stops the core after this many effects, as `kill -9` does.
    pub(super) crash_after: Option<usize>,
    events: BTreeMap<(Monotonic, u64), Event>,
    next_event: u64,
    last_delivery: BTreeMap<(StreamId, bool), Monotonic>,
    pub(super) config: CoreConfig,
    policy: Arc<Policy>,
    /// What a core that starts knows of places.
    pub(super) atlas: Arc<dyn Atlas>,
    seeds: u64,
}

pub(super) fn policy(text: &str) -> Arc<Policy> {
    match Policy::parse("policy.toml", text) {
        Ok(policy) => Arc::new(policy),
        Err(wrong) => panic!("{wrong}"),
    }
}

pub(super) fn config() -> CoreConfig {
    let v6 = "fd5a:1:2::/48".parse().expect("a network");
    let v4 = "100.64.0.0/16".parse().expect("a network");
    CoreConfig::new(URL, v6, v4)
}

fn random(seed: u64) -> crate::stream::Random {
    let mut dice = Dice(seed);
    Box::new(move |bytes: &mut [u8]| bytes.iter_mut().for_each(|byte| *byte = dice.next() as u8))
}

pub(super) fn person(name: &str, groups: &[&str]) -> Person {
    Person {
        issuer: ISSUER.into(),
        sub: format!("sub-{name}"),
        name: format!("{name}@corp.example"),
        groups: Some(groups.iter().map(|group| (*group).to_owned()).collect()),
        acr: None,
        amr: vec!["pwd".into(), "otp".into()],
        auth_time: Some(WallTime::from_millis(START_WALL)),
        provisioned_as: None,
        web_session: SessionId::from_bytes([9; 16]),
        web_session_until: WallTime::NEVER,
        provider_session: None,
    }
}

/// Monday, 2026-11-23 09:00 UTC.
pub(super) const START_WALL: i64 = 1_795_424_400_000;

impl World {
    pub(super) fn new(seed: u64, policy_text: &str) -> Self {
        Self::with(seed, policy_text, config())
    }

    pub(super) fn with(seed: u64, policy_text: &str, config: CoreConfig) -> Self {
        let now = Now { monotonic: Monotonic::from_millis(5_000_000), wall: WallTime::from_millis(START_WALL) };
        let policy = policy(policy_text);
        let mut store = Store::default();
        store.loaded.meta.epoch = 1;
        let core = Core::new(
            config.clone(),
            ControllerSigningKey::from_seed(&[5; 32]),
            policy.clone(),
            Arc::new(NoMaps),
            store.loaded.clone(),
            random(seed),
            now,
        );
        let mut world = Self {
            now,
            core,
            store,
            nodes: vec![],
            dice: Dice(seed ^ 0xabcd),
            audit: vec![],
            told: vec![],
            max_delay_ms: 20,
            slow: None,
            check_opening: true,
            tokens: BTreeMap::new(),
            clock_set: 0,
            crash_after: None,
            events: BTreeMap::new(),
            next_event: 0,
            last_delivery: BTreeMap::new(),
            config,
            policy,
            atlas: Arc::new(NoMaps),
            seeds: seed,
        };
        world.pump();
        world
    }

    fn at(&mut self, when: Monotonic, event: Event) {
        self.next_event += 1;
        self.events.insert((when, self.next_event), event);
    }

    fn deliver_at(&mut self, stream: StreamId, to_node: bool) -> Monotonic {
        let slow = self.slow.filter(|(node, _)| self.nodes[*node].stream == Some(stream));
        let delay = Duration::from_millis(1 + self.dice.below(slow.map_or(self.max_delay_ms, |(_, ms)| ms)));
        let at = self.now.monotonic.saturating_add(delay);
        let last = self.last_delivery.entry((stream, to_node)).or_insert(at);
        *last = at.max(*last);
        *last
    }

    fn node_of(&self, stream: StreamId) -> Option<usize> {
        self.nodes.iter().position(|node| node.stream == Some(stream))
    }

    /// Takes all effects: durable first, then sent.
    pub(super) fn pump(&mut self) {
        while let Some(effect) = self.core.poll_effect() {
            match &mut self.crash_after {
                Some(0) => continue,
                Some(left) => *left -= 1,
                None => {}
            }
            match effect {
                Effect::Store(change) => self.store.apply(change),
                Effect::Audit(event) => self.audit.push(event),
                Effect::VerifyToken { stream, token } => {
                    let unknown = || {
                        let why = "not signed by its issuer".to_owned();
                        Err(TokenRefusal::Refused { told: why.clone(), why })
                    };
                    let found = self.tokens.get(token.expose()).cloned().unwrap_or_else(unknown);
                    self.core.token_verified(stream, found, self.now);
                }
                Effect::Send { stream, message } => {
                    if let Some(node) = self.node_of(stream) {
                        if let ToNode::Grants { signed } = &message {
                            self.told.push(self.nodes[node].id());
                            if self.check_opening {
                                self.check_that_destinations_know(node, &signed.document);
                            }
                        }
                        let at = self.deliver_at(stream, true);
                        self.at(at, Event::ToNode(node, stream, message));
                    }
                }
                Effect::Close { stream, message, .. } => {
                    if let Some(node) = self.node_of(stream) {
                        self.nodes[node].refused = Some(message);
                        let at = self.deliver_at(stream, true);
                        self.at(at, Event::Closed(node, stream));
                    }
                }
            }
        }
    }

    /// Asserts the order of opening: what a source is told, its destination enforces already.
    fn check_that_destinations_know(&self, source: usize, document: &str) {
        let document: postern_common::grant::GrantDocument = serde_json::from_str(document).expect("a document");
        let peers = match document.change {
            postern_common::grant::Change::Snapshot { peers, .. } => peers,
            postern_common::grant::Change::Delta { upsert, .. } => upsert,
        };
        let source = self.nodes[source].id();
        for told in peers {
            let Some(destination) = self.nodes.iter().find(|node| node.device == Some(told.device)) else { continue };
            let knows = destination.peers.get(&source);
            for service in told.outbound.iter().flat_map(|permission| &permission.services) {
                let lets_in = knows.is_some_and(|peer| peer.inbound.iter().any(|p| p.services.contains(service)));
                assert!(lets_in, "{} was told of {service} on {} before that lets it in", source, destination.name);
                let pair = knows.is_some_and(|peer| {
                    peer.pairs.iter().any(|there| told.pairs.iter().any(|here| here.local == there.remote))
                });
                assert!(pair, "the destination has none of the pairs that the source was told of");
            }
        }
    }

    // --- nodes

    pub(super) fn add_node(&mut self, name: &str, want: Want) -> usize {
        self.seeds += 1;
        let seed = self.seeds * 1_000 + self.nodes.len() as u64;
        let mut node = SimNode::new(name, seed);
        node.want = want;
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// From where a node speaks.
    pub(super) fn remote(&self, node: usize) -> SocketAddr {
        let home = SocketAddr::from(([198, 51, (node / 200) as u8, (node % 200) as u8 + 1], 40_000));
        self.nodes[node].moved_to.unwrap_or(home)
    }

    pub(super) fn connect(&mut self, node: usize) {
        let stream = self.core.connect(self.remote(node), self.now);
        self.nodes[node].stream = Some(stream);
        self.nodes[node].refused = None;
        self.pump();
    }

    /// Loses a node's stream and everything under way on it.
    pub(super) fn cut_stream(&mut self, node: usize) {
        if let Some(stream) = self.nodes[node].stream.take() {
            self.forget_events(stream);
            self.core.disconnect(stream, self.now);
            self.pump();
        }
    }

    fn forget_events(&mut self, stream: StreamId) {
        self.events.retain(|_, event| match event {
            Event::ToNode(_, of, _) | Event::FromNode(of, _) | Event::Closed(_, of) => *of != stream,
            Event::Reconnect(_) => true,
        });
    }

    pub(super) fn send(&mut self, node: usize, message: FromNode) {
        if let Some(stream) = self.nodes[node].stream {
            let at = self.deliver_at(stream, false);
            self.at(at, Event::FromNode(stream, message));
        }
    }

    pub(super) fn rotate(&mut self, node: usize) {
        let key = self.nodes[node].new_key();
        self.send(node, FromNode::RotateKey { key });
    }

    pub(super) fn freshen(&mut self, node: usize) {
        let now = self.now;
        let nonce = self.nodes[node].nonce(now);
        self.send(node, FromNode::Freshen { nonce });
    }

    /// A server with a token: enrolled and connected.
    pub(super) fn server(&mut self, name: &str, service: Option<&str>, tags: &[&str]) -> usize {
        let new = NewToken {
            service: service.map(|service| service.parse().expect("a name")),
            tags: tags.iter().map(|tag| tag.parse().expect("a tag")).collect(),
            machine: Some(name.parse().expect("a name")),
            networks: vec![],
            uses: 1,
            life: Duration::from_secs(3_600),
        };
        let (token, _) = self.core.create_token(new, "root", self.now).expect("a token");
        self.pump();
        let node = self.add_node(name, Want::Enrol(token));
        self.connect(node);
        self.run(Duration::from_millis(200));
        assert!(self.nodes[node].device.is_some(), "enrolled: {:?}", self.nodes[node].refused);
        self.cut_stream(node);
        self.connect(node);
        self.run(Duration::from_millis(200));
        node
    }

    /// A person's machine that has joined and is connected.
    pub(super) fn laptop(&mut self, name: &str, who: &Person) -> usize {
        let node = self.add_node(name, Want::Join);
        self.join(node, who);
        node
    }

    /// Lets a machine ask, and its person confirm; then it is connected.
    pub(super) fn join(&mut self, node: usize, who: &Person) {
        self.nodes[node].want = Want::Join;
        self.nodes[node].code = None;
        self.cut_stream(node);
        self.connect(node);
        self.run(Duration::from_millis(200));
        let code = self.nodes[node].code.clone().expect("a code").parse().expect("a code");
        let shown = self.nodes[node].key.public();
        self.core.confirm_join(code, shown, who, LOCAL.parse().expect("an address"), self.now).expect("confirmed");
        self.pump();
        self.run(Duration::from_millis(200));
        self.cut_stream(node);
        self.connect(node);
        self.run(Duration::from_millis(200));
    }

    // --- time

    /// Runs everything that happens within `span`.
    pub(super) fn run(&mut self, span: Duration) {
        self.run_with(span, |_| {});
    }

    /// Runs everything that happens within `span`, and looks after each event.
    pub(super) fn run_with(&mut self, span: Duration, mut look: impl FnMut(&mut Self)) {
        let end = self.now.monotonic.saturating_add(span);
        loop {
            let event = self.events.first_key_value().map(|(key, _)| *key);
            let next = event.map_or(Monotonic::NEVER, |(at, _)| at).min(self.core.poll_timeout());
            if next > end {
                break;
            }
            self.set_time(next);
            if self.core.poll_timeout() <= self.now.monotonic {
                self.core.handle_timeout(self.now);
                self.pump();
            } else if let Some(key) = event
                && let Some(event) = self.events.remove(&key)
            {
                self.happens(event);
            }
            look(self);
        }
        self.set_time(end);
        look(self);
    }

    fn set_time(&mut self, monotonic: Monotonic) {
        self.now.wall = WallTime::from_millis(START_WALL + self.clock_set)
            .saturating_add(monotonic.since(Monotonic::from_millis(5_000_000)));
        self.now.monotonic = self.now.monotonic.max(monotonic);
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::ToNode(node, stream, message) => {
                if self.nodes[node].stream == Some(stream) {
                    let now = self.now;
                    for answer in self.nodes[node].receive(message, now) {
                        self.send(node, answer);
                    }
                }
            }
            Event::FromNode(stream, message) => {
                self.core.receive(stream, message, self.now);
                self.pump();
            }
            Event::Closed(node, stream) => {
                if self.nodes[node].stream == Some(stream) {
                    self.nodes[node].stream = None;
                    self.forget_events(stream);
                }
            }
            Event::Reconnect(node) => {
                if self.nodes[node].stream.is_none() && self.nodes[node].want == Want::Hello {
                    self.connect(node);
                }
            }
        }
    }

    pub(super) fn reconnect_in(&mut self, node: usize, span: Duration) {
        let at = self.now.monotonic.saturating_add(span);
        self.at(at, Event::Reconnect(node));
    }

    /// Stops the core, as `kill -9` does, and starts another on what is durable.
    pub(super) fn restart(&mut self) {
        self.crash_after = None;
        for node in 0..self.nodes.len() {
            if let Some(stream) = self.nodes[node].stream.take() {
                self.forget_events(stream);
            }
        }
        let seed = self.dice.next();
        self.core = Core::new(
            self.config.clone(),
            ControllerSigningKey::from_seed(&[5; 32]),
            self.policy.clone(),
            self.atlas.clone(),
            self.store.loaded.clone(),
            random(seed),
            self.now,
        );
        self.last_delivery.clear();
        self.pump();
    }

    pub(super) fn apply_policy(&mut self, text: &str) {
        self.policy = policy(text);
        self.core.apply_policy(self.policy.clone(), text.to_owned(), "root", self.now);
        self.pump();
    }

    // --- what is enforced

    pub(super) fn index_of(&self, device: DeviceId) -> Option<usize> {
        self.nodes.iter().position(|node| node.device == Some(device))
    }

    /// Tells whether `source` can use `service` on `destination`: both ends say so, and they share a pair of keys.
    pub(super) fn passes(&self, source: usize, destination: usize, service: &str) -> bool {
        let service: Service = service.parse().expect("a service");
        let (from, to) = (&self.nodes[source], &self.nodes[destination]);
        let allowed = to.lets_in(self.now).contains(&(from.id(), service))
            && from.may_open(self.now).contains(&(to.id(), service));
        allowed && self.shared_pairs(source, destination) > 0
    }

    /// Tells whether the destination lets `service` in from the source, whatever the source believes.
    pub(super) fn lets_in(&self, source: usize, destination: usize, service: &str) -> bool {
        let service: Service = service.parse().expect("a service");
        self.nodes[destination].lets_in(self.now).contains(&(self.nodes[source].id(), service))
    }

    /// Counts the pairs of keys that both nodes have, with the same pre-shared key, and with private keys at both ends.
    pub(super) fn shared_pairs(&self, one: usize, other: usize) -> usize {
        let (a, b) = (&self.nodes[one], &self.nodes[other]);
        let pairs = |node: &SimNode, peer: &SimNode| -> BTreeSet<_> {
            let peer = peer.device.and_then(|id| node.peers.get(&id));
            peer.into_iter()
                .flat_map(|peer| peer.pairs.iter())
                .map(|p| (p.local, p.remote, *p.preshared.expose()))
                .collect()
        };
        let mirrored: BTreeSet<_> = pairs(b, a).into_iter().map(|(local, remote, psk)| (remote, local, psk)).collect();
        pairs(a, b)
            .intersection(&mirrored)
            .filter(|(local, remote, _)| a.keys.contains(local) && b.keys.contains(remote))
            .count()
    }
}
