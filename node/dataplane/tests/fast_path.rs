//! The fast path allocates nothing: counted by the global allocator, over real WireGuard, in both directions.
#![allow(unsafe_code)] // a global allocator cannot be written without

use std::{
    alloc::{GlobalAlloc, Layout, System},
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
};

use postern_common::{
    grant::{
        Change, DOCUMENT_VERSION, GrantDocument, GrantVerifier, KeyPair, Mode, OnDeny, OwnGrant, PeerGrant, Permission,
        Position, sign,
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
};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NONCE: Nonce = Nonce::from_bytes([5; 16]);

fn now(ms: u64) -> Now {
    Now { monotonic: Monotonic::from_millis(ms), wall: WallTime::from_millis(ms as i64) }
}

fn inner(number: u8) -> IpAddr {
    IpAddr::from([100, 64, 0, number])
}

fn outer(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51_820))
}

struct Node {
    number: u8,
    plane: DataPlane,
    udp: UdpBatch,
    tun: TunBatch,
}

fn node(number: u8, other: u8) -> Node {
    let secret = |number: u8| WireGuardPrivateKey::from_bytes([number; 32]);
    let device = |number: u8| DeviceId::from_bytes([number; 16]);
    let permission = Permission {
        rule: "rule".parse().expect("a name"),
        resource: "resource".parse().expect("a name"),
        lease: LeaseId::from_bytes([1; 16]),
        services: vec!["tcp/443".parse().expect("a service")],
        until: Lifetime { remaining_ms: 3_600_000, not_after: WallTime::NEVER },
        on_deny: OnDeny::Drop,
        mode: Mode::Enforce,
    };
    let (inbound, outbound) = if number == 2 { (vec![permission], vec![]) } else { (vec![], vec![permission]) };
    let document = GrantDocument {
        version: DOCUMENT_VERSION,
        audience: device(number),
        position: Position { epoch: 1, generation: 1 },
        nonce: NONCE,
        issued_at: WallTime::from_millis(0),
        policy_revision: 1,
        change: Change::Snapshot {
            own: OwnGrant {
                name: "node".parse().expect("a name"),
                subject: SubjectId::from_bytes([number; 16]),
                subject_name: "subject".into(),
                tags: vec![],
                addresses: vec![inner(number)],
                overlay: vec![],
                domain: "internal".into(),
                keys: vec![],
                session_until: None,
            },
            peers: vec![PeerGrant {
                device: device(other),
                name: "peer".parse().expect("a name"),
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
            }],
        },
    };
    let key = ControllerSigningKey::from_seed(&[4; 32]);
    let mut verifier = GrantVerifier::new(device(number), key.public());
    verifier.remember_nonce(NONCE, Monotonic::from_millis(0));
    let grants = verifier.verify(&sign(&document, &key)).expect("signed for this node");
    let mut node = Node {
        number,
        plane: DataPlane::new(Settings { greetings: 0, ..Settings::default() }, now(0)),
        udp: UdpBatch::new(),
        tun: TunBatch::new(Joining::Tcp),
    };
    node.plane.set_local_keys(&[secret(number)], now(0));
    node.plane.apply(grants, now(0), &mut Out { udp: &mut node.udp, tun: &mut node.tun });
    node
}

/// Carries everything that `from` has sent, without a copy.
fn carry(from: &mut Node, to: &mut Node, at: Now) -> usize {
    let mut carried = 0;
    for run in from.udp.runs() {
        for datagram in run.bytes.chunks(run.segment) {
            carried += 1;
            to.plane.handle_udp(datagram, outer(from.number), at, &mut Out { udp: &mut to.udp, tun: &mut to.tun });
        }
    }
    from.udp.clear();
    carried
}

/// A TCP super-packet with a begun checksum, as the kernel hands it over.
fn superpacket(from: (u8, u16), to: (u8, u16), payload: usize) -> (VirtioHeader, Vec<u8>) {
    let mut packet = vec![0x45, 0];
    packet.extend(((40 + payload) as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 100, 64, 0, from.0, 100, 64, 0, to.0]);
    let mut sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet.extend(from.1.to_be_bytes());
    packet.extend(to.1.to_be_bytes());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0x10, 0, 0, 0, 0, 0]);
    packet.resize(40 + payload, 7);
    let gso = if payload > 1_360 { Gso::TcpV4 { size: 1_360 } } else { Gso::None };
    (VirtioHeader { gso, header_length: 40, checksum: Some(PartialChecksum { start: 20, offset: 16 }) }, packet)
}

#[test]
fn an_established_flow_allocates_nothing_in_either_direction() {
    let (mut client, mut server) = (node(1, 2), node(2, 1));
    let (big_header, big) = superpacket((1, 40_000), (2, 443), 40_000);
    let (small_header, small) = superpacket((2, 443), (1, 40_000), 0);
    let (mut allocations, mut segments) = (u64::MAX, 0);
    for round in 0..60 {
        let at = now(10 + round);
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        client.plane.handle_tun(big_header, &big, at, &mut Out { udp: &mut client.udp, tun: &mut client.tun });
        segments = carry(&mut client, &mut server, at);
        server.plane.handle_tun(small_header, &small, at, &mut Out { udp: &mut server.udp, tun: &mut server.tun });
        carry(&mut server, &mut client, at);
        allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
        if round < 10 {
            // Handshake and first packets: they may allocate.
            carry(&mut client, &mut server, at);
            carry(&mut server, &mut client, at);
        } else {
            assert_eq!(allocations, 0, "round {round}");
        }
        server.tun.clear();
        client.tun.clear();
    }
    assert_eq!((allocations, segments), (0, 30));
    // Before the handshake was done, the server spoke into a connection that it did not know yet.
    assert_eq!((client.plane.counters().denied_total(), server.plane.counters().denied_total()), (0, 1));
    assert!(server.plane.counters().packets_in > 50 * 30);
    assert_eq!(client.plane.flow_count(), 1);
}
