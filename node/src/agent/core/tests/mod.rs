//! The control logic in virtual time, against a controller that signs real documents: many nodes, no sockets, no sleeps.

use std::collections::BTreeMap;

use postern_common::{
    grant::{
        Change, DOCUMENT_VERSION, GrantDocument, Mode, OnDeny, OwnGrant, PeerGrant, Permission, SignedDocument,
        StepUpOffer, sign,
    },
    id::{DeviceId, LeaseId, SubjectId},
    key::{ControllerSigningKey, WireGuardPublicKey},
    net::private_space,
    protocol::{Explanation, PROTOCOL_VERSION, PlatformToken, Refusal, ToNode},
    time::Lifetime,
};

use super::*;
use crate::agent::target::ControllerTarget;

mod behaviour;
mod documents;
mod farewell;
mod joins;
mod life;
mod platform;
mod postures;
mod step_up;

const BOOT: BootId = BootId::from_bytes([1; 16]);
const ROTATION: Duration = Duration::from_secs(3_600);

fn target() -> ControllerTarget {
    "https://ctl.corp.example".parse().expect("a target")
}

/// What the shell would have done with the effects.
#[derive(Default)]
struct Seen {
    connects: Vec<Monotonic>,
    sent: Vec<FromNode>,
    applied: Vec<Position>,
    notices: Vec<Notice>,
    /// What clients that asked for a step-up were told.
    told: Vec<(u64, Notice)>,
    explained: Vec<(u64, Result<Explanation, String>)>,
    doors_closed: usize,
    host_down: usize,
    settled: Vec<bool>,
    targets: Vec<ControllerTarget>,
    keys: Vec<WireGuardPublicKey>,
    saved: Option<SavedGrants>,
    identity: Option<Identity>,
    order: Vec<&'static str>,
}

/// How the simulated machine behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Disk {
    Works,
    Waits,
    Full,
}

struct Node {
    core: Core,
    now: Now,
    seen: Seen,
    disk: Disk,
    /// Whether the data plane answers at once that it enforces a document.
    plane_answers: bool,
    reachable: bool,
    connected: bool,
    /// How many flows enforcing the next document cuts.
    cuts: u64,
    /// About how many peers each question about flows was.
    counted: Vec<usize>,
    /// How often it was asked to look at its posture.
    looks: usize,
    /// What its platform gives it now, and how often that was read.
    token: Option<String>,
    reads: usize,
}

fn settings() -> Settings {
    Settings {
        rotation: ROTATION,
        boot: BOOT,
        listen_port: 51820,
        overlay_within: private_space().to_vec(),
        version: "test".into(),
        machine: MachineKind::default(),
        platform: None,
    }
}

impl Node {
    fn new(seed: u64) -> Self {
        Self::with(Core::new(settings(), Box::new(SeededEntropy::new(seed))))
    }

    fn with(core: Core) -> Self {
        let now = Now { monotonic: Monotonic::from_millis(1_000), wall: WallTime::from_millis(1_700_000_000_000) };
        Self {
            core,
            now,
            seen: Seen::default(),
            disk: Disk::Works,
            plane_answers: true,
            reachable: true,
            connected: false,
            cuts: 0,
            counted: vec![],
            looks: 0,
            token: None,
            reads: 0,
        }
    }

