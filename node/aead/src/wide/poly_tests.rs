//! The tags against a slow reference that multiplies by doubling and adding, at values that a session's keys would hardly ever hit.
use proptest::prelude::*;

use super::*;
use crate::wide::Wide;

/// A number of 192 bits, little-endian: room for sums of two numbers below 2^130 - 5.
type Number = [u64; 3];
const P: Number = [0xffff_ffff_ffff_fffb, u64::MAX, 3];

fn add(a: Number, b: Number) -> Number {
    let mut sum = [0; 3];
    let mut carry = 0;
    for limb in 0..3 {
        let wide = u128::from(a[limb]) + u128::from(b[limb]) + carry;
        sum[limb] = wide as u64;
        carry = wide >> 64;
    }
    assert_eq!(carry, 0, "sums stay below 2^192");
    sum
}

fn subtract(a: Number, b: Number) -> Option<Number> {
    let mut rest = [0; 3];
    let mut borrowed = false;
    for limb in 0..3 {
        let (once, first) = a[limb].overflowing_sub(b[limb]);
        let (twice, second) = once.overflowing_sub(u64::from(borrowed));
        rest[limb] = twice;
        borrowed = first || second;
    }
    (!borrowed).then_some(rest)
}

fn reduced(mut number: Number) -> Number {
    while let Some(less) = subtract(number, P) {
        number = less;
    }
    number
}

fn product(a: Number, b: Number) -> Number {
    let mut sum = [0; 3];
    for bit in (0..192).rev() {
        sum = reduced(add(sum, sum));
        if b[bit / 64] >> (bit % 64) & 1 == 1 {
            sum = reduced(add(sum, a));
        }
    }
    sum
}

fn number(low: u128, high: u64) -> Number {
    [low as u64, (low >> 64) as u64, high]
}

/// Poly1305 as RFC 8439 §2.5.1 writes it down.
fn reference(key: &[u8; 32], message: &[u8]) -> [u8; 16] {
    let (r, s) = key.split_at(16);
    let mut r: [u8; 16] = r.try_into().unwrap();
    for index in [3, 7, 11, 15] {
        r[index] &= 15;
    }
    for index in [4, 8, 12] {
        r[index] &= 252;
    }
    let mut h = [0; 3];
    for block in message.chunks(16) {
        let mut bytes = [0; 17];
        bytes[..block.len()].copy_from_slice(block);
        bytes[block.len()] = 1;
        let low = u128::from_le_bytes(bytes[..16].try_into().unwrap());
        h = product(reduced(add(h, number(low, bytes[16].into()))), number(u128::from_le_bytes(r), 0));
    }
    let low = u128::from(h[0]) | u128::from(h[1]) << 64;
    low.wrapping_add(u128::from_le_bytes(s.try_into().unwrap())).to_le_bytes()
}

/// What RFC 8439 §2.8 puts under the tag, with no additional data.
fn under_the_tag(text: &[u8]) -> Vec<u8> {
    let mut message = text.to_vec();
    message.resize(text.len().next_multiple_of(16), 0);
    message.extend([0; 8]);
    message.extend((text.len() as u64).to_le_bytes());
    message
}

/// Compares all lanes; does nothing where the processor cannot.
fn check(keys: &[[u8; 32]; LANES], texts: &[&[u8]; LANES]) {
    if Wide::detect().is_none() {
        return;
    }
    // SAFETY: the processor has the features.
    let tags = unsafe { tags(keys, texts) };
    for lane in 0..LANES {
        let right = reference(&keys[lane], &under_the_tag(texts[lane]));
        assert_eq!(tags[lane], right, "lane {lane}, key {:x?}, text {:x?}", keys[lane], texts[lane]);
    }
}

/// Keys at the bounds of what clamping leaves.
fn keys() -> Vec<[u8; 32]> {
    let mut keys = vec![[0; 32], [0xff; 32]];
    let r = |r: u128, s: u128| {
        let mut key = [0; 32];
        key[..16].copy_from_slice(&r.to_le_bytes());
        key[16..].copy_from_slice(&s.to_le_bytes());
        key
    };
    for bit in 0..128 {
        keys.push(r(1 << bit, 0));
        keys.push(r(u128::MAX >> bit, u128::MAX));
    }
    for limb in [(1_u128 << 44) - 1, ((1 << 44) - 1) << 44, ((1 << 40) - 1) << 88, 2, 5] {
        keys.push(r(limb, 1));
        keys.push(r(!limb, u128::MAX - 1));
    }
    keys
}

