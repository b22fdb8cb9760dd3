//! What tests share: grants as a controller makes them, and nodes wired to each other in virtual time.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use postern_common::{
    grant::{
        Change, DOCUMENT_VERSION, GrantDocument, GrantVerifier, KeyPair, Mode, OnDeny, OwnGrant, PeerGrant, Permission,
        Position, VerifiedGrants, sign,
    },
    id::{DeviceId, LeaseId, Nonce, SubjectId},
    key::{ControllerSigningKey, PresharedKey, WireGuardPrivateKey, WireGuardPublicKey},
    time::{Lifetime, Monotonic, Now, WallTime},
};

use crate::{
    Applied, DataPlane, Out, Settings,
    packet::{
        batch::{Joining, Lane, TunBatch, UdpBatch},
        offload::VirtioHeader,
    },
    wireguard::Tunnels,
};

/// Wall time at the start of every test.
pub(crate) const EPOCH_MS: i64 = 1_700_000_000_000;

/// Both clocks, so many milliseconds after the start.
pub(crate) fn at(ms: u64) -> Now {
    Now { monotonic: Monotonic::from_millis(ms), wall: WallTime::from_millis(EPOCH_MS + ms as i64) }
}

pub(crate) fn device(number: u8) -> DeviceId {
    DeviceId::from_bytes([number; 16])
}

pub(crate) fn secret(number: u8) -> WireGuardPrivateKey {
    WireGuardPrivateKey::from_bytes([number; 32])
}

pub(crate) fn public(number: u8) -> WireGuardPublicKey {
    secret(number).public()
}

/// The inner addresses of node `number`.
pub(crate) fn inner(number: u8) -> [IpAddr; 2] {
    [format!("fd00::{number:x}").parse().unwrap(), IpAddr::from([100, 64, 0, number])]
}

/// The outer address of node `number`.
pub(crate) fn outer(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51_820))
}

/// A pair of keys; the pre-shared key follows from both, whoever asks.
pub(crate) fn pair(local: u8, remote: u8) -> KeyPair {
    let mut bytes = [7; 32];
    bytes[0] = local.min(remote);
    bytes[1] = local.max(remote);
    KeyPair { local: public(local), remote: public(remote), preshared: PresharedKey::from_bytes(bytes) }
}

pub(crate) fn permission(rule: &str, services: &[&str], remaining_ms: u64) -> Permission<Lifetime> {
    Permission {
        rule: rule.parse().unwrap(),
        resource: "resource".parse().unwrap(),
        lease: LeaseId::from_bytes([9; 16]),
        services: services.iter().map(|service| service.parse().unwrap()).collect(),
        until: Lifetime { remaining_ms, not_after: WallTime::from_millis(EPOCH_MS + remaining_ms as i64) },
        on_deny: OnDeny::Drop,
        mode: Mode::Enforce,
        limits: Default::default(),
    }
}

pub(crate) fn own(number: u8) -> OwnGrant<Lifetime> {
    OwnGrant {
        name: format!("node-{number}").parse().unwrap(),
        subject: SubjectId::from_bytes([number; 16]),
        subject_name: format!("subject-{number}"),
        tags: vec![],
        addresses: inner(number).to_vec(),
        overlay: vec![],
        domain: "internal".into(),
        keys: vec![public(number)],
        session_until: None,
        quarantine: None,
        step_up: vec![],
        scan: None,
    }
}

/// What node `reader` is told of node `number`, with the keys that have their numbers.
pub(crate) fn peer(
    reader: u8,
    number: u8,
    inbound: Vec<Permission<Lifetime>>,
    outbound: Vec<Permission<Lifetime>>,
) -> PeerGrant<Lifetime> {
    PeerGrant {
        device: device(number),
        name: format!("node-{number}").parse().unwrap(),
        subject: SubjectId::from_bytes([number; 16]),
        subject_name: format!("subject-{number}"),
        tags: vec![],
        addresses: inner(number).to_vec(),
        pairs: vec![pair(reader, number)],
        endpoints: vec![outer(number)],
        inbound,
        outbound,
        scan: None,
    }
}

/// The controller, as far as one node sees it: it numbers and signs, and the node verifies.
#[derive(Debug)]
pub(crate) struct Authority {
    key: ControllerSigningKey,
    verifier: GrantVerifier,
    node: DeviceId,
    /// Its life, which is another after a restore from a backup.
    pub(crate) epoch: u64,
    generation: u64,
}

const NONCE: Nonce = Nonce::from_bytes([5; 16]);

impl Authority {
    /// `number` is the node; lifetimes count from the start of the test.
    pub(crate) fn new(number: u8) -> Self {
        let key = ControllerSigningKey::from_seed(&[8; 32]);
        let mut verifier = GrantVerifier::new(device(number), key.public());
        verifier.remember_nonce(NONCE, Monotonic::from_millis(0));
        Self { key, verifier, node: device(number), epoch: 1, generation: 0 }
    }

    fn verified(&mut self, change: Change<Lifetime>) -> VerifiedGrants {
        self.generation += 1;
        let document = GrantDocument {
            version: DOCUMENT_VERSION,
            audience: self.node,
            position: Position { epoch: self.epoch, generation: self.generation },
            nonce: NONCE,
            issued_at: WallTime::from_millis(EPOCH_MS),
            policy_revision: 1,
            change,
        };
        self.verifier.verify(&sign(&document, &self.key)).expect("signed for this node, in order")
    }

    pub(crate) fn snapshot(&mut self, own: OwnGrant<Lifetime>, peers: Vec<PeerGrant<Lifetime>>) -> VerifiedGrants {
        self.verified(Change::Snapshot { own, peers })
    }

