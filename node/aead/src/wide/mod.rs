//! Eight packets at once, on processors with AVX-512 (F, BW, IFMA).
//!
//! ```text
//! texts, counters ─> walk: which lane makes which block ─> chacha: 32 blocks ─┬─> one-time keys ─> poly: eight tags
//!                                                                             └─> xor into the texts
//! ```
//!
//! Blocks are handed out one-time keys first, then the texts one after another, so that lanes are left idle only at the end of a
//! group. Sealing mixes first and computes the tags over what came out. Opening computes and compares the tags first and mixes
//! only texts whose tag was right: what is not authentic never stands decrypted anywhere.
//!
//! Invariants: no branch and no address depends on a secret (only on lengths, counts and on whether a tag was right, which the
//! sender learns anyway); the code for AVX-512 is reached only through a [`Wide`], which only [`Wide::detect`] makes; all accesses
//! through pointers are in `memory`. The keystream, the one-time keys and parts of the key stay on the stack until it is used
//! again, as with `ring`.
#![allow(unsafe_code)]

mod chacha;
mod memory;
mod poly;

use std::ops::Range;

use chacha::{BLOCK, Keystream, Lanes, MOST, SET};
use subtle::ConstantTimeEq;

use crate::{
    TAG,
    group::{Group, LANES},
};

/// The processor was asked, and has what this module needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wide(());

