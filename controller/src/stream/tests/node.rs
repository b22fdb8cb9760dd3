//! A simulated node: it signs, verifies, enforces deadlines, and acknowledges.

use std::collections::{BTreeMap, BTreeSet};

use postern_common::{
    grant::{Change, GrantError, GrantVerifier, OwnGrant, PeerGrant, Permission},
    id::{BootId, DeviceId, MachineName, Nonce},
    key::{DeviceSigningKey, SigningPurpose, WireGuardPublicKey},
    net::Service,
    posture::{Facts, PostureDocument, sign_posture},
    protocol::{
        Enrol, FlowGroup, FromNode, Hello, Join, MachineKind, PROTOCOL_VERSION, PlatformJoin, PlatformToken, ToNode,
        hello_payload, join_payload,
    },
    time::{Deadline, Monotonic, Now, WallTime},
};

use crate::stream::StreamId;

/// What a node wants of its next stream.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Want {
    Join,
    Enrol(String),
    Platform(String),
    Hello,
}

#[derive(Debug)]
pub(super) struct SimNode {
    pub(super) name: MachineName,
    pub(super) key: DeviceSigningKey,
    pub(super) keys: Vec<WireGuardPublicKey>,
    pub(super) device: Option<DeviceId>,
    pub(super) want: Want,
    pub(super) stream: Option<StreamId>,
    pub(super) code: Option<String>,
    pub(super) verifier: Option<GrantVerifier>,
    pub(super) own: Option<OwnGrant<Deadline>>,
    pub(super) peers: BTreeMap<DeviceId, PeerGrant<Deadline>>,
    /// The node's clock shows this much more than the world's.
    pub(super) offset: u64,
    /// How far its wall clock is set from everybody's, milliseconds.
    pub(super) clock_set: i64,
    /// Whether it answers.
    pub(super) mute: bool,
    /// How many flows enforcing the next document cuts.
    pub(super) cuts: u64,
    /// The flows that live here.
    pub(super) flows: Vec<FlowGroup>,
    pub(super) refused: Option<String>,
    pub(super) explained: Vec<postern_common::protocol::Explanation>,
    /// Where the controller said that a probe came from.
    pub(super) observed: Option<std::net::SocketAddr>,
    /// Another place than where it came from first.
    pub(super) moved_to: Option<std::net::SocketAddr>,
    pub(super) session_ended: Option<String>,
    /// Answers about tokens of its platform, oldest first.
    pub(super) platform: Vec<ToNode>,
    /// On what kind of machine it says that it runs.
    pub(super) machine: MachineKind,
    /// What it has asked for, as the controller last told.
    pub(super) requests: Vec<postern_common::protocol::AccessRequest>,
    pub(super) refused_request: Option<String>,
    pub(super) documents: usize,
    pub(super) snapshots: usize,
    pub(super) upserts: usize,
    pub(super) gaps: usize,
    pub(super) probe: Option<ToNode>,
    /// Answers about step-ups, oldest first.
    pub(super) step_ups: Vec<ToNode>,
    /// What it reports when it is asked; nothing if absent.
    pub(super) facts: Option<Facts>,
    /// What it was last told of its posture.
    pub(super) posture: Option<ToNode>,
    /// The challenge of its stream, when it took it, and the number of its last report.
    pub(super) challenge: (Nonce, Monotonic, u64),
    drawn: u64,
}

fn bytes16(seed: u64, n: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    bytes[8..].copy_from_slice(&n.to_be_bytes());
    bytes
}

impl SimNode {
    pub(super) fn new(name: &str, seed: u64) -> Self {
        let mut device_seed = [7; 32];
        device_seed[..8].copy_from_slice(&seed.to_be_bytes());
        let mut node = Self {
            name: name.parse().expect("a name"),
            key: DeviceSigningKey::from_seed(&device_seed),
            keys: vec![],
            device: None,
            want: Want::Join,
            stream: None,
            code: None,
            verifier: None,
            own: None,
            peers: BTreeMap::new(),
            offset: seed * 1_000_000_007 % 1_000_000_000_000,
            clock_set: 0,
            mute: false,
            cuts: 0,
            flows: vec![],
            refused: None,
            explained: vec![],
            observed: None,
            moved_to: None,
            session_ended: None,
            platform: vec![],
            machine: MachineKind { system: "Linux".into(), processor: "x86_64".into(), kernel: "6.12".into() },
            requests: vec![],
            refused_request: None,
            documents: 0,
            snapshots: 0,
            upserts: 0,
            gaps: 0,
            probe: None,
            step_ups: vec![],
            facts: None,
            posture: None,
            challenge: (Nonce::from_bytes([0; 16]), Monotonic::from_millis(0), 0),
            drawn: seed << 32,
        };
        node.new_key();
        node
    }

