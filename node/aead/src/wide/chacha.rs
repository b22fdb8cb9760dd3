//! ChaCha20 (RFC 8439 §2.3): sixteen or thirty-two blocks at once, whatever packets they belong to.
//!
//! A register holds the same word of the state for sixteen blocks, so that the rounds need no shuffling; at the end the sixteen
//! words are transposed into blocks. Thirty-two blocks are two such sets, interleaved: the rounds of one set are a chain of
//! operations that each wait for the one before, and the other set fills the waiting.
use std::{
    arch::x86_64::{
        __m512i, _mm512_add_epi32, _mm512_mask_add_epi32, _mm512_mask_set1_epi32, _mm512_rol_epi32, _mm512_set_epi32,
        _mm512_set1_epi32, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
        _mm512_unpacklo_epi32, _mm512_unpacklo_epi64, _mm512_xor_si512,
    },
    ops::Range,
};

use super::memory;

/// Bytes of a block (RFC 8439 §2.3).
pub(super) const BLOCK: usize = 64;
/// Blocks of one set: lanes of 32 bits in a register.
pub(super) const SET: usize = 16;
/// The most blocks one call makes.
pub(super) const MOST: usize = 2 * SET;

/// 'expand 32-byte k' (RFC 8439 §2.3).
const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// Which block of which packet each lane makes: words 12, 14 and 15 of the state, for both sets.
#[derive(Clone, Copy)]
pub(super) struct Lanes {
    blocks: [__m512i; 2],
    low: [__m512i; 2],
    high: [__m512i; 2],
}

impl Lanes {
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn new() -> Self {
        let zero = [_mm512_setzero_si512(); 2];
        Self { blocks: zero, low: zero, high: zero }
    }

    /// Gives `lanes` the blocks from `first` on of the packet with this `counter` (WireGuard: nonce = 4 zero bytes, counter).
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn assign(&mut self, lanes: Range<usize>, first: u32, counter: u64) {
        // From here on but not from there on.
        let mask = (u64::MAX << lanes.start & !(u64::MAX << lanes.end)) as u32;
        let numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
        for (set, base) in [(0, 0), (1, SET)] {
            let mask = (mask >> base) as u16;
            // The block that the set's first lane would have; wraps where it belongs to another packet.
            let begin = first.wrapping_sub(lanes.start as u32).wrapping_add(base as u32);
            let begin = _mm512_set1_epi32(begin.cast_signed());
            self.blocks[set] = _mm512_mask_add_epi32(self.blocks[set], mask, begin, numbers);
            self.low[set] = _mm512_mask_set1_epi32(self.low[set], mask, counter as i32);
            self.high[set] = _mm512_mask_set1_epi32(self.high[set], mask, (counter >> 32) as i32);
        }
    }
}

/// The blocks that were made, in the order of the lanes.
#[repr(C, align(64))]
pub(super) struct Keystream(pub(super) [[u8; BLOCK]; MOST]);

impl Keystream {
    pub(super) const fn new() -> Self {
        Self([[0; BLOCK]; MOST])
    }
}

/// One step of four quarter rounds (RFC 8439 §2.1) in each of the sets: `a += b; d = (d ^ a) <<< BITS`, for each `(a b d)`.
///
/// A macro, because the state stays in registers only where every index is a constant of the source.
macro_rules! step {
    ($sets:tt, $bits:literal, $words:tt) => {
        step!(@each add $sets $words $bits);
        step!(@each turn $sets $words $bits);
    };
    (@each $what:ident [$($set:ident)+] $words:tt $bits:literal) => { $( step!(@$what $set $words $bits); )+ };
    (@add $x:ident [$(($a:literal $b:literal $d:literal))+] $bits:literal) => {
        $( $x[$a] = _mm512_add_epi32($x[$a], $x[$b]); )+
    };
    (@turn $x:ident [$(($a:literal $b:literal $d:literal))+] $bits:literal) => {
        $( $x[$d] = _mm512_rol_epi32::<$bits>(_mm512_xor_si512($x[$d], $x[$a])); )+
    };
}

/// The twenty rounds (RFC 8439 §2.3): a column and a diagonal round, ten times.
macro_rules! rounds {
    ($sets:tt) => {
        for _ in 0..10 {
            step!($sets, 16, [(0 4 12) (1 5 13) (2 6 14) (3 7 15)]);
            step!($sets, 12, [(8 12 4) (9 13 5) (10 14 6) (11 15 7)]);
            step!($sets, 8, [(0 4 12) (1 5 13) (2 6 14) (3 7 15)]);
            step!($sets, 7, [(8 12 4) (9 13 5) (10 14 6) (11 15 7)]);
            step!($sets, 16, [(0 5 15) (1 6 12) (2 7 13) (3 4 14)]);
            step!($sets, 12, [(10 15 5) (11 12 6) (8 13 7) (9 14 4)]);
            step!($sets, 8, [(0 5 15) (1 6 12) (2 7 13) (3 4 14)]);
            step!($sets, 7, [(10 15 5) (11 12 6) (8 13 7) (9 14 4)]);
        }
    };
}