    fn run(&mut self) {
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::Connect(target) => {
                    self.seen.connects.push(self.now.monotonic);
                    self.seen.targets.push(target);
                    self.connected = self.reachable;
                    if self.reachable {
                        self.core.handle_connected(self.now);
                    } else {
                        self.core.handle_disconnected("connection refused".into(), Retry::Soon, self.now);
                    }
                }
                Effect::Close => self.connected = false,
                Effect::Send(message) => {
                    self.seen.order.push(match &message {
                        FromNode::Enforced { .. } => "enforced",
                        FromNode::RotateKey { .. } => "rotate",
                        FromNode::Enrol(_) | FromNode::Join(_) => "join",
                        _ => "message",
                    });
                    self.seen.sent.push(message);
                }
                Effect::SetLocalKeys(keys) => {
                    self.seen.keys = keys.iter().map(WireGuardPrivateKey::public).collect();
                }
                Effect::Apply(grants) => {
                    let position = grants.position();
                    self.seen.applied.push(position);
                    if self.plane_answers {
                        self.core.handle_compiled(position, std::mem::take(&mut self.cuts));
                    }
                }
                Effect::CloseDoors => {
                    self.seen.doors_closed += 1;
                    self.seen.saved = None;
                }
                Effect::PersistIdentity(identity) => {
                    self.seen.order.push("identity");
                    match self.disk {
                        Disk::Works => {
                            self.seen.identity = Some(*identity);
                            self.core.handle_persisted(Persisted::Identity, self.now);
                        }
                        Disk::Waits => {}
                        Disk::Full => {
                            self.core.handle_persist_failed(Persisted::Identity, "the disk is full", self.now)
                        }
                    }
                }
                Effect::PersistGrants(saved) => {
                    let what = Persisted::Grants(saved.position);
                    match self.disk {
                        Disk::Works => {
                            self.seen.saved = Some(*saved);
                            self.core.handle_persisted(what, self.now);
                        }
                        Disk::Waits => {}
                        Disk::Full => self.core.handle_persist_failed(what, "the disk is full", self.now),
                    }
                }
                Effect::HostDown => self.seen.host_down += 1,
                Effect::CountFlows { question, peers } => {
                    self.counted.push(peers.len());
                    self.core.handle_flows(question, vec![], 0);
                }
                Effect::Settled(result) => self.seen.settled.push(result.is_ok()),
                Effect::Probe(_) | Effect::StopProbes => {}
                Effect::LookAtPosture => self.looks += 1,
                Effect::ReadPlatformToken => {
                    self.reads += 1;
                    let token = self.token.as_ref().map(|token| PlatformToken::new(token));
                    self.core.handle_platform_token(token.ok_or_else(|| "there is no token".to_owned()), self.now);
                }
                Effect::Notify(notice) => self.seen.notices.push(notice),
                Effect::StepUp { client, notice } => self.seen.told.push((client, notice)),
                Effect::Explained { question, answer } => self.seen.explained.push((question, answer)),
                Effect::AccessRequested { .. } | Effect::RequestsChanged => {}
            }
        }
    }

    fn command(&mut self, command: Command) {
        self.core.handle_command(command, self.now);
        self.run();
    }

    fn up(&mut self) {
        let token = Some(Zeroizing::new("pst_join_x".to_owned()));
        self.command(Command::Up { target: Some(target()), token, name: "payroll-1".parse().expect("a name") });
    }

    fn hear(&mut self, message: ToNode) {
        self.core.handle_message(message, self.now);
        self.run();
    }

    fn lose_stream(&mut self) {
        self.connected = false;
        self.core.handle_disconnected("gone".into(), Retry::Soon, self.now);
        self.run();
    }

    /// Lets time pass, stopping at every time-out of the core.
    fn pass(&mut self, span: Duration) {
        let end = self.now.monotonic.saturating_add(span);
        for _step in 0..100_000 {
            let due = self.core.poll_timeout(self.now).unwrap_or(Monotonic::NEVER).max(self.now.monotonic).min(end);
            let step = due.since(self.now.monotonic);
            self.now = Now { monotonic: due, wall: self.now.wall.saturating_add(step) };
            self.core.handle_timeout(self.now);
            self.run();
            if due == end {
                return;
            }
        }
        panic!("the core asks for time-outs without end");
    }

    fn sent(&mut self) -> Vec<FromNode> {
        std::mem::take(&mut self.seen.sent)
    }
}

/// A controller that signs what it is told to, for many nodes.
struct Controller {
    key: ControllerSigningKey,
    generation: u64,
    nonces: BTreeMap<DeviceId, Nonce>,
    keys: BTreeMap<DeviceId, Vec<WireGuardPublicKey>>,
    overlay: ipnet::IpNet,
    peer_address: std::net::IpAddr,
    /// What a step-up would open.
    step_up: Vec<StepUpOffer>,
    /// What is open.
    resource: postern_common::id::ResourceName,
}

impl Controller {
    fn new() -> Self {
        Self {
            key: ControllerSigningKey::from_seed(&[5; 32]),
            generation: 0,
            nonces: BTreeMap::new(),
            keys: BTreeMap::new(),
            overlay: "fd00::/48".parse().expect("a prefix"),
            peer_address: "fd00::3".parse().expect("an address"),
            step_up: vec![],
            resource: "db".parse().expect("a name"),
        }
    }

    fn challenge(&self) -> ToNode {
        ToNode::Challenge { nonce: Nonce::from_bytes([4; 16]), protocol: PROTOCOL_VERSION }
    }