#[test]
fn the_reference_agrees_with_the_rfc() {
    let vector = |key: &str, message: &[u8], tag: &str| {
        let key: [u8; 32] = hex::decode(key).unwrap().try_into().unwrap();
        assert_eq!(hex::encode(reference(&key, message)), tag);
    };
    // RFC 8439 §2.5.2.
    let key = "85d6be7857556d337f4452fe42d506a80103808afb0db2fd4abff6af4149f51b";
    vector(key, b"Cryptographic Forum Research Group", "a8061dc1305136c6c22b8baf0c0127a9");
    // RFC 8439 A.3 #7 to #9: what lies at and above 2^130 - 5, 2^128.
    let (one, two) = (format!("01{}", "0".repeat(62)), format!("02{}", "0".repeat(62)));
    vector(&two, &[0xff; 16], "03000000000000000000000000000000");
    let message = hex::decode(format!("{}f0{}11{}", "f".repeat(32), "f".repeat(30), "0".repeat(30))).unwrap();
    vector(&one, &message, "05000000000000000000000000000000");
    let message = hex::decode(format!("{}fb{}{}", "f".repeat(32), "fe".repeat(15), "01".repeat(16))).unwrap();
    vector(&one, &message, "00000000000000000000000000000000");
    let message = hex::decode(format!("fd{}", "f".repeat(30))).unwrap();
    vector(&two, &message, "faffffffffffffffffffffffffffffff");
}

#[test]
fn keys_and_texts_at_the_bounds_get_the_right_tags() {
    let keys = keys();
    for byte in [0x00, 0x01, 0x7f, 0x80, 0xfb, 0xff] {
        let text = [byte; 16 * 9];
        for lanes in keys.windows(LANES).step_by(LANES - 1) {
            let lanes: [_; LANES] = lanes.try_into().unwrap();
            check(&lanes, &std::array::from_fn(|lane| &text[..16 * (lane + 1)]));
            check(&lanes, &[&text[..]; LANES]);
        }
    }
}

/// With r = 1 the number before the last reduction is the sum of the blocks, and can be chosen.
#[test]
fn sums_at_the_bounds_are_reduced_rightly() {
    let mut one = [0; 32];
    one[0] = 1;
    let mut targets: Vec<Number> = Vec::new();
    for near in 0..12 {
        targets.extend(subtract(P, [near, 0, 0]));
        targets.push([near, 0, 0]);
    }
    for bit in [43, 44, 45, 63, 64, 87, 88, 89, 127, 128, 129] {
        let mut power = [0; 3];
        power[bit / 64] = 1 << (bit % 64);
        targets.extend([power, add(power, [1, 0, 0])]);
        targets.extend(subtract(power, [1, 0, 0]));
    }
    // Six whole blocks and the lengths: any number below 2^130 - 5 is a sum of six blocks.
    let behind = reduced(add(number(96 << 64, 0), [0, 0, 7]));
    for target in targets {
        let mut wanted = reduced(add(target, subtract(P, behind).unwrap()));
        let mut text = Vec::new();
        for _ in 0..6 {
            let block = if wanted[2] > 0 { u128::MAX } else { u128::from(wanted[0]) | u128::from(wanted[1]) << 64 };
            wanted = subtract(wanted, number(block, 0)).unwrap();
            text.extend(block.to_le_bytes());
        }
        assert_eq!(wanted, [0; 3]);
        let [low, middle, _] = reduced(target);
        assert_eq!(reference(&one, &under_the_tag(&text)), (u128::from(low) | u128::from(middle) << 64).to_le_bytes());
        check(&[one; LANES], &[&text[..]; LANES]);
    }
}

#[test]
fn numbers_around_the_modulus_are_reduced_rightly() {
    for above in 0..5 {
        assert_eq!(finish([MASK44 - 4 + above, MASK44, MASK42], 0), u128::from(above).to_le_bytes());
    }
    assert_eq!(finish([MASK44 - 5, MASK44, MASK42], 0), (u128::MAX - 5).to_le_bytes());
    // 2^130 and 2^88 more by limbs that were not carried.
    assert_eq!(finish([0, 1 << 44, MASK42], 0), 5_u128.to_le_bytes());
    assert_eq!(finish([MASK44, MASK44 + (1 << 44), MASK42], 3), ((1_u128 << 88) + 7).to_le_bytes());
}

proptest! {
    #[test]
    fn numbers_that_are_not_reduced_get_the_right_tag(
        limbs in prop::array::uniform3(prop_oneof![any::<u64>(), Just(u64::MAX), Just(0)]),
        pad in any::<u128>(),
    ) {
        // The bounds that `carry` promises.
        let [h0, h1, h2] = [limbs[0] & MASK44, limbs[1] & (MASK44 | 1 << 44), limbs[2] & MASK42];
        let value = reduced(add(add([h0, 0, 0], number(u128::from(h1) << 44, 0)), number(u128::from(h2) << 88, h2 >> 40)));
        let low = u128::from(value[0]) | u128::from(value[1]) << 64;
        prop_assert_eq!(finish([h0, h1, h2], pad), low.wrapping_add(pad).to_le_bytes());
    }

    #[test]
    fn texts_of_any_lengths_get_the_right_tags(
        keys in prop::array::uniform8(prop_oneof![any::<[u8; 32]>(), Just([0xff; 32])]),
        lengths in prop::array::uniform8(0_usize..600),
        text in prop_oneof![Just(vec![0xff; 600]), prop::collection::vec(any::<u8>(), 600)],
    ) {
        check(&keys, &lengths.map(|length| &text[..length]));
        check(&keys, &[&text[..lengths[0]]; LANES]);
    }
}