/// Makes the first sixteen blocks of `lanes`.
#[target_feature(enable = "avx512f")]
pub(super) fn sixteen(key: &[u32; 8], lanes: &Lanes, out: &mut Keystream) {
    let mut x = start(key, lanes, 0);
    rounds!([x]);
    end(key, lanes, 0, x, out);
}

/// Makes all thirty-two blocks of `lanes`.
#[target_feature(enable = "avx512f")]
pub(super) fn thirty_two(key: &[u32; 8], lanes: &Lanes, out: &mut Keystream) {
    let mut x = start(key, lanes, 0);
    let mut y = start(key, lanes, 1);
    rounds!([x y]);
    end(key, lanes, 0, x, out);
    end(key, lanes, 1, y, out);
}

/// Adds what the rounds began with, and puts the blocks in order.
#[inline]
#[target_feature(enable = "avx512f")]
fn end(key: &[u32; 8], lanes: &Lanes, set: usize, mut words: [__m512i; 16], out: &mut Keystream) {
    for (word, first) in words.iter_mut().zip(start(key, lanes, set)) {
        *word = _mm512_add_epi32(*word, first);
    }
    for (block, row) in out.0[set * SET..].iter_mut().zip(transposed(&words)) {
        memory::store(block, row);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn start(key: &[u32; 8], lanes: &Lanes, set: usize) -> [__m512i; 16] {
    let mut state = [_mm512_setzero_si512(); 16];
    for (word, constant) in state.iter_mut().zip(CONSTANTS.iter().chain(key)) {
        *word = _mm512_set1_epi32(constant.cast_signed());
    }
    state[12] = lanes.blocks[set];
    state[14] = lanes.low[set];
    state[15] = lanes.high[set];
    state
}

/// From word by word to block by block.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(words: &[__m512i; 16]) -> [__m512i; 16] {
    let mut rows = *words;
    // Four words of a block stand together: in `quarters[q][r]`, words 4q.. of the blocks r, r + 4, r + 8, r + 12.
    let mut quarters = [[words[0]; 4]; 4];
    for (quarter, w) in quarters.iter_mut().zip(words.as_chunks::<4>().0) {
        let (low01, high01) = (_mm512_unpacklo_epi32(w[0], w[1]), _mm512_unpackhi_epi32(w[0], w[1]));
        let (low23, high23) = (_mm512_unpacklo_epi32(w[2], w[3]), _mm512_unpackhi_epi32(w[2], w[3]));
        *quarter = [
            _mm512_unpacklo_epi64(low01, low23),
            _mm512_unpackhi_epi64(low01, low23),
            _mm512_unpacklo_epi64(high01, high23),
            _mm512_unpackhi_epi64(high01, high23),
        ];
    }
    let [q0, q1, q2, q3] = quarters;
    for r in 0..4 {
        let (x0, x1) = (_mm512_shuffle_i32x4::<0x44>(q0[r], q1[r]), _mm512_shuffle_i32x4::<0xee>(q0[r], q1[r]));
        let (y0, y1) = (_mm512_shuffle_i32x4::<0x44>(q2[r], q3[r]), _mm512_shuffle_i32x4::<0xee>(q2[r], q3[r]));
        rows[r] = _mm512_shuffle_i32x4::<0x88>(x0, y0);
        rows[r + 4] = _mm512_shuffle_i32x4::<0xdd>(x0, y0);
        rows[r + 8] = _mm512_shuffle_i32x4::<0x88>(x1, y1);
        rows[r + 12] = _mm512_shuffle_i32x4::<0xdd>(x1, y1);
    }
    rows
}

/// XORs `text` with as many bytes of `blocks`.
///
/// # Panics
/// If `blocks` are fewer bytes than `text`.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn xor(text: &mut [u8], blocks: &[[u8; BLOCK]]) {
    let (whole, rest) = text.as_chunks_mut::<BLOCK>();
    let (blocks, last) = blocks.split_at(whole.len());
    for (text, block) in whole.iter_mut().zip(blocks) {
        let mixed = _mm512_xor_si512(memory::load(text), memory::load(block));
        memory::store(text, mixed);
    }
    if !rest.is_empty() {
        let mixed = _mm512_xor_si512(memory::load_part(rest), memory::load(&last[0]));
        memory::store_part(rest, mixed);
    }
}