    fn draw(&mut self) -> [u8; 16] {
        self.drawn += 1;
        bytes16(0x0d0d, self.drawn)
    }

    pub(super) fn new_key(&mut self) -> WireGuardPublicKey {
        let mut key = [0x42; 32];
        key[..16].copy_from_slice(&self.draw());
        let key = WireGuardPublicKey::from_bytes(key);
        self.keys.insert(0, key);
        key
    }

    pub(super) fn local(&self, now: Now) -> Now {
        let monotonic = now.monotonic.saturating_add(std::time::Duration::from_nanos(self.offset));
        Now { monotonic, wall: WallTime::from_millis(now.wall.as_millis() + self.clock_set) }
    }

    pub(super) fn id(&self) -> DeviceId {
        self.device.expect("an enrolled node")
    }

    fn join_message(&self, challenge: Nonce) -> Join {
        let payload = join_payload(challenge, &self.key.public(), &self.keys[0], &self.name);
        Join {
            protocol: PROTOCOL_VERSION,
            device_key: self.key.public(),
            wireguard_key: self.keys[0],
            name: self.name.clone(),
            signature: self.key.sign(SigningPurpose::Join, &payload),
        }
    }

    fn hello(&mut self, challenge: Nonce, now: Now) -> FromNode {
        let nonce = self.nonce(now);
        let boot = BootId::from_bytes([1; 16]);
        let device = self.id();
        FromNode::Hello(Hello {
            protocol: PROTOCOL_VERSION,
            device,
            signature: self.key.sign(SigningPurpose::StreamHello, &hello_payload(challenge, device, boot, nonce)),
            nonce,
            boot,
            enforced: self.verifier.as_ref().and_then(GrantVerifier::position),
            keys: self.keys.clone(),
            listen_port: 51820,
            endpoints: vec![([10, 0, (self.offset % 250) as u8, (self.drawn % 250) as u8], 51820).into()],
            version: "simulated".into(),
            machine: self.machine.clone(),
        })
    }

    /// Draws a nonce that later documents may count from.
    pub(super) fn nonce(&mut self, now: Now) -> Nonce {
        let nonce = Nonce::from_bytes(self.draw());
        let local = self.local(now).monotonic;
        if let Some(verifier) = &mut self.verifier {
            verifier.remember_nonce(nonce, local);
        }
        nonce
    }

    /// Signs a report of what it sees now; nothing if it sees nothing.
    pub(super) fn report(&mut self, now: Now) -> Option<FromNode> {
        let facts = self.facts.clone()?;
        self.challenge.2 += 1;
        let (challenge, since, number) = self.challenge;
        let taken_ms = i64::try_from(now.monotonic.since(since).as_millis()).expect("a short time");
        let document = PostureDocument { device: self.id(), challenge, number, taken_ms, facts };
        Some(FromNode::Posture { signed: sign_posture(&document, &self.key) })
    }