    fn joined(&self, device: DeviceId) -> ToNode {
        ToNode::Joined {
            device,
            name: "payroll-1".parse().expect("a name"),
            session: None,
            subject_name: "service:payroll".into(),
            controller: self.key.public(),
            session_until: None,
        }
    }

    fn hear(&mut self, device: DeviceId, message: &FromNode) {
        match message {
            FromNode::Hello(hello) => {
                self.nonces.insert(device, hello.nonce);
                self.keys.insert(device, hello.keys.clone());
            }
            FromNode::Freshen { nonce } => {
                self.nonces.insert(device, *nonce);
            }
            FromNode::RotateKey { key } => self.keys.entry(device).or_default().insert(0, *key),
            _ => {}
        }
    }

    fn grants(&mut self, device: DeviceId, previous: Option<u64>) -> ToNode {
        self.generation += 1;
        ToNode::Grants { signed: self.document(device, self.generation, previous, &self.key) }
    }

    fn document(
        &self,
        device: DeviceId,
        generation: u64,
        previous: Option<u64>,
        key: &ControllerSigningKey,
    ) -> SignedDocument {
        let until = Lifetime { remaining_ms: 600_000, not_after: WallTime::NEVER };
        let own = OwnGrant {
            name: "payroll-1".parse().expect("a name"),
            subject: SubjectId::from_bytes([2; 16]),
            subject_name: "service:payroll".into(),
            tags: vec![],
            addresses: vec![self.overlay.addr()],
            overlay: vec![self.overlay],
            domain: "internal".into(),
            keys: self.keys.get(&device).cloned().unwrap_or_default(),
            session_until: None,
            quarantine: None,
            step_up: self.step_up.clone(),
            scan: None,
        };
        let peer = PeerGrant {
            device: DeviceId::from_bytes([3; 16]),
            name: "db-1".parse().expect("a name"),
            subject: SubjectId::from_bytes([4; 16]),
            subject_name: "service:db".into(),
            tags: vec![],
            addresses: vec![self.peer_address],
            pairs: vec![],
            endpoints: vec![],
            inbound: vec![],
            outbound: vec![Permission {
                rule: "billing reads".parse().expect("a name"),
                resource: self.resource.clone(),
                lease: LeaseId::from_bytes([6; 16]),
                services: vec!["tcp/5432".parse().expect("a service")],
                until,
                on_deny: OnDeny::Drop,
                mode: Mode::Enforce,
                limits: Default::default(),
            }],
            scan: None,
        };
        let change = match previous {
            None => Change::Snapshot { own, peers: vec![peer] },
            Some(previous) => Change::Delta { previous, own: Some(own), upsert: vec![], remove: vec![] },
        };
        let position = Position { epoch: 1, generation };
        let nonce = self.nonces[&device];
        let issued_at = WallTime::from_millis(0);
        sign(
            &GrantDocument {
                version: DOCUMENT_VERSION,
                audience: device,
                position,
                nonce,
                issued_at,
                policy_revision: 1,
                change,
            },
            key,
        )
    }

    /// Answers whatever the node has sent, until it says nothing more.
    fn converse(&mut self, node: &mut Node, device: DeviceId) {
        for _round in 0..20 {
            if node.connected && matches!(node.core.stream, Stream::Greeting { .. }) {
                node.hear(self.challenge());
            }
            let sent = node.sent();
            if sent.is_empty() {
                return;
            }
            for message in sent {
                self.hear(device, &message);
                match message {
                    FromNode::Enrol(_) | FromNode::Join(_) => node.hear(self.joined(device)),
                    FromNode::Hello(_) | FromNode::SnapshotWanted => {
                        let grants = self.grants(device, None);
                        node.hear(grants);
                    }
                    FromNode::RotateKey { .. } => {
                        let grants = self.grants(device, Some(self.generation));
                        node.hear(grants);
                    }
                    _ => {}
                }
            }
        }
    }
}

fn device(number: u8) -> DeviceId {
    DeviceId::from_bytes([number; 16])
}

fn joined() -> (Node, Controller) {
    let (mut node, mut controller) = (Node::new(1), Controller::new());
    node.up();
    controller.converse(&mut node, device(9));
    assert_eq!(node.core.phase(), Phase::Connected { current: true });
    (node, controller)
}