impl Wide {
    pub(crate) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512ifma");
        has.then_some(Self(()))
    }

    /// Seals the group's texts in place; their tags by lane.
    pub(crate) fn seal(self, key: &[u32; 8], group: &mut Group<'_>) -> [[u8; TAG]; LANES] {
        // SAFETY: the processor has the features, or there would be no `Wide`.
        unsafe { seal(key, group) }
    }

    /// Opens those of the group's texts in place whose tag is right, and leaves the others as they are; which ones, by lane.
    pub(crate) fn open(self, key: &[u32; 8], group: &mut Group<'_>, tags: &[[u8; TAG]; LANES]) -> [bool; LANES] {
        // SAFETY: the processor has the features, or there would be no `Wide`.
        unsafe { open(key, group, tags) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512ifma")]
fn seal(key: &[u32; 8], group: &mut Group<'_>) -> [[u8; TAG]; LANES] {
    let lengths = lengths(group);
    let (mut lanes, mut blocks) = (Lanes::new(), Keystream::new());
    let first = first_pass(key, group, &lengths, &mut lanes, &mut blocks);
    let keys = one_time_keys(group.count, &blocks);
    mix(Cursor::default(), &lengths, group.count..first, group, &blocks);
    other_passes(key, group, &lengths, first - group.count, &mut lanes, &mut blocks);
    poly::tags(&keys, &texts(group))
}

#[target_feature(enable = "avx512f,avx512bw,avx512ifma")]
fn open(key: &[u32; 8], group: &mut Group<'_>, tags: &[[u8; TAG]; LANES]) -> [bool; LANES] {
    let mut lengths = lengths(group);
    let (mut lanes, mut blocks) = (Lanes::new(), Keystream::new());
    let first = first_pass(key, group, &lengths, &mut lanes, &mut blocks);
    let keys = one_time_keys(group.count, &blocks);
    let computed = poly::tags(&keys, &texts(group));
    let mut authentic = [false; LANES];
    for lane in 0..group.count {
        let number = |tag: &[u8; TAG]| u128::from_le_bytes(*tag);
        authentic[lane] = number(&computed[lane]).ct_eq(&number(&tags[lane])).into();
    }
    if authentic[..group.count].iter().all(|authentic| *authentic) {
        mix(Cursor::default(), &lengths, group.count..first, group, &blocks);
        other_passes(key, group, &lengths, first - group.count, &mut lanes, &mut blocks);
    } else {
        // Rare: begins anew without the others, since the blocks at hand are theirs too.
        for (length, authentic) in lengths.iter_mut().zip(authentic) {
            *length = if authentic { *length } else { 0 };
        }
        other_passes(key, group, &lengths, 0, &mut lanes, &mut blocks);
    }
    authentic
}

fn lengths(group: &Group<'_>) -> [usize; LANES] {
    std::array::from_fn(|lane| if lane < group.count { group.texts[lane].len() } else { 0 })
}

/// Texts for the tags; lanes with no packet repeat the first one, which costs nothing and differs in no length.
fn texts<'g>(group: &'g Group<'_>) -> [&'g [u8]; LANES] {
    std::array::from_fn(|lane| &*group.texts[if lane < group.count { lane } else { 0 }])
}

/// Block 0 of each packet begins with its one-time key (RFC 8439 §2.6).
fn one_time_keys(count: usize, blocks: &Keystream) -> [[u8; 32]; LANES] {
    std::array::from_fn(|lane| blocks.0[if lane < count { lane } else { 0 }].as_chunks::<32>().0[0])
}

/// Makes the one-time keys' blocks and as many blocks of the texts as there are lanes left; tells how many blocks were made.
#[target_feature(enable = "avx512f,avx512bw,avx512ifma")]
fn first_pass(
    key: &[u32; 8],
    group: &Group<'_>,
    lengths: &[usize; LANES],
    lanes: &mut Lanes,
    blocks: &mut Keystream,
) -> usize {
    for lane in 0..group.count {
        lanes.assign(lane..lane + 1, 0, group.counters[lane]);
    }
    let wanted = group.count + lengths.iter().map(|length| length.div_ceil(BLOCK)).sum::<usize>();
    let pass = pass(wanted);
    assign(Cursor::default(), lengths, group.count..pass, &group.counters, lanes);
    make(key, lanes, pass, blocks);
    pass
}

/// Makes and mixes in the blocks behind the first `done` ones of the texts.
#[target_feature(enable = "avx512f,avx512bw,avx512ifma")]
fn other_passes(
    key: &[u32; 8],
    group: &mut Group<'_>,
    lengths: &[usize; LANES],
    done: usize,
    lanes: &mut Lanes,
    blocks: &mut Keystream,
) {
    let mut left = lengths.iter().map(|length| length.div_ceil(BLOCK)).sum::<usize>().saturating_sub(done);
    let mut cursor = Cursor::default().walk(lengths, 0..done, |_, _, _| {});
    while left > 0 {
        let pass = pass(left);
        let next = assign(cursor, lengths, 0..pass, &group.counters, lanes);
        make(key, lanes, pass, blocks);
        mix(cursor, lengths, 0..pass, group, blocks);
        cursor = next;
        left = left.saturating_sub(pass);
    }
}

/// How many blocks to make next, when so many are wanted.
const fn pass(wanted: usize) -> usize {
    if wanted > SET { MOST } else { SET }
}

#[target_feature(enable = "avx512f")]
fn make(key: &[u32; 8], lanes: &Lanes, pass: usize, blocks: &mut Keystream) {
    if pass > SET { chacha::thirty_two(key, lanes, blocks) } else { chacha::sixteen(key, lanes, blocks) }
}

/// The next block of the texts to hand out.
#[derive(Clone, Copy, Default)]
struct Cursor {
    packet: usize,
    /// From 0 at the beginning of the text; one less than ChaCha20's own number.
    block: usize,
}

impl Cursor {
    /// Hands out `room`, lane by lane; `take` gets the packet, its first block and the lanes for it and the blocks after.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512ifma")]
    fn walk(
        mut self,
        lengths: &[usize; LANES],
        mut room: Range<usize>,
        mut take: impl FnMut(usize, usize, Range<usize>),
    ) -> Self {
        while !room.is_empty() && self.packet < LANES {
            let left = lengths[self.packet].div_ceil(BLOCK) - self.block;
            let end = room.end.min(room.start + left);
            if left > 0 {
                take(self.packet, self.block, room.start..end);
            }
            if end - room.start == left {
                self = Self { packet: self.packet + 1, block: 0 };
            } else {
                self.block += end - room.start;
            }
            room.start = end;
        }
        self
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512ifma")]
fn assign(
    cursor: Cursor,
    lengths: &[usize; LANES],
    room: Range<usize>,
    counters: &[u64; LANES],
    lanes: &mut Lanes,
) -> Cursor {
    cursor.walk(lengths, room, |packet, first, taken| {
        lanes.assign(taken, first as u32 + 1, counters[packet]);
    })
}

#[target_feature(enable = "avx512f,avx512bw,avx512ifma")]
fn mix(cursor: Cursor, lengths: &[usize; LANES], room: Range<usize>, group: &mut Group<'_>, blocks: &Keystream) {
    cursor.walk(lengths, room, |packet, first, taken| {
        let begin = first * BLOCK;
        let end = lengths[packet].min(begin + taken.len() * BLOCK);
        chacha::xor(&mut group.texts[packet][begin..end], &blocks.0[taken]);
    });
}

#[cfg(test)]
mod tests;
