//! Groups of every size, also those that nobody would seal together, against `ring`.
//!
//! These run where the processor can; elsewhere they say so, and only the tests of the crate's surface remain.
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};

use super::*;

const KEY: [u8; 32] = *b"neither zero nor the same twice!";

fn wide() -> Option<(Wide, [u32; 8])> {
    let wide = Wide::detect();
    if wide.is_none() {
        eprintln!("this processor has no AVX-512 IFMA: several packets at once are not tested");
    }
    let words = std::array::from_fn(|word| u32::from_le_bytes(KEY.as_chunks::<4>().0[word]));
    wide.map(|wide| (wide, words))
}

fn sealed_by_ring(counter: u64, text: &mut [u8]) -> [u8; TAG] {
    let ring = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &KEY).unwrap());
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    let nonce = Nonce::assume_unique_for_key(nonce);
    ring.seal_in_place_separate_tag(nonce, Aad::empty(), text).unwrap().as_ref().try_into().unwrap()
}

fn group<'t>(counters: &[u64], texts: &'t mut [Vec<u8>]) -> Group<'t> {
    let mut group = Group::new();
    for (counter, text) in counters.iter().zip(texts) {
        group.add(*counter, text);
    }
    group
}

/// Seals, compares with `ring`, opens with the tag of `forged` bent, and compares with the texts.
fn check((wide, words): (Wide, [u32; 8]), lengths: &[usize], forged: Option<usize>) {
    let counters: Vec<_> = (0..8).map(|lane| 0x0123_4567_ffff_fffc + lane).collect();
    let texts: Vec<Vec<_>> =
        lengths.iter().map(|length| (0..*length).map(|at| (at * 7 + length) as u8).collect()).collect();
    let mut ours = texts.clone();
    let mut tags = wide.seal(&words, &mut group(&counters, &mut ours));
    let mut rings = texts.clone();
    for (lane, text) in rings.iter_mut().enumerate() {
        assert_eq!(tags[lane], sealed_by_ring(counters[lane], text), "{lengths:?}");
    }
    assert!(ours == rings, "{lengths:?}");
    if let Some(lane) = forged {
        tags[lane][lane * 2] ^= 1 << lane;
    }
    let authentic = wide.open(&words, &mut group(&counters, &mut ours), &tags);
    for lane in 0..lengths.len() {
        assert_eq!(authentic[lane], forged != Some(lane), "{lengths:?}");
        assert!(ours[lane] == if authentic[lane] { &texts[lane][..] } else { &rings[lane][..] }, "{lengths:?}");
    }
    assert!(authentic[lengths.len()..].iter().all(|authentic| !authentic));
}

#[test]
fn groups_of_any_size_and_length_are_as_ring_makes_them() {
    let Some(wide) = wide() else { return };
    for length in 0..=2_100 {
        for count in 1..=LANES {
            check(wide, &vec![length; count], (length % 3 == 0).then_some(length % count));
        }
    }
}

#[test]
fn groups_of_very_different_lengths_are_as_ring_makes_them() {
    let Some(wide) = wide() else { return };
    for length in 0..=200 {
        for others in [0, 1, 16, 63, 64, 1_424, 9_008] {
            let mut lengths = vec![others; 1 + length % LANES];
            lengths[length / LANES % (1 + length % LANES)] = length;
            check(wide, &lengths, None);
            check(wide, &lengths, Some(length % lengths.len()));
        }
    }
    check(wide, &[crate::MAX_TEXT, 0, crate::MAX_TEXT - 1, 1], None);
}
