//! Poly1305 (RFC 8439 §2.5): the tags of eight packets at once, one packet a lane of 64 bits, each with its own key.
//!
//! Numbers are three limbs of 44, 44 and 42 bits (2^0, 2^44, 2^88), which the 52-bit multiplications of AVX-512 IFMA leave room
//! for. Four blocks of each packet are one step: `h = (h + m0)·r⁴ + m1·r³ + m2·r² + m3·r`, so there is one carry for four blocks, and
//! only the first product waits for the step before.
//!
//! Lanes end together: a shorter packet begins with empty blocks, which are zero without the bit behind their last byte and so leave
//! `h = 0` as it is. Thus nothing has to be undone or masked at the end, where lengths would differ in every way.
//!
//! Rejected: one packet in all lanes, with r⁸. It needs no company, but every packet pays for eight powers and for adding up the
//! lanes, and packets that come alone can go to `ring`.
use std::arch::x86_64::{
    __m512i, _mm512_add_epi64, _mm512_and_si512, _mm512_madd52hi_epu64, _mm512_madd52lo_epu64, _mm512_mask_set1_epi64,
    _mm512_maskz_expand_epi64, _mm512_maskz_set1_epi64, _mm512_or_si512, _mm512_set1_epi64, _mm512_setzero_si512,
    _mm512_shuffle_i64x2, _mm512_slli_epi64, _mm512_srli_epi64, _mm512_unpackhi_epi64, _mm512_unpacklo_epi64,
};

use super::{LANES, memory};

/// Bytes of a block (RFC 8439 §2.5).
const BLOCK: usize = 16;
/// Blocks of a step.
const STEP: usize = 4;
const MASK44: u64 = (1 << 44) - 1;
const MASK42: u64 = (1 << 42) - 1;
/// The bit behind the last byte of a block, 2^128, in the third limb.
const HIGH: u64 = 1 << 40;

/// Where a lane's blocks lie in the steps.
#[derive(Clone, Copy)]
struct Place<'t> {
    text: &'t [u8],
    /// Empty blocks before the first.
    empty: usize,
}

impl Place<'_> {
    fn blocks(length: usize) -> usize {
        // The last one holds the lengths (RFC 8439 §2.8).
        length.div_ceil(BLOCK) + 1
    }
}

/// Three limbs of a number in each lane.
type Limbs = [__m512i; 3];

/// A power of r, with what its upper limbs are worth when a product passes 2^132: twenty times as much (2^132 = 4·2^130 = 4·5).
#[derive(Clone, Copy)]
struct Factor {
    limbs: Limbs,
    folded: [__m512i; 2],
}

/// The six sums of a multiplication: lower and upper 52 bits of the products, by the limb where they begin.
#[derive(Clone, Copy)]
struct Sums {
    low: Limbs,
    high: Limbs,
}

