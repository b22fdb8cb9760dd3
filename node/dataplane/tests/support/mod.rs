//! Two data planes with signed grants, and packets as a kernel hands them over: for tests and benchmarks from outside.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)] // each user takes a part

use std::net::{IpAddr, SocketAddr};

use postern_common::{
    grant::{
        Change, DOCUMENT_VERSION, GrantDocument, GrantVerifier, KeyPair, Mode, OnDeny, OwnGrant, PeerGrant, Permission,
        Position, VerifiedGrants, sign,
    },
    id::{DeviceId, LeaseId, Nonce, SubjectId},
    key::{ControllerSigningKey, PresharedKey, WireGuardPrivateKey},
    time::{Lifetime, Monotonic, Now, WallTime},
};
use postern_dataplane::{
    DataPlane, Out, Settings,
    packet::{
        batch::{Joining, TunBatch, UdpBatch},
        offload::{Gso, PartialChecksum, VirtioHeader},
    },
    wireguard::{Tunnels, WireGuard},
};

const NONCE: Nonce = Nonce::from_bytes([5; 16]);

pub fn now(ms: u64) -> Now {
    Now { monotonic: Monotonic::from_millis(ms), wall: WallTime::from_millis(ms as i64) }
}

pub fn inner(number: u8) -> IpAddr {
    IpAddr::from([100, 64, 0, number])
}

pub fn outer(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51_820))
}

pub struct Node<W: Tunnels = WireGuard> {
    pub number: u8,
    pub plane: DataPlane<W>,
    pub udp: UdpBatch,
    pub tun: TunBatch,
}

/// Rules that let `number` 2 be opened by 1: `count - 1` that name other ports, and one that names tcp/443 and all UDP from 1024 on.
pub fn permissions(count: usize) -> Vec<Permission<Lifetime>> {
    let permission = |rule: String, services: &[String]| Permission {
        rule: rule.parse().unwrap(),
        resource: "resource".parse().unwrap(),
        lease: LeaseId::from_bytes([1; 16]),
        services: services.iter().map(|service| service.parse().unwrap()).collect(),
        until: Lifetime { remaining_ms: 3_600_000, not_after: WallTime::NEVER },
        on_deny: OnDeny::Drop,
        mode: Mode::Enforce,
        limits: Default::default(),
    };
    let others = (1..count).map(|i| permission(format!("rule {i}"), &[format!("tcp/{}", 1_024 + i % 60_000)]));
    others.chain([permission("rule".into(), &["tcp/443".into(), "udp/1024-65535".into()])]).collect()
}

/// The signed snapshot of node `number`, which has `other` as its peer, verified.
pub fn grants(number: u8, other: u8, rules: usize) -> VerifiedGrants {
    grants_of(number, other, permissions(rules))
}

/// The same with these permissions.
pub fn grants_of(number: u8, other: u8, permissions: Vec<Permission<Lifetime>>) -> VerifiedGrants {
    let device = |number: u8| DeviceId::from_bytes([number; 16]);
    let (inbound, outbound) = if number == 2 { (permissions, vec![]) } else { (vec![], permissions) };
    let document = GrantDocument {
        version: DOCUMENT_VERSION,
        audience: device(number),
        position: Position { epoch: 1, generation: 1 },
        nonce: NONCE,
        issued_at: WallTime::from_millis(0),
        policy_revision: 1,
        change: Change::Snapshot {
            own: OwnGrant {
                name: "node".parse().unwrap(),
                subject: SubjectId::from_bytes([number; 16]),
                subject_name: "subject".into(),
                tags: vec![],
                addresses: vec![inner(number)],
                overlay: vec![],
                domain: "internal".into(),
                keys: vec![],
                session_until: None,
                quarantine: None,
                step_up: vec![],
                scan: None,
            },
            peers: vec![PeerGrant {
                device: device(other),
                name: "peer".parse().unwrap(),
                subject: SubjectId::from_bytes([other; 16]),
                subject_name: "subject".into(),
                tags: vec![],
                addresses: vec![inner(other)],
                pairs: vec![KeyPair {
                    local: secret(number).public(),
                    remote: secret(other).public(),
                    preshared: PresharedKey::from_bytes([3; 32]),
                }],
                endpoints: vec![outer(other)],
                inbound,
                outbound,
                scan: None,
            }],
        },
    };
    let key = ControllerSigningKey::from_seed(&[4; 32]);
    let mut verifier = GrantVerifier::new(device(number), key.public());
    verifier.remember_nonce(NONCE, Monotonic::from_millis(0));
    verifier.verify(&sign(&document, &key)).unwrap()
}

