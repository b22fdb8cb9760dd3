//! Sealing and opening allocate nothing.
#![allow(missing_docs, clippy::unwrap_used)]
#![allow(unsafe_code)] // a global allocator cannot be written without

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use postern_aead::{Key, Run, Sealed, TAG, Ways};

thread_local!(static COUNT: Cell<u64> = const { Cell::new(0) });

struct Counting;

// SAFETY: everything is the system's allocator's; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn sealing_and_opening_allocate_nothing() {
    for ways in [Ways::Fastest, Ways::PacketByPacket] {
        for (length, count) in [(64, 1), (64, 45), (1_424, 45)] {
            let key = Key::with(&[1; 32], ways);
            let run = Run { stride: length + TAG, header: 0, length, last_length: length, count };
            let mut buffer = vec![0; run.stride * count];
            let before = COUNT.get();
            key.seal_run(0, &mut buffer, &run).unwrap();
            assert_eq!(COUNT.get(), before, "sealing, {ways:?}");
            let packets = (0..).zip(buffer.chunks_mut(run.stride));
            let mut packets: Vec<_> = packets.map(|(counter, bytes)| Sealed::new(counter, bytes)).collect();
            let before = COUNT.get();
            key.open_many(&mut packets);
            assert_eq!(COUNT.get(), before, "opening, {ways:?}");
            assert!(packets.iter().all(Sealed::is_authentic));
        }
    }
}