/// The tags over `texts` as RFC 8439 §2.8 makes them with no additional data, lane by lane, each under its own one-time key.
#[target_feature(enable = "avx512f,avx512bw,avx512ifma")]
pub(super) fn tags(keys: &[[u8; 32]; LANES], texts: &[&[u8]; LANES]) -> [[u8; 16]; LANES] {
    let powers = powers(keys);
    let steps = texts.iter().map(|text| Place::blocks(text.len())).max().unwrap_or(1).div_ceil(STEP);
    let mut places = [Place { text: &[], empty: 0 }; LANES];
    for (place, text) in places.iter_mut().zip(texts) {
        *place = Place { text, empty: steps * STEP - Place::blocks(text.len()) };
    }

    // From the first step in which every lane has four whole blocks of text to the last.
    let from = places.iter().map(|place| place.empty.div_ceil(STEP)).max().unwrap_or(0);
    let to = places.iter().map(|place| (place.text.len() / BLOCK + place.empty) / STEP).min().unwrap_or(0);
    let (from, to) = if from < to { (from, to) } else { (steps, steps) };

    let mut whole: [&[[u8; STEP * BLOCK]]; LANES] = [&[]; LANES];
    if from < to {
        for (whole, place) in whole.iter_mut().zip(&places) {
            let begin = (from * STEP - place.empty) * BLOCK;
            *whole = &place.text[begin..].as_chunks().0[..to - from];
        }
    }

    let mut h = [_mm512_setzero_si512(); 3];
    for step in 0..steps {
        let mut rows = [_mm512_setzero_si512(); LANES];
        let mut behind = [_mm512_set1_epi64(HIGH.cast_signed()); STEP];
        if (from..to).contains(&step) {
            for (row, whole) in rows.iter_mut().zip(&whole) {
                *row = memory::load(&whole[step - from]);
            }
        } else {
            (rows, behind) = parts(&places, step);
        }
        h = absorb(h, rows, &behind, &powers);
    }

    let mut limbs = [[0; LANES]; 3];
    for (out, limb) in limbs.iter_mut().zip(h) {
        memory::store_u64(out, limb);
    }
    let mut tags = [[0; 16]; LANES];
    for (lane, tag) in tags.iter_mut().enumerate() {
        *tag = finish([limbs[0][lane], limbs[1][lane], limbs[2][lane]], pad_of(&keys[lane]));
    }
    tags
}

/// r, r², r³, r⁴ of each lane.
#[target_feature(enable = "avx512f,avx512ifma")]
fn powers(keys: &[[u8; 32]; LANES]) -> [Factor; STEP] {
    let mut words = [[0; LANES]; 3];
    for (lane, key) in keys.iter().enumerate() {
        // RFC 8439 §2.5: clamped.
        let r = u128::from_le_bytes(*half(key, 0)) & 0x0fff_fffc_0fff_fffc_0fff_fffc_0fff_ffff;
        words[0][lane] = r as u64 & MASK44;
        words[1][lane] = (r >> 44) as u64 & MASK44;
        words[2][lane] = (r >> 88) as u64;
    }
    let r = Factor::new([memory::load_u64(&words[0]), memory::load_u64(&words[1]), memory::load_u64(&words[2])]);
    let r2 = Factor::new(carry(multiply(Sums::zero(), &r.limbs, &r)));
    let r3 = Factor::new(carry(multiply(Sums::zero(), &r2.limbs, &r)));
    let r4 = Factor::new(carry(multiply(Sums::zero(), &r2.limbs, &r2)));
    [r, r2, r3, r4]
}

/// What [`absorb`] takes, for a step in which lanes have empty blocks, the end of the text, or the lengths.
#[target_feature(enable = "avx512f,avx512bw")]
fn parts(places: &[Place<'_>; LANES], step: usize) -> ([__m512i; LANES], [__m512i; STEP]) {
    // A byte for each block with a bit for each lane that has it. Not words in memory: a register loaded from what was just stored
    // piece by piece has to wait for it.
    let mut there = 0_u32;
    let mut rows = [_mm512_setzero_si512(); LANES];
    for (lane, place) in places.iter().enumerate() {
        let before = step * STEP;
        let empty = place.empty.saturating_sub(before);
        if empty >= STEP {
            continue;
        }
        there |= 0x0101_0101 << (8 * empty) << lane;
        let begin = ((before + empty - place.empty) * BLOCK).min(place.text.len());
        let rest = &place.text[begin..];
        if empty == 0
            && let Some(whole) = rest.first_chunk()
        {
            rows[lane] = memory::load(whole);
            continue;
        }
        let room = (STEP - empty) * BLOCK;
        let row = memory::load_part(&rest[..rest.len().min(room)]);
        // Behind the empty blocks: eight words a register, two a block.
        let mut row = _mm512_maskz_expand_epi64((0xff_u32 << (2 * empty)) as u8, row);
        let blocks_left = rest.len().div_ceil(BLOCK);
        if empty + blocks_left < STEP {
            // The text's length is the upper word of its block; the lower one is the length of no additional data.
            let word = 2 * (empty + blocks_left) + 1;
            row = _mm512_mask_set1_epi64(row, 1 << word, place.text.len() as i64);
        }
        rows[lane] = row;
    }
    let mut behind = [_mm512_setzero_si512(); STEP];
    for (behind, lanes) in behind.iter_mut().zip(there.to_le_bytes()) {
        *behind = _mm512_maskz_set1_epi64(lanes, HIGH.cast_signed());
    }
    (rows, behind)
}

/// One step: 64 bytes of each lane in `rows`.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn absorb(h: Limbs, rows: [__m512i; LANES], high: &[__m512i; STEP], powers: &[Factor; STEP]) -> Limbs {
    let (low_words, high_words) = transposed(rows);
    let mut sums = Sums::zero();
    for block in (1..STEP).rev() {
        let message = limbs(low_words[block], high_words[block], high[block]);
        sums = multiply(sums, &message, &powers[STEP - 1 - block]);
    }
    let message = limbs(low_words[0], high_words[0], high[0]);
    let first =
        [_mm512_add_epi64(h[0], message[0]), _mm512_add_epi64(h[1], message[1]), _mm512_add_epi64(h[2], message[2])];
    carry(multiply(sums, &first, &powers[STEP - 1]))
}

