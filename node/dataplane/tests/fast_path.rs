//! The fast path allocates nothing: counted by the global allocator, over real WireGuard, in both directions.
#![allow(unsafe_code)] // a global allocator cannot be written without

mod support;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU64, Ordering},
};

use postern_common::limit::{Consequence, Limit, Measure};
use postern_dataplane::{Out, Settings, wireguard::WireGuard};
use support::{Node, carry, couple, couple_under, now, permissions, superpacket};

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

#[test]
fn an_established_flow_allocates_nothing_in_either_direction_limited_or_not() {
    exchange(couple(1, &Settings::default(), |_| WireGuard::new(now(0))));
    let mut limited = permissions(1);
    let limit = |measure| Limit { measure, most: 1 << 40, within_ms: 10_000, then: Consequence::Challenge, budget: 1 };
    let each = [Measure::Download, Measure::Upload, Measure::Connections].map(limit).to_vec();
    limited.iter_mut().for_each(|permission| permission.limits.clone_from(&each));
    exchange(couple_under(&limited, &Settings::default(), |_| WireGuard::new(now(0))));
}

fn exchange([mut client, mut server]: [Node<WireGuard>; 2]) {
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