    /// Takes one message of the controller and returns the answers.
    pub(super) fn receive(&mut self, message: ToNode, now: Now) -> Vec<FromNode> {
        match message {
            ToNode::Challenge { nonce, .. } => {
                self.challenge = (nonce, now.monotonic, 0);
                match self.want.clone() {
                    Want::Join => vec![FromNode::Join(self.join_message(nonce))],
                    Want::Enrol(token) => vec![FromNode::Enrol(Enrol { join: self.join_message(nonce), token })],
                    Want::Platform(token) => vec![FromNode::Platform(PlatformJoin {
                        join: self.join_message(nonce),
                        token: PlatformToken::new(&token),
                    })],
                    Want::Hello => vec![self.hello(nonce, now)],
                }
            }
            asked @ ToNode::Posture { .. } => {
                let first = self.posture.replace(asked).is_none() || self.challenge.2 == 0;
                if first { self.report(now).into_iter().collect() } else { vec![] }
            }
            ToNode::JoinPending { code, .. } => {
                self.code = Some(code);
                vec![]
            }
            ToNode::Joined { device, name, controller, .. } => {
                if self.device != Some(device) {
                    self.verifier = Some(GrantVerifier::new(device, controller));
                    self.peers.clear();
                    self.own = None;
                }
                self.device = Some(device);
                self.name = name;
                self.want = Want::Hello;
                self.session_ended = None;
                vec![]
            }
            ToNode::Grants { signed } => {
                let verifier = self.verifier.as_mut().expect("an enrolled node");
                match verifier.verify(&signed) {
                    Ok(verified) => {
                        let position = verified.position();
                        self.documents += 1;
                        self.apply(verified.into_change());
                        if self.mute {
                            return vec![];
                        }
                        vec![FromNode::Enforced { position, cut: std::mem::take(&mut self.cuts) }]
                    }
                    Err(GrantError::Gap { .. }) => {
                        self.gaps += 1;
                        vec![FromNode::SnapshotWanted]
                    }
                    Err(other) => panic!("{}: {other}", self.name),
                }
            }
            ToNode::CountFlows { .. } if self.mute => vec![],
            ToNode::CountFlows { id, peers } => {
                let groups = self.flows.iter().filter(|group| peers.contains(&group.peer)).cloned().collect();
                vec![FromNode::LiveFlows { id, groups, unlisted: 0 }]
            }
            probe @ ToNode::Probe { .. } => {
                self.probe = Some(probe);
                vec![]
            }
            ToNode::Observed { endpoint } => {
                self.observed = Some(endpoint);
                vec![]
            }
            ToNode::Requests { requests } => {
                self.requests = requests;
                vec![]
            }
            ToNode::AccessRequested { answer, .. } => {
                self.refused_request = answer.err();
                vec![]
            }
            ToNode::Explained { explanation, .. } => {
                self.explained.push(explanation);
                vec![]
            }
            answer @ (ToNode::StepUpPending { .. } | ToNode::StepUpRefused { .. }) => {
                self.step_ups.push(answer);
                vec![]
            }
            answer @ (ToNode::PlatformRenewed { .. } | ToNode::PlatformRefused { .. }) => {
                self.platform.push(answer);
                vec![]
            }
            ToNode::KeyDeadline { .. } => vec![],
            ToNode::SessionEnded { reason } => {
                self.session_ended = Some(reason);
                vec![]
            }
            ToNode::Refused { message, .. } => {
                self.refused = Some(message);
                vec![]
            }
        }
    }

    fn apply(&mut self, change: Change<Deadline>) {
        match change {
            Change::Snapshot { own, peers } => {
                self.snapshots += 1;
                self.own = Some(own);
                self.peers = peers.into_iter().map(|peer| (peer.device, peer)).collect();
            }
            Change::Delta { own, upsert, remove, .. } => {
                self.own = own.or(self.own.take());
                self.upserts += upsert.len();
                self.peers.extend(upsert.into_iter().map(|peer| (peer.device, peer)));
                for device in remove {
                    self.peers.remove(&device);
                }
            }
        }
        if let Some(own) = &self.own {
            // Keys that nobody uses any more are wiped; those that the controller may not know yet are kept.
            let known = self.keys.iter().position(|key| own.keys.contains(key)).unwrap_or(1);
            let newer: Vec<_> = self.keys[..known.max(1)].to_vec();
            self.keys.retain(|key| own.keys.contains(key) || newer.contains(key));
        }
        for peer in self.peers.values() {
            for pair in &peer.pairs {
                assert!(self.keys.contains(&pair.local), "{}: told of a pair with a key that it lacks", self.name);
            }
        }
    }

    fn live<'a>(
        &self,
        permissions: &'a [Permission<Deadline>],
        now: Now,
    ) -> impl Iterator<Item = &'a Permission<Deadline>> {
        let local = self.local(now);
        permissions.iter().filter(move |permission| !permission.until.has_passed(local))
    }

    /// Returns who may open what on this node now, by its own clock.
    pub(super) fn lets_in(&self, now: Now) -> BTreeSet<(DeviceId, Service)> {
        let peers = self.peers.values();
        peers
            .flat_map(|peer| self.live(&peer.inbound, now).flat_map(|p| p.services.iter().map(|s| (peer.device, *s))))
            .collect()
    }

    /// Returns what this node may open on others now, by its own clock.
    pub(super) fn may_open(&self, now: Now) -> BTreeSet<(DeviceId, Service)> {
        let peers = self.peers.values();
        peers
            .flat_map(|peer| self.live(&peer.outbound, now).flat_map(|p| p.services.iter().map(|s| (peer.device, *s))))
            .collect()
    }

    /// Returns the deadline by this node's clock of what `peer` may open here, in the world's time.
    pub(super) fn inbound_until(&self, peer: DeviceId) -> Option<Monotonic> {
        let until = self.peers.get(&peer)?.inbound.iter().map(|p| p.until.monotonic).max()?;
        Some(Monotonic::from_nanos(until.as_nanos() - self.offset))
    }
}