/// From packet by packet to block by block: lower and upper words of each block, a packet a lane.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512i; LANES]) -> ([__m512i; STEP], [__m512i; STEP]) {
    let [p0, p1, p2, p3, p4, p5, p6, p7] = rows;
    let low = four_by_four([
        _mm512_unpacklo_epi64(p0, p1),
        _mm512_unpacklo_epi64(p2, p3),
        _mm512_unpacklo_epi64(p4, p5),
        _mm512_unpacklo_epi64(p6, p7),
    ]);
    let high = four_by_four([
        _mm512_unpackhi_epi64(p0, p1),
        _mm512_unpackhi_epi64(p2, p3),
        _mm512_unpackhi_epi64(p4, p5),
        _mm512_unpackhi_epi64(p6, p7),
    ]);
    (low, high)
}

/// Transposes quarters of registers.
#[inline]
#[target_feature(enable = "avx512f")]
fn four_by_four([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (x0, x1) = (_mm512_shuffle_i64x2::<0x44>(a, b), _mm512_shuffle_i64x2::<0xee>(a, b));
    let (y0, y1) = (_mm512_shuffle_i64x2::<0x44>(c, d), _mm512_shuffle_i64x2::<0xee>(c, d));
    [
        _mm512_shuffle_i64x2::<0x88>(x0, y0),
        _mm512_shuffle_i64x2::<0xdd>(x0, y0),
        _mm512_shuffle_i64x2::<0x88>(x1, y1),
        _mm512_shuffle_i64x2::<0xdd>(x1, y1),
    ]
}

#[inline]
#[target_feature(enable = "avx512f")]
fn limbs(low: __m512i, high: __m512i, behind: __m512i) -> Limbs {
    let mask = _mm512_set1_epi64(MASK44.cast_signed());
    let middle = _mm512_or_si512(_mm512_srli_epi64::<44>(low), _mm512_slli_epi64::<20>(high));
    [
        _mm512_and_si512(low, mask),
        _mm512_and_si512(middle, mask),
        _mm512_or_si512(_mm512_srli_epi64::<24>(high), behind),
    ]
}

impl Sums {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn zero() -> Self {
        let zero = _mm512_setzero_si512();
        Self { low: [zero; 3], high: [zero; 3] }
    }
}

impl Factor {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn new(limbs: Limbs) -> Self {
        let twenty = |limb: __m512i| {
            let four = _mm512_slli_epi64::<2>(limb);
            _mm512_add_epi64(four, _mm512_slli_epi64::<2>(four))
        };
        Self { limbs, folded: [twenty(limbs[1]), twenty(limbs[2])] }
    }
}

/// Adds `a` × `b` to `sums`.
///
/// The multiplication takes 52 bits of each side. Limbs of `a` are below 2^46 (a carried number and a block), of `b` below 2^45, folded
/// ones below 2^50. A step adds twelve products to each sum: below 2^56 in the lower, 2^48 in the upper ones.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
fn multiply(mut sums: Sums, a: &Limbs, b: &Factor) -> Sums {
    let [r0, r1, r2] = b.limbs;
    let [s1, s2] = b.folded;
    let by = [[r0, s2, s1], [r1, r0, s2], [r2, r1, r0]];
    for (limb, by) in by.iter().enumerate() {
        for (a, b) in a.iter().zip(by) {
            sums.low[limb] = _mm512_madd52lo_epu64(sums.low[limb], *a, *b);
            sums.high[limb] = _mm512_madd52hi_epu64(sums.high[limb], *a, *b);
        }
    }
    sums
}

/// Brings sums back to limbs: below 2^44, below 2^44 + 2^12, below 2^42.
///
/// Upper sums begin 52 bits above their limb, which is 8 bits above the next limb, or 10 above 2^130 behind the last.
#[inline]
#[target_feature(enable = "avx512f")]
fn carry(sums: Sums) -> Limbs {
    let (mask44, mask42) = (_mm512_set1_epi64(MASK44.cast_signed()), _mm512_set1_epi64(MASK42.cast_signed()));
    let [d0, d1, d2] = sums.low;
    let [u0, u1, u2] = sums.high;
    let d1 = _mm512_add_epi64(_mm512_add_epi64(d1, _mm512_slli_epi64::<8>(u0)), _mm512_srli_epi64::<44>(d0));
    let d2 = _mm512_add_epi64(_mm512_add_epi64(d2, _mm512_slli_epi64::<8>(u1)), _mm512_srli_epi64::<44>(d1));
    let over = _mm512_add_epi64(_mm512_slli_epi64::<10>(u2), _mm512_srli_epi64::<42>(d2));
    // 2^130 = 5.
    let five = _mm512_add_epi64(over, _mm512_slli_epi64::<2>(over));
    let h0 = _mm512_add_epi64(_mm512_and_si512(d0, mask44), five);
    let h1 = _mm512_add_epi64(_mm512_and_si512(d1, mask44), _mm512_srli_epi64::<44>(h0));
    [_mm512_and_si512(h0, mask44), h1, _mm512_and_si512(d2, mask42)]
}

/// The tag from the number of a lane: reduced to below 2^130 - 5, plus the key's second half, its lower 128 bits (RFC 8439 §2.5.1).
fn finish([h0, h1, h2]: [u64; 3], pad: u128) -> [u8; 16] {
    let mut h = [h0, h1, h2];
    for _ in 0..2 {
        h[1] += h[0] >> 44;
        h[0] &= MASK44;
        h[2] += h[1] >> 44;
        h[1] &= MASK44;
        h[0] += 5 * (h[2] >> 42);
        h[2] &= MASK42;
    }
    h[1] += h[0] >> 44;
    h[0] &= MASK44;
    // Now below 2^130. With 5 added, what is at or above 2^130 - 5 shows by the bit 2^130, and is then what to keep.
    let g0 = h[0] + 5;
    let g1 = h[1] + (g0 >> 44);
    let g2 = h[2] + (g1 >> 44);
    let keep = (g2 >> 42).wrapping_neg();
    let select = |g: u64, h: u64| (g & keep) | (h & !keep);
    let [l0, l1, l2] = [select(g0 & MASK44, h[0]), select(g1 & MASK44, h[1]), select(g2 & MASK42, h[2])];
    let number = u128::from(l0) | u128::from(l1) << 44 | u128::from(l2) << 88;
    number.wrapping_add(pad).to_le_bytes()
}

fn pad_of(key: &[u8; 32]) -> u128 {
    u128::from_le_bytes(*half(key, 1))
}

fn half(key: &[u8; 32], which: usize) -> &[u8; 16] {
    &key.as_chunks::<16>().0[which]
}

#[cfg(test)]
#[path = "poly_tests.rs"]
mod tests;