pub fn secret(number: u8) -> WireGuardPrivateKey {
    WireGuardPrivateKey::from_bytes([number; 32])
}

/// Nodes 1 and 2; 1 may open 2.
pub fn couple<W: Tunnels>(rules: usize, settings: &Settings, tunnels: impl Fn(u8) -> W) -> [Node<W>; 2] {
    couple_under(&permissions(rules), settings, tunnels)
}

/// The same with these permissions.
pub fn couple_under<W: Tunnels>(
    permissions: &[Permission<Lifetime>],
    settings: &Settings,
    tunnels: impl Fn(u8) -> W,
) -> [Node<W>; 2] {
    [(1, 2), (2, 1)].map(|(number, other)| {
        let settings = Settings { greetings: 0, ..settings.clone() };
        let mut node = Node {
            number,
            plane: DataPlane::with_tunnels(settings, tunnels(number), now(0)),
            udp: UdpBatch::new(),
            tun: TunBatch::new(Joining::TcpAndUdp),
        };
        node.plane.set_local_keys(&[secret(number)], now(0));
        let out = &mut Out { udp: &mut node.udp, tun: &mut node.tun };
        node.plane.apply(grants_of(number, other, permissions.to_vec()), now(0), out);
        node
    })
}

/// Carries everything that `from` has sent, and tells how many datagrams it was.
pub fn carry<W: Tunnels>(from: &mut Node<W>, to: &mut Node<W>, at: Now) -> usize {
    let mut carried = 0;
    for run in from.udp.runs() {
        to.tun.receive_room(run.bytes.len()).unwrap().copy_from_slice(run.bytes);
        let start = to.tun.received(run.bytes.len());
        let out = &mut Out { udp: &mut to.udp, tun: &mut to.tun };
        to.plane.handle_received(start..start + run.bytes.len(), run.segment, outer(from.number), at, out);
        carried += run.datagrams;
    }
    from.udp.clear();
    carried
}

/// A TCP super-packet with a begun checksum, as the kernel hands it over.
pub fn superpacket(from: (u8, u16), to: (u8, u16), payload: usize) -> (VirtioHeader, Vec<u8>) {
    let mut packet = header(6, from.0, to.0, 20 + payload);
    packet.extend(from.1.to_be_bytes());
    packet.extend(to.1.to_be_bytes());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0x10, 0, 0, 0, 0, 0]);
    packet.resize(40 + payload, 7);
    let gso = if payload > 1_360 { Gso::TcpV4 { size: 1_360 } } else { Gso::None };
    (VirtioHeader { gso, header_length: 40, checksum: Some(PartialChecksum { start: 20, offset: 16 }) }, packet)
}

/// A UDP datagram with a begun checksum.
pub fn datagram(from: (u8, u16), to: (u8, u16), payload: usize) -> (VirtioHeader, Vec<u8>) {
    let mut packet = header(17, from.0, to.0, 8 + payload);
    packet.extend(from.1.to_be_bytes());
    packet.extend(to.1.to_be_bytes());
    packet.extend(((8 + payload) as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.resize(28 + payload, 7);
    let checksum = Some(PartialChecksum { start: 20, offset: 6 });
    (VirtioHeader { gso: Gso::None, header_length: 28, checksum }, packet)
}

fn header(protocol: u8, from: u8, to: u8, payload: usize) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend(((20 + payload) as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 100, 64, 0, from, 100, 64, 0, to]);
    let mut sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet
}