    pub(crate) fn upsert(&mut self, upsert: Vec<PeerGrant<Lifetime>>) -> VerifiedGrants {
        let previous = self.generation;
        self.verified(Change::Delta { previous, own: None, upsert, remove: vec![] })
    }

    pub(crate) fn remove(&mut self, remove: Vec<DeviceId>) -> VerifiedGrants {
        let previous = self.generation;
        self.verified(Change::Delta { previous, own: None, upsert: vec![], remove })
    }
}

/// One node: a data plane, its controller, and what came out of it.
#[derive(Debug)]
pub(crate) struct Node<W: Tunnels> {
    pub(crate) number: u8,
    pub(crate) plane: DataPlane<W>,
    pub(crate) authority: Authority,
    udp: UdpBatch,
    tun: TunBatch,
    /// Datagrams that left, with their destination.
    pub(crate) sent: VecDeque<(SocketAddr, Vec<u8>)>,
    /// Packets for the local machine, without virtio headers.
    pub(crate) delivered: VecDeque<Vec<u8>>,
    /// The lane of the last of them, and the one on which the machine's own packets come.
    pub(crate) delivered_on: Option<Lane>,
    pub(crate) sends_on: Lane,
}

impl<W: Tunnels> Node<W> {
    pub(crate) fn new(number: u8, settings: Settings, tunnels: W, now: Now) -> Self {
        let mut plane = DataPlane::with_tunnels(settings, tunnels, now);
        plane.set_local_keys(&[secret(number)], now);
        Self {
            number,
            plane,
            authority: Authority::new(number),
            udp: UdpBatch::new(),
            tun: TunBatch::new(Joining::Nothing),
            sent: VecDeque::new(),
            delivered: VecDeque::new(),
            delivered_on: None,
            sends_on: Lane(0),
        }
    }

    pub(crate) fn snapshot(&mut self, peers: Vec<PeerGrant<Lifetime>>, now: Now) -> Applied {
        let own = own(self.number);
        let grants = self.authority.snapshot(own, peers);
        self.apply(grants, now)
    }

    pub(crate) fn upsert(&mut self, peer: PeerGrant<Lifetime>, now: Now) -> Applied {
        let grants = self.authority.upsert(vec![peer]);
        self.apply(grants, now)
    }

    pub(crate) fn remove(&mut self, number: u8, now: Now) -> Applied {
        let grants = self.authority.remove(vec![device(number)]);
        self.apply(grants, now)
    }

    pub(crate) fn apply(&mut self, grants: VerifiedGrants, now: Now) -> Applied {
        let applied = self.plane.apply(grants, now, &mut Out { udp: &mut self.udp, tun: &mut self.tun });
        self.drain();
        applied
    }

    pub(crate) fn local_sends(&mut self, packet: &[u8], now: Now) {
        self.tun_gives(VirtioHeader::PLAIN, packet, now);
    }

    pub(crate) fn tun_gives(&mut self, header: VirtioHeader, packet: &[u8], now: Now) {
        let out = &mut Out { udp: &mut self.udp, tun: &mut self.tun };
        self.plane.handle_tun_lane(self.sends_on, header, packet, now, out);
        self.drain();
    }

    pub(crate) fn network_brings(&mut self, datagram: &[u8], from: SocketAddr, now: Now) {
        self.plane.handle_udp(datagram, from, now, &mut Out { udp: &mut self.udp, tun: &mut self.tun });
        self.drain();
    }

    pub(crate) fn tick(&mut self, now: Now) {
        self.plane.handle_timeout(now, &mut Out { udp: &mut self.udp, tun: &mut self.tun });
        self.drain();
    }

    pub(crate) fn take_delivered(&mut self) -> Vec<Vec<u8>> {
        self.delivered.drain(..).collect()
    }

    fn drain(&mut self) {
        for run in self.udp.runs() {
            self.sent.extend(run.bytes.chunks(run.segment).map(|datagram| (run.endpoint, datagram.to_vec())));
        }
        self.udp.clear();
        for frame in self.tun.frames() {
            self.delivered_on = Some(frame.lane());
            let bytes: Vec<u8> = frame.slices().flat_map(|slice| slice.to_vec()).collect();
            self.delivered.push_back(bytes[crate::packet::offload::VIRTIO_HEADER_LENGTH..].to_vec());
        }
        self.tun.clear();
    }
}

/// Carries datagrams between nodes until none is on its way.
pub(crate) fn settle<W: Tunnels>(nodes: &mut [&mut Node<W>], now: Now) {
    for _ in 0..64 {
        let mut carried = false;
        for from in 0..nodes.len() {
            while let Some((to, datagram)) = nodes[from].sent.pop_front() {
                carried = true;
                let source = outer(nodes[from].number);
                if let Some(node) = nodes.iter_mut().find(|node| outer(node.number) == to) {
                    node.network_brings(&datagram, source, now);
                }
            }
        }
        if !carried {
            return;
        }
    }
    panic!("datagrams go in circles");
}

/// Lets time pass from `from_ms` to `to_ms`, ticking each node when it asks for it and carrying datagrams.
pub(crate) fn pass_time<W: Tunnels>(nodes: &mut [&mut Node<W>], from_ms: u64, to_ms: u64) {
    let mut present = from_ms;
    for _ in 0..200_000 {
        let due = nodes.iter().map(|node| node.plane.poll_timeout()).min().unwrap_or(Monotonic::NEVER);
        let due = due.as_nanos().div_ceil(Duration::from_millis(1).as_nanos() as u64);
        present = due.clamp(present, to_ms);
        for node in nodes.iter_mut() {
            node.tick(at(present));
        }
        settle(nodes, at(present));
        if present >= to_ms {
            return;
        }
        present += 1;
    }
    panic!("time stands still: somebody asks again and again for the past");
}
